import jax
import numpy as np
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict
from scipy import ndimage

from configs import seg
from lus_jax.data import augment
from lus_jax.errors import UserError
from lus_jax.labels import label

CONFIG = ConfigDict(
  {
    "probability": 0.5,
    "rotation_degrees": 15.0,
    "confidence": "nearest",
    "brightness": 0.2,
    "contrast": 0.2,
    "gamma": (0.8, 1.25),
  }
)


def config(**changes):
  changed = CONFIG.copy_and_resolve_references()
  changed.update(changes)
  return changed


def batch(key, n=8, size=24, classes=2, box=None):
  image_key, confidence_key = jax.random.split(key)
  return {
    "image": jax.random.randint(image_key, (n, size, size, 1), 0, 256).astype(jnp.uint8),
    "confidence": jax.random.randint(confidence_key, (n, size, size, classes), 0, 256).astype(
      jnp.uint8
    ),
    "valid_box": jnp.tile(jnp.asarray(box or [0, 0, size, size], jnp.int32)[None], (n, 1)),
    "labelled": jnp.ones((n, classes), bool),
  }


def test_prepare_scales_and_marks_what_is_valid(key):
  stored = batch(key, n=2, size=6, box=[1, 2, 5, 6])
  stored["labelled"] = jnp.asarray([[True, True], [True, False]])
  inputs = augment.prepare(stored)
  np.testing.assert_allclose(inputs["image"], np.asarray(stored["image"]) / 255, rtol=1e-6)
  expected = np.zeros((6, 6), bool)
  expected[1:5, 2:6] = True
  np.testing.assert_array_equal(inputs["where"][0], np.stack([expected, expected], -1))
  np.testing.assert_array_equal(inputs["where"][1, ..., 0], expected)
  assert not inputs["where"][1, ..., 1].any()


@pytest.mark.parametrize("augmentation", [None, config(probability=1.0)])
def test_ignored_pixels_count_in_no_class_and_stay_in_the_picture(key, augmentation):
  stored = batch(key, n=8, size=24)
  ignore = np.zeros((8, 24, 24, 1), np.uint8)
  ignore[:, 4:12, 6:15] = 1
  # Only they are painted, so that what counts must be empty.
  painted = stored | {"confidence": jnp.asarray(np.repeat(255 * ignore, 2, -1))}
  inputs = augment.prepare(painted | {"ignore": jnp.asarray(ignore)}, key, augmentation)
  plain = augment.prepare(painted, key, augmentation)
  assert inputs.keys() == plain.keys()
  np.testing.assert_array_equal(inputs["image"], plain["image"])
  assert np.where(inputs["where"], inputs["confidence"], 0).max() <= 1e-3
  lost = np.asarray(plain["where"] & ~inputs["where"]).sum((1, 2, 3))
  # Two classes; rotated, the border of 72 pixels mixes with as many outside.
  assert (lost == 144).all() if augmentation is None else ((lost > 100) & (lost < 240)).all()
  assert (plain["confidence"][plain["where"]] > 0.5).any()


def test_nearest_rotation_takes_the_pixel_that_is_nearest(key):
  image = jax.random.uniform(key, (17, 24, 2))
  angle = np.deg2rad(13.0)
  rotated = np.asarray(augment.rotate(image, angle, nearest=True))
  for place in ((0, 0), (3, 4), (8, 12), (16, 23), (16, 0), (9, 1)):
    y, x = place[0] - 8, place[1] - 11.5
    row = np.floor(y * np.cos(angle) + x * np.sin(angle) + 8 + 0.5).astype(int)
    column = np.floor(x * np.cos(angle) - y * np.sin(angle) + 11.5 + 0.5).astype(int)
    inside = 0 <= row < 17 and 0 <= column < 24
    np.testing.assert_array_equal(rotated[place], image[row, column] if inside else 0)
  assert not rotated[0, 0].any() and rotated[8, 12].all()
  np.testing.assert_array_equal(augment.rotate(image, 0.0, nearest=True), image)


@pytest.fixture(scope="module")
def phantom():
  """Frames of the phantom at 64 pixels: `confidence` and what is there, `truth`, [N, H, W, K]."""
  from tfds_builders.lus_phantom import annotator, cohort, lus_phantom

  config = lus_phantom.phantom_config("frames", 64, 64)
  videos = [
    video
    for patient in cohort.patient_names(12)[:8]
    for video in cohort.patient_videos(
      patient, seed=0, setting="default", missing_views=0.25, annotators=annotator.STYLES
    )[:6]
  ]
  found = [lus_phantom.simulate(video, config) for video in videos]
  return {
    "confidence": np.stack([one["confidence"] for one in found]),
    "truth": np.stack([255 * (one["truth"][0] > 0).astype(np.uint8) for one in found]),
  }


@pytest.mark.parametrize("kind", ["default", "bilinear"])
def test_rotation_leaves_every_threshold_its_area(key, phantom, kind):
  own = seg.get_config("tiny").augment
  own.update(probability=1.0, brightness=0.0, contrast=0.0, gamma=(1.0, 1.0))
  moved = own.copy_and_resolve_references()
  moved.confidence = "nearest"
  if kind != "default":
    own.confidence = kind
  n = len(phantom["truth"])
  frames = {
    "image": np.zeros((n, 64, 64, 1), np.uint8),
    "valid_box": np.tile(np.int32([0, 0, 64, 64]), (n, 1)),
    "labelled": np.ones((n, 6), bool),
  }
  plain, turned, there = (
    jax.device_get(augment.prepare(frames | {"confidence": x}, *more))
    for x, more in (
      (phantom["confidence"], ()),
      (phantom["confidence"], (key, own)),
      (phantom["truth"], (key, moved)),
    )
  )
  truth, where = np.asarray(phantom["truth"]) > 0, turned["where"]

  def dice(found, expected):
    return 2 * (found & expected).sum() / (found.sum() + expected.sum())

  thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
  area, before, after = {}, {}, {}
  for t in thresholds:
    old, new = (np.asarray(label(x["confidence"], t)) > 0 for x in (plain, turned))
    area[t] = (new & where).sum() / old.sum()
    before[t], after[t] = dice(old, truth), dice(new & where, (there["confidence"] > 0.5) & where)
  print(f"\n{kind}: label | area kept | label Dice before, after")
  for t in thresholds:
    print(f"{t:5.0%} | {area[t]:.2f} | {before[t]:.2f} {after[t]:.2f}")
  if kind == "default":
    # A few hundredths leave the frame, of all labels alike.
    assert min(area.values()) > 0.94 and max(area.values()) < min(area.values()) + 0.02
    assert all(abs(after[t] - before[t]) < 0.02 for t in thresholds)
  else:  # what was wrong with it, and is with whoever chooses it
    assert area[1.0] < 0.65 and area[0.6] < 0.85 and area[0.0] > 1.3
    assert before[0.0] - after[0.0] > 0.1


def test_rotation_agrees_with_scipy(key):
  image = jax.random.uniform(key, (17, 24, 2))
  rotated = augment.rotate(image, np.deg2rad(13.0))
  expected = ndimage.rotate(
    np.asarray(image, np.float64), 13.0, reshape=False, order=1, mode="constant"
  )
  # scipy also fades the last pixel of the border.
  np.testing.assert_allclose(rotated[3:-3, 3:-3], expected[3:-3, 3:-3], atol=1e-4)


@pytest.mark.parametrize(("kind", "apart"), [("bilinear", 1e-5), ("nearest", 2 / 23)])
def test_image_confidence_and_mask_move_together(key, kind, apart):
  stored = batch(key)
  # Between the pixels of a ramp the nearest is half a step in either direction away at most.
  ramp = jnp.linspace(0, 255, 24).round().astype(jnp.uint8)
  stored["image"] = jnp.broadcast_to(ramp[None, :, None, None], (8, 24, 24, 1))
  stored["image"] = stored["image"].at[1::2].set(stored["image"][1::2].swapaxes(1, 2))
  stored["confidence"] = jnp.repeat(stored["image"], 2, axis=-1)
  inputs = augment.prepare(
    stored, key, config(confidence=kind, brightness=0.0, contrast=0.0, gamma=(1.0, 1.0))
  )
  for k in range(2):
    where = inputs["where"][..., k]
    np.testing.assert_allclose(
      jnp.where(where, inputs["image"][..., 0], 0),
      jnp.where(where, inputs["confidence"][..., k], 0),
      atol=apart,
    )
  original = augment.prepare(stored)["image"]
  moved = jnp.any(jnp.abs(inputs["image"] - original) > 1e-3, axis=(1, 2, 3))
  assert 0 < int(moved.sum()) < 8  # some examples are left alone, some not


def test_pixels_rotated_in_from_outside_are_invalid(key):
  stored = batch(key, n=64)
  inputs = augment.prepare(stored, key, config(probability=1.0))
  share = jnp.mean(inputs["where"], axis=(1, 2, 3))
  assert float(share.min()) < 0.95
  outside = ~inputs["where"].any(-1, keepdims=True)
  assert float(jnp.max(jnp.where(outside, inputs["image"], 0))) == 0
  # The middle is always inside.
  assert bool(inputs["where"][:, 8:16, 8:16].all())


def test_the_letterbox_stays_black_and_invalid(key):
  stored = batch(key, box=[4, 0, 20, 24])
  stored["image"] = stored["image"].at[:, :4].set(0).at[:, 20:].set(0)
  inputs = augment.prepare(
    stored, key, config(probability=1.0, rotation_degrees=0.0, brightness=0.2)
  )
  assert not inputs["where"][:, :4].any() and not inputs["where"][:, 20:].any()
  assert float(inputs["image"][:, :4].max()) == 0
  assert float(inputs["image"][:, 4:20].mean()) > 0.1


def test_probability_zero_changes_nothing(key):
  stored = batch(key)
  same = augment.prepare(stored, key, config(probability=0.0))
  jax.tree.map(np.testing.assert_array_equal, same, augment.prepare(stored))


def test_each_change_has_its_probability(key):
  n = 400
  stored = batch(key, n=n, size=8)
  inputs = augment.prepare(stored)
  flips = augment.prepare(
    stored, key, config(rotation_degrees=0.0, brightness=0.0, contrast=0.0, gamma=(1.0, 1.0))
  )
  flipped = jnp.all(jnp.abs(flips["image"] - inputs["image"][:, :, ::-1]) < 1e-5, axis=(1, 2, 3))
  assert 0.4 < float(flipped.mean()) < 0.6


def test_intensity_follows_its_formula(key):
  image = jax.random.uniform(key, (5, 5, 1))
  y = augment.adjust_intensity(image, brightness=0.05, contrast=0.2, gamma=1.25)
  x = np.asarray(image, np.float64) ** 1.25
  np.testing.assert_allclose(y, np.clip((x - x.mean()) * 1.2 + x.mean() + 0.05, 0, 1), atol=1e-6)
  black = augment.adjust_intensity(jnp.zeros((2, 2, 1)), brightness=0.0, contrast=0.0, gamma=0.8)
  assert float(black.max()) == 0


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("brightness", -1.0),
    ("contrast", float("nan")),
    ("gamma", (0.9,)),
    ("probability", 1.5),
    ("rotation_degrees", -1.0),
    ("gamma", (1.2, 0.8)),
    ("gamma", (0.0, 1.0)),
    ("confidence", "cubic"),
  ],
)
def test_a_bad_config_is_refused_by_name(field, value):
  with pytest.raises(UserError, match=f"config.augment.{field}"):
    augment.check(config(**{field: value}))


def rated(key, n=8, size=24, n_raters=3, classes=2):
  stored = batch(key, n=n, size=size, classes=classes, box=[0, 0, size - 4, size])
  shape = (n, n_raters, size, size, classes)
  raters = jax.random.randint(jax.random.fold_in(key, 5), shape, 0, 256).astype(jnp.uint8)
  return stored | {
    "raters": raters,
    "confidence": raters[:, 0] // 2 + 20,
    "staple": 255 - raters[:, 1],
    "drawn": jnp.arange(n * n_raters).reshape(n, n_raters) % 4 > 0,
  }


@pytest.mark.parametrize("kind", augment.CONFIDENCES)
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_raters_and_staple_move_with_the_confidence(key, probability, kind):
  stored = rated(key)
  inputs = augment.prepare(stored, key, config(probability=probability, confidence=kind))
  assert inputs["raters"].shape == stored["raters"].shape
  assert inputs["raters"].dtype == inputs["staple"].dtype == jnp.float32
  np.testing.assert_array_equal(inputs["drawn"], stored["drawn"])
  # Either way is linear: what holds between the stored maps holds between the augmented ones.
  where = inputs["where"]
  for found, expected in (
    (inputs["staple"], 1 - inputs["raters"][:, 1]),
    (inputs["confidence"], inputs["raters"][:, 0] / 2 + 20 / 255),
  ):
    gap = jnp.where(where, jnp.abs(found - expected), 0)
    # The confidence was halved in whole numbers.
    assert float(gap.max()) < 0.5 / 255 + 1e-6
  # Raters stay apart, and classes too.
  assert float(jnp.abs(inputs["raters"][:, 0] - inputs["raters"][:, 1]).mean()) > 0.2
  moved = jnp.abs(inputs["raters"] - stored["raters"] / 255).max(axis=(1, 2, 3, 4)) > 1e-3
  assert int(moved.sum()) >= 4


def test_the_mean_of_augmented_raters_is_the_augmented_mean(key):
  stored = rated(key)
  # Multiples of three have a mean in whole numbers.
  stored["raters"] = stored["raters"] // 3 * 3
  stored["confidence"] = stored["raters"].astype(jnp.int32).sum(1) // 3
  inputs = augment.prepare(stored, key, config(probability=1.0))
  np.testing.assert_allclose(inputs["raters"].mean(1), inputs["confidence"], atol=1e-6)


def test_what_raters_bring_along_changes_nothing_else(key):
  stored = rated(key)
  without = {name: stored[name] for name in ("image", "confidence", "valid_box", "labelled")}
  expected = augment.prepare(without, key, CONFIG)
  found = augment.prepare(stored, key, CONFIG)
  for name in ("image", "confidence", "where"):
    np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
  plain = augment.prepare(stored)
  np.testing.assert_allclose(plain["raters"], np.asarray(stored["raters"]) / 255, rtol=1e-6)
  np.testing.assert_allclose(plain["staple"], np.asarray(stored["staple"]) / 255, rtol=1e-6)


OFF = {name: 0 for name in (*augment.DEFORMATIONS, *augment.CHANGES, "crop")}
# Flips and nothing else.
STILL = {"rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0, "gamma": (1.0, 1.0)}
DEFORMED = {"scale": 0.3, "shift": 0.1, "shear_degrees": 10.0, "elastic": 0.02}


def with_options(**changes):
  return ConfigDict(CONFIG.to_dict() | OFF | changes)


def prepared(stored, key=None, options=None):
  """`augment.prepare`, compiled: piece by piece it takes ten times as long here."""
  return jax.device_get(jax.jit(lambda x, k: augment.prepare(x, k, options))(stored, key))


def test_what_is_off_is_as_if_there_were_none_of_it(key):
  stored = rated(key)
  expected = prepared(stored, key, CONFIG)
  jax.tree.map(np.testing.assert_array_equal, expected, prepared(stored, key, with_options()))


@pytest.mark.parametrize("crop", [0, 16])
def test_image_confidence_and_mask_are_deformed_together(key, crop):
  stored = batch(key, n=16)
  smooth = ndimage.gaussian_filter(np.asarray(stored["image"], float), (0, 2, 2, 0))
  smooth = 255 * (smooth - smooth.min()) / np.ptp(smooth)
  stored["image"] = jnp.asarray(smooth.round().astype(np.uint8))
  stored["confidence"] = jnp.repeat(stored["image"], 2, axis=-1)
  options = with_options(confidence="bilinear", probability=1.0, crop=crop, **STILL | DEFORMED)
  inputs = prepared(stored, key, options)
  assert inputs["image"].shape[1:3] == (crop or 24,) * 2
  where = inputs["where"]
  assert 0.5 < float(where.mean()) < 1
  found, expected = (np.where(where, inputs[name], 0) for name in ("image", "confidence"))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  options.confidence = "nearest"
  near = prepared(stored, key, options)
  np.testing.assert_array_equal(near["image"], inputs["image"])
  # Values that were painted, and no others.
  painted = set(np.unique(np.asarray(stored["confidence"])).tolist()) | {0}
  shown = np.rint(255 * np.asarray(near["confidence"])).astype(int)
  assert set(np.unique(shown).tolist()) <= painted
  assert float(jnp.abs(near["confidence"] - inputs["confidence"])[where].max()) < 0.25


@pytest.mark.parametrize("name", DEFORMED)
def test_each_deformation_moves_pixels_by_itself_and_by_its_chance(key, name):
  stored = batch(key, n=200, size=16)
  plain = prepared(stored)
  found = prepared(stored, key, with_options(**STILL | {name: DEFORMED[name]}))
  same = [
    np.all(np.abs(found["image"] - x) < 1e-5, axis=(1, 2, 3))
    for x in (plain["image"], plain["image"][:, :, ::-1])
  ]
  assert 0.4 < float((same[0] | same[1]).mean()) < 0.6


def test_scaling_scales_areas_within_its_bounds(key):
  n, size = 64, 64
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  disc = np.where(y**2 + x**2 < 15**2, 255, 0).astype(np.uint8)
  stored = batch(key, n=n, size=size, classes=1)
  stored["confidence"] = jnp.tile(jnp.asarray(disc)[None, ..., None], (n, 1, 1, 1))
  options = with_options(probability=1.0, **STILL | {"scale": 0.5})
  area = np.asarray(prepared(stored, key, options)["confidence"] > 0.5).sum((1, 2, 3))
  ratio = np.sqrt(area / (disc > 0).sum())
  assert 1 / 1.55 < ratio.min() < 0.75 and 1.35 < ratio.max() < 1.55
  assert abs(np.mean(np.log(ratio))) < 0.08


def test_deformation_leaves_every_threshold_its_area(key, phantom):
  n = len(phantom["confidence"])
  frames = {
    "image": np.zeros((n, 64, 64, 1), np.uint8),
    "valid_box": np.tile(np.int32([0, 0, 64, 64]), (n, 1)),
    "labelled": np.ones((n, 6), bool),
    "confidence": phantom["confidence"],
  }
  plain = prepared(frames)
  own = with_options(probability=1.0, **{"elastic": 0.02, "shear_degrees": 10.0})
  moved = prepared(frames, key, own)
  kept = [
    float(
      (label(moved["confidence"], t) * moved["where"]).sum() / label(plain["confidence"], t).sum()
    )
    for t in (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
  ]
  assert min(kept) > 0.85 and max(kept) < 1.05 and max(kept) - min(kept) < 0.04


def test_a_crop_is_a_piece_of_the_frame_as_it_is(key):
  stored = rated(key, n=6, size=40)
  options = with_options(probability=0.0, crop=32)
  found = prepared(stored, key, options)
  plain = prepared(stored)
  assert found["raters"].shape == (6, 3, 32, 32, 2) and found["where"].shape == (6, 32, 32, 2)
  places = set()
  for i in range(6):
    matches = [
      (top, left)
      for top in range(9)
      for left in range(9)
      if np.array_equal(found["image"][i], plain["image"][i, top : top + 32, left : left + 32])
    ]
    (place,) = matches
    places.add(place)
    inside = np.s_[place[0] : place[0] + 32, place[1] : place[1] + 32]
    for name in ("confidence", "where", "staple"):
      np.testing.assert_array_equal(found[name][i], plain[name][i][inside])
    np.testing.assert_array_equal(found["raters"][i], plain["raters"][i][:, inside[0], inside[1]])
  assert len(places) > 2
  assert augment.side(options, 40) == 32 and augment.side(with_options(), 40) == 40
  with pytest.raises(UserError, match="config.augment.crop: 32 is larger than the images"):
    augment.side(options, 31)


def test_each_change_of_the_picture_is_off_by_a_word_and_leaves_the_labels(key):
  stored = batch(key, n=200, size=16)
  stored["image"] = stored["image"] // 2 + 40
  plain = prepared(stored, key, with_options(**STILL))
  for name in augment.CHANGES:
    found = prepared(stored, key, with_options(**STILL | {name: 0.5}))
    for same in ("confidence", "where"):
      np.testing.assert_array_equal(found[same], plain[same])
    changed = np.any(found["image"] != plain["image"], axis=(1, 2, 3))
    assert 0.4 < changed.mean() < 0.6, name
    assert found["image"].min() >= 0 and found["image"].max() <= 1
  every = with_options(probability=0.0, **DEFORMED | dict.fromkeys(augment.CHANGES, 0.5))
  never = prepared(stored, key, every)
  jax.tree.map(np.testing.assert_array_equal, never, prepared(stored))


def test_changes_of_the_picture_are_what_they_are_called(key):
  grey = jnp.full((60, 80, 1), 0.4)
  faded = augment.attenuate(grey, 1.0)
  np.testing.assert_allclose(faded[[0, -1], 3, 0], 0.4 * np.exp([0.5, -0.5]), rtol=1e-5)
  ratios = faded[1:, 0, 0] / faded[:-1, 0, 0]
  np.testing.assert_allclose(ratios, np.exp(-1 / 59), rtol=1e-4)
  grains = np.asarray(augment.speckle(grey, 0.2, key))[..., 0] / 0.4
  assert grains.mean() == pytest.approx(1, abs=0.02) and grains.std() == pytest.approx(
    0.2, abs=0.02
  )
  beside, below = (
    np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for a, b in ((grains[:, 1:], grains[:, :-1]), (grains[1:], grains[:-1]))
  )
  assert beside > 0.5 and abs(below) < 0.1
  shadows = np.stack([augment.cast_shadow(grey, 0.8, k) for k in jax.random.split(key, 20)])[..., 0]
  assert shadows.min() >= 0.4 * 0.2 - 1e-6 and shadows.max() <= 0.4 + 1e-6
  darker = (shadows < 0.3).mean((0, 2))
  assert darker[-1] > 0.05 and darker[0] < darker[-1] / 2
  veiled = np.asarray(augment.add_haze(jnp.zeros((60, 80, 1)), 0.3, key))[..., 0]
  assert veiled.min() > 0 and veiled.max() < 0.3 and np.ptp(veiled) > 0.05
  assert np.abs(np.diff(veiled, axis=0)).max() < np.ptp(veiled) / 4
  assert float(jnp.abs(augment.add_haze(jnp.ones((4, 4, 1)), 0.3, key) - 1).max()) < 1e-6


@pytest.mark.parametrize(
  ("field", "value"),
  [(name, value) for name in (*augment.DEFORMATIONS, *augment.CHANGES) for value in (-0.1, 90.0)]
  + [("crop", 8), ("haze", float("nan"))],
)
def test_a_strength_out_of_range_is_refused_by_name(field, value):
  augment.check(with_options())
  with pytest.raises(UserError, match=f"config.augment.{field}"):
    augment.check(with_options(**{field: value}))
