"""The PyTorch networks that we are measured against and convert weights from.

torch is imported where it is used; the `peers` extra installs it.
"""

import importlib
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
    UserError: torch, torchvision or segmentation_models_pytorch is not installed.
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
    importlib.import_module("segmentation_models_pytorch")
  except ModuleNotFoundError as error:
    raise UserError(
      f"PyTorch's side needs {error.name}, which is not installed; pip install 'lus_jax[peers]'."
    ) from error
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


def fpn(encoder, *, in_channels, classes):
  """segmentation_models_pytorch's FPN with random weights.

  Args:
    encoder: 'resnet18', 'resnet34' or 'resnet50'.
    in_channels: channels of the image.
    classes: K.

  Returns:
    A `torch.nn.Module` that maps images [B, in_channels, H, W] to logits [B, K, H, W]; 32 divides H
    and W. Its dropout is .2 in training.

  Raises:
    UserError: torch or one of its libraries is not installed.
  """
  import_torch()
  import segmentation_models_pytorch

  return segmentation_models_pytorch.FPN(
    encoder, encoder_weights=None, in_channels=in_channels, classes=classes
  )


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
    UserError: torch or one of its libraries is not installed.
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
