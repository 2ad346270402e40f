"""The commands that a run was begun with, as it recorded them."""

import contextlib
import json
import pathlib
import shlex


def commands(workdir, tasks):
  """The commands that repeat what a directory holds: one, if it was a study, else one a part.

  Args:
    workdir: the run's directory.
    tasks: names of the clinical tasks in it.

  Returns:
    Lines of a shell, each once; of runs that recorded none, as those begun from Python, nothing.
  """
  of_study = _command(workdir, "study")
  parts = [of_study] if of_study else [_command(workdir, name) for name in (".", *tasks)]
  return list(dict.fromkeys(filter(None, parts)))


def _command(workdir, name):
  # Results may be there alone, without the run they come from.
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    words = json.loads((pathlib.Path(workdir) / name / "run.json").read_text())["command"]
    lines = [[]]
    for word in map(shlex.quote, words):
      # An option a line, but for the first ones.
      if word.lstrip("'").startswith("--config."):
        lines.append([])
      lines[-1].append(word)
    return " \\\n  ".join(" ".join(line) for line in lines)
  return None
