import itertools

import jax
import numpy as np
import pytest
from scipy import special

from lus_jax.data.clips import VideoTable
from lus_jax.data.folds import Fold
from lus_jax.errors import UserError
from lus_jax.tasks.clinical import questions

ZONES = {"L1": 1, "R1": 1, "L2": 2, "R2": 2, "L3": 3, "R3": 3}
VIEWS = ["L1", "R1", "L2", "R2", "L3", "R3"]


def make_table(rows):
  """A table of (patient, day, view, S/F, readmitted) rows, named in the order of recording."""
  patient, day, view, sf, outcome = zip(*rows, strict=True)
  seen = {}
  video = []
  for p, d, v in zip(patient, day, view, strict=True):
    i = seen[p, d, v] = seen.get((p, d, v), 0) + 1
    video.append(f"{p}_{d}_{v}_{i}")
  return VideoTable(
    video=np.array(video),
    patient=np.array(patient),
    view=np.array(view),
    day=np.array(day),
    split=np.array(["train"] * len(rows)),
    n_frames=np.full(len(rows), 4),
    values={"sf_ratio": np.float64(sf), "readmitted_30d": np.float64(outcome)},
  )


def cohort(n_patients=9, *, seed=0):
  """Patients of two or three days; views, S/F ratios and recordings are missing here and there."""
  rng = np.random.default_rng(seed)
  rows = []
  for p in range(n_patients):
    for day in range(1, 3 + p % 2):
      sf = rng.integers(200, 204) + rng.uniform(-0.4, 0.4)
      for view in VIEWS:
        if rng.random() < 0.8:
          rows.append((f"p{p}", day, view, sf, p % 2))
  rows += [
    ("p0", 1, rows[0][2], 300.0, 0),  # a second recording
    ("p1", 1, "", 250.0, 1),  # of an unknown view
    ("p2", 9, "L1", np.nan, 0),  # of unknown S/F ratio
  ]
  return make_table(rows)


FOLDS = [
  Fold(("p2", "p3", "p4", "p5", "p8"), ("p6", "p7"), ("p0", "p1")),
  Fold(("p4", "p5", "p6", "p7"), ("p2", "p3", "p8"), ("p0", "p1")),
]


def usable(table, patients):
  """Of these patients the first recordings of a known zone and S/F ratio, by name."""
  first = {}
  for i in range(len(table)):
    key = table.patient[i], table.day[i], table.view[i]
    first.setdefault(key, i)
  return {
    i
    for (patient, _, view), i in first.items()
    if patient in patients and view and not np.isnan(table.values["sf_ratio"][i])
  }


def change(first, second):
  first, second = int(np.floor(first + 0.5)), int(np.floor(second + 0.5))
  return 0 if first > second else 2 if second > first else 1


def all_pairs(table, videos):
  return {
    (i, j)
    for i, j in itertools.permutations(sorted(videos), 2)
    if ZONES[table.view[i]] == ZONES[table.view[j]]
  }


def softmax_loss(logits, label):
  return np.log(np.exp(np.float64(logits)).sum()) - logits[label]


@pytest.fixture
def sf_change(task_config):
  def make(table=None, folds=FOLDS, **changes):
    table = cohort() if table is None else table
    return questions.SfChange(table, folds, task_config("sf_change", **changes)), table

  return make


def test_every_ordered_pair_of_one_zone_in_a_batch_counts(sf_change):
  task, table = sf_change()
  sf = table.values["sf_ratio"]
  classes, mixed = set(), False
  for fold, step in itertools.product(range(2), range(4)):
    video, own = task.plan(fold, step)
    assert len(video) == 8 and set(video) <= usable(table, FOLDS[fold].train)
    for a, b in itertools.product(range(8), range(8)):
      i, j = video[a], video[b]
      counts = i != j and ZONES[table.view[i]] == ZONES[table.view[j]]
      assert own["counts"][a, b] == counts
      if counts:
        assert own["label"][a, b] == change(sf[i], sf[j])
        classes.add(int(own["label"][a, b]))
        # Across patients, too.
        mixed |= table.patient[i] != table.patient[j]
  assert classes == {0, 1, 2} and mixed
  # An epoch sees every training video at most once, and the largest fold nearly all.
  sizes = [len(usable(table, fold.train)) for fold in FOLDS]
  assert task.steps_per_epoch == max(sizes) // 8
  epoch = np.concatenate([task.plan(0, step)[0] for step in range(sizes[0] // 8)])
  assert len(set(epoch.tolist())) == len(epoch)
  assert task.plan(0, 1)[0].tolist() == task.plan(0, 1)[0].tolist() != task.plan(1, 1)[0].tolist()


def test_sampled_pairs_are_all_ordered_pairs_once_an_epoch(sf_change):
  task, table = sf_change(pairs="sampled", **{"train.batch_size": 2})
  sf = table.values["sf_ratio"]
  for fold in range(2):
    expected = all_pairs(table, usable(table, FOLDS[fold].train))
    seen = []
    for step in range(len(expected) // 2):
      video, own = task.plan(fold, step)
      assert own["counts"].shape == own["label"].shape == (4, 4)
      for a, b in np.argwhere(own["counts"]).tolist():
        seen.append((video[a], video[b]))
        assert own["label"][a, b] == change(sf[video[a]], sf[video[b]])
    assert len(seen) == len(expected) and set(seen) == expected
  # As many steps as the larger fold needs.
  sizes = [len(all_pairs(table, usable(table, fold.train))) for fold in FOLDS]
  assert task.steps_per_epoch == -(-max(sizes) // 2)
  capped, _ = sf_change(pairs="sampled", pairs_cap=6, **{"train.batch_size": 2})
  assert capped.steps_per_epoch == 3
  # What they cost beside ours is told.
  ours, _ = sf_change(pairs="in_batch", **{"train.batch_size": 2})
  told = "3 steps of 4 clips; all pairs within a batch, which is ours (pairs=in_batch), take "
  assert capped.describe_pairs().endswith(f"{told}{ours.steps_per_epoch} of 2.")
  assert ours.describe_pairs() == ""
  first = [capped.plan(0, step)[0].tolist() for step in range(3)]
  again = [capped.plan(0, step)[0].tolist() for step in range(3, 6)]
  assert sorted(sum(first, [])) == sorted(sum(again, []))


@pytest.mark.parametrize("pairs", ["in_batch", "sampled"])
def test_the_loss_of_pairs_is_the_mean_cross_entropy_of_those_that_count(sf_change, pairs):
  task, _ = sf_change(pairs=pairs)
  video, own = task.plan(0, 3)
  rng = np.random.default_rng(0)
  outputs = rng.normal(size=(len(video), 3)).astype(np.float32)
  bias = np.float32([0.3, -0.2, 0.5])
  expected = [
    softmax_loss(outputs[b] - outputs[a] + bias, own["label"][a, b])
    for a, b in np.argwhere(own["counts"]).tolist()
  ]
  assert expected
  np.testing.assert_allclose(task.loss(outputs, bias, own), np.mean(expected), rtol=1e-5)


def test_a_batch_without_a_pair_has_no_loss_and_no_gradient(sf_change):
  task, _ = sf_change()
  own = {"label": np.zeros((4, 4), np.int32), "counts": np.zeros((4, 4), bool)}
  loss, gradient = jax.value_and_grad(task.loss)(np.ones((4, 3), np.float32), np.zeros(3), own)
  assert loss == 0 and (gradient == 0).all()


def pair_reference(table, patients, outputs, bias, *, majority3, majority2, shares):
  """Scores pair by pair, from outputs by video."""
  names = ("accuracy3", "accuracy2_merged", "accuracy2")
  others = ("majority3", "majority2", "brier", "brier_constant")
  right = {k: [] for k in (*names, *others, *(f"{k}_no_same_day" for k in names))}
  expected_changes, labels = [], []
  losses, confusion = [], np.zeros((3, 3), int)
  sf = table.values["sf_ratio"]
  for i, j in sorted(all_pairs(table, usable(table, patients))):
    if table.patient[i] != table.patient[j]:
      continue
    logits = np.float64(outputs[j]) - outputs[i] + bias
    label = change(sf[i], sf[j])
    p = np.exp(logits) / np.exp(logits).sum()
    right["accuracy3"].append(p.argmax() == label)
    right["accuracy2_merged"].append((p.argmax() == 2) == (label == 2))
    right["accuracy2"].append((p[2] > p[0] + p[1]) == (label == 2))
    right["majority3"].append(label == majority3)
    right["majority2"].append((label == 2) == majority2)
    right["brier"].append(np.square(p - np.eye(3)[label]).sum())
    right["brier_constant"].append(np.square(shares - np.eye(3)[label]).sum())
    expected_changes.append(p[2] - p[0])
    labels.append(label)
    if table.day[i] != table.day[j]:
      for name in names:
        right[f"{name}_no_same_day"].append(right[name][-1])
    losses.append(softmax_loss(logits, label))
    confusion[label, p.argmax()] += 1
  values = {k: np.mean(v) for k, v in right.items()}
  # Of two pairs that changed otherwise, how often the higher has the higher expected change.
  margins = [
    (a > b) + (a == b) / 2
    for a, x in zip(expected_changes, labels, strict=True)
    for b, y in zip(expected_changes, labels, strict=True)
    if x > y
  ]
  return (
    values | {"auroc_ordinal": np.mean(margins) if margins else np.nan},
    np.mean(losses),
    confusion,
  )


@pytest.mark.parametrize("fold", [0, 1])
def test_pairs_are_judged_within_patients(sf_change, fold):
  task, table = sf_change()
  rng = np.random.default_rng(fold)
  outputs = rng.normal(size=(len(table), 3)).astype(np.float32)
  bias = np.float32([0.1, 0.4, -0.3])
  sf = table.values["sf_ratio"]
  train = [change(sf[i], sf[j]) for i, j in all_pairs(table, usable(table, FOLDS[fold].train))]
  counts = np.bincount(train, minlength=3)
  majority = {"majority3": counts.argmax(), "majority2": counts[2] > counts[0] + counts[1]}
  majority["shares"] = counts / counts.sum()

  def expected(side):
    return pair_reference(table, getattr(FOLDS[fold], side), outputs, bias, **majority)

  for side in ("validation", "test"):
    assert set(task.videos(fold, side)) == usable(table, getattr(FOLDS[fold], side))
  ratios, extra = task.evaluate(outputs[task.videos(fold, "test")], bias, fold)
  values, _, confusion = expected("test")
  assert ratios.keys() == values.keys()
  for name, value in values.items():
    assert ratios[name].value() == pytest.approx(value, nan_ok=True), name
  np.testing.assert_array_equal(extra["confusion"], confusion)
  values, loss, _ = expected("validation")
  found = task.validate(outputs[task.videos(fold, "validation")], bias, fold)
  assert found == {"score": pytest.approx(values["accuracy3"]), "loss": pytest.approx(loss)}


def test_left_out_videos_are_counted_once_each(sf_change):
  task, table = sf_change()
  second, first = table.video[-3], table.video[0]
  assert task.left_out == [
    {
      "what": "videos",
      "why": "the first recording of a patient, day and view is used",
      "count": 1,
      "which": [f"{second} (used: {first})"],
    },
    {"what": "videos", "why": "sf_ratio is unknown", "count": 1, "which": ["p2_9_L1_1"]},
    {
      "what": "videos",
      "why": "the view is none of L1, R1, L2, R2, L3, R3",
      "count": 1,
      "which": ["p1_1__1"],
    },
  ]


@pytest.fixture
def sf_ratio(task_config):
  def make(table=None, folds=FOLDS, **changes):
    table = cohort() if table is None else table
    return questions.SfRatio(table, folds, task_config("sf_ratio", **changes)), table

  return make


def with_unknown_views(table, patients):
  """As `usable`, and the videos of unknown view: a number needs no zone."""
  more = {i for i in range(len(table)) if not table.view[i] and table.patient[i] in patients}
  return sorted(usable(table, patients) | more)


def test_the_ratio_is_learnt_per_video_over_the_scale(sf_ratio):
  task, table = sf_ratio()
  video, own = task.plan(1, 2)
  assert len(video) == 8 and set(video) <= set(with_unknown_views(table, FOLDS[1].train))
  np.testing.assert_allclose(own["target"], table.values["sf_ratio"][video] / 477, rtol=1e-6)
  outputs = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
  expected = np.mean((outputs[:, 0] + 0.25 - own["target"]) ** 2)
  np.testing.assert_allclose(task.loss(outputs, np.float32([0.25]), own), expected, rtol=1e-5)
  severity, _ = sf_ratio(target_scale=3.0)
  np.testing.assert_allclose(severity.plan(1, 2)[1]["target"], own["target"] * 159, rtol=1e-5)


def test_the_ratio_is_judged_per_patient_day(sf_ratio):
  task, table = sf_ratio()
  outputs = np.random.default_rng(0).uniform(size=(len(table), 1)).astype(np.float32)
  predicted = np.float64(outputs[:, 0]) + 0.1
  measured = table.values["sf_ratio"] / 477

  def days(patients):
    found = {}
    for i in with_unknown_views(table, patients):
      found.setdefault((table.patient[i], table.day[i]), []).append(i)
    return found

  constant = np.mean([measured[v].mean() for v in days(FOLDS[0].train).values()])
  units = days(FOLDS[0].test)
  index = sum(units.values(), [])
  expected = {
    **{
      f"rmse_{name}": [f(predicted[v]) - f(measured[v]) for v in units.values()]
      for name, f in (("mean", np.mean), ("median", np.median), ("max", np.max))
    },
    "rmse_video": predicted[index] - measured[index],
    "rmse_constant": [constant - measured[v].mean() for v in units.values()],
    "rmse_constant_median": [constant - np.median(measured[v]) for v in units.values()],
    "rmse_constant_max": [constant - measured[v].max() for v in units.values()],
  }
  found, extra = task.evaluate(outputs[task.videos(0, "test")], np.float32([0.1]), 0)
  assert found.keys() == expected.keys()
  for name, errors in expected.items():
    rmse = np.sqrt(np.mean(np.square(errors)))
    assert found[name].value() == pytest.approx(rmse, rel=1e-6), name
  rows = {(row["patient"], row["day"]): row for row in extra["predictions"]}
  assert rows.keys() == units.keys()
  for key, v in units.items():
    assert rows[key]["measured"] == pytest.approx(measured[v].mean(), rel=1e-6)
    assert rows[key]["max"] == pytest.approx(predicted[v].max(), rel=1e-6)
  units = days(FOLDS[0].validation)
  index = sum(units.values(), [])
  rmse = np.sqrt(np.mean([(predicted[v] - measured[v]).mean() ** 2 for v in units.values()]))
  validated = task.validate(outputs[task.videos(0, "validation")], np.float32([0.1]), 0)
  assert validated["score"] == pytest.approx(-rmse, rel=1e-6)
  assert validated["loss"] == pytest.approx(np.mean((predicted - measured)[index] ** 2), rel=1e-5)


# What the six views of a patient say on each day: the class that day 2 - day 1 speaks for.
def patient(name, outcome, *, days=(1, 2), views=VIEWS, missing=()):
  return [
    (name, day, view, 300.0, outcome)
    for day in days
    for view in views
    if (day, view) not in missing
  ]


def readmitted(**changes):
  rows = [
    *patient("full", 1),
    *patient("missing", 0, missing={(2, "L1"), (1, "R1"), (2, "R1"), (1, "R3")}),
    *patient("late", 1, days=(9, 5, 2)),
    *patient("t0", 0),
    *patient("t1", 1),
    *patient("v0", 0, views=["L2"]),
    *patient("v1", 1),
    *patient("once", 1, days=(4,)),
    *patient("unknown", np.nan),
    *patient("apart", 0, missing={(1, v) for v in VIEWS[:3]} | {(2, v) for v in VIEWS[3:]}),
    ("full", 1, "L1", 300.0, 1),
    ("full", 1, "", 300.0, 1),
    ("full", -1, "L1", 300.0, 1),
    *patient("undated", 0, days=(-1,), views=VIEWS[:2]),
  ]
  return make_table(rows)


OUTCOME_FOLDS = [
  Fold(("once", "t0", "t1", "unknown"), ("v0", "v1"), ("apart", "full", "late", "missing")),
  Fold(("v0", "v1"), ("apart", "t0", "t1"), ("full", "late", "missing")),
]


@pytest.fixture
def readmission(task_config):
  def make(table=None, folds=OUTCOME_FOLDS, **changes):
    table = readmitted() if table is None else table
    return questions.Readmission(table, folds, task_config("readmission", **changes)), table

  return make


def answers(task, table, said, *, fold=0, split="test", single=False):
  """Outputs whose change from the first to the second day is `said[patient, view]`.

  Everything else, also a video whose other day is missing, shouts for 'no'.
  """
  outputs = np.tile(np.float32([1000, -1000]), (len(table), 1))
  for (name, view), (first_day, second_day, difference) in said.items():
    base = np.float32([7, -3])  # what both days have in common must not matter
    for day, value in ((first_day, base), (second_day, base + np.float32(difference))):
      (i,) = np.flatnonzero((table.patient == name) & (table.day == day) & (table.view == view))[:1]
      outputs[i] = np.float32(difference) if single else value
  return outputs[task.videos(fold, split)]


def test_views_vote_and_missing_ones_do_not(readmission):
  task, table = readmission()
  yes, no = (0, 1), (1, 0)
  said = {("full", view): (1, 2, yes if i < 4 else no) for i, view in enumerate(VIEWS)}
  # Three views were recorded on both days; the others shout and are not heard.
  said |= {("missing", "L2"): (1, 2, yes), ("missing", "R2"): (1, 2, yes)}
  said |= {("missing", "L3"): (1, 2, no)}
  # Days 2 and 5 of 2, 5 and 9; three to three, and the sum of the logits is for yes.
  said |= {("late", v): (2, 5, (0, 2) if i % 2 else (1.5, 0)) for i, v in enumerate(VIEWS)}
  ratios, extra = task.evaluate(answers(task, table, said), np.float32([0, 0]), 0)
  # By the mean margin of the views: of (4 - 2) / 6, (2 - 1.5) / 2 and (2 - 1) / 3.
  probabilities = [row.pop("probability") for row in extra["predictions"]]
  assert probabilities == pytest.approx(special.expit([1 / 3, 1 / 4, 1 / 3]), rel=1e-5)
  assert extra["predictions"] == [
    {"patient": "full", "label": 1, "predicted": 1, "votes": [2, 4]},
    {"patient": "late", "label": 1, "predicted": 1, "votes": [3, 3]},
    {"patient": "missing", "label": 0, "predicted": 1, "votes": [1, 2]},
  ]
  assert extra["confusion"].tolist() == [[0, 1], [0, 2]]
  assert ratios["accuracy"].value() == pytest.approx(2 / 3)
  assert ratios["recall"].value() == 1 and ratios["precision"].value() == pytest.approx(2 / 3)
  # One of two training patients came back: no majority, so "no".
  assert ratios["majority"].value() == pytest.approx(1 / 3)
  # The other way round the tie goes to no.
  said |= {("late", v): (2, 5, (0, 1) if i % 2 else (1.5, 0)) for i, v in enumerate(VIEWS)}
  _, extra = task.evaluate(answers(task, table, said), np.float32([0, 0]), 0)
  assert extra["predictions"][1]["predicted"] == 0
  # The bias is not part of a difference, so it is added to each view's logits.
  _, extra = task.evaluate(answers(task, table, said), np.float32([5, 0]), 0)
  assert [row["votes"] for row in extra["predictions"]] == [[6, 0], [6, 0], [3, 0]]


def test_a_temperature_changes_probabilities_and_no_vote(readmission):
  task, table = readmission()
  said = {("full", view): (1, 2, (0, 1)) for view in VIEWS}
  outputs, bias = answers(task, table, said), np.float32([0, 0])
  plain, cooled = (task.evaluate(outputs, bias, 0, t) for t in (1.0, 4.0))
  for a, b in zip(plain[1]["predictions"], cooled[1]["predictions"], strict=True):
    logits = [special.logit(row.pop("probability")) for row in (a, b)]
    assert logits[1] == pytest.approx(logits[0] / 4, rel=1e-4) and a == b
  assert plain[0]["auroc"].value() == cooled[0]["auroc"].value()
  assert plain[0]["brier"].value() != cooled[0]["brier"].value()


def test_the_temperature_is_that_of_the_least_cross_entropy_on_the_validation(readmission):
  table = make_table(
    [row for i in range(12) for row in patient(f"v{i:02d}", i % 2, views=["L2"])]
    + [*patient("t0", 0), *patient("t1", 1), *patient("full", 1)]
  )
  fold = Fold(("t0", "t1"), tuple(f"v{i:02d}" for i in range(12)), ("full",))
  task, table = readmission(table=table, folds=[fold, fold])
  # Nine of twelve are right, each by 6: a margin of log 3 would be honest.
  right = [i not in (0, 1, 2) for i in range(12)]
  said = {
    (f"v{i:02d}", "L2"): (1, 2, (0, 6) if (i % 2 == 1) == ok else (6, 0))
    for i, ok in enumerate(right)
  }
  found = task.calibrate(answers(task, table, said, split="validation"), np.float32([0, 0]), 0)
  assert found == pytest.approx(6 / np.log(3), rel=1e-3)


def test_nobody_predicted_leaves_precision_undefined(readmission):
  task, table = readmission()
  outputs = np.zeros((len(task.videos(0, "test")), 2), np.float32)
  ratios, extra = task.evaluate(outputs, np.float32([0, 0]), 0)
  # All equal: nobody votes and the tie is "no".
  assert [row["votes"] for row in extra["predictions"]] == [[0, 0]] * 3
  assert ratios["precision"].value() is None and ratios["recall"].value() == 0
  assert ratios["accuracy"].value() == pytest.approx(1 / 3)


def test_validation_is_the_accuracy_and_the_views_cross_entropy(readmission):
  task, table = readmission()
  said = {("v0", "L2"): (1, 2, (0.5, 0.25))}
  said |= {("v1", view): (1, 2, (0.1 * i, 0.3)) for i, view in enumerate(VIEWS)}
  found = task.validate(answers(task, table, said, split="validation"), np.float32([0.2, 0]), 0)
  expected = [softmax_loss(np.array([0.7, 0.25]), 0)]
  expected += [softmax_loss(np.array([0.1 * i + 0.2, 0.3]), 1) for i in range(6)]
  assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
  # v1: 0.2 < 0.3 votes yes, 0.3 = 0.3 abstains (but for rounding), four vote no.
  assert found["score"] == 0.5


def test_one_day_alone_can_vote(readmission):
  first = OUTCOME_FOLDS[0]
  folds = [Fold(first.train, first.validation, (*first.test, "undated"))] * 2
  task, table = readmission(folds=folds, days="single")
  yes, no = (0, 1), (1, 0)
  # A video of `full` has no day: the first day that is known counts.
  said = {("full", view): (1, 1, yes if i < 4 else no) for i, view in enumerate(VIEWS)}
  said |= {("late", view): (2, 2, yes) for view in VIEWS}
  # Day 1 of `missing` has no R1 and no R3.
  said |= {("missing", view): (1, 1, yes) for view in ("L1", "L2", "R2", "L3")}
  said |= {("apart", view): (1, 1, no) for view in VIEWS[3:]}
  said |= {("undated", view): (-1, -1, yes) for view in VIEWS[:2]}
  _, extra = task.evaluate(answers(task, table, said, single=True), np.float32([0, 0]), 0)
  assert {row["patient"]: row["votes"] for row in extra["predictions"]} == {
    "apart": [3, 0],
    "full": [2, 4],
    "late": [0, 6],
    "missing": [0, 4],
    "undated": [0, 2],
  }


@pytest.mark.parametrize(("days", "n_days"), [("difference", 2), ("single", 1)])
def test_a_training_batch_of_patients_holds_their_views_and_days(readmission, days, n_days):
  folds = [Fold(("missing", "t1", "v0"), ("t0", "v1"), ("full",))] * 2
  task, table = readmission(folds=folds, days=days, **{"train.batch_size": 3})
  video, own = task.plan(0, 0)
  places = video.reshape(3, 6, n_days)
  assert own["present"].shape == (3, 6) and own["label"].shape == (3,)
  names = []
  for slots, present, label in zip(places, own["present"], own["label"], strict=True):
    (name,) = set(table.patient[slots.ravel()])
    names.append(str(name))
    assert label == {"missing": 0, "t1": 1, "v0": 0}[name]
    for view, row, there in zip(VIEWS, slots, present, strict=True):
      found = [
        f"{name}_{day}_{view}_1" in table.video[table.patient == name].tolist()
        for day in range(1, n_days + 1)
      ]
      assert there == all(found)
      if there:
        assert table.video[row].tolist() == [f"{name}_{d + 1}_{view}_1" for d in range(n_days)]
    for view, row in zip(VIEWS, own["recorded"].reshape(3, 6, n_days)[len(names) - 1], strict=True):
      for day, there in enumerate(row.tolist(), start=1):
        assert there == (f"{name}_{day}_{view}_1" in table.video.tolist())
  assert sorted(names) == ["missing", "t1", "v0"]
  assert 0 < own["present"].sum() < 18

  outputs = np.random.default_rng(0).normal(size=(len(video), 2)).astype(np.float32)
  bias = np.float32([0.4, -0.1])
  each = []
  for p, v in np.argwhere(own["present"]).tolist():
    o = outputs.reshape(3, 6, n_days, 2)[p, v]
    each.append(softmax_loss((o[1] - o[0] if n_days == 2 else o[0]) + bias, own["label"][p]))
  np.testing.assert_allclose(task.loss(outputs, bias, own), np.mean(each), rtol=1e-5)
  # What missing views would say does not matter.
  ignored = np.repeat(~own["present"].ravel(), n_days)
  outputs[ignored] = 1e6
  np.testing.assert_allclose(task.loss(outputs, bias, own), np.mean(each), rtol=1e-5)


def test_patients_that_cannot_be_used_are_counted_by_reason(readmission):
  task, _ = readmission()
  assert [(row["what"], row["why"], row["count"], row["which"]) for row in task.left_out] == [
    (
      "videos",
      "the first recording of a patient, day and view is used",
      1,
      ["full_1_L1_2 (used: full_1_L1_1)"],
    ),
    ("patients", "no view was recorded on both days", 1, ["apart"]),
    ("patients", "readmitted_30d is unknown", 1, ["unknown"]),
    ("patients", "recorded on one day only", 1, ["once"]),
  ]
  single, _ = readmission(days="single")
  assert [row["which"] for row in single.left_out] == [
    ["full_1_L1_2 (used: full_1_L1_1)"],
    ["unknown"],
  ]
  assert task.videos(0, "validation").tolist() == np.unique(task.videos(0, "validation")).tolist()


def refused(make, message):
  with pytest.raises(UserError) as error:
    make()
  assert message in str(error.value), str(error.value)
  assert "\n" not in str(error.value)


def blank(table, name="sf_ratio", patients=None):
  mine = np.isin(table.patient, list(patients or set(table.patient.tolist())))
  return VideoTable(
    **{
      **{k: v for k, v in vars(table).items() if k != "values"},
      "values": table.values | {name: np.where(mine, np.nan, table.values[name])},
    }
  )


def test_without_any_ratio_there_is_no_task(sf_change, sf_ratio):
  message = "config.target: 'sf_ratio' is unknown for every video; fill that column"
  refused(lambda: sf_change(blank(cohort())), message)
  refused(lambda: sf_ratio(blank(cohort())), message)


def test_a_side_without_a_ratio_is_named(sf_ratio):
  table = blank(cohort(), patients=FOLDS[1].validation)
  refused(lambda: sf_ratio(table), "validation of fold 1 has no video with a known sf_ratio")


def test_a_side_without_a_pair_within_a_patient_is_named(sf_change):
  # One view only, and one day each: pairs across patients, but none within one.
  rows = [(f"p{p}", 1, "L1", 200.0 + p, 0) for p in range(9)]
  refused(
    lambda: sf_change(make_table(rows), **{"train.batch_size": 2}),
    "validation of fold 0 has no patient with two videos of one zone",
  )


def test_a_fold_without_a_training_pair_is_named(sf_change):
  rows = [(f"p{p}", day, "L1", 200.0, 0) for p in (0, 6, 2) for day in (1, 2)]
  rows += [("p3", 1, "L1", 200.0, 0), ("p4", 1, "L2", 200.0, 0)]
  folds = [Fold(("p3", "p4"), ("p6",), ("p0",)), Fold(("p2",), ("p6",), ("p0",))]
  refused(
    lambda: sf_change(make_table(rows), folds, **{"train.batch_size": 2}),
    "train of fold 0 has no two videos of one zone",
  )


def test_a_batch_larger_than_a_fold_is_refused_with_one_that_fits(sf_change, sf_ratio, readmission):
  size = {"train.batch_size": 500}
  table = cohort()
  n = min(len(usable(table, fold.train)) for fold in FOLDS)
  refused(
    lambda: sf_change(**size),
    f"500 clips are more than the {n} training videos of a fold; use "
    f"--config.train.batch_size={n // 2} or less",
  )
  n = min(len(with_unknown_views(table, fold.train)) for fold in FOLDS)
  refused(lambda: sf_ratio(**size), f"500 clips are more than the {n} training videos")
  refused(lambda: readmission(**size), "500 is more than the 2 training patients of a fold")
  sf_change(pairs="sampled", **size)


def test_without_a_patient_of_two_days_the_reasons_are_counted(readmission):
  rows = [row for row in patient("a", 1, days=(1,)) + patient("b", 0, days=(3,))]
  rows += patient("c", np.nan)
  folds = [Fold(("a",), ("b",), ("c",))] * 2
  refused(
    lambda: readmission(make_table(rows), folds),
    "readmission: no patient has two recorded days and a known readmitted_30d "
    "(1: readmitted_30d is unknown; 2: recorded on one day only)",
  )
  with pytest.raises(UserError, match=r"--config\.days=single"):
    readmission(make_table(rows), folds)


def test_a_fold_of_one_class_is_named(readmission):
  folds = [OUTCOME_FOLDS[0], Fold(("t0", "v0"), ("t1", "missing"), ("full",))]
  refused(
    lambda: readmission(folds=folds),
    "readmitted_30d: train of fold 1 has 2 patient(s) of class 0 and 0 of class 1",
  )
  folds = [Fold(("t0", "t1"), ("v1", "once"), ("full",)), OUTCOME_FOLDS[1]]
  refused(
    lambda: readmission(folds=folds),
    "readmitted_30d: validation of fold 0 has 0 patient(s) of class 0",
  )


def test_a_test_side_without_anyone_is_named(readmission):
  folds = [Fold(("t0", "t1"), ("v0", "v1"), ("once",)), OUTCOME_FOLDS[1]]
  refused(lambda: readmission(folds=folds), "test of fold 0 has no patient that can be used")
