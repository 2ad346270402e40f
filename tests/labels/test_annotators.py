import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lus_jax.labels import annotators

STORED = np.arange(256)


def _histogram(values):
  return np.bincount(np.ravel(values), minlength=256)


def _is_map(table):
  return (
    table.dtype == np.uint8
    and table[0] == 0
    and (table[1:] > 0).all()
    and (np.diff(table.astype(int)) >= 0).all()
  )


def _shapes(seed, n):
  """A confidence above 0 of n pixels, in [0, 1]."""
  return np.random.default_rng(seed).beta(2, 2, n)


def _stored(confidence):
  return np.clip(np.rint(255 * confidence), 1, 255).astype(np.uint8)


def test_quantile_maps_undo_a_known_distortion():
  # Two annotators of like cases: what one calls c, the other calls c^2.
  plain, squared = _stored(_shapes(0, 200_000)), _stored(_shapes(1, 200_000) ** 2)
  histograms = np.stack([_histogram(plain), _histogram(squared)])[:, None]
  maps = annotators.fit_quantile(histograms)
  assert maps.shape == (2, 1, 256)
  c = np.linspace(0.15, 0.85, 30)
  a, b = (maps[i, 0][_stored(x)].astype(int) for i, x in enumerate((c, c**2)))
  assert np.abs(_stored(c).astype(int) - _stored(c**2)).max() > 50
  assert np.abs(a - b).max() <= 4
  # Afterwards both have the pooled distribution.
  pooled = np.concatenate([plain, squared])
  for i, painted in enumerate((plain, squared)):
    for q in (10, 30, 50, 70, 90):
      found = np.percentile(maps[i, 0][painted], q)
      assert found == pytest.approx(np.percentile(pooled, q), abs=2)


def test_quantile_weighs_annotators_alike():
  # A thousand times as many pixels give no more say.
  few, many = np.zeros((2, 1, 256))
  few[0, [64, 128]] = 1
  many[0, [128, 255]] = 1000
  maps = annotators.fit_quantile(np.stack([few, many]))
  np.testing.assert_array_equal(maps, annotators.fit_quantile(np.stack([few * 7, many])))
  # Pool: a quarter 64, half 128, a quarter 255; each value takes up half of the ranks.
  assert maps[0, 0][[64, 128]].tolist() == [(64 + 128) / 2, np.rint((128 + 255) / 2)]
  assert maps[1, 0][[128, 255]].tolist() == [(64 + 128) / 2, np.rint((128 + 255) / 2)]


def test_quantile_keeps_a_distribution_that_all_share():
  histogram = np.random.default_rng(3).integers(0, 9, 256) * (STORED > 20)
  maps = annotators.fit_quantile(np.stack([[histogram], [3 * histogram]]))
  seen = np.flatnonzero(histogram)
  np.testing.assert_array_equal(maps[:, 0][:, seen], np.stack([seen, seen]))


def test_quantile_is_per_class_and_identity_without_paint():
  histograms = np.zeros((2, 3, 256), int)
  histograms[0, 0, [50, 100]] = 5
  histograms[1, 0, [100, 200]] = 5
  histograms[0, 1, 80] = 4
  histograms[:, :, 0] = 1_000_000
  maps = annotators.fit_quantile(histograms)
  # Pool of the first class: a quarter 50, half 100, a quarter 200.
  assert maps[0, 0][[50, 100]].tolist() == maps[1, 0][[100, 200]].tolist() == [75, 150]
  for a, k in ((1, 1), (0, 2), (1, 2)):
    np.testing.assert_array_equal(maps[a, k], STORED)
  assert maps[0, 1, 80] == 80


@given(hnp.arrays(np.int64, (2, 2, 256), elements=st.integers(0, 3)), st.integers(0, 255))
@settings(deadline=None, max_examples=40)
def test_quantile_tables_are_maps(histograms, above):
  histograms[0, 0, above:] = 0
  assert all(_is_map(t) for t in annotators.fit_quantile(histograms).reshape(-1, 256))


def _pairs(own, others):
  """Joint histogram of stored values [n] where either is above 0."""
  counts = np.zeros((256, 256), int)
  either = (own > 0) | (others > 0)
  np.add.at(counts, (own[either], others[either]), 1)
  return counts


def test_overlap_maps_undo_a_known_distortion():
  # The annotator paints 255 (c / 255)^2 where the others paint c, give or take; background is 0.
  random = np.random.default_rng(0)
  others = _stored(_shapes(2, 100_000)).astype(int)
  own = _stored((others / 255) ** 2).astype(int)
  noisy = np.clip(others + np.rint(random.normal(0, 8, len(others))), 0, 255).astype(int)
  pairs = np.stack([_pairs(own, noisy), _pairs(others, noisy)])[:, None]
  pairs[:, 0, 0, 255] = 10_000  # what only the others painted says nothing about own values
  maps = annotators.fit_overlap(pairs)
  c = np.arange(40, 231)
  assert np.abs(maps[0, 0][_stored((c / 255) ** 2)].astype(int) - c).max() <= 6
  assert np.abs(maps[1, 0][c].astype(int) - c).max() <= 6


def _pool_adjacent_violators(y, weight):
  blocks = []
  for value, w in zip(y, weight, strict=True):
    blocks.append([value, w, 1])
    while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
      (v0, w0, n0), (v1, w1, n1) = blocks[-2:]
      blocks[-2:] = [[(v0 * w0 + v1 * w1) / (w0 + w1), w0 + w1, n0 + n1]]
  return np.concatenate([[value] * n for value, _, n in blocks])


def test_overlap_is_isotonic_regression():
  random = np.random.default_rng(5)
  pairs = np.zeros((1, 2, 256, 256), int)
  pairs[0, 0] = random.integers(0, 4, (256, 256)) * (random.random((256, 256)) < 0.02)
  pairs[0, 0, 40:60] = 0
  maps = annotators.fit_overlap(pairs)
  own = pairs[0, 0].copy()
  own[0] = 0
  seen = np.flatnonzero(own.sum(1))
  mean = [np.average(STORED, weights=own[v]) for v in seen]
  expected = np.clip(np.rint(_pool_adjacent_violators(mean, own[seen].sum(1))), 1, 255)
  assert len(np.unique(expected)) > 3
  np.testing.assert_array_equal(maps[0, 0, seen], expected)
  assert _is_map(maps[0, 0])
  np.testing.assert_array_equal(maps[0, 1], STORED)


def test_values_never_painted_lie_between():
  pairs = np.zeros((1, 1, 256, 256), int)
  pairs[0, 0, 100, 50] = pairs[0, 0, 200, 150] = 1
  table = annotators.fit_overlap(pairs)[0, 0].astype(int)
  assert table[[0, 1, 50, 100, 150, 200, 255]].tolist() == [0, 1, 25, 50, 100, 150, 255]


def test_others_that_never_painted_there_leave_it_above_zero():
  pairs = np.zeros((1, 1, 256, 256), int)
  pairs[0, 0, 1:, 0] = 1
  table = annotators.fit_overlap(pairs)[0, 0]
  assert table[0] == 0
  assert (table[1:] == 1).all()
