import json
import time

import jax
import numpy as np
import pytest

from lus_jax.benchmarks import processes, sweep
from lus_jax.data.pipeline import Frames

SMALL = ["--size=32", "--batch=2", "--members=2", "--classes=2", "--frames", "5", "3", "2"]


@pytest.fixture
def here(monkeypatch):
  """Rows in this process, with what each process would have had in its environment."""
  environments = []

  def call(function, *arguments, environment, limit):
    environments.append(environment)
    try:
      return function(*arguments)
    except jax.errors.JaxRuntimeError as error:
      raise processes.Failed("out of memory", out_of_memory=True) from error

  monkeypatch.setattr(processes, "call", call)
  return environments


def test_a_whole_sweep_is_measured_by_its_parts(toy_networks, here, tmp_path, monkeypatch, capsys):
  evaluated = []

  # With the real one, tests/test_core_alone.py.
  def evaluate(trained, *, train, validation, test, thin):
    evaluated.append((len(trained.views), train.size, validation.size, test.size, thin))
    time.sleep(0.05)

  monkeypatch.setattr(sweep.segmentation, "evaluate", evaluate)
  out = tmp_path / "sweep.json"
  since = time.perf_counter()
  options = [*SMALL, "--classes=1", "--epochs=2", "--checkpoint-every=1", f"--out={out}"]
  assert sweep.main(options) == 0
  took = time.perf_counter() - since
  (row,) = json.loads(out.read_text())["rows"]
  assert row["ok"] and (row["scaled"], row["strategy"], row["devices"]) == (None, "loop", 1)
  assert list(row["seconds"]) == list(sweep.PARTS)
  # No second counts twice, and all but a few moments count.
  parts = sum(row["seconds"].values())
  assert 0.8 * row["total_s"] < parts < row["total_s"] + 0.05 < took
  assert row["seconds"]["compiling"] > 0 and row["seconds"]["saving"] > 0
  assert row["seconds"]["evaluation"] == pytest.approx(0.05, abs=0.02)
  assert evaluated == [(2, 5, 3, 2, ("class_0",) if row["outlines"] else None)]
  # 2 epochs of 2 steps of 2 images, for 2 models.
  assert row["steps"] == 4
  # Seconds are rounded, and so few that it shows.
  assert 16 / row["model_images_per_s"] == pytest.approx(row["seconds"]["training"], abs=0.01)
  assert 0 <= row["score"] <= 1
  assert f"| {row['total_s']:.1f} |" in capsys.readouterr().out


FOUND = {
  "seconds": dict.fromkeys(sweep.PARTS, 1.0), "total_s": 7.0, "memory_bytes": None,
  "model_images_per_s": 1.0, "peak_share": 0.1, "devices": 1,
}  # fmt: skip


def test_one_thing_at_a_time_is_changed(here, monkeypatch, tmp_path):
  monkeypatch.setattr(
    sweep, "run", lambda args: FOUND | {"strategy": args.strategy, "devices": args.devices}
  )
  out = tmp_path / "sweep.json"
  scale = ["--scale", "members=1,7", "devices=1,2", f"--out={out}"]
  assert sweep.main([*SMALL, *scale]) == 0
  rows = json.loads(out.read_text())["rows"]
  names = ("scaled", "members", "devices", "strategy")
  assert [tuple(row[name] for name in names) for row in rows] == [
    (None, 2, None, "auto"),
    ("members", 1, None, "auto"),
    ("members", 7, None, "auto"),
    ("devices", 2, 1, "auto"),
    # Of several devices a sweep only makes use where it is laid over them.
    ("devices", 2, 2, "sharded"),
  ]
  assert here[:3] == [{}] * 3
  assert [x["XLA_FLAGS"].split("=")[-1] for x in here[3:]] == ["1", "2"]
  args = sweep.parse([*SMALL, "--devices=2"])
  args.backend = "gpu"
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
  assert sweep.environment_of(args) == {"CUDA_VISIBLE_DEVICES": "4,5"}


def test_frames_are_drawn_without_grain_every_epoch_once():
  arrays = sweep.make_frames(5, size=8, classes=1, seed=0)
  arrays["image"][:, 0, 0, 0] = np.arange(5)
  frames = Frames(arrays, cache="device")
  batches = frames.training_batches(2, seed=0, order=sweep.Order(5, 2))
  drawn = [np.asarray(next(batches)["image"])[:, 0, 0, 0].tolist() for _ in range(3)]
  state = batches.get_state()
  after = next(batches)["image"]
  assert len(set(drawn[0] + drawn[1])) == 4 and drawn[2] != drawn[0]
  batches.set_state(state)
  np.testing.assert_array_equal(next(batches)["image"], after)


def test_frames_are_never_zeros_and_every_class_is_shown():
  frames = sweep.make_frames(3, size=32, classes=4, seed=1)
  assert frames["image"].min() > 0
  assert (frames["confidence"].max((1, 2)) > 0).all()
  assert (frames["confidence"].min((1, 2)) == 0).all()


def test_a_row_that_fails_is_one_and_not_the_end(here, monkeypatch, tmp_path, capsys):
  def run(args):
    if args.batch == 4:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    return FOUND | {"strategy": "loop"}

  monkeypatch.setattr(sweep, "run", run)
  out = tmp_path / "sweep.json"
  assert sweep.main([*SMALL, "--scale", "batch=1,4", f"--out={out}"]) == 0
  rows = json.loads(out.read_text())["rows"]
  assert [(row["batch"], row["ok"]) for row in rows] == [(2, True), (1, True), (4, False)]
  assert "not measured: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--members=9"], "use a multiple of 7"),
    (["--batch=32"], "more than the 16 training frames"),
    (["--scale", "batch=2,64"], "more than the 16 training frames"),
    (["--width=9"], "width: 9.0"),
  ],
)
def test_what_cannot_be_measured_is_refused(options, message, capsys):
  assert sweep.main(options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
