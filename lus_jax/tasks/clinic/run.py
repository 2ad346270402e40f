"""Does one threshold help more than another in a clinical task? Whole studies, repeated over seeds.

A unit is a study of its own (`lus_jax.tasks.study`) in its own directory: new patients, new folds,
new initial weights. Units share nothing, so each core works on its own. Of a finished one only its
results and its file are kept; an interrupted one goes on from its last checkpoint.
"""

import contextlib
import json
import pathlib
import shutil

from lus_jax import fields, lock, progress, results
from lus_jax.errors import UserError
from lus_jax.evaluation import nested
from lus_jax.files import broken_seal, seal, write_text
from lus_jax.report import clinic as report
from lus_jax.tasks import forecast, study, workers
from lus_jax.tasks.clinic import analysis
from lus_jax.tasks.clinical import questions
from lus_jax.tasks.clinical import run as clinical
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.training import claim, hardware
from lus_jax.words import plural

UNITS = "units"
LOG = "log.txt"


def check(config):
  """Refuses a config that no study could use (`UserError`); nothing is written before.

  Returns:
    The parts of one unit's study, as `study.parts`.
  """
  nested.require()
  fields.check_least(config, {"study.seeds": 2, "seed": 0})
  fields.check_known(config, {"study.decides": analysis.DECIDES})
  workers.check(config.study.workers)
  if not config.tasks:
    raise UserError("config.tasks is empty; name at least one clinical task.")
  if config.data.name != "lus_phantom":
    raise UserError(
      "config.data.name: a study of seeds needs new patients for each; only lus_phantom has them."
    )
  if config.folds.cv != "rotate":
    raise UserError(
      "config.folds.cv: every patient has to be tested by one fold; use --config.folds.cv=rotate."
    )
  if missing := [name for name in analysis.CONTROLS if name not in config.channels.ablations]:
    raise UserError(
      f"config.channels.ablations: without '{missing[0]}' nobody could tell whether the study saw "
      "anything; use --config.channels.ablations=\"('none','true')\"."
    )
  parts = study.parts(config_of(config, 0))
  first = questions.TASKS[config[config.tasks[0]].task]
  if first.primary.startswith("rmse"):
    raise UserError(
      f"config.tasks: the first, {config.tasks[0]}, is scored by {first.primary}, of which less is "
      "better, and questions are answered for scores of which more is; name another one first."
    )
  for name, part in parts.items():
    (segmentation if name == "segmentation" else clinical).check(part)
  asked = list(config.study.questions)
  if not asked or not all(_is_pair(one) for one in asked):
    raise UserError(
      f"config.study.questions: {config.study.questions} must be pairs of two thresholds, as "
      "((.6, .5),)."
    )
  trained = tuple(config.channels.thresholds) or tuple(config.segmentation.sweep.thresholds)
  for threshold in (t for t in trained if t not in config.segmentation.sweep.thresholds):
    raise UserError(
      f"config.channels.thresholds: {threshold} is not trained; choose of "
      f"{', '.join(map(str, config.segmentation.sweep.thresholds))}."
    )
  for threshold in (t for pair in asked for t in pair if t not in trained):
    raise UserError(
      f"config.study.questions: {threshold} is not trained; choose of "
      f"{', '.join(map(str, trained))}."
    )
  if len(set(map(frozenset, asked))) < len(asked):
    raise UserError(f"config.study.questions: {config.study.questions} asks one pair twice.")
  fields.check_positive(config, "study.margin")
  return parts


def _is_pair(one):
  return isinstance(one, tuple | list) and len(one) == 2 and one[0] != one[1]


def config_of(config, k, num_processes=0):
  """The config of the k-th unit's study: its own patients, folds and initial weights.

  Args:
    config: of the whole.
    k: which unit.
    num_processes: that prepare its data, where the config names none; 0: as many as are of use.
  """
  own = config.copy_and_resolve_references()
  with own.unlocked():
    del own.study
    own.task = "study"
    own.seed = config.seed + k
    own.data.phantom.seed = own.folds.seed = own.seed
    own.data.num_processes = own.data.num_processes or num_processes
  return own


def unit_file(directory, k):
  """The file of the k-th finished unit."""
  return pathlib.Path(directory) / f"seed_{k}.json"


def read_unit(directory, config, k):
  """What the k-th unit found; None where it is not finished, or its file is damaged.

  Raises:
    UserError: it is that of another seed.
  """
  file, content = unit_file(directory, k), None
  with contextlib.suppress(OSError, ValueError):
    content = json.loads(file.read_text())
  if content is None or broken_seal(content):
    return None
  if content.get("seed") != config.seed + k:
    raise UserError(
      f"{file} is of seed {content.get('seed')}, not {config.seed + k}; bring the right one back, "
      "or remove it and repeat the command, which runs that seed again."
    )
  return content


class Worker:
  """Runs units.

  Args:
    config: a study's config.
    directory: of the units.
    num_processes: of `config_of`.
  """

  def __init__(self, config, directory, num_processes=0):
    self._config, self._directory = config, pathlib.Path(directory)
    self._num_processes = num_processes

  def run(self, k):
    """Runs the k-th study, or goes on with it, and writes its file.

    Raises:
      UserError: what stopped it, and its seed.
    """
    own = config_of(self._config, k, self._num_processes)
    try:
      self._run(k, own)
    except UserError as error:
      raise UserError(f"seed {own.seed}: {error}") from error
    except Exception as error:
      error.add_note(f"seed {own.seed}")
      raise

  def _run(self, k, own):
    workdir = self._directory / f"seed_{k}"
    with own.unlocked():
      own.data.prepared_dir = str(workdir / "data")
    workdir.mkdir(parents=True, exist_ok=True)
    # What several studies say at once nobody could read.
    with (
      open(workdir / LOG, "a", encoding="utf-8") as log,
      contextlib.redirect_stdout(log),
      contextlib.redirect_stderr(log),
    ):
      study.train_and_evaluate(own, workdir)
    found = unit_of(workdir, own)
    write_text(unit_file(self._directory, k), json.dumps(seal(found)) + "\n")
    thin(workdir)


def unit_of(workdir, config):
  """What is kept of one study's results: a dict of JSON values."""
  first, *others = config.tasks
  content = results.read(workdir, config[first].name)
  fold = {name: row["fold"] for row in content["folds"] for name in row["test"]}
  patients = [row | {"fold": fold[row["patient"]]} for row in content["patients"]]
  rows = [row | {"task": first} for row in content["rows"]]
  for name in others:
    rows += [row | {"task": name} for row in results.read(workdir, config[name].name)["rows"]]
  return {"seed": config.seed, "rows": rows, "patients": patients}


def thin(workdir):
  """Removes all of a finished study but its results and what it said: data, channels, weights."""
  for path in pathlib.Path(workdir).iterdir():
    if path.name not in (results.DIRECTORY, LOG):
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def train_and_evaluate(config, workdir):
  """Runs every unit that is not finished, then answers the questions over all of them.

  Args:
    config: a study's config (`configs/clinic.py`).
    workdir: the run's directory; an interrupted study goes on where it was.

  Raises:
    UserError: the config is not in order, the directory is another run's, or statsmodels is
      missing.
  """
  parts = check(config)
  settings = claim.settings(config)
  from tfds_builders.lus_phantom.lus_phantom import LusPhantom

  version = f"{LusPhantom.VERSION} (every seed anew)"
  dataset = {"name": "lus_phantom", "version": version, "splits": {}}
  claim.check_claim(workdir, settings, dataset)
  with lock.hold(workdir):
    _run(config, parts, settings, dataset, workdir)


def _run(config, parts, settings, dataset, workdir):
  claim.claim(workdir, settings, dataset)
  directory = pathlib.Path(workdir) / UNITS
  every = range(config.study.seeds)
  left = [(k,) for k in every if read_unit(directory, config, k) is None]
  for k in every:
    # Of a study that was killed when its file had just been written.
    if (k,) not in left and (own := directory / f"seed_{k}").is_dir():
      thin(own)
  if left:
    if text := forecast.of_study(parts, hardware.find_device(), times=len(left)):
      print(f"One seed of {config.study.seeds}:\n{text}", flush=True)
    print(
      f"{plural(len(left), 'seed')} to run, each a study in {directory}/seed_*; what it says is "
      f"in its {LOG}.",
      flush=True,
    )
  with progress.bar(
    total=config.study.seeds,
    unit="study",
    what="whole studies",
    initial=config.study.seeds - len(left),
    hidden=not left,
  ) as bar:
    # Of units side by side, each process prepares its own data.
    alone = workers.count_of(config.study.workers, left) <= 1
    arguments = (config, directory, 0 if alone else 1)
    workers.run(config.study.workers, Worker, arguments, left, bar.update)
  units = [read_unit(directory, config, k) for k in every]
  task = questions.TASKS[config[config.tasks[0]].task]
  content = analysis.analyse(
    units,
    questions=config.study.questions,
    metric=task.primary,
    margin=config.study.margin,
    cohort=config.data.phantom.n_patients,
    baseline=task.baseline,
    decides=config.study.decides,
  )
  results.write(workdir, report.NAME, config=settings, dataset=dataset, **content)
  print(report.text(results.read(workdir, report.NAME)))
