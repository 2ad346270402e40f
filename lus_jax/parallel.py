"""Several devices and several processes: who computes what, and which process writes.

Devices form a mesh of two axes, `member` x `data`: the members of a sweep are laid over its rows,
and what devices are left in a row share every batch. Norms see the whole batch all the same, so the
numbers are those of one device.
"""

import contextlib
import math
import os
import re
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lus_jax.errors import UserError

MEMBER, DATA = "member", "data"
# The share of a step's time that is not divided by the devices that share its batch: kernels that
# are short already, weights, and a sum over devices for every norm and gradient. Compiled for four
# GPUs (lus_jax/benchmarks/RESULTS.md) it is between a fifth and a half.
UNSHARED = 0.4
# Each says how many processes a launcher has started; jax finds the rest of what it needs.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Seconds that a process waits for the one that the others meet at, and at the end for the others.
MEETING_TIMEOUT, END_TIMEOUT = 120, 20


def initialize(config):
  """Joins the processes of one run; to be called before anything is computed.

  Args:
    config: the `distributed` part of a run's config (`coordinator_address`, `num_processes`,
      `process_id`). Without an address the variables of SLURM's srun or Open MPI's mpirun are
      used; without those either, the run is this one process.

  Raises:
    UserError: a field is missing or wrong, or the coordinator cannot be reached.
  """
  address, n, index = config.coordinator_address, config.num_processes, config.process_id
  if not address:
    if n or index >= 0:
      raise UserError(
        "config.distributed.coordinator_address is empty, but num_processes or process_id is set; "
        "add --config.distributed.coordinator_address=HOST:PORT of process 0."
      )
    if all(int(os.environ.get(name, 1)) <= 1 for name in LAUNCHERS):
      return
    arguments = {}
  else:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
      raise UserError(
        f"config.distributed.coordinator_address: '{address}' is not HOST:PORT, as in node1:1234."
      )
    if n < 1:
      raise UserError(
        f"config.distributed.num_processes: {n} must be at least 1: how many processes there are."
      )
    if not 0 <= index < n:
      raise UserError(
        f"config.distributed.process_id: {index} must be in 0 to {n - 1}, another one for each of "
        "the processes."
      )
    if index > 0:
      _wait_for(host, int(port))
    arguments = {"coordinator_address": address, "num_processes": n, "process_id": index}
  # Otherwise SIGTERM would be held back for minutes; the last checkpoint is enough.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(**arguments, shutdown_timeout_seconds=END_TIMEOUT)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f"config.distributed: the processes could not join ({str(error).splitlines()[0]})."
    ) from error


def _wait_for(host, port):
  # jax ends the process with a stack trace where it finds nobody.
  end = time.monotonic() + MEETING_TIMEOUT
  while True:
    try:
      socket.create_connection((host, port), timeout=10).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise UserError(
          f"config.distributed.coordinator_address: nobody answered at {host}:{port} within "
          f"{MEETING_TIMEOUT} s ({error}); start process 0 there, with the same address."
        ) from error
      time.sleep(0.5)


def is_main():
  """Whether this process is the one that writes and prints."""
  # Asking jax alone would start a backend, which a report does not need.
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def sync(name):
  """Waits until all processes are here; `name` says where."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(name):
  """Within it, the other processes follow when the main one is through."""
  if not is_main():
    sync(name)
  try:
    yield
  finally:
    if is_main():
      sync(name)


def from_main(values):
  """What the main process says, for all: a list of integers."""
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values, np.int32))).tolist()


def any_of(flag):
  """Whether it is true in any of the processes."""
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def mesh_shape(members, devices):
  """How many members are computed at once, and over how many devices each batch is split.

  The first is the divisor of the number of devices with which a step of all members takes least
  time, by `UNSHARED`: 7 members lie on 7 or 8 devices one each, on 2 or 4 in rounds; a single one
  has every device for its batch.

  Args:
    members: T.
    devices: D.

  Returns:
    (m, D / m).
  """

  def time(m):
    return -(-members // m) * (UNSHARED + (1 - UNSHARED) * m / devices)

  # Of equals the most members at once, who wait for nobody.
  m = min((m for m in range(devices, 0, -1) if devices % m == 0), key=time)
  return m, devices // m


def layout(strategy, members, devices):
  """How a strategy lays members over devices: as `mesh_shape`; None where it does not.

  Args:
    strategy: 'sharded' takes the fastest; '4x2' is four members at once, two devices a batch.
    members: T.
    devices: D.
  """
  if strategy == "sharded":
    return mesh_shape(members, devices)
  found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", strategy)
  return found and (int(found[1]), int(found[2]))


def make_mesh(members, devices=None, strategy="sharded"):
  """The mesh of these devices, or all of all processes, for so many members (`layout`)."""
  devices = devices or jax.devices()
  shape = layout(strategy, members, len(devices))
  kinds = (AxisType.Auto,) * 2
  return jax.make_mesh(shape, (MEMBER, DATA), axis_types=kinds, devices=devices)


def check_batch(mesh, batch_size, *, rows=1):
  """Refuses a batch that does not divide over the data axis (`UserError`).

  Args:
    mesh: of `make_mesh`, or None.
    batch_size: as in the config.
    rows: of the batch for each of these.
  """
  n = 1 if mesh is None else mesh.shape[DATA]
  if batch_size * rows % n:
    unit = n // math.gcd(n, rows)
    down = batch_size // unit * unit
    raise UserError(
      f"config.train.batch_size: {batch_size} cannot be shared evenly by the {n} devices of each "
      f"member; use {f'{down} or ' if down else ''}{down + unit}."
    )


def own_rows(mesh, n):
  """The rows of a batch of n that the devices of this process need, as a slice."""
  if mesh is None:
    return slice(0, n)
  places = NamedSharding(mesh, PartitionSpec(DATA)).addressable_devices_indices_map((n,))
  found = [index[0].indices(n) for index in places.values()]
  return slice(min(start for start, _, _ in found), max(stop for _, stop, _ in found))


def split(mesh, tree, n, *, axis=0):
  """Brings a batch to the devices, its rows over the data axis.

  Args:
    mesh: of `make_mesh`; None for the default device.
    tree: arrays on the host, of the rows `own_rows(mesh, n)`.
    n: rows of the whole batch.
    axis: which of the arrays' axes these are.
  """
  if mesh is None:
    return jax.device_put(tree)
  sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
  first = own_rows(mesh, n).start

  def put(x):
    def part(index):
      start, stop, _ = index[axis].indices(n)
      return x[(*index[:axis], slice(start - first, stop - first), *index[axis + 1 :])]

    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put, tree)


def replicate(mesh, tree):
  """Brings arrays, the same in every process, to every device; to the default one without mesh."""
  if mesh is None:
    return jax.device_put(tree)
  return jax.tree.map(lambda x: _put(x, NamedSharding(mesh, PartitionSpec())), tree)


def by_member(tree, formats):
  """Brings arrays, the same in every process, to the devices, as `Sweep.formats` lays them."""
  return jax.tree.map(_put, tree, formats)


def _put(x, where):
  # A copy: devices of a CPU may otherwise share the array's own memory, which steps reuse.
  return jax.make_array_from_callback(x.shape, where, lambda index: np.array(x[index]))


def map_members(fn, mesh):
  """`fn(state, own, *shared)` of one member, for one member in each row of the mesh.

  Every row runs `fn` as it is, without a member axis: mapped over members, a convolution would
  become a grouped one. Over the data axis the compiler divides the work.

  Returns:
    A function whose `state`, `own` and results have a leading axis m.
  """

  def row(state, own, shared):
    state, own = jax.tree.map(lambda x: x[0], (state, own))
    return jax.tree.map(lambda x: x[None], fn(state, own, *shared))

  member = PartitionSpec(MEMBER)
  mapped = on_rows(row, mesh, in_specs=(member, member, PartitionSpec()))
  return lambda state, own, *shared: mapped(state, own, shared)


def on_rows(fn, mesh, in_specs=None):
  """`fn` of what each row of the mesh has of its arguments: their first axis is over members.

  Args:
    fn: its arguments and results are trees of arrays with a leading axis.
    mesh: of `make_mesh`.
    in_specs: a `PartitionSpec` for each argument, where some are not over members.
  """
  member = PartitionSpec(MEMBER)
  # Members have nothing to say to each other, so there is nothing to check.
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=member if in_specs is None else in_specs,
    out_specs=member,
    axis_names={MEMBER},
    check_vma=False,
  )


def member_sharding(mesh):
  """First axis over members, the rest whole: how a sweep's state and results lie."""
  return NamedSharding(mesh, PartitionSpec(MEMBER))
