"""Images and masks of one frame each, pictures or NIfTI."""

import numpy as np

from lus_jax import notices, problems
from lus_jax.errors import UserError
from lus_jax.media import confidences, nifti, readers, stills, windows

_NIFTI = (".nii.gz", ".nii")
SUFFIXES = (*_NIFTI, *readers.PICTURES)


def stem(path):
  """A picture's name without its suffix; None if it is neither a picture nor NIfTI."""
  for suffix in SUFFIXES:
    if path.name.lower().endswith(suffix):
      return path.name[: -len(suffix)]
  return None


def is_nifti(path):
  """Whether the name says NIfTI."""
  return path.name.lower().endswith(_NIFTI)


def probe_image(path, *, axes=None):
  """Reads the header of an image: a `readers.Media` of one frame.

  Args:
    path: of it.
    axes: which axis of NIfTI files is the first: 'xy' (the default) or 'yx'.

  Raises:
    UserError: it is damaged, or a NIfTI with a third axis.
  """
  if is_nifti(path):
    return readers.Media(path, (path,), 1, *nifti.size(path, axes), format="nifti")
  return readers.probe_still(path)


def mask_size(path, *, indices, axes=None):
  """Reads a mask's (height, width) from its header; `indices` allows a palette.

  Raises:
    UserError: it is damaged, a NIfTI with a third axis, or a picture of colours.
  """
  return nifti.size(path, axes) if is_nifti(path) else readers.mask_size(path, palette=indices)


def check_geometry(image, masks, *, indices, axes=None):
  """Refuses masks that do not lie on their image, and warns of those that may lie transposed.

  Nothing says which axis is x of NIfTI beside another format, square, without the user's word.

  Args:
    image: its path.
    masks: paths of the masks that were drawn on it.
    indices: whether they hold label indices.
    axes: which axis of NIfTI files is the first, in the user's word: 'xy' or 'yx'.

  Returns:
    The image's (height, width).

  Raises:
    UserError: a size is not the image's; or, between NIfTI files and without the user's word, the
      direction of an axis is not.
  """
  header = probe_image(image, axes=axes)
  directions = nifti.directions(image) if is_nifti(image) and axes is None else None
  for path in masks:
    with problems.apart():
      _check_mask(path, image, header, directions, indices=indices, axes=axes)
  return header.height, header.width


def _check_mask(path, image, header, directions, *, indices, axes):
  square = header.height == header.width
  size = mask_size(path, indices=indices, axes=axes)
  mixed = is_nifti(path) != is_nifti(image)
  if mixed and axes is None and not square and size[::-1] == (header.height, header.width):
    raise UserError(
      f"{path} is {size[1]} x {size[0]} and its image {header.width} x {header.height} pixels; "
      'if NIfTI files were saved rows first, write "nifti_axes": "yx" into dataset.json '
      "(importing: --nifti-axes=yx)."
    )
  readers.check_mask_size(path, size, header, of="image")
  if mixed and axes is None and square:
    notices.warn(
      "%s: NIfTI beside another format, and square, so that nothing says which axis is x; x is "
      'taken to be the first. Write "nifti_axes": "xy" (that is right) or "yx" (rows first) into '
      "dataset.json.",
      path,
    )
  theirs = nifti.directions(path) if directions and is_nifti(path) else None
  if theirs and theirs != directions:
    raise UserError(
      f"{path}: its axes point to {' and '.join(theirs)}, those of its image to "
      f"{' and '.join(directions)} (NIfTI's letters), so it may lie mirrored or turned; save it "
      "in the image's orientation, with the image's affine; or, if the pixels lie alike in both "
      'files, write "nifti_axes": "xy" into dataset.json (importing: --nifti-axes=xy).'
    )


def read_image(path, *, axes=None, window=None):
  """Reads an image as grey values: uint8 [h, w].

  A NIfTI that is not uint8 is windowed from its 0.5th to its 99.5th percentile, as scanners' values
  have no common scale; where these are equal (nearly all pixels are), from its least to its
  greatest value, with a warning. An image of one value is 0.

  Args:
    path: of it.
    axes: which axis of NIfTI files is the first: 'xy' (the default) or 'yx'.
    window: (low, high): the values of NIfTI files that become 0 and 255, the same in all images.

  Raises:
    UserError: it is damaged, or a value is not finite.
  """
  if not is_nifti(path):
    return readers.read(probe_image(path))[0]
  values = nifti.read(path, axes)
  if values.dtype == np.uint8 and window is None:
    return values
  return windows.grey(values, window or windows.choose(values, path), path)


def _read_fractions(path, *, soft, maximum, axes):
  if not is_nifti(path):
    return readers.read_mask(path, maximum=maximum, binary=not soft)
  values = nifti.read(path, axes)
  return confidences.fractions(values, path, maximum=maximum, binary=not soft)


def _values(path, axes):
  if is_nifti(path):
    return nifti.read(path, axes)
  with stills.opened(path) as image:
    return stills.pixels(image, path)[0]


def read_mask(path, *, polarity="white", soft=False, maximum=None, axes=None):
  """Reads what a rater drew of one class: float32 [h, w] in [0, 1], the object is 1.

  Args:
    path: a picture or NIfTI.
    polarity: 'black' if the object is 0 in pictures.
    soft: whether values between are confidences, not mistakes.
    maximum: the value that means 100 % or object, in the user's word (`confidence_maximum`); see
      `confidences.fractions`.
    axes: which axis of NIfTI files is the first: 'xy' (the default) or 'yx'.

  Raises:
    UserError: it is damaged, or holds values it must not.
  """
  mask = _read_fractions(path, soft=soft, maximum=maximum, axes=axes)
  if not soft and not np.isin(mask, (0, 1)).all():
    wrong = int((~np.isin(mask, (0, 1))).sum())
    expected = "0 and 1" if is_nifti(path) else "0 and the maximum of the type (255 of 8 bits)"
    raise UserError(
      f"{path}: {wrong} of {mask.size} pixels are neither background nor object; masks hold "
      f'{expected} only. If these are confidences, say so in dataset.json ("soft": true; '
      f'importing: --soft), if label indices, too ("labels"); else '
      f"{confidences.ask(_values(path, axes))}."
    )
  if 0 < mask.max() <= np.float32(1 / 255):
    notices.warn(
      "%s: its largest confidence is %.4f; a mask of 0 and 1 should be one of 0 and 255.",
      path,
      mask.max(),
    )
  return 1 - mask if polarity == "black" and not is_nifti(path) else mask


def read_indices(path, indices, *, axes=None):
  """Reads a mask of label indices: integers [h, w].

  Args:
    path: a picture (grey or palette) or NIfTI.
    indices: those that may occur, beside 0.
    axes: which axis of NIfTI files is the first: 'xy' (the default) or 'yx'.

  Raises:
    UserError: it is damaged, or holds another value.
  """
  values = (
    confidences.whole(nifti.read(path, axes)) if is_nifti(path) else readers.read_indices(path)
  )
  unknown = np.setdiff1d(values, [0, *indices])
  if unknown.size:
    raise UserError(
      f"{path} holds the value {unknown[0]:g}, but 'labels' of dataset.json knows "
      f"{', '.join(str(index) for index in sorted(indices))} (and 0 is background); name it there."
    )
  return values
