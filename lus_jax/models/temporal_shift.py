"""The temporal shift of Lin et al., "TSM": frames see their neighbours at no cost."""

from jax import numpy as jnp

FOLD_DIV = 8


def temporal_shift(x, n_segment):
  """Moves an eighth of the channels one frame back in time, another eighth one frame on.

  With fold = C // 8: the first fold of frame n is that of frame n + 1, the second that of n - 1;
  beyond the ends of a clip there are zeros.

  Args:
    x: [B * n_segment, H, W, C], the frames of a clip one after another.
    n_segment: frames a clip.

  Returns:
    The same shape.
  """
  clip = x.reshape(-1, n_segment, *x.shape[1:])
  fold = x.shape[-1] // FOLD_DIV
  zeros = jnp.zeros_like(clip[:, :1, ..., :fold])
  later = jnp.concatenate([clip[:, 1:, ..., :fold], zeros], axis=1)
  earlier = jnp.concatenate([zeros, clip[:, :-1, ..., fold : 2 * fold]], axis=1)
  return jnp.concatenate([later, earlier, clip[..., 2 * fold :]], axis=-1).reshape(x.shape)
