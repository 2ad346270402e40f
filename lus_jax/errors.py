"""The one exception for mistakes a user can mend, and how a command line shows warnings."""

import logging

from absl import logging as absl_logging


class UserError(ValueError):
  """A mistake in the user's data, config or command line.

  The message is one line: what is wrong, where (file and row, or the config field), and how to
  mend it. The command line prints it without a traceback and exits with code 2.
  """


def say_warnings_plainly():
  """Shows warnings as lines of text: dates, threads and lines of code say nothing to a user."""
  absl_logging.use_absl_handler()
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.addLevelName(logging.WARNING, "warning")
  absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
