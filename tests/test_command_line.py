import os
import pathlib
import subprocess
import sys

SCRIPT = """
import sys
from lus_jax import command_line
command_line.keep_compiled(sys.argv[1])
import jax
jax.jit(lambda x: x + 1)(1.0)
"""


def test_small_programs_are_kept_for_the_next_run_too(tmp_path):
  environment = os.environ | {"PYTHONPATH": os.fspath(pathlib.Path(__file__).parents[1])}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], env=environment, check=True)
  assert [file for file in tmp_path.iterdir() if file.name.startswith("jit__lambda")]
