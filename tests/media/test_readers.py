import io
import itertools
import os
import pathlib
import random
import struct
import zlib

import av
import nibabel
import numpy as np
import pytest
from absl import logging
from av.video.frame import PictureType
from PIL import GifImagePlugin, Image, PngImagePlugin

from lus_jax.errors import UserError
from lus_jax.media import limits, nifti, readers, stills
from tests.faults import seeds

EXIF_ORIENTATION = 0x0112
# What each EXIF orientation makes of a stored picture, in the words of its standard.
SHOWN = {
  1: lambda a: a,
  2: np.fliplr,
  3: lambda a: np.rot90(a, 2),
  4: np.flipud,
  5: np.transpose,
  6: lambda a: np.rot90(a, -1),
  7: lambda a: np.rot90(a, 2).T,
  8: np.rot90,
}


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def picture(h=24, w=40):
  """[h, w] uint8 without symmetry, in flat tiles that JPEG and video keep."""
  tiles = np.random.default_rng(0).integers(0, 4, (h // 8, w // 8))
  return np.kron(60 * tiles + 20, np.ones((8, 8))).astype(np.uint8)


def exif(orientation):
  found = Image.Exif()
  found[EXIF_ORIENTATION] = orientation
  return found


def refused(path, *parts, read=None):
  with pytest.raises(UserError) as error:
    (read or (lambda p: readers.read(readers.probe(p))))(path)
  message = str(error.value)
  assert "\n" not in message and path.name in message
  for part in parts:
    assert part in message
  return message


# Videos.


def write_video(path, frames, codec="libx264", pixels="yuv420p", options=None, times=None, full=0):
  with av.open(path, "w") as container:
    stream = container.add_stream(codec, rate=25, options=options or {})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixels
    if full:
      stream.codec_context.color_range = 2
    for i, pixels_ in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels_, format="gray" if pixels_.ndim == 2 else "rgb24")
      if full:
        frame = frame.reformat(format=pixels, dst_color_range=2)
      frame.pts = i if times is None else times[i]
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def set_matrix(path, a, b, c, d):
  """Writes a display matrix into an mp4's track header: (x, y) is shown at (ax + cy, bx + dy)."""
  data = bytearray(path.read_bytes())
  at = data.find(b"tkhd") + 4 + 40
  one = 1 << 16
  data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("matrix", "orientation"),
  [
    ((1, 0, 0, 1), 1),
    ((-1, 0, 0, 1), 2),
    ((-1, 0, 0, -1), 3),
    ((1, 0, 0, -1), 4),
    ((0, 1, 1, 0), 5),
    ((0, 1, -1, 0), 6),
    ((0, -1, -1, 0), 7),
    ((0, -1, 1, 0), 8),
  ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.MOV", "a.m4v"])
def test_a_clip_is_turned_as_players_show_it(tmp_path, name, matrix, orientation):
  path = tmp_path / name
  frames = np.stack([picture(), picture()[::-1]])
  write_video(path, frames, options={"crf": "4"})
  set_matrix(path, *matrix)
  found = readers.probe(path)
  expected = np.stack([SHOWN[orientation](frame) for frame in frames])
  assert (found.height, found.width, found.orientation) == (*expected.shape[1:], orientation)
  assert abs(readers.read(found).astype(int) - expected).max() <= 4


def test_masks_meet_a_turned_clip_as_it_is_shown(tmp_path):
  path, mask = tmp_path / "a.mp4", tmp_path / "m.png"
  write_video(path, picture()[None])
  set_matrix(path, 0, 1, -1, 0)
  found = readers.probe(path)
  readers.check_mask_size(mask, (40, 24), found)
  with pytest.raises(UserError, match=r"m.png is 40 x 24 .* a.mp4 is turned by 90 degrees"):
    readers.check_mask_size(mask, (24, 40), found)
  with pytest.raises(UserError, match=r"m.png is 9 x 9 and its frame 24 x 40 pixels; save the"):
    readers.check_mask_size(mask, (9, 9), found)


def test_a_clip_turned_by_any_other_angle_is_refused(tmp_path):
  path = tmp_path / "a.mp4"
  write_video(path, picture()[None])
  set_matrix(path, 1, 1, -1, 1)
  refused(path, "no multiple of 90 degrees")


def chunks(data):
  """Yields the AVI's chunks of pictures as (name, body)."""
  at = data.find(b"movi") + 4
  end = at - 4 + struct.unpack("<I", data[at - 8 : at - 4])[0]
  while at < end:
    name, size = struct.unpack("<4sI", data[at : at + 8])
    yield name, bytes(data[at + 8 : at + 8 + size])
    at += 8 + size + size % 2


def empty_frames(path, which):
  """Empties frames of an AVI, as grabbers do that repeat the last picture."""
  data = path.read_bytes()
  body, index = b"", b""
  for i, (name, pixels) in enumerate(chunks(data)):
    pixels = b"" if i in which else pixels
    index += struct.pack("<4sIII", name, 16, 4 + len(body), len(pixels))
    body += struct.pack("<4sI", name, len(pixels)) + pixels + b"\0" * (len(pixels) % 2)
  head = bytearray(data[: data.find(b"movi") + 4])
  head[-8:-4] = struct.pack("<I", 4 + len(body))
  whole = head + body + struct.pack("<4sI", b"idx1", len(index)) + index
  whole[4:8] = struct.pack("<I", len(whole) - 8)
  path.write_bytes(whole)


def clip(n=8):
  """[n, 24, 40] uint8, each frame another."""
  return np.stack([np.roll(picture(), 8 * i, 1) // 2 + 10 * i for i in range(n)]).astype(np.uint8)


def test_empty_frames_of_an_avi_repeat_the_one_before(tmp_path):
  path = tmp_path / "a.avi"
  write_video(path, clip(), "rawvideo", "bgr24")
  whole = readers.probe(path)
  assert whole.slots == ()
  empty_frames(path, {3, 4, 6, 7})
  found = readers.probe(path)
  assert found.n_frames == 8
  expected = clip()[[0, 1, 2, 2, 2, 5, 5, 5]]
  np.testing.assert_array_equal(readers.read(found), expected)
  np.testing.assert_array_equal(readers.read(found, [7, 3]), expected[[7, 3]])


def test_an_avi_that_lacks_frames_is_truncated(tmp_path):
  path = tmp_path / "a.avi"
  write_video(path, clip(), "rawvideo", "bgr24")
  data = path.read_bytes()
  path.write_bytes(data[: len(data) * 2 // 3])
  refused(path, "is truncated: 4 of 8 frames")
  # The header speaks of more than there ever were.
  more = bytearray(data)
  at = data.find(b"strh") + 8 + 32
  more[at : at + 4] = struct.pack("<I", 9)
  path.write_bytes(more)
  refused(path, "is truncated: 8 of 9 frames")


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.wmv", "wmv2")])
def test_formats_that_count_no_frames_say_their_length(tmp_path, name, codec):
  path = tmp_path / name
  write_video(path, clip(20), codec)
  found = readers.probe(path)
  assert (found.n_frames, found.frames_per_second) == (20, 25)
  data = path.read_bytes()
  for n in (1, 30, len(data) // 2):
    path.write_bytes(data[:-n])
    refused(path, f"is truncated: its last {n} bytes lack")


def test_a_video_of_many_pixels_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "a.mp4"
  write_video(path, clip(2))
  monkeypatch.setattr(readers.limits, "MAX_VIDEO_PIXELS", 24 * 40 - 1)
  refused(path, "40 x 24 pixels")


def test_an_unknown_codec_is_named(tmp_path):
  path = tmp_path / "a.avi"
  write_video(path, clip(), "mjpeg", "yuvj420p")
  path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZ9"))
  refused(path, "has a codec that cannot be decoded")


def test_no_play_list_is_opened(tmp_path):
  write_video(tmp_path / "other.mp4", clip())
  path = tmp_path / "a.mp4"
  path.write_text("ffconcat version 1.0\nfile other.mp4\n")
  refused(path, "is damaged or not what its name says")


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_a_title_that_is_no_utf_8_is_no_damage(tmp_path, name):
  path = tmp_path / name
  with av.open(path, "w") as container:
    container.metadata["title"] = "Mueller"
    stream = container.add_stream("mpeg4", rate=25)
    stream.height, stream.width, stream.pix_fmt = 24, 40, "yuv420p"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="gray")))
    container.mux(stream.encode())
  assert b"Mueller" in path.read_bytes()
  path.write_bytes(path.read_bytes().replace(b"Mueller", b"M\xfcller\0"))
  assert len(readers.read(readers.probe(path))) == 1


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
  np.save(tmp_path / "x.npy", clip())
  write_video(tmp_path / "p1.mp4", clip())
  (tmp_path / "p1.mp4").rename(tmp_path / "p1:v.mp4")
  monkeypatch.chdir(tmp_path)
  assert readers.probe(pathlib.Path("p1:v.mp4")).n_frames == 8


# What was right stays right.


def test_mjpeg_that_changes_its_subsampling(tmp_path):
  frames = clip()
  for name, pixels in (("a.avi", "yuvj422p"), ("b.avi", "yuvj420p")):
    write_video(tmp_path / name, frames, "mjpeg", pixels, {"qscale": "2"})
  with (
    av.open(tmp_path / "a.avi") as a,
    av.open(tmp_path / "b.avi") as b,
    av.open(tmp_path / "mixed.avi", "w") as mixed,
  ):
    stream = mixed.add_stream_from_template(b.streams.video[0])
    packets = [[p for p in c.demux(video=0) if p.size] for c in (a, b)]
    for packet in [*packets[0][:1], *packets[1][1:]]:
      packet.stream = stream
      mixed.mux(packet)
  read = readers.read(readers.probe(tmp_path / "mixed.avi"))
  assert abs(read.astype(int) - frames).mean() < 1


@pytest.mark.parametrize(
  ("name", "codec", "pixels", "full", "options"),
  [
    ("limited.mp4", "libx264", "yuv420p", 0, {"crf": "1"}),
    ("full.mp4", "libx264", "yuv420p", 1, {"crf": "1"}),
    ("ten.mp4", "libx264", "yuv420p10le", 0, {"crf": "1"}),
    ("raw.avi", "rawvideo", "bgr24", 0, {}),
    ("ffv1.avi", "ffv1", "gray", 0, {}),
    ("limited.MOV", "libx264", "yuv420p", 0, {"crf": "1"}),
    ("full.mov", "libx264", "yuv420p", 1, {"crf": "1"}),
    ("limited.M4V", "libx264", "yuv420p", 0, {"crf": "1"}),
    ("limited.mkv", "libx264", "yuv420p", 0, {"crf": "1"}),
    ("grey.MKV", "ffv1", "gray", 0, {}),
    ("limited.webm", "libvpx-vp9", "yuv420p", 0, {"lossless": "1"}),
    ("limited.wmv", "wmv2", "yuv420p", 0, {"qscale": "1", "flags": "+qscale"}),
  ],
)
def test_video_range(tmp_path, name, codec, pixels, full, options):
  ramp = np.tile(np.arange(256, dtype=np.uint8), (2, 64, 1))
  write_video(tmp_path / name, ramp, codec, pixels, options, full=full)
  read = readers.read(readers.probe(tmp_path / name))
  assert abs(read.astype(int) - ramp).max() <= {"ten.mp4": 2, "limited.wmv": 4}.get(name, 1)


@pytest.mark.parametrize("name", ["a.mp4", "a.MOV", "a.mkv"])
def test_uneven_times_and_b_frames(tmp_path, name):
  path, frames = tmp_path / name, clip(12)
  options = {"crf": "1", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
  write_video(path, frames, options=options, times=[*range(5), 9, *range(20, 26)])
  with av.open(path) as container:
    assert any(frame.pict_type == PictureType.B for frame in container.decode(video=0))
  read = readers.read(readers.probe(path))
  assert len(read) == 12
  distance = abs(read[:, None].astype(int) - frames[None]).mean(axis=(2, 3))
  np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(12))


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("1", lambda a: np.where(a > 127, 255, 0)),
    ("L", lambda a: a),
    ("P", lambda a: a),
    ("LA", lambda a: a),
    ("RGB", lambda a: a),
    ("RGBA", lambda a: a),
    ("I;16", lambda a: a),
  ],
)
def test_kinds_of_png(tmp_path, kind, expected):
  path, pixels = tmp_path / "a.png", picture()
  image = Image.fromarray(pixels)
  if kind == "I;16":
    image = Image.fromarray(pixels.astype(np.uint16) * 257)
  elif kind == "1":
    image = Image.fromarray(pixels > 127)
  else:
    image = image.convert(kind)
  image.save(path)
  np.testing.assert_array_equal(readers.read(readers.probe(path))[0], expected(pixels))


def test_colours_become_their_luma(tmp_path):
  path = tmp_path / "a.bmp"
  Image.fromarray(np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])).save(path)
  assert readers.read(readers.probe(path)).tolist() == [[[76, 150, 29]]]


# Stills.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.tif", "lzw.tiff"])
def test_a_picture_is_turned_as_viewers_show_it(tmp_path, name, orientation):
  path, stored = tmp_path / name, picture()
  options = {"a.JPG": {"quality": 100}, "lzw.tiff": {"compression": "tiff_lzw"}}.get(name, {})
  Image.fromarray(stored).save(path, exif=exif(orientation), **options)
  expected = SHOWN[orientation](stored)
  found = readers.probe(path)
  assert (found.height, found.width, found.orientation) == (*expected.shape, orientation)
  # JPEG keeps flat tiles to a grey level.
  atol = 1 if name == "a.JPG" else 0
  np.testing.assert_allclose(readers.read(found)[0].astype(int), expected, atol=atol)
  assert readers.mask_size(path) == expected.shape
  mask = 255 * readers.read_mask(path)
  np.testing.assert_allclose(mask, expected, atol=1 if atol else 1e-4)


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_behind_the_pixels_of_a_png(tmp_path, orientation):
  path, stored = tmp_path / "a.png", picture()
  Image.fromarray(stored).save(path)
  body = b"eXIf" + exif(orientation).tobytes()[6:]
  late = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
  data = path.read_bytes()
  path.write_bytes(data[:-12] + late + data[-12:])
  expected = SHOWN[orientation](stored)
  found = readers.probe(path)
  assert (found.height, found.width) == expected.shape
  np.testing.assert_array_equal(readers.read(found)[0], expected)


def test_the_header_of_a_png_is_enough_for_its_size(tmp_path, monkeypatch):
  path = tmp_path / "a.png"
  Image.fromarray(picture()).save(path)
  monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
  assert readers.mask_size(path) == (24, 40)
  assert readers.probe(path).width == 40


def test_only_named_formats_are_opened(tmp_path):
  path = tmp_path / "a.png"
  Image.fromarray(picture()).convert("RGB").save(path, "EPS")
  refused(path, "is damaged or not what its name says")
  Image.fromarray(picture()).save(path, "GIF")
  refused(path, "is damaged or not what its name says")
  # A wrong suffix of a format that is read is no harm.
  Image.fromarray(picture()).save(path, "BMP")
  np.testing.assert_array_equal(readers.read(readers.probe(path))[0], picture())
  path = tmp_path / "a.webp"
  Image.fromarray(picture()).save(path)
  refused(path, "of no known format; bring mp4, mov, m4v, avi, mkv, webm, wmv, gif, DICOM, npy,")


@pytest.mark.parametrize(
  ("name", "read"),
  [("a.png", None), ("a.tif", readers.probe_still), ("a.tif", readers.read_mask)],
)
def test_stacks_of_pictures_are_refused(tmp_path, name, read):
  path = tmp_path / name
  pages = [Image.fromarray(frame) for frame in clip(3)]
  pages[0].save(path, save_all=True, append_images=pages[1:])
  refused(path, "holds 3 pictures; save one a file", read=read)
  refused(path, "holds 3 pictures", read=readers.mask_size)


def test_previews_in_a_jpeg_are_no_stack(tmp_path):
  path, pages = tmp_path / "a.jpg", [Image.fromarray(picture()), Image.fromarray(picture()[::-1])]
  pages[0].save(path, "MPO", save_all=True, append_images=pages[1:])
  assert readers.probe(path).n_frames == 1
  assert abs(readers.read(readers.probe(path))[0].astype(int) - picture()).max() <= 8
  refused(path, "is a JPEG", read=readers.read_indices)


def test_a_wrong_checksum_of_a_png_is_seen(tmp_path):
  path, data = tmp_path / "a.png", io.BytesIO()
  Image.fromarray(picture()).save(data, "PNG", compress_level=0)
  data = bytearray(data.getvalue())
  data[data.find(b"IDAT") + 100] ^= 4
  path.write_bytes(data)
  for read in (None, readers.read_mask, readers.read_indices):
    refused(path, "is damaged", read=read)


def png_header(width, height):
  head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 0, 0, 0, 0)
  body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
  pixels = zlib.compress(b"0")
  return body + struct.pack(">I4s", len(pixels), b"IDAT") + pixels + b"\0\0\0\0"


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("a.png", png_header(15000, 13000)),
    ("a.png", png_header(2**31 - 1, 2**31 - 1)),
    ("a.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;"),
    (
      "a.bmp",
      b"BM" + struct.pack("<IHHIIiiHHIIiiII", 9**6, 0, 0, 54, 40, 30000, 30000, 1, 24, *6 * [0]),
    ),
  ],
)
def test_absurd_sizes_are_refused_in_one_line(tmp_path, name, data):
  path = tmp_path / name
  path.write_bytes(data)
  refused(path, "more than 179 million")


def test_more_frames_than_memory_are_refused(tmp_path, monkeypatch):
  path = tmp_path / "a.npy"
  np.save(path, clip())
  monkeypatch.setattr(readers.limits, "MAX_TOTAL", 3 * 24 * 40)
  refused(path, "cut it into parts")
  assert len(readers.read(readers.probe(path), [0, 1, 2])) == 3


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.npy", "a.mp4", "a.avi", "a.jpg", "a.tif"])
def test_what_is_no_file_is_refused(tmp_path, name):
  path = tmp_path / name
  refused(path, "does not exist")
  path.write_bytes(b"")
  refused(path, "is empty")
  path.write_bytes(b"no picture at all")
  refused(path, "damaged")
  path.unlink()
  os.mkfifo(path)
  refused(path, "is no ordinary file, but a pipe or device")
  if path.suffix in readers.PICTURES:
    refused(path, "pipe", read=readers.mask_size)
    path.unlink()
    path.mkdir()
    refused(path, "is a folder, not a file", read=readers.read_mask)
  refused(path.with_name("x" * 300 + ".png"), "cannot be read")


def test_16_bit_pictures_with_a_scale_of_their_own(tmp_path, warnings_seen):
  path, values = tmp_path / "a.png", picture().astype(np.uint16) * 16
  Image.fromarray(values).save(path)
  assert readers.read(readers.probe(path)).max() == round(values.max() / 257)
  assert "a.png: the largest of its 16-bit values is 3200 of 65535" in warnings_seen[0]
  # One line a video, and none if a single frame shows that its scale is right.
  folder = tmp_path / "v"
  folder.mkdir()
  for i, scale in enumerate((16, 0, 257)):
    Image.fromarray(picture().astype(np.uint16) * scale).save(folder / f"{i}.png")
  found = readers.probe(folder)
  readers.read(found)
  assert len(warnings_seen) == 1
  readers.read(found, [0, 1])
  assert len(warnings_seen) == 2


def write_tiff(path, values, *, bits=16, white_is_zero=False, order="<"):
  """Writes an uncompressed TIFF of 12 or 16 bits a pixel."""
  if bits == 12:
    pairs = values.reshape(-1, 2).astype(int)
    a, b = pairs[:, 0], pairs[:, 1]
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8).tobytes()
  else:
    data = values.astype(f"{order}u2").tobytes()
  tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1}
  tags |= {262: 1 - white_is_zero, 273: 8, 277: 1, 278: values.shape[0], 279: len(data)}
  entries = b"".join(struct.pack(f"{order}HHII", k, 4, 1, v) for k, v in tags.items())
  at = 8 + len(data) + len(data) % 2
  head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
  ifd = struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4
  path.write_bytes(head + data + b"\0" * (len(data) % 2) + ifd)


@pytest.mark.parametrize("options", [{"order": ">"}, {"white_is_zero": True}, {"bits": 12}, {}])
def test_kinds_of_16_bit_tiff(tmp_path, options):
  path, shown = tmp_path / "a.tif", picture()
  full = 4095 if options.get("bits") == 12 else 65535
  values = np.rint(shown / 255 * full).astype(np.uint16)
  write_tiff(path, full - values if options.get("white_is_zero") else values, **options)
  np.testing.assert_array_equal(readers.read(readers.probe(path))[0], shown)
  np.testing.assert_allclose(readers.read_mask(path), shown / 255, atol=2e-4)


def test_tiff_of_32_bits_is_no_picture(tmp_path):
  path = tmp_path / "a.tif"
  Image.fromarray(picture().astype(np.float32)).save(path)
  refused(path, "32 bits")


# GIF.


def write_gif(path, frames):
  first, *rest = (Image.fromarray(frame) for frame in frames)
  first.save(path, save_all=True, append_images=rest, duration=40)


def test_a_gif_is_read_in_one_pass(tmp_path, monkeypatch):
  path = tmp_path / "a.gif"
  frames = np.stack([np.roll(picture() // 16, i, 1) for i in range(30)])
  write_gif(path, frames)
  found, loads = readers.probe(path), []
  kind = GifImagePlugin.GifImageFile
  real = kind.load_end
  monkeypatch.setattr(kind, "load_end", lambda self: loads.append(1) or real(self))
  np.testing.assert_array_equal(readers.read(found), frames)
  assert len(loads) <= 31
  np.testing.assert_array_equal(readers.read(found, [20, 3, 20]), frames[[20, 3, 20]])


@pytest.mark.parametrize(
  # Players show what is to stay for no time for a tenth of a second.
  ("delays", "rate"),
  [([40, 40, 40], 25), ([20, 100, 60], 3000 / 180), ([40, 0, 40], 3000 / 180), ([0, 0, 0], 10)],
)
def test_the_rate_of_a_gif_is_the_mean_of_its_delays(tmp_path, delays, rate):
  path = tmp_path / "a.GIF"
  first, *rest = (Image.fromarray(picture() // 16 + i) for i in range(3))
  first.save(path, "GIF", save_all=True, append_images=rest, duration=delays)
  found = readers.probe(path)
  assert found.n_frames == 3 and found.frames_per_second == pytest.approx(rate)


def test_a_later_frame_of_an_absurd_size(tmp_path):
  path = tmp_path / "a.gif"
  write_gif(path, np.stack([picture() // 16, 15 - picture() // 16]))
  data = bytearray(path.read_bytes())
  at = data.rfind(struct.pack("<cHHHH", b",", 0, 0, 40, 24))
  data[at + 5 : at + 9] = b"\xff" * 4
  path.write_bytes(data)
  refused(path, "more than 179 million")


def test_a_gif_cut_between_frames_is_warned_of(tmp_path, warnings_seen):
  path = tmp_path / "a.gif"
  write_gif(path, np.stack([picture() // 16, picture()[::-1] // 16]))
  assert readers.probe(path).n_frames == 2 and not warnings_seen
  path.write_bytes(path.read_bytes()[:-1])
  readers.probe(path)
  assert "a.gif does not end as a GIF does" in warnings_seen[0]


# Folders of numbered pictures.


def save_all(folder, *names):
  folder.mkdir(exist_ok=True)
  for i, name in enumerate(names):
    Image.fromarray(picture() // 2 + i).save(folder / name)


@pytest.mark.parametrize(
  ("names", "numbers"),
  [
    (("001.png", "002.png", "010.png"), (1, 2, 10)),
    (("p7_f3.tif", "p7_f20.TIF"), (3, 20)),
    (("f3_v2.bmp", "f4_v2.bmp"), (3, 4)),
    (("p1_1.jpg", "p1_2.jpeg", "p2_1.jpg"), None),
    (("a3.png",), (3,)),
    (("a3.png", "a4_1.png"), None),
  ],
)
def test_numbers_of_files(tmp_path, names, numbers):
  save_all(tmp_path / "v", *names)
  (tmp_path / "v" / ".000.png").write_bytes(b"hidden")
  (tmp_path / "v" / "notes.txt").write_text("no picture")
  found = readers.probe(tmp_path / "v")
  assert found.numbers == numbers
  assert [path.name for path in found.files] == list(names)
  first = readers.read(found)[:, 0, 0].astype(int)
  expected = picture()[0, 0] // 2 + np.arange(len(names))
  assert abs(first - expected).max() <= names[0].endswith("jpg")


@pytest.mark.parametrize(
  ("names", "part"),
  [
    (("0.png", "1.jpg"), "holds 0.png and 1.jpg; frames of one video must have one format"),
    (("0.png", "1.webp"), "1.webp is of a format that frames are not read from"),
    (("0.png", "x.png"), "has no number"),
    (("1.png", "01.png"), "the same number"),
  ],
)
def test_folders_that_are_no_video(tmp_path, names, part):
  save_all(tmp_path / "v", *names)
  with pytest.raises(UserError, match=part):
    readers.probe(tmp_path / "v")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", "holds no PNG, JPEG, TIFF or BMP file")
  (tmp_path / "empty" / "0.png").mkdir()
  refused(tmp_path / "empty" / "0.png", "holds no PNG")
  with pytest.raises(UserError, match="0.png is a folder, not a file"):
    readers.probe(tmp_path / "empty")


# Arrays.


def npy(header, data=b"\0" * 64, version=1):
  text = header.encode() + b" " * (53 - len(header)) + b"\n"
  length = struct.pack("<H" if version == 1 else "<I", len(text))
  return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def described(shape, kind="|u1", fortran=False):
  return f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
  "data",
  [
    npy(described("(2, 8, 8)")),  # truncated
    npy(described("(1, 8, 4)")),  # more than it says
    npy(described("(1, 8, -8)")),
    npy(described("(4294967296, 4294967296, 4294967296)")),
    npy(described("(9223372036854775807, 2, 8)")),
    npy(described("(10**9, 8, 8)")),
    npy(described("8")),
    npy(described("()")),
    npy(described("(0, 8, 8)")),
    npy(described("(8, 8.0)")),
    npy(described("(1, 8, 8)", "|O")),
    npy(described("(1, 8, 8)", "nothing")),
    npy(described("(1, 8, 8)", [("a", "|u1")])),
    npy("[1, 2]"),
    npy("{'descr': '|u1'}"),
    npy("{'descr"),
    npy("(" * 50),
    npy("\0" * 20),
    npy(described("(1, 8, 8)"))[:30],
    npy(described("(1, 8, 8)"), version=9),
    b"\x93NUMPY\x02\0\xff\xff\xff\xff{}",
    b"PK\x03\x04",
    b"\x80\x04K\x01.",
  ],
)
def test_malformed_npy(tmp_path, data):
  path = tmp_path / "a.npy"
  path.write_bytes(data)
  refused(path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_sound_npy(tmp_path, version):
  path = tmp_path / "a.npy"
  path.write_bytes(npy(described("(1, 8, 8)"), bytes(range(64)), version))
  assert readers.read(readers.probe(path)).ravel().tolist() == list(range(64))
  path.write_bytes(npy(described("(1, 8, 8)", fortran=True), bytes(range(64))))
  assert readers.read(readers.probe(path))[0].T.ravel().tolist() == list(range(64))


@pytest.mark.parametrize(
  ("shape", "found"),
  [
    ((96, 96, 20), "96 frames 96 high and 20 wide?"),
    ((480, 640, 60), "480 frames 640 high and 60 wide?"),
    ((480, 640, 300), "read as 480 frames 640 high and 300 wide"),
    ((480, 1024, 100), "read as 480 frames 1024 high and 100 wide"),
    ((300, 800, 80), "read as 300 frames 800 high and 80 wide"),
    ((256, 256, 300), "read as 256 frames 256 high and 300 wide"),
    ((20, 96, 96), None),
    ((200, 480, 640), None),
    ((640, 480, 640), None),
    ((60, 528, 153), None),
    ((2, 24, 8), None),
    ((500, 40, 30), None),
    ((1000, 200, 60), None),
  ],
)
def test_arrays_whose_axes_look_wrong(tmp_path, warnings_seen, shape, found):
  path = tmp_path / "a.npy"
  np.lib.format.open_memmap(path, "w+", np.uint8, shape)
  if found and "?" in found:
    refused(path, found, "save np.moveaxis(frames, -1, 0)", '"npy_axes": "hwn"')
  else:
    clip = readers.probe(path)
    assert clip.n_frames == shape[0]
    readers.check_axes([clip])
    assert len(warnings_seen) == (found is not None)
    if found:
      assert f"a.npy: it is {list(shape)}, {found}" in warnings_seen[0]
      assert '"npy_axes": "hwn"' in warnings_seen[0] and '"npy_axes": "nhw"' in warnings_seen[0]
  warnings_seen.clear()
  for axes, n_frames in (("nhw", shape[0]), ("hwn", shape[2])):
    clip = readers.probe(path, npy_axes=axes)
    assert clip.n_frames == n_frames
    readers.check_axes([clip])
  assert not warnings_seen


def test_arrays_of_frames_last_are_read_where_the_user_says_so(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (3, 24, 40), np.uint8)
  np.save(tmp_path / "a.npy", np.moveaxis(frames, 0, -1))
  clip = readers.probe(tmp_path / "a.npy", npy_axes="hwn")
  assert (clip.n_frames, clip.height, clip.width) == frames.shape
  np.testing.assert_array_equal(readers.read(clip), frames)
  np.testing.assert_array_equal(readers.read(clip, [2, 0]), frames[[2, 0]])


@pytest.mark.parametrize(
  ("shapes", "found"),
  [
    (((100, 128, 70), (100, 128, 90)), "differ in their last axis"),
    (((100, 128, 90), (120, 128, 90)), None),  # N differs, as it should
    (((100, 128, 90), (120, 140, 90)), "b.npy"),
  ],
)
def test_arrays_of_a_set_say_together_which_axis_counts_frames(
  tmp_path, warnings_seen, shapes, found
):
  for name, shape in zip("ab", shapes, strict=True):
    np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)
  clips = [readers.probe(tmp_path / f"{name}.npy") for name in "ab"]
  if found == "differ in their last axis":
    with pytest.raises(UserError, match=rf"a.npy: all 2 arrays .* {found}.*\"hwn\".*\"nhw\""):
      readers.check_axes(clips)
    return
  readers.check_axes(clips)
  assert len(warnings_seen) == (2 if found else 0)


def test_masks_that_may_be_of_the_unturned_picture_are_warned_of(tmp_path, warnings_seen):
  for orientation, size, is_unsure in (
    (1, (24, 40), False),
    (2, (24, 40), True),
    (3, (24, 40), True),
    (6, (24, 40), False),
    (6, (24, 24), True),
  ):
    warnings_seen.clear()
    pixels = picture(*size)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif(orientation))
    clip = readers.probe(tmp_path / "a.png")
    readers.check_mask_size(tmp_path / "m.png", (clip.height, clip.width), clip)
    assert len(warnings_seen) == is_unsure
    assert not is_unsure or "m.png: its frame a.png is shown turned" in warnings_seen[0]


# Any damage is one line, and our own mistakes are none.


@pytest.mark.parametrize("error", [TypeError, KeyError, ValueError, OSError])
def test_mistakes_of_a_caller_are_not_called_damage(tmp_path, monkeypatch, error):
  def mistake(*_, **__):
    raise error("ours")

  Image.fromarray(picture()).save(tmp_path / "a.png")
  with pytest.raises(error, match="ours"), stills.opened(tmp_path / "a.png"):
    mistake()
  monkeypatch.setattr(stills, "turn", mistake)
  with pytest.raises(error, match="ours"):
    readers.read(readers.probe(tmp_path / "a.png"))
  monkeypatch.setattr(limits, "check_pixels", mistake)
  with pytest.raises(error, match="ours"):
    readers.probe(tmp_path / "a.png")
  nibabel.save(nibabel.Nifti1Image(picture(), np.eye(4)), tmp_path / "a.nii")
  with pytest.raises(error, match="ours"):
    nifti.read(tmp_path / "a.nii")


def damage(data, dice):
  data = bytearray(data)
  kind = dice.randrange(4)
  if kind == 0:
    return bytes(data[: dice.randrange(len(data))])
  for _ in range(dice.choice((1, 2, 8))):
    at = dice.randrange(min(len(data), 300) if kind == 1 else len(data))
    data[at] = data[at] ^ 1 << dice.randrange(8) if kind < 3 else dice.choice((0, 127, 128, 255))
  return bytes(data)


def test_random_damage_never_gives_anything_but_one_line(tmp_path):
  pixels, dice = picture(), random.Random(0)
  for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
    options = {} if name == "a.bmp" else {"exif": exif(6)}
    Image.fromarray(pixels).save(tmp_path / name, **options)
  Image.fromarray(pixels).save(tmp_path / "z.tif", compression="tiff_adobe_deflate")
  write_gif(tmp_path / "a.gif", clip(3))
  np.save(tmp_path / "a.npy", clip(3))
  write_video(tmp_path / "a.avi", clip(3), "mjpeg", "yuvj420p")
  write_video(tmp_path / "a.mp4", clip(3))
  write_video(tmp_path / "a.mkv", clip(3))
  for name in ("b.nii.gz", "b.nrrd", "b.mha", "b.tiff"):
    seeds.make_clip(tmp_path / name)
  for kind in ("plain", "jpeg", "lossless", "ls", "2000", "rle"):
    seeds.make_dicom(tmp_path / f"IM_{kind}", kind)
  whole = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
  n_refused = 0
  for path, _ in itertools.product(whole, range(15)):
    path.write_bytes(damage(whole[path], dice))
    reads = [lambda path: readers.read(readers.probe(path))]
    if path.suffix in readers.PICTURES:
      reads += [readers.mask_size, readers.read_mask, readers.read_indices]
    for read in reads:
      try:
        read(path)
      except UserError as error:
        n_refused += 1
        assert "\n" not in str(error) and path.name in str(error)
  assert n_refused > 60


def test_many_headers_are_read_by_several_processes_as_by_one(tmp_path):
  paths = [tmp_path / f"{i}.npy" for i in range(5)]
  for i, path in enumerate(paths):
    np.save(path, np.zeros((i + 1, 24, 40), np.uint8))
  paths[3].write_bytes(b"damaged")
  one, two = (list(readers.probe_all(paths, num_processes=n)) for n in (1, 2))
  for i in (0, 1, 2, 4):
    assert repr(one[i]) == repr(two[i]) == repr(readers.probe(paths[i]))
  assert isinstance(one[3], UserError) and str(one[3]) == str(two[3])
