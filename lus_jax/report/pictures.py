"""Classes over a frame, as images that a page carries in itself."""

import dataclasses
import io

import numpy as np
from PIL import Image

from lus_jax import pages, palette

# Opacities of a picture's layer: fewer compress better, and nobody sees the difference.
_OPACITIES = 16


def png(array):
  """An image, uint8 of [H, W], [H, W, 3] or [H, W, 4], as a data URL."""
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, format="png", optimize=True)
  return pages.data_url(buffer.getvalue(), "png")


@dataclasses.dataclass(frozen=True)
class Picture:
  """A layer of classes over a frame.

  Attributes:
    caption: a few words below.
    alt: what a reader who does not see it should know.
    image: the frame, [H, W] uint8.
    weights: how opaque each class is, [H, W, K] in [0, 1].
  """

  caption: str
  alt: str
  image: np.ndarray
  weights: np.ndarray

  @property
  def layer(self):
    """The classes alone, as a data URL."""
    return png(palette.layer(self.weights))

  def overlaid(self):
    """The classes over the frame: [H, W, 3] uint8."""
    return palette.overlay(self.image, self.weights)


def draw(caption, weights, what, *, image, valid, classes, where):
  """A `Picture` of the valid pixels, whose `alt` says what it shows of which classes.

  Args:
    caption: of the picture.
    weights: how opaque each class is, [H, W, K] in [0, 1].
    what: begins the `alt`.
    image: the frame, [H, W] uint8.
    valid: 1 where a pixel counts, float32 [H, W, K].
    classes: K names.
    where: names the frame in the `alt`.
  """
  weights = np.rint(weights * (valid * _OPACITIES)) / np.float32(_OPACITIES)
  present = [name for k, name in enumerate(classes) if weights[..., k].any()]
  return Picture(caption, f"{what} on {where}: {', '.join(present) or 'no class'}", image, weights)
