import math

import numpy as np
import pytest

from lus_jax.data import folds
from lus_jax.data.folds import Fold
from lus_jax.errors import UserError


def _cohort(n, seed=0, ones=None):
  """Patients with a binary label, here and there unknown, and a continuous one."""
  random = np.random.default_rng(seed)
  binary = random.choice([0, 1, math.nan], n, p=[0.6, 0.3, 0.1])
  if ones is not None:
    binary = (np.arange(n) < ones).astype(float)
  names = [f"p{i:03d}" for i in random.permutation(n)]
  return {
    name: (float(b), float(x)) for name, b, x in zip(names, binary, random.random(n), strict=True)
  }


def _counts(parts, labels):
  """How many patients of each value of the first label stand in each part."""
  return {
    value: [sum(repr(labels[name][0]) == value for name in part) for part in parts]
    for value in {repr(x[0]) for x in labels.values()}
  }


def _spread(counts):
  return max(counts) - min(counts)


@pytest.mark.parametrize("seed", range(20))
def test_paper_folds_validate_everyone_but_the_test_patients_once(seed):
  labels = _cohort(42, seed)
  test = sorted(labels)[3:8]
  made = folds.make_folds(labels, test=test, n_folds=5, cv="paper", seed=seed)
  assert len(made) == 5
  validated = [name for fold in made for name in fold.validation]
  assert sorted(validated) == sorted(set(labels) - set(test))
  for fold in made:
    assert fold.test == tuple(test)
    assert list(fold.train) == sorted(set(labels) - set(test) - set(fold.validation))
    assert list(fold.validation) == sorted(fold.validation)
  assert _spread([len(fold.validation) for fold in made]) <= 1
  for counts in _counts([fold.validation for fold in made], labels).values():
    assert _spread(counts) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_rotating_folds_test_everyone_once(seed):
  labels = _cohort(43, seed)
  made = folds.make_folds(labels, test=["p000"], n_folds=5, cv="rotate", seed=seed)
  assert len(made) == 6
  assert sorted(name for fold in made for name in fold.test) == sorted(labels)
  for i, fold in enumerate(made):
    assert fold.validation == made[(i + 1) % 6].test
    assert sorted(fold.train + fold.validation + fold.test) == sorted(labels)
  assert _spread([len(fold.test) for fold in made]) <= 1
  for counts in _counts([fold.test for fold in made], labels).values():
    assert _spread(counts) <= 1


def test_a_rare_class_reaches_every_fold():
  for seed in range(50):
    labels = _cohort(38, seed, ones=6)
    made = folds.make_folds(labels, test=["x"], n_folds=5, cv="paper", seed=seed)
    ones = _counts([fold.validation for fold in made], labels)["1.0"]
    assert sorted(ones) == [1, 1, 1, 1, 2]


def test_continuous_labels_are_dealt_in_blocks_of_neighbours():
  labels = {f"p{i:02d}": (float(i),) for i in range(20)}
  made = folds.make_folds(labels, test=["x"], n_folds=5, cv="paper", seed=3)
  blocks = [sorted(int(name[1:]) // 5 for name in fold.validation) for fold in made]
  assert blocks == [[0, 1, 2, 3]] * 5
  order = [[int(name[1:]) % 5 for name in fold.validation] for fold in made]
  assert len({tuple(column) for column in zip(*order, strict=True)}) > 1  # no fixed order


def test_the_second_label_is_balanced_within_the_first():
  labels = {f"p{i:02d}": (float(i % 2), float(i // 2)) for i in range(40)}
  made = folds.make_folds(labels, test=["x"], n_folds=5, cv="paper", seed=0)
  for fold in made:
    for first in (0, 1):
      ranks = sorted(labels[name][1] // 5 for name in fold.validation if labels[name][0] == first)
      assert ranks == [0, 1, 2, 3]


def test_folds_depend_on_the_seed_and_not_on_the_order_of_patients():
  labels = {name: x[:1] for name, x in _cohort(30).items()}
  turned = dict(reversed(labels.items()))

  def make(labels, seed):
    return folds.make_folds(labels, test=["p001"], n_folds=3, cv="paper", seed=seed)

  assert make(labels, 0) == make(turned, 0)
  assert make(labels, 0) != make(labels, 1)


def test_ties_are_broken_by_seed():
  labels = {f"p{i}": (1,) for i in range(10)}
  first = {
    folds.make_folds(labels, test=["x"], n_folds=5, cv="paper", seed=s)[0].validation
    for s in range(20)
  }
  assert len(first) > 10
  # The first five by name are no block: two of them may stand in one fold.
  assert any(max(fold) < "p5" for fold in first)


def test_as_many_folds_as_patients():
  made = folds.make_folds(dict.fromkeys("abcd", (0,)), test="d", n_folds=3, cv="paper", seed=0)
  assert sorted(fold.validation for fold in made) == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cv": "loo"}, r"config\.folds\.cv: 'loo'"),
    ({"n_folds": 1}, r"config\.folds\.n: 1 fold\(s\).*--config\.folds\.n=2"),
    ({"n_folds": 4}, r"config\.folds\.n: 3 patient\(s\) cannot fill 4 folds"),
    ({"n_folds": 4, "cv": "rotate"}, r"4 patient\(s\) cannot fill 5 folds"),
    ({"test": []}, r"none is left.*--config\.folds\.cv=rotate"),
  ],
)
def test_folds_that_cannot_be_made(options, message):
  labels = {name: (0,) for name in "abcd"}
  with pytest.raises(UserError, match=message):
    folds.make_folds(labels, **{"test": ["d"], "n_folds": 2, "cv": "paper", "seed": 0} | options)


FOLDS = [
  Fold(train=("a", "b"), validation=("c",), test=("z",)),
  Fold(train=("a", "c"), validation=("b",), test=("z",)),
]


def test_audit_passes_what_the_leakage_mode_allows():
  both = [["a", "b", "c"]] * 2
  folds.audit(FOLDS, leakage="paper")
  folds.audit(FOLDS, leakage="strict")
  folds.audit(FOLDS, leakage="paper", segmentation=both)
  folds.audit(FOLDS, leakage="strict", segmentation=[["a", "b"], ["c"]])
  folds.audit(FOLDS, leakage="paper", segmentation=both, initial=[["a", "b"], ["a", "c"]])


def test_audit_finds_planted_leaks():
  def fails(message, made=FOLDS, **options):
    with pytest.raises(UserError, match=message):
      folds.audit(made, **{"leakage": "paper"} | options)

  fails("fold 1: patient.* b in train and in validation", [FOLDS[0], Fold(("a", "b"), ("b",), ())])
  fails("fold 0: patient.* a, b in train and in test", [Fold(("b", "a"), ("c",), ("b", "a"))])
  fails("fold 0: patient.* c in validation and in test", [Fold(("a",), ("c",), ("c", "d"))])
  fails("fold 1: .* z in test and in segmentation", segmentation=[["a"], ["a", "z"]])
  fails("leakage=strict .cv=rotate always needs it", segmentation=[["z"], ["z"]])
  fails("fold 0: .* c in validation and in seg", leakage="strict", segmentation=[["c"], []])
  fails("fold 1: .* z in test and in seg", leakage="strict", segmentation=[[], ["z"]])
  fails("fold 1: .* z in test and in the training of the model", initial=[["a"], ["z"]])
  fails("fold 1: .* b in validation and in the training of", initial=[["a", "b"], ["b"]])
  fails("config.folds.leakage: 'none' is unknown", leakage="none")


def test_audit_shortens_long_lists():
  many = tuple("abcdefgh")
  with pytest.raises(UserError, match=r"patient\(s\) a, b, c, d, e and 3 more in train"):
    folds.audit([Fold(many, many, ())], leakage="paper")


def test_rotating_folds_do_not_pass_with_the_paper_leakage():
  labels = {f"p{i}": (i,) for i in range(12)}
  made = folds.make_folds(labels, test=["p0"], n_folds=3, cv="rotate", seed=0)
  with pytest.raises(UserError, match="cv=rotate always needs it"):
    folds.audit(made, leakage="paper", segmentation=[[f"p{i}" for i in range(2, 12)]] * 4)
  folds.audit(made, leakage="strict", segmentation=[fold.train for fold in made])


def test_every_fold_needs_both_classes():
  labels = {"a": 0, "b": 1, "c": 0, "d": 1, "e": -1, "f": math.nan}
  good = Fold(("a", "b", "e"), ("c", "d", "f"), ())
  folds.check_classes([good], labels, what="readmitted_30d")
  one = Fold(("a", "b"), ("c", "e", "f", "unheard of"), ("d",))
  message = r"readmitted_30d: validation of fold 1 has 1 patient\(s\) of class 0 and 0 of class 1"
  with pytest.raises(UserError, match=message):
    folds.check_classes([good, one], labels, what="readmitted_30d")
  with pytest.raises(UserError, match=r"train of fold 0 has 0 patient\(s\) of class 0 and 1 of"):
    folds.check_classes([Fold(("b", "e"), ("a", "b"), ())], labels, what="x")
  with pytest.raises(UserError, match=r"train of fold 0 has 0 patient\(s\) of class 0 and 0 of"):
    folds.check_classes([Fold(("e", "f"), ("a", "b"), ())], labels, what="x")


def test_who_was_pretrained_on_never_tests_and_validates_on_the_papers_terms_alone():
  fold = Fold(("a",), ("b",), ("c",))
  folds.audit([fold], leakage="paper", pretraining=[["a", "b"]])
  folds.audit([fold], leakage="strict", pretraining=[["a"]])
  for leakage, seen, side in (("paper", "c", "test"), ("strict", "b", "validation")):
    with pytest.raises(UserError, match=rf"{seen} in {side} and in the training that its weights"):
      folds.audit([fold], leakage=leakage, pretraining=[["a", seen]])
