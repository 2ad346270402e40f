"""Tables as text, CSV and cells of the page."""

import csv
import dataclasses
import functools
import io
import json
from typing import Any

from lus_jax.files import plain_cell


def number(value):
  """Three decimals, or three figures of a large one; a dash where undefined."""
  return "-" if value is None else f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def pixels(value):
  """A distance: one decimal; a dash where undefined."""
  return "-" if value is None else f"{value:.1f}"


def percent(threshold):
  """A threshold as the paper prints it: 60%, and > 0% for 0."""
  return "> 0%" if threshold == 0 else f"{100 * threshold:g}%"


def source(threshold):
  """What fills the segmentation channels: a threshold as `percent`, or none, or the truth."""
  return {"none": "video only", "true": "true masks"}.get(threshold) or percent(threshold)


def text_table(header, rows):
  """Right-aligned columns under a header; `None` in place of a row draws a line."""
  widths = [
    max(len(str(row[i])) for row in [header, *filter(None, rows)]) for i in range(len(header))
  ]
  line = "-" * (sum(widths) + 2 * (len(widths) - 1))
  lines = [
    line
    if row is None
    else "  ".join(str(x).rjust(w) for x, w in zip(row, widths, strict=True)).rstrip()
    for row in [header, None, *rows]
  ]
  return "\n".join(lines)


def probability(p):
  """Three decimals, but never 0; a dash where undefined."""
  return "< 0.001" if p is not None and p < 0.001 else number(p)


@dataclasses.dataclass(frozen=True)
class Value:
  """A number on the page and where it stands in the results files.

  Attributes:
    at: '<file>#<JSON pointer>', as 'segmentation.json#/rows/0/iou'.
    value: what stands there.
    text: how it is printed.
  """

  at: str
  value: Any
  text: str


@dataclasses.dataclass(frozen=True)
class Cells:
  """Several numbers in one cell of the page; in the CSV file each has a column.

  Attributes:
    parts: `Value`s and what stands between them.
  """

  parts: list[Value | str]


@dataclasses.dataclass(frozen=True)
class Column:
  """The header of a column of `Cells`.

  Attributes:
    title: on the page.
    names: of the CSV file's columns, after the title.
  """

  title: str
  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the page and of a CSV file.

  Attributes:
    name: of the CSV file, without its ending.
    header: column names: str or `Column`.
    rows: lists of `Value` or str, or `Cells` in a `Column`; the first of a row names it.
    groups: indices of the rows that have a line above.
  """

  name: str
  header: list[str | Column]
  rows: list[list[Value | Cells | str]]
  groups: tuple[int, ...] = ()

  def csv(self):
    """The table as CSV text with full precision; undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [(h.title, h.names) if isinstance(h, Column) else (h, ("",)) for h in self.header]
    header = [f"{title}, {x}" if x else title for title, parts in names for x in parts]
    writer.writerow(map(plain_cell, header))
    for row in self.rows:
      line = []
      for cell, (_, parts) in zip(row, names, strict=True):
        if isinstance(cell, str):
          found = [cell]
        else:
          inside = cell.parts if isinstance(cell, Cells) else [cell]
          found = [x.value for x in inside if isinstance(x, Value)]
        line += found + [""] * (len(parts) - len(found))
      writer.writerow(map(plain_cell, line))
    return text.getvalue()


def value(files, name, *path, show=number):
  """The `Value` at a path of a results file.

  Args:
    files: contents of the results files by name.
    name: one of them.
    *path: keys and indices from its top.
    show: makes text of it.

  Raises:
    KeyError, IndexError, TypeError: the file holds no such path.
  """
  content = functools.reduce(lambda at, key: at[key], path, files[name])
  # RFC 6901: class names may hold any character.
  pointer = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in path)
  return Value(f"{name}.json#{pointer}", content, show(content))


def interval(*at, key, show=number, before=" ["):
  """The parts of `Cells` of the number under a key and the interval beside it, where there is one.

  Args:
    *at: of both, as `value` takes it.
    key: of the number.
    show: makes text of a number.
    before: what stands between the number and the interval.
  """
  first = value(*at, key, show=show)
  if value(*at, "interval", show=str).value is None:
    return [first]
  low, high = (value(*at, "interval", k, show=show) for k in (0, 1))
  return [first, before, low, ", ", high, "]"]


def count(integer):
  """An integer, or a dash where undefined."""
  return "-" if integer is None else f"{integer:d}"


def settings(files, name, part):
  """`config` or `versions` of a results file, a row a field."""

  def flatten(content, *path):
    if isinstance(content, dict):
      for key, inner in content.items():
        yield from flatten(inner, *path, key)
    else:
      yield [".".join(path), value(files, name, part, *path, show=_setting)]

  return Table(part, ["setting", "value"], list(flatten(files[name][part])))


def _setting(content):
  return content if isinstance(content, str) else json.dumps(content)
