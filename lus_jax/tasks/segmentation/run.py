"""The segmentation task: one network per confidence threshold, all trained on the same batches."""

import contextlib
import functools
import os
import pathlib

import jax
import numpy as np
from absl import logging

from lus_jax import fields, lock, losses, models, parallel, results, timing
from lus_jax.data import augment, copies, datasets, labelling, pipeline, selection, summary
from lus_jax.errors import UserError, as_set
from lus_jax.inference import calibration, trained
from lus_jax.models import flops
from lus_jax.report import text
from lus_jax.tasks import initial
from lus_jax.tasks.segmentation import advice as advice_lib
from lus_jax.tasks.segmentation import auto, finish
from lus_jax.tasks.segmentation import train as train_lib
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import estimate, hardware, loop, optimizers, writers
from lus_jax.training import members as members_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep, choose_strategy
from lus_jax.words import plural


def check(config, workdir=None):
  """Refuses values of a config that no run could use; nothing is written before.

  Args:
    config: a run's config.
    workdir: the run's directory, if it is known: one that goes on needs no initial weights.

  Returns:
    The `Objective` of its members, and the strategy of its sweep.

  Raises:
    UserError: one of them, and how to mend it.
  """
  objective = Objective(config)
  least = {
    "data.num_processes": 0,
    "train.epochs": 1,
    "train.batch_size": 0,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.steps": 0,
    "train.epoch_steps": 0,
    "train.minutes": 0,
    "sweep.seeds": 1,
    "loss.region": 0,
    "optimizer.weight_decay": 0,
  }
  fields.check_least(config, least)
  shares = ("optimizer.warmup", "optimizer.averaging", "train.rare", "train.smoothing")
  fields.check_shares(config, *shares)
  for name, seed in {"seed": config.seed, "data.split_seed": config.data.split_seed}.items():
    if not 0 <= seed < 2**31:
      raise UserError(f"config.{name}: {seed} must be at least 0 and below 2^31.")
  fields.check_positive(config, "optimizer.learning_rate")
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
    initial.check(config.model, workdir, video=False)
  augment.check(config.augment)
  # What is trained on may be cropped; what is judged is whole.
  size, shrink = config.data.image_size, config.model.get("shrink") or 1
  for side in (augment.side(config.augment, size), size):
    if side % shrink:
      raise UserError(
        f"config.model.shrink: {shrink} does not divide the {side} pixels a side of the images."
      )
  pipeline.choose_cache_for(config.data.cache, 0)
  strategy = choose_strategy(config.sweep.strategy)
  calibration.check_method(config.calibration)
  labelling.check_method(config.labels.standardise)
  selection.check(config)
  return objective, strategy


def _options(config):
  names = ("weights", "subthreshold_weight", "reduction", "region")
  return {name: config[name] for name in names if name in config}


def train_and_evaluate(config, workdir, patients=None):
  """Trains the sweep, evaluates the best epoch of every member on the test split, writes results.

  Args:
    config: a run's config (`configs/seg.py`).
    workdir: the run's directory; a broken run goes on where its last checkpoint was.
    patients: the patients of each split, where they are not to be the data set's own.

  Raises:
    UserError: the config or the data are not in order, or the directory is another run's.
  """
  chosen = []
  if auto.wanted(config):
    check(auto.provisional(config), workdir)
    config, chosen = auto.choose(config, workdir, patients)
  objective, strategy = check(config, workdir)
  print(*chosen, sep="\n", end="\n" * bool(chosen), flush=True)
  config = hardware.as_begun(config, workdir)
  claim_lib.check_claim(workdir, claim_lib.settings(config), more_epochs=True)
  with lock.hold(workdir), timing.recorded("segmentation") as clock:
    _train_and_evaluate(config, objective, strategy, workdir, patients, clock)


def _train_and_evaluate(config, objective, strategy, workdir, patients, clock):
  device = hardware.find_device()
  before = claim_lib.fewer_epochs(workdir, config.train)
  if before is not None:
    check_no_tasks(workdir)
  finished = before is None and results.exists(workdir, *trained.RESULTS)
  common = {"models": objective.n_models, "strategy": strategy}
  if not finished and (warning := hardware.too_large(config, device, **common)):
    logging.warning(warning)
  clock.enter("data")
  with parallel.main_first("data"):
    dataset = datasets.open_dataset(config.data, "frames")
  if patients is not None:
    dataset = dataset.regroup(patients)
  selected = selection.select(dataset, config.data)
  dataset = selected.used
  objective = objective.with_raters(dataset.raters)
  # Only what is learnt from is put on a common scale: the test stays as it was painted.
  learnt = labelling.standardised(dataset, config.labels.standardise)
  needed = (*pipeline.fields_of(dataset), *members_lib.fields(objective.members))
  stored = tuple(name for name in needed if name != "staple")  # as large as the confidence
  cache = pipeline.choose_cache(
    config.data.cache, dataset.splits.values(), (*stored, *["confidence"] * ("staple" in needed))
  )
  config, why = hardware.resolve(
    config,
    device,
    frames=len(dataset.splits["train"]),
    classes=len(dataset.classes) * objective.head,
    **common,
  )
  settings = claim_lib.settings(config)
  names, members = objective.of_all_seeds()
  sweep = Sweep(members, strategy)
  train, validation = (
    pipeline.Frames(labelling.WithStaple(learnt[name]), cache=cache, fields=needed, mesh=sweep.mesh)
    for name in ("train", "validation")
  )
  counts, repeats = train_lib.of_labels(config, learnt["train"])
  batches = train.training_batches(config.train.batch_size, seed=config.seed, repeats=repeats)
  steps_per_epoch = hardware.steps_of_epoch(config.train, train.size)
  clock.enter("networks")
  start = initial.start(config.model, workdir, video=False)
  own = {} if patients is None else {"patients": patients}
  if start is not None:
    # Files of one name can be of other weights.
    own["initial"] = start.about
    if start.source is not None:
      if dataset.split_unit == "patient":
        initial.audit(start.source, dataset.patients(), dataset.population)
      own["initial"] = initial.about_heads(start.source, dataset.classes)
    dataset = initial.noted(dataset, own["initial"])
  tx, schedule = optimizers.with_cosine(config.optimizer, config.train.epochs * steps_per_epoch)
  network, state = train_lib.initial_state(
    config,
    objective,
    sweep,
    in_channels=1,
    classes=len(dataset.classes),
    tx=tx,
    begin=start
    and functools.partial(
      initial.into_segmentation, start, classes=dataset.classes, place=config.model.init_from
    ),
    counts=counts,
  )
  clock.enter("other")
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
  begun = claim_lib.read_claim(workdir) is not None
  claim_lib.claim(workdir, settings, dataset.summary() | own, more_epochs=True)
  if not finished:
    clock.keep_in(workdir, goes_on=begun, config=settings, dataset=dataset.summary())
  steps = config.train.epochs * steps_per_epoch
  print(advice_lib.describe(config, dataset, network, sweep, steps, why), flush=True)
  print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=cache), flush=True)

  if not finished and not dataset.simulated and patients is None:
    looks = copies.look(dataset, "image", sum(map(len, dataset.splits.values())))
    if not dataset.metadata.get("patients_are_unknown"):
      dataset = copies.noted(dataset, copies.among(looks))
    if parallel.is_main():
      copies.keep(workdir, looks)
  if not finished:
    flop = train_lib.training_flop(config, classes=len(dataset.classes) * objective.head)
    images = steps * config.train.batch_size
    images += config.train.epochs * validation.size / flops.TRAINING
    for note in (
      advice_lib.same_labels(learnt["train"], config.sweep.thresholds),
      estimate.slow_recipe(config, len(names) * images * flop, device, models=len(names)),
    ):
      if note:
        print(as_set(note), flush=True)
    with contextlib.ExitStack() as stack:
      checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(workdir)))
      writer = stack.enter_context(contextlib.closing(writers.create_writer(workdir)))
      writers.write_overview(writer, settings, network.params)
      work = estimate.Work(
        images=config.train.batch_size,
        flop=train_lib.training_flop(config, classes=len(dataset.classes)),
        validated=validation.size,
        dtype=config.model.dtype,
      )
      task = train_lib.make_task(
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
        first_look=functools.partial(
          advice_lib.first_look, workdir, names, frames=validation.size, epochs=config.train.epochs
        ),
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
      advice_lib.warn_of_unscored(names, meta["best"], config.train.epochs)
      extra = (*(["evidence"] if dataset.simulated else []),)
      extra += ("raters", "drawn") if dataset.raters else ()
      test = pipeline.Frames(
        dataset.splits["test"],
        cache=cache,
        fields=(*pipeline.fields_of(dataset), *extra),
        mesh=sweep.mesh,
      )
      clock.enter("evaluation")
      counted = summary.summarize(dataset)
      if selected.stored is not selected.used:
        counted = [row | {"left_out": selected.left_out(row["split"])} for row in counted]
      finish.finish(
        trained.freeze(
          network,
          sweep,
          state,
          objective,
          config=config,
          dataset=dataset.summary(),
          patients={row["split"]: row["patient_names"] for row in counted},
        ),
        workdir=workdir,
        meta=meta,
        frames={"train": train, "validation": validation, "test": test},
        dataset=dataset,
        counted=counted,
        painters=summary.painters(selected),
        settings=settings,
        writer=writer,
        initial=start and initial.told(own["initial"], config.model.init_from),
      )
  parallel.sync("segmentation results")
  content = results.read(workdir, "segmentation")
  print(text.segmentation(content))
  history = results.read(workdir, "history")["rows"]
  if advice := advice_lib.below_the_bar(content, history, steps):
    print(as_set(advice))
  counted = results.read(workdir, "dataset")["rows"]
  if advice := advice_lib.no_better_than_blind(content, counted, steps):
    print(as_set(advice))
  if results.exists(workdir, "raters"):
    print(text.raters(results.read(workdir, "raters")))


def check_no_tasks(workdir):
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
