"""The whole task in small: from the phantom to results files."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from lus_jax import results as results_lib
from lus_jax.data import datasets
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.report import cells, paper
from lus_jax.report import text as text_lib
from lus_jax.tasks.segmentation import advice
from lus_jax.tasks.segmentation import run as run_lib
from lus_jax.training import claim

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
  "data.image_size": 32,
  "data.phantom.n_patients": 4,
  "model.width": 0.125,
  "sweep.thresholds": (1.0, 0.6, 0.0),
  "train.epochs": 3,
  "train.batch_size": 4,
  "train.log_every": 3,
}


def load_config(size="tiny", **changes):
  spec = importlib.util.spec_from_file_location("seg", ROOT / "configs" / "seg.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(size)
  for name, value in changes.items():
    section = config
    *path, field = name.split(".")
    for part in path:
      section = section[part]
    assert field in section, name
    section[field] = value
  return config.lock()


def small(prepared, **changes):
  return load_config(**(SMALL | {"data.prepared_dir": os.fspath(prepared)} | changes))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  run_lib.train_and_evaluate(small(prepared, **{"model.dtype": "auto"}), workdir)
  return workdir


def test_results_follow_their_schema(finished):
  results = results_lib.read(finished, "segmentation")
  assert results["schema"] == 1
  assert results["split"] == "test"
  assert set(results["versions"]) >= {"lus_jax", "jax", "flax", "optax", "numpy", "python"}
  assert results["config"]["train"]["epochs"] == 3
  assert results["config"]["model"]["dtype"] == "float32"  # what auto was, on a CPU
  classes = results["dataset"]["classes"]
  assert len(classes) == 6
  assert set(results["dataset"]["splits"]) == {"train", "validation", "test"}
  assert [row["threshold"] for row in results["rows"]] == [1.0, 0.6, 0.0]
  per_class = {"iou_per_class", "ece_per_class", "empty_skipped"}
  numbers = {"iou", "dice", "weighted_ce", "weighted_ce_ref", "ce", "trimap", "ece", "ece_pooled"}
  for row in results["rows"]:
    assert row["best_epoch"] in (1, 2, 3, None)
    for name in per_class:
      assert list(row[name]) == classes
  for row in results["rows"] + results["predictors"]:
    assert numbers | {"brier", "ece_visibility"} <= set(row)
  assert all("surface_dice" in row for row in results["rows"])
  predictors = [(row["predictor"], row["threshold"]) for row in results["predictors"]]
  assert predictors == [(name, t) for name in ("prevalence", "mean_map") for t in (1.0, 0.6, 0.0)]
  assert results["notes"][0].startswith("simulated")


def test_the_matrix_holds_every_pair_and_its_diagonal_is_the_table(finished):
  matrix = results_lib.read(finished, "segmentation_matrix")["rows"]
  rows = results_lib.read(finished, "segmentation")["rows"]
  assert [(r["model_threshold"], r["evaluation_threshold"]) for r in matrix] == [
    (m, e) for m in (1.0, 0.6, 0.0) for e in (1.0, 0.6, 0.0)
  ]
  diagonal = [r for r in matrix if r["model_threshold"] == r["evaluation_threshold"]]
  assert [r["iou"] for r in diagonal] == [r["iou"] for r in rows]
  assert [r["dice"] for r in diagonal] == [r["dice"] for r in rows]


def test_the_history_has_every_epoch_of_every_member_and_the_best_is_in_it(finished):
  history = results_lib.read(finished, "history")["rows"]
  assert len(history) == 9
  for row in results_lib.read(finished, "segmentation")["rows"]:
    mine = [r for r in history if r["member"] == f"threshold_{row['threshold']:g}"]
    # Of equal scores the lower loss.
    defined = [(-r["score"], r["loss"], r["epoch"]) for r in mine if r["score"] is not None]
    if defined:
      assert row["best_epoch"] == min(defined)[-1]
      tied = [one for one in defined if one[0] == min(defined)[0]]
      assert row["chosen_by"] == ("score" if len(tied) == 1 else "loss")
    assert all(np.isfinite(r["train_loss"]) for r in mine)


def test_the_table_shows_the_numbers_of_the_file(finished):
  results = results_lib.read(finished, "segmentation")
  table = text_lib.segmentation(results)
  lines = [line.split() for line in table.splitlines()]
  for row in results["rows"]:
    (line,) = [
      x for x in lines if x[:1] == ["FPN"] and cells.percent(row["threshold"]) in " ".join(x[1:3])
    ]
    assert cells.number(row["iou"]) in line
    assert cells.number(row["weighted_ce"]) in line
    assert cells.number(paper.REPORTED[row["threshold"]]["iou"]) in line
  assert sum(x[:1] == ["mean_map"] for x in lines) == 3


def test_the_frozen_models_are_those_of_the_best_epochs(finished, prepared):
  trained = trained_lib.load(finished)
  results = results_lib.read(finished, "segmentation")
  assert trained.thresholds == (1.0, 0.6, 0.0)
  assert list(trained.classes) == results["dataset"]["classes"]
  # Their probabilities are those that the run itself found, right after training.
  with np.load(finished / "results" / "examples.npz") as examples:
    image, expected = examples["image"], examples["probability"]
    assert len(image) == len(examples["valid_box"])
  where = np.ones(image.shape, bool)  # the phantom fills its frames
  each = trained.sweep.to_host(trained.weights)
  for weights, own, found in zip(each, trained.sweep.members, expected, strict=True):
    p = np.asarray(trained.probability(weights, own, np.float32(image) / 255, where))
    assert np.abs(255 * p - found).max() <= 0.5 + 0.02
  frames = datasets.open_dataset(small(prepared).data, "frames")
  assert trained.patients == frames.patients()
  assert trained.dataset["population"] == "lus_phantom, seed 0"
  assert len(set(trained.fingerprints)) == 3
  part = trained.only([2, 0])
  assert part.thresholds == (0.0, 1.0)
  assert part.fingerprints == [trained.fingerprints[2], trained.fingerprints[0]]


def test_writers_and_checkpoints_leave_their_files(finished):
  assert list((finished / "tensorboard" / "run").glob("events.out.tfevents.*"))
  assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["2", "3"]
  assert not list(finished.rglob("*.tmp"))


def test_tensorboard_holds_curves_pictures_and_settings(finished):
  def load(*parts):
    # The run's own name, and a run for every member: their curves share a chart.
    directory = finished.joinpath("tensorboard", "run", *parts)
    accumulator = event_accumulator.EventAccumulator(
      os.fspath(directory), size_guidance={"images": 0}
    )
    accumulator.Reload()
    return accumulator, set(accumulator.Tags()["tensors"])

  classes = results_lib.read(finished, "segmentation")["dataset"]["classes"]
  for name in ("threshold_1", "threshold_0.6", "threshold_0"):
    accumulator, tags = load(name)
    assert {"loss/train", "loss/validation", "score/validation"} <= tags
    per_class = {tag for tag in tags if tag.startswith("score_per_class/")}
    assert per_class and per_class <= {f"score_per_class/{name}" for name in classes}
    assert [e.step for e in accumulator.Tensors("loss/validation")] == [5, 10, 15]
  accumulator, tags = load()
  # TensorFlow 2 writes numbers and pictures as tensors.
  assert {
    "learning_rate",
    "speed/model_images_per_second",
    "test_over_thresholds/weighted_ce",
    "validation_frames",
    "test",
  } <= tags
  # Single numbers are a table, not a chart each.
  assert {tag for tag in tags if tag.startswith("test")} == {"test"} | {
    tag for tag in tags if tag.startswith("test_over_thresholds/")
  }
  (table,) = accumulator.Tensors("test")[0].tensor_proto.string_val
  assert table.decode().splitlines()[0].startswith("| member | iou | iou_at_best_cut |")
  assert len(table.decode().splitlines()) == 2 + 3
  assert any("hparams" in tag for tag in tags) or any(
    "hparams" in name for name in accumulator.summary_metadata
  )
  assert [e.step for e in accumulator.Tensors("test_over_thresholds/weighted_ce")] == [0, 60, 100]
  width, height, *pictures = accumulator.Tensors("validation_frames")[0].tensor_proto.string_val
  assert (int(width), int(height)) == (4 * 32, 2 * 32)
  assert len(pictures) == 3


def blind(ious, bars):
  """segmentation.json of two thresholds, and the rows of dataset.json."""
  content = {
    "rows": [
      {"threshold": t, "iou": x, "weighted_ce": 0.3, "iou_at_best_cut": 0.2}
      for t, x in zip((0.6, 0.0), ious, strict=True)
    ],
    "predictors": [
      {"predictor": "mean_map", "threshold": t, "iou": x, "weighted_ce": t, "iou_at_best_cut": None}
      for t, x in zip((0.6, 0.0), bars, strict=True)
    ],
    "config": {"train": {"epochs": 3}},
  }
  counted = [
    {"split": "train", "frames": 9, "patients": 3, "frames_with": {"a_line": 2}},
    {"split": "test", "frames": 1, "patients": 1, "frames_with": {"a_line": 1}},
  ]
  return content, counted


@pytest.mark.parametrize(
  ("ious", "bars", "said"),
  [
    ((0.1, 0.2), (0.1, 0.3), True),
    ((0.1, 0.31), (0.1, 0.3), False),
    ((None, 0.0), (None, 0.0), True),
    ((None, 0.1), (0.2, None), False),
  ],
)
def test_networks_that_no_picture_helped_get_advice(ious, bars, said):
  text = advice.no_better_than_blind(*blind(ious, bars), 12)
  assert ("On this 1 test frame (1 patient) no" in text and "train.epochs=12" in text) == said
  assert said or text == ""


def test_advice_names_scores_that_do_beat_the_mean_map_and_none_where_nothing_is_labelled():
  content, counted = blind((0.1, 0.2), (0.2, 0.3))
  text = advice.no_better_than_blind(content, counted, 12)
  assert "But WeightedCE is below the mean map's at: 60%. Often steps are too few" in text
  assert "IoU at the best cut" not in text
  content["predictors"][1]["iou_at_best_cut"] = 0.1
  text = advice.no_better_than_blind(content, counted, 12)
  assert "But IoU at the best cut is above the mean map's at: > 0%." in text
  counted[0]["frames_with"] = {"a_line": 0}
  text = advice.no_better_than_blind(content, counted, 12)
  assert "there was nothing to learn" in text and "steps" not in text
  for row in content["rows"]:
    row["label_images"] = {"a_line": 0}
  assert advice.no_better_than_blind(content, counted, 12) == ""


class Painted(list):
  """Training frames of which only the confidence is there, of stored values and their counts."""

  def __init__(self, **counts):
    values = np.concatenate([np.full(n, int(value[1:]), np.uint8) for value, n in counts.items()])
    super().__init__([{"confidence": values}] * 3)

  def only(self, *names):
    return self


SEVEN = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)


def test_thresholds_with_the_same_labels_are_named_with_what_is_enough():
  text = advice.same_labels(Painted(v0=900, v255=100), SEVEN)
  assert text.startswith("labels: 100%, 80%, 60%, 50%, 40%, 20%, > 0% agree in 99% of their pixels")
  assert text.endswith("--config.sweep.thresholds=0.5 trains 1 in place of 7")
  assert "3 training frames" in text
  # Painted with 50 % and 100 %.
  text = advice.same_labels(Painted(v0=900, v128=50, v255=50), SEVEN)
  assert text.startswith("labels: 100%, 80%, 60% and 50%, 40%, 20%, > 0% agree")
  assert text.endswith("--config.sweep.thresholds=0.6,0.5 trains 2 in place of 7")


def test_labels_that_differ_a_little_are_not_called_the_same():
  edges = Painted(v0=900, v30=4, v140=4, v255=100)
  assert advice.same_labels(edges, (0.8, 0.5, 0.1)) == ""
  assert advice.same_labels(Painted(v0=900), SEVEN) == ""
  assert advice.same_labels(Painted(v0=1, v255=9), (0.5,)) == ""


def test_a_finished_run_prints_its_table_again_and_changes_nothing(finished, prepared, capsys):
  before = {p: p.read_bytes() for p in (finished / "results").iterdir()}
  # What is automatic is as the run began, though 16 frames would fit.
  automatic = {"model.dtype": "auto", "train.batch_size": 0}
  run_lib.train_and_evaluate(small(prepared, **automatic), finished)
  printed = capsys.readouterr().out
  assert "Table 1" in printed and "float32, batches of 4, strategy loop (auto for 2 cpu)" in printed
  assert {p: p.read_bytes() for p in (finished / "results").iterdir()} == before


def test_changed_data_are_refused(finished, prepared):
  file = finished / "run.json"
  content = file.read_text()
  changed = json.loads(content)
  changed["dataset"]["version"] = "1.0.0 (frames_32x32_00000000)"
  del changed["sha256"]
  file.write_text(json.dumps(changed))
  try:
    with pytest.raises(UserError, match="the data set has changed"):
      run_lib.train_and_evaluate(small(prepared), finished)
    file.write_text("{")
    with pytest.raises(UserError, match="run.json is damaged"):
      run_lib.train_and_evaluate(small(prepared), finished)
  finally:
    file.write_text(content)


def test_another_config_is_refused_naming_what_differs(finished, prepared):
  with pytest.raises(UserError, match=r"another config \(different: optimizer.learning_rate\)"):
    run_lib.train_and_evaluate(small(prepared, **{"optimizer.learning_rate": 1e-5}), finished)


def test_two_runs_in_one_directory_are_refused(prepared, tmp_path, in_use):
  workdir = tmp_path / "run"
  workdir.mkdir()
  with in_use(workdir), pytest.raises(UserError, match=f"{workdir} is in use by process 123"):
    run_lib.train_and_evaluate(small(prepared), workdir)
  assert not (workdir / "run.json").exists()


def test_fewer_epochs_are_refused_naming_the_way_on(finished, prepared):
  with pytest.raises(UserError, match=r"train.epochs\); .*with more epochs than its own"):
    run_lib.train_and_evaluate(small(prepared, **{"train.epochs": 2}), finished)


def test_more_epochs_that_are_refused_leave_the_results(finished, prepared, tmp_path, monkeypatch):
  workdir = shutil.copytree(finished, tmp_path / "run")
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  config = small(prepared, **{"train.epochs": 5})

  def same():
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before

  opened = datasets.open_dataset
  with monkeypatch.context() as patch:
    patch.setattr(
      datasets, "open_dataset", lambda *args: dataclasses.replace(opened(*args), name="other")
    )
    with pytest.raises(UserError, match="run on other data: the data set has changed"):
      run_lib.train_and_evaluate(config, workdir)
  assert same()
  # What clinical tasks were made with stays what it is.
  task = {"config": {"task": "sf_change", "channels": {"workdir": ""}}, "dataset": {}}
  task["dataset"]["segmentation"] = ["abc"]
  claim.claim(workdir / "sf_change", **task)
  with pytest.raises(
    UserError, match=r"sf_change was made with .*/results/sf_change\*.json to make"
  ):
    run_lib.train_and_evaluate(config, workdir)
  shutil.rmtree(workdir / "sf_change")
  (workdir / "results" / "sf_ratio_history.json").touch()
  with pytest.raises(UserError, match="sf_ratio was made with the segmentation models as they are"):
    run_lib.train_and_evaluate(config, workdir)
  (workdir / "results" / "sf_ratio_history.json").unlink()
  assert same()
  task["config"]["channels"]["workdir"] = "/elsewhere"
  claim.claim(workdir / "sf_change", **task)
  run_lib.check_no_tasks(workdir)


def test_members_without_a_score_are_named(caplog):
  best = [{"score": 0.0}, {"score": None}, {"score": 0.1}]
  advice.warn_of_unscored(["a", "b", "c"], best, 3)
  never, undefined = caplog.messages
  assert never.startswith("In no epoch did a draw anything") and "train.epochs=12)" in never
  assert undefined.startswith("No validation frame shows anything at the threshold of b:")


@pytest.mark.slow
def test_bfloat16_is_the_same_run_but_for_rounding(finished, prepared, tmp_path):
  run_lib.train_and_evaluate(small(prepared, **{"model.dtype": "bfloat16"}), tmp_path / "run")
  runs = tmp_path / "run", finished
  ours, theirs = (
    np.array([row["train_loss"] for row in results_lib.read(run, "history")["rows"][:3]])
    for run in runs
  )
  # The first epoch: 8 bits of significand and what Adam makes of them, .024 at most as measured.
  np.testing.assert_allclose(ours, theirs, rtol=0.05)
  assert (ours != theirs).all()
  # What training amplifies: the test is computed in it too.
  ce = [[row["ce"] for row in results_lib.read(x, "segmentation")["rows"]] for x in runs]
  np.testing.assert_allclose(*ce, rtol=0.2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sweep.thresholds": (1.2,)}, "1.2 is not in"),
    ({"sweep.thresholds": (0.5, 0.5)}, "0.5 stands there twice"),
    ({"sweep.thresholds": (0.5, 0.5001)}, "0.5001 stands there twice"),
    ({"seed": -1}, "config.seed: -1"),
    ({"data.split_seed": -1}, "config.data.split_seed: -1"),
    ({"augment.gamma": (0.9,)}, "config.augment.gamma"),
    ({"data.phantom.missing_views": 1.5}, "missing_views"),
    ({"sweep.thresholds": ()}, "thresholds is empty"),
    ({"sweep.thresholds": ("a",)}, "'a' is not a number"),
    ({"train.epochs": 0}, "config.train.epochs: 0"),
    ({"train.batch_size": -1}, "config.train.batch_size: -1"),
    ({"optimizer.learning_rate": 0.0}, "learning_rate: 0.0"),
    ({"loss.name": "hinge"}, "config.loss.name: 'hinge'"),
    ({"loss.weights": "heavy"}, "config.loss.weights: 'heavy'"),
    ({"loss.reduction": "sum"}, "config.loss.reduction: 'sum'"),
    ({"loss.subthreshold_weight": "x"}, "config.loss.subthreshold_weight: 'x'"),
    ({"sweep.strategy": "pmap"}, "config.sweep.strategy: 'pmap'"),
    ({"model.encoder": "vgg"}, "config.model.encoder: 'vgg'"),
    ({"model.dtype": "int8"}, "config.model.dtype: 'int8' is not known; choose one of auto, float"),
    ({"data.name": "mnist"}, "config.data.name: 'mnist'"),
    ({"data.cache": "disk"}, "config.data.cache: 'disk'"),
    ({"data.split_unit": "eye"}, "config.data.split_unit: 'eye'"),
    ({"data.image_size": 8}, "config.data.image_size: 8"),
    ({"data.phantom.setting": "nice"}, "nice"),
    ({"data.phantom.n_patients": 2}, "at least 3"),
    ({"train.batch_size": 4000}, "train.batch_size: 4000 is more than"),
    ({"loss.region": -1.0}, "config.loss.region: -1.0"),
    ({"optimizer.weight_decay": -1.0}, "config.optimizer.weight_decay: -1.0"),
    ({"optimizer.averaging": 1.0}, "config.optimizer.averaging: 1.0"),
    ({"train.smoothing": -0.1}, "config.train.smoothing: -0.1"),
    ({"augment.haze": 2.0}, "config.augment.haze: 2.0"),
    ({"augment.crop": 48}, "config.augment.crop: 48 is larger than the images"),
    ({"model.shrink": 3}, "config.model.shrink: 3"),
    ({"model.shrink": 4, "data.image_size": 34}, "config.model.shrink: 4 does not divide the 34"),
    (
      {"model.shrink": 2, "data.image_size": 35, "augment.crop": 34},
      "config.model.shrink: 2 does not divide the 35",
    ),
    ({"train.minutes": -1.0}, "config.train.minutes: -1.0"),
  ],
)
def test_a_bad_value_is_refused_before_anything_is_written(prepared, tmp_path, changes, message):
  with pytest.raises(UserError) as error:
    run_lib.train_and_evaluate(small(prepared, **changes), tmp_path / "run")
  assert message in str(error.value)
  assert "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_json_results_hold_no_nan(finished):
  def refuse(constant):
    raise AssertionError(constant)

  for file in (finished / "results").glob("*.json"):
    json.loads(file.read_text(), parse_constant=refuse)


def test_epochs_that_the_loss_decided_are_named_under_the_table():
  rows = [{"threshold": t, "seed": 0, "chosen_by": by} for t, by in ((1.0, "loss"), (0.5, "score"))]
  (remark,) = text_lib.remarks({"rows": rows})
  assert remark.endswith("the one of the lowest validation loss was taken: 100%")
  # Runs from before do not say.
  assert not list(text_lib.remarks({"rows": [{"threshold": 1.0, "seed": 0}]}))
