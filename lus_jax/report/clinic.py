"""The clinic's questions: answers, controls and every seed, in words, tables and a figure.

`files` holds the contents of the results files by name.
"""

import functools

from lus_jax import palette
from lus_jax.report import cells
from lus_jax.report.cells import Cells, Column, Table, value

NAME = "clinic"
SCORES = {
  "accuracy3": "3-class accuracy",
  "accuracy3_no_same_day": "3-class accuracy, without pairs of one day",
  "accuracy2_merged": "2-class accuracy, argmax then merged",
  "accuracy2": "2-class accuracy, summed probabilities",
  "majority3": "always the majority class",
}
ANSWERS = {
  "yes": "yes",
  "no": "not shown to be better; better by less than the margin, if at all",
  "worse": "no: it is worse",
  "undecided": "undecided",
  "blind": "undecided: true masks did not help, so the study could have seen nothing",
}
# Analyses that may answer.
DECIDES = {"mixed": "mixed model", "seeds_test": "t test of the means of seeds"}
_COUNT = functools.partial(value, show=cells.count)
_PROBABILITY = functools.partial(value, show=cells.probability)
_SIGNED = "{:+.3f}".format


def source(name):
  """A threshold, a control or a baseline in words."""
  return SCORES[name] if name in SCORES else cells.source(name)


_SOURCE = functools.partial(value, show=source)


def title(one):
  """What is compared: '60% less 50%'."""
  return f"{source(one['threshold'])} less {source(one['against'])}"


def _without(effects):
  """Random effects that came out as 0, or the model that could not be fitted, in words."""
  if "model" in effects:
    return "the model (t test of the seeds' means)"
  return " and ".join(effects) or "none"


def score(content):
  """The score that decides, in words."""
  return SCORES.get(content["primary"], content["primary"])


def text(content):
  """The tables of `results/clinic.json` as text of several lines."""
  n, seeds = content["questions"][0]["n_patients"], len(content["seeds"])
  lines = [
    f"Which threshold helps? {n} simulated patients of {seeds} whole studies, each patient tested "
    f"once ({content['questions'][0]['n_left_out']} more have no score); {score(content)} of a "
    "patient's pairs, means of patients"
  ]
  body = [
    [source(one["threshold"]), cells.number(one["mixed"]["mean"]), *_ends(one["mixed"], "{:.3f}")]
    for one in content["means"]
  ]
  lines.append(cells.text_table(["channels", "mean", "low", "high"], body))
  lines += ["", "Controls and questions: mixed model (patients in folds in seeds)"]
  lines.append(f"It is the {DECIDES[content['decides']]} that answers; bare p are uncorrected.")
  lines.append("(the bootstrap knows nothing of how seeds differ, and decides nothing)")
  rows = [("control", one) for one in content["controls"]]
  rows += [("question", one) for one in content["questions"]]
  header = ["", "", "difference", "low", "high", "p", "without", "seeds: p", "p, Holm", "bootstrap"]
  body = [
    [
      kind,
      title(one),
      _SIGNED(one["mixed"]["mean"]),
      *_ends(one["mixed"], "{:+.3f}"),
      cells.probability(one["mixed"]["p"]),
      _without(one["mixed"]["without"]),
      cells.probability(one["seeds_test"]["p"]),
      cells.probability(one["p_holm"]) if "p_holm" in one else "",
      "[{}, {}]".format(*_ends(one["bootstrap"], "{:+.3f}")),
    ]
    for kind, one in rows
  ]
  lines.append(cells.text_table(header, body))
  lines += [
    f"Is {source(one['threshold'])} better than {source(one['against'])}? {ANSWERS[one['answer']]}"
    for one in content["questions"]
  ]
  lines.append("Simulated patients: they show what the method can find, nothing about real ones.")
  return "\n".join(lines)


def _ends(one, show):
  return [show.format(end) for end in one["interval"]]


def _with_interval(*at, show=_SIGNED):
  return Cells(cells.interval(*at, key="mean", show=show, before="\n["))


def comparisons(files, *, key):
  """Questions, or controls: a row each, by every analysis."""
  rows = []
  for i in range(len(files[NAME][key])):
    at = (files, NAME, key, i)
    row = [_SOURCE(*at, "threshold"), _SOURCE(*at, "against")]
    row += [_COUNT(*at, f"n_{what}") for what in ("patients", "left_out", "differ")]
    row += [_with_interval(*at, "mixed"), _COUNT(*at, "mixed", "df")]
    row.append(_PROBABILITY(*at, "mixed", "p"))
    row += [value(*at, "mixed", f"sd_{name}") for name in ("seed", "fold", "patient")]
    row.append(value(*at, "mixed", "without", show=_without))
    row += [_with_interval(*at, "seeds_test"), _PROBABILITY(*at, "seeds_test", "p")]
    row.append(_with_interval(*at, "bootstrap"))
    if key == "questions":
      row.append(_PROBABILITY(*at, "p_holm"))
      row.append(value(*at, "answer", show=ANSWERS.get))
    rows.append(row)
  ends = ("", "low", "high")
  header = [
    "first",
    "less",
    "patients",
    "left out",
    "differ",
    Column("difference", ends),
    "df",
    "p",
  ]
  header += ["sd of seeds", "sd of folds", "sd of patients", "effects left out"]
  header += [Column("means of seeds", ends), "p, means of seeds", Column("bootstrap", ends)]
  header += ["p, corrected (Holm)", "answer"] if key == "questions" else []
  return Table(f"{NAME}_{key}", header, rows)


def means(files):
  """Every source's mean scores."""
  names = [name for name in SCORES if name in files[NAME]["means"][0]]
  rows = []
  for i in range(len(files[NAME]["means"])):
    at = (files, NAME, "means", i)
    row = [_SOURCE(*at, "threshold"), _COUNT(*at, "n_patients")]
    row.append(_with_interval(*at, "mixed", show=cells.number))
    rows.append([*row, *(value(*at, name) for name in names)])
  header = ["channels", "patients", Column(score(files[NAME]), ("", "low", "high"))]
  return Table(f"{NAME}_means", [*header, *(f"mean, {SCORES[name]}" for name in names)], rows)


def seeds(files):
  """The mean score of every source in every seed."""
  rows = []
  for i, one in enumerate(files[NAME]["seeds"]):
    at = (files, NAME, "seeds", i)
    row = [_COUNT(*at, "seed"), _COUNT(*at, "n_patients")]
    rows.append([*row, *(value(*at, "scores", j, "score") for j in range(len(one["scores"])))])
  names = [source(one["threshold"]) for one in files[NAME]["means"]]
  return Table(f"{NAME}_seeds", ["seed", "patients", *names], rows)


def networks(files):
  """Every network: a row a seed, fold and source, for the CSV file."""
  rows = []
  for i, one in enumerate(files[NAME]["rows"]):
    at = (files, NAME, "rows", i)
    row = [_COUNT(*at, "seed"), value(*at, "task", show=str), _COUNT(*at, "fold")]
    row += [_SOURCE(*at, "threshold"), _COUNT(*at, "n_patients"), _COUNT(*at, "best_epoch")]
    own = value(*at, files[NAME]["primary"]) if files[NAME]["primary"] in one else ""
    rows.append([*row, own])
  header = ["seed", "task", "fold", "channels", "patients", "best epoch", score(files[NAME])]
  return Table(f"{NAME}_networks", header, rows)


def patients(files):
  """Every patient: a row a seed, patient and source, for the CSV file."""
  names = [name for name in SCORES if name in files[NAME]["patients"][0]]
  rows = []
  for i in range(len(files[NAME]["patients"])):
    at = (files, NAME, "patients", i)
    row = [_COUNT(*at, "seed"), value(*at, "patient", show=str), _COUNT(*at, "fold")]
    rows.append([*row, _SOURCE(*at, "threshold"), *(value(*at, name) for name in names)])
  header = ["seed", "patient", "fold", "channels", *(SCORES[name] for name in names)]
  return Table(f"{NAME}_patients", header, rows)


def others(files):
  """Scores of the other tasks, means over the networks of all folds and seeds; None without any."""
  if not files[NAME]["others"]:
    return None
  found = []
  for i in range(len(files[NAME]["others"])):
    at = (files, NAME, "others", i)
    row = [value(*at, "task", show=str), _SOURCE(*at, "threshold"), value(*at, "metric", show=str)]
    found.append([*row, value(*at, "mean"), _COUNT(*at, "n_networks")])
  return Table(f"{NAME}_others", ["task", "channels", "score", "mean", "networks"], found)


def figure(files):
  """Differences of every seed and of all of them, drawn."""
  # Training imports this module for its text and needs no plots for that.
  from lus_jax.report import figures

  return figures.render(differences, files[NAME])


def differences(content):
  """A row a comparison: the interval of all patients, and beside it the mean of every seed.

  Args:
    content: of clinic.json.

  Returns:
    A matplotlib `Figure`.
  """
  from matplotlib.figure import Figure

  rows, key = content["questions"] + content["controls"], content["decides"]
  drawn = Figure(figsize=(8.4, 1.6 + 0.62 * len(rows)), layout="constrained")
  axes = drawn.subplots()
  asked = len(content["questions"])
  for i, one in enumerate(rows):
    color = palette.css(5 if i < asked else 4)
    at = -i - 0.5 * (i >= asked)
    axes.plot(one[key]["interval"], [at, at], color=color, linewidth=3)
    axes.plot(one[key]["mean"], at, color=color, marker="o", markersize=9)
    own = [mean for mean in one["by_seed"] if mean is not None]
    axes.plot(own, [at + 0.22] * len(own), color=color, linestyle="", marker="|", markersize=9)
  places = [-i - 0.5 * (i >= asked) for i in range(len(rows))]
  axes.set_yticks(places, [title(one) for one in rows], fontsize=11)
  axes.axvline(0, color="#333333", linewidth=1)
  axes.axvspan(-content["margin"], content["margin"], color="#888888", alpha=0.15, linewidth=0)
  axes.set_xlabel(f"difference of {score(content)}")
  return drawn


def _compared(at, *where):
  return {
    "difference": at(*where, "mean", show=_SIGNED),
    "interval": [at(*where, "interval", k, show=_SIGNED) for k in (0, 1)],
  }


def facts(files):
  """What the words about the study need: numbers with their places, and the answers."""
  content = files[NAME]
  at = functools.partial(value, files, NAME)
  # The positive control stands first.
  key = content["decides"]
  control = content["controls"][0][key]["mean"]
  asked = [abs(one[key]["mean"]) for one in content["questions"]]
  return {
    "seeds": at("config", "study", "seeds", show=cells.count),
    "patients": at("questions", 0, "n_patients", show=cells.count),
    "margin": at("margin"),
    "score": score(content),
    "decides": DECIDES[key],
    "can_see": content["can_see"],
    "control": _compared(at, "controls", 0, key),
    "margin_exceeds": content["margin"] > control,
    "smaller": max(asked) < control,
    "answers": [
      {
        "first": source(one["threshold"]),
        "second": source(one["against"]),
        "answer": at("questions", i, "answer", show=ANSWERS.get),
        **_compared(at, "questions", i, key),
        "p": at("questions", i, "p_holm", show=cells.probability),
      }
      for i, one in enumerate(content["questions"])
    ],
  }
