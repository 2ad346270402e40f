"""How long a run takes: by its FLOP before it begins, by its first steps after."""

import dataclasses
import time

import jax
from tqdm import tqdm

from lus_jax import parallel
from lus_jax.models import flops
from lus_jax.training import peak

# The share of the matrix rate that training is taken to reach on a CPU before anything was timed:
# ResNet-34 at 256 x 256 reached .42 to .56 of it on 2 cores.
CPU_EFFICIENCY = 0.5
# Likewise of both networks; the video network reached .18 to .20 on a CPU. Of accelerators they are
# guesses, by the bytes that their compiled steps move (python -m lus_jax.benchmarks.compile).
SHARES = {
  "cpu": {"segmentation": CPU_EFFICIENCY, "video": 0.19},
  "accelerator": {"segmentation": 0.5, "video": 0.06},
}
LONG = 2 * 3600  # seconds
# No CPU takes that long for less work, so that the matrix rate need not be measured.
LONG_WORK = 1e14  # FLOP
# Measuring the matrix rate takes a second, which a short run on a CPU is spared.
WORTH_MEASURING = 120  # seconds


def slow_recipe(config, flop, device, *, models, rate=None):
  """What to say before a run that takes hours for want of an accelerator; empty if it does not.

  Args:
    config: a run's config, resolved.
    flop: of the whole run.
    device: a `Device`.
    models: T.
    rate: FLOP/s of matrix products; measured by default.
  """
  if device.platform != "cpu" or flop < LONG_WORK:
    return ""
  rate = rate or peak.matmul_rate(config.model.dtype)
  seconds = flop / (rate * CPU_EFFICIENCY)
  if seconds < LONG:
    return ""
  epochs, size = config.train.epochs, config.data.image_size
  least = "train.steps and train.epochs" if config.train.get("steps", 0) else "train.epochs"
  reduced = " Reduced for CPUs: :demo behind the config's name." if config.model.width == 1 else ""
  return (
    f"There is no accelerator: this takes about {duration(seconds)} on this CPU ({flop:.1e} FLOP "
    f"at {CPU_EFFICIENCY:.0%} of the {rate / 1e9:.0f} GFLOP/s of its matrix products). Fewer "
    f"epochs (now {epochs}: {least}), models (now {models}: sweep.thresholds, "
    f"sweep.members) or pixels (now {size} x {size}: data.image_size) take as much less.{reduced}"
  )


def duration(seconds):
  """A time in the unit that suits it."""
  for unit, length, most in (("s", 1, 100), ("minutes", 60, 100), ("hours", 3600, 48)):
    if seconds < most * length:
      return f"{seconds / length:.{int(unit == 'hours')}f} {unit}"
  return f"{seconds / 86400:.0f} days"


@dataclasses.dataclass(frozen=True)
class Work:
  """What a step and an epoch of one member consist of, for estimates.

  Attributes:
    images: images (clips) in a training step.
    flop: of a training step on one image, forward and backward.
    validated: images of the validation after an epoch, forward only.
    dtype: the compute type.
  """

  images: int
  flop: int
  validated: int
  dtype: str


class FirstSteps:
  """Times the first steps of a run, the compilation left out, and prints what follows from them.

  Args:
    work: a `Work`; None for no estimate.
    members: T.
    steps_per_epoch: of training.
    epochs: that are left.
    unit: what a batch is counted in.
  """

  LAST = 11  # step
  ENOUGH = 10  # seconds

  def __init__(self, work, *, members, steps_per_epoch, epochs, unit):
    self._work, self._members, self._unit = work, members, unit
    self._steps, self._epochs = steps_per_epoch, epochs
    # Within an epoch, for between two of them is the validation.
    self._last = min(self.LAST, steps_per_epoch) if work else 0
    self._step, self._from = 0, None

  def tick(self, loss):
    """To be called after every step with its results, for which it waits three times at most."""
    self._step += 1
    if self._step > self._last or self._step not in (1, 2, self._last):
      return
    jax.block_until_ready(loss)
    now = time.perf_counter()
    if self._from is not None:
      step, since = self._from
      if self._step == self._last or now - since > self.ENOUGH:
        self._last = 0
        if parallel.is_main():
          device_count = len(jax.tree.leaves(loss)[0].sharding.device_set)
          tqdm.write(self.describe((now - since) / (self._step - step), devices=device_count))
    self._from = self._step, now

  def describe(self, seconds, *, devices=1, platform=None, peak_rate=None):
    """One line on the run.

    Args:
      seconds: of a step of all members.
      devices: that share it.
      platform: the default backend by default.
      peak_rate: FLOP/s of matrix products on one of them; measured by default.
    """
    rate = self._members * self._work.images / seconds
    validations = self._work.validated / flops.TRAINING / self._work.images
    left = self._epochs * (self._steps + validations) * seconds
    text = f"about {duration(left)} to go: {rate:.3g} model-{self._unit}s/s"
    if (platform or jax.default_backend()) != "cpu" or left > WORTH_MEASURING:
      peak_rate = devices * (peak_rate or peak.matmul_rate(self._work.dtype))
      share = rate * self._work.flop / peak_rate
      text += f", {share:.0%} of the {peak_rate / 1e12:.3g} TFLOP/s of {self._work.dtype} products"
    return text
