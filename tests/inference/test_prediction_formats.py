"""Files of predictions, read back by libraries that did not write them."""

import csv
import gzip
import math
import pathlib

import av
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from lus_jax import palette
from lus_jax.inference import measures, tables
from lus_jax.inference.formats import FORMATS, video, whole
from lus_jax.inference.formats.head import Head
from lus_jax.media import readers
from lus_jax.media.clips import Media

CLASSES = ("pleura", "B-Linie é", "consolidation")
# 32 divides neither side, nor does 2.
HEIGHT, WIDTH = 37, 53
BOX = (4, 6, 35, 51)
# The others are written of DICOM alone: see test_dicomseg.py.
OF_ANYTHING = [name for name in FORMATS if not name.startswith("dicomseg")]


def make_clip(n=4, **more):
  options = {"frames_per_second": 25.0, "spacing": (0.5, 0.25)} | more
  path = pathlib.Path("clip.mp4")
  return Media(path, (path,), n, HEIGHT, WIDTH, **options)


def make_head(frames, **more):
  colours = tuple(palette.rgb(k) for k in range(len(CLASSES)))
  options = {
    "name": "threshold_0.6",
    "classes": CLASSES,
    "colours": colours,
    "meaning": "P(confidence >= 0.6)",
    "frames": tuple(frames),
    "cut": 0.5,
    "box": BOX,
    "software": "lus_jax 0",
  }
  return Head(**options | more)


def predicted(frames):
  """Images [N, h, w] uint8 and maps [N, h, w, K] float32 in [0, 1], 0 outside of the scan area."""
  r = np.random.default_rng(0)
  n = len(frames)
  images = r.integers(0, 256, (n, HEIGHT, WIDTH), dtype=np.uint8)
  maps = np.zeros((n, HEIGHT, WIDTH, len(CLASSES)), np.float32)
  top, left, bottom, right = BOX
  inside = r.random((n, bottom - top, right - left, len(CLASSES)), dtype=np.float32)
  inside[:, 3:6, :, 0] = 1
  maps[:, top:bottom, left:right] = inside
  return images, maps


def written(name, tmp_path, frames=(0, 2, 4, 6), clip=None, **more):
  """Writes a format; returns what was written, images and maps, and the maps in bytes."""
  clip, head = clip or make_clip(), make_head(frames, **more)
  images, maps = predicted(frames)
  in_bytes = np.rint(255 * maps).astype(np.uint8)
  writer = FORMATS[name].writer(tmp_path / "out" / head.name, clip, head)
  with writer as w:
    for i, number in enumerate(frames):
      w.add(number, images[i], (maps if w.dtype == np.float32 else in_bytes)[i])
    # Nothing has its name before all is there.
    assert not [x for x in (tmp_path / "out").iterdir() if not x.name.startswith(".")]
  (path,) = writer.paths
  assert [x.name for x in (tmp_path / "out").iterdir()] == [path.name]
  return path, images, maps, in_bytes


@pytest.mark.parametrize("name", OF_ANYTHING)
def test_nothing_is_left_after_an_exception(name, tmp_path):
  if not issubclass(FORMATS[name].writer, whole.Writer):
    pytest.skip("has its own test")
  head, (images, maps) = make_head((0, 1)), predicted((0, 1))
  writer = FORMATS[name].writer(tmp_path / "out", make_clip(), head)
  with pytest.raises(KeyboardInterrupt), writer as w:
    w.add(0, images[0], maps[0] if w.dtype == np.float32 else np.uint8(255 * maps[0]))
    raise KeyboardInterrupt
  assert not list(tmp_path.iterdir()) and not writer.paths


@pytest.mark.parametrize("name", OF_ANYTHING)
def test_the_same_prediction_is_the_same_bytes(name, tmp_path):
  if not issubclass(FORMATS[name].writer, whole.Writer):
    pytest.skip("has its own test")

  def contents(place):
    path, *_ = written(name, tmp_path / place, frames=(0, 3))
    files = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    return [(file.name, file.read_bytes()) for file in files if file.is_file()]

  first = contents("a")
  assert first and contents("b") == first
  # Nor do names of places or people come in.
  assert not any(str(tmp_path).encode() in content for _, content in first)


@pytest.mark.parametrize(("name", "most"), [("png", 255), ("png16", 65535)])
def test_png_by_simpleitk(name, most, tmp_path):
  path, _, maps, _ = written(name, tmp_path)
  assert sorted(x.name for x in path.iterdir()) == ["000000", "000002", "000004", "000006"]
  for i, number in enumerate((0, 2, 4, 6)):
    for k, label in enumerate(CLASSES):
      file = path / f"{number:06d}" / f"{label}.png"
      values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
      assert values.dtype == (np.uint8 if most == 255 else np.uint16)
      np.testing.assert_allclose(values / most, maps[i, ..., k], atol=0.51 / most)
      np.testing.assert_allclose(readers.read_mask(file), maps[i, ..., k], atol=0.51 / most)


def test_npz_by_numpy(tmp_path):
  path, _, maps, _ = written("npz", tmp_path)
  with np.load(path, allow_pickle=False) as found:
    np.testing.assert_allclose(found["probability"], maps, atol=2**-12)
    assert found["probability"].dtype == np.float16
    assert found["frames"].tolist() == [0, 2, 4, 6]
    assert tuple(found["classes"]) == CLASSES and tuple(found["scan_area"]) == BOX
    assert str(found["meaning"]) == "P(confidence >= 0.6)"


def test_nifti_by_simpleitk_and_our_reader(tmp_path):
  path, _, _, in_bytes = written("nifti", tmp_path)
  for k, label in enumerate(CLASSES):
    file = path / f"{label}.nii.gz"
    image = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[:, 0], in_bytes[..., k])
    # Every second frame of 25 a second.
    np.testing.assert_allclose(image.GetSpacing(), (0.25, 0.5, 1, 0.08), rtol=1e-6)
    # x and y of the frame are left and back: viewers show it as it is.
    direction = np.reshape(image.GetDirection(), (4, 4))
    np.testing.assert_allclose(direction[:2, :2], np.eye(2), atol=1e-6)
    assert nibabel.aff2axcodes(nibabel.load(file).affine)[:2] == ("L", "P")
    media = readers.probe(file)
    np.testing.assert_array_equal(readers.read(media), in_bytes[..., k])
    np.testing.assert_allclose(media.spacing, (0.5, 0.25))
    assert media.frames_per_second == pytest.approx(12.5)
    header = nibabel.load(file).header
    assert header["descrip"].item().decode().startswith(f"threshold_0.6, {label}: value / 255 = P(")
    assert gzip.decompress(file.read_bytes())[:4] == (348).to_bytes(4, "little")


@pytest.mark.parametrize("frames", [(0,), (0, 1, 5)])
def test_nifti_without_time(frames, tmp_path):
  clip = make_clip(n=len(frames), frames_per_second=math.nan, spacing=None)
  path, _, _, in_bytes = written("nifti", tmp_path, frames=frames, clip=clip)
  media = readers.probe(path / "pleura.nii.gz")
  np.testing.assert_array_equal(readers.read(media), in_bytes[..., 0])
  assert media.n_frames == len(frames)
  assert media.spacing is None and math.isnan(media.frames_per_second)


@pytest.mark.parametrize("axes", ["xy", "yx"])
@pytest.mark.parametrize("flat", [True, False])
def test_nifti_lies_over_a_clip_of_nifti(axes, flat, tmp_path):
  affine = np.array([[0.0, 0.5, 0, 7], [-0.25, 0, 0, -3], [0, 0, 2, 5], [0, 0, 0, 1]])
  values = np.zeros((WIDTH, HEIGHT, *([4] if flat else [1, 4])), np.uint8)
  if axes == "yx":
    values = values.swapaxes(0, 1)
  image = nibabel.Nifti1Image(values, affine)
  image.header.set_xyzt_units("mm", "sec")
  nibabel.save(image, tmp_path / "clip.nii.gz")
  clip = readers.probe(tmp_path / "clip.nii.gz", nifti_axes=axes)
  path, _, _, in_bytes = written("nifti", tmp_path, frames=(0, 1, 2, 3), clip=clip)
  found = nibabel.load(path / "consolidation.nii.gz")
  np.testing.assert_allclose(found.affine, nibabel.load(clip.path).affine)
  assert found.shape == values.shape
  read = readers.read(readers.probe(path / "consolidation.nii.gz", nifti_axes=axes))
  np.testing.assert_array_equal(read, in_bytes[..., 2])


@pytest.mark.parametrize("is_qform", [True, False])
@pytest.mark.parametrize(
  ("frames", "first", "apart"), [((2,), 2, 1), ((1, 3), 1, 2), ((2, 3, 4), 2, 1), ((1, 2, 4), 1, 1)]
)
def test_some_slices_of_nifti_lie_over_their_own(is_qform, frames, first, apart, tmp_path):
  affine = np.array([[0.0, 0.5, 0, 7], [-0.25, 0, 0, -3], [0, 0, 2, 5], [0, 0, 0, 1]])
  image = nibabel.Nifti1Image(np.zeros((WIDTH, HEIGHT, 5), np.uint8), None)
  image.set_sform(None if is_qform else affine, code=0 if is_qform else 2)
  image.set_qform(affine if is_qform else None, code=int(is_qform))
  nibabel.save(image, tmp_path / "clip.nii")
  path, *_ = written("nifti", tmp_path, frames=frames, clip=readers.probe(tmp_path / "clip.nii"))
  found = nibabel.load(path / "pleura.nii.gz")
  assert found.shape == (WIDTH, HEIGHT, len(frames))
  np.testing.assert_allclose(found.affine @ [3, 4, 0, 1], affine @ [3, 4, first, 1], atol=1e-5)
  np.testing.assert_allclose(found.affine[:, 2], affine[:, 2] * apart, atol=1e-5)
  np.testing.assert_allclose(found.affine[:, :2], affine[:, :2], atol=1e-5)


def test_nifti_keeps_the_unit_of_a_clip_of_nifti(tmp_path):
  image = nibabel.Nifti1Image(np.zeros((WIDTH, HEIGHT, 2), np.uint8), np.diag([250, 500, 1, 1]))
  image.header.set_xyzt_units("micron")
  nibabel.save(image, tmp_path / "clip.nii")
  clip = readers.probe(tmp_path / "clip.nii")
  path, *_ = written("nifti", tmp_path, frames=(0, 1), clip=clip)
  found = nibabel.load(path / "pleura.nii.gz")
  np.testing.assert_allclose(found.affine, image.affine)
  assert found.header.get_xyzt_units()[0] == "micron"
  np.testing.assert_allclose(found.header.get_zooms(), (250, 500, 1))
  assert readers.probe(path / "pleura.nii.gz").spacing == clip.spacing == (0.5, 0.25)


def test_tiff_by_simpleitk_pillow_and_our_reader(tmp_path):
  path, _, _, in_bytes = written("tiff", tmp_path)
  pages = np.moveaxis(in_bytes, -1, 1).reshape(-1, HEIGHT, WIDTH)
  np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), pages)
  np.testing.assert_array_equal(readers.read(readers.probe(path)), pages)
  with Image.open(path) as image:
    assert image.n_frames == len(pages)
    for i, page in enumerate(pages):
      image.seek(i)
      np.testing.assert_array_equal(np.asarray(image), page)
      title = f"{CLASSES[i % 3]}, frame {2 * (i // 3)}"
      assert image.tag_v2[285].encode("latin-1").decode() == title
  with tifffile.TiffFile(path) as file:
    assert file.is_ome and file.series[0].axes == "TCYX"
    assert file.series[0].shape == (4, 3, HEIGHT, WIDTH)
    words = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
  assert tuple(one["Name"] for one in words["Channel"]) == CLASSES
  assert words["PhysicalSizeX"] == 0.25 and words["PhysicalSizeY"] == 0.5
  assert words["PhysicalSizeXUnit"] == "mm" and words["TimeIncrement"] == pytest.approx(0.08)


def decoded(path):
  with av.open(path) as file:
    stream = file.streams.video[0]
    assert stream.codec_context.name == "vp9"  # FFmpeg's own; the encoder is libvpx
    return [
      (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24"))
      for frame in file.decode(stream)
    ]


def test_mp4_shows_the_scan_alone_and_a_legend(tmp_path):
  path, images, _, in_bytes = written("mp4", tmp_path, frames=(1, 2, 5))
  found = decoded(path)
  # What lies between frames that were left out takes its time.
  np.testing.assert_allclose([time for time, _ in found], [0, 0.04, 0.16], atol=1e-3)
  scale, (top, left, bottom, right) = 8, BOX
  height, width = scale * (bottom - top), scale * (right - left)
  for i, (_, picture) in enumerate(found):
    expected = video.overlaid(
      images[i, top:bottom, left:right], in_bytes[i, top:bottom, left:right], 0.5
    )
    expected = expected.repeat(scale, axis=0).repeat(scale, axis=1)
    shown = picture[:height, :width].astype(float)
    # Noise in noise's colours, of which files keep a quarter.
    assert abs(shown - expected).mean() < 12
    assert np.corrcoef(shown.mean(axis=-1).ravel(), expected.mean(axis=-1).ravel())[0, 1] > 0.97
    legend = picture[height:]
    for k in range(len(CLASSES)):
      assert (abs(legend.astype(int) - palette.rgb(k)).max(axis=-1) < 40).sum() > 80
  assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
  media = readers.probe(path)
  assert media.n_frames == 3 and readers.read(media).shape == (3, *picture.shape[:2])


def test_mp4_of_a_still_and_of_a_wide_scan(tmp_path):
  clip = make_clip(n=1, frames_per_second=math.nan)
  assert len(decoded(written("mp4", tmp_path, frames=(0,), clip=clip)[0])) == 1


def test_the_line_goes_around_what_reaches_the_cut():
  values = np.zeros((7, 9), np.uint8)
  values[1:6, 2:7] = 128
  values[3, 4] = 127
  line = video.outlines(values, 0.5)
  expected = np.zeros((7, 9), bool)
  expected[1:6, 2:7] = True
  expected[3, 4] = False  # what is not reached within has a line around too
  np.testing.assert_array_equal(line, expected)
  values[1:6, 2:7] = 200
  expected[2:5, 3:6] = False
  np.testing.assert_array_equal(video.outlines(values, 0.5), expected)
  assert not video.outlines(values, 0.9).any()


def test_overlays_are_whole_frames(tmp_path):
  path, images, _, in_bytes = written("overlays", tmp_path)
  picture = sitk.GetArrayFromImage(sitk.ReadImage(str(path / "000002.png")))
  np.testing.assert_array_equal(picture, palette.overlay(images[1], in_bytes[1] / np.float32(255)))


def test_tables_by_hand(tmp_path):
  maps = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
  maps[0, 5, 10:20, 0] = 255  # the pleura: 10 columns
  maps[0, 9, 40:44, 0] = 255  # and 4 more, too small to count
  maps[0, 7:30, 12:14, 1] = 204  # two columns below it,
  maps[0, 4, 17:25, 1] = 204  # and a structure above it
  maps[0, 20:23, 24:27, 1] = 204
  maps[0, 31, 45, 1] = 128  # too small
  maps[0, 32, 30, 1] = 127  # not reached
  heads = [make_head((3,), name=name) for name in ("threshold_0.6", "soft")]
  rules = measures.Rules(0.5, smallest=6, pleura=(0,), spacing=(0.5, 0.25))
  frames = tables.Frames(tmp_path / "frames.csv", "=clip", heads, rules)
  with frames:
    frames.add(3, maps[0], [maps[0], np.zeros_like(maps[0])])
  with (tmp_path / "frames.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["member"], row["class"]) for row in rows] == [
    (head.name, name) for head in heads for name in CLASSES
  ]
  pleura, line, third = rows[:3]
  n_pixels = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
  assert (pleura["area_pixels"], pleura["structures"], pleura["pleura_share"]) == ("14", "1", "")
  area = 46 + 8 + 9 + 1
  assert (line["area_pixels"], line["area_mm2"]) == (str(area), f"{area / 8:g}")
  assert (line["structures"], line["pleura_share"]) == ("3", "0.2")
  mean = (204 * (area - 1) + 128 + 127) / 255 / n_pixels
  assert float(line["mean_probability"]) == pytest.approx(mean, rel=1e-5)
  assert float(line["max_probability"]) == 0.8
  assert (third["area_pixels"], third["pleura_share"]) == ("0", "0")
  assert line["video"] == "'=clip" and line["frame"] == "3"  # spreadsheets do not compute it
  assert rows[4]["pleura_share"] == ""  # no pleura is seen
  assert frames.rows[1]["reaches_cut"] == "yes" and frames.rows[2]["reaches_cut"] == "no"


def test_means_of_videos_and_of_days(tmp_path):
  head = make_head((0, 1), box=(0, 0, 8, 8))

  def video_rows(name, areas, patient, spacing=None, pleura=0):
    frames = tables.Frames(None, name, [head], measures.Rules(0.5, 1, (0,), spacing))
    with frames:
      for i, area in enumerate(areas):
        maps = np.zeros((8, 8, 3), np.uint8)
        maps.reshape(-1, 3)[8 : 8 + area, 1] = 255
        maps[0, :pleura, 0] = 255
        frames.add(i, maps[..., 0], [maps])
    return [
      {"video": name, "patient": patient, "day": "1" * bool(patient), **x} for x in frames.rows
    ]

  rows = [
    *video_rows("a", (4, 0), "p", spacing=(2, 1), pleura=8),
    *video_rows("b", (8, 8, 8), "p"),
    *video_rows("c", (1,), ""),
  ]
  one = rows[1]
  assert (one["frames"], one["frames_with_any"], one["frames_with_pleura"]) == (2, 1, 2)
  assert (one["area_pixels_mean"], one["area_pixels_max"], one["area_mm2_max"]) == (2, 4, 8)
  assert (one["structures_mean"], one["structures_max"]) == (0.5, 1)
  assert (one["pleura_share_mean"], one["pleura_share_max"]) == (0.25, 0.5)
  assert rows[4]["area_mm2_mean"] is None and rows[4]["pleura_share_max"] is None
  days = tables.days(rows)
  assert [(row["patient"], row["class"]) for row in days] == [("p", name) for name in CLASSES]
  day = days[1]
  assert (day["videos"], day["videos_with_any"], day["frames"]) == (2, 2, 5)
  assert (day["videos_with_spacing"], day["videos_with_pleura"]) == (1, 1)
  # A video counts once, whatever its length.
  assert (day["area_pixels_mean"], day["area_mm2_mean"]) == (5, 4)
  assert (day["structures_mean"], day["pleura_share_mean"]) == (0.75, 0.25)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    *((x, True) for x in ("pleura", "sharp_pleura", "Pleural line", "pleural_line", "Pleuralinie")),
    *((x, False) for x in ("subpleural consolidation", "pleural effusion", "b line", "a_line")),
  ],
)
def test_classes_that_are_called_pleura(name, expected):
  assert (measures.guess_pleura([name]) == (name,)) == expected
