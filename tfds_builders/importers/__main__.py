"""Writes a folder that `lus_jax` reads from what other tools and data sets hold.

    python -m tfds_builders.importers FORMAT ... --out DIR

writes a `lus_folder`, or a `multirater_folder` where several people drew the same frames. Each
FORMAT has its own --help; --dry-run prints what would be written. The same import twice changes
nothing.

    python -m tfds_builders.importers palette --images DIR --masks DIR --classes nerve,vessel \\
        --out DIR [--patient-pattern REGEX] [--ignore 255]
    python -m tfds_builders.importers polygons --frames DIR --polygons FILE.json --out DIR
    python -m tfds_builders.importers folders --images DIR --raters DIR --out DIR \\
        --class-name NAME [--mask-pattern REGEX] [--polarity black] [--person-pattern REGEX]
    python -m tfds_builders.importers qubiq --cases DIR --task task01 --out DIR \\
        --class-name NAME [--nifti-axes yx] [--soft] [--confidence-maximum 255]

FILE.json of `polygons` has an entry a labelled frame, by the name of its file without suffix:

    {"003": [{"class": "b_line", "polygon_xy": [[10, 12], [20, 12], [20, 60]]}], "004": []}

x counts pixels from the left and y from the top; pixel centres have whole coordinates. A frame with
an empty list shows nothing; one without an entry is not labelled.
"""

import argparse
import dataclasses
import pathlib
import re
import sys

from lus_jax import command_line, notices
from lus_jax.errors import UserError, say_warnings_plainly
from lus_jax.media import nifti
from tfds_builders.importers import (
  clips,
  coco,
  cvat,
  label_studio,
  labelme,
  layers,
  masks,
  options,
  palette,
  polygons,
  raters,
  slicer,
  via,
  videos,
  write,
)
from tfds_builders.multirater_folder import manifest

# Importers of frames: each finds a `Source`, which `write` writes.
FORMATS = {
  "coco": coco,
  "cvat": cvat,
  "label_studio": label_studio,
  "labelme": labelme,
  "layers": layers,
  "masks": masks,
  "palette": palette,
  "polygons": polygons,
  "slicer": slicer,
  "via": via,
  "videos": videos,
}


class _Parser(argparse.ArgumentParser):
  """A parser whose mistakes are `UserError`."""

  def error(self, message):
    raise UserError(f"{message} (see --help).")


def _common():
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  common.add_argument("--licence", default="unknown", help="licence of the data")
  common.add_argument("--name", help="of the data set; by default that of --out")
  common.add_argument("--dry-run", action="store_true", help="print what would be written")
  return common


def _common_of_frames(common):
  frames = argparse.ArgumentParser(add_help=False, parents=[common])
  frames.add_argument(
    "--class",
    dest="rename",
    type=options.renamed,
    action="append",
    default=[],
    metavar="OLD=NEW",
    help="rename a class, merge several into one, or drop one (OLD=); may be repeated",
  )
  frames.add_argument("--thin", type=options.names, default=(), help="classes that are lines: a,b")
  frames.add_argument(
    "--soft-border",
    type=options.border,
    metavar="2mm|6px",
    help="outlines become a slope of this width, from 0 to 100 %%, with 50 %% on the outline",
  )
  frames.add_argument(
    "--table",
    type=pathlib.Path,
    help="CSV with the column video and any of patient, day, view, sf_ratio, readmitted_30d, split",
  )
  for what in ("patient", "day", "view"):
    frames.add_argument(
      f"--{what}-pattern",
      type=options.pattern,
      metavar="REGEX",
      help=f"its first group, or all of it, is the {what} in a clip's name with its folders",
    )
  frames.add_argument(
    "--crop",
    default="auto",
    metavar="auto|none|X,Y,WIDTH,HEIGHT",
    help="the part of each clip's frames that shows the scan: found, the whole, or this one",
  )
  frames.add_argument(
    "--deidentify",
    action=argparse.BooleanOptionalAction,
    help="new names, patients and days shifted by a key, no headers, nothing outside the scan area;"
    " by default if any clip is DICOM",
  )
  frames.add_argument(
    "--key", type=pathlib.Path, default=clips.KEY, help="file of the pseudonyms' key; made if new"
  )
  frames.add_argument(
    "--keep-pixels", action="store_true", help="de-identified clips keep what is outside the scan"
  )
  frames.add_argument(
    "--keep-names", action="store_true", help="de-identified clips and patients keep their names"
  )
  frames.add_argument(
    "--builder", choices=write.BUILDERS, help="what to write; by default what fits"
  )
  return frames


def _parser():
  common = _common()
  frames = _common_of_frames(common)
  several = argparse.ArgumentParser(add_help=False, parents=[common])
  several.add_argument("--class-name", required=True, help="what the masks show")
  parser = _Parser(prog="python -m tfds_builders.importers", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  commands = parser.add_subparsers(dest="command", required=True, metavar="FORMAT")
  for name, module in FORMATS.items():
    module.add_options(commands.add_parser(name, parents=[frames], help=module.HELP))

  command = commands.add_parser("folders", parents=[several], help="a folder of masks a rater")
  command.set_defaults(run=raters.import_folders)
  command.add_argument("--images", type=pathlib.Path, required=True, help="folder of pictures")
  command.add_argument("--raters", type=pathlib.Path, required=True, help="folder of the raters'")
  command.add_argument(
    "--mask-pattern",
    type=options.pattern,
    default=re.compile("(.+)"),
    help="regular expression: its group is the image's name in a mask's",
  )
  command.add_argument(
    "--polarity", choices=manifest.POLARITIES, default="white", help="what the object is"
  )
  command.add_argument(
    "--person-pattern",
    type=options.pattern,
    help="regular expression: its group is the person in a rater's name",
  )

  command = commands.add_parser("qubiq", parents=[several], help="a task of QUBIQ 2021")
  command.set_defaults(run=raters.import_qubiq)
  command.add_argument("--cases", type=pathlib.Path, required=True, help="folder of the cases")
  command.add_argument("--task", required=True, help="task01, ...")
  command.add_argument("--nifti-axes", choices=nifti.AXES, help="which axis of files is the first")
  command.add_argument("--soft", action="store_true", help="masks are confidences")
  command.add_argument(
    "--confidence-maximum",
    type=options.positive,
    help="what means object or 100 %% in masks, as 255",
  )
  return parser


def main(argv=None):
  """Runs the command line; returns the exit code: 0, or 2 after a user's mistake."""
  return command_line.run(
    lambda: _main(argv), interrupted="Interrupted; nothing was written. Repeat the command."
  )


def _main(argv):
  say_warnings_plainly()
  given = vars(_parser().parse_args(argv))
  command, run = given.pop("command"), given.pop("run", None)
  out, dry_run = given["out"], given["dry_run"]
  for name, folder in given.items():
    is_source = name != "out" and isinstance(folder, pathlib.Path) and folder.is_dir()
    if is_source and out.resolve().is_relative_to(folder.resolve()):
      raise UserError(
        f"--out={out} lies within {folder}, which is imported from: the next import would take it "
        "for more of the same; name a folder elsewhere."
      )
  try:
    if run is None:
      builder, notes = import_frames(command, **given)
    else:
      builder, notes = "multirater_folder", run(**given)
  except OSError as error:
    raise UserError(str(error)) from error
  print(f"{'Would write' if dry_run else 'Wrote'} {out}.", *notes, sep="\n")
  if not dry_run:
    print(
      f"Next: python -m lus_jax.check {out} --html FILE, then train with "
      f"--config.data.name={builder} --config.data.dir={out}"
    )


@notices.collected()
def import_frames(format_name, **given):
  """Finds what a format holds and writes it.

  Args:
    format_name: one of `FORMATS`.
    **given: the format's own options (see its `find`) and the fields of `write.Options`.

  Returns:
    The builder that reads the folder, and what a user should know, as lines.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  fields = [field.name for field in dataclasses.fields(write.Options)]
  common = {name: given.pop(name) for name in fields if name in given}
  renamed = list(common.get("rename", ()))
  if len(dict(renamed)) < len(renamed):
    raise UserError("--class names one class twice; say once what becomes of it.")
  common["rename"] = dict(renamed)
  return write.write(FORMATS[format_name].find(**given), write.Options(**common))


if __name__ == "__main__":
  sys.exit(main())
