"""Finds the part of a machine's screen that shows the scan, and writes and reads it as text.

Machines draw a scan among text, scales, curves and black. Networks shall see the scan alone, so
that frames are cropped to its box, (top, left, bottom, right), half-open, in pixels of the frame as
shown. What is found is rather too large than too small: tissue is never to be cut, and a little
black beside it does no harm.
"""

import dataclasses
import re

import numpy as np
from scipy import ndimage

from lus_jax import notices, palette
from lus_jax.errors import UserError
from lus_jax.media import readers

# Frames that are looked at, over the whole clip, and how many bytes of them at most.
_FRAMES, _BYTES = 48, 2**28
# Of the frames that are compared with a header, and of how much more than its region is believed.
_TO_COMPARE, _OUTSIDE = 8, 0.1
# Longer sides are averaged down to less than twice this before motion and texture are measured.
_SIDE = 480
# Grey levels: what changes by more than this, and by more than thrice the noise, is tissue, and so
# is what touches it and changes by more than the second; what varies by more than this around a
# pixel has a texture; what stands out of the black by more than this belongs to what it touches.
_MOVES, _MOVES_FAINTLY, _VARIES, _STANDS_OUT = 3.0, 1.0, 1.0, 1
# Shares of the picture: a scan is not smaller, or not lower; a part of it not smaller than so much
# of its largest; what fills so much is the whole.
_SMALLEST, _THINNEST, _PART, _WHOLE = 0.01, 0.04, 0.1, 0.85
# Of text so much is ink at most, of tissue more is not black.
_FILLED = 0.6
# Of text on a grey ground so much has the grey of that.
_ONE_GREY = 0.3
# A picture of which less than this is empty is all scan. Where nothing stands beside a scan of so
# much of the picture, black alone, cropping would gain little, and clips of one machine differ.
_EMPTY, _NEARLY_WHOLE = 0.02, 0.6
# A band so low and so long for its height is a curve or a bar.
_LOW, _LONG = 0.15, 4.0
# The box grows over dark parts that touch the scan; to more than so many times its area only over
# those that are broad.
_GROWTH = 3.0
# Faint echoes may be so far apart, as a share of the scan's height or width.
_GAP = 0.15
# Grey levels: what compression leaves of black between letters; what curves that run have at
# least, and letters that stay.
_INK, _BRIGHT, _ALWAYS = 4, 100, 20
_MARGIN = 4
# Of the outline: none of the six classes of the paper has it, and it is seen on black and white.
_COLOUR = 6
SMALLEST_SIDE = 8


@dataclasses.dataclass(frozen=True)
class Area:
  """Where the scan is.

  Attributes:
    box: what frames are cropped to, (top, left, bottom, right), half-open, in pixels of the frame
      as shown.
    how: how it was found: by the "header" of the file, by its "motion", on one "still" picture; or
      "whole": the whole frame, as cropping gains little or nothing says more.
    scan: what de-identification keeps: smaller than `box` where a scan was found that is nearly
      the whole frame, and something is seen beside it; by default `box`.
  """

  box: tuple[int, int, int, int]
  how: str
  scan: tuple[int, int, int, int] | None = None

  def __post_init__(self):
    object.__setattr__(self, "scan", self.scan or self.box)


def whole(height, width):
  """The box of the whole frame."""
  return (0, 0, height, width)


def text(box):
  """A box as it stands in tables: 'X Y WIDTH HEIGHT'."""
  top, left, bottom, right = box
  return f"{left} {top} {right - left} {bottom - top}"


def parse(text, height, width):
  """Reads a box written as four whole numbers X Y WIDTH HEIGHT, apart by blanks or commas.

  Args:
    text: what was written.
    height: h of the frame, in pixels.
    width: w of the frame, in pixels.

  Returns:
    (top, left, bottom, right), half-open.

  Raises:
    UserError: it is no such box, or leaves the frame.
  """
  parts = re.split(r"\s*,\s*|\s+", text.strip())
  if len(parts) != 4 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
    raise UserError(
      f"{text[:60]!r} is no scan area; write four whole numbers, X Y WIDTH HEIGHT in pixels of the "
      f"frame as shown, as 0 0 {width} {height} for all of it."
    )
  x, y, w, h = map(int, parts)
  if min(w, h) < SMALLEST_SIDE:
    raise UserError(
      f"the scan area {x} {y} {w} {h} is {w} pixels wide and {h} high; {SMALLEST_SIDE} are the "
      "least (the numbers are X Y WIDTH HEIGHT)."
    )
  if x + w > width or y + h > height:
    raise UserError(
      f"the scan area {x} {y} {w} {h} ends at x = {x + w}, y = {y + h}, outside of its frame of "
      f"{width} x {height} pixels; the numbers are X Y WIDTH HEIGHT."
    )
  return (y, x, y + h, x + w)


def outline(image, box):
  """Draws the box around a frame's scan: for people, who see at once where it is wrong.

  Args:
    image: [h, w] grey or [h, w, 3] uint8.
    box: (top, left, bottom, right), half-open.

  Returns:
    [h, w, 3] uint8.
  """
  drawn = np.array(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1))
  line = max(1, round(min(drawn.shape[:2]) / 200))
  inside = crop(np.moveaxis(drawn, -1, 0), box)
  for edge in (np.s_[:, :line], np.s_[:, -line:], np.s_[..., :line], np.s_[..., -line:]):
    inside[edge] = np.reshape(palette.rgb(_COLOUR), (3, 1, 1))
  return drawn


def crop(images, box):
  """Cuts the box out of pictures [..., h, w]."""
  top, left, bottom, right = box
  return images[..., top:bottom, left:right]


def around(*boxes):
  """The smallest box that holds all of some boxes."""
  tops, lefts, bottoms, rights = zip(*boxes, strict=True)
  return (min(tops), min(lefts), max(bottoms), max(rights))


def find(media):
  """Finds where the scan is: as the header says, by what moves, or by what has a texture.

  Args:
    media: a `lus_jax.media.readers.Media`.

  Returns:
    An `Area`.

  Raises:
    UserError: the file is damaged.
  """
  numbers = looked_at(media)
  if media.region is not None:
    numbers = numbers[:: max(1, len(numbers) // _TO_COMPARE)]
  return find_among(media, readers.read(media, numbers))


def find_among(media, frames):
  """Finds where the scan is, as `find` does, in frames [n, h, w] uint8 of the clip."""
  if media.region is None:
    return find_in(frames)
  header = Area(media.region, "header")
  others = np.zeros(frames.shape[1:], bool)
  for top, left, bottom, right in media.traces:
    others[top:bottom, left:right] = True
  crop(others, media.region)[:] = False
  found = find_in(np.where(others, 0, frames) if others.any() else frames)
  near = _with_margin(media.region, max(2 * _MARGIN, max(others.shape) // 50), *others.shape)
  outside = np.zeros_like(others)
  crop(outside, found.scan)[:] = True
  crop(outside, near)[:] = False
  # Of what is no screen with a scan nothing can be said.
  if found.scan == whole(*others.shape) or outside.sum() <= _OUTSIDE * _area(media.region):
    return header
  box = around(found.scan, media.region)
  notices.warn(
    "%s: the region that its header names, %s, leaves out what looks like tissue; %s is taken, "
    "which holds both.",
    media.path,
    text(media.region),
    text(box),
  )
  return Area(around(found.box, box), found.how, box)


def looked_at(media):
  """Numbers of the frames that `find` looks at, rising."""
  count = int(np.clip(_BYTES // (media.height * media.width), 2, _FRAMES))
  return np.unique(np.linspace(0, media.n_frames - 1, count).round().astype(int)).tolist()


def find_in(frames):
  """Finds where the scan is in frames [n, h, w] uint8 of one clip: an `Area`, never "header"."""
  step = max(1, min(max(frames.shape[1:]) // _SIDE, min(frames.shape[1:])))
  small = _averaged(frames, step)
  still = np.median(small, axis=0)
  black, everything = _black(still), Area(whole(*frames.shape[1:]), "whole")
  smooth = ndimage.uniform_filter(still, 5)
  empty = (_range(smooth, 5) <= 1) & (np.abs(smooth - black) <= 2)
  # Another grey than black may be tissue, unless most of the rim is of it and smooth.
  if empty.mean() < _EMPTY or (black > 2 and _rim(empty).mean() < 0.5):
    return everything
  # Lights flicker, and so does what a camera or a converter makes of black.
  flicker = np.median(small[:, empty], axis=1)
  small = small - (flicker - np.median(flicker))[:, None, None]
  moving, faint = _moving(small, empty, black)
  textured = _textured(still, empty) & _is_broad(still, black)
  filled = np.abs(still - black) > 2 * _STANDS_OUT
  lights = np.abs(small.max(axis=0) - black) > 2 * _STANDS_OUT
  how, box = "motion", _largest(_parts(moving, lights), still.size)
  if box is None:
    parts = _without_panels(_parts(textured, filled), still, black)
    how, box = "still", _largest(parts, still.size, _PART)
  else:
    # Tissue may stand still: all of it but a heart, or one of two scans.
    parts = _without_panels(_parts(textured & filled, filled), still, black)
    box = _with_still(parts, still.size, _with_touching(faint, box))
  if box is None:
    return everything
  lit = _lit(frames, empty, step, black)
  box = _grown(frames, lit, tuple(step * x for x in box), black)
  box = _with_margin(box, max(_MARGIN, step), *lit.shape)
  if not _is_whole(lit, box):
    return Area(box, how)
  scan = _over_dark_sides(frames.max(axis=0) > black + _ALWAYS, box)
  return dataclasses.replace(everything, scan=scan)


def _averaged(frames, step):
  n, h, w = frames.shape
  rows, columns = h // step, w // step
  blocks = frames[:, : rows * step, : columns * step].reshape(n, rows, step, columns, step)
  return blocks.mean(axis=(2, 4), dtype=np.float32)


def _range(image, size):
  return ndimage.maximum_filter(image, size) - ndimage.minimum_filter(image, size)


def _black(still):
  """The grey level of the empty screen: that of most of the rim, else black."""
  rim = _rim(still)
  level = float(np.bincount(rim.round().astype(int)).argmax())
  if (np.abs(rim - level) <= 2).mean() > 0.5:
    return level
  return 0.0


def _rim(image):
  return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _moving(small, empty, black):
  """Which pixels change over time, and which at least faintly: not for a moment, nor as noise does.

  Returns:
    Two of [h, w] bool.
  """
  if len(small) < 8:
    change = np.ptp(small, axis=0)
  else:
    ordered = np.sort(small, axis=0)
    skipped = len(small) // 10
    change = ordered[-1 - skipped] - ordered[skipped]
  # Some of what seems empty is faint tissue.
  noise = 3 * np.percentile(change[empty], 25)
  # Around what is bright all the time, as text, compression leaves traces of its own.
  beside_text = ndimage.maximum_filter(small.min(axis=0), 7) > black + _ALWAYS
  moves = change > max(_MOVES, noise)
  return moves, moves | ((change > max(_MOVES_FAINTLY, noise)) & ~beside_text)


def _textured(still, empty):
  """Which pixels differ from those around them, [h, w] bool, and not as noise does."""
  mean = ndimage.uniform_filter(still.astype(np.float64), 5)
  variance = ndimage.uniform_filter(still.astype(np.float64) ** 2, 5) - mean**2
  return variance > max(_VARIES**2, 9 * np.median(variance[empty]))


def _is_broad(still, black):
  """Which pixels lie near what is no thin line: tissue, and neither letters nor curves."""
  broad = ndimage.grey_opening(np.abs(still - black), 5) > _INK
  return ndimage.binary_dilation(broad, iterations=2)


def _parts(of_scan, filled):
  """The dense parts of a mask that are no curves, bars or lines of text.

  Args:
    of_scan: [h, w] bool.
    filled: [h, w] bool, what differs from the empty screen.

  Returns:
    Of each its filled area in pixels, the share of it that is filled, and its box.
  """
  h, w = of_scan.shape
  labels = _dense_parts(of_scan)
  found = []
  for i, where in enumerate(ndimage.find_objects(labels), 1):
    part = labels[where] == i
    # Text is drawn on black, and tissue is seldom as black as the screen.
    area = int((part & filled[where]).sum())
    if not area:
      continue
    box = _box(where)
    height, width = box[2] - box[0], box[3] - box[1]
    thin = height < _THINNEST * h or width < _THINNEST * w
    if not thin and not (height < _LOW * h and width > _LONG * height):
      found.append((area, area / part.sum(), box))
  return found


def _without_panels(parts, still, black):
  """The parts but those that are text on a ground of one grey, which tissue never is of."""
  kept = []
  for part in parts:
    levels = np.bincount(crop(still, part[2]).round().astype(int).ravel(), minlength=256)
    # Much tissue is nearly black, or as white as can be.
    alike = np.convolve(levels[int(black) + _ALWAYS : 250], np.ones(3)).max(initial=0)
    if alike <= _ONE_GREY * levels[int(black) + 2 * _STANDS_OUT :].sum():
      kept.append(part)
  return kept


def _largest(parts, size, least=0.0):
  """The box around the largest of some parts and others that are tissue; None if all are small.

  Args:
    parts: of `_parts`.
    size: of the picture, in pixels.
    least: share of the largest part that others have at least.
  """
  largest = max((area for area, _, _ in parts), default=0)
  if largest < _SMALLEST * size:
    return None
  least = max(_SMALLEST * size, least * largest)
  return around(
    *(box for area, share, box in parts if area == largest or (area >= least and share > _FILLED))
  )


def _with_still(parts, size, box):
  """A box of tissue with other parts that are tissue: they meet it, or are as large as a scan."""
  large = max(_SMALLEST * size, _PART * _area(box))
  return around(
    box,
    *(
      part
      for area, share, part in parts
      if share > _FILLED and area >= (_SMALLEST * size if _meet(part, box) else large)
    ),
  )


def _dense_parts(of_scan):
  """Numbers the parts of a mask in which much of it is together, from 1; [h, w] int."""
  size = max(3, min(of_scan.shape) // 60) | 1
  dense = ndimage.uniform_filter(of_scan.astype(np.float32), size) > 0.35
  return ndimage.label(dense)[0]


def _with_touching(of_scan, box):
  """The box with all of the parts of a larger mask that reach into it."""
  labels = _dense_parts(of_scan)
  inside = np.unique(crop(labels, box))
  parts = ndimage.find_objects(labels)
  return around(box, *(_box(parts[i - 1]) for i in inside[inside > 0]))


def _lit(frames, empty, step, black):
  """How far the brighter frames stand out of the empty screen, and of its noise, [h, w]."""
  # A probe may touch the patient for a part of the clip alone.
  middle, bright = (len(frames) - 1) // 2, int(0.8 * (len(frames) - 1))
  ordered = np.partition(frames, (middle, bright), axis=0)
  middle, bright = (ordered[i].astype(np.float32) for i in (middle, bright))
  rows, columns = (np.arange(n) * step + step // 2 for n in empty.shape)
  noise = np.median((bright - middle)[np.ix_(rows, columns)][empty])
  return np.abs(bright - black) - 2 * noise


def _grown(frames, lit, box, black):
  """The box with the dark parts of the scan, which neither move nor have a texture."""
  shown = lit > _STANDS_OUT
  larger = _with_most_of(shown, box)
  if _area(larger) > _GROWTH * _area(box):
    # Lines that frame the whole screen may touch the scan.
    larger = _with_most_of(ndimage.binary_opening(shown, np.ones((5, 5))), box)
  box = larger
  # What is as bright as curves is no faint echo, nor are letters, which are bright all the time,
  # and what compression leaves around either.
  high, low = frames.max(axis=0), frames.min(axis=0)
  drawn = ndimage.maximum_filter((high > black + _BRIGHT) | (low > black + _ALWAYS), 17)
  echoes = (high > black + _STANDS_OUT) & ~drawn
  return _stretched(echoes, box)


def _with_most_of(mask, box):
  """The box with the part of a mask that most of what the box holds of it belongs to."""
  labels, _ = ndimage.label(mask)
  inside = np.bincount(crop(labels, box).ravel())
  inside[0] = 0
  if not inside.any():
    return box
  return around(box, _box(ndimage.find_objects(labels, int(inside.argmax()))[-1]))


def _box(where):
  rows, columns = where
  return (rows.start, columns.start, rows.stop, columns.stop)


def _meet(a, b):
  return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def _stretched(echoes, box):
  """The box, longer where its own columns hold faint changes and those beside it none."""
  top, left, bottom, right = box
  h, w = echoes.shape
  width = right - left
  own = echoes[:, left:right].any(axis=1)
  beside = np.zeros(h, bool)
  for start in (left - width - 8, right + 8):
    beside |= echoes[:, max(0, start) : max(0, start + width)].any(axis=1)
  rows = np.flatnonzero(own & ~beside)
  gap = max(4, round(_GAP * (bottom - top)))
  for row in rows[rows >= bottom]:
    if row - bottom >= gap:
      break
    bottom = int(row) + 1
  return (top, left, bottom, right)


def _is_whole(lit, box):
  share = _area(box) / lit.size
  if share >= _WHOLE or share < _NEARLY_WHOLE:
    return share >= _WHOLE
  outside = lit > 20
  outside[box[0] : box[2], box[1] : box[3]] = False
  return outside.sum() < 0.001 * outside.size


def _over_dark_sides(bright, box):
  """The box up to the sides of the picture between which and it nothing can be read."""
  top, left, bottom, right = box
  h, w = bright.shape
  return (
    top if bright[:top].any() else 0,
    left if bright[:, :left].any() else 0,
    bottom if bright[bottom:].any() else h,
    right if bright[:, right:].any() else w,
  )


def _with_margin(box, margin, height, width):
  top, left, bottom, right = box
  return (
    max(0, top - margin),
    max(0, left - margin),
    min(height, bottom + margin),
    min(width, right + margin),
  )
