"""Writes a folder that `lus_jax` reads from what other tools and data sets hold.

    python -m tfds_builders.importers palette --images DIR --masks DIR --out DIR \\
        --classes nerve,vessel [--patient-pattern REGEX] [--ignore 255]
    python -m tfds_builders.importers polygons --frames DIR --polygons FILE.json --out DIR \\
        [--patient NAME]
    python -m tfds_builders.importers folders --images DIR --raters DIR --out DIR \\
        --class-name NAME [--mask-pattern REGEX] [--polarity black] [--person-pattern REGEX]
    python -m tfds_builders.importers qubiq --cases DIR --task task01 --out DIR \\
        --class-name NAME [--nifti-axes yx] [--soft] [--confidence-maximum 255]

The first two write a `lus_folder`, with --licence and --thin; the others a `multirater_folder` of
several raters, with --licence and --name. Images are copied as they are; confidences are 0 or 1,
but for --soft.

FILE.json has an entry a labelled frame, by the name of its file without suffix:

    {"003": [{"class": "b_line", "polygon_xy": [[10, 12], [20, 12], [20, 60]]}], "004": []}

x counts pixels from the left and y from the top; pixel centres have whole coordinates. A frame with
an empty list shows nothing; one without an entry is not labelled.
"""

import argparse
import pathlib
import re
import sys

from lus_jax import command_line
from lus_jax.errors import UserError
from lus_jax.media import nifti
from tfds_builders import tables
from tfds_builders.importers import palette, polygons, raters
from tfds_builders.multirater_folder import manifest


class _Parser(argparse.ArgumentParser):
  """A parser whose mistakes are `UserError`."""

  def error(self, message):
    raise UserError(f"{message} (see --help).")


def _names(text):
  names = tuple(name.strip() for name in text.split(",") if name.strip())
  if not names or len(set(names)) < len(names):
    raise argparse.ArgumentTypeError("needs at least one name, each once")
  return names


def _pattern(text):
  try:
    return re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error


def _positive(text):
  value = tables.parse_number(text, float, decimal_comma=False)
  if not (tables.is_number(value) and value > 0):
    raise argparse.ArgumentTypeError("needs a number above 0")
  return value


def _parser():
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  common.add_argument("--licence", default="unknown", help="licence of the data")
  one = argparse.ArgumentParser(add_help=False, parents=[common])
  one.add_argument("--thin", type=_names, default=(), help="classes that are lines: a,b")
  several = argparse.ArgumentParser(add_help=False, parents=[common])
  several.add_argument("--class-name", required=True, help="what the masks show")
  several.add_argument("--name", help="of the data set; by default that of --out")
  parser = _Parser(prog="python -m tfds_builders.importers", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  commands = parser.add_subparsers(dest="command", required=True)

  command = commands.add_parser("palette", parents=[one], help="palette masks")
  command.set_defaults(run=palette.import_palette, builder="lus_folder")
  command.add_argument("--images", type=pathlib.Path, required=True, help="folder of pictures")
  command.add_argument("--masks", type=pathlib.Path, required=True, help="folder of masks")
  command.add_argument("--classes", type=_names, required=True, help="names of index 1, 2, ...")
  command.add_argument(
    "--patient-pattern", type=_pattern, help="regular expression: patient in the image's name"
  )
  command.add_argument("--ignore", type=int, help="index of pixels that count nowhere, as 255")

  command = commands.add_parser("polygons", parents=[one], help="polygons on one video")
  command.set_defaults(run=polygons.import_polygons, builder="lus_folder")
  command.add_argument("--frames", type=pathlib.Path, required=True, help="folder of frames")
  command.add_argument("--polygons", type=pathlib.Path, required=True, help="JSON file")
  command.add_argument("--patient", default="patient_1", help="the patient's name")

  command = commands.add_parser("folders", parents=[several], help="a folder of masks a rater")
  command.set_defaults(run=raters.import_folders, builder="multirater_folder")
  command.add_argument("--images", type=pathlib.Path, required=True, help="folder of pictures")
  command.add_argument("--raters", type=pathlib.Path, required=True, help="folder of the raters'")
  command.add_argument(
    "--mask-pattern",
    type=_pattern,
    default=re.compile("(.+)"),
    help="regular expression: its group is the image's name in a mask's",
  )
  command.add_argument(
    "--polarity", choices=manifest.POLARITIES, default="white", help="what the object is"
  )
  command.add_argument(
    "--person-pattern",
    type=_pattern,
    help="regular expression: its group is the person in a rater's name",
  )

  command = commands.add_parser("qubiq", parents=[several], help="a task of QUBIQ 2021")
  command.set_defaults(run=raters.import_qubiq, builder="multirater_folder")
  command.add_argument("--cases", type=pathlib.Path, required=True, help="folder of the cases")
  command.add_argument("--task", required=True, help="task01, ...")
  command.add_argument("--nifti-axes", choices=nifti.AXES, help="which axis of files is the first")
  command.add_argument("--soft", action="store_true", help="masks are confidences")
  command.add_argument(
    "--confidence-maximum", type=_positive, help="what means object or 100 %% in masks, as 255"
  )
  return parser


def main(argv=None):
  """Runs the command line; returns the exit code: 0, or 2 after a user's mistake."""
  return command_line.run(lambda: _main(argv))


def _main(argv):
  options = vars(_parser().parse_args(argv))
  run, builder, _ = (options.pop(name) for name in ("run", "builder", "command"))
  try:
    notes = run(**options)
  except OSError as error:
    raise UserError(str(error)) from error
  print(f"Wrote {options['out']}.", *notes, sep="\n")
  print(f"Next: --config.data.name={builder} --config.data.dir={options['out']}")


if __name__ == "__main__":
  sys.exit(main())
