"""Writes a `multirater_folder` from a folder of masks a rater, or from a task of QUBIQ."""

import re

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers, stills
from tfds_builders import tables
from tfds_builders.importers import folder as folder_lib
from tfds_builders.multirater_folder import manifest, pictures


def _group(pattern, text, option):
  found = pattern.search(text)
  if pattern.groups != 1:
    raise UserError(f"{option} {pattern.pattern!r} has {pattern.groups} groups (...); write one.")
  if not found or not found.group(1):
    raise UserError(f"{option} finds nothing in {text!r}; mend it, or remove what it is to ignore.")
  return found.group(1)


def _read_mask(path):
  """A mask [h, w] bool, its pixels between black and white, and whether its white is 1."""
  with stills.opened(path) as image:
    values, _ = stills.pixels(image, path)
    # An empty JPEG may be 1 everywhere.
    is_of_ones = values.dtype != bool and values.max() == 1 and not stills.is_jpeg(image)
  return *readers.read_binary_mask(path, maximum=1 if is_of_ones else None), is_of_ones


def _check_undrawn(images, masks):
  for name, path in images.items():
    if not any(name in drawn for drawn in masks.values()):
      raise UserError(f"{path} was drawn by no rater; add a mask or take the image away.")


def _match_masks(folder, images, mask_pattern):
  """Returns a rater's masks by image, and notes of what else is in their folder."""
  masks = {}
  found, notes = folder_lib.find_pictures(folder, "--raters")
  for stem, path in found.items():
    name = _group(mask_pattern, stem, f"{path}: --mask-pattern")
    if name not in images:
      raise UserError(f"{path}: there is no image {name!r}; add it or remove the mask.")
    if name in masks:
      raise UserError(f"{path} and {masks[name].name} are both of image {name!r}; remove one.")
    masks[name] = path
  for path in tables.visible(folder):
    name = mask_pattern.search(tables.normal(path.name.split(".")[0]))
    if path not in found.values() and name and name.group(1) in images.keys() - masks.keys():
      raise UserError(
        f"{path} is no picture that is read, but has the name of a mask of {name.group(1)!r}; save "
        "it as PNG, or rename it."
      )
  return masks, notes


@notices.collected()
def import_folders(
  *,
  images,
  raters,
  out,
  class_name,
  name=None,
  licence="unknown",
  mask_pattern=re.compile("(.+)"),
  polarity="white",
  person_pattern=None,
  dry_run=False,
):
  """Writes a folder from images and a folder of masks a rater.

  Args:
    images: a folder of pictures.
    raters: a folder that holds a folder a rater: masks of 1 bit, 8-bit grey or RGB.
    out: the folder to write.
    class_name: what the masks show.
    name: of the data set; by default that of `out`.
    licence: of the data.
    mask_pattern: a regular expression whose group is the image's name in that of a mask.
    polarity: what the object is in the masks, 'white' or 'black'.
    person_pattern: a regular expression whose group is the person in a rater's name; without it,
      every rater is a person.
    dry_run: whether nothing is written.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  folder_lib.check_names([class_name], ())
  image_of, left_out = folder_lib.find_pictures(images, "--images")
  tables.refuse_same_files(image_of.values())
  folders, others = manifest.rater_folders(raters)
  if others:
    left_out.append(f"{raters}: {tables.note_of([path.name for path in others], 'no pictures')}")
  masks = {}
  for rater, path in folders.items():
    masks[rater], notes = _match_masks(path, image_of, mask_pattern)
    left_out += notes
  _check_undrawn(image_of, masks)
  persons = {}
  if person_pattern is not None:
    persons = {rater: _group(person_pattern, rater, "--person-pattern") for rater in folders}
    tables.warn_of_alike(persons.values(), raters, "persons", "they count as different people")
  headers, grey, ones, shares = {}, [], [], []
  with folder_lib.new_folder(out, dry_run=dry_run) as folder:
    for image, path in image_of.items():
      headers[image] = readers.probe_still(path)
      folder.copy(path, [path], f"images/{image}{path.suffix}")
    for rater, drawn in masks.items():
      for image, path in drawn.items():
        mask, n_grey, is_of_ones = _read_mask(path)
        readers.check_mask_size(path, mask.shape, headers[image], of="image")
        if n_grey:
          grey.append(f"{n_grey} in {rater}/{path.name}")
        if is_of_ones:
          ones.append(f"{rater}/{path.name}")
        mask = mask if polarity == "white" else ~mask
        shares.append(mask.mean())
        folder.picture(np.where(mask, np.uint8(255), np.uint8(0)), f"raters/{rater}/{image}.png")
    more = {"persons": persons} if persons else {}
    name = name or out.name
    folder.dataset(name=name, licence=licence, classes=[class_name], **more)
  people = f" ({len(set(persons.values()))} persons)" if persons else ""
  notes = [f"{len(image_of)} images, {len(folders)} raters{people}, class {class_name}.", *left_out]
  if grey:
    notes.append(f"Pixels neither black nor white were cut at half: {tables.shown_list(grey)}.")
  if ones:
    notes.append(
      f"1 is taken for white, as 255 is, in masks of 0 and 1: {tables.shown_list(ones)}."
    )
  if min(shares) > 0.5:
    other = "white" if polarity == "black" else "black"
    notes.append(
      "More than half of the pixels are object in every mask: is that the background? Then import "
      f"with --polarity={other}."
    )
  return [*folder.notes(), *notes, _PATIENTS_NOTE]


_PATIENTS_NOTE = (
  "Every image counts as a patient of its own: where one gave several images, add patients.csv "
  "(image,patient), or the test is not independent of the training."
)


@notices.collected()
def import_qubiq(
  *,
  cases,
  task,
  out,
  class_name,
  name=None,
  licence="unknown",
  nifti_axes=None,
  soft=False,
  confidence_maximum=None,
  dry_run=False,
):
  """Writes a folder from one task of a QUBIQ 2021 data set.

  Args:
    cases: a folder of cases: <case>/image.nii.gz and <case>/<task>_seg01.nii.gz, ...
    task: 'task01', ...
    out: the folder to write.
    class_name: what the masks of this task show.
    name: of the data set; by default that of `out`.
    licence: of the data.
    nifti_axes: which axis of the files is the first: 'xy' (the default) or 'yx'.
    soft: whether masks are confidences.
    confidence_maximum: what means object or 100 % in masks; None: what their type says.
    dry_run: whether nothing is written.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  folder_lib.check_names([class_name], ())
  if not cases.is_dir():
    raise UserError(f"{cases} does not exist; mend --cases.")
  found = {path.parent.name: path for path in sorted(cases.glob("*/image.nii.gz"))}
  if not found:
    raise UserError(f"{cases} holds no <case>/image.nii.gz; mend --cases.")
  of_case = {
    case: {
      path.name.removesuffix(".nii.gz").removeprefix(f"{task}_"): path
      for path in sorted(image.parent.iterdir())
      if re.fullmatch(rf"{re.escape(task)}_seg\d+\.nii\.gz", path.name)
    }
    for case, image in found.items()
  }
  left_out = [case for case, masks in of_case.items() if not masks]
  raters = sorted({rater for masks in of_case.values() for rater in masks})
  if len(raters) < 2:
    raise UserError(
      f"{cases} holds masks {task}_segNN.nii.gz of {len(raters)} raters, but two are needed; mend "
      "--task or --cases."
    )
  with folder_lib.new_folder(out, dry_run=dry_run) as folder:
    for case, masks in of_case.items():
      if not masks:
        continue
      folder.copy(found[case], [found[case]], f"images/{case}.nii.gz")
      pictures.read_image(found[case])
      pictures.check_geometry(found[case], masks.values(), indices=False, axes=nifti_axes)
      for rater, path in masks.items():
        pictures.read_mask(path, soft=soft, maximum=confidence_maximum)
        folder.copy(path, [path], f"raters/{rater}/{case}.nii.gz")
    more = {"nifti_axes": nifti_axes, "soft": soft, "confidence_maximum": confidence_maximum}
    more = {key: value for key, value in more.items() if value}
    name = name or out.name
    folder.dataset(name=name, licence=licence, classes=[class_name], **more)
  notes = [f"{len(of_case) - len(left_out)} images, {len(raters)} raters, class {class_name}."]
  if left_out:
    notes.append(f"Left out, as they have no mask of {task}: {', '.join(left_out)}.")
  return [*folder.notes(), *notes, _PATIENTS_NOTE]
