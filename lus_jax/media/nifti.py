"""Reads flat NIfTI pictures."""

import gzip
import io
import zlib

import numpy as np

from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import limits

_MEND = "save or copy it again"
AXES = ("xy", "yx")
# Bytes behind the pixels that are no padding any more.
_MORE = 2**20


def _damage(path):
  from nibabel.filebasedimages import ImageFileError
  from nibabel.spatialimages import HeaderDataError
  from nibabel.wrapstruct import WrapStructError

  # Of gzip, of nibabel, and of Python where a field of the header is no sensible number.
  errors = OSError, EOFError, zlib.error, HeaderDataError, ImageFileError, WrapStructError
  errors += ValueError, OverflowError, TypeError
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
