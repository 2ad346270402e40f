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
  soft = mask.astype(np.float32)
  if mask.all() or not mask.any():
    return soft
  # Beyond half the width around what is drawn all is 0; distances of whole frames take long.
  reach = [int(np.ceil(width / 2 / step)) + 1 for step in spacing]
  where = tuple(
    slice(max(0, found.min() - margin), found.max() + margin + 1)
    for found, margin in zip(mask.nonzero(), reach, strict=True)
  )
  mask = mask[where]
  inside = ndimage.distance_transform_edt(mask, sampling=spacing)
  outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
  # To the nearest pixel of the other side; the outline is half a pixel nearer.
  half = min(spacing) / 2
  signed = np.where(mask, inside - half, half - outside)
  soft[where] = np.clip(0.5 + signed / width, 0, 1)
  return soft


def between(inner, outer) -> np.ndarray:
  """Confidence from two contours: full inside the inner one, none outside the outer one.

  Between them it falls with the distances a to the inner and b to the outer contour, b / (a + b):
  50 % midway.

  Args:
    inner: [h, w] bool, what is certain; within `outer`.
    outer: [h, w] bool, what is possible.

  Returns:
    float32 [h, w] in [0, 1].

  Raises:
    ValueError: `inner` is empty or leaves `outer`, so that there is no slope.
  """
  inner, outer = np.asarray(inner, bool), np.asarray(outer, bool)
  if (inner & ~outer).any() or (outer.any() and not inner.any()):
    raise ValueError("the inner contour is empty or leaves the outer one")
  if not outer.any():
    return outer.astype(np.float32)
  # Contours run between pixels, half of one nearer than the pixels beyond.
  to_inner = ndimage.distance_transform_edt(~inner) - 0.5
  # The picture's border is no contour, unless nothing else is.
  padding = int(outer.all())
  to_outer = ndimage.distance_transform_edt(np.pad(outer, padding)) - 0.5
  to_outer = to_outer[padding:, padding:][: outer.shape[0], : outer.shape[1]]
  found, slope = inner.astype(np.float32), outer & ~inner
  found[slope] = to_outer[slope] / (to_inner[slope] + to_outer[slope])
  return found
