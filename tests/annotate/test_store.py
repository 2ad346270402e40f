"""The folder that is painted in: what is saved is a data set, whole or not at all."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
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
  assert found == ["pleura;band", "band", "pleura;band", "pleura;band"]
  assert manifest.read_folder(directory).labels[0].work.touched == ("pleura", "band")


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


class Killed(BaseException):
  """What no handler of errors takes for one."""


def test_a_kill_at_any_step_leaves_the_old_masks_or_the_new(tmp_path, monkeypatch):
  steps = [(os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink")]
  steps += [(os, "rmdir"), (os, "open")]
  old, new = serving.planes(1), serving.planes(2)
  seen, at = [], 0
  while True:
    directory = tmp_path / str(at)
    serving.make_clips(directory)
    opened = serving.open_store(directory, keep=1)
    base = opened.save("a.npy", 1, old, "")
    left = at

    def counted(original):
      def call(*args, **options):
        nonlocal left
        left -= 1
        if left < 0:
          raise Killed
        return original(*args, **options)

      return call

    with monkeypatch.context() as patch:
      for module, name in steps:
        patch.setattr(module, name, counted(getattr(module, name)))
      try:
        opened.save("a.npy", 1, new, base)
      except Killed:
        pass
      else:
        break
    found = saved(directory)["a.npy", 1, "anna"]
    seen.append("old" if (found == old).all() else "new" if (found == new).all() else "half")
    # What is left over does not stop the next start.
    again = serving.open_store(directory)
    again.save("a.npy", 1, new, again.masks("a.npy", 1)[0])
    assert not list(directory.rglob(".r*.tmp"))
    shutil.rmtree(directory)
    at += 1
  assert set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True) and at > 12


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
