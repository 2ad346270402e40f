"""Toy networks that compile in a moment, a small phantom, and runs that only seem to have been."""

import contextlib
import fcntl
import json
import os
import pathlib
import zlib

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from ml_collections import ConfigDict

from configs import readmission, seg, sf_change, sf_ratio
from lus_jax import lock, models, results, timing
from lus_jax.data import datasets, summary
from lus_jax.inference import trained
from lus_jax.models import fpn, layers
from lus_jax.models.mobilenet_v2 import ConvNorm
from lus_jax.training import checkpoints, claim, state
from lus_jax.training import objective as objective_lib
from lus_jax.training.sweep import Sweep

# Six patients, three of them readmitted; all with a view that was recorded on both days.
PHANTOM = {"n_patients": 6, "seed": 57, "missing_views": 0.6, "n_frames": 3}


class ToySegmentation(nnx.Module):
  """All that counts of a segmentation network: weights, running statistics, logits per pixel."""

  def __init__(self, in_channels, classes, *, rngs):
    self.conv = layers.Conv(in_channels, classes, 3, dtype=jnp.float32, rngs=rngs)
    self.norm = layers.BatchNorm(classes)

  def __call__(self, image, *, train, key=None, upsample=True):
    return 3 * self.norm(self.conv(image), train=train)


class ToyHead(nnx.Module):
  """Logits of a head at a quarter of the size, as the FPN's before it upsamples."""

  def __init__(self, in_channels, classes, *, rngs):
    options = {"stride": 4, "bias": True, "dtype": jnp.float32, "rngs": rngs}
    self.norm = layers.BatchNorm(in_channels)
    self.segmentation_head = layers.Conv(in_channels, classes, 5, **options)

  def __call__(self, image, *, train, key=None, upsample=True):
    logits = self.segmentation_head(self.norm(image, train=train))
    return fpn.upsample_logits(logits, *image.shape[1:3]) if upsample else logits


class ToyDropout(nnx.Module):
  """All that a sweep can get wrong in one small network: weights, running statistics, dropout."""

  def __init__(self, *, rngs):
    self.conv = layers.Conv(1, 8, 3, dtype=jnp.float32, rngs=rngs)
    self.norm = layers.BatchNorm(8)
    self.dropout = nnx.Dropout(0.5, broadcast_dims=(1, 2))
    self.head = layers.Conv(8, 2, 1, dtype=jnp.float32, rngs=rngs)

  def __call__(self, image, *, train, key=None):
    x = jax.nn.relu(self.norm(self.conv(image), train=train))
    return self.head(self.dropout(x, deterministic=not train, rngs=nnx.Rngs(dropout=key)))


class ToyVideo(nnx.Module):
  """Stands in for the video network: features over frames, hidden layers, a bias not added."""

  def __init__(self, in_channels, outputs, hidden, *, rngs):
    conv = layers.Conv(in_channels, 8, 3, stride=2, dtype=jnp.float32, rngs=rngs)
    self.features = nnx.List([ConvNorm(conv, 8, dtype=jnp.float32)])
    sizes = (8, *hidden)
    self.hidden = nnx.List(
      nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    )
    self.head = nnx.Linear(sizes[-1], outputs, use_bias=False, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, clip, *, train, key=None, where=None):
    where = None if where is None else jnp.repeat(where, clip.shape[1])
    x = self.features[0](clip.reshape(-1, *clip.shape[2:]), train=train, where=where)
    x = x.reshape(*clip.shape[:2], -1, x.shape[-1]).mean((1, 2))
    for layer in self.hidden:
      x = jax.nn.relu(layer(x))
    return self.head(x)


def build_model(config, *, in_channels, classes, seed, levels=1):
  """In place of `models.build_model`."""
  return ToySegmentation(in_channels, levels * classes, rngs=nnx.Rngs(seed))


def build_head(config, *, in_channels, classes, seed, levels=1):
  """In place of `models.build_model`, where a head at a quarter of the size is needed."""
  return ToyHead(in_channels, levels * classes, rngs=nnx.Rngs(seed))


def build_video_model(config, *, in_channels, outputs, hidden, seed):
  """In place of `models.build_video_model`."""
  return ToyVideo(in_channels, outputs, hidden, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def toy_networks():
  """Toys in place of the real networks."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", build_model)
    patch.setattr(models, "build_video_model", build_video_model)
    yield


@pytest.fixture(scope="session")
def toy_trained():
  """`make(seeds) -> Trained`, one model a seed, of two classes and random running statistics."""

  def make(seeds, strategy="loop", loss="weighted_cross_entropy"):
    states = []
    for seed in seeds:
      network = state.Network(ToySegmentation(1, 2, rngs=nnx.Rngs(seed)))
      mean = np.random.default_rng(seed).uniform(-0.2, 0.2, 2).astype(np.float32)
      stats = jax.tree.map(lambda x, m=mean: x * 0.1 + m**2, network.batch_stats)
      states.append({"params": network.params, "batch_stats": stats})
    thresholds = tuple(np.linspace(0, 1, len(seeds)).tolist())
    config = ConfigDict(
      {
        "model": {"width": 1.0},
        "loss": {"name": loss, "weights": "paper"},
        "sweep": {"thresholds": thresholds, "seeds": 1},
      }
    )
    objective = objective_lib.Objective(config)
    sweep = Sweep([objective.scalars(member) for member in objective.members], strategy)
    return trained.Trained(
      config=config,
      objective=objective,
      views=objective.views()[0],
      dataset={"name": "toy", "classes": ["a", "b"]},
      patients={"train": ["p0"], "validation": ["p1"], "test": ["p2"]},
      network=network,
      sweep=sweep,
      weights=sweep.place(states),
    )

  return make


def pretend(config, workdir, patients=None):
  """Leaves what a finished segmentation run leaves, but untrained.

  It stands in for `train_and_evaluate` of `tasks.segmentation.run`; every threshold and set of
  patients gets weights of its own.
  """
  dataset = datasets.open_dataset(config.data, "frames")
  if patients is not None:
    dataset = dataset.regroup(patients)
  settings = json.loads(config.to_json())
  first = zlib.crc32(repr(patients).encode()) >> 8
  networks = [
    state.Network(
      models.build_model(config.model, in_channels=1, classes=len(dataset.classes), seed=seed)
    )
    for seed in range(first, first + len(config.sweep.thresholds))
  ]
  best = jax.tree.map(
    lambda *x: jnp.stack(x),
    *({"params": n.params, "batch_stats": n.batch_stats} for n in networks),
  )
  claim.claim(workdir, settings, dataset.summary())
  manager = checkpoints.Checkpoints(workdir)
  manager.save(1, {"step": np.int32(1)}, best, {"epoch": 1})
  manager.close()
  for name in trained.RESULTS:
    rows = summary.summarize(dataset) if name == "dataset" else []
    results.write(workdir, name, config=settings, dataset=dataset.summary(), rows=rows)


@pytest.fixture(scope="session")
def prepared_phantom(tmp_path_factory):
  """Where the phantom's TFDS files go."""
  return tmp_path_factory.mktemp("phantom")


@pytest.fixture(scope="session")
def segmentation_config(prepared_phantom):
  """The smallest segmentation: two thresholds, frames of 32 x 32."""
  config = seg.get_config("tiny")
  config.data.image_size = 32
  config.data.phantom.update(PHANTOM)
  config.data.prepared_dir = os.fspath(prepared_phantom)
  config.sweep.thresholds = (0.6, 0.0)
  return config


@pytest.fixture(scope="module")
def toy_segmentation(toy_networks, segmentation_config, tmp_path_factory):
  """A directory with a finished run of toy segmentation networks; copy it to write in it."""
  workdir = tmp_path_factory.mktemp("runs") / "segmentation"
  pretend(segmentation_config, workdir)
  return workdir


@pytest.fixture(scope="session")
def pretended():
  """See `pretend`."""
  return pretend


def change(config, changes):
  """The config with other values, by dotted name, of fields that it has."""
  for name, value in changes.items():
    *path, field = name.split(".")
    part = config
    for key in path:
      part = part[key]
    assert field in part, name
    with part.ignore_type():
      part[field] = value
  return config


@pytest.fixture(scope="session")
def task_config():
  """`make(task, **changes)`: the tiny config of a clinical task, in two folds."""

  def make(task, **changes):
    config = {"sf_change": sf_change, "sf_ratio": sf_ratio, "readmission": readmission}[
      task
    ].get_config("tiny")
    config.folds.n = 2
    return change(config, changes)

  return make


@pytest.fixture(scope="session")
def contents():
  """`read(workdir) -> bytes by name` of the results files of a run."""

  def read(workdir):
    files = (pathlib.Path(workdir) / "results").iterdir()
    # But for the one that no two runs have alike.
    return {p.name: p.read_bytes() for p in files if p.stem != timing.NAME}

  return read


@pytest.fixture
def in_use():
  """`in_use(directory)`: within it, another process seems to have the directory."""

  @contextlib.contextmanager
  def held(directory):
    # Locks of one process through two files exclude each other too.
    with open(directory / lock.NAME, "w") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      json.dump({"pid": 123, "host": "node7", "since": "today", "command": "main.py"}, file)
      file.flush()
      yield

  return held
