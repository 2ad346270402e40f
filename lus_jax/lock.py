"""One process at a time in a directory: advisory locks, which end with the process that has them.

A lock is a file, locked by `flock`, that says who holds it. The kernel gives it back when its
process ends, however that ends. On network disks it holds between machines where the file system
shares locks (NFS and most others do); where it has none at all, a warning says so.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import sys
import time

import jax
from absl import logging

from lus_jax import parallel
from lus_jax.errors import UserError

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None

NAME = "run.lock"
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_PAUSE = 0.2  # seconds between two looks at a lock that is waited for
_LONGEST = 120  # characters of a command that are shown
# Directories that this process has: a run within a run finds the lock of its own process.
_held = set()


@contextlib.contextmanager
def hold(directory, *, wait="", option="--workdir"):
  """Within it, no other process has this directory; it is made where there is none.

  Of several processes of one run the main one locks, for all of them. A directory that is empty
  afterwards is removed again.

  Args:
    directory: its path.
    wait: what the other process does there, for the line that says that this one waits for it;
      without, a directory that is held is refused.
    option: what names the directory, for the message.

  Raises:
    UserError: another process has it, or the lock cannot be written.
  """
  key = os.path.realpath(directory)
  if key in _held:
    yield
    return
  lock, refused = None, None
  if parallel.is_main():
    try:
      lock = _Lock(pathlib.Path(directory), wait, option)
    except UserError as error:
      refused = error
  if not wait and jax.distributed.is_initialized():
    (free,) = parallel.from_main([refused is None])
    if not free and refused is None:
      refused = UserError(f"{directory} cannot be used; the main process says why.")
  if refused is not None:
    raise refused
  _held.add(key)
  try:
    yield
  finally:
    _held.discard(key)
    if lock is not None:
      lock.release()


class _Lock:
  def __init__(self, directory, wait, option):
    self._file, self._made, said = directory / NAME, [], False
    try:
      while not self._take(directory):
        if not wait:
          raise UserError(
            f"{directory} is in use by {_holder(self._file)}; wait for it or stop it, or give "
            f"another {option}."
          )
        if not said:
          print(f"waiting for {_holder(self._file)}, which {wait}", flush=True)
          said = True
        time.sleep(_PAUSE)
    except OSError as error:
      self._remove_made()
      raise UserError(f"{directory} cannot be used ({error.strerror}).") from error

  def _take(self, directory):
    while not directory.is_dir():
      missing = directory
      while not missing.parent.is_dir():
        missing = missing.parent
      missing.mkdir(exist_ok=True)
      self._made.append(missing)
    try:
      self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # whoever had it has just removed the directory
      return self._take(directory)
    try:
      if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks")
      fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in _TAKEN:
        os.close(self._fd)
        return False
      if error.errno not in _UNKNOWN:
        os.close(self._fd)
        raise
      logging.warning(
        "%s: this file system has no locks (%s); let no other run use the directory.",
        directory,
        error.strerror,
      )
    # Whoever had it may have removed the file between our opening and locking it.
    try:
      same = os.path.samestat(os.fstat(self._fd), os.stat(self._file))
    except FileNotFoundError:
      same = False
    if not same:
      os.close(self._fd)
      return self._take(directory)
    theirs = _read(self._file)
    if theirs and theirs["host"] != socket.gethostname():
      logging.warning(
        "%s: %s has not given its lock back; if it still runs, stop one of the two.",
        directory,
        _holder(self._file),
      )
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    command = " ".join(" ".join(sys.argv).split())[:_LONGEST]
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
    try:
      os.truncate(self._fd, 0)
      os.pwrite(self._fd, json.dumps(mine).encode(), 0)
    except OSError:  # a full disk
      self.release()
      raise
    return True

  def release(self):
    with contextlib.suppress(OSError):  # a disk that has become read-only, or is gone
      self._file.unlink()
    os.close(self._fd)
    self._remove_made()

  def _remove_made(self):
    for folder in reversed(self._made):
      with contextlib.suppress(OSError):  # there is something in it
        folder.rmdir()


def _read(file):
  try:
    content = json.loads(file.read_text())
    return {name: content[name] for name in ("pid", "host", "since", "command")}
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _holder(file):
  content = _read(file)
  if content is None:
    return "another process"
  return "process {pid} on {host} (since {since}: {command})".format(**content)
