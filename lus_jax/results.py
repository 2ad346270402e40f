"""Results files: JSON under `<workdir>/results/`, the only thing reports read."""

import contextlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform

import numpy as np

import lus_jax
from lus_jax import parallel
from lus_jax.errors import UserError
from lus_jax.files import check_file, write_bytes, write_text

SCHEMA = 1
DIRECTORY = "results"
# What to do about a damaged results file.
MEND = "bring it back, or remove results/ and repeat the run's command, which writes it again."
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What the tests between models are made of; the latter two of whole studies alone.
_PACKAGES += ("scipy", "statsmodels", "pandas")


def versions():
  """Versions of what the numbers depend on."""
  found = {"lus_jax": lus_jax.__version__, "python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def write(workdir, name, *, config, dataset, **content):
  """Writes `<workdir>/results/<name>.json`.

  The same run gives the same bytes: no time and no speed stands in a results file but timing.json.

  Args:
    workdir: the run's directory.
    name: of the file, without its ending.
    config: the run's config as a dict.
    dataset: `lus_jax.data.datasets.Dataset.summary()`.
    **content: `rows` and whatever else the file holds; undefined values are None, not NaN.
  """
  text = json.dumps(
    {
      "schema": SCHEMA,
      "config": config,
      "versions": versions(),
      "dataset": dataset,
      **content,
    },
    indent=1,
    allow_nan=False,
  )
  write_text(pathlib.Path(workdir) / DIRECTORY / f"{name}.json", text + "\n")


def write_examples(workdir, **arrays):
  """Writes `<workdir>/results/examples.npz`: the pictures that reports show."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  write_bytes(pathlib.Path(workdir) / DIRECTORY / "examples.npz", buffer.getvalue())


def path(workdir, name):
  """Where a file of this name lies among the results of a run."""
  return pathlib.Path(workdir) / DIRECTORY / name


def read(workdir, name):
  """Reads a results file.

  Raises:
    UserError: it is missing, damaged or of another schema.
  """
  file = pathlib.Path(workdir) / DIRECTORY / f"{name}.json"
  if not os.path.lexists(file):
    raise UserError(f"{file} does not exist; run lus_jax.main with this workdir first.")
  check_file(file, MEND.rstrip("."))
  try:
    content = json.loads(
      file.read_text(), parse_float=_float, parse_int=_integer, parse_constant=_float
    )
  except RecursionError as error:
    raise UserError(f"{file} is damaged (nested too deeply); {MEND}") from error
  except (OSError, ValueError) as error:
    raise UserError(f"{file} is damaged ({error}); {MEND}") from error
  if not isinstance(content, dict) or content.get("schema") != SCHEMA:
    raise UserError(f"{file} is not of schema {SCHEMA}; it was written by another version.")
  return content


def remove(workdir, *names):
  """Removes these files, with their endings, where they are there."""
  if parallel.is_main():
    for name in names:
      (pathlib.Path(workdir) / DIRECTORY / name).unlink(missing_ok=True)
  parallel.sync("removed results")


def _float(text):
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text[:20]} is no number of a results file")
  return value


def _integer(text):
  # Nothing that is counted comes near, and nobody can print more.
  if len(text) > 18:
    raise ValueError(f"an integer of {len(text)} digits")
  return int(text)


def exists(workdir, *names):
  """Whether all these results files are there."""
  return all((pathlib.Path(workdir) / DIRECTORY / f"{name}.json").exists() for name in names)
