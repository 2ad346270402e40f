"""Strict settings for every test: two CPU devices, no silent broadcasting between ranks."""

import os
import pathlib
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
# In one piece a program takes less work to compile; the other core has tests of its own.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_cpu_parallel_codegen_split_count=1"
)

# Test workers and the programs they start share what is compiled, small programs too.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

import lus_jax.benchmarks.before_tensorflow  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")

# After the environment above is set.
pytest_plugins = ("tests.toys",)


# With `--no-loadscope-reorder`; else files of many tests go first, and those of few long ones last.
LONGEST = (
  "tasks/test_toy_runs.py",
  "tasks/test_run_segmentation.py",
  "tasks/test_which_target.py",
  "tasks/test_run_clinical.py",
  "models/test_fpn.py",
  "models/test_mobilenet_v2.py",
  "test_processes.py",
  "tasks/test_run_raters.py",
  "models/test_ordinal.py",
  "training/test_loop.py",
  "test_core_alone.py",
)


def pytest_collection_modifyitems(items):
  """The longest files first, so that no process is left with them while the others are idle."""
  files = [pathlib.Path(__file__).parent / name for name in LONGEST]
  assert all(file.is_file() for file in files)
  items.sort(key=lambda item: files.index(item.path) if item.path in files else len(files))


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


@pytest.fixture(scope="module")
def browser():
  """One browser for all tests of a file; they are skipped where there is none."""
  known = ("chromium", "chromium-browser", "chrome")
  found = next(filter(None, map(shutil.which, known)), None)
  if found is None:
    pytest.skip("needs Chromium, which is not installed")
  api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")
  with api.sync_playwright() as driver:
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]
    opened = driver.chromium.launch(executable_path=found, args=options)
    yield opened
    opened.close()


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


@pytest.fixture
def twelve(monkeypatch):
  """Twelve toy frames of six patients in place of the phantom's, where trainings are compared."""
  from lus_jax.benchmarks import quality_data
  from tests import compared

  dataset = compared.make_dataset([f"p{i // 2}" for i in range(12)])
  monkeypatch.setattr(quality_data, "opened", lambda config: (dataset, compared.OWN))
  return dataset
