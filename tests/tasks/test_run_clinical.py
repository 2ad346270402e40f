"""The clinical tasks from a segmentation run to results files, with toy networks."""

import dataclasses
import gc
import json
import math
import shutil
import weakref

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lus_jax import models, results
from lus_jax.data import clips, copies, datasets
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.tasks.clinical import initial as initial_lib
from lus_jax.tasks.clinical import questions
from lus_jax.tasks.clinical import run as run_lib
from lus_jax.tasks.clinical import train as train_lib
from lus_jax.tasks.segmentation import run as segmentation_run
from lus_jax.training import checkpoints, claim, loop, state

pytestmark = pytest.mark.usefixtures("toy_networks")

THRESHOLDS = [0.6, 0.0]
SOURCES = [0.6, 0.0, "none", "true"]
TASKS = ("sf_change", "sf_ratio", "readmission")


@pytest.fixture
def workdir(toy_segmentation, tmp_path):
  return shutil.copytree(toy_segmentation, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(toy_segmentation, task_config, tmp_path_factory):
  """All three tasks in one directory."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  shutil.copytree(toy_segmentation, workdir)
  for task in TASKS:
    run_lib.train_and_evaluate(task_config(task, **{"train.epochs": 2}), workdir)
  return workdir


class Votes(questions.Readmission):
  """Its loss alone, without patients."""

  def __init__(self):
    pass


def refused(function, *fragments):
  with pytest.raises(UserError) as error:
    function()
  for fragment in fragments:
    assert fragment in str(error.value), str(error.value)
  assert "\n" not in str(error.value)


def change_results(workdir, name, change):
  file = workdir / "results" / f"{name}.json"
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))


def test_members_are_every_source_in_every_fold():
  names, places, members = train_lib.make_members([0.6, 0.0], ("none", "true"), 2)
  assert names == [
    f"{source}_fold_{f}"
    for source in ("threshold_0.6", "threshold_0", "none", "true")
    for f in (0, 1)
  ]
  assert places == [(source, f) for source in SOURCES for f in (0, 1)]
  rows = [(int(m["fold"]), int(m["channel"]), float(m["use"])) for m in members]
  assert rows[::2] == [(0, 0, 1), (0, 1, 1), (0, 0, 0), (0, 2, 1)]
  assert [row[0] for row in rows] == [0, 1] * 4
  # Without 'none' the true masks are still the last channel.
  _, _, members = train_lib.make_members([0.6], ("true",), 1)
  assert [int(m["channel"]) for m in members] == [0, 1]


def test_a_member_sees_the_frame_and_its_own_channels():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 3, 2, 4, 4, 1), np.uint8)
  channels = rng.integers(0, 256, (2, 3, 3, 2, 4, 4, 5), np.uint8)  # [F, c, M, N, h, w, K]
  channels[0, 1, 0, 0, 0, 0, :4] = 0, 127, 128, 255
  inputs = {"image": image, "channels": channels}
  _, places, members = train_lib.make_members([0.6, 0.0], ("none", "true"), 2)
  for (source, f), member in zip(places, members, strict=True):
    clip = np.asarray(train_lib.member_clips(inputs, member, "probability"))
    assert clip.shape == (3, 2, 4, 4, 6) and clip.dtype == np.float32
    np.testing.assert_allclose(clip[..., :1], image[f] / 255, rtol=1e-6)
    c = {0.6: 0, 0.0: 1, "true": 2}.get(source)
    expected = np.zeros((3, 2, 4, 4, 5)) if c is None else channels[f, c] / 255
    np.testing.assert_allclose(clip[..., 1:], expected, rtol=1e-6)
    binary = np.asarray(train_lib.member_clips(inputs, member, "binary"))
    np.testing.assert_array_equal(binary[..., 1:], expected >= 0.5)
    np.testing.assert_array_equal(binary[..., 0], clip[..., 0])


@pytest.mark.parametrize("mapped", [False, True])
def test_clips_that_keep_the_place_of_missing_ones_change_nothing(key, mapped):
  rng = np.random.default_rng(0)
  inputs = {
    "image": rng.integers(0, 256, (2, 12, 2, 8, 8, 1), np.uint8),
    "channels": rng.integers(0, 256, (2, 1, 12, 2, 8, 8, 5), np.uint8),
    # Of two patients with three views and two days, what is there in each of two folds.
    "recorded": rng.random((2, 12)) < 0.7,
    "label": np.array([[0, 1], [1, 0]], np.int32),
  }
  inputs["present"] = inputs["recorded"].reshape(2, 2, 3, 2).all(-1)
  assert inputs["present"].any((1, 2)).all() and not inputs["recorded"].all(1).any()
  _, _, members = train_lib.make_members([0.6], (), 2)
  options = {"in_channels": 6, "outputs": 2, "hidden": (), "seed": 0}
  network = state.Network(models.build_video_model(None, **options))
  loss = train_lib.make_loss(network, Votes(), "probability")

  def step(member, inputs):
    def run(params):
      return loss(params, network.batch_stats, member, inputs, key)

    return jax.value_and_grad(run, has_aux=True)(network.params)

  def outcome(inputs):
    if not mapped:
      return [jax.jit(step)(member, inputs) for member in members]
    stacked = jax.tree.map(lambda *x: np.stack(x), *members)
    return jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, inputs)

  other = {name: inputs[name].copy() for name in inputs}
  for f, clip in np.argwhere(~inputs["recorded"]).tolist():
    other["image"][f, clip] = 255
    other["channels"][f, :, clip] = 0
  jax.tree.map(np.testing.assert_array_equal, outcome(inputs), outcome(other))
  # Those that were recorded do matter, whether their view votes or not.
  f, clip = np.argwhere(inputs["recorded"])[0].tolist()
  other["image"][f, clip] = 255
  found, changed = (jax.tree.leaves(outcome(x)) for x in (inputs, other))
  assert any((a != b).any() for a, b in zip(found, changed, strict=True))


@pytest.mark.parametrize(("factor", "epochs"), [(2, 50), (1, 25), (3, 10), (2, 3)])
def test_the_learning_rate_is_a_cosine_with_warm_restarts(factor, epochs):
  config = ConfigDict({"learning_rate": 0.4, "restart_epochs": 10, "restart_factor": factor})
  _, schedule = train_lib.make_optimizer(config, 7, epochs)
  start, length = 0, 70
  for step in range(7 * epochs):
    if step == start + length:
      start, length = step, length * factor
    expected = 0.4 * (1 + math.cos(math.pi * (step - start) / length)) / 2
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-6), step
  if epochs == 50:
    assert float(schedule(70)) == float(schedule(210)) == pytest.approx(0.4)
    assert float(schedule(209)) < 1e-4 and float(schedule(105)) > 0.34


METRICS = {
  "sf_change": {
    "accuracy3",
    "accuracy2_merged",
    "accuracy2",
    "accuracy3_no_same_day",
    "accuracy2_merged_no_same_day",
    "accuracy2_no_same_day",
    "majority3",
    "majority2",
    "brier",
    "brier_constant",
    "auroc_ordinal",
  },
  "sf_ratio": {"rmse_mean", "rmse_median", "rmse_max", "rmse_video", "rmse_constant"}
  | {"rmse_constant_median", "rmse_constant_max"},
  "readmission": {"accuracy", "recall", "precision", "majority"}
  | {"auroc", "sensitivity", "specificity", "brier", "brier_constant"},
}


@pytest.mark.parametrize("name", TASKS)
def test_results_follow_their_schema(finished, name):
  content = results.read(finished, name)
  assert content["task"] == content["config"]["task"] == name and content["split"] == "test"
  assert (
    content["primary"]
    == {
      "sf_change": "accuracy3",
      "sf_ratio": "rmse_mean",
      "readmission": "accuracy",
    }[name]
  )
  assert content["target"] == ("readmitted_30d" if name == "readmission" else "sf_ratio")
  assert set(content["versions"]) >= {"lus_jax", "jax", "python"}
  assert content["dataset"]["name"] == "lus_phantom"
  assert content["segmentation"] == {
    "dataset": "lus_phantom",
    "thresholds": THRESHOLDS,
    "same_data_set": True,
  }
  assert content["notes"] == [
    "simulated frames: they show that the method runs, nothing about patients."
  ]
  members = [(source, fold) for source in SOURCES for fold in (0, 1)]
  assert [(row["threshold"], row["fold"]) for row in content["rows"]] == members
  extra = {"chosen_by", *(["precision_defined"] if name == "readmission" else [])}
  for row in content["rows"]:
    assert set(row) == {"threshold", "fold", "best_epoch", "n_patients"} | METRICS[name] | extra
    assert row["n_patients"] == 1 and row["best_epoch"] in (1, 2)
  assert [row["threshold"] for row in content["summary"]] == SOURCES
  for row in content["summary"]:
    assert set(row) == {
      "threshold",
      "n_patients",
      "n_folds",
      "metrics",
      "differences",
      "comparisons",
      "smallest_attainable_p",
      "can_decide",
    }
    assert set(row["metrics"]) == METRICS[name] and row["n_folds"] == 2
    # One patient: nothing to decide and no interval.
    assert not row["can_decide"] and row["metrics"][content["primary"]]["interval"] is None
    for metric in METRICS[name]:
      mine = [r[metric] for r in content["rows"] if r["threshold"] == row["threshold"]]
      if None not in mine:
        assert row["metrics"][metric]["mean"] == pytest.approx(np.mean(mine))
        assert row["metrics"][metric]["sd"] == pytest.approx(np.std(mine, ddof=1))
  assert [(row["threshold"], row["patient"]) for row in content["patients"]] == [
    (source, "p001") for source in SOURCES
  ]
  assert ("confusion" in content) == (name != "sf_ratio")
  assert ("predictions" in content) == (name != "sf_change")


def test_confusion_counts_all_folds_and_agrees_with_the_accuracy(finished):
  for name, metric, classes in (
    ("sf_change", "accuracy3", ["Decrease", "Same", "Increase"]),
    ("readmission", "accuracy", ["no", "yes"]),
  ):
    content = results.read(finished, name)
    for row in content["confusion"]:
      assert row["classes"] == classes
      matrix = np.array(row["matrix"])
      mine = [r[metric] for r in content["rows"] if r["threshold"] == row["threshold"]]
      # Every fold judges the same pairs or patients.
      assert np.trace(matrix) / matrix.sum() == pytest.approx(np.mean(mine))
      if name == "readmission":
        assert matrix.sum() == 2


def test_predictions_give_the_metrics_of_the_rows(finished):
  content = results.read(finished, "sf_ratio")
  assert len(content["predictions"]) == 8 * 3  # the days of p001
  for row in content["rows"]:
    mine = [
      p
      for p in content["predictions"]
      if (p["threshold"], p["fold"]) == (row["threshold"], row["fold"])
    ]
    assert all(p["patient"] == "p001" and 0 < p["measured"] <= 1 for p in mine)
    rmse = math.sqrt(np.mean([(p["mean"] - p["measured"]) ** 2 for p in mine]))
    assert row["rmse_mean"] == pytest.approx(rmse, rel=1e-6)
  content = results.read(finished, "readmission")
  for row, shown in zip(content["rows"], content["predictions"], strict=True):
    assert (shown["threshold"], shown["fold"]) == (row["threshold"], row["fold"])
    assert shown["patient"] == "p001" and shown["label"] == 1
    assert row["accuracy"] == (shown["predicted"] == 1)
    assert sum(shown["votes"]) in (1, 2)


def test_folds_are_written_down_and_alike_for_all_tasks(finished):
  folds = results.read(finished, "sf_change")["folds"]
  assert [fold["fold"] for fold in folds] == [0, 1]
  for fold in folds:
    assert fold["test"] == ["p001"]
    assert sorted(fold["train"] + fold["validation"]) == ["p000", "p002", "p003", "p004", "p005"]
  assert folds[0]["train"] == folds[1]["validation"]
  assert all(results.read(finished, name)["folds"] == folds for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_history_has_every_epoch_of_every_member(finished, name):
  rows = results.read(finished, f"{name}_history")["rows"]
  assert [(r["epoch"], r["threshold"], r["fold"]) for r in rows] == [
    (epoch, source, fold) for epoch in (1, 2) for source in SOURCES for fold in (0, 1)
  ]
  assert all(math.isfinite(r["train_loss"]) and math.isfinite(r["loss"]) for r in rows)
  for best in results.read(finished, name)["rows"]:
    place = best["threshold"], best["fold"]
    # Of equal scores the lower loss.
    ranked = [(-r["score"], r["loss"]) for r in rows if (r["threshold"], r["fold"]) == place]
    assert best["best_epoch"] == 1 + ranked.index(min(ranked))


def test_members_of_one_fold_differ_by_their_channels_alone(finished):
  rows = results.read(finished, "sf_ratio_history")["rows"][:8]
  losses = [row["train_loss"] for row in rows]
  assert len(set(losses)) == 8


def test_a_finished_task_prints_its_table_again_and_changes_nothing(
  finished, task_config, capsys, contents
):
  before = contents(finished)
  files = {p: p.stat().st_mtime_ns for p in (finished / "sf_ratio").rglob("*")}
  run_lib.train_and_evaluate(task_config("sf_ratio", **{"train.epochs": 2}), finished)
  assert "Table 3" in capsys.readouterr().out
  assert contents(finished) == before
  assert {p: p.stat().st_mtime_ns for p in (finished / "sf_ratio").rglob("*")} == files


@pytest.mark.parametrize("name", ["sf_change", "readmission"])
def test_a_broken_run_ends_with_the_same_bytes(
  finished, workdir, task_config, contents, monkeypatch, name
):
  config = task_config(name, **{"train.epochs": 2})
  if name == "readmission":
    run_lib.train_and_evaluate(task_config("sf_change", **{"train.epochs": 2}), workdir)
  fit, steps = loop.fit, []

  def broken(task, *args, **options):
    def validate(state):
      steps.append(1)
      if len(steps) == 2:
        raise KeyboardInterrupt
      return task.validate(state)

    return fit(dataclasses.replace(task, validate=validate), *args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
      run_lib.train_and_evaluate(config, workdir)
  assert len(steps) == 2 and not results.exists(workdir, name)
  run_lib.train_and_evaluate(config, workdir)
  found, expected = contents(workdir), contents(finished)
  for file in (f"{name}.json", f"{name}_history.json"):
    assert found[file] == expected[file]


def test_the_best_epoch_is_tested(workdir, task_config, monkeypatch):
  # The first period of the schedule is the same for one epoch and for two.
  run_lib.train_and_evaluate(task_config("sf_ratio", name="one"), workdir)
  fit = loop.fit

  def worsening(task, *args, **options):
    epochs = []

    def validate(state):
      epochs.append(1)
      rows, images = task.validate(state)
      return [row | {"score": -len(epochs)} for row in rows], images

    return fit(dataclasses.replace(task, validate=validate), *args, **options)

  monkeypatch.setattr(loop, "fit", worsening)
  config = task_config("sf_ratio", name="two", **{"train.epochs": 2})
  run_lib.train_and_evaluate(config, workdir)
  one, two = (results.read(workdir, name)["rows"] for name in ("one", "two"))
  assert one == two and {row["best_epoch"] for row in two} == {1}


def test_streaming_repeats_the_bytes(finished, workdir, task_config):
  config = task_config("sf_ratio", **{"train.epochs": 2, "data.cache": "stream"})
  run_lib.train_and_evaluate(config, workdir)
  found, expected = (results.read(d, "sf_ratio") for d in (workdir, finished))
  assert found.pop("config") != expected.pop("config")
  assert found == expected


def test_loop_and_vmap_agree_in_the_first_step(toy_segmentation, task_config, tmp_path):
  losses = {}
  for strategy in ("loop", "vmap"):
    config = task_config(
      "sf_change",
      **{
        "channels.workdir": str(toy_segmentation),
        "sweep.strategy": strategy,
        "train.batch_size": 16,  # as many as there are: an epoch is a step
      },
    )
    run_lib.train_and_evaluate(config, tmp_path / strategy)
    content = results.read(tmp_path / strategy, "sf_change_history")
    losses[strategy] = [row["train_loss"] for row in content["rows"]]
  assert len(losses["loop"]) == 8
  np.testing.assert_allclose(losses["loop"], losses["vmap"], rtol=1e-5)


def test_pairs_may_be_sampled(workdir, task_config):
  config = task_config("sf_change", pairs="sampled", pairs_cap=12)
  run_lib.train_and_evaluate(config, workdir)
  assert len(results.read(workdir, "sf_change")["rows"]) == 8


@pytest.fixture
def stores(monkeypatch):
  """The `ClipStore`s that a task makes."""
  made = []
  real = clips.ClipStore

  def make(**options):
    made.append(real(**options))
    return made[-1]

  monkeypatch.setattr(clips, "ClipStore", make)
  return made


def test_channels_are_of_the_models_and_the_last_one_is_the_truth(
  workdir, task_config, stores, segmentation_config
):
  run_lib.train_and_evaluate(task_config("sf_ratio"), workdir)
  (store,) = stores
  assert store.fold_channels.tolist() == [[0, 1, 2]] * 2
  dataset = datasets.open_dataset(segmentation_config.data, "videos")
  truth = np.concatenate([x["truth"] for split in dataset.splits.values() for x in split])
  frames = np.concatenate([x["frames"] for split in dataset.splits.values() for x in split])
  np.testing.assert_array_equal(store.channels[2], truth)
  np.testing.assert_array_equal(store.image, frames)
  trained = trained_lib.load(workdir)
  each = trained.sweep.to_host(trained.weights)
  for channel, weights, own in zip(store.channels, each, trained.sweep.members, strict=False):
    image = frames[:5].astype(np.float32) / 255
    p = trained.probability(weights, own, image, np.ones(image.shape, bool))
    assert np.abs(channel[:5] - 255 * np.asarray(p)).max() <= 0.5 + 1e-3
  assert not np.array_equal(store.channels[0], store.channels[1])


def test_thresholds_can_be_chosen_by_value(workdir, task_config, stores):
  config = task_config(
    "sf_ratio", **{"channels.thresholds": (0.0,), "channels.ablations": ("true",)}
  )
  run_lib.train_and_evaluate(config, workdir)
  assert [r["threshold"] for r in results.read(workdir, "sf_ratio")["summary"]] == [0.0, "true"]
  assert len(stores[0].channels) == 2 and stores[0].fold_channels.tolist() == [[0, 1]] * 2
  for thresholds, fragment in (
    ((0.5,), "the segmentation run has no threshold 0.5; it has 0.6, 0."),
    ((0.6, 0.6), "config.channels.thresholds"),
    (("a",), "config.channels.thresholds"),
  ):
    config = task_config("sf_ratio", name="other", **{"channels.thresholds": thresholds})
    refused(lambda config=config: run_lib.train_and_evaluate(config, workdir), fragment)
    assert not (workdir / "other").exists()


def test_other_weights_of_the_segmentation_are_other_data(workdir, task_config, tmp_path):
  config = task_config("sf_ratio")
  run_lib.train_and_evaluate(config, workdir)
  rows = results.read(workdir, "sf_ratio")["rows"]
  trained = trained_lib.load(workdir)
  shutil.rmtree(workdir / claim.DIRECTORY)
  best = trained.sweep.stack(trained.weights)
  manager = checkpoints.Checkpoints(workdir)
  manager.save(1, {"step": np.int32(1)}, jax.tree.map(lambda x: 1.5 * x, best), {"epoch": 1})
  manager.close()
  refused(lambda: run_lib.train_and_evaluate(config, workdir), "other data")
  shutil.rmtree(workdir / "sf_ratio")
  (workdir / "results" / "sf_ratio.json").unlink()
  run_lib.train_and_evaluate(config, workdir)
  assert results.read(workdir, "sf_ratio")["rows"] != rows


# --- who was trained on whom -------------------------------------------------------------------


@pytest.fixture
def sweeps(monkeypatch, pretended):
  """Fold segmentations in a moment; the patients of each are noted."""
  made = []

  def train(config, workdir, patients):
    made.append(patients)
    if not results.exists(workdir, *trained_lib.RESULTS):
      pretended(config, workdir, patients)

  monkeypatch.setattr(segmentation_run, "train_and_evaluate", train)
  return made


# Six folds of one patient each: four train.
STRICT = {"folds.cv": "rotate", "folds.leakage": "strict", "folds.n": 5, "folds.inner": 2}


def test_strict_segmentation_sees_training_patients_only(
  workdir, task_config, segmentation_config, sweeps, stores, capsys
):
  run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir)
  said = capsys.readouterr().out
  assert "18 extra segmentation sweeps (6 folds, 3 each) of 2 models, 6 epochs" in said
  assert "no outcome of 6 folds could decide" not in said  # one comparison: 2 of 64
  # Their frames are those of the base sweep, and not simulated again.
  base, first = (
    claim.read_claim(path)["dataset"]["version"]
    for path in (workdir, workdir / "segmentation" / "fold_0")
  )
  assert base == first
  content = results.read(workdir, "sf_ratio")
  assert len(content["folds"]) == 6 and len(sweeps) == 18
  everybody = [f"p00{i}" for i in range(6)]
  for fold, (own, *inner) in zip(
    content["folds"], zip(*[iter(sweeps)] * 3, strict=True), strict=True
  ):
    assert sorted(fold["train"] + fold["validation"] + fold["test"]) == everybody
    assert sorted(own["train"] + own["validation"]) == fold["train"]
    assert own["train"] and own["validation"]
    assert own["test"] == fold["test"]
    # Each training patient is held out of one of the inner sweeps, which sees the others.
    assert sorted(inner[0]["test"] + inner[1]["test"]) == fold["train"]
    for one in inner:
      assert sorted(one["train"] + one["validation"] + one["test"]) == fold["train"]
      assert one["train"] and one["validation"] and one["test"]
  # Each patient is tested once.
  assert sorted(sum((fold["test"] for fold in content["folds"]), [])) == everybody
  assert {row["patient"] for row in content["patients"]} == set(everybody)

  # Every fold sees the channels of its own models, and each patient those that never saw them.
  (store,) = stores
  assert store.fold_channels.tolist() == [[2 * f, 2 * f + 1, 12] for f in range(6)]
  table = clips.read_table(datasets.open_dataset(segmentation_config.data, "videos"), ())
  models = {}
  for f, fold in enumerate(content["folds"]):
    for patient in everybody:
      name = f"fold_{f}"
      for j, one in enumerate(sweeps[3 * f + 1 : 3 * f + 3]):
        name = f"fold_{f}_inner_{j}" if patient in one["test"] else name
      assert ("inner" in name) == (patient in fold["train"])
      if name not in models:
        models[name] = trained_lib.load(workdir / "segmentation" / name)
      trained = models[name]
      assert patient not in (*trained.patients["train"], *trained.patients["validation"])
      first = int(table.offset[table.patient == patient][0])
      image = np.asarray(store.image[first : first + 2], np.float32) / 255
      members = zip(trained.sweep.to_host(trained.weights), trained.sweep.members, strict=True)
      for t, (weights, own) in enumerate(members):
        p = trained.probability(weights, own, image, np.ones(image.shape, bool))
        found = store.channels[store.fold_channels[f, t]][first : first + 2]
        assert np.abs(found - 255 * np.asarray(p)).max() <= 0.5 + 1e-3
  assert len(models) == 18
  assert len({channel.tobytes() for channel in store.channels}) == 13
  assert results.read(workdir, "segmentation")["rows"] == []  # the base sweep's

  # The next task has the same folds: it finds these models again.
  before = {p: p.stat().st_mtime_ns for p in (workdir / "segmentation").rglob("*.json")}
  run_lib.train_and_evaluate(task_config("sf_change", **STRICT), workdir)
  assert {p: p.stat().st_mtime_ns for p in (workdir / "segmentation").rglob("*.json")} == before
  assert sweeps[18:] == sweeps[:18]


@pytest.mark.parametrize("side", ["validation", "test"])
@pytest.mark.parametrize("use", ["train", "validation"])
def test_a_planted_leak_of_the_fold_segmentations_is_refused(
  workdir, task_config, monkeypatch, pretended, side, use
):
  splits = []
  make_folds = run_lib.folds.make_folds

  def watched(*args, **options):
    splits[:] = make_folds(*args, **options)
    return splits

  def train(config, directory, patients):
    if directory.name == "fold_1":
      leaked = getattr(splits[1], side)[0]
      patients = {s: [n for n in names if n != leaked] for s, names in patients.items()}
      patients[use] = sorted([*patients[use], leaked])
      patients["test"] = patients["test"] or [splits[1].validation[0]]
    pretended(config, directory, patients)

  monkeypatch.setattr(run_lib.folds, "make_folds", watched)
  monkeypatch.setattr(segmentation_run, "train_and_evaluate", train)
  refused(
    lambda: run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir),
    f"in {side} and in segmentation training or selection",
    "fold 1: patient(s) p00",
  )
  assert not results.exists(workdir, "sf_ratio")


@pytest.mark.parametrize("use", ["train", "validation"])
def test_a_planted_leak_of_an_inner_sweep_is_refused(
  workdir, task_config, monkeypatch, pretended, use
):
  def train(config, directory, patients):
    if directory.name == "fold_2_inner_1":
      leaked, *rest = patients["test"]
      patients = patients | {use: sorted([*patients[use], leaked]), "test": rest}
    pretended(config, directory, patients)

  monkeypatch.setattr(segmentation_run, "train_and_evaluate", train)
  refused(
    lambda: run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir),
    "fold 2: patient p00",
    "is looked at by models of their own segmentation training or selection",
  )
  assert not results.exists(workdir, "sf_ratio")


def test_strict_needs_patients_to_hold_out(workdir, task_config, sweeps):
  config = task_config("sf_ratio", **STRICT | {"folds.n": 2})
  refused(
    lambda: run_lib.train_and_evaluate(config, workdir),
    "fold 0: leakage=strict needs 3 training patients with labelled frames, and there are 2;",
  )
  assert not sweeps and not (workdir / "sf_ratio").exists()


@pytest.mark.parametrize(("inner", "parts"), [(2, 2), (3, 3), (4, 4), (9, 4)])
def test_no_more_inner_sweeps_than_training_patients(task_config, toy_trained, inner, parts):
  trained = dataclasses.replace(toy_trained((1,)), patients={"train": list("abcdef")})
  config = task_config("sf_ratio", **STRICT | {"folds.inner": inner})
  fold = run_lib.folds.Fold(tuple("abcd"), ("e",), ("f",))
  (plan,) = run_lib.plan_segmentations(config, trained, [fold])
  assert len(plan) == 1 + parts
  assert sorted(sum((one["test"] for one in list(plan.values())[1:]), [])) == list("abcd")
  assert all(one["train"] and one["validation"] for one in plan.values())


def test_the_models_of_folds_are_gone_when_the_video_networks_train(
  workdir, task_config, sweeps, monkeypatch
):
  loaded, load, fit = [], trained_lib.load, loop.fit

  def watched(directory, *args, **options):
    found = load(directory, *args, **options)
    if "segmentation" in str(directory):
      loaded.append(weakref.ref(found))
    return found

  def fitted(*args, **options):
    gc.collect()
    assert len(loaded) == 18 and not any(one() for one in loaded)
    return fit(*args, **options)

  monkeypatch.setattr(trained_lib, "load", watched)
  monkeypatch.setattr(loop, "fit", fitted)
  run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir)
  assert len(loaded) == 18


def test_strict_runs_from_before_inner_sweeps_go_on_as_they_were(workdir, task_config, sweeps):
  config = task_config("sf_ratio", **STRICT)
  with config.unlocked():
    del config.folds["inner"]
  run_lib.train_and_evaluate(config, workdir)
  content = results.read(workdir, "sf_ratio")
  assert len(sweeps) == 6 and "without inner sweeps" in content["notes"][-1]
  # Today's config finds it finished; anew it would be another run.
  run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir)
  assert results.read(workdir, "sf_ratio") == content and len(sweeps) == 6


def test_a_sweep_begun_on_other_patients_is_not_gone_on_with(
  segmentation_config, tmp_path, monkeypatch
):
  class Begun(Exception):
    pass

  def fit(*args, **options):
    raise Begun

  monkeypatch.setattr(loop, "fit", fit)
  # p000 and p004 have equally many frames.
  patients = {"train": ["p000", "p003"], "validation": ["p004"], "test": ["p001"]}
  for _ in range(2):
    with pytest.raises(Begun):
      segmentation_run.train_and_evaluate(segmentation_config, tmp_path / "run", patients)
  patients |= {"train": ["p003", "p004"], "validation": ["p000"]}
  refused(
    lambda: segmentation_run.train_and_evaluate(segmentation_config, tmp_path / "run", patients),
    "holds a run on other data",
  )


def test_segmentation_patients_may_not_be_tested(workdir, task_config):
  refused(
    lambda: run_lib.train_and_evaluate(task_config("sf_ratio", **{"folds.cv": "rotate"}), workdir),
    "in test and in segmentation training or selection",
    "--config.folds.leakage=strict",
  )
  # The segmentation's validation split selected on it.
  change_results(
    workdir, "dataset", lambda content: content["rows"][1]["patient_names"].append("p001")
  )
  refused(
    lambda: run_lib.train_and_evaluate(task_config("sf_ratio"), workdir),
    "fold 0: patient(s) p001 in test and in segmentation training or selection",
  )
  assert not (workdir / "sf_ratio").exists()


@pytest.mark.parametrize("population", [None, "elsewhere"])
@pytest.mark.parametrize("strict", [False, True])
def test_what_the_segmentation_began_from_has_seen_them_too(
  workdir, task_config, sweeps, population, strict
):
  file = workdir / "run.json"
  claim = json.loads(file.read_text())
  seen = {"population": claim["dataset"]["population"], "train": ["p001"], "validation": []}
  del claim["sha256"]
  claim["dataset"]["initial"] = {"task": "pretrain", "seen": [seen]}
  # Models of other people's frames, too, may have begun from a pretraining on these people's.
  claim["dataset"]["population"] = population or seen["population"]
  file.write_text(json.dumps(claim))
  refused(
    lambda: run_lib.train_and_evaluate(
      task_config("sf_ratio", **STRICT if strict else {}), workdir
    ),
    "patient(s) p001 in ",
    " and in the training that its weights, or its segmentation's, begin from",
  )
  # Before anything is trained.
  assert not (workdir / "sf_ratio").exists() and not sweeps


def test_a_task_that_another_process_is_at_is_refused(workdir, task_config, in_use):
  (workdir / "sf_ratio").mkdir()
  with in_use(workdir / "sf_ratio"):
    refused(
      lambda: run_lib.train_and_evaluate(task_config("sf_ratio"), workdir),
      "sf_ratio is in use by process 123 on node7",
    )


def test_relative_prepared_data_of_an_older_run_are_not_prepared_anew(task_config, toy_trained):
  trained = toy_trained((1,))
  with trained.config.unlocked():
    trained.config.data = {"name": "lus_folder", "prepared_dir": "data", "split_unit": "frame"}
  config = task_config("sf_ratio", **{"data.name": ""})
  refused(lambda: run_lib.open_videos(config, trained), "'data', which is not found from here")


def rename_data(workdir):
  """The segmentation there was of a data set of another name."""
  file = workdir / "run.json"
  claim = json.loads(file.read_text())
  del claim["sha256"]
  claim["dataset"] |= {"population": "elsewhere", "name": "elsewhere"}
  file.write_text(json.dumps(claim))


def test_models_of_another_population_have_seen_nobody(workdir, task_config, sweeps):
  rename_data(workdir)
  run_lib.train_and_evaluate(task_config("sf_ratio", **STRICT), workdir)
  content = results.read(workdir, "sf_ratio")
  assert not sweeps and len(content["folds"]) == 6
  assert content["segmentation"]["same_data_set"] is False
  assert "strict needed no sweep of its own" in content["notes"][-1]


def test_frames_learnt_from_under_another_name_are_told(
  workdir, task_config, segmentation_config, monkeypatch, caplog
):
  rename_data(workdir)
  frames = datasets.open_dataset(segmentation_config.data, "frames")
  looks = copies.look(frames, "image", 99)
  copies.keep(workdir, dataclasses.replace(looks, patients=[f"X{x}" for x in looks.patients]))
  # Of simulated frames nothing is looked for.
  monkeypatch.setattr(datasets.Dataset, "simulated", False)
  options = {"channels.ablations": ("none",), "folds.cv": "rotate", "train.epochs": 1}
  run_lib.train_and_evaluate(task_config("sf_ratio", **options), workdir)
  notes = results.read(workdir, "sf_ratio")["notes"]
  names = sorted(
    {x for x, side in zip(looks.patients, looks.splits, strict=True) if side != "test"}
  )
  (note,) = [x for x in notes if "near-identical" in x]
  assert note.startswith(f"frames of {names[0]} (X{names[0]} there), {names[1]} (X{names[1]}")
  assert f"and {len(names)} of them test here" in note
  assert any(note in message for message in caplog.messages)


# --- readmission starts from sf_change ---------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
  """Initial weights that a task took, and the best states that training ended with."""
  seen = {"initial": [], "best": []}
  initial, fit = initial_lib.initial_weights, loop.fit

  def initial_weights(setup, summary):
    found = initial(setup, summary)
    seen["initial"].append((setup.network, setup.places, found[0]))
    return found

  def watched(task, sweep, *args, **options):
    state, meta = fit(task, sweep, *args, **options)
    seen["best"].append([(one.best_params, one.best_batch_stats) for one in sweep.to_host(state)])
    return state, meta

  monkeypatch.setattr(initial_lib, "initial_weights", initial_weights)
  monkeypatch.setattr(loop, "fit", watched)
  return seen


def test_readmission_starts_from_the_features_of_the_same_source_and_fold(
  workdir, task_config, started
):
  run_lib.train_and_evaluate(task_config("sf_change"), workdir)
  # The same sources in another order.
  options = {"channels.ablations": ("true", "none"), "channels.thresholds": (0.0, 0.6)}
  run_lib.train_and_evaluate(task_config("readmission", **options), workdir)
  (_, theirs, fresh), (network, ours, found) = started["initial"]
  best = dict(zip(theirs, started["best"][0], strict=True))
  assert len(found) == 8 and ours[0] == (0.0, 0) and ours[4] == ("true", 0)
  equal = np.testing.assert_array_equal
  for place, one in zip(ours, found, strict=True):
    params, batch_stats = best[place]
    jax.tree.map(equal, one["params"]["features"], params["features"])
    jax.tree.map(equal, one["batch_stats"], batch_stats)
    # The head is the task's own.
    jax.tree.map(equal, one["params"]["head"], network.params["head"])
    jax.tree.map(equal, one["params"]["bias"], network.params["bias"])
  kernels = [one["params"]["features"][0]["conv"]["kernel"].tobytes() for one in found]
  assert len(set(kernels)) == 8
  # sf_change itself: all members start alike.
  assert all(one is fresh[0] for one in fresh)


def test_readmission_alone_starts_at_random_where_asked(workdir, task_config, started):
  config = task_config("readmission", **{"model.init_from": "", "channels.thresholds": (0.6,)})
  run_lib.train_and_evaluate(config, workdir)
  (network, places, found) = started["initial"][0]
  assert len(found) == 6 and all(one["params"] is network.params for one in found)


def test_readmission_before_sf_change_is_one_line(workdir, task_config):
  refused(
    lambda: run_lib.train_and_evaluate(task_config("readmission"), workdir),
    "readmission starts from the models of sf_change",
    "run the task sf_change with this workdir first",
    "--config.model.init_from=",
  )


def test_more_epochs_that_are_refused_leave_the_results(
  finished, task_config, tmp_path, monkeypatch
):
  workdir = shutil.copytree(finished, tmp_path / "run")
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  epochs = results.read(finished, "sf_ratio")["config"]["train"]["epochs"] + 1
  opened = run_lib.open_videos
  monkeypatch.setattr(
    run_lib, "open_videos", lambda *args: dataclasses.replace(opened(*args), name="other")
  )
  config = task_config("sf_ratio", **{"train.epochs": epochs})
  refused(lambda: run_lib.train_and_evaluate(config, workdir), "run on other data")
  assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_removed_task_starts_anew(finished, task_config, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(workdir / "sf_ratio")
  changed = task_config("sf_ratio", **{"optimizer.learning_rate": 0.5})
  run_lib.train_and_evaluate(changed, workdir)
  for name in ("sf_ratio", "sf_ratio_history"):
    found = results.read(workdir, name)
    assert found["config"]["optimizer"]["learning_rate"] == 0.5
    assert found["rows"] != results.read(finished, name)["rows"]


@pytest.fixture
def before_readmission(finished, tmp_path):
  """A directory in which all but readmission is done."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(workdir / "readmission")
  for file in (workdir / "results").glob("readmission*"):
    file.unlink()
  return workdir


@pytest.mark.parametrize(
  "change", [{"model.width": 0.25}, {"clip.n_segment": 1}, {}], ids=["width", "clip", "fold"]
)
def test_readmission_needs_sf_change_of_its_own_size(before_readmission, task_config, change):
  if not change:
    change_results(before_readmission, "sf_change", lambda content: content["rows"].pop(1))
  refused(
    lambda: run_lib.train_and_evaluate(task_config("readmission", **change), before_readmission),
    "the models of sf_change in",
    "give both the same --config.model",
  )
  assert not results.exists(before_readmission, "readmission")


@pytest.mark.parametrize("side", ["test", "validation"])
def test_models_that_trained_on_a_tested_patient_are_refused(before_readmission, task_config, side):
  def leak(content):
    content["folds"][1]["train"].append(content["folds"][1][side][0])

  change_results(before_readmission, "sf_change", leak)
  refused(
    lambda: run_lib.train_and_evaluate(task_config("readmission"), before_readmission),
    f"in {side} and in the training of the model it starts from",
    "fold 1: patient(s) p00",
  )
  assert not results.exists(before_readmission, "readmission")


# --- bad input: one line, and nothing is left behind --------------------------------------------


def unfinished(workdir):
  (workdir / "results" / "segmentation.json").unlink()


def without_checkpoints(workdir):
  shutil.rmtree(workdir / claim.DIRECTORY)


def empty_checkpoints(workdir):
  without_checkpoints(workdir)
  (workdir / claim.DIRECTORY).mkdir()


def other_classes(workdir):
  file = workdir / "run.json"
  claim = json.loads(file.read_text())
  del claim["sha256"]
  claim["dataset"]["classes"][2] = "z_line"
  file.write_text(json.dumps(claim))


def no_names(workdir):
  change_results(
    workdir, "dataset", lambda content: [row.pop("patient_names") for row in content["rows"]]
  )


def other_task(workdir):
  file = workdir / "run.json"
  claim = json.loads(file.read_text())
  del claim["sha256"]
  claim["config"]["task"] = "sf_ratio"
  file.write_text(json.dumps(claim))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (shutil.rmtree, "holds no segmentation run; name one with"),
    (other_task, "holds no segmentation run; name one with"),
    (unfinished, "is not finished; repeat its command"),
    (without_checkpoints, "no checkpoints/ with its best models"),
    (empty_checkpoints, "checkpoints holds no checkpoint; train again"),
    (other_classes, "vertical_line; name a segmentation run on the same classes"),
    (no_names, "does not say who was trained on"),
  ],
)
def test_a_segmentation_run_that_is_not_in_order_is_one_line(
  toy_segmentation, task_config, tmp_path, damage, message
):
  run = shutil.copytree(toy_segmentation, tmp_path / "segmentation")
  damage(run)
  config = task_config("sf_ratio", **{"channels.workdir": str(run)})
  refused(lambda: run_lib.train_and_evaluate(config, tmp_path / "new"), message)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("task", "changes", "message"),
  [
    ("sf_ratio", {"channels.kind": "soft"}, "config.channels.kind: 'soft'"),
    ("sf_ratio", {"channels.ablations": ("all",)}, "config.channels.ablations: 'all'"),
    ("sf_ratio", {"folds.cv": "twice"}, "config.folds.cv: 'twice'"),
    ("sf_ratio", {"folds.leakage": "some"}, "config.folds.leakage: 'some'"),
    ("sf_ratio", {"folds.n": 1}, "config.folds.n: 1"),
    ("sf_ratio", {"folds.n": 50}, "config.folds.n: 5 patient(s) cannot fill 50 folds"),
    ("sf_ratio", {"folds.balance": ()}, "config.folds.balance"),
    ("sf_ratio", {"folds.balance": ("height",)}, "no number 'height'"),
    ("sf_ratio", {"target": "height"}, "no number 'height'"),
    ("sf_ratio", {"target_scale": 0.0}, "config.target_scale: 0.0"),
    ("sf_ratio", {"clip.image_size": 16}, "config.clip.image_size: 16"),
    ("sf_ratio", {"clip.n_segment": 0}, "config.clip.n_segment: 0"),
    ("sf_ratio", {"train.epochs": 0}, "config.train.epochs: 0"),
    ("sf_ratio", {"train.batch_size": 0}, "config.train.batch_size: 0"),
    ("sf_ratio", {"train.batch_size": 900}, "config.train.batch_size: 900 clips are more"),
    ("sf_ratio", {"optimizer.learning_rate": 0.0}, "config.optimizer.learning_rate: 0.0"),
    ("sf_ratio", {"optimizer.restart_epochs": 0}, "config.optimizer.restart_epochs: 0"),
    ("sf_ratio", {"seed": -1}, "config.seed: -1"),
    ("sf_ratio", {"model.width": 0.0}, "config.model.width: 0.0"),
    ("sf_ratio", {"model.dtype": "int8"}, "config.model.dtype: 'int8'"),
    ("sf_ratio", {"sweep.strategy": "pmap"}, "config.sweep.strategy: 'pmap'"),
    ("sf_ratio", {"data.cache": "disk"}, "config.data.cache: 'disk'"),
    ("sf_ratio", {"data.name": "mnist"}, "config.data.name: 'mnist'"),
    ("sf_ratio", {"data.dir": "mine"}, "config.data.dir"),
    ("sf_ratio", {"name": "segmentation"}, "config.name: 'segmentation'"),
    ("sf_ratio", {"name": "dataset"}, "config.name: 'dataset'"),
    ("sf_ratio", {"name": "a/b"}, "config.name: 'a/b'"),
    ("sf_change", {"pairs": "some"}, "config.pairs: 'some'"),
    ("sf_change", {"pairs_cap": 0}, "config.pairs_cap: 0"),
    ("sf_change", {"train.batch_size": 900}, "config.train.batch_size: 900 clips are more"),
    ("readmission", {"days": "two"}, "config.days: 'two'"),
    ("readmission", {"train.batch_size": 9}, "config.train.batch_size: 9 is more than"),
    (
      "readmission",
      {"target": "sf_ratio"},
      "and has to be 0 or 1 for every patient",
    ),
    ("readmission", {"folds.n": 5}, "readmitted_30d: validation of fold 0"),
  ],
)
def test_a_bad_value_is_refused_before_anything_is_written(
  toy_segmentation, task_config, tmp_path, task, changes, message
):
  config = task_config(task, **{"channels.workdir": str(toy_segmentation)} | changes)
  refused(lambda: run_lib.train_and_evaluate(config, tmp_path / "new"), message)
  assert list(tmp_path.iterdir()) == []


def test_another_config_of_a_task_is_refused(finished, task_config):
  config = task_config("sf_ratio", **{"train.epochs": 2, "optimizer.learning_rate": 1e-3})
  refused(
    lambda: run_lib.train_and_evaluate(config, finished),
    "another config (different: optimizer.learning_rate)",
  )


def test_named_data_are_prepared_where_the_segmentations_are(
  toy_segmentation, task_config, tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
  trained = trained_lib.load(toy_segmentation)
  config = task_config("sf_ratio", **{"data.name": "lus_phantom"})
  dataset = run_lib.open_videos(config, trained)
  assert dataset.population == "lus_phantom, seed 57"
  assert not (tmp_path / "default").exists()
