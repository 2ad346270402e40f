"""The segmentation task: one network per confidence threshold, all trained on the same batches."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp

from lus_jax import losses, models, parallel
from lus_jax.data import augment as augment_lib
from lus_jax.data import datasets, pipeline, summary
from lus_jax.errors import UserError
from lus_jax.evaluation import metrics, results
from lus_jax.evaluation.segmentation import collect, evaluate, predict
from lus_jax.labels import SLACK, label
from lus_jax.models import flops, torch_weights
from lus_jax.report import palette, tables
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import hardware, loop, writers
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy

# Results files; the run is finished when all are there.
RESULTS = ("dataset", "history", "cases", "segmentation_matrix", "segmentation")
# Test frames whose predictions are kept for the report, by rank of their mean IoU.
N_BEST, N_MIDDLE, N_WORST = 2, 1, 2
# Validation frames shown in TensorBoard, and their largest side in pixels.
N_PANELS, PANEL_SIZE = 3, 128


def check(config):
  """Refuses values of a config that no run could use (`UserError`); nothing is written before."""
  thresholds = config.sweep.thresholds
  if not isinstance(thresholds, tuple | list) or not thresholds:
    raise UserError("config.sweep.thresholds is empty; name at least one, as in '(.6, .5)'.")
  for threshold in thresholds:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
      raise UserError(f"config.sweep.thresholds: '{threshold}' is not a number.")
    if not 0 <= threshold <= 1:
      raise UserError(f"config.sweep.thresholds: {threshold} is not in [0, 1]; write 60 % as .6.")
  for i, threshold in enumerate(thresholds):
    # Closer than half a storage step, two thresholds are the same label.
    if any(abs(threshold - other) <= SLACK for other in thresholds[:i]):
      raise UserError(f"config.sweep.thresholds: {threshold} stands there twice; name it once.")
  for name, low in {
    "train.epochs": 1,
    "train.batch_size": 0,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "sweep.seeds": 1,
  }.items():
    section, field = name.split(".")
    if config[section][field] < low:
      raise UserError(f"config.{name}: {config[section][field]} must be at least {low}.")
  for name, seed in {"seed": config.seed, "data.split_seed": config.data.split_seed}.items():
    if not 0 <= seed < 2**31:
      raise UserError(f"config.{name}: {seed} must be at least 0 and below 2^31.")
  rate = config.optimizer.learning_rate
  if not (rate > 0 and math.isfinite(rate)):
    raise UserError(f"config.optimizer.learning_rate: {rate} must be a positive number.")
  # Tracing the loss is the check of its options, whatever they are.
  pixels = jax.ShapeDtypeStruct((1, 1, 1, 1), np.float32)
  inputs = {"confidence": pixels, "where": jax.ShapeDtypeStruct((1, 1, 1, 1), bool)}
  jax.eval_shape(lambda logits, inputs: _loss(config.loss, logits, inputs, 0.5), pixels, inputs)
  models.check(config.model)
  if config.model.init_from:
    models.check_init_from(config.model, video=False)
  augment_lib.check(config.augment)
  pipeline.choose_cache_for(config.data.cache, 0)
  choose_strategy(config.sweep.strategy)


def make_members(config):
  """The members of the sweep: every threshold, for every seed.

  Returns:
    Their names and a list of `{"threshold", "seed"}` of NumPy scalars.
  """
  names, members = [], []
  for seed in range(config.sweep.seeds):
    for threshold in config.sweep.thresholds:
      suffix = f"_seed_{seed}" if config.sweep.seeds > 1 else ""
      names.append(f"threshold_{threshold:g}{suffix}")
      members.append({"threshold": np.float32(threshold), "seed": np.int32(seed)})
  return names, members


def make_loss(network, config):
  """The loss of one member: `(params, batch_stats, member, inputs, key) -> (loss, batch_stats)`.

  Members of one seed share the dropout key, so that they differ in their threshold alone.
  """

  def loss_fn(params, batch_stats, member, inputs, key):
    key = jax.random.fold_in(key, member["seed"])
    logits, batch_stats = network(params, batch_stats, inputs["image"], train=True, key=key)
    return _loss(config, logits, inputs, member["threshold"]), batch_stats

  return loss_fn


def _loss(config, logits, inputs, threshold):
  return losses.training_loss(
    config.name,
    logits=logits,
    confidence=inputs["confidence"],
    threshold=threshold,
    where=inputs["where"],
    weights=config.weights,
    subthreshold_weight=config.subthreshold_weight,
    reduction=config.reduction,
  )


def make_optimizer(config, steps):
  """Adam with a cosine decay to 0 over the whole run; returns it and its schedule."""
  schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
  return optax.adam(schedule), schedule


def create_sweep(config, *, in_channels, classes, tx, weights=None):
  """Builds the network and the initial state of all members.

  Args:
    config: a run's config.
    in_channels: channels of the image.
    classes: K.
    tx: the optimizer.
    weights: a PyTorch state dict that every member starts from; what it lacks is random.

  Returns:
    The `Network`, the `Sweep`, its initial state and the members' names. Members of one seed start
    from the same weights.
  """
  networks = [
    state_lib.Network(
      models.build_model(
        config.model, in_channels=in_channels, classes=classes, seed=config.seed + seed
      )
    )
    for seed in range(config.sweep.seeds)
  ]
  if weights is not None:
    for network in networks:
      network.params, network.batch_stats = torch_weights.load_into(
        network.params, network.batch_stats, weights, source=config.model.init_from
      )
  names, members = make_members(config)
  sweep = Sweep(members, choose_strategy(config.sweep.strategy))
  states = [
    state_lib.create_state(
      networks[member["seed"]].params, networks[member["seed"]].batch_stats, tx
    )
    for member in members
  ]
  return networks[0], sweep, sweep.place(states), names


def make_validation(network, sweep, frames, config):
  """The validation after an epoch: IoU at the member's own threshold, and its loss.

  Args:
    network: a `Network`.
    sweep: the `Sweep`.
    frames: `lus_jax.data.pipeline.Frames` of the validation split.
    config: a run's config.

  Returns:
    `sweep state -> rows, images`: T dicts with `score` (the mean IoU) and `loss` (mean over
    images), and pictures of the first frames with every member's labels and predictions.
  """

  def evaluate(state, member, inputs):
    logits, _ = network(state.params, state.batch_stats, inputs["image"])
    each = jax.vmap(
      lambda logits, one: _loss(
        config.loss, logits[None], jax.tree.map(lambda x: x[None], one), member["threshold"]
      )
    )
    output = losses.output_logits(config.loss.name, logits=logits, where=inputs["where"])
    sums = metrics.iou_sums(
      logits=output,
      confidence=inputs["confidence"],
      where=inputs["where"],
      threshold=member["threshold"],
    )
    return {"loss": each(logits, inputs), **sums}, jax.nn.sigmoid(output[:N_PANELS]) >= 0.5

  evaluate = sweep.compile(evaluate)

  def validate(state):
    rows, panels = [], []

    def sums(inputs, batch):
      result, predictions = evaluate(state, sweep.members, inputs)
      if not panels:
        panels.append(_panels(inputs, sweep.to_host(predictions), config.sweep.thresholds))
      return sweep.to_host(result)

    for images in collect(sums, frames, config.train.batch_size):
      loss = float(np.mean(images.pop("loss"), dtype=np.float64))
      iou, *_ = metrics.mean_iou(**images)
      rows.append({"score": None if math.isnan(iou) else iou, "loss": loss})
    return rows, {"validation_frames": panels[0]}

  return validate


def _panels(inputs, predictions, thresholds):
  """Pictures [n, 2 h, (1 + T) w, 3]: the frame and its labels over the confidence and predictions.

  Frames are thinned to at most `PANEL_SIZE` pixels: a picture an epoch has to stay small.
  """
  image, confidence = (
    np.asarray(inputs[name][:N_PANELS], np.float32) for name in ("image", "confidence")
  )
  stride = -(-max(image.shape[1:3]) // PANEL_SIZE)
  panels = []
  for i in range(len(image)):
    grey = np.rint(255 * image[i])

    def cell(weights, grey=grey):
      return palette.overlay(grey, np.asarray(weights, float))[::stride, ::stride]

    labels = [np.asarray(label(confidence[i], t)) for t in thresholds]
    # With several seeds, the first one's.
    shown = [member[i] for member in predictions[: len(thresholds)]]
    top = [cell(np.zeros_like(confidence[i])), *map(cell, labels)]
    panels.append(
      np.concatenate(
        [np.concatenate(row, axis=1) for row in (top, [cell(confidence[i]), *map(cell, shown)])]
      )
    )
  return np.stack(panels)


def make_task(network, sweep, names, validation, config, *, tx, schedule, work=None):
  """What `lus_jax.training.loop.fit` needs to know of segmentation."""
  return loop.Task(
    names=names,
    prepare=lambda batch, key: augment_lib.prepare(batch, key, config.augment),
    loss_fn=make_loss(network, config.loss),
    tx=tx,
    schedule=schedule,
    validate=make_validation(network, sweep, validation, config),
    work=work,
  )


def training_flop(config, *, classes):
  """FLOP of one model's training step on one image, forward and backward."""
  return flops.TRAINING * flops.fpn(
    config.model.encoder,
    size=config.data.image_size,
    in_channels=1,
    classes=classes,
    width=config.model.width,
  )


def train_and_evaluate(config, workdir, patients=None):
  """Trains the sweep, evaluates the best epoch of every member on the test split, writes results.

  Args:
    config: a run's config (`configs/seg.py`).
    workdir: the run's directory; a broken run goes on where its last checkpoint was.
    patients: the patients of each split, where they are not to be the data set's own.

  Raises:
    UserError: the config or the data are not in order, or the directory is another run's.
  """
  check(config)
  config = hardware.as_begun(config, workdir)
  checkpoints_lib.check_claim(workdir, checkpoints_lib.settings(config))
  device = hardware.find_device()
  finished = results.exists(workdir, *RESULTS)
  if not finished and (warning := _slow_recipe(config, device)):
    print(warning, flush=True)
  with parallel.main_first("data"):
    dataset = datasets.open_dataset(config.data, "frames")
  if patients is not None:
    dataset = dataset.regroup(patients)
  cache = pipeline.choose_cache(config.data.cache, dataset.splits.values())
  config, why = hardware.resolve(
    config,
    device,
    frames=len(dataset.splits["train"]),
    classes=len(dataset.classes),
    strategy=choose_strategy(config.sweep.strategy),
  )
  settings = checkpoints_lib.settings(config)
  mesh = Sweep(make_members(config)[1], choose_strategy(config.sweep.strategy)).mesh
  train, validation = (
    pipeline.Frames(dataset.splits[name], cache=cache, mesh=mesh)
    for name in ("train", "validation")
  )
  batches = train.training_batches(config.train.batch_size, seed=config.seed)
  steps_per_epoch = train.size // config.train.batch_size
  tx, schedule = make_optimizer(config.optimizer, config.train.epochs * steps_per_epoch)
  file = config.model.init_from
  network, sweep, state, names = create_sweep(
    config,
    in_channels=1,
    classes=len(dataset.classes),
    tx=tx,
    weights=torch_weights.read(file) if file else None,
  )
  # Splits of equal sizes can be of other patients, and files of one name of other weights.
  own = {} if patients is None else {"patients": patients}
  if file:
    own["initial"] = torch_weights.digest(file)
  checkpoints_lib.claim(workdir, settings, dataset.summary() | own)
  steps = config.train.epochs * steps_per_epoch
  print(_describe(config, dataset, network, sweep, steps), flush=True)
  print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=cache), flush=True)

  if not finished:
    with contextlib.ExitStack() as stack:
      checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(workdir)))
      writer = stack.enter_context(contextlib.closing(writers.create_writer(workdir)))
      writers.write_overview(writer, settings, network.params)
      work = hardware.Work(
        images=config.train.batch_size,
        flop=training_flop(config, classes=len(dataset.classes)),
        validated=validation.size,
        dtype=config.model.dtype,
      )
      task = make_task(
        network, sweep, names, validation, config, tx=tx, schedule=schedule, work=work
      )
      state, meta = loop.fit(
        task,
        sweep,
        state,
        batches,
        config=config.train,
        steps_per_epoch=steps_per_epoch,
        key=jax.random.key(config.seed),
        checkpoints=checkpoints,
        writer=writer,
      )
      fields = (*pipeline.FIELDS, *(["evidence"] if dataset.simulated else []))
      evaluation = evaluate(
        network,
        sweep,
        state,
        train=train,
        validation=validation,
        test=pipeline.Frames(dataset.splits["test"], cache=cache, fields=fields, mesh=mesh),
        classes=dataset.classes,
        thin=dataset.thin,
        config=config,
      )
      examples = make_examples(network, sweep, state, evaluation, dataset, config)
      results.write_examples(workdir, **examples)
      write_results(workdir, evaluation, meta, config, dataset, settings)
      writers.write_final(
        writer,
        config.train.epochs * steps_per_epoch,
        dict(zip(names, evaluation.members, strict=True)),
        config.sweep.thresholds,
      )
  parallel.sync("segmentation results")
  print(tables.segmentation(results.read(workdir, "segmentation")))


@dataclasses.dataclass(frozen=True)
class Trained:
  """The frozen models of a finished sweep: the best epoch of every threshold (of the first seed).

  Attributes:
    config: the run's config.
    dataset: what its results files say of its data set.
    patients: the patients of each split.
    network: a `Network`.
    sweep: a `Sweep` over the thresholds alone.
    weights: its state: a dict of `params` and `batch_stats`.
  """

  config: Any
  dataset: dict[str, Any]
  patients: dict[str, list[str]]
  network: state_lib.Network
  sweep: Sweep
  weights: Any

  @property
  def classes(self):
    """K class names."""
    return tuple(self.dataset["classes"])

  @property
  def thresholds(self):
    """One number a member."""
    return tuple(self.config.sweep.thresholds)

  def only(self, numbers):
    """The models of these members alone, by their place in the sweep."""
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.sweep.thresholds = tuple(self.thresholds[i] for i in numbers)
    sweep = Sweep([self.sweep.members[i] for i in numbers], self.sweep.strategy)
    held = self.sweep.to_host(self.weights)
    weights = sweep.place([held[i] for i in numbers])
    return dataclasses.replace(self, config=config, sweep=sweep, weights=weights)

  def probability(self, weights, member, image, where):
    """Probabilities of one member, for `sweep.compile`.

    Args:
      weights: of this member.
      member: the member, not used: it is all in the weights.
      image: [B, H, W, 1] in [0, 1].
      where: [B, H, W, 1] bool, False where a pixel was not in the original frame.

    Returns:
      [B, H, W, K], 0 outside.
    """
    logits, _ = self.network(weights["params"], weights["batch_stats"], image)
    where = jnp.broadcast_to(where, logits.shape)
    output = losses.output_logits(self.config.loss.name, logits=logits, where=where)
    return jnp.where(where, jax.nn.sigmoid(output), 0)

  @functools.cached_property
  def fingerprints(self):
    """A short text for every threshold that changes with the weights or what becomes of them."""
    found = []
    for weights in self.sweep.to_host(self.weights):
      digest = hashlib.sha256(repr((self.config.model.to_dict(), self.config.loss.name)).encode())
      for leaf in jax.tree.leaves(weights):
        digest.update(np.ascontiguousarray(leaf).tobytes())
      found.append(digest.hexdigest()[:12])
    return found


def load(workdir):
  """Loads the frozen models of a finished segmentation run.

  Args:
    workdir: the run's directory.

  Returns:
    A `Trained`.

  Raises:
    UserError: there is no finished segmentation run, or it lacks its checkpoint.
  """
  claim = checkpoints_lib.read_claim(workdir)
  if claim is None or claim["config"].get("task") != "segmentation":
    raise UserError(
      f"{workdir} holds no segmentation run; name one with --config.channels.workdir=DIR, or train "
      f"one: python -m lus_jax.main --config configs/seg.py --workdir {workdir}"
    )
  if not results.exists(workdir, *RESULTS):
    raise UserError(
      f"the segmentation run in {workdir} is not finished; repeat its command to go on with it."
    )
  if not (pathlib.Path(workdir) / checkpoints_lib.DIRECTORY).is_dir():
    raise UserError(
      f"{workdir} holds the results of a segmentation run but no checkpoints/ with its best "
      "models; bring them back, or train again in another --workdir."
    )
  try:
    rows = results.read(workdir, "dataset")["rows"]
    patients = {row["split"]: row["patient_names"] for row in rows}
  except (KeyError, TypeError) as error:
    raise UserError(
      f"{workdir}/results/dataset.json does not say who was trained on; it was written by another "
      "version, so train again in another --workdir."
    ) from error
  # A machine that only trains on arrays may lack it.
  from ml_collections import ConfigDict

  config = ConfigDict(claim["config"])
  config.model.init_from = config.model.get("init_from", "")  # runs from before it lack the field
  _, members = make_members(config)
  network = state_lib.Network(
    models.build_model(
      config.model, in_channels=1, classes=len(claim["dataset"]["classes"]), seed=config.seed
    )
  )
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(members), *x.shape), x.dtype),
    {"params": network.params, "batch_stats": network.batch_stats},
  )
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir)) as checkpoints:
    if checkpoints.latest() is None:
      raise UserError(
        f"{workdir}/{checkpoints_lib.DIRECTORY} holds no checkpoint; train again in another "
        "--workdir."
      )
    weights = checkpoints.restore_best(stacked)
  n = len(config.sweep.thresholds)
  # How models are run is up to the machine they are run on.
  sweep = Sweep(members[:n], choose_strategy("auto"))
  return Trained(
    config=config,
    dataset=claim["dataset"],
    patients=patients,
    network=network,
    sweep=sweep,
    weights=sweep.unstack(jax.tree.map(lambda x: x[:n], weights)),
  )


def make_examples(network, sweep, state, evaluation, dataset, config):
  """The best, middle and worst test frames with what every member makes of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep`.
    state: its state.
    evaluation: what `evaluate` returned.
    dataset: a `Dataset` of frames.
    config: a run's config.

  Returns:
    A dict of arrays: `index` [n] into the test split, `role` [n] ('best', 'middle', 'worst'),
    `image` [n, H, W, 1], `confidence` [n, H, W, K] and `probability` [T, n, H, W, K] uint8,
    `labelled`, `valid_box`; of simulated data also `truth` and `evidence`.
  """
  defined = ~np.isnan(evaluation.image_iou)
  mean = np.where(defined, evaluation.image_iou, 0).sum(0) / np.maximum(defined.sum(0), 1)
  ranked = [i for i in np.argsort(-mean, kind="stable").tolist() if defined[:, i].any()]
  ranked = ranked or list(range(len(mean)))
  middle = max(0, (len(ranked) - N_MIDDLE) // 2)
  # A small test split has fewer frames than roles; each frame is shown once.
  roles = dict.fromkeys(ranked[middle : middle + N_MIDDLE], "middle")
  roles |= {i: "worst" for i in ranked[-N_WORST:] if i not in roles}
  roles |= {i: "best" for i in ranked[:N_BEST] if roles.get(i) != "middle"}
  chosen = sorted(roles, key=ranked.index)
  fields = (*pipeline.FIELDS, *(["truth", "evidence"] if dataset.simulated else []))
  test = dataset.splits["test"]
  arrays = pipeline.load([test[i] for i in chosen], fields)
  batch = {name: arrays[name] for name in pipeline.FIELDS}
  probability = predict(network, sweep, state, batch, loss=config.loss.name)
  return arrays | {
    "index": np.asarray(chosen),
    "role": np.asarray([roles[i] for i in chosen]),
    "probability": np.rint(255 * probability).astype(np.uint8),
  }


def _slow_recipe(config, device):
  # Before the data are prepared, which takes minutes itself, the paper's numbers have to do.
  frames, classes = 355, 6
  if config.data.name == "lus_phantom":
    frames = frames / 42 * config.data.phantom.n_patients
  images = len(make_members(config)[0]) * config.train.epochs * frames
  dtype = hardware.resolve(config, device)[0].model.dtype
  return hardware.slow_recipe(images * training_flop(config, classes=classes), device, dtype=dtype)


def _describe(config, dataset, network, sweep, steps):
  millions = sum(x.size for x in jax.tree.leaves(network.params)) / 1e6
  sizes = ", ".join(f"{len(source)} {name}" for name, source in dataset.splits.items())
  size = config.data.image_size
  lines = [
    f"{dataset.name}: {sizes} frames of {size} x {size}, {len(dataset.classes)} classes",
    f"{len(sweep.members)} models (FPN {config.model.encoder}, {millions:.1f} M parameters each), "
    f"{config.train.epochs} epochs, {steps} steps",
    *(f"note: {note}" for note in dataset.notes),
  ]
  return "\n".join(lines)


def write_results(workdir, evaluation, meta, config, dataset, settings):
  """Writes the results files of the task (definitions: `lus_jax.evaluation.metrics`)."""
  names, members = make_members(config)
  rows, matrix = [], []
  for member, best, scores in zip(members, meta["best"], evaluation.members, strict=True):
    # The config's own number: the member's float32 prints as .6000000238.
    threshold = config.sweep.thresholds[len(rows) % len(config.sweep.thresholds)]
    seed = int(member["seed"])
    scores = dict(scores)
    matrix += [
      {"model_threshold": threshold, "seed": seed, **row, "evaluation_threshold": t}
      for row, t in zip(scores.pop("matrix"), config.sweep.thresholds, strict=True)
    ]
    rows.append({"threshold": threshold, "seed": seed, "best_epoch": best["epoch"], **scores})
  predictors = [
    {"predictor": name, "threshold": threshold}
    | {key: value for key, value in scores.items() if key != "matrix"}
    for name, each in evaluation.baselines.items()
    for threshold, scores in zip(config.sweep.thresholds, each, strict=True)
  ]
  cases = [
    {
      "index": i,
      **summary.provenance(example),
      "iou": {
        name: None if math.isnan(iou) else float(iou)
        for name, iou in zip(names, evaluation.image_iou[:, i], strict=True)
      },
    }
    for i, example in enumerate(dataset.splits["test"])
  ]
  contents = {
    "dataset": {"rows": summary.summarize(dataset)},
    "cases": {"split": "test", "rows": cases},
    "history": {"rows": meta["history"]},
    "segmentation_matrix": {"rows": matrix},
    "segmentation": {
      "split": "test",
      "rows": rows,
      "predictors": predictors,
      "notes": list(dataset.notes),
    },
  }
  for name in RESULTS:
    results.write(workdir, name, config=settings, dataset=dataset.summary(), **contents[name])
