"""Augmentation of clips on the device: one draw a clip, for all its frames and maps alike.

A frame is a clip of one frame. What is drawn is a flip, a scale and a shift, and an intensity; the
geometry is two matrix products, rows and columns.
"""

import jax
from jax import numpy as jnp

from lus_jax.data import augment


def is_on(config):
  """Whether a config asks for any augmentation; configs of older versions lack it."""
  return config is not None and config.probability > 0


def resampling(size, *, scale, shift, flip):
  """The matrix [size, size] that resamples an axis linearly about its centre, zeros outside.

  Args:
    size: n, in pixels.
    scale: factor on what is seen: above 1 things become larger.
    shift: in pixels, the way things move.
    flip: whether the axis is mirrored before.
  """
  centre = (size - 1) / 2
  places = jnp.arange(size, dtype=jnp.float32)
  at = (places - centre - shift) / scale
  at = jnp.where(flip, -at, at) + centre
  return jnp.maximum(1 - jnp.abs(at[:, None] - places[None]), 0)


def warp(frames, rows, columns):
  """Resamples frames [..., h, w, C] by matrices of rows [h, h] and columns [w, w]."""
  return jnp.einsum("...hwc,Hh,Ww->...HWc", frames, rows, columns, precision="highest")


def _draw(key, config, height, width):
  """Matrices of rows and columns, and what to do to an image's intensity."""
  choose, size, move, light, dark, bend = jax.random.split(key, 6)
  flip, turn, intensity = jax.random.uniform(choose, (3,)) < config.probability
  scale = (1 + config.scale) ** (turn * jax.random.uniform(size, minval=-1))
  down, right = turn * jax.random.uniform(move, (2,), minval=-config.shift, maxval=config.shift)
  rows = resampling(height, scale=scale, shift=down * height, flip=False)
  columns = resampling(width, scale=scale, shift=right * width, flip=flip)
  low, high = config.gamma
  changed = {
    "brightness": jax.random.uniform(light, minval=-config.brightness, maxval=config.brightness),
    "contrast": jax.random.uniform(dark, minval=-config.contrast, maxval=config.contrast),
    "gamma": jax.random.uniform(bend, minval=low, maxval=high),
  }

  def brighten(image):
    # Black is what is beyond the scan, too, and stays black.
    changes = intensity & (image > 0)
    return jnp.where(changes, augment.adjust_intensity(image, **changed), image)

  return rows, columns, brighten


def frames(clip, box, key, config):
  """Augments clips without maps.

  Args:
    clip: [B, N, h, w, 1] uint8.
    box: [B, 4] the part of each that was in the original frame, half-open.
    key: a jax random key; None for no augmentation.
    config: the `augment` part of a run's config.

  Returns:
    The clips, float32 in [0, 1], 0 outside; and [B, h, w] bool, where they show what was in the
    original frame.
  """
  height, width = clip.shape[2:4]
  row, column = jnp.arange(height)[None], jnp.arange(width)[None]
  top, left, bottom, right = (one[:, None] for one in box.T)
  inside = ((row >= top) & (row < bottom))[:, :, None]
  inside &= ((column >= left) & (column < right))[:, None, :]
  image = clip.astype(jnp.float32) / 255
  if key is None or not is_on(config):
    return image, inside

  def one(image, inside, key):
    rows, columns, brighten = _draw(key, config, height, width)
    seen = warp(inside[..., None].astype(jnp.float32), rows, columns)[..., 0] > 0.999
    image = brighten(warp(image, rows, columns))
    return image * seen[None, :, :, None], seen

  return jax.vmap(one)(image, inside, jax.random.split(key, len(clip)))


def with_maps(inputs, key, config):
  """Augments a batch of a clinical task.

  Args:
    inputs: `image` [F, M, N, h, w, 1] and `channels` [F, c, M, N, h, w, K] uint8, and what belongs
      to the videos.
    key: a jax random key.
    config: the `augment` part of a run's config.

  Returns:
    The same, augmented: the clip m of fold f and all its maps alike, the intensity of the image
    alone.
  """
  if not is_on(config):
    return inputs
  image, channels = inputs["image"], inputs["channels"]
  folds, clips = image.shape[:2]
  height, width = image.shape[3:5]

  def one(image, channels, key):
    rows, columns, brighten = _draw(key, config, height, width)
    image = brighten(warp(image.astype(jnp.float32) / 255, rows, columns))
    maps = warp(channels.astype(jnp.float32), rows, columns)
    return tuple(jnp.rint(x).astype(jnp.uint8) for x in (255 * image, maps))

  keys = jax.random.split(key, (folds, clips))
  of_clips = jax.vmap(one, in_axes=(0, 1, 0), out_axes=(0, 1))
  # Fold by fold: the maps are bytes, and four times as large while they are computed with.
  image, channels = jax.lax.map(lambda fold: of_clips(*fold), (image, channels, keys))
  return inputs | {"image": image, "channels": channels}
