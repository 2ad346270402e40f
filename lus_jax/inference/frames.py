"""Runs frozen models on the frames of a picture or clip."""

import numpy as np

from lus_jax import ahead
from lus_jax.media import readers
from lus_jax.media.letterbox import letterbox, restore

# Frames that go through the networks together: more would hold more maps of all thresholds.
_BATCH = 4
# Frames decoded together, a multiple of the batch. A video is decoded once for each of these runs,
# which costs far less than the networks do and keeps a long one out of memory; the next is decoded
# while the networks look at one.
DECODED = 256
# And bytes of them.
_BYTES = 2**29


def predict(trained, clip, *, frames, probability=None):
  """Runs models over frames of a clip, a few at a time.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    clip: a `lus_jax.media.readers.Media`.
    frames: numbers of frames, counted from 0, rising.
    probability: `trained.probability`, compiled by its sweep, where there are several clips.

  Yields:
    The number of a frame, its grey values [h, w] uint8, and for every view of `trained` the
    probabilities [h, w, K] uint8.

  Raises:
    UserError: the clip is damaged.
  """
  sweep, weights = trained.sweep, trained.weights
  probability = probability or sweep.compile(trained.probability)
  n = min(_BATCH, len(frames))

  def started():
    for numbers, images in _batches(clip, frames, n):
      fitted, box = fit(images, trained.config.data.image_size)
      where = np.zeros(fitted.shape, bool)
      where[:, box[0] : box[2], box[1] : box[3]] = True
      # The last batch is filled up: another size would be another compilation.
      filled = np.arange(n) % len(numbers)
      yield numbers, images, box, probability(weights, sweep.members, fitted[filled], where[filled])

  for numbers, images, box, found in ahead.dispatched(started()):
    members = sweep.to_host(found)
    for i, (number, image) in enumerate(zip(numbers, images, strict=True)):
      yield number, image, [restore(member[i], box, *image.shape) for member in members]


def _batches(clip, frames, n):
  step = min(DECODED, max(1, _BYTES // (clip.height * clip.width) // n) * n)

  def decoded():
    for start in range(0, len(frames), step):
      numbers = frames[start : start + step]
      yield numbers, readers.read(clip, numbers)

  for numbers, images in ahead.in_thread(decoded()):
    for i in range(0, len(numbers), n):
      yield numbers[i : i + n], images[i : i + n]


def fit(images, size):
  """Letterboxes frames [n, h, w] to [n, size, size, 1] in [0, 1]; also returns the box."""
  fitted = [letterbox(image, size, size) for image in images]
  _, box = fitted[0]
  return np.stack([image for image, _ in fitted])[..., None].astype(np.float32) / 255, box
