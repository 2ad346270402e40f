"""The sweep: how T models share one machine, one batch and one compilation.

A member is a pytree of scalars (its threshold, its seed, ...): what makes it differ from the
others. Functions of one member, `fn(state, member, *shared)`, run over all of them under one of
these strategies:

- `loop`: one compiled program, called member by member. The state is a list of T states.
- `vmap`: one program for all members, with batched weights.
- `grouped`: one such program for a few members, called group by group.
- `sharded`: members lie over several devices (`lus_jax.parallel`), several at once, in rounds, as
  is fastest; a layout, as `4x2`, says itself how many at once and how many devices share a batch.

Under the last three the state is a list of R rounds (groups; under `vmap` one) with a leading axis
m: member i is in place i // R of round i % R, so that a device's members follow one another. Where
T leaves places empty, the last member is computed there again.

With `loop`, seven members together equal seven alone to the bit.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from lus_jax import parallel
from lus_jax.errors import UserError

STRATEGIES = ("auto", "loop", "vmap", "grouped", "sharded")
# Members of a group: compiled for GPUs (lus_jax/benchmarks/RESULTS.md), more of them move no fewer
# bytes a member and need as much more memory.
GROUP = 9


def choose_strategy(strategy, *, video=False):
  """Resolves 'auto' for the present backend; refuses unknown names (`UserError`).

  On a CPU a mapped convolution, which is a grouped one, is several times slower than a loop over
  members. So it is on GPUs (lus_jax/benchmarks/RESULTS.md has the bytes), but for the video
  networks, which have no convolution that stays one: mapped, nine of them move a seventh fewer
  bytes each and need a ninth of the kernels.

  Args:
    strategy: of `STRATEGIES`, or a layout, as '4x2' (`parallel.layout`).
    video: whether the members are video networks.
  """
  shape = parallel.layout(strategy, 1, jax.device_count())
  if strategy not in STRATEGIES and not shape:
    raise UserError(
      f"config.sweep.strategy: '{strategy}' is not known; choose one of {', '.join(STRATEGIES)}, "
      "or say how members lie over devices: 4x2 is four members at once, two devices to a batch."
    )
  if shape and math.prod(shape) != jax.device_count():
    raise UserError(
      f"config.sweep.strategy: {strategy} takes {math.prod(shape)} devices, and there are "
      f"{jax.device_count()}; sharded takes as many as there are."
    )
  several = jax.process_count() > 1
  if strategy == "auto":
    # CPU devices of one process are the same cores.
    if several or (jax.device_count() > 1 and jax.default_backend() != "cpu"):
      return "sharded"
    return "grouped" if video and jax.default_backend() == "gpu" else "loop"
  if several and not shape:
    raise UserError(
      f"config.sweep.strategy: '{strategy}' is for one process, and there are "
      f"{jax.process_count()}; use sharded."
    )
  return strategy


def lies_as_cudnn_reads():
  """Whether convolution kernels lie in another order than row by row (`Sweep.formats`)."""
  return jax.default_backend() == "gpu"


@dataclasses.dataclass(frozen=True)
class Sweep:
  """T members under one strategy.

  Attributes:
    members: a list of T pytrees of NumPy scalars, alike in structure.
    strategy: 'loop', 'vmap', 'grouped', 'sharded', or a layout, as '4x2' (`parallel.layout`).
    group: the most members of a group, under `grouped`.
    devices: that they are laid over, if they are; by default all there are.
  """

  members: list[Any]
  strategy: str
  group: int = GROUP
  devices: tuple[Any, ...] | None = None

  @functools.cached_property
  def mesh(self):
    """What members and batches are laid over (`lus_jax.parallel`); None on a device alone."""
    if not parallel.layout(self.strategy, len(self.members), 1):
      return None
    return parallel.make_mesh(len(self.members), self.devices, self.strategy)

  @property
  def at_once(self):
    """m, the members that one call computes, a leading axis of all it takes; 0 without the axis."""
    n = len(self.members)
    if self.mesh:
      return self.mesh.shape[parallel.MEMBER]
    # Groups alike in size leave fewest places empty.
    return {"loop": 0, "vmap": n}.get(self.strategy, -(-n // -(-n // self.group)))

  def compile(self, fn, *, updates_state=False):
    """Compiles `fn(state, own, *shared)`, a pure function of one member, for all of them.

    Args:
      fn: `own` is what belongs to that member alone, the rest is shared.
      updates_state: True if its (first) result is the new state; the old one's memory is reused.

    Returns:
      A function of the sweep's state, a list of T `own` (often `members`), and the shared
      arguments. Results are lists of T under `loop`, else lists of rounds with a leading axis m;
      `to_host` makes them alike. Its `lower`, of the same arguments, is that of `jax.jit` of the
      first member's or round's call.
    """
    if self.mesh:
      fn = parallel.map_members(fn, self.mesh)
    elif self.strategy != "loop":
      fn = _mapped(fn)
    made = []

    def program(*arguments):
      if not made:
        made.append(self._jit(fn, arguments, updates_state))
      return made[0]

    def called(states, own, *shared):
      each = [(s, o, *shared) for s, o in zip(states, self._rounds(own), strict=True)]
      results = [program(*each[0])(*arguments) for arguments in each]
      if isinstance(results[0], tuple):
        return tuple(list(x) for x in zip(*results, strict=True))
      return results

    def lower(states, own, *shared):
      arguments = states[0], self._rounds(own)[0], *shared
      return program(*arguments).lower(*arguments)

    called.lower = lower
    return called

  def _jit(self, fn, arguments, updates_state):
    results = None if self.mesh is None else self.sharding
    if updates_state and lies_as_cudnn_reads():
      state = self.formats(arguments[0])
      several = isinstance(jax.eval_shape(fn, *arguments), tuple)
      results = (state, results) if several else state
    options = {} if results is None else {"out_shardings": results}
    return jax.jit(fn, donate_argnums=(0,) if updates_state else (), **options)

  @property
  def sharding(self):
    """Where arrays of one member or round lie."""
    if self.mesh is not None:
      return parallel.member_sharding(self.mesh)
    return SingleDeviceSharding(self.devices[0] if self.devices else jax.local_devices()[0])

  def formats(self, state):
    """Where, and in what order, the arrays of one member or round lie.

    On a GPU kernels [size, size, c, d] of convolutions are in memory as cuDNN reads them, d first:
    otherwise each would be copied into that order in every step, with all that the optimizer keeps
    of it.

    Args:
      state: a pytree of arrays or shapes.

    Returns:
      A pytree of `jax.experimental.layout.Format`, or of shardings.
    """
    lead = bool(self.at_once)

    def of(x):
      if not lies_as_cudnn_reads() or x.ndim != lead + 4 or min(x.shape[-4:-1]) < 2:
        return self.sharding
      order = (*range(lead), x.ndim - 1, *range(lead, x.ndim - 1))
      return Format(Layout(major_to_minor=order), self.sharding)

    return jax.tree.map(of, state)

  def take(self, state, numbers, members=None):
    """Some of the members, in any order and as often as wanted: a `Sweep` and its state.

    Args:
      state: of this sweep.
      numbers: places in it.
      members: what the new sweep's members are; the same by default.
    """
    members = members or [self.members[i] for i in numbers]
    sweep = dataclasses.replace(self, members=members)
    if list(numbers) == list(range(len(self.members))):
      return sweep, state
    if self.strategy == "loop":
      return sweep, [state[i] for i in numbers]
    held = self.to_host(state)
    return sweep, sweep.place([held[i] for i in numbers])

  def map(self, fn, state):
    """Picks or renames parts of the state, the same of every member."""
    return [fn(one) for one in state]

  def to_host(self, results):
    """Brings results to the host, of every process, as a list of T pytrees of NumPy arrays."""
    if self.mesh:
      results = [multihost_utils.process_allgather(x, tiled=True) for x in results]
    else:
      results = jax.device_get(results)
    if self.strategy == "loop":
      return results
    return [
      jax.tree.map(lambda x, i=i: x[i // len(results)], results[i % len(results)])
      for i in range(len(self.members))
    ]

  def finite(self, state):
    """Whether all numbers of each member are finite: [T] bool, the same in every process.

    Each process looks at what lies on its devices.
    """
    found = np.ones((len(state), self.at_once or 1), bool)
    for row, one in zip(found, state, strict=True):
      for x in jax.tree.leaves(one):
        for shard in x.addressable_shards:
          places = shard.index[0] if self.at_once else slice(1)
          row[places] &= np.isfinite(np.asarray(shard.data).reshape(len(row[places]), -1)).all(1)
    if self.mesh:
      found = multihost_utils.process_allgather(found[None], tiled=True).all(0)
    return found.T.reshape(-1)[: len(self.members)]

  def stack(self, state):
    """The state with a leading axis of members: what checkpoints hold.

    It is T long, but over several devices R x m: there it lies over them as the members do, none of
    whom leaves its own.
    """
    if self.mesh:
      return self._across_rounds[0](state)
    if self.strategy == "loop":
      return _stacked(state)
    return _joined(state, len(self.members))

  def unstack(self, state):
    """The inverse of `stack`, of whatever strategy; the list's states share no memory."""
    leaves = jax.tree.leaves(state)
    if self.mesh and all(isinstance(x, jax.Array) and x.sharding == self.sharding for x in leaves):
      one = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[: self.at_once], tree), state)
      return _placed(self._across_rounds[1](state), self.formats(one))
    numbers = range(len(self.members))
    if all(isinstance(x, jax.Array) for x in leaves):
      return self.place([_picked(state, i) for i in numbers])
    return self.place([jax.tree.map(lambda x, i=i: x[i], state) for i in numbers])

  @functools.cached_property
  def _across_rounds(self):
    """Programs that put rounds together and take them apart, every device its own."""
    n = -(-len(self.members) // self.at_once)

    def apart(state):
      return [jax.tree.map(lambda x, r=r: x[r : r + 1], state) for r in range(n)]

    def together(rounds):
      return jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)

    return [
      jax.jit(parallel.on_rows(fn, self.mesh), out_shardings=self.sharding)
      for fn in (together, apart)
    ]

  def place(self, states):
    """The sweep's state from a list of T states, of jax or NumPy arrays."""
    if self.mesh:
      return [parallel.by_member(x, self.formats(x)) for x in self._rounds(states)]
    if self.strategy == "loop":
      rounds = [jax.tree.map(jnp.asarray, state) for state in states]
    else:
      rounds = [_stacked(one) for one in self._groups(states)]
    return _placed(rounds, self.formats(rounds[0]))

  def _rounds(self, items):
    """T items as they are computed: m at once, stacked on the host."""
    if self.strategy == "loop":
      return items
    return [jax.tree.map(lambda *x: np.stack(x), *one) for one in self._groups(items)]

  def _groups(self, items):
    n = -(-len(items) // self.at_once)
    items = [*items, *items[-1:] * (-len(items) % self.at_once)]
    return [items[r::n] for r in range(n)]


def _mapped(fn):
  """`fn(state, own, *shared)` over a leading axis of its first two arguments."""

  def mapped(state, own, *shared):
    return jax.vmap(lambda s, o: fn(s, o, *shared))(state, own)

  return mapped


# Each a single program, where one for every shape would be a hundred compilations.
_picked = jax.jit(lambda tree, i: jax.tree.map(lambda x: x[i], tree))
# One for every shape: a single one of all arrays of 35 states takes XLA 20 s.
_stack = jax.jit(lambda *x: jnp.stack(x))


def _stacked(trees):
  return jax.tree.map(_stack, *trees)


def _placed(rounds, formats):
  return [jax.device_put(one, formats) for one in rounds] if lies_as_cudnn_reads() else rounds


@functools.partial(jax.jit, static_argnums=1)
def _joined(rounds, n):
  def join(*x):
    # A copy: the next step reuses the state's memory while a checkpoint is still being written.
    return jnp.copy(jnp.stack(x, 1).reshape(-1, *x[0].shape[1:])[:n])

  return jax.tree.map(join, *rounds)
