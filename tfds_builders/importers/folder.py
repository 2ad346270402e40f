"""What every importer does: finds pictures, checks names, writes a folder whole or not at all."""

import contextlib
import csv
import filecmp
import glob
import json
import os
import shutil

from PIL import Image

from lus_jax import signals
from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables


class Folder:
  """A folder that is being written; a dry run writes nothing.

  Args:
    path: where it is; None in a dry run.
  """

  def __init__(self, path):
    self.path = path
    # Whether all of it was there already.
    self.unchanged = False

  def notes(self):
    """A line for the user where nothing was changed."""
    return ["All of it was there already, to the byte; nothing was changed."] * self.unchanged

  def _new(self, name):
    """Where a file goes; None in a dry run."""
    if self.path is None:
      return None
    file = self.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
      raise UserError(f"Two files would be called {name}; rename what they are made from.")
    return file

  def folder(self, name):
    """Makes a folder."""
    if self.path is not None:
      (self.path / name).mkdir(parents=True, exist_ok=True)

  def copy(self, source, files, name):
    """Copies a file, or of a folder the files that are given, in their order."""
    if not source.is_dir():
      files, names = [source], [name]
    else:
      names = [f"{name}/{file.name}" for file in files]
    for file, target in zip(files, names, strict=True):
      target = self._new(target)
      if target is not None:
        shutil.copyfile(file, target)

  def make(self, name, write):
    """Calls a function with the path of a new file, without suffix, that it writes."""
    return write(self._new(name))

  def picture(self, pixels, name):
    """Writes a picture: uint8 [h, w]."""
    file = self._new(name)
    if file is not None:
      Image.fromarray(pixels).save(file)

  def dataset(self, *, name, licence, classes, **more):
    """Writes dataset.json."""
    content = {"name": name, "licence": licence, "classes": classes} | more
    self.text("dataset.json", json.dumps(content, indent=2))

  def text(self, name, text):
    """Writes a text file."""
    file = self._new(name)
    if file is not None:
      file.write_text(f"{text}\n", encoding="utf-8")

  def table(self, name, header, rows):
    """Writes a table."""
    file = self._new(name)
    if file is not None:
      with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([header, *rows])


def _difference(one, other):
  """The first file in which two folders differ, None if they are equal."""
  ours, theirs = ({x.relative_to(root) for x in root.rglob("*")} for root in (one, other))
  for name in sorted(ours | theirs):
    a, b = one / name, other / name
    if not (a.exists() and b.exists()) or a.is_dir() != b.is_dir():
      return name
    if a.is_file() and not filecmp.cmp(a, b, shallow=False):
      return name
  return None


def _remove_leftovers(out):
  """Removes what imports that were killed left beside `out`: it may tell whose clips are."""
  for path in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
    number = path.name.rpartition("-")[2]
    if number.isdigit() and not os.path.exists(f"/proc/{number}") and os.path.isdir("/proc/self"):
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def new_folder(out, *, dry_run=False):
  """Yields a temporary `Folder` that becomes `out` if nothing goes wrong, and vanishes if it does.

  Where `out` is the same already, to the byte, it is left as it is.

  Args:
    out: its path.
    dry_run: whether nothing is written.

  Raises:
    UserError: `out` is something else, or cannot be made.
  """
  if not out.parent.is_dir():
    raise UserError(f"{out.parent} does not exist; make that folder first.")
  if out.exists() and not (out / "dataset.json").is_file():
    raise UserError(f"{out} exists already; name a new folder with --out, or remove it.")
  if dry_run:
    yield Folder(None)
    return
  _remove_leftovers(out)
  partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
  # Nothing is left behind, however the command is told to stop.
  with signals.interrupting():
    partial.mkdir()
    folder = Folder(partial)
    try:
      yield folder
      if not out.exists():
        partial.rename(out)
        return
      different = _difference(partial, out)
      if different is not None:
        raise UserError(
          f"{out} exists already, and its {different} is not what this import writes; name a new "
          "folder with --out, or remove it."
        )
      folder.unchanged = True
      shutil.rmtree(partial)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise


def check_names(classes, thin):
  """Refuses class names that no folder can hold, and thin ones that are no class (`UserError`)."""
  tables.check_classes(classes, "The importer", "Class")
  for name in thin:
    if name not in classes:
      raise UserError(f"--thin names {name!r}, which is no class ({', '.join(classes)}).")


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
