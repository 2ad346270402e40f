import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import numpy as jnp

from lus_jax import losses, parallel
from lus_jax.errors import UserError
from lus_jax.models.fpn import FPN
from lus_jax.training import state as state_lib
from lus_jax.training import sweep as sweep_lib
from lus_jax.training.sweep import Sweep, choose_strategy
from tests import toys

THRESHOLDS = (1.0, 0.6, 0.0)


@functools.cache
def network(name="small"):
  if name == "small":
    return state_lib.Network(toys.ToyDropout(rngs=nnx.Rngs(0)))
  return state_lib.Network(FPN("resnet18", classes=2, width=0.125, rngs=nnx.Rngs(0)))


def inputs(key, size=64, batch=2):
  image, confidence = jax.random.split(key)
  return {
    "image": jax.random.uniform(image, (batch, size, size, 1)),
    "confidence": jax.random.uniform(confidence, (batch, size, size, 2)),
    "where": jnp.ones((batch, size, size, 2), bool),
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


def train(thresholds, strategy, *, steps, tx, seeds=None, name="small", batch=2):
  seeds = seeds or [0] * len(thresholds)
  members = [
    {"threshold": np.float32(t), "seed": np.int32(s)}
    for t, s in zip(thresholds, seeds, strict=True)
  ]
  sweep = Sweep(members, strategy)
  state = sweep.place(
    [
      state_lib.create_state(network(name).params, network(name).batch_stats, tx)
      for _ in thresholds
    ]
  )
  step = sweep.compile(
    state_lib.make_train_step(functools.partial(loss_fn, name=name), tx), updates_state=True
  )
  history = []
  for i in range(steps):
    key = jax.random.fold_in(jax.random.key(7), i)
    # Of smaller images the deepest maps have so few pixels that rounding, normalized, flips a ReLU.
    raw = inputs(key, size=128 if name == "fpn" else 64, batch=batch)
    if sweep.mesh:
      raw = parallel.split(sweep.mesh, jax.device_get(raw), batch)
    state, loss = step(state, sweep.members, raw, key)
    history.append(sweep.to_host(loss))
  return sweep, state, np.asarray(history)


def test_with_loop_all_together_equal_each_alone_to_the_bit():
  tx = optax.adam(1e-3)
  _, together, losses_together = train(THRESHOLDS, "loop", steps=3, tx=tx)
  for i, threshold in enumerate(THRESHOLDS):
    _, alone, losses_alone = train((threshold,), "loop", steps=3, tx=tx)
    np.testing.assert_array_equal(losses_alone[:, 0], losses_together[:, i])
    jax.tree.map(np.testing.assert_array_equal, alone[0], together[i])


def same_first_step(thresholds, strategy, name, batch=2):
  # Plain gradient descent with rate 1: the change of the weights is the gradient. Adam's first step
  # would turn rounding into whole learning rates.
  tx = optax.sgd(1.0)
  loop, looped, loop_losses = train(thresholds, "loop", steps=1, tx=tx, name=name, batch=batch)
  other, found, other_losses = train(thresholds, strategy, steps=1, tx=tx, name=name, batch=batch)
  np.testing.assert_allclose(loop_losses, other_losses, rtol=1e-4)
  n = len(thresholds)
  looped, found = loop.stack(looped), jax.tree.map(lambda x: x[:n], other.stack(found))
  for part in ("params", "batch_stats"):
    a, b = getattr(looped, part), getattr(found, part)
    start = getattr(network(name), part)
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, start)), strict=True):
      scale = float(jnp.max(jnp.abs(x - z[None])))
      np.testing.assert_allclose(x, y, atol=1e-4 * scale + 1e-6)
  return other


@pytest.mark.slow
def test_vmap_and_loop_agree_in_the_first_step():
  same_first_step(THRESHOLDS, "vmap", "fpn")


@pytest.mark.parametrize("name", ["small", pytest.param("fpn", marks=pytest.mark.slow)])
def test_two_devices_that_share_a_batch_give_the_numbers_of_one(name):
  sweep = same_first_step((0.6,), "sharded", name)
  assert sweep.mesh.shape == {"member": 1, "data": 2}


EIGHT = """
import jax
from tests.training import test_sweep

assert len(jax.devices()) == 8
for thresholds, strategy, layout in (
  (test_sweep.THRESHOLDS, "sharded", (4, 2)),
  ((0.6, 0.5, 0.4, 0.3, 0.0), "sharded", (8, 1)),
  ((1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0), "1x8", (1, 8)),  # seven that leave none idle
  (test_sweep.THRESHOLDS, "2x4", (2, 4)),
):
  sweep = test_sweep.same_first_step(thresholds, strategy, "small", batch=8)
  assert tuple(sweep.mesh.shape.values()) == layout
"""


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one_in_every_layout():
  # Both axes at once, and places without a member.
  subprocess.run(
    [sys.executable, "-c", EIGHT],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
    check=True,
  )


def test_members_on_two_devices_have_the_numbers_of_a_loop():
  # Three members are two rounds, the second one half empty. No sum crosses devices, so that several
  # steps stay close.
  tx = optax.adam(1e-3)
  _, looped, loop_losses = train(THRESHOLDS, "loop", steps=3, tx=tx)
  sweep, state, sharded_losses = train(THRESHOLDS, "sharded", steps=3, tx=tx)
  assert sweep.mesh.shape == {"member": 2, "data": 1}
  np.testing.assert_allclose(sharded_losses, loop_losses, rtol=1e-6)
  for a, b in zip(sweep.to_host(state), looped, strict=True):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_no_device_gives_its_members_away_to_a_checkpoint(monkeypatch):
  monkeypatch.setattr(sweep_lib, "lies_as_cudnn_reads", lambda: True)
  sweep = Sweep([{"by": np.float32(i)} for i in range(3)], "sharded")
  kernel = np.arange(54.0, dtype=np.float32).reshape(3, 3, 2, 3)
  state = sweep.place([{"kernel": kernel + i} for i in range(3)])
  together, apart = sweep._across_rounds
  stacked = together(state)
  for program, argument in ((together, state), (apart, stacked)):
    text = program.lower(argument).compile().as_text()
    assert not any(
      f"{name}(" in text for name in ("all-gather", "all-to-all", "collective-permute")
    )
  # Row by row, whatever order they are computed in: so all checkpoints are alike.
  for shard, mine in zip(stacked["kernel"].addressable_shards, ([0, 1], [2, 2]), strict=True):
    np.testing.assert_array_equal(shard.data, kernel[None] + np.reshape(mine, (2, 1, 1, 1, 1)))
  assert stacked["kernel"].format.layout.major_to_minor == (0, 1, 2, 3, 4)
  for one in sweep.unstack(stacked):
    assert one["kernel"].format.layout.major_to_minor == (0, 4, 1, 2, 3)


@pytest.mark.parametrize("strategy", ["loop", "vmap", "grouped", "sharded"])
def test_a_member_that_is_not_finite_is_found(strategy):
  sweep = Sweep([{"by": np.float32(i)} for i in range(3)], strategy, group=2)
  states = [{"a": np.ones((2, 2), np.float32), "b": np.float32(i)} for i in range(3)]
  assert sweep.finite(sweep.place(states)).tolist() == [True, True, True]
  states[1]["b"] = np.float32(np.nan)
  assert sweep.finite(sweep.place(states)).tolist() == [True, False, True]
  states[2]["a"] = np.array([[1, 2], [3, -np.inf]], np.float32)
  assert sweep.finite(sweep.place(states)).tolist() == [True, False, False]


def test_members_differ_in_their_threshold_alone():
  tx = optax.sgd(0.1)
  sweep, state, history = train((0.6, 0.6, 0.5), "loop", steps=2, tx=tx)
  assert len(sweep.members) == 3
  # The same threshold twice: the same weights, dropout included.
  jax.tree.map(np.testing.assert_array_equal, state[0], state[1])
  assert history[0, 0] != history[0, 2]
  _, _, seeded = train((0.6, 0.6), "loop", steps=1, tx=tx, seeds=[0, 1])
  assert seeded[0, 0] != seeded[0, 1]  # another seed drops other channels


@pytest.mark.parametrize("strategy", ["loop", "vmap", "grouped", "sharded"])
def test_stack_and_unstack_are_inverses(strategy):
  members = [{"threshold": np.float32(t)} for t in THRESHOLDS]
  sweep = Sweep(members, strategy, group=2)
  stacked = {"a": jnp.arange(6.0).reshape(3, 2)}
  state = sweep.unstack(stacked)
  again = sweep.stack(state)
  # Under `sharded` each device keeps its own, so that the last of four places is the last member's.
  assert len(again["a"]) == (4 if strategy == "sharded" else 3)
  np.testing.assert_array_equal(again["a"][:3], stacked["a"])
  np.testing.assert_array_equal(again["a"][-1], stacked["a"][-1])
  np.testing.assert_array_equal(sweep.to_host(sweep.unstack(again))[1]["a"], [2, 3])
  assert len(sweep.to_host(state)) == 3
  np.testing.assert_array_equal(sweep.to_host(state)[1]["a"], [2, 3])
  placed = sweep.place([{"a": np.arange(2.0) + 2 * i} for i in range(3)])
  np.testing.assert_array_equal(sweep.stack(placed)["a"][:3], stacked["a"])
  picked = sweep.to_host(sweep.map(lambda one: one["a"], state))
  np.testing.assert_array_equal(picked, stacked["a"])


@pytest.mark.parametrize("strategy", ["loop", "sharded"])
def test_keep_best_takes_the_weights_of_the_members_that_improved(strategy):
  tx = optax.sgd(0.1)
  sweep, state, _ = train((0.6, 0.5), strategy, steps=1, tx=tx)
  keep = sweep.compile(state_lib.keep_best, updates_state=True)
  state = sweep.to_host(keep(state, [np.bool_(True), np.bool_(False)]))
  same = [
    jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(a == b)), s.best_params, s.params))
    for s in state
  ]
  assert same == [True, False]
  jax.tree.map(np.testing.assert_array_equal, state[1].best_params, network().params)


def test_auto_is_a_loop_on_the_cpu_and_unknown_names_are_refused():
  assert choose_strategy("auto") == "loop"
  with pytest.raises(UserError, match=r"config\.sweep\.strategy: 'pmap'"):
    choose_strategy("pmap")


def test_a_layout_takes_all_devices_there_are():
  assert choose_strategy("1x2") == "1x2" and choose_strategy("2x1", video=True) == "2x1"
  members = [{"threshold": np.float32(t)} for t in THRESHOLDS]
  for layout, at_once in (("1x2", 1), ("2x1", 2)):
    sweep = Sweep(members, layout)
    assert sweep.at_once == at_once and sweep.mesh.shape["data"] == 2 // at_once
  with pytest.raises(UserError, match="strategy: 4x2 takes 8 devices, and there are 2"):
    choose_strategy("4x2")
  for wrong in ("0x2", "2x", "x2", "2x1x1", "-1x-2"):
    with pytest.raises(UserError, match="is not known; choose one of"):
      choose_strategy(wrong)


def test_auto_is_sharded_on_several_gpus_and_in_several_processes(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert choose_strategy("auto") == "sharded"
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert choose_strategy("auto") != "sharded"
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert choose_strategy("auto") == "sharded"
  with pytest.raises(UserError, match=r"strategy: 'loop' is for one process, and there are 2"):
    choose_strategy("loop")


@pytest.mark.parametrize("strategy", ["loop", "vmap", "grouped", "sharded"])
def test_some_members_are_taken_in_any_order_and_twice(strategy):
  sweep = Sweep([{"threshold": np.float32(t)} for t in THRESHOLDS], strategy, group=2)
  state = sweep.place([{"a": np.arange(2.0) + 10 * i} for i in range(3)])

  def tell(state, own, shared):
    return state["a"] + own["threshold"] + shared

  for numbers in ([2, 0], [1, 1, 0, 2, 2], [1], [0, 1, 2]):
    part, held = sweep.take(state, numbers)
    assert part.strategy == strategy
    found = part.to_host(part.compile(tell)(held, part.members, np.float32(100)))
    expected = [np.arange(2) + 10 * i + np.float32(THRESHOLDS[i]) + 100 for i in numbers]
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-6)
  # Other members may stand in front of the same weights.
  own = [{"threshold": np.float32(t), "level": np.int32(t)} for t in (5, 6, 7, 8)]
  part, held = sweep.take(state, [2, 2, 0, 1], own)
  assert part.members == own
  found = part.to_host(part.compile(tell)(held, part.members, np.float32(0)))
  assert [x.tolist() for x in found] == [[25, 26], [26, 27], [7, 8], [18, 19]]
  same, held = sweep.take(state, [0, 1, 2], own[:3])
  assert held is state and same.members == own[:3]


@pytest.mark.parametrize("strategy", ["loop", "vmap", "grouped", "sharded"])
def test_on_a_gpu_kernels_lie_as_cudnn_reads_them_and_stay_so(monkeypatch, strategy):
  monkeypatch.setattr(sweep_lib, "lies_as_cudnn_reads", lambda: True)
  sweep = Sweep([{"by": np.float32(i)} for i in range(3)], strategy, group=2)
  kernel, pointwise = np.arange(54.0).reshape(3, 3, 2, 3), np.ones((1, 1, 2, 3))
  state = sweep.place([{"kernel": kernel + i, "pointwise": pointwise, "b": i} for i in range(3)])

  def step(state, own, more):
    return jax.tree.map(lambda x: x + own["by"] + more, state), own["by"]

  step = sweep.compile(step, updates_state=True)
  # Each round's arrays are used up, so that their memory is used again.
  before = state
  for _ in range(2):
    state, result = step(state, sweep.members, np.float32(1))
  assert before[0]["kernel"].is_deleted()
  lead = (0,) * (strategy != "loop")
  for one in state:
    order = tuple(n + len(lead) for n in (3, 0, 1, 2))
    assert one["kernel"].format.layout.major_to_minor == (*lead, *order)
    plain = tuple(range(4 + len(lead)))
    assert one["pointwise"].format.layout.major_to_minor == plain
  for i, one in enumerate(sweep.to_host(state)):
    np.testing.assert_array_equal(one["kernel"], kernel + i + 2 * (i + 1))
  np.testing.assert_array_equal(sweep.stack(state)["kernel"][2], kernel + 2 + 6)
  assert sweep.to_host(result) == [0, 1, 2]
  # A function of the whole state that returns it alone.
  kept = sweep.compile(lambda state, own: jax.tree.map(lambda x: x, state), updates_state=True)
  assert kept(state, sweep.members)[0]["kernel"].format.layout.major_to_minor[-1] != plain[-1]


def test_groups_are_alike_in_size():
  members = [{"by": np.float32(i)} for i in range(10)]
  assert Sweep(members, "grouped", group=9).at_once == 5
  assert Sweep(members[:9], "grouped", group=9).at_once == 9
  assert Sweep(members, "grouped", group=4).at_once == 4  # 12 places, 2 of them empty
  assert Sweep(members, "vmap").at_once == 10 and Sweep(members, "loop").at_once == 0


def test_auto_maps_groups_of_video_networks_on_a_gpu(monkeypatch):
  assert choose_strategy("auto", video=True) == "loop"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert choose_strategy("auto", video=True) == "grouped"
  assert choose_strategy("auto") == "loop"


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_states_are_made_and_stacked_by_one_program_each(strategy):
  compiled = []

  def heard(event, seconds, **_):
    compiled.extend([event] if event.endswith("backend_compile_duration") else [])

  # Of shapes that no other test has compiled.
  params = {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(7), "deep": {"scale": jnp.ones((2, 11))}}
  stats, tx = {"mean": jnp.zeros((13,))}, optax.adam(1e-3)
  sweep = Sweep([{"threshold": np.float32(t)} for t in THRESHOLDS], strategy)
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    states = [state_lib.create_state(params, stats, tx) for _ in THRESHOLDS]
    state = sweep.place(states)
    apart = sweep.unstack(sweep.stack(state))
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  # One stacks arrays of each shape.
  assert len(compiled) <= 3 + len({x.shape for x in jax.tree.leaves(states[0])})
  for one, other in zip(sweep.to_host(state), sweep.to_host(apart), strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  # A step reuses the memory of every array.
  held = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, stats, states))]
  assert len(set(held)) == len(held)
