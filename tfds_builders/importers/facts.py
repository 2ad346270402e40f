"""Whose clip it is, of which day and view: from a table, from names, from the source itself."""

import dataclasses
import datetime
import re

from lus_jax.errors import UserError
from lus_jax.media import dicom
from tfds_builders import tables
from tfds_builders.importers import source as source_lib
from tfds_builders.lus_folder import manifest

# Columns of a user's table beside the one that names the clip: those of manifest.csv.
COLUMNS = ("patient", "day", "view", "sf_ratio", "readmitted_30d", "split")
# A hundred years: 240301 is no number of days, but a date.
_MOST_DAYS = 36_500
_DATE = re.compile(r"(\d{4})[-_./]?(\d{2})[-_./]?(\d{2})$")


def group(pattern, text, option):
  """What a regular expression finds: its first group, or all of it.

  Raises:
    UserError: it finds nothing.
  """
  found = pattern.search(text)
  value = found and found.group(1 if pattern.groups else 0)
  if not value:
    raise UserError(f"{option} finds nothing in {text!r}; mend it.")
  return value


def _date(text):
  """A date, or None."""
  found = _DATE.match(text.strip())
  try:
    return datetime.date(*map(int, found.groups())) if found else None
  except ValueError:
    return None


def _read_table(path, clips):
  """The cells of a user's table by clip; its column `video` names clips as tools do."""
  rows = tables.read_table(path, ("video",), "mend --table", ("video", *COLUMNS))
  by_key = {}
  for name in clips:
    whole = name + source_lib.suffix(clips[name].path)
    for key in {*source_lib.tails(name), *source_lib.tails(whole)}:
      by_key.setdefault(key, []).append(name)
  found, unknown = {}, []
  for row in rows:
    text = row.required("video")
    names = by_key.get(source_lib.tails(text)[0], [])
    if len(names) > 1:
      raise row.error(
        f"video {tables.shown(text)} may be {tables.shown_list(names, 3)}; say which."
      )
    if not names:
      unknown.append(text)
    elif names[0] in found:
      raise row.error(f"the same video as row {found[names[0]].number}; remove one of them.")
    else:
      found[names[0]] = row
  if not found:
    raise UserError(
      f"{path}: none of its videos ({tables.shown_list(unknown, 3)}) is one of these: "
      f"{tables.shown_list(clips, 5)}; mend the column video."
    )
  return found, unknown


def of_headers(source):
  """Adds what DICOM headers say of patients and days to a source's clips, where nobody else does.

  Raises:
    UserError: a file is damaged.
  """
  for name, clip in source.clips.items():
    if source.header(name).format == "dicom":
      patient, day = dicom.subject(clip.path)
      source.clips[name] = dataclasses.replace(
        clip, patient=clip.patient or tables.normal(patient), day=clip.day or day
      )


def gather(clips, *, table=None, patient_pattern=None, day_pattern=None, view_pattern=None):
  """Finds patient, day and view of each clip, and what else a table says of it.

  A table comes before a pattern, and a pattern before what the source says. Dates become days since
  the patient's first.

  Args:
    clips: a dict of `Clip` by name.
    table: a CSV with the column `video` and any of `COLUMNS`; None: there is none.
    patient_pattern: a regular expression that finds the patient in a clip's name.
    day_pattern: likewise the day, a whole number or a date.
    view_pattern: likewise the view.

  Returns:
    A dict of cells by column for each clip, and lines for the user. `patient` is '' where nobody
    says.

  Raises:
    UserError: a pattern finds nothing, or a table or day cannot be read.
  """
  rows, unknown = _read_table(table, clips) if table is not None else ({}, [])
  patterns = {"patient": patient_pattern, "day": day_pattern, "view": view_pattern}
  facts, others = {}, {}
  for name, clip in clips.items():
    cells = {column: "" for column in COLUMNS} | {"split": clip.split}
    for column, pattern in patterns.items():
      cells[column] = getattr(clip, column)
      if name in rows and rows[name].cells.get(column):
        continue
      if pattern is not None:
        cells[column] = group(pattern, name, f"--{column}-pattern")
    if name in rows:
      row = rows[name]
      cells |= {column: row.text(column) for column in COLUMNS if row.cells.get(column)}
    if cells["view"]:
      cells["view"] = cells["view"].strip().upper()
      if cells["view"] not in manifest.VIEWS:
        others[cells["view"]] = None
        cells["view"] = ""
    facts[name] = cells
  notes = _count_days(facts, clips)
  _check_splits(facts)
  if others:
    notes.append(
      f"Views left out, as they are none of {', '.join(manifest.VIEWS)}: "
      f"{tables.shown_list(others, 5)}."
    )
  if unknown:
    notes.append(f"{table}: {len(unknown)} row(s) name no clip: {tables.shown_list(unknown, 5)}.")
  without = [name for name in clips if name not in rows]
  if unknown and any(facts[name]["patient"] for name in rows):
    lacking = [name for name in without if not facts[name]["patient"]]
    if lacking:
      raise UserError(
        f"{table}: video {tables.shown_list(unknown, 3)} is none of the clips, and {len(lacking)} "
        f"clip(s) have no row and no patient ({tables.shown_list(lacking, 3)}); mend the names, or "
        "add rows."
      )
  if rows and without:
    notes.append(f"{table} has no row for {len(without)}: {tables.shown_list(without, 5)}.")
  return facts, notes


def _check_splits(facts):
  """Refuses splits of some clips only, or of which a patient is on two sides (`UserError`)."""
  lacking = [name for name, cells in facts.items() if not cells["split"]]
  if 0 < len(lacking) < len(facts):
    raise UserError(
      f"Nobody says which split {len(lacking)} clip(s) are of, as {lacking[0]}, but of others it "
      "is said; say it of all or none (folders, --table)."
    )
  first = {}
  for name, cells in facts.items():
    other = first.setdefault(cells["patient"] or name, name)
    if facts[other]["split"] != cells["split"]:
      raise UserError(
        f"{other} and {name} are both of patient {tables.shown(cells['patient'])}, but one is in "
        f"{facts[other]['split']} and one in {cells['split']}; a patient belongs on one side: mend "
        "--table, or leave the split out."
      )


def _count_days(facts, clips):
  """Turns dates into days since the patient's first; returns lines for the user."""
  first, numbered, unknown = {}, {}, []
  for cells in facts.values():
    date = _date(cells["day"])
    if date is not None:
      patient = cells["patient"]
      first[patient] = min(first.get(patient, date), date)
  for name, cells in facts.items():
    text = cells["day"].strip()
    date = _date(text)
    if text and cells["patient"]:
      other, is_date = numbered.setdefault(cells["patient"], (name, date is not None))
      if is_date != (date is not None):
        raise UserError(
          f"The days of {other} and {name}, both of patient {tables.shown(cells['patient'])}, are "
          "a date and a number, which do not count from the same day; say both in one way "
          "(--table, --day-pattern)."
        )
    if date is not None:
      if cells["patient"]:
        cells["day"] = str((date - first[cells["patient"]]).days)
      else:
        cells["day"] = ""
        unknown.append(name)
    elif text:
      day = tables.parse_number(text, int, decimal_comma=False)
      if not 0 <= day <= _MOST_DAYS:
        raise UserError(
          f"The day of {clips[name].path} is {tables.shown(text)}, neither a whole number up to "
          f"{_MOST_DAYS} nor a date as 2024-03-01; mend --day-pattern or --table."
        )
      cells["day"] = str(int(day))
  if not unknown:
    return []
  return [
    f"Dates left out, as nobody says whose first they would count from: of {len(unknown)} clip(s) "
    f"({tables.shown_list(unknown, 5)})."
  ]
