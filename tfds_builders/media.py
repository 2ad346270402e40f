"""Reads videos, stills and confidence masks, as players and viewers show them.

A video or picture whose header says that it is shown turned or mirrored is turned; masks are taken
to be drawn on the shown picture, and a mask that says so itself is turned likewise.
"""

import dataclasses
import math
import pathlib
import re
import struct
import tokenize

import av
import numpy as np
from absl import logging

from lus_jax.errors import UserError
from tfds_builders import confidences, files, stills
from tfds_builders.stills import PICTURES

_CONTAINERS = (".mp4", ".avi")
FORMATS = (
  f"mp4, avi, gif, npy, {', '.join(s[1:] for s in PICTURES)} or a folder of numbered pictures"
)
# Images that frames may be stored as, which are not read: better refused than left out.
_OTHER_PICTURES = (".avif", ".dcm", ".gif", ".heic", ".jp2", ".npy", ".webp")
_MEND_VIDEO = "export it again, or re-encode it (ffmpeg -i old.mp4 new.mp4) and look at the result"
_MEND = "save it again"
_MEND_MASK = "save the mask again as 8- or 16-bit grey PNG"
# FFmpeg's errors are OSErrors and ValueErrors too; a broken header has no streams, codec or rate.
_VIDEO_ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, ArithmeticError)
# NumPy evaluates the header as Python text, and multiplies what it finds there.
_NPY_ERRORS = (
  OSError,
  ValueError,
  EOFError,
  SyntaxError,
  TypeError,
  KeyError,
  OverflowError,
  RecursionError,
  tokenize.TokenError,
)
# FFmpeg would open play lists too, which name other files.
_DEMUXERS = {"format_whitelist": "mov,avi", "protocol_whitelist": "file"}
_DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX
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


@dataclasses.dataclass(frozen=True)
class Media:
  """What the header of a video or still says.

  Attributes:
    path: where it is.
    files: the files it consists of, in order.
    n_frames: N.
    height: h as shown, in pixels.
    width: w as shown, in pixels.
    frames_per_second: NaN where unknown.
    orientation: how the first frame is shown, as in EXIF: 1 as stored, 2 to 8 turned or mirrored
      (5 to 8 exchange height and width).
    numbers: of a folder of numbered pictures, the number of each in its name, rising; None where
      the names have no single number that tells them apart, and for everything else.
    slots: of an AVI with empty frames, when each stored frame is shown first, counted in frames:
      it stays until the next; empty if every frame is stored.
  """

  path: pathlib.Path
  files: tuple[pathlib.Path, ...]
  n_frames: int
  height: int
  width: int
  frames_per_second: float = math.nan
  orientation: int = 1
  numbers: tuple[int, ...] | None = None
  slots: tuple[int, ...] = ()


def check_mask_size(path, size, media, *, of="frame"):
  """Refuses a mask that has not the size of its frame as shown.

  A mask of the stored size beside a frame that is turned by 90 degrees is told so. Half a turn and
  a mirror image keep the size, so that masks are taken to be drawn on the shown picture.

  Args:
    path: of the mask.
    size: its (height, width).
    media: the `Media` it was drawn on.
    of: what to call that in the message.

  Raises:
    UserError: the sizes differ.
  """
  shown = media.height, media.width
  if size == shown:
    return
  text = f"{path} is {size[1]} x {size[0]} and its {of} {shown[1]} x {shown[0]} pixels"
  if media.orientation in stills.SIDEWAYS and size == shown[::-1]:
    raise UserError(
      f"{text}, as {media.path.name} is turned by 90 degrees when it is shown; turn the mask "
      "likewise, or save both unturned."
    )
  raise UserError(f"{text}; save the mask at the {of}'s size.")


def _numbers_in(path):
  return tuple(int(digits) for digits in re.findall(r"[0-9]+", path.stem))


def numbered_pictures(folder):
  """Lists the pictures of a folder, of one format, in the order of the numbers in their names.

  Raises:
    UserError: there are none, or a name has no number, or two have the same, or formats differ.
  """
  found = {}
  try:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  except OSError as error:
    raise UserError(f"{folder} cannot be read ({error.strerror}).") from error
  for path in paths:
    suffix = path.suffix.lower()
    if suffix in _OTHER_PICTURES:
      raise UserError(f"{path} is of a format that frames are not read from; save it as PNG.")
    if suffix not in PICTURES:
      continue
    number = _numbers_in(path)
    if not number:
      raise UserError(f"{path} has no number in its name; number the frames: 000.png, 001.png.")
    if number in found:
      raise UserError(f"{path} has the same number as {found[number].name}; rename one of them.")
    found[number] = path
  if not found:
    raise UserError(
      f"{folder} holds no PNG, JPEG, TIFF or BMP file; put numbered frames there: 000.png, 001.png."
    )
  pictures = tuple(found[number] for number in sorted(found))
  for path in pictures:
    if path.suffix.lower()[:4] != pictures[0].suffix.lower()[:4]:  # .jpeg is .jpg
      raise UserError(
        f"{folder} holds {pictures[0].name} and {path.name}; frames of one video must have one "
        "format."
      )
  return pictures


def _file_numbers(pictures):
  """Returns the one number that tells the names apart, of each; None if there is no such."""
  columns = list(zip(*map(_numbers_in, pictures), strict=False))
  if len({len(_numbers_in(path)) for path in pictures}) > 1:
    return None
  varying = [column for column in columns if len(set(column)) > 1] or columns[-1:]
  return varying[0] if len(varying) == 1 else None


def _open_container(path, options=None):
  # An absolute path, as FFmpeg takes a colon in a name for a protocol.
  return av.open(str(path.absolute()), options=_DEMUXERS | (options or {}))


def _video_stream(path, container):
  if not container.streams.video:
    raise UserError(f"{path} has no video stream; export it again.")
  stream = container.streams.video[0]
  if stream.codec_context is None:
    raise UserError(f"{path} has a codec that cannot be decoded; {_MEND_VIDEO}.")
  return stream


def _demux(path, options):
  with _open_container(path, options) as container:
    stream = _video_stream(path, container)
    packets = [packet for packet in container.demux(stream) if packet.size]
    rate = float(stream.average_rate) if stream.average_rate else math.nan
    return packets, stream.frames, container.format.name, rate


def _is_whole_avi(path):
  with path.open("rb") as file:
    head = file.read(12)
    return head[:4] == b"RIFF" and path.stat().st_size >= 8 + struct.unpack("<I", head[4:8])[0]


def _slots(path, packets, stated):
  """Returns when each packet of an AVI is shown if the others of its frames are empty, else ()."""
  slots = tuple(sorted(-1 if packet.dts is None else packet.dts for packet in packets))
  possible = slots and slots[0] == 0 and slots[-1] < stated and len(set(slots)) == len(slots)
  ends = slots and slots[-1] == stated - 1
  return slots if possible and (ends or _is_whole_avi(path)) else ()


def _orientation(path, frame):
  """Returns the EXIF orientation that a decoded frame is shown with."""
  for data in frame.side_data:
    if data.type == _DISPLAY_MATRIX:
      matrix = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].ravel().astype(float)
      signs = np.sign(np.where(abs(matrix) < 1e-3 * abs(matrix).max(), 0, matrix))
      found = _ORIENTATIONS.get(tuple(signs.astype(int)))
      if found is None and matrix.any():
        raise UserError(
          f"{path} is shown turned by an angle that is no multiple of 90 degrees; {_MEND_VIDEO}."
        )
      return found or 1
  return 1


def _probe_container(path):
  with _video_damage(path):
    # The container counts all stored frames; its edit list may hide some of them.
    stored, stated, kind, _ = _demux(path, {"ignore_editlist": "1"})
    packets, _, _, rate = _demux(path, {})
  n_frames = sum(not packet.is_discard for packet in packets)
  slots = _slots(path, packets, stated) if kind == "avi" and 0 < len(stored) < stated else ()
  damaged = any(packet.is_corrupt for packet in stored)
  if (len(stored) < stated and not slots) or not n_frames or damaged:
    whole = sum(not packet.is_corrupt for packet in stored)
    raise UserError(
      f"{path} is truncated: {whole} of {stated} frames are there; copy or export it again."
    )
  with _video_damage(path), _open_container(path) as container:
    stream = _video_stream(path, container)
    files.check_pixels(path, stream.codec_context.height, stream.codec_context.width)
    first = next(container.decode(stream), None)
    if first is None:
      raise UserError(f"{path} is damaged at frame 0; {_MEND_VIDEO}.")
    turned = _orientation(path, first)
  size = stream.codec_context.height, stream.codec_context.width
  height, width = size[::-1] if turned in stills.SIDEWAYS else size
  return Media(
    path, (path,), stated if slots else n_frames, height, width, rate, turned, slots=slots
  )


def _video_damage(path):
  return files.damage_is_a_user_error(path, _MEND_VIDEO, _VIDEO_ERRORS)


def _read_container(media, frames):
  wanted, images, n_decoded = set(frames), {}, 0
  # Where frames are empty, each stored one stays until the next.
  shown_at = media.slots or range(media.n_frames)
  with _video_damage(media.path), _open_container(media.path) as container:
    stream = _video_stream(media.path, container)
    stream.thread_type = "AUTO"
    # Otherwise decoders invent what they cannot decode.
    stream.codec_context.options = {"err_detect": "explode"}
    for frame in container.decode(stream):
      if n_decoded < len(shown_at):
        end = shown_at[n_decoded + 1] if n_decoded + 1 < len(shown_at) else media.n_frames
        repeats = wanted.intersection(range(shown_at[n_decoded], end))
        if repeats:
          files.check_pixels(media.path, frame.height, frame.width)
          image = frame.to_ndarray(format="gray")
          images |= dict.fromkeys(repeats, stills.turn(image, _orientation(media.path, frame)))
      n_decoded += 1
  if n_decoded < len(shown_at):
    raise UserError(f"{media.path} is damaged at frame {shown_at[n_decoded]}; {_MEND_VIDEO}.")
  return [images[i] for i in frames]


def _probe_gif(path):
  with stills.opened(path) as image:
    duration = image.info.get("duration")
    header = image.n_frames, image.height, image.width
  with path.open("rb") as file:
    file.seek(-min(64, path.stat().st_size), 2)
    if not file.read().rstrip(b"\0").endswith(b";"):
      logging.warning("%s does not end as a GIF does; its last frames may be missing.", path)
  return Media(path, (path,), *header, 1000 / duration if duration else math.nan)


def _probe_pictures(path, pictures, numbers=None):
  sizes, orientation = {}, 1
  for file in pictures:
    with stills.opened(file) as image:
      sizes.setdefault(stills.shown_size(image), file)
      orientation = orientation if orientation > 1 else stills.orientation(image)
  if len(sizes) > 1:
    (size, first), (other, second) = list(sizes.items())[:2]
    raise UserError(
      f"{second} is {other[1]} x {other[0]} and {first.name} {size[1]} x {size[0]} pixels; frames "
      "of one video must have one size."
    )
  ((height, width),) = sizes
  return Media(
    path, tuple(pictures), len(pictures), height, width, orientation=orientation, numbers=numbers
  )


def _read_gif(media, frames):
  # In one pass, as a frame is drawn on the one before.
  wanted, images = set(frames), {}
  with stills.opened(media.path) as image:
    for i in range(max(wanted, default=-1) + 1):
      image.seek(i)
      if i in wanted:
        images[i] = stills.grey(image, media.path)
  return [images[i] for i in frames]


def _read_pictures(media, frames):
  images = []
  for i in frames:
    with stills.opened(media.files[i]) as image:
      images.append(stills.grey(image, media.files[i]))
  return images


def _load_npy(path):
  files.check_file(path, _MEND)
  with files.damage_is_a_user_error(path, _MEND, _NPY_ERRORS):
    array = np.lib.format.open_memmap(path, mode="r")
  if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size or array.shape[-1] < 5:
    raise UserError(
      f"{path} is {array.dtype} {list(array.shape)}; store grey uint8 frames as [N, h, w] or one "
      "as [h, w]."
    )
  if path.stat().st_size != array.offset + array.nbytes:
    raise UserError(f"{path} holds more than its header says; {_MEND}.")
  frames = array.reshape(-1, *array.shape[-2:])
  files.check_pixels(path, *frames.shape[1:])
  return frames


def _check_axes(path, shape):
  """Refuses or warns of an array that looks like [h, w, N]."""
  n, height, width = shape
  mend = (
    f"save np.moveaxis(frames, -1, 0) if its axes are [h, w, N], {n} x {height} and {width} frames"
  )
  if width < 64 and 3 * width <= min(n, height):
    raise UserError(f"{path} is {list(shape)}: {n} frames of {height} x {width}? Please {mend}.")
  if width < min(n, height) and max(n, height) <= 2 * min(n, height):
    logging.warning(
      "%s is %s, read as %d frames %d high and %d wide; %s.",
      path,
      list(shape),
      n,
      height,
      width,
      mend,
    )


def probe(path):
  """Reads the header of a video or still; of a video the first frame too.

  Args:
    path: mp4, avi, gif, npy ([N, h, w] or [h, w] uint8), a picture (`PICTURES`), or a folder of
      numbered pictures.

  Returns:
    A `Media`.

  Raises:
    UserError: it is missing, truncated, too large, or of no such format.
  """
  suffix = path.suffix.lower()
  try:
    folder = path.is_dir()
  except (OSError, ValueError):
    folder = False
  if folder:
    pictures = numbered_pictures(path)
    return _probe_pictures(path, pictures, _file_numbers(pictures))
  if suffix not in (*_CONTAINERS, *PICTURES, ".gif", ".npy") and path.exists():
    raise UserError(f"{path} is of no known format; bring {FORMATS}.")
  files.check_file(path, "put the file there or mend its name")
  if suffix in _CONTAINERS:
    return _probe_container(path)
  if suffix == ".gif":
    return _probe_gif(path)
  if suffix == ".npy":
    shape = _load_npy(path).shape
    _check_axes(path, shape)
    return Media(path, (path,), *shape)
  return _probe_pictures(path, (path,))


def read(media, frames=None):
  """Reads frames as grey values, as they are shown; a compressed video is decoded once, whole.

  Args:
    media: what `probe` returned.
    frames: which frames, counted from 0; all by default.

  Returns:
    uint8 [len(frames), h, w].

  Raises:
    UserError: the file is damaged, or too much is asked for at once.
  """
  frames = range(media.n_frames) if frames is None else frames
  suffix = media.files[0].suffix.lower()
  n_bytes = len(frames) * media.height * media.width
  if n_bytes > files.MAX_TOTAL:
    raise UserError(
      f"{media.path} has {n_bytes / 2**30:.0f} GiB of frames, more than "
      f"{files.MAX_TOTAL // 2**30} are read together; cut it into parts, or make it smaller."
    )
  if suffix in _CONTAINERS:
    images = _read_container(media, frames)
  elif suffix == ".npy":
    images = _load_npy(media.path)[list(frames)]
  elif suffix == ".gif":
    images = _read_gif(media, frames)
  else:
    images = _read_pictures(media, frames)
  for image in images:
    if image.shape != (media.height, media.width):
      raise UserError(
        f"{media.path} changes its frame size on the way; frames of one video must have one size."
      )
  return np.stack(images)


def _check_mask_type(path, image, *, palette=False, colours=False):
  if image.mode in ("1", "L") or image.mode.startswith("I;16"):
    return
  if image.format == "TIFF" and image.mode in ("I", "F"):
    return
  if image.mode == "P" and palette:
    return
  # JPEG and BMP are often saved with three equal channels.
  if image.mode == "RGB" and (colours or image.format in ("JPEG", "BMP")):
    return
  raise UserError(
    f"{path} has pixels of type {image.mode}; save masks as 8- or 16-bit grey PNG (one channel, "
    f"{'' if palette else 'no palette, '}no transparency)."
  )


def mask_size(path, *, palette=False):
  """Reads a mask's (height, width) from its header, as shown; `palette` allows a palette too.

  Raises:
    UserError: it is no grey PNG, TIFF, BMP or JPEG.
  """
  with stills.opened(path, _MEND_MASK) as image:
    _check_mask_type(path, image, palette=palette)
    return stills.shown_size(image)


def _read_mask(path, *, maximum, binary, colours=False):
  with stills.opened(path, _MEND_MASK) as image:
    _check_mask_type(path, image, colours=colours)
    values, full = stills.pixels(image, path)
    is_jpeg = image.format == "JPEG"
  if values.ndim == 3:
    if np.ptp(values, axis=-1).any():
      raise UserError(f"{path} has colours; save masks in grey.")
    values, full = values[..., 0], 255
  if full == 255 and maximum in (None, 255):
    values = confidences.without_jpeg_noise(values, path, is_jpeg=is_jpeg)
  return confidences.fractions(values, path, full=full, maximum=maximum, binary=binary)


def read_mask(path, *, maximum=None, binary=False):
  """Reads a confidence mask.

  Args:
    path: a grey PNG, TIFF, BMP or JPEG; black and white that went through JPEG is set back to it.
    maximum: the value that means 100 %, `confidence_maximum` of dataset.json; by default what the
      pixel type can hold (see `confidences.fractions`).
    binary: whether the caller refuses what is neither 0 nor 1, so that no scale is asked for.

  Returns:
    float32 [h, w] in [0, 1].

  Raises:
    UserError: it is damaged, not grey, or its scale cannot be known.
  """
  return _read_mask(path, maximum=maximum, binary=binary)


def read_binary_mask(path, *, maximum=None):
  """Reads a mask of two tones, cut at half.

  Args:
    path: as in `read_mask`, or with three equal channels.
    maximum: as in `read_mask`.

  Returns:
    Where it is at least half, [h, w] bool, and how many pixels are neither 0 nor full.

  Raises:
    UserError: it is damaged or has colours, or nothing of what is drawn reaches half.
  """
  mask = _read_mask(path, maximum=maximum, binary=True, colours=True)
  if 0 < mask.max() < 0.5:
    raise UserError(
      f"{path}: its largest value is {mask.max():.1%} of white, so that nothing would be left; "
      "save it in black and white (0 and 255, not 0 and 1)."
    )
  return mask >= 0.5, int(((mask > 0) & (mask < 1)).sum())


def read_indices(path):
  """Reads a mask of label indices, grey or palette: integers [h, w].

  Raises:
    UserError: it is damaged, neither grey nor of a palette, or a JPEG, which changes indices.
  """
  with stills.opened(path, _MEND_MASK) as image:
    _check_mask_type(path, image, palette=True)
    if image.format == "JPEG":
      raise UserError(f"{path} is a JPEG, which changes label indices; save the mask as PNG.")
    values, _ = stills.pixels(image, path)
  if values.ndim == 3:
    raise UserError(f"{path} has colours; save the mask's indices in grey or with a palette.")
  return values.astype(np.int32)
