"""What the clinical results allow to say: the unit of every interval is the patient, that of every
test what could have been swapped: patients of one test set, or folds that each have networks."""

import functools

import numpy as np

from lus_jax.evaluation.ratio import Auroc, Ratio, fold_row, json_number

RESAMPLES = 10_000
# Fewer patients than this get no interval: every one of them is shown instead.
INTERVAL_PATIENTS = 10
# Up to this many patients all ways of swapping them are enumerated.
EXACT_PATIENTS = 14
LEVEL = 0.05
# What comparisons are made against.
REFERENCES = (0.0, 0.5)


def average(ratios):
  """One metric over several folds or seeds: averaged within every patient first.

  Args:
    ratios: a `Ratio` per fold, or an `Auroc`.

  Returns:
    A `Ratio` over all patients, sorted; numerator and denominator are means over the folds in
    which the patient was tested. An `Auroc` of the pairs of all folds.
  """
  if isinstance(ratios[0], Auroc):
    return _pooled(ratios)
  every = [(name, i, j) for i, ratio in enumerate(ratios) for j, name in enumerate(ratio.patients)]
  names, index = np.unique([name for name, _, _ in every], return_inverse=True)
  count = np.bincount(index)

  def mean(attribute):
    values = [getattr(ratios[i], attribute)[j] for _, i, j in every]
    return np.bincount(index, values) / count

  return Ratio(tuple(names.tolist()), mean("numerator"), mean("denominator"), root=ratios[0].root)


def _pooled(rocs):
  names = sorted({name for roc in rocs for name in roc.patients})
  wins, pairs = np.zeros((2, len(names), len(names)))
  for roc in rocs:
    at = np.ix_(*[np.searchsorted(names, roc.patients)] * 2)
    wins[at] += roc.wins
    pairs[at] += roc.pairs
  return Auroc(tuple(names), wins, pairs)


@functools.lru_cache(maxsize=4)
def resamples(n, seed):
  """How often each patient is drawn: [RESAMPLES, n]. The same for every metric and member."""
  counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
  counts = counts.astype(np.float64)
  counts.flags.writeable = False
  return counts


@functools.lru_cache(maxsize=4)
def _swaps(n, seed):
  """Which patients are swapped: [2^n or RESAMPLES, n] of 0 and 1."""
  if n <= EXACT_PATIENTS:
    swaps = np.arange(2**n)[:, None] >> np.arange(n) & 1
  else:
    swaps = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, n))
  swaps = swaps.astype(np.float64)
  swaps.flags.writeable = False
  return swaps


def _paired(a, b):
  if a.patients != b.patients or a.root != b.root:
    raise ValueError("paired statistics need the same metric of the same patients")


def percentiles(values):
  """The central 95 % of resampled values [n], and how many of them are undefined."""
  defined = values[~np.isnan(values)]
  low, high = np.percentile(defined, [2.5, 97.5])
  return float(low), float(high), int(len(values) - len(defined))


def interval(ratio, *, seed=0):
  """95 % percentile bootstrap interval over patients, of 10,000 resamples.

  Args:
    ratio: a `Ratio`.
    seed: of the resamples.

  Returns:
    Its ends and in how many resamples the metric was undefined (these are left out). None for fewer
    than 10 patients, and where the metric itself is undefined.
  """
  if len(ratio.patients) < INTERVAL_PATIENTS or ratio.value() is None:
    return None
  return percentiles(_resampled(ratio, seed))


def difference_interval(a, b, *, seed=0):
  """The same for the difference a - b of one metric of two models: both on the same resamples.

  Raises:
    ValueError: they are not of the same patients.
  """
  _paired(a, b)
  if len(a.patients) < INTERVAL_PATIENTS or a.value() is None or b.value() is None:
    return None
  return percentiles(_resampled(a, seed) - _resampled(b, seed))


def _resampled(ratio, seed):
  return ratio.resampled(resamples(len(ratio.patients), seed))


def permutation_test(a, b, *, groups=None, seed=0):
  """Two-sided p value of the difference of one metric between two models.

  The two models' predictions are swapped for whole patients and the metric recomputed: p is the
  share of swaps whose |difference| is at least the observed one. All 2^P of them up to 14
  patients, else 10,000 draws with p = (b + 1) / (m + 1). A swap for which the metric of either
  model is undefined counts as at least as large: that can only raise p.

  Patients who were tested by a pair of networks of their own are swapped together (`groups`): one
  network may be better than the other by the luck of its training for all of them, and swapped one
  by one they would call that a difference of thresholds
  (python -m lus_jax.benchmarks.error_rate).

  Args:
    a: `Ratio` of one model.
    b: `Ratio` of the other one, of the same patients.
    groups: what is swapped together: a value for each of `a.patients`; None: each by itself.
    seed: of the draws.

  Returns:
    p; None where the observed difference is undefined.

  Raises:
    ValueError: they are not of the same patients.
  """
  _paired(a, b)
  if a.value() is None or b.value() is None:
    return None
  units, unit = np.unique(a.patients if groups is None else groups, return_inverse=True)
  swaps = _swaps(len(units), seed)[:, unit]

  def metric(stay, swapped):
    return a.of(
      *(
        (1 - swaps) @ getattr(stay, name) + swaps @ getattr(swapped, name)
        for name in ("numerator", "denominator")
      )
    )

  difference = np.abs(metric(a, b) - metric(b, a))
  # Sums in another order differ by rounding, which must not turn equal into smaller.
  slack = 1e-9 * max(a.value(), b.value())
  count = np.sum(~(difference < abs(a.value() - b.value()) - slack))
  if len(units) <= EXACT_PATIENTS:
    return float(count / len(swaps))
  return float((count + 1) / (len(swaps) + 1))


def holm(p_values):
  """Holm's step-down correction of a family of p values: a list in their order, at most 1."""
  p_values = np.asarray(p_values, np.float64)
  order = np.argsort(p_values, kind="stable")
  steps = p_values[order] * np.arange(len(p_values), 0, -1)
  adjusted = np.empty_like(p_values)
  adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return adjusted.tolist()


def family(thresholds):
  """The comparisons of a task: every threshold against 0 and against .5, each pair once.

  Args:
    thresholds: of the members; 'none' and 'true' are in no comparison.

  Returns:
    A list of pairs (threshold, the one it is compared with).
  """
  numbers = [t for t in thresholds if not isinstance(t, str)]
  pairs = []
  for other in REFERENCES:
    if other in numbers:
      pairs += [(t, other) for t in numbers if t != other and (other, t) not in pairs]
  return pairs


def smallest_p(n_units, n_comparisons):
  """The smallest p value that the test can give after Holm's correction.

  A family can decide only where it is below .05.

  Args:
    n_units: how many patients, or groups of them, are swapped.
    n_comparisons: of the family.
  """
  exact = n_units <= EXACT_PATIENTS
  p = 2 / 2**n_units if exact else 1 / (RESAMPLES + 1)
  return min(1.0, p * max(n_comparisons, 1))


def summarize(members, *, primary, baseline, groups=None):
  """What the results file says of every member.

  Args:
    members: a dict from threshold (or 'none', 'true') to a list over folds of dicts from metric to
      `Ratio`.
    primary: the metric that comparisons are made in.
    baseline: the metric of the constant predictor beside it.
    groups: a dict from patient to what `permutation_test` swaps together; None: patients.

  Returns:
    A list of dicts of JSON values, one a member: `threshold`, `n_patients`, `n_folds`, `metrics`,
    `differences`, `comparisons`, `smallest_attainable_p`, `can_decide`. In `metrics`, `mean` and
    `sd` (ddof 1) are over the folds in which the metric is defined (training variability), with
    recall and precision 0 where undefined; `estimate` and `interval` are over patients, and None
    where undefined. A p value that is undefined counts as 1 in Holm's correction.
  """
  averages = {
    threshold: {name: average([fold[name] for fold in folds]) for name in folds[0]}
    for threshold, folds in members.items()
  }
  pairs = family(members)

  def grouped(ratio):
    return list(ratio.patients) if groups is None else [groups[name] for name in ratio.patients]

  p_values = [
    permutation_test(a, b, groups=grouped(a))
    for a, b in ((averages[t][primary], averages[o][primary]) for t, o in pairs)
  ]
  corrected = holm([1.0 if p is None else p for p in p_values])
  comparisons = {threshold: [] for threshold in members}
  for (t, other), p, p_holm in zip(pairs, p_values, corrected, strict=True):
    row = {
      "against": other,
      "difference": _difference(averages[t][primary], averages[other][primary]),
      "p": p,
      "p_holm": None if p is None else p_holm,
    }
    comparisons[t].append(row)
  rows = []
  for threshold, folds in members.items():
    own = averages[threshold]
    against = {baseline: own[baseline]}
    if "none" in members and threshold != "none":
      against["none"] = averages["none"][primary]
    n_patients = len(own[primary].patients)
    smallest = smallest_p(len(set(grouped(own[primary]))), len(pairs))
    fold_rows = [fold_row(fold) for fold in folds]
    rows.append(
      {
        "threshold": threshold,
        "n_patients": n_patients,
        "n_folds": len(folds),
        "metrics": {
          name: _summary(ratio, [row[name] for row in fold_rows]) for name, ratio in own.items()
        },
        "differences": [
          {
            "against": name,
            "metric": primary,
            "difference": _difference(own[primary], other),
            "interval": _ends(difference_interval(own[primary], other)),
          }
          for name, other in against.items()
        ],
        "comparisons": comparisons[threshold],
        "smallest_attainable_p": smallest,
        "can_decide": smallest < LEVEL,
      }
    )
  return rows


def _difference(a, b):
  a, b = a.value(), b.value()
  return None if a is None or b is None else a - b


def _ends(found):
  return None if found is None else list(found[:2])


def _summary(ratio, per_fold):
  per_fold = [value for value in per_fold if value is not None]
  found = interval(ratio)
  return {
    "mean": float(np.mean(per_fold)) if per_fold else None,
    "sd": float(np.std(per_fold, ddof=1)) if len(per_fold) > 1 else None,
    "estimate": ratio.value(),
    "interval": _ends(found),
    "undefined_resamples": found[2] if found else 0,
  }


def per_patient(members):
  """Every patient's metrics, averaged over folds.

  Args:
    members: as for `summarize`.

  Returns:
    A list of dicts of JSON values: `threshold`, `patient` and the metrics, None where undefined;
    one patient has no `Auroc`.
  """
  rows = []
  for threshold, folds in members.items():
    averages = {
      name: average([fold[name] for fold in folds])
      for name, one in folds[0].items()
      if isinstance(one, Ratio)
    }
    values = {
      name: ratio.of(ratio.numerator, ratio.denominator) for name, ratio in averages.items()
    }
    for i, patient in enumerate(next(iter(averages.values())).patients):
      row = {name: json_number(value[i]) for name, value in values.items()}
      rows.append({"threshold": threshold, "patient": patient, **row})
  return rows
