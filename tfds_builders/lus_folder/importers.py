"""Writes a `lus_folder` from palette masks or from polygons.

    python -m tfds_builders.lus_folder.importers palette --images DIR --masks DIR --out DIR \\
        --classes nerve,vessel [--patient-pattern REGEX] [--ignore 255]
    python -m tfds_builders.lus_folder.importers polygons --frames DIR --polygons FILE.json \\
        --out DIR [--patient NAME]

Both take --licence and --thin. Images are copied as they are; confidences are 0 or 1.

FILE.json has an entry a labelled frame, by the name of its file without suffix:

    {"003": [{"class": "b_line", "polygon_xy": [[10, 12], [20, 12], [20, 60]]}], "004": []}

x counts pixels from the left and y from the top; pixel centres have whole coordinates. A frame with
an empty list shows nothing; one without an entry is not labelled.
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

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables

EXPECTED = '{"NNN": [{"class": "b_line", "polygon_xy": [[x, y], ...]}, ...], ...}'
# What other tools write, by keys of theirs.
_OTHER_FORMATS = {
  "LabelMe": ("shapes", "imagePath"),
  "COCO": ("annotations", "images"),
  "VGG Image Annotator": ("_via_img_metadata",),
  "Datumaro": ("items", "categories"),
  "Supervisely": ("objects", "size"),
  "GeoJSON": ("features", "type"),
}


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


def check_names(classes, thin):
  """Refuses class names that no folder can hold, and thin ones that are no class (`UserError`)."""
  tables.check_classes(classes, "The importer", "Class")
  for name in thin:
    if name not in classes:
      raise UserError(f"--thin names {name!r}, which is no class ({', '.join(classes)}).")


def _write_tables(folder, *, name, licence, classes, thin, videos, labels, **more):
  dataset = {"name": name, "licence": licence, "classes": list(classes), "thin": list(thin)} | more
  (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n", encoding="utf-8")
  _write_table(folder / "manifest.csv", ("video", "patient"), videos)
  _write_table(folder / "labels.csv", ("video", "frame", "masks"), labels)


def save_mask(path, mask):
  """Writes where a mask [h, w] is not 0 as 255, making its folder."""
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def find_pictures(folder, option):
  """Finds the pictures in a folder.

  Args:
    folder: a path.
    option: which named it, for messages.

  Returns:
    A dict from name without suffix to path, and notes of what else is there.

  Raises:
    UserError: there are none, two of one name, or one of a format that is not read.
  """
  if not folder.is_dir():
    raise UserError(f"{folder} does not exist; mend {option}.")
  files, others = {}, []
  for path in tables.visible(folder):
    if path.suffix.lower() in readers.OTHER_PICTURES:
      raise UserError(f"{path} is of a format that is not read here; save it as PNG.")
    if path.suffix.lower() not in readers.PICTURES or not path.is_file():
      others.append(path.name)
      continue
    name = tables.normal(path.stem)
    if name in files:
      raise UserError(f"{path} and {files[name].name} have one name; remove one of them.")
    files[name] = path
  if not files:
    kinds = ", ".join(readers.PICTURES)
    raise UserError(f"{folder} holds no picture ({kinds}); mend {option}.")
  return files, [f"{folder}: {tables.note_of(others, 'no pictures')}"] if others else []


class _Indices:
  """Reads masks of indices, of which those of one set are alike."""

  def __init__(self, classes, ignore):
    self._classes, self._ignore = classes, ignore
    self._ones = self.full = None
    # Indices that occur in any mask.
    self.seen = set()

  def read(self, path):
    """Returns a mask's indices [h, w], 1 to K, and where its pixels do not count [h, w]."""
    indices = readers.read_indices(path)
    ignored = np.zeros(indices.shape, bool) if self._ignore is None else indices == self._ignore
    indices = np.where(ignored, 0, indices)
    values = set(np.unique(indices).tolist()) - {0}
    if len(self._classes) == 1 and values == {255}:
      self.full = self.full or path
      indices = np.minimum(indices, 1)
    elif values:
      self._ones = self._ones or path
      if max(values) > len(self._classes):
        raise UserError(
          f"{path} has index {max(values)}, but --classes names {len(self._classes)} (index 1 is "
          f"the first); name all of them, or say --ignore {max(values)} if its pixels are not to "
          "count."
        )
    self.seen |= values if self.full is None else {1}
    if self.full and self._ones:
      raise UserError(
        f"{self.full} holds 0 and 255 and {self._ones} indices from 1; save them alike."
      )
    return indices, ignored


def _patient(stem, pattern):
  if pattern is None:
    return stem
  found = re.search(pattern, stem)
  patient = found and found.group(1 if found.re.groups else 0)
  if not patient:
    raise UserError(f"--patient-pattern finds no patient in {stem!r}; mend it.")
  return patient


@notices.collected()
def import_palette(
  *, images, masks, out, classes, licence, thin=(), patient_pattern=None, ignore=None
):
  """Writes a folder from images and palette masks of the same names.

  Args:
    images: a folder of pictures; each becomes a video of one frame.
    masks: a folder of palette (or 8-bit grey) masks: index 0 is background, i + 1 is class i. With
      one class, masks of 0 and 255 are understood too.
    out: the folder to write.
    classes: K names.
    licence: of the data.
    thin: classes that are lines.
    patient_pattern: a regular expression that finds the patient (its first group, or all of it) in
      an image's name; without it, every image is its own patient.
    ignore: the index of pixels that count nowhere; None: there is none.

  Returns:
    What a user should know, as lines of text.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  check_names(classes, thin)
  if ignore is not None and not len(classes) < ignore <= 255:
    raise UserError(
      f"--ignore={ignore} must be an index above those of --classes ({len(classes)}), at most 255."
    )
  image_of, image_notes = find_pictures(images, "--images")
  mask_of, mask_notes = find_pictures(masks, "--masks")
  for stem in sorted(image_of.keys() ^ mask_of.keys()):
    there, lacking = (image_of, masks) if stem in image_of else (mask_of, images)
    raise UserError(f"{there[stem]} has no partner in {lacking}; add it, or take both away.")
  tables.refuse_same_files(image_of.values())
  videos, labels, reader, shares, is_ignored = [], [], _Indices(classes, ignore), [], False
  with new_folder(out, "videos", "masks") as folder:
    for stem, path in image_of.items():
      header = readers.probe(path)
      indices, ignored = reader.read(mask_of[stem])
      readers.check_mask_size(mask_of[stem], indices.shape, header, of="image")
      name = stem + path.suffix
      shutil.copyfile(path, folder / "videos" / name)
      for index, class_name in enumerate(classes, start=1):
        save_mask(folder / "masks" / stem / f"{class_name}.png", indices == index)
      if ignored.any():
        is_ignored = True
        save_mask(folder / "masks" / stem / f"{tables.IGNORE}.png", ignored)
      shares.append((indices > 0).mean())
      videos.append((name, _patient(stem, patient_pattern)))
      labels.append((name, 0, stem))
    if is_ignored and not reader.seen:
      raise UserError(
        f"{masks} holds masks of 0 and {ignore} only, so that --ignore={ignore} leaves nothing of "
        f"{', '.join(classes)}; if {ignore} is the object, leave --ignore out."
      )
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
  patients = [patient for _, patient in videos]
  if patient_pattern is not None:
    tables.warn_of_alike(
      patients, images, "patients", "one person may stand on both sides of the split"
    )
  notes = [
    f"{len(videos)} images, {len(set(patients))} patients, classes {', '.join(classes)}.",
    *image_notes,
    *mask_notes,
    "Binary masks: all members above threshold 0 get the same labels, so they differ in the weight "
    "of the background only.",
  ]
  absent = [name for index, name in enumerate(classes, start=1) if index not in reader.seen]
  if absent:
    notes.append(f"No mask shows anything of the class {', '.join(absent)}.")
  if reader.full:
    notes.append(f"Masks hold 0 and 255: 255 is taken to be {classes[0]}.")
  if min(shares) > 0.5:
    notes.append(
      "In every mask more than half of the pixels are of a class: is its background the object? "
      "Index 0 must be the background."
    )
  if patient_pattern is None:
    notes.append(
      "Every image counts as a patient of its own: where one person gave several images, the test "
      "is not independent of the training; --patient-pattern mends that."
    )
  return notes


def _points(where, entry, width, height):
  """The corners of one polygon, and whether it leaves the picture."""
  points = entry["polygon_xy"]
  for point in points:
    if not isinstance(point, list) or [type(x) in (int, float) for x in point] != [True, True]:
      raise UserError(f"{where} has a corner that is no pair of numbers; mend it.")
  if len(points) < 3:
    raise UserError(f"{where} has fewer than 3 points; mend it.")
  # Python's whole numbers may be too large for a float.
  far = 1e6 + max(width, height)
  if any(abs(value) > far for point in points for value in point):
    raise UserError(f"{where} has a corner that is nowhere near the picture; mend it.")
  points = [(float(x), float(y)) for x, y in points]
  xs, ys = zip(*points, strict=True)
  if min(*xs, *ys) >= 0 and max(*xs, *ys) <= 1 and max(width, height) > 2:
    raise UserError(
      f"{where} has coordinates from 0 to 1 only: shares of the picture? Multiply x by {width} and "
      f"y by {height}, as this importer counts pixels."
    )
  if max(xs) < -0.5 or max(ys) < -0.5 or min(xs) > width - 0.5 or min(ys) > height - 0.5:
    raise UserError(
      f"{where} lies outside of its picture of {width} x {height} pixels; is it of another picture "
      "or size?"
    )
  if np.linalg.matrix_rank(np.subtract(points, points[0])) < 2:
    raise UserError(f"{where} has no area: all of its corners lie on one line; mend it.")
  leaves = min(*xs, *ys) < -1 or max(xs) > width or max(ys) > height
  if max(*map(abs, xs)) > 2 * width or max(*map(abs, ys)) > 2 * height:
    raise UserError(
      f"{where} leaves its picture of {width} x {height} pixels by far; is it of another size?"
    )
  return points, leaves


def _class_name(where, entry):
  name = entry["class"]
  if type(name) not in (int, str):
    raise UserError(f"{where} has the class {tables.shown_value(name)}, which is no name; mend it.")
  return str(name)


def _read_polygons(path, header):
  """The labelled frames: place, file's name and corners by class; and how many polygons leave."""
  text = tables.read_text(path, "mend --polygons")
  if text.lstrip().startswith("<"):
    raise UserError(f"{path} is XML (CVAT, Pascal VOC?); this importer reads JSON, {EXPECTED}.")
  frames = tables.parse_json(path, text)
  if isinstance(frames, dict):
    for tool, keys in _OTHER_FORMATS.items():
      if all(key in frames for key in keys):
        raise UserError(
          f"{path} looks like {tool} ({' and '.join(map(repr, keys))}); this importer reads "
          f"{EXPECTED}, with an entry a frame by its file's name; convert it."
        )
  index_of = {tables.normal(file.stem): i for i, file in enumerate(header.files)}
  polygons, n_leaving = [], 0
  strange = UserError(f"{path} does not look like {EXPECTED}; mend it.")
  if not isinstance(frames, dict):
    raise strange
  for stem, entries in frames.items():
    if stem not in index_of:
      raise UserError(
        f"{path}: frame {tables.shown(stem)} is not in the folder of frames; mend the name "
        f"({EXPECTED}, where NNN is a frame's file name without suffix)."
      )
    if not isinstance(entries, list):
      raise strange
    by_class = {}
    for number, entry in enumerate(entries, start=1):
      if not isinstance(entry, dict) or "class" not in entry:
        raise strange
      if not isinstance(entry.get("polygon_xy"), list):
        raise strange
      where = f"{path}: polygon {number} of frame {stem!r}"
      points, leaves = _points(where, entry, header.width, header.height)
      n_leaving += leaves
      by_class.setdefault(_class_name(where, entry), []).append(points)
    polygons.append((index_of[stem], stem, by_class))
  if not any(by_class for _, _, by_class in polygons):
    raise UserError(f"{path} holds no polygon; mend --polygons.")
  return sorted(polygons), n_leaving


def import_polygons(*, frames, polygons, out, licence, thin=(), patient="patient_1"):
  """Writes a folder from the numbered frames of one video and polygons drawn on them.

  Args:
    frames: a folder of numbered pictures.
    polygons: a JSON file (see the module).
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
    raise UserError(f"{frames} does not exist or is no folder; mend --frames.")
  if not patient.strip() or tables.has_controls(patient):
    raise UserError(f"--patient {tables.shown(patient)} is no name; name the patient.")
  header = readers.probe(frames)
  labelled, n_leaving = _read_polygons(polygons, header)
  classes = sorted({name for _, _, by_class in labelled for name in by_class})
  check_names(classes, thin)
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
        save_mask(folder / "masks" / stem / f"{name}.png", np.asarray(mask))
    _write_tables(
      folder,
      name=out.name,
      licence=licence,
      classes=classes,
      thin=thin,
      videos=[(video, patient)],
      labels=[(video, frame, stem) for frame, stem, _ in labelled],
      # labels.csv holds places, whatever the files' numbers.
      frame_numbers="from_0",
    )
  leaving = f" {n_leaving} polygon(s) leave the picture and were cut at its border."
  return [
    f"One video of {header.n_frames} frames, {len(labelled)} labelled, classes "
    f"{', '.join(classes)}; every confidence is 1.{leaving * (n_leaving > 0)}",
    "A class without a polygon on a labelled frame counts as absent there; if it merely was not "
    'drawn, write "missing_class": "unlabelled" in dataset.json.',
    "One patient cannot be split by patient: use --config.data.split_unit=frame, which is not an "
    "independent test.",
  ]


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are `UserError`."""

  def error(self, message):
    """Raises a `UserError`."""
    raise UserError(f"{message} (see --help).")


def _names(text):
  names = tuple(name.strip() for name in text.split(",") if name.strip())
  if not names or len(set(names)) < len(names):
    raise argparse.ArgumentTypeError("needs at least one name, each once")
  return names


def pattern(text):
  """A regular expression, for `argparse`."""
  try:
    return re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error


def _parser():
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  common.add_argument("--licence", default="unknown", help="licence of the data")
  common.add_argument("--thin", type=_names, default=(), help="classes that are lines: a,b")
  parser = Parser(prog="python -m tfds_builders.lus_folder.importers", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  commands = parser.add_subparsers(dest="command", required=True)
  palette = commands.add_parser("palette", parents=[common], help="palette masks")
  palette.add_argument("--images", type=pathlib.Path, required=True, help="folder of pictures")
  palette.add_argument("--masks", type=pathlib.Path, required=True, help="folder of masks")
  palette.add_argument("--classes", type=_names, required=True, help="names of index 1, 2, ...")
  palette.add_argument(
    "--patient-pattern", type=pattern, help="regular expression: patient in the image's name"
  )
  palette.add_argument("--ignore", type=int, help="index of pixels that count nowhere, as 255")
  palette.set_defaults(run=import_palette)
  polygons = commands.add_parser("polygons", parents=[common], help="polygons on one video")
  polygons.add_argument("--frames", type=pathlib.Path, required=True, help="folder of frames")
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
