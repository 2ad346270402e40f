import numpy as np

from lus_jax import palette


def test_a_layer_over_a_frame_is_the_overlay():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (8, 9, 1), dtype=np.uint8)
  weights = rng.choice([0, 0.2, 1], (8, 9, 10))
  layer = palette.layer(weights).astype(float)
  alpha = layer[..., 3:] / 255
  over = alpha * layer[..., :3] + (1 - alpha) * image
  np.testing.assert_allclose(palette.overlay(image, weights), over, atol=1.5)


def test_confidence_is_opacity():
  image = np.full((1, 1), 100, np.uint8)
  one = np.zeros((1, 1, 3))
  np.testing.assert_array_equal(palette.overlay(image, one)[0, 0], [100, 100, 100])
  one[..., 1] = 1
  full = 0.25 * 100 + 0.75 * np.array(palette.rgb(1))
  np.testing.assert_allclose(palette.overlay(image, one)[0, 0], full, atol=0.5)
  half = palette.overlay(image, one / 2)[0, 0].astype(float)
  np.testing.assert_allclose(half, (100 * 5 / 8) + 3 / 8 * np.array(palette.rgb(1)), atol=0.5)


def contrast(colour, ground):
  """WCAG contrast ratio of two sRGB colours."""

  def luminance(rgb):
    c = np.asarray(rgb) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return c @ [0.2126, 0.7152, 0.0722]

  bright, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
  return (bright + 0.05) / (dark + 0.05)


def test_the_paper_s_classes_stand_out_on_dark_frames_and_on_white_paper():
  for k in range(6):
    assert contrast(palette.rgb(k), (0, 0, 0)) > 3.5
    assert contrast(palette.rgb(k), (255, 255, 255)) > 2
  assert len({palette.css(k) for k in range(8)}) == 8
  assert palette.css(8) == palette.css(0)
