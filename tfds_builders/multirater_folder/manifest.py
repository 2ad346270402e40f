"""Reads and checks a folder of images that several raters drew, before anything is written.

The folder:

    DIR/dataset.json   name, licence, classes; optional:
                       thin      a list of classes that are lines
                       polarity  "white" (default) or "black": what the object is in PNG masks
                       labels    {class: index}: masks hold label indices (grey or palette)
                       persons   {rater: person}, where one person drew with several tools
                       soft      true: masks are confidences, value / maximum of the type
                       patients  "unknown": the patients of patients.csv are stand-ins
                       confidence_maximum  what means object or 100 % in masks, where their type
                                           does not say
                       nifti_axes          "xy" or "yx": which axis of NIfTI files is the first
                       intensity_window    [low, high]: values of NIfTI images that become 0 and 255
    DIR/images/<image>.png                     or .jpg, .tif, .bmp, .nii.gz, .nii; so the masks
    DIR/raters/<rater>/<image>.png             one class, or label indices
    DIR/raters/<rater>/<class>/<image>.png     several classes; one without a file is absent
    DIR/patients.csv   optional, a row an image: image, patient, split (train, validation or test;
                       for all rows or none, one a patient), scan_area (X Y WIDTH HEIGHT in pixels:
                       image and masks are cropped to it; empty: the whole), and anything else

Binary masks hold 0 and the maximum of the type (NIfTI: 0 and 1). Raters may miss images.
"""

import dataclasses
import pathlib

from absl import logging

from lus_jax import notices, problems
from lus_jax.errors import UserError
from lus_jax.media import readers
from lus_jax.splits import SPLITS
from tfds_builders import tables
from tfds_builders.multirater_folder import pictures

POLARITIES = ("white", "black")
MAX_INDEX = 2**16 - 1
PATIENT_COLUMNS = ("image", "patient", "split", "scan_area")
DATASET_KEYS = (
  "name",
  "licence",
  "classes",
  "thin",
  "polarity",
  "labels",
  "persons",
  "soft",
  "patients",
  "confidence_maximum",
  "nifti_axes",
  "intensity_window",
)


@dataclasses.dataclass(frozen=True)
class Image:
  """One image; `masks` maps each rater who drew it to their files by class; `split` may be ''.

  `scan_area` is (top, left, bottom, right), half-open; None: the whole image.
  """

  name: str
  path: pathlib.Path
  patient: str
  split: str
  masks: dict[str, dict[str, pathlib.Path]]
  scan_area: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder that passed every check.

  Attributes:
    directory: where it is.
    name: of the data set.
    licence: of the data set.
    classes: K names.
    thin: those of them that are lines.
    polarity: what the object is in PNG masks, 'white' or 'black'.
    labels: the label index of each class; empty where masks are of one class each.
    soft: whether masks are confidences.
    confidence_maximum: what means object or 100 % in masks; None: what their type says.
    nifti_axes: which axis of NIfTI files is the first, 'xy' or 'yx'; None: nobody says.
    intensity_window: the values of NIfTI images that become 0 and 255; None: each image's own.
    raters: R names, sorted.
    persons: who each of them is.
    patients_are_unknown: whether the patients are stand-ins, so that a split may share a person.
    images: all of them, by name.
    more: what patients.csv says of each image beside its patient, as text.
    fingerprint: changes whenever a table, an image or a mask does.
  """

  directory: pathlib.Path
  name: str
  licence: str
  classes: tuple[str, ...]
  thin: tuple[str, ...]
  polarity: str
  labels: dict[str, int]
  soft: bool
  confidence_maximum: float | None
  nifti_axes: str | None
  intensity_window: tuple[float, float] | None
  raters: tuple[str, ...]
  persons: tuple[str, ...]
  patients_are_unknown: bool
  images: tuple[Image, ...]
  more: dict[str, dict[str, str]]
  fingerprint: str

  @property
  def has_scan_areas(self):
    """Whether the scan is a part of any image."""
    return any(image.scan_area for image in self.images)


def _read_dataset(path):
  dataset = tables.read_dataset(path, DATASET_KEYS)
  if "missing_class" in dataset:
    problems.tell(
      UserError(
        f"{path}: 'missing_class' is of lus_folder; a class without a mask is absent here, remove "
        "it."
      )
    )
  for key in ("frame_numbers", "npy_axes"):
    if key in dataset:
      problems.tell(
        UserError(f"{path}: {key!r} is of lus_folder and says nothing here; remove it.")
      )
  polarity, soft = dataset.setdefault("polarity", "white"), dataset.setdefault("soft", False)
  labels = dataset.setdefault("labels", {})
  dataset.setdefault("persons", {})
  if polarity not in POLARITIES:
    written = tables.shown_value(polarity)
    problems.tell(
      UserError(f"{path}: 'polarity' is {written}; write one of {', '.join(POLARITIES)}.")
    )
  if not isinstance(soft, bool):
    problems.tell(UserError(f"{path}: 'soft' is {tables.shown_value(soft)}; write true or false."))
  dataset["confidence_maximum"] = tables.confidence_maximum(path, dataset)
  dataset["nifti_axes"] = tables.nifti_axes(path, dataset)
  dataset["intensity_window"] = tables.intensity_window(path, dataset)
  for field, what, kind in (("labels", "class", int), ("persons", "rater", str)):
    values = dataset[field].values() if isinstance(dataset[field], dict) else [None]
    # A bool is an int to Python.
    if any(type(value) is not kind or not value for value in values):
      value = "an index from 1" if kind is int else "a person"
      raise UserError(f"{path}: {field!r} must give each {what} {value}; mend it.")
  if labels:
    if labels.keys() != set(dataset["classes"]):
      raise UserError(
        f"{path}: 'labels' must name the same classes as 'classes'; mend one of them."
      )
    indices = set(labels.values())
    if not 1 <= min(indices) <= max(indices) <= MAX_INDEX or len(indices) < len(labels):
      raise UserError(
        f"{path}: 'labels' must give each class an index of its own from 1 to {MAX_INDEX}; mend it."
      )
    given = {"soft": soft, "polarity": polarity == "black"}
    given |= {"confidence_maximum": dataset["confidence_maximum"] is not None}
    for other in (name for name, is_given in given.items() if is_given):
      raise UserError(f"{path}: label indices have no {other!r}; remove it, or remove 'labels'.")
  return dataset


def rater_folders(directory):
  """Lists the folders of the raters, one a rater.

  Args:
    directory: the folder they are in.

  Returns:
    A dict from rater to folder, sorted, and the files beside them that are no pictures.

  Raises:
    UserError: there are fewer than two, two have one name, or a mask lies beside them.
  """
  if not directory.is_dir():
    raise UserError(f"{directory} does not exist; put a folder a rater there.")
  entries = tables.visible(directory)
  folders = [path for path in entries if path.is_dir()]
  for folder in folders:
    name = folder.name.casefold()
    with problems.apart():
      _refuse_ignore(folder, folder.name)
    for other in entries:
      twin = other.name.casefold()
      if other != folder and (twin == name or twin.startswith(f"{name}.")):
        problems.tell(
          UserError(
            f"{other} has the name of the rater {folder.name}; rename or remove one of them."
          )
        )
  others = [path for path in entries if path not in folders]
  for path in others:
    if pictures.stem(path) is not None:
      problems.tell(UserError(f"{path} is in no rater's folder; put it into {directory}/<rater>."))
  if len(folders) < 2:
    found = ", ".join(folder.name for folder in folders) or "none"
    problems.tell(
      UserError(
        f"{directory} has fewer than two raters' folders ({found}); add a folder a rater, or use "
        "lus_folder for one annotator."
      )
    )
  found = {tables.normal(folder.name): folder for folder in folders}
  tables.warn_of_alike(found, directory, "raters", "they count as different people")
  return found, others


def _refuse_pairs(found, path, other):
  if other is not None:
    raise UserError(f"{path} and {other.name} are the same {found}; remove one of them.")


def _stem(path):
  """The image that a file's name names; None if it is no picture."""
  name = pictures.stem(path)
  _refuse_ignore(path, name)
  return None if name is None else tables.normal(name)


def _refuse_ignore(path, name):
  if name == tables.IGNORE:
    raise UserError(
      f"{path}: pixels that do not count ({tables.IGNORE}) are of lus_folder and not known here; "
      "remove it."
    )


def _find_images(folder, left_out):
  if not folder.is_dir():
    raise UserError(f"{folder} does not exist; put <image>.png or <image>.nii.gz there.")
  images = {}
  for path in tables.visible(folder):
    with problems.apart():
      name = _stem(path)
      if name is None or path.is_dir():
        left_out.append(path)
        continue
      _refuse_pairs("image", path, images.get(name))
      images[name] = path
  if not images:
    raise UserError(f"{folder} holds no image; put <image>.png or <image>.nii.gz there.")
  with problems.apart():
    tables.refuse_same_files(images.values())
  return images


def _find_masks(folder, dataset, images, left_out):
  """Returns one rater's mask files, {image: {class: path}}; others are collected in `left_out`."""
  classes, labels = dataset["classes"], dataset["labels"]
  files = []
  for path in tables.visible(folder):
    with problems.apart():
      if path.is_dir():
        if labels:
          raise UserError(
            f"{path} is a folder, but with 'labels' in dataset.json each mask serves all classes; "
            f"put masks into {folder} itself."
          )
        name = tables.normal(path.name)
        _refuse_ignore(path, name)
        if name not in classes:
          raise UserError(
            f"{path} is the folder of no class ({', '.join(classes)}); rename or remove it."
          )
        files += [(file, name) for file in tables.visible(path)]
      else:
        if pictures.stem(path) is not None and len(classes) > 1 and not labels:
          raise UserError(
            f"{path} is of no class; put it into {folder}/<class> ({', '.join(classes)}), or name "
            "the label indices in 'labels' of dataset.json."
          )
        files.append((path, classes[0]))
  masks = {}
  for path, name in files:
    with problems.apart():
      image = _stem(path)
      if image is None:
        # Of another format, as c1.webp or c1.nrrd, which may be what its rater drew.
        if tables.normal(path.name.split(".")[0]) in images or tables.normal(path.stem) in images:
          raise UserError(
            f"{path} is neither NIfTI nor a picture that is read ({', '.join(readers.PICTURES)}); "
            "save the mask as one of them."
          )
        left_out.append(path)
        continue
      if image not in images:
        raise UserError(
          f"{path}: there is no image {image!r} in images/; add it, or rename or remove the mask."
        )
      _refuse_pairs("mask", path, masks.setdefault(image, {}).get(name))
      masks[image][name] = path
  if not masks:
    problems.tell(UserError(f"{folder} holds no mask; add one or remove the folder."))
  if labels:
    return {image: dict.fromkeys(classes, paths[classes[0]]) for image, paths in masks.items()}
  return masks


def _read_patients(path, images):
  """Returns patient and split of each image, what else the table says of it, and its row."""
  if not tables.exists(path):
    return {name: (name, "") for name in images}, {}, {}
  rows = tables.read_table(path, ("image", "patient"), "", PATIENT_COLUMNS)
  names = {}
  for row in rows:
    with problems.apart():
      names[row] = row.required("image")
  patients, more, splits, of_images = {}, {}, {}, {}
  for row in tables.refuse_repeats(names, names.get, "image"):
    with problems.apart():
      name = names[row]
      if name not in images:
        raise row.error(
          f"there is no image {tables.shown(name)}; mend the cell (no .png) or remove the row."
        )
      split, of_images[name] = row.choice("split", SPLITS), row
      more[name] = {c: cell for c, cell in row.cells.items() if c not in PATIENT_COLUMNS}
      patients[name] = "", split  # so it stays where the patient is told to be empty
      patient = row.required("patient")
      if splits.setdefault(patient, split) != split:
        problems.tell(
          row.error(f"split {split!r} is not that of the patient's other images; use one.")
        )
      elif bool(split) != bool(rows[0].cells.get("split")):
        problems.tell(row.error("split is empty in some rows only; fill it everywhere or nowhere."))
      patients[name] = patient, split
  for name in images:
    if name not in patients:
      problems.tell(UserError(f"{path} has no row for the image {name!r}; add it."))
      patients[name] = "", ""
  tables.warn_of_alike(splits, path, "patients", "one person may stand on both sides of the split")
  return patients, more, of_images


@notices.collected()
def read_folder(directory):
  """Reads and checks a folder's tables and the headers of all images and masks.

  Args:
    directory: the folder.

  Returns:
    A `Folder`.

  Raises:
    UserError: anything is missing or contradicts itself; the message names the file.
  """
  directory = tables.data_folder(directory)
  dataset = _read_dataset(directory / "dataset.json")
  left_out = []
  files = _find_images(directory / "images", left_out)
  folders, others = rater_folders(directory / "raters")
  left_out += others
  for rater in dataset["persons"]:
    if rater not in folders:
      problems.tell(
        UserError(
          f"{directory / 'dataset.json'}: 'persons' names {tables.shown(rater)}, which is no "
          f"folder of raters/ ({tables.shown_list(folders)}); mend the name."
        )
      )
  patients, more, rows = {name: ("", "") for name in files}, {}, {}
  with problems.apart():
    patients, more, rows = _read_patients(directory / "patients.csv", files)
  found = {
    rater: _find_masks(folder, dataset, files, left_out) for rater, folder in folders.items()
  }
  if left_out:
    names = [str(path.relative_to(directory)) for path in left_out]
    logging.warning("%s: %s", directory, tables.note_of(names, "no pictures"))
  images = []
  for name, path in files.items():
    masks = {rater: masks[name] for rater, masks in found.items() if name in masks}
    with problems.apart():
      if not masks:
        raise UserError(f"{path} was drawn by no rater; add a mask or remove the image.")
      paths = dict.fromkeys(mask for by_class in masks.values() for mask in by_class.values())
      size = pictures.check_geometry(
        path, paths, indices=bool(dataset["labels"]), axes=dataset["nifti_axes"]
      )
      area = tables.scan_area(rows[name], *size) if name in rows else None
      images.append(Image(name, path, *patients[name], masks, area))
  digests = {}
  with problems.apart():
    digests = tables.contents(
      directory,
      {image.path for image in images}
      | {path for image in images for masks in image.masks.values() for path in masks.values()},
    )
    tables.warn_of_copies(
      [(image.name, image.patient, [image.path]) for image in images], digests, directory / "images"
    )
  return Folder(
    directory=directory,
    name=dataset["name"],
    licence=dataset["licence"],
    classes=tuple(dataset["classes"]),
    thin=tuple(dataset.get("thin", [])),
    polarity=dataset["polarity"],
    labels=dataset["labels"],
    soft=dataset["soft"],
    confidence_maximum=dataset["confidence_maximum"],
    nifti_axes=dataset["nifti_axes"],
    intensity_window=dataset["intensity_window"],
    raters=tuple(folders),
    persons=tuple(dataset["persons"].get(rater, rater) for rater in folders),
    patients_are_unknown=not more or "patients" in dataset,
    images=tuple(images),
    more=more,
    fingerprint=tables.fingerprint(directory, ("dataset.json", "patients.csv"), digests),
  )
