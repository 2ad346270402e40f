"""A new DICOM file of decoded frames, with nothing of the old header but what is named here.

The basic profile of DICOM PS3.15 (annex E) lists what to remove, more than 600 attributes, and
grows; whatever a machine writes beside them would stay. Here it is turned about: a new header is
built, and of the old one it takes numbers of the picture, checked to be numbers, none of which is
in the profile's list. Ids, dates and UIDs, which are, become pseudonyms of one key.
"""

import collections
import contextlib
import datetime
import hashlib
import io
import itertools
import re
import struct

import numpy as np
import pydicom
from pydicom import datadict, encaps, uid, valuerep
from pydicom.pixels.encoders import JPEGLSLosslessEncoder

from lus_jax.media import dicom, writers

# Of the image, all numbers.
_NUMBERS = (
  "ActualFrameDuration",
  "CineRate",
  "DepthOfScanField",
  "FrameTime",
  "FrameTimeVector",
  "ImagerPixelSpacing",
  "NominalScannedPixelSpacing",
  "PixelAspectRatio",
  "PixelSpacing",
  "RecommendedDisplayFrameRate",
)
# Of each region on the screen (US Region Calibration Module), all numbers.
_REGION = (
  "DopplerCorrectionAngle",
  "PhysicalDeltaX",
  "PhysicalDeltaY",
  "PhysicalUnitsXDirection",
  "PhysicalUnitsYDirection",
  "PulseRepetitionFrequency",
  "ReferencePixelPhysicalValueX",
  "ReferencePixelPhysicalValueY",
  "ReferencePixelX0",
  "ReferencePixelY0",
  "RegionDataType",
  "RegionFlags",
  "RegionLocationMaxX1",
  "RegionLocationMaxY1",
  "RegionLocationMinX0",
  "RegionLocationMinY0",
  "RegionSpatialFormat",
  "SteeringAngle",
  "TransducerFrequency",
)
_REGIONS = "SequenceOfUltrasoundRegions"
_SEQUENCES = frozenset(
  keyword for vr, *_, keyword in datadict.DicomDictionary.values() if vr == "SQ"
)
_DATES = ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate")
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Texts of the machine's maker; kept where no word of a person or place is in them.
_MACHINE = ("Manufacturer", "ManufacturerModelName")
# VRs of texts that may tell whose a picture is, and of days.
_TEXTS = frozenset(("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_TIMES = frozenset(("DA", "DT"))
_OF_COPIES = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
# What must be there and may be empty.
_EMPTY = (
  "AccessionNumber",
  "InstanceNumber",
  "PatientBirthDate",
  "PatientName",
  "PatientOrientation",
  "PatientSex",
  "ReferringPhysicianName",
  "SeriesNumber",
  "StudyID",
  "StudyTime",
)
# What describes the pixels as they are stored, anew in the copy.
_STORED = (
  "BitsAllocated",
  "BitsStored",
  "Columns",
  "FrameIncrementPointer",
  "HighBit",
  "ImageType",
  "LossyImageCompression",
  "Modality",
  "NumberOfFrames",
  "PhotometricInterpretation",
  "PixelData",
  "PixelRepresentation",
  "PlanarConfiguration",
  "Rows",
  "SOPClassUID",
  "SamplesPerPixel",
  "SpecificCharacterSet",
)
_STORED_META = (
  "FileMetaInformationVersion",
  "ImplementationClassUID",
  "ImplementationVersionName",
  "MediaStorageSOPClassUID",
  "TransferSyntaxUID",
)
_NAMES_OF_PEOPLE_AND_PLACES = (
  "InstitutionName",
  "OperatorsName",
  "OtherPatientIDs",
  "PatientID",
  "PatientName",
  "PerformingPhysicianName",
  "ReferringPhysicianName",
)
# What pydicom raises where it interprets a damaged value; such a value is not kept.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  LookupError,
  NotImplementedError,
  OSError,
  TypeError,
  ValueError,
  pydicom.errors.BytesLengthException,
  struct.error,
)
_RANGES = {"SL": (-(2**31), 2**31 - 1), "UL": (0, 2**32 - 1), "US": (0, 2**16 - 1)}
# Pixels from which on a frame is compressed; smaller ones may outgrow the room of the encoder.
_COMPRESSED = 1024
# Where numbers of pictures lie, but for 0. Letters that are taken for a number lie elsewhere.
_LEAST, _MOST = 1e-9, 1e9
# Codes and meanings of what was done, of DICOM's own list (PS3.16, CID 7050).
_PROFILE = "113100", "Basic Application Confidentiality Profile"
_DATES_SHIFTED = "113107", "Retain Longitudinal Temporal Information Modified Dates Option"


def _value(dataset, keyword):
  """The value of an attribute; None where it is missing, empty or damaged."""
  with contextlib.suppress(*_BROKEN):
    value = dataset.get(keyword)
    return None if value in ("", b"") else value


def items_of(dataset, keyword):
  """The items of a sequence; none where it is missing or none."""
  value = _value(dataset, keyword) if keyword in _SEQUENCES else None
  return value if isinstance(value, pydicom.Sequence) else ()


def text_of(dataset, keyword):
  """The text of an attribute, several ones together, without the blanks around it; '' of none."""
  value = _value(dataset, keyword)
  values = value if isinstance(value, pydicom.multival.MultiValue | list) else [value]
  return " ".join(str(one) for one in values if one is not None).strip()


def _number(value, kind):
  """A number as its VR writes it; None where it is none."""
  if not isinstance(value, int | float) or not (value == 0 or _LEAST <= abs(value) <= _MOST):
    return None
  if kind in _RANGES or kind == "IS":
    low, high = _RANGES.get(kind, (-(2**31), 2**31 - 1))
    return int(value) if value == int(value) and low <= value <= high else None
  if kind == "FD":
    return float(value)
  # As it was written, where that is a plain number of a length that the VR allows.
  text = str(value).strip()
  plain = re.fullmatch(r"[-+0-9.eE]{1,16}", text)
  return text if plain else valuerep.format_number_as_ds(float(value))


def keep_numbers(source, target, keywords):
  """Gives a data set the attributes of another one that are numbers, and not what is none."""
  for keyword in keywords:
    value, kind = _value(source, keyword), datadict.dictionary_VR(keyword)
    several = isinstance(value, pydicom.multival.MultiValue | list)
    numbers = [_number(one, kind) for one in (value if several else [value])]
    if numbers and None not in numbers:
      setattr(target, keyword, numbers if several else numbers[0])


def _keep_regions(source, target):
  regions = []
  for item in items_of(source, _REGIONS):
    region = pydicom.Dataset()
    keep_numbers(item, region, _REGION)
    regions.append(region)
  if regions:
    setattr(target, _REGIONS, regions)


def _keep_machine(source, target, patient):
  known = " ".join(
    [patient, *(text_of(source, keyword) for keyword in _NAMES_OF_PEOPLE_AND_PLACES)]
  )
  words = {word for word in re.findall(r"[^\W_]+", known.casefold()) if len(word) > 2}
  for keyword in _MACHINE:
    text = text_of(source, keyword)
    if (
      re.fullmatch(r"[ -\[\]-~]{1,64}", text)
      and not re.search(r"[0-9]{6}", text)
      and not words.intersection(re.findall(r"[^\W_]+", text.casefold()))
    ):
      setattr(target, keyword, text)


def _shift_dates(source, target, pseudonyms, patient):
  for keyword in _DATES:
    with contextlib.suppress(ValueError):
      date = datetime.datetime.strptime(text_of(source, keyword), "%Y%m%d").date()
      if shifted := pseudonyms.shifted(patient, date):
        setattr(target, keyword, shifted.isoformat().replace("-", ""))


def _is_empty(dataset, tag):
  item = None
  with contextlib.suppress(*_BROKEN):
    item = dataset.get_item(tag)  # as it stands in the file, not interpreted yet
  if not isinstance(item, pydicom.dataelem.RawDataElement):
    return item is not None and item.is_empty
  # Values that are large stay in the file.
  return item.length == 0 or (item.value is not None and not item.value.strip(b" "))


def _names(source, stored=(), copy=()):
  """Yields the keyword of every attribute with a value that neither a list nor the copy has.

  Attributes within sequences count too. Private and unknown ones have no keyword: their tags and
  makers' names are not told.
  """
  # What is in the copy and empty, because it must be there, is gone.
  kept = {element.keyword: element.value for element in copy if not element.is_empty}
  for tag in list(source.keys()):
    name = "private attributes" if tag.is_private else datadict.keyword_for_tag(tag)
    if tag.element == 0 or name in stored or _is_empty(source, tag):
      continue
    if name not in kept:
      yield name or "unknown attributes"
    for part, inner in itertools.zip_longest(
      kept.get(name) or () if name == _REGIONS else (), items_of(source, name), fillvalue=()
    ):
      yield from _names(inner, copy=part)


def _removed(source, copy):
  """Counts the attributes of the source that are not in the copy, by keyword."""
  names = collections.Counter(_names(source, _STORED, copy))
  names.update(_names(source.file_meta, (*_STORED_META, "MediaStorageSOPInstanceUID")))
  preamble = getattr(source, "preamble", None) or b""
  names["preamble"] += bool(preamble.strip(b"\0"))
  return +names


def texts(path):
  """What a DICOM header says of people, places and times: pairs of a keyword and a text.

  Of private attributes there is none, nor of what a copy keeps; dates count unless the header says
  that they are modified or removed.

  Raises:
    UserError: the file is damaged.
  """
  with dicom.quiet():
    header = dicom.header(path)
    dates = text_of(header, "LongitudinalTemporalInformationModified")
    kinds = _TEXTS if dates in ("MODIFIED", "REMOVED") else _TEXTS | _TIMES
    # Of who was made unknown the id is a pseudonym.
    is_unknown = text_of(header, "PatientIdentityRemoved").upper() == "YES"
    return [tag for tag in _said(header, kinds) if not (is_unknown and tag[0] == "PatientID")]


def is_deidentified(path):
  """Whether a DICOM header says that the patient's name and id in it are others (`UserError`)."""
  with dicom.quiet():
    return text_of(dicom.header(path), "PatientIdentityRemoved").upper() == "YES"


def _said(dataset, kinds):
  for tag in list(dataset.keys()):
    name = "" if tag.is_private else datadict.keyword_for_tag(tag)
    if name and name not in (*_MACHINE, *_OF_COPIES):
      if datadict.dictionary_VR(tag) in kinds and (text := text_of(dataset, name)):
        yield name, text
      for item in items_of(dataset, name):
        yield from _said(item, kinds)


def write(target, frames, media, pseudonyms, patient=None):
  """Writes a DICOM file of frames, and of the numbers of another one's header: JPEG-LS, lossless.

  Args:
    target: where to, without a suffix.
    frames: what is to be in it, uint8 [h, w] each, grey.
    media: what `readers.probe` said of the other one.
    pseudonyms: `deidentify.Pseudonyms`.
    patient: the patient's real id; by default what the header says. Where it is unknown, dates are
      left out.

  Returns:
    The file's path; how often each attribute was removed, by keyword; and the keywords of those
    that have a pseudonym or another date now.

  Raises:
    UserError: the file is damaged, or the disk refuses the new one.
  """
  encode = _encoded if media.height * media.width >= _COMPRESSED else np.ndarray.tobytes
  copy, pixels = pydicom.Dataset(), [encode(frame) for frame in frames]
  _add_pixels(copy, pixels, media)
  with dicom.quiet():
    header = dicom.header(media.path)
    for keyword in _EMPTY:
      setattr(copy, keyword, "")
    keep_numbers(header, copy, _NUMBERS)
    if media.spacing and "PixelSpacing" not in copy:  # of another place in the header
      copy.PixelSpacing = [_number(step, "DS") for step in media.spacing]
    timed = [name for name in ("FrameTime", "FrameTimeVector") if name in copy]
    if timed:
      copy.FrameIncrementPointer = datadict.tag_for_keyword(timed[0])
    _keep_regions(header, copy)
    patient = text_of(header, "PatientID") if patient is None else patient
    _keep_machine(header, copy, patient)
    copy.PatientID = pseudonyms.patient(patient)
    if patient:
      _shift_dates(header, copy, pseudonyms, patient)
    digest = hashlib.sha256()
    for one in pixels:
      digest.update(one)
    for keyword in _UIDS:
      setattr(
        copy, keyword, pseudonyms.uid(text_of(header, keyword) or f"{keyword} {digest.hexdigest()}")
      )
    replaced = {
      name
      for name in (*_DATES, *_UIDS, "PatientID")
      if text_of(header, name) and text_of(copy, name)
    }
    removed = _removed(header, copy)
    _say_what_was_done(copy)
    if text_of(header, "LossyImageCompression") == "01":
      copy.LossyImageCompression = "01"
    path = target.with_name(f"{target.name}.dcm")
    with writers.written(path) as temporary:
      pydicom.dcmwrite(temporary, copy, enforce_file_format=True)
  return path, removed, replaced


def _say_what_was_done(copy):
  copy.PatientIdentityRemoved = "YES"
  shifted = any(keyword in copy for keyword in _DATES)
  copy.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"
  copy.DeidentificationMethod = "lus_jax: a new header with numbers of the picture alone"
  methods = []
  for value, meaning in (_PROFILE, _DATES_SHIFTED) if shifted else (_PROFILE,):
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    methods.append(code)
  copy.DeidentificationMethodCodeSequence = methods


def _encoded(frame):
  height, width = frame.shape
  return JPEGLSLosslessEncoder.encode(
    frame.tobytes(),
    rows=height,
    columns=width,
    number_of_frames=1,
    samples_per_pixel=1,
    bits_allocated=8,
    bits_stored=8,
    pixel_representation=0,
    photometric_interpretation="MONOCHROME2",
    encoding_plugin="pyjpegls",
  )


def _add_pixels(copy, pixels, media):
  several = len(pixels) > 1
  copy.SOPClassUID = uid.UltrasoundMultiFrameImageStorage if several else uid.UltrasoundImageStorage
  copy.Modality = "US"
  copy.ImageType = ["DERIVED", "PRIMARY"]
  if several:
    copy.NumberOfFrames = len(pixels)
  copy.SamplesPerPixel = 1
  copy.PhotometricInterpretation = "MONOCHROME2"
  copy.Rows, copy.Columns = media.height, media.width
  copy.BitsAllocated = copy.BitsStored = 8
  copy.HighBit, copy.PixelRepresentation = 7, 0
  copy.file_meta = pydicom.dataset.FileMetaDataset()
  if media.height * media.width < _COMPRESSED:
    copy.PixelData = b"".join(pixels)
    copy.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  else:
    # Not one text of bytes, which would be a second copy of them all in memory.
    copy.PixelData = encaps.encapsulate_buffer([io.BytesIO(one) for one in pixels], has_bot=False)
    copy["PixelData"].is_undefined_length = True
    copy.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
  copy["PixelData"].VR = "OB"
