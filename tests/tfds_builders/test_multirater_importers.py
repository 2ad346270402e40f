import json
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.multirater_folder import MultiraterFolder, manifest, multirater_config, pictures

SHAPE = (20, 30)
RATERS = ("P1_pen", "P1_brush", "P2_pen")


@pytest.fixture
def folders(tmp_path):
  random = np.random.default_rng(0)
  masks = {}
  (tmp_path / "images").mkdir()
  for i in range(3):
    image = random.integers(0, 256, SHAPE).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / f"B{i}.png")
    for rater in RATERS:
      masks[rater, f"B{i}"] = random.random(SHAPE) < 0.2
  for (rater, image), mask in masks.items():
    path = tmp_path / "raters" / rater / f"{'Seg' if image == 'B1' else 'seg'}_{image}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    black = Image.fromarray(~mask)  # the object is black
    black.convert({"P1_pen": "1", "P1_brush": "L", "P2_pen": "RGB"}[rater]).save(path)
  return tmp_path, masks


def run_folders(path, *more, pattern="^[Ss]eg_(B[0-9]+)$"):
  return importers.main(
    ["folders", f"--images={path / 'images'}", f"--raters={path / 'raters'}"]
    + [f"--out={path / 'out'}", "--class-name=cell", f"--mask-pattern={pattern}"]
    + ["--polarity=black", *more]
  )


def run_qubiq(path, *more, task="task01"):
  return importers.main(
    ["qubiq", f"--cases={path / 'cases'}", f"--task={task}", f"--out={path / 'out'}"]
    + ["--class-name=kidney", *more]
  )


def check_refused(path, capsys, code, part):
  out, error = capsys.readouterr()
  assert code == 2
  assert out == ""
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not [p for p in path.iterdir() if "out" in p.name]


def save_mask(path, name, pixels):
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path / "raters" / name)


def test_masks_of_formats_that_are_not_read_are_not_left_out(folders, capsys):
  path, masks = folders
  folder = path / "raters" / "P1_pen"
  (folder / "seg_B0.png").unlink()
  for suffix in (".gif", ".webp"):
    Image.fromarray(masks["P1_pen", "B0"]).convert("L").save(folder / f"seg_B0{suffix}")
    part = f"P1_pen/seg_B0{suffix} is of a format that is not read"
    check_refused(path, capsys, run_folders(path), part)
    (folder / f"seg_B0{suffix}").unlink()
  (folder / "seg_B0.xyz").write_bytes(b"x")
  part = "seg_B0.xyz is no picture that is read, but has the name of a mask of 'B0'"
  check_refused(path, capsys, run_folders(path), part)
  (folder / "seg_B0.xyz").rename(folder / "notes.txt")
  assert run_folders(path) == 0
  assert "P1_pen: Left out, as they are no pictures: notes.txt." in capsys.readouterr().out


def test_folders(folders, capsys):
  path, masks = folders
  assert run_folders(path, "--name=mine", "--licence=BSD", r"--person-pattern=^(P\d)_") == 0
  printed = capsys.readouterr().out
  assert "3 images, 3 raters (2 persons), class cell." in printed
  assert "not independent" in printed and "cut at half" not in printed
  assert "--config.data.name=multirater_folder" in printed
  folder = manifest.read_folder(path / "out")
  assert (folder.name, folder.licence, folder.classes) == ("mine", "BSD", ("cell",))
  assert dict(zip(folder.raters, folder.persons, strict=True)) == {
    "P1_brush": "P1",
    "P1_pen": "P1",
    "P2_pen": "P2",
  }
  for image in folder.images:
    original = path / "images" / f"{image.name}.png"
    assert image.path.read_bytes() == original.read_bytes()
    for rater in RATERS:
      with Image.open(image.masks[rater]["cell"]) as written:
        assert written.mode == "L"
      written = readers.read_mask(image.masks[rater]["cell"])
      np.testing.assert_array_equal(written, masks[rater, image.name])


def test_folders_without_options(folders, capsys):
  path, masks = folders
  for file in (path / "raters").rglob("*.png"):
    file.rename(file.with_name(file.name[4:]))
  (path / "raters" / "P1_pen" / "B2.png").unlink()
  code = importers.main(
    ["folders", f"--images={path / 'images'}", f"--raters={path / 'raters'}"]
    + [f"--out={path / 'out'}", "--class-name=cell"]
  )
  assert code == 0 and "3 raters, class" in capsys.readouterr().out
  folder = manifest.read_folder(path / "out")
  assert (folder.name, folder.licence) == ("out", "unknown")
  assert folder.persons == folder.raters
  assert set(folder.images[2].masks) == {"P1_brush", "P2_pen"}
  written = readers.read_mask(folder.images[0].masks["P2_pen"]["cell"])
  np.testing.assert_array_equal(written, ~masks["P2_pen", "B0"])


def test_grey_pixels_are_cut_at_half_and_named(folders, capsys):
  path, masks = folders
  grey = np.where(masks["P1_pen", "B0"], 0, 255)
  grey[0, :3] = (24, 127, 128)
  save_mask(path, "P1_pen/seg_B0.png", grey)
  assert run_folders(path) == 0
  assert "cut at half: 3 in P1_pen/seg_B0.png." in capsys.readouterr().out
  written = readers.read_mask(path / "out" / "raters" / "P1_pen" / "B0.png")
  assert written[0, :3].tolist() == [1, 1, 0]


def test_masks_of_0_and_1_are_not_emptied(folders, capsys):
  path, masks = folders
  for rater in ("P1_pen", "P2_pen"):
    save_mask(path, f"{rater}/seg_B0.png", ~masks[rater, "B0"])
  assert run_folders(path) == 0
  printed = capsys.readouterr().out
  assert (
    "1 is taken for white, as 255 is, in masks of 0 and 1: P1_pen/seg_B0.png, P2_pen/" in printed
  )
  for rater in RATERS:
    written = readers.read_mask(path / "out" / "raters" / rater / "B0.png")
    np.testing.assert_array_equal(written, masks[rater, "B0"])


@pytest.mark.parametrize("value", [2, 100, 127])
def test_masks_without_white_are_not_emptied(folders, capsys, value):
  path, masks = folders
  save_mask(path, "P1_pen/seg_B0.png", value * masks["P1_pen", "B0"])
  check_refused(path, capsys, run_folders(path), "P1_pen/seg_B0.png: its largest value is")


def test_masks_of_other_formats_and_files_that_are_none(folders, capsys):
  path, masks = folders
  blob = np.zeros(SHAPE, bool)
  blob[4:15, 6:22] = True
  for name, suffix in (("Seg_B1", ".jpg"), ("seg_B2", ".TIF")):
    (path / "raters" / "P2_pen" / f"{name}.png").unlink()
    Image.fromarray(np.where(blob, 0, 255).astype(np.uint8)).save(
      path / "raters" / "P2_pen" / f"{name}{suffix}", {".jpg": "JPEG", ".TIF": "TIFF"}[suffix]
    )
  (path / "raters" / "P1_pen" / "readme.md").write_text("")
  (path / "raters" / "all.csv").write_text("")
  assert run_folders(path) == 0
  printed = capsys.readouterr().out
  assert "P1_pen: Left out, as they are no pictures: readme.md." in printed
  assert "raters: Left out, as they are no pictures: all.csv." in printed
  for image in ("B1", "B2"):
    written = readers.read_mask(path / "out" / "raters" / "P2_pen" / f"{image}.png")
    np.testing.assert_array_equal(written, blob)
  # Every rater has drawn every image.
  assert all(len(image.masks) == 3 for image in manifest.read_folder(path / "out").images)


def test_a_polarity_that_is_probably_wrong_is_said(folders, capsys):
  path, _ = folders
  assert run_folders(path, "--polarity=white") == 0
  assert "is that the background? Then import with --polarity=black" in capsys.readouterr().out


def test_folders_mistakes(folders, capsys):
  path, _ = folders
  check_refused(path, capsys, run_folders(path, pattern="seg_(B)(0)"), "has 2 groups")
  check_refused(path, capsys, run_folders(path, pattern="seg_.*"), "has 0 groups")
  check_refused(path, capsys, run_folders(path, pattern="seg_("), "no regular expression")
  check_refused(path, capsys, run_folders(path, pattern="seg_(B0)"), "finds nothing in 'Seg_B1'")
  check_refused(path, capsys, run_folders(path, pattern="(.*)"), "no image 'Seg_B1'")
  check_refused(path, capsys, run_folders(path, pattern="eg_(B)"), "B1.png: there is no image 'B'")
  check_refused(
    path, capsys, run_folders(path, "--person-pattern=^(P1)"), "finds nothing in 'P2_pen'"
  )
  check_refused(path, capsys, run_folders(path, "--class-name=a/b"), "'a/b'")
  check_refused(path, capsys, run_folders(path, "--polarity=grey"), "grey")
  check_refused(path, capsys, importers.main(["folders"]), "--out")
  check_refused(path, capsys, run_folders(path / "gone"), "gone/images does not exist")
  save_mask(path, "P1_pen/Seg_B0.png", np.zeros(SHAPE))
  check_refused(path, capsys, run_folders(path), "are both of image 'B0'")
  (path / "raters" / "P1_pen" / "Seg_B0.png").unlink()
  Image.fromarray(np.zeros(SHAPE, np.uint8)).save(path / "images" / "B9.png")
  check_refused(path, capsys, run_folders(path), "B9.png was drawn by no rater")


@pytest.mark.parametrize(
  ("pixels", "part"),
  [
    (np.zeros((20, 29)), "seg_B0.png is 29 x 20 and its image 30 x 20 pixels"),
    (np.arange(1800).reshape(*SHAPE, 3) % 256, "seg_B0.png has colours"),
    (np.zeros((*SHAPE, 4)), "seg_B0.png has pixels of type RGBA"),
  ],
)
def test_folders_refuses_masks(folders, capsys, pixels, part):
  path, _ = folders
  save_mask(path, "P1_pen/seg_B0.png", pixels)
  check_refused(path, capsys, run_folders(path), part)


def test_an_existing_folder_is_left_alone(folders, capsys):
  path, _ = folders
  (path / "out").mkdir()
  assert run_folders(path) == 2
  assert "exists already" in capsys.readouterr().err
  assert not list((path / "out").iterdir())


def save_nifti(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), path)


@pytest.fixture
def qubiq(tmp_path):
  random = np.random.default_rng(0)
  masks = {}
  for case in ("case01", "case02", "case03", "case04"):
    folder = tmp_path / "cases" / case
    save_nifti(folder / "image.nii.gz", random.normal(size=SHAPE).astype(np.float32))
    save_nifti(folder / "task02_seg01.nii.gz", np.ones(SHAPE, np.uint8))
    for rater in ("seg01", "seg02", "seg03") if case != "case04" else ():
      masks[case, rater] = random.random(SHAPE) < 0.2
      save_nifti(folder / f"task01_{rater}.nii.gz", np.uint8(masks[case, rater]))
  (tmp_path / "cases" / "case02" / "task01_seg03.nii.gz").unlink()
  return tmp_path, masks


def test_qubiq(qubiq, capsys):
  path, masks = qubiq
  assert run_qubiq(path, "--licence=CC BY 4.0") == 0
  printed = capsys.readouterr().out
  assert "3 images, 3 raters, class kidney." in printed
  assert "no mask of task01: case04." in printed
  folder = manifest.read_folder(path / "out")
  assert folder.raters == folder.persons == ("seg01", "seg02", "seg03")
  assert [image.name for image in folder.images] == ["case01", "case02", "case03"]
  assert set(folder.images[1].masks) == {"seg01", "seg02"}
  for image in folder.images:
    for rater, paths in image.masks.items():
      np.testing.assert_array_equal(pictures.read_mask(paths["kidney"]), masks[image.name, rater])


def test_qubiq_keeps_which_axis_is_the_first(qubiq):
  path, _ = qubiq
  assert run_qubiq(path, "--nifti-axes=yx") == 0
  folder = manifest.read_folder(path / "out")
  assert folder.nifti_axes == "yx"


def test_qubiq_masks_of_another_scale(qubiq, capsys):
  path, masks = qubiq
  for (case, rater), mask in masks.items():
    if (case, rater) != ("case02", "seg03"):
      save_nifti(path / "cases" / case / f"task01_{rater}.nii.gz", 255 * np.uint8(mask))
  part = '"confidence_maximum": 255 (importing: --confidence-maximum)'
  check_refused(path, capsys, run_qubiq(path), part)
  check_refused(path, capsys, run_qubiq(path, "--confidence-maximum=0"), "a number above 0")
  assert run_qubiq(path, "--confidence-maximum=255") == 0
  assert manifest.read_folder(path / "out").confidence_maximum == 255
  shutil.rmtree(path / "out")
  mask = path / "cases" / "case01" / "task01_seg02.nii.gz"
  save_nifti(mask, 100 * np.uint8(masks["case01", "seg02"]))
  capsys.readouterr()
  check_refused(path, capsys, run_qubiq(path, "--confidence-maximum=255"), "importing: --soft")
  assert run_qubiq(path, "--confidence-maximum=255", "--soft") == 0
  assert manifest.read_folder(path / "out").soft


def test_qubiq_mistakes(qubiq, capsys):
  path, _ = qubiq
  check_refused(path, capsys, run_qubiq(path / "gone"), "gone/cases does not exist")
  check_refused(path, capsys, run_qubiq(path, task="task02"), "of 1 raters, but two are needed")
  check_refused(path, capsys, run_qubiq(path, task="task03"), "of 0 raters, but two are needed")
  mask = path / "cases" / "case01" / "task01_seg02.nii.gz"
  save_nifti(mask, np.zeros((20, 29), np.uint8))
  check_refused(path, capsys, run_qubiq(path), "task01_seg02.nii.gz is 29 x 20 and its image 30 x")
  save_nifti(mask, np.full(SHAPE, 2, np.uint8))
  check_refused(path, capsys, run_qubiq(path), "task01_seg02.nii.gz: 600 of 600 pixels")
  save_nifti(path / "cases" / "case01" / "image.nii.gz", np.zeros((4, *SHAPE), np.uint8))
  check_refused(path, capsys, run_qubiq(path), "image.nii.gz has 30 x 20 x 4 values")
  for image in path.glob("cases/*/image.nii.gz"):
    image.unlink()
  check_refused(path, capsys, run_qubiq(path), "cases holds no <case>/image.nii.gz")


@pytest.mark.real_data
def test_real_raters(real_data, tmp_path, capsys):
  source = real_data / "bu_bil" / "BU-BIL_Dataset1"
  out = tmp_path / "cells"
  code = importers.main(
    ["folders", f"--images={source / 'RawImages'}", f"--raters={source / 'ExpertsAnnotations'}"]
    + [f"--out={out}", "--class-name=cell", r"--mask-pattern=^[Ss]eg_(B\d+)$"]
    + ["--polarity=black", r"--person-pattern=^(Person\d)_", "--licence=BSD"]
  )
  assert code == 0
  printed = capsys.readouterr().out
  assert "12 images, 10 raters (5 persons), class cell." in printed
  assert "cut at half: 1 in Person5_Amira/seg_B04.png." in printed
  assert len(json.loads((out / "dataset.json").read_text())["persons"]) == 10
  config = multirater_config("frames", 203, 256, directory=out)
  builder = MultiraterFolder(config=config, data_dir=tmp_path / "data")
  builder.download_and_prepare()
  examples = [e for split in builder.as_data_source().values() for e in split]
  assert len(examples) == 12
  for example in examples:
    with Image.open(source / "GoldStandard" / f"seg_{example['video'].decode()}.png") as gold:
      gold = ~np.asarray(gold.convert("1").resize((256, 203)))
    cell = example["confidence"][..., 0] >= 128
    assert example["drawn"].all()
    # Raters and gold standard are of the same cell, and a cell is a small part of its image.
    assert (cell & gold).sum() > 0.8 * (cell | gold).sum()
    assert 0.001 < cell.mean() < 0.2
