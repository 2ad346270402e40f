"""The study of targets in words, tables and a figure."""

import io
import pathlib

from lus_jax.evaluation import results, statistics
from lus_jax.files import write_bytes, write_text
from lus_jax.report import tables

NAME = "which_target"
METRICS = {
  "average_precision": "AP",
  "dice": "Dice",
  "dice_half": "Dice at .5",
  "ece": "ECE",
  "brier": "Brier",
}
WEIGHTS = {"paper": "the paper's weights", "ones": "all-ones weights"}


def member(name):
  """A threshold as `tables.percent`, any other member by its name."""
  return name.removesuffix("_ones") if isinstance(name, str) else tables.percent(name)


def _interval(ends):
  return "" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"


def verdict(row):
  """What one setting, family of weights and metric allow to say."""
  contrast = row["contrast"]
  words = "no winner"
  if row["winner"] is not None:
    words = f"{member(row['winner'])} wins (against > 0% and 50%, corrected p < .05)"
  if contrast is not None:
    lead = "low thresholds higher" if contrast["difference"] > 0 else "high thresholds higher"
    clear = contrast["p"] < statistics.LEVEL
    words += (
      f"; low less high {contrast['difference']:+.3f}{_interval(contrast['interval'])}, "
      f"p {tables.probability(contrast['p'])}: {lead if clear else 'not told apart'}"
    )
  return words


def text(content):
  """The tables of `results/which_target.json` as text of several lines."""
  seeds = content["config"]["study"]["seeds"]
  lines = [
    f"Which target? {seeds} simulated cohorts a setting; scores against the truth, means of cohorts"
  ]
  settings = list(dict.fromkeys(row["setting"] for row in content["rows"]))
  for setting in settings:
    for weights, words in WEIGHTS.items():
      rows = {
        row["metric"]: row
        for row in content["rows"]
        if (row["setting"], row["weights"]) == (setting, weights)
      }
      if not rows:
        continue
      names = [x["member"] for x in rows["dice"]["means"]]
      body = [
        [member(name), *(tables.number(rows[m]["means"][i]["mean"]) for m in METRICS)]
        for i, name in enumerate(names)
      ]
      lines += ["", f"{setting}, {words}", tables.text_table(["member", *METRICS.values()], body)]
      lines += [f"{METRICS[m]}: {verdict(rows[m])}" for m in ("average_precision", "dice")]
  if content["levels"]:
    lines += ["", "One ordinal network beside the separate ones (mean over thresholds)"]
    body = []
    for setting in settings:
      for metric, name in METRICS.items():
        here = [x for x in content["levels"] if (x["setting"], x["metric"]) == (setting, metric)]
        if here:
          ordinal, separate = (sum(x[k] for x in here) / len(here) for k in ("ordinal", "separate"))
          body.append([setting, name, tables.number(ordinal), tables.number(separate)])
    lines.append(tables.text_table(["setting", "metric", "ordinal", "separate"], body))
  for metric, found in content["null_repeats"].items():
    n = found["repeats"]
    lines.append(
      f"Of {n} studies in which all members had one target, {found['winners']} "
      f"({found['winners'] / n:.1%}) claimed a winner and {found['contrasts']} "
      f"({found['contrasts'] / n:.1%}) a contrast, by {METRICS[metric]}."
    )
  lines.append("Simulated frames: they show what the method can find, nothing about patients.")
  return "\n".join(lines)


def figure(content):
  """Average precision and Dice over thresholds, a row of panels a setting: PNG bytes."""
  from matplotlib.figure import Figure

  settings = list(dict.fromkeys(row["setting"] for row in content["rows"]))
  shown = ("average_precision", "dice")
  drawn = Figure(figsize=(4.2 * len(settings), 3.1 * len(shown)), layout="constrained")
  panels = drawn.subplots(len(shown), len(settings), squeeze=False, sharey="row")
  colours = {"paper": "#4477aa", "ones": "#cc6677"}
  for i, metric in enumerate(shown):
    for j, setting in enumerate(settings):
      axes = panels[i][j]
      for row in content["rows"]:
        if (row["setting"], row["metric"]) != (setting, metric):
          continue
        points = [x for x in row["means"] if not isinstance(x["member"], str)]
        points = sorted(points, key=lambda x: x["member"])
        x = [100 * point["member"] for point in points]
        colour = colours[row["weights"]]
        axes.plot(x, [p["mean"] for p in points], "o-", color=colour, label=WEIGHTS[row["weights"]])
        ends = [p["interval"] for p in points]
        if all(ends):
          axes.fill_between(x, *zip(*ends, strict=True), color=colour, alpha=0.15, lw=0)
        if row["weights"] == "ones":
          others = [x for x in row["means"] if isinstance(x["member"], str)]
          for other, style in zip(others, ("--", "-.", ":"), strict=False):
            axes.axhline(
              other["mean"], ls=style, lw=1, color="#555555", label=member(other["member"])
            )
      if i == 0:
        axes.set_title(setting)
      if i == len(shown) - 1:
        axes.set_xlabel("confidence threshold (%)")
      if j == 0:
        axes.set_ylabel(f"{METRICS[metric]} against the truth")
      axes.spines[["top", "right"]].set_visible(False)
  panels[0][-1].legend(frameon=False, fontsize=8)
  buffer = io.BytesIO()
  drawn.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
  return buffer.getvalue()


def write(workdir):
  """Writes `<workdir>/report/which_target.txt` and `.png`; returns the text's path."""
  content = results.read(workdir, NAME)
  directory = pathlib.Path(workdir) / "report"
  write_bytes(directory / f"{NAME}.png", figure(content))
  write_text(directory / f"{NAME}.txt", text(content) + "\n")
  return directory / f"{NAME}.txt"
