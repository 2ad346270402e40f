"""LabelMe's JSON, a file a picture, drawn as LabelMe itself draws its shapes."""

import base64
import binascii
import dataclasses
import io
import math
import posixpath

import numpy as np
from PIL import Image, ImageDraw

from lus_jax.errors import UserError
from lus_jax.files import damage_is_a_user_error
from tfds_builders import tables
from tfds_builders.importers import formats, options, shapes
from tfds_builders.importers.drawn import Drawn

HELP = "LabelMe: a JSON file a picture"
EXPECTED = 'LabelMe\'s {"shapes": [...], "imagePath": "...", ...}'
# How many points each type has, at least and at most.
_POINTS = {
  "polygon": (3, math.inf),
  "rectangle": (2, 2),
  "oriented_rectangle": (4, 4),
  "circle": (2, 2),
  "line": (2, 2),
  "linestrip": (2, math.inf),
  "mask": (2, 2),
}
# What LabelMe itself draws lines with.
_LINE_WIDTH = 10
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "a JSON file, or a folder of them")
  options.add_frame_pattern(command)
  options.add_line_width(command)


def _outline(kind, points):
  """Kind and points of a `shapes.Shape` that reaches as far, to be checked."""
  if kind == "circle":
    (x, y), (edge_x, edge_y) = points
    radius = math.hypot(edge_x - x, edge_y - y)
    return "ellipse", ((x, y), (radius, radius))
  if kind in ("line", "linestrip"):
    return "polyline", points
  return ("rectangle" if kind == "rectangle" else "polygon"), points


def _fill(kind, outline, points, height, width):
  """Draws a shape as LabelMe does when it exports label images: [h, w] bool."""
  image = Image.new("1", (width, height))
  draw = ImageDraw.Draw(image)
  if kind == "circle":
    (x, y), (radius, _) = outline
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
  elif kind == "rectangle":
    (x1, y1), (x2, y2) = points
    draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), fill=1, outline=1)
  elif kind in ("line", "linestrip"):
    joint = "curve" if kind == "linestrip" else None
    draw.line(points, fill=1, width=_LINE_WIDTH, joint=joint)
  else:
    draw.polygon(points, fill=1, outline=1)
  return np.asarray(image)


@dataclasses.dataclass(frozen=True)
class _Maker:
  """Makes a `shapes.Shape` of what stands in a file.

  Attributes:
    name: of its class.
    kind: LabelMe's type.
    points: corners as (x, y).
    where: stands in front of messages.
    encoded: the PNG of a mask as it stands in the file.
    keeps_lines: whether lines are left to be drawn with the user's width.
    source: the `Source`, which counts what leaves its picture.
  """

  name: str
  kind: str
  points: tuple[tuple[float, float], ...]
  where: str
  encoded: str
  keeps_lines: bool
  source: object

  def __call__(self, media):
    """The shape, on a picture of the size of `media`."""
    if self.kind == "mask":
      pixels, at = self._mask(media.height, media.width)
    else:
      kind, outline = _outline(self.kind, self.points)
      shape = shapes.Shape(self.name, kind, outline, self.where, centres=True)
      if kind == "polyline" and self.keeps_lines:
        return shape
      if shapes.check(shape, media.height, media.width):
        self.source.cut.append(self.where)
      pixels = _fill(self.kind, outline, self.points, media.height, media.width)
      at = (0, 0)
    pixels = np.where(pixels, np.uint8(255), np.uint8(0))
    return shapes.Shape(self.name, "mask", where=self.where, pixels=pixels, at=at)

  def _mask(self, height, width):
    """The part of a mask within its picture, and its (top, left)."""
    mend = "draw the mask again in LabelMe"
    try:
      content = base64.b64decode(self.encoded, validate=True)
    except (binascii.Error, ValueError) as error:
      raise UserError(f"{self.where} has a mask that is no base64 ({error}); {mend}.") from error
    with damage_is_a_user_error(self.where, mend, _DAMAGE, "no PNG of a mask"):
      image = Image.open(io.BytesIO(content), formats=("PNG",))
    (left, top), (right, bottom) = (tuple(map(round, point)) for point in self.points)
    # Of whole numbers LabelMe takes as much as the box says, else all of the mask.
    is_whole = all(value == int(value) for point in self.points for value in point)
    w, h = (right - left + 1, bottom - top + 1) if is_whole else image.size
    # Before it is unpacked, as a broken one may be larger than the memory.
    if max(image.width, w) > width + 2 or max(image.height, h) > height + 2:
      raise UserError(
        f"{self.where} is a mask of {image.width} x {image.height} pixels on a picture of {width} "
        f"x {height}; is it of another picture?"
      )
    if image.width < w or image.height < h or min(w, h) < 1:
      raise UserError(
        f"{self.where} is a mask of {image.width} x {image.height} pixels in a box of {w} x {h}; "
        f"{mend}."
      )
    with damage_is_a_user_error(self.where, mend, _DAMAGE, "no PNG of a mask"):
      pixels = np.asarray(image)
    if pixels.ndim != 2:
      raise UserError(f"{self.where} has a mask of several channels; {mend}.")
    y1, x1 = max(top, 0), max(left, 0)
    pixels = pixels[:h, :w].astype(bool)[y1 - top : height - top, x1 - left : width - left]
    if not pixels.size:
      raise UserError(f"{self.where} lies outside of its picture of {width} x {height} pixels.")
    if pixels.shape != (h, w):
      self.source.cut.append(self.where)
    return pixels, (y1, x1)


def _add(drawn, place, annotator, path, entry, number, keeps_lines):
  """Adds one entry of a file; returns whether it is drawn."""
  where = f"{path}: shape {number}"
  if not isinstance(entry, dict):
    raise UserError(f"{where} is no object; mend it.")
  kind = entry.get("shape_type") or "polygon"
  if kind in ("point", "points"):
    drawn.source.skip("points", where)
    return False
  if kind not in _POINTS:
    raise UserError(f"{where} is of the type {tables.shown_value(kind)}, which is not known.")
  name = shapes.class_name(entry.get("label"), where)
  points = shapes.corners(entry.get("points"), where)
  least, most = _POINTS[kind]
  if not least <= len(points) <= most:
    number = f"{least}" if least == most else f"{least} or more"
    raise UserError(f"{where} is a {kind} of {len(points)} points, not {number}; mend it.")
  encoded = entry.get("mask") if kind == "mask" else ""
  if not isinstance(encoded, str):
    raise UserError(f"{where} is a mask without its pixels; draw it again in LabelMe.")
  if max(abs(value) for point in points for value in point) > 1e6:
    raise UserError(f"{where} has a corner that is nowhere near the picture; mend it.")
  maker = _Maker(name, kind, points, where, encoded, keeps_lines, drawn.source)
  drawn.add(*place, annotator, path, name, maker)
  return True


def _place(drawn, content, relative, path):
  """The clip and frame that a file is about."""
  text = content.get("imagePath")
  if not isinstance(text, str) or not text.strip():
    raise UserError(f"{path} has no 'imagePath', which names its picture; mend it.")
  # Relative to the JSON file, so that its folder tells pictures of one name apart.
  text = posixpath.normpath(relative + text.replace("\\", "/"))
  try:
    clip, frame = drawn.picture(text, str(path))
  except UserError as error:
    if content.get("imageData") and "is not in" in str(error):
      raise UserError(
        f"{error} Its 'imageData' holds the picture: labelme_export_json of LabelMe takes it out."
      ) from error
    raise
  header = drawn.header(clip)
  size = content.get("imageHeight"), content.get("imageWidth")
  if None not in size and size != (header.height, header.width):
    turned = ", turned as its header says" * (size == (header.width, header.height))
    raise UserError(
      f"{path} was drawn on {tables.shown_value(size[1])} x {tables.shown_value(size[0])} pixels, "
      f"but {header.path} has {header.width} x {header.height}{turned}; bring the picture that was "
      "drawn on."
    )
  return clip, frame


def find(*, videos, annotations, line_width=None, frame_pattern=None, folders_are_clips=False):
  """Reads what was drawn in LabelMe.

  Every file's picture is labelled. Shapes are filled as LabelMe fills them in its own label images:
  coordinates are those of pixel centres, and pixels on the outline are inside.

  Args:
    videos: folder of the pictures.
    annotations: (annotator, path) each: a JSON file or a folder of them.
    line_width: of lines, with its unit; None: LabelMe's own, 10 pixels.
    frame_pattern: see `source.place`.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  drawn = Drawn(videos, folders_are_clips, line_width, frame_pattern)
  for annotator, given in annotations:
    for path, relative in formats.json_files(given):
      content = formats.read_json(path, "labelme", EXPECTED)
      entries = content.get("shapes") if isinstance(content, dict) else None
      if not isinstance(entries, list):
        raise UserError(f"{path} is not {EXPECTED}; mend --annotations.")
      place = _place(drawn, content, relative, path)
      added = [
        _add(drawn, place, annotator, path, entry, number, line_width is not None)
        for number, entry in enumerate(entries, start=1)
      ]
      if not added:
        drawn.label(*place, annotator, path)
      has_lines = any(entry.get("shape_type") in ("line", "linestrip") for entry in entries)
      if has_lines and line_width is None:
        drawn.note(
          f"Lines are drawn {_LINE_WIDTH} pixels wide, as LabelMe does; say another width with "
          "--line-width, as 2mm or 6px."
        )
  return drawn.finish("--annotations")
