"""The command line: `python -m lus_jax.report --workdir runs/seg`."""

import argparse
import sys

from lus_jax import report
from lus_jax.errors import UserError


def main():
  """Writes the report of a run; returns the exit code (2 after a user's mistake)."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.report",
    description="Writes <workdir>/report/index.html, figures and tables from <workdir>/results/.",
  )
  parser.add_argument("--workdir", required=True, help="the run's directory")
  try:
    print(report.build(parser.parse_args().workdir))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
