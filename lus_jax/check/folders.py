"""Reads any kind of data folder into one form, collecting what is wrong in place of stopping."""

import collections
import contextlib
import dataclasses
import logging
import math
import pathlib
from typing import Any

from absl import logging as absl_logging

from lus_jax import problems
from lus_jax.data import selection
from lus_jax.errors import UserError
from lus_jax.files import expanded
from lus_jax.media import readers
from tfds_builders import tables
from tfds_builders.lus_folder import painted
from tfds_builders.lus_folder.manifest import LABEL_COLUMNS, MANIFEST_COLUMNS
from tfds_builders.lus_folder.manifest import read_folder as read_lus
from tfds_builders.multirater_folder import drawn, pictures
from tfds_builders.multirater_folder.manifest import read_folder as read_multirater

# What lies in a folder of each kind, and nowhere else; the first is enough.
KINDS = {
  "lus_folder": ("manifest.csv", "labels.csv", "videos", "masks"),
  "multirater_folder": ("raters", "images"),
  "covid_blues": ("lus_videos", "severity.csv", "clinical_variables.csv"),
}


@dataclasses.dataclass(frozen=True)
class Label:
  """What one person painted on one frame.

  Attributes:
    frame: counted from 0.
    person: who; '' is unknown.
    where: file and row; '' where what is refused says so itself.
    files: of the masks, by class.
    row: what the folder's own reader says of it.
  """

  frame: int
  person: str
  where: str
  files: dict[str, pathlib.Path]
  row: Any


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video or still and its labels; '', -1 and None are unknown.

  Attributes:
    name: of it.
    where: file and row; '' where what is refused says so itself.
    media: what its header says.
    patient, day, view, split: as the tables say.
    area: the box of the scan, as the tables say.
    labels: what was painted on it.
    cells: what else the tables say of its patient, by column.
  """

  name: str
  where: str
  media: readers.Media
  patient: str
  day: int = -1
  view: str = ""
  split: str = ""
  area: tuple[int, int, int, int] | None = None
  labels: tuple[Label, ...] = ()
  cells: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class DataSet:
  """A data folder, as far as it can be read.

  Attributes:
    directory: where it is.
    kind: of `KINDS`.
    name, licence: of the data set.
    classes: K names; none where nothing is labelled.
    people: what those who paint are called.
    noun: what a clip is called.
    folder: what the folder's own reader returned; None where it refused all.
    clips: those that can be read.
    columns: of each optional column, whether each row fills it.
    odd: names of what is unusual, by what is unusual about it.
  """

  directory: pathlib.Path
  kind: str
  name: str = ""
  licence: str = ""
  classes: tuple[str, ...] = ()
  people: str = "annotators"
  noun: str = "video"
  folder: Any = None
  clips: tuple[Clip, ...] = ()
  columns: dict[str, list[bool]] = dataclasses.field(default_factory=dict)
  odd: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class _Kept(logging.Handler):
  def __init__(self):
    super().__init__(logging.WARNING)
    self.texts = []

  def emit(self, record):
    self.texts.append(record.getMessage())


@contextlib.contextmanager
def heard():
  """Yields a list to which the texts of warnings are added, instead of being shown."""
  logger, kept = absl_logging.get_absl_logger(), _Kept()
  handlers, propagates = logger.handlers, logger.propagate
  logger.handlers, logger.propagate = [kept], False
  try:
    yield kept.texts
  finally:
    logger.handlers, logger.propagate = handlers, propagates


def find_kind(directory):
  """Tells what kind of data folder this is, one of `KINDS`, by what lies there.

  Raises:
    UserError: it is none, or several.
  """
  there = {
    kind: [name for name in names if tables.exists(directory / name)]
    for kind, names in KINDS.items()
  }
  sure = [kind for kind, names in KINDS.items() if names[0] in there[kind]]
  found = sure or [kind for kind, names in there.items() if names]
  if len(found) > 1:
    both = " and ".join(f"{', '.join(there[kind])} of a {kind}" for kind in found)
    raise UserError(f"{directory} holds {both}; keep one kind of data set in a folder.")
  if not found:
    wanted = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in KINDS.items())
    raise UserError(
      f"{directory} is no data folder, as nothing lies there that one holds ({wanted}); name the "
      "folder that does, or make one: python -m tfds_builders.importers --help."
    )
  return found[0]


def read(directory, num_processes):
  """Reads the tables of a data folder and the headers of its files, by the readers of training.

  What they refuse goes to `problems.tell`.

  Args:
    directory: the folder.
    num_processes: that read headers of videos, as in `pool.ordered`.

  Returns:
    A `DataSet`; without clips where nothing can be read.

  Raises:
    UserError: it is no data folder.
  """
  directory = expanded(directory, "the first word")
  if not directory.is_dir():
    raise UserError(f"{directory} is no folder; name a data folder.")
  kind = find_kind(directory)
  dataset = DataSet(directory=directory, kind=kind, name=directory.name)
  with problems.apart():
    dataset = {
      "lus_folder": _lus,
      "multirater_folder": _multirater,
      "covid_blues": _covid_blues,
    }[kind](directory, num_processes)
  return dataset


def _lus(directory, num_processes):
  is_labelled = _has_labels(directory)
  folder = read_lus(directory, labels=is_labelled, num_processes=num_processes)
  masks = directory / "masks"
  if not is_labelled and masks.is_dir() and tables.visible(masks):
    absl_logging.warning(
      "%s: none of it is used, as labels.csv names no labelled frame; write a row for each.", masks
    )
  cells = _other_cells(directory / "manifest.csv")
  labels = collections.defaultdict(list)
  for label in folder.labels:
    files = {name: label.masks[name] for name in folder.classes if name in label.masks}
    where = f"{directory / 'labels.csv'} row {label.row}"
    labels[label.video.name].append(Label(label.frame, label.annotator, where, files, label))
  return DataSet(
    directory=directory,
    kind="lus_folder",
    name=folder.name,
    licence=folder.licence,
    classes=folder.classes if is_labelled else (),
    folder=folder,
    clips=tuple(
      Clip(
        name=video.name,
        where=f"{directory / 'manifest.csv'} row {video.row}",
        media=video.media,
        patient=video.patient,
        day=video.day,
        view=video.view,
        split=video.split,
        area=video.scan_area,
        labels=tuple(labels[video.name]),
        cells=folder.patients.get(video.patient, {}) | cells[video.row],
      )
      for video in folder.videos
    ),
    columns={
      "day": [video.day >= 0 for video in folder.videos],
      "view": [bool(video.view) for video in folder.videos],
      "sf_ratio": [not math.isnan(video.sf_ratio) for video in folder.videos],
      "readmitted_30d": [video.readmitted_30d >= 0 for video in folder.videos],
      "split": [bool(video.split) for video in folder.videos],
      "annotator (labels.csv)": [bool(label.annotator) for label in folder.labels],
    },
  )


def _has_labels(directory):
  """Whether labels.csv has a row; also where it cannot be read, which the folder's reader tells."""
  path = directory / "labels.csv"
  if not tables.exists(path):
    return False
  required = LABEL_COLUMNS[:2]
  with contextlib.suppress(UserError):
    header, lines, _ = tables.read_lines(path, tables.read_text(path, ""), required)
    return not set(required) <= set(header) or any(any(line) for _, line in lines)
  return True


def _other_cells(path):
  """What a manifest says in columns that mean nothing, by row."""
  with problems.collected():  # which was told
    rows = tables.read_table(path, MANIFEST_COLUMNS[:2], "")
  return {
    row.number: {c: cell for c, cell in row.cells.items() if c not in MANIFEST_COLUMNS}
    for row in rows
  }


def _multirater(directory, num_processes):
  del num_processes
  folder = read_multirater(directory)
  clips = []
  for image in folder.images:
    labels = tuple(Label(0, rater, "", paths, paths) for rater, paths in image.masks.items())
    clips.append(
      Clip(
        name=image.name,
        where="",
        media=pictures.probe_image(image.path, axes=folder.nifti_axes),
        patient=image.patient,
        split=image.split,
        area=image.scan_area,
        labels=labels,
        cells=folder.more.get(image.name, {}),
      )
    )
  return DataSet(
    directory=directory,
    kind="multirater_folder",
    name=folder.name,
    licence=folder.licence,
    classes=folder.classes,
    people="raters",
    noun="image",
    folder=folder,
    clips=tuple(clips),
    columns={"split": [bool(image.split) for image in folder.images]},
  )


def _covid_blues(directory, num_processes):
  # Its reader is its builder, which needs TensorFlow's data sets.
  from tfds_builders.covid_blues import covid_blues

  folder = covid_blues.read_folder(directory, num_processes=num_processes)
  return DataSet(
    directory=directory,
    kind="covid_blues",
    name="COVID-BLUES",
    licence=covid_blues.LICENCE,
    folder=folder,
    clips=tuple(
      Clip(
        name=video.features["video"],
        where="",
        media=video.media,
        patient=video.features["patient"],
        day=video.features["day"],
        view=video.features["view"],
      )
      for video in folder.videos
    ),
    odd={what: names for what, names in folder.oddities.items() if names},
  )


def split(dataset, split_unit):
  """Splits a data set as training does by default.

  Args:
    dataset: a `DataSet` with a folder.
    split_unit: 'patient' or 'frame'.

  Returns:
    Names of clips with a labelled frame (or all, where nothing is labelled) by split.

  Raises:
    UserError: a split would be empty.
  """
  folder = dataset.folder
  if dataset.kind == "covid_blues":
    from tfds_builders.covid_blues.covid_blues import assign_splits

    found = assign_splits(folder, 0)
    return {name: [v.features["video"] for v in videos] for name, videos in found.items()}
  if dataset.kind == "lus_folder":
    from tfds_builders.lus_folder.lus_folder import assign_splits

    if not dataset.classes:
      found = assign_splits(folder, "videos", "patient", 0)
      return {name: [video.name for video in videos] for name, videos in found.items()}
    found = assign_splits(folder, "frames", split_unit, 0)
    for name, labels in found.items():
      selection.refuse_empty(dataset.directory, name, reasons(labels))
    return {name: [label.video.name for label in labels] for name, labels in found.items()}
  from tfds_builders.multirater_folder.multirater_folder import assign_splits

  found = assign_splits(folder, split_unit, 0)
  return {name: [image.name for image in images] for name, images in found.items()}


def reasons(labels):
  """Why training leaves out labels of a `lus_folder` by default, as `selection.reasons`."""
  return selection.reasons(
    [((label.video.name, label.frame), label.is_untouched, label.is_consensus) for label in labels]
  )


def frames(dataset, clip):
  """Yields the frames of a clip one after the other, as training reads them: uint8 [h, w].

  Raises:
    UserError: a file is damaged.
  """
  folder, media = dataset.folder, clip.media
  if dataset.kind == "multirater_folder":
    yield pictures.read_image(media.path, axes=folder.nifti_axes, window=folder.intensity_window)
    return
  yield from readers.stream(media)


def masks(dataset, label):
  """Yields the masks of a label one after the other, as training reads them.

  Yields:
    The class, float32 [h, w] in [0, 1], and whether its background is told by its values alone.

  Raises:
    UserError: a file is damaged, or no mask.
  """
  if dataset.kind == "lus_folder":
    for name in label.files:
      yield name, painted.confidence(label.files[name], dataset.folder.confidence_maximum), True
  else:
    for name, mask in drawn.masks(dataset.folder, label.row).items():
      yield name, mask, drawn.may_be_inverted(dataset.folder, label.files[name])


def ignored(dataset, label):
  """Where nothing of a label counts: [h, w] bool; None: nowhere (`UserError` if damaged)."""
  return painted.ignored(label.row) if dataset.kind == "lus_folder" else None


def mask_check(dataset):
  """What collects the masks of a data set, to warn of them together; None where there are none."""
  check = {"lus_folder": painted.mask_check, "multirater_folder": drawn.mask_check}
  return check[dataset.kind](dataset.folder) if dataset.classes and dataset.kind in check else None
