"""COCO's JSON of instances, as CVAT, Roboflow, Supervisely and many others export it."""

import collections
import dataclasses

import numpy as np

from lus_jax.errors import UserError
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import formats, options, shapes
from tfds_builders.importers.source import Label, Source, Videos, place

HELP = "COCO instances (JSON) of CVAT, Roboflow, Supervisely, ..."
EXPECTED = 'COCO\'s {"images": [...], "annotations": [...], "categories": [...]}'
# Fields in which tools say who drew an annotation; COCO itself has none.
ANNOTATORS = (
  "annotator",
  "annotator_id",
  "rater",
  "rater_id",
  "reader",
  "reader_id",
  "annotated_by",
)
_SPLITS = {
  "train": "train",
  "valid": "validation",
  "val": "validation",
  "validation": "validation",
  "test": "test",
}
# A larger polygon or run length is no annotation of a picture.
_MAX_DIGITS = 7


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "JSON of COCO instances")
  options.add_frame_pattern(command)
  command.add_argument(
    "--boxes", action="store_true", help="draw boxes that have no outline as rectangles"
  )
  command.add_argument(
    "--crowds",
    choices=("object", "ignore"),
    default="object",
    help="what pixels of iscrowd are: the object (as CVAT's masks), or not counted (as COCO's own)",
  )
  command.add_argument(
    "--annotator-field",
    metavar="KEY",
    help=f"field of an annotation that says who drew it; by default one of {', '.join(ANNOTATORS)}",
  )
  command.add_argument(
    "--no-splits",
    action="store_true",
    help="do not take the split from folders called train, valid and test",
  )


def _entries(content, key, path):
  """The list of objects under a key."""
  found = content.get(key, [])
  if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
    raise UserError(f"{path}: {key!r} is no list of objects; export it as {EXPECTED}.")
  return found


def _id(entry, key, where):
  value = entry.get(key)
  if type(value) not in (int, str):
    raise UserError(f"{where} has no {key!r} that is a number or text; mend it.")
  return value


def _by_id(content, key, one, path):
  """The objects under a key, by id."""
  found = {}
  for number, entry in enumerate(_entries(content, key, path), start=1):
    identity = _id(entry, "id", f"{path}: {one} {number}")
    if identity in found:
      raise UserError(
        f"{path}: two {key} have the id {tables.shown_value(identity)}; export it again."
      )
    found[identity] = entry
  return found


def counts_of(text, where):
  """Run lengths from COCO's compressed text.

  Each is a number of 5 bits a character, the lowest first, and from the fourth on what is to be
  added to the one before the last.

  Raises:
    UserError: it is no such text.
  """
  if not text.isascii():
    raise UserError(f"{where} has run lengths that are no COCO text; export it again.")
  codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
  if not codes.size:
    return []
  if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
    raise UserError(f"{where} has run lengths that are no COCO text; export it again.")
  is_last = (codes & 32) == 0
  starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
  digit = np.arange(codes.size) - np.repeat(starts, np.diff([*starts, codes.size]))
  if digit.max() >= _MAX_DIGITS:
    raise UserError(f"{where} has run lengths that are too long; export it again.")
  values = np.add.reduceat((codes & 31) << (5 * digit), starts)
  last = codes[is_last]
  values = np.where(last & 16, values - (1 << (5 * (digit[is_last] + 1))), values)
  for first in (1, 2):
    values[first::2] = np.cumsum(values[first::2])
  return values.tolist()


def _runs(segmentation, where):
  """A function that decodes run lengths for a picture of h x w: uint8 [h, w]."""
  size, counts = segmentation.get("size"), segmentation.get("counts")
  if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
    raise UserError(f'{where} has a segmentation without "size": [h, w] and "counts"; mend it.')

  def decode(height, width):
    if size != [height, width]:
      raise UserError(
        f"{where} has run lengths for {tables.shown_value(size)} (height, width), but its picture "
        f"is {width} x {height} pixels; export it at the picture's size."
      )
    runs = counts_of(counts, where) if isinstance(counts, str) else counts
    return shapes.from_runs(runs, height, width, order="F", where=where)

  return decode


class _File:
  """One file of annotations."""

  def __init__(self, path, annotator, source, asked):
    self.path, self._annotator, self._source, self._asked = path, annotator, source, asked
    content = formats.read_json(path, "coco", EXPECTED)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
      raise UserError(f"{path} does not look like {EXPECTED}; mend --annotations.")
    self.images = _by_id(content, "images", "image", path)
    annotations = _entries(content, "annotations", path)
    self._names = self._classes(content, annotations)
    self._field = self._find_field(annotations)
    self.n_crowds = 0
    # Makers of shapes by image, then by annotator.
    self.drawn = collections.defaultdict(dict)
    for number, annotation in enumerate(annotations, start=1):
      self._add(annotation, number)

  def _classes(self, content, annotations):
    categories = _by_id(content, "categories", "category", self.path)
    used = {a["category_id"] for a in annotations if type(a.get("category_id")) in (int, str)}
    parents = {entry.get("supercategory") for entry in categories.values()} - {None, "", "none"}
    names = {}
    for identity, entry in categories.items():
      name = shapes.class_name(
        entry.get("name"), f"{self.path}: category {tables.shown_value(identity)}"
      )
      if name in names.values():
        raise UserError(f"{self.path}: two categories are called {tables.shown(name)}; rename one.")
      names[identity] = name
      # Roboflow lists the group of all classes as one.
      if entry["name"] in parents and identity not in used:
        self._source.skip("categories that only group others", name)
      else:
        self._source.classes.append(name)
    return names

  def _find_field(self, annotations):
    """The field that says who drew an annotation, or None."""
    if self._asked["annotator_field"]:
      return self._asked["annotator_field"]
    for field in ANNOTATORS:
      if any(self._who(annotation, field) for annotation in annotations):
        return field
    return None

  def _who(self, annotation, field):
    """Who drew an annotation, '' if it does not say."""
    attributes = annotation.get("attributes")
    value = annotation.get(field)
    if value is None and isinstance(attributes, dict):
      value = attributes.get(field)
    return tables.normal(str(value).strip()) if type(value) in (int, str) else ""

  def _add(self, annotation, number):
    where = f"{self.path}: annotation {tables.shown_value(annotation.get('id', number))}"
    image = _id(annotation, "image_id", where)
    if image not in self.images:
      shown = tables.shown_value(image)
      raise UserError(f"{where} is of image {shown}, which is not in 'images'; export it again.")
    category = _id(annotation, "category_id", where)
    if category not in self._names:
      shown = tables.shown_value(category)
      raise UserError(f"{where} is of category {shown}, not in 'categories'; export it again.")
    annotator = self._annotator
    if self._field:
      who = self._who(annotation, self._field)
      if not who:
        raise UserError(f"{where} has no {self._field!r}, which others have; say who drew it.")
      annotator = f"{annotator}_{who}" if annotator else who
    name = self._names[category]
    if annotation.get("iscrowd"):
      self.n_crowds += 1
      if self._asked["crowds"] == "ignore":
        name = tables.IGNORE
    makers = self._makers(annotation, name, where)
    if makers:
      self.drawn[image].setdefault(annotator, []).extend(makers)

  def _makers(self, annotation, name, where):
    """Functions that make the shapes of one annotation for a picture of h x w."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and segmentation:
      decode = _runs(segmentation, where)
      return [
        lambda height, width: shapes.Shape(name, "mask", where=where, pixels=decode(height, width))
      ]
    if isinstance(segmentation, list) and segmentation:
      parts = [shapes.pairs(part, where) for part in segmentation]
      solid = [part for part in parts if _has_area(part)]
      if len(solid) < len(parts):
        self._source.skip("outlines without area", where)
      found = [shapes.Shape(name, "polygon", part, where) for part in solid]
      return [lambda height, width, shape=shape: shape for shape in found]
    if segmentation:
      raise UserError(
        f"{where} has a segmentation that is neither a list nor run lengths; mend it."
      )
    if not annotation.get("bbox"):
      self._source.skip("annotations without outline or box", where)
    elif not self._asked["boxes"]:
      self._source.skip("boxes without outline, which --boxes would draw", where)
    else:
      (x, y), (w, h) = self._box(annotation["bbox"], where)
      shape = shapes.Shape(name, "rectangle", ((x, y), (x + w, y + h)), where)
      return [lambda height, width: shape]
    return []

  def _box(self, values, where):
    if not isinstance(values, list) or len(values) != 4:
      raise UserError(f"{where} has a bbox that is not [x, y, width, height]; mend it.")
    return shapes.pairs(values, where)

  def name_of(self, image, videos):
    """The (clip, frame) of an image."""
    entry = self.images[image]
    where = f"{self.path}: image {tables.shown_value(image)}"
    text = entry.get("file_name")
    if not isinstance(text, str) or not text.strip():
      raise UserError(f"{where} has no 'file_name'; export it again.")
    beside = self.path.resolve().parent
    names = formats.names_before(text)
    if beside != (root := videos.folder.resolve()) and beside.is_relative_to(root):
      # Pictures lie beside the file, where those of other folders may have their names.
      names.insert(0, f"{beside.relative_to(root).as_posix()}/{text}")
    name = next(filter(videos.knows, names), text)
    return place(self._source, videos, name, where, self._asked["pattern"])

  def check_size(self, image, media):
    """Refuses an image of another size than its picture (`UserError`)."""
    entry = self.images[image]
    said = entry.get("width"), entry.get("height")
    if None not in said and said != (media.width, media.height):
      size = " x ".join(map(tables.shown_value, said))
      raise UserError(
        f"{self.path}: image {tables.shown(entry['file_name'])} is {size} pixels, but "
        f"{media.path} is {media.width} x {media.height}; export it at the picture's size."
      )


def _has_area(points):
  if len(points) < 3:
    return False
  away = np.subtract(points, points[0])
  # What is nowhere near a picture is refused where the picture is known.
  return bool(np.abs(away).max() > 1e9 or np.linalg.matrix_rank(away) > 1)


def _split(name):
  """The split that a folder of a clip's name says, '' if none does."""
  return next((_SPLITS[p] for p in name.casefold().split("/")[:-1] if p in _SPLITS), "")


def find(
  *,
  videos,
  annotations,
  folders_are_clips=False,
  boxes=False,
  crowds="object",
  annotator_field=None,
  frame_pattern=None,
  no_splits=False,
):
  """Reads COCO instances.

  Args:
    videos: a folder of the pictures.
    annotations: pairs of annotator ('' if unknown) and path of a JSON.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.
    boxes: whether boxes without outline are drawn as rectangles, or left out.
    crowds: what iscrowd is: 'object', or 'ignore' for pixels that do not count.
    annotator_field: of annotations, which says who drew them; None: one of `ANNOTATORS`, if any.
    frame_pattern: see `source.place`.
    no_splits: whether folders called train, valid and test say nothing.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  found = Videos(videos, clips_are_folders=folders_are_clips)
  source = Source(clips={}, labels=[], classes=[])
  asked = {
    "boxes": boxes,
    "crowds": crowds,
    "annotator_field": annotator_field,
    "pattern": frame_pattern,
  }
  n_empty = n_crowds = 0
  for annotator, path in annotations:
    file = _File(path, annotator, source, asked)
    n_crowds += file.n_crowds
    by_annotator = any(who != annotator for drawn in file.drawn.values() for who in drawn)
    for image in file.images:
      name, frame = file.name_of(image, found)
      file.check_size(image, source.header(name))
      drawn = file.drawn.get(image)
      if not drawn and by_annotator:
        source.skip("images that nobody drew on, of whom it is not known who saw them", name)
        continue
      n_empty += not drawn
      for who, makers in (drawn or {annotator: []}).items():
        source.labels.append(Label(name, frame, _draw(makers, source), who))
  if not no_splits:
    source.clips = {
      name: dataclasses.replace(clip, split=_split(name)) for name, clip in source.clips.items()
    }
  source.classes = list(dict.fromkeys(source.classes))
  _add_notes(source, found, n_empty, n_crowds, crowds)
  return source


def _draw(makers, source):
  def draw(media):
    made = [make(media.height, media.width) for make in makers]
    return shapes.draw(made, media, source)

  return draw


def _add_notes(source, found, n_empty, n_crowds, crowds):
  if n_empty:
    source.notes.append(
      f"{plural(n_empty, 'image')} without annotations count as seen and empty, as COCO lists them."
    )
  if n_crowds and crowds == "object":
    source.notes.append(
      f"{plural(n_crowds, 'annotation')} with iscrowd count as the object; --crowds ignore takes "
      "them for pixels that do not count."
    )
  splits = {clip.split for clip in source.clips.values()} - {""}
  if splits:
    source.notes.append(
      f"The split ({', '.join(sorted(splits))}) is that of the folders; --no-splits leaves it out."
    )
  for name in found.found:
    if name not in source.clips:
      source.skip("pictures that no file of annotations lists", name)
  found.note_others(source)
