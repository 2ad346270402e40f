import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax import numpy as jnp
from ml_collections import ConfigDict

from lus_jax import losses
from lus_jax.inference import calibration
from lus_jax.labels import label, pixel_weight
from lus_jax.models import designs, fpn, ordinal
from lus_jax.training import members, state
from lus_jax.training import objective as objective_lib

E, K = 4, 2
LEVELS = (0.2, 0.5, 0.6, 1.0)
# Without subnormal numbers, which XLA takes for 0.
EXTREME = st.floats(-1e4, 1e4, width=32, allow_subnormal=False) | st.sampled_from(
  [-1e4, -0.0, 0.0, 1e4]
)


def falls(values, axis=-2):
  """Whether no level has a larger value than the one below it, to the bit."""
  return bool(np.all(np.diff(np.asarray(values), axis=axis) <= 0))


def mean_of_levels(probability, levels):
  total = np.zeros(probability.shape[:-2] + probability.shape[-1:])
  for index in np.ndindex(total.shape):
    below = 0.0
    for e, level in enumerate(levels):
      total[index] += (level - below) * float(probability[(*index[:-1], e, index[-1])])
      below = level
  return total


@given(arrays.arrays(np.float32, (3, E * K), elements=EXTREME))
@settings(deadline=None, max_examples=200)
def test_a_lower_level_never_has_less(raw):
  logits = ordinal.nested_logits(raw, E)
  assert logits.shape == (3, E, K) and logits.dtype == jnp.float32
  assert np.isfinite(logits).all()
  assert falls(logits) and falls(jax.nn.sigmoid(logits))
  # The lowest level is the head's own, and each step down is a softplus.
  raw = raw.reshape(3, E, K)
  np.testing.assert_array_equal(logits[:, 0], raw[:, 0])
  steps = np.logaddexp(0, raw[:, 1:].astype(np.float64))
  expected = raw[:, :1] - np.cumsum(steps, axis=1)
  np.testing.assert_allclose(logits[:, 1:], expected, rtol=1e-5, atol=0.01)
  mean = np.asarray(ordinal.expected_confidence(logits, LEVELS))
  assert mean.min() >= 0 and mean.max() <= 1


def test_keep_nested_changes_only_what_is_out_of_order():
  logits = jnp.asarray([2.0, 1.0, 1.5, 0.0, 3.0]).reshape(1, 5, 1)
  np.testing.assert_array_equal(np.ravel(ordinal.keep_nested(logits)), [2, 1, 1, 0, 0])


def test_expected_confidence_is_a_sum_over_levels(key):
  logits = 4 * jax.random.normal(key, (2, 3, E, K))
  found = ordinal.expected_confidence(logits, LEVELS)
  probability = np.asarray(jax.nn.sigmoid(logits), np.float64)
  np.testing.assert_allclose(found, mean_of_levels(probability, LEVELS), atol=1e-6)


@pytest.mark.parametrize("levels", [LEVELS, (0.0, 0.3, 0.4), (0.7,)])
def test_expected_confidence_is_exact_on_the_levels(levels):
  # A network that is sure of a confidence: P(confidence >= t) is 1 up to it and 0 above.
  confidences = np.array([0.0, *levels], np.float32)
  sure = np.where(confidences[:, None] >= np.float32(levels), 50.0, -200.0)
  found = ordinal.expected_confidence(sure[..., None], levels)[..., 0]
  np.testing.assert_allclose(found, confidences, atol=1e-6)


def test_certain_pixels_have_no_more_than_certainty():
  # As float32 these widths add up to more than 1.
  levels = tuple(i / 10 for i in range(1, 11))
  assert ordinal.expected_confidence(jnp.full((10, 1), 1e4), levels) == 1


@pytest.mark.parametrize("value", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_gradients_are_finite_at_the_extremes(value, key):
  raw = jnp.full((1, 2, 2, E * K), value)
  confidence = jax.random.uniform(key, (1, 2, 2, K))

  def loss(raw):
    logits = ordinal.nested_logits(raw, E)
    each = [
      losses.cross_entropy(logits=logits[..., e, :], labels=label(confidence, t))
      for e, t in enumerate(LEVELS)
    ]
    return sum(each) + jnp.sum(ordinal.expected_confidence(logits, LEVELS))

  value, gradient = jax.value_and_grad(loss)(raw)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_every_part_of_the_head_learns(key):
  raw = jax.random.normal(key, (1, 2, 2, E * K))
  gradient = jax.grad(lambda raw: jnp.sum(ordinal.nested_logits(raw, E) ** 2))(raw)
  assert (np.abs(gradient) > 1e-3).all()


CONFIG = ConfigDict(
  {
    # In no order: levels rise all the same.
    "model": {},
    "sweep": {"thresholds": (1.0, 0.2, 0.6, 0.5), "members": ("ordinal",), "seeds": 1},
    "loss": {
      "name": "weighted_cross_entropy",
      "weights": "paper",
      "subthreshold_weight": "threshold",
      "reduction": "mean",
    },
  }
)


@functools.cache
def network():
  model = fpn.FPN("resnet18", classes=E * K, width=0.125, rngs=nnx.Rngs(0))
  return state.Network(model)


def member_of(objective, level=members.WHOLE):
  return objective.scalars(objective.members[-1], level=level)


def raw_of(objective, image, scale):
  net = network()
  raw, _ = objective.logits(net, net.params, net.batch_stats, image)
  # Untrained networks are sure of nothing.
  return scale * raw


@pytest.mark.parametrize(("size", "scale"), [((33, 41), 1.0), ((50, 35), 300.0), ((32, 32), 1e4)])
def test_outputs_of_a_network_are_nested_and_stay_so_when_calibrated(size, scale, key):
  objective = objective_lib.Objective(CONFIG)
  assert objective.levels == LEVELS and objective.head == E
  image = jax.random.uniform(key, (2, *size, 1))
  raw = raw_of(objective, image, scale)
  assert raw.shape[1:] == (-(-size[0] // 32) * 8, -(-size[1] // 32) * 8, E * K)
  inputs = {"image": image, "where": jnp.ones((2, *size, 1), bool)}
  output = jax.jit(objective.output)
  each = np.stack([output(raw, inputs, member_of(objective, e)) for e in range(E)])
  assert each.shape == (E, 2, *size, K)
  assert np.std(each) > 0.01
  assert falls(each, axis=0) and falls(jax.nn.sigmoid(each), axis=0)
  whole = jax.nn.sigmoid(output(raw, inputs, member_of(objective)))
  levels_last = np.moveaxis(np.asarray(jax.nn.sigmoid(each)), 0, -2)
  np.testing.assert_allclose(
    whole, np.clip(levels_last.swapaxes(-1, -2) @ widths(), 0, 1), atol=1e-5
  )

  random = np.random.default_rng(0)
  target = random.random(each.shape) < 1 / (1 + np.exp(-0.3 * np.clip(each, -50, 50) - 0.5))
  sums = calibration.histograms(each, target, np.ones((*each.shape[:-1], 1), bool))
  for method in ("temperature", "isotonic"):
    own = calibration.parameters(calibration.fit(method, sums, ["a", "b"]))
    calibrated = np.asarray(jax.jit(calibration.calibrate)(own, each))
    assert np.abs(calibrated - each).max() > 0.01
    assert falls(calibrated, axis=0) and falls(jax.nn.sigmoid(calibrated), axis=0)


def test_interpolation_of_any_precision_keeps_the_order(key, monkeypatch):
  upsample = fpn.upsample_logits

  def rough(logits, height, width):
    found = upsample(logits, height, width)
    return found + 0.1 * jax.random.normal(key, found.shape)

  monkeypatch.setattr(designs.Fpn, "upsample", staticmethod(rough))
  objective = objective_lib.Objective(CONFIG)
  raw = jax.random.normal(key, (2, 8, 8, E * K)).at[..., K:].add(-4)
  inputs = {"image": jnp.zeros((2, 30, 29, 1)), "where": jnp.ones((2, 30, 29, 1), bool)}
  each = np.stack([objective.output(raw, inputs, member_of(objective, e)) for e in range(E)])
  assert falls(each, axis=0) and falls(jax.nn.sigmoid(each), axis=0)
  # Levels that the roughness would have turned around are equal.
  assert 0.1 < np.mean(np.diff(each, axis=0) == 0) < 0.9


def widths():
  return np.diff((0.0, *LEVELS)).astype(np.float32)


@pytest.mark.parametrize("weights", ["paper", "ones"])
def test_the_loss_is_the_mean_over_levels(weights, key):
  config = CONFIG.copy_and_resolve_references()
  config.sweep.members = (f"ordinal(weights={weights})",)
  objective = objective_lib.Objective(config)
  image = jax.random.uniform(key, (2, 40, 32, 1))
  confidence = jnp.round(5 * jax.random.uniform(jax.random.key(1), (2, 40, 32, K))) / 5
  where = jax.random.uniform(jax.random.key(2), (2, 40, 32, K)) < 0.7
  raw = raw_of(objective, image, 100.0)
  inputs = {"image": image, "confidence": confidence, "where": where}
  found = objective.loss(raw, inputs, member_of(objective))

  expected = []
  for e, t in enumerate(LEVELS):
    logits = np.asarray(objective.output(raw, inputs, member_of(objective, e)), np.float64)
    y = np.asarray(label(confidence, t), np.float64)
    w = np.asarray(pixel_weight(confidence, t)) if weights == "paper" else np.ones_like(y)
    values = w * (np.logaddexp(0, logits) - logits * y)
    expected.append(values[np.asarray(where)].mean())
  assert np.std(expected) > 0.01
  assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)
