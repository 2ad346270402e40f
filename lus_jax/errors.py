"""The one exception for mistakes a user can mend, and how a command line shows warnings."""

import contextlib
import logging
import re

from absl import logging as absl_logging

# The part of a study that is being run, and which of its fields are that part's own: this process
# runs one at a time.
_part = None


@contextlib.contextmanager
def in_part(name, fields):
  """Has `as_set` name the fields of a part of a study as the study's own config does.

  Args:
    name: of the part.
    fields: its first-level fields that are not shared by all parts.
  """
  global _part
  before, _part = _part, (name, re.compile(rf"\bconfig\.(?=(?:{'|'.join(fields)})\b)"))
  try:
    yield
  finally:
    _part = before


def as_set(text):
  """A text in which each field of a config is named as the user's command line takes it.

  Tasks name fields of their own config (`--config.train.epochs`). In a part of a study that is
  a field of the part (`--config.segmentation.train.epochs`).
  """
  if _part is None:
    return text
  name, own = _part
  return own.sub(f"config.{name}.", text)


class UserError(ValueError):
  """A mistake in the user's data, config or command line.

  The message is one line: what is wrong, where (file and row, or the config field), and how to
  mend it. The command line prints it without a traceback and exits with code 2.
  """

  def __init__(self, message):
    super().__init__(as_set(str(message)))


class _Plain(logging.Formatter):
  def __init__(self):
    super().__init__("%(levelname)s: %(message)s")

  def format(self, record):
    return as_set(super().format(record))


def say_warnings_plainly():
  """Shows warnings as lines of text: dates, threads and lines of code say nothing to a user."""
  absl_logging.use_absl_handler()
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.addLevelName(logging.WARNING, "warning")
  absl_logging.get_absl_handler().setFormatter(_Plain())
