"""The study of targets: what it claims, of whom, and that an interrupted one ends the same."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from configs import which_target as configs
from lus_jax import files, models, results
from lus_jax.data import augment, pipeline
from lus_jax.errors import UserError
from lus_jax.evaluation import truth as truth_lib
from lus_jax.tasks.segmentation import train
from lus_jax.tasks.which_target import cohort as cohort_lib
from lus_jax.tasks.which_target import compare, run
from lus_jax.training import members, optimizers
from lus_jax.training import objective as objective_lib
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep
from tests import toys

SEEDS = 16
ROOT = pathlib.Path(__file__).parents[2]


def config(**changes):
  return toys.change(configs.get_config("tiny"), changes)


def noise(seed, n=SEEDS):
  return np.random.default_rng(seed).uniform(0.4, 0.42, n)


def scores_of(parts, **better):
  """Scores for every member of some questions that are alike, but for a bonus of some."""
  named = {}
  for i, (setting, name) in enumerate(compare.copies_of(parts)):
    named[setting, name] = noise(i) + better.get(f"{setting}_{name}", 0)
  return named


QUESTIONS = (("a", 0.0, 0.5), ("a", 0.5, "soft"), ("b", 0.8, 0.5), ("all", "soft", 0.0))
PARTS = [
  [("a", 0.0, 0.5)],
  [("a", 0.5, "soft")],
  [("b", 0.8, 0.5)],
  [("a", "soft", 0.0), ("b", "soft", 0.0)],
]


def test_a_question_is_answered_by_what_is_better_on_every_seed():
  scores = scores_of(PARTS, **{"a_0.0": 0.1, "b_0.5": 0.1})
  rows = compare.ask(PARTS, scores)
  # The last: of two settings in the mean, one of which is clearly lower.
  assert [row["answer"] for row in rows] == ["yes", "undecided", "no", "no"]
  for row, part in zip(rows, PARTS, strict=True):
    pair = [np.mean([scores[one, ab[i]] for one, *ab in part], axis=0) for i in (0, 1)]
    assert row["difference"] == pytest.approx(np.mean(pair[0] - pair[1]))
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    # The test of 16 seeds is by draws, of which the observed one is one.
    clear = row["answer"] != "undecided"
    assert row["p"] == pytest.approx(1 / 10_001, abs=5e-4) if clear else row["p"] > 0.001
  # Holm over all questions, by hand.
  p = np.array([row["p"] for row in rows])
  steps = np.minimum(1, np.maximum.accumulate(np.sort(p) * np.arange(4, 0, -1)))
  by_hand = steps[np.argsort(np.argsort(p, kind="stable"), kind="stable")]
  assert [row["p_holm"] for row in rows] == pytest.approx(by_hand.tolist())


def test_where_lower_is_better_the_lower_answers():
  scores = scores_of(PARTS, **{"a_0.0": 0.1, "b_0.5": 0.1})
  rows = compare.ask(PARTS, scores, higher=False)
  assert [row["answer"] for row in rows] == ["no", "undecided", "yes", "yes"]


def test_equal_members_and_few_seeds_answer_nothing():
  same = dict.fromkeys(compare.copies_of(PARTS), noise(0))
  rows = compare.ask(PARTS, same)
  assert {row["answer"] for row in rows} == {"undecided"}
  assert {row["p_holm"] for row in rows} == {1.0}
  few = {name: x[:3] for name, x in scores_of(PARTS, **{"a_0.0": 0.1}).items()}
  rows = compare.ask(PARTS, few)
  assert min(row["p"] for row in rows) == 0.25 and rows[0]["interval"] is None
  assert {row["answer"] for row in rows} == {"undecided"}
  assert compare.ask([], {}) == []


def test_settings_of_one_question_are_averaged_cohort_by_cohort():
  """What one setting gains and the other loses is no difference, however clear both are."""
  bonus = {"a_soft": 0.1, "b_0.0": 0.1}
  (row,) = compare.ask(PARTS[3:], scores_of(PARTS[3:], **bonus))
  assert row["answer"] == "undecided" and abs(row["difference"]) < 0.01


def test_members_are_described():
  scores = {0.5: noise(0), "soft": noise(1) + 0.1}
  found = compare.describe(scores)
  assert found["best"] == "soft" and set(found) == {"means", "best"}
  for one in found["means"]:
    assert one["mean"] == pytest.approx(scores[one["member"]].mean())
    assert one["interval"][0] < one["mean"] < one["interval"][1]
  assert compare.describe(scores, higher=False)["best"] == 0.5
  few = compare.describe({0.5: noise(0)[:3]})
  assert few["means"][0]["interval"] is None


def test_the_truest_label_of_a_setting_is_named_by_its_dose():
  settings = tuple(f"true_from_{t}" for t in (0, 0.2, 0.6, 0.8))
  thresholds = (1.0, 0.6, 0.5, 0.0)
  small = config(
    **{
      "study.settings": settings,
      "study.questions": (("all", "ordinal", "truest"), ("true_from_0.6", "truest", 0.5)),
      "sweep.thresholds": thresholds,
    }
  )
  parts = compare.parts_of(small, run.doses_of(settings))
  # Of 20 and 80 % there is no network: the next lower one.
  truest = zip(settings, (0.0, 0.0, 0.6, 0.6), strict=True)
  assert parts[0] == [(setting, "ordinal", t) for setting, t in truest]
  assert parts[1] == [("true_from_0.6", 0.6, 0.5)]
  assert compare.copies_of(parts)[-1] == ("true_from_0.6", 0.5)
  assert len(compare.copies_of(parts)) == 9  # what two questions name is one member


def test_the_best_cut_is_that_of_the_highest_dice():
  probability = np.array([0.02, 0.12, 0.22, 0.32, 0.42, 0.9])
  assert truth_lib.best_cut(probability, probability > 0.3) == 0.3
  # .25 and .3 are equal, and nearer to .5 is .3; of .45 to .9 it is .5.
  assert truth_lib.best_cut(probability, probability > 0.5) == 0.5
  assert truth_lib.best_cut(np.array([0.1, 0.7]), np.array([True, True])) == 0.1
  assert truth_lib.best_cut(np.full(4, 0.98), np.array([False, True] * 2)) == 0.5


def drawn_frames(seed, n, *, classes=3, size=9):
  """Frames whose last class is nowhere, and probabilities [2, n, H, W, K] that follow the truth."""
  r = np.random.default_rng(seed)
  shape = (n, size, size, classes)
  truth = r.random(shape) < 0.2
  truth[..., -1] = False
  confidence = np.where(truth, r.choice([0, 51, 128, 204, 255], shape), 0).astype(np.uint8)
  probability = np.clip(r.normal(0.25 + 0.35 * truth, 0.2, (2, *shape)), 0, 1).astype(np.float32)
  return {"truth": truth.astype(np.uint8), "confidence": confidence}, probability


def naive_ece(p, truth):
  total = 0
  for k in range(15):
    inside = (p > k / 15) & (p <= (k + 1) / 15) if k else p <= 1 / 15
    if inside.any():
      total += inside.mean() * abs(p[inside].mean() - truth[inside].mean())
  return total


def test_scores_are_those_of_sklearn():
  validation, held_out = drawn_frames(0, 4)
  test, p = drawn_frames(1, 5)
  views = [members.View("high", 0, -1, 0.8), members.View("soft", 1, -1, None)]
  training, learned = drawn_frames(2, 3)
  rows = truth_lib.score(
    {"train": learned, "validation": held_out, "test": p},
    {"train": training, "validation": validation, "test": test},
    views,
  )
  assert [row["member"] for row in rows] == ["high", "soft"]
  truth = test["truth"] > 0
  cuts_used = set()
  for v, (row, least) in enumerate(zip(rows, (204, 128), strict=True)):
    dice, half, precision, target = [], [], [], []
    for k in (0, 1):
      own = (validation["confidence"][..., k] >= least).ravel()
      mine = held_out[v, ..., k].ravel()
      cuts = [c / 20 for c in range(1, 20)]
      by_cut = [f1_score(own, mine >= c) for c in cuts]
      best = min(
        (c for c, f in zip(cuts, by_cut, strict=True) if f == max(by_cut)),
        key=lambda c: abs(c - 0.5),
      )
      cuts_used.add(best)
      true, found = truth[..., k].ravel(), p[v, ..., k].ravel()
      dice.append(f1_score(true, found >= best))
      half.append(f1_score(true, found >= 0.5))
      precision.append(average_precision_score(true, found))
      target.append(f1_score(true, (test["confidence"][..., k] >= least).ravel()))
    assert row["dice"] == pytest.approx(np.mean(dice))
    assert row["dice_half"] == pytest.approx(np.mean(half))
    assert row["average_precision"] == pytest.approx(np.mean(precision))
    assert row["label_dice"] == (None if v else pytest.approx(np.mean(target)))
    for key, frames, mine in (("fit_train", training, learned), ("fit_test", test, p)):
      own = frames["confidence"] >= least
      fits = [f1_score(own[..., k].ravel(), (mine[v, ..., k] >= 0.5).ravel()) for k in (0, 1)]
      assert row[key] == pytest.approx(np.mean(fits))
    flat = [(p[v, ..., k].astype(np.float64).ravel(), truth[..., k].ravel()) for k in range(3)]
    # A class that nowhere is there counts for nobody.
    eces = [naive_ece(*one) for one in flat if one[1].any()]
    assert len(eces) == 2 and row["ece"] == pytest.approx(np.mean(eces), abs=1e-6)
    assert row["brier"] == pytest.approx(np.mean([np.mean((a - b) ** 2) for a, b in flat]))
  assert cuts_used - {0.5}


def test_null_studies_answer_hardly_anything():
  scores = np.random.default_rng(0).uniform(0.4, 0.6, (100, 10, len(compare.copies_of(PARTS))))
  found = compare.null_studies(PARTS, scores)
  assert found["studies"] == 100 and found["questions"] == 400
  assert found["studies_with_answers"] <= 11  # 5 % of 100, and 3 standard deviations
  assert 7 <= found["below_level"] <= 33
  # Had all studies a copy that is better, one or the other question would be answered in each.
  scores[:, :, 0] += 1
  assert compare.null_studies(PARTS, scores)["studies_with_answers"] == 100


def families(*extra, thresholds=(1.0, 0.5, 0.0), weights="paper"):
  found = config(
    **{"sweep.thresholds": thresholds, "sweep.members": extra, "loss.weights": weights}
  )
  found = objective_lib.Objective(found)
  return compare.families(found, found.views()[0])


def test_families_are_by_weights():
  found = families("threshold(0.5, weights=ones)", "soft", "ordinal(weights=ones)")
  others = {"soft": "soft", "ordinal_ones": "ordinal_ones"}
  plain = {1.0: "threshold_1", 0.5: "threshold_0.5", 0.0: "threshold_0"}
  assert found == {"paper": plain | others, "ones": {0.5: "threshold_0.5_ones"} | others}
  assert families("soft") == {"paper": plain | {"soft": "soft"}}
  assert list(families(weights="ones")) == ["ones"]


def test_another_loss_does_not_take_a_thresholds_place():
  found = families("threshold(0.5, loss=dice)")["paper"]
  assert found[0.5] == "threshold_0.5"
  assert found["threshold_0.5_dice"] == "threshold_0.5_dice"


@pytest.fixture(scope="module")
def cohorts():
  small = config(**{"data.phantom.n_patients": 6})
  return {seed: cohort_lib.cohort(small, "faint_true", seed) for seed in (0, 1)}


def test_a_cohort_has_disjoint_splits(cohorts, monkeypatch):
  small, named = config(**{"data.phantom.n_patients": 6}), {}
  load = run.pipeline.load

  def kept(source, fields):
    found = load(source, (*fields, "patient"))
    for patient, image in zip(found.pop("patient"), found["image"], strict=True):
      named[image.tobytes()] = patient
    return found

  monkeypatch.setattr(run.pipeline, "load", kept)
  found = cohort_lib.cohort(small, "faint_true", 0)
  patients = {
    split: {named[image.tobytes()] for image in arrays["image"]} for split, arrays in found.items()
  }
  assert list(patients) == ["train", "validation", "test"]
  assert len(found["train"]["image"]) == small.study.train_frames == 16
  assert len(patients["validation"]) == small.study.validation_patients == 2
  everybody = set.union(*patients.values())
  assert len(everybody) == sum(map(len, patients.values())) == 6
  for arrays in found.values():
    assert set(arrays) == {*run.pipeline.FIELDS, "truth"}
    assert arrays["truth"].shape == arrays["confidence"].shape
    assert arrays["image"].shape[1:] == (32, 32, 1)
  for split, arrays in cohorts[0].items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(array, found[split][name])


def test_seeds_and_settings_are_other_cohorts(cohorts):
  images = [cohorts[seed]["train"]["image"] for seed in (0, 1)]
  assert not {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}
  found = config(
    **{
      "study.settings": ("null", "faint_true", "faint_false"),
      "study.seeds": 20,
      "study.null_studies": 60,
    }
  )
  units = compare.units_of(found)
  assert {standardise for _, standardise, _ in units} == {"none"}
  units += compare.null_units_of(found)
  seeds = [run.seed_of(found, setting, seed) for setting, _, seed in units]
  # No two null studies have a cohort in common.
  assert len(seeds) == len(set(seeds)) == 3 * 20 + 60 * 20


def test_too_few_patients_are_refused():
  with pytest.raises(UserError, match=r"n_patients: 3 patients leave none for the test"):
    cohort_lib.cohort(config(**{"data.phantom.n_patients": 3}), "faint_true", 0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"study.seeds": 0}, r"config\.study\.seeds: 0 must be at least 1"),
    ({"study.train_frames": 0}, r"study\.train_frames: 0 must be at least 1"),
    ({"study.validation_patients": 0}, r"validation_patients: 0 must be at least 1"),
    ({"study.train_frames": 3}, r"train_frames: 3 are fewer than one batch \(4\)"),
    ({"study.null_studies": -1}, r"config\.study\.null_studies: -1 must be at least 0"),
    ({"study.questions": ()}, r"null_studies: a study without questions has none; use 0"),
    ({"study.questions": (("all", 0.5),)}, r"questions: \('all', 0\.5\): it has to be \(setting"),
    ({"study.questions": (("some", 0.5, 0.0),)}, r"some is no setting of the study, nor 'all'"),
    ({"study.questions": (("all", 0.5, 0.5),)}, r"it compares a member with itself"),
    ({"study.questions": (("all", 0.7, 0.5),)}, r"0\.7 is not in config\.sweep\.thresholds"),
    ({"study.questions": (("all", "hard", 0.5),)}, r"no member is called hard; there are thresh"),
    (
      {"study.questions": (("all", "soft", "truest"),), "study.settings": ("default",)},
      r"default says of no threshold that it is the truest",
    ),
    (
      {"study.metric": "iou"},
      r"config\.study\.metric: 'iou' is not known; choose one of average_pr",
    ),
    ({"study.settings": ("faint_true", "fain")}, r"'fain' of lus_phantom is unknown"),
    ({"study.settings": ("null", "null")}, r"study\.settings: .* each once"),
    ({"labels.standardise": "quantile"}, r"config\.labels\.standardise: .*study\.standardise"),
    ({"study.prior": 0.0}, r"study\.prior: 0\.0 must be a probability between 0 and 1"),
    ({"train.minutes": 5.0}, r"config\.train\.minutes: a study has its own sizes"),
    ({"study.workers": -1}, r"study\.workers: -1 must be 0 \(one a core\) or a number"),
    ({"study.standardise": ("quantile",)}, r"study\.standardise: .* must begin with 'none'"),
    ({"study.standardise": ("none", "none")}, r"study\.standardise: .* each method once"),
    ({"study.standardise": ("none", "rank")}, r"study\.standardise: 'rank' is not known"),
    ({"study.standardise": ("none", "overlap")}, r"'overlap' needs .*data\.phantom\.raters=True"),
    ({"study.settings": ()}, r"study\.settings: .* at least one"),
    ({"data.name": "lus_folder"}, r"data\.name: the truth is known of lus_phantom only"),
    ({"sweep.seeds": 2}, r"sweep\.seeds: 2 must be 1"),
    ({"sweep.members": ("majority",)}, r"'majority' needs the masks of several raters"),
    ({"sweep.thresholds": ()}, r"sweep\.thresholds is empty"),
  ],
)
def test_a_config_that_no_study_could_use_is_refused(changes, message, tmp_path):
  with pytest.raises(UserError, match=message):
    run.train_and_evaluate(config(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_damaged_unit_is_done_again(tmp_path, caplog):
  file = tmp_path / "default_0.json"
  assert compare.read_unit(file) is None and not caplog.messages
  file.write_text(json.dumps(files.seal({"rows": [{"dice": 0.5}]})))
  assert compare.read_unit(file) == [{"dice": 0.5}]
  whole = file.read_text()
  for damaged in (whole[:-3], "", whole.replace("0.5", "0.6")):
    file.write_text(damaged)
    assert compare.read_unit(file) is None
    assert f"{file} is damaged" in caplog.messages[-1]
  file.write_text('[{"dice": 0.5}]')  # of an older version
  assert compare.read_unit(file) == [{"dice": 0.5}]


def test_two_studies_in_one_directory_are_refused(tmp_path, in_use):
  with in_use(tmp_path), pytest.raises(UserError, match="is in use by process 123 on node7"):
    run.train_and_evaluate(config(), tmp_path)
  assert not (tmp_path / "run.json").exists()


def test_a_label_that_a_cohort_shows_nothing_of_has_no_fit():
  content = config(**SMALLEST)
  views = [members.View("high", 0, members.WHOLE, 1.0), members.View("low", 1, members.WHOLE, 0.0)]
  units = [
    {"setting": "faint_true", "standardise": "none", "member": name}
    | {"fit_train": fit, "fit_test": None}
    for name, fit in (("high", None), ("high", 0.4), ("low", 0.2), ("low", 0.4))
  ]
  high, low = compare.fit_of(content, units, views)
  assert (high["fit_train"], high["fit_test"]) == (0.4, None)
  assert low["fit_train"] == pytest.approx(0.3)


def test_every_size_is_in_order():
  for size in ("paper", "faint", "scales", "tiny"):
    run.check(configs.get_config(size))
  with pytest.raises(ValueError, match="demo does not exist"):
    configs.get_config("demo")


def test_the_registered_questions_are_those_of_the_page():
  """What docs/which_threshold.md registered is what the command asks."""
  page = (ROOT / "docs" / "which_threshold.md").read_text()
  lines = re.findall(r"^ *\| (\d) \| (.+?) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
  words = {"all strokes mostly true": "true_from_0", "mean of all four": "all"}
  words |= {f"true from {t} % on": f"true_from_0.{t // 10}" for t in (40, 60, 80)}
  words |= {"> 0 %": 0.0, "one ordinal network": "ordinal"}
  words |= {"the separate network of the truest label": "truest"}
  words |= {f"{t} %": t / 100 for t in (40, 50, 60, 80)}
  registered = tuple(tuple(words[one] for one in row[1:]) for row in lines[:7])
  assert registered == configs.get_config().study.questions


SMALLEST = {
  "study.workers": 1,  # others would compile the FPN: they do not know the toy
  "study.settings": ("faint_true",),
  "study.questions": (("faint_true", 0.0, 0.5), ("all", "ordinal_ones", 1.0)),
  "study.null_studies": 1,
  "loss.weights": "paper",
  "study.train_frames": 8,
  "study.validation_patients": 1,
  "data.phantom.n_patients": 4,
  "sweep.members": ("threshold(0.5, weights=ones)", "ordinal(weights=ones)"),
  "train.epochs": 1,
}


@pytest.fixture(scope="module")
def toy():
  """A toy in place of the FPN."""

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_head)
    yield


def test_the_spread_of_experts_by_hand():
  raters = np.zeros((1, 3, 2, 2, 2), np.uint8)
  raters[0, :, 0, 0, 0], raters[0, :, 0, 1, 0] = (51, 102, 153), (51, 102, 255)
  raters[0, :, 1, 1, 0] = (255, 0, 255)  # not painted by all, as nothing of the other class is
  values = [51, 102, 153, 51, 102, 255]
  expected = np.std([51, 102, 204], ddof=1) / np.std(values)
  assert truth_lib.annotator_sd(raters) == pytest.approx(expected)
  # A narrower scale is no more common one.
  assert truth_lib.annotator_sd(raters // 3) == pytest.approx(expected)
  assert truth_lib.annotator_sd(raters[..., 1:]) is None


def test_scales_are_compared_within_cohorts():
  settings = ("faint_true", "faint_false")
  content = config(**{"study.standardise": ("none", "quantile"), "study.settings": settings})
  r = np.random.default_rng(0)
  units = []
  for seed in range(SEEDS):
    cohort = r.uniform(0.2, 0.8)  # what cohorts have in common hides nothing
    for setting, bonus in (("faint_true", 0.02), ("faint_false", 0.0)):
      for method in ("none", "quantile"):
        dice = cohort + (method == "quantile") * bonus + r.uniform(-0.005, 0.005)
        at = {"setting": setting, "standardise": method, "seed": seed, "member": "soft"}
        units.append(at | {"dice": dice, "annotator_sd": None if seed == 3 else dice})
  helps, not_clear = compare.scales(content, units, ("dice",))
  assert (helps["setting"], helps["standardise"]) == ("faint_true", "quantile")
  assert helps["difference"] == pytest.approx(helps["mean"] - helps["none"])
  assert 0.015 < helps["interval"][0] < helps["difference"] < helps["interval"][1] < 0.025
  assert helps["p_holm"] < 0.001 < 0.05 < not_clear["p_holm"]
  # A cohort of which nothing is known is left out of both means.
  spread = compare.scales(content, units, ("annotator_sd",))[0]
  known = [one["dice"] for one in units if one["seed"] != 3 and one["setting"] == "faint_true"]
  assert spread["mean"] == pytest.approx(np.mean(known[1::2]))
  assert spread["none"] == pytest.approx(np.mean(known[::2]))


def test_a_standardised_cohort_differs_in_its_labels_alone():
  small = config(**{"data.phantom.n_patients": 6, "data.phantom.raters": True})
  plain = cohort_lib.cohort(small, "default", 0)
  assert plain["train"]["raters"].shape[:2] == (16, 3)
  for method in ("quantile", "overlap"):
    found = cohort_lib.cohort(small, "default", 0, standardise=method)
    for split in plain:
      for name in ("image", "truth", "labelled"):
        np.testing.assert_array_equal(found[split][name], plain[split][name])
      same = np.array_equal(found[split]["confidence"], plain[split]["confidence"])
      assert same == (split == "test")
    before, after = (truth_lib.annotator_sd(one["train"]["raters"]) for one in (plain, found))
    assert after < before


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
  """A whole run."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  run.train_and_evaluate(config(**SMALLEST), workdir)
  return workdir


def test_results_are_what_the_units_say(finished):
  content = results.read(finished, "which_target")
  units = {
    (file.stem, row["member"]): row
    for file in (finished / "units").iterdir()
    for row in compare.read_unit(file)
  }
  assert {stem for stem, _ in units} == {
    "faint_true_0", "faint_true_1", "null_studies_0", "null_studies_1",
  }  # fmt: skip
  names = ["threshold_1", "threshold_0.5", "threshold_0", "threshold_0.5_ones", "ordinal_ones"]
  names += [f"ordinal_ones_{t}" for t in ("0", "0.5", "1")]
  assert [unit["member"] for unit in content["units"]] == 2 * names
  for unit in content["units"]:
    mine = units[f"{unit['setting']}_{unit['seed']}", unit["member"]]
    at = {name: unit[name] for name in ("setting", "standardise", "seed")}
    assert unit == mine | at
    assert all(0 <= unit[metric] <= 1 for metric in compare.METRICS)
  keys = [(row["setting"], row["weights"], row["metric"]) for row in content["rows"]]
  assert keys == [("faint_true", w, m) for w in ("paper", "ones") for m in compare.METRICS]
  for row in content["rows"]:
    assert [one["member"] for one in row["means"]] == (
      [1.0, 0.5, 0.0, "ordinal_ones"] if row["weights"] == "paper" else [0.5, "ordinal_ones"]
    )
    mine = [units[f"faint_true_{i}", "threshold_0.5"][row["metric"]] for i in (0, 1)]
    if row["weights"] == "paper":
      assert row["means"][1]["mean"] == pytest.approx(np.mean(mine))
  # Of the levels one has a separate network of its weights beside it.
  assert [one["metric"] for one in content["levels"]] == list(compare.METRICS)
  for one in content["levels"]:
    pair = [
      np.mean([units[f"faint_true_{i}", name][one["metric"]] for i in (0, 1)])
      for name in ("ordinal_ones_0.5", "threshold_0.5_ones")
    ]
    assert [one["ordinal"], one["separate"]] == pytest.approx(pair)
    assert one["difference"] == pytest.approx(pair[0] - pair[1])
  for row, (a, b) in zip(
    content["questions"],
    (("threshold_0", "threshold_0.5"), ("ordinal_ones", "threshold_1")),
    strict=True,
  ):
    mine = [units[f"faint_true_{i}", x]["average_precision"] for x in (a, b) for i in (0, 1)]
    assert row["difference"] == pytest.approx(np.mean(mine[:2]) - np.mean(mine[2:]))
    assert row["answer"] == "undecided" and row["p"] >= 0.5  # two cohorts decide nothing
  copies = [units["null_studies_0", f"copy_{i}"]["average_precision"] for i in range(4)]
  assert len(set(copies)) == 4, "copies start from other weights"
  assert content["null_studies"]["studies"] == 1 and content["null_studies"]["questions"] == 2
  for one in content["fit"]:
    mine = [units[f"faint_true_{i}", one["member"]] for i in (0, 1)]
    assert one["fit_train"] == pytest.approx(np.mean([row["fit_train"] for row in mine]))
  assert [one["member"] for one in content["fit"]] == names[:5]


def test_networks_start_from_the_prior(toy):
  trainer = cohort_lib.Trainer(config(**SMALLEST | {"study.prior": 0.2}))
  params, _ = trainer.initial(0, 6)
  lowest, above = np.split(np.asarray(params["segmentation_head"]["bias"]), [6])
  np.testing.assert_allclose(1 / (1 + np.exp(-lowest)), 0.2, rtol=1e-6)
  assert len(above) == 12 and (above == 0).all()


def test_a_recipe_for_small_sets_is_trained_as_a_run_trains_it(toy):
  recipe = {
    "sweep.thresholds": (0.6,),
    "sweep.members": ("ordinal",),
    "train.epoch_steps": 3,
    "train.steps": 5,
    "train.rare": 0.9,
    "loss.from_prevalence": True,
    "loss.region": 1.0,
    "optimizer.weight_decay": 0.1,
    "optimizer.warmup": 0.4,
    "optimizer.averaging": 0.9,
    "augment.haze": 0.3,
  }
  small, seed = config(**SMALLEST | recipe), 3
  r = np.random.default_rng(0)
  frames = {
    "image": r.integers(0, 256, (8, 32, 32, 1), np.uint8),
    "confidence": np.where(r.random((8, 32, 32, 2)) < 0.1, 153, 0).astype(np.uint8),
    "labelled": np.ones((8, 2), bool),
    "valid_box": np.tile(np.int32([4, 0, 28, 32]), (8, 1)),
  }
  frames["confidence"][1:, ..., 1] = 0  # the second class is rare
  trainer = cohort_lib.Trainer(small)
  found = trainer.run(dict.fromkeys(("train", "validation", "test"), frames), seed=seed)

  # By what trains and validates a segmentation run.
  own = config(**SMALLEST | recipe | {"seed": seed})
  objective = objective_lib.Objective(own)
  sweep = Sweep(objective.of_all_seeds()[1], "loop")
  tx, _ = optimizers.with_cosine(own.optimizer, 6)
  counts, repeats = train.of_labels(own, frames)
  assert repeats.tolist() == [3] + 7 * [1]
  network, state = train.initial_state(
    own, objective, sweep, in_channels=1, classes=2, tx=tx, counts=counts
  )
  source = pipeline.Frames(frames, cache="device")
  task = train.make_task(network, sweep, (), source, own, objective, tx=tx, schedule=None)
  step = state_lib.make_train_step(task.loss_fn, tx, task.averaging)
  step, prepare = sweep.compile(step, updates_state=True), jax.jit(task.prepare)
  batches, key = source.training_batches(4, seed=seed, repeats=repeats), jax.random.key(seed)
  for i in range(6):
    augment_key, model_key = jax.random.split(jax.random.fold_in(key, i))
    state, _ = step(state, sweep.members, prepare(next(batches), augment_key), model_key)
  inputs = augment.prepare(frames)
  newest = []
  for view, scalars, mine in zip(*objective.views(), found["train"], strict=True):
    for kind in ("weights", "newest"):
      raw, _ = objective.logits(network, **getattr(state[view.member], kind), image=inputs["image"])
      theirs = jax.nn.sigmoid(objective.output(raw, inputs, scalars))
      if kind == "weights":
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
      else:
        newest.append(abs(mine - theirs).max())
  assert min(newest) > 1e-4, "what is scored are the averages"


@pytest.mark.parametrize(("same", "expected"), [(None, [3, 4]), (2, [6, 7, 8, 9])])
def test_no_two_cohorts_start_from_the_same_weights(toy, same, expected, monkeypatch):
  trainer, seeds = cohort_lib.Trainer(config(**SMALLEST), same=same), []

  def place(sweep, states):
    weights = {
      np.asarray(state.params["segmentation_head"]["kernel"]).tobytes() for state in states
    }
    assert len(weights) == (same or 1)
    raise InterruptedError

  def initial(seed, classes, initial=trainer.initial):
    seeds.append(seed)
    return initial(seed, classes)

  monkeypatch.setattr(trainer, "initial", initial)
  monkeypatch.setattr(cohort_lib.Sweep, "place", place)
  for seed in (3, 4):
    with pytest.raises(InterruptedError):
      trainer.run({"train": {"confidence": np.zeros((1, 32, 32, 2))}}, seed=seed)
  assert seeds == expected


def test_an_interrupted_study_goes_on_to_the_same_results(finished, tmp_path, monkeypatch, capsys):
  score, calls = truth_lib.score, []

  def interrupted(*args):
    calls.append(args)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return score(*args)

  small = config(**SMALLEST)
  with monkeypatch.context() as patch:
    patch.setattr(truth_lib, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
      run.train_and_evaluate(small, tmp_path / "run")
  (first,) = (tmp_path / "run" / "units").iterdir()
  written = first.stat().st_mtime_ns
  assert not (tmp_path / "run" / "results").exists()
  run.train_and_evaluate(small, tmp_path / "run")
  assert first.stat().st_mtime_ns == written, "a finished unit is not done again"
  mine, theirs = (w / "results" / "which_target.json" for w in (tmp_path / "run", finished))
  assert mine.read_bytes() == theirs.read_bytes()

  # A finished study trains nothing and prints its tables again.
  capsys.readouterr()
  monkeypatch.setattr(cohort_lib.Trainer, "run", None)
  run.train_and_evaluate(small, tmp_path / "run")
  assert capsys.readouterr().out.startswith("Which target? 2 simulated cohorts a setting")
  assert mine.read_bytes() == theirs.read_bytes()
  other = config(**SMALLEST | {"train.epochs": 2})
  with pytest.raises(UserError, match=r"train\.epochs"):
    run.train_and_evaluate(other, tmp_path / "run")
  # Units of other null cohorts do not mix with these.
  monkeypatch.setattr(run, "NULL_PATIENTS", 6)
  with pytest.raises(UserError, match="the data set has changed"):
    run.train_and_evaluate(small, tmp_path / "run")


def test_ways_to_standardise_are_kept_apart(toy, tmp_path):
  methods = ("none", "quantile", "overlap")
  changes = {"study.standardise": methods, "data.phantom.raters": True, "study.null_studies": 0}
  run.train_and_evaluate(config(**SMALLEST | changes), tmp_path / "run")
  content = results.read(tmp_path / "run", "which_target")
  files = {file.name: compare.read_unit(file) for file in (tmp_path / "run/units").iterdir()}
  assert set(files) == {
    f"faint_true_{part}{seed}.json" for part in ("", "quantile_", "overlap_") for seed in (0, 1)
  }

  def mean(member, method, metric):
    names = [f"faint_true_{'' if method == 'none' else method + '_'}{i}.json" for i in (0, 1)]
    return np.mean([one[metric] for n in names for one in files[n] if one["member"] == member])

  # Verdicts are on confidences as they were painted.
  for row in content["rows"]:
    if row["weights"] == "paper":
      for one in row["means"][:2]:
        name = {1.0: "threshold_1", 0.5: "threshold_0.5"}[one["member"]]
        assert one["mean"] == pytest.approx(mean(name, "none", row["metric"]))
  keys = {(one["standardise"], one["member"], one["metric"]) for one in content["scales"]}
  assert len(keys) == len(content["scales"]) == 2 * 8 * len(compare.SCALED)
  for one in (*content["scales"], *content["spread"]):
    at = one["member"], one["metric"]
    assert one["mean"] == pytest.approx(mean(at[0], one["standardise"], at[1]))
    assert one["none"] == pytest.approx(mean(at[0], "none", at[1]))
    assert one["difference"] == pytest.approx(one["mean"] - one["none"])
  assert [one["standardise"] for one in content["spread"]] == ["quantile", "overlap"]


# A file, not a string: workers import it too, and so get the toy.
SCRIPT = """
import sys

from lus_jax import files, models
from lus_jax.main import run
from tests import toys
import test_which_target as cohorts

models.build_model = toys.build_head
if __name__ == "__main__":
  run(cohorts.config(**cohorts.SMALLEST | {"study.workers": int(sys.argv[2])}), sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_study_takes_its_workers_along_and_goes_on(finished, tmp_path):
  script, workdir = tmp_path / "script.py", tmp_path / "run"
  script.write_text(SCRIPT)
  paths = os.pathsep.join(map(str, (ROOT, pathlib.Path(__file__).parent)))

  def start(workers=2):
    return subprocess.Popen(
      [sys.executable, script, workdir, str(workers)],
      cwd=ROOT,
      env=os.environ
      | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  process = start()
  units = workdir / "units"
  for _ in range(1200):
    if (done := list(units.glob("*.json"))) or process.poll() is not None:
      break
    time.sleep(0.1)
  assert done, process.communicate()[0]
  process.kill()
  # The pipe ends when the last who could write to it has gone.
  process.communicate(timeout=60)
  written = {file: file.stat().st_mtime_ns for file in units.glob("*.json")}
  assert not (workdir / "results").exists()
  assert list((units / "simulated").iterdir())
  process = start(workers=1)  # a run goes on with any number
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert "Which target? 2 simulated cohorts a setting" in output
  assert {file: file.stat().st_mtime_ns for file in written} == written
  assert not (units / "simulated").exists()
  mine, theirs = (results.read(w, "which_target") for w in (workdir, finished))
  assert len(mine["units"]) == len(theirs["units"])
  for a, b in zip(mine["units"], theirs["units"], strict=True):
    assert a == pytest.approx(b, abs=1e-5)
