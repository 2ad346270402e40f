"""The rate of matrix products: what a share of peak is measured against."""

import statistics
import time

import jax
from jax import numpy as jnp

# Rows of the square matrices, large enough to reach the rate, and products issued before waiting:
# a GPU's take about a millisecond, of which starting one alone would be a noticeable part.
CPU, _ACCELERATOR = (1024, 1), (8192, 8)
# A slow machine, or a type it only emulates, is measured with fewer repetitions.
_REPETITIONS, _SECONDS = 9, 0.5


def matmul_rate(dtype) -> float:
  """Measures the rate of a product of two large square matrices on the default device.

  At JAX's default precision, as the networks are computed: float32 may be TF32 on a GPU. The
  matrices hold noise, for zeros draw less power and so run faster.

  Args:
    dtype: 'float32' or 'bfloat16'.

  Returns:
    FLOP/s, multiply and add counted apart: the median of up to nine products after a warm-up.
  """
  n, queued = CPU if jax.default_backend() == "cpu" else _ACCELERATOR
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (n, n), jnp.dtype(dtype)) for key in keys)
  multiply = jax.jit(jnp.matmul)
  multiply(a, b).block_until_ready()
  seconds, start = [], time.perf_counter()
  while len(seconds) < _REPETITIONS and (not seconds or time.perf_counter() - start < _SECONDS):
    since = time.perf_counter()
    jax.block_until_ready([multiply(a, b) for _ in range(queued)])
    seconds.append(time.perf_counter() - since)
  return 2 * n**3 * queued / statistics.median(seconds)
