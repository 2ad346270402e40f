"""Networks, as `flax.nnx` modules: FPN over ResNet encoders, temporal-shift MobileNetV2."""

from flax import nnx
from jax import numpy as jnp

from lus_jax.errors import UserError
from lus_jax.models import designs, torch_weights
from lus_jax.models.mobilenet_v2 import MobileNetV2

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check(config):
  """Refuses a model config that is out of range.

  Args:
    config: the `model` part of a run's config (encoder, width, dropout, dtype).

  Raises:
    UserError: an unknown network, encoder or dtype, or a width or dropout out of range.
  """
  designs.segmentation(config).check()
  check_video(config)


def check_video(config):
  """Refuses a model config of the clinical tasks that is out of range.

  Args:
    config: the `model` part of a run's config (width, dropout, dtype).

  Raises:
    UserError: an unknown dtype, or a width or dropout out of range.
  """
  # auto becomes one of the others before a network is built.
  if config.dtype not in ("auto", *DTYPES):
    raise UserError(
      f"config.model.dtype: '{config.dtype}' is not known; choose one of auto, {', '.join(DTYPES)}."
    )
  if not 0 < config.width <= 4:
    raise UserError(f"config.model.width: {config.width} must be above 0 and at most 4.")
  if not 0 <= (dropout := getattr(config, "dropout", 0.0)) < 1:
    raise UserError(f"config.model.dropout: {dropout} must be at least 0 and below 1.")


def check_init_from(config, *, video):
  """Refuses a file of initial weights that does not fit, as far as that can be known before a run.

  Args:
    config: the `model` part of a run's config, checked; `init_from` names a file.
    video: whether it is of the clinical tasks.

  Raises:
    UserError: the file is missing, cannot be read, or is of another network or size.
  """
  tensors = torch_weights.read(config.init_from)

  def build():
    rngs = nnx.Rngs(0)
    if video:
      in_channels = torch_weights.in_channels(tensors)
      return MobileNetV2(in_channels=in_channels, outputs=1, width=config.width, rngs=rngs)
    return designs.segmentation(config).build(in_channels=1, classes=1, rngs=rngs)

  shapes = nnx.eval_shape(build)
  params, batch_stats = (
    nnx.to_pure_dict(nnx.state(shapes, kind)) for kind in (nnx.Param, nnx.BatchStat)
  )
  # The head depends on the data.
  torch_weights.load_into(params, batch_stats, tensors, source=config.init_from, head=False)


def build_model(config, *, in_channels, classes, seed, levels=1):
  """Builds the segmentation network that `config.model` describes.

  Args:
    config: the `model` part of a run's config, checked.
    in_channels: channels of the input image.
    classes: K, the number of logits per pixel.
    levels: of an ordinal head, which has so many times K logits.
    seed: an integer, or a jax random key; the same one gives the same weights.

  Returns:
    An `nnx.Module` that maps images [B, H, W, in_channels] to logits [B, H, W, levels * K].
  """
  design = designs.segmentation(config)
  return design.build(
    in_channels=in_channels,
    classes=classes,
    levels=levels,
    dtype=DTYPES[config.dtype],
    rngs=nnx.Rngs(seed),
  )


def build_video_model(config, *, in_channels, outputs, hidden, seed):
  """Builds the video network that `config.model` of a clinical task describes.

  Args:
    config: the `model` part of a run's config, checked by `check_video`.
    in_channels: channels of a frame: 1 + K.
    outputs: numbers per clip.
    hidden: sizes of the ReLU layers before the last linear layer, () for none.
    seed: an integer; the same seed gives the same weights.

  Returns:
    An `nnx.Module` that maps clips [B, N, H, W, in_channels] to outputs [B, outputs]. Its `bias`
    [outputs] is not in them: the loss adds it.
  """
  return MobileNetV2(
    in_channels=in_channels,
    outputs=outputs,
    hidden=hidden,
    width=config.width,
    # Configs of older versions lack it.
    dropout=getattr(config, "dropout", 0.0),
    dtype=DTYPES[config.dtype],
    rngs=nnx.Rngs(seed),
  )
