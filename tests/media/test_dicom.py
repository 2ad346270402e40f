import io
import pathlib
import resource
import shutil
import struct
import zlib

import numpy as np
import pydicom
import pytest
from absl import logging
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array

from lus_jax.errors import UserError
from lus_jax.media import readers
from tests.faults import seeds


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def shipped(name):
  """A file that pydicom's wheel ships."""
  return pathlib.Path(get_testdata_file(name, download=False))


def read(path, **words):
  return readers.read(readers.probe(path, **words))


def luma(rgb):
  """ITU-R 601 in 16 bits, rounded to nearest."""
  r, g, b = np.moveaxis(rgb.astype(int), -1, 0)
  return ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16).astype(np.uint8)


def brightness(encoded):
  """The first channel of JPEG as it is stored, [n, h, w]."""
  images = [Image.open(io.BytesIO(data)) for data in encoded]
  for image in images:
    image.draft("L", image.size)
  return np.stack([np.asarray(image) for image in images])


def ybr(rgb):
  """RGB as brightness and two differences of colour, by the formula of PS3.3, C.7.6.3.1.2."""
  to = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
  return np.rint(rgb @ to.T + [0, 128, 128]).clip(0, 255).astype(np.uint8)


def save(folder, found, name="IM0001"):
  seeds.save_dicom(folder / name, found)
  return folder / name


def refused(path, *parts):
  with pytest.raises(UserError) as error:
    read(path)
  message = str(error.value)
  assert "\n" not in message and path.name in message
  for part in parts:
    assert part in message, message


# What machines and other programs wrote.


def test_a_clip_of_a_machine_whose_region_lies_outside(tmp_path, warnings_seen):
  source = shipped("examples_ybr_color.dcm")
  dataset = pydicom.dcmread(source)
  expected = brightness(generate_frames(dataset.PixelData, number_of_frames=30))
  for name in ("a.DCM", "IM0001", "1.2.840.114340.3.8251017118051.3"):
    path = tmp_path / name
    shutil.copyfile(source, path)
    warnings_seen.clear()
    found = readers.probe(path)
    assert (found.n_frames, found.height, found.width) == (30, 240, 320)
    assert found.frames_per_second == pytest.approx(1000 / 33.333)
    assert found.region is None and found.spacing is None
    assert len(warnings_seen) == 1 and "lies outside of its picture" in warnings_seen[0]
    np.testing.assert_array_equal(readers.read(found), expected)
    np.testing.assert_array_equal(
      readers.read(found, [29, 3, 3]), [expected[i] for i in (29, 3, 3)]
    )


@pytest.mark.parametrize(
  "name",
  [
    *("examples_rgb_color.dcm", "examples_jpeg2k.dcm", "SC_rgb_rle_2frame.dcm"),
    *("SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "ExplVR_BigEnd.dcm"),
    *("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"),
  ],
)
def test_colours_are_those_that_pydicom_finds(name, warnings_seen):
  rgb = pixel_array(pydicom.dcmread(shipped(name)))
  rgb = rgb if rgb.ndim == 4 else rgb[None]
  assert abs(read(shipped(name)).astype(int) - luma(rgb)).max() <= 2
  assert not warnings_seen


def test_jpeg_of_colours_that_no_marker_names(warnings_seen):
  expected = read(shipped("SC_rgb_jpeg_dcmd.dcm"))  # another program's decoding
  np.testing.assert_array_equal(read(shipped("SC_rgb_jpeg.dcm")), expected)
  assert not warnings_seen


def test_lossless_jpeg_of_colours():
  expected = luma(pixel_array(shipped("SC_rgb_rle.dcm")))  # of the same picture
  np.testing.assert_array_equal(read(shipped("SC_rgb_jpeg_gdcm.dcm")), expected[None])


def test_deflated():
  path = shipped("image_dfl.dcm")
  np.testing.assert_array_equal(read(path), pixel_array(pydicom.dcmread(path))[None])


def test_a_palette(warnings_seen):
  path = shipped("examples_palette.dcm")
  dataset = pydicom.dcmread(path)
  tables = [
    np.frombuffer(getattr(dataset, f"{name}PaletteColorLookupTableData"), "<u2") / 257
    for name in ("Red", "Green", "Blue")
  ]
  indices = np.frombuffer(dataset.PixelData, np.uint8).reshape(350, 800)
  rgb = np.rint(np.stack([table[indices] for table in tables], axis=-1))
  np.testing.assert_array_equal(read(path), luma(rgb)[None])


@pytest.mark.parametrize(
  "name",
  [
    *("MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"),
    *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
  ],
)
def test_16_bits_with_a_window(name, warnings_seen):
  # Its window is 600 around, 1600 wide; its values are signed.
  dataset = pydicom.dcmread(shipped("MR_small.dcm"))
  stored = np.frombuffer(dataset.PixelData, "<i2").reshape(64, 64).astype(float)
  centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
  expected = 255 * np.clip((stored - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
  np.testing.assert_array_equal(read(shipped(name))[0], np.rint(expected).astype(np.uint8))
  assert not warnings_seen


# Encodings.


@pytest.mark.parametrize("kind", ["plain", "deflated", "lossless", "ls", "2000", "rle", "jpeg"])
def test_encodings_of_a_clip_in_colours(tmp_path, warnings_seen, kind):
  seeds.make_dicom(tmp_path / "IM0001", kind)
  found = readers.probe(tmp_path / "IM0001")
  assert found.frames_per_second == 25
  expected = luma(seeds.colours())
  if kind == "jpeg":
    encoded = list(seeds.by_pillow(seeds.colours(), "JPEG", quality=90))
    assert abs(brightness(encoded).astype(int) - expected).mean() < 3
    expected = brightness(encoded)
  np.testing.assert_array_equal(readers.read(found), expected)
  assert not warnings_seen


@pytest.mark.parametrize(
  "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_byte_orders(tmp_path, syntax, dtype):
  pixels = seeds.frames().astype(dtype)
  path = save(tmp_path, seeds.dataset(pixels, syntax=syntax))
  np.testing.assert_array_equal(read(path, window=(0, 255)), seeds.frames())


def test_planes_of_colours(tmp_path):
  rgb = seeds.colours()
  found = seeds.dataset(rgb, PlanarConfiguration=1)
  found.PixelData = np.moveaxis(rgb, -1, 1).tobytes()
  np.testing.assert_array_equal(read(save(tmp_path, found)), luma(rgb))


def test_without_a_preamble_the_suffix_says_what_it_is(tmp_path):
  found = seeds.dataset(seeds.frames(), syntax=uid.ImplicitVRLittleEndian)
  found.save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True)
  data = (tmp_path / "a.dcm").read_bytes()
  (tmp_path / "a.dcm").write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
  np.testing.assert_array_equal(read(tmp_path / "a.dcm"), seeds.frames())


def lossless_jpeg(values, bits):
  """A lossless JPEG [h, w] (ITU-T T.81, annex H, first selection value), each length in 5 bits."""
  predicted = np.empty_like(values)
  predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = (
    values[:, :-1],
    values[:-1, 0],
    1 << bits - 1,
  )
  text = ""
  for difference in (values - predicted).ravel().tolist():
    n = abs(difference).bit_length()
    text += f"{n:05b}"
    if n:
      text += f"{difference if difference > 0 else difference + (1 << n) - 1:0{n}b}"
  text += "1" * (-len(text) % 8)
  body = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")

  def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

  table = bytes([0, *(0, 0, 0, 0, 17), *[0] * 11, *range(17)])
  frame = struct.pack(">BHH", bits, *values.shape) + bytes([1, 1, 0x11, 0])
  scan = bytes([1, 1, 0, 1, 0, 0])
  head = segment(0xC4, table) + segment(0xC3, frame) + segment(0xDA, scan)
  return b"\xff\xd8" + head + body + b"\xff\xd9"


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_lossless_jpeg_of_any_bits(tmp_path, bits):
  rng = np.random.default_rng(0)
  values = rng.integers(-60, 60, (2, 20, 30)).cumsum(axis=-1) % (1 << bits)
  found = seeds.dataset(values.astype(np.uint16), BitsStored=bits, HighBit=bits - 1)
  encoded = [lossless_jpeg(frame, bits) for frame in values]
  path = save(tmp_path, seeds.encapsulated(found, uid.JPEGLosslessSV1, encoded))
  expected = np.rint(values / (2**bits - 1) * 255).astype(np.uint8)
  np.testing.assert_array_equal(read(path, window=(0, 2**bits - 1)), expected)


# Colours whose name is wrong.


def test_colours_by_the_pixels_where_the_header_is_wrong(tmp_path, warnings_seen):
  rgb = seeds.colours()
  for pixels, said in ((ybr(rgb), "RGB"), (rgb, "YBR_FULL"), (rgb, "YBR_FULL_422")):
    warnings_seen.clear()
    path = save(tmp_path, seeds.dataset(pixels, PhotometricInterpretation=said))
    assert abs(read(path).astype(int) - luma(rgb)).max() <= 1
    assert len(warnings_seen) == 1 and "its header says that its colours are" in warnings_seen[0]
  # What is named rightly is not warned of.
  warnings_seen.clear()
  path = save(tmp_path, seeds.dataset(ybr(rgb), PhotometricInterpretation="YBR_FULL"))
  assert abs(read(path).astype(int) - luma(rgb)).max() <= 1
  assert not warnings_seen


def test_colours_where_pixels_do_not_tell_are_as_the_header_says(tmp_path, warnings_seen):
  rgb = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3)).astype(np.uint8)
  path = save(tmp_path, seeds.dataset(rgb))
  np.testing.assert_array_equal(read(path), luma(rgb))
  path = save(tmp_path, seeds.dataset(rgb, PhotometricInterpretation="YBR_FULL"))
  np.testing.assert_array_equal(read(path), rgb[..., 0])
  assert not warnings_seen


def stripped(data):
  """A JPEG without the marker that says how its colours are."""
  length = struct.unpack(">H", data[4:6])[0]
  assert data[2:4] == b"\xff\xe0"
  return data[:2] + data[4 + length :]


@pytest.mark.parametrize("said", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("marked", [True, False])
def test_jpeg_of_either_kind_of_colours(tmp_path, warnings_seen, said, marked):
  rgb = seeds.colours()
  as_ybr = list(seeds.by_pillow(rgb, "JPEG", quality=95, subsampling=0))
  # Red, green and blue written as they are; unmarked, its channels are called 1, 2 and 3.
  as_rgb = list(seeds.by_pillow(rgb, "JPEG", quality=95, subsampling=0, keep_rgb=True))
  if not marked:
    as_ybr = [stripped(data) for data in as_ybr]
    as_rgb = [
      data.replace(b"\x03R\x11\0G\x11\0B\x11\0", b"\x03\x01\x11\0\x02\x11\0\x03\x11\0").replace(
        b"\x03R\0G\0B\0", b"\x03\x01\0\x02\0\x03\0"
      )
      for data in as_rgb
    ]
  for encoded, wrong in ((as_ybr, said == "RGB"), (as_rgb, said != "RGB")):
    warnings_seen.clear()
    found = seeds.encapsulated(seeds.dataset(rgb), uid.JPEGBaseline8Bit, encoded)
    found.PhotometricInterpretation = said
    path = save(tmp_path, found)
    assert abs(read(path)[:, 16:, 16:].astype(int) - seeds.frames()[:, 16:, 16:]).mean() < 3
    assert bool(warnings_seen) == wrong


# Grey of more than 8 bits.


def grey12(**elements):
  """[1, 16, 256] of 0 to 4095, each once, and the same values."""
  values = np.arange(4096).reshape(1, 16, 256)
  found = seeds.dataset(values.astype(np.uint16), BitsStored=12, HighBit=11, **elements)
  return found, values


def rounded(share):
  return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize(
  ("elements", "share"),
  [
    # PS3.3, C.11.2.1.2.1, C.11.2.1.3.1 and 2, after slope and intercept.
    (
      {"WindowCenter": "1000", "WindowWidth": "501"},
      lambda x: (x - 999.5) / 500 + 0.5,
    ),
    (
      {
        "WindowCenter": ["1000", "9"],
        "WindowWidth": ["500", "9"],
        "VOILUTFunction": "LINEAR_EXACT",
      },
      lambda x: (x - 1000) / 500 + 0.5,
    ),
    (
      {"WindowCenter": "1000", "WindowWidth": "500", "VOILUTFunction": "SIGMOID"},
      lambda x: 1 / (1 + np.exp(-4 * (x - 1000) / 500)),
    ),
    (
      *(
        {"WindowCenter": "0", "WindowWidth": "2001", "RescaleSlope": "2"}
        | {"RescaleIntercept": "-1024"},
      ),
      lambda x: (2 * x - 1024 + 0.5) / 2000 + 0.5,
    ),
  ],
)
def test_windows_of_the_header(tmp_path, warnings_seen, elements, share):
  found, values = grey12(**elements)
  path = save(tmp_path, found)
  np.testing.assert_array_equal(read(path), rounded(share(values)))
  # White is 0.
  found.PhotometricInterpretation = "MONOCHROME1"
  np.testing.assert_array_equal(read(save(tmp_path, found)), 255 - rounded(share(values)))
  assert not warnings_seen


def test_a_window_of_all_frames_together(tmp_path):
  found, values = grey12()
  inner, shared = Dataset(), Dataset()
  inner.WindowCenter, inner.WindowWidth = "1000", "501"
  shared.FrameVOILUTSequence = [inner]
  found.SharedFunctionalGroupsSequence = [shared]
  np.testing.assert_array_equal(read(save(tmp_path, found)), rounded((values - 999.5) / 500 + 0.5))


def test_a_table_for_a_window(tmp_path):
  found, values = grey12()
  item = Dataset()
  item.LUTDescriptor = [4096, 0, 8]
  item.add_new(0x00283006, "OW", (np.arange(4096, dtype="<u2")[::-1] // 16).tobytes())
  found.VOILUTSequence = [item]
  np.testing.assert_array_equal(read(save(tmp_path, found)), 255 - values // 16)


def test_without_a_window_a_range_is_chosen_and_said(tmp_path, warnings_seen):
  found, values = grey12()
  path = save(tmp_path, found)
  low, high = np.percentile(values, (0.5, 99.5))
  expected = np.rint(np.interp(values, (low, high), (0, 255)))
  np.testing.assert_array_equal(read(path), expected)
  assert len(warnings_seen) == 1 and "its header no window: 20.475 becomes 0" in warnings_seen[0]
  warnings_seen.clear()
  expected = np.rint(np.interp(values, (1000, 2000), (0, 255)))
  np.testing.assert_array_equal(read(path, window=(1000, 2000)), expected)
  assert not warnings_seen
  # The same for every part of a clip.
  clip = seeds.frames(9).astype(np.uint16) * np.arange(1, 10, dtype=np.uint16)[:, None, None] * 5
  found = readers.probe(save(tmp_path, seeds.dataset(clip)))
  whole = readers.read(found)
  for i in (0, 4, 8):
    np.testing.assert_array_equal(readers.read(found, [i])[0], whole[i])
  assert whole[0].max() < whole[8].max() == 255


# What the header says beside pixels.


@pytest.mark.parametrize(
  ("elements", "rate"),
  [
    ({"FrameTime": "40"}, 25),
    ({"FrameTime": "0", "CineRate": "30"}, 30),
    ({"FrameTime": None, "FrameTimeVector": ["0", "20", "30", "40"]}, 1000 / 30),
    ({"FrameTime": None, "RecommendedDisplayFrameRate": "12"}, 12),
    ({"FrameTime": None}, np.nan),
  ],
)
def test_frames_per_second(tmp_path, elements, rate):
  path = save(tmp_path, seeds.dataset(seeds.frames(), **elements))
  assert readers.probe(path).frames_per_second == pytest.approx(rate, nan_ok=True)


def region(left, top, right, bottom, *, spatial=1, kind=1, step=0.05, units=3):
  item = Dataset()
  item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial, kind, 0
  item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
  item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
  item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
  item.PhysicalDeltaX, item.PhysicalDeltaY = step, -2 * step
  return item


@pytest.mark.parametrize(
  ("regions", "box", "spacing"),
  [
    # The lower corner is within; some write the one behind it.
    ([region(2, 4, 21, 13)], (4, 2, 14, 22), (1.0, 0.5)),
    ([region(0, 0, 31, 23)], (0, 0, 24, 32), (1.0, 0.5)),
    ([region(0, 0, 32, 24)], (0, 0, 24, 32), (1.0, 0.5)),
    # Of two scans both are seen, and the scale is the larger's.
    ([region(0, 0, 4, 4), region(2, 4, 21, 13, step=0.1)], (0, 0, 14, 22), (2.0, 1.0)),
    ([region(1, 2, 12, 20), region(16, 2, 27, 20)], (2, 1, 21, 28), (1.0, 0.5)),
    ([region(2, 4, 21, 13), region(0, 0, 31, 23, spatial=3)], (4, 2, 14, 22), (1.0, 0.5)),
    ([region(2, 4, 21, 13), region(0, 0, 40, 23)], (4, 2, 14, 22), (1.0, 0.5)),
    ([region(2, 4, 21, 13, units=4)], (4, 2, 14, 22), (0.3, 0.2)),
    ([region(9, 9, 9, 5)], None, (0.3, 0.2)),
    ([region(0, 0, 40, 23)], None, (0.3, 0.2)),
    ([region(0, 0, 31, 23, kind=2)], None, (0.3, 0.2)),
    ([], None, (0.3, 0.2)),
  ],
)
def test_regions_and_spacing(tmp_path, warnings_seen, regions, box, spacing):
  found = seeds.dataset(seeds.frames(), PixelSpacing=["0.3", "0.2"])
  found.SequenceOfUltrasoundRegions = regions
  found = readers.probe(save(tmp_path, found))
  assert found.region == box and found.spacing == pytest.approx(spacing)
  assert bool(warnings_seen) == (bool(regions) and box is None and regions[0].RegionDataType == 1)


def test_of_what_is_no_tissue_on_the_screen_the_place_is_kept(tmp_path):
  found = seeds.dataset(seeds.frames())
  found.SequenceOfUltrasoundRegions = [
    *(region(2, 4, 21, 13), region(1, 15, 30, 22, spatial=2), region(0, 15, 40, 22, spatial=3)),
    region(3, 5, 9, 9, kind=2),
  ]
  assert readers.probe(save(tmp_path, found)).traces == ((15, 1, 23, 31),)


def test_nonsense_in_what_is_not_needed_is_passed_over(tmp_path):
  found = seeds.dataset(seeds.frames())
  path = save(tmp_path, found)
  data = path.read_bytes().replace(b"\x18\0\x63\x10DS\x02\x0040", b"\x18\0\x63\x10DS\x02\0?x")
  path.write_bytes(data)
  assert np.isnan(readers.probe(path).frames_per_second)
  np.testing.assert_array_equal(read(path), seeds.frames())


# What is refused.


@pytest.mark.parametrize("kind", ["plain", "jpeg", "lossless", "ls", "2000", "rle", "deflated"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kind):
  path = tmp_path / "IM0001"
  seeds.make_dicom(path, kind)
  data = path.read_bytes()
  for share in (0.5, 0.8, 0.99):
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


@pytest.mark.parametrize(
  ("elements", "part"),
  [
    ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels, more than 67 million"),
    ({"NumberOfFrames": 10**9}, "is truncated"),
    ({"NumberOfFrames": 5}, "is truncated: 3072 of 3840 bytes"),
    ({"Rows": 0}, "no picture"),
    ({"Rows": None}, "has no Rows"),
    ({"SamplesPerPixel": 4}, "4 x 8 of 8 bits a pixel"),
    ({"BitsAllocated": 64, "BitsStored": 64}, "64 of 64 bits"),
    ({"BitsStored": 9}, "9 of 8 bits"),
  ],
)
def test_headers_that_cannot_be(tmp_path, elements, part):
  refused(save(tmp_path, seeds.dataset(seeds.frames(), **elements)), part)


def test_compressed_pixels_of_another_size(tmp_path):
  big = np.zeros((4, 64, 64, 3), np.uint8)
  for syntax, encoded in (
    (uid.JPEGBaseline8Bit, list(seeds.by_pillow(big, "JPEG"))),
    (uid.JPEG2000Lossless, list(seeds.by_pillow(big, "JPEG2000", no_jp2=True))),
    (uid.JPEGLSLossless, seeds.jpeg_ls(big)),
  ):
    found = seeds.encapsulated(seeds.dataset(seeds.colours()), syntax, encoded)
    refused(save(tmp_path, found), "says 32 x 24 pixels, and what is compressed 64 x 64 pixels")


def test_what_is_not_read_is_named(tmp_path):
  refused(shipped("JPGExtended.dcm"), "holds JPEG of 12 bits; export it uncompressed")
  refused(shipped("rtplan.dcm"), "is DICOM without a picture")
  found = seeds.encapsulated(seeds.dataset(seeds.frames()), uid.MPEG4HP41, [b"12"] * 4)
  refused(save(tmp_path, found), "compressed in a way that is not read (MPEG-4 AVC/H.264 High")
  found = seeds.dataset(seeds.frames())
  del found.PixelData
  found.FloatPixelData = b"\0" * 4 * 4 * 24 * 32
  refused(save(tmp_path, found), "floating-point pixels")


def test_a_deflated_bomb_takes_no_memory(tmp_path):
  path = tmp_path / "IM0001"
  seeds.make_dicom(path, "deflated")
  data = path.read_bytes()
  deflate = zlib.compressobj(wbits=-15)
  start = 144 + struct.unpack("<I", data[140:144])[0]
  block = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
  path.write_bytes(data[:start] + 33 * block + deflate.flush())
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  refused(path, "unfolds to more than 0.5 GiB")
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
