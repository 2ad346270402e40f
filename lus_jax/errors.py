"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
  """A mistake in the user's data, config or command line.

  The message is one line: what is wrong, where (file and row, or the config field), and how to
  mend it. The command line prints it without a traceback and exits with code 2.
  """
