"""Reads NIfTI: flat pictures, and clips whose third or fourth axis counts frames."""

import dataclasses
import gzip
import io
import math
import zlib

import numpy as np

from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import limits, windows
from lus_jax.media.clips import Media

SUFFIXES = (".nii", ".nii.gz")
_MEND = "save or copy it again"
AXES = ("xy", "yx")
# Fields of the header that hold a text.
_TEXTS = ("aux_file", "data_type", "db_name", "descrip", "intent_name")
# Bytes behind the pixels that are no padding any more.
_MORE = 2**20
# Bytes of a frame, several of which are in memory.
_MOST_A_FRAME = 2**28
# Values, about, that a clip's window is chosen from.
_SAMPLED = 2**22


def _damage(path):
  from nibabel.filebasedimages import ImageFileError
  from nibabel.spatialimages import HeaderDataError
  from nibabel.wrapstruct import WrapStructError

  # Of gzip, of nibabel, and of Python where a field of the header is no sensible number or code.
  errors = OSError, EOFError, zlib.error, HeaderDataError, ImageFileError, WrapStructError
  errors += ValueError, OverflowError, TypeError, LookupError
  return damage_is_a_user_error(path, _MEND, errors, "missing, damaged or no NIfTI file")


def _opened(path):
  with _damage(path):
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _header(file, path):
  # Slow to import, and needed by few.
  from nibabel import Nifti1Header, Nifti2Header
  from nibabel.imageglobals import LoggingOutputSuppressor

  start = file.read(544)
  kinds = {348: Nifti1Header, 540: Nifti2Header}
  kind = kinds.get(int.from_bytes(start[:4], "little")) or kinds.get(int.from_bytes(start[:4]))
  if kind is None:
    raise UserError(f"{path} is missing, damaged or no NIfTI file; {_MEND}.")
  with LoggingOutputSuppressor():  # what it mends or raises, without the file's name
    header = kind.from_fileobj(io.BytesIO(start))
  if header["magic"].item()[:2] != b"n+":
    raise UserError(f"{path} has its pixels in another file; save it as one .nii file.")
  return header


def _read_header(file, path):
  """Reads a header, its shape and its type of pixels."""
  with _damage(path):
    header = _header(file, path)
    return header, header.get_data_shape(), header.get_data_dtype()


def _size(shape, path, axes):
  """Returns height and width of a shape in a header."""
  if not shape or min(shape) < 1:
    raise UserError(f"{path} is damaged: its header speaks of no picture; {_MEND}.")
  first, second, *more = (*shape, 1, 1)[: max(2, len(shape))]
  if any(length != 1 for length in more):
    size = " x ".join(str(length) for length in shape)
    raise UserError(f"{path} has {size} values; save one picture a file, with two axes.")
  limits.check_pixels(path, first, second)
  return (first, second) if axes == "yx" else (second, first)


def size(path, axes=None):
  """Reads the (height, width) of a flat NIfTI picture from its header.

  Args:
    path: of it.
    axes: which axis of the file is the first: 'xy' (x, as the format has it; the default) or 'yx'
      (rows, as arrays are saved by mistake).

  Raises:
    UserError: it is damaged, or has a third axis longer than 1.
  """
  check_file(path, _MEND)
  with _opened(path) as file:
    _, shape, _ = _read_header(file, path)
  return _size(shape, path, axes)


def _clip_shape(shape, path, axes):
  """Returns the number of frames, height and width of a shape in a header."""
  if not shape or min(shape) < 1:
    raise UserError(f"{path} is damaged: its header speaks of no picture; {_MEND}.")
  more = [length for length in shape[2:] if length != 1]
  if min(more, default=1) < 1:
    raise UserError(f"{path} is damaged: its header speaks of no frames; {_MEND}.")
  if len(more) > 1:
    size = " x ".join(str(length) for length in shape)
    raise UserError(
      f"{path} has {size} values: several slices at several times; save one clip a file, with "
      "frames on its third axis, or its fourth."
    )
  return more[0] if more else 1, *_size(shape[:2], path, axes)


def _spacing_and_rate(header, path, axes):
  """Millimetres a pixel, (vertical, horizontal), or None; frames per second, or NaN."""
  with _damage(path):
    length, time = header.get_xyzt_units()
    steps = [float(x) for x in header["pixdim"][:5]]
    shape = header.get_data_shape()
  millimetres = {"mm": 1, "meter": 1000, "micron": 0.001}.get(length, 0)
  sides = [abs(x) * millimetres for x in (steps[1:3] if axes == "yx" else steps[2:0:-1])]
  spacing = tuple(sides) if all(0 < x < math.inf for x in sides) else None
  seconds = {"sec": 1, "msec": 1e-3, "usec": 1e-6}.get(time, 0) * steps[4]
  timed = len(shape) > 3 and shape[3] > 1 and 0 < seconds < math.inf
  return spacing, 1 / seconds if timed else math.nan


def _frames(file, path, axes):
  """Yields the frames of an open clip in their own values, [h, w]; all of the file is read."""
  from nibabel.volumeutils import apply_read_scaling

  header, shape, dtype = _read_header(file, path)
  n_frames, height, width = _clip_shape(shape, path, axes)
  n_bytes = height * width * dtype.itemsize
  with _damage(path):
    file.seek(header.get_data_offset())
    slope, intercept = header.get_slope_inter()
  for _ in range(n_frames):
    with _damage(path):
      data = file.read(n_bytes)
      if len(data) < n_bytes:
        raise UserError(f"{path} is truncated: its pixels are not all there; {_MEND}.")
      values = np.frombuffer(data, dtype)
      if slope is not None:
        values = apply_read_scaling(values, slope, intercept)
    yield values.reshape((height, width), order="F" if axes == "yx" else "C")
  with _damage(path):
    # gzip has its checksum at the end.
    n_more = len(file.read(_MORE))
  if n_more == _MORE:
    raise UserError(f"{path} holds more than its header says; {_MEND}.")


def probe(path, words):
  """Reads a NIfTI clip, [x, y, frames] or [x, y, 1, frames], once: a `Media`.

  Args:
    path: of it.
    words: of the user: `nifti_axes` as in `size`; `window`, by default of what it holds.

  Raises:
    UserError: it is truncated, damaged, too large, of colours, or has slices at several times.
  """
  check_file(path, _MEND)
  axes = words.nifti_axes
  with _opened(path) as file:
    header, shape, dtype = _read_header(file, path)
    n_frames, height, width = _clip_shape(shape, path, axes)
    if dtype.kind not in "iuf":
      raise UserError(f"{path} holds colours or complex numbers; save one grey value a pixel.")
    if height * width * dtype.itemsize > _MOST_A_FRAME:
      raise UserError(f"{path} has {width} x {height} pixels of {dtype}; save it in fewer bits.")
    if path.name.lower().endswith(".gz"):
      limits.check_unfolded(path, n_frames * height * width * dtype.itemsize)
    spacing, rate = _spacing_and_rate(header, path, axes)
    with _damage(path):
      scaled = header.get_slope_inter() not in ((None, None), (1, 0))
      file.seek(0)
    is_grey, step = dtype == np.uint8 and not scaled, n_frames * height * width // _SAMPLED + 1
    # To the end, where its checksum is.
    sampled = [frame.ravel()[::step].copy() for frame in _frames(file, path, axes)]
  window = None
  if not is_grey:
    window = words.window or windows.of_clip(np.concatenate(sampled), path)
  found = Media(path, (path,), n_frames, height, width, rate, spacing=spacing, window=window)
  return dataclasses.replace(found, nifti_axes=axes)


def read_clip(media, wanted):
  """Yields the frames `wanted`, which rise, of what `probe` returned: grey [h, w] uint8 each.

  Raises:
    UserError: the file is damaged.
  """
  left = set(wanted)
  with _opened(media.path) as file:
    for i, values in enumerate(_frames(file, media.path, media.nifti_axes)):
      if i in left:
        yield values if media.window is None else windows.grey(values, media.window, media.path)


def read_frames(path, axes=None, most=limits.MAX_UNFOLDED):
  """Reads a flat NIfTI or a clip in its own values: [N, h, w].

  Args:
    path: of it.
    axes: as in `size`.
    most: bytes that it may unfold to.

  Raises:
    UserError: it is damaged, too large, of colours, or has slices at several times.
  """
  check_file(path, _MEND)
  with _opened(path) as file:
    _, shape, dtype = _read_header(file, path)
    n_frames, height, width = _clip_shape(shape, path, axes)
    if dtype.kind not in "iuf":
      raise UserError(f"{path} holds colours or complex numbers; save one grey value a pixel.")
    limits.check_unfolded(path, n_frames * height * width * dtype.itemsize, most)
    with _damage(path):
      file.seek(0)
    return np.stack(list(_frames(file, path, axes)))


def directions(path):
  """Reads which way x and y of a NIfTI picture point in the patient.

  Returns:
    Two letters, as ('L', 'P'); None where the file does not say.

  Raises:
    UserError: it is damaged.
  """
  from nibabel import aff2axcodes

  check_file(path, _MEND)
  with _opened(path) as file, _damage(path):
    header = _header(file, path)
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
      return None
    affine = header.get_best_affine()
    codes = aff2axcodes(affine)[:2] if np.isfinite(affine).all() else (None,)
  return None if None in codes else codes


def grid(path):
  """Reads how the values of a NIfTI file lie.

  Returns:
    Its shape; the steps along its first three axes and their unit, in the header's own words; and
    of sform and qform each a pair of an affine [4, 4], None where the file has none, and its code.

  Raises:
    UserError: it is damaged.
  """
  check_file(path, _MEND)
  with _opened(path) as file, _damage(path):
    header = _header(file, path)
    forms = header.get_sform(coded=True), header.get_qform(coded=True)
    steps = [abs(float(x)) for x in header["pixdim"][1:4]], header.get_xyzt_units()[0]
    return header.get_data_shape(), *steps, *((affine, int(code)) for affine, code in forms)


def read(path, axes=None):
  """Reads a flat NIfTI picture in its own values: [h, w].

  Args:
    path: of it.
    axes: as in `size`.

  Raises:
    UserError: it is damaged (a wrong checksum of gzip too), has a third axis longer than 1, or is
      no grey picture.
  """
  from nibabel.volumeutils import apply_read_scaling

  check_file(path, _MEND)
  with _opened(path) as file:
    header, shape, dtype = _read_header(file, path)
    height, width = _size(shape, path, axes)
    if dtype.kind not in "iuf":
      raise UserError(f"{path} holds colours or complex numbers; save one grey value a pixel.")
    n_bytes = height * width * dtype.itemsize
    with _damage(path):
      file.seek(header.get_data_offset())
      data = file.read(n_bytes)
      # gzip has its checksum at the end.
      n_more = len(file.read(_MORE))
      slope, intercept = header.get_slope_inter()
    if len(data) < n_bytes:
      raise UserError(f"{path} is truncated: its pixels are not all there; {_MEND}.")
    if n_more == _MORE:
      raise UserError(f"{path} holds more than its header says; {_MEND}.")
  values = np.frombuffer(data, dtype)
  if slope is not None:
    with _damage(path):
      values = apply_read_scaling(values, slope, intercept)
  # Files count their first axis fastest.
  return values.reshape((height, width), order="F" if axes == "yx" else "C")


def texts(path):
  """What a NIfTI file says beside its pixels: pairs of a field, as 'descrip', and a text.

  Raises:
    UserError: it is damaged.
  """
  with _opened(path) as file:
    header, _, _ = _read_header(file, path)
    names = [name for name in _TEXTS if name in header.keys()]  # noqa: SIM118
    found = [(name, bytes(header[name].item())) for name in names]
    with _damage(path):
      start = header.sizeof_hdr + 4
      file.seek(start)
      found.append(("extension", file.read(max(0, int(header.get_data_offset()) - start))))
  texts = [(name, text.decode("utf-8", "replace").strip("\0 ")) for name, text in found]
  return [(name, text) for name, text in texts if text]
