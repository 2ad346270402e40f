"""The colours of the classes and of the thresholds, the same in every figure and picture."""

import numpy as np

# Okabe and Ito's palette, told apart with every common colour blindness; its yellow, lost on white
# paper, comes after the six classes of the paper. More classes than colours start over.
PALETTE = np.array(
  [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [204, 121, 167],
    [0, 114, 178],
    [213, 94, 0],
    [240, 228, 66],
    [153, 153, 153],
  ]
)
# A second cue beside the colour, for curves.
MARKERS = "osD^vPX*"
# Opacity of a class at confidence 1: the speckle below stays visible.
OPACITY = 0.75


def rgb(k):
  """Colour of class k: three integers in 0..255."""
  return tuple(PALETTE[k % len(PALETTE)].tolist())


def css(k):
  """Colour of class k as '#rrggbb'."""
  return "#{:02x}{:02x}{:02x}".format(*rgb(k))


def marker(k):
  """Marker of class k in curves."""
  return MARKERS[k % len(MARKERS)]


def _blend(weights):
  # Class over class in their order, colours premultiplied by their opacity; planes, [3, H, W] and
  # [H, W], as loops over three numbers a pixel are slow.
  colour = np.zeros((3, *weights.shape[:-1]), np.float32)
  alpha = np.zeros(weights.shape[:-1], np.float32)
  for k in range(weights.shape[-1]):
    opacity = np.float32(OPACITY) * weights[..., k].astype(np.float32)
    if opacity.any():
      rest = 1 - opacity
      for plane, value in zip(colour, np.array(rgb(k), np.float32), strict=True):
        plane *= rest
        plane += opacity * value
      alpha = rest * alpha + opacity
  return colour, alpha


def layer(weights):
  """The classes alone, to lie over a frame.

  Args:
    weights: [H, W, K] in [0, 1], share of each class's full opacity.

  Returns:
    [H, W, 4] uint8, red, green, blue and alpha.
  """
  colour, alpha = _blend(weights)
  colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
  return _picture([*colour, 255 * alpha])


def overlay(image, weights):
  """Colours classes over a frame.

  Args:
    image: [H, W] or [H, W, 1] uint8.
    weights: [H, W, K] in [0, 1], share of each class's full opacity.

  Returns:
    [H, W, 3] uint8.
  """
  colour, alpha = _blend(weights)
  below = (1 - alpha) * np.asarray(image, np.float32).reshape(weights.shape[:2])
  return _picture([below + plane for plane in colour])


def _picture(planes):
  return np.stack([np.rint(plane).astype(np.uint8) for plane in planes], axis=-1)
