"""A clinical task: one video network per source of segmentation channels and fold, all at once.

A source is a threshold of the segmentation sweep, 'none' (video only) or 'true' (the simulator's
masks). Members share batches within a fold, initial weights and compiled programs.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re

import jax
import numpy as np
import optax
from jax import numpy as jnp

from lus_jax import lock, models, parallel, results
from lus_jax.data import clips, datasets, folds, pipeline
from lus_jax.errors import UserError
from lus_jax.evaluation import ratio, statistics
from lus_jax.inference import channels as channels_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.models import flops, torch_weights
from lus_jax.report import text
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import estimate, hardware, loop, segmentation, tasks, writers
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy
from lus_jax.words import plural

ABLATIONS = ("none", "true")
KINDS = ("probability", "binary")
PAIRS = ("in_batch", "sampled")
DAYS = ("difference", "single")
# Names of other results files and folders of a run.
RESERVED = ("checkpoints", "tensorboard", "channels", "results", "report", "study")
RESERVED += trained_lib.RESULTS
# Seeds of the frames that clips take, apart from those of the training order.
_FRAMES = 2


def check(config):
  """Refuses values of a config that no run could use (`UserError`); nothing is written before."""
  known = {
    "channels.kind": KINDS,
    "folds.cv": folds.SCHEMES,
    "folds.leakage": folds.LEAKAGES,
    **({"pairs": PAIRS} if config.task == "sf_change" else {}),
    **({"days": DAYS} if config.task == "readmission" else {}),
  }
  for name, choices in known.items():
    value = _field(config, name)
    if value not in choices:
      raise UserError(f"config.{name}: '{value}' is not known; choose one of {', '.join(choices)}.")
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
    **({"pairs_cap": 1} if config.task == "sf_change" else {}),
  }
  for name, low in least.items():
    if _field(config, name) < low:
      raise UserError(f"config.{name}: {_field(config, name)} must be at least {low}.")
  rate = config.optimizer.learning_rate
  if not (rate > 0 and math.isfinite(rate)):
    raise UserError(f"config.optimizer.learning_rate: {rate} must be a positive number.")
  if config.task == "sf_ratio" and not config.target_scale > 0:
    raise UserError(f"config.target_scale: {config.target_scale} must be positive.")
  if (
    not re.fullmatch(r"\w+", config.name)
    or config.name.startswith("segmentation")
    or config.name in RESERVED
  ):
    raise UserError(f"config.name: '{config.name}' cannot name a results file of this task.")
  models.check_video(config.model)
  if torch_weights.is_file(config.model.init_from):
    models.check_init_from(config.model, video=True)
  choose_strategy(config.sweep.strategy)


def _field(config, name):
  for part in name.split("."):
    config = config[part]
  return config


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


def fold_segmentations(config, trained, splits, workdir):
  """Trains one segmentation sweep per fold, on patients of its training side only.

  Args:
    config: a run's config.
    trained: the base sweep, whose recipe is repeated.
    splits: `Fold`s.
    workdir: the run's directory; finished sweeps are found again.

  Returns:
    A list of `Trained`, one a fold.
  """
  labelled = {name for names in trained.patients.values() for name in names}
  recipe = trained.config.copy_and_resolve_references()
  with recipe.unlocked():
    recipe.data.prepared_dir = _of_run(recipe.data.prepared_dir, config.data.prepared_dir)
    # The clinical tasks see the models of the first seed's thresholds.
    recipe.sweep.seeds, recipe.sweep.members = 1, ()
  models_, frames = len(trained.sweep.members), sum(trained.dataset["splits"].values())
  epochs = recipe.train.epochs
  print(
    f"leakage=strict: {plural(len(splits), 'extra segmentation sweep')} of "
    f"{plural(models_, 'model')}, {plural(epochs, 'epoch')} of at most "
    f"{plural(frames, 'frame')}: up to {len(splits) * models_ * epochs * frames:,} model-frames"
  )
  found = []
  for f, fold in enumerate(splits):
    names = [name for name in fold.train if name in labelled]
    generator = np.random.default_rng((config.folds.seed, f))
    held_out = max(1, round(len(names) * 6 / 38))  # the paper's 6 of 32 + 6
    order = generator.permutation(names).tolist()
    patients = {
      "train": sorted(order[held_out:]),
      "validation": sorted(order[:held_out]),
      "test": sorted(name for name in fold.test if name in labelled),
    }
    directory = pathlib.Path(workdir) / "segmentation" / f"fold_{f}"
    print(f"segmentation of fold {f}")
    with lock.hold(directory, wait="trains the segmentation of this fold"):
      segmentation.train_and_evaluate(recipe, directory, patients)
    found.append(trained_lib.load(directory))
  return found


def make_members(thresholds, ablations, n_folds):
  """The members: every source in every fold.

  Args:
    thresholds: those that are used; channel c of a fold belongs to the c-th.
    ablations: of 'none' and 'true'; the true masks are the last channel.
    n_folds: F.

  Returns:
    Names, sources and folds, and a list of dicts: `fold`, `channel` and `use` (0 blanks it).
  """
  names, places, members = [], [], []
  for source in (*thresholds, *ablations):
    for f in range(n_folds):
      known = source if isinstance(source, str) else f"threshold_{source:g}"
      channel = {"none": 0, "true": len(thresholds)}.get(source)
      names.append(f"{known}_fold_{f}")
      places.append((source, f))
      members.append(
        {
          "fold": np.int32(f),
          "channel": np.int32(thresholds.index(source) if channel is None else channel),
          "use": np.float32(source != "none"),
        }
      )
  return names, places, members


def member_clips(inputs, member, kind):
  """One member's clips: the grey frame and K channels.

  Args:
    inputs: `image` [F, M, N, h, w, 1] and `channels` [F, c, M, N, h, w, K] uint8.
    member: of `make_members`.
    kind: 'probability', or 'binary' at .5.

  Returns:
    [M, N, h, w, 1 + K] in [0, 1].
  """
  image = inputs["image"][member["fold"]].astype(jnp.float32) / 255
  channels = inputs["channels"][member["fold"], member["channel"]]
  if kind == "binary":
    channels = jnp.where(channels >= 128, 255, 0)
  return jnp.concatenate([image, channels.astype(jnp.float32) * (member["use"] / 255)], axis=-1)


def make_optimizer(config, steps_per_epoch, epochs):
  """Adam with a cosine schedule and warm restarts; returns it and its schedule."""
  lengths, total = [], 0
  while total < epochs:
    lengths.append(config.restart_epochs * config.restart_factor ** len(lengths))
    total += lengths[-1]
  periods = [
    optax.cosine_decay_schedule(config.learning_rate, n * steps_per_epoch) for n in lengths
  ]
  ends = (np.cumsum(lengths[:-1]) * steps_per_epoch).tolist()
  schedule = optax.join_schedules(periods, ends)
  return optax.adam(schedule), schedule


def make_plan(task, store, config, n_folds):
  """The training batch of any step: `step -> batch`, a pure function of the seed."""

  def plan(step):
    parts = []
    for f in range(n_folds):
      video, own = task.plan(f, step)
      generator = np.random.default_rng((config.seed, _FRAMES, f, step))
      parts.append({"frames": store.clips(video, generator)} | own)
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

  return plan


def make_outputs(network, sweep, task, store, config, splits):
  """Runs the networks over a split: `(weights, split)` to a list of [videos, outputs], by member.

  The videos are those of `task.videos` for the member's fold.
  """

  def run(weights, member, inputs):
    outputs, _ = network(
      weights["params"],
      weights["batch_stats"],
      member_clips(inputs, member, config.channels.kind),
    )
    return outputs

  run = sweep.compile(run)
  size = task.clips_per_batch

  def outputs(weights, split):
    videos = [task.videos(f, split) for f in range(len(splits))]
    parts = []
    for start in range(0, max(map(len, videos)), size):
      # Folds that are through repeat their last video.
      chosen = [v[np.minimum(np.arange(start, start + size), len(v) - 1)] for v in videos]
      inputs = store.finish(store.load({"frames": store.clips(np.stack(chosen))}))
      parts.append(sweep.to_host(run(weights, sweep.members, inputs)))
    return [
      np.concatenate([part[i] for part in parts])[: len(videos[member["fold"]])]
      for i, member in enumerate(sweep.members)
    ]

  return outputs


def _weights(sweep, state, *, best):
  def pick(state):
    if best:
      return {"params": state.best_params, "batch_stats": state.best_batch_stats}
    return {"params": state.params, "batch_stats": state.batch_stats}

  return sweep.map(pick, state)


def _biases(sweep, weights):
  return sweep.to_host(sweep.map(lambda one: one["params"]["bias"], weights))


def initial_weights(config, network, places, splits, workdir, summary):
  """The weights that every member starts from.

  Args:
    config: a run's config; `model.init_from` names a task of the same directory, a file of
      PyTorch's weights, or nothing.
    network: the `Network`.
    places: source and fold of each member.
    splits: `Fold`s.
    workdir: the run's directory.
    summary: what this run's claim says of its data and segmentation models.

  Returns:
    A list of dicts `params` and `batch_stats`, and for each fold the patients that these were
    trained on (None where they were not).

  Raises:
    UserError: that task did not run here, or with other networks or folds, or the file does not
      fit.
  """
  own = {"params": network.params, "batch_stats": network.batch_stats}
  name = config.model.init_from
  if not name:
    return [own] * len(places), None
  if torch_weights.is_file(name):
    # The head is the task's own.
    params, batch_stats = torch_weights.load_into(
      own["params"], own["batch_stats"], torch_weights.read(name), source=name, head=False
    )
    return [{"params": params, "batch_stats": batch_stats}] * len(places), None
  directory = pathlib.Path(workdir) / name
  claim = claim_lib.read_claim(directory)
  if claim is None or not results.exists(workdir, name):
    raise UserError(
      f"{config.name} starts from the models of {name}, and {workdir} has none that are finished; "
      f"run the task {name} with this workdir first, or use --config.model.init_from= for random "
      "weights."
    )
  content = results.read(workdir, name)
  there = [(row["threshold"], row["fold"]) for row in content["rows"]]
  theirs, ours = (
    {field: (tuple(c[field]) if isinstance(c[field], list) else c[field]) for field in c}
    for c in (claim["config"]["model"], config.model.to_dict())
  )
  # Weights are float32 whatever they were computed in.
  same = {"init_from": "", "dtype": ""}
  missing = [place for place in places if place not in there]
  if (
    {**theirs, **same} != {**ours, **same}
    or missing
    or content["config"]["clip"] != json.loads(config.clip.to_json())
    or content["config"]["folds"] != json.loads(config.folds.to_json())
    or content["config"]["channels"]["kind"] != config.channels.kind
    or claim["dataset"]["population"] != summary["population"]
    or not set(summary["segmentation"]) <= set(claim["dataset"]["segmentation"])
  ):
    raise UserError(
      f"the models of {name} in {workdir} are of another size, saw other data or channels, or lack "
      f"sources or folds of {config.name}; give both the same --config.model, --config.clip, "
      "--config.data, --config.channels and --config.folds."
    )
  source = tasks.TASKS[content["task"]]
  theirs = state_lib.Network(
    models.build_video_model(
      config.model,
      in_channels=_in_channels(network),
      outputs=source.outputs,
      hidden=source.hidden,
      seed=0,
    )
  )
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(there), *x.shape), x.dtype),
    {"params": theirs.params, "batch_stats": theirs.batch_stats},
  )
  with contextlib.closing(checkpoints_lib.Checkpoints(directory)) as checkpoints:
    if checkpoints.latest() is None:
      raise UserError(f"{directory} holds no checkpoint; remove it and run {name} again.")
    best = checkpoints.restore_best(stacked, [row["best_epoch"] for row in content["rows"]])
  started = []
  for place in places:
    i = there.index(place)
    taken = jax.tree.map(lambda x, i=i: x[i], best)
    # The head is the task's own.
    features = {k: v for k, v in taken["params"].items() if k == "features"}
    started.append({"params": own["params"] | features, "batch_stats": taken["batch_stats"]})
  other = {fold["fold"]: fold for fold in content["folds"]}
  for f, fold in enumerate(splits):
    selected = set(fold.test) & set(other[f]["validation"])
    if selected:
      raise UserError(
        f"fold {f}: the model of {name} it starts from was selected on test patient(s) "
        f"{', '.join(sorted(selected))}; give both tasks the same --config.folds."
      )
  return started, [other[f]["train"] for f in range(len(splits))]


def _in_channels(network):
  return network.params["features"][0]["conv"]["kernel"].shape[2]


def train_and_evaluate(config, workdir):
  """Trains every source in every fold, tests the best epochs, writes results.

  Args:
    config: a run's config (`configs/sf_ratio.py` and its like).
    workdir: the run's directory: the task lives in `<workdir>/<name>`, its results in
      `<workdir>/results`; a broken run goes on where its last checkpoint was.

  Raises:
    UserError: the config, the data or the segmentation run are not in order.
  """
  check(config)
  directory = pathlib.Path(workdir) / config.name
  device = hardware.find_device()
  config, why = hardware.resolve(hardware.as_begun(config, directory), device)
  claim_lib.check_claim(directory, claim_lib.settings(config), more_epochs=True)
  with lock.hold(directory):
    _train_and_evaluate(config, workdir, device, why)


def _train_and_evaluate(config, workdir, device, why):
  directory, settings = pathlib.Path(workdir) / config.name, claim_lib.settings(config)
  # Before any process can have written it.
  begun = claim_lib.read_claim(directory) is not None
  before = claim_lib.fewer_epochs(directory, config.train)
  whole = trained_lib.load(os.path.expanduser(config.channels.workdir) or workdir)
  chosen = trained_lib.choose_thresholds(config, whole)
  trained = whole.only(chosen)
  with parallel.main_first("videos"):
    dataset = open_videos(config, trained)
  table = clips.read_table(dataset, tuple(dict.fromkeys((*config.folds.balance, config.target))))
  same = dataset.population == trained.dataset["population"]
  # Models of another data set have seen none of these patients: there is nothing to train anew.
  strict = config.folds.leakage == "strict" and same
  values = [table.of_patient(name) for name in config.folds.balance]
  splits = folds.make_folds(
    {name: tuple(value[name] for value in values) for name in values[0]},
    test=set(table.patient[table.split == "test"].tolist()),
    n_folds=config.folds.n,
    cv=config.folds.cv,
    seed=config.folds.seed,
  )
  task = tasks.TASKS[config.task](table, splits, config)
  if not strict:
    seen = sorted({*trained.patients["train"], *trained.patients["validation"]}) if same else None
    folds.audit(
      splits,
      leakage=config.folds.leakage,
      segmentation=None if seen is None else [seen] * len(splits),
    )
  summary = dataset.summary() | {"segmentation": trained.fingerprints}
  # What a second run could not use is refused before anything that takes long.
  ablations = [a for a in config.channels.ablations if a != "true" or dataset.simulated]
  names, places, members = make_members(list(trained.thresholds), ablations, len(splits))
  sweep = Sweep(members, choose_strategy(config.sweep.strategy))
  parallel.check_batch(
    sweep.mesh, config.train.batch_size, rows=task.clips_per_batch // config.train.batch_size
  )
  network = state_lib.Network(
    models.build_video_model(
      config.model,
      in_channels=1 + len(trained.classes),
      outputs=task.outputs,
      hidden=task.hidden,
      seed=config.seed,
    )
  )
  started, trained_on = initial_weights(config, network, places, splits, workdir, summary)
  folds.audit(splits, leakage=config.folds.leakage, initial=trained_on)
  if config.model.init_from:
    file = config.model.init_from
    summary["initial"] = (
      torch_weights.digest(file) if torch_weights.is_file(file) else _digest(started)
    )
  files = (config.name, f"{config.name}_history")
  # What is refused keeps its results.
  claim_lib.check_claim(directory, settings, summary, more_epochs=True)
  if before is not None:
    epochs, _ = checkpoints_lib.progress(directory)
    print(f"{directory}: going on after {plural(epochs, 'epoch')} to {config.train.epochs}.")
  if before is not None or not begun:
    # It goes on, or its directory was removed to start anew: what it found is not its result.
    results.remove(workdir, *(f"{name}.json" for name in files))
  claim_lib.claim(directory, settings, summary, more_epochs=True)
  parallel.sync("claim")

  if not results.exists(workdir, *files):
    trained_by_fold, keep = [trained], set(whole.fingerprints)
    if strict:
      by_fold = fold_segmentations(config, whole, splits, workdir)
      trained_by_fold = [one.only(chosen) for one in by_fold]
      keep = keep.union(*(one.fingerprints for one in by_fold))
      seen = [[*one.patients["train"], *one.patients["validation"]] for one in trained_by_fold]
      folds.audit(splits, leakage="strict", segmentation=seen)
    store = make_store(
      config, workdir, dataset, table, trained_by_fold, ablations, splits, keep, sweep.mesh
    )
    notes = _notes(config, dataset, table, trained, same)
    print(_describe(config, dataset, network, table, splits, task, places, notes))
    print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=store.cache))
    meta, tested = _fit(
      config, settings, workdir, network, sweep, names, started, task, store, splits
    )
    write_results(
      workdir, config, settings, dataset, splits, task, places, meta, tested, trained, same, notes
    )
  parallel.sync("task results")
  print(text.downstream(results.read(workdir, config.name)))


def _digest(trees):
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(trees):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:12]


def make_store(config, workdir, dataset, table, trained_by_fold, ablations, splits, keep, mesh):
  """Makes the channels of all videos, and the `lus_jax.data.clips.ClipStore` of them.

  Args:
    config: a run's config.
    workdir: the run's directory.
    dataset: the videos.
    table: their `VideoTable`.
    trained_by_fold: the segmentation models of each fold, or of all (one).
    ablations: of 'none' and 'true'.
    splits: `Fold`s.
    keep: fingerprints of models whose channels other runs in this directory may still need.
    mesh: of the sweep.
  """
  image, maps, truth = channels_lib.make(
    dataset, table, trained_by_fold, size=config.clip.image_size, workdir=workdir, keep=keep
  )
  stored = sum(maps, [])
  per_model = np.arange(len(stored)).reshape(len(maps), -1).tolist()
  if "true" in ablations:
    stored.append(truth)
    per_model = [[*row, len(stored) - 1] for row in per_model]
  cache = pipeline.choose_cache_for(config.data.cache, image.nbytes + sum(x.nbytes for x in stored))
  return clips.ClipStore(
    image=image,
    channels=stored,
    fold_channels=np.array(per_model if len(maps) > 1 else per_model * len(splits)),
    offset=table.offset,
    n_frames=table.n_frames,
    n_segment=config.clip.n_segment,
    cache=cache,
    mesh=mesh,
  )


def _fit(config, settings, workdir, network, sweep, names, started, task, store, splits):
  tx, schedule = make_optimizer(config.optimizer, task.steps_per_epoch, config.train.epochs)
  states = [state_lib.create_state(one["params"], one["batch_stats"], tx) for one in started]
  state = sweep.place(states)
  outputs = make_outputs(network, sweep, task, store, config, splits)

  def loss_fn(params, batch_stats, member, inputs, key):
    own = {
      name: x[member["fold"]] for name, x in inputs.items() if name not in ("image", "channels")
    }
    clip = member_clips(inputs, member, config.channels.kind)
    found, batch_stats = network(params, batch_stats, clip, train=True)
    return task.loss(found, params["bias"], own), batch_stats

  def judge(state, split, function, *, best):
    weights = _weights(sweep, state, best=best)
    return [
      function(found, bias, int(member["fold"]))
      for found, bias, member in zip(
        outputs(weights, split), _biases(sweep, weights), sweep.members, strict=True
      )
    ]

  directory = pathlib.Path(workdir) / config.name
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(directory)))
    writer = stack.enter_context(contextlib.closing(writers.create_writer(directory)))
    writers.write_overview(writer, settings, network.params)
    state, meta = loop.fit(
      loop.Task(
        names=names,
        prepare=lambda batch, key: batch,
        loss_fn=loss_fn,
        tx=tx,
        schedule=schedule,
        validate=lambda state: (judge(state, "validation", task.validate, best=False), {}),
        unit="clip",
        work=estimate.Work(
          images=task.clips_per_batch,
          flop=flops.TRAINING
          * flops.video(
            size=config.clip.image_size,
            n_segment=config.clip.n_segment,
            in_channels=_in_channels(network),
            outputs=task.outputs,
            hidden=task.hidden,
            width=config.model.width,
          ),
          validated=max(len(task.videos(f, "validation")) for f in range(len(splits))),
          dtype=config.model.dtype,
        ),
      ),
      sweep,
      state,
      store.batches(make_plan(task, store, config, len(splits))),
      config=config.train,
      steps_per_epoch=task.steps_per_epoch,
      key=jax.random.key(config.seed),
      checkpoints=checkpoints,
      writer=writer,
    )
    print(f"testing the best epochs of {plural(len(names), 'model')}", flush=True)
    tested = judge(state, "test", task.evaluate, best=True)
    step = config.train.epochs * task.steps_per_epoch
    found = {name: ratio.fold_row(row) for name, (row, _) in zip(names, tested, strict=True)}
    writers.write_table(writer, step, found, list(next(iter(found.values()))))
  return meta, tested


def _notes(config, dataset, table, trained, same):
  """What a reader of the results has to know."""
  notes = list(dataset.notes)
  if not same and not dataset.simulated:
    known = {name for names in trained.patients.values() for name in names}
    if both := sorted(known & set(table.patient.tolist())):
      notes.append(
        f"patients of these names are in the segmentation's data set too ({', '.join(both[:5])}): "
        "if they are the same persons, they stand on both sides."
      )
  if not same and config.folds.leakage == "strict":
    notes.append("the segmentation is of another data set, so strict needed no sweep of its own.")
  if torch_weights.is_file(config.model.init_from):
    notes.append(
      f"the networks start from the weights in {os.path.basename(config.model.init_from)}, trained "
      "elsewhere: no test patient may have been among its data."
    )
  elif config.folds.leakage == "strict" and config.model.init_from:
    notes.append(
      f"the networks start from those of {config.model.init_from}, whose best epochs were chosen "
      "on the validation patients of the same fold; test patients chose nothing."
    )
  if "true" in config.channels.ablations and not dataset.simulated:
    notes.append("no true masks exist for real frames, so there is no row for them.")
  return notes


def write_results(
  workdir, config, settings, dataset, splits, task, places, meta, tested, trained, same, notes
):
  """Writes `results/<name>.json` and `results/<name>_history.json`."""
  rows, members, confusion, predictions = [], {}, {}, []
  for (source, f), best, (ratios, extra) in zip(places, meta["best"], tested, strict=True):
    rows.append(
      {
        "threshold": source,
        "fold": f,
        "best_epoch": best["epoch"],
        "n_patients": len(ratios[task.primary].patients),
        **ratio.fold_row(ratios),
      }
    )
    members.setdefault(source, []).append(ratios)
    if "confusion" in extra:
      confusion[source] = confusion.get(source, 0) + extra["confusion"]
    predictions += [{"threshold": source, "fold": f, **row} for row in extra.get("predictions", [])]
  content = {
    "task": config.task,
    "primary": task.primary,
    "target": config.target,
    "split": "test",
    "rows": rows,
    "summary": statistics.summarize(members, primary=task.primary, baseline=task.baseline),
    "patients": statistics.per_patient(members),
    "folds": [
      {"fold": f, **{side: list(names) for side, names in vars(fold).items()}}
      for f, fold in enumerate(splits)
    ],
    "left_out": [row for row in task.left_out if row["count"]],
    "notes": notes,
    "segmentation": {
      "dataset": trained.dataset["name"],
      "thresholds": list(trained.thresholds),
      "same_data_set": same,
    },
  }
  if confusion:
    content["confusion"] = [
      {"threshold": source, "classes": list(task.classes), "matrix": matrix.tolist()}
      for source, matrix in confusion.items()
    ]
  if predictions:
    content["predictions"] = predictions
  names = dict(zip([row["member"] for row in meta["history"]], places, strict=False))
  history = [
    {"threshold": names[row["member"]][0], "fold": names[row["member"]][1], **row}
    for row in meta["history"]
  ]
  summary = dataset.summary()
  results.write(workdir, f"{config.name}_history", config=settings, dataset=summary, rows=history)
  results.write(workdir, config.name, config=settings, dataset=summary, **content)


def _describe(config, dataset, network, table, splits, task, places, notes):
  millions = sum(x.size for x in jax.tree.leaves(network.params)) / 1e6
  sources = list(dict.fromkeys(str(source) for source, _ in places))
  return "\n".join(
    [
      f"{config.name} on {dataset.name}: {plural(len(table), 'video')} of "
      f"{plural(len(set(table.patient)), 'patient')}, {plural(len(splits), 'fold')}",
      f"{plural(len(places), 'model')} ({', '.join(sources)}; MobileNetV2 with temporal shift, "
      f"{millions:.1f} M parameters each), {plural(config.train.epochs, 'epoch')}, "
      f"{plural(config.train.epochs * task.steps_per_epoch, 'step')}, clips of "
      f"{plural(config.clip.n_segment, 'frame')} of "
      f"{config.clip.image_size} x {config.clip.image_size}",
      *(f"note: {note}" for note in notes),
      *(f"left out: {x['count']} {x['what']}: {x['why']}" for x in task.left_out if x["count"]),
    ]
  )
