"""What predictions are written as: a module a format.

Each has a class that writes one clip's maps of one member, a frame at a time, in memory that does
not grow with their number: see `png.Writer`, whose methods and attributes all of them have.
"""

from typing import NamedTuple

from lus_jax.inference.formats import png


class Format(NamedTuple):
  """A format: its class, and the folder that its files go to, as `<folder>/<member>...`.

  `writer(target, clip, head)` is a context manager with `dtype`, `add` and `paths`.
  """

  writer: type
  folder: str


# By the word that users write.
FORMATS = {
  "png": Format(png.Writer, ""),
  "png16": Format(png.Writer16, "png16"),
}
