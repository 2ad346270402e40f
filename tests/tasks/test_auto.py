"""Sizes from the data, by value; and a run that goes on with what it chose."""

import numpy as np
import pytest
from scipy import ndimage

from configs import raters, seg
from lus_jax import fields
from lus_jax.errors import UserError
from lus_jax.models import flops
from lus_jax.tasks.segmentation import auto, run
from lus_jax.training import claim, hardware
from lus_jax.training.objective import Objective

GIB = 2**30
CPU = hardware.Device("cpu", "cpu", 18 * GIB)
H100 = hardware.Device("gpu", "NVIDIA H100", 60 * GIB, 9.0)
RATES = {"cpu": 1e11, "gpu": 6e14}


class Split(list):
  def only(self, *names):
    return self


def dataset(*, width, frames=40, levels=(255,), classes=2):
  """Frames at `auto.LOOK` pixels, of which class 0 is a band and class 1 a square."""

  class Dataset:
    pass

  found = Dataset()
  confidence = np.zeros((auto.LOOK, auto.LOOK, classes), np.uint8)
  for i, level in enumerate(levels):
    confidence[100 : 100 + width, 60 * i : 60 * i + 60, 0] = level
  confidence[200:300, 200:300, 1] = 255
  example = {"confidence": confidence}
  found.splits = {"train": Split([example] * frames), "validation": Split([example] * 8)}
  found.classes = ("line", "area")
  return found


def asked(**changes):
  config = seg.get_config("auto")
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture
def chosen(monkeypatch, tmp_path):
  """`choose(data, device, **changes)`: the config and the lines that say why."""

  def choose(data, device=CPU, module=seg, workdir=tmp_path / "new", **changes):
    monkeypatch.setattr(auto.datasets, "open_dataset", lambda config, kind: data)
    monkeypatch.setattr(
      auto.selection, "select", lambda found, config: type("S", (), {"used": found})
    )
    monkeypatch.setattr(auto.hardware, "find_device", lambda: device)
    monkeypatch.setattr(auto.peak, "matmul_rate", lambda dtype: RATES[device.platform])
    config = module.get_config("auto")
    config.data.name = "lus_folder"
    config.update_from_flattened_dict(changes)
    return auto.choose(config.lock(), workdir)

  return choose


def test_binary_masks_of_areas_get_one_threshold_and_a_usual_size(chosen):
  config, why = chosen(dataset(width=60))
  assert config.sweep.thresholds == (0.5,)
  assert (config.data.image_size, config.model.width, config.train.batch_size) == (192, 0.5, 8)
  # 1,200 s at half of 100 GFLOP/s; nothing is left open.
  options = {"width": 0.5, "refinements": 1}
  flop = flops.fpn("resnet18", size=192, in_channels=1, classes=2, **options)
  expected = 1200 * 5e10 / (3 * flop * (8 + 8 / 3 / 50))
  assert abs(config.train.steps - expected) <= 25 and config.train.steps % 50 == 0
  assert all(fields.value(config, name) != x for name, (x, _) in auto.CHOSEN.items())
  assert len(Objective(config).members) == 1
  text = "\n".join(why)
  assert "auto: the threshold 50%: the others' labels are the same, or empty" in text
  assert "images of 192 x 192, where line, the thinnest class, is about 15 pixels wide" in text
  assert f"{config.train.steps} steps, for about 20 minutes of 1 model on this cpu" in text


def test_networks_are_as_wide_as_what_they_start_from(chosen, tmp_path):
  claim.claim(tmp_path / "other", claim.settings(seg.get_config("tiny")), {})
  begin = {"model.init_from": str(tmp_path / "other")}
  config, why = chosen(dataset(width=60), **begin)
  assert config.model.width == auto.provisional(asked(**begin)).model.width == 0.25
  assert "auto: width 0.25, of what the networks start from" in why
  assert chosen(dataset(width=60), **{"model.init_from": "resnet18.pth"})[0].model.width == 1
  # What is asked for is kept, and refused elsewhere where it does not fit.
  assert chosen(dataset(width=60), **begin, **{"model.width": 0.5})[0].model.width == 0.5


def test_thin_lines_get_larger_images_where_there_is_time(chosen):
  # 4 pixels at 512: 3 pixels at 384, which is more than a CPU is given.
  assert 384 <= chosen(dataset(width=4), H100)[0].data.image_size <= 416
  assert chosen(dataset(width=2), H100)[0].data.image_size == 512
  assert chosen(dataset(width=4), **{"train.minutes": 40.0})[0].data.image_size == auto.MOST_CPU
  hurried, why = chosen(dataset(width=4), **{"train.minutes": 3.0})
  assert auto.LEAST <= hurried.data.image_size < auto.MOST_CPU
  assert any("320 would take more time than there is for 600 steps" in text for text in why)


def test_painted_levels_get_a_threshold_each(chosen):
  config, _ = chosen(dataset(width=40, levels=(255, 153, 102)), H100)
  assert config.sweep.thresholds == (0.8, 0.5, 0.4)
  assert config.model.width == 1.0 and config.train.steps == auto.TOO_MANY
  faint = dataset(width=40, levels=(153, 102))
  for split in faint.splits.values():
    for example in split:
      example["confidence"][..., 1] = 0
  assert chosen(faint, H100)[0].sweep.thresholds == (0.5, 0.4)
  of_raters, _ = chosen(dataset(width=40, levels=(255, 153, 102)), H100, raters)
  assert of_raters.sweep.thresholds == config.sweep.thresholds


def test_members_that_the_chosen_thresholds_do_not_allow_are_left_out(chosen, tmp_path):
  asked = raters.get_config("auto")
  # Before anything is known of the data, none is refused.
  objective, _ = run.check(auto.provisional(asked))
  assert objective.members[-1].target == "ordinal"
  config, why = chosen(dataset(width=60), module=raters)
  assert config.sweep.thresholds == (0.5,)
  assert config.sweep.members == asked.sweep.members[:-1]
  assert run.check(config)[0].head == 1
  assert any("; without the ordinal network, which needs one above 50%" in text for text in why)
  claim.claim(tmp_path / "run", claim.settings(config), {})
  again, _ = chosen(None, module=raters, workdir=tmp_path / "run")
  assert claim.settings(again) == claim.settings(config)
  several, why = chosen(dataset(width=60, levels=(255, 153)), module=raters)
  assert several.sweep.members == asked.sweep.members and "ordinal" not in "".join(why)
  # Thresholds that were named are the user's own.
  asked.sweep.thresholds = (0.5, 0.2)
  with pytest.raises(UserError, match="'ordinal' needs a threshold above .5"):
    run.check(auto.provisional(asked))


def test_what_is_said_stays_and_the_rest_follows_from_it(chosen):
  said = {"data.image_size": 64, "sweep.thresholds": (0.6, 0.2), "train.minutes": 1.0}
  config, why = chosen(dataset(width=4), **said)
  assert (config.data.image_size, config.sweep.thresholds) == (64, (0.6, 0.2))
  assert not any("images of" in text or "threshold" in text for text in why)
  more, _ = chosen(dataset(width=4), **said | {"train.minutes": 2.0})
  assert more.train.steps == pytest.approx(2 * config.train.steps, rel=0.1)


def test_few_frames_get_small_batches(chosen):
  assert [chosen(dataset(width=60, frames=n))[0].train.batch_size for n in (1, 2, 5, 9, 40)] == [
    1,
    2,
    2,
    4,
    8,
  ]


def test_a_run_goes_on_with_what_it_chose(chosen, tmp_path):
  config, why = chosen(dataset(width=4), H100)
  claim.claim(tmp_path / "run", claim.settings(config), {})
  again, nothing = chosen(None, CPU, workdir=tmp_path / "run")
  assert why and nothing == []
  assert claim.settings(again) == claim.settings(config)
  (tmp_path / "other" / "results").mkdir(parents=True)
  with pytest.raises(UserError, match="holds results but no run.json"):
    chosen(None, CPU, workdir=tmp_path / "other")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 20])
def test_the_width_of_a_line_is_measured_whichever_way_it_runs(width):
  plain = np.zeros((128, 128), bool)
  plain[40 : 40 + width, 4:124] = True
  slanted = ndimage.rotate(plain.astype(np.uint8), 30, reshape=False, order=0) > 0
  for mask in (plain, slanted):
    confidence = np.stack([255 * mask, 0 * mask], axis=-1).astype(np.uint8)
    line, nothing = auto.widths_of(Split([{"confidence": confidence}] * 3), 2)
    assert line == pytest.approx(width, rel=0.15, abs=1) and nothing == np.inf
