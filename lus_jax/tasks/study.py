"""The whole study in one directory: the segmentation sweep, then the clinical tasks."""

import contextlib
import pathlib

from ml_collections import ConfigDict

from lus_jax import lock
from lus_jax.errors import UserError, in_part
from lus_jax.tasks import forecast
from lus_jax.tasks.clinical import questions
from lus_jax.tasks.clinical import run as clinical
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.training import claim as claim_lib
from lus_jax.training import hardware

# Says which study a directory belongs to.
DIRECTORY = "study"

SHARED = ("channels", "clip", "folds")


def parts(config):
  """The configs of the segmentation and of each task, with what they share filled in.

  Args:
    config: a study's config (`configs/paper.py`); without `segmentation` its `channels.workdir`
      names a segmentation run.

  Returns:
    A dict of configs by name, in the order they run.

  Raises:
    UserError: a task is not known.
  """
  found = {}
  own = "segmentation" in config
  known = [key for key in config if getattr(config[key], "task", None) in questions.TASKS]
  for name in (*(["segmentation"] if own else []), *config.tasks):
    if name not in known and name != "segmentation":
      raise UserError(f"config.tasks: '{name}' is not known; choose of {', '.join(known)}.")
    part = config[name].to_dict() | {"seed": config.seed}
    part |= {shared: config[shared].to_dict() for shared in ("data", "distributed")}
    if name != "segmentation":
      part |= {shared: config[shared].to_dict() for shared in SHARED}
      if own:
        # The videos of the data set that was just segmented, and the models of this directory.
        shared = {name: config.data[name] for name in ("cache", "num_processes")}
        part["data"] = {"name": "", "prepared_dir": ""} | shared
        part["channels"] |= {"workdir": ""}
    found[name] = ConfigDict(part)
  return found


def train_and_evaluate(config, workdir):
  """Runs every part that is not finished.

  Args:
    config: a study's config.
    workdir: the run's directory.

  Raises:
    UserError: a part of the config or the data are not in order.
  """
  directory, claim = pathlib.Path(workdir) / DIRECTORY, None
  with contextlib.suppress(OSError):  # `check_claim` says what is wrong with it
    claim = claim_lib.read_claim(directory)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    hardware.drop_later(config, claim)
  configs = parts(config)
  for name, part in configs.items():
    with in_part(name, config[name]):
      (segmentation if name == "segmentation" else clinical).check(part, workdir)
  settings = claim_lib.settings(config)
  if claim and "segmentation" in settings:
    begun = claim["config"].get("segmentation", {})
    settings["segmentation"] = hardware.settings_as_begun(settings["segmentation"], begun)
  claim_lib.check_claim(directory, settings, more_epochs=True)
  with lock.hold(directory):
    if claim is None and (text := forecast.of_study(configs, hardware.find_device())):
      print(text, flush=True)
    _run(config, configs, directory, settings, workdir)


def _run(config, configs, directory, settings, workdir):
  for i, (name, part) in enumerate(configs.items()):
    print(f"== {i + 1} of {len(configs)}: {name}", flush=True)
    task = segmentation if name == "segmentation" else clinical
    with in_part(name, config[name]):
      task.train_and_evaluate(part, workdir)
    # Not before: where the first part refuses its data, nothing is left behind.
    claim_lib.claim(directory, settings, {}, more_epochs=True)
