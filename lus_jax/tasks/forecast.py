"""What a study takes, told before it runs: time the paper's way and ours, and room on disk."""

import dataclasses
import math

import jax
import numpy as np

from lus_jax import models
from lus_jax.data import clips, folds
from lus_jax.errors import UserError
from lus_jax.models import designs, flops
from lus_jax.report import cells
from lus_jax.tasks.clinical import questions
from lus_jax.tasks.clinical import train as clinical
from lus_jax.tasks.segmentation import train as segmentation
from lus_jax.training import estimate, hardware, peak, state
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import choose_strategy

# Pairs of the paper, and ours (`config.pairs`): what the two ways differ in, in time.
WAYS = {"sampled": "the paper's way", "in_batch": "our way"}
# Of checkpoints: the weights, Adam's two moments and the best weights; how many of them are kept.
_COPIES, _KEPT = 4, 2
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a study.

  Attributes:
    name: of it.
    models: that are trained.
    images: model-images, or model-clips, of all its training by way.
    flop: of one of them, forward and backward.
    network: 'segmentation' or 'video', of `estimate.SHARES`.
    dtype: the compute type.
  """

  name: str
  models: int
  images: dict[str, float]
  flop: float
  network: str
  dtype: str


def of_study(configs, device, rate=None, times=1):
  """A table of a study's parts with the time of each, and its room on disk.

  Args:
    configs: of its parts by name (`study.parts`), checked.
    device: a `hardware.Device`.
    rate: `dtype -> FLOP/s` of matrix products; measured by default.
    times: how often it is repeated. (Side by side on one device, whose rate this is, they take as
      long as one after the other.)

  Returns:
    Text of several lines; empty where the data are not the phantom's, whose videos are known
    without being looked at, or where all of it is short.
  """
  config = configs.get("segmentation")
  if config is None or config.data.name != "lus_phantom":
    return ""
  table = phantom_table(config.data.phantom)
  first = next((part for name, part in configs.items() if name != "segmentation"), None)
  splits = folds.of_videos(table, first.folds) if first else ()
  parts, disk = _segmentation(config, first, table, splits, device)
  for name, part in configs.items():
    if name != "segmentation":
      found, size = _clinical(name, part, config, table, splits, device)
      parts.append(found)
      disk["checkpoints"] += size
  flop = [sum(part.images[way] * part.flop for part in parts) for way in WAYS]
  if not max(flop) >= estimate.LONG_WORK or any(map(math.isnan, flop)):
    return ""
  return _text(parts, disk, configs, device, rate or peak.matmul_rate, times)


def phantom_table(phantom):
  """The `clips.VideoTable` of a phantom's videos, of which none is simulated.

  Raises:
    UserError: as `phantom_config` does.
  """
  from tfds_builders import records
  from tfds_builders.lus_phantom import cohort, phantom_config

  known = phantom_config("frames", 64, 64, **phantom)
  split_of = records.assign_splits(cohort.patient_names(known.n_patients), known.seed)
  videos = [
    (split, video)
    for patient, split in split_of.items()
    for video in cohort.videos_of(patient, known)
  ]
  columns = {
    name: np.array([getattr(video, name) for _, video in videos])
    for name in ("patient", "view", "day", "sf_ratio", "readmitted_30d")
  }
  values = {name: columns.pop(name).astype(float) for name in ("sf_ratio", "readmitted_30d")}
  return clips.VideoTable(
    **columns,
    video=np.array([video.name for _, video in videos]),
    split=np.array([split for split, _ in videos]),
    n_frames=np.full(len(videos), known.n_frames),
    values=values,
  )


def clips_of_training(config, table, splits):
  """Clips that one model of a clinical task is trained on, all epochs together, by way.

  Returns:
    A dict with the keys of `WAYS`; tasks without pairs have the same for both.

  Raises:
    UserError: as the task itself does; a way that is not taken and cannot be is NaN.
  """
  found = {}
  for way in WAYS if "pairs" in config else ("",):
    own = config.copy_and_resolve_references()
    with own.unlocked():
      if way:
        own.pairs = way
    try:
      task = questions.TASKS[config.task](table, splits, own)
    except UserError:
      if way in ("", config.get("pairs")):
        raise
      # Too few videos for a way that is not taken.
      found[way] = math.nan
      continue
    validated = max(len(task.videos(f, "validation")) for f in range(len(splits)))
    an_epoch = task.steps_per_epoch * task.clips_per_batch + validated / flops.TRAINING
    found[way] = an_epoch * config.train.epochs
  return found if "" not in found else dict.fromkeys(WAYS, found[""])


def _segmentation(config, task, table, splits, device):
  """The `Part`s of the segmentation and of a task's channels, and bytes on disk by name."""
  from tfds_builders.lus_phantom import simulator

  objective, k = Objective(config), len(simulator.CLASSES)
  sizes = {split: int((table.split == split).sum()) for split in ("train", "validation")}
  config, _ = hardware.resolve(
    config,
    device,
    models=objective.n_models,
    frames=sizes["train"],
    classes=k * objective.head,
    strategy=choose_strategy(config.sweep.strategy),
  )
  flop = segmentation.training_flop(config, classes=k * objective.head)
  # Where it says, epochs are as long whoever the patients are.
  an_epoch = config.train.get("epoch_steps", 0) * config.train.batch_size
  images = config.train.epochs * (
    (an_epoch or sizes["train"]) + sizes["validation"] / flops.TRAINING
  )
  images *= objective.n_models
  sets, n_models, frames = 1, objective.n_models, int(table.n_frames.sum())
  if task and task.folds.leakage == "strict":
    # A sweep a fold, and inner ones that each leave a part of its patients out.
    sets, each, inner = len(splits), len(config.sweep.thresholds), task.folds.get("inner", 0)
    of_folds = sets * an_epoch or sum(
      sum(p in fold.train for p in table.patient.tolist()) for fold in splits
    )
    n_models += sets * (1 + inner) * each
    images += config.train.epochs * each * of_folds * max(1, inner)
  common = {"network": "segmentation", "dtype": config.model.dtype}
  _, parameters = designs.segmentation(config.model).sizes
  parts = [Part("segmentation", n_models, dict.fromkeys(WAYS, images), flop, **common)]
  copies = _COPIES + (segmentation.averaging_of(config) > 0)
  disk = {"checkpoints": _KEPT * copies * 4 * n_models * parameters * config.model.width**2}
  if task is None:
    return parts, disk
  thresholds = len(task.channels.thresholds) or len(config.sweep.thresholds)
  parts.append(
    Part(
      "channels",
      sets * thresholds,
      dict.fromkeys(WAYS, sets * thresholds * frames / flops.TRAINING),
      flop,
      **common,
    )
  )
  maps = sets * thresholds + ("true" in task.channels.ablations)
  return parts, {"channels": frames * task.clip.image_size**2 * (1 + k * maps)} | disk


def _clinical(name, config, segmentation_config, table, splits, device):
  from tfds_builders.lus_phantom import simulator

  config, _ = hardware.resolve(config, device, models=1)
  task = questions.TASKS[config.task]
  in_channels = 1 + len(simulator.CLASSES)
  thresholds = len(config.channels.thresholds) or len(segmentation_config.sweep.thresholds)
  members = (thresholds + len(config.channels.ablations)) * len(splits)
  network = state.outline(
    lambda: models.build_video_model(
      config.model, in_channels=in_channels, outputs=task.outputs, hidden=task.hidden, seed=0
    )
  )
  parameters = sum(x.size for x in jax.tree.leaves(network.params))
  part = Part(
    name,
    members,
    {way: members * n for way, n in clips_of_training(config, table, splits).items()},
    clinical.training_flop(config, task, in_channels),
    "video",
    config.model.dtype,
  )
  return part, _KEPT * _COPIES * 4 * members * parameters


def _text(parts, disk, configs, device, rate, times):
  pairs = next((part.pairs for part in configs.values() if "pairs" in part), None)
  # Without pairs there is one way.
  ways = {way: f", {words}" for way, words in WAYS.items()} if pairs else {"sampled": ""}
  rates = {dtype: rate(dtype) for dtype in {part.dtype for part in parts}}
  shares = estimate.SHARES["cpu" if device.platform == "cpu" else "accelerator"]
  seconds = {
    way: [p.images[way] * p.flop / (rates[p.dtype] * shares[p.network]) for p in parts]
    for way in ways
  }
  rows = [
    [
      part.name,
      str(part.models),
      *(f"{part.images[way]:.2g}" for way in ways),
      *(estimate.duration(seconds[way][i]) for way in ways),
    ]
    for i, part in enumerate(parts)
  ]
  rows.append(None)
  for name, n in (("in all", 1), (f"{times} of these", times))[: 1 + (times > 1)]:
    totals = [estimate.duration(n * sum(seconds[way])) for way in ways]
    rows.append([name, "", *[""] * len(ways), *totals])
  header = ["", "models", *(f"images or clips{way}" for way in ways.values())]
  header += [f"time{way}" for way in ways.values()]
  sizes = ", ".join(f"{name} {size / _GIB:.1f} GiB" for name, size in disk.items())
  told = f"On disk: {sizes}, and the prepared data."
  if pairs:
    told = (
      f"This run goes {WAYS[pairs]}; the other way is --config.sf_change.pairs="
      f"{next(way for way in WAYS if way != pairs)}. On disk, either way: {sizes}, and the "
      "prepared data."
    )
  return "\n".join(
    [
      f"What this study takes on {device}, a guess before any of it ran, by "
      f"{', '.join(f'{value / 1e12:.3g} TFLOP/s of {name}' for name, value in rates.items())} "
      f"products, of which segmentation is taken to reach {shares['segmentation']:.0%} and the "
      f"video networks {shares['video']:.0%}:",
      cells.text_table(header, rows),
      told,
    ]
  )
