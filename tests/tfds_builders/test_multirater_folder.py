import csv
import json
import os
import shutil
from unicodedata import normalize

import nibabel
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from lus_jax.data import datasets
from lus_jax.errors import UserError
from lus_jax.splits import SPLITS
from tfds_builders import records
from tfds_builders.multirater_folder import MultiraterFolder, multirater_config

HEIGHT, WIDTH = 24, 32
IMAGES = ("i0", "i1", "i2", "i3")


class Folder:
  """Four images drawn by anna and bert, i3 by cleo too; and what was written."""

  def __init__(self, path):
    self.path = path
    random = np.random.default_rng(0)
    self.images = {
      name: random.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8) for name in IMAGES
    }
    self.masks = {
      (rater, name): random.random((HEIGHT, WIDTH)) < 0.3
      for rater in ("bert", "anna")
      for name in IMAGES
    }
    self.masks["cleo", "i3"] = random.random((HEIGHT, WIDTH)) < 0.3
    for name, pixels in self.images.items():
      save(path / "images" / f"{name}.png", pixels)
    for (rater, name), mask in self.masks.items():
      save(path / "raters" / rater / f"{name}.png", np.where(mask, 255, 0))
    self.dataset = {"name": "tiny", "licence": "none", "classes": ["cell"]}

  def save(self, name, pixels):
    save(self.path / name, pixels)

  def write_patients(self, *rows, header=("image", "patient", "site")):
    with (self.path / "patients.csv").open("w", newline="") as file:
      csv.writer(file).writerows([header, *rows])

  def config(self, height=HEIGHT, width=WIDTH, kind="frames", **options):
    (self.path / "dataset.json").write_text(json.dumps(self.dataset))
    return multirater_config(kind, height, width, directory=self.path, **options)

  def build(self, height=HEIGHT, width=WIDTH, **options):
    data_dir = self.path.parent / "data"
    builder = MultiraterFolder(config=self.config(height, width, **options), data_dir=data_dir)
    builder.download_and_prepare()
    source = builder.as_data_source()
    examples = {e["video"].decode(): e | {"split": s} for s in source for e in source[s]}
    return builder.info.metadata, examples


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.asarray(pixels)
  if path.suffix == ".png":
    kinds = {np.dtype(np.uint16): np.uint16, np.dtype(bool): bool}
    Image.fromarray(pixels.astype(kinds.get(pixels.dtype, np.uint8))).save(path)
  else:
    axes = (1, 0, *range(2, pixels.ndim))
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(axes), np.eye(4)), path)


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "mine")


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def check_refused(folder, *parts, build=False, **options):
  written = sorted(folder.path.parent.rglob("*.array_record*"))
  with pytest.raises(UserError) as error:
    folder.build(**options) if build else folder.config(**options)
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message
  # What is wrong inside a mask is found while it is packed; nothing of that stays behind.
  assert sorted(folder.path.parent.rglob("*.array_record*")) == written


# Round trips.


def test_round_trip_is_exact_at_native_size(folder):
  metadata, examples = folder.build()
  assert list(metadata["raters"]) == list(metadata["persons"]) == ["anna", "bert", "cleo"]
  assert (metadata["name"], metadata["soft"], metadata["split_unit"]) == ("tiny", False, "patient")
  assert "binary" not in metadata and "largest_confidence" not in metadata
  assert set(examples) == set(IMAGES)
  assert {e["split"] for e in examples.values()} == set(SPLITS)
  for name, example in examples.items():
    assert set(example) == {"split", *records.rater_features(HEIGHT, WIDTH, 1, 3)}
    np.testing.assert_array_equal(example["image"][..., 0], folder.images[name])
    assert example["drawn"].tolist() == [True, True, name == "i3"]
    drawn = []
    for r, rater in enumerate(("anna", "bert", "cleo")):
      mask = folder.masks.get((rater, name))
      expected = np.zeros((HEIGHT, WIDTH)) if mask is None else np.where(mask, 255, 0)
      np.testing.assert_array_equal(example["raters"][r, ..., 0], expected)
      drawn += [] if mask is None else [mask]
    share = np.mean(drawn, axis=0)
    np.testing.assert_array_equal(example["confidence"][..., 0], np.rint(255 * share))
    assert example["labelled"].tolist() == [True]
    assert (example["annotator"], example["frame"], example["view"]) == (b"", 0, b"")
    assert example["day"] == -1 and example["patient"] == example["video"]
    assert example["valid_box"].tolist() == [0, 0, HEIGHT, WIDTH]


def test_images_and_masks_are_cropped_to_the_scan_area(folder, warnings_seen):
  header = ("image", "patient", "scan_area")
  rows = [[name, name, "10 3 16 16" * (name != "i1")] for name in IMAGES]
  folder.write_patients(*rows, header=header)
  metadata, examples = folder.build(16, 16)
  for name, example in examples.items():
    if name == "i1":
      assert example["scan_area"].tolist() == [0, 0, HEIGHT, WIDTH]
      continue
    assert example["scan_area"].tolist() == [3, 10, 19, 26]
    np.testing.assert_array_equal(example["image"][..., 0], folder.images[name][3:19, 10:26])
    for r, rater in enumerate(("anna", "bert")):
      mask = 255 * folder.masks[rater, name][3:19, 10:26]
      np.testing.assert_array_equal(example["raters"][r, ..., 0], mask)
    assert example["frame_size"].tolist() == [HEIGHT, WIDTH]
  assert metadata["has_scan_areas"] and "scan_area" not in metadata["images"]["i0"]
  (text,) = [text for text in warnings_seen if "scan area" in text]
  assert "(see patients.csv) and 6 more: " in text  # of two raters of i0, i2, i3, and cleo
  folder.write_patients(*([*row[:2], "10 3 16 99"] for row in rows), header=header)
  check_refused(folder, "patients.csv row 2: ", "y = 102, outside of its frame of 32 x 24")


def test_soft_label_is_the_rounded_mean_of_those_who_drew():
  raters = np.uint8([[[[255]]], [[[0]]], [[[10]]], [[[200]]]])
  assert records.soft_label(raters, [True, True, True, False]).item() == 88
  assert records.soft_label(raters, [True, False, False, False]).item() == 255
  assert records.soft_label(raters, np.ones(4, bool)).dtype == np.uint8


def test_images_and_masks_are_letterboxed_alike(folder):
  half = np.zeros((HEIGHT, WIDTH))
  half[:, :16] = 255
  folder.save("images/i0.png", half)
  folder.save("raters/anna/i0.png", half)
  _, examples = folder.build(64, 64)
  example = examples["i0"]
  assert example["valid_box"].tolist() == [8, 0, 56, 64]
  # The image is interpolated; half of its edge is where the mask's lies.
  half = np.where(example["image"] >= 128, 255, 0)[..., 0]
  np.testing.assert_array_equal(half, example["raters"][0, ..., 0])
  assert (example["raters"][0, 8:56, :31] == 255).all()
  assert not example["raters"][:, :8].any() and not example["raters"][:, 56:].any()


def test_masks_are_shrunk_to_values_that_were_drawn(folder, caplog):
  line = np.zeros((HEIGHT, WIDTH))
  line[:, 6] = 255  # of a 4 x shrink the columns 2, 6, ... are kept
  folder.save("raters/bert/i0.png", line)
  folder.save("raters/cleo/i0.png", np.roll(line, 1, axis=1))
  _, examples = folder.build(HEIGHT // 4, WIDTH // 4)
  assert examples["i0"]["raters"][1, 0, :, 0].tolist() == [0, 255, 0, 0, 0, 0, 0, 0]
  assert not examples["i0"]["raters"][2].any()
  (text,) = [text for text in caplog.messages if "nothing of it is left" in text]
  assert "raters/cleo/i0.png (see patients.csv): " in text


def test_black_objects(folder):
  folder.dataset["polarity"] = "black"
  for (rater, name), mask in folder.masks.items():
    folder.save(f"raters/{rater}/{name}.png", np.where(mask, 0, 255))
  _, examples = folder.build(48, 40)
  top, _, bottom, _ = examples["i3"]["valid_box"]
  assert 0 < top < bottom < 48
  # The padding is background, whatever the polarity.
  assert not examples["i3"]["raters"][:, :top].any()
  folder.dataset["polarity"] = "white"
  _, inverted = folder.build(48, 40)
  inside = (slice(None), slice(top, bottom))
  np.testing.assert_allclose(
    examples["i3"]["raters"][inside], 255.0 - inverted["i3"]["raters"][inside], atol=1
  )


def test_classes_in_folders(folder):
  folder.dataset |= {"classes": ["cell", "edge"], "thin": ["edge"]}
  for rater in ("anna", "bert", "cleo"):
    for path in (folder.path / "raters" / rater).glob("*.png"):
      (path.parent / "edge").mkdir(exist_ok=True)
      path.rename(path.parent / "edge" / path.name)
  both = np.eye(HEIGHT, WIDTH, dtype=bool)
  folder.save("raters/anna/cell/i0.png", both)
  metadata, examples = folder.build()
  assert list(metadata["classes"]) == ["cell", "edge"] and list(metadata["thin"]) == ["edge"]
  raters = examples["i0"]["raters"]
  np.testing.assert_array_equal(raters[0, ..., 0] == 255, both)
  np.testing.assert_array_equal(raters[0, ..., 1] == 255, folder.masks["anna", "i0"])
  # Bert drew the image, so that a class he has no file of is absent.
  assert not raters[1, ..., 0].any() and raters[1, ..., 1].any()
  assert examples["i0"]["labelled"].all()


@pytest.mark.parametrize("palette", [False, True])
def test_label_indices(folder, palette):
  folder.dataset |= {"classes": ["edge", "cell"], "labels": {"cell": 1, "edge": 7}}
  for (rater, name), mask in folder.masks.items():
    indices = np.uint8(mask)
    indices[:4] *= 7
    folder.save(f"raters/{rater}/{name}.png", indices)
    if palette:
      with Image.open(folder.path / "raters" / rater / f"{name}.png") as grey:
        image = Image.fromarray(np.asarray(grey))
      image.putpalette([0, 0, 0, 200, 10, 10] + [9] * 762)
      image.save(folder.path / "raters" / rater / f"{name}.png")
      assert image.mode == "P"
  _, examples = folder.build()
  edge, cell = np.moveaxis(examples["i1"]["raters"][1] == 255, -1, 0)
  mask = folder.masks["bert", "i1"]
  np.testing.assert_array_equal(edge[:4], mask[:4])
  np.testing.assert_array_equal(cell[4:], mask[4:])
  assert not edge[4:].any() and not cell[:4].any()
  folder.save("raters/bert/i1.png", np.full((HEIGHT, WIDTH), 3))
  check_refused(folder, "bert/i1.png holds the value 3", "knows 1, 7", build=True, height=30)


def test_soft_masks_of_8_and_16_bits(folder):
  folder.dataset["soft"] = True
  random = np.random.default_rng(1)
  deep = random.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
  folder.save("raters/anna/i0.png", deep)
  flat = random.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
  folder.save("raters/bert/i0.png", flat)
  metadata, examples = folder.build()
  assert metadata["soft"] is True
  raters = examples["i0"]["raters"][..., 0]
  np.testing.assert_array_equal(raters[0], np.rint(deep / 257))
  np.testing.assert_array_equal(raters[1], flat)
  expected = np.rint((np.rint(deep / 257) + flat) / 2)
  np.testing.assert_array_equal(examples["i0"]["confidence"][..., 0], expected)


def test_1_bit_masks(folder):
  folder.save("raters/anna/i0.png", folder.masks["anna", "i0"])
  _, examples = folder.build()
  stored = examples["i0"]["raters"][0, ..., 0]
  np.testing.assert_array_equal(stored == 255, folder.masks["anna", "i0"])


def test_nifti_lies_as_png_does(folder):
  (folder.path / "images" / "i0.png").unlink()
  (folder.path / "raters" / "anna" / "i0.png").unlink()
  folder.save("images/i0.nii.gz", folder.images["i0"])
  folder.save("raters/anna/i0.nii.gz", np.uint8(folder.masks["anna", "i0"])[..., None])
  folder.dataset["polarity"] = "white"
  _, examples = folder.build()
  example = examples["i0"]
  np.testing.assert_array_equal(example["image"][..., 0], folder.images["i0"])
  np.testing.assert_array_equal(
    example["raters"][:2, ..., 0] == 255, [folder.masks[r, "i0"] for r in ("anna", "bert")]
  )


def test_nifti_values_without_a_scale_are_windowed(folder):
  (folder.path / "images" / "i0.png").unlink()
  ramp = np.linspace(-1000, 3000, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
  ramp[3, 4] = 1e9  # one outlier does not darken the rest
  folder.save("images/i0.nii", ramp)
  _, examples = folder.build()
  stored = examples["i0"]["image"][..., 0]
  assert stored[0, 0] == 0 and stored[-1, -1] == stored[3, 4] == 255
  assert stored[HEIGHT // 2, 0] == pytest.approx(128, abs=2)
  ramp[0, 0] = np.nan
  folder.save("images/i0.nii", ramp)
  check_refused(folder, "images/i0.nii holds values that are not finite", build=True, height=30)


def test_soft_nifti(folder):
  folder.dataset["soft"] = True
  confidence = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
  for rater, values in (("anna", confidence), ("bert", np.rint(255 * confidence).astype(np.uint8))):
    (folder.path / "raters" / rater / "i0.png").unlink()
    folder.save(f"raters/{rater}/i0.nii.gz", values)
  _, examples = folder.build()
  for r in range(2):
    np.testing.assert_array_equal(examples["i0"]["raters"][r, ..., 0], np.rint(255 * confidence))
  folder.save("raters/anna/i0.nii.gz", 2 * confidence)
  check_refused(folder, "anna/i0.nii.gz holds values that are no confidence", build=True, height=30)


# Patients, persons and splits.


def test_patients_are_split_whole_and_their_table_is_carried_along(folder):
  patients = {"i0": "p", "i1": "q", "i2": "p", "i3": "r"}
  folder.write_patients(*((name, p, f"site of {name}") for name, p in patients.items()))
  metadata, examples = folder.build(seed=2)
  assert {name: e["patient"].decode() for name, e in examples.items()} == patients
  assert examples["i0"]["split"] == examples["i2"]["split"]
  assert metadata["patients_are_unknown"] is False
  assert metadata["images"]["i3"] == {"site": "site of i3"}
  split = examples["i0"]["split"]
  assert metadata["counts"][split] == {"patients": 1, "frames": 2}
  folder.dataset["patients"] = "unknown"
  assert folder.config().folder.patients_are_unknown


def test_without_patients_every_image_stands_for_one(folder):
  metadata, _ = folder.build()
  assert metadata["patients_are_unknown"] is True and not metadata["images"]


def test_split_by_image_warns(folder, warnings_seen):
  folder.write_patients(*((name, "p", "") for name in IMAGES))
  check_refused(folder, "1 patient(s) cannot fill the splits")
  metadata, examples = folder.build(split_unit="frame")
  assert metadata["split_unit"] == "frame" and len(examples) == 4
  assert {e["split"] for e in examples.values()} == set(SPLITS)
  assert "not an independent test" in warnings_seen[0]


def test_persons_with_several_tools(folder):
  folder.dataset["persons"] = {"anna": "ann", "bert": "ann"}
  metadata, _ = folder.build()
  assert list(metadata["persons"]) == ["ann", "ann", "cleo"]


def test_changed_data_are_built_anew(folder):
  name = folder.config().name
  assert folder.config().name == name != folder.config(seed=1).name
  mask = folder.path / "raters" / "cleo" / "i3.png"
  whole = mask.read_bytes()
  folder.save("raters/cleo/i3.png", np.where(folder.masks["cleo", "i3"], 0, 255))
  os.utime(mask, (1.6e9, 1.6e9))
  assert folder.config().name != name
  mask.write_bytes(whole)
  assert folder.config().name == name
  folder.dataset["persons"] = {"anna": "ann"}
  assert folder.config().name != name


# Bad input: each is one line, and nothing is written.


@pytest.mark.parametrize(
  ("options", "part"),
  [
    ({"kind": "videos"}, "holds drawn images, no videos"),
    ({"split_unit": "image"}, "split_unit 'image' is unknown"),
    ({"width": 0}, "is empty"),
  ],
)
def test_bad_arguments(folder, options, part):
  check_refused(folder, part, **options)


@pytest.mark.parametrize(
  ("dataset", "parts"),
  [
    ({"polarty": "black"}, ("key 'polarty' is not known", "'polarity'")),
    ({"Persons": {}}, ("'Persons'", "'persons'")),
    ({"label": {}}, ("'label'", "'labels'")),
    ({"missing_class": "unlabelled"}, ("'missing_class' is of lus_folder",)),
    ({"frame_numbers": "from_0"}, ("'frame_numbers' is of lus_folder",)),
    ({"polarity": "grey"}, ("'polarity' is 'grey'", "white, black")),
    ({"soft": "yes"}, ("'soft' is 'yes'",)),
    ({"persons": {"dora": "d"}}, ("'persons' names 'dora'", "anna, bert, cleo")),
    ({"persons": {"anna": 1}}, ("'persons' must give each rater a person",)),
    ({"persons": ["anna"]}, ("'persons' must give each rater a person",)),
    ({"labels": {"cell": True}}, ("'labels' must give each class an index from 1",)),
    ({"labels": {"cell": 0}}, ("'labels' must give each class an index from 1",)),
    ({"labels": {"cell": -1}}, ("an index of its own from 1",)),
    ({"labels": {"nucleus": 1}}, ("'labels' must name the same classes",)),
    (
      {"classes": ["a", "b"], "labels": {"a": 1, "b": 1}},
      ("'labels' must give each class an index of its own",),
    ),
    ({"labels": {"cell": 1}, "soft": True}, ("label indices have no 'soft'",)),
    ({"labels": {"cell": 1}, "polarity": "black"}, ("label indices have no 'polarity'",)),
    ({"classes": []}, ("'classes' is empty",)),
    ({"labels": {"cell": 2**40}}, ("an index of its own from 1 to 65535",)),
    ({"labels": {"cell": 1}, "confidence_maximum": 1}, ("have no 'confidence_maximum'",)),
    ({"nifti_axes": "zx"}, ("'nifti_axes' is 'zx'; write one of xy, yx",)),
    ({"intensity_window": [1, 1]}, ("'intensity_window' is [1, 1]; write two rising numbers",)),
    ({"intensity_window": 5}, ("'intensity_window' is 5",)),
    ({"confidence_maximum": True}, ("'confidence_maximum' is true",)),
  ],
)
def test_bad_dataset_json(folder, dataset, parts):
  folder.dataset |= dataset
  check_refused(folder, "dataset.json: ", *parts)


@pytest.mark.parametrize(
  ("rows", "parts"),
  [
    ([("i9", "p", "")], ("row 6", "no image 'i9'")),
    ([("i0", "p", "")], ("row 6", "the same image as row 2")),
    ([("", "p", "")], ("row 6", "image is empty")),
  ],
)
def test_bad_patients_row(folder, rows, parts):
  folder.write_patients(*((name, name, "") for name in IMAGES), *rows)
  check_refused(folder, "patients.csv", *parts)


def test_bad_patients_table(folder):
  folder.write_patients(*((name, name, "") for name in IMAGES[1:]))
  check_refused(folder, "patients.csv has no row for the image 'i0'")
  columns = ("image", "patient", "split")
  splits = ("train", "train", "validation", "test")
  rows = [(name, name, split) for name, split in zip(IMAGES, splits, strict=True)]
  folder.write_patients(*rows[:3], ("i3", "i3", ""), header=columns)
  check_refused(folder, "patients.csv row 5: split is empty in some rows only")
  folder.write_patients(("i0", "i0", ""), *rows[1:], header=columns)
  check_refused(folder, "patients.csv row 3: split is empty in some rows only")
  folder.write_patients(*rows[:3], ("i3", "i0", "test"), header=columns)
  check_refused(folder, "patients.csv row 5: split 'test' is not that of the patient's other")
  folder.write_patients(*rows[:3], ("i3", "i3", "tset"), header=columns)
  check_refused(folder, "patients.csv row 5: unknown split 'tset'")
  folder.write_patients(*rows[:3], ("i3", "i3", "train"), header=columns)
  check_refused(folder, "patients.csv: no patient is in the split 'test'")
  folder.write_patients(*rows, header=columns)
  _, examples = folder.build()
  assert tuple(examples[name]["split"] for name in IMAGES) == splits
  with pytest.raises(UserError, match="fills the column split"):
    folder.config(split_unit="frame")
  folder.write_patients(("i0", "", ""))
  check_refused(folder, "patients.csv row 2: patient is empty")
  folder.write_patients(("i0", "p"), header=("image", "person"))
  check_refused(folder, "patients.csv row 1: the required column 'patient' is missing")


@pytest.mark.parametrize(
  ("name", "pixels", "parts"),
  [
    ("anna/i0.png", np.zeros((HEIGHT, WIDTH + 1)), ("anna/i0.png is 33 x 24", "its image 32 x 24")),
    ("anna/i0.png", np.zeros((HEIGHT, WIDTH, 3)), ("anna/i0.png has pixels of type RGB",)),
    ("anna/i9.png", np.zeros((HEIGHT, WIDTH)), ("anna/i9.png: there is no image 'i9'",)),
    ("anna/cel/i0.png", np.zeros((HEIGHT, WIDTH)), ("raters/anna/cel is the folder of no class",)),
    (
      "anna/cell/i0.png",
      np.zeros((HEIGHT, WIDTH)),
      ("anna/i0.png and i0.png are the same mask",),
    ),
    (
      "anna/i0.nii.gz",
      np.zeros((HEIGHT, WIDTH)),
      ("anna/i0.png and i0.nii.gz are the same mask",),
    ),
    ("Anna/i0.png", np.zeros((HEIGHT, WIDTH)), ("has the name of the rater",)),
    ("anna.old/i0.png", np.zeros((HEIGHT, WIDTH)), ("anna.old has the name of the rater anna",)),
    ("anna.png", np.zeros((HEIGHT, WIDTH)), ("anna.png has the name of the rater anna",)),
    ("i0.png", np.zeros((HEIGHT, WIDTH)), ("raters/i0.png is in no rater's folder",)),
    ("../images/i0.nii", np.zeros((HEIGHT, WIDTH)), ("i0.png and i0.nii are the same image",)),
    ("../images/i9.png", np.zeros((HEIGHT, WIDTH)), ("images/i9.png was drawn by no rater",)),
  ],
)
def test_bad_files(folder, name, pixels, parts):
  folder.save(f"raters/{name}", pixels)
  check_refused(folder, *parts)


def test_masks_of_several_classes_need_folders(folder):
  folder.dataset["classes"] = ["cell", "edge"]
  check_refused(folder, "raters/anna/i0.png is of no class", "(cell, edge)")
  folder.dataset["labels"] = {"cell": 1, "edge": 2}
  (folder.path / "raters" / "anna" / "cell").mkdir()
  check_refused(folder, "raters/anna/cell is a folder, but with 'labels'")


def test_fewer_than_two_raters(folder):
  for rater in ("bert", "cleo"):
    for path in (folder.path / "raters" / rater).iterdir():
      path.unlink()
    (folder.path / "raters" / rater).rmdir()
  check_refused(folder, "raters has fewer than two raters' folders (anna)")


def test_missing_parts(folder):
  (folder.path / "raters" / "dora").mkdir()
  check_refused(folder, "raters/dora holds no mask")
  mask = folder.path / "raters" / "dora" / "i0.webp"
  mask.write_bytes(b"")
  check_refused(folder, "dora/i0.webp is neither NIfTI nor a picture that is read")
  mask.rename(mask.with_name("i0.png"))
  check_refused(folder, "dora/i0.png is empty")
  (folder.path / "raters").rename(folder.path / "rater")
  check_refused(folder, "raters does not exist")
  (folder.path / "images").rename(folder.path / "image")
  check_refused(folder, "images does not exist")
  (folder.path / "images").mkdir()
  check_refused(folder, "images holds no image")


@pytest.mark.parametrize(
  ("name", "pixels", "expected"),
  [
    ("i0.png", np.tri(HEIGHT, WIDTH), "0 and the maximum"),
    ("i0.png", np.uint16(255 * np.tri(HEIGHT, WIDTH)), "0 and the maximum"),
    ("i0.nii.gz", np.uint8(255 * np.tri(HEIGHT, WIDTH)), "0 and 1"),
  ],
)
def test_more_values_than_a_binary_mask_may_hold(folder, name, pixels, expected):
  (folder.path / "raters" / "anna" / "i0.png").unlink()
  folder.save(f"raters/anna/{name}", pixels)
  wrong = int(np.tri(HEIGHT, WIDTH).sum())
  check_refused(folder, f"anna/{name}: {wrong} of 768 pixels", f"hold {expected}", build=True)


@pytest.mark.parametrize("name", ["images/i0.nii.gz", "raters/anna/i0.nii.gz"])
def test_nifti_with_a_third_axis(folder, name):
  (folder.path / name.replace(".nii.gz", ".png")).unlink()
  folder.save(name, np.zeros((HEIGHT, WIDTH, 2), np.uint8))
  check_refused(folder, f"{name} has 32 x 24 x 2 values")


def test_damaged_nifti(folder):
  (folder.path / "raters" / "anna" / "i0.png").unlink()
  folder.save("raters/anna/i0.nii.gz", np.uint8(folder.masks["anna", "i0"]))
  path = folder.path / "raters" / "anna" / "i0.nii.gz"
  whole = path.read_bytes()
  path.write_bytes(whole[:-40])
  check_refused(folder, "anna/i0.nii.gz is missing, damaged or no NIfTI", build=True)
  path.write_bytes(b"text")
  check_refused(folder, "anna/i0.nii.gz is missing, damaged or no NIfTI")


def test_a_polarity_that_is_probably_wrong_is_warned_of(folder, warnings_seen):
  folder.dataset["polarity"] = "black"
  folder.build()
  (warning,) = [text for text in warnings_seen if "polarity" in text]
  assert "more than half of the pixels are object in every mask" in warning
  assert '"polarity": "white"' in warning
  warnings_seen.clear()
  # One mask with a small object is enough to trust the rest.
  folder.save("raters/cleo/i3.png", np.where(folder.masks["cleo", "i3"], 0, 255))
  folder.build()
  folder.dataset["polarity"] = "white"
  folder.build()
  assert not [text for text in warnings_seen if "polarity" in text]


# Files and names of the field.


def test_what_does_not_count_is_not_known_here(folder):
  for name in ("raters/anna/_ignore.png", "images/_ignore.png", "raters/_ignore/i0.png"):
    path = folder.path / name
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder.path / "raters" / "anna" / "i0.png", path)
    check_refused(folder, "_ignore", "pixels that do not count (_ignore) are of lus_folder")
    path.unlink()


def test_masks_of_other_formats_are_read_and_others_are_named(folder, warnings_seen):
  blob = np.zeros((HEIGHT, WIDTH), np.uint8)
  blob[4:15, 6:22] = 255
  for name, suffix in (("i0", ".jpg"), ("i1", ".tif")):
    path = folder.path / "raters" / "bert" / f"{name}.png"
    path.unlink()
    Image.fromarray(blob).save(path.with_suffix(suffix))
  _, examples = folder.build()
  for name in ("i0", "i1"):
    assert examples[name]["drawn"].tolist() == [True, True, False]
    np.testing.assert_array_equal(examples[name]["raters"][1, ..., 0], blob)
  warnings_seen.clear()
  for name in ("raters/bert/notes.txt", "raters/README", "images/i9.dcm"):
    (folder.path / name).write_bytes(b"")
  folder.config()
  (text,) = [text for text in warnings_seen if "Left out" in text]
  for name in ("raters/bert/notes.txt", "raters/README", "images/i9.dcm"):
    assert name in text
  # What may be a mask is never left out.
  for name in ("i2.nrrd", "i2.npy"):
    path = folder.path / "raters" / "anna" / name
    path.write_bytes(b"")
    check_refused(folder, f"anna/{name} is neither NIfTI nor a picture that is read")
    path.unlink()


def test_names_composed_in_tables_and_decomposed_on_disk_are_the_same(folder):
  nfc, nfd = normalize("NFC", "Zoë"), normalize("NFD", "Zoë")
  (folder.path / "raters" / "anna").rename(folder.path / "raters" / nfd)
  for path in sorted(folder.path.rglob("i0.png")):
    path.rename(path.with_name(f"{nfd}.png"))
  folder.dataset["persons"] = {nfc: "zoe", "bert": "bert"}
  folder.write_patients((nfc, nfc, ""), ("i1", nfd, ""), ("i2", "q", ""), ("i3", "r", ""))
  found = folder.config().folder
  assert found.raters == (nfc, "bert", "cleo") and found.persons == ("zoe", "bert", "cleo")
  patients = {image.name: image.patient for image in found.images}
  assert patients == {nfc: nfc, "i1": nfc, "i2": "q", "i3": "r"}
  assert all({nfc, "bert"} <= set(image.masks) for image in found.images)


def test_one_person_or_rater_spelled_in_two_ways_is_named(folder, warnings_seen):
  (folder.path / "raters" / "cleo").rename(folder.path / "raters" / "anna ")
  (folder.path / "raters" / "bert").rename(folder.path / "raters" / "rater 01")
  (folder.path / "raters" / "anna").rename(folder.path / "raters" / "rater_1")
  folder.write_patients(*((f"i{i}", p, "") for i, p in enumerate(("7", "007", "x", "y"))))
  folder.config()
  assert any("raters 'rater 01' and 'rater_1' look like one name" in t for t in warnings_seen)
  assert any("patients.csv: the patients '7' and '007'" in text for text in warnings_seen)


def test_one_image_under_two_names(folder):
  (folder.path / "images" / "i4.png").hardlink_to(folder.path / "images" / "i0.png")
  check_refused(folder, "images/i4.png is the same file as", "images/i0.png")


def test_a_rater_who_drew_nothing_and_a_class_that_nobody_drew_are_named(folder, warnings_seen):
  for (rater, name), mask in folder.masks.items():
    (folder.path / "raters" / rater / f"{name}.png").unlink()
    folder.save(f"raters/{rater}/cell/{name}.png", np.where(mask & (rater != "bert"), 255, 0))
  folder.dataset["classes"] = ["cell", "edge"]
  folder.build()
  (never,) = [text for text in warnings_seen if "no mask shows" in text]
  assert "the class 'edge'" in never
  (empty,) = [text for text in warnings_seen if "are empty" in text]
  assert "all 4 mask(s) of the rater 'bert' are empty" in empty


def test_which_axis_of_nifti_is_the_first(folder, warnings_seen):
  square = np.zeros((24, 24), np.uint8)
  square[2:5, 10:20] = 1
  for path in folder.path.rglob("*.png"):
    save(path, np.zeros((24, 24)))
  (folder.path / "raters" / "anna" / "i0.png").unlink()
  # Rows first, as arrays are saved by mistake.
  path = folder.path / "raters" / "anna" / "i0.nii.gz"
  nibabel.save(nibabel.Nifti1Image(square, np.eye(4)), path)
  _, examples = folder.build(24, 24)
  np.testing.assert_array_equal(examples["i0"]["raters"][0, ..., 0] > 0, square.T)
  assert any("nothing says which axis is x" in text for text in warnings_seen)
  warnings_seen.clear()
  folder.dataset["nifti_axes"] = "yx"
  _, examples = folder.build(24, 24)
  np.testing.assert_array_equal(examples["i0"]["raters"][0, ..., 0] > 0, square)
  assert not any("nothing says" in text for text in warnings_seen)


def test_what_the_user_says_of_values(folder):
  folder.dataset |= {"confidence_maximum": 1, "intensity_window": [0, 50]}
  for (rater, name), mask in folder.masks.items():
    folder.save(f"raters/{rater}/{name}.png", np.uint8(mask))
  (folder.path / "images" / "i0.png").unlink()
  ramp = np.linspace(0, 100, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
  folder.save("images/i0.nii.gz", ramp)
  _, examples = folder.build()
  expected = np.where(folder.masks["bert", "i0"], 255, 0)
  np.testing.assert_array_equal(examples["i0"]["raters"][1, ..., 0], expected)
  expected = np.minimum(np.rint(ramp * 5.1), 255)
  np.testing.assert_allclose(examples["i0"]["image"][..., 0], expected, atol=1)


# From the config of a run.


def run_config(folder, **values):
  fields = {"name": "multirater_folder", "dir": str(folder.path), "image_size": 32}
  fields |= {"split_unit": "patient", "split_seed": 0}
  fields |= {"prepared_dir": str(folder.path.parent / "prepared")}
  return ConfigDict(fields | values)


def test_several_processes_prepare_the_same_bytes(folder, tmp_path):
  config, found = folder.config(), []
  for n in (1, 2):
    builder = MultiraterFolder(config=config, data_dir=tmp_path / str(n), num_processes=n)
    builder.download_and_prepare()
    found.append({path.name: path.read_bytes() for path in builder.data_path.iterdir()})
  assert found[0] == found[1] and len(found[0]) > 4


def test_open_dataset(folder):
  folder.dataset["persons"] = {"anna": "ann", "bert": "ann"}
  folder.config()
  dataset = datasets.open_dataset(run_config(folder), "frames")
  assert (dataset.name, dataset.classes) == ("tiny", ("cell",))
  assert dataset.raters == ("anna", "bert", "cleo")
  assert dataset.persons == ("ann", "ann", "cleo")
  assert any("not an independent test" in note for note in dataset.notes)
  assert any("share of its raters (3, of 2 persons)" in note for note in dataset.notes)
  example = dataset.splits["test"].only("raters", "drawn", "valid_box")[0]
  assert example["raters"].shape == (3, 32, 32, 1)
  with pytest.raises(UserError, match="config.data.dir is empty"):
    datasets.open_dataset(run_config(folder, dir=""), "frames")
  with pytest.raises(UserError, match="no videos"):
    datasets.open_dataset(run_config(folder), "videos")


def test_a_mask_that_fails_while_it_is_packed_leaves_nothing(folder):
  folder.config()
  folder.save("raters/anna/i0.png", np.ones((HEIGHT, WIDTH)))
  with pytest.raises(UserError, match="anna/i0.png: 768 of 768 pixels"):
    datasets.open_dataset(run_config(folder), "frames")
  assert not list((folder.path.parent / "prepared").rglob("*"))
