"""How every command ends: 0, 2 and one line after a user's mistake, 130 after Ctrl-C."""

import sys

from lus_jax import files
from lus_jax.errors import UserError


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
