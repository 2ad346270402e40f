"""What the frozen segmentation models see in every frame of every video, computed once.

The maps are kept as uint8 in memory-mapped files, named by what they were made from: the same
models and videos find them again, and other ones never do.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil

import jax
import numpy as np
from absl import logging
from jax import numpy as jnp

from lus_jax import ahead, lock, parallel, progress
from lus_jax import files as files_lib
from lus_jax.errors import UserError
from lus_jax.files import write_text
from lus_jax.inference.trained import Trained
from lus_jax.models import layers

DIRECTORY = "channels"
# Frames that go through the networks together, and batches between two notes of how far we are.
_BATCH, BATCHES_PER_NOTE = 32, 16


@dataclasses.dataclass(frozen=True)
class Crossed:
  """Models of one recipe, of which each video is seen by one: by one that did not learn from it.

  Attributes:
    models: those of all videos.
    of_video: for each video of the table the number of its model.
  """

  models: list[Trained]
  of_video: np.ndarray

  def only(self, numbers):
    """These views alone, by their number."""
    return dataclasses.replace(self, models=[one.only(numbers) for one in self.models])

  @property
  def fingerprints(self):
    """As of `Trained`: for every view of what all of them see of these videos."""
    if len(self.models) == 1:
      return self.models[0].fingerprints
    return [
      hashlib.sha256(repr((each, self.of_video.tolist())).encode()).hexdigest()[:12]
      for each in zip(*(one.fingerprints for one in self.models), strict=True)
    ]


class Growing:
  """An array file that is being filled from its start; it gets its name once it is full."""

  def __init__(self, file, shape):
    self.file, self._shape = file, shape
    self._partial = file.with_suffix(".part")
    self._note = file.with_suffix(".part.json")
    self._measured = file.with_suffix(".json")
    self.array = None

  def done(self):
    """How many of its rows are there; a full file is checked against its checksum."""
    if self.file.exists():
      problem = self._damage()
      if problem is None:
        return self._shape[0]
      logging.warning("%s is damaged (%s); it is made again.", self.file, problem)
      self.file.unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError):
      note = json.loads(self._note.read_text())
      if note["shape"] == list(self._shape) and self._partial.exists():
        return note["done"]
    return 0

  def _damage(self):
    try:
      if not self._measured.exists():  # of an older version
        np.load(self.file, mmap_mode="r")
        return None
      return files_lib.damage(self.file.parent, json.loads(self._measured.read_text()))
    except UserError:  # is a ValueError itself
      raise
    except OSError as error:
      raise files_lib.unreadable(self.file, error) from error
    except (ValueError, EOFError, TypeError, AttributeError):
      return "it is not whole"

  def open(self, rows):
    """Opens it for writing from `rows` on."""
    self.file.parent.mkdir(parents=True, exist_ok=True)
    self.array = np.lib.format.open_memmap(
      self._partial, mode="r+" if rows else "w+", dtype=np.uint8, shape=self._shape
    )
    if hasattr(os, "posix_fallocate"):
      # A disk that fills up while an array is mapped would end the process without a word.
      with open(self._partial, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(self._partial))
    self.note(rows)

  def note(self, rows):
    """Says on disk that so many rows are there."""
    self.array.flush()
    write_text(self._note, json.dumps({"shape": list(self._shape), "done": rows}))

  def close(self):
    """Gives the full file its name."""
    self.array.flush()
    self.array = None
    measured = {self.file.name: [self._partial.stat().st_size, files_lib.sha256(self._partial)]}
    write_text(self._measured, json.dumps(measured))
    self._partial.replace(self.file)
    self._note.unlink()


def resized(x, size):
  """Frames or maps [B, H, W, C], 0 to 255, as uint8 [B, size, size, C]."""
  return jnp.rint(layers.resize(x.astype(jnp.float32), size, size)).astype(jnp.uint8)


def make_maps(trained, size):
  """The maps of one view: `(weights, member, frames, where) -> uint8 [B, size, size, K]`."""

  def maps(weights, member, frames, where):
    probability = trained.probability(weights, member, frames.astype(jnp.float32) / 255, where)
    return resized(255 * probability, size)

  return maps


def make(dataset, table, crossed, *, size, workdir, keep=()):
  """Makes, or finds, the frames and channels of every video at the size of the video network.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset` of videos, at the size the models were trained at.
    table: its `lus_jax.data.clips.VideoTable`.
    crossed: a list of `Crossed`; the models of all are of one recipe.
    size: h = w, in pixels.
    workdir: the run's directory; an interrupted call goes on where it was.
    keep: fingerprints of other models whose maps stay; those of models unknown here are removed.

  Returns:
    `image` [frames, h, w, 1], a list (`crossed`) of lists (thresholds) of [frames, h, w, K], and
    the simulator's true masks [frames, h, w, K] (None of real data): uint8, 255 = 1, memory-mapped.

  Raises:
    UserError: the disk is too small, or refuses.
  """
  directory = pathlib.Path(workdir) / DIRECTORY
  with (
    files_lib.writing(f"{directory}: the channels", "here"),
    lock.hold(directory, wait="makes channels there"),
  ):
    return _make(dataset, table, crossed, directory, size=size, keep=keep)


def _make(dataset, table, crossed, directory, *, size, keep):
  n, classes = int(table.n_frames.sum()), len(crossed[0].models[0].classes)
  digest = hashlib.sha256(
    repr((dataset.version, table.video.tolist(), table.n_frames.tolist(), size)).encode()
  )
  directory /= digest.hexdigest()[:12]

  image = Growing(directory / "frames.npy", (n, size, size, 1))
  truth = None
  if dataset.simulated:
    truth = Growing(directory / "truth.npy", (n, size, size, classes))
  keys = [one.fingerprints for one in crossed]
  by_key = {
    key: Growing(directory / f"{key}.npy", (n, size, size, classes)) for row in keys for key in row
  }
  maps = [[by_key[key] for key in row] for row in keys]
  files = {f.file: f for f in (image, truth, *by_key.values()) if f is not None}
  known = {file.stem for file in files} | set(keep)
  for file in list(directory.glob("*")) if parallel.is_main() else []:
    # Whole or partial: what models saw that are no more.
    if file.name.partition(".")[0] not in known:
      file.unlink()

  # It reads all there is, and removes what is damaged.
  done = parallel.from_main([f.done() if parallel.is_main() else 0 for f in files.values()])
  needed = sum(np.prod(f._shape) for f, d in zip(files.values(), done, strict=True) if not d)
  directory.mkdir(parents=True, exist_ok=True)
  if needed:
    print(f"the channels take {needed / 2**30:.2f} GiB in {directory}")
  if needed > shutil.disk_usage(directory).free:
    raise UserError(
      f"{directory}: the channels of {n} frames take {needed / 2**30:.1f} GiB, more than is free; "
      "name another --workdir, fewer --config.channels.thresholds or a smaller "
      "--config.clip.image_size."
    )
  if min(done) < n:
    unfinished = [f for f, d in zip(files.values(), done, strict=True) if d < n]
    arrays = {"image": image, "truth": truth, "maps": maps}
    _fill(dataset, table, crossed, unfinished, min(done), size=size, **arrays)

  def opened(growing):
    return np.load(growing.file, mmap_mode="r")

  return (
    opened(image),
    [[opened(f) for f in row] for row in maps],
    None if truth is None else opened(truth),
  )


def _fill(dataset, table, crossed, unfinished, start, *, size, image, truth, maps):
  # All processes compute, the main one writes.
  start -= start % _BATCH
  n = int(table.n_frames.sum())
  growing = unfinished if parallel.is_main() else []
  for f in growing:
    f.open(start)
  pending = {f.file for f in unfinished}

  resize = jax.jit(functools.partial(resized, size=size))
  # All are of one recipe, whose program they share.
  first = crossed[0].models[0]
  segment = first.sweep.compile(make_maps(first, size))
  wanted = [any(f.file in pending for f in row) for row in maps]
  video = np.repeat(np.arange(len(table)), table.n_frames)

  def look(one, at, batch):
    """What its models see of a batch: the number of each frame's model, and maps by number."""
    which = one.of_video[video[at : at + batch["count"]]]
    seen = {
      m: segment(
        one.models[m].weights, one.models[m].sweep.members, batch["frames"], batch["where"]
      )
      for m in np.unique(which).tolist()
    }
    return which, seen

  def started():
    batches = read_frames(dataset, table, start, with_truth=truth is not None)
    for at, batch in ahead.in_thread(batches):
      pictures = ((image, "frames"), (truth, "truth"))
      shown = [(f, resize(batch[name])) for f, name in pictures if f in growing]
      seen = [
        look(one, at, batch) if any_ else None for one, any_ in zip(crossed, wanted, strict=True)
      ]
      yield at, batch["count"], shown, seen

  with progress.bar(total=n, initial=start, unit="frame", what="segmentation channels") as bar:
    for i, (at, m, shown, seen) in enumerate(ahead.dispatched(started())):
      found = [(f, np.asarray(x)) for f, x in shown]
      for row, results in zip(maps, seen, strict=True):
        if results is not None:
          found += zip(row, _by_frame(first.sweep, *results), strict=True)
      for f, x in found:
        if f in growing:
          f.array[at : at + m] = x[:m]
      if (i + 1) % BATCHES_PER_NOTE == 0:
        for f in growing:
          f.note(at + m)
      if at == start:
        progress.restart(bar)
      bar.update(m)
  for f in growing:
    f.close()
  parallel.sync("channels")


def _by_frame(sweep, which, seen):
  """The maps [m, h, w, K] uint8 of every view, each frame's of its own model."""
  held = {number: sweep.to_host(found) for number, found in seen.items()}
  if len(held) == 1:
    return next(iter(held.values()))
  mixed = []
  for each in zip(*held.values(), strict=True):
    maps = np.empty((len(which), *each[0].shape[1:]), each[0].dtype)
    for number, view in zip(held, each, strict=True):
      maps[which == number] = view[: len(which)][which == number]
    mixed.append(maps)
  return mixed


def read_frames(dataset, table, start, *, with_truth):
  """Yields the frames of all videos from `start` on, in batches of one size."""
  fields = ("frames", "valid_box", *(["truth"] if with_truth else []))
  held, at = [], start
  ends = np.cumsum(table.n_frames)
  sources = [source.only(*fields) for source in dataset.splits.values()]
  places = [(source, i) for source in sources for i in range(len(source))]
  for end, (source, i) in zip(ends.tolist(), places, strict=True):
    if end <= start:
      continue
    example = source[i]
    n = len(example["frames"])
    first = max(0, start - (end - n))
    top, left, bottom, right = example["valid_box"]
    where = np.zeros((n, *example["frames"].shape[1:3], 1), bool)
    where[:, top:bottom, left:right] = True
    arrays = {name: example[name][first:] for name in fields if name != "valid_box"}
    held.append(arrays | {"where": where[first:]})
    if sum(len(x["frames"]) for x in held) >= _BATCH:
      joined = {name: np.concatenate([x[name] for x in held]) for name in held[0]}
      whole = len(joined["frames"]) // _BATCH * _BATCH
      for j in range(0, whole, _BATCH):
        yield at, {name: x[j : j + _BATCH] for name, x in joined.items()} | {"count": _BATCH}
        at += _BATCH
      held = [{name: x[whole:] for name, x in joined.items()}]
  joined = {name: np.concatenate([x[name] for x in held]) for name in held[0]}
  count = len(joined["frames"])
  if count:
    padding = np.zeros(_BATCH, int)
    padding[:count] = np.arange(count)
    yield at, {name: x[padding] for name, x in joined.items()} | {"count": count}
