"""Results files of made-up runs: every field that a run leaves, random numbers."""

import functools
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from lus_jax import report
from lus_jax.evaluation import results as results_lib

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
  "two seeds": {"thresholds": (0.5, 0.0), "seeds": 2, "classes": ("a_line", "b_line")},
}


def load_config(size, thresholds, seeds):
  spec = importlib.util.spec_from_file_location("seg", ROOT / "configs" / "seg.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(size)
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
):
  """Writes all results files of a run and returns its directory."""
  rng = np.random.default_rng(0)
  config = load_config(config_size, thresholds, seeds)
  n_test = 6
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
  for name, content in contents.items():
    results_lib.write(workdir, name, config=config, dataset=dataset, **content)
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
  results_lib.write_examples(workdir, **arrays, **({"truth": confidence} if simulated else {}))
  return workdir


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
  """`write_results` into a new directory."""
  return lambda **changes: write_results(tmp_path_factory.mktemp("runs") / "run", **changes)


@pytest.fixture(scope="session")
def built(make_run):
  """The directory of a run of `RUNS`, with its report."""

  @functools.cache
  def build(name):
    workdir = make_run(**RUNS[name])
    report.build(workdir)
    return workdir

  return build
