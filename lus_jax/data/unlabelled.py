"""All frames of all clips of a data set's training patients, drawn on or not."""

import dataclasses

import numpy as np

from lus_jax import parallel
from lus_jax.data import clips, datasets, pipeline
from lus_jax.errors import UserError

# The only split that is ever looked at.
SPLIT = "train"
# One in so many of its patients is held out, to see what was learnt; of one patient, of the clips.
HELD_OUT = 8
# Of a clip that is held out, frames that are looked at one by one.
HELD_FRAMES = 4
# Steps for which the training order is laid out; no run gets there.
_ENDLESS = 2**31
_ORDER, _FRAMES = 3, 4


@dataclasses.dataclass(frozen=True)
class Unlabelled:
  """The clips of a data set's training patients.

  Attributes:
    image: [frames, h, w, 1] uint8, of all clips one after another.
    offset: [n] the place of each clip's first frame.
    n_frames: [n].
    box: [n, 4] the part that was in the original frame, half-open.
    patient: [n] names.
    held_out: [n] bool, the clips that nothing is learnt from.
    left_out: how many clips or frames of each other split were not looked at.
  """

  image: np.ndarray
  offset: np.ndarray
  n_frames: np.ndarray
  box: np.ndarray
  patient: np.ndarray
  held_out: np.ndarray
  left_out: dict[str, int]

  def patients(self, *, held_out):
    """Sorted names of those that are learnt from, or that are held out."""
    return sorted(set(self.patient[self.held_out == held_out].tolist()))

  def training_batches(self, batch_size, n_segment, *, seed, cache, mesh=None):
    """An endless iterator of clips of N frames, every clip as often as any other.

    Args:
      batch_size: B.
      n_segment: N; of one frame, it is any of the clip.
      seed: of the order and the frames.
      cache: 'device' or 'stream'.
      mesh: of several devices (`lus_jax.parallel`), or None.

    Returns:
      A `lus_jax.data.pipeline.Batches` of `image` [B, N, h, w, 1] uint8 and `box` [B, 4].
    """
    import grain

    parallel.check_batch(mesh, batch_size)
    learnt = np.flatnonzero(~self.held_out)
    own = parallel.own_rows(mesh, batch_size)
    on_device = parallel.replicate(mesh, self.image) if cache == "device" else None

    def plan(step):
      start = step * batch_size
      chosen = clips.endless(learnt, start, batch_size, seed=(seed, _ORDER))
      generator = np.random.default_rng((seed, _FRAMES, step))
      drawn = clips.sample_frames(self.n_frames[chosen], n_segment, generator)
      places = (self.offset[chosen][:, None] + drawn)[own]
      image = places if on_device is not None else self.image[places]
      return {"image": image, "box": self.box[chosen][own]}

    def finish(batch):
      batch = parallel.split(mesh, batch, batch_size)
      if on_device is None:
        return batch
      return batch | {"image": pipeline.take(on_device, batch["image"])}

    steps = grain.MapDataset.range(_ENDLESS).map(plan)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return pipeline.Batches(iter(steps.to_iter_dataset(options)), finish)

  def held_batches(self, batch_size, n_segment, *, most):
    """What is held out, in batches on the host; of clips of one frame, a few of each.

    The first are of clips that lie apart: they are shown.

    Args:
      batch_size: B.
      n_segment: N.
      most: clips of N frames in all, evenly taken.

    Yields:
      `image` [B, N, h, w, 1] uint8, `box` [B, 4] and `mask` [B], False of what fills the last one.
    """
    held = np.flatnonzero(self.held_out)
    each = HELD_FRAMES if n_segment == 1 else 1
    frames = clips.sample_frames(self.n_frames[held], each * n_segment)
    frames = np.sort(frames).reshape(-1, n_segment) + np.repeat(self.offset[held], each)[:, None]
    of = np.repeat(held, each)
    chosen = np.unique(np.linspace(0, len(of) - 1, min(most, len(of))).astype(int))
    chosen = np.random.default_rng(_ORDER).permutation(chosen)
    for start in range(0, len(chosen), batch_size):
      places = np.arange(start, start + batch_size)
      mask = places < len(chosen)
      places = chosen[np.minimum(places, len(chosen) - 1)]
      yield {"image": self.image[frames[places]], "box": self.box[of[places]], "mask": mask}


def open_clips(config):
  """Opens a data set of whole clips; of one that has pictures alone, these.

  Args:
    config: the `data` part of a run's config.

  Returns:
    A `datasets.Dataset`, and the name of the feature that holds its pixels.
  """
  kind = "frames" if config.name == "multirater_folder" else "videos"
  return datasets.open_dataset(config, kind), "frames" if kind == "videos" else "image"


def read(dataset, feature, *, seed, room):
  """Reads the frames of the training patients; of others nothing is read but how many there are.

  Args:
    dataset: of `open_clips`, as is `feature`.
    feature: 'frames' or 'image'.
    seed: of who is held out.
    room: bytes that the frames may take.

  Returns:
    An `Unlabelled`.

  Raises:
    UserError: there is but one clip, or the frames are more than fit.
  """
  source = dataset.splits[SPLIT].only("patient", "valid_box", feature)
  found, taken = [], 0
  for example in source:
    pixels = example[feature] if feature == "frames" else example[feature][None]
    taken += pixels.nbytes
    if taken > room:
      raise UserError(
        f"{dataset.name}: its training clips are more than the {room / 2**30:.0f} GiB of memory "
        "that there are for them; use a smaller --config.data.image_size."
      )
    found.append((example["patient"].decode(), example["valid_box"], pixels))
  if len(found) < 2:
    raise UserError(
      f"{dataset.name}: pretraining needs two clips of training patients, one of them to see what "
      f"was learnt, and there {'is 1' if found else 'are none'}; add clips."
    )
  patient = np.array([name for name, _, _ in found])
  # Of one patient alone, clips.
  unit = patient if len(set(patient.tolist())) > 1 else np.arange(len(found))
  units = np.unique(unit)
  held = np.random.default_rng(seed).permutation(units)[: max(1, len(units) // HELD_OUT)]
  n_frames = np.array([len(pixels) for _, _, pixels in found])
  return Unlabelled(
    image=np.concatenate([pixels for _, _, pixels in found]),
    offset=np.concatenate([[0], np.cumsum(n_frames)[:-1]]),
    n_frames=n_frames,
    box=np.stack([box for _, box, _ in found]).astype(np.int32),
    patient=patient,
    held_out=np.isin(unit, held),
    left_out={name: len(one) for name, one in dataset.splits.items() if name != SPLIT},
  )


def counted(unlabelled):
  """Counts of what is learnt from and of what is held out, for results and messages: a dict."""
  learnt = ~unlabelled.held_out
  return {
    "clips": int(learnt.sum()),
    "frames": int(unlabelled.n_frames[learnt].sum()),
    "held_out_clips": int(unlabelled.held_out.sum()),
  }
