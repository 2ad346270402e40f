"""Which target is worth learning? Small simulated studies, repeated over seeds and settings.

A unit is one setting of the phantom and one seed: new patients, new initial weights, all members of
the sweep trained on the same batches to the last epoch, and scored against the truth. Units share
nothing, so each core works on its own; a process compiles its programs once for all its units.
Every unit is a file; an interrupted study goes on with the next.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
from concurrent import futures

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from lus_jax import lock, models, results
from lus_jax.data import augment as augment_lib
from lus_jax.data import datasets, labelling, pipeline
from lus_jax.errors import UserError
from lus_jax.evaluation import statistics
from lus_jax.evaluation import truth as truth_lib
from lus_jax.evaluation.ratio import Ratio
from lus_jax.files import broken_seal, seal, write_text
from lus_jax.report import which_target as report
from lus_jax.training import claim, segmentation
from lus_jax.training import members as members_lib
from lus_jax.training import objective as objective_lib
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy
from lus_jax.words import plural

UNITS = "units"
SIMULATED = "simulated"  # what is being learned from at the moment
SPLITS = ("train", "validation", "test")
NULL = "null_repeats"
# Scores of a view against the truth, and whether higher is better.
METRICS = {
  "average_precision": True,
  "dice": True,
  "dice_half": True,
  "ece": False,
  "brier": False,
}
# What is compared of the ways to standardise experts.
SCALED = ("average_precision", "dice")
# Members of a null study: alike but for their initial weights and dropout.
NULL_MEMBERS = 7
NULL_SIZE, NULL_WIDTH, NULL_PATIENTS, NULL_EPOCHS = 32, 0.125, 5, 10


def check(config):
  """Refuses a config that no study could use (`UserError`); nothing is written before."""
  segmentation.check(config)
  members_lib.check_raters(members_lib.read(config), ())
  if config.sweep.seeds != 1:
    raise UserError(
      f"config.sweep.seeds: {config.sweep.seeds} must be 1; raise --config.study.seeds instead."
    )
  settings = config.study.settings
  if not settings or len(set(settings)) < len(settings):
    raise UserError(f"config.study.settings: {settings} must name at least one, each once.")
  if not 0 < config.study.prior < 1:
    raise UserError(
      f"config.study.prior: {config.study.prior} must be a probability between 0 and 1."
    )
  if config.study.workers < 0:
    raise UserError(
      f"config.study.workers: {config.study.workers} must be 0 (one a core) or a number of them."
    )
  if config.labels.standardise != "none":
    raise UserError(
      "config.labels.standardise: a study compares ways to standardise; name them in "
      "--config.study.standardise instead."
    )
  if config.study.workers > 1 and jax.default_backend() != "cpu":
    raise UserError(
      f"config.study.workers: {config.study.workers} processes cannot share an accelerator; use 1."
    )
  scales = config.study.standardise
  for method in scales:
    labelling.check_method(method, "config.study.standardise")
  if not scales or scales[0] != "none" or len(set(scales)) < len(scales):
    raise UserError(
      f"config.study.standardise: {scales} must begin with 'none', what all others are compared "
      "with, and name each method once."
    )
  if "overlap" in scales and not config.data.phantom.raters:
    raise UserError(
      "config.study.standardise: 'overlap' needs frames that several experts painted; set "
      "--config.data.phantom.raters=True."
    )
  for name in ("seeds", "train_frames", "validation_patients"):
    if config.study[name] < 1:
      raise UserError(f"config.study.{name}: {config.study[name]} must be at least 1.")
  if config.study.train_frames < config.train.batch_size:
    raise UserError(
      f"config.study.train_frames: {config.study.train_frames} are fewer than one batch "
      f"({config.train.batch_size}); use more."
    )
  if config.study.null_repeats and config.study.null_cohorts < config.study.seeds:
    raise UserError(
      f"config.study.null_cohorts: each repeat draws {config.study.seeds} of "
      f"{config.study.null_cohorts}; use at least as many."
    )
  if config.data.name != "lus_phantom":
    raise UserError("config.data.name: the truth is known of lus_phantom only.")
  from tfds_builders.lus_phantom import phantom_config

  for setting in config.study.settings:
    fields = config.data.phantom.to_dict() | {"setting": setting}
    phantom_config("frames", 64, 64, **fields)


class Trainer:
  """Trains and scores one unit after another, with programs that are compiled once.

  Args:
    config: a study's config.
    same: None, or how many members alike in all but their initial weights are trained instead.
  """

  def __init__(self, config, same=None):
    self._config, self._same = config, same
    self.objective = objective_lib.Objective(config)
    self.views, scalars = objective_lib.make_views(config, self.objective)
    if same:
      plain = self.objective.members[0]
      scalars = [self.objective.scalars(plain, seed=i) for i in range(same)]
      self.views = [
        members_lib.View(f"copy_{i}", i, members_lib.WHOLE, plain.threshold) for i in range(same)
      ]
      members = scalars
    else:
      members = objective_lib.make_members(config, self.objective)[1]
    strategy = choose_strategy(config.sweep.strategy)
    self._sweep, self._scalars = Sweep(members, strategy), scalars
    steps = config.train.epochs * (config.study.train_frames // config.train.batch_size)
    self._steps = steps
    self._tx, _ = segmentation.make_optimizer(config.optimizer, steps)
    self._network = None

  def _initial(self, seed, classes):
    """Initial weights of a seed; the network itself is built once."""
    if self._network is None:
      options = {"in_channels": 1, "classes": classes, "levels": self.objective.head}
      self._network = state_lib.Network(models.build_model(self._config.model, seed=0, **options))

      def initialise(key):
        model = models.build_model(self._config.model, seed=key, **options)
        bias = model.segmentation_head.bias
        # The levels above the lowest are only what is taken off it.
        bias[...] = bias[...].at[:classes].set(jax.scipy.special.logit(self._config.study.prior))
        network = state_lib.Network(model)
        return network.params, network.batch_stats

      self._initialise = jax.jit(initialise)
      self._compile()
    return self._initialise(jax.random.key(seed))

  def _compile(self):
    network, objective = self._network, self.objective
    self._prepare = jax.jit(
      lambda batch, key: augment_lib.prepare(batch, key, self._config.augment)
    )
    loss = segmentation.make_loss(network, objective)
    step = state_lib.make_train_step(loss, self._tx)
    self._step = self._sweep.compile(step, updates_state=True)
    self._plain = jax.jit(augment_lib.prepare)

    def raw(state, own, inputs):
      return objective.logits(network, state.params, state.batch_stats, inputs["image"])[0]

    # The network once, however many levels are looked at.
    self._raw = self._sweep.compile(raw)
    self._probability = jax.jit(
      lambda raw, inputs, own: jax.nn.sigmoid(objective.output(raw, inputs, own))
    )

  def run(self, frames, *, seed):
    """Trains on one cohort and predicts its validation and test frames.

    Args:
      frames: arrays of `pipeline.FIELDS` by split.
      seed: of the initial weights, the order and the augmentation.

    Returns:
      Probabilities [V, n, H, W, K] of the validation and the test frames.
    """
    classes = frames["train"]["confidence"].shape[-1]
    # Copies differ in their weights, members of a sweep do not.
    first = seed * (self._same or 1)
    starts = [self._initial(first + i, classes) for i in range(self._same or 1)]
    starts *= 1 if self._same else len(self._sweep.members)
    state = self._sweep.place([state_lib.create_state(*one, self._tx) for one in starts])
    source = pipeline.Frames(frames["train"], cache="device")
    batches = source.training_batches(self._config.train.batch_size, seed=seed)
    key = jax.random.key(seed)
    for step in range(self._steps):
      augment_key, model_key = jax.random.split(jax.random.fold_in(key, step))
      inputs = self._prepare(next(batches), augment_key)
      state, loss = self._step(state, self._sweep.members, inputs, model_key)
    values = np.asarray(self._sweep.to_host(loss))
    if not np.isfinite(values).all():
      raise UserError(
        f"a loss of seed {seed} is not finite; lower --config.optimizer.learning_rate."
      )
    found = []
    for split in ("validation", "test"):
      parts = []
      batches = pipeline.Frames(frames[split], cache="device").evaluation_batches(16)
      for batch in batches:
        mask = batch.pop("mask")
        inputs = self._plain(batch)
        raw = self._sweep.to_host(self._raw(state, self._sweep.members, inputs))
        result = [
          self._probability(raw[view.member], inputs, own)
          for view, own in zip(self.views, self._scalars, strict=True)
        ]
        parts.append(np.stack(jax.device_get(result))[:, mask])
      found.append(np.concatenate(parts, axis=1))
    return found


def cohort(config, setting, seed, *, standardise="none", directory=None):
  """Simulates the patients of one unit.

  Args:
    config: a study's config.
    setting: of the phantom.
    seed: of the phantom.
    standardise: how the experts' confidences come to one scale (`labelling.standardised`).
    directory: where the simulated files may lie for a moment; the system's own by default.

  Returns:
    By split, arrays of `pipeline.FIELDS` and `truth` [n, H, W, K] uint8, and, where all experts
    paint every frame, `raters` [n, R, H, W, K] uint8: `train_frames` training frames, the
    validation patients', and those of all patients that are left.

  Raises:
    UserError: too few patients for three splits.
  """
  data = config.data.copy_and_resolve_references()
  with data.unlocked(), tempfile.TemporaryDirectory(dir=directory) as prepared:
    data.prepared_dir, data.phantom.setting, data.phantom.seed = prepared, setting, seed
    # Hundreds of cohorts would each say where they are prepared.
    with contextlib.redirect_stdout(io.StringIO()):
      dataset = datasets.open_dataset(data, "frames")
    sources = list(dataset.splits.values())
    places = [(number, i) for number, source in enumerate(sources) for i in range(len(source))]
    patients = [one["patient"] for source in sources for one in source.only("patient")]
    names, counts = np.unique(patients, return_counts=True)
    enough = int(np.searchsorted(np.cumsum(counts), config.study.train_frames)) + 1
    ends = np.cumsum([enough, config.study.validation_patients])
    if ends[-1] >= len(names):
      raise UserError(
        f"config.data.phantom.n_patients: {len(names)} patients leave none for the test; use more."
      )
    splits = {}
    for split, group in zip(SPLITS, np.split(names, ends), strict=True):
      here = np.flatnonzero(np.isin(patients, group))
      here = here[: config.study.train_frames] if split == "train" else here
      splits[split] = datasets.Subset(sources, [places[i] for i in here])
    several = ("raters",) if dataset.raters else ()
    splits = labelling.standardised(dataclasses.replace(dataset, splits=splits), standardise)
    fields = (*pipeline.FIELDS, "truth", *several)
    return {split: pipeline.load(source, fields) for split, source in splits.items()}


def compare(scores, *, higher=True):
  """What one metric says of the members of one family over all seeds.

  Every member is compared with "above 0" and with 50 %, each pair once, by swapping the two within
  seeds (`statistics.permutation_test`), corrected by Holm over the family. A winner is claimed
  where the best mean beats both (the other one, if it is one of them). The contrast is the pair of
  the references, "above 0" less 50 %: what faint strokes bring (None where either was not trained).

  Args:
    scores: by threshold, or by name for members without one, one number a seed [n].
    higher: whether higher is better.

  Returns:
    A dict of JSON values: `means` (rows of `member`, `mean`, `interval`, `best`), `comparisons`
    (rows of `member`, `against`, `difference`, `interval`, `p`, `p_holm`), `winner` (or None) and
    `contrast` (`difference`, `interval`, `p`).
  """
  units = tuple(str(i) for i in range(len(next(iter(scores.values())))))
  sign = 1 if higher else -1

  def ratio(values):
    return Ratio(units, np.asarray(values, np.float64), np.ones(len(units)))

  ratios = {name: ratio(values) for name, values in scores.items()}
  references = [t for t in statistics.REFERENCES if t in ratios]
  pairs = []
  for other in references:
    pairs += [(a, other) for a in ratios if a != other and (other, a) not in pairs]
  rows = []
  for a, b in pairs:
    rows.append(_difference(ratios[a], ratios[b]) | {"member": a, "against": b})
  corrected = statistics.holm([row["p"] for row in rows]) if rows else []
  for row, p in zip(rows, corrected, strict=True):
    row["p_holm"] = p
  means = {name: float(np.mean(values)) for name, values in scores.items()}
  best = max(means, key=lambda name: sign * means[name])

  def beats(a, b):
    for row in rows:
      if {row["member"], row["against"]} == {a, b}:
        ahead = row["difference"] * sign * (1 if row["member"] == a else -1)
        return ahead > 0 and row["p_holm"] < statistics.LEVEL
    return False

  others = [t for t in references if t != best]
  winner = best if others and all(beats(best, other) for other in others) else None
  contrast = None
  if len(references) == len(statistics.REFERENCES):
    (row,) = (row for row in rows if {row["member"], row["against"]} == set(references))
    contrast = _difference(*(ratios[t] for t in statistics.REFERENCES))
    contrast["p"] = row["p_holm"]
  return {
    "means": [
      {"member": name, "mean": means[name], "interval": _interval(ratios[name])} for name in scores
    ],
    "best": best,
    "winner": winner,
    "comparisons": rows,
    "contrast": contrast,
  }


def _interval(ratio):
  found = statistics.interval(ratio)
  return None if found is None else list(found[:2])


def _difference(a, b):
  found = statistics.difference_interval(a, b)
  return {
    "difference": a.value() - b.value(),
    "interval": None if found is None else list(found[:2]),
    "p": statistics.permutation_test(a, b),
  }


def families(objective, views):
  """The members that are compared with each other: by the weights of the thresholds.

  Returns:
    A dict from 'paper' and 'ones' (those that there are) to a dict from threshold, or name, to the
    name of the view; members without a threshold are in both. Thresholds with another loss than the
    config's go by their names.
  """
  found, plain = {}, objective.members[0].loss
  for weights in ("paper", "ones"):
    own = {}
    for view in views:
      member = objective.members[view.member]
      if view.level == members_lib.WHOLE and member.target == "threshold":
        if member.weights == weights:
          own[member.threshold if member.loss == plain else view.name] = view.name
      elif view.level == members_lib.WHOLE:
        own[view.name] = view.name
    if any(not isinstance(name, str) for name in own):
      found[weights] = own
  return found


def null_repeats(scores, *, repeats, seeds):
  """How often a winner is claimed where all members have one target.

  Each repeat draws `seeds` cohorts, gives the copies of each the thresholds' names at random, and
  decides as `compare` does.

  Args:
    scores: [cohorts, copies], of one metric.
    repeats: how many.
    seeds: units a repeat has.

  Returns:
    A dict: `repeats`, `winners` and `contrasts` (how many claimed either).
  """
  thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)[: scores.shape[1]]
  r = np.random.default_rng(0)
  winners = contrasts = 0
  for _ in range(repeats):
    chosen = scores[r.permutation(len(scores))[:seeds]]
    named = r.permuted(chosen, axis=1)
    found = compare(dict(zip(thresholds, named.T, strict=True)))
    winners += found["winner"] is not None
    contrasts += found["contrast"]["p"] < statistics.LEVEL
  return {"repeats": repeats, "winners": winners, "contrasts": contrasts}


def _units(config):
  """What is trained: (setting, way to standardise, seed), the seed changing slowest."""
  study = config.study
  return [
    (setting, standardise, seed)
    for seed in range(study.seeds)
    for setting in study.settings
    for standardise in study.standardise
  ]


class Worker:
  """Runs units, with trainers that are made when first needed.

  Args:
    config: a study's config.
    directory: of the finished units.
  """

  def __init__(self, config, directory):
    self._config, self._directory = config, pathlib.Path(directory)
    self._trainers = {}

  def run(self, setting, standardise, seed):
    """Simulates, trains and scores one unit and writes its file."""
    null = setting == NULL
    config = _null_config(self._config) if null else self._config
    if null not in self._trainers:
      self._trainers[null] = Trainer(config, same=NULL_MEMBERS if null else None)
    trainer = self._trainers[null]
    # Cohorts of different settings share nothing; those of null repeats are the default ones.
    frames = cohort(
      config,
      "default" if null else setting,
      _seed_of(self._config, setting, seed),
      standardise=standardise,
      directory=self._directory / SIMULATED,
    )
    inputs = {
      split: {name: arrays[name] for name in pipeline.FIELDS} for split, arrays in frames.items()
    }
    rows = truth_lib.score(trainer.run(inputs, seed=seed), frames, trainer.views)
    if "raters" in frames["validation"]:
      # Of patients the maps were not fitted to.
      spread = truth_lib.annotator_sd(frames["validation"]["raters"])
      rows = [row | {"annotator_sd": spread} for row in rows]
    file = unit_file(self._directory, setting, standardise, seed)
    write_text(file, json.dumps(seal({"rows": rows})) + "\n")


def unit_file(directory, setting, standardise, seed):
  """Where a finished unit's scores are."""
  parts = (setting, *(() if standardise == "none" else (standardise,)), str(seed))
  return pathlib.Path(directory) / f"{'_'.join(parts)}.json"


def read_unit(file):
  """The scores of a finished unit; None where it is not there, or damaged (with a warning)."""
  try:
    content = json.loads(file.read_text())
    if isinstance(content, list):  # of an older version
      return content
    if broken_seal(content):
      raise ValueError("another checksum")
    return content["rows"]
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as error:
    logging.warning("%s is damaged (%s); it is done again.", file, error)
    return None


# The `Worker` of a worker process.
_worker = None


def _start_worker(config, directory, cache):
  """Makes this process a worker that computes on one core."""
  global _worker
  # The parent stops its workers; should it be killed, they stop by themselves.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
  # Of XLA's thread pools; read when the backend starts.
  os.environ["NPROC"] = "1"
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  _worker = Worker(config, directory)


def _work(*job):
  _worker.run(*job)


def _run_all(config, directory, jobs, done):
  """Runs units, calling `done` after each: on a CPU in as many processes as it has cores.

  Networks this small do not fill two cores: a process for each trains more of them. An accelerator
  is given to this process alone.
  """
  simulated = directory / SIMULATED
  # A killed study leaves some.
  shutil.rmtree(simulated, ignore_errors=True)
  simulated.mkdir(parents=True)
  try:
    if (count := min(_workers(config), len(jobs))) <= 1:
      worker = Worker(config, directory)
      for job in jobs:
        worker.run(*job)
        done()
    else:
      _run_in_workers(count, config, directory, jobs, done)
  finally:
    shutil.rmtree(simulated, ignore_errors=True)


def _workers(config):
  if config.study.workers or jax.default_backend() != "cpu":
    return config.study.workers or 1
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _run_in_workers(count, config, directory, jobs, done):
  with futures.ProcessPoolExecutor(
    count,
    # A fork of a process with threads can stand still.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(config, directory, jax.config.jax_compilation_cache_dir),
  ) as pool:
    try:
      running = [pool.submit(_work, *job) for job in jobs]
      for one in futures.as_completed(running):
        one.result()
        done()
    except BaseException as error:
      # Nobody waits for units that are under way; they are done again.
      for process in list((pool._processes or {}).values()):
        process.kill()
      pool.shutdown(wait=False, cancel_futures=True)
      if isinstance(error, futures.process.BrokenProcessPool):
        raise UserError(
          f"config.study.workers: one of {count} processes ended, perhaps for want of memory; the "
          "same command with fewer goes on from here."
        ) from error
      raise


def train_and_evaluate(config, workdir):
  """Runs every unit that is not finished, then compares the members over all of them.

  Args:
    config: a study's config (`configs/which_target.py`).
    workdir: the run's directory; an interrupted study goes on with the next unit.

  Raises:
    UserError: the config is not in order, or the directory is another run's.
  """
  check(config)
  settings = claim.settings(config)
  dataset = {"name": "lus_phantom", "version": "simulated anew for every unit", "splits": {}}
  claim.check_claim(workdir, settings, dataset)
  with lock.hold(workdir):
    _run(config, settings, dataset, workdir)


def _run(config, settings, dataset, workdir):
  claim.claim(workdir, settings, dataset)
  directory = pathlib.Path(workdir) / UNITS
  jobs = _units(config)
  if config.study.null_repeats:
    jobs += [(NULL, "none", seed) for seed in range(config.study.null_cohorts)]
  left = [job for job in jobs if read_unit(unit_file(directory, *job)) is None]
  objective = objective_lib.Objective(config)
  with tqdm(
    total=len(jobs),
    unit="cohort",
    desc=f"training {plural(len(objective.members), 'model')} each",
    mininterval=0.2 if sys.stderr.isatty() else 10,
    initial=len(jobs) - len(left),
    disable=not left,
  ) as bar:
    _run_all(config, directory, left, bar.update)
  content = summarize(config, objective, directory)
  results.write(workdir, report.NAME, config=settings, dataset=dataset, **content)
  print(report.text(results.read(workdir, report.NAME)))


def _seed_of(config, setting, seed):
  # The same patients however the experts are standardised.
  names = (*config.study.settings, NULL)
  return config.seed + 1000 * (1 + names.index(setting)) + seed


def _null_config(config):
  """The config of the null cohorts: as small as still learns something."""
  null = config.copy_and_resolve_references()
  with null.unlocked():
    null.sweep.thresholds, null.sweep.members = (0.5,), ()
    null.loss.weights = "ones"
    null.data.image_size = min(NULL_SIZE, config.data.image_size)
    null.data.phantom.n_patients = NULL_PATIENTS
    null.model.width = NULL_WIDTH
    null.train.epochs = NULL_EPOCHS
    null.study.train_frames = min(16, config.study.train_frames)
    null.data.phantom.raters = False
    null.study.validation_patients = 1
    null.train.batch_size = min(4, config.train.batch_size)
  return null


def summarize(config, objective, directory):
  """Everything `results/which_target.json` holds beside its head.

  Args:
    config: a study's config.
    objective: its `members.Objective`.
    directory: of the finished units.

  Returns:
    A dict of `rows` (a row a setting, weights and metric: those and what `compare` returns),
    `units` (all scores), `levels` (ordinal levels beside the separate networks of the same
    threshold and weights: means and difference), `null_repeats` (by metric), `scales` (every way
    to standardise beside none: a row a setting, way, member and metric) and `spread` (the same of
    `annotator_sd`), and `labels` (Dice of the label itself against the truth: a row a setting and
    threshold). All but `scales` and `spread` are of confidences as they were painted.
  """
  units, views = [], objective_lib.make_views(config, objective)[0]
  for setting, standardise, seed in _units(config):
    for row in read_unit(unit_file(directory, setting, standardise, seed)):
      units.append({"setting": setting, "standardise": standardise, "seed": seed, **row})
  scores = {}
  for row in units:
    for metric in METRICS:
      if row["standardise"] == "none":
        scores.setdefault((row["setting"], row["member"], metric), []).append(row[metric])
  rows, levels = [], []
  for setting in config.study.settings:
    for weights, family in families(objective, views).items():
      for metric, higher in METRICS.items():
        named = {name: scores[setting, view, metric] for name, view in family.items()}
        rows.append(
          {
            "setting": setting,
            "weights": weights,
            "metric": metric,
            **compare(named, higher=higher),
          }
        )
    levels += _levels(objective, views, setting, scores)
  content = {"rows": rows, "levels": levels, "units": units, "null_repeats": {}}
  content["labels"] = _labels(config, units, views)
  content |= {"scales": _scales(config, units, SCALED), "spread": []}
  if "annotator_sd" in units[0]:
    first = [row for row in units if row["member"] == views[0].name]
    content["spread"] = _scales(config, first, ("annotator_sd",))
  if config.study.null_repeats:
    cohorts = [
      read_unit(unit_file(directory, NULL, "none", seed))
      for seed in range(config.study.null_cohorts)
    ]
    for metric in ("average_precision", "dice"):
      table = np.array([[row[metric] for row in rows] for rows in cohorts])
      content["null_repeats"][metric] = null_repeats(
        table, repeats=config.study.null_repeats, seeds=config.study.seeds
      )
  return content


def _labels(config, units, views):
  """How true the labels are that members learn: no network stands between."""
  found = []
  thresholds = {
    view.threshold: view.name
    for view in reversed(views)
    if view.threshold is not None and view.level == members_lib.WHOLE
  }
  for setting in config.study.settings:
    for threshold in sorted(thresholds, reverse=True):
      at = {"setting": setting, "standardise": "none", "member": thresholds[threshold]}
      values = [row["label_dice"] for row in units if at.items() <= row.items()]
      ratio = Ratio(tuple(map(str, range(len(values)))), np.array(values), np.ones(len(values)))
      mean = {"mean": ratio.value(), "interval": _interval(ratio)}
      found.append({"setting": setting, "threshold": threshold, **mean})
  return found


def _scales(config, units, metrics):
  """Every way to standardise beside none, over the same cohorts; Holm within setting and metric."""
  found = []
  for setting in config.study.settings:
    for metric in metrics:
      values = {}
      for row in units:
        if row["setting"] == setting:
          values.setdefault((row["member"], row["standardise"]), []).append(row[metric])
      rows = []
      for (name, method), mine in values.items():
        if method == "none":
          continue
        pair = np.array([mine, values[name, "none"]], np.float64)
        # A cohort without a pixel that all experts painted has no spread.
        known = np.isfinite(pair).all(axis=0)
        if not known.any():
          continue
        cohorts = tuple(map(str, np.flatnonzero(known)))
        a, b = (Ratio(cohorts, x[known], np.ones(len(cohorts))) for x in pair)
        rows.append(
          {
            "setting": setting,
            "standardise": method,
            "member": name,
            "metric": metric,
            "mean": a.value(),
            "none": b.value(),
            **_difference(a, b),
          }
        )
      corrected = statistics.holm([row["p"] for row in rows]) if rows else []
      found += [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]
  return found


def _levels(objective, views, setting, scores):
  """Every level of an ordinal member beside the separate network of its threshold and weights."""
  found, members = [], objective.members
  for view in views:
    if view.level == members_lib.WHOLE:
      continue
    weights = members[view.member].weights
    separate = next(
      (
        other.name
        for other in views
        if members[other.member].target == "threshold"
        and members[other.member].weights == weights
        and other.threshold == view.threshold
      ),
      None,
    )
    if separate is None:
      continue
    for metric in METRICS:
      a, b = (np.asarray(scores[setting, name, metric]) for name in (view.name, separate))
      units = tuple(str(i) for i in range(len(a)))
      pair = [Ratio(units, x, np.ones(len(units))) for x in (a, b)]
      found.append(
        {
          "setting": setting,
          "threshold": view.threshold,
          "weights": weights,
          "metric": metric,
          "ordinal": float(a.mean()),
          "separate": float(b.mean()),
          **_difference(*pair),
        }
      )
  return found
