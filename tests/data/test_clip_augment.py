"""Augmentation of clips: one draw a clip, geometry of the image and its maps alike."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from lus_jax.data import augment, clip_augment
from lus_jax.errors import UserError


def config(**changes):
  found = ConfigDict()
  common.augment_clips(found)
  found.augment.update({"probability": 1.0} | changes)
  return found.augment


def test_resampling_is_linear_about_the_centre():
  def matrix(size, **options):
    return np.asarray(
      clip_augment.resampling(size, **({"scale": 1, "shift": 0, "flip": False} | options))
    )

  np.testing.assert_array_equal(matrix(5), np.eye(5))
  np.testing.assert_array_equal(matrix(4, flip=True), np.eye(4)[::-1])
  x = np.arange(5.0)
  # One pixel on; what comes from outside is 0.
  np.testing.assert_allclose(matrix(5, shift=1) @ x, [0, 0, 1, 2, 3])
  # Twice as large: the middle stays.
  np.testing.assert_allclose(matrix(5, scale=2) @ x, [1, 1.5, 2, 2.5, 3])
  np.testing.assert_allclose(matrix(5, scale=0.5)[0], 0)


def batch(folds=2, sources=3, clips=4, n=2, size=16):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (folds, clips, n, size, size, 1), dtype=np.uint8)
  # Every frame of a clip, and every map of it, are the image itself.
  image[:, :, 1:] = image[:, :, :1]
  maps = np.repeat(image[:, None], sources, axis=1)
  return {"image": image, "channels": np.concatenate([maps, maps], axis=-1), "label": np.arange(3)}


def test_frames_and_maps_of_a_clip_move_together(key):
  still = {"brightness": 0.0, "contrast": 0.0, "gamma": (1.0, 1.0)}
  inputs = batch()
  found = jax.tree.map(np.asarray, clip_augment.with_maps(inputs, key, config(**still)))
  assert found["image"].dtype == found["channels"].dtype == np.uint8
  assert found["image"].shape == inputs["image"].shape
  moved = found["image"]
  # But for rounding: the image is computed with as a share of 255.
  off = found["channels"][..., :1].astype(int) - np.repeat(moved[:, None], 3, axis=1)
  assert np.abs(off).max() <= 1
  np.testing.assert_array_equal(found["channels"][..., 1:], found["channels"][..., :1])
  np.testing.assert_array_equal(moved[:, :, 1], moved[:, :, 0])
  assert (moved != inputs["image"]).any((2, 3, 4, 5)).all()
  # No two clips are moved alike: of equal ones none stays equal.
  same = {name: x.copy() for name, x in inputs.items()}
  same["image"][:] = same["image"][:1, :1]
  found = np.asarray(clip_augment.with_maps(same, key, config(**still))["image"]).reshape(8, -1)
  assert len({one.tobytes() for one in found}) == 8


def test_intensity_is_the_images_alone(key):
  still = {"scale": 0.0, "shift": 0.0, "probability": 1.0}
  inputs = batch()
  inputs = {name: x[..., :, ::-1, :] if x.ndim > 1 else x for name, x in inputs.items()}
  found = jax.tree.map(np.asarray, clip_augment.with_maps(inputs, key, config(**still)))
  # With this probability all are flipped.
  np.testing.assert_array_equal(found["channels"], inputs["channels"][..., ::-1, :])
  assert (found["image"] != inputs["image"][..., ::-1, :]).any()


def test_off_is_off(key):
  inputs = batch()
  assert clip_augment.with_maps(inputs, key, config(probability=0.0)) is inputs
  # The config of a run from before there was any.
  assert clip_augment.with_maps(inputs, key, None) is inputs


def test_what_a_shift_brings_in_is_outside(key):
  clip = np.full((3, 2, 16, 16, 1), 200, np.uint8)
  box = np.array([[0, 0, 16, 16], [0, 4, 16, 12], [4, 0, 12, 16]])
  image, inside = clip_augment.frames(clip, box, None, None)
  assert np.asarray(inside).sum((1, 2)).tolist() == [256, 128, 128]
  assert np.asarray(image).min() == np.float32(200 / 255)
  options = {"shift": 0.4, "brightness": 0.0, "contrast": 0.0, "gamma": (1.0, 1.0)}
  image, inside = jax.tree.map(np.asarray, clip_augment.frames(clip, box, key, config(**options)))
  outside = np.broadcast_to(~inside[:, None, :, :, None], image.shape)
  assert outside.any() and (image[outside] == 0).all()
  assert image[~outside] == pytest.approx(200 / 255, abs=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"probability": 1.5}, r"config.augment.probability: 1.5 must be in \[0, 1\]"),
    ({"scale": -0.1}, "config.augment.scale: -0.1"),
    ({"shift": 1.5}, "config.augment.shift: 1.5"),
    ({"gamma": (0.0, 1.0)}, "config.augment.gamma"),
  ],
)
def test_values_out_of_range_are_refused(changes, message):
  augment.check_strengths(config())
  with pytest.raises(UserError, match=message):
    augment.check_strengths(ConfigDict(config().to_dict() | changes))
