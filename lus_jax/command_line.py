"""What every command does: it notes its words, and ends with 0, 2 (a user's mistake) or 130."""

import contextlib
import os
import sys

import jax

from lus_jax import files
from lus_jax.errors import UserError

# What `given` returns: this process has one command line.
_given = None


@contextlib.contextmanager
def recorded(module, argv):
  """Notes what a user gave while it is run: `python -m module`, and `argv` after its first word.

  Which of several processes this is says nothing of the run, and is left out.
  """
  global _given
  words, rest = [], iter(argv[1:])
  for word in rest:
    if not word.lstrip("-").startswith("config.distributed."):
      words.append(word)
    elif "=" not in word:
      next(rest, None)
  _given = ["python", "-m", module, *words]
  try:
    yield
  finally:
    _given = None


def given():
  """The words of the command that is being run; None where Python called."""
  return _given


def keep_compiled(directory):
  """Keeps compiled programs in a directory, for the next run; empty: nowhere.

  Small programs too: by themselves they take a moment each, and a run has hundreds.
  """
  directory = os.path.expanduser(directory or "")
  # Without a home directory there is none.
  if directory and not directory.startswith("~"):
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def numbers(option, text, kind):
  """The numbers of an option's value, as `.6,.5`; None where it was not given.

  Args:
    option: its name.
    text: its value.
    kind: `float` or `int`.

  Raises:
    UserError: the value is something else.
  """
  if text is None:
    return None
  try:
    return [kind(part) for part in text.split(",")]
  except ValueError as error:
    example = {float: "numbers, as .6,.5", int: "whole numbers, as 0,10,20"}[kind]
    raise UserError(f"--{option}={text}: write {example}.") from error


def run(command, *, interrupted="Interrupted."):
  """Runs a command and returns its exit code.

  Args:
    command: a function; what it returns is the exit code, None being 0.
    interrupted: what to say after Ctrl-C.
  """
  try:
    return command() or 0
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    # Whoever reads has heard enough, as `head`; what is printed at the end goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except KeyboardInterrupt:
    print(f"\n{interrupted}", file=sys.stderr)
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
