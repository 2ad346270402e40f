"""Reads what users write: tables, JSON, and the names of files in both.

The readers of `lus_folder`, `multirater_folder`, `covid_blues` and the importers share this.
"""

import codecs
import contextlib
import csv
import difflib
import hashlib
import io
import json
import math
import os
import pathlib
import re
import stat
import unicodedata

from absl import logging

from lus_jax import problems
from lus_jax.errors import UserError
from lus_jax.media import nifti
from lus_jax.media import scan_area as scan_area_lib
from tfds_builders import digests

# Of one table, and of one name: more of them is a mistake, and compares slowly.
MAX_COLUMNS = 10_000
MAX_NAME = 255
# Of files that are read whole: from so many on it takes a while, and digests are kept.
MANY_BYTES = 2 * 10**9
DELIMITERS = (",", ";", "\t")
# What sets how many processes read a data folder.
PROCESSES = "--config.data.num_processes"


class Row:
  """One row of a table: cells by column, and errors that say where.

  Attributes:
    path: of the table.
    number: of the row, as a spreadsheet counts.
    cells: text by column.
    decimal_comma: whether 97,5 is a number, as in tables with semicolons or tabs.
  """

  def __init__(self, path, number, cells, *, decimal_comma=False):
    self.path, self.number, self.cells, self.decimal_comma = path, number, cells, decimal_comma

  def error(self, message):
    """A `UserError` about this row."""
    return UserError(f"{self.path} row {self.number}: {message}")

  def text(self, column):
    """A cell's text, '' where there is none.

    Raises:
      UserError: it holds line breaks or control characters.
    """
    value = self.cells.get(column, "")
    if has_controls(value):
      raise self.error(f"{column} {shown(value)} holds a line break or control character; mend it.")
    return value

  def required(self, column):
    """A cell's text; refuses an empty one (`UserError`)."""
    if not self.cells[column]:
      raise self.error(f"{column} is empty; fill it.")
    return self.text(column)

  def choice(self, column, choices):
    """A cell that is empty or one of the choices; refuses others (`UserError`)."""
    value = self.cells.get(column, "")
    if value and value not in choices:
      problems.tell(
        self.error(f"unknown {column} {shown(value)}; write one of {', '.join(choices)}.")
      )
      return ""
    return value

  def number_in(self, column, kind, low, high, unknown):
    """A cell's number, `unknown` where it is empty; refuses others than low to high (`UserError`).

    Args:
      column: which.
      kind: int or float.
      low: the least.
      high: the largest.
      unknown: what an empty cell becomes.
    """
    text = self.cells.get(column, "")
    if not text:
      return unknown
    value = parse_number(text, kind, decimal_comma=self.decimal_comma)
    if not low <= value <= high:
      what = f"a {'whole ' * (kind is int)}number from {low:g}" + f" to {high:g}" * (high < 1e6)
      problems.tell(self.error(f"{column} {shown(text)} is not {what}; mend the cell."))
      return unknown
    return value


def scan_area(row, height, width):
  """The box in a row's cell `scan_area`, see `lus_jax.media.scan_area`; None where it is empty.

  Args:
    row: a `Row`.
    height: h of the frame, in pixels.
    width: w of the frame, in pixels.

  Raises:
    UserError: it is no box in such a frame.
  """
  text = row.text("scan_area")
  if not text:
    return None
  with problems.apart():
    try:
      return scan_area_lib.parse(text, height, width)
    except UserError as error:
      raise row.error(f"{error} An empty cell is the whole frame.") from error
  return None


def parse_number(text, kind, *, decimal_comma):
  """Reads a number, NaN if the text is none."""
  if decimal_comma:
    text = re.sub(r"^([-+]?\d*),(\d+)$", r"\1.\2", text)
  try:
    # Python reads 1_0 as 10.
    return math.nan if "_" in text else kind(text)
  except ValueError:
    return math.nan


def has_controls(text):
  """Whether a text holds line breaks, control characters or halves of characters."""
  return not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def shown(text, longest=80):
  """A text as one short quoted line, for messages."""
  return repr(text if len(text) <= longest else f"{text[:longest]}...")


def shown_list(names, most=20):
  """Names as one short line, for messages."""
  names = list(names)
  text = ", ".join(n if n.isprintable() and len(n) <= 80 else shown(n) for n in names[:most])
  return text + f", ... ({len(names)} in all)" * (len(names) > most)


def normal(text):
  """A text with its accents composed: tables and disks write them in two ways (Unicode NFC)."""
  return unicodedata.normalize("NFC", text)


def exists(path):
  """Whether anything has this name, a broken link too."""
  return os.path.lexists(path)


def read_text(path, mend):
  """Reads a text file: UTF-8, or UTF-16 that says so.

  Raises:
    UserError: it is missing, no file, or in another encoding.
  """
  try:
    status = path.stat()
    # Reading a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
      raise UserError(f"{path} is no file but a folder, a pipe or a device; {mend}.")
    content = path.read_bytes()
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f"{path} does not exist; {mend}.") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
  utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  try:
    text = content.decode("utf-16" if utf16 else "utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text; save it as UTF-8 (CSV UTF-8 in Excel).") from error
  if "\0" in text:
    raise UserError(f"{path} is not UTF-8 text but holds zero bytes; save it as UTF-8.")
  return text


def _object(pairs):
  found = {}
  for name, value in pairs:
    name = normal(name)
    if name in found:
      raise UserError(f"{shown(name)} stands twice in one object; keep one, or join them")
    found[name] = value
  return found


def _constant(text):
  raise UserError(f"{text} is no number of JSON; write a finite number")


def _float(text):
  value = float(text)
  return value if math.isfinite(value) else _constant(shown(text, 20))


def _normal_values(value):
  if isinstance(value, str):
    if any(unicodedata.category(c) == "Cs" for c in value if not c.isprintable()):
      raise UserError(f"{shown(value)} holds half a character; write it whole")
    return normal(value)
  if isinstance(value, list):
    return [_normal_values(x) for x in value]
  if isinstance(value, dict):
    return {_normal_values(name): _normal_values(x) for name, x in value.items()}
  return value


def parse_json(path, text):
  """Reads JSON in which every name stands once an object and every number is finite.

  Args:
    path: of the file, for messages.
    text: what it holds.

  Returns:
    What it says, with composed accents.

  Raises:
    UserError: it is no such JSON.
  """
  try:
    return _normal_values(
      json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    )
  except json.JSONDecodeError as error:
    raise UserError(f"{path} line {error.lineno} is not JSON: {error.msg}.") from error
  except UserError as error:
    raise UserError(f"{path}: {error}.") from error
  except RecursionError as error:
    raise UserError(f"{path} is nested too deeply; flatten it.") from error
  except ValueError as error:  # Python refuses whole numbers of thousands of digits
    raise UserError(f"{path} holds a number of too many digits; shorten it.") from error


def refuse_near_misses(names, known, what):
  """Refuses a name that was probably meant to be a known one that lacks; others are the user's."""
  names = list(names)
  simple = {name.casefold(): name for name in known}
  lacking = [name.casefold() for name in known if name not in names]
  for name in names:
    # The longest known one has fewer letters than 20, so that longer ones are never near.
    if name in known or len(name) > 40:
      continue
    close = [name.casefold()]
    if close[0] not in simple:
      close = difflib.get_close_matches(close[0], lacking, n=1, cutoff=0.8)
    if close:
      problems.tell(
        UserError(
          f"{what} {shown(name)} is not known; did you mean {simple[close[0]]!r}? Rename it."
        )
      )


def _header(text, delimiter):
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
  return [normal(cell.strip()) for cell in next(reader, [])]


def _delimiter(text, required):
  """What stands between a table's cells, and the table without the line in which Excel says so."""
  stated = re.match(r"\"?sep=([,;\t])\"?(\r\n?|\n)", text)
  if stated:
    # A blank line keeps the count of rows.
    return stated[1], "\n" + text[stated.end() :]
  for delimiter in DELIMITERS:
    with contextlib.suppress(csv.Error):
      if set(required) <= set(_header(text, delimiter)):
        return delimiter, text
  return ",", text


def read_lines(path, text, required):
  """Splits a table into rows of cells, whatever Excel put between them.

  Args:
    path: of the table, for messages.
    text: what it holds.
    required: columns that it must have.

  Returns:
    Its header, its other rows, untouched but for composed accents, with their numbers, and
    whether 97,5 is a number in it.

  Raises:
    UserError: it is no table, or has too many columns.
  """
  delimiter, text = _delimiter(text, required)
  # A quote that is never closed would swallow the rows below it.
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  lines = []
  try:
    for line in reader:
      lines.append((len(lines) + 1, [normal(cell) for cell in line]))
  except csv.Error as error:
    raise UserError(
      f"{path} is not a table of comma-separated values ({error}, near line {reader.line_num}); "
      "mend its quotes, or save it again."
    ) from error
  if text.startswith("\n"):
    lines = lines[1:]
  header = [cell.strip() for cell in lines[0][1]] if lines else []
  if len(header) > MAX_COLUMNS:
    raise UserError(f"{path} has {len(header)} columns; {MAX_COLUMNS:,} are the most, remove some.")
  return header, lines[1:], delimiter != ","


def read_table(path, required, mend, known=()):
  """Reads a table of one header and rows below it.

  Args:
    path: of the table: commas, semicolons or tabs between the cells, in UTF-8 or UTF-16.
    required: columns that must be there.
    mend: what to do where there is no such file.
    known: columns that mean something; one nearly called so is refused.

  Returns:
    A list of `Row`, at least one; a column without a name is left out.

  Raises:
    UserError: anything is missing or contradicts itself.
  """
  header, lines, decimal_comma = read_lines(path, read_text(path, mend), required)
  lacking = [
    UserError(
      f"{path} row 1: the required column {column!r} is missing (there are: "
      f"{shown_list(header) or 'none'}); add it, with commas between the columns."
    )
    for column in required
    if column not in header
  ]
  for error in lacking[:-1]:
    problems.tell(error)
  if lacking:
    raise lacking[-1]
  named = [column for column in header if column]
  seen = set()
  for column in named:
    if column in seen:
      problems.tell(
        UserError(f"{path} row 1: two columns are called {shown(column)}; rename one of them.")
      )
    seen.add(column)
  refuse_near_misses(named, known, f"{path} row 1: column")
  rows = []
  for number, line in lines:
    line = [cell.strip() for cell in line]
    if not any(line):
      continue
    cells = dict.fromkeys(named, "") | {
      column: cell for column, cell in zip(header, line, strict=False) if column
    }
    row = Row(path, number, cells, decimal_comma=decimal_comma)
    if any(line[len(header) :]):
      problems.tell(
        row.error(
          "it has more cells than there are columns; put quotes around a cell that holds a comma."
        )
      )
    rows.append(row)
  if not rows:
    raise UserError(f"{path} has no rows below its header; add one a line.")
  return rows


def read_optional_table(path, required, known=()):
  """The rows of a table, as `read_table`; none where there is no file, or nothing below its header.

  Raises:
    UserError: anything contradicts itself.
  """
  if not exists(path):
    return []
  lines = read_text(path, "").splitlines()
  if sum(bool(line.strip()) for line in lines) < 2:
    return []
  return read_table(path, required, "", known)


def refuse_repeats(rows, key, what):
  """Refuses two rows of one key (`UserError`); returns those that are the first of theirs."""
  first = {}
  for row in rows:
    other = first.setdefault(key(row), row)
    if other is not row:
      problems.tell(row.error(f"the same {what} as row {other.number}; remove one of them."))
  return list(first.values())


def require_constant(rows, values, column, groups, within):
  """Refuses two values of a column in one group (`UserError`).

  Args:
    rows: of the table.
    values: of each row; '', -1 and NaN are unknown.
    column: their name.
    groups: what each row belongs to; None: to nothing.
    within: what a group is called.
  """
  first = {}
  for row, value, group in zip(rows, values, groups, strict=True):
    if value in ("", -1) or value != value or group is None:
      continue
    other_row, other = first.setdefault(group, (row, value))
    if other != value:
      problems.tell(
        row.error(
          f"{column} is {row.cells[column]} here and {other_row.cells[column]} in row "
          f"{other_row.number}, within {within}; make them equal or leave one empty."
        )
      )


def spelling(name):
  """What spellings of one name share: capitals, leading zeros, 11.0 for 11, and separators."""
  name = unicodedata.normalize("NFKC", name).casefold()
  name = re.sub(r"^(\d+)\.0+$", r"\1", re.sub(r"[\s_-]+", " ", name.strip()))
  return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def warn_of_alike(names, where, what, harm):
  """Warns of names that look like one name spelled twice, as 007 and 7, or P3 and p3.

  Args:
    names: all that occur; '' is unknown.
    where: the file.
    what: whose names they are, in the plural.
    harm: what comes of it if they are one.
  """
  spellings = {}
  for name in dict.fromkeys(names):
    if name:
      spellings.setdefault(spelling(name), []).append(name)
  alike = [" and ".join(map(shown, found)) for found in spellings.values() if len(found) > 1]
  if alike:
    logging.warning(
      "%s: the %s %s look like one name spelled in several ways%s; if they are one, make them "
      "equal, or %s.",
      where,
      what,
      "; ".join(alike[:3]),
      f" ({len(alike)} such groups)" * (len(alike) > 3),
      harm,
    )


def check_file_name(name, what):
  """Refuses a name that is no plain name of a file on every disk (`UserError`)."""
  mend = None
  if not name.strip() or name.strip(".") == "" or name != name.strip():
    mend = "is empty, dots, or begins or ends with a blank"
  elif "/" in name or "\\" in name:
    mend = "must be a file name without folders"
  elif has_controls(name):
    mend = "holds a line break or control character"
  elif len(name.encode()) > MAX_NAME - len(".nii.gz"):
    mend = "is too long for a file's name"
  if mend:
    raise UserError(f"{what} {shown(name)} {mend}; rename it.")


class Place:
  """A folder whose files table cells name.

  Args:
    root: the folder; it may be a link to another disk.
  """

  def __init__(self, root):
    self.root = root
    self._listings, self._owners = {}, {}

  def name(self, row, column):
    """What a cell names in this folder, as 'a/b.png'.

    Raises:
      UserError: it is empty, leaves the folder, or is spelled in a roundabout way.
    """
    text = row.required(column)
    where, folder = f"{column} {shown(text)}", f"{self.root.parent.name}/{self.root.name}"
    # Excel users copy the path as it stands in the folder.
    prefix = f"{self.root.name}/"
    if text.startswith(prefix) and not exists(self.root / self.root.name):
      text = text.removeprefix(prefix)
    if text.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", text):
      raise row.error(f"{where} is an absolute path; write it relative to {folder}.")
    parts = text.split("/")
    if ".." in parts:
      raise row.error(f"{where} leads out of its folder; write it relative to {folder}, without ..")
    if "." in parts or "" in parts:
      plain = "/".join(part for part in parts if part not in (".", ""))
      raise row.error(f"{where} is a roundabout name; write {shown(plain) if plain else 'a name'}.")
    if any(len(os.fsencode(part)) > MAX_NAME for part in parts):
      raise row.error(f"{where} is too long for a file's name; shorten it.")
    return text

  def path(self, row, column, name):
    """Where what `name` returned lies on the disk, whichever way its accents are written there.

    Raises:
      UserError: there is nothing, or a link leads out of the folder.
    """
    path = self.root
    for part in name.split("/"):
      path = path / self._spelling(path, part)
    try:
      if not exists(path):
        hint = "; write / between folders" if "\\" in name else ""
        raise row.error(
          f"{path} does not exist; put it there or mend the cell ({column} is relative to "
          f"{self.root}{hint})."
        )
      self.check_link(row, path)
      if not (path.is_file() or path.is_dir()):
        raise row.error(f"{path} is neither a file nor a folder; mend the cell.")
    except (OSError, RuntimeError) as error:  # a name too long, a link in a circle
      raise row.error(f"{path} cannot be read ({getattr(error, 'strerror', error)}).") from error
    return path

  def check_link(self, row, path):
    """Refuses a path that links lead out of the data folder (`UserError`), as `check_link`."""
    try:
      check_link(self.root.parent, path)
    except UserError as error:
      raise row.error(str(error)) from error

  def _spelling(self, folder, part):
    if part.isascii() or exists(folder / part):
      return part
    if folder not in self._listings:
      found = os.listdir(folder) if folder.is_dir() else []
      self._listings[folder] = {normal(entry): entry for entry in found}
    return self._listings[folder].get(part, part)

  def claim(self, row, files):
    """Refuses a file that another row has under another name (`UserError`)."""
    for path in files:
      if path.is_symlink():
        self.check_link(row, path)
      key = _identity(path)
      other, their_path = self._owners.setdefault(key, (row, path))
      if key is not None and other is not row:
        raise row.error(
          f"{path} is the same file as {their_path} of row {other.number}; remove one of the rows."
        )


def _identity(path):
  """Which file it is, whatever its name: None where the disk does not tell."""
  try:
    status = path.stat()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
  return (status.st_dev, status.st_ino) if status.st_ino else None


def refuse_same_files(paths):
  """Refuses two names of one file: links to it, or capitals on a disk that ignores them."""
  first = {}
  for path in paths:
    key = _identity(path)
    other = first.setdefault(key, path)
    if key is not None and other != path:
      raise UserError(f"{path} is the same file as {other}; remove one of them.")


def check_link(directory, path):
  """Refuses a path that links lead out of its data folder, whose own folders may be elsewhere.

  Args:
    directory: the data folder.
    path: in it.

  Raises:
    UserError: a link leaves it, or leads nowhere.
  """
  top = directory / path.relative_to(directory).parts[0]
  try:
    file = path.resolve()
    homes = [directory.resolve(), *([top.resolve()] if top.is_dir() else [])]
  except (OSError, RuntimeError) as error:  # a circle
    reason = getattr(error, "strerror", None) or "a link in a circle"
    raise UserError(f"{path} cannot be read ({reason}).") from error
  if not any(file.is_relative_to(home) for home in homes):
    raise UserError(
      f"{path} is a link that leaves {directory}; copy the file there (only whole folders "
      "beside the tables may be links to elsewhere)."
    )


def contents(directory, files):
  """What files hold, as a digest by path; reads every byte of them, of large sets once.

  See `digests`: times and sizes alone stay where a file is replaced by tools that keep them.

  Args:
    directory: the data folder.
    files: paths in it.

  Raises:
    UserError: a file cannot be read, or a link leads out of the folder.
  """
  files = sorted(files)
  for path in files:
    check_link(directory, path)
  keep = sum(map(digests.size, files)) >= MANY_BYTES
  return digests.contents(directory, files, keep=keep)


def fingerprint(directory, tables, files):
  """A text that changes whenever the content of a table or a file does, or a file's name.

  Args:
    directory: where all of them are.
    tables: names of tables in it; one that is missing is empty.
    files: `contents` of the others.

  Returns:
    64 hexadecimal digits.

  Raises:
    UserError: a table cannot be read, or a link leads out of the folder.
  """
  digest = hashlib.sha256()
  for name in tables:
    path = directory / name
    check_link(directory, path)
    digest.update(digests.content(path) if path.exists() else b"")
    digest.update(b"\0")
  # A copy on another disk may write accents in another way.
  names = {path: [normal(part) for part in path.relative_to(directory).parts] for path in files}
  for path in sorted(files, key=names.get):
    digest.update(os.fsencode("/".join(names[path])) + b"\0" + files[path])
  return digest.hexdigest()


def warn_of_copies(pictures, digests, where):
  """Warns where two patients have the same picture or video.

  Args:
    pictures: of each, its name, its patient and the files it consists of.
    digests: `contents` of these.
    where: the table that says so.
  """
  first, copies = {}, []
  for name, patient, files in pictures:
    other = first.setdefault(tuple(digests[file] for file in files), (name, patient))
    if other[1] != patient:
      copies.append((other, (name, patient)))
  if copies:
    (a, a_patient), (b, b_patient) = copies[0]
    logging.warning(
      "%s: %s of patient %s and %s of patient %s hold the same%s; if they are one person's, say "
      "so, or the test is not independent of the training.",
      where,
      a,
      shown(a_patient),
      b,
      shown(b_patient),
      f", and {len(copies) - 1} more pairs" * (len(copies) > 1),
    )


def data_folder(directory):
  """The folder that `config.data.dir` names.

  Raises:
    UserError: it names none, or none that is there.
  """
  if not directory:
    raise UserError("No data folder is given; say --config.data.dir=DIR.")
  try:
    path = pathlib.Path(directory).expanduser()
    is_there = path.is_dir()
  except (OSError, ValueError, RuntimeError) as error:  # zero bytes, or ~ of nobody
    raise UserError(f"--config.data.dir={shown(str(directory))} is no folder ({error}).") from error
  if not is_there:
    raise UserError(f"The data folder {path} does not exist; mend --config.data.dir.")
  return path


def read_dataset(path, keys):
  """Reads a dataset.json.

  Args:
    path: of the file.
    keys: that mean something; one nearly called so is refused.

  Returns:
    A dict that has at least `name`, `licence` and `classes`.

  Raises:
    UserError: anything is missing or contradicts itself.
  """
  text = read_text(path, 'write {"name": ..., "licence": ..., "classes": [...]} there')
  dataset = parse_json(path, text)
  if not isinstance(dataset, dict):
    raise UserError(f'{path} must be an object: {{"name": ..., "licence": ..., "classes": [...]}}.')
  refuse_near_misses(dataset, keys, f"{path}: key")
  if dataset.get("patients", "unknown") != "unknown":
    problems.tell(
      UserError(
        f"{path}: 'patients' is {shown_value(dataset['patients'])}; write \"unknown\" if the "
        "patients are not real ones, else leave it out."
      )
    )
  for field in ("name", "licence"):
    if not isinstance(dataset.get(field), str):
      problems.tell(UserError(f'{path}: {field!r} is missing or no text; add "{field}": "...".'))
      dataset[field] = "unknown"
  if has_controls(dataset["name"]):
    problems.tell(UserError(f"{path}: 'name' holds a line break or control character; mend it."))
  classes, thin = dataset.get("classes"), dataset.get("thin", [])
  for field, names in (("classes", classes), ("thin", thin)):
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
      raise UserError(f'{path}: {field!r} must be a list of names; write "{field}": ["..."].')
    check_classes(names, f"{path}: {field!r}", f"{path}: class")
  if not classes:
    raise UserError(f"{path}: 'classes' is empty; name at least one class.")
  for name in thin:
    if name not in classes:
      problems.tell(
        UserError(f"{path}: 'thin' names {shown(name)}, which is not in 'classes'; mend the name.")
      )
  return dataset


def confidence_maximum(path, dataset):
  """The number that means 100 % in masks, in the user's word; None where there is none.

  Raises:
    UserError: it is no number above 0.
  """
  value = dataset.get("confidence_maximum")
  if value is not None and not (is_number(value) and value > 0):
    problems.tell(
      UserError(
        f"{path}: 'confidence_maximum' is {shown_value(value)}; write the number that means 100 % "
        "in masks, as 255."
      )
    )
    return None
  return value


def nifti_axes(path, dataset):
  """Which axis of NIfTI files is the first, in the user's word; None where there is none.

  Raises:
    UserError: it is none of `nifti.AXES`.
  """
  axes = dataset.get("nifti_axes")
  if axes not in (None, *nifti.AXES):
    problems.tell(
      UserError(
        f"{path}: 'nifti_axes' is {shown_value(axes)}; write one of {', '.join(nifti.AXES)}."
      )
    )
    return None
  return axes


def intensity_window(path, dataset):
  """The values of more than 8 bits that become 0 and 255, in the user's word; None without one.

  Raises:
    UserError: it is no pair of rising numbers.
  """
  window = dataset.get("intensity_window")
  if window is None:
    return None
  is_pair = isinstance(window, list) and len(window) == 2 and all(map(is_number, window))
  if not is_pair or window[0] >= window[1]:
    problems.tell(
      UserError(
        f"{path}: 'intensity_window' is {shown_value(window)}; write two rising numbers, [low, "
        "high]."
      )
    )
    return None
  return tuple(window)


def is_number(value):
  """Whether a value of JSON is a number that computers can reckon with."""
  return type(value) in (int, float) and abs(value) < 1e30


def check_classes(names, where, what):
  """Refuses names of classes that cannot be files beside each other (`UserError`)."""
  first = {}
  for name in names:
    check_file_name(name, what)
    if name == IGNORE:
      raise UserError(f"{what} {IGNORE!r} is the name of masks that do not count; rename it.")
    # Some disks do not tell capitals apart.
    if name.casefold() in first:
      other = first[name.casefold()]
      raise UserError(
        f"{where} names a class twice ({shown(other)} and {shown(name)}; capitals do not count)."
      )
    first[name.casefold()] = name


def shown_value(value):
  """A value of JSON as one short line, for messages."""
  return shown(value) if isinstance(value, str) else shown(json.dumps(value), 80)[1:-1]


def note_of(names, what):
  """What was left out, as a line: 'Left out, as they are no pictures: a.txt, b.txt.'"""
  return f"Left out, as they are {what}: {shown_list(names, 5)}."


# The mask of the pixels that count nowhere, beside those of the classes.
IGNORE = "_ignore"


def visible(folder):
  """The entries of a folder by name, without the hidden ones that systems leave there.

  Raises:
    UserError: one has a name that is no text, or the folder cannot be read.
  """
  try:
    found = sorted(pathlib.Path(folder).iterdir())
  except OSError as error:
    raise UserError(f"{folder} cannot be read ({error.strerror or error}).") from error
  found = [path for path in found if not path.name.startswith(".") and path.name not in _LEFTOVERS]
  for path in found:
    if has_controls(path.name):
      raise UserError(f"{folder} holds {shown(path.name)}, no plain name; rename it.")
  return found


# What systems leave in folders without being asked.
_LEFTOVERS = ("Thumbs.db", "desktop.ini", "__MACOSX")
