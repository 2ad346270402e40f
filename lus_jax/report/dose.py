"""Dose and response: how the best threshold follows the confidence at which strokes become true.

The dose is T of the phantom's settings `true_from_T`; the responses are scores against the truth,
of labels and of networks that learned them.
"""

from lus_jax import palette
from lus_jax.report import cells
from lus_jax.report.cells import Table, value

# Who answers; the others are networks, by their weights.
LABEL = "label"
_OF = {
  LABEL: "label",
  "paper": "networks, the paper's weights",
  "ones": "networks, all-ones weights",
}
_METRICS = {"dice": "Dice", "average_precision": "AP"}


def title(one):
  """Who answers by which score, in words."""
  return f"{_OF[one['of']]}: {_METRICS[one['metric']]}"


def dial(dose):
  """A dose as it is printed: 60%; a dash where there is none."""
  return "-" if dose is None else f"{100 * dose:.3g}%"


def _pairs(answers):
  """Every pair of thresholds, and where it stands in which answers: not all have the same."""
  found = {}
  for i, one in enumerate(answers):
    for j, row in enumerate(one["overtakes"]):
      found.setdefault((row["threshold"], row["against"]), {})[i] = j
  return found


def text(answers):
  """The answers (`tasks.which_target.compare.dose`) as text of several lines."""
  if not answers:
    return ""
  doses = [dial(dose) for dose in answers[0]["doses"]]
  body = [[title(one), *map(cells.percent, one["best"])] for one in answers]
  lines = ["Best threshold, by the confidence from which strokes are mostly true"]
  lines.append(cells.text_table(["", *doses], body))
  body = [
    [f"{cells.percent(a)} over {cells.percent(b)}"]
    + [
      dial(answers[i]["overtakes"][places[i]]["dose"]) if i in places else ""
      for i in range(len(answers))
    ]
    for (a, b), places in _pairs(answers).items()
  ]
  lines += ["", "From which such confidence on a threshold has the higher mean of two"]
  # Titles of a few letters, so that they all stand beside each other.
  header = [f"{one['of']}: {_METRICS[one['metric']]}" for one in answers]
  lines.append(cells.text_table(["", *header], body))
  return "\n".join(lines)


def best(files, name):
  """The best threshold by dose, a row an answer; None where no dose was tried."""
  answers = files[name].get("dose")
  if not answers:
    return None
  rows = [
    [title(one)]
    + [
      value(files, name, "dose", i, "best", j, show=cells.percent) for j in range(len(one["doses"]))
    ]
    for i, one in enumerate(answers)
  ]
  return Table(f"{name}_dose", ["", *map(dial, answers[0]["doses"])], rows)


def overtakes(files, name):
  """From which dose on the stricter of two thresholds has the higher mean; None without doses."""
  answers = files[name].get("dose")
  if not answers:
    return None
  rows = []
  for places in _pairs(answers).values():
    at = {i: (files, name, "dose", i, "overtakes", j) for i, j in places.items()}
    first = next(iter(at.values()))
    named = [value(*first, key, show=cells.percent) for key in ("threshold", "against")]
    found = [value(*at[i], "dose", show=dial) if i in at else "" for i in range(len(answers))]
    rows.append(named + found)
  return Table(f"{name}_overtakes", ["threshold", "over", *map(title, answers)], rows)


def figure(files, name):
  """The answers, drawn; None where no dose was tried."""
  # Training imports this module for its text and needs no plots for that.
  from lus_jax.report import figures

  answers = files[name].get("dose")
  return figures.render(by_dose, answers) if answers else None


def by_dose(answers):
  """A panel an answer: its score by dose, a line a threshold, the best of each dose marked.

  Args:
    answers: of `tasks.which_target.compare.dose`.

  Returns:
    A matplotlib `Figure`.
  """
  from matplotlib.figure import Figure

  columns = min(2, len(answers))
  rows = -(-len(answers) // columns)
  drawn = Figure(figsize=(3.6 * columns + 2.8, 1.6 + 3.0 * rows), layout="constrained")
  panels = drawn.subplots(rows, columns, squeeze=False).ravel()
  handles = {}
  for one, axes in zip(answers, panels, strict=False):
    x = [100 * dose for dose in one["doses"]]
    for k, (threshold, means) in enumerate(zip(one["thresholds"], one["means"], strict=True)):
      style = {"color": palette.css(k), "marker": palette.marker(k)}
      (handles[cells.percent(threshold)],) = axes.plot(x, means, **style)
    top = [max(means) for means in zip(*one["means"], strict=True)]
    ring = {"linestyle": "", "marker": "o", "markersize": 15, "fillstyle": "none"}
    (handles["the best"],) = axes.plot(x, top, color="#333333", **ring)
    axes.set_title(title(one), fontsize=12)
    axes.set_xticks(x)
  for axes in panels[max(0, len(answers) - columns) : len(answers)]:
    axes.set_xlabel("strokes are mostly true from, %")
  for axes in panels[len(answers) :]:
    axes.set_axis_off()
  drawn.legend(handles.values(), handles, loc="outside lower center", ncols=4)
  return drawn
