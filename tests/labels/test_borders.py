import numpy as np
import pytest
from scipy import ndimage

from lus_jax.labels import borders


def test_a_straight_border():
  mask = np.zeros((5, 20), bool)
  mask[:, 10:] = True
  soft = borders.soften(mask, 4)
  # The outline lies between columns 9 and 10, so that centres are .5, 1.5, ... pixels away.
  expected = [0, 0.125, 0.375, 0.625, 0.875, 1]
  np.testing.assert_allclose(soft, [[0] * 7 + expected + [1] * 7] * 5)
  assert soft.dtype == np.float32


def test_the_label_at_half_is_the_mask():
  mask = np.random.default_rng(0).random((40, 50)) > 0.6
  for width in (0.1, 3, 30):
    for spacing in ((1, 1), (0.3, 0.1)):
      soft = np.rint(255 * borders.soften(mask, width, spacing)).astype(np.uint8)
      np.testing.assert_array_equal(soft / np.float32(255) >= 0.5, mask)


def test_what_is_drawn_at_a_border_or_far_from_all():
  random = np.random.default_rng(3)
  for top, left in ((0, 0), (30, 5), (44, 50), (20, 20)):
    mask = np.zeros((60, 70), bool)
    mask[top : top + 16, left : left + 20] = random.random((16, 20)) > 0.3
    for width, spacing in ((9, (1, 1)), (2, (0.5, 0.2))):
      inside = ndimage.distance_transform_edt(mask, sampling=spacing)
      outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
      half = min(spacing) / 2
      expected = np.clip(0.5 + np.where(mask, inside - half, half - outside) / width, 0, 1)
      np.testing.assert_allclose(borders.soften(mask, width, spacing), expected, atol=1e-6)


def test_millimetres():
  mask = np.zeros((30, 30), bool)
  mask[10:20] = True
  # 2 mm are 4 rows of half a millimetre.
  column = borders.soften(mask, 2, (0.5, 0.5))[:, 0]
  np.testing.assert_allclose(column[7:13], [0, 0.125, 0.375, 0.625, 0.875, 1])


@pytest.mark.parametrize("value", [False, True])
def test_a_picture_without_outline(value):
  mask = np.full((4, 4), value)
  np.testing.assert_array_equal(borders.soften(mask, 3), mask)


def test_a_border_without_width():
  with pytest.raises(ValueError, match="above 0"):
    borders.soften(np.eye(3, dtype=bool), 0)


def test_between_two_contours():
  inner, outer = np.zeros((2, 9, 20), bool)
  inner[:, 8:12], outer[:, 5:14] = True, True
  # Across straight contours: 3 pixels on the left, 2 right; none at the picture's border.
  row = [*[0] * 5, 1 / 6, 3 / 6, 5 / 6, *[1] * 4, 3 / 4, 1 / 4, *[0] * 6]
  np.testing.assert_allclose(borders.between(inner, outer), np.tile(row, (9, 1)), atol=1e-6)
  np.testing.assert_array_equal(borders.between(inner, inner), inner)
  assert not borders.between(inner & False, outer & False).any()
  # Where all is possible, the picture's border is the outer contour.
  assert borders.between(inner, outer | True)[0, 0] < 0.1
  for wrong in ((outer, inner), (inner & False, outer)):
    with pytest.raises(ValueError, match="inner contour"):
      borders.between(*wrong)
