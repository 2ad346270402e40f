import numpy as np
import pytest
from matplotlib.path import Path

from lus_jax.errors import UserError
from tfds_builders.importers import shapes
from tfds_builders.importers.shapes import Shape

H, W = 24, 32


def centres(offset=0.5):
  ys, xs = np.mgrid[:H, :W] + offset
  return np.stack([xs.ravel(), ys.ravel()], axis=1)


def test_a_polygon_from_the_corner_of_the_picture():
  # From (2, 3) to (10, 7): 8 x 4 pixels, to the outline.
  shape = Shape("a", "polygon", ((2, 3), (10, 3), (10, 7), (2, 7)))
  expected = np.zeros((H, W), np.uint8)
  expected[3:7, 2:10] = 255
  np.testing.assert_array_equal(shapes.mask(shape, H, W), expected)


def test_a_polygon_between_pixel_centres():
  shape = Shape("a", "polygon", ((2, 3), (10, 3), (10, 7), (2, 7)), centres=True)
  expected = np.zeros((H, W), np.uint8)
  expected[3:8, 2:11] = 255
  np.testing.assert_array_equal(shapes.mask(shape, H, W), expected)


def test_any_polygon_is_filled_to_half_a_pixel():
  random = np.random.default_rng(1)
  for _ in range(20):
    turns = np.sort(random.random(7)) * 2 * np.pi
    radius = random.uniform(5, 11, 7)
    points = np.stack([16 + radius * np.cos(turns), 12 + radius * np.sin(turns)], axis=1)
    inside = Path(points).contains_points(centres()).reshape(H, W)
    drawn = shapes.mask(Shape("a", "polygon", tuple(map(tuple, points))), H, W) > 0
    # What differs lies on the outline.
    edges = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1).sum()
    assert (drawn != inside).sum() < 0.25 * edges
    assert drawn.sum() == pytest.approx(inside.sum(), rel=0.1, abs=4)


def test_a_hole():
  square, hole = ((0, 0), (9, 0), (9, 9), (0, 9)), ((3, 3), (6, 3), (6, 6), (3, 6))
  mask = shapes.mask(Shape("a", "polygon", square, holes=(hole,)), H, W)
  assert (mask > 0).sum() == 81 - 9 and not mask[3:6, 3:6].any()


def test_rectangles_and_ellipses():
  box = shapes.mask(Shape("a", "rectangle", ((12, 8), (20, 12))), H, W) > 0
  assert box[8:12, 12:20].all() and box.sum() == 32
  turned = shapes.mask(Shape("a", "rectangle", ((12, 8), (20, 12)), angle=90.0), H, W) > 0
  assert turned[6:14, 14:18].all() and turned.sum() == 32
  ellipse = shapes.mask(Shape("a", "ellipse", ((16, 12), (10, 5))), H, W) > 0
  xs, ys = np.moveaxis(centres().reshape(H, W, 2), -1, 0)
  exact = ((xs - 16) / 10) ** 2 + ((ys - 12) / 5) ** 2 <= 1
  assert (ellipse != exact).sum() <= 6


def test_a_line_has_its_width():
  line = Shape("a", "polyline", ((5, 4), (5, 20)), width=4.0)
  mask = shapes.mask(line, H, W) > 0
  # From x = 3 to 7, and round ends.
  assert mask[4:20, 3:7].all() and not mask[:, :3].any() and not mask[:, 7:].any()
  thin = shapes.mask(Shape("a", "polyline", ((5.5, 4), (5.5, 20)), width=0.1), H, W) > 0
  assert thin[4:20, 5].all() and thin.sum() <= 18


def test_where_strokes_overlap_the_larger_confidence_counts():
  class Source:
    cut = []

    def skip(self, what, where):
      raise AssertionError

  class Media:
    height, width = H, W

  low = Shape("a", "mask", pixels=np.full((4, 4), 100, np.uint8), at=(2, 2))
  high = Shape("a", "mask", pixels=np.full((4, 4), 200, np.uint8), at=(4, 4))
  for order in ((low, high), (high, low)):
    mask = shapes.draw(order, Media, Source())["a"]
    assert mask[3, 3] == 100 and mask[5, 5] == 200 and mask[0, 0] == 0
  with pytest.raises(UserError, match=r"it reaches to \(33, 8\), out of its picture"):
    shapes.draw([Shape("a", "mask", pixels=low.pixels, at=(4, 29), where="it")], Media, Source())


def test_run_lengths():
  rows = shapes.from_runs([2, 3, 7], 3, 4, where="it")
  np.testing.assert_array_equal(rows, [[0, 0, 255, 255], [255, 0, 0, 0], [0, 0, 0, 0]])
  columns = shapes.from_runs([2, 3, 7], 3, 4, order="F", where="it")
  np.testing.assert_array_equal(columns, [[0, 255, 0, 0], [0, 255, 0, 0], [255, 0, 0, 0]])
  for runs in ([2, 3], [-1, 13], [2.0, 10], [10**12]):
    with pytest.raises(UserError, match="do not fill 4 x 3 pixels"):
      shapes.from_runs(runs, 3, 4, where="it")
