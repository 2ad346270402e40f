"""Writes grey frames without loss, and without a word of whose or when they are."""

import contextlib
import fractions
import gzip
import math
import os
import re
import shutil

import av
import numpy as np
from PIL import Image

from lus_jax import files
from lus_jax.errors import UserError


def write(target, frames, media):
  """Writes frames in a format that keeps what `readers.probe` says of them, whole or not at all.

  npy, NIfTI and MetaImage keep to their formats (NRRD becomes .mha); of all else what has a rate
  becomes an AVI (FFV1; above 1000 frames a second a mov of PNG), pictures become PNG: one, or a
  folder of them, numbered from 0.

  Args:
    target: where to, without a suffix.
    frames: uint8 [h, w] each, as shown; all of them, in order.
    media: the `Media` they are of.

  Returns:
    The path of the file or folder.

  Raises:
    UserError: the disk refuses it.
  """
  if media.format == "npy":
    return _write_npy(target, frames, media.npy_axes)
  if media.format == "nifti":
    return _write_nifti(target, frames, media)
  if media.format == "volume":
    return _write_mha(target, frames, media.spacing)
  if math.isfinite(media.frames_per_second):
    return _write_video(target, frames, media)
  if media.format == "folder" or media.n_frames > 1:
    return _write_folder(target, frames)
  return _write_picture(target, *frames)


def _beside(target, suffix):
  # Not `with_suffix`, which takes the end of a name with a dot for one.
  return target.with_name(target.name + suffix)


def _temporary(path, number):
  # With the suffix, as some libraries choose the format by it.
  return path.with_name(f".{number}.{path.name}")


def process_of(temporary, path):
  """The number of the process that writes, or wrote, a path under a temporary name; or None."""
  number = temporary.name[1:].partition(".")[0]
  is_ours = re.fullmatch("[1-9][0-9]*", number) and temporary == _temporary(path, number)
  return int(number) if is_ours else None


@contextlib.contextmanager
def written(path):
  """Yields a temporary path, which becomes the path; nothing stays of it where that fails."""
  temporary = _temporary(path, os.getpid())
  aside = temporary.with_name(f".{os.getpid()}.old.{path.name}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    if path.is_dir():
      # No file's name can be given to a folder that is there: a kill leaves the old one or both.
      path.replace(aside)
      try:
        temporary.replace(path)
      except BaseException:
        aside.replace(path)
        raise
      shutil.rmtree(aside, ignore_errors=True)
    else:
      temporary.replace(path)
  except Exception as error:
    reason = None if isinstance(error, UserError) else files.refusal(error)
    if reason is None:
      raise
    raise UserError(
      f"{path} cannot be written ({reason}); make room or mend the permissions, and repeat the "
      "command."
    ) from error
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _write_npy(target, frames, axes):
  path, frames = _beside(target, ".npy"), np.stack(list(frames))
  with written(path) as temporary, temporary.open("wb") as file:
    np.save(file, np.moveaxis(frames, 0, -1) if axes == "hwn" else frames)
  return path


def _write_nifti(target, frames, media):
  import nibabel  # slow to import, and needed by few

  path, frames = _beside(target, ".nii.gz"), np.stack(list(frames))
  height, width = media.spacing or (1, 1)
  data, steps = frames.T, [width, height]
  if media.nifti_axes == "yx":
    data, steps = np.moveaxis(frames, 0, -1), [height, width]
  timed = math.isfinite(media.frames_per_second)
  if timed:
    data, steps = data[:, :, None], [*steps, 1]
  kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
  image = kind(data, None)
  image.header.set_zooms([*steps, 1 / media.frames_per_second if timed else 1])
  image.header.set_xyzt_units("mm" if media.spacing else "unknown", "sec" if timed else "unknown")
  # Neither the name nor the time that gzip writes of itself.
  files.write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
  return path


def _write_mha(target, frames, spacing):
  import SimpleITK as sitk  # slow to import, and needed by few

  path = _beside(target, ".mha")
  image = sitk.GetImageFromArray(np.stack(list(frames)))
  if spacing:
    image.SetSpacing((*spacing[::-1], 1))
  with written(path) as temporary:
    sitk.WriteImage(image, str(temporary), useCompression=True)
  return path


def _save_png(frame, path):
  Image.fromarray(frame).save(path, format="PNG")


def _write_picture(target, frame):
  path = _beside(target, ".png")
  with written(path) as temporary:
    _save_png(frame, temporary)
  return path


def _write_folder(target, frames):
  with written(target) as temporary:
    temporary.mkdir()
    for i, frame in enumerate(frames):
      _save_png(frame, temporary / f"{i:06d}.png")
  return target


def _write_video(target, frames, media):
  # The rate as a fraction of whole numbers, as 30000/1001, which files hold.
  rate = fractions.Fraction(media.frames_per_second).limit_denominator(10**6)
  # Matroska counts milliseconds, and AVI does where there are more than one a frame.
  kind, codec, options = "avi", "ffv1", {"level": "3", "slicecrc": "1"}
  if rate > 1000:
    kind, codec, options = "mov", "png", {}
  path, exact = _beside(target, f".{kind}"), {"fflags": "+bitexact"}  # no name of a program
  with written(path) as temporary, av.open(temporary, "w", format=kind, options=exact) as video:
    stream = video.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = media.height, media.width
    stream.pix_fmt = "gray"
    for i, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels, format="gray")
      frame.pts = i
      frame.time_base = 1 / rate
      video.mux(stream.encode(frame))
    video.mux(stream.encode())
  return path
