"""The page's sections of the clinical tasks: their tables and what may be said of them.

`files` holds the contents of the results files by name, and `name` is the one of a task.
"""

import functools
import json

from lus_jax.report import cells, paper, text
from lus_jax.report.cells import Cells, Column, Table, value
from lus_jax.splits import SPLITS

_SOURCE = functools.partial(value, show=cells.source)
_PROBABILITY = functools.partial(value, show=cells.probability)
_LABELS = {
  "accuracy3_no_same_day": "3-class accuracy, two days",
  "accuracy2": "2-class by summed P",
  "accuracy2_merged_no_same_day": "2-class accuracy, two days",
  "accuracy2_no_same_day": "2-class by summed P, two days",
  "majority3": "majority class, 3-class",
  "majority2": "majority class, 2-class",
  "rmse_video": "RMSE of single videos",
  "rmse_constant": "RMSE of the constant",
  "rmse_constant_median": "RMSE of the constant, median",
  "rmse_constant_max": "RMSE of the constant, max",
  "precision_defined": "precision defined",
  "majority": "majority class",
  "auroc": "AUROC",
  "auroc_ordinal": "ordinal AUROC",
  "brier": "Brier score",
  "brier_constant": "Brier score of the training's shares",
  "n_patients": "test patients",
  "train_loss": "training loss",
  "loss": "validation loss",
  "score": "validation score",
}


def label(content, metric):
  """A metric's name on the page."""
  return paper.TASKS[content["task"]].metrics.get(metric) or _LABELS.get(metric, metric)


def signed(number):
  """Three decimals with their sign; a dash where undefined."""
  return "-" if number is None else f"{number:+.3f}"


def _spread(*at):
  return [value(*at, "mean"), " ± ", value(*at, "sd")]


def _metric(*at):
  return Cells([*_spread(*at), "\n", *cells.interval(*at, key="estimate")])


_METRIC_PARTS = ("mean", "sd", "estimate", "low", "high")


def _reported(task, threshold, metric):
  figures = paper.REPORTED_TASKS[task].get(threshold, {}).get(metric)
  if figures is None:
    return ""
  mean, sd = (
    cells.Value(
      f"reported#/{task}/{threshold}/{metric}/{k}", figures[k], paper.as_reported(task, figures[k])
    )
    for k in (0, 1)
  )
  sic = [" (sic)"] if (task, threshold, metric) == paper.SIC else []
  return Cells([mean, " ± ", sd, *sic])


def scores(files, name):
  """Tables 2 to 4 of the page: a row a source of channels, then the predictor without a video."""
  content = files[name]
  task, metrics = paper.TASKS[content["task"]], text.shown_metrics(content)
  beside = task.metrics if paper.is_the_papers(content) else {}
  header = ["threshold", *(Column(title, _METRIC_PARTS) for title in metrics.values())]
  header += [Column(f"paper: {title}", ("mean", "sd")) for title in beside.values()]
  rows = []
  for i in text.in_order(content["summary"]):
    at = (files, name, "summary", i)
    threshold = content["summary"][i]["threshold"]
    row = [_SOURCE(*at, "threshold"), *(_metric(*at, "metrics", key) for key in metrics)]
    rows.append([*row, *(_reported(content["task"], threshold, key) for key in beside)])
  at = (files, name, "summary", 0, "metrics")
  beside_it = text.baselines(content)
  row = [_metric(*at, beside_it[m]) if m in beside_it else "" for m in metrics]
  rows.append([task.baseline, *row, *("" for _ in beside)])
  return Table(f"{name}_scores", header, rows)


def more_scores(files, name):
  """The metrics that the table has no room for, and how many resamples left one undefined."""
  content = files[name]
  task = paper.TASKS[content["task"]]
  metrics = list(content["summary"][0]["metrics"])
  shown = {*text.shown_metrics(content), *task.baselines.values()}
  more = [m for m in metrics if m not in shown and not m.startswith("rmse_constant")]
  summary = content["summary"]
  undefined = [m for m in metrics if any(r["metrics"][m]["undefined_resamples"] for r in summary)]
  header = ["threshold", "test patients", "folds"]
  header += [Column(label(content, m), _METRIC_PARTS) for m in more]
  header += [f"undefined resamples: {label(content, m)}" for m in undefined]
  rows = []
  for i in text.in_order(content["summary"]):
    at = (files, name, "summary", i)
    counts = [value(*at, key, show=cells.count) for key in ("n_patients", "n_folds")]
    rows.append(
      [
        _SOURCE(*at, "threshold"),
        *counts,
        *(_metric(*at, "metrics", m) for m in more),
        *(value(*at, "metrics", m, "undefined_resamples", show=cells.count) for m in undefined),
      ]
    )
  return Table(f"{name}_more_scores", header, rows)


def differences(files, name):
  """Every source against the predictor without a video, and against the video alone."""
  content = files[name]
  task = paper.TASKS[content["task"]]
  columns = dict.fromkeys(
    (one["metric"], one["against"]) for row in content["summary"] for one in row["differences"]
  )
  header = ["threshold"]
  for metric, against in columns:
    other = task.baseline if against in task.baselines.values() else cells.source(against)
    title = f"{label(content, metric)}, minus {other}"
    header.append(Column(title, ("difference", "low", "high")))
  rows = []
  for i in text.in_order(content["summary"]):
    found = dict.fromkeys(columns, "")
    for j, one in enumerate(content["summary"][i]["differences"]):
      at = (files, name, "summary", i, "differences", j)
      shown = cells.interval(*at, key="difference", show=signed)
      found[one["metric"], one["against"]] = Cells(shown)
    rows.append([_SOURCE(files, name, "summary", i, "threshold"), *found.values()])
  return Table(f"{name}_differences", header, rows)


def comparisons(files, name):
  """The pairs of thresholds that were compared: differences, raw and corrected p values."""
  content = files[name]
  header = ["threshold", "against", f"difference of {text.primary(content)}"]
  header += ["p", "p, corrected (Holm)", "smallest attainable"]
  rows = []
  for i in text.in_order(content["summary"]):
    row = (files, name, "summary", i)
    for j in range(len(content["summary"][i]["comparisons"])):
      at = (*row, "comparisons", j)
      rows.append(
        [
          _SOURCE(*row, "threshold"),
          _SOURCE(*at, "against"),
          value(*at, "difference", show=signed),
          _PROBABILITY(*at, "p"),
          _PROBABILITY(*at, "p_holm"),
          _PROBABILITY(*row, "smallest_attainable_p"),
        ]
      )
  return Table(f"{name}_comparisons", header, rows)


def _all_rows(files, name, part, show, *, file=None, table=None):
  """Every row of a part with everything in it; the source comes first."""
  file = file or name
  keys = dict.fromkeys(key for row in files[file][part] for key in row)
  keys.pop("threshold")
  show = {key: show.get(key, cells.number) for key in keys}
  titles = [label(files[name], key).replace("_", " ") for key in keys]
  return Table(
    f"{name}_{table or part}",
    ["threshold", *titles],
    [
      [
        _SOURCE(files, file, part, i, "threshold"),
        *(value(files, file, part, i, key, show=show[key]) if key in row else "" for key in keys),
      ]
      for i, row in enumerate(files[file][part])
    ],
  )


def every_fold(files, name):
  """Every network that was tested."""
  show = dict.fromkeys(("fold", "best_epoch", "n_patients"), cells.count)
  return _all_rows(
    files,
    name,
    "rows",
    show | {"precision_defined": json.dumps, "chosen_by": str},
    table="every_fold",
  )


def per_patient(files, name):
  """Every test patient's metrics, averaged over folds."""
  return _all_rows(files, name, "patients", {"patient": str})


def predictions(files, name):
  """Every prediction, for the CSV file."""
  show = dict.fromkeys(("fold", "day", "label", "predicted"), cells.count)
  return _all_rows(files, name, "predictions", show | {"patient": str, "votes": json.dumps})


def history(files, name):
  """Every epoch of every network, for the CSV file."""
  show = {"epoch": cells.count, "member": str, "fold": cells.count}
  return _all_rows(files, name, "rows", show, file=f"{name}_history", table="history")


def confusion(files, name):
  """Counts of true and predicted classes, a row a true class of a source."""
  content = files[name]
  classes = content["confusion"][0]["classes"]
  return Table(
    f"{name}_confusion",
    ["threshold", "truth", *(f"predicted {one}" for one in classes)],
    [
      [
        _SOURCE(files, name, "confusion", i, "threshold"),
        truth,
        *(
          value(files, name, "confusion", i, "matrix", j, k, show=cells.count)
          for k in range(len(classes))
        ),
      ]
      for i in range(len(content["confusion"]))
      for j, truth in enumerate(classes)
    ],
  )


def folds(files, name):
  """Which patients every fold trained, selected and was tested on."""
  return Table(
    f"{name}_folds",
    ["fold", *SPLITS],
    [
      [
        value(files, name, "folds", i, "fold", show=cells.count),
        *(value(files, name, "folds", i, part, show=_names) for part in SPLITS),
      ]
      for i in range(len(files[name]["folds"]))
    ],
  )


def _names(names):
  return ", ".join(map(str, names))


def facts(files, name):
  """What the words of a section need: numbers with their places, and what they allow to say."""
  content = files[name]
  summary = content["summary"]
  at = functools.partial(value, files, name)
  found = text.decided(content)
  lower_wins = content["primary"].startswith("rmse")
  beyond, behind = text.beside_blind(content) or (None, None)
  first = next((i for i, row in enumerate(summary) if row["comparisons"]), None)
  segmentation = content.get("segmentation") or {}
  return {
    "primary": text.primary(content),
    "rotates": text.rotates(content),
    "swaps_folds": content.get("permuted") == "folds",
    "with_auroc": "auroc" in text.shown_metrics(content),
    "patients": at("summary", 0, "n_patients", show=cells.count),
    "folds": at("summary", 0, "n_folds", show=cells.count),
    "scale": at("config", "target_scale", show="{:g}".format)
    if content["config"].get("target_scale", 1) != 1
    else None,
    "dataset": at("dataset", "name", show=str),
    "version": at("dataset", "version", show=str),
    "compared": first is not None,
    "can_decide": found is not None,
    "smallest": None
    if first is None
    else _PROBABILITY(files, name, "summary", first, "smallest_attainable_p"),
    "found": [
      {
        "threshold": cells.source(summary[i]["threshold"]),
        "against": cells.source(summary[i]["comparisons"][j]["against"]),
        "direction": text.direction(summary[i]["comparisons"][j]),
        "difference": at("summary", i, "comparisons", j, "difference", show=signed),
        "p": _PROBABILITY(files, name, "summary", i, "comparisons", j, "p_holm"),
      }
      for i, j in found or []
    ],
    "beyond": beyond,
    "behind": behind,
    "advice": text.more_epochs(content),
    "side": "below" if lower_wins else "above",
    "other_side": "above" if lower_wins else "below",
    "intervals": any(
      metric["interval"] is not None for row in summary for metric in row["metrics"].values()
    ),
    "sources": {row["threshold"] for row in summary},
    "other_domain": str(segmentation["dataset"])
    if segmentation.get("same_data_set") is False
    else None,
    "left_out": [
      {
        "count": at("left_out", i, "count", show=cells.count),
        "what": one["what"],
        "why": one["why"],
        "which": _names(one["which"]),
      }
      for i, one in enumerate(content["left_out"])
    ],
    "notes": content["notes"],
  }
