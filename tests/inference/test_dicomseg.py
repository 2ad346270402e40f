import dataclasses
import importlib.resources
import json
import pathlib
import tracemalloc

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array

from lus_jax import palette
from lus_jax.errors import UserError
from lus_jax.inference.formats import FORMATS
from lus_jax.inference.formats.head import Head
from lus_jax.media import deidentify, dicom, readers
from tests.faults import seeds

KINDS = pytest.mark.parametrize("kind", ["dicomseg", "dicomseg-binary"])
# Of the source that is made here.
UIDS = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.8"}
INSTANCE = "1.2.3"


def save_source(folder, *, n=20, shape=(37, 53), colours=False, **elements):
  """A DICOM clip of noise."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (n, *shape, *[3] * colours), dtype=np.uint8)
  found = seeds.dataset(pixels, **UIDS | elements)
  seeds.save_dicom(folder / "source.dcm", found)
  return folder / "source.dcm"


def head_of(clip, **fields):
  standard = {
    "name": "threshold_0.6",
    "classes": ("pleura", "b_line"),
    "colours": (palette.rgb(0), palette.rgb(1)),
    "meaning": "P(confidence >= 0.6)",
    "frames": tuple(range(clip.n_frames)),
    "cut": 0.5,
    "box": (0, 0, clip.height, clip.width),
    "software": "lus_jax 0.1.0",
  }
  return Head(**standard | fields)


def maps_of(clip, head):
  """[n, h, w, K] uint8 with every value in it; the second frame is empty."""
  shape = len(head.frames), clip.height, clip.width, len(head.classes)
  maps = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
  maps[1:2] = 0
  return maps


def write(kind, path, *, maps=None, file="out", **fields):
  """Writes maps of a DICOM file; returns the new file's path, its maps and its head."""
  clip = readers.probe(path)
  head = head_of(clip, **fields)
  maps = maps_of(clip, head) if maps is None else maps
  image = np.zeros((clip.height, clip.width), np.uint8)
  with FORMATS[kind].writer(path.parent / file, clip, head) as writer:
    for number, each in zip(head.frames, maps, strict=True):
      writer.add(number, image, each)
  (written,) = writer.paths
  return written, maps, head


def expected(kind, maps):
  """[n, K, h, w] as it is stored."""
  stored = maps if kind == "dicomseg" else maps >= 128
  return np.moveaxis(stored, -1, 1).astype(np.uint8)


def check(kind, written, path, maps, head):
  """Reads it by three libraries, and its references by two."""
  frames = expected(kind, maps)
  flat = frames.reshape(-1, *frames.shape[2:])
  np.testing.assert_array_equal(pixel_array(written).reshape(flat.shape), flat)
  itk = sitk.GetArrayFromImage(sitk.ReadImage(str(written))).ravel()
  # GDCM shows bits as 0 and 255, and not those of a last byte that is not full.
  there = flat.size if kind == "dicomseg" else flat.size // 8 * 8
  shown = flat.ravel() * (1 if kind == "dicomseg" else 255)
  np.testing.assert_array_equal(itk[:there], shown[:there])

  source, found = pydicom.dcmread(path), pydicom.dcmread(written)
  references, places = [], []
  for group in found.PerFrameFunctionalGroupsSequence:
    (derivation,) = group.DerivationImageSequence
    (image,) = derivation.SourceImageSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.ReferencedSOPClassUID == source.SOPClassUID
    references.append(image.get("ReferencedFrameNumber"))
    places.append(list(group.FrameContentSequence[0].DimensionIndexValues))
    segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    assert [segment, group.FrameContentSequence[0].TemporalPositionIndex] == places[-1]
  n_classes = len(head.classes)
  several = source.get("NumberOfFrames", 1) > 1
  assert references == [i + 1 if several else None for i in head.frames for _ in range(n_classes)]
  assert places == [[k + 1, i + 1] for i in range(len(head.frames)) for k in range(n_classes)]

  segments = highdicom.seg.segread(written)
  if several:
    numbers = [i + 1 for i in head.frames]
    read = segments.get_pixels_by_source_frame(
      source.SOPInstanceUID, numbers, rescale_fractional=False
    )
  else:
    read = segments.get_pixels_by_source_instance([source.SOPInstanceUID], rescale_fractional=False)
  np.testing.assert_array_equal(read, np.moveaxis(frames, 1, -1))


@KINDS
@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("colours", [False, True])
def test_maps_come_back_exactly(tmp_path, kind, n, colours):
  path = save_source(tmp_path, n=n, colours=colours)
  written, maps, head = write(kind, path)
  assert written == tmp_path / "out.dcm"
  check(kind, written, path, maps, head)


@KINDS
def test_chosen_frames_and_three_classes(tmp_path, kind):
  path = save_source(tmp_path, n=21)
  classes = {"classes": tuple("abc"), "colours": tuple(map(palette.rgb, range(3)))}
  # 3 frames x 3 classes x 37 x 53 bits fill no whole number of bytes.
  written, maps, head = write(kind, path, frames=(0, 10, 20), **classes)
  check(kind, written, path, maps, head)


@KINDS
def test_over_what_a_machine_wrote(tmp_path, kind):
  path = tmp_path / "IM0001"
  path.write_bytes(
    pathlib.Path(get_testdata_file("examples_ybr_color.dcm", download=False)).read_bytes()
  )
  clip = dataclasses.replace(readers.probe(path), path=path)
  maps = np.zeros((3, clip.height, clip.width, 2), np.uint8)
  maps[1, 50:90, 60:200, 0] = np.arange(140)
  written, maps, head = write(kind, path, maps=maps, frames=(0, 4, 29))
  check(kind, written, path, maps, head)
  found = pydicom.dcmread(written)
  assert found.PatientName == "PLA" and found.StudyDate == "20160503"
  # JPEG, as the header and the transfer syntax say.
  assert found.LossyImageCompression == "01" and found.LossyImageCompressionRatio == 19
  assert found.LossyImageCompressionMethod == "ISO_10918_1"


@KINDS
def test_what_it_says(tmp_path, kind):
  path = save_source(tmp_path, n=3)
  written, _, head = write(kind, path)
  found = pydicom.dcmread(written)
  assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
  assert found.NumberOfFrames == 3 * 2 and (found.Rows, found.Columns) == (37, 53)
  assert found.LossyImageCompression == "00" and found.Modality == "SEG"
  assert "FrameOfReferenceUID" not in found and found.SegmentsOverlap == "UNDEFINED"
  binary = kind == "dicomseg-binary"
  assert found.file_meta.TransferSyntaxUID.name == (
    "Explicit VR Little Endian" if binary else "RLE Lossless"
  )
  assert found.SegmentationType == ("BINARY" if binary else "FRACTIONAL")
  assert found.get("SegmentationFractionalType") == (None if binary else "PROBABILITY")
  assert found.get("MaximumFractionalValue") == (None if binary else 255)
  meaning = "P(confidence >= 0.6)" + " >= 0.5" * binary
  assert found.SeriesDescription == f"threshold_0.6: {meaning}"
  (series,) = found.ReferencedSeriesSequence
  assert series.SeriesInstanceUID == UIDS["SeriesInstanceUID"] != found.SeriesInstanceUID
  assert found.StudyInstanceUID == UIDS["StudyInstanceUID"]
  for k, segment in enumerate(found.SegmentSequence):
    assert (segment.SegmentNumber, segment.SegmentLabel) == (k + 1, head.classes[k])
    assert segment.SegmentDescription == f"{head.classes[k]}: {meaning}"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentAlgorithmName == "lus_jax 0.1.0 threshold_0.6"
    # Thousandths of a step of L*; highdicom's white has one digit more.
    colour = highdicom.color.CIELabColor.from_rgb(*palette.rgb(k)).value
    np.testing.assert_allclose(segment.RecommendedDisplayCIELabValue, colour, atol=4)


def test_a_cut_is_part_of_its_class(tmp_path):
  path = save_source(tmp_path, n=1)
  maps = np.zeros((1, 37, 53, 2), np.uint8)
  maps[0, 0, :4, 0] = 152, 153, 154, 255
  written, _, _ = write("dicomseg-binary", path, maps=maps, cut=0.6)  # of 255 that is 153
  np.testing.assert_array_equal(pixel_array(written)[0, 0, :5], [0, 1, 1, 1, 0])
  assert pixel_array(written).sum() == 3


def test_thresholds_need_no_whole_bytes(tmp_path):
  # One pixel a frame: eight frames share a byte, and the second byte is padding.
  path = save_source(tmp_path, n=9, shape=(1, 1))
  maps = np.uint8([255, 0, 255, 255, 0, 0, 0, 0, 255]).reshape(9, 1, 1, 1)
  one = {"classes": ("a",), "colours": (palette.rgb(0),)}
  written, _, _ = write("dicomseg-binary", path, maps=maps, **one)
  assert pydicom.dcmread(written).PixelData == bytes([0b00001101, 1])


# How the standard's modules are (PS3.3), as highdicom's wheel has them.


@pytest.fixture(scope="module")
def modules():
  folder = importlib.resources.files("highdicom") / "_standard"
  attributes = json.loads((folder / "module_attribute_map.json").read_text())
  iod = json.loads((folder / "iod_module_map.json").read_text())["segmentation"]
  types, mandatory = {}, {}
  for module in iod:
    for one in attributes[module["key"]]:
      place = (*one["path"], one["keyword"])
      types.setdefault(place, set()).add(one["type"])
      if module["usage"] == "M" or len(place) > 1:
        mandatory.setdefault(tuple(one["path"]), {})[one["keyword"]] = one["type"]
  return types, mandatory


# Of groups that each frame may have: those that have none of a place or of a tiled slide.
_NO_GROUP = {"PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"}
_NO_GROUP |= {"PlanePositionSlideSequence"}
_FRAMES = ("PerFrameFunctionalGroupsSequence",)


def faults(dataset, modules, path=()):
  """Yields what a data set lacks, or has too much, by the standard's modules."""
  types, mandatory = modules
  for name, kind in mandatory.get(path, {}).items():
    shared = path == ("SharedFunctionalGroupsSequence",)
    needed = not (shared or (path == _FRAMES and name in _NO_GROUP))
    if needed and kind in ("1", "2") and name not in dataset:
      yield f"{path} lacks {name}"
    if kind == "1" and name in dataset and dataset[name].is_empty:
      yield f"{path} has an empty {name}"
  for element in dataset:
    place = (*path, element.keyword)
    if place not in types:
      yield f"{place} is not in it"
    if element.VR == "SQ":
      for item in element.value:
        yield from faults(item, modules, place)


@KINDS
def test_it_has_what_the_standard_asks_for(tmp_path, kind, modules):
  anonymous = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "by hand"}
  for elements in ({}, anonymous | {"PixelAspectRatio": [1, 2], "IssuerOfPatientID": "a"}):
    written, _, _ = write(kind, save_source(tmp_path, n=2, **elements))
    found = pydicom.dcmread(written)
    assert not list(faults(found, modules))
  del found.ContentLabel, found.PerFrameFunctionalGroupsSequence[1].FrameContentSequence
  found.ContentDate, found.PixelSpacing = "", [1, 1]
  assert len(set(faults(found, modules))) == 4


# Whose it is.


@KINDS
def test_patient_and_study_are_the_sources(tmp_path, kind):
  said = {
    "PatientName": "Müller^Änne=山田^太郎",
    "PatientID": "肺-7",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "StudyDate": "20240301",
    "StudyTime": "101112",
    "StudyID": "s",
    "AccessionNumber": "a",
    "ReferringPhysicianName": "Gröt^C",
    "ContentDate": "20240302",
    "ContentTime": "111213.5",
  }
  path = save_source(tmp_path, n=1, SpecificCharacterSet="GB18030", InstitutionName="H", **said)
  found = pydicom.dcmread(write(kind, path, classes=("Ergüsse", "肺"))[0])
  assert {name: str(found[name].value) for name in said} == said
  assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["Ergüsse", "肺"]
  assert "InstitutionName" not in found


@KINDS
def test_what_the_source_does_not_say_is_empty(tmp_path, kind):
  found = pydicom.dcmread(write(kind, save_source(tmp_path, n=1))[0])
  for name in ("PatientName", "PatientBirthDate", "StudyDate", "StudyID", "AccessionNumber"):
    assert name in found and found[name].is_empty
  assert (found.ContentDate, found.ContentTime) == ("19000101", "000000")


def test_values_that_are_against_the_rules_stay_what_they_are(tmp_path):
  wrong = {"StudyDate": "1997.04.24", "PatientID": 70 * "x", "SOPInstanceUID": "1.2.03"}
  with dicom.quiet():  # pydicom's complaints
    path = save_source(tmp_path, n=2, ContentDate="soon", StudyTime="10:11:12", **wrong)
  written = write("dicomseg", path)[0]  # without one
  with dicom.quiet():
    found = pydicom.dcmread(written)
    (group, *_) = found.PerFrameFunctionalGroupsSequence
    reference = group.DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == wrong.pop("SOPInstanceUID")
    assert {name: found[name].value for name in wrong} == wrong
    # What is said of the new image is right, of the first that can be read.
    assert (found.ContentDate, found.ContentTime) == ("19970424", "101112")


def test_names_that_are_too_long_or_part_values(tmp_path):
  path = save_source(tmp_path, n=1)
  found = pydicom.dcmread(write("dicomseg", path, classes=("a\\b", "c" * 90))[0])
  assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["a/b", "c" * 64]
  assert found.SegmentSequence[1].SegmentDescription.startswith("c" * 90 + ": ")


@KINDS
def test_over_a_deidentified_copy(tmp_path, kind):
  regions = [
    {"RegionSpatialFormat": 1, "RegionDataType": 1, "RegionFlags": 0}
    | {"RegionLocationMinX0": left, "RegionLocationMinY0": 0}
    | {"RegionLocationMaxX1": left + 20, "RegionLocationMaxY1": 30}
    | {"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3}
    | {"PhysicalDeltaX": 0.01, "PhysicalDeltaY": 0.01}
    for left in (0, 25)
  ]
  sequence = [pydicom.Dataset() for _ in regions]
  for item, region in zip(sequence, regions, strict=True):
    for name, value in region.items():
      setattr(item, name, value)
  path = save_source(
    tmp_path, n=4, PatientName="Doe^J", StudyDate="20240301", SequenceOfUltrasoundRegions=sequence
  )
  pseudonyms = deidentify.Pseudonyms(tmp_path / "key", tmp_path / "copy")
  (tmp_path / "copy").mkdir()
  media = readers.probe(path)
  box = (0, 0, media.height, media.width)
  copy, _ = deidentify.rewrite(media, box, tmp_path / "copy" / "a", pseudonyms)
  source = pydicom.dcmread(copy)
  assert readers.probe(copy).spacing == (0.1, 0.1)
  written, maps, head = write(kind, copy)
  check(kind, written, copy, maps, head)
  found = pydicom.dcmread(written)
  for name in ("PatientID", "StudyInstanceUID", "StudyDate", "PatientIdentityRemoved"):
    assert found[name].value == source[name].value
  assert found.DeidentificationMethodCodeSequence == source.DeidentificationMethodCodeSequence
  assert found.PatientName == "" and "Doe" not in written.read_bytes().decode("latin-1")


# Again, and what is another.


def uids(path):
  found = pydicom.dcmread(path)
  return found.SOPInstanceUID, found.SeriesInstanceUID


@KINDS
def test_the_same_again_has_the_same_bytes_and_all_else_other_uids(tmp_path, kind):
  path = save_source(tmp_path, n=3)
  first, maps, _ = write(kind, path, file="first")
  again, _, _ = write(kind, path, file="again")
  assert first.read_bytes() == again.read_bytes()
  other = maps.copy()
  other[0, 0, 0, 0] ^= 0x80
  others = [
    first,
    write(kind, path, maps=other, file="maps")[0],
    write(kind, path, name="threshold_0.5", file="member")[0],
    write("dicomseg" if kind != "dicomseg" else "dicomseg-binary", path, file="kind")[0],
  ]
  found = [uid for one in others for uid in uids(one)]
  assert len(set(found)) == 2 * len(others)
  assert all(pydicom.uid.UID(uid).is_valid and len(uid) == 44 for uid in found)


# Whole or not at all.


@KINDS
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_what_was_interrupted(tmp_path, kind, error):
  path = save_source(tmp_path, n=2)
  clip = readers.probe(path)
  with pytest.raises(error), FORMATS[kind].writer(tmp_path / "out", clip, head_of(clip)) as writer:
    writer.add(0, np.zeros((37, 53), np.uint8), np.zeros((37, 53, 2), np.uint8))
    raise error
  assert list(tmp_path.iterdir()) == [path] and not writer.paths


@KINDS
def test_a_frame_that_does_not_come(tmp_path, kind):
  path = save_source(tmp_path, n=2)
  clip = readers.probe(path)
  image, maps = np.zeros((37, 53), np.uint8), np.zeros((37, 53, 2), np.uint8)
  with (
    pytest.raises(ValueError, match="1 of 2 frames"),
    FORMATS[kind].writer(tmp_path / "out", clip, head_of(clip)) as writer,
  ):
    writer.add(0, image, maps)
  with (
    pytest.raises(ValueError, match="not the next"),
    FORMATS[kind].writer(tmp_path / "out", clip, head_of(clip)) as writer,
  ):
    writer.add(1, image, maps)
  assert list(tmp_path.iterdir()) == [path]


@KINDS
def test_memory_does_not_grow(tmp_path, kind):
  clip = readers.probe(save_source(tmp_path, n=2))
  image, maps = np.zeros((37, 53), np.uint8), np.zeros((37, 53, 2), np.uint8)
  maps[::3] = 255

  def peak(n):
    head = head_of(clip, frames=tuple(range(n)))
    tracemalloc.start()
    with FORMATS[kind].writer(tmp_path / "out", clip, head) as writer:
      for i in range(n):
        writer.add(i, image, maps)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found

  peak(5)  # what is imported and cached on the way
  # 45 frames' maps are 176 kB.
  assert peak(45) < peak(5) + 50_000


# What is refused.


def refused(kind, path, **fields):
  clip = readers.probe(path)
  with pytest.raises(UserError) as error:
    FORMATS[kind].writer(path.parent / "out", dataclasses.replace(clip, **fields), head_of(clip))
  message = str(error.value)
  assert "\n" not in message and str(path) in message and list(path.parent.iterdir()) == [path]
  return message


@KINDS
def test_what_is_no_dicom(tmp_path, kind):
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
  assert "is no DICOM file" in refused(kind, tmp_path / "a.png")


@KINDS
@pytest.mark.parametrize("name", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_without_the_uids_that_name_it(tmp_path, kind, name):
  assert f"has no {name}" in refused(kind, save_source(tmp_path, n=1, **{name: ""}))


def test_more_masks_than_a_file_holds(tmp_path):
  message = refused("dicomseg-binary", save_source(tmp_path, n=2), height=2**17, width=2**17)
  assert "8.0 GiB" in message and "--frames" in message
