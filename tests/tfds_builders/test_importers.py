import json
import math
import shutil

import numpy as np
import pytest
from absl import logging
from PIL import Image

from lus_jax.media import readers, scan_area
from tfds_builders.importers import __main__ as importers
from tfds_builders.lus_folder import manifest
from tfds_builders.lus_folder.lus_folder import LusFolder, folder_config

SHAPE = (20, 30)
SQUARE = [[2, 3], [2, 7], [9, 7], [9, 3]]


def polygon(points, name="line"):
  return {"class": name, "polygon_xy": points}


@pytest.fixture
def palette(tmp_path):
  indices = {}
  for folder in ("images", "masks"):
    (tmp_path / folder).mkdir()
  for i in range(4):
    stem = f"anna_{i}" if i < 2 else f"bert_{i}"
    indices[stem] = np.zeros(SHAPE, np.uint8)
    indices[stem][2:8, 3:9] = 1
    indices[stem][10:15, 20:30] = 2
    image = np.full((*SHAPE, 3), 40 * i, np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / f"{stem}.png")
    save_indices(tmp_path / "masks" / f"{stem}.png", indices[stem])
  return tmp_path, indices


def save_indices(path, indices):
  mask = Image.fromarray(indices).convert("P")
  mask.putdata(indices.ravel().tolist())  # the conversion may number the colours anew
  mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
  mask.save(path)


def run_palette(path, *more, classes="nerve,vessel"):
  return importers.main(
    ["palette", f"--images={path / 'images'}", f"--masks={path / 'masks'}"]
    + [f"--out={path / 'out'}", f"--classes={classes}", *more]
  )


def run_polygons(path, *more):
  return importers.main(
    ["polygons", f"--frames={path / 'frames'}", f"--polygons={path / 'polygons.json'}"]
    + [f"--out={path / 'out'}", *more]
  )


def check_refused(path, capsys, code, part):
  out, error = capsys.readouterr()
  assert code == 2
  assert out == ""
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not [p for p in path.iterdir() if "out" in p.name]


def test_palette(palette, capsys):
  path, indices = palette
  assert run_palette(path, "--licence=CC BY 4.0", "--thin=nerve") == 0
  printed = capsys.readouterr().out
  assert "0 videos, 4 stills, 4 labelled frames, 4 patients" in printed
  assert "differ in the weight of the background only" in printed
  assert "not independent" in printed
  folder = manifest.read_folder(path / "out")
  assert (folder.name, folder.licence) == ("out", "CC BY 4.0")
  assert (folder.classes, folder.thin) == (("nerve", "vessel"), ("nerve",))
  assert [video.patient for video in folder.videos] == list(indices)
  for label in folder.labels:
    stem = label.video.patient
    original = path / "images" / f"{stem}.png"
    assert label.video.media.path.read_bytes() == original.read_bytes()
    for i, c in enumerate(folder.classes, start=1):
      np.testing.assert_array_equal(readers.read_mask(label.masks[c]), indices[stem] == i)


def test_palette_with_patients_in_the_names(palette, capsys):
  path, _ = palette
  assert run_palette(path, "--patient-pattern=^([a-z]+)_") == 0
  assert "2 patients" in (printed := capsys.readouterr().out)
  assert "not independent" not in printed
  videos = manifest.read_folder(path / "out").videos
  assert [video.patient for video in videos] == ["anna", "anna", "bert", "bert"]


def test_palette_mistakes(palette, capsys):
  path, indices = palette
  check_refused(path, capsys, run_palette(path, classes="nerve"), "anna_0.png has index 2")
  check_refused(path, capsys, run_palette(path, classes="a,a"), "each once")
  check_refused(path, capsys, run_palette(path, classes="a/b,c"), "'a/b'")
  check_refused(path, capsys, run_palette(path, "--thin=rib"), "--thin names 'rib'")
  check_refused(path, capsys, run_palette(path, "--patient-pattern=anna"), "'bert_2'")
  check_refused(path, capsys, run_palette(path, "--patient-pattern=("), "no regular expression")
  check_refused(path, capsys, importers.main(["palette"]), "--out")
  check_refused(path, capsys, run_palette(path / "gone"), "gone/images does not exist")
  masks = path / "masks"
  Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(masks / "bert_3.png")
  check_refused(path, capsys, run_palette(path), "bert_3.png has pixels of type RGB; if its")
  save_indices(masks / "bert_3.png", indices["bert_3"][:, 1:])
  check_refused(path, capsys, run_palette(path), "bert_3.png is 29 x 20 and its image 30 x 20")
  (masks / "bert_3.png").unlink()
  check_refused(path, capsys, run_palette(path), "images/bert_3.png has no partner")


def test_palette_index_that_does_not_count(palette, capsys):
  path, indices = palette
  ignored = np.zeros(SHAPE, bool)
  ignored[6:9, 5:12] = True
  save_indices(path / "masks" / "bert_2.png", np.where(ignored, 255, indices["bert_2"]))
  check_refused(path, capsys, run_palette(path), "bert_2.png has index 255, but --classes names 2")
  check_refused(path, capsys, run_palette(path, "--ignore=2"), "--ignore=2 must be an index above")
  check_refused(path, capsys, run_palette(path, "--ignore=256"), "at most 255")
  assert run_palette(path, "--ignore=255") == 0
  labels = {label.video.patient: label for label in manifest.read_folder(path / "out").labels}
  assert [name for name, label in labels.items() if label.ignore] == ["bert_2"]
  np.testing.assert_array_equal(readers.read_mask(labels["bert_2"].ignore), ignored)
  for i, c in enumerate(("nerve", "vessel"), start=1):
    mask = readers.read_mask(labels["bert_2"].masks[c])
    np.testing.assert_array_equal(mask, (indices["bert_2"] == i) & ~ignored)


def test_a_palette_of_which_nothing_would_be_left(palette, capsys):
  path, indices = palette
  for stem, mask in indices.items():
    save_indices(path / "masks" / f"{stem}.png", np.where(mask == 1, 255, 0).astype(np.uint8))
  part = "masks holds masks of 0 and 255 only, so that --ignore=255 leaves nothing of nerve"
  check_refused(path, capsys, run_palette(path, "--ignore=255", classes="nerve"), part)
  for stem, mask in indices.items():
    save_indices(path / "masks" / f"{stem}.png", np.where(mask == 1, 1, 0).astype(np.uint8))
  assert run_palette(path, classes="nerve,vessel,bone") == 0
  assert "Nobody drew vessel, bone." in capsys.readouterr().out


def test_pictures_that_are_not_read_are_not_left_out(palette, capsys):
  path, indices = palette
  for folder in ("images", "masks"):  # both of one name, so that neither lacks its partner
    Image.fromarray(indices["bert_2"]).save(path / folder / "carl_0.webp")
  check_refused(path, capsys, run_palette(path), "images/carl_0.webp is of a format that is not")


def test_black_and_white_masks_of_one_class(palette, capsys):
  path, indices = palette
  for stem, mask in indices.items():
    Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(
      path / "masks" / f"{stem}.png"
    )
  assert run_palette(path, classes="nerve") == 0
  assert "Masks hold 0 and 255: 255 is taken to be nerve." in capsys.readouterr().out
  for label in manifest.read_folder(path / "out").labels:
    mask = readers.read_mask(label.masks["nerve"])
    np.testing.assert_array_equal(mask, indices[label.video.patient] == 1)
  shutil.rmtree(path / "out")
  # The one that holds 1 may hold a class, or be nearly black.
  save_indices(path / "masks" / "bert_3.png", np.minimum(indices["bert_3"], 1))
  check_refused(path, capsys, run_palette(path, classes="nerve"), "anna_0.png holds 0 and 255 and")
  for stem, mask in indices.items():
    Image.fromarray(np.where(mask == 1, 0, 255).astype(np.uint8)).save(
      path / "masks" / f"{stem}.png"
    )
  assert run_palette(path, classes="nerve") == 0
  assert "More than half of every labelled frame is drawn" in capsys.readouterr().out


def test_pictures_of_other_formats_and_files_that_are_none(palette, capsys):
  path, indices = palette
  for folder, suffix in (("images", ".JPG"), ("masks", ".tif")):
    file = path / folder / "anna_0.png"
    with Image.open(file) as image:
      image.save(file.with_suffix(suffix), {".JPG": "JPEG", ".tif": "TIFF"}[suffix])
    file.unlink()
  (path / "images" / "Thumbs.db").write_bytes(b"")
  (path / "masks" / "notes.txt").write_bytes(b"")
  assert run_palette(path) == 0
  printed = capsys.readouterr().out
  assert "masks: Left out, as they are no pictures: notes.txt." in printed
  assert "Thumbs" not in printed
  videos = {video.patient: video for video in manifest.read_folder(path / "out").videos}
  assert videos["anna_0"].name == "anna_0.JPG"
  original = path / "images" / "anna_0.JPG"
  assert videos["anna_0"].media.path.read_bytes() == original.read_bytes()
  shutil.rmtree(path / "out")
  shutil.copyfile(original, path / "images" / "anna_0.bmp")
  check_refused(path, capsys, run_palette(path), "anna_0.bmp and anna_0.JPG have one name")
  (path / "images" / "anna_0.bmp").unlink()
  Image.fromarray(indices["bert_2"]).save(path / "masks" / "bert_2.jpg")
  (path / "masks" / "bert_2.png").unlink()
  check_refused(path, capsys, run_palette(path), "bert_2.jpg is a JPEG, which changes")
  (path / "masks" / "bert_2.jpg").rename(path / "masks" / "bert_2.png")
  (path / "images" / "bert_2.png").unlink()
  (path / "images" / "bert_2.png").symlink_to(path / "images" / "bert_3.png")
  check_refused(path, capsys, run_palette(path), "bert_3.png is the same file as")


def test_an_existing_folder_is_left_alone(palette, capsys):
  path, _ = palette
  (path / "out").mkdir()
  assert run_palette(path) == 2
  assert "exists already" in capsys.readouterr().err
  assert not list((path / "out").iterdir())


@pytest.fixture
def polygons(tmp_path):
  (tmp_path / "frames").mkdir()
  for i in range(8, 12):
    Image.fromarray(np.full(SHAPE, i, np.uint8)).save(tmp_path / "frames" / f"{i}.png")
  square = [[2, 3], [2, 7], [9, 7], [9, 3]]
  corner = [[25.0, 15.0], [40.0, 15.0], [40.0, 30.0], [25.0, 30.0]]  # leaves the frame
  write_polygons(
    tmp_path,
    {
      "10": [{"class": "line", "polygon_xy": square}, {"class": "line", "polygon_xy": corner}],
      "8": [{"class": "area", "polygon_xy": corner}],
      "11": [],
    },
  )
  return tmp_path


def write_polygons(path, content):
  (path / "polygons.json").write_text(json.dumps(content))


def test_polygons(polygons, capsys, monkeypatch):
  # Nothing to warn of: which frame is meant stands in dataset.json.
  monkeypatch.setattr(logging, "warning", pytest.fail)
  assert run_polygons(polygons, "--patient=anna", "--thin=line") == 0
  printed = capsys.readouterr().out
  assert (
    "1 video, 0 stills, 3 labelled frames, 1 patient" in printed and "split_unit=frame" in printed
  )
  assert "at the picture's border, which they leave: 2 shapes" in printed
  folder = manifest.read_folder(polygons / "out")
  assert (folder.classes, folder.thin) == (("area", "line"), ("line",))
  ((video,), labels) = folder.videos, folder.labels
  assert (video.name, video.patient) == ("frames", "anna")
  assert readers.read(video.media)[:, 0, 0].tolist() == [8, 9, 10, 11]
  assert [label.frame for label in labels] == [0, 2, 3]
  assert [set(label.masks) for label in labels] == [{"area"}, {"line"}, set()]
  expected = np.zeros(SHAPE)
  expected[15:, 25:] = 1
  np.testing.assert_array_equal(readers.read_mask(labels[0].masks["area"]), expected)
  expected[3:8, 2:10] = 1
  np.testing.assert_array_equal(readers.read_mask(labels[1].masks["line"]), expected)


@pytest.mark.parametrize(
  ("content", "part"),
  [
    ({"12": []}, "frame '12' is not in the folder"),
    ({"8": [{"class": "line", "polygon_xy": [[0, 0], [1, 1]]}]}, "fewer than 3 points"),
    ({"8": [{"class": "line"}]}, "does not look like"),
    ([1, 2], "does not look like"),
    ({"8": []}, "holds no polygon"),
    ({"8": [{"class": "a/b", "polygon_xy": [[0, 0], [1, 1], [2, 0]]}]}, "'a/b'"),
    ({"8": [polygon([[0.1, 0.1], [0.9, 0.1], [0.5, 1]])]}, "Multiply x by 30 and y by 20"),
    (
      {"8": [], "10": [polygon([[900, 1], [910, 1], [905, 9]])]},
      "polygon 1 of frame '10' lies out",
    ),
    ({"8": [polygon([[-9, 1], [-5, 1], [-7, 9]])]}, "lies outside of its picture of 30 x 20"),
    ({"8": [polygon([[1, 1], [61, 1], [7, 9]])]}, "leaves its picture of 30 x 20 pixels by far"),
    ({"8": [polygon([[1, 1], [1e38, 1], [7, 9]])]}, "nowhere near the picture"),
    ({"8": [polygon([[1, 1], [10**400, 1], [7, 9]])]}, "nowhere near the picture"),
    ({"8": [polygon([[1, 1], [math.nan, 1], [7, 9]])]}, "NaN is no number"),
    ({"8": [polygon([[1, 1], [math.inf, 1], [7, 9]])]}, "Infinity is no number"),
    ({"8": [polygon([[1, 1], ["5", 1], [7, 9]])]}, "no pair of numbers"),
    ({"8": [polygon([[1, 1], [True, 1], [7, 9]])]}, "no pair of numbers"),
    ({"8": [polygon([[1, 1, 1], [2, 2, 2], [7, 9, 9]])]}, "no pair of numbers"),
    ({"8": [polygon([[1, 1], [4, 4], [7, 7]])]}, "has no area"),
    ({"8": [polygon([5, 6, 7])]}, "no pair of numbers"),
    ({"8": [polygon("square")]}, "does not look like"),
    ({"8": [SQUARE]}, "does not look like"),
    ({"8": [polygon(SQUARE, None)]}, "has the class null, which is no name"),
    ({"8": [polygon(SQUARE, ["b"])]}, "which is no name"),
    ({"8": [polygon(SQUARE, True)]}, "which is no name"),
    ({"8": [polygon(SQUARE, "b"), polygon(SQUARE, "B")]}, "names a class twice"),
    ({"8": {}}, "does not look like"),
    ({"8": ""}, "does not look like"),
    ({"version": "5.0", "shapes": [], "imagePath": "8.png"}, "looks like LabelMe"),
    ({"version": "5.0", "shapes": []}, "looks like LabelMe"),
    ({"images": [], "annotations": [], "categories": []}, "looks like COCO"),
    ({"_via_img_metadata": {}}, "looks like VGG Image Annotator"),
  ],
)
def test_polygon_mistakes(polygons, capsys, content, part):
  write_polygons(polygons, content)
  check_refused(polygons, capsys, run_polygons(polygons), part)


def test_polygon_paths(polygons, capsys):
  (polygons / "polygons.json").write_text("{")
  check_refused(polygons, capsys, run_polygons(polygons), "is not JSON")
  for text, part in (
    ('{"8": [], "8": []}', "'8' stands twice"),
    ("<annotations/>", "is XML (CVAT"),
    ("[" * 9999, "nested too deeply"),
  ):
    (polygons / "polygons.json").write_text(text)
    check_refused(polygons, capsys, run_polygons(polygons), part)
  (polygons / "polygons.json").unlink()
  check_refused(polygons, capsys, run_polygons(polygons), "polygons.json does not exist")
  shutil.rmtree(polygons / "frames")
  check_refused(polygons, capsys, run_polygons(polygons), "frames does not exist")


@pytest.mark.real_data
def test_real_palette_masks(real_data, tmp_path):
  source = real_data / "usgra_seg" / "dataset" / "test"
  out = tmp_path / "usgra"
  _, notes = importers.import_frames(
    "palette",
    images=source / "images",
    masks=source / "masks",
    out=out,
    classes=("nerve", "vessel"),
    licence="CC BY 4.0",
  )
  assert notes[0].startswith("0 videos, 40 stills, 40 labelled frames, 40 patients")
  config = folder_config("frames", 96, 96, directory=out)
  builder = LusFolder(config=config, data_dir=tmp_path / "data")
  builder.download_and_prepare()
  examples = [e for split in builder.as_data_source().values() for e in split]
  assert len(examples) == 40
  areas = {video.name: video.scan_area for video in config.folder.videos}
  for example in examples:
    path = source / "masks" / example["video"].decode()
    with Image.open(path) as mask:
      whole = np.asarray(mask)
    box = areas[path.name] or scan_area.whole(*whole.shape)
    # What lies outside the scan is cut off, and nothing that was drawn.
    indices = scan_area.crop(whole, box)
    assert np.count_nonzero(indices) == np.count_nonzero(whole)
    top, left, bottom, right = example["valid_box"]
    for k in range(2):
      # The area survives the resizing; half a pixel of outline is what bilinear may lose.
      share = (example["confidence"][..., k] / 255).sum() / ((bottom - top) * (right - left))
      assert share == pytest.approx((indices == k + 1).mean(), abs=0.003)


@pytest.mark.real_data
def test_real_polygons(real_data, tmp_path):
  source = real_data / "lus_linear_clip"
  importers.import_frames(
    "polygons",
    frames=source / "frames",
    polygons=source / "polygons.json",
    out=tmp_path / "clip",
    licence="MIT",
    thin=("a_line", "pleural_line"),
  )
  config = folder_config("frames", 528, 153, directory=tmp_path / "clip", split_unit="frame")
  assert sum(len(rows) for rows in config.splits.values()) == 39
  labels = config.folder.labels
  assert sum("a_line" in label.masks for label in labels) == 39
  assert sum("pleural_line" in label.masks for label in labels) == 17
  # Frames keep their number; the lines are brighter than the picture.
  for label in labels:
    with Image.open(source / "frames" / f"{label.frame:03}.png") as frame:
      pixels = np.asarray(frame)
    np.testing.assert_array_equal(readers.read(label.video.media, [label.frame])[0], pixels)
    if "pleural_line" in label.masks:
      assert pixels[readers.read_mask(label.masks["pleural_line"]) > 0].mean() > 1.5 * pixels.mean()
