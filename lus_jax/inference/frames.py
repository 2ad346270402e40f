"""Runs frozen models on the frames of pictures and clips."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lus_jax import ahead
from lus_jax.errors import UserError
from lus_jax.media import readers, scan_area
from lus_jax.media.letterbox import letterbox, restore

# Frames that go through the networks together: more would hold more maps of all thresholds.
_BATCH = 4
# Frames decoded together, a multiple of the batch: the next are decoded while the networks look at
# one lot. And bytes of them.
DECODED = 32
_BYTES = 2**27


class Clip(NamedTuple):
  """What is to be predicted.

  Attributes:
    key: whatever the caller knows it by.
    media: a `lus_jax.media.readers.Media`.
    frames: numbers of frames, counted from 0, rising.
    box: the scan area (top, left, bottom, right), half-open, as of `scan_area.find(media).box`, for
      models that learned from scan areas; nothing is predicted outside. None: the whole frame.
  """

  key: Any
  media: readers.Media
  frames: Sequence[int]
  box: tuple[int, int, int, int] | None = None


class Failed(NamedTuple):
  """A clip that cannot be read to its end, and why."""

  key: Any
  error: UserError


def predict(trained, clip, *, frames, box=None, probability=None, dtype=np.uint8):
  """Runs models over frames of a clip, a few at a time.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    clip: a `lus_jax.media.readers.Media`.
    frames: numbers of frames, counted from 0, rising.
    box: as in `Clip`.
    probability: `trained.probability`, compiled by its sweep, where there are several clips.
    dtype: of the maps, uint8 (255 = 1) or float32.

  Yields:
    The number of a frame, its grey values [h, w] uint8, and for every view of `trained` the
    probabilities [h, w, K], 0 outside of the scan area.

  Raises:
    UserError: the clip is damaged.
  """
  clips = [Clip(None, clip, frames, box)]
  for found in predict_all(trained, clips, probability=probability, dtype=dtype):
    if isinstance(found, Failed):
      raise found.error
    yield found[1:]


def predict_all(trained, clips, *, probability=None, dtype=np.uint8):
  """Runs models over many clips; the next one is read while the networks look at one.

  Args:
    trained: as in `predict`.
    clips: an iterable of `Clip` and `Failed`, which is gone through in a thread, ahead.
    probability: as in `predict`.
    dtype: as in `predict`.

  Yields:
    The key of a clip and what `predict` yields of a frame: its number, [h, w] and for every view
    [h, w, K]. A `Failed` for what `clips` gives of them, and for a clip that is damaged on the way,
    which is left there.
  """
  sweep, weights = trained.sweep, trained.weights
  probability = probability or sweep.compile(trained.probability)
  size = trained.config.data.image_size

  def started():
    for clip, numbers, images in ahead.in_thread(_batches(clips)):
      if isinstance(clip, Failed):
        yield clip, None, None, None, None
        continue
      fitted, valid = fit(images, size, clip.box)
      where = np.zeros(fitted.shape, bool)
      where[:, valid[0] : valid[2], valid[1] : valid[3]] = True
      # The last batch is filled up: another size would be another compilation. With frames of other
      # clips their numbers would depend on which clips there are.
      filled = np.arange(min(_BATCH, len(clip.frames))) % len(numbers)
      yield (
        clip,
        numbers,
        images,
        valid,
        probability(weights, sweep.members, fitted[filled], where[filled]),
      )

  for clip, numbers, images, valid, found in ahead.dispatched(started()):
    if isinstance(clip, Failed):
      yield clip
      continue
    members = sweep.to_host(found)
    for i, (number, image) in enumerate(zip(numbers, images, strict=True)):
      maps = [_whole(member[i], valid, clip.box, *image.shape, dtype) for member in members]
      yield clip.key, number, image, maps


def _whole(probability, valid, box, height, width, dtype):
  """Maps of the scan area at the whole frame's size, [h, w, K] of a type."""
  top, left, bottom, right = box or scan_area.whole(height, width)
  maps = np.zeros((height, width, probability.shape[-1]), dtype)
  maps[top:bottom, left:right] = restore(probability, valid, bottom - top, right - left, dtype)
  return maps


def _batches(clips):
  for clip in clips:
    if isinstance(clip, Failed):
      yield clip, None, None
      continue
    n = min(_BATCH, len(clip.frames))
    step = min(DECODED, max(1, _BYTES // (clip.media.height * clip.media.width) // n) * n)
    images = readers.stream(clip.media, clip.frames)
    try:
      for start in range(0, len(clip.frames), step):
        numbers = clip.frames[start : start + step]
        decoded = np.stack(list(itertools.islice(images, len(numbers))))
        for i in range(0, len(numbers), n):
          yield clip, numbers[i : i + n], decoded[i : i + n]
    except UserError as error:
      yield Failed(clip.key, error), None, None


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
