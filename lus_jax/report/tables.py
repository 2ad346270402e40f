"""Tables as text, CSV and cells of the page, made from results files alone."""

import csv
import dataclasses
import functools
import io
import json
import re
from typing import Any

# Table 1 of arXiv 2508.15635 (private data): context beside our figures, never a pass mark.
REPORTED = {
  0.0: {"iou": 0.597, "weighted_ce": 0.055, "ce": 0.177, "trimap": 0.099},
  0.2: {"iou": 0.535, "weighted_ce": 0.022, "ce": 0.075, "trimap": 0.067},
  0.4: {"iou": 0.478, "weighted_ce": 0.022, "ce": 0.053, "trimap": 0.039},
  0.5: {"iou": 0.424, "weighted_ce": 0.024, "ce": 0.051, "trimap": 0.037},
  0.6: {"iou": 0.432, "weighted_ce": 0.018, "ce": 0.050, "trimap": 0.029},
  0.8: {"iou": 0.351, "weighted_ce": 0.022, "ce": 0.059, "trimap": 0.032},
  1.0: {"iou": 0.131, "weighted_ce": 0.007, "ce": 0.103, "trimap": 0.007},
}
# The reported figures stand beside a data set of these classes only.
PAPER_CLASSES = {
  "sharp_pleura",
  "fuzzy_pleura",
  "fascia_band",
  "a_line",
  "sub_a_line",
  "vertical_line",
}
_COLUMNS = {"iou": "IoU", "weighted_ce": "WeightedCE", "ce": "CE", "trimap": "Trimap"}
_REPORTED_NOTE = (
  "[P]: figures reported in arXiv 2508.15635 on its private data; context, not a target."
)
_MORE = {"dice": "Dice", "iou_at_best_cut": "IoU best cut", "ece": "ECE"}


def number(value):
  """Three decimals; a dash where undefined."""
  return "-" if value is None else f"{value:.3f}"


def percent(threshold):
  """A threshold as the paper prints it: 60%, and > 0% for 0."""
  return "> 0%" if threshold == 0 else f"{100 * threshold:g}%"


def text_table(header, rows):
  """Right-aligned columns under a header; `None` in place of a row draws a line."""
  widths = [
    max(len(str(row[i])) for row in [header, *filter(None, rows)]) for i in range(len(header))
  ]
  line = "-" * (sum(widths) + 2 * (len(widths) - 1))
  lines = [
    line if row is None else "  ".join(str(x).rjust(w) for x, w in zip(row, widths, strict=True))
    for row in [header, None, *rows]
  ]
  return "\n".join(lines)


def segmentation(results):
  """Table 1 from `results/segmentation.json`: models, then baselines, the paper's figures beside.

  Returns:
    Text of several lines.
  """
  with_seed = len({row["seed"] for row in results["rows"]}) > 1
  header = ["model", "threshold", *(["seed"] if with_seed else []), "best epoch"]
  header += [*_COLUMNS.values(), *_MORE.values()]
  beside = set(results["dataset"]["classes"]) == PAPER_CLASSES
  if beside:
    header += ["|"] + [f"[P] {name}" for name in _COLUMNS.values()]

  def line(name, row, reported):
    seed = [row.get("seed", "")] if with_seed else []
    return [
      name,
      percent(row["threshold"]),
      *seed,
      row.get("best_epoch") or "",
      *(number(row.get(key)) for key in [*_COLUMNS, *_MORE]),
      *(["|"] + [number(reported[key]) if reported else "" for key in _COLUMNS] if beside else []),
    ]

  rows = [line("FPN", row, REPORTED.get(row["threshold"])) for row in results["rows"]]
  for name in dict.fromkeys(row["predictor"] for row in results["predictors"]):
    rows.append(None)
    rows += [line(name, r, None) for r in results["predictors"] if r["predictor"] == name]
  sizes = ", ".join(f"{n} {name}" for name, n in results["dataset"]["splits"].items())
  return "\n".join(
    [
      f"Table 1. Segmentation of {results['dataset']['name']} ({sizes} frames), on the test split.",
      text_table(header, rows),
      "IoU and WeightedCE are at the model's own threshold, so rows do not compare by them alone.",
      *([_REPORTED_NOTE] if beside else []),
      *(f"Note: {note}" for note in results["notes"]),
    ]
  )


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
class Table:
  """A table of the page and of a CSV file.

  Attributes:
    name: of the CSV file, without its ending.
    header: column names.
    rows: lists of `Value` or str; the first of a row names it.
  """

  name: str
  header: list[str]
  rows: list[list[Value | str]]

  def csv(self):
    """The table as CSV text with full precision; undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(self.header)
    for row in self.rows:
      writer.writerow([cell.value if isinstance(cell, Value) else cell for cell in row])
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


def count(integer):
  """An integer, or a dash where undefined."""
  return "-" if integer is None else f"{integer:d}"


def _threshold(files, name, *path):
  return value(files, name, *path, show=percent)


def _reported(threshold, key):
  figure = REPORTED.get(threshold, {}).get(key)
  return "" if figure is None else Value(f"reported#/{threshold}/{key}", figure, number(figure))


def _has_seeds(rows):
  return len({row.get("seed") for row in rows}) > 1


def _names(files, name, i, *, with_seed):
  seed = [value(files, name, "rows", i, "seed", show=count)] if with_seed else []
  return [_threshold(files, name, "rows", i, "threshold"), *seed]


def _scores(files, name, columns, *, reported=(), best_epoch=False):
  content = files["segmentation"]
  with_seed = _has_seeds(content["rows"])
  header = ["model", "threshold", *(["seed"] if with_seed else [])]
  header += [*(["best epoch"] if best_epoch else []), *columns.values()]
  rows = []
  for part, first in (("rows", "FPN"), ("predictors", None)):
    for i, row in enumerate(content[part]):
      at = (files, "segmentation", part, i)
      counts = [*(["seed"] if with_seed else []), *(["best_epoch"] if best_epoch else [])]
      rows.append(
        [
          first or row["predictor"],
          _threshold(*at, "threshold"),
          *(value(*at, key, show=count) if key in row else "" for key in counts),
          *(value(*at, key) if key in row else "" for key in columns),
          *(_reported(row["threshold"], key) if first else "" for key in reported),
        ]
      )
  return Table(name, header + [f"paper: {_COLUMNS[key]}" for key in reported], rows)


def scores(files):
  """Table 1 of the page: models, then baselines; the paper's figures beside its own classes."""
  beside = set(files["segmentation"]["dataset"]["classes"]) == PAPER_CLASSES
  return _scores(files, "scores", _COLUMNS, reported=_COLUMNS if beside else (), best_epoch=True)


def more_scores(files):
  """What Table 1 has no room for."""
  columns = {"weighted_ce_ref": "WeightedCE ref.", **_MORE, "surface_dice": "Surface Dice"}
  return _scores(files, "more_scores", columns)


def per_class(files):
  """IoU of every member by class, and in how many frames a class was on neither side."""
  rows, with_seed = files["segmentation"]["rows"], _has_seeds(files["segmentation"]["rows"])
  classes = files["segmentation"]["dataset"]["classes"]
  header = ["threshold", *(["seed"] if with_seed else [])]
  header += [*classes, *(f"frames without {name}" for name in classes)]
  return Table(
    "scores_per_class",
    header,
    [
      [
        *_names(files, "segmentation", i, with_seed=with_seed),
        *(value(files, "segmentation", "rows", i, "iou_per_class", name) for name in classes),
        *(
          value(files, "segmentation", "rows", i, "empty_skipped", name, show=count)
          for name in classes
        ),
      ]
      for i in range(len(rows))
    ],
  )


_CALIBRATION = {
  "ece": "ECE",
  "ece_near": "ECE near",
  "ece_pooled": "ECE pooled",
  "brier": "Brier",
  "brier_near": "Brier near",
  "ece_visibility": "ECE visibility",
  "ece_visibility_near": "ECE visibility near",
}


def calibration(files):
  """Calibration errors of every member."""
  rows, with_seed = files["segmentation"]["rows"], _has_seeds(files["segmentation"]["rows"])
  keys = [key for key in _CALIBRATION if any(key in row for row in rows)]
  return Table(
    "calibration",
    ["threshold", *(["seed"] if with_seed else []), *(_CALIBRATION[key] for key in keys)],
    [
      [
        *_names(files, "segmentation", i, with_seed=with_seed),
        *(value(files, "segmentation", "rows", i, key) for key in keys),
      ]
      for i in range(len(rows))
    ],
  )


def reliability(files):
  """The points of the reliability curves, for the CSV file."""
  rows = []
  for i, row in enumerate(files["segmentation"]["rows"]):
    for name, curve in row["reliability"].items():
      for j in range(len(curve["count"])):
        at = (files, "segmentation", "rows", i, "reliability", name)
        points = [value(*at, key, j) for key in ("count", "probability", "target")]
        rows.append([str(row["threshold"]), str(row["seed"]), name, str(j + 1), *points])
  header = ["threshold", "seed", "class", "bin", "pixels", "mean probability", "mean target"]
  return Table("reliability", header, rows)


def matrix(files):
  """Model threshold by evaluation threshold: IoU and Dice."""
  name = "segmentation_matrix"
  rows = files[name]["rows"]
  with_seed = _has_seeds(rows)
  return Table(
    "matrix",
    ["model threshold", *(["seed"] if with_seed else []), "evaluation threshold", "IoU", "Dice"],
    [
      [
        _threshold(files, name, "rows", i, "model_threshold"),
        *([value(files, name, "rows", i, "seed", show=count)] if with_seed else []),
        _threshold(files, name, "rows", i, "evaluation_threshold"),
        value(files, name, "rows", i, "iou"),
        value(files, name, "rows", i, "dice"),
      ]
      for i in range(len(rows))
    ],
  )


def history(files):
  """Every epoch of every member, for the CSV file."""
  header = {
    "member": "member",
    "epoch": "epoch",
    "train_loss": "training loss",
    "loss": "validation loss",
    "score": "validation IoU",
  }
  return Table(
    "history",
    list(header.values()),
    [
      [value(files, "history", "rows", i, key, show=str) for key in header]
      for i in range(len(files["history"]["rows"]))
    ],
  )


_PROVENANCE = ("patient", "video", "frame", "annotator", "view", "day")


def cases(files):
  """Where every test frame comes from and its IoU, a column a member, for the CSV file."""
  rows = files["cases"]["rows"]
  members = list(rows[0]["iou"])
  known = [key for key in _PROVENANCE if key in rows[0]]
  return Table(
    "cases",
    ["index", *known, *(f"IoU {member_label(name)}" for name in members)],
    [
      [
        *(value(files, "cases", "rows", i, key, show=str) for key in ("index", *known)),
        *(value(files, "cases", "rows", i, "iou", name) for name in members),
      ]
      for i in range(len(rows))
    ],
  )


def origin(files, index):
  """What is known of where a test frame comes from: pairs of a word and a `Value`."""
  row = files["cases"]["rows"][index]
  known = [key for key in _PROVENANCE if row.get(key) not in (None, "", -1)]
  return [(key, value(files, "cases", "rows", index, key, show=str)) for key in known]


def member_label(name):
  """'60%' or '60%, seed 1' from a member's name; another name stays as it is."""
  match = re.fullmatch(r"threshold_([\d.e-]+)(?:_seed_(\d+))?", name)
  if match is None:
    return name
  return percent(float(match[1])) + (f", seed {match[2]}" if match[2] else "")


def data_set(files):
  """Patients, videos and frames of every split, and how many frames show each class."""
  rows = files["dataset"]["rows"]
  keys, classes = ("patients", "videos", "frames"), list(rows[0]["frames_with"])
  return Table(
    "dataset",
    ["split", *keys, *(f"frames with {name}" for name in classes)],
    [
      [
        row["split"],
        *(value(files, "dataset", "rows", i, key, show=count) for key in keys),
        *(value(files, "dataset", "rows", i, "frames_with", name, show=count) for name in classes),
      ]
      for i, row in enumerate(rows)
    ],
  )


def painted(files):
  """Painted pixels by split, annotator, class and confidence, for the CSV file."""
  rows = []
  for i, row in enumerate(files["dataset"]["rows"]):
    for annotator, by_class in row["painted"].items():
      for name, bins in by_class.items():
        for j in range(len(bins)):
          edges = f"({100 * j / len(bins):g}, {100 * (j + 1) / len(bins):g}]"
          at = (files, "dataset", "rows", i, "painted", annotator, name, j)
          rows.append([row["split"], annotator, name, edges, value(*at, show=count)])
  return Table("painted", ["split", "annotator", "class", "confidence, %", "pixels"], rows)


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
