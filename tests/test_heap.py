"""What a program frees stays with the process."""

import ctypes
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from lus_jax import heap

# Temporaries of 50 MB, more than glibc would keep by itself (32); as in training, what is updated
# is given away.
SCRIPT = """
import functools
import resource
from lus_jax import heap

heap.keep()
import jax
from jax import numpy as jnp


@functools.partial(jax.jit, donate_argnums=0)
def program(x, w):
  for _ in range(3):
    x = jnp.tanh(x @ w)
  return x


x, w = jnp.ones((200_000, 64)), jnp.ones((64, 64))
counts = []
for _ in range(20):
  x = program(x, w)
  x.block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[-11])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_a_program_takes_the_pages_of_its_last_call():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    cwd=pathlib.Path(__file__).parents[1],
    env={k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  # Ten calls write 500 MB, 125,000 pages; now and then memory still grows by the 50 of one.
  assert int(done.stdout) < 40_000


@pytest.mark.parametrize(("gpu", "platforms"), [(True, "cuda"), (True, "cpu"), (False, "")])
def test_where_a_gpu_computes_nothing_is_kept(monkeypatch, gpu, platforms):
  set_to = []

  class Library:
    mallopt = staticmethod(lambda *option: set_to.append(option))

  monkeypatch.setattr(heap.glob, "glob", lambda _: ["/dev/nvidia0"] * gpu)
  monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  heap.keep()
  assert bool(set_to) == (platforms != "cuda")
