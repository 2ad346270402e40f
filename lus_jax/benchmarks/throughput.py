"""How fast the sweep trains, by strategy.

  python -m lus_jax.benchmarks.throughput --size 96 --batch 4 --encoder resnet18 --width 0.5

Prints a table and, with --out, writes JSON rows. A step is one augmented batch through every
member; the figure is the median over steps, after a warm-up, with every result waited for. Needs
jax, flax and optax only.
"""

import argparse
import json
import os
import platform
import statistics
import time
from types import SimpleNamespace

import jax
import numpy as np

from lus_jax.data import augment
from lus_jax.evaluation.results import versions
from lus_jax.files import write_text
from lus_jax.training import segmentation
from lus_jax.training import state as state_lib

THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)


def make_config(args, *, thresholds, strategy):
  """The part of a run's config that a training step depends on."""
  return SimpleNamespace(
    seed=0,
    model=SimpleNamespace(encoder=args.encoder, width=args.width, dropout=0.2, dtype=args.dtype),
    sweep=SimpleNamespace(thresholds=thresholds, seeds=1, strategy=strategy),
    loss=SimpleNamespace(
      name="weighted_cross_entropy",
      weights="paper",
      subthreshold_weight="threshold",
      reduction="mean",
    ),
    augment=SimpleNamespace(
      probability=0.5, rotation_degrees=15.0, brightness=0.2, contrast=0.2, gamma=(0.8, 1.25)
    ),
    optimizer=SimpleNamespace(learning_rate=1e-4),
  )


def random_batch(*, batch, size, classes):
  """Stored frames of noise, never zeros: [B, H, W, ...] uint8."""
  r = np.random.default_rng(0)
  return {
    "image": r.integers(1, 256, (batch, size, size, 1), dtype=np.uint8),
    "confidence": r.integers(0, 256, (batch, size, size, classes), dtype=np.uint8),
    "labelled": np.ones((batch, classes), bool),
    "valid_box": np.tile(np.int32([0, 0, size, size]), (batch, 1)),
  }


class Run:
  """A sweep that is ready to be timed, step by step."""

  def __init__(self, args, *, n_thresholds, strategy):
    config = make_config(args, thresholds=THRESHOLDS[:n_thresholds], strategy=strategy)
    self.row = {
      "what": "fpn",
      "size": args.size,
      "batch": args.batch,
      "thresholds": n_thresholds,
      "dtype": args.dtype,
      "strategy": strategy,
      "side": "ours",
    }
    tx, _ = segmentation.make_optimizer(config.optimizer, 1000)
    network, self.sweep, self.state, _ = segmentation.create_sweep(
      config, in_channels=1, classes=args.classes, tx=tx
    )
    self.step = self.sweep.compile(
      state_lib.make_train_step(segmentation.make_loss(network, config.loss), tx),
      updates_state=True,
    )
    self.prepare = jax.jit(lambda batch, key: augment.prepare(batch, key, config.augment))
    self.batch = jax.device_put(
      random_batch(batch=args.batch, size=args.size, classes=args.classes)
    )
    self.key = jax.random.key(0)
    self.seconds = []
    self.row["compile_s"] = round(self._time_one(), 2)

  def _time_one(self):
    self.key, augment_key, model_key = jax.random.split(self.key, 3)
    start = time.perf_counter()
    inputs = self.prepare(self.batch, augment_key)
    self.state, loss = self.step(self.state, self.sweep.members, inputs, model_key)
    jax.block_until_ready((self.state, loss))
    return time.perf_counter() - start

  def measure(self, steps):
    """Times some steps more."""
    self.seconds += [self._time_one() for _ in range(steps)]

  def result(self):
    """The row: model-images per second from the median step."""
    step = statistics.median(self.seconds)
    images = self.row["batch"] * self.row["thresholds"]
    return self.row | {
      "ms_per_step": round(1000 * step, 1),
      "images_per_s": round(images / step, 2),
    }


def main(argv=None):
  """Measures every strategy with one threshold and with all; prints, and writes `--out`."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=96, help="H and W in pixels")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--classes", type=int, default=6)
  parser.add_argument("--encoder", default="resnet18")
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--thresholds", type=int, nargs="+", default=[1, 7])
  parser.add_argument("--strategy", default="all", choices=["all", "loop", "vmap"])
  parser.add_argument("--steps", type=int, default=3, help="per round; there are two rounds")
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  strategies = ["loop", "vmap"] if args.strategy == "all" else [args.strategy]
  runs = [
    Run(args, n_thresholds=n, strategy=strategy) for n in args.thresholds for strategy in strategies
  ]
  # A B A B: a machine that slows down does so for all.
  for _ in range(2):
    for run in runs:
      run.measure(args.steps)
  rows = [run.result() for run in runs]
  device = jax.devices()[0]
  machine = f"{device.device_kind}, {os.cpu_count()} cores, {platform.system()}"
  print(f"{machine}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
  print(f"FPN {args.encoder} x {args.width}, {args.size} x {args.size}, batch {args.batch}")
  print("| thresholds | strategy | ms per step | model-images/s | first step (compile) s |")
  print("| --- | --- | --- | --- | --- |")
  for row in rows:
    print(
      f"| {row['thresholds']} | {row['strategy']} | {row['ms_per_step']} | {row['images_per_s']} | "
      f"{row['compile_s']} |"
    )
  if args.out:
    content = {"machine": machine, "versions": versions(), "rows": rows}
    write_text(args.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
  main()
