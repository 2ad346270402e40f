"""Polygons of one clip, in a small JSON of our own."""

import pathlib

from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables
from tfds_builders.importers import formats, shapes
from tfds_builders.importers.source import Clip, Label, Source

HELP = "polygons on one video, in JSON of our own"
EXPECTED = '{"NNN": [{"class": "b_line", "polygon_xy": [[x, y], ...]}, ...], ...}'


def add_options(command):
  """Adds its options to a parser."""
  command.add_argument("--frames", type=pathlib.Path, required=True, help="folder of frames")
  command.add_argument("--polygons", type=pathlib.Path, required=True, help="JSON file")
  command.add_argument("--patient", default="", help="the patient's name; by default unknown")


def _read(path, header):
  """The shapes by place of the frame in its clip."""
  frames = formats.read_json(path, "polygons", EXPECTED, "--polygons")
  index_of = {tables.normal(file.stem): i for i, file in enumerate(header.files)}
  strange = UserError(f"{path} does not look like {EXPECTED}; mend it.")
  if not isinstance(frames, dict):
    raise strange
  found = {}
  for stem, entries in frames.items():
    if stem not in index_of:
      raise UserError(
        f"{path}: frame {tables.shown(stem)} is not in the folder of frames; mend the name "
        f"({EXPECTED}, where NNN is a frame's file name without suffix)."
      )
    if not isinstance(entries, list):
      raise strange
    drawn = found.setdefault(index_of[stem], [])
    for number, entry in enumerate(entries, start=1):
      if not isinstance(entry, dict) or "class" not in entry:
        raise strange
      if not isinstance(entry.get("polygon_xy"), list):
        raise strange
      where = f"{path}: polygon {number} of frame {stem!r}"
      points = shapes.corners(entry["polygon_xy"], where)
      name = shapes.class_name(entry["class"], where)
      shape = shapes.Shape(name, "polygon", points, where, centres=True)
      shapes.check(shape, header.height, header.width)
      drawn.append(shape)
  if not any(found.values()):
    raise UserError(f"{path} holds no polygon; mend --polygons.")
  return found


def find(*, frames, polygons, patient=""):
  """Reads the numbered frames of one video and polygons drawn on them.

  Args:
    frames: a folder of numbered pictures.
    polygons: a JSON file (see `tfds_builders.importers.__main__`).
    patient: the patient's name; '' is unknown.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  if not frames.is_dir():
    raise UserError(f"{frames} does not exist or is no folder; mend --frames.")
  if (patient and not patient.strip()) or tables.has_controls(patient):
    raise UserError(f"--patient {tables.shown(patient)} is no name; name the patient.")
  header = readers.probe(frames)
  found = _read(polygons, header)
  name = tables.normal(frames.resolve().name)
  source = Source(
    clips={name: Clip(name, frames, patient)},
    labels=[],
    classes=sorted({shape.name for drawn in found.values() for shape in drawn}),
    media={name: header},
  )
  source.labels = [
    Label(name, frame, lambda media, drawn=drawn: shapes.draw(drawn, media, source))
    for frame, drawn in found.items()
  ]
  return source
