"""Files that are there whole or not at all."""

import os
import pathlib

import jax

from lus_jax import parallel
from lus_jax.errors import UserError


def write_bytes(file, content):
  """Writes a file under a temporary name first, so that a kill leaves the old one or none.

  Of several processes the main one writes, the others do nothing.
  """
  if not parallel.is_main():
    return
  file = pathlib.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.with_name(file.name + ".tmp")
  temporary.write_bytes(content)
  temporary.replace(file)


def write_text(file, text):
  """Like `write_bytes`, for text."""
  write_bytes(file, text.encode())


def expand_home(path):
  """A path with the home directory in place of `~`.

  Raises:
    UserError: nobody says where that is.
  """
  expanded = os.path.expanduser(path)
  if expanded.startswith("~"):
    raise UserError(f"{path}: there is no such home directory (is HOME set?); name another path.")
  return expanded


def use_compilation_cache(directory):
  """Keeps compiled programs in a directory; nowhere if it is empty, or in a home nobody knows."""
  try:
    directory = expand_home(directory)
  except UserError:
    return
  if directory:
    jax.config.update("jax_compilation_cache_dir", directory)
