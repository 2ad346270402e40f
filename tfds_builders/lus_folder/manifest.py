"""Reads and checks a folder of videos, confidence masks and tables, before anything is written.

The folder:

    DIR/dataset.json   name, licence, classes; optional:
                       thin           a list of classes that are lines
                       missing_class  "unlabelled": see below
                       frame_numbers  of folders of pictures: "from_0" (default) or "of_files"
                       patients       "unknown": the patients of manifest.csv are stand-ins
                       npy_axes       of npy files: "nhw" (default) or "hwn", frames last
                       nifti_axes     of NIfTI files, the first axis: "xy" (default) or "yx"
                       intensity_window  [low, high]: the values that become 0 and 255 of files of
                                         more than 8 bits; default: what they say, else a range
                                         that a warning names
                       confidence_maximum  what means 100 % in masks, where their type does not say
    DIR/manifest.csv   a row a video or still: video, patient, day, view, sf_ratio, readmitted_30d,
                       split, scan_area (X Y WIDTH HEIGHT in pixels of the frame as shown: frames
                       and masks are cropped to it; masks have the frame's whole size)
    DIR/labels.csv     a row a labelled frame: video, frame (from 0), annotator, masks
    DIR/videos/<video>                 DICOM (no suffix is needed), mp4, mov, m4v, avi, mkv, webm,
                                       wmv, gif, npy, NIfTI, NRRD, mha, mhd, a TIFF stack, a picture
                                       (png, jpg, tif, bmp) or a folder of numbered ones
    DIR/masks/<masks>/<class>.png      8- or 16-bit grey, confidence = value / maximum of the type
                                       (jpg, tif, bmp are read too);
                                       a missing file is confidence 0, or unlabelled
    DIR/masks/<masks>/_ignore.png      optional: what is not 0 counts nowhere, in no class
    DIR/patients.csv   optional: patient and anything else, for subgroup tables
    DIR/provenance.csv optional, written by lus_jax.annotate: how the masks of a row of labels.csv
                       came to be, a row a revision of them: masks, video, frame (from 0, always),
                       annotator, time, seconds, tool, protocol, prelabel (the model whose masks
                       were offered), prelabelled and touched (classes, with ; between them), review
                       ("yes": they are a consensus; "begun": they will be one, and are not used)

`video` and `patient`, and `video`, `frame` and `masks`, are required; an empty cell is unknown, an
empty `scan_area` the whole frame.
`video` is relative to DIR/videos and `masks` to DIR/masks.
"""

import dataclasses
import datetime
import hashlib
import math
import pathlib
import re

from absl import logging

from lus_jax import notices, problems
from lus_jax.errors import UserError
from lus_jax.labels.annotators import CONSENSUS
from lus_jax.media import clips, readers
from lus_jax.splits import SPLITS
from lus_jax.words import plural
from tfds_builders import tables

VIEWS = ("L1", "L2", "L3", "R1", "R2", "R3")
MANIFEST_COLUMNS = (
  "video",
  "patient",
  "day",
  "view",
  "sf_ratio",
  "readmitted_30d",
  "split",
  "scan_area",
)
LABEL_COLUMNS = ("video", "frame", "annotator", "masks")
PROVENANCE_COLUMNS = (
  *("masks", "video", "frame", "annotator", "time", "seconds", "saved", "tool", "protocol"),
  *("prelabel", "prelabelled", "touched", "review"),
)
DATASET_KEYS = (
  "name",
  "licence",
  "classes",
  "thin",
  "missing_class",
  "patients",
  "frame_numbers",
  "confidence_maximum",
  "npy_axes",
  "nifti_axes",
  "intensity_window",
)
# What a user may expect to count here too; passing over it would turn masks over silently.
MULTIRATER_KEYS = ("polarity", "labels", "persons", "soft")
FRAME_NUMBERS = ("from_0", "of_files")
MAX_SF_RATIO = 477.0
# A consensus that somebody has saved, and one that the page keeps and nobody has saved yet.
# How masks are called that the page saved.
_REVISION = re.compile(r"/r\d{4,}$")
AGREED, BEGUN = REVIEWS = ("yes", "begun")
# Nobody lives with less (50 % on pure oxygen is 50); FiO2 in percent gives 1 to 5.
MIN_SF_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class Video:
  """A row of manifest.csv; '', -1 and NaN are unknown. `row` counts as a spreadsheet does.

  `scan_area` is (top, left, bottom, right), half-open; None: the whole frame.
  """

  row: int
  name: str
  media: readers.Media
  patient: str
  day: int
  view: str
  sf_ratio: float
  readmitted_30d: int
  split: str
  scan_area: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Work:
  """How a label's masks came to be, of its row of provenance.csv; '' and NaN are unknown.

  Attributes:
    time: when they were saved, ISO 8601.
    seconds: that the painting took.
    tool: its name and version.
    protocol: the version of the guideline.
    prelabel: the model whose masks were offered.
    prelabelled: classes that hold what it offered.
    touched: classes that a hand changed.
    review: whether they are a consensus of several annotators.
  """

  time: str
  seconds: float
  tool: str
  protocol: str
  prelabel: str
  prelabelled: tuple[str, ...]
  touched: tuple[str, ...]
  review: bool


@dataclasses.dataclass(frozen=True)
class Label:
  """A row of labels.csv; `masks` maps the classes that have a mask file to it, `ignore` is the mask
  of what does not count, `frame` counts from 0 whatever the files are called, `work` is None where
  nobody knows how they came to be."""

  row: int
  video: Video
  frame: int
  annotator: str
  masks: dict[str, pathlib.Path]
  ignore: pathlib.Path | None
  work: Work | None = None

  @property
  def is_consensus(self):
    """Whether it stands for what several annotators painted; by its name where nothing is known."""
    return self.annotator == CONSENSUS if self.work is None else self.work.review

  @property
  def is_untouched(self):
    """Whether a model painted it and no hand changed anything of it."""
    return self.work is not None and bool(self.work.prelabelled) and not self.work.touched


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
    confidence_maximum: what means 100 % in masks; None: what their type says.
    patients_are_unknown: whether the patients are stand-ins, so that a split may share a person.
    videos: the rows of manifest.csv.
    labels: the rows of labels.csv; empty if they were not asked for.
    patients: what patients.csv says of each patient, as text.
    fingerprint: changes whenever a table, or a file they refer to, does; of provenance.csv count
      the rows of `labels` alone.
  """

  directory: pathlib.Path
  name: str
  licence: str
  classes: tuple[str, ...]
  thin: tuple[str, ...]
  missing_class_is_unlabelled: bool
  confidence_maximum: float | None
  patients_are_unknown: bool
  videos: tuple[Video, ...]
  labels: tuple[Label, ...]
  patients: dict[str, dict[str, str]]
  fingerprint: str

  @property
  def has_ignore(self):
    """Whether any label has pixels that do not count."""
    return any(label.ignore for label in self.labels)

  @property
  def has_scan_areas(self):
    """Whether the scan is a part of the frame in any video."""
    return any(video.scan_area for video in self.videos)

  @property
  def has_provenance(self):
    """Whether it is known of any label how it came to be."""
    return any(label.work for label in self.labels)


def _read_dataset(path):
  dataset = tables.read_dataset(path, DATASET_KEYS)
  for key in MULTIRATER_KEYS:
    if key in dataset:
      problems.tell(
        UserError(f"{path}: {key!r} is of multirater_folder and says nothing here; remove it.")
      )
  choices_of = {"missing_class": ("unlabelled",), "frame_numbers": FRAME_NUMBERS}
  for key, choices in (choices_of | {"npy_axes": clips.NPY_AXES}).items():
    if dataset.get(key, choices[0]) not in choices:
      written = tables.shown_value(dataset[key])
      problems.tell(
        UserError(
          f"{path}: {key!r} is {written}; write {' or '.join(map(repr, choices))}, or leave it out."
        )
      )
      del dataset[key]
  return dataset


def _sf_ratio(row):
  value = row.number_in("sf_ratio", float, 0, MAX_SF_RATIO, math.nan)
  if value < MIN_SF_RATIO:
    problems.tell(
      row.error(
        f"sf_ratio {row.cells['sf_ratio']} is no plausible ratio (nobody lives below "
        f"{MIN_SF_RATIO:g}); divide SpO2 in percent by FiO2 as a share (.21, not 21)."
      )
    )
    return math.nan
  return value


def _read_videos(directory, words, num_processes):
  """The videos, and the names of all rows: more than videos only where problems are collected."""
  rows = tables.read_table(
    directory / "manifest.csv", ("video", "patient"), "write a row a video there", MANIFEST_COLUMNS
  )
  place = tables.Place(directory / "videos")
  names = {}
  for row in rows:
    with problems.apart():
      names[row] = place.name(row, "video")
  paths = {}
  for row in tables.refuse_repeats(names, names.get, "video"):
    with problems.apart():
      paths[row] = place.path(row, "video", names[row])
  videos, of_videos = [], []
  headers = readers.probe_all(
    paths.values(), num_processes=num_processes, option=tables.PROCESSES, **words
  )
  for row, header in zip(paths, headers, strict=True):
    video = None
    with problems.apart():
      video = _read_video(row, names[row], place, header)
    if video is not None:
      videos.append(video)
      of_videos.append(row)
  with problems.apart():
    readers.check_axes(video.media for video in videos)
  patients = [video.patient or None for video in videos]
  days = [None if video.day == -1 else (video.patient, video.day) for video in videos]
  for column, groups, within in (
    ("sf_ratio", days, "one patient and day"),
    ("readmitted_30d", patients, "one patient"),
    ("split", patients, "one patient"),
  ):
    values = [getattr(video, column) for video in videos]
    tables.require_constant(of_videos, values, column, groups, within)
  empty = [row for row in rows if not row.cells.get("split")]
  if 0 < len(empty) < len(rows):
    problems.tell(
      empty[0].error("split is empty here, not in other rows; fill it everywhere or nowhere.")
    )
  return tuple(videos), set(names.values())


def _read_video(row, name, place, header):
  if isinstance(header, UserError):
    raise row.error(str(header)) from header
  place.claim(row, header.files)
  patient = ""
  with problems.apart():
    patient = row.required("patient")
  return Video(
    row=row.number,
    name=name,
    media=header,
    patient=patient,
    day=row.number_in("day", int, 0, 2**31 - 1, -1),
    view=row.choice("view", VIEWS),
    sf_ratio=_sf_ratio(row),
    readmitted_30d=row.number_in("readmitted_30d", int, 0, 1, -1),
    split=row.choice("split", SPLITS),
    scan_area=tables.scan_area(row, header.height, header.width),
  )


def _find_masks(row, place, classes, left_out):
  """The mask files of a row by class; what is no picture is collected in `left_out`."""
  folder = place.path(row, "masks", place.name(row, "masks"))
  if not folder.is_dir():
    raise row.error(f"{folder} is a file; name the folder that holds <class>.png.")
  masks = {}
  for path in tables.visible(folder):
    name, is_picture = tables.normal(path.stem), path.suffix.lower() in readers.PICTURES
    if name not in (*classes, tables.IGNORE):
      if is_picture or path.is_dir():
        problems.tell(
          row.error(
            f"{path} is not <class>.png of any class ({', '.join(classes)}); rename or remove it."
          )
        )
      else:
        left_out.setdefault(path)
      continue
    with problems.apart():
      if not is_picture or not path.is_file():
        raise row.error(
          f"{path} is not <class>.png of a class, nor of another kind of picture that is read "
          f"({', '.join(readers.PICTURES)}); save it as PNG."
        )
      if path.is_symlink():
        place.check_link(row, path)
      if name in masks:
        raise row.error(f"{path} and {masks[name].name} are the same mask; remove one of them.")
      masks[name] = path
  return masks


def _check_sizes(row, masks, video):
  """Refuses masks that are not of their frame's size; returns the others."""
  fitting = {}
  for name, path in masks.items():
    with problems.apart():
      try:
        readers.check_mask_size(path, readers.mask_size(path), video.media)
      except UserError as error:
        raise row.error(str(error)) from error
      fitting[name] = path
  return fitting


def _frame(row, video, of_files):
  """The place of a row's frame in its video, from 0; None where it was told to be no number."""
  row.required("frame")
  frame = row.number_in("frame", int, 0, math.inf, None)
  if frame is None:
    return None
  n_frames, numbers = video.media.n_frames, video.media.numbers
  if of_files and video.media.path.is_dir():
    if numbers is None:
      raise row.error(
        f"the names of the files of {video.name} have no single number that tells them apart; "
        'number them, or write "frame_numbers": "from_0" in dataset.json.'
      )
    if frame not in numbers:
      raise row.error(
        f"frame {frame} is the number of no file in {video.name} ({numbers[0]} to {numbers[-1]}); "
        "mend the cell."
      )
    return numbers.index(frame)
  if frame >= n_frames:
    raise row.error(
      f"frame {frame} is past the end of {video.name}, which has {n_frames} frames "
      f"(0 to {n_frames - 1}); mend the cell."
    )
  return frame


def _warn_of_numbers(labels, path):
  """Says which picture is meant where a frame's number is not that in its file's name."""
  other = {}
  for label in labels:
    numbers = label.video.media.numbers
    if numbers and numbers[label.frame] != label.frame:
      other.setdefault(label.video.name, label)
  if other:
    label = next(iter(other.values()))
    file = label.video.media.files[label.frame]
    logging.warning(
      "%s row %d: frame %d of %s is taken to be %s, as frames count from 0 whatever the files are "
      'called (so for %d folder(s)); if files\' numbers are meant, write "frame_numbers": '
      '"of_files" in dataset.json, else "from_0".',
      path,
      label.row,
      label.frame,
      label.video.name,
      file.name,
      len(other),
    )


def _read_labels(directory, dataset, videos, known):
  """The labels of videos; those of other `known` ones are passed over, as these were told of."""
  path, classes = directory / "labels.csv", dataset["classes"]
  rows = tables.read_table(
    path, ("video", "frame", "masks"), "write a row a labelled frame there", LABEL_COLUMNS
  )
  of_files = dataset.get("frame_numbers") == "of_files"
  by_name = {video.name: video for video in videos}
  names, place = tables.Place(directory / "videos"), tables.Place(directory / "masks")
  of_masks = _read_provenance(directory / "provenance.csv", place)
  labels, left_out, begun, unknown = {}, {}, [], []
  for row in rows:
    with problems.apart():
      name = names.name(row, "video")
      video = by_name.get(name)
      if video is None and name in known:
        continue
      if video is None:
        raise row.error(
          f"video {tables.shown(row.cells['video'])} is not in manifest.csv; add it there or mend "
          "the cell."
        )
      frame = None
      with problems.apart():
        frame = _frame(row, video, of_files)
      masks = _check_sizes(row, _find_masks(row, place, classes, left_out), video)
      ignore = masks.pop(tables.IGNORE, None)
      if frame is not None:
        label = Label(row.number, video, frame, row.text("annotator"), masks, ignore)
        saved = of_masks.get(place.name(row, "masks"))
        if saved is None and _REVISION.search(row.cells["masks"]):
          unknown.append(label)
        if saved is not None:
          label = dataclasses.replace(label, work=_work(saved, label, path, names, classes))
          if saved.text("review") == BEGUN:
            begun.append(label)
            continue
        labels[row] = label
  keys = {row: (label.video.name, label.frame, label.annotator) for row, label in labels.items()}
  rows = tables.refuse_repeats(keys, keys.get, "video, frame and annotator")
  labels = [labels[row] for row in rows]
  if left_out:
    names = [str(path.relative_to(place.root)) for path in left_out]
    logging.warning("%s: %s", place.root, tables.note_of(names, "no pictures"))
  if begun:
    logging.warning(
      "%s: %s left out: a consensus that was begun and that nobody has saved (Ctrl+S in "
      "python -m lus_jax.annotate --review), the first of them row %d.",
      path,
      plural(len(begun), "label"),
      begun[0].row,
    )
  if unknown:
    logging.warning(
      "%s: %s, row %d first, with masks that python -m lus_jax.annotate saved, of which "
      "provenance.csv says nothing: what of them a model painted and nobody touched is not known, "
      "and all of it is used; bring that file back.",
      path,
      plural(len(unknown), "label"),
      unknown[0].row,
    )
  if "frame_numbers" not in dataset:
    _warn_of_numbers(labels, path)
  tables.warn_of_alike(
    [label.annotator for label in labels], path, "annotators", "each has a scale of their own"
  )
  return tuple(labels)


def _read_provenance(path, place):
  """The rows of provenance.csv, by the masks that they are about."""
  if tables.exists(path):
    tables.check_link(path.parent, path)
  rows = tables.read_optional_table(path, PROVENANCE_COLUMNS[:4], PROVENANCE_COLUMNS)
  masks = {}
  for row in rows:
    with problems.apart():
      masks[row] = place.name(row, "masks")
  return {masks[row]: row for row in tables.refuse_repeats(masks, masks.get, "masks")}


def _work(row, label, labels_path, videos, classes):
  """What a row of provenance.csv says of a label; refuses one that is about another (`UserError`).

  It always counts frames from 0.
  """
  row.required("frame")
  frame = row.number_in("frame", int, 0, math.inf, -1)
  about = videos.name(row, "video"), frame, row.text("annotator")
  if about != (label.video.name, label.frame, label.annotator):
    raise row.error(
      f"its masks are of frame {label.frame} (from 0) of {label.video.name}, annotator "
      f"{tables.shown(label.annotator)}, in {labels_path.name} row {label.row}, and here of frame "
      f"{frame} of {about[0]}, annotator {tables.shown(about[2])}; mend one of them."
    )
  return Work(
    time=_time(row),
    seconds=row.number_in("seconds", float, 0, math.inf, math.nan),
    tool=row.text("tool"),
    protocol=row.text("protocol"),
    prelabel=row.text("prelabel"),
    prelabelled=classes_in(row, "prelabelled", classes),
    touched=classes_in(row, "touched", classes),
    review=row.choice("review", REVIEWS) == AGREED,
  )


def _time(row):
  """A cell `time` in one way of writing, in UTC where it says its zone."""
  text = row.text("time")
  if not text:
    return ""
  try:
    time = datetime.datetime.fromisoformat(text)
    time = time.astimezone(datetime.UTC) if time.tzinfo else time
  except (ValueError, OverflowError):  # OverflowError: in UTC it is before year 1 or after 9999
    problems.tell(
      row.error(f"time {tables.shown(text)} is no time; write it as 2026-01-31T12:00:00Z.")
    )
    return ""
  return time.isoformat(timespec="seconds")


def classes_in(row, column, classes):
  """The classes that a cell names, with ; between them, in the order of `classes` (`UserError`)."""
  found, unknown = split_classes(row.text(column), classes)
  if unknown:
    problems.tell(
      row.error(
        f"{column} names {tables.shown(unknown[0])}, which is no class of dataset.json "
        f"({tables.shown_list(classes)}); mend the cell."
      )
    )
    return ()
  return found


def split_classes(text, classes):
  """The classes that a text names, with ; between them, in their order; and what is none of them.

  A class may have a ; in its own name: of several that a text can mean the longest is meant.
  """
  words, found, unknown = text.split(";") if text else [], set(), []
  while words:
    n = next((n for n in range(len(words), 0, -1) if ";".join(words[:n]) in classes), None)
    if n is None:
      unknown.append(words.pop(0))
    else:
      found.add(";".join(words[:n]))
      words = words[n:]
  return tuple(name for name in classes if name in found), unknown


def _with_works(fingerprint, labels):
  """A fingerprint that changes with how labels came to be; the same where nothing is known."""
  works = [label.work and dataclasses.astuple(label.work) for label in labels]
  if not any(works):
    return fingerprint
  return hashlib.sha256(f"{fingerprint} {works!r}".encode()).hexdigest()


def _read_patients(path, videos):
  known = dict.fromkeys(video.patient for video in videos)
  if tables.exists(path):
    rows = tables.read_table(path, ("patient",), "")
    tables.refuse_repeats(rows, lambda row: row.required("patient"), "patient")
  else:
    rows = []
  patients = {
    row.cells["patient"]: {name: cell for name, cell in row.cells.items() if name != "patient"}
    for row in rows
  }
  tables.warn_of_alike(
    [*known, *patients],
    path.with_name("manifest.csv") if not rows else f"manifest.csv and {path}",
    "patients",
    "one person may stand on both sides of the split",
  )
  without = [name for name in patients if name not in known]
  if without:
    logging.warning(
      "%s: %d patient(s) have no row in manifest.csv and are not used: %s.",
      path,
      len(without),
      tables.shown_list(without, 5),
    )
  return patients


@notices.collected()
def read_folder(directory, *, labels=True, num_processes=0):
  """Reads and checks a folder's tables and the headers of all files they refer to.

  Args:
    directory: the folder.
    labels: whether labels.csv and the masks are read too.
    num_processes: that read headers of videos, as in `pool.ordered`.

  Returns:
    A `Folder`.

  Raises:
    UserError: anything is missing or contradicts itself; the message names file and row.
  """
  directory = tables.data_folder(directory)
  dataset = _read_dataset(directory / "dataset.json")
  words = {
    "npy_axes": dataset.get("npy_axes"),
    "nifti_axes": tables.nifti_axes(directory / "dataset.json", dataset),
    "window": tables.intensity_window(directory / "dataset.json", dataset),
  }
  videos, known = _read_videos(directory, words, num_processes)
  frames, patients = (), {}
  with problems.apart():
    frames = _read_labels(directory, dataset, videos, known) if labels else ()
  names = ["dataset.json", "manifest.csv", "patients.csv"] + ["labels.csv"] * labels
  files = {file for video in videos for file in video.media.files}
  for label in frames:
    files |= {*label.masks.values(), *([label.ignore] if label.ignore else [])}
  digests = {}
  with problems.apart():
    digests = tables.contents(directory, files)
    tables.warn_of_copies(
      [(video.name, video.patient, video.media.files) for video in videos],
      digests,
      directory / "manifest.csv",
    )
  with problems.apart():
    patients = _read_patients(directory / "patients.csv", videos)
  return Folder(
    directory=directory,
    name=dataset["name"],
    licence=dataset["licence"],
    classes=tuple(dataset["classes"]),
    thin=tuple(dataset.get("thin", [])),
    missing_class_is_unlabelled="missing_class" in dataset,
    confidence_maximum=tables.confidence_maximum(directory / "dataset.json", dataset),
    patients_are_unknown="patients" in dataset,
    videos=videos,
    labels=frames,
    patients=patients,
    fingerprint=_with_works(tables.fingerprint(directory, names, digests), frames),
  )
