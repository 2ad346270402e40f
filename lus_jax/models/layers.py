"""The few layers that flax lacks or defines otherwise than the PyTorch networks we follow."""

import functools
import math

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from lus_jax.models import backend, convolution, initial, norms
from lus_jax.models.max_pool import max_pool


class BatchNorm(nnx.Module):
  """Batch normalisation over all axes but the last, with PyTorch's running statistics.

  flax keeps the biased variance as the running one; PyTorch keeps the unbiased one, which matters
  on the small, deep feature maps of small batches. Momentum .9 here is PyTorch's .1.

  Source: Ioffe & Szegedy 2015; `torch.nn.BatchNorm2d`.
  """

  def __init__(self, channels, *, momentum=0.9, epsilon=1e-5, dtype=jnp.float32):
    self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.mean = nnx.BatchStat(jnp.zeros(channels))
    self.var = nnx.BatchStat(jnp.ones(channels))

  def __call__(self, x, *, train, ceiling=None, pool=False, where=None):
    """Normalises x [..., C]; in training with the batch's statistics, which it also records.

    With a `ceiling` the result is clamped to 0 and that: infinite for ReLU, 6 for ReLU6. With
    `pool` the maxima of `max_pool` follow, of x [B, H, W, C]. `where` [B], bool, are the images
    that the statistics are of; by default all.
    """
    n = x.size // x.shape[-1]
    if where is not None:
      n = where.sum() * (n // len(where))
    if train and backend.name() == "gpu":
      scale, bias, shift = self.scale[...], self.bias[...], self.mean[...]
      weight = None if where is None else where.astype(jnp.float32)
      y, mean, var = norms.batch_norm(x, scale, bias, shift, self.epsilon, ceiling, pool, weight)
      self._record(mean, var, n)
      return y.astype(self.dtype)
    if train:
      axes = tuple(range(x.ndim - 1))
      counted = None if where is None else norms.along_first(where, x)
      mean = jnp.mean(x, axes, dtype=jnp.float32, where=counted)
      # The second pass costs little and keeps the digits that E[x^2] - E[x]^2 would cancel. The
      # variance's derivative by the mean is 0: not taking it saves the backward pass a sum.
      centre = last_axis(jax.lax.stop_gradient(mean), x)
      var = jnp.mean(jnp.square(x.astype(jnp.float32) - centre), axes, where=counted)
      self._record(mean, var, n)
    else:
      mean, var = self.mean[...], self.var[...]
    scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
    shift = self.bias[...] - mean * scale
    # In float32 even where the network computes in bfloat16: a rounded shift would move the mean.
    y = x.astype(jnp.float32) * last_axis(scale, x) + last_axis(shift, x)
    y = activation(y.astype(self.dtype), ceiling)
    return max_pool(y) if pool else y

  def _record(self, mean, var, n):
    m, most = self.momentum, max if isinstance(n, int) else jnp.maximum
    self.mean[...] = m * self.mean[...] + (1 - m) * mean
    self.var[...] = m * self.var[...] + (1 - m) * var * (n / most(n - 1, 1))


class GroupNorm(nnx.Module):
  """Group normalisation as PyTorch's, with sums over space before those over a group's channels.

  flax reduces [B, H, W, groups, channels] at once, whose last axis is too short for a CPU's
  vectors: twice the time.

  Source: Wu & He 2018; `torch.nn.GroupNorm`.
  """

  def __init__(self, channels, *, num_groups, epsilon=1e-5, dtype=jnp.float32):
    self.num_groups, self.epsilon, self.dtype = num_groups, epsilon, dtype
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x, *, ceiling=None):
    """Normalises x [B, H, W, C] over space and each group of neighbouring channels.

    `ceiling` is that of `BatchNorm`.
    """
    if backend.name() == "gpu":
      options = (self.num_groups, self.epsilon, ceiling)
      return norms.group_norm(x, self.scale[...], self.bias[...], *options).astype(self.dtype)
    batch, height, width, channels = x.shape
    per_group = channels // self.num_groups

    def mean_of_group(values):
      sums = jnp.sum(values, (1, 2), dtype=jnp.float32).reshape(batch, self.num_groups, per_group)
      means = jnp.sum(sums, -1) / (height * width * per_group)
      return jnp.repeat(means, per_group, axis=-1)

    mean = mean_of_group(x)
    # As in BatchNorm: two passes, and no derivative of the variance by the mean.
    centre = jax.lax.stop_gradient(mean)[:, None, None]
    var = mean_of_group(jnp.square(x.astype(jnp.float32) - centre))
    scale = self.scale[...][None] * jax.lax.rsqrt(var + self.epsilon)
    shift = self.bias[...][None] - mean * scale
    y = x.astype(jnp.float32) * scale[:, None, None] + shift[:, None, None]
    return activation(y.astype(self.dtype), ceiling)


def activation(x, ceiling):
  """min(max(x, 0), ceiling), its gradient 0 at both ends, as PyTorch's; x itself for None."""
  if ceiling is None:
    return x
  if ceiling == math.inf:
    return relu(x)
  return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), ceiling, x.dtype))


def relu(x):
  """max(x, 0), the gradient 0 at 0."""
  return _relu_by_result(x) if backend.name() == "gpu" else jax.nn.relu(x)


@jax.custom_vjp
def _relu_by_result(x):
  """`relu` whose gradient reads its result, which is kept anyway, and not what x was made of."""
  return jax.nn.relu(x)


def _relu_backward(y, dy):
  # Without the barrier XLA makes the result anew of all that it was made of.
  return (jnp.where(jax.lax.optimization_barrier(y) > 0, dy, jnp.zeros_like(dy)),)


_relu_by_result.defvjp(lambda x: (jax.nn.relu(x),) * 2, _relu_backward)


def last_axis(vector, x):
  """A vector [C] as an array of x's rank, [1, .., 1, C]."""
  return jax.lax.broadcast_in_dim(vector, (1,) * (x.ndim - 1) + vector.shape, (x.ndim - 1,))


class Conv(nnx.Module):
  """A square convolution padded as PyTorch's `padding=size // 2`.

  Its bias, if it has one, starts at 0.
  """

  def __init__(
    self, c_in, c_out, size, *, stride=1, bias=False, dtype, rngs, kernel_init=initial.he_fan_out
  ):
    self.stride, self.dtype = stride, dtype
    self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, c_in, c_out)))
    self.bias = nnx.Param(jnp.zeros(c_out)) if bias else None

  def __call__(self, x):
    """Maps [B, H, W, c_in] to [B, ceil(H / stride), ceil(W / stride), c_out]."""
    y = convolution.conv(x, self.kernel[...].astype(self.dtype), self.stride)
    return y if self.bias is None else y + last_axis(self.bias[...].astype(self.dtype), y)


def scale_channels(channels, width):
  """Channels times width, rounded to a multiple of 8 and at least 8."""
  return max(8, round(channels * width / 8) * 8)


@functools.cache
def _aligned_weights(size, factor):
  """Interpolation matrix [size * factor, size] of linear upsampling with aligned corners."""
  at = np.linspace(0, size - 1, size * factor)
  low = np.minimum(at.astype(int), max(size - 2, 0))
  high = np.minimum(low + 1, size - 1)
  weights = np.zeros((size * factor, size), np.float32)
  rows = np.arange(size * factor)
  np.add.at(weights, (rows, low), 1 - (at - low))
  np.add.at(weights, (rows, high), at - low)
  return weights


def upsample_bilinear(x, factor):
  """Bilinear upsampling with aligned corners, as two matrix products; for GPUs as sums.

  `jax.image.resize` knows half-pixel centres only.

  Args:
    x: [B, H, W, C].
    factor: an integer.

  Returns:
    [B, H * factor, W * factor, C].
  """
  if backend.name() in ("gpu", backend.ANY):
    return _upsample_by_sums(x, factor)
  rows = jnp.asarray(_aligned_weights(x.shape[1], factor), x.dtype)
  columns = jnp.asarray(_aligned_weights(x.shape[2], factor), x.dtype)
  # Logits pass through here too, and must not be rounded to bfloat16 on a TPU.
  return jnp.einsum("bhwc,Hh,Ww->bHWc", x, rows, columns, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _upsample_by_sums(x, factor):
  """`upsample_bilinear` where no product is compiled.

  XLA for GPUs fuses the products with the transposes around them, and fails for class counts such
  as 3, 5, 6 and 7 ("Couldn't find output tile sizes"). The few terms of a sum move a third of the
  bytes, too. Automatic differentiation would make scatters of the gradient.
  """
  rows, columns = (_aligned_weights(n, factor) for n in x.shape[1:3])
  if factor > 2:
    return _sum_along(_sum_along(x, rows, 1), columns, 2)
  # In one: rows alone would be written and read again.
  total = 0
  for row, of_row in _neighbours(rows):
    for column, of_column in _neighbours(columns):
      weights = (of_row[:, None] * of_column)[None, ..., None]
      total += weights * x[:, row[:, None], column].astype(jnp.float32)
  return total.astype(x.dtype)


def _upsample_backward(factor, _, dy):
  rows, columns = (_aligned_weights(n // factor, factor).T for n in dy.shape[1:3])
  return (_sum_along(_sum_along(dy, rows, 1), columns, 2),)


_upsample_by_sums.defvjp(lambda x, factor: (_upsample_by_sums(x, factor), None), _upsample_backward)


def resize(x, height, width):
  """Linear resizing with antialiasing, as `jax.image.resize`; on a GPU by sums, as upsampling.

  Args:
    x: [B, H, W, C].
    height: the new H.
    width: the new W.

  Returns:
    [B, height, width, C].
  """
  if backend.name() == "gpu":
    x = _sum_along(x, _resizing_weights(x.shape[1], height), 1)
    return _sum_along(x, _resizing_weights(x.shape[2], width), 2)
  return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear", antialias=True)


@functools.cache
def _resizing_weights(size, to):
  """Matrix [to, size] of linear resizing between pixels' centres, wider where it makes smaller."""
  step = size / to
  at = (np.arange(to) + 0.5) * step - 0.5
  weights = np.maximum(1 - np.abs(at[:, None] - np.arange(size)) / max(step, 1), 0)
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _sum_along(x, matrix, axis):
  """A matrix [N, n] times an axis [n] of x; of every row the few neighbours that are not 0."""
  shape = [-1 if i == axis else 1 for i in range(x.ndim)]
  terms = [
    weights.reshape(shape) * jnp.take(x, place, axis, mode="clip").astype(jnp.float32)
    for place, weights in _neighbours(matrix)
  ]
  return sum(terms).astype(x.dtype)


def _neighbours(matrix):
  """Of every row of a matrix [N, n] the places that are not 0, in turn: places and weights."""
  count = np.count_nonzero(matrix, axis=1).max()
  first = np.minimum((matrix != 0).argmax(axis=1), matrix.shape[1] - count)
  rows = np.arange(len(matrix))
  return [(place, matrix[rows, place]) for place in first + np.arange(count)[:, None]]


def upsample_nearest(x, factor):
  """Nearest-neighbour upsampling: [B, H, W, C] -> [B, H * factor, W * factor, C]."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
  return x.reshape(b, h * factor, w * factor, c)
