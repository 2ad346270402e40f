import shutil
import zipfile

import nibabel
import numpy as np
import pytest
from absl import logging
from PIL import Image

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.importers import arrays
from tfds_builders.lus_folder import manifest

H, W = 20, 30


def blob(seed, n=None):
  """Confidences, uint8 [h, w] or [n, h, w], that reach 0 and 255."""
  ys, xs = np.mgrid[:H, :W]
  one = np.clip(1.6 - np.hypot(ys - 8 - seed % 3, xs - 9 - 2 * seed) / 5, 0, 1)
  if n is None:
    return np.rint(255 * one).astype(np.uint8)
  return np.stack([blob(seed + i) for i in range(n)])


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.name.endswith((".nii", ".nii.gz")):
    nibabel.save(nibabel.Nifti1Image(np.transpose(pixels), np.eye(4)), path)
  elif path.suffix == ".npy":
    np.save(path, pixels)
  else:
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
  save(tmp_path / "videos" / "a.png", np.zeros((H, W), np.uint8))
  np.save(tmp_path / "videos" / "film.npy", np.zeros((4, H, W), np.uint8))
  return tmp_path


@pytest.fixture
def clips(tmp_path):
  for i in range(1, 4):
    save(tmp_path / "videos" / "clip" / f"{i:06d}.png", np.full((H, W), i, np.uint8))
  save(tmp_path / "videos" / "film.npy", np.zeros((4, H, W), np.uint8))
  return tmp_path


def run(folder, *more, classes="b_line,pleura"):
  argv = ["masks", f"--videos={folder / 'videos'}", f"--annotations={folder / 'masks'}"]
  argv += [f"--out={folder / 'out'}", *more]
  return importers.main(argv + ([f"--classes={classes}"] if classes else []))


def written(folder):
  return {
    (label.video.name, label.frame, label.annotator): {
      name: np.rint(255 * readers.read_mask(path)).astype(int) for name, path in label.masks.items()
    }
    for label in manifest.read_folder(folder / "out").labels
  }


def check(folder, expected):
  found = written(folder)
  assert found.keys() == expected.keys()
  for key, masks in expected.items():
    assert found[key].keys() == masks.keys()
    for name, mask in masks.items():
      np.testing.assert_array_equal(found[key][name], mask)


def refused(folder, capsys, code, part):
  out, error = capsys.readouterr()
  assert (code, out) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not (folder / "out").exists()


@pytest.mark.parametrize(
  "name",
  [
    *("b_line/a.png", "a/b_line.png", "a_b_line.png", "a-B_Line.tif", "b_line_a.png"),
    *("b_line/a_b_line.png", "sub/a.b_line.png", "b_line/a.nii.gz", "a_b_line.npy"),
  ],
)
def test_names_of_classes(folder, name):
  save(folder / "masks" / name, blob(0))
  assert run(folder) == 0
  check(folder, {("a.png", 0, ""): {"b_line": blob(0)}})


def test_frames_of_clips_and_several_classes(clips, capsys):
  folder = clips
  save(folder / "masks" / "clip" / "000002_b_line.png", blob(0))
  save(folder / "masks" / "clip" / "000002_pleura.png", blob(1))
  save(folder / "masks" / "clip" / "3_pleura.png", blob(2)[:H])
  (folder / "masks" / "notes.txt").write_text("x")
  refused(folder, capsys, run(folder, "--folders-are-clips"), "'clip/3' is not in")
  (folder / "masks" / "clip" / "3_pleura.png").rename(folder / "masks" / "clip_3_pleura.png")
  (folder / "masks" / "clip").rename(folder / "masks" / "sub")
  for name in ("b_line", "pleura"):
    (folder / "masks/sub" / f"000002_{name}.png").rename(folder / f"masks/clip_2_{name}.png")
  assert run(folder, "--folders-are-clips", r"--frame-pattern=(.+)_(\d+)") == 0
  assert "files that are no masks (notes.txt)" in capsys.readouterr().out
  expected = {
    ("clip", 1, ""): {"b_line": blob(0), "pleura": blob(1)},
    ("clip", 2, ""): {"pleura": blob(2)},
  }
  check(folder, expected)


def test_the_folder_that_is_imported_to_can_be_imported(clips):
  folder = clips
  save(folder / "masks" / "clip" / "000002" / "b_line.png", blob(0))
  save(folder / "masks" / "clip" / "000002" / "pleura.png", blob(1))
  assert run(folder, "--folders-are-clips") == 0
  check(folder, {("clip", 1, ""): {"b_line": blob(0), "pleura": blob(1)}})


def test_a_clip_is_no_frame(clips, capsys):
  save(clips / "masks" / "clip_b_line.png", blob(0))
  part = "'clip' is a video of 3 frames; say which frame"
  refused(clips, capsys, run(clips, "--folders-are-clips"), part)


def test_several_annotators(folder, capsys):
  for i, who in enumerate(("anna", "ben")):
    save(folder / who / "a.png", blob(i))
  argv = ["masks", f"--videos={folder / 'videos'}", f"--out={folder / 'out'}", "--classes=b_line"]
  argv += ["--annotations", *(f"{n}={folder / n}" for n in ("anna", "ben"))]
  assert importers.main(argv) == 0
  assert "1 image, 2 raters (anna, ben)" in capsys.readouterr().out
  mask = np.asarray(Image.open(folder / "out" / "raters" / "ben" / "a.png"))
  np.testing.assert_array_equal(mask, blob(1))


COLOURS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), 3: (10, 20, 30)}


def coloured(alpha=None):
  indices = (blob(0) > 0).astype(np.uint8)
  indices[12:, :9], indices[15:, 20:] = 2, 3
  pixels = np.array([COLOURS[i] for i in range(4)], np.uint8)[indices]
  return indices, pixels if alpha is None else np.dstack([pixels, alpha])


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "TIFF"])
def test_colours(folder, kind):
  alpha = np.full((H, W), 255, np.uint8)
  alpha[:2] = 0
  indices, pixels = coloured(alpha if kind == "RGBA" else None)
  image = Image.fromarray(pixels)
  if kind == "P":
    image = image.quantize(8, dither=Image.Dither.NONE)
    assert image.mode == "P"
  (folder / "masks").mkdir()
  image.save(folder / "masks" / ("a.tif" if kind == "TIFF" else "a.png"))
  if kind == "RGBA":
    indices[:2] = 0
  colours = "--colours=b_line=#FF0000,pleura=0,255,0,b_line=#0a141e"
  assert run(folder, colours, classes=None) == 0
  expected = {"b_line": 255 * np.isin(indices, (1, 3)), "pleura": 255 * (indices == 2)}
  check(folder, {("a.png", 0, ""): expected})


def test_mistakes_with_colours(folder, capsys):
  indices, pixels = coloured()
  save(folder / "masks" / "a.png", pixels)
  n = int((indices == 3).sum())
  colours = "--colours=b_line=#ff0000,pleura=0,255,0"
  part = f"a.png has {n} pixels ({n / (H * W):.1%}) of other colours: #0a141e; name them"
  refused(folder, capsys, run(folder, colours, classes=None), part)
  refused(folder, capsys, run(folder, colours), "either --classes, or --colours")
  refused(folder, capsys, run(folder, classes=None), "either --classes, or --colours")
  for text, part in (
    ("b_line", "needs CLASS=COLOUR"),
    ("b_line=red", "'red' is no colour"),
    ("b_line=0,0,256", "beyond 255"),
    ("b_line=#ff0000,pleura=255,0,0", "names a colour twice"),
    ("b_line=#000000", "--background is the colour of a class"),
  ):
    refused(folder, capsys, run(folder, f"--colours={text}", classes=None), part)
  shutil.rmtree(folder / "masks")
  save(folder / "masks" / "a.jpg", pixels)
  refused(folder, capsys, run(folder, colours, classes=None), "a.jpg is a JPEG, which changes col")
  shutil.rmtree(folder / "masks")
  save(folder / "masks" / "a.png", pixels[1:])
  refused(folder, capsys, run(folder, colours, classes=None), "a.png is 30 x 19 and its frame 30 x")
  half = coloured(np.full((H, W), 128, np.uint8))[1]
  save(folder / "masks" / "a.png", half)
  refused(folder, capsys, run(folder, colours, classes=None), "600 pixels (100.0%) of other colou")


@pytest.mark.parametrize("middle", [127, 128])
def test_trimaps(folder, capsys, middle):
  trimap = np.where(blob(0) == 255, 255, np.where(blob(0) > 0, middle, 0)).astype(np.uint8)
  save(folder / "masks" / "b_line" / "a.png", trimap)
  assert run(folder, "--unsure=40") == 0
  expected = np.where(trimap == middle, 102, trimap)
  check(folder, {("a.png", 0, ""): {"b_line": expected}})
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  trimap[0, :3] = 77
  save(folder / "masks" / "b_line" / "a.png", trimap)
  refused(folder, capsys, run(folder, "--unsure=40"), "has 3 pixels that are neither 0, 128 nor 25")
  refused(folder, capsys, run(folder, "--unsure=140"), "needs a number from 0 to 100")


def strip(low, high):
  found = np.zeros((H, W), np.uint8)
  found[:, low:high] = 255
  return found


def test_contours(folder, capsys):
  for where in ("a_b_line_inner.png", "b_line_inner/a.png"):
    shutil.rmtree(folder / "masks", ignore_errors=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    save(folder / "masks" / where, strip(12, 18))
    save(folder / "masks" / where.replace("inner", "outer"), strip(9, 20))
    assert run(folder) == 0
    # Straight contours: a slope of thirds on the left, of halves on the right.
    row = np.zeros(W)
    row[9:20] = [1 / 6, 3 / 6, 5 / 6, *[1] * 6, 3 / 4, 1 / 4]
    expected = np.broadcast_to(np.rint(255 * row.astype(np.float32)), (H, W))
    check(folder, {("a.png", 0, ""): {"b_line": expected}})
  capsys.readouterr()
  shutil.rmtree(folder / "out")
  save(folder / "masks" / "b_line_inner" / "a.png", strip(8, 18))
  refused(folder, capsys, run(folder), "a.png leaves a.png by 20 pixels; the inner contour of b_l")
  save(folder / "masks" / "b_line_inner" / "a.png", strip(0, 0))
  refused(folder, capsys, run(folder), "is empty but a.png is not; draw both contours")
  save(folder / "masks" / "b_line_inner" / "a.png", strip(12, 18) // 2)
  refused(folder, capsys, run(folder), "is a contour with values between 0 and 100 %")
  save(folder / "masks" / "b_line" / "a.png", strip(12, 18))
  refused(folder, capsys, run(folder), "frame 0 of a has a mask of it too")
  shutil.rmtree(folder / "masks" / "b_line")
  shutil.rmtree(folder / "masks" / "b_line_inner")
  refused(folder, capsys, run(folder), "is the outer contour of b_line, but frame 0 of a has no in")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_of_labels(folder, suffix, capsys):
  labels = np.zeros((4, H, W), np.uint8)
  labels[1, 2:9, 3:8], labels[1, 12:, 5:], labels[3, 5:7] = 1, 2, 2
  save(folder / "masks" / f"film{suffix}", labels)
  assert run(folder) == 0
  assert "2 frames of arrays on which nothing is drawn" in capsys.readouterr().out
  expected = {
    ("film.npy", i, ""): {
      name: 255 * (labels[i] == k)
      for k, name in ((1, "b_line"), (2, "pleura"))
      if (labels[i] == k).any()
    }
    for i in (1, 3)
  }
  check(folder, expected)
  shutil.rmtree(folder / "out")
  assert run(folder, "--empty-frames") == 0
  check(folder, expected | {("film.npy", i, ""): {} for i in (0, 2)})
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  labels[0, :2] = 3
  save(folder / "masks" / f"film{suffix}", labels)
  refused(folder, capsys, run(folder), "has 60 pixels that are no label from 1 to 2, as 3")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_soft_nifti(folder, dtype):
  soft = blob(0, 4)
  values = soft.astype(dtype) if dtype == np.uint8 else (soft / 255).astype(dtype)
  save(folder / "masks" / "film_pleura.nii.gz", values)
  assert run(folder) == 0
  check(folder, {("film.npy", i, ""): {"pleura": soft[i]} for i in range(4)})


def test_nifti_rows_first(folder, capsys):
  save(folder / "masks" / "a_b_line.nii", blob(0).T)
  refused(folder, capsys, run(folder), "a_b_line.nii is 20 x 30 and its frame 30 x 20")
  assert run(folder, "--nifti-axes=yx") == 0
  check(folder, {("a.png", 0, ""): {"b_line": blob(0)}})


@pytest.mark.parametrize("order", arrays.AXES)
def test_axes_of_numpy(folder, order):
  lengths = {"n": 4, "h": H, "w": W, "k": 2}
  whole = np.stack([blob(0, 4), blob(2, 4)], axis=-1)  # [n, h, w, k]
  index = tuple(slice(None) if axis in order else 0 for axis in "nhwk")
  left = [axis for axis in "nhwk" if axis in order]
  array = np.transpose(whole[index], [left.index(axis) for axis in order])
  assert array.shape == tuple(lengths[axis] for axis in order)
  of_film, several = "n" in order, "k" in order
  save(folder / "masks" / f"{'film' if of_film else 'a'}{'' if several else '_b_line'}.npy", array)
  assert run(folder) == 0
  check(
    folder,
    {
      ("film.npy" if of_film else "a.png", i, ""): {
        name: whole[i, ..., k]
        for k, name in enumerate(("b_line", "pleura"))
        if several or name == "b_line"
      }
      for i in range(4 if of_film else 1)
    },
  )


def test_numpy_that_fits_in_several_ways(folder, capsys):
  save(folder / "masks" / "film.npy", np.stack([blob(0, 4)] * 4))
  code = run(folder, classes="a,b,c,d")
  refused(folder, capsys, code, "say which axis is which with --axes, as nkhw")
  assert run(folder, "--axes=knhw", classes="a,b,c,d") == 0
  check(folder, {("film.npy", i, ""): dict.fromkeys("abcd", blob(0, 4)[i]) for i in range(4)})
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  save(folder / "masks" / "film.npy", np.zeros((5, H, W)))
  refused(folder, capsys, run(folder), "film.npy is [5, 20, 30], and film.npy has 4 frame(s) of 20")


def test_the_scale_is_that_of_all_frames(folder, capsys):
  soft = blob(0, 4)
  soft[0] = np.minimum(soft[0], 1)
  save(folder / "masks" / "film_b_line.npy", soft)
  assert run(folder) == 0
  check(folder, {("film.npy", i, ""): {"b_line": soft[i]} for i in range(4)})
  shutil.rmtree(folder / "out")
  save(folder / "masks" / "film_b_line.npy", (soft > 99).astype(np.uint8))
  assert run(folder) == 0
  check(folder, {("film.npy", i, ""): {"b_line": 255 * (soft[i] > 99)} for i in range(1, 4)})


def test_archives_of_numpy(folder, capsys):
  (folder / "masks").mkdir()
  np.savez_compressed(folder / "masks" / "film.npz", b_line=blob(0, 4), pleura=blob(2, 4))
  np.savez(folder / "masks" / "a.npz", (blob(0) > 9).astype(int) * 2)
  assert run(folder) == 0
  expected = {("film.npy", i, ""): {"b_line": blob(i), "pleura": blob(2 + i)} for i in range(4)}
  check(folder, expected | {("a.png", 0, ""): {"pleura": 255 * (blob(0) > 9)}})
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  np.savez(folder / "masks" / "a.npz", b_line=blob(0), rib=blob(1))
  refused(folder, capsys, run(folder), "a.npz holds an array 'rib', which is no class (b_line, ple")
  np.savez(folder / "masks" / "a.npz", np.array([None]))
  refused(folder, capsys, run(folder), "a.npz holds an array of another size than its header says")
  with zipfile.ZipFile(folder / "masks" / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("../../x.npy", b"0" * 1000)
  refused(folder, capsys, run(folder), "a.npz is damaged")


@pytest.mark.parametrize("most", [arrays.MOST, 4 * H * W])
def test_files_are_read_once_where_they_fit(folder, monkeypatch, most):
  for i, name in enumerate(("b_line", "pleura")):
    save(folder / "masks" / f"film_{name}.nii", blob(i, 4))
  read, seen = arrays.read, []
  monkeypatch.setattr(arrays, "read", lambda path, axes: seen.append(path) or read(path, axes))
  monkeypatch.setattr(arrays, "MOST", most)
  assert run(folder) == 0
  check(folder, {("film.npy", i, ""): {"b_line": blob(i), "pleura": blob(1 + i)} for i in range(4)})
  assert len(seen) == 2 if most > 4 * H * W else len(seen) > 2


def test_archives_that_unpack_too_far(folder, capsys, monkeypatch):
  monkeypatch.setattr(arrays, "MOST", 500)
  (folder / "masks").mkdir()
  np.savez_compressed(folder / "masks" / "a.npz", b_line=blob(0))
  refused(folder, capsys, run(folder), "a.npz unfolds to more than")


def test_other_mistakes(folder, capsys, monkeypatch):
  monkeypatch.setattr(logging, "warning", lambda *_: None)
  refused(folder, capsys, run(folder), "masks does not exist or is no folder")
  (folder / "masks").mkdir()
  refused(folder, capsys, run(folder), "masks holds no mask")
  save(folder / "masks" / "a.png", blob(0))
  refused(folder, capsys, run(folder), "a.png names no class (b_line, pleura) in its name or folde")
  save(folder / "masks" / "a.npy", blob(0))
  code = run(folder, classes="b_line")
  refused(folder, capsys, code, "are both of frame 0 of a and b_line; remove one")
  for name, pixels, part in (
    ("film_b_line.png", blob(0), "'film' is a video of 4 frames; say which frame"),
    ("film_b_line.npy", blob(0), "film_b_line.npy has 1 frame(s), but"),
    ("b_line.png", blob(0), "names no picture, only a class"),
    ("a_b_line.png", np.dstack([blob(0)] * 3), "a_b_line.png has pixels of type RGB"),
    ("a_b_line.png", blob(0)[1:], "a_b_line.png is 30 x 19 and its frame 30 x 20"),
    ("a.npy", np.full((H, W), 1.5), "no label from 1 to 2, as 1.5"),
    ("a_b_line.npy", np.full((H, W), np.nan), "not finite"),
    ("a_b_line.npy", np.full((H, W), 7), "holds values that are no confidence"),
    ("a.npy", np.zeros((H, W), "U3"), "holds <U3 [20, 30]"),
    ("a.npy", np.zeros((H, W + 1)), "a.npy is [20, 31], and a.png has 1 frame(s)"),
    ("../masks/gone_b_line.png", blob(0), "'gone' is not in"),
  ):
    shutil.rmtree(folder / "masks")
    save(folder / "masks" / name, pixels)
    refused(folder, capsys, run(folder), part)
