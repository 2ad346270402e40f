"""Checks of a picture's file before a library opens it, and what libraries raise on damage."""

import contextlib
import stat

from lus_jax.errors import UserError

# Of one picture: what Pillow calls a decompression bomb, far more than a scanner's or camera's.
MAX_PIXELS = 178_956_970
# Of all frames that are read together, one byte each.
MAX_TOTAL = 8 * 2**30


def check_file(path, mend):
  """Refuses what is no regular file with something in it, as a pipe would be waited for.

  Raises:
    UserError: it is missing, empty, a folder, a pipe or a device, or its name is no file's.
  """
  try:
    status = path.stat()
  except FileNotFoundError as error:
    raise UserError(f"{path} does not exist; {mend}.") from error
  except (OSError, ValueError) as error:  # ValueError: a null in the name
    reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{path} cannot be read ({reason}); {mend}.") from error
  if stat.S_ISDIR(status.st_mode):
    raise UserError(f"{path} is a folder, not a file; {mend}.")
  if not stat.S_ISREG(status.st_mode):
    raise UserError(f"{path} is no ordinary file, but a pipe or device; {mend}.")
  if not status.st_size:
    raise UserError(f"{path} is empty; {mend}.")


def check_pixels(path, height, width):
  """Refuses a picture of more than `MAX_PIXELS`, before any memory is taken (`UserError`)."""
  if height * width > MAX_PIXELS:
    raise UserError(
      f"{path} says that it has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million "
      "a picture; make it smaller, or save it again if it is damaged."
    )


@contextlib.contextmanager
def damage_is_a_user_error(path, mend, errors, what="damaged or not what its name says"):
  """Turns the named exceptions of a library into one line about the file; wraps library calls only.

  Args:
    path: the file.
    mend: what the user can do.
    errors: exceptions that the library raises on damaged files.
    what: what is wrong with the file then.
  """
  try:
    yield
  except UserError:  # is a ValueError itself
    raise
  except MemoryError as error:
    raise UserError(f"{path} does not fit into memory; make it smaller.") from error
  except errors as error:
    raise UserError(f"{path} is {what}; {mend}.") from error
