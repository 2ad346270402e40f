"""Initial weights drawn by few programs: the numbers of `jax.nn.initializers`, to the last digit.

There every shape is a compilation of its own, fifty for an FPN. But the numbers that a key draws
begin every longer sequence of the same key, so that a few lengths serve all shapes. With jax 0.10
they are the same to the bit, but within another compiled program.
"""

import functools
import math

import jax
from jax import numpy as jnp

_LENGTHS = (2**12, 2**16, 2**20, 2**22, 2**24)


def he_fan_out(key, shape):
  """Normal numbers of variance 2 / fan out, as torchvision's ResNets: [..., c_in, c_out]."""
  return _drawn(jax.random.normal, key, shape, 2 / (math.prod(shape[:-2]) * shape[-1]))


def he_uniform(key, shape):
  """Uniform numbers of variance 2 / fan in: [..., c_in, c_out]."""
  return _drawn(_uniform, key, shape, 2 / math.prod(shape[:-1]))


def xavier_uniform(key, shape):
  """Uniform numbers of variance 2 / (fan in + fan out): [..., c_in, c_out]."""
  fans = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
  return _drawn(_uniform, key, shape, 1 / (sum(fans) / 2))


def _uniform(key, shape):
  return jax.random.uniform(key, shape, minval=-1)


def _drawn(draw, key, shape, variance):
  n = math.prod(shape)
  length = next((length for length in _LENGTHS if length >= n), n)
  if draw is _uniform:
    variance = 3 * jnp.array(variance, jnp.float32)
  return _shaped(_draw(draw, key, length), shape, jnp.sqrt(jnp.array(variance, jnp.float32)))


# Two programs, so that the product is not made one with those of the draw: other roundings.
@functools.partial(jax.jit, static_argnums=(0, 2))
def _draw(draw, key, length):
  return draw(key, (length,))


@functools.partial(jax.jit, static_argnums=1)
def _shaped(numbers, shape, scale):
  return numbers[: math.prod(shape)].reshape(shape) * scale
