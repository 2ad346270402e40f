"""The learning curve over patients: what it says, and cohorts from a segmentation run on."""

import os

import pytest

from configs import learning_curve as config_lib
from lus_jax import main, results
from lus_jax.errors import UserError
from lus_jax.report import learning_curve as report
from lus_jax.tasks.clinical import learning_curve as curve_lib
from tests import toys

pytestmark = pytest.mark.usefixtures("toy_networks")


def content(*beats, source="true"):
  rows = [
    {"patients": n, "threshold": source, "beats": one}
    for n, one in zip((10, 20, 40), beats, strict=True)
  ]
  return {"rows": rows, "task": "sf_ratio", "metric": "rmse_mean"}


@pytest.mark.parametrize(
  ("beats", "expected"),
  [
    ((False, False, False), None),
    ((False, True, True), 20),
    ((True, True, True), 10),
    # Once is no proof, where more patients do not repeat it.
    ((True, False, True), 40),
    ((True, True, False), None),
  ],
)
def test_enough_is_where_all_larger_cohorts_beat_the_blind_too(beats, expected):
  assert report.enough(content(*beats)) == {"true": expected}
  (sentence,) = report.sentences(content(*beats))
  assert ("not shown to beat the constant with up to 40" in sentence) == (expected is None)
  assert expected is None or f"true masks: beats the constant from {expected} patients" in sentence


def summary(estimate, blind, interval, metric="rmse_mean", baseline="rmse_constant"):
  metrics = {
    metric: {"estimate": estimate, "interval": [0.0, 1.0]},
    baseline: {"estimate": blind, "interval": None},
  }
  differences = [{"against": baseline, "difference": estimate - blind, "interval": interval}]
  row = {"threshold": "none", "n_patients": 12, "metrics": metrics, "differences": differences}
  folds = [{"train": ["a"] * 7}, {"train": ["a"] * 6}]
  return {"summary": [row], "folds": folds}


def test_errors_have_to_be_smaller_and_accuracies_larger():
  ratio = {"task": "sf_ratio", "primary": "rmse_mean"}
  (row,) = curve_lib.rows_of(12, summary(0.2, 0.3, [-0.15, -0.05]) | ratio)
  assert row["beats"] and (row["trained"], row["tested"], row["blind"]) == (6, 12, 0.3)
  for interval in ([-0.15, 0.01], [0.05, 0.15], None):
    (row,) = curve_lib.rows_of(12, summary(0.2, 0.3, interval) | ratio)
    assert not row["beats"]
  vote = {"task": "readmission", "primary": "accuracy"}
  for interval, beats in (([0.01, 0.2], True), ([-0.2, -0.01], False)):
    (row,) = curve_lib.rows_of(12, summary(0.7, 0.6, interval, "accuracy", "majority") | vote)
    assert row["beats"] == beats


def make_config(segmentation, **changes):
  config = config_lib.get_config("tiny")
  changes = {"channels.workdir": os.fspath(segmentation), "patients": (6, 8)} | changes
  changes |= {"sf_ratio.train.batch_size": 2}
  changes |= {"channels.thresholds": (0.6,), "channels.ablations": ("true",)}
  return toys.change(config, changes)


def test_cohorts_of_patients_that_the_segmentation_never_saw(toy_segmentation, tmp_path, capsys):
  config = make_config(toy_segmentation)
  main.run(config, tmp_path / "curve")
  found = results.read(tmp_path / "curve", "learning_curve")
  assert [(row["patients"], row["threshold"]) for row in found["rows"]] == [
    (n, source) for n in (6, 8) for source in (0.6, "true")
  ]
  assert all(row["patients"] / 2 < row["tested"] <= row["patients"] for row in found["rows"])
  for n in (6, 8):
    own = results.read(tmp_path / "curve" / f"patients_{n}", "sf_ratio")
    assert own["config"]["data"]["phantom"]["seed"] == 1000
    assert own["segmentation"]["same_data_set"] is False
  # Too few for intervals, so nothing is claimed.
  assert not any(row["beats"] for row in found["rows"])
  printed = capsys.readouterr().out
  assert "true masks: not shown to beat the constant with up to 8 patients" in printed
  page = (tmp_path / "curve" / "report" / "index.html").read_text()
  assert "Learning curve over patients" in page and "not shown to beat the constant" in page


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"of": "severity"}, "config.of: 'severity' is not known"),
    ({"patients": (40, 20)}, "must rise"),
    ({"patients": (3,)}, "whole numbers of at least 6"),
    ({"channels.workdir": ""}, "name a finished segmentation run of the phantom"),
    ({"cohort_seed": 57}, "is the seed of the segmentation's own patients"),
  ],
)
def test_a_bad_value_is_refused_before_anything_is_written(
  toy_segmentation, tmp_path, changes, message
):
  config = make_config(toy_segmentation, **changes)
  with pytest.raises(UserError, match=message):
    curve_lib.train_and_evaluate(config, tmp_path / "curve")
  assert list(tmp_path.iterdir()) == []
