"""Images, clips and folders of them in; probability masks, overlays and tables out.

  python -m lus_jax.predict --workdir runs/seg --input clip.mp4 --out masks --thresholds .6,.5

(or `--members soft,ordinal` for what was trained beside the thresholds) writes, in the geometry of
the input's own frames, whichever part of them the networks see (`--crop`):

  masks/prediction.json                     what was predicted, from what, by which models
  masks/threshold_0.6/000010/<class>.png    8-bit grey, 255 = probability 1
  masks/overlays/threshold_0.6/000010.png   frame 10 with the classes in their colours

so that `masks/threshold_0.6` can stand as `masks/` of a lus_folder data set. `--format` names what
else, or instead: {formats}, csv.

Of a folder each clip, and each picture that is no frame of one, is predicted by itself, into
`masks/<its name>/`, however deep it lies; of a lus_folder data set the videos of its manifest.csv.
Beside them are `videos.csv` and, where patients and days are known (by the manifest, by `--table`,
or by DICOM), `patient_days.csv`, and `index.html` shows a few frames of each. What cannot be read
is named, the rest comes out, and the exit code is 1.

The same command goes on where it was stopped, with the clips that are not finished.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import threading
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

import lus_jax
from lus_jax import command_line, lock, palette, pool, progress, results, signals
from lus_jax.errors import UserError
from lus_jax.files import sha256, unreadable, write_text
from lus_jax.inference import formats as formats_lib
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import inputs as inputs_lib
from lus_jax.inference import measures, page, tables
from lus_jax.inference import trained as trained_lib
from lus_jax.inference import views as views_lib
from lus_jax.inference.formats.head import Head
from lus_jax.media import readers, scan_area
from lus_jax.media.letterbox import quantized
from lus_jax.words import plural

SCHEMA = 1
RECORD = inputs_lib.RECORD
CSV = "csv"
FORMATS = (*formats_lib.FORMATS, CSV)
DEFAULT_FORMATS = ("png", "overlays")
__doc__ = __doc__.format(formats=", ".join(formats_lib.FORMATS))
# Fields of the record that say how far a prediction is, what made it and what came out, not which
# one it is.
_STATE = (
  *("complete", "versions", "files", "notes"),
  *("outputs", "highest", "rows", "failed", "left_out", "shown_area"),
)
# How scan areas are known that are not looked for in the frames.
_KNOWN = ("none", "given", "table")
# Temporary names.
_LEFTOVER = re.compile(r"^\.[0-9]+\.|\.[0-9]+\.tmp$")
# Threads that write at a time: each takes memory for its frame.
_TURNS = threading.BoundedSemaphore(pool.cpus())
# Of maps that wait for their turn to be written, and frames of them.
_WAITING_BYTES, _WAITING = 2**27, 8


class _Plan(NamedTuple):
  """What is done with every clip."""

  trained: Any
  out: pathlib.Path
  formats: tuple[str, ...]
  crop: str
  cut: float
  smallest: int | None
  pleura: tuple[str, ...]
  is_one: bool
  n_clips: int

  @property
  def is_measured(self):
    """Whether tables are written."""
    return CSV in self.formats or not self.is_one

  @property
  def is_shown(self):
    """Whether there are pictures that show the scan area alone."""
    return "mp4" in self.formats or not self.is_one

  @property
  def writers(self):
    """The classes of the formats."""
    return [formats_lib.FORMATS[name].writer for name in self.formats if name != CSV]

  @property
  def dtype(self):
    """Of the maps: as fine as any format takes them."""
    return np.float32 if any(one.dtype == np.float32 for one in self.writers) else np.uint8

  @property
  def shows_cut(self):
    """Whether anything would be another with another cut."""
    return self.is_measured or any(one.shows_cut for one in self.writers)


class _Job:
  """One clip: what is predicted of it, and what its record says."""

  def __init__(self, source, frames, out, content):
    self.source, self.frames, self.out, self.content = source, frames, out, content
    # By format, of every member; once its scan area is known.
    self.writers = {}

  @property
  def name(self):
    """As tables and messages call it."""
    return self.source.name or self.source.path.name

  def read_checksum(self):
    """Takes the input's checksum into the record; of a new clip just before it is looked at.

    Raises:
      UserError: a file cannot be read now.
    """
    if "input_sha256" not in self.content:
      self.content["input_sha256"] = _input_checksum(self.source.media)


def run(
  *,
  workdir,
  source,
  out,
  thresholds=None,
  members=None,
  frames=None,
  crop=None,
  formats=DEFAULT_FORMATS,
  cut=0.5,
  smallest=None,
  pleura=None,
  table=None,
):
  """Predicts an image, a clip or a folder of them and writes masks, tables and records.

  Args:
    workdir: of a finished segmentation run.
    source: a clip or picture of one of `readers.FORMATS`, a folder of numbered pictures, which is
      a clip, a lus_folder data set, or a folder of anything of these.
    out: a directory: a new one, an empty one, or that of the same prediction, which goes on.
    thresholds: which of the run's thresholds; all by default, none where there are `members`.
    members: names of members beside the thresholds, as in `results/members.json`.
    frames: numbers of frames, counted from 0, in any order; all by default.
    crop: the scan area that the networks see: 'auto' (found, in each picture or clip by itself),
      'none' (the whole frame) or 'X,Y,WIDTH,HEIGHT'. By default, where the frames that the models
      learned from were cropped, as a data set's table gives it, else auto; elsewhere none.
    formats: what is written, of `FORMATS`.
    cut: the probability from which on a pixel counts as of a class, in tables and formats.
    smallest: pixels of the smallest structure that they count; by default by the scan area's size.
    pleura: names of the classes that are pleura; by default guessed.
    table: a CSV file of video, patient and day.

  Returns:
    What `prediction.json` says; of a folder `failed` there has what could not be read, by name, and
    `left_out`, by name and format, what could not be written of what could.

  Raises:
    UserError: the run, the input, an argument or the directory is not in order.
  """
  out = pathlib.Path(out).expanduser()
  found = inputs_lib.find(source, table=table, out=out)
  pictures = all(one.path.suffix.lower() in readers.PICTURES for one in found.inputs)
  kind = "pictures" if pictures else "clips"
  if not found.is_one and frames is not None:
    raise UserError(f"--frames: the {kind} of {source} are no frames of one clip; leave it out.")
  chosen = [_choose_frames(x.media, frames) if x.media else () for x in found.inputs]
  trained = trained_lib.load(
    os.path.expanduser(workdir), every=members is not None, option="--workdir"
  )
  trained = trained.only(views_lib.choose(trained, thresholds, members, workdir))
  learned = bool(trained.dataset.get("has_scan_areas"))
  plan = _Plan(
    trained,
    out,
    tuple(dict.fromkeys(formats)),
    crop or ("learned" if learned else "none"),
    cut,
    smallest,
    _choose_pleura(trained, pleura),
    found.is_one,
    len(found.inputs),
  )
  failed = {x.name: str(x.error) for x in found.inputs if x.error}
  jobs = [
    _job(plan, one, numbers, workdir, source)
    for one, numbers in zip(found.inputs, chosen, strict=True)
    if one.media
  ]
  content = _describe(plan, workdir, source)
  if not found.is_one:
    content[kind] = [one.name for one in found.inputs]
    _check_directory(out, content)
  for job in jobs:
    _check_directory(job.out, job.content, is_nested=not found.is_one)
  checked = progress.bar(jobs, total=len(jobs), unit="clip", what="checking what is there", delay=5)
  finished = [job for job in checked if _is_finished(job)]
  for line in found.lines:
    print(line)
  _say_plan(plan, jobs)
  with lock.hold(out, option="--out"), signals.interrupting():
    if not found.is_one:
      _write_record(out, content)
    failed |= _predict_all(plan, jobs, finished)
    done = [job for job in jobs if job.content["complete"]]
    if plan.is_measured:
      _write_tables(plan, done)
    if found.is_one:
      content = jobs[0].content
    else:
      _write_page(plan, done, content, failed)
      left_out = {job.name: job.content["left_out"] for job in done if job.content["left_out"]}
      content = content | {"complete": True, "failed": failed, "left_out": left_out}
      _write_record(out, content)
  _say_results(plan, done)
  return content


def _say_plan(plan, jobs):
  """Prints what a user may not expect, before the work begins."""
  by_table = [job for job in jobs if job.source.box]
  if plan.crop == "learned" and len(by_table) < len(jobs):
    print(
      "scan areas: the models learned from those that stood in their data's tables, some perhaps "
      "drawn by hand; here they are found (--crop=X,Y,WIDTH,HEIGHT says where they are)"
    )
  if plan.is_measured:
    how = ", ".join(plan.pleura) or "no class"
    print(f"pleura: {how} (--pleura names others)")


def _say_results(plan, jobs):
  """Prints what nothing else says plainly: of what the data were, and what was never seen."""
  for note in plan.trained.notes:
    print(f"note: {note}")
  for line in _never(plan, jobs):
    print(line)


def _never(plan, jobs):
  """Lines on the members and classes of which no pixel of any frame reaches the cut."""
  found = []
  for view in plan.trained.views:
    highest = [job.content["highest"][view.name] for job in jobs]
    names = [
      name
      for k, name in enumerate(plan.trained.classes)
      if highest and max(one[k] for one in highest) < 255 * plan.cut
    ]
    if names:
      every = len(names) == len(plan.trained.classes)
      found.append(f"{view.name} ({'every class' if every else ', '.join(names)})")
  if not found:
    return []
  return [f"no pixel of any frame reaches the probability {plan.cut:g}: {'; '.join(found)}"]


def _predict_all(plan, jobs, finished):
  """Predicts what is not finished; returns what could not be read to its end, by name."""
  left = [job for job in jobs if job not in finished]
  trained, failed = plan.trained, {}
  if finished:
    print(f"{plural(len(finished), 'clip')} of {len(jobs)} finished already: not computed again")
  bar = progress.bar(
    total=sum(len(job.frames) for job in jobs),
    initial=sum(len(job.frames) for job in finished),
    unit="frame",
    what=f"predicting with {plural(len(trained.views), 'model')}",
    delay=5,
  )
  found = frames_lib.predict_all(
    trained,
    _located(plan, left),
    probability=trained.compiled_probability,
    dtype=plan.dtype,
  )
  # Its last frames are written while the networks look at the next clip.
  with bar, contextlib.closing(found), futures.ThreadPoolExecutor(1) as behind:
    output, closing = None, None
    try:
      for one in found:
        key = one.key if isinstance(one, frames_lib.Failed) else one[0]
        if output is not None and output.job is not key:
          closing = _finish(output, closing, behind)
          output = None
        if isinstance(one, frames_lib.Failed):
          if output is not None:
            output.abandon(one.error)
            output = None
          if plan.is_one:
            raise one.error
          failed[key.name] = str(one.error)
          progress.say(f"error: {one.error}")
          bar.total -= len(key.frames)
          continue
        if output is None:
          output = _Output(plan, key)
        output.add(*one[1:])
        bar.update()
      if output is not None:
        closing = _finish(output, closing, behind)
        output = None
      if closing is not None:
        closing.result()
    except BaseException as error:
      if output is not None:
        output.abandon(error, keep=True)
      raise
  return failed


def _finish(output, before, behind):
  if before is not None:
    before.result()
  return behind.submit(output.finish)


def _located(plan, jobs):
  """Yields every job as a `frames_lib.Clip`, with its scan area."""
  for job in jobs:
    media = job.source.media
    try:
      job.read_checksum()
      if "scan_area" not in job.content:
        job.content |= _describe_area(plan, media, scan_area.find(media))
      box = tuple(job.content["scan_area"])
      if plan.is_shown:
        # Where the networks see all of the frame, it is looked for all the same.
        is_whole = job.content["scan_area_by"] == "none"
        job.content["shown_area"] = list(scan_area.find(media).box if is_whole else box)
      _choose_writers(plan, job)
    except UserError as error:
      yield frames_lib.Failed(job, error)
      continue
    yield frames_lib.Clip(job, media, job.frames, box)


def _choose_writers(plan, job):
  """Makes the writers of a clip; of many clips, a format that one cannot have is left out there."""
  job.content["left_out"] = {}
  for name in plan.formats:
    if name == CSV:
      continue
    one = formats_lib.FORMATS[name]
    try:
      job.writers[name] = [
        one.writer(job.out / one.folder / head.name, job.source.media, head)
        for head in _heads(plan, job)
      ]
    except UserError as error:
      if plan.is_one:
        raise
      job.content["left_out"][name] = str(error)
      progress.say(f"error: {job.name}: no {name}: {error}")


class _Output:
  """What is written of one clip: its files are there whole, and then its record says so."""

  def __init__(self, plan, job):
    self.job, self._plan = job, plan
    content, media = job.content, job.source.media
    box = tuple(content["scan_area"])
    if plan.is_one and box != scan_area.whole(media.height, media.width):
      print(f"scan area {scan_area.text(box)} ({content['scan_area_by']})")
    elif plan.is_one and plan.crop == "learned" and content["scan_area_by"] == "whole":
      print("scan area: the whole frame, as nothing of it seems to be beside the scan")
    # It goes first, so that what a kill leaves behind is known for what it is.
    _remove_leftovers(job.out)
    _write_record(job.out, content)
    heads = _heads(plan, job)
    self._members = []
    # Each in a thread of its own, which keeps the frames in their order.
    self._of_all = []
    self._stack = contextlib.ExitStack()
    try:
      writers, job.writers = job.writers, {}  # they are large, and jobs are many
      for of_members in writers.values():
        for i, writer in enumerate(of_members):
          self._members.append((i, self._entered(writer), self._lane()))
      self._measured = None
      if plan.is_measured:
        rules = measures.Rules(
          cut=plan.cut,
          smallest=content["smallest_structure"],
          pleura=tuple(map(plan.trained.classes.index, plan.pleura)),
          spacing=media.spacing,
        )
        path = job.out / tables.FRAMES if CSV in plan.formats else None
        self._measured = self._entered(tables.Frames(path, job.name, heads, rules))
        self._of_all.append((self._measured.add, self._lane()))
      if not plan.is_one:
        shown = page.frames_shown(job.frames, plan.n_clips)
        pictures = self._entered(page.Pictures(job.out / page.FOLDER, heads, shown))
        self._of_all.append((pictures.add, self._lane()))
    except BaseException as error:
      self.abandon(error, keep=True)
      raise
    self._highest = np.zeros((len(heads), len(plan.trained.classes)), np.uint8)
    self._waiting = collections.deque()

  def _entered(self, writer):
    return self._stack.enter_context(writer)

  def _lane(self):
    lane = futures.ThreadPoolExecutor(1)
    self._stack.callback(lane.shutdown, cancel_futures=True)
    return lane

  def add(self, number, image, maps):
    """Hands a frame to the threads that write; waits for them where too many are under way."""
    small = [quantized(one) if one.dtype != np.uint8 else one for one in maps]
    for i, one in enumerate(small):
      highest = one.reshape(-1, one.shape[-1]).max(axis=0)
      self._highest[i] = np.maximum(self._highest[i], highest)
    most = _WAITING_BYTES // sum(one.nbytes for one in (*maps, *small))
    while len(self._waiting) >= np.clip(most, 1, _WAITING):
      self._wait()
    under_way = [
      lane.submit(
        _in_turn, writer.add, number, image, (maps if writer.dtype == maps[i].dtype else small)[i]
      )
      for i, writer, lane in self._members
    ]
    under_way += [lane.submit(_in_turn, add, number, image, small) for add, lane in self._of_all]
    self._waiting.append(under_way)

  def _wait(self):
    for one in self._waiting.popleft():
      one.result()

  def finish(self):
    """Waits for all that is under way, gives the files their names, and writes the record."""
    try:
      while self._waiting:
        self._wait()
    except BaseException as error:
      self.abandon(error, keep=True)
      raise
    self._stack.close()
    names = [view.name for view in self._plan.trained.views]
    # Those before; in the same order, it is the same record.
    self.job.content.pop("outputs", None)
    self.job.content |= {
      "highest": dict(zip(names, self._highest.tolist(), strict=True)),
      "rows": self._measured.rows if self._measured else [],
      "outputs": _outputs(self.job.out),
      "complete": True,
    }
    _write_record(self.job.out, self.job.content)

  def abandon(self, error, *, keep=False):
    """Removes what is not whole after an exception; unless it is to be gone on with, all of it."""
    try:
      self._stack.__exit__(type(error), error, error.__traceback__)
    finally:
      if not keep:
        (self.job.out / RECORD).unlink(missing_ok=True)
        folders = [self.job.out / one.folder for one in formats_lib.FORMATS.values()]
        for folder in (*folders, self.job.out, *self.job.out.parents):
          if folder == self._plan.out:
            break
          with contextlib.suppress(OSError):  # there is something in it, or it never was
            folder.rmdir()


def _in_turn(function, *arguments):
  with _TURNS:
    function(*arguments)


def _heads(plan, job):
  """A `Head` of every member, once the scan area is known."""
  classes, box = plan.trained.classes, tuple(job.content["scan_area"])
  common = Head(
    name="",
    classes=classes,
    colours=tuple(palette.rgb(k) for k in range(len(classes))),
    meaning="",
    frames=tuple(job.frames),
    cut=plan.cut,
    box=box,
    shown=tuple(job.content.get("shown_area", box)),
    software=f"lus_jax {lus_jax.__version__}",
  )
  return [
    dataclasses.replace(common, name=view.name, meaning=views_lib.meaning(plan.trained, view))
    for view in plan.trained.views
  ]


def _remove_leftovers(out):
  """Removes what a kill left of an unfinished clip under temporary names."""
  for folder in (out, *(out / one.folder for one in formats_lib.FORMATS.values())):
    for path in folder.iterdir() if folder.is_dir() else ():
      if _LEFTOVER.search(path.name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _input_checksum(media):
  """The SHA-256 of a clip's file; of several one of theirs and their names."""
  try:
    found = [(file.name, sha256(file)) for file in media.files]
  except OSError as error:
    raise unreadable(media.path, error) from error
  if len(found) == 1:
    return found[0][1]
  return hashlib.sha256("".join(f"{name}\0{one}\n" for name, one in found).encode()).hexdigest()


def _own_files(out):
  """Yields paths of a clip's files within its folder, but its record, and none that are hidden."""
  beside = (RECORD, lock.NAME, tables.VIDEOS, tables.DAYS)
  for folder, folders, files in os.walk(out):
    # What has a record is another clip's.
    folders[:] = sorted(
      name
      for name in folders
      if not inputs_lib.is_hidden(name) and not os.path.exists(os.path.join(folder, name, RECORD))
    )
    for name in sorted(files):
      path = pathlib.Path(folder, name)
      if not inputs_lib.is_hidden(name) and (path.parent != out or name not in beside):
        yield path.relative_to(out)


def _outputs(out):
  """The SHA-256 of each of a clip's files, by its path within the folder."""
  return {path.as_posix(): sha256(out / path) for path in _own_files(out)}


def _write_tables(plan, done):
  """Writes the tables of videos and of patients' days."""
  rows = [
    {"video": job.name, "patient": job.source.patient, "day": job.source.day, **row}
    for job in done
    for row in job.content["rows"]
  ]
  tables.write(plan.out / tables.VIDEOS, tables.VIDEO_COLUMNS, rows)
  days = tables.days(rows)
  if days:
    tables.write(plan.out / tables.DAYS, tables.DAY_COLUMNS, days)
  unknown = sum(not (job.source.patient and job.source.day) for job in done)
  if unknown and not plan.is_one:
    print(
      f"{tables.DAYS} {'leaves out' if days else 'is not written:'} {plural(unknown, 'clip')} "
      "without a patient and day (--table=CSV says them, in columns video,patient,day)"
    )


def _write_page(plan, done, content, failed):
  """Writes the page of many clips."""
  clips = []
  for job in done:
    shown = job.content
    # Neither patient nor day, as pages are passed on: they stand in the tables.
    facts = [plural(len(job.frames), "frame"), f"{shown['width']} x {shown['height']} pixels"]
    area = f"scan area {scan_area.text(shown['scan_area'])} ({shown['scan_area_by']})"
    facts += ["the networks saw the whole frame" if shown["scan_area_by"] == "none" else area]
    facts += [f"no {name}, which could not be written" for name in shown["left_out"]]
    clips.append(
      {
        "name": job.name,
        "folder": job.out / page.FOLDER,
        "facts": facts,
        "frames": page.frames_shown(job.frames, plan.n_clips),
        "rows": shown["rows"],
      }
    )
  size = (
    f"{plural(plan.smallest, 'pixel')}"
    if plan.smallest
    else f"{measures.SMALLEST_SHARE:.2%} of the scan area"
  )
  page.write(
    plan.out / page.PAGE,
    clips=clips,
    members={view.name: views_lib.meaning(plan.trained, view) for view in plan.trained.views},
    classes=plan.trained.classes,
    cut=plan.cut,
    source=content["input"],
    workdir=content["workdir"],
    dataset=plan.trained.dataset["name"],
    notes=plan.trained.notes,
    never=_never(plan, done),
    failed=failed,
    rules=(
      f"Structures are connected parts, by side or corner, of at least {size}. The share of the "
      "pleura is that of the columns with a pleura in which a structure of the class lies at or "
      f"below it (pleura: {', '.join(plan.pleura) or 'no class'})."
    ),
  )


def _describe(plan, workdir, source):
  trained = plan.trained
  return {
    "schema": SCHEMA,
    "complete": False,
    "input": os.fspath(source),
    "workdir": os.fspath(workdir),
    "thresholds": [t for t in trained.thresholds if t is not None],
    "members": [view.name for view in trained.views],
    "classes": list(trained.classes),
    "colours": {name: palette.css(k) for k, name in enumerate(trained.classes)},
    "meaning": {
      view.name: f"value / 255 = {views_lib.meaning(trained, view)}" for view in trained.views
    },
    "fingerprints": {
      view.name: text for view, text in zip(trained.views, trained.fingerprints, strict=True)
    },
    "dataset": trained.dataset,
    "notes": list(trained.notes),
    "formats": list(plan.formats),
    **({"cut": plan.cut} if plan.shows_cut else {}),
    **({"pleura": list(plan.pleura)} if plan.is_measured else {}),
    "config": json.loads(trained.config.to_json()),
    "versions": results.versions(),
  }


def _job(plan, source, frames, workdir, given):
  """The `_Job` of an `inputs_lib.Input`; its scan area is known where nothing has to be looked at.

  Raises:
    UserError: the scan area that was given is none of its frame.
  """
  media = source.media
  content = _describe(plan, workdir, given if plan.is_one else media.path)
  content |= {
    "files": [file.name for file in media.files],
    "input_bytes": sum(file.stat().st_size for file in media.files),
    "frames": frames,
    "height": media.height,
    "width": media.width,
    # What its data set may say of how it is read.
    "npy_axes": media.npy_axes,
    "nifti_axes": media.nifti_axes,
    "window": media.window and [float(value) for value in media.window],
  }
  area = _known_area(plan, source)
  if area is not None:
    content |= _describe_area(plan, media, area)
  return _Job(source, frames, plan.out / source.name, content)


def _describe_area(plan, media, area):
  size = plan.trained.config.data.image_size
  _, box = frames_lib.fit(np.zeros((1, media.height, media.width), np.uint8), size, area.box)
  smallest = plan.smallest or measures.default_smallest(area.box)
  return {
    "scan_area": list(area.box),
    "scan_area_by": area.how,
    "network_size": size,
    "valid_box": [int(x) for x in box],
    **({"smallest_structure": smallest} if plan.is_measured else {}),
  }


def _known_area(plan, source):
  """The scan area as it was given; None where it has to be found."""
  media = source.media
  if plan.crop == "none":
    return scan_area.Area(scan_area.whole(media.height, media.width), "none")
  if plan.crop == "auto":
    return None
  if plan.crop == "learned":
    return scan_area.Area(source.box, "table") if source.box else None
  try:
    return scan_area.Area(scan_area.parse(plan.crop, media.height, media.width), "given")
  except UserError as error:
    raise UserError(
      f"--crop={plan.crop}: {media.path}: {error} Or say --crop=auto, or --crop=none."
    ) from error


def _choose_frames(clip, frames):
  if frames is None:
    return list(range(clip.n_frames))
  for frame in frames:
    if not 0 <= frame < clip.n_frames:
      raise UserError(
        f"--frames: {frame} is not a frame of {clip.path}, which has {clip.n_frames} "
        f"({'only 0' if clip.n_frames == 1 else f'0 to {clip.n_frames - 1}'})."
      )
  return sorted(set(frames))


def _choose_pleura(trained, names):
  if names is None:
    return measures.guess_pleura(trained.classes)
  for name in names:
    if name not in trained.classes:
      raise UserError(
        f"--pleura: '{name}' is no class of the models; there are {', '.join(trained.classes)}; "
        "or say --pleura=none."
      )
  return tuple(dict.fromkeys(names))


def _read_record(out, content, *, is_nested=False):
  """The record in a directory; None where there is none and it may be used (`UserError` if not).

  Args:
    out: the directory.
    content: what a record of this prediction says.
    is_nested: whether it is a clip's among those of a folder, and may hold those of others.
  """
  file = out / RECORD
  try:
    if out.exists() and not out.is_dir():
      raise UserError(f"--out={out} is a file; name a directory.")
    if not file.exists():
      entries = _own_files(out) if is_nested else out.iterdir() if out.exists() else ()
      if any(not inputs_lib.is_hidden(x.name) and not _is_leftover(x.name) for x in entries):
        raise UserError(f"--out={out} holds other things; name a new or empty directory.")
      return None
    # Older ones do not say all of it.
    return _before(content) | json.loads(file.read_text())
  except OSError as error:
    raise UserError(f"--out={out} cannot be used ({error.strerror}).") from error
  except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise UserError(f"{file} is damaged; name another --out, or remove {out}.") from error


def _is_leftover(name):
  return name == lock.NAME or _LEFTOVER.search(name)


def _check_directory(out, content, *, is_nested=False):
  """Refuses a directory that holds anything but this very prediction (`UserError`)."""
  theirs = _read_record(out, content, is_nested=is_nested)
  if theirs is None:
    return
  different = [k for k in content if k not in _STATE and theirs.get(k) != content[k]]
  if "height" in content and "scan_area" not in content and theirs["scan_area_by"] in _KNOWN:
    different.append("scan_area")
  if different:
    raise UserError(
      f"--out={out} holds another prediction (different: {', '.join(different)}); name another "
      "directory, or remove it."
    )


def _before(content):
  """What records do not say that were written before there was a choice."""
  known = {"formats": list(DEFAULT_FORMATS)}
  if "height" in content:
    box = scan_area.whole(content["height"], content["width"])
    known |= {"scan_area": list(box), "scan_area_by": "none"}
    known["input_bytes"] = content["input_bytes"]
  return known


def _is_finished(job):
  """Whether all of a clip is there as it was written; the job takes over what its record says.

  Raises:
    UserError: the input is another one than that of the record, or somebody has changed what is
      there since, which would be written over.
  """
  theirs = _read_record(job.out, job.content, is_nested=bool(job.source.name))
  if theirs is None:
    return False
  job.read_checksum()
  _check_directory(job.out, job.content)
  # Also of what was begun again and stopped: until all is there anew, its files are the old ones.
  job.content["outputs"] = theirs.get("outputs", {})
  missing = []
  for name, digest in job.content["outputs"].items():
    try:
      is_changed = sha256(job.out / name) != digest
    except OSError:  # it is not there, or the disk does not give it
      missing.append(name)
      continue
    if is_changed:
      raise UserError(
        f"{job.name}: {job.out / name} was changed since it was written (corrected by hand?); name "
        "another --out, or delete that file to have it made again."
      )
  if missing:
    # Folders of formats are written anew, as a whole.
    for path in _own_files(job.out):
      if path.as_posix() not in job.content["outputs"] and path.parent.parts:
        raise UserError(
          f"{job.name}: {missing[0]} is missing and would be made again, and {job.out / path}, "
          "which is not of the prediction, might be lost; move it, or name another --out."
        )
  if missing or not theirs["complete"]:
    return False
  job.content = theirs
  return True


def _write_record(out, content):
  write_text(out / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def main(argv):
  """Parses the command line and predicts; returns the exit code (2 after a user's mistake)."""
  return command_line.run(
    lambda: _main(argv),
    interrupted="Interrupted. The same command goes on with what is not finished.",
  )


def _main(argv):
  options = _parse(argv)
  if options is None:
    return 0
  content = run(**options)
  names = {"pictures": "picture", "clips": "clip", "frames": "frame"}
  names |= {"members": "model", "classes": "class"}
  counts = [plural(len(content[key]), noun) for key, noun in names.items() if key in content]
  print(f"{', '.join(counts)}: {options['out']}/{RECORD}")
  failed, left_out = content.get("failed", {}), content.get("left_out", {})
  if left_out:
    print(
      f"error: {plural(len(left_out), 'clip')} could not be written in every format:",
      file=sys.stderr,
    )
    for name, reasons in left_out.items():
      for form, reason in reasons.items():
        print(f"  {name}: no {form}: {reason}", file=sys.stderr)
  if failed:
    print(f"error: {plural(len(failed), 'file')} could not be read:", file=sys.stderr)
    for name, reason in failed.items():
      print(f"  {name}: {reason}", file=sys.stderr)
  return 1 if failed or left_out else 0


def _parse(argv):
  titles = (f"{name} ({one.title})" for name, one in formats_lib.FORMATS.items())
  values = command_line.texts(
    argv,
    {
      "workdir": (None, "The directory of a finished segmentation run."),
      "input": (
        None,
        f"A clip or picture ({readers.FORMATS}), or a folder of them and of folders of them.",
      ),
      "out": (None, "Where masks and overlays go: a new directory, or the same prediction's."),
      "thresholds": (None, "Which models, as .6,.5; all of the run's by default."),
      "members": (None, "Which models beside the thresholds, as soft,ordinal."),
      "frames": (None, "Which frames of one clip, counted from 0, as 0,10,20; all by default."),
      "crop": (
        None,
        "The scan area that the networks see: auto (found), none, or X,Y,WIDTH,HEIGHT in pixels; "
        "by default auto if the models learned from scan areas, else none.",
      ),
      "format": (
        ",".join(DEFAULT_FORMATS),
        f"What is written: {'; '.join(titles)}; {CSV} (a row a frame and class, and a video and "
        "class).",
      ),
      "cut": (
        ".5",
        "The probability from which on a pixel counts as of a class: in tables, and in the formats "
        "that show it (mp4, dicomseg-binary).",
      ),
      "smallest": (
        None,
        "Pixels of the smallest structure that tables count; by default "
        f"{measures.SMALLEST_SHARE:.2%} of the scan area.",
      ),
      "pleura": (None, "Classes that are pleura, or none; by default those that are called so."),
      "table": (None, "A CSV file of video (as a path in the folder), patient and day."),
    },
    about=__doc__,
    needed=(
      ("workdir", "input", "out"),
      "python -m lus_jax.predict --workdir runs/seg --input clip.mp4 --out masks",
    ),
  )
  return values and {
    "workdir": values["workdir"],
    "source": values["input"],
    "out": values["out"],
    "thresholds": command_line.numbers("thresholds", values["thresholds"], float),
    "members": command_line.names(values["members"]),
    "frames": command_line.numbers("frames", values["frames"], int),
    "crop": values["crop"],
    "formats": _formats(values["format"]),
    "cut": _cut(values["cut"]),
    "smallest": _smallest(values["smallest"]),
    "pleura": _pleura(values["pleura"]),
    "table": values["table"],
  }


def _formats(text):
  names = [name.strip().lower() for name in text.split(",")]
  for name in names:
    if name not in FORMATS:
      raise UserError(f"--format: '{name}' is no format; there are {', '.join(FORMATS)}.")
  return names


def _one(option, text, kind):
  found = command_line.numbers(option, text, kind)
  if len(found) > 1:
    raise UserError(f"--{option}={text}: write one number.")
  return found[0]


def _cut(text):
  cut = _one("cut", text, float)
  if not 0 < cut <= 1:
    raise UserError(f"--cut={text}: write a probability above 0 and at most 1, as .5.")
  return cut


def _smallest(text):
  if text is None:
    return None
  smallest = _one("smallest", text, int)
  if smallest < 1:
    raise UserError(f"--smallest={text}: write a number of pixels from 1 on.")
  return smallest


def _pleura(text):
  if text is None:
    return None
  return [] if text == "none" else command_line.names(text)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
