"""Writes a `lus_folder` from palette masks or from polygons.

    python -m tfds_builders.lus_folder.importers palette --images DIR --masks DIR --out DIR \\
        --classes nerve,vessel [--patient-pattern REGEX]
    python -m tfds_builders.lus_folder.importers polygons --frames DIR --polygons FILE.json \\
        --out DIR [--patient NAME]

Both take --licence and --thin. Images are copied as they are; confidences are 0 or 1.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import re
import shutil
import sys

import numpy as np
from PIL import Image, ImageDraw

from lus_jax.errors import UserError
from tfds_builders import media


@contextlib.contextmanager
def new_folder(out, *parts):
  """Yields a temporary folder that becomes `out` if nothing goes wrong, and vanishes if it does.

  Args:
    out: its path.
    *parts: names of the folders in it.
  """
  if out.exists():
    raise UserError(f"{out} exists already; name a new folder with --out, or remove it.")
  if not out.parent.is_dir():
    raise UserError(f"{out.parent} does not exist; make that folder first.")
  partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
  partial.mkdir()
  try:
    for part in parts:
      (partial / part).mkdir()
    yield partial
    partial.rename(out)
  except BaseException:
    shutil.rmtree(partial)
    raise


def _write_table(path, header, rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([header, *rows])


def _check_names(classes, thin):
  for name in classes:
    if not name.strip() or "/" in name or "\\" in name:
      raise UserError(f"Class {name!r} must be a file name without folders; rename it.")
  for name in thin:
    if name not in classes:
      raise UserError(f"--thin names {name!r}, which is no class ({', '.join(classes)}).")


def _write_tables(folder, *, name, licence, classes, thin, videos, labels, **more):
  dataset = {"name": name, "licence": licence, "classes": list(classes), "thin": list(thin)} | more
  (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
  _write_table(folder / "manifest.csv", ("video", "patient"), videos)
  _write_table(folder / "labels.csv", ("video", "frame", "masks"), labels)


def _save_mask(path, mask):
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def _pngs(folder, option):
  if not folder.is_dir():
    raise UserError(f"{folder} does not exist; mend {option}.")
  files = {
    path.stem: path
    for path in sorted(folder.iterdir())
    if path.suffix.lower() == ".png" and not path.name.startswith(".")
  }
  if not files:
    raise UserError(f"{folder} holds no PNG file; mend {option}.")
  return files


def _read_indices(path, n_classes):
  try:
    with Image.open(path) as image:
      if image.mode not in ("P", "L"):
        raise UserError(f"{path} has pixels of type {image.mode}; masks must be palette PNG.")
      indices = np.asarray(image)
  except (OSError, SyntaxError) as error:
    raise UserError(f"{path} is damaged or no PNG; save the mask again.") from error
  if indices.max() > n_classes:
    raise UserError(
      f"{path} has index {indices.max()}, but --classes names {n_classes} (index 1 is the first); "
      "name all of them."
    )
  return indices


def _patient(stem, pattern):
  if pattern is None:
    return stem
  found = re.search(pattern, stem)
  patient = found and found.group(1 if found.re.groups else 0)
  if not patient:
    raise UserError(f"--patient-pattern finds no patient in {stem!r}; mend it.")
  return patient


def import_palette(*, images, masks, out, classes, licence, thin=(), patient_pattern=None):
  """Writes a folder from images and palette masks of the same names.

  Args:
    images: a folder of PNG images; each becomes a video of one frame.
    masks: a folder of palette (or 8-bit grey) PNG masks: index 0 is background, i + 1 is class i.
    out: the folder to write.
    classes: K names.
    licence: of the data.
    thin: classes that are lines.
    patient_pattern: a regular expression that finds the patient (its first group, or all of it) in
      an image's name; without it, every image is its own patient.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  _check_names(classes, thin)
  image_of, mask_of = _pngs(images, "--images"), _pngs(masks, "--masks")
  for stem in sorted(image_of.keys() ^ mask_of.keys()):
    there, lacking = (image_of, masks) if stem in image_of else (mask_of, images)
    raise UserError(f"{there[stem]} has no partner in {lacking}; add it, or take both away.")
  videos, labels = [], []
  with new_folder(out, "videos", "masks") as folder:
    for stem, path in image_of.items():
      indices = _read_indices(mask_of[stem], len(classes))
      header = media.probe(path)
      if indices.shape != (header.height, header.width):
        raise UserError(
          f"{mask_of[stem]} is {indices.shape[1]} x {indices.shape[0]} and its image "
          f"{header.width} x {header.height} pixels; save the mask at the image's size."
        )
      shutil.copyfile(path, folder / "videos" / path.name)
      for index, name in enumerate(classes, start=1):
        _save_mask(folder / "masks" / stem / f"{name}.png", indices == index)
      videos.append((path.name, _patient(stem, patient_pattern)))
      labels.append((path.name, 0, stem))
    _write_tables(
      folder,
      name=out.name,
      licence=licence,
      classes=classes,
      thin=thin,
      videos=videos,
      labels=labels,
      **({"patients": "unknown"} if patient_pattern is None else {}),
    )
  n_patients = len({patient for _, patient in videos})
  notes = [
    f"{len(videos)} images, {n_patients} patients, classes {', '.join(classes)}.",
    "Binary masks: all members above threshold 0 get the same labels, so they differ in the weight "
    "of the background only.",
  ]
  if patient_pattern is None:
    notes.append(
      "Every image counts as a patient of its own: where one person gave several images, the test "
      "is not independent of the training; --patient-pattern mends that."
    )
  return notes


def _read_polygons(path, files):
  if not path.is_file():
    raise UserError(f"{path} does not exist; mend --polygons.")
  try:
    frames = json.loads(path.read_text("utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not JSON: {error}.") from error
  index_of = {file.stem: i for i, file in enumerate(files)}
  polygons = []
  try:
    for stem, entries in frames.items():
      if stem not in index_of:
        raise UserError(f"{path}: frame {stem!r} is not in the folder of frames; mend the name.")
      by_class = {}
      for entry in entries:
        points = [(float(x), float(y)) for x, y in entry["polygon_xy"]]
        if len(points) < 3:
          raise UserError(f"{path}: a polygon of frame {stem!r} has fewer than 3 points; mend it.")
        by_class.setdefault(str(entry["class"]), []).append(points)
      polygons.append((index_of[stem], stem, by_class))
  except (AttributeError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} does not look like {{"000": [{{"class": ..., "polygon_xy": [[x, y], ...]}}]}}.'
    ) from error
  if not any(by_class for _, _, by_class in polygons):
    raise UserError(f"{path} holds no polygon; mend --polygons.")
  return sorted(polygons)


def import_polygons(*, frames, polygons, out, licence, thin=(), patient="patient_1"):
  """Writes a folder from the numbered PNG frames of one video and polygons drawn on them.

  Args:
    frames: a folder of numbered PNGs.
    polygons: a JSON file, {"NNN": [{"class": c, "polygon_xy": [[x, y], ...]}]}, where NNN is the
      file name of a frame without .png; pixel centres have whole coordinates.
    out: the folder to write.
    licence: of the data.
    thin: classes that are lines.
    patient: the patient's name.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  if not frames.is_dir():
    raise UserError(f"{frames} does not exist; mend --frames.")
  header = media.probe(frames)
  labelled = _read_polygons(polygons, header.files)
  classes = sorted({name for _, _, by_class in labelled for name in by_class})
  _check_names(classes, thin)
  video = frames.resolve().name
  with new_folder(out, "videos", "masks") as folder:
    (folder / "videos" / video).mkdir()
    for path in header.files:
      shutil.copyfile(path, folder / "videos" / video / path.name)
    for _, stem, by_class in labelled:
      (folder / "masks" / stem).mkdir()
      for name, outlines in by_class.items():
        mask = Image.new("1", (header.width, header.height))
        for outline in outlines:
          ImageDraw.Draw(mask).polygon(outline, fill=1)
        _save_mask(folder / "masks" / stem / f"{name}.png", np.asarray(mask))
    _write_tables(
      folder,
      name=out.name,
      licence=licence,
      classes=classes,
      thin=thin,
      videos=[(video, patient)],
      labels=[(video, frame, stem) for frame, stem, _ in labelled],
    )
  return [
    f"One video of {header.n_frames} frames, {len(labelled)} labelled, classes "
    f"{', '.join(classes)}; every confidence is 1.",
    "A class without a polygon on a labelled frame counts as absent there; if it merely was not "
    'drawn, write "missing_class": "unlabelled" in dataset.json.',
    "One patient cannot be split by patient: use --config.data.split_unit=frame, which is not an "
    "independent test.",
  ]


class _Parser(argparse.ArgumentParser):
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


def _parser():
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  common.add_argument("--licence", default="unknown", help="licence of the data")
  common.add_argument("--thin", type=_names, default=(), help="classes that are lines: a,b")
  parser = _Parser(prog="python -m tfds_builders.lus_folder.importers", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  commands = parser.add_subparsers(dest="command", required=True)
  palette = commands.add_parser("palette", parents=[common], help="palette PNG masks")
  palette.add_argument("--images", type=pathlib.Path, required=True, help="folder of PNG images")
  palette.add_argument("--masks", type=pathlib.Path, required=True, help="folder of PNG masks")
  palette.add_argument("--classes", type=_names, required=True, help="names of index 1, 2, ...")
  palette.add_argument(
    "--patient-pattern", type=_pattern, help="regular expression: patient in the image's name"
  )
  palette.set_defaults(run=import_palette)
  polygons = commands.add_parser("polygons", parents=[common], help="polygons on one video")
  polygons.add_argument("--frames", type=pathlib.Path, required=True, help="folder of PNG frames")
  polygons.add_argument("--polygons", type=pathlib.Path, required=True, help="JSON file")
  polygons.add_argument("--patient", default="patient_1", help="the patient's name")
  polygons.set_defaults(run=import_polygons)
  return parser


def main(argv=None):
  """Runs the command line; returns the exit code: 0, or 2 after a user's mistake."""
  try:
    options = vars(_parser().parse_args(argv))
    run, _ = options.pop("run"), options.pop("command")
    notes = run(**options)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"Wrote {options['out']}.", *notes, sep="\n")
  print(f"Next: --config.data.name=lus_folder --config.data.dir={options['out']}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
