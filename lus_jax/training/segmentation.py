"""The segmentation task: one network per confidence threshold, all trained on the same batches."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib

import jax
import numpy as np
import optax
from absl import logging

from lus_jax import lock, losses, models, palette, parallel, results
from lus_jax.data import augment as augment_lib
from lus_jax.data import datasets, labelling, pipeline, summary
from lus_jax.errors import UserError
from lus_jax.evaluation import metrics, statistics
from lus_jax.evaluation import raters as raters_lib
from lus_jax.evaluation import segmentation as evaluation_lib
from lus_jax.inference import calibration, trained
from lus_jax.labels import label
from lus_jax.models import flops, torch_weights
from lus_jax.report import cells, text
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import estimate, hardware, loop, writers
from lus_jax.training import members as members_lib
from lus_jax.training import objective as objective_lib
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy
from lus_jax.words import many, plural

# Test frames whose predictions are kept for the report, by rank of their mean IoU.
N_BEST, N_MIDDLE, N_WORST = 2, 1, 2
# Test images shown that raters agree on most, and least.
N_AGREED = 2
# Labels that agree in this share of their pixels are called the same; the edges of binary masks are
# interpolated. So many training frames are looked at.
SAME, SAME_BINARY, N_LOOKED = 0.99, 0.9, 100
# Validation frames below which the choice of epochs is called chance.
FEW = 5
# Validation frames shown in TensorBoard, and their largest side in pixels.
N_PANELS, PANEL_SIZE = 3, 128


def check(config):
  """Refuses values of a config that no run could use (`UserError`); nothing is written before."""
  members_lib.read(config)
  for name, low in {
    "train.epochs": 1,
    "train.batch_size": 0,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.steps": 0,
    "sweep.seeds": 1,
  }.items():
    section, field = name.split(".")
    if config[section].get(field, low) < low:
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
  jax.eval_shape(
    lambda logits, inputs: losses.training_loss(
      config.loss.name, logits=logits, threshold=0.5, **_options(config.loss), **inputs
    ),
    pixels,
    inputs,
  )
  models.check(config.model)
  if config.model.init_from:
    models.check_init_from(config.model, video=False)
  augment_lib.check(config.augment)
  pipeline.choose_cache_for(config.data.cache, 0)
  choose_strategy(config.sweep.strategy)
  calibration.check_method(config.calibration)
  labelling.check_method(config.labels.standardise)


def _options(config):
  return {name: config[name] for name in ("weights", "subthreshold_weight", "reduction")}


def make_loss(network, objective):
  """The loss of one member: `(params, batch_stats, member, inputs, key) -> (loss, batch_stats)`.

  Members of one seed share the dropout key, so that they differ in their target alone.
  """

  def loss_fn(params, batch_stats, member, inputs, key):
    key = jax.random.fold_in(key, member["seed"])
    raw, batch_stats = objective.logits(
      network, params, batch_stats, inputs["image"], train=True, key=key
    )
    return objective.loss(raw, inputs, member, key), batch_stats

  return loss_fn


def make_optimizer(config, steps):
  """Adam with a cosine decay to 0 over the whole run; returns it and its schedule."""
  schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
  return optax.adam(schedule), schedule


def create_sweep(config, objective, *, in_channels, classes, tx, weights=None):
  """Builds the network and the initial state of all members.

  Args:
    config: a run's config.
    objective: its `members.Objective`.
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
        config.model,
        in_channels=in_channels,
        classes=classes,
        levels=objective.head,
        seed=config.seed + seed,
      )
    )
    for seed in range(config.sweep.seeds)
  ]
  if weights is not None:
    for network in networks:
      network.params, network.batch_stats = torch_weights.load_into(
        network.params,
        network.batch_stats,
        weights,
        source=config.model.init_from,
        head=objective.head == 1,
      )
  names, members = objective_lib.make_members(config, objective)
  sweep = Sweep(members, choose_strategy(config.sweep.strategy))
  states = [
    state_lib.create_state(
      networks[member["seed"]].params, networks[member["seed"]].batch_stats, tx
    )
    for member in members
  ]
  return networks[0], sweep, sweep.place(states), names


def make_validation(network, sweep, frames, config, objective, classes=()):
  """The validation after an epoch: IoU at the member's own threshold, and its loss.

  A member without a threshold, whose output is a confidence, is judged at .5.

  Args:
    network: a `Network`.
    sweep: the `Sweep`.
    frames: `lus_jax.data.pipeline.Frames` of the validation split.
    config: a run's config.
    objective: its `members.Objective`.
    classes: K names, for `score_per_class`; () for none.

  Returns:
    `sweep state -> rows, images`: T dicts with `score` (the mean IoU), `loss` (mean over images)
    and `score_per_class` (a dict by name), and pictures of the first frames with every member's
    labels and predictions.
  """

  def evaluate(state, member, inputs):
    raw, _ = objective.logits(network, state.params, state.batch_stats, inputs["image"])

    def one_loss(raw, one):
      return objective.loss(raw[None], jax.tree.map(lambda x: x[None], one), member)

    output = objective.output(raw, inputs, member)
    sums = metrics.iou_sums(
      logits=output,
      confidence=inputs["confidence"],
      where=inputs["where"],
      threshold=member["threshold"],
    )
    return {"loss": jax.vmap(one_loss)(raw, inputs), **sums}, jax.nn.sigmoid(
      output[:N_PANELS]
    ) >= 0.5

  evaluate = sweep.compile(evaluate)

  def validate(state):
    rows, panels = [], []

    def sums(inputs, batch):
      result, predictions = evaluate(state, sweep.members, inputs)
      if not panels:
        panels.append(_panels(inputs, sweep.to_host(predictions), objective.members))
      return sweep.to_host(result)

    for images in evaluation_lib.collect(sums, frames, config.train.batch_size):
      loss = float(np.mean(images.pop("loss"), dtype=np.float64))
      iou, per_class, _ = metrics.mean_iou(**images)
      rows.append({"score": _defined(iou), "loss": loss})
      if classes:
        each = zip(classes, per_class.tolist(), strict=True)
        rows[-1]["score_per_class"] = {name: _defined(value) for name, value in each}
    return rows, {"validation_frames": panels[0]}

  return validate


def _defined(value):
  return None if math.isnan(value) else value


def _panels(inputs, predictions, members):
  """Pictures [n, 2 h, (1 + T) w, 3]: the frame and its labels over the confidence and predictions.

  The label of a member without a threshold is the confidence.

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

    labels = [
      confidence[i] if one.is_soft else np.asarray(label(confidence[i], one.threshold))
      for one in members
    ]
    # With several seeds, the first one's.
    shown = [member[i] for member in predictions[: len(members)]]
    top = [cell(np.zeros_like(confidence[i])), *map(cell, labels)]
    panels.append(
      np.concatenate(
        [np.concatenate(row, axis=1) for row in (top, [cell(confidence[i]), *map(cell, shown)])]
      )
    )
  return np.stack(panels)


def make_task(
  network, sweep, names, validation, config, objective, *, tx, schedule, work=None, classes=()
):
  """What `lus_jax.training.loop.fit` needs to know of segmentation."""
  return loop.Task(
    names=names,
    prepare=lambda batch, key: augment_lib.prepare(batch, key, config.augment),
    loss_fn=make_loss(network, objective),
    tx=tx,
    schedule=schedule,
    validate=make_validation(network, sweep, validation, config, objective, classes),
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
  claim_lib.check_claim(workdir, claim_lib.settings(config), more_epochs=True)
  with lock.hold(workdir):
    _train_and_evaluate(config, workdir, patients)


def _train_and_evaluate(config, workdir, patients):
  device = hardware.find_device()
  before = claim_lib.fewer_epochs(workdir, config.train)
  if before is not None:
    _check_no_tasks(workdir)
  finished = before is None and results.exists(workdir, *trained.RESULTS)
  strategy = choose_strategy(config.sweep.strategy)
  if not finished and (warning := hardware.too_large(config, device, strategy=strategy)):
    logging.warning(warning)
  with parallel.main_first("data"):
    dataset = datasets.open_dataset(config.data, "frames")
  if patients is not None:
    dataset = dataset.regroup(patients)
  members = members_lib.read(config)
  members_lib.check_raters(members, dataset.raters)
  objective = objective_lib.Objective(config, dataset.raters)
  # Only what is learnt from is put on a common scale: the test stays as it was painted.
  learnt = labelling.standardised(dataset, config.labels.standardise)
  fields = (*pipeline.fields_of(dataset), *members_lib.fields(members))
  stored = tuple(name for name in fields if name != "staple")  # as large as the confidence
  cache = pipeline.choose_cache(
    config.data.cache, dataset.splits.values(), (*stored, *["confidence"] * ("staple" in fields))
  )
  config, why = hardware.resolve(
    config,
    device,
    frames=len(dataset.splits["train"]),
    classes=len(dataset.classes) * objective.head,
    strategy=strategy,
  )
  settings = claim_lib.settings(config)
  mesh = Sweep(objective_lib.make_members(config, objective)[1], strategy).mesh
  train, validation = (
    pipeline.Frames(labelling.WithStaple(learnt[name]), cache=cache, fields=fields, mesh=mesh)
    for name in ("train", "validation")
  )
  batches = train.training_batches(config.train.batch_size, seed=config.seed)
  steps_per_epoch = train.size // config.train.batch_size
  tx, schedule = make_optimizer(config.optimizer, config.train.epochs * steps_per_epoch)
  file = config.model.init_from
  network, sweep, state, names = create_sweep(
    config,
    objective,
    in_channels=1,
    classes=len(dataset.classes),
    tx=tx,
    weights=torch_weights.read(file) if file else None,
  )
  # Splits of equal sizes can be of other patients, and files of one name of other weights.
  own = {} if patients is None else {"patients": patients}
  if file:
    own["initial"] = torch_weights.digest(file)
  if before is not None:
    # What is refused keeps its results.
    claim_lib.check_claim(workdir, settings, dataset.summary() | own, more_epochs=True)
    # A kill between the two lines leaves the run as it was, without its results.
    written = (*trained.RESULTS, "members", "raters", "calibration")
    results.remove(workdir, *(f"{name}.json" for name in written), "examples.npz")
    epochs, more = checkpoints_lib.progress(workdir)
    rate = schedule(epochs * steps_per_epoch + more)
    print(
      f"{workdir}: going on after {plural(epochs, 'epoch')} to {config.train.epochs}; the "
      f"learning rate, which now falls to 0 at the last of these, begins again at {rate:.2g}.",
      flush=True,
    )
  claim_lib.claim(workdir, settings, dataset.summary() | own, more_epochs=True)
  steps = config.train.epochs * steps_per_epoch
  print(_describe(config, dataset, network, sweep, steps, why), flush=True)
  print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=cache), flush=True)

  if not finished:
    flop = training_flop(config, classes=len(dataset.classes) * objective.head)
    images = steps * config.train.batch_size
    images += config.train.epochs * validation.size / flops.TRAINING
    for note in (
      same_labels(
        learnt["train"], config.sweep.thresholds, binary=dataset.metadata.get("binary", False)
      ),
      estimate.slow_recipe(config, len(names) * images * flop, device),
    ):
      if note:
        print(note, flush=True)
    with contextlib.ExitStack() as stack:
      checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(workdir)))
      writer = stack.enter_context(contextlib.closing(writers.create_writer(workdir)))
      writers.write_overview(writer, settings, network.params)
      work = estimate.Work(
        images=config.train.batch_size,
        flop=training_flop(config, classes=len(dataset.classes)),
        validated=validation.size,
        dtype=config.model.dtype,
      )
      task = make_task(
        network,
        sweep,
        names,
        validation,
        config,
        objective,
        tx=tx,
        schedule=schedule,
        work=work,
        classes=dataset.classes,
      )
      state, meta = loop.fit(
        task,
        sweep,
        state,
        batches,
        config=hardware.loop_settings(config),
        steps_per_epoch=steps_per_epoch,
        key=jax.random.key(config.seed),
        checkpoints=checkpoints,
        writer=writer,
      )
      _warn_of_unscored(names, meta["best"], config.train.epochs)
      extra = (*(["evidence"] if dataset.simulated else []),)
      extra += ("raters", "drawn") if dataset.raters else ()
      test = pipeline.Frames(
        dataset.splits["test"],
        cache=cache,
        fields=(*pipeline.fields_of(dataset), *extra),
        mesh=mesh,
      )
      finish(
        workdir,
        network,
        sweep,
        state,
        meta,
        objective,
        frames={"train": train, "validation": validation, "test": test},
        dataset=dataset,
        config=config,
        settings=settings,
        writer=writer,
      )
  parallel.sync("segmentation results")
  content = results.read(workdir, "segmentation")
  print(text.segmentation(content))
  counted = results.read(workdir, "dataset")["rows"]
  if advice := no_better_than_blind(content, counted, steps):
    print(advice)
  if results.exists(workdir, "raters"):
    print(text.raters(results.read(workdir, "raters")))


def _warn_of_unscored(names, best, epochs):
  never, undefined = (
    [name for name, x in zip(names, best, strict=True) if x["score"] == score]
    for score in (0, None)
  )
  if never:
    logging.warning(
      "In no epoch did %s draw anything of what is there on the validation frames: at .5 their "
      "IoU is 0 throughout. More epochs (--config.train.epochs=%d) may mend it, or fewer members.",
      ", ".join(never),
      4 * epochs,
    )
  if undefined:
    logging.warning(
      "No validation frame shows anything at the threshold of %s: their IoU is undefined there, "
      "and their last epoch stands in for the best.",
      ", ".join(undefined),
    )


def _check_no_tasks(workdir):
  """Refuses to train models further that clinical tasks in the same directory were made with."""
  workdir = pathlib.Path(workdir)
  claims = {path.parent.name: path.parent for path in workdir.glob(f"*/{claim_lib.OWNER}")}
  claims = {name: claim_lib.read_claim(path) for name, path in claims.items()}
  found = {name for name, claim in claims.items() if "segmentation" in (claim["dataset"] or ())}
  # Without their directories they would stay beside the new models' results all the same.
  history = "_history.json"
  found |= {path.name.removesuffix(history) for path in workdir.glob(f"results/*{history}")}
  for name in sorted(found):
    models_of = claims[name]["config"]["channels"]["workdir"] if name in claims else ""
    if models_of in ("", os.path.abspath(workdir)):
      raise UserError(
        f"{workdir}: {name} was made with the segmentation models as they are, and more epochs "
        f"change them; remove {workdir / name} and {workdir}/results/{name}*.json to make it anew, "
        "or train longer in another --workdir."
      )


def no_better_than_blind(content, counted, steps):
  """What to say where no threshold's network is above the mean map of its threshold; else empty.

  Empty too where no test label shows anything: there is no IoU to compare then.

  Args:
    content: of `results/segmentation.json`.
    counted: rows of `results/dataset.json`.
    steps: of the training.
  """
  bars = {x["threshold"]: x for x in content.get("predictors", ()) if x["predictor"] == "mean_map"}
  rows = [row for row in content["rows"] if any(row.get("label_images", {"": 1}).values())]
  pairs = [(row, bars.get(row["threshold"], {})) for row in rows]
  if not pairs or any((row["iou"] or 0) > (bar.get("iou") or 0) for row, bar in pairs):
    return ""
  by_split = {row["split"]: row for row in counted}
  test = by_split["test"]
  lines = [
    f"On {'this' if test['frames'] == 1 else 'these'} {plural(test['frames'], 'test frame')} "
    f"({plural(test['patients'], 'patient')}) no network's IoU is above that of the "
    "mean map, which looks at no picture: this test does not show that they look at it."
  ]
  for key, words, sign in (
    ("weighted_ce", "WeightedCE is below the mean map's", -1),
    ("iou_at_best_cut", "IoU at the best cut is above the mean map's", 1),
  ):
    better = [
      cells.percent(row["threshold"])
      for row, bar in pairs
      if None not in (row.get(key), bar.get(key)) and sign * (row[key] - bar[key]) > 0
    ]
    if better:
      lines.append(f"But {words} at: {', '.join(dict.fromkeys(better))}.")
  if not any(by_split["train"]["frames_with"].values()):
    lines.append("No training label shows anything: there was nothing to learn.")
  else:
    epochs = 4 * content["config"]["train"]["epochs"]
    lines.append(
      f"Often steps are too few (here {steps}; --config.train.epochs={epochs} takes more), "
      "pictures too small (--config.data.image_size) or the test too small."
    )
  return " ".join(lines)


def finish(
  workdir, network, sweep, state, meta, objective, *, frames, dataset, config, settings, writer
):
  """Calibrates and evaluates the best epoch of every member and writes all results.

  Args:
    workdir: the run's directory.
    network: a `Network`.
    sweep: the `Sweep`.
    state: its state after training.
    meta: of `loop.fit`.
    objective: a `members.Objective`.
    frames: `pipeline.Frames` by split.
    dataset: a `Dataset` of frames.
    config: a run's config.
    settings: of `checkpoints.settings`.
    writer: of `lus_jax.training.writers`.
  """
  views, scalars = objective_lib.make_views(config, objective)
  numbers = [view.member for view in views]
  thresholds = [view.threshold for view in views]
  calibrated = f"calibrating ({config.calibration}) and " if config.calibration != "none" else ""
  print(
    f"{calibrated}evaluating the best epochs: {plural(len(views), 'output')} on "
    f"{plural(frames['test'].size, 'test frame')}; compiling this takes a while too",
    flush=True,
  )
  # What only training needs would be copied for every level of an ordinal member.
  state = sweep.map(
    lambda one: dataclasses.replace(one, params=(), batch_stats=(), opt_state=()), state
  )
  sweep, state = sweep.take(state, numbers, scalars)
  common = {"objective": objective, "classes": dataset.classes, "config": config}
  counted = summary.summarize(dataset)
  compared = None
  if config.calibration != "none":
    fitted_on = _fitted_on(counted)
    fitted = evaluation_lib.fit_calibrations(
      network,
      sweep,
      state,
      thresholds=thresholds,
      # The levels of an ordinal member share one; its mean confidence has its own.
      groups=[(view.member, view.threshold is None) for view in views],
      validation=frames["validation"],
      **common,
    )
    compared = evaluation_lib.compare_calibrations(
      network,
      sweep,
      state,
      thresholds=thresholds,
      calibrations=fitted,
      test=frames["test"],
      **common,
    )
    chosen = fitted[config.calibration]
    trained.write_calibrations(workdir, views, chosen)
    sweep = Sweep(
      [
        own | {"calibration": calibration.parameters(one)}
        for own, one in zip(scalars, chosen, strict=True)
      ],
      sweep.strategy,
    )
  evaluation = evaluation_lib.evaluate(
    network, sweep, state, thresholds=thresholds, thin=dataset.thin, **frames, **common
  )
  rows = _result_rows(views, evaluation, meta, config, objective)
  for row in rows:
    if set(row["constant_classes"]) == set(dataset.classes):
      logging.warning(
        "member '%s' puts out the same number at every pixel of the test split and has no "
        "calibration error. Try another loss, learning rate or seed for it.",
        row["member"],
      )
  against_raters = None
  if dataset.raters:
    patients = [x["patient"].decode() for x in dataset.splits["test"].only("patient")]
    soft = [i for i, threshold in enumerate(thresholds) if threshold is None]
    curve_of = (soft or [0])[0]
    against_raters = evaluation_lib.evaluate_raters(
      network,
      sweep,
      state,
      test=frames["test"],
      patients=patients,
      persons=dataset.persons,
      curve_of=curve_of,
      **common,
    )
  examples = make_examples(network, sweep, state, views, evaluation, dataset, objective)
  if against_raters is not None:
    examples |= make_rater_examples(
      network, sweep, state, views, against_raters[-1], dataset, objective
    )
  results.write_examples(workdir, **examples)
  write = functools.partial(results.write, workdir, config=settings, dataset=dataset.summary())
  if compared is not None:
    rows_of = _calibration_rows(views, compared)
    write("calibration", split="test", chosen=config.calibration, fitted_on=fitted_on, rows=rows_of)
  if against_raters is not None:
    found = _rater_results(views, against_raters, rows, dataset, curve_of)
    write("raters", calibration=config.calibration, **found)
  write_results(
    workdir, evaluation, rows, meta, views, config, objective, dataset, settings, counted
  )
  writers.write_final(
    writer,
    config.train.epochs * (frames["train"].size // config.train.batch_size),
    {view.name: scores for view, scores in zip(views, evaluation.members, strict=True)},
    {
      row["member"]: row["threshold"]
      for row, view in zip(rows, views, strict=True)
      if objective_lib.is_plain(view, objective)
    },
  )


def make_examples(network, sweep, state, views, evaluation, dataset, objective):
  """The best, middle and worst test frames with what the models of the thresholds make of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep` of views.
    state: its state.
    views: the views.
    evaluation: what `evaluate` returned.
    dataset: a `Dataset` of frames.
    objective: a `members.Objective`.

  Returns:
    A dict of arrays: `index` [n] into the test split, `role` [n] ('best', 'middle', 'worst'),
    `image` [n, H, W, 1], `confidence` [n, H, W, K] and `probability` [T, n, H, W, K] uint8,
    `labelled`, `valid_box`; of simulated data also `truth` and `evidence`.
  """
  plain = [i for i, view in enumerate(views) if objective_lib.is_plain(view, objective)]
  image_iou = evaluation.image_iou[plain]
  defined = ~np.isnan(image_iou)
  mean = np.where(defined, image_iou, 0).sum(0) / np.maximum(defined.sum(0), 1)
  ranked = [i for i in np.argsort(-mean, kind="stable").tolist() if defined[:, i].any()]
  ranked = ranked or list(range(len(mean)))
  middle = max(0, (len(ranked) - N_MIDDLE) // 2)
  # A small test split has fewer frames than roles; each frame is shown once.
  roles = dict.fromkeys(ranked[middle : middle + N_MIDDLE], "middle")
  roles |= {i: "worst" for i in ranked[-N_WORST:] if i not in roles}
  roles |= {i: "best" for i in ranked[:N_BEST] if roles.get(i) != "middle"}
  chosen = sorted(roles, key=ranked.index)
  fields = (*pipeline.fields_of(dataset), *(["truth", "evidence"] if dataset.simulated else []))
  arrays, probability = _predicted(
    network, *sweep.take(state, plain), dataset, chosen, objective, fields
  )
  return arrays | {
    "index": np.asarray(chosen),
    "role": np.asarray([roles[i] for i in chosen]),
    "probability": probability,
  }


def make_rater_examples(network, sweep, state, views, disagreement, dataset, objective):
  """The test images that raters agree on most and least, with what every model makes of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep` of views.
    state: its state.
    views: the views.
    disagreement: of every test image, [N]; NaN where no rater drew.
    dataset: a `Dataset` of frames with raters.
    objective: a `members.Objective`.

  Returns:
    A dict of arrays: `rater_index` [n] into the test split, `rater_role` [n] ('most_agreed',
    'least_agreed'), `rater_image` [n, H, W, 1], `rater_confidence` [n, H, W, K] and
    `rater_probability` [V, n, H, W, K] uint8, `rater_disagreement` [n, H, W, K] (the raters'
    variance, 0 to .25), `rater_names` [V] and `rater_valid_box` [n, 4].
  """
  ranked = [i for i in np.argsort(disagreement, kind="stable").tolist() if disagreement[i] >= 0]
  roles = dict.fromkeys(ranked[:N_AGREED], "most_agreed")
  roles |= {i: "least_agreed" for i in ranked[-N_AGREED:] if i not in roles}
  fields = (*pipeline.FIELDS, "raters", "drawn")
  arrays, probability = _predicted(network, sweep, state, dataset, list(roles), objective, fields)
  where = np.asarray(augment_lib.prepare({name: arrays[name] for name in pipeline.FIELDS})["where"])
  _, variance = raters_lib.disagreement(arrays["raters"], arrays["drawn"], where)
  return {
    "rater_index": np.asarray(list(roles)),
    "rater_role": np.asarray(list(roles.values())),
    "rater_image": arrays["image"],
    "rater_confidence": arrays["confidence"],
    "rater_disagreement": variance.astype(np.float32),
    "rater_names": np.asarray([view.name for view in views]),
    "rater_probability": probability,
    "rater_valid_box": arrays["valid_box"],
  }


def _predicted(network, sweep, state, dataset, chosen, objective, fields):
  """Some test frames, and every view's probabilities [V, n, H, W, K] uint8."""
  test = dataset.splits["test"]
  arrays = pipeline.load([test[i] for i in chosen], fields)
  batch = {name: arrays[name] for name in pipeline.fields_of(dataset)}
  probability = evaluation_lib.predict(network, sweep, state, batch, objective=objective)
  return arrays, np.rint(255 * probability).astype(np.uint8)


def same_labels(source, thresholds, *, binary=False):
  """What to say where some thresholds have the same labels, as of binary masks; empty if none do.

  Args:
    source: the training frames.
    thresholds: of the sweep.
    binary: whether masks were 0 and 1, so that only interpolated edges lie between.
  """
  # A good part of the frames says it.
  n = min(len(source), N_LOOKED)
  counts = np.zeros(256, np.int64)
  frames = source.only("confidence")
  for i in np.linspace(0, len(source) - 1, n).astype(int).tolist():
    counts += np.bincount(frames[i]["confidence"].ravel(), minlength=256)
  levels = np.arange(256, dtype=np.float32) / 255
  area = {t: int(counts[np.asarray(label(levels, t)) > 0].sum()) for t in thresholds}
  share, groups = SAME_BINARY if binary else SAME, []
  for threshold in sorted(thresholds, reverse=True):
    # The labels lie within each other: the lowest threshold of a group has the largest.
    if groups and area[groups[-1][0]] >= share * area[threshold] > 0:
      groups[-1].append(threshold)
    else:
      groups.append([threshold])
  same = [", ".join(map(cells.percent, group)) for group in groups if len(group) > 1]
  if not same:
    return ""
  kept = [min(group, key=lambda t: abs(t - 0.5)) for group in groups]
  return (
    f"labels: {' and '.join(same)} agree in {share:.0%} of their pixels or more "
    f"({plural(n, 'training frame')}): such models differ in the weight of the background at most, "
    f"and one is enough: --config.sweep.thresholds={','.join(f'{t:g}' for t in kept)} trains "
    f"{len(kept)} in place of {len(thresholds)}"
  )


def _describe(config, dataset, network, sweep, steps, why):
  millions = sum(x.size for x in jax.tree.leaves(network.params)) / 1e6
  sizes = ", ".join(f"{len(source)} {name}" for name, source in dataset.splits.items())
  n_last = len(list(dataset.splits.values())[-1])
  size, n = config.data.image_size, len(sweep.members)
  epochs = plural(config.train.epochs, "epoch")
  epochs += f" ({why['epochs']})" if "epochs" in why else ""
  lines = [
    f"{dataset.name}: {sizes} {many(n_last, 'frame')} of {size} x {size}, "
    f"{plural(len(dataset.classes), 'class')}",
    f"{plural(n, 'model')} (FPN {config.model.encoder}, {millions:.1f} M parameters each), "
    f"{epochs}, {plural(steps, 'step')}",
    *(f"note: {note}" for note in dataset.notes),
  ]
  if (n := len(dataset.splits["validation"])) < FEW:
    lines.append(
      f"note: {'a single validation frame chooses' if n == 1 else f'{n} validation frames choose'} "
      "the best epochs, so there is much chance in them."
    )
  return "\n".join(lines)


def _result_rows(views, evaluation, meta, config, objective):
  """A dict of JSON values for every view: what it is, its best epoch and its scores."""
  rows = []
  for view, scores in zip(views, evaluation.members, strict=True):
    seed, place = divmod(view.member, len(objective.members))
    member = objective.members[place]
    rows.append(
      {
        "member": view.name,
        "target": member.target,
        "loss": member.loss,
        "weights": member.weights,
        # A plain threshold keeps the config's own number, whatever its loss.
        "threshold": member.threshold
        if objective_lib.is_plain(view, objective)
        else view.threshold,
        "seed": seed,
        "best_epoch": meta["best"][view.member]["epoch"],
        **scores,
      }
    )
  return rows


def _without(row, *names):
  return {name: value for name, value in row.items() if name not in names}


def _fitted_on(counted):
  """What calibrations are fitted on, of rows of `summary.summarize`; warns of few patients."""
  (row,) = (row for row in counted if row["split"] == "validation")
  if row["patients"] < statistics.INTERVAL_PATIENTS:
    logging.warning(
      "calibration is fitted on %s of %s: too few to trust it on other patients.",
      plural(row["frames"], "validation frame"),
      plural(row["patients"], "patient"),
    )
  return {"split": "validation"} | {
    name: row[name] for name in ("patients", "frames", "frames_with")
  }


def _calibration_rows(views, compared):
  return [
    {"member": view.name, "method": method, **scores}
    for i, view in enumerate(views)
    for method, each in compared.items()
    for scores in [each[i]]
  ]


def _rater_results(views, found, rows, dataset, curve_of):
  members, humans, curve, disagreement = found
  kept = ("member", "threshold", "seed", "best_epoch")
  examples = dataset.splits["test"].only("video", "patient")
  return {
    "split": "test",
    "rows": [
      {name: row[name] for name in kept} | {"threshold": view.threshold} | scores
      for view, row, scores in zip(views, rows, members, strict=True)
    ],
    "humans": [
      {"rater": rater, "person": person, **scores}
      for rater, person, scores in zip(dataset.raters, dataset.persons, humans, strict=True)
    ],
    "curve": {"member": views[curve_of].name, "rows": curve},
    "images": [
      {
        "index": i,
        "image": example["video"].decode(),
        "patient": example["patient"].decode(),
        "disagreement": None if math.isnan(value) else float(value),
      }
      for i, (example, value) in enumerate(zip(examples, disagreement, strict=True))
    ],
  }


def _cost(config, objective, classes):
  """GFLOP that segmenting one image takes, by formula (`lus_jax.models.flops`)."""

  def gflop(outputs):
    options = {"size": config.data.image_size, "in_channels": 1, "width": config.model.width}
    return flops.fpn(config.model.encoder, classes=outputs, **options) / 1e9

  return {
    "gflop_per_network": gflop(classes),
    "thresholds": len(config.sweep.thresholds),
    "gflop_ordinal": gflop(classes * objective.head) if objective.levels else None,
  }


def write_results(
  workdir, evaluation, rows, meta, views, config, objective, dataset, settings, counted
):
  """Writes the results files of the task (definitions: `lus_jax.evaluation.metrics`)."""
  plain, extra, matrix = [], [], []
  for view, row in zip(views, rows, strict=True):
    if not objective_lib.is_plain(view, objective):
      extra.append(_without(row, "matrix"))
      continue
    matrix += [
      {
        "model_threshold": row["threshold"],
        "seed": row["seed"],
        **scores,
        "evaluation_threshold": t,
      }
      for scores, t in zip(row["matrix"], config.sweep.thresholds, strict=True)
    ]
    plain.append(_without(row, "member", "target", "loss", "weights", "matrix"))
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
        view.name: None if math.isnan(iou) else float(iou)
        for view, iou in zip(views, evaluation.image_iou[:, i], strict=True)
      },
    }
    for i, example in enumerate(dataset.splits["test"])
  ]
  contents = {
    "members": {
      "split": "test",
      "rows": extra,
      "cost": _cost(config, objective, len(dataset.classes)),
    },
    "dataset": {"rows": counted},
    "cases": {"split": "test", "rows": cases},
    "history": {"rows": meta["history"]},
    "segmentation_matrix": {"rows": matrix},
    "segmentation": {
      "split": "test",
      "rows": plain,
      "predictors": predictors,
      "notes": list(dataset.notes),
    },
  }
  for name in (*(["members"] if extra else []), *trained.RESULTS):
    results.write(workdir, name, config=settings, dataset=dataset.summary(), **contents[name])
