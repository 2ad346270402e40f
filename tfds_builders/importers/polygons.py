"""Writes a `lus_folder` from polygons."""

import shutil

import numpy as np
from PIL import Image, ImageDraw

from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables
from tfds_builders.importers import folder as folder_lib

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
      # The first is its own; another may be missing in a version of it.
      if keys[0] in frames:
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
    polygons: a JSON file (see `tfds_builders.importers.__main__`).
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
  folder_lib.check_names(classes, thin)
  video = frames.resolve().name
  with folder_lib.new_folder(out, "videos", "masks") as folder:
    (folder / "videos" / video).mkdir()
    for path in header.files:
      shutil.copyfile(path, folder / "videos" / video / path.name)
    for _, stem, by_class in labelled:
      (folder / "masks" / stem).mkdir()
      for name, outlines in by_class.items():
        mask = Image.new("1", (header.width, header.height))
        for outline in outlines:
          ImageDraw.Draw(mask).polygon(outline, fill=1)
        folder_lib.save_mask(folder / "masks" / stem / f"{name}.png", np.asarray(mask))
    folder_lib.write_tables(
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
