"""`python -m lus_jax.check` on folders that are made here, and on real ones."""

import csv
import io
import json
import os
import re
import shutil

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from lus_jax import problems
from lus_jax.check import lettering, page, run, table
from lus_jax.check.__main__ import main
from lus_jax.errors import UserError
from lus_jax.media import alike, deidentify, readers
from tests import painted
from tfds_builders.lus_folder.lus_folder import LusFolder, folder_config

SIZE = 64
CLASSES = ("pleura", "b_line")
MANIFEST = ("video", "patient", "day", "view", "sf_ratio", "readmitted_30d", "split")


def scan(seed, height=SIZE, width=SIZE):
  """A picture that no other seed's is like: [h, w] uint8."""
  coarse = np.random.default_rng(seed).integers(20, 236, (24, 24)).astype(np.uint8)
  return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def lettered(picture, text, size=12, at=(3, 3), ground=0):
  """The picture with a line of text on a band of one grey value."""
  image = Image.fromarray(np.ascontiguousarray(picture))
  draw = ImageDraw.Draw(image)
  left, top, right, bottom = draw.textbbox(at, text, font_size=size)
  draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=ground)
  draw.text(at, text, fill=220, font_size=size)
  return np.asarray(image)


class Folder:
  """A lus_folder of 6 patients with a clip of 3 frames each, and one label on each."""

  def __init__(self, path):
    self.path = path
    (path / "videos").mkdir(parents=True)
    self.dataset = {"name": "tiny", "licence": "none", "classes": list(CLASSES)}
    self.header, self.manifest, self.labels = MANIFEST, [], []
    for i in range(6):
      self.save(f"{i}.npy", np.stack([scan(10 * i + frame) for frame in range(3)]))
      self.manifest.append([f"{i}.npy", f"p{i}", "1", "L1", "300", "0", ""])
      self.labels.append([f"{i}.npy", "1", "ann", str(i)])
      mask = np.zeros((SIZE, SIZE), np.uint8)
      mask[10:20, 10:20], mask[10, 10:15] = 255, 51
      self.paint(f"{i}/pleura.png", mask)

  def save(self, name, frames):
    np.save(self.path / "videos" / name, frames)

  def paint(self, name, mask):
    file = self.path / "masks" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)

  def split(self, *names):
    for row, name in zip(self.manifest, names, strict=True):
      row[MANIFEST.index("split")] = name

  def write(self):
    (self.path / "dataset.json").write_text(json.dumps(self.dataset))
    labels = [["video", "frame", "annotator", "masks"], *self.labels]
    for name, rows in (("manifest", [self.header, *self.manifest]), ("labels", labels)):
      with (self.path / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return self.path

  def check(self, **options):
    return run.check(self.write(), num_processes=1, **options)


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "mine")


def only(lines, *parts):
  """The one line that holds all parts."""
  found = [line for line in lines if all(part in line for part in parts)]
  assert len(found) == 1, (parts, lines)
  return found[0]


# What there is.


def test_a_good_folder_has_no_problem_and_no_warning_but_its_unpainted_class(folder, capsys):
  assert main([str(folder.write()), "--num-processes", "1"]) == 0
  text = capsys.readouterr().out
  assert "no mask shows anything of the class 'b_line'" in text
  assert "0 problems, 1 warning." in text
  assert re.search(r"patients  6\n", text) and re.search(r"frames  18\n", text)
  assert re.search(r"labelled frames  6 of 6 videos", text)


def test_the_table_counts_pixels_by_confidence(folder):
  for i in range(1, 6):
    folder.paint(f"{i}/pleura.png", np.zeros((SIZE, SIZE), np.uint8))
  levels = np.zeros((SIZE, SIZE), np.uint8)
  # The upper end of each bin belongs to it: 51 of 255 is 20 %.
  levels[0, :8] = 1, 51, 52, 102, 153, 204, 254, 255
  folder.paint("0/pleura.png", levels)
  pleura, b_line = table.classes(folder.check())
  assert pleura[:3] == ["pleura", 1, 8]
  assert pleura[4:] == ["25%", "25%", "12.5%", "12.5%", "12.5%", "12.5%"]
  assert b_line[:3] == ["b_line", 0, 0]


def test_what_does_not_count_is_not_counted(folder):
  ignore = np.zeros((SIZE, SIZE), np.uint8)
  ignore[10:15] = 255
  folder.paint("0/_ignore.png", ignore)
  pleura, _ = table.classes(folder.check())
  assert pleura[2] == 6 * 100 - 50


def test_what_is_missing_is_said(folder):
  folder.manifest[2][MANIFEST.index("day")] = ""
  folder.labels = folder.labels[:4]
  folder.dataset["licence"] = "unknown"
  lines = table.missing(folder.check())
  assert "1 of 6" in only(lines, "day: empty")
  assert "2 videos (4.npy, 5.npy)" in only(lines, "no label")
  assert "1 class (b_line)" in only(lines, "never painted")
  assert "1 patient (p2)" in only(lines, "no day:")
  only(lines, "no licence")


def test_videos_without_labels_are_good_for_tasks_on_videos(folder, tmp_path, capsys):
  folder.labels = []
  shutil.rmtree(folder.path / "masks")
  directory = folder.write()
  for _ in range(2):
    assert main([str(directory), "--num-processes", "1"]) == 0
    text = capsys.readouterr().out
    assert "- no labels: segmentation cannot be trained on it; videos only" in text
    assert re.search(r"splits  train 4 patients, 4 videos; validation 1 patient, 1 video; ", text)
    assert "0 problems, 0 warnings." in text and "never painted" not in text
    assert folder_config("videos", SIZE, SIZE, directory=directory).splits["train"]
    with pytest.raises(UserError, match="labels.csv (has no rows|does not exist)"):
      folder_config("frames", SIZE, SIZE, directory=directory)
    (directory / "labels.csv").unlink(missing_ok=True)
  # The page too.
  page.write(tmp_path / "check.html", run.check(directory, with_pictures=True, num_processes=1))
  assert "videos only" in (tmp_path / "check.html").read_text()
  folder.paint("0/pleura.png", np.zeros((SIZE, SIZE), np.uint8))
  only(run.check(directory, num_processes=1).warnings, "masks: none of it is used")
  folder.manifest[0][0] = "gone.npy"
  result = folder.check()
  assert "gone.npy" in only(result.problems, "manifest.csv row 2")


# Problems.


def damaged_png():
  noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
  whole = io.BytesIO()
  Image.fromarray(noise).save(whole, "PNG")
  return whole.getvalue()[:2000]


def cell(number, column, value):
  def write(folder):
    folder.manifest[number][MANIFEST.index(column)] = value

  return write


def frame(number, value):
  return lambda folder: folder.labels[number].__setitem__(1, value)


def content(name, data):
  return lambda folder: (folder.path / name).write_bytes(data)


def mask(name, size):
  return lambda folder: folder.paint(name, np.zeros((size, size), np.uint8))


# What the line about each holds, and what is broken for it.
BROKEN = [
  ("manifest.csv row 2", "0.npy is damaged", content("videos/0.npy", b"\x93NUMPY damaged")),
  ("manifest.csv row 3", "unknown view 'L9'", cell(1, "view", "L9")),
  ("manifest.csv row 3", "day '-1'", cell(1, "day", "-1")),
  ("manifest.csv row 4", "patient is empty", cell(2, "patient", "")),
  ("manifest.csv row 5", "sf_ratio 4.6", cell(3, "sf_ratio", "4.6")),
  ("manifest.csv row 7", "gone.npy does not exist", cell(5, "video", "gone.npy")),
  ("labels.csv row 3", "frame 99 is past the end", frame(1, "99")),
  ("labels.csv row 4", "frame 'x'", frame(2, "x")),
  ("labels.csv row 5", "3/pleura.png is damaged", content("masks/3/pleura.png", b"no picture")),
  ("labels.csv row 5", "8 x 8 and its frame 64 x 64", mask("3/b_line.png", 8)),
  ("labels.csv row 6", "wrong.png is not <class>.png", mask("4/wrong.png", SIZE)),
  ("labels.csv row 6", "4/b_line.png is damaged", content("masks/4/b_line.png", damaged_png())),
  (
    "labels.csv row 8",
    "'nowhere.npy' is not in manifest.csv",
    lambda folder: folder.labels.append(["nowhere.npy", "0", "ann", "1"]),
  ),
]


def test_all_problems_are_told_and_each_once(folder):
  for *_, break_it in BROKEN:
    break_it(folder)
  # The video that is gone is told of once: its label is no further problem.
  folder.labels[5][0] = "gone.npy"
  found = folder.check().problems
  for *parts, _ in BROKEN:
    only(found, *parts)
  assert len(found) == len(BROKEN), found
  with pytest.raises(UserError) as error:
    folder_config("frames", SIZE, SIZE, directory=folder.path)
  assert str(error.value) == found[0]


@pytest.mark.parametrize("where, what, break_it", BROKEN, ids=[what for _, what, _ in BROKEN])
def test_what_the_check_lists_training_refuses(folder, tmp_path, where, what, break_it):
  break_it(folder)
  if "gone" in what:
    folder.labels[5][0] = "gone.npy"
  found = folder.check().problems
  assert only(found, where, what) and len(found) == 1
  assert main([str(folder.path), "--num-processes", "1"]) == 2
  with pytest.raises(UserError) as error:
    config = folder_config("frames", SIZE, SIZE, directory=folder.path)
    LusFolder(config=config, data_dir=tmp_path / "data").download_and_prepare()
  # Of pixels training names the file, and not its row.
  assert found[0].endswith(str(error.value))


def test_a_folder_that_cannot_be_split_is_a_problem(folder):
  folder.manifest, folder.labels = folder.manifest[:2], folder.labels[:2]
  assert "at least 3 are needed" in only(folder.check().problems, "2 patient(s)")
  folder.labels += [["0.npy", str(frame), "ann", "0"] for frame in (0, 2)]
  assert folder.check(split_unit="frame").problems == []


def test_a_patient_on_two_sides_is_a_problem(folder):
  folder.manifest[1][1] = "p0"
  folder.split("train", "test", "train", "validation", "test", "test")
  line = only(folder.check().problems, "manifest.csv row 3")
  assert "split is test here and train in row 2, within one patient" in line


def test_tables_that_cannot_be_read_are_told_with_what_else_is_wrong(folder):
  folder.dataset |= {"patients": "yes", "missing_clas": "unlabelled", "thin": ["rib"]}
  directory = folder.write()
  (directory / "labels.csv").write_text("clip,frame\n")
  found = run.check(directory, num_processes=1).problems
  for parts in (
    ("dataset.json", "did you mean 'missing_class'"),
    ("dataset.json", "'patients' is 'yes'"),
    ("dataset.json", "'rib'"),
    ("labels.csv row 1", "'video' is missing"),
    ("labels.csv row 1", "'masks' is missing"),
  ):
    only(found, *parts)
  assert len(found) == 5


def test_problems_are_collected_only_where_somebody_asks():
  error = UserError("wrong")
  with pytest.raises(UserError), problems.apart():
    raise error
  with problems.collected() as outer:
    with problems.apart():
      raise error
    with problems.collected() as inner:
      problems.tell(UserError("within"))
  assert outer == [error] and [str(x) for x in inner] == ["within"]
  with pytest.raises(UserError):
    problems.tell(error)


def test_no_data_folder_and_two_at_once_are_refused_in_one_line(tmp_path, folder, capsys):
  (tmp_path / "empty").mkdir()
  assert main([str(tmp_path / "empty")]) == 2
  assert "is no data folder" in capsys.readouterr().err
  assert main([str(tmp_path / "gone")]) == 2
  assert "is no folder" in capsys.readouterr().err
  assert main([]) == 2
  capsys.readouterr()
  (folder.write() / "raters").mkdir()
  assert main([str(folder.path)]) == 2
  error = capsys.readouterr().err
  assert "manifest.csv" in error and "raters of a multirater_folder" in error
  assert error.count("\n") == 1


# What looks wrong.


def near_copy(frames):
  """The frames as another program would have saved them: brighter, and through JPEG."""
  changed = []
  for one in frames:
    buffer = io.BytesIO()
    brighter = np.clip(1.15 * one.astype(float) + 4, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(buffer, "JPEG", quality=40)
    changed.append(np.asarray(Image.open(buffer)))
  return np.stack(changed)


def test_near_identical_frames_of_two_patients_are_told_with_their_sides(folder):
  folder.split("train", "train", "train", "validation", "test", "test")
  folder.save("5.npy", near_copy(np.load(folder.path / "videos" / "1.npy")))
  found = folder.check()
  line = only(found.warnings, "near-identical")
  assert line.startswith("1.npy of patient 'p1', 5.npy of patient 'p5' have")
  assert "stand in train and test" in line
  # Of one patient they are no fault.
  folder.manifest[5][1] = folder.manifest[1][1]
  folder.manifest[5][-1] = folder.manifest[1][-1]
  assert not [x for x in folder.check().warnings if "near-identical" in x]


def test_hashes_of_copies_are_near_and_of_others_far():
  frames = [scan(seed, 200, 160) for seed in range(12)]
  copies = near_copy(frames)
  found = [np.stack(alike.hashes(one)) for one in (*frames, *copies)]
  groups = alike.find(found, [f"p{i}" for i in range(24)])
  assert sorted(group.clips for group in groups) == [(i, i + 12) for i in range(12)]
  assert all(0 < group.bits <= alike.CUT for group in groups)
  # A third one of these is in their group.
  groups = alike.find([*found, found[5]], [f"p{i}" for i in range(25)])
  assert groups[0] == alike.Group((5, 17, 24), 0) and len(groups) == 12
  assert alike.find(found, ["one"] * 24) == [] == alike.find(found, [""] * 24)
  assert alike.hashes(np.full((20, 20), 7, np.uint8)) == []
  assert alike.find([np.zeros((0, 32), np.uint8)], ["p"]) == []


@pytest.mark.parametrize("size", [10, 13, 18, 26])
def test_text_is_found_on_a_dark_ground(size):
  picture = lettered(scan(1, 200, 300), "DOE, JANE 1970", size=size, at=(8, 8))
  top, left, bottom, right = lettering.find(picture)[0]
  assert 0 <= top < bottom <= 8 + 2 * size and left < 8 + 2 * size and right > left + 2 * size


def test_text_is_no_mark_no_scale_and_nothing_that_moves():
  picture = np.zeros((200, 300), np.uint8)
  for x in range(20, 280, 20):
    picture[180:190, x : x + 2] = 255  # a scale
  picture[20:40, 20:40] = 255
  assert lettering.find(picture) == []
  text = lettered(picture, "DOE, JANE 1970", size=16)
  assert lettering.find(text)
  assert lettering.find(text, np.full(text.shape, 200, np.uint8)) == []
  noise = np.random.default_rng(0).integers(0, 256, (400, 400)).astype(np.uint8)
  assert lettering.find(noise) == [] and lettering.find(scan(3, 300, 300)) == []


def test_text_in_a_clip_is_told_with_its_place(folder):
  frames = np.stack([np.pad(scan(i, 100, 200), ((40, 0), (0, 0))) for i in range(3)])
  folder.save("2.npy", np.stack([lettered(one, "JANE DOE", size=14, at=(5, 8)) for one in frames]))
  folder.paint("2/pleura.png", np.zeros((140, 200), np.uint8))
  line = only(folder.check().warnings, "2.npy", "text in its pixels")
  assert "at x = " in line


def test_names_dates_and_numbers_in_names_cells_and_tags_are_told(folder):
  os.rename(folder.path / "videos" / "0.npy", folder.path / "videos" / "Anna_Mueller.npy")
  folder.manifest[0][0] = folder.labels[0][0] = "Anna_Mueller.npy"
  folder.manifest[1][1] = "19700102"
  picture = Image.fromarray(scan(99))
  exif = Image.Exif()
  exif[0x013B] = "Doe^Jane"  # Artist
  picture.save(folder.path / "videos" / "still.png", exif=exif)
  folder.manifest.append(["still.png", "p9", "", "", "", "", ""])
  directory = folder.write()
  (directory / "patients.csv").write_text("patient,born\np2,03.04.1956\n")
  found = run.check(directory, num_processes=1).warnings
  only(found, "the file name 'Anna_Mueller.npy' looks like a person's name")
  only(found, "the patient '19700102' looks like a date")
  only(found, "the column 'born'", "'03.04.1956' looks like a date")
  assert "Jane" not in only(found, "still.png", "its tag Artist", "a person's name")


def test_names_of_annotators_and_raters_are_told(folder, tmp_path):
  folder.labels[0][2], folder.labels[1][2] = "jane.doe@hospital.org", "Anna Mueller"
  found = folder.check().warnings
  only(found, "the annotator 'jane.doe@hospital.org' looks like an e-mail address")
  only(found, "the annotator 'Anna Mueller' looks like a person's name")
  many = raters_folder(tmp_path / "many")
  os.rename(many / "raters" / "anna", many / "raters" / "anna@hospital.org")
  content = json.loads((many / "dataset.json").read_text())
  (many / "dataset.json").write_text(json.dumps(content | {"persons": {"ben": "Dr. Weber"}}))
  found = run.check(many, num_processes=1).warnings
  only(found, "the rater 'anna@hospital.org' looks like an e-mail address")
  only(found, "the person 'Dr. Weber' looks like a person's name")


def test_masks_that_look_like_something_else_are_told(folder):
  for i in range(6):
    folder.paint(f"{i}/b_line.png", np.zeros((SIZE, SIZE), np.uint8))
  indices = np.zeros((SIZE, SIZE), np.uint8)
  indices[:5], indices[10:15], indices[20:22] = 1, 3, 255
  folder.paint("0/b_line.png", indices)
  inverted = np.full((SIZE, SIZE), 255, np.uint8)
  inverted[10:20, 10:20] = 0
  folder.paint("1/pleura.png", inverted)
  binary = np.zeros((SIZE, SIZE), np.uint8)
  binary[10:20, 10:20] = 1
  folder.paint("2/pleura.png", binary)
  square = np.zeros((SIZE, SIZE), np.uint8)
  square[13:37, 13:37] = 255
  buffer = io.BytesIO()
  Image.fromarray(square).save(buffer, "JPEG", quality=60)
  (folder.path / "masks" / "3" / "pleura.png").unlink()
  (folder.path / "masks" / "3" / "pleura.jpg").write_bytes(buffer.getvalue())
  faint = np.zeros((SIZE, SIZE), np.uint8)
  faint[:5], faint[5:10] = 13, 51
  folder.paint("4/pleura.png", faint)
  found = folder.check().warnings
  only(found, "0/b_line.png", "its values are 0, 1, 3, 255 of 255, as label indices are")
  only(found, "1/pleura.png", "is it inverted?")
  only(found, "2/pleura.png", "a mask of 0 and 1 should be one of 0 and 255")
  only(found, "3/pleura.jpg", "as JPEG leaves them")
  assert not [line for line in found if "4/pleura" in line]


def test_repeated_frames_empty_videos_and_sizes_of_a_patient_are_told(folder):
  frames = np.load(folder.path / "videos" / "0.npy")
  folder.save("0.npy", frames[[0, 1, 0]])
  folder.save("1.npy", np.zeros_like(frames))
  folder.save("2.npy", np.stack([scan(50 + i, SIZE, 80) for i in range(3)]))
  folder.paint("2/pleura.png", np.zeros((SIZE, 80), np.uint8))
  folder.manifest[2][1] = folder.manifest[3][1]
  found = folder.check().warnings
  assert "1 of 3 frames repeat" in only(found, "0.npy")
  only(found, "1.npy", "every frame is of one grey value")
  assert "64 x 64 of 3.npy" in only(found, "the patient 'p3' has frames of several sizes")


def test_a_small_scan_on_a_dark_screen_is_told_with_its_area(folder):
  clip = np.zeros((3, 300, 400), np.uint8)
  clip[:, 50:200, 150:250] = np.stack([scan(70 + i, 150, 100) for i in range(3)])
  folder.save("0.npy", clip)
  folder.paint("0/pleura.png", np.zeros((300, 400), np.uint8))
  line = only(folder.check().warnings, "the scan seems to be")
  x, y, width, height = map(int, re.search(r'scan_area "(.+?)"', line)[1].split())
  assert 140 <= x <= 150 and 40 <= y <= 50
  assert 250 <= x + width <= 260 and 200 <= y + height <= 210


# Other kinds of folders.


def raters_folder(path):
  (path / "images").mkdir(parents=True)
  for i in range(4):
    Image.fromarray(scan(i)).save(path / "images" / f"i{i}.png")
    for rater, size in (("anna", 20), ("ben", 30)):
      drawn = np.zeros((SIZE, SIZE), np.uint8)
      drawn[5 : 5 + size, 5:25] = 255
      file = path / "raters" / rater / f"i{i}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(drawn).save(file)
  (path / "dataset.json").write_text(
    json.dumps({"name": "many", "licence": "none", "classes": ["cell"]})
  )
  return path


def test_several_raters(tmp_path):
  result = run.check(raters_folder(tmp_path / "many"), num_processes=1)
  assert result.problems == [] and result.warnings == []
  assert table.classes(result)[0][:3] == ["cell", 4, 4 * (20 * 20 + 30 * 20)]
  assert ("raters", "anna (4), ben (4)") in table.overview(result)


def test_all_problems_of_several_raters_are_told(tmp_path):
  path = raters_folder(tmp_path / "many")
  grey = np.full((SIZE, SIZE), 100, np.uint8)
  Image.fromarray(grey).save(path / "raters" / "anna" / "i0.png")
  for rater in ("anna", "ben"):
    Image.fromarray(np.zeros((9, SIZE), np.uint8)).save(path / "raters" / rater / "i1.png")
  (path / "raters" / "ben" / "i9.png").write_bytes(b"")
  (path / "patients.csv").write_text("image,patient\ni0,a\ni1,\ni2,c\ni8,d\n")
  found = run.check(path, num_processes=1).problems
  for parts in (
    ("anna/i0.png", "neither background nor object"),
    ("anna/i1.png", "64 x 9 and its image 64 x 64"),
    ("ben/i1.png", "64 x 9 and its image 64 x 64"),
    ("ben/i9.png", "there is no image 'i9'"),
    ("patients.csv row 3", "patient is empty"),
    ("patients.csv row 5", "there is no image 'i8'"),
    ("patients.csv", "no row for the image 'i3'"),
  ):
    only(found, *parts)
  assert len(found) == 7


@pytest.mark.real_data
def test_real_videos_are_read_and_no_two_patients_are_alike(real_data, tmp_path):
  (tmp_path / "lus_videos").mkdir()
  for name in ("severity.csv", "clinical_variables.csv"):
    shutil.copy(real_data / "covid_blues" / name, tmp_path)
  # One of patient 18 as patient 10's too.
  for target, source in {
    "2_L3": "2_L3",
    "18_L3": "18_L3",
    "10_R1": "10_R1",
    "10_L1": "18_L3",
  }.items():
    shutil.copy(
      real_data / "covid_blues" / "lus_videos" / f"patient_{source}.mp4",
      tmp_path / "lus_videos" / f"patient_{target}.mp4",
    )
  result = run.check(tmp_path, num_processes=1)
  assert result.problems == [] and len(result.warnings) == 2
  # Told twice, as the files are the same to the bit.
  only(result.warnings, "hold the same")
  line = only(result.warnings, "near-identical")
  assert "patient_10_L1" in line and "patient_18_L3" in line
  assert dict(table.overview(result))["patients"] == "3"


@pytest.mark.real_data
def test_text_is_found_on_a_real_screen_and_not_on_real_frames(real_data):
  clip = readers.probe(real_data / "lus_cvat" / "task_195" / "data" / "clip_195.mp4")
  (frame,) = readers.read(clip, [80])
  found = lettering.find(frame)
  assert len(found) > 8 and all(
    bottom < 103 or right < 554 or left > 722 for _, left, bottom, right in found
  )
  for file in sorted((real_data / "usgra_seg" / "dataset" / "test" / "images").glob("*.png"))[::4]:
    assert lettering.find(readers.read(readers.probe(file))[0]) == []


# The page.


def test_the_page_carries_everything_and_escapes_names(folder, tmp_path, capsys):
  odd = "<b>&amp;\"'.npy"
  os.rename(folder.path / "videos" / "0.npy", folder.path / "videos" / odd)
  folder.manifest[0][0] = folder.labels[0][0] = odd
  folder.labels[1][1] = "99"
  file = tmp_path / "new" / "check.html"
  file.parent.mkdir()
  assert main([str(folder.write()), "--html", str(file), "--num-processes", "1"]) == 2
  html = file.read_text()
  assert "<b>" not in html and "&lt;b&gt;" in html
  # A frame of each clip, and each label that could be read.
  assert html.count("data:image/jpeg;base64,") == 6 + 5
  assert not re.search(r"(src|href)=\"(?!data:|#)", html)
  assert "frame 99 is past the end" in html and "pleura up to 100%" in html
  assert [path.name for path in file.parent.iterdir()] == ["check.html"]
  assert f"Wrote {file}." in capsys.readouterr().out


def test_a_page_is_written_over_nothing_but_a_page(folder, tmp_path, capsys, monkeypatch):
  directory = folder.write()
  monkeypatch.setattr(run, "check", lambda *args, **options: pytest.fail("was read"))
  before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
  (tmp_path / "link.csv").symlink_to(tmp_path / "gone")
  for file, part in (
    (directory / "manifest.csv", "its name is not that of a page"),
    (directory / "videos" / "0.npy", "its name is not that of a page"),
    (tmp_path / "link.csv", "its name is not that of a page"),
    (directory, "is a folder"),
    (tmp_path / "new" / "check.html", "new is no folder; make it first"),
    (directory / "manifest.csv" / "check.html", "manifest.csv is no folder"),
  ):
    assert main([str(directory), "--html", str(file)]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
  assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "mine"]
  for name in ("new", "new.HTM", "old.html"):
    (tmp_path / "old.html").write_text("old")
    assert page.place(str(tmp_path / name)) == tmp_path / name


def test_many_videos_are_sampled_and_the_page_says_so(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(run, "MOST_SHOWN", 4)
  result = folder.check(with_pictures=True)
  assert result.shown == (0, 1, 3, 4)
  assert [bool(seen.pictures) for seen in result.seen] == [True, True, False, True, True, False]


def test_scan_areas_are_counted_and_odd_ones_told_and_marked(folder):
  folder.header = (*MANIFEST, "scan_area")
  for row in folder.manifest:
    row.append("5 5 50 50")
  folder.manifest[4][-1] = "30 30 20 20"
  found = folder.check(with_pictures=True)
  assert ("scan areas", "given of 6 of 6 videos") in table.overview(found)
  only(found.warnings, "4.npy", "unlike those of others of its frame size")
  # All but a corner of what is painted, [10:20, 10:20], lies outside of it.
  only(found.warnings, "4/pleura.png", "100 % of what is painted lies outside")
  assert found.odd_areas == (4,)
  html = page.render(found)
  assert html.count('class="area"') == 7 and html.count("left:7.812%") == 5
  assert "left:46.875%;top:46.875%;width:31.250%;height:31.250%" in html


def test_only_headers_of_dicom_that_tell_something_are_told(tmp_path):
  pydicom = pytest.importorskip("pydicom")
  from pydicom.data import get_testdata_file

  source = tmp_path / "a.dcm"
  shutil.copy(get_testdata_file("examples_ybr_color.dcm", download=False), source)
  folder = Folder(tmp_path / "mine")
  shutil.copy(source, folder.path / "videos")
  header = pydicom.dcmread(source)
  header.PatientName, header.PatientID = "Doe^Jane", "4711"
  header.save_as(folder.path / "videos" / "a.dcm")
  media = readers.probe(folder.path / "videos" / "a.dcm")
  names = deidentify.Pseudonyms(tmp_path / "key", tmp_path / "mine")
  deidentify.rewrite(media, (0, 0, 240, 320), folder.path / "videos" / "b", names)
  folder.manifest += [[f"{name}.dcm", "p9", "", "", "", "", ""] for name in "ab"]
  found = [line for line in folder.check().warnings if "tells whose it is" in line]
  assert "PatientName" in only(found, "a.dcm") and "Jane" not in found[0] and len(found) == 1


def write_video(path, frames):
  with av.open(path, "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
    for one in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="gray")))
    container.mux(stream.encode())


def test_all_problems_of_covid_blues_are_told(tmp_path):
  (tmp_path / "lus_videos").mkdir()
  for patient in range(1, 5):
    frames = np.stack([scan(100 * patient + i) for i in range(3)])
    write_video(tmp_path / "lus_videos" / f"patient_{patient}_L1.mp4", frames)
  (tmp_path / "severity.csv").write_text(
    "video_file,Severity Score,A-lines,B-lines\npatient_1_L1,1,yes,no\npatient_2_L1,9,yes,no\n"
  )
  table_of = "patient_id,cov_test,oxygen_saturation_without_ox,outcome_status_d7,outcome_status_d30"
  clinical = tmp_path / "clinical_variables.csv"
  clinical.write_text(f"{table_of}\n1,1,97,2,2\n2,0,98,2,2\n3,1,.97,2,2\n4,0,96,2,2\n")
  damaged = tmp_path / "lus_videos" / "patient_4_L1.mp4"
  damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
  result = run.check(tmp_path, num_processes=1)
  only(result.problems, "patient_2_L1: Severity Score '9'")
  only(result.problems, "oxygen_saturation_without_ox .97 of patient 3")
  only(result.problems, "patient_4_L1.mp4 is")
  assert len(result.problems) == 3
  assert [clip.name for clip in result.dataset.clips] == ["patient_1_L1"]
  assert dict(table.overview(result))["frames"] == "3"


def test_a_dataset_json_that_says_nothing_ends_the_reading(folder, capsys):
  (folder.write() / "dataset.json").write_text("[1]")
  assert main([str(folder.path), "--num-processes", "1"]) == 2
  text = capsys.readouterr().out
  assert "must be an object" in text and "Nothing else was read" in text


# Who painted it.


def test_what_training_leaves_out_is_counted(tmp_path):
  result = run.check(painted.make(tmp_path / "set"), num_processes=1)
  assert not result.problems
  overview = dict(table.overview(result))
  assert overview["pre-labels"] == (
    "4 of 11 labels; 2 of these nobody touched, and training leaves them out"
  )
  assert overview["consensus"] == (
    "1 label, in place of 2 others on their frames, which training leaves out"
  )


def test_pre_labels_alone_are_a_problem(tmp_path):
  saved = [(*one[:3], painted.OFFERED) for one in painted.SAVED]
  result = run.check(painted.make(tmp_path / "set", saved=saved), num_processes=1)
  (problem,) = result.problems
  assert "all 7 labels of the split 'train' are a model's, and nobody touched them" in problem


def test_a_folder_that_nobody_painted_in_says_nothing_of_it(folder):
  overview = dict(table.overview(folder.check()))
  assert not {"pre-labels", "consensus"} & overview.keys()
