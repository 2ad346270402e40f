"""What files hold, as digests: each is read whole, and a large set only once.

A folder that takes long to read has its digests kept, each with what the disk says of its file:
which it is (device and inode), its size, and when it, and what is noted of it, last changed. That
last time, ctime, is the system's own: whoever replaces a file by one of equal size and sets its
time back cannot set this one. Digests of files that changed a moment ago are not kept, as a second
change within one tick of the disk's clock would not show.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from concurrent import futures

from lus_jax import files
from lus_jax.errors import UserError

# Seconds: coarser than any disk's clock.
TICK = 3
# Of folders whose digests are kept.
MOST = 64


def contents(directory, paths, *, keep):
  """What files hold: a dict from path to digest.

  Args:
    directory: the data folder.
    paths: of files in it.
    keep: whether it takes long, so that digests are kept, and taken from what was kept.

  Raises:
    UserError: a file cannot be read.
  """
  kept = _Kept(directory, paths) if keep else None
  found = kept.find() if keep else {}
  left = [path for path in paths if path not in found]
  if keep and left:
    n_bytes = sum(map(size, left))
    print(f"checking {len(left)} files ({n_bytes / 1e9:.1f} GB)", flush=True)
  found |= _read(left, shown=keep)
  if keep and left:
    kept.keep(found)
  return {path: found[path] for path in paths}


def size(path):
  """How many bytes a file has; `UserError` where it cannot be asked."""
  return _status(path).st_size


def content(path):
  """The digest of one file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return bytes.fromhex(files.sha256(path))
  except OSError as error:
    raise _unreadable(path, error) from error


def _unreadable(path, error):
  return UserError(f"{path} cannot be read ({error.strerror or error}).")


def _status(path):
  try:
    return path.stat()
  except OSError as error:
    raise _unreadable(path, error) from error


def _read(paths, *, shown):
  # Workers that read pictures have no use for it, and for jax, which it imports.
  from lus_jax import progress

  bar = progress.bar(
    total=sum(map(size, paths)), unit="B", what="checking", delay=2, hidden=not shown
  )
  found = {}
  with bar, futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for path, digest in zip(paths, pool.map(content, paths), strict=True):
      found[path] = digest
      bar.update(size(path))
  return found


class _Kept:
  """Digests of a folder's files, in a file of the user's cache."""

  def __init__(self, directory, paths):
    # Without a home directory there is none, and on Windows ctime is another time.
    home = pathlib.Path(os.path.expanduser("~/.cache/lus_jax/digests"))
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    usable = os.name == "posix" and home.is_absolute()
    self._file = home / f"{name}.json" if usable else None
    self._begun = time.time()
    self._names = {path: path.relative_to(directory).as_posix() for path in paths}
    self._keys = {path: _key(_status(path)) for path in paths}

  def find(self):
    """The digests of those files that are as they were: a dict by path."""
    if self._file is None or not self._file.exists():
      return {}
    try:
      content = json.loads(self._file.read_text())
      entries = {} if files.broken_seal(content) else content["files"]
      theirs = {path: entries.get(name, (None, "")) for path, name in self._names.items()}
      return {
        path: bytes.fromhex(digest)
        for path, (key, digest) in theirs.items()
        if key == self._keys[path]
      }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return {}  # damaged: as if there were none

  def keep(self, found):
    """Keeps digests by path, but for files that changed a moment ago or meanwhile."""
    if self._file is None:
      return
    entries = {
      self._names[path]: [key, found[path].hex()]
      for path, key in self._keys.items()
      if key[-1] < (self._begun - TICK) * 1e9 and _key(_status(path)) == key
    }
    # A full or read-only home: they are read again next time.
    with contextlib.suppress(OSError, UserError):
      files.write_text(self._file, json.dumps(files.seal({"files": entries})))
      kept = sorted(self._file.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
      for file in kept[:-MOST]:
        file.unlink(missing_ok=True)


def _key(status):
  times = status.st_mtime_ns, status.st_ctime_ns
  return [status.st_dev, status.st_ino, status.st_size, *times]
