"""Writes a `lus_folder` from palette masks."""

import re
import shutil

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables
from tfds_builders.importers import folder as folder_lib


class _Indices:
  """Reads masks of indices, of which those of one set are alike."""

  def __init__(self, classes, ignore):
    self._classes, self._ignore = classes, ignore
    self._ones = self.full = None
    # Indices that occur in any mask.
    self.seen = set()

  def read(self, path):
    """Returns a mask's indices [h, w], 1 to K, and where its pixels do not count [h, w]."""
    indices = readers.read_indices(path)
    ignored = np.zeros(indices.shape, bool) if self._ignore is None else indices == self._ignore
    indices = np.where(ignored, 0, indices)
    values = set(np.unique(indices).tolist()) - {0}
    if len(self._classes) == 1 and values == {255}:
      self.full = self.full or path
      indices = np.minimum(indices, 1)
    elif values:
      self._ones = self._ones or path
      if max(values) > len(self._classes):
        raise UserError(
          f"{path} has index {max(values)}, but --classes names {len(self._classes)} (index 1 is "
          f"the first); name all of them, or say --ignore {max(values)} if its pixels are not to "
          "count."
        )
    self.seen |= values if self.full is None else {1}
    if self.full and self._ones:
      raise UserError(
        f"{self.full} holds 0 and 255 and {self._ones} indices from 1; save them alike."
      )
    return indices, ignored


def _patient(stem, pattern):
  if pattern is None:
    return stem
  found = re.search(pattern, stem)
  patient = found and found.group(1 if found.re.groups else 0)
  if not patient:
    raise UserError(f"--patient-pattern finds no patient in {stem!r}; mend it.")
  return patient


@notices.collected()
def import_palette(
  *, images, masks, out, classes, licence, thin=(), patient_pattern=None, ignore=None
):
  """Writes a folder from images and palette masks of the same names.

  Args:
    images: a folder of pictures; each becomes a video of one frame.
    masks: a folder of palette (or 8-bit grey) masks: index 0 is background, i + 1 is class i. With
      one class, masks of 0 and 255 are understood too.
    out: the folder to write.
    classes: K names.
    licence: of the data.
    thin: classes that are lines.
    patient_pattern: a regular expression that finds the patient (its first group, or all of it) in
      an image's name; without it, every image is its own patient.
    ignore: the index of pixels that count nowhere; None: there is none.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  folder_lib.check_names(classes, thin)
  if ignore is not None and not len(classes) < ignore <= 255:
    raise UserError(
      f"--ignore={ignore} must be an index above those of --classes ({len(classes)}), at most 255."
    )
  image_of, image_notes = folder_lib.find_pictures(images, "--images")
  mask_of, mask_notes = folder_lib.find_pictures(masks, "--masks")
  for stem in sorted(image_of.keys() ^ mask_of.keys()):
    there, lacking = (image_of, masks) if stem in image_of else (mask_of, images)
    raise UserError(f"{there[stem]} has no partner in {lacking}; add it, or take both away.")
  tables.refuse_same_files(image_of.values())
  videos, labels, reader, shares, is_ignored = [], [], _Indices(classes, ignore), [], False
  with folder_lib.new_folder(out, "videos", "masks") as folder:
    for stem, path in image_of.items():
      header = readers.probe_still(path)
      indices, ignored = reader.read(mask_of[stem])
      readers.check_mask_size(mask_of[stem], indices.shape, header, of="image")
      name = stem + path.suffix
      shutil.copyfile(path, folder / "videos" / name)
      for index, class_name in enumerate(classes, start=1):
        folder_lib.save_mask(folder / "masks" / stem / f"{class_name}.png", indices == index)
      if ignored.any():
        is_ignored = True
        folder_lib.save_mask(folder / "masks" / stem / f"{tables.IGNORE}.png", ignored)
      shares.append((indices > 0).mean())
      videos.append((name, _patient(stem, patient_pattern)))
      labels.append((name, 0, stem))
    if is_ignored and not reader.seen:
      raise UserError(
        f"{masks} holds masks of 0 and {ignore} only, so that --ignore={ignore} leaves nothing of "
        f"{', '.join(classes)}; if {ignore} is the object, leave --ignore out."
      )
    folder_lib.write_tables(
      folder,
      name=out.name,
      licence=licence,
      classes=classes,
      thin=thin,
      videos=videos,
      labels=labels,
      **({"patients": "unknown"} if patient_pattern is None else {}),
    )
  patients = [patient for _, patient in videos]
  if patient_pattern is not None:
    tables.warn_of_alike(
      patients, images, "patients", "one person may stand on both sides of the split"
    )
  notes = [
    f"{len(videos)} images, {len(set(patients))} patients, classes {', '.join(classes)}.",
    *image_notes,
    *mask_notes,
    "Binary masks: all members above threshold 0 get the same labels, so they differ in the weight "
    "of the background only.",
  ]
  absent = [name for index, name in enumerate(classes, start=1) if index not in reader.seen]
  if absent:
    notes.append(f"No mask shows anything of the class {', '.join(absent)}.")
  if reader.full:
    notes.append(f"Masks hold 0 and 255: 255 is taken to be {classes[0]}.")
  if min(shares) > 0.5:
    notes.append(
      "In every mask more than half of the pixels are of a class: is its background the object? "
      "Index 0 must be the background."
    )
  if patient_pattern is None:
    notes.append(
      "Every image counts as a patient of its own: where one person gave several images, the test "
      "is not independent of the training; --patient-pattern mends that."
    )
  return notes
