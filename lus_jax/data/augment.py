"""From stored frames to the network's input, augmented on the device.

Geometry is applied to the image and the confidence together and before any threshold, so that a
label is always the threshold of a confidence that was painted: between two pixels the image is
interpolated, the confidence the nearer one's. Interpolated, a label of 100 % would lose its border
and one of "> 0 %" win it, and thresholds would not be compared with each other any more.
"""

import functools
import math

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax.errors import UserError

# How confidences are turned; "bilinear", which runs from before there was a choice go on with,
# takes area from high thresholds and gives it to low ones.
CONFIDENCES = ("nearest", "bilinear")


def prepare(batch, key=None, augmentation=None):
  """Turns stored frames into arrays of the network.

  Args:
    batch: `image` [B, H, W, C] and `confidence` [B, H, W, K] uint8, `valid_box` [B, 4] and
      `labelled` [B, K]; of several raters also `staple` [B, H, W, K] and `raters` [B, R, H, W, K]
      uint8, with `drawn` [B, R]; where some pixels count in no class also `ignore` [B, H, W, 1].
    key: a jax random key, for the augmentation.
    augmentation: the `augment` part of a run's config (`probability`, `rotation_degrees`,
      `confidence`, `brightness`, `contrast`, `gamma`): each example is flipped, rotated and changed
      in intensity, each with that probability. None: nothing is changed.

  Returns:
    `image` [B, H, W, C], `confidence` [B, H, W, K] and what there is of the raters, float32 in
    [0, 1], and `where` [B, H, W, K], True where a pixel was in the original frame and its class was
    annotated; pixels that a rotation brought in from outside, or mixed with ignored ones, are
    False.
  """
  height, width = batch["image"].shape[1:3]
  top, left, bottom, right = (box[:, None] for box in batch["valid_box"].T)
  rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
  inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[
    :, None, :
  ]
  pixels = {name: batch[name] for name in ("image", "confidence", "staple") if name in batch}
  if "raters" in batch:
    pixels["raters"] = jnp.moveaxis(batch["raters"], 1, 3).reshape(*batch["image"].shape[:3], -1)
  inputs = {name: x.astype(jnp.float32) / 255 for name, x in pixels.items()}
  if "ignore" in batch:
    inputs["ignore"] = (batch["ignore"] > 0).astype(jnp.float32)
  if augmentation is not None:
    inputs, inside = _augment(inputs, inside, key, augmentation)
  if "raters" in batch:
    n_raters = batch["raters"].shape[1]
    raters = inputs["raters"].reshape(*inputs["raters"].shape[:3], n_raters, -1)
    inputs |= {"raters": jnp.moveaxis(raters, 3, 1), "drawn": batch["drawn"]}
  where = inside[..., None] & batch["labelled"][:, None, None, :]
  if "ignore" in inputs:
    where &= inputs.pop("ignore") < 1e-3
  return inputs | {"where": where}


def rotate(image, angle, *, nearest=False):
  """Rotates about the centre, with zeros outside.

  Args:
    image: [H, W, C].
    angle: in radians, counter-clockwise as displayed.
    nearest: whether every pixel is the nearest one's value; else interpolated bilinearly.

  Returns:
    [H, W, C].
  """
  height, width = image.shape[:2]
  y, x = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  at = (y * cos + x * sin + (height - 1) / 2, x * cos - y * sin + (width - 1) / 2)
  if nearest:
    # All channels of a pixel at once; what lies outside, by a place that does not exist.
    rows, columns = (jnp.floor(one + 0.5).astype(int) for one in at)
    inside = (rows >= 0) & (columns >= 0)
    return image.at[jnp.where(inside, rows, height), columns].get(mode="fill", fill_value=0)
  sample = functools.partial(
    jax.scipy.ndimage.map_coordinates, coordinates=at, order=1, mode="constant", cval=0.0
  )
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def adjust_intensity(image, *, brightness, contrast, gamma):
  """Gamma, then contrast about the mean, then brightness; clipped to [0, 1].

  Args:
    image: [H, W, C] in [0, 1].
    brightness: added.
    contrast: factor minus one.
    gamma: exponent.

  Returns:
    [H, W, C].
  """
  # The gradient of x^gamma never matters here, but 0^gamma must stay 0.
  image = jnp.where(image > 0, image, 1e-6) ** gamma * (image > 0)
  mean = jnp.mean(image)
  return jnp.clip((image - mean) * (1 + contrast) + mean + brightness, 0, 1)


def check(config):
  """Refuses an augmentation config that is out of range (`UserError`)."""
  if not 0 <= config.probability <= 1:
    raise UserError(f"config.augment.probability: {config.probability} must be in [0, 1].")
  if not 0 <= config.rotation_degrees <= 180:
    raise UserError(
      f"config.augment.rotation_degrees: {config.rotation_degrees} must be in [0, 180]."
    )
  if (kind := _confidence(config)) not in CONFIDENCES:
    raise UserError(
      f"config.augment.confidence: '{kind}' is not known; choose {' or '.join(CONFIDENCES)}."
    )
  for name in ("brightness", "contrast"):
    if not 0 <= getattr(config, name) <= 1:
      raise UserError(f"config.augment.{name}: {getattr(config, name)} must be in [0, 1].")
  gamma = config.gamma
  if len(gamma) != 2 or not 0 < gamma[0] <= gamma[1] < math.inf:
    raise UserError(f"config.augment.gamma: {gamma} must be two rising positive numbers.")


def _confidence(config):
  # The config of a run that was begun with an older version lacks it.
  return getattr(config, "confidence", "bilinear")


def _augment(inputs, inside, key, config):
  keys = jax.random.split(key, inputs["image"].shape[0])
  return jax.vmap(functools.partial(_augment_one, config=config))(inputs, inside, keys)


def _augment_one(inputs, inside, key, *, config):
  choose, turn, light, dark, bend = jax.random.split(key, 5)
  flip, rotation, intensity = jax.random.uniform(choose, (3,)) < config.probability
  limit = jnp.deg2rad(config.rotation_degrees)
  # By angle 0 an image stays itself to the bit; under vmap a branch would cost the same.
  angle = rotation * jax.random.uniform(turn, minval=-limit, maxval=limit)

  def turned(parts, *, nearest):
    ends = np.cumsum([x.shape[-1] for x in parts.values()])
    stack = jnp.concatenate(list(parts.values()), axis=-1)
    stack = rotate(jnp.where(flip, stack[:, ::-1], stack), angle, nearest=nearest)
    return dict(zip(parts, jnp.split(stack, ends[:-1], axis=-1), strict=True))

  # One interpolation serves the image and what says where it and the labels count; another one the
  # labels, where they are interpolated otherwise.
  interpolated = {"image", "ignore"} & inputs.keys()
  if _confidence(config) == "bilinear":
    interpolated = inputs.keys()
  labels = {name: x for name, x in inputs.items() if name not in interpolated}
  parts = {name: x for name, x in inputs.items() if name in interpolated}
  parts = turned(parts | {"inside": inside[..., None].astype(jnp.float32)}, nearest=False)
  if labels:
    parts |= turned(labels, nearest=True)
  low, high = config.gamma
  image = adjust_intensity(
    parts["image"],
    brightness=jax.random.uniform(light, minval=-config.brightness, maxval=config.brightness),
    contrast=jax.random.uniform(dark, minval=-config.contrast, maxval=config.contrast),
    gamma=jax.random.uniform(bend, minval=low, maxval=high),
  )
  image = jnp.where(intensity, image, parts["image"])
  # A pixel counts only where all four neighbours it was made of are valid.
  inside = parts.pop("inside")[..., 0] > 0.999
  return parts | {"image": image * inside[..., None]}, inside
