"""How a clinical task's score grows with the number of patients, as text and on the page."""

from lus_jax.report import cells, paper

NAME = "learning_curve"


def enough(content):
  """From how many patients on each source beats what looks at no video, at every larger number too.

  Returns:
    A dict from source to a number of patients; None where it does not at the largest.
  """
  found = {}
  for source in dict.fromkeys(row["threshold"] for row in content["rows"]):
    found[source] = None
    rows = [row for row in content["rows"] if row["threshold"] == source]
    for row in sorted(rows, key=lambda row: -row["patients"]):
      if not row["beats"]:
        break
      found[source] = row["patients"]
  return found


def _name(content):
  return paper.TASKS[content["task"]].metrics[content["metric"]]


def sentences(content):
  """What it says of how many patients are needed, a sentence a source."""
  largest = max(row["patients"] for row in content["rows"])
  blind = paper.TASKS[content["task"]].baseline
  for source, n in enough(content).items():
    name = cells.source(source)
    if n is None:
      yield (
        f"{name}: not shown to beat the {blind} with up to {largest} patients by this recipe; try "
        "more patients, more epochs or another recipe."
      )
    else:
      yield f"{name}: beats the {blind} from {n} patients on (95 % interval over patients)."


def text(content):
  """What is printed at the end."""
  header = ["patients", "trained on", "channels", _name(content), "without a video", "difference"]
  body = [
    [
      row["patients"],
      row["trained"],
      cells.source(row["threshold"]),
      _with(row["estimate"], row["interval"]),
      cells.number(row["blind"]),
      _with(row["difference"], row["difference_interval"]) + (" *" if row["beats"] else ""),
    ]
    for row in content["rows"]
  ]
  return "\n".join(
    [
      f"Learning curve of {content['task']} on simulated patients, each tested once; trained on: "
      "patients of the smallest fold.",
      cells.text_table(header, body),
      "[ ]: 95 % interval over patients; *: of the difference on the better side of 0. The luck of "
      "a network's training is not in them.",
      *sentences(content),
      *(f"Note: {note}" for note in content["notes"]),
    ]
  )


def _with(value, interval):
  if interval is None:
    return cells.number(value)
  return f"{cells.number(value)} [{cells.number(interval[0])}, {cells.number(interval[1])}]"


def table(files):
  """The curve's table on the page."""
  header = ["patients", "trained on", "channels"]
  header += [cells.Column(_name(files[NAME]), ("estimate", "low", "high")), "without a video"]
  header += [cells.Column("difference", ("estimate", "low", "high"))]
  rows = []
  for i in range(len(files[NAME]["rows"])):
    at = (files, NAME, "rows", i)
    counts = [cells.value(*at, key, show=cells.count) for key in ("patients", "trained")]
    rows.append(
      [
        *counts,
        cells.value(*at, "threshold", show=cells.source),
        cells.Cells(cells.interval(*at, key="estimate")),
        cells.value(*at, "blind"),
        cells.Cells(_difference(*at)),
      ]
    )
  return cells.Table(NAME, header, rows)


def _difference(*at):
  first = cells.value(*at, "difference")
  if cells.value(*at, "difference_interval", show=str).value is None:
    return [first]
  low, high = (cells.value(*at, "difference_interval", k) for k in (0, 1))
  return [first, " [", low, ", ", high, "]"]
