"""The comparison at equal time: who is tested on whom, the clock, what is kept, the table."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from lus_jax.benchmarks import processes, quality, quality_data, quality_sides
from lus_jax.data import datasets
from lus_jax.errors import UserError
from lus_jax.splits import SPLITS
from lus_jax.training import loop
from tests.compared import SIZE, make_dataset

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = f"--data lus_phantom --size {SIZE} --folds 3 --seeds 0,1 --budget 5 --in-process"


@pytest.fixture
def sides(monkeypatch, twelve):
  """Ours and a peer that look the answer up, the peer's less sure; what they were asked."""
  asked = []

  def side(name, sure):
    def train(job):
      asked.append((name, job.seed, job.fold["test"].tolist(), job.config))
      target = job.arrays("test")["target"]
      noise = np.random.default_rng(job.seed).random(target.shape)
      found = np.where(noise < sure, target, 1 - target) * 0.8 + 0.1
      return quality_sides.Found(found.astype(np.float32), found >= 0.5, 4.9, 100, "a note")

    return train

  monkeypatch.setattr(quality_sides, "ours", side("ours", 0.95))
  peers = {
    "monai": quality_sides.Peer(side("monai", 0.8), (), ""),
    "nnunet": quality_sides.Peer(side("nnunet", 0.8), ("lus_jax", "no_such_module"), ""),
  }
  monkeypatch.setattr(quality_sides, "PEERS", peers)
  return asked


# Who is tested


def test_every_patient_is_tested_once_and_stands_on_one_side():
  units = np.array([f"p{i % 7}" for i in range(30)])
  folds = quality_data.rotate(units, 3, seed=0)
  tested = np.concatenate([fold["test"] for fold in folds])
  assert sorted(tested.tolist()) == list(range(30))
  for fold in folds:
    sides = [set(units[fold[split]]) for split in SPLITS]
    assert all(sides) and set.union(*sides) == set(units)
    assert sum(map(len, sides)) == 7
  # No more folds than patients.
  assert len(quality_data.rotate(units, 50, seed=0)) == 7
  with pytest.raises(UserError, match="--folds=2: training, validation and test need 3"):
    quality_data.rotate(np.array(["a", "b", "a"]), 5, seed=0)


def test_blocks_follow_each_other_in_time():
  moments = [("clip", i) for i in (9, 1, 5, 1, 3, 7)]
  blocks = quality_data.time_blocks(moments, 3)
  assert blocks.tolist() == [f"block {i:03d}" for i in (2, 0, 1, 0, 0, 1)]
  with pytest.raises(UserError, match="--folds=6: there are 5 labelled frames only"):
    quality_data.time_blocks(moments, 6)


def test_sides_of_a_fold_are_splits(twelve):
  fold = {"train": np.array([4, 0]), "validation": np.array([2]), "test": np.array([9])}
  splits = quality_data.regrouped(twelve, fold).splits
  assert [one["frame"] for one in splits["train"].only("frame")] == [4, 0]
  assert [one["frame"] for one in splits["test"].only("frame")] == [9]


@pytest.mark.parametrize("label, shown", [(0.5, 0.5), (0.0, 1.0)])
def test_all_sides_learn_the_same_label(twelve, label, shown):
  frames = quality_data.read(twelve, label)
  weak = [one["confidence"][..., 0].max() == 102 for one in twelve.splits["all"]]
  assert 0 < sum(weak) < 12
  assert [bool(x.any()) for x in frames.target[..., 0]] == [not x or shown == 1 for x in weak]
  soft = quality_data.read(twelve, quality_data.SOFT)
  assert sorted(np.unique(soft.target).round(2)) == pytest.approx([0, 0.4, 0.8, 1])
  assert not soft.exclusive


def test_pixels_of_two_classes_or_that_count_in_some_need_sigmoids(twelve):
  frames = quality_data.read(twelve, 0.0)
  apart = dataclasses.replace(frames, target=frames.target * [1, 0])
  assert apart.exclusive
  # In a frame the second class is not labelled; the first is no less to be learned from.
  where = apart.where.copy()
  where[3, ..., 1] = False
  assert not dataclasses.replace(apart, where=where).exclusive
  where[3] = False
  assert dataclasses.replace(apart, where=where).exclusive
  assert not dataclasses.replace(frames, target=np.ones_like(frames.target)).exclusive


# The clock


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setitem(quality_sides.CLOCKS, "wall", lambda: now.seconds)
  monkeypatch.setitem(quality_sides.CLOCKS, "cpu", lambda: now.seconds)
  return now


def make_job(**changes):
  options = {"file": "", "fold": {}, "seed": 0, "budget": 10.0, "clock": "wall", "cores": 4}
  return quality_sides.Job(**options | {"exclusive": True} | changes)


def test_threads_share_the_clock_of_a_cpu(clock):
  assert make_job().now() == 100 and make_job(clock="cpu").now() == 25


def test_a_peer_stops_when_its_time_is_over_and_its_schedule_ends_there(clock):
  rates, optimizer = [], types.SimpleNamespace(param_groups=[{"lr": None}])

  def step():
    rates.append(optimizer.param_groups[0]["lr"])
    clock.seconds += 3
    return 1.0

  timed = quality_sides.Timed(make_job())
  assert timed.fit(optimizer, lambda share: 1 - share, step) == 4
  assert rates == pytest.approx([1, 0.7, 0.4, 0.1]) and timed.spent() == 12
  # Three seconds are left for what comes at the end.
  assert quality_sides.Timed(make_job()).fit(optimizer, abs, step, lambda steps: 3.0) == 3
  # A step that takes longer than the budget is taken all the same.
  assert quality_sides.Timed(make_job(budget=1)).fit(optimizer, abs, step) == 1
  with pytest.raises(UserError, match="its loss is nan at step 1"):
    quality_sides.Timed(make_job()).fit(optimizer, abs, lambda: float("nan"))


def test_ours_is_timed_without_what_is_compiled(clock, monkeypatch):
  task = loop.Task([], None, None, None, None, validate=lambda state: ("rows", state))

  def fit(task, *, steps_per_epoch, epochs):
    clock.seconds += 50  # compiles
    for _ in range(epochs):
      clock.seconds += 2
      assert task.validate("state") == ("rows", "state")

  paced = quality_sides.Paced(fit, make_job())
  paced(task, steps_per_epoch=7, epochs=5)
  assert (paced.epoch, paced.seconds, paced.steps) == (2, 10, 7)
  short = quality_sides.Paced(fit, make_job(), enough=5)
  with pytest.raises(quality_sides.Enough):
    short(task, steps_per_epoch=7, epochs=100)
  assert len(short.ends) == 4 and short.epoch == 2
  alone = quality_sides.Paced(fit, make_job())
  alone(task, steps_per_epoch=7, epochs=1)
  assert alone.seconds == 52


@pytest.mark.slow
@pytest.mark.usefixtures("toy_networks")
def test_ours_trains_on_its_side_of_the_fold_as_long_as_the_budget(
  segmentation_config, monkeypatch
):
  config = segmentation_config.copy_and_resolve_references()
  config.sweep.thresholds = (0.0,)
  dataset, _ = quality_data.opened(config.data)
  frames = quality_data.read(dataset, 0.0)
  folds = quality_data.rotate(frames.patient, 3, seed=0)
  seen, regrouped = [], quality_data.regrouped

  def noted(dataset, fold):
    seen.append(regrouped(dataset, fold))
    return seen[-1]

  monkeypatch.setattr(quality_data, "regrouped", noted)
  job = make_job(fold=folds[1], budget=1.0, cores=1, clock="cpu", config=config)
  found = quality_sides.ours(job)
  assert found.probability.shape == (len(folds[1]["test"]), 32, 32, 6)
  assert found.probability.min() >= 0 and found.probability.max() <= 1
  tested = {one["patient"].decode() for one in seen[0].splits["test"].only("patient")}
  assert tested == set(frames.patient[folds[1]["test"]])
  assert found.steps > 2 and 0.2 < found.seconds < 5
  # Nothing is left in its place.
  assert datasets.open_dataset.__module__ == datasets.__name__ and loop.fit.__name__ == "fit"


# What is kept, and shown


def run(capsys, *more):
  code = quality.main([*OPTIONS.split(), *more])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_what_is_finished_is_a_file_and_is_not_done_again(sides, tmp_path, capsys):
  out = tmp_path / "out"
  code, printed, _ = run(capsys, f"--out={out}", "--peer=monai")
  assert code == 0 and len(sides) == 2 * 3 * 2
  assert "12 of 12: monai, fold 2, seed 1: Dice ." in printed and "100 steps in 5 s" in printed
  # Seeds and folds come in turn, and the sides within them.
  assert [name for name, *_ in sides[:3]] == ["ours", "monai", "ours"]
  assert [one[1] for one in sides] == [0] * 6 + [1] * 6
  assert [one[3] is None for one in sides[:2]] == [False, True]
  assert {one[3].seed for one in sides if one[3]} == {0, 1}
  first = json.loads((out / "quality.json").read_text())
  rows = {row["side"]: row for row in first["rows"]}
  assert list(rows) == [quality.CONFIG, "monai", "mean map", "prevalence"]
  own, peer = rows[quality.CONFIG], rows["monai"]
  assert own["scores"]["dice"]["value"] > peer["scores"]["dice"]["value"]
  assert own["scores"]["ece"]["value"] < peer["scores"]["ece"]["value"]
  less = own["scores"]["dice"]["value"] - peer["scores"]["dice"]["value"]
  assert peer["ours_less_it"]["dice"]["value"] == pytest.approx(less) and own["seeds"] == [0, 1]
  # Of six patients each, and no interval.
  assert own["scores"]["dice"]["interval"] is None and list(own["patients"]) == [
    f"p{i}" for i in range(6)
  ]
  again = run(capsys, f"--out={out}", "--peer=monai")
  assert again[0] == 0 and len(sides) == 12
  assert json.loads((out / "quality.json").read_text())["rows"] == first["rows"]
  # One that is damaged is made anew, one more seed is added.
  (out / quality.UNITS / "monai_fold1_seed0.npz").write_bytes(b"PK")
  code, printed, error = run(capsys, f"--out={out}", "--peer=monai", "--seeds=0,1,2")
  assert [one[:2] for one in sides[12:]] == [("monai", 0), *[("ours", 2), ("monai", 2)] * 3]


def test_a_folder_of_other_settings_is_refused(sides, tmp_path, capsys):
  out = tmp_path / "out"
  assert run(capsys, f"--out={out}", "--peer=none", "--seeds=0")[0] == 0
  for option, shown in (
    ("--budget=6", "budget: 5.0 there, 6.0 here"),
    ("--label=0", "label: 0.5 there, 0.0 here"),
    ("--folds=4", "folds: 3 there, 4 here"),
  ):
    code, _, error = run(capsys, f"--out={out}", "--peer=none", "--seeds=0", option)
    assert code == 2 and shown in error and error.count("\n") == 1
  assert len(sides) == 3


def test_a_peer_that_is_missing_is_a_row(sides, capsys):
  code, printed, _ = run(capsys, "--seeds=0")
  assert code == 0
  (row,) = [line for line in printed.splitlines() if line.startswith("| nnunet")]
  assert "not measured: it needs no_such_module, which is not installed; pip install" in row
  assert {one[0] for one in sides} == {"ours", "monai"}


def test_a_side_that_fails_is_a_row_and_the_others_go_on(sides, monkeypatch, capsys):
  def refuses(job):
    raise UserError("its loss is nan at step 3.")

  monkeypatch.setitem(quality_sides.PEERS, "monai", quality_sides.Peer(refuses, (), ""))
  code, printed, _ = run(capsys, "--seeds=0", "--peer=monai")
  assert code == 0 and printed.count("monai, fold 0, seed 0: not measured: its loss is nan") == 1
  assert "| monai | not measured: its loss is nan at step 3." in printed
  assert [one[0] for one in sides] == ["ours"] * 3

  def breaks(self, *_, **__):
    raise processes.Failed("the process ended by SIGABRT")

  monkeypatch.setattr(processes.Here, "ask", breaks)
  assert run(capsys, "--seeds=0", "--peer=none")[0] == 1


def test_the_table_says_what_it_is_of(sides, capsys):
  code, printed, _ = run(capsys, "--peer=monai", "--seeds=0")
  lines = printed.splitlines()
  assert code == 0
  head = next(line for line in lines if line.startswith("toy, 1"))
  assert "12 frames of 6 patients at 32 pixels, 3 rotating folds by patient, 4 to 4 train" in head
  assert "label >= 50%" in head
  assert any("5 s of training each (cpu clock, 1 core)" in line for line in lines)
  rows = [line for line in lines if line.startswith(f"| {quality.CONFIG}")]
  assert "| 5, 100 |" in rows[0] and len(rows) == 2  # scores, and Dice by class
  assert "| Dice by class | a | b |" in lines
  waits = "note: by the wall clock peers wait for their augmentation"
  assert waits not in printed
  assert waits in run(capsys, "--peer=monai", "--seeds=0", "--clock=wall")[1]
  assert waits not in run(capsys, "--peer=none", "--seeds=0", "--clock=wall")[1]


def test_one_patient_is_split_by_time_and_said_so(sides, monkeypatch, capsys, tmp_path):
  dataset = make_dataset(["only"] * 12)
  monkeypatch.setattr(quality_data, "opened", lambda config: (dataset, {}))
  monkeypatch.setattr(quality_data, "split_unit", lambda *_: "frame")
  code, printed, _ = run(capsys, "--peer=none", "--seeds=0", f"--out={tmp_path}")
  assert code == 0 and "3 rotating folds by time" in printed
  assert "over frames of one patient, which resemble each other" in printed
  assert "note: split by time: frames beside those that were trained on are tested" in printed
  assert sorted(one[2] for one in sides) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
  (row,) = json.loads((tmp_path / "quality.json").read_text())["rows"][:1]
  low, high = row["scores"]["dice"]["interval"]
  assert low < row["scores"]["dice"]["value"] < high
  code, _, error = run(capsys, "--peer=none", "--folds=1")
  assert code == 2 and "--folds=1: too few patients" in error


def test_baselines_are_fitted_to_the_training_frames(twelve, tmp_path):
  frames = quality_data.read(twelve, 0.0)
  fold = {"train": np.arange(8), "validation": np.array([8]), "test": np.arange(9, 12)}
  file = tmp_path / "frames.npz"
  np.savez(file, image=frames.image, target=frames.target, where=frames.where)
  found = quality_sides.blind(make_job(file=os.fspath(file), fold=fold))
  target = frames.target
  mean = target[:8].mean(0)
  prevalence = mean.mean((0, 1))
  np.testing.assert_allclose(found["prevalence"].probability[2, 5, 5], prevalence, rtol=1e-5)
  np.testing.assert_allclose(
    found["mean map"].probability[0], (8 * mean + prevalence) / 9, rtol=1e-5
  )
  # The stripe is always there: the map knows it.
  assert found["mean map"].probability.shape == (3, SIZE, SIZE, 2)
  np.testing.assert_array_equal(found["mean map"].predicted[1, ..., 1], target[0, ..., 1] > 0)
  assert found["prevalence"].predicted.shape == (3, SIZE, SIZE, 2)


def test_options_that_do_not_go_together_are_refused(capsys):
  for option, part in (
    ("--size=50", "--size=50: the networks need a multiple of 32"),
    ("--folds=2", "--folds=2: training, validation and test need 3"),
    ("--config=seg:nothing", "--config=seg:nothing: "),
    ("--phantom-variety=fog", "variety of lus_phantom must name some of presets, b_lines"),
    ("--data=/no/such/folder", "--data=/no/such/folder: there is no such folder"),
  ):
    code, _, error = run(capsys, option)
    assert code == 2 and part in error and error.count("\n") == 1
  with pytest.raises(SystemExit):
    run(capsys, "--peer=theirs")


def test_a_config_learns_one_label_alone(twelve, tmp_path):
  for option, loss, threshold in (
    ("--label=.6", "weighted_cross_entropy", 0.6),
    ("--label=soft", "cross_entropy", 0.5),
  ):
    more = [option, "--config=raters:tiny", "--patients=9", f"--out={tmp_path}"]
    args = quality.parse([*OPTIONS.split(), *more])
    config = quality.Study(args).configs["raters:tiny"]
    assert config.loss.name == loss and config.sweep.thresholds == (threshold,)
    assert config.sweep.members == () and config.data.name == "lus_phantom"
    assert config.data.phantom.n_patients == 9 and config.data.image_size == SIZE
    assert config.data.phantom.variety == ()
  args = quality.parse([*OPTIONS.split(), "--phantom-variety=presets,b_lines"])
  assert quality.config_of("seg:auto", args).data.phantom.variety == ("presets", "b_lines")


# The peers themselves


def test_what_tensorflow_would_break_is_loaded_before_it(tmp_path):
  """Triton after TensorFlow ends the process: a stand-in says whether it came first."""
  (tmp_path / "triton.py").write_text(
    "import sys\nprint('triton', 'tensorflow' in sys.modules)\n", encoding="utf-8"
  )
  for before, said in (("", "triton False\n"), ("import tensorflow; ", "")):
    found = subprocess.run(
      [sys.executable, "-c", f"{before}from lus_jax.benchmarks import ablation, quality"],
      env=os.environ | {"PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), os.fspath(ROOT)])},
      capture_output=True,
      text=True,
      check=True,
    )
    assert found.stdout == said


def test_nnunets_plan():
  assert quality_sides.nnunet_plan(128, 30) == ([32, 64, 128, 256, 512, 512], 2)
  assert quality_sides.nnunet_plan(64, 200) == ([32, 64, 128, 256, 512], 10)
  assert quality_sides.nnunet_plan(512, 4000)[1] == 12


@pytest.fixture
def peers_there(torch):
  for peer in quality_sides.PEERS.values():
    for name in peer.needs:
      pytest.importorskip(name)
  return torch


@pytest.fixture
def peers_job(peers_there, twelve, tmp_path):
  """`make(how, **changes) -> Job` on the toy frames."""

  def make(how, **changes):
    frames = quality_data.read(twelve, quality_data.SOFT if how == "soft" else 0.0)
    target = frames.target * [1, 0] if how == "exclusive" else frames.target
    file = tmp_path / f"{how}.npz"
    where = frames.where.copy()
    where[:, -3:] = False
    np.savez(file, image=frames.image, target=target, where=where)
    fold = dict(zip(SPLITS, np.split(np.arange(12), (6, 9)), strict=True))
    options = {"file": os.fspath(file), "fold": fold, "exclusive": how == "exclusive"}
    return make_job(**options | {"clock": "cpu", "cores": 1, "budget": 1.0} | changes)

  return make


@pytest.mark.filterwarnings("ignore")  # libraries' own
@pytest.mark.parametrize("how", ["exclusive", "overlapping", "soft"])
@pytest.mark.parametrize("name", ["monai", "nnunet"])
def test_peers_learn_something_in_their_time(peers_job, name, how):
  job = peers_job(how)
  found = quality_sides.PEERS[name].train(job)
  assert found.probability.shape == (3, SIZE, SIZE, 2) and found.probability.dtype == np.float32
  assert found.probability.min() >= 0 and found.probability.max() <= 1
  assert found.steps > 1 and 0.9 < found.seconds < 10
  # Where there is something, it says so more than elsewhere.
  target = job.arrays("test")["target"][..., 0]
  mean = [found.probability[..., 0][part].mean() for part in (target > 0, target == 0)]
  assert mean[0] > mean[1]


@pytest.mark.filterwarnings("ignore")
def test_of_a_softmax_the_likeliest_is_said(peers_there):
  side = quality_sides.Torch(make_job(cores=1), batch_dice=True, background=True)
  probability = np.float32([[0.4, 0.35], [0.3, 0.2], [0.1, 0.8]])[None, None]
  assert side.said(probability)[0, 0].tolist() == [[True, False], [False, False], [False, True]]
  side = quality_sides.Torch(make_job(cores=1, exclusive=False), batch_dice=True, background=True)
  assert side.said(probability)[0, 0].tolist() == [[False, False], [False, False], [False, True]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_pixel_that_does_not_count_teaches_nothing(peers_there, exclusive):
  torch = peers_there
  side = quality_sides.Torch(make_job(exclusive=exclusive), batch_dice=True, background=True)
  generator = torch.Generator().manual_seed(0)
  logits = torch.randn(2, side.outputs(2), 8, 8, generator=generator, requires_grad=True)
  target = torch.zeros(2, 2, 8, 8)
  target[:, 0, :4] = 1
  where = torch.ones(2, 2, 8, 8)
  where[:, :, :, 5:] = 0
  side.loss(logits, target, where).backward()
  assert (logits.grad[..., 5:] == 0).all() and (logits.grad[..., :5] != 0).any()
  # Whatever stands there.
  other = torch.where(where > 0, target, 1 - target)
  assert side.loss(logits, other, where).item() == side.loss(logits, target, where).item()
