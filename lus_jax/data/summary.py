"""What a data set holds: counts and painted confidences, for the report."""

import collections

import numpy as np

from lus_jax.data import selection as selection_lib

PROVENANCE = ("patient", "video", "frame", "annotator", "view", "day")
# Painted confidences are counted in twenty equal-width bins of (0, 1], right-closed.
N_BINS = 20
# Which of them each stored value is in, [256, N_BINS]; 0 is in none.
_BIN_OF = (np.arange(N_BINS) == (np.arange(256)[:, None] * N_BINS - 1) // 255).astype(int)


def provenance(example):
  """Where a stored frame comes from: a dict of JSON values (unknown: '' or -1)."""
  values = {name: example[name] for name in PROVENANCE}
  return {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in values.items()}


def summarize(dataset):
  """Counts patients, videos and frames, and bins the painted confidences.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset` of frames.

  Returns:
    A list of rows, one a split: `split`, `patients`, `patient_names`, `videos`, `frames`,
    `frames_with` (how many frames show a class at all, by class) and `painted` (by annotator and
    class, pixels per bin; not of what a model offered and nobody touched).
  """
  rows = []
  for split, source in dataset.splits.items():
    patients, videos, painted = set(), set(), {}
    frames_with = np.zeros(len(dataset.classes), int)
    more = ("prelabelled", "touched") if dataset.has_provenance else ()
    for example in source.only(*PROVENANCE, "confidence", *more):
      origin = provenance(example)
      patients.add(origin["patient"])
      videos.add(origin["video"])
      confidence = example["confidence"]
      frames_with += (confidence > 0).any((0, 1))
      counts = painted.setdefault(
        origin["annotator"], np.zeros((len(dataset.classes), N_BINS), int)
      )
      own = ~selection_lib.untouched_classes(example) if more else np.ones(len(counts), bool)
      counts += _binned(confidence) * own[:, None]
    rows.append(
      {
        "split": split,
        "patients": len(patients),
        "patient_names": sorted(patients),
        "videos": len(videos),
        "frames": len(source),
        "frames_with": dict(zip(dataset.classes, frames_with.tolist(), strict=True)),
        "painted": {
          annotator: dict(zip(dataset.classes, counts.tolist(), strict=True))
          for annotator, counts in sorted(painted.items())
        },
      }
    )
  return rows


def _binned(confidence):
  """Pixels above 0 of each class by bin, [K, N_BINS]."""
  levels = np.stack(
    [np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(confidence, -1, 0)]
  )
  return levels @ _BIN_OF


class _Painter:
  """What one annotator painted, counted label by label."""

  def __init__(self, n_classes):
    self._counts = collections.Counter()
    self._painted = np.zeros((n_classes, N_BINS), int)
    self._seconds, self._days = [], []

  def add(self, example, *, is_used):
    """Counts a label."""
    own = np.ones(len(self._painted), bool)
    if "touched" in example:
      own = ~selection_lib.untouched_classes(example)
      self._days += [example["time"].decode()[:10]] if example["time"] else []
      if not np.isnan(example["seconds"]):
        self._seconds.append(float(example["seconds"]))
      prelabelled = bool(example["prelabelled"].any())
      untouched = selection_lib.is_untouched(example)
      self._counts.update(
        prelabelled=prelabelled, untouched=untouched, touched=prelabelled and not untouched
      )
    is_consensus = selection_lib.is_consensus(example)
    self._counts.update(labels=1, used=is_used, consensus=is_consensus)
    self._painted += _binned(example["confidence"]) * own[:, None]

  def summary(self, classes, *, with_provenance):
    """A dict of JSON values; see `painters`."""
    known = ["labels", "used", "consensus"]
    found = {}
    if with_provenance:
      known += ["prelabelled", "touched", "untouched"]
      found = {
        "timed": len(self._seconds),
        "seconds": round(sum(self._seconds)) if self._seconds else None,
        "median_seconds": int(np.median(self._seconds) + 0.5) if self._seconds else None,
        "first": min(self._days, default=None),
        "last": max(self._days, default=None),
      }
    painted = dict(zip(classes, self._painted.tolist(), strict=True))
    return {name: int(self._counts[name]) for name in known} | found | {"painted": painted}


def painters(selection):
  """Who painted what, over all labels that are stored, used or not.

  Args:
    selection: of `lus_jax.data.selection.select`.

  Returns:
    A dict: `annotators`, a row each: `annotator`, `labels`, `used`, `consensus` (how many labels
    are one), `painted` (by class, pixels per bin, of what a model offered only what a hand
    changed); and where it is known how masks came to be, `prelabelled`, `touched` and `untouched`
    of these, `seconds` and `median_seconds` of the `timed` labels, `first` and `last` (days); and
    `tools`, a row each of `annotator`, `tool`, `protocol`, `prelabel`: `labels`. Empty where there
    is one annotator, and nothing else is known.
  """
  dataset = selection.stored
  sources = [source.only("annotator") for source in dataset.splits.values()]
  known = {example["annotator"] for source in sources for example in source}
  # Of several raters of one image there is a section of its own.
  if dataset.raters or not (dataset.has_provenance or len(known) > 1):
    return {}
  names = ["annotator", "confidence"]
  if dataset.has_provenance:
    names += ["prelabelled", "touched", "consensus", "seconds", "time"]
    names += ["tool", "protocol", "prelabel"]
  rows, tools = {}, collections.Counter()
  for split, source in dataset.splits.items():
    for example, why in zip(source.only(*names), selection.reasons[split], strict=True):
      row = rows.setdefault(example["annotator"].decode(), _Painter(len(dataset.classes)))
      row.add(example, is_used=why is None)
      if dataset.has_provenance:
        words = (example[name].decode() for name in ("annotator", "tool", "protocol", "prelabel"))
        tools[tuple(words)] += 1
  annotators = [
    {"annotator": name} | row.summary(dataset.classes, with_provenance=dataset.has_provenance)
    for name, row in sorted(rows.items())
  ]
  keys = ("annotator", "tool", "protocol", "prelabel")
  with_tools = [
    dict(zip(keys, (name, *(word or None for word in words)), strict=True)) | {"labels": n}
    for (name, *words), n in sorted(tools.items())
  ]
  return {"annotators": annotators, "tools": with_tools}
