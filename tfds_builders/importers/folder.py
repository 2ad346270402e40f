"""What every importer does: finds pictures, checks names, writes a folder whole or not at all."""

import contextlib
import csv
import json
import os
import shutil

import numpy as np
from PIL import Image

from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables


@contextlib.contextmanager
def new_folder(out, *parts):
  """Yields a temporary folder that becomes `out` if nothing goes wrong, and vanishes if it does.

  Args:
    out: its path.
    *parts: names of the folders in it.
  """
  if out.exists():
    raise UserError(f"{out} exists already; name a new folder with --out, or remove it.")
  if not out.parent.is_dir():
    raise UserError(f"{out.parent} does not exist; make that folder first.")
  partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
  partial.mkdir()
  try:
    for part in parts:
      (partial / part).mkdir()
    yield partial
    partial.rename(out)
  except BaseException:
    shutil.rmtree(partial)
    raise


def _write_table(path, header, rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([header, *rows])


def check_names(classes, thin):
  """Refuses class names that no folder can hold, and thin ones that are no class (`UserError`)."""
  tables.check_classes(classes, "The importer", "Class")
  for name in thin:
    if name not in classes:
      raise UserError(f"--thin names {name!r}, which is no class ({', '.join(classes)}).")


def write_tables(folder, *, name, licence, classes, thin, videos, labels, **more):
  """Writes the tables of a `lus_folder`: rows (video, patient) and (video, frame, masks)."""
  dataset = {"name": name, "licence": licence, "classes": list(classes), "thin": list(thin)} | more
  (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
  _write_table(folder / "manifest.csv", ("video", "patient"), videos)
  _write_table(folder / "labels.csv", ("video", "frame", "masks"), labels)


def save_mask(path, mask):
  """Writes where a mask [h, w] is not 0 as 255, making its folder."""
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def find_pictures(folder, option):
  """Finds the pictures in a folder.

  Args:
    folder: a path.
    option: which named it, for messages.

  Returns:
    A dict from name without suffix to path, and notes of what else is there.

  Raises:
    UserError: there are none, two of one name, or one of a format that is not read.
  """
  if not folder.is_dir():
    raise UserError(f"{folder} does not exist; mend {option}.")
  files, others = {}, []
  for path in tables.visible(folder):
    if path.suffix.lower() in readers.OTHER_PICTURES:
      raise UserError(f"{path} is of a format that is not read here; save it as PNG.")
    if path.suffix.lower() not in readers.PICTURES or not path.is_file():
      others.append(path.name)
      continue
    name = tables.normal(path.stem)
    if name in files:
      raise UserError(f"{path} and {files[name].name} have one name; remove one of them.")
    files[name] = path
  if not files:
    kinds = ", ".join(readers.PICTURES)
    raise UserError(f"{folder} holds no picture ({kinds}); mend {option}.")
  return files, [f"{folder}: {tables.note_of(others, 'no pictures')}"] if others else []
