"""What all masks of a set together say that no single one does."""

import collections
import dataclasses

from absl import logging


@dataclasses.dataclass
class _Seen:
  count: int = 0
  largest: float = 0.0
  # Of the mask that shows least.
  share: float = 1.0


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

  def add(self, mask, name, person, *, may_be_inverted=True):
    """Counts a mask.

    Args:
      mask: [h, w] in [0, 1].
      name: its class.
      person: who drew it; '' is unknown.
      may_be_inverted: whether its background is told by its values alone.
    """
    largest, share = float(mask.max()), float(mask.mean()) if may_be_inverted else 0.0
    for seen in (self._classes[name], self._people[person]):
      seen.count += 1
      seen.largest = max(seen.largest, largest)
      seen.share = min(seen.share, share)

  def warn(self):
    """Warns of classes and people that show nothing, little, or the background."""
    for name, seen in self._classes.items():
      if not seen.largest:
        logging.warning("%s: no mask shows anything of the class '%s'.", self._where, name)
      elif seen.share > 0.5:
        logging.warning(
          "%s: more than half of the pixels are object in every mask of the class '%s'; if that is "
          "the background, %s.",
          self._where,
          name,
          self._inverted,
        )
    largest = max((seen.largest for seen in self._people.values()), default=0)
    if self._maximum is None and 1.5 / 255 < largest < 100.5 / 255 and _is_of_8_bits(largest):
      logging.warning(
        "%s: the largest value of all masks is %.0f of 255, which is %.0f %%; if masks hold "
        'percentages, write "confidence_maximum": 100 into dataset.json.',
        self._where,
        255 * largest,
        100 * largest,
      )
    for person, seen in self._people.items():
      if not person or seen.largest >= largest / 2:
        continue
      if not seen.largest:
        logging.warning(
          "%s: all %d mask(s) of the %s '%s' are empty.", self._where, seen.count, self._who, person
        )
      else:
        logging.warning(
          "%s: the masks of the %s '%s' reach %.1f %% at most, those of others %.0f %%%s",
          self._where,
          self._who,
          person,
          100 * seen.largest,
          100 * largest,
          "." if _is_of_8_bits(seen.largest) else "; values of 12 bits in files of 16?",
        )


def _is_of_8_bits(value):
  """Whether a confidence is a whole number of 255; of 16 bits one in 257 is."""
  return abs(255 * value - round(255 * value)) < 1e-3
