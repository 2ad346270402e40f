"""Batches in a fixed order, from frames on the device or streamed from disk.

Both ways give the same batches: the order depends on the seed and the number of frames alone.
"""

from concurrent import futures

import jax
import numpy as np

from lus_jax import ahead, parallel
from lus_jax.errors import UserError

# What a training or evaluation step needs of a stored frame.
FIELDS = ("image", "confidence", "labelled", "valid_box")
# The share of a device's memory that frames may take under cache='auto'.
CACHE_SHARE = 0.25


def fields_of(dataset):
  """`FIELDS`, and `ignore` where the data set has pixels that count in no class."""
  return (*FIELDS, *(["ignore"] if dataset.has_ignore else []))


def load(source, fields=FIELDS):
  """Reads a whole split into host memory: a dict of arrays with a leading example axis."""
  examples = list(source)
  return {name: np.stack([example[name] for example in examples]) for name in fields}


def choose_cache(cache, sources, fields=FIELDS):
  """Resolves cache='auto': 'device' where the frames take at most a quarter of its memory.

  Args:
    cache: 'auto', 'device' or 'stream'.
    sources: the splits that would be held.
    fields: the features that would be.

  Returns:
    'device' or 'stream'.

  Raises:
    UserError: an unknown choice.
  """
  first = next(source[0] for source in sources if len(source))
  per_frame = sum(np.asarray(first[name]).nbytes for name in fields)
  return choose_cache_for(cache, per_frame * sum(len(source) for source in sources))


def choose_cache_for(cache, n_bytes):
  """Like `choose_cache`, for so many bytes."""
  if cache not in ("auto", "device", "stream"):
    raise UserError(f"config.data.cache: '{cache}' is not known; choose auto, device or stream.")
  if cache != "auto":
    return cache
  memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 8 * 2**30)
  # All processes have to come to the same choice.
  (fits,) = parallel.from_main([n_bytes <= CACHE_SHARE * memory])
  return "device" if fits else "stream"


@jax.jit
def take(frames, indices):
  """Some of the frames on the device, a pytree of arrays, by their numbers of any shape [...]."""
  return jax.tree.map(lambda x: x[indices], frames)


class Frames:
  """One split, ready to be drawn from.

  Args:
    source: a `lus_jax.data.datasets.Source`, or a dict of arrays with a leading example axis.
    cache: 'device' keeps all frames on the device, 'stream' reads them as they are needed.
    fields: the names of the features that batches hold.
    mesh: of several devices (`lus_jax.parallel`); None for the default one. Training batches are
      laid over its data axis, and each process reads its rows of them only; in evaluation every
      device has the whole batch.
  """

  def __init__(self, source, *, cache, fields=FIELDS, mesh=None):
    arrays = isinstance(source, dict)
    self.fields, self._mesh = fields, mesh
    if not arrays:
      source = source.only(*fields)
    self.size = len(next(iter(source.values()))) if arrays else len(source)
    self._source, self._on_device = source, None
    if cache == "device":
      self._on_device = parallel.replicate(mesh, source if arrays else load(source, fields))
    elif arrays:
      self._source = [{k: v[i] for k, v in source.items()} for i in range(self.size)]

  def training_batches(self, batch_size, *, seed, threads=4, order=None, repeats=None):
    """An endless iterator of training batches.

    Every pass is a new permutation; what does not fill its last batch is left out that time.

    Args:
      batch_size: B.
      seed: of the order.
      threads: reading threads of the streaming mode.
      order: an endless iterator of the frames' numbers [B], with `get_state` and `set_state`, in
        place of the seed's; for frames on the device, where grain is not installed.
      repeats: how often a pass takes each frame, [N]; once by default.

    Returns:
      A `Batches`.

    Raises:
      UserError: fewer frames than one batch needs, or a batch that devices cannot share.
    """
    if batch_size > self.size:
      raise UserError(
        f"config.train.batch_size: {batch_size} is more than the {self.size} training frames; "
        f"use --config.train.batch_size={max(1, self.size // 2)} or less."
      )
    parallel.check_batch(self._mesh, batch_size)

    def finish(batch):
      batch = parallel.split(self._mesh, batch, batch_size)
      return batch if self._on_device is None else take(self._on_device, batch)

    if order is not None:
      return Batches(order, finish)
    import grain

    if repeats is None:
      order = grain.MapDataset.range(self.size)
    else:
      order = grain.MapDataset.source(np.repeat(np.arange(self.size), repeats))
    order = order.shuffle(seed=seed).batch(batch_size, drop_remainder=True).repeat()
    # All processes agree on the order, and each takes its own rows.
    own = parallel.own_rows(self._mesh, batch_size)
    order = order.map(lambda indices: indices[own])
    if self._on_device is None:
      order = order.map(self._read)
      options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    else:
      options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return Batches(iter(order.to_iter_dataset(options)), finish)

  def evaluation_batches(self, batch_size):
    """All examples once, in order.

    Yields:
      Batches with the fields and `mask` [B], False for the examples that fill up the last batch.
    """

    def read(start):
      indices = np.arange(start, start + batch_size)
      mask = indices < self.size
      indices = np.where(mask, indices, 0)
      if self._on_device is not None:
        return indices, mask
      with futures.ThreadPoolExecutor() as pool:
        return self._read(indices, map=pool.map), mask

    parts = map(read, range(0, self.size, batch_size))
    for batch, mask in parts if self._on_device is not None else ahead.in_thread(parts):
      if self._on_device is not None:
        batch = take(self._on_device, batch)
      else:
        batch = parallel.replicate(self._mesh, batch)
      yield batch | {"mask": mask}

  def _read(self, indices, *, map=map):
    examples = list(map(self._source.__getitem__, indices.tolist()))
    return {name: np.stack([example[name] for example in examples]) for name in self.fields}


class Batches:
  """Training batches on the device, one of them fetched ahead; its place can be saved."""

  def __init__(self, iterator, finish):
    self._iterator, self._finish = iterator, finish
    self._ahead = None

  def __iter__(self):
    return self

  def __next__(self):
    batch = self._fetch() if self._ahead is None else self._ahead[1]
    # The next batch travels to the device while the caller computes on this one.
    self._ahead = (self._iterator.get_state(), self._fetch())
    return batch

  def _fetch(self):
    return self._finish(next(self._iterator))

  def get_state(self):
    """The place of the next batch, as a JSON-serialisable dict."""
    return self._iterator.get_state() if self._ahead is None else self._ahead[0]

  def set_state(self, state):
    """Goes on where `get_state` was called."""
    self._ahead = None
    self._iterator.set_state(state)
