"""What is made of a segmentation sweep while it trains."""

import jax
import numpy as np
from flax import nnx
from PIL import Image

from configs import seg
from lus_jax import labels, palette
from lus_jax.data import augment, pipeline
from lus_jax.tasks.segmentation import advice, train
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
  tx, _ = train.make_optimizer(config.optimizer, 1)
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
