"""Sizes that a config leaves to the data: what is chosen, and why.

Under `train.minutes` what stands at 0 or () is chosen once, before the run, from the training
frames, their labels and the device, and kept in the run's claim. In the manner of nnU-Net (Isensee
et al., arXiv 1809.10486), which takes its sizes from the data set too.
"""

import contextlib
import math

import numpy as np
from scipy import ndimage

from lus_jax import fields, parallel
from lus_jax.data import datasets, selection
from lus_jax.models import designs, flops
from lus_jax.report import cells
from lus_jax.tasks import initial
from lus_jax.tasks.segmentation import advice
from lus_jax.training import claim as claim_lib
from lus_jax.training import estimate, hardware, members, peak
from lus_jax.training.objective import Objective
from lus_jax.words import plural

# What may be left to the data, by what stands in a config then, and what it is checked with before
# anything is known of them.
CHOSEN = {
  "data.image_size": (0, hardware.PAPER_SIZE),
  "model.width": (0.0, 1.0),
  "sweep.thresholds": ((), (1.0,)),
  "train.batch_size": (0, 2),
  "train.steps": (0, 1),
}
# Thresholds that are tried; of those whose labels are the same, one is left.
THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
# Pixels a side at which frames are looked at; a simulator needs fewer.
LOOK, LOOK_SIMULATED = 512, 256
# Pixels that the lines of the thinnest class should be wide.
LINE = 3.0
# Pixels a side: never less, as much in any case where there is time for it, and the most without
# and with an accelerator.
LEAST, USUAL, MOST_CPU, MOST = 96, 192, 320, 512
UNIT = 32
BATCH = 8
# Steps: images become smaller before there are fewer than the first, and more than the last are of
# no use for small sets.
ENOUGH, TOO_MANY = 600, 4000


def wanted(config):
  """Whether a config leaves anything to the data."""
  return config.train.get("minutes", 0) > 0


def provisional(config):
  """The config with something in every place that is left to the data, for checks."""
  config = config.copy_and_resolve_references()
  width = initial.width_of(config.model.init_from)
  found = {"model.width": width} if width else {}
  with config.unlocked():
    for name, (automatic, value) in CHOSEN.items():
      if fields.value(config, name) == automatic:
        _set(config, name, found.get(name, value))
  return config


def choose(config, workdir, patients=None):
  """Fills in what a config leaves to the data; a run that was begun keeps what it chose.

  Args:
    config: a run's config, with `train.minutes`; checked as `provisional`.
    workdir: the run's directory.
    patients: as of `run.train_and_evaluate`.

  Returns:
    The config, and what was chosen and why, as lines of text.

  Raises:
    UserError: the data are not in order, or the directory is another run's.
  """
  claim = None
  with contextlib.suppress(OSError):  # `check_claim` says what is wrong with it
    claim = claim_lib.read_claim(workdir)
  config = config.copy_and_resolve_references()
  open_places = [name for name, (x, _) in CHOSEN.items() if fields.value(config, name) == x]
  if claim is not None:
    with config.unlocked():
      for name in open_places:
        section, field = name.split(".")
        theirs = claim["config"].get(section, {}).get(field)
        if theirs is not None:
          _set(config, name, tuple(theirs) if isinstance(theirs, list) else theirs)
      if "sweep.thresholds" in open_places:
        _leave_out(config)
    return config, []
  if not open_places:
    return config, []
  # Before anything is prepared for a run that could not be.
  claim_lib.check_claim(workdir, claim_lib.settings(config))
  found, why = _chosen(config, open_places, patients)
  with config.unlocked():
    for name, value in found.items():
      _set(config, name, value)
    if "sweep.thresholds" in found:
      _leave_out(config)
  return config, [f"auto: {text}" for text in why]


def _leave_out(config):
  """Takes members out of a config that its thresholds do not allow; whether there were any."""
  asked = config.sweep.get("members", ())
  if not asked or max(config.sweep.thresholds, default=1) > members.MIDDLE:
    return False
  config.sweep.members = tuple(
    text for text in asked if members.parse(text, config.loss).target != "ordinal"
  )
  return len(config.sweep.members) < len(asked)


def _set(config, name, value):
  section, field = name.split(".")
  config[section][field] = value


def _chosen(config, open_places, patients):
  """Values by name, and why, of what is open; what is not stays, and the rest follows from it."""
  device = hardware.find_device()
  on_cpu = device.platform == "cpu"
  look = _look(config, patients)
  config, why = provisional(config), []

  def decide(name, value, text):
    if name in open_places:
      _set(config, name, value)
      why.append(text)

  with config.unlocked():
    kept, text = _thresholds(look)
    decide("sweep.thresholds", kept, text)
    if "sweep.thresholds" in open_places and _leave_out(config):
      why[-1] += "; without the ordinal network, which needs one above 50%"
    if width := initial.width_of(config.model.init_from):
      decide("model.width", width, f"width {width:g}, of what the networks start from")
    else:
      width = 0.5 if on_cpu else 1.0
      decide("model.width", width, f"width {width:g}, for a {device.platform}")
    if config.model.dtype == "auto":
      config.model.dtype, _ = hardware.choose_dtype(device)
    objective = Objective(config)
    models, classes = objective.n_models, look.classes * objective.head
    batch = min(look.frames, BATCH, 2 ** int(math.log2(max(2, look.frames // 2))))
    sizes = [_size_for(look.thinnest, look.side, MOST_CPU if on_cpu else MOST)]
    sizes += range(sizes[0] - UNIT, LEAST - 1, -UNIT)
    (rate,) = parallel.from_main([int(peak.matmul_rate(config.model.dtype) / 1e9)])
    share = estimate.SHARES["cpu" if on_cpu else "accelerator"]["segmentation"]
    budget = 60 * config.train.minutes * rate * 1e9 * share
    for size in sizes if "data.image_size" in open_places else [config.data.image_size]:
      config.data.image_size = size
      steps = _steps(config, look, models=models, classes=classes, batch=batch, budget=budget)
      if steps >= ENOUGH:
        break
    size = config.data.image_size
    decide("data.image_size", size, _of_size(look, size, sizes[0]))
    room = {"models": models, "classes": classes, "strategy": "loop"}
    while batch > 2 and hardware.step_memory(config, batch=batch, **room) > device.memory / 2:
      batch //= 2
    decide("train.batch_size", batch, f"batches of {batch}, of {plural(look.frames, 'frame')}")
    batch = config.train.batch_size
    steps = _steps(config, look, models=models, classes=classes, batch=batch, budget=budget)
    each = config.train.get("epoch_steps", 0) or 1
    steps = max(1, round(steps / each)) * each
    most = "; more are of no use for few frames" if steps >= TOO_MANY else ""
    decide(
      "train.steps",
      steps,
      f"{plural(steps, 'step')}, for about {config.train.minutes:g} minutes of "
      f"{plural(models, 'model')} on this {device.platform} at most{most}",
    )
    return {name: fields.value(config, name) for name in open_places}, why


def _steps(config, look, *, models, classes, batch, budget):
  """The training steps that a budget of FLOP allows, with validations; at most `TOO_MANY`."""
  design = designs.segmentation(config.model)
  flop = flops.TRAINING * design.flop(size=config.data.image_size, in_channels=1, classes=classes)
  every = config.train.get("epoch_steps", 0) or max(1, look.frames // batch)
  a_step = models * flop * (batch + look.validated / flops.TRAINING / every)
  return int(min(budget / a_step, TOO_MANY))


class _Look:
  """What the training frames look like at `side` pixels."""

  def __init__(self, dataset, side):
    train = dataset.splits["train"]
    self.side, self.frames, self.classes = side, len(train), len(dataset.classes)
    self.validated = len(dataset.splits["validation"])
    groups, area, _ = advice.groups_of(train, THRESHOLDS)
    # What no label shows cannot be learned.
    self.groups = [group for group in groups if area[group[0]]] or [[0.5]]
    widths = widths_of(train, len(dataset.classes))
    self.thinnest, self.name = min(zip(widths, dataset.classes, strict=True), default=(np.inf, ""))


def _look(config, patients):
  data = config.data.copy_and_resolve_references()
  with data.unlocked():
    data.image_size = LOOK_SIMULATED if data.name == "lus_phantom" else LOOK
  with parallel.main_first("look"):
    dataset = datasets.open_dataset(data, "frames")
  if patients is not None:
    dataset = dataset.regroup(patients)
  return _Look(selection.select(dataset, config.data).used, data.image_size)


def widths_of(source, classes):
  """How wide what is drawn of each class is, in pixels: medians over frames [K]; inf: never drawn.

  On a strip of width w the mean distance to its outside is w / 4, and half a pixel more.
  """
  found = [[] for _ in range(classes)]
  frames = source.only("confidence")
  n = min(len(source), advice.N_LOOKED)
  for i in np.linspace(0, len(source) - 1, n).astype(int).tolist():
    for k, plane in enumerate(np.moveaxis(frames[i]["confidence"], -1, 0)):
      if plane.any():
        mask = plane >= min(128, plane.max())
        (around,) = ndimage.find_objects(mask.astype(np.uint8))
        mask = np.pad(mask[around], 1)
        distance = ndimage.distance_transform_edt(mask)[mask]
        found[k].append(max(1.0, 4 * (float(distance.mean()) - 0.5)))
  return [float(np.median(one)) if one else np.inf for one in found]


def _size_for(width, look, most):
  """Pixels a side at which lines so wide at `look` pixels are `LINE` wide."""
  wanted = UNIT * math.ceil(look * LINE / width / UNIT) if np.isfinite(width) else USUAL
  return min(max(wanted, USUAL), most)


def _of_size(look, size, first):
  text = f"images of {size} x {size}"
  if np.isfinite(look.thinnest):
    wide = look.thinnest * size / look.side
    text += f", where {look.name}, the thinnest class, is about {wide:.2g} pixels wide"
  if size < first:
    text += f"; {first} would take more time than there is for {ENOUGH} steps"
  return text


def _thresholds(look):
  kept = tuple(min(group, key=lambda t: abs(t - 0.5)) for group in look.groups)
  shown = ", ".join(map(cells.percent, kept))
  text = f"the {'threshold' if len(kept) == 1 else 'thresholds'} {shown}"
  if len(kept) < len(THRESHOLDS):
    text += ": the others' labels are the same, or empty"
  return kept, text
