"""Reads NRRD and MetaImage clips, whose third or fourth axis counts frames."""

import math
import pathlib
import re

import numpy as np
from PIL import Image

from lus_jax.errors import UserError
from lus_jax.files import check_file, damage_is_a_user_error
from lus_jax.media import limits, windows
from lus_jax.media.clips import Media

SUFFIXES = (".nrrd", ".mha", ".mhd")
_MEND = "save or copy it again"
# Enough for any header; their texts go before the pixels.
_HEADER = 2**16
# Values, about, that a clip's window is chosen from.
_SAMPLED = 2**22
# Lines that say how pixels are stored and where they are.
_TECHNICAL = frozenset(
  """
  anatomicalorientation binarydata binarydatabyteordermsb byteskip centerofrotation centers
  compresseddata compresseddatasize datafile dimension dimsize elementbyteordermsb elementdatafile
  elementnumberofchannels elementsize elementspacing elementtype encoding endian headersize kinds
  labels lineskip measurementframe ndims objecttype offset orientation position rotation sizes space
  spacedimension spacedirections spaceorigin spaceunits spacings thicknesses transformmatrix type
  units
  """.split()  # noqa: SIM905
)
# Bytes of a clip, all of which are in memory, for a moment twice.
_MOST = 2**29


def _damage(path):
  # Of SimpleITK, for whatever is wrong.
  return damage_is_a_user_error(path, _MEND, (RuntimeError, OSError, ValueError, TypeError))


def _lines(path):
  """The names and values of a header; those of NRRD's remarks begin with =."""
  with _damage(path), path.open("rb") as file:
    text = file.read(_HEADER)
  nrrd = path.suffix.lower() == ".nrrd"
  if nrrd != text.startswith(b"NRRD"):
    raise UserError(f"{path} is damaged or not what its name says; {_MEND}.")
  found = []
  for line in text.decode("utf-8", "surrogateescape").splitlines():
    if nrrd and not line:
      break
    name, _, value = line.partition(":" if nrrd else "=")
    found.append((name.strip(), value.strip()))
    if name.strip().lower() == "elementdatafile":
      break
  return found


def _check(path, header, data):
  """Refuses a header with numbers that ITK would not survive; `data` has the pixels."""
  nrrd = path.suffix.lower() == ".nrrd"
  try:
    n_axes = int(header["dimension" if nrrd else "ndims"])
    sizes = [int(word) for word in header["sizes" if nrrd else "dimsize"].split()]
    n_bytes = int(header.get("compresseddatasize", 0))
    n_channels = int(header.get("elementnumberofchannels", 1))
  except (KeyError, ValueError) as error:
    raise UserError(f"{path} is damaged: its header gives no size; {_MEND}.") from error
  right = 2 <= n_axes <= 5 and len(sizes) == n_axes and min(sizes) > 0
  if not right or not 0 <= n_bytes <= data.stat().st_size or not 1 <= n_channels <= 4:
    raise UserError(f"{path} is damaged: its header gives no sensible size; {_MEND}.")
  limits.check_unfolded(path, math.prod(sizes) * n_channels, _MOST)


def _header(path):
  """The lines of a header as texts by lower-case name, without remarks."""
  return {name.lower(): value for name, value in _lines(path) if not value.startswith("=")}


def _files(path, header):
  """The files of a clip: the header and, of .mhd, the pixels in its folder."""
  name = header.get("data file", header.get("datafile", header.get("elementdatafile", "LOCAL")))
  if name == "LOCAL":
    return (path,)
  data = path.parent / name
  if path.suffix.lower() != ".mhd" or pathlib.Path(name).name != name or name in ("LIST", ".."):
    raise UserError(
      f"{path} has its pixels in another file ({name[:80]}); save it as one .mha or .nrrd file."
    )
  check_file(data, "put it beside its header")
  if data.is_symlink() and data.resolve().parent != path.resolve().parent:
    raise UserError(f"{data} is a link that leads out of its folder; put the file there.")
  return path, data


def _reader(path):
  """A reader of SimpleITK that knows the header of a file."""
  import SimpleITK as sitk  # slow to import, and needed by few

  sitk.ProcessObject.GlobalWarningDisplayOff()
  reader = sitk.ImageFileReader()
  # By name, as any other that says that it can would be asked too.
  reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
  reader.SetFileName(str(path))
  reader.ReadImageInformation()
  return reader


def _shape(reader, path):
  """Returns the number of frames, height, width and values a pixel, and whether frames go first."""
  width, height, *more = reader.GetSize()
  samples, several = reader.GetNumberOfComponents(), [length for length in more if length != 1]
  # Sequences of 3D Slicer count frames on an axis that ITK takes for the values of a pixel.
  kind = "NRRD_kinds[pixel]"
  frames_first = reader.HasMetaDataKey(kind) and reader.GetMetaData(kind) == "list"
  if frames_first:
    several, samples = [*several, samples], 1
  if len(several) > 1 or samples not in (1, 3, 4):
    size = " x ".join(str(length) for length in (width, height, *several))
    raise UserError(
      f"{path} has {size} pixels of {samples} values; save one clip a file in grey or RGB, with "
      "frames on its third axis."
    )
  return several[0] if several else 1, height, width, samples, frames_first


def _bits(reader, path):
  """How many bits a value has."""
  import SimpleITK as sitk

  kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
  found = re.fullmatch(r"(?:vector of )?(\d+)-bit (?:\w+ integer|float)", kind)
  if not found:
    raise UserError(f"{path} has pixels of type {kind}; save it in grey or RGB.")
  return int(found[1])


def _values(path):
  """Reads a whole clip: its own values [n, h, w] or [n, h, w, channels], its spacing and files."""
  import SimpleITK as sitk

  header = _header(path)
  files = _files(path, header)
  _check(path, header, files[-1])
  with _damage(path):
    reader = _reader(path)
    n_frames, height, width, samples, frames_first = _shape(reader, path)
    limits.check_pixels(path, height, width)
    # It takes memory for whatever it says.
    n_bytes = n_frames * height * width * samples * _bits(reader, path) // 8
    limits.check_unfolded(path, n_bytes, _MOST)
    values = sitk.GetArrayFromImage(reader.Execute())
    spacing = reader.GetSpacing()[1::-1]
  if frames_first:
    values = np.moveaxis(values.reshape(height, width, n_frames), -1, 0)
  # 1 mm is what stands where nothing is said.
  usable = set(spacing) != {1.0} and all(0 < x < math.inf for x in spacing)
  channels = (samples,) if samples > 1 else ()
  values = values.reshape(n_frames, height, width, *channels)
  return values, tuple(spacing) if usable else None, files


def probe(path, words):
  """Reads a clip of NRRD, .mha or .mhd once: a `Media`.

  Args:
    path: of it: [x, y, frames], [x, y, 1, frames], a picture, or a sequence of 3D Slicer.
    words: of the user: `window`, by default of what it holds.

  Raises:
    UserError: it is truncated, damaged or too large, or its pixels are elsewhere.
  """
  check_file(path, _MEND)
  values, spacing, files = _values(path)
  window = None
  if values.dtype != np.uint8:
    if values.ndim > 3:
      raise UserError(f"{path} has colours of {values.dtype}; save them in 8 bits.")
    sampled = values[:, :: values.size // _SAMPLED + 1]
    window = words.window or windows.of_clip(sampled, path)
  return Media(path, files, *values.shape[:3], spacing=spacing, window=window)


def read(media, wanted):
  """Yields the frames `wanted`, which rise, of what `probe` returned: grey [h, w] uint8 each.

  Raises:
    UserError: the file is damaged.
  """
  values, *_ = _values(media.path)
  for i in wanted:
    if values.ndim > 3:
      yield np.asarray(Image.fromarray(np.ascontiguousarray(values[i, ..., :3])).convert("L"))
    else:
      yield values[i] if media.window is None else windows.grey(values[i], media.window, media.path)


def texts(path):
  """What an NRRD or MetaImage file says beside its pixels: pairs of a name and a text.

  Raises:
    UserError: it is damaged.
  """
  found = [
    ("comment", name[1:]) if name.startswith("#") else (name, value.lstrip("= "))
    for name, value in _lines(path)
  ]
  return [
    (name, text) for name, text in found if text and name.lower().replace(" ", "") not in _TECHNICAL
  ]
