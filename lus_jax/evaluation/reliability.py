"""Calibration of a model against several raters."""

import numpy as np

from lus_jax.evaluation import metrics, numbers


def calibration_sums(probability, target, where):
  """Sums over the calibration bins of `lus_jax.evaluation.metrics`, for each image and class.

  Args:
    target: what p should mean, [N, H, W, K], in [0, 1].

  Returns:
    A dict: `count`, `probability` and `target`, [N, K, N_BINS], and `squared_error` [N, K].
  """
  edges = (np.arange(1, metrics.N_BINS) / metrics.N_BINS).astype(np.float32)
  shape = (*probability.shape[:1], probability.shape[-1], metrics.N_BINS)
  sums = {name: np.zeros(shape) for name in ("count", "probability", "target")}
  sums["squared_error"] = np.zeros(shape[:2])
  valid = np.broadcast_to(where, probability.shape)
  for i, k in np.ndindex(*shape[:2]):
    here = valid[i, ..., k]
    p, t = (np.asarray(x[i, ..., k][here], np.float64) for x in (probability, target))
    bins = np.searchsorted(edges, p.astype(np.float32), side="left")
    for name, weights in (("count", None), ("probability", p), ("target", t)):
      sums[name][i, k] = np.bincount(bins, weights, metrics.N_BINS)
    sums["squared_error"][i, k] = np.sum((p - t) ** 2)
  return sums


def summarize_calibration(sums, classes):
  """Calibration over a split, ready for JSON.

  Args:
    sums: of `calibration_sums`, concatenated over the split; with those of `extremes`, what is the
      same number everywhere is undefined.
    classes: K names.

  Returns:
    A dict: `ece` (the mean over classes), `ece_pooled`, `ece_per_class`, `brier` and `reliability`
    (as `summarize` has them).
  """
  count, probability, target = (sums[name].sum(0) for name in ("count", "probability", "target"))
  brier = numbers.ratio(sums["squared_error"].sum(), count.sum())
  constant = metrics.is_constant(sums["lowest"], sums["highest"]) if "lowest" in sums else None
  return metrics.calibration_errors("ece", classes, count, probability, target, constant) | {
    "brier": numbers.number(brier),
    "reliability": rows(classes, count, probability, target),
  }


def rows(classes, count, probability, target):
  """The reliability diagram of each class for JSON, of bins [K, n]: counts and means."""
  return {
    name: {
      "count": count[k].tolist(),
      "probability": [numbers.number(x) for x in numbers.ratio(probability[k], count[k])],
      "target": [numbers.number(x) for x in numbers.ratio(target[k], count[k])],
    }
    for k, name in enumerate(classes)
  }
