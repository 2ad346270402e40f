"""Soft labels from hard ones: borders become uncertain, the inside does not."""

import jax
import jax.numpy as jnp
import numpy as np


def spatially_varying(labels, *, kernel_size=3, sigma=1.0) -> jax.Array:
  """Spatially varying label smoothing, each class as a binary label of its own.

  A Gaussian kernel whose centre is set to the sum of its neighbours' weights, so that a pixel
  weighs as much as all of its neighbours together, and normalized. The picture's border is
  replicated; letterbox around a frame counts as background.
  Source: Islam & Glocker, Information Processing in Medical Imaging 2021 (arXiv 2104.05788).

  Args:
    labels: [B, H, W, K], in [0, 1].
    kernel_size: odd, in pixels.
    sigma: of the Gaussian, in pixels.

  Returns:
    float32 in [0, 1], [B, H, W, K].

  Raises:
    ValueError: `kernel_size` is even or below 3.
  """
  if kernel_size < 3 or kernel_size % 2 == 0:
    raise ValueError(f"kernel_size is {kernel_size}; it has to be odd and at least 3")
  labels = jnp.asarray(labels, jnp.float32)
  radius = kernel_size // 2
  weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
  weights /= weights.sum()
  # All but the centre of the kernel is separable: shifted sums, along one axis after the other.
  blurred = labels
  for axis in (1, 2):
    padding = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
    padded = jnp.pad(blurred, padding, mode="edge")
    size = labels.shape[axis]
    blurred = sum(
      np.float32(w) * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i, w in enumerate(weights)
    )
  centre = weights[radius] ** 2
  neighbours = 1 - centre
  # Rounding must not leave [0, 1], which losses rely on.
  return jnp.clip((blurred + np.float32(neighbours - centre) * labels) / (2 * neighbours), 0, 1)
