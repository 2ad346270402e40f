"""How many floating point operations the networks take, by formula.

Counted are convolutions and linear layers, multiply and add apart: a convolution with kernels of
k x k over c channels takes 2 k^2 c d h w for its [h, w, d] outputs (c = 1 where it is depthwise), a
linear layer from c to d numbers 2 c d. Norms, activations, resizing and biases are not counted. A
training step takes three times as many: the gradients by inputs and by weights cost as much as the
forward pass each.

The figures follow the architecture, not how a layer happens to be computed here.
"""

from lus_jax.models.fpn import FINE_CHANNELS, STRIDE
from lus_jax.models.layers import scale_channels
from lus_jax.models.mobilenet_v2 import STAGES, round_channels
from lus_jax.models.resnet import DEPTHS

TRAINING = 3  # of a training step to a forward pass


def fpn(encoder, *, size, in_channels, classes, width=1.0, refinements=0) -> int:
  """Floating point operations of the segmentation network's forward pass over one image.

  Args:
    encoder: 'resnet18', 'resnet34' or 'resnet50'.
    size: H = W in pixels; what 32 does not divide is padded.
    in_channels: channels of the image.
    classes: K.
    width: factor on every channel count.
    refinements: of the decoder, as `lus_jax.models.fpn.FPN` has them.
  """
  blocks, bottleneck = DEPTHS[encoder]
  pyramid, segmentation = scale_channels(256, width), scale_channels(128, width)
  side = -(-size // STRIDE) * STRIDE // 2
  c = scale_channels(64, width)
  total = _conv(7, in_channels, c, side)
  side //= 2
  for level, n in enumerate(blocks):
    channels = scale_channels(64 * 2**level, width)
    c_out = 4 * channels if bottleneck else channels
    for block in range(n):
      before = side
      if level and not block:
        side //= 2
      if bottleneck:
        total += _conv(1, c, channels, before) + _conv(3, channels, channels, side)
        total += _conv(1, channels, c_out, side)
      else:
        total += _conv(3, c, channels, side) + _conv(3, channels, channels, side)
      if side != before or c != c_out:
        total += _conv(1, c, c_out, side)
      c = c_out
    # The decoder's part of this level: a branch of `level` convolutions, each at twice the size.
    total += _conv(1, c, pyramid, side) + _conv(3, pyramid, segmentation, side)
    total += sum(_conv(3, segmentation, segmentation, side * 2**i) for i in range(1, level))
  side, merged = side * 8, segmentation
  fine = [scale_channels(channels, width) for channels in FINE_CHANNELS[:refinements]]
  for c, finer in zip(fine, [*fine, in_channels][1:], strict=True):
    # A reduction before the size is doubled, a convolution behind, and one of what is finer.
    total += _conv(1, merged, c, side) + _conv(3, c, c, 2 * side) + _conv(3, finer, c, 2 * side)
    side, merged = 2 * side, c
  return total + _conv(1, merged, classes, side)


def video(*, size, n_segment, in_channels, outputs, hidden=(), width=1.0) -> int:
  """Floating point operations of the temporal-shift MobileNetV2's forward pass over one clip.

  Args:
    size: H = W in pixels.
    n_segment: N, frames of a clip.
    in_channels: channels of a frame.
    outputs: numbers per clip.
    hidden: sizes of the layers between the features and the last linear layer.
    width: factor on every channel count.
  """
  side = -(-size // 2)
  c = round_channels(32 * width)
  frame = _conv(3, in_channels, c, side)
  for expansion, channels, blocks, stride in STAGES:
    c_out = round_channels(channels * width)
    for block in range(blocks):
      inner = c * expansion
      if expansion != 1:
        frame += _conv(1, c, inner, side)
      side = -(-side // (1 if block else stride))
      frame += _conv(3, 1, inner, side) + _conv(1, inner, c_out, side)
      c = c_out
  last = round_channels(1280 * max(1.0, width))
  frame += _conv(1, c, last, side)
  sizes = (last, *hidden, outputs)
  head = sum(2 * a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
  return n_segment * frame + head


def _conv(kernel, c_in, c_out, side):
  return 2 * kernel**2 * c_in * c_out * side**2
