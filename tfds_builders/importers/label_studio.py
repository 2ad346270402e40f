"""Label Studio's JSON: brushes in its own run lengths, outlines in percent of the picture.

A brush is stored as RGBA bytes of the whole picture, whose run lengths are packed bit by bit: 32
bits, how many bytes; 5 bits, the width of a byte less 1; four times 4 bits, the widths of lengths
less 1. Then blocks: 1 bit, whether one value is repeated; 2 bits, which of the four widths; the
length less 1; and the value, or as many as the length says.
"""

import base64
import binascii
import io
import pathlib
import urllib.parse

import numpy as np
from PIL import Image

from lus_jax.errors import UserError
from lus_jax.files import damage_is_a_user_error
from lus_jax.media import readers
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import formats, options, shapes
from tfds_builders.importers.source import Label, Source, Videos, place

HELP = "Label Studio's JSON export: brushes, polygons, rectangles, ellipses"
EXPECTED = 'Label Studio\'s JSON, [{"data": {...}, "annotations": [...]}, ...]'
# What a brush's run lengths may say of themselves: bytes of 8 bits.
_WORD = 8
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "JSON exported by Label Studio (JSON, not JSON-MIN)")
  options.add_frame_pattern(command)
  command.add_argument(
    "--data-key", metavar="KEY", help="field of a task's data that names its picture, as image"
  )
  command.add_argument(
    "--soft",
    action="store_true",
    help="how opaque a brush is is the confidence; by default its smooth edges are cut at half",
  )


class _Bits:
  """Reads numbers of some bits, the highest first."""

  def __init__(self, data, where):
    self._data, self._where = data, where
    self._at, self._end = 0, 8 * len(data)

  def _take(self, n):
    start, self._at = self._at, self._at + n
    if self._at > self._end:
      raise UserError(f"{self._where} has run lengths that end too early; export it again.")
    last = (self._at + 7) // 8
    # The bits that are wanted are the lowest now.
    return int.from_bytes(self._data[start // 8 : last]) >> (8 * last - self._at)

  def number(self, n):
    """The next n bits."""
    return self._take(n) & ((1 << n) - 1)

  def bytes(self, n):
    """The next n bytes."""
    return (self._take(8 * n) & ((1 << (8 * n)) - 1)).to_bytes(n)


def brush(rle, height, width, where):
  """Decodes a brush.

  Args:
    rle: bytes.
    height: h of its picture, in pixels.
    width: w, likewise.
    where: stands in front of messages.

  Returns:
    How opaque it is, uint8 [h, w], 255 = wholly.

  Raises:
    UserError: it is damaged, or of another picture.
  """
  bits = _Bits(rle, where)
  size = bits.number(32)
  if size != 4 * height * width:
    raise UserError(
      f"{where} has run lengths of {size} values, but its picture of {width} x {height} pixels "
      f"would have {4 * height * width}; export it again."
    )
  if bits.number(5) + 1 != _WORD:
    raise UserError(f"{where} has run lengths of other than 8 bits; export it again.")
  widths = [bits.number(4) + 1 for _ in range(4)]
  found, at = np.empty(size, np.uint8), 0
  while at < size:
    repeated, which = bits.number(1), bits.number(2)
    length = bits.number(widths[which]) + 1
    if at + length > size:
      raise UserError(f"{where} has run lengths that overflow its picture; export it again.")
    value = bits.number(_WORD) if repeated else np.frombuffer(bits.bytes(length), np.uint8)
    found[at : at + length] = value
    at += length
  # Its colour is that of the label; the brush is where it is opaque.
  return found.reshape(height, width, 4)[..., 3]


def _bytes(rle, where):
  if not isinstance(rle, list) or not all(type(x) is int and 0 <= x <= 255 for x in rle):
    raise UserError(f"{where} has run lengths that are no list of bytes; export it again.")
  return bytes(rle)


def bitmask(content, height, width, where):
  """Decodes a bitmask, a PNG of how opaque it is: uint8 [h, w], 255 = wholly.

  Raises:
    UserError: it is damaged, or of another picture.
  """
  with damage_is_a_user_error(where, "export it again", _DAMAGE, "no bitmask in PNG"):
    image = Image.open(io.BytesIO(content), formats=("PNG",))
  # Before it is unpacked, as a broken one may be larger than the memory.
  if image.size != (width, height):
    raise UserError(
      f"{where} is a bitmask of {image.width} x {image.height} pixels, but its picture is {width} "
      f"x {height}; export it again."
    )
  with damage_is_a_user_error(where, "export it again", _DAMAGE, "no bitmask in PNG"):
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _png(link, where):
  head, _, text = link.partition(",") if isinstance(link, str) else ("", "", "")
  if not (head.startswith("data:image/png") and head.endswith(";base64")):
    raise UserError(f"{where} has a bitmask that is no PNG in a data URL; export it again.")
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise UserError(
      f"{where} has a bitmask that is no base64 ({error}); export it again."
    ) from error


def _painted(value, where):
  """A function that decodes what was painted for a picture of h x w; None if nothing was."""
  # What is kept is less than JSON's lists.
  if "rle" in value:
    rle = _bytes(value["rle"], where)
    return lambda height, width: brush(rle, height, width, where)
  if "imageDataURL" in value:
    content = _png(value["imageDataURL"], where)
    return lambda height, width: bitmask(content, height, width, where)
  return None


def _number(value, key, where):
  found = value.get(key)
  if not tables.is_number(found):
    raise UserError(f"{where} has no number {key!r}; export it again.")
  return float(found)


def _labels(value, kind, where):
  """The classes of a region, [] if it has none."""
  found = value.get(kind, value.get("labels", []))
  if not isinstance(found, list):
    raise UserError(f"{where} has labels that are no list; export it again.")
  return [shapes.class_name(name, where) for name in found]


def _outline(value, where):
  """The corners in percent and what is drawn through them; None if it is nothing that is drawn."""
  if "points" in value:
    return "polygon", shapes.corners(value["points"], where)
  if "radiusX" in value:
    radii = _number(value, "radiusX", where), _number(value, "radiusY", where)
    return "ellipse", ((_number(value, "x", where), _number(value, "y", where)), radii)
  if "x" in value and "width" in value and "height" in value:
    x, y = _number(value, "x", where), _number(value, "y", where)
    w, h = _number(value, "width", where), _number(value, "height", where)
    return "rectangle", ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
  return None


def _turned(points, angle):
  """Turns corners about the first, as Label Studio turns rectangles, by degrees clockwise."""
  turn = np.deg2rad(angle)
  rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
  found = (np.asarray(points) - points[0]) @ rotation + points[0]
  return tuple((float(x), float(y)) for x, y in found)


class _Regions:
  """Reads the regions of one annotation into makers of shapes."""

  def __init__(self, source, soft):
    self._source, self._soft = source, soft

  def read(self, results, where):
    """Functions that make the shapes of a picture of h x w."""
    if not isinstance(results, list) or not all(isinstance(x, dict) for x in results):
      raise UserError(f"{where} has no list of results; export it as {EXPECTED}.")
    makers = []
    for number, result in enumerate(results, start=1):
      makers += self._read_one(
        result, f"{where}: result {tables.shown_value(result.get('id', number))}"
      )
    return makers

  def _read_one(self, result, where):
    kind, value = result.get("type"), result.get("value")
    if not isinstance(kind, str) or not isinstance(value, dict):
      kind = kind if isinstance(kind, str) else "?"
      self._source.skip(f"results of type {tables.shown(kind, 30)}, which draw nothing", where)
      return []
    if kind in ("brush", "bitmask", "polygon", "rectangle", "ellipse") and not _labels(
      value, kind, where
    ):
      # Its labels are another result of the same region, which repeats the outline.
      return []
    names = _labels(value, kind, where)
    painted = _painted(value, where)
    outline = None if painted else _outline(value, where)
    if kind.startswith(("video", "keypoint", "timeline")) or not (outline or painted):
      self._source.skip(f"results of type {tables.shown(kind, 30)}, which draw no area", where)
      return []
    if not names:
      self._source.skip("regions without a label", where)
      return []
    if result.get("image_rotation"):
      raise UserError(
        f"{where} was drawn on a picture that was turned in Label Studio; save the picture turned, "
        "and draw on that."
      )
    said = result.get("original_height"), result.get("original_width")
    self._source.classes += names
    angle = _number(value, "rotation", where) if value.get("rotation") else 0.0
    return [self._maker(name, outline, painted, angle, said, where) for name in names]

  def _maker(self, name, outline, painted, angle, said, where):
    def make(height, width):
      if said not in ((None, None), (height, width)):
        size = " x ".join(map(tables.shown_value, reversed(said)))
        raise UserError(
          f"{where} is of a picture of {size} pixels, but the picture has {width} x {height}; "
          "export it at the picture's size."
        )
      if painted:
        pixels = painted(height, width)
        if not self._soft:
          if (pixels % 255).any():
            self._source.skip("brushes' grey edges, cut at half (--soft keeps them)", where)
          pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
        return shapes.Shape(name, "mask", where=where, pixels=pixels)
      kind, points = outline
      points = tuple((x * width / 100, y * height / 100) for x, y in points)
      if kind == "ellipse":
        return shapes.Shape(name, kind, points, where, angle=angle)
      if kind == "rectangle" and angle:
        points = _turned(points, angle)
      return shapes.Shape(name, "polygon", points, where)

    return make


def _who(annotation, where):
  """Who made an annotation, '' if it does not say."""
  who = annotation.get("completed_by")
  if isinstance(who, dict):
    who = who.get("id", who.get("email"))
  if who is None:
    return ""
  if type(who) not in (int, str):
    raise UserError(f"{where} has a 'completed_by' that is neither number nor name; mend it.")
  return f"user_{who}" if isinstance(who, int) else tables.normal(who.strip())


def _names(task, key, where):
  """What a task may call its picture, the likeliest first."""
  data = task.get("data")
  if not isinstance(data, dict):
    raise UserError(f"{where} has no 'data'; export it as {EXPECTED}.")
  if key is not None:
    if not isinstance(data.get(key), str):
      raise UserError(f"{where} has no {key!r} in its data; mend --data-key.")
    found = [data[key]]
  else:
    found = [value for value in data.values() if isinstance(value, str) and value.strip()]
  found += [task["file_upload"]] if key is None and isinstance(task.get("file_upload"), str) else []
  names = []
  for text in found:
    link = urllib.parse.urlsplit(text) if "://" in text or text.startswith("/data/") else None
    if link is not None:
      local = urllib.parse.parse_qs(link.query).get("d")
      text = local[0] if local else urllib.parse.unquote(link.path)
    names += formats.names_before(text)
  return [name for name in dict.fromkeys(names) if name.strip("/ ")]


def _picture(task, videos, key, pattern, where):
  """What a task calls its picture.

  Raises:
    UserError: it names none, or several.
  """
  names = _names(task, key, where)
  if not names:
    raise UserError(f"{where} names no picture in its data; mend it, or say --data-key.")

  def is_known(name):
    if pattern is None:
      return videos.knows(name)
    found = pattern.search(name)
    return bool(found) and (pattern.groups < 2 or videos.knows(found[1] or ""))

  known = [name for name in names if is_known(name)]
  if pattern is None and len({videos.find_frame(name, where) for name in known}) > 1:
    raise UserError(
      f"{where} names several pictures ({tables.shown_list(known, 3)}); say with --data-key which "
      "was drawn on."
    )
  return known[0] if known else min(names, key=lambda name: not _is_media(name))


def _is_media(name):
  return readers.is_media(pathlib.PurePosixPath(name))


def find(
  *,
  videos,
  annotations,
  folders_are_clips=False,
  frame_pattern=None,
  data_key=None,
  soft=False,
):
  """Reads Label Studio's JSON.

  Args:
    videos: a folder of the pictures.
    annotations: pairs of annotator ('' if unknown) and path of a JSON.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.
    frame_pattern: see `source.place`.
    data_key: field of a task's data that names its picture; None: whichever does.
    soft: whether how opaque a brush is is the confidence, or brushes are cut at half.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  found = Videos(videos, clips_are_folders=folders_are_clips)
  source = Source(clips={}, labels=[], classes=[])
  regions = _Regions(source, soft)
  n_empty = 0
  for annotator, path in annotations:
    tasks = formats.read_json(path, "label_studio", EXPECTED)
    if isinstance(tasks, list) and tasks and _is_minimal(tasks[0]):
      raise UserError(f"{path} is Label Studio's JSON-MIN; export it as JSON.")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
      raise UserError(f"{path} does not look like {EXPECTED}; mend --annotations.")
    people = set()
    for number, task in enumerate(tasks, start=1):
      where = f"{path}: task {tables.shown_value(task.get('id', number))}"
      name, frame = place(
        source, found, _picture(task, found, data_key, frame_pattern, where), where, frame_pattern
      )
      made = task.get("annotations", [])
      if not isinstance(made, list) or not all(isinstance(x, dict) for x in made):
        raise UserError(f"{where} has no list of annotations; export it as {EXPECTED}.")
      if not made:
        source.skip("tasks that nobody annotated", name)
      if task.get("predictions"):
        source.skip("tasks' predictions", name)
      for annotation in made:
        if annotation.get("was_cancelled"):
          source.skip("annotations that were skipped in Label Studio", where)
          continue
        who = _who(annotation, where)
        people.add(who)
        makers = regions.read(annotation.get("result"), where)
        n_empty += not makers
        source.labels.append(Label(name, frame, _draw(makers, source), annotator or who))
    if annotator and len(people) > 1:
      raise UserError(
        f"{path} holds annotations of {len(people)} people ({tables.shown_list(sorted(people))}), "
        f"not of {annotator} alone; leave the name out."
      )
  source.classes = list(dict.fromkeys(source.classes))
  _add_notes(source, found, n_empty)
  return source


def _is_minimal(task):
  return isinstance(task, dict) and "data" not in task and "annotation_id" in task


def _draw(makers, source):
  def draw(media):
    made = [make(media.height, media.width) for make in makers]
    return shapes.draw(made, media, source)

  return draw


def _add_notes(source, found, n_empty):
  if n_empty:
    source.notes.append(f"{plural(n_empty, 'annotation')} without regions count as seen and empty.")
  for name in found.found:
    if name not in source.clips:
      source.skip("pictures that no task names", name)
  found.note_others(source)
