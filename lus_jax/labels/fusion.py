"""One label from several raters: their mean, the majority, or STAPLE's estimate.

A rater that did not draw an image has drawn = False; its mask counts nowhere. A rater's binary mask
is value >= .5 (128 of 255).
"""

import jax
import jax.numpy as jnp
import numpy as np


def _share(values, drawn):
  """Mean over the drawn raters (axis -4); 0 where there are none."""
  drawn = jnp.asarray(drawn, bool)[..., None, None, None]
  total = jnp.sum(jnp.where(drawn, values, 0), axis=-4)
  return total / jnp.maximum(jnp.sum(drawn, axis=-4, dtype=jnp.float32), 1)


def mean(raters, drawn) -> jax.Array:
  """Mean of the drawn raters' values, a soft label (Silva & Oliveira, arXiv 2109.12622).

  Args:
    raters: [..., R, H, W, K], in [0, 1].
    drawn: [..., R] bool.

  Returns:
    float32, [..., H, W, K]; 0 where no rater drew.
  """
  return _share(jnp.asarray(raters, jnp.float32), drawn)


def majority(raters, drawn) -> jax.Array:
  """What more than half of the drawn raters' binary masks show; a tie is 0.

  Args:
    raters: [..., R, H, W, K], in [0, 1].
    drawn: [..., R] bool.

  Returns:
    0 or 1 as float32, [..., H, W, K]; 0 where no rater drew.
  """
  votes = (jnp.asarray(raters, jnp.float32) >= 0.5).astype(jnp.float32)
  return (_share(votes, drawn) > 0.5).astype(jnp.float32)


def staple(raters, drawn, *, box) -> np.ndarray:
  """STAPLE's probability that a pixel belongs to a class, one image, on the host.

  Each class alone, by SimpleITK, from the drawn raters' binary masks inside the valid box: the rest
  of the picture would count as background that all agree on. Where all drawn raters agree on every
  pixel of a class, their mask is the result: STAPLE's is NaN if it is empty or full, and the mask
  itself otherwise (also for a single rater).
  Source: Warfield et al., IEEE Transactions on Medical Imaging 23(7), 2004.

  Args:
    raters: [R, H, W, K], uint8 or float in [0, 1].
    drawn: [R] bool.
    box: the valid pixels, (top, left, bottom, right), half-open.

  Returns:
    float32, [H, W, K]; 0 outside the box, and where no rater drew.
  """
  import SimpleITK

  raters = np.asarray(raters)
  half = 128 if np.issubdtype(raters.dtype, np.integer) else 0.5
  top, left, bottom, right = (int(x) for x in box)
  masks = (raters[np.asarray(drawn, bool), top:bottom, left:right] >= half).astype(np.uint8)
  fused = np.zeros(raters.shape[1:], np.float32)
  if not masks.size:
    return fused
  inside = fused[top:bottom, left:right]
  for k in range(raters.shape[-1]):
    planes = masks[..., k]
    if (planes == planes[0]).all():
      inside[..., k] = planes[0]
    else:
      images = [SimpleITK.GetImageFromArray(plane) for plane in planes]
      inside[..., k] = SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(images, 1.0))
  return fused
