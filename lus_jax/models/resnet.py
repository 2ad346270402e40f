"""ResNet encoders (He et al. 2016) in torchvision's form: strides 4, 8, 16 and 32."""

import math

from flax import nnx
from jax import numpy as jnp

from lus_jax.models.layers import BatchNorm, Conv, relu, scale_channels

# Blocks per stage, and whether they are bottlenecks.
DEPTHS = {
  "resnet18": ((2, 2, 2, 2), False),
  "resnet34": ((3, 4, 6, 3), False),
  "resnet50": ((3, 4, 6, 3), True),
}


class BasicBlock(nnx.Module):
  """Two 3x3 convolutions and a shortcut."""

  expansion = 1

  def __init__(self, c_in, channels, *, stride, dtype, rngs):
    self.conv1 = Conv(c_in, channels, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn1 = BatchNorm(channels, dtype=dtype)
    self.conv2 = Conv(channels, channels, 3, dtype=dtype, rngs=rngs)
    self.bn2 = BatchNorm(channels, dtype=dtype)
    self.downsample = _shortcut(c_in, channels, stride=stride, dtype=dtype, rngs=rngs)

  def __call__(self, x, *, train):
    """Maps [B, H, W, C] to [B, H / stride, W / stride, channels]."""
    y = self.bn1(self.conv1(x), train=train, ceiling=math.inf)
    y = self.bn2(self.conv2(y), train=train)
    return relu(y + (x if self.downsample is None else self.downsample(x, train=train)))


class Bottleneck(nnx.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride sits on the 3x3 one."""

  expansion = 4

  def __init__(self, c_in, channels, *, stride, dtype, rngs):
    c_out = channels * self.expansion
    self.conv1 = Conv(c_in, channels, 1, dtype=dtype, rngs=rngs)
    self.bn1 = BatchNorm(channels, dtype=dtype)
    self.conv2 = Conv(channels, channels, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn2 = BatchNorm(channels, dtype=dtype)
    self.conv3 = Conv(channels, c_out, 1, dtype=dtype, rngs=rngs)
    self.bn3 = BatchNorm(c_out, dtype=dtype)
    self.downsample = _shortcut(c_in, c_out, stride=stride, dtype=dtype, rngs=rngs)

  def __call__(self, x, *, train):
    """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * channels]."""
    y = self.bn1(self.conv1(x), train=train, ceiling=math.inf)
    y = self.bn2(self.conv2(y), train=train, ceiling=math.inf)
    y = self.bn3(self.conv3(y), train=train)
    return relu(y + (x if self.downsample is None else self.downsample(x, train=train)))


class Downsample(nnx.Module):
  """The projection shortcut: a strided 1x1 convolution and its norm."""

  def __init__(self, c_in, c_out, *, stride, dtype, rngs):
    self.conv = Conv(c_in, c_out, 1, stride=stride, dtype=dtype, rngs=rngs)
    self.bn = BatchNorm(c_out, dtype=dtype)

  def __call__(self, x, *, train):
    """Maps [B, H, W, C] to [B, H / stride, W / stride, c_out]."""
    return self.bn(self.conv(x), train=train)


def _shortcut(c_in, c_out, *, stride, dtype, rngs):
  if stride == 1 and c_in == c_out:
    return None
  return Downsample(c_in, c_out, stride=stride, dtype=dtype, rngs=rngs)


class ResNet(nnx.Module):
  """The feature pyramid of a ResNet.

  Args:
    name: a key of `DEPTHS`.
    in_channels: channels of the input image.
    width: factor on every channel count.
    dtype: compute type; parameters are float32.
    rngs: source of the initial weights.

  Attributes:
    out_channels: channels of the four features.
  """

  def __init__(self, name, *, in_channels, width=1.0, dtype=jnp.float32, rngs):
    blocks, bottleneck = DEPTHS[name]
    block = Bottleneck if bottleneck else BasicBlock
    c = scale_channels(64, width)
    self.conv1 = Conv(in_channels, c, 7, stride=2, dtype=dtype, rngs=rngs)
    self.bn1 = BatchNorm(c, dtype=dtype)
    self.out_channels = []
    stages = []
    for i, n in enumerate(blocks):
      channels = scale_channels(64 * 2**i, width)
      stage = []
      for j in range(n):
        stride = 2 if i > 0 and j == 0 else 1
        stage.append(block(c, channels, stride=stride, dtype=dtype, rngs=rngs))
        c = channels * block.expansion
      stages.append(nnx.List(stage))
      self.out_channels.append(c)
    self.out_channels = tuple(self.out_channels)
    self.stages = nnx.List(stages)

  def __call__(self, x, *, train):
    """Maps images [B, H, W, C] to features at strides 4, 8, 16 and 32."""
    x = self.bn1(self.conv1(x), train=train, ceiling=math.inf, pool=True)
    features = []
    for stage in self.stages:
      for block in stage:
        x = block(x, train=train)
      features.append(x)
    return features
