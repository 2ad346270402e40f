import numpy as np
import pytest

from lus_jax.errors import UserError
from tfds_builders.lus_phantom import annotator, cohort, lus_phantom

LEVELS = np.rint(255 * annotator.LEVELS).astype(np.uint8)


def paint(setting, **settings):
  """Truth and confidence of some videos, [V, H, W, K]."""
  config = lus_phantom.phantom_config("frames", 64, 64, setting=setting, **settings)
  videos = [
    video
    for patient in cohort.patient_names(6)
    for video in cohort.patient_videos(
      patient, seed=0, setting=setting, missing_views=0.6, annotators=annotator.STYLES
    )
  ]
  simulated = [lus_phantom.simulate(video, config) for video in videos]
  truth, evidence = (np.stack([one[key][0] for one in simulated]) for key in ("truth", "evidence"))
  return truth > 0, evidence, np.stack([one["confidence"] for one in simulated])


@pytest.fixture(scope="module")
def painted():
  return {setting: paint(setting) for setting in annotator.SETTINGS}


def faint_and_strong(truth, confidence):
  """P(true | faint stroke) and P(true | strong stroke), by pixels."""
  faint = confidence <= np.rint(255 * annotator.FAINT)
  return truth[(confidence > 0) & faint].mean(), truth[~faint].mean()


def test_confidence_is_one_of_the_brush_levels(painted):
  for _, _, confidence in painted.values():
    assert set(np.unique(confidence)) == {0, *LEVELS}


def test_every_class_has_every_level(painted):
  _, _, confidence = painted["default"]
  for k in range(confidence.shape[-1]):
    values, counts = np.unique(confidence[..., k], return_counts=True)
    assert set(values) == {0, *LEVELS}
    assert counts[values == 255] > 0.08 * counts[1:].sum()


def test_settings_say_what_faint_strokes_mean(painted):
  faint, strong = {}, {}
  for setting, (truth, _, confidence) in painted.items():
    faint[setting], strong[setting] = faint_and_strong(truth, confidence)
  assert faint["faint_true"] > 0.9
  assert faint["faint_false"] < 0.4
  assert faint["faint_false"] < faint["default"] - 0.2 < faint["faint_true"] - 0.2
  given = {
    setting: confidence[(confidence > 0) & ~truth].mean() / 255
    for setting, (truth, _, confidence) in painted.items()
  }
  assert given["faint_false"] < given["default"] - 0.1 < given["faint_true"] - 0.2
  assert abs(faint["faint_uninformative"] - strong["faint_uninformative"]) < 0.05
  np.testing.assert_array_equal(painted["null"][2], painted["default"][2])


def test_low_evidence_is_missed_more_often_and_painted_fainter(painted):
  truth, evidence, confidence = painted["default"]
  # Within a class: classes differ in evidence and in nothing else.
  for k in range(truth.shape[-1]):
    seen, given = evidence[..., k][truth[..., k]], confidence[..., k][truth[..., k]]
    low, high = np.quantile(seen, [0.2, 0.8])
    assert (given[seen <= low] == 0).mean() > 1.5 * (given[seen >= high] == 0).mean()
    assert given[seen >= high].mean() > 1.3 * given[seen <= low].mean()


def test_structures_are_painted_that_are_not_there(painted):
  truth, _, confidence = painted["default"]
  false = ((confidence > 0) & ~truth).mean((0, 1, 2)) / (confidence > 0).mean((0, 1, 2))
  assert (false > 0.01).all() and (false < 0.5).all()


def test_level_shares_are_a_knob():
  certain = (0, 0, 0, 0, 0, 1)
  split = (1, 0, 0, 0, 1, 0)
  _, _, confidence = paint("default", level_shares=(certain,) * 5 + (split,))
  assert set(np.unique(confidence[..., :5])) == {0, 255}
  last = confidence[..., 5]
  assert set(np.unique(last)) == {0, 51, 204}
  assert 0.25 < (last == 51).sum() / (last > 0).sum() < 0.75


@pytest.mark.parametrize("shares", [(1, 2), (-1, 1, 1, 1, 1, 1), (0,) * 6, "many"])
def test_bad_level_shares_are_refused(shares):
  with pytest.raises(UserError, match="level_shares of lus_phantom must be 6 numbers"):
    annotator.level_shares(shares, 6)


def test_an_unknown_setting_is_refused_with_the_choices():
  with pytest.raises(UserError, match="'nul' .* choose one of default, faint_true"):
    annotator.reading("nul")


DOSES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8)


@pytest.fixture(scope="module")
def dialled():
  """Frames of the family, and what all experts paint in them at every dose."""
  config = lus_phantom.phantom_config("frames", 64, 64, setting="true_from_0.4")
  with pytest.MonkeyPatch.context() as patch:
    found = []
    patch.setattr(annotator, "annotate", lambda **frame: found.append(frame) or frame["truth"])
    for patient in cohort.patient_names(30):
      lus_phantom.simulate(cohort.videos_of(patient, config)[0], config)
  truth = np.stack([frame["truth"] for frame in found])
  painted = {}
  for dose in DOSES:
    reading = annotator.reading(f"true_from_{dose:g}")
    for n, style in enumerate(annotator.STYLES.values()):
      frames = [
        annotator.annotate(
          **frame | {"style": style, "reading": reading, "rng": np.random.default_rng([n, i])}
        )
        for i, frame in enumerate(found[n::3])
      ]
      painted[dose, n] = truth[n::3], np.stack(frames)
  return {
    dose: tuple(np.concatenate([painted[dose, n][i] for n in range(3)]) for i in (0, 1))
    for dose in DOSES
  }


@pytest.mark.parametrize("dose", DOSES)
def test_strokes_are_true_as_often_as_the_dose_says(dialled, dose):
  truth, confidence = dialled[dose]
  for level, stored in zip(annotator.LEVELS, LEVELS, strict=True):
    wanted = annotator.positive_predictive_value(level, dose)
    assert truth[confidence == stored].mean() == pytest.approx(wanted, abs=0.1)
    assert (wanted > 0.5) == (level >= dose)


def test_the_shares_of_true_strokes_by_hand():
  # A step of .1 is 10/3 widths; half a step lies between dial and crossing.
  for away, share in ((0.05, 0.82), (0.15, 0.96), (-0.05, 0.18), (-0.15, 0.04), (0.0, 0.5)):
    found = annotator.positive_predictive_value(0.55 + away, 0.6)
    assert found == pytest.approx(0.03 + 0.94 / (1 + np.exp(-away / 0.03)))
    assert found == pytest.approx(share, abs=0.006)


def label_dice(truth, confidence, threshold):
  """Mean over classes."""
  label = confidence >= np.rint(255 * threshold)
  both = (label & truth).sum((0, 1, 2))
  return np.mean(2 * both / (label.sum((0, 1, 2)) + truth.sum((0, 1, 2))))


def test_the_truest_label_moves_with_the_dose(dialled):
  best = {
    dose: max(annotator.LEVELS, key=lambda t, dose=dose: label_dice(*dialled[dose], t))
    for dose in DOSES
  }
  assert best == {0.0: 0.2, 0.2: 0.2, 0.4: 0.4, 0.5: 0.5, 0.6: 0.6, 0.8: 0.8}
  # It is a good label at every dose, and how much worse another is, is no small thing.
  for dose in DOSES:
    assert label_dice(*dialled[dose], best[dose]) > 0.85
  for dose, worse in ((0.0, 0.8), (0.8, 0.2)):
    assert label_dice(*dialled[dose], best[dose]) - label_dice(*dialled[dose], worse) > 0.15


def test_every_dose_has_the_same_pictures_and_hardly_a_structure_unpainted(dialled):
  for truth, confidence in dialled.values():
    assert truth is not None and (confidence[truth] > 0).mean() > 0.9
  (video, *_) = cohort.patient_videos(
    "p000", seed=0, setting="default", missing_views=0.6, annotators=annotator.STYLES
  )
  one, other = (
    lus_phantom.simulate(video, lus_phantom.phantom_config("frames", 32, 32, setting=setting))
    for setting in ("true_from_0", "true_from_0.8")
  )
  for key in ("frames", "truth", "evidence"):
    np.testing.assert_array_equal(one[key], other[key])
  assert (one["confidence"] != other["confidence"]).any()


def test_where_little_can_be_taken_for_a_structure_every_level_keeps_its_meaning():
  # One class in which decoys are few: fascia bands. Level shares differ from those wanted instead.
  shares = annotator.level_shares((0.9, 0, 0, 0, 0, 0.1), 6)
  truth, decoys = np.zeros((2, 200, 400, 6), bool)
  k = 2
  truth[10:130:4, :, k] = True
  decoys[150:180:4, :, k] = True  # about .3 of it
  rng = np.random.default_rng(0)
  seen, mistaken = (
    rng.normal(mean, sd, (200, 1, 1)).clip(0, 1) * np.full((200, 400, 6), 255)
    for mean, sd in ((0.62, 0.26), (0.15, 0.18))
  )
  painted = annotator.annotate(
    truth=truth,
    evidence=seen.astype(np.uint8),
    decoys=decoys,
    decoy_evidence=mistaken.astype(np.uint8),
    style=annotator.STYLES["B"],
    reading=annotator.reading("true_from_0.8"),
    shares=shares,
    rng=rng,
    mm_per_pixel=(2.0, 0.3),
  )[..., k]
  assert (painted[truth[..., k]] > 0).mean() > 0.8
  faint, strong = (truth[..., k][painted == level].mean() for level in LEVELS[[0, -1]])
  assert faint < 0.25 and strong > 0.85


@pytest.mark.parametrize(
  "setting", ["true_from_", "true_from_.6", "true_from_0.60", "true_from_0.9", "true_from_-0.1"]
  + ["true_from_nan", "true_from_half", "true_from_1e-1"]
)  # fmt: skip
def test_another_spelling_of_a_dose_is_refused(setting):
  assert annotator.true_from(setting) is None
  with pytest.raises(UserError, match="or true_from_T with T from 0 to 0.8"):
    annotator.reading(setting)
