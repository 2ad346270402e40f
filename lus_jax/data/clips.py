"""Clips of videos: which videos there are, which frames a clip takes, and batches of clips.

A batch serves all members of a clinical sweep at once: it holds a part for every fold, because
folds train on other patients, and the channels of every segmentation model.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import parallel
from lus_jax.data import pipeline
from lus_jax.errors import UserError

# Steps for which the training order is laid out; no run gets there.
_ENDLESS = 2**31


@dataclasses.dataclass(frozen=True)
class VideoTable:
  """What is known of n videos, without their pixels.

  Attributes:
    video: [n] names.
    patient: [n] names.
    view: [n] names, '' where unknown.
    day: [n] int, -1 where unknown.
    split: [n] the data set's own split.
    n_frames: [n] int.
    values: numbers by name, [n] float each, NaN where unknown.
  """

  video: np.ndarray
  patient: np.ndarray
  view: np.ndarray
  day: np.ndarray
  split: np.ndarray
  n_frames: np.ndarray
  values: dict[str, np.ndarray]

  def __len__(self):
    return len(self.video)

  @property
  def offset(self):
    """[n] the place of each video's first frame among the frames of all."""
    return np.concatenate([[0], np.cumsum(self.n_frames)[:-1]])

  def of_patient(self, name):
    """The mean of a value over each patient's videos: a dict, NaN where none is known."""
    means = {}
    for patient in np.unique(self.patient).tolist():
      known = self.values[name][self.patient == patient]
      known = known[~np.isnan(known)]
      means[patient] = float(known.mean()) if len(known) else np.nan
    return means


def read_table(dataset, names):
  """Reads what is known of every video.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset` of videos.
    names: the numbers that are wanted: features of the videos, unknown where NaN or negative.

  Returns:
    A `VideoTable`, in the order of the splits and their examples.

  Raises:
    UserError: the videos have no such feature.
  """
  texts = ("video", "patient", "view")
  rows = []
  for split, source in dataset.splits.items():
    try:
      source = source.only(*dict.fromkeys((*texts, "day", "frames", *names)))
    except KeyError as error:
      raise UserError(
        f"the videos of {dataset.name} have no number {error}; name another with --config.target "
        "or --config.folds.balance."
      ) from error
    for example in source:
      for name in names:
        if np.ndim(example[name]) or isinstance(example[name], bytes):
          raise UserError(
            f"'{name}' of the videos of {dataset.name} is no number; name another with "
            "--config.target or --config.folds.balance."
          )
      rows.append(
        {name: example[name].decode() for name in texts}
        | {"day": int(example["day"]), "split": split, "n_frames": len(example["frames"])}
        | {f"value {name}": float(example[name]) for name in names}
      )
  columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
  values = {name: columns.pop(f"value {name}") for name in names}
  return VideoTable(
    **columns, values={name: np.where(x >= 0, x, np.nan) for name, x in values.items()}
  )


def first_recordings(table):
  """The first video of the same patient, day and view, for every video.

  Args:
    table: a `VideoTable`.

  Returns:
    [n] indices: a video's own where it is the first (by name), or where its view is unknown.
  """
  seen, first = {}, np.arange(len(table))
  for i in np.argsort(table.video, kind="stable").tolist():
    if table.view[i]:
      first[i] = seen.setdefault((table.patient[i], table.day[i], table.view[i]), i)
  return first


def sample_frames(n_frames, n_segment, generator=None):
  """The frames of a clip: one of each of N equal segments of the video.

  Args:
    n_frames: [...] frames of each video.
    n_segment: N.
    generator: a NumPy generator draws a random frame of each segment; without one it is the
      segment's middle. Videos shorter than N repeat their frames evenly.

  Returns:
    [..., N] frame numbers, rising.

  Source: TSN/TSM sampling (Lin et al., "TSM").
  """
  n = np.asarray(n_frames)[..., None]
  segment = np.arange(n_segment)
  middle = ((2 * segment + 1) * n) // (2 * n_segment)
  if generator is None:
    return middle
  low, high = segment * n // n_segment, (segment + 1) * n // n_segment
  drawn = low + np.floor(generator.random(middle.shape) * (high - low)).astype(np.int64)
  return np.where(n < n_segment, middle, drawn)


def endless(members, start, count, *, seed):
  """Draws from an endless sequence of permutations, from any place of it.

  Args:
    members: [n] what is permuted.
    start: the first place.
    count: how many places.
    seed: a tuple of integers.

  Returns:
    [count] of `members`.
  """
  n = len(members)
  places = np.arange(start, start + count)
  drawn = {
    epoch: np.random.default_rng((*seed, epoch)).permutation(members)
    for epoch in np.unique(places // n).tolist()
  }
  return np.array([drawn[place // n][place % n] for place in places.tolist()])


@dataclasses.dataclass(frozen=True)
class ClipStore:
  """All frames of all videos at the network's size, with the channels of every source.

  Attributes:
    image: [frames, h, w, 1] uint8.
    channels: a list of C arrays [frames, h, w, K] uint8.
    fold_channels: [F, c] which of them each fold's members see.
    offset: [n] each video's first frame.
    n_frames: [n].
    n_segment: N.
    cache: 'device' or 'stream'.
    mesh: of several devices (`lus_jax.parallel`), over whose data axis the clips M of a batch are
      laid; None for the default one.
  """

  image: Any
  channels: list[Any]
  fold_channels: np.ndarray
  offset: np.ndarray
  n_frames: np.ndarray
  n_segment: int
  cache: str
  mesh: Any = None

  @functools.cached_property
  def _on_device(self):
    arrays = (np.asarray(self.image), [np.asarray(x) for x in self.channels])
    return parallel.replicate(self.mesh, arrays)

  def clips(self, video, generator=None):
    """Which frames each clip takes: [..., N] places in the store."""
    frames = sample_frames(self.n_frames[video], self.n_segment, generator)
    return self.offset[video][..., None] + frames

  def load(self, batch):
    """Reads the pixels of the `frames` [F, M, N] of a batch, where they are streamed.

    Args:
      batch: a dict of arrays.

    Returns:
      The batch, if streamed with `image` [F, m, N, h, w, 1] and `channels` [F, c, m, N, h, w, K]
      uint8 of the clips m of M that this process needs.
    """
    if self.cache == "device":
      return batch
    frames = batch["frames"]
    frames = frames[:, parallel.own_rows(self.mesh, frames.shape[1])]
    channels = [
      np.stack([self.channels[c][frames[f]] for c in row])
      for f, row in enumerate(self.fold_channels)
    ]
    return batch | {"image": self.image[frames], "channels": np.stack(channels)}

  def finish(self, batch):
    """Brings a loaded batch to the devices: pixels of all M clips in place of `frames`."""
    batch = dict(batch)
    frames = batch.pop("frames")
    n = frames.shape[1]
    if self.cache == "stream":
      pixels = {
        "image": parallel.split(self.mesh, batch.pop("image"), n, axis=1),
        "channels": parallel.split(self.mesh, batch.pop("channels"), n, axis=2),
      }
    else:
      own = frames[:, parallel.own_rows(self.mesh, n)]
      places = parallel.split(self.mesh, own, n, axis=1)
      chosen = tuple(map(tuple, self.fold_channels.tolist()))
      pixels = _take(*self._on_device, places, fold_channels=chosen)
    return parallel.replicate(self.mesh, batch) | pixels

  def batches(self, plan, *, threads=4):
    """Training batches, made ahead of use.

    Args:
      plan: `step -> batch`, a pure function; its batches hold `frames`.
      threads: that read where frames are streamed.

    Returns:
      A `lus_jax.data.pipeline.Batches`.
    """
    import grain

    streamed = self.cache == "stream"
    options = grain.ReadOptions(
      num_threads=threads if streamed else 0, prefetch_buffer_size=4 if streamed else 0
    )
    steps = grain.MapDataset.range(_ENDLESS).map(lambda step: self.load(plan(step)))
    return pipeline.Batches(iter(steps.to_iter_dataset(options)), self.finish)


@functools.partial(jax.jit, static_argnames="fold_channels")
def _take(image, channels, frames, *, fold_channels):
  stacked = [
    jnp.stack([channels[c][frames[f]] for c in row]) for f, row in enumerate(fold_channels)
  ]
  return {"image": image[frames], "channels": jnp.stack(stacked)}
