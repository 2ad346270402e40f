"""The frames that `lus_jax.benchmarks.quality` compares on, and who is tested on which of them."""

import dataclasses
import functools

import jax
import numpy as np

from lus_jax import files, labels
from lus_jax.data import augment, datasets, folds, pipeline, selection
from lus_jax.errors import UserError
from lus_jax.splits import SPLITS

PHANTOM = "lus_phantom"
SOFT = "soft"
# Fewer patients with labels than this are no three sides: then it is split by time.
LEAST = len(SPLITS)


@dataclasses.dataclass(frozen=True)
class Frames:
  """All labelled frames of a data set, as every side sees them.

  Attributes:
    dataset: a `lus_jax.data.datasets.Dataset` with one split, 'all'.
    image: [N, H, W, 1] uint8, letterboxed.
    target: what is learned, [N, H, W, K] float32: 0 or 1, or the raters' mean.
    where: which pixels count, bool, [N, H, W, K].
    patient: [N] names.
    raters: [N, R, H, W, K] uint8, and who drew, [N, R] bool; None without several raters.
  """

  dataset: datasets.Dataset
  image: np.ndarray
  target: np.ndarray
  where: np.ndarray
  patient: np.ndarray
  raters: tuple[np.ndarray, np.ndarray] | None

  @functools.cached_property
  def exclusive(self):
    """Whether a softmax fits: every pixel is of one class or of none, or counts in no class.

    Where it counts in some of them, as in frames that not all classes are labelled in, a softmax
    could learn nothing from it.
    """
    whole = ((self.target == 0) | (self.target == 1)).all() and (self.target.sum(-1) <= 1).all()
    return bool(whole and (self.where == self.where[..., :1]).all())


def name_of(directory):
  """The `config.data.name` of a folder, or of the phantom."""
  if directory == PHANTOM:
    return PHANTOM
  path = files.expanded(directory, "--data")
  if not path.is_dir():
    raise UserError(
      f"--data={directory}: there is no such folder; name one that an importer wrote, or {PHANTOM}."
    )
  return "multirater_folder" if (path / "raters").is_dir() else "lus_folder"


def split_unit(name, directory):
  """What a folder can be split by: 'patient', or 'frame' where too few patients have labels."""
  if name == PHANTOM:
    return "patient"
  if name == "multirater_folder":
    from tfds_builders.multirater_folder import manifest

    patients = {image.patient for image in manifest.read_folder(directory).images}
  else:
    from tfds_builders.lus_folder import manifest

    patients = {label.video.patient for label in manifest.read_folder(directory).labels}
  return "patient" if len(patients) >= LEAST else "frame"


def opened(config):
  """Opens the data set that `config`, the `data` part of a run's config, names.

  Returns:
    A `Dataset` of one split, 'all', and the frame numbers of its own splits by name.

  Raises:
    UserError: the data are not in order.
  """
  dataset = selection.select(datasets.open_dataset(config, "frames"), config).used
  sources = [dataset.splits[name] for name in SPLITS]
  ends = np.cumsum([len(source) for source in sources])
  own = dict(zip(SPLITS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
  whole = datasets.Subset(
    sources, [(number, i) for number, source in enumerate(sources) for i in range(len(source))]
  )
  return dataclasses.replace(dataset, splits={"all": whole}), own


def read(dataset, label):
  """Reads all frames of a data set.

  Args:
    dataset: of `opened`.
    label: the confidence that is enough, in [0, 1], or `SOFT` for the confidence itself.

  Returns:
    `Frames`.
  """
  (whole,) = dataset.splits.values()
  names = pipeline.fields_of(dataset)
  arrays = pipeline.load(whole.only(*names), names)
  inputs = jax.jit(augment.prepare)(arrays)
  confidence = np.asarray(inputs["confidence"])
  target = confidence if label == SOFT else np.asarray(labels.label(confidence, label))
  raters = None
  if dataset.raters:
    drawn = pipeline.load(whole.only("raters", "drawn"), ("raters", "drawn"))
    raters = drawn["raters"], drawn["drawn"]
  where = np.asarray(inputs["where"])
  return Frames(
    dataset=dataset,
    image=arrays["image"],
    target=np.where(where, target, 0).astype(np.float32),
    where=where,
    patient=np.array([one["patient"].decode() for one in whole.only("patient")]),
    raters=raters,
  )


def moments(dataset):
  """Where each frame stands in time: [N] tuples of video and frame."""
  (source,) = dataset.splits.values()
  return [(one["video"].decode(), int(one["frame"])) for one in source.only("video", "frame")]


def time_blocks(moments, n):
  """Cuts frames into blocks that follow each other, so that what is tested is a time of its own.

  Args:
    moments: of `moments`; labels of one frame stay together.
    n: how many blocks.

  Returns:
    The block of each frame, [N] names that sort in time.

  Raises:
    UserError: there are fewer labelled frames than blocks.
  """
  order = sorted(set(moments))
  if len(order) < n:
    raise UserError(f"--folds={n}: there are {len(order)} labelled frames only; use fewer folds.")
  block = {
    one: f"block {i:03d}" for i, part in enumerate(np.array_split(np.arange(len(order)), n))
    for one in (order[j] for j in part)
  }  # fmt: skip
  return np.array([block[one] for one in moments])


def rotate(units, n, *, seed):
  """Folds in which every unit is tested once: fold i tests, the next one validates, the rest train.

  Args:
    units: [N], whose each frame is: a patient or a block of time.
    n: how many folds, at most as many as units.
    seed: of the deal; blocks of time are dealt in their order where there are n of them.

  Returns:
    A list of n dicts of sorted frame numbers by split.

  Raises:
    UserError: fewer than three folds or units.
  """
  names = sorted(set(units.tolist()))
  n = min(n, len(names))
  if n < LEAST:
    raise UserError(
      f"--folds={n}: training, validation and test need {LEAST} at least, and as many patients or "
      "blocks of time."
    )
  found = []
  for fold in folds.make_folds(
    dict.fromkeys(names, ()), test=(), n_folds=n - 1, cv="rotate", seed=seed
  ):
    found.append({split: np.flatnonzero(np.isin(units, getattr(fold, split))) for split in SPLITS})
  return found


def regrouped(dataset, fold):
  """A data set of one split, of which each side of a fold becomes one."""
  (source,) = dataset.splits.values()
  return dataclasses.replace(
    dataset,
    splits={
      split: datasets.Subset([source], [(0, int(i)) for i in fold[split]]) for split in SPLITS
    },
  )
