"""Which labels are used: exact frames, whatever annotators, models and reviewers did."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from lus_jax.data import datasets, selection, summary
from lus_jax.errors import UserError
from tests import painted

U, R, C = selection.REASONS


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, [None, U, R, R, None, None, U, None, U]),
    ({"prelabels": "touched_classes"}, [None, U, R, R, None, None, U, None, U]),
    # An untouched consensus counts where all pre-labels do.
    ({"prelabels": "all"}, [None, None, R, R, None, R, R, None, None]),
    ({"consensus": "beside"}, [None, U, None, None, None, None, U, None, U]),
    ({"consensus": "none"}, [None, U, None, None, C, None, U, C, U]),
  ],
)
def test_labels_are_left_out_for_a_reason(options, expected):
  # Frame, untouched pre-label, consensus.
  labels = [
    (1, False, False),
    (2, True, False),
    (3, False, False),
    (3, False, False),
    (3, False, True),
    (4, False, False),
    (4, True, False),
    (5, False, True),
    (4, True, True),
  ]
  assert selection.reasons(labels, **options) == expected


def test_two_reviewers_of_a_frame_both_count():
  labels = [(1, False, True), (1, False, False), (1, False, True)]
  assert selection.reasons(labels) == [None, R, None]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  directory = tmp_path_factory.mktemp("painted")
  painted.make(directory / "set")
  config = {"name": "lus_folder", "dir": str(directory / "set"), "split_unit": "patient"}
  config |= {"prepared_dir": str(directory / "data"), "split_seed": 0, "image_size": 32}
  return ConfigDict(config | {"prelabels": "touched", "consensus": "replaces"})


@pytest.fixture(scope="module")
def dataset(config):
  return datasets.open_dataset(config, "frames")


def keys_of(source):
  return [
    (x["video"].decode().removesuffix(".npy"), x["frame"], x["annotator"].decode())
    for x in source.only("video", "frame", "annotator")
  ]


def selected(dataset, config, **options):
  changed = config.copy_and_resolve_references()
  changed.update(options)
  return selection.select(dataset, changed)


def test_by_default_hands_are_learnt_from_and_a_consensus_stands_for_all(dataset, config):
  found = selected(dataset, config)
  used = {key for source in found.used.splits.values() for key in keys_of(source)}
  assert used == set(painted.KEYS) - painted.UNTOUCHED - painted.REPLACED
  assert [found.left_out(split) for split in ("train", "validation", "test")] == [
    {"untouched": 1, "replaced": 2},
    {},
    {"untouched": 1},
  ]
  assert found.used.summary()["splits"] == {"train": 4, "validation": 1, "test": 2}
  assert found.stored is dataset and dataset.summary()["splits"]["train"] == 7
  notes = found.used.notes
  assert notes[-3:] == [
    "left out: 2 labels (1 train, 0 validation, 1 test), which a model painted and nobody touched.",
    "left out: 2 labels (2 train, 0 validation, 0 test), for which a consensus stands.",
    "begun by a model and changed by a hand, or said to be right: 2 labels (2 train, 0 validation, "
    "0 test); 1 mask of these as offered.",
  ]
  # Patients regrouped, as of a fold, are chosen of likewise.
  patients = {"train": ["p_t2"], "validation": ["p_t1"], "test": ["p_s"]}
  found = selected(dataset.regroup(patients), config)
  assert sorted(keys_of(found.used.splits["train"])) == [("t2", 0, "carl"), ("t2", 1, "ben")]


def test_all_may_be_used_and_results_say_so(dataset, config):
  found = selected(dataset, config, prelabels="all", consensus="beside")
  used = [key for source in found.used.splits.values() for key in keys_of(source)]
  assert sorted(used) == sorted(painted.KEYS)
  assert found.used.notes[-2] == (
    "a model's, which nobody touched: 2 labels (1 train, 0 validation, 1 test); scores against "
    "them say how near networks come to that model."
  )
  # As in a run of an older version.
  old = config.copy_and_resolve_references()
  del old.prelabels, old.consensus
  found = selection.select(dataset, old)
  assert found.used.summary()["splits"] == dataset.summary()["splits"]


def test_a_consensus_may_be_left_out(dataset, config):
  used = selected(dataset, config, consensus="none").used
  assert sorted(keys_of(used.splits["train"])) == [
    ("t1", 0, "anna"),
    ("t1", 2, "anna"),
    ("t2", 0, "anna"),
    ("t2", 0, "ben"),
    ("t2", 1, "ben"),
  ]


def test_classes_that_nobody_touched_may_be_left_out_too(dataset, config):
  used = selected(dataset, config, prelabels="touched_classes").used
  source = used.splits["train"].only("video", "frame", "labelled", "confidence")
  by_frame = {(x["video"].decode(), x["frame"]): x for x in source}
  assert by_frame["t1.npy", 2]["labelled"].tolist() == [True, False]
  assert by_frame["t1.npy", 2]["confidence"].any((0, 1)).tolist() == [True, False]
  assert by_frame["t1.npy", 0]["labelled"].tolist() == [True, True]
  assert used.notes[-1].endswith("1 mask of these as offered and not used.")
  assert set(used.splits["train"].only("image")[0]) == {"image"}


def test_a_set_of_pre_labels_alone_is_refused(tmp_path, config):
  saved = [(*saved[:3], painted.OFFERED) for saved in painted.SAVED if saved[0] != "v"]
  saved.append(("v", 0, "anna", painted.SAVED[0][3]))
  directory = painted.make(tmp_path / "set", saved=saved)
  options = {"dir": str(directory), "prepared_dir": str(tmp_path / "data")}
  changed = config.copy_and_resolve_references()
  changed.update(options)
  stored = datasets.open_dataset(changed, "frames")
  with pytest.raises(UserError) as caught:
    selection.select(stored, changed)
  assert str(caught.value) == (
    f"{directory}/labels.csv: all 7 labels of the split 'train' are a model's, and nobody touched "
    "them, so that nothing is left of it; correct some of them (python -m lus_jax.annotate), or "
    "use them all the same (--config.data.prelabels=all)."
  )
  assert selected(stored, changed, prelabels="all").left_out("train") == {}


def test_a_set_of_consensuses_alone_without_them_is_refused():
  with pytest.raises(
    UserError, match=r"all 2 labels of the split 'test' are a consensus.*replaces"
  ):
    selection.refuse_empty("d", "test", [C, C])
  selection.refuse_empty("d", "test", [C, None])


@pytest.mark.parametrize("name", ["prelabels", "consensus"])
def test_unknown_choices_are_refused(config, name):
  whole = ConfigDict({"data": config.to_dict() | {name: "some"}})
  with pytest.raises(UserError, match=rf"config.data.{name}: 'some' is not known; choose one of"):
    selection.check(whole)
  del whole.data[name]
  selection.check(whole)


def test_who_painted_what_is_counted(dataset, config):
  found = summary.painters(selected(dataset, config))
  anna, ben, carl = found["annotators"]
  assert [row["annotator"] for row in (anna, ben, carl)] == ["anna", "ben", "carl"]
  counts = ("labels", "used", "consensus", "prelabelled", "touched", "untouched", "timed")
  assert [anna[key] for key in counts] == [6, 4, 0, 2, 1, 1, 6]
  assert [ben[key] for key in counts] == [4, 2, 0, 2, 1, 1, 3]
  assert [carl[key] for key in counts] == [1, 1, 1, 0, 0, 0, 1]
  assert (anna["seconds"], anna["median_seconds"]) == (10 + 1 + 20 + 30 + 40 + 50, 25)
  assert (ben["seconds"], ben["median_seconds"]) == (5 + 3 + 1, 3)
  assert anna["first"] == anna["last"] and len(anna["first"]) == 10
  version = anna and found["tools"][0]["tool"]
  assert version.startswith("lus_jax ")
  assert [
    (row["annotator"], row["tool"], row["prelabel"], row["protocol"], row["labels"])
    for row in found["tools"]
  ] == [
    ("anna", version, None, None, 4),
    ("anna", version, painted.MODEL, None, 2),
    ("ben", None, None, None, 1),
    ("ben", version, None, None, 1),
    ("ben", version, painted.MODEL, None, 2),
    ("carl", version, None, None, 1),
  ]
  # Confidences of hands alone: of t1 1 nothing, of t1 2 the class that a hand changed.
  expected = np.zeros((2, summary.N_BINS), int)
  for example in (x for source in dataset.splits.values() for x in source):
    if example["annotator"] != b"anna":
      continue
    for k in range(2):
      if example["prelabelled"][k] and not example["touched"][k]:
        continue
      values = example["confidence"][..., k]
      bins = np.ceil(values[values > 0] / 255 * summary.N_BINS - 1e-9).astype(int) - 1
      expected[k] += np.bincount(bins, minlength=summary.N_BINS)
  assert [anna["painted"][name] for name in painted.CLASSES] == expected.tolist()
