"""The page's sections of the segmentation: its tables, pictures and summary."""

import functools

import numpy as np

from lus_jax import labels
from lus_jax.data import copies
from lus_jax.evaluation import statistics
from lus_jax.report import cells, figures, paper, pictures, text

MIDDLE = 0.5  # the label that members without a threshold are judged by
# Below this many test patients no exact test, corrected for 11 comparisons, can reach p < .05.
_FEWEST_PATIENTS = 9


def examples(files):
  """The example frames for the template, best first, and which of them stands for all."""
  arrays = files["examples"]
  meta = next(iter(files.values()))
  classes = meta["dataset"]["classes"]
  binary = _binary(files)
  # The first seed's members come first.
  members = sorted(enumerate(meta["config"]["sweep"]["thresholds"]), key=lambda pair: pair[1])
  shown = []
  for n in range(len(arrays["index"])):
    image = arrays["image"][n, ..., 0]
    top, left, bottom, right = arrays["valid_box"][n].tolist()
    valid = np.zeros((*image.shape, len(classes)), np.float32)
    valid[top:bottom, left:right] = arrays["labelled"][n]
    if "ignore" in arrays:
      valid *= arrays["ignore"][n] == 0
    index = int(arrays["index"][n])

    picture = functools.partial(
      pictures.draw, image=image, valid=valid, classes=classes, where=f"test frame {index}"
    )
    confidence = arrays["confidence"][n] / np.float32(255)
    context = [picture("frame", np.zeros_like(confidence), "Nothing drawn")]
    painted = "label" if binary else "painted confidence"
    context.append(picture(painted, confidence, painted.capitalize()))
    if "truth" in arrays:
      context.append(
        picture("simulated truth", arrays["truth"][n] / np.float32(255), "Simulated truth")
      )
    steps = []
    for t, threshold in members:
      probability = arrays["probability"][t, n] / np.float32(255)
      at = cells.percent(threshold)
      steps.append(
        {
          "threshold": at,
          "iou": None,
          "label": picture("label", np.asarray(labels.label(confidence, threshold)), f"Label {at}"),
          "probability": picture("probability", probability, f"Probability of model {at}"),
          "prediction": picture(
            "prediction", (probability >= 0.5).astype(np.float32), f"Prediction of model {at}"
          ),
        }
      )
    where = []
    if "cases" in files:
      where = origin(files, index)
      for (t, _), step in zip(members, steps, strict=True):
        member = list(files["cases"]["rows"][index]["iou"])[t]
        step["iou"] = cells.value(files, "cases", "rows", index, "iou", member)
    shown.append(
      {
        "index": index,
        "role": str(arrays["role"][n]),
        "frame": pictures.png(image),
        "context": context,
        "steps": steps,
        "origin": where,
      }
    )
  main = next((n for n, example in enumerate(shown) if example["role"] == "middle"), 0)
  return {"main": shown[main], "others": [e for e in shown if e is not shown[main]]}


def drawn(examples):
  """The figure of the middle example: a dict of bytes by file suffix."""
  columns = [
    {
      "title": step["threshold"],
      "label": step["label"].overlaid(),
      "prediction": step["prediction"].overlaid(),
    }
    for step in examples["main"]["steps"]
  ]
  return figures.render(figures.pictures, columns)


def summary(files):
  """What the summary says, as far as the files that were read tell it."""
  name, meta = next(iter(files.items()))
  splits = meta["dataset"]["splits"]
  summary = {
    "epochs": cells.value(files, name, "config", "train", "epochs", show=cells.count),
    "seeds": cells.value(files, name, "config", "sweep", "seeds", show=cells.count),
    "frames": {
      split: cells.value(files, name, "dataset", "splits", split, show=cells.count)
      for split in splits
    },
    "patients": {},
    "notes": [],
    "judged": None,
    "others": None,
    "absent": [],
    "outputs": [],
    "binary": _binary(files),
    "full_confidence": _full_confidence(files),
    "few": False,
    "too_few": False,
    "paper_classes": set(meta["dataset"]["classes"]) == paper.PAPER_CLASSES,
  }
  if "dataset" in files:
    for i, row in enumerate(files["dataset"]["rows"]):
      at = cells.value(files, "dataset", "rows", i, "patients", show=cells.count)
      summary["patients"][row["split"]] = at
      if row["split"] == "test":
        summary["few"] = row["patients"] < _FEWEST_PATIENTS
        summary["too_few"] = row["patients"] < statistics.INTERVAL_PATIENTS
  if "segmentation" in files:
    content = files["segmentation"]
    found = files.get("dataset", {}).get("copies", [])
    summary["notes"] = list(copies.named(content["notes"], found))
    summary["absent"] = [
      (name, [cells.percent(t) for t in thresholds])
      for name, thresholds in text.absent_classes(content["rows"]).items()
    ]
    named = [(cells.percent(row["threshold"]), row) for row in content["rows"]]
    models = [(f"the model of {name}", row) for name, row in named]
    others = files["members"]["rows"] if "members" in files else []
    others = [(text.member_label(row["member"]), row) for row in others]
    outputs = {}
    for name, row in models + others:
      if (output := text.output_of(row)) is not None:
        kind = output, not any(row["predicted_share_per_class"].values())
        outputs.setdefault(kind, []).append(name)
    summary["outputs"] = [
      {"output": output, "words": text.OUTPUTS[output], "empty": empty, "names": names}
      for (output, empty), names in outputs.items()
    ]
    if content["predictors"]:
      summary["judged"] = _judge(named, content["predictors"])
      summary["others"] = _judge(others, content["predictors"]) if others else None
  return summary


def _full_confidence(files):
  """Whether something was painted, and all of it with full confidence."""
  bins = [
    bins
    for row in (files["dataset"]["rows"] if "dataset" in files else ())
    for by_class in row["painted"].values()
    for bins in by_class.values()
  ]
  return any(map(any, bins)) and not any(any(each[:-1]) for each in bins)


def _binary(files):
  """Whether all masks are binary: by the data set's note, or by what was painted."""
  notes = files["segmentation"]["notes"] if "segmentation" in files else ()
  return any(note.startswith("binary masks:") for note in notes) or _full_confidence(files)


def _judge(named, baselines):
  """Where models have a higher IoU than all baselines of the same label, as a mean and by class.

  A class counts where model and baselines have an IoU; a model without a threshold is judged at
  50 %, as its IoU is.

  Args:
    named: pairs of a name and a row of scores.
    baselines: rows of scores.

  Returns:
    A dict: `below` (names whose mean IoU is not above), `below_classes` (by class the names for
    which it is not), `n_pairs` and `n_above` (of a class and a name), `unknown` (names without
    baselines), `names`.
  """
  below, below_classes, unknown, n_pairs, n_above = [], {}, [], 0, 0
  for name, row in named:
    threshold = MIDDLE if row["threshold"] is None else row["threshold"]
    rivals = [other for other in baselines if other["threshold"] == threshold]
    if not rivals:
      unknown.append(name)
      continue
    if not all((row["iou"] or 0) > (other["iou"] or 0) for other in rivals):
      below.append(name)
    for one, iou in row["iou_per_class"].items():
      theirs = [other["iou_per_class"][one] for other in rivals]
      if iou is None or None in theirs:
        continue
      n_pairs += 1
      n_above += iou > max(theirs)
      if iou <= max(theirs):
        below_classes.setdefault(one, []).append(name)
  return {
    "names": list(dict.fromkeys(name for name, _ in named)),
    "below": list(dict.fromkeys(below)),
    "below_classes": {one: list(dict.fromkeys(names)) for one, names in below_classes.items()},
    "unknown": list(dict.fromkeys(unknown)),
    "n_pairs": n_pairs,
    "n_above": n_above,
  }


def _threshold(files, name, *path):
  return cells.value(files, name, *path, show=cells.percent)


def _reported(threshold, key):
  figure = paper.REPORTED.get(threshold, {}).get(key)
  return (
    ""
    if figure is None
    else cells.Value(f"reported#/{threshold}/{key}", figure, cells.number(figure))
  )


def _has_seeds(rows):
  return len({row.get("seed") for row in rows}) > 1


def _names(files, name, i, *, with_seed):
  seed = [cells.value(files, name, "rows", i, "seed", show=cells.count)] if with_seed else []
  return [_threshold(files, name, "rows", i, "threshold"), *seed]


def _scores(files, name, columns, *, reported=(), best_epoch=False):
  content = files["segmentation"]
  with_seed = _has_seeds(content["rows"])
  header = ["model", "threshold", *(["seed"] if with_seed else [])]
  header += [*(["best epoch"] if best_epoch else []), *columns.values()]
  rows = []
  for part, first in (("rows", "FPN"), ("predictors", None)):
    for i, row in enumerate(content[part]):
      at = (files, "segmentation", part, i)
      counts = [*(["seed"] if with_seed else []), *(["best_epoch"] if best_epoch else [])]
      rows.append(
        [
          first or row["predictor"],
          _threshold(*at, "threshold"),
          *(cells.value(*at, key, show=cells.count) if key in row else "" for key in counts),
          *(cells.value(*at, key) if key in row else "" for key in columns),
          *(_reported(row["threshold"], key) if first else "" for key in reported),
        ]
      )
  header += [f"paper: {text.COLUMNS[key]}" for key in reported]
  groups = tuple(i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0])
  return cells.Table(name, header, rows, groups)


def scores(files):
  """Table 1 of the page: models, then baselines; the paper's figures beside its own classes."""
  beside = set(files["segmentation"]["dataset"]["classes"]) == paper.PAPER_CLASSES
  return _scores(
    files, "scores", text.COLUMNS, reported=text.COLUMNS if beside else (), best_epoch=True
  )


def more_scores(files):
  """What Table 1 has no room for."""
  columns = {"weighted_ce_ref": "WeightedCE ref.", **text.MORE, "surface_dice": "Surface Dice"}
  return _scores(files, "more_scores", columns)


def per_class(files):
  """IoU by class, each model with the baselines of its threshold; frames that do not count."""
  content = files["segmentation"]
  with_seed = _has_seeds(content["rows"])
  classes = content["dataset"]["classes"]
  header = ["model", "threshold", *(["seed"] if with_seed else [])]
  header += [*classes, *(f"frames without {name}" for name in classes)]
  rows, groups = [], []
  for threshold in dict.fromkeys(row["threshold"] for row in content["rows"]):
    groups.append(len(rows))
    for part in ("rows", "predictors"):
      for i, row in enumerate(content[part]):
        if row["threshold"] != threshold:
          continue
        at = (files, "segmentation", part, i)
        seed = cells.value(*at, "seed", show=cells.count) if "seed" in row else ""
        rows.append(
          [
            row.get("predictor", "FPN"),
            _threshold(*at, "threshold"),
            *([seed] if with_seed else []),
            *(cells.value(*at, "iou_per_class", name) for name in classes),
            *(cells.value(*at, "empty_skipped", name, show=cells.count) for name in classes),
          ]
        )
  return cells.Table("scores_per_class", header, rows, tuple(groups[1:]))


def outlines(files):
  """Dice and 95 % Hausdorff distance by class of every member; None for runs without."""
  content = files["segmentation"]
  if not all("dice_per_class" in row and "hd95_images" in row for row in content["rows"]):
    return None
  with_seed, classes = _has_seeds(content["rows"]), content["dataset"]["classes"]
  header = ["threshold", *(["seed"] if with_seed else []), *(f"Dice {name}" for name in classes)]
  header += [cells.Column(f"HD95 {name}, px (frames)", ("", "frames")) for name in classes]
  rows = []
  for i in range(len(content["rows"])):
    at = (files, "segmentation", "rows", i)
    distances = (
      [
        cells.value(*at, "hd95_per_class", name, show=cells.pixels),
        " (",
        cells.value(*at, "hd95_images", name, show=cells.count),
        ")",
      ]
      for name in classes
    )
    rows.append(
      [
        *_names(files, "segmentation", i, with_seed=with_seed),
        *(cells.value(*at, "dice_per_class", name) for name in classes),
        *map(cells.Cells, distances),
      ]
    )
  return cells.Table("scores_outlines", header, rows)


_CALIBRATION = {
  "ece": "ECE",
  "ece_near": "ECE near",
  "ece_pooled": "ECE pooled",
  "brier": "Brier",
  "brier_near": "Brier near",
  "ece_visibility": "ECE visibility",
  "ece_visibility_near": "ECE visibility near",
}


def calibration(files):
  """Calibration errors of every member."""
  rows, with_seed = files["segmentation"]["rows"], _has_seeds(files["segmentation"]["rows"])
  keys = [key for key in _CALIBRATION if any(key in row for row in rows)]
  return cells.Table(
    "calibration",
    ["threshold", *(["seed"] if with_seed else []), *(_CALIBRATION[key] for key in keys)],
    [
      [
        *_names(files, "segmentation", i, with_seed=with_seed),
        *(cells.value(files, "segmentation", "rows", i, key) for key in keys),
      ]
      for i in range(len(rows))
    ],
  )


def reliability(files, name="segmentation", keys=("threshold", "seed")):
  """The points of the reliability curves, for the CSV file; `keys` say whose they are."""
  rows = []
  for i, row in enumerate(files[name]["rows"]):
    for one, curve in row["reliability"].items():
      for j in range(len(curve["count"])):
        at = (files, name, "rows", i, "reliability", one)
        points = [cells.value(*at, key, j) for key in ("count", "probability", "target")]
        rows.append([*(str(row[key]) for key in keys), one, str(j + 1), *points])
  header = [*keys, "class", "bin", "pixels", "mean probability", "mean target"]
  return cells.Table(
    "reliability" if name == "segmentation" else f"{name}_reliability", header, rows
  )


def matrix(files):
  """Model threshold by evaluation threshold: IoU and Dice."""
  name = "segmentation_matrix"
  rows = files[name]["rows"]
  with_seed = _has_seeds(rows)
  return cells.Table(
    "matrix",
    ["model threshold", *(["seed"] if with_seed else []), "evaluation threshold", "IoU", "Dice"],
    [
      [
        _threshold(files, name, "rows", i, "model_threshold"),
        *([cells.value(files, name, "rows", i, "seed", show=cells.count)] if with_seed else []),
        _threshold(files, name, "rows", i, "evaluation_threshold"),
        cells.value(files, name, "rows", i, "iou"),
        cells.value(files, name, "rows", i, "dice"),
      ]
      for i in range(len(rows))
    ],
  )


def history(files):
  """Every epoch of every member, for the CSV file."""
  header = {
    "member": "member",
    "epoch": "epoch",
    "train_loss": "training loss",
    "loss": "validation loss",
    "score": "validation IoU",
  }
  return cells.Table(
    "history",
    list(header.values()),
    [
      [cells.value(files, "history", "rows", i, key, show=str) for key in header]
      for i in range(len(files["history"]["rows"]))
    ],
  )


_PROVENANCE = ("patient", "video", "frame", "annotator", "view", "day")


def cases(files):
  """Where every test frame comes from and its IoU, a column a member, for the CSV file."""
  rows = files["cases"]["rows"]
  members = list(rows[0]["iou"])
  known = [key for key in _PROVENANCE if key in rows[0]]
  return cells.Table(
    "cases",
    ["index", *known, *(f"IoU {text.member_label(name)}" for name in members)],
    [
      [
        *(cells.value(files, "cases", "rows", i, key, show=str) for key in ("index", *known)),
        *(cells.value(files, "cases", "rows", i, "iou", name) for name in members),
      ]
      for i in range(len(rows))
    ],
  )


def origin(files, index):
  """What is known of where a test frame comes from: pairs of a word and a `Value`."""
  row = files["cases"]["rows"][index]
  known = [key for key in _PROVENANCE if row.get(key) not in (None, "", -1)]
  return [(key, cells.value(files, "cases", "rows", index, key, show=str)) for key in known]


def data_set(files):
  """Patients, videos and frames of every split, and how many frames show each class."""
  rows = files["dataset"]["rows"]
  keys, classes = ("patients", "videos", "frames"), list(rows[0]["frames_with"])
  return cells.Table(
    "dataset",
    ["split", *keys, *(f"frames with {name}" for name in classes)],
    [
      [
        row["split"],
        *(cells.value(files, "dataset", "rows", i, key, show=cells.count) for key in keys),
        *(
          cells.value(files, "dataset", "rows", i, "frames_with", name, show=cells.count)
          for name in classes
        ),
      ]
      for i, row in enumerate(rows)
    ],
  )


def painted(files):
  """Painted pixels by split, annotator, class and confidence, for the CSV file."""
  rows = []
  for i, row in enumerate(files["dataset"]["rows"]):
    for annotator, by_class in row["painted"].items():
      for name, bins in by_class.items():
        for j in range(len(bins)):
          edges = f"({100 * j / len(bins):g}, {100 * (j + 1) / len(bins):g}]"
          at = (files, "dataset", "rows", i, "painted", annotator, name, j)
          rows.append([row["split"], annotator, name, edges, cells.value(*at, show=cells.count)])
  return cells.Table("painted", ["split", "annotator", "class", "confidence, %", "pixels"], rows)
