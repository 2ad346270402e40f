"""The core trains and evaluates where TensorFlow and the data libraries are not installed."""

import os
import pathlib
import subprocess
import sys

SCRIPT = """
import sys

BLOCKED = ("tensorflow", "tensorflow_datasets", "grain", "clu", "ml_collections", "tensorboard")
for name in BLOCKED:
  sys.modules[name] = None  # importing it raises ImportError

import tempfile
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from lus_jax import models
from lus_jax.benchmarks import sweep as sweep_benchmark
from lus_jax.benchmarks import throughput
from lus_jax.data.pipeline import Frames
from lus_jax.evaluation.segmentation import evaluate
from lus_jax.inference.trained import freeze
from lus_jax.models import layers
from lus_jax.tasks.segmentation import train
from lus_jax.training import checkpoints, loop, optimizers, writers
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep

r = np.random.default_rng(0)
image = r.integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
arrays = {
  "image": image,
  "confidence": np.where(image > 100, image, 0),
  "labelled": np.ones((8, 1), bool),
  "valid_box": np.tile(np.int32([0, 0, 32, 32]), (8, 1)),
}
config = SimpleNamespace(
  seed=0,
  model=SimpleNamespace(encoder="resnet18", width=0.125, dropout=0.2, dtype="float32"),
  sweep=SimpleNamespace(thresholds=(0.8, 0.5), seeds=1, strategy="loop"),
  loss=SimpleNamespace(
    name="weighted_cross_entropy", weights="paper", reduction="mean",
    subthreshold_weight="threshold",
  ),
  optimizer=SimpleNamespace(learning_rate=1e-2),
  augment=SimpleNamespace(
    probability=0.5, rotation_degrees=15.0, brightness=0.2, contrast=0.2, gamma=(0.8, 1.25)
  ),
  train=SimpleNamespace(epochs=2, batch_size=4, log_every=2, checkpoint_every=1),
)


# To train a real network takes half a minute to compile; below one predicts.
class Toy(nnx.Module):
  def __init__(self, rngs):
    self.conv = layers.Conv(1, 1, 3, dtype=jnp.float32, rngs=rngs)
    self.norm = layers.BatchNorm(1)

  def __call__(self, image, *, train, key=None, upsample=True):
    return self.norm(self.conv(image), train=train)


class Batches:
  def __next__(self):
    return {k: v[:4] for k, v in arrays.items()}

  def get_state(self):
    return {}

  def set_state(self, state):
    pass


frames = Frames(arrays, cache="device")
tx, schedule = optimizers.with_cosine(config.optimizer, 10)
objective = Objective(config)
names, members = objective.of_all_seeds()
sweep = Sweep(members, "loop")
real = models.build_model
models.build_model = lambda *args, seed, **options: Toy(nnx.Rngs(seed))
network, state = train.initial_state(config, objective, sweep, in_channels=1, classes=1, tx=tx)
start = jax.device_get(sweep.stack(state).params)
task = train.make_task(
  network, sweep, names, frames, config, objective, tx=tx, schedule=schedule
)
with tempfile.TemporaryDirectory() as workdir:
  manager, writer = checkpoints.Checkpoints(workdir), writers.create_writer(workdir)
  assert isinstance(writer, writers.JsonLinesWriter), writer
  writers.write_overview(writer, {"train": {"epochs": 2}}, network.params)
  state, meta = loop.fit(
    task, sweep, state, Batches(), config=config.train, steps_per_epoch=5,
    key=jax.random.key(0), checkpoints=manager, writer=writer,
  )
  manager.close()
  assert open(f"{workdir}/tensorboard/metrics.jsonl").read().count("loss/train/threshold_0.8") == 6
end = jax.device_get(sweep.stack(state).params)
assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, end))))
trained = freeze(
  network, sweep, state, objective, config=config, dataset={"classes": ["bright"]}, patients={}
)
evaluation = evaluate(trained, train=frames, validation=frames, test=frames, thin=("bright",))
assert 0 <= evaluation.members[0]["iou"] <= 1
assert set(evaluation.baselines) == {"prevalence", "mean_map"}
models.build_model = real
options = "--what predict --size 32 --batch 1 --width .125 --classes 1 --thresholds 1 --steps 1"
assert throughput.main([*options.split(), "--strategy", "loop", "--in-process"]) == 0

for name in [*sys.modules, "surface_distance"]:
  if name.split(".")[0] == "surface_distance":
    sys.modules[name] = None


class Toy(nnx.Module):
  def __init__(self, outputs):
    rngs = nnx.Rngs(0)
    self.conv = layers.Conv(1, outputs, 3, dtype=jnp.float32, rngs=rngs)
    self.norm = layers.BatchNorm(outputs)

  def __call__(self, image, *, train, key=None):
    return self.norm(self.conv(image), train=train)


models.build_model = lambda config, *, classes, **_: Toy(classes)
options = "--size 32 --batch 2 --members 2 --classes 1 --frames 4 2 2 --checkpoint-every 1"
row = sweep_benchmark.run(sweep_benchmark.parse(options.split()))
assert row["steps"] == 4 and row["score"] > 0 and not row["outlines"], row
assert not any(sys.modules.get(name) for name in BLOCKED)
print("trained alone")
"""


def test_the_core_needs_neither_tensorflow_nor_the_data_libraries():
  result = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=pathlib.Path(__file__).parents[1],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr
  assert "trained alone" in result.stdout
