"""Reads videos: mp4, mov, avi and what else FFmpeg opens safely."""

import math
import struct
from typing import NamedTuple

import av
import numpy as np

from lus_jax.errors import UserError
from lus_jax.files import damage_is_a_user_error
from lus_jax.media import limits, stills
from lus_jax.media.clips import Media

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".wmv")
_MEND = "export it again, or re-encode it (ffmpeg -i old.mp4 new.mp4) and look at the result"
# FFmpeg's errors are OSErrors and ValueErrors too; a broken header has no streams, codec or rate.
_ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, ArithmeticError)
# FFmpeg would open play lists too, which name other files.
_DEMUXERS = {"format_whitelist": "mov,avi,matroska,asf", "protocol_whitelist": "file"}
# Decoders take memory by what the stream says, whatever the header does.
_DECODERS = {"max_pixels": str(limits.MAX_VIDEO_PIXELS)}
_DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX
# How Matroska and Windows Media files begin, and where they say how long they are.
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# The signs of a display matrix (what x becomes, what y becomes), as EXIF orientations.
_ORIENTATIONS = {
  (1, 0, 0, 1): 1,
  (-1, 0, 0, 1): 2,
  (-1, 0, 0, -1): 3,
  (1, 0, 0, -1): 4,
  (0, 1, 1, 0): 5,
  (0, 1, -1, 0): 6,
  (0, -1, -1, 0): 7,
  (0, -1, 1, 0): 8,
}
# Titles and comments are not asked for; many are not UTF-8, which PyAV minded up to version 18.
_TITLES = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class _Packet(NamedTuple):
  dts: int | None
  is_discard: bool
  is_corrupt: bool


def _damage(path):
  return damage_is_a_user_error(path, _MEND, _ERRORS)


def _open(path, options=None):
  # An absolute path, as FFmpeg takes a colon in a name for a protocol.
  options = _DEMUXERS | (options or {})
  return av.open(str(path.absolute()), options=options, **_TITLES)


def _stream(path, container):
  if not container.streams.video:
    raise UserError(f"{path} has no video stream; export it again.")
  stream = container.streams.video[0]
  if stream.codec_context is None:
    raise UserError(f"{path} has a codec that cannot be decoded; {_MEND}.")
  return stream


def _demux(path, options):
  with _open(path, options) as container:
    stream = _stream(path, container)
    # Not the packets themselves, which hold the file.
    packets = [
      _Packet(packet.dts, packet.is_discard, packet.is_corrupt)
      for packet in container.demux(stream)
      if packet.size
    ]
    rate = float(stream.average_rate) if stream.average_rate else math.nan
    return packets, stream.frames, container.format.name, rate


def _n_lacking(path):
  """How many bytes a Matroska or Windows Media file lacks, whose headers count no frames."""
  size = path.stat().st_size
  with path.open("rb") as file:
    start = file.read(2**16)
  at = start.find(_ASF_FILE)
  if start.startswith(_ASF) and 0 <= at <= len(start) - 48:
    return max(0, struct.unpack("<Q", start[at + 40 : at + 48])[0] - size)
  at = start.find(_SEGMENT)
  if not start.startswith(_EBML) or not 0 <= at <= len(start) - 12 or not start[at + 4]:
    return 0
  # The number of zeros that a length begins with says how many more bytes it has.
  more = 8 - start[at + 4].bit_length()
  length = int.from_bytes(start[at + 4 : at + 5 + more]) & (2 ** (7 * (more + 1)) - 1)
  unknown = length == 2 ** (7 * (more + 1)) - 1
  return 0 if unknown else max(0, at + 5 + more + length - size)


def _n_empty_at_the_end(path):
  """How many frames at the end of an AVI its index calls empty; FFmpeg passes over them."""
  with path.open("rb") as file:
    file.seek(12)
    while len(head := file.read(8)) == 8:
      kind, size = struct.unpack("<4sI", head)
      if kind == b"idx1":
        entries = file.read(size - size % 16)
        entries = struct.iter_unpack("<4sIII", entries[: len(entries) // 16 * 16])
        sizes = [n for chunk, _, _, n in entries if chunk[2:] in (b"dc", b"db")]  # of pictures
        return next((i for i, n in enumerate(reversed(sizes)) if n), 0)
      file.seek(size + size % 2, 1)
  return 0


def _slots(path, packets, stated):
  """Returns when each packet of an AVI is shown if all frames that lack are empty, else ()."""
  slots = tuple(sorted(-1 if packet.dts is None else packet.dts for packet in packets))
  if not slots or slots[0] or len(set(slots)) < len(slots):
    return ()
  lacking = stated - 1 - slots[-1]
  return slots if lacking == 0 or lacking == _n_empty_at_the_end(path) else ()


def _orientation(path, frame):
  """Returns the EXIF orientation that a decoded frame is shown with."""
  # Asked by key: what a loop over it gives differs between versions of PyAV.
  data = frame.side_data.get(_DISPLAY_MATRIX)
  if data is None:
    return 1
  matrix = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].ravel().astype(float)
  signs = np.sign(np.where(abs(matrix) < 1e-3 * abs(matrix).max(), 0, matrix))
  found = _ORIENTATIONS.get(tuple(signs.astype(int)))
  if found is None and matrix.any():
    raise UserError(
      f"{path} is shown turned by an angle that is no multiple of 90 degrees; {_MEND}."
    )
  return found or 1


def probe(path, words):
  """Reads the header of a video and decodes its first frame: a `Media` with its `slots`.

  Args:
    path: of it, of one of `SUFFIXES`.
    words: of the user; none is needed.

  Raises:
    UserError: it is truncated, damaged, too large, or its codec is not known.
  """
  del words
  with _damage(path):
    # The container counts all stored frames; its edit list may hide some of them.
    stored, stated, kind, _ = _demux(path, {"ignore_editlist": "1"})
    packets, _, _, rate = _demux(path, {})
    lacking = _n_lacking(path)
  if lacking:
    raise UserError(f"{path} is truncated: its last {lacking} bytes lack; copy or export it again.")
  n_frames = sum(not packet.is_discard for packet in packets)
  slots = _slots(path, packets, stated) if kind == "avi" and 0 < len(stored) < stated else ()
  damaged = any(packet.is_corrupt for packet in stored)
  if (len(stored) < stated and not slots) or not n_frames or damaged:
    whole = sum(not packet.is_corrupt for packet in stored)
    raise UserError(
      f"{path} is truncated: {whole} of {stated} frames are there; copy or export it again."
    )
  with _damage(path), _open(path) as container:
    stream = _stream(path, container)
    size = stream.codec_context.height, stream.codec_context.width
    limits.check_pixels(path, *size, limits.MAX_VIDEO_PIXELS)
    stream.codec_context.options = _DECODERS
    first = next(container.decode(stream), None)
    if first is None:
      raise UserError(f"{path} is damaged at frame 0; {_MEND}.")
    turned = _orientation(path, first)
  shown = size[::-1] if turned in stills.SIDEWAYS else size
  return Media(path, (path,), stated if slots else n_frames, *shown, rate, turned, slots=slots)


def read(media, wanted):
  """Decodes a video once, whole.

  Args:
    media: what `probe` returned.
    wanted: numbers of frames, rising.

  Yields:
    Grey pictures as shown, [h, w] uint8 each.

  Raises:
    UserError: it is damaged.
  """
  path, left, n_decoded = media.path, list(reversed(wanted)), 0
  # Where frames are empty, each stored one stays until the next.
  shown_at = media.slots or range(media.n_frames)
  with _damage(path), _open(path) as container:
    stream = _stream(path, container)
    stream.thread_type = "AUTO"
    # Otherwise decoders invent what they cannot decode.
    stream.codec_context.options = _DECODERS | {"err_detect": "explode"}
    for frame in container.decode(stream):
      if n_decoded < len(shown_at):
        end = shown_at[n_decoded + 1] if n_decoded + 1 < len(shown_at) else media.n_frames
        image = None
        while left and left[-1] < end:
          if image is None:
            limits.check_pixels(path, frame.height, frame.width)
            image = stills.turn(frame.to_ndarray(format="gray"), _orientation(path, frame))
          left.pop()
          yield image
      n_decoded += 1
  if n_decoded < len(shown_at):
    raise UserError(f"{path} is damaged at frame {shown_at[n_decoded]}; {_MEND}.")


def is_uneven(path):
  """Whether the frames of a video stay for different times, by more than rounding.

  Raises:
    UserError: it is damaged.
  """
  with _damage(path), _open(path) as container:
    times = [packet.pts for packet in container.demux(_stream(path, container)) if packet.size]
  steps = np.diff(sorted(time for time in times if time is not None))
  # Times are whole numbers of a unit; the last frame's is not known.
  return bool(steps.size) and steps.max() > 1.5 * max(np.median(steps), 1)


def texts(path):
  """What a video says beside its pictures: pairs of FFmpeg's name, as 'title', and a text.

  Its further streams (sound, subtitles, data) and its chapters are among them, without their text.

  Raises:
    UserError: it is damaged.
  """
  with _damage(path), _open(path) as container:
    parts = (container, *container.streams)
    found = [(name.casefold(), str(text)) for part in parts for name, text in part.metadata.items()]
    found += [
      (f"a stream of {stream.type}", "") for stream in container.streams if stream.type != "video"
    ]
    found += [("chapters", str(one.get("metadata", ""))) for one in container.chapters()]
  return found


def mean_rate(path):
  """Frames per second of a GIF, whose frames may stay for different times; NaN where unknown."""
  with _damage(path), av.open(str(path.absolute()), format="gif", **_TITLES) as container:
    stream = _stream(path, container)
    times = [packet.duration or 0 for packet in container.demux(stream) if packet.size]
    seconds = float(sum(times) * stream.time_base)
  return len(times) / seconds if seconds else math.nan
