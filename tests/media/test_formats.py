"""Clips of NIfTI, NRRD and MetaImage, and stacks of TIFF."""

import gzip
import resource
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from absl import logging
from PIL import Image, TiffImagePlugin

from lus_jax.errors import UserError
from lus_jax.media import limits, readers
from tests.faults import seeds


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def read(path, **words):
  return readers.read(readers.probe(path, **words))


def refused(path, *parts, **words):
  with pytest.raises(UserError) as error:
    read(path, **words)
  message = str(error.value)
  assert "\n" not in message and path.name in message
  for part in parts:
    assert part in message, message


def by_percentiles(values):
  low, high = np.percentile(values, (0.5, 99.5))
  return np.rint(np.interp(values, (low, high), (0, 255))).astype(np.uint8)


# NIfTI.


def save_nifti(path, values, *, units=None, steps=None):
  image = nibabel.Nifti1Image(values, np.eye(4))
  if units:
    image.header.set_xyzt_units(*units)
    image.header["pixdim"][1 : 1 + len(steps)] = steps
  nibabel.save(image, path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("fourth", [False, True])
def test_nifti_counts_frames_on_its_third_or_fourth_axis(tmp_path, name, fourth):
  frames = seeds.frames()
  values = frames.transpose(2, 1, 0)  # [x, y, frames]
  steps = (0.2, 0.3, 1, 0.04) if fourth else (0.2, 0.3, 9)
  values = values[:, :, None] if fourth else values
  save_nifti(tmp_path / name, values, units=("mm", "sec"), steps=steps)
  found = readers.probe(tmp_path / name)
  assert found.spacing == pytest.approx((0.3, 0.2))
  assert found.frames_per_second == pytest.approx(25 if fourth else np.nan, nan_ok=True)
  np.testing.assert_array_equal(readers.read(found), frames)
  np.testing.assert_array_equal(readers.read(found, [3, 1]), frames[[3, 1]])


def test_nifti_that_was_saved_rows_first(tmp_path):
  frames = seeds.frames()
  save_nifti(
    tmp_path / "a.nii", frames.transpose(1, 2, 0), units=("mm", "sec"), steps=(0.3, 0.2, 1)
  )
  found = readers.probe(tmp_path / "a.nii", nifti_axes="yx")
  assert found.spacing == pytest.approx((0.3, 0.2))
  np.testing.assert_array_equal(readers.read(found), frames)
  assert read(tmp_path / "a.nii").shape == (4, 32, 24)


def test_nifti_of_more_than_8_bits(tmp_path, warnings_seen):
  path, frames = tmp_path / "a.nii.gz", seeds.frames().astype(np.int16) * 9 - 500
  save_nifti(path, frames.transpose(2, 1, 0))
  found = readers.probe(path)
  assert found.spacing is None and "no window" in warnings_seen[0] and len(warnings_seen) == 1
  whole = by_percentiles(frames)
  np.testing.assert_array_equal(readers.read(found), whole)
  np.testing.assert_array_equal(readers.read(found, [2]), whole[[2]])
  expected = np.rint(np.interp(frames, (-100, 900), (0, 255)))
  np.testing.assert_array_equal(read(path, window=(-100, 900)), expected)
  image = nibabel.Nifti1Image(seeds.frames().transpose(2, 1, 0), np.eye(4))
  image.header.set_slope_inter(2, 10)
  nibabel.save(image, path)
  expected = np.rint(np.interp(2.0 * seeds.frames() + 10, (10, 300), (0, 255)))
  np.testing.assert_array_equal(read(path, window=(10, 300)), expected)


def test_nifti_that_cannot_be_a_clip(tmp_path):
  save_nifti(tmp_path / "a.nii", np.zeros((8, 8, 3, 3), np.uint8))
  refused(tmp_path / "a.nii", "several slices at several times")
  seeds.make_clip(tmp_path / "b.nii")
  content = bytearray((tmp_path / "b.nii").read_bytes())
  content[46:48] = bytes(2)
  (tmp_path / "b.nii").write_bytes(content)
  refused(tmp_path / "b.nii", "no picture")
  save_nifti(tmp_path / "a.nii", np.zeros((8, 8, 3), np.complex64))
  refused(tmp_path / "a.nii", "complex")
  seeds.make_clip(tmp_path / "b.nii.gz")
  data = (tmp_path / "b.nii.gz").read_bytes()
  (tmp_path / "b.nii.gz").write_bytes(data[:-9])
  refused(tmp_path / "b.nii.gz")
  # What is there is less than what is said, in either.
  seeds.make_clip(tmp_path / "b.nii")
  content = bytearray((tmp_path / "b.nii").read_bytes())
  content[46:48] = struct.pack("<h", 5)
  (tmp_path / "b.nii").write_bytes(content)
  refused(tmp_path / "b.nii", "is truncated")
  (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
  refused(tmp_path / "b.nii.gz", "is truncated")


# NRRD and MetaImage.


def save_volume(path, image, compressed):
  lower = path.with_name(path.name.lower())
  sitk.WriteImage(image, lower, useCompression=compressed)
  lower.rename(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "A.MHA", "A.NRRD"])
@pytest.mark.parametrize("compressed", [False, True])
def test_volumes_count_frames_on_their_third_axis(tmp_path, name, compressed, warnings_seen):
  path, frames = tmp_path / name, seeds.frames()
  image = sitk.GetImageFromArray(frames)
  image.SetSpacing((0.2, 0.3, 1))
  save_volume(path, image, compressed)
  found = readers.probe(path)
  assert found.spacing == pytest.approx((0.3, 0.2)) and np.isnan(found.frames_per_second)
  np.testing.assert_array_equal(readers.read(found), frames)
  np.testing.assert_array_equal(readers.read(found, [3, 1]), frames[[3, 1]])
  assert len(found.files) == (2 if name == "a.mhd" else 1)
  wide = frames.astype(np.int16) * 9 - 500
  save_volume(path, sitk.GetImageFromArray(wide), compressed)
  assert not warnings_seen
  found = readers.probe(path)
  assert found.spacing is None and "no window" in warnings_seen[0]
  np.testing.assert_array_equal(readers.read(found), by_percentiles(wide))
  expected = np.rint(np.interp(wide, (-100, 900), (0, 255)))
  np.testing.assert_array_equal(read(path, window=(-100, 900)), expected)


def test_a_sequence_of_3d_slicer_counts_frames_first(tmp_path):
  frames = seeds.frames()
  header = (
    "NRRD0004\ntype: uint8\ndimension: 4\nspace: left-posterior-superior\nsizes: 4 32 24 1\n"
    "space directions: none (0.2,0,0) (0,0.3,0) (0,0,1)\nkinds: list domain domain domain\n"
    "encoding: raw\nspace origin: (0,0,0)\n\n"
  )
  path = tmp_path / "a.seq.nrrd"
  path.write_bytes(header.encode() + np.moveaxis(frames, 0, -1).tobytes())
  found = readers.probe(path)
  assert found.spacing == pytest.approx((0.3, 0.2))
  np.testing.assert_array_equal(readers.read(found), frames)


def test_a_volume_in_colours(tmp_path):
  rgb = seeds.colours()
  image = sitk.GetImageFromArray(rgb, isVector=True)
  sitk.WriteImage(image, tmp_path / "a.mha")
  expected = [np.asarray(Image.fromarray(frame).convert("L")) for frame in rgb]
  np.testing.assert_array_equal(read(tmp_path / "a.mha"), expected)


@pytest.mark.parametrize(
  "name", ["../x.raw", "/etc/hostname", "LIST", "sub/x.raw", "..", "LOCAL/../../x.raw"]
)
def test_pixels_of_no_other_folder_are_read(tmp_path, name):
  path = tmp_path / "in" / "a.mhd"
  seeds.make_clip(path)
  (tmp_path / "in" / "a.raw").rename(tmp_path / "x.raw")
  path.write_text(path.read_text().replace("a.raw", name))
  refused(path, "has its pixels in another file")
  path.write_text(path.read_text().replace(f"= {name}", "= a.raw"))
  with pytest.raises(UserError, match="a.raw does not exist; put it beside its header"):
    read(path)
  (tmp_path / "in" / "a.raw").symlink_to(tmp_path / "x.raw")
  with pytest.raises(UserError, match="a.raw is a link that leads out of its folder"):
    read(path)


def test_nrrd_with_pixels_elsewhere_is_refused(tmp_path):
  path = tmp_path / "a.nrrd"
  path.write_text(
    "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 8 8\nencoding: raw\ndata file: x\n\n"
  )
  refused(path, "has its pixels in another file (x)")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize(
  "sizes", ["60000 60000 5", "4000 4000 200", "-1 24 4", "0 24 4", "32 24", "x 24 4", "32 24 1e9"]
)
def test_sizes_that_cannot_be_take_no_memory(tmp_path, name, sizes):
  path = tmp_path / name
  seeds.make_clip(path)
  path.write_bytes(path.read_bytes().replace(b"32 24 4", sizes.encode()))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  refused(path)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


@pytest.mark.parametrize("n_axes", ["99999", "-1", "0", "2"])
def test_numbers_of_axes_that_itk_does_not_survive(tmp_path, n_axes):
  path = tmp_path / "a.mha"
  seeds.make_clip(path)
  path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = " + n_axes.encode()))
  refused(path, "gives no sensible size")


def test_a_compressed_bomb_is_refused_by_what_its_header_says(tmp_path):
  image = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.float64), np.eye(4))
  content = bytearray(image.to_bytes())
  content[42:48] = struct.pack("<3h", 4000, 4000, 100)
  path = tmp_path / "a.nii.gz"
  path.write_bytes(gzip.compress(content))
  refused(path, "unfolds to more than 2 GiB")
  content[42:48] = struct.pack("<3h", 8000, 8000, 1)
  path.write_bytes(gzip.compress(content))
  refused(path, "8000 x 8000 pixels of float64; save it in fewer bits")


# Stacks.


def save_stack(path, frames, text=None, **options):
  information = TiffImagePlugin.ImageFileDirectory_v2()
  if text:
    information[TiffImagePlugin.IMAGEDESCRIPTION] = text
  first, *rest = (Image.fromarray(frame) for frame in frames)
  first.save(path, save_all=True, append_images=rest, tiffinfo=information, **options)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_stack_is_a_clip(tmp_path, compression):
  path, frames = tmp_path / "a.TIF", seeds.frames(7)
  save_stack(path, frames, compression=compression)
  found = readers.probe(path)
  assert found.n_frames == 7 and np.isnan(found.frames_per_second)
  np.testing.assert_array_equal(readers.read(found), frames)
  np.testing.assert_array_equal(readers.read(found, [5, 0, 5]), frames[[5, 0, 5]])


@pytest.mark.parametrize("big", [False, True])
def test_a_stack_that_is_cut_off_is_refused(tmp_path, big):
  path, frames = tmp_path / "a.tif", seeds.frames(5, 4, 6)
  save_stack(path, frames, big_tiff=big)
  np.testing.assert_array_equal(read(path), frames)
  data = path.read_bytes()
  for n in range(20, len(data) - 16):
    path.write_bytes(data[:n])
    refused(path)


def test_a_stack_of_more_than_8_bits(tmp_path, warnings_seen):
  path, frames = tmp_path / "a.tif", seeds.frames().astype(np.uint16) * 250
  save_stack(path, frames)
  np.testing.assert_array_equal(read(path), np.rint(frames / 257))
  expected = np.rint(np.interp(frames, (1000, 20100), (0, 255)))
  np.testing.assert_array_equal(read(path, window=(1000, 20100)), expected)
  save_stack(path, frames.astype(np.float32) / 7)
  refused(path, 'numbers of 32 bits; save pictures in 8 or 16 bits, or write "intensity_window"')
  np.testing.assert_array_equal(read(path, window=(1000 / 7, 20100 / 7)), expected)
  assert not warnings_seen
  save_stack(path, frames // 16)
  read(path)
  assert "the largest of its 16-bit values is" in warnings_seen[0]


@pytest.mark.parametrize(
  ("text", "rate"),
  [
    ("ImageJ=1.53t\nimages=4\nframes=4\nfps=25.0\n", 25),
    ("ImageJ=1.53t\nimages=4\nslices=4\nfinterval=0.05\n", 20),
    ("ImageJ=1.53t\nimages=4\nslices=4\nfps=x\n", np.nan),
    ("mine: fps=9", np.nan),
  ],
)
def test_the_rate_of_a_stack_of_imagej(tmp_path, text, rate):
  save_stack(tmp_path / "a.tif", seeds.frames(), text)
  assert readers.probe(tmp_path / "a.tif").frames_per_second == pytest.approx(rate, nan_ok=True)


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("ImageJ=1.53t\nimages=900\nframes=900\n", "keeps 900 pictures behind one header"),
    ("ImageJ=1.53t\nimages=4\nchannels=2\nframes=2\n", "a stack of 2 channels and 2 frames"),
    ("ImageJ=1.53t\nimages=4\nslices=2\nframes=2\n", "a stack of 2 slices and 2 frames"),
    ("ImageJ=1.53t\nimages=4\nchannels=4\n", "a stack of 4 channels"),
  ],
)
def test_stacks_of_imagej_that_are_no_clip(tmp_path, text, part):
  save_stack(tmp_path / "a.tif", seeds.frames(), text)
  refused(tmp_path / "a.tif", part)


def test_pages_of_another_size(tmp_path, monkeypatch):
  path = tmp_path / "a.tif"
  pages = [Image.fromarray(seeds.frames()[0]), Image.fromarray(seeds.frames(1, 48, 64)[0])]
  pages[0].save(path, save_all=True, append_images=pages[1:])
  refused(path, "changes its frame size on the way")
  found = readers.probe(path)
  monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
  monkeypatch.setattr(limits.check_pixels, "__defaults__", (1000,))
  with pytest.raises(UserError, match="64 x 48 pixels"):
    readers.read(found)
