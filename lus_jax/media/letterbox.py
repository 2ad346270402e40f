"""Fits a picture into a given size without distorting it."""

import numpy as np
from PIL import Image


def letterbox(image, height, width, *, nearest=False):
  """Resizes a picture to fit, centred, and pads with 0; with half-pixel centres.

  The frame is resized to whole pixels, so its aspect is kept to half a pixel. Image and masks of
  one frame get the same geometry.

  Args:
    image: [h, w], uint8 or float32, values 0 to 255.
    height: H, in pixels.
    width: W, in pixels.
    nearest: whether every pixel is the nearest one's value, as it has to be of confidence masks:
      so every threshold keeps its share of the area, on average over where a mask lies. Else it is
      bilinear, and where that shrinks, it averages over the pixels passed over, as suits images.

  Returns:
    The picture, [H, W] uint8 rounded to nearest, and its valid box (top, left, bottom, right),
    half-open: the part of it that shows the frame.
  """
  h, w = image.shape
  scale = min(height / h, width / w)
  fitted = max(1, round(h * scale)), max(1, round(w * scale))
  if fitted != (h, w):
    if nearest:
      rows, columns = (
        (2 * np.arange(to) + 1) * n // (2 * to) for n, to in zip((h, w), fitted, strict=True)
      )
      image = image[rows[:, None], columns]
    else:
      image = np.asarray(Image.fromarray(image).resize(fitted[::-1], Image.Resampling.BILINEAR))
  top, left = (height - fitted[0]) // 2, (width - fitted[1]) // 2
  bottom, right = top + fitted[0], left + fitted[1]
  padded = np.zeros((height, width), np.uint8)
  padded[top:bottom, left:right] = np.rint(image)
  return padded, (top, left, bottom, right)


def restore(probability, box, height, width, dtype=np.uint8):
  """Undoes a letterbox: cuts the frame out and gives it its own size.

  Bilinear with half-pixel centres; where that shrinks, it averages over the pixels passed over.

  Args:
    probability: [S, S, K] float32 in [0, 1].
    box: (top, left, bottom, right), half-open: the part that shows the frame.
    height: h of the frame, in pixels.
    width: w of the frame, in pixels.
    dtype: of the result.

  Returns:
    [h, w, K] uint8, 255 = 1, rounded to nearest; or float32 in [0, 1].
  """
  top, left, bottom, right = box
  maps = np.moveaxis(probability[top:bottom, left:right], -1, 0)
  resized = [
    np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR))
    for one in maps.astype(np.float32)
  ]
  maps = np.stack(resized, axis=-1)
  return quantized(maps) if dtype == np.uint8 else np.clip(maps, 0, 1)


def quantized(probability):
  """Probabilities of any shape, as [h, w, K] float32 in [0, 1], as uint8: 255 = 1."""
  return np.rint(255 * probability).astype(np.uint8)
