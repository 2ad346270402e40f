"""Reads what an annotator painted on a frame, at the frame's own size."""

import numpy as np

from lus_jax import notices
from lus_jax.media import readers
from tfds_builders.mask_check import MaskCheck


def mask_check(folder):
  """What collects the masks of a `manifest.Folder`, to warn of them together."""
  maximum = folder.confidence_maximum
  return MaskCheck(folder.directory, folder.classes, "annotator", "invert the masks", maximum)


def confidence(path, maximum):
  """Reads what was painted of a class, with a warning where it looks like 0 and 1.

  Args:
    path: of the mask.
    maximum: what means 100 %, `confidence_maximum` of the folder.

  Returns:
    float32 [h, w] in [0, 1].

  Raises:
    UserError: the mask is damaged, or no confidence.
  """
  mask = readers.read_mask(path, maximum=maximum)
  if 0 < mask.max() <= np.float32(1 / 255):
    notices.warn(
      "%s: its largest confidence is %.4f; a mask of 0 and 1 should be one of 0 and 255.",
      path,
      mask.max(),
    )
  return mask


def ignored(label):
  """Reads where nothing counts, with warnings where it looks wrong: [h, w] bool; None: nowhere.

  Raises:
    UserError: the mask is damaged.
  """
  if label.ignore is None:
    return None
  mask = readers.read_mask(label.ignore, binary=True)
  found = mask > mask.max() / 2
  if not np.isin(mask, (0, mask.max())).all():
    notices.warn("%s: its values between are cut at half of its largest.", label.ignore)
  if found.all():
    notices.warn("%s: none of its pixels is 0, so that its frame counts nowhere.", label.ignore)
  return found
