"""Segmentation metrics as sums per image, finished in float64 on the host.

On the device, `image_sums` turns a batch into sums and counts with a leading image axis. The host
drops padded images, concatenates batches, and finishes with `summarize`: no mean of batch means,
and any subset of images (a patient, a bootstrap resample) can be summarized again.
"""

import functools
import math
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from lus_jax.evaluation import numbers
from lus_jax.labels import ZERO, certain, label, pixel_weight
from lus_jax.losses import elementwise_cross_entropy

# Equal-width calibration bins of p, right-closed; p = 0 belongs to the first.
N_BINS = 15
# Calibration is also measured where something is predicted or painted: background dominates.
NEAR_PROBABILITY = 0.05
NEAR_RADIUS = 5
# Cut-offs of p among which `best_cuts` chooses.
CUTS = tuple(i / 20 for i in range(1, 20))
# A probability that varies by no more than this over a whole split is the same number everywhere.
CONSTANT = 1e-6
# Axes of `bins` in `image_sums`: all valid pixels, and those near something.
REGIONS = ("all", "near")
QUANTITIES = ("count", "probability", "label", "confidence", "squared_error", "visibility")


@functools.partial(jax.jit, static_argnames="radius")
def near_confidence(confidence, radius=NEAR_RADIUS):
  """Pixels within `radius` of a confidence above 0.

  A disc is a run of pixels in each of its rows: a dilation along the rows for every length of such
  a run, and of these the union of shifted ones.

  Args:
    confidence: [..., H, W, K], uint8 or float in [0, 1].
    radius: Euclidean distance in pixels, inclusive.

  Returns:
    bool, the same shape.
  """
  integers = jnp.issubdtype(confidence.dtype, jnp.integer)
  present = confidence > (0 if integers else ZERO)

  def shifted(x, by, axis):
    # What comes in at the border is False.
    after = jnp.pad(x, [(max(by, 0), max(-by, 0)) if i == axis else (0, 0) for i in range(x.ndim)])
    return jax.lax.slice_in_dim(after, max(-by, 0), max(-by, 0) + x.shape[axis], axis=axis)

  rows, columns = present.ndim - 3, present.ndim - 2
  near, run, reach = jnp.zeros_like(present), present, 0
  for row in range(math.floor(radius), -1, -1):
    width = math.floor(math.sqrt(radius**2 - row**2))
    while reach < width:
      reach += 1
      run = run | shifted(present, reach, columns) | shifted(present, -reach, columns)
    near = near | shifted(run, row, rows) | shifted(run, -row, rows)
  return near


def _float32(array):
  return jnp.asarray(array, jnp.float32)


def _count(mask):
  return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)


def _per_class(option, n_classes, *, ndim):
  """An option of `ndim` axes, the last over classes; a missing one means all classes share it."""
  option = _float32(option)
  option = option[..., None] if option.ndim < ndim else option
  return jnp.broadcast_to(option, (*option.shape[:-1], n_classes))


def _by_class(function, *, pixels, options):
  """Maps `function` over images and classes, one after another.

  That keeps memory at a few [bins, H * W] arrays, also under vmap: matrix products of these shapes
  are an order of magnitude slower when batched on the CPU.

  Args:
    function: gets one image and class of each of `pixels`, [H * W], one class of each of `options`,
      and returns a dict of arrays.
    pixels: arrays [B, H, W, K].
    options: arrays [..., K].

  Returns:
    The dict of `function`, each array [B, ..., K].
  """
  n_images, *_, n_classes = pixels[0].shape
  rows = [jnp.moveaxis(a, -1, 1).reshape(n_images * n_classes, -1) for a in pixels]
  rows += [jnp.concatenate([jnp.moveaxis(a, -1, 0)] * n_images) for a in options]
  sequential = jax.custom_batching.sequential_vmap(function)
  results = jax.lax.map(lambda row: sequential(*row), rows)
  return {
    name: jnp.moveaxis(value.reshape(n_images, n_classes, *value.shape[1:]), 1, -1)
    for name, value in results.items()
  }


def in_bins(probability):
  """Calibration bin of each probability [N], one-hot: float32 [N_BINS, N]."""
  edges = _float32([-1, *np.arange(1, N_BINS + 1) / N_BINS])
  above = probability[None, :] > edges[:, None]
  return (above[:-1] & ~above[1:]).astype(jnp.float32)


def _cut_sums(probability, present, valid, cuts):
  """Sums over pixels [N] at the cut-offs [C], for one image and class."""
  above = (probability[None, :] >= cuts[:, None]).astype(jnp.float32)
  masks = jnp.stack([valid, valid & present], axis=1).astype(jnp.float32)
  sums = jnp.matmul(above, masks, precision="highest")
  return {
    "cut_label_area": _count(valid & present),
    "cut_prediction_area": sums[:, 0],
    "cut_intersection": sums[:, 1],
  }


def cut_sums(*, logits, confidence, where, threshold, cuts=CUTS) -> dict[str, jax.Array]:
  """The part of `image_sums` that `best_cuts` needs.

  Args:
    logits: [B, H, W, K].
    confidence: [B, H, W, K], in [0, 1].
    where: valid pixels, bool, [B, H, W, K] or [B, H, W, 1].
    threshold: the member's own; a scalar.
    cuts: cut-offs of p, [C] or [C, K].

  Returns:
    float32 areas in pixels: `cut_label_area` [B, K], `cut_prediction_area` and `cut_intersection`
    [B, C, K].
  """
  shape = logits.shape

  def class_sums(logits, confidence, valid, cuts, threshold):
    present = label(confidence, threshold) > 0
    return _cut_sums(jax.nn.sigmoid(logits), present, valid, cuts)

  return _by_class(
    class_sums,
    pixels=[_float32(logits), _float32(confidence), jnp.broadcast_to(where, shape)],
    options=[_per_class(cuts, shape[-1], ndim=2), _per_class(threshold, shape[-1], ndim=1)],
  )


def image_sums(
  *,
  logits,
  confidence,
  where,
  near,
  threshold,
  evaluation_thresholds,
  cuts=CUTS,
  cut=0.5,
  subthreshold_weight="threshold",
  visibility=None,
) -> dict[str, jax.Array]:
  """Everything `summarize` needs of a batch, for one member.

  Pure; jit, and vmap over members (`logits`, `threshold`, `cut`, `cuts`). Rows of padded images are
  for the caller to drop.

  Args:
    logits: [B, H, W, K].
    confidence: [B, H, W, K], in [0, 1].
    where: valid pixels, bool, [B, H, W, K] or [B, H, W, 1].
    near: `near_confidence(confidence)`, bool, [B, H, W, K].
    threshold: the member's own; a scalar.
    evaluation_thresholds: [E].
    cuts: cut-offs of p that `best_cuts` may choose from, [C] or [C, K].
    cut: the prediction is p >= cut; a scalar or [K].
    subthreshold_weight: see `lus_jax.labels.pixel_weight`.
    visibility: what is truly visible (simulated data), [B, H, W, K], in [0, 1].

  Returns:
    float32 arrays; areas and counts in pixels. Axis 1 + E is the member's own threshold followed by
    the evaluation thresholds, R is `REGIONS` and Q `QUANTITIES` (without visibility where there is
    none): `valid`, `prediction_area`, `cross_entropy`, `trimap`, `trimap_count`, `lowest` and
    `highest` probability (infinite without a valid pixel) [B, K]; `label_area`, `intersection`,
    `weighted_cross_entropy` [B, 1 + E, K]; `cut_label_area` [B, K], `cut_prediction_area`,
    `cut_intersection` [B, C, K]; `bins` [B, R, Q, N_BINS, K].
  """
  shape = logits.shape
  thresholds = jnp.concatenate(
    [jnp.reshape(_float32(threshold), (1,)), _float32(evaluation_thresholds)]
  )

  def class_sums(logits, confidence, valid, near, *args):
    *visibility, thresholds, cuts, cut = args
    probability = jax.nn.sigmoid(logits)
    predicted = valid & (probability >= cut)

    def masked_sum(values, mask):
      return jnp.sum(jnp.where(mask, values, 0))

    def at_threshold(threshold):
      labels = label(confidence, threshold)
      weights = pixel_weight(confidence, threshold, subthreshold_weight=subthreshold_weight)
      values = weights * elementwise_cross_entropy(logits=logits, labels=labels)
      return {
        "label_area": _count(valid & (labels > 0)),
        "intersection": _count(predicted & (labels > 0)),
        "weighted_cross_entropy": masked_sum(values, valid),
      }

    own = label(confidence, thresholds[0])
    regions = [valid, valid & (near | (probability > NEAR_PROBABILITY))]
    error = (probability - confidence) ** 2
    values = [jnp.ones_like(own), probability, own, confidence, error, *visibility]
    masked = jnp.stack([jnp.where(region, value, 0) for region in regions for value in values])
    bins = jnp.matmul(in_bins(probability), masked.T, precision="highest")
    is_certain = valid & certain(confidence)
    trimap = elementwise_cross_entropy(logits=logits, labels=jnp.round(confidence))
    return {
      "valid": _count(valid),
      "prediction_area": _count(predicted),
      "cross_entropy": masked_sum(
        elementwise_cross_entropy(logits=logits, labels=confidence), valid
      ),
      "trimap": masked_sum(trimap, is_certain),
      "trimap_count": _count(is_certain),
      "lowest": jnp.min(jnp.where(valid, probability, jnp.inf)),
      "highest": jnp.max(jnp.where(valid, probability, -jnp.inf)),
      "bins": bins.T.reshape(len(regions), len(values), N_BINS),
      **jax.lax.map(at_threshold, thresholds),
      **_cut_sums(probability, own > 0, valid, cuts),
    }

  pixels = [_float32(logits), _float32(confidence), jnp.broadcast_to(where, shape), near]
  if visibility is not None:
    pixels.append(_float32(visibility))
  return _by_class(
    class_sums,
    pixels=pixels,
    options=[
      _per_class(thresholds, shape[-1], ndim=2),
      _per_class(cuts, shape[-1], ndim=2),
      _per_class(cut, shape[-1], ndim=1),
    ],
  )


def iou_sums(*, logits, confidence, where, threshold, cut=0.5) -> dict[str, jax.Array]:
  """Areas of the label, and of intersection and union with p >= cut, for validation every epoch.

  Args:
    logits: [B, H, W, K].
    confidence: [B, H, W, K], in [0, 1].
    where: valid pixels, bool, [B, H, W, K] or [B, H, W, 1].
    threshold: the member's own; a scalar.
    cut: a scalar.

  Returns:
    `intersection`, `union` and `label_area`, int32 [B, K], in pixels; `mean_iou` finishes them.
  """
  predicted = jax.nn.sigmoid(_float32(logits)) >= cut
  present = label(confidence, threshold) > 0
  valid = jnp.broadcast_to(where, logits.shape)
  return {
    "intersection": jnp.sum(valid & predicted & present, axis=(1, 2), dtype=jnp.int32),
    "union": jnp.sum(valid & (predicted | present), axis=(1, 2), dtype=jnp.int32),
    "label_area": jnp.sum(valid & present, axis=(1, 2), dtype=jnp.int32),
  }


def _without_absent(values, label_area):
  """Values [N, K], NaN in classes that no label [N, K] of the split shows.

  An overlap with nothing is 0 for whoever paints a pixel, and undefined for who does not: such a
  class would count against one predictor and not for another.
  """
  absent = np.asarray(label_area).sum(0) == 0
  return np.where(absent, np.nan, values)


def mean_iou(*, intersection, union, label_area):
  """Mean intersection over union: over images per class, then over classes.

  An image whose prediction and label are both empty for a class is skipped for that class; a class
  that no label of the split shows is skipped in all images, whatever was predicted. A class without
  any image left is skipped in the mean over classes.

  Args:
    intersection: [N, K], in pixels.
    union: [N, K], in pixels.
    label_area: [N, K], in pixels.

  Returns:
    The mean (NaN where undefined), the mean per class [K] (likewise), and how many images were
    skipped per class [K].
  """
  values = _without_absent(numbers.ratio(intersection, union), label_area)
  per_class = numbers.defined_mean(values, axis=0)
  return float(numbers.defined_mean(per_class)), per_class, np.isnan(values).sum(0)


def image_iou(sums):
  """The IoU of every image at the member's own threshold, the mean over classes.

  Args:
    sums: of `image_sums`, padded images removed.

  Returns:
    [N] in float64; classes count as in `mean_iou`; NaN where none does.
  """
  intersection, label_area = (
    np.asarray(sums[name], np.float64)[:, 0] for name in ("intersection", "label_area")
  )
  areas = np.asarray(sums["prediction_area"], np.float64) + label_area
  values = numbers.ratio(intersection, areas - intersection)
  return numbers.defined_mean(_without_absent(values, label_area), axis=1)


def _overlaps(intersection, prediction_area, label_area):
  """`mean_iou`, and the same for Dice, 2 intersection / (prediction + label)."""
  areas = prediction_area + label_area
  return (
    mean_iou(intersection=intersection, union=areas - intersection, label_area=label_area),
    mean_iou(intersection=2 * intersection, union=areas, label_area=label_area),
  )


def take_cuts(cuts, indices):
  """The cut-offs [K] at `indices` [K] of `cuts`, [C] or [C, K]."""
  cuts = np.asarray(cuts, np.float64)
  return cuts[indices] if cuts.ndim == 1 else cuts[indices, np.arange(cuts.shape[-1])]


def _iou_at_cuts(sums, indices):
  """`mean_iou` with the cut-off of index `indices[k]` for class k."""
  k = np.arange(len(indices))
  intersection, prediction_area = (
    np.asarray(sums[name], np.float64)[:, indices, k]
    for name in ("cut_intersection", "cut_prediction_area")
  )
  label_area = np.asarray(sums["cut_label_area"], np.float64)
  return _overlaps(intersection, prediction_area, label_area)[0]


def best_cuts(sums, cuts=CUTS):
  """The cut-off with the highest IoU against the member's own label, chosen for each class.

  Ties go to the cut-off nearest .5; where IoU is undefined it counts as 0.

  Args:
    sums: of `image_sums` or `cut_sums`, of the split to choose on, padded images removed.
    cuts: those the sums were made with, [C] or [C, K].

  Returns:
    Indices into `cuts`, [K].
  """
  n_classes = sums["cut_label_area"].shape[-1]
  indices = np.arange(len(cuts))[:, None].repeat(n_classes, axis=1)
  iou = np.stack([_iou_at_cuts(sums, row)[1] for row in indices])
  distance = np.stack([np.abs(take_cuts(cuts, row) - 0.5) for row in indices])
  # The last key of lexsort counts most.
  return np.lexsort((distance, -np.nan_to_num(iou)), axis=0)[0]


def _outline(mask):
  """Where the outline of a mask [H, W] runs and how long it is there, as in `surface_distance`.

  Returns:
    Corners between pixels [P, 2], as integers, and the length at each in pixels [P].
  """
  from surface_distance import lookup_tables

  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  top, left = rows[0], columns[0]
  # Every corner is a code of the four pixels around it.
  a = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.uint8)
  code = a[:-1, :-1] * 8 + a[:-1, 1:] * 4 + a[1:, :-1] * 2 + a[1:, 1:]
  border = (code != 0) & (code != 0b1111)
  lengths = lookup_tables.create_table_neighbour_code_to_contour_length((1, 1))
  return np.argwhere(border) + (top, left), lengths[code[border]]


def _outline_distances(one, other):
  """What `surface_distance.compute_surface_distances` finds for two masks that show something.

  The package makes a distance map of the whole box that holds both masks, and sorts in Python; the
  distances of the two outlines alone are the same numbers, several times as fast.
  """
  from scipy import spatial

  (points, lengths), (other_points, other_lengths) = _outline(one), _outline(other)

  def nearest(of, to, lengths):
    distances = spatial.KDTree(to, balanced_tree=False).query(of)[0]
    order = np.lexsort((lengths, distances))
    return distances[order], lengths[order]

  to_other, lengths = nearest(points, other_points, lengths)
  to_one, other_lengths = nearest(other_points, points, other_lengths)
  return {
    "distances_gt_to_pred": to_other,
    "distances_pred_to_gt": to_one,
    "surfel_areas_gt": lengths,
    "surfel_areas_pred": other_lengths,
  }


def surface_scores(*, prediction, labels, where, tolerance=3.0):
  """Surface Dice and 95 % Hausdorff distance of two outlines, on the host.

  Surface Dice is the share of the two outlines that lies within a tolerance of the other, the
  distance the larger of the two 95th percentiles of an outline's distances to the other. Computed
  by `surface_distance` (Nikolov et al., arXiv 1809.04430). Invalid pixels are taken out of both
  masks, which is the same as cropping to a valid box.

  Args:
    prediction: bool, [B, H, W, K].
    labels: bool or 0 / 1, [B, H, W, K].
    where: valid pixels, bool, [B, H, W, K] or [B, H, W, 1].
    tolerance: in pixels, inclusive.

  Returns:
    Two [B, K] in float64: surface Dice, NaN where both masks are empty, 0 where one is; the
    distance in pixels, NaN where either is empty.
  """
  import surface_distance

  valid = np.broadcast_to(where, np.shape(prediction))
  # One plane after another in memory: they are what is looked at.
  prediction, labels = (
    np.moveaxis(np.asarray(masks, bool) & valid, -1, 1).copy() for masks in (prediction, labels)
  )
  dice, distance = np.full((2, *prediction.shape[:2]), np.nan)
  shown = np.stack([masks.any((2, 3)) for masks in (labels, prediction)])
  dice[shown[0] != shown[1]] = 0

  def score(at):
    distances = _outline_distances(labels[at], prediction[at])
    dice[at] = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
    distance[at] = surface_distance.compute_robust_hausdorff(distances, 95)

  with futures.ThreadPoolExecutor() as pool:
    list(pool.map(score, zip(*np.nonzero(shown.all(0)), strict=True)))
  return dice, distance


def is_constant(lowest, highest):
  """Whether a probability is the same number everywhere, from its extremes [N, K] by image: [K]."""
  spread = np.max(highest, 0) - np.min(lowest, 0)
  return (spread >= 0) & (spread <= CONSTANT)  # minus infinity without a valid pixel


def calibration_errors(name, classes, count, probability, target, constant=None):
  """Results `<name>`, `<name>_pooled` and `<name>_per_class` from bins [K, N_BINS].

  A class without a positive target, which nothing can be calibrated to, is undefined, and so is one
  whose probability is constant [K]: it says nothing of any pixel, and may still hit the mean.
  """
  gap = probability - target
  if constant is None:
    constant = np.zeros(len(classes), bool)
  undefined = constant | (target.sum(1) == 0)
  per_class = np.where(undefined, np.nan, numbers.ratio(np.abs(gap).sum(1), count.sum(1)))
  pooled = np.nan if constant.all() else numbers.ratio(np.abs(gap.sum(0)).sum(), count.sum())
  return {
    name: numbers.number(numbers.defined_mean(per_class)),
    f"{name}_pooled": numbers.number(pooled),
    f"{name}_per_class": numbers.by_name(classes, per_class),
  }


def summarize(
  sums, *, classes, evaluation_thresholds, thin=(), target="label", cuts=CUTS, best_cut=None
):
  """The results of one member over a split, ready for JSON (undefined is None).

  Overlaps follow `mean_iou`. Losses and Brier scores are means over all valid pixels and classes.
  Expected calibration errors: the mean over classes, pooled over classes, and per class, over all
  valid pixels (`ece`) and over those with p > .05 or near a confidence above 0 (`ece_near`);
  undefined for a class that the target never shows, or whose probability is the same number
  everywhere. Painted confidence is no frequency: a calibration error against it is a distance, no
  more.

  Args:
    sums: of `image_sums`, each concatenated over the split to [N, ...], padded images removed; with
      `surface_dice` and `hd95` [N, K] (`surface_scores`) if they were computed.
    classes: K names.
    evaluation_thresholds: [E], as given to `image_sums`.
    thin: names of the classes whose surface Dice is reported.
    target: what p is compared with in `ece`: the member's own 'label', or the 'confidence'.
    cuts: as given to `image_sums`.
    best_cut: indices into `cuts`, [K], by `best_cuts` on the validation split.

  Returns:
    A dict: `iou`, `iou_per_class`, `dice`, `dice_per_class`, `empty_skipped`, `matrix` (a list of
    `evaluation_threshold`, `iou`, `dice`), `weighted_ce`, `weighted_ce_ref`, `ce`, `trimap`; `ece`,
    `ece_pooled`, `ece_per_class`, these three again as `ece_near`, and, where visibility is known,
    as `ece_visibility` and `ece_visibility_near`; `brier`, `brier_near`; `reliability` (for each
    class `count`, mean `probability` and mean `target` by bin); by class `label_images` (how many
    images the label shows it in: 0 is absent) and `predicted_share_per_class` (of the valid
    pixels); `constant_classes` (names). With surface scores in the sums `surface_dice`,
    `surface_dice_per_class` of the thin classes, and `hd95`, `hd95_per_class` in pixels, means over
    the `hd95_images` (by class) in which both masks show something; with `best_cut`
    `iou_at_best_cut`, `iou_at_best_cut_per_class`, `best_cut`.
  """
  sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}

  overlaps = [
    _overlaps(sums["intersection"][:, i], sums["prediction_area"], sums["label_area"][:, i])
    for i in range(1 + len(evaluation_thresholds))
  ]
  (iou, iou_per_class, skipped), (dice, dice_per_class, _) = overlaps[0]
  weighted = numbers.ratio(sums["weighted_cross_entropy"].sum((0, 2)), sums["valid"].sum())
  row = {
    "iou": numbers.number(iou),
    "iou_per_class": numbers.by_name(classes, iou_per_class),
    "dice": numbers.number(dice),
    "dice_per_class": numbers.by_name(classes, dice_per_class),
    "empty_skipped": {name: int(n) for name, n in zip(classes, skipped, strict=True)},
    "matrix": [
      {"evaluation_threshold": float(t), "iou": numbers.number(i), "dice": numbers.number(d)}
      for t, ((i, *_), (d, *_)) in zip(evaluation_thresholds, overlaps[1:], strict=True)
    ],
    "weighted_ce": numbers.number(weighted[0]),
    "weighted_ce_ref": numbers.number(numbers.defined_mean(weighted[1:])),
    "ce": numbers.number(numbers.ratio(sums["cross_entropy"].sum(), sums["valid"].sum())),
    "trimap": numbers.number(numbers.ratio(sums["trimap"].sum(), sums["trimap_count"].sum())),
  }

  own_area = sums["label_area"][:, 0]
  share = numbers.ratio(sums["prediction_area"].sum(0), sums["valid"].sum(0))
  row["label_images"] = {
    name: int(n) for name, n in zip(classes, (own_area > 0).sum(0), strict=True)
  }
  row["predicted_share_per_class"] = numbers.by_name(classes, share)
  constant = is_constant(sums["lowest"], sums["highest"])
  row["constant_classes"] = [name for name, one in zip(classes, constant, strict=True) if one]

  # [N, R, Q, N_BINS, K] -> [K, N_BINS] by region and quantity.
  bins = np.moveaxis(sums["bins"].sum(0), -1, -2)
  for suffix, region in zip(("", "_near"), bins, strict=True):
    region = dict(zip(QUANTITIES, region, strict=False))
    count, probability = region["count"], region["probability"]
    row[f"brier{suffix}"] = numbers.number(
      numbers.ratio(region["squared_error"].sum(), count.sum())
    )
    errors = {f"ece{suffix}": region[target]}
    if "visibility" in region:
      errors[f"ece_visibility{suffix}"] = region["visibility"]
    for name, aimed_at in errors.items():
      row |= calibration_errors(name, classes, count, probability, aimed_at, constant)
  count, probability, aimed_at = (
    bins[0][QUANTITIES.index(q)] for q in ("count", "probability", target)
  )
  row["reliability"] = {
    name: {
      "count": count[k].tolist(),
      "probability": [numbers.number(mean) for mean in numbers.ratio(probability[k], count[k])],
      "target": [numbers.number(mean) for mean in numbers.ratio(aimed_at[k], count[k])],
    }
    for k, name in enumerate(classes)
  }

  if "surface_dice" in sums:
    per_class = numbers.defined_mean(_without_absent(sums["surface_dice"], own_area), axis=0)
    per_class = np.array([per_class[list(classes).index(name)] for name in thin])
    row["surface_dice"] = numbers.number(numbers.defined_mean(per_class))
    row["surface_dice_per_class"] = numbers.by_name(thin, per_class)
  if "hd95" in sums:
    per_class = numbers.defined_mean(sums["hd95"], axis=0)
    row["hd95"] = numbers.number(numbers.defined_mean(per_class))
    row["hd95_per_class"] = numbers.by_name(classes, per_class)
    counts = np.sum(~np.isnan(sums["hd95"]), axis=0)
    row["hd95_images"] = {name: int(n) for name, n in zip(classes, counts, strict=True)}
  if best_cut is not None:
    iou, per_class, _ = _iou_at_cuts(sums, best_cut)
    row["iou_at_best_cut"] = numbers.number(iou)
    row["iou_at_best_cut_per_class"] = numbers.by_name(classes, per_class)
    row["best_cut"] = numbers.by_name(classes, take_cuts(cuts, best_cut))
  return row
