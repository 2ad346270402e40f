"""Reads a whole data folder: what it holds, what training refuses of it, and what looks wrong."""

import collections
import dataclasses
import functools

from absl import logging

from lus_jax import notices, pool, problems, progress
from lus_jax.check import folders, pixels
from lus_jax.media import alike, scan_area
from lus_jax.media.deidentify import suspicious
from lus_jax.splits import SPLITS
from lus_jax.words import plural
from tfds_builders import tables

# Clips of the sheet, and labels of each.
MOST_SHOWN = 200
_LABELS = 3
# A mask of more than half of a frame where those of its class show less than a quarter.
_INVERTED, _USUAL = 0.5, 0.25
# How far a scan area may be from the usual one of its frame size: intersection over union.
_USUAL_AREA = 0.8
# Names that a warning shows.
_SHOWN = 5


@dataclasses.dataclass
class Result:
  """What was found in a data folder.

  Attributes:
    dataset: a `folders.DataSet`.
    seen: a `pixels.Seen` of each of its clips.
    splits: names of clips by split, as training splits by default; empty where it cannot.
    step: of some frames of each video, every so many one was compared with other patients'.
    shown: numbers of the clips of the sheet.
    odd_areas: numbers of clips whose scan area is not like those of others of their size.
    problems: what training refuses, a line each.
    warnings: what looks wrong, a line each.
  """

  dataset: folders.DataSet
  seen: list[pixels.Seen] = dataclasses.field(default_factory=list)
  splits: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  step: int = 1
  shown: tuple[int, ...] = ()
  odd_areas: tuple[int, ...] = ()
  problems: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)


def check(directory, *, with_pictures=False, split_unit="patient", num_processes=0):
  """Reads every file of a data folder.

  Args:
    directory: a lus_folder, a multirater_folder or COVID-BLUES.
    with_pictures: whether those of the sheet are made.
    split_unit: what training is to split by seed, 'patient' or 'frame'.
    num_processes: that read; see `pool.ordered`.

  Returns:
    A `Result`.

  Raises:
    UserError: it is no data folder.
  """
  with folders.heard() as warnings, notices.collected(), problems.collected() as refused:
    result = Result(folders.read(directory, num_processes))
    dataset = result.dataset
    may_split = not refused
    result.shown, shown = _choose(dataset) if with_pictures else ((), {})
    n_frames = sum(clip.media.n_frames for clip in dataset.clips)
    n_alike = sum(len(scan_area.looked_at(clip.media)) for clip in dataset.clips)
    result.step = max(1, -(-n_alike // alike.MOST))
    look = functools.partial(pixels.look, dataset, result.step, shown)
    with progress.bar(total=n_frames, unit="frame", what="reading", delay=1) as bar:
      clips = range(len(dataset.clips))
      for i, seen in enumerate(pool.ordered(look, clips, num_processes=num_processes)):
        result.seen.append(seen)
        refused += seen.problems
        bar.update(dataset.clips[i].media.n_frames)
    _check_masks(result)
    # Rows that were refused may be those that a split lacks.
    if may_split and dataset.clips:
      with problems.apart():
        result.splits = folders.split(dataset, split_unit)
    _warn_of_patients(result)
    result.odd_areas = _warn_of_areas(dataset)
    _warn_of_names(dataset)
  result.problems = list(dict.fromkeys(str(error) for error in refused))
  result.warnings = list(dict.fromkeys(warnings))
  return result


def _choose(dataset):
  """Which clips the sheet shows, and which labels of each: evenly, over all and within each."""

  def evenly(n, most):
    return range(n) if n <= most else [i * n // most for i in range(most)]

  clips = tuple(evenly(len(dataset.clips), MOST_SHOWN))
  return clips, {i: tuple(evenly(len(dataset.clips[i].labels), _LABELS)) for i in clips}


def _check_masks(result):
  """Warns of what all masks say together, and of those that differ from the others."""
  check = folders.mask_check(result.dataset)
  if check is None:
    return
  masks = [mask for seen in result.seen for found, _ in seen.labels for mask in found]
  for mask in masks:
    check.count(mask.measured)
  with problems.apart():
    check.warn()
  means = collections.defaultdict(list)
  for mask in masks:
    means[mask.name].append(mask.measured.share)
  usual = {name: sorted(found)[len(found) // 2] for name, found in means.items()}
  for mask in masks:
    if mask.measured.share > _INVERTED and usual[mask.name] < _USUAL:
      notices.warn(
        "%s: %.0f %% of it is object, and %.0f %% of the masks of its class '%s' in the middle; is "
        "it inverted?",
        mask.file,
        100 * mask.measured.share,
        100 * usual[mask.name],
        mask.name,
      )


def _warn_of_patients(result):
  """Warns of near-identical frames of two patients, and of frame sizes within one."""
  clips = result.dataset.clips
  groups = alike.find([seen.hashes for seen in result.seen], [clip.patient for clip in clips])
  split_of = {name: split for split, names in result.splits.items() for name in names}
  for group in groups:
    names = [f"{clips[i].name} of patient {tables.shown(clips[i].patient)}" for i in group.clips]
    sides = [
      split for split in SPLITS if split in {split_of.get(clips[i].name) for i in group.clips}
    ]
    logging.warning(
      "%s have near-identical frames (the nearest of two patients differ in %d of %d bits of their "
      "hash)%s; if they are one person's, say so, or the test is not independent.",
      tables.shown_list(names, _SHOWN),
      group.bits,
      alike.N_BITS,
      f", and stand in {' and '.join(sides)}" * (len(sides) > 1),
    )
  sizes = collections.defaultdict(dict)
  for clip in clips:
    size = f"{clip.media.width} x {clip.media.height}"
    sizes[clip.patient].setdefault(size, clip.name)
  for patient, found in sizes.items():
    if len(found) > 1 and patient:
      notices.warn(
        "the patient %s has frames of several sizes (%s).",
        tables.shown(patient),
        tables.shown_list([f"{size} of {name}" for size, name in found.items()], _SHOWN),
      )


def _warn_of_areas(dataset):
  """Warns of scan areas unlike the usual one of their frame size; returns the clips' numbers."""
  groups = collections.defaultdict(list)
  for i, clip in enumerate(dataset.clips):
    if clip.area is not None:
      groups[clip.media.height, clip.media.width].append(i)
  odd = []
  for members in groups.values():
    areas = [dataset.clips[i].area for i in members]
    usual = tuple(sorted(side)[len(side) // 2] for side in zip(*areas, strict=True))
    odd += [i for i in members if _agreement(dataset.clips[i].area, usual) < _USUAL_AREA]
  for i in sorted(odd):
    notices.warn(
      "%s: its scan area is unlike those of others of its frame size; look at it in the sheet "
      "(--html).",
      dataset.clips[i].media.path,
    )
  return tuple(sorted(odd))


def _agreement(box, other):
  """Intersection over union of two boxes."""

  def area(top, left, bottom, right):
    return max(bottom - top, 0) * max(right - left, 0)

  both = area(*map(max, box[:2], other[:2]), *map(min, box[2:], other[2:]))
  return both / (area(*box) + area(*other) - both)


def _warn_of_names(dataset):
  """Warns of names of files, patients, annotators and cells that look like a person's."""
  names = collections.defaultdict(dict)
  for clip in dataset.clips:
    for part in (clip.name, *(path.name for path in clip.media.files)):
      names["the file name"].setdefault(part)
    names["the patient"].setdefault(clip.patient)
    for label in clip.labels:
      names[f"the {dataset.people.removesuffix('s')}"].setdefault(label.person)
    for column, cell in clip.cells.items():
      names[f"the column {tables.shown(column)}, in which"].setdefault(cell)
  names["the person"] = dict.fromkeys(getattr(dataset.folder, "persons", ()))
  for what, texts in names.items():
    found = {text: why for text in texts if (why := suspicious(text))}
    for why in dict.fromkeys(found.values()):
      those = [text for text in found if found[text] == why]
      logging.warning(
        "%s: %s %s looks like %s (%s); replace such texts before you pass the data on (importing "
        "can).",
        dataset.directory,
        what,
        tables.shown(those[0]),
        why,
        plural(len(those), "such text"),
      )
