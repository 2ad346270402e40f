"""Reads videos, stills and confidence masks, as players and viewers show them.

A video or picture whose header says that it is shown turned or mirrored is turned; masks are taken
to be drawn on the shown picture, and a mask that says so itself is turned likewise.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lus_jax import notices, pool
from lus_jax.errors import UserError
from lus_jax.files import NPY_ERRORS, check_file, damage_is_a_user_error
from lus_jax.media import confidences, containers, dicom, limits, nifti, stills, volumes
from lus_jax.media.clips import Media, Words
from lus_jax.media.stills import PICTURES

# Images that frames may be stored as, which are not read: better refused than left out.
OTHER_PICTURES = (
  *(".avif", ".dcm", ".dicom", ".gif", ".gz", ".heic", ".jp2", ".mha", ".mhd", ".nii", ".npy"),
  *(".nrrd", ".webp"),
)
# How far JPEG moves the channels of grey apart.
_JPEG_COLOUR = 4
_IF_HWN = 'save np.moveaxis(frames, -1, 0), or write "npy_axes": "hwn" into dataset.json'
_IF_NHW = 'write "npy_axes": "nhw" there'
_MEND = "save it again"
_FIND = "put the file there or mend its name"
_MEND_MASK = "save the mask again as 8- or 16-bit grey PNG"


def check_mask_size(path, size, media, *, of="frame"):
  """Refuses a mask that has not the size of its frame as shown.

  A mask of the stored size beside a frame that is turned by 90 degrees is told so. Half a turn, a
  mirror image and a square keep the size, so that masks are taken to be drawn on the shown picture,
  with a warning.

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
    if media.orientation != 1 and not (media.orientation in stills.SIDEWAYS and size != size[::-1]):
      notices.warn(
        "%s: its %s %s is shown turned or mirrored, as its header says, and masks are taken as "
        "drawn on the shown picture; if they were drawn on the stored one, save both unturned.",
        path,
        of,
        media.path.name,
      )
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


def _format(path):
  return path.suffix.lower().replace("jpeg", "jpg").replace("tiff", "tif")


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
    if suffix in OTHER_PICTURES:
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
    if _format(path) != _format(pictures[0]):
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


def _probe_gif(path, words):
  del words
  with stills.opened(path) as image:
    header = stills.n_frames(image, path), image.height, image.width
  with path.open("rb") as file:
    file.seek(-min(64, path.stat().st_size), 2)
    if not file.read().rstrip(b"\0").endswith(b";"):
      notices.warn("%s does not end as a GIF does; its last frames may be missing.", path)
  return Media(path, (path,), *header, containers.mean_rate(path))


def _probe_folder(path, words):
  pictures = numbered_pictures(path)
  sizes, orientation = {}, 1
  for file in pictures:
    with stills.opened(file) as image:
      sizes.setdefault(stills.shown_size(image, file), file)
      orientation = orientation if orientation > 1 else stills.orientation(image, file)
  if len(sizes) > 1:
    (size, first), (other, second) = list(sizes.items())[:2]
    raise UserError(
      f"{second} is {other[1]} x {other[0]} and {first.name} {size[1]} x {size[0]} pixels; frames "
      "of one video must have one size."
    )
  return Media(
    path,
    pictures,
    len(pictures),
    *next(iter(sizes)),
    orientation=orientation,
    numbers=_file_numbers(pictures),
    window=words.window,
  )


def _probe_picture(path, words):
  with stills.opened(path, stack=True) as image:
    n_frames, rate = stills.n_frames(image, path), math.nan
    size, orientation = stills.shown_size(image, path), stills.orientation(image, path)
    if n_frames > 1 or stills.imagej(image, path):
      rate = _rate_of_imagej(stills.imagej(image, path), n_frames, path)
  return Media(path, (path,), n_frames, *size, rate, orientation, window=words.window)


def _rate_of_imagej(said, n_frames, path):
  """Frames per second of a stack by what ImageJ wrote; refuses what is no clip (`UserError`)."""

  def number(name):
    try:
      return float(said[name])
    except (KeyError, ValueError):
      return 0

  if number("images") > n_frames:
    raise UserError(
      f"{path} keeps {said['images']} pictures behind one header, as ImageJ does above 4 GB; save "
      "it in parts, or as mp4 or AVI."
    )
  axes = [f"{said[name]} {name}" for name in ("channels", "slices", "frames") if number(name) > 1]
  if len(axes) > 1 or number("channels") > 1:
    raise UserError(f"{path} is a stack of {' and '.join(axes)}; save one clip of grey frames.")
  rate = number("fps") or (1 / number("finterval") if number("finterval") else 0)
  return rate if 0 < rate < math.inf else math.nan


def _read_gif(media, wanted):
  # In one pass, as a frame is drawn on the one before.
  with stills.opened(media.path) as image:
    for i in range(max(wanted, default=-1) + 1):
      stills.seek(image, media.path, i)
      if i in wanted:
        yield stills.grey(image, media.path)[0]


def _read_pictures(media, wanted):
  largest = []
  for image, file in _pictures(media, wanted):
    pixels, of_dark = stills.grey(image, file, media.window)
    largest.append(of_dark)
    yield pixels
  if None not in largest and max(largest, default=0):
    notices.warn(
      "%s: the largest of its 16-bit values is %d of 65535, so it is nearly black; if its scale is "
      "another (12 bits: 4095), save it in 8 bits.",
      media.path,
      max(largest),
    )


def _pictures(media, wanted):
  """Yields the open pictures of a folder, or pages of one file, and their files."""
  if media.format == "folder":
    for i in wanted:
      with stills.opened(media.files[i]) as image:
        yield image, media.files[i]
    return
  with stills.opened(media.path, stack=True) as image:
    for i in wanted:
      if i:
        stills.seek(image, media.path, i)
      yield image, media.path


def _load_npy(path, axes):
  check_file(path, _MEND)
  with damage_is_a_user_error(path, _MEND, NPY_ERRORS), np.errstate(over="raise"):
    array = np.lib.format.open_memmap(path, mode="r")
  if (
    array.dtype != np.uint8
    or array.ndim not in (2, 3)
    or not array.size
    or (array.shape[-1] < 5 and axes is None)
  ):
    raise UserError(
      f"{path} is {array.dtype} {list(array.shape)}; store grey uint8 frames as [N, h, w] or one "
      "as [h, w]."
    )
  if path.stat().st_size != array.offset + array.nbytes:
    raise UserError(f"{path} holds more than its header says; {_MEND}.")
  frames = array.reshape(-1, *array.shape[-2:])
  if axes == "hwn" and array.ndim == 3:
    frames = np.moveaxis(array, -1, 0)
  limits.check_pixels(path, *frames.shape[1:])
  return frames


def _refuse_strips(path, shape):
  """Refuses an array of frames less than 64 pixels wide and thrice as high, if [h, w, N] fits."""
  n, height, width = shape
  if width < 64 and 3 * width <= min(n, height) and max(n, height) <= 4 * min(n, height):
    raise UserError(
      f"{path} is {list(shape)}: {n} frames {height} high and {width} wide? If its axes are "
      f"[h, w, N] ({width} frames), {_IF_HWN}; if not, {_IF_NHW}, or save a folder of pictures."
    )


def check_axes(clips):
  """Refuses or warns of npy files whose axes may be [h, w, N], where nobody said which they are.

  Those of a set that differ in their last axis only are refused, and those that differ in their
  first only are not doubted. Others are if their last axis is the shortest, or their first two are
  equal, and the first two could be those of a picture.

  Args:
    clips: the `Media` of a set.

  Raises:
    UserError: only [h, w, N] explains how the arrays differ.
  """
  shapes = {
    clip.path: (clip.n_frames, clip.height, clip.width)
    for clip in clips
    if clip.path.suffix.lower() == ".npy" and clip.npy_axes is None and clip.n_frames > 1
  }
  first, second, third = ({shape[axis] for shape in shapes.values()} for axis in range(3))
  if len(third) > 1 and len(first) == len(second) == 1:
    path, (n, height, _) = next(iter(shapes.items()))
    raise UserError(
      f"{path}: all {len(shapes)} arrays begin with {n} x {height} and differ in their last axis, "
      f"so that it seems to count frames, [h, w, N]: {_IF_HWN}; if not, {_IF_NHW}."
    )
  if len(first) > 1 and len(second) == len(third) == 1:
    return
  for path, (n, height, width) in shapes.items():
    short, long = sorted((n, height))
    if (width < short or n == height) and long <= 4 * short:
      notices.warn(
        "%s: it is [%d, %d, %d], read as %d frames %d high and %d wide; if its axes are [h, w, N] "
        f"(%d frames), {_IF_HWN}; if not, {_IF_NHW}.",
        path,
        *(n, height, width) * 2,
        width,
      )


def _probe_npy(path, words):
  shape = _load_npy(path, words.npy_axes).shape
  if words.npy_axes is None:
    _refuse_strips(path, shape)
  return Media(path, (path,), *shape, npy_axes=words.npy_axes)


def _read_npy(media, wanted):
  frames = _load_npy(media.path, media.npy_axes)
  return (frames[i] for i in wanted)


class _Format(NamedTuple):
  """A format: how users call it, its suffixes, and its functions.

  `probe(path, words)` gives a `Media`, `read(media, wanted)` yields pictures [h, w] uint8 of the
  frames `wanted`, which rise and differ.
  """

  title: str
  suffixes: tuple[str, ...]
  probe: Callable
  read: Callable


# Every format by the name that `Media.format` holds.
_FORMATS = {
  "video": _Format(
    ", ".join(s[1:] for s in containers.SUFFIXES),
    containers.SUFFIXES,
    containers.probe,
    containers.read,
  ),
  "gif": _Format("gif", (".gif",), _probe_gif, _read_gif),
  "dicom": _Format("DICOM", dicom.SUFFIXES, dicom.probe, dicom.read),
  "npy": _Format("npy", (".npy",), _probe_npy, _read_npy),
  "nifti": _Format("NIfTI", nifti.SUFFIXES, nifti.probe, nifti.read_clip),
  "volume": _Format("NRRD, mha, mhd", volumes.SUFFIXES, volumes.probe, volumes.read),
  "picture": _Format(
    f"{', '.join(s[1:] for s in PICTURES)} (also a stack)",
    PICTURES,
    _probe_picture,
    _read_pictures,
  ),
  "folder": _Format("a folder of numbered pictures", (), _probe_folder, _read_pictures),
}
FORMATS = " or ".join(", ".join(one.title for one in _FORMATS.values()).rsplit(", ", 1))


def _format_of(path):
  """The name of the format that reads a file or folder.

  Raises:
    UserError: there is none, or no such file.
  """
  with contextlib.suppress(OSError, ValueError):  # a null in the name, or one too long
    if path.is_dir():
      return "folder"
  for name, one in _FORMATS.items():
    if path.name.lower().endswith(one.suffixes):
      check_file(path, _FIND)
      return name
  if not os.path.exists(path):
    check_file(path, _FIND)  # it says why
  # Machines write IM0001, or a name of numbers and dots.
  if dicom.is_dicom(path):
    return "dicom"
  raise UserError(f"{path} is of no known format; bring {FORMATS}.")


def split_name(path):
  """The name of a file in two: without the suffix of its format, and that suffix, '' if none."""
  # The longest first, as in x.nii.gz; of a DICOM file called 1.2.3 nothing is a suffix.
  suffixes = sorted((s for one in _FORMATS.values() for s in one.suffixes), key=len, reverse=True)
  name = path.name.lower()
  length = next((len(s) for s in suffixes if name.endswith(s) and len(s) < len(name)), 0)
  return path.name[: len(name) - length], path.name[len(name) - length :]


def is_media(path):
  """Whether a file is a video or picture by its name, or a picture of DICOM whatever its name."""
  if split_name(path)[1] and not path.name.lower().endswith(dicom.SUFFIXES):
    return True
  return dicom.is_dicom(path) and dicom.is_picture(path)


def probe(path, *, npy_axes=None, nifti_axes=None, window=None):
  """Reads the header of a video or still; of a video the first frame too.

  Args:
    path: of one of `FORMATS`; npy holds [N, h, w] or [h, w] uint8. DICOM needs no suffix.
    npy_axes: which axes npy files have, in the user's word: one of `clips.NPY_AXES`.
    nifti_axes: which axis of NIfTI files is the first, in the user's word: one of `nifti.AXES`.
    window: (low, high): the values that become 0 and 255 where they have more than 8 bits, in the
      user's word; by default what the file says, or else a range that a warning names.

  Returns:
    A `Media`; of many, see `check_axes`.

  Raises:
    UserError: it is missing, truncated, too large, or of no such format.
  """
  name = _format_of(path)
  found = _FORMATS[name].probe(path, Words(npy_axes, nifti_axes, window))
  return dataclasses.replace(found, format=name)


def probe_still(path):
  """Like `probe`, of a picture; a folder or a stack of pictures is refused too (`UserError`)."""
  check_file(path, "save one picture a file")  # a folder would be read as a video
  found = probe(path)
  if found.n_frames > 1:
    raise UserError(f"{path} holds {found.n_frames} pictures; save one a file.")
  return found


def probe_all(paths, *, num_processes=0, option="--num-processes", **words):
  """Reads the headers of many videos and stills, in several processes.

  Args:
    paths: of them.
    num_processes: as in `pool.ordered`.
    option: likewise.
    **words: of `probe`, for all.

  Yields:
    The `Media` of each, in their order, or the `UserError` that `probe` raised.
  """
  probe_one = functools.partial(_probe_one, words)
  return pool.ordered(probe_one, paths, num_processes=num_processes, option=option)


def _probe_one(words, path):
  try:
    return probe(path, **words)
  except UserError as error:
    return error


def stream(media, frames=None):
  """Yields frames as grey values, as they are shown, one after the other in little memory.

  Args:
    media: what `probe` returned.
    frames: which frames, counted from 0, rising; all by default.

  Yields:
    uint8 [h, w].

  Raises:
    UserError: the file is damaged.
  """
  wanted = range(media.n_frames) if frames is None else frames
  for image in _FORMATS[media.format].read(media, wanted):
    if image.shape != (media.height, media.width):
      raise UserError(
        f"{media.path} changes its frame size on the way; frames of one video must have one size."
      )
    yield image


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
  check_total(media.path, len(frames), media.height, media.width)
  places = {}
  for place, frame in enumerate(frames):
    places.setdefault(frame, []).append(place)
  images = np.empty((len(frames), media.height, media.width), np.uint8)
  wanted = sorted(places)
  for frame, image in zip(wanted, stream(media, wanted), strict=True):
    images[places[frame]] = image
  return images


def check_total(path, n, height, width):
  """Refuses more frames than are held together: n of height x width pixels (`UserError`)."""
  n_bytes = n * height * width
  if n_bytes > limits.MAX_TOTAL:
    raise UserError(
      f"{path} has {n_bytes / 2**30:.1f} GiB of frames, more than the "
      f"{limits.MAX_TOTAL / 2**30:g} that are read together; cut it into parts, or make it smaller."
    )


def _check_mask_type(path, image, *, palette=False, colours=False):
  if image.mode in ("1", "L") or image.mode.startswith("I;16"):
    return
  if image.format == "TIFF" and image.mode in ("I", "F"):
    return
  if image.mode == "P" and palette:
    return
  # JPEG and BMP are often saved with three equal channels.
  if image.mode == "RGB" and (colours or image.format == "BMP" or stills.is_jpeg(image)):
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
    return stills.shown_size(image, path, _MEND_MASK)


def _read_mask(path, *, maximum, binary, colours=False):
  with stills.opened(path, _MEND_MASK) as image:
    _check_mask_type(path, image, colours=colours)
    values, full = stills.pixels(image, path, _MEND_MASK)
    is_jpeg = stills.is_jpeg(image)
  if values.ndim == 3:
    channels = np.moveaxis(values, -1, 0)  # reductions along so short a last axis are slow
    if (channels.max(axis=0) - channels.min(axis=0)).max() > (_JPEG_COLOUR if is_jpeg else 0):
      raise UserError(f"{path} has colours; save masks in grey.")
    values, full = values[..., 1], 255
  # Files of 8 bits keep their own scale where the user's is larger.
  if full == 255 and (maximum is None or maximum >= 255):
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
    if stills.is_jpeg(image):
      raise UserError(f"{path} is a JPEG, which changes label indices; save the mask as PNG.")
    values, _ = stills.pixels(image, path, _MEND_MASK)
  if values.ndim == 3:
    raise UserError(f"{path} has colours; save the mask's indices in grey or with a palette.")
  return values.astype(np.int32)
