"""Who trains, validates and tests in each fold of a cross-validation over patients."""

import dataclasses

import numpy as np

from lus_jax.errors import UserError

SCHEMES = ("paper", "rotate")
LEAKAGES = ("paper", "strict")


@dataclasses.dataclass(frozen=True)
class Fold:
  """The patients of one fold: sorted names, each on one side only."""

  train: tuple[str, ...]
  validation: tuple[str, ...]
  test: tuple[str, ...]


def make_folds(labels, *, test, n_folds, cv, seed):
  """Deals patients into folds of nearly the same size and mix of labels.

  Patients are sorted by their labels and dealt round by round, every round in a random order.
  The sizes of the folds that patients are dealt into differ by at most 1, and so do their counts of
  any one value of the first label.

  Args:
    labels: a dict from every patient, those of `test` included, to a tuple of numbers to balance
      by; the first matters most; NaN is unknown and a value of its own. The order of the dict does
      not matter.
    test: patients of the fixed test set; 'rotate' does without it.
    n_folds: how many folds train and validate.
    cv: 'paper': `test` is the test of every fold and the others are dealt into `n_folds` folds, of
      which fold i validates. 'rotate': all patients are dealt into n_folds + 1 folds, of which
      fold i tests and the next one validates, so every patient is tested once.
    seed: an integer.

  Returns:
    `n_folds` `Fold`s for 'paper', one more for 'rotate'.

  Raises:
    UserError: the scheme is unknown, or there are too few folds or patients.
  """
  if cv not in SCHEMES:
    raise UserError(f"config.folds.cv: {cv!r} is unknown; choose 'paper' or 'rotate'.")
  if n_folds < 2:
    raise UserError(
      f"config.folds.n: {n_folds} fold(s) are too few; use --config.folds.n=2 or more."
    )
  if cv == "paper" and not test:
    raise UserError(
      "config.folds.cv: 'paper' needs test patients and none is left; give some patients the split "
      "'test', or use --config.folds.cv=rotate."
    )
  test = set(test) if cv == "paper" else set()
  n_dealt = n_folds + (cv == "rotate")
  dealt = _deal({name: x for name, x in labels.items() if name not in test}, n_dealt, seed)
  folds = []
  for i in range(n_dealt):
    validates = i if cv == "paper" else (i + 1) % n_dealt
    tests = test if cv == "paper" else dealt[i]
    train = set().union(*dealt) - dealt[validates] - tests
    folds.append(Fold(*(tuple(sorted(side)) for side in (train, dealt[validates], tests))))
  return folds


def of_videos(table, config):
  """The folds of a clinical task.

  Args:
    table: `lus_jax.data.clips.VideoTable` of all videos.
    config: the `folds` part of a run's config.

  Returns:
    `Fold`s, as `make_folds` deals them.
  """
  values = [table.of_patient(name) for name in config.balance]
  return make_folds(
    {name: tuple(value[name] for value in values) for name in values[0]},
    test=set(table.patient[table.split == "test"].tolist()),
    n_folds=config.n,
    cv=config.cv,
    seed=config.seed,
  )


def _deal(labels, n, seed):
  """A list of n sets of patients."""
  if len(labels) < n:
    raise UserError(
      f"config.folds.n: {len(labels)} patient(s) cannot fill {n} folds; use a smaller "
      "--config.folds.n or more patients."
    )
  rng = np.random.default_rng(seed)
  patients = sorted(labels)
  # Sorting keeps the shuffled order of patients whose labels are equal. NaN comes last.
  patients = [patients[i] for i in rng.permutation(len(patients))]
  keys = {name: tuple((x != x, 0 if x != x else x) for x in labels[name]) for name in patients}
  patients.sort(key=keys.get)
  folds = [set() for _ in range(n)]
  group, in_group = None, None
  for name in patients:
    if keys[name][:1] != group:
      group, in_group = keys[name][:1], [0] * n
    chance = rng.random(n)
    # Whoever has fewest of this value is next: that keeps both counts within 1 of each other.
    i = min(range(n), key=lambda i: (in_group[i], len(folds[i]), chance[i]))
    folds[i].add(name)
    in_group[i] += 1
  return folds


def names(patients):
  """'a, b, c, d, e and 2 more'."""
  patients = sorted(patients)
  more = f" and {len(patients) - 5} more" if len(patients) > 5 else ""
  return ", ".join(patients[:5]) + more


def audit(folds, *, leakage, segmentation=None, initial=None, pretraining=None):
  """Makes sure that no patient stands on two sides.

  Args:
    folds: `Fold`s.
    leakage: 'paper': patients that trained or selected a segmentation model may train and validate
      here, but not test. 'strict': they may not validate either.
    segmentation: for each fold the patients that its segmentation models were trained or selected
      on; None where no segmentation model is used.
    initial: for each fold the patients that the models it starts from were trained on.
    pretraining: for each fold the patients that what these, or the segmentation models, begin from
      has seen: as with segmentation models, 'paper' lets them validate, 'strict' does not.

  Raises:
    UserError: the first leak found: the patients, the fold and both sides; or `leakage` is unknown.
  """
  if leakage not in LEAKAGES:
    raise UserError(f"config.folds.leakage: {leakage!r} is unknown; choose 'paper' or 'strict'.")
  outside = "segmentation training or selection"
  retrain = (
    "train segmentation models without them"
    if leakage == "strict"
    else "use --config.folds.leakage=strict (cv=rotate always needs it)"
  )
  start = "start from a model trained on other patients"
  once = "each patient belongs on one side only"
  for i, fold in enumerate(folds):
    checks = [
      ("train", "validation", fold.validation, once),
      ("train", "test", fold.test, once),
      ("validation", "test", fold.test, once),
    ]
    if segmentation is not None:
      checks.append(("test", outside, segmentation[i], retrain))
      if leakage == "strict":
        checks.append(("validation", outside, segmentation[i], retrain))
    if pretraining is not None:
      name = "the training that its weights, or its segmentation's, begin from"
      mend = "train that on data without them, or begin otherwise (model.init_from)"
      sides = ("test", "validation") if leakage == "strict" else ("test",)
      checks += [(side, name, pretraining[i], mend) for side in sides]
    if initial is not None:
      name = "the training of the model it starts from"
      checks += [(side, name, initial[i], start) for side in ("test", "validation")]
    for side, other, patients, mend in checks:
      leaked = set(getattr(fold, side)) & set(patients)
      if leaked:
        raise UserError(f"fold {i}: patient(s) {names(leaked)} in {side} and in {other}; {mend}.")


def check_classes(folds, labels, *, what):
  """Makes sure that every fold trains and validates on both classes.

  Args:
    folds: `Fold`s.
    labels: a dict from patient to 0 or 1; anything else, or no entry, is unknown.
    what: name of the label, for the message.

  Raises:
    UserError: the training or validation patients with a known label are of one class, or there are
      none: the fold, the split and the counts.
  """
  for i, fold in enumerate(folds):
    for side in ("train", "validation"):
      known = [labels.get(patient) for patient in getattr(fold, side)]
      zeros, ones = known.count(0), known.count(1)
      if not zeros or not ones:
        raise UserError(
          f"{what}: {side} of fold {i} has {zeros} patient(s) of class 0 and {ones} of class 1, "
          "and both are needed; use fewer folds (a smaller --config.folds.n) or more patients."
        )
