"""The page's section of who painted what: counts, tools, and how confidences are distributed."""

from lus_jax.report import cells, figures

NAME = "annotators"


def is_shown(files):
  """Whether the run says who painted what: it does of several annotators, and of known work."""
  return bool(files.get("dataset", {}).get(NAME))


def _name(row):
  return row["annotator"] or "not named"


def _text(value):
  return "-" if value is None else value


# Of a row, by key: its column, and how it is printed.
_COLUMNS = {
  "labels": ("labels", cells.count),
  "used": ("used", cells.count),
  "consensus": ("consensus", cells.count),
  "prelabelled": ("pre-labelled", cells.count),
  "touched": ("touched", cells.count),
  "untouched": ("untouched", cells.count),
  "seconds": ("seconds", cells.count),
  "timed": ("timed", cells.count),
  "median_seconds": ("median seconds", cells.count),
  "first": ("first day", _text),
  "last": ("last day", _text),
}


def work(files):
  """A row an annotator: labels, where they come from, and how long they took."""
  rows = files["dataset"][NAME]
  keys = [key for key in _COLUMNS if all(key in row for row in rows)]
  return cells.Table(
    NAME,
    ["annotator", *(_COLUMNS[key][0] for key in keys)],
    [
      [
        _name(row),
        *(cells.value(files, "dataset", NAME, i, key, show=_COLUMNS[key][1]) for key in keys),
      ]
      for i, row in enumerate(rows)
    ],
  )


def tools(files):
  """A row for each tool, protocol and model that an annotator painted with; None: not known."""
  rows, keys = files["dataset"].get("tools", []), ("tool", "protocol", "prelabel")
  if not any(row[key] for row in rows for key in keys):
    return None
  return cells.Table(
    f"{NAME}_tools",
    ["annotator", "tool", "protocol", "pre-labels of", "labels"],
    [
      [
        _name(row),
        *(cells.value(files, "dataset", "tools", i, key, show=_text) for key in keys),
        cells.value(files, "dataset", "tools", i, "labels", show=cells.count),
      ]
      for i, row in enumerate(rows)
    ],
  )


def painted(files):
  """Pixels by annotator, class and confidence, of what hands painted, for the CSV file."""
  rows = []
  for i, row in enumerate(files["dataset"][NAME]):
    for one, bins in row["painted"].items():
      for j in range(len(bins)):
        edges = f"({100 * j / len(bins):g}, {100 * (j + 1) / len(bins):g}]"
        at = (files, "dataset", NAME, i, "painted", one, j)
        rows.append([_name(row), one, edges, cells.value(*at, show=cells.count)])
  return cells.Table(f"{NAME}_painted", ["annotator", "class", "confidence, %", "pixels"], rows)


def figure(files):
  """How each annotator's confidences are distributed: a dict of bytes by file suffix."""
  content = files["dataset"]
  named = [(_name(row), row["painted"]) for row in content[NAME]]
  return figures.render(figures.confidences, named, content["dataset"]["classes"])


def facts(files):
  """What the section says in words: labels left out by reason, and what is known of them.

  Returns:
    A dict: `left_out` (pairs of a reason and `Value`s by split), `with_work` (whether it is known
    how masks came to be).
  """
  rows = files["dataset"]["rows"]
  reasons = dict.fromkeys(why for row in rows for why in row.get("left_out", {}))
  return {
    "with_work": "untouched" in files["dataset"][NAME][0],
    "left_out": [
      (
        why,
        [
          (
            row["split"],
            cells.value(files, "dataset", "rows", i, "left_out", why, show=cells.count),
          )
          for i, row in enumerate(rows)
          if why in row.get("left_out", {})
        ],
      )
      for why in reasons
    ],
  }
