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
