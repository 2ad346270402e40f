import io
import itertools

import numpy as np
import pytest
from absl import logging
from PIL import Image
from scipy import ndimage

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import confidences, readers
from tfds_builders.mask_check import MaskCheck


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
  ("mask", "full", "likely"),
  [
    (values(np.int16, 0, 1), None, "1"),
    (values(np.int16, 0, 100), None, "100"),  # may be a percentage
    (values(np.int16, 0, 60, 80), None, "100 or 255"),
    (values(np.float32, 0, 30, 60.5), None, "100 or 255"),
    (values(np.int16, 0, 4095), None, "4095"),
    (values(np.int16, 0, 32767), None, "32767"),
    (values(np.int16, 0, 20, 12000), None, "32767 or 65535"),
    (values(np.int32, 0, 65535), None, "65535"),
    (values(np.float32, 0, 256), None, "256"),
    (values(np.uint16, 0, 4095), 65535, "4095"),  # of 12 bits, or nearly nothing
    (values(np.uint16, 0, 1500, 3000), 65535, "4095 or 65535"),
    (values(np.uint16, 0, 255), 65535, "255"),
    (values(np.uint16, 0, 1), 65535, "1"),
  ],
)
def test_scales_that_cannot_be_known_are_asked_for(mask, full, likely):
  asked = rf"m holds values .* write .*\"confidence_maximum\": {likely} \(importing"
  with pytest.raises(UserError, match=asked):
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


def test_percentages_in_8_bits_look_odd_if_all_masks_are_so(warnings_seen):
  def warned(*largest, maximum=None):
    warnings_seen.clear()
    check = MaskCheck("dir", ["pleura"], "annotator", "invert", maximum)
    for value in largest:
      check.add(np.float32([[0, 0, 0, value]]), "pleura", "ann")
    check.warn()
    return [text for text in warnings_seen if "percentages" in text]

  (odd,) = warned(60 / 255, 90 / 255)
  assert odd.startswith("dir: the largest value of all masks is 90 of 255, which is 35 %")
  assert warned(100 / 255)
  assert not warned(60 / 255, 101 / 255) and not warned(0)
  assert not warned(90 / 255, maximum=255)
  assert not warned(20000 / 65535)  # of 16 bits


def test_12_bits_are_suspected_in_16_only(warnings_seen):
  for value, suspected in ((4095 / 65535, True), (102 / 255, False)):
    warnings_seen.clear()
    check = MaskCheck("dir", ["pleura"], "annotator", "invert")
    for largest, who in ((1, "ann"), (value, "bob")):
      check.add(np.float32([[0, 0, 0, largest]]), "pleura", who)
    check.warn()
    (found,) = warnings_seen
    assert f"'bob' reach {100 * value:.1f} % at most, those of others 100 %" in found
    assert ("12 bits" in found) == suspected


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
  np.testing.assert_array_equal(readers.read_mask(path), SHAPES[shape])
  assert all("m." in text and "JPEG" in text for text in warnings_seen)
  assert warnings_seen or (as_jpeg(true, quality) == true).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quality", [75, 85, 90])
def test_a_png_that_was_a_jpeg_snaps_too(tmp_path, warnings_seen, shape, quality):
  path = tmp_path / "m.png"
  noisy = as_jpeg(np.where(SHAPES[shape], 255, 0).astype(np.uint8), quality)
  Image.fromarray(noisy[3:, 5:]).save(path)  # cropped: its blocks begin anywhere
  np.testing.assert_array_equal(readers.read_mask(path), SHAPES[shape][3:, 5:])
  assert "m.png" in warnings_seen[0] and "JPEG" in warnings_seen[0]


def test_binary_masks_survive_every_quality(warnings_seen):
  shapes = [SHAPES["ellipse"], SHAPES["line"], ~SHAPES["ellipse"]]
  for drawn, quality in itertools.product(shapes, range(30, 101)):
    true = np.where(drawn, 255, 0).astype(np.uint8)
    noisy = as_jpeg(true, quality)
    for is_jpeg in (True, False):  # a PNG that was made from it
      found = confidences.without_jpeg_noise(noisy, "m", is_jpeg=is_jpeg)
      np.testing.assert_array_equal(found, true, err_msg=f"{quality} {is_jpeg}")
  for value, quality in itertools.product((0, 255), range(30, 101)):
    true = np.full((32, 32), value, np.uint8)
    found = confidences.without_jpeg_noise(as_jpeg(true, quality), "m", is_jpeg=True)
    np.testing.assert_array_equal(found, true)


def test_what_a_png_of_noise_cannot_be_told_from_is_kept_with_a_warning(warnings_seen):
  indices = np.where(SHAPES["ellipse"], 255, SHAPES["line"]).astype(np.uint8)  # 0, 1, 255
  ones = SHAPES["ellipse"].astype(np.uint8)
  dots = as_jpeg(np.where(SHAPES["dots"], 255, 0).astype(np.uint8), 30)
  for mask, n_warnings in ((indices, 1), (dots, 1), (ones, 0)):
    warnings_seen.clear()
    found = confidences.without_jpeg_noise(mask, "m", is_jpeg=False)
    np.testing.assert_array_equal(found, mask)
    assert len(warnings_seen) == n_warnings
    assert not n_warnings or "look like what JPEG leaves; they are kept" in warnings_seen[0]
  # Ones are an object, not noise, in a JPEG too.
  np.testing.assert_array_equal(confidences.without_jpeg_noise(ones, "m", is_jpeg=True), ones)


def test_a_scale_of_12_bits_leaves_jpegs_of_8_alone(tmp_path, warnings_seen):
  path = tmp_path / "m.jpg"
  Image.fromarray(np.where(SHAPES["ellipse"], 255, 0).astype(np.uint8)).save(path, quality=64)
  for maximum in (None, 255, 4095, 65535):
    np.testing.assert_array_equal(readers.read_mask(path, maximum=maximum), SHAPES["ellipse"])


def test_alike_files_are_one_warning_with_the_first_and_their_number(tmp_path, warnings_seen):
  mask = np.where(SHAPES["ellipse"], 255, 0).astype(np.uint8)
  with notices.collected():
    for i in range(12):
      Image.fromarray(mask).save(tmp_path / f"{i}.jpg", quality=64)
      with notices.collected():  # the outermost counts
        readers.read_mask(tmp_path / f"{i}.jpg")
    assert not warnings_seen
    notices.warn("%s: once.", "a")
  first, once = warnings_seen
  assert first.startswith(f"{tmp_path}/0.jpg and 11 more: ") and "as JPEG leaves them" in first
  assert once == "a: once."
  notices.warn("%s: at once.", "b")
  assert warnings_seen[-1] == "b: at once."
  with pytest.raises(UserError), notices.collected():
    notices.warn("%s: before.", "c")
    raise UserError("x")
  assert warnings_seen[-1] == "c: before."


@pytest.mark.parametrize("shape", SOFT)
def test_true_soft_masks_are_not_touched(tmp_path, warnings_seen, shape):
  true = np.rint(255 * SOFT[shape]).astype(np.uint8)
  path = tmp_path / "m.png"
  Image.fromarray(true).save(path)
  np.testing.assert_array_equal(np.rint(255 * readers.read_mask(path)), true)
  assert not warnings_seen
  for quality in (60, 75, 95):
    warnings_seen.clear()
    path = tmp_path / "m.jpg"
    Image.fromarray(true).save(path, quality=quality)
    np.testing.assert_array_equal(np.rint(255 * readers.read_mask(path)), as_jpeg(true, quality))
    assert "JPEG changes the values of masks" in warnings_seen[0]


# Masks of other formats.


def test_masks_of_equal_channels(tmp_path):
  mask = np.where(SHAPES["ellipse"], 255, 0).astype(np.uint8)
  rgb = np.stack([mask] * 3, -1)
  Image.fromarray(rgb).save(tmp_path / "m.bmp")
  np.testing.assert_array_equal(readers.read_mask(tmp_path / "m.bmp"), SHAPES["ellipse"])
  Image.fromarray(rgb).save(tmp_path / "m.jpg")
  np.testing.assert_array_equal(readers.read_mask(tmp_path / "m.jpg"), SHAPES["ellipse"])
  assert readers.mask_size(tmp_path / "m.jpg") == (128, 160)
  Image.fromarray(rgb).save(tmp_path / "m.png")
  for read in (readers.read_mask, readers.mask_size, readers.read_indices):
    with pytest.raises(UserError, match="m.png has pixels of type RGB"):
      read(tmp_path / "m.png")
  drawn, n_between = readers.read_binary_mask(tmp_path / "m.png")
  np.testing.assert_array_equal(drawn, SHAPES["ellipse"])
  assert n_between == 0
  rgb[..., 0] = 0
  for name in ("m.png", "m.bmp"):
    Image.fromarray(rgb).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} has colours"):
      readers.read_binary_mask(tmp_path / name)


def test_a_binary_mask_is_never_emptied(tmp_path):
  path, drawn = tmp_path / "m.png", SHAPES["ellipse"]
  for dtype, value in ((np.uint8, 1), (np.uint8, 100), (np.uint16, 255)):
    Image.fromarray((drawn * value).astype(dtype)).save(path)
    with pytest.raises(UserError, match=r"m.png: its largest value is .* nothing would be left"):
      readers.read_binary_mask(path)
  Image.fromarray(drawn.astype(np.uint8)).save(path)
  np.testing.assert_array_equal(readers.read_binary_mask(path, maximum=1)[0], drawn)
  Image.fromarray((drawn * np.where(x > 80, 255, 100)).astype(np.uint8)).save(path)
  mask, n_between = readers.read_binary_mask(path)
  np.testing.assert_array_equal(mask, drawn & (x > 80))
  assert n_between == (drawn & (x <= 80)).sum()
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
  assert not readers.read_binary_mask(path)[0].any()


def test_indices_of_tiff_and_bmp_but_not_of_jpeg(tmp_path):
  indices = (x // 40).astype(np.uint8)
  for name in ("m.png", "m.tif", "m.bmp"):
    for image in (Image.fromarray(indices), Image.fromarray(indices).convert("P")):
      image.save(tmp_path / name)
      np.testing.assert_array_equal(readers.read_indices(tmp_path / name), indices)
  Image.fromarray(indices).save(tmp_path / "m.jpg")
  with pytest.raises(UserError, match="m.jpg is a JPEG, which changes label indices"):
    readers.read_indices(tmp_path / "m.jpg")
