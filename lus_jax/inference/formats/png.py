"""A PNG for every frame and class: 8 bits, or 16."""

import contextlib
import io

import numpy as np
from PIL import Image

from lus_jax.media.writers import written


class Writer:
  """Writes a folder of folders: `<target>/<frame>/<class>.png`, 255 = probability 1.

  It is there whole when the `with` ends, or not at all; so are those of all formats.

  Attributes:
    dtype: of the maps that `add` takes: uint8 (255 = 1) or float32 (in [0, 1]).
    paths: what was written, once it is.
  """

  dtype = np.uint8

  def __init__(self, target, clip, head):
    """Begins with nothing written.

    Args:
      target: the path of what is written, without a suffix.
      clip: the `Media` whose frames come.
      head: a `Head`.
    """
    del clip
    self._target, self._head, self.paths = target, head, ()

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      self._folder = stack.enter_context(written(self._target))
      self._folder.mkdir()
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error):
    self._stack.__exit__(*error)
    self.paths = (self._target,)

  def add(self, number, image, maps):
    """Takes the next frame.

    Args:
      number: of the frame, one of `head.frames`, which come in their order.
      image: its grey values [h, w] uint8.
      maps: [h, w, K] of `dtype`.
    """
    del image
    folder = self._folder / f"{number:06d}"
    folder.mkdir()
    for k, name in enumerate(self._head.classes):
      save(folder / f"{name}.png", self._pixels(maps[..., k]))

  def _pixels(self, values):
    return values


class Writer16(Writer):
  """Like `Writer`, in 16 bits: 65535 = probability 1."""

  dtype = np.float32

  def _pixels(self, values):
    return np.rint(65535 * values).astype(np.uint16)


def save(file, pixels):
  """Writes a PNG of pixels [h, w] or [h, w, 3]."""
  buffer = io.BytesIO()
  # A third of the default level's time, for a tenth more bytes.
  Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
  file.write_bytes(buffer.getvalue())
