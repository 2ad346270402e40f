"""How masks came to be, as provenance.csv says: what is kept, refused, and what it changes."""

import math
import shutil

import pytest

from lus_jax.errors import UserError
from tests import painted
from tfds_builders import tables
from tfds_builders.lus_folder import manifest
from tfds_builders.lus_folder.lus_folder import LusFolder, folder_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return painted.make(tmp_path_factory.mktemp("painted") / "set")


@pytest.fixture
def directory(made, tmp_path):
  return shutil.copytree(made, tmp_path / "set")


def labels_of(directory):
  return {
    (label.video.name.removesuffix(".npy"), label.frame, label.annotator): label
    for label in manifest.read_folder(directory).labels
  }


def change_row(directory, key, **cells):
  """Changes cells of the row of the revision that stands."""

  def how(rows):
    painted.standing(rows, *key).update(cells)
    return rows

  painted.change(directory, how)


def test_the_row_of_the_revision_that_stands_is_read(directory):
  found = labels_of(directory)
  assert list(found) == list(painted.KEYS)
  assert {key for key, label in found.items() if label.is_untouched} == painted.UNTOUCHED
  assert {key for key, label in found.items() if label.is_consensus} == {("t2", 0, "carl")}
  assert [key for key, label in found.items() if label.work is None] == [painted.ELSEWHERE]
  work = found["t1", 2, "anna"].work
  assert (work.prelabel, work.prelabelled, work.touched) == (
    painted.MODEL,
    painted.CLASSES,
    ("pleura",),
  )
  assert work.seconds == 20 and work.tool.startswith("lus_jax ") and work.protocol == ""
  assert work.time.endswith("+00:00") and len(work.time) == 25
  # Two revisions: what was offered and then corrected is no pre-label that nobody touched.
  work = found["t2", 1, "ben"].work
  assert (work.touched, work.seconds) == (painted.CLASSES, 3)


def test_older_revisions_count_for_nothing(directory):
  before = manifest.read_folder(directory).fingerprint

  def spoil(rows):
    first = next(row for row in rows if row["video"] == "t2.npy" and row["frame"] == "1")
    assert first["touched"] == ""
    first |= {"seconds": "many", "touched": "nobody", "time": "never"}
    return rows

  painted.change(directory, spoil)
  assert manifest.read_folder(directory).fingerprint == before
  # Nor does the order of the rows, or another way to write a number or a time.
  painted.change(directory, lambda rows: rows[::-1])
  time = labels_of(directory)["v", 0, "anna"].work.time
  change_row(directory, ("v", 0, "anna"), seconds="40", time=time.replace("+00:00", "Z"))
  assert manifest.read_folder(directory).fingerprint == before


@pytest.mark.parametrize(
  "cells",
  [
    {"touched": "band;pleura"},
    {"prelabelled": "band"},
    {"prelabel": "another"},
    {"seconds": "41"},
    {"time": "2026-01-31T12:00:00Z"},
    {"tool": "brush 2"},
    {"protocol": "abc"},
    {"review": "yes"},
  ],
)
def test_what_is_used_changes_the_fingerprint(directory, cells):
  before = manifest.read_folder(directory)
  videos = folder_config("videos", 8, 8, directory=directory).name
  change_row(directory, ("v", 0, "anna"), **cells)
  assert manifest.read_folder(directory).fingerprint != before.fingerprint
  # Videos have no masks.
  assert folder_config("videos", 8, 8, directory=directory).name == videos


def test_a_set_without_provenance_is_what_it_was(directory):
  path = directory / "provenance.csv"
  rows = path.read_text()
  path.unlink()
  folder = manifest.read_folder(directory)
  assert not folder.has_provenance
  # As of versions that did not know the table.
  names = ("dataset.json", "manifest.csv", "patients.csv", "labels.csv")
  files = [file for label in folder.labels for file in label.masks.values()]
  files += [file for video in folder.videos for file in video.media.files]
  contents = tables.contents(directory, set(files))
  assert folder.fingerprint == tables.fingerprint(directory, names, contents)
  # A table that says nothing of what is labelled changes nothing.
  header, *_ = rows.splitlines()
  for text in (header, f"{header}\ngone/r0001,t1.npy,0,anna,,,,,,,,\n"):
    path.write_text(text)
    assert manifest.read_folder(directory).fingerprint == folder.fingerprint
  config = folder_config("frames", 8, 10, directory=directory)
  features = LusFolder(config=config, data_dir=directory / "data").info.features
  assert "touched" not in features and config.folder.has_provenance is False


def test_a_table_of_before_such_a_column_is_read(directory):
  painted.change(directory, lambda rows: [dict(list(row.items())[:-1]) for row in rows])
  found = labels_of(directory)
  assert not any(label.is_consensus for label in found.values())
  assert found["t1", 1, "anna"].is_untouched


def test_whoever_is_called_consensus_is_one(tmp_path):
  saved = [(*saved[:2], "consensus", saved[3]) for saved in painted.SAVED[:1]]
  directory = painted.make(tmp_path / "set", saved=saved)
  (directory / "provenance.csv").unlink()
  (label,) = manifest.read_folder(directory).labels
  assert label.is_consensus and label.work is None


def test_a_name_makes_a_consensus_only_where_nothing_is_known(tmp_path):
  saved = [(*saved[:2], "consensus", saved[3]) for saved in painted.SAVED[:1]]
  directory = painted.make(tmp_path / "set", saved=saved)
  for cell, expected in (("yes", [True]), ("", [False]), ("begun", [])):
    change_row(directory, ("t1", 0, "consensus"), review=cell)
    labels = manifest.read_folder(directory).labels
    assert [label.is_consensus for label in labels] == expected


@pytest.mark.parametrize(
  ("cells", "message"),
  [
    ({"seconds": "-1"}, "seconds '-1' is not a number from 0"),
    ({"seconds": "long"}, "seconds 'long' is not a number from 0"),
    ({"time": "yesterday"}, "time 'yesterday' is no time"),
    ({"time": "0001-01-01T00:00:00+14:00"}, "time '0001-01-01T00:00:00+14:00' is no time"),
    ({"touched": "pleura;line"}, "touched names 'line', which is no class of dataset.json"),
    ({"prelabelled": "Pleura"}, "prelabelled names 'Pleura'"),
    ({"review": "perhaps"}, "unknown review 'perhaps'; write one of yes, begun"),
    ({"annotator": "ben"}, "annotator 'anna', in labels.csv row 9, and here of frame 0 of v.npy"),
    ({"frame": "1"}, "and here of frame 1 of v.npy"),
    ({"frame": "one"}, "frame 'one' is not a whole number from 0"),
    ({"video": "s.npy"}, "and here of frame 0 of s.npy"),
    ({"masks": ""}, "masks is empty"),
    ({"masks": "../x"}, "leads out of its folder"),
  ],
)
def test_nonsense_is_named_with_file_and_row(directory, cells, message):
  change_row(directory, ("v", 0, "anna"), **cells)
  with pytest.raises(UserError) as caught:
    manifest.read_folder(directory)
  text = str(caught.value)
  assert text.startswith(f"{directory / 'provenance.csv'} row 10: ") and message in text


def test_rows_of_one_revision_and_lost_columns_are_refused(directory):
  painted.change(directory, lambda rows: [*rows, rows[0]])
  with pytest.raises(UserError, match=r"provenance.csv row 13: the same masks as row 2"):
    manifest.read_folder(directory)
  painted.change(
    directory, lambda rows: [{k.replace("touched", "Touched"): v for k, v in rows[0].items()}]
  )
  with pytest.raises(UserError, match="did you mean 'touched'"):
    manifest.read_folder(directory)
  painted.change(directory, lambda rows: [{"masks": rows[0]["masks"]}])
  with pytest.raises(UserError, match=r"provenance.csv row 1: the required column 'video'"):
    manifest.read_folder(directory)


def test_a_class_may_have_a_semicolon_in_its_name():
  row = tables.Row("provenance.csv", 2, {"touched": "x;y;x"})
  assert manifest.classes_in(row, "touched", ("x", "y", "x;y")) == ("x", "x;y")


def test_examples_hold_it(directory, tmp_path):
  config = folder_config("frames", 8, 10, directory=directory)
  builder = LusFolder(config=config, data_dir=tmp_path / "data")
  builder.download_and_prepare()
  assert builder.info.metadata["has_provenance"]
  found = {
    (example["video"].decode(), example["frame"], example["annotator"].decode()): example
    for source in builder.as_data_source().values()
    for example in source
  }
  assert set(found) == {(f"{video}.npy", *rest) for video, *rest in painted.KEYS}
  one = found["t1.npy", 2, "anna"]
  assert one["prelabelled"].tolist() == [True, True] and one["touched"].tolist() == [True, False]
  assert one["prelabel"].decode() == painted.MODEL and one["seconds"] == 20
  assert one["tool"].decode().startswith("lus_jax ") and not one["consensus"]
  assert found["t2.npy", 0, "carl"]["consensus"]
  video, *rest = painted.ELSEWHERE
  one = found[f"{video}.npy", *rest]
  assert math.isnan(one["seconds"]) and not one["touched"].any() and one["time"] == b""


def test_masks_of_the_page_without_their_rows_are_warned_of(directory, caplog):
  said = "what of them a model painted and nobody touched is not known"
  # One of its labels is in the page's layout and was painted elsewhere.
  labels = manifest.read_folder(directory).labels
  assert "labels.csv: 1 label, row " in caplog.text and said in caplog.text
  caplog.clear()
  (directory / "provenance.csv").unlink()
  assert len(manifest.read_folder(directory).labels) == len(labels) == len(painted.KEYS)
  assert f"labels.csv: {len(labels)} labels, row 2 first" in caplog.text and said in caplog.text
