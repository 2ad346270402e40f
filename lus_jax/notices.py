"""Warnings about files: one line for all that are alike, with the first and their number."""

import contextlib

from absl import logging

# By text, what was said of the first file, and how many there are; None: nobody collects.
_collected = None
# A list of all of them where another process is to say them.
_kept = None


def warn(text, path, *values):
  """Warns of a file; while they are `collected`, of all with the same text together.

  Args:
    text: begins with %s, the file.
    path: of the file.
    *values: of the text's other places.
  """
  if _kept is not None:
    _kept.append((text, path, *values))
    return
  if _collected is None:
    logging.warning(text, path, *values)
    return
  first, count = _collected.get(text, ((path, *values), 0))
  _collected[text] = first, count + 1


@contextlib.contextmanager
def collected():
  """Keeps warnings until the end, and logs each kind once; the outermost of several counts."""
  global _collected
  if _collected is not None:
    yield
    return
  _collected = {}
  try:
    yield
  finally:
    found, _collected = _collected, None
    for text, ((path, *values), count) in found.items():
      more = f" and {count - 1} more" if count > 1 else ""
      logging.warning(text, f"{path}{more}", *values)


@contextlib.contextmanager
def kept():
  """Says nothing, and gives the list of what `warn` was called with, for another process."""
  global _kept
  before, _kept = _kept, []
  try:
    yield _kept
  finally:
    _kept = before
