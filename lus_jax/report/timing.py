"""Where a run's time went, on the page."""

import numpy as np

from lus_jax import timing
from lus_jax.report import cells, figures

NAME = timing.NAME
# It is made while the page is.
_LEFT_OUT = "report"


def seconds(value):
  """Seconds to a tenth."""
  return f"{value:,.1f}"


def _places(content):
  """The place of each row by part and run, and of each of `runs` by name, in their order."""
  runs = {x["run"]: i for i, x in enumerate(content["runs"]) if x["run"] != _LEFT_OUT}
  rows = {(x["part"], x["run"]): i for i, x in enumerate(content["rows"]) if x["run"] in runs}
  parts = dict.fromkeys((*timing.PARTS, *(part for part, _ in rows)))
  return rows, runs, [part for part in parts if any((part, run) in rows for run in runs)]


def table(files):
  """Seconds of every part, a column a run."""
  rows, runs, parts = _places(files[NAME])

  def cell(*path):
    return cells.value(files, NAME, *path, "seconds", show=seconds)

  lines = [
    [part, *(cell("rows", rows[part, run]) if (part, run) in rows else "" for run in runs)]
    for part in parts
  ]
  lines.append(["all", *(cell("runs", i) for i in runs.values())])
  return cells.Table(NAME, ["seconds", *runs], lines, (len(parts),))


def continued(files):
  """Of the runs that were stopped and went on: names, and in how many sittings they ran."""
  _, runs, _ = _places(files[NAME])
  return [
    (run, cells.value(files, NAME, "runs", i, "sittings", show=cells.count))
    for run, i in runs.items()
    if files[NAME]["runs"][i]["sittings"] > 1
  ]


def bars(content):
  """The bytes of the figure: a bar a run, divided into its parts.

  Args:
    content: of timing.json.
  """
  rows, runs, parts = _places(content)

  def seconds_of(part, run):
    i = rows.get((part, run))
    return 0 if i is None else max(0, content["rows"][i]["seconds"])

  values = np.array([[seconds_of(part, run) for run in runs] for part in parts])
  return figures.render(figures.times, list(runs), parts, values)
