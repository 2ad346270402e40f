import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from lus_jax.errors import UserError
from lus_jax.inference import calibration

CLASSES = ["pleura", "line", "never"]


def _example(seed=0, n=4000, scale=(2.0, 0.5, 1.0)):
  """Logits [2, n, 1, 3] that are `scale` times too large, and soft targets; class 2 has none."""
  random = np.random.default_rng(seed)
  true = random.normal(-1, 2, (2, n, 1, 3))
  target = random.binomial(5, special.expit(true)) / 5
  target[..., 2] = 0
  where = random.random((2, n, 1, 1)) < 0.9
  return (true * scale).astype(np.float32), target.astype(np.float32), where


def _cross_entropy(logits, target):
  logits, target = logits.astype(np.float64), target.astype(np.float64)
  return np.mean(np.logaddexp(0, logits) - logits * target)


def test_histograms_are_sums_over_valid_pixels():
  logits, target, where = _example()
  logits[0, :2, 0, 0] = [-1000, 1000]
  found = calibration.histograms(logits, target, where)
  assert found["count"].shape == (3, 4096)
  for k in range(3):
    valid = where[..., 0]
    expected, _ = np.histogram(logits[..., k][valid].clip(-20, 20), np.linspace(-20, 20, 4097))
    np.testing.assert_array_equal(found["count"][k], expected)
    z, y = (x[..., k][valid].astype(np.float64) for x in (logits, target))
    assert found["logit"][k].sum() == pytest.approx(z.clip(-20, 20).sum())
    assert found["target"][k].sum() == pytest.approx(y.sum())
    low = (z >= 0) & (z < 40 / 4096)
    assert found["logit"][k, 2048] == pytest.approx(z[low].sum())
    assert found["target"][k, 2048] == pytest.approx(y[low].sum())


def test_histograms_add_over_batches():
  logits, target, where = _example()
  parts = [calibration.histograms(logits[i], target[i], where[i]) for i in (0, 1)]
  whole = calibration.histograms(logits, target, where)
  for name, values in whole.items():
    np.testing.assert_allclose(parts[0][name] + parts[1][name], values, atol=1e-9)


def test_temperature_minimises_the_cross_entropy():
  logits, target, where = _example()
  found = calibration.fit_temperature(calibration.histograms(logits, target, where))
  np.testing.assert_allclose(found[:2], [2, 0.5], rtol=0.05)
  assert found[2] == 1
  for k in range(2):
    z, y = (x[..., k][where[..., 0]] for x in (logits, target))
    # In 1 / T the loss is convex: its minimum is where the derivative is 0.
    expected = 1 / optimize.brentq(
      lambda b, z=z, y=y: np.mean(z * (special.expit(b * z) - y)), 1e-2, 50
    )
    assert found[k] == pytest.approx(expected, rel=1e-3)


def test_temperature_stays_in_bounds():
  logits = np.array([-1.0, -0.5, 0.5, 1.0]).reshape(4, 1)
  right = calibration.histograms(logits, (logits > 0).astype(float), np.ones_like(logits, bool))
  assert calibration.fit_temperature(right)[0] == pytest.approx(0.05, rel=1e-2)
  wrong = calibration.histograms(logits, (logits < 0).astype(float), np.ones_like(logits, bool))
  assert calibration.fit_temperature(wrong)[0] == pytest.approx(20, rel=1e-2)


def test_without_valid_pixels_nothing_changes():
  logits, target, where = _example(n=20)
  empty = calibration.histograms(logits, target, np.zeros_like(where))
  assert calibration.fit_temperature(empty).tolist() == [1, 1, 1]
  for method in ("temperature", "isotonic"):
    fitted = calibration.fit(method, empty, CLASSES)
    found = calibration.apply(fitted, np.clip(logits, -13, 13))
    np.testing.assert_allclose(found, np.clip(logits, -13, 13), atol=0.005)


def _pool_adjacent_violators(y, weight):
  blocks = []
  for value, w in zip(y, weight, strict=True):
    blocks.append([value, w, 1])
    while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
      (v0, w0, n0), (v1, w1, n1) = blocks[-2:]
      blocks[-2:] = [[(v0 * w0 + v1 * w1) / (w0 + w1), w0 + w1, n0 + n1]]
  return np.concatenate([[value] * n for value, _, n in blocks])


@pytest.mark.parametrize("k", [0, 1])
def test_isotonic_pools_adjacent_violators(k):
  logits, target, where = _example(n=500)
  histograms = calibration.histograms(logits, target, where)
  table = calibration.fit_isotonic(histograms)[k]
  seen = histograms["count"][k] > 0
  count, logit, sums = (histograms[name][k, seen] for name in ("count", "logit", "target"))
  expected = _pool_adjacent_violators(sums / count, count)
  assert 5 < len(np.unique(expected)) < len(table["x"]) <= 256
  np.testing.assert_allclose(np.interp(logit / count, table["x"], table["y"]), expected, atol=1e-9)


def test_isotonic_tables_are_thinned():
  # Every bin's target is above its neighbour's: 4096 breakpoints before thinning.
  z = np.linspace(-20, 20, 40_000).reshape(-1, 1)
  y = special.expit(z / 3)
  table = calibration.fit_isotonic(calibration.histograms(z, y, np.ones_like(z, bool)))[0]
  assert len(table["x"]) == len(table["y"]) == 256
  assert (np.diff(table["x"]) > 0).all()
  assert (np.diff(table["y"]) >= 0).all()
  assert table["x"][0] < -19.9
  assert table["x"][-1] > 19.9
  np.testing.assert_allclose(np.interp(z, table["x"], table["y"]), y, atol=1e-3)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibration_helps_on_new_data(method):
  fitted = calibration.fit(method, calibration.histograms(*_example(0)), CLASSES)
  assert fitted == json.loads(json.dumps(fitted))
  logits, target, _ = _example(1)
  found = np.asarray(calibration.apply(fitted, logits))
  assert found.dtype == np.float32
  for k in range(2):
    own = special.logit(np.clip(special.expit(logits[..., k] / [2, 0.5][k]), 1e-6, 1 - 1e-6))
    best, before, after = (
      _cross_entropy(z, target[..., k]) for z in (own, logits[..., k], found[..., k])
    )
    assert after - best < 0.1 * (before - best)


def test_apply_by_hand():
  logits = np.array([[-30, -2, 1], [0.5, 3, 40]], np.float32)
  fitted = {"method": "temperature", "classes": CLASSES, "temperature": [2, 4, 0.5], "isotonic": []}
  np.testing.assert_allclose(calibration.apply(fitted, logits), logits / [2, 4, 0.5], rtol=1e-6)
  tables = [
    {"x": [-1, 1], "y": [0.2, 0.6]},
    {"x": [-2], "y": [0.3]},
    {"x": [0, 1, 2], "y": [0, 0.5, 1]},
  ]
  fitted = {"method": "isotonic", "classes": CLASSES, "temperature": [], "isotonic": tables}
  found = special.expit(np.asarray(calibration.apply(fitted, logits), np.float64))
  np.testing.assert_allclose(found, [[0.2, 0.3, 0.5], [0.5, 0.3, 1 - 1e-6]], atol=1e-7)
  fitted = {"method": "none", "classes": CLASSES, "temperature": [], "isotonic": []}
  np.testing.assert_array_equal(calibration.apply(fitted, logits), logits)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_apply_takes_any_leading_axes_and_arguments(method):
  logits, *_ = example = _example(n=50)
  fitted = calibration.fit(method, calibration.histograms(*example), CLASSES)
  whole = calibration.apply(fitted, logits)
  assert whole.shape == logits.shape
  constant = jax.jit(lambda z: calibration.apply(fitted, z))
  argument = jax.jit(calibration.calibrate)
  parameters = calibration.parameters(fitted)
  for z, expected in (
    (logits, whole),
    (logits[0, :, 0], whole[0, :, 0]),
    (logits[0, 0, 0], whole[0, 0, 0]),
  ):
    np.testing.assert_allclose(constant(z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(argument(parameters, z), expected, rtol=1e-5, atol=1e-6)
  low = calibration.apply(fitted, jnp.asarray(logits, jnp.bfloat16))
  assert low.dtype == jnp.float32


@given(st.integers(0, 2**32 - 1), st.sampled_from(["temperature", "isotonic"]))
@settings(deadline=None, max_examples=25)
def test_calibration_keeps_the_order(seed, method):
  random = np.random.default_rng(seed)
  logits = random.normal(0, 4, (200, 2))
  target = random.random((200, 2)) * (random.random((200, 2)) < special.expit(logits))
  fitted = calibration.fit(
    method, calibration.histograms(logits, target, np.ones((200, 1), bool)), CLASSES[:2]
  )
  grid = np.sort(random.normal(0, 8, (500, 2)), axis=0).astype(np.float32)
  found = np.asarray(calibration.apply(fitted, grid))
  assert np.isfinite(found).all()
  # A step in float32 where 1 - p is a millionth is some hundredths of a logit.
  assert np.diff(special.expit(found.astype(np.float64)), axis=0).min() > -2e-7


def test_unknown_method():
  for function in (calibration.check_method, lambda name: calibration.fit(name, {}, [])):
    with pytest.raises(UserError, match="config.calibration: 'platt'.*none, temperature, isotonic"):
      function("platt")
  for name in calibration.METHODS:
    calibration.check_method(name)
