"""Two processes on one machine are one run: the same numbers, and one set of results."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from lus_jax import results
from lus_jax.inference import trained
from lus_jax.training.checkpoints import Checkpoints
from lus_jax.training.sweep import Sweep

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import contextlib
import pathlib
import sys

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.experimental import multihost_utils

from configs import seg
from lus_jax import models, parallel
from lus_jax.models import layers
from lus_jax.tasks.segmentation import run
from lus_jax.training.checkpoints import Checkpoints
from lus_jax.training.sweep import Sweep
from tests import test_processes, toys


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

# Nothing large goes from process to process for checkpoints; each reads and writes its own.
gather = multihost_utils.process_allgather

def gather_little(x, **options):
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(x)) < 100
  return gather(x, **options)

path, states = pathlib.Path(workdir).parent, test_processes.states()
if len(sys.argv) > 3:
  sweep = Sweep(members, "sharded")
  fresh = sweep.stack(sweep.place([jax.tree.map(np.zeros_like, one) for one in states]))
  multihost_utils.process_allgather = gather_little
  with contextlib.closing(Checkpoints(path / "of one")) as checkpoints:
    state, best, _ = checkpoints.restore(fresh, fresh, members=3)
  state = sweep.unstack(state)
  print("finite:", sweep.finite(state).tolist())
  with contextlib.closing(Checkpoints(path / "of two")) as checkpoints:
    checkpoints.save(1, sweep.stack(state), best, {"epoch": 1})
    checkpoints.wait()
    _, best, _ = checkpoints.restore(fresh, fresh, members=3)
  multihost_utils.process_allgather = gather
  for part in (state, sweep.unstack(best)):
    for one, other in zip(sweep.to_host(part), states, strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, other)
"""


def states():
  """Of three members."""
  values = np.random.default_rng(0).normal(size=(3, 40, 10)).astype(np.float32)
  return [{"w": x, "b": x[0], "step": np.int32(i)} for i, x in enumerate(values)]


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
  one = Sweep([{}] * 3, "loop")
  with contextlib.closing(Checkpoints(path / "of one")) as checkpoints:
    stacked = one.stack(one.place(states()))
    checkpoints.save(1, stacked, stacked, {"epoch": 1})
  both = [start(path / "data", path / "both", address, i) for i in range(2)]
  for output in map(finish, both):
    assert "members: [[1.0, 3.0], [4.0, 7.0], [9.0, 13.0]]" in output
    assert "main: [11]" in output
    assert "finite: [True, True, True]" in output
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["loop", "sharded"])
def test_each_process_writes_its_part_and_one_reads_them_all(workdirs, strategy):
  # Of a member that both compute each writes what of it can be halved.
  for folder, least in (("both", 0.1), ("of two", 0.25)):
    for item in ("state", "best"):
      saved = workdirs / folder / "checkpoints" / "1" / item
      sizes = [
        sum(file.stat().st_size for file in (saved / f"ocdbt.process_{i}" / "d").iterdir())
        for i in range(2)
      ]
      assert min(sizes) > least * sum(sizes), (saved, sizes)
  sweep = Sweep([{}] * 3, strategy)
  fresh = sweep.stack(sweep.place([jax.tree.map(np.zeros_like, one) for one in states()]))
  with contextlib.closing(Checkpoints(workdirs / "of two")) as checkpoints:
    found = checkpoints.restore(fresh, fresh, members=3)[:2]
  for part in found:
    for one, other in zip(sweep.to_host(sweep.unstack(part)), states(), strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, other)
