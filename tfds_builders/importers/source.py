"""What an importer finds before anything is written: clips, and what was drawn on their frames."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video or still.

  Attributes:
    name: of it in the data set, without suffix: 'a/b'. Patterns are searched in it.
    path: the file, or the folder of numbered pictures.
    patient: who it shows, where the source says so; '' is unknown.
    day: a whole number or a date, as text, likewise.
    view: likewise.
    split: one of `SPLITS`, likewise.
  """

  name: str
  path: pathlib.Path
  patient: str = ""
  day: str = ""
  view: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True)
class Label:
  """What one person drew on one frame.

  Attributes:
    clip: the name of a `Clip`.
    frame: counted from 0.
    draw: makes the masks of a `readers.Media`: uint8 [h, w] by class, 255 = 100 %; a class that is
      missing is absent, and `tables.IGNORE` is what does not count.
    annotator: who it was; '' is unknown.
  """

  clip: str
  frame: int
  draw: Callable[[readers.Media], dict[str, np.ndarray]]
  annotator: str = ""


@dataclasses.dataclass
class Source:
  """All that an importer found.

  Attributes:
    clips: by name.
    labels: of their frames.
    classes: K names, in the order of the tool.
    notes: what a user should know, as lines.
    skipped: names of what is left out, by what it is in the plural ('points').
    cut: shapes that leave their picture and were cut at its border.
    media: headers of clips that the importer has read already, by name.
  """

  clips: dict[str, Clip]
  labels: list[Label]
  classes: list[str]
  notes: list[str] = dataclasses.field(default_factory=list)
  skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  cut: list[str] = dataclasses.field(default_factory=list)
  media: dict[str, readers.Media] = dataclasses.field(default_factory=dict)

  def skip(self, what, name):
    """Counts something that cannot be imported: `what` in the plural, and where it stands."""
    self.skipped.setdefault(what, []).append(name)

  def header(self, name):
    """The `readers.Media` of a clip, read once (`UserError`: it is damaged)."""
    if name not in self.media:
      self.media[name] = readers.probe(self.clips[name].path)
    return self.media[name]


def tails(text):
  """A path without capitals, whole and without its leading folders: 'a/b', 'b'."""
  # No disk is deeper than this, and the characters grow with its square.
  parts = tables.normal(text).replace("\\", "/").casefold().split("/")[-64:]
  return ["/".join(parts[start:]) for start in range(len(parts))]


def _spellings(text):
  """Keys under which what a tool calls `text` may be known, the longest first."""
  for key in tails(text):
    yield key
    # Tools that convert videos leave another suffix.
    stem = key.removesuffix(pathlib.PurePosixPath(key).suffix)
    if stem != key:
      yield stem


def suffix(path):
  """The suffix of a clip's file, '' of a folder."""
  return "" if path.is_dir() else readers.split_name(path)[1]


class Videos:
  """The clips in a folder and those below it, found by what annotation tools call them.

  Args:
    folder: a path.
    option: which named it, for messages.
    clips_are_folders: whether the pictures of a folder are the frames of one clip.
  """

  def __init__(self, folder, option="--videos", *, clips_are_folders=False):
    if not folder.is_dir():
      raise UserError(f"{folder} does not exist or is no folder; mend {option}.")
    self.folder, self.option = folder, option
    self.found, self.others = {}, []
    self._collect(folder, clips_are_folders)
    if not self.found:
      raise UserError(f"{folder} holds no video or picture ({readers.FORMATS}); mend {option}.")
    tables.refuse_same_files(path for path in self.found.values() if path.is_file())
    self._by_name, self._by_picture = {}, None
    # Those that hold clips, or the pictures of one.
    self._folders = {
      folder
      for name, path in self.found.items()
      for folder in name.casefold().split("/")[: None if path.is_dir() else -1]
    }
    for name, path in self.found.items():
      # As tools name files: with and without folders, with and without suffix.
      whole = name + suffix(path)
      for key in {*tails(name), *tails(whole)}:
        self._by_name.setdefault(key, []).append(name)

  def _collect(self, folder, clips_are_folders):
    paths = tables.visible(folder)
    if clips_are_folders and any(p.suffix.lower() in readers.PICTURES for p in paths):
      self._add(folder)
      paths = [path for path in paths if path.suffix.lower() not in readers.PICTURES]
    for path in paths:
      if path.is_dir():
        if path.is_symlink():
          raise UserError(f"{path} is a link to a folder; name the folder itself.")
        self._collect(path, clips_are_folders)
      elif readers.is_media(path):
        self._add(path)
      else:
        self.others.append(path)

  def _add(self, path):
    relative = path.relative_to(self.folder)
    stem = relative.name if path.is_dir() else readers.split_name(path)[0]
    name = tables.normal(stem if path == self.folder else (relative.parent / stem).as_posix())
    name = name or tables.normal(self.folder.resolve().name)
    if name in self.found:
      raise UserError(f"{path} and {self.found[name].name} have one name; rename one of them.")
    self.found[name] = path

  def find(self, text, where):
    """The name of the clip that a tool calls `text`: a path, a file's name, with suffix or without.

    Args:
      text: what the tool says; / or \\ between folders, of which leading ones may be the tool's.
      where: stands in front of messages.

    Raises:
      UserError: there is none, or several.
    """
    for key in _spellings(text):
      names = self._by_name.get(key, ())
      if len(names) == 1:
        self._doubt(text, key, names[0], where)
        return names[0]
      if names:
        raise self._ambiguous(text, names, where)
    raise self._missing(text, where)

  def find_frame(self, text, where):
    """The clip and frame, counted from 0, of what a tool calls a picture: `text` as in `find`.

    Of a folder whose pictures are the frames of one clip, it is one of them; what is no picture of
    such a folder is the first frame of a clip.

    Raises:
      UserError: there is none, or several.
    """
    self._index_pictures()
    for key in _spellings(text):
      frames = self._by_picture.get(key, ())
      if len(frames) == 1:
        name, frame = frames[0]
        self._doubt(text, key, f"{name}/picture", where)
        return name, frame
      if frames:
        raise self._ambiguous(text, [name for name, _ in frames], where)
      names = self._by_name.get(key, ())
      if len(names) == 1:
        self._doubt(text, key, names[0], where)
        return names[0], 0
      if names:
        raise self._ambiguous(text, names, where)
    raise self._missing(text, where)

  def knows(self, text):
    """Whether any picture, video or folder is called so."""
    self._index_pictures()
    return any(key in self._by_picture or key in self._by_name for key in _spellings(text))

  def is_picture(self, text):
    """Whether `find_frame` finds one of the pictures of a folder that is a clip."""
    self._index_pictures()
    keys = (key for key in _spellings(text) if key in self._by_picture or key in self._by_name)
    return next(keys, None) in self._by_picture

  def _index_pictures(self):
    if self._by_picture is None:
      self._by_picture = {}
      for name, path in self.found.items():
        if path.is_dir():
          for i, file in enumerate(readers.numbered_pictures(path)):
            whole = f"{name}/{tables.normal(file.name)}"
            for key in {*tails(whole), *tails(whole.removesuffix(file.suffix))}:
              self._by_picture.setdefault(key, []).append((name, i))

  def _doubt(self, text, key, found, where):
    """Warns where the folder that a tool names is not that of what was found by the rest alone.

    Raises:
      UserError: there are clips in a folder so called.
    """
    depth = key.count("/") + 1
    theirs, ours = (
      tables.normal(path).replace("\\", "/").casefold().split("/")[:-depth]
      for path in (text, found)
    )
    if not theirs or (ours and theirs[-1] == ours[-1]):
      return
    if theirs[-1] in self._folders:
      raise UserError(
        f"{where}: {tables.shown(text)} is not in {self.folder}, whose folder of that name holds "
        f"others; put it there, or mend {self.option}."
      )
    if ours:
      notices.warn(
        "%s: %s is taken for %s, though their folders differ; if it is of another clip, put that "
        "into the folder of the videos.",
        where,
        tables.shown(text),
        found,
      )

  def _ambiguous(self, text, names, where):
    return UserError(
      f"{where}: {tables.shown(text)} may be {tables.shown_list(names, 3)}, all in {self.folder}; "
      "rename them apart, or name a folder that holds one of them."
    )

  def _missing(self, text, where):
    return UserError(
      f"{where}: {tables.shown(text)} is not in {self.folder}; put it there, or mend {self.option}."
    )

  def clips(self, names=None):
    """A `Clip` for each of some names, of all by default."""
    return {name: Clip(name, self.found[name]) for name in (self.found if names is None else names)}

  def note_others(self, source):
    """Counts what is no video or picture as skipped."""
    for path in self.others:
      source.skip("files that are neither videos nor pictures", path.name)


def place(source, videos, text, where, pattern=None, first_frame=0):
  """Finds the frame that a tool calls `text`, and adds its clip to a source.

  Args:
    source: the `Source`.
    videos: the `Videos`.
    text: as in `Videos.find`.
    where: stands in front of messages.
    pattern: a regular expression on `text` that finds the clip and the number of the frame, as two
      groups, or the number alone where there is one clip; None: each text is a picture.
    first_frame: the number of the first frame of videos; pictures of a folder have their own.

  Returns:
    The clip's name, and the frame counted from 0.

  Raises:
    UserError: there is none, or several; or it is a video, and nobody says which frame.
  """
  if pattern is None:
    if first_frame:
      raise UserError("--first-frame is of the numbers that --frame-pattern finds; say that, too.")
    name, frame = videos.find_frame(text, where)
    source.clips.setdefault(name, Clip(name, videos.found[name]))
    header = source.header(name)
    if header.n_frames > 1 and not videos.is_picture(text):
      raise UserError(
        f"{where}: {tables.shown(text)} is a video of {header.n_frames} frames; say which frame is "
        "meant with --frame-pattern, as '(.+)_([0-9]+)' for clip_000123."
      )
    return name, frame
  found = pattern.search(text)
  *clip, number = found.groups() if found else (None,)
  if not number or not number.isdecimal() or len(number) > 9 or None in clip:
    raise UserError(
      f"{where}: --frame-pattern finds no clip and number in {tables.shown(text)}; mend it."
    )
  if not clip and len(videos.found) > 1:
    raise UserError(
      f"{where}: --frame-pattern finds a number only, but {videos.folder} holds "
      f"{len(videos.found)} clips; write a group for the clip too, as '(.+)_([0-9]+)'."
    )
  name = videos.find(clip[0], where) if clip else next(iter(videos.found))
  source.clips.setdefault(name, Clip(name, videos.found[name]))
  header, number = source.header(name), int(number)
  if header.numbers is not None:
    if number not in header.numbers:
      raise UserError(f"{where}: {videos.found[name]} has no picture of number {number}.")
    return name, header.numbers.index(number)
  frame = number - first_frame
  if not 0 <= frame < header.n_frames:
    last = first_frame + header.n_frames - 1
    raise UserError(
      f"{where}: {tables.shown(text)} is frame {number}, but {header.path} has {first_frame} to "
      f"{last}; mend --frame-pattern, or say with --first-frame what number the first has."
    )
  note = f"In names that --frame-pattern reads, {first_frame} is the first frame of a video"
  note += "." if first_frame else "; if 1 is, as ffmpeg writes them, say --first-frame 1."
  if header.n_frames > 1 and note not in source.notes:
    source.notes.append(note)
  return name, frame
