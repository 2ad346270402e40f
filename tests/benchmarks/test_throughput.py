import json
import mmap
import os

import jax
import numpy as np
import optax
import pytest

from lus_jax import losses, models
from lus_jax.benchmarks import memory, processes, throughput
from lus_jax.models import flops
from lus_jax.training import state as state_lib


def run(tmp_path, *options):
  out = tmp_path / "figures.json"
  # The toys are in this process alone.
  common = ["--size=32", "--batch=2", "--classes=2", "--frames=3", "--steps=1", "--in-process"]
  common.append(f"--out={out}")
  assert throughput.main([*common, *options]) == 0
  return json.loads(out.read_text())


# The tests run with two devices.
@pytest.mark.parametrize(
  ("what", "strategy", "strategies"),
  [
    # An FPN is not mapped unless that is asked for.
    ("fpn", "all", ["loop", "sharded"]),
    ("tsm", "sharded", ["sharded"]),
    ("predict", "vmap", ["vmap"]),
  ],
)
def test_every_run_is_measured_and_written(
  what, strategy, strategies, toy_networks, tmp_path, capsys
):
  folds = 2 if what == "tsm" else 1
  options = (f"--what={what}", f"--strategy={strategy}", f"--folds={folds}")
  result = run(tmp_path, *options, "--thresholds", "1", "9")
  rows = result["rows"]
  assert result["finished"] and not result["broken"]
  expected = [(t, strategy) for t in (1, 9) for strategy in strategies]
  expected += [(7, "ordinal")] * (what == "predict")
  assert [(r["thresholds"], r["strategy"]) for r in rows] == expected
  printed = capsys.readouterr().out
  forward = (
    flops.video(size=32, n_segment=3, in_channels=3, outputs=1, hidden=(256, 64))
    if what == "tsm"
    else flops.fpn("resnet18", size=32, in_channels=1, classes=2)
  )
  assert result["flop_per_image"] == forward * (1 if what == "predict" else 3)
  one = min(
    (r["ms_per_step"] + r.get("augment_ms", 0) for r in rows if r["members"] == 1), default=None
  )
  for row in rows:
    assert row["ok"] and row["members"] == row["thresholds"] * folds
    rate = 1000 * row["batch"] * row["members"] / row["ms_per_step"]
    assert row["images_per_s"] == pytest.approx(rate, rel=2e-2)
    assert row["ms_fastest"] <= row["ms_per_step"]
    computed = rate / row["thresholds"] if row["strategy"] == "ordinal" else rate
    share = result["flop_per_image"] * computed / result["matmul_rate"]["float32"]
    assert row["peak_share"] == pytest.approx(share, rel=2e-2, abs=1e-4)
    cost = one and (row["ms_per_step"] + row.get("augment_ms", 0)) / row["members"] / one
    assert row.get("cost_to_one") == (cost and pytest.approx(cost, abs=1e-3))
    assert row["compile_s"] >= 0
    assert (row["what"], row["side"], row["size"], row["batch"]) == (what, "ours", 32, 2)
    assert row.get("frames") == (3 if what == "tsm" else None)
    assert ("augment_ms" in row) == (what == "fpn")
    assert "ratio" not in row and "variant" not in row
    assert f"{row['images_per_s']:.4g}" in printed
  # Of nine models under `loop`, eight wait for their turn; under `vmap` all are in the program.
  held = {(r["thresholds"], r["strategy"]): r["program_bytes"] for r in rows}
  if what == "tsm":
    return
  network = state_lib.Network(models.build_model(None, in_channels=1, classes=2, seed=0))
  state = {"params": network.params, "batch_stats": network.batch_stats}
  if what == "fpn":
    state = state_lib.create_state(**state, tx=optax.adam(1e-4))
  waiting = 8 * sum(x.nbytes for x in jax.tree.leaves(state))
  if what == "fpn":
    assert held[9, "loop"] == held[1, "loop"] + waiting
  else:
    assert held[9, "vmap"] >= held[1, "vmap"] + waiting


def test_more_members_than_thresholds_are_other_seeds(toy_networks):
  args = throughput.parse(["--size=32", "--batch=2", "--classes=2"])
  _, members, _ = throughput.problem(args, 9)
  assert [float(m["threshold"]) for m in members[7:]] == [1, pytest.approx(0.8)]
  assert [int(m["seed"]) for m in members] == [0] * 7 + [1] * 2


class Worker:
  """In place of `processes.Here`: rows take 1 ms, and one that is not alone may take too much."""

  running, large, grows, fails = [], (), (), {}

  def __init__(self, make, *arguments, environment=None):
    self.what = arguments[-1] if len(arguments) > 1 else None
    if self.what in self.fails:
      raise self.fails[self.what]
    if self.what in self.large and len(self.running) > 1:
      raise processes.Failed("out of memory", out_of_memory=True)
    self.running.append(self)

  def ask(self, name, *arguments):
    if name == "describe" and self.what:
      return {"compile_s": 1.0, "memory_bytes": 2**20, "program_bytes": None}
    if name == "samples":
      if self.what in self.grows and len(self.running) > 2:
        raise processes.Failed("out of memory", out_of_memory=True)
      return [1e-3] * arguments[1]
    return {"describe": "a machine", "matmul_rate": 1e12, "augmentation": [1e-3]}[name]

  def stop(self):
    self.running.remove(self)


@pytest.fixture
def worker(monkeypatch):
  monkeypatch.setattr(processes, "Here", Worker)
  monkeypatch.setattr(Worker, "running", [])
  return lambda **values: [monkeypatch.setattr(Worker, *item) for item in values.items()]


@pytest.mark.parametrize("when", ["large", "grows"])
def test_what_does_not_fit_beside_the_others_is_measured_alone(when, worker, tmp_path, capsys):
  # Some before it is compiled, some in a step.
  worker(**{when: ("vmap",)}, fails={"sharded": processes.Failed("refused", expected=True)})
  result = run(tmp_path, "--strategy", "loop", "vmap", "sharded", "--thresholds=2")
  rows = {row["strategy"]: row for row in result["rows"]}
  assert (rows["loop"]["ok"], rows["vmap"]["ok"], rows["sharded"]["ok"]) == (True, True, False)
  assert rows["vmap"]["in_turn"] is False and "in_turn" not in rows["loop"]
  assert rows["sharded"]["reason"] == "refused" and "ms_per_step" not in rows["sharded"]
  printed = capsys.readouterr().out
  assert "| ours | vmap, alone |" in printed and "1 row did not fit into memory" in printed
  assert "not measured: refused" in printed
  assert not Worker.running


def test_a_broken_row_is_one_and_not_the_end(worker, tmp_path, capsys):
  worker(fails={"vmap": processes.Failed("the process ended by SIGABRT: Check failed")})
  out = tmp_path / "figures.json"
  options = ["--in-process", "--thresholds=2", "--strategy", "vmap", "loop", f"--out={out}"]
  assert throughput.main(options) == 1
  result = json.loads(out.read_text())
  assert result["broken"] and [row["ok"] for row in result["rows"]] == [False, True]
  assert "SIGABRT" in capsys.readouterr().out
  full = processes.Failed("out of memory", out_of_memory=True)
  worker(fails={"vmap": full, "loop": full})
  assert throughput.main(options) == 2
  assert "nothing could be measured (out of memory); use a smaller" in capsys.readouterr().err


def test_rows_are_written_as_they_come(worker, tmp_path, monkeypatch):
  out, kept = tmp_path / "figures.json", []
  write = throughput.write_text

  def write_text(file, text):
    kept.append(json.loads(text))
    write(file, text)

  monkeypatch.setattr(throughput, "write_text", write_text)
  run(tmp_path, "--strategy", "loop", "vmap", "--thresholds=2")
  # Two rows compile, two rounds, the end.
  assert [[row["ok"] for row in content["rows"]] for content in kept] == [
    [None], [None, None], [True, True], [True, True], [True, True],
  ]  # fmt: skip
  assert [content["finished"] for content in kept] == [False] * 4 + [True]
  assert kept[-1]["rows"] == json.loads(out.read_text())["rows"]


def test_rows_are_compared_with_the_best_peer_of_their_dtype():
  def row(side, rate, dtype, thresholds=1, **own):
    ms = 1000 * thresholds / rate
    row = {"side": side, "images_per_s": rate, "ms_per_step": ms, "dtype": dtype}
    return row | {"members": thresholds} | own

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
  assert all("torchvision" in row["network"] or "segmentation" in row["network"] for row in theirs)


def test_pytorch_trains_on_the_batch_it_is_given(torch, toy_networks):
  args = throughput.parse(["--size=32", "--batch=2", "--classes=2"])
  side = throughput.Torch(args, "fused")
  frames = throughput.random_frames(batch=2, size=32, classes=2)
  torch.testing.assert_close(side.images[:, 0], torch.tensor(frames["image"][..., 0]) / 255)
  assert side.images.is_contiguous(memory_format=torch.channels_last)
  weights = side.model.segmentation_head[0].weight
  before = weights.detach().clone()
  assert side.sample(1) > 0
  # Adam's first steps are as long as the learning rate.
  change = (weights.detach() - before).abs().max()
  assert 0 < float(change) <= 1.1 * throughput.LEARNING_RATE


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
def test_the_real_network_is_measured_in_a_process_of_its_own(tmp_path):
  out = tmp_path / "figures.json"
  options = ["--what=predict", "--width=0.125", "--classes=2", "--size=32", "--batch=2"]
  options += ["--steps=1", "--thresholds=2", "--strategy=loop", f"--out={out}"]
  assert throughput.main(options) == 0
  loop, ordinal = json.loads(out.read_text())["rows"]
  network, *_ = throughput.problem(throughput.parse(options), 1)
  weights = sum(x.nbytes for x in jax.tree.leaves(network.params))
  assert loop["program_bytes"] > 2 * weights
  assert loop["memory_bytes"] is None or loop["memory_bytes"] > 2 * weights
  assert loop["ms_per_step"] > 0 and ordinal["ms_per_step"] > 0


def test_the_peak_of_memory_is_what_was_taken_since():
  peak = memory.Peak()
  if peak.bytes() is None:
    pytest.skip("needs /proc")
  # Of the system's own: what a process has kept would be none of it.
  with mmap.mmap(-1, 64 * 2**20) as block:
    np.frombuffer(block, np.uint8)[:] = 1
  assert 60 * 2**20 < peak.bytes() < 120 * 2**20
