"""The folder that is painted in: what is saved is a data set, whole or not at all."""

import csv
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image

from lus_jax.annotate import store as store_lib
from lus_jax.errors import UserError
from lus_jax.media import readers
from tests.annotate import serving
from tfds_builders.lus_folder import manifest


@pytest.fixture
def directory(tmp_path):
  serving.make_clips(tmp_path / "set")
  return tmp_path / "set"


def saved(directory):
  """What a data set's reader finds: uint8 [K, h, w] by video, frame and annotator."""
  folder = manifest.read_folder(directory)
  return {
    (label.video.name, label.frame, label.annotator): np.stack(
      [np.rint(255 * readers.read_mask(label.masks[name])) for name in folder.classes]
    ).astype(np.uint8)
    for label in folder.labels
  }


def rows_of(file):
  with file.open(newline="") as opened:
    return list(csv.DictReader(opened))


def test_a_folder_of_clips_becomes_a_data_set_that_training_reads(directory):
  opened = serving.open_store(directory)
  assert opened.videos == ("a.npy", "b", "c.png")
  first, second = serving.planes(1), serving.planes(2)
  opened.save("a.npy", 3, first, "")
  opened.save("b", 0, second, "")
  opened.save("c.png", 0, np.zeros_like(first), "")
  found = saved(directory)
  assert set(found) == {("a.npy", 3, "anna"), ("b", 0, "anna"), ("c.png", 0, "anna")}
  np.testing.assert_array_equal(found["a.npy", 3, "anna"], first)
  np.testing.assert_array_equal(found["b", 0, "anna"], second)
  assert not found["c.png", 0, "anna"].any()
  folder = manifest.read_folder(directory)
  assert folder.patients_are_unknown and folder.classes == serving.CLASSES
  # The user's files stay where they were.
  assert (directory / "a.npy").is_file() and (directory / "b" / "000.png").is_file()
  # Again it is found as it is.
  before = serving.contents(directory)
  store_lib.prepare(directory)
  assert serving.contents(directory) == before


def test_numbered_pictures_alone_are_one_clip_and_others_stills(tmp_path):
  for name, files in {"clip": ("8", "9", "10"), "stills": ("1", "2", "4")}.items():
    (tmp_path / name).mkdir()
    for i, file in enumerate(files):
      pixels = np.full((8, 9), 20 * i, np.uint8)
      Image.fromarray(pixels).save(tmp_path / name / f"{file}.png")
  store_lib.prepare(tmp_path / "clip", ["x"])
  store_lib.prepare(tmp_path / "stills", ["x"])
  clip = store_lib.Store(tmp_path / "clip", "anna")
  assert clip.videos == ("clip",)
  assert clip.frames("clip", 0, 9)[:, 0, 0].tolist() == [0, 20, 40]
  assert store_lib.Store(tmp_path / "stills", "anna").videos == ("1.png", "2.png", "4.png")


@pytest.mark.parametrize("crowd", [".git/HEAD", ".venv/pyvenv.cfg", "env/pyvenv.cfg", "others"])
def test_a_folder_that_is_not_of_clips_is_refused_as_it_is(directory, crowd, monkeypatch):
  monkeypatch.setattr(store_lib, "MAX_OTHERS", 20)
  names = [f"docs/{i}.txt" for i in range(21)] if crowd == "others" else [crowd]
  for name in names:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("x")
  before = serving.contents(directory)
  says = "more than 20 files" if crowd == "others" else crowd.split("/HEAD")[0]
  with pytest.raises(UserError, match=f"{says}.* name the folder of the clips"):
    store_lib.prepare(directory, ["x"])
  assert serving.contents(directory) == before


def test_media_alone_are_linked(directory):
  (directory / "b" / "notes.txt").write_text("x")
  (directory / "visit" / "more").mkdir(parents=True)
  shutil.copy(directory / "a.npy", directory / "visit" / "more")
  (directory / "visit" / "table.csv").write_text("x")
  (directory / "v.mhd").write_text(
    "ObjectType = Image\nNDims = 3\nDimSize = 8 6 2\nElementType = MET_UCHAR\n"
    "ElementDataFile = v.raw\n"
  )
  (directory / "v.raw").write_bytes(bytes(range(96)))
  store_lib.prepare(directory, ["x"])
  linked = {path.relative_to(directory / "videos").as_posix() for path in files_of(directory)}
  pictures = {f"b/{i:03d}.png" for i in range(4)}
  assert linked == {"a.npy", "c.png", "visit/more/a.npy", "v.mhd", "v.raw", *pictures}
  opened = store_lib.Store(directory, "anna")
  assert opened.videos == ("a.npy", "b", "c.png", "v.mhd", "visit/more/a.npy")
  assert opened.frames("v.mhd", 0, 2).shape == (2, 6, 8)


def files_of(directory):
  return [path for path in (directory / "videos").rglob("*") if path.is_file()]


def test_nothing_is_left_of_a_folder_that_was_interrupted(directory, monkeypatch):
  before = serving.contents(directory)

  def interrupted(source, target, link=os.link):
    if source.name == "001.png":
      raise KeyboardInterrupt
    link(source, target)

  monkeypatch.setattr(store_lib.os, "link", interrupted)
  with pytest.raises(KeyboardInterrupt):
    store_lib.prepare(directory, ["x"])
  assert serving.contents(directory) == before and not list(directory.glob(".videos*"))


def test_a_folder_without_clips_says_so_before_it_asks_for_classes(tmp_path):
  with pytest.raises(UserError, match="holds no clip"):
    store_lib.prepare(tmp_path)
  assert not any(tmp_path.iterdir())


def write_dicom(path, frames):
  dataset = pydicom.Dataset()
  dataset.Modality, dataset.FrameTime = "US", "50"
  dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
  dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  dataset.PixelData = frames.tobytes()
  dataset.SOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
  dataset.SOPInstanceUID = pydicom.uid.generate_uid()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.save_as(path, enforce_file_format=True)


def test_clips_of_scanners_and_of_other_tools_are_painted_on(tmp_path):
  directory = tmp_path / "set"
  (directory / "videos" / "visit 1").mkdir(parents=True)
  frames = np.stack([np.full((16, 24), 40 * i, np.uint8) for i in range(4)])
  write_dicom(directory / "videos" / "visit 1" / "IM0001", frames)
  pictures = [Image.fromarray(frame) for frame in frames]
  options = {"save_all": True, "append_images": pictures[1:]}
  pictures[0].save(directory / "videos" / "b.gif", duration=50, **options)
  pictures[0].save(directory / "videos" / "c.tif", **options)
  opened = serving.open_store(directory)
  assert opened.videos == ("b.gif", "c.tif", "visit 1/IM0001")
  for video in opened.videos:
    np.testing.assert_array_equal(opened.frames(video, 0, 9), frames, video)
    planes = np.zeros((len(serving.CLASSES), 16, 24), np.uint8)
    planes[1, 3:9] = 153
    opened.save(video, 2, planes, "")
    np.testing.assert_array_equal(saved(directory)[video, 2, "anna"], planes)
  assert [opened.media(video).frames_per_second for video in opened.videos[::2]] == [20, 20]


@pytest.mark.parametrize("classes", [None, ["a", "A"], ["a/b"], ["_ignore"]])
def test_classes_have_to_be_named_and_fit_on_a_disk(directory, classes):
  before = serving.contents(directory)
  with pytest.raises(UserError, match="class"):
    store_lib.prepare(directory, classes)
  assert serving.contents(directory) == before


def test_a_second_save_replaces_the_first_whole_and_keeps_it(directory):
  opened = serving.open_store(directory, keep=3)
  base, all_planes = "", [serving.planes(i) for i in range(6)]
  for one in all_planes:
    base = opened.save("a.npy", 1, one, base)
  np.testing.assert_array_equal(saved(directory)["a.npy", 1, "anna"], all_planes[-1])
  kept = opened.revisions("a.npy", 1)
  assert [name[-5:] for name in kept] == ["r0004", "r0005", "r0006"] and kept[-1] == base
  np.testing.assert_array_equal(opened.masks("a.npy", 1, kept[0])[1], all_planes[3])
  rows = rows_of(directory / "provenance.csv")
  assert [row["masks"] for row in rows] == kept
  with pytest.raises(UserError, match="no revision"):
    opened.masks("a.npy", 1, "../../videos")


def test_who_saves_on_what_is_gone_is_told_and_may_keep_it_aside(directory):
  one, two = serving.open_store(directory), serving.open_store(directory)
  mine, theirs = serving.planes(1), serving.planes(2)
  stands = one.save("a.npy", 1, theirs, "")
  before = serving.contents(directory)
  with pytest.raises(store_lib.Conflict) as caught:
    two.save("a.npy", 1, mine, "")
  assert caught.value.revision == stands and serving.contents(directory) == before
  aside = two.save("a.npy", 1, mine, "", aside=True)
  assert two.masks("a.npy", 1)[0] == stands
  np.testing.assert_array_equal(saved(directory)["a.npy", 1, "anna"], theirs)
  np.testing.assert_array_equal(two.masks("a.npy", 1, aside)[1], mine)
  two.save("a.npy", 1, mine, stands)
  np.testing.assert_array_equal(saved(directory)["a.npy", 1, "anna"], mine)


def test_provenance_says_who_when_how_long_and_from_what(directory):
  opened = serving.open_store(directory)
  protocol = directory / "protocol.md"
  protocol.write_text("# Ours\n")
  opened.protocol = protocol
  work = store_lib.Work(2.5, ("pleura",), "runs/x: soft", ("band", "pleura"))
  base = opened.save("a.npy", 1, serving.planes(), "", work)
  opened.save("a.npy", 1, serving.planes(), base, store_lib.Work(3, ("a line",)))
  first, second = rows_of(directory / "provenance.csv")
  assert first["annotator"] == "anna" and first["time"].endswith("Z")
  assert first["tool"].startswith("lus_jax ") and len(first["protocol"]) == 12
  assert (first["prelabel"], first["prelabelled"]) == ("runs/x: soft", "pleura;band")
  # It goes on from the revision before.
  assert (second["seconds"], second["touched"]) == ("5.5", "pleura;a line")
  assert second["prelabel"] == "runs/x: soft"


def test_what_a_model_fills_anew_no_hand_has_touched(directory):
  opened = serving.open_store(directory)
  saves = (
    store_lib.Work(1, ("pleura", "band")),
    # The hand cleared the class before, as the model fills empty ones alone.
    store_lib.Work(1, (), "runs/x: soft", ("pleura",)),
    store_lib.Work(1, ("pleura",)),
    store_lib.Work(1, (), "runs/x: soft", ("pleura",)),
  )
  base, found = "", []
  for i, work in enumerate(saves):
    base = opened.save("a.npy", 1, serving.planes(i), base, work)
    found.append(rows_of(directory / "provenance.csv")[-1]["touched"])
  assert found == ["pleura;band", "band", "pleura;band", "band"]
  assert manifest.read_folder(directory).labels[0].work.touched == ("band",)


def test_a_consensus_is_one_whoever_paints_it(directory):
  opened = serving.open_store(directory)
  base = opened.save("a.npy", 1, serving.planes(), "", store_lib.Work(review=True))
  assert rows_of(directory / "provenance.csv")[-1]["review"] == "yes"
  # It stays one when its annotator mends it by themselves.
  opened.save("a.npy", 1, serving.planes(2), base)
  assert [row["review"] for row in rows_of(directory / "provenance.csv")] == ["yes", "yes"]
  opened.save("a.npy", 2, serving.planes(3), "")
  consensus, other = manifest.read_folder(directory).labels
  assert consensus.is_consensus and not other.is_consensus


@pytest.fixture
def clock(monkeypatch):
  """`clock(minutes)` sets the time of saves, from the beginning of an hour."""

  class Clock(datetime.datetime):
    minutes = 0

    @classmethod
    def now(cls, tz=None):
      return cls(2026, 1, 5, 10, tzinfo=tz) + datetime.timedelta(minutes=cls.minutes)

  monkeypatch.setattr(store_lib.datetime, "datetime", Clock)
  return lambda minutes: setattr(Clock, "minutes", minutes)


def test_what_the_page_saves_by_itself_makes_way_for_its_next_save(directory, clock):
  opened = serving.open_store(directory, keep=4)
  itself, base, seen = store_lib.Work(by_hand=False), "", {}
  for i, (minutes, work) in enumerate(
    (
      *((0.1, itself), (1, itself), (4.9, itself), (5.1, itself)),
      *((6, None), (6.1, itself), (6.2, itself), (66.2, itself), (66.3, None), (66.4, None)),
    )
  ):
    clock(minutes)
    base = opened.save("a.npy", 1, serving.planes(i), base, work)
    seen[i] = base
    kept = opened.history("a.npy", 1)
    # The last of each five minutes, and whatever a hand saved.
    assert kept[-1]["revision"] == base and kept[-1]["saved"] == ("itself" if work else "hand")
    expected = {0: [0], 1: [1], 2: [2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 3, 4, 5], 6: [2, 3, 4, 6]}
    expected |= {7: [3, 4, 6, 7], 8: [4, 6, 7, 8], 9: [6, 7, 8, 9]}
    assert [one["revision"] for one in kept] == [seen[j] for j in expected[i]], i
    assert [row["masks"] for row in rows_of(directory / "provenance.csv")] == opened.revisions(
      "a.npy", 1
    )
  np.testing.assert_array_equal(opened.masks("a.npy", 1, seen[6])[1], serving.planes(6))
  assert kept[0]["time"] == "2026-01-05T10:06:12Z"


def test_a_save_that_changes_no_pixel_needs_no_revision(directory):
  opened = serving.open_store(directory)
  itself = store_lib.Work(seconds=2, touched=("pleura",), by_hand=False)
  first = opened.save("a.npy", 1, serving.planes(), "", itself)
  assert opened.save("a.npy", 1, serving.planes(), first, itself) == first
  # By hand: what was saved by itself is kept from now on.
  assert opened.save("a.npy", 1, serving.planes(), first, store_lib.Work(3, ("band",))) == first
  (row,) = rows_of(directory / "provenance.csv")
  assert (row["seconds"], row["touched"], row["saved"]) == ("7.0", "pleura;band", "hand")
  second = opened.save("a.npy", 1, serving.planes(2), first, itself)
  assert opened.revisions("a.npy", 1) == [first, second]
  with pytest.raises(store_lib.Conflict):
    opened.save("a.npy", 1, serving.planes(2), first, itself)


def test_that_a_frame_shows_nothing_is_a_hands_to_say(directory):
  opened, empty = serving.open_store(directory), np.zeros_like(serving.planes())
  itself = store_lib.Work(2, by_hand=False)
  before = serving.contents(directory)
  assert opened.save("a.npy", 1, empty, "", itself) == ""
  assert serving.contents(directory) == before
  # All is undone, after the page has saved it by itself or a hand has.
  for number, work in enumerate((itself, None), 1):
    first = opened.save("a.npy", 1, serving.planes(number), "", work)
    assert opened.save("a.npy", 1, empty, first, itself) == ""
    assert not rows_of(directory / "labels.csv") and opened.masks("a.npy", 1)[0] == ""
    np.testing.assert_array_equal(opened.masks("a.npy", 1, first)[1], serving.planes(number))
  with pytest.raises(store_lib.Conflict):  # another window still has it
    opened.save("a.npy", 1, serving.planes(3), first, itself)
  # Once a hand has said it, it is a label, and one again where what came after is undone.
  base = opened.save("a.npy", 1, empty, "", None)
  base = opened.save("a.npy", 1, serving.planes(4), base, itself)
  base = opened.save("a.npy", 1, empty, base, itself)
  assert base and not saved(directory)["a.npy", 1, "anna"].any()


def test_what_another_window_saved_by_itself_stays_when_a_hand_puts_its_own_in_place(directory):
  opened, itself = serving.open_store(directory), store_lib.Work(by_hand=False)
  theirs = opened.save("a.npy", 1, serving.planes(1), "", itself)
  mine = opened.save("a.npy", 1, serving.planes(2), theirs)
  last = opened.save("a.npy", 1, serving.planes(3), mine, itself)
  assert opened.revisions("a.npy", 1) == [theirs, mine, last]


def test_an_offer_that_replaced_what_a_hand_took_away_is_untouched(directory):
  opened = serving.open_store(directory)
  base = opened.save("a.npy", 1, serving.planes(), "", store_lib.Work(1, ("pleura", "band")))
  offered = store_lib.Work(1, ("pleura",), "runs/x: soft", ("band",))
  base = opened.save("a.npy", 1, serving.planes(2), base, offered)
  origin = {"prelabel": "runs/x: soft", "saved": "hand", "review": ""}
  known = {"prelabelled": ["band"], "touched": ["pleura"]}
  assert opened.origin("a.npy", base) == origin | known
  # What nobody has touched is to do.
  offer = store_lib.Work(1, (), "runs/x: soft", ("band",))
  seen = opened.save("b", 1, serving.planes(2), "", offer)
  work = opened.work()
  assert [(w["done"], w["offered"]) for w in work] == [(True, False), (False, True)]
  opened.save("b", 1, serving.planes(2), seen, store_lib.Work(1, ("band",)))
  assert [(w["done"], w["offered"]) for w in opened.work()] == [(True, False)] * 2
  base = opened.save("a.npy", 1, serving.planes(3), base, store_lib.Work(prelabelled=()))
  assert opened.origin("a.npy", base) == origin | {"prelabelled": [], "touched": ["pleura"]}
  assert opened.models() == {"runs/x: soft"} and opened.origin("a.npy", "") == {
    "prelabel": "",
    "saved": "",
    "review": "",
    "prelabelled": [],
    "touched": [],
  }


def test_annotators_do_not_see_each_other_and_learn_what_is_left(directory):
  anna, ben = serving.open_store(directory), serving.open_store(directory, "ben")
  anna.save("b", 2, serving.planes(), "")
  assert not ben.masks("b", 2)[1].any() and ben.masks("b", 2)[0] == ""
  assert ben.revisions("b", 2) == []
  assert [(w["video"], w["frame"], w["done"]) for w in ben.work()] == [("b", 2, False)]
  ben.note("a.npy", 1, "flag", "=what  is\nthis?")
  ben.save("b", 2, serving.planes(3), "", store_lib.Work(seconds=4))
  left = {(w["video"], w["frame"]): w for w in ben.work()}
  assert left["a.npy", 1]["note"] == "flag" and left["a.npy", 1]["comment"] == "'=what is this?"
  assert left["b", 2]["done"] and left["b", 2]["seconds"] == 4
  assert [(w["video"], w["done"]) for w in anna.work()] == [("b", True)]
  ben.note("a.npy", 1, "", "")
  assert ("a.npy", 1) not in {(w["video"], w["frame"]) for w in ben.work()}
  found = saved(directory)
  assert set(found) == {("b", 2, "anna"), ("b", 2, "ben")}
  assert list(anna.of_all("b", 2)) == ["anna", "ben"]


def test_a_name_that_differs_in_capitals_is_refused(directory):
  serving.open_store(directory).save("a.npy", 0, serving.planes(), "")
  with pytest.raises(UserError, match="--annotator 'anna'"):
    serving.open_store(directory, "Anna")
  for name in ("", "../x", "a/b", " x"):
    with pytest.raises(UserError, match="--annotator"):
      serving.open_store(directory, name)


def make_imported(directory):
  """A folder whose masks lie where importers put them, with all that a table may have."""
  store_lib.prepare(directory, serving.CLASSES)
  for place in ("b/000001", "a/000000/anna"):
    (directory / "masks" / place).mkdir(parents=True)
    for k, name in enumerate(serving.CLASSES):
      mask = serving.planes(9)[k].astype(np.uint16) * 257
      Image.fromarray(mask).save(directory / "masks" / place / f"{name}.png")
  ignored = np.zeros((serving.HEIGHT, serving.WIDTH), np.uint8)
  ignored[:5] = 255
  Image.fromarray(ignored).save(directory / "masks" / "a/000000/anna" / "_ignore.png")
  (directory / "labels.csv").write_text(
    "masks;video;frame;annotator;quality\nb/000001;b;1;;good\na/000000/anna;a.npy;0;anna;poor\n"
  )


def test_what_was_imported_stays_and_is_painted_on(directory):
  make_imported(directory)
  opened = serving.open_store(directory)
  base, planes = opened.masks("a.npy", 0)
  assert base == "a/000000/anna"
  np.testing.assert_array_equal(planes, serving.planes(9))
  opened.save("a.npy", 0, serving.planes(1), base)
  # Nobody knows who painted b; its masks lie where anna's would lie within them.
  opened.save("b", 1, serving.planes(2), "")
  found = saved(directory)
  np.testing.assert_array_equal(found["b", 1, ""], serving.planes(9))
  np.testing.assert_array_equal(found["b", 1, "anna"], serving.planes(2))
  np.testing.assert_array_equal(found["a.npy", 0, "anna"], serving.planes(1))
  assert [row["quality"] for row in rows_of(directory / "labels.csv")] == ["good", "poor", ""]
  labels = manifest.read_folder(directory).labels
  assert [label.ignore is not None for label in labels] == [False, True, False]
  assert opened.revisions("a.npy", 0)[0] == "a/000000/anna"
  np.testing.assert_array_equal(opened.masks("a.npy", 0, "a/000000/anna")[1], serving.planes(9))


def test_what_was_imported_stays_a_revision_where_all_is_erased(directory):
  make_imported(directory)
  opened, itself = serving.open_store(directory), store_lib.Work(by_hand=False)
  base, planes = opened.masks("a.npy", 0)
  assert opened.save("a.npy", 0, np.zeros_like(planes), base, itself) == ""
  assert [row["video"] for row in rows_of(directory / "labels.csv")] == ["b"]
  assert opened.revisions("a.npy", 0) == [base]
  # What counts nowhere is found again when somebody paints there.
  opened.save("a.npy", 0, planes, "", itself)
  labels = manifest.read_folder(directory).labels
  assert [label.ignore is not None for label in labels] == [False, True]


@pytest.mark.parametrize("known", ["nothing", "a blank row", "kept aside"])
def test_what_was_imported_is_a_hands_beside_what_a_model_offers(directory, known):
  make_imported(directory)
  for name in ("a line", "band"):
    (directory / "masks" / "a/000000/anna" / f"{name}.png").unlink()
  opened = serving.open_store(directory)
  base, planes = opened.masks("a.npy", 0)
  assert opened.origin("a.npy", base)["touched"] == ["pleura"]
  if known == "a blank row":
    cells = {"masks": base, "video": "a.npy", "frame": "0", "annotator": "anna"}
    rows = [store_lib.PROVENANCE, [cells.get(name, "") for name in store_lib.PROVENANCE]]
    (directory / "provenance.csv").write_text("\n".join(map(",".join, rows)) + "\n")
  elif known == "kept aside":
    opened.save("a.npy", 0, planes, base, aside=True)
  planes[2] = 99
  itself = store_lib.Work(1, (), "runs/x: soft", ("band",), by_hand=False)
  base = opened.save("a.npy", 0, planes, base, itself)
  label = next(one for one in manifest.read_folder(directory).labels if one.annotator == "anna")
  assert (label.work.touched, label.work.prelabelled) == (("pleura",), ("band",))
  assert not label.is_untouched
  # What the model put in place of the hand's is the model's.
  planes[0] = 50
  again = store_lib.Work(1, (), "runs/x: soft", ("pleura", "band"))
  opened.save("a.npy", 0, planes, base, again)
  label = next(one for one in manifest.read_folder(directory).labels if one.annotator == "anna")
  assert label.is_untouched


def test_a_class_with_a_semicolon_keeps_its_provenance(directory):
  store_lib.prepare(directory, ["x", "y;z"])
  opened = store_lib.Store(directory, "anna")
  planes = np.ones((2, serving.HEIGHT, serving.WIDTH), np.uint8)
  base = opened.save("a.npy", 1, planes, "", store_lib.Work(1, ("y;z",), "runs/x: soft", ("y;z",)))
  known = {"prelabelled": ["y;z"], "touched": ["y;z"]}
  origin = opened.origin("a.npy", base)
  assert {name: origin[name] for name in known} == known
  opened.save("a.npy", 1, planes + 1, base, store_lib.Work(1, ("x",)))
  (label,) = manifest.read_folder(directory).labels
  assert (label.work.prelabelled, label.work.touched) == (("y;z",), ("x", "y;z"))


@pytest.mark.parametrize("annotator", ["carl", "consensus"])
def test_what_the_page_keeps_of_a_review_is_no_consensus_yet(directory, caplog, annotator):
  serving.open_store(directory).save("a.npy", 1, serving.planes(), "")
  opened = serving.open_store(directory, annotator)
  # Whoever is called consensus paints one, with the others in sight or not.
  itself = store_lib.Work(review=annotator == "carl", by_hand=False)
  by_hand = store_lib.Work(review=annotator == "carl")
  base = opened.save("a.npy", 1, serving.planes(2), "", itself)
  assert opened.origin("a.npy", base)["review"] == "begun"
  assert [one["done"] for one in opened.work()] == [False]
  (label,) = manifest.read_folder(directory).labels
  assert label.annotator == "anna"
  assert "labels.csv: 1 label left out: a consensus that was begun" in caplog.text
  assert "row 3" in caplog.text
  # By hand, without another stroke: from here on it stands, also while the page saves by itself.
  assert opened.save("a.npy", 1, serving.planes(2), base, by_hand) == base
  base = opened.save("a.npy", 1, serving.planes(3), base, itself)
  assert [one["done"] for one in opened.work()] == [True]
  assert [label.is_consensus for label in manifest.read_folder(directory).labels] == [False, True]


def test_an_imported_consensus_stays_one(directory):
  make_imported(directory)
  labels = directory / "labels.csv"
  labels.write_text(labels.read_text().replace(";anna;", ";consensus;"))
  opened = serving.open_store(directory, "consensus")
  base, planes = opened.masks("a.npy", 0)
  itself = store_lib.Work(by_hand=False, review=True)
  opened.save("a.npy", 0, planes // 2, base, itself)
  label = manifest.read_folder(directory).labels[1]
  assert label.work is not None and label.is_consensus


def test_a_clip_that_does_not_open_is_noted_whole(directory):
  ben = serving.open_store(directory, "ben")
  for frame in (1, 3):
    ben.save("b", frame, serving.planes(), "")
  for path in (directory / "videos" / "b").iterdir():
    path.write_bytes(b"no picture")
  (directory / "videos" / "a.npy").write_bytes(b"no clip")
  anna = serving.open_store(directory)
  for video in ("a.npy", "b"):
    with pytest.raises(UserError):
      anna.note(video, 1, "skip", "damaged")
    anna.note(video, None, "skip", "damaged")
  found = {(one["video"], one["frame"]): one["comment"] for one in anna.work()}
  assert found == dict.fromkeys([("a.npy", 0), ("b", 1), ("b", 3)], "damaged")
  anna.note("b", None, "", "")
  assert [one["note"] for one in anna.work()] == ["skip", "", ""]
  with pytest.raises(UserError, match="no video"):
    anna.note("x", None, "skip", "")


def test_frames_that_are_counted_as_their_files_are_written_so(directory):
  make_imported(directory)
  (directory / "labels.csv").unlink()
  for path in (directory / "videos" / "b").iterdir():
    path.rename(path.with_name(f"{int(path.stem) + 10}.png"))
  dataset = json.loads((directory / "dataset.json").read_text())
  (directory / "dataset.json").write_text(json.dumps(dataset | {"frame_numbers": "of_files"}))
  opened = serving.open_store(directory)
  base = opened.save("b", 2, serving.planes(), "")
  assert rows_of(directory / "labels.csv")[0]["frame"] == "12"
  assert set(saved(directory)) == {("b", 2, "anna")}
  assert opened.masks("b", 2)[0] == base


def test_masks_whose_100_percent_is_not_255_are_refused(directory):
  store_lib.prepare(directory, serving.CLASSES)
  dataset = json.loads((directory / "dataset.json").read_text())
  (directory / "dataset.json").write_text(json.dumps(dataset | {"confidence_maximum": 100}))
  with pytest.raises(UserError, match="confidence_maximum"):
    serving.open_store(directory)


# Kills itself at each step of a save in turn; prints what a reader finds then, a word a step.
KILLED = """
import io, os, pathlib, shutil, signal, sys
import numpy as np
from tests.annotate import serving, test_store
root = pathlib.Path(sys.argv[1])
os.fsync = lambda fd: None  # a kill does not lose what was written
serving.make_clips(root / "first")
old, new = serving.planes(1), serving.planes(2)
opened = serving.open_store(root / "first")
base = opened.save("a.npy", 1, old, "")
words = {old.tobytes(): "old", new.tobytes(): "new"}
steps = "fsync mkdir rename replace unlink rmdir open".split()
at, killed = 0, True
while killed:
  directory = root / str(at)
  shutil.copytree(root / "first", directory)
  opened = serving.open_store(directory, keep=1)
  child = os.fork()
  if not child:
    left = at

    def dies(original):
      def call(*args, **options):
        global left
        done = original(*args, **options)
        left -= 1
        if left < 0:
          os.kill(os.getpid(), signal.SIGKILL)
        return done
      return call

    # After each of them: a file that was opened to be written is empty then.
    for name in steps:
      setattr(os, name, dies(getattr(os, name)))
    io.open = dies(io.open)
    opened.save("a.npy", 1, new, base)
    os._exit(0)
  killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
  found = test_store.saved(directory)["a.npy", 1, "anna"]
  again = serving.open_store(directory)
  kept = {words.get(again.masks("a.npy", 1, one)[1].tobytes(), "half")
          for one in again.revisions("a.npy", 1)}
  again.save("a.npy", 1, old, again.masks("a.npy", 1)[0])
  assert not list(directory.rglob(".r*.tmp")) and not list(directory.glob(".*.tmp"))
  print("half" if "half" in kept else words.get(found.tobytes(), "half"), flush=True)
  shutil.rmtree(directory)
  at += 1
"""


def run_python(script, *arguments, **options):
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  command = [sys.executable, "-c", script, *map(str, arguments)]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
  )


def test_a_kill_at_any_step_leaves_the_old_masks_or_the_new(tmp_path):
  child = run_python(KILLED, tmp_path)
  out, errors = child.communicate(timeout=120)
  assert child.returncode == 0, errors[-2000:]
  seen = out.split()
  assert set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True) and len(seen) > 12


# Saves into frames of its own, and into one that the other process saves into too.
BUSY = """
import pathlib, sys
from lus_jax.annotate import store
from tests.annotate import serving
import os
os.fsync = lambda fd: None
directory, name, n = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
own, shared = serving.open_store(directory, name), serving.open_store(directory, "both", keep=1000)
print("ready", flush=True)
sys.stdin.readline()
conflicts = 0
for i in range(n):
  own.save("a.npy", i, serving.planes(i), "")
  own.note("b", i, "flag", name)
  while True:
    try:
      shared.save("c.png", 0, serving.planes(i), shared.masks("c.png", 0)[0])
      break
    except store.Conflict:
      conflicts += 1
print(conflicts, flush=True)
"""


def test_two_processes_that_save_into_one_folder_lose_nothing(tmp_path):
  n, directory = 6, tmp_path / "set"
  serving.make_clips(directory, n)
  serving.open_store(directory)
  children = [run_python(BUSY, directory, name, n, stdin=subprocess.PIPE) for name in ("x", "y")]
  ready = [child.stdout.readline() for child in children]
  for child in children:
    child.stdin.write("go\n")
    child.stdin.flush()
  errors = [child.communicate(timeout=60)[1] for child in children]
  assert [child.returncode for child in children] == [0, 0] and ready == 2 * ["ready\n"], errors
  found = saved(directory)
  own = {("a.npy", i, name): i for i in range(n) for name in ("x", "y")}
  assert set(found) == {*own, ("c.png", 0, "both")}
  for key, i in own.items():
    np.testing.assert_array_equal(found[key], serving.planes(i))
  masks = [row["masks"] for row in rows_of(directory / "provenance.csv")]
  assert len(masks) == len(set(masks)) == 4 * n
  opened = serving.open_store(directory, "both")
  revisions = opened.revisions("c.png", 0)
  # Each was painted on the one before, and each is there.
  assert len(revisions) == 2 * n and opened.masks("c.png", 0)[0] == revisions[-1]
  contents = sorted(opened.masks("c.png", 0, one)[1].tobytes() for one in revisions)
  assert contents == sorted(2 * [serving.planes(i).tobytes() for i in range(n)])
  notes = {(row["frame"], row["comment"]) for row in rows_of(directory / "notes.csv")}
  assert notes == {(str(i), name) for i in range(n) for name in ("x", "y")}


LOOP = """
import pathlib, sys
import numpy as np
from tests.annotate import serving
opened = serving.open_store(pathlib.Path(sys.argv[1]))
revision, planes = opened.masks("a.npy", 1)
print("ready", flush=True)
value = 0
while True:
  value = value % 250 + 1
  revision = opened.save("a.npy", 1, np.full_like(planes, value), revision)
"""


def test_a_killed_process_leaves_masks_of_one_save(directory):
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  for seconds in (0.31, 0.17):
    child = subprocess.Popen(
      [sys.executable, "-c", LOOP, directory], stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout.readline() == b"ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
      child.wait(seconds)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    found = saved(directory)["a.npy", 1, "anna"]
    assert found.min() == found.max() > 0
