import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import common
from lus_jax import parallel
from lus_jax.errors import UserError


@pytest.fixture
def started(monkeypatch):
  """The arguments of `jax.distributed.initialize`, which is not called."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
  monkeypatch.setattr(jax.config, "update", lambda *args: None)
  for name in parallel.LAUNCHERS:
    monkeypatch.delenv(name, raising=False)
  return calls


def distributed(**fields):
  config = common.distributed()
  config.update(fields)
  return config


def test_one_process_joins_nobody(started, monkeypatch):
  parallel.initialize(distributed())
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
  parallel.initialize(distributed())
  assert started == []
  assert parallel.is_main()


def test_processes_join_by_flags_or_as_the_launcher_says(started, monkeypatch):
  parallel.initialize(
    distributed(coordinator_address="localhost:1234", num_processes=2, process_id=0)
  )
  assert started[0]["coordinator_address"] == "localhost:1234"
  assert (started[0]["num_processes"], started[0]["process_id"]) == (2, 0)
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
  parallel.initialize(distributed())
  # jax reads the rest from the variables itself.
  assert started[1].keys() == {"shutdown_timeout_seconds"}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_processes": 2}, r"coordinator_address is empty, but num_processes or process_id"),
    ({"process_id": 0}, r"coordinator_address is empty, but num_processes or process_id"),
    ({"coordinator_address": "node1"}, r"coordinator_address: 'node1' is not HOST:PORT"),
    ({"coordinator_address": "a:1"}, r"num_processes: 0 must be at least 1"),
    ({"coordinator_address": "a:1", "num_processes": 2}, r"process_id: -1 must be in 0 to 1"),
    (
      {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
      r"process_id: 2 must be in 0 to 1",
    ),
    (
      {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 1},
      r"coordinator_address: nobody answered at localhost:1 within 0 s .* start process 0 there",
    ),
  ],
)
def test_what_cannot_join_is_refused(started, monkeypatch, fields, message):
  monkeypatch.setattr(parallel, "MEETING_TIMEOUT", 0)
  with pytest.raises(UserError, match=r"^config\.distributed\." + message):
    parallel.initialize(distributed(**fields))
  assert started == []


@pytest.mark.parametrize(
  ("members", "devices", "shape"),
  [
    (7, 1, (1, 1)),
    (7, 2, (2, 1)),
    (7, 4, (4, 1)),
    (7, 7, (7, 1)),
    (7, 8, (8, 1)),  # one of eight idle
    (7, 16, (8, 2)),
    (7, 5, (5, 1)),  # three of ten places stay empty, and seven shared rounds took longer
    (5, 8, (8, 1)),  # three rounds of two would fill more, and take longer
    (4, 8, (4, 2)),
    (3, 8, (4, 2)),
    (9, 8, (8, 1)),
    (16, 8, (8, 1)),
    (1, 8, (1, 8)),
    (2, 8, (2, 4)),
    (3, 2, (2, 1)),
    (40, 8, (8, 1)),
  ],
)
def test_members_are_laid_over_devices_first(members, devices, shape):
  assert parallel.mesh_shape(members, devices) == shape


def mesh(members, data):
  return jax.make_mesh(
    (members, data), (parallel.MEMBER, parallel.DATA), axis_types=(AxisType.Auto,) * 2
  )


def test_a_batch_is_split_over_the_data_axis():
  batch = {"x": np.arange(24.0).reshape(2, 4, 3), "y": np.arange(8).reshape(2, 4)}
  found = parallel.split(mesh(1, 2), batch, 4, axis=1)
  for name, x in batch.items():
    np.testing.assert_array_equal(found[name], x)
    for shard in found[name].addressable_shards:
      assert shard.data.shape[1] == 2
      np.testing.assert_array_equal(shard.data, x[shard.index])


def test_a_process_reads_only_its_rows(monkeypatch):
  # As if the second device were another process's.
  real = NamedSharding.addressable_devices_indices_map
  first = jax.devices()[0]
  monkeypatch.setattr(
    NamedSharding,
    "addressable_devices_indices_map",
    lambda self, shape: {d: i for d, i in real(self, shape).items() if d == first},
  )
  assert parallel.own_rows(mesh(1, 2), 6) == slice(0, 3)
  assert parallel.own_rows(mesh(2, 1), 6) == slice(0, 6)
  assert parallel.own_rows(None, 6) == slice(0, 6)


def test_everything_is_on_every_device_where_nothing_is_split():
  x = np.arange(6.0).reshape(3, 2)
  found = parallel.replicate(mesh(2, 1), [x])[0]
  assert [shard.data.shape for shard in found.addressable_shards] == [(3, 2)] * 2
  np.testing.assert_array_equal(found, x)
  assert len(parallel.replicate(None, x).devices()) == 1


@pytest.mark.parametrize(
  ("batch_size", "rows", "message"),
  [
    (3, 1, "use 2 or 4"),
    (1, 1, "1 cannot be shared evenly by the 2 devices .*; use 2"),
    (3, 2, ""),
  ],
)
def test_a_batch_that_devices_cannot_share_is_refused(batch_size, rows, message):
  parallel.check_batch(None, batch_size, rows=rows)
  parallel.check_batch(mesh(2, 1), batch_size, rows=rows)
  if not message:
    parallel.check_batch(mesh(1, 2), batch_size, rows=rows)
    return
  with pytest.raises(UserError, match=rf"config\.train\.batch_size: .*{message}"):
    parallel.check_batch(mesh(1, 2), batch_size, rows=rows)


def test_members_are_mapped_without_a_member_axis():
  shapes = []

  def fn(state, own, x):
    shapes.append((state.shape, own.shape, x.shape))
    return state * own + x

  where = parallel.member_sharding(mesh(2, 1))
  state = parallel.by_member(np.ones((2, 3), np.float32), where)
  own = np.array([2, 3], np.float32)
  found = jax.jit(parallel.map_members(fn, mesh(2, 1)))(state, own, np.arange(3, dtype=np.float32))
  np.testing.assert_array_equal(found, [[2, 3, 4], [3, 4, 5]])
  assert shapes == [((3,), (), (3,))]
  assert found.sharding.spec == PartitionSpec(parallel.MEMBER)
