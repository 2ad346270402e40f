"""Reads and checks a folder of videos, confidence masks and tables, before anything is written.

The folder:

    DIR/dataset.json   name, licence, classes; optional: thin (a list of classes that are lines),
                       missing_class ("unlabelled": see below)
    DIR/manifest.csv   a row a video or still: video, patient, day, view, sf_ratio, readmitted_30d,
                       split
    DIR/labels.csv     a row a labelled frame: video, frame (from 0), annotator, masks
    DIR/videos/<video>                 mp4, avi, gif, npy, png or a folder of numbered PNGs
    DIR/masks/<masks>/<class>.png      8- or 16-bit grey, confidence = value / maximum of the type;
                                       a missing file is confidence 0, or unlabelled
    DIR/patients.csv   optional: patient and anything else, for subgroup tables

`video` and `patient`, and `video`, `frame` and `masks`, are required; an empty cell is unknown.
"""

import csv
import dataclasses
import difflib
import hashlib
import io
import json
import math
import pathlib

from lus_jax.errors import UserError
from tfds_builders import media, records

VIEWS = ("L1", "L2", "L3", "R1", "R2", "R3")
MANIFEST_COLUMNS = ("video", "patient", "day", "view", "sf_ratio", "readmitted_30d", "split")
LABEL_COLUMNS = ("video", "frame", "annotator", "masks")
DATASET_KEYS = ("name", "licence", "classes", "thin", "missing_class", "patients")
MAX_SF_RATIO = 477.0


@dataclasses.dataclass(frozen=True)
class Video:
  """A row of manifest.csv; '', -1 and NaN are unknown. `row` counts as a spreadsheet does."""

  row: int
  name: str
  media: media.Media
  patient: str
  day: int
  view: str
  sf_ratio: float
  readmitted_30d: int
  split: str


@dataclasses.dataclass(frozen=True)
class Label:
  """A row of labels.csv; `masks` maps the classes that have a mask file to it."""

  row: int
  video: Video
  frame: int
  annotator: str
  masks: dict[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder that passed every check.

  Attributes:
    directory: where it is.
    name: of the data set.
    licence: of the data set.
    classes: K names.
    thin: those of them that are lines.
    missing_class_is_unlabelled: whether a class without a mask file is unknown there, not absent.
    patients_are_unknown: whether the patients are stand-ins, so that a split may share a person.
    videos: the rows of manifest.csv.
    labels: the rows of labels.csv; empty if they were not asked for.
    patients: what patients.csv says of each patient, as text.
    fingerprint: changes whenever a table, or a file they refer to, does.
  """

  directory: pathlib.Path
  name: str
  licence: str
  classes: tuple[str, ...]
  thin: tuple[str, ...]
  missing_class_is_unlabelled: bool
  patients_are_unknown: bool
  videos: tuple[Video, ...]
  labels: tuple[Label, ...]
  patients: dict[str, dict[str, str]]
  fingerprint: str


class _Row:
  """One row of a table: cells by column, and errors that say where."""

  def __init__(self, path, number, cells):
    self.path, self.number, self.cells = path, number, cells

  def error(self, message):
    return UserError(f"{self.path} row {self.number}: {message}")

  def required(self, column):
    if not self.cells[column]:
      raise self.error(f"{column} is empty; fill it.")
    return self.cells[column]

  def choice(self, column, choices):
    value = self.cells.get(column, "")
    if value and value not in choices:
      raise self.error(f"unknown {column} {value!r}; write one of {', '.join(choices)}.")
    return value

  def number_in(self, column, kind, low, high, unknown):
    text = self.cells.get(column, "")
    if not text:
      return unknown
    try:
      value = kind(text)
    except ValueError:
      value = math.nan
    if not low <= value <= high:
      what = f"a {'whole ' * (kind is int)}number from {low:g}" + f" to {high:g}" * (high < 1e6)
      raise self.error(f"{column} {text!r} is not {what}; mend the cell.")
    return value


def _read_text(path, mend):
  if not path.is_file():
    raise UserError(f"{path} does not exist; {mend}.")
  try:
    return path.read_text("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text; save it as UTF-8 (CSV UTF-8 in Excel).") from error


def _refuse_near_misses(names, known, what):
  """Refuses a name that was probably meant to be a known one; others are the user's own."""
  simple = {name.casefold(): name for name in known}
  for name in names:
    if name in known:
      continue
    close = difflib.get_close_matches(name.casefold(), simple, n=1, cutoff=0.8)
    if close:
      raise UserError(
        f"{what} {name!r} is not known; did you mean {simple[close[0]]!r}? Rename it."
      )


def _read_table(path, required, mend, known=()):
  text = _read_text(path, mend)
  try:
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text, newline=""))]
  except csv.Error as error:
    raise UserError(f"{path} is not a table of comma-separated values ({error}).") from error
  header = lines[0] if lines else []
  for column in required:
    if column not in header:
      raise UserError(
        f"{path} row 1: the required column {column!r} is missing (there are: "
        f"{', '.join(header) or 'none'}); add it, with commas between the columns."
      )
  named = [column for column in header if column]
  for column in named:
    if named.count(column) > 1:
      raise UserError(f"{path} row 1: two columns are called {column!r}; rename one of them.")
  _refuse_near_misses(named, known, f"{path} row 1: column")
  rows = []
  for number, line in enumerate(lines[1:], start=2):
    if not any(line):
      continue
    row = _Row(path, number, dict.fromkeys(named, "") | dict(zip(header, line, strict=False)))
    if any(line[len(header) :]):
      raise row.error(
        "it has more cells than there are columns; put quotes around a cell that holds a comma."
      )
    rows.append(row)
  if not rows:
    raise UserError(f"{path} has no rows below its header; add one a line.")
  return rows


def _read_dataset(path):
  text = _read_text(path, 'write {"name": ..., "licence": ..., "classes": [...]} there')
  try:
    dataset = json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f"{path} line {error.lineno} is not JSON: {error.msg}.") from error
  if not isinstance(dataset, dict):
    raise UserError(f'{path} must be an object: {{"name": ..., "licence": ..., "classes": [...]}}.')
  _refuse_near_misses(dataset, DATASET_KEYS, f"{path}: key")
  if dataset.get("patients", "unknown") != "unknown":
    raise UserError(
      f"{path}: 'patients' is {dataset['patients']!r}; write \"unknown\" if the patients of "
      "manifest.csv are not real ones, else leave it out."
    )
  for field in ("name", "licence"):
    if not isinstance(dataset.get(field), str):
      raise UserError(f'{path}: {field!r} is missing or no text; add "{field}": "...".')
  classes, thin = dataset.get("classes"), dataset.get("thin", [])
  for field, names in (("classes", classes), ("thin", thin)):
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
      raise UserError(f'{path}: {field!r} must be a list of names; write "{field}": ["..."].')
    if len({n.casefold() for n in names}) < len(names):
      raise UserError(f"{path}: {field!r} names a class twice (capitals do not count).")
  if not classes:
    raise UserError(f"{path}: 'classes' is empty; name at least one class.")
  for name in classes:
    if "/" in name or "\\" in name:
      raise UserError(f"{path}: class {name!r} must be a file name without folders; rename it.")
  for name in thin:
    if name not in classes:
      raise UserError(f"{path}: 'thin' names {name!r}, which is not in 'classes'; mend the name.")
  if dataset.get("missing_class", "unlabelled") != "unlabelled":
    raise UserError(
      f"{path}: 'missing_class' is {dataset['missing_class']!r}; write \"unlabelled\", or leave it "
      "out if a class without a mask file is absent."
    )
  return dataset


def _refuse_repeats(rows, key, what):
  first = {}
  for row in rows:
    other = first.setdefault(key(row), row)
    if other is not row:
      raise row.error(f"the same {what} as row {other.number}; remove one of them.")


def _require_constant(rows, videos, column, group, within):
  first = {}
  for row, video in zip(rows, videos, strict=True):
    value = getattr(video, column)
    if value in ("", -1) or value != value or group(video) is None:  # unknown
      continue
    other_row, other = first.setdefault(group(video), (row, value))
    if other != value:
      raise row.error(
        f"{column} is {row.cells[column]} here and {other_row.cells[column]} in row "
        f"{other_row.number}, within {within}; make them equal or leave one empty."
      )


def _read_videos(directory):
  rows = _read_table(
    directory / "manifest.csv", ("video", "patient"), "write a row a video there", MANIFEST_COLUMNS
  )
  _refuse_repeats(rows, lambda row: row.required("video"), "video")
  videos = []
  for row in rows:
    try:
      header = media.probe(directory / "videos" / row.cells["video"])
    except UserError as error:
      raise row.error(str(error)) from error
    videos.append(
      Video(
        row=row.number,
        name=row.cells["video"],
        media=header,
        patient=row.required("patient"),
        day=row.number_in("day", int, 0, 2**31 - 1, -1),
        view=row.choice("view", VIEWS),
        sf_ratio=row.number_in("sf_ratio", float, 0, MAX_SF_RATIO, math.nan),
        readmitted_30d=row.number_in("readmitted_30d", int, 0, 1, -1),
        split=row.choice("split", records.SPLITS),
      )
    )
  _require_constant(
    rows,
    videos,
    "sf_ratio",
    lambda video: None if video.day == -1 else (video.patient, video.day),
    "one patient and day",
  )
  for column in ("readmitted_30d", "split"):
    _require_constant(rows, videos, column, lambda video: video.patient, "one patient")
  empty = [row for row, video in zip(rows, videos, strict=True) if not video.split]
  if 0 < len(empty) < len(rows):
    raise empty[0].error("split is empty here, not in other rows; fill it everywhere or nowhere.")
  return tuple(videos)


def _read_masks(row, directory, classes, size):
  folder = directory / "masks" / row.required("masks")
  if not folder.is_dir():
    raise row.error(f"{folder} does not exist; put <class>.png there or mend the cell.")
  masks = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      continue
    if path.suffix == ".png" and path.stem in classes:
      try:
        mask_size = media.mask_size(path)
      except UserError as error:
        raise row.error(str(error)) from error
      if mask_size != size:
        raise row.error(
          f"{path} is {mask_size[1]} x {mask_size[0]} and its frame {size[1]} x {size[0]} pixels; "
          "save the mask at the frame's size."
        )
      masks[path.stem] = path
    elif path.suffix.lower() == ".png" or path.stem in classes:
      raise row.error(
        f"{path} is not <class>.png of any class ({', '.join(classes)}); rename or remove it."
      )
  return masks


def _read_labels(directory, classes, videos):
  rows = _read_table(
    directory / "labels.csv",
    ("video", "frame", "masks"),
    "write a row a labelled frame there",
    LABEL_COLUMNS,
  )
  by_name = {video.name: video for video in videos}
  labels = []
  for row in rows:
    video = by_name.get(row.required("video"))
    if video is None:
      raise row.error(
        f"video {row.cells['video']!r} is not in manifest.csv; add it there or mend the cell."
      )
    row.required("frame")
    frame = row.number_in("frame", int, 0, math.inf, -1)
    if frame >= video.media.n_frames:
      raise row.error(
        f"frame {frame} is past the end of {video.name}, which has {video.media.n_frames} frames "
        f"(0 to {video.media.n_frames - 1}); mend the cell."
      )
    size = video.media.height, video.media.width
    masks = _read_masks(row, directory, classes, size)
    labels.append(Label(row.number, video, frame, row.cells.get("annotator", ""), masks))
  _refuse_repeats(
    rows,
    lambda row: (row.cells["video"], int(row.cells["frame"]), row.cells.get("annotator", "")),
    "video, frame and annotator",
  )
  return tuple(labels)


def _read_patients(path):
  if not path.exists():
    return {}
  rows = _read_table(path, ("patient",), "")
  _refuse_repeats(rows, lambda row: row.required("patient"), "patient")
  return {
    row.cells["patient"]: {name: cell for name, cell in row.cells.items() if name != "patient"}
    for row in rows
  }


def _fingerprint(directory, tables, files):
  digest = hashlib.sha256()
  for name in tables:
    path = directory / name
    digest.update(path.read_bytes() if path.exists() else b"")
    digest.update(b"\0")
  for path in sorted(files):
    stat = path.stat()
    digest.update(f"{path.relative_to(directory)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
  return digest.hexdigest()


def read_folder(directory, *, labels=True):
  """Reads and checks a folder's tables and the headers of all files they refer to.

  Args:
    directory: the folder.
    labels: whether labels.csv and the masks are read too.

  Returns:
    A `Folder`.

  Raises:
    UserError: anything is missing or contradicts itself; the message names file and row.
  """
  if not directory:
    raise UserError("No data folder is given; say --config.data.dir=DIR.")
  directory = pathlib.Path(directory).expanduser()
  if not directory.is_dir():
    raise UserError(f"The data folder {directory} does not exist; mend --config.data.dir.")
  dataset = _read_dataset(directory / "dataset.json")
  classes = tuple(dataset["classes"])
  videos = _read_videos(directory)
  frames = _read_labels(directory, classes, videos) if labels else ()
  tables = ["dataset.json", "manifest.csv", "patients.csv"] + ["labels.csv"] * labels
  files = {file for video in videos for file in video.media.files}
  files |= {path for label in frames for path in label.masks.values()}
  return Folder(
    directory=directory,
    name=dataset["name"],
    licence=dataset["licence"],
    classes=classes,
    thin=tuple(dataset.get("thin", [])),
    missing_class_is_unlabelled="missing_class" in dataset,
    patients_are_unknown="patients" in dataset,
    videos=videos,
    labels=frames,
    patients=_read_patients(directory / "patients.csv"),
    fingerprint=_fingerprint(directory, tables, files),
  )
