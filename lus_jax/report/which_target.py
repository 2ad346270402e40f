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
# Verdicts are given on some metrics; the others only describe.
JUDGED = ("average_precision", "dice")
DESCRIBED = ("dice_half", "ece", "brier")
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
# What the contrast of `tasks.which_target.compare` is called.
CONTRAST = " less ".join(map(member, statistics.REFERENCES))


def setting_words(setting):
  """What a faint stroke is worth in a setting of the phantom."""
  if setting in SETTINGS:
    return SETTINGS[setting]
  return _TRUE_FROM.format(dose.dial(float(setting.removeprefix("true_from_"))))


def _beaten(row):
  """The members that a winner was compared with, and beat."""
  compared = {one[key] for one in row["comparisons"] for key in ("member", "against")}
  return [member(t) for t in statistics.REFERENCES if t in compared - {row["winner"]}]


def _can_decide(content, row):
  """Whether so many cohorts could have given any winner."""
  seeds = content["config"]["study"]["seeds"]
  return statistics.smallest_p(seeds, len(row["comparisons"])) < statistics.LEVEL


def _higher(contrast):
  """Which of the two thresholds has the higher mean; None where that is not clear."""
  if contrast["p"] >= statistics.LEVEL:
    return None
  first, second = statistics.REFERENCES
  return member(first if contrast["difference"] > 0 else second)


def _families(content):
  """Places in `rows`, by metric, of each (setting, weights), in their order."""
  found = {}
  for i, row in enumerate(content["rows"]):
    found.setdefault((row["setting"], row["weights"]), {})[row["metric"]] = i
  return found


def verdict(content, row):
  """What one setting, family of weights and metric allow to say."""
  words = "no winner"
  if row["winner"] is not None:
    beaten = " and ".join(_beaten(row))
    words = f"{member(row['winner'])} wins (against {beaten}, corrected p < .05)"
  elif not _can_decide(content, row):
    words += f" ({content['config']['study']['seeds']} cohorts cannot decide)"
  if (contrast := row["contrast"]) is not None:
    ends = contrast["interval"]
    interval = "" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    higher = _higher(contrast)
    words += (
      f"; {CONTRAST} {contrast['difference']:+.3f}{interval}, "
      f"p {cells.probability(contrast['p'])}: "
      f"{f'{higher} higher' if higher else 'not told apart'}"
    )
  return words


def text(content):
  """The tables of `results/which_target.json` as text of several lines."""
  seeds = content["config"]["study"]["seeds"]
  lines = [
    f"Which target? {seeds} simulated cohorts a setting; scores against the truth, means of cohorts"
  ]
  for (setting, weights), places in _families(content).items():
    rows = {metric: content["rows"][i] for metric, i in places.items()}
    body = [
      [member(one["member"]), *(cells.number(rows[m]["means"][j]["mean"]) for m in METRICS)]
      for j, one in enumerate(rows["dice"]["means"])
    ]
    lines += ["", f"{setting}, {WEIGHTS[weights]}"]
    lines.append(cells.text_table(["member", *METRICS.values()], body))
    lines += [f"{METRICS[m]}: {verdict(content, rows[m])}" for m in JUDGED]
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
  for metric, found in content["null_repeats"].items():
    n = found["repeats"]
    lines.append(
      f"Of {n} studies in which all members had one target, {_share(n)(found['winners'])} "
      f"claimed a winner and {_share(n)(found['contrasts'])} a contrast, by {METRICS[metric]}."
    )
  lines.append("Simulated frames: they show what the method can find, nothing about patients.")
  return "\n".join(lines)


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


def comparisons(files, *, setting, weights):
  """Every comparison of one setting and family of weights, a metric after the other."""
  rows, groups = [], []
  for metric, i in _families(files[NAME])[setting, weights].items():
    groups.append(len(rows))
    for j in range(len(files[NAME]["rows"][i]["comparisons"])):
      at = (files, NAME, "rows", i, "comparisons", j)
      rows.append(
        [
          METRICS[metric],
          _MEMBER(*at, "member"),
          _MEMBER(*at, "against"),
          _signed_with_interval(*at),
          _PROBABILITY(*at, "p"),
          _PROBABILITY(*at, "p_holm"),
        ]
      )
  header = ["metric", "member", "against", Column("difference", ("", "low", "high"))]
  header += ["p", "p, corrected (Holm)"]
  return Table(f"{table_name(setting, weights)}_comparisons", header, rows, tuple(groups[1:]))


def verdicts(files):
  """Winner and contrast of every setting and family of weights."""
  header = ["setting", "weights"]
  for metric in JUDGED:
    header += [f"{METRICS[metric]}: winner"]
    header += [Column(f"{METRICS[metric]}: {CONTRAST}", ("", "low", "high"))]
    header += [f"{METRICS[metric]}: p"]
  rows, groups = [], []
  for (setting, weights), places in _families(files[NAME]).items():
    at = (files, NAME, "rows", places["dice"])
    if rows and setting != rows[-1][0].value:
      groups.append(len(rows))
    row = [_TEXT(*at, "setting"), WEIGHTS[weights]]
    for metric in JUDGED:
      at = (files, NAME, "rows", places[metric])
      row.append(_MEMBER(*at, "winner"))
      if files[NAME]["rows"][places[metric]]["contrast"] is None:
        row += ["", ""]
      else:
        row += [_signed_with_interval(*at, "contrast"), _PROBABILITY(*at, "contrast", "p")]
    rows.append(row)
  return Table(f"{NAME}_verdicts", header, rows, tuple(groups))


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
    header += [Column(f"{title}, difference", ("", "low", "high")), f"{title}, p"]
  rows, groups = [], []
  for mine in places.values():
    at = (files, NAME, "levels", mine[metrics[0]])
    if rows and files[NAME]["levels"][mine[metrics[0]]]["setting"] != rows[-1][0].value:
      groups.append(len(rows))
    row = [_TEXT(*at, "setting"), _TEXT(*at, "weights"), _MEMBER(*at, "threshold")]
    for metric in metrics:
      at = (files, NAME, "levels", mine[metric])
      row += [value(*at, key) for key in ("ordinal", "separate")]
      row += [_signed_with_interval(*at), _PROBABILITY(*at, "p")]
    rows.append(row)
  return Table(name, header, rows, tuple(groups))


def null_repeats(files):
  """How often a winner or a contrast was claimed where there is none; None if not tried."""
  found = files[NAME]["null_repeats"]
  if not found:
    return None
  rows = []
  for metric in found:
    at = (files, NAME, "null_repeats", metric)
    share = _share(found[metric]["repeats"])
    rows.append(
      [
        METRICS[metric],
        _COUNT(*at, "repeats"),
        *(value(*at, key, show=share) for key in ("winners", "contrasts")),
      ]
    )
  header = ["metric", "studies", "claimed a winner", "claimed a contrast"]
  return Table(f"{NAME}_null_repeats", header, rows)


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
  panels = drawn.subplots(len(settings), len(JUDGED), squeeze=False, sharex=True, sharey="col")
  styles = {"paper": {"color": palette.css(4), "marker": "o"}}
  styles["ones"] = {"color": palette.css(5), "marker": "s"}
  handles = {}
  for row in rows:
    if row["metric"] not in JUDGED:
      continue
    axes = panels[settings.index(row["setting"]), JUDGED.index(row["metric"])]
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
  for metric, top, bottom in zip(JUDGED, panels[0], panels[-1], strict=True):
    top.set_title(f"{METRICS[metric]} against the truth", fontsize=13)
    bottom.set_xlabel("confidence threshold, %")
  drawn.legend(handles.values(), handles, loc="outside lower center", ncols=2)
  return drawn


def facts(files):
  """What the words about the study need: numbers with their places, and what they allow to say."""
  content = files[NAME]
  at = functools.partial(value, files, NAME, "config")
  settings = {}
  for (setting, weights), places in _families(content).items():
    one = {
      "key": table_name(setting, weights),
      "weights": weights,
      "words": WEIGHTS[weights],
      "verdicts": [_facts_of(files, places[metric]) for metric in JUDGED],
    }
    found = {"name": setting, "faint": setting_words(setting), "families": []}
    settings.setdefault(setting, found)["families"].append(one)
  return {
    "seeds": at("study", "seeds", show=cells.count),
    "frames": at("study", "train_frames", show=cells.count),
    "epochs": at("train", "epochs", show=cells.count),
    "settings": list(settings.values()),
    "contrast": CONTRAST,
    "intervals": any(one["interval"] for row in content["rows"] for one in row["means"]),
    "others": sorted(
      {one["member"] for row in content["rows"] for one in row["means"] if _is_named(one)}
    ),
  }


def _is_named(one):
  return isinstance(one["member"], str)


def _facts_of(files, i):
  """The verdict of one row, in parts."""
  content = files[NAME]
  row, contrast = content["rows"][i], content["rows"][i]["contrast"]
  at = (files, NAME, "rows", i, "contrast")
  found = {
    "metric": METRICS[row["metric"]],
    "winner": None if row["winner"] is None else member(row["winner"]),
    "beaten": _beaten(row),
    "can_decide": _can_decide(content, row),
    "contrast": None,
  }
  if contrast is not None:
    found["contrast"] = {
      "difference": _SIGNED(*at, "difference"),
      "interval": None
      if contrast["interval"] is None
      else [_SIGNED(*at, "interval", k) for k in (0, 1)],
      "p": _PROBABILITY(*at, "p"),
      "name": CONTRAST,
      "higher": _higher(contrast),
    }
  return found
