"""A run on what two annotators and a model painted: who painted what is kept, said and shown."""

import csv
import functools
import os
import types

import pytest

from configs import seg
from lus_jax import main, models, results
from lus_jax.annotate import store as store_lib
from lus_jax.data import copies, datasets, selection, summary
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.media import scan_area
from lus_jax.report import clips
from lus_jax.training import claim
from tests import painted, toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return painted.make(tmp_path_factory.mktemp("painted") / "set")


def make_config(folder, **changes):
  options = {"data.name": "lus_folder", "data.dir": os.fspath(folder), "data.image_size": 32}
  options |= {"data.prepared_dir": os.fspath(folder.parent / "data"), "train.steps": 0}
  options |= {"sweep.thresholds": (0.6,), "train.epochs": 1, "train.batch_size": 1}
  return toys.change(seg.get_config("tiny"), options | changes).lock()


# What is found of persons, of whom these are too few.
TOLD = copies.Told("Patients p_t1 and p_s may be one.", "2 patients may be one.")


@pytest.fixture(scope="module")
def printed():
  return []


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory, printed):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_model)
    patch.setattr(copies, "among", lambda looks: [TOLD])
    patch.setattr("builtins.print", lambda *texts, **_: printed.extend(texts))
    main.run(make_config(folder), os.fspath(workdir))
  return workdir


def test_the_run_says_and_keeps_what_is_left_out(finished, printed):
  text = "\n".join(map(str, printed))
  left = "left out: 2 labels (1 train, 0 validation, 1 test), which a model painted and nobody"
  agreed = "left out: 2 labels (2 train, 0 validation, 0 test), for which a consensus stands"
  assert "painted: 4 train, 1 validation, 2 test frames" in text
  assert f"note: {left} touched." in text and f"note: {agreed}." in text
  content = results.read(finished, "dataset")
  assert content["dataset"]["splits"] == {"train": 4, "validation": 1, "test": 2}
  by_split = {row["split"]: row for row in content["rows"]}
  assert {name: row["left_out"] for name, row in by_split.items()} == {
    "train": {"untouched": 1, "replaced": 2},
    "validation": {},
    "test": {"untouched": 1},
  }
  assert {name: row["frames"] for name, row in by_split.items()} == content["dataset"]["splits"]
  assert set(by_split["train"]["painted"]) == {"anna", "ben", "carl"}
  cases = results.read(finished, "cases")["rows"]
  found = {(row["video"], row["frame"], row["annotator"]) for row in cases}
  assert found == {("s.npy", 0, "anna"), ("s.npy", 1, "ben")}
  assert any(note.startswith(left) for note in results.read(finished, "segmentation")["notes"])


def test_the_run_keeps_what_its_models_have_seen_for_other_data_sets(finished):
  patients = {
    row["split"]: row["patient_names"] for row in results.read(finished, "dataset")["rows"]
  }
  seen = copies.kept(finished)
  assert sorted(set(seen.patients)) == sorted(patients["train"] + patients["validation"])
  assert all(len(hashes) == 1 for hashes in seen.hashes)


def test_who_may_be_one_is_named_in_the_run_alone(finished, printed, monkeypatch):
  monkeypatch.setattr(models, "build_model", toys.build_model)
  # Of these notes cards and predictions are made.
  for notes in (
    results.read(finished, "segmentation")["notes"],
    trained_lib.load(finished).notes,
    "\n".join(map(str, printed)),
  ):
    assert TOLD.counted in notes and TOLD.named not in notes
  assert results.read(finished, "dataset")["copies"] == [TOLD._asdict()]
  page = (finished / "report" / "index.html").read_text()
  assert TOLD.named in page and TOLD.counted not in page


def test_the_page_shows_who_painted_what(finished):
  tables = finished / "report" / "tables"

  def read(name):
    with (tables / f"{name}.csv").open() as file:
      return list(csv.DictReader(file))

  anna, ben, carl = read("annotators")
  assert anna | {"first day": "", "last day": ""} == {
    "annotator": "anna",
    "labels": "6",
    "used": "4",
    "consensus": "0",
    "pre-labelled": "2",
    "touched": "1",
    "untouched": "1",
    "seconds": "151",
    "timed": "6",
    "median seconds": "25",
    "first day": "",
    "last day": "",
  }
  assert (ben["labels"], ben["seconds"], carl["consensus"]) == ("4", "9", "1")
  content = results.read(finished, "dataset")
  assert anna["first day"] == content["annotators"][0]["first"]
  models_of = [
    (row["annotator"], row["pre-labels of"], row["labels"]) for row in read("annotators_tools")
  ]
  assert ("ben", painted.MODEL, "2") in models_of and ("ben", "", "1") in models_of
  pixels = sum(int(row["pixels"]) for row in read("annotators_painted"))
  assert pixels == sum(
    sum(bins) for row in content["annotators"] for bins in row["painted"].values()
  )
  text = (finished / "report" / "index.html").read_text()
  section = text.partition('<section id="annotators">')[2].partition("</section>")[0]
  assert "Labels left out, which a model painted and nobody touched" in section
  assert "Labels left out, for which a consensus stands" in section
  assert '<a href="#annotators">Who painted what</a>' in text
  for kind in ("png", "svg"):
    assert (finished / "report" / "figures" / f"annotators_painted.{kind}").stat().st_size > 1000


def test_the_gallery_shows_the_labels_that_were_used(finished, monkeypatch):
  monkeypatch.setattr(models, "build_model", toys.build_model)
  trained = trained_lib.load(finished)
  (candidate,), more = clips.of_test_split(trained, finished)
  clip = candidate.open()
  assert (clip.name, more, clip.labelled, clip.recording.whole) == ("s.npy", 0, (0, 1), True)
  found = list(clip.labels({0, 1}))
  assert [(label.frame, label.annotator) for label in found] == [(0, "anna"), (1, "ben")]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
  """A run's results where a consensus stands for the labels of a test frame, without networks."""
  directory = tmp_path_factory.mktemp("agreed")
  review = ("s", 0, "carl", store_lib.Work(7, painted.CLASSES, review=True))
  folder = painted.make(directory / "set", (*painted.SAVED, review))
  config = make_config(folder)
  used = selection.select(datasets.open_dataset(config.data, "frames"), config.data).used
  rows = [
    {"index": i, **summary.provenance(example), "iou": {"threshold_0.6": 0.5}}
    for i, example in enumerate(used.splits["test"])
  ]
  write = functools.partial(results.write, directory, dataset=used.summary(), split="test")
  write("cases", config=claim.settings(config), rows=rows)
  trained = types.SimpleNamespace(config=config, dataset=used.summary(), thresholds=(0.6,))
  return trained, directory


def test_the_gallery_shows_a_consensus_for_the_labels_that_it_replaces(agreed):
  (candidate,), _ = clips.of_test_split(*agreed)
  (label,) = candidate.open().labels({0})
  assert label.annotator == "carl"


@pytest.mark.parametrize("whole", [True, False])
def test_what_stands_beside_the_scan_is_not_shown(agreed, monkeypatch, whole):
  box = (8, 4, 24, 30)
  name = "find" if whole else "find_in"
  monkeypatch.setattr(scan_area, name, lambda _: scan_area.Area(box, "motion"))
  if not whole:
    monkeypatch.setattr(clips.recordings, "find", lambda *_: {})
  (candidate,), _ = clips.of_test_split(*agreed)
  clip = candidate.open()
  # The networks saw all of it.
  assert clip.box == box and clip.recording.box is None and clip.recording.whole == whole
  said = ("scan area", "4 8 26 16, found by what moves")
  assert (said in clip.facts) == whole


def test_other_choices_are_other_runs(finished, folder):
  for changes in ({"data.prelabels": "all"}, {"data.consensus": "none"}):
    with pytest.raises(UserError, match=f"different: {next(iter(changes))}"):
      main.run(make_config(folder, **changes), os.fspath(finished))


def test_a_revision_more_is_other_data(finished, folder):
  begun = claim.read_claim(finished)
  claim.check_claim(finished, begun["config"], begun["dataset"])
  rows = painted.read_table(folder / "provenance.csv")
  painted.standing(rows, "v", 0, "anna")["seconds"] = "41"
  before = (folder / "provenance.csv").read_text()
  painted.change(folder, lambda _: rows)
  try:
    changed = datasets.open_dataset(make_config(folder).data, "frames")
    with pytest.raises(UserError, match="the data set has changed since it began"):
      claim.check_claim(finished, begun["config"], begun["dataset"] | changed.summary())
  finally:
    (folder / "provenance.csv").write_text(before)
