"""Images and masks of one frame each, PNG or NIfTI."""

import numpy as np
from absl import logging

from lus_jax.errors import UserError
from tfds_builders import media

_NIFTI = (".nii.gz", ".nii")
SUFFIXES = (*_NIFTI, ".png")


def stem(path):
  """A picture's name without its suffix; None if it is neither PNG nor NIfTI."""
  for suffix in SUFFIXES:
    if path.name.lower().endswith(suffix):
      return path.name[: -len(suffix)]
  return None


def is_nifti(path):
  """Whether the name says NIfTI."""
  return path.name.lower().endswith(_NIFTI)


def image_size(path):
  """Reads an image's (height, width) from its header.

  Raises:
    UserError: it is damaged, or a NIfTI with a third axis.
  """
  if is_nifti(path):
    return media.nifti_size(path)
  header = media.probe(path)
  return header.height, header.width


def mask_size(path, *, indices):
  """Reads a mask's (height, width) from its header; `indices` allows a palette PNG.

  Raises:
    UserError: it is damaged, a NIfTI with a third axis, or a PNG of colours.
  """
  return media.nifti_size(path) if is_nifti(path) else media.mask_size(path, palette=indices)


def read_image(path):
  """Reads an image as grey values: uint8 [h, w].

  A NIfTI that is not uint8 is windowed from its 0.5th to its 99.5th percentile, as scanners' values
  have no common scale.

  Raises:
    UserError: it is damaged, or a value is not finite.
  """
  if not is_nifti(path):
    return media.read(media.probe(path))[0]
  values = media.read_nifti(path)
  if values.dtype == np.uint8:
    return values
  if not np.isfinite(values).all():
    raise UserError(f"{path} holds values that are not finite; replace them by a number.")
  low, high = np.percentile(values, (0.5, 99.5))
  return np.rint(np.interp(values, (low, high), (0, 255))).astype(np.uint8)


def _read_fractions(path, *, soft):
  """Reads a mask's values over their maximum: that of the type, or 1 in a NIfTI of 0 and 1."""
  if not is_nifti(path):
    return media.read_mask(path)
  values = media.read_nifti(path)
  whole = soft and np.issubdtype(values.dtype, np.integer)
  return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max if whole else 1)


def read_mask(path, *, polarity="white", soft=False):
  """Reads what a rater drew of one class: float32 [h, w] in [0, 1], the object is 1.

  Args:
    path: PNG or NIfTI.
    polarity: 'black' if the object is 0 in PNG files.
    soft: whether values between are confidences (value / maximum of the type), not mistakes.

  Raises:
    UserError: it is damaged, or holds values it must not.
  """
  mask = _read_fractions(path, soft=soft)
  if not soft and not np.isin(mask, (0, 1)).all():
    wrong = int((~np.isin(mask, (0, 1))).sum())
    expected = "0 and 1" if is_nifti(path) else "0 and the maximum of the type (255 of 8 bits)"
    raise UserError(
      f"{path}: {wrong} of {mask.size} pixels are neither background nor object; masks hold "
      f'{expected} only, unless dataset.json has "soft": true or "labels".'
    )
  if not ((mask >= 0) & (mask <= 1)).all():
    raise UserError(f"{path} holds values that are no confidence; store 0 to 1, or 0 to 255.")
  if 0 < mask.max() <= np.float32(1 / 255):
    logging.warning(
      "%s: its largest confidence is %.4f; a mask of 0 and 1 should be one of 0 and 255.",
      path,
      mask.max(),
    )
  return 1 - mask if polarity == "black" and not is_nifti(path) else mask


def read_indices(path, indices):
  """Reads a mask of label indices: integers [h, w].

  Args:
    path: PNG (grey or palette) or NIfTI.
    indices: those that may occur, beside 0.

  Raises:
    UserError: it is damaged, or holds another value.
  """
  values = media.read_nifti(path) if is_nifti(path) else media.read_indices(path)
  unknown = np.setdiff1d(values, [0, *indices])
  if unknown.size:
    raise UserError(
      f"{path} holds the value {unknown[0]:g}, but 'labels' of dataset.json knows "
      f"{', '.join(str(index) for index in sorted(indices))} (and 0 is background); name it there."
    )
  return values
