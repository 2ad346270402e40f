"""Results files of made-up runs: every field that a run leaves, random numbers."""

import functools
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from lus_jax import report, results
from lus_jax.tasks.which_target import compare, run

ROOT = pathlib.Path(__file__).parents[2]
PAPER = ("sharp_pleura", "fuzzy_pleura", "fascia_band", "a_line", "sub_a_line", "vertical_line")
SIZE, BINS = 32, 15
RUNS = {
  "phantom": {},
  "one class, one threshold": {
    "classes": ("b/line~ <x>",),
    "thresholds": (0.6,),
    "simulated": False,
    "patients": 12,
    "annotators": ("",),
  },
  "two seeds": {
    "thresholds": (0.5, 0.0),
    "seeds": 2,
    "classes": ("a_line", "b_line"),
    "annotators": ("", "B <i>"),
    "with_work": True,
  },
  "several raters": {
    "classes": ("lesion <1>", "gland"),
    "thresholds": (0.9, 0.5, 0.1),
    "patients": 12,
    "annotators": ("",),
    "more": {},
  },
  "few raters": {
    "classes": ("lesion",),
    "thresholds": (0.5, 0.0),
    "seeds": 2,
    "simulated": False,
    "more": {"raters": ("A", "B <i>"), "others": ("majority", "rater_A")},
  },
}


def load_config_file(name, size):
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(size)


def load_config(size, thresholds, seeds):
  config = load_config_file("seg", size)
  config.sweep.thresholds, config.sweep.seeds = thresholds, seeds
  config.train.epochs, config.data.image_size = 3, SIZE
  return json.loads(config.to_json())


def scores(rng, classes, *, simulated):
  def each(draw):
    return {name: draw() for name in classes}

  def reliability():
    counts = rng.integers(0, 3, BINS) * 30.0
    known = [[float(x) if n else None for x, n in zip(rng.random(BINS), counts, strict=True)]] * 2
    return {"count": counts.tolist(), "probability": known[0], "target": known[1]}

  names = ["iou", "dice", "weighted_ce", "weighted_ce_ref", "ce", "trimap", "ece", "ece_pooled"]
  names += ["ece_near", "brier", "brier_near", "surface_dice"]
  names += ["ece_visibility", "ece_visibility_near"] if simulated else []
  return {name: float(rng.random()) for name in names} | {
    "iou_per_class": each(lambda: None if rng.random() < 0.1 else float(rng.random())),
    "empty_skipped": each(lambda: int(rng.integers(9))),
    "reliability": each(reliability),
  }


RATER_METRICS = ("qubiq", "dice_vs_raters", "dice_vs_consensus", "human_dice_vs_raters") + (
  "human_dice_vs_consensus", "ged", "ece", "ece_pooled", "brier", "area_error", "area_error_abs"
)  # fmt: skip
METHODS = ("none", "temperature", "isotonic")


def disc(radius):
  """A mask [SIZE, SIZE]."""
  y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
  return np.hypot(x, 1.3 * y) < radius


def write_more(
  workdir,
  *,
  config,
  dataset,
  patients,
  raters=("A", "B", "B (loupe)", "C", "D <i>"),
  others=("soft", "softseg", "svls_0.5", "majority", "random_rater", "rater_A", "ordinal")
  + ("threshold_0.5_dice",),
):
  """Writes raters.json, members.json and calibration.json; returns the examples' arrays."""
  rng = np.random.default_rng(1)
  classes, thresholds = dataset["classes"], config["sweep"]["thresholds"]
  seeds, n_test = config["sweep"]["seeds"], dataset["splits"]["test"]
  views = [(f"threshold_{t:g}", "threshold", t) for t in thresholds]
  for name in others:
    target = name.split("_")[0] if name.startswith(("svls", "threshold")) else name
    views.append((name, target, 0.5 if target == "threshold" else None))
    if name == "ordinal":
      views += [(f"ordinal_{t:g}", "ordinal", t) for t in sorted(thresholds)]
  views = [
    (name + (f"_seed_{seed}" if seeds > 1 else ""), target, threshold, seed)
    for seed in range(seeds)
    for name, target, threshold in views
  ]

  def draw(low=0.3, high=0.9):
    return float(rng.uniform(low, high))

  def interval(x):
    return [x - 0.1, x + 0.07] if patients >= 10 else None

  def reliability(power):
    x = (np.arange(BINS) + 0.5) / BINS
    counts = [100.0] * (BINS - 1) + [5.0]
    return {
      name: {"count": counts, "probability": x.tolist(), "target": (x**power).tolist()}
      for name in classes
    }

  def write(name, **content):
    results.write(workdir, name, config=config, dataset=dataset, **content)

  rows = []
  for name, target, threshold, seed in views:
    row = {"member": name, "threshold": threshold, "seed": seed, "best_epoch": 2}
    row |= {key: draw() for key in RATER_METRICS}
    row |= {"human_dice_vs_raters": 0.71234, "human_dice_vs_consensus": 0.75678}
    row |= {"ged": None} if target == "svls" else {}
    row["ece_per_class"] = {one: draw() for one in classes}
    row["intervals"] = {key: interval(row[key]) if row[key] else None for key in RATER_METRICS}
    rows.append(row | {"reliability": reliability(draw(0.5, 2))})
  humans = []
  for rater in raters:
    row = {"rater": rater, "person": rater.split(" (")[0], "n_images": n_test - 1}
    row |= {key: draw() for key in ("dice_vs_others", "dice_vs_consensus")}
    humans.append(row | {"intervals": {key: interval(row[key]) for key in list(row)[3:]}})
  soft = next((name for name, _, threshold, _ in views if threshold is None), views[0][0])
  write(
    "raters",
    split="test",
    calibration="isotonic",
    rows=rows,
    humans=humans,
    curve={
      "member": soft,
      "rows": [
        {"n_raters": m, "n_images": n_test - m // 3}
        | {"prediction_vs_fused": 0.8 - 0.3 / m, "fused_vs_all": 1 - 0.4 / m + 0.4 / len(raters)}
        for m in range(1, len(raters) + 1)
      ],
    },
    images=[
      {"index": i, "image": f"im<age>{i}", "patient": f"p{i % patients}"}
      | {"disagreement": draw(0, 0.1) if i else None}
      for i in range(n_test)
    ],
  )
  write(
    "members",
    split="test",
    rows=[
      {"member": name, "target": target, "loss": "cross_entropy", "weights": "ones"}
      | {"threshold": threshold, "seed": seed, "best_epoch": 3, "chosen_by": "loss"}
      | scores(rng, classes, simulated=False)
      | {"iou_at_best_cut": draw()}
      for name, target, threshold, seed in views
      if target != "threshold" or name.startswith("threshold_0.5_dice")
    ],
    cost={
      "gflop_per_network": 31.4159,
      "thresholds": len(thresholds),
      "gflop_ordinal": 33.2211 if "ordinal" in others else None,
    },
  )
  write(
    "calibration",
    split="test",
    chosen="isotonic",
    rows=[
      {"member": name, "method": method, "ece": draw(), "ece_pooled": draw(), "brier": draw()}
      | {"ece_per_class": {one: draw() for one in classes}}
      | {"reliability": reliability({"none": 1.8, "temperature": 1.3, "isotonic": 1.05}[method])}
      for name, *_ in views
      for method in METHODS
    ],
  )
  # Raters' discs of other sizes; the networks paint a blurred one.
  radii = {2: (9.0, 9.5, 10.0, 9.8, 10.2), 5: (3.0, 6.0, 9.0, 12.0, 14.0)}
  share = [np.mean([disc(r) for r in mine[: len(raters)]], axis=0) for mine in radii.values()]
  share = np.repeat(np.array(share)[..., None], len(classes), -1)
  share[..., 1:] *= np.arange(SIZE)[:, None, None] < SIZE / 2
  blurred = np.mean([disc(r) for r in np.linspace(4, 14, 40)], axis=0)[..., None]
  blurred = np.rint(255 * blurred * np.ones(len(classes))).astype(np.uint8)
  probability = np.array([[np.minimum(blurred, 255 - 9 * v)] * 2 for v in range(len(views))])
  return {
    "rater_index": np.array(list(radii)),
    "rater_role": np.array(["most_agreed", "least_agreed"]),
    "rater_image": rng.integers(40, 140, (2, SIZE, SIZE, 1), dtype=np.uint8),
    "rater_confidence": np.rint(255 * share).astype(np.uint8),
    "rater_disagreement": (share * (1 - share)).astype(np.float32),
    "rater_names": np.array([name for name, *_ in views]),
    "rater_probability": probability,
    "rater_valid_box": np.array([[4, 0, 28, 32]] * 2),
  }


def make_painters(rng, annotators, classes):
  """What dataset.json says of who painted what."""

  def row(name, known):
    counts = ("labels", "used", "consensus", "prelabelled", "touched", "untouched", "timed")
    return {
      "annotator": name,
      **{key: int(rng.integers(100)) for key in counts},
      **{key: 1234 if known else None for key in ("seconds", "median_seconds")},
      **{key: "2026-01-31" if known else None for key in ("first", "last")},
      "painted": {one: (rng.integers(0, 5000, 20) * known).tolist() for one in classes},
    }

  words = ("lus_jax 9.9.9", "0123456789ab", "runs/<x>: soft")
  tools = [(annotators[0], None, None, None), *((name, *words) for name in annotators)]
  keys = ("annotator", "tool", "protocol", "prelabel")
  return {
    "annotators": [row(name, bool(i)) for i, name in enumerate(annotators)],
    "tools": [dict(zip(keys, one, strict=True)) | {"labels": 3} for one in tools],
  }


def write_results(
  workdir,
  *,
  classes=PAPER,
  thresholds=(1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0),
  seeds=1,
  simulated=True,
  patients=4,
  config_size="tiny",
  annotators=("A", "B"),
  with_work=False,
  more=None,
):
  """Writes all results files of a run and returns its directory.

  `with_work` says how masks came to be, and what was left out.

  `more` are options of `write_more`: None for a run without raters, other members, calibration.
  """
  rng = np.random.default_rng(0)
  config = load_config(config_size, thresholds, seeds)
  n_test = max(6, patients)
  dataset = {
    "name": "lus_phantom" if simulated else "my <lungs> & others",
    "version": "1.0.0 (frames)",
    "classes": list(classes),
    "split_unit": "patient" if simulated else "frame",
    "splits": {"train": 40, "validation": 8, "test": n_test},
  }
  members = [(seed, t) for seed in range(seeds) for t in thresholds]
  names = [f"threshold_{t:g}" + (f"_seed_{s}" if seeds > 1 else "") for s, t in members]
  rows = []
  for seed, threshold in members:
    row = {"threshold": threshold, "seed": seed, "best_epoch": int(rng.integers(1, 4))}
    row |= scores(rng, classes, simulated=simulated)
    rows.append(row | {"iou": 0.5 + 0.5 * row["iou"], "iou_at_best_cut": float(rng.random())})
  predictors = [
    {"predictor": name, "threshold": t, **scores(rng, classes, simulated=simulated)}
    for name in ("prevalence", "mean_map")
    for t in thresholds
  ]
  for row in predictors:
    row["iou"] *= 0.4
    row["iou_per_class"] = dict.fromkeys(classes, 0.0)
  cases = [
    {"index": i, "patient": f"p{i % patients}", "video": f"v{i}", "frame": 0}
    | {"annotator": annotators[0], "view": "" if i else "L1", "day": -1 if i else 2}
    | {"iou": {name: None if rng.random() < 0.1 else float(rng.random()) for name in names}}
    for i in range(n_test)
  ]
  contents = {
    "segmentation": {
      "split": "test",
      "rows": rows,
      "predictors": predictors,
      "notes": ["simulated frames: nothing about patients."] if simulated else [],
    },
    "segmentation_matrix": {
      "rows": [
        {"model_threshold": m, "seed": s, "evaluation_threshold": e}
        | {"iou": float(rng.random()) if m or e else None, "dice": float(rng.random())}
        for s, m in members
        for e in thresholds
      ]
    },
    "history": {
      "rows": [
        {"epoch": epoch, "member": name, "train_loss": float(rng.random())}
        | {"score": float(rng.random()) if epoch > 1 else None, "loss": float(rng.random())}
        for epoch in (1, 2, 3)
        for name in names
      ]
    },
    "cases": {"split": "test", "rows": cases},
    "dataset": {
      "rows": [
        {
          "split": split,
          "patients": patients if split == "test" else 20,
          "videos": frames,
          "frames": frames,
          "frames_with": {name: int(rng.integers(frames)) for name in classes},
          "painted": {
            who: {name: rng.integers(0, 5000, 20).tolist() for name in classes}
            for who in annotators
          },
        }
        for split, frames in dataset["splits"].items()
      ]
    },
  }
  if with_work:
    contents["dataset"] |= make_painters(rng, annotators, classes)
    contents["dataset"]["rows"][0]["left_out"] = {"untouched": 17, "replaced": 2}
    contents["dataset"]["rows"][2]["left_out"] = {"replaced": 1}
  if simulated:  # runs from before have none
    parts = {"data": 20.25, "compiling": 31.0, "training": 1234.5, "report": 9.0}
    contents["timing"] = {
      "rows": [
        {"run": "report" if part == "report" else "segmentation", "part": part, "seconds": x}
        for part, x in parts.items()
      ],
      "runs": [
        {"run": "segmentation", "sittings": 2, "seconds": 1285.75},
        {"run": "report", "sittings": 1, "seconds": 9.0},
      ],
    }
  for name, content in contents.items():
    results.write(workdir, name, config=config, dataset=dataset, **content)
  shape = (3, SIZE, SIZE)
  confidence = rng.choice([0, 0, 0, 51, 153, 255], (*shape, len(classes))).astype(np.uint8)
  arrays = {
    "index": np.array([4, 0, 5]),
    "role": np.array(["best", "middle", "worst"]),
    "image": rng.integers(0, 255, (*shape, 1), dtype=np.uint8),
    "confidence": confidence,
    "probability": rng.integers(
      0, 255, (len(members), *shape, len(classes)), dtype=np.uint8, endpoint=True
    ),
    "labelled": np.ones((3, len(classes)), bool),
    "valid_box": np.array([[4, 0, 28, 32]] * 3),
  }
  if more is not None:
    options = {"config": config, "dataset": dataset, "patients": patients, **more}
    arrays |= write_more(workdir, **options)
  results.write_examples(workdir, **arrays, **({"truth": confidence} if simulated else {}))
  return workdir


SOURCES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0, "none", "true")
METRICS = {
  "sf_change": ("accuracy3", "accuracy2_merged", "accuracy2", "accuracy3_no_same_day")
  + ("accuracy2_merged_no_same_day", "accuracy2_no_same_day", "majority3", "majority2"),
  "sf_ratio": ("rmse_mean", "rmse_median", "rmse_max", "rmse_video", "rmse_constant"),
  "readmission": ("accuracy", "recall", "precision", "majority"),
}
PRIMARY = {"sf_change": "accuracy3", "sf_ratio": "rmse_mean", "readmission": "accuracy"}
BASELINE = {"sf_change": "majority3", "sf_ratio": "rmse_constant", "readmission": "majority"}
CLASSES = {"sf_change": ["Decrease", "Same", "Increase"], "readmission": ["no", "yes"]}
# How the runs of `TASK_RUNS` call their results files, and what is in them.
TASK_RUNS = {
  "study": {
    "with_segmentation": True,
    "files": {"sf_change": {}, "sf_ratio": {"found": True}, "readmission": {}},
  },
  "small": {
    "files": {
      "sf_ratio": {"sources": (0.6, 0.0, "none"), "folds": 2, "patients": 4, "epochs": 3},
    },
  },
  "other targets": {
    "files": {
      name: {"task": task, "target": f"<{name}> & co", "sources": (0.5, "none", "true")}
      | {"patients": 19, "simulated": False, "names": "<b>patient {}</b>", "epochs": 2}
      for name, task in {
        "cov_test": "readmission",
        "severity #1": "sf_ratio",
        "worse": "sf_change",
      }.items()
    },
  },
}


def write_task(
  workdir,
  name,
  *,
  task=None,
  target=None,
  sources=SOURCES,
  folds=5,
  patients=12,
  epochs=20,
  found=False,
  simulated=True,
  names="p{:02d}",
):
  """Writes the results files of a clinical task: random numbers, one comparison decided."""
  task = task or name
  target = target or {"readmission": "readmitted_30d"}.get(task, "sf_ratio")
  rng = np.random.default_rng(len(name))
  config = {"task": task, "name": name, "seed": 0, "folds": {"n": folds}}
  if target == "sf_ratio" and task == "sf_ratio":
    config["target_scale"] = 477.0
  dataset = {
    "name": "lus_phantom" if simulated else "my <lungs> & others",
    "version": "1.0.0 (videos)",
    "classes": list(PAPER) if simulated else [],
    "split_unit": "patient",
    "splits": {"train": 100, "validation": 20, "test": 30},
  }
  n, metrics = patients, METRICS[task]
  test = [names.format(i) for i in range(n)]
  members = [(source, fold) for source in sources for fold in range(folds)]

  def draw(low=0.3, high=0.7):
    return float(rng.uniform(low, high))

  def interval(value, width=0.1):
    return [value - width, value + width] if n >= 10 else None

  rows = []
  for source, fold in members:
    row = {"threshold": source, "fold": fold, "best_epoch": int(rng.integers(1, epochs + 1))}
    row |= {"chosen_by": "score", "n_patients": n} | {key: draw() for key in metrics}
    if task == "readmission":
      row["precision_defined"] = bool(rng.random() < 0.8)
    rows.append(row)
  numbers = [t for t in sources if not isinstance(t, str)]
  summary = []
  for source in sources:
    found_metrics = {}
    for key in metrics:
      mine = [row[key] for row in rows if row["threshold"] == source]
      value = draw()
      found_metrics[key] = {
        "mean": float(np.mean(mine)),
        "sd": float(np.std(mine, ddof=1)),
        "estimate": value,
        "interval": interval(value),
        "undefined_resamples": 17 if key == "precision" else 0,
      }
    against = [BASELINE[task]] + (["none"] if source != "none" and "none" in sources else [])
    worth = -0.2 if task == "sf_ratio" else 0.2
    differences = [
      {"against": a, "metric": PRIMARY[task], "difference": (d := draw(-0.05, 0.05) + worth)}
      | {"interval": interval(d)}
      for a in against
    ]
    pairs = [(t, 0.0) for t in numbers if t != 0] + [(t, 0.5) for t in numbers if t not in (0, 0.5)]
    comparisons = [
      {"against": other, "difference": draw(0.01, 0.1), "p": (p := draw(0.02, 0.09))}
      | {"p_holm": min(1.0, 11 * p)}
      for t, other in pairs
      if t == source and other in numbers
    ]
    if found and source == 0.6:
      comparisons[0] |= {"difference": -0.123, "p": 0.0004, "p_holm": 0.0044}
    summary.append(
      {"threshold": source, "n_patients": n, "n_folds": folds, "metrics": found_metrics}
      | {"differences": differences, "comparisons": comparisons}
      | {"smallest_attainable_p": min(1.0, 11 * 2 / 2**n), "can_decide": n >= 9}
    )
  content = {
    "task": task,
    "target": target,
    "primary": PRIMARY[task],
    "rows": rows,
    "summary": summary,
    "patients": [
      {"threshold": source, "patient": patient, **{key: draw() for key in metrics}}
      for source in sources
      for patient in test
    ],
    "folds": [
      {"fold": fold, "train": [f"t{fold}", "t<i>"], "validation": [f"v{fold}"], "test": test}
      for fold in range(folds)
    ],
    "left_out": [
      {"what": "patients", "why": "one day only", "count": 2, "which": ["<em>a</em>", "b"]}
    ],
    "notes": ["simulated frames: nothing about patients."] if simulated else ["one <visit>."],
    "segmentation": {
      "dataset": "lus_phantom",
      "thresholds": numbers,
      "same_data_set": simulated,
    },
  }
  if task != "sf_ratio":
    k = len(CLASSES[task])
    content["confusion"] = [
      {"threshold": source, "classes": CLASSES[task]}
      | {"matrix": rng.integers(0, 2000 if k == 3 else 40, (k, k)).tolist()}
      for source in sources
    ]
  if task == "sf_ratio":
    content["predictions"] = [
      {"threshold": source, "fold": fold, "patient": patient, "day": day}
      | {"measured": test.index(patient) / n + day / 50}
      | {key: draw() for key in ("mean", "median", "max")}
      for source, fold in members
      for patient in test
      for day in (1, 3)
    ]
  elif task == "readmission":
    content["predictions"] = [
      {"threshold": source, "fold": fold, "patient": patient}
      | {"label": int(rng.integers(2)), "predicted": int(rng.integers(2)), "votes": [4, 2]}
      for source, fold in members
      for patient in test
    ]
  results.write(workdir, name, config=config, dataset=dataset, **content)
  past = [
    {"epoch": epoch, "member": f"{source}_fold_{fold}", "threshold": source, "fold": fold}
    | {"train_loss": draw() / epoch, "loss": draw(), "score": draw() if epoch > 1 else None}
    for epoch in range(1, epochs + 1)
    for source, fold in members
  ]
  results.write(workdir, f"{name}_history", config=config, dataset=dataset, rows=past)
  return workdir


# How the runs of the study of targets differ.
TARGET_RUNS = {
  "targets": {},
  "few targets": {
    "settings": ("faint_uninformative",),
    "seeds": 2,
    "thresholds": (1.0, 0.5, 0.0),
    "members": ("threshold(0.5, weights=ones)", "soft"),
    "found": False,
    "null_studies": 0,
  },
  "doses": {
    "settings": ("true_from_0.8", "true_from_0", "true_from_0.4"),
    "seeds": 2,
    "thresholds": (0.8, 0.5, 0.4, 0.0),
    "members": ("threshold(0.8, weights=ones)", "threshold(0.0, weights=ones)", "soft"),
    "found": False,
    "null_studies": 0,
  },
}
TARGET_METRICS = ("average_precision", "dice", "dice_half", "ece", "brier")


def write_targets(
  workdir,
  *,
  settings=("faint_true", "faint_false", "faint_uninformative", "null"),
  seeds=12,
  thresholds=(1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0),
  members=None,
  found=True,
  null_studies=200,
):
  """Writes which_target.json: random numbers; if `found`, a question answered either way."""
  rng = np.random.default_rng(4)
  config = load_config_file("which_target", "paper")
  config.study.settings, config.study.seeds = settings, seeds
  config.study.null_studies, config.sweep.thresholds = null_studies, thresholds
  config.loss.weights = "paper"
  config.sweep.members = members or (
    *(f"threshold({t}, weights=ones)" for t in thresholds),
    "soft",
    "softseg",
    "ordinal(weights=ones)",
  )
  config.study.questions = (
    (settings[0], 0.0, 0.5),
    ("all", "soft", 0.0),
    (settings[-1], thresholds[0], 0.5),
  )
  config = json.loads(config.to_json())
  with_ones = [
    t for t in thresholds if f"threshold({t}, weights=ones)" in config["sweep"]["members"]
  ]
  named = [x for x in ("soft", "softseg") if x in config["sweep"]["members"]]
  ordinal = "ordinal(weights=ones)" in config["sweep"]["members"]
  named += ["ordinal_ones"] if ordinal else []

  def draw(low=0.2, high=0.8):
    return float(rng.uniform(low, high))

  def interval(x):
    return [x - 0.03, x + 0.02] if seeds >= 10 else None

  def difference(x):
    return {"difference": x, "interval": interval(x)}

  rows = []
  for setting in settings:
    # Members without a threshold are the same in both families.
    same = {(name, metric): draw() for name in named for metric in TARGET_METRICS}
    for weights, numbers in (("paper", thresholds), ("ones", with_ones)):
      family = [*numbers, *named]
      for metric in TARGET_METRICS:
        means = {name: same.get((name, metric)) or draw() for name in family}
        rows.append(
          {
            "setting": setting,
            "weights": weights,
            "metric": metric,
            "means": [
              {"member": name, "mean": x, "interval": interval(x)} for name, x in means.items()
            ],
            "best": max(means, key=means.get),
          }
        )
  answers = (
    [(0.041, 0.0001, "yes"), (0.002, 0.9, "undecided"), (-0.032, 0.012, "no")]
    if found
    else [(draw(-0.05, 0.05), 0.5, "undecided") for _ in range(3)]
  )
  questions = [
    {"setting": setting, "member": a, "against": b, "metric": "average_precision", "parts": []}
    | difference(x)
    | {"p": p / 2, "p_holm": p, "answer": answer}
    for (setting, a, b), (x, p, answer) in zip(config["study"]["questions"], answers, strict=True)
  ]
  names = [f"threshold_{t:g}" for t in thresholds] + [f"threshold_{t:g}_ones" for t in with_ones]
  levels = [
    {"setting": setting, "threshold": t, "weights": "ones", "metric": metric}
    | {"ordinal": draw(), "separate": draw()}
    | difference(draw(-0.05, 0.05))
    for setting in settings
    for t in sorted(with_ones)
    for metric in TARGET_METRICS
  ]
  units = [
    {"setting": setting, "standardise": "none", "seed": seed, "member": name}
    | {m: draw() for m in TARGET_METRICS}
    for seed in range(seeds)
    for setting in settings
    for name in names + named
  ]

  def scale(setting, member, metric):
    at = {"setting": setting, "standardise": "quantile", "member": member, "metric": metric}
    both = {"mean": draw(), "none": draw()}
    return at | both | difference(draw(-0.05, 0.05)) | {"p": 0.02, "p_holm": 0.04}

  scales, spread = [], []
  if found:
    scales = [
      scale(setting, name, metric)
      for setting in settings
      for metric in TARGET_METRICS[:2]
      for name in names[:2]
    ]
    spread = [scale(setting, names[0], "annotator_sd") for setting in settings]
  tried = {"studies": null_studies, "studies_with_answers": 4, "questions": 3 * null_studies}
  tried |= {"below_level": 27}
  fit = [
    {"setting": setting, "member": name, "fit_train": draw(), "fit_test": draw()}
    for setting in settings
    for name in names + named
  ]
  labels = [
    {"setting": setting, "threshold": t, "mean": x, "interval": interval(x)}
    for setting in settings
    for t in thresholds
    for x in [draw()]
  ]
  dataset = {"name": "lus_phantom", "version": "simulated anew for every unit", "splits": {}}
  results.write(
    workdir,
    "which_target",
    config=config,
    dataset=dataset,
    rows=rows,
    levels=levels if ordinal else [],
    units=units,
    questions=questions,
    null_studies=tried if null_studies else None,
    fit=fit,
    labels=labels,
    dose=compare.dose(rows, labels, run.doses_of(settings)),
    scales=scales,
    spread=spread,
  )
  return workdir


@pytest.fixture(scope="session")
def make_targets(tmp_path_factory):
  """`write_targets` into a new directory."""
  return lambda **changes: write_targets(tmp_path_factory.mktemp("runs") / "run", **changes)


@pytest.fixture(scope="session")
def make_tasks(tmp_path_factory):
  """Writes the results files of clinical tasks into a new directory."""

  def make(files, *, with_segmentation=False):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    if with_segmentation:
      write_results(workdir)
    for name, options in files.items():
      write_task(workdir, name, **options)
    return workdir

  return make


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
  """`write_results` into a new directory."""
  return lambda **changes: write_results(tmp_path_factory.mktemp("runs") / "run", **changes)


@pytest.fixture(scope="session")
def built(make_run, make_tasks, make_targets):
  """The directory of a run of `RUNS`, `TASK_RUNS` or `TARGET_RUNS`, with its report."""
  makers = ((make_run, RUNS), (make_tasks, TASK_RUNS), (make_targets, TARGET_RUNS))

  @functools.cache
  def build(name):
    workdir = next(make(**runs[name]) for make, runs in makers if name in runs)
    report.build(workdir)
    return workdir

  return build
