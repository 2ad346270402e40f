"""The sweep: how T models share one machine, one batch and one compilation.

A member is a pytree of scalars (its threshold, its seed, ...): what makes it differ from the
others. Functions of one member, `fn(state, member, *shared)`, run over all of them under one of
three strategies:

- `loop`: one compiled program, called member by member. The state is a list of T states.
- `vmap`: one program for all members, with batched weights. The state has a leading axis T.
- `sharded`: members lie over several devices (`lus_jax.parallel`), m at once, in rounds. The state
  is a list of rounds with a leading axis m; where T leaves places of the last round empty, the last
  member is computed there again.

With `loop`, seven members together equal seven alone to the bit.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils

from lus_jax import parallel
from lus_jax.errors import UserError

# What the benchmark showed fastest (lus_jax/benchmarks/RESULTS.md), and where nothing was measured,
# on GPUs, the one that needs least memory. A vmapped convolution becomes a
# grouped one, which is several times slower than a loop over members on CPU backends.
FASTEST = {"cpu": "loop"}
STRATEGIES = ("auto", "loop", "vmap", "sharded")


def choose_strategy(strategy):
  """Resolves 'auto' for the present backend; refuses unknown names (`UserError`)."""
  if strategy not in STRATEGIES:
    raise UserError(
      f"config.sweep.strategy: '{strategy}' is not known; choose one of {', '.join(STRATEGIES)}."
    )
  several = jax.process_count() > 1
  if strategy == "auto":
    # CPU devices of one process are the same cores.
    if several or (jax.device_count() > 1 and jax.default_backend() != "cpu"):
      return "sharded"
    return FASTEST.get(jax.default_backend(), "loop")
  if several and strategy != "sharded":
    raise UserError(
      f"config.sweep.strategy: '{strategy}' is for one process, and there are "
      f"{jax.process_count()}; use sharded."
    )
  return strategy


@dataclasses.dataclass(frozen=True)
class Sweep:
  """T members under one strategy.

  Attributes:
    members: a list of T pytrees of NumPy scalars, alike in structure.
    strategy: 'loop', 'vmap' or 'sharded'.
  """

  members: list[Any]
  strategy: str

  @functools.cached_property
  def mesh(self):
    """What batches are laid over under `sharded` (`lus_jax.parallel`); None otherwise."""
    return parallel.make_mesh(len(self.members)) if self.strategy == "sharded" else None

  def compile(self, fn, *, updates_state=False):
    """Compiles `fn(state, own, *shared)`, a pure function of one member, for all of them.

    Args:
      fn: `own` is what belongs to that member alone, the rest is shared.
      updates_state: True if its (first) result is the new state; the old one's memory is reused.

    Returns:
      A function of the sweep's state, a list of T `own` (often `members`), and the shared
      arguments. Results are lists of T under `loop`, have a leading axis T under `vmap` and
      are lists of rounds under `sharded`; `to_host` makes them alike. Its `lower`, of the same
      arguments, is that of `jax.jit`: of the first member's or round's call under those two.
    """
    donate = (0,) if updates_state else ()
    if self.strategy == "vmap":

      def mapped(state, own, *shared):
        return jax.vmap(lambda s, o: fn(s, o, *shared))(state, own)

      compiled = jax.jit(mapped, donate_argnums=donate)

      def stacked(own):
        return jax.tree.map(lambda *x: np.stack(x), *own)

      def together(state, own, *shared):
        return compiled(state, stacked(own), *shared)

      together.lower = lambda state, own, *shared: compiled.lower(state, stacked(own), *shared)
      return together
    if self.strategy == "sharded":
      compiled = jax.jit(
        parallel.map_members(fn, self.mesh),
        donate_argnums=donate,
        out_shardings=parallel.member_sharding(self.mesh),
      )
    else:
      compiled = jax.jit(fn, donate_argnums=donate)

    def looped(states, own, *shared):
      results = [compiled(s, o, *shared) for s, o in zip(states, self._rounds(own), strict=True)]
      if isinstance(results[0], tuple):
        return tuple(list(x) for x in zip(*results, strict=True))
      return results

    looped.lower = lambda states, own, *shared: compiled.lower(
      states[0], self._rounds(own)[0], *shared
    )
    return looped

  def take(self, state, numbers, members=None):
    """Some of the members, in any order and as often as wanted: a `Sweep` and its state.

    Args:
      state: of this sweep.
      numbers: places in it.
      members: what the new sweep's members are; the same by default.
    """
    sweep = Sweep(members or [self.members[i] for i in numbers], self.strategy)
    if list(numbers) == list(range(len(self.members))):
      return sweep, state
    if self.strategy == "loop":
      return sweep, [state[i] for i in numbers]
    held = self.to_host(state)
    return sweep, sweep.place([held[i] for i in numbers])

  def map(self, fn, state):
    """Picks or renames parts of the state, the same of every member."""
    return fn(state) if self.strategy == "vmap" else [fn(one) for one in state]

  def to_host(self, results):
    """Brings results to the host, of every process, as a list of T pytrees of NumPy arrays."""
    if self.strategy == "sharded":
      gathered = [multihost_utils.process_allgather(x, tiled=True) for x in results]
      m = self.mesh.shape[parallel.MEMBER]
      each = [jax.tree.map(lambda x, i=i: x[i], x) for x in gathered for i in range(m)]
      return each[: len(self.members)]
    results = jax.device_get(results)
    if self.strategy == "loop":
      return results
    return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(self.members))]

  def stack(self, state):
    """The state with a leading axis T, whatever the strategy: what checkpoints hold."""
    if self.strategy == "vmap":
      # A copy: the next step reuses the state's memory while a checkpoint is still being written.
      return _copied(state)
    if self.strategy == "sharded":
      return jax.tree.map(lambda *x: np.stack(x), *self.to_host(state))
    return _stacked(state)

  def unstack(self, state):
    """The inverse of `stack`; the list's states share no memory."""
    if self.strategy == "vmap":
      return jax.tree.map(jnp.asarray, state)
    numbers = range(len(self.members))
    if all(isinstance(x, jax.Array) for x in jax.tree.leaves(state)):
      return self.place([_picked(state, i) for i in numbers])
    return self.place([jax.tree.map(lambda x, i=i: x[i], state) for i in numbers])

  def place(self, states):
    """The sweep's state from a list of T states, of jax or NumPy arrays."""
    if self.strategy == "vmap":
      return _stacked(states)
    if self.strategy == "sharded":
      return [parallel.by_member(self.mesh, x) for x in self._rounds(states)]
    return [jax.tree.map(jnp.asarray, state) for state in states]

  def _rounds(self, items):
    """T items as they are computed; under `sharded` m at once, stacked on the host."""
    if self.strategy != "sharded":
      return items
    m = self.mesh.shape[parallel.MEMBER]
    items = [*items, *items[-1:] * (-len(items) % m)]
    return [
      jax.tree.map(lambda *x: np.stack(x), *items[i : i + m]) for i in range(0, len(items), m)
    ]


# Each a single program, where one for every shape would be a hundred compilations.
_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
_picked = jax.jit(lambda tree, i: jax.tree.map(lambda x: x[i], tree))
# One for every shape: a single one of all arrays of 35 states takes XLA 20 s.
_stack = jax.jit(lambda *x: jnp.stack(x))


def _stacked(trees):
  return jax.tree.map(_stack, *trees)
