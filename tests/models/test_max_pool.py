import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from lus_jax.models.max_pool import max_pool, unpooled, with_winner


def reference(x):
  return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2), (1, 1, 2, 1)])
def test_value_and_gradient_are_those_of_a_reduced_window(key, shape):
  x = jax.random.normal(key, shape) - 3  # all negative: padding must not win
  y, vjp = jax.vjp(max_pool, x)
  expected, expected_vjp = jax.vjp(reference, x)
  np.testing.assert_array_equal(y, expected)
  dy = jax.random.normal(jax.random.fold_in(key, 1), y.shape)
  np.testing.assert_allclose(vjp(dy)[0], expected_vjp(dy)[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2), (1, 1, 2, 1)])
def test_the_gradient_as_one_expression_is_the_same(key, shape):
  x, other = jax.random.normal(key, (2, *shape))
  y, winner, taken = with_winner(x, other)
  dy = jax.random.normal(jax.random.fold_in(key, 1), y.shape)
  expected = jax.vjp(reference, x)[1](dy)[0]
  np.testing.assert_allclose(unpooled(dy, winner, *shape[1:3]), expected, atol=1e-6)
  # What another array has at the maxima: its gradient by way of them says so.
  np.testing.assert_allclose(jnp.vdot(taken, dy), jnp.vdot(other, expected), rtol=1e-5)


def test_the_first_of_equal_pixels_gets_the_gradient():
  # PyTorch's choice; sharing it or giving it to each would change what a tie learns.
  _, vjp = jax.vjp(max_pool, jnp.ones((1, 2, 2, 1)))
  np.testing.assert_array_equal(vjp(jnp.ones((1, 1, 1, 1)))[0][0, :, :, 0], [[1, 0], [0, 0]])
