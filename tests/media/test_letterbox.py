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
@pytest.mark.parametrize("nearest", [True, False])
def test_box_is_centred_keeps_the_aspect_and_the_rest_is_0(shape, size, box, nearest):
  image, valid = letterbox(np.full(shape, 200, np.uint8), *size, nearest=nearest)
  top, left, bottom, right = box
  expected = np.zeros(size, np.uint8)
  expected[top:bottom, left:right] = 200
  assert valid == box
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize(("width", "dtype"), [(32, np.uint8), (96, np.float32), (24, np.float32)])
def test_a_ramp_stays_a_ramp_with_half_pixel_centres(width, dtype, nearest):
  w, slope = 48, 5
  ramp = np.tile(np.arange(w, dtype=dtype) * slope, (w, 1))
  across, _ = letterbox(ramp, width, width, nearest=nearest)
  down, _ = letterbox(np.ascontiguousarray(ramp.T), width, width, nearest=nearest)
  expected = slope * ((np.arange(width) + 0.5) * w / width - 0.5)
  inner = slice(4, -4)  # at the border there is nothing to interpolate with
  # The nearest is half a pixel of the ramp away at most.
  apart = 0.51 + nearest * slope / 2
  np.testing.assert_allclose(across[0, inner], expected[inner], atol=apart)
  np.testing.assert_array_equal(across, down.T)


def line(width, at, angle):
  """A line of `width` pixels across 1080 x 1080, painted with 60 % and, above it, with 100 %."""
  y, x = np.mgrid[:1080, :1080]
  across = (y - at) * np.cos(angle) + (x - 540) * np.sin(angle)
  return np.where((across >= 0) & (across < width), np.where(x < 540, 153, 255), 0).astype(np.uint8)


@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_thin_lines_keep_their_share_at_every_threshold(width, size):
  generator = np.random.default_rng(width)
  shares = []
  for i in range(24):
    mask = line(width, generator.uniform(300, 780), generator.uniform(0.1, 0.5) * (-1) ** i)
    shrunk, _ = letterbox(mask, size, size, nearest=True)
    # No confidence but those that were painted.
    assert set(np.unique(shrunk)) <= {0, 153, 255}
    scale = (1080 / size) ** 2
    shares.append([scale * (shrunk >= v).sum() / (mask >= v).sum() for v in (255, 153, 1)])
  at_100, at_60, above_0 = np.mean(shares, axis=0)
  # The mean over lines; with few pixels of a line one more or less counts.
  assert abs(above_0 - 1) < 0.1 and at_60 == above_0
  assert abs(at_100 - 1) < 0.15


def test_the_nearest_pixels_have_half_pixel_centres():
  mask = np.arange(32, dtype=np.uint8)[None].repeat(32, 0)
  # Of 4 pixels the centre lies between the second and the third.
  np.testing.assert_array_equal(letterbox(mask, 8, 8, nearest=True)[0][0], np.arange(8) * 4 + 2)
  np.testing.assert_array_equal(
    letterbox(mask, 64, 64, nearest=True)[0][0], np.repeat(np.arange(32), 2)
  )


@pytest.mark.parametrize("nearest", [True, False])
def test_native_size_is_exact(nearest):
  image = np.random.default_rng(0).integers(0, 256, (24, 32)).astype(np.uint8)
  for values in (image, image.astype(np.float32) / np.float32(255) * 255):
    np.testing.assert_array_equal(letterbox(values, 24, 32, nearest=nearest)[0], image)
