"""The recipe for small sets as a whole, and what it has off at that, with toy networks."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from configs import seg
from lus_jax import models, results, signals
from lus_jax.inference import trained
from lus_jax.tasks.segmentation import auto, run, train
from lus_jax.training import claim
from tests import toys

CHANGES = {
  "data.image_size": 32,
  "model.width": 0.125,
  "sweep.thresholds": (0.6, 0.0),
  "sweep.members": ("soft", "ordinal"),
  "train.minutes": 0.001,
  "train.epoch_steps": 3,
  "train.steps": 9,
  "train.checkpoint_every": 1,
  "calibration": "none",
  "model.refinements": 0,  # of the toys
  # Off in the recipe.
  "augment.gain": 0.25,
  "augment.attenuation": 0.7,
  "augment.speckle": 0.15,
  "augment.shadow": 0.5,
  "augment.haze": 0.15,
  "train.rare": 0.3,
  "train.smoothing": 0.6,
}


@pytest.fixture(scope="module", autouse=True)
def toy_heads():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_head)
    patch.setattr(auto, "LOOK_SIMULATED", 32)
    yield


def config(prepared, **changes):
  found = seg.get_config("auto")
  found.data.phantom.update(toys.PHANTOM)
  found.data.prepared_dir = os.fspath(prepared)
  return toys.change(found, CHANGES | changes).lock()


@pytest.fixture(scope="module")
def finished(prepared_phantom, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("small") / "run"
  run.train_and_evaluate(config(prepared_phantom), workdir)
  return workdir


def test_what_was_chosen_and_what_is_on_stand_in_the_claim(finished):
  begun = claim.read_claim(finished)["config"]
  assert begun["train"]["batch_size"] in (2, 4, 8) and begun["train"]["epochs"] == 3
  on = {name for section in claim.OPTIONS for name in begun[section]}
  assert {"region", "averaging", "warmup", "rare", "smoothing", "haze", "minutes"} <= on
  assert "shrink" not in begun["model"]
  history = results.read(finished, "history")["rows"]
  assert len(history) == 3 * 4 and all("smoothed" in row for row in history)
  rows = results.read(finished, "segmentation")
  assert all("validation_iou" in row for row in rows["rows"])
  assert all("validation_iou" in x for x in rows["predictors"] if x["predictor"] == "mean_map")


def test_the_same_command_goes_on_from_a_stop_to_the_same_numbers(
  finished, prepared_phantom, tmp_path, contents, monkeypatch
):
  shutil.copy(finished / claim.OWNER, tmp_path / claim.OWNER)  # what was chosen there
  made = train.make_task

  def stopping(*args, **options):
    task = made(*args, **options)
    validate, seen = task.validate, []

    def stop(state):
      seen.append(1)
      if len(seen) == 2:
        os.kill(os.getpid(), 15)
      return validate(state)

    return dataclasses.replace(task, validate=stop)

  with monkeypatch.context() as patch, pytest.raises(signals.Stopped), signals.handled(str):
    patch.setattr(train, "make_task", stopping)
    run.train_and_evaluate(config(prepared_phantom), tmp_path)
  run.train_and_evaluate(config(prepared_phantom), tmp_path)
  whole, resumed = contents(finished), contents(tmp_path)
  for name in ("history.json", "segmentation.json", "members.json", "examples.npz"):
    assert whole[name] == resumed[name], name


def test_what_predicts_are_the_averages_of_the_best_epoch(finished, prepared_phantom):
  models_of = trained.load(finished)
  newest = [models_of.weights_of(i) for i in range(2)]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(newest))
  # The bias began from the prevalence, which is far below .5.
  for weights in newest:
    bias = weights["params"]["segmentation_head"]["bias"]
    assert (np.asarray(bias)[:6] < -1).all()
