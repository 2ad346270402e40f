import functools

import jax
import numpy as np
import pytest

from lus_jax.evaluation import metrics, resampling

CLASSES = ("a", "b", "c")


def make(n, seed=0, size=12):
  """Probabilities, soft targets and valid pixels; the last class is in no target."""
  r = np.random.default_rng(seed)
  target = np.zeros((n, size, size, 3), np.float32)
  for i in range(n):
    y, x = r.integers(0, size - 5, 2)
    target[i, y : y + 4, x : x + 5, 0] = r.choice([0.6, 1.0])
    target[i, :3, :, 1] = i % 2
  noise = r.normal(0, 1.5, target.shape)
  probability = 1 / (1 + np.exp(-(6 * target - 3 + noise)))
  where = np.ones(target.shape, bool)
  where[:, -2:] = False
  return probability.astype(np.float32), target, where


def parts_of(n=4, seed=0, patients=None):
  return resampling.by_patient(resampling.image_sums(*make(n, seed)), patients or range(n))[1]


def test_over_all_patients_scores_are_those_of_the_report():
  probability, target, where = make(18)
  logits = np.log(probability) - np.log1p(-probability)
  image_sums = functools.partial(
    metrics.image_sums, threshold=0.5, evaluation_thresholds=np.float32([0.5])
  )
  near = metrics.near_confidence(target)
  sums = jax.jit(image_sums)(logits=logits, confidence=target, where=where, near=near)
  sums = jax.device_get(sums)
  surface, _ = metrics.surface_scores(prediction=probability >= 0.5, labels=target > 0, where=where)
  row = metrics.summarize(
    sums | {"surface_dice": surface},
    classes=CLASSES,
    evaluation_thresholds=[0.5],
    thin=CLASSES,
    target="confidence",
  )
  found = resampling.by_patient(resampling.image_sums(probability, target, where), [0, 1, 2] * 6)
  assert found[0] == (0, 1, 2)
  scores = resampling.scores(found[1], np.ones((1, 3)))
  for name in ("dice", "iou", "surface_dice", "ece", "ece_near", "brier", "brier_near"):
    assert scores[name][0] == pytest.approx(row[name], abs=1e-5), name
  by_class = resampling.per_class(found[1], "dice")
  assert by_class[0] == pytest.approx(row["dice_per_class"]["a"], abs=1e-6)
  assert np.isnan(by_class[2])


def test_a_patient_drawn_twice_counts_as_two():
  probability, target, where = make(4)
  again = [0, 0, 2, 3, 3, 3]
  drawn = resampling.scores(parts_of(), [[2, 0, 1, 3]])
  arrays = (x[again] for x in (probability, target, where))
  _, whole = resampling.by_patient(resampling.image_sums(*arrays), range(6))
  for name, value in resampling.scores(whole, np.ones((1, 6))).items():
    assert drawn[name][0] == pytest.approx(value[0], abs=1e-6), name


def test_a_class_that_a_resample_does_not_show_counts_nowhere():
  # Images 0 and 2 have no class b.
  probability, target, where = make(4)
  probability[..., 1] = 0.9
  _, parts = resampling.by_patient(resampling.image_sums(probability, target, where), range(4))
  without = resampling.scores(parts, [[1, 0, 1, 0]])["dice"][0]
  (only,) = resampling.scores({name: x[..., :1] for name, x in parts.items()}, [[1, 0, 1, 0]])[
    "dice"
  ]
  assert without == pytest.approx(only)
  assert resampling.scores(parts, [[0, 1, 0, 0]])["dice"][0] < without


def test_the_same_number_everywhere_has_no_calibration_error():
  probability, target, where = make(4)
  probability[...] = 0.2
  _, parts = resampling.by_patient(resampling.image_sums(probability, target, where), range(4))
  scores = resampling.scores(parts, np.ones((1, 4)))
  assert np.isnan(scores["ece"][0]) and scores["brier"][0] > 0 and scores["dice"][0] == 0
  predicted = probability >= np.float32([0.2, 1, 1])
  sums = resampling.image_sums(probability, target, where, predicted=predicted)
  assert sums["prediction_area"][0].tolist() == [120, 0, 0]


def test_intervals_are_of_the_mean_over_seeds_and_from_ten_patients_on():
  seeds = [parts_of(12, seed) for seed in (1, 2)]
  rows = resampling.summarize(seeds)
  each = [resampling.scores(parts, np.ones((1, 12)))["dice"][0] for parts in seeds]
  assert rows["dice"]["value"] == pytest.approx(np.mean(each))
  assert rows["dice"]["seeds"] == pytest.approx(each)
  assert rows["dice"]["sd"] == pytest.approx(np.std(each, ddof=1))
  low, high = rows["dice"]["interval"]
  assert low < rows["dice"]["value"] < high
  assert resampling.summarize([parts_of(9)])["dice"]["interval"] is None
  assert resampling.summarize([parts_of(9)])["dice"]["sd"] is None
  assert "dice_raters" not in rows


def test_differences_are_paired():
  one, other = [parts_of(12, 1)], [parts_of(12, 2)]
  assert resampling.differences(one, one)["iou"] == {"value": 0.0, "interval": [0.0, 0.0]}
  found = resampling.differences(one, other)["brier"]
  back = resampling.differences(other, one)["brier"]
  assert found["value"] == pytest.approx(-back["value"]) and found["value"] != 0
  assert found["interval"] == pytest.approx([-back["interval"][1], -back["interval"][0]])
  assert resampling.differences([parts_of(9, 1)], [parts_of(9, 2)])["dice"]["interval"] is None
