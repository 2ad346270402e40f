"""What computes here, which settings follow from it, and how long a run will take."""

import dataclasses
import math
import os

import jax
from absl import logging

from lus_jax import fields, parallel
from lus_jax.data.pipeline import CACHE_SHARE
from lus_jax.models import designs
from lus_jax.training import claim as claim_lib
from lus_jax.training.sweep import GROUP
from lus_jax.words import plural

PAPER_BATCH, PAPER_SIZE = 16, 512
# Settings left to us, by what stands in a config then. They change the numbers of a run.
AUTOMATIC = {("model", "dtype"): "auto", ("train", "batch_size"): 0}
# Fields that runs of older versions lack, and go on without: whatever they are (None), or where
# they have this default.
LATER = {
  ("folds", "inner"): None,
  ("data", "prelabels"): "touched",
  ("data", "consensus"): "replaces",
}
# Likewise, where that is said: what such a run goes on with, and in words.
SAID = {
  ("train", "steps"): (0, "it has the epochs of config.train.epochs ({config.train.epochs})"),
  ("augment", "confidence"): ("bilinear", "its confidences are turned bilinearly to the end"),
}

# Room for what a backend keeps beside them: gradients of activations, other layouts, convolution
# workspaces. XLA for CPUs needs .7 to .9 of the activations in all, from width .5 on.
WORKSPACE = 2
# float32 arrays of the size of the confidences: inputs, logits, the loss and its gradient.
CLASS_ARRAYS = 8
# Weights, gradients, Adam's two moments, the best weights, a copy for the checkpoint; and where
# moving averages are kept, these.
STATES = 6
# Of the video network, at width 1: activations per pixel of a frame, by the memory of its compiled
# programs (python -m lus_jax.benchmarks.compile --what tsm).
VIDEO_ELEMENTS = 250


@dataclasses.dataclass(frozen=True)
class Device:
  """What a run computes on.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    kind: its name.
    memory: bytes that a process may use.
    capability: CUDA's compute capability; 0 where there is none.
    count: such devices.
  """

  platform: str
  kind: str
  memory: int
  capability: float = 0.0
  count: int = 1

  def __str__(self):
    several = f"{self.count} x " if self.count > 1 else ""
    return f"{several}{self.kind} ({self.memory / 1e9:.0f} GB to use)"


def find_device():
  """The `Device` that JAX computes on by default; of several processes, the main one's for all."""
  first = jax.local_devices()[0]
  # XLA takes three quarters of a GPU's memory; a CPU's is shared with others too.
  memory = (first.memory_stats() or {}).get("bytes_limit") or 3 * host_memory() // 4
  try:
    capability = float(getattr(first, "compute_capability", 0))
  except ValueError:  # AMD's have names
    capability = 0.0
  # They have to come to the same settings.
  mebibytes, tenths = parallel.from_main([memory >> 20, round(10 * capability)])
  memory, capability = mebibytes << 20, tenths / 10
  return Device(first.platform, first.device_kind, memory, capability, jax.device_count())


def host_memory():
  """Bytes of the machine's memory."""
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, ValueError):  # not on Windows
    return 8 * 2**30


def choose_dtype(device):
  """The compute type for a device, and why."""
  if device.platform == "gpu" and device.capability >= 8:
    return "bfloat16", f"compute capability {device.capability:g}"
  return "float32", f"no fast bfloat16 on this {device.platform}"


def step_memory(config, *, models, batch, classes, strategy, devices=1):
  """Bytes of one device that a training step takes: an estimate that errs on the high side.

  Activations are the network's per pixel x width x bytes of the compute type x `WORKSPACE`, and
  `CLASS_ARRAYS` float32 values per pixel and class, for the images of a batch and the models that
  the device trains at the same time. The state is `STATES` (one more where weights are averaged)
  x parameters x width^2 x 4 bytes for every model that lies on it.

  Args:
    config: a run's config, its dtype resolved.
    models: T.
    batch: B.
    classes: K.
    strategy: of the sweep, resolved.
    devices: over which models and batches are laid, if they are (`parallel.layout`).
  """
  at_once = {"vmap": models, "grouped": min(models, GROUP)}.get(strategy, 1)
  if shape := parallel.layout(strategy, models, devices):
    rows, columns = shape
    models, at_once = -(-models // rows), 1 / columns
  elements, parameters = designs.segmentation(config.model).sizes
  width = config.model.width
  a_pixel = elements * width * WORKSPACE * (2 if config.model.dtype == "bfloat16" else 4)
  a_pixel += CLASS_ARRAYS * classes * 4
  activations = at_once * batch * config.data.image_size**2 * a_pixel
  states = STATES + bool(fields.value(config, "optimizer.averaging"))
  return int(activations + models * states * parameters * width**2 * 4)


def choose_batch(config, device, *, models, frames, classes, strategy):
  """The paper's batch, or the largest of its halves that fits a device and the frames.

  Where batches are split over d devices (`parallel.layout`), a multiple of d.

  Args:
    config: a run's config, its dtype resolved.
    device: a `Device`.
    models: T.
    frames: of the training split.
    classes: K.
    strategy: of the sweep, resolved.

  Returns:
    B, and why; the least where nothing fits.
  """
  room = _room(device)
  unit = 1
  if shape := parallel.layout(strategy, models, device.count):
    _, unit = shape
  half = PAPER_BATCH
  while True:
    batch = max(unit, half // unit * unit)
    need = step_memory(
      config, models=models, batch=batch, classes=classes, strategy=strategy, devices=device.count
    )
    if half == 1 or (need <= room and batch <= frames):
      break
    half //= 2
  share = f"a step needs at most {need / 1e9:.2g} GB"
  return batch, f"the paper's; {share}" if batch == PAPER_BATCH else share


def _room(device):
  return device.memory * (1 - CACHE_SHARE)  # the rest is for the frames


def choose_group(config, device, *, clips):
  """The most video networks whose training step, of all at once, fits a device's memory.

  Args:
    config: a clinical task's config, its dtype resolved.
    device: a `Device`.
    clips: of a batch.

  Returns:
    At most `sweep.GROUP`, at least 1.
  """
  pixels = clips * config.clip.n_segment * config.clip.image_size**2
  width = config.model.width * (2 if config.model.dtype == "bfloat16" else 4)
  return max(1, min(GROUP, int(_room(device) // (pixels * VIDEO_ELEMENTS * width))))


def too_large(config, device, *, models, strategy):
  """What to say before a run whose training step may not fit the memory; empty if it does.

  Args:
    config: a run's config, checked.
    device: a `Device`.
    models: T.
    strategy: of the sweep, resolved.
  """
  config, _ = resolve(config, device, models=models, classes=1, strategy=strategy)
  size, batch = config.data.image_size, config.train.batch_size
  part = {"models": models, "classes": 1, "strategy": strategy, "devices": device.count}
  need, room = step_memory(config, batch=batch, **part), _room(device)
  if need <= device.memory:
    return ""
  halves = [batch >> i for i in range(1, batch.bit_length())]
  fits = [b for b in halves if step_memory(config, batch=b, **part) <= room]
  shared = []
  if shape := parallel.layout(strategy, models, device.count):
    n, most = device.count, math.gcd(device.count, batch)
    layouts = [f"{n // d}x{d}" for d in range(shape[1] + 1, most + 1) if most % d == 0]
    shared = [
      x for x in layouts if step_memory(config, batch=batch, **part | {"strategy": x}) <= room
    ]
  if shared:
    mend = f"--config.sweep.strategy={shared[0]}, in which more devices share a batch, fits"
  elif strategy in ("vmap", "grouped"):
    mend = "--config.sweep.strategy=loop needs the memory of one model at a time"
  elif fits:
    mend = f"--config.train.batch_size={fits[0]} fits"
  else:
    smaller = config.copy_and_resolve_references()
    with smaller.unlocked():
      while step_memory(smaller, batch=batch, **part) > room and smaller.data.image_size > 32:
        smaller.data.image_size -= 32
    mend = f"--config.data.image_size={smaller.data.image_size} fits"
  text = (
    f"a training step of {plural(batch, 'image')} of {size} x {size} may need "
    f"{need / 1e9:.0f} GB, and {device} is what there is; {mend}."
  )
  if size > PAPER_SIZE:
    text += (
      f" Time grows with the pixels too: {(size / PAPER_SIZE) ** 2:.3g} times that of {PAPER_SIZE} "
      f"x {PAPER_SIZE}."
    )
  return text


def as_begun(config, workdir):
  """The config with the automatic settings of the run that a directory holds, if it holds one.

  A run that goes on, here or on another machine, so repeats its numbers.
  """
  try:
    claim = claim_lib.read_claim(workdir)
  except OSError:  # `check_claim` says what is wrong with it
    claim = None
  config = config.copy_and_resolve_references()
  with config.unlocked():
    drop_later(config, claim)
    for (section, field), automatic in AUTOMATIC.items():
      if claim and config[section][field] == automatic:
        config[section][field] = claim["config"].get(section, {}).get(field, automatic)
    if claim and "steps" in config.train:
      theirs, ours = claim["config"].get("train", {}), config.train.steps
      if theirs.get("steps", ours) == ours > 0:
        # The epochs of the config are the least, and there they are what came of the data.
        config.train.epochs = max(config.train.epochs, theirs.get("epochs", 0))
    for (section, field), (before, goes_on) in SAID.items() if claim else ():
      ours = config.get(section, {})
      if field in ours and field not in claim["config"].get(section, {}):
        if ours[field] != before:
          logging.warning(
            "%s holds a run from before there was config.%s.%s, so %s counts for nothing: %s.",
            workdir,
            section,
            field,
            ours[field],
            goes_on.format(config=config),
          )
        del ours[field]
  return config


def settings_as_begun(settings, begun):
  """Settings without the fields that there were not when a run with the settings `begun` began.

  Args:
    settings: of a config (`claim.settings`).
    begun: of the claim.

  Returns:
    A dict.
  """
  settings = {name: dict(x) if isinstance(x, dict) else x for name, x in settings.items()}
  for section, field in SAID:
    if field not in begun.get(section, {}):
      settings.get(section, {}).pop(field, None)
  return settings


def drop_later(config, claim):
  """Removes the fields of a config, unlocked, that the run of a claim was begun without."""
  for (section, field), default in LATER.items():
    theirs = claim["config"].get(section, {}) if claim else {field: None}
    ours = config.get(section, {})
    if field not in theirs and field in ours and default in (None, ours[field]):
      del config[section][field]


def steps_of_epoch(config, frames):
  """Steps of an epoch: as many as the `train` part of a config says, else one pass over frames."""
  return getattr(config, "epoch_steps", 0) or frames // config.batch_size


def epochs_of(config, frames):
  """Epochs of a run: those that `train` says, or more, until they have `train.steps`."""
  steps = getattr(config, "steps", 0)
  return max(config.epochs, math.ceil(steps / max(1, steps_of_epoch(config, frames))))


def resolve(config, device, *, models, frames=PAPER_BATCH, classes=6, strategy="loop"):
  """Fills in the automatic settings.

  Args:
    config: a run's config, checked.
    device: a `Device`.
    models: T.
    frames: of the training split; where they make short epochs, there are more of these, until
      there are `train.steps`.
    classes: K.
    strategy: of the sweep, resolved.

  Returns:
    The config, and a dict: why, for `dtype` and `batch_size` where they were automatic, and for
    `epochs` where they were raised.
  """
  config, why = config.copy_and_resolve_references(), {}
  with config.unlocked():
    if config.model.dtype == "auto":
      config.model.dtype, why["dtype"] = choose_dtype(device)
    if config.train.batch_size == 0:
      config.train.batch_size, why["batch_size"] = choose_batch(
        config, device, models=models, frames=frames, classes=classes, strategy=strategy
      )
    epochs = epochs_of(config.train, frames)
    if epochs > config.train.epochs:
      config.train.epochs = epochs
      why["epochs"] = f"as many as train.steps={config.train.steps} takes"
  return config, why


def loop_settings(config):
  """The `train` part of a resolved config for the loop: many short epochs share a checkpoint."""
  train = config.train.copy_and_resolve_references()
  if train.get("steps", 0):
    with train.unlocked():
      train.checkpoint_every = max(train.checkpoint_every, train.epochs // 10)
  return train


def describe(config, device, why, *, strategy, cache):
  """One line on what a run computes on, and the settings, with why of those that were automatic.

  Args:
    config: a run's config, resolved.
    device: a `Device`.
    why: of `resolve`.
    strategy: of the sweep, resolved.
    cache: 'device' or 'stream'.
  """
  why = dict(why)
  if config.sweep.strategy == "auto":
    why["strategy"] = f"auto for {device.count} {device.platform}"
  if config.data.cache == "auto":
    why["cache"] = "they fit" if cache == "device" else "too many for it"
  texts = {
    "dtype": config.model.dtype,
    "batch_size": f"batches of {config.train.batch_size}",
    "strategy": f"strategy {strategy}",
    "cache": "data on the device" if cache == "device" else "data streamed from disk",
  }
  return f"on {device}: " + ", ".join(
    f"{text} ({why[name]})" if name in why else text for name, text in texts.items()
  )
