"""Strict settings for every test: two CPU devices, no silent broadcasting between ranks."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)

# Test workers and the programs they start share what is compiled.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# After the environment above is set.
pytest_plugins = ("tests.toys",)


def pytest_collection_modifyitems(items):
  """The longest files first, so that no process is left with them while the others are idle."""
  items.sort(key=lambda item: "tasks" not in item.path.parts)


REAL_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(scope="session")
def real_data():
  """The folder of real data sets beside the project; the test is skipped where there is none."""
  if not REAL_DATA.is_dir():
    pytest.skip(f"needs the real data sets in {REAL_DATA.name}/ beside the project")
  return REAL_DATA


@pytest.fixture(scope="session")
def torch():
  """PyTorch with the networks we are measured against; the test is skipped where it is missing."""
  # After the environment above is set.
  from lus_jax.benchmarks import peers
  from lus_jax.errors import UserError

  try:
    return peers.import_torch()
  except UserError as error:
    pytest.skip(str(error))
