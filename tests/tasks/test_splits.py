"""Which split each part of a run is given; what each makes of it stands in tests/evaluation."""

import pytest

from lus_jax.evaluation import segmentation as evaluation
from lus_jax.tasks.segmentation import run
from lus_jax.tasks.segmentation import train as train_lib
from lus_jax.training import loop


class Evaluated(Exception):
  pass


def test_every_part_of_a_run_gets_its_own_split(
  monkeypatch, toy_networks, segmentation_config, tmp_path
):
  """Epochs, calibrations and cut-offs by validation, baselines by training, nothing by the test."""
  config = segmentation_config.copy_and_resolve_references()
  config.calibration = "temperature"
  given = {}

  def make_validation(network, sweep, frames, config, objective, classes):
    given["epochs"] = frames.size

  def fit(task, sweep, state, batches, **_):
    best = [{"epoch": 1, "score": 0.5, "loss": 1.0} for _ in task.names]
    return state, {"history": [], "best": best}

  def fit_calibrations(trained, validation):
    given["calibration"] = validation.size
    return {"temperature": [{"method": "none"} for _ in trained.views]}

  def compare_calibrations(trained, calibrations, test):
    given["comparison"] = test.size

  def evaluate(trained, *, train, validation, test, thin):
    given.update({"baselines": train.size, "cut-offs": validation.size, "test": test.size})
    raise Evaluated

  monkeypatch.setattr(train_lib, "make_validation", make_validation)
  monkeypatch.setattr(loop, "fit", fit)
  for one in (fit_calibrations, compare_calibrations, evaluate):
    monkeypatch.setattr(evaluation, one.__name__, one)
  with pytest.raises(Evaluated):
    run.train_and_evaluate(config, tmp_path / "run")
  assert given == {
    "baselines": 30, "epochs": 8, "calibration": 8, "cut-offs": 8, "comparison": 10, "test": 10
  }  # fmt: skip
