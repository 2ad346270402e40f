import jax
import numpy as np
import pytest

from lus_jax.models.temporal_shift import temporal_shift


def reference(x, n_segment):
  """Frame by frame, channel by channel."""
  fold = x.shape[-1] // 8
  y = np.zeros_like(x)
  for i in range(len(x)):
    n = i % n_segment
    for c in range(x.shape[-1]):
      if c < fold:
        if n + 1 < n_segment:
          y[i, ..., c] = x[i + 1, ..., c]
      elif c < 2 * fold:
        if n > 0:
          y[i, ..., c] = x[i - 1, ..., c]
      else:
        y[i, ..., c] = x[i, ..., c]
  return y


@pytest.mark.parametrize(("n_segment", "channels"), [(1, 16), (2, 8), (3, 24), (4, 20), (4, 7)])
def test_shift_is_that_of_a_loop_over_frames_and_channels(key, n_segment, channels):
  x = np.asarray(jax.random.normal(key, (3 * n_segment, 2, 3, channels)))
  np.testing.assert_array_equal(temporal_shift(x, n_segment), reference(x, n_segment))
