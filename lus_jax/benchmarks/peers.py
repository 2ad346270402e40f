"""The PyTorch networks that we are measured against and convert weights from.

torch and torchvision are imported where they are used, and segmentation_models_pytorch where it is
installed; the `peers` extra installs all.
"""

import importlib
import importlib.metadata
import sys

from lus_jax.errors import UserError

# Beside a torch of another build (a CPU one, most often) torchvision's compiled operators do not
# load, and importing it fails at these two, whose schemas it takes for granted. The networks here
# call neither, so a schema without an implementation is enough.
_MISSING_SCHEMAS = ("nms", "qnms")


def import_torch():
  """Imports torch with torchvision, whichever builds the two are of.

  Returns:
    The module torch.

  Raises:
    UserError: torch or torchvision is not installed.
  """
  try:
    torch = importlib.import_module("torch")
    try:
      importlib.import_module("torchvision")
    except RuntimeError as error:
      if "operator torchvision::" not in str(error):
        raise
      _define_schemas()
      importlib.import_module("torchvision")
  except ModuleNotFoundError as error:
    raise _missing(error) from error
  return torch


def _define_schemas():
  from torch import library

  # What the failed import left behind would be taken for the whole.
  for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
    del sys.modules[name]
  # Schemas live as long as this object.
  _define_schemas.held = held = library.Library("torchvision", "FRAGMENT")
  for name in _MISSING_SCHEMAS:
    held.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_SMP = "segmentation_models_pytorch"


def _smp():
  """The module segmentation_models_pytorch; None where it is not installed."""
  try:
    return importlib.import_module(_SMP)
  except ModuleNotFoundError as error:
    if error.name == _SMP:
      return None
    raise _missing(error) from error


def _missing(error):
  return UserError(
    f"PyTorch's side needs {error.name}, which is not installed; pip install 'lus_jax[peers]'."
  )


def origin(what):
  """Whose network is measured, in words: of 'tsm' or the segmentation network."""
  torchvision = f"torchvision {importlib.metadata.version('torchvision')}"
  if what == "tsm":
    return f"MobileNetV2 of {torchvision} with temporal shifts"
  if _smp():
    return f"FPN of {_SMP} {importlib.metadata.version(_SMP)}"
  return f"the FPN of {_SMP}, layer by layer, on the ResNet of {torchvision}"


def fpn(encoder, *, in_channels, classes):
  """segmentation_models_pytorch's FPN with random weights.

  Where the library is not installed, the same layers, of the same names, on torchvision's ResNet.

  Args:
    encoder: 'resnet18', 'resnet34' or 'resnet50'.
    in_channels: channels of the image.
    classes: K.

  Returns:
    A `torch.nn.Module` that maps images [B, in_channels, H, W] to logits [B, K, H, W]; 32 divides H
    and W. Its dropout is .2 in training.

  Raises:
    UserError: torch or torchvision is not installed.
  """
  import_torch()
  smp = _smp()
  if smp is None:
    return plain_fpn(encoder, in_channels=in_channels, classes=classes)
  return smp.FPN(encoder, encoder_weights=None, in_channels=in_channels, classes=classes)


def plain_fpn(encoder, *, in_channels, classes):
  """`fpn` without segmentation_models_pytorch."""
  torch = import_torch()
  import torchvision

  nn = torch.nn
  resize = nn.functional.interpolate

  class Encoder(nn.Module):
    def __init__(self):
      super().__init__()
      base = torchvision.models.get_model(encoder, weights=None)
      self.channels = [base.layer1[-1], base.layer2[-1], base.layer3[-1], base.layer4[-1]]
      last = "conv3" if hasattr(base.layer1[-1], "conv3") else "conv2"
      self.channels = [getattr(block, last).out_channels for block in self.channels]
      self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
      for name in ("bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        setattr(self, name, getattr(base, name))

    def forward(self, x):
      x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
      maps = []
      for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
        x = layer(x)
        maps.append(x)
      return maps

  class Lateral(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.skip_conv = nn.Conv2d(channels, 256, 1)

    def forward(self, above, skip):
      return resize(above, scale_factor=2.0, mode="nearest") + self.skip_conv(skip)

  class ConvNorm(nn.Module):
    def __init__(self, channels, doubles):
      super().__init__()
      self.doubles = doubles
      conv = nn.Conv2d(channels, 128, 3, padding=1, bias=False)
      self.block = nn.Sequential(conv, nn.GroupNorm(32, 128), nn.ReLU(inplace=True))

    def forward(self, x):
      x = self.block(x)
      options = {"scale_factor": 2.0, "mode": "bilinear", "align_corners": True}
      return resize(x, **options) if self.doubles else x

  class Branch(nn.Module):
    def __init__(self, doublings):
      super().__init__()
      first = ConvNorm(256, doublings > 0)
      self.block = nn.Sequential(first, *(ConvNorm(128, True) for _ in range(doublings - 1)))

    def forward(self, x):
      return self.block(x)

  class Decoder(nn.Module):
    def __init__(self, channels):
      super().__init__()
      c2, c3, c4, c5 = channels
      self.p5 = nn.Conv2d(c5, 256, 1)
      self.p4, self.p3, self.p2 = Lateral(c4), Lateral(c3), Lateral(c2)
      self.seg_blocks = nn.ModuleList(Branch(n) for n in (3, 2, 1, 0))
      self.dropout = nn.Dropout2d(0.2, inplace=True)

    def forward(self, maps):
      c2, c3, c4, c5 = maps
      pyramid = [self.p5(c5)]
      for lateral, skip in ((self.p4, c4), (self.p3, c3), (self.p2, c2)):
        pyramid.append(lateral(pyramid[-1], skip))
      parts = [branch(x) for branch, x in zip(self.seg_blocks, pyramid, strict=True)]
      return self.dropout(torch.stack(parts).sum(0))

  class Fpn(nn.Module):
    def __init__(self):
      super().__init__()
      self.encoder = Encoder()
      self.decoder = Decoder(self.encoder.channels)
      upsample = nn.Upsample(scale_factor=4.0, mode="bilinear", align_corners=True)
      self.segmentation_head = nn.Sequential(nn.Conv2d(128, classes, 1), upsample)

    def forward(self, image):
      return self.segmentation_head(self.decoder(self.encoder(image)))

  return Fpn()


def tsm(*, in_channels, outputs, n_segment, hidden=(), width=1.0):
  """Temporal-shift MobileNetV2 with random weights.

  torchvision's MobileNetV2 with the layers and names of the public TSM code (Lin et al., "TSM"):
  `base_model.features.N.conv.0.net` is the first convolution of a shifted block, `new_fc` the head.

  Args:
    in_channels: channels of a frame.
    outputs: numbers per clip.
    n_segment: N, frames of a clip.
    hidden: sizes of the ReLU layers before the last linear layer.
    width: factor on every channel count.

  Returns:
    A `torch.nn.Module` that maps clips [B, N, in_channels, H, W] to outputs [B, outputs].

  Raises:
    UserError: torch or torchvision is not installed.
  """
  torch = import_torch()
  import torchvision

  nn = torch.nn

  class TemporalShift(nn.Module):
    """`net` on frames whose first eighth of channels is the next one's, the second the last's."""

    def __init__(self, net):
      super().__init__()
      self.net = net

    def forward(self, x):
      clip = x.unflatten(0, (-1, n_segment))
      fold = x.shape[1] // 8
      # Written into, and not concatenated: so it stays channels last where it was.
      shifted = torch.zeros_like(clip)
      shifted[:, :-1, :fold] = clip[:, 1:, :fold]
      shifted[:, 1:, fold : 2 * fold] = clip[:, :-1, fold : 2 * fold]
      shifted[:, :, 2 * fold :] = clip[:, :, 2 * fold :]
      return self.net(shifted.flatten(0, 1))

  class Classifier(nn.Module):
    def __init__(self):
      super().__init__()
      base = torchvision.models.mobilenet_v2(weights=None, width_mult=width)
      first = base.features[0]
      first[0] = nn.Conv2d(in_channels, first[0].out_channels, 3, 2, 1, bias=False)
      # As torchvision: the kernel that was replaced was not the default either.
      nn.init.kaiming_normal_(first[0].weight, mode="fan_out")
      for block in base.features[1:-1]:
        parts = [part if isinstance(part, nn.Sequential) else [part] for part in block.conv]
        block.conv = nn.Sequential(*(layer for part in parts for layer in part))
        # The first block has no expansion and no shift, even at widths where it is residual.
        if block.use_res_connect and len(block.conv) == 8:
          block.conv[0] = TemporalShift(block.conv[0])
      base.classifier = nn.Identity()
      self.base_model = base
      sizes = (base.last_channel, *hidden, outputs)
      head = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
      layers = [layer for linear in head[:-1] for layer in (linear, nn.ReLU())]
      self.new_fc = nn.Sequential(*layers, head[-1]) if hidden else head[0]

    def forward(self, clip):
      # The features are averaged, not the outputs: with hidden layers that is not the same.
      features = self.base_model(clip.flatten(0, 1))
      return self.new_fc(features.unflatten(0, (-1, n_segment)).mean(1))

  return Classifier()
