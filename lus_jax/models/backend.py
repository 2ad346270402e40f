"""Which machine an operation is chosen for."""

import contextlib
import contextvars

import jax

ANY = "any"
_portable = contextvars.ContextVar("portable", default=False)


def name():
  """`jax.default_backend()`; `ANY` within `portable`."""
  return ANY if _portable.get() else jax.default_backend()


@contextlib.contextmanager
def portable():
  """Within it networks are traced in the plain forms of operations.

  They compile on every machine and for any number of images, which those that are faster on one
  machine, or at one size, do not.
  """
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)
