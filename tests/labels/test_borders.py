import numpy as np
import pytest

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
