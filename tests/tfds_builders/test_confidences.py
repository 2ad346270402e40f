import io

import numpy as np
import pytest
from absl import logging
from PIL import Image
from scipy import ndimage

from lus_jax.errors import UserError
from tfds_builders import confidences, media


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def values(dtype, *numbers):
  return np.array([numbers], dtype)


@pytest.mark.parametrize(
  ("mask", "full", "expected"),
  [
    (values(bool, 0, 1), 1, (0, 1)),
    (values(np.uint8, 0, 51, 255), 255, (0, 0.2, 1)),
    (values(np.uint8, 0, 153), 255, (0, 0.6)),  # its strongest stroke stays 60 %
    (values(np.uint8, 0, 51), None, (0, 0.2)),
    (values(np.uint16, 0, 13107, 65535), 65535, (0, 0.2, 1)),
    (values(np.uint16, 0, 819, 4095), 4095, (0, 0.2, 1)),  # the file says 12 bits
    (values(np.uint16, 0, 39321), None, (0, 0.6)),
    (values(np.float32, 0, 0.2, 0.6), None, (0, 0.2, 0.6)),
    (values(np.float64, 0, 1.00000004), None, (0, 1)),
    (values(np.int16, 0, 0), None, (0, 0)),
    (values(np.uint16, 0, 0), 65535, (0, 0)),
  ],
)
def test_types_that_say_their_scale(warnings_seen, mask, full, expected):
  found = confidences.fractions(mask, "m", full=full)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  assert not warnings_seen


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("largest", [255, 153, 101])
def test_up_to_255_is_a_scale_of_255_with_a_warning(warnings_seen, dtype, largest):
  found = confidences.fractions(values(dtype, 0, largest), "dir/m.nii", full=None)
  np.testing.assert_allclose(found[0], (0, largest / 255), atol=1e-6)
  assert "dir/m.nii: its values are" in warnings_seen[0]
  assert "255 is taken for 100 %" in warnings_seen[0]


@pytest.mark.parametrize(
  ("mask", "full"),
  [
    (values(np.int16, 0, 1), None),
    (values(np.int16, 0, 100), None),  # may be a percentage
    (values(np.float32, 0, 60.5), None),
    (values(np.int16, 0, 4095), None),
    (values(np.int16, 0, 32767), None),
    (values(np.int32, 0, 65535), None),
    (values(np.float32, 0, 256), None),
    (values(np.uint16, 0, 4095), 65535),  # of 12 bits, or nearly nothing
    (values(np.uint16, 0, 255), 65535),
    (values(np.uint16, 0, 1), 65535),
  ],
)
def test_scales_that_cannot_be_known_are_asked_for(mask, full):
  with pytest.raises(UserError, match=r"m holds values .* write .*\"confidence_maximum\": 255"):
    confidences.fractions(mask, "m", full=full)


@pytest.mark.parametrize(
  ("mask", "full", "maximum", "expected"),
  [
    (values(np.int16, 0, 60, 100), None, 100, (0, 0.6, 1)),
    (values(np.uint8, 0, 60, 100), 255, 100, (0, 0.6, 1)),
    (values(np.uint8, 0, 1), 255, 1, (0, 1)),
    (values(np.int16, 0, 60), None, 255, (0, 60 / 255)),
    (values(np.uint16, 0, 4095), 65535, 4095, (0, 1)),
    (values(np.uint16, 0, 4095), 65535, 65535, (0, 4095 / 65535)),
    (values(np.uint8, 0, 255), 255, 4095, (0, 1)),  # cannot hold 4095
    (values(bool, 0, 1), 1, 255, (0, 1)),
    (values(np.int32, 0, 6), None, 12.0, (0, 0.5)),
  ],
)
def test_the_users_word_is_the_scale(warnings_seen, mask, full, maximum, expected):
  found = confidences.fractions(mask, "m", full=full, maximum=maximum)
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  assert not warnings_seen


@pytest.mark.parametrize(
  ("mask", "maximum", "part"),
  [
    (values(np.int16, 0, 256), 255, "256, which is more than 255"),
    (values(np.uint8, 0, 101), 100, "101, which is more than 100"),
    (values(np.int16, -1, 255), None, "-1, which is below 0"),
    (values(np.float32, -0.5, 1), None, "-0.5, which is below 0"),
    (values(np.float32, 0, np.nan), None, "not finite"),
    (values(np.float32, 0, np.inf), 255, "not finite"),
    (values(np.complex64, 0, 1), None, "colours or complex numbers"),
  ],
)
def test_values_outside_of_the_scale(mask, maximum, part):
  with pytest.raises(UserError, match=f"^m .*{part}"):
    confidences.fractions(mask, "m", maximum=maximum)


def test_a_percentage_in_8_bits_looks_odd(warnings_seen):
  found = confidences.fractions(values(np.uint8, 0, 100), "m", full=255)
  np.testing.assert_allclose(found[0], (0, 100 / 255))
  assert "m: its largest value is 100 of 255, which is 39 %" in warnings_seen[0]


def test_binary_masks_are_only_divided():
  for mask, full, expected in (
    (values(np.uint8, 0, 1), 255, 1 / 255),
    (values(np.uint16, 0, 255), 65535, 255 / 65535),
    (values(np.int16, 0, 255), None, 255),
    (values(np.float32, 0, 0.99999), None, 1),
  ):
    found = confidences.fractions(mask, "m", full=full, binary=True)
    np.testing.assert_allclose(found[0], (0, expected))


# Masks that went through JPEG.


def as_jpeg(mask, quality):
  data = io.BytesIO()
  Image.fromarray(mask).save(data, "JPEG", quality=quality)
  return np.asarray(Image.open(data))


y, x = np.mgrid[:128, :160]
SHAPES = {
  "ellipse": ((y - 60) / 40) ** 2 + ((x - 70) / 30) ** 2 < 1,
  "line": (abs(y - 0.37 * x - 40) < 2) & (abs(x - 80) < 60),
  "dots": ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2) < 20,
}
DISTANCE = np.hypot(y - 60, x - 70)
SOFT = {
  "cone": np.clip(1.2 - DISTANCE / 40, 0, 1),
  "levels": np.round(5 * np.clip(1.2 - DISTANCE / 40, 0, 1)) / 5,
  "faint": 0.2 * SHAPES["ellipse"],
  "ring": np.where(DISTANCE < 20, 1, 0.05 * (DISTANCE < 27)),
  "smooth edges": ndimage.gaussian_filter(SHAPES["ellipse"].astype(float), 0.7),
  "apart": np.where(x < 30, 1, np.where(x > 100, 0.02 * (y % 7) / 7, 0)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quality", [50, 75, 90, 95, 100])
@pytest.mark.parametrize("name", ["m.jpg", "m.png"])
def test_jpeg_noise_snaps_to_the_true_mask(tmp_path, warnings_seen, shape, quality, name):
  path, true = tmp_path / name, np.where(SHAPES[shape], 255, 0).astype(np.uint8)
  Image.fromarray(true).save(path, "JPEG", quality=quality)
  np.testing.assert_array_equal(media.read_mask(path), SHAPES[shape])
  assert all("m." in text and "JPEG" in text for text in warnings_seen)
  assert warnings_seen or (as_jpeg(true, quality) == true).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quality", [75, 85, 90])
def test_a_png_that_was_a_jpeg_snaps_too(tmp_path, warnings_seen, shape, quality):
  path = tmp_path / "m.png"
  noisy = as_jpeg(np.where(SHAPES[shape], 255, 0).astype(np.uint8), quality)
  Image.fromarray(noisy[3:, 5:]).save(path)  # cropped: its blocks begin anywhere
  np.testing.assert_array_equal(media.read_mask(path), SHAPES[shape][3:, 5:])
  assert "m.png" in warnings_seen[0] and "JPEG" in warnings_seen[0]


@pytest.mark.parametrize("shape", SOFT)
def test_true_soft_masks_are_not_touched(tmp_path, warnings_seen, shape):
  true = np.rint(255 * SOFT[shape]).astype(np.uint8)
  path = tmp_path / "m.png"
  Image.fromarray(true).save(path)
  np.testing.assert_array_equal(np.rint(255 * media.read_mask(path)), true)
  assert not warnings_seen
  for quality in (60, 75, 95):
    warnings_seen.clear()
    path = tmp_path / "m.jpg"
    Image.fromarray(true).save(path, quality=quality)
    np.testing.assert_array_equal(np.rint(255 * media.read_mask(path)), as_jpeg(true, quality))
    assert "JPEG changes the values of masks" in warnings_seen[0]


# Masks of other formats.


def test_masks_of_equal_channels(tmp_path):
  mask = np.where(SHAPES["ellipse"], 255, 0).astype(np.uint8)
  rgb = np.stack([mask] * 3, -1)
  Image.fromarray(rgb).save(tmp_path / "m.bmp")
  np.testing.assert_array_equal(media.read_mask(tmp_path / "m.bmp"), SHAPES["ellipse"])
  Image.fromarray(rgb).save(tmp_path / "m.jpg")
  np.testing.assert_array_equal(media.read_mask(tmp_path / "m.jpg"), SHAPES["ellipse"])
  assert media.mask_size(tmp_path / "m.jpg") == (128, 160)
  Image.fromarray(rgb).save(tmp_path / "m.png")
  for read in (media.read_mask, media.mask_size, media.read_indices):
    with pytest.raises(UserError, match="m.png has pixels of type RGB"):
      read(tmp_path / "m.png")
  drawn, n_between = media.read_binary_mask(tmp_path / "m.png")
  np.testing.assert_array_equal(drawn, SHAPES["ellipse"])
  assert n_between == 0
  rgb[..., 0] = 0
  for name in ("m.png", "m.bmp"):
    Image.fromarray(rgb).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} has colours"):
      media.read_binary_mask(tmp_path / name)


def test_a_binary_mask_is_never_emptied(tmp_path):
  path, drawn = tmp_path / "m.png", SHAPES["ellipse"]
  for dtype, value in ((np.uint8, 1), (np.uint8, 100), (np.uint16, 255)):
    Image.fromarray((drawn * value).astype(dtype)).save(path)
    with pytest.raises(UserError, match=r"m.png: its largest value is .* nothing would be left"):
      media.read_binary_mask(path)
  Image.fromarray(drawn.astype(np.uint8)).save(path)
  np.testing.assert_array_equal(media.read_binary_mask(path, maximum=1)[0], drawn)
  Image.fromarray((drawn * np.where(x > 80, 255, 100)).astype(np.uint8)).save(path)
  mask, n_between = media.read_binary_mask(path)
  np.testing.assert_array_equal(mask, drawn & (x > 80))
  assert n_between == (drawn & (x <= 80)).sum()
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
  assert not media.read_binary_mask(path)[0].any()


def test_indices_of_tiff_and_bmp_but_not_of_jpeg(tmp_path):
  indices = (x // 40).astype(np.uint8)
  for name in ("m.png", "m.tif", "m.bmp"):
    for image in (Image.fromarray(indices), Image.fromarray(indices).convert("P")):
      image.save(tmp_path / name)
      np.testing.assert_array_equal(media.read_indices(tmp_path / name), indices)
  Image.fromarray(indices).save(tmp_path / "m.jpg")
  with pytest.raises(UserError, match="m.jpg is a JPEG, which changes label indices"):
    media.read_indices(tmp_path / "m.jpg")
