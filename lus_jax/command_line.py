"""What every command does: it notes its words, and ends with 0, 2 (a user's mistake) or 130."""

import contextlib
import os
import sys

import jax
from absl import flags

from lus_jax import files
from lus_jax.errors import UserError, say_warnings_plainly

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


def texts(argv, options, *, about, needed):
  """Reads a command line of options that are texts, with a place for compiled programs.

  Flags of its own, so that modules that share names of options can be imported together.

  Args:
    argv: the program's words.
    options: by name a pair of default and description.
    about: what `--help` says before the options.
    needed: pairs of the options that cannot be left out and an example of the command.

  Returns:
    The values by name; None where help was asked for, and given.

  Raises:
    UserError: an option is not known, or a needed one is not there.
  """
  values = flags.FlagValues()
  where = ("~/.cache/lus_jax", "Where compiled programs are kept; empty: nowhere.")
  for name, (default, description) in (options | {"compilation_cache": where}).items():
    flags.DEFINE_string(name, default, description, flag_values=values)
  flags.DEFINE_bool("help", False, "Show this.", flag_values=values)
  try:
    rest = values(argv)
  except flags.Error as error:
    raise UserError(f"{error} (in the command line)") from error
  if values.help:
    # Without the name of the module that they were defined in, which is this one.
    _, listed = values.get_help(include_special_flags=False).lstrip().split("\n", 1)
    print(f"{about}\n{listed}")
    return None
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not an option; options start with --.")
  names, example = needed
  if not all(values[name].value for name in names):
    *first, last = (f"--{name}" for name in names)
    raise UserError(f"{', '.join(first)} and {last} are all needed, as in: {example}")
  say_warnings_plainly()
  keep_compiled(values.compilation_cache)
  return {name: values[name].value for name in options}


def names(text):
  """The names of an option's value, as `soft,ordinal`; None where it was not given."""
  return [name.strip() for name in text.split(",")] if text else None


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
