"""Checkpoints by orbax; the only file that imports it."""

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
from lus_jax.training.claim import DIRECTORY

_RESUMABLE, _BEST, _META = "state", "best", "meta"
# The newest checkpoint holds the best weights too; the one before it is the fallback.
KEPT = 2
# Of every file of a checkpoint, its size and checksum; in its directory before it gets its name.
MEASURED = "measured.json"
# In the meta of a checkpoint that has them: those of older versions have none.
_MARK = "measured"
# Where they are written.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Before the number of one that is out of the way.
_ASIDE = "damaged_"


class Checkpoints:
  """The checkpoints of one run: the newest is enough to go on, and holds every best model.

  Each is checked against its checksums before it is read. Where the newest is damaged, the one
  before takes its place, with a warning. Of several processes each writes, and reads, of jax arrays
  what lies on its devices.

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
    handlers = {
      _RESUMABLE: ocp.StandardCheckpointHandler(),
      _BEST: ocp.StandardCheckpointHandler(),
      _META: ocp.JsonCheckpointHandler(),
    }
    with self._writing():
      self._manager = ocp.CheckpointManager(
        self._directory, options=options, item_handlers=handlers
      )

  def save(self, epoch, state, best, meta):
    """Writes a checkpoint in the background.

    Its number is that of the epoch, or the next one where that is taken.

    Args:
      epoch: the number of the epoch that is finished or under way, from 1.
      state: a pytree: all that training needs to go on, of arrays whose first axis is members.
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

  def restore(self, state, best, *, members=None):
    """Reads the newest checkpoint that is whole; damaged ones after it are renamed.

    Args:
      state: a pytree of the structure, shapes and types that were saved; NumPy arrays are restored
        as such, jax arrays on the devices where these are.
      best: likewise.
      members: how many of the first axis count: by the devices that a checkpoint was written from,
        and is read to, there may be more places, in it or here; none is needed by default.

    Returns:
      State, best and meta.

    Raises:
      UserError: none is whole.
    """
    wanted = {_RESUMABLE: _abstract(state), _BEST: _abstract(best)}
    number, restored, meta = self._restore(wanted, members)
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
    number, restored, meta = self._restore({_BEST: _abstract(best)})
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

  def _restore(self, wanted, members=None):
    """Number, items and meta of the newest checkpoint whose files are as they were written."""
    problems = {}
    while True:
      number, measured = self._choose((*wanted, _META), problems)
      problem, restored, meta = None, None, None
      try:
        restored = self._read(number, wanted, members)
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

  def _read(self, number, wanted, members):
    stored = self._manager.item_metadata(number)
    args = {
      item: ocp.args.StandardRestore(tree, strict=not _cut(stored[item].tree, tree, members))
      for item, tree in wanted.items()
    }
    restored = self._manager.restore(
      number, args=ocp.args.Composite(**args, **{_META: ocp.args.JsonRestore()})
    )
    cut = {
      item: jax.tree.map(
        lambda x, y: x[: len(y)] if isinstance(y, np.ndarray) and y.ndim else x,
        restored[item],
        tree,
      )
      for item, tree in wanted.items()
    }
    return {**cut, _META: restored[_META]}

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
    file = folder / MEASURED
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
    write_text(folder / MEASURED, json.dumps(content, indent=1) + "\n")

  def _writing(self):
    return files.writing(f"{self._directory}: a checkpoint", "the one before")


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
  folders += workdir.glob(f"units/*/**/{DIRECTORY}")
  found = [path for folder in folders for path in folder.glob("*") if path.name.isdigit()]
  if found:
    newest = max(found, key=lambda path: path.stat().st_mtime)
    return f"The same command goes on from the last checkpoint, {newest}."
  if units := len(list(workdir.glob("units/*.json"))):
    return f"The same command goes on after the {units} finished units in {workdir}."
  return "There is no checkpoint yet: the same command begins anew."


def kept_any(workdir):
  """Whether a run has a checkpoint, whole or not."""
  folder = pathlib.Path(workdir) / DIRECTORY
  return any(path.name.isdigit() for path in folder.glob("*"))


def _abstract(tree):
  # A NumPy array stays what it is: as a mere shape it would be restored to the devices that it was
  # saved from, which may be no more.
  return jax.tree.map(
    lambda x: x if isinstance(x, np.ndarray) else ocp.utils.to_shape_dtype_struct(x), tree
  )


def _cut(stored, wanted, members):
  """Whether arrays have other numbers of places, and both have those of all members.

  Raises:
    ValueError: arrays of the same names differ otherwise. Orbax would say so too, but in the midst
      of reading.
  """
  stored, wanted = (ocp.tree.to_flat_dict(tree) for tree in (stored, wanted))
  if stored.keys() != wanted.keys():
    return False  # which orbax says before it reads
  cut = False
  for name, x in wanted.items():
    theirs = tuple(stored[name].shape)
    if theirs == x.shape:
      continue
    least = members or len(x) if x.ndim else 0
    if not x.ndim or theirs[1:] != x.shape[1:] or not theirs[0] >= least <= len(x):
      place = ".".join(map(str, name))
      raise ValueError(f"{place}: {x.shape} is not compatible with the stored shape, {theirs}")
    cut = True
  return cut


def progress(workdir):
  """Epochs and steps of the next one that a run's newest checkpoint is after; 0 without any."""
  folder = pathlib.Path(workdir) / DIRECTORY
  newest = max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
  try:
    meta = json.loads((folder / str(newest) / _META / "metadata").read_text())
    return meta["epoch"], meta.get("steps", 0)
  except (OSError, ValueError, KeyError, TypeError):  # none, or damaged, which `restore` says
    return 0, 0
