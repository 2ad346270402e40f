"""Runs frozen models on the frames of a picture or clip."""

import numpy as np

from lus_jax import ahead
from lus_jax.media import readers, scan_area
from lus_jax.media.letterbox import letterbox, restore

# Frames that go through the networks together: more would hold more maps of all thresholds.
_BATCH = 4
# Frames decoded together, a multiple of the batch. A video is decoded once for each of these runs,
# which costs far less than the networks do and keeps a long one out of memory; the next is decoded
# while the networks look at one.
DECODED = 256
# And bytes of them.
_BYTES = 2**29


def predict(trained, clip, *, frames, box=None, probability=None):
  """Runs models over frames of a clip, a few at a time.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    clip: a `lus_jax.media.readers.Media`.
    frames: numbers of frames, counted from 0, rising.
    box: the scan area (top, left, bottom, right), half-open, as of `scan_area.find(clip).box`, for
      models that learned from scan areas; nothing is predicted outside. The whole frame by default.
    probability: `trained.probability`, compiled by its sweep, where there are several clips.

  Yields:
    The number of a frame, its grey values [h, w] uint8, and for every view of `trained` the
    probabilities [h, w, K] uint8, 0 outside of the scan area.

  Raises:
    UserError: the clip is damaged.
  """
  sweep, weights = trained.sweep, trained.weights
  probability = probability or sweep.compile(trained.probability)
  n = min(_BATCH, len(frames))

  def started():
    for numbers, images in _batches(clip, frames, n):
      fitted, valid = fit(images, trained.config.data.image_size, box)
      where = np.zeros(fitted.shape, bool)
      where[:, valid[0] : valid[2], valid[1] : valid[3]] = True
      # The last batch is filled up: another size would be another compilation.
      filled = np.arange(n) % len(numbers)
      found = probability(weights, sweep.members, fitted[filled], where[filled])
      yield numbers, images, valid, found

  for numbers, images, valid, found in ahead.dispatched(started()):
    members = sweep.to_host(found)
    for i, (number, image) in enumerate(zip(numbers, images, strict=True)):
      yield number, image, [_whole(member[i], valid, box, *image.shape) for member in members]


def _whole(probability, valid, box, height, width):
  """Maps of the scan area at the whole frame's size, [h, w, K] uint8."""
  top, left, bottom, right = box or scan_area.whole(height, width)
  maps = np.zeros((height, width, probability.shape[-1]), np.uint8)
  maps[top:bottom, left:right] = restore(probability, valid, bottom - top, right - left)
  return maps


def _batches(clip, frames, n):
  step = min(DECODED, max(1, _BYTES // (clip.height * clip.width) // n) * n)

  def decoded():
    for start in range(0, len(frames), step):
      numbers = frames[start : start + step]
      yield numbers, readers.read(clip, numbers)

  for numbers, images in ahead.in_thread(decoded()):
    for i in range(0, len(numbers), n):
      yield numbers[i : i + n], images[i : i + n]


def fit(images, size, box=None):
  """Letterboxes frames, or their scan area.

  Args:
    images: [n, h, w] uint8.
    size: of the network's frames, in pixels.
    box: the scan area (top, left, bottom, right), half-open; the whole frame by default.

  Returns:
    [n, size, size, 1] in [0, 1], and the box of it that shows the frame or scan area.
  """
  images = images if box is None else scan_area.crop(images, box)
  fitted = [letterbox(image, size, size) for image in images]
  _, valid = fitted[0]
  return np.stack([image for image, _ in fitted])[..., None].astype(np.float32) / 255, valid
