"""What a confidence means: the label and the weight of a pixel at a threshold.

Confidences are stored as uint8, rounded to nearest, so comparisons have half a storage step of
slack: a confidence painted as 60 % passes the threshold .6 whatever rounding did to it.
"""

import jax
import jax.numpy as jnp

from lus_jax.errors import UserError

# Half a step of the 8-bit scale. Below the first a confidence is zero, above the second certain.
ZERO = 0.5 / 255
ONE = 1 - 0.5 / 255
# The millionth covers float32 arithmetic (resizing, dividing by 255).
SLACK = 0.5 / 255 + 1e-6
SUBTHRESHOLD_WEIGHTS = ("threshold", "confidence")


def same_threshold(a, b):
  """Whether two thresholds are the same label: closer than half a storage step."""
  return abs(a - b) <= SLACK


def label(confidence, threshold) -> jax.Array:
  """Which pixels show a structure, if a confidence of `threshold` is enough.

  1 where confidence >= threshold - SLACK and confidence >= ZERO; the threshold 0 means "above 0".

  Args:
    confidence: [..., H, W, K], in [0, 1].
    threshold: in [0, 1]; a scalar, or an array of the same rank that broadcasts. May be traced.

  Returns:
    0 or 1 as float32, [..., H, W, K].
  """
  confidence = jnp.asarray(confidence, jnp.float32)
  threshold = jnp.asarray(threshold, jnp.float32)
  return ((confidence >= threshold - SLACK) & (confidence >= ZERO)).astype(jnp.float32)


def certain(confidence) -> jax.Array:
  """Which confidences are 0 or 1 as stored: bool, the same shape."""
  confidence = jnp.asarray(confidence, jnp.float32)
  return (confidence < ZERO) | (confidence > ONE)


def background_weight(threshold) -> jax.Array:
  """Weight of background pixels: the threshold itself, but .8 at 0 and 1 (arXiv 2508.15635)."""
  threshold = jnp.asarray(threshold, jnp.float32)
  at_the_end = (threshold < 1e-6) | (threshold > 1 - 1e-6)
  return jnp.where(at_the_end, jnp.float32(0.8), threshold)


def pixel_weight(confidence, threshold, *, subthreshold_weight="threshold") -> jax.Array:
  """Weight of each pixel in the weighted cross entropy of arXiv 2508.15635.

  The confidence where the label is 1, else `background_weight(threshold)`.

  Args:
    confidence: [..., H, W, K], in [0, 1].
    threshold: in [0, 1]; a scalar, or an array of the same rank that broadcasts. May be traced.
    subthreshold_weight: what pixels with 0 < confidence < threshold weigh: 'threshold' (as other
      background) or 'confidence' (their own).

  Returns:
    float32, [..., H, W, K].

  Raises:
    UserError: `subthreshold_weight` is unknown.
  """
  if subthreshold_weight not in SUBTHRESHOLD_WEIGHTS:
    raise UserError(
      f"config.loss.subthreshold_weight: {subthreshold_weight!r} is not known; choose one of "
      f"{', '.join(SUBTHRESHOLD_WEIGHTS)}."
    )
  confidence = jnp.asarray(confidence, jnp.float32)
  if subthreshold_weight == "confidence":
    keeps_confidence = confidence >= ZERO
  else:
    keeps_confidence = label(confidence, threshold) > 0
  return jnp.where(keeps_confidence, confidence, background_weight(threshold))
