import json
import math

import numpy as np
import pytest
from refusals import refused

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.lus_folder import manifest

H, W = 120, 160
SPACING = 0.5
CENTRE, NEAR, FAR = (80, -20), 40, 130


def to_mm(points, space):
  sign = {"LPS": 1, "RAS": -1}[space]
  return [[sign * x * SPACING, sign * y * SPACING, 0.0] for x, y in points]


def line(*points, rater="anna", space="LPS", **more):
  return {"rater": rater, "line": {"points": to_mm(points, space)}} | more


def frame(number, pleura=(), b_lines=(), space="LPS"):
  own = {"frame_number": number, "coordinate_space": space}
  return own | {"pleura_lines": list(pleura), "b_lines": list(b_lines)}


def content(*frames, **more):
  return {
    "SOPInstanceUID": "1.2.3",
    "GrayscaleConversion": False,
    "mask_type": "fan",
    "angle1": 122.1,
    "angle2": 57.8,
    "center_rows_px": CENTRE[1],
    "center_cols_px": CENTRE[0],
    "radius1": NEAR,
    "radius2": FAR,
    "image_size_rows": H,
    "image_size_cols": W,
    "frame_annotations": list(frames),
    "labels": [],
  } | more


def sector(start, end):
  """Pixels between two rays and two arcs, and whether they are well inside or outside of it."""
  ys, xs = np.mgrid[:H, :W]
  radius = np.hypot(xs - CENTRE[0], ys - CENTRE[1])
  angle = np.arctan2(ys - CENTRE[1], xs - CENTRE[0])
  low, high = sorted(math.atan2(y - CENTRE[1], x - CENTRE[0]) for x, y in (start, end))
  inside = np.minimum.reduce(
    [radius - NEAR, FAR - radius, (angle - low) * radius, (high - angle) * radius]
  )
  return inside > 0, np.abs(inside) > 1.1


class Place:
  """A clip, and what raters saved beside it."""

  def __init__(self, path):
    self.path, self.folder = path, path / "study"
    self.folder.mkdir()
    np.save(self.folder / "30_70.npy", np.zeros((4, H, W), np.uint8))

  def write(self, what, name="30_70.anna.json"):
    (self.folder / name).write_text(json.dumps(what))

  def run(self, *more, spacing=f"--spacing={SPACING}", annotations=None):
    argv = ["slicer", f"--videos={self.folder}", f"--annotations={annotations or self.folder}"]
    argv += [spacing] if spacing else []
    return importers.main([*argv, f"--out={self.path / 'out'}", *more])

  def masks(self):
    labels = manifest.read_folder(self.path / "out").labels
    return {
      label.frame: {n: readers.read_mask(f) > 0 for n, f in label.masks.items()} for label in labels
    }


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


PLEURA = (55, 40), (95, 45)
B_LINE = (85, 70), (105, 75)


@pytest.mark.parametrize("space", ["LPS", "RAS"])
def test_sectors(place, capsys, space):
  place.write(
    content(
      frame(2, [line(*PLEURA, space=space)], [line(*B_LINE, space=space)], space),
      frame(3, [line(*B_LINE, space=space), line(*PLEURA, space=space)], space=space),
      frame(1, space=space),
    )
  )
  assert place.run() == 0
  assert "Left out: 1 frames without lines (30_70.anna.json, frame 1)" in capsys.readouterr().out
  folder = manifest.read_folder(place.path / "out")
  assert folder.classes == ("pleura", "b_line")
  assert {label.annotator for label in folder.labels} == {"anna"}
  masks = place.masks()
  assert {number: set(found) for number, found in masks.items()} == {
    2: {"pleura", "b_line"},
    3: {"pleura"},
  }
  pleura, sure = sector(*PLEURA)
  np.testing.assert_array_equal(masks[2]["pleura"][sure], pleura[sure])
  # B-lines count where there is pleura only.
  b_line, sure_too = sector(*B_LINE)
  sure &= sure_too
  np.testing.assert_array_equal(masks[2]["b_line"][sure], (pleura & b_line)[sure])
  np.testing.assert_array_equal(masks[3]["pleura"][sure], (pleura | b_line)[sure])
  # Of the outline, all of which is drawn, each pixel on the inner arc is left out.
  ys, xs = np.nonzero(masks[2]["pleura"])
  assert np.hypot(xs - CENTRE[0], ys - CENTRE[1]).min() > NEAR


def test_lines_themselves(place, capsys):
  place.write(content(frame(0, [line((20, 50), (50, 50), (50, 70))], [line((80, 90), (100, 90))])))
  refused(place, capsys, place.run("--line-width=3px"), "--line-width is of --lines")
  assert place.run("--lines", "--line-width=1.5mm", spacing=None) == 2
  assert "does not say how large its pixels are" in capsys.readouterr().err
  assert place.run("--lines", "--line-width=3px") == 0
  expected = np.zeros((H, W), bool)
  expected[49:52, 20:51] = expected[50:71, 49:52] = True
  found = place.masks()[0]
  # Its ends are round.
  assert (found["pleura"] & ~expected).sum() == 7 and (found["pleura"] | ~expected).all()
  assert found["b_line"].any(axis=1).sum() == 3


def test_a_rectangle_as_of_a_linear_probe(place):
  place.write(content(frame(0, [line((20, 30), (60, 90))]), mask_type="rectangle"))
  assert place.run() == 0
  expected = np.zeros((H, W), bool)
  expected[30:90, 20:60] = True
  np.testing.assert_array_equal(place.masks()[0]["pleura"], expected)


def test_raters(place, capsys):
  both = [line(*PLEURA), line(*B_LINE, rater="Ben ")]
  place.write(content(frame(0, both)))
  place.write(content(frame(1, [line(*PLEURA, rater="cara")])), "30_70.cara.json")
  judged = [
    line(*PLEURA, validation={"status": "validated", "adjudicator": "dora"}),
    line(*B_LINE, rater="ben", validation={"status": "invalidated"}),
  ]
  place.write(content(frame(2, judged)), "30_70.adjudication.json")
  place.write(content() | {"frame_annotations": []}, "30_70.json")
  assert place.run("--builder=lus_folder") == 0
  printed = capsys.readouterr().out
  assert "Left out: 1 adjudicated files (30_70.adjudication.json)" in printed
  assert "Left out: 1 files without annotated frames (30_70.json)" in printed
  labels = manifest.read_folder(place.path / "out").labels
  assert {(x.frame, x.annotator) for x in labels} == {(0, "anna"), (0, "ben"), (1, "cara")}
  (place.path / "out").rename(place.path / "first")
  assert place.run("--adjudicated") == 0
  assert "Left out: 1 lines that were judged invalid" in capsys.readouterr().out
  (label,) = manifest.read_folder(place.path / "out").labels
  assert (label.frame, label.annotator) == (2, "")
  pleura, sure = sector(*PLEURA)
  np.testing.assert_array_equal(readers.read_mask(label.masks["pleura"])[sure] > 0, pleura[sure])


def test_older_versions_without_raters(place):
  old = {"3": {"pleura_lines": [to_mm(PLEURA, "RAS")], "b_lines": []}}
  place.write(content() | {"frame_annotations": old}, "30_70.json")
  assert place.run() == 0
  pleura, sure = sector(*PLEURA)
  np.testing.assert_array_equal(place.masks()[3]["pleura"][sure], pleura[sure])


def test_the_distance_of_pixels_stands_in_the_video(place):
  import pydicom
  from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

  (place.folder / "30_70.npy").unlink()
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundMultiFrameImageStorage, "1.2.3"
  dataset.Modality, dataset.PhotometricInterpretation = "US", "MONOCHROME2"
  dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel = H, W, 3, 1
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  dataset.PixelSpacing = [SPACING, SPACING]
  dataset.PixelData = np.zeros((3, H, W), np.uint8).tobytes()
  dataset.save_as(place.folder / "30_70.dcm", enforce_file_format=True)
  place.write(content(frame(1, [line(*PLEURA)])))
  assert place.run(spacing=None) == 0
  pleura, sure = sector(*PLEURA)
  np.testing.assert_array_equal(place.masks()[1]["pleura"][sure], pleura[sure])


@pytest.mark.parametrize(
  ("what", "part"),
  [
    (content(frame(9, [line(*PLEURA)])), "Frame 9 of 30_70 is labelled, but"),
    (content(frame("x", [line(*PLEURA)])), "a frame_number that is no whole number"),
    (content(frame(1, [line(*PLEURA)]) | {"coordinate_space": "IJK"}), "counts in 'IJK'"),
    (content(frame(1, [line((10, 10))])), "is no line of two points"),
    (content(frame(1, ["x"])), "is no line of two points"),
    (content(frame(1, [{"rater": "a", "line": {"points": [[1, 2], [3, 4]]}}])), "no three numbers"),
    (content(frame(1, [line((10, 10), (900, 900))])), "leaves its picture of 160 x 120"),
    (content(frame(1, [line((900, 900), (910, 910))])), "lies outside of its picture"),
    (content(frame(1, [line(*PLEURA, rater="../x")])), "must be a file name without folders"),
    (content(frame(1, [line(*PLEURA)]), radius1=None), "'radius1' that is no whole number"),
    (content(frame(1, [line(*PLEURA)]), radius2=3), "a fan from radius 40 to 3"),
    (content(frame(1, [line(*PLEURA)]), image_size_rows=H + 1), "was drawn on 160 x 121 pixels"),
    (content() | {"frame_annotations": 3}, "are no list of objects"),
    (content(), "holds nothing to import (left out: 1 files without annotated frames)"),
    ({"shapes": [], "imagePath": "a.png"}, "LabelMe's, not SlicerUltrasound's"),
    ([], "is not SlicerUltrasound's"),
  ],
)
def test_mistakes(place, capsys, what, part):
  place.write(what)
  refused(place, capsys, place.run(), part)


def test_a_clip_that_is_missing_and_a_distance_that_is_unknown(place, capsys):
  place.write(content(frame(1, [line(*PLEURA)])))
  refused(place, capsys, place.run(spacing=None), "is in millimetres; say --spacing MM.")
  (place.folder / "30_70.npy").rename(place.folder / "other.npy")
  refused(place, capsys, place.run(), "'30_70.anna' is not in")
