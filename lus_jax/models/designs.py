"""The networks that a config can name, and what is known of each before it is built.

Another network is a class here and a line of `SEGMENTATION`.
"""

from jax import numpy as jnp

from lus_jax.errors import UserError
from lus_jax.models import flops, fpn
from lus_jax.models.resnet import DEPTHS

# Maps that a refinement of the decoder keeps for the gradients, by its channels.
FINE_MAPS = 6
# How many times smaller than labels and output what a network sees may be; 0 is 1.
SHRINKS = (0, 1, 2, 4)


class Fpn:
  """The feature pyramid over a ResNet.

  Args:
    config: the `model` part of a run's config (encoder, width, dropout, dtype, perhaps shrink and
      refinements).
  """

  # By encoder, as `sizes`.
  SIZES = {"resnet18": (250, 13.1e6), "resnet34": (320, 23.2e6), "resnet50": (745, 26.2e6)}

  def __init__(self, config):
    self._config = config
    # The config of a run that was begun with an older version lacks them.
    self.shrink = getattr(config, "shrink", 0) or 1
    self.refinements = getattr(config, "refinements", 0)

  @property
  def head_stride(self):
    """How many times smaller than the image its head's logits are."""
    return fpn.head_stride(self.shrink, self.refinements)

  def check(self):
    """Refuses an unknown encoder, or another field out of range (`UserError`)."""
    encoder = self._config.encoder
    if encoder not in DEPTHS:
      raise UserError(
        f"config.model.encoder: '{encoder}' is not known; choose one of {', '.join(DEPTHS)}."
      )
    if self.shrink not in SHRINKS:
      known = ", ".join(map(str, SHRINKS))
      raise UserError(f"config.model.shrink: {self.shrink} is not known; choose one of {known}.")
    if self.refinements not in range(fpn.MOST_REFINEMENTS + 1):
      raise UserError(
        f"config.model.refinements: {self.refinements} is not known; choose a number from 0 to "
        f"{fpn.MOST_REFINEMENTS}."
      )

  @property
  def title(self):
    """What it is called in print."""
    return f"FPN {self._config.encoder}"

  @property
  def sizes(self):
    """At width 1: activations per pixel of an image, and parameters."""
    activations, parameters = self.SIZES[self._config.encoder]
    # Of a refinement: what is reduced, doubled and added, convolved, normalised, and the detail.
    sides = (0.5**i for i in range(fpn.MOST_REFINEMENTS - 1, -1, -1))
    refined = zip(fpn.FINE_CHANNELS[: self.refinements], sides, strict=False)
    activations += sum(FINE_MAPS * channels * side**2 for channels, side in refined)
    return activations / self.shrink**2, parameters

  def flop(self, *, size, in_channels, classes):
    """FLOP of a forward pass over one image [size, size, in_channels] to `classes` logits."""
    return flops.fpn(
      self._config.encoder,
      size=size // self.shrink,
      in_channels=in_channels,
      classes=classes,
      width=self._config.width,
      refinements=self.refinements,
    )

  def build(self, *, in_channels, classes, levels=1, dtype=jnp.float32, rngs):
    """An `nnx.Module` that maps images [B, H, W, in_channels] to logits [B, H, W, levels * K]."""
    return fpn.FPN(
      self._config.encoder,
      in_channels=in_channels,
      classes=classes,
      levels=levels,
      width=self._config.width,
      dropout=self._config.dropout,
      shrink=self.shrink,
      refinements=self.refinements,
      dtype=dtype,
      rngs=rngs,
    )

  def upsample(self, logits, height, width):
    """From its head's logits [B, h, w, K] to the image's size [B, height, width, K]."""
    return fpn.upsample_logits(logits, height, width, self.shrink, self.refinements)


# By the name that `config.model.network` has; configs without one are of the first.
SEGMENTATION = {"fpn": Fpn}


def segmentation(config):
  """The design of the segmentation network that `config.model` names.

  Raises:
    UserError: it is not known.
  """
  name = getattr(config, "network", next(iter(SEGMENTATION)))
  if name not in SEGMENTATION:
    raise UserError(
      f"config.model.network: '{name}' is not known; choose one of {', '.join(SEGMENTATION)}."
    )
  return SEGMENTATION[name](config)
