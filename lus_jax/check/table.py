"""What a checked data folder holds, as tables."""

import collections
import math

import numpy as np

from lus_jax.check import folders
from lus_jax.data import selection
from lus_jax.words import plural
from tfds_builders import tables

# Different values that a row of the overview names.
_MOST = 6
HEADER = (
  "class",
  "frames",
  "pixels",
  "share",
  "to 20%",
  "to 40%",
  "to 60%",
  "to 80%",
  "<100%",
  "100%",
)


def _counted(values, none="none"):
  """Values with their numbers, the most frequent first: '350 x 350 (103), 352 x 352 (6)'."""
  counts = collections.Counter(values).most_common()
  text = ", ".join(f"{value} ({count})" for value, count in counts[:_MOST])
  return text + f", ... ({len(counts)} in all)" * (len(counts) > _MOST) if counts else none


def _percent(part, whole):
  return f"{100 * part / whole:.3g}%" if whole else "-"


def overview(result):
  """Rows of what there is: (what, text) each."""
  dataset, clips = result.dataset, result.dataset.clips
  patients = {clip.patient for clip in clips if clip.patient}
  days = {(clip.patient, clip.day) for clip in clips if clip.day >= 0}
  labels = [(clip, label) for clip in clips for label in clip.labels]
  labelled = {(clip.name, label.frame) for clip, label in labels}
  n_read = sum(seen.n_frames for seen in result.seen)
  empty = sum(
    not any(mask.pixels for mask in masks) for seen in result.seen for masks, _ in seen.labels
  )
  videos = [clip for clip in clips if clip.media.n_frames > 1]
  stills = plural(len(clips) - len(videos), "still")
  of_labels = {clip.name for clip, _ in labels}
  rows = [
    ("data set", f"{dataset.name} ({dataset.kind}), licence {dataset.licence or 'unknown'}"),
    ("patients", f"{len(patients)}" + " (stand-ins)" * _are_stand_ins(dataset)),
    ("patient-days", f"{len(days)}" if days else "no day is known"),
    ("views", _counted((clip.view for clip in clips if clip.view), "none is known")),
    (f"{dataset.noun}s", f"{len(videos)}, and {stills}" if videos else stills),
    ("frames", f"{n_read}"),
  ]
  if labels:
    rows += [
      ("labelled frames", f"{len(labelled)} of {plural(len(of_labels), dataset.noun)}"),
      (dataset.people, _counted(label.person or "unknown" for _, label in labels)),
      ("labels that show nothing", f"{empty} of {len(labels)} ({_percent(empty, len(labels))})"),
    ]
  if dataset.kind == "lus_folder":
    rows += _left_out(dataset.folder.labels if dataset.folder is not None else ())
  rows.append(
    ("frame sizes", _counted(f"{clip.media.width} x {clip.media.height}" for clip in clips))
  )
  if videos:
    rows.append(("frames per second", _counted(_rate(clip.media) for clip in videos)))
  return [
    *rows,
    ("mm per pixel", _counted(_spacing(clip.media) for clip in clips)),
    ("scan areas", _areas(dataset)),
    ("splits", _splits(result)),
  ]


def _left_out(labels):
  """Rows of what is not used by default: pre-labels, and what a consensus stands for."""
  found = folders.reasons(labels)
  prelabelled = sum(label.work is not None and bool(label.work.prelabelled) for label in labels)
  n_consensus = sum(label.is_consensus for label in labels)
  if prelabelled:
    untouched = found.count(selection.UNTOUCHED)
    yield (
      "pre-labels",
      f"{prelabelled} of {plural(len(labels), 'label')}; {untouched} of these nobody touched, and "
      "training leaves them out",
    )
  if n_consensus:
    yield (
      "consensus",
      f"{plural(n_consensus, 'label')}, in place of {found.count(selection.REPLACED)} others on "
      "their frames, which training leaves out",
    )


def _are_stand_ins(dataset):
  return getattr(dataset.folder, "patients_are_unknown", False)


def _rate(media):
  rate = media.frames_per_second
  return "unknown" if math.isnan(rate) else f"{rate:.3g}"


def _spacing(media):
  if media.spacing is None:
    return "unknown"
  vertical, horizontal = (f"{one:.3g}" for one in media.spacing)
  return vertical if vertical == horizontal else f"{horizontal} across, {vertical} down"


def _areas(dataset):
  given = sum(clip.area is not None for clip in dataset.clips)
  if not given:
    return "none is given: training sees whole frames"
  return f"given of {given} of {plural(len(dataset.clips), dataset.noun)}"


def _splits(result):
  by_table = any(clip.split for clip in result.dataset.clips)
  patient_of = {clip.name: clip.patient for clip in result.dataset.clips}
  # Those of frames are split, where there are any.
  is_by_frame = result.dataset.kind == "lus_folder" and result.dataset.classes
  noun = "label" if is_by_frame else result.dataset.noun
  counts = [
    f"{split} {plural(len({patient_of[name] for name in names}), 'patient')}, "
    f"{plural(len(names), noun)}"
    for split, names in result.splits.items()
  ]
  if not counts:
    return "not known, as training would fail"
  return f"{'; '.join(counts)}{'' if by_table else ' (by seed 0)'}"


def classes(result):
  """Rows of the classes, under `HEADER`: frames that show it, pixels, and their confidences."""
  dataset, rows = result.dataset, []
  shown, n_pixels = collections.defaultdict(set), collections.Counter()
  bins = {name: np.zeros(6, np.int64) for name in dataset.classes}
  of_all = 0
  for clip, seen in zip(dataset.clips, result.seen, strict=True):
    for label, (masks, size) in zip(clip.labels, seen.labels, strict=False):
      of_all += size
      for mask in masks:
        if mask.pixels:
          shown[mask.name].add((clip.name, label.frame))
        n_pixels[mask.name] += mask.pixels
        bins[mask.name] += mask.bins
  for name in dataset.classes:
    total = n_pixels[name]
    shares = [_percent(int(n), total) for n in bins[name]]
    rows.append([name, len(shown[name]), total, _percent(total, of_all), *shares])
  return rows


def missing(result):
  """What is missing, a line each."""
  dataset = result.dataset
  lines = []
  for column, filled in dataset.columns.items():
    if not all(filled):
      n = len(filled) - sum(filled)
      lines.append(
        f"{column}: empty in {'all' if n == len(filled) else f'{n} of {len(filled)}'} rows"
      )
  if dataset.classes:
    without = [clip.name for clip in dataset.clips if not clip.labels]
    if without:
      lines.append(f"no label: {_some(without, dataset.noun)}")
    unpainted = [row[0] for row in classes(result) if not row[1]]
    if unpainted:
      lines.append(f"never painted: {_some(unpainted, 'class')}")
  elif dataset.kind == "lus_folder" and dataset.folder is not None:
    lines.append("no labels: segmentation cannot be trained on it; videos only")
  days = {clip.patient: False for clip in dataset.clips} | {
    clip.patient: True for clip in dataset.clips if clip.day >= 0
  }
  undated = [patient for patient, known in days.items() if not known]
  if 0 < len(undated) < len(days):
    lines.append(f"no day: {_some(undated, 'patient')}")
  if not dataset.licence or dataset.licence.casefold() == "unknown":
    lines.append("no licence: say in dataset.json under which the data are")
  flat = [c.name for c, seen in zip(dataset.clips, result.seen, strict=True) if seen.n_flat]
  if flat:
    lines.append(f"frames of one grey value: in {_some(flat, dataset.noun)}")
  return lines + [
    f"{what}: {len(names)} ({tables.shown_list(names, 5)})" for what, names in dataset.odd.items()
  ]


def _some(names, noun):
  return f"{plural(len(names), noun)} ({tables.shown_list(names, 5)})"
