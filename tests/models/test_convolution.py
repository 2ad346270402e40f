import jax
import numpy as np
import pytest
from jax import numpy as jnp

from lus_jax.models import convolution, layers
from lus_jax.models.convolution import conv, direct_conv, patch_conv
from lus_jax.models.winograd import winograd_conv


def random_inputs(key, shape, size, outputs, stride=1):
  keys = jax.random.split(key, 3)
  x = jax.random.normal(keys[0], shape)
  kernel = jax.random.normal(keys[1], (size, size, shape[-1], outputs))
  dy = jax.random.normal(keys[2], jax.eval_shape(lambda: direct_conv(x, kernel, stride)).shape)
  return x, kernel, dy


def value_and_gradients(convolution, x, kernel, dy):
  """Compiled: operation by operation takes several times as long."""

  @jax.jit
  def run(x, kernel, dy):
    y, vjp = jax.vjp(convolution, x, kernel)
    return y, *vjp(dy)

  return run(x, kernel, dy)


def reference(x, kernel, dy, stride=1):
  with jax.default_matmul_precision("highest"):
    return value_and_gradients(lambda x, k: direct_conv(x, k, stride), x, kernel, dy)


# Whole tiles, cut tiles, and images smaller than one.
@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (1, 7, 9, 2), (2, 2, 1, 3)])
def test_winograd_agrees_with_the_direct_convolution(key, shape):
  inputs = random_inputs(key, shape, 3, 4)
  for ours, theirs in zip(
    value_and_gradients(winograd_conv, *inputs), reference(*inputs), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_winograd_rounds_little_over_many_channels(key):
  inputs = random_inputs(key, (1, 16, 16, 256), 3, 32)
  for ours, theirs in zip(
    value_and_gradients(winograd_conv, *inputs), reference(*inputs), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("function", [winograd_conv, lambda x, k: patch_conv(x, k, 1)])
def test_under_vmap_every_member_has_its_own_kernel(key, function):
  members = [random_inputs(k, (1, 5, 6, 2), 3, 3) for k in jax.random.split(key, 3)]
  mapped = jax.vmap(lambda *a: value_and_gradients(function, *a))(
    *(jnp.stack(a) for a in zip(*members, strict=True))
  )
  for i, inputs in enumerate(members):
    for ours, theirs in zip(mapped, reference(*inputs), strict=True):
      np.testing.assert_allclose(ours[i], theirs, atol=1e-4)


@pytest.mark.parametrize(
  ("shape", "size", "stride"),
  [((2, 5, 6, 3), 3, 1), ((2, 8, 7, 3), 3, 2), ((1, 9, 12, 1), 5, 2), ((1, 1, 2, 2), 3, 2)],
)
def test_patches_agree_with_the_direct_convolution(key, shape, size, stride):
  inputs = random_inputs(key, shape, size, 4, stride)
  ours = value_and_gradients(lambda x, k: patch_conv(x, k, stride), *inputs)
  for a, b in zip(ours, reference(*inputs, stride), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_takes_every_stride_th_pixel(key, stride):
  inputs = random_inputs(key, (2, 5, 4, 3), 1, 4, stride)
  ours = value_and_gradients(lambda x, k: conv(x, k, stride), *inputs)
  for a, b in zip(ours, reference(*inputs, stride), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
  ("shape", "outputs", "stride", "dtype", "way"),
  [
    ((1, 32, 32, 64), 256, 1, jnp.float32, "winograd_conv"),
    ((1, 32, 32, 64), 256, 2, jnp.float32, "direct_conv"),
    ((1, 16, 16, 128), 256, 2, jnp.float32, "patch_conv"),
    ((1, 32, 32, 64), 256, 1, jnp.bfloat16, "direct_conv"),
    ((1, 32, 32, 64), 8, 1, jnp.float32, "direct_conv"),
    ((1, 4, 4, 1024), 1024, 1, jnp.float32, "patch_conv"),
    ((1, 128, 128, 3), 256, 1, jnp.float32, "direct_conv"),
  ],
  ids=["large", "strided", "strided_small", "bfloat16", "little_work", "small", "few_channels"],
)
def test_the_way_depends_on_the_shape(monkeypatch, shape, outputs, stride, dtype, way):
  taken = []
  for name in ("winograd_conv", "patch_conv", "direct_conv"):

    def noted(x, kernel, stride=1, name=name):
      taken.append(name)
      return direct_conv(x, kernel, stride)

    monkeypatch.setattr(convolution, name, noted)
  kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], outputs), dtype)
  jax.eval_shape(lambda x, k: conv(x, k, stride), jax.ShapeDtypeStruct(shape, dtype), kernel)
  assert taken == [way]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_gpu_a_strided_pointwise_convolution_is_no_product(key, monkeypatch, dtype):
  # XLA for GPUs aborts where the pixels of a product are skipped first.
  inputs = [a.astype(dtype) for a in random_inputs(key, (2, 5, 4, 3), 1, 4, 2)]

  def run():
    def strided(x, kernel):
      return conv(x, kernel, 2)

    text = str(jax.make_jaxpr(strided)(*inputs[:2]))
    return "dot_general" in text, value_and_gradients(strided, *inputs)

  product, on_cpu = run()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  no_product, on_gpu = run()
  assert product and not no_product
  for a, b in zip(on_gpu, on_cpu, strict=True):
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance)
  # Without a stride it is the product everywhere.
  jaxpr = jax.make_jaxpr(lambda x, kernel: conv(x, kernel))(*inputs[:2])
  assert "dot_general" in str(jaxpr)


def test_elsewhere_than_on_a_cpu_xla_convolves(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(convolution, "direct_conv", lambda x, kernel, stride: ("xla", stride))
  x, kernel = jnp.ones((1, 32, 32, 64)), jnp.ones((3, 3, 64, 256))
  assert conv(x, kernel, 2) == ("xla", 2)


def test_an_enlarged_image_is_convolved_without_being_made(key):
  x, kernel, _ = random_inputs(key, (2, 5, 7, 6), 3, 4, 1)
  dy = jax.random.normal(jax.random.fold_in(key, 1), (2, 10, 14, 4))

  def reference(x, kernel):
    return direct_conv(layers.upsample_nearest(x, 2), kernel)

  y, vjp = jax.vjp(convolution.upsampled_conv, x, kernel)
  expected, expected_vjp = jax.vjp(reference, x, kernel)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  for a, b in zip(vjp(dy), expected_vjp(dy), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)
