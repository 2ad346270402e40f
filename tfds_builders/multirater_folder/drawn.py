"""Reads what a rater drew on an image, at the image's own size."""

import numpy as np

from tfds_builders.mask_check import MaskCheck
from tfds_builders.multirater_folder import pictures


def mask_check(folder):
  """What collects the masks of a `manifest.Folder`, to warn of them together."""
  other = "white" if folder.polarity == "black" else "black"
  mend = f'write "polarity": "{other}" in dataset.json'
  return MaskCheck(folder.directory, folder.classes, "rater", mend, folder.confidence_maximum)


def may_be_inverted(folder, path):
  """Whether the background of a mask is told by its values alone."""
  return not folder.labels and not pictures.is_nifti(path)


def masks(folder, paths):
  """Reads what one rater drew on one image.

  Args:
    folder: the `manifest.Folder`.
    paths: the files by class.

  Returns:
    A dict from class to float32 [h, w] in [0, 1].

  Raises:
    UserError: a mask is damaged, or holds values it must not.
  """
  if folder.labels:
    path = paths[folder.classes[0]]
    indices = pictures.read_indices(path, folder.labels.values(), axes=folder.nifti_axes)
    return {name: np.float32(indices == index) for name, index in folder.labels.items()}
  return {
    name: pictures.read_mask(
      path,
      polarity=folder.polarity,
      soft=folder.soft,
      maximum=folder.confidence_maximum,
      axes=folder.nifti_axes,
    )
    for name, path in paths.items()
  }
