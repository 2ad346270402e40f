"""Settings by device, and estimates by value; no device but the CPU is needed."""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from configs import paper, raters, readmission, seg, sf_ratio, which_target
from lus_jax import models
from lus_jax.data import augment
from lus_jax.errors import UserError
from lus_jax.models import designs
from lus_jax.training import claim, estimate, hardware
from lus_jax.training.objective import Objective
from lus_jax.training.state import Network
from tfds_builders.lus_phantom import lus_phantom

GIB = 2**30
# What XLA leaves of a device: three quarters.
H200 = hardware.Device("gpu", "NVIDIA H200", 141 * GIB * 3 // 4, 9.0)
A6000 = hardware.Device("gpu", "NVIDIA RTX A6000", 36 * GIB, 8.6)
V100 = hardware.Device("gpu", "Tesla V100-SXM2-16GB", 12 * GIB, 7.0)
RTX3060 = hardware.Device("gpu", "NVIDIA GeForce RTX 3060", 9 * GIB, 8.6)
CPU = hardware.Device("cpu", "cpu", 48 * GIB)


def n_models(config):
  return Objective(config).n_models


def resolve(config, device, **options):
  return hardware.resolve(config, device, models=n_models(config), **options)


@pytest.mark.parametrize(
  ("device", "strategy", "dtype", "batch"),
  [
    (H200, "loop", "bfloat16", 16),
    (H200, "vmap", "bfloat16", 16),
    (A6000, "loop", "bfloat16", 16),
    (A6000, "vmap", "bfloat16", 8),
    (V100, "loop", "float32", 4),
    (RTX3060, "loop", "bfloat16", 8),
    (CPU, "loop", "float32", 16),
  ],
)
def test_the_papers_recipe_on_devices(device, strategy, dtype, batch):
  config, why = resolve(seg.get_config(), device, frames=355, strategy=strategy)
  assert (config.model.dtype, config.train.batch_size) == (dtype, batch)
  assert set(why) == {"dtype", "batch_size"}
  need = hardware.step_memory(config, models=7, batch=batch, classes=6, strategy=strategy)
  assert need <= 0.75 * device.memory
  if batch < 16:
    twice = hardware.step_memory(config, models=7, batch=2 * batch, classes=6, strategy=strategy)
    assert twice > 0.75 * device.memory


def test_what_is_set_stays():
  config = seg.get_config()
  config.model.dtype, config.train.batch_size = "float32", 3
  resolved, why = hardware.resolve(config, H200, models=7)
  assert resolved.to_dict() == config.to_dict() and why == {}
  for size in ("demo", "tiny"):
    assert resolve(seg.get_config(size), H200, frames=355)[1] == {}
    assert hardware.resolve(readmission.get_config(size), H200, models=1)[1] == {}
  task, _ = hardware.resolve(readmission.get_config(), H200, models=1)
  assert (task.model.dtype, task.train.batch_size) == ("bfloat16", 2)


def test_the_batch_rises_with_memory_and_falls_with_size_models_and_frames():
  def batch(memory=24, frames=355, strategy="loop", count=1, thresholds=None, **data):
    config = seg.get_config()
    config.data.update(data)
    config.sweep.thresholds = thresholds or config.sweep.thresholds
    device = hardware.Device("gpu", "x", int(memory * GIB), 8.0, count)
    resolved, _ = resolve(config, device, frames=frames, strategy=strategy)
    return resolved.train.batch_size

  by_memory = [batch(memory) for memory in (0.5, 6, 7, 8, 10, 16, 24, 1000)]
  assert by_memory == sorted(by_memory) and set(by_memory) == {1, 2, 4, 8, 16}
  assert batch(image_size=1024) == 8 < batch() == 16
  assert batch(frames=11) == 8 and batch(frames=1) == 1
  assert batch(strategy="vmap") < batch() == batch(strategy="sharded", count=2)
  # One model's batch over 3 devices; a third of it lies on each.
  assert batch(thresholds=(0.5,), strategy="sharded", count=3) == 15
  assert batch(strategy="1x3", count=3) == 15
  assert batch(5, thresholds=(0.5,)) == 8 < batch(5, thresholds=(0.5,), strategy="sharded", count=2)


@pytest.mark.parametrize("encoder", designs.Fpn.SIZES)
def test_the_table_of_parameters_is_that_of_the_networks(encoder):
  config = seg.get_config()
  config.model.update(encoder=encoder, dtype="float32")
  params = jax.eval_shape(
    lambda: Network(models.build_model(config.model, in_channels=1, classes=6, seed=0)).params
  )
  n = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  assert n <= designs.Fpn.SIZES[encoder][1] <= 1.01 * n


def test_a_run_on_data_that_an_older_reader_prepared_is_refused_as_such(tmp_path):
  claim.claim(tmp_path, {}, {"version": "1.0.0 (frames_96x96_1f3b9c2a)"})
  with pytest.raises(UserError, match="version 1.0.0 of their reader.*is version 1.1.0: whether"):
    claim.check_claim(tmp_path, {}, {"version": "1.1.0 (frames_96x96_00000000)"})
  with pytest.raises(UserError, match="the data set has changed"):
    claim.check_claim(tmp_path, {}, {"version": "1.0.0 (frames_96x96_00000000)"})


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path):
  begun, _ = resolve(seg.get_config(), RTX3060, frames=355)
  claim.claim(tmp_path, json.loads(begun.to_json()), {})
  config = hardware.as_begun(seg.get_config().lock(), tmp_path)
  assert (config.model.dtype, config.train.batch_size) == ("bfloat16", 8)
  assert resolve(config, CPU, frames=355)[0].to_dict() == begun.to_dict()
  # What the user says counts, and a new directory says nothing.
  config = seg.get_config()
  config.train.batch_size = 2
  assert hardware.as_begun(config, tmp_path).train.batch_size == 2
  assert hardware.as_begun(seg.get_config(), tmp_path / "new").model.dtype == "auto"


def test_a_long_recipe_on_a_cpu_is_announced_by_value():
  config, _ = resolve(seg.get_config(), CPU, frames=27)
  # 4e15 FLOP at half of 100 GFLOP/s: 80,000 s.
  text = estimate.slow_recipe(config, 4e15, CPU, models=7, rate=1e11)
  assert "about 22.2 hours on this CPU (4.0e+15 FLOP at 50% of the 100 GFLOP/s" in text
  # What is advised are fields of this very config.
  assert "(now 100: train.epochs), models (now 7: sweep.thresholds, sweep.members)" in text
  assert "(now 512 x 512: data.image_size)" in text and ":demo behind" in text
  demo, _ = resolve(raters.get_config("demo"), CPU, frames=27)
  text = estimate.slow_recipe(demo, 4e15, CPU, models=n_models(demo), rate=1e11)
  assert "(now 47: train.steps and train.epochs), models (now 17: " in text
  assert ":demo" not in text
  # 2 hours are the limit: 3.6e14 FLOP here.
  assert estimate.slow_recipe(config, 3.7e14, CPU, models=7, rate=1e11)
  assert not estimate.slow_recipe(config, 3.5e14, CPU, models=7, rate=1e11)
  assert not estimate.slow_recipe(config, 4e15, H200, models=7, rate=1e11)


@pytest.mark.parametrize(
  ("changes", "strategy", "text"),
  [
    # 4096^2 pixels x (320 x 2 x 4 + 8 x 4) bytes, and 7 x 6 x 23.2e6 weights of 4.
    ({"data.image_size": 4096}, "loop", "1 image of 4096 x 4096 may need 47 GB"),
    ({"data.image_size": 4096}, "loop", "--config.data.image_size=1984 fits. Time grows"),
    ({"data.image_size": 4096}, "loop", "64 times that of 512 x 512"),
    ({"train.batch_size": 512}, "loop", "512 images of 512 x 512 may need 352 GB"),
    ({"train.batch_size": 512}, "loop", "--config.train.batch_size=8 fits."),
    ({"train.batch_size": 16}, "vmap", "--config.sweep.strategy=loop needs the memory of one"),
    ({}, "loop", None),
    ({"train.batch_size": 16}, "loop", None),
  ],
)
def test_what_may_not_fit_the_memory_is_said_before(changes, strategy, text):
  config = seg.get_config()
  config.update_from_flattened_dict(changes)
  device = hardware.Device("cpu", "cpu", 19 * 10**9)
  found = hardware.too_large(config, device, models=n_models(config), strategy=strategy)
  assert (text in found) if text else found == ""


def test_images_too_large_for_a_device_are_shared_by_several():
  """Before a smaller batch, which would be another recipe, is advised."""

  def said(count, batch, strategy="sharded"):
    config = seg.get_config()
    config.train.batch_size = batch
    device = hardware.Device("gpu", "gpu", 19 * 10**9, 8.0, count)
    return hardware.too_large(config, device, models=7, strategy=strategy)

  # One device has 7 x 6 x 23.2e6 weights of 4 bytes, which is 3.9 GB, and .35 GB an image.
  assert said(8, 16) == ""
  assert "--config.sweep.strategy=4x2, in which more devices share a batch, fits" in said(8, 64)
  assert "--config.sweep.strategy=2x4, in" in said(8, 128)
  assert said(8, 128, "2x4") == ""
  # A batch that they cannot share, and one that none of them holds.
  assert "batch_size=" in said(8, 63) and "batch_size=" in said(2, 512)


def test_few_frames_get_more_epochs():
  def epochs(frames, **changes):
    config = seg.get_config("demo")
    config.update_from_flattened_dict(changes)
    config, why = resolve(config, CPU, frames=frames)
    assert ("epochs" in why) == (config.train.epochs > changes.get("train.epochs", 3))
    return config.train.epochs

  assert epochs(323) == 3  # the phantom's demo
  assert epochs(32) == 23 and epochs(9) == 90 and epochs(1) == 360
  assert epochs(5000) == 3
  assert epochs(32, **{"train.epochs": 40}) == 40
  assert epochs(32, **{"train.steps": 0}) == 3


def test_many_short_epochs_share_a_checkpoint():
  def every(frames, module=seg, **changes):
    config = module.get_config("demo")
    config.update_from_flattened_dict(changes)
    return hardware.loop_settings(resolve(config, CPU, frames=frames)[0]).checkpoint_every

  assert every(323) == 1 and every(30) == 2 and every(9) == 9
  assert every(9, raters) == 20 and every(9, **{"train.checkpoint_every": 50}) == 50
  assert every(9, **{"train.steps": 0}) == 1


@pytest.mark.parametrize(("module", "epochs"), [(seg, 3), (raters, 200)])
def test_a_run_from_before_such_a_field_goes_on(tmp_path, caplog, module, epochs):
  begun = claim.settings(module.get_config("demo"))
  del begun["train"]["steps"]
  begun["train"]["epochs"] = epochs  # of the demo then
  claim.claim(tmp_path, begun, {})
  config = hardware.as_begun(module.get_config("demo").lock(), tmp_path)
  config, _ = resolve(config, CPU, frames=9)
  claim.check_claim(tmp_path, claim.settings(config))
  assert config.train.epochs == epochs
  # It is not left out without a word.
  (message,) = caplog.messages
  assert "before there was config.train.steps, so" in message and f"({epochs})" in message


def test_a_run_whose_confidences_were_interpolated_goes_on_so(tmp_path, caplog):
  begun = claim.settings(seg.get_config("tiny"))
  del begun["augment"]["confidence"]
  claim.claim(tmp_path, begun, {})
  config = hardware.as_begun(seg.get_config("tiny").lock(), tmp_path)
  claim.check_claim(tmp_path, claim.settings(config))
  augment.check(config.augment)
  (message,) = caplog.messages
  assert "before there was config.augment.confidence, so nearest counts for nothing" in message
  # Whoever asks for it anew gets it, and who asks for what was begun is not told anything.
  assert hardware.as_begun(seg.get_config("tiny"), tmp_path / "new").augment.confidence == "nearest"
  asked = seg.get_config("tiny")
  asked.augment.confidence = "bilinear"
  assert "confidence" not in hardware.as_begun(asked, tmp_path).augment
  assert len(caplog.messages) == 1
  # A study compares its parts' settings with what they were.
  assert hardware.settings_as_begun(claim.settings(seg.get_config("tiny")), begun) == begun


def test_a_run_from_before_labels_were_chosen_uses_all_of_them(tmp_path):
  begun = claim.settings(resolve(seg.get_config("demo"), CPU, frames=32)[0])
  del begun["data"]["prelabels"], begun["data"]["consensus"]
  claim.claim(tmp_path, begun, {})
  config, _ = resolve(hardware.as_begun(seg.get_config("demo").lock(), tmp_path), CPU, frames=32)
  claim.check_claim(tmp_path, claim.settings(config))
  assert not {"prelabels", "consensus"} & set(config.data)
  # What is asked for is not dropped without a word.
  asked = seg.get_config("demo")
  asked.data.prelabels = "all"
  config, _ = resolve(hardware.as_begun(asked, tmp_path), CPU, frames=32)
  with pytest.raises(UserError, match=r"different: data.prelabels\)"):
    claim.check_claim(tmp_path, claim.settings(config))


@pytest.mark.parametrize("module", [sf_ratio, readmission])
def test_a_clinical_run_from_before_augmentation_goes_on_without(tmp_path, module):
  begun = claim.settings(hardware.resolve(module.get_config("demo"), CPU, models=1)[0])
  assert not {"augment", "calibration"} & set(begun) and "dropout" not in begun["model"]
  claim.claim(tmp_path, begun, {})
  config, _ = hardware.resolve(
    hardware.as_begun(module.get_config("demo").lock(), tmp_path), CPU, models=1
  )
  claim.check_claim(tmp_path, claim.settings(config))
  # What is asked for is not dropped without a word.
  for field, value in (
    ("augment.probability", 0.5),
    ("model.dropout", 0.2),
    ("optimizer.weight_decay", 0.1),
    ("calibration", "temperature"),
  ):
    asked = module.get_config("demo")
    asked.update_from_flattened_dict({field: value})
    config, _ = hardware.resolve(hardware.as_begun(asked, tmp_path), CPU, models=1)
    with pytest.raises(UserError, match=rf"different: {field.split('.')[0]}"):
      claim.check_claim(tmp_path, claim.settings(config))
  # A segmentation has fields of these names, and never was without.
  config = seg.get_config("tiny")
  config.augment.probability = config.model.dropout = 0.0
  begun = claim.settings(config)
  assert begun["augment"]["probability"] == begun["model"]["dropout"] == 0
  assert begun["calibration"] == "none"


def test_a_run_goes_on_with_the_epochs_that_came_of_its_data(tmp_path):
  begun, _ = resolve(seg.get_config("demo"), CPU, frames=32)
  claim.claim(tmp_path, json.loads(begun.to_json()), {})
  config = hardware.as_begun(seg.get_config("demo"), tmp_path)
  assert config.train.epochs == 23
  more = seg.get_config("demo")
  more.train.epochs = 50
  assert hardware.as_begun(more, tmp_path).train.epochs == 50
  more.train.steps = 100  # another recipe
  assert hardware.as_begun(more, tmp_path).train.epochs == 50


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(99, "99 s"), (150, "2 minutes"), (5999, "100 minutes"), (9000, "2.5 hours"), (8e5, "9 days")],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
  assert estimate.duration(seconds) == text


@pytest.mark.parametrize("module", [seg, paper, which_target])
def test_a_run_goes_on_whatever_number_of_processes_prepares_its_data(tmp_path, module):
  config = module.get_config()
  claim.claim(tmp_path, claim.settings(config), {})
  with config.unlocked():
    config.data.num_processes = 4
  claim.check_claim(tmp_path, claim.settings(config), {})
  config.data.image_size = 48
  with pytest.raises(UserError, match="data.image_size"):
    claim.check_claim(tmp_path, claim.settings(config), {})


def test_options_of_the_phantom_that_are_off_are_no_part_of_a_run(tmp_path):
  assert claim.PHANTOM_OPTIONS == lus_phantom.OPTIONS
  begun = claim.settings(seg.get_config("demo"))
  assert not set(claim.PHANTOM_OPTIONS) & set(begun["data"]["phantom"])
  claim.claim(tmp_path, begun, {})
  for name, value in zip(claim.PHANTOM_OPTIONS, (("effusion",), 0.3, 0.9), strict=True):
    config = seg.get_config("demo")
    config.data.phantom[name] = value
    with pytest.raises(UserError, match=rf"different: data.phantom.{name}\)"):
      claim.check_claim(tmp_path, claim.settings(config))


def test_settings_are_told_with_their_reasons():
  config, why = resolve(seg.get_config(), V100, frames=355)
  config.sweep.strategy = "vmap"
  text = hardware.describe(config, V100, why, strategy="vmap", cache="stream")
  assert text == (
    "on Tesla V100-SXM2-16GB (13 GB to use): float32 (no fast bfloat16 on this gpu), batches of 4 "
    "(a step needs at most 6.8 GB), strategy vmap, data streamed from disk (too many for it)"
  )


WORK = estimate.Work(images=4, flop=10**9, validated=30, dtype="float32")


def first_steps(steps_per_epoch=50, epochs=3):
  return estimate.FirstSteps(
    WORK, members=7, steps_per_epoch=steps_per_epoch, epochs=epochs, unit="image"
  )


def test_the_estimate_by_value():
  # A step of 2 s: 14 model-images/s. 3 epochs of 50 steps, and 30 images forward (a third) as 2.5.
  text = first_steps().describe(2.0, devices=2, platform="gpu", peak_rate=2e10)
  assert text == (
    "about 5 minutes to go: 14 model-images/s, 35% of the 0.04 TFLOP/s of float32 products"
  )
  # Not worth a measurement on a CPU.
  text = first_steps().describe(0.1, platform="cpu")
  assert text == "about 16 s to go: 280 model-images/s"


@pytest.mark.parametrize(
  ("seconds", "steps", "expected"),
  [(0.5, 50, (0.5, 11)), (0.5, 4, (0.5, 4)), (30.0, 50, (30.0, 2)), (0.5, 1, None)],
)
def test_the_first_steps_are_timed_without_the_compilation(monkeypatch, seconds, steps, expected):
  clock, printed = [0.0], []
  monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
  monkeypatch.setattr(estimate.tqdm, "write", printed.append)
  meter, told = first_steps(steps), []
  monkeypatch.setattr(meter, "describe", lambda step, devices: told.append(step) or "line")
  at = None
  for i in range(60):
    clock[0] += 100 if i == 0 else seconds
    meter.tick([jnp.zeros(())] * 7)
    if told and at is None:
      at = i + 1
  assert printed == ["line"] * (expected is not None)
  assert (told, at) == (([expected[0]], expected[1]) if expected else ([], None))


def test_the_group_of_video_networks_is_what_fits_the_memory():
  config, _ = hardware.resolve(sf_ratio.get_config(), H200, models=9)
  # 16 x 8 x 224 x 224 pixels x 250 x 2 bytes are 3.2 GB a network; a quarter is left for frames.
  assert hardware.choose_group(config, H200, clips=16) == 9
  assert hardware.choose_group(config, RTX3060, clips=16) == int(0.75 * 9 * GIB / 3.211e9) == 2
  assert hardware.choose_group(config, RTX3060, clips=2) == 9
  config.model.dtype = "float32"
  assert hardware.choose_group(config, RTX3060, clips=16) == 1


def test_a_run_from_before_the_small_recipe_goes_on_and_is_refused_another(tmp_path):
  begun = claim.settings(seg.get_config("demo"))
  for section, options in claim.OPTIONS.items():
    assert not set(options) & set(begun[section])
  claim.claim(tmp_path, begun, {})
  small = seg.get_config("small")
  for section, options in claim.OPTIONS.items():
    for name in options:
      assert not seg.get_config("demo")[section][name], name
      changed = seg.get_config("demo")
      changed[section][name] = small[section][name]
      if changed[section][name]:
        with pytest.raises(UserError, match=rf"different: {section}.{name}\)"):
          claim.check_claim(tmp_path, claim.settings(changed))
  study = paper.get_config("demo")
  assert "averaging" not in claim.settings(study)["segmentation"]["optimizer"]


def test_averages_are_one_more_copy_of_the_weights():
  config = seg.get_config("tiny")
  options = {"models": 7, "batch": 4, "classes": 6, "strategy": "loop"}
  without = hardware.step_memory(config, **options)
  config.optimizer.averaging = 0.9
  n = designs.Fpn.SIZES[config.model.encoder][1] * config.model.width**2
  assert hardware.step_memory(config, **options) - without == pytest.approx(7 * 4 * n, abs=1)


def test_epochs_of_steps_are_as_many_as_the_steps_take():
  def resolved(frames, **changes):
    config = seg.get_config("small")
    config.update_from_flattened_dict(changes)
    config, _ = resolve(config, CPU, frames=frames)
    return config.train.epochs, hardware.steps_of_epoch(config.train, frames)

  # However many frames there are.
  assert resolved(9) == resolved(3000) == (40, 50)
  assert resolved(9, **{"train.steps": 120}) == (3, 50)
  assert resolved(80, **{"train.epoch_steps": 0}) == (200, 10)
