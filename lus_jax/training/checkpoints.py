"""Checkpoints by orbax; the only file that imports it."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from lus_jax.errors import UserError
from lus_jax.files import write_text

DIRECTORY = "checkpoints"
# Says whose directory it is.
OWNER = "run.json"
_RESUMABLE, _BEST, _META = "state", "best", "meta"
# The newest checkpoint holds the best weights too; the one before it is the fallback.
KEPT = 2


class Checkpoints:
  """The checkpoints of one run: the newest is enough to go on, and holds every best model.

  Args:
    workdir: the run's directory.
  """

  def __init__(self, workdir):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / DIRECTORY,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT), create=True
      ),
      item_names=(_RESUMABLE, _BEST, _META),
    )

  def save(self, epoch, state, best, meta):
    """Writes a checkpoint in the background.

    Args:
      epoch: the number of the last finished epoch, from 1.
      state: a pytree: all that training needs to go on.
      best: a pytree: the best model of every member.
      meta: a JSON-serialisable dict.
    """
    self._manager.save(
      epoch,
      args=ocp.args.Composite(
        **{
          _RESUMABLE: ocp.args.StandardSave(state),
          _BEST: ocp.args.StandardSave(best),
          _META: ocp.args.JsonSave(meta),
        }
      ),
    )

  def latest(self):
    """The epoch of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def restore(self, state, best):
    """Reads the newest checkpoint.

    Args:
      state: a pytree of the structure, shapes and types that were saved; NumPy arrays are restored
        as such, jax arrays on the devices where these are.
      best: likewise.

    Returns:
      State, best and meta.
    """
    restored = self._manager.restore(
      self._manager.latest_step(),
      args=ocp.args.Composite(
        **{
          _RESUMABLE: ocp.args.StandardRestore(_abstract(state)),
          _BEST: ocp.args.StandardRestore(_abstract(best)),
          _META: ocp.args.JsonRestore(),
        }
      ),
    )
    return restored[_RESUMABLE], restored[_BEST], restored[_META]

  def restore_best(self, best):
    """Reads the best models of the newest checkpoint alone, to the host.

    Args:
      best: a pytree of the structure, shapes and types that were saved.
    """
    # Without memory: only shape and type count.
    best = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), best)
    restored = self._manager.restore(
      self._manager.latest_step(),
      args=ocp.args.Composite(**{_BEST: ocp.args.StandardRestore(_abstract(best))}),
    )
    return restored[_BEST]

  def close(self):
    """Waits for what is being written."""
    self._manager.close()


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
    return {name: theirs[name] for name in ("config", "dataset")}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} is damaged; give another --workdir, or remove {workdir}.") from error


def check_claim(workdir, config, dataset=None):
  """Checks that a directory is free, or belongs to this very run; writes nothing.

  Args:
    workdir: the run's directory.
    config: a JSON-serialisable dict.
    dataset: likewise: what the data set says of itself; None where it is not known yet.

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
  if theirs["config"] != ours["config"]:
    names = ", ".join(_differences(theirs["config"], ours["config"]))
    raise UserError(
      f"{workdir} holds a run with another config (different: {names}); give another --workdir, "
      "repeat the same config to go on, or remove the directory to start anew."
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
    what = "what its weights start from" if changed == ["initial"] else "the data set"
    raise UserError(
      f"{workdir} holds a run on other data: {what} has changed since it began; give another "
      "--workdir, or remove the directory to start anew."
    )


def claim(workdir, config, dataset):
  """Makes a directory this run's own, after `check_claim`."""
  check_claim(workdir, config, dataset)
  file = pathlib.Path(workdir) / OWNER
  if not file.exists():
    try:
      write_text(
        file, json.dumps({"config": config, "dataset": dataset}, indent=2, sort_keys=True) + "\n"
      )
    except OSError as error:
      raise UserError(f"--workdir={workdir} cannot be made ({error.strerror}).") from error


def _differences(a, b, prefix=""):
  for name in sorted(a.keys() | b.keys()):
    x, y = a.get(name), b.get(name)
    if isinstance(x, dict) and isinstance(y, dict):
      yield from _differences(x, y, f"{prefix}{name}.")
    elif x != y:
      yield f"{prefix}{name}"
