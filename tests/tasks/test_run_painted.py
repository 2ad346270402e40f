"""A run on what two annotators and a model painted: who painted what is kept, said and shown."""

import csv
import os

import pytest

from configs import seg
from lus_jax import main, models, results
from lus_jax.data import copies, datasets
from lus_jax.errors import UserError
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


@pytest.fixture(scope="module")
def printed():
  return []


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory, printed):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_model)
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
