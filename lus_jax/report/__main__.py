"""The command line: `python -m lus_jax.report --workdir runs/seg`."""

import argparse
import sys

from lus_jax import command_line, report
from lus_jax.errors import say_warnings_plainly


def main():
  """Writes the report of a run; returns the exit code (2 after a user's mistake)."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.report",
    description="Writes <workdir>/report/index.html, figures and tables from <workdir>/results/.",
  )
  parser.add_argument("--workdir", required=True, help="the run's directory")
  parser.add_argument(
    "--gallery",
    nargs="*",
    metavar="CLIP",
    help="also write report/gallery.html: whole clips with every threshold's map; of the run's own "
    "test split, or these files, or folders of them",
  )
  parser.add_argument(
    "--gallery-frames", type=int, metavar="N", help="how many frames of a clip at most (60)"
  )
  parser.add_argument(
    "--gallery-megabytes", type=float, metavar="MB", help="how large the page becomes at most (20)"
  )
  options = parser.parse_args()
  return command_line.run(lambda: _run(options))


def _run(options):
  broken = []
  if options.gallery is not None:
    broken = _gallery(options)
  print(report.build(options.workdir))
  # What came out is there, and not all of it did.
  return 1 if broken else 0


def _gallery(options):
  # It brings the networks, which a report needs not.
  from lus_jax.report import gallery

  say_warnings_plainly()
  command_line.keep_compiled("~/.cache/lus_jax")
  limits = {"n_frames": options.gallery_frames, "megabytes": options.gallery_megabytes}
  limits = {name: value for name, value in limits.items() if value is not None}
  file, broken = gallery.write(options.workdir, options.gallery, **limits)
  print(file)
  return broken


if __name__ == "__main__":
  sys.exit(main())
