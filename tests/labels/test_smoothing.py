import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lus_jax.labels.smoothing import spatially_varying


def _kernel(size, sigma):
  radius = size // 2
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
  kernel[radius, radius] = 0
  kernel[radius, radius] = kernel.sum()
  return kernel / kernel.sum()


@pytest.mark.parametrize(("size", "sigma"), [(3, 1.0), (3, 0.5), (5, 2.0)])
def test_it_is_a_convolution_with_replicated_borders(size, sigma):
  labels = np.random.default_rng(0).random((2, 9, 7, 3)) < 0.4
  found = spatially_varying(labels, kernel_size=size, sigma=sigma)
  assert found.dtype == jnp.float32
  for i, k in np.ndindex(2, 3):
    expected = ndimage.convolve(
      labels[i, ..., k].astype(np.float64), _kernel(size, sigma), mode="nearest"
    )
    np.testing.assert_allclose(found[i, ..., k], expected, atol=1e-6)


def test_the_centre_weighs_half():
  labels = np.zeros((1, 5, 5, 1), np.float32)
  labels[0, 2, 2] = 1
  found = np.asarray(jax.jit(spatially_varying)(labels))[0, ..., 0]
  assert found[2, 2] == pytest.approx(0.5, abs=1e-6)
  assert found.sum() == pytest.approx(1, abs=1e-6)
  assert found[1, 2] == pytest.approx(0.5 / (4 + 4 * np.exp(-0.5)), abs=1e-6)
  assert not found[[0, 4]].any()


def test_flat_labels_stay():
  np.testing.assert_allclose(spatially_varying(np.ones((1, 4, 4, 2))), 1, atol=1e-6)
  np.testing.assert_array_equal(spatially_varying(np.zeros((1, 4, 4, 2))), np.zeros((1, 4, 4, 2)))


def test_rounding_stays_within_probabilities():
  labels = np.random.default_rng(1).random((1, 64, 64, 1)) < 0.99
  found = np.asarray(spatially_varying(labels))
  assert found.min() >= 0
  assert found.max() <= 1


@pytest.mark.parametrize("size", [1, 4])
def test_a_kernel_needs_a_centre_and_neighbours(size):
  with pytest.raises(ValueError, match=f"kernel_size is {size}"):
    spatially_varying(np.zeros((1, 4, 4, 1)), kernel_size=size)
