"""Reads layered pictures: OpenRaster, Photoshop's PSD, and TIFF of one page a layer."""

import contextlib
import dataclasses
import logging
import pathlib
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, TiffImagePlugin

from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import confidences, limits, stills
from tfds_builders import tables

SUFFIXES = (".ora", ".psd", ".psb", ".tif", ".tiff")
# More is no picture that somebody painted.
_MAX_LAYERS = 1000
_MAX_DEPTH = 100
# Of one member of an archive, unpacked.
MAX_MEMBER = 2**28
# Of a picture and of each layer, of which a few numbers of 32 bits are in memory together.
MAX_PIXELS = 2**25
_MAX_DECODED = 16 * MAX_PIXELS
# Ways of composing by which a layer cuts others, or is cut by them.
_CUTTING = ("dst-out", "dst-in", "dst-atop", "src-in", "src-out", "src-atop", "xor", "clear", "src")
_MEND = "save it again"
# What Pillow, zipfile and psd-tools raise on damaged files.
_ERRORS = (
  OSError,  # UnidentifiedImageError too
  SyntaxError,  # what a plugin of Pillow raises on a broken header
  ValueError,
  EOFError,
  TypeError,
  LookupError,
  ArithmeticError,
  struct.error,
  zlib.error,
  zipfile.BadZipFile,
  NotImplementedError,  # of zipfile
  Image.DecompressionBombError,
)


# Of psd-tools alone, where a part that others need is not there.
_PSD_ERRORS = (AttributeError, AssertionError)
# The tag of TIFF that names a page.
_PAGE_NAME = 285


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a picture.

  Attributes:
    name: its own, '' if it has none.
    groups: names of those it is in, the innermost first.
    visible: whether it and its groups are.
    confidence: makes how opaque it is, with what its opacity, groups and masks leave of it: float32
      [h, w] of the whole picture, in [0, 1].
    colours: makes its own colours, uint8 [h, w, 3] or [h, w], and where they are, [h, w] bool.
  """

  name: str
  groups: tuple[str, ...]
  visible: bool
  confidence: Callable[[], np.ndarray]
  colours: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Document:
  """A layered picture.

  Attributes:
    path: of the file.
    height: h, in pixels.
    width: w, likewise.
    layers: from the bottom to the top.
    skipped: names of layers without pixels of their own.
  """

  path: pathlib.Path
  height: int
  width: int
  layers: tuple[Layer, ...]
  skipped: tuple[str, ...] = ()


def read(path):
  """Reads what layers a file has: a `Document`; their pixels are read when they are asked for.

  Raises:
    UserError: it is damaged, too large, has no layers, or some that cannot be read rightly.
  """
  check_file(path, _MEND)
  suffix = path.suffix.lower()
  read_one = _read_ora if suffix == ".ora" else _read_tiff if "tif" in suffix else _read_psd
  document = read_one(path)
  if not document.layers:
    raise UserError(f"{path} has no layers; paint each class on a layer of its own.")
  if len(document.layers) > _MAX_LAYERS:
    raise UserError(
      f"{path} has {len(document.layers)} layers, more than {_MAX_LAYERS}; merge some."
    )
  return document


@contextlib.contextmanager
def _damage(path, more=()):
  """Around calls of a library: what it raises is damage, of `more` kinds too."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about metadata, without the file's name
    for kind in more:
      if issubclass(kind, Warning):
        warnings.simplefilter("error", kind)
    with damage_is_a_user_error(path, _MEND, (*_ERRORS, *more)):
      yield


def _paste(values, top, left, height, width, fill=0.0):
  """Lays values [h', w', ...] on a picture of h x w, which cuts them."""
  whole = np.full((height, width, *values.shape[2:]), fill, values.dtype)
  bottom, right = min(top + values.shape[0], height), min(left + values.shape[1], width)
  y, x = max(top, 0), max(left, 0)
  if y < bottom and x < right:
    whole[y:bottom, x:right] = values[y - top : bottom - top, x - left : right - left]
  return whole


# OpenRaster: https://www.openraster.org/baseline/layer-stack-spec.html


def _member(archive, name, path):
  info = archive.getinfo(name)
  if info.flag_bits & 1:
    raise UserError(f"{path} asks for a password; save it without.")
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise UserError(f"{path}: {tables.shown(name)} is compressed in a way that is not read.")
  with archive.open(info) as file:
    # What the archive says of sizes may be wrong.
    data = file.read(MAX_MEMBER + 1)
  if len(data) > MAX_MEMBER:
    raise UserError(f"{path}: {tables.shown(name)} is larger than {MAX_MEMBER >> 20} MiB.")
  return data


def _whole(node, name, default=None):
  text = node.get(name, default)
  if text is None or not text.lstrip("+-").isdecimal() or len(text) > 9:
    raise UserError(f"stack.xml has {name}={tables.shown(str(text), 20)} in <{node.tag}>; {_MEND}")
  return int(text)


def _opacity(node):
  text = node.get("opacity", "1")
  value = tables.parse_number(text, float, decimal_comma=False)
  if not 0 <= value <= 1:
    raise UserError(f"stack.xml has the opacity {tables.shown(text, 20)}, not 0 to 1; {_MEND}")
  return value


def _read_ora(path):
  import defusedxml
  from defusedxml import ElementTree

  with _damage(path), zipfile.ZipFile(path) as archive:
    text = _member(archive, "stack.xml", path)
    names = set(archive.namelist())
  try:
    root = ElementTree.fromstring(text)
  # The last two: an encoding that there is not, or that expat does not read.
  except (ElementTree.ParseError, defusedxml.DefusedXmlException, LookupError, ValueError) as error:
    raise UserError(f"{path}: its stack.xml is no XML that is read ({error}); {_MEND}.") from error
  layers = []

  def walk(node, groups, opacity, visible):
    if len(groups) > _MAX_DEPTH or len(layers) > _MAX_LAYERS:
      raise UserError(f"stack.xml has more than {_MAX_DEPTH} groups in groups or too many layers.")
    mode = node.get("composite-op", "svg:src-over").rpartition(":")[2]
    if mode in _CUTTING:
      raise UserError(
        f"the layer {tables.shown(node.get('name', ''))} is drawn with {mode}, which cuts other "
        "layers; merge them in the program that painted it."
      )
    opacity *= _opacity(node)
    visible = visible and node.get("visibility", "visible") != "hidden"
    name = tables.normal(node.get("name", "").strip())
    if node.tag == "layer":
      source = node.get("src", "")
      if source not in names:
        raise UserError(f"its layer {tables.shown(source)} is not in the archive; {_MEND}.")
      at = _whole(node, "y", "0"), _whole(node, "x", "0")
      part = _OraLayer(path, source, at, height, width, opacity)
      layers.append(Layer(name, groups, visible, part.confidence, part.colours))
    elif node.tag == "stack":
      if groups and (node.get("x", "0"), node.get("y", "0")) != ("0", "0"):
        raise UserError(f"its group {tables.shown(name)} is moved as a whole; merge it.")
      for child in node:
        walk(child, (name, *groups), opacity, visible)

  try:
    if root.tag != "image" or root.find("stack") is None:
      raise UserError("its stack.xml describes no picture with layers.")
    height, width = _whole(root, "h"), _whole(root, "w")
    if min(height, width) < 1:
      raise UserError(f"stack.xml speaks of {width} x {height} pixels; {_MEND}.")
    limits.check_pixels(path, height, width, MAX_PIXELS)
    walk(root.find("stack"), (), 1.0, True)
  except UserError as error:
    raise UserError(f"{path}: {error}") if str(path) not in str(error) else error from error
  # The first in the file is the topmost.
  return Document(path, height, width, tuple(reversed(layers)))


@dataclasses.dataclass(frozen=True)
class _OraLayer:
  path: pathlib.Path
  source: str
  at: tuple[int, int]
  height: int
  width: int
  opacity: float

  def confidence(self):
    with self._opened() as image:
      alpha = _alpha(image)
      if alpha is None:
        alpha = np.ones((image.height, image.width), np.float32)
    return _paste(alpha * np.float32(self.opacity), *self.at, self.height, self.width)

  def colours(self):
    with self._opened() as image:
      colours, there = _colours(image)
    size = *self.at, self.height, self.width
    return _paste(colours, *size), _paste(there, *size, fill=False)

  @contextlib.contextmanager
  def _opened(self):
    with _damage(self.path), zipfile.ZipFile(self.path) as archive:
      data = _member(archive, self.source, self.path)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / "layer.png"
      file.write_bytes(data)
      try:
        with stills.opened(file) as image:
          limits.check_pixels(file, image.height, image.width, MAX_PIXELS)
          stills.pixels(image, file)  # refuses what is damaged
          yield image
      except UserError as error:
        name = f"{self.path}: {tables.shown(self.source)}"
        raise UserError(str(error).replace(str(file), name)) from error


def _alpha(image):
  """How opaque an open picture is, float32 [h, w] in [0, 1]; None if it says nothing of it."""
  if "transparency" in image.info and image.mode not in ("RGBA", "LA", "PA"):
    image = image.convert("RGBA")
  if "A" not in image.getbands():
    return None
  return np.asarray(image.getchannel("A")).astype(np.float32) / 255


def _colours(image):
  """Its colours, uint8 [h, w, 3] or grey [h, w], and where it is not transparent, [h, w] bool."""
  alpha = _alpha(image)
  there = np.ones((image.height, image.width), bool) if alpha is None else alpha == 1
  if image.mode.startswith("I;16"):
    return np.rint(np.asarray(image) / 257).astype(np.uint8), there
  return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")), there


# PSD: https://www.adobe.com/devnet-apps/photoshop/fileformatashtml/


def _read_psd(path):
  import psd_tools

  with path.open("rb") as file:
    start = file.read(26)
  if len(start) < 26 or start[:4] != b"8BPS":
    raise UserError(f"{path} is damaged or no PSD; {_MEND}.")
  height, width = struct.unpack(">II", start[14:22])
  limits.check_pixels(path, height, width, MAX_PIXELS)
  logging.getLogger("psd_tools").setLevel(logging.CRITICAL)  # what it finds odd, without the file
  with _damage(path, _PSD_ERRORS):
    psd = psd_tools.PSDImage.open(path, max_alloc_bytes=_MAX_DECODED)
    tree = _tree(psd)
  if psd.color_mode.name not in ("RGB", "GRAYSCALE"):
    raise UserError(f"{path} is in {psd.color_mode.name}; save it as RGB or grey.")
  layers, skipped = [], []
  for layer, above in tree:
    if layer.has_pixels():
      part = _PsdLayer(path, layer, above, height, width)
      visible = all(one.visible for one in (layer, *above))
      names = [tables.normal(one.name.strip()) for one in (layer, *above)]
      layers.append(Layer(names[0], tuple(names[1:]), visible, part.confidence, part.colours))
    else:
      # Adjustments, fills, and layers that nothing was painted on.
      skipped.append(tables.normal(layer.name.strip()))
  return Document(path, height, width, tuple(layers), tuple(skipped))


def _tree(psd):
  """The layers from the bottom to the top, each with the groups that it is in, innermost first."""
  found, waiting = [], [(layer, ()) for layer in reversed(psd)]
  while waiting:
    layer, above = waiting.pop()
    if layer.is_group():
      waiting += [(child, (layer, *above)) for child in reversed(layer)]
    else:
      found.append((layer, above))
  return found


@dataclasses.dataclass(frozen=True)
class _PsdLayer:
  path: pathlib.Path
  layer: object
  above: tuple
  height: int
  width: int

  def confidence(self):
    self._refuse_what_cuts()
    found = self._paste(self._alpha())
    found *= np.float32(self.layer.fill_opacity / 255)
    for one in (self.layer, *self.above):
      found *= np.float32(one.opacity / 255) * self._mask(one)
    return np.clip(found, 0, 1)

  def colours(self):
    colours = self._channels(self.layer, "color")
    if colours is None:
      raise UserError(f"{self.path}: the layer {tables.shown(self.layer.name)} has no colours.")
    colours = np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)
    if colours.shape[-1] == 1:
      colours = colours[..., 0]
    return self._paste(colours), self._paste(self._alpha() == 1)

  def _channels(self, one, name):
    from psd_tools.compression import PSDDecompressionWarning

    with _damage(self.path, (*_PSD_ERRORS, PSDDecompressionWarning)):
      return one.numpy(name)

  def _alpha(self):
    """How opaque its paint is: float32 [h', w'] of its own size."""
    alpha = self._channels(self.layer, "shape")
    if alpha is None:
      return np.ones((self.layer.height, self.layer.width), np.float32)
    return alpha[..., 0].astype(np.float32)

  def _paste(self, values):
    return _paste(values, self.layer.top, self.layer.left, self.height, self.width)

  def _refuse_what_cuts(self):
    for one in (self.layer, *self.above):
      name = tables.shown(one.name)
      if one.clipping:
        raise UserError(f"{self.path}: the layer {name} is clipped to the one below; merge them.")
      with _damage(self.path, _PSD_ERRORS):
        vector = one.has_vector_mask() and not one.vector_mask.disabled
      if vector and not (one.mask is not None and one.mask.has_real()):
        raise UserError(f"{self.path}: the layer {name} has a vector mask; rasterize it.")

  def _mask(self, one):
    """What the mask of a layer or group leaves: float32 [h, w], or one number for all."""
    mask = one.mask
    if mask is None or mask.disabled:
      return np.float32(1)
    parameters = mask.parameters
    if parameters is not None and parameters.user_mask_feather:
      raise UserError(
        f"{self.path}: the mask of layer {tables.shown(one.name)} is feathered; apply the mask."
      )
    outside = np.float32(mask.background_color / 255)
    found = self._channels(one, "mask")
    if found is None:
      found = outside
    else:
      found = found[..., 0].astype(np.float32)
      found = _paste(found, mask.top, mask.left, self.height, self.width, fill=outside)
    if parameters is not None and parameters.user_mask_density is not None:
      found = 1 - (1 - found) * np.float32(parameters.user_mask_density / 255)
    return found


# TIFF


def _read_tiff(path):
  with _damage(path), path.open("rb") as file, Image.open(file, formats=("TIFF",)) as image:
    n = image.n_frames
    if n == 1:
      raise UserError(
        f"{path} has one page, and each layer is a page here; if a program wrote its layers into "
        "it in its own way, save it as PSD or OpenRaster."
      )
    if n > _MAX_LAYERS:
      raise UserError(f"{path} has {n} pages, more than {_MAX_LAYERS}; one a class is expected.")
    sizes, names = [], []
    for page in range(n):
      image.seek(page)
      sizes.append(image.size)
      names.append(_page_name(image))
  width, height = sizes[0]
  limits.check_pixels(path, height, width, MAX_PIXELS)
  for i, size in enumerate(sizes):
    if size != sizes[0]:
      raise UserError(
        f"{path}: page {i + 1} is {size[0]} x {size[1]} pixels and the first {width} x {height}; "
        "enlarge each layer to the picture's size."
      )
  pages = [_Page(path, page) for page in range(n)]
  layers = [
    Layer(name, (), True, page.confidence, page.colours)
    for name, page in zip(names, pages, strict=True)
  ]
  return Document(path, height, width, tuple(layers))


def _page_name(image):
  """What a page says it is called, '' if nothing."""
  for tag in (_PAGE_NAME, TiffImagePlugin.IMAGEDESCRIPTION):
    text = image.tag_v2.get(tag)
    if isinstance(text, str) and (text := text.strip("\0 \n")) and "\n" not in text:
      return tables.normal(text)
  return ""


@dataclasses.dataclass(frozen=True)
class _Page:
  path: pathlib.Path
  page: int

  @contextlib.contextmanager
  def _opened(self):
    with self.path.open("rb") as file:
      with _damage(self.path):
        image = Image.open(file, formats=("TIFF",))
        image.seek(self.page)
        limits.check_pixels(self.path, image.height, image.width, MAX_PIXELS)
        image.load()
      yield image

  def confidence(self):
    with self._opened() as image:
      alpha, values, mode = _alpha(image), np.asarray(image), image.mode
    if alpha is not None:
      return alpha
    if values.ndim > 2 or mode == "P":
      raise UserError(
        f"{self.path}: page {self.page + 1} has colours but no transparency; save its layer with "
        "transparency, or as grey values."
      )
    full = {"L": 255, "1": 1}.get(mode, 65535 if mode.startswith("I;16") else None)
    return confidences.fractions(values, self.path, full=full)

  def colours(self):
    with self._opened() as image:
      return _colours(image)
