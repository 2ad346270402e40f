"""Reads arrays of masks: NumPy's .npy and .npz, and NIfTI, of one frame or of all of a clip."""

import io
import zipfile
import zlib

import numpy as np

from lus_jax.errors import UserError
from lus_jax.files import NPY_ERRORS, check_file, damage_is_a_user_error
from lus_jax.media import limits, nifti

SUFFIXES = (".npy", ".npz", *nifti.SUFFIXES)
# In which order arrays may have frames (n), rows (h), columns (w) and classes (k).
_ORDERS = {
  2: ("hw",),
  3: ("nhw", "hwn", "khw", "hwk"),
  4: ("nhwk", "nkhw", "knhw", "hwnk", "hwkn", "khwn"),
}
AXES = tuple(order for orders in _ORDERS.values() for order in orders)
# Bytes of one file, which are in memory until the next is read.
MOST = 2**29
_MEND = "save it again"


def stem(path):
  """A file's name without the suffix of an array; None if it has none."""
  name = path.name
  found = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
  return name[: -len(max(found, key=len))] if found else None


def read(path, nifti_axes=None):
  """Reads the arrays of a file.

  Args:
    path: of it.
    nifti_axes: which axis of NIfTI is the first: 'xy' (the default) or 'yx'.

  Returns:
    A dict of arrays of numbers by name, None where there is one without, and the order of their
    axes, None if nobody says.

  Raises:
    UserError: it is damaged, too large, or holds no numbers.
  """
  check_file(path, _MEND)
  if path.name.lower().endswith(nifti.SUFFIXES):
    return {None: nifti.read_frames(path, nifti_axes, MOST)}, "nhw"
  found = _read_npz(path) if path.suffix.lower() == ".npz" else {None: _read_npy(path)}
  for array in found.values():
    if array.dtype.kind not in "biuf" or array.ndim not in _ORDERS or not array.size:
      raise UserError(
        f"{path} holds {array.dtype} {list(array.shape)}; save masks as numbers, [h, w] or with "
        "frames or classes on a third axis."
      )
  return found, None


def _read_npy(path):
  with damage_is_a_user_error(path, _MEND, NPY_ERRORS), np.errstate(over="raise"):
    array = np.lib.format.open_memmap(path, mode="r")
  if path.stat().st_size != array.offset + array.nbytes:
    raise UserError(f"{path} holds more than its header says; {_MEND}.")
  return array


def _read_npz(path):
  errors = (*NPY_ERRORS, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
  found, left = {}, MOST
  with damage_is_a_user_error(path, _MEND, errors), zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      with archive.open(info) as file:
        # What the archive says of sizes may be wrong.
        data = file.read(left + 1)
      left -= len(data)
      if left < 0:
        limits.check_unfolded(path, MOST + 1, MOST)
      name = info.filename.removesuffix(".npy")
      if name in found:
        raise UserError(f"{path} holds two arrays called {name[:80]!r}; {_MEND}.")
      found[name] = _parse(data, path)
  if not found:
    raise UserError(f"{path} holds no array; {_MEND}.")
  return found


def _parse(data, path):
  file = io.BytesIO(data)
  version = np.lib.format.read_magic(file)
  read_header = (
    np.lib.format.read_array_header_1_0
    if version == (1, 0)
    else np.lib.format.read_array_header_2_0
  )
  shape, columns_first, dtype = read_header(file)
  # Memory would be taken for whatever the header says.
  if dtype.hasobject or np.prod([*shape, dtype.itemsize], dtype=object) != len(data) - file.tell():
    raise UserError(f"{path} holds an array of another size than its header says; {_MEND}.")
  values = np.frombuffer(data, dtype, offset=file.tell())
  return values.reshape(shape, order="F" if columns_first else "C")


def order(array, media, n_classes, axes, path):
  """The order of an array's axes, as letters of `AXES`.

  Args:
    array: any of `read`.
    media: the `Media` it is of.
    n_classes: K; None: it is of one class, whose axis it lacks.
    axes: that the user says; None: whichever fits.
    path: for messages.

  Raises:
    UserError: none fits, or several do.
  """
  lengths = {"n": (1, media.n_frames), "h": (media.height,), "w": (media.width,)}
  lengths["k"] = () if n_classes is None else (n_classes,)
  fitting = [
    one
    for one in _ORDERS[array.ndim]
    if all(length in lengths[axis] for axis, length in zip(one, array.shape, strict=True))
  ]
  if axes is not None and len(axes) == array.ndim:
    fitting = [one for one in fitting if one == axes]
  # An axis of one frame or one class is the same wherever it stands.
  if array.size == media.height * media.width:
    fitting = fitting[:1]
  if len(fitting) == 1:
    return fitting[0]
  classes = "" if n_classes is None else f" and {n_classes} classes"
  what = (
    f"{path} is {list(array.shape)}, and {media.path.name} has {media.n_frames} frame(s) of "
    f"{media.height} rows and {media.width} columns{classes}"
  )
  if fitting:
    raise UserError(f"{what}; say which axis is which with --axes, as {fitting[0]}.")
  raise UserError(f"{what}; save the mask at that size, or mend --axes.")


def by_frames(array, axes):
  """An array as [N, h, w, K], with axes of length 1 for those that it lacks."""
  for axis in "nk":
    if axis not in axes:
      array, axes = array[np.newaxis], axis + axes
  return np.transpose(array, [axes.index(axis) for axis in "nhwk"])
