"""What CVAT shows between the keyframes of a track."""

import numpy as np


def between(kind, left, right, share):
  """The coordinates between two keyframes, as CVAT interpolates them.

  Rectangles and ellipses move evenly. The corners of polygons and lines are matched by how far
  along the outline they are, so that their number may differ; then those that came close are
  merged. All else stays as it was.

  Args:
    kind: one of `shapes.KINDS`.
    left: coordinates of the keyframe before, in one row.
    right: of the one after.
    share: of the way between them, from 0 to 1.

  Returns:
    Coordinates in one row.
  """
  if kind in ("rectangle", "ellipse"):
    return tuple(a + (b - a) * share for a, b in zip(left, right, strict=True))
  if kind not in ("polygon", "polyline"):
    return left
  a, b = (np.reshape(x, (-1, 2)).astype(float) for x in (left, right))
  if kind == "polygon":
    a, b = (np.concatenate([x, x[:1]]) for x in (a, b))
  points = _merged(a, b, _matches(_lengths(a), _lengths(b)), share)
  if kind == "polygon":
    points = points[:-1]
  return tuple(value for point in points for value in point)


def turned(left, right, share):
  """An angle between two, in degrees, by the shorter way."""
  return (left + ((right - left + 180) % 360 - 180) * share) % 360


def _lengths(points):
  """How far along its outline each corner is, from 0 to 1."""
  steps = np.hypot(*np.diff(points, axis=0).T)
  along = np.concatenate([[0.0], np.cumsum(steps)])
  return along / along[-1] if along[-1] else along


def _nearest(values, rising):
  """The first of the rising numbers that is nearest to each value."""
  after = np.searchsorted(rising, values).clip(0, len(rising) - 1)
  before = np.searchsorted(rising, rising[(after - 1).clip(0)])
  nearer = np.abs(values - rising[before]) <= np.abs(values - rising[after])
  return np.where(nearer, before, np.searchsorted(rising, rising[after]))


def _matches(a, b):
  """For each corner of one outline, those of the other that it moves to, rising."""
  matches = [[int(i)] for i in _nearest(a, b)]
  taken = {i for (i,) in matches}
  left_out = np.array([i for i in range(len(b)) if i not in taken], int)
  for i, nearest in zip(left_out.tolist(), _nearest(b[left_out], a).tolist(), strict=True):
    matches[nearest].append(i)
  return [sorted(found) for found in matches]


def _merged(a, b, matches, share):
  """The points between two outlines, of which those that several corners gave are thinned out."""
  pairs = [(i, j) for i, found in enumerate(matches) for j in found]
  points = [a[i] + (b[j] - a[i]) * share for i, j in pairs]
  first = np.cumsum([0, *map(len, matches)])  # of each corner's points

  def run(outline, start, stop, begin, end):
    # Corners that moved closer than half of their mean distance are one.
    least = np.hypot(*np.diff(outline[start : stop + 1], axis=0).T).sum() / (2 * (stop - start + 1))
    kept = [points[begin]]
    for point in points[begin + 1 : end]:
      if np.hypot(*(point - kept[-1])) >= least:
        kept.append(point)
    if len(kept) == 1 and np.hypot(*(points[end] - kept[0])) < least:
      return [(kept[0] + points[end]) / 2]
    return [*kept, points[end]]

  merged, opened = [], None
  for i in range(len(a) + 1):
    is_single = i < len(a) and len(matches[i]) == 1
    if opened is not None and not (is_single and matches[i][0] == matches[opened][0]):
      if opened == i - 1:
        merged.append(points[first[opened]])
      else:
        merged += run(a, opened, i - 1, first[opened], first[i - 1])
      opened = None
    if is_single and opened is None:
      opened = i
    elif i < len(a) and not is_single:
      merged += run(b, matches[i][0], matches[i][-1], first[i], first[i + 1] - 1)
  return merged
