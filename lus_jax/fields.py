"""The fields of the configs: where a config is found, what each field is for and may be."""

import ast
import difflib
import io
import math
import pathlib
import re
import tokenize

from lus_jax.errors import UserError

# Beside the package, from wherever it is run.
CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
# Files of it that are no config of their own.
_SHARED = ("__init__", "common")


def names():
  """The configs that there are, as `seg`."""
  return sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem not in _SHARED)


def find(text):
  """The file that --config names, and its size, as in `configs/seg.py:demo`.

  Args:
    text: a path, or the name of a config of this project (`seg`, `configs/seg.py`), which is
      found from anywhere; perhaps with `:size`.

  Returns:
    The same with a path that exists.

  Raises:
    UserError: there is no such file.
  """
  path, colon, size = text.partition(":")
  file = pathlib.Path(path)
  if not file.is_file():
    own = CONFIGS / f"{file.stem}.py"
    if file.parent.name not in ("", "configs") or file.stem not in names():
      near = difflib.get_close_matches(file.stem, names(), n=1)
      raise UserError(
        f"--config={text}: there is no such file"
        f"{f'; did you mean --config={near[0]}{colon}{size}?' if near else ''}"
        f" (by their names, from anywhere: {', '.join(names())})"
      )
    file = own
  if file.suffix != ".py":
    raise UserError(f"--config={text}: {file} is no config, which is a .py file as configs/seg.py.")
  return f"{file}{colon}{size}"


def value(config, name):
  """The value of a field by its dotted name; None where a config of an older version lacks it."""
  for part in name.split("."):
    config = config.get(part) if part in config else None
    if config is None:
      return None
  return config


def check_least(config, least):
  """Refuses numbers below the least, a dict by dotted name (`UserError`).

  What a config of an older version lacks is in order.
  """
  for name, low in least.items():
    section, _, field = name.rpartition(".")
    fields = value(config, section) if section else config
    if field in fields and (fields[field] is None or not fields[field] >= low):
      raise UserError(f"config.{name}: {fields[field]} must be at least {low}.")


def check_shares(config, *names):
  """Refuses numbers that are not at least 0 and below 1 (`UserError`).

  What a config of an older version lacks is in order.
  """
  for name in names:
    found = value(config, name)
    if found is not None and not 0 <= found < 1:
      raise UserError(f"config.{name}: {found} must be at least 0 and below 1.")


def check_known(config, known):
  """Refuses values that are none of the choices, a dict by dotted name (`UserError`)."""
  for name, choices in known.items():
    if value(config, name) not in choices:
      raise UserError(
        f"config.{name}: '{value(config, name)}' is not known; choose one of {', '.join(choices)}."
      )


def check_positive(config, *names):
  """Refuses numbers that are not finite and above 0 (`UserError`)."""
  for name in names:
    found = value(config, name)
    if found is None or not (found > 0 and math.isfinite(found)):
      raise UserError(f"config.{name}: {found} must be a positive number.")


def flatten(config, prefix=""):
  """Every field of a config: a dict from its dotted name to its value."""
  found = {}
  for name in config:
    value = config[name]
    if hasattr(value, "to_dict"):
      found |= flatten(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def nearest(name, known):
  """The field most like a name that is not known, by its last part too; None where none is."""
  if found := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
    return found[0]
  last = {field.rpartition(".")[2]: field for field in reversed(list(known))}
  found = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.75)
  return last[found[0]] if found else None


def describe(config, path):
  """A line for every field of a config: how it is set, and the comment in the config's file.

  Args:
    config: what the file's `get_config` returned.
    path: of the file.
  """
  own = _comments(pathlib.Path(path))
  # The parts of a study have the comments of their own configs.
  parts = {}
  for name in config:
    if task := getattr(config[name], "task", None):
      file = CONFIGS / f"{'seg' if task == 'segmentation' else task}.py"
      parts[name] = _comments(file) if file.exists() else {}
  lines = []
  for name, value in flatten(config).items():
    part, _, rest = name.partition(".")
    comment = own.get(name) or parts.get(part, {}).get(rest)
    text = f"  --config.{name}={value!r}"
    lines.append(f"{text}  # {comment}" if comment else text)
  return "\n".join(lines)


def _comments(file, seen=()):
  """Comments by field of a config file, and of those it builds on, its own first."""
  text = file.read_text()
  by_line, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      own_line = not token.line[: token.start[1]].strip()
      (alone if own_line else by_line)[token.start[0]] = token.string.lstrip("# ")

  def comment(node):
    if node.end_lineno in by_line:
      return by_line[node.end_lineno]
    lines, line = [], node.lineno - 1
    while line in alone:
      lines.insert(0, alone[line])
      line -= 1
    return " ".join(lines)

  found, tree = {}, ast.parse(text)
  functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
  for node in (statement for function in functions for statement in function.body):
    if not isinstance(node, ast.Assign):
      continue
    name = ast.unparse(node.targets[0])
    if not name.startswith("config."):
      continue
    name = name.removeprefix("config.")
    if isinstance(node.value, ast.Dict):
      for key in node.value.keys:
        found.setdefault(f"{name}.{ast.literal_eval(key)}", comment(key))
    found.setdefault(name, comment(node))
  found = {name: text for name, text in found.items() if text}
  for imported in re.findall(r"^from configs import (.+)$", text, re.M):
    for name in imported.split(", "):
      other = CONFIGS / f"{name}.py"
      if other.exists() and name not in seen:
        found = _comments(other, (*seen, file.stem)) | found
  return found
