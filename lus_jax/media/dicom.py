"""Reads DICOM: clips and pictures, as a viewer shows them."""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import pathlib
import struct
import warnings
import zlib

import av
import numpy as np
from PIL import Image

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import limits, windows
from lus_jax.media.clips import Media

SUFFIXES = (".dcm", ".dicom")
_MEND = "export or copy it again"
# Elements of more bytes stay in the file until they are asked for.
_DEFERRED = 2**20
# Bytes that a deflated file may unfold to, all of which are in memory twice.
_MOST_DEFLATED = 2**29
# A window is chosen from so many frames, and from about so many values of them.
_SAMPLED, _SAMPLED_VALUES = 8, 2**22
# Values of 32 bits that are shown together.
_AT_ONCE = 2**22
# How far grey may be from its own colour, and how much of a picture of ultrasound is grey.
_COLOUR_NOISE = 6
_MOST = 0.5
_CLEARLY = 0.25
# Transfer syntaxes by what decodes them, first those that are not compressed. Plugins are named:
# whatever else is installed (one is under the GPL) gives other values for some files.
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_PLAIN = (
  *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"),
  _BIG_ENDIAN,
)
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_RLE = "1.2.840.10008.1.2.5"
# How regions on the screen that have no two dimensions of space are told (C.8.5.5.1.1): M-mode,
# spectra, waves, graphics.
_TRACES = (2, 3, 4, 5)
_PLUGINS = {
  "1.2.840.10008.1.2.4.80": "pyjpegls",
  "1.2.840.10008.1.2.4.81": "pyjpegls",
  "1.2.840.10008.1.2.4.90": "pillow",
  "1.2.840.10008.1.2.4.91": "pillow",
  _RLE: "pydicom",
}
# Markers of a JPEG's frame, and how one calls its channels that holds red, green and blue.
_JPEG_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
_RGB_NAMES = ([82, 71, 66], [114, 103, 98])


@functools.cache
def _errors():
  """What pydicom and the decoders raise on damaged files.

  Elements are turned into numbers and text when they are asked for, by rules of their own.
  """
  from pydicom import errors  # slow to import, and needed by few

  return (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,  # RecursionError too
    AssertionError,
    struct.error,
    zlib.error,
    av.FFmpegError,
    errors.BytesLengthException,
    errors.InvalidDicomError,
  )


@contextlib.contextmanager
def quiet():
  """Silences pydicom: what it mends or tries is said without the file's name, on every channel."""
  logger = logging.getLogger("pydicom")
  level = logger.level
  logger.setLevel(logging.CRITICAL + 1)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def _damage(path):
  with quiet(), damage_is_a_user_error(path, _MEND, _errors()):
    yield


def is_dicom(path):
  """Whether a file says at its beginning that it is DICOM, as many are named without a suffix."""
  try:
    # Whoever opens a pipe waits.
    if not path.is_file():
      return False
    with path.open("rb") as file:
      return file.read(132)[128:] == b"DICM"
  except OSError:
    return False


def _is_deflated(path):
  """Whether a file is deflated; refuses one that unfolds to too much, in little memory."""
  from pydicom.filereader import read_file_meta_info
  from pydicom.uid import DeflatedExplicitVRLittleEndian

  meta = read_file_meta_info(path)
  if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
    return False
  inflate, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
  with path.open("rb") as file:
    file.seek(144 + meta.FileMetaInformationGroupLength)
    while chunk := inflate.unconsumed_tail or file.read(2**20):
      n_bytes += len(inflate.decompress(chunk, 2**20))
      limits.check_unfolded(path, n_bytes, _MOST_DEFLATED)
  return True


def header(path):
  """Reads all of a file but its pixels: a `pydicom.Dataset` (`UserError` if it is damaged)."""
  from pydicom import dcmread

  check_file(path, _MEND)
  named = is_dicom(path)
  with _damage(path):
    deflated = named and _is_deflated(path)
    # Of a deflated file nothing can be read later.
    return dcmread(path, defer_size=None if deflated else _DEFERRED, force=not named)


def is_picture(path):
  """Whether a DICOM file has pixels: reports and directories have none (`UserError`: damaged)."""
  return any(name in header(path) for name in ("Rows", "PixelData"))


def subject(path):
  """Whose a DICOM file is and of which day, as it says: PatientID, and a date as 20240301.

  Either is '' where it says nothing.

  Raises:
    UserError: it is damaged.
  """
  dataset = header(path)
  with _damage(path):
    dates = (dataset.get(name) for name in ("StudyDate", "ContentDate", "AcquisitionDate"))
    return str(dataset.get("PatientID") or "").strip(), str(next(filter(None, dates), "")).strip()


def _number(dataset, name):
  """The first number of an element; None where there is none that makes sense."""
  try:
    value = dataset.get(name)
    value = float(value[0] if isinstance(value, list) or hasattr(value, "append") else value)
  except _errors():
    return None
  return value if math.isfinite(value) else None


def _whole(dataset, name, path, default=None):
  """A whole number of the description of pixels."""
  with _damage(path):
    value = dataset.get(name)
    value = default if value in (None, "") else int(value)
  if value is None:
    raise UserError(f"{path} has no {name}, so that it holds no picture; {_MEND}.")
  return value


@dataclasses.dataclass(frozen=True)
class _Pixels:
  """How the pixels of an open file are stored.

  Attributes:
    path: of the file.
    dataset: its header.
    n_frames: N.
    height: h.
    width: w.
    samples: values a pixel, 1 or 3.
    allocated: bits that each value takes.
    bits: of them in use.
    is_signed: whether they may be negative.
    colours: what the header calls them (PhotometricInterpretation).
    syntax: the transfer syntax.
    file: where they are.
    start: their first byte there.
  """

  path: pathlib.Path
  dataset: object
  n_frames: int
  height: int
  width: int
  samples: int
  allocated: int
  bits: int
  is_signed: bool
  colours: str
  syntax: object
  file: object
  start: int

  @property
  def says_ybr(self):
    """Whether the header says brightness and two differences of colour; decoders undo some."""
    return self.colours.startswith("YBR") and self.colours not in ("YBR_RCT", "YBR_ICT")


def _syntax(dataset):
  from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

  implicit, little = dataset.original_encoding
  plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
  return dataset.file_meta.get("TransferSyntaxUID") or (
    ImplicitVRLittleEndian if implicit else plain
  )


@contextlib.contextmanager
def _opened(path):
  """Yields the `_Pixels` of a file, all of which are there."""
  dataset = header(path)
  if "PixelData" not in dataset:
    floats = [name for name in ("FloatPixelData", "DoubleFloatPixelData") if name in dataset]
    if floats:
      raise UserError(f"{path} holds floating-point pixels; save it in 8 or 16 bits.")
    raise UserError(f"{path} is DICOM without a picture, or cut off before it; {_MEND}.")
  height, width = (_whole(dataset, name, path) for name in ("Rows", "Columns"))
  n_frames = _whole(dataset, "NumberOfFrames", path, 1) or 1
  samples = _whole(dataset, "SamplesPerPixel", path, 1)
  allocated = _whole(dataset, "BitsAllocated", path, 8)
  bits = _whole(dataset, "BitsStored", path, allocated)
  if min(height, width, n_frames) < 1:
    raise UserError(f"{path} is damaged: its header speaks of no picture; {_MEND}.")
  limits.check_pixels(path, height, width, limits.MAX_FRAME_PIXELS)
  if samples not in (1, 3) or not 0 < bits <= allocated or allocated not in (1, 8, 16, 32):
    raise UserError(
      f"{path} has {samples} x {bits} of {allocated} bits a pixel, which are not read; save it in "
      "grey or RGB, with 8 or 16 bits."
    )
  with contextlib.ExitStack() as stack:
    with _damage(path):
      colours = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
      syntax = _syntax(dataset)
      element = dataset.get_item("PixelData")
      value = element.value
      if value is None:
        file, start, stated = path.open("rb"), element.value_tell, element.length
        stack.enter_context(file)
        there = path.stat().st_size - start
      else:  # small, or of a deflated file
        file, start, stated, there = io.BytesIO(value), 0, len(value), len(value)
    pixels = _Pixels(
      path,
      dataset,
      n_frames,
      height,
      width,
      samples,
      allocated,
      bits,
      _whole(dataset, "PixelRepresentation", path, 0) == 1,
      colours or ("RGB" if samples == 3 else "MONOCHROME2"),
      syntax,
      file,
      start,
    )
    if syntax in _PLAIN:
      pixels = _check_bytes(pixels, min(there, stated))
    else:
      _check_fragments(pixels, start + there)
    yield pixels


def _check_bytes(pixels, n_bytes):
  """Refuses a file that lacks uncompressed pixels; returns it with the colours that fit."""
  n_values = pixels.n_frames * pixels.height * pixels.width
  if pixels.colours in ("YBR_FULL", "YBR_FULL_422") and pixels.samples == 3:
    # Whether pairs of pixels share their colours is seen by the size; many say the wrong one.
    shared = n_bytes < 3 * n_values * pixels.allocated // 8
    pixels = dataclasses.replace(pixels, colours="YBR_FULL_422" if shared else "YBR_FULL")
  a_pixel = 2 if pixels.colours == "YBR_FULL_422" else pixels.samples
  expected = math.ceil(n_values * a_pixel * pixels.allocated / 8)
  if n_bytes < expected:
    raise UserError(
      f"{pixels.path} is truncated: {n_bytes} of {expected} bytes of its pixels are there; {_MEND}."
    )
  return pixels


def _check_fragments(pixels, end):
  """Refuses a file that is compressed in an unknown way, or lacks frames; `end` is of the file."""
  from pydicom.encaps import parse_basic_offsets, parse_fragments

  path, file = pixels.path, pixels.file
  if pixels.syntax not in (*_JPEG, *_LOSSLESS_JPEG, *_PLUGINS):
    raise UserError(
      f"{path} is compressed in a way that is not read ({pixels.syntax.name}); export it as JPEG, "
      "JPEG 2000, RLE or uncompressed, or as mp4."
    )
  with _damage(path):
    file.seek(pixels.start)
    parse_basic_offsets(file)
    n_fragments, offsets = parse_fragments(file)
    if n_fragments:
      file.seek(offsets[-1] + 4)
      last = offsets[-1] + 8 + struct.unpack("<I", file.read(4))[0]
  if n_fragments < pixels.n_frames or last > end:
    there = n_fragments - (n_fragments > 0 and last > end)
    raise UserError(f"{path} is truncated: {there} of {pixels.n_frames} frames are there; {_MEND}.")


def _encoded(pixels, wanted):
  """Yields the compressed bytes of frames."""
  from pydicom.encaps import generate_frames

  table = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
  offsets = tuple(pixels.dataset.get(name) for name in table)
  pixels.file.seek(pixels.start)
  frames = generate_frames(
    pixels.file,
    number_of_frames=pixels.n_frames,
    extended_offsets=offsets if all(offsets) else None,
  )
  left = list(reversed(wanted))
  for i, data in enumerate(frames):
    if left and left[-1] == i:
      left.pop()
      yield data
    if not left:
      return
  raise UserError(f"{pixels.path} is truncated: it has no frame {left[-1]}; {_MEND}.")


def _jpeg_frame(data):
  """The (bits, height, width) that a JPEG says at its start of frame; None where there is none."""
  at = 2
  while at + 9 < len(data) and data[at] == 0xFF:
    if data[at + 1] in _JPEG_SIZES:
      return struct.unpack(">BHH", data[at + 4 : at + 9])
    at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
  return None


def _size_inside(data):
  """The (height, width) that compressed pixels say themselves; None where they do not."""
  if data[:2] == b"\xff\xd8":
    found = _jpeg_frame(data)
    return found and found[1:]
  at = data.find(b"\xff\x4f\xff\x51")
  if at < 0 or len(data) < at + 24:
    return None
  right, bottom, left, top = struct.unpack(">4I", data[at + 8 : at + 24])
  return bottom - top, right - left


def _options(pixels):
  """What pydicom's decoders have to know."""
  return {
    "rows": pixels.height,
    "columns": pixels.width,
    "number_of_frames": pixels.n_frames,
    "samples_per_pixel": pixels.samples,
    "photometric_interpretation": pixels.colours,
    "planar_configuration": _whole(pixels.dataset, "PlanarConfiguration", pixels.path, 0),
    "bits_allocated": pixels.allocated,
    "bits_stored": pixels.bits,
    "pixel_representation": int(pixels.is_signed),
    "pixel_keyword": "PixelData",
    "pixel_vr": pixels.dataset.get_item("PixelData").VR or "OW",
  }


def _decoded(pixels, wanted):
  """Yields frames as they are stored, [h, w] or [h, w, 3], and what they say of their colours.

  That is True for brightness and two differences of colour, False for red, green and blue, None
  where nothing but the header says.
  """
  from pydicom.pixels import get_decoder

  with _damage(pixels.path):
    options, decoder = _options(pixels), None
    if pixels.syntax in _PLUGINS or pixels.syntax in _PLAIN:
      decoder = get_decoder(pixels.syntax)
  if pixels.syntax in _PLAIN:
    for i in wanted:
      with _damage(pixels.path):
        pixels.file.seek(pixels.start)
        values, _ = decoder.as_array(pixels.file, index=i, raw=True, **options)
      yield values, None
    return
  frames = _encoded(pixels, wanted)
  for _ in wanted:
    with _damage(pixels.path):
      data = next(frames)
      _check_size_inside(data, pixels)
      if pixels.syntax in _JPEG:
        found = _jpeg(data, pixels.path)
      elif pixels.syntax in _LOSSLESS_JPEG:
        found = _lossless_jpeg(data, pixels)
      else:
        found = _by_plugin(data, decoder, options, pixels)
    _check_decoded(found[0], pixels)
    yield found


def _check_size_inside(data, pixels):
  """Refuses a frame that is not of the header's size before a decoder takes memory for it."""
  path = pixels.path
  if pixels.syntax == _RLE:
    # A pair of bytes becomes 128 at most.
    if 64 * len(data) > _MOST_DEFLATED:
      raise UserError(f"{path} has a frame of {len(data) / 2**20:.0f} MiB; {_MEND} uncompressed.")
    return
  size = _size_inside(data)
  if size != (pixels.height, pixels.width):
    inside = f"{size[1]} x {size[0]} pixels" if size else "no picture"
    raise UserError(
      f"{path} is damaged: its header says {pixels.width} x {pixels.height} pixels, and what is "
      f"compressed {inside}; {_MEND}."
    )


def _check_decoded(values, pixels):
  """Refuses a frame that is not what the header says."""
  shape = (pixels.height, pixels.width) + (3,) * (pixels.samples == 3)
  if values.shape != shape:
    raise UserError(
      f"{pixels.path} is damaged: its header says {list(shape)}, and a frame is "
      f"{list(values.shape)}; {_MEND}."
    )


def _by_plugin(data, decoder, options, pixels):
  from pydicom.encaps import encapsulate

  values, _ = decoder.as_array(
    encapsulate([data]),
    index=0,
    raw=True,
    decoding_plugin=_PLUGINS[pixels.syntax],
    **(options | {"number_of_frames": 1}),
  )
  at = data.find(b"\xff\x52") if data.find(b"\xff\x4f\xff\x51") >= 0 else -1
  # JPEG 2000 says whether its own transform, which decoders undo, made the colours.
  return values, False if at >= 0 and data[at + 8 : at + 9] == b"\x01" else None


def _jpeg(data, path):
  if _jpeg_frame(data)[0] != 8:
    raise UserError(f"{path} holds JPEG of 12 bits; export it uncompressed or as JPEG 2000.")
  with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
    if image.mode == "L":
      return np.asarray(image), None
    if image.mode != "RGB":
      raise UserError(f"{path} has pixels of type {image.mode}; save it in grey or RGB.")
    names = [layer[0] for layer in image.layer]
    transform = image.info.get("adobe_transform")
    marked = "jfif" in image.info or transform is not None
    if transform == 0 or (not marked and names in _RGB_NAMES):
      return np.asarray(image), False
    # Without this, colours are turned into RGB.
    image.draft("YCbCr", image.size)
    shares = any(layer[1:3] != image.layer[0][1:3] for layer in image.layer)
    return np.asarray(image), True if marked or shares else None


def _lossless_jpeg(data, pixels):
  codec = av.CodecContext.create("mjpeg", "r")
  # Otherwise decoders invent what they cannot decode.
  codec.options = {"err_detect": "explode"}
  frames = codec.decode(av.Packet(data)) + codec.decode(None)
  if len(frames) != 1:
    raise UserError(f"{pixels.path} is damaged: {len(frames)} pictures in a frame; {_MEND}.")
  (frame,) = frames
  kind = frame.format.name
  if kind in ("bgr24", "gbrp"):
    return frame.to_ndarray(format="rgb24"), None
  values = frame.to_ndarray()
  if kind in ("yuv444p", "yuvj444p"):
    return np.moveaxis(values, 0, -1), None
  if kind in ("gray", "gray16le"):
    # The decoder fills 8 or 16 bits from the top.
    values = values >> 8 * values.dtype.itemsize - _jpeg_frame(data)[0]
    if pixels.is_signed:
      sign = 1 << pixels.bits - 1
      values = ((values.astype(np.int32) ^ sign) - sign).astype(np.int16)
    return values, None
  raise UserError(f"{pixels.path} has compressed pixels of type {kind}; save it in grey or RGB.")


def _is_ybr(values, told, pixels):
  """Whether colours are brightness and two differences, by the pixels; says where that is odd.

  Most of a picture of ultrasound is grey: equal red, green and blue, or differences near 128.
  """
  step = max(1, max(values.shape[:2]) // 512)
  few = _eight_bits(values[::step, ::step], pixels).astype(int)
  first, second, third = np.moveaxis(few, -1, 0)
  of_rgb = np.ptp([first, second, third], axis=0) <= _COLOUR_NOISE
  of_ybr = np.maximum(abs(second - 128), abs(third - 128)) <= _COLOUR_NOISE
  found = pixels.says_ybr if told is None else told
  shares = of_rgb.mean(), of_ybr.mean()
  if max(shares) > _MOST and abs(shares[0] - shares[1]) > _CLEARLY:
    found = bool(shares[1] > shares[0])
  if found != pixels.says_ybr:
    notices.warn(
      "%s: its header says that its colours are %s, but its pixels are %s; they are read so.",
      pixels.path,
      pixels.colours,
      "YBR" if found else "RGB",
    )
  return found


def _eight_bits(values, pixels):
  """Colours [h, w, 3] in 8 bits."""
  if values.dtype == np.uint8 and pixels.bits >= 8:
    return values
  return windows.grey(values, (0, 2**pixels.bits - 1), pixels.path)


def _luma(rgb):
  return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))


def _header_window(dataset):
  """The (centre, width) that the header names first, also for all frames together; else None."""
  for place in (dataset, _shared(dataset, "FrameVOILUTSequence")):
    found = _number(place, "WindowCenter"), _number(place, "WindowWidth")
    if None not in found and found[1] > 0:
      return found
  return None


def _shared(dataset, name):
  """The first item of a sequence that holds for all frames; an empty one where there is none."""
  item = dataset
  for one in ("SharedFunctionalGroupsSequence", name):
    try:
      item = item.get(one)[0]
    except _errors():
      return {}
  return item


def _by_window(values, centre, width, function):
  """The formulas of PS3.3, C.11.2.1.2 and 3: what a window makes of values, 0 to 1."""
  if function == "SIGMOID":
    return 1 / (1 + np.exp(-4 * (values - centre) / width))
  if function != "LINEAR_EXACT":
    centre, width = centre - 0.5, max(width - 1, 1e-9)
  return (values - centre) / width + 0.5


def _by_table(values, item, pixels):
  """What a table of the header (C.11.1.1) makes of values, and the greatest it can hold.

  pydicom's own function counts in 8 bits where the table has them, and so looks up other entries.
  """
  n_entries, first, bits = (int(x) for x in item.LUTDescriptor)
  entries = item.LUTData
  if isinstance(entries, bytes):
    packed = len(entries) < 2 * (n_entries or 2**16)
    little = pixels.syntax != _BIG_ENDIAN
    entries = np.frombuffer(entries, np.uint8 if packed else "<u2" if little else ">u2")
  entries = np.asarray(entries)
  return entries[np.clip(np.rint(values).astype(int) - first, 0, len(entries) - 1)], 2**bits - 1


def _rescaled(values, pixels):
  """Stored values as the header's table or slope makes them."""
  dataset = pixels.dataset
  if dataset.get("ModalityLUTSequence"):
    return _by_table(values, dataset.ModalityLUTSequence[0], pixels)[0]
  for place in (dataset, _shared(dataset, "PixelValueTransformationSequence")):
    slope, intercept = (_number(place, f"Rescale{name}") for name in ("Slope", "Intercept"))
    if slope and intercept is not None:
      return values * slope + intercept
  return values


def _shown(values, pixels, window):
  """Grey values of stored ones, of any shape: uint8."""
  from pydicom.pixels import apply_color_lut

  dataset = pixels.dataset
  if pixels.colours == "PALETTE COLOR":
    colours = apply_color_lut(values, dataset)
    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return _luma(np.rint(colours / (2**bits - 1) * 255).clip(0, 255).astype(np.uint8))
  scaled, header = _rescaled(values, pixels), _header_window(dataset)
  if window is not None:
    grey = windows.grey(scaled, window, pixels.path)
  else:
    if header is not None:
      share = _by_window(scaled, *header, str(dataset.get("VOILUTFunction") or "LINEAR").upper())
    elif dataset.get("VOILUTSequence"):
      entries, most = _by_table(scaled, dataset.VOILUTSequence[0], pixels)
      share = entries / most
    else:
      low = -(2 ** (pixels.bits - 1)) if pixels.is_signed else 0
      share = (values.astype(float) - low) / (2**pixels.bits - 1)
    grey = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
  return 255 - grey if pixels.colours == "MONOCHROME1" else grey


def _table(dtype, pixels, window):
  """What `_shown` makes of every value of a type of up to 16 bits."""
  low = np.iinfo(dtype).min
  every = np.arange(low, np.iinfo(dtype).max + 1, dtype=dtype)
  with _damage(pixels.path):
    return low, _shown(every[None], pixels, window)[0]


def _grey(values, pixels, media, tables):
  """Grey values of a decoded frame: uint8 [h, w]."""
  if values.ndim == 3:
    values = _eight_bits(values, pixels)
    return values[..., 0] if media.is_ybr else _luma(values)
  if values.dtype.itemsize > 2:
    step = max(1, _AT_ONCE // values.shape[1])
    with _damage(pixels.path):
      parts = [values[i : i + step] for i in range(0, len(values), step)]
      return np.concatenate([_shown(part, pixels, media.window) for part in parts])
  dtype = values.dtype.newbyteorder("=")
  if dtype not in tables:
    tables[dtype] = _table(dtype, pixels, media.window)
  low, table = tables[dtype]
  return table[values.astype(np.int32) - low]


def _window(pixels, words):
  """The window of frames of more than 8 bits that have none of their own; else None."""
  if pixels.samples > 1 or pixels.colours == "PALETTE COLOR" or pixels.bits <= 8:
    return None
  if words.window is not None:
    return words.window
  if _header_window(pixels.dataset) is not None or pixels.dataset.get("VOILUTSequence"):
    return None
  sampled = np.unique(np.linspace(0, pixels.n_frames - 1, _SAMPLED).astype(int)).tolist()
  with _damage(pixels.path):
    step = len(sampled) * pixels.height * pixels.width // _SAMPLED_VALUES + 1
    values = [
      _rescaled(values.ravel()[::step].copy(), pixels) for values, _ in _decoded(pixels, sampled)
    ]
  return windows.of_clip(np.concatenate(values), pixels.path)


def _rate(dataset):
  """Frames per second; NaN where unknown."""
  milliseconds = _number(dataset, "FrameTime")
  if milliseconds is None or milliseconds <= 0:
    try:
      # The first is 0, as nothing is before it.
      times = [float(x) for x in dataset.get("FrameTimeVector")][1:]
      milliseconds = sum(times) / len(times)
    except _errors():
      milliseconds = 0
  if milliseconds > 0:
    return 1000 / milliseconds
  rates = (_number(dataset, name) for name in ("CineRate", "RecommendedDisplayFrameRate"))
  return next((rate for rate in rates if rate is not None and rate > 0), math.nan)


def _regions(pixels):
  """What the header names within the picture.

  Returns:
    The boxes of two-dimensional tissue, largest first, with their spacing; and the boxes of what
    has no two dimensions, as curves.
  """
  try:
    items = list(pixels.dataset.get("SequenceOfUltrasoundRegions") or ())
  except _errors():
    items = []
  found, traces, outside = [], [], 0
  for item in items:
    kind = _number(item, "RegionSpatialFormat"), _number(item, "RegionDataType")
    is_tissue, is_trace = kind == (1, 1), kind[0] in _TRACES
    if not is_tissue and not is_trace:
      continue
    names = ("MinY0", "MinX0", "MaxY1", "MaxX1")
    corners = [_number(item, f"RegionLocation{name}") for name in names]
    if None in corners:
      continue
    top, left, bottom, right = (int(x) for x in corners)
    # The lower corner is within the region; some write the one behind it.
    bottom, right = min(bottom + 1, pixels.height), min(right + 1, pixels.width)
    fits = corners[2] <= pixels.height and corners[3] <= pixels.width
    if not fits or not (0 <= top < bottom and 0 <= left < right):
      outside += is_tissue
      continue
    if is_trace:
      traces.append((top, left, bottom, right))
      continue
    spacing = None
    if _number(item, "PhysicalUnitsXDirection") == _number(item, "PhysicalUnitsYDirection") == 3:
      steps = [_number(item, f"PhysicalDelta{axis}") for axis in "YX"]
      if all(steps):
        spacing = tuple(10 * abs(step) for step in steps)  # centimetres
    found.append(((top, left, bottom, right), spacing))
  if outside and not found:
    notices.warn(
      "%s: the region of its scan that its header names lies outside of its picture, and is not "
      "used, nor is its scale.",
      pixels.path,
    )
  found.sort(key=lambda one: -(one[0][2] - one[0][0]) * (one[0][3] - one[0][1]))
  return found, tuple(traces)


def _around(boxes):
  """The box around boxes: of two scans side by side both are seen."""
  tops, lefts, bottoms, rights = zip(*boxes, strict=True)
  return (min(tops), min(lefts), max(bottoms), max(rights))


def _spacing(pixels, regions):
  """Millimetres a pixel, (vertical, horizontal); None where unknown."""
  if regions and regions[0][1]:
    return regions[0][1]
  for place in (pixels.dataset, _shared(pixels.dataset, "PixelMeasuresSequence")):
    try:
      spacing = tuple(float(x) for x in place.get("PixelSpacing"))
    except _errors():
      continue
    if len(spacing) == 2 and all(0 < x < math.inf for x in spacing):
      return spacing
  return None


def probe(path, words):
  """Reads the header of a DICOM file and decodes its first frame: a `Media`.

  Args:
    path: of it.
    words: of the user: `window` stands in for the header's where pixels have more than 8 bits.

  Raises:
    UserError: it is truncated, damaged, too large, or compressed in a way that is not read.
  """
  with _opened(path) as pixels:
    ((values, told),) = _decoded(pixels, [0])
    is_ybr = values.ndim == 3 and _is_ybr(values, told, pixels)
    window = _window(pixels, words)
    regions, traces = _regions(pixels)
    return Media(
      path,
      (path,),
      pixels.n_frames,
      pixels.height,
      pixels.width,
      _rate(pixels.dataset),
      spacing=_spacing(pixels, regions),
      region=_around([box for box, _ in regions]) if regions else None,
      traces=traces,
      window=window,
      is_ybr=is_ybr,
    )


def read(media, wanted):
  """Decodes frames.

  Args:
    media: what `probe` returned.
    wanted: numbers of frames, rising.

  Yields:
    Grey pictures as a viewer shows them, [h, w] uint8 each.

  Raises:
    UserError: it is damaged.
  """
  tables = {}
  with _opened(media.path) as pixels:
    for values, _ in _decoded(pixels, wanted):
      yield _grey(values, pixels, media, tables)
