"""Which clips the gallery shows, and what is known of them."""

import collections
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging

from lus_jax import labels as labels_lib
from lus_jax import notices, results
from lus_jax.data import datasets, recordings, selection
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import inputs
from lus_jax.media import scan_area
from lus_jax.report import schema

# Clips of the test split: those of the best, middle and worst scores, a third each.
N_OWN = 12
# Grey levels by which a frame of a clip may differ on average from what was stored of it: two
# decoders of one video do so by less, and another picture by more. A simulated one may not.
_SAME = 2.0
# What is read of the labelled frames.
_FIELDS = ("image", "valid_box", "confidence", "labelled", "annotator", "frame")
# Where a scan area is from.
_AREAS = {
  "header": "{}, by the header",
  "motion": "{}, found by what moves",
  "still": "{}, found by its texture",
  "whole": "the whole frame",
  "table": "{}, by manifest.csv",
}
# A pixel of a label that does not count: of a class that was not labelled, or ignored.
UNKNOWN = 255


@dataclasses.dataclass(frozen=True)
class Label:
  """What was painted on a frame, at the size of the networks' frames.

  Attributes:
    frame: its number in the clip.
    annotator: who painted it, '' where unknown.
    passed: how many of the rising thresholds each pixel passes, [H, W, K] uint8, `UNKNOWN` where
      it does not count.
    iou: of every threshold's model on this frame, None where undefined or unknown.
  """

  frame: int
  annotator: str
  passed: np.ndarray
  iou: list[float | None]


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip of the gallery.

  Attributes:
    name: as the page calls it.
    recording: a `lus_jax.data.recordings.Recording`.
    box: what is shown, (top, left, bottom, right), half-open.
    facts: pairs of words: what is known of it.
    notes: sentences of what a reader should know.
    labelled: numbers of the frames that were painted, rising.
    labels: `(numbers)` yields the `Label`s of these frames, by frame.
  """

  name: str
  recording: recordings.Recording
  box: tuple[int, int, int, int]
  facts: tuple[tuple[str, str], ...] = ()
  notes: tuple[str, ...] = ()
  labelled: tuple[int, ...] = ()
  labels: Callable = lambda numbers: ()


class Candidate(NamedTuple):
  """A clip that is opened in its turn: `open()` gives the `Clip`, or raises a `UserError`."""

  name: str
  n_frames: int
  open: Callable


def of_test_split(trained, workdir):
  """The best, middle and worst clips of a run's test split, by the IoU of their labelled frames.

  Args:
    trained: the models of the thresholds, rising.
    workdir: the run's directory.

  Returns:
    A list of `Candidate`, best first, and how many more there are in the split.

  Raises:
    UserError: the run's data are not there.
  """
  rows = schema.read(workdir, "cases")["rows"]
  places = collections.defaultdict(list)
  for place in sorted(range(len(rows)), key=lambda place: rows[place]["frame"]):
    places[rows[place]["video"]].append(place)
  scores = {name: _score(trained, [rows[i] for i in mine]) for name, mine in places.items()}
  ranked = sorted(places, key=lambda name: (-scores[name], name))
  chosen = _spread(ranked)
  stored = datasets.reopen(trained.config.data, trained.dataset)
  dataset = selection.select(stored, trained.config.data).used
  examples = dataset.splits["test"].only(*_FIELDS, *(["ignore"] if dataset.has_ignore else []))
  if len(examples) != len(rows):
    raise UserError(
      f"{workdir}: its test split has {len(examples)} frames and results/cases.json {len(rows)}; "
      f"{results.MEND}"
    )
  found = _whole_clips(trained, {name: rows[places[name][0]]["patient"] for name in chosen})
  candidates = []
  for name in chosen:
    iou = "undefined" if scores[name] < 0 else f"{scores[name]:.3f}".removeprefix("0")
    ranks = (
      ("mean IoU of its labelled frames", iou),
      ("place by IoU", f"{ranked.index(name) + 1} of {len(ranked)}"),
    )
    recording, mine = found.get(name), {i: rows[i] for i in places[name]}
    n = len(recording.numbers) if recording else len({row["frame"] for row in mine.values()})
    opened = functools.partial(_own, trained, name, recording, examples, mine, ranks)
    candidates.append(Candidate(name, n, opened))
  return candidates, len(ranked) - len(chosen)


def _own(trained, name, recording, examples, rows, ranks):
  """A clip of the test split: `rows` are those of its labelled frames, by place among examples."""
  place_of = {}
  for place, row in rows.items():
    place_of.setdefault(row["frame"], place)
  recording, notes = _recording(trained, name, recording, examples, place_of)
  first = next(iter(rows.values()))
  facts = [(key, str(first[key])) for key in ("patient", "view", "day") if key in first]
  area = _area(trained, recording)
  of_area = [_told(area)] if recording.media else []

  def labels(numbers):
    for place, row in rows.items():
      if row["frame"] in numbers:
        yield _label(trained, examples[place], row)

  return Clip(
    name=name,
    recording=recording,
    box=area.box,
    facts=(*(fact for fact in facts if fact[1] not in ("", "-1")), *of_area, *ranks),
    notes=notes,
    labelled=tuple(place_of),
    labels=labels,
  )


def _area(trained, recording):
  """What is shown of a clip: beside the scan a name may stand, which is shown to nobody."""
  if recording.box:
    return scan_area.Area(recording.box, "table")
  if recording.media:
    return scan_area.find(recording.media)
  # Of the labelled frames alone, and of simulated ones, beside which nothing stands.
  if trained.config.data.name == "lus_phantom":
    return scan_area.Area(scan_area.whole(recording.height, recording.width), "whole")
  return scan_area.find_in(np.stack(list(recording.read(recording.numbers))))


def _told(area):
  return ("scan area", _AREAS[area.how].format(scan_area.text(area.box)))


def _score(trained, rows):
  """The mean over frames of the mean IoU of all thresholds; -1 where none is defined."""
  defined = [[x for x in _iou(trained, row) if x is not None] for row in rows]
  means = [np.mean(of_frame) for of_frame in defined if of_frame]
  return float(np.mean(means)) if means else -1.0


def _spread(ranked):
  """The best, middle and worst of a ranking, in its order."""
  third = N_OWN // 3
  if len(ranked) <= N_OWN:
    return ranked
  middle = (len(ranked) - third) // 2
  return [*ranked[:third], *ranked[middle : middle + third], *ranked[-third:]]


def _whole_clips(trained, patient_of):
  try:
    return recordings.find(trained.config.data, patient_of)
  except UserError as error:
    logging.warning("%s Of these clips the labelled frames alone are shown.", error)
    return {}


def _recording(trained, name, recording, examples, place_of):
  """The whole clip, or the labelled frames where it is not what was labelled; and notes of it."""
  alone = recordings.of_examples(examples, place_of)
  if recording is None:
    single = trained.config.data.name == "multirater_folder"
    return alone, () if single else ("The clip was not found: these are its labelled frames.",)
  if _shows(trained, recording, *next((n, examples[place]) for n, place in place_of.items())):
    return recording, ()
  notices.warn("%s: it is not what was labelled; its labelled frames alone are shown.", name)
  return alone, (
    "The clip has changed since it was labelled: these are its labelled frames as they were.",
  )


def _shows(trained, recording, number, example):
  """Whether a clip shows, at a number, the frame that was stored."""
  if number not in recording.numbers:
    return False
  image = np.stack(list(recording.read([number])))
  fitted, _ = frames_lib.fit(image, trained.config.data.image_size, recording.box)
  difference = np.abs(np.rint(255 * fitted[0]) - example["image"]).mean()
  return difference <= (0 if trained.config.data.name == "lus_phantom" else _SAME)


def _label(trained, example, row):
  confidence = example["confidence"] / np.float32(255)
  passed = sum(
    np.asarray(labels_lib.label(confidence, threshold)).astype(np.uint8)
    for threshold in trained.thresholds
  )
  passed[..., ~example["labelled"]] = UNKNOWN
  if "ignore" in example:
    passed[example["ignore"][..., 0] > 0] = UNKNOWN
  return Label(
    frame=int(example["frame"]),
    annotator=example["annotator"].decode(),
    passed=passed,
    iou=_iou(trained, row),
  )


def _iou(trained, row):
  """The IoU of a frame by rising threshold, of the first seed, from the results."""
  thresholds = trained.config.sweep.thresholds
  # The first seed's members of the thresholds come first, as they are in the config.
  of = dict(zip(thresholds, row["iou"].values(), strict=False))
  return [of[threshold] for threshold in trained.thresholds]


def given(trained, paths):
  """The clips that a user names.

  Args:
    trained: the models.
    paths: of anything that `lus_jax.inference.inputs.find` takes.

  Returns:
    A list of `Candidate`.
  """
  found, candidates = [], []
  for path in paths:
    try:
      inside = inputs.find(path)
    except UserError as error:
      found.append(inputs.Input("", pathlib.Path(path), error=error))
      continue
    found += inside.inputs
    for line in inside.lines:
      print(line, file=sys.stderr)
  names = collections.Counter(one.path.name for one in found)
  for one in found:
    name = one.path.name if names[one.path.name] == 1 else str(one.path)
    if one.error is not None:
      opened, n_frames = functools.partial(_refuse, one.error), 0
    else:
      opened, n_frames = functools.partial(_given, trained, name, one), one.media.n_frames
    candidates.append(Candidate(name, n_frames, opened))
  return candidates


def _refuse(error):
  raise error


def _given(trained, name, one):
  media = one.media
  area = scan_area.Area(one.box, "table") if one.box else scan_area.find(media)
  # Models see what they learned from.
  seen = area.box if trained.dataset.get("has_scan_areas") else None
  return Clip(
    name=name,
    recording=recordings.of_media(media, seen),
    box=area.box,
    facts=(
      ("size", f"{media.width} x {media.height} pixels"),
      _told(area),
    ),
  )
