"""What is made of a segmentation sweep while it trains."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import numpy as jnp
from PIL import Image

from configs import seg
from lus_jax import labels, models, palette
from lus_jax.data import augment, pipeline
from lus_jax.tasks.segmentation import advice, train
from lus_jax.training import optimizers
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep
from tests import toys

SIZE, THRESHOLDS = 160, (0.6, 0.0)


def test_pictures_are_the_painted_frames_thinned():
  random = np.random.default_rng(0)
  frames = {
    "image": random.integers(0, 256, (5, SIZE, SIZE, 1), np.uint8),
    "confidence": random.integers(0, 256, (5, SIZE, SIZE, 2), np.uint8),
    "labelled": np.ones((5, 2), bool),
    "valid_box": np.tile(np.int32([0, 0, SIZE, SIZE]), (5, 1)),
  }
  config = seg.get_config("tiny")
  config.sweep.thresholds = THRESHOLDS
  objective = Objective(config)
  _, members = objective.of_all_seeds()
  network = state_lib.Network(toys.ToySegmentation(1, 2, rngs=nnx.Rngs(0)))
  sweep = Sweep(members, "loop")
  tx, _ = optimizers.with_cosine(config.optimizer, 1)
  state = [state_lib.create_state(network.params, network.batch_stats, tx) for _ in members]
  validation = pipeline.Frames(frames, cache="device")
  _, images = train.make_validation(network, sweep, validation, config, objective)(state)
  pictures = images["validation_frames"]()

  inputs = jax.jit(augment.prepare)({name: x[:3] for name, x in frames.items()})
  logits, _ = network(network.params, network.batch_stats, inputs["image"])
  confidence, drawn = np.asarray(inputs["confidence"]), np.asarray(logits) >= 0
  assert pictures.shape == (3, 2 * SIZE // 2, 3 * SIZE // 2, 3)
  for i, picture in enumerate(pictures):
    rows = (
      [np.zeros_like(confidence[i])] + [labels.label(confidence[i], t) for t in THRESHOLDS],
      [confidence[i], drawn[i], drawn[i]],
    )
    full = [
      [palette.overlay(frames["image"][i], np.asarray(x, float)) for x in row] for row in rows
    ]
    half = [np.concatenate([cell[::2, ::2] for cell in row], axis=1) for row in full]
    np.testing.assert_array_equal(picture, np.concatenate(half))


def test_the_first_epoch_is_shown_with_a_table_and_a_picture(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
  rows = [{"score": 0.25, "loss": 0.5}, {"score": None, "loss": 1.0}]
  text = advice.first_look(
    tmp_path, ["one", "two"], rows, {"validation_frames": pictures}, frames=1, epochs=9
  )
  assert text.splitlines() == [
    "After epoch 1 of 9, on 1 validation frame; IoU at each model's own threshold:",
    "model    IoU   loss",
    "-------------------",
    "  one  0.250  0.500",
    "  two      -  1.000",
    f"Labels (above) and predictions (below): {tmp_path / 'first_epoch.png'}",
  ]
  shown = np.asarray(Image.open(tmp_path / "first_epoch.png"))
  np.testing.assert_array_equal(shown, pictures.reshape(-1, 12, 3))


def test_the_optimizer_warms_up_and_lets_kernels_alone_decay():
  config = seg.get_config("small").optimizer
  config.update(learning_rate=0.1, warmup=0.25, weight_decay=0.5)
  tx, schedule = optimizers.with_cosine(config, 40)
  rates = [float(schedule(step)) for step in range(41)]
  assert rates[0] == pytest.approx(0.1 / 11) and rates[10] == pytest.approx(0.1)
  np.testing.assert_allclose(np.diff(rates[:11]), (0.1 - 0.1 / 11) / 10, rtol=1e-4)
  cosine = 0.05 * (1 + np.cos(np.pi * np.arange(31) / 30))
  np.testing.assert_allclose(rates[10:], cosine, atol=1e-7)
  # Of few steps, too, the last one falls.
  config.warmup = 0.9
  for n in (1, 2, 3):
    own = optimizers.with_cosine(config, n)[1]
    assert 0 < own(0) <= 0.1 and own(n) == 0
  params = {"kernel": np.full((1, 1, 2, 3), 2.0), "bias": np.full(3, 2.0)}
  nothing = jax.tree.map(np.zeros_like, params)
  updates, _ = tx.update(nothing, tx.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -rates[0] * 0.5 * 2, rtol=1e-5)
  np.testing.assert_array_equal(updates["bias"], 0)


def test_the_papers_optimizer_is_adam_with_a_cosine():
  config = seg.get_config().optimizer
  tx, schedule = optimizers.with_cosine(config, 40)
  expected = optax.adam(optax.cosine_decay_schedule(1e-4, 40))
  params = {"kernel": np.ones((3, 2), np.float32)}
  state, other = tx.init(params), expected.init(params)
  for step in range(3):
    gradient = {"kernel": np.float32(step + 1) * np.arange(6, dtype=np.float32).reshape(3, 2)}
    updates, state = tx.update(gradient, state, params)
    theirs, other = expected.update(gradient, other, params)
    np.testing.assert_array_equal(updates["kernel"], theirs["kernel"])


@pytest.mark.parametrize("brought", [(False, False), (True, True), (True, False)])
def test_every_member_starts_from_its_own_prevalence_but_for_heads_that_were_brought(
  monkeypatch, brought
):
  config = seg.get_config("tiny")
  config.sweep.thresholds = (0.6, 0.0)
  config.optimizer.averaging = 0.9
  config.loss.weights = "ones"
  monkeypatch.setattr(models, "build_model", toys.build_head)
  objective = Objective(config)
  sweep = Sweep(objective.of_all_seeds()[1], "loop")
  counts = np.zeros((2, 256), int)
  counts[:, [0, 102, 204]] = [[80, 15, 5], [100, 0, 0]]

  def begin(params, batch_stats, head):
    # Not what they were drawn as.
    start = {"kernel": jnp.full((1, 1, 2, 2), 3.0), "bias": jnp.array([2.0, -2.0])}
    stats = jax.tree.map(lambda x: x + 1, batch_stats)
    return params | {"segmentation_head": start}, stats, np.array(brought)

  _, state = train.initial_state(
    config,
    objective,
    sweep,
    in_channels=1,
    classes=2,
    tx=optimizers.with_cosine(config.optimizer, 1)[0],
    begin=begin,
    counts=counts,
  )
  found = [one.params["segmentation_head"]["bias"] for one in state]
  own = jax.scipy.special.logit(jnp.array([[0.05, 1e-4], [0.2, 1e-4]]))
  np.testing.assert_allclose(found, np.where(brought, [2.0, -2.0], own), rtol=1e-4)
  for one in state:
    assert (one.params["segmentation_head"]["kernel"] == 3).all()
    # Averages begin there too, not with what was drawn.
    jax.tree.map(np.testing.assert_array_equal, one.averages, one.newest)


def judged(ious, bars, *, steps=None, epochs=9, region=1.0, size=64):
  train = {"epochs": epochs} | ({"steps": steps} if steps else {})
  return {
    "config": {"train": train, "loss": {"region": region}, "data": {"image_size": size}},
    "rows": [{"threshold": t, "seed": 0, "validation_iou": x} for t, x in ious.items()],
    "predictors": [
      {"predictor": name, "threshold": t, "validation_iou": x}
      for name in ("prevalence", "mean_map")
      for t, x in bars.items()
    ],
  }


def curve(*losses, name="threshold_0.6"):
  rows = enumerate(losses, 1)
  return [{"member": name, "epoch": e, "loss": x, "train_loss": 1 / e} for e, x in rows]


def test_models_below_the_mean_map_on_validation_are_named_with_the_setting_to_change():
  bars = {0.6: 0.3, 0.2: 0.4}
  content = judged({0.6: 0.1, 0.2: 0.5}, bars, steps=200)
  text = advice.below_the_bar(content, curve(3, 2), 200)
  assert text == (
    "On the validation frames a model stays below the mean map, which looks at no picture, by IoU: "
    "60% (0.100 against 0.300). Likely 200 steps are too few: --config.train.steps=800."
  )
  content = judged({0.6: None, 0.2: 0.3}, bars)
  text = advice.below_the_bar(content, curve(3, 2), 90)
  assert "2 models stay" in text and "60% (0.000 against 0.300), 20% (0.300 against 0.400)" in text
  assert text.endswith("--config.train.epochs=36.")
  text = advice.below_the_bar(judged({0.6: 0.1}, bars, region=0), curve(3, 2), 2000)
  assert "--config seg:small" in text
  by_heart = curve(3, 2, 2.6)
  assert "weight_decay" in advice.below_the_bar(judged({0.6: 0.1}, bars), by_heart, 2000)
  assert "image_size=128" in advice.below_the_bar(judged({0.6: 0.1}, bars), curve(3, 2), 2000)
  # None is below, nothing can be said, or the results are of an older version.
  assert advice.below_the_bar(judged({0.6: 0.3, 0.2: 0.5}, bars), [], 9) == ""
  assert advice.below_the_bar(judged({0.6: 0.1}, {0.6: None}), [], 9) == ""
  older = judged({0.6: 0.1}, bars)
  for row in older["rows"] + older["predictors"]:
    del row["validation_iou"]
  assert advice.below_the_bar(older, [], 9) == ""
