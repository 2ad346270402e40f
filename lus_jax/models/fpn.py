"""The segmentation network: a feature pyramid over a ResNet.

The decoder is the one of Kirillov et al., "A Unified Architecture for Instance and Semantic
Segmentation", in the form that segmentation_models_pytorch made common.
"""

import functools
import math

import jax
from flax import nnx
from jax import numpy as jnp

from lus_jax.models import backend, convolution, initial
from lus_jax.models.layers import (
  Conv,
  GroupNorm,
  last_axis,
  scale_channels,
  upsample_bilinear,
  upsample_nearest,
)
from lus_jax.models.resnet import ResNet

# Every stride of the encoder divides it, so features of neighbouring levels fit each other.
STRIDE = 32
HEAD_STRIDE = 4
# Of features at half the size and at the whole one, where the decoder is refined.
FINE_CHANNELS = (64, 32)
MOST_REFINEMENTS = len(FINE_CHANNELS)
CHANNELS_PER_GROUP = 4  # GroupNorm(32) at 128 channels


class SegmentationBranch(nnx.Module):
  """Convolutions that bring one pyramid level to stride 4, doubling the size after each.

  The level that is at stride 4 already still has one convolution.
  """

  def __init__(self, c_in, channels, upsamplings, *, dtype, rngs):
    self.upsamplings = upsamplings
    convs, norms = [], []
    for _ in range(max(1, upsamplings)):
      convs.append(Conv(c_in, channels, 3, dtype=dtype, rngs=rngs, kernel_init=initial.he_uniform))
      norms.append(_norm(channels, dtype))
      c_in = channels
    self.convs, self.norms = nnx.List(convs), nnx.List(norms)

  def __call__(self, x, first=None):
    """Maps [B, h, w, C], or what the first convolution made of it, to [B, H / 4, W / 4, c]."""
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      x = norm(conv(x) if first is None or i else first, ceiling=math.inf)
      if self.upsamplings:
        x = upsample_bilinear(x, 2)
    return x


class Refinement(nnx.Module):
  """Doubles the size of features, with finer ones beside them that were made of the image."""

  def __init__(self, c_in, channels, *, dtype, rngs):
    options = {"dtype": dtype, "rngs": rngs, "kernel_init": initial.he_uniform}
    self.reduction = Conv(c_in, channels, 1, **options)
    self.conv = Conv(channels, channels, 3, **options)
    self.norm = _norm(channels, dtype)

  def __call__(self, x, finer):
    """Maps [B, h, w, C] and `finer` [B, 2h, 2w, c] to [B, 2h, 2w, c]."""
    # Fewer channels first: that and resizing are both linear.
    x = upsample_bilinear(self.reduction(x), 2) + finer
    return self.norm(self.conv(x), ceiling=math.inf)


class Detail(nnx.Module):
  """What one convolution sees in the image, or in the features of twice the size."""

  def __init__(self, c_in, channels, *, stride, dtype, rngs):
    options = {"stride": stride, "dtype": dtype, "rngs": rngs}
    self.conv = Conv(c_in, channels, 3, kernel_init=initial.he_uniform, **options)
    self.norm = _norm(channels, dtype)

  def __call__(self, x):
    """Maps [B, H, W, C] to [B, H / stride, W / stride, c]."""
    return self.norm(self.conv(x), ceiling=math.inf)


def _norm(channels, dtype):
  return GroupNorm(channels, num_groups=channels // CHANNELS_PER_GROUP, dtype=dtype)


class FPN(nnx.Module):
  """Feature pyramid network with one logit per pixel and class.

  Args:
    encoder: 'resnet18', 'resnet34' or 'resnet50'.
    in_channels: channels of the input image.
    classes: K.
    levels: how many times K values the head has (`lus_jax.models.ordinal`); the first K start as
      those of a head with one level.
    pyramid_channels: channels of the lateral connections (times width).
    segmentation_channels: channels of the segmentation branches (times width).
    width: factor on every channel count, for small runs.
    dropout: share of the merged channels dropped in training.
    shrink: how many times smaller than the image, and than its logits, is what the encoder sees.
    refinements: how often the decoder's features, at a quarter of the size, are doubled before the
      head, 0 to `MOST_REFINEMENTS`; each has a convolution of the image beside it, so that lines
      stay where they are. 0 is the paper's network.
    dtype: compute type; parameters and logits are float32.
    rngs: source of the initial weights.
  """

  def __init__(
    self,
    encoder="resnet34",
    *,
    in_channels=1,
    classes,
    levels=1,
    pyramid_channels=256,
    segmentation_channels=128,
    width=1.0,
    dropout=0.2,
    shrink=1,
    refinements=0,
    dtype=jnp.float32,
    rngs,
  ):
    self.shrink = shrink
    pyramid_channels = scale_channels(pyramid_channels, width)
    segmentation_channels = scale_channels(segmentation_channels, width)
    self.dtype = dtype
    self.encoder = ResNet(encoder, in_channels=in_channels, width=width, dtype=dtype, rngs=rngs)
    self.laterals = nnx.List(
      Conv(
        c, pyramid_channels, 1, bias=True, dtype=dtype, rngs=rngs, kernel_init=initial.he_uniform
      )
      for c in self.encoder.out_channels
    )
    self.branches = nnx.List(
      SegmentationBranch(pyramid_channels, segmentation_channels, n, dtype=dtype, rngs=rngs)
      for n in range(4)
    )
    # Whole channels are dropped, as torch's Dropout2d.
    self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))
    # From the finest on: details at the head's size, and at half of it.
    details, refined = [], []
    c_in, c_merged = in_channels, segmentation_channels
    fine = [scale_channels(c, width) for c in FINE_CHANNELS[:refinements]]
    for i, c in enumerate(reversed(fine)):
      stride = 2 ** (MOST_REFINEMENTS - refinements) if i == 0 else 2
      details.append(Detail(c_in, c, stride=stride, dtype=dtype, rngs=rngs))
      c_in = c
    for c in fine:
      refined.append(Refinement(c_merged, c, dtype=dtype, rngs=rngs))
      c_merged = c
    self.details, self.refinements = nnx.List(details), nnx.List(refined)
    self.segmentation_head = Conv(
      c_merged,
      levels * classes,
      1,
      bias=True,
      dtype=dtype,
      rngs=rngs,
      kernel_init=_by_level(initial.xavier_uniform, levels),
    )

  def __call__(self, image, *, train, key=None, upsample=True):
    """Predicts logits.

    Args:
      image: [B, H, W, in_channels] in [0, 1]; sizes that 32 does not divide are padded with zeros
        at the bottom and right, and the logits cropped back.
      train: whether to use batch statistics and dropout.
      key: the dropout key; needed in training unless dropout is 0.
      upsample: False for the head's own logits, which `upsample_logits` finishes.

    Returns:
      float32 logits [B, H, W, K]; without `upsample` at a quarter of the padded size, doubled by
      every refinement.
    """
    height, width = image.shape[1:3]
    if self.shrink > 1:
      image = _shrunk(image, self.shrink)
    image = jnp.pad(
      image.astype(self.dtype),
      ((0, 0), (0, -image.shape[1] % STRIDE), (0, -image.shape[2] % STRIDE), (0, 0)),
    )
    features = self.encoder(image, train=train)
    on_gpu = backend.name() == "gpu"
    level = None
    merged = None
    # From the coarsest level to the finest.
    for i in reversed(range(len(features))):
      first = None
      if on_gpu and i == 0:
        first = self._finest(features[0], level)
      else:
        level = self.laterals[i](features[i]) + (0 if level is None else upsample_nearest(level, 2))
      merged = self.branches[i](level, first) + (0 if merged is None else merged)
    rngs = None if key is None else nnx.Rngs(dropout=key)
    drop = functools.partial(self.dropout, deterministic=not train, rngs=rngs)
    if on_gpu and train and not self.refinements:
      logits = self._head_of_kept(merged, drop).astype(jnp.float32)
    else:
      logits = self.segmentation_head(self._refined(drop(merged), image)).astype(jnp.float32)
    if not upsample:
      return logits
    return upsample_logits(logits, height, width, self.shrink, len(self.refinements))

  def _refined(self, x, image):
    """[B, h, w, C] at a quarter of the image's size, doubled by every refinement."""
    details = []
    for detail in self.details:
      image = detail(image)
      details.append(image)
    for refinement in self.refinements:
      x = refinement(x, details.pop())
    return x

  def _finest(self, feature, coarser):
    """The first convolution of the finest branch, of a level that is never made.

    That level is the largest map of the network. It is the sum of a 1x1 convolution and of an
    enlarged map, and both can be one with the 3x3 convolution behind them.
    """
    lateral, branch = self.laterals[0], self.branches[0].convs[0].kernel[...]
    kernel = jnp.einsum("cl,stld->stcd", lateral.kernel[0, 0], branch, precision="highest")
    y = convolution.conv(feature, kernel.astype(self.dtype))
    coarser = coarser + last_axis(lateral.bias[...].astype(self.dtype), coarser)
    return y + convolution.upsampled_conv(coarser, branch.astype(self.dtype))

  def _head_of_kept(self, merged, drop):
    """The head behind a dropout that is put into its weights, image by image."""
    batch, _, _, channels = merged.shape
    kept = drop(jnp.ones((batch, 1, 1, channels)))
    head = self.segmentation_head
    kernel = (kept[:, 0, 0, :, None] * head.kernel[0]).astype(self.dtype)
    logits = jnp.einsum("bhwc,bck->bhwk", merged, kernel)
    return logits + last_axis(head.bias[...].astype(self.dtype), logits)


def _by_level(initializer, levels):
  """An initializer of kernels [..., levels * K], level by level."""

  def initialize(key, shape):
    each = (*shape[:-1], shape[-1] // levels)
    keys = [key, *(jax.random.fold_in(key, level) for level in range(1, levels))]
    return jnp.concatenate([initializer(key, each) for key in keys], axis=-1)

  return initialize


def _shrunk(image, factor):
  """Means over squares of so many pixels a side: [B, H / factor, W / factor, C]."""
  batch, height, width, channels = image.shape
  parts = image.reshape(batch, height // factor, factor, width // factor, factor, channels)
  return parts.mean((2, 4))


def upsample_logits(logits, height, width, shrink=1, refinements=0):
  """From the head's logits [B, h, w, K] to the image's size [B, height, width, K]."""
  factor = head_stride(shrink, refinements)
  return (upsample_bilinear(logits, factor) if factor > 1 else logits)[:, :height, :width]


def head_stride(shrink=1, refinements=0):
  """How many times smaller than the image's padded size the head's logits are."""
  return HEAD_STRIDE * shrink // 2**refinements
