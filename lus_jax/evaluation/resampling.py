"""Scores of segmentations as sums by patient, so that folds pool and patients can be resampled.

Where several networks (seeds) saw the same patients, a score is that of one network on average: it
is computed of each and averaged, on the same patients and on the same resamples.
"""

import jax
import numpy as np

from lus_jax.evaluation import metrics, numbers, statistics
from lus_jax.labels import label

# Scores, and whether higher is better. Those of `OVERLAPS` are means over images per class, then
# over classes; `near` counts the pixels that something is predicted at or painted near to.
OVERLAPS = ("dice", "iou", "surface_dice", "dice_raters")
SCORES = dict.fromkeys(OVERLAPS, True) | dict.fromkeys(
  ("ece", "ece_near", "brier", "brier_near"), False
)
# Images that are looked at together.
BATCH = 16
# What the target has to reach to be shown.
MIDDLE = 0.5


@jax.jit
def _bins(probability, target, where):
  probability = jax.numpy.clip(probability, 1e-7, 1 - 1e-7)
  sums = metrics.image_sums(
    logits=jax.scipy.special.logit(probability),
    confidence=target,
    where=where,
    near=metrics.near_confidence(target),
    threshold=MIDDLE,
    evaluation_thresholds=[MIDDLE],
    cuts=(MIDDLE,),
  )
  return {name: sums[name] for name in ("bins", "lowest", "highest")}


def image_sums(probability, target, where, *, predicted=None):
  """What `by_patient` adds up, of every image.

  Args:
    probability: [N, H, W, K], in [0, 1].
    target: what it should mean, [N, H, W, K], in [0, 1]; it is shown where it reaches .5.
    where: valid pixels, bool, [N, H, W, K].
    predicted: where a class is said to be, bool, [N, H, W, K]; None: where it has .5.

  Returns:
    A dict of arrays: `intersection`, `prediction_area`, `label_area`, `surface_dice` [N, K] (by
    `metrics.surface_scores`), `count`, `probability`, `target` [N, R, bins, K] and `squared_error`
    [N, R, K], R being `metrics.REGIONS`; and `constant` [N, K], whether the probability of the
    class is the same number in all N images.
  """
  probability, target = (np.asarray(x, np.float32) for x in (probability, target))
  n, parts = len(probability), []
  for start in range(0, n, BATCH):
    # The last image fills the last batch up: one program for all.
    index = np.minimum(np.arange(start, start + BATCH), n - 1)
    found = _bins(probability[index], target[index], where[index])
    parts.append({name: np.asarray(x)[: n - start] for name, x in found.items()})
  sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  # [N, R, Q, bins, K]
  bins = dict(zip(metrics.QUANTITIES, np.moveaxis(sums["bins"], 2, 0), strict=False))
  predicted = (probability >= MIDDLE if predicted is None else predicted) & where
  shown = (np.asarray(label(target, MIDDLE)) > 0) & where
  surface, _ = metrics.surface_scores(prediction=predicted, labels=shown, where=where)
  constant = metrics.is_constant(sums["lowest"], sums["highest"])
  return {
    "intersection": (predicted & shown).sum((1, 2)),
    "prediction_area": predicted.sum((1, 2)),
    "label_area": shown.sum((1, 2)),
    "surface_dice": surface,
    "count": bins["count"],
    "probability": bins["probability"],
    "target": bins["confidence"],
    "squared_error": bins["squared_error"].sum(2),
    "constant": np.broadcast_to(constant, surface.shape),
  }


def by_patient(sums, patients):
  """Adds up `image_sums` within patients.

  Args:
    sums: of `image_sums`, concatenated over folds; with `dice_raters` [N, K] too, if there is one.
    patients: [N] names.

  Returns:
    The P sorted names, and a dict of arrays [P, ...].
  """
  names, index = np.unique(np.asarray(patients), return_inverse=True)

  def added(values):
    values = np.asarray(values, np.float64)
    totals = np.zeros((len(names), *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals

  areas = sums["prediction_area"] + sums["label_area"]
  overlaps = {
    "dice": numbers.ratio(2 * sums["intersection"], areas),
    "iou": numbers.ratio(sums["intersection"], areas - sums["intersection"]),
    "surface_dice": sums["surface_dice"],
  }
  overlaps |= {name: sums[name] for name in ("dice_raters",) if name in sums}
  found = {}
  for name, values in overlaps.items():
    found[name] = added(np.nan_to_num(values))
    found[f"{name}_images"] = added(~np.isnan(values))
  found["label_images"] = added(sums["label_area"] > 0)
  for name in ("count", "probability", "target", "squared_error"):
    found[name] = added(sums[name])
  found["varies"] = added(~sums["constant"])
  return tuple(names.tolist()), found


def per_class(parts, name):
  """One of `OVERLAPS` by class over all patients, [K], of `by_patient`; NaN where undefined."""
  values = numbers.ratio(parts[name].sum(0), parts[f"{name}_images"].sum(0))
  return np.where(parts["label_images"].sum(0) > 0, values, np.nan)


def scores(parts, counts):
  """The scores for how often each patient counts.

  Args:
    parts: the dict of `by_patient`.
    counts: [M, P].

  Returns:
    A dict by `SCORES` (`dice_raters` where there are raters) of [M], NaN where undefined. A class
    that no label shows counts in no overlap, one that the target nowhere has or whose probability
    is the same number everywhere in no calibration error; Brier scores are means over all valid
    pixels and classes.
  """
  counts = np.asarray(counts, np.float64)

  def drawn(name):
    return np.tensordot(counts, parts[name], 1)

  shown, found = drawn("label_images") > 0, {}
  for name in OVERLAPS:
    if name in parts:
      values = numbers.ratio(drawn(name), drawn(f"{name}_images"))
      found[name] = numbers.defined_mean(np.where(shown, values, np.nan), axis=1)
  count, probability, target = (drawn(name) for name in ("count", "probability", "target"))
  gaps = numbers.ratio(np.abs(probability - target).sum(2), count.sum(2))
  undefined = (target.sum(2) == 0) | (drawn("varies") == 0)[:, None]
  errors = numbers.defined_mean(np.where(undefined, np.nan, gaps), axis=2)
  squared = numbers.ratio(drawn("squared_error").sum(2), count.sum((2, 3)))
  for region, suffix in enumerate(("", "_near")):
    found |= {f"ece{suffix}": errors[:, region], f"brier{suffix}": squared[:, region]}
  return found


def _over_seeds(seeds, counts):
  each = [scores(parts, counts) for parts in seeds]
  return {name: np.stack([one[name] for one in each]) for name in each[0]}


def summarize(seeds, *, intervals=True):
  """Every score of one way to train, and how sure it is.

  Args:
    seeds: the dict of `by_patient` of each seed, all of the same patients.
    intervals: whether patients are resampled (10,000 times); never below 10 of them.

  Returns:
    A dict by score of dicts for JSON: `value` (the mean over seeds), `seeds` (each one's own), `sd`
    over seeds, and `interval`, 95 % over patients; None where undefined.
  """
  n = len(seeds[0]["label_images"])
  whole = _over_seeds(seeds, np.ones((1, n)))
  drawn = _resampled(seeds) if intervals and n >= statistics.INTERVAL_PATIENTS else {}
  rows = {}
  for name, values in whole.items():
    values = values[:, 0]
    rows[name] = {
      "value": numbers.number(values.mean()),
      "seeds": [numbers.number(x) for x in values],
      "sd": numbers.number(np.std(values, ddof=1)) if len(values) > 1 else None,
      "interval": _ends(drawn.get(name)),
    }
  return rows


def differences(ours, theirs):
  """Every score of one way to train less that of another, of the same patients.

  Args:
    ours: as `seeds` of `summarize`.
    theirs: likewise.

  Returns:
    A dict by score of dicts for JSON: `value` and `interval`, of the same resamples of patients;
    None where undefined, the interval also below 10 patients.
  """
  n = len(ours[0]["label_images"])
  ones = np.ones((1, n))
  a, b = (_over_seeds(seeds, ones) for seeds in (ours, theirs))
  drawn = {}
  if n >= statistics.INTERVAL_PATIENTS:
    one, other = _resampled(ours), _resampled(theirs)
    drawn = {name: one[name] - other[name] for name in one.keys() & other.keys()}
  return {
    name: {
      "value": numbers.number(a[name].mean() - b[name].mean()),
      "interval": _ends(drawn.get(name)),
    }
    for name in a
    if name in b
  }


def _resampled(seeds):
  """The mean over seeds of every score, in every resample: [M]."""
  counts = statistics.resamples(len(seeds[0]["label_images"]), 0)
  return {name: values.mean(0) for name, values in _over_seeds(seeds, counts).items()}


def _ends(values):
  if values is None or np.isnan(values).all():
    return None
  return list(statistics.percentiles(values)[:2])
