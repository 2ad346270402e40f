"""Reads every file of a data folder, and says what is in it and what is wrong with it.

    python -m lus_jax.check DIR [--html FILE]

DIR is a lus_folder, a multirater_folder, or a copy of COVID-BLUES. Printed are a table of what
there is, what is missing, problems with file and row (all that training would refuse, not only the
first), and warnings of what looks wrong. The exit code is 2 where training would fail, else 0.

FILE is a page of all that with a picture of every video, its scan area, and what was painted.
Nothing else is written.
"""

import argparse
import pathlib
import sys

from lus_jax import command_line
from lus_jax.errors import UserError
from lus_jax.words import plural


class _Parser(argparse.ArgumentParser):
  """A parser whose mistakes are `UserError`."""

  def error(self, message):
    raise UserError(f"{message} (see --help).")


def _count(text):
  if not text.isdecimal():
    raise argparse.ArgumentTypeError("needs a whole number from 0")
  return int(text)


def _parser():
  parser = _Parser(
    prog="python -m lus_jax.check",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("directory", metavar="DIR", help="the data folder")
  parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="the page to write")
  parser.add_argument(
    "--split-unit",
    choices=("patient", "frame"),
    default="patient",
    help="as --config.data.split_unit of the training",
  )
  parser.add_argument(
    "--num-processes",
    type=_count,
    default=0,
    metavar="N",
    help="that read files; by default as many as are of use",
  )
  return parser


def main(argv=None):
  """Runs the command line; returns 0, or 2 where training would fail or after a user's mistake."""
  return command_line.run(lambda: _main(argv))


def _main(argv):
  options = _parser().parse_args(argv)
  # After the command line is known to be right, as these take a moment.
  from lus_jax.check import page, run, table
  from lus_jax.report import cells

  result = run.check(
    options.directory,
    with_pictures=options.html is not None,
    split_unit=options.split_unit,
    num_processes=options.num_processes,
  )
  if result.seen:
    rows = table.overview(result)
    width = max(len(what) for what, _ in rows)
    print(*(f"{what.rjust(width)}  {text}" for what, text in rows), sep="\n")
    if result.dataset.classes:
      print(f"\n{cells.text_table(table.HEADER, table.classes(result))}")
  for title, lines in (
    ("Missing", table.missing(result)),
    ("Warnings", result.warnings),
    ("Problems: training would fail", result.problems),
  ):
    if lines:
      print(f"\n{title} ({len(lines)})", *(f"- {line}" for line in lines), sep="\n")
  if result.dataset.folder is None:
    print("\nNothing else was read, as these come first.")
  if options.html is not None:
    page.write(options.html, result)
    print(f"\nWrote {options.html}.")
  print(f"\n{plural(len(result.problems), 'problem')}, {plural(len(result.warnings), 'warning')}.")
  return 2 if result.problems else 0


if __name__ == "__main__":
  sys.exit(main())
