"""3x3 convolution by Winograd's minimal filtering: a quarter of the multiplications on a CPU.

XLA's convolutions reach two thirds of a CPU's matrix rate forward and a sixth of it in the gradient
by the kernel. Here the image is cut into 6 x 6 tiles that overlap by 2; a linear map of the tile, a
product with the mapped kernel, channel by channel, and a linear map back give 4 x 4 outputs. All
three products, gradients included, are matrix products, which keep their speed under `vmap` too.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", F(4x4, 3x3).
"""

import functools

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

OUTPUTS, TAPS = 4, 3
TILE = OUTPUTS + TAPS - 1
# Where the polynomials behind the method are evaluated, beside infinity. With the usual 0, 1, -1, 2
# and -2 the rounding errors are twice as large.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _toom_cook(points):
  """The maps of the input [6, 6], the kernel [6, 3] and the product [4, 6] along one axis."""
  inputs = np.zeros((TILE, TILE))
  kernel = np.zeros((TILE, TAPS))
  outputs = np.zeros((OUTPUTS, TILE))
  for i, point in enumerate(points):
    others = [p for p in points if p != point]
    inputs[i, :-1] = np.poly(others)[::-1]
    kernel[i] = point ** np.arange(TAPS) / np.prod(point - np.array(others))
    outputs[:, i] = point ** np.arange(OUTPUTS)
  inputs[-1] = np.poly(points)[::-1]
  kernel[-1, -1] = outputs[-1, -1] = 1
  return inputs, kernel, outputs


_INPUTS, _KERNEL, _OUTPUTS = _toom_cook(POINTS)


@jax.custom_vjp
def winograd_conv(x, kernel):
  """A 3x3 convolution of stride 1, padded as PyTorch's `padding=1`.

  Args:
    x: [B, H, W, C].
    kernel: [3, 3, C, D], of x's dtype.

  Returns:
    [B, H, W, D]; in float32 within 1e-5 of the direct sum, relative to the largest value.
  """
  return _forward(x, kernel)[0]


def _compiled_once(function):
  """Keeps XLA from inlining a function, so that layers of one shape share a compilation.

  Four alike then compile in half the time.
  """
  function = jax.jit(function)

  @functools.wraps(function)
  def called(*args):
    with set_xla_metadata(inlineable="false"):
      return function(*args)

  return called


@_compiled_once
def _forward(x, kernel):
  tiles, mapped = _map_input(x), _map_kernel(kernel)
  product = jnp.einsum("tnc,tcd->tnd", tiles, mapped)
  return _unmap_output(product, x.shape[:3]), (tiles, mapped)


@_compiled_once
def _backward(residuals, dy):
  tiles, mapped = residuals
  # The transposes of the forward pass's maps.
  product = _map_output(dy)
  d_mapped = jnp.einsum("tnd,tnc->tdc", product, tiles)
  d_tiles = jnp.einsum("tnd,tcd->tnc", product, mapped)
  return _unmap_input(d_tiles, dy.shape[:3]), jnp.swapaxes(_unmap_kernel(d_mapped), 2, 3)


winograd_conv.defvjp(_forward, _backward)


def _apply(matrix, parts):
  """The rows of a constant matrix times a list of arrays, without the products by 0 and 1."""

  def times(factor, x):
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)

  return [
    sum(times(factor, x) for factor, x in zip(row, parts, strict=True) if factor) for row in matrix
  ]


def _stack(parts, axis=0):
  # The barrier keeps XLA from computing the first axis's map anew for every row of the second's.
  return lax.optimization_barrier(jnp.stack(parts, axis))


def n_tiles(shape):
  """How many tiles an image batch [B, H, W, ...] makes."""
  return shape[0] * _tiles(shape[1]) * _tiles(shape[2])


def _tiles(size):
  return -(-size // OUTPUTS)


def _pad(x, before):
  height, width = (_tiles(n) * OUTPUTS - n for n in x.shape[1:3])
  return jnp.pad(x, ((0, 0), (before, before + height), (before, before + width), (0, 0)))


def _strided(x, count, axis):
  """Every fourth row (or column) from each of the first `count`: what stands there in the tiles."""
  n = (x.shape[axis] - (count - OUTPUTS)) // OUTPUTS
  return [
    lax.slice_in_dim(x, i, i + OUTPUTS * (n - 1) + 1, OUTPUTS, axis=axis) for i in range(count)
  ]


def _map_input(x):
  """[B, H, W, C] -> [36, tiles, C]."""
  rows = _stack(_apply(_INPUTS, _strided(_pad(x, 1), TILE, 1)))
  tiles = jnp.stack(_apply(_INPUTS, _strided(rows, TILE, 3)), 1)
  return tiles.reshape(TILE * TILE, -1, x.shape[-1])


def _unmap_input(tiles, shape):
  """The transpose of `_map_input`: overlapping tiles are added up."""
  batch, height, width = shape
  tiles = tiles.reshape(TILE, TILE, batch, _tiles(height), _tiles(width), -1)
  rows = _stack(_overlap(_apply(_INPUTS.T, [tiles[:, j] for j in range(TILE)]), 3), 4)
  rows = rows.reshape(TILE, batch, _tiles(height), -1, rows.shape[-1])
  x = jnp.stack(_overlap(_apply(_INPUTS.T, list(rows)), 1), 2)
  return x.reshape(batch, -1, *x.shape[3:])[:, :height, :width]


def _overlap(parts, axis):
  """Adds what six positions of every tile say of four outputs: the outer ones are a neighbour's."""
  n = parts[0].shape[axis]

  def shifted(x, by):
    keep = lax.slice_in_dim(x, max(0, -by), n - max(0, by), axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (max(0, by), max(0, -by))
    return jnp.pad(keep, padding)

  # Position 0 lies one before the tile's first output, position 5 one behind its last.
  return [parts[1] + shifted(parts[5], 1), parts[2], parts[3], parts[4] + shifted(parts[0], -1)]


def _map_kernel(kernel):
  """[3, 3, C, D] -> [36, C, D]."""
  rows = _apply(_KERNEL, list(kernel))
  mapped = [x for row in rows for x in _apply(_KERNEL, list(row))]
  return jnp.stack(mapped)


def _unmap_kernel(mapped):
  """The transpose of `_map_kernel`."""
  mapped = mapped.reshape(TILE, TILE, *mapped.shape[1:])
  rows = _apply(_KERNEL.T, list(mapped))
  return jnp.stack([jnp.stack(_apply(_KERNEL.T, list(row))) for row in rows])


def _unmap_output(product, shape):
  """[36, tiles, D] -> [B, H, W, D]."""
  batch, height, width = shape
  product = product.reshape(TILE, TILE, batch, _tiles(height), _tiles(width), -1)
  rows = _apply(_OUTPUTS, list(product))
  y = jnp.stack([jnp.stack(_apply(_OUTPUTS, list(row)), 3) for row in rows], 2)
  return y.reshape(batch, y.shape[1] * OUTPUTS, -1, y.shape[-1])[:, :height, :width]


def _map_output(dy):
  """The transpose of `_unmap_output`."""
  rows = _stack(_apply(_OUTPUTS.T, _strided(_pad(dy, 0), OUTPUTS, 1)))
  product = jnp.stack(_apply(_OUTPUTS.T, _strided(rows, OUTPUTS, 3)), 1)
  return product.reshape(TILE * TILE, -1, dy.shape[-1])
