"""Whose a directory is: the settings and the data that its run was begun with."""

import json
import os
import pathlib

from lus_jax import command_line, files
from lus_jax.errors import UserError
from lus_jax.files import write_text

# Says whose directory it is.
OWNER = "run.json"
# Fields of `data.phantom` that say nothing where they are empty or 0; and of other sections.
PHANTOM_OPTIONS = ("variety", "stable_patients", "readmission_accuracy")
OPTIONS = {
  "model": ("shrink", "refinements"),
  "train": ("epoch_steps", "rare", "smoothing", "minutes"),
  "loss": ("region", "from_prevalence"),
  "optimizer": ("weight_decay", "warmup", "averaging"),
  "augment": (
    *("scale", "shift", "shear_degrees", "elastic", "crop"),
    *("gain", "attenuation", "speckle", "shadow", "haze"),
  ),
}
# Where its checkpoints are.
DIRECTORY = "checkpoints"


def settings(config):
  """A run's config as nested dicts, for its claim and results.

  How many processes there are is left out: a run goes on with any number. So are options that are
  off: runs from before there were any go on.
  """
  fields = json.loads(config.to_json())
  fields.get("study", {}).pop("workers", None)
  # The parts of a study have data of their own.
  for part in (fields, *fields.values()):
    if not isinstance(part, dict):
      continue
    sections = {name: x for name, x in part.items() if isinstance(x, dict)}
    data = sections.get("data", {})
    data.pop("num_processes", None)
    _drop_off(data.get("phantom", {}), PHANTOM_OPTIONS)
    for name, options in OPTIONS.items():
      _drop_off(sections.get(name, {}), options)
    if "encoder" not in sections.get("model", {"encoder": ""}):
      _drop_video(part, sections)
  return {name: value for name, value in fields.items() if name != "distributed"}


def _drop_video(part, sections):
  # Those of segmentation networks have other fields, and always had them.
  _drop_off(sections["model"], ("dropout",))
  if not sections.get("augment", {}).get("probability"):
    part.pop("augment", None)
  if part.get("calibration") == "none":
    del part["calibration"]


def _drop_off(section, options):
  for name in options:
    if not section.get(name):
      section.pop(name, None)


def read_claim(workdir):
  """What `claim` wrote: a dict of `config` and `dataset`; None where there is nothing.

  Raises:
    UserError: the file is damaged.
  """
  file = pathlib.Path(workdir) / OWNER
  if not file.exists():
    return None
  try:
    theirs = json.loads(file.read_text())
    found = {name: theirs[name] for name in ("config", "dataset")}
    if files.broken_seal(theirs):
      raise ValueError("another checksum")
    return found
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} is damaged ({error}); give another --workdir, or remove {workdir}."
    ) from error


def check_claim(workdir, config, dataset=None, *, more_epochs=False):
  """Checks that a directory is free, or belongs to this very run; writes nothing.

  Where files lie is no part of what a run is: what is in them stands in `dataset`.

  Args:
    workdir: the run's directory.
    config: a JSON-serialisable dict.
    dataset: likewise: what the data set says of itself; None where it is not known yet.
    more_epochs: whether a run with fewer epochs goes on to those of the config.

  Raises:
    UserError: the directory belongs to a run with another config or other data, holds other things,
      or cannot be used.
  """
  workdir = pathlib.Path(workdir)
  try:
    theirs = read_claim(workdir)
    taken = workdir.exists() and not workdir.is_dir()
    data = [name for name in ("dataset.json", "manifest.csv") if (workdir / name).exists()]
    orphaned = (workdir / DIRECTORY).exists() or (workdir / "results").exists()
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be used ({error.strerror}).") from error
  if taken:
    raise UserError(f"--workdir={workdir} is a file; name a directory.")
  if theirs is None:
    if data:
      raise UserError(f"--workdir={workdir} is a data folder; give the run another directory.")
    if orphaned:
      raise UserError(f"{workdir} holds results but no {OWNER}; give another --workdir.")
    return
  ours = json.loads(json.dumps({"config": config, "dataset": dataset}))
  differences = _differences(_without_paths(theirs["config"]), _without_paths(ours["config"]))
  epochs = [name for name in differences if _is_epochs(name)] if more_epochs else []
  fewer = [name for name in epochs if not differences[name][0] < differences[name][1]]
  if names := [name for name in differences if name not in epochs or name in fewer]:
    raise UserError(
      f"{workdir} holds a run with another config (different: {', '.join(names)}); give another "
      "--workdir, repeat the same config to go on"
      + (" (with more epochs than its own, if you like)" if more_epochs else "")
      + ", or remove the directory to start anew."
    )
  if dataset is not None and theirs["dataset"] != ours["dataset"]:
    # "1.0.0 (frames_96x96_1f3b9c2a)": the reader's version, and what it read.
    before, now = (one["dataset"].get("version", "").split(" ")[0] for one in (theirs, ours))
    if before != now:
      raise UserError(
        f"{workdir} holds a run on data that version {before} of their reader prepared, and this "
        f"is version {now}: whether they are the same cannot be told; give another --workdir, or "
        "remove the directory to start anew."
      )
    changed = dict.fromkeys(
      name.split(".")[0] for name in _differences(theirs["dataset"], ours["dataset"])
    )
    what = {
      ("initial",): "what its weights start from has",
      ("segmentation",): "its segmentation models have",
    }.get(tuple(changed), "the data set has")
    raise UserError(
      f"{workdir} holds a run on other data: {what} changed since it began; give another "
      "--workdir, or remove the directory to start anew."
    )


def claim(workdir, config, dataset, *, more_epochs=False):
  """Makes a directory this run's own, after `check_claim`, and notes the command it was given."""
  check_claim(workdir, config, dataset, more_epochs=more_epochs)
  ours = json.loads(json.dumps({"config": _anchored(config), "dataset": dataset}))
  if read_claim(workdir) == ours and not (command_line.given() and _lacks_command(workdir)):
    return
  try:
    content = files.seal(ours | {"command": command_line.given()})
    content = json.dumps(content, indent=2, sort_keys=True)
    write_text(pathlib.Path(workdir) / OWNER, content + "\n")
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be made ({error.strerror}).") from error


def _lacks_command(workdir):
  # Of a version that did not note it, or begun from Python.
  return not json.loads((pathlib.Path(workdir) / OWNER).read_text()).get("command")


def fewer_epochs(workdir, config):
  """How many epochs the run in a directory has, where that is less than this config's; else None.

  Args:
    workdir: the run's directory.
    config: the `train` part of a config.
  """
  theirs = read_claim(workdir)
  epochs = None if theirs is None else theirs["config"].get("train", {}).get("epochs")
  return epochs if epochs is not None and epochs < config.epochs else None


# Fields that say where something lies, by the section that they stand in.
_PATHS = {"data": ("prepared_dir", "dir"), "channels": ("workdir",)}


def _without_paths(config):
  return {
    section: {k: v for k, v in fields.items() if k not in _PATHS.get(section, ())}
    if isinstance(fields, dict)
    else fields
    for section, fields in config.items()
  }


def _anchored(config):
  """The same config with absolute paths: others read it from other directories."""
  config = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
  for section, names in _PATHS.items():
    for name in names:
      if config.get(section, {}).get(name):
        config[section][name] = os.path.abspath(os.path.expanduser(config[section][name]))
  return config


def find_path(workdir, path):
  """An absolute path for one of a run's claim; claims of older versions hold relative ones.

  Those are taken as relative to where we are, or to a directory above the run's; a path that is not
  found there is returned as it is.
  """
  if not path or os.path.isabs(os.path.expanduser(path)):
    return path
  for folder in (pathlib.Path.cwd(), *pathlib.Path(workdir).absolute().parents):
    if (folder / path).is_dir():
      return os.fspath(folder / path)
  return path


def _is_epochs(name):
  return name == "train.epochs" or name.endswith(".train.epochs")


def _differences(a, b, prefix=""):
  """Values of both by the names of what differs; None where one lacks it."""
  found = {}
  for name in sorted(a.keys() | b.keys()):
    x, y = a.get(name), b.get(name)
    if isinstance(x, dict) and isinstance(y, dict):
      found |= _differences(x, y, f"{prefix}{name}.")
    elif x != y:
      found[f"{prefix}{name}"] = x, y
  return found
