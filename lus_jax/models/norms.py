"""Normalisation with few passes over memory, and a gradient in closed form.

For GPUs, where a norm is as slow as the bytes it moves: forward one pass for both moments and one
to apply them, backward one pass for both sums and one to apply those. `layers` has the plain forms,
which are as fast on a CPU and keep more digits.
"""

import functools
import math

import jax
from jax import lax
from jax import numpy as jnp

from lus_jax.models import max_pool

# Makes 1 of every positive number that a norm puts out.
_STEEP = 1e30
# Values that a sum of the first step adds up, at least, and how many such sums there are, at most.
_ROWS, _SUMS = 64, 4096


def moments(x, shift, axes, weight=None):
  """Mean and (biased) variance over some axes, in one pass.

  Args:
    x: any shape; summed in float32.
    shift: a value near the mean, that broadcasts with x: the nearer, the more digits of the
      variance are kept.
    axes: over which sums run.
    weight: float32 [B] of x's first axis, over which they then run, 0 or 1: what counts.

  Returns:
    Two float32 arrays, of x's shape with 1 for these axes.
  """
  centred = x.astype(jnp.float32) - lax.stop_gradient(shift)
  squared, n = jnp.square(centred), math.prod(x.shape[axis] for axis in axes)
  if weight is not None:
    weight, n = along_first(weight, x), _counted(weight, x)
    centred, squared = centred * weight, squared * weight
  first, second = (total / n for total in _sums(centred, squared, axes))
  return first + shift, jnp.maximum(second - jnp.square(first), 0)


def along_first(weight, x):
  """[B] as [B, 1, ...], with as many axes as x."""
  return weight.reshape(-1, *(1,) * (x.ndim - 1))


def _counted(weight, x):
  """How many values of a channel of x [B, ..., C] count."""
  return weight.sum() * (x.size // x.shape[0] // x.shape[-1])


def _sums(a, b, axes):
  """The sums of two float32 arrays of one shape over some axes, kept as 1, in one pass."""
  kept = [1 if axis in axes else n for axis, n in enumerate(a.shape)]
  images = math.prod(kept[:-1])
  rows = a.size // images // a.shape[-1]
  # In two steps, the first with enough sums for a GPU to be busy.
  most = max(_ROWS, rows * images // _SUMS)
  each = max(n for n in range(1, most + 1) if rows % n == 0)
  a, b = (x.reshape(images, rows // each, each, a.shape[-1]) for x in (a, b))
  for axis in (2, 1):
    a, b = _two_sums(a, b, axis)
  return [total.reshape(kept) for total in (a, b)]


def _two_sums(a, b, axis):
  # Of two reductions XLA would fuse the first steps of large ones alone.
  zero = jnp.zeros((), jnp.float32)
  return lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (axis,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(x, scale, bias, shift, epsilon, ceiling, pool=False, weight=None):
  """Batch normalisation over all axes but the last, by the batch's own moments; an activation.

  Args:
    x: [..., C].
    scale: [C].
    bias: [C].
    shift: [C], near the mean (`moments`); has no gradient.
    epsilon: added to the variance.
    ceiling: the result is clamped to 0 and this (infinite for ReLU); None: it is not.
    pool: whether `max_pool` follows, of x [B, H, W, C].
    weight: float32 [B], 0 for what the moments leave out and 1 for the rest; has no gradient. None:
      all counts.

  Returns:
    Of x's dtype [..., C], and mean and biased variance, float32 [C], without gradient.
  """
  return _batch_forward(x, scale, bias, shift, epsilon, ceiling, pool, weight)[0]


def _batch_forward(x, scale, bias, shift, epsilon, ceiling, pool, weight):
  scale, bias, shift = (v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (scale, bias, shift))
  mean, var = moments(x, shift, tuple(range(x.ndim - 1)), weight)
  inverse = lax.rsqrt(var + epsilon)
  factor = scale * inverse
  shift = bias - mean * factor
  y = _clamped(_affine(x, factor, shift), ceiling).astype(x.dtype)
  pooled = None
  if pool:
    y, *pooled = max_pool.with_winner(y, x)
  return (y, mean.ravel(), var.ravel()), (x, mean, inverse, factor, shift, pooled, weight)


def _batch_backward(epsilon, ceiling, pool, residuals, cotangents):
  del epsilon, pool
  x, mean, inverse, factor, shift, pooled, weight = residuals
  dy = cotangents[0]
  n = x.size // x.shape[-1] if weight is None else _counted(weight, x)
  axes = tuple(range(x.ndim - 1))
  # Pixels that were no maximum have no gradient: the others, few, are enough for the sums.
  winner, seen = pooled or (None, x)
  by_bias, by_scale = _sums_of_gradient(dy, seen, factor, shift, mean, ceiling, axes)
  by_scale *= inverse
  slope = -factor * inverse * by_scale / n
  offset = -factor * by_bias / n - slope * mean
  if weight is not None:
    # What is left out moves no moment.
    slope, offset = (v * along_first(weight, x) for v in (slope, offset))
  dx = _apply_gradient(dy, x, factor, shift, slope, offset, ceiling, winner)
  none = None if weight is None else jnp.zeros_like(weight)
  return dx, by_scale.ravel(), by_bias.ravel(), jnp.zeros(x.shape[-1]), none


batch_norm.defvjp(_batch_forward, _batch_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x, scale, bias, num_groups, epsilon, ceiling):
  """Group normalisation, over space and each group of neighbouring channels; an activation.

  Args:
    x: [B, H, W, C].
    scale: [C].
    bias: [C].
    num_groups: G, a divisor of C.
    epsilon: added to the variance.
    ceiling: as `batch_norm` has it.

  Returns:
    Of x's dtype [B, H, W, C].
  """
  return _group_forward(x, scale, bias, num_groups, epsilon, ceiling)[0]


def _group_forward(x, scale, bias, num_groups, epsilon, ceiling):
  # Sums over space; groups are put together from their channels, a few numbers.
  scale, bias = (v.reshape(1, 1, 1, -1) for v in (scale, bias))
  # Any pixel is nearer to the mean than 0 where that matters.
  mean, var = moments(x, x[:, :1, :1].astype(jnp.float32), (1, 2))
  of_channel, mean = mean, _of_group(mean, num_groups)
  var = _of_group(var + jnp.square(of_channel - mean), num_groups)
  inverse = lax.rsqrt(var + epsilon)
  factor = scale * inverse
  shift = bias - mean * factor
  y = _clamped(_affine(x, factor, shift), ceiling).astype(x.dtype)
  return y, (x, scale, mean, inverse, factor, shift)


def _of_group(values, num_groups):
  """Gives every channel the mean of its group: [B, 1, 1, C] to the same."""
  means = jnp.mean(values.reshape(*values.shape[:-1], num_groups, -1), -1)
  return jnp.repeat(means, values.shape[-1] // num_groups, axis=-1)


def _group_backward(num_groups, epsilon, ceiling, residuals, dy):
  del epsilon
  x, scale, mean, inverse, factor, shift = residuals
  n = x.shape[1] * x.shape[2]
  by_bias, by_scale = _sums_of_gradient(dy, x, factor, shift, mean, ceiling, (1, 2))
  by_scale *= inverse
  slope = -jnp.square(inverse) * _of_group(scale * by_scale, num_groups) / n
  offset = -inverse * _of_group(scale * by_bias, num_groups) / n - slope * mean
  dx = _apply_gradient(dy, x, factor, shift, slope, offset, ceiling)
  return dx, by_scale.sum((0, 1, 2)), by_bias.sum((0, 1, 2))


group_norm.defvjp(_group_forward, _group_backward)


def _affine(x, factor, shift):
  # In float32 even where x is bfloat16: a rounded shift would move the mean.
  return x.astype(jnp.float32) * factor + shift


def _clamped(y, ceiling):
  return y if ceiling is None else jnp.clip(y, 0, ceiling)


def _through_clamp(dy, x, factor, shift, ceiling):
  """The gradient by the norm's result: 0 where it was clamped."""
  dy = dy.astype(jnp.float32)
  if ceiling is None:
    return dy
  y = _affine(x, factor, shift)
  # Not by comparison: XLA would keep a byte for every pixel, and write and read it instead.
  inside = jnp.clip(y * _STEEP, 0, 1)
  if ceiling < math.inf:
    inside *= jnp.clip((ceiling - y) * _STEEP, 0, 1)
  return dy * inside


def _sums_of_gradient(dy, x, factor, shift, mean, ceiling, axes):
  """The sums of dy and of dy (x - mean), over some axes."""
  if ceiling is not None:
    # Without barriers XLA keeps what several passes compute, which costs more to write and read.
    dy, x, factor, shift, mean = lax.optimization_barrier((dy, x, factor, shift, mean))
  dy = _through_clamp(dy, x, factor, shift, ceiling)
  return _sums(dy, dy * (x.astype(jnp.float32) - mean), axes)


def _apply_gradient(dy, x, factor, shift, slope, offset, ceiling, winner=None):
  """dx = factor dy + slope x + offset, where dy may be that of what was pooled."""
  vectors = (factor, shift, slope, offset)
  dy, x, factor, shift, slope, offset = lax.optimization_barrier((dy, x, *vectors))
  if winner is not None:
    dy = max_pool.unpooled(dy, winner, *x.shape[1:3])
  dy = _through_clamp(dy, x, factor, shift, ceiling)
  return (dy * factor + x.astype(jnp.float32) * slope + offset).astype(x.dtype)
