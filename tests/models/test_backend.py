"""Portable forms of a network are its own to rounding, whichever machine it is traced on."""

import jax
import numpy as np
import pytest
from flax import nnx

from lus_jax.models import backend
from lus_jax.models.fpn import FPN
from lus_jax.training.state import Network


def test_within_portable_no_machine_is_meant_and_afterwards_this_one(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(RuntimeError), backend.portable():
    assert backend.name() == backend.ANY
    raise RuntimeError
  assert backend.name() == "gpu"


def test_a_portable_network_is_one_program_for_any_number_of_images(key):
  """Nothing in it depends on the machine or the batch, and it puts out the same."""
  network = Network(FPN("resnet18", classes=3, width=0.125, rngs=nnx.Rngs(0)))
  (batch,) = jax.export.symbolic_shape("batch")

  def logits(image):
    return network(network.params, network.batch_stats, image)[0]

  def portable(image):
    with backend.portable():
      return logits(image)

  shape = jax.ShapeDtypeStruct((batch, 40, 40, 1), np.float32)
  made = []
  for machine in ("cpu", "gpu"):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax, "default_backend", lambda machine=machine: machine)
      made.append(str(jax.make_jaxpr(lambda image: portable(image))(shape)))
  assert made[0] == made[1]
  image = jax.random.uniform(key, (2, 40, 40, 1))
  found, expected = (jax.jit(one)(image) for one in (portable, logits))
  assert float(expected.std()) > 0.01
  np.testing.assert_allclose(found, expected, atol=1e-5)
