"""What the numbers of a mask mean: how much of 100 % each is."""

import numpy as np
from scipy import ndimage

from lus_jax import notices
from lus_jax.errors import UserError

# A slope or a float of 32 bits makes a label 1.00000004.
_ROUNDING = 1e-3


def whole(values):
  """Replaces values within .001 of a whole number by it; integers are returned as they are."""
  if values.dtype.kind != "f":
    return values
  nearest = np.rint(values)
  return np.where(np.abs(values - nearest) <= _ROUNDING, nearest, values)


def ask(values):
  """What to write where a mask's scale cannot be known, from what it holds: text for messages."""
  levels, high = np.unique(values[values > 0]), values.max(initial=0)
  likely = "1" if high <= 1 else "100 or 255"
  if levels.size == 1 and high > 1:
    likely = f"{high:g}"
  elif high > 255:
    likely = next((f"{top} or 65535" for top in (4095, 32767) if high <= top), "65535")
  return (
    f'write the number that means 100 % into dataset.json, as "confidence_maximum": {likely} '
    "(importing: --confidence-maximum)"
  )


def fractions(values, path, *, full=None, maximum=None, binary=False):
  """Divides a mask by what means 100 %: the user's word, else what its type can hold.

  A file's own largest value never is the scale: a mask whose strongest stroke is 60 % stays so.
  Where the type says nothing (floats, integers of more than 8 bits), values up to 1 are fractions
  and up to 255 a scale of 255, with a warning; the others, and those a percentage could be, are
  refused until the user says, as are 16-bit pictures that hold no more than 12 bits.

  Args:
    values: [h, w], any numbers.
    path: of the mask, for errors.
    full: the greatest value of the file's pixel type, where that means 100 %.
    maximum: what means 100 %, in the user's word; files whose type cannot hold it keep their own.
    binary: whether the mask has to be 0 and `full` (1 where there is none): then nothing is guessed
      or refused, and the caller looks at what is neither.

  Returns:
    float32 [h, w] in [0, 1].

  Raises:
    UserError: the scale cannot be known, or a value is outside of it.
  """
  if values.dtype.kind == "b":
    return values.astype(np.float32)
  if values.dtype.kind not in "iuf":
    raise UserError(f"{path} holds colours or complex numbers; save one grey value a pixel.")
  if not np.isfinite(values).all():
    raise UserError(f"{path} holds values that are not finite; replace them by a number.")
  values = whole(values)
  if binary and maximum is None:
    return values.astype(np.float32) / np.float32(full or 1)
  low, high = values.min(), values.max()
  holds = np.inf if values.dtype.kind == "f" else full or np.iinfo(values.dtype).max
  by_user = maximum is not None and holds >= maximum
  scale = maximum if by_user else _scale(values, high, path, full)
  if low < 0 or high > scale:
    wrong = low if low < 0 else high
    reason = f"which is more than {scale:g}, its 100 %" if wrong > 0 else "which is below 0"
    raise UserError(
      f"{path} holds values that are no confidence: {wrong:g}, {reason}; mend the mask"
      f"{', or confidence_maximum in dataset.json' if by_user else f', or {ask(values)}'}."
    )
  return values.astype(np.float32) / np.float32(scale)


def _scale(values, high, path, full):
  """Returns what means 100 % in a file of this type with this largest value."""
  dtype = values.dtype
  if full == 1 or dtype == np.uint8 or full not in (None, 65535):
    return full or 255  # 8 bits, or what a TIFF of 12 bits says
  if high <= 0 or (dtype.kind == "f" and high <= 1):
    return 1
  if full is None and 100 < high <= 255:
    notices.warn(
      "%s: its values are %s up to %g; 255 is taken for 100 %%. If that is wrong, "
      'write "confidence_maximum" into dataset.json.',
      path,
      dtype,
      high,
    )
    return 255
  if dtype == np.uint16 and high > 4095:
    return 65535
  raise UserError(
    f"{path} holds values that are no confidence without a scale, {dtype} up to {high:g}; "
    f"{ask(values)}."
  )


def without_jpeg_noise(values, path, *, is_jpeg):
  """Sets a mask of black and white that went through JPEG back to 0 and 255, with a warning.

  JPEG leaves values near 0 and near 255 within a few pixels of each edge, fewer the farther they
  are, and rounds whole areas to 1 or 254; a mask of real values between is left alone, and warned
  of if its file is a JPEG, or looks like one that it cannot be told from.

  Args:
    values: [h, w] uint8.
    path: of the mask, for the warning.
    is_jpeg: whether the file is a JPEG, not one that was made from it.

  Returns:
    [h, w] uint8.
  """
  distance = np.minimum(values, 255 - values)
  n_between = int((distance > 0).sum())
  if not n_between:
    return values
  if _is_noise(values, distance, is_jpeg, 32 if is_jpeg else 20):
    notices.warn(
      "%s: %d of %d pixels are nearly black or nearly white, as JPEG leaves them; they are set to "
      "0 and 255. Save masks as PNG from the start.",
      path,
      n_between,
      values.size,
    )
    return np.where(values > 127, np.uint8(255), np.uint8(0))
  if is_jpeg:
    notices.warn("%s: JPEG changes the values of masks; save them as PNG.", path)
  elif (values.max() > 127 and 2 * (distance == 1).sum() > n_between) or _is_noise(
    values, distance, is_jpeg, 32
  ):
    notices.warn(
      "%s: %d of %d pixels are neither 0 nor 255, and look like what JPEG leaves; they are kept. "
      "If they are no confidences, set them to 0 and 255.",
      path,
      n_between,
      values.size,
    )
  return values


def _is_noise(values, distance, is_jpeg, most):
  """Whether all that is between is noise; `most` bounds the median distance of what is not 1."""
  low, high = values.min(), values.max()
  edge = distance[distance > 1]
  if not edge.size and (low > 1 or high < 254):
    # An empty or full mask; of 0 and 1 it is something else.
    return is_jpeg and low == high
  # Whoever numbers classes 1 and 2 and ignores 255 has no 254.
  few = len(np.unique(values)) < 8
  if not is_jpeg and few and (max(edge, default=1) > 4 or not np.isin((1, 254), values).all()):
    return False
  if not edge.size:
    return True
  # Measured on binary masks of qualities 30 to 100: at most 6 % are farther than 64, of blurred and
  # resized ones at least 17 %; half are within 20, but for small dots within 32.
  if (edge > 64).mean() > 0.1 or np.median(edge) > most:
    return False
  # Blocks are 8 x 8 pixels: noise lies within 7 of a pixel that is black and one that is white.
  low, high = (
    f(values, size=15, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter)
  )
  return bool((((low <= 64) & (high >= 191)) | (distance <= 1)).all())
