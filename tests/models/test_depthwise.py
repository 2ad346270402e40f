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


@pytest.mark.parametrize(
  ("shape", "stride"), [*CASES, pytest.param((2, 3, 61, 2), 1, id="runs_of_different_lengths")]
)
def test_on_a_gpu_the_kernels_gradient_is_summed_in_threads(key, monkeypatch, shape, stride):
  # Nine long sums at once ask for more shared memory than a block of threads has there; those of
  # fewer values than a warp has threads ask for none.
  inputs = random_inputs(key, shape, stride)

  on_cpu = jax.jit(both(depthwise_conv, stride))(*inputs)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  ours = both(depthwise_conv, stride)
  sums = [x for x in jax.make_jaxpr(ours)(*inputs).eqns if x.primitive.name.startswith("reduce")]
  assert max(len(x.outvars) for x in sums) == 1
  runs = [x for x in sums if x.params["axes"] == (3,)]
  assert len(runs) == 9 and max(x.invars[0].aval.shape[3] for x in runs) < 32
  for a, b in zip(jax.jit(ours)(*inputs), on_cpu, strict=True):
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
