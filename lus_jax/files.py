"""Files that are there whole or not at all, and what a disk refused."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
import tokenize

from lus_jax.errors import UserError

# What a disk says that is full, over its quota, read-only, forbidden or broken.
_REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ESTALE,
)
# Words of it that other mistakes do not use; "Permission denied" is anybody's.
_OWN_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# What NumPy raises on damaged arrays: it evaluates their header as Python text, and multiplies what
# it finds there.
NPY_ERRORS = (
  OSError,
  ValueError,
  EOFError,
  SyntaxError,
  TypeError,
  KeyError,
  ArithmeticError,
  RecursionError,
  tokenize.TokenError,
)


def refusal(error):
  """What the disk said, where an exception comes of a disk that is full, read-only or broken.

  Libraries in C++ raise exceptions of their own, which hold the system's words.

  Returns:
    Those words, as "No space left on device"; None where the exception has another cause.
  """
  if isinstance(error, OSError):
    return os.strerror(error.errno) if error.errno in _REFUSALS else None
  # Those of tensorstore and TensorFlow's writers say where their words come from.
  known = "[os_error_code=" in str(error) or type(error).__module__.startswith("tensorflow.")
  numbers = _REFUSALS if known else _OWN_WORDS
  return next((os.strerror(n) for n in numbers if os.strerror(n) in str(error)), None)


def write_bytes(file, content):
  """Writes a file under a temporary name first, so that a kill leaves the old one or none.

  Of several processes the main one writes, the others do nothing.

  Raises:
    UserError: the disk is full, read-only or broken; the message names the file.
  """
  # Who reads files only, as workers do, needs no jax.
  from lus_jax import parallel

  if not parallel.is_main():
    return
  file = pathlib.Path(file)
  # Its own name: two reports of one run may be under way.
  temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(file)
  except OSError as error:
    reason = refusal(error)
    with contextlib.suppress(OSError):  # the same disk
      temporary.unlink(missing_ok=True)
    if reason is None:
      raise
    raise UserError(
      f"{file} cannot be written ({reason}); make room or mend the permissions, and repeat the "
      "command."
    ) from error


def write_text(file, text):
  """Like `write_bytes`, for text."""
  write_bytes(file, text.encode())


def seal(content):
  """A JSON-serialisable dict with a checksum of itself, for `broken_seal`."""
  return content | {"sha256": _digest(content)}


def broken_seal(content):
  """Whether a dict is not what `seal` made; what was never sealed is not broken."""
  rest = {name: value for name, value in content.items() if name != "sha256"}
  return "sha256" in content and content["sha256"] != _digest(rest)


def _digest(content):
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def measure(folder):
  """The size and SHA-256 of every file below a folder: a dict of lists by path."""
  folder = pathlib.Path(folder)
  return {
    file.relative_to(folder).as_posix(): [file.stat().st_size, sha256(file)]
    for file in sorted(folder.rglob("*"))
    if file.is_file()
  }


@contextlib.contextmanager
def writing(what, place):
  """Turns what a disk refuses into a `UserError` that says what, why, and where the run goes on."""
  try:
    yield
  except Exception as error:
    reason = None if isinstance(error, UserError) else refusal(error)
    if reason is None:
      raise
    raise UserError(
      f"{what} cannot be written ({reason}); make room or mend the permissions, and repeat the "
      f"command, which goes on from {place}."
    ) from error


def sha256(file):
  """The SHA-256 of a file, as hexadecimal text."""
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def damage(folder, measured, *, sizes_only=()):
  """What is wrong with the files below a folder.

  Args:
    folder: its path.
    measured: of `measure`, when they were written; other files are not looked at.
    sizes_only: paths whose contents are not read.

  Returns:
    A text such as "best/d/1234 has other contents"; None where all are as they were.

  Raises:
    UserError: a file cannot be read now (too many open files, a network disk), which says nothing
      of its contents.
  """
  for name, (size, digest) in measured.items():
    file = pathlib.Path(folder) / name
    try:
      if file.stat().st_size != size:
        return f"{name} has {file.stat().st_size} bytes in place of {size}"
      if name not in sizes_only and sha256(file) != digest:
        return f"{name} has other contents"
    except (FileNotFoundError, NotADirectoryError):
      return f"{name} is missing"
    except OSError as error:
      raise unreadable(file, error) from error
  return None


def unreadable(file, error):
  """The `UserError` for a file that a disk does not give us now, and may give us later."""
  return UserError(
    f"{file} cannot be read ({error.strerror}), which may pass: repeat the command; where it stays "
    "so, the disk is broken: remove the file, which is then taken as damaged."
  )


def expanded(path, option):
  """A path with its `~` replaced.

  Raises:
    UserError: there is no home directory (a folder called `~` would be made).
  """
  path = os.path.expanduser(os.fspath(path))
  if path.startswith("~"):
    raise UserError(
      f"{path}: there is no home directory (HOME is not set); name one with {option}."
    )
  return pathlib.Path(path)


def plain_cell(cell):
  """A cell for a CSV file that spreadsheets show and do not compute; numbers stay what they are."""
  if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
    return cell
  try:
    float(cell)
  except ValueError:
    return f"'{cell}"
  return cell


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
