"""Ordered pairs of videos of the same lung zone: no video with itself, both orders."""

import numpy as np

# Two views of one zone look at the same height of the two lungs.
ZONES = {"L1": 1, "R1": 1, "L2": 2, "R2": 2, "L3": 3, "R3": 3}
CLASSES = ("Decrease", "Same", "Increase")


def _whole(sf_ratio):
  """Rounds to whole units, halves up: unlike NumPy's halves to even, every step is as wide."""
  sf_ratio = np.asarray(sf_ratio, np.float64)
  if np.isnan(sf_ratio).any():
    raise ValueError("an unknown S/F ratio has no change; leave these videos out")
  return np.floor(sf_ratio + 0.5).astype(np.int64)


def change(first, second):
  """The class of a pair: 0 Decrease (first > second), 1 Same, 2 Increase, in whole units.

  Args:
    first: raw S/F ratio of the first videos (0 to 477), any shape; halves are rounded up.
    second: of the second ones.

  Returns:
    int64 of the same shape.

  Raises:
    ValueError: a ratio is NaN.
  """
  return np.sign(_whole(second) - _whole(first)) + 1


def within_patient_pairs(zone, patient):
  """All ordered pairs of one zone within one patient, across days and within a day.

  Args:
    zone: [n] integers; equal means the same zone. Leave out videos of unknown view.
    patient: [n] names.

  Returns:
    [m, 2] int64 indices of the first and the second video, sorted.
  """
  zone, patient = np.asarray(zone), np.asarray(patient)
  found = [np.empty((0, 2), np.int64)]
  for name in np.unique(patient):
    own = np.flatnonzero(patient == name)
    same = (zone[own, None] == zone[own]) & ~np.eye(len(own), dtype=bool)
    found.append(own[np.argwhere(same)])
  pairs = np.concatenate(found)
  return pairs[np.lexsort(pairs.T[::-1])]


class TrainingPairs:
  """Ordered pairs of one zone, across patients and days, held as ranks and built when asked for.

  `len(pairs)` is their number, `pairs[ranks]` gives [m, 2] int64 indices of the first and the
  second video for [m] positions in 0 .. len(pairs) - 1. Neighbouring positions share their first
  video: shuffle positions before training.
  """

  def __init__(self, zone, *, cap, seed):
    """Draws at most `cap` distinct pairs, uniformly.

    Args:
      zone: [n] integers; equal means the same zone. Leave out videos of unknown view.
      cap: the largest number of pairs; all of them are kept where there are no more.
      seed: of the draw.
    """
    zone = np.asarray(zone)
    self._videos = np.argsort(zone, kind="stable")
    _, self._start, self._size = np.unique(
      zone[self._videos], return_index=True, return_counts=True
    )
    self._end = np.cumsum(self._size * (self._size - 1))
    total = int(self._end[-1]) if len(zone) else 0
    if cap >= total:
      self._ranks = np.arange(total)
    else:
      self._ranks = np.random.default_rng(seed).choice(total, cap, replace=False, shuffle=False)
      self._ranks.sort()

  def __len__(self):
    return len(self._ranks)

  def __getitem__(self, ranks):
    ranks = self._ranks[ranks]
    group = np.searchsorted(self._end, ranks, side="right")
    others = self._size[group] - 1
    first, second = np.divmod(ranks - (self._end[group] - (others + 1) * others), others)
    second += second >= first
    start = self._start[group]
    return np.stack([self._videos[start + first], self._videos[start + second]], axis=-1)


def class_counts(zone, sf_ratio):
  """How many of all ordered pairs of one zone are Decrease, Same and Increase.

  Args:
    zone: [n] integers; equal means the same zone.
    sf_ratio: [n] raw S/F ratios.

  Returns:
    [3] int64. Decrease and Increase are equally many, because both orders count.

  Raises:
    ValueError: a ratio is NaN.
  """

  def pairs(*values):
    _, sizes = np.unique(np.stack(values), axis=1, return_counts=True)
    return np.sum(sizes * (sizes - 1))

  zone, whole = np.asarray(zone, np.int64), _whole(sf_ratio)
  same = pairs(zone, whole)
  differ = (pairs(zone) - same) // 2
  return np.array([differ, same, differ])
