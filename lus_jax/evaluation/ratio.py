"""Metrics of clinical tasks as sums per patient, which add up over patients and folds."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio:
  """A metric: sum over patients of the numerator by that of the denominator.

  Attributes:
    patients: P names.
    numerator: [P], e.g. how many of a patient's pairs are right, or the sum of squared errors.
    denominator: [P], e.g. how many pairs.
    root: whether the metric is the square root of the ratio.
  """

  patients: tuple[str, ...]
  numerator: np.ndarray
  denominator: np.ndarray
  root: bool = False

  def of(self, numerator, denominator):
    """The metric for other sums, elementwise; NaN where the denominator is 0."""
    defined = np.asarray(denominator) > 0
    ratio = np.where(defined, numerator, np.nan) / np.where(defined, denominator, 1)
    return np.sqrt(ratio) if self.root else ratio

  def value(self):
    """The metric over all patients; None where it is undefined."""
    return json_number(self.of(np.sum(self.numerator), np.sum(self.denominator)))

  def resampled(self, counts):
    """The metric for how often each patient counts, [M, P]: [M]."""
    return self.of(counts @ self.numerator, counts @ self.denominator)


@dataclasses.dataclass(frozen=True, eq=False)
class Auroc:
  """Area under the ROC curve: the share of pairs of a yes and a no in which the yes scores higher.

  Equal scores count half. Only patients that the same network scored are paired: scores of two
  networks have no common scale.

  Attributes:
    patients: P names.
    wins: [P, P], what the pair (row yes, column no) counts.
    pairs: [P, P], how many networks scored the pair.
  """

  patients: tuple[str, ...]
  wins: np.ndarray
  pairs: np.ndarray

  def value(self):
    """The metric over all patients; None where one of the classes is missing."""
    return json_number(self.resampled(np.ones((1, len(self.patients))))[0])

  def resampled(self, counts):
    """The metric for how often each patient counts, [M, P]: [M], NaN where undefined."""
    wins, pairs = (np.sum((counts @ one) * counts, axis=1) for one in (self.wins, self.pairs))
    return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def auroc(*, scores, labels, patients):
  """The `Auroc` of one network.

  Args:
    scores: [P], higher for a yes.
    labels: [P], 0 or 1.
    patients: P different names.
  """
  order = np.argsort(np.asarray(patients), kind="stable")
  scores, labels = np.asarray(scores, np.float64)[order], np.asarray(labels)[order]
  pairs = ((labels[:, None] == 1) & (labels[None] == 0)).astype(np.float64)
  above = scores[:, None] > scores[None]
  wins = pairs * (above + 0.5 * (scores[:, None] == scores[None]))
  return Auroc(tuple(np.asarray(patients)[order].tolist()), wins, pairs)


def concordance(*, scores, labels, patients):
  """The `Auroc` of one network for ordered classes, of items of which a patient has several.

  Of two items of different classes the higher should score higher; those of one patient count too.

  Args:
    scores: [n], higher for a higher class.
    labels: [n] integers.
    patients: [n] names.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  names, index = np.unique(np.asarray(patients), return_inverse=True)
  wins, pairs = np.zeros((2, len(names), len(names)))
  for lower in np.unique(labels)[:-1].tolist():
    higher = labels > lower
    for q in np.unique(index[labels == lower]).tolist():
      theirs = np.sort(scores[(index == q) & (labels == lower)])
      below, upto = (np.searchsorted(theirs, scores[higher], side) for side in ("left", "right"))
      wins[:, q] += np.bincount(index[higher], (below + upto) / 2, len(names))
      pairs[:, q] += len(theirs) * np.bincount(index[higher], minlength=len(names))
  return Auroc(tuple(names.tolist()), wins, pairs)


def json_number(value):
  """A Python float; None for NaN."""
  return None if np.isnan(value) else float(value)


def ratio(patients, numerator, denominator, *, root=False):
  """Sums of items (pairs, videos, days) by patient."""
  names, index = np.unique(np.asarray(patients), return_inverse=True)
  sums = [
    np.bincount(index, np.broadcast_to(x, index.shape).astype(np.float64), len(names))
    for x in (numerator, denominator)
  ]
  return Ratio(tuple(names.tolist()), *sums, root=root)


def fold_row(ratios):
  """The values of one fold for a results file.

  Args:
    ratios: a dict from metric to `Ratio` or `Auroc`.

  Returns:
    A dict from metric to value: None where undefined, but 0 for `recall` and `precision`; next to
    `precision` stands `precision_defined`.
  """
  row = {}
  for name, ratio in ratios.items():
    value = ratio.value()
    row[name] = 0.0 if value is None and name in ("recall", "precision") else value
    if name == "precision":
      row["precision_defined"] = value is not None
  return row
