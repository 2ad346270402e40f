import time
import tracemalloc

import numpy as np
import pytest

from lus_jax.data import pairs


def _brute_force(zone, allowed=lambda i, j: True):
  n = range(len(zone))
  return [[i, j] for i in n for j in n if i != j and zone[i] == zone[j] and allowed(i, j)]


def test_zones_pair_the_two_lungs():
  assert pairs.ZONES == {"L1": 1, "R1": 1, "L2": 2, "R2": 2, "L3": 3, "R3": 3}


@pytest.mark.parametrize(
  ("first", "second", "expected"),
  [
    (300.4, 300.0, 1),  # the same whole number
    (300.5, 300.0, 0),  # halves are rounded up ...
    (300.5, 301.0, 1),
    (301.5, 301.0, 0),  # ... whether the whole number is even or odd
    (301.5, 302.0, 1),
    (299.4, 299.6, 2),
    (120.0, 477.0, 2),
    (477.0, 120.0, 0),
    (0.5, 1.0, 1),  # NumPy rounds this half to 0
  ],
)
def test_change_of_whole_units(first, second, expected):
  assert pairs.change(first, second) == expected


def test_change_is_elementwise_and_refuses_the_unknown():
  found = pairs.change(np.float32([300, 310, 290]), np.float32([310, 300, 290.25]))
  assert found.tolist() == [2, 0, 1]
  assert found.dtype == np.int64
  with pytest.raises(ValueError, match="unknown S/F"):
    pairs.change([300, np.nan], [300, 300])


def test_within_patient_pairs():
  zone = [1, 2, 1, 1, 3, 1, 2, 1]
  patient = ["b", "b", "b", "a", "a", "a", "a", "c"]
  expected = [[0, 2], [2, 0], [3, 5], [5, 3]]
  assert pairs.within_patient_pairs(zone, patient).tolist() == expected


def test_within_patient_pairs_match_brute_force():
  random = np.random.default_rng(0)
  zone, patient = random.integers(1, 4, 60), random.integers(0, 5, 60).astype(str)
  found = pairs.within_patient_pairs(zone, patient)
  assert found.tolist() == _brute_force(zone, lambda i, j: patient[i] == patient[j])
  assert pairs.within_patient_pairs([1, 2], ["a", "a"]).shape == (0, 2)
  assert pairs.within_patient_pairs([], []).shape == (0, 2)


def test_all_training_pairs_are_enumerated_once():
  zone = np.random.default_rng(1).permutation([1] * 5 + [2] * 9 + [3] * 1)
  drawn = pairs.TrainingPairs(zone, cap=92, seed=0)
  assert len(drawn) == 5 * 4 + 9 * 8 == 92
  assert sorted(drawn[np.arange(92)].tolist()) == _brute_force(zone)
  assert len(pairs.TrainingPairs(zone, cap=93, seed=0)) == 92
  assert drawn[np.array([7, 7, 0])].tolist() == [drawn[i].tolist() for i in (7, 7, 0)]
  assert len(pairs.TrainingPairs([1, 2, 3], cap=5, seed=0)) == 0
  assert len(pairs.TrainingPairs([], cap=5, seed=0)) == 0


def test_capped_training_pairs_are_distinct_and_seeded():
  zone = np.arange(50) % 3
  drawn = {seed: pairs.TrainingPairs(zone, cap=100, seed=seed) for seed in (0, 1)}
  found = {seed: p[np.arange(len(p))] for seed, p in drawn.items()}
  assert len(drawn[0]) == 100
  assert len(np.unique(found[0], axis=0)) == 100
  assert (zone[found[0][:, 0]] == zone[found[0][:, 1]]).all()
  assert (found[0][:, 0] != found[0][:, 1]).all()
  again = pairs.TrainingPairs(zone, cap=100, seed=0)
  np.testing.assert_array_equal(again[np.arange(100)], found[0])
  assert (found[0] != found[1]).any()


def test_capped_training_pairs_are_uniform():
  # Zone 1 has 90 pairs, zone 2 has 870: 3 of 32 draws are of zone 1.
  zone = np.array([1] * 10 + [2] * 30)
  of_zone_1, seen = 0, np.zeros((40, 40), int)
  for seed in range(200):
    drawn = pairs.TrainingPairs(zone, cap=96, seed=seed)[np.arange(96)]
    of_zone_1 += np.sum(zone[drawn[:, 0]] == 1)
    np.add.at(seen, tuple(drawn.T), 1)
  assert abs(of_zone_1 / 200 - 9) < 0.7  # standard error .19
  allowed = seen[(zone[:, None] == zone) & ~np.eye(40, dtype=bool)]
  assert allowed.sum() == seen.sum()
  # Each of 960 pairs is drawn with probability .1: mean 20, standard deviation 4.2.
  assert allowed.min() > 0 and allowed.max() < 45
  assert 3.5 < allowed.std() < 5


def test_a_hundred_thousand_videos_need_neither_time_nor_memory():
  zone = np.random.default_rng(0).integers(1, 4, 100_000)
  tracemalloc.start()
  started = time.perf_counter()
  drawn = pairs.TrainingPairs(zone, cap=20_000, seed=0)
  found = drawn[np.arange(20_000)]
  seconds = time.perf_counter() - started
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert (zone[found[:, 0]] == zone[found[:, 1]]).all()
  assert len(np.unique(found, axis=0)) == 20_000
  assert peak < 50e6
  assert seconds < 5


@pytest.mark.parametrize("seed", range(5))
def test_class_counts_match_brute_force(seed):
  random = np.random.default_rng(seed)
  zone = random.integers(1, 4, 40)
  sf_ratio = random.integers(600, 640, 40) / 2  # halves and many equal ones
  every = np.array(_brute_force(zone))
  expected = np.bincount(pairs.change(*sf_ratio[every.T]), minlength=3)
  found = pairs.class_counts(zone, sf_ratio)
  assert found.tolist() == expected.tolist()
  assert found.sum() == len(every)


def test_class_counts_by_hand():
  # Zone 1: 300.5 and 301 are the same, 200 is below: 2 of 6 ordered pairs are "Same".
  assert pairs.class_counts([1, 1, 1, 2], [300.5, 301, 200, 100]).tolist() == [2, 2, 2]
  with pytest.raises(ValueError, match="unknown S/F"):
    pairs.class_counts([1], [np.nan])
