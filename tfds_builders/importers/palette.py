"""Pictures and masks of class indices, grey or with a palette, of the same names."""

import pathlib

import numpy as np

from lus_jax.errors import UserError
from lus_jax.media import readers, stills
from tfds_builders import tables
from tfds_builders.importers import folder, options
from tfds_builders.importers.source import Clip, Label, Source

HELP = "masks of class indices, grey or with a palette"


def add_options(command):
  """Adds its options to a parser."""
  command.add_argument("--images", type=pathlib.Path, required=True, help="folder of pictures")
  command.add_argument("--masks", type=pathlib.Path, required=True, help="folder of masks")
  command.add_argument(
    "--classes", type=options.names, required=True, help="names of index 1, 2, ..."
  )
  command.add_argument("--ignore", type=int, help="index of pixels that count nowhere, as 255")


class _Indices:
  """Reads masks of indices, of which those of one set are alike."""

  def __init__(self, classes, ignore):
    self._classes, self._ignore = classes, ignore
    self._ones = self.full = None
    # Indices that occur in any mask, and whether pixels that do not count do.
    self.seen, self.has_ignored = set(), False

  def check(self, path):
    """Reads a mask, and refuses one that does not fit the others (`UserError`)."""
    indices, ignored = self._read(path)
    self.has_ignored |= bool(ignored.any())
    values = set(np.unique(indices).tolist()) - {0}
    if len(self._classes) == 1 and values == {255}:
      self.full = self.full or path
    elif values:
      self._ones = self._ones or path
      if max(values) > len(self._classes):
        raise UserError(
          f"{path} has index {max(values)}, but --classes names {len(self._classes)} (index 1 is "
          f"the first); name all of them, or say --ignore {max(values)} if its pixels are not to "
          "count."
        )
    self.seen |= values
    if self.full and self._ones:
      raise UserError(
        f"{self.full} holds 0 and 255 and {self._ones} indices from 1; save them alike."
      )
    return indices.shape

  def _read(self, path):
    with stills.opened(path) as image:
      if image.mode in ("RGB", "RGBA"):
        raise UserError(
          f"{path} has pixels of type {image.mode}; if its colours are classes, import it with "
          "masks --colours, else save it in grey or with a palette."
        )
    indices = readers.read_indices(path)
    ignored = np.zeros(indices.shape, bool) if self._ignore is None else indices == self._ignore
    return np.where(ignored, 0, indices), ignored

  def draw(self, path):
    """The masks of one file: uint8 [h, w] by class, and of what does not count."""
    indices, ignored = self._read(path)
    if self.full:
      indices = np.minimum(indices, 1)
    found = {name: indices == i for i, name in enumerate(self._classes, start=1)}
    found[tables.IGNORE] = ignored
    return {name: np.where(mask, np.uint8(255), np.uint8(0)) for name, mask in found.items()}


def find(*, images, masks, classes, ignore=None):
  """Reads images and palette masks of the same names.

  Args:
    images: a folder of pictures; each becomes a video of one frame.
    masks: a folder of palette (or 8-bit grey) masks: index 0 is background, i + 1 is class i. With
      one class, masks of 0 and 255 are understood too.
    classes: K names.
    ignore: the index of pixels that count nowhere; None: there is none.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  folder.check_names(classes, ())
  if ignore is not None and not len(classes) < ignore <= 255:
    raise UserError(
      f"--ignore={ignore} must be an index above those of --classes ({len(classes)}), at most 255."
    )
  image_of, image_notes = folder.find_pictures(images, "--images")
  mask_of, mask_notes = folder.find_pictures(masks, "--masks")
  for stem in sorted(image_of.keys() ^ mask_of.keys()):
    there, lacking = (image_of, masks) if stem in image_of else (mask_of, images)
    raise UserError(f"{there[stem]} has no partner in {lacking}; add it, or take both away.")
  tables.refuse_same_files(image_of.values())
  reader = _Indices(classes, ignore)
  source = Source(
    clips={stem: Clip(stem, path) for stem, path in image_of.items()},
    labels=[
      Label(stem, 0, lambda media, path=path: reader.draw(path)) for stem, path in mask_of.items()
    ],
    classes=list(classes),
    notes=[*image_notes, *mask_notes],
  )
  for stem, path in mask_of.items():
    source.media[stem] = readers.probe_still(image_of[stem])
    readers.check_mask_size(path, reader.check(path), source.media[stem], of="image")
  if reader.full:
    source.notes.append(f"Masks hold 0 and 255: 255 is taken to be {classes[0]}.")
  if reader.has_ignored and not reader.seen:
    raise UserError(
      f"{masks} holds masks of 0 and {ignore} only, so that --ignore={ignore} leaves nothing of "
      f"{', '.join(classes)}; if {ignore} is the object, leave --ignore out."
    )
  return source
