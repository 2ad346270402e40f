"""The sweep: how T models share one machine, one batch and one compilation.

A member is a pytree of scalars (its threshold, its seed, ...): what makes it differ from the
others. Functions of one member, `fn(state, member, *shared)`, run over all of them under one of
two strategies:

- `loop`: one compiled program, called member by member. The state is a list of T states.
- `vmap`: one program for all members, with batched weights. The state has a leading axis T.

With `loop`, seven members together equal seven alone to the bit.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax.errors import UserError

# What the benchmark showed fastest (lus_jax/benchmarks/RESULTS.md). A vmapped convolution becomes a
# grouped one, which is several times slower than a loop over members on CPU backends.
FASTEST = {"cpu": "loop"}
STRATEGIES = ("auto", "loop", "vmap")


def choose_strategy(strategy):
  """Resolves 'auto' for the present backend; refuses unknown names (`UserError`)."""
  if strategy not in STRATEGIES:
    raise UserError(
      f"config.sweep.strategy: '{strategy}' is not known; choose one of {', '.join(STRATEGIES)}."
    )
  return FASTEST.get(jax.default_backend(), "loop") if strategy == "auto" else strategy


@dataclasses.dataclass(frozen=True)
class Sweep:
  """T members under one strategy.

  Attributes:
    members: a list of T pytrees of NumPy scalars, alike in structure.
    strategy: 'loop' or 'vmap'.
  """

  members: list[Any]
  strategy: str

  def compile(self, fn, *, updates_state=False):
    """Compiles `fn(state, own, *shared)`, a pure function of one member, for all of them.

    Args:
      fn: `own` is what belongs to that member alone, the rest is shared.
      updates_state: True if its (first) result is the new state; the old one's memory is reused.

    Returns:
      A function of the sweep's state, a list of T `own` (often `members`), and the shared
      arguments. Results are lists of T under `loop` and have a leading axis T under `vmap`;
      `to_host` makes the two alike.
    """
    donate = (0,) if updates_state else ()
    if self.strategy == "vmap":

      def mapped(state, own, *shared):
        return jax.vmap(lambda s, o: fn(s, o, *shared))(state, own)

      compiled = jax.jit(mapped, donate_argnums=donate)
      return lambda state, own, *shared: compiled(
        state, jax.tree.map(lambda *x: np.stack(x), *own), *shared
      )
    compiled = jax.jit(fn, donate_argnums=donate)

    def looped(states, own, *shared):
      results = [compiled(s, o, *shared) for s, o in zip(states, own, strict=True)]
      if isinstance(results[0], tuple):
        return tuple(list(x) for x in zip(*results, strict=True))
      return results

    return looped

  def map(self, fn, state):
    """Picks or renames parts of the state, the same of every member."""
    return fn(state) if self.strategy == "vmap" else [fn(one) for one in state]

  def to_host(self, results):
    """Brings results to the host as a list of T pytrees of NumPy arrays."""
    results = jax.device_get(results)
    if self.strategy == "loop":
      return results
    return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(self.members))]

  def stack(self, state):
    """The state with a leading axis T, whatever the strategy: what checkpoints hold."""
    if self.strategy == "vmap":
      # A copy: the next step reuses the state's memory while a checkpoint is still being written.
      return jax.tree.map(jnp.copy, state)
    return jax.tree.map(lambda *x: jnp.stack(x), *state)

  def unstack(self, state):
    """The inverse of `stack`; the list's states share no memory."""
    if self.strategy == "vmap":
      return state
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(self.members))]
