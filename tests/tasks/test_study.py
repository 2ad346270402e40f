"""The whole study: what its parts share, and the command from an empty directory to a report."""

import importlib
import os
import pathlib
import re

import numpy as np
import pytest

from lus_jax.data import folds
from lus_jax.errors import UserError
from lus_jax.tasks import forecast, study
from lus_jax.tasks.clinical import run as run_lib
from lus_jax.tasks.segmentation import run
from lus_jax.training import claim, hardware

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ("sf_change", "sf_ratio", "readmission")


def get_config(name, size="tiny"):
  return importlib.import_module(f"configs.{name}").get_config(size)


def small(prepared, **changes):
  """Two thresholds and two folds of six patients, at toy size."""
  config = get_config("paper")
  config.data.image_size = 32
  config.data.prepared_dir = os.fspath(prepared)
  config.data.phantom.update(n_patients=6, seed=57, missing_views=0.6, n_frames=3)
  config.segmentation.model.width = 0.125
  config.segmentation.sweep.thresholds = (0.6, 0.0)
  config.segmentation.train.epochs = 1
  config.folds.n = 2
  config.sf_ratio.train.epochs = 2
  config.update(changes)
  return config


@pytest.mark.parametrize("size", ["paper", "ours", "demo", "tiny"])
@pytest.mark.parametrize("name", ["paper", "study", "covid_blues"])
def test_every_part_of_every_study_is_a_config_of_its_own(name, size):
  config = get_config(name, size)
  parts = study.parts(config)
  own = name != "covid_blues"
  assert list(parts) == ["segmentation"] * own + list(config.tasks)
  for task, part in parts.items():
    (run if task == "segmentation" else run_lib).check(part)
    # The fields are those of the task's own config, so that one file explains them all.
    alone = "paper" if size == "ours" and task == "segmentation" else size
    alone = get_config({"segmentation": "seg"}.get(task, part.task), alone)
    expected, found = alone.to_dict(), part.to_dict()
    assert found.keys() == expected.keys()
    for field in expected.keys() - {"data"}:
      if isinstance(expected[field], dict):
        assert found[field].keys() == expected[field].keys(), (task, field)


def test_the_papers_recipe_is_the_papers_and_ours_is_a_word_away():
  for name, size, pairs, kind in (
    ("paper", "paper", "sampled", "binary"),
    ("paper", "ours", "in_batch", "probability"),
    ("paper", "demo", "in_batch", "probability"),
    ("study", "paper", "in_batch", "probability"),
  ):
    parts = study.parts(get_config(name, size))
    change = parts["sf_change"]
    assert (change.pairs, change.pairs_cap) == (pairs, 20_000)
    assert {parts[task].channels.kind for task in TASKS} == {kind}
  # They differ in nothing else.
  both = [get_config("paper", size) for size in ("paper", "ours")]
  for config in both:
    config.sf_change.pairs, config.channels.kind = "", ""
  assert both[0].to_dict() == both[1].to_dict()


def test_both_ways_are_told_before_the_papers_study_begins(tmp_path, monkeypatch, capsys):
  config = get_config("paper", "paper")
  parts = study.parts(config)
  table = forecast.phantom_table(config.data.phantom)
  splits = folds.of_videos(table, config.folds)
  found = forecast.clips_of_training(parts["sf_change"], table, splits)
  # 20,000 pairs, two clips each, 50 epochs; and the validation, a third of the work.
  least = 2 * 20_000 * 50
  assert least < found["sampled"] < 1.01 * least
  videos = max(sum(p in fold.train for p in table.patient.tolist()) for fold in splits)
  assert 0.9 * 50 * videos < found["in_batch"] < 1.3 * 50 * videos
  assert len(set(forecast.clips_of_training(parts["sf_ratio"], table, splits).values())) == 1

  h100 = hardware.Device("gpu", "an H100", 60 * 2**30, 9.0)
  text = forecast.of_study(parts, h100, rate=lambda dtype: 6e14)
  lines = text.splitlines()
  (row,) = [line.split() for line in lines if "sf_change " in line]
  assert row[:4] == [
    "sf_change",
    "45",
    f"{45 * found['sampled']:.2g}",
    f"{45 * found['in_batch']:.2g}",
  ]
  # 45 models of 8 frames of 7 channels: 15.1 GFLOP a clip, forward and backward.
  assert "hours" in row and "minutes" in row
  frames = int(table.n_frames.sum())
  assert f"channels {frames * 224**2 * (1 + 6 * 8) / 2**30:.1f} GiB" in lines[-1]
  assert "This run goes the paper's way; the other way is --config.sf_change.pairs=in_batch" in text
  # All seeds of a study take as many times as long as one; of one nothing more is said.
  (one,) = [line.split() for line in lines if "in all" in line]
  hours = float(one[one.index("hours") - 1])
  more = forecast.of_study(parts, h100, rate=lambda dtype: 6e14, times=2).splitlines()
  (row,) = [line.split() for line in more if "2 of these" in line]
  assert float(row[row.index("hours") - 1]) == pytest.approx(2 * hours, abs=0.15)
  assert len(more) == len(lines) + 1
  # A batch of more clips than there are cannot be; sampled pairs can.
  parts["sf_change"].train.batch_size = 1000
  assert np.isnan(forecast.clips_of_training(parts["sf_change"], table, splits)["in_batch"])
  # Of little work nothing is said, nor of data that have to be looked at first.
  assert forecast.of_study(study.parts(get_config("paper", "tiny")), h100) == ""
  config.data.name = "lus_folder"
  assert forecast.of_study(study.parts(config), h100) == ""

  # It stands before everything else.
  config = get_config("paper", "paper")
  monkeypatch.setattr(hardware, "find_device", lambda: h100)
  monkeypatch.setattr(forecast.peak, "matmul_rate", lambda dtype: 6e14)
  for task in (run, run_lib):
    monkeypatch.setattr(task, "train_and_evaluate", lambda *args: None)
  study.train_and_evaluate(config, tmp_path)
  assert capsys.readouterr().out.startswith(f"{text}\n== 1 of 4: segmentation\n")
  # Of a study that goes on it was told.
  study.train_and_evaluate(config, tmp_path)
  assert capsys.readouterr().out.startswith("== 1 of 4: segmentation\n")


@pytest.mark.parametrize("tasks", [(), ("sf_ratio",)])
def test_without_pairs_there_is_one_way(tasks):
  config = get_config("paper", "paper")
  config.tasks = tasks
  h100 = hardware.Device("gpu", "an H100", 60 * 2**30, 9.0)
  text = forecast.of_study(study.parts(config), h100, rate=lambda dtype: 6e14)
  assert "way" not in text and "pairs" not in text and "nan" not in text
  rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
  both = ["channels", "sf_ratio"] if tasks else []
  assert [name for name in ("segmentation", "channels", "sf_ratio") if name in rows] == [
    "segmentation",
    *both,
  ]
  # A number of models, and images and a time once: '2.4e+06', '11', 'hours'.
  assert len(rows["segmentation"]) == 5 and len(rows["in"]) == 4
  assert ("channels" in text.splitlines()[-1]) == bool(tasks)
  assert "On disk: " in text and "checkpoints" in text.splitlines()[-1]


def test_averages_and_epochs_of_steps_are_told():
  h100 = hardware.Device("gpu", "an H100", 60 * 2**30, 9.0)

  def told(tasks=(), **changes):
    config = get_config("paper", "paper")
    config.tasks = tasks
    config.update_from_flattened_dict(changes)
    text = forecast.of_study(study.parts(config), h100, rate=lambda dtype: 6e12)
    (row,) = [line.split() for line in text.splitlines() if line.strip().startswith("segm")]
    return float(row[2]), float(re.search(r"checkpoints ([\d.]+) GiB", text)[1])

  images, room = told()
  averaged = told(**{"segmentation.optimizer.averaging": 0.99})
  assert averaged == (images, pytest.approx(1.25 * room, rel=0.05))
  # 100 epochs of 50 batches of 16, of 7 models; and 4 validation patients' frames, a third each.
  steps, _ = told(**{"segmentation.train.epoch_steps": 50})
  table = forecast.phantom_table(get_config("paper", "paper").data.phantom)
  validated = int((table.split == "validation").sum()) / 3
  assert steps == pytest.approx(100 * 7 * (800 + validated), rel=0.05)
  # As many again for the models of each fold.
  strict = {"segmentation.train.epoch_steps": 50, "folds.leakage": "strict", "folds.inner": 0}
  of_folds, _ = told(("sf_ratio",), **strict)
  k = get_config("paper", "paper").folds.n
  assert of_folds == pytest.approx(100 * 7 * (800 * (1 + k) + validated), rel=0.05)


def test_what_is_set_once_reaches_every_part():
  config = get_config("paper", "demo")
  config.seed, config.clip.n_segment, config.folds.cv = 5, 3, "rotate"
  config.channels.thresholds, config.data.cache = (0.6,), "stream"
  config.lock()
  parts = study.parts(config)
  assert all(part.seed == 5 and part.data.cache == "stream" for part in parts.values())
  assert parts["segmentation"].data.phantom.n_patients == config.data.phantom.n_patients
  for task in TASKS:
    part = parts[task]
    assert part.name == part.task == task
    assert (part.clip.n_segment, part.folds.cv) == (3, "rotate")
    assert part.channels.thresholds == (0.6,) and part.channels.workdir == ""
    assert part.data.name == ""
  # Parts are copies: the study's config is what it was.
  parts["sf_ratio"].clip.n_segment = 9
  assert config.clip.n_segment == parts["sf_change"].clip.n_segment == 3
  assert parts["readmission"].model.init_from == "sf_change"


def test_real_videos_take_the_segmentation_that_is_named():
  config = get_config("covid_blues", "demo")
  config.channels.workdir, config.data.dir = "runs/seg", "DIR"
  parts = study.parts(config)
  for name, (task, target) in {
    "severity": ("sf_ratio", "severity"),
    "sf_ratio": ("sf_ratio", "sf_ratio"),
    "cov_test": ("readmission", "cov_test"),
  }.items():
    part = parts[name]
    assert (part.name, part.task, part.target) == (name, task, target)
    assert part.channels.workdir == "runs/seg"
    assert (part.data.name, part.data.dir) == ("covid_blues", "DIR")
  assert parts["cov_test"].days == "single" and parts["cov_test"].model.init_from == "severity"


def refused(config, workdir, message):
  with pytest.raises(UserError) as error:
    study.train_and_evaluate(config, workdir)
  assert message in str(error.value), str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("paper", lambda c: c.update(tasks=("sf_change", "ratio")), "config.tasks: 'ratio' is not"),
    ("paper", lambda c: c.clip.update(n_segment=0), "config.clip.n_segment: 0"),
    ("paper", lambda c: c.readmission.train.update(epochs=0), "config.readmission.train.epochs: 0"),
    ("paper", lambda c: c.segmentation.train.update(epochs=0), "config.segmentation.train.epochs"),
    ("paper", lambda c: c.folds.update(cv="x"), "config.folds.cv: 'x'"),
    ("paper", lambda c: c.segmentation.sweep.update(thresholds=(2.0,)), "2.0 is not in [0, 1]"),
    ("paper", lambda c: c.data.update(name="mnist"), "config.data.name: 'mnist'"),
    ("paper", lambda c: c.data.update(cache="disk"), "config.data.cache: 'disk'"),
    ("paper", lambda c: c.data.phantom.update(n_patients=2), "at least 3"),
    ("paper", lambda c: c.data.phantom.update(seed=-1), "needs seed >= 0"),
    ("covid_blues", lambda c: None, "holds no segmentation run; name one with"),
  ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path, name, change, message):
  config = get_config(name)
  config.data.prepared_dir = os.fspath(tmp_path / "data")
  change(config)
  refused(config, tmp_path / "run", message)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["segmentation", "sf_ratio"])
def test_what_a_part_says_names_the_studys_own_fields(tmp_path, monkeypatch, name):
  """`--config.train.epochs` is no option of a study; `--config.folds.n` is one."""

  def refuses(config, workdir):
    if getattr(config, "name", config.task) == name:
      raise UserError("lower --config.optimizer.learning_rate or --config.folds.n.")

  monkeypatch.setattr(study.segmentation, "train_and_evaluate", refuses)
  monkeypatch.setattr(study.clinical, "train_and_evaluate", refuses)
  message = rf"lower --config\.{name}\.optimizer\.learning_rate or --config\.folds\.n\."
  with pytest.raises(UserError, match=message):
    study.train_and_evaluate(small(tmp_path / "data"), tmp_path / "run")


def test_two_studies_in_one_directory_are_refused(tmp_path, in_use):
  (tmp_path / "study").mkdir()
  with in_use(tmp_path / "study"), pytest.raises(UserError, match="study is in use by process 123"):
    study.train_and_evaluate(small(tmp_path / "data"), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["study"]


def test_a_study_from_before_augmentation_goes_on_without(tmp_path, monkeypatch):
  config = small(tmp_path / "data")
  begun = claim.settings(config)
  for name in TASKS:
    assert not {"augment", "calibration"} & set(begun[name])
    assert "dropout" not in begun[name]["model"] and "weight_decay" not in begun[name]["optimizer"]
  assert {"augment", "calibration"} <= set(begun["segmentation"])
  claim.claim(tmp_path / "study", begun, {})
  seen = []
  for task in (run, run_lib):
    monkeypatch.setattr(task, "train_and_evaluate", lambda part, workdir: seen.append(part))
  study.train_and_evaluate(config, tmp_path)
  assert len(seen) == 4
  asked = small(tmp_path / "data")
  asked.sf_ratio.augment.probability = 0.5
  refused(asked, tmp_path, "different: sf_ratio.augment")


def test_a_data_folder_is_no_workdir(tmp_path):
  (tmp_path / "manifest.csv").write_text("video,patient\n")
  refused(small(tmp_path / "data"), tmp_path, "is a data folder")
  assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]
