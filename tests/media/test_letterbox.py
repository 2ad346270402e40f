import numpy as np
import pytest

from lus_jax.media.letterbox import letterbox


@pytest.mark.parametrize(
  ("shape", "size", "box"),
  [
    ((24, 32), (24, 32), (0, 0, 24, 32)),
    ((24, 32), (64, 64), (8, 0, 56, 64)),
    ((512, 534), (256, 256), (5, 0, 250, 256)),  # 512 x 256 / 534 = 245.4
    ((528, 153), (96, 96), (0, 34, 96, 62)),  # 153 x 96 / 528 = 27.8
    ((1000, 2), (10, 10), (0, 4, 10, 5)),  # never thinner than a pixel
  ],
)
@pytest.mark.parametrize("antialias", [True, False])
def test_box_is_centred_keeps_the_aspect_and_the_rest_is_0(shape, size, box, antialias):
  image, valid = letterbox(np.full(shape, 200, np.uint8), *size, antialias=antialias)
  top, left, bottom, right = box
  expected = np.zeros(size, np.uint8)
  expected[top:bottom, left:right] = 200
  assert valid == box
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("width", "dtype"), [(32, np.uint8), (96, np.float32), (24, np.float32)])
def test_a_ramp_stays_a_ramp_with_half_pixel_centres(width, dtype, antialias):
  w, slope = 48, 5
  ramp = np.tile(np.arange(w, dtype=dtype) * slope, (w, 1))
  across, _ = letterbox(ramp, width, width, antialias=antialias)
  down, _ = letterbox(np.ascontiguousarray(ramp.T), width, width, antialias=antialias)
  expected = slope * ((np.arange(width) + 0.5) * w / width - 0.5)
  inner = slice(4, -4)  # at the border there is nothing to interpolate with
  np.testing.assert_allclose(across[0, inner], expected[inner], atol=0.51)
  np.testing.assert_array_equal(across, down.T)


def test_masks_are_not_antialiased():
  mask = np.zeros((32, 32), np.float32)
  mask[:, 5] = 255  # samples of a 4 x shrink lie at columns 1.5, 5.5, 9.5, ...: half of this line
  mask[:, 16] = 255  # and none of this one
  shrunk, _ = letterbox(mask, 8, 8, antialias=False)
  expected = np.zeros(8, np.uint8)
  expected[1] = 128
  np.testing.assert_array_equal(shrunk, np.tile(expected, (8, 1)))
  assert letterbox(mask, 8, 8)[0][4, 4] > 0


@pytest.mark.parametrize("antialias", [True, False])
def test_native_size_is_exact(antialias):
  image = np.random.default_rng(0).integers(0, 256, (24, 32)).astype(np.uint8)
  for values in (image, image.astype(np.float32) / np.float32(255) * 255):
    np.testing.assert_array_equal(letterbox(values, 24, 32, antialias=antialias)[0], image)
