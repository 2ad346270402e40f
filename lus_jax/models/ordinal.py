"""One network for every threshold: P(confidence >= t), nested by construction.

The head has K logits for each of E rising levels. The first K are those of the lowest level; every
further level subtracts something positive from the one below, so a lower threshold never predicts
less.
"""

import jax
import numpy as np
from jax import numpy as jnp


def nested_logits(raw, n_levels):
  """The logits of P(confidence >= t) for rising levels t, from what the head puts out.

  Args:
    raw: [..., E * K]: K values a level, those of the lowest level first.
    n_levels: E.

  Returns:
    float32 [..., E, K], not rising along E.
  """
  raw = jnp.asarray(raw, jnp.float32).reshape(*raw.shape[:-1], n_levels, -1)
  steps = jnp.concatenate([raw[..., :1, :], -jax.nn.softplus(raw[..., 1:, :])], axis=-2)
  return keep_nested(jnp.cumsum(steps, axis=-2))


def raw_of(nested):
  """What a head has to put out for nested logits [E, K]: the inverse of `nested_logits`, [E * K].

  Levels that are equal come out as nearly so.
  """
  steps = np.maximum(nested[:-1] - nested[1:], 1e-2)
  return np.concatenate([nested[:1], np.log(np.expm1(steps))]).ravel()


def keep_nested(logits):
  """Undoes what rounding did to the order of levels: the running minimum along E, [..., E, K].

  Interpolation keeps the order of levels up to rounding; this makes it exact.
  """
  # A handful of levels, one after another: on CPUs many times faster than a cumulative minimum.
  levels = [logits[..., 0, :]]
  for level in range(1, logits.shape[-2]):
    levels.append(jnp.minimum(levels[-1], logits[..., level, :]))
  return jnp.stack(levels, axis=-2)


def expected_confidence(logits, levels):
  """The mean confidence that nested probabilities imply.

  The integral of P(confidence >= t) over t in [0, 1], taking each probability for the whole
  stretch down to the level below: exact where every confidence is 0 or one of the levels.

  Args:
    logits: [..., E, K], of `nested_logits`.
    levels: E thresholds, rising.

  Returns:
    float32 in [0, 1], [..., K].
  """
  widths = [high - low for low, high in zip((0.0, *levels[:-1]), levels, strict=True)]
  probability = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
  mean = jnp.einsum(
    "...ek,e->...k", probability, jnp.asarray(widths, jnp.float32), precision="highest"
  )
  # Rounded, the widths may add up to a little more.
  return jnp.minimum(mean, 1)
