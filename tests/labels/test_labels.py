import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lus_jax.errors import UserError
from lus_jax.labels import certain, label, pixel_weight

STORED = np.arange(256)
# The lowest stored value whose label is 1; 127 because 50 % may have been rounded to 127 or 128.
LOWEST = {1: 255, 0.8: 204, 0.6: 153, 0.5: 127, 0.4: 102, 0.2: 51, 0: 1}
BACKGROUND = {1: 0.8, 0.8: 0.8, 0.6: 0.6, 0.5: 0.5, 0.4: 0.4, 0.2: 0.2, 0: 0.8}


@pytest.mark.parametrize(("threshold", "lowest"), LOWEST.items())
def test_label_of_every_stored_value(threshold, lowest):
  found = label(STORED / 255, threshold)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [k >= lowest for k in STORED])


@given(st.floats(0.5 / 255, 1), st.floats(0.5 / 255, 1))
@settings(deadline=None, max_examples=200)
def test_storing_a_confidence_never_takes_it_below_its_own_threshold(painted, threshold):
  stored = np.rint(np.float64(painted) * 255) / 255
  if painted >= threshold and stored > 0:
    assert label(stored, threshold) == 1
  if painted < threshold - 1.01 / 255:
    assert label(stored, threshold) == 0


@pytest.mark.parametrize("subthreshold_weight", ["threshold", "confidence"])
@pytest.mark.parametrize("threshold", LOWEST)
def test_weight_of_every_stored_value(threshold, subthreshold_weight):
  found = pixel_weight(STORED / 255, threshold, subthreshold_weight=subthreshold_weight)
  lowest = 1 if subthreshold_weight == "confidence" else LOWEST[threshold]
  expected = [k / 255 if k >= lowest else BACKGROUND[threshold] for k in STORED]
  np.testing.assert_allclose(found, expected, atol=1e-7)


def test_thresholds_may_be_traced_and_vary_by_member():
  thresholds = np.array(list(LOWEST), np.float32)
  confidence = jnp.asarray(STORED / 255)
  labels = jax.jit(jax.vmap(lambda t: label(confidence, t)))(thresholds)
  weights = jax.jit(jax.vmap(lambda t: pixel_weight(confidence, t)))(thresholds)
  for row, threshold in enumerate(LOWEST):
    np.testing.assert_array_equal(labels[row], label(confidence, threshold))
    np.testing.assert_array_equal(weights[row], pixel_weight(confidence, threshold))


def test_a_threshold_may_broadcast():
  thresholds = np.array(list(LOWEST))[:, None]
  found = label(STORED[None] / 255, thresholds)
  np.testing.assert_array_equal(found.sum(1), 256 - np.array(list(LOWEST.values())))


def test_only_the_ends_of_the_scale_are_certain():
  np.testing.assert_array_equal(certain(STORED / 255), (STORED == 0) | (STORED == 255))


def test_unknown_subthreshold_weight():
  with pytest.raises(UserError, match="'mean'.*threshold, confidence"):
    pixel_weight(STORED / 255, 0.5, subthreshold_weight="mean")
