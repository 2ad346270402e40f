import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from lus_jax.models import layers, norms
from lus_jax.models.fpn import FPN
from lus_jax.models.mobilenet_v2 import MobileNetV2
from lus_jax.training.state import Network


@pytest.fixture
def on_gpu(monkeypatch):
  """Runs a function as a GPU would, by the operations that are chosen there."""

  def run(fn, *arguments):
    with monkeypatch.context() as patch:
      patch.setattr(jax, "default_backend", lambda: "gpu")
      # A function that was compiled before is not asked again.
      return jax.jit(lambda *a: fn(*a))(*arguments)

  return run


def value_and_gradients(fn, *arguments):
  y, vjp = jax.vjp(fn, *arguments)
  return y, *vjp(jax.random.normal(jax.random.key(9), y.shape, y.dtype))


def batch_norm(x, scale, bias, **options):
  norm = layers.BatchNorm(x.shape[-1])
  norm.scale[...], norm.bias[...] = scale, bias
  return norm(x, train=True, **options)


def group_norm(x, scale, bias, **options):
  norm = layers.GroupNorm(x.shape[-1], num_groups=3)
  norm.scale[...], norm.bias[...] = scale, bias
  return norm(x, **options)


@pytest.mark.parametrize(
  ("norm", "options"),
  [(norm, {"ceiling": c}) for norm in (batch_norm, group_norm) for c in (None, math.inf, 6)]
  + [(batch_norm, {"ceiling": math.inf, "pool": True})]
  + [(batch_norm, {"ceiling": c, "where": np.array([True, False, True])}) for c in (None, 6)],
  ids=lambda x: x.__name__ if callable(x) else str(x),
)
def test_values_and_gradients_are_those_of_the_plain_norm(key, on_gpu, norm, options):
  keys = jax.random.split(key, 3)
  x = 1 + 2 * jax.random.normal(keys[0], (3, 8, 6, 12))
  # Of both signs, and so large that both ends clamp.
  scale, bias = 3 * jax.random.normal(keys[1], (12,)), jax.random.normal(keys[2], (12,))

  def run(*arguments):
    return value_and_gradients(lambda *a: norm(*a, **options), *arguments)

  expected = jax.jit(run)(x, scale, bias)
  for a, b in zip(on_gpu(run, x, scale, bias), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5)
  if "pool" in options:  # rounded, other pixels are the largest
    return
  for a, b in zip(on_gpu(run, x.astype(jnp.bfloat16), scale, bias), expected, strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max())


def test_on_a_gpu_both_sums_are_one_reduction(monkeypatch, key):
  # Two long ones would read the image twice, and in one of more than five XLA asks for more shared
  # memory than a block of threads has.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  x, vectors = jax.random.normal(key, (2, 16, 16, 12)), jnp.ones(12)
  for norm in (batch_norm, group_norm):
    text = jax.jit(lambda *a, norm=norm: value_and_gradients(norm, *a)).lower(x, vectors, vectors)
    sums = [line for line in text.as_text().splitlines() if "stablehlo.reduce(" in line]
    # In two steps each, forward and backward; then groups of a few channels.
    assert sum(line.count(" init:") == 2 for line in sums) == 4
    assert max(line.count(" init:") for line in sums) == 2


@pytest.mark.parametrize("mean", [0, 30, 1000])
def test_the_variance_keeps_its_digits_far_from_0(key, mean):
  x = mean + jax.random.normal(key, (4, 16, 16, 3))
  x64 = np.asarray(x, np.float64)
  found, var = norms.moments(x, jnp.full((1, 1, 1, 3), 0.9 * mean), (0, 1, 2))
  np.testing.assert_allclose(found.ravel(), x64.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(var.ravel(), x64.var((0, 1, 2)), rtol=2e-3)


def outcome(network, clip):
  def loss(params, train):
    y, statistics = network(params, network.batch_stats, clip, train=train, key=jax.random.key(3))
    return jnp.sum(jnp.square(y)), statistics

  def run(params):
    return jax.value_and_grad(loss, has_aux=True)(params, True), loss(params, False)[0]

  return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn", "video"])
def test_on_a_gpu_networks_give_the_same_by_other_operations(key, on_gpu, name):
  if name == "fpn":
    network = Network(FPN("resnet18", classes=3, width=0.125, rngs=nnx.Rngs(0)))
    image = jax.random.uniform(key, (2, 96, 64, 1))
  else:
    network = Network(MobileNetV2(in_channels=2, outputs=2, width=0.125, rngs=nnx.Rngs(0)))
    image = jax.random.uniform(key, (2, 3, 45, 40, 2))
  run = outcome(network, image)
  (loss, statistics), gradients = jax.jit(run)(network.params)[0]
  (other_loss, others), other_gradients = on_gpu(run, network.params)[0]
  np.testing.assert_allclose(loss, other_loss, rtol=1e-4)
  np.testing.assert_allclose(
    *(r(run, network.params)[1] for r in (lambda f, p: jax.jit(f)(p), on_gpu)), rtol=1e-4
  )
  for a, b in zip(jax.tree.leaves(statistics), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-6)
  # Of what a norm takes away again the gradient is 0 up to rounding.
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
    scale = float(jnp.abs(a).max())
    np.testing.assert_allclose(a, b, atol=1e-3 * scale + 1e-6 * largest)


def test_sums_are_in_steps_whatever_the_batch(key):
  # 14 clips of 8 frames of 56 x 56: a power of two divides that many pixels, but few of it those of
  # the batch before.
  x = jax.ShapeDtypeStruct((14 * 8, 56, 56, 3), jnp.float32)
  text = str(jax.make_jaxpr(lambda x: norms.moments(x, jnp.zeros((1, 1, 1, 3)), (0, 1, 2)))(x))
  steps = [int(n) for n in re.findall(r"f32\[1,\d+,(\d+),3\] = reshape", text)]
  assert [n for n in steps if n > 1] == [64, 64]
  images = jax.random.normal(key, (3, 7, 11, 2))
  mean, var = norms.moments(images, jnp.zeros((1, 1, 1, 2)), (0, 1, 2))
  np.testing.assert_allclose(mean.ravel(), np.mean(images, (0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(var.ravel(), np.var(images, (0, 1, 2)), rtol=1e-5)


def test_group_norm_keeps_its_digits_far_from_0(key, on_gpu):
  x = 1000 + jax.random.normal(key, (2, 16, 16, 12))
  x64 = np.asarray(x, np.float64).reshape(2, 256, 3, 4)
  centred = x64 - x64.mean((1, 3), keepdims=True)
  expected = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True))).reshape(x.shape)
  found = on_gpu(lambda x: group_norm(x, jnp.ones(12), jnp.zeros(12)), x)
  np.testing.assert_allclose(found, expected, atol=0.05)
