import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import numpy as jnp

from lus_jax import losses
from lus_jax.errors import UserError
from lus_jax.models import layers
from lus_jax.models.fpn import FPN
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy

THRESHOLDS = (1.0, 0.6, 0.0)


class Small(nnx.Module):
  """All that a sweep can get wrong in one small network: weights, running statistics, dropout."""

  def __init__(self, *, rngs):
    self.conv = layers.conv(1, 8, 3, dtype=jnp.float32, rngs=rngs)
    self.norm = layers.BatchNorm(8)
    self.dropout = nnx.Dropout(0.5, broadcast_dims=(1, 2))
    self.head = layers.conv(8, 2, 1, dtype=jnp.float32, rngs=rngs)

  def __call__(self, image, *, train, key=None):
    x = jax.nn.relu(self.norm(self.conv(image), train=train))
    return self.head(self.dropout(x, deterministic=not train, rngs=nnx.Rngs(dropout=key)))


@functools.cache
def network(name="small"):
  if name == "small":
    return state_lib.Network(Small(rngs=nnx.Rngs(0)))
  return state_lib.Network(FPN("resnet18", classes=2, width=0.125, rngs=nnx.Rngs(0)))


def inputs(key, size=64):
  image, confidence = jax.random.split(key)
  return {
    "image": jax.random.uniform(image, (2, size, size, 1)),
    "confidence": jax.random.uniform(confidence, (2, size, size, 2)),
    "where": jnp.ones((2, size, size, 2), bool),
  }


def loss_fn(params, batch_stats, member, inputs, key, *, name):
  key = jax.random.fold_in(key, member["seed"])
  logits, batch_stats = network(name)(params, batch_stats, inputs["image"], train=True, key=key)
  loss = losses.training_loss(
    "weighted_cross_entropy",
    logits=logits,
    confidence=inputs["confidence"],
    threshold=member["threshold"],
    where=inputs["where"],
  )
  return loss, batch_stats


def train(thresholds, strategy, *, steps, tx, seeds=None, name="small"):
  seeds = seeds or [0] * len(thresholds)
  members = [
    {"threshold": np.float32(t), "seed": np.int32(s)}
    for t, s in zip(thresholds, seeds, strict=True)
  ]
  sweep = Sweep(members, strategy)
  state = [
    state_lib.create_state(network(name).params, network(name).batch_stats, tx) for _ in thresholds
  ]
  if strategy == "vmap":
    state = jax.tree.map(lambda *x: jnp.stack(x), *state)
  step = sweep.compile(
    state_lib.make_train_step(functools.partial(loss_fn, name=name), tx), updates_state=True
  )
  history = []
  for i in range(steps):
    key = jax.random.fold_in(jax.random.key(7), i)
    state, loss = step(state, sweep.members, inputs(key), key)
    history.append(sweep.to_host(loss))
  return sweep, state, np.asarray(history)


def test_with_loop_all_together_equal_each_alone_to_the_bit():
  tx = optax.adam(1e-3)
  _, together, losses_together = train(THRESHOLDS, "loop", steps=3, tx=tx)
  for i, threshold in enumerate(THRESHOLDS):
    _, alone, losses_alone = train((threshold,), "loop", steps=3, tx=tx)
    np.testing.assert_array_equal(losses_alone[:, 0], losses_together[:, i])
    jax.tree.map(np.testing.assert_array_equal, alone[0], together[i])


@pytest.mark.slow
def test_vmap_and_loop_agree_in_the_first_step():
  # Plain gradient descent with rate 1: the change of the weights is the gradient. Adam's first step
  # would turn rounding into whole learning rates.
  tx = optax.sgd(1.0)
  loop, looped, loop_losses = train(THRESHOLDS, "loop", steps=1, tx=tx, name="fpn")
  vmap, mapped, vmap_losses = train(THRESHOLDS, "vmap", steps=1, tx=tx, name="fpn")
  np.testing.assert_allclose(loop_losses, vmap_losses, rtol=1e-4)
  looped, mapped = loop.stack(looped), vmap.stack(mapped)
  for name in ("params", "batch_stats"):
    a, b = getattr(looped, name), getattr(mapped, name)
    start = getattr(network("fpn"), name)
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, start)), strict=True):
      scale = float(jnp.max(jnp.abs(x - z[None])))
      np.testing.assert_allclose(x, y, atol=1e-4 * scale + 1e-6)


def test_members_differ_in_their_threshold_alone():
  tx = optax.sgd(0.1)
  sweep, state, history = train((0.6, 0.6, 0.5), "loop", steps=2, tx=tx)
  assert len(sweep.members) == 3
  # The same threshold twice: the same weights, dropout included.
  jax.tree.map(np.testing.assert_array_equal, state[0], state[1])
  assert history[0, 0] != history[0, 2]
  _, _, seeded = train((0.6, 0.6), "loop", steps=1, tx=tx, seeds=[0, 1])
  assert seeded[0, 0] != seeded[0, 1]  # another seed drops other channels


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_stack_and_unstack_are_inverses(strategy):
  members = [{"threshold": np.float32(t)} for t in THRESHOLDS]
  sweep = Sweep(members, strategy)
  stacked = {"a": jnp.arange(6.0).reshape(3, 2)}
  state = sweep.unstack(stacked)
  np.testing.assert_array_equal(sweep.stack(state)["a"], stacked["a"])
  assert len(sweep.to_host(state)) == 3
  np.testing.assert_array_equal(sweep.to_host(state)[1]["a"], [2, 3])


def test_keep_best_takes_the_weights_of_the_members_that_improved():
  tx = optax.sgd(0.1)
  sweep, state, _ = train((0.6, 0.5), "loop", steps=1, tx=tx)
  keep = sweep.compile(state_lib.keep_best, updates_state=True)
  state = keep(state, [np.bool_(True), np.bool_(False)])
  same = [
    jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), s.best_params, s.params))
    for s in state
  ]
  assert same == [True, False]
  jax.tree.map(np.testing.assert_array_equal, state[1].best_params, network().params)


def test_auto_is_a_loop_on_the_cpu_and_unknown_names_are_refused():
  assert choose_strategy("auto") == "loop"
  with pytest.raises(UserError, match=r"config\.sweep\.strategy: 'pmap'"):
    choose_strategy("pmap")
