"""Tables as text, made from results files alone."""

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
