"""Probabilities that mean what they say: fitted on the validation split, for each class.

A calibration is a dict for JSON: `method` ('none', 'temperature' or 'isotonic'), `classes` (K
names), `temperature` (K numbers, else empty) and `isotonic` (K tables {"x": logits, "y":
probabilities}, else empty). It is fitted to sums over bins of the logit, so no pixel is kept.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lus_jax.errors import UserError

METHODS = ("none", "temperature", "isotonic")
# Bins of the logit, a hundredth wide; beyond the ends probabilities are certain in float32.
EDGES = np.linspace(-20, 20, 4097)
TEMPERATURES = (0.05, 20)
TABLE_POINTS = 256
# Calibrated probabilities keep this distance from 0 and 1, so that their logits are finite.
CLIP = 1e-6


def check_method(name):
  """Raises UserError where `name` is no calibration method."""
  if name not in METHODS:
    raise UserError(
      f"config.calibration: {name!r} is not known; choose one of {', '.join(METHODS)}."
    )


def histograms(logits, target, where, *, edges=EDGES) -> dict[str, np.ndarray]:
  """What the fits need of a batch; the sums of several batches are added by name.

  Args:
    logits: [..., K]; clipped to the edges.
    target: [..., K], in [0, 1].
    where: valid pixels, bool, [..., K] or [..., 1].
    edges: of the logit's bins, increasing, [E + 1].

  Returns:
    `count`, `logit` and `target` (the sums of these), float64 [K, E].
  """
  n_bins = len(edges) - 1
  logits = np.clip(np.asarray(logits, np.float64), edges[0], edges[-1])
  where = np.broadcast_to(where, logits.shape)
  rows = []
  for k in range(logits.shape[-1]):
    valid = where[..., k]
    logit = logits[..., k][valid]
    index = np.searchsorted(edges[1:-1], logit, side="right")
    weights = (None, logit, np.asarray(target)[..., k][valid])
    rows.append([np.bincount(index, w, minlength=n_bins) for w in weights])
  count, logit, target = np.moveaxis(np.array(rows, np.float64), 1, 0)
  return {"count": count, "logit": logit, "target": target}


def _points(histograms):
  """For each class the mean logit, mean target and count of its bins that are not empty.

  None for a class without a positive target: nothing can be learnt about it, and a table of zeros
  would never let it be predicted.
  """
  for row in zip(*(histograms[name] for name in ("count", "logit", "target")), strict=True):
    count, logit, target = np.stack(row)[:, row[0] > 0]
    yield (logit / count, target / count, count) if target.sum() > 0 else None


def fit_temperature(histograms) -> np.ndarray:
  """Temperatures that minimise the cross entropy of sigmoid(logit / T) to the soft target.

  Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), for each class.

  Args:
    histograms: of `histograms`.

  Returns:
    [K] in float64, within [.05, 20]; 1 for a class without a positive target.
  """
  from scipy import optimize

  def temperature(points):
    if points is None:
      return 1.0
    logit, target, count = points

    def cross_entropy(log_temperature):
      scaled = logit / np.exp(log_temperature)
      return count @ (np.logaddexp(0, scaled) - scaled * target) / count.sum()

    found = optimize.minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return np.exp(found.x)

  return np.array([temperature(points) for points in _points(histograms)])


def fit_isotonic(histograms) -> list[dict[str, list[float]]]:
  """For each class the non-decreasing function of the logit that is nearest to the target.

  Source: Zadrozny & Elkan, Transforming Classifier Scores into Accurate Multiclass Probability
  Estimates (KDD 2002); weighted by the bins' counts.

  Args:
    histograms: of `histograms`.

  Returns:
    K tables, {"x": logits, increasing; "y": probabilities, not decreasing} of 2 to 256 points; the
    sigmoid itself for a class without a positive target.
  """
  from sklearn.isotonic import IsotonicRegression

  def table(points):
    if points is None:
      x = np.linspace(-14, 14, TABLE_POINTS)
      y = 1 / (1 + np.exp(-x))
    else:
      logit, target, count = points
      fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
      fit.fit(logit, target, sample_weight=count)
      x, y = fit.X_thresholds_, fit.y_thresholds_
      kept = np.unique(np.linspace(0, len(x) - 1, TABLE_POINTS).round().astype(int))
      x, y = x[kept], y[kept]
    return {"x": x.tolist(), "y": y.tolist()}

  return [table(points) for points in _points(histograms)]


def fit(method, histograms, classes) -> dict:
  """Fits a calibration, ready for JSON (see the module).

  Args:
    method: one of `METHODS`.
    histograms: of `histograms`.
    classes: K names.

  Raises:
    UserError: `method` is unknown.
  """
  check_method(method)
  return {
    "method": method,
    "classes": list(classes),
    "temperature": fit_temperature(histograms).tolist() if method == "temperature" else [],
    "isotonic": fit_isotonic(histograms) if method == "isotonic" else [],
  }


def parameters(calibration) -> dict[str, np.ndarray]:
  """The numbers of a calibration as float32 arrays, for a jitted function to take.

  Returns:
    {} for 'none', `temperature` [K], or `x` and `y` [K, 256]: shorter tables repeat their last
    point, so that all calibrations are alike to a compiled program.
  """
  if calibration["method"] == "temperature":
    return {"temperature": np.array(calibration["temperature"], np.float32)}
  if calibration["method"] == "isotonic":
    tables = calibration["isotonic"]

    def padded(values):
      return np.pad(values, (0, TABLE_POINTS - len(values)), mode="edge")

    return {
      axis: np.array([padded(table[axis]) for table in tables], np.float32) for axis in ("x", "y")
    }
  return {}


def calibrate(parameters, logits) -> jax.Array:
  """Calibrated logits; pure.

  Args:
    parameters: of `parameters`.
    logits: [..., K].

  Returns:
    float32, [..., K], to rounding never in another order than `logits`: logits over T, or those of
    the isotonic table's probability (linear between its points, within [1e-6, 1 - 1e-6]).
  """
  logits = jnp.asarray(logits, jnp.float32)
  if "temperature" in parameters:
    temperature = jnp.asarray(parameters["temperature"])
    return logits / temperature.reshape((1,) * (logits.ndim - 1) + (-1,))
  if "x" in parameters:
    interpolate = jax.vmap(jnp.interp, in_axes=(-1, 0, 0), out_axes=-1)
    probability = interpolate(logits, jnp.asarray(parameters["x"]), jnp.asarray(parameters["y"]))
    probability = jnp.clip(probability, CLIP, 1 - CLIP)
    return jnp.log(probability) - jnp.log1p(-probability)
  return logits


def apply(calibration, logits) -> jax.Array:
  """Calibrated logits, float32 [..., K], of logits [..., K]; the calibration is a constant."""
  return calibrate(parameters(calibration), logits)
