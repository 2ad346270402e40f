"""Two processes on one machine are one run: the same numbers, and one set of results."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from lus_jax import results
from lus_jax.inference import trained

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import sys

import numpy as np
from flax import nnx
from jax import numpy as jnp

from configs import seg
from lus_jax import models, parallel
from lus_jax.models import layers
from lus_jax.tasks.segmentation import run
from lus_jax.training.sweep import Sweep
from tests import toys


models.build_model = toys.build_model
config = seg.get_config("tiny")
config.data.image_size = 32
config.data.phantom.n_patients = 4
config.train.epochs = 1
config.data.prepared_dir, workdir = sys.argv[1:3]
if len(sys.argv) > 3:
  config.distributed.coordinator_address = sys.argv[3]
  config.distributed.num_processes = 2
  config.distributed.process_id = int(sys.argv[4])
parallel.initialize(config.distributed)
# With one member the processes share every batch, and each reads its half.
config.sweep.thresholds, config.data.cache = (0.6,), "stream"
run.train_and_evaluate(config, workdir)

# Three members are laid over both processes; every one of these gets all results.
members = [{"factor": np.float32(i)} for i in (2, 3, 4)]
sweep = Sweep(members, "sharded")
state = sweep.place([np.arange(2, dtype=np.float32) + i for i in range(3)])
state = sweep.unstack(sweep.stack(state))
product = sweep.compile(lambda state, member, x: state * member["factor"] + x)
print("members:", np.stack(sweep.to_host(product(state, members, np.float32(1)))).tolist())
print("main:", parallel.from_main([10 + parallel.is_main()]))
"""


def start(*args):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, *map(str, args)],
    cwd=ROOT,
    # One device each.
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return output


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  path = tmp_path_factory.mktemp("processes")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  both = [start(path / "data", path / "both", address, i) for i in range(2)]
  for output in map(finish, both):
    assert "members: [[1.0, 3.0], [4.0, 7.0], [9.0, 13.0]]" in output
    assert "main: [11]" in output
  finish(start(path / "data", path / "alone"))
  return path


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(workdirs):
  alone, both = (
    {name: results.read(workdirs / which, name) for name in trained.RESULTS}
    for which in ("alone", "both")
  )
  assert alone["dataset"] == both["dataset"]
  assert alone["history"]["config"] == both["history"]["config"]
  rows = list(zip(alone["history"]["rows"], both["history"]["rows"], strict=True))
  assert len(rows) == 1
  for a, b in rows:
    assert (a["epoch"], a["member"]) == (b["epoch"], b["member"])
    np.testing.assert_allclose([a["train_loss"], a["loss"]], [b["train_loss"], b["loss"]], 1e-4)
  for a, b in zip(alone["segmentation"]["rows"], both["segmentation"]["rows"], strict=True):
    np.testing.assert_allclose(a["weighted_ce"], b["weighted_ce"], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(workdirs):
  alone, both = (
    {p.relative_to(workdirs / which).as_posix() for p in (workdirs / which).rglob("*.json")}
    for which in ("alone", "both")
  )
  written = {name for name in alone if "/checkpoints/" not in name}
  assert written == {name for name in both if "/checkpoints/" not in name}
  assert len(list((workdirs / "both" / "tensorboard").iterdir())) == 1
  claim = json.loads((workdirs / "both" / "run.json").read_text())
  assert "distributed" not in claim["config"]
