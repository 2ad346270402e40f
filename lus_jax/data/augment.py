"""From stored frames to the network's input, augmented on the device.

Geometry is applied to the image and the confidence together and before any threshold, so that a
label is always the threshold of a confidence that was painted: between two pixels the image is
interpolated, the confidence the nearer one's. Interpolated, a label of 100 % would lose its border
and one of "> 0 %" win it, and thresholds would not be compared with each other any more. For the
same reason, and for time, all that moves pixels is one resampling.
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
# Strengths that are off at 0, as in runs from before there were any, and the most each may be.
DEFORMATIONS = {"scale": 1, "shift": 1, "shear_degrees": 45, "elastic": 0.1}
CHANGES = {"gain": 4, "attenuation": 4, "speckle": 1, "shadow": 1, "haze": 1}
# Points a side between which an elastic field, and one of haze, are smooth.
_COARSE = 4


def prepare(batch, key=None, augmentation=None):
  """Turns stored frames into arrays of the network.

  Args:
    batch: `image` [B, H, W, C] and `confidence` [B, H, W, K] uint8, `valid_box` [B, 4] and
      `labelled` [B, K]; of several raters also `staple` [B, H, W, K] and `raters` [B, R, H, W, K]
      uint8, with `drawn` [B, R]; where some pixels count in no class also `ignore` [B, H, W, 1].
    key: a jax random key, for the augmentation.
    augmentation: the `augment` part of a run's config (`probability`, `rotation_degrees`,
      `confidence`, `brightness`, `contrast`, `gamma`, perhaps some of `DEFORMATIONS` and `CHANGES`,
      and `crop`): each example is flipped, rotated, deformed and changed in intensity and in each
      way of `CHANGES`, each with that probability, and cut to `crop` pixels a side. None: nothing
      is changed.

  Returns:
    `image` [B, H, W, C], `confidence` [B, H, W, K] and what there is of the raters, float32 in
    [0, 1], and `where` [B, H, W, K], True where a pixel was in the original frame and its class was
    annotated; pixels that came in from outside, or were mixed with ignored ones, are False. With
    `crop`, all are as large as that.
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
  return _sample(image, _turned(_grid(height, width), angle, height, width), nearest=nearest)


def _grid(height, width):
  """Rows and columns [H, W] from the centre."""
  return jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
  )


def _turned(grid, angle, height, width):
  """Where the pixels of a grid lie in an image that is rotated: rows and columns."""
  y, x = grid
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return y * cos + x * sin + (height - 1) / 2, x * cos - y * sin + (width - 1) / 2


def _sample(image, at, *, nearest=False):
  """The values [h, w, C] at rows and columns [h, w] of an image [H, W, C], with zeros outside."""
  if nearest:
    height = image.shape[0]
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


def attenuate(image, strength):
  """The brightness of depths, as of other gains by depth: [H, W, C], clipped to [0, 1].

  Args:
    image: [H, W, C] in [0, 1]; row 0 is nearest to the probe.
    strength: the last row becomes exp(-strength / 2) times as bright, the first exp(strength / 2).
  """
  depth = jnp.linspace(-0.5, 0.5, image.shape[0])[:, None, None]
  return jnp.clip(image * jnp.exp(-strength * depth), 0, 1)


def speckle(image, strength, key):
  """Multiplied by grains, wider than high, that vary by `strength` about 1: [H, W, C] in [0, 1]."""
  grain = jax.random.normal(key, (image.shape[0], image.shape[1] + 2, 1))
  grain = (grain[:, :-2] + grain[:, 1:-1] + grain[:, 2:]) / math.sqrt(3)
  return jnp.clip(image * (1 + strength * grain), 0, 1)


def cast_shadow(image, darkness, key):
  """A band from some depth to the bottom, as behind a rib: [H, W, C].

  Args:
    image: [H, W, C] in [0, 1].
    darkness: what it takes off the brightness, as a share.
    key: of where it lies, its slope, its width (4 to 20 % of the image) and its top.
  """
  height, width = image.shape[:2]
  column, slope, half, top = jax.random.uniform(key, (4,))
  y, x = jnp.meshgrid(jnp.arange(height) / height, jnp.arange(width) / width, indexing="ij")
  half = 0.02 + 0.08 * half
  middle = column + (slope - 0.5) * y
  band = jax.nn.sigmoid((half - jnp.abs(x - middle)) / (0.2 * half))
  band *= jax.nn.sigmoid((y - 0.6 * top) / 0.02)
  return image * (1 - darkness * band[..., None])


def add_haze(image, strength, key):
  """A smooth veil, as of reverberation: [H, W, C].

  Args:
    image: [H, W, C] in [0, 1].
    strength: how much of the way to white the veil is at most, in [0, 1].
    key: of where it is thick.
  """
  veil = jax.nn.sigmoid(2 * _smooth(key, image.shape[:2], 1))
  return image + strength * veil * (1 - image)


def _smooth(key, shape, channels):
  """A smooth random field [H, W, channels] of variance about 1."""
  coarse = jax.random.normal(key, (_COARSE, _COARSE, channels))
  return jax.image.resize(coarse, (*shape, channels), "cubic")


def check(config):
  """Refuses an augmentation config that is out of range (`UserError`)."""
  check_strengths(config)
  if not 0 <= config.rotation_degrees <= 180:
    raise UserError(
      f"config.augment.rotation_degrees: {config.rotation_degrees} must be in [0, 180]."
    )
  if (kind := _confidence(config)) not in CONFIDENCES:
    raise UserError(
      f"config.augment.confidence: '{kind}' is not known; choose {' or '.join(CONFIDENCES)}."
    )
  if (crop := _strength(config, "crop")) and crop < 32:
    raise UserError(f"config.augment.crop: {crop} is too small; use at least 32 pixels, or 0.")


def check_strengths(config):
  """Refuses what frames and clips may both have and is out of range (`UserError`)."""
  for name in ("probability", "brightness", "contrast"):
    if not 0 <= getattr(config, name) <= 1:
      raise UserError(f"config.augment.{name}: {getattr(config, name)} must be in [0, 1].")
  # Each of them as far as a config has it.
  for name, most in (DEFORMATIONS | CHANGES).items():
    if not 0 <= _strength(config, name) <= most:
      raise UserError(
        f"config.augment.{name}: {_strength(config, name)} must be in [0, {most}]; 0 is off."
      )
  gamma = config.gamma
  if len(gamma) != 2 or not 0 < gamma[0] <= gamma[1] < math.inf:
    raise UserError(f"config.augment.gamma: {gamma} must be two rising positive numbers.")


def _confidence(config):
  # The config of a run that was begun with an older version lacks it.
  return getattr(config, "confidence", "bilinear")


def side(config, size):
  """Pixels a side of what training sees of images [size, size].

  Raises:
    UserError: `config.augment.crop` is larger.
  """
  crop = _strength(config, "crop")
  if crop > size:
    raise UserError(
      f"config.augment.crop: {crop} is larger than the images, which are {size} x {size} "
      "(config.data.image_size)."
    )
  return crop or size


def _strength(config, name):
  # The config of a run that was begun with an older version lacks them.
  return getattr(config, name, 0)


def _augment(inputs, inside, key, config):
  keys = jax.random.split(key, inputs["image"].shape[0])
  return jax.vmap(functools.partial(_augment_one, config=config))(inputs, inside, keys)


def _augment_one(inputs, inside, key, *, config):
  choose, turn, light, dark, bend = jax.random.split(key, 5)
  flip, rotation, intensity = jax.random.uniform(choose, (3,)) < config.probability
  limit = jnp.deg2rad(config.rotation_degrees)
  # By angle 0 an image stays itself to the bit; under vmap a branch would cost the same.
  angle = rotation * jax.random.uniform(turn, minval=-limit, maxval=limit)
  height, width = inside.shape
  # Keys of what there was not before, so that all else is drawn as ever.
  more = functools.partial(jax.random.fold_in, jax.random.fold_in(key, 1))
  at = _turned(_deformed(height, width, config, more), angle, height, width)

  def turned(parts, *, nearest):
    ends = np.cumsum([x.shape[-1] for x in parts.values()])
    stack = jnp.concatenate(list(parts.values()), axis=-1)
    stack = _sample(jnp.where(flip, stack[:, ::-1], stack), at, nearest=nearest)
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
  image = _changed(image, config, more)
  # A pixel counts only where all four neighbours it was made of are valid.
  inside = parts.pop("inside")[..., 0] > 0.999
  return parts | {"image": image * inside[..., None]}, inside


def _deformed(height, width, config, key_of):
  """The grid of what is cut out of an image, scaled, sheared, shifted and bent."""
  y, x = _grid(height, width)
  if crop := _strength(config, "crop"):
    # At fixed scale: whole pixels are cut out.
    top, left = jnp.floor(
      jax.random.uniform(key_of(0), (2,)) * jnp.array([height - crop + 1, width - crop + 1])
    ).astype(int)
    y, x = (jax.lax.dynamic_slice(one, (top, left), (crop, crop)) for one in (y, x))
  if not any(_strength(config, name) for name in DEFORMATIONS):
    return y, x
  chosen = jax.random.uniform(key_of(1)) < config.probability
  scale, shear, *shift = chosen * jax.random.uniform(key_of(2), (4,), minval=-1)
  zoom = (1 + _strength(config, "scale")) ** scale
  shear = jnp.tan(shear * jnp.deg2rad(_strength(config, "shear_degrees")))
  y, x = y / zoom, (x + shear * y) / zoom
  y += shift[0] * _strength(config, "shift") * height
  x += shift[1] * _strength(config, "shift") * width
  if elastic := _strength(config, "elastic"):
    field = chosen * elastic * _smooth(key_of(3), y.shape, 2)
    y, x = y + height * field[..., 0], x + width * field[..., 1]
  return y, x


def _changed(image, config, key_of):
  """An image [H, W, C] with each of `CHANGES`, each or not by the config's probability."""
  ways = {
    "gain": lambda x, s, key: jnp.clip(x * (1 + _strength(config, "gain")) ** s, 0, 1),
    "attenuation": lambda x, s, key: attenuate(x, s * _strength(config, "attenuation")),
    "speckle": lambda x, s, key: speckle(x, s * _strength(config, "speckle"), key),
    "shadow": lambda x, s, key: cast_shadow(x, abs(s) * _strength(config, "shadow"), key),
    "haze": lambda x, s, key: add_haze(x, abs(s) * _strength(config, "haze"), key),
  }
  for i, (name, change) in enumerate(ways.items()):
    if _strength(config, name):
      choose, how, where = jax.random.split(key_of(10 + i), 3)
      strength = jax.random.uniform(how, minval=-1)
      chosen = jax.random.uniform(choose) < config.probability
      image = jnp.where(chosen, change(image, strength, where), image)
  return image
