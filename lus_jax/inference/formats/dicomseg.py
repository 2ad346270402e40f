"""DICOM Segmentation: a segment a class, whose frames lie on the frames of the DICOM source.

Every frame that was predicted is there for every class, also where nothing is seen, so that what
was seen to be empty differs from what was not looked at: frames x classes of them, in the order
frame, class. Each names its frame of the source, pixel for pixel (SourceImageSequence); so no
place in the patient is needed (PS3.3, A.51.5.1), which ultrasound has none of, and none is
written, nor a pixel's size, which only goes with a place: it is the source's.

The same command writes the same bytes. UIDs are made of the contents, and ContentDate, which may
not be missing, is of the source's content, or 1 January 1900 where the source has no date.
"""

import contextlib
import datetime
import hashlib
import io
import math
import re
import struct

import numpy as np

from lus_jax.errors import UserError
from lus_jax.inference.formats import whole
from lus_jax.media import dicom

_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
_EXPLICIT, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
# Of the source's patient and study; those that must be there, be it empty, and those that need not.
_EMPTY = (
  *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
  *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_KEPT = (
  *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
  *("LongitudinalTemporalInformationModified", "StudyInstanceUID", "TimezoneOffsetFromUTC"),
)
# What says which image the frames lie on.
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_MOMENTS = "Content", "Acquisition", "Series", "Study"
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")
# Codes and meanings of DICOM (PS3.16, CID 7203 and 7202) and SNOMED CT (CID 7150 and 7151), whose
# lists have no A- and B-lines of ultrasound. What a class means is its user's to say.
_DERIVATION = "113076", "DCM", "Segmentation"
_PURPOSE = "121322", "DCM", "Source image for image processing operation"
_TISSUE = "85756007", "SCT", "Tissue"
_CODE = "CodeValue", "CodingSchemeDesignator", "CodeMeaning"
# Transfer syntaxes that lose something, and how DICOM calls what they do.
_LOSSY = {
  "1.2.840.10008.1.2.4.50": "ISO_10918_1",
  "1.2.840.10008.1.2.4.51": "ISO_10918_1",
  "1.2.840.10008.1.2.4.81": "ISO_14495_1",
  "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}
# In place of UIDs until the contents are known; all are 44 letters long.
_INSTANCE, _SERIES = (f"2.25.{digit * 39}" for digit in "12")
# Bytes of uncompressed pixels in one file: their length is a number of 32 bits, and even.
MOST = 2**32 - 2
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_UNDEFINED = 2**32 - 1


class Writer(whole.Writer):
  """`<target>.dcm` as FRACTIONAL PROBABILITY, 255 = 1, compressed without loss (RLE)."""

  suffix = ".dcm"
  _is_binary = False

  def __init__(self, target, clip, head):
    """Begins with nothing written: see `whole.Writer`.

    Raises:
      UserError: the clip is no DICOM, does not say which image it is or is damaged, or there are
        too many frames for one file.
    """
    super().__init__(target, clip, head)
    n_values = len(head.frames) * len(head.classes) * clip.height * clip.width
    self._n, self._n_bytes = 0, math.ceil(n_values / 8)
    if self._is_binary and self._n_bytes > MOST:
      raise UserError(
        f"{clip.path}: its masks take {self._n_bytes / 2**30:.1f} GiB, and a DICOM file holds 4; "
        "name some of its frames with --frames."
      )
    self._header, self._reference = _header(clip, head, self._is_binary)

  def begin(self, path, stack):
    """Writes all that comes before the pixels."""
    self._file = stack.enter_context(path.open("w+b"))
    self._digest, self._bits = hashlib.sha256(), np.zeros(0, bool)
    self._put(self._header)
    self._put(struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, _UNDEFINED))
    numbered = self.clip.n_frames > 1
    for item in _places(self.head.frames, len(self.head.classes), self._reference, numbered):
      self._put(item)
    self._put(_END)
    length = self._n_bytes + self._n_bytes % 2 if self._is_binary else _UNDEFINED
    self._put(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, length))
    if not self._is_binary:
      self._put(_ITEM + struct.pack("<I", 0))  # no table of offsets, which have 32 bits

  def add(self, number, image, maps):
    """Writes the frame's maps [h, w, K] uint8, a class after the other."""
    shape = self.clip.height, self.clip.width, len(self.head.classes)
    if number != self.head.frames[self._n] or maps.shape != shape or maps.dtype != self.dtype:
      raise ValueError(f"not the next frame's maps: frame {number}, {maps.dtype} {maps.shape}")
    self._n += 1
    for k in range(len(self.head.classes)):
      if self._is_binary:
        self._add_bits(maps[..., k] >= 255 * self.head.cut)
      else:
        data = _rle(maps[..., k])
        self._put(_ITEM + struct.pack("<I", len(data)) + data)

  def _add_bits(self, mask):
    # Frames follow each other without a gap, also within a byte.
    bits = np.concatenate([self._bits, mask.ravel()])
    whole_bytes = len(bits) // 8 * 8
    self._put(np.packbits(bits[:whole_bytes], bitorder="little").tobytes())
    self._bits = bits[whole_bytes:]

  def _put(self, data):
    self._file.write(data)
    self._digest.update(data)

  def end(self):
    """Ends the pixels, and writes the UIDs that the contents have."""
    if self._n != len(self.head.frames):
      raise ValueError(f"{self._n} of {len(self.head.frames)} frames came")
    if self._is_binary:
      self._put(np.packbits(self._bits, bitorder="little").tobytes() + b"\0" * (self._n_bytes % 2))
    else:
      self._put(_END)
    for placeholder in (_INSTANCE, _SERIES):
      name = _uid(placeholder.encode() + self._digest.digest()).encode()
      start = -1
      while (start := self._header.find(placeholder.encode(), start + 1)) >= 0:
        self._file.seek(start)
        self._file.write(name)


class Binary(Writer):
  """Like `Writer`, as BINARY: 1 where the probability is `head.cut` or more; not compressed."""

  shows_cut = True
  _is_binary = True


def _source(clip):
  """The header of the DICOM file that the segmentation lies on, which says which image it is."""
  if clip.format != "dicom":
    raise UserError(
      f"{clip.path} is no DICOM file, and a DICOM segmentation lies on one, whose patient and "
      "study it names; take another --format, as nifti or tiff."
    )
  from lus_jax.media import dicom_copy

  with dicom.quiet():
    source = dicom.header(clip.path)
    missing = [name for name in _NEEDED if not dicom_copy.text_of(source, name)]
  if missing:
    raise UserError(
      f"{clip.path} has no {missing[0]}, by which a DICOM segmentation names the image that it "
      "lies on; export it again, or take another --format, as nifti or tiff."
    )
  return source


def _header(clip, head, is_binary):
  """All before the frames, as bytes; and the attributes that name the source."""
  from pydicom import datadict, dcmwrite
  from pydicom.dataset import FileMetaDataset

  from lus_jax.media import dicom_copy

  source = _source(clip)
  with dicom.quiet():
    texts = {name: dicom_copy.text_of(source, name) for name in (*_EMPTY, *_KEPT)}
    texts = {name: text for name, text in texts.items() if text or name in _EMPTY}
    found = _item(**_description(clip, head, is_binary), **texts, **_moment(source))
    methods = [
      [dicom_copy.text_of(code, name) for name in _CODE]
      for code in dicom_copy.items_of(source, "DeidentificationMethodCodeSequence")
    ]
    if methods:
      found.DeidentificationMethodCodeSequence = [_code(code) for code in methods]
    dicom_copy.keep_numbers(source, found, ["PixelAspectRatio"])
    _say_what_was_lost(source, found)
    names = {name: dicom_copy.text_of(source, name) for name in _NEEDED}
    reference = {f"Referenced{name}": names[name] for name in ("SOPClassUID", "SOPInstanceUID")}
    found.ReferencedSeriesSequence = [
      _item(
        SeriesInstanceUID=names["SeriesInstanceUID"],
        ReferencedInstanceSequence=[_item(**reference)],
      )
    ]
    # All that lies on the same frames of the same image shares them.
    axes = _uid(repr((names["SOPInstanceUID"], head.classes, head.frames)).encode())
    found.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=axes)]
    found.DimensionIndexSequence = [
      _item(
        DimensionOrganizationUID=axes,
        DimensionIndexPointer=datadict.tag_for_keyword(name),
        FunctionalGroupPointer=datadict.tag_for_keyword(group),
        DimensionDescriptionLabel=label,
      )
      for label, name, group in (
        ("Segment", "ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        ("Frame", "TemporalPositionIndex", "FrameContentSequence"),
      )
    ]
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = _EXPLICIT if is_binary else _RLE
    buffer = io.BytesIO()
    dcmwrite(buffer, found, enforce_file_format=True)
  return buffer.getvalue(), reference


def _moment(source):
  """ContentDate and ContentTime: the first of the source that are a date and a time."""
  from lus_jax.media import dicom_copy

  for name in _MOMENTS:
    # Colons and dots are of before DICOM 3.
    date = dicom_copy.text_of(source, f"{name}Date").replace(".", "")
    time = dicom_copy.text_of(source, f"{name}Time").replace(":", "")
    with contextlib.suppress(ValueError):
      if re.fullmatch("[0-9]{8}", date) and datetime.datetime.strptime(date, "%Y%m%d"):
        return {"ContentDate": date, "ContentTime": time if _TIME.fullmatch(time) else "000000"}
  return {"ContentDate": "19000101", "ContentTime": "000000"}


def _description(clip, head, is_binary):
  """Attributes of the new image, by keyword."""
  bits = 1 if is_binary else 8
  meaning = f"{head.meaning} >= {head.cut:g}" if is_binary else head.meaning
  found = {
    "SpecificCharacterSet": "ISO_IR 192",
    "SOPClassUID": _STORAGE,
    "SOPInstanceUID": _INSTANCE,
    "SeriesInstanceUID": _SERIES,
    "SeriesNumber": 1000,
    "SeriesDescription": _short(f"{head.name}: {meaning}"),
    "InstanceNumber": 1,
    "Modality": "SEG",
    "Manufacturer": "lus_jax",
    "ManufacturerModelName": "lus_jax.predict",
    "DeviceSerialNumber": "none",  # which may not be missing
    "SoftwareVersions": _short(head.software),
    "ImageType": ["DERIVED", "PRIMARY"],
    "ContentLabel": "MASK" if is_binary else "PROBABILITY",
    "ContentDescription": _short(meaning),
    "ContentCreatorName": None,
    "NumberOfFrames": len(head.frames) * len(head.classes),
    "Rows": clip.height,
    "Columns": clip.width,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": bits,
    "BitsStored": bits,
    "HighBit": bits - 1,
    "PixelRepresentation": 0,
    "SegmentationType": "BINARY" if is_binary else "FRACTIONAL",
    "SegmentsOverlap": "UNDEFINED",
    "SegmentSequence": [
      _item(
        SegmentNumber=k + 1,
        SegmentLabel=_short(name),
        SegmentDescription=f"{name}: {meaning}"[:1024],
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName=_short(f"{head.software} {head.name}"),
        SegmentedPropertyCategoryCodeSequence=[_code(_TISSUE)],
        SegmentedPropertyTypeCodeSequence=[_code(_TISSUE)],
        RecommendedDisplayCIELabValue=_lab(colour),
      )
      for k, (name, colour) in enumerate(zip(head.classes, head.colours, strict=True))
    ],
    "SharedFunctionalGroupsSequence": [_item()],
  }
  if not is_binary:
    found |= {"SegmentationFractionalType": "PROBABILITY", "MaximumFractionalValue": 255}
  return found


def _say_what_was_lost(source, found):
  """Says whether the picture was compressed with loss before it was predicted from."""
  from lus_jax.media import dicom_copy

  method = _LOSSY.get(str(source.file_meta.get("TransferSyntaxUID")))
  found.LossyImageCompression = "00"
  if method or dicom_copy.text_of(source, "LossyImageCompression") == "01":
    found.LossyImageCompression = "01"
    dicom_copy.keep_numbers(source, found, ["LossyImageCompressionRatio"])
    if method := dicom_copy.text_of(source, "LossyImageCompressionMethod") or method:
      found.LossyImageCompressionMethod = method.split()


def _places(frames, n_classes, source, numbered):
  """Yields the items of PerFrameFunctionalGroupsSequence, as bytes: every class of every frame.

  Args:
    frames: their numbers in the source, counted from 0.
    n_classes: K.
    source: attributes that name the source.
    numbered: whether it has several frames, so that the one is named.
  """
  # pydicom takes a millisecond an item; classes differ in numbers of a fixed width alone.
  unknown = 2**32 - 1
  of_classes = [
    _encoded(
      FrameContentSequence=[
        _item(DimensionIndexValues=[k + 1, unknown], TemporalPositionIndex=unknown)
      ],
      SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=k + 1)],
    )
    for k in range(n_classes)
  ]
  for i, number in enumerate(frames):
    frame = {"ReferencedFrameNumber": number + 1} if numbered else {}
    derivation = _encoded(
      DerivationImageSequence=[
        _item(
          DerivationCodeSequence=[_code(_DERIVATION)],
          SourceImageSequence=[
            _item(
              **source,
              **frame,
              SpatialLocationsPreserved="YES",
              PurposeOfReferenceCodeSequence=[_code(_PURPOSE)],
            )
          ],
        )
      ]
    )
    for of_class in of_classes:
      data = derivation + of_class.replace(struct.pack("<I", unknown), struct.pack("<I", i + 1))
      yield _ITEM + struct.pack("<I", len(data)) + data


def _encoded(**elements):
  from pydicom.filebase import DicomBytesIO
  from pydicom.filewriter import write_dataset

  buffer = DicomBytesIO()
  buffer.is_little_endian, buffer.is_implicit_VR = True, False
  write_dataset(buffer, _item(**elements))
  return buffer.getvalue()


def _rle(values):
  import rle  # needed by few; pydicom's own takes ten times as long

  height, width = values.shape
  return rle.encode_pixel_data(
    values.tobytes(),
    byteorder="<",
    rows=height,
    columns=width,
    samples_per_pixel=1,
    bits_allocated=8,
    number_of_frames=1,
  )


def _item(**elements):
  from pydicom import DataElement, Dataset, config, datadict

  found = Dataset()
  for name, value in elements.items():
    # What is the source's stays as it is, right or wrong: by it viewers find what belongs together.
    kind = datadict.dictionary_VR(name)
    found.add(DataElement(name, kind, value, validation_mode=config.IGNORE))
  return found


def _code(values):
  return _item(**dict(zip(_CODE, values, strict=True)))


def _short(text):
  """A text as an attribute of 64 letters at most holds it; a backslash would part it in two."""
  return text.replace("\\", "/")[:64].strip()


def _uid(data):
  """The UID that bytes have, of 44 letters: a UUID of the kind whose bits its maker chooses."""
  bits = int.from_bytes(hashlib.sha256(data).digest()[:16])
  bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62 | 1 << 127
  return f"2.25.{bits}"


def _lab(colour):
  """(red, green, blue) of sRGB in 0..255 as CIELab in DICOM's 16 bits (PS3.3, C.10.7.1.1).

  The white is that of sRGB, D65, as readers take it to be (highdicom, DCMTK, Weasis, dcmjs).
  """
  share = np.array(colour) / 255
  linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
  matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
  xyz = matrix @ linear / matrix.sum(axis=1)
  x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
  lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
  scaled = lightness * 65535 / 100, (a + 128) * 257, (b + 128) * 257
  return [int(value) for value in np.rint(np.clip(scaled, 0, 65535))]
