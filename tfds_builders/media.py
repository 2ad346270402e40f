"""Reads videos, stills and confidence masks."""

import contextlib
import dataclasses
import math
import pathlib
import re
import zlib

import av
import numpy as np
from PIL import Image

from lus_jax.errors import UserError

_CONTAINERS = (".mp4", ".avi")
PICTURES = (".png",)
_MEND_VIDEO = "export it again, or re-encode it (ffmpeg -i old.mp4 new.mp4) and look at the result"
# What a mask's largest value is, by Pillow's name of its pixel type.
_MASK_MAXIMUM = {"1": 1, "L": 255, "I;16": 65535}


@dataclasses.dataclass(frozen=True)
class Media:
  """What the header of a video or still says.

  Attributes:
    path: where it is.
    files: the files it consists of, in order.
    n_frames: N.
    height: h, in pixels.
    width: w, in pixels.
    frames_per_second: NaN where unknown.
  """

  path: pathlib.Path
  files: tuple[pathlib.Path, ...]
  n_frames: int
  height: int
  width: int
  frames_per_second: float = math.nan
  numbers: tuple[int, ...] = ()


@contextlib.contextmanager
def _damage_is_a_user_error(path, mend):
  # Pillow, PyAV and NumPy raise these on damaged files; UserError itself is a ValueError.
  try:
    yield
  except UserError:
    raise
  except (av.FFmpegError, OSError, SyntaxError, ValueError, EOFError) as error:
    raise UserError(f"{path} is damaged or not what its name says; {mend}.") from error


def _damaged_video(path):
  video = path.suffix.lower() in _CONTAINERS
  return _damage_is_a_user_error(path, _MEND_VIDEO if video else "save it again")


def numbered_pngs(folder):
  """Lists the PNG files of a folder in the order of the numbers in their names.

  Raises:
    UserError: there are none, or a name has no number, or two have the same.
  """
  files = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() != ".png" or path.name.startswith("."):
      continue
    number = tuple(int(digits) for digits in re.findall(r"[0-9]+", path.stem))
    if not number:
      raise UserError(f"{path} has no number in its name; number the frames: 000.png, 001.png.")
    if number in files:
      raise UserError(f"{path} has the same number as {files[number].name}; rename one of them.")
    files[number] = path
  if not files:
    raise UserError(f"{folder} holds no PNG file; put numbered frames there: 000.png, 001.png.")
  return tuple(files[number] for number in sorted(files))


def _demux(path, options):
  with av.open(path, options=options) as container:
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    size = stream.codec_context.height, stream.codec_context.width
    rate = float(stream.average_rate) if stream.average_rate else math.nan
    return packets, stream.frames, size, rate


def _probe_container(path):
  with _damaged_video(path):
    with av.open(path) as container:
      if not container.streams.video:
        raise UserError(f"{path} has no video stream; export it again.")
    # The container counts all stored frames; its edit list may hide some of them.
    stored, stated, _, _ = _demux(path, {"ignore_editlist": "1"})
    packets, _, (height, width), rate = _demux(path, {})
  n_frames = sum(not packet.is_discard for packet in packets)
  if len(stored) < stated or not n_frames or any(packet.is_corrupt for packet in stored):
    whole = sum(not packet.is_corrupt for packet in stored)
    raise UserError(
      f"{path} is truncated: {whole} of {stated} frames are there; copy or export it again."
    )
  return Media(path, (path,), n_frames, height, width, rate)


def _read_container(media, frames):
  wanted, images, n_decoded = set(frames), {}, 0
  with _damaged_video(media.path), av.open(media.path) as container:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    # Otherwise decoders invent what they cannot decode.
    stream.codec_context.options = {"err_detect": "explode"}
    for frame in container.decode(stream):
      if n_decoded in wanted:
        images[n_decoded] = frame.to_ndarray(format="gray")
      n_decoded += 1
  if n_decoded < media.n_frames:
    raise UserError(f"{media.path} is damaged at frame {n_decoded}; {_MEND_VIDEO}.")
  return [images[i] for i in frames]


def _grey(image):
  if image.mode.startswith("I;16"):
    return np.rint(np.asarray(image) / 257).astype(np.uint8)  # convert() would clip at 255
  return np.asarray(image.convert("L"))


def _probe_images(path, files):
  sizes, n_frames, rate = {}, len(files), math.nan
  for file in files:
    with _damaged_video(file), Image.open(file) as image:
      sizes.setdefault(image.size, file)
      if file.suffix.lower() == ".gif":
        n_frames = image.n_frames
        rate = 1000 / image.info["duration"] if image.info.get("duration") else math.nan
  if len(sizes) > 1:
    (size, first), (other, second) = list(sizes.items())[:2]
    raise UserError(
      f"{second} is {other[0]} x {other[1]} and {first.name} {size[0]} x {size[1]} pixels; frames "
      "of one video must have one size."
    )
  ((width, height),) = sizes
  return Media(path, tuple(files), n_frames, height, width, rate)


def _read_images(media, frames):
  images = []
  for i in frames:
    file = media.files[i if len(media.files) > 1 else 0]
    with _damaged_video(file), Image.open(file) as image:
      if len(media.files) == 1:
        image.seek(i)
      images.append(_grey(image))
  return images


def _load_npy(path):
  with _damaged_video(path):
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size or array.shape[-1] < 5:
    raise UserError(
      f"{path} is {array.dtype} {list(array.shape)}; store grey uint8 frames as [N, h, w] or one "
      "as [h, w]."
    )
  return array.reshape(-1, *array.shape[-2:])


def probe(path):
  """Reads the header of a video or still, without decoding it.

  Args:
    path: mp4, avi, gif, npy ([N, h, w] or [h, w] uint8), png, or a folder of numbered PNGs.

  Returns:
    A `Media`.

  Raises:
    UserError: it is missing, truncated, or of no such format.
  """
  if not path.exists():
    raise UserError(f"{path} does not exist; put the file there or mend its name.")
  suffix = path.suffix.lower()
  if path.is_dir():
    return _probe_images(path, numbered_pngs(path))
  if suffix in _CONTAINERS:
    return _probe_container(path)
  if suffix in (".png", ".gif"):
    return _probe_images(path, (path,))
  if suffix == ".npy":
    return Media(path, (path,), *_load_npy(path).shape)
  raise UserError(
    f"{path} is of no known format; bring mp4, avi, gif, npy, png or a folder of numbered PNGs."
  )


def read(media, frames=None):
  """Reads frames as grey values; a compressed video is decoded once, whole.

  Args:
    media: what `probe` returned.
    frames: which frames, counted from 0; all by default.

  Returns:
    uint8 [len(frames), h, w].

  Raises:
    UserError: the file is damaged.
  """
  frames = range(media.n_frames) if frames is None else frames
  suffix = media.files[0].suffix.lower()
  if suffix in _CONTAINERS:
    images = _read_container(media, frames)
  elif suffix == ".npy":
    images = _load_npy(media.path)[list(frames)]
  else:
    images = _read_images(media, frames)
  for image in images:
    if image.shape != (media.height, media.width):
      raise UserError(
        f"{media.path} changes its frame size on the way; frames of one video must have one size."
      )
  return np.stack(images)


def _open_mask(path, *, palette=False):
  image = Image.open(path)
  if image.mode not in _MASK_MAXIMUM and not (palette and image.mode == "P"):
    image.close()
    raise UserError(
      f"{path} has pixels of type {image.mode}; save masks as 8- or 16-bit grey PNG (one channel, "
      f"{'' if palette else 'no palette, '}no transparency)."
    )
  return image


def _damaged_mask(path):
  return _damage_is_a_user_error(path, "save the mask again as 8- or 16-bit grey PNG")


def mask_size(path, *, palette=False):
  """Reads a mask's (height, width) from its header; `palette` allows a palette PNG too.

  Raises:
    UserError: it is not a grey PNG.
  """
  with _damaged_mask(path), _open_mask(path, palette=palette) as image:
    return image.height, image.width


def read_mask(path):
  """Reads a confidence mask: float32 [h, w] in [0, 1], value / maximum of the pixel type.

  Raises:
    UserError: it is damaged, or not a grey PNG.
  """
  with _damaged_mask(path), _open_mask(path) as image:
    return np.asarray(image, np.float32) / np.float32(_MASK_MAXIMUM[image.mode])


def read_indices(path):
  """Reads a mask of label indices, grey or palette PNG: integers [h, w].

  Raises:
    UserError: it is damaged, or neither a grey nor a palette PNG.
  """
  with _damaged_mask(path), _open_mask(path, palette=True) as image:
    return np.asarray(image, np.int32)


@contextlib.contextmanager
def _opened_nifti(path):
  # Slow to import, and needed by few.
  import nibabel

  try:
    yield nibabel.load(path)
  except UserError:
    raise
  except (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
  ) as error:
    raise UserError(
      f"{path} is missing, damaged or no NIfTI file; save or copy it again."
    ) from error


def _nifti_size(path, nifti):
  width, height, *more = (*nifti.shape, 1, 1)[: max(2, len(nifti.shape))]
  if any(length != 1 for length in more):
    size = " x ".join(str(length) for length in nifti.shape)
    raise UserError(f"{path} has {size} values; save one picture a file, with two axes.")
  return height, width


def nifti_size(path):
  """Reads the (height, width) of a flat NIfTI picture from its header.

  Raises:
    UserError: it is damaged, or has a third axis longer than 1.
  """
  with _opened_nifti(path) as nifti:
    return _nifti_size(path, nifti)


def read_nifti(path):
  """Reads a flat NIfTI picture in its own values: [h, w], the second axis of the file first.

  Raises:
    UserError: it is damaged, has a third axis longer than 1, or is no grey picture.
  """
  with _opened_nifti(path) as nifti:
    height, width = _nifti_size(path, nifti)
    values = np.asanyarray(nifti.dataobj)
    if values.dtype.kind not in "iuf":
      raise UserError(f"{path} holds colours or complex numbers; save one grey value a pixel.")
    # Files count x before y, pictures rows before columns.
    return values.reshape(width, height).T
