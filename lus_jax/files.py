"""Files that are there whole or not at all."""

import pathlib


def write_text(file, text):
  """Writes a text file under a temporary name first, so that a kill leaves the old one or none."""
  file = pathlib.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.with_name(file.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(file)
