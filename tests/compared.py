"""Toy frames for what compares trainings: a bright square, painted in part, and a stripe."""

import numpy as np

from lus_jax.data import datasets
from lus_jax.splits import SPLITS

SIZE, CLASSES = 32, ("a", "b")
# The frames of each split of twelve.
OWN = dict(zip(SPLITS, np.split(np.arange(12), (6, 8)), strict=True))


class Source(list):
  """A split whose examples are dicts."""

  def only(self, *names):
    return Source({name: one[name] for name in names} for one in self)


def example(number, patient):
  r = np.random.default_rng(number)
  image = r.integers(1, 60, (SIZE, SIZE, 1), dtype=np.uint8)
  confidence = np.zeros((SIZE, SIZE, 2), np.uint8)
  y, x = r.integers(2, SIZE - 12, 2)
  confidence[y : y + 10, x : x + 10, 0] = r.choice([102, 255])
  confidence[:4, :, 1] = 204
  image[confidence.max(-1) > 0] += 90
  return {
    "image": image,
    "confidence": confidence,
    "labelled": np.ones(2, bool),
    "valid_box": np.int32([0, 0, SIZE, SIZE]),
    "video": b"clip",
    "frame": number,
    "patient": patient.encode(),
    "annotator": b"",
    "day": 0,
    "view": b"",
  }


def make_dataset(patients, **metadata):
  """A `Dataset` of a frame for each of `patients`, in one split."""
  source = Source(example(i, name) for i, name in enumerate(patients))
  return datasets.Dataset(
    name="toy",
    version="1",
    classes=CLASSES,
    thin=("b",),
    split_unit="patient",
    splits={"all": source},
    metadata=metadata,
  )
