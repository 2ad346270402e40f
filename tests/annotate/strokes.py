"""What strokes leave, worked out in NumPy from their definition, a stroke at a time."""

import numpy as np


def share(distance, radius, softness):
  """1 up to radius * (1 - softness), 0 from the radius on, a smooth step between."""
  inner = radius * (1 - softness)
  with np.errstate(divide="ignore", invalid="ignore"):
    x = np.clip((radius - distance) / (radius - inner), 0, 1)
  smooth = x * x * (3 - 2 * x)
  return np.where(distance <= inner, 1.0, np.where(distance >= radius, 0.0, smooth))


def distance(shape, a, b):
  """Of every pixel's middle from the line a to b, and how far along it the nearest point lies."""
  y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
  (ax, ay), (bx, by) = a, b
  length = (bx - ax) ** 2 + (by - ay) ** 2
  along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / (length or 1)
  along = np.clip(along, 0, 1) if length else np.zeros(shape)
  return np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)), along


def stroke(plane, points, *, radius, softness, level, erase=False, strengths=None):
  """A stroke along points (x, y): what it leaves of a plane, uint8 [h, w]."""
  plane, strengths = plane.astype(int), strengths or [1.0] * len(points)
  for i, b in enumerate(points):
    far, along = distance(plane.shape, points[max(i - 1, 0)], b)
    first, last = strengths[max(i - 1, 0)], strengths[i]
    strength = first + along * (last - first)
    top = 255 - level if erase else level
    value = np.floor(top * strength * share(far, radius, softness) + 0.5).astype(int)
    plane = np.minimum(plane, 255 - value) if erase else np.maximum(plane, value)
  return plane.astype(np.uint8)


def inside(shape, points):
  """Whether each pixel's middle lies within an outline, by the angles that it is seen under."""
  y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
  turn = np.zeros(shape)
  for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
    first, last = np.arctan2(ay - y, ax - x), np.arctan2(by - y, bx - x)
    turn += (last - first + np.pi) % (2 * np.pi) - np.pi
  return np.abs(turn) > np.pi


def filled(plane, points, *, level, border=0.0):
  """An outline filled, with a border outside of it over which the level falls."""
  plane = np.maximum(plane, level * inside(plane.shape, points)).astype(np.uint8)
  if border:
    plane = stroke(plane, [*points, points[0]], radius=border, softness=1, level=level)
  return plane
