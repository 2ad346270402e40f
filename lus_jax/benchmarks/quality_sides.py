"""Who is compared by `lus_jax.benchmarks.quality`: ours, MONAI's U-Net, nnU-Net's plain U-Net.

Every side is a function of a `Job`, run in a process of its own. It may train until the job's clock
has run for the budget, its schedule scaled to that, and returns what it makes of the test frames.
What is not training (starting, compiling, reading, the prediction) is not counted.

PyTorch, MONAI and nnU-Net's packages are imported where they are used; the `peers` extra installs
all. nnunetv2 itself needs a library under the LGPL alone, so its recipe is put together here from
its own network and augmentation, with the values of its default plan and trainer.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lus_jax.benchmarks import quality_data
from lus_jax.data import datasets, pipeline
from lus_jax.errors import UserError
from lus_jax.evaluation import baselines, metrics, resampling, segmentation
from lus_jax.inference import trained as trained_lib
from lus_jax.tasks.segmentation import auto, run
from lus_jax.training import loop

# What a clock counts: seconds that pass, or that the process's threads compute.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Epochs of ours that are timed before the schedule is made, and their least share of the budget.
TIMED, SHARE = 3, 0.05
# A share of the time that a peer may spend on looking at the validation frames.
LOOKING = 0.1


@dataclasses.dataclass(frozen=True)
class Job:
  """What a side gets.

  Attributes:
    file: an .npz with `image`, `target`, `where` of all frames (`quality_data.Frames`).
    fold: frame numbers by split.
    seed: of all that is random.
    budget: seconds that it may train.
    clock: a key of `CLOCKS`.
    cores: how many threads compute.
    exclusive: whether no pixel is of two classes.
    config: of ours, a run's config; its `data` names the frames.
  """

  file: str
  fold: dict[str, np.ndarray]
  seed: int
  budget: float
  clock: str
  cores: int
  exclusive: bool
  config: Any = None

  def now(self):
    """The job's clock in seconds, of all cores together as of one."""
    return CLOCKS[self.clock]() / (self.cores if self.clock == "cpu" else 1)

  def arrays(self, split):
    """`image` [n, H, W, 1], `target` and `where` [n, H, W, K] of one side of the fold."""
    with np.load(self.file) as held:
      return {name: held[name][self.fold[split]] for name in ("image", "target", "where")}


@dataclasses.dataclass(frozen=True)
class Found:
  """What a side returns.

  Attributes:
    probability: of the test frames, [n, H, W, K] float32.
    seconds: that it trained, by the job's clock.
    steps: of the optimizer.
    note: what else there is to say.
    predicted: where a class is said to be, bool, of the same shape.
  """

  probability: np.ndarray
  predicted: np.ndarray
  seconds: float = 0.0
  steps: int = 0
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Peer:
  """A side that is not ours.

  Attributes:
    train: from a `Job` to `Found`.
    needs: modules that it imports.
    about: what it is, in a line.
  """

  train: Callable
  needs: tuple[str, ...]
  about: str

  def missing(self):
    """The first of the modules that is not installed; None where all are."""
    for name in self.needs:
      if importlib.util.find_spec(name) is None:
        return name
    return None


# Ours


class Enough(Exception):
  """Epochs were timed long enough."""


class Paced:
  """`loop.fit`, whose clock is read after every epoch.

  Args:
    fit: `loop.fit`.
    job: a `Job`.
    enough: seconds after which it may end by `Enough`; None for never.

  Attributes:
    ends: the clock after every epoch.
    steps: of an epoch.
  """

  def __init__(self, fit, job, enough=None):
    self._fit, self._job, self._enough = fit, job, enough
    self.ends, self.steps, self.begun = [], 0, None

  def __call__(self, task, *arguments, steps_per_epoch, **options):
    """As `loop.fit`."""
    looks = task.validate

    def validate(state):
      found = looks(state)
      self.ends.append(self._job.now())
      past = self.ends[-1] - self.ends[0]
      if self._enough is not None and len(self.ends) > TIMED and past >= self._enough:
        raise Enough
      return found

    self.steps, self.begun = steps_per_epoch, self._job.now()
    task = dataclasses.replace(task, validate=validate)
    return self._fit(task, *arguments, steps_per_epoch=steps_per_epoch, **options)

  @property
  def epoch(self):
    """Seconds of an epoch with its validation, the first left aside, which compiles."""
    return float(np.median(np.diff(self.ends)))

  @property
  def seconds(self):
    """Seconds of all epochs, the first counted as another one."""
    if len(self.ends) < 2:
      return self.ends[-1] - self.begun
    return self.ends[-1] - self.ends[0] + self.epoch


@contextlib.contextmanager
def _in_place(module, name, value):
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield value
  finally:
    setattr(module, name, before)


def ours(job):
  """Trains by a config of ours, as `lus_jax.main` would, for as many epochs as the budget holds.

  A few epochs are timed first, and thrown away. What the config leaves to the data is chosen for
  the budget's time.
  """
  dataset = quality_data.regrouped(quality_data.opened(job.config.data)[0], job.fold)
  with contextlib.ExitStack() as stack:
    workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(_in_place(datasets, "open_dataset", lambda *_: dataset))
    config = _chosen(job, workdir / "chosen")
    paced = Paced(loop.fit, job, enough=SHARE * job.budget)
    with _in_place(loop, "fit", paced), contextlib.suppress(Enough):
      run.train_and_evaluate(_for_epochs(config, 10**6), workdir / "timed")
    epochs = max(1, math.floor(job.budget / paced.epoch))
    paced = Paced(loop.fit, job)
    with _in_place(loop, "fit", paced):
      run.train_and_evaluate(_for_epochs(config, epochs), workdir / "run")
    trained = trained_lib.load(workdir / "run")
    size = trained.config.train.batch_size
    test = dataset.splits["test"]
    names = pipeline.fields_of(dataset)
    probability = segmentation.predict(
      trained.only([0]),
      pipeline.load(test.only(*names), names),
      batch_size=size,
    )[0]
  note = f"batches of {size}"
  if len(paced.ends) == 1:
    note += "; one epoch takes longer than the budget"
  predicted = probability >= resampling.MIDDLE
  return Found(probability, predicted, paced.seconds, epochs * paced.steps, note)


def _chosen(job, workdir):
  config = job.config.copy_and_resolve_references()
  if auto.wanted(config):
    config.unlock()
    config.train.minutes = job.budget / 60
    config, _ = auto.choose(config, workdir)
    # Its steps are as many as the clock allows.
    config.train.minutes = 0.0
  return config


def _for_epochs(config, epochs):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.train.epochs, config.train.steps = epochs, 0
    # What is stopped here is begun anew.
    config.train.checkpoint_every = epochs
  return config


# What does not look at the frame


def blind(job):
  """The mean of the training targets, at each pixel and over all: `Found` by name.

  One more image of the overall mean is added at each pixel; a class is predicted from the cut-off
  on that is best on the training frames.
  """
  train, test = job.arrays("train"), len(job.fold["test"])
  where = train["where"].astype(np.float64)
  weight, total = where.sum(0), (where * train["target"]).sum(0)
  prevalence = total.sum((0, 1)) / np.maximum(weight.sum((0, 1)), 1)
  maps = {
    "mean map": (total + prevalence) / (weight + 1),
    "prevalence": np.broadcast_to(prevalence, total.shape),
  }
  found = {}
  for name, one in maps.items():
    predicted = one >= _best_cut(one, train)
    both = (np.broadcast_to(x, (test, *x.shape)) for x in (one.astype(np.float32), predicted))
    found[name] = Found(*both)
  return found


@jax.jit
def _cut_sums(logits, target, where, cuts):
  return metrics.cut_sums(
    logits=jax.numpy.broadcast_to(logits[None], target.shape),
    confidence=target,
    where=where,
    threshold=resampling.MIDDLE,
    cuts=cuts,
  )


def _best_cut(probability, train):
  """The cut-offs [K] of one map [H, W, K] with the best IoU on training frames; 1 is nothing."""
  probability = np.clip(probability, baselines.CLIP, 1 - baselines.CLIP)
  logits = (np.log(probability) - np.log1p(-probability)).astype(np.float32)
  cuts = baselines.candidate_cuts(logits)
  parts = []
  for start in range(0, len(train["target"]), resampling.BATCH):
    part = slice(start, start + resampling.BATCH)
    found = _cut_sums(logits, train["target"][part], train["where"][part], cuts)
    parts.append(jax.device_get(found))
  sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  best = metrics.take_cuts(cuts, metrics.best_cuts(sums, cuts))
  return np.where(sums["cut_label_area"].sum(0) > 0, best, 1)


# PyTorch


class Timed:
  """Training that ends when a job's time is over.

  Args:
    job: a `Job`.
  """

  def __init__(self, job):
    self._job = job

  def fit(self, optimizer, rate, step, after=lambda steps: 0.0):
    """Calls `step`, which returns a loss, until the time is over; how often it did.

    Args:
      optimizer: whose learning rate is `rate(share of the time that is over)`.
      step: one step of it.
      after: is called after every step with their number; how many seconds are to be left for
        what comes at the end.

    Raises:
      UserError: a loss is not finite.
    """
    steps, left = 0, 0.0
    self._begun = self._job.now()
    while (spent := self.spent()) + left < self._job.budget or not steps:
      for group in optimizer.param_groups:
        group["lr"] = rate(min(1.0, spent / self._job.budget))
      loss = step()
      if not math.isfinite(loss):
        raise UserError(f"its loss is {loss} at step {steps + 1}.")
      steps += 1
      left = after(steps)
    return steps

  def spent(self):
    """Seconds since training began."""
    return self._job.now() - self._begun


class Torch(Timed):
  """What both peers share: frames as tensors, the loss, the time.

  Args:
    job: a `Job`.
    batch_dice: whether Dice is of a whole batch, and not of each image.
    background: whether the background's Dice counts where there is a softmax.
  """

  def __init__(self, job, *, batch_dice, background):
    import torch
    from monai import losses

    super().__init__(job)
    self.torch, self.job = torch, job
    torch.set_num_threads(job.cores)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if job.exclusive:
      self._dice_ce = losses.DiceCELoss(
        softmax=True, include_background=background, batch=batch_dice
      )
    else:
      self._dice = losses.DiceLoss(sigmoid=True, batch=batch_dice)
      self._ce = torch.nn.BCEWithLogitsLoss()

  def split(self, name):
    """`image` [n, 1, H, W] in [0, 1], `target` and `where` [n, K, H, W], float32 tensors."""
    arrays = {k: np.moveaxis(x, -1, 1) for k, x in self.job.arrays(name).items()}
    arrays["image"] = arrays["image"] / np.float32(255)
    return {k: self.torch.tensor(x.astype(np.float32)) for k, x in arrays.items()}

  def outputs(self, classes):
    """How many channels the network puts out."""
    return classes + self.job.exclusive

  def loss(self, logits, target, where):
    """Dice and cross entropy; a pixel that does not count is given the right answer."""
    torch = self.torch
    if self.job.exclusive:
      where = where.amin(1, keepdim=True)
      target = target * where
      target = torch.cat([1 - target.sum(1, keepdim=True), target], 1)
      settled = torch.where(where > 0.5, logits, 20 * (2 * target - 1))
      return self._dice_ce(settled, target)
    target = target * where
    settled = torch.where(where > 0.5, logits, torch.full_like(logits, -20))
    return self._dice(settled, target) + self._ce(settled, target)

  def probability(self, logits):
    """[n, K, H, W] of logits [n, K or K + 1, H, W]."""
    return logits.softmax(1)[:, 1:] if self.job.exclusive else logits.sigmoid()

  def said(self, probability):
    """Where a class is said to be, of probabilities [n, H, W, K]: the likeliest, or p >= .5."""
    if not self.job.exclusive:
      return probability >= resampling.MIDDLE
    background = 1 - probability.sum(-1, keepdims=True)
    return (probability == probability.max(-1, keepdims=True)) & (probability > background)

  def predict(self, function, image):
    """Probabilities [n, H, W, K] of images [n, 1, H, W] by `function`, from images to logits."""
    with self.torch.no_grad():
      parts = [self.probability(function(x.to(self.device))).cpu() for x in image.split(16)]
    return np.moveaxis(self.torch.cat(parts).numpy(), 1, -1).copy()


# As in MONAI's tutorials on segmentation.
MONAI_CHANNELS, MONAI_STRIDES, MONAI_UNITS = (16, 32, 64, 128, 256), (2, 2, 2, 2), 2
MONAI_BATCH, MONAI_RATE = 8, 1e-3


def monai(job):
  """MONAI's U-Net with its transforms and losses, AdamW and a cosine, the best by validation."""
  import monai as library
  from monai import data, transforms
  from monai import metrics as monai_metrics
  from monai.networks import nets

  side = Torch(job, batch_dice=False, background=True)
  torch = side.torch
  train, validation = side.split("train"), side.split("validation")
  classes = train["target"].shape[1]
  network = nets.UNet(
    spatial_dims=2,
    in_channels=1,
    out_channels=side.outputs(classes),
    channels=MONAI_CHANNELS,
    strides=MONAI_STRIDES,
    num_res_units=MONAI_UNITS,
  ).to(side.device)
  keys, modes = ("image", "target", "where"), ("bilinear", "nearest", "nearest")
  augmented = transforms.Compose(
    [
      transforms.RandFlipd(keys, prob=0.5, spatial_axis=1),
      transforms.RandRotated(
        keys, range_x=math.pi / 12, prob=0.5, mode=modes, padding_mode="zeros"
      ),
      transforms.RandZoomd(keys, min_zoom=0.9, max_zoom=1.1, prob=0.5, mode=modes),
      transforms.RandGaussianNoised("image", prob=0.2, std=0.05),
      transforms.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.4)),
      transforms.RandScaleIntensityd("image", factors=0.1, prob=0.5),
    ]
  )
  augmented.set_random_state(seed=job.seed)
  items = [dict(zip(keys, each, strict=True)) for each in zip(*train.values(), strict=True)]
  loader = data.DataLoader(
    data.Dataset(items, augmented),
    batch_size=min(MONAI_BATCH, len(items)),
    shuffle=True,
    drop_last=True,
    generator=torch.Generator().manual_seed(job.seed),
  )
  batches = _forever(loader)
  optimizer = torch.optim.AdamW(network.parameters(), lr=MONAI_RATE)
  state = {"best": None, "score": -1.0, "looked": 0.0, "last": 0.0}

  def step():
    batch = next(batches)
    image, target, where = (batch[name].as_tensor().to(side.device) for name in keys)
    optimizer.zero_grad(set_to_none=True)
    loss = side.loss(network(image), target, where)
    loss.backward()
    optimizer.step()
    return loss.item()

  def look():
    since = job.now()
    network.eval()
    found = side.said(side.predict(network, validation["image"]))
    network.train()
    shown = torch.tensor(np.moveaxis(found, -1, 1)) * validation["where"]
    dice = monai_metrics.DiceMetric(include_background=True, reduction="mean")
    dice(shown, (validation["target"] >= resampling.MIDDLE).float())
    score = dice.aggregate().item()
    # Of equals the later one; without anything to see in the validation frames, the last.
    if not score < state["score"]:
      state["score"] = -1.0 if math.isnan(score) else score
      state["best"] = {k: v.detach().clone() for k, v in network.state_dict().items()}
    state["last"] = job.now() - since
    state["looked"] += state["last"]

  def after(steps):
    due = steps % len(loader) == 0
    if due and state["looked"] + state["last"] <= LOOKING * side.spent():
      look()
    return state["last"]

  steps = side.fit(
    optimizer, lambda part: MONAI_RATE * 0.5 * (1 + math.cos(math.pi * part)), step, after
  )
  look()
  seconds = side.spent()
  network.load_state_dict(state["best"])
  network.eval()
  probability = side.predict(network, side.split("test")["image"])
  return Found(probability, side.said(probability), seconds, steps, f"MONAI {library.__version__}")


def _forever(loader):
  while True:
    yield from loader


# Of nnU-Net's default plan and trainer, for 2D.
NNUNET_FEATURES, NNUNET_MOST, NNUNET_LEAST_EDGE = 32, 512, 4
NNUNET_COVERED, NNUNET_REFERENCE = 0.05, (12, 512)
NNUNET_RATE, NNUNET_DECAY, NNUNET_MOMENTUM, NNUNET_POWER, NNUNET_CLIP = 1e-2, 3e-5, 0.99, 0.9, 12


def nnunet_plan(size, frames):
  """The network and batch that nnU-Net plans for square frames that are one patch.

  Args:
    size: H = W.
    frames: how many train.

  Returns:
    Features by stage, and the batch size: as many as fit its reference GPU, but no more than 5 % of
    the frames, and 2 at least.
  """
  stages = 1 + int(math.log2(size / NNUNET_LEAST_EDGE))
  features = [min(NNUNET_MOST, NNUNET_FEATURES * 2**i) for i in range(stages)]
  batch, edge = NNUNET_REFERENCE
  fits = int(batch * (edge / size) ** 2)
  return features, max(2, min(fits, round(NNUNET_COVERED * frames)))


def nnunet(job):
  """nnU-Net's plain U-Net, deep supervision, SGD with Nesterov momentum, its augmentation."""
  from dynamic_network_architectures.architectures.unet import PlainConvUNet

  side = Torch(job, batch_dice=True, background=False)
  torch = side.torch
  nn = torch.nn
  train = side.split("train")
  size, frames = train["image"].shape[-1], len(train["image"])
  features, batch_size = nnunet_plan(size, frames)
  network = PlainConvUNet(
    input_channels=1,
    n_stages=len(features),
    features_per_stage=features,
    conv_op=nn.Conv2d,
    kernel_sizes=3,
    strides=[1] + [2] * (len(features) - 1),
    n_conv_per_stage=2,
    num_classes=side.outputs(train["target"].shape[1]),
    n_conv_per_stage_decoder=2,
    conv_bias=True,
    norm_op=nn.InstanceNorm2d,
    norm_op_kwargs={"eps": 1e-5, "affine": True},
    nonlin=nn.LeakyReLU,
    nonlin_kwargs={"inplace": True},
    deep_supervision=True,
  )
  network.apply(network.initialize)
  network.to(side.device)
  optimizer = torch.optim.SGD(
    network.parameters(),
    lr=NNUNET_RATE,
    weight_decay=NNUNET_DECAY,
    momentum=NNUNET_MOMENTUM,
    nesterov=True,
  )
  augmented = _nnunet_transforms(size)
  draw = np.random.default_rng(job.seed)
  images = _normalized(train["image"])
  soft = bool(((train["target"] > 0) & (train["target"] < 1)).any())
  # The deepest output has no weight.
  weights = np.array([0.5**i for i in range(len(features) - 1)])
  weights[1:][-1:] = 0
  weights /= weights.sum()

  def one(i):
    target, where = train["target"][i], train["where"][i]
    if not job.exclusive:
      if soft:
        found = augmented(image=images[i], regression_target=target, segmentation=where.short())
        return found["image"], found["regression_target"], found["segmentation"] != 0
      found = augmented(image=images[i], segmentation=torch.cat([target, where]).round().short())
      target, where = found["segmentation"].split(len(target))
      return found["image"], target > 0, where != 0
    number = (target * torch.arange(1, len(target) + 1)[:, None, None]).sum(0, keepdim=True)
    counts = where.amin(0, keepdim=True)
    found = augmented(image=images[i], segmentation=torch.cat([number, counts]).round().short())
    number, counts = found["segmentation"].split(1)
    target = torch.cat([number == k for k in range(1, len(target) + 1)])
    return found["image"], target, (counts != 0).expand(target.shape)

  def step():
    examples = [one(i) for i in draw.integers(0, frames, batch_size)]
    image, target, where = (
      torch.stack(x).float().to(side.device) for x in zip(*examples, strict=True)
    )
    optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for logits, weight in zip(network(image), weights, strict=True):
      if weight:
        shape = logits.shape[2:]
        smaller = [nn.functional.interpolate(x, shape, mode="nearest") for x in (target, where)]
        loss = loss + weight * side.loss(logits, *smaller)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), NNUNET_CLIP)
    optimizer.step()
    return loss.item()

  steps = side.fit(optimizer, lambda part: NNUNET_RATE * (1 - part) ** NNUNET_POWER, step)
  seconds = side.spent()
  network.eval()
  network.decoder.deep_supervision = False

  def mirrored(image):
    flips = [(), (2,), (3,), (2, 3)]
    return sum(network(image.flip(axes)).flip(axes) for axes in flips) / len(flips)

  probability = side.predict(mirrored, _normalized(side.split("test")["image"]))
  return Found(probability, side.said(probability), seconds, steps, f"batches of {batch_size}")


def _normalized(image):
  """Images [n, 1, H, W] with mean 0 and standard deviation 1 each."""
  deviation = image.std((1, 2, 3), keepdim=True, correction=0).clamp(min=1e-8)
  return (image - image.mean((1, 2, 3), keepdim=True)) / deviation


def _nnunet_transforms(size):
  """The augmentation of nnU-Net's default trainer for square 2D patches."""
  from batchgeneratorsv2.transforms.intensity import brightness, contrast, gamma, gaussian_noise
  from batchgeneratorsv2.transforms.noise import gaussian_blur
  from batchgeneratorsv2.transforms.spatial import low_resolution, mirroring, spatial
  from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
  from batchgeneratorsv2.transforms.utils.random import RandomTransform

  own = {"synchronize_channels": False, "p_per_channel": 1}
  by_background = contrast.BGContrast
  sometimes = [
    (
      0.1,
      gaussian_noise.GaussianNoiseTransform(
        noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True
      ),
    ),
    (
      0.2,
      gaussian_blur.GaussianBlurTransform(
        blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
      ),
    ),
    (
      0.15,
      brightness.MultiplicativeBrightnessTransform(
        multiplier_range=by_background((0.75, 1.25)), **own
      ),
    ),
    (
      0.15,
      contrast.ContrastTransform(
        contrast_range=by_background((0.75, 1.25)), preserve_range=True, **own
      ),
    ),
    (
      0.25,
      low_resolution.SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=None,
        allowed_channels=None,
        p_per_channel=0.5,
      ),
    ),
  ]
  for p, inverted in ((0.1, 1), (0.3, 0)):
    bent = gamma.GammaTransform(
      gamma=by_background((0.7, 1.5)), p_invert_image=inverted, p_retain_stats=1, **own
    )
    sometimes.append((p, bent))
  return ComposeTransforms(
    [
      spatial.SpatialTransform(
        (size, size),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-math.pi, math.pi),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
      ),
      *(RandomTransform(one, apply_probability=p) for p, one in sometimes),
      mirroring.MirrorTransform(allowed_axes=(0, 1)),
    ]
  )


PEERS = {
  "monai": Peer(
    monai, ("torch", "monai"), "MONAI's UNet, DiceCE, AdamW, its transforms, best by validation"
  ),
  "nnunet": Peer(
    nnunet,
    ("torch", "monai", "dynamic_network_architectures", "batchgeneratorsv2"),
    "nnU-Net's PlainConvUNet, deep supervision, SGD, its augmentation and mirrored prediction",
  ),
}


def environment(cores):
  """Variables of a side's process: as many threads as it may have."""
  return {
    name: str(cores)
    for name in ("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
  } | {"XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}
