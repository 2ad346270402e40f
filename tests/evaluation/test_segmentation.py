"""What is fitted and chosen on which split: the three differ in everything that could be chosen.

Of two classes one is painted nowhere.
"""

import numpy as np
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict

from lus_jax import parallel, progress
from lus_jax.data import pipeline
from lus_jax.evaluation import segmentation as evaluation
from lus_jax.inference import calibration
from lus_jax.inference.trained import Trained
from lus_jax.training import members
from lus_jax.training.sweep import Sweep

SIZE = 8
CONFIG = ConfigDict(
  {
    "sweep": {"thresholds": (0.5,)},
    "loss": {"subthreshold_weight": "threshold"},
    "train": {"batch_size": 2},
    "seed": 0,
  }
)
CLASSES = ("line", "never")
# Rows of each picture that are painted, and the network's probability (all it does is to put out
# the picture) there and elsewhere. In each split another cut-off separates the two.
SPLITS = {
  "train": {"rows": slice(0, 3), "inside": 0.99, "outside": 0.92},
  "validation": {"rows": slice(6, 8), "inside": 0.32, "outside": 0.1},
  "test": {"rows": slice(1, 5), "inside": 0.7, "outside": 0.55},
}


class Copy:
  """An objective whose network says that the picture itself is the probability of every class."""

  def logits(self, network, params, batch_stats, image):
    image = jnp.repeat(np.float32(0.998) * image + np.float32(0.001), len(CLASSES), axis=-1)
    return jnp.log(image) - jnp.log1p(-image), batch_stats

  def output(self, raw, inputs, own):
    return raw


def frames(*, rows, inside, outside, n=3):
  confidence = np.zeros((n, SIZE, SIZE, len(CLASSES)), np.uint8)
  confidence[:, rows, :, 0] = 255
  image = np.full((n, SIZE, SIZE, 1), round(255 * outside), np.uint8)
  image[:, rows] = round(255 * inside)
  labelled = np.ones((n, len(CLASSES)), bool)
  box = np.tile(np.array([[0, 0, SIZE, SIZE]], np.int32), (n, 1))
  arrays = {"image": image, "confidence": confidence, "labelled": labelled, "valid_box": box}
  return pipeline.Frames(arrays, cache="stream")


def trained():
  view = members.View("threshold_0.5", 0, members.WHOLE, 0.5)
  return Trained(
    config=CONFIG,
    dataset={"classes": list(CLASSES)},
    patients={},
    network=None,
    objective=Copy(),
    views=[view],
    sweep=Sweep([{"threshold": np.float32(0.5)}], "loop"),
    weights=[{"params": {}, "batch_stats": {}}],
  )


def evaluate():
  splits = {name: frames(**split) for name, split in SPLITS.items()}
  return evaluation.evaluate(trained(), thin=("line",), **splits)


@pytest.fixture(scope="module")
def found():
  return evaluate()


def test_the_network_is_judged_on_the_test_split(found):
  (row,) = found.members
  # Half of the picture is painted, and all of it lies above .5.
  assert row["iou"] == row["iou_per_class"]["line"] == 0.5
  np.testing.assert_array_equal(found.image_iou, [[0.5] * 3])
  # The whole picture, rows 0 to 7, around rows 1 to 4: its far edge is 3 rows off.
  assert row["hd95"] == row["hd95_per_class"]["line"] == pytest.approx(3)
  assert row["hd95_images"] == {"line": 3, "never": 0}
  assert row["surface_dice"] == pytest.approx(1)


@pytest.mark.parametrize("main", [True, False])
def test_each_pass_has_one_bar_and_the_main_process_alone_measures_outlines(monkeypatch, main):
  shown = []

  def bar(batches, *, desc, disable, **options):
    shown.extend([] if disable else [desc])
    return batches

  monkeypatch.setattr(progress, "tqdm", bar)
  monkeypatch.setattr(parallel, "is_main", lambda: main)
  (row,) = evaluate().members
  passes = ["choosing cut-offs of 1 output", *["fitting baselines"] * 2, "testing 1 output"]
  assert shown == (passes if main else [])
  assert ("hd95" in row) == ("surface_dice" in row) == main
  assert row["iou"] == 0.5


def test_cut_offs_are_chosen_on_the_validation_split(found):
  (row,) = found.members
  # Cut-offs of .15 to .3 are right on validation (.3 lies nearest to .5); on the test split those
  # of .6 and .65 would have been, with an IoU of 1, and in training .95.
  assert row["best_cut"]["line"] == pytest.approx(0.3)
  assert row["iou_at_best_cut"] == 0.5


def test_baselines_are_fitted_on_the_training_split(found):
  # Training: rows 0 to 2 with a weight of 1, the rest with one of .5.
  p = 3 / (3 + 0.5 * 5)
  (row,) = found.baselines["prevalence"]
  # The class that is nowhere has a probability of next to 0.
  assert row["ce"] == pytest.approx(-(np.log(p) + np.log(1 - p)) / 4, rel=1e-5)
  # Its cut-off predicts the whole picture, as is best in training too.
  assert row["iou"] == 0.5
  assert row["constant_classes"] == ["line", "never"] and row["ece"] is None
  # Rows 0 to 2 against rows 1 to 4; fitted on the test split it would be 1, on validation 0.
  (row,) = found.baselines["mean_map"]
  assert row["iou"] == pytest.approx(2 / 5)


def test_the_bar_of_epochs_is_the_mean_map_on_the_validation_split(found):
  # Rows 0 to 2 against rows 6 and 7; against those it was fitted to, all of them.
  assert found.bar == [0]
  splits = {name: frames(**split) for name, split in SPLITS.items()}
  splits["validation"] = frames(**SPLITS["train"] | {"rows": slice(0, 4)})
  assert evaluation.evaluate(trained(), thin=None, **splits).bar == [0.75]


def test_a_class_that_is_nowhere_counts_for_nobody(found):
  rows = {"network": found.members[0]} | {name: each[0] for name, each in found.baselines.items()}
  for name, row in rows.items():
    assert row["iou"] == row["iou_per_class"]["line"] > 0, name
    assert row["dice"] == row["dice_per_class"]["line"] > 0
    assert row["iou_per_class"]["never"] is row["dice_per_class"]["never"] is None
    assert row["empty_skipped"] == {"line": 0, "never": 3}
    assert row["label_images"] == {"line": 3, "never": 0}
  # Of that class the network paints everything, which is said; baselines paint nothing.
  shares = [row["predicted_share_per_class"]["never"] for row in rows.values()]
  assert shares == [1, 0, 0]


def test_calibrations_are_fitted_where_they_are_told_to():
  splits = {name: frames(**split) for name, split in SPLITS.items()}
  fitted = evaluation.fit_calibrations(trained(), splits["validation"])
  table, untouched = fitted["isotonic"][0]["isotonic"]
  # On validation .1 means 0 and .32 means 1; of the test split's .55 and .7 that makes 1 and 1.
  np.testing.assert_allclose(1 / (1 + np.exp(-np.array(table["x"]))), [0.1, 0.32], atol=3e-3)
  assert table["y"] == [0, 1]
  assert min(np.diff(untouched["y"])) > 0  # nothing to learn of a class that is nowhere
  compared = evaluation.compare_calibrations(trained(), fitted, splits["test"])
  assert set(compared) == set(calibration.METHODS)
  none, isotonic = compared["none"][0], compared["isotonic"][0]
  # Half of the pixels: |.7 - 1| and |.55 - 0|; afterwards all are called 1.
  assert none["ece"] == pytest.approx((0.3 + 0.55) / 2, abs=3e-3)
  assert isotonic["ece"] is None
  assert isotonic["reliability"]["line"]["target"][-1] == 0.5
