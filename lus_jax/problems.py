"""Refusals of one of many things: the first ends a run; a check goes on and keeps them all."""

import contextlib
import threading

from lus_jax.errors import UserError

# A list while this thread collects.
_here = threading.local()


def tell(error):
  """Raises a `UserError`; while they are `collected`, keeps it instead, and the caller goes on."""
  found = getattr(_here, "found", None)
  if found is None:
    raise error
  found.append(error)


@contextlib.contextmanager
def apart():
  """What is refused within is told (`tell`), so that a check can go on with the next of many."""
  try:
    yield
  except UserError as error:
    tell(error)


@contextlib.contextmanager
def collected():
  """Yields the list to which what this thread tells is added, instead of being raised."""
  outer, _here.found = getattr(_here, "found", None), []
  try:
    yield _here.found
  finally:
    _here.found = outer
