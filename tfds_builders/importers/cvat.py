"""CVAT's task and project backups, and its XML 1.1 for images and for video."""

import collections
import dataclasses
import io
import itertools
import json
import math
import pathlib
import re
import zipfile
import zlib

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import readers
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import cvat_tracks, formats, options, shapes
from tfds_builders.importers.drawn import Drawn

HELP = "CVAT: task backups, and XML 1.1 for images and for video"
_KINDS = {kind: kind for kind in shapes.KINDS} | {"box": "rectangle"}
_LEFT_OUT = ("points", "cuboid", "skeleton")
# Attributes that are taken for the annotator's confidence, without being asked to.
_CONFIDENCES = ("confidence", "certainty")
# A member of an archive that unpacks to more bytes, and to more times what is stored of it, was
# made to fill the memory.
_SMALL, _RATIO = 2**22, 100
_MEND = "export it from CVAT again"
EXPECTED = "a backup or XML of CVAT"


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "a backup's folder or zip, or an XML file")
  options.add_frame_pattern(command)
  options.add_line_width(command)
  command.add_argument(
    "--confidence-attribute",
    metavar="NAME",
    help="attribute of shapes that holds the confidence, from 0 to 1 or to 100; by default "
    f"{' or '.join(_CONFIDENCES)}, '' is none",
  )
  frames = command.add_mutually_exclusive_group()
  frames.add_argument(
    "--all-frames", action="store_true", help="a frame of the task without a shape shows nothing"
  )
  frames.add_argument(
    "--drawn-frames", action="store_true", help="a picture without a shape is not labelled"
  )


@dataclasses.dataclass(frozen=True)
class _Shape:
  """A shape as CVAT stores it.

  Attributes:
    name: of its class.
    kind: one of `shapes.KINDS`.
    points: x, y, x, y, ...; of an ellipse centre and radii; of a mask left, top, width, height.
    where: stands in front of messages.
    angle: in degrees clockwise.
    runs: of a mask.
    confidence: as it stands in the attribute; None: it says nothing.
    outside: whether it is not seen.
  """

  name: str
  kind: str
  points: tuple[float, ...]
  where: str
  angle: float = 0.0
  runs: np.ndarray | None = None
  confidence: float | None = None
  outside: bool = False


def _number(value, where, what):
  if isinstance(value, str):
    value = tables.parse_number(value, float, decimal_comma=False)
  if not tables.is_number(value) or value != value:
    raise UserError(f"{where} has {what} that is no number; {_MEND}.")
  return float(value)


def _whole(value, where, what, least=0):
  number = _number(value, where, what)
  if number != int(number) or not least <= number < 2**31:
    raise UserError(f"{where} has {what} that is no whole number from {least}; {_MEND}.")
  return int(number)


def _list(content, key, where):
  """A list of objects in JSON."""
  found = content.get(key, [])
  if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
    raise UserError(f"{where} has {key!r} that is no list of objects; {_MEND}.")
  return found


@dataclasses.dataclass
class _Task:
  """What a task says of its frames; CVAT counts those it uses, from `start`, in steps.

  Attributes:
    path: of the file, for messages.
    names: what its video may be called, the likeliest first; of pictures, those of all.
    is_video: whether it is one video.
    start: the first frame of the video.
    stop: the last; None: nobody says.
    step: between frames.
    size: (width, height) of its frames, if it says so.
    deleted: frames that were removed, counted as CVAT does.
    clip: the name of its video, once it is found.
  """

  path: pathlib.Path
  names: list[str]
  is_video: bool = True
  start: int = 0
  stop: int | None = None
  step: int = 1
  size: tuple[int, int] | None = None
  deleted: frozenset[int] = frozenset()
  clip: str | None = None

  @property
  def lists_its_own(self):
    """Whether it names the pictures that it uses, not those that it took them from."""
    if self.is_video:
      return False
    return self.stop is None or len(self.names) == (self.stop - self.start) // self.step + 1

  def limit(self, frames, path):
    """Takes over first frame, last and filter of a task, which stand by name in a file."""
    where = f"{path}: the task"
    self.start = _whole(frames.get("start_frame") or 0, where, "a first frame")
    if frames.get("stop_frame") not in (None, ""):
      self.stop = _whole(frames["stop_frame"], where, "a last frame")
    text = frames.get("frame_filter") or ""
    found = re.fullmatch(r"\s*(?:step\s*=\s*([0-9]{1,9}))?\s*", text if type(text) is str else "?")
    if not found:
      raise UserError(f"{where} has the frame filter {tables.shown_value(text)}, no step=N.")
    self.step = int(found[1] or 1) or 1


class _Importer:
  """Reads files of annotations into a `Drawn`."""

  def __init__(self, drawn, confidence_attribute, all_frames, drawn_frames):
    self.drawn = drawn
    self._attributes = (
      _CONFIDENCES if confidence_attribute is None else (confidence_attribute.casefold(),)
    )
    self._is_asked = bool(confidence_attribute)
    self._all_frames, self._drawn_frames = all_frames, drawn_frames
    self._labels, self._confidences, self._n_between = [], [], 0

  def read(self, annotator, path):
    """Reads a backup's folder or zip, an XML file, or a folder of these."""
    found = list(_files(path))
    if not found:
      if any(child.suffix.lower() == ".json" for child in path.iterdir()):
        # Says whose they are.
        formats.read_json(formats.json_files(path)[0][0], "cvat", EXPECTED)
      raise UserError(
        f"{path} holds no annotations.json of a backup and no XML of CVAT; mend --annotations."
      )
    for file in found:
      if isinstance(file, _Backup):
        self._read_backup(annotator, file)
      else:
        self._read_xml(annotator, *file)

  def finish(self):
    """Returns the `Source`."""
    self.drawn.source.classes.sort(key=self._order)
    source = self.drawn.finish("--annotations")
    never = [name for name in self._labels if name not in source.classes]
    if never:
      source.notes.append(f"Labels of CVAT that nobody drew: {tables.shown_list(never, 5)}.")
    if self._n_between:
      source.notes.append(
        f"{plural(self._n_between, 'shape')} between keyframes, or after the last, as CVAT shows "
        "them."
      )
    if self._confidences:
      source.notes.append(f"Confidences are attributes from 0 to {self._scale}.")
    elif self._is_asked:
      raise UserError(f"No shape has the attribute {self._attributes[0]!r}; mend the option.")
    if self.drawn.n_empty:
      source.notes.append(
        f"{plural(self.drawn.n_empty, 'frame')} without a shape count as background; if nobody "
        "looked at them, say --drawn-frames."
      )
    return source

  def _order(self, name):
    return self._labels.index(name) if name in self._labels else len(self._labels)

  @property
  def _scale(self):
    return 1 if max(self._confidences, default=0) <= 1 else 100

  def _add_labels(self, names):
    self._labels += [name for name in names if name not in self._labels]

  # Shapes.

  def _confidence(self, attributes, where):
    """The confidence in attributes, as (name, value); None: they hold none."""
    for name, value in attributes:
      if isinstance(name, str) and name.strip().casefold() in self._attributes and name.strip():
        number = math.nan
        if isinstance(value, str):
          number = tables.parse_number(value.strip().removesuffix("%"), float, decimal_comma=False)
        elif tables.is_number(value):
          number = float(value)
        if not 0 <= number <= 100:
          raise UserError(
            f"{where} has {name} {tables.shown_value(value)}, no number from 0 to 100; mend it, or "
            "say --confidence-attribute NAME, '' for none."
          )
        self._confidences.append(number)
        return number
    return None

  def _made(self, shape, share=0.0, right=None):
    """A function that makes a `shapes.Shape`, or one between two keyframes."""

    def make(media):
      points, angle = shape.points, shape.angle
      if right is not None and right.kind == shape.kind and share:
        points = cvat_tracks.between(shape.kind, shape.points, right.points, share)
        angle = cvat_tracks.turned(shape.angle, right.angle, share)
      confidence = 1.0 if shape.confidence is None else shape.confidence / self._scale
      common = {"where": shape.where, "angle": angle, "confidence": confidence}
      if shape.kind == "mask":
        return self._mask(shape, media, common)
      corners = tuple(zip(points[::2], points[1::2], strict=True))
      return shapes.Shape(shape.name, shape.kind, corners, **common)

    return make

  def _mask(self, shape, media, common):
    left, top, width, height = map(int, shape.points)
    # Before they are drawn, as a broken one may be larger than the memory.
    if left + width > media.width or top + height > media.height:
      raise UserError(
        f"{shape.where} reaches to ({left + width}, {top + height}), out of its picture of "
        f"{media.width} x {media.height} pixels; is it of another size?"
      )
    pixels = shapes.from_runs(shape.runs.tolist(), height, width, where=shape.where)
    return shapes.Shape(shape.name, "mask", pixels=pixels, at=(top, left), **common)

  def _put(self, annotator, clip, frame, origin, shape, maker):
    is_line = shape.kind == "polyline"
    self.drawn.add(clip, frame, annotator, origin, shape.name, maker, is_line=is_line)

  def _track(self, task, keyframes, stop, where):
    """Yields what a track shows, as (frame, shape, maker), from its first keyframe on.

    Args:
      task: the `_Task`, whose clip is known.
      keyframes: `_Shape` by frame, counted as CVAT does.
      stop: its last frame; None: that of the task.
      where: stands in front of messages.
    """
    last = self._last(task)
    beyond = [frame for frame, shape in keyframes.items() if frame > last and not shape.outside]
    if beyond:
      raise UserError(
        f"{where} has a shape on frame {beyond[0]}, but its last is {last}; is it of another clip?"
      )
    stop = last if stop is None else min(stop, last)
    order = sorted(keyframes)
    for frame, following in itertools.zip_longest(order, order[1:]):
      shape = keyframes[frame]
      if shape.outside:
        continue
      if frame > stop:
        self.drawn.source.skip("keyframes after the last frame of their job", shape.where)
        continue
      yield frame, shape, self._made(shape)
      right = None if following is None else keyframes[following]
      for i in range(frame + 1, stop + 1 if following is None else min(following, stop + 1)):
        self._n_between += 1
        share = 0.0 if following is None else (i - frame) / (following - frame)
        yield i, shape, self._made(shape, share, right)

  # Which clip, and which of its frames.

  def _find_clip(self, task):
    """The name of a task's video; refuses one of another size (`UserError`)."""
    if task.clip is not None:
      return task.clip
    videos, error = self.drawn.videos, None
    for name in task.names:
      try:
        task.clip = videos.find(name, str(task.path))
        break
      except UserError as refusal:
        error = error or refusal
    if task.clip is None:
      if len(videos.found) > 1:
        raise error or UserError(
          f"{task.path} does not say of which video it is; name a folder that holds this one only."
        )
      task.clip = next(iter(videos.found))
      if task.names:
        self.drawn.source.notes.append(
          f"{task.path} is of {tables.shown(task.names[0])}, taken to be {task.clip}, the only one."
        )
    header = self.drawn.header(task.clip)
    self._check_size(task.path, task.clip, task.size)
    if task.stop is not None and task.stop >= header.n_frames:
      notices.warn(
        "%s: CVAT counts frames up to %d, but %s has %d; if it was converted since, frames may "
        "have moved.",
        task.path,
        task.stop,
        header.path.name,
        header.n_frames,
      )
    return task.clip

  def _check_size(self, where, clip, size):
    header = self.drawn.header(clip)
    if size is not None and size != (header.width, header.height):
      raise UserError(
        f"{where} was drawn on {size[0]} x {size[1]} pixels, but {header.path} has {header.width} "
        f"x {header.height}; bring the one that was drawn on."
      )

  def _last(self, task):
    """The last frame of a task that its clip has, counted as CVAT does."""
    n_frames = self.drawn.header(task.clip).n_frames if task.is_video else len(task.names)
    if task.lists_its_own:
      return n_frames - 1
    last = n_frames - 1 if task.stop is None else min(task.stop, n_frames - 1)
    return (last - task.start) // task.step

  def _place(self, task, frame, where):
    """The clip and frame of what CVAT counts as `frame`."""
    if task.is_video:
      return self._find_clip(task), task.start + frame * task.step
    index = frame if task.lists_its_own else task.start + frame * task.step
    if index >= len(task.names):
      raise UserError(
        f"{where} is on frame {frame}, but the task has {plural(len(task.names), 'picture')}."
      )
    return self.drawn.picture(task.names[index], where)

  # Backups.

  def _read_backup(self, annotator, backup):
    path = backup.path
    jobs = tables.parse_json(path, backup.annotations)
    jobs = [jobs] if isinstance(jobs, dict) else jobs
    if not isinstance(jobs, list) or not all(
      isinstance(job, dict) and {"shapes", "tracks"} & job.keys() for job in jobs
    ):
      raise UserError(f"{path} is no annotations.json of a CVAT backup; mend --annotations.")
    task, stated = self._backup_task(backup)
    if len(stated) != len(jobs):
      stated = [job for job in stated if job.get("type") != "ground_truth"]
    for number, job in enumerate(jobs):
      where = f"{path}" + f": job {number + 1}" * (len(jobs) > 1)
      last = None
      if len(stated) == len(jobs):
        last = _whole(stated[number].get("stop_frame"), where, "a last frame")
        if stated[number].get("type") == "ground_truth":
          # Another person's, of frames that are drawn already.
          self.drawn.source.skip("jobs of ground truth", where)
          continue
      for tag in _list(job, "tags", where):
        self.drawn.source.skip("tags", f"{where}: frame {tables.shown_value(tag.get('frame'))}")
      for i, entry in enumerate(_list(job, "shapes", where), start=1):
        at = f"{where}: shape {i}"
        shape = self._json_shape(entry, entry, at)
        if shape is not None and not shape.outside:
          frame = _whole(entry.get("frame"), at, "a frame")
          self._put_backup(annotator, task, frame, shape, self._made(shape), at)
      for i, track in enumerate(_list(job, "tracks", where), start=1):
        self._read_json_track(annotator, task, track, f"{where}: track {i}", last)
    if self._all_frames:
      self._place(task, 0, str(path))
      for frame in range(self._last(task) + 1):
        if frame not in task.deleted:
          self.drawn.label(*self._place(task, frame, str(path)), annotator, path)

  def _put_backup(self, annotator, task, frame, shape, maker, where):
    if frame in task.deleted:
      self.drawn.source.skip("shapes on frames that were deleted in CVAT", where)
    else:
      self._put(annotator, *self._place(task, frame, where), task.path, shape, maker)

  def _read_json_track(self, annotator, task, track, where, last):
    keyframes, attributes = {}, {}
    for number, entry in enumerate(_list(track, "shapes", where), start=1):
      at = f"{where}, keyframe {number}"
      shape = self._json_shape(entry, track, at, attributes)
      if shape is None:
        return
      frame = _whole(entry.get("frame"), at, "a frame")
      if frame in keyframes:
        raise UserError(f"{where} has two shapes on frame {frame}; {_MEND}.")
      keyframes[frame] = shape
    if not keyframes:
      return
    # Finds the clip, and with it how many frames there are.
    self._place(task, min(keyframes), where)
    for frame, shape, maker in self._track(task, keyframes, last, where):
      self._put_backup(annotator, task, frame, shape, maker, where)

  def _json_shape(self, entry, owner, where, inherited=None):
    """A `_Shape` of JSON; None: it is left out.

    Args:
      entry: the shape.
      owner: what has its label: the shape, or its track.
      where: stands in front of messages.
      inherited: attributes of the track's keyframes so far, which go on, by name.
    """
    kind = entry.get("type")
    if kind in _LEFT_OUT or entry.get("elements") or owner.get("elements"):
      what = kind if kind in _LEFT_OUT else "skeleton"
      self.drawn.source.skip(what + "s" * (what != "points"), where)
      return None
    if kind not in shapes.KINDS:
      raise UserError(f"{where} is {tables.shown_value(kind)}, which is not known; {_MEND}.")
    name = shapes.class_name(owner.get("label"), where)
    values = entry.get("points")
    if not isinstance(values, list):
      raise UserError(f"{where} has no list of points; {_MEND}.")
    values = [_number(value, where, "a coordinate") for value in values]
    attributes = {} if inherited is None else inherited
    for one in (*_list(owner, "attributes", where), *_list(entry, "attributes", where)):
      attributes[one.get("name") if isinstance(one.get("name"), str) else ""] = one.get("value")
    common = {
      "where": where,
      "confidence": self._confidence(attributes.items(), where),
      "outside": entry.get("outside") is True,
    }
    angle = _number(entry.get("rotation") or 0, where, "a rotation")
    if kind == "mask":
      if len(values) < 5 or any(value != int(value) for value in values):
        raise UserError(f"{where} is no mask of whole numbers; {_MEND}.")
      left, top, right, bottom = values[-4:]
      box = left, top, right - left + 1, bottom - top + 1
      return self._json_mask(name, values[:-4], box, common)
    if kind == "ellipse" and len(values) == 4:
      x, y, right, top = values
      values = [x, y, right - x, y - top]
    return self._outline(name, kind, values, angle, common)

  def _outline(self, name, kind, values, angle, common):
    where = common["where"]
    if kind in ("rectangle", "ellipse") and len(values) != 4:
      raise UserError(f"{where} is a {kind} of {len(values)} numbers, not 4; {_MEND}.")
    least = {"polygon": 3, "polyline": 2}.get(kind, 2)
    if len(values) % 2 or len(values) < 2 * least:
      raise UserError(f"{where} has fewer than {least} points, or an odd number; {_MEND}.")
    return _Shape(name, kind, tuple(values), angle=angle, **common)

  def _json_mask(self, name, runs, box, common):
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or max(box) >= 2**31:
      raise UserError(f"{common['where']} is a mask whose box is none; {_MEND}.")
    # Where a run is out of bounds, the mask is refused when it is drawn.
    runs = np.clip(runs, -1, 2**31 - 1).astype(np.int32)
    return _Shape(name, "mask", box, runs=runs, **common)

  def _backup_task(self, backup):
    """The `_Task` of a backup, and what it says of its jobs."""
    path = backup.path.with_name("task.json")
    content = tables.parse_json(path, backup.task)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
      raise UserError(f"{path} is none of CVAT; {_MEND}.")
    task = _Task(backup.path, [])
    task.limit(data, path)
    deleted = data.get("deleted_frames") or []
    if not isinstance(deleted, list):
      raise UserError(f"{path} has deleted_frames that are no list; {_MEND}.")
    task.deleted = frozenset(_whole(x, str(path), "a deleted frame") for x in deleted)
    self._add_labels(
      tables.normal(label["name"].strip())
      for label in _list(content, "labels", str(path))
      if isinstance(label.get("name"), str)
    )
    task.is_video, names, task.size = backup.media(data.get("sorting_method"))
    title = content.get("name")
    task.names = [f"{backup.folder}/data/{name}" for name in names]
    if isinstance(title, str) and task.is_video:
      task.names.append(title)
    return task, _list(content, "jobs", str(path))

  # XML.

  def _read_xml(self, annotator, path, content):
    reader = _Xml(path, content)
    for element in reader.elements():
      if element.tag == "meta":
        self._add_labels(reader.read_meta(element))
      elif element.tag == "image":
        self._read_image(annotator, reader, element)
      else:
        self._read_xml_track(annotator, reader, element)
    for task in reader.tasks.values():
      if self._all_frames and task.is_video:
        self._find_clip(task)
        for frame in range(self._last(task) + 1):
          self.drawn.label(*self._place(task, frame, str(path)), annotator, path)
    if not reader.n_read:
      raise UserError(f"{path} lists no image and no track; {_MEND}.")

  def _read_image(self, annotator, reader, element):
    name, number = element.get("name"), element.get("id")
    where = f"{reader.path}: image {tables.shown(name or number or '')}"
    task = reader.task_of(element)
    if task is None and name and re.fullmatch(r"frame_[0-9]{6,}", name):
      # Whoever exports pictures of a video names them so.
      task = reader.tasks.setdefault(None, _Task(reader.path, []))
    if task is not None and not task.is_video:
      task = None
    size = [element.get(key) for key in ("width", "height")]
    size = None if None in size else tuple(_whole(x, where, "a size", 1) for x in size)
    if task is not None:
      clip, frame, origin = self._find_clip(task), _whole(number, where, "an id"), reader.path
    elif name:
      (clip, frame), origin = self.drawn.picture(name, where), f"{where} (id {number})"
    else:
      raise UserError(f"{where} has no name; {_MEND}.")
    self._check_size(where, clip, size)
    drawn = [self._xml_shape(child, child, where, i) for i, child in enumerate(element, start=1)]
    drawn = [shape for shape in drawn if shape is not None]
    for shape in drawn:
      self._put(annotator, clip, frame, origin, shape, self._made(shape))
    # Where something was drawn that is left out, nobody says that there is nothing.
    is_empty = all(child.tag == "tag" for child in element)
    if is_empty and not self._drawn_frames and (task is None or self._all_frames):
      self.drawn.label(clip, frame, annotator, origin)

  def _read_xml_track(self, annotator, reader, element):
    where = f"{reader.path}: track {tables.shown(element.get('id') or '')}"
    task = reader.task_of(element)
    if task is None:
      task = reader.tasks.setdefault(None, _Task(reader.path, []))
    if not task.is_video:
      raise UserError(
        f"{where} is on pictures, which CVAT for video does not name; export it as CVAT for images."
      )
    keyframes = {}
    for i, child in enumerate(element, start=1):
      shape = self._xml_shape(child, element, where, i)
      if shape is None:
        return
      frame = _whole(child.get("frame"), f"{where}: shape {i}", "a frame")
      if frame in keyframes:
        raise UserError(f"{where} has two shapes on frame {frame}; {_MEND}.")
      keyframes[frame] = shape
    if not keyframes:
      return
    clip = self._find_clip(task)
    # In XML frames are the video's own.
    kept = {}
    for frame, shape in keyframes.items():
      index, rest = divmod(frame - task.start, task.step)
      if rest or index < 0:
        raise UserError(f"{where} has a shape on frame {frame}, which its task lacks; {_MEND}.")
      kept[index] = shape
    # CVAT lists every frame on which something is seen; what lists keyframes only has gaps.
    order = sorted(kept)
    is_sparse = any(
      b - a > 1 and not kept[a].outside for a, b in zip(order[:-1], order[1:], strict=True)
    )
    reader.is_sparse |= is_sparse
    end = None if reader.is_sparse else order[-1]
    for frame, shape, maker in self._track(task, kept, end, where):
      self._put(annotator, clip, task.start + frame * task.step, reader.path, shape, maker)

  def _xml_shape(self, element, owner, where, number):
    """A `_Shape` of XML; None: it is left out."""
    tag = element.tag if isinstance(element.tag, str) else "?"
    where = f"{where}: {tables.shown(tag)[1:-1]} {number}"
    if tag == "tag":
      self.drawn.source.skip("tags", where)
      return None
    if tag in _LEFT_OUT:
      self.drawn.source.skip(tag + "s" * (tag != "points"), where)
      return None
    kind = _KINDS.get(tag)
    if kind is None:
      raise UserError(f"{where} is no shape that is known; {_MEND}.")
    name = shapes.class_name(owner.get("label"), where)
    attributes = [(one.get("name"), (one.text or "").strip()) for one in element.iter("attribute")]
    common = {
      "where": where,
      "confidence": self._confidence(attributes, where),
      "outside": element.get("outside") == "1",
    }

    def numbers(*keys):
      return [_number(element.get(key), where, repr(key)) for key in keys]

    if kind == "mask":
      box = [_whole(element.get(key), where, key) for key in ("left", "top", "width", "height")]
      runs = [_number(x, where, "a run length") for x in (element.get("rle") or "").split(",")]
      if any(value != int(value) for value in runs):
        raise UserError(f"{where} has run lengths that are no whole numbers; {_MEND}.")
      return self._json_mask(name, runs, tuple(box), common)
    angle = _number(element.get("rotation") or 0, where, "a rotation")
    if kind == "rectangle":
      values = numbers("xtl", "ytl", "xbr", "ybr")
    elif kind == "ellipse":
      values = numbers("cx", "cy", "rx", "ry")
    else:
      text = element.get("points") or ""
      values = [_number(x, where, "a coordinate") for x in re.split("[;,]", text)]
    return self._outline(name, kind, values, angle, common)


@dataclasses.dataclass(frozen=True)
class _Backup:
  """The backup of one task.

  Attributes:
    path: of its annotations.json, for messages.
    folder: its name.
    annotations: the text of annotations.json.
    task: likewise of task.json.
    files: names below data/, sorted.
    manifest: the text of data/manifest.jsonl, '' where there is none.
  """

  path: pathlib.Path
  folder: str
  annotations: str
  task: str
  files: list[str]
  manifest: str

  def media(self, order):
    """Whether it is a video, the names of it or of its pictures, and the video's size.

    Args:
      order: how CVAT sorted pictures; None: nobody says.
    """
    names, size = [], None
    for line in self.manifest.splitlines():
      if not line.strip():
        continue
      try:
        entry = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise UserError(f"{self.path}: its data/manifest.jsonl is no JSON; {_MEND}.") from error
      if not isinstance(entry, dict):
        continue
      properties = entry.get("properties")
      if isinstance(properties, dict) and isinstance(properties.get("name"), str):
        resolution = properties.get("resolution")
        if isinstance(resolution, list) and [type(x) for x in resolution] == [int, int]:
          size = tuple(resolution)
        return True, [properties["name"]], size
      if isinstance(entry.get("name"), str) and isinstance(entry.get("extension"), str):
        names.append(tables.normal(entry["name"] + entry["extension"]))
    if names:
      return False, names, None
    found = [name for name in self.files if readers.is_media(pathlib.PurePosixPath(name))]
    clips = [n for n in found if pathlib.PurePosixPath(n).suffix.lower() not in readers.PICTURES]
    if clips or not found:
      return True, clips, None
    if order not in (None, "lexicographical", "natural"):
      raise UserError(
        f"{self.path}: its pictures are in an order of their own, and data/manifest.jsonl, which "
        f"says which, is missing; {_MEND}."
      )
    if order == "natural":
      found.sort(
        key=lambda name: [
          (x.isdecimal(), int(x) if x.isdecimal() else 0, x) for x in re.split("([0-9]+)", name)
        ]
      )
    return False, found, None


def _read_member(archive, info, path):
  stored = min(info.compress_size, path.stat().st_size)
  most = max(_SMALL, _RATIO * stored)
  errors = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)
  with damage_is_a_user_error(path, _MEND, errors), archive.open(info) as file:
    content = file.read(most + 1)
  if len(content) > most:
    raise UserError(
      f"{path}: {tables.shown(info.filename)} unpacks to over {_RATIO} times its size; unpack the "
      "archive yourself, and name the folder."
    )
  return content


def _text(content, path):
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text; {_MEND}.") from error


def _files_of_zip(path):
  """Yields the backups and XML files of an archive."""
  errors = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)
  with damage_is_a_user_error(path, _MEND, errors):
    archive = zipfile.ZipFile(path)
  with archive:
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def read(name):
      return _read_member(archive, members[name], path)

    for name in sorted(members):
      folder = name.rpartition("/")[0] + "/" * ("/" in name)
      base = name.removeprefix(folder)
      if base.lower().endswith(".xml"):
        yield path, read(name)
      elif base == "annotations.json" and f"{folder}task.json" in members:
        manifest = f"{folder}data/manifest.jsonl"
        yield _Backup(
          path / name,
          folder.strip("/") or path.stem,
          _text(read(name), path),
          _text(read(f"{folder}task.json"), path),
          sorted(
            n.removeprefix(f"{folder}data/") for n in members if n.startswith(f"{folder}data/")
          ),
          _text(read(manifest), path) if manifest in members else "",
        )


def _files(path, depth=2):
  """Yields the `_Backup`s and XML files (path, content) of a file or folder."""
  if path.is_dir():
    if (path / "annotations.json").exists() and (path / "task.json").exists():
      data = path / "data"
      files = sorted(p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file())
      manifest = data / "manifest.jsonl"
      yield _Backup(
        path / "annotations.json",
        path.resolve().name,
        tables.read_text(path / "annotations.json", _MEND),
        tables.read_text(path / "task.json", _MEND),
        files,
        tables.read_text(manifest, _MEND) if manifest.exists() else "",
      )
      return
    for child in tables.visible(path) if depth else ():
      if child.is_dir() or child.suffix.lower() in (".xml", ".zip"):
        yield from _files(child, depth - 1)
    return
  check_file(path, "mend --annotations")
  with path.open("rb") as file:
    head = file.read(4)
  if head == b"PK\3\4" or path.suffix.lower() == ".zip":
    yield from _files_of_zip(path)
  elif path.suffix.lower() == ".json":
    formats.read_json(path, "cvat", EXPECTED)
    if not path.with_name("task.json").exists():
      raise UserError(
        f"{path} has no task.json beside it, which says what its frames are; name the backup's "
        "folder or zip with --annotations."
      )
    yield from _files(path.parent)
  else:
    yield path, path.read_bytes()


class _Xml:
  """A file of XML 1.1.

  Attributes:
    path: of it.
    tasks: `_Task` by id, None where none is stated.
    n_read: how many images and tracks there were.
    is_sparse: whether its tracks list keyframes only.
  """

  def __init__(self, path, content):
    self.path, self._content = path, content
    self.tasks, self.n_read, self.is_sparse = collections.OrderedDict(), 0, False

  def elements(self):
    """Yields meta, images and tracks, one at a time, as the file may be large."""
    import defusedxml
    import defusedxml.ElementTree as ElementTree

    depth, root = 0, None
    try:
      for event, element in ElementTree.iterparse(
        io.BytesIO(self._content), events=("start", "end"), forbid_dtd=True
      ):
        depth += 1 if event == "start" else -1
        if event == "start":
          root = element if root is None else root
          if root.tag != "annotations":
            raise UserError(f"{self.path} is XML, but not CVAT's; mend --annotations.")
          continue
        if depth == 1:
          if element.tag in ("meta", "image", "track"):
            self.n_read += element.tag != "meta"
            yield element
          root.clear()
    except ElementTree.ParseError as error:
      raise UserError(f"{self.path} is no XML ({error}); {_MEND}.") from error
    except UserError:  # is a ValueError itself
      raise
    except defusedxml.DefusedXmlException as error:
      raise UserError(
        f"{self.path} declares a document type or entities, as no XML of CVAT does; it is not read."
      ) from error
    except (ValueError, LookupError) as error:  # encodings that nobody knows
      raise UserError(f"{self.path} is no XML ({error}); {_MEND}.") from error

  def read_meta(self, element):
    """Reads the tasks; returns the names of the labels."""
    for task in itertools.chain(element.iter("task"), element.iter("job")):
      text = {child.tag: (child.text or "").strip() for child in task}
      # Of pictures it says no source.
      is_video = text.get("mode") == "interpolation" or bool(text.get("source"))
      names = [name for name in (text.get("source"), text.get("name")) if name]
      found = _Task(self.path, names, is_video)
      found.limit(text, self.path)
      size = task.find("original_size")
      if size is not None and is_video:
        found.size = tuple(
          _whole(size.findtext(key), f"{self.path}: the task", "a size", 1)
          for key in ("width", "height")
        )
      self.tasks[text.get("id")] = found
    found = []
    for label in element.iter("label"):
      name = (label.findtext("name") or "").strip()
      # Points of skeletons have a parent.
      if name and label.find("parent") is None:
        found.append(tables.normal(name))
    return found

  def task_of(self, element):
    """The task of an image or track; None: nobody says."""
    identity = element.get("task_id")
    if identity in self.tasks:
      return self.tasks[identity]
    return next(iter(self.tasks.values())) if len(self.tasks) == 1 else None


def find(
  *,
  videos,
  annotations,
  line_width=None,
  confidence_attribute=None,
  all_frames=False,
  drawn_frames=False,
  frame_pattern=None,
  folders_are_clips=False,
):
  """Reads what was drawn in CVAT.

  Labelled frames are those of XML for images, and else those with a shape.

  Args:
    videos: folder of the videos or pictures.
    annotations: (annotator, path) each: a backup's folder or zip, an XML file, or a folder of them.
    line_width: of polylines, with its unit.
    confidence_attribute: which attribute holds the confidence, from 0 to 1 or to 100; None: one of
      the usual names; '': none.
    all_frames: whether frames of a video without a shape are labelled.
    drawn_frames: whether pictures without a shape are not.
    frame_pattern: of pictures: see `source.place`.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  drawn = Drawn(videos, folders_are_clips, line_width, frame_pattern)
  importer = _Importer(drawn, confidence_attribute, all_frames, drawn_frames)
  for annotator, path in annotations:
    importer.read(annotator, path)
  return importer.finish()
