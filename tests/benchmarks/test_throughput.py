import json
import os

import jax
import numpy as np
import optax
import pytest

from lus_jax import losses, models
from lus_jax.benchmarks import throughput
from lus_jax.models import flops
from lus_jax.training import state as state_lib


def run(tmp_path, *options):
  out = tmp_path / "figures.json"
  common = ["--size=32", "--batch=2", "--classes=2", "--frames=3", "--steps=1", f"--out={out}"]
  assert throughput.main([*common, *options]) == 0
  return json.loads(out.read_text())


# The tests run with two devices.
@pytest.mark.parametrize(
  ("what", "strategy", "strategies"),
  [
    ("fpn", "all", ["loop", "vmap", "sharded"]),
    ("tsm", "sharded", ["sharded"]),
    ("predict", "vmap", ["vmap"]),
  ],
)
def test_every_run_is_measured_and_written(
  what, strategy, strategies, toy_networks, tmp_path, capsys
):
  result = run(tmp_path, f"--what={what}", f"--strategy={strategy}", "--thresholds", "1", "3")
  rows = result["rows"]
  expected = [(t, strategy) for t in (1, 3) for strategy in strategies]
  expected += [(7, "ordinal")] * (what == "predict")
  assert [(r["thresholds"], r["strategy"]) for r in rows] == expected
  printed = capsys.readouterr().out
  forward = (
    flops.video(size=32, n_segment=3, in_channels=3, outputs=1, hidden=(256, 64))
    if what == "tsm"
    else flops.fpn("resnet18", size=32, in_channels=1, classes=2)
  )
  assert result["flop_per_image"] == forward * (1 if what == "predict" else 3)
  one = min(r["ms_per_step"] + r.get("augment_ms", 0) for r in rows if r["thresholds"] == 1)
  for row in rows:
    rate = 1000 * row["batch"] * row["thresholds"] / row["ms_per_step"]
    assert row["images_per_s"] == pytest.approx(rate, rel=2e-2)
    assert row["ms_fastest"] <= row["ms_per_step"]
    computed = rate / row["thresholds"] if row["strategy"] == "ordinal" else rate
    share = result["flop_per_image"] * computed / result["matmul_rate"]["float32"]
    assert row["peak_share"] == pytest.approx(share, rel=2e-2, abs=1e-4)
    cost = (row["ms_per_step"] + row.get("augment_ms", 0)) / row["thresholds"] / one
    assert row["cost_to_one"] == pytest.approx(cost, abs=1e-3)
    assert row["compile_s"] >= 0
    assert (row["what"], row["side"], row["size"], row["batch"]) == (what, "ours", 32, 2)
    assert row.get("frames") == (3 if what == "tsm" else None)
    assert ("augment_ms" in row) == (what == "fpn")
    assert "ratio" not in row and "variant" not in row
    assert f"{row['images_per_s']:.4g}" in printed
  if what == "fpn":
    # Of three models under `loop`, two wait for their turn; under `vmap` all are in the program.
    memory = {(r["thresholds"], r["strategy"]): r["memory_bytes"] for r in rows}
    network = state_lib.Network(models.build_model(None, in_channels=1, classes=2, seed=0))
    state = state_lib.create_state(network.params, network.batch_stats, optax.adam(1e-4))
    waiting = 2 * sum(x.nbytes for x in jax.tree.leaves(state))
    assert memory[3, "loop"] == memory[1, "loop"] + waiting
    assert memory[3, "vmap"] >= memory[1, "vmap"] + waiting


def test_a_strategy_that_takes_too_much_memory_is_left_out(
  toy_networks, tmp_path, capsys, monkeypatch
):
  class Ours(throughput.Ours):
    def __init__(self, args, *, thresholds, strategy):
      if strategy == "vmap":
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
      super().__init__(args, thresholds=thresholds, strategy=strategy)

  monkeypatch.setattr(throughput, "Ours", Ours)
  options = ["--what=predict", "--size=32", "--batch=2", "--thresholds=2", "--steps=1"]
  assert throughput.main([*options, "--strategy=vmap"]) == 2
  assert "smaller --batch" in capsys.readouterr().err
  assert throughput.main([*options, "--strategy=all"]) == 0
  printed = capsys.readouterr()
  assert "left out: vmap with 2" in printed.err
  assert "| ours | loop |" in printed.out and "| ours | vmap |" not in printed.out


def test_rows_are_compared_with_the_best_peer_of_their_dtype():
  def row(side, rate, dtype, thresholds=1, **own):
    ms = 1000 * thresholds / rate
    row = {"side": side, "images_per_s": rate, "ms_per_step": ms, "dtype": dtype}
    return row | {"thresholds": thresholds} | own

  rows = [
    row("ours", 30.0, "bfloat16"),
    row("ours", 40.0, "bfloat16"),
    row("ours", 60.0, "bfloat16", 7),
    row("torch", 5.0, "float32", variant="eager"),
    row("torch", 10.0, "float32", variant="channels_last"),
    row("torch", 20.0, "bfloat16", variant="channels_last fused_adam compiled bf16"),
  ]
  throughput.compare(rows)
  assert [r.get("ratio") for r in rows] == [1.5, 2.0, 3.0, None, None, None]
  assert [r.get("ratio_eager") for r in rows] == [6.0, 8.0, 12.0, None, None, None]
  assert [r.get("ratio_channels_last") for r in rows] == [3.0, 4.0, 6.0, None, None, None]
  assert [r.get("cost_to_one") for r in rows] == [1.333, 1.0, 0.667, None, None, None]
  # What the models of a step share counts once for all of them.
  for r in rows[:3]:
    r["augment_ms"] = 7.0
  throughput.compare(rows)
  assert [r["cost_to_one"] for r in rows[:3]] == [1.26, 1.0, round((1000 / 60 + 1) / 32, 3)]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--peer=torch", "--width=0.5"], "has no width"),
    (["--peer=torch", "--size=80"], "multiples of 32"),
    (["--width=9"], "width: 9.0"),
  ],
)
def test_what_cannot_be_measured_is_refused(options, message, capsys):
  assert throughput.main(options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_pytorchs_loss_is_ours(threshold, torch):
  r = np.random.default_rng(0)
  logits = r.normal(size=(2, 5, 4, 3)).astype(np.float32)
  # 153 is .6 as stored.
  confidence = r.choice([0, 1, 152, 153, 154, 255], (2, 5, 4, 3)).astype(np.float32) / 255
  ours = losses.training_loss(
    throughput.LOSS.name, logits=logits, confidence=confidence, threshold=threshold
  )
  theirs = throughput.weighted_cross_entropy(
    torch,
    torch.tensor(logits).movedim(-1, 1),
    torch.tensor(confidence).movedim(-1, 1),
    threshold,
  )
  assert float(theirs) == pytest.approx(float(ours), rel=1e-6)


@pytest.mark.parametrize("what", ["fpn", "tsm", "predict"])
def test_pytorch_computes_on_the_same_arrays(what, torch, toy_networks, tmp_path):
  result = run(tmp_path, f"--what={what}", "--thresholds=1", "--strategy=loop", "--peer=torch")
  ours, *_ = result["rows"]
  theirs = [row for row in result["rows"] if row["side"] == "torch"]
  assert ours["side"] == "ours"
  tuned = [] if what == "predict" else ["channels_last fused_adam"]
  assert [row["variant"] for row in theirs] == ["eager", "channels_last", *tuned]
  best = max(row["images_per_s"] for row in theirs)
  assert ours["ratio"] == pytest.approx(ours["images_per_s"] / best, rel=1e-2)
  assert result["versions"]["torch"] == torch.__version__


def test_pytorch_trains_on_the_batch_it_is_given(torch, toy_networks):
  args = throughput.parse(["--size=32", "--batch=2", "--classes=2"])
  side = throughput.Torch(args, "tuned")
  frames = throughput.random_frames(batch=2, size=32, classes=2)
  torch.testing.assert_close(side.images[:, 0], torch.tensor(frames["image"][..., 0]) / 255)
  assert side.images.is_contiguous(memory_format=torch.channels_last)
  weights = side.model.segmentation_head[0].weight
  before = weights.detach().clone()
  side.sample(1)
  # Adam's first steps are as long as the learning rate.
  change = (weights.detach() - before).abs().max()
  assert 0 < float(change) <= 1.1 * throughput.LEARNING_RATE
  assert len(side.seconds) == 1


def test_a_profile_says_where_the_time_goes(toy_networks, tmp_path, capsys):
  options = ["--what=fpn", "--strategy=loop", "--thresholds=1"]
  assert "profile" not in run(tmp_path, *options)
  capsys.readouterr()
  result = run(tmp_path, *options, "--profile")
  rows = result["profile"]
  assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-2)
  assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
  assert any("fusion" in row["operation"] for row in rows) and all(row["calls"] for row in rows)
  # All threads together cannot have worked longer than there was time for.
  threads = len(os.sched_getaffinity(0)) * result["rows"][0]["ms_per_step"]
  assert 0 < sum(row["ms"] for row in rows) < 10 * threads
  assert f"| {rows[0]['operation']} |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_real_network_is_measured(tmp_path):
  options = ["--width=0.125", "--classes=2"]
  (row,) = run(tmp_path, *options, "--thresholds=2", "--strategy=loop")["rows"]
  network, *_ = throughput.problem(throughput.parse([*options, "--size=32"]), 1)
  weights = sum(x.nbytes for x in jax.tree.leaves(network.params))
  # Of two models the weights, the best ones so far and Adam's two moments.
  assert row["memory_bytes"] > 2 * 4 * weights
