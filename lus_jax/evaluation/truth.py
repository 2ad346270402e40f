"""How near an output is to the truth that a simulator knows and no rater sees."""

import numpy as np

from lus_jax.evaluation import reliability
from lus_jax.labels import label
from lus_jax.training import members


def score(probability, frames, views):
  """Scores of every view against the truth, on the test frames of a unit.

  Each is taken over all test pixels of a class, then averaged over the classes that are there:
  `average_precision` of p; `dice` of p at the cut-off that is best, on validation, for the view's
  own label (at .5 where it has no threshold), and `dice_half` at .5; `ece` and `brier` of p against
  the truth; `label_dice` of the test frames' label at its threshold, as it was painted: the Dice of
  whoever learned that label and nothing else (None where it has no threshold); `fit_train` and
  `fit_test`: Dice of p at .5 and the view's own label on training and on test frames, the nearer to
  1 on training frames alone the more was learned by heart.

  Args:
    probability: by split, [V, n, H, W, K].
    frames: of `cohort`.
    views: the views.

  Returns:
    A list of V dicts.
  """
  truth = frames["test"]["truth"] > 0
  present = [k for k in range(truth.shape[-1]) if truth[..., k].any() and not truth[..., k].all()]
  confidences = {
    split: frames[split]["confidence"].astype(np.float32) / 255 for split in probability
  }
  where = np.ones((*truth.shape[:-1], 1), bool)
  rows = []
  for i, view in enumerate(views):
    threshold = members.MIDDLE if view.threshold is None else view.threshold
    own = {name: np.asarray(label(x, threshold)) > 0 for name, x in confidences.items()}
    held_out, p, aim = probability["validation"][i], probability["test"][i], own["test"]
    precision, dice, half, target = [], [], [], []
    for k in present:
      precision.append(average_precision(p[..., k], truth[..., k]))
      cut = best_cut(held_out[..., k], own["validation"][..., k])
      dice.append(_dice(p[..., k] >= cut, truth[..., k]))
      half.append(_dice(p[..., k] >= 0.5, truth[..., k]))
      target.append(_dice(aim[..., k], truth[..., k]))
    sums = reliability.calibration_sums(p, truth.astype(np.float32), where)
    calibration = reliability.summarize_calibration(sums, [str(k) for k in range(truth.shape[-1])])
    rows.append(
      {
        "member": view.name,
        "average_precision": float(np.mean(precision)),
        "dice": float(np.mean(dice)),
        "dice_half": float(np.mean(half)),
        "ece": calibration["ece"],
        "brier": calibration["brier"],
        "label_dice": None if view.threshold is None else float(np.mean(target)),
        "fit_train": _fit(probability["train"][i], own["train"]),
        "fit_test": _fit(p, aim),
      }
    )
  return rows


def average_precision(probability, truth):
  """Average precision, as scikit-learn's `average_precision_score`, in a fraction of its time.

  Args:
    probability: of any shape.
    truth: bool of the same shape, true somewhere.
  """
  # Only where recall changes does precision count: at the probabilities of what is there.
  cuts, counts = np.unique(probability[truth], return_counts=True)
  ordered = np.sort(probability, axis=None)
  found = np.cumsum(counts[::-1])[::-1]
  precision = found / (ordered.size - np.searchsorted(ordered, cuts))
  return float(precision @ counts / found[0])


def _fit(p, own):
  """Dice of p at .5 and a label, mean over the classes that the label has."""
  there = [k for k in range(own.shape[-1]) if own[..., k].any()]
  return float(np.mean([_dice(p[..., k] >= 0.5, own[..., k]) for k in there])) if there else None


def _dice(a, b):
  return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)


def best_cut(probability, present):
  """The cut-off in .05, .1, ..., .95 with the highest Dice; the nearest to .5 of equal ones.

  Args:
    probability: of any shape.
    present: bool of the same shape.
  """
  cuts = np.arange(1, 20) / 20
  scores = [_dice(probability >= cut, present) for cut in cuts]
  return cuts[np.lexsort((np.abs(cuts - 0.5), -np.asarray(scores)))[0]]


def annotator_sd(raters):
  """How far apart several raters' scales are.

  Args:
    raters: [n, R, H, W, K] uint8, confidences of R raters who all saw every frame.

  Returns:
    The standard deviation, between raters, of the mean confidence they painted on the pixels that
    all of them painted, in standard deviations of all values painted there: maps that only narrow
    the scale change nothing. Mean over classes; None where no class has such pixels of two values.
  """
  found = []
  for k in range(raters.shape[-1]):
    values = np.moveaxis(raters[..., k], 1, 0)
    values = values[:, (values > 0).all(axis=0)]
    if values.size and values.std() > 0:
      found.append(np.std(values.mean(axis=1), ddof=1) / values.std())
  return float(np.mean(found)) if found else None
