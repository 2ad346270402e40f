import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from lus_jax.labels import fusion

BOX = (2, 1, 14, 15)
INSIDE = (slice(2, 14), slice(1, 15))
SHAPE = (16, 18, 2)


def _raters(seed, n=4, shape=SHAPE):
  """Noisy copies of a square in both classes, as uint8."""
  random = np.random.default_rng(seed)
  truth = np.zeros(shape, bool)
  truth[4:10, 3:11] = True
  flipped = random.random((n, *shape)) < np.linspace(0.05, 0.3, n)[:, None, None, None]
  return np.where(truth ^ flipped, random.integers(128, 256), random.integers(0, 128)).astype(
    np.uint8
  )


def _em(masks):
  """Warfield's expectation maximisation on masks [R, P] of 0 and 1."""
  masks = masks.astype(np.float64)
  weight = masks.mean(0)
  prior = weight.mean()
  for _ in range(2000):
    sensitivity = (masks @ weight / weight.sum())[:, None]
    specificity = ((1 - masks) @ (1 - weight) / (1 - weight).sum())[:, None]
    present = np.where(masks == 1, sensitivity, 1 - sensitivity).prod(0) * prior
    absent = np.where(masks == 1, 1 - specificity, specificity).prod(0) * (1 - prior)
    weight = present / (present + absent)
  return weight


def test_mean_and_majority_count_only_who_drew():
  raters = _raters(0, n=5) / np.float32(255)
  drawn = np.array([True, False, True, True, False])
  kept = raters[[0, 2, 3]]
  np.testing.assert_allclose(fusion.mean(raters, drawn), kept.mean(0), atol=1e-6)
  expected = (kept >= 0.5).sum(0) >= 2
  np.testing.assert_array_equal(fusion.majority(raters, drawn), expected)
  # The two who did not draw would have changed both.
  assert np.abs(raters.mean(0) - kept.mean(0)).max() > 0.1
  assert (((raters >= 0.5).sum(0) >= 3) != expected).any()


def test_a_tie_is_no_majority():
  raters = np.zeros((4, 1, 2, 1), np.float32)
  raters[:2, 0, 0] = 1
  raters[:3, 0, 1] = 128 / 255
  found = fusion.majority(raters, np.ones(4, bool))
  assert np.ravel(found).tolist() == [0, 1]


@pytest.mark.parametrize("fuse", [fusion.mean, fusion.majority])
def test_nobody_drew(fuse):
  raters = np.ones((3, 4, 4, 1), np.float32)
  found = fuse(raters, np.zeros(3, bool))
  np.testing.assert_array_equal(found, np.zeros((4, 4, 1)))
  gradient = jax.grad(lambda x: fuse(x, np.zeros(3, bool)).sum())(jnp.asarray(raters))
  np.testing.assert_array_equal(gradient, 0 * raters)


@pytest.mark.parametrize("fuse", [fusion.mean, fusion.majority])
def test_fusion_in_jit_and_vmap(fuse):
  raters = np.stack([_raters(seed) for seed in range(3)]) / np.float32(255)
  drawn = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)
  one_by_one = [fuse(*image) for image in zip(raters, drawn, strict=True)]
  np.testing.assert_array_equal(fuse(raters, drawn), one_by_one)
  np.testing.assert_array_equal(jax.jit(jax.vmap(fuse))(raters, drawn), one_by_one)
  assert fuse(raters, drawn).dtype == jnp.float32


@pytest.mark.parametrize("seed", range(3))
def test_staple_is_the_expectation_maximisation(seed):
  raters = _raters(seed, n=5)
  drawn = np.array([True, True, False, True, True])
  found = fusion.staple(raters, drawn, box=BOX)
  assert found.dtype == np.float32
  for k in range(2):
    masks = raters[drawn][:, *INSIDE, k] >= 128
    expected = _em(masks.reshape(4, -1)).reshape(masks.shape[1:])
    np.testing.assert_allclose(found[*INSIDE, k], expected, atol=1e-4)
  outside = np.ones(SHAPE, bool)
  outside[INSIDE] = False
  assert (raters[:, outside] >= 128).any()
  assert not found[outside].any()
  np.testing.assert_array_equal(
    fusion.staple(raters / np.float32(255), drawn, box=BOX), found, "float and stored masks"
  )


def test_staple_is_that_of_simpleitk():
  raters = _raters(7)
  found = fusion.staple(raters, np.ones(4, bool), box=(0, 0, *SHAPE[:2]))
  for k in range(2):
    images = [SimpleITK.GetImageFromArray((y[..., k] >= 128).astype(np.uint8)) for y in raters]
    expected = SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(images, 1))
    np.testing.assert_array_equal(found[..., k], expected.astype(np.float32))


def test_staple_trusts_the_better_raters():
  random = np.random.default_rng(0)
  truth = np.zeros((40, 40, 1), bool)
  truth[10:30, 10:30] = True
  flips = [random.random(truth.shape) < share for share in (0.02, 0.02, 0.45, 0.45, 0.45)]
  raters = np.uint8(255) * np.stack([truth ^ flip for flip in flips])
  staple = fusion.staple(raters, np.ones(5, bool), box=(0, 0, 40, 40)) >= 0.5
  majority = np.asarray(fusion.majority(raters / np.float32(255), np.ones(5, bool))) > 0
  assert (staple != truth).sum() < (majority != truth).sum() / 2


def test_staple_where_all_agree():
  raters = np.zeros((3, *SHAPE[:2], 3), np.uint8)
  raters[..., 1] = 255
  raters[:, 3:6, 4:8, 2] = 255
  # What SimpleITK makes of empty and full masks, and why they go past it.
  for k in (0, 1):
    images = [SimpleITK.GetImageFromArray(y[..., k] // 255) for y in raters]
    assert np.isnan(SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(images, 1))).all()
  found = fusion.staple(raters, np.ones(3, bool), box=(0, 0, *SHAPE[:2]))
  np.testing.assert_array_equal(found, raters[0] / 255)


def test_staple_of_one_rater_and_of_none():
  raters = _raters(1)
  one = fusion.staple(raters, np.arange(4) == 2, box=BOX)
  np.testing.assert_array_equal(one[INSIDE], raters[2][INSIDE] >= 128)
  none = fusion.staple(raters, np.zeros(4, bool), box=BOX)
  np.testing.assert_array_equal(none, np.zeros(SHAPE))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
@settings(deadline=None, max_examples=60)
def test_staple_is_a_probability(seed, n, share):
  random = np.random.default_rng(seed)
  raters = np.uint8(255) * (random.random((n, 4, 3, 2)) < share * random.random((n, 1, 1, 2)))
  found = fusion.staple(raters, random.random(n) < 0.8, box=(0, 0, 4, 3))
  assert ((found >= 0) & (found <= 1)).all()
