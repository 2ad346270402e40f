"""What all masks of a set together say that no single one does."""

import collections
import dataclasses

import numpy as np
from absl import logging

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import scan_area

# A larger share of a mask outside of the scan area is no slip of the brush.
_OUTSIDE = 0.01


@dataclasses.dataclass
class _Seen:
  count: int = 0
  largest: float = 0.0
  # Of the mask that shows least.
  share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Mask:
  """What one mask shows, without its pixels.

  Attributes:
    name: its class.
    person: who drew it; '' is unknown.
    largest: of its values, in [0, 1].
    share: the mean of its values; 0 where its background is told by more than these.
    binary: whether they are all 0 or 1.
  """

  name: str
  person: str
  largest: float
  share: float
  binary: bool


def measure(mask, name, person, *, may_be_inverted=True):
  """Measures a mask.

  Args:
    mask: [h, w] in [0, 1].
    name: its class.
    person: who drew it; '' is unknown.
    may_be_inverted: whether its background is told by its values alone.

  Returns:
    A `Mask`, for `MaskCheck.count`.
  """
  return Mask(
    name,
    person,
    largest=float(mask.max()),
    share=float(mask.mean()) if may_be_inverted else 0.0,
    binary=bool(np.isin(mask, (0, 1)).all()),
  )


def warn_of_outside(path, mask, area, where=""):
  """Warns of a mask of which more than a little lies outside of the scan area.

  Args:
    path: of it.
    mask: [h, w], whole.
    area: (top, left, bottom, right), half-open; None: the whole frame.
    where: what else to name beside it.
  """
  painted = np.count_nonzero(mask) if area is not None else 0
  if painted and (share := 1 - np.count_nonzero(scan_area.crop(mask, area)) / painted) > _OUTSIDE:
    notices.warn(
      "%s: %.0f %% of what is painted lies outside of the scan area and is cropped away; mend "
      "scan_area, or the mask.",
      f"{path}{where}",
      100 * share,
    )


def warn_of_lost(path, mask, area, fitted, where=""):
  """Warns of a mask of which nothing is left once it has the size of the network.

  Args:
    path: of it.
    mask: [h, w] in [0, 1], whole.
    area: (top, left, bottom, right), half-open; None: the whole frame.
    fitted: what became of it, [H, W] uint8.
    where: what else to name beside it.
  """
  if fitted.any():
    return
  cut = mask if area is None else scan_area.crop(mask, area)
  if np.rint(255 * cut.max()):
    notices.warn(
      "%s: what is painted is thinner than the %d x %d pixels of the network, and nothing of it is "
      "left; use a larger --config.data.image_size, or paint it wider.",
      f"{path}{where}",
      *fitted.shape,
    )


class MaskCheck:
  """Collects what masks hold, to warn of what is probably not meant.

  Args:
    where: the folder of the set.
    classes: all of its classes.
    who: what the people are called, 'annotator' or 'rater'.
    inverted: what to do where the background is the object.
    maximum: what means 100 % in masks, in the user's word, or None.
  """

  def __init__(self, where, classes, who, inverted, maximum=None):
    self._where, self._who, self._inverted, self._maximum = where, who, inverted, maximum
    self._classes = {name: _Seen() for name in classes}
    self._people = collections.defaultdict(_Seen)
    # Whether all values so far are 0 or 1.
    self.binary = True

  def add(self, mask, name, person, *, may_be_inverted=True):
    """Counts a mask; see `measure`."""
    self.count(measure(mask, name, person, may_be_inverted=may_be_inverted))

  def count(self, mask):
    """Counts what `measure` says of a mask."""
    self.binary = self.binary and mask.binary
    for seen in (self._classes[mask.name], self._people[mask.person]):
      seen.count += 1
      seen.largest = max(seen.largest, mask.largest)
      seen.share = min(seen.share, mask.share)

  @property
  def largest(self):
    """The largest value of all masks so far, in [0, 1]."""
    return max((seen.largest for seen in self._people.values()), default=0.0)

  def warn(self):
    """Warns of classes and people that show nothing, little, or the background.

    Returns:
      The warnings, for those who see results of the set.

    Raises:
      UserError: no mask shows more than 1 of 255, so nothing could be learnt.
    """
    largest = self.largest
    if self._maximum is None and 0 < largest < 1.5 / 255:
      raise UserError(
        f"{self._where}: no mask holds more than 1 of 255; if masks hold 0 and 1, write "
        '"confidence_maximum": 1 into dataset.json, or save them as 0 and 255.'
      )
    found = [*self._of_classes(), *self._of_people(largest)]
    for text in found:
      logging.warning("%s: %s", self._where, text)
    return found

  def _of_classes(self):
    for name, seen in self._classes.items():
      if not seen.largest:
        yield f"no mask shows anything of the class '{name}'."
      elif seen.share > 0.5:
        yield (
          f"more than half of the pixels are object in every mask of the class '{name}'; if that "
          f"is the background, {self._inverted}."
        )

  def _of_people(self, largest):
    if self._maximum is None and largest < 100.5 / 255 and _is_of_8_bits(largest) and largest:
      yield (
        f"the largest value of all masks is {255 * largest:.0f} of 255, which is "
        f'{100 * largest:.0f} %; if masks hold percentages, write "confidence_maximum": 100 into '
        "dataset.json."
      )
    for person, seen in self._people.items():
      if not person or seen.largest >= largest / 2:
        continue
      if not seen.largest:
        yield f"all {seen.count} mask(s) of the {self._who} '{person}' are empty."
      else:
        yield (
          f"the masks of the {self._who} '{person}' reach {100 * seen.largest:.1f} % at most, "
          f"those of others {100 * largest:.0f} %"
          + ("." if _is_of_8_bits(seen.largest) else "; values of 12 bits in files of 16?")
        )


def _is_of_8_bits(value):
  """Whether a confidence is a whole number of 255; of 16 bits one in 257 is."""
  return abs(255 * value - round(255 * value)) < 1e-3
