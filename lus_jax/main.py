"""The command line: `python -m lus_jax.main --config configs/seg.py --workdir runs/seg`."""

import ast
import contextlib
import io
import os
import pathlib
import re
import runpy
import signal
import sys

from lus_jax import signals

if __name__ == "__main__":
  # What follows takes seconds to import.
  signals.leave_at_once()

# The writers' TensorFlow greets on stderr; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import config_flags

from lus_jax import command_line, fields, files, parallel, report, timing
from lus_jax.errors import UserError, say_warnings_plainly

CLINICAL = ("sf_change", "sf_ratio", "readmission")
_STUDIES = ("study", "which_target", "clinic", "learning_curve")


class Tuples(flags.ArgumentParser):
  """Reads tuple fields: `.6`, `.6,.5`, `(.6, .5)`, `soft,ordinal`; empty: the empty tuple.

  In place of ml_collections' own, which adds the values of an option that is given twice: here the
  last one wins, as everywhere.
  """

  syntactic_help = "a tuple"

  def parse(self, argument):
    """The tuple of a text; `ValueError` if it is none."""
    if not isinstance(argument, str):
      return argument
    try:
      value = ast.literal_eval(argument.strip() or "()")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      if argument.lstrip().startswith("("):
        raise ValueError(f"{argument} is no tuple; write \"('a', 'b')\" or a,b") from None
      # Names without quotes, whose brackets may hold commas.
      value = re.findall(r"(?:[^,()]|\([^()]*\))+", argument)
      value = [one.strip() for one in value]
    return tuple(value) if isinstance(value, list | tuple) else (value,)

  def flag_type(self):
    """For --help."""
    return "tuple"


config_flags.register_flag_parser_for_type(tuple, Tuples())

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A config by its name or file, as seg or configs/seg.py, or a size of it, as seg:auto or :tiny. "
  "Any field of it can be set, as --config.train.epochs=10; --config seg --help lists them.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's results and checkpoints go.")
CACHE = flags.DEFINE_string(
  "compilation_cache", "~/.cache/lus_jax", "Where compiled programs are kept; empty: nowhere."
)


def run(config, workdir):
  """Runs the task that a config names in a directory of its own."""
  if config.task == "segmentation":
    from lus_jax.tasks.segmentation import run as task
  elif config.task == "study":
    from lus_jax.tasks import study as task
  elif config.task == "pretrain":
    from lus_jax.tasks.pretrain import run as task
  elif config.task == "learning_curve":
    from lus_jax.tasks.clinical import learning_curve as task
  elif config.task == "which_target":
    from lus_jax.tasks.which_target import run as task
  elif config.task == "clinic":
    from lus_jax.tasks.clinic import run as task
  elif config.task in CLINICAL:
    from lus_jax.tasks.clinical import run as task
  else:
    known = ", ".join(("segmentation", "pretrain", *CLINICAL, *_STUDIES))
    raise UserError(f"config.task: '{config.task}' is not known; choose one of {known}.")
  task.train_and_evaluate(config, workdir)
  if parallel.is_main():
    with timing.reported(workdir):
      page = report.build(workdir)
    print(f"Report: {page}")
  parallel.sync("end")


def main(argv):
  """Parses the command line and runs; returns the exit code (2 after a user's mistake)."""
  return command_line.run(lambda: _main(argv), interrupted="Interrupted before the run began.")


def _main(argv):
  config = parse(argv)
  if config is None:
    return 0
  workdir = files.expanded(WORKDIR.value, "--workdir")
  try:
    with command_line.recorded("lus_jax.main", argv), signals.handled(lambda: _kept(workdir)):
      if "distributed" in config:
        parallel.initialize(config.distributed)
      # Of several processes one prints; errors of all show.
      with contextlib.redirect_stdout(sys.stdout if parallel.is_main() else io.StringIO()):
        run(config, os.fspath(workdir))
  except signals.Stopped as stopped:
    how = signal.Signals(stopped.number).name
    print(f"\nStopped by {how}: {stopped.kept or _kept(workdir)}", file=sys.stderr)
    return signals.exit_code(stopped.number)
  return 0


def _kept(workdir):
  from lus_jax.training import checkpoints

  return checkpoints.kept(workdir)


def parse(argv):
  """The config of a command line; None where only help was asked for."""
  argv = _found(argv)
  # ml_collections looks there for the options of fields.
  sys.argv = argv
  wants_help = [option for option in argv[1:] if option in ("--help", "-help", "-h", "--helpfull")]
  argv = [option for option in argv if option not in wants_help]
  # absl and ml_collections report each kind of mistake by another exception, some with a traceback
  # in its text, of which the last line says what happened.
  try:
    rest = flags.FLAGS(argv)
    config = CONFIG.value
    if config is not None:
      config.lock()  # raises where the file could not be loaded
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(argv, error)) from error
  except OSError as error:
    raise UserError(
      f"{str(error).splitlines()[-1].strip()}: the file of --config could not be read; its path is "
      "relative to where you are."
    ) from error
  except (flags.Error, TypeError, ValueError, SyntaxError, ImportError) as error:
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    first = "" if "Traceback" in lines[0] or len(lines) == 1 else f"{lines[0].split(': ')[0]}: "
    # Of a config that refuses its size: "flag --config=FILE:size: ValueError: what it says".
    what = re.sub(r"^flag --config=\S+: (?:\w+Error: )?", "", f"{first}{lines[-1]}")
    raise UserError(f"{what} (in the command line or config file)") from error
  if wants_help:
    print(_help(config))
    return None
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not an option; options start with --.")
  if config is None or not WORKDIR.value:
    raise UserError(
      "both --config and --workdir are needed, as in: "
      "python -m lus_jax.main --config configs/seg.py --workdir runs/seg"
    )
  say_warnings_plainly()
  command_line.keep_compiled(CACHE.value)
  return config


def _found(argv):
  """The command line with the path of the config in place of its name."""
  argv = list(argv)
  for i, option in enumerate(argv):
    if match := re.fullmatch(r"(--?config=)(.+)", option, re.S):
      argv[i] = match[1] + fields.find(match[2])
    elif option in ("--config", "-config") and i + 1 < len(argv):
      argv[i + 1] = fields.find(argv[i + 1])
  return argv


def _unknown_field(argv, error):
  """What to say of a field that the config does not have, or of a config that is none."""
  # Read anew: the flag has no value yet.
  i = next((i for i, a in enumerate(argv) if re.match("--?config(=|$)", a)), None)
  text = "" if i is None else argv[i].partition("=")[2] or argv[i + 1]
  file, _, size = text.partition(":")
  known = {}
  with contextlib.suppress(AttributeError, KeyError, OSError):  # the mistake may be in the file
    known = fields.flatten(runpy.run_path(file)["get_config"](*([size] if size else [])))
  for option in (a.partition("=")[0] for a in argv if known):
    match = re.fullmatch(r"--?(?:no)?config\.(.+)", option)
    if match and not any(f"{field}.".startswith(f"{match[1]}.") for field in known):
      near = fields.nearest(match[1], known)
      mend = f"did you mean --config.{near}? --help lists all" if near else "--help lists them"
      return f"{option}: there is no such field; {mend}."
  return f"{error} (in the file of --config, which has to be one like configs/seg.py)"


def _help(config):
  """What `--help` says: the options and, where a config is named, all its fields."""
  text = f"""{__doc__}

{flags.FLAGS.main_module_help()}

Configs: {", ".join(fields.names())}; each as it is, or reduced by :demo or :tiny behind its name.
seg and raters have a recipe for tens to hundreds of frames too, :small, and :auto, which takes its
sizes from the data, the device and a time.
"""
  if config is None:
    return f"{text}\nAll fields of one: python -m lus_jax.main --config seg:demo --help"
  path = flags.FLAGS["config"].config_filename
  file, _, _ = path.partition(":")
  about = ast.get_docstring(ast.parse(pathlib.Path(file).read_text())) or ""
  return f"{text}\n{path}\n{about}\n\n{fields.describe(config, file)}"


if __name__ == "__main__":
  sys.exit(main(sys.argv))
