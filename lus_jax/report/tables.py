"""Tables as text, CSV and cells of the page, made from results files alone."""

import csv
import dataclasses
import functools
import io
import json
import re
from typing import Any

from lus_jax.files import plain_cell
from lus_jax.words import many, plural

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
# Its Tables 2 to 4: mean and standard deviation over five folds.
REPORTED_TASKS = {
  "sf_change": {
    0.0: {"accuracy3": (0.362, 0.033), "accuracy2": (0.497, 0.055)},
    0.2: {"accuracy3": (0.360, 0.049), "accuracy2": (0.531, 0.061)},
    0.4: {"accuracy3": (0.363, 0.031), "accuracy2": (0.515, 0.057)},
    0.5: {"accuracy3": (0.333, 0.022), "accuracy2": (0.501, 0.025)},
    0.6: {"accuracy3": (0.348, 0.033), "accuracy2": (0.515, 0.504)},
    0.8: {"accuracy3": (0.339, 0.049), "accuracy2": (0.504, 0.057)},
    1.0: {"accuracy3": (0.327, 0.051), "accuracy2": (0.511, 0.051)},
  },
  "sf_ratio": {
    threshold: dict(zip(("rmse_max", "rmse_mean", "rmse_median"), figures, strict=True))
    for threshold, figures in {
      0.0: ((0.3506, 0.0567), (0.3964, 0.0568), (0.3918, 0.0548)),
      0.2: ((0.3708, 0.0580), (0.4284, 0.0641), (0.4190, 0.0641)),
      0.4: ((0.3644, 0.0136), (0.4188, 0.0112), (0.4090, 0.0123)),
      0.5: ((0.3644, 0.0245), (0.4186, 0.0245), (0.4078, 0.0225)),
      0.6: ((0.2902, 0.0496), (0.3604, 0.0533), (0.3506, 0.0526)),
      0.8: ((0.3468, 0.0439), (0.4076, 0.0550), (0.3948, 0.0531)),
      1.0: ((0.3270, 0.0432), (0.3822, 0.0362), (0.3750, 0.0389)),
    }.items()
  },
  "readmission": {
    threshold: dict(zip(("accuracy", "recall", "precision"), figures, strict=True))
    for threshold, figures in {
      0.0: ((0.450, 0.209), (0.400, 0.418), (0.333, 0.312)),
      0.2: ((0.550, 0.209), (0.500, 0.354), (0.567, 0.365)),
      0.4: ((0.400, 0.137), (0.600, 0.418), (0.367, 0.217)),
      0.5: ((0.550, 0.112), (0.700, 0.274), (0.533, 0.075)),
      0.6: ((0.750, 0.177), (0.900, 0.224), (0.768, 0.224)),
      0.8: ((0.700, 0.274), (0.800, 0.274), (0.700, 0.274)),
      1.0: ((0.700, 0.209), (0.800, 0.274), (0.667, 0.204)),
    }.items()
  },
}
# Printed so; the sd of an accuracy this even cannot be that large.
SIC = ("sf_change", 0.6, "accuracy2")
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
_OWN_NOTE = (
  "IoU and WeightedCE are at the model's own threshold, so rows do not compare by them alone."
)
_TASK_NOTE = "+- is the sd over folds (training variability), not an uncertainty over patients."
_ROTATED_NOTE = (
  "+- is the sd over folds, which test other patients: not an uncertainty over patients."
)
_INTERVAL_NOTE = (
  "[ ]: over all test patients, folds averaged in each, with the 95% interval over patients, one "
  "at a time; every fold has one training seed, and what another would change is not in it."
)
_MORE = {"dice": "Dice", "iou_at_best_cut": "IoU best cut", "ece": "ECE"}


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
  splits = results["dataset"]["splits"]
  sizes = ", ".join(f"{n} {name}" for name, n in splits.items())
  sizes += f" {many(list(splits.values())[-1], 'frame')}"
  return "\n".join(
    [
      f"Table 1. Segmentation of {results['dataset']['name']} ({sizes}), on the test split.",
      text_table(header, rows),
      *([_OWN_NOTE] if len(results["config"]["sweep"]["thresholds"]) > 1 else []),
      *(f"Note: {line}." for line in remarks(results)),
      *([_REPORTED_NOTE] if beside else []),
      *(f"Note: {note}" for note in results["notes"]),
    ]
  )


def absent_classes(rows):
  """Classes that no test label shows, and at which thresholds, from rows of segmentation.json.

  Returns:
    A dict from a class to a sorted list of thresholds; empty for runs that do not say.
  """
  found = {}
  for row in sorted(rows, key=lambda row: row["threshold"]):
    for name, n in row.get("label_images", {}).items():
      if not n and row["threshold"] not in found.setdefault(name, []):
        found[name].append(row["threshold"])
  return {name: thresholds for name, thresholds in found.items() if thresholds}


def output_of(row):
  """'constant' or 'empty' where a model puts out one number everywhere or nothing from .5 on."""
  classes = row.get("predicted_share_per_class")
  if classes is None:
    return None
  if set(row["constant_classes"]) == set(classes):
    return "constant"
  return "empty" if not any(classes.values()) else None


OUTPUTS = {
  "constant": "puts out the same number at every pixel of the test split",
  "empty": "draws nothing: no probability of the test split reaches .5",
}


def remarks(content):
  """What the scores of segmentation.json cannot show by themselves, in words without full stops."""
  thresholds = {row["threshold"] for row in content["rows"]}
  for name, absent in absent_classes(content["rows"]).items():
    at = "" if set(absent) == thresholds else f" at {', '.join(map(percent, absent))}"
    yield f"no test label shows {name}{at}: it counts for no model and no baseline there"
  for row in content["rows"]:
    if (output := output_of(row)) is not None:
      seed = f", seed {row['seed']}" if len({r["seed"] for r in content["rows"]}) > 1 else ""
      yield f"the model of {percent(row['threshold'])}{seed} {OUTPUTS[output]}"


RATER_SCORES = {
  "qubiq": "QUBIQ",
  "qubiq_leave_one_out": "QUBIQ, one out",
  "dice_vs_raters": "Dice vs raters",
  "dice_vs_consensus": "Dice vs consensus",
  "ged": "GED",
  "ece": "ECE",
  "brier": "Brier",
}
# What the people's scores are called in the results file, by column.
HUMAN_SCORES = {
  "qubiq_leave_one_out": "qubiq_leave_one_out",
  "dice_vs_raters": "dice_vs_others",
  "dice_vs_consensus": "dice_vs_consensus",
}


def rater_scores(content):
  """Columns of the raters' table: those of `RATER_SCORES` that the run has."""
  rows = content["rows"]
  return {key: title for key, title in RATER_SCORES.items() if all(key in row for row in rows)}


def unpainted(content):
  """Classes that no rater painted in any test image, from raters.json."""
  rows = content["rows"][:1]
  return [name for row in rows for name, n in row.get("painted_images", {}).items() if not n]


def has_intervals(content):
  """Whether any row of raters.json has an interval."""
  rows = content["rows"] + content["humans"]
  return any(interval is not None for row in rows for interval in row["intervals"].values())


def raters(content):
  """Networks and people beside several raters, from `results/raters.json`.

  Returns:
    Text of several lines.
  """
  with_intervals = has_intervals(content)

  def lines(name, row, keys):
    """A row of scores, and one of their intervals."""
    intervals = [row["intervals"].get(key) if key else None for key in keys]
    yield [name, *(number(row[key]) if key else "" for key in keys)]
    if with_intervals:
      yield ["", *(f"[{number(x[0])}, {number(x[1])}]" if x else "" for x in intervals)]

  networks, people = content["rows"], content["humans"]
  scores = rater_scores(content)
  rows = [x for row in networks for x in lines(member_label(row["member"]), row, scores)]
  rows.append(None)
  keys = [HUMAN_SCORES.get(key) for key in scores]
  rows += [x for row in people for x in lines(f"human: {row['rater']}", row, keys)]
  if networks:
    keys = [f"human_{key}" if key in HUMAN_SCORES else None for key in scores]
    rows += lines("humans, mean", networks[0], keys)
  n_patients = len({image["patient"] for image in content["images"]})
  judged = content.get("calibration", "none")
  return "\n".join(
    [
      f"Several raters of {content['dataset']['name']} "
      f"({plural(len(content['images']), 'test image')}, {patients(n_patients)}).",
      text_table(["member", *scores.values()], rows),
      "A person is compared with the other persons and with their consensus, a network with all "
      "and with the same consensuses.",
      "[ ]: 95% intervals over patients, one at a time."
      if with_intervals
      else f"No intervals: {patients(n_patients)} {'is' if n_patients == 1 else 'are'} too few.",
      "No test between rows was made: nothing is ranked.",
      *(
        f"No rater painted {name} in any test image: it counts nowhere."
        for name in unpainted(content)
      ),
      *([f"Outputs after calibration ({judged})."] if judged != "none" else []),
    ]
  )


@dataclasses.dataclass(frozen=True)
class Task:
  """What a downstream task's results are called.

  Attributes:
    number: of the paper's table.
    target: the paper's own.
    metrics: names of the table's metrics by key.
    baseline: what the predictor that never looks at a video is called.
    baselines: its metric beside each of the table's.
    more: metrics that the table has beside the paper's, where a run has them.
  """

  number: int
  target: str
  metrics: dict[str, str]
  baseline: str
  baselines: dict[str, str]
  more: dict[str, str] = dataclasses.field(default_factory=dict)


TASKS = {
  "sf_change": Task(
    2,
    "sf_ratio",
    {"accuracy3": "3-class accuracy", "accuracy2": "2-class accuracy"},
    "majority class",
    {"accuracy3": "majority3", "accuracy2": "majority2"},
  ),
  "sf_ratio": Task(
    3,
    "sf_ratio",
    {"rmse_max": "RMSE of max", "rmse_mean": "RMSE of mean", "rmse_median": "RMSE of median"},
    "constant",
    dict.fromkeys(("rmse_max", "rmse_mean", "rmse_median"), "rmse_constant"),
  ),
  "readmission": Task(
    4,
    "readmitted_30d",
    {"accuracy": "accuracy", "recall": "recall", "precision": "precision"},
    "majority class",
    {"accuracy": "majority"},
    {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"},
  ),
}


def shown_metrics(content):
  """The table's metrics by key, in their order."""
  task = TASKS[content["task"]]
  found = content["summary"][0]["metrics"]
  return task.metrics | {key: name for key, name in task.more.items() if key in found}


def as_reported(task, figure):
  """A figure of the paper's Tables 2 to 4, with the decimals it has there."""
  return f"{figure:.{4 if task == 'sf_ratio' else 3}f}"


def is_of_the_papers_target(content):
  """Whether a task is about what the paper predicts."""
  return content["target"] == TASKS[content["task"]].target


def is_the_papers(content):
  """Whether a task's results may have the paper's figures beside them.

  Its target, of changes between two days where it has them, by segmentation models of the same data
  set: of anything else the figures are of another question.
  """
  segmentation = content.get("segmentation") or {}
  return (
    is_of_the_papers_target(content)
    and content["config"].get("days") != "single"
    and segmentation.get("same_data_set") is not False
  )


def baselines(content):
  """The metric of the predictor without a video beside each of the table's metrics."""
  found = TASKS[content["task"]].baselines
  if content["task"] == "sf_ratio" and not is_of_the_papers_target(content):
    # Views of one day may differ in another target; runs from before know the constant's error
    # against their mean alone.
    beside = {"rmse_mean": found["rmse_mean"]}
    beside |= {f"rmse_{name}": f"rmse_constant_{name}" for name in ("max", "median")}
    return {key: name for key, name in beside.items() if name in content["summary"][0]["metrics"]}
  return found


def title(content):
  """What a downstream task asks, in few words."""
  names = {
    "sf_change": "Change of the S/F ratio",
    "sf_ratio": "S/F ratio of a patient-day",
    "readmission": "Readmission within 30 days",
  }
  others = {
    "sf_change": "Change of",
    "sf_ratio": "Estimate of",
    "readmission": "Patients by",
  }
  task = content["task"]
  own = is_of_the_papers_target(content)
  return names[task] if own else f"{others[task]} {target(content)}"


def target(content):
  """What a downstream task is about."""
  return "S/F ratio" if content["target"] == "sf_ratio" else content["target"]


def in_order(summary):
  """Indices of a task's summary rows: thresholds in their order, video only, true masks."""
  last = {"none": 1, "true": 2}
  return sorted(range(len(summary)), key=lambda i: last.get(summary[i]["threshold"], 0))


def decided(content):
  """Comparisons with a corrected p below .05, as (index in summary, index of the comparison).

  None where the test patients are too few to decide anything.
  """
  if not all(row["can_decide"] for row in content["summary"]):
    return None
  return [
    (i, j)
    for i, row in enumerate(content["summary"])
    for j, one in enumerate(row["comparisons"])
    if one["p_holm"] is not None and one["p_holm"] < 0.05
  ]


def patients(n):
  """'1 test patient', '4 test patients'."""
  return plural(n, "test patient")


def _other_domain(content):
  segmentation = content.get("segmentation") or {}
  if segmentation.get("same_data_set") is False:
    yield (
      f"Note: the segmentation models were trained on {segmentation['dataset']}, another data set: "
      "how well they see these frames is not known."
    )


def downstream(content):
  """Tables 2 to 4 from a downstream task's results file, the paper's figures beside its own target.

  Returns:
    Text of several lines.
  """
  task, summary = TASKS[content["task"]], content["summary"]
  metrics = shown_metrics(content)
  beside = REPORTED_TASKS[content["task"]] if is_the_papers(content) else None
  header = ["threshold", *metrics.values()]
  if beside:
    header += ["|"] + [f"[P] {name}" for name in task.metrics.values()]

  as_printed = functools.partial(as_reported, content["task"])

  def spread(pair, show=number):
    return f"{show(pair[0])} +- {show(pair[1])}" if pair else ""

  def line(name, row, keys):
    cells = [row["metrics"][key] if key else None for key in keys]
    reported = (beside or {}).get(row["threshold"], {}) if name is None else {}
    figures = [
      spread(reported.get(key), as_printed)
      + (" (sic)" if reported and (content["task"], row["threshold"], key) == SIC else "")
      for key in task.metrics
    ]
    return [
      name or source(row["threshold"]),
      *(spread((cell["mean"], cell["sd"])) if cell else "" for cell in cells),
      *(["|", *figures] if beside else []),
    ]

  def lines(name, row, keys):
    """A row of means over folds, and one over all test patients with intervals where they are."""
    keys = list(keys)
    yield line(name, row, keys)
    cells = [row["metrics"][key] if key else None for key in keys]
    if any(cell and cell["interval"] for cell in cells):
      empty = ["|", *("" for _ in task.metrics)] if beside else []
      yield ["", *(_with_interval(cell) for cell in cells), *empty]

  rows = [x for i in in_order(summary) for x in lines(None, summary[i], metrics)]
  rows.append(None)
  rows += lines(task.baseline, summary[0], map(baselines(content).get, metrics))
  with_intervals = any(m["interval"] for row in summary for m in row["metrics"].values())
  n, found = patients(summary[0]["n_patients"]), decided(content)
  if found is None:
    verdict = [f"{n} cannot decide: thresholds are not ranked."]
  elif not any(row["comparisons"] for row in summary):
    verdict = ["No thresholds were compared, so none is ranked."]
  elif not found:
    verdict = [
      "No comparison of thresholds has a corrected p below .05: none is called better or worse."
    ]
  else:
    verdict = [f"{comparison(content, i, j)}." for i, j in found]
  # The paper's tables keep its numbers, others go by their name.
  caption = f"Table {task.number}" if beside else f"Table of {content['config']['name']}"
  return "\n".join(
    [
      f"{caption}. {title(content)} ({content['dataset']['name']}): {n}, {folds(content)}.",
      text_table(header, rows),
      _ROTATED_NOTE if rotates(content) else _TASK_NOTE,
      *([_INTERVAL_NOTE] if with_intervals else []),
      *_pooled_share(content),
      *_against_blind(content),
      *verdict,
      *([_REPORTED_NOTE] if beside else []),
      *(f"Left out: {one['count']} {one['what']} ({one['why']})." for one in content["left_out"]),
      *(f"Note: {note}" for note in content["notes"]),
      *_other_domain(content),
    ]
  )


def _with_interval(cell):
  """'0.512 [0.401, 0.622]' of a metric, '' of none or where it has no interval."""
  if not cell or not cell["interval"]:
    return ""
  low, high = map(number, cell["interval"])
  return f"{number(cell['estimate'])} [{low}, {high}]"


def beside_blind(content):
  """Rows whose interval of the difference from the predictor without a video leaves out 0.

  Returns:
    The sources that are better by it and those that are worse, or None where no row has an
    interval.
  """
  task = TASKS[content["task"]]
  lower_wins = content["primary"].startswith("rmse")
  better, worse, has_interval = [], [], False
  for i in in_order(content["summary"]):
    row = content["summary"][i]
    for one in row["differences"]:
      interval = one["interval"]
      if one["against"] != task.baselines[content["primary"]] or interval is None:
        continue
      has_interval = True
      if interval[0] > 0 or interval[1] < 0:
        wins = (interval[1] < 0) == lower_wins
        (better if wins else worse).append(source(row["threshold"]))
  return (better, worse) if has_interval else None


def _against_blind(content):
  for names, side in zip(beside_blind(content) or (), ("better", "worse"), strict=False):
    if names:
      yield (
        f"The 95% interval of the difference in {primary(content)} from the "
        f"{TASKS[content['task']].baseline}, which looks at no video, lies on the {side} side of 0 "
        f"for: {', '.join(names)}."
      )


def _pooled_share(content):
  """How common the most frequent class is among all tested, where the training's is misleading."""
  matrix = content["confusion"][0]["matrix"] if content.get("confusion") else []
  total = sum(map(sum, matrix))
  if rotates(content) and total:
    yield (
      "The majority class is that of the training patients. The more of it they have, the fewer a "
      f"rotating test fold has, so this bar may be low: {max(map(sum, matrix)) / total:.3f} of all "
      "that were tested are of their most frequent class."
    )


def rotates(content):
  """Whether every fold tests patients of its own."""
  return content["config"].get("folds", {}).get("cv") == "rotate"


def folds(content):
  """'5 folds', and that each tests other patients where that is so."""
  n = content["summary"][0]["n_folds"]
  return plural(n, "fold") + (", each the test once" if rotates(content) else "")


def comparison(content, i, j):
  """Which of two thresholds has the higher primary metric, and the corrected p, in words."""
  row = content["summary"][i]
  one = row["comparisons"][j]
  return (
    f"{source(row['threshold'])} has a {direction(one)} {primary(content)} than "
    f"{source(one['against'])} (corrected p {probability(one['p_holm'])})"
  )


def direction(one):
  """'higher' or 'lower', of a comparison's difference."""
  return "higher" if one["difference"] > 0 else "lower"


def primary(content):
  """The name of a task's primary metric."""
  return TASKS[content["task"]].metrics[content["primary"]]


def score(content):
  """What a task's history calls score: higher is better, so of errors the negative."""
  return ("minus " if content["task"] == "sf_ratio" else "") + primary(content)


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
  header += [f"paper: {_COLUMNS[key]}" for key in reported]
  groups = tuple(i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0])
  return Table(name, header, rows, groups)


def scores(files):
  """Table 1 of the page: models, then baselines; the paper's figures beside its own classes."""
  beside = set(files["segmentation"]["dataset"]["classes"]) == PAPER_CLASSES
  return _scores(files, "scores", _COLUMNS, reported=_COLUMNS if beside else (), best_epoch=True)


def more_scores(files):
  """What Table 1 has no room for."""
  columns = {"weighted_ce_ref": "WeightedCE ref.", **_MORE, "surface_dice": "Surface Dice"}
  return _scores(files, "more_scores", columns)


def per_class(files):
  """IoU by class, each model with the baselines of its threshold; frames that do not count."""
  content = files["segmentation"]
  with_seed = _has_seeds(content["rows"])
  classes = content["dataset"]["classes"]
  header = ["model", "threshold", *(["seed"] if with_seed else [])]
  header += [*classes, *(f"frames without {name}" for name in classes)]
  rows, groups = [], []
  for threshold in dict.fromkeys(row["threshold"] for row in content["rows"]):
    groups.append(len(rows))
    for part in ("rows", "predictors"):
      for i, row in enumerate(content[part]):
        if row["threshold"] != threshold:
          continue
        at = (files, "segmentation", part, i)
        seed = value(*at, "seed", show=count) if "seed" in row else ""
        rows.append(
          [
            row.get("predictor", "FPN"),
            _threshold(*at, "threshold"),
            *([seed] if with_seed else []),
            *(value(*at, "iou_per_class", name) for name in classes),
            *(value(*at, "empty_skipped", name, show=count) for name in classes),
          ]
        )
  return Table("scores_per_class", header, rows, tuple(groups[1:]))


def outlines(files):
  """Dice and 95 % Hausdorff distance by class of every member; None for runs without."""
  content = files["segmentation"]
  if not all("dice_per_class" in row and "hd95_images" in row for row in content["rows"]):
    return None
  with_seed, classes = _has_seeds(content["rows"]), content["dataset"]["classes"]
  header = ["threshold", *(["seed"] if with_seed else []), *(f"Dice {name}" for name in classes)]
  header += [Column(f"HD95 {name}, px (frames)", ("", "frames")) for name in classes]
  rows = []
  for i in range(len(content["rows"])):
    at = (files, "segmentation", "rows", i)
    distances = (
      [
        value(*at, "hd95_per_class", name, show=pixels),
        " (",
        value(*at, "hd95_images", name, show=count),
        ")",
      ]
      for name in classes
    )
    rows.append(
      [
        *_names(files, "segmentation", i, with_seed=with_seed),
        *(value(*at, "dice_per_class", name) for name in classes),
        *map(Cells, distances),
      ]
    )
  return Table("scores_outlines", header, rows)


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


def reliability(files, name="segmentation", keys=("threshold", "seed")):
  """The points of the reliability curves, for the CSV file; `keys` say whose they are."""
  rows = []
  for i, row in enumerate(files[name]["rows"]):
    for one, curve in row["reliability"].items():
      for j in range(len(curve["count"])):
        at = (files, name, "rows", i, "reliability", one)
        points = [value(*at, key, j) for key in ("count", "probability", "target")]
        rows.append([*(str(row[key]) for key in keys), one, str(j + 1), *points])
  header = [*keys, "class", "bin", "pixels", "mean probability", "mean target"]
  return Table("reliability" if name == "segmentation" else f"{name}_reliability", header, rows)


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
  """'60%', 'ordinal 60%' or 'soft, seed 1' from a member's name."""
  name, seed = re.fullmatch(r"(.*?)(?:_seed_(\d+))?", name, re.DOTALL).groups()
  match = re.fullmatch(r"(threshold|svls|ordinal\w*?)_([\d.e-]+)(?:_(.+))?", name)
  if match is not None:
    kind, threshold, options = match.groups()
    parts = ["" if kind == "threshold" else kind, percent(float(threshold)), options]
    name = " ".join(filter(None, parts))
  return name + (f", seed {seed}" if seed else "")


def unseeded(name):
  """The label of a member's name without its seed."""
  return member_label(name).split(", seed ")[0]


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
