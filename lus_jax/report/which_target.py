"""The study of targets: which of them wins where the truth is known, in words, tables and a figure.

`files` holds the contents of the results files by name.
"""

import functools

from lus_jax import palette
from lus_jax.evaluation import statistics
from lus_jax.report import cells, dose
from lus_jax.report import text as text_lib
from lus_jax.report.cells import Cells, Column, Table, value

NAME = "which_target"
METRICS = {
  "average_precision": "AP",
  "dice": "Dice",
  "dice_half": "Dice at .5",
  "ece": "ECE",
  "brier": "Brier",
}
SPREAD = "spread of experts"  # `evaluation.truth.annotator_sd`
# Shown first, and drawn; the others stand behind them.
FIRST = ("average_precision", "dice")
MORE = ("dice_half", "ece", "brier")
WEIGHTS = {"paper": "the paper's weights", "ones": "all-ones weights"}
# What a faint stroke is worth in each setting of the phantom.
SETTINGS = {
  "default": (
    "confidence follows how visible a structure is. What only looks like a structure is painted "
    "now and then, by the same rule: the fainter a stroke, the more often it is false."
  ),
  "faint_true": (
    "faint strokes are nearly always of something real. Hardly any faint structure is missed, and "
    "the few false strokes are painted with confidence."
  ),
  "faint_false": (
    "the faintest strokes are mostly false. What only looks like a structure is painted often, but "
    "faintly, and more of the faint structures are missed."
  ),
  "faint_uninformative": (
    "confidence is drawn at random: a faint stroke is as often real as a confident one, and a "
    "threshold leaves out strokes by chance."
  ),
  "null": (
    "painted as in the phantom's default: the fainter a stroke, the more often it is false. What "
    "this setting changes, outcomes that ignore the lungs, plays no part here."
  ),
}
# Of the family of settings true_from_T.
_TRUE_FROM = (
  "strokes are mostly true from a confidence of {} on and mostly false below it. There is more "
  "than usual that only looks like a structure."
)
_TEXT = functools.partial(value, show=str)
_COUNT = functools.partial(value, show=cells.count)
_SIGNED = functools.partial(value, show="{:+.3f}".format)
_PROBABILITY = functools.partial(value, show=cells.probability)


def member(name):
  """A threshold as `tables.percent`, any other member as `tables.member_label`; 'none' for None."""
  if name is None:
    return "none"
  return text_lib.member_label(name) if isinstance(name, str) else cells.percent(name)


_MEMBER = functools.partial(value, show=member)
_WORDS = {"all": "mean of all settings", "truest": "the truest label's own"}


def _asked(name):
  """A setting or member of a question in words."""
  return _WORDS.get(name) or member(name)


def setting_words(setting):
  """What a faint stroke is worth in a setting of the phantom."""
  if setting in SETTINGS:
    return SETTINGS[setting]
  return _TRUE_FROM.format(dose.dial(float(setting.removeprefix("true_from_"))))


def _can_decide(content):
  """Whether so many cohorts could have answered any question."""
  seeds = content["config"]["study"]["seeds"]
  return statistics.smallest_p(seeds, len(_questions(content))) < statistics.LEVEL


def _questions(content):
  return content.get("questions", [])  # runs of older versions asked none


def _families(content):
  """Places in `rows`, by metric, of each (setting, weights), in their order."""
  found = {}
  for i, row in enumerate(content["rows"]):
    found.setdefault((row["setting"], row["weights"]), {})[row["metric"]] = i
  return found


def answer(content, row):
  """A question and its answer in words."""
  words = f"{_setting(row)}: is {_asked(row['member'])} better than {_asked(row['against'])}? "
  words += row["answer"]
  if row["answer"] == "undecided" and not _can_decide(content):
    words += f" ({content['config']['study']['seeds']} cohorts cannot decide)"
  ends = row["interval"]
  interval = "" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
  p = cells.probability(row["p_holm"])
  return f"{words}; {METRICS[row['metric']]} {row['difference']:+.3f}{interval}, corrected p {p}"


def _setting(row):
  return _WORDS.get(row["setting"], row["setting"])


def text(content):
  """The tables of `results/which_target.json` as text of several lines."""
  seeds = content["config"]["study"]["seeds"]
  lines = [
    f"Which target? {seeds} simulated cohorts a setting; scores against the truth, means of cohorts"
  ]
  lines += [f"{i}. {answer(content, row)}" for i, row in enumerate(_questions(content), 1)]
  for (setting, weights), places in _families(content).items():
    rows = {metric: content["rows"][i] for metric, i in places.items()}
    body = [
      [member(one["member"]), *(cells.number(rows[m]["means"][j]["mean"]) for m in METRICS)]
      for j, one in enumerate(rows["dice"]["means"])
    ]
    lines += ["", f"{setting}, {WEIGHTS[weights]}"]
    lines.append(cells.text_table(["member", *METRICS.values()], body))
  if content["levels"]:
    lines += ["", "One ordinal network beside the separate ones (mean over thresholds)"]
    groups = {}
    for one in content["levels"]:
      groups.setdefault((one["setting"], one["metric"]), []).append(one)
    body = []
    for (setting, metric), rows in groups.items():
      means = (sum(row[key] for row in rows) / len(rows) for key in ("ordinal", "separate"))
      body.append([setting, METRICS[metric], *map(cells.number, means)])
    lines.append(cells.text_table(["setting", "metric", "ordinal", "separate"], body))
  if content.get("fit"):
    lines += ["", "Dice of networks and their own labels, on training and on test frames"]
    body = [
      [one["setting"], text_lib.member_label(one["member"]), *map(cells.number, _fits(one))]
      for one in content["fit"]
    ]
    lines.append(cells.text_table(["setting", "member", "training", "test"], body))
  body = {}
  for one in content["labels"]:
    row = body.setdefault(one["threshold"], [member(one["threshold"])])
    row.append(cells.number(one["mean"]))
  lines += ["", "How true the labels are (Dice, no network)"]
  lines.append(cells.text_table(["label", *content["config"]["study"]["settings"]], body.values()))
  if content.get("dose"):
    lines += ["", dose.text(content["dose"])]
  if content["scales"]:
    lines += ["", "Experts on one scale, less as painted (p corrected by Holm)"]
    body = [
      [
        one["setting"],
        one["standardise"],
        text_lib.member_label(one["member"]) if one["metric"] in METRICS else "",
        METRICS.get(one["metric"], SPREAD),
        *map(cells.number, (one["none"], one["mean"])),
        f"{one['difference']:+.3f}",
        *(["", ""] if one["interval"] is None else [f"{end:+.3f}" for end in one["interval"]]),
        cells.probability(one["p_holm"]),
      ]
      for one in (*content["spread"], *content["scales"])
    ]
    header = ["setting", "by", "member", "metric", "as painted", "one scale", "difference"]
    lines.append(cells.text_table([*header, "low", "high", "p"], body))
  if found := content.get("null_studies"):
    n, asked = found["studies"], found["questions"]
    lines.append(
      f"Of {n} studies in which all members had one target, "
      f"{_share(n)(found['studies_with_answers'])} answered a question; of {asked} comparisons "
      f"{_share(asked)(found['below_level'])} had p < .05 before the correction."
    )
  lines.append("Simulated frames: they show what the method can find, nothing about patients.")
  return "\n".join(lines)


def _fits(one):
  return one["fit_train"], one["fit_test"]


def _share(n):
  """Shows a count as '3 (1.5%)' of n."""
  return lambda count: f"{count} ({count / n:.1%})"


def table_name(setting, weights):
  """What the table of a setting and family of weights is called."""
  return f"{NAME}_{setting}_{weights}"


def _with_interval(*at, key, show=cells.number):
  """The number under a key and, below it, the interval beside it, where there is one."""
  return Cells(cells.interval(*at, key=key, show=show, before="\n["))


_signed_with_interval = functools.partial(_with_interval, key="difference", show="{:+.3f}".format)


def scores(files, *, setting, weights):
  """A row a member of one setting and family of weights, a column a metric."""
  places = _families(files[NAME])[setting, weights]
  header = ["member", *(Column(METRICS[m], ("", "low", "high")) for m in places)]
  rows = []
  for j in range(len(files[NAME]["rows"][places["dice"]]["means"])):
    at = [(files, NAME, "rows", i, "means", j) for i in places.values()]
    rows.append([_MEMBER(*at[0], "member"), *(_with_interval(*one, key="mean") for one in at)])
  return Table(table_name(setting, weights), header, rows)


def answers(files):
  """The registered questions with their answers; None where none was asked."""
  found = _questions(files[NAME])
  header = ["question", "setting", "member", "better than", "score"]
  header += [Column("difference", ("", "low", "high")), "p", "p, corrected (Holm)", "answer"]
  rows = []
  for i, row in enumerate(found):
    at = (files, NAME, "questions", i)
    rows.append(
      [
        str(i + 1),
        _TEXT(*at, "setting"),
        *(value(*at, key, show=_asked) for key in ("member", "against")),
        METRICS[row["metric"]],
        _signed_with_interval(*at),
        _PROBABILITY(*at, "p"),
        _PROBABILITY(*at, "p_holm"),
        _TEXT(*at, "answer"),
      ]
    )
  return Table(f"{NAME}_answers", header, rows) if rows else None


def fits(files):
  """How near networks came to their own labels; None of runs of older versions."""
  if not files[NAME].get("fit"):
    return None
  rows, groups = [], []
  for i, one in enumerate(files[NAME]["fit"]):
    at = (files, NAME, "fit", i)
    if rows and one["setting"] != rows[-1][0].value:
      groups.append(len(rows))
    row = [_TEXT(*at, "setting"), value(*at, "member", show=text_lib.member_label)]
    rows.append([*row, *(value(*at, key) for key in ("fit_train", "fit_test"))])
  header = ["setting", "member", "training frames", "test frames"]
  return Table(f"{NAME}_fit", header, rows, tuple(groups))


def levels(files, *, metrics, name):
  """Levels of the ordinal network beside the separate networks; None where there are none.

  Args:
    files: contents of the results files.
    metrics: which are shown.
    name: of the table.
  """
  places = {}
  for i, row in enumerate(files[NAME]["levels"]):
    places.setdefault((row["setting"], row["weights"], row["threshold"]), {})[row["metric"]] = i
  if not places:
    return None
  header = ["setting", "weights", "threshold"]
  for metric in metrics:
    title = METRICS[metric]
    header += [f"{title}, ordinal", f"{title}, separate"]
    header += [Column(f"{title}, difference", ("", "low", "high"))]
  rows, groups = [], []
  for mine in places.values():
    at = (files, NAME, "levels", mine[metrics[0]])
    if rows and files[NAME]["levels"][mine[metrics[0]]]["setting"] != rows[-1][0].value:
      groups.append(len(rows))
    row = [_TEXT(*at, "setting"), _TEXT(*at, "weights"), _MEMBER(*at, "threshold")]
    for metric in metrics:
      at = (files, NAME, "levels", mine[metric])
      row += [value(*at, key) for key in ("ordinal", "separate")]
      row.append(_signed_with_interval(*at))
    rows.append(row)
  return Table(name, header, rows, tuple(groups))


def null_studies(files):
  """How often a question was answered where there is nothing to find; None if not tried."""
  found = files[NAME].get("null_studies")
  if not found:
    return None
  at = (files, NAME, "null_studies")
  row = [_COUNT(*at, "studies")]
  row.append(value(*at, "studies_with_answers", show=_share(found["studies"])))
  row.append(_COUNT(*at, "questions"))
  row.append(value(*at, "below_level", show=_share(found["questions"])))
  header = ["studies", "with any answer", "comparisons", "p < .05 before the correction"]
  return Table(f"{NAME}_null_studies", header, [row])


def labels(files):
  """How true the labels themselves are: a row a threshold, a column a setting."""
  rows = {}
  for i, one in enumerate(files[NAME]["labels"]):
    at = (files, NAME, "labels", i)
    row = rows.setdefault(one["threshold"], [value(*at, "threshold", show=member)])
    row.append(_with_interval(*at, key="mean"))
  settings = dict.fromkeys(one["setting"] for one in files[NAME]["labels"])
  header = ["threshold", *(Column(setting, ("", "low", "high")) for setting in settings)]
  return Table(f"{NAME}_labels", header, list(rows.values()))


def scales(files, *, key, name):
  """Every way to standardise experts beside none; None where none was tried.

  Args:
    files: contents of the results files.
    key: 'scales' or 'spread'.
    name: of the table.
  """
  if not files[NAME][key]:
    return None
  rows, groups = [], []
  for i, one in enumerate(files[NAME][key]):
    at = (files, NAME, key, i)
    before = files[NAME][key][i - 1]
    if i and any(one[name] != before[name] for name in ("setting", "metric")):
      groups.append(i)
    row = [_TEXT(*at, "setting"), _TEXT(*at, "standardise")]
    if key == "scales":
      row += [value(*at, "member", show=text_lib.member_label), METRICS[one["metric"]]]
    row += [value(*at, "none"), value(*at, "mean"), _signed_with_interval(*at)]
    rows.append([*row, _PROBABILITY(*at, "p_holm")])
  header = ["setting", "one scale by", *(("member", "metric") if key == "scales" else ())]
  header += ["as painted", "one scale", Column("difference", ("", "low", "high"))]
  return Table(name, [*header, "p, corrected (Holm)"], rows, tuple(groups))


def every_cohort(files):
  """All scores of every cohort, for the CSV file."""
  rows = []
  for i in range(len(files[NAME]["units"])):
    at = (files, NAME, "units", i)
    named = [_TEXT(*at, "setting"), _TEXT(*at, "standardise"), _COUNT(*at, "seed")]
    named.append(_TEXT(*at, "member"))
    rows.append([*named, *(value(*at, metric) for metric in METRICS)])
  return Table(
    f"{NAME}_cohorts", ["setting", "one scale by", "seed", "member", *METRICS.values()], rows
  )


def figure(files):
  """The scores by threshold, drawn."""
  # Training imports this module for its text and needs no plots for that.
  from lus_jax.report import figures

  return figures.render(by_threshold, files[NAME]["rows"])


def by_threshold(rows):
  """Average precision and Dice by threshold, a row of panels a setting; other members as levels.

  Args:
    rows: of which_target.json.

  Returns:
    A matplotlib `Figure`.
  """
  from matplotlib.figure import Figure

  settings = list(dict.fromkeys(row["setting"] for row in rows))
  drawn = Figure(figsize=(8.4, 2.0 + 2.4 * len(settings)), layout="constrained")
  panels = drawn.subplots(len(settings), len(FIRST), squeeze=False, sharex=True, sharey="col")
  styles = {"paper": {"color": palette.css(4), "marker": "o"}}
  styles["ones"] = {"color": palette.css(5), "marker": "s"}
  handles = {}
  for row in rows:
    if row["metric"] not in FIRST:
      continue
    axes = panels[settings.index(row["setting"]), FIRST.index(row["metric"])]
    points = [one for one in row["means"] if not isinstance(one["member"], str)]
    points.sort(key=lambda one: one["member"])
    x, style = [100 * one["member"] for one in points], styles[row["weights"]]
    label = f"thresholds, {WEIGHTS[row['weights']]}"
    (handles[label],) = axes.plot(x, [one["mean"] for one in points], **style)
    ends = [one["interval"] for one in points]
    if all(ends):
      axes.fill_between(x, *zip(*ends, strict=True), color=style["color"], alpha=0.2, linewidth=0)
    others = [one for one in row["means"] if isinstance(one["member"], str)]
    for k, one in enumerate(others):
      # Members without a threshold are the same in both families.
      line = {"color": palette.css((0, 2, 3, 7)[k % 4]), "linestyle": ("--", "-.", ":")[k % 3]}
      handles[member(one["member"])] = axes.axhline(one["mean"], **line)
    axes.set_xticks(x, [cells.percent(one["member"]).rstrip("%") for one in points], fontsize=11)
  for setting, (left, *_) in zip(settings, panels, strict=True):
    left.set_ylabel(setting)
  for metric, top, bottom in zip(FIRST, panels[0], panels[-1], strict=True):
    top.set_title(f"{METRICS[metric]} against the truth", fontsize=13)
    bottom.set_xlabel("confidence threshold, %")
  drawn.legend(handles.values(), handles, loc="outside lower center", ncols=2)
  return drawn


def facts(files):
  """What the words about the study need: numbers with their places, and what they allow to say."""
  content = files[NAME]
  at = functools.partial(value, files, NAME, "config")
  settings = {}
  for setting, weights in _families(content):
    one = {"key": table_name(setting, weights), "weights": weights, "words": WEIGHTS[weights]}
    found = {"name": setting, "faint": setting_words(setting), "families": []}
    settings.setdefault(setting, found)["families"].append(one)
  return {
    "seeds": at("study", "seeds", show=cells.count),
    "frames": at("study", "train_frames", show=cells.count),
    "epochs": at("train", "epochs", show=cells.count),
    "settings": list(settings.values()),
    "questions": [_facts_of(files, i) for i in range(len(_questions(content)))],
    "can_decide": _can_decide(content),
    "intervals": any(one["interval"] for row in content["rows"] for one in row["means"]),
    "others": sorted(
      {one["member"] for row in content["rows"] for one in row["means"] if _is_named(one)}
    ),
  }


def _is_named(one):
  return isinstance(one["member"], str)


def _facts_of(files, i):
  """A question and its answer, in parts."""
  row = _questions(files[NAME])[i]
  at = (files, NAME, "questions", i)
  return {
    "setting": _setting(row),
    "member": _asked(row["member"]),
    "against": _asked(row["against"]),
    "metric": METRICS[row["metric"]],
    "answer": row["answer"],
    "difference": _SIGNED(*at, "difference"),
    "interval": None if row["interval"] is None else [_SIGNED(*at, "interval", k) for k in (0, 1)],
    "p": _PROBABILITY(*at, "p_holm"),
  }
