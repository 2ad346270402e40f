"""The state of one model, its compiled step, and the frozen network behind it."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from flax import nnx
from jax import numpy as jnp

# Steps after which averages hold about as much of the newest weights as of all before.
WARM = 10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """What training changes, as pure dicts; a sweep's state has a leading member axis T.

  Attributes:
    step: steps done, int32.
    params: trainable weights.
    batch_stats: running statistics of the norms.
    opt_state: the optimizer's.
    best_params: the weights of the best epoch so far.
    best_batch_stats: its running statistics.
    averages: moving averages of `params` and `batch_stats`, a dict; None where there are none.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  best_params: Any
  best_batch_stats: Any
  averages: Any = None

  @property
  def newest(self):
    """What the last step left: a dict of `params` and `batch_stats`."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def weights(self):
    """What is validated and kept, likewise: the averages where there are any, else the newest."""
    return self.newest if self.averages is None else self.averages


class Network:
  """A network as a pure function of its parameters.

  `nnx.State` objects in a transformed function are slow and lose norm updates under
  `value_and_grad`; pure dicts are neither.

  Attributes:
    params: initial weights, a pure dict.
    batch_stats: initial running statistics, a pure dict.
  """

  def __init__(self, model):
    self._graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    self.params, self.batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

  def __call__(self, params, batch_stats, image, *, train=False, key=None, **options):
    """Runs the network.

    Args:
      params: weights.
      batch_stats: running statistics.
      image: [B, H, W, C].
      train: whether to use batch statistics and dropout.
      key: the dropout key.
      **options: of the network's own.

    Returns:
      Logits [B, H, W, K] and the new running statistics.
    """
    model = self.module(params, batch_stats)
    logits = model(image, train=train, key=key, **options)
    return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

  def module(self, params, batch_stats):
    """The `nnx.Module` with these weights and running statistics."""
    return nnx.merge(self._graphdef, params, batch_stats)


def outline(build):
  """The `Network` of the model that a function builds, with shapes and types in place of weights.

  Nothing is computed: for weights that are about to be read.
  """
  return Network(nnx.eval_shape(build))


@functools.partial(jax.jit, static_argnames=("tx", "averaged"))
def create_state(params, batch_stats, tx, averaged=False):
  """A fresh `State`, perhaps with averages, whose arrays are its own: steps reuse their memory."""

  def copied(tree):
    return jax.tree.map(jnp.copy, tree)

  return State(
    step=jnp.zeros((), jnp.int32),
    params=copied(params),
    batch_stats=copied(batch_stats),
    opt_state=tx.init(params),
    best_params=copied(params),
    best_batch_stats=copied(batch_stats),
    averages=copied({"params": params, "batch_stats": batch_stats}) if averaged else None,
  )


def make_train_step(loss_fn, tx, averaging=0.0):
  """Makes the pure training step of one sweep member.

  Args:
    loss_fn: `(params, batch_stats, member, inputs, key) -> (loss, new batch_stats)`.
    tx: an optax transformation.
    averaging: the decay of the averages in a step, 0 where the state has none. Over the first steps
      it rises to that, or they would hold the initial weights for long.

  Returns:
    `step(state, member, inputs, key) -> (state, loss)`.
  """

  def step(state, member, inputs, key):
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads = gradient(state.params, state.batch_stats, member, inputs, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    if averaging:
      decay = jnp.minimum(averaging, state.step / (state.step + WARM))
      averages = optax.incremental_update(state.newest, state.averages, 1 - decay)
      state = dataclasses.replace(state, averages=averages)
    return state, loss

  return step


def keep_best(state, improved):
  """Takes the present weights, or averages, as the best where `improved` (a bool scalar)."""

  def choose(new, old):
    return jax.tree.map(lambda a, b: jnp.where(improved, a, b), new, old)

  return dataclasses.replace(
    state,
    best_params=choose(state.weights["params"], state.best_params),
    best_batch_stats=choose(state.weights["batch_stats"], state.best_batch_stats),
  )
