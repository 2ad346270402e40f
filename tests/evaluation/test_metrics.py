import functools
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lus_jax.evaluation import metrics

CLASSES = ["pleura", "line", "never"]
THRESHOLDS = [1.0, 0.5, 0.0]
SHAPE = (4, 14, 12, 3)
VALID = (slice(None), slice(2, 12), slice(1, 11))


def _example(seed, threshold=0.5):
  """Four images: invalid borders; image 3 all invalid; class 1 empty in image 1; class 2 never."""
  random = np.random.default_rng(seed)
  stored = random.integers(0, 256, SHAPE) * (random.random(SHAPE) < 0.2)
  stored[random.random(SHAPE) < 0.05] = 255
  stored[1, ..., 1] = 0
  stored[..., 2] = 0
  where = np.zeros((*SHAPE[:3], 1), bool)
  where[VALID] = True
  where[3] = False
  logits = random.normal(size=SHAPE) * 2 - 1
  logits[1, ..., 1] = -4
  logits[..., 2] = -5
  logits[0, 3, 3:5, 0] = [-1e4, 1e4]
  near = metrics.near_confidence(stored.astype(np.uint8), radius=1)
  return {
    "logits": logits.astype(np.float32),
    "confidence": (stored / 255).astype(np.float32),
    "where": where,
    "near": near,
    "threshold": np.float32(threshold),
    "visibility": random.random(SHAPE).astype(np.float32),
  }


@functools.partial(jax.jit, static_argnames="subthreshold_weight")
def _sums(cut=0.5, subthreshold_weight="threshold", **example):
  return metrics.image_sums(
    **example,
    cut=cut,
    evaluation_thresholds=THRESHOLDS,
    subthreshold_weight=subthreshold_weight,
  )


def _mean(values):
  values = [value for value in values if value is not None]
  return sum(values) / len(values) if values else None


def _reference_overlap(example, threshold, cuts, score):
  """Per class: the mean over images of score(intersection, prediction, label), and the skips."""
  per_class, skipped = [], []
  for k in range(SHAPE[-1]):
    scores = []
    here = np.broadcast_to(example["where"], SHAPE)[..., k]
    if not (here & _labels(example["confidence"][..., k], threshold)).any():
      per_class.append(None)
      skipped.append(len(example["logits"]))
      continue
    for image in range(len(example["logits"])):
      valid = example["where"][image, :, :, 0]
      z = example["logits"][image, :, :, k].astype(np.float64)
      prediction = valid & (1 / (1 + np.exp(-np.clip(z, -700, 700))) >= cuts[k])
      label = valid & _labels(example["confidence"][image, :, :, k], threshold)
      empty = not prediction.any() and not label.any()
      scores.append(
        None if empty else score((prediction & label).sum(), prediction.sum(), label.sum())
      )
    per_class.append(_mean(scores))
    skipped.append(scores.count(None))
  return per_class, skipped


def _labels(confidence, threshold):
  confidence = confidence.astype(np.float64)
  return (confidence >= threshold - 0.5 / 255 - 1e-6) & (confidence >= 0.5 / 255)


def _iou(intersection, prediction, label):
  return intersection / (prediction + label - intersection)


def _dice(intersection, prediction, label):
  return 2 * intersection / (prediction + label)


def _reference_ece(p, target, k, n_classes=3):
  """Calibration errors of pixels with probability p and class k: class mean, pooled, per class.

  None for a class that the target never shows.
  """
  bins = np.maximum(np.ceil(p * 15), 1)

  def error(mask):
    total = 0.0
    for b in range(1, 16):
      here = mask & (bins == b)
      if here.any():
        total += here.sum() / mask.sum() * abs(p[here].mean() - target[here].mean())
    return total if mask.any() else None

  per_class = [error(k == i) if target[k == i].any() else None for i in range(n_classes)]
  return _mean(per_class), error(np.ones_like(k, bool)), per_class


def _reference_row(example, target="label", subthreshold_weight="threshold"):
  """The results row in float64 from the pixels themselves."""
  own = float(example["threshold"])
  where = np.broadcast_to(example["where"], SHAPE)
  z = example["logits"][where].astype(np.float64)
  c = example["confidence"][where].astype(np.float64)
  k = np.broadcast_to(np.arange(SHAPE[-1]), SHAPE)[where]
  p = 1 / (1 + np.exp(-np.clip(z, -700, 700)))

  def cross_entropy(y):
    return y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)

  def weighted(t):
    background = 0.8 if t in (0, 1) else t
    y = _labels(c, t)
    keeps = c > 0 if subthreshold_weight == "confidence" else y
    return (np.where(keeps, c, background) * cross_entropy(y)).mean()

  row = {}
  for name, score in (("iou", _iou), ("dice", _dice)):
    per_class, skipped = _reference_overlap(example, own, [0.5] * 3, score)
    row[name] = _mean(per_class)
    row[f"{name}_per_class"] = dict(zip(CLASSES, per_class, strict=True))
    row["empty_skipped"] = dict(zip(CLASSES, skipped, strict=True))
  row["matrix"] = [
    {
      "evaluation_threshold": t,
      "iou": _mean(_reference_overlap(example, t, [0.5] * 3, _iou)[0]),
      "dice": _mean(_reference_overlap(example, t, [0.5] * 3, _dice)[0]),
    }
    for t in THRESHOLDS
  ]
  positive = _labels(c, own)
  image = np.broadcast_to(np.arange(len(where))[:, None, None, None], SHAPE)[where]
  row["label_images"] = {
    name: len(set(image[positive & (k == i)])) for i, name in enumerate(CLASSES)
  }
  row["predicted_share_per_class"] = {
    name: (p[k == i] >= 0.5).mean() for i, name in enumerate(CLASSES)
  }
  # The third class has the same logit everywhere.
  row["constant_classes"] = ["never"]
  row["weighted_ce"] = weighted(own)
  row["weighted_ce_ref"] = np.mean([weighted(t) for t in THRESHOLDS])
  row["ce"] = cross_entropy(c).mean()
  certain = (c == 0) | (c == 1)
  row["trimap"] = cross_entropy(c)[certain].mean()
  targets = {"ece": _labels(c, own) if target == "label" else c}
  # Without the class whose probability is constant.
  targets["ece_visibility"] = example["visibility"][where].astype(np.float64)
  is_near = (p > 0.05) | example["near"][where]
  for suffix, region in (("", np.ones_like(is_near)), ("_near", is_near)):
    row[f"brier{suffix}"] = ((p - c) ** 2)[region].mean()
    for name, values in targets.items():
      mean, pooled, per_class = _reference_ece(p[region], values[region], k[region])
      if name == "ece_visibility":
        per_class[2] = None
        mean = _mean(per_class)
      row[f"{name}{suffix}"] = mean
      row[f"{name}{suffix}_pooled"] = pooled
      row[f"{name}{suffix}_per_class"] = dict(zip(CLASSES, per_class, strict=True))
  return row


def _assert_close(found, expected):
  if isinstance(expected, dict):
    for name, value in expected.items():
      _assert_close(found[name], value)
  elif isinstance(expected, list):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
      _assert_close(one, other)
  elif expected is None or isinstance(expected, str):
    assert found == expected
  else:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _summarize(sums, **options):
  return metrics.summarize(sums, classes=CLASSES, evaluation_thresholds=THRESHOLDS, **options)


@pytest.mark.parametrize("target", ["label", "confidence"])
@pytest.mark.parametrize("threshold", [0, 0.6, 1])
def test_results_match_the_float64_reference(threshold, target):
  example = _example(0, threshold)
  row = _summarize(_sums(**example), target=target)
  expected = _reference_row(example, target)
  _assert_close(row, expected)
  # Nothing is returned that the reference does not check, but the curve below.
  assert set(row) - set(expected) == {"reliability"}
  # The cases this is about do occur.
  assert row["empty_skipped"] == {"pleura": 1, "line": 2, "never": 4}
  assert row["iou_per_class"]["never"] is None
  assert 0 < row["iou"] < 1
  json.dumps(row, allow_nan=False)


def test_subthreshold_weight_reaches_the_weighted_cross_entropy():
  example = _example(1)
  row = _summarize(_sums(**example, subthreshold_weight="confidence"))
  expected = _reference_row(example, subthreshold_weight="confidence")
  _assert_close(row, expected)
  assert abs(expected["weighted_ce"] - _reference_row(example)["weighted_ce"]) > 1e-3


def test_reliability_curve():
  example = _example(2)
  row = _summarize(_sums(**example))
  where = example["where"][..., 0]
  p = 1 / (1 + np.exp(-np.clip(example["logits"][where].astype(np.float64), -700, 700)))
  y = _labels(example["confidence"][where], 0.5)
  for k, name in enumerate(CLASSES):
    curve = row["reliability"][name]
    for b in range(15):
      here = (p[:, k] <= (b + 1) / 15) & ((p[:, k] > b / 15) | (b == 0))
      assert curve["count"][b] == here.sum()
      _assert_close(curve["probability"][b], p[here, k].mean() if here.any() else None)
      _assert_close(curve["target"][b], y[here, k].mean() if here.any() else None)


def test_bins_are_right_closed_and_zero_is_in_the_first():
  edges = np.arange(16) / 15
  indices = jnp.argmax(metrics.in_bins(jnp.asarray(edges, jnp.float32)), axis=0)
  np.testing.assert_array_equal(indices, [0, *range(15)])
  above = np.nextafter(edges[:-1].astype(np.float32), np.float32(1))
  np.testing.assert_array_equal(jnp.argmax(metrics.in_bins(above), axis=0), range(15))
  np.testing.assert_array_equal(metrics.in_bins(above).sum(axis=0), 1)


def test_without_a_valid_pixel_everything_is_undefined():
  example = _example(3)
  row = _summarize(_sums(**example | {"where": np.zeros_like(example["where"])}))
  for name, value in row.items():
    counts = ("empty_skipped", "label_images", "constant_classes")
    if name not in ("matrix", "reliability", *counts):
      values = value.values() if isinstance(value, dict) else [value]
      assert all(v is None for v in values), name
  assert row["matrix"][0]["iou"] is None


def test_members_may_be_vmapped():
  thresholds = np.array([0, 0.6], np.float32)
  examples = [_example(seed, t) for seed, t in enumerate(thresholds)]
  shared = {n: v for n, v in examples[0].items() if n not in ("logits", "threshold")}
  together = jax.vmap(lambda z, t: _sums(logits=z, threshold=t, **shared))(
    np.stack([e["logits"] for e in examples]), thresholds
  )
  for member, example in enumerate(examples):
    alone = _sums(**shared, logits=example["logits"], threshold=example["threshold"])
    assert {n: v.shape for n, v in alone.items()} == {n: v.shape[1:] for n, v in together.items()}
    for name, value in alone.items():
      np.testing.assert_allclose(together[name][member], value, rtol=1e-6, err_msg=name)


@given(seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=10)
def test_padded_images_and_the_order_of_images_do_not_matter(seed):
  random = np.random.default_rng(seed)
  example = _example(seed)
  keep = random.permutation(4)[:3]
  dropped = [i for i in range(4) if i not in keep]
  padded = {n: np.array(v) for n, v in example.items()}
  for name in ("logits", "confidence"):
    padded[name][dropped] = random.random(SHAPE[1:])
  rows = []
  for sums, order in ((_sums(**example), np.sort(keep)), (_sums(**padded), keep)):
    rows.append(_summarize({n: np.asarray(v)[order] for n, v in sums.items()}))
  _assert_close(rows[0], rows[1])


@given(seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=10)
def test_where_equals_cropping(seed):
  example = _example(seed)
  example["where"][3] = example["where"][0]
  cropped = {n: v[VALID] if np.ndim(v) else v for n, v in example.items()}
  _assert_close(_summarize(_sums(**example)), _summarize(_sums(**cropped)))


def test_iou_by_hand():
  mean, per_class, skipped = metrics.mean_iou(
    intersection=[[1, 0, 3], [0, 0, 4]],
    union=[[2, 0, 4], [1, 0, 4]],
    label_area=[[1, 0, 4], [1, 0, 4]],
  )
  np.testing.assert_allclose(per_class, [0.25, np.nan, 0.875])
  assert mean == pytest.approx(0.5625)
  np.testing.assert_array_equal(skipped, [0, 2, 0])
  empty = metrics.mean_iou(intersection=[[0]], union=[[0]], label_area=[[0]])
  assert math.isnan(empty[0])


def test_a_class_that_no_label_shows_counts_for_nobody():
  """What is painted where nothing can be hit is 0 of one predictor and undefined of another."""
  example = _example(9)
  silent = _summarize(_sums(**example))
  loud = example["logits"].copy()
  loud[..., 2] = 5 + np.random.default_rng(1).random(SHAPE[:3])
  row = _summarize(_sums(**example | {"logits": loud}), best_cut=np.full(3, 9))
  assert row["iou"] == silent["iou"] == _mean(list(row["iou_per_class"].values())[:2])
  for name in ("iou", "dice", "ece"):
    assert row[f"{name}_per_class"]["never"] is silent[f"{name}_per_class"]["never"] is None
    assert row[name] == silent[name]
  assert row["iou_at_best_cut_per_class"]["never"] is None
  assert [one["iou"] for one in row["matrix"]] == [one["iou"] for one in silent["matrix"]]
  assert row["empty_skipped"] == silent["empty_skipped"]
  # It is said all the same: who paints it, and that no image has it.
  assert row["label_images"]["never"] == 0
  assert (
    silent["predicted_share_per_class"]["never"],
    row["predicted_share_per_class"]["never"],
  ) == (0, 1)
  sums = {n: np.asarray(v) for n, v in _sums(**example | {"logits": loud}).items()}
  others = {n: v[..., :2] for n, v in sums.items()}
  np.testing.assert_array_equal(metrics.image_iou(sums), metrics.image_iou(others))
  names = ("logits", "confidence", "where", "threshold")
  loud = example | {"logits": loud}
  validated = metrics.mean_iou(**metrics.iou_sums(**{name: loud[name] for name in names}))
  assert validated[0] == pytest.approx(silent["iou"], rel=1e-12)


def test_an_output_that_says_nothing_has_no_calibration_error():
  example = _example(10)
  example["logits"][..., 0] = -13.8
  row = _summarize(_sums(**example))
  assert row["constant_classes"] == ["pleura", "never"]
  assert row["ece_per_class"]["pleura"] is row["ece_visibility_per_class"]["pleura"] is None
  assert row["ece"] == row["ece_per_class"]["line"]
  example["logits"][:] = -13.8
  row = _summarize(_sums(**example))
  for name in ("ece", "ece_near", "ece_visibility"):
    assert row[name] is row[f"{name}_pooled"] is None
  assert row["iou"] == 0 and row["brier"] > 0


def test_a_probability_at_exactly_the_cut_is_a_prediction():
  shape = (1, 2, 2, 1)
  half = {"logits": np.zeros(shape, np.float32), "confidence": np.ones(shape, np.float32)}
  half |= {"where": np.ones(shape, bool), "threshold": np.float32(0.5)}
  sums = metrics.iou_sums(**half)
  assert (sums["intersection"], sums["union"]) == (4, 4)
  assert metrics.mean_iou(**sums)[0] == 1
  near = np.ones(shape, bool)
  more = metrics.image_sums(**half, near=near, evaluation_thresholds=[0.5])
  assert more["prediction_area"] == 4
  assert metrics.summarize(more, classes=["a"], evaluation_thresholds=[0.5])["iou"] == 1
  half["logits"] = half["logits"] - np.float32(1e-6)
  assert metrics.iou_sums(**half)["intersection"] == 0


def test_validation_iou_is_the_one_of_the_results():
  example = _example(4)
  names = ("logits", "confidence", "where", "threshold")
  sums = metrics.iou_sums(**{name: example[name] for name in names})
  assert sums["union"].shape == (4, 3)
  row = _summarize(_sums(**example))
  assert metrics.mean_iou(**sums)[0] == pytest.approx(row["iou"], rel=1e-12)


def test_best_cuts_match_an_exhaustive_search():
  example = _example(5)
  sums = _sums(**example)
  best = metrics.best_cuts(sums)
  for k in range(2):
    scores = [_reference_overlap(example, 0.5, [c] * 3, _iou)[0][k] for c in metrics.CUTS]
    assert scores[best[k]] == pytest.approx(max(scores))
    assert max(scores) > scores[metrics.CUTS.index(0.5)]
  row = _summarize(sums, best_cut=best)
  chosen = metrics.take_cuts(metrics.CUTS, best)
  expected, _ = _reference_overlap(example, 0.5, chosen, _iou)
  _assert_close(row["iou_at_best_cut"], _mean(expected))
  _assert_close(row["iou_at_best_cut_per_class"], dict(zip(CLASSES, expected, strict=True)))
  _assert_close(row["best_cut"], dict(zip(CLASSES, chosen, strict=True)))
  # A class that no cut-off gets right keeps .5.
  assert row["best_cut"]["never"] == 0.5


def test_ties_go_to_the_cut_nearest_one_half():
  sums = {
    "cut_label_area": np.full((1, 1), 4.0),
    "cut_prediction_area": np.array([[[9.0], [4.0], [4.0], [4.0]]]),
    "cut_intersection": np.array([[[4.0], [4.0], [4.0], [4.0]]]),
  }
  assert metrics.best_cuts(sums, [0.5, 0.1, 0.6, 0.9])[0] == 2


def test_cut_sums_are_those_of_image_sums():
  example = _example(6)
  everything = _sums(**example)
  names = ("logits", "confidence", "where", "threshold")
  for name, value in metrics.cut_sums(**{n: example[n] for n in names}).items():
    np.testing.assert_array_equal(value, everything[name])


def test_the_prediction_may_have_a_cut_for_every_class():
  example = _example(7)
  cut = np.array([0.2, 0.35, 0.001], np.float32)
  row = _summarize(_sums(**example, cut=cut))
  expected, skipped = _reference_overlap(example, 0.5, cut, _iou)
  _assert_close(row["iou_per_class"], dict(zip(CLASSES, expected, strict=True)))
  assert list(row["empty_skipped"].values()) == skipped
  # The class that is never there is predicted at this cut-off, which counts for nobody.
  assert row["iou_per_class"]["never"] is None
  assert row["predicted_share_per_class"]["never"] == 1


def test_bfloat16_logits():
  example = _example(8)
  rounded = jnp.asarray(example["logits"], jnp.bfloat16)
  sums = _sums(**example | {"logits": rounded})
  assert {v.dtype for v in sums.values()} == {np.dtype(np.float32)}
  _assert_close(
    _summarize(sums), _reference_row(example | {"logits": np.asarray(rounded, np.float32)})
  )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_near_confidence_is_a_euclidean_distance(dtype):
  stored = np.zeros((2, 17, 15, 2), np.uint8)
  stored[0, 3, 4, 0] = 1
  stored[0, 12, 13, 0] = 255
  stored[1, 8, 0, 1] = 128
  confidence = stored if dtype == np.uint8 else (stored / 255).astype(dtype)
  found = metrics.near_confidence(confidence)
  rows, columns = np.mgrid[:17, :15]
  expected = np.zeros(stored.shape, bool)
  for image, row, column, k in np.argwhere(stored):
    expected[image, :, :, k] |= (rows - row) ** 2 + (columns - column) ** 2 <= 25
  np.testing.assert_array_equal(found, expected)
  assert found[0, 6, 8, 0] and not found[0, 7, 8, 0]


def _line(row):
  mask = np.zeros((40, 30), bool)
  mask[row : row + 2] = True
  return mask


def test_surface_dice_of_shifted_lines():
  shifts = [0, 3, 4, 20]
  prediction = np.stack([_line(10 + shift) for shift in shifts])[..., None]
  labels = np.stack([_line(10)] * 4)[..., None]
  where = np.ones((4, 40, 30, 1), bool)
  found = metrics.surface_scores(prediction=prediction, labels=labels, where=where)
  scores, distances = (one[:, 0] for one in found)
  np.testing.assert_allclose(distances, shifts)
  assert scores[0] == scores[1] == 1
  # Shifted by 4, the near edges are 2 px apart or overlapping and the far ones beyond 3 px.
  assert 0 < scores[2] < 1
  assert scores[3] == 0


def test_surface_dice_of_empty_masks_and_invalid_pixels():
  masks = np.stack([_line(10), _line(30), np.zeros((40, 30), bool)])
  prediction = np.stack([masks[[0, 2, 2]], masks[[1, 1, 0]]]).transpose(0, 2, 3, 1)
  labels = np.stack([masks[[2, 0, 2]], masks[[1, 0, 0]]]).transpose(0, 2, 3, 1)
  where = np.ones((2, 40, 30, 1), bool)
  scores, distances = metrics.surface_scores(prediction=prediction, labels=labels, where=where)
  np.testing.assert_array_equal(scores, [[0, 0, np.nan], [1, 0, 1]])
  np.testing.assert_array_equal(distances, [[np.nan, np.nan, np.nan], [0, 20, 0]])
  where[:, 20:] = False
  masked = metrics.surface_scores(prediction=prediction, labels=labels, where=where)
  cropped = metrics.surface_scores(
    prediction=prediction[:, :20], labels=labels[:, :20], where=where[:, :20]
  )
  np.testing.assert_array_equal(masked, cropped)
  masked, distances = masked
  assert np.isnan(masked[1, 0]) and masked[1, 1] == 0
  assert np.isnan(distances[1, 0]) and np.isnan(distances[1, 1])


def test_surface_dice_is_reported_for_thin_classes():
  example = _example(9)
  sums = dict(_sums(**example))
  sums["surface_dice"] = np.array([[0.1, 0.5, 0], [0.2, np.nan, 0], [0.3, 1, 0], [0.4, 0.6, 0]])
  row = _summarize(sums, thin=["line"])
  assert row["surface_dice_per_class"] == {"line": pytest.approx(0.7)}
  assert row["surface_dice"] == pytest.approx(0.7)
  sums["surface_dice"][:, 1] = np.nan
  assert _summarize(sums, thin=["line"])["surface_dice"] is None


def test_distances_of_outlines_are_reported_with_the_images_they_are_of():
  sums = dict(_sums(**_example(9)))
  sums["hd95"] = np.array([[1, 4, np.nan], [2, np.nan, np.nan], [3, 8, np.nan], [np.nan] * 3])
  row = _summarize(sums)
  assert row["hd95_per_class"] == {"pleura": 2, "line": 6, "never": None}
  assert row["hd95_images"] == {"pleura": 3, "line": 2, "never": 0}
  assert row["hd95"] == 4


def test_a_distance_between_outlines_is_the_larger_95th_percentile():
  """Against distances between all pairs of boundary pixels, where both are single pixels wide."""
  one, other = np.zeros((2, 60, 60), bool)
  one[10, 5:55] = True
  other[10, 5:52] = True
  other[30, 54] = True
  ends = [np.argwhere(mask) for mask in (one, other)]
  pairs = np.hypot(*(ends[0][:, None] - ends[1][None]).transpose(2, 0, 1))
  # Of both outlines the last few pixels are far: less than 5 % of one, more of the other.
  expected = max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95))
  _, found = metrics.surface_scores(
    prediction=other[None, ..., None],
    labels=one[None, ..., None],
    where=np.ones((1, 60, 60, 1), bool),
  )
  assert found[0, 0] == pytest.approx(expected, abs=1)


def test_outlines_are_scored_to_the_last_digit_as_by_the_package():
  import surface_distance

  rng = np.random.default_rng(0)
  noise = [rng.random((2, 31, 45)) < share for share in (0.002, 0.05, 0.5, 0.98)]
  full, corner, edge, line = np.zeros((4, 31, 45), bool)
  full[:], corner[-1, 0], edge[:, 40:], line[7, 3:30] = True, True, True, True
  masks = np.stack([*np.concatenate(noise), full, corner, edge, line])
  one, other = masks[np.indices((len(masks), len(masks))).reshape(2, -1)]
  assert masks.any((1, 2)).all()
  dice, distance = metrics.surface_scores(
    prediction=other.reshape(12, 12, 31, 45).transpose(0, 2, 3, 1),
    labels=one.reshape(12, 12, 31, 45).transpose(0, 2, 3, 1),
    where=np.ones((12, 31, 45, 1), bool),
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    pairs = zip(one, other, strict=True)
    found = [surface_distance.compute_surface_distances(*pair, (1, 1)) for pair in pairs]
  expected = [surface_distance.compute_surface_dice_at_tolerance(x, 3) for x in found]
  np.testing.assert_array_equal(dice.ravel(), expected)
  expected = [surface_distance.compute_robust_hausdorff(x, 95) for x in found]
  np.testing.assert_array_equal(distance.ravel(), expected)
