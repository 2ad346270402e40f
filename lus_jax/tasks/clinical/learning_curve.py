"""How many patients a clinical task needs: cohorts of the phantom, each as large as asked for."""

import os
import pathlib

from lus_jax import lock, results
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.report import learning_curve as report
from lus_jax.report import paper
from lus_jax.tasks.clinical import questions, run
from lus_jax.training import claim as claim_lib

NAME = report.NAME
# What every cohort's run takes from the curve's config.
SHARED = ("channels", "clip", "folds", "distributed")


def check(config, workdir=None):
  """Refuses values of a config that no run could use (`UserError`); nothing is written before."""
  if config.of not in questions.TASKS:
    raise UserError(
      f"config.of: '{config.of}' is not known; choose one of {', '.join(questions.TASKS)}."
    )
  patients = tuple(config.patients)
  if not patients or any(not isinstance(n, int) or n < 6 for n in patients):
    raise UserError(f"config.patients: {patients} must be whole numbers of at least 6.")
  if list(patients) != sorted(set(patients)):
    raise UserError(f"config.patients: {patients} must rise.")
  if not config.channels.workdir:
    raise UserError(
      "config.channels.workdir is empty: name a finished segmentation run of the phantom, as "
      "--config.channels.workdir=runs/demo."
    )
  del workdir


def part(config, trained, n):
  """The config of the run on a cohort of n patients.

  Args:
    config: of the curve.
    trained: the segmentation models, `lus_jax.inference.trained.Trained`.
    n: patients.

  Raises:
    UserError: the segmentation run is not of the phantom, or has seen these patients.
  """
  from ml_collections import ConfigDict

  if trained.config.data.name != "lus_phantom":
    raise UserError(
      "config.channels.workdir: a learning curve is of simulated patients, and that run is of "
      f"{trained.dataset['name']}; name one of the phantom."
    )
  phantom = trained.config.data.phantom.to_dict()
  if phantom["seed"] == config.cohort_seed:
    raise UserError(
      f"config.cohort_seed: {config.cohort_seed} is the seed of the segmentation's own patients; "
      "use another."
    )
  found = config[config.of].to_dict() | {"seed": config.seed}
  found |= {name: config[name].to_dict() for name in SHARED}
  found["data"] = config.data.to_dict() | {
    "name": "lus_phantom",
    "dir": "",
    "split_seed": 0,
    "phantom": phantom | {"n_patients": n, "seed": config.cohort_seed},
  }
  return ConfigDict(found)


def train_and_evaluate(config, workdir):
  """Runs the task on every cohort and writes `results/learning_curve.json`.

  Args:
    config: of `configs/learning_curve.py`.
    workdir: each cohort has a directory `patients_<n>` in it; what is finished is not repeated.

  Raises:
    UserError: the config or the segmentation run is not in order.
  """
  check(config)
  segmentation = os.path.expanduser(config.channels.workdir)
  trained = trained_lib.load(segmentation)
  settings = claim_lib.settings(config)
  parts = {n: part(config, trained, n) for n in config.patients}
  for one in parts.values():
    run.check(one)
  claim_lib.check_claim(workdir, settings)
  with lock.hold(workdir):
    claim_lib.claim(workdir, settings, {"segmentation": trained.fingerprints})
    rows = []
    for n, one in parts.items():
      print(f"== {n} patients", flush=True)
      directory = pathlib.Path(workdir) / f"patients_{n}"
      run.train_and_evaluate(one, directory)
      content = results.read(directory, config[config.of].name)
      rows += rows_of(n, content)
    content = results.read(directory, config[config.of].name)
    results.write(
      workdir,
      NAME,
      config=settings,
      dataset=content["dataset"],
      task=content["task"],
      metric=content["primary"],
      rows=rows,
      notes=content["notes"],
    )
  print(report.text(results.read(workdir, NAME)))


def rows_of(n, content):
  """Rows of the curve from the results of one cohort.

  Args:
    n: its patients.
    content: of the task's results file.

  Returns:
    A list of dicts, one a source of channels: `patients`, `tested`, `trained` (of the smallest
    fold), `threshold`, the `estimate` of the primary metric with its `interval`, that of what looks
    at no video (`blind`), and the `difference` of the two, its `interval` and whether that `beats`
    it: lies on the better side of 0.
  """
  primary = content["primary"]
  sign = -1 if primary.startswith("rmse") else 1
  name = paper.TASKS[content["task"]].baselines[primary]
  found = []
  for row in content["summary"]:
    one = row["metrics"][primary]
    against = next(x for x in row["differences"] if x["against"] == name)
    interval = against["interval"]
    found.append(
      {
        "patients": n,
        "tested": row["n_patients"],
        "trained": min(len(fold["train"]) for fold in content["folds"]),
        "threshold": row["threshold"],
        "estimate": one["estimate"],
        "interval": one["interval"],
        "blind": row["metrics"][name]["estimate"],
        "difference": against["difference"],
        "difference_interval": interval,
        "beats": interval is not None and min(sign * x for x in interval) > 0,
      }
    )
  return found
