"""Fills polygons and circles as OpenCV does, to the pixel; its wheels hold libraries under LGPL."""

import collections

# Where edges cross rows is reckoned in whole numbers of so small a part of a pixel.
_ONE = 1 << 16


def _divided(a, b):
  """A quotient of whole numbers, cut towards 0."""
  return a // b if (a < 0) == (b < 0) else -(-a // b)


def _clipped(start, end, height, width):
  """The part of a line within a picture: whether there is one, and its ends."""
  (x1, y1), (x2, y2) = start, end
  right, bottom = width - 1, height - 1

  def side(x, y):
    return (x < 0) + 2 * (x > right) + 4 * (y < 0) + 8 * (y > bottom)

  a, b = side(x1, y1), side(x2, y2)
  if not a & b and a | b:
    # First above and below, then left and right.
    if a & 12:
      y = 0 if a < 8 else bottom
      x1, y1 = x1 + int((y - y1) * (x2 - x1) / (y2 - y1)), y
      a = (x1 < 0) + 2 * (x1 > right)
    if b & 12:
      y = 0 if b < 8 else bottom
      x2, y2 = x2 + int((y - y2) * (x2 - x1) / (y2 - y1)), y
      b = (x2 < 0) + 2 * (x2 > right)
    if not a & b and a | b:
      if a:
        x = 0 if a == 1 else right
        x1, y1, a = x, y1 + int((x - x1) * (y2 - y1) / (x2 - x1)), 0
      if b:
        x = 0 if b == 1 else right
        x2, y2, b = x, y2 + int((x - x2) * (y2 - y1) / (x2 - x1)), 0
  return not a | b, (x1, y1), (x2, y2)


def line(mask, start, end):
  """Draws a line of one pixel's width.

  Args:
    mask: bool [h, w], changed.
    start: of it, (x, y), whole numbers.
    end: likewise.
  """
  is_seen, (x, y), (x2, y2) = _clipped(start, end, *mask.shape)
  if not is_seen:
    return
  if x2 < x:
    x, y, x2, y2 = x2, y2, x, y
  long, short, down = x2 - x, abs(y2 - y), 1 if y2 >= y else -1
  is_steep = short > long
  if is_steep:
    long, short = short, long
  error = long - 2 * short
  for _ in range(long + 1):
    mask[y, x] = True
    aside = error < 0
    error += 2 * (long * aside - short)
    x, y = (x + aside, y + down) if is_steep else (x + 1, y + down * aside)


def polygon(mask, corners):
  """Fills a polygon and draws its outline.

  Args:
    mask: bool [h, w], changed.
    corners: (x, y), whole numbers.
  """
  height, width = mask.shape
  crossings = collections.defaultdict(list)
  for start, end in zip([corners[-1], *corners[:-1]], corners, strict=True):
    line(mask, start, end)
    if start[1] == end[1]:
      continue
    a, b = start, end
    if not all(0 <= x < width and 0 <= y < height for x, y in (start, end)):
      _, a, b = _clipped(start, end, height, width)
      if a[1] == b[1]:
        a, b = (a[0], start[1]), (b[0], end[1])
    step = _divided((b[0] - a[0]) * _ONE, b[1] - a[1])
    (_, top), (_, bottom) = sorted((start, end), key=lambda point: point[1])
    x, y = a if start[1] < end[1] else b
    for row in range(max(top, 0), min(bottom, height)):
      crossings[row].append(x * _ONE + (row - y) * step)
  for row, found in crossings.items():
    found.sort()
    for left, right in zip(found[::2], found[1::2], strict=True):
      mask[row, max(-(-left // _ONE), 0) : max(right // _ONE + 1, 0)] = True


def circle(mask, centre, radius, value):
  """Fills a circle.

  Args:
    mask: bool [h, w], changed.
    centre: of it, (x, y), whole numbers.
    radius: of it, a whole number.
    value: to fill it with.
  """
  # Half of each row's width, from the middle on.
  halves = [0] * (radius + 1)
  across, down, error = radius, 0, 0
  while across >= down:
    halves[down], halves[across] = max(halves[down], across), max(halves[across], down)
    error += 2 * down + 1
    down += 1
    if error > 0:
      error -= 2 * across - 1
      across -= 1
  x, y = centre
  for i, half in enumerate(halves):
    for row in (y - i, y + i):
      if 0 <= row < mask.shape[0]:
        mask[row, max(x - half, 0) : max(x + half + 1, 0)] = value
