import functools
import json
import math

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
  """Calibration errors of pixels with probability p and class k: class mean, pooled, per class."""
  bins = np.maximum(np.ceil(p * 15), 1)

  def error(mask):
    total = 0.0
    for b in range(1, 16):
      here = mask & (bins == b)
      if here.any():
        total += here.sum() / mask.sum() * abs(p[here].mean() - target[here].mean())
    return total if mask.any() else None

  per_class = [error(k == i) for i in range(n_classes)]
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
  row["weighted_ce"] = weighted(own)
  row["weighted_ce_ref"] = np.mean([weighted(t) for t in THRESHOLDS])
  row["ce"] = cross_entropy(c).mean()
  certain = (c == 0) | (c == 1)
  row["trimap"] = cross_entropy(c)[certain].mean()
  targets = {"ece": _labels(c, own) if target == "label" else c}
  targets["ece_visibility"] = example["visibility"][where].astype(np.float64)
  is_near = (p > 0.05) | example["near"][where]
  for suffix, region in (("", np.ones_like(is_near)), ("_near", is_near)):
    row[f"brier{suffix}"] = ((p - c) ** 2)[region].mean()
    for name, values in targets.items():
      mean, pooled, per_class = _reference_ece(p[region], values[region], k[region])
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
  elif expected is None:
    assert found is None
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
    if name not in ("matrix", "reliability", "empty_skipped"):
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
    intersection=[[1, 0, 3], [0, 0, 4]], union=[[2, 0, 4], [1, 0, 4]]
  )
  np.testing.assert_allclose(per_class, [0.25, np.nan, 0.875])
  assert mean == pytest.approx(0.5625)
  np.testing.assert_array_equal(skipped, [0, 2, 0])
  assert math.isnan(metrics.mean_iou(intersection=[[0]], union=[[0]])[0])


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
  # The class that is never there is predicted at this cut-off: wrong in each valid image.
  assert row["iou_per_class"]["never"] == 0


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
  scores = metrics.surface_dice(prediction=prediction, labels=labels, where=where)[:, 0]
  assert scores[0] == scores[1] == 1
  # Shifted by 4, the near edges are 2 px apart or overlapping and the far ones beyond 3 px.
  assert 0 < scores[2] < 1
  assert scores[3] == 0


def test_surface_dice_of_empty_masks_and_invalid_pixels():
  masks = np.stack([_line(10), _line(30), np.zeros((40, 30), bool)])
  prediction = np.stack([masks[[0, 2, 2]], masks[[1, 1, 0]]]).transpose(0, 2, 3, 1)
  labels = np.stack([masks[[2, 0, 2]], masks[[1, 0, 0]]]).transpose(0, 2, 3, 1)
  where = np.ones((2, 40, 30, 1), bool)
  scores = metrics.surface_dice(prediction=prediction, labels=labels, where=where)
  np.testing.assert_array_equal(scores, [[0, 0, np.nan], [1, 0, 1]])
  where[:, 20:] = False
  masked = metrics.surface_dice(prediction=prediction, labels=labels, where=where)
  cropped = metrics.surface_dice(
    prediction=prediction[:, :20], labels=labels[:, :20], where=where[:, :20]
  )
  np.testing.assert_array_equal(masked, cropped)
  assert np.isnan(masked[1, 0]) and masked[1, 1] == 0


def test_surface_dice_is_reported_for_thin_classes():
  example = _example(9)
  sums = dict(_sums(**example))
  sums["surface_dice"] = np.array([[0.1, 0.5, 0], [0.2, np.nan, 0], [0.3, 1, 0], [0.4, 0.6, 0]])
  row = _summarize(sums, thin=["line"])
  assert row["surface_dice_per_class"] == {"line": pytest.approx(0.7)}
  assert row["surface_dice"] == pytest.approx(0.7)
  sums["surface_dice"][:, 1] = np.nan
  assert _summarize(sums, thin=["line"])["surface_dice"] is None
