"""Gathers what importers of outlines find, frame by frame."""

from lus_jax.errors import UserError
from tfds_builders.importers import shapes
from tfds_builders.importers.source import Clip, Label, Source, Videos, place

# Of lines, where tools store none and users give none.
LINE_WIDTH = (5.0, "px")
# Files of annotations may stand among the pictures.
_NO_MEDIA = (".csv", ".json", ".jsonl", ".xml", ".zip")


class Drawn:
  """What was drawn, by clip, frame and annotator.

  Args:
    videos: the folder of the videos or pictures.
    clips_are_folders: whether the pictures of a folder are the frames of one clip.
    line_width: of lines, with its unit; None: `LINE_WIDTH`.
    pattern, first_frame: find clip and frame in what a tool calls a picture: see `source.place`.

  Attributes:
    source: a `Source`, whole after `finish`.
    videos: the `Videos`.
  """

  def __init__(self, videos, clips_are_folders, line_width=None, pattern=None, first_frame=0):
    self.videos = Videos(videos, clips_are_folders=clips_are_folders)
    self.source = Source(clips={}, labels=[], classes=[])
    self._line_width, self._pattern, self._first_frame = line_width, pattern, first_frame
    self._has_lines = False
    self._makers, self._origins = {}, {}

  def header(self, clip):
    """The `readers.Media` of a clip, which is imported from now on."""
    self.source.clips.setdefault(clip, Clip(clip, self.videos.found[clip]))
    return self.source.header(clip)

  def picture(self, text, where):
    """The clip and frame of what a tool calls a picture (`UserError`: see `source.place`)."""
    return place(self.source, self.videos, text, where, self._pattern, self._first_frame)

  def label(self, clip, frame, annotator, origin):
    """Notes that a frame is labelled, if only with nothing: see `add`."""
    self.header(clip)
    key = clip, frame, annotator
    other = self._origins.setdefault(key, origin)
    if other != origin:
      raise UserError(
        f"{origin}: frame {frame} of {clip} is labelled in {other} too; name the people apart "
        "(--annotations anna=FILE ben=FILE), or remove one."
      )
    return self._makers.setdefault(key, [])

  def is_labelled(self, clip, frame, annotator):
    """Whether a frame was noted as labelled: see `label`."""
    return (clip, frame, annotator) in self._makers

  def add(self, clip, frame, annotator, origin, name, maker, *, is_line=False):
    """Adds a shape to a frame.

    Args:
      clip: the clip's name.
      frame: counted from 0.
      annotator: who drew it.
      origin: the file or entry in which all of one person's shapes on a frame stand.
      name: of its class.
      maker: a `shapes.Shape`, or a function that makes it of the clip's `readers.Media`.
      is_line: whether it is a line, of which the tool stores no width.

    Raises:
      UserError: another origin has the same frame.
    """
    self.label(clip, frame, annotator, origin).append(maker)
    self._has_lines |= is_line
    if name not in self.source.classes:
      self.source.classes.append(name)

  def note(self, text):
    """Tells the user something, once."""
    if text not in self.source.notes:
      self.source.notes.append(text)

  @property
  def n_empty(self):
    """How many labelled frames show nothing."""
    return sum(not makers for makers in self._makers.values())

  def finish(self, what):
    """Returns the `Source` (`UserError`: nothing is labelled, `what` it was sought in)."""
    if not self._makers:
      skipped = ", ".join(f"{len(names)} {kind}" for kind, names in self.source.skipped.items())
      left_out = f" (left out: {skipped})" * bool(skipped)
      raise UserError(
        f"{what} holds nothing to import{left_out}; draw on a frame, or import the clips alone "
        "with the importer videos."
      )
    for (clip, frame, annotator), makers in self._makers.items():
      self.source.labels.append(Label(clip, frame, self._drawer(makers), annotator))
    if self._has_lines and self._line_width is None:
      self.source.notes.append(
        f"Lines are drawn {LINE_WIDTH[0]:g} pixels wide; say another width with --line-width, as "
        "2mm or 6px."
      )
    for name in self.videos.found:
      if name not in self.source.clips:
        self.source.skip("clips that no annotation names", name)
    for path in self.videos.others:
      if path.suffix.lower() not in _NO_MEDIA:
        self.source.skip("files that are neither videos nor pictures", path.name)
    return self.source

  def _drawer(self, makers):
    def draw(media):
      made = [maker(media) if callable(maker) else maker for maker in makers]
      wide = [
        shapes.of_width(shape, self._line_width or LINE_WIDTH, media)
        if shape.kind == "polyline"
        else shape
        for shape in made
      ]
      return shapes.draw(wide, media, self.source)

    return draw
