"""What a checked data folder holds, as tables."""

import collections
import math

import numpy as np

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
  rows = [
    ("data set", f"{dataset.name} ({dataset.kind}), licence {dataset.licence or 'unknown'}"),
    ("patients", f"{len(patients)}" + " (stand-ins)" * _are_stand_ins(dataset)),
    ("patient-days", f"{len(days)}" if days else "no day is known"),
    ("views", _counted((clip.view for clip in clips if clip.view), "none is known")),
    ("videos", f"{len(videos)}, and {plural(len(clips) - len(videos), 'still')}"),
    ("frames", f"{n_read}"),
    (
      "labelled frames",
      f"{len(labelled)} on {plural(len({clip.name for clip, _ in labels}), 'video')}",
    ),
    (dataset.people, _counted(label.person or "unknown" for _, label in labels)),
    ("labels that show nothing", f"{empty} of {len(labels)} ({_percent(empty, len(labels))})"),
    ("frame sizes", _counted(f"{clip.media.width} x {clip.media.height}" for clip in clips)),
    ("frames per second", _counted(_rate(clip.media) for clip in videos)),
    ("scan areas", _areas(clips)),
    ("splits", _splits(result)),
  ]
  return [row for row in rows if labels or row[0] not in (dataset.people, rows[8][0])]


def _are_stand_ins(dataset):
  return getattr(dataset.folder, "patients_are_unknown", False)


def _rate(media):
  rate = media.frames_per_second
  return "unknown" if math.isnan(rate) else f"{rate:.3g}"


def _areas(clips):
  given = sum(clip.area is not None for clip in clips)
  return f"{given} of {plural(len(clips), 'video')}" if given else "the whole frame of each video"


def _splits(result):
  by_table = any(clip.split for clip in result.dataset.clips)
  patient_of = {clip.name: clip.patient for clip in result.dataset.clips}
  noun = "label" if any(clip.labels for clip in result.dataset.clips) else "video"
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
      lines.append(f"{column}: empty in {'all' if n == len(filled) else n} of {len(filled)} rows")
  if dataset.classes:
    without = [clip.name for clip in dataset.clips if not clip.labels]
    if without:
      lines.append(f"no label: {_some(without, 'video')}")
    unpainted = [row[0] for row in classes(result) if not row[1]]
    if unpainted:
      lines.append(f"never painted: {_some(unpainted, 'class')}")
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
    lines.append(f"frames of one grey value: in {_some(flat, 'video')}")
  return lines + [
    f"{what}: {len(names)} ({tables.shown_list(names, 5)})" for what, names in dataset.odd.items()
  ]


def _some(names, noun):
  return f"{plural(len(names), noun)} ({tables.shown_list(names, 5)})"
