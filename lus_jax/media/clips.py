"""What the header of a video or still says, whatever its format."""

import dataclasses
import math
import pathlib

# Which axis of npy files counts frames: [N, h, w] or [h, w, N].
NPY_AXES = ("nhw", "hwn")


@dataclasses.dataclass(frozen=True)
class Words:
  """What files do not say of themselves and the user may: see `Media`."""

  npy_axes: str | None = None
  nifti_axes: str | None = None
  window: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Media:
  """What the header of a video or still says.

  Attributes:
    path: where it is.
    files: the files it consists of, in order.
    n_frames: N.
    height: h as shown, in pixels.
    width: w as shown, in pixels.
    frames_per_second: NaN where unknown; the mean where frames stay for different times.
    orientation: how the first frame is shown, as in EXIF: 1 as stored, 2 to 8 turned or mirrored
      (5 to 8 exchange height and width).
    numbers: of a folder of numbered pictures, the number of each in its name, rising; None where
      the names have no single number that tells them apart, and for everything else.
    slots: of an AVI with empty frames, when each stored frame is shown first, counted in frames:
      it stays until the next; empty if every frame is stored.
    npy_axes: of npy, which axes it has in the user's word, one of `NPY_AXES`; None: nobody says,
      so [N, h, w].
    nifti_axes: of NIfTI, which axis is the first in the user's word, 'xy' or 'yx'; None: nobody
      says, so x.
    format: which entry of `readers` reads it.
    spacing: millimetres a pixel, (vertical, horizontal), as shown; None where unknown.
    region: the box (top, left, bottom, right), half-open, around all two-dimensional pictures of
      tissue that the header names and that lie within the frame; None where there is none.
    traces: boxes of what else it names there: M-mode, spectra, curves.
    window: (low, high): the values that become 0 and 255, where they have more than 8 bits; None
      where their type or header says.
    is_ybr: of DICOM in colours, whether its pixels are brightness and two differences of colour.
  """

  path: pathlib.Path
  files: tuple[pathlib.Path, ...]
  n_frames: int
  height: int
  width: int
  frames_per_second: float = math.nan
  orientation: int = 1
  numbers: tuple[int, ...] | None = None
  slots: tuple[int, ...] = ()
  npy_axes: str | None = None
  nifti_axes: str | None = None
  format: str = "picture"
  spacing: tuple[float, float] | None = None
  region: tuple[int, int, int, int] | None = None
  traces: tuple[tuple[int, int, int, int], ...] = ()
  window: tuple[float, float] | None = None
  is_ybr: bool = False
