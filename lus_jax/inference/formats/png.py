"""A PNG for every frame and class, of 8 or 16 bits, and for every frame one in colours."""

import io

import numpy as np
from PIL import Image

from lus_jax import palette
from lus_jax.inference.formats import whole


class Writer(whole.Writer):
  """`<target>/<frame>/<class>.png`, 255 = probability 1."""

  def begin(self, path, stack):
    """Makes the folder."""
    self._folder = path
    path.mkdir()

  def add(self, number, image, maps):
    """Writes a folder of the frame's maps [h, w, K]."""
    folder = self._folder / f"{number:06d}"
    folder.mkdir()
    for k, name in enumerate(self.head.classes):
      save(folder / f"{name}.png", self._pixels(maps[..., k]))

  def _pixels(self, values):
    return values


class Writer16(Writer):
  """Like `Writer`, in 16 bits: 65535 = probability 1."""

  dtype = np.float32

  def _pixels(self, values):
    return np.rint(65535 * values).astype(np.uint16)


class Overlays(whole.Writer):
  """`<target>/<frame>.png`: the whole frame, over it each class as opaque as it is probable."""

  def begin(self, path, stack):
    """Makes the folder."""
    self._folder = path
    path.mkdir()

  def add(self, number, image, maps):
    """Writes the frame [h, w] with its maps [h, w, K]."""
    overlay = palette.overlay(image, maps / np.float32(255))
    save(self._folder / f"{number:06d}.png", overlay)


def save(file, pixels):
  """Writes a PNG of pixels [h, w] or [h, w, 3]."""
  buffer = io.BytesIO()
  # A third of the default level's time, for a tenth more bytes.
  Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
  file.write_bytes(buffer.getvalue())
