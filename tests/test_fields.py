"""Configs by their names from anywhere, and what is said of their fields."""

import pathlib

import pytest
from ml_collections import ConfigDict

from configs import paper, seg, which_target
from lus_jax import fields
from lus_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("text", ["seg", "seg.py", "configs/seg", "configs/seg.py"])
@pytest.mark.parametrize("size", ["", ":demo"])
def test_a_config_is_found_from_anywhere(tmp_path, monkeypatch, text, size):
  monkeypatch.chdir(tmp_path)
  assert fields.find(text + size) == f"{ROOT / 'configs' / 'seg.py'}{size}"


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "seg.py").touch()
  assert fields.find("configs/seg.py:mine") == "configs/seg.py:mine"
  assert fields.find("seg:mine") == f"{ROOT / 'configs' / 'seg.py'}:mine"
  (tmp_path / "notes.txt").touch()
  with pytest.raises(UserError, match="notes.txt is no config"):
    fields.find("notes.txt")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("rater:demo", r"did you mean --config=raters:demo\?"),
    ("elsewhere/seg.py", "did you mean --config=seg"),
    ("configs/common.py", "no such file"),
    ("x", r"by their names, from anywhere: clinic, covid_blues, .*, which_target"),
  ],
)
def test_a_config_that_is_not_there_suggests_one(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=message):
    fields.find(text)


@pytest.mark.parametrize(
  ("name", "near"),
  [
    ("train.epoch", "train.epochs"),
    ("epochs", "train.epochs"),
    ("thresholds", "sweep.thresholds"),
    ("sweep.treshold", "sweep.thresholds"),
    ("data.imagesize", "data.image_size"),
    ("colour", None),
  ],
)
def test_a_mistyped_field_suggests_the_near_one(name, near):
  assert fields.nearest(name, fields.flatten(seg.get_config())) == near


def test_every_field_is_told_with_its_value_and_its_own_comment():
  config = paper.get_config()
  lines = fields.describe(config, fields.CONFIGS / "paper.py").splitlines()
  assert len(lines) == len(fields.flatten(config))
  # Of parts whose fields have one name, each has its own.
  assert "  --config.sf_change.train.batch_size=16  # clips" in lines
  (batch,) = (line for line in lines if "--config.segmentation.train.batch_size=" in line)
  assert batch.endswith("=0  # 0: the paper's 16, or what fits the device and the data")
  assert "  --config.segmentation.loss.name='weighted_cross_entropy'" in lines
  (scale,) = (line for line in lines if "target_scale" in line)
  assert scale.endswith("# the target is divided by it")
  text = fields.describe(which_target.get_config(), fields.CONFIGS / "which_target.py")
  assert "  --config.study.workers=0  # processes that train side by side; 0: one a core" in text


@pytest.mark.parametrize("value", [None, 0, -1, float("inf"), float("nan")])
def test_what_is_no_number_of_its_range_is_refused_by_name(value):
  config = ConfigDict({"a": {"b": value}})
  with pytest.raises(UserError, match=r"config.a.b: .* must be a positive number"):
    fields.check_positive(config, "a.b")
  if value is None or value < 1:
    with pytest.raises(UserError, match=r"config.a.b: .* must be at least 1"):
      fields.check_least(config, {"a.b": 1})
  # A config of an older version lacks it.
  fields.check_least(config, {"a.c": 1})


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused_by_name(value):
  config = ConfigDict({"a": {"b": value, "c": 0.0, "d": 0.99}})
  with pytest.raises(UserError, match=r"config.a.b: .* must be at least 0 and below 1"):
    fields.check_shares(config, "a.b")
  fields.check_shares(config, "a.c", "a.d", "a.lacking")
