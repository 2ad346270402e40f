"""Opens pictures by named formats only, as viewers show them."""

import contextlib
import struct
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import limits, windows

# The suffixes of stills that are read; capitals too.
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MEND = "save it again"
# Whatever a suffix says, nothing else is opened: some formats start other programs.
_STILLS = ("PNG", "JPEG", "TIFF", "BMP")
# Pillow's readers check little, so that a damaged file can raise any of these.
_ERRORS = (
  OSError,  # UnidentifiedImageError too
  SyntaxError,  # what a plugin raises on a broken header
  ValueError,
  EOFError,
  struct.error,
  zlib.error,
  TypeError,
  LookupError,
  ArithmeticError,
)
# The greatest value by Pillow's name of the pixel type; of 16 bits the file may say fewer.
_MAXIMUM = {"1": 1, "L": 255}
# What makes a stored picture [h, w] the shown one, by its EXIF orientation.
_TURNS = {
  1: lambda pixels: pixels,
  2: lambda pixels: pixels[:, ::-1],
  3: lambda pixels: pixels[::-1, ::-1],
  4: lambda pixels: pixels[::-1],
  5: lambda pixels: pixels.swapaxes(0, 1),
  6: lambda pixels: pixels[::-1].swapaxes(0, 1),
  7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
  8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
SIDEWAYS = (5, 6, 7, 8)
# What else Pillow finds beside the pixels.
_BESIDE = ("comment", "icc_profile", "photoshop", "xmp")
# 16-bit pictures that go no higher hold 12 bits, if they are not nearly black.
_DARK = 4095


def turn(pixels, orientation):
  """Turns a stored picture [h, w, ...] as it is shown, by its EXIF orientation (1 to 8)."""
  return _TURNS[orientation](pixels)


@contextlib.contextmanager
def _damage(path, mend):
  try:
    with warnings.catch_warnings(), damage_is_a_user_error(path, mend, _ERRORS):
      warnings.simplefilter("ignore")  # about metadata, without the file's name
      yield
  except Image.DecompressionBombError as error:
    raise UserError(
      f"{path} has more than {limits.MAX_PIXELS / 1e6:.0f} million pixels; make it smaller, or "
      "save it again if it is damaged."
    ) from error


@contextlib.contextmanager
def opened(path, mend=_MEND, *, stack=False):
  """Yields a still, or a GIF if the name says so, as an open Pillow image.

  Decode it with the functions below: they name the file where Pillow finds it damaged.

  Raises:
    UserError: it is damaged, too large, of another format, or a stack of pictures where none is
      allowed; only of TIFF one is.
  """
  check_file(path, mend)
  formats = ("GIF",) if path.suffix.lower() == ".gif" else _STILLS
  with contextlib.ExitStack() as resources:
    with _damage(path, mend):
      # Not by name: Pillow maps files that it knows by name, and garbles turned TIFF there.
      file = resources.enter_context(path.open("rb"))
      image = resources.enter_context(Image.open(file, formats=formats))
      # A JPEG's further pictures are previews.
      n_frames = image.n_frames if image.format in ("PNG", "TIFF") else 1
    _check_size(image, path)
    if n_frames > 1 and not (stack and image.format == "TIFF"):
      raise UserError(f"{path} holds {n_frames} pictures; save one a file, or a folder of frames.")
    yield image


def n_frames(image, path):
  """Counts the frames of an open picture (`UserError` if it is damaged); previews are none."""
  with _damage(path, _MEND):
    found = image.n_frames if image.format in ("GIF", "TIFF") else 1
    stated = _n_pages(path) if image.format == "TIFF" else found
  if found != stated:
    raise UserError(f"{path} is truncated: {found} of at least {stated} pages are there; {_MEND}.")
  return found


def _n_pages(path):
  """Counts the pages that a TIFF's headers point to; Pillow stops silently where one lacks."""
  with path.open("rb") as file:
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    # How many tags a page has, and where the next one is; a tag takes 12 bytes, or 20.
    count, offset, tag = ("Q", "Q", 20) if big else ("H", "I", 12)
    (at,) = struct.unpack_from(f"{order}{offset}", start, 8 if big else 4)
    seen = set()
    while at and at not in seen:
      seen.add(at)
      file.seek(at)
      # Where the file ends before, `struct.error` says so.
      (n_tags,) = struct.unpack(f"{order}{count}", file.read(struct.calcsize(count)))
      file.seek(n_tags * tag, 1)
      (at,) = struct.unpack(f"{order}{offset}", file.read(struct.calcsize(offset)))
  return len(seen)


def seek(image, path, frame):
  """Goes to a frame of an open GIF or TIFF (`UserError` if it is damaged or too large)."""
  with _damage(path, _MEND):
    image.seek(frame)
  _check_size(image, path)


def _check_size(image, path):
  """Refuses an open picture that would take too much memory (`UserError`)."""
  # Frames of a GIF are drawn in colours, and pixels of more bits are copied on the way to grey.
  many = image.format == "GIF" or image.mode in ("I", "F") or image.mode.startswith("I;16")
  most = limits.MAX_FRAME_PIXELS if many else limits.MAX_PIXELS
  limits.check_pixels(path, image.height, image.width, most)


def imagej(image, path):
  """What ImageJ wrote of an open TIFF, as texts by name; empty where another program made it."""
  if image.format != "TIFF":
    return {}
  with _damage(path, _MEND):
    text = str(image.tag_v2.get(TiffImagePlugin.IMAGEDESCRIPTION, ""))
  if not text.startswith("ImageJ="):
    return {}
  return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def orientation(image, path, mend=_MEND):
  """Returns the EXIF orientation of an open picture, 1 (as stored) to 8.

  Raises:
    UserError: it is damaged.
  """
  if image.format == "GIF":
    return 1
  with _damage(path, mend):
    # Pillow's reader of PNG decodes the whole picture each time, to look behind it.
    if image.format == "PNG" and _has_late_chunks(image):
      image.load()
    found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
  return found if found in _TURNS else 1


def is_jpeg(image):
  """Whether an open picture is a JPEG; cameras add previews to some (MPO)."""
  return image.format in ("JPEG", "MPO")


def _has_late_chunks(image):
  """Whether a PNG that is not decoded yet has anything but its end after its pixels."""
  file, pixels_seen = image.fp, False
  if file is None:
    return False
  at = file.tell()
  file.seek(8)
  try:
    while len(head := file.read(8)) == 8:
      length, kind = struct.unpack(">I4s", head)
      if pixels_seen and kind != b"IDAT":
        return kind != b"IEND"
      pixels_seen = pixels_seen or kind == b"IDAT"
      file.seek(length + 4, 1)
    return False
  finally:
    file.seek(at)


def shown_size(image, path, mend=_MEND):
  """Returns the (height, width) an open picture is shown with (`UserError` if it is damaged)."""
  # Pillow says it of TIFF, and the stored size of the others.
  sideways = image.format != "TIFF" and orientation(image, path, mend) in SIDEWAYS
  return (image.width, image.height) if sideways else (image.height, image.width)


def pixels(image, path, mend=_MEND):
  """Decodes an open picture as it is shown.

  Args:
    image: what `opened` yielded.
    path: of it, for its checksums.
    mend: what the user can do if it is damaged.

  Returns:
    [h, w] or [h, w, channels] in the file's own values (indices where there is a palette), and the
    greatest that its pixel type holds, None where that says nothing.

  Raises:
    UserError: it is damaged.
  """
  _check_png(image, path, mend)
  turned, tiff = orientation(image, path, mend), image.format == "TIFF"
  with _damage(path, mend):
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] if tiff else 16
    inverted = tiff and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    image.load()
    values = np.asarray(image)
  maximum = _MAXIMUM.get(image.mode)
  if image.mode.startswith("I;16"):
    maximum = 2**bits - 1
    values = values.astype(np.uint16)  # big-endian in some files
    if inverted:  # Pillow inverts 8 bits only
      values = np.uint16(maximum) - values
  # Pillow turns TIFF itself.
  return (values if tiff else turn(values, turned)), maximum


def _check_png(image, path, mend):
  """Compares the checksums of a PNG, which Pillow's decoder passes over."""
  if image.format == "PNG":
    with _damage(path, mend), path.open("rb") as file, Image.open(file, formats=("PNG",)) as again:
      again.verify()


def grey(image, path, window=None):
  """Decodes an open picture, or the frame of a GIF or TIFF it is at.

  Args:
    image: what `opened` yielded.
    path: of it, for errors.
    window: (low, high): the values of more than 8 bits that become 0 and 255, in the user's word.

  Returns:
    Grey values [h, w] uint8: colours become their luma (ITU-R 601), 16 bits without a window are
    divided down; and the largest value of a 16-bit picture that is then nearly or wholly black,
    else None.

  Raises:
    UserError: it is damaged, or holds numbers of 32 bits and there is no window.
  """
  wide = image.mode in ("I", "F")
  if wide and window is None:
    raise UserError(
      f"{path} holds numbers of 32 bits; save pictures in 8 or 16 bits, or write "
      '"intensity_window": [low, high] into dataset.json.'
    )
  if not (wide or image.mode.startswith("I;16")):
    _check_png(image, path, _MEND)
    turned = orientation(image, path)
    with _damage(path, _MEND):
      values = np.asarray(image.convert("L"))
    return (values if image.format == "TIFF" else turn(values, turned)), None
  values, maximum = pixels(image, path)
  if window is not None:
    return windows.grey(values, window, path), None
  largest = int(values.max())
  dark = largest <= _DARK and maximum == 65535
  return windows.grey(values, (0, maximum), path), largest if dark else None


def texts(image, path):
  """What an open picture says beside its pixels: pairs of a name, as 'Artist', and a text.

  Raises:
    UserError: it is damaged.
  """
  with _damage(path, _MEND):
    if image.format == "PNG":
      image.load()  # texts may come after the pixels
    exif = Image.Image.getexif(image)
    found = [(ExifTags.TAGS.get(tag, str(tag)), str(value)) for tag, value in exif.items()]
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
      names = ExifTags.GPSTAGS if part == ExifTags.IFD.GPSInfo else ExifTags.TAGS
      found += [(names.get(tag, str(tag)), str(x)) for tag, x in exif.get_ifd(part).items()]
    found += getattr(image, "text", {}).items()
    found += [(name, str(image.info[name])) for name in _BESIDE if name in image.info]
  return found
