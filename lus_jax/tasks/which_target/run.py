"""Which target is worth learning? Small simulated studies, repeated over seeds and settings.

A unit is one setting of the phantom and one seed: new patients, new initial weights, all members of
the sweep trained on the same batches to the last epoch, and scored against the truth. Units share
nothing, so each core works on its own; a process compiles its programs once for all its units.
Every unit is a file; an interrupted study goes on with the next.
"""

import json
import pathlib
import shutil

from lus_jax import fields, lock, progress, results
from lus_jax.data import labelling, pipeline
from lus_jax.errors import UserError
from lus_jax.evaluation import truth
from lus_jax.files import seal, write_text
from lus_jax.report import which_target as report
from lus_jax.tasks import workers
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.tasks.which_target import cohort, compare
from lus_jax.training import claim, hardware
from lus_jax.training.objective import Objective
from lus_jax.words import plural

UNITS = "units"
SIMULATED = "simulated"  # what is being learned from at the moment
NULL_SIZE, NULL_WIDTH, NULL_PATIENTS, NULL_EPOCHS, NULL_FRAMES = 32, 0.125, 5, 3, 16


def check(config):
  """Refuses a config that no study could use (`UserError`); nothing is written before."""
  objective, _ = segmentation.check(config)
  objective.with_raters(())
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
  if config.train.get("minutes", 0):
    raise UserError("config.train.minutes: a study has its own sizes, and takes its time; use 0.")
  workers.check(config.study.workers)
  if config.labels.standardise != "none":
    raise UserError(
      "config.labels.standardise: a study compares ways to standardise; name them in "
      "--config.study.standardise instead."
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
  names = ("seeds", "train_frames", "validation_patients")
  fields.check_least(config, {f"study.{name}": 1 for name in names})
  if config.study.train_frames < config.train.batch_size:
    raise UserError(
      f"config.study.train_frames: {config.study.train_frames} are fewer than one batch "
      f"({config.train.batch_size}); use more."
    )
  fields.check_known(config, {"study.metric": compare.METRICS})
  fields.check_least(config, {"study.null_studies": 0})
  if config.data.name != "lus_phantom":
    raise UserError("config.data.name: the truth is known of lus_phantom only.")
  from tfds_builders.lus_phantom import phantom_config

  for setting in config.study.settings:
    phantom = config.data.phantom.to_dict() | {"setting": setting}
    phantom_config("frames", 64, 64, **phantom)
  _check_questions(config, objective)


def _check_questions(config, objective):
  parts = compare.parts_of(config, doses_of(config.study.settings))
  if config.study.null_studies and not parts:
    raise UserError("config.study.null_studies: a study without questions has none; use 0.")
  names = [view.name for view in objective.views()[0]]
  for _, name in compare.copies_of(parts):
    if isinstance(name, str) and name not in names:
      raise UserError(
        f"config.study.questions: no member is called {name}; there are {', '.join(names)}."
      )


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
    null = setting == compare.NULL
    config = _null_config(self._config) if null else self._config
    if null not in self._trainers:
      parts = compare.parts_of(self._config, doses_of(self._config.study.settings))
      same = len(compare.copies_of(parts)) if null else None
      self._trainers[null] = cohort.Trainer(config, same=same)
    trainer = self._trainers[null]
    # Cohorts of different settings share nothing; those of null studies are the default ones.
    frames = cohort.cohort(
      config,
      "default" if null else setting,
      seed_of(self._config, setting, seed),
      standardise=standardise,
      directory=self._directory / SIMULATED,
    )
    inputs = {
      split: {name: arrays[name] for name in pipeline.FIELDS} for split, arrays in frames.items()
    }
    rows = truth.score(trainer.run(inputs, seed=seed), frames, trainer.views)
    if "raters" in frames["validation"]:
      # Of patients the maps were not fitted to.
      spread = truth.annotator_sd(frames["validation"]["raters"])
      rows = [row | {"annotator_sd": spread} for row in rows]
    file = compare.unit_file(self._directory, setting, standardise, seed)
    write_text(file, json.dumps(seal({"rows": rows})) + "\n")


def _run_all(config, directory, jobs, done):
  """Runs units, calling `done` after each."""
  simulated = directory / SIMULATED
  # A killed study leaves some.
  shutil.rmtree(simulated, ignore_errors=True)
  simulated.mkdir(parents=True)
  try:
    workers.run(config.study.workers, Worker, (config, directory), jobs, done)
  finally:
    shutil.rmtree(simulated, ignore_errors=True)


def train_and_evaluate(config, workdir):
  """Runs every unit that is not finished, then compares the members over all of them.

  Args:
    config: a study's config (`configs/which_target.py`).
    workdir: the run's directory; an interrupted study goes on with the next unit.

  Raises:
    UserError: the config is not in order, or the directory is another run's.
  """
  check(config)
  config = hardware.as_begun(config, workdir)
  settings = claim.settings(config)
  dataset = _dataset(config)
  claim.check_claim(workdir, settings, dataset)
  with lock.hold(workdir):
    _run(config, settings, dataset, workdir)


def _dataset(config):
  """What all units of a study have to be simulated by, for its claim and results."""
  from tfds_builders.lus_phantom.lus_phantom import LusPhantom

  dataset = {"name": "lus_phantom", "version": f"{LusPhantom.VERSION} (every unit anew)"}
  if config.study.null_studies:
    sizes = {"size": NULL_SIZE, "width": NULL_WIDTH, "patients": NULL_PATIENTS}
    dataset["null_cohorts"] = sizes | {"epochs": NULL_EPOCHS, "frames": NULL_FRAMES}
  return dataset | {"splits": {}}


def _run(config, settings, dataset, workdir):
  claim.claim(workdir, settings, dataset)
  directory = pathlib.Path(workdir) / UNITS
  jobs = compare.units_of(config)
  jobs += compare.null_units_of(config)
  left = [job for job in jobs if compare.read_unit(compare.unit_file(directory, *job)) is None]
  objective = Objective(config)
  with progress.bar(
    total=len(jobs),
    unit="cohort",
    what=f"training {plural(len(objective.members), 'model')} each",
    initial=len(jobs) - len(left),
    hidden=not left,
  ) as bar:
    _run_all(config, directory, left, bar.update)
  content = compare.summarize(config, objective, directory, doses_of(config.study.settings))
  results.write(workdir, report.NAME, config=settings, dataset=dataset, **content)
  print(report.text(results.read(workdir, report.NAME)))


def doses_of(settings):
  """From those settings that have a dose, `true_from_T`, to T."""
  from tfds_builders.lus_phantom import annotator

  found = {setting: annotator.true_from(setting) for setting in settings}
  return {setting: dose for setting, dose in found.items() if dose is not None}


def seed_of(config, setting, seed):
  """The phantom's seed of a unit: no two of them simulate the same patients."""
  # The same patients however the experts are standardised.
  names = (*config.study.settings, compare.NULL)
  return config.seed + 1000 * (1 + names.index(setting)) + seed


def _null_config(config):
  """The config of the null cohorts: as small as still learns something."""
  null = config.copy_and_resolve_references()
  with null.unlocked():
    null.sweep.thresholds, null.sweep.members = (0.5,), ()
    null.sweep.strategy = "vmap"
    null.loss.weights = "ones"
    null.data.image_size = min(NULL_SIZE, config.data.image_size)
    null.augment.crop = min(null.data.image_size, config.augment.get("crop", 0))
    null.data.phantom.n_patients = NULL_PATIENTS
    null.model.width = NULL_WIDTH
    null.train.epochs, null.train.steps, null.train.epoch_steps = NULL_EPOCHS, 0, 0
    null.study.train_frames = min(NULL_FRAMES, config.study.train_frames)
    null.data.phantom.raters = False
    null.study.validation_patients = 1
    null.train.batch_size = min(4, config.train.batch_size)
  return null
