"""Grey values from numbers of more than 8 bits: which become 0 and 255."""

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError

# Between the least and the greatest of a picture that may hold but noise.
_FEW_LEVELS = 16
# Values that become grey together.
_AT_ONCE = 2**22


def choose(values, path):
  """Chooses a window for numbers without a common scale: their 0.5th to 99.5th percentile.

  Where these are equal (nearly all pixels are), it is their least and greatest value, with a
  warning.

  Args:
    values: of one picture or clip, of any shape.
    path: of it, for messages.

  Returns:
    (low, high); equal if there is but one value.

  Raises:
    UserError: a value is not finite.
  """
  if not np.isfinite(values).all():
    raise UserError(f"{path} holds values that are not finite; replace them by a number.")
  low, high = (float(x) for x in np.percentile(values, (0.5, 99.5)))
  if low < high < low + _FEW_LEVELS and values.dtype.kind in "iu":
    notices.warn(
      "%s: it has few levels, %g to %g, which become 0 and 255: is it empty? If its values have a "
      'scale, write "intensity_window": [low, high] into dataset.json.',
      path,
      low,
      high,
    )
  if low == high:
    low, high = float(values.min()), float(values.max())
    notices.warn(
      "%s: it is nearly empty: 99 %% of its pixels are %g; it is windowed from %g to %g.",
      path,
      np.median(values),
      low,
      high,
    )
  return low, high


def of_clip(values, path):
  """Like `choose`, of the pixels of a clip whose header names no window, and says which it is."""
  low, high = choose(values, path)
  notices.warn(
    "%s: its pixels have more than 8 bits and its header no window: %g becomes 0 and %g 255. If "
    'its values have a scale, write "intensity_window": [low, high] into dataset.json.',
    path,
    low,
    high,
  )
  return low, high


def grey(values, window, path):
  """Maps numbers to grey, in parts, as they may be many: uint8 of the same shape.

  Args:
    values: [h, ...], any numbers.
    window: (low, high): what becomes 0 and 255; all is 0 where they are equal.
    path: for the message.

  Raises:
    UserError: a value is not finite.
  """
  low, high = window
  found = np.zeros(values.shape, np.uint8)
  step = max(1, _AT_ONCE * len(values) // max(1, values.size))
  for i in range(0, len(values), step):
    part = values[i : i + step]
    if part.dtype.kind == "f" and not np.isfinite(part).all():
      raise UserError(f"{path} holds values that are not finite; replace them by a number.")
    if low < high:
      found[i : i + step] = np.rint(np.interp(part, (low, high), (0, 255)))
  return found
