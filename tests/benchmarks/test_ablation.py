"""The screening: its design, its effects where they are known, what a part is, what is kept."""

import json

import numpy as np
import pytest

from configs import seg
from lus_jax import fields
from lus_jax.benchmarks import ablation, quality_sides
from lus_jax.errors import UserError
from tests.compared import SIZE

OPTIONS = f"--data lus_phantom --size {SIZE} --folds 3 --seeds 0,1 --budget 5 --in-process"
# What toy sides make of a part: the share of right pixels that it adds.
BRINGS = {"loss.region": 0.1, "optimizer.averaging": 0.0, "augment.elastic": -0.05}


@pytest.fixture
def ours(monkeypatch, twelve):
  """A side that is right the more often, the more of `BRINGS` its config has; what it was asked."""
  asked = []

  def train(job):
    asked.append(job)
    has = {name: bool(fields.value(job.config, name)) for name in BRINGS}
    right = 0.8 + sum(BRINGS[name] for name, there in has.items() if there)
    target = job.arrays("test")["target"]
    noise = np.random.default_rng([job.seed, len(asked)]).random(target.shape)
    found = np.where(noise < right, target, 1 - target) * 0.8 + 0.1
    steps = 100 if has["augment.elastic"] else 150
    return quality_sides.Found(found.astype(np.float32), found >= 0.5, 4.9, steps)

  monkeypatch.setattr(quality_sides, "ours", train)
  return asked


def run(capsys, *more):
  code = ablation.main([*OPTIONS.split(), *more])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17])
def test_no_part_is_mistaken_for_another_or_for_two_together(n):
  rows = ablation.design(n)
  assert rows.shape == (2 * max(2, 2 ** int(np.ceil(np.log2(n)))), n) and rows[0].all()
  sign = rows * 2.0 - 1
  np.testing.assert_array_equal(sign.T @ sign, len(rows) * np.eye(n))
  assert not sign.sum(0).any()
  # Nor for what two do together.
  for i in range(n):
    for j in range(i):
      assert not ((sign[:, i] * sign[:, j]) @ sign).any()


def test_effects_are_those_put_in_and_folds_do_not_count():
  rows, r = ablation.design(5), np.random.default_rng(0)
  on, fold = np.tile(rows, (3, 1)), (np.arange(48) + np.repeat(range(3), 16)) % 3
  true = np.array([0.2, 0.0, -0.1, 0.05, 0.0])
  hard = np.array([0.0, 0.3, -0.2])[fold]
  exact = ablation.effects(on, fold, 0.5 + on @ true + hard)
  np.testing.assert_allclose(exact["effect"], true, atol=1e-12)
  assert exact["luck"] < 1e-12
  inside, luck = [], []
  for _ in range(200):
    found = ablation.effects(on, fold, 0.5 + on @ true + hard + r.normal(0, 0.04, 48))
    inside.append(np.abs(np.array(found["effect"]) - true) < found["interval"])
    luck.append(found["luck"])
  assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
  assert np.mean(luck) == pytest.approx(0.04, rel=0.05)
  # Of some of the trainings, as long as they tell the parts apart.
  some = ablation.effects(on[:40], fold[:40], (0.5 + on @ true + hard)[:40])
  np.testing.assert_allclose(some["effect"], true, atol=1e-12)
  none = dict.fromkeys(("effect", "interval", "luck"))
  assert ablation.effects(on[:4], fold[:4], np.zeros(4)) == none
  assert ablation.effects(on[:0], fold[:0], np.zeros(0)) == none


def test_four_trainings_tell_two_parts_but_no_luck():
  planned = ablation.trials([None, None], 3, [7])
  on, fold = np.array([t.on for t in planned]), [t.fold for t in planned]
  values = np.array([0.1, 0.4, 0.2])[fold] + on @ [0.2, -0.1]
  found = ablation.effects(on, fold, values)
  np.testing.assert_allclose(found["effect"], [0.2, -0.1], atol=1e-12)
  assert found["interval"] is None and found["luck"] is None


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17])
@pytest.mark.parametrize("folds", [1, 3, 5])
@pytest.mark.parametrize("seeds", [[0], [0, 3], [2, 1, 0]])
def test_no_part_has_the_easier_folds(n, folds, seeds):
  planned = ablation.trials([None] * n, folds, seeds)
  sign = np.array([t.on for t in planned]) * 2 - 1
  fold = np.array([t.fold for t in planned])
  assert len(planned) == len(seeds) * len(ablation.design(n))
  assert len({(t.name, t.fold, t.seed) for t in planned}) == len(planned)
  for one in range(folds):
    assert not sign[fold == one].sum(0).any()
  half = range(len(ablation.design(n)) // 2)
  assert set(fold.tolist()) == {(i + seed) % folds for i in half for seed in seeds}
  # What other processes make of single seeds is what all together would.
  alone = [t for seed in seeds for t in ablation.trials([None] * n, folds, [seed])]
  assert [(t.name, t.fold, t.seed) for t in alone] == [(t.name, t.fold, t.seed) for t in planned]
  # So effects are those without folds, and no two parts together look like a third.
  hard = np.random.default_rng(0).normal(size=folds)[fold]
  for i in range(n):
    for j in range(i):
      found = ablation.effects(sign > 0, fold, hard + sign[:, i] * sign[:, j])
      np.testing.assert_allclose(found["effect"], 0, atol=1e-12)


def test_parts_of_the_recipe_are_what_the_papers_has_at_0():
  config, reference = seg.get_config("small"), seg.get_config()
  parts = {part.name: part for part in ablation.parts_of(config, reference)}
  assert {name.partition(".")[0] for name in parts} == {"augment", "loss", "optimizer"}
  assert len(parts) == 9 and {"augment.elastic", "loss.from_prevalence"} < set(parts)
  on = np.array([name != "augment.elastic" for name in parts])
  less = ablation.with_parts(config, list(parts.values()), on)
  changed = fields.flatten(config).items() - fields.flatten(less).items()
  assert changed == {("augment.elastic", config.augment.elastic)} and less.augment.elastic == 0


def test_a_part_may_be_a_value_or_several_fields():
  config, reference = seg.get_config("small"), seg.get_config()
  text = "augment.crop=64,augment.scale+augment.shift,loss.region=0.5,model.init_from=DIR"
  parts = ablation.parse_parts(text, config, reference)
  assert [part.name for part in parts] == text.split(",")
  assert (parts[0].on, parts[0].off) == ({"augment.crop": 64}, {"augment.crop": 0})
  assert parts[1].off == {"augment.scale": 0, "augment.shift": 0}
  assert (parts[2].on, parts[2].off) == ({"loss.region": 0.5}, {"loss.region": 1.0})
  assert parts[3].on == {"model.init_from": "DIR"}
  for text, message in (
    ("augment.hase", "augment.hase is no part of a recipe; did you mean augment.haze"),
    ("data.image_size=64", "data.image_size is no part of a recipe.$"),
    ("sweep.seeds=2", "sweep.seeds is no part of a recipe.$"),
    ("augment.crop", "augment.crop is the same with and without it: 0"),
    ("augment.crop=2.5", "augment.crop=2.5 must be a int, as 0"),
    ("train.rare=often", "train.rare=often must be a float, as 0.0"),
    ("train.steps=500", "train.steps follows from --budget"),
    ("augment.scale,augment.scale+augment.shift", "augment.scale stands there twice"),
  ):
    with pytest.raises(UserError, match=f"--parts: {message}"):
      ablation.parse_parts(text, config, reference)


def test_a_screening_finds_what_parts_bring(ours, tmp_path, capsys):
  parts = f"--parts={','.join(BRINGS)}"
  code, printed, _ = run(capsys, parts, f"--out={tmp_path}")
  assert code == 0 and len(ours) == 2 * 8
  content = json.loads((tmp_path / "ablation.json").read_text())
  assert content["parts"] == list(BRINGS) and len(content["trainings"]) == 16
  # Every fold has its turns, and the second seed others.
  assert [job.seed for job in ours] == [0] * 8 + [1] * 8
  first = [0, 1, 2, 0]
  assert [one["fold"] for one in content["trainings"]] == 2 * first + 2 * [1, 2, 0, 1]
  dice = dict(zip(BRINGS, content["effects"]["dice"]["effect"], strict=True))
  assert dice["loss.region"] > 0.05 and abs(dice["optimizer.averaging"]) < 0.02
  assert dice["augment.elastic"] < -0.02
  rows = [line for line in printed.splitlines() if line.startswith("| augment.elastic")]
  assert rows[0].endswith("| x 0.67 |") and "| -.0" in rows[0] and " ± .0" in rows[0]
  assert "one training's luck .0" in printed and "16 of 16 trainings; ± 95 % over" in printed
  # What is finished is not done again; other parts are refused.
  assert run(capsys, parts, f"--out={tmp_path}")[0] == 0 and len(ours) == 16
  code, _, error = run(capsys, "--parts=augment.shift", f"--out={tmp_path}")
  assert code == 2 and "holds row 01 of other settings (config." in error


def test_a_training_that_fails_is_said_and_the_others_count(ours, tmp_path, capsys, monkeypatch):
  def fails(job):
    if len(ours) == bad:
      ours.append(None)
      raise UserError("its loss is nan at step 3.")
    return train(job)

  train, bad = quality_sides.ours, 2
  monkeypatch.setattr(quality_sides, "ours", fails)
  code, printed, _ = run(capsys, "--parts=loss.region", f"--out={tmp_path}", "--folds=1")
  assert code == 0 and "row 02, fold 0, seed 0: not measured: its loss is nan" in printed
  # As a side of the comparison it is not tried again with the other seed.
  assert "6 of 8 trainings" in printed and "row 02 is not finished: its loss is nan" in printed
  content = json.loads((tmp_path / "ablation.json").read_text())
  assert content["effects"]["dice"]["effect"][0] > 0.05
  # Too few to tell.
  bad = len(ours) + 1
  shown = run(capsys, "--parts=loss.region", "--seeds=5", "--folds=1", "--phantom-seed=7")[1]
  assert "| loss.region | +.1" in shown or "| loss.region | +.0" in shown


def test_a_fold_without_a_score_is_left_out(ours, tmp_path, capsys, monkeypatch):
  scored = ablation.scores_of

  def without(study, trial):
    found = scored(study, trial)
    return found and found | {"surface_dice": None}

  monkeypatch.setattr(ablation, "scores_of", without)
  code, printed, _ = run(capsys, "--parts=loss.region", f"--out={tmp_path}")
  assert code == 0 and "| too few trainings |" in printed
  effects = json.loads((tmp_path / "ablation.json").read_text())["effects"]
  assert effects["surface_dice"]["effect"] is None and effects["dice"]["effect"][0] > 0.05


def test_other_patients_of_the_phantom_may_be_asked_for(ours, tmp_path, capsys):
  options = ["--parts=loss.region", f"--out={tmp_path}"]
  assert run(capsys, *options, "--phantom-seed=7")[0] == 0
  assert {job.config.data.phantom.seed for job in ours} == {7}
  code, _, error = run(capsys, *options, "--phantom-seed=8")
  assert code == 2 and "config.data.phantom.seed: 7 there, 8 here" in error


def test_what_cannot_be_screened_is_refused(ours, capsys):
  for option, message in (
    ("--config=seg:tiny", "--config=seg:tiny has nothing on that its own default has at 0"),
    ("--parts=augment.crop=7", "config.augment.crop: 7 is too small; use at least 32"),
    ("--size=50", "--size=50: the networks need a multiple of 32"),
  ):
    code, _, error = run(capsys, option)
    assert code == 2 and message in error and error.count("\n") == 1
  assert not ours
