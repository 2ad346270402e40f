import functools
import json
import math

import numpy as np
import pytest
import sklearn.metrics

from lus_jax.evaluation import clinical
from lus_jax.evaluation import ratio as ratio_lib
from lus_jax.evaluation.ratio import Ratio


def _values(ratios):
  return {name: ratio.value() for name, ratio in ratios.items()}


def _sums(ratio):
  return dict(
    zip(ratio.patients, zip(ratio.numerator, ratio.denominator, strict=True), strict=True)
  )


def test_a_ratio_divides_sums():
  ratio = Ratio(("a", "b"), np.array([1.0, 8.0]), np.array([2.0, 2.0]))
  assert ratio.value() == 9 / 4
  assert Ratio(("a", "b"), ratio.numerator, ratio.denominator, root=True).value() == 1.5
  assert type(ratio.value()) is float
  assert Ratio(("a",), np.zeros(1), np.zeros(1)).value() is None
  assert Ratio((), np.zeros(0), np.zeros(0)).value() is None
  found = ratio.of(np.array([3.0, 0.0]), np.array([4.0, 0.0]))
  assert found[0] == 0.75 and math.isnan(found[1])


# P(Decrease), P(Same), P(Increase), label, same day, patient.
PAIRS = [
  (0.2, 0.3, 0.5, 2, False, "b"),  # exactly half: argmax says Increase, two classes say the rest
  (0.1, 0.3, 0.6, 2, False, "b"),
  (0.3, 0.3, 0.4, 0, False, "a"),  # argmax says Increase and is wrong, two classes are right
  (0.3, 0.3, 0.4, 2, False, "a"),  # the other way round
  (0.1, 0.8, 0.1, 1, True, "a"),
  (0.5, 0.4, 0.1, 1, True, "b"),  # 3 classes are wrong, two are right
  (0.2, 0.2, 0.6, 1, True, "c"),  # both are wrong; c has no pair of two days
]


SHARES = np.array([0.25, 0.5, 0.25])


def _sf_change(**options):
  columns = list(zip(*PAIRS, strict=True))
  return clinical.sf_change(
    logits=np.log(np.array(columns[:3]).T) + np.arange(len(PAIRS))[:, None] * 100.0,
    labels=columns[3],
    same_day=columns[4],
    patients=columns[5],
    **{"majority3": 1, "majority2": 0, "shares": SHARES} | options,
  )


def test_sf_change_by_hand():
  ratios = _sf_change()
  # Expected changes are 1.3, 1.5, 1.1 (Decrease), 1.1, 1 (Same), .6 (Same), 1.4 (Same). An Increase
  # is above the Decrease in 2 pairs of 3, and equal but for rounding in one; a Same in one of 3;
  # and an Increase above a Same in 7 of 9.
  assert ratios.pop("auroc_ordinal").value() == pytest.approx(10.5 / 15, abs=0.5 / 15 + 1e-9)
  assert _values(ratios) == {
    "accuracy3": 4 / 7,
    "accuracy2_merged": 5 / 7,
    "accuracy2": 4 / 7,
    "accuracy3_no_same_day": 3 / 4,
    "accuracy2_merged_no_same_day": 3 / 4,
    "accuracy2_no_same_day": 2 / 4,
    "majority3": 3 / 7,
    "majority2": 4 / 7,
    "brier": pytest.approx((0.38 + 0.26 + 0.74 + 0.54 + 0.06 + 0.62 + 1.04) / 7),
    # Of Same (.0625 + .25 + .0625), of the others (.5625 + .25 + .0625).
    "brier_constant": pytest.approx((3 * 0.375 + 4 * 0.875) / 7),
  }
  assert _sums(ratios["accuracy3"]) == {"a": (2, 3), "b": (2, 3), "c": (0, 1)}
  assert _sums(ratios["accuracy2_merged"]) == {"a": (2, 3), "b": (3, 3), "c": (0, 1)}
  assert _sums(ratios["accuracy2"]) == {"a": (2, 3), "b": (2, 3), "c": (0, 1)}
  assert _sums(ratios["accuracy3_no_same_day"]) == {"a": (1, 2), "b": (2, 2), "c": (0, 0)}
  assert _sums(ratios["accuracy2_no_same_day"]) == {"a": (1, 2), "b": (1, 2), "c": (0, 0)}


def test_sf_change_says_the_majority_class_it_is_given():
  ratios = _sf_change(majority3=0, majority2=1)
  assert ratios["majority3"].value() == 1 / 7
  assert ratios["majority2"].value() == 3 / 7


def test_equal_probabilities_are_the_first_class():
  options = {"same_day": [True], "patients": ["a"], "majority3": 1, "majority2": 0}
  options["shares"] = SHARES
  found = clinical.sf_change(logits=[[0.0, 0.0, 0.0]], labels=[0], **options)
  assert found["accuracy3"].value() == 1
  assert found["accuracy2"].value() == 1
  # Half against half, exactly: not Increase, in either reading.
  found = clinical.sf_change(logits=[[0.0, -np.inf, 0.0]], labels=[2], **options)
  assert found["accuracy2"].value() == found["accuracy2_merged"].value() == 0


def test_same_day_pairs_alone_leave_the_other_accuracies_undefined():
  found = clinical.sf_change(
    logits=[[0.0, 2.0, 0.0]],
    labels=[1],
    same_day=[True],
    patients=["a"],
    majority3=1,
    majority2=0,
    shares=SHARES,
  )
  assert found["accuracy3"].value() == 1
  assert found["accuracy3_no_same_day"].value() is None
  assert found["accuracy2_no_same_day"].value() is None


# Prediction, target, patient, day: on day 1 of 'a' the mean is .4, the median .3, the maximum .8.
VIDEOS = {
  "predictions": [0.1, 0.9, 0.3, 0.8, 0.5],
  "targets": [0.6, 0.7, 0.6, 0.6, 0.4],
  "patients": ["a", "b", "a", "a", "a"],
  "days": [1, 1, 1, 1, 2],
}


def test_sf_ratio_by_hand():
  ratios = clinical.sf_ratio(**VIDEOS, constant=0.5)
  expected = {
    "rmse_mean": (0.2**2 + 0.1**2 + 0.2**2) / 3,
    "rmse_median": (0.3**2 + 0.1**2 + 0.2**2) / 3,
    "rmse_max": (0.2**2 + 0.1**2 + 0.2**2) / 3,
    "rmse_video": (0.5**2 + 0.2**2 + 0.3**2 + 0.2**2 + 0.1**2) / 5,
    "rmse_constant": (0.1**2 + 0.1**2 + 0.2**2) / 3,
    "rmse_constant_median": (0.1**2 + 0.1**2 + 0.2**2) / 3,
    "rmse_constant_max": (0.1**2 + 0.1**2 + 0.2**2) / 3,
  }
  assert list(ratios) == list(expected)
  for name, value in expected.items():
    assert ratios[name].value() == pytest.approx(math.sqrt(value))
    assert ratios[name].root
  assert _sums(ratios["rmse_median"]) == {
    "a": (pytest.approx(0.3**2 + 0.1**2), 2),
    "b": (pytest.approx(0.2**2), 1),
  }
  assert _sums(ratios["rmse_video"])["a"][1] == 4


def test_targets_that_differ_between_views_are_summarised_alike():
  found = clinical.sf_ratio(
    predictions=[0.0, 1.0, 5.0],
    targets=[1.0, 1.0, 4.0],
    patients=["a"] * 3,
    days=[-1] * 3,
    constant=0.0,
  )
  assert found["rmse_mean"].value() == 0
  assert found["rmse_median"].value() == 0
  assert found["rmse_max"].value() == 1
  assert found["rmse_constant"].value() == 2
  assert found["rmse_constant_median"].value() == 1
  assert found["rmse_constant_max"].value() == 4


def test_patient_days_are_table_rows():
  rows = clinical.patient_days(**VIDEOS)
  assert [(row["patient"], row["day"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1)]
  first = {"measured": 0.6, "mean": 0.4, "median": 0.3, "max": 0.8}
  assert rows[0] == {"patient": "a", "day": 1} | {k: pytest.approx(v) for k, v in first.items()}
  assert rows[2] == {"patient": "b", "day": 1, "measured": 0.7} | dict.fromkeys(
    ("mean", "median", "max"), 0.9
  )
  json.dumps(rows, allow_nan=False)


# Views (no, yes) of a patient; None is missing.
VOTES = [
  ([(0, 1), (0, 1), (9, 0)], 1, [1, 2]),  # the majority, whatever the sums
  ([(0, 1), (3, 0), None], 0, [1, 1]),  # a tie goes to the larger sum: 3 to 1
  ([(0, 4), (3, 0), None], 1, [1, 1]),
  ([(0, 1), None, None], 1, [0, 1]),
  ([(5, 5), (0, 1), None], 1, [0, 1]),  # equal logits: no vote
  ([(5, 5), (2, 2), None], 0, [0, 0]),  # nobody votes, equal sums: no
  ([(0, 2), (2, 0), (7, 7)], 0, [1, 1]),  # votes and sums equal: no
  ([(-1, -3), (-5, -2), None], 1, [1, 1]),  # sums of logits, not of their sizes: -6 to -5
]


def _views(votes):
  present = np.array([[view is not None for view in views] for views in votes])
  logits = [[(math.nan, 99) if view is None else view for view in views] for views in votes]
  return np.array(logits, np.float32), present


@pytest.mark.parametrize(("views", "expected", "counts"), VOTES)
def test_views_vote(views, expected, counts):
  predicted, votes = clinical.vote(*_views([views]))
  assert predicted.tolist() == [expected]
  assert votes.tolist() == [counts]


def test_patients_vote_apart_from_each_other():
  predicted, votes = clinical.vote(*_views([views for views, _, _ in VOTES]))
  assert predicted.tolist() == [expected for _, expected, _ in VOTES]
  assert votes.tolist() == [counts for _, _, counts in VOTES]
  with pytest.raises(ValueError, match="without any view"):
    clinical.vote(*_views([[(0, 1)], [None]]))


# The squared distance of a logit of 1 from a yes.
YES_OFF = (1 - 1 / (1 + np.exp(-1))) ** 2


def _readmission(labels, predicted, majority=0):
  logits = np.array([[[0.0, 2.0 * p - 1]] for p in predicted])
  return clinical.readmission(
    logits=logits,
    present=np.ones((len(labels), 1), bool),
    labels=labels,
    patients=list("dcba")[: len(labels)],
    majority=majority,
    prevalence=0.25,
  )


def test_readmission_by_hand():
  ratios = _readmission([1, 1, 1, 0], [1, 0, 1, 1])
  assert _values(ratios) == {
    "accuracy": 2 / 4,
    "recall": 2 / 3,
    "precision": 2 / 3,
    # Of the pairs of a yes and the one no, two are equal and one is the wrong way.
    "auroc": (0.5 + 0.5 + 0) / 3,
    "sensitivity": 2 / 3,
    "specificity": 0,
    "majority": 1 / 4,
    # Margins are 1 and -1.
    "brier": pytest.approx((2 * YES_OFF + 2 * (1 - YES_OFF**0.5) ** 2) / 4),
    "brier_constant": pytest.approx((3 * 0.75**2 + 0.25**2) / 4),
  }
  # Patients are sorted: 'd' came first.
  assert _sums(ratios["recall"]) == {"a": (0, 0), "b": (1, 1), "c": (0, 1), "d": (1, 1)}
  assert _sums(ratios["precision"]) == {"a": (0, 1), "b": (1, 1), "c": (0, 0), "d": (1, 1)}
  assert _readmission([1, 1, 1, 0], [1, 0, 1, 1], majority=1)["majority"].value() == 3 / 4


def test_undefined_precision_and_recall_are_0_and_counted():
  nobody = ratio_lib.fold_row(_readmission([1, 0], [0, 0]))
  assert nobody == {
    "accuracy": 0.5,
    "recall": 0.0,
    "precision": 0.0,
    "precision_defined": False,
    "auroc": 0.5,
    "sensitivity": 0.0,
    "specificity": 1.0,
    "majority": 0.5,
    "brier": pytest.approx(((1 - YES_OFF**0.5) ** 2 + YES_OFF) / 2),
    "brier_constant": pytest.approx((0.75**2 + 0.25**2) / 2),
  }
  assert _readmission([1, 0], [0, 0])["precision"].value() is None
  wrong = ratio_lib.fold_row(_readmission([0, 0], [1, 0]))
  assert (wrong["precision"], wrong["precision_defined"], wrong["recall"]) == (0.0, True, 0.0)
  # Without a true case nothing can be said of how many are found.
  assert wrong["sensitivity"] is wrong["auroc"] is None
  assert wrong["specificity"] == 0.5


def test_auroc_sensitivity_and_specificity_are_those_of_sklearn():
  random = np.random.default_rng(3)
  n, views = 40, 6
  labels = random.integers(0, 2, n)
  present = random.random((n, views)) < 0.7
  present[:, 0] = True
  # Rounded, so that scores are equal now and then.
  logits = np.round(random.normal(size=(n, views, 2)) + 0.3 * labels[:, None, None] * [0, 1], 0)
  names = [f"p{i}" for i in random.permutation(n)]
  found = clinical.readmission(
    logits=logits, present=present, labels=labels, patients=names, majority=0, prevalence=0.5
  )
  score = [(row[here, 1] - row[here, 0]).mean() for row, here in zip(logits, present, strict=True)]
  predicted, _ = clinical.vote(logits, present)
  assert len(set(score)) < n
  assert found["auroc"].value() == pytest.approx(sklearn.metrics.roc_auc_score(labels, score))
  recall = functools.partial(sklearn.metrics.recall_score, labels, predicted)
  assert found["sensitivity"].value() == pytest.approx(recall(pos_label=1))
  assert found["specificity"].value() == pytest.approx(recall(pos_label=0))
  # A resample that draws patients several times weighs them so often.
  counts = random.multinomial(n, np.full(n, 1 / n), 5).astype(float)
  weights = counts[:, np.searchsorted(sorted(names), names)]
  expected = [sklearn.metrics.roc_auc_score(labels, score, sample_weight=w) for w in weights]
  np.testing.assert_allclose(found["auroc"].resampled(counts), expected)


def test_a_concordance_counts_every_pair_of_items_of_different_classes():
  random = np.random.default_rng(1)
  n, names = 60, np.array(list("edcba"))
  patients, labels = names[random.integers(0, 5, n)], random.integers(0, 3, n)
  scores = np.round(random.normal(size=n) + 0.5 * labels, 1)
  found = ratio_lib.concordance(scores=scores, labels=labels, patients=patients)
  assert found.patients == tuple("abcde")
  wins, pairs = np.zeros((2, 5, 5))
  for i in range(n):
    for j in range(n):
      if labels[i] > labels[j]:
        at = "abcde".index(patients[i]), "abcde".index(patients[j])
        wins[at] += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        pairs[at] += 1
  np.testing.assert_array_equal(found.wins, wins)
  np.testing.assert_array_equal(found.pairs, pairs)
  # With one item a patient and two classes it is the AUROC.
  options = {"scores": scores[:9], "labels": labels[:9] > 1, "patients": list("ihgfedcba")}
  one, other = ratio_lib.concordance(**options), ratio_lib.auroc(**options)
  assert one.value() == other.value()
  np.testing.assert_array_equal(one.wins, other.wins)
  alone = ratio_lib.concordance(scores=[1.0, 2.0], labels=[1, 1], patients=["x", "y"])
  assert alone.value() is None


def test_other_undefined_metrics_are_none_in_a_row():
  undefined = Ratio(("a",), np.zeros(1), np.zeros(1))
  assert ratio_lib.fold_row({"accuracy2_no_same_day": undefined}) == {"accuracy2_no_same_day": None}


def test_confusion_counts_true_rows_and_predicted_columns():
  found = clinical.confusion([0, 0, 2, 1, 0], [1, 1, 2, 0, 0], 3)
  assert found == [[1, 2, 0], [1, 0, 0], [0, 0, 1]]
  assert json.dumps(clinical.confusion([], [], 2)) == "[[0, 0], [0, 0]]"
