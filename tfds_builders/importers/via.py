"""VGG Image Annotator 2: projects, and annotations exported as JSON or CSV."""

import json
import math

from lus_jax.errors import UserError
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import formats, options, shapes
from tfds_builders.importers.drawn import Drawn

HELP = "VGG Image Annotator 2: project JSON, annotations as JSON or CSV"
EXPECTED = "a project or export of VGG Image Annotator 2"
_COLUMNS = ("filename", "region_count", "region_id", "region_shape_attributes", "region_attributes")
_MEND = "export it from VGG Image Annotator again"


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "a project's JSON, or annotations exported as JSON or CSV")
  options.add_frame_pattern(command)
  options.add_line_width(command)
  command.add_argument(
    "--attribute",
    metavar="NAME",
    help="attribute of regions that holds their class; by default the only one",
  )
  command.add_argument(
    "--all-frames", action="store_true", help="a picture without a region shows nothing"
  )


def _object(value, where):
  if not isinstance(value, dict):
    raise UserError(f"{where} is no object; {_MEND}.")
  return value


def _images(path):
  """Yields each picture: file name, where it stands, regions as (number, shape, attributes)."""
  if path.suffix.lower() == ".csv":
    yield from _images_of_table(path)
    return
  content = formats.read_json(path, "via", EXPECTED)
  if isinstance(content, dict) and "_via_img_metadata" in content:
    content = content["_via_img_metadata"]
  elif isinstance(content, dict) and {"metadata", "file", "view"} <= content.keys():
    raise UserError(f"{path} is of VGG Image Annotator 3, which is not read; draw in version 2.")
  content = _object(content, str(path))
  for key, image in content.items():
    where = f"{path}: {tables.shown(key)}"
    regions = _object(image, where).get("regions", [])
    if isinstance(regions, dict):  # of version 1
      regions = list(regions.values())
    if not isinstance(regions, list) or not isinstance(image.get("filename"), str):
      raise UserError(f"{where} has no filename or no list of regions; {_MEND}.")
    found = []
    for i, region in enumerate(regions, start=1):
      region = _object(region, f"{where}: region {i}")
      found.append((i, region.get("shape_attributes"), region.get("region_attributes", {})))
    yield image["filename"], where, found


def _images_of_table(path):
  text = tables.read_text(path, "mend --annotations")
  # Version 1 wrote a comment's sign before its header.
  header, lines, _ = tables.read_lines(path, text.removeprefix("#"), _COLUMNS)
  if not set(_COLUMNS) <= set(header):
    raise UserError(f"{path} has not the columns {', '.join(_COLUMNS)} of VGG Image Annotator.")
  images = {}
  for number, line in lines:
    if not any(line):
      continue
    row = tables.Row(path, number, dict(zip(header, line, strict=False)))
    regions = images.setdefault(row.cells["filename"].strip(), [])
    if len(line) != len(header):
      raise row.error("it has not as many cells as there are columns.")
    if row.cells["region_shape_attributes"].strip() in ("", "{}"):
      continue
    cells = []
    for column in ("region_shape_attributes", "region_attributes"):
      try:
        cells.append(json.loads(row.cells[column] or "{}"))
      except (ValueError, RecursionError) as error:
        raise row.error(f"{column} is no JSON; {_MEND}.") from error
    regions.append((number, *cells))
  for file, regions in images.items():
    yield file, f"{path}: {tables.shown(file)}", regions


def _classes(attributes, name, where):
  """The classes of a region: one, or those that are ticked."""
  value = attributes.get(name)
  if isinstance(value, dict):
    found = [key for key, is_ticked in value.items() if is_ticked]
  else:
    found = [] if value in (None, "") else [value]
  if not found:
    raise UserError(f"{where} has no {name!r}; say its class there, or another --attribute.")
  return [shapes.class_name(one, where) for one in found]


def _number(attributes, key, where):
  value = attributes.get(key)
  if not tables.is_number(value) or value != value:
    raise UserError(f"{where} has no number {key!r}; {_MEND}.")
  return float(value)


def _shape(attributes, where):
  """Kind, points and angle of a `shapes.Shape`; None: it is left out."""
  kind = attributes.get("name")
  if kind == "point":
    return None
  if kind in ("polygon", "polyline"):
    xs, ys = (attributes.get(f"all_points_{axis}") for axis in "xy")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
      raise UserError(f"{where} has not as many x as y; {_MEND}.")
    return kind, shapes.corners(list(zip(xs, ys, strict=True)), where), 0.0

  def numbers(*keys):
    return [_number(attributes, key, where) for key in keys]

  if kind == "rect":
    x, y, width, height = numbers("x", "y", "width", "height")
    return "rectangle", ((x, y), (x + width, y + height)), 0.0
  if kind == "circle":
    x, y, radius = numbers("cx", "cy", "r")
    return "ellipse", ((x, y), (radius, radius)), 0.0
  if kind == "ellipse":
    x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
    angle = math.degrees(_number(attributes, "theta", where)) if "theta" in attributes else 0.0
    return "ellipse", ((x, y), (rx, ry)), angle
  raise UserError(f"{where} is of the type {tables.shown_value(kind)}, which is not known.")


def _attribute(images, path):
  """The attribute that holds the class: the only one."""
  names = dict.fromkeys(
    name
    for *_, regions in images
    for *_, attributes in regions
    if isinstance(attributes, dict)
    for name in attributes
  )
  if len(names) == 1:
    return next(iter(names))
  if not names:
    raise UserError(f"{path} holds no region with an attribute that says its class; add one.")
  raise UserError(
    f"{path} has several attributes of regions, {tables.shown_list(names, 5)}; say which holds the "
    "class, with --attribute."
  )


def find(
  *,
  videos,
  annotations,
  line_width=None,
  attribute=None,
  all_frames=False,
  frame_pattern=None,
  folders_are_clips=False,
):
  """Reads what was drawn in VGG Image Annotator 2.

  Labelled pictures are those with a region: the others of a project may not have been looked at.

  Args:
    videos: folder of the pictures.
    annotations: (annotator, path) each: a project, or an export as JSON or CSV.
    line_width: of polylines, with its unit.
    attribute: of regions, which holds the class; None: the only one.
    all_frames: whether pictures without a region are labelled too.
    frame_pattern: see `source.place`.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  drawn = Drawn(videos, folders_are_clips, line_width, frame_pattern)
  for annotator, path in annotations:
    images = list(_images(path))
    name = None
    for file, where, regions in images:
      if not regions and not all_frames:
        drawn.source.skip("pictures without a region", file)
        continue
      place = drawn.picture(file, where)
      if not regions:
        drawn.label(*place, annotator, where)
      for number, shape, attributes in regions:
        at = f"{where}: region {number}"
        found = _shape(_object(shape, at), at)
        if found is None:
          drawn.source.skip("points", at)
          continue
        name = name or attribute or _attribute(images, path)
        kind, points, angle = found
        for label in _classes(_object(attributes, at), name, at):
          made = shapes.Shape(label, kind, points, at, angle=angle)
          drawn.add(*place, annotator, where, label, made, is_line=kind == "polyline")
  if "pictures without a region" in drawn.source.skipped:
    n = len(drawn.source.skipped["pictures without a region"])
    drawn.note(
      f"{plural(n, 'picture')} without a region may not have been looked at; if they show nothing, "
      "say --all-frames."
    )
  return drawn.finish("--annotations")
