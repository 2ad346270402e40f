import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.importers import coco
from tfds_builders.lus_folder import manifest
from tfds_builders.multirater_folder import manifest as raters_manifest

H, W = 20, 30
L_SHAPE = [2.5, 3, 12.25, 3, 12.25, 8.5, 7, 8.5, 7, 15, 2.5, 15]
TRIANGLE = [20, 2, 28, 2, 24, 11.5]


def disc(x, y, r):
  ys, xs = np.mgrid[:H, :W]
  return (np.hypot(xs - x, ys - y) <= r).astype(np.uint8)


def filled(*polygons):
  """As COCO's own tools fill parts of one object."""
  found = pycoco.merge(pycoco.frPyObjects([list(map(float, p)) for p in polygons], H, W))
  return pycoco.decode(found)


def compressed(mask):
  found = pycoco.encode(np.asfortranarray(mask))
  return {"size": [H, W], "counts": found["counts"].decode()}


def uncompressed(mask):
  flat = mask.ravel(order="F")
  edges = np.flatnonzero(np.diff(flat)) + 1
  counts = np.diff([0, *edges, flat.size]).tolist()
  return {"size": [H, W], "counts": [0, *counts] if flat[0] else counts}


def content(annotations, names=("a.png", "b.png")):
  return {
    "info": {},
    "images": [
      {"id": 10 + i, "file_name": name, "width": W, "height": H} for i, name in enumerate(names)
    ],
    "annotations": [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)],
    "categories": [
      {"id": 7, "name": "pleura", "supercategory": "lines"},
      {"id": 3, "name": "b_line", "supercategory": "lines"},
    ],
  }


def annotation(segmentation, image=10, category=3, **more):
  return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


def runs(counts, size=(H, W)):
  return annotation({"size": size, "counts": counts})


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "videos").mkdir()
  for i, name in enumerate("ab"):
    Image.fromarray(np.full((H, W), 10 * i, np.uint8)).save(tmp_path / "videos" / f"{name}.png")
  return tmp_path


def run(folder, found, *more, file="coco.json"):
  (folder / file).write_text(json.dumps(found))
  return importers.main(
    ["coco", f"--videos={folder / 'videos'}", "--annotations", str(folder / file)]
    + [f"--out={folder / 'out'}", *more]
  )


def written(folder):
  labels = manifest.read_folder(folder / "out").labels
  return {
    (label.video.name, label.frame, label.annotator): {
      name: np.rint(255 * readers.read_mask(path)).astype(int) for name, path in label.masks.items()
    }
    for label in labels
  }


def refused(folder, capsys, code, part):
  out, error = capsys.readouterr()
  assert (code, out) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not (folder / "out").exists()


def test_polygons_and_run_lengths(folder, capsys):
  crowd = disc(24, 15, 4)
  found = content(
    [
      annotation([L_SHAPE, TRIANGLE]),
      annotation(compressed(disc(9, 9, 6))),
      annotation(uncompressed(crowd), category=7, iscrowd=1),
      annotation(uncompressed(disc(0, 0, 5)), category=7),
    ]
  )
  assert run(folder, found) == 0
  printed = capsys.readouterr().out
  assert "classes pleura, b_line." in printed
  assert "1 image without annotations count as seen and empty" in printed
  assert "1 annotation with iscrowd count as the object" in printed
  masks = written(folder)
  assert set(masks) == {("a.png", 0, ""), ("b.png", 0, "")} and masks["b.png", 0, ""] == {}
  expected = filled(L_SHAPE, TRIANGLE) | disc(9, 9, 6)
  np.testing.assert_array_equal(masks["a.png", 0, ""]["b_line"], 255 * expected)
  np.testing.assert_array_equal(masks["a.png", 0, ""]["pleura"], 255 * (crowd | disc(0, 0, 5)))


def test_crowds_need_not_count(folder):
  found = content([annotation(uncompressed(disc(24, 15, 4)), iscrowd=1)])
  assert run(folder, found, "--crowds=ignore") == 0
  label = next(x for x in manifest.read_folder(folder / "out").labels if x.ignore)
  np.testing.assert_array_equal(readers.read_mask(label.ignore), disc(24, 15, 4))
  assert not label.masks


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_those_of_pycocotools(seed):
  rng = np.random.default_rng(seed)
  mask = (rng.random((67, 130)) < (0.01, 0.5, 0.99, 0, 1)[seed]).astype(np.uint8)
  text = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
  flat = np.concatenate([[0], mask.ravel(order="F")])
  edges = np.flatnonzero(np.diff(flat))
  assert coco.counts_of(text, "x") == np.diff([0, *edges, mask.size]).tolist()


def test_boxes_are_drawn_where_they_are_wanted(folder, capsys):
  found = content([annotation([], bbox=[3, 4, 10, 5]), annotation(None, bbox=None)])
  assert run(folder, found) == 0
  printed = capsys.readouterr().out
  assert "Left out: 1 boxes without outline, which --boxes would draw" in printed
  assert "Left out: 1 annotations without outline or box" in printed
  shutil.rmtree(folder / "out")
  assert run(folder, found, "--boxes") == 0
  expected = np.zeros((H, W))
  expected[4:9, 3:13] = 255
  np.testing.assert_array_equal(written(folder)["a.png", 0, ""]["b_line"], expected)


def test_several_files_are_several_raters(folder, capsys):
  for name, mask in (("anna", disc(9, 9, 6)), ("ben", disc(12, 9, 6))):
    (folder / f"{name}.json").write_text(json.dumps(content([annotation(compressed(mask))])))
  argv = ["coco", f"--videos={folder / 'videos'}", f"--out={folder / 'out'}", "--annotations"]
  assert importers.main([*argv, *(f"{n}={folder / n}.json" for n in ("anna", "ben"))]) == 0
  assert "2 images, 2 raters (anna, ben)" in capsys.readouterr().out
  found = raters_manifest.read_folder(folder / "out")
  assert set(found.raters) == {"anna", "ben"}
  path = folder / "out" / "raters" / "ben" / "b_line" / "a.png"
  np.testing.assert_array_equal(np.asarray(Image.open(path)), 255 * disc(12, 9, 6))
  # Both files list the second image, so that both looked at it.
  assert not np.asarray(Image.open(folder / "out/raters/anna/b_line/b.png")).any()


def test_annotators_in_fields(folder, capsys):
  found = content(
    [
      annotation([L_SHAPE], annotator_id=1),
      annotation([TRIANGLE], attributes={"annotator_id": 2}),
    ]
  )
  assert run(folder, found) == 0
  printed = capsys.readouterr().out
  assert "2 raters (1, 2)" in printed
  assert "Left out: 1 images that nobody drew on" in printed
  for rater, outline in (("1", L_SHAPE), ("2", TRIANGLE)):
    mask = np.asarray(Image.open(folder / "out" / "raters" / rater / "b_line" / "a.png"))
    np.testing.assert_array_equal(mask, 255 * filled(outline))
  shutil.rmtree(folder / "out")
  found["annotations"][1]["attributes"] = {}
  refused(folder, capsys, run(folder, found), "annotation 2 has no 'annotator_id', which others")


def test_roboflow(folder, capsys):
  shutil.rmtree(folder / "videos")
  argv = ["coco", f"--videos={folder / 'videos'}", f"--out={folder / 'out'}", "--annotations"]
  for i, split in enumerate(("train", "valid", "test")):
    place = folder / "videos" / split
    place.mkdir(parents=True)
    name = "clip_1_png.rf.0a1b2c3d.jpg"  # the same in all: told apart by where the file lies
    Image.fromarray(np.full((H, W), 80 * i, np.uint8)).save(place / name)
    found = content([annotation([TRIANGLE])], [name])
    found["categories"].insert(0, {"id": 0, "name": "lines", "supercategory": "none"})
    (place / "_annotations.coco.json").write_text(json.dumps(found))
    argv.append(str(place / "_annotations.coco.json"))
  assert importers.main(argv) == 0
  printed = capsys.readouterr().out
  assert "classes pleura, b_line." in printed
  assert "categories that only group others (lines" in printed
  assert "The split (test, train, validation) is that of the folders" in printed
  videos = manifest.read_folder(folder / "out").videos
  assert {v.name.split("/")[0]: v.split for v in videos} == {
    "train": "train",
    "valid": "validation",
    "test": "test",
  }
  for video in videos:
    assert (
      np.median(readers.read(video.media))
      == {"train": 0, "valid": 80, "test": 160}[video.name.split("/")[0]]
    )
  shutil.rmtree(folder / "out")
  refused(folder, capsys, importers.main([*argv, "--patient-pattern=clip"]), "a patient belongs on")
  assert importers.main([*argv, "--patient-pattern=clip", "--no-splits"]) == 0


@pytest.mark.parametrize("name", ["a_png.rf.0a1b2c3d.jpg", "images/0a1b2c3d-a.png"])
def test_names_before_a_tool_renamed_pictures(folder, name):
  assert run(folder, content([annotation([TRIANGLE])], [name])) == 0
  assert set(written(folder)) == {("a.png", 0, "")}


def test_frames_of_clips(folder, capsys):
  shutil.rmtree(folder / "videos")
  (folder / "videos" / "clip").mkdir(parents=True)
  for i in range(3, 6):
    Image.fromarray(np.full((H, W), i, np.uint8)).save(folder / "videos/clip" / f"{i:06d}.png")
  np.save(folder / "videos" / "film.npy", np.zeros((4, H, W), np.uint8))
  found = content([annotation([L_SHAPE], 11)], ["clip/000003.png", "clip/000005.png"])
  assert run(folder, found, "--folders-are-clips") == 0
  masks = written(folder)
  assert {(name, frame) for name, frame, _ in masks} == {("clip", 0), ("clip", 2)}
  np.testing.assert_array_equal(masks["clip", 2, ""]["b_line"], 255 * filled(L_SHAPE))
  shutil.rmtree(folder / "out")
  found = content([annotation([L_SHAPE], 11)], ["film_2.png", "clip_4.png"])
  pattern = r"--frame-pattern=(.+)_(\d+)"
  assert run(folder, found, "--folders-are-clips", pattern) == 0
  assert {(n, frame) for n, frame, _ in written(folder)} == {("film.npy", 2), ("clip", 1)}
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  found["images"] = [{"id": 11, "file_name": "film.npy"}]
  refused(folder, capsys, run(folder, found), "'film.npy' is a video of 4 frames; say which")


@pytest.mark.parametrize(
  ("change", "part"),
  [
    ({"images": None}, "does not look like COCO's"),
    ({"annotations": [{"id": 1, "image_id": 99, "category_id": 3}]}, "image 99, which is not in"),
    ({"annotations": [{"id": 1, "image_id": 10, "category_id": 9}]}, "of category 9, not in"),
    ({"annotations": [annotation([[1, 2, 3]])]}, "odd number of coordinates"),
    ({"annotations": [annotation([[1, 2, 3, "4", 5, 6]])]}, "no pair of numbers"),
    ({"annotations": [annotation([[1, -(10**400), 3, 4, 5, 60]])]}, "nowhere near"),
    ({"annotations": [annotation([[101, 102, 103, 104, 110, 90]])]}, "lies outside of its pic"),
    ({"annotations": [annotation([[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]])]}, "shares of the picture"),
    ({"annotations": [runs([W * H], [W, H])]}, "run lengths for [30, 20]"),
    ({"annotations": [runs([5])]}, "do not fill 30 x 20"),
    ({"annotations": [runs([2**70])]}, "do not fill 30 x 20"),
    ({"annotations": [runs("oooooooooo0")]}, "are too long"),
    ({"annotations": [runs("p")]}, "no COCO text"),
    ({"annotations": [runs("5o")]}, "no COCO text"),
    ({"annotations": [runs("5", [10**9, 10**9])]}, "run lengths for [10000"),
    ({"annotations": [annotation({"counts": []})]}, "without \"size\""),
    ({"annotations": [annotation("x")]}, "neither a list nor run lengths"),
    ({"categories": [{"id": 3, "name": "b"}, {"id": 4, "name": "b"}]}, "two categories are called"),
    ({"categories": [{"id": 3, "name": None}]}, "which is no name"),
    ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "two images have the id 1"),
    ({"images": [{"id": 10, "file_name": "../c.png"}]}, "'../c.png' is not in"),
    ({"images": [{"id": 10, "file_name": "/etc/passwd"}]}, "'/etc/passwd' is not in"),
    ({"images": [{"id": 10}]}, "has no 'file_name'"),
    ({"images": [{"id": "a\nb"}], "annotations": []}, "image 'a\\nb' has no 'file_name'"),
    ({"annotations": [{"id": "a\nb", "image_id": "c\nd", "category_id": 3}]}, "image 'c\\nd', "),
    ({"images": [{"id": 10, "file_name": "a.png", "width": "1\n", "height": 2}]}, "'1\\n' x 2 "),
    ({"images": [{"id": 10, "file_name": "a.png", "width": 3, "height": 2}]}, "3 x 2 pixels, but"),
    ({"images": [{"id": i, "file_name": "a.png"} for i in (10, 11)]}, "labelled twice"),
  ],
)  # fmt: skip
def test_mistakes(folder, capsys, change, part):
  refused(folder, capsys, run(folder, content([annotation([L_SHAPE])]) | change), part)


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("<annotations/>", "import it with cvat"),
    ('{"version": "5.0", "flags": {}, "shapes": []}', "looks like LabelMe's"),
    ('{"a.png1": {"filename": "a.png", "regions": []}}', "looks like VGG Image Annotator's"),
    ('[{"id": 1, "annotations": [], "data": {}}]', "import it with label_studio"),
    ('{"annotations": []}', "does not look like COCO's"),
    ("[]", "does not look like COCO's"),
  ],
)
def test_files_of_other_tools(folder, capsys, text, part):
  (folder / "x.json").write_text(text)
  argv = ["coco", f"--videos={folder / 'videos'}", f"--annotations={folder / 'x.json'}"]
  refused(folder, capsys, importers.main([*argv, f"--out={folder / 'out'}"]), part)


def test_outlines_without_area_are_counted(folder, capsys):
  found = content([annotation([L_SHAPE, [1, 1, 5, 1], [1, 1, 2, 2, 3, 3]])])
  assert run(folder, found) == 0
  assert "Left out: 1 outlines without area" in capsys.readouterr().out
  np.testing.assert_array_equal(written(folder)["a.png", 0, ""]["b_line"], 255 * filled(L_SHAPE))


@pytest.mark.real_data
def test_real_masks_as_run_lengths(real_data, tmp_path):
  source = real_data / "usgra_seg" / "dataset" / "test"
  images, annotations, expected = [], [], {}
  for i, path in enumerate(sorted((source / "masks").iterdir())[:8]):
    indices = np.asarray(Image.open(path))
    size = {"height": indices.shape[0], "width": indices.shape[1]}
    images.append({"id": i, "file_name": path.name, **size})
    for k in (1, 2):
      mask = (indices == k).astype(np.uint8)
      expected[path.name, k] = 255 * mask
      found = pycoco.encode(np.asfortranarray(mask))
      segmentation = {"size": found["size"], "counts": found["counts"].decode()}
      annotations.append(annotation(segmentation, i, k, id=len(annotations)))
  categories = [{"id": 1, "name": "nerve"}, {"id": 2, "name": "vessel"}]
  (tmp_path / "x.json").write_text(
    json.dumps({"images": images, "annotations": annotations, "categories": categories})
  )
  argv = [f"--videos={source / 'images'}", f"--annotations={tmp_path / 'x.json'}"]
  assert importers.main(["coco", *argv, f"--out={tmp_path / 'out'}"]) == 0
  masks = written(tmp_path)
  assert len(masks) == 8
  for (name, k), mask in expected.items():
    found = masks[name, 0, ""].get(("nerve", "vessel")[k - 1], np.zeros_like(mask))
    np.testing.assert_array_equal(found, mask)
