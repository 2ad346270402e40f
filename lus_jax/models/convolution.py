"""Convolutions, each by the fastest way there is for its shape on this backend.

`direct_conv` is the plain reference that all of them agree with.
"""

import functools

import jax
from jax import lax
from jax import numpy as jnp

from lus_jax.models import backend
from lus_jax.models.winograd import n_tiles, winograd_conv

# The maps of the kernel have to be shared by many tiles, those of the image by many channels,
# and in small layers it gains less than it takes to compile.
MIN_TILES, MIN_CHANNELS, MIN_FLOP = 64, 16, 1e8
# Patches of images of fewer pixels are small beside a kernel of so many channels.
MAX_PIXELS, MIN_PATCH_CHANNELS = 1024, 128


def conv(x, kernel, stride=1):
  """A square convolution padded as PyTorch's `padding=size // 2`.

  Args:
    x: [B, H, W, C].
    kernel: [size, size, C, D] of x's dtype, size odd.
    stride: of rows and columns.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), D].
  """
  size, _, channels, outputs = kernel.shape
  on_cpu = backend.name() == "cpu"
  # XLA for GPUs aborts where it fuses the skipped pixels with the product (openxla/xla#47381).
  if size == 1 and (on_cpu or stride == 1):
    return pointwise_conv(x[:, ::stride, ::stride], kernel[0, 0])
  if not on_cpu or x.dtype != jnp.float32:
    return direct_conv(x, kernel, stride)
  if size == 3 and stride == 1 and n_tiles(x.shape) >= MIN_TILES and channels >= MIN_CHANNELS:
    large = 2 * x.size * size**2 * outputs >= MIN_FLOP
    return winograd_conv(x, kernel) if large else direct_conv(x, kernel)
  if x.size // channels <= MAX_PIXELS and channels >= MIN_PATCH_CHANNELS:
    return patch_conv(x, kernel, stride)
  return direct_conv(x, kernel, stride)


def direct_conv(x, kernel, stride=1):
  """`conv` by XLA."""
  padding = (kernel.shape[0] // 2,) * 2
  order = "HWIO"
  if backend.name() == "gpu":
    # As cuDNN wants it. Left to XLA, the weights themselves, and all that the optimizer keeps of
    # them, are copied into that order and back in every step.
    kernel, order = jnp.transpose(kernel, (3, 0, 1, 2)), "OHWI"
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", order, "NHWC")
  )


@jax.custom_vjp
def pointwise_conv(x, kernel):
  """A 1x1 convolution as a matrix product: [B, H, W, C], [C, D] -> [B, H, W, D].

  On CPUs it is faster than XLA's convolution, and as fast where a sweep maps it over models.
  """
  return x @ kernel


def _pointwise_backward(residuals, dy):
  x, kernel = residuals
  # Automatic differentiation computes the transpose of this product, for which XLA first copies
  # dy, the larger factor, into another memory layout.
  by_kernel = jnp.einsum("nc,nd->cd", x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))
  return dy @ kernel.T, by_kernel


pointwise_conv.defvjp(
  lambda x, kernel: (pointwise_conv(x, kernel), (x, kernel)), _pointwise_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def patch_conv(x, kernel, stride=1):
  """`direct_conv` as patches and matrix products: for small images of many channels."""
  return _patch_forward(x, kernel, stride)[0]


def _patch_forward(x, kernel, stride):
  patches = _patches(x, kernel.shape[0], stride)
  y = patches @ kernel.reshape(-1, kernel.shape[-1])
  return y, (x, kernel)


def _patch_backward(stride, residuals, dy):
  x, kernel = residuals
  patches, fold = jax.vjp(lambda x: _patches(x, kernel.shape[0], stride), x)
  matrix = kernel.reshape(-1, kernel.shape[-1])
  d_patches, d_matrix = _pointwise_backward((patches, matrix), dy)
  return *fold(d_patches), d_matrix.reshape(kernel.shape)


patch_conv.defvjp(_patch_forward, _patch_backward)


def _patches(x, size, stride):
  """What lies under a kernel, row by row: [B, H, W, C] -> [B, h, w, size * size * C]."""
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
  taps = [
    x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)
  ]
  return jnp.concatenate(taps, axis=-1)


def upsampled_conv(x, kernel):
  """A 3x3 convolution of an image enlarged by 2 (nearest neighbours), without the enlarged image.

  Every pixel of x lies under 4x4 outputs: it is the transpose of a 4x4 convolution of stride 2,
  with four products an output in place of nine.

  Args:
    x: [B, H, W, C].
    kernel: [3, 3, C, D] of x's dtype.

  Returns:
    [B, 2 H, 2 W, D].
  """
  # Of a pixel's outputs the middle ones see it under two taps, which add up.
  adds = jnp.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], jnp.float32)
  kernel = kernel.astype(jnp.float32)
  spread = jnp.einsum("at,bs,tscd->cabd", adds, adds, kernel, precision="highest")
  return _spread_conv(x, spread.astype(x.dtype))


@jax.custom_vjp
def _spread_conv(x, kernel):
  """The transpose of `_gather_conv`."""
  batch, height, width, _ = x.shape
  shape = (batch, 2 * height, 2 * width, kernel.shape[-1])
  gather = functools.partial(_gather_conv, kernel=kernel)
  return jax.linear_transpose(gather, jax.ShapeDtypeStruct(shape, x.dtype))(x)[0]


def _gather_conv(y, kernel):
  """A 4x4 convolution of stride 2: [B, 2 H, 2 W, D], [C, 4, 4, D] -> [B, H, W, C]."""
  return lax.conv_general_dilated(
    y, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "OHWI", "NHWC")
  )


def _spread_backward(residuals, dy):
  x, kernel = residuals
  # As cuDNN knows it; of the transpose itself the kernel's gradient would be a convolution of
  # images over images.
  _, of_kernel = jax.vjp(lambda kernel: _gather_conv(dy, kernel), kernel)
  return _gather_conv(dy, kernel), *of_kernel(x)


_spread_conv.defvjp(lambda x, kernel: (_spread_conv(x, kernel), (x, kernel)), _spread_backward)
