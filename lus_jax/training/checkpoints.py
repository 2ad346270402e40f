"""Checkpoints by orbax; the only file that imports it."""

import json
import pathlib

import jax
import orbax.checkpoint as ocp

from lus_jax.errors import UserError
from lus_jax.files import write_text

DIRECTORY = "checkpoints"
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
      state: a pytree of the structure, shapes and types that were saved.
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

  def close(self):
    """Waits for what is being written."""
    self._manager.close()


def _abstract(tree):
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def claim(workdir, config):
  """Makes a directory this run's own, or checks that it is.

  Args:
    workdir: the run's directory; created if it does not exist.
    config: a JSON-serialisable dict.

  Raises:
    UserError: the directory belongs to a run with another config, or holds other things.
  """
  workdir = pathlib.Path(workdir)
  file = workdir / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  if file.exists():
    theirs = json.loads(file.read_text())
    if theirs != json.loads(text):
      names = ", ".join(_differences(theirs, json.loads(text)))
      raise UserError(
        f"{workdir} holds a run with another config (different: {names}); give another --workdir, "
        "repeat the same config to go on, or remove the directory to start anew."
      )
    return
  if workdir.is_file():
    raise UserError(f"--workdir={workdir} is a file; name a directory.")
  if (workdir / DIRECTORY).exists() or (workdir / "results").exists():
    raise UserError(f"{workdir} holds results but no config.json; give another --workdir.")
  workdir.mkdir(parents=True, exist_ok=True)
  write_text(file, text)


def _differences(a, b, prefix=""):
  for name in sorted(a.keys() | b.keys()):
    x, y = a.get(name), b.get(name)
    if isinstance(x, dict) and isinstance(y, dict):
      yield from _differences(x, y, f"{prefix}{name}.")
    elif x != y:
      yield f"{prefix}{name}"
