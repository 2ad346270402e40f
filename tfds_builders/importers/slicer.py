"""SlicerUltrasound's AnnotateUltrasound: pleura and B-lines as lines in millimetres, by rater.

A line stands for a sector: the part of the scan's fan between the rays through its ends, over all
depths, which is what the tool shows and counts. B-lines count only where there is pleura.
"""

import dataclasses
import math

import numpy as np

from lus_jax.errors import UserError
from tfds_builders import tables
from tfds_builders.importers import formats, opencv, options, shapes
from tfds_builders.importers.drawn import Drawn

HELP = "SlicerUltrasound: pleura and B-lines of AnnotateUltrasound"
EXPECTED = 'SlicerUltrasound\'s annotations, {"frame_annotations": [...], ...}'
# Classes by what the tool calls their lists.
_CLASSES = {"pleura_lines": "pleura", "b_lines": "b_line"}
_ADJUDICATED = ".adjudication.json"
_MEND = "save it in SlicerUltrasound again"
_SIGNS = {"LPS": 1.0, "RAS": -1.0}


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "a JSON file, or a folder of them")
  options.add_line_width(command)
  command.add_argument(
    "--lines", action="store_true", help="draw the lines themselves, not the sectors they mark"
  )
  command.add_argument(
    "--adjudicated",
    action="store_true",
    help="read what AdjudicateUltrasound saved, not what each rater did",
  )
  command.add_argument(
    "--spacing",
    type=options.positive,
    metavar="MM",
    help="between pixels, where videos do not say it, or say it wrongly",
  )


@dataclasses.dataclass(frozen=True)
class _Fan:
  """The scan's area, in pixels: its sharp end (x, y), and from where to where it reaches."""

  centre: tuple[int, int]
  near: int
  far: int


def _whole(value, where, what):
  if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
    value = int(value)
  if not tables.is_number(value) or value != int(value) or abs(value) > 1e5:
    raise UserError(f"{where} has {what} that is no whole number; {_MEND}.")
  return int(value)


def _fan(content, path):
  if content.get("mask_type") != "fan":
    return None
  x, y, near, far = (
    _whole(content.get(key), str(path), repr(key))
    for key in ("center_cols_px", "center_rows_px", "radius1", "radius2")
  )
  if not 0 <= near < far:
    raise UserError(f"{path} has a fan from radius {near} to {far}; {_MEND}.")
  return _Fan((x, y), near, far)


def _sector(fan, start, end, height, width):
  """The part of a fan between the rays through two pixels, as the tool draws it: [h, w] bool."""
  found = np.zeros((height, width), bool)
  if fan is None:
    # Of a linear probe it fills the rectangle between the ends, without the last row and column.
    (x1, y1), (x2, y2) = start, end
    found[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return found
  x, y = fan.centre
  angles = [math.atan2(py - y, px - x) % math.pi for px, py in (end, start)]
  if angles[0] == angles[1]:
    return found
  turns = np.linspace(*angles, 360)
  arc = np.rint([x + fan.far * np.cos(turns), y + fan.far * np.sin(turns)]).astype(int).T
  arc = [tuple(point) for point in arc.tolist()]
  opencv.polygon(found, [fan.centre, *arc])
  for ray_end in (arc[0], arc[-1]):
    opencv.line(found, fan.centre, ray_end)
  opencv.circle(found, fan.centre, fan.near, False)
  return found


@dataclasses.dataclass(frozen=True)
class _Lines:
  """Lines of one class by one rater on one frame, and what makes their mask.

  Attributes:
    name: of the class.
    lines: corners (x, y) in millimetres from the centre of the first pixel, and where they stand.
    fan: the scan's area; None: a rectangle.
    spacing: of pixels in millimetres, in the user's word; None: as the video says.
    within: those that these count within; None: everywhere.
  """

  name: str
  lines: list
  fan: _Fan | None
  spacing: float | None
  within: "_Lines | None" = None

  def pixels(self, line, where, media):
    """A line's corners in pixels (`UserError`: they are not of this picture)."""
    spacing = (self.spacing, self.spacing) if self.spacing else media.spacing
    if spacing is None:
      raise UserError(
        f"{media.path} does not say how large its pixels are, and {where} is in millimetres; say "
        "--spacing MM."
      )
    points = tuple((x / spacing[1], y / spacing[0]) for x, y in line)
    shapes.check(shapes.Shape(self.name, "polyline", points, where, centres=True), *_size(media))
    return points

  def sectors(self, media):
    """[h, w] bool."""
    found = np.zeros(_size(media), bool)
    for line, where in self.lines:
      points = [tuple(map(round, point)) for point in self.pixels(line, where, media)]
      for start, end in zip(points[:-1], points[1:], strict=True):
        if start != end and self.fan and self.fan.centre in (start, end):
          raise UserError(f"{where} begins or ends where the fan does; {_MEND}.")
        if start != end:
          found |= _sector(self.fan, start, end, *_size(media))
    return found if self.within is None else found & self.within.sectors(media)

  def __call__(self, media):
    """The sectors as one `shapes.Shape`."""
    pixels = np.where(self.sectors(media), np.uint8(255), np.uint8(0))
    return shapes.Shape(self.name, "mask", where=self.lines[0][1], pixels=pixels)


def _size(media):
  return media.height, media.width


def _points(entry, sign, where):
  """A line's corners (x, y) in millimetres, by the axes of DICOM."""
  line = entry.get("line") if isinstance(entry, dict) else entry
  values = line.get("points") if isinstance(line, dict) else line
  if not isinstance(values, list) or len(values) < 2:
    raise UserError(f"{where} is no line of two points; {_MEND}.")
  for point in values:
    if not isinstance(point, list) or len(point) != 3 or not all(map(tables.is_number, point)):
      raise UserError(f"{where} has a point that is no three numbers; {_MEND}.")
  return shapes.corners([[sign * x, sign * y] for x, y, _ in values], where)


def _frames(content, path):
  """Yields the number, coordinate space and lists of each frame; of versions old and new."""
  found = content["frame_annotations"]
  if isinstance(found, dict):
    found = [
      {"frame_number": number} | frame for number, frame in found.items() if isinstance(frame, dict)
    ]
  if not isinstance(found, list) or not all(isinstance(frame, dict) for frame in found):
    raise UserError(f"{path} has 'frame_annotations' that are no list of objects; {_MEND}.")
  for frame in found:
    number = _whole(frame.get("frame_number"), str(path), "a frame_number")
    space = frame.get("coordinate_space", "RAS")
    if space not in _SIGNS:
      raise UserError(
        f"{path}: frame {number} counts in {tables.shown_value(space)}, not in LPS or RAS; {_MEND}."
      )
    lists = {key: frame.get(key, []) for key in _CLASSES}
    if not all(isinstance(lines, list) for lines in lists.values()):
      raise UserError(f"{path}: frame {number} has lines that are no list; {_MEND}.")
    yield number, _SIGNS[space], lists


def _rater(entry, named, path):
  """Who drew a line: as it says, as the user does, or as the file's name does."""
  value = entry.get("rater") if isinstance(entry, dict) else None
  if isinstance(value, str) and value.strip():
    return tables.normal(value.strip().lower())
  return named or path.stem.rpartition(".")[2] * ("." in path.stem)


def _paths(path, adjudicated, drawn):
  """The JSON files of a path, and the folder of each in it: '' or 'a/b/'."""
  for file, relative in formats.json_files(path):
    if path.is_dir() and file.name.endswith(_ADJUDICATED) != adjudicated:
      drawn.source.skip("files of raters" if adjudicated else "adjudicated files", file.name)
    else:
      yield file, relative


def _is_invalid(entry):
  validation = entry.get("validation") if isinstance(entry, dict) else None
  return isinstance(validation, dict) and validation.get("status") == "invalidated"


def _read(drawn, named, path, relative, lines, spacing):
  content = formats.read_json(path, "slicer", EXPECTED)
  if not isinstance(content, dict):
    raise UserError(f"{path} is not {EXPECTED}; mend --annotations.")
  if not content.get("frame_annotations"):
    drawn.source.skip("files without annotated frames", path.name)
    return
  clip = drawn.videos.find(relative + path.stem, str(path))
  header = drawn.header(clip)
  size = content.get("image_size_rows"), content.get("image_size_cols")
  if None not in size and size != _size(header):
    raise UserError(
      f"{path} was drawn on {tables.shown_value(size[1])} x {tables.shown_value(size[0])} pixels, "
      f"but {header.path} has {header.width} x {header.height}; bring the one that was drawn on."
    )
  fan = _fan(content, path)
  is_adjudicated = path.name.endswith(_ADJUDICATED)
  for number, sign, lists in _frames(content, path):
    by_rater = {}
    for key, entries in lists.items():
      for i, entry in enumerate(entries, start=1):
        where = f"{path}: frame {number}, line {i} of {key}"
        if _is_invalid(entry):
          drawn.source.skip("lines that were judged invalid", where)
          continue
        rater = named if is_adjudicated else _rater(entry, named, path)
        line = _points(entry, sign, where), where
        by_rater.setdefault(rater, {key: [] for key in _CLASSES})[key].append(line)
    if not by_rater:
      drawn.source.skip("frames without lines", f"{path.name}, frame {number}")
    for rater, found in by_rater.items():
      place = clip, number, rater, path
      pleura = _Lines("pleura", found["pleura_lines"], fan, spacing)
      b_lines = _Lines("b_line", found["b_lines"], fan, spacing, within=pleura)
      for one in (pleura, b_lines):
        if one.lines and not lines:
          drawn.add(*place, one.name, one)
        for line in one.lines if lines else ():
          drawn.add(*place, one.name, _line(one, *line), is_line=True)


def _line(lines, line, where):
  def make(media):
    points = lines.pixels(line, where, media)
    return shapes.Shape(lines.name, "polyline", points, where, centres=True)

  return make


def find(
  *,
  videos,
  annotations,
  line_width=None,
  lines=False,
  adjudicated=False,
  spacing=None,
  folders_are_clips=False,
):
  """Reads what was drawn in AnnotateUltrasound of SlicerUltrasound.

  A file is of the video of its name, with the rater's between them: clip.anna.json of clip.dcm.
  Labelled frames are those with a line.

  Args:
    videos: folder of the videos.
    annotations: (annotator, path) each: a JSON file or a folder of them; the annotator counts where
      lines do not say who drew them.
    line_width: of lines, with its unit.
    lines: whether lines are drawn themselves, not the sectors that they mark.
    adjudicated: of folders, whether what AdjudicateUltrasound saved is read, or what raters did.
    spacing: of pixels in millimetres; None: as the video says.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  if line_width is not None and not lines:
    raise UserError("--line-width is of --lines; say both, or neither.")
  drawn = Drawn(videos, folders_are_clips, line_width)
  for named, path in annotations:
    for file, relative in _paths(path, adjudicated, drawn):
      _read(drawn, named, file, relative, lines, spacing)
  source = drawn.finish("--annotations")
  source.classes = [name for name in _CLASSES.values() if name in source.classes]
  return source
