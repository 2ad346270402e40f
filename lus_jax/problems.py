"""Refusals of one of many things: the first ends a run; a check goes on and keeps them all."""

import contextlib

from lus_jax.errors import UserError

# A list while they are collected.
_collected = None


def tell(error):
  """Raises a `UserError`; while they are `collected`, keeps it instead, and the caller goes on."""
  if _collected is None:
    raise error
  _collected.append(error)


@contextlib.contextmanager
def apart():
  """What is refused within is told (`tell`), so that a check can go on with the next of many."""
  try:
    yield
  except UserError as error:
    tell(error)


@contextlib.contextmanager
def collected():
  """Yields the list to which what is told is added, instead of being raised."""
  global _collected
  outer, _collected = _collected, []
  try:
    yield _collected
  finally:
    _collected = outer
