"""What is to be predicted: a clip, a picture, or all that lies in a folder and those below it."""

import collections
import dataclasses
import itertools
import os
import pathlib

import numpy as np
from absl import logging

from lus_jax.errors import UserError
from lus_jax.media import dicom, readers

# In a folder that holds predictions; what lies there is not predicted again.
RECORD = "prediction.json"
# What systems leave in folders without being asked.
_LEFTOVERS = ("Thumbs.db", "desktop.ini", "__MACOSX")
# Names that are shown of many.
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Input:
  """A clip or picture.

  Attributes:
    name: of its folder among the predictions, as 'a/b'; '' where it is the only one.
    path: where it is.
    media: its `Media`; None where it cannot be read.
    error: why it cannot (`UserError`); None where it can.
    patient: whose it is, '' where nobody says.
    day: of which day, likewise, in the words of whoever says it.
    box: the scan area that a data set's table gives, None where none does.
  """

  name: str
  path: pathlib.Path
  media: readers.Media | None = None
  error: UserError | None = None
  patient: str = ""
  day: str = ""
  box: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Found:
  """All that is to be predicted.

  Attributes:
    inputs: at least one `Input`.
    is_one: whether it is one clip or picture, and no folder of some.
    lines: what a user has to know of how they were found.
  """

  inputs: tuple[Input, ...]
  is_one: bool
  lines: tuple[str, ...] = ()


def find(source, *, table=None, out=None):
  """Finds what a path names.

  Args:
    source: a clip or picture of `readers.FORMATS`, a folder of numbered pictures, which is a clip,
      a data folder of kind lus_folder, whose videos are taken as its manifest.csv says, or a folder
      of anything of these, with folders below it.
    table: a CSV file of video (as a path within the folder), patient and day.
    out: where predictions go, which is left out if it lies in the folder.

  Returns:
    A `Found`. Of several what cannot be read has an `error`; one that cannot be is refused.

  Raises:
    UserError: there is nothing to predict, or the table is not in order.
  """
  path = pathlib.Path(source).expanduser()
  try:
    is_folder = path.is_dir() and os.access(path, os.R_OK | os.X_OK)
  except (OSError, ValueError):  # probing says what is wrong
    is_folder = False
  if not is_folder:
    found = Found((_only(path),), True)
  elif all(os.path.lexists(path / name) for name in ("manifest.csv", "dataset.json")):
    found = _of_manifest(path)
  else:
    found = _of_folder(path, out)
  found = dataclasses.replace(found, inputs=tuple(map(_with_subject, found.inputs)))
  readers.check_axes([one.media for one in found.inputs if one.media])
  return found if table is None else _with_table(found, path, pathlib.Path(table).expanduser())


def _check_readable(path):
  try:
    readable = not path.exists() or os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
  except OSError:
    readable = False
  if not readable:
    raise UserError(f"{path} cannot be read; change its permissions (chmod u+r).")


def _only(path):
  _check_readable(path)
  return Input("", path, readers.probe(path))


def _of_folder(folder, out):
  """What lies in a folder and those below it."""
  places, others, lines = [], [], []
  for directory, files in _walk(folder, out):
    media, left_out = [], []
    for file in files:
      (left_out if _is_other(file) else media).append(file)
    pictures = [file for file in media if file.suffix.lower() in readers.PICTURES]
    is_clip, reason = _is_clip(directory, pictures)
    if is_clip:
      media = [directory, *(file for file in media if file not in pictures)]
    if is_clip and reason:
      lines.append(
        f"{directory} is read as one clip of {len(pictures)} frames: its pictures have one size "
        "and evenly spaced numbers."
      )
    elif pictures and not is_clip:
      lines.append(
        f"{directory} is no clip ({reason}): each of its {len(pictures)} pictures is predicted by "
        f"itself{_left_out(left_out, '; ')}"
      )
      left_out = []
    places += media
    others += left_out
  if not places:
    raise UserError(
      f"{folder} holds nothing that can be predicted; bring {readers.FORMATS}"
      f"{_left_out(others, '; there are: ', what='')}."
    )
  if others:
    lines.append(_left_out([file.relative_to(folder) for file in others]))
  if places == [folder]:
    return Found((_only(folder),), True, tuple(lines))
  names = _names([place.relative_to(folder) for place in places], folder.name)
  return Found(tuple(_probed(zip(names, places, strict=True))), False, tuple(lines))


def _left_out(files, before="", what="left out: "):
  if not files:
    return ""
  names = ", ".join(getattr(file, "name", str(file)) for file in files[:_SHOWN])
  count = f"{len(files)} other(s) " if what else ""
  return f"{before}{what}{count}({names}{', ...' if len(files) > _SHOWN else ''})"


def _walk(folder, out):
  """Yields folders, each with its files, without hidden ones and predictions."""
  own, seen = None if out is None else os.path.realpath(out), set()
  waiting = [folder]
  while waiting:
    directory = waiting.pop(0)
    real = os.path.realpath(directory)
    # A link may lead back.
    if real == own or real in seen or (directory != folder and (directory / RECORD).exists()):
      continue
    seen.add(real)
    try:
      entries = sorted(directory.iterdir())
    except OSError as error:
      raise UserError(f"{directory} cannot be read ({error.strerror}).") from error
    entries = [x for x in entries if not is_hidden(x.name)]
    folders = [x for x in entries if x.is_dir()]
    waiting[:0] = folders
    yield directory, [x for x in entries if x not in folders]


def is_hidden(name):
  """Whether a name is of what systems leave in folders, or of a file that nobody sees."""
  return name.startswith(".") or name in _LEFTOVERS


def _is_other(file):
  """Whether a file is neither a picture nor a video; what is damaged is found out later."""
  suffix = readers.split_name(file)[1].lower()
  if suffix and suffix not in dicom.SUFFIXES:
    return False
  if not dicom.is_dicom(file):
    return not suffix
  try:
    return not dicom.is_picture(file)
  except UserError:
    return False


def _is_clip(folder, pictures):
  """Whether the pictures of a folder are one clip, and why; no reason where it is plain."""
  if not pictures:
    return False, ""
  try:
    numbers = readers.probe(folder).numbers
  except UserError as error:
    return False, str(error).rstrip(".")
  steps = set(np.diff(numbers)) if numbers else set()
  if len(steps) > 1:
    return False, "the numbers in its pictures' names are not evenly spaced"
  return True, "evenly spaced" if steps else ""


def _names(paths, alone):
  """Folders for the predictions of paths, as short as they are told apart; `alone` is of '.'."""
  paths = [path if path.parts else pathlib.PurePath(alone) for path in paths]
  short = [path.parent / (readers.split_name(path)[0] or path.name) for path in paths]
  counts = collections.Counter(str(path).casefold() for path in short)
  # Nor may one lie within another's.
  above = {str(parent).casefold() for path in paths for parent in path.parents}
  return [
    (path if counts[key] > 1 or key in above else name).as_posix()
    for path, name in zip(paths, short, strict=True)
    for key in [str(name).casefold()]
  ]


def _probed(places, **words):
  """Yields an `Input` for each name and path."""
  first, second = itertools.tee(places)
  headers = readers.probe_all((path for _, path in first), **words)
  for (name, path), header in zip(second, headers, strict=True):
    try:
      _check_readable(path)
      if isinstance(header, UserError):
        raise header
    except UserError as error:
      yield Input(name, path, error=error)
      continue
    yield Input(name, path, header)


def _of_manifest(folder):
  """The videos of a lus_folder, whose tables say more of them."""
  from tfds_builders import tables
  from tfds_builders.lus_folder import manifest  # imports TensorFlow

  file = folder / "dataset.json"
  dataset = tables.read_dataset(file, manifest.DATASET_KEYS)
  words = {
    "npy_axes": dataset.get("npy_axes"),
    "nifti_axes": tables.nifti_axes(file, dataset),
    "window": tables.intensity_window(file, dataset),
  }
  # What the table calls patients are stand-ins then.
  unknown = "patients" in dataset
  rows = tables.read_table(
    folder / "manifest.csv", ("video", "patient"), "write it", manifest.MANIFEST_COLUMNS
  )
  place, inputs, taken = tables.Place(folder / "videos"), [], []
  for row in rows:
    try:
      name = place.name(row, "video")
      if name in [other for _, other, _ in taken]:
        raise row.error(f"video {name} has a row already; remove one.")
      taken.append((row, name, place.path(row, "video", name)))
    except UserError as error:
      inputs.append(Input(f"row {row.number}", folder / "manifest.csv", error=error))
  names = _names([pathlib.PurePath(name) for _, name, _ in taken], "")
  probed = _probed([(name, path) for name, (_, _, path) in zip(names, taken, strict=True)], **words)
  for (row, _, _), one in zip(taken, probed, strict=True):
    try:
      if one.error is None:
        box = tables.scan_area(row, one.media.height, one.media.width)
        one = dataclasses.replace(
          one, box=box, patient="" if unknown else row.text("patient"), day=row.text("day")
        )
    except UserError as error:
      one = dataclasses.replace(one, media=None, error=error)
    inputs.append(one)
  if any(one.box for one in inputs):
    # An empty cell is the whole frame where others are none.
    inputs = [
      dataclasses.replace(one, box=one.box or (0, 0, one.media.height, one.media.width))
      if one.media
      else one
      for one in inputs
    ]
  lines = [f"{folder} is a data set: the {len(rows)} videos of its manifest.csv are predicted"]
  if unknown:
    lines.append(f"{file} says that its patients are not known, so nothing is said of their days")
  return Found(tuple(inputs), False, tuple(lines))


def _with_subject(one):
  if one.media is None or one.media.format != "dicom" or one.patient:
    return one
  patient, day = dicom.subject(one.path)
  return dataclasses.replace(one, patient=patient, day=day)


def _with_table(found, folder, path):
  """Patients and days as a table has them."""
  from tfds_builders import tables

  columns = ("video", "patient", "day")
  rows = {}
  for row in tables.read_table(path, columns, "write a row a video there", columns):
    name = row.required("video")
    if name in rows:
      raise row.error(f"video {name} has a row already ({rows[name].number}); remove one.")
    rows[name] = row
  inputs, used = [], set()
  for one in found.inputs:
    place = one.path.name if found.is_one else os.path.relpath(one.path, folder)
    keys = [key for key in (pathlib.PurePath(place).as_posix(), one.name) if key in rows]
    used |= set(keys)
    if keys:
      row = rows[keys[0]]
      # An empty cell says nothing, and what is known otherwise stays.
      subject = {name: row.text(name) or getattr(one, name) for name in ("patient", "day")}
      one = dataclasses.replace(one, **subject)
    inputs.append(one)
  for text, number, names in (
    ("%s names %d video(s) that are not in the input (%s); they are passed over.",)
    + _few([name for name in rows if name not in used]),
    ("%s and the files themselves do not say both patient and day of %d of the input (%s).",)
    + _few([x.name for x in inputs if not (x.patient and x.day)]),
  ):
    if number:
      logging.warning(text, path, number, names)
  return dataclasses.replace(found, inputs=tuple(inputs))


def _few(names):
  return len(names), ", ".join(names[:_SHOWN])
