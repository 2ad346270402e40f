"""Depthwise 3x3 convolution as shifted multiply-adds.

XLA's grouped convolution is many times slower on CPUs, and slower still where a sweep maps it over
models; nine multiply-adds of shifted images cost the same under `vmap`.
"""

import functools

import jax
from jax import lax
from jax import numpy as jnp

# Below a warp's threads.
_LONGEST_RUN = 28
TAPS = tuple((i, j) for i in range(3) for j in range(3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x, kernel, stride=1):
  """A 3x3 convolution of every channel with its own kernel, padded as PyTorch's `padding=1`.

  Args:
    x: [B, H, W, C].
    kernel: [3, 3, 1, C], of x's dtype.
    stride: 1 or 2.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C].
  """
  return sum(
    _along_channels(kernel[i, j, 0]) * tap
    for (i, j), tap in zip(TAPS, taps(x, stride), strict=True)
  )


def _forward(x, kernel, stride):
  return depthwise_conv(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, dy):
  x, kernel = residuals
  dx = _input_gradient(x.shape, kernel, dy, stride)
  if jax.default_backend() == "gpu":
    # Otherwise XLA keeps it in float32, for both gradients.
    dy = lax.optimization_barrier(dy)
  return dx, _kernel_gradient(x, dy, stride)


depthwise_conv.defvjp(_forward, _backward)


def taps(x, stride):
  """What lies under each position of a 3x3 kernel, with zeros around the image.

  Args:
    x: [B, H, W, C].
    stride: 1 or 2.

  Returns:
    Nine images [B, ceil(H / stride), ceil(W / stride), C], row by row of the kernel.
  """
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [x[:, i : i + height : stride, j : j + width : stride] for i, j in TAPS]


def _along_channels(vector):
  return vector[None, None, None]


def spread(contribution, images, height, width):
  """The transpose of `taps` at stride 2: what every output sends to the pixels under it, added up.

  Args:
    contribution: `(tap, *images) -> array`: what outputs send to the pixels under tap 0 .. 8.
    images: arrays [B, ceil(H / 2), ceil(W / 2), C] of the outputs; `contribution` sees cuts of
      them, with zeros beyond the last row and column.
    height: H.
    width: W.

  Returns:
    [B, H, W, C].
  """
  # Every second pixel lies under other taps than its neighbours: an even row (or column) under the
  # middle one, an odd one under the last of this output and the first of the next. So each of the
  # four phases is computed by itself, without adding the zeros of dilated images.
  batch, rows, columns, channels = images[0].shape
  images = [jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))) for x in images]
  under = (((1, 0),), ((2, 0), (0, 1)))  # (tap, offset of the output)

  def phase(of_row, of_column):
    return sum(
      contribution(3 * i + j, *(image[:, y : y + rows, x : x + columns] for image in images))
      for i, y in under[of_row]
      for j, x in under[of_column]
    )

  dx = jnp.stack([jnp.stack([phase(r, c) for c in (0, 1)], axis=3) for r in (0, 1)], axis=2)
  return dx.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _input_gradient(shape, kernel, dy, stride):
  if stride == 1:
    return depthwise_conv(dy, kernel[::-1, ::-1])
  factors = kernel.reshape(len(TAPS), -1)
  return spread(lambda tap, dy: _along_channels(factors[tap]) * dy, [dy], *shape[1:3])


def _kernel_gradient(x, dy, stride):
  products = [tap.astype(jnp.float32) * dy.astype(jnp.float32) for tap in taps(x, stride)]
  if jax.default_backend() == "cpu":
    # One pass with nine sums, a row at a time, is several times faster than nine reductions.
    rows = lax.reduce(
      products,
      [jnp.zeros((), jnp.float32)] * len(TAPS),
      lambda a, b: [left + right for left, right in zip(a, b, strict=True)],
      (2,),
    )
    sums = jnp.sum(jnp.stack(rows), axis=(1, 2))
  else:
    sums = jnp.sum(_sums_of_runs(products), axis=(0, 1, 2))
  return sums.reshape(3, 3, 1, -1).astype(x.dtype)


def _sums_of_runs(products):
  """Sums over short runs along the rows of images, all in one pass: [B, H, runs, 9, C].

  XLA for GPUs adds up fewer than a warp's 32 values in one thread, where nine sums fit together. As
  nine long sums it reads the images five times, as one of nine it asks for more shared memory than
  a block of threads has.
  """
  batch, height, width, channels = products[0].shape
  runs = -(-width // _LONGEST_RUN)
  run = -(-width // runs)
  products = [jnp.pad(x, ((0, 0), (0, 0), (0, runs * run - width), (0, 0))) for x in products]
  products = [x.reshape(batch, height, runs, run, channels) for x in products]
  return jnp.stack([jnp.sum(x, axis=3) for x in products], axis=3)
