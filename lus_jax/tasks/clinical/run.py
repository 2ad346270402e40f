"""A clinical task: one video network per source of segmentation channels and fold, all at once.

A source is a threshold of the segmentation sweep, 'none' (video only) or 'true' (the simulator's
masks). Members share batches within a fold, initial weights and compiled programs.
"""

import dataclasses
import math
import os
import pathlib
import re

import jax
import numpy as np

from lus_jax import fields, lock, models, parallel, results, timing
from lus_jax.data import augment, clips, copies, datasets, folds, pipeline
from lus_jax.errors import UserError, in_part
from lus_jax.inference import channels
from lus_jax.inference import trained as trained_lib
from lus_jax.report import text
from lus_jax.tasks import initial as initial_lib
from lus_jax.tasks.clinical import finish, initial, questions, train
from lus_jax.tasks.clinical.setup import Setup
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.training import checkpoints, claim, hardware, state
from lus_jax.training.sweep import Sweep, choose_strategy
from lus_jax.words import plural

ABLATIONS = ("none", "true")
KINDS = ("probability", "binary")
PAIRS = ("in_batch", "sampled")
DAYS = ("difference", "single")
CALIBRATIONS = ("none", "temperature")
# Names of other results files and folders of a run.
RESERVED = ("checkpoints", "tensorboard", "channels", "results", "report", "study", "timing")
RESERVED += trained_lib.RESULTS


def check(config, workdir=None):
  """Refuses values of a config that no run could use; nothing is written before.

  Args:
    config: a run's config.
    workdir: the run's directory, if it is known: one that goes on needs no initial weights.

  Raises:
    UserError: one of them, and how to mend it.
  """
  known = {
    "channels.kind": KINDS,
    "folds.cv": folds.SCHEMES,
    "folds.leakage": folds.LEAKAGES,
    **({"calibration": CALIBRATIONS} if "calibration" in config else {}),
    **({"pairs": PAIRS} if config.task == "sf_change" else {}),
    **({"days": DAYS} if config.task == "readmission" else {}),
  }
  fields.check_known(config, known)
  for name in config.channels.ablations:
    if name not in ABLATIONS:
      raise UserError(
        f"config.channels.ablations: '{name}' is not known; choose of {', '.join(ABLATIONS)}."
      )
  for field in ("thresholds", "ablations"):
    for name in (values := list(config.channels[field])):
      if values.count(name) > 1:
        raise UserError(f"config.channels.{field}: {name} stands there twice; name it once.")
  if not config.folds.balance:
    raise UserError("config.folds.balance is empty; name at least one number of the videos.")
  if config.data.get("dir") and not config.data.name:
    raise UserError(
      "config.data.dir names a folder, but config.data.name is empty; add "
      "--config.data.name=lus_folder (or covid_blues)."
    )
  pipeline.choose_cache_for(config.data.cache, 0)
  least = {
    "data.num_processes": 0,
    "clip.image_size": 32,
    "clip.n_segment": 1,
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "optimizer.restart_epochs": 1,
    "optimizer.restart_factor": 1,
    "seed": 0,
    "folds.seed": 0,
    "optimizer.weight_decay": 0,
    **({"folds.inner": 2} if "inner" in config.folds else {}),
    **({"pairs_cap": 1} if config.task == "sf_change" else {}),
  }
  fields.check_least(config, least)
  positive = ("optimizer.learning_rate", *(["target_scale"] if config.task == "sf_ratio" else []))
  fields.check_positive(config, *positive)
  if (
    not re.fullmatch(r"\w+", config.name)
    or config.name.startswith("segmentation")
    or config.name in RESERVED
  ):
    raise UserError(f"config.name: '{config.name}' cannot name a results file of this task.")
  models.check_video(config.model)
  if "augment" in config:
    augment.check_strengths(config.augment)
  if config.task == "sf_ratio" and config.get("calibration", "none") != "none":
    raise UserError(
      f"config.calibration: '{config.calibration}' is of probabilities, and sf_ratio gives a "
      "number; use none."
    )
  if config.model.init_from and not initial.is_task(config.model.init_from, workdir):
    directory = None if workdir is None else pathlib.Path(workdir) / config.name
    initial_lib.check(config.model, directory, video=True)
  choose_strategy(config.sweep.strategy)


def open_videos(config, trained):
  """Opens the videos of a task: those of the segmentation's data set, or other ones.

  Args:
    config: a run's config; `data.name` is empty for the segmentation's own data set.
    trained: a `lus_jax.inference.trained.Trained`: its size is the videos' too.

  Returns:
    A `lus_jax.data.datasets.Dataset`.

  Raises:
    UserError: the data are not in order, or of other classes than the models.
  """
  data = trained.config.data.copy_and_resolve_references()
  prepared_dir = config.data.prepared_dir or _of_run(data.prepared_dir)
  with data.unlocked():
    if config.data.name:
      data.update(config.data)
    data.split_unit = "patient"
    data.prepared_dir = prepared_dir
    data.num_processes = config.data.get("num_processes", 0)
  dataset = datasets.open_dataset(data, "videos")
  if dataset.classes and dataset.classes != trained.classes:
    raise UserError(
      f"config.channels.workdir: its models know the classes {', '.join(trained.classes)}, and the "
      f"data set {dataset.name} has {', '.join(dataset.classes)}; name a segmentation run on the "
      "same classes."
    )
  return dataset


def _of_run(prepared_dir, ours=""):
  """Where a segmentation run's prepared data are; ours if that is not known of an older run."""
  if not prepared_dir or os.path.isabs(os.path.expanduser(prepared_dir)):
    return prepared_dir
  if not ours:
    raise UserError(
      f"the prepared data of the segmentation run are in '{prepared_dir}', which is not found from "
      "here; name the folder with --config.data.prepared_dir=DIR."
    )
  return ours


def plan_segmentations(config, trained, splits):
  """Deals the patients of the segmentation sweeps that `leakage=strict` trains.

  A fold has a sweep on its training patients, for all others, and `folds.inner` more, each on those
  of them that another part holds out: what the video networks learn from then comes, as what they
  are tested on, from models that never saw the patient.

  Args:
    config: a run's config; one from before `folds.inner` has no inner sweeps.
    trained: the base sweep.
    splits: `Fold`s.

  Returns:
    A list, one a fold, of dicts: by folder the patients of its three splits; what each is for
    stands in `test`, but for the first, which is for whoever is in no other's.

  Raises:
    UserError: a fold has too few labelled patients to hold any of them out.
  """
  labelled = {name for names in trained.patients.values() for name in names}
  inner = config.folds.get("inner", 0)
  plans = []
  for f, fold in enumerate(splits):
    names = [name for name in fold.train if name in labelled]
    least = 3 if inner else 2
    if len(names) < least:
      raise UserError(
        f"fold {f}: leakage=strict needs {least} training patients with labelled frames, and there "
        f"{'is' if len(names) == 1 else 'are'} {len(names)}; use another --config.folds.n, more "
        "labelled patients or --config.folds.leakage=paper."
      )
    generator = np.random.default_rng((config.folds.seed, f))

    def dealt(names, test, generator=generator):
      held_out = max(1, round(len(names) * 6 / 38))  # the paper's 6 of 32 + 6
      order = generator.permutation(names).tolist()
      return {
        "train": sorted(order[held_out:]),
        "validation": sorted(order[:held_out]),
        "test": sorted(test),
      }

    plan = {f"fold_{f}": dealt(names, (name for name in fold.test if name in labelled))}
    if inner:
      # Who is left has to fill two splits; parts of one patient leave the most.
      possible = range(min(inner, len(names)), len(names) + 1)
      n = next(n for n in possible if len(names) - -(-len(names) // n) >= 2)
      for j, part in enumerate(np.array_split(generator.permutation(names), n)):
        rest = sorted(set(names) - set(part.tolist()))
        plan[f"fold_{f}_inner_{j}"] = dealt(rest, part.tolist())
    plans.append(plan)
  return plans


def _checkpoint_bytes(network):
  """Of one model: two checkpoints of weights, the best weights and Adam's two moments."""
  weights = jax.tree.leaves((network.params, network.batch_stats))
  return 2 * 4 * sum(math.prod(x.shape) * x.dtype.itemsize for x in weights)


def fold_segmentations(config, trained, plans, table, workdir):
  """Trains the segmentation sweeps of every fold.

  Args:
    config: a run's config.
    trained: the base sweep, whose recipe is repeated.
    plans: of `plan_segmentations`.
    table: the `VideoTable` of who is to be looked at.
    workdir: the run's directory; finished sweeps are found again.

  Returns:
    A list of `channels.Crossed`, one a fold.
  """
  recipe = trained.config.copy_and_resolve_references()
  with recipe.unlocked():
    recipe.data.prepared_dir = _of_run(recipe.data.prepared_dir, config.data.prepared_dir)
    # The clinical tasks see the models of the first seed's thresholds.
    recipe.sweep.seeds, recipe.sweep.members = 1, ()
  own = set(recipe) - {"seed", "data", "distributed"}
  models_, frames = len(trained.sweep.members), sum(trained.dataset["splits"].values())
  epochs, n = recipe.train.epochs, sum(map(len, plans))
  each = "-".join(map(str, sorted({min(map(len, plans)), max(map(len, plans))})))
  print(
    f"leakage=strict: {plural(n, 'extra segmentation sweep')} ({plural(len(plans), 'fold')}, "
    f"{each} each) of {plural(models_, 'model')}, {plural(epochs, 'epoch')} of at most "
    f"{plural(frames, 'frame')}: up to {n * models_ * epochs * frames:,} model-frames and "
    f"{n * models_ * _checkpoint_bytes(trained.network) / 2**30:.1f} GiB of checkpoints"
  )
  found = []
  for plan in plans:
    of_video, sweeps = np.zeros(len(table), int), []
    for i, (name, patients) in enumerate(plan.items()):
      directory = pathlib.Path(workdir) / "segmentation" / name
      print(f"segmentation of {name.replace('_', ' ')}")
      # What it says of its fields is not of this task's own.
      with (
        in_part("segmentation", own),
        lock.hold(directory, wait="trains the segmentation of this fold"),
      ):
        segmentation.train_and_evaluate(recipe, directory, patients)
      sweeps.append(trained_lib.load(directory))
      if i:
        of_video[np.isin(table.patient, patients["test"])] = i
    found.append(channels.Crossed(sweeps, of_video))
  return found


def train_and_evaluate(config, workdir):
  """Trains every source in every fold, tests the best epochs, writes results.

  Args:
    config: a run's config (`configs/sf_ratio.py` and its like).
    workdir: the run's directory: the task lives in `<workdir>/<name>`, its results in
      `<workdir>/results`; a broken run goes on where its last checkpoint was.

  Raises:
    UserError: the config, the data or the segmentation run are not in order.
  """
  check(config, workdir)
  directory = pathlib.Path(workdir) / config.name
  device = hardware.find_device()
  config, why = hardware.resolve(hardware.as_begun(config, directory), device, models=1)
  claim.check_claim(directory, claim.settings(config), more_epochs=True)
  with lock.hold(directory), timing.recorded(config.name) as clock:
    _train_and_evaluate(config, workdir, device, why, clock)


def _train_and_evaluate(config, workdir, device, why, clock):
  directory, settings = pathlib.Path(workdir) / config.name, claim.settings(config)
  # Before any process can have written it.
  begun = claim.read_claim(directory) is not None
  before = claim.fewer_epochs(directory, config.train)
  clock.enter("networks")
  whole = trained_lib.load(os.path.expanduser(config.channels.workdir) or workdir)
  chosen = trained_lib.choose_thresholds(config, whole)
  trained = whole.only(chosen)
  clock.enter("data")
  with parallel.main_first("videos"):
    dataset = open_videos(config, trained)
  table = clips.read_table(dataset, tuple(dict.fromkeys((*config.folds.balance, config.target))))
  same = dataset.population == trained.dataset["population"]
  # Models of another data set learned from none of these patients: there is nothing to train anew.
  strict = config.folds.leakage == "strict" and same
  splits = folds.of_videos(table, config.folds)
  task = questions.TASKS[config.task](table, splits, config)
  plans = plan_segmentations(config, whole, splits) if strict else []
  seen = {*trained.patients["train"], *trained.patients["validation"]} if same else ()
  earlier = trained_lib.who_saw(trained.earlier, dataset.population, "train", "validation")
  folds.audit(
    splits,
    leakage=config.folds.leakage,
    # Those of every fold are looked at when there are any.
    segmentation=None if strict else [seen] * len(splits),
    pretraining=[earlier] * len(splits),
  )
  summary = dataset.summary() | {"segmentation": trained.fingerprints}
  if config.task == "sf_change" and (words := task.describe_pairs()):
    print(words, flush=True)
  # What a second run could not use is refused before anything that takes long.
  ablations = [a for a in config.channels.ablations if a != "true" or dataset.simulated]
  names, places, members = train.make_members(list(trained.thresholds), ablations, len(splits))
  strategy = choose_strategy(config.sweep.strategy, video=True)
  group = hardware.choose_group(config, device, clips=task.clips_per_batch)
  sweep = Sweep(members, strategy, group)
  parallel.check_batch(
    sweep.mesh, config.train.batch_size, rows=task.clips_per_batch // config.train.batch_size
  )
  clock.enter("networks")
  network = state.Network(
    models.build_video_model(
      config.model,
      in_channels=1 + len(trained.classes),
      outputs=task.outputs,
      hidden=task.hidden,
      seed=config.seed,
    )
  )
  setup = Setup(
    config=config,
    settings=settings,
    workdir=workdir,
    dataset=dataset,
    table=table,
    trained=trained,
    same=same,
    splits=splits,
    task=task,
    ablations=ablations,
    names=names,
    places=places,
    network=network,
    sweep=sweep,
  )
  started, trained_on = initial.initial_weights(setup, summary)
  folds.audit(splits, leakage=config.folds.leakage, initial=trained_on)
  setup = dataclasses.replace(setup, initial=summary.get("initial"))
  clock.enter("other")
  files = (config.name, f"{config.name}_history")
  # What is refused keeps its results.
  claim.check_claim(directory, settings, summary, more_epochs=True)
  if before is not None:
    epochs, _ = checkpoints.progress(directory)
    print(f"{directory}: going on after {plural(epochs, 'epoch')} to {config.train.epochs}.")
  if before is not None or not begun:
    # It goes on, or its directory was removed to start anew: what it found is not its result.
    results.remove(workdir, *(f"{name}.json" for name in files))
  claim.claim(directory, settings, summary, more_epochs=True)
  parallel.sync("claim")

  if not results.exists(workdir, *files):
    clock.keep_in(workdir, goes_on=begun, config=settings, dataset=dataset.summary())
    if not dataset.simulated:
      setup = dataclasses.replace(setup, dataset=copies.noted(dataset, _copies(setup)))
    store = _look(setup, whole, chosen, plans)
    notes = finish.notes_on(setup)
    print(finish.describe(setup, notes))
    print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=store.cache))
    meta, tested, calibrations = train.fit(setup, started, store)
    clock.enter("evaluation")
    finish.write_results(setup, meta, tested, notes, calibrations)
  parallel.sync("task results")
  print(text.clinical(results.read(workdir, config.name)))


def _look(setup, whole, chosen, plans):
  """The `ClipStore` of what the segmentation models see: `whole`'s, or of every fold their own."""
  # All of a fold's models but the chosen channels go when this returns: they fill a device.
  table, keep = setup.table, set(whole.fingerprints)
  crossed = [channels.Crossed([setup.trained], np.zeros(len(table), int))]
  if plans:
    with timing.part("fold segmentations"):
      by_fold = fold_segmentations(setup.config, whole, plans, table, setup.workdir)
    audit_segmentations(setup.splits, by_fold, table)
    keep = keep.union(*(one.fingerprints for one in by_fold))
    crossed = [one.only(chosen) for one in by_fold]
  with timing.part("channels"):
    return make_store(setup, crossed, keep)


def _copies(setup):
  """`copies.Told`s of patients that may be one, here and among those of the segmentation."""
  table = setup.table
  looks = copies.look(setup.dataset, "frames", int(table.n_frames.sum()))
  if not setup.dataset.metadata.get("patients_are_unknown"):
    yield from copies.among(looks)
  segmentation_of = os.path.expanduser(setup.config.channels.workdir) or setup.workdir
  if not setup.same and (seen := copies.kept(segmentation_of)) is not None:
    yield from copies.between(seen, looks, {name for fold in setup.splits for name in fold.test})


def audit_segmentations(splits, by_fold, table):
  """Makes sure that no patient is looked at by a model that was trained or selected on them.

  Args:
    splits: F `Fold`s.
    by_fold: `channels.Crossed` of each.
    table: the `VideoTable` of who is looked at.

  Raises:
    UserError: the first leak found.
  """
  seen = [
    [{*one.patients["train"], *one.patients["validation"]} for one in crossed.models]
    for crossed in by_fold
  ]
  folds.audit(splits, leakage="strict", segmentation=[each[0] for each in seen])
  for f, (crossed, each) in enumerate(zip(by_fold, seen, strict=True)):
    # Without inner sweeps the training patients are those of the first.
    for name, m in zip(table.patient.tolist(), crossed.of_video.tolist(), strict=True):
      if name in each[m] and len(each) > 1:
        raise UserError(
          f"fold {f}: patient {name} is looked at by models of their own segmentation training or "
          "selection; train segmentation models without them (remove the folder segmentation/ of "
          "this run)."
        )


def make_store(setup, crossed, keep):
  """Makes the channels of all videos, and the `lus_jax.data.clips.ClipStore` of them.

  Args:
    setup: a `Setup`.
    crossed: the segmentation models of each fold, or of all (one): `channels.Crossed`.
    keep: fingerprints of models whose channels other runs in this directory may still need.
  """
  config, table = setup.config, setup.table
  image, maps, truth = channels.make(
    setup.dataset,
    table,
    crossed,
    size=config.clip.image_size,
    workdir=setup.workdir,
    keep=keep,
  )
  stored = sum(maps, [])
  per_model = np.arange(len(stored)).reshape(len(maps), -1).tolist()
  if "true" in setup.ablations:
    stored.append(truth)
    per_model = [[*row, len(stored) - 1] for row in per_model]
  cache = pipeline.choose_cache_for(config.data.cache, image.nbytes + sum(x.nbytes for x in stored))
  return clips.ClipStore(
    image=image,
    channels=stored,
    fold_channels=np.array(per_model if len(maps) > 1 else per_model * len(setup.splits)),
    offset=table.offset,
    n_frames=table.n_frames,
    n_segment=config.clip.n_segment,
    cache=cache,
    mesh=setup.sweep.mesh,
  )
