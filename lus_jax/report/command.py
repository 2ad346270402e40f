"""The command that repeats a run."""

import contextlib
import functools
import importlib.util
import json
import pathlib
import shlex

from flax import traverse_util

import lus_jax

_CONFIGS = pathlib.Path(lus_jax.__file__).parents[1] / "configs"


_SIZES = ("demo", "tiny")


def commands(files, names, workdir):
  """The commands that repeat what a directory holds: one, if it was a study, else one a task."""
  for file in ("run.json", "study/run.json"):
    # Results may be there alone, without the run they come from.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      config = json.loads((pathlib.Path(workdir) / file).read_text())["config"]
      if config["task"] == "study":
        return [_command(config, workdir)]
  return list(dict.fromkeys(_command(files[name]["config"], workdir) for name in names))


def _command(config, workdir):
  """The command that repeats a run: the config file it is nearest to, and what differs from it."""
  wanted = traverse_util.flatten_dict(config, sep=".")
  task = wanted.get("task")
  # How phantoms are drawn, where the data are others.
  unused = {
    key
    for key in wanted
    for data, phantom, _ in [key.rpartition("phantom.")]
    if phantom and wanted.get(f"{data}name", "lus_phantom") != "lus_phantom"
  }
  candidates = []
  for name, known in _configs():
    if known.get("task") == task and known.keys() == wanted.keys():
      differing = {key: x for key, x in wanted.items() if known[key] != x and key not in unused}
      candidates.append((len(differing), name, differing))
  # Without the configs beside the package every field is named.
  file = {"segmentation": "seg.py"}.get(task, f"{task}.py")
  every = {key: x for key, x in wanted.items() if key not in unused}
  _, name, differing = min(candidates, key=lambda c: c[0], default=(0, file, every))
  options = [f"--config.{key}={_option(x)}" for key, x in differing.items()]
  config, workdir = shlex.quote(f"configs/{name}"), shlex.quote(str(workdir))
  first = f"python -m lus_jax.main --config {config} --workdir {workdir}"
  return " \\\n  ".join([first, *map(shlex.quote, options)])


def _option(content):
  if isinstance(content, list):
    return f"({', '.join(map(repr, content))},)" if content else "()"
  return str(content)


@functools.cache
def _configs():
  """The config files beside the package and their sizes, with their fields as in results files."""
  found = []
  for file in sorted(_CONFIGS.glob("*.py")):
    spec = importlib.util.spec_from_file_location("_report_config", file)
    module = importlib.util.module_from_spec(spec)
    # The files are the user's to change: one that fails is no candidate.
    with contextlib.suppress(Exception):
      spec.loader.exec_module(module)
    for size in ("", *_SIZES):
      with contextlib.suppress(Exception):
        config = json.loads(module.get_config(*([size] if size else [])).to_json())
        fields = traverse_util.flatten_dict(config, sep=".")
        found.append((f"{file.name}:{size}" if size else file.name, fields))
  return found
