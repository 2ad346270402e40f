"""Metrics of the clinical tasks, kept as sums per patient so that patients can be resampled."""

import numpy as np
from scipy import special

from lus_jax.evaluation import ratio

INCREASE = 2


def sf_change(*, logits, labels, same_day, patients, majority3, majority2, shares):
  """Accuracies over ordered pairs of videos.

  The 3-class prediction is the largest logit, the first of equal ones. The paper does not say how
  it comes to two classes. Most likely the other two were merged after that: `accuracy2_merged`. In
  the other reading their probabilities are summed: `accuracy2` says Increase where P(Increase) >
  P(Decrease) + P(Same), by the softmax over the three.

  Args:
    logits: [m, 3] for Decrease, Same, Increase.
    labels: [m], 0 to 2.
    same_day: [m] bool, both videos are of one patient-day ("Same" by construction).
    patients: [m] names.
    majority3: the most frequent of the three classes in training.
    majority2: the most frequent of the two: 1 Increase, 0 the rest.
    shares: [3] of the classes in training.

  Returns:
    A dict of `Ratio`s: `accuracy3`, `accuracy2_merged`, `accuracy2`, all also `_no_same_day`, and
    `majority3`, `majority2`: the accuracies of always saying the majority class. `brier` and
    `brier_constant`: squared distance of the probabilities, and of `shares`, from the class.
    `auroc_ordinal`: of the expected change, Decrease < Same < Increase (`ratio.concordance`).
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  other_day = ~np.asarray(same_day, bool)
  probability, truth = special.softmax(logits, axis=-1), np.eye(3)[labels]
  increase, predicted = labels == INCREASE, logits.argmax(-1)
  right = {
    "accuracy3": predicted == labels,
    "accuracy2_merged": (predicted == INCREASE) == increase,
    "accuracy2": (logits[:, 2] > np.logaddexp(logits[:, 0], logits[:, 1])) == increase,
  }
  return {
    **{name: ratio.ratio(patients, x, 1) for name, x in right.items()},
    **{
      f"{name}_no_same_day": ratio.ratio(patients, x & other_day, other_day)
      for name, x in right.items()
    },
    "majority3": ratio.ratio(patients, labels == majority3, 1),
    "majority2": ratio.ratio(patients, increase == majority2, 1),
    "brier": ratio.ratio(patients, np.square(probability - truth).sum(-1), 1),
    "brier_constant": ratio.ratio(patients, np.square(shares - truth).sum(-1), 1),
    "auroc_ordinal": ratio.concordance(
      scores=probability @ np.arange(3), labels=labels, patients=patients
    ),
  }


STATISTICS = {"mean": np.mean, "median": np.median, "max": np.max}


def _by_day(patients, days, *values):
  """Statistics over the views of every patient-day.

  Returns:
    The D patients and days, sorted, and for each of `values` a dict from statistic to [D].
  """
  names, index = np.unique(np.asarray(patients), return_inverse=True)
  units, unit = np.unique(np.stack([index, np.asarray(days)]), axis=1, return_inverse=True)
  views = [np.flatnonzero(unit.ravel() == i) for i in range(units.shape[1])]
  statistics = [
    {
      name: np.array([function(np.asarray(x, np.float64)[v]) for v in views])
      for name, function in STATISTICS.items()
    }
    for x in values
  ]
  return names[units[0]], units[1], *statistics


def sf_ratio(*, predictions, targets, patients, days, constant):
  """Root mean squared errors over patient-days, in the unit of the targets.

  A patient-day is estimated by the mean, the median or the maximum of its views' predictions, and
  compared with the same statistic of their targets.

  Args:
    predictions: [n], one a video.
    targets: [n].
    patients: [n] names.
    days: [n] integers; videos of unknown day (-1) of a patient count as one day.
    constant: the mean target in training, as the constant predictor.

  Returns:
    A dict of `Ratio`s: `rmse_mean`, `rmse_median`, `rmse_max`; `rmse_video` over videos instead of
    days; `rmse_constant` of the constant against the days' mean targets, `rmse_constant_median` and
    `rmse_constant_max` against their median and maximum.
  """
  names, _, predicted, measured = _by_day(patients, days, predictions, targets)

  def rmse(patients, error):
    return ratio.ratio(patients, error**2, 1, root=True)

  error = np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)
  return {
    **{f"rmse_{name}": rmse(names, predicted[name] - measured[name]) for name in STATISTICS},
    "rmse_video": rmse(patients, error),
    "rmse_constant": rmse(names, constant - measured["mean"]),
    **{
      f"rmse_constant_{name}": rmse(names, constant - measured[name]) for name in ("median", "max")
    },
  }


def patient_days(*, predictions, targets, patients, days):
  """Predicted and measured values of every patient-day, for a table.

  Args: as for `sf_ratio`.

  Returns:
    A list of dicts: `patient`, `day`, `measured` (the mean of the targets), `mean`, `median`,
    `max` (of the predictions).
  """
  names, numbers, predicted, measured = _by_day(patients, days, predictions, targets)
  return [
    {
      "patient": str(names[i]),
      "day": int(numbers[i]),
      "measured": float(measured["mean"][i]),
      **{name: float(predicted[name][i]) for name in STATISTICS},
    }
    for i in range(len(names))
  ]


def vote(logits, present):
  """Lets the views of a patient vote.

  A present view votes for the class of its larger logit and for neither where both are equal. A
  tie of votes goes to the class with the larger sum of logits over present views; 0 where these
  are equal too.

  Args:
    logits: [P, V, 2]; those of missing views are ignored.
    present: [P, V] bool.

  Returns:
    Predicted classes [P] and votes [P, 2], both integer.

  Raises:
    ValueError: a patient has no view.
  """
  present = np.asarray(present, bool)
  if not present.any(axis=1).all():
    raise ValueError("a patient without any view cannot be predicted; leave such patients out")
  logits = np.where(present[..., None], np.asarray(logits, np.float64), 0)
  votes = np.sum(logits > logits[..., ::-1], axis=1)
  total = logits.sum(axis=1)
  tie = votes[:, 0] == votes[:, 1]
  predicted = np.where(tie, total[:, 1] > total[:, 0], votes[:, 1] > votes[:, 0])
  return predicted.astype(int), votes


def mean_margin(logits, present):
  """By how much yes is ahead of no, the mean over a patient's present views: [P, V, 2] to [P]."""
  logits, present = np.asarray(logits, np.float64), np.asarray(present, bool)
  return np.where(present, logits[..., 1] - logits[..., 0], 0).sum(1) / present.sum(1)


def readmission(*, logits, present, labels, patients, majority, prevalence):
  """Metrics of a binary label per patient, predicted by `vote`.

  Args:
    logits: [P, V, 2] for no and yes.
    present: [P, V] bool.
    labels: [P], 0 or 1.
    patients: P different names.
    majority: the more frequent class in training.
    prevalence: the share of class 1 in training.

  Returns:
    A dict of `Ratio`s: `accuracy`, `recall`, `precision` (of class 1), `sensitivity`, which is
    recall but undefined without a true case, `specificity`, and `majority`: the accuracy of always
    saying the majority class; and `auroc`, an `Auroc` of the mean over present views of the logit
    of yes less that of no. `brier` and `brier_constant`: squared distance from the class of the
    probability by that mean, and of `prevalence`.
  """
  predicted, _ = vote(logits, present)
  labels, present = np.asarray(labels), np.asarray(present, bool)
  score = mean_margin(logits, present)
  hit = (predicted == 1) & (labels == 1)
  refused = (predicted == 0) & (labels == 0)
  return {
    "accuracy": ratio.ratio(patients, predicted == labels, 1),
    "recall": ratio.ratio(patients, hit, labels == 1),
    "precision": ratio.ratio(patients, hit, predicted == 1),
    "auroc": ratio.auroc(scores=score, labels=labels, patients=patients),
    "sensitivity": ratio.ratio(patients, hit, labels == 1),
    "specificity": ratio.ratio(patients, refused, labels == 0),
    "majority": ratio.ratio(patients, labels == majority, 1),
    "brier": ratio.ratio(patients, np.square(special.expit(score) - labels), 1),
    "brier_constant": ratio.ratio(patients, np.square(prevalence - labels), 1),
  }


def confusion(labels, predicted, n):
  """Counts by true class (rows) and predicted class (columns): n lists of n integers."""
  cells = np.asarray(labels, int) * n + np.asarray(predicted, int)
  return np.bincount(cells, minlength=n * n).reshape(n, n).tolist()
