import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from lus_jax.models import layers


def test_batch_norm_follows_a_float64_reference_and_keeps_the_unbiased_variance(key):
  x = 3 + 2 * jax.random.normal(key, (2, 3, 2, 5))
  norm = layers.BatchNorm(5)
  norm.scale[...] = jnp.arange(1.0, 6.0)
  norm.bias[...] = -jnp.arange(5.0)
  y = norm(x, train=True)

  x64 = np.asarray(x, np.float64)
  mean, var = x64.mean((0, 1, 2)), x64.var((0, 1, 2))
  expected = (x64 - mean) / np.sqrt(var + 1e-5) * np.arange(1, 6) - np.arange(5)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(norm.mean[...], 0.1 * mean, atol=1e-6)
  np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x64.var((0, 1, 2), ddof=1), atol=1e-6)

  running_mean, running_var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
  y = norm(x, train=False)
  expected = (x64 - running_mean) / np.sqrt(running_var + 1e-5) * np.arange(1, 6) - np.arange(5)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_array_equal(norm.mean[...], running_mean)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_does_not_count_is_normalised_by_the_statistics_of_the_others(key, dtype):
  x = (3 + 2 * jax.random.normal(key, (4, 3, 2, 5))).astype(dtype)
  where = jnp.array([True, False, True, False])
  some, few, stood_in = (layers.BatchNorm(5, dtype=dtype) for _ in range(3))
  y = some(x, train=True, where=where)
  atol = 1e-5 if dtype == jnp.float32 else 0.05
  found = np.asarray(y[where], np.float32)
  np.testing.assert_allclose(found, np.asarray(few(x[where], train=True), np.float32), atol=atol)
  # What it is matters to nobody.
  other = stood_in(x.at[1].set(100).at[3].set(x[0]), train=True, where=where)
  np.testing.assert_array_equal(found, np.asarray(other[where], np.float32))
  for statistic in ("mean", "var"):
    expected = getattr(few, statistic)[...]
    np.testing.assert_allclose(getattr(some, statistic)[...], expected, rtol=1e-6)
    np.testing.assert_array_equal(getattr(stood_in, statistic)[...], getattr(some, statistic)[...])


def test_batch_norm_has_pytorchs_epsilon(key):
  # Of a variance about as large as it: any other epsilon gives other values.
  x = 3e-3 * jax.random.normal(key, (2, 5, 5, 1))
  x64 = np.asarray(x, np.float64)
  expected = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-5)
  assert np.abs(expected).max() < 2.5
  np.testing.assert_allclose(layers.BatchNorm(1)(x, train=True), expected, atol=1e-4)


def test_bfloat16_keeps_the_mean_of_what_it_normalises(key):
  x = 20 + jax.random.normal(key, (4, 32, 32, 3))
  norm = layers.BatchNorm(3, dtype=jnp.bfloat16)
  y = norm(x.astype(jnp.bfloat16), train=True)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(jnp.mean(y.astype(jnp.float32), axis=(0, 1, 2)), 0, atol=0.005)


def test_group_norm_follows_flax(key):
  x = 3 + 2 * jax.random.normal(key, (2, 3, 4, 12))
  ours = layers.GroupNorm(12, num_groups=3)
  theirs = nnx.GroupNorm(12, num_groups=3, epsilon=1e-5, rngs=nnx.Rngs(0))
  for norm in (ours, theirs):
    norm.scale[...] = jnp.arange(1.0, 13.0)
    norm.bias[...] = -jnp.arange(12.0)
  np.testing.assert_allclose(ours(x), theirs(x), atol=1e-4)
  dy = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
  by_ours, by_theirs = (jax.vjp(norm, x)[1](dy)[0] for norm in (ours, theirs))
  np.testing.assert_allclose(by_ours, by_theirs, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_bilinear_upsampling_keeps_corners_and_ramps(key, monkeypatch, backend):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x = jax.random.normal(key, (2, 3, 5, 4))
  y = layers.upsample_bilinear(x, 4)
  assert y.shape == (2, 12, 20, 4)
  for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
    np.testing.assert_allclose(y[:, *corner], x[:, *corner], rtol=1e-6)
  rows = np.stack(
    [
      [np.interp(np.linspace(0, 2, 12), np.arange(3), x[b, :, 0, c]) for c in range(4)]
      for b in range(2)
    ]
  )
  np.testing.assert_allclose(y[:, :, 0], rows.transpose(0, 2, 1), atol=1e-6)
  ramp = jnp.arange(5.0).reshape(1, 1, 5, 1)
  np.testing.assert_allclose(
    layers.upsample_bilinear(ramp, 2)[0, 0, :, 0], np.linspace(0, 4, 10), atol=1e-6
  )


@pytest.mark.parametrize(
  ("shape", "factor"),
  [((2, 5, 7, 3), 4), ((1, 1, 2, 6), 2)],
)
def test_on_a_gpu_upsampling_is_the_same_without_products(key, monkeypatch, shape, factor):
  # XLA for GPUs cannot compile the products for 3, 5, 6 or 7 classes.
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], shape)
  dy = jax.random.normal(keys[1], (shape[0], shape[1] * factor, shape[2] * factor, shape[3]))

  def run(x, dy):
    y, vjp = jax.vjp(lambda x: layers.upsample_bilinear(x, factor), x)
    return y, *vjp(dy)

  on_cpu = run(x, dy)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  text = str(jax.make_jaxpr(run)(x, dy))
  assert "dot_general" not in text and "scatter" not in text
  for a, b in zip(run(x, dy), on_cpu, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  for a, b in zip(run(x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)), on_cpu, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("size", [(5, 4), (12, 7), (20, 30)], ids=str)
def test_on_a_gpu_resizing_is_the_same_without_products(key, monkeypatch, size):
  x = jax.random.uniform(key, (2, 12, 10, 3))
  expected = layers.resize(x, *size)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert "dot_general" not in str(jax.make_jaxpr(lambda x: layers.resize(x, *size))(x))
  np.testing.assert_allclose(layers.resize(x, *size), expected, atol=1e-6)


def test_nearest_upsampling_repeats():
  x = jnp.arange(6.0).reshape(1, 2, 3, 1)
  expected = np.repeat(np.repeat(np.asarray(x), 2, 1), 2, 2)
  np.testing.assert_array_equal(layers.upsample_nearest(x, 2), expected)


def test_a_strided_convolution_pads_as_pytorch():
  # PyTorch's padding=1 puts the first window at -1; 'SAME' would put it at 0 on even sizes.
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1)
  convolution = layers.Conv(1, 1, 3, stride=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(
    convolution(x)[0, 0, 0, 0], convolution.kernel[...][1, 1, 0, 0], rtol=1e-6
  )


def test_scaled_channels_are_multiples_of_eight():
  assert [layers.scale_channels(64, width) for width in (1, 0.5, 0.25, 0.01)] == [64, 32, 16, 8]
