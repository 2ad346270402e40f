import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from lus_jax.evaluation import metrics, raters, reliability, statistics

CLASSES = ["pleura", "line"]
N, R, H, W, K = 5, 4, 9, 8, 2
PERSONS = np.array(["ann", "ann", "bob", "cem"])
SHAPE = (N, R, H, W, K)


def _example(seed=0):
  """Image 1: class 1 empty everywhere; 2: one rater; 3: nobody; 4: raters of one person only."""
  random = np.random.default_rng(seed)
  probability = random.random((N, H, W, K)).astype(np.float32)
  probability[0, 0, :, 0] = np.arange(8, dtype=np.float32) / 10
  values = random.integers(0, 256, SHAPE).astype(np.uint8)
  probability[1, ..., 1] = 0.04
  values[1, ..., 1] = 0
  drawn = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
  where = random.random((N, H, W, 1)) < 0.8
  return probability, values, drawn, where


def _dice(a, b):
  total = a.sum() + b.sum()
  return 2 * (a & b).sum() / total if total else 1.0


def _distance(a, b):
  union = (a | b).sum()
  return 1 - (a & b).sum() / union if union else 0.0


def _mean(values):
  return np.mean(values) if len(values) else np.nan


def _each(example):
  """(i, k), p, the drawn raters' masks by number: valid pixels of every image and class."""
  probability, values, drawn, where = example
  for i, k in np.ndindex(N, K):
    valid = where[i, ..., 0]
    masks = {r: values[i, r, ..., k][valid] >= 128 for r in range(R) if drawn[i, r]}
    yield (i, k), probability[i, ..., k][valid].astype(np.float64), masks


def _expected(function, example):
  found = np.full((N, K), np.nan)
  for index, p, masks in _each(example):
    found[index] = function(p, masks)
  return found


def _level_sets(p):
  return [p >= level / 10 - 1e-6 for level in range(1, 10)]


def _qubiq(p, soft):
  return np.mean([_dice(*pair) for pair in zip(_level_sets(p), _level_sets(soft), strict=True)])


def test_qubiq_is_a_loop_over_levels():
  example = probability, values, drawn, where = _example()
  soft = raters.soft(values, drawn)
  found = raters.qubiq(probability, soft, where)
  expected = _expected(
    lambda p, masks: _qubiq(p, np.mean([*masks.values()] or [np.zeros_like(p)], axis=0)), example
  )
  np.testing.assert_allclose(found, expected, atol=1e-12)
  assert found[1, 1] == 1
  assert found[0, 0] < 0.9


def test_qubiq_levels_hold_in_float32():
  level = (np.arange(10, dtype=np.float32) / 10).reshape(1, 10, 1, 1)
  exact = np.arange(10).reshape(1, 10, 1, 1) / 10
  where = np.ones_like(level, bool)
  np.testing.assert_array_equal(raters.qubiq(level, exact, where), [[1]])
  assert raters.qubiq(level - np.float32(0.01), exact, where)[0, 0] < 1


def test_dice_is_f1():
  random = np.random.default_rng(1)
  a, b = random.random((2, 3, 6, 5, 2)) < 0.4
  where = random.random((3, 6, 5, 1)) < 0.7
  a[2, ..., 1] = b[2, ..., 1] = False
  found = raters.dice(a, b, where)
  for i, k in np.ndindex(3, 2):
    valid = where[i, ..., 0]
    expected = f1_score(a[i, ..., k][valid], b[i, ..., k][valid], zero_division=1)
    assert found[i, k] == pytest.approx(expected, abs=1e-12)


def test_dice_against_every_rater():
  example = probability, values, drawn, where = _example()
  mean, each = raters.dice_vs_raters(probability, values, drawn, where)
  expected = np.full((N, R, K), np.nan)
  for (i, k), p, masks in _each(example):
    for r, mask in masks.items():
      expected[i, r, k] = _dice(p >= 0.5, mask)
  np.testing.assert_allclose(each, expected, atol=1e-12)
  np.testing.assert_array_equal(np.isnan(each).all(-1), ~drawn)
  expected = [[_mean(x[~np.isnan(x)]) for x in image.T] for image in expected]
  np.testing.assert_allclose(mean, expected, atol=1e-12)
  assert np.isnan(mean[3]).all()


def _energy_distance(p, masks):
  if not masks:
    return np.nan
  sets, masks = _level_sets(p), list(masks.values())

  def expectation(a, b):
    return _mean([_distance(*pair) for pair in itertools.product(a, b)])

  return 2 * expectation(sets, masks) - expectation(sets, sets) - expectation(masks, masks)


def test_energy_distance_is_a_loop_over_pairs_of_sets():
  example = _example()
  found = raters.generalised_energy_distance(*example)
  np.testing.assert_allclose(found, _expected(_energy_distance, example), atol=1e-12)
  assert np.isnan(found[3]).all()
  assert found[1, 1] == 0
  assert found[0, 0] > 0.05


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.6, 1.0]))
@settings(deadline=None, max_examples=60)
def test_energy_distance_is_not_negative(seed, n, share):
  random = np.random.default_rng(seed)
  probability = random.random((1, 5, 4, 1)) ** 2
  values = np.uint8(255) * (random.random((1, n, 5, 4, 1)) < share)
  drawn, where = np.ones((1, n), bool), np.ones((1, 5, 4, 1), bool)
  assert raters.generalised_energy_distance(probability, values, drawn, where)[0, 0] > -1e-12


def test_energy_distance_of_equal_distributions_is_0():
  # Nine raters, each of whom paints one of the level sets.
  probability = np.random.default_rng(0).random((1, 7, 7, 1))
  levels = np.arange(1, 10).reshape(1, 9, 1, 1, 1) / 10
  values = np.uint8(255) * (probability[:, None] >= levels)
  drawn, where = np.ones((1, 9), bool), np.ones((1, 7, 7, 1), bool)
  arguments = (probability, values, drawn, where)
  assert raters.generalised_energy_distance(*arguments)[0, 0] == pytest.approx(0, abs=1e-12)
  drawn[0, :5] = False
  assert raters.generalised_energy_distance(*arguments)[0, 0] > 0.05


def _other_people(r, masks):
  return [mask for s, mask in masks.items() if PERSONS[s] != PERSONS[r]]


def test_humans_meet_only_other_people():
  example = _, values, drawn, where = _example()
  one_by_one, against_all = raters.humans(values, drawn, PERSONS, where)
  expected = np.full((2, N, R, K), np.nan)
  for (i, k), _, masks in _each(example):
    for r, mask in masks.items():
      others = _other_people(r, masks)
      if others:
        expected[0, i, r, k] = _mean([_dice(mask, other) for other in others])
        expected[1, i, r, k] = _dice(mask, np.mean(others, axis=0) >= 0.5)
  np.testing.assert_allclose(one_by_one, expected[0], atol=1e-12)
  np.testing.assert_allclose(against_all, expected[1], atol=1e-12)
  # One rater alone, nobody, and two tools of one person.
  assert np.isnan(one_by_one[2:]).all()
  assert not np.isnan(one_by_one[0]).any()


def test_consensus_leaves_a_person_out_with_all_tools():
  _, values, drawn, _ = _example()
  found, n = raters.consensus(values, drawn, PERSONS, "ann")
  assert n.tolist() == [2, 1, 1, 0, 0]
  np.testing.assert_array_equal(found[0], (values[0, 2:] >= 128).sum(0) >= 1)
  np.testing.assert_array_equal(found[1], values[1, 3] >= 128)
  assert not found[3:].any()
  found, n = raters.consensus(values, drawn, PERSONS, None)
  assert n.tolist() == [4, 3, 1, 0, 2]
  np.testing.assert_array_equal(found[1], (values[1, [0, 1, 3]] >= 128).sum(0) >= 2)


def test_the_model_meets_the_same_consensuses():
  example = probability, values, drawn, where = _example()
  found = raters.dice_vs_consensus(probability, values, drawn, PERSONS, where)

  def expected(p, masks):
    people = {PERSONS[r]: _other_people(r, masks) for r in masks}
    return _mean(
      [_dice(p >= 0.5, np.mean(m, axis=0) >= 0.5) for m in people.values() if len(people) > 1]
    )

  np.testing.assert_allclose(found, _expected(expected, example), atol=1e-12)
  # A model that is one of the people scores as that person does, on average over the rest.
  by_hand = [
    raters.dice(probability >= 0.5, raters.consensus(values, drawn, PERSONS, person)[0], where)[0]
    for person in ("ann", "bob", "cem")
  ]
  np.testing.assert_allclose(found[0], np.mean(by_hand, axis=0), atol=1e-12)


def test_area_in_pixels():
  example = _example()
  predicted, painted = raters.area(*example)
  np.testing.assert_allclose(predicted, _expected(lambda p, _: p.sum(), example))
  expected = _expected(lambda _, masks: _mean([m.sum() for m in masks.values()]), example)
  np.testing.assert_allclose(painted, expected)
  assert painted[1, 1] == 0


def _ece(p, target):
  total = 0
  for b in range(15):
    here = (p > np.float32(b / 15)) & (p <= np.float32((b + 1) / 15))
    if b == 0:
      here |= p == 0
    if here.any():
      total += here.sum() / len(p) * abs(p[here].mean() - target[here].mean())
  return total


def test_calibration_sums_give_the_calibration_error():
  probability, values, drawn, where = _example()
  probability[0, :3, 0, 0] = [0, 1, np.float32(1 / 3)]
  target = raters.soft(values, drawn)
  sums = reliability.calibration_sums(probability, target, where)
  for i, k in np.ndindex(N, K):
    p, t = (x[i, ..., k][where[i, ..., 0]].astype(np.float64) for x in (probability, target))
    count, gap = sums["count"][i, k], sums["probability"][i, k] - sums["target"][i, k]
    assert count.sum() == len(p)
    assert np.abs(gap).sum() / count.sum() == pytest.approx(_ece(p, t), abs=1e-12)
    assert sums["squared_error"][i, k] == pytest.approx(np.sum((p - t) ** 2))


def test_bins_are_those_of_the_segmentation_metrics():
  p = np.concatenate([np.arange(16) / 15, np.random.default_rng(0).random(200)]).astype(np.float32)
  grid = p.reshape(1, -1, 1, 1)
  found = reliability.calibration_sums(grid, grid, np.ones_like(grid, bool))["count"][0, 0]
  np.testing.assert_array_equal(found, np.asarray(metrics.in_bins(p)).sum(1))


def test_reliability_is_that_of_sklearn():
  random = np.random.default_rng(4)
  p = random.random((1, 40, 40, 1))
  y = random.random(p.shape) < p**2
  sums = reliability.calibration_sums(p, y, np.ones_like(p, bool))
  # No p lies on an edge, so that their half-open bins are ours.
  target, probability = calibration_curve(y.ravel(), p.ravel(), n_bins=15)
  count = sums["count"][0, 0]
  np.testing.assert_allclose(sums["target"][0, 0] / count, target)
  np.testing.assert_allclose(sums["probability"][0, 0] / count, probability)


def test_disagreement_is_the_variance_of_masks():
  _, values, drawn, where = _example()
  score, variance = raters.disagreement(values, drawn, where)
  for i in range(N):
    valid = where[i, ..., 0]
    assert not variance[i][~valid].any()
    if drawn[i].any():
      expected = np.var(values[i, drawn[i]] >= 128, axis=0)[valid]
      np.testing.assert_allclose(variance[i][valid], expected, atol=1e-6)
      assert score[i] == pytest.approx(expected.mean(), abs=1e-6)
  assert score[2] == 0
  assert np.isnan(score[3])


def _cohort(n_patients, seed=0):
  """Quantities of two images a patient."""
  random = np.random.default_rng(seed)
  n = 2 * n_patients
  truth = random.random((n, 12, 12, K)) < 0.3
  truth[: n // 2, ..., 1] = False
  probability = np.clip(0.8 * truth + 0.2 * random.random(truth.shape), 0, 1).astype(np.float32)
  flips = random.random((n, R, 12, 12, K)) < 0.05
  values = np.uint8(255) * ((truth[:, None] ^ flips) & truth.any((1, 2), keepdims=True)[:, None])
  drawn = random.random((n, R)) < 0.9
  drawn[0] = False
  where = np.ones((n, 12, 12, 1), bool)
  found = raters.quantities(probability, values, drawn, PERSONS, where)
  return found, np.repeat([f"p{i:02d}" for i in range(n_patients)], 2), (probability, values, drawn)


def test_summary_is_the_mean_over_images_then_classes():
  quantities, patients, (probability, values, drawn) = _cohort(3)
  row = raters.summarize(quantities, patients, CLASSES)
  json.dumps(row, allow_nan=False)
  for name in raters.MEANS:
    per_class = np.nanmean(quantities[name], axis=0)
    assert row[name] == pytest.approx(per_class.mean())
    assert row[f"{name}_per_class"] == pytest.approx(dict(zip(CLASSES, per_class, strict=True)))
    # Nobody drew the first image.
    assert np.isnan(quantities[name][0]).all()
  painted = quantities["rater_area"]
  with np.errstate(divide="ignore", invalid="ignore"):
    error = np.where(painted > 0, (quantities["predicted_area"] - painted) / painted, np.nan)
  assert np.isnan(error[1, 1])
  assert row["area_error"] == pytest.approx(np.nanmean(error, axis=0).mean())
  assert row["area_error_abs"] == pytest.approx(np.nanmean(np.abs(error), axis=0).mean())
  p, t = (x[1:].astype(np.float64) for x in (probability, raters.soft(values, drawn)))
  eces = [_ece(p[..., k].ravel(), t[..., k].ravel()) for k in range(K)]
  assert list(row["ece_per_class"].values()) == pytest.approx(eces)
  assert row["ece"] == pytest.approx(np.mean(eces))
  assert row["ece_pooled"] == pytest.approx(_ece(p.ravel(), t.ravel()))
  assert row["brier"] == pytest.approx(np.mean((p - t) ** 2))
  bins = row["reliability"]["line"]
  assert sum(bins["count"]) == p[..., 1].size
  assert bins["target"][7] is None or 0 <= bins["target"][7] <= 1
  assert set(row["intervals"].values()) == {None}


def test_calibration_alone_is_what_a_summary_says_of_it():
  quantities, patients, (probability, values, drawn) = _cohort(3)
  names = ("count", "probability", "target", "squared_error")
  found = reliability.summarize_calibration({name: quantities[name] for name in names}, CLASSES)
  json.dumps(found, allow_nan=False)
  p, t = (x[1:].astype(np.float64) for x in (probability, raters.soft(values, drawn)))
  eces = [_ece(p[..., k].ravel(), t[..., k].ravel()) for k in range(K)]
  assert list(found["ece_per_class"]) == CLASSES
  assert list(found["ece_per_class"].values()) == pytest.approx(eces)
  assert found["ece"] == pytest.approx(np.mean(eces))
  assert found["ece_pooled"] == pytest.approx(_ece(p.ravel(), t.ravel()))
  assert found["brier"] == pytest.approx(np.mean((p - t) ** 2))
  row = raters.summarize(quantities, patients, CLASSES)
  assert found["reliability"] == row["reliability"]
  for name in ("ece", "ece_pooled", "brier"):
    assert found[name] == pytest.approx(row[name], abs=1e-12)


def test_calibration_of_a_class_without_a_valid_pixel_is_null():
  probability, values, drawn, _ = _example()
  where = np.ones((N, H, W, K), bool)
  where[..., 1] = False
  sums = reliability.calibration_sums(probability, raters.soft(values, drawn), where)
  found = reliability.summarize_calibration(sums, CLASSES)
  json.dumps(found, allow_nan=False)
  assert found["ece_per_class"]["line"] is None
  assert found["ece"] == found["ece_pooled"] == found["ece_per_class"]["pleura"]
  assert set(found["reliability"]["line"]["probability"]) == {None}


def _human_scores(n_patients):
  """Scores of two images a patient; rater 3 drew nothing, and class 1 of rater 0 is undefined."""
  scores = np.random.default_rng(5).random((2, 2 * n_patients, R, K))
  scores[:, ::3, 1] = np.nan
  scores[:, :, 3] = np.nan
  scores[:, :, 0, 1] = np.nan
  return scores, np.repeat([f"p{i:02d}" for i in range(n_patients)], 2)


def test_raters_are_summarized_over_images_then_classes():
  (each, everyone), patients = _human_scores(4)
  scores = {"dice_vs_others": each, "dice_vs_consensus": everyone}
  rows = raters.summarize_humans(scores, patients)
  json.dumps(rows, allow_nan=False)
  assert [row["n_images"] for row in rows] == [8, 5, 8, 0]
  for r, row in enumerate(rows[:3]):
    for name, scores in (("dice_vs_others", each), ("dice_vs_consensus", everyone)):
      per_class = [_mean(x[~np.isnan(x)]) for x in scores[:, r].T]
      assert row[name] == pytest.approx(np.nanmean(per_class))
  assert rows[0]["dice_vs_others"] == pytest.approx(each[:, 0, 0].mean())
  assert rows[3]["dice_vs_others"] is None and rows[3]["dice_vs_consensus"] is None
  # Four patients are too few.
  for row in rows:
    assert row["intervals"] == {"dice_vs_others": None, "dice_vs_consensus": None}


def test_intervals_of_raters_resample_patients():
  (each, everyone), patients = _human_scores(12)
  scores = {"dice_vs_others": each, "dice_vs_consensus": everyone}
  rows = raters.summarize_humans(scores, patients, seed=2)
  counts = statistics.resamples(12, 2).astype(int)
  names = np.unique(patients)
  for r, row in enumerate(rows[:3]):
    values = []
    for resample in counts[:500]:
      index = np.concatenate(
        [np.tile(np.flatnonzero(patients == p), n) for p, n in zip(names, resample, strict=True)]
      )
      per_class = [_mean(x[~np.isnan(x)]) for x in each[index, r].T]
      values.append(np.nanmean(per_class))
    low, high = row["intervals"]["dice_vs_others"]
    assert low < row["dice_vs_others"] < high
    tolerance = 0.35 * np.std(values)
    np.testing.assert_allclose([low, high], np.percentile(values, [2.5, 97.5]), atol=tolerance)
  assert rows[3]["intervals"] == {"dice_vs_others": None, "dice_vs_consensus": None}


def test_undefined_metrics_are_null():
  quantities, patients, _ = _cohort(12)
  quantities["ged"][:, 1] = np.nan
  quantities["dice_vs_consensus"][:] = np.nan
  row = raters.summarize(quantities, patients, CLASSES)
  assert row["ged_per_class"]["line"] is None
  assert row["ged"] == row["ged_per_class"]["pleura"]
  assert row["dice_vs_consensus"] is None
  assert row["intervals"]["dice_vs_consensus"] is None
  assert row["intervals"]["ged"][0] < row["ged"] < row["intervals"]["ged"][1]
  json.dumps(row, allow_nan=False)


def test_intervals_resample_patients():
  quantities, patients, _ = _cohort(11)
  row = raters.summarize(quantities, patients, CLASSES, seed=3)
  counts = statistics.resamples(11, 3)[:400].astype(int)
  # The same resamples, patient by patient.
  names = np.unique(patients)
  reference = {name: [] for name in ("qubiq", "ece", "ece_pooled", "brier", "area_error")}
  for resample in counts:
    index = np.concatenate(
      [np.tile(np.flatnonzero(patients == p), n) for p, n in zip(names, resample, strict=True)]
    )
    drawn = {name: values[index] for name, values in quantities.items()}
    found = raters.summarize(drawn, np.full(len(index), "one"), CLASSES)
    for name, values in reference.items():
      values.append(found[name])
  assert row["undefined_resamples"]["qubiq"] == 0
  for name, values in reference.items():
    low, high = row["intervals"][name]
    assert low < row[name] < high
    # 400 of the 10,000: the ends are known to a fraction of the spread.
    tolerance = 0.35 * np.std(values)
    np.testing.assert_allclose([low, high], np.percentile(values, [2.5, 97.5]), atol=tolerance)


def test_undefined_resamples_are_counted():
  quantities, patients, _ = _cohort(10)
  quantities["ged"][:] = np.nan
  quantities["ged"][patients == "p04"] = 0.5
  row = raters.summarize(quantities, patients, CLASSES)
  without = np.sum(statistics.resamples(10, 0)[:, 4] == 0)
  assert row["undefined_resamples"]["ged"] == without > 3000
  assert row["intervals"]["ged"] == [0.5, 0.5]


def test_fused_count_curve_over_all_choices():
  # As many draws as to meet every choice of m raters about equally often.
  probability, values, drawn, where = example = _example(3)
  rows = raters.fused_count_curve(probability, values, drawn, where, seed=0, draws=3000)
  assert [row["n_raters"] for row in rows] == [1, 2, 3, 4]
  assert [row["n_images"] for row in rows] == [4, 3, 2, 1]
  for row in rows:
    scores = np.full((2, N, K), np.nan)
    for (i, k), p, masks in _each(example):
      choices = itertools.combinations(masks.values(), row["n_raters"])
      fused = [np.mean(choice, axis=0) for choice in choices]
      if fused:
        everyone = np.mean([*masks.values()], axis=0)
        scores[0, i, k] = _mean([_qubiq(p, x) for x in fused])
        scores[1, i, k] = _mean([_qubiq(everyone, x) for x in fused])
    expected = np.nanmean(scores, axis=1).mean(1)
    assert row["prediction_vs_fused"] == pytest.approx(expected[0], abs=0.004)
    assert row["fused_vs_all"] == pytest.approx(expected[1], abs=0.004)
  assert rows[-1]["fused_vs_all"] == 1
  again = raters.fused_count_curve(probability, values, drawn, where, seed=1, draws=2)
  assert again == raters.fused_count_curve(probability, values, drawn, where, seed=1, draws=2)


def test_the_curve_has_no_value_beyond_the_raters_there_are():
  probability, values, drawn, where = _example()
  drawn[:, 0] = False
  rows = raters.fused_count_curve(probability, values, drawn, where, seed=0)
  assert rows[3] == {
    "n_raters": 4,
    "n_images": 0,
    "prediction_vs_fused": None,
    "fused_vs_all": None,
  }


def test_a_picture_nobody_paints_and_the_model_neither():
  shape = (1, 3, 4, 4, 1)
  arguments = (np.zeros((1, 4, 4, 1)), np.zeros(shape, np.uint8), np.ones((1, 3), bool))
  where = np.ones((1, 4, 4, 1), bool)
  found = raters.quantities(*arguments, np.arange(3), where)
  for name in raters.MEANS:
    assert found[name] == (0 if name == "ged" else 1), name
  # Where that is so of all pictures, empty masks agree with empty masks alone: no score of anybody.
  row = raters.summarize(found, ["p0"], ["line"])
  names = (*raters.MEANS, "ece", "area_error")
  assert {row[name] for name in names} == {row["ece_per_class"]["line"]} == {None}
  assert row["painted_images"] == {"line": 0}
  painted = raters.painted_classes(found["rater_area"])
  human = {"dice_vs_others": np.ones((1, 3, 1))}
  rows = raters.summarize_humans(human, ["p0"], painted=painted)
  assert [one["dice_vs_others"] for one in rows] == [None] * 3
  rows = raters.fused_count_curve(*arguments, where, seed=0)
  assert all(row["prediction_vs_fused"] is row["fused_vs_all"] is None for row in rows)


def test_a_class_nobody_painted_does_not_raise_the_mean():
  quantities, patients, _ = _cohort(3)
  row = raters.summarize(quantities, patients, CLASSES)
  never = {name: np.zeros_like(x[:, :1]) for name, x in quantities.items()}
  for name in raters.MEANS:
    never[name] = np.ones_like(never[name])
  more = {name: np.concatenate([x, never[name]], axis=1) for name, x in quantities.items()}
  with_it = raters.summarize(more, patients, [*CLASSES, "never"])
  for name in (*raters.MEANS, "ece"):
    assert with_it[name] == pytest.approx(row[name])
    assert with_it[f"{name}_per_class"]["never"] is None


def test_a_constant_output_has_no_calibration_error():
  _, patients, (probability, values, drawn) = _cohort(12)
  where = np.ones((len(values), 12, 12, 1), bool)
  probability[..., 1] = 1e-6
  found = raters.quantities(probability, values, drawn, PERSONS, where)
  row = raters.summarize(found, patients, CLASSES)
  assert row["constant_classes"] == ["line"]
  assert row["ece_per_class"]["line"] is None
  assert row["ece"] == row["ece_per_class"]["pleura"] > 0
  alone = reliability.summarize_calibration(found, CLASSES)
  assert alone["ece"] == pytest.approx(row["ece"]) and alone["ece_per_class"]["line"] is None
  probability[:] = 1e-6
  row = raters.summarize(
    raters.quantities(probability, values, drawn, PERSONS, where), patients, CLASSES
  )
  assert row["ece"] is row["ece_pooled"] is row["intervals"]["ece"] is None
  assert row["brier"] > 0
  json.dumps(row, allow_nan=False)


def _leave_one_out(r, masks):
  others = _other_people(r, masks)
  return np.mean(others, axis=0) if others else None


def test_qubiq_of_people_and_of_the_model_beside_them():
  example = probability, values, drawn, where = _example()
  human = raters.human_qubiq(values, drawn, PERSONS, where)
  model = raters.qubiq_leave_one_out(probability, values, drawn, PERSONS, where)
  expected, beside = np.full((N, R, K), np.nan), np.full((N, K), np.nan)
  for (i, k), p, masks in _each(example):
    people = {}
    for r, mask in masks.items():
      others = _leave_one_out(r, masks)
      if others is not None:
        expected[i, r, k] = _qubiq(mask.astype(float), others)
        people[PERSONS[r]] = _qubiq(p, others)
    beside[i, k] = _mean([*people.values()])
  np.testing.assert_allclose(human, expected, atol=1e-12)
  np.testing.assert_allclose(model, beside, atol=1e-12)
  # One rater alone, nobody, and two tools of one person.
  assert np.isnan(human[2:]).all() and np.isnan(model[2:]).all()
  # By hand: of the two others one painted the left half, one all of it.
  values = np.zeros((1, 3, 4, 4, 1), np.uint8)
  values[0, 0, :, :2] = values[0, 1, :, :2] = values[0, 2] = 255
  found = raters.human_qubiq(
    values, np.ones((1, 3), bool), np.arange(3), np.ones((1, 4, 4, 1), bool)
  )
  # Up to 50 % the others' mean is the whole picture: Dice 2 / 3, then the left half: Dice 1.
  assert found[0, 0, 0] == pytest.approx((5 * 2 / 3 + 4) / 9)


def test_ten_raters_take_seconds():
  random = np.random.default_rng(0)
  n, r, size, k = 4, 10, 256, 6
  blocks = random.random((n, 1 + r, size // 8, size // 8, k)).astype(np.float32)
  blocks = blocks.repeat(8, axis=2).repeat(8, axis=3)
  probability = blocks[:, 0]
  values = np.uint8(255) * (0.7 * probability[:, None] + 0.3 * blocks[:, 1:] > 0.7)
  drawn, where = np.ones((n, r), bool), np.ones((n, size, size, 1), bool)
  begin = time.process_time()
  raters.quantities(probability, values, drawn, np.arange(r), where)
  raters.fused_count_curve(probability, values, drawn, where, seed=0)
  # About 1.5 s of one core, however busy the machine: 40 images have to stay below a minute.
  assert time.process_time() - begin < 6
