"""What a predictor that never looks at the image reaches: the bar every model has to pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lus_jax.errors import UserError
from lus_jax.evaluation import metrics
from lus_jax.labels import label, pixel_weight

CLIP = 1e-7
N_CUTS = 64


@dataclasses.dataclass(frozen=True)
class Baseline:
  """A prediction for each threshold that is the same for every image.

  `logits` [T, H, W, K] are of probabilities clipped to [1e-7, 1 - 1e-7]; `cut` [T, K] is the
  cut-off with the best IoU on the training split, and 1, which predicts nothing, for a class that
  no training label shows. Both are float32.
  """

  logits: np.ndarray
  cut: np.ndarray


def _confidence(confidence):
  """uint8 or float confidences as float32 in [0, 1]."""
  scale = 255 if jnp.issubdtype(confidence.dtype, jnp.integer) else 1
  return jnp.asarray(confidence, jnp.float32) / scale


@functools.partial(jax.jit, static_argnames="subthreshold_weight")
def _batch_sums(confidence, where, thresholds, *, subthreshold_weight):
  """Sums over images of weight x label and of weight, each [T, H, W, K]."""
  confidence = _confidence(confidence)
  valid = jnp.broadcast_to(where, confidence.shape)

  def at_threshold(threshold):
    weight = pixel_weight(confidence, threshold, subthreshold_weight=subthreshold_weight)
    weight = jnp.where(valid, weight, 0)
    return jnp.sum(weight * label(confidence, threshold), axis=0), jnp.sum(weight, axis=0)

  return jax.lax.map(at_threshold, thresholds)


@jax.jit
def _cut_sums(logits, confidence, where, threshold, cuts):
  confidence = _confidence(confidence)
  return metrics.cut_sums(
    logits=jnp.broadcast_to(logits[None], confidence.shape),
    confidence=confidence,
    where=where,
    threshold=threshold,
    cuts=cuts,
  )


def _logits(probability):
  probability = np.clip(probability, CLIP, 1 - CLIP)
  return (np.log(probability) - np.log1p(-probability)).astype(np.float32)


def candidate_cuts(logits):
  """Cut-offs to choose from for each class: between all values of its map, or at quantiles.

  Quantiles are taken where there are more than `N_CUTS` values. They make the predicted area shrink
  by a constant factor, from the whole image to one pixel, because structures are thin. A cut-off
  lies halfway between two neighbouring values (the lowest: halfway to 0), so that rounding cannot
  move a pixel across it.

  Args:
    logits: [H, W, K].

  Returns:
    [N_CUTS, K] in float32, [1, K] for a constant map.
  """
  probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  cuts = []
  for values in probability.reshape(-1, probability.shape[-1]).T:
    levels = np.unique(values)
    between = (levels + np.concatenate([[0], levels[:-1]])) / 2
    if len(levels) <= N_CUTS:
      cuts.append(np.pad(between, (0, N_CUTS - len(levels)), mode="edge"))
    else:
      areas = np.geomspace(1, 1 / len(values), N_CUTS)
      quantiles = np.quantile(values, 1 - areas, method="higher")
      cuts.append(between[np.searchsorted(levels, quantiles)])
  cuts = np.stack(cuts, axis=-1).astype(np.float32)
  return cuts[:1] if (cuts == cuts[0]).all() else cuts


def fit_baselines(batches, *, thresholds, subthreshold_weight="threshold"):
  """Fits `prevalence` and `mean_map` to the training split.

  With w the pixel weight and y the label at a threshold, prevalence is sum(w y) / sum(w) of each
  class over all images and pixels; mean_map is the same at each pixel, with one pseudo-image of
  weight 1 added whose label is the prevalence. Invalid pixels weigh nothing. Sums are kept in
  float64, one batch in memory at a time.

  Args:
    batches: of pairs of confidence [n, H, W, K] (uint8, or float in [0, 1]) and valid pixels, bool
      [n, H, W, K] or [n, H, W, 1]; padded images have none. Iterated over twice, to fit and to
      choose cut-offs.
    thresholds: [T].
    subthreshold_weight: see `lus_jax.labels.pixel_weight`.

  Returns:
    A dict from 'prevalence' and 'mean_map' to `Baseline`.

  Raises:
    UserError: there are no training images.
  """
  if iter(batches) is batches:
    raise TypeError("batches must be iterable more than once, not an iterator")
  thresholds = np.asarray(thresholds, np.float32)
  sums = None
  for confidence, where in batches:
    batch = _batch_sums(confidence, where, thresholds, subthreshold_weight=subthreshold_weight)
    batch = [np.asarray(a, np.float64) for a in batch]
    sums = batch if sums is None else [a + b for a, b in zip(sums, batch, strict=True)]
  if sums is None:
    raise UserError("the training split is empty: the baselines need at least one labelled frame.")
  positive, total = sums
  weight = total.sum((1, 2), keepdims=True)
  prevalence = positive.sum((1, 2), keepdims=True) / np.where(weight > 0, weight, 1)
  logits = {
    "prevalence": _logits(np.broadcast_to(prevalence, total.shape)),
    "mean_map": _logits((positive + prevalence) / (total + 1)),
  }
  members = [(name, i) for name in logits for i in range(len(thresholds))]
  cuts = {(name, i): candidate_cuts(logits[name][i]) for name, i in members}
  found = {member: [] for member in members}
  for confidence, where in batches:
    confidence, where = jnp.asarray(confidence), jnp.asarray(where)
    for name, i in members:
      sums = _cut_sums(logits[name][i], confidence, where, thresholds[i], cuts[name, i])
      found[name, i].append(jax.device_get(sums))

  def best_cut(member):
    sums = {key: np.concatenate([s[key] for s in found[member]]) for key in found[member][0]}
    best = metrics.take_cuts(cuts[member], metrics.best_cuts(sums, cuts[member]))
    return np.where(sums["cut_label_area"].sum(0) > 0, best, 1)

  return {
    name: Baseline(
      logits=maps,
      cut=np.stack([best_cut((name, i)) for i in range(len(thresholds))]).astype(np.float32),
    )
    for name, maps in logits.items()
  }
