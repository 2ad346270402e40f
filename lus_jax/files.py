"""Files that are there whole or not at all."""

import pathlib

from lus_jax import parallel


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
