"""The command line: `python -m lus_jax.report --workdir runs/seg`."""

import argparse
import sys

from lus_jax import command_line, report


def main():
  """Writes the report of a run; returns the exit code (2 after a user's mistake)."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.report",
    description="Writes <workdir>/report/index.html, figures and tables from <workdir>/results/.",
  )
  parser.add_argument("--workdir", required=True, help="the run's directory")
  workdir = parser.parse_args().workdir
  return command_line.run(lambda: print(report.build(workdir)))


if __name__ == "__main__":
  sys.exit(main())
