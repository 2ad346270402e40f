"""What a data set holds: counts and painted confidences, for the report."""

import numpy as np

PROVENANCE = ("patient", "video", "frame", "annotator", "view", "day")
# Painted confidences are counted in twenty equal-width bins of (0, 1], right-closed.
N_BINS = 20


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
    class, pixels per bin).
  """
  rows = []
  for split, source in dataset.splits.items():
    patients, videos, painted = set(), set(), {}
    frames_with = np.zeros(len(dataset.classes), int)
    for example in source.only(*PROVENANCE, "confidence"):
      origin = provenance(example)
      patients.add(origin["patient"])
      videos.add(origin["video"])
      confidence = example["confidence"]
      frames_with += (confidence > 0).any((0, 1))
      counts = painted.setdefault(
        origin["annotator"], np.zeros((len(dataset.classes), N_BINS), int)
      )
      for k in range(len(dataset.classes)):
        values = confidence[..., k][confidence[..., k] > 0].astype(int)
        counts[k] += np.bincount((values * N_BINS - 1) // 255, minlength=N_BINS)
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
