import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

from lus_jax.models.depthwise import depthwise_conv

# Even and odd sizes: at stride 2 the last tap lies on padding for odd ones only.
CASES = [
  pytest.param((2, 6, 8, 5), 1, id="stride1"),
  pytest.param((2, 6, 8, 5), 2, id="stride2_even"),
  pytest.param((2, 7, 5, 3), 2, id="stride2_odd"),
  pytest.param((1, 1, 2, 4), 1, id="smaller_than_the_kernel"),
  pytest.param((1, 1, 2, 4), 2, id="smaller_than_the_kernel_stride2"),
]


def reference(x, kernel, stride):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
    precision="highest",
  )


def random_inputs(key, shape, stride):
  keys = jax.random.split(key, 3)
  x = jax.random.normal(keys[0], shape)
  kernel = jax.random.normal(keys[1], (3, 3, 1, shape[-1]))
  dy = jax.random.normal(keys[2], jax.eval_shape(lambda: reference(x, kernel, stride)).shape)
  return x, kernel, dy


def both(convolution, stride):
  """A function of (x, kernel, dy): the convolution's value and gradients."""

  def run(x, kernel, dy):
    y, vjp = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
    return y, *vjp(dy)

  return run


def value_and_gradients(convolution, x, kernel, dy, stride):
  """Compiled: operation by operation takes several times as long."""
  return jax.jit(both(convolution, stride))(x, kernel, dy)


@pytest.mark.parametrize(("shape", "stride"), CASES)
def test_value_and_gradients_are_those_of_a_grouped_convolution(key, shape, stride):
  inputs = random_inputs(key, shape, stride)
  ours = value_and_gradients(depthwise_conv, *inputs, stride)
  theirs = value_and_gradients(reference, *inputs, stride)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_on_a_gpu_every_reduction_has_one_sum(key, monkeypatch):
  # Nine at once ask for more shared memory than a block of threads has there.
  inputs = random_inputs(key, (2, 7, 5, 3), 2)

  def run():
    ours = both(depthwise_conv, 2)
    equations = jax.make_jaxpr(ours)(*inputs).eqns
    most = max(len(x.outvars) for x in equations if x.primitive.name.startswith("reduce"))
    return most, jax.jit(ours)(*inputs)

  nine, on_cpu = run()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  one, on_gpu = run()
  assert (nine, one) == (9, 1)
  for a, b in zip(on_gpu, on_cpu, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_under_vmap_every_member_has_its_own_kernel(key, stride):
  inputs = [random_inputs(k, (2, 6, 7, 4), stride) for k in jax.random.split(key, 3)]
  mapped = jax.vmap(lambda *a: value_and_gradients(depthwise_conv, *a, stride))(
    *(jnp.stack(a) for a in zip(*inputs, strict=True))
  )
  for i, member in enumerate(inputs):
    theirs = value_and_gradients(reference, *member, stride)
    for a, b in zip(mapped, theirs, strict=True):
      np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_stays_near_float32(key, stride):
  inputs = [a.astype(jnp.bfloat16) for a in random_inputs(key, (2, 8, 8, 4), stride)]
  ours = value_and_gradients(depthwise_conv, *inputs, stride)
  theirs = value_and_gradients(reference, *(a.astype(jnp.float32) for a in inputs), stride)
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.1, rtol=0.02)
