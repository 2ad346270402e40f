import jax
import numpy as np
import pytest
from flax import nnx

from lus_jax.models import initial

# Drawn whole by their libraries, one shape after another.
THEIRS = {
  "he_fan_out": nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
  "he_uniform": nnx.initializers.he_uniform(),
  "xavier_uniform": nnx.initializers.xavier_uniform(),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shape", [(1, 1, 5, 3), (3, 3, 40, 24)])
def test_numbers_are_those_of_the_library_to_the_last_digit(name, shape):
  key = jax.random.key(3)
  found = getattr(initial, name)(key, shape)
  # jax 0.12 scales normal numbers within the program that draws them, which rounds otherwise.
  np.testing.assert_array_max_ulp(found, THEIRS[name](key, shape), maxulp=2)
