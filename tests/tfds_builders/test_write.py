"""What all importers of frames share: renaming, soft borders, tables, dry runs, several people."""

import csv
import filecmp
import json
import os
import re
import signal

import numpy as np
import pytest
from absl import logging
from PIL import Image

from lus_jax.errors import UserError
from lus_jax.media import readers, scan_area
from tfds_builders.importers import facts, options, write
from tfds_builders.importers.source import Clip, Label, Source, Videos
from tfds_builders.lus_folder import manifest
from tfds_builders.multirater_folder import manifest as multirater

H, W = 20, 30


def box(value=255, at=(4, 5), size=6):
  mask = np.zeros((H, W), np.uint8)
  mask[at[0] : at[0] + size, at[1] : at[1] + size] = value
  return mask


@pytest.fixture
def clips(tmp_path):
  """Two clips of 3 frames, and a still, below a folder each."""
  random = np.random.default_rng(0)
  for name in ("p1_2024-03-01/L1.npy", "p1_2024-03-04/L1.npy", "p2_2024-01-31/R2.png"):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    pixels = random.integers(0, 255, (3, H, W), np.uint8)
    np.save(path, pixels) if path.suffix == ".npy" else Image.fromarray(pixels[0]).save(path)
  return Videos(tmp_path / "in")


def source_of(clips, labels, classes=("line", "area")):
  """Labels as (clip, frame, masks, annotator)."""
  return Source(
    clips=clips.clips(),
    labels=[Label(clip, frame, lambda media, m=m: m, who) for clip, frame, m, who in labels],
    classes=list(classes),
  )


def test_a_folder_and_the_same_again(clips, tmp_path):
  labels = [
    ("p1_2024-03-01/L1", 2, {"line": box(), "area": box(at=(8, 9))}, ""),
    ("p2_2024-01-31/R2", 0, {}, ""),
  ]
  out = tmp_path / "out"
  given = write.Options(
    out,
    licence="CC0",
    patient_pattern=re.compile("(p[0-9])_"),
    day_pattern=re.compile("_([-0-9]+)/"),
    view_pattern=re.compile("/([LR][0-9])"),
  )
  builder, notes = write.write(source_of(clips, labels), given)
  assert builder == "lus_folder"
  assert notes[0] == ("2 videos, 1 still, 2 labelled frames, 2 patients, classes line, area.")
  folder = manifest.read_folder(out)
  assert [(v.name, v.patient, v.day, v.view) for v in folder.videos] == [
    ("p1_2024-03-01/L1.npy", "p1", 0, "L1"),
    ("p1_2024-03-04/L1.npy", "p1", 3, "L1"),
    ("p2_2024-01-31/R2.png", "p2", 0, "R2"),
  ]
  assert not folder.patients_are_unknown and folder.licence == "CC0"
  first, second = folder.labels
  assert (first.frame, set(first.masks), set(second.masks)) == (2, {"line", "area"}, set())
  np.testing.assert_array_equal(readers.read_mask(first.masks["area"]) * 255, box(at=(8, 9)))
  before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
  again = write.write(source_of(clips, labels), given)
  assert again[1] == ["All of it was there already, to the byte; nothing was changed.", *notes]
  assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
  (out / "manifest.csv").write_text("mine")
  with pytest.raises(UserError, match=r"exists already, and its manifest\.csv is not what"):
    write.write(source_of(clips, labels), given)
  assert (out / "manifest.csv").read_text() == "mine"
  assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_dry_run_says_the_same_and_writes_nothing(clips, tmp_path):
  labels = [("p1_2024-03-01/L1", 2, {"line": box()}, "")]
  dry = write.write(source_of(clips, labels), write.Options(tmp_path / "out", dry_run=True))
  assert not (tmp_path / "out").exists()
  assert dry == write.write(source_of(clips, labels), write.Options(tmp_path / "out"))


def test_classes_renamed_merged_and_dropped(clips, tmp_path):
  masks = {"a": box(100), "b": box(200, at=(6, 7)), "c": box()}
  source = source_of(clips, [("p1_2024-03-01/L1", 0, masks, "")], classes="abc")
  rename = dict(map(options.renamed, ("a=line", "b = line", "c=")))
  write.write(source, write.Options(tmp_path / "out", rename=rename, thin=("line",)))
  folder = manifest.read_folder(tmp_path / "out")
  assert folder.classes == folder.thin == ("line",)
  expected = np.maximum(box(100), box(200, at=(6, 7)))
  mask = readers.read_mask(folder.labels[0].masks["line"])
  np.testing.assert_array_equal(np.rint(mask * 255), expected)
  for wrong, part in (({"d": "x"}, "'d', which is no class"), (dict.fromkeys("abc", ""), "every")):
    with pytest.raises(UserError, match=part):
      write.write(source, write.Options(tmp_path / "other", rename=wrong))


def test_a_soft_border(clips, tmp_path):
  source = source_of(clips, [("p1_2024-03-01/L1", 0, {"line": box(size=9)}, "")])
  write.write(source, write.Options(tmp_path / "out", soft_border=options.border("4px")))
  mask = readers.read_mask(manifest.read_folder(tmp_path / "out").labels[0].masks["line"])
  np.testing.assert_array_equal(mask >= 0.5, box(size=9) > 0)
  np.testing.assert_allclose(mask[8, 2:8], [0, 0.125, 0.375, 0.625, 0.875, 1], atol=1 / 255)
  with pytest.raises(UserError, match="does not say how large its pixels are"):
    write.write(source, write.Options(tmp_path / "mm", soft_border=(2.0, "mm")))
  soft = source_of(clips, [("p1_2024-03-01/L1", 0, {"line": box(90)}, "")])
  with pytest.raises(UserError, match="confidences between 0 and 100"):
    write.write(soft, write.Options(tmp_path / "soft", soft_border=(2.0, "px")))


def test_several_people_become_raters(clips, tmp_path):
  labels = [
    ("p1_2024-03-01/L1", 1, {"line": box()}, "anna"),
    ("p1_2024-03-01/L1", 1, {"line": box(at=(5, 5)), "area": box()}, "ben"),
    ("p2_2024-01-31/R2", 0, {}, "ben"),
  ]
  builder, notes = write.write(
    source_of(clips, labels),
    write.Options(tmp_path / "out", patient_pattern=re.compile("p[0-9]")),
  )
  assert builder == "multirater_folder"
  assert notes[0] == "2 images, 2 raters (anna, ben), classes line, area."
  assert "1 clips that nobody drew (p1_2024-03-04/L1)" in notes[1]
  folder = multirater.read_folder(tmp_path / "out")
  assert [(i.name, i.patient, sorted(i.masks)) for i in folder.images] == [
    ("p1_2024-03-01_L1_000001", "p1", ["anna", "ben"]),
    ("p2_2024-01-31_R2", "p2", ["ben"]),
  ]
  image = folder.images[0]
  frames = np.load(tmp_path / "in" / "p1_2024-03-01" / "L1.npy")
  np.testing.assert_array_equal(np.asarray(Image.open(image.path)), frames[1])
  np.testing.assert_array_equal(np.asarray(Image.open(image.masks["ben"]["area"])), box())
  assert not np.asarray(Image.open(image.masks["anna"]["area"])).any()
  # By word of the user each is an example of its own.
  builder, _ = write.write(
    source_of(clips, labels), write.Options(tmp_path / "rows", builder="lus_folder")
  )
  found = manifest.read_folder(tmp_path / "rows").labels
  assert [(label.frame, label.annotator) for label in found] == [
    (1, "anna"),
    (1, "ben"),
    (0, "ben"),
  ]


@pytest.mark.parametrize(
  ("labels", "given", "part"),
  [
    ([("x", 3, {}, "")], {}, "has 3 \\(0 to 2\\)"),
    ([("x", 0, {}, ""), ("x", 0, {}, "")], {}, "labelled twice; name the people apart"),
    ([("x", 0, {}, "anna"), ("x", 0, {}, "")], {}, "Nobody says who drew frame 0"),
    ([("x", 0, {}, "anna")], {"builder": "multirater_folder"}, "anna drew all of it"),
    ([("x", 0, {}, "a/b")], {}, "'a/b' must be a file name"),
    ([("x", 0, {"line": np.zeros((3, 3), np.uint8)}, "")], {}, "3 x 3 and its frame 30 x 20"),
    ([("x", 0, {}, "")], {"thin": ("rib",)}, "--thin names 'rib'"),
  ],
)
def test_what_cannot_be_written(clips, tmp_path, labels, given, part):
  labels = [("p1_2024-03-01/L1", *rest) for _, *rest in labels]
  with pytest.raises(UserError, match=part):
    write.write(source_of(clips, labels), write.Options(tmp_path / "out", **given))
  assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_table_of_patients(clips, tmp_path):
  table = tmp_path / "who.csv"
  with table.open("w", newline="") as file:
    rows = [("video", "patient", "day", "sf_ratio"), ("p1_2024-03-01/L1.npy", "anna", "2", "300")]
    csv.writer(file).writerows(
      [*rows, ("p2_2024-01-31/R2", "ben", "", ""), ("gone.mp4", "x", "", "")]
    )
  pattern = re.compile("p[0-9]")
  found, notes = facts.gather(clips.clips(), table=table, patient_pattern=pattern)
  cells = [(name, x["patient"], x["day"], x["sf_ratio"]) for name, x in found.items()]
  assert cells == [
    ("p1_2024-03-01/L1", "anna", "2", "300"),
    ("p1_2024-03-04/L1", "p1", "", ""),
    ("p2_2024-01-31/R2", "ben", "", ""),
  ]
  assert "1 row(s) name no clip: gone.mp4" in notes[0] and "no row for 1" in notes[1]
  table.write_text("video,patient\nL1,anna\n")
  with pytest.raises(
    UserError, match="row 2: video 'L1' may be p1_2024-03-01/L1, p1_2024-03-04/L1"
  ):
    facts.gather(clips.clips(), table=table)


def test_of_all_clips_or_none_it_is_known_whose_they_are(clips, tmp_path):
  table = tmp_path / "who.csv"
  table.write_text("video,patient\nR2,ben\n")
  source = source_of(clips, [("p2_2024-01-31/R2", 0, {}, "")])
  with pytest.raises(UserError, match="Nobody says whose 2 clip"):
    write.write(source, write.Options(tmp_path / "out", table=table))
  write.write(source, write.Options(tmp_path / "out"))
  dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
  assert dataset["patients"] == "unknown"
  assert filecmp.cmp(
    tmp_path / "out/videos/p2_2024-01-31/R2.png",
    tmp_path / "in/p2_2024-01-31/R2.png",
    shallow=False,
  )


def test_clips_by_the_names_that_tools_give_them(clips, monkeypatch):
  warned = []
  monkeypatch.setattr(logging, "warning", lambda *args: warned.append(args))
  for text in ("R2", "r2.PNG", "p2_2024-01-31/R2.png", "C:\\work\\p2_2024-01-31\\R2.jpg", "/x/R2"):
    assert clips.find(text, "it") == "p2_2024-01-31/R2"
  assert clips.find("p1_2024-03-04/L1.npy", "it") == "p1_2024-03-04/L1"
  assert [args[1:] for args in warned] == [("it", "'/x/R2'", "p2_2024-01-31/R2")]
  with pytest.raises(UserError, match="it: 'L1' may be p1_2024-03-01/L1, p1_2024-03-04/L1, all in"):
    clips.find("L1", "it")
  for text in ("", "..", "../../etc/passwd", "L3"):
    with pytest.raises(UserError, match="is not in"):
      clips.find(text, "it")


def test_folders_of_pictures_are_clips_or_stills(tmp_path):
  for i in range(3):
    (tmp_path / "a").mkdir(exist_ok=True)
    Image.fromarray(np.full((H, W), i, np.uint8)).save(tmp_path / "a" / f"{i:03}.png")
  assert list(Videos(tmp_path).found) == ["a/000", "a/001", "a/002"]
  videos = Videos(tmp_path, clips_are_folders=True)
  assert videos.clips() == {"a": Clip("a", tmp_path / "a")}
  (tmp_path / "notes.txt").write_text("x")
  source = Source(Videos(tmp_path).clips(), [], ["line"])
  Videos(tmp_path).note_others(source)
  assert source.skipped == {"files that are neither videos nor pictures": ["notes.txt"]}


def test_days_of_one_patient_are_all_dates_or_all_numbers(clips, tmp_path):
  table = tmp_path / "who.csv"
  days = re.compile("_([-0-9]+)/")
  table.write_text("video,patient,day\np1_2024-03-01/L1,p1,3\n")
  given = {"table": table, "patient_pattern": re.compile("p[0-9]"), "day_pattern": days}
  with pytest.raises(UserError, match="both of patient 'p1', are a date and a number"):
    facts.gather(clips.clips(), **given)
  table.write_text("video,patient,day\nR2,p2,240301\n")
  with pytest.raises(UserError, match="neither a whole number up to 36500 nor a date"):
    facts.gather(clips.clips(), table=table, patient_pattern=re.compile("p[0-9]"))


def test_dates_of_nobody_are_left_out_and_counted(clips, tmp_path):
  found, notes = facts.gather(clips.clips(), day_pattern=re.compile("_([-0-9]+)/"))
  assert {cells["day"] for cells in found.values()} == {""}
  assert notes[0].startswith("Dates left out") and "of 3 clip(s)" in notes[0]


def test_a_border_wider_than_what_is_drawn_is_told(clips, tmp_path):
  source = source_of(clips, [("p1_2024-03-01/L1", 0, {"line": box(size=3), "area": box()}, "")])
  _, notes = write.write(source, write.Options(tmp_path / "out", soft_border=(5.0, "px")))
  # The middle of 3 pixels is 1.5 from the outline: 1/2 + 1.5/5.
  assert "line: in 1 label, 49 pixels, at most 80%." in notes
  assert [note for note in notes if note.startswith("--soft-border is wider than line: labels")]


def test_a_mask_of_0_and_1_is_told(clips, tmp_path, monkeypatch):
  warned = []
  monkeypatch.setattr(logging, "warning", lambda *args: warned.append(args[1:]))
  source = source_of(clips, [("p1_2024-03-01/L1", 2, {"line": box(1)}, "")])
  write.write(source, write.Options(tmp_path / "out"))
  assert ("p1_2024-03-01/L1", 1, "line", 2) in warned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(clips, tmp_path, number):
  def draw(media):
    os.kill(os.getpid(), number)
    return {}

  source = source_of(clips, [])
  source.labels.append(Label("p1_2024-03-01/L1", 0, draw))
  # What a shell runs in the background ignores Ctrl-C.
  known = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
  before = signal.signal(number, known)
  try:
    with pytest.raises(KeyboardInterrupt):
      write.write(source, write.Options(tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert signal.getsignal(number) is known
  finally:
    signal.signal(number, before)


def test_what_a_killed_import_left_is_removed(clips, tmp_path):
  (tmp_path / ".out.partial-4194305").mkdir()  # above the largest number of a process
  alive = tmp_path / f".out.partial-{os.getppid()}"
  alive.mkdir()
  write.write(source_of(clips, [("p1_2024-03-01/L1", 0, {}, "")]), write.Options(tmp_path / "out"))
  assert {path.name for path in tmp_path.iterdir()} == {"in", "out", alive.name}


def test_annotators_whose_names_tell_are_replaced(clips, tmp_path):
  labels = [("p1_2024-03-01/L1", 0, {}, who) for who in ("reader2", "Doe, Jane")]
  given = {"builder": "lus_folder", "deidentify": True, "key": tmp_path / "key"}
  _, notes = write.write(source_of(clips, labels), write.Options(tmp_path / "out", **given))
  names = {label.annotator for label in manifest.read_folder(tmp_path / "out").labels}
  assert "reader2" in names and len(names) == 2
  (other,) = names - {"reader2"}
  assert re.fullmatch("A[A-Z2-7]{10}", other)
  assert "Names of annotators were kept: reader2." in notes
  _, _ = write.write(
    source_of(clips, labels), write.Options(tmp_path / "kept", **given, keep_names=True)
  )
  names = {label.annotator for label in manifest.read_folder(tmp_path / "kept").labels}
  assert names == {"reader2", "Doe, Jane"}
  with pytest.raises(UserError, match="--keep-names are of de-identified copies"):
    write.write(source_of(clips, labels), write.Options(tmp_path / "x", keep_names=True))


@pytest.mark.parametrize("how", ["header", "motion", "still"])
def test_areas_that_are_found_hold_what_was_drawn(clips, tmp_path, monkeypatch, how):
  monkeypatch.setattr(scan_area, "find", lambda media: scan_area.Area((6, 10, 20, 30), how))
  labels = [("p1_2024-03-01/L1", 0, {"line": box()}, "")]
  _, notes = write.write(source_of(clips, labels), write.Options(tmp_path / "out"))
  drawn, other, _ = manifest.read_folder(tmp_path / "out").videos
  # What was drawn begins at row 4 and column 5.
  assert drawn.scan_area == (4, 5, 20, 30) and other.scan_area == (6, 10, 20, 30)
  assert "Scan areas widened to hold what was drawn: 1 (p1_2024-03-01/L1)." in notes


def test_what_a_given_area_cuts_off_is_told(clips, tmp_path):
  labels = [("p1_2024-03-01/L1", 0, {"line": box()}, "")]
  given = write.Options(tmp_path / "out", crop="8,0,20,20")
  _, notes = write.write(source_of(clips, labels), given)
  assert [note for note in notes if note.startswith("What was drawn leaves the area of --crop")]
  assert manifest.read_folder(tmp_path / "out").videos[0].scan_area == (0, 8, 20, 28)
