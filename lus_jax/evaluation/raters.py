"""A model beside several raters, and the raters beside each other, on the host in float64.

Arrays have a leading image axis, so that patients can be resampled: `probability` [N, H, W, K] in
[0, 1]; `raters` [N, R, H, W, K] uint8, whose binary masks are value >= 128; `drawn` [N, R] bool,
False where a rater did not draw an image (its mask counts nowhere); `persons` [R], who each rater
is: one person may have drawn with several tools; `where` [N, H, W, K] or [N, H, W, 1] bool, the
valid pixels. Undefined values are NaN.
"""

import numpy as np

from lus_jax.evaluation import metrics, numbers, reliability, statistics

HALF = 128
# Levels of QUBIQ; the millionth covers float32, in which 7 / 10 may lie below .7.
LEVELS = np.arange(1, 10) / 10
ROUNDING = 1e-6
# Quantities [N, K] that are averaged over images, then over classes.
MEANS = (
  "qubiq",
  "qubiq_leave_one_out",
  "dice_vs_raters",
  "dice_vs_consensus",
  "ged",
  "human_qubiq_leave_one_out",
  "human_dice_vs_raters",
  "human_dice_vs_consensus",
)


def _images(where, *arrays):
  """Image after image: each array's valid pixels as [..., K, H * W], the others set to 0."""
  for i, valid in enumerate(where):
    images = (array[i] for array in arrays)
    yield [_planes(np.where(valid, image, image.dtype.type(0))) for image in images]


def _planes(image):
  """[..., H, W, K] to [..., K, H * W]."""
  image = np.moveaxis(image, -1, -3)
  return image.reshape(*image.shape[:-2], -1)


def _levels(values):
  """Which of the nine levels each value reaches: [K, P] to bool [9, K, P]."""
  return values >= (LEVELS - ROUNDING).astype(values.dtype)[:, None, None]


def _areas(masks):
  """[M, K, P] bool to [M, K], in pixels."""
  return np.count_nonzero(masks, axis=-1).astype(np.float64)


def _words(masks):
  """[M, K, P] bool as bits of whole words, [M, K, P / 64]."""
  packed = np.packbits(masks, axis=-1)
  packed = np.pad(packed, [(0, 0), (0, 0), (0, -packed.shape[-1] % 8)])
  return np.ascontiguousarray(packed).view(np.uint64)


def _intersections(a, b):
  """Areas of all intersections: bool [A, K, P] and [B, K, P] to [A, B, K], in pixels."""
  common = np.bitwise_count(_words(a)[:, None] & _words(b)[None])
  return common.sum(-1, dtype=np.float64)


def _over(numerator, denominator):
  """numerator / denominator, 1 where both are 0: two empty masks agree."""
  return np.divide(numerator, denominator, out=np.ones(numerator.shape), where=denominator > 0)


def _dices(a, b):
  """Dice of all pairs: bool [A, K, P] and [B, K, P] to [A, B, K]."""
  return _over(2 * _intersections(a, b), _areas(a)[:, None] + _areas(b)[None])


def _distances(a, b):
  """1 - IoU of all pairs, as `_dices`."""
  intersection = _intersections(a, b)
  return 1 - _over(intersection, _areas(a)[:, None] + _areas(b)[None] - intersection)


def _same_index_dice(a, b):
  """Dice of masks of the same index: bool [M, K, P] twice to [M, K]."""
  return _over(2 * _areas(a & b), _areas(a) + _areas(b))


def _mean(values, axis=None):
  return numbers.defined_mean(np.asarray(values, np.float64), axis)


def soft(raters, drawn):
  """Mean of the drawn raters' binary masks.

  Returns:
    float32, [N, H, W, K]; 0 where no rater drew.
  """
  return np.stack([_votes(*image)[0] for image in zip(raters, drawn, strict=True)])


def _votes(raters, counts):
  """Share of the raters that count [R] in an image [R, H, W, K], float32, and their number."""
  counts = np.asarray(counts, bool)
  n = np.count_nonzero(counts)
  votes = np.count_nonzero(raters[counts] >= HALF, axis=0)
  return votes.astype(np.float32) / np.float32(max(n, 1)), n


def qubiq(probability, soft, where):
  """QUBIQ score: mean over the levels .1 to .9 of the Dice of both thresholded there (>=).

  Two empty masks agree (Dice 1). Source: the QUBIQ 2021 challenge.

  Args:
    soft: the raters' mean, [N, H, W, K], in [0, 1].

  Returns:
    [N, K].
  """
  return np.stack(
    [_same_index_dice(_levels(p), _levels(s)).mean(0) for p, s in _images(where, probability, soft)]
  )


def dice(a, b, where):
  """Dice of two bool masks [N, H, W, K]: [N, K], 1 where both are empty."""
  return np.stack([_same_index_dice(x[None], y[None])[0] for x, y in _images(where, a, b)])


def dice_vs_raters(probability, raters, drawn, where):
  """Dice of the prediction (p >= .5) against every rater that drew the image; both empty is 1.

  Returns:
    The mean over raters [N, K], and per rater [N, R, K].
  """
  scores = np.full((*np.shape(drawn), probability.shape[-1]), np.nan)
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    scores[i, drawn[i]] = _dices(p[None] >= 0.5, y[drawn[i]] >= HALF)[0]
  return _mean(scores, 1), scores


def generalised_energy_distance(probability, raters, drawn, where):
  """2 E d(S, Y) - E d(S, S') - E d(Y, Y'), d = 1 - IoU, 0 between two empty masks.

  S are the nine level sets p >= k / 10, Y the masks of the raters that drew the image.
  Expectations run over all ordered pairs, a mask with itself included.
  Source: Kohl et al., A Probabilistic U-Net (arXiv 1806.05034).

  Returns:
    [N, K].
  """
  found = np.full((len(probability), probability.shape[-1]), np.nan)
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    if drawn[i].any():
      s, y = _levels(p), y[drawn[i]] >= HALF
      found[i] = 2 * _distances(s, y).mean((0, 1))
      found[i] -= _distances(s, s).mean((0, 1)) + _distances(y, y).mean((0, 1))
  return found


def consensus(raters, drawn, persons, leave_out):
  """What at least half of the binary masks of all other persons show; one vote a mask.

  Args:
    leave_out: the person whose masks, whatever the tool, do not vote; None for all to vote.

  Returns:
    bool [N, H, W, K], and the number of masks [N] each is made of: where that is 0, the consensus
    is undefined (and all False).
  """
  others = np.array([leave_out is None or person != leave_out for person in persons])
  votes = [_votes(y, d & others) for y, d in zip(raters, drawn, strict=True)]
  return np.stack([share >= 0.5 for share, _ in votes]), np.array([n for _, n in votes])


def _consensus(masks, counts):
  """The consensus of an image's masks [R, K, P]: [1, K, P]."""
  return masks[counts].mean(0, dtype=np.float32, keepdims=True) >= 0.5


def humans(raters, drawn, persons, where):
  """Each rater on the model's footing: Dice against other persons, and against their consensus.

  A rater is compared with no mask of the same person, and the consensus (see `consensus`) leaves
  that person out.

  Returns:
    The mean Dice against the raters of other persons one by one, [N, R, K], and the Dice against
    their consensus, [N, R, K]; NaN where the rater, or no other person, drew the image.
  """
  persons = np.asarray(persons)
  against_each, against_all = np.full((2, *np.shape(drawn), raters.shape[-1]), np.nan)
  for i, (y,) in enumerate(_images(where, raters)):
    masks = y >= HALF
    scores = _dices(masks, masks)
    for r in np.flatnonzero(drawn[i]):
      others = drawn[i] & (persons != persons[r])
      if others.any():
        against_each[i, r] = scores[r, others].mean(0)
        against_all[i, r] = _same_index_dice(masks[r : r + 1], _consensus(masks, others))[0]
  return against_each, against_all


def dice_vs_consensus(probability, raters, drawn, persons, where):
  """Dice of the prediction (p >= .5) against the consensuses that `humans` compares people with.

  Returns:
    [N, K]: the mean over the persons who drew the image of the Dice against the consensus without
    them; NaN where fewer than two persons drew it.
  """
  persons = np.asarray(persons)
  found = np.full((len(probability), probability.shape[-1]), np.nan)
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    here = np.unique(persons[drawn[i]])
    if len(here) > 1:
      masks = y >= HALF
      consensuses = [_consensus(masks, drawn[i] & (persons != person)) for person in here]
      found[i] = _dices(p[None] >= 0.5, np.concatenate(consensuses))[0].mean(0)
  return found


def _soft_without(raters, drawn, persons):
  """Levels that the mean of everybody else reaches, for each person who drew an image.

  Args:
    raters: an image's, uint8 [R, K, P].
    drawn: [R].
    persons: [R].

  Yields:
    The person and the levels [K, P], 0 to 9; nobody where only one person drew.
  """
  here = np.unique(persons[drawn])
  for person in here if len(here) > 1 else ():
    yield person, _reached(_votes(raters, drawn & (persons != person))[0])


def qubiq_leave_one_out(probability, raters, drawn, persons, where):
  """QUBIQ score of the prediction against the means that `human_qubiq` compares people with.

  Returns:
    [N, K]: the mean over the persons who drew the image of the score against the mean of the masks
    of all others; NaN where fewer than two persons drew it.
  """
  persons = np.asarray(persons)
  found = np.full((len(probability), probability.shape[-1]), np.nan)
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    others = [levels for _, levels in _soft_without(y, drawn[i], persons)]
    if others:
      found[i] = np.mean([_qubiq_of_levels(_reached(p), levels) for levels in others], axis=0)
  return found


def human_qubiq(raters, drawn, persons, where):
  """QUBIQ score of each rater's mask against the mean of the masks of all other persons.

  A mask is the same at every level, a prediction need not be: the score asks a person for what one
  mask cannot show where the others disagree.

  Returns:
    [N, R, K]; NaN where the rater, or no other person, drew the image.
  """
  persons = np.asarray(persons)
  found = np.full((*np.shape(drawn), raters.shape[-1]), np.nan)
  for i, (y,) in enumerate(_images(where, raters)):
    for person, levels in _soft_without(y, drawn[i], persons):
      for r in np.flatnonzero(drawn[i] & (persons == person)):
        found[i, r] = _qubiq_of_levels(len(LEVELS) * (y[r] >= HALF), levels)
  return found


def area(probability, raters, drawn, where):
  """Predicted area, the sum of p, and the mean area of the drawn raters' masks.

  Returns:
    Two [N, K], in pixels; the second is NaN where no rater drew.
  """
  predicted = np.full((len(probability), probability.shape[-1]), np.nan)
  painted = predicted.copy()
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    predicted[i] = p.sum(-1, dtype=np.float64)
    if drawn[i].any():
      painted[i] = _areas(y[drawn[i]] >= HALF).mean(0)
  return predicted, painted


def extremes(probability, where):
  """The lowest and the highest probability of each image and class.

  Returns:
    A dict: `lowest` and `highest`, [N, K]; infinite where no pixel is valid.
  """
  valid = np.broadcast_to(where, probability.shape)
  return {
    "lowest": np.min(probability, axis=(1, 2), where=valid, initial=np.inf),
    "highest": np.max(probability, axis=(1, 2), where=valid, initial=-np.inf),
  }


def disagreement(raters, drawn, where):
  """Variance of the drawn raters' binary masks (v (1 - v) of the share v that painted a pixel).

  Returns:
    The mean over valid pixels and classes [N], NaN where no rater drew, and the map [N, H, W, K],
    0 at invalid pixels.
  """
  share = soft(raters, drawn)
  valid = np.broadcast_to(where, share.shape)
  variance = np.where(valid, share * (1.0 - share), 0.0)
  n_valid = np.where(np.any(drawn, axis=1), valid.sum((1, 2, 3)), 0)
  return numbers.ratio(variance.sum((1, 2, 3)), n_valid), variance


def quantities(probability, raters, drawn, persons, where):
  """Everything `summarize` takes, of a batch of images; batches are concatenated by name.

  Calibration is measured against the mean of the raters that drew an image; an image that nobody
  drew counts nowhere.

  Args:
    probability: [N, H, W, K].
    raters: [N, R, H, W, K] uint8.
    drawn: [N, R] bool, which of them drew.
    persons: R names of whoever each rater is.
    where: [N, H, W, 1] bool, or [N, H, W, K].

  Returns:
    A dict of arrays with a leading image axis.
  """
  undrawn = ~np.any(drawn, axis=1)
  where = where & ~undrawn[:, None, None, None]
  target = soft(raters, drawn)
  score = qubiq(probability, target, where)
  score[undrawn] = np.nan
  predicted, painted = area(probability, raters, drawn, where)
  by_rater, by_consensus = humans(raters, drawn, persons, where)
  return {
    "qubiq": score,
    "qubiq_leave_one_out": qubiq_leave_one_out(probability, raters, drawn, persons, where),
    "dice_vs_raters": dice_vs_raters(probability, raters, drawn, where)[0],
    "dice_vs_consensus": dice_vs_consensus(probability, raters, drawn, persons, where),
    "ged": generalised_energy_distance(probability, raters, drawn, where),
    "human_qubiq_leave_one_out": _mean(human_qubiq(raters, drawn, persons, where), 1),
    "human_dice_vs_raters": _mean(by_rater, 1),
    "human_dice_vs_consensus": _mean(by_consensus, 1),
    "predicted_area": predicted,
    "rater_area": painted,
    **reliability.calibration_sums(probability, target, where),
    **extremes(probability, where),
  }


def painted_classes(rater_area):
  """Which classes some rater painted in some image, from mean areas [N, K] by image: bool [K]."""
  return np.nansum(rater_area, axis=0) > 0


def summarize(quantities, patients, classes, *, seed=0):
  """The results over a split, ready for JSON (undefined is None).

  Means run over images per class, then over classes; NaN is skipped, and so are classes without any
  defined image, and classes that no rater painted in any image: there empty masks would agree with
  empty masks alone. Calibration is undefined there too, and for a class whose probability is the
  same number everywhere. The area's error is relative to the raters' mean area, (predicted -
  painted) / painted, undefined where they painted nothing. The Brier score is a mean over all valid
  pixels and classes. Intervals are 95 % percentile bootstrap over patients (10,000 resamples), in
  which every metric is recomputed from the patients' sums.

  Args:
    quantities: of `quantities`, concatenated over the split.
    patients: [N] names.
    classes: K names.
    seed: of the resamples.

  Returns:
    A dict: those of `MEANS`, `area_error`, `area_error_abs`, `ece` (the mean over classes), each
    also as `<name>_per_class`; `ece_pooled`, `brier`; `reliability` (for each class `count`, mean
    `probability` and mean `target` by bin); `painted_images` (by class, in how many some rater
    painted it); `constant_classes` (names); `intervals` (by name, [low, high], None below 10
    patients) and `undefined_resamples` (by name, how many were left out of the interval).
  """
  names, index = np.unique(np.asarray(patients), return_inverse=True)

  def by_patient(values):
    totals = np.zeros((len(names), *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals

  error = numbers.ratio(
    quantities["predicted_area"] - quantities["rater_area"],
    np.nan_to_num(quantities["rater_area"]),
  )
  absent = ~painted_classes(quantities["rater_area"])
  means = {name: np.where(absent, np.nan, quantities[name]) for name in MEANS}
  means |= {"area_error": error, "area_error_abs": np.abs(error)}
  sums = {
    name: (by_patient(np.nan_to_num(values)), by_patient(~np.isnan(values)))
    for name, values in means.items()
  }
  bins = [by_patient(quantities[name]) for name in ("count", "probability", "target")]
  squared_error = by_patient(quantities["squared_error"])
  constant = metrics.is_constant(quantities["lowest"], quantities["highest"])

  def per_class(weights):
    """Metrics by class [M, K], for how often each patient counts [M, P]."""
    found = {
      name: numbers.ratio(weights @ total, weights @ count) for name, (total, count) in sums.items()
    }
    count, probability, target = (np.tensordot(weights, x, 1) for x in bins)
    gap = probability - target
    ece = numbers.ratio(np.abs(gap).sum(-1), count.sum(-1))
    found["ece"] = np.where(absent | constant, np.nan, ece)
    ece_pooled = numbers.ratio(np.abs(gap.sum(1)).sum(-1), count.sum((1, 2)))
    pooled = {
      "ece_pooled": np.where(constant.all(), np.nan, ece_pooled),
      "brier": numbers.ratio((weights @ squared_error).sum(-1), count.sum((1, 2))),
    }
    return found, {name: _mean(values, 1) for name, values in found.items()} | pooled

  by_class, overall = per_class(np.ones((1, len(names))))
  row = {name: numbers.number(values[0]) for name, values in overall.items()}
  row |= {f"{name}_per_class": numbers.by_name(classes, x[0]) for name, x in by_class.items()}
  count, probability, target = (x.sum(0) for x in bins)
  row["reliability"] = reliability.rows(classes, count, probability, target)
  n_painted = np.sum(np.nan_to_num(quantities["rater_area"]) > 0, axis=0)
  row["painted_images"] = {name: int(n) for name, n in zip(classes, n_painted, strict=True)}
  row["constant_classes"] = [name for name, one in zip(classes, constant, strict=True) if one]
  row["intervals"] = dict.fromkeys(overall)
  row["undefined_resamples"] = dict.fromkeys(overall, 0)
  if len(names) >= statistics.INTERVAL_PATIENTS:
    _, resampled = per_class(statistics.resamples(len(names), seed))
    for name in overall:
      if row[name] is not None:
        low, high, undefined = statistics.percentiles(resampled[name])
        row["intervals"][name] = [low, high]
        row["undefined_resamples"][name] = undefined
  return row


def summarize_humans(scores, patients, *, painted=None, seed=0):
  """The raters' own scores over a split, ready for JSON.

  Args:
    scores: by name [N, R, K]: `dice_vs_others` and `dice_vs_consensus` of `humans`,
      `qubiq_leave_one_out` of `human_qubiq`.
    patients: [N] names.
    painted: of `painted_classes`, [K]; the other classes are left out. None for all.
    seed: of the resamples.

  Returns:
    For each rater a dict: `n_images` and the scores, each the mean over images by class, then over
    classes, and their `intervals` over patients (as `summarize`).
  """
  names, index = np.unique(np.asarray(patients), return_inverse=True)
  first = next(iter(scores.values()))
  rows = []
  for r in range(first.shape[1]):
    row = {"n_images": int(np.any(~np.isnan(first[:, r]), axis=-1).sum()), "intervals": {}}
    for name, values in scores.items():
      values = values if painted is None else np.where(painted, values, np.nan)
      totals, counts = np.zeros((2, len(names), values.shape[-1]))
      np.add.at(totals, index, np.nan_to_num(values[:, r]))
      np.add.at(counts, index, ~np.isnan(values[:, r]))

      def overall(weights, totals=totals, counts=counts):
        return _mean(numbers.ratio(weights @ totals, weights @ counts), 1)

      row[name] = numbers.number(overall(np.ones((1, len(names))))[0])
      row["intervals"][name] = None
      if len(names) >= statistics.INTERVAL_PATIENTS and row[name] is not None:
        resampled = overall(statistics.resamples(len(names), seed))
        row["intervals"][name] = list(statistics.percentiles(resampled)[:2])
    rows.append(row)
  return rows


def fused_count_curve(probability, raters, drawn, where, *, seed, draws=20):
  """How many raters are enough? QUBIQ scores with the mean of m raters drawn at random.

  For m = 1 to R, over the images that at least m raters drew: the prediction against the mean of
  the m, and the mean of the m against the mean of all of the image's raters (1 at m = all, since
  the m are among them). Source: Silva & Oliveira (arXiv 2109.12622), whose curve reaches a plateau.

  Args:
    probability: [N, H, W, K].
    raters: [N, R, H, W, K] uint8.
    drawn: [N, R] bool.
    where: [N, H, W, 1] or [N, H, W, K] bool.
    seed: of the draws.
    draws: for each m and image, without replacement.

  Returns:
    A list of dicts of JSON values: `n_raters`, `n_images`, `prediction_vs_fused`, `fused_vs_all`,
    each the mean over draws and images by class, then over classes that some rater painted; None
    where no image has so many raters, or nobody painted anything.
  """
  random = np.random.default_rng(seed)
  drawn = np.asarray(drawn, bool)
  n_images, n_raters = drawn.shape
  n_classes = probability.shape[-1]
  scores = np.full((2, n_raters, n_images, n_classes), np.nan)
  painted = np.zeros(n_classes, bool)
  for i, (p, y) in enumerate(_images(where, probability, raters)):
    n_drawn = np.count_nonzero(drawn[i])
    if not n_drawn:
      continue
    masks = y[drawn[i]] >= HALF
    painted |= masks.any((0, 2))
    sizes = np.arange(1, n_drawn + 1).repeat(draws)
    order = random.random((len(sizes), n_drawn)).argsort(1)
    chosen = (order < sizes[:, None]).astype(np.float32)
    for k in range(n_classes):
      votes, predicted, counts = _alike(masks[:, k], _reached(p[k]))
      fused = _reached(np.round(votes @ chosen.T) / sizes)
      everyone = _reached(votes.mean(1))
      for j, levels in enumerate((predicted, everyone)):
        found = _level_qubiq(levels[:, None], fused, counts)
        scores[j, :n_drawn, i, k] = found.reshape(n_drawn, draws).mean(1)
  means = _mean(_mean(np.where(painted, scores, np.nan), 2), 2)
  return [
    {
      "n_raters": m + 1,
      "n_images": int(np.count_nonzero(drawn.sum(1) > m)),
      "prediction_vs_fused": numbers.number(means[0, m]),
      "fused_vs_all": numbers.number(means[1, m]),
    }
    for m in range(n_raters)
  ]


def _reached(values):
  """How many of the nine levels each value reaches."""
  return np.searchsorted(LEVELS - ROUNDING, values, side="right")


def _alike(masks, reached):
  """Groups pixels that no score can tell apart: the same votes, the same level of p.

  Args:
    masks: [R, P] bool.
    reached: [P], 0 to 9.

  Returns:
    Of each group the votes [U, R], the level [U] and the number of pixels [U]. Pixels that nobody
    painted and p does not reach are left out: they are in no mask.
  """
  keys = np.concatenate([np.packbits(masks, axis=0), reached[None].astype(np.uint8)])
  keys, counts = np.unique(keys[:, keys.any(0)], axis=1, return_counts=True)
  votes = np.unpackbits(keys[:-1], axis=0, count=len(masks)).T.astype(np.float32)
  return votes, keys[-1].astype(int), counts


def _qubiq_of_levels(a, b):
  """QUBIQ scores [K] of what `_reached` makes of two maps, [K, P] each."""
  ones = np.ones(a.shape[1])
  return np.array(
    [_level_qubiq(x[:, None], y[:, None], ones)[0] for x, y in zip(a, b, strict=True)]
  )


def _level_qubiq(a, b, counts):
  """QUBIQ scores [D] from levels reached, [U, 1] against [U, D], of counts[u] pixels each."""

  def areas(levels):
    draw = np.arange(levels.shape[1]) * (len(LEVELS) + 1)
    weights = np.broadcast_to(counts[:, None], levels.shape)
    size = levels.shape[1] * (len(LEVELS) + 1)
    exactly = np.bincount((levels + draw).ravel(), weights.ravel(), size)
    exactly = exactly.reshape(levels.shape[1], -1)
    return exactly[:, :0:-1].cumsum(1)

  return _over(2 * areas(np.minimum(a, b)), areas(a) + areas(b)).mean(1)
