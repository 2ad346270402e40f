"""The page's sections of several raters, other members of the sweep and calibration.

`files` holds the contents of the results files by name.
"""

import functools

import numpy as np

from lus_jax import labels
from lus_jax.evaluation import statistics
from lus_jax.report import cells, figures, pictures, text
from lus_jax.report.cells import Cells, Column, Table, value

_MEMBER = functools.partial(value, show=text.member_label)
_COUNT = functools.partial(value, show=cells.count)
_TEXT = functools.partial(value, show=str)
# Levels that are shown of a soft label and of a prediction.
LEVELS = (0.1, 0.5, 0.9)
MAX_VARIANCE = 0.25  # of binary masks, where half of the raters painted
_ROLES = {"most_agreed": "Among the most agreed on", "least_agreed": "Among the least agreed on"}
_MEMBERS = {
  "iou": "IoU",
  "dice": "Dice",
  "weighted_ce": "WeightedCE",
  "ce": "CE",
  "trimap": "Trimap",
  "iou_at_best_cut": "IoU best cut",
  "ece": "ECE",
  "brier": "Brier",
}
_ORDINAL = {"iou": "IoU", "dice": "Dice", "ece": "ECE"}


def _interval(files, part, i, key):
  """A score of raters.json, and below it the interval, where there is one."""
  first = value(files, "raters", part, i, key)
  at = (files, "raters", part, i, "intervals", key)
  if files["raters"][part][i]["intervals"].get(key) is None:
    return Cells([first])
  return Cells([first, "\n[", value(*at, 0), ", ", value(*at, 1), "]"])


def scores(files):
  """A row a network, then a row a person, then the people's mean."""
  content, keys = files["raters"], text.rater_scores(files["raters"])
  header = ["member", *(Column(title, ("", "low", "high")) for title in keys.values())]
  rows = [
    [
      _MEMBER(files, "raters", "rows", i, "member"),
      *(_interval(files, "rows", i, key) for key in keys),
    ]
    for i in range(len(content["rows"]))
  ]
  groups = [len(rows)]
  for i in range(len(content["humans"])):
    found = {
      key: _interval(files, "humans", i, x)
      for key, x in text.HUMAN_SCORES.items()
      if x in content["humans"][i]
    }
    name = value(files, "raters", "humans", i, "rater", show="human: {}".format)
    rows.append([name, *(found.get(key, "") for key in keys)])
  if content["rows"]:
    # The people's mean is the same beside every network.
    found = {
      key: _interval(files, "rows", 0, f"human_{key}") for key in text.HUMAN_SCORES if key in keys
    }
    groups.append(len(rows))
    rows.append(["humans, mean", *(found.get(key, "") for key in keys)])
  return Table("raters_scores", header, rows, tuple(groups))


def more_scores(files):
  """What the table of networks has no room for."""
  classes = files["raters"]["dataset"]["classes"]
  keys = {
    "ece_pooled": "ECE pooled",
    "area_error": "area error",
    "area_error_abs": "area, absolute",
  }
  rows = []
  for i in range(len(files["raters"]["rows"])):
    at = (files, "raters", "rows", i)
    rows.append(
      [
        _MEMBER(*at, "member"),
        _COUNT(*at, "best_epoch"),
        *(value(*at, key) for key in keys),
        *(value(*at, "ece_per_class", name) for name in classes),
      ]
    )
  header = ["member", "best epoch", *keys.values(), *(f"ECE {name}" for name in classes)]
  return Table("raters_more_scores", header, rows)


def people(files):
  """Who the raters are and how many test images each drew that another person drew as well."""
  rows = []
  for i in range(len(files["raters"]["humans"])):
    at = (files, "raters", "humans", i)
    rows.append([_TEXT(*at, "rater"), _TEXT(*at, "person"), _COUNT(*at, "n_images")])
  return Table("raters_people", ["rater", "person", "test images"], rows)


def curve(files):
  """The points of the curve over the number of raters fused."""
  columns = {
    "n_raters": ("raters fused", cells.count),
    "n_images": ("test images", cells.count),
    "prediction_vs_fused": ("prediction", cells.number),
    "fused_vs_all": ("mean of all raters", cells.number),
  }
  return Table(
    "raters_curve",
    [title for title, _ in columns.values()],
    [
      [
        value(files, "raters", "curve", "rows", i, key, show=show)
        for key, (_, show) in columns.items()
      ]
      for i in range(len(files["raters"]["curve"]["rows"]))
    ],
  )


def images(files):
  """How much the raters disagree about every test image, for the CSV file."""
  keys = {"index": str, "image": str, "patient": str, "disagreement": cells.number}
  return Table(
    "raters_images",
    list(keys),
    [
      [value(files, "raters", "images", i, key, show=show) for key, show in keys.items()]
      for i in range(len(files["raters"]["images"]))
    ],
  )


def curve_figure(files):
  """The score by the number of raters fused, drawn."""
  return figures.render(figures.raters_fused, files["raters"]["curve"]["rows"])


def reliability_figure(files):
  """Reliability curves of the members whose output is a confidence; None without one."""
  rows = [row for row in files["raters"]["rows"] if row["threshold"] is None]
  if not rows:
    return None
  return figures.render(figures.member_reliability, rows, files["raters"]["dataset"]["classes"])


def facts(files):
  """What the words about several raters need."""
  content = files["raters"]
  at_patients = None
  for i, row in enumerate(files.get("dataset", {}).get("rows", ())):
    if row["split"] == "test":
      at_patients = _COUNT(files, "dataset", "rows", i, "patients")
  persons = [row["person"] for row in content["humans"]]
  return {
    "patients": at_patients,
    "intervals": text.has_intervals(content),
    "several_tools": len(set(persons)) < len(persons),
    "calibration": content.get("calibration", "none"),
    "curve": _MEMBER(files, "raters", "curve", "member"),
    "unpainted": text.unpainted(content),
    "with_human_qubiq": "qubiq_leave_one_out" in text.rater_scores(content),
  }


def choose(names):
  """The member that stands for all in pictures: soft, else ordinal, else the first.

  Args:
    names: of members; not empty.
  """
  for wanted in ("soft", "ordinal"):
    for name in names:
      if text.unseeded(name) == wanted:
        return name
  return names[0]


def examples(files):
  """The test images that raters agree on most and least, for the template."""
  arrays, content = files["examples"], files["raters"]
  classes = content["dataset"]["classes"]
  names = arrays["rater_names"].tolist()
  member = choose(names)
  rows = {row["index"]: i for i, row in enumerate(content["images"])}
  shown = []
  for n, index in enumerate(arrays["rater_index"].tolist()):
    image = arrays["rater_image"][n, ..., 0]
    top, left, bottom, right = arrays["rater_valid_box"][n].tolist()
    valid = np.zeros((*image.shape, len(classes)), np.float32)
    valid[top:bottom, left:right] = 1
    picture = functools.partial(
      pictures.draw, image=image, valid=valid, classes=classes, where=f"test image {index}"
    )
    soft = arrays["rater_confidence"][n] / np.float32(255)
    prediction = arrays["rater_probability"][names.index(member), n] / np.float32(255)
    disagreement = arrays["rater_disagreement"][n] / MAX_VARIANCE
    lines = []
    for who, whole, what, caption in (
      ("raters", soft, "Mean of the raters", "raters' mean"),
      ("prediction", prediction, f"Prediction of {text.member_label(member)}", "prediction"),
    ):
      line = [picture(caption, whole, what)]
      for level in LEVELS:
        at = cells.percent(level)
        where = np.asarray(labels.label(whole, level))
        line.append(picture(f"{who}, at least {at}", where, f"{what}, at least {at},"))
      lines.append(line)
    lines[0].insert(0, picture("frame", np.zeros_like(soft), "Nothing drawn"))
    lines[1].insert(0, picture("disagreement", disagreement, "Disagreement of the raters"))
    at = (files, "raters", "images", rows[index])
    shown.append(
      {
        "index": index,
        "role": _ROLES[str(arrays["rater_role"][n])],
        "frame": pictures.png(image),
        "pictures": [one for line in lines for one in line],
        "image": _TEXT(*at, "image"),
        "patient": _TEXT(*at, "patient"),
        "disagreement": value(*at, "disagreement"),
      }
    )
  return {"member": text.member_label(member), "shown": shown}


def members(files):
  """Scores of the members beside the plain thresholds."""
  rows = []
  for i in range(len(files["members"]["rows"])):
    at = (files, "members", "rows", i)
    rows.append(
      [
        _MEMBER(*at, "member"),
        _TEXT(*at, "loss"),
        _TEXT(*at, "weights"),
        _COUNT(*at, "best_epoch"),
        *(value(*at, key) for key in _MEMBERS),
      ]
    )
  header = ["member", "loss", "weights", "best epoch", *_MEMBERS.values()]
  return Table("members_scores", header, rows)


def _pairs(files):
  """Levels of ordinal members beside the networks of the same threshold and seed.

  Returns:
    A list of (name of the ordinal member, index in segmentation.json, index in members.json).
  """
  networks = {
    (row["threshold"], row["seed"]): i for i, row in enumerate(files["segmentation"]["rows"])
  }
  found = []
  for j, row in enumerate(files["members"]["rows"]):
    i = networks.get((row["threshold"], row["seed"]))
    if row["target"] == "ordinal" and row["threshold"] is not None and i is not None:
      name = text.unseeded(row["member"]).removesuffix(cells.percent(row["threshold"])).strip()
      found.append((name, i, j))
  return found


def paired_rows(files):
  """Rows of one threshold: its name, the separate network and the level of the ordinal one."""
  return [
    (name, files["segmentation"]["rows"][i], files["members"]["rows"][j])
    for name, i, j in _pairs(files)
  ]


def ordinal(files):
  """Each level of an ordinal network beside the network of that threshold alone; None without."""
  pairs = _pairs(files)
  if not pairs:
    return None
  header = ["member"]
  for title in _ORDINAL.values():
    header += [f"{title}, ordinal", f"{title}, separate"]
  rows = [
    [
      _MEMBER(files, "members", "rows", j, "member"),
      *(
        value(files, *place, key)
        for key in _ORDINAL
        for place in (("members", "rows", j), ("segmentation", "rows", i))
      ),
    ]
    for _, i, j in pairs
  ]
  return Table("members_ordinal", header, rows)


def ordinal_figure(files):
  """IoU by threshold, ordinal and separate, drawn; None without an ordinal member."""
  pairs = paired_rows(files)
  return figures.render(figures.ordinal, pairs) if pairs else None


def cost_figure(files):
  """Mean IoU over thresholds by work, drawn; None without an ordinal member."""
  pairs, gflop = paired_rows(files), files["members"]["cost"]
  if not pairs or gflop["gflop_ordinal"] is None:
    return None
  return figures.render(figures.cost, pairs, gflop)


def members_facts(files):
  """What the words about other members need."""
  at, gflop = (files, "members", "cost"), files["members"]["cost"]
  show = "{:.3g}".format
  return {
    "cost": None
    if gflop["gflop_ordinal"] is None
    else {
      "thresholds": _COUNT(*at, "thresholds"),
      "separate": value(*at, "gflop_per_network", show=show),
      "ordinal": value(*at, "gflop_ordinal", show=show),
    },
  }


def methods(files):
  """Calibration errors before and after each method, a row a member and method."""
  content = files["calibration"]
  classes = content["dataset"]["classes"]
  keys = {"ece": "ECE", "ece_pooled": "ECE pooled", "brier": "Brier"}
  rows = []
  for i in range(len(content["rows"])):
    at = (files, "calibration", "rows", i)
    rows.append(
      [
        _MEMBER(*at, "member"),
        value(*at, "method", show=_method),
        *(value(*at, key) for key in keys),
        *(value(*at, "ece_per_class", name) for name in classes),
      ]
    )
  names = [row["member"] for row in content["rows"]]
  groups = tuple(i for i in range(1, len(names)) if names[i] != names[i - 1])
  header = ["member", "method", *keys.values(), *(f"ECE {name}" for name in classes)]
  return Table("calibration_methods", header, rows, groups)


def _method(name):
  return "before" if name == "none" else name


def _chosen_member(files):
  return choose([row["member"] for row in files["calibration"]["rows"]])


def methods_figure(files):
  """Reliability curves of one member before and after each method, drawn."""
  member = _chosen_member(files)
  rows = [row for row in files["calibration"]["rows"] if row["member"] == member]
  rows = [row | {"method": _method(row["method"])} for row in rows]
  classes = files["calibration"]["dataset"]["classes"]
  return figures.render(figures.method_reliability, rows, classes)


def methods_facts(files):
  """What the words about calibration need."""
  at, fitted_on = (files, "calibration", "fitted_on"), files["calibration"].get("fitted_on")
  return {
    "chosen": _TEXT(files, "calibration", "chosen"),
    "member": text.member_label(_chosen_member(files)),
    # Runs from before did not say.
    "fitted_on": fitted_on
    and {
      "frames": _COUNT(*at, "frames"),
      "patients": _COUNT(*at, "patients"),
      "few": fitted_on["patients"] < statistics.INTERVAL_PATIENTS,
      "by_class": [
        (name, _COUNT(*at, "frames_with", name))
        for name in files["calibration"]["dataset"]["classes"]
      ],
    },
  }
