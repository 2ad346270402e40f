"""Frozen models: their output worked out by hand, and what is taken of several seeds."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from lus_jax.inference import trained
from lus_jax.tasks.segmentation import train
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep

CLASSES = ("a", "b")
SIZE = 32


@pytest.fixture(scope="module")
def models(toy_networks):
  """Two thresholds and a soft label, of two seeds; the best weights differ from the last ones."""
  config = ConfigDict(
    {
      "seed": 3,
      "model": {"encoder": "resnet18"},
      "sweep": {"thresholds": (0.6, 0.2), "members": ("soft",), "seeds": 2},
      "loss": {"name": "weighted_cross_entropy", "weights": "paper"},
    }
  )
  objective = Objective(config)
  sweep = Sweep(objective.of_all_seeds()[1], "loop")
  network, state = train.initial_state(
    config, objective, sweep, in_channels=1, classes=len(CLASSES), tx=optax.identity()
  )
  state = [
    dataclasses.replace(one, best_params=jax.tree.map(lambda x, i=i: x + 0.1 * i, one.params))
    for i, one in enumerate(state)
  ]
  dataset = {"name": "made_up", "classes": list(CLASSES)}
  return trained.freeze(
    network, sweep, state, objective, config=config, dataset=dataset, patients={}
  )


def test_views_of_all_seeds_are_frozen_at_their_best(models):
  assert models.thresholds == (0.6, 0.2, None) * 2
  assert [view.name for view in models.views] == [
    f"{name}_seed_{seed}" for seed in (0, 1) for name in ("threshold_0.6", "threshold_0.2", "soft")
  ]
  # Each has weights of its own.
  assert len(set(models.fingerprints)) == 6
  one = models.only([4])
  assert (one.thresholds, one.fingerprints) == ((0.2,), [models.fingerprints[4]])


def test_the_output_is_the_networks_divided_by_its_temperature(models):
  temperatures = np.linspace(0.5, 3, 6)
  fitted = [{"method": "temperature", "temperature": [t, 2 * t]} for t in temperatures]
  image = np.random.default_rng(0).random((2, SIZE, SIZE, 1), np.float32)
  where = np.ones((2, SIZE, SIZE, 1), bool)
  where[:, :4] = False
  calibrated = models.calibrated(fitted)
  for i, (own, weights) in enumerate(zip(models.sweep.members, models.weights, strict=True)):
    raw, _ = models.network(weights["params"], weights["batch_stats"], image)
    inputs = {"image": image, "where": where}
    np.testing.assert_array_equal(models.logits(weights, own, inputs), raw)
    scaled = np.asarray(raw) / (temperatures[i] * np.array([1, 2], np.float32))
    own = calibrated.sweep.members[i]
    np.testing.assert_allclose(
      calibrated.logits(weights, own, inputs), scaled, rtol=2e-5, atol=1e-5
    )
    found = np.asarray(calibrated.probability(weights, own, image, where))
    np.testing.assert_allclose(found[:, 4:], 1 / (1 + np.exp(-scaled[:, 4:])), atol=1e-5)
    assert not found[:, :4].any()
  # What becomes of the weights is part of which model it is.
  assert not set(calibrated.fingerprints) & set(models.fingerprints)
