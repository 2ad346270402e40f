"""Suspects text in pixels: rows of bright shapes of one height, on a dark ground, that do not move.

A heuristic, made to find what machines write on their screens, which may be a name. It does not see
letters that lie on tissue in a single picture, or that are darker than their ground.
"""

import dataclasses

import numpy as np
from scipy import ndimage

# Heights of letters that are looked for, in pixels, and how much brighter than their ground they
# are at least.
_LOWEST, _HIGHEST = 6, 48
_CONTRAST = 50
# Strokes are thinner than this.
_STROKE = 9
# What changes by more than this over a clip is no text; a video's compression changes everything.
_STILL = 30
# Between letters nearly all is darker than this share of their brightness.
_GROUND = 0.4
_FEWEST = 4
# Of more shapes than these a picture is no page but noise.
_MOST = 5000


@dataclasses.dataclass(frozen=True)
class _Shape:
  top: int
  left: int
  bottom: int
  right: int
  area: int

  @property
  def height(self):
    return self.bottom - self.top

  @property
  def width(self):
    return self.right - self.left


def _shapes(picture, moves):
  """The bright, still shapes of a letter's size on a dark ground, from left to right."""
  bright = picture - ndimage.grey_opening(picture, size=(_STROKE, _STROKE), mode="nearest")
  marks = (bright >= _CONTRAST) & (moves <= _STILL)
  numbered, count = ndimage.label(marks, np.ones((3, 3)))
  if count > _MOST:
    return []
  found = []
  for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if not (_LOWEST <= height <= _HIGHEST and width <= 1.6 * height):
      continue
    around = (
      slice(max(rows.start - 3, 0), rows.stop + 3),
      slice(max(columns.start - 3, 0), columns.stop + 3),
    )
    of_letter = numbered[around] == number
    beside = ~ndimage.binary_dilation(marks[around], iterations=1)
    area = int(of_letter.sum())
    if not 0.12 * height * width <= area or not beside.any():
      continue
    level = np.median(picture[around][of_letter])
    if np.percentile(picture[around][beside], 90) > _GROUND * level:
      continue
    found.append(_Shape(rows.start, columns.start, rows.stop, columns.stop, area))
  return sorted(found, key=lambda shape: shape.left)


def _follows(shape, other):
  """Whether a shape could be the letter after another one."""
  low, high = sorted((shape.height, other.height))
  overlap = min(shape.bottom, other.bottom) - max(shape.top, other.top)
  gap = other.left - shape.right
  return high <= 2 * low and overlap >= 0.6 * low and -0.3 * low <= gap <= 1.2 * high


def _is_scale(line):
  """Whether shapes are the marks of a scale, one like the other."""
  return max(s.width for s in line) <= 3 or all(
    np.ptp([getattr(s, name) for s in line]) <= 1 for name in ("width", "height", "area")
  )


def find(picture, moves=None):
  """Finds what looks like lines of text.

  Args:
    picture: [h, w] uint8: of a clip the least that each pixel ever was.
    moves: [h, w] uint8, how much each pixel changes over the clip; None: a single picture.

  Returns:
    A list of boxes (top, left, bottom, right), half-open, one a line.
  """
  lines = []
  moves = np.zeros_like(picture) if moves is None else moves
  for shape in _shapes(picture, moves):
    # The line that ends nearest.
    fits = [line for line in lines if _follows(line[-1], shape)]
    if fits:
      max(fits, key=lambda line: line[-1].right).append(shape)
    else:
      lines.append([shape])
  return [
    (
      min(s.top for s in line),
      line[0].left,
      max(s.bottom for s in line),
      max(s.right for s in line),
    )
    for line in lines
    if len(line) >= _FEWEST and not _is_scale(line)
  ]
