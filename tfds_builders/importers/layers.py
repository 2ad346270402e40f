"""Painted layers, one a class: OpenRaster, PSD, or TIFF of one page a layer.

The confidence is how opaque a stroke is: the layer's opacity times that of the paint. Where strokes
of one class overlap, on several layers, the most confident counts.
"""

import pathlib
import re
import shutil
import tempfile
import weakref

import numpy as np
from PIL import Image

from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders import tables
from tfds_builders.importers import folder as folder_lib
from tfds_builders.importers import layered, options
from tfds_builders.importers.source import Clip, Label, Source, Videos, place

HELP = "painted layers (OpenRaster, PSD, TIFF pages): opacity is the confidence"
# What programs make of a layer's name when it is copied or repeated.
_COPY = re.compile(r"(?:copy of )?(.+?)(?:[ _-]copy)?(?:[ _-]?#?\d+)?", re.IGNORECASE)

_OF_NO_CLASS, _INVISIBLE = "layers of no class", "invisible layers"


def add_options(command):
  """Adds its options to a parser."""
  options.add_annotations(command, "folder of layered pictures, or one")
  command.add_argument(
    "--classes",
    type=options.names,
    required=True,
    help="names of the layers, or groups of layers, that are classes: a,b ('a 2', 'a copy' are a)",
  )
  command.add_argument(
    "--picture-layer",
    metavar="NAME",
    help="layer that is the picture; by default the one at the bottom (TIFF: the first page)",
  )
  options.add_videos(command, required=False)
  options.add_frame_pattern(command)


def _files(path):
  """The layered pictures of a folder and those below it, by name, and what else is there."""
  if path.is_file():
    if path.suffix.lower() not in layered.SUFFIXES:
      kinds = ", ".join(suffix[1:] for suffix in layered.SUFFIXES)
      raise UserError(f"{path} is no layered picture ({kinds}); mend --annotations.")
    return {tables.normal(path.stem): path}, []
  if not path.is_dir():
    raise UserError(f"{path} does not exist; mend --annotations.")
  found, others = {}, []

  def collect(folder):
    for entry in tables.visible(folder):
      if entry.is_dir():
        if entry.is_symlink():
          raise UserError(f"{entry} is a link to a folder; name the folder itself.")
        collect(entry)
      elif entry.suffix.lower() in layered.SUFFIXES:
        name = tables.normal(entry.relative_to(path).with_suffix("").as_posix())
        if name in found:
          raise UserError(f"{entry} and {found[name].name} have one name; rename one of them.")
        found[name] = entry
      else:
        others.append(entry)

  collect(path)
  if not found:
    kinds = ", ".join(suffix[1:] for suffix in layered.SUFFIXES)
    raise UserError(f"{path} holds no layered picture ({kinds}); mend --annotations.")
  tables.refuse_same_files(found.values())
  return found, others


class _Painted:
  """Finds the picture and the classes among layers."""

  def __init__(self, source, classes, picture_layer):
    self._source = source
    self._by_name = {tables.normal(name).casefold(): name for name in classes}
    self._classes, self._picture_layer = classes, picture_layer
    # Layers' names that became a class, by class.
    self.spellings = {}

  def _class_of(self, layer):
    for text in (layer.name, *layer.groups):
      found = _COPY.fullmatch(text)
      for one in (text, found[1] if found else text):
        if one.casefold() in self._by_name:
          return self._by_name[one.casefold()]
    return None

  def picture(self, document):
    """The index of the layer that is the picture; None: it is not there."""
    names = [layer.name.casefold() for layer in document.layers]
    if self._picture_layer is None:
      return None if self._class_of(document.layers[0]) else 0
    return next((i for i, n in enumerate(names) if n == self._picture_layer.casefold()), None)

  def group(self, document, picture):
    """Triples of class (None: it is none), number and layer, of all but the picture's."""
    unnamed = not any(layer.name for layer in document.layers)
    if unnamed and len(document.layers) != len(self._classes) + 1:
      raise UserError(
        f"{document.path} has {len(document.layers)} layers without names; name them as the "
        f"classes, or bring the picture and one for each of {len(self._classes)} classes."
      )
    for i, layer in enumerate(document.layers):
      name = self._class_of(layer)
      if unnamed:
        # Pages of a TIFF stand in the order of the classes then, above the picture.
        name = self._classes[i - 1]
      if i != picture:
        yield name, i, layer

  def count(self, document, picture):
    """Counts what is left out, and collects how classes are spelled."""
    file = document.path.name
    for name, i, layer in self.group(document, picture):
      where = f"{file}: {layer.name or f'layer {i + 1}'}"
      if name is None:
        self._source.skip(_OF_NO_CLASS, where)
      elif not layer.visible:
        self._source.skip(_INVISIBLE, where)
      else:
        self.spellings.setdefault(name, {})[layer.name or f"page {i + 1}"] = None
    for name in document.skipped:
      self._source.skip("layers without pixels", f"{file}: {name}")

  def draw(self, document, picture, media):
    """The masks of a document: uint8 [h, w] by class."""
    found = {}
    for name, i, layer in self.group(document, picture):
      if name is None or not layer.visible:
        continue
      confidence = layer.confidence()
      if confidence.shape != (media.height, media.width):
        readers.check_mask_size(document.path, confidence.shape, media)
      where = f"{document.path}: {tables.shown(layer.name or f'layer {i + 1}')}"
      if confidence.min() == confidence.max() > 0:
        raise UserError(
          f"{where} covers the whole picture alike; erase where the class is not, or name another "
          "--picture-layer."
        )
      if not confidence.any():
        self._source.skip("layers that nothing is painted on", where)
      found[name] = np.maximum(found.get(name, np.float32(0)), confidence)
    return {name: np.rint(255 * confidence).astype(np.uint8) for name, confidence in found.items()}


class _Pictures:
  """Writes the pictures of layered files where they stay until they are imported."""

  def __init__(self, source):
    self._folder = pathlib.Path(tempfile.mkdtemp())
    weakref.finalize(source, shutil.rmtree, self._folder, ignore_errors=True)
    self._source = source

  def add(self, name, document, layer):
    """Writes a picture, or compares it with the one of this name (`UserError`: it is another)."""
    pixels, there = layer.colours()
    if not there.all():
      pixels[~there] = 0
      self._source.skip(
        "transparent parts of pictures, which become black", f"{document.path.name}: {layer.name}"
      )
    file = self._folder / f"{len(self._source.clips):06d}.png"
    if name in self._source.clips:
      with Image.open(self._source.clips[name].path) as other:
        if not np.array_equal(np.asarray(other), pixels):
          raise UserError(
            f"{document.path} has another picture than others' {name}; paint on the same one."
          )
      return
    Image.fromarray(pixels).save(file)
    self._source.clips[name] = Clip(name, file)


def find(
  *,
  annotations,
  classes,
  picture_layer=None,
  videos=None,
  folders_are_clips=False,
  frame_pattern=None,
):
  """Reads layered pictures.

  Args:
    annotations: pairs of annotator ('' if unknown) and path of a layered picture or a folder.
    classes: K names of layers, or of groups of them.
    picture_layer: name of the layer that is the picture; None: the one at the bottom.
    videos: a folder of the videos or pictures, which are found by the layered pictures' names;
      None: each of them is a still of its own.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.
    frame_pattern: see `source.place`.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  folder_lib.check_names(classes, ())
  if videos is None and (frame_pattern is not None or folders_are_clips):
    raise UserError("--frame-pattern and --folders-are-clips need --videos, the folder of clips.")
  source = Source(clips={}, labels=[], classes=list(classes))
  painted, pictures = _Painted(source, classes, picture_layer), _Pictures(source)
  clips = None if videos is None else Videos(videos, clips_are_folders=folders_are_clips)
  for annotator, path in annotations:
    files, others = _files(path)
    for other in others:
      source.skip("files that are no layered pictures", other.name)
    for name, file in files.items():
      document = layered.read(file)
      picture = painted.picture(document)
      frame = 0
      if clips is not None:
        name, frame = place(source, clips, name, str(file), frame_pattern)
        size = document.height, document.width
        readers.check_mask_size(file, size, source.header(name))
      elif picture is None:
        raise UserError(
          f"{file} has no layer for the picture at the bottom ({_shown_layers(document)}); name it "
          "with --picture-layer, or say with --videos where the picture is."
        )
      else:
        pictures.add(name, document, document.layers[picture])
      painted.count(document, picture)
      source.labels.append(Label(name, frame, _draw(painted, file, picture), annotator))
  if not painted.spellings:
    found = [*source.skipped.get(_OF_NO_CLASS, ()), *source.skipped.get(_INVISIBLE, ())]
    raise UserError(
      f"No visible layer is called {' or '.join(classes)} (there are: "
      f"{tables.shown_list(found, 5) or 'none'}); mend --classes, or rename the layers."
    )
  _add_notes(source, painted, clips)
  return source


def _shown_layers(document):
  return tables.shown_list([layer.name for layer in document.layers], 5)


def _draw(painted, file, picture):
  def draw(media):
    # Read again, as all of them together may be large.
    return painted.draw(layered.read(file), picture, media)

  return draw


def _add_notes(source, painted, clips):
  for name, spellings in painted.spellings.items():
    others = [text for text in spellings if text.casefold() != name.casefold()]
    if others:
      source.notes.append(f"Layers that count as {name}: {tables.shown_list(others, 5)}.")
  if clips is not None:
    for name in clips.found:
      if name not in source.clips:
        source.skip("pictures that no layers are of", name)
    clips.note_others(source)
