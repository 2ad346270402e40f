import jax
import numpy as np
import pytest

from lus_jax.errors import UserError
from lus_jax.evaluation import baselines, metrics

THRESHOLDS = [1, 0.6, 0]
SHAPE = (6, 9, 8, 2)


def _split(seed):
  """Stored confidences of class 0 in the upper rows, class 1 never; invalid borders."""
  random = np.random.default_rng(seed)
  stored = np.zeros(SHAPE, np.uint8)
  stored[:, 2:5, ..., 0] = random.integers(0, 256, (6, 3, 8)) * (random.random((6, 3, 8)) < 0.7)
  stored[:, 2, 3, 0] = [255, 153, 152, 1, 0, 255]
  where = np.ones((*SHAPE[:3], 1), bool)
  where[:, 0] = False
  where[5, :, :4] = False
  return stored, where


def _batches(stored, where, size=3):
  return [(stored[i : i + size], where[i : i + size]) for i in range(0, len(stored), size)]


def _sigmoid(logits):
  return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def _reference(stored, where):
  """Prevalence [T, K] and mean map [T, H, W, K], image by image and pixel by pixel."""
  prevalence = np.zeros((3, 2))
  maps = np.zeros((3, *SHAPE[1:]))
  for i, t in enumerate(THRESHOLDS):
    positive, total = np.zeros(SHAPE[1:]), np.zeros(SHAPE[1:])
    for image, row, column, k in np.ndindex(*SHAPE):
      if where[image, row, column, 0]:
        value = stored[image, row, column, k]
        y = value >= 1 and value + 0.5 + 1e-3 >= 255 * t
        w = value / 255 if y else {0: 0.8, 1: 0.8}.get(t, t)
        positive[row, column, k] += w * y
        total[row, column, k] += w
    prevalence[i] = positive.sum((0, 1)) / total.sum((0, 1))
    maps[i] = (positive + prevalence[i]) / (total + 1)
  return prevalence, maps


@pytest.fixture(scope="module")
def fitted():
  stored, where = _split(0)
  return baselines.fit_baselines(_batches(stored, where), thresholds=THRESHOLDS)


def test_probabilities_match_the_float64_reference(fitted):
  prevalence, maps = _reference(*_split(0))
  found = _sigmoid(fitted["prevalence"].logits)
  expected = np.broadcast_to(np.clip(prevalence, 1e-7, 1)[:, None, None], found.shape)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  found = _sigmoid(fitted["mean_map"].logits)
  np.testing.assert_allclose(found, np.clip(maps, 1e-7, 1), rtol=1e-5)
  assert fitted["mean_map"].logits.shape == (3, 9, 8, 2)
  assert maps[2, 2, 3, 0] > 0.5 > maps[2, 8, 7, 0]


def test_a_class_that_never_occurs_stays_finite(fitted):
  for baseline in fitted.values():
    assert np.isfinite(baseline.logits).all() and np.isfinite(baseline.cut).all()
    np.testing.assert_allclose(_sigmoid(baseline.logits[..., 1]), 1e-7, rtol=1e-5)
    # And is predicted nowhere, in training or elsewhere.
    assert not (jax.nn.sigmoid(baseline.logits[..., 1]) >= baseline.cut[:, None, None, 1]).any()


def test_batches_and_float_confidences_make_no_difference(fitted):
  stored, where = _split(0)
  confidence = (stored / 255).astype(np.float32)
  others = baselines.fit_baselines([(confidence, where)], thresholds=THRESHOLDS)
  for name, baseline in fitted.items():
    np.testing.assert_allclose(others[name].logits, baseline.logits, rtol=1e-5)
    np.testing.assert_allclose(others[name].cut, baseline.cut, rtol=1e-5)


def test_padded_images_weigh_nothing(fitted):
  stored, where = _split(0)
  padded = np.concatenate([stored, stored[:3]]), np.concatenate([where, where[:3] & False])
  others = baselines.fit_baselines(_batches(*padded), thresholds=THRESHOLDS)
  for name, baseline in fitted.items():
    np.testing.assert_array_equal(others[name].logits, baseline.logits)
    np.testing.assert_array_equal(others[name].cut, baseline.cut)


def _train_iou(predicted, stored, where, threshold):
  """Mean IoU of class 0 of one prediction [H, W] for all images."""
  scores = []
  for image in range(len(stored)):
    valid = where[image, ..., 0]
    label = valid & (stored[image, ..., 0] + 0.5 >= 255 * threshold) & (stored[image, ..., 0] > 0)
    union = (valid & predicted) | label
    if union.any():
      scores.append((predicted & label).sum() / union.sum())
  return np.mean(scores)


@pytest.mark.parametrize("name", ["prevalence", "mean_map"])
def test_the_cut_is_the_best_of_all_on_the_training_split(fitted, name):
  stored, where = _split(0)
  for i, threshold in enumerate(THRESHOLDS):
    p = _sigmoid(fitted[name].logits[i, ..., 0])
    scores = [_train_iou(p >= level, stored, where, threshold) for level in np.unique(p)]
    chosen = _train_iou(p >= fitted[name].cut[i, 0], stored, where, threshold)
    assert chosen == max(scores) > 0


def test_candidates_of_a_map_with_many_values_span_all_areas():
  logits = np.random.default_rng(0).normal(size=(40, 50, 2)).astype(np.float32)
  cuts = baselines.candidate_cuts(logits)
  assert cuts.shape == (baselines.N_CUTS, 2)
  areas = (_sigmoid(logits)[:, :, None] >= cuts).sum((0, 1))
  assert (np.diff(areas, axis=0) <= 0).all()
  np.testing.assert_array_equal(areas[[0, -1]], [[2000, 2000], [1, 1]])
  # No step skips more than a seventh of the area.
  assert (areas[1:] >= np.floor(areas[:-1] * 6 / 7)).all()


@jax.jit
def _sums(logits, cut):
  stored, where = _split(0)
  return metrics.image_sums(
    logits=jax.numpy.broadcast_to(logits[None], SHAPE),
    confidence=(stored / 255).astype(np.float32),
    where=where,
    near=metrics.near_confidence(stored),
    threshold=0.6,
    evaluation_thresholds=THRESHOLDS,
    cut=cut,
  )


def test_prevalence_predicts_everything_and_results_say_so(fitted):
  sums = _sums(fitted["prevalence"].logits[1], fitted["prevalence"].cut[1])
  row = metrics.summarize(sums, classes=["a", "b"], evaluation_thresholds=THRESHOLDS)
  expected = _train_iou(np.ones(SHAPE[1:3], bool), *_split(0), 0.6)
  assert row["iou"] == row["iou_per_class"]["a"] == pytest.approx(expected)
  assert row["iou_per_class"]["b"] is None


def test_prevalence_has_the_lowest_weighted_cross_entropy_of_all_constants(fitted):
  def weighted_ce(shift):
    sums = _sums(fitted["prevalence"].logits[1] + np.float32(shift), np.full(2, 0.5, np.float32))
    return np.sum(np.asarray(sums["weighted_cross_entropy"])[:, 0, 0], dtype=np.float64)

  assert weighted_ce(0) < min(weighted_ce(0.1), weighted_ce(-0.1))


def test_an_empty_training_split_is_an_error():
  with pytest.raises(UserError, match="training split is empty"):
    baselines.fit_baselines([], thresholds=THRESHOLDS)


def test_batches_that_cannot_start_again_are_refused():
  with pytest.raises(TypeError, match="more than once"):
    baselines.fit_baselines(iter([]), thresholds=THRESHOLDS)
