"""Max pooling whose gradient remembers which pixel won.

XLA's own gradient searches every window a second time; here the forward pass stores a byte for
every output, and the gradient is four sums.
"""

import jax
from jax import numpy as jnp

from lus_jax.models.depthwise import TAPS, spread


@jax.custom_vjp
def max_pool(x):
  """The largest of each 3x3 window of stride 2, padded as PyTorch's `padding=1`.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C]. Of equal pixels the first, row by row, gets the gradient.
  """
  return _forward(x)[0]


def _forward(x):
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
  first, *others = (padded[:, i : i + height : 2, j : j + width : 2] for i, j in TAPS)
  best, winner = first, jnp.zeros(first.shape, jnp.uint8)
  for tap, pixels in enumerate(others, 1):
    winner = jnp.where(pixels > best, jnp.uint8(tap), winner)
    best = jnp.maximum(pixels, best)
  return best, (winner, (height, width))


def _backward(residuals, dy):
  winner, size = residuals
  return (spread(lambda tap, winner, dy: jnp.where(winner == tap, dy, 0), [winner, dy], *size),)


max_pool.defvjp(_forward, _backward)
