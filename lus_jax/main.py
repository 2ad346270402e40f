"""The command line: `python -m lus_jax.main --config configs/seg.py --workdir runs/seg`."""

import contextlib
import io
import os
import re
import signal
import sys

# The writers' TensorFlow greets on stderr; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from lus_jax import files, parallel, report, signals
from lus_jax.errors import UserError

DOWNSTREAM = ("sf_change", "sf_ratio", "readmission")

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A file of configs/, as configs/seg.py, or a size of it, as configs/seg.py:tiny or :demo. Any "
  "field of it can be set, as --config.train.epochs=10.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's results and checkpoints go.")
CACHE = flags.DEFINE_string(
  "compilation_cache", "~/.cache/lus_jax", "Where compiled programs are kept; empty: nowhere."
)


def run(config, workdir):
  """Runs the task that a config names in a directory of its own."""
  if config.task == "segmentation":
    from lus_jax.training import segmentation as task
  elif config.task == "study":
    from lus_jax.training import study as task
  elif config.task == "which_target":
    from lus_jax.training import which_target as task
  elif config.task in DOWNSTREAM:
    from lus_jax.training import downstream as task
  else:
    known = ", ".join(("segmentation", *DOWNSTREAM, "study", "which_target"))
    raise UserError(f"config.task: '{config.task}' is not known; choose one of {known}.")
  task.train_and_evaluate(config, workdir)
  if parallel.is_main():
    print(f"Report: {report.build(workdir)}")
  parallel.sync("end")


def main(argv):
  """Parses the command line and runs; returns the exit code (2 after a user's mistake)."""
  try:
    config = _parse(argv)
    if "distributed" in config:
      parallel.initialize(config.distributed)
    workdir = files.expanded(WORKDIR.value, "--workdir")
    # Of several processes one prints; errors of all show.
    with (
      signals.handled(lambda: _kept(workdir)),
      contextlib.redirect_stdout(sys.stdout if parallel.is_main() else io.StringIO()),
    ):
      run(config, os.fspath(workdir))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except signals.Stopped as stopped:
    how = signal.Signals(stopped.number).name
    print(f"\nStopped by {how}: {stopped.kept or _kept(workdir)}", file=sys.stderr)
    return signals.exit_code(stopped.number)
  except KeyboardInterrupt:
    print("\nInterrupted before the run began.", file=sys.stderr)
    return 130
  except Exception as error:
    # Whoever writes without a word of its own: maps, curves, temporary files.
    reason = files.refusal(error)
    if reason is None:
      raise
    what = " ".join(str(error).split())
    print(
      f"error: the disk refuses ({reason}): {what:.200}; make room or mend the permissions, and "
      "repeat the command.",
      file=sys.stderr,
    )
    return 2
  return 0


def _kept(workdir):
  from lus_jax.training import checkpoints

  return checkpoints.kept(workdir)


def _parse(argv):
  # absl and ml_collections report each kind of mistake by another exception, some with a traceback
  # in its text, of which the last line says what happened.
  app.define_help_flags()
  try:
    rest = flags.FLAGS(argv)
    config = CONFIG.value
    if config is not None:
      config.lock()  # raises where the file could not be loaded
  except (AttributeError, KeyError) as error:
    name = re.search(r"\w+", str(error))[0]
    option = next((a.split("=")[0] for a in argv if f".{name}" in a), None)
    if option is None:
      raise UserError(
        f"{error} (in the file of --config, which has to be one like configs/seg.py)"
      ) from error
    raise UserError(
      f"{option}: there is no such field; the config file lists the fields it knows."
    ) from error
  except OSError as error:
    raise UserError(
      f"{str(error).splitlines()[-1].strip()}: the file of --config could not be read; its path is "
      "relative to where you are."
    ) from error
  except (flags.Error, TypeError, ValueError) as error:
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    first = "" if "Traceback" in lines[0] or len(lines) == 1 else f"{lines[0].split(': ')[0]}: "
    raise UserError(f"{first}{lines[-1]} (in the command line or config file)") from error
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not an option; options start with --.")
  if config is None or not WORKDIR.value:
    raise UserError(
      "both --config and --workdir are needed, as in: "
      "python -m lus_jax.main --config configs/seg.py --workdir runs/seg"
    )
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  cache = os.path.expanduser(CACHE.value)
  # Without a home directory there is none.
  if cache and not cache.startswith("~"):
    jax.config.update("jax_compilation_cache_dir", cache)
  return config


if __name__ == "__main__":
  sys.exit(main(sys.argv))
