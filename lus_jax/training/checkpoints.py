"""Checkpoints by orbax; the only file that imports it."""

import contextlib
import functools
import json
import logging as standard_logging
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from lus_jax import files, parallel
from lus_jax.errors import UserError
from lus_jax.files import write_text

DIRECTORY = "checkpoints"
# Says whose directory it is.
OWNER = "run.json"
_RESUMABLE, _BEST, _META = "state", "best", "meta"
# The newest checkpoint holds the best weights too; the one before it is the fallback.
KEPT = 2
# Of every file of a checkpoint, its size and checksum; in its directory before it gets its name.
_MEASURED = "measured.json"
# In the meta of a checkpoint that has them: those of older versions have none.
_MARK = "measured"
# Where they are written.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Before the number of one that is out of the way.
_ASIDE = "damaged_"


class Checkpoints:
  """The checkpoints of one run: the newest is enough to go on, and holds every best model.

  Each is checked against its checksums before it is read. Where the newest is damaged, the one
  before takes its place, with a warning.

  Args:
    workdir: the run's directory.
  """

  def __init__(self, workdir):
    self._directory = pathlib.Path(workdir).absolute() / DIRECTORY
    self._number = None  # of the one that is being written
    _hush_orbax()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
      create=True,
      async_options=ocp.options.AsyncOptions(post_finalization_callback=self._measure),
    )
    with self._writing():
      self._manager = ocp.CheckpointManager(
        self._directory, options=options, item_names=(_RESUMABLE, _BEST, _META)
      )

  def save(self, epoch, state, best, meta):
    """Writes a checkpoint in the background.

    Its number is that of the epoch, or the next one where that is taken.

    Args:
      epoch: the number of the epoch that is finished or under way, from 1.
      state: a pytree: all that training needs to go on.
      best: a pytree: the best model of every member.
      meta: a JSON-serialisable dict.

    Raises:
      UserError: this one, or the one before, cannot be written.
    """
    self.wait()
    self._number = max(epoch, (self.latest() or 0) + 1)
    with self._writing():
      self._manager.save(
        self._number,
        args=ocp.args.Composite(
          **{
            _RESUMABLE: ocp.args.StandardSave(state),
            _BEST: ocp.args.StandardSave(best),
            _META: ocp.args.JsonSave(meta | {_MARK: True}),
          }
        ),
      )

  def latest(self):
    """The number of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def restore(self, state, best):
    """Reads the newest checkpoint that is whole; damaged ones after it are renamed.

    Args:
      state: a pytree of the structure, shapes and types that were saved; NumPy arrays are restored
        as such, jax arrays on the devices where these are.
      best: likewise.

    Returns:
      State, best and meta.

    Raises:
      UserError: none is whole.
    """
    wanted = {
      _RESUMABLE: ocp.args.StandardRestore(_abstract(state)),
      _BEST: ocp.args.StandardRestore(_abstract(best)),
    }
    number, restored, meta = self._restore(wanted)
    if parallel.is_main():
      for unfinished in self._directory.glob(f"*{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
      for other in self._numbers():
        if other > number:
          aside = self._directory / f"{_ASIDE}{other}"
          shutil.rmtree(aside, ignore_errors=True)
          (self._directory / str(other)).rename(aside)
    parallel.sync("restored")
    self._manager.reload()
    return restored[_RESUMABLE], restored[_BEST], meta

  def restore_best(self, best, epochs):
    """Reads the best models of a finished run alone, to the host.

    Args:
      best: a pytree of the structure, shapes and types that were saved.
      epochs: which epochs they are of, as its results say; None for the last.

    Raises:
      UserError: no checkpoint that is whole holds them.
    """
    # Without memory: only shape and type count.
    best = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), best)
    number, restored, meta = self._restore({_BEST: ocp.args.StandardRestore(_abstract(best))})
    newest = max(self._numbers())
    if number != newest and any(epoch is None or epoch > meta["epoch"] for epoch in epochs):
      raise UserError(
        f"{self._directory / str(newest)} is damaged, and the checkpoint before it ({number}) does "
        f"not have the best models of all members yet; remove the results in "
        f"{self._directory.parent} and repeat the run's command, which goes on from that one."
      )
    return restored[_BEST]

  def wait(self):
    """Waits for what is being written.

    Raises:
      UserError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self):
    """Waits for what is being written; see `wait`."""
    with self._writing():
      self._manager.close()

  def _numbers(self):
    return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())

  def _restore(self, wanted):
    """Number, items and meta of the newest checkpoint whose files are as they were written."""
    problems = {}
    while True:
      number, measured = self._choose((*wanted, _META), problems)
      args = ocp.args.Composite(**wanted, **{_META: ocp.args.JsonRestore()})
      problem, restored, meta = None, None, None
      try:
        restored = self._manager.restore(number, args=args)
        meta = dict(restored[_META])
      except Exception as error:
        # Of checkpoints of older versions nothing is known, so that any error may come of damage.
        if measured:
          raise
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
      if not measured and parallel.any_of(problem is not None):
        problems[number] = problem or "another process cannot read it"
        continue
      meta.pop(_MARK, None)
      for other, why in problems.items():
        logging.warning(
          "%s is damaged (%s); going on from the one before, %s.",
          self._directory / str(other),
          why,
          number,
        )
      return number, restored, meta

  def _choose(self, items, problems):
    """The newest checkpoint without a problem, and whether it was measured; adds to `problems`.

    The main process looks, for all: each reads on its own only what all of them read.
    """
    number, measured, refused = 0, False, None
    if parallel.is_main():
      try:
        for number in reversed(self._numbers()):
          if number in problems:
            continue
          problem, measured = self._damage(number, items)
          if problem is None:
            break
          problems[number] = problem
        else:
          number = 0
          why = "; ".join(f"{other}: {problem}" for other, problem in problems.items())
          refused = UserError(
            f"{self._directory}: no checkpoint is whole ({why}); bring one back, or give another "
            "--workdir."
          )
      except UserError as error:
        number, refused = 0, error
    number, measured = parallel.from_main([number, measured])
    if not number:
      raise refused or UserError(f"{self._directory} cannot be read; the main process says why.")
    return number, bool(measured)

  def _damage(self, number, items):
    """What is wrong with a checkpoint's files, or None; and whether they were ever measured."""
    folder = self._directory / str(number)
    file = folder / _MEASURED
    try:
      if not file.exists():
        meta = json.loads((folder / _META / "metadata").read_text())
        return ("it has no checksums" if meta.get(_MARK) else None), False
      measured = json.loads(file.read_text())["files"]
      ours = {k: (n, sha) for k, (n, sha) in measured.items() if k.split("/")[0] in items}
    except (FileNotFoundError, NotADirectoryError) as error:
      return f"{os.path.relpath(error.filename, folder)}: {error.strerror}", True
    except OSError as error:
      raise files.unreadable(error.filename or file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
      return "its checksums or meta cannot be read", True
    if set(items) - {name.split("/")[0] for name in ours}:
      return "its checksums are not of all its parts", True
    return files.damage(folder, ours), True

  def _measure(self):
    # Called in the background, when all files are there and before the checkpoint gets its name.
    if not parallel.is_main():
      return
    (folder,) = self._directory.glob(f"{self._number}{_UNFINISHED}*")
    content = {"files": files.measure(folder)}
    write_text(folder / _MEASURED, json.dumps(content, indent=1) + "\n")

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except Exception as error:
      reason = files.refusal(error)
      if reason is None:
        raise
      raise UserError(
        f"{self._directory}: a checkpoint cannot be written ({reason}); make room or mend the "
        "permissions, and repeat the command, which goes on from the one before."
      ) from error


def _hush_orbax():
  # It prints what it raises, with tracebacks; we say it in a line.
  logger = logging.get_absl_logger()
  if _quiet not in logger.filters:
    logger.addFilter(_quiet)
    sys.unraisablehook = functools.partial(_but_for_writes, sys.unraisablehook)
    standard_logging.getLogger("asyncio").addFilter(_no_refusal)


def _quiet(record):
  return "orbax" not in record.pathname


def _no_refusal(record):
  # Of several writes that a full disk refuses, one is waited for; asyncio prints the others.
  return not (record.exc_info and files.refusal(record.exc_info[1]))


def _but_for_writes(hook, unraisable):
  # Once one write has failed, tensorstore reports the others to a loop that is no more.
  if str(unraisable.exc_value) != "Event loop is closed":
    hook(unraisable)


def kept(workdir):
  """A sentence on what a run that was stopped has on disk, for whoever stopped it."""
  workdir = pathlib.Path(workdir)
  folders = [*workdir.glob(DIRECTORY), *workdir.glob(f"*/{DIRECTORY}")]
  folders += workdir.glob(f"segmentation/*/{DIRECTORY}")
  found = [path for folder in folders for path in folder.glob("*") if path.name.isdigit()]
  if found:
    newest = max(found, key=lambda path: path.stat().st_mtime)
    return f"The same command goes on from the last checkpoint, {newest}."
  if units := len(list(workdir.glob("units/*.json"))):
    return f"The same command goes on after the {units} finished units in {workdir}."
  return "There is no checkpoint yet: the same command begins anew."


def _abstract(tree):
  # A NumPy array stays what it is: as a mere shape it would be restored to the devices that it was
  # saved from, which may be no more.
  return jax.tree.map(
    lambda x: x if isinstance(x, np.ndarray) else ocp.utils.to_shape_dtype_struct(x), tree
  )


def settings(config):
  """A run's config as nested dicts, for its claim and results.

  How many processes there are is left out: a run goes on with any number.
  """
  fields = json.loads(config.to_json())
  fields.get("study", {}).pop("workers", None)
  return {name: value for name, value in fields.items() if name != "distributed"}


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
    changed = list(_differences(theirs["dataset"], ours["dataset"]))
    what = {
      ("initial",): "what its weights start from has",
      ("segmentation",): "its segmentation models have",
    }.get(tuple(changed), "the data set has")
    raise UserError(
      f"{workdir} holds a run on other data: {what} changed since it began; give another "
      "--workdir, or remove the directory to start anew."
    )


def claim(workdir, config, dataset, *, more_epochs=False):
  """Makes a directory this run's own, after `check_claim`."""
  check_claim(workdir, config, dataset, more_epochs=more_epochs)
  ours = json.loads(json.dumps({"config": _anchored(config), "dataset": dataset}))
  if read_claim(workdir) == ours:
    return
  try:
    content = json.dumps(files.seal(ours), indent=2, sort_keys=True)
    write_text(pathlib.Path(workdir) / OWNER, content + "\n")
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be made ({error.strerror}).") from error


def fewer_epochs(workdir, config):
  """How many epochs the run in a directory has, where that is less than this config's; else None.

  Args:
    workdir: the run's directory.
    config: the `train` part of a config.
  """
  theirs = read_claim(workdir)
  epochs = None if theirs is None else theirs["config"].get("train", {}).get("epochs")
  return epochs if epochs is not None and epochs < config.epochs else None


def progress(workdir):
  """Epochs and steps of the next one that a run's newest checkpoint is after; 0 without any."""
  folder = pathlib.Path(workdir) / DIRECTORY
  newest = max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
  try:
    meta = json.loads((folder / str(newest) / _META / "metadata").read_text())
    return meta["epoch"], meta.get("steps", 0)
  except (OSError, ValueError, KeyError, TypeError):  # none, or damaged, which `restore` says
    return 0, 0


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
