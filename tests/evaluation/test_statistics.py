import dataclasses
import itertools
import json
import math
import time

import numpy as np
import pytest
from scipy import stats

from lus_jax.benchmarks import error_rate
from lus_jax.evaluation import clinical, statistics
from lus_jax.evaluation import ratio as ratio_lib
from lus_jax.evaluation.ratio import Ratio

THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)


def _ratio(numerator, denominator=None, *, root=False, patients=None):
  numerator = np.asarray(numerator, np.float64)
  if denominator is None:
    denominator = np.ones(len(numerator))
  patients = patients or tuple(f"p{i:03d}" for i in range(len(numerator)))
  return Ratio(tuple(patients), numerator, np.asarray(denominator, np.float64), root)


def _metric(numerator, denominator, root):
  if sum(denominator) == 0:
    return None
  value = sum(numerator) / sum(denominator)
  return math.sqrt(value) if root else value


def test_average_is_within_patients_first():
  first = _ratio([1, 4], [2, 4], patients="ab", root=True)
  second = _ratio([6, 3], [6, 4], patients="bc", root=True)
  found = statistics.average([first, second])
  assert found.patients == ("a", "b", "c")
  assert found.numerator.tolist() == [1, 5, 3]
  assert found.denominator.tolist() == [2, 5, 4]
  assert found.root
  assert found.value() == math.sqrt(9 / 11)


def test_interval_matches_resampling_patient_by_patient():
  random = np.random.default_rng(0)
  a = _ratio(random.random(11), random.integers(1, 9, 11), root=True)
  b = _ratio(random.random(11), random.integers(1, 9, 11), root=True)
  single, double = [], []
  for _ in range(10_000):
    drawn = random.integers(0, 11, 11)
    values = [_metric(x.numerator[drawn], x.denominator[drawn], True) for x in (a, b)]
    single.append(values[0])
    double.append(values[0] - values[1])
  for found, reference in (
    (statistics.interval(a), single),
    (statistics.difference_interval(a, b), double),
  ):
    low, high, undefined = found
    # Both are 10,000 draws: ends differ by a few hundredths of the spread.
    tolerance = 0.08 * np.std(reference)
    assert low == pytest.approx(np.percentile(reference, 2.5), abs=tolerance)
    assert high == pytest.approx(np.percentile(reference, 97.5), abs=tolerance)
    assert undefined == 0


def test_interval_of_a_share_is_that_of_the_binomial_distribution():
  low, high, undefined = statistics.interval(_ratio([1] * 40 + [0] * 60))
  assert (low, high) == pytest.approx((0.31, 0.5), abs=0.011)
  assert tuple(np.array([low, high]) * 100) == pytest.approx(
    stats.binom(100, 0.4).ppf([0.025, 0.975]), abs=1
  )
  assert undefined == 0


def test_intervals_need_ten_patients_and_are_seeded():
  values = np.random.default_rng(0).random(10)
  assert statistics.interval(_ratio(values[:9])) is None
  assert statistics.difference_interval(_ratio(values[:9]), _ratio(values[:9])) is None
  found = statistics.interval(_ratio(values))
  assert found == statistics.interval(_ratio(values))
  assert found != statistics.interval(_ratio(values), seed=1)
  assert all(type(x) is float for x in found[:2])


def test_undefined_resamples_are_counted_and_left_out():
  ratio = _ratio([1] + [0] * 9, [1] + [0] * 9)
  low, high, undefined = statistics.interval(ratio)
  assert (low, high) == (1, 1)
  # A resample is undefined without the one patient that counts.
  assert undefined == pytest.approx(10_000 * 0.9**10, abs=200)
  assert statistics.interval(_ratio([0] * 10, [0] * 10)) is None
  assert statistics.difference_interval(ratio, _ratio([0] * 10, [0] * 10)) is None


def test_the_difference_is_taken_on_the_same_resamples():
  values = np.random.default_rng(0).random(12)
  low, high, _ = statistics.difference_interval(_ratio(values + 0.25), _ratio(values))
  assert low == pytest.approx(0.25) and high == pytest.approx(0.25)
  with pytest.raises(ValueError, match="same patients"):
    statistics.difference_interval(_ratio([1], patients="a"), _ratio([1], patients="b"))


def _slow_permutation(a, b):
  def difference(swap):
    sides = [(b, a) if s else (a, b) for s in swap]
    values = [
      _metric(
        [side[k].numerator[i] for i, side in enumerate(sides)],
        [side[k].denominator[i] for i, side in enumerate(sides)],
        a.root,
      )
      for k in (0, 1)
    ]
    return None if None in values else abs(values[0] - values[1])

  swaps = list(itertools.product((False, True), repeat=len(a.patients)))
  observed = difference(swaps[0])
  extreme = [d is None or d >= observed - 1e-12 for d in map(difference, swaps)]
  return sum(extreme) / len(swaps)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_permutation_matches_a_loop_over_all_swaps(seed, root):
  random = np.random.default_rng(seed)
  denominator = random.integers(1, 5, 7)
  a = _ratio(random.integers(0, 5, 7), denominator, root=root)
  b = _ratio(random.integers(2, 6, 7), denominator, root=root)
  assert statistics.permutation_test(a, b) == _slow_permutation(a, b)
  assert statistics.permutation_test(b, a) == _slow_permutation(a, b)


def test_exact_p_by_hand():
  # a is right for 4 patients and b for none: only swapping nobody or everybody is as extreme.
  assert statistics.permutation_test(_ratio([1] * 4), _ratio([0] * 4)) == 2 / 16
  # Differences +1 +1 -1: the sum is +-1 in 6 of 8 swaps and +-3 in 2, all at least 1.
  assert statistics.permutation_test(_ratio([1, 1, 0]), _ratio([0, 0, 1])) == 1
  # Differences 1, 2, 3: |sum| >= 4 for +++, -++ and their opposites.
  assert statistics.permutation_test(_ratio([1, 2, 3]), _ratio([0, 0, 0])) == 2 / 8
  assert statistics.permutation_test(_ratio([0, 2, 3]), _ratio([1, 0, 0])) == 4 / 8
  # Equal models: every swap is as extreme, although sums in another order differ by rounding.
  same = _ratio([0.1, 0.2, 0.3, 0.7], [3, 7, 11, 13], root=True)
  assert statistics.permutation_test(same, same) == 1
  # All patients alike, so rounding alone tells these sums apart.
  assert statistics.permutation_test(_ratio([0.1] * 10), _ratio([0.3] * 10)) == 2 / 1024


@pytest.mark.parametrize("seed", range(5))
def test_rounding_does_not_turn_equal_differences_into_smaller_ones(seed):
  # Tenths are no binary fractions; whole numbers are exact.
  a, b = np.random.default_rng(seed).integers(1, 10, (2, 10))
  exact = statistics.permutation_test(_ratio(a), _ratio(b))
  assert statistics.permutation_test(_ratio(a / 10), _ratio(b / 10)) == exact


def test_undefined_swaps_count_as_extreme():
  # Precision: 'a' predicts one patient positive and is right, 'b' the other one and is wrong.
  a, b = _ratio([1, 0], [1, 0]), _ratio([0, 0], [0, 1])
  # Nobody or both swapped: |1 - 0|. One swapped: one model predicts nobody, undefined.
  assert statistics.permutation_test(a, b) == 1 == _slow_permutation(a, b)
  # With one more wrong prediction each, swapping one of them gives |0 - 1/3| < |1/2 - 0|.
  wide = _ratio([1, 0, 0], [1, 0, 1]), _ratio([0, 0, 0], [0, 1, 1])
  assert statistics.permutation_test(*wide) == 4 / 8
  assert statistics.permutation_test(a, _ratio([0, 0], [0, 0])) is None
  with pytest.raises(ValueError, match="same patients"):
    statistics.permutation_test(a, _ratio([1, 0], patients="xy"))


def test_many_patients_are_drawn():
  always = statistics.permutation_test(_ratio([1] * 20), _ratio([0] * 20))
  assert always == 1 / 10_001
  # 15 patients, 12 against 3: P(at least 12 or at most 3 heads of 15).
  found = statistics.permutation_test(
    _ratio([1] * 12 + [0] * 3), _ratio([0] * 12 + [1] * 3), seed=4
  )
  exact = 2 * stats.binom(15, 0.5).cdf(3)
  assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))
  again = statistics.permutation_test(
    _ratio([1] * 12 + [0] * 3), _ratio([0] * 12 + [1] * 3), seed=4
  )
  assert again == found
  # 14 patients are still enumerated: the p value is exact.
  found = statistics.permutation_test(_ratio([1] * 11 + [0] * 3), _ratio([0] * 11 + [1] * 3))
  assert found == pytest.approx(2 * stats.binom(14, 0.5).cdf(3), abs=1e-12)


@pytest.mark.parametrize("n_patients", [12, 20])
def test_permutation_keeps_its_level_on_null_data(n_patients):
  random = np.random.default_rng(0)
  rejected = 0
  for _ in range(300):
    quality = random.random(n_patients)  # patients differ, the models do not
    pairs = random.integers(5, 30, n_patients)
    a, b = (_ratio(random.binomial(pairs, quality), pairs) for _ in range(2))
    rejected += statistics.permutation_test(a, b) < 0.05
  low, high = stats.binom(300, 0.05).ppf([0.0005, 0.9995])
  assert low <= rejected <= high


def test_groups_are_swapped_whole():
  # Four patients in two folds; within each the difference has one sign: 2 of 4 swaps are as large.
  a, b = _ratio([3, 2, 1, 2]), _ratio([0, 1, 0, 0])
  assert statistics.permutation_test(a, b) == 2 / 16
  assert statistics.permutation_test(a, b, groups=[0, 0, 1, 1]) == 2 / 4
  assert statistics.permutation_test(a, b, groups=["x", "y", "x", "x"]) == 2 / 4
  assert statistics.permutation_test(a, b, groups=[0, 0, 0, 0]) == 1
  assert statistics.permutation_test(a, b, groups=[3, 2, 1, 0]) == 2 / 16
  # Differences of the folds 4 and -1: together |3|, one of them swapped |5|.
  a, b = _ratio([3, 2, 0, 1]), _ratio([0, 1, 1, 1])
  assert statistics.permutation_test(a, b, groups=[0, 0, 1, 1]) == 1
  # More than 14 patients, but few groups: exact.
  many = _ratio([1] * 20), _ratio([0] * 20)
  assert statistics.permutation_test(*many, groups=np.arange(20) % 5) == 2 / 32


@pytest.mark.parametrize(("luck", "inflated"), [(0.0, False), (0.5, True)])
def test_folds_keep_the_level_where_patients_do_not(luck, inflated):
  options = {"folds": 6, "patients": 90, "luck": luck, "difference": 0.0, "repeats": 300}
  row = error_rate.measure(scheme="rotate", **options)
  low, high = stats.binom(300, 0.05).ppf([0.0005, 0.9995]) / 300
  assert low <= row["by_fold"] <= high
  assert (row["by_patient"] > 2 * high) == inflated
  assert inflated or low <= row["by_patient"] <= high
  # Six folds can never reach what Holm asks of eleven comparisons.
  assert row["by_fold_holm"] == 0 <= row["by_patient_holm"] <= row["by_patient"]
  # One test set for all networks: nothing can be swapped that the luck is not in.
  row = error_rate.measure(scheme="paper", **options)
  assert row["by_fold"] is None and (row["by_patient"] > high) == inflated


def test_the_error_rate_is_a_command(tmp_path, capsys):
  file = tmp_path / "rates.json"
  options = ["--folds", "2", "--patients", "4", "--repeats", "3", "--out", str(file)]
  error_rate.main(options)
  rows = json.loads(file.read_text())["rows"]
  assert [row["scheme"] for row in rows] == ["rotate"] * 8 + ["paper"] * 8
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 + len(rows) and {line.count("|") for line in lines} == {10}
  with pytest.raises(SystemExit):
    error_rate.main(["--folds", "9", "--patients", "8"])


def test_permutation_finds_a_planted_difference():
  random = np.random.default_rng(0)
  found = 0
  for _ in range(50):
    quality, pairs = random.random(12) * 0.8, random.integers(5, 30, 12)
    a = _ratio(random.binomial(pairs, quality + 0.2), pairs)
    b = _ratio(random.binomial(pairs, quality), pairs)
    found += statistics.permutation_test(a, b) < 0.05
  assert found > 45


def test_holm():
  assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  # 3 x .02 = .06 before 2 x .025 = .05: adjusted values never fall as p rises.
  assert statistics.holm([0.025, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
  assert statistics.holm([0.5, 0.6]) == [1, 1]
  assert statistics.holm([0.03]) == [0.03]
  assert statistics.holm([]) == []


def test_family_of_the_paper_is_eleven():
  pairs = statistics.family([*THRESHOLDS, "none", "true"])
  assert len(pairs) == 11
  assert len({frozenset(pair) for pair in pairs}) == 11
  assert sorted(pair for pair in pairs if pair[1] == 0) == [
    (t, 0) for t in (0.2, 0.4, 0.5, 0.6, 0.8, 1)
  ]
  assert sorted(pair for pair in pairs if pair[1] == 0.5) == [
    (t, 0.5) for t in (0.2, 0.4, 0.6, 0.8, 1)
  ]


def test_families_of_other_sweeps():
  assert statistics.family([0.0, 0.5]) == [(0.5, 0.0)]
  assert statistics.family([1.0, 0.6, 0.0, "none"]) == [(1.0, 0.0), (0.6, 0.0)]
  assert statistics.family([1.0, 0.5]) == [(1.0, 0.5)]
  assert statistics.family([1.0, 0.8]) == []


def test_nine_patients_can_decide_and_eight_cannot():
  assert statistics.smallest_p(9, 11) == 11 * 2 / 512
  assert statistics.smallest_p(8, 11) == 11 * 2 / 256
  assert statistics.smallest_p(9, 11) < 0.05 < statistics.smallest_p(8, 11)
  assert statistics.smallest_p(14, 1) == 2 / 2**14
  assert statistics.smallest_p(15, 2) == 2 / 10_001
  assert statistics.smallest_p(1, 11) == statistics.smallest_p(0, 0) == 1
  for n in (4, 9):  # what the test gives where every patient agrees
    p = statistics.permutation_test(_ratio([1] * n), _ratio([0] * n))
    assert statistics.holm([p] + [1] * 10)[0] == min(1, statistics.smallest_p(n, 11))


def _fold(right, pairs=4):
  n = len(right)
  return {"accuracy3": _ratio(right, [pairs] * n), "majority3": _ratio([1] * n, [pairs] * n)}


def test_summary_by_hand():
  members = {
    0.6: [_fold([4] * 9), _fold([2] * 9)],
    0.0: [_fold([1] * 9), _fold([1] * 9)],
    "none": [_fold([2] * 9), _fold([2] * 9)],
  }
  rows = statistics.summarize(members, primary="accuracy3", baseline="majority3")
  assert [row["threshold"] for row in rows] == [0.6, 0.0, "none"]
  assert rows[0] == {
    "threshold": 0.6,
    "n_patients": 9,
    "n_folds": 2,
    "metrics": {
      "accuracy3": {
        "mean": 0.75,
        "sd": pytest.approx(math.sqrt(0.125)),
        "estimate": 0.75,
        "interval": None,
        "undefined_resamples": 0,
      },
      "majority3": {
        "mean": 0.25,
        "sd": 0.0,
        "estimate": 0.25,
        "interval": None,
        "undefined_resamples": 0,
      },
    },
    "differences": [
      {"against": "majority3", "metric": "accuracy3", "difference": 0.5, "interval": None},
      {"against": "none", "metric": "accuracy3", "difference": 0.25, "interval": None},
    ],
    "comparisons": [{"against": 0.0, "difference": 0.5, "p": 2 / 512, "p_holm": 2 / 512}],
    "smallest_attainable_p": 2 / 512,
    "can_decide": True,
  }
  assert rows[1]["comparisons"] == rows[2]["comparisons"] == []
  assert [d["against"] for d in rows[2]["differences"]] == ["majority3"]
  eight = {t: [_fold([1] * 4)] for t in THRESHOLDS}
  row = statistics.summarize(eight, primary="accuracy3", baseline="majority3")[0]
  assert row["can_decide"] is False
  assert row["metrics"]["accuracy3"]["sd"] is None
  assert [c["p"] for c in row["comparisons"]] == [1, 1]


def test_summary_of_folds_swaps_folds():
  fold = [
    {name: dataclasses.replace(ratio, patients=patients) for name, ratio in _fold([4] * 3).items()}
    for patients in (("a", "b", "c"), ("d", "e", "f"))
  ]
  worse = [
    {name: dataclasses.replace(ratio, numerator=0 * ratio.numerator) for name, ratio in one.items()}
    for one in fold
  ]
  groups = {name: i for i, one in enumerate(fold) for name in one["accuracy3"].patients}
  options = {"primary": "accuracy3", "baseline": "majority3"}
  row = statistics.summarize({0.6: fold, 0.0: worse}, **options, groups=groups)[0]
  assert row["n_patients"] == 6 and row["comparisons"][0]["p"] == 2 / 4
  assert row["smallest_attainable_p"] == 2 / 4 and row["can_decide"] is False
  row = statistics.summarize({0.6: fold, 0.0: worse}, **options)[0]
  assert row["comparisons"][0]["p"] == row["smallest_attainable_p"] == 2 / 64


def test_summary_corrects_over_the_whole_task():
  random = np.random.default_rng(0)
  members = {t: [_fold(random.integers(0, 5, 12))] for t in THRESHOLDS}
  members[1.0] = [_fold([4] * 12)]
  rows = statistics.summarize(members, primary="accuracy3", baseline="majority3")
  found = [c for row in rows for c in row["comparisons"]]
  assert len(found) == 11
  expected = statistics.holm([c["p"] for c in found])
  assert [c["p_holm"] for c in found] != [c["p"] for c in found]
  order = [c["against"] for c in rows[0]["comparisons"]]
  assert order == [0.0, 0.5]
  assert [c["p_holm"] for c in found] == pytest.approx(expected)
  for row in rows:
    interval = row["metrics"]["accuracy3"]["interval"]
    assert interval[0] <= row["metrics"]["accuracy3"]["estimate"] <= interval[1]
    ratio = members[row["threshold"]][0]["accuracy3"]
    assert interval == list(statistics.interval(ratio)[:2])
    assert row["differences"][0]["interval"] == list(
      statistics.difference_interval(ratio, members[1.0][0]["majority3"])[:2]
    )


def test_summary_of_undefined_metrics_is_valid_json():
  def fold(predicted):
    n = len(predicted)
    return {
      "accuracy": _ratio([1] * n),
      "majority": _ratio([1] * n),
      "precision": _ratio(predicted, predicted),
      "accuracy_no_same_day": _ratio([0] * n, [0] * n),
    }

  members = {0.5: [fold([0, 0]), fold([1, 0])], 0.0: [fold([0, 0]), fold([0, 0])]}
  rows = statistics.summarize(members, primary="accuracy", baseline="majority")
  json.dumps(rows, allow_nan=False)
  # Precision is 0 where nobody was predicted; over patients it is undefined.
  assert rows[0]["metrics"]["precision"]["mean"] == 0.5
  assert rows[0]["metrics"]["precision"]["estimate"] == 1
  assert rows[1]["metrics"]["precision"]["mean"] == 0
  assert rows[1]["metrics"]["precision"]["estimate"] is None
  none = {"mean": None, "sd": None, "estimate": None, "interval": None, "undefined_resamples": 0}
  assert rows[0]["metrics"]["accuracy_no_same_day"] == none
  # An undefined primary metric compares with nothing.
  rows = statistics.summarize(members, primary="precision", baseline="majority")
  assert rows[0]["comparisons"] == [{"against": 0.0, "difference": None, "p": None, "p_holm": None}]
  assert rows[1]["differences"][0]["difference"] is None


def test_fold_means_leave_undefined_folds_out():
  def fold(same_day, other_day):
    return {"accuracy3": _ratio([same_day]), "x": _ratio([other_day], [other_day > 0])}

  folds = [fold(1, 0.0), fold(1, 0.5), fold(1, 0.75)]
  row = statistics.summarize({1.0: folds}, primary="accuracy3", baseline="accuracy3")[0]
  assert row["metrics"]["x"]["mean"] == 0.625
  assert row["metrics"]["x"]["sd"] == pytest.approx(0.25 / math.sqrt(2))


def test_per_patient_rows():
  folds = [
    {"rmse": _ratio([4, 0], [1, 0], root=True, patients="ab")},
    {"rmse": _ratio([5, 8], [1, 2], root=True, patients="ac")},
  ]
  rows = statistics.per_patient({0.5: folds, "none": folds[:1]})
  assert rows == [
    {"threshold": 0.5, "patient": "a", "rmse": pytest.approx(math.sqrt(4.5))},
    {"threshold": 0.5, "patient": "b", "rmse": None},
    {"threshold": 0.5, "patient": "c", "rmse": 2.0},
    {"threshold": "none", "patient": "a", "rmse": 2.0},
    {"threshold": "none", "patient": "b", "rmse": None},
  ]
  json.dumps(rows, allow_nan=False)


def test_a_whole_task_takes_seconds():
  random = np.random.default_rng(0)
  names = ["accuracy3", "majority3", "a", "b", "c", "d"]
  members = {
    t: [{name: _ratio(random.random(42), [9] * 42) for name in names} for _ in range(5)]
    for t in (*THRESHOLDS, "none", "true")
  }
  started = time.perf_counter()
  statistics.summarize(members, primary="accuracy3", baseline="majority3")
  statistics.per_patient(members)
  assert time.perf_counter() - started < 10


def test_scores_of_two_networks_are_not_compared():
  """The second fold's network scores everybody higher: within each the ranking is perfect."""
  one = ratio_lib.auroc(scores=[0.1, 0.3], labels=[0, 1], patients=["d", "a"])
  other = ratio_lib.auroc(scores=[5.0, 6.0, 5.5], labels=[0, 1, 0], patients=["b", "c", "e"])
  both = statistics.average([one, other])
  assert both.patients == tuple("abcde")
  assert both.value() == 1
  assert both.pairs.sum() == 3
  # Tested by two networks of which one is right: half.
  again = ratio_lib.auroc(scores=[0.3, 0.1], labels=[0, 1], patients=["d", "a"])
  assert statistics.average([one, again]).value() == 0.5
  alone = ratio_lib.auroc(scores=[1.0, 2.0], labels=[1, 1], patients=["x", "y"])
  assert alone.value() is None
  assert statistics.average([one, alone]).value() == 1


def test_an_auroc_has_an_interval_and_no_patients_row():
  random = np.random.default_rng(0)
  names = [f"p{i:02d}" for i in range(20)]
  labels = np.arange(20) % 2
  logits = np.zeros((20, 1, 2))
  logits[:, 0, 1] = labels + random.normal(size=20)
  fold = clinical.readmission(
    logits=logits,
    present=np.ones((20, 1), bool),
    labels=labels,
    patients=names,
    majority=0,
    prevalence=0.5,
  )
  (row,) = statistics.summarize({0.5: [fold, fold]}, primary="accuracy", baseline="majority")
  found = row["metrics"]["auroc"]
  assert found["interval"][0] < found["estimate"] < found["interval"][1]
  assert found["mean"] == pytest.approx(found["estimate"]) and found["sd"] == 0
  patients = statistics.per_patient({0.5: [fold, fold]})
  assert "auroc" not in patients[0] and patients[1]["specificity"] is None
