"""From the outlines and run lengths of annotation tools to masks.

A `Shape` is checked when it is made, and drawn when its mask is wanted. Most tools measure from the
corner of the picture, so that the centre of the first pixel is (.5, .5); there polygons are filled
as COCO's own tools and CVAT fill them. LabelMe and a few count pixel centres.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from lus_jax.errors import UserError
from tfds_builders import tables

KINDS = ("polygon", "polyline", "rectangle", "ellipse", "mask")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One thing drawn in a picture.

  Attributes:
    name: of its class.
    kind: one of `KINDS`.
    points: corners as (x, y); of a rectangle two opposite ones; of an ellipse its centre and
      (radius x, radius y).
    where: stands in front of messages: file, picture and number.
    width: of a polyline, in pixels, or in the unit of `spacing`.
    spacing: of a polyline: (vertical, horizontal) distance of pixels.
    angle: by which a rectangle or ellipse is turned about its centre, in degrees clockwise.
    centres: whether the first pixel's centre is (0, 0), not (.5, .5).
    holes: of a polygon: corners of each.
    pixels: of a mask: uint8 [h', w'], 255 = 100 %.
    at: of a mask: (top, left), where it lies in the picture.
    confidence: of its annotator in it, from 0 to 1.
  """

  name: str
  kind: str
  points: tuple[tuple[float, float], ...] = ()
  where: str = ""
  width: float = 1.0
  spacing: tuple[float, float] = (1.0, 1.0)
  angle: float = 0.0
  centres: bool = False
  holes: tuple[tuple[tuple[float, float], ...], ...] = ()
  pixels: np.ndarray | None = None
  at: tuple[int, int] = (0, 0)
  confidence: float = 1.0


def corners(values, where):
  """Checks the corners of one outline.

  Args:
    values: [[x, y], ...] as JSON has it.
    where: stands in front of messages.

  Returns:
    A tuple of (x, y).

  Raises:
    UserError: there are none, or one is no pair of finite numbers.
  """
  if not isinstance(values, list | tuple) or not len(values):
    raise UserError(f"{where} has no corners; mend it.")
  for point in values:
    if not isinstance(point, list | tuple) or len(point) != 2 or not all(map(_is_finite, point)):
      raise UserError(f"{where} has a corner that is no pair of numbers; mend it.")
  # Python's whole numbers may be too large for a float.
  return tuple((_float(x), _float(y)) for x, y in values)


def pairs(values, where):
  """Checks the corners of an outline given as one list, [x, y, x, y, ...]: see `corners`."""
  if not isinstance(values, list | tuple) or len(values) % 2:
    raise UserError(f"{where} has an odd number of coordinates; mend it.")
  return corners(list(zip(values[::2], values[1::2], strict=True)), where)


def _float(value):
  return float(max(-1e99, min(value, 1e99)))


def _is_finite(value):
  # NaN is below nothing; `check` says what is nowhere near a picture.
  return type(value) in (int, float) and value == value


def check(shape, height, width):
  """Refuses a shape that cannot be of its picture.

  Args:
    shape: a `Shape`.
    height: h of the picture, in pixels.
    width: w, likewise.

  Returns:
    Whether it leaves the picture, at whose border it is cut.

  Raises:
    UserError: it has too few corners or no area, lies outside, leaves the picture by far, or holds
      shares of the picture in place of pixels.
  """
  where = shape.where
  if shape.kind == "mask":
    top, left = shape.at
    bottom, right = top + shape.pixels.shape[0], left + shape.pixels.shape[1]
    if bottom > height or right > width or min(top, left) < 0:
      raise UserError(
        f"{where} reaches to ({right}, {bottom}), out of its picture of {width} x {height} pixels; "
        "is it of another size?"
      )
    return False
  points = outline(shape)
  fewest = {"polyline": 2}.get(shape.kind, 3)
  if len(points) < fewest:
    raise UserError(f"{where} has fewer than {fewest} points; mend it.")
  xs, ys = zip(*points, strict=True)
  if max(map(abs, (*xs, *ys))) > 1e6 + max(width, height):
    raise UserError(f"{where} has a corner that is nowhere near the picture; mend it.")
  if min(*xs, *ys) >= 0 and max(*xs, *ys) <= 1 and max(width, height) > 2:
    raise UserError(
      f"{where} has coordinates from 0 to 1 only: shares of the picture? Multiply x by {width} and "
      f"y by {height}, as this importer counts pixels."
    )
  half = 0.5 if shape.centres else 0
  if max(xs) < -half or max(ys) < -half or min(xs) > width - half or min(ys) > height - half:
    raise UserError(
      f"{where} lies outside of its picture of {width} x {height} pixels; is it of another picture "
      "or size?"
    )
  if shape.kind != "polyline" and np.linalg.matrix_rank(np.subtract(points, points[0])) < 2:
    raise UserError(f"{where} has no area: all of its corners lie on one line; mend it.")
  if max(*map(abs, xs)) > 2 * width or max(*map(abs, ys)) > 2 * height:
    raise UserError(
      f"{where} leaves its picture of {width} x {height} pixels by far; is it of another size?"
    )
  return min(*xs, *ys) < -1 or max(xs) > width or max(ys) > height


def outline(shape):
  """The corners of a shape as a polygon's (a polyline's: its own), turned by its angle."""
  if shape.kind == "rectangle" and len(shape.points) == 2:
    (x1, y1), (x2, y2) = shape.points
    points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    centre = (x1 + x2) / 2, (y1 + y2) / 2
  elif shape.kind == "ellipse" and len(shape.points) == 2:
    centre, (rx, ry) = shape.points
    turns = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    points = [
      (centre[0] + rx * c, centre[1] + ry * s)
      for c, s in zip(np.cos(turns), np.sin(turns), strict=True)
    ]
  else:
    return list(shape.points)
  if not shape.angle:
    return points
  turn = np.deg2rad(shape.angle)
  rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  turned = (np.asarray(points) - centre) @ rotation.T + centre
  return [tuple(map(float, point)) for point in turned]


def _fill(points, height, width, centres):
  """Fills a polygon: [h, w] bool."""
  if centres:
    # Pixels whose centre lies inside, and those that the outline passes through.
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image)
  from pycocotools import mask as coco

  flat = [float(value) for point in points for value in point]
  return coco.decode(coco.frPyObjects([flat], height, width))[..., 0].astype(bool)


def _stroke(shape, height, width):
  """Draws a line of a width, with round ends: the pixels whose centre is within half of it."""
  offset = 0 if shape.centres else 0.5
  found = np.zeros((height, width), bool)
  spacing = np.array(shape.spacing[::-1])
  # A line thinner than the grid still covers the pixels that it passes through.
  reach = max(shape.width / 2, 0.5 * spacing.max())
  points = np.asarray(shape.points) - offset
  for start, end in zip(points[:-1], points[1:], strict=True):
    low = np.floor(np.minimum(start, end) - reach / spacing).astype(int).clip(0)
    high = np.ceil(np.maximum(start, end) + reach / spacing).astype(int) + 1
    (left, top), (right, bottom) = low, np.minimum(high, (width, height))
    if right <= left or bottom <= top:
      continue
    ys, xs = np.mgrid[top:bottom, left:right]
    dx, dy = (xs - start[0]) * spacing[0], (ys - start[1]) * spacing[1]
    along = (end - start) * spacing
    length = float(along @ along)
    t = np.clip((dx * along[0] + dy * along[1]) / length if length else 0.0, 0, 1)
    away = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2
    found[top:bottom, left:right] |= away <= reach**2
  return found


def of_width(shape, line_width, media):
  """A polyline of a width with its unit, as (2.0, 'mm') or (6.0, 'px'), on a picture.

  Raises:
    UserError: the picture does not say how large its pixels are.
  """
  value, unit = line_width
  if unit == "px":
    return dataclasses.replace(shape, width=value)
  if media.spacing is None:
    raise UserError(
      f"{media.path} does not say how large its pixels are, so that --line-width cannot count "
      "millimetres; give it in pixels, as --line-width 6px."
    )
  return dataclasses.replace(shape, width=value, spacing=media.spacing)


def mask(shape, height, width) -> np.ndarray:
  """Draws one shape: uint8 [h, w], 255 = 100 %."""
  if shape.kind == "mask":
    whole = np.zeros((height, width), np.uint8)
    (top, left), (h, w) = shape.at, shape.pixels.shape
    whole[top : top + h, left : left + w] = shape.pixels
    return whole if shape.confidence == 1 else np.rint(whole * shape.confidence).astype(np.uint8)
  if shape.kind == "polyline":
    found = _stroke(shape, height, width)
  else:
    found = _fill(outline(shape), height, width, shape.centres)
    for hole in shape.holes:
      found = found & ~_fill(list(hole), height, width, shape.centres)
  return np.where(found, np.uint8(round(255 * shape.confidence)), np.uint8(0))


def draw(shapes, media, source):
  """Draws shapes over each other, the largest confidence counting where they overlap.

  Args:
    shapes: of one person on one frame.
    media: the `readers.Media` of its clip.
    source: the `Source`, which counts those that leave the picture or cover no pixel.

  Returns:
    uint8 [h, w] by class.

  Raises:
    UserError: one cannot be of this picture.
  """
  masks = {}
  for shape in shapes:
    if check(shape, media.height, media.width):
      source.cut.append(shape.where)
    drawn = mask(shape, media.height, media.width)
    if not drawn.any() and shape.confidence:
      source.skip("shapes that cover no pixel", shape.where)
    masks[shape.name] = np.maximum(masks.get(shape.name, 0), drawn)
  return masks


def from_runs(runs, height, width, *, first=0, order="C", where=""):
  """Decodes run lengths that take turns between background and object.

  Args:
    runs: lengths, in pixels.
    height: h, in pixels.
    width: w, in pixels.
    first: what the first run is: 0 background, 1 object.
    order: 'C' for rows first (CVAT), 'F' for columns first (COCO).
    where: stands in front of messages.

  Returns:
    uint8 [h, w], 0 and 255.

  Raises:
    UserError: the runs do not fill the picture.
  """
  lengths_fit = all(type(n) is int and 0 <= n <= height * width for n in runs)
  if not lengths_fit or sum(runs) != height * width:
    raise UserError(
      f"{where} has run lengths that do not fill {width} x {height} pixels; export it again."
    )
  values = (np.arange(len(runs)) + first) % 2 * np.uint8(255)
  return np.repeat(values.astype(np.uint8), runs).reshape((height, width), order=order)


def class_name(value, where):
  """The name of a class in JSON, as text; refuses what is none (`UserError`)."""
  if type(value) not in (int, str) or not str(value).strip():
    raise UserError(f"{where} has the class {tables.shown_value(value)}, which is no name; mend.")
  return tables.normal(str(value).strip())
