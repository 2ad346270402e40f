"""Losses on logits, one formula each.

Logits are [..., H, W, K], one sigmoid per class. `where` marks the valid pixels: a boolean array
of the same rank that broadcasts ([B, H, W, 1], say), or None for all. Means run over valid pixels,
classes and images; where nothing is valid a loss is 0, with gradient 0. Results are float32
whatever the logits are.
"""

import jax
import jax.numpy as jnp

from lus_jax.errors import UserError
from lus_jax.labels import certain, label, pixel_weight

WEIGHTS = ("paper", "ones")
REDUCTIONS = ("mean", "weight_sum")


def _float32(*arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


def _valid(where, shape):
  return jnp.ones(shape, bool) if where is None else jnp.broadcast_to(where, shape)


def _mean(values, valid):
  count = jnp.sum(valid, dtype=jnp.int32).astype(jnp.float32)
  return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(count, 1)


def elementwise_cross_entropy(*, logits, labels) -> jax.Array:
  """Binary cross entropy of every element, -[y log p + (1 - y) log(1 - p)], p = sigmoid(logits).

  Args:
    logits: any shape.
    labels: the same shape, in [0, 1].

  Returns:
    float32, the same shape.
  """
  logits, labels = _float32(logits, labels)
  # max(z, 0) - z y + log(1 + exp(-|z|)): exact for certain predictions, never infinite.
  return jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def weighted_cross_entropy(*, logits, labels, weights, where=None, reduction="mean") -> jax.Array:
  """Weighted cross entropy, -w [y log p + (1 - y) log(1 - p)] (arXiv 2508.15635, Eq. 1).

  Args:
    logits: [..., H, W, K].
    labels: [..., H, W, K], in [0, 1].
    weights: [..., H, W, K], not negative.
    where: valid pixels, same rank, broadcast.
    reduction: 'mean' divides by the number of valid elements, 'weight_sum' by their weights.

  Returns:
    A float32 scalar.

  Raises:
    UserError: `reduction` is unknown.
  """
  if reduction not in REDUCTIONS:
    raise UserError(
      f"config.loss.reduction: {reduction!r} is not known; choose one of {', '.join(REDUCTIONS)}."
    )
  logits, labels, weights = _float32(logits, labels, weights)
  valid = _valid(where, logits.shape)
  values = weights * elementwise_cross_entropy(logits=logits, labels=labels)
  if reduction == "mean":
    return _mean(values, valid)
  total = jnp.sum(jnp.where(valid, weights, 0))
  return jnp.sum(jnp.where(valid, values, 0)) / jnp.where(total > 0, total, 1)


def cross_entropy(*, logits, labels, where=None) -> jax.Array:
  """Unweighted binary cross entropy; with the raw confidence as `labels`, a soft target.

  Args:
    logits: [..., H, W, K].
    labels: [..., H, W, K], in [0, 1].
    where: valid pixels, same rank, broadcast.

  Returns:
    A float32 scalar.
  """
  values = elementwise_cross_entropy(logits=logits, labels=labels)
  return _mean(values, _valid(where, values.shape))


def trimap_cross_entropy(*, logits, confidence, where=None) -> jax.Array:
  """Binary cross entropy over the certain pixels, whose confidence is 0 or 1 (as stored).

  Args:
    logits: [..., H, W, K].
    confidence: [..., H, W, K], in [0, 1].
    where: valid pixels, same rank, broadcast.

  Returns:
    A float32 scalar, 0 where no pixel is certain.
  """
  logits, confidence = _float32(logits, confidence)
  where = _valid(where, logits.shape) & certain(confidence)
  return cross_entropy(logits=logits, labels=jnp.round(confidence), where=where)


def dice(*, logits, labels, where=None, smooth=1.0, together=False) -> jax.Array:
  """Soft Dice loss, 1 - (2 sum(min(p, y)) + smooth) / (sum(p) + sum(y) + smooth).

  Sums run over the pixels of one image and class; the mean over images and classes leaves out
  those without a valid pixel. `smooth` lets images without the class push p down.

  Where y is 0 or 1, min(p, y) is p y, and this is the Dice loss of V-Net (arXiv 1606.04797) with
  plain sums in the denominator (Sudre et al., arXiv 1707.03237). That one is least at a p of 0s and
  1s whatever y is between them; this one is sum(|p - y|) over the same denominator, because
  2 min(p, y) = p + y - |p - y|: never below 0, and 0 at p = y alone (Wang et al., Dice Semimetric
  Losses, arXiv 2303.16296).

  Args:
    logits: [..., H, W, K].
    labels: [..., H, W, K], in [0, 1].
    where: valid pixels, same rank, broadcast.
    smooth: in pixels.
    together: whether the images of a batch are summed over too, so that one that lacks a class
      does not count as much as one that shows it.

  Returns:
    A float32 scalar.
  """
  logits, labels = _float32(logits, labels)
  valid = _valid(where, logits.shape)
  axes = tuple(range(logits.ndim - 1)) if together else (-3, -2)
  probability = jnp.where(valid, jax.nn.sigmoid(logits), 0)
  labels = jnp.where(valid, labels, 0)
  overlap = jnp.sum(jnp.minimum(probability, labels), axis=axes)
  total = jnp.sum(probability, axis=axes) + jnp.sum(labels, axis=axes)
  return _mean(1 - (2 * overlap + smooth) / (total + smooth), jnp.any(valid, axis=axes))


def focal(*, logits, labels, where=None, alpha=0.25, gamma=2.0) -> jax.Array:
  """Focal loss, -alpha_t (1 - p_t)^gamma log(p_t), p_t the probability of the true label.

  Source: Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002), whose defaults
  these are; there it is divided by the number of anchors, here by the valid elements.

  Args:
    logits: [..., H, W, K].
    labels: [..., H, W, K], 0 or 1.
    where: valid pixels, same rank, broadcast.
    alpha: weight of label 1; label 0 weighs 1 - alpha.
    gamma: how strongly well classified elements are down-weighted.

  Returns:
    A float32 scalar.
  """
  logits, labels = _float32(logits, labels)
  signed = logits * (2 * labels - 1)
  weight = alpha * labels + (1 - alpha) * (1 - labels)
  # The power through its logarithm: its gradient stays finite at 1 - p_t = 0.
  values = -weight * jnp.exp(gamma * jax.nn.log_sigmoid(-signed)) * jax.nn.log_sigmoid(signed)
  return _mean(values, _valid(where, values.shape))


def normalized_relu(logits, *, where=None) -> jax.Array:
  """SoftSeg's output, ReLU(x) / max ReLU(x) by image and class; 0 where the maximum is 0.

  Gros et al., SoftSeg (arXiv 2011.09041). Their code takes one maximum over the whole batch, which
  makes an image's output depend on its neighbours; per image and class it does not. The gradient is
  that of the formula, but where the output is 0 throughout: there it is that of x itself.

  Args:
    logits: [..., H, W, K].
    where: valid pixels, same rank, broadcast; the others do not count for the maximum and are 0.

  Returns:
    float32 in [0, 1], [..., H, W, K].
  """
  (logits,) = _float32(logits)
  valid = _valid(where, logits.shape)
  activation = jnp.where(valid, jax.nn.relu(logits), 0)
  maximum = jnp.max(activation, axis=(-3, -2), keepdims=True)
  # Where nothing is positive, ReLU has no gradient, and a network that once came there would put
  # out 0 for good. There, and only there, the gradient passes as if it were none.
  dead = jnp.where(valid & (maximum == 0), logits, 0)
  return activation / jnp.where(maximum > 0, maximum, 1) + (dead - jax.lax.stop_gradient(dead))


def adaptive_wing(
  *, prediction, target, where=None, theta=0.5, alpha=2.1, omega=14.0, epsilon=1.0
) -> jax.Array:
  """Adaptive wing loss, summed over valid elements.

  With d = |y - p|: omega log(1 + (d / epsilon)^(alpha - y)) below theta, and above it the line
  A d - C that continues it smoothly.
  Source: Wang et al. (arXiv 1904.07399), with the values of Gros et al., SoftSeg.

  Args:
    prediction: [..., H, W, K], in [0, 1]: the output of `normalized_relu`.
    target: [..., H, W, K], in [0, 1]: the raw confidence.
    where: valid pixels, same rank, broadcast.
    theta: where the loss turns linear.
    alpha: exponent at target 0; above 2, so that background stays smooth.
    omega: scale.
    epsilon: curvature.

  Returns:
    A float32 scalar.
  """
  prediction, target = _float32(prediction, target)
  valid = _valid(where, prediction.shape)
  distance = jnp.abs(target - prediction)
  exponent = alpha - target
  ratio = theta / epsilon
  slope = omega * exponent * ratio ** (exponent - 1) / (1 + ratio**exponent) / epsilon
  offset = theta * slope - omega * jnp.log1p(ratio**exponent)
  curve = omega * jnp.log1p((distance / epsilon) ** exponent)
  values = jnp.where(distance < theta, curve, slope * distance - offset)
  return jnp.sum(jnp.where(valid, values, 0))


def output_logits(name, *, logits, where=None) -> jax.Array:
  """Logits whose sigmoid is the output of a model trained with the loss `name`.

  The logits themselves, except for 'adaptive_wing', whose output is `normalized_relu` (kept within
  [1e-6, 1 - 1e-6], so that cross entropies stay finite), of the same shape. Metrics take these.
  """
  if name not in NORMALIZED:
    return logits
  probability = jnp.clip(normalized_relu(logits, where=where), 1e-6, 1 - 1e-6)
  return jnp.log(probability) - jnp.log1p(-probability)


def _adaptive_wing(*, logits, confidence, where, **_):
  prediction = normalized_relu(logits, where=where)
  return adaptive_wing(prediction=prediction, target=confidence, where=where)


# From the name of a loss to what it makes of its arguments.
LOSSES = {
  "weighted_cross_entropy": lambda *, confidence, **kwargs: weighted_cross_entropy(**kwargs),
  "cross_entropy": lambda *, logits, confidence, where, **_: cross_entropy(
    logits=logits, labels=confidence, where=where
  ),
  "trimap": lambda *, logits, confidence, where, **_: trimap_cross_entropy(
    logits=logits, confidence=confidence, where=where
  ),
  "dice": lambda *, logits, labels, where, **_: dice(logits=logits, labels=labels, where=where),
  "focal": lambda *, logits, labels, where, **_: focal(logits=logits, labels=labels, where=where),
  "bce": lambda *, logits, labels, where, **_: cross_entropy(
    logits=logits, labels=labels, where=where
  ),
  "adaptive_wing": _adaptive_wing,
}
# Losses that a region loss may stand beside: cross entropies over all pixels.
WITH_REGION = ("weighted_cross_entropy", "cross_entropy", "bce")
# Losses that learn the raw confidence, whatever the threshold.
SOFT = ("cross_entropy", "adaptive_wing")
# Losses whose output is `normalized_relu`, and so depends on which pixels are valid.
NORMALIZED = ("adaptive_wing",)


def training_loss(
  name,
  *,
  logits,
  confidence,
  threshold,
  where=None,
  weights="paper",
  subthreshold_weight="threshold",
  reduction="mean",
  region=0.0,
) -> jax.Array:
  """The loss `name` of a member of the sweep, from confidences and its threshold.

  `weighted_cross_entropy`, `dice`, `focal` and `bce` (unweighted) learn label(confidence,
  threshold); `cross_entropy` and `adaptive_wing` the raw confidence, `trimap` its certain pixels,
  whatever the threshold. To those of `WITH_REGION` is added a `dice` of the same target over the
  whole batch.

  Args:
    name: a key of `LOSSES`.
    logits: [..., H, W, K].
    confidence: [..., H, W, K], in [0, 1].
    threshold: in [0, 1]; may be traced.
    where: valid pixels, same rank, broadcast.
    weights: 'paper' (`lus_jax.labels.pixel_weight`) or 'ones'; for `weighted_cross_entropy`.
    subthreshold_weight: see `lus_jax.labels.pixel_weight`.
    reduction: see `weighted_cross_entropy`.
    region: weight of that Dice, 0 for none.

  Returns:
    A float32 scalar.

  Raises:
    UserError: an option is unknown.
  """
  if name not in LOSSES:
    raise UserError(f"config.loss.name: {name!r} is not known; choose one of {', '.join(LOSSES)}.")
  if weights not in WEIGHTS:
    raise UserError(
      f"config.loss.weights: {weights!r} is not known; choose one of {', '.join(WEIGHTS)}."
    )
  if weights == "paper":
    pixel_weights = pixel_weight(confidence, threshold, subthreshold_weight=subthreshold_weight)
  else:
    pixel_weights = jnp.ones(jnp.shape(confidence), jnp.float32)
  labels = label(confidence, threshold)
  loss = LOSSES[name](
    logits=logits,
    confidence=confidence,
    labels=labels,
    weights=pixel_weights,
    where=where,
    reduction=reduction,
  )
  if region and name in WITH_REGION:
    target = confidence if name in SOFT else labels
    loss += region * dice(logits=logits, labels=target, where=where, together=True)
  return loss
