"""Max pooling whose gradient remembers which pixel won.

XLA's own gradient searches every window a second time; here the forward pass stores a byte for
every output, and the gradient is four sums.
"""

import jax
from jax import lax
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
  return with_winner(x)[0]


def with_winner(x, of=None):
  """`max_pool` of x [B, H, W, C], and which pixel of each window it was: 0 .. 8, uint8.

  With another array `of` x's shape also what that has at these pixels.
  """
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
  first, *others = (padded[:, i : i + height : 2, j : j + width : 2] for i, j in TAPS)
  best, winner = first, jnp.zeros(first.shape, jnp.uint8)
  for tap, pixels in enumerate(others, 1):
    winner = jnp.where(pixels > best, jnp.uint8(tap), winner)
    best = jnp.maximum(pixels, best)
  if of is None:
    return best, winner
  padded = jnp.pad(of, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taken = jnp.zeros((), of.dtype)
  for tap, (i, j) in enumerate(TAPS):
    taken = jnp.where(winner == tap, padded[:, i : i + height : 2, j : j + width : 2], taken)
  return best, winner, taken


def unpooled(dy, winner, height, width):
  """The gradient of `max_pool` as one expression of its inputs, for GPUs to fuse with what follows.

  Args:
    dy: by its result, [B, ceil(H / 2), ceil(W / 2), C].
    winner: of `with_winner`, of the same shape.
    height: H.
    width: W.

  Returns:
    [B, H, W, C], of dy's dtype.
  """
  rows, columns = dy.shape[1:3]
  shape = (1, height, width, 1)
  odd = [lax.broadcasted_iota(jnp.int32, shape, axis) % 2 for axis in (1, 2)]
  dx = jnp.zeros((), dy.dtype)
  # A pixel lies in the window before it and, where odd, in the one behind it.
  for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
    of_row, of_column = (
      jnp.where(parity == 1, 2, 1) if offset == 0 else jnp.where(parity == 1, 0, 9)
      for parity, offset in zip(odd, (i, j), strict=True)
    )

    def seen(x, fill, i=i, j=j):
      x = jnp.pad(x, ((0, 0), (0, i), (0, j), (0, 0)), constant_values=fill)
      x = x[:, i : i + rows, None, j : j + columns, None]
      x = jnp.broadcast_to(x, (x.shape[0], rows, 2, columns, 2, x.shape[-1]))
      return x.reshape(x.shape[0], 2 * rows, 2 * columns, -1)[:, :height, :width]

    won = seen(winner, 255).astype(jnp.int32) == 3 * of_row + of_column
    dx += jnp.where(won, seen(dy, 0), jnp.zeros((), dy.dtype))
  return dx


def _forward(x):
  best, winner = with_winner(x)
  return best, (winner, x.shape[1:3])


def _backward(residuals, dy):
  winner, size = residuals
  return (spread(lambda tap, winner, dy: jnp.where(winner == tap, dy, 0), [winner, dy], *size),)


max_pool.defvjp(_forward, _backward)
