"""Tables as text, CSV and cells of the page, made from results files alone."""

import functools
import re

from lus_jax.report import cells, paper
from lus_jax.words import many, plural

COLUMNS = {"iou": "IoU", "weighted_ce": "WeightedCE", "ce": "CE", "trimap": "Trimap"}
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
MORE = {"dice": "Dice", "iou_at_best_cut": "IoU best cut", "ece": "ECE"}


def segmentation(results):
  """Table 1 from `results/segmentation.json`: models, then baselines, the paper's figures beside.

  Returns:
    Text of several lines.
  """
  with_seed = len({row["seed"] for row in results["rows"]}) > 1
  header = ["model", "threshold", *(["seed"] if with_seed else []), "best epoch"]
  header += [*COLUMNS.values(), *MORE.values()]
  beside = set(results["dataset"]["classes"]) == paper.PAPER_CLASSES
  if beside:
    header += ["|"] + [f"[P] {name}" for name in COLUMNS.values()]

  def line(name, row, reported):
    seed = [row.get("seed", "")] if with_seed else []
    return [
      name,
      cells.percent(row["threshold"]),
      *seed,
      row.get("best_epoch") or "",
      *(cells.number(row.get(key)) for key in [*COLUMNS, *MORE]),
      *(
        ["|"] + [cells.number(reported[key]) if reported else "" for key in COLUMNS]
        if beside
        else []
      ),
    ]

  rows = [line("FPN", row, paper.REPORTED.get(row["threshold"])) for row in results["rows"]]
  for name in dict.fromkeys(row["predictor"] for row in results["predictors"]):
    rows.append(None)
    rows += [line(name, r, None) for r in results["predictors"] if r["predictor"] == name]
  splits = results["dataset"]["splits"]
  sizes = ", ".join(f"{n} {name}" for name, n in splits.items())
  sizes += f" {many(list(splits.values())[-1], 'frame')}"
  return "\n".join(
    [
      f"Table 1. Segmentation of {results['dataset']['name']} ({sizes}), on the test split.",
      cells.text_table(header, rows),
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
    at = "" if set(absent) == thresholds else f" at {', '.join(map(cells.percent, absent))}"
    yield f"no test label shows {name}{at}: it counts for no model and no baseline there"
  names = []
  for row in content["rows"]:
    seed = f", seed {row['seed']}" if len({r["seed"] for r in content["rows"]}) > 1 else ""
    names.append(f"{cells.percent(row['threshold'])}{seed}")
    if (output := output_of(row)) is not None:
      yield f"the model of {names[-1]} {OUTPUTS[output]}"
  chosen = [row.get("chosen_by") for row in content["rows"]]
  if "loss" in chosen:
    which = [name for name, by in zip(names, chosen, strict=True) if by == "loss"]
    yield (
      "several epochs had the best validation IoU, and the one of the lowest validation loss was "
      f"taken: {', '.join(which)}"
    )


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
    yield [name, *(cells.number(row[key]) if key else "" for key in keys)]
    if with_intervals:
      yield [
        "",
        *(f"[{cells.number(x[0])}, {cells.number(x[1])}]" if x else "" for x in intervals),
      ]

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
      cells.text_table(["member", *scores.values()], rows),
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


def shown_metrics(content):
  """The table's metrics by key, in their order."""
  task = paper.TASKS[content["task"]]
  found = content["summary"][0]["metrics"]
  shown = {
    key: name for key, name in task.metrics.items() if key in found or key not in paper.LATER
  }
  return shown | {key: name for key, name in task.more.items() if key in found}


def baselines(content):
  """The metric of the predictor without a video beside each of the table's metrics."""
  found = paper.TASKS[content["task"]].baselines
  if content["task"] == "sf_ratio" and not paper.is_of_the_papers_target(content):
    # Views of one day may differ in another target; runs from before know the constant's error
    # against their mean alone.
    beside = {"rmse_mean": found["rmse_mean"]}
    beside |= {f"rmse_{name}": f"rmse_constant_{name}" for name in ("max", "median")}
    return {key: name for key, name in beside.items() if name in content["summary"][0]["metrics"]}
  return found


def title(content):
  """What a clinical task asks, in few words."""
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
  own = paper.is_of_the_papers_target(content)
  return names[task] if own else f"{others[task]} {target(content)}"


def target(content):
  """What a clinical task is about."""
  return "S/F ratio" if content["target"] == "sf_ratio" else content["target"]


def in_order(summary):
  """Indices of a task's summary rows: thresholds in their order, video only, true masks."""
  last = {"none": 1, "true": 2}
  return sorted(range(len(summary)), key=lambda i: last.get(summary[i]["threshold"], 0))


def decided(content):
  """Comparisons with a corrected p below .05, as (index in summary, index of the comparison).

  None where the test patients, or folds, are too few to decide anything.
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


def clinical(content):
  """Tables 2 to 4 from a clinical task's results file, the paper's figures beside its own target.

  Returns:
    Text of several lines.
  """
  task, summary = paper.TASKS[content["task"]], content["summary"]
  metrics = shown_metrics(content)
  beside = paper.REPORTED_TASKS[content["task"]] if paper.is_the_papers(content) else None
  header = ["threshold", *metrics.values()]
  if beside:
    header += ["|"] + [f"[P] {name}" for name in task.metrics.values()]

  as_printed = functools.partial(paper.as_reported, content["task"])

  def spread(pair, show=cells.number):
    return f"{show(pair[0])} +- {show(pair[1])}" if pair else ""

  def line(name, row, keys):
    found = [row["metrics"][key] if key else None for key in keys]
    reported = (beside or {}).get(row["threshold"], {}) if name is None else {}
    figures = [
      spread(reported.get(key), as_printed)
      + (" (sic)" if reported and (content["task"], row["threshold"], key) == paper.SIC else "")
      for key in task.metrics
    ]
    return [
      name or cells.source(row["threshold"]),
      *(spread((cell["mean"], cell["sd"])) if cell else "" for cell in found),
      *(["|", *figures] if beside else []),
    ]

  def lines(name, row, keys):
    """A row of means over folds, and one over all test patients with intervals where they are."""
    keys = list(keys)
    yield line(name, row, keys)
    found = [row["metrics"][key] if key else None for key in keys]
    if any(cell and cell["interval"] for cell in found):
      empty = ["|", *("" for _ in task.metrics)] if beside else []
      yield ["", *(_with_interval(cell) for cell in found), *empty]

  rows = [x for i in in_order(summary) for x in lines(None, summary[i], metrics)]
  rows.append(None)
  rows += lines(task.baseline, summary[0], map(baselines(content).get, metrics))
  with_intervals = any(m["interval"] for row in summary for m in row["metrics"].values())
  n, found = patients(summary[0]["n_patients"]), decided(content)
  if found is None:
    verdict = [f"{swapped(content)} cannot decide: thresholds are not ranked."]
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
      cells.text_table(header, rows),
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
  low, high = map(cells.number, cell["interval"])
  return f"{cells.number(cell['estimate'])} [{low}, {high}]"


def beside_blind(content):
  """Rows whose interval of the difference from the predictor without a video leaves out 0.

  Returns:
    The sources that are better by it and those that are worse, or None where no row has an
    interval.
  """
  task = paper.TASKS[content["task"]]
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
        (better if wins else worse).append(cells.source(row["threshold"]))
  return (better, worse) if has_interval else None


def _against_blind(content):
  sides = beside_blind(content) or ((), ())
  for names, side in zip(sides, ("better", "worse"), strict=True):
    if names:
      yield (
        f"The 95% interval of the difference in {primary(content)} from the "
        f"{paper.TASKS[content['task']].baseline}, which looks at no video, lies on the {side} "
        f"side of 0 for: {', '.join(names)}."
      )
  if advice := more_epochs(content):
    yield advice


def more_epochs(content):
  """What to say where networks are worse than what looks at no video, and none is better."""
  better, worse = beside_blind(content) or ((), ())
  if not worse or better:
    return ""
  return (
    "Often epochs are too few (train.epochs), or clips too small (clip.image_size, clip.n_segment)."
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


def swapped(content):
  """What the tests between thresholds swapped, as in '8 test patients' or '6 folds'."""
  row = content["summary"][0]
  # Versions before always swapped patients.
  if content.get("permuted") == "folds":
    return plural(row["n_folds"], "fold")
  return patients(row["n_patients"])


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
    f"{cells.source(row['threshold'])} has a {direction(one)} {primary(content)} than "
    f"{cells.source(one['against'])} (corrected p {cells.probability(one['p_holm'])})"
  )


def direction(one):
  """'higher' or 'lower', of a comparison's difference."""
  return "higher" if one["difference"] > 0 else "lower"


def primary(content):
  """The name of a task's primary metric."""
  return paper.TASKS[content["task"]].metrics[content["primary"]]


def score(content):
  """What a task's history calls score: higher is better, so of errors the negative."""
  return ("minus " if content["task"] == "sf_ratio" else "") + primary(content)


def member_label(name):
  """'60%', 'ordinal 60%' or 'soft, seed 1' from a member's name."""
  name, seed = re.fullmatch(r"(.*?)(?:_seed_(\d+))?", name, re.DOTALL).groups()
  match = re.fullmatch(r"(threshold|svls|ordinal\w*?)_([\d.e-]+)(?:_(.+))?", name)
  if match is not None:
    kind, threshold, options = match.groups()
    parts = ["" if kind == "threshold" else kind, cells.percent(float(threshold)), options]
    name = " ".join(filter(None, parts))
  return name + (f", seed {seed}" if seed else "")


def unseeded(name):
  """The label of a member's name without its seed."""
  return member_label(name).split(", seed ")[0]
