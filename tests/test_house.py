"""The rules of the house: what imports what, which names cross a file, and what docstrings say."""

import ast
import collections
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("lus_jax", "tfds_builders")
# Libraries that the core runs without; these may import them when they are imported themselves.
HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "clu", "ml_collections", "tensorboard")
NOT_CORE = ("lus_jax.main", "lus_jax.predict", "lus_jax.tasks.study", "tfds_builders")
# Parameters that are arrays, wherever arrays are computed with.
ARRAYS = {"logits", "confidence", "where", "image", "probability", "prediction"}
COMPUTING = tuple(
  f"lus_jax.{x}" for x in ("data", "evaluation", "inference", "labels", "losses", "models")
)


def name_of(file):
  return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def modules():
  """Every file of the packages, as its syntax tree, by the module's name."""
  files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
  return {name_of(file): ast.parse(file.read_text()) for file in sorted(files)}


def imported(tree, known):
  """What a tree imports of ours, anywhere in it: pairs of a local name and a module."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (*PACKAGES, "tests"):
      for one in node.names:
        whole = f"{node.module}.{one.name}"
        found.add((one.asname or one.name, whole if whole in known else node.module))
    elif isinstance(node, ast.Import):
      ours = [one.name for one in node.names if one.name.split(".")[0] in PACKAGES]
      found |= {(name, name) for name in ours}
  return found


@functools.cache
def rooms():
  """The list of README, top to bottom: each room as a prefix of modules' names."""
  text = (ROOT / "README.md").read_text().split("## How it is built")[1]
  block = text.split("```")[1]
  paths = re.findall(r"^((?:lus_jax|tfds_builders)\S*)", block, re.MULTILINE)
  return [path.removesuffix(".py").removesuffix("/").replace("/", ".") for path in paths]


def floor(module):
  """The place of a module's room in the list."""
  within = [i for i, room in enumerate(rooms()) if f"{module}.".startswith(f"{room}.")]
  # What stands beside the rooms is the ground, `lus_jax/*.py`.
  return within[0] if within else rooms().index("lus_jax.*")


def test_the_list_names_every_room_and_no_other():
  here = {
    f"lus_jax.{path.name}"
    for path in (ROOT / "lus_jax").iterdir()
    if (path / "__init__.py").exists()
  }
  assert {room for room in rooms() if f"lus_jax.{room.split('.')[-1]}" in here} == here
  for room in rooms():
    path = ROOT / room.replace(".", "/")
    assert room == "lus_jax.*" or path.is_dir() or path.with_suffix(".py").is_file(), room


def test_no_two_files_of_tests_have_one_name():
  # pytest imports them by their names alone, and would leave one of them out.
  counts = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
  assert [name for name, n in counts.items() if n > 1] == []
  # There are several conftest.py; which one an import of that name gets is chance.
  for path in (ROOT / "tests").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      assert not (isinstance(node, ast.ImportFrom) and node.module == "conftest"), path


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module):
  for _, other in imported(modules()[module], modules()):
    # The package itself has only its version.
    assert other == "lus_jax" or floor(other) >= floor(module), f"{module} imports {other}"


def test_no_imports_go_in_a_circle():
  left = {
    module: {other for _, other in imported(tree, modules())} for module, tree in modules().items()
  }
  while free := [module for module, others in left.items() if not others & left.keys() - {module}]:
    for module in free:
      del left[module]
  assert not left


@pytest.mark.parametrize("module", [name for name in modules() if not name.startswith(NOT_CORE)])
def test_the_core_imports_no_heavy_library_by_itself(module):
  for node in modules()[module].body:
    names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
    names += [node.module] if isinstance(node, ast.ImportFrom) else []
    assert not [name for name in names if name.split(".")[0] in HEAVY], module


def private(name):
  return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "configs"])
def test_no_private_name_crosses_a_file(folder):
  found = []
  for file in sorted((ROOT / folder).rglob("*.py")):
    tree = ast.parse(file.read_text())
    names = {name for name, _ in imported(tree, modules())}
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom):
        found += [(file.name, one.name) for one in node.names if private(one.name)]
      elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
        # `monkeypatch.setattr(module, "_name", ...)`
        words = [str(getattr(one, "value", "")) for one in node.args[1:2]]
        if node.args and ast.unparse(node.args[0]) in names:
          found += [(file.name, word) for word in words if private(word)]
      elif isinstance(node, ast.Attribute) and private(node.attr):
        found += [(file.name, ast.unparse(node))] if ast.unparse(node.value) in names else []
  assert not found


def public_functions():
  for module, tree in modules().items():
    for node in tree.body:
      if private(getattr(node, "name", "")):
        continue
      inner = node.body if isinstance(node, ast.ClassDef) else [node]
      for one in inner:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
          yield f"{module}.{one.name}", one


def test_public_functions_say_what_they_do_and_the_shapes_of_arrays():
  silent, shapeless = [], []
  for name, node in public_functions():
    text = ast.get_docstring(node) or ""
    if not text:
      silent.append(name)
    arguments = {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
    # "[B, H, W, K]", "[h, w]", "[...]", "of any shape".
    shape = re.search(r"\[[\w.]+(, |\])|(any|same) shape", text)
    if name.startswith((*COMPUTING, "lus_jax.training")) and arguments & ARRAYS and not shape:
      shapeless.append(name)
  assert not silent and not shapeless, (silent, shapeless)


def bound(tree):
  """Names that a module has at its top, however they come there."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      found.add(node.id)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      found |= {(one.asname or one.name).split(".")[0] for one in node.names}
  return found


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "configs"])
def test_what_is_taken_of_a_module_is_there(folder):
  # Imports within functions, as those of the harness of faults, fail only when they are run.
  lost = []
  for file in sorted((ROOT / folder).rglob("*.py")):
    tree = ast.parse(file.read_text())
    of = {}
    for name, module in imported(tree, modules()):
      of.setdefault(name, set()).add(module)
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        places = of.get(node.value.id, set())
        # A name of a module, and not a module, has attributes that are not seen here.
        if places and all(place.endswith(f".{node.value.id}") for place in places):
          there = set().union(*(bound(modules()[place]) for place in places if place in modules()))
          there |= {one.rpartition(".")[2] for one in modules() if one.rpartition(".")[0] in places}
          if node.attr not in there and not node.attr.startswith("__"):
            lost.append(f"{file.name}: {ast.unparse(node)}")
  assert not lost
