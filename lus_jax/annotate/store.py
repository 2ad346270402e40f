"""The folder that is painted in: clips, frames, and masks that are saved whole or not at all.

A save writes a new folder of masks, which nothing names yet, and then replaces labels.csv, which
does: whoever reads the data set sees all of the old masks or all of the new ones, whenever the
process is killed.

    DIR/masks/<video>/<frame>/<annotator>/r0001/<class>.png   a revision; labels.csv names one
    DIR/provenance.csv   a row a revision: who, when, how long, by which tool, protocol and model
    DIR/notes.csv        frames that an annotator put off (skip) or wants looked at (flag), and why
    DIR/.annotate/lock   held while one of several servers of the folder saves

Older revisions stay beside the newest, `keep` of them. The page saves by itself after every few
strokes; of these saves the last of every five minutes of the clock counts, so that `keep` of them
are what one would go back to.
"""

import collections
import contextlib
import csv
import dataclasses
import datetime
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import threading

import numpy as np
from absl import logging
from PIL import Image

import lus_jax
from lus_jax import files
from lus_jax.errors import UserError
from lus_jax.labels.annotators import CONSENSUS
from lus_jax.media import readers
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.lus_folder import manifest

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None

PROVENANCE = manifest.PROVENANCE_COLUMNS
NOTES = ("video", "frame", "annotator", "note", "comment")
KINDS = ("", "skip", "flag")
# The page's shader goes through the classes of a pixel one by one.
MAX_CLASSES = 32
MAX_COMMENT = 1000
# Frames that are decoded together: a video is decoded once for each such run, pictures are not.
_RUN, _PICTURES = 256, 16
# Bytes of decoded frames that are kept.
_CACHED = 2**30
# Of saves that nobody asked for, the last within so many seconds of the clock stays.
_SLOT = 300
_BY_HAND, _BY_ITSELF = "hand", "itself"
# Of files that are no clips, in a folder of clips.
MAX_OTHERS = 10_000
_VENVS = (".venv", ".env")
_REVISION = re.compile(r"r(\d{4,})")
_TABLES = ("labels.csv", "provenance.csv", "notes.csv")
# Of names in a cell, as `manifest.split_classes` takes them apart.
_BETWEEN = ";"
# Cells of a revision's row that go on into the next one's.
_GOES_ON = ("prelabel", "prelabelled", "touched", "review")
# What a row of labels.csv means: (video, frame from 0, annotator), and its masks. No column of the
# user's can be called so.
_KEY, _MASKS = "\0key", "\0masks"


class Conflict(UserError):
  """The mask was saved by another page since this one read it.

  Attributes:
    revision: the one that stands now.
  """

  def __init__(self, revision, message):
    super().__init__(message)
    self.revision = revision


@dataclasses.dataclass(frozen=True)
class Work:
  """What is told of a save beside its masks.

  Attributes:
    seconds: that the annotator spent since the last save.
    touched: classes that a hand changed, since the revision before or in it.
    prelabel: which model offered masks; '' is none, or the one of the revision before.
    prelabelled: classes that hold what it offered; None: those of the revision before. Such a class
      that is not in `touched` holds it as it was offered, whatever a hand did there earlier.
    by_hand: whether somebody asked for the save; else the page saved by itself.
    review: whether the masks of all are in sight: they are a consensus once they are saved by hand.
  """

  seconds: float = 0.0
  touched: tuple[str, ...] = ()
  prelabel: str = ""
  prelabelled: tuple[str, ...] | None = None
  by_hand: bool = True
  review: bool = False


def prepare(directory, classes=None):
  """Makes a folder of clips and pictures a data set, where it is none yet; does the rest again.

  Clips and pictures that lie in the folder itself are linked into its `videos/`, not moved. A
  folder of numbered pictures of one size is one clip.

  Args:
    directory: the folder.
    classes: K names, where there is no dataset.json.

  Raises:
    UserError: it holds nothing that is read, or nobody named the classes.
  """
  dataset, videos = directory / "dataset.json", directory / "videos"
  unlisted = not tables.exists(directory / "manifest.csv")
  # Whether there is anything to paint on comes first: nobody names the classes of a wrong folder.
  found = _look_for_clips(directory, videos) if unlisted else []
  if not tables.exists(dataset):
    if not classes:
      raise UserError(
        f"{dataset} does not exist, so nobody knows what is painted; name the classes, as "
        "--classes pleura,a_line,b_line."
      )
    tables.check_classes(classes, "--classes", "--classes: class")
  elif classes and tuple(classes) != tuple(_read_dataset(directory)["classes"]):
    raise UserError(f"{dataset} names the classes already; leave --classes out, or mend it there.")
  if unlisted:
    names = _find_clips(videos) if videos.is_dir() else _link(directory, found, videos)
    # Nobody says whose they are: each clip stands for a patient.
    rows = [(name, name) for name in names]
    _write(directory / "manifest.csv", _csv(("video", "patient"), rows))
  if not tables.exists(dataset):
    content = {
      "name": tables.normal(directory.resolve().name) or "painted",
      "licence": "unknown",
      "classes": list(classes),
      "patients": "unknown",
      "frame_numbers": "from_0",
    }
    _write(dataset, json.dumps(content, indent=2) + "\n")


def _read_dataset(directory):
  return tables.read_dataset(directory / "dataset.json", manifest.DATASET_KEYS)


def _find_clips(folder):
  """Names of the clips and pictures below a folder, rising."""
  names = []
  for path in tables.visible(folder):
    if path.is_dir():
      if any(one.suffix.lower() in readers.PICTURES for one in tables.visible(path)):
        names.append(path.name)
      else:
        names += [f"{path.name}/{name}" for name in _find_clips(path)]
    elif readers.is_media(path):
      names.append(path.name)
  return [tables.normal(name) for name in names]


def _look_for_clips(directory, videos):
  """What is read in `videos`, or else in the folder itself: paths, of files and folders of such.

  Raises:
    UserError: nothing is, or the folder is none of clips alone, as a home or a project's.
  """
  if videos.is_dir():
    if not _find_clips(videos):
      raise UserError(f"{videos} holds no clip or picture; bring {readers.FORMATS}.")
    return []
  _refuse_crowd(directory)
  found = [
    path
    for path in tables.visible(directory)
    if (path.name != "masks" and _find_clips(path) if path.is_dir() else readers.is_media(path))
  ]
  if not found:
    raise UserError(f"{directory} holds no clip or picture; bring {readers.FORMATS}.")
  return found


def _refuse_crowd(directory):
  """Refuses a folder in which the clips are not what it is there for (`UserError`)."""
  n_others = 0
  for root, folders, names in os.walk(directory):
    folder = pathlib.Path(root)
    project = [one for one in (".git", "pyvenv.cfg") if one in (*folders, *names)]
    files = (folder / name for name in names if not name.startswith("."))
    # What is called a clip counts as one here without a look into it.
    n_others += sum(not (readers.split_name(f)[1] or readers.is_media(f)) for f in files)
    if project or n_others > MAX_OTHERS:
      what = (
        f"{folder / project[0]}, of a project of programs"
        if project
        else f"more than {MAX_OTHERS:,} files that are no clips"
      )
      raise UserError(
        f"{directory} holds {what}; name the folder of the clips, or put them into "
        f"{directory / 'videos'}. Nothing was linked."
      )
    folders[:] = [one for one in folders if not one.startswith(".") or one in _VENVS]


def _link(directory, found, videos):
  """Links clips into `videos`, which comes into being whole or not at all; returns their names."""
  pictures = [path for path in found if path.suffix.lower() in readers.PICTURES]
  partial = directory / f".videos.{os.getpid()}.tmp"
  try:
    with contextlib.suppress(FileNotFoundError):
      shutil.rmtree(partial)
    if len(pictures) > 1 and len(pictures) == len(found) and _is_clip(directory):
      _link_all(pictures, partial / (directory.resolve().name or "clip"))
    else:
      _link_all(found, partial)
    names = _find_clips(partial)
    partial.rename(videos)
  except OSError as error:
    raise UserError(f"{videos} cannot be made ({error.strerror or error}).") from error
  finally:  # after Ctrl-C too
    shutil.rmtree(partial, ignore_errors=True)
  return names


def _link_all(paths, folder):
  """Links what is read of files and folders, and no other file."""
  for path in paths:
    if path.is_dir():
      _link_all(tables.visible(path), folder / path.name)
    elif readers.is_media(path):
      folder.mkdir(parents=True, exist_ok=True)
      for file in _files_of(path):
        if not (folder / file.name).exists():
          _link_or_copy(file, folder / file.name)


def _files_of(path):
  """The files of a clip: of some the pixels lie beside the header."""
  if path.suffix.lower() != ".mhd":
    return [path]
  try:
    return [path, *(file for file in readers.probe(path).files if file.parent == path.parent)]
  except UserError:  # whoever opens it is told
    return [path]


def _link_or_copy(source, target):
  try:
    os.link(source, target)
  except OSError:  # a disk without links
    shutil.copy2(source, target)


def _is_clip(folder):
  """Whether the pictures of a folder are frames of one clip: of one size, evenly numbered."""
  try:
    numbers = readers.probe(folder).numbers
  except UserError:
    return False
  return numbers is not None and len(set(np.diff(numbers))) <= 1


class _Run:
  """Frames that are decoded one after the other, so that the first need not wait for the last."""

  def __init__(self, media, numbers):
    self._images = np.empty((len(numbers), media.height, media.width), np.uint8)
    self._done, self._error, self._news = 0, None, threading.Condition()
    self.n_bytes = self._images.nbytes
    threading.Thread(target=self._decode, args=(media, numbers), daemon=True).start()

  @property
  def failed(self):
    return self._error is not None

  def _decode(self, media, numbers):
    try:
      for image in readers.stream(media, numbers):
        self._images[self._done] = image
        with self._news:
          self._done += 1
          self._news.notify_all()
    except Exception as error:  # whoever waits raises it
      with self._news:
        self._error = error
        self._news.notify_all()

  def frames(self, start, stop):
    with self._news:
      self._news.wait_for(lambda: self._error is not None or self._done >= stop)
      if self._done < stop:
        raise self._error
    return self._images[start:stop]


class Store:
  """A folder that is painted in by one annotator; several may have it open.

  Args:
    directory: of a `lus_folder`; labels.csv need not be there yet.
    annotator: who paints.
    keep: how many revisions of a frame's masks stay.

  Attributes:
    dataset: what dataset.json says.
    classes: K names.
    videos: names, in the order of manifest.csv.

  Raises:
    UserError: a table is not in order, or the annotator's name is none of a folder.
  """

  def __init__(self, directory, annotator, keep=20):
    self.directory, self.annotator, self.keep = pathlib.Path(directory), annotator, keep
    self.dataset = _read_dataset(self.directory)
    self.classes = tuple(self.dataset["classes"])
    tables.check_file_name(annotator, "--annotator")
    if len(self.classes) > MAX_CLASSES:
      raise UserError(
        f"{self._file('dataset.json')}: more than {MAX_CLASSES} classes cannot be shown."
      )
    maximum = tables.confidence_maximum(self._file("dataset.json"), self.dataset)
    if maximum is not None and maximum < 255:
      raise UserError(
        f"{self._file('dataset.json')}: 'confidence_maximum' is {maximum:g}, but masks are painted "
        "with 255 for 100 %; save the masks with 255 for 100 % and remove it."
      )
    self._maximum = maximum
    self._words = {
      "npy_axes": self.dataset.get("npy_axes"),
      "nifti_axes": tables.nifti_axes(self._file("dataset.json"), self.dataset),
      "window": tables.intensity_window(self._file("dataset.json"), self.dataset),
    }
    self._place = tables.Place(self._file("videos"))
    rows = tables.read_table(
      self._file("manifest.csv"),
      ("video", "patient"),
      "write a row a video there",
      manifest.MANIFEST_COLUMNS,
    )
    self._rows = {self._place.name(row, "video"): row for row in rows}
    self.videos = tuple(self._rows)
    self._media, self._runs = {}, collections.OrderedDict()
    self._lock, self._decoding = threading.RLock(), threading.Lock()
    self._told = False
    self._check_annotator()
    self._sweep()

  def _file(self, name):
    return self.directory / name

  def _check_annotator(self):
    for _, _, other in (row[_KEY] for row in self._labels()):
      if other != self.annotator and other.casefold() == self.annotator.casefold():
        raise UserError(
          f"{self._file('labels.csv')} has the annotator {tables.shown(other)}; write "
          f"--annotator {tables.shown(other)}, or choose a name that differs in more than capitals."
        )

  def check_reviewer(self):
    """Refuses an annotator with labels of their own, which a review would make a consensus of.

    Raises:
      UserError: there are such labels.
    """
    rows = self._cells("provenance.csv", PROVENANCE)
    reviews = {row["masks"] for row in rows if row["review"]}
    own = [
      row for row in self._labels() if row[_KEY][2] == self.annotator and row[_MASKS] not in reviews
    ]
    if own and self.annotator != CONSENSUS:
      raise UserError(
        f"{self._file('labels.csv')}: {tables.shown(self.annotator)} painted "
        f"{plural(len(own), 'frame')} without seeing the others, and a review would write its "
        f"consensus in their place; give --annotator another name, or leave it out ({CONSENSUS})."
      )

  def _sweep(self):
    """Removes what a kill left of our tables; what it left of masks goes with the next save."""
    with self._alone():
      for name in _TABLES:
        for path in self.directory.glob(f".{name}.*.tmp"):
          path.unlink(missing_ok=True)

  # Clips and frames.

  def media(self, video):
    """The `readers.Media` of a video (`UserError`: there is none, or it is damaged)."""
    self._check_video(video)
    if video not in self._media:
      path = self._place.path(self._rows[video], "video", video)
      self._media[video] = readers.probe(path, **self._words)
    return self._media[video]

  def _check_video(self, video):
    if video not in self._rows:
      raise UserError(f"{tables.shown(str(video))} is no video of {self._file('manifest.csv')}.")

  def area(self, video):
    """The box of the scan that manifest.csv says, (top, left, bottom, right); None without one."""
    media = self.media(video)
    return tables.scan_area(self._rows[video], media.height, media.width)

  def frames(self, video, start, count):
    """Grey values of frames as they are shown: uint8 [count, h, w], fewer at the clip's end.

    Raises:
      UserError: there are no such frames, or the file is damaged.
    """
    media = self.media(video)
    if not (0 <= start < media.n_frames and count >= 1):
      raise UserError(f"{video} has the frames 0 to {media.n_frames - 1}, not {start}.")
    last, parts = min(start + count, media.n_frames), []
    n = self._length(media)
    for first in range(start // n * n, last, n):
      run = self._run(video, first)
      parts.append(run.frames(max(start - first, 0), min(last - first, n)))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def begin(self, video, frame):
    """Begins to decode the frames around one; what is wrong with them is told to who asks for them.

    Raises:
      UserError: there is no such video, or its file is damaged.
    """
    n = self._length(self.media(video))
    self._run(video, frame // n * n)

  def _length(self, media):
    n = _PICTURES if len(media.files) == media.n_frames else _RUN
    # A clip of large frames is kept in memory in parts all the same.
    return max(1, min(n, _CACHED // 4 // (media.height * media.width)))

  def _run(self, video, first):
    media = self.media(video)
    with self._decoding:  # one request begins to decode, the others wait for the same frames
      if (video, first) not in self._runs or self._runs[video, first].failed:
        last = min(first + self._length(media), media.n_frames)
        self._runs[video, first] = _Run(media, range(first, last))
      self._runs.move_to_end((video, first))
      while len(self._runs) > 1 and sum(run.n_bytes for run in self._runs.values()) > _CACHED:
        self._runs.popitem(last=False)
      return self._runs[video, first]

  # Tables.

  def _read(self, name, columns):
    """The rows of one of our tables; none where there is no file, or nothing below its header."""
    return tables.read_optional_table(self._file(name), columns[:2], columns)

  def _cells(self, name, columns):
    return [dict.fromkeys(columns, "") | row.cells for row in self._read(name, columns)]

  def _labels(self):
    """The rows of labels.csv: all cells, and what they mean under names that no column has."""
    found, masks = [], tables.Place(self._file("masks"))
    for row in self._read("labels.csv", manifest.LABEL_COLUMNS):
      video = self._place.name(row, "video")
      key = video, self._frame_of(row, video), row.text("annotator")
      cells = dict.fromkeys(manifest.LABEL_COLUMNS, "") | row.cells
      found.append(cells | {_KEY: key, _MASKS: masks.name(row, "masks")})
    return found

  def _frame_of(self, row, video):
    """The place of a row's frame in its video, counted from 0; None where there is none."""
    row.required("frame")
    frame = row.number_in("frame", int, 0, math.inf, -1)
    numbers = self._numbers(video)
    if numbers is None:
      return frame
    return numbers.index(frame) if frame in numbers else None

  def _numbers(self, video):
    """The numbers by which dataset.json and labels.csv count frames; None: from 0."""
    if self.dataset.get("frame_numbers") != "of_files" or video not in self._rows:
      return None
    media = self.media(video)
    return media.numbers if media.path.is_dir() else None

  def _write_table(self, name, columns, rows):
    columns = list(columns) + [
      c for c in dict.fromkeys(itertools.chain(*rows)) if c not in (*columns, _KEY, _MASKS)
    ]
    cells = [[row.get(column, "") for column in columns] for row in rows]
    _write(self._file(name), _csv(columns, cells))

  @contextlib.contextmanager
  def _alone(self):
    """Within it, no other thread or process saves into this folder."""
    with self._lock, contextlib.ExitStack() as stack:
      if fcntl is not None:
        path = self._file(".annotate") / "lock"
        try:
          path.parent.mkdir(exist_ok=True)
          file = stack.enter_context(path.open("w"))
        except OSError as error:
          raise UserError(
            f"{path} cannot be written ({error.strerror}); nothing was saved."
          ) from error
        try:
          fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a disk without locks
          if not self._told:
            logging.warning(
              "%s cannot be locked (%s): let nobody else save into this folder meanwhile.",
              path,
              error.strerror,
            )
            self._told = True
      yield

  # Masks.

  def masks(self, video, frame, revision=None):
    """The confidences that the annotator painted, or of one of their revisions.

    Returns:
      The revision, '' where nothing is painted yet, and uint8 [K, h, w].

    Raises:
      UserError: there is no such frame or revision, or a mask cannot be read.
    """
    self._check_frame(video, frame)
    row = self._row(self._labels(), video, frame)
    if revision is not None and revision not in self.revisions(video, frame):
      raise UserError(f"{tables.shown(str(revision))} is no revision of this frame.")
    revision = revision or (row[_MASKS] if row else "")
    return revision, self._load(video, revision)

  def of_all(self, video, frame):
    """What every annotator painted, and how it came about, for a review.

    Returns:
      A dict by their name of `origin`'s dict and uint8 [K, h, w].
    """
    self._check_frame(video, frame)
    rows = [row for row in self._labels() if row[_KEY][:2] == (video, frame)]
    return {
      row[_KEY][2]: (self.origin(video, row[_MASKS]), self._load(video, row[_MASKS]))
      for row in rows
    }

  def _load(self, video, revision):
    media = self.media(video)
    planes = np.zeros((len(self.classes), media.height, media.width), np.uint8)
    if not revision:
      return planes
    for path in tables.visible(self._file("masks") / revision):
      name = tables.normal(path.stem)
      if name in self.classes and path.suffix.lower() in readers.PICTURES:
        tables.check_link(self.directory, path)
        readers.check_mask_size(path, readers.mask_size(path), media)
        values = readers.read_mask(path, maximum=self._maximum)
        planes[self.classes.index(name)] = np.rint(255 * values)
    return planes

  def _check_frame(self, video, frame):
    media = self.media(video)
    if type(frame) is not int or not 0 <= frame < media.n_frames:
      raise UserError(f"{video} has the frames 0 to {media.n_frames - 1}, not {frame}.")

  def _row(self, rows, video, frame):
    key = video, frame, self.annotator
    return next((row for row in rows if row[_KEY] == key), None)

  def _home(self, rows, video, frame):
    """Where the annotator's revisions of a frame lie, in DIR/masks: within no row's own masks."""
    key = video, frame, self.annotator
    taken = [f"{row[_MASKS]}/" for row in rows if row[_KEY] != key]
    for prefix in itertools.chain([""], (f"painted{i}/" for i in itertools.count(1))):
      home = f"{prefix}{video}/{frame:06d}/{self.annotator}"
      if not any(f"{home}/".startswith(one) for one in taken):
        return home

  def _numbered(self, home):
    folder = self._file("masks") / home
    found = [_REVISION.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)

  def revisions(self, video, frame):
    """The annotator's kept revisions of a frame, rising; masks from elsewhere come first."""
    self._check_frame(video, frame)
    rows = self._labels()
    row, home = self._row(rows, video, frame), self._home(rows, video, frame)
    found = [f"{home}/r{number:04d}" for number in self._numbered(home)]
    known = [row[_MASKS]] if row else []
    for one in self._cells("provenance.csv", PROVENANCE):
      if (one["video"], one["frame"], one["annotator"]) == (video, str(frame), self.annotator):
        known.append(one["masks"])
    masks = self._file("masks")
    # A table that people may have edited: no path out of the masks.
    known = [one for one in known if not {"", ".", ".."} & set(one.split("/"))]
    others = [one for one in known if one not in found and (masks / one).is_dir()]
    return list(dict.fromkeys(others + found))

  def history(self, video, frame):
    """What is known of the kept revisions of a frame, rising: a list of dicts."""
    rows = {row["masks"]: row for row in self._cells("provenance.csv", PROVENANCE)}
    return [
      {"revision": revision}
      | {name: rows.get(revision, {}).get(name, "") for name in ("time", "saved")}
      for revision in self.revisions(video, frame)
    ]

  def origin(self, video, revision):
    """How a revision of a video came about: what a model offered, a hand touched, and who saved it.

    Returns:
      A dict of cells of provenance.csv: prelabel, saved, review, and lists of classes: prelabelled,
      touched.
    """
    rows = self._cells("provenance.csv", PROVENANCE)
    row = self._row_of(rows, video, revision)
    return {name: row.get(name, "") for name in ("prelabel", "saved", "review")} | {
      name: list(self._names(row, name)) for name in ("prelabelled", "touched")
    }

  def _row_of(self, rows, video, revision):
    """What is known of a revision, of rows of provenance.csv; {} where there is no revision.

    What was painted elsewhere, of which no row says anything, a hand painted as far as anybody
    knows: else one offer beside it would make all of it a model's.
    """
    if not revision:
      return {}
    row = next((row for row in rows if row["masks"] == revision), {})
    if any(row.get(name) for name in ("time", *_GOES_ON)):
      return row
    planes = zip(self.classes, self._load(video, revision), strict=True)
    touched = _BETWEEN.join(name for name, plane in planes if plane.any())
    review = manifest.AGREED if self.annotator == CONSENSUS else ""
    return row | {"touched": touched, "review": review}

  def _names(self, row, column):
    """The classes that a cell names; a table that people may have edited can name others."""
    return manifest.split_classes(row.get(column, ""), self.classes)[0]

  def models(self):
    """Models that masks of this folder were offered by, as `Work.prelabel` names them."""
    return {row["prelabel"] for row in self._cells("provenance.csv", PROVENANCE)} - {""}

  def save(self, video, frame, planes, base, work=None, *, aside=False):
    """Saves a frame's masks as a new revision, and makes it the one that stands.

    What the page saves by itself without any pixel changed, and what a hand saves as the page has
    it already, becomes no other revision: what is known of the one that stands is noted. That a
    frame shows nothing is a hand's to say: where all is undone or erased, the page's own save takes
    the frame out of labels.csv, unless that is what a hand saved last. Revisions stay.

    Args:
      video: name of a video.
      frame: counted from 0.
      planes: uint8 [K, h, w].
      base: the revision that was painted on; '' where there was none.
      work: what else is known of it, a `Work`.
      aside: whether it is only kept, and what stands stays.

    Returns:
      The revision; '' where there is none now.

    Raises:
      Conflict: `base` does not stand any more, and `aside` is not asked.
      UserError: there is no such frame, the masks have another size, or the disk refuses.
    """
    work = work or Work()
    self._check_frame(video, frame)
    media = self.media(video)
    if planes.shape != (len(self.classes), media.height, media.width) or planes.dtype != np.uint8:
      raise UserError(
        f"The masks are {planes.dtype} {list(planes.shape)}, and those of {video} uint8 "
        f"{[len(self.classes), media.height, media.width]}; nothing was saved."
      )
    with self._alone():
      rows = self._labels()
      row = self._row(rows, video, frame)
      stands = row[_MASKS] if row else ""
      if stands != base and not aside:
        raise Conflict(
          stands,
          f"Frame {frame} of {video} was saved in another window or tab since it was opened here.",
        )
      if row is not None and not aside and self._is_noted(video, stands, planes, work):
        return stands
      if not (work.by_hand or aside or planes.any() or self._is_said_empty(video, frame)):
        self._take_out(rows, row, video, frame)
        return ""
      home = self._home(rows, video, frame)
      revision = f"{home}/r{max(self._numbered(home), default=0) + 1:04d}"
      # What was taken out of labels.csv may still hold what counts nowhere.
      before = stands or next(reversed(self.revisions(video, frame)), "")
      self._write_revision(revision, planes, before)
      provenance = self._cells("provenance.csv", PROVENANCE)
      self._note_provenance(provenance, revision, stands, video, frame, work)
      if not aside:
        if row is None:
          numbers = self._numbers(video)
          number = frame if numbers is None else numbers[frame]
          row = {"video": video, "frame": str(number), "annotator": self.annotator}
          rows.append(row)
        row["masks"] = revision
        self._write_table("labels.csv", manifest.LABEL_COLUMNS, rows)  # from here on it stands
        self._prune(home, revision, provenance)
    return revision

  def _is_said_empty(self, video, frame):
    """Whether the last that anybody but the page saved of a frame is that it shows nothing."""
    own = {row["masks"]: row["saved"] for row in self._cells("provenance.csv", PROVENANCE)}
    said = [one for one in self.revisions(video, frame) if own.get(one) != _BY_ITSELF]
    return bool(said) and not self._load(video, said[-1]).any()

  def _take_out(self, rows, row, video, frame):
    """Takes a frame's row out of labels.csv, if there is one; its masks stay revisions."""
    if row is None:
      return
    provenance, stands = self._cells("provenance.csv", PROVENANCE), row[_MASKS]
    earlier = self._row_of(provenance, video, stands)
    if "masks" not in earlier:  # imported, or painted elsewhere: nothing else names it
      key = {"video": video, "frame": str(frame), "annotator": self.annotator}
      provenance.append({"masks": stands} | key | earlier)
      self._write_table("provenance.csv", PROVENANCE, provenance)
    rows = [one for one in rows if one is not row]
    self._write_table("labels.csv", manifest.LABEL_COLUMNS, rows)

  def _write_revision(self, revision, planes, before):
    folder = self._file("masks") / revision
    partial = _unnamed(folder)
    for left in folder.parent.glob(".r*.tmp"):  # by a kill
      shutil.rmtree(left, ignore_errors=True)
    try:
      partial.mkdir(parents=True)
      for name, plane in zip(self.classes, planes, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "PNG", compress_level=3)
        _write_durably(partial / f"{name}.png", buffer.getvalue())
      # What counts nowhere is not painted here, and stays.
      for path in tables.visible(self._file("masks") / before) if before else ():
        if path.stem == tables.IGNORE and path.is_file():
          shutil.copyfile(path, partial / path.name)
      partial.rename(folder)
    except OSError as error:
      shutil.rmtree(partial, ignore_errors=True)
      reason = error.strerror or error
      raise UserError(f"{folder} cannot be written ({reason}); nothing was saved.") from error

  def _is_noted(self, video, stands, planes, work):
    """Notes a save that changes no pixel, where it needs no revision of its own."""
    provenance = self._cells("provenance.csv", PROVENANCE)
    row = next((row for row in provenance if row["masks"] == stands), None)
    if row is None or (work.by_hand and row.get("saved") != _BY_ITSELF):
      return False
    if not np.array_equal(self._load(video, stands), planes):
      return False
    row |= self._known(self._row_of([row], video, stands), work)
    row |= {"saved": _BY_HAND} if work.by_hand else {}
    self._write_table("provenance.csv", PROVENANCE, provenance)
    return True

  def _known(self, earlier, work):
    """Cells of a revision's row that go on from those of the one before."""
    touched = {*self._names(earlier, "touched"), *work.touched}
    if work.prelabelled is None:
      prelabelled = self._names(earlier, "prelabelled")
    else:
      prelabelled = work.prelabelled
      touched -= {*prelabelled} - {*work.touched}
    return {
      "seconds": f"{_number(earlier.get('seconds')) + work.seconds:.1f}",
      "prelabel": work.prelabel or earlier.get("prelabel", ""),
      "prelabelled": _BETWEEN.join(c for c in self.classes if c in prelabelled),
      "touched": _BETWEEN.join(c for c in self.classes if c in touched),
      "review": self._review(earlier.get("review", ""), work),
    }

  def _review(self, earlier, work):
    """The cell `review`: what the page saves by itself is no consensus, and ends none."""
    if not (work.review or earlier == manifest.BEGUN or self.annotator == CONSENSUS):
      return earlier
    return manifest.AGREED if work.by_hand else earlier or manifest.BEGUN

  def _note_provenance(self, rows, revision, before, video, frame, work):
    """Adds a revision's row: it goes before labels.csv, and alone names nothing that is read."""
    earlier = self._row_of(rows, video, before)
    key = {"video": video, "frame": str(frame), "annotator": self.annotator}
    if before and "masks" not in earlier:  # imported, or painted elsewhere
      rows.append({"masks": before} | key | earlier)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows.append(
      {"masks": revision}
      | key
      | {
        "time": now.replace("+00:00", "Z"),
        "tool": f"lus_jax {lus_jax.__version__}",
        "protocol": self.protocol_version(),
        "saved": _BY_HAND if work.by_hand else _BY_ITSELF,
      }
      | self._known(earlier, work)
    )
    self._write_table("provenance.csv", PROVENANCE, rows)

  def _prune(self, home, stands, provenance):
    found = [f"{home}/r{number:04d}" for number in self._numbered(home)]
    slots = {row["masks"]: _slot(row) for row in provenance}
    # The page's own saves make way for its next ones, and never for what a hand chose.
    replaced = {
      one
      for one, after in itertools.pairwise(found)
      if slots.get(one) is not None and slots[one] == slots.get(after)
    }
    counted = [revision for revision in found if revision not in replaced]
    old = [one for one in found if one in {*replaced, *counted[: -self.keep]} - {stands}]
    if old:
      kept = [row for row in provenance if row["masks"] not in old]
      self._write_table("provenance.csv", PROVENANCE, kept)
    for revision in old:
      folder = self._file("masks") / revision
      gone = _unnamed(folder)
      # Out of sight in one step, so that no half of it is ever a revision.
      with contextlib.suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

  # What is left to do.

  protocol = None

  def protocol_version(self):
    """12 hexadecimal digits of the protocol's text; '' where there is none."""
    path = self.protocol
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path and path.is_file() else ""

  def note(self, video, frame, kind, comment):
    """Notes that the annotator puts a frame off or wants it looked at; '' takes that back.

    Args:
      video: name of a video.
      frame: counted from 0; None: all that are to do of a video, which need not open.
      kind: one of `KINDS`.
      comment: why.

    Raises:
      UserError: there is no such frame or kind, or the comment is too long.
    """
    if frame is None:
      self._check_video(video)
      left = [one["frame"] for one in self.work() if one["video"] == video and not one["done"]]
      frames = left or [0]  # of a clip that nobody has begun the first is to do
    else:
      self._check_frame(video, frame)
      frames = [frame]
    if kind not in KINDS or not isinstance(comment, str):
      raise UserError("A note is skip or flag, with a comment.")
    comment = " ".join(comment.split())
    if len(comment) > MAX_COMMENT or tables.has_controls(comment):
      raise UserError(f"A comment has at most {MAX_COMMENT} characters, on one line.")
    keys = [(video, str(one), self.annotator) for one in frames]
    with self._alone():
      rows = self._cells("notes.csv", NOTES)
      rows = [row for row in rows if (row["video"], row["frame"], row["annotator"]) not in keys]
      if kind or comment:
        cells = kind, files.plain_cell(comment)
        rows += [dict(zip(NOTES, (*key, *cells), strict=True)) for key in keys]
      self._write_table("notes.csv", NOTES, rows)

  def work(self):
    """What there is to paint: a list of dicts, a frame each, in the order of the clips.

    These are all frames that anybody painted or noted; what others painted there is not told. What
    a model offered and no hand has touched is `offered`, and to do.
    """
    found = collections.defaultdict(
      lambda: {"done": False, "offered": False, "note": "", "comment": "", "seconds": 0.0}
    )
    rows = self._cells("provenance.csv", PROVENANCE)
    seconds = {row["masks"]: _number(row["seconds"]) for row in rows}
    begun = {row["masks"] for row in rows if row["review"] == manifest.BEGUN}
    # As training sees it, which leaves it out.
    offers = {row["masks"] for row in rows if row["prelabelled"] and not row["touched"]}
    for row in self._labels():
      video, frame, annotator = row[_KEY]
      entry = found[video, frame]
      if annotator == self.annotator:
        offered = row[_MASKS] in offers
        done = row[_MASKS] not in begun and not offered
        entry |= {"done": done, "offered": offered, "seconds": seconds.get(row[_MASKS], 0.0)}
    for row in self._cells("notes.csv", NOTES):
      if row["annotator"] == self.annotator and row["frame"].isdigit():
        found[row["video"], int(row["frame"])] |= {
          "note": row["note"],
          "comment": row["comment"],
        }
    order = {video: i for i, video in enumerate(self.videos)}
    keys = [key for key in found if key[0] in order and key[1] is not None]
    keys.sort(key=lambda key: (order[key[0]], key[1]))
    return [{"video": video, "frame": frame} | found[video, frame] for video, frame in keys]


def _unnamed(folder):
  """Where a revision lies that is not there yet, or not any more."""
  return folder.with_name(f".{folder.name}.{os.getpid()}.tmp")


def _slot(row):
  """Which five minutes of the clock the page saved a revision in by itself; None: a hand did."""
  if row.get("saved") != _BY_ITSELF:
    return None
  try:
    return datetime.datetime.fromisoformat(row["time"]).timestamp() // _SLOT
  except ValueError:  # a table that people may have edited
    return None


def _number(text):
  try:
    return float(text or 0)
  except ValueError:
    return 0.0


def _csv(header, rows):
  buffer = io.StringIO(newline="")
  csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
  return buffer.getvalue()


def _write(file, text):
  """Replaces a file in one step, after its content is on the disk (`UserError` if it refuses)."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
  try:
    _write_durably(temporary, text.encode())
    temporary.replace(file)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise UserError(
      f"{file} cannot be written ({error.strerror or error}); make room or mend the permissions."
    ) from error


def _write_durably(file, content):
  with file.open("wb") as opened:
    opened.write(content)
    opened.flush()
    os.fsync(opened.fileno())
