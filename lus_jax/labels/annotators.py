"""The same scale for every annotator: monotone maps of painted confidence.

People paint with different habits: 60 % of one may be 80 % of another. A map is a table of 256
stored values for each annotator and class, [A, K, 256] uint8. Tables never decrease; 0 stays 0, and
what is above 0 stays above 0, so the threshold "> 0 %" means the same before and after.
"""

import numpy as np

# Who a consensus of several annotators is by, unless its rows say so of another.
CONSENSUS = "consensus"
STORED = np.arange(256)


def _table(seen, mapped):
  """A table through (seen, mapped), both increasing; straight lines between, from 0 and to 255."""
  ends = [255] if seen[-1] < 255 else []
  table = np.interp(STORED, [0, *seen, *ends], [0, *mapped, *ends])
  table = np.clip(np.rint(table), 1, 255)
  table[0] = 0
  return table.astype(np.uint8)


def _identity(shape):
  return np.broadcast_to(STORED.astype(np.uint8), (*shape, 256)).copy()


def fit_quantile(histograms) -> np.ndarray:
  """Maps that carry each annotator's distribution of confidences above 0 to the pooled one.

  Every annotator that painted a class weighs alike in the pool. A value takes up a stretch of its
  annotator's ranks, and is carried to the mean of the pooled values on that stretch: where people
  paint with few brush levels, a level of one may lie between two of the pool. Values never painted
  lie on straight lines between those that were. Assumes that annotators met like cases: where one
  of them saw clearer frames, that too is taken for a habit and removed.

  Args:
    histograms: [A, K, 256], how often each stored value was painted, over each annotator's own
      frames of the training split; the count of 0 is ignored.

  Returns:
    Maps, [A, K, 256] uint8; the identity where an annotator painted nothing of a class.
  """
  counts = np.array(histograms, np.float64)
  counts[..., 0] = 0
  totals = counts.sum(-1, keepdims=True)
  shares = counts / np.maximum(totals, 1)
  maps = _identity(counts.shape[:2])
  for k in range(counts.shape[1]):
    painted = np.flatnonzero(totals[:, k, 0])
    if not len(painted):
      continue
    pooled = shares[painted, k].mean(0)
    # The integral of the pooled values over ranks, linear within each value's stretch.
    ranks, sums = (np.cumsum([0, *steps]) for steps in (pooled, pooled * STORED))
    for a in painted:
      seen = np.flatnonzero(shares[a, k])
      ends = np.interp(np.cumsum([0, *shares[a, k][seen]]), ranks, sums)
      maps[a, k] = _table(seen, np.diff(ends) / shares[a, k][seen])
  return maps


def fit_overlap(pairs) -> np.ndarray:
  """Maps from what an annotator painted to what the others painted on the same pixels.

  Isotonic regression of the mean of the others' values on the annotator's own, where its own is
  above 0. Needs frames that several annotators painted, and assumes nothing about their other
  cases. Disagreement about where a structure is pulls a map down, since the others' value is 0
  there, and noise in the own values flattens it, as in any regression.

  Args:
    pairs: [A, K, 256, 256], how often each pair (own stored value, mean of the others' on the same
      pixel, rounded) occurs, over pixels where either is above 0.

  Returns:
    Maps, [A, K, 256] uint8; the identity where an annotator painted nothing of a class on frames
    that others painted too.
  """
  from sklearn.isotonic import isotonic_regression

  counts = np.array(pairs, np.float64)
  counts[:, :, 0] = 0
  totals = counts.sum(-1)
  maps = _identity(totals.shape[:2])
  for a, k in np.argwhere(totals.any(-1)):
    seen = np.flatnonzero(totals[a, k])
    weight = totals[a, k, seen]
    maps[a, k] = _table(
      seen, isotonic_regression(counts[a, k, seen] @ STORED / weight, sample_weight=weight)
    )
  return maps
