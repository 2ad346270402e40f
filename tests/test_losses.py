import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lus_jax import losses
from lus_jax.errors import UserError
from lus_jax.labels import label

SHAPE = (2, 6, 5, 3)
BORDERS = np.zeros((2, 6, 5, 1), bool)
BORDERS[:, 1:5, 1:4] = True
# As BORDERS, and nothing is known about class 0 of image 1.
UNLABELLED = np.broadcast_to(BORDERS, SHAPE).copy()
UNLABELLED[1, ..., 0] = False


def _example(seed, *, scale=3):
  """Logits, stored confidences (many 0, some 1, class 2 of image 0 empty)."""
  random = np.random.default_rng(seed)
  confidence = random.integers(0, 256, SHAPE) * (random.random(SHAPE) < 0.5)
  confidence[random.random(SHAPE) < 0.2] = 255
  confidence[0, ..., 2] = 0
  logits = random.normal(size=SHAPE) * scale
  return logits.astype(np.float32), (confidence / 255).astype(np.float32)


def _log_sigmoid(z):
  return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def _pixels(where):
  where = np.broadcast_to(np.ones(SHAPE, bool) if where is None else where, SHAPE)
  return [index for index in np.ndindex(*SHAPE) if where[index]]


def _reference_label(c, t):
  return float(c >= t - 0.5 / 255 - 1e-6 and c >= 0.5 / 255)


def _reference_weight(c, t, subthreshold_weight="threshold"):
  if _reference_label(c, t) or (subthreshold_weight == "confidence" and c >= 0.5 / 255):
    return c
  return 0.8 if t in (0, 1) else t


def _reference_cross_entropy(z, y):
  return -y * _log_sigmoid(z) - (1 - y) * _log_sigmoid(-z)


def _reference_focal(z, y):
  p = 1 / (1 + math.exp(-z))
  if y:
    return -0.25 * (1 - p) ** 2 * math.log(p)
  return -0.75 * p**2 * math.log(1 - p)


def _reference_dice(z, c, t, where):
  z, c = z.astype(np.float64), c.astype(np.float64)
  where = np.broadcast_to(True if where is None else where, SHAPE)
  found = []
  for image in range(SHAPE[0]):
    for k in range(SHAPE[-1]):
      valid = where[image, :, :, k]
      if valid.any():
        p = 1 / (1 + np.exp(-z[image, :, :, k][valid]))
        y = np.array([_reference_label(value, t) for value in c[image, :, :, k][valid]])
        found.append(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
  return np.mean(found) if found else 0


def _reference_adaptive_wing(z, c, where):
  total = 0.0
  pixels = _pixels(where)
  for image in range(SHAPE[0]):
    for k in range(SHAPE[-1]):
      here = [index for index in pixels if (index[0], index[3]) == (image, k)]
      top = max((max(float(z[index]), 0) for index in here), default=0)
      for index in here:
        p = max(float(z[index]), 0) / top if top > 0 else 0
        y = float(c[index])
        d = abs(y - p)
        a = 14 / (1 + 0.5 ** (2.1 - y)) * (2.1 - y) * 0.5 ** (1.1 - y)
        line = a * d - (0.5 * a - 14 * math.log(1 + 0.5 ** (2.1 - y)))
        total += 14 * math.log(1 + d ** (2.1 - y)) if d < 0.5 else line
  return total


def _reference(name, z, c, t, where, **options):
  """The losses of definitions.md, pixel by pixel in float64."""
  if name == "dice":
    return _reference_dice(z, c, t, where)
  if name == "adaptive_wing":
    return _reference_adaptive_wing(z, c, where)
  total, divisor = 0.0, 0.0
  for index in _pixels(where):
    logit, confidence = float(z[index]), float(c[index])
    y = _reference_label(confidence, t)
    weight = 1.0
    if name == "weighted_cross_entropy":
      if options.get("weights") != "ones":
        weight = _reference_weight(confidence, t, options.get("subthreshold_weight", "threshold"))
      total += weight * _reference_cross_entropy(logit, y)
    elif name == "cross_entropy":
      total += _reference_cross_entropy(logit, confidence)
    elif name == "bce":
      total += _reference_cross_entropy(logit, y)
    elif name == "focal":
      total += _reference_focal(logit, y)
    elif name == "trimap":
      if 0.5 / 255 <= confidence <= 1 - 0.5 / 255:
        continue
      total += _reference_cross_entropy(logit, float(confidence > 0.5))
    divisor += weight if options.get("reduction") == "weight_sum" else 1
  return total / divisor if divisor else 0


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _loss(name, logits, confidence, threshold, where, options=()):
  loss = functools.partial(
    losses.training_loss,
    name,
    confidence=confidence,
    threshold=threshold,
    where=where,
    **dict(options),
  )
  return jax.value_and_grad(lambda z: loss(logits=z))(logits)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_match_the_float64_reference(name):
  for seed, threshold in enumerate([0, 0.2, 0.5, 0.6, 1]):
    logits, confidence = _example(seed)
    for where in (np.ones_like(BORDERS), BORDERS, UNLABELLED):
      found, _ = _loss(name, logits, confidence, np.float32(threshold), where)
      expected = _reference(name, logits, confidence, threshold, where)
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  "options",
  [
    {"weights": "ones"},
    {"subthreshold_weight": "confidence"},
    {"reduction": "weight_sum"},
  ],
)
def test_options_of_the_weighted_cross_entropy(options):
  logits, confidence = _example(0)
  name = "weighted_cross_entropy"
  for threshold in (0, 0.6, 1):
    found, _ = _loss(
      name, logits, confidence, np.float32(threshold), BORDERS, tuple(options.items())
    )
    expected = _reference(name, logits, confidence, threshold, BORDERS, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The option is not without effect.
    default = _reference(name, logits, confidence, threshold, BORDERS)
    assert threshold == 0 or abs(expected - default) > 1e-4


@pytest.mark.parametrize("name", losses.LOSSES)
def test_nothing_valid_is_zero_with_zero_gradient(name):
  logits, confidence = _example(1)
  value, gradient = _loss(name, logits, confidence, np.float32(0.5), np.zeros_like(BORDERS))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_extreme_logits_keep_losses_and_gradients_finite(name):
  logits, confidence = _example(2, scale=1e6)
  logits[0, 0, 0] = 0
  logits[1, ..., 1] = -1e30
  value, gradient = _loss(name, logits, confidence, np.float32(0.5), np.ones_like(BORDERS))
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_match_finite_differences(name):
  logits, confidence = _example(3)
  logits[np.abs(logits) < 0.05] = 0.5  # away from the kink of ReLU
  direction = np.random.default_rng(0).normal(size=SHAPE)
  step = 1e-6
  ends = [
    _reference(name, logits.astype(np.float64) + sign * step * direction, confidence, 0.4, BORDERS)
    for sign in (1, -1)
  ]
  _, gradient = _loss(name, logits, confidence, np.float32(0.4), BORDERS)
  expected = (ends[0] - ends[1]) / (2 * step)
  assert abs(expected) > 1e-5
  np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-3)


def test_trimap_without_a_certain_pixel_is_zero():
  logits, _ = _example(4)
  confidence = np.full(SHAPE, 128 / 255, np.float32)
  assert losses.trimap_cross_entropy(logits=logits, confidence=confidence) == 0
  confidence[0, 0, 0, 0] = 1
  found = losses.trimap_cross_entropy(logits=logits, confidence=confidence)
  np.testing.assert_allclose(found, -_log_sigmoid(float(logits[0, 0, 0, 0])), rtol=1e-5)


def test_weight_sum_without_weights_is_zero():
  logits, confidence = _example(4)
  found = losses.weighted_cross_entropy(
    logits=logits, labels=confidence, weights=np.zeros(SHAPE), reduction="weight_sum"
  )
  assert found == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_bfloat16_logits_give_float32_losses(name):
  logits, confidence = _example(5)
  rounded = jnp.asarray(logits, jnp.bfloat16)
  found = losses.training_loss(name, logits=rounded, confidence=confidence, threshold=0.5)
  assert found.dtype == jnp.float32
  expected = _reference(name, np.asarray(rounded, np.float32), confidence, 0.5, None)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_members_vary_in_logits_and_threshold(name):
  thresholds = np.array([0, 0.5, 1], np.float32)
  members = np.stack([_example(seed)[0] for seed in range(3)])
  _, confidence = _example(0)
  together, _ = jax.vmap(lambda z, t: _loss(name, z, confidence, t, BORDERS))(members, thresholds)
  alone = [
    _loss(name, z, confidence, t, BORDERS)[0] for z, t in zip(members, thresholds, strict=True)
  ]
  np.testing.assert_allclose(together, alone, rtol=1e-6)


@given(seed=st.integers(0, 2**16), name=st.sampled_from(list(losses.LOSSES)))
@settings(deadline=None, max_examples=25)
def test_where_equals_cropping(seed, name):
  logits, confidence = _example(seed)
  masked, _ = _loss(name, logits, confidence, np.float32(0.4), BORDERS)
  inside = np.s_[:, 1:5, 1:4]
  cropped, _ = _loss(name, logits[inside], confidence[inside], np.float32(0.4), BORDERS[inside])
  np.testing.assert_allclose(masked, cropped, rtol=1e-5)


@given(seed=st.integers(0, 2**16), factor=st.floats(0.01, 100))
@settings(deadline=None, max_examples=25)
def test_weights_scale_the_mean_and_not_the_weight_sum(seed, factor):
  logits, confidence = _example(seed)
  weights = np.random.default_rng(seed).random(SHAPE)
  for reduction, scale in (("mean", factor), ("weight_sum", 1)):
    before, after = (
      losses.weighted_cross_entropy(
        logits=logits, labels=confidence, weights=w, where=BORDERS, reduction=reduction
      )
      for w in (weights, weights * factor)
    )
    np.testing.assert_allclose(after, before * scale, rtol=1e-5)


@given(seed=st.integers(0, 2**16), name=st.sampled_from(list(losses.LOSSES)))
@settings(deadline=None, max_examples=15)
def test_the_order_of_images_does_not_matter(seed, name):
  logits, confidence = _example(seed)
  where = np.random.default_rng(seed).random(BORDERS.shape) < 0.5
  forward, _ = _loss(name, logits, confidence, np.float32(0.6), where)
  backward, _ = _loss(name, logits[::-1], confidence[::-1], np.float32(0.6), where[::-1])
  np.testing.assert_allclose(forward, backward, rtol=1e-5)


def test_an_output_that_is_zero_throughout_comes_alive_again():
  logits, confidence = _example(5)
  dead = np.zeros(SHAPE, bool)
  dead[1] = True
  logits = np.where(dead, -np.abs(logits) - 0.1, logits).astype(np.float32)

  def loss(x):
    prediction = losses.normalized_relu(x, where=BORDERS)
    return losses.adaptive_wing(prediction=prediction, target=confidence, where=BORDERS)

  assert np.all(np.asarray(losses.normalized_relu(logits, where=BORDERS))[1] == 0)
  gradient = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
  drawn = np.broadcast_to(BORDERS, SHAPE) & (confidence > 0)
  # Up where something is drawn, unmoved where nothing is: both are what the loss asks of a 0.
  assert np.all(gradient[1][drawn[1]] < 0) and np.all(gradient[1][~drawn[1]] == 0)
  # Elsewhere a pixel below 0 stays without one, as ReLU has it.
  assert np.all(gradient[0][logits[0] < 0] == 0) and np.any(gradient[0] != 0)
  x = jnp.asarray(logits)
  for _ in range(20):
    x -= 0.1 * jax.grad(loss)(x)
  assert loss(x) < loss(logits) and np.asarray(losses.normalized_relu(x))[1].max() == 1


def test_normalized_relu_by_image_and_class():
  logits, _ = _example(6)
  logits[0, ..., 1] = -1
  logits[1, 0, 0, 0] = 100  # invalid: must not count for the maximum
  found = losses.normalized_relu(logits, where=BORDERS)
  for image, k in np.ndindex(SHAPE[0], SHAPE[-1]):
    inside = found[image, 1:5, 1:4, k]
    top = logits[image, 1:5, 1:4, k].max()
    expected = np.maximum(logits[image, 1:5, 1:4, k], 0) / top if top > 0 else 0 * inside
    np.testing.assert_allclose(inside, expected, rtol=1e-6)
  np.testing.assert_array_equal(found[:, 0], 0)


def test_output_logits_are_those_of_the_models_output():
  logits, _ = _example(7)
  assert losses.output_logits("dice", logits=logits) is logits
  found = jax.nn.sigmoid(losses.output_logits("adaptive_wing", logits=logits, where=BORDERS))
  expected = losses.normalized_relu(logits, where=BORDERS)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_unknown_names_list_the_known_ones():
  logits, confidence = _example(0)
  arguments = {"logits": logits, "confidence": confidence, "threshold": 0.5}
  with pytest.raises(UserError, match="'huber'.*weighted_cross_entropy.*trimap.*adaptive_wing"):
    losses.training_loss("huber", **arguments)
  with pytest.raises(UserError, match="'twos'.*paper, ones"):
    losses.training_loss("dice", weights="twos", **arguments)
  with pytest.raises(UserError, match="'sum'.*mean, weight_sum"):
    losses.training_loss("weighted_cross_entropy", reduction="sum", **arguments)


@given(seed=st.integers(0, 2**16), together=st.booleans())
@settings(deadline=None, max_examples=25)
def test_dice_is_least_at_the_soft_label_itself(seed, together):
  random = np.random.default_rng(seed)
  _, soft = _example(seed)
  soft = np.clip(soft, 0.02, 0.98)

  def value(probability):
    logits = np.log(probability) - np.log1p(-probability)
    return float(losses.dice(logits=logits, labels=soft, where=BORDERS, together=together))

  assert value(soft) == pytest.approx(0, abs=1e-6)
  # Nowhere else, neither near it nor where the plain product is least, at 0s and 1s.
  near = np.clip(
    soft + 0.05 * random.choice([-1, 1], SHAPE) * (random.random(SHAPE) < 0.3), 0.01, 1
  )
  other = random.uniform(0.01, 0.99, SHAPE).astype(np.float32)
  rounded = np.where(soft > 0.5, 0.999, 0.001).astype(np.float32)
  assert min(value(np.minimum(near, 0.99)), value(other), value(rounded)) > 1e-3

  def product(p):
    inside = np.broadcast_to(BORDERS, SHAPE)
    return 1 - 2 * (p * soft)[inside].sum() / (p + soft)[inside].sum()

  assert product(rounded) < product(soft)


def test_a_batch_of_one_image_more_is_one_image_for_dice_together():
  logits, confidence = _example(8)
  found = losses.dice(logits=logits, labels=confidence, where=BORDERS, together=True)
  joined = [
    np.concatenate(list(np.broadcast_to(x, SHAPE)))[None] for x in (logits, confidence, BORDERS)
  ]
  expected = losses.dice(logits=joined[0], labels=joined[1], where=joined[2])
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  apart = losses.dice(logits=logits, labels=confidence, where=BORDERS)
  assert abs(found - apart) > 1e-3


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_region_loss_stands_beside_cross_entropies_with_their_own_target(name):
  logits, confidence = _example(9)
  arguments = {"logits": logits, "confidence": confidence, "threshold": 0.4, "where": BORDERS}
  added = losses.training_loss(name, **arguments, region=0.5) - losses.training_loss(
    name, **arguments
  )
  target = {
    "weighted_cross_entropy": np.asarray(label(confidence, 0.4)),
    "bce": np.asarray(label(confidence, 0.4)),
    "cross_entropy": confidence,
  }.get(name)
  if target is None:
    assert added == 0
  else:
    expected = losses.dice(logits=logits, labels=target, where=BORDERS, together=True)
    np.testing.assert_allclose(added, 0.5 * expected, rtol=1e-4)
