"""MobileNetV2 with temporal shifts: the network of the clinical tasks.

Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", in torchvision's
form; Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding".
"""

import jax
from flax import nnx
from jax import numpy as jnp

from lus_jax.models import initial
from lus_jax.models.convolution import patch_conv
from lus_jax.models.depthwise import depthwise_conv
from lus_jax.models.layers import BatchNorm, Conv
from lus_jax.models.temporal_shift import temporal_shift

# Expansion, channels, blocks, stride of the first block.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class StemConv(nnx.Module):
  """A 3x3 convolution of stride 2, as patches and a matrix product.

  Alone it is as fast as XLA's convolution on CPUs; where a sweep maps it over models, whose
  segmentation channels differ, it is not slowed down by being grouped.
  """

  def __init__(self, c_in, c_out, *, dtype, rngs):
    self.dtype = dtype
    self.kernel = nnx.Param(initial.he_fan_out(rngs.params(), (3, 3, c_in, c_out)))

  def __call__(self, x):
    """Maps [B, H, W, c_in] to [B, ceil(H / 2), ceil(W / 2), c_out]."""
    return patch_conv(x, self.kernel[...].astype(self.dtype), 2)


class ConvNorm(nnx.Module):
  """A convolution, batch normalisation and ReLU6."""

  def __init__(self, convolution, c_out, *, dtype):
    self.conv = convolution
    self.bn = BatchNorm(c_out, dtype=dtype)

  def __call__(self, x, **options):
    """Maps [B, H, W, c_in] to [.., c_out]; `options` are those of `BatchNorm`."""
    return self.bn(self.conv(x), ceiling=6, **options)


class InvertedResidual(nnx.Module):
  """Expansion by a 1x1 convolution, depthwise 3x3 convolution, projection by a 1x1 convolution.

  Where input and output are alike they are added, and the expansion sees the input after a temporal
  shift. The first block has no expansion and no shift, even at widths where it is residual.

  Attributes:
    residual: whether the input is added.
    shifted: whether the convolutions see it shifted.
  """

  def __init__(self, c_in, c_out, *, stride, expansion, dtype, rngs):
    channels = c_in * expansion
    self.residual = stride == 1 and c_in == c_out
    self.stride, self.dtype = stride, dtype
    expands = expansion != 1
    self.shifted = self.residual and expands
    self.expand = Conv(c_in, channels, 1, dtype=dtype, rngs=rngs) if expands else None
    self.expand_bn = BatchNorm(channels, dtype=dtype) if expands else None
    self.depthwise = nnx.Param(initial.he_fan_out(rngs.params(), (3, 3, 1, channels)))
    self.depthwise_bn = BatchNorm(channels, dtype=dtype)
    self.project = Conv(channels, c_out, 1, dtype=dtype, rngs=rngs)
    self.project_bn = BatchNorm(c_out, dtype=dtype)

  def __call__(self, x, *, n_segment, **options):
    """Maps frames [B * n_segment, H, W, c_in] to [.., H / stride, W / stride, c_out].

    `options` are those of `BatchNorm`.
    """
    y = temporal_shift(x, n_segment) if self.shifted else x
    if self.expand is not None:
      y = self.expand_bn(self.expand(y), ceiling=6, **options)
    y = depthwise_conv(y, self.depthwise[...].astype(self.dtype), self.stride)
    y = self.depthwise_bn(y, ceiling=6, **options)
    y = self.project_bn(self.project(y), **options)
    return x + y if self.residual else y


class MobileNetV2(nnx.Module):
  """Temporal-shift MobileNetV2 over clips.

  Args:
    in_channels: channels of a frame.
    outputs: numbers per clip.
    hidden: sizes of the ReLU layers between the features and the last linear layer.
    width: factor on every channel count; the last features are never fewer than 1280.
    dropout: share of a clip's features that are dropped in training.
    dtype: compute type; parameters, features and outputs are float32.
    rngs: source of the initial weights.

  Attributes:
    features: numbered as torchvision's, 0 to 18.
    bias: [outputs]. Not added here: where a loss takes the difference of two clips' outputs it
      would cancel, so whoever uses the outputs adds it.
  """

  def __init__(
    self, *, in_channels, outputs, hidden=(), width=1.0, dropout=0.0, dtype=jnp.float32, rngs
  ):
    self.dtype = dtype
    options = {"dtype": dtype, "rngs": rngs}
    c = round_channels(32 * width)
    features = [ConvNorm(StemConv(in_channels, c, **options), c, dtype=dtype)]
    for expansion, channels, blocks, stride in STAGES:
      c_out = round_channels(channels * width)
      for i in range(blocks):
        features.append(
          InvertedResidual(c, c_out, stride=1 if i else stride, expansion=expansion, **options)
        )
        c = c_out
    c_out = round_channels(1280 * max(1.0, width))
    features.append(ConvNorm(Conv(c, c_out, 1, **options), c_out, dtype=dtype))
    self.features = nnx.List(features)
    sizes = (c_out, *hidden)
    # Not torchvision's normal(0, .01), which suits a last layer: through several of them next to
    # nothing of the features would be left.
    self.hidden = nnx.List(
      nnx.Linear(a, b, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
      for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )
    self.head = nnx.Linear(
      sizes[-1], outputs, use_bias=False, kernel_init=nnx.initializers.normal(0.01), rngs=rngs
    )
    self.bias = nnx.Param(jnp.zeros(outputs))
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, clip, *, train, key=None, where=None, pooled=True):
    """Maps clips to outputs, without `bias`.

    Args:
      clip: [B, N, H, W, in_channels] in [0, 1]; H and W at least 32.
      train: whether to use batch statistics.
      key: the dropout key; needed in training unless dropout is 0.
      where: [B] bool, the clips that batch statistics are of; by default all.
      pooled: False for the outputs at every place of every frame, as pretraining has them.

    Returns:
      float32 [B, outputs]; [B, N, H / 32, W / 32, outputs] if not pooled, rounded up.
    """
    batch, n_segment = clip.shape[:2]
    x = clip.reshape(batch * n_segment, *clip.shape[2:]).astype(self.dtype)
    options = {"train": train}
    if where is not None:
      options["where"] = jnp.repeat(where, n_segment)
    first, *blocks, last = self.features
    x = first(x, **options)
    for block in blocks:
      x = block(x, n_segment=n_segment, **options)
    x = last(x, **options)
    if not pooled:
      return self.head(x.astype(jnp.float32)).reshape(batch, n_segment, *x.shape[1:3], -1)
    # All frames are of one size: the mean over space, then frames, is the mean over both.
    x = jnp.mean(x.reshape(batch, -1, x.shape[-1]), axis=1, dtype=jnp.float32)
    if self.dropout.rate:
      x = self.dropout(x, deterministic=not train, rngs=nnx.Rngs(dropout=key) if train else None)
    for layer in self.hidden:
      x = jax.nn.relu(layer(x))
    return self.head(x)


def round_channels(channels):
  """The nearest multiple of 8, at least 8, and not more than 10 % below (torchvision's rule)."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded
