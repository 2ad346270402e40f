"""Confidence from hard outlines: full inside, none outside, and a slope across the border."""

import numpy as np
from scipy import ndimage


def soften(mask, width, spacing=(1.0, 1.0)) -> np.ndarray:
  """Gives a hard mask a soft border, centred on its outline, where the confidence is 50 %.

  confidence = clip(1/2 + d / width, 0, 1), with d the distance to the outline between the pixels,
  positive inside; the label at 50 % is the mask itself.

  Args:
    mask: [h, w] bool.
    width: of the border, from 0 to 100 %, in the unit of `spacing`.
    spacing: of the pixels: (vertical, horizontal).

  Returns:
    float32 [h, w] in [0, 1].

  Raises:
    ValueError: `width` is not above 0.
  """
  if not width > 0:
    raise ValueError(f"width is {width}; it has to be above 0")
  mask = np.asarray(mask, bool)
  if mask.all() or not mask.any():
    return mask.astype(np.float32)
  inside = ndimage.distance_transform_edt(mask, sampling=spacing)
  outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
  # To the nearest pixel of the other side; the outline is half a pixel nearer.
  half = min(spacing) / 2
  signed = np.where(mask, inside - half, half - outside)
  return np.clip(0.5 + signed / width, 0, 1).astype(np.float32)
