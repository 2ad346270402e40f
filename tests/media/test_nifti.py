import gzip
import os
import random
import struct

import nibabel
import numpy as np
import pytest
from absl import logging
from PIL import Image

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import limits, nifti, readers
from tfds_builders.multirater_folder import pictures

PIXELS = np.random.default_rng(0).integers(0, 200, (12, 20)).astype(np.uint8)


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def save(path, pixels, affine=None, *, rows_first=False, codes=None, slope=None, kind=None):
  """Writes [h, w] as viewers of NIfTI show it, or as an array saved as it is."""
  affine = np.eye(4) if affine is None else np.diag([*affine, 1])
  image = (kind or nibabel.Nifti1Image)(pixels if rows_first else pixels.T, affine)
  if codes is not None:
    image.set_sform(affine, codes)
    image.set_qform(affine, codes)
  if slope is not None:
    image.header.set_slope_inter(slope, 0)
  nibabel.save(image, path)
  return path


def patch(path, at, data):
  """Overwrites bytes of a file, packed or not."""
  packed = path.name.endswith(".gz")
  whole = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
  whole[at : at + len(data)] = data
  path.write_bytes(gzip.compress(whole) if packed else whole)


def refused(path, *parts, reads=(nifti.read,)):
  for read in reads:
    with pytest.raises(UserError) as error:
      read(path)
    message = str(error.value)
    assert "\n" not in message and path.name in message
    for part in parts:
      assert part in message


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, ">i4", np.float32, np.float64])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_values_lie_as_nibabel_reads_them(tmp_path, name, dtype, kind):
  path = save(tmp_path / name, PIXELS.astype(dtype), kind=kind)
  assert nifti.size(path) == (12, 20)
  np.testing.assert_array_equal(nifti.read(path), np.asanyarray(nibabel.load(path).dataobj).T)
  np.testing.assert_array_equal(nifti.read(path), PIXELS)


def test_axes_and_further_axes_of_length_1(tmp_path):
  path = save(tmp_path / "a.nii.gz", PIXELS, rows_first=True)
  assert nifti.size(path) == (20, 12) and nifti.size(path, "yx") == (12, 20)
  np.testing.assert_array_equal(nifti.read(path, "yx"), PIXELS)
  np.testing.assert_array_equal(nifti.read(path), PIXELS.T)
  nibabel.save(nibabel.Nifti1Image(PIXELS.T[..., None, None], np.eye(4)), path)
  np.testing.assert_array_equal(nifti.read(path), PIXELS)
  nibabel.save(nibabel.Nifti1Image(PIXELS[0], np.eye(4)), path)
  assert nifti.size(path) == (1, 20)


@pytest.mark.parametrize("slope", [0, np.nan, 1])
def test_slopes_that_do_nothing(tmp_path, slope):
  path = save(tmp_path / "a.nii", PIXELS)
  patch(path, 112, struct.pack("<ff", slope, 0))
  assert nifti.read(path).dtype == np.uint8
  np.testing.assert_array_equal(nifti.read(path), PIXELS)


def test_a_slope_that_makes_labels_inexact(tmp_path):
  path, labels = save(tmp_path / "a.nii", PIXELS // 100 * 3), PIXELS // 100
  patch(path, 112, struct.pack("<ff", 1 / 3, 0))
  assert (nifti.read(path) != labels).any()
  np.testing.assert_array_equal(pictures.read_indices(path, [1]), labels)
  np.testing.assert_array_equal(pictures.read_mask(path), labels)
  np.testing.assert_array_equal(pictures.read_mask(path, soft=True), labels)
  patch(path, 112, struct.pack("<ff", 0.3, 0))
  refused(path, "holds the value 0.9", reads=[lambda path: pictures.read_indices(path, [1])])


def test_the_checksum_of_gzip_is_compared(tmp_path):
  path = save(tmp_path / "a.nii.gz", PIXELS)
  whole = bytearray(path.read_bytes())
  whole[-8] ^= 1
  path.write_bytes(whole)
  refused(path, "damaged")


SHORT = [struct.pack("<8h", *dims) for dims in ((0,) * 8, (2, -3, 4, 1, 1, 1, 1, 1), (9,) * 8)]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
  ("at", "data"),
  [
    *((40, dims) for dims in SHORT),
    (40, struct.pack("<8h", 2, 32767, 32767, *5 * [1])),
    (40, struct.pack("<8h", 2, 12, 0, *5 * [1])),
    (40, struct.pack("<8h", 7, *7 * [30000])),
    (70, struct.pack("<h", 12345)),  # of no type
    (70, struct.pack("<h", 1)),  # bits
    (108, struct.pack("<f", 1e9)),  # the pixels begin beyond the end
    (108, struct.pack("<f", np.nan)),
    (108, struct.pack("<f", -8)),
    (0, struct.pack("<i", 7)),
    (344, b"nix\0"),
    (344, b"ni1\0"),  # its pixels are in another file
  ],
)
def test_malformed_headers(tmp_path, name, at, data):
  path = save(tmp_path / name, PIXELS)
  patch(path, at, data)
  refused(path)


@pytest.mark.parametrize(
  ("at", "data"),
  [(40, struct.pack("<8h", 3, 4, 3, 0, *4 * [1])), (123, b"\xb8")],  # no frames; no unit
)
def test_malformed_headers_of_clips(tmp_path, at, data):
  path = tmp_path / "a.nii"
  nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint8), np.eye(4)), path)
  assert readers.probe(path).n_frames == 2
  patch(path, at, data)
  with pytest.raises(UserError, match="is damaged|damaged or no NIfTI"):
    readers.probe(path)


def test_header_fields_that_do_not_matter(tmp_path):
  path = save(tmp_path / "a.nii", PIXELS)
  patch(path, 348, b"\xff" * 4)  # extensions
  np.testing.assert_array_equal(nifti.read(path), PIXELS)


def test_colours_and_stacks(tmp_path):
  rgb = np.zeros((4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
  nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
  refused(tmp_path / "a.nii", "colours or complex numbers")
  nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.complex64), np.eye(4)), tmp_path / "b.nii")
  refused(tmp_path / "b.nii", "colours or complex numbers")
  nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)), tmp_path / "c.nii")
  refused(tmp_path / "c.nii", "has 4 x 4 x 3 values", reads=(nifti.size, nifti.read))


def test_sizes_are_refused_before_memory_is_taken(tmp_path):
  path = save(tmp_path / "a.nii.gz", PIXELS)
  patch(path, 40, struct.pack("<8h", 2, 32767, 32767, *5 * [1]))
  refused(path, "more than 179 million", reads=(nifti.size, nifti.read))
  save(path, PIXELS)
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**21)))
  refused(path, "holds more than its header says")
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[: -(2**21) - 9]))
  refused(path, "is truncated")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_nifti(tmp_path, name):
  path, reads = tmp_path / name, (nifti.size, nifti.directions, nifti.read)
  refused(path, "does not exist", reads=reads)
  path.write_bytes(b"")
  refused(path, "is empty", reads=reads)
  path.write_bytes(b"text")
  refused(path, "is missing, damaged or no NIfTI file", reads=reads)
  path.unlink()
  os.mkfifo(path)
  refused(path, "no ordinary file", reads=reads)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_random_damage_never_gives_anything_but_one_line(tmp_path, name):
  path, dice, n_refused = save(tmp_path / name, PIXELS.astype(np.int16)), random.Random(0), 0
  whole = path.read_bytes()
  reads = [nifti.size, nifti.directions, pictures.read_image]
  reads += [lambda path: pictures.read_mask(path, soft=True)]
  for i in range(60):
    path.write_bytes(whole[: dice.randrange(len(whole))] if i % 4 == 0 else whole)
    if i % 4:
      patch(
        path, dice.randrange(352), bytes([dice.choice((0, 1, 127, 128, 255))]) * dice.choice((1, 4))
      )
    for read in reads:
      try:
        read(path)
      except UserError as error:
        n_refused += 1
        assert "\n" not in str(error) and path.name in str(error)
  assert n_refused > 40


# Images and masks beside each other.


def check(image, *masks, **options):
  return pictures.check_geometry(image, masks, indices=False, **options)


def test_nifti_masks_have_their_images_orientation(tmp_path):
  image = save(tmp_path / "i.nii", PIXELS, (-1, -1, 1), codes=1)
  same = save(tmp_path / "m.nii", PIXELS, (-0.5, -0.5, 3), codes=2)
  unknown = save(tmp_path / "u.nii", PIXELS, codes=0)
  check(image, same, unknown)
  check(unknown, image, same)
  for name, affine in (("x", (1, -1, 1)), ("y", (-1, 1, 1)), ("xy", (1, 1, 1))):
    mask = save(tmp_path / f"{name}.nii.gz", PIXELS, affine, codes=1)
    with pytest.raises(UserError, match=rf"{name}.nii.gz: its axes point to [LR] and [PA]"):
      check(image, same, mask)
    check(image, same, mask, axes="xy")  # the user says that they lie alike
  swapped = nibabel.Nifti1Image(PIXELS.T, np.eye(4)[[1, 0, 2, 3]])
  nibabel.save(swapped, tmp_path / "s.nii")
  with pytest.raises(UserError, match="s.nii: its axes point to A and R, those of its image to L"):
    check(image, tmp_path / "s.nii")


def test_axes_of_nifti_beside_png(tmp_path, warnings_seen):
  png, mask = tmp_path / "i.png", tmp_path / "m.nii.gz"
  Image.fromarray(PIXELS).save(png)
  check(png, save(mask, PIXELS))
  save(mask, PIXELS, rows_first=True)
  with pytest.raises(UserError, match=r"m.nii.gz is 12 x 20 .* \"nifti_axes\": \"yx\""):
    check(png, mask)
  check(png, mask, axes="yx")
  with pytest.raises(UserError, match="m.nii.gz is 12 x 20 and its image 20 x 12 pixels; save"):
    check(png, mask, axes="xy")
  square = PIXELS[:, :12]
  Image.fromarray(square).save(png)
  save(mask, square)
  check(png, mask, axes="xy")
  assert not warnings_seen
  with notices.collected():
    check(png, mask, mask, mask)
  (unsure,) = warnings_seen
  assert "m.nii.gz and 2 more: NIfTI beside another format" in unsure
  image, other = save(tmp_path / "i.nii", square), tmp_path / "m.png"
  Image.fromarray(square).save(other)
  check(image, other)
  assert "m.png: NIfTI beside another format" in warnings_seen[1]


def test_masks_meet_a_turned_picture(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  image, mask = tmp_path / "i.png", tmp_path / "m.png"
  Image.fromarray(PIXELS).save(image, exif=exif)
  Image.fromarray(np.rot90(PIXELS)).save(mask)
  check(image, mask)
  Image.fromarray(PIXELS).save(mask)
  with pytest.raises(UserError, match="m.png is 20 x 12 and its image 12 x 20 pixels, as i.png is"):
    check(image, mask)
  Image.fromarray(PIXELS).save(mask, exif=exif)
  check(image, mask)


# Intensities.


@pytest.mark.parametrize("value", [0, -7, 30000])
def test_an_image_of_one_value_is_black(tmp_path, warnings_seen, value):
  path = save(tmp_path / "i.nii", np.full((12, 20), value, np.int16))
  assert not pictures.read_image(path).any()
  assert "i.nii: it is nearly empty" in warnings_seen[0]


def test_a_nearly_empty_image_is_not_stretched_to_white(tmp_path, warnings_seen):
  pixels = np.zeros((40, 50), np.int16)
  pixels[3, 4:8] = 50, 100, 300, 400
  path = save(tmp_path / "i.nii.gz", pixels)
  found = pictures.read_image(path)
  assert found[3, 4:8].tolist() == [32, 64, 191, 255] and not np.delete(found, 3, axis=0).any()
  assert "i.nii.gz: it is nearly empty: 99 % of its pixels are 0" in warnings_seen[0]


def test_noise_that_fills_the_window_is_warned_of(tmp_path, warnings_seen):
  path = save(tmp_path / "i.nii", (PIXELS % 4).astype(np.int16))
  np.testing.assert_array_equal(pictures.read_image(path), PIXELS % 4 * 85)
  assert "i.nii: it has few levels, 0 to 3, which become 0 and 255" in warnings_seen[0]
  pictures.read_image(path, window=(0, 15))
  assert len(warnings_seen) == 1


def test_a_folder_is_no_image(tmp_path):
  (tmp_path / "i.png").mkdir()
  Image.fromarray(PIXELS).save(tmp_path / "i.png" / "0.png")
  refused(tmp_path / "i.png", "is a folder", reads=(pictures.read_image, pictures.probe_image))


def test_the_users_window_is_that_of_all_images(tmp_path):
  for name, scale in (("a.nii", 1), ("b.nii", 4)):
    path = save(tmp_path / name, PIXELS.astype(np.int16) * scale)
    found = pictures.read_image(path, window=(0, 1020))
    np.testing.assert_array_equal(found, np.rint(PIXELS / 4 * scale))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_soft_masks_of_0_to_255_in_other_types(tmp_path, warnings_seen, dtype):
  pixels = PIXELS.copy()
  pixels[0, 0] = 255
  path = save(tmp_path / "m.nii.gz", pixels.astype(dtype))
  found = pictures.read_mask(path, soft=True)
  np.testing.assert_allclose(found, pixels / 255, atol=1e-6)
  assert "m.nii.gz: its values are" in warnings_seen[0]
  np.testing.assert_array_equal(pictures.read_mask(path, soft=True, maximum=255), found)
  assert len(warnings_seen) == 1


def test_the_limit_is_pillows_own():
  assert limits.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
