import dataclasses

import numpy as np
import pytest

from lus_jax.data import pairs
from tfds_builders.lus_phantom import cohort, lus_phantom, phantom_config, simulator


def videos(n_patients, setting="default", missing_views=0.25, seed=0, **options):
  return [
    video
    for patient in cohort.patient_names(n_patients)
    for video in cohort.patient_videos(
      patient, seed=seed, setting=setting, missing_views=missing_views, annotators="ABC", **options
    )
  ]


def test_days_views_and_names():
  drawn = videos(200)
  days = {patient: set() for patient in cohort.patient_names(200)}
  for v in drawn:
    days[v.patient].add(v.day)
  assert all(found in ({1, 2}, {1, 2, 3}) for found in days.values())
  pairs = {(v.patient, v.day) for v in drawn}
  assert 2.3 < len(pairs) / 200 < 2.7
  assert 0.22 < 1 - len(drawn) / (6 * len(pairs)) < 0.28
  assert len({v.name for v in drawn}) == len(drawn)
  assert all(v.name == f"{v.patient}_d{v.day}_{v.view}" for v in drawn)


def test_a_day_keeps_a_view_and_none_is_missing_by_config():
  assert {v.day for v in videos(1, missing_views=0.999)} >= {1, 2}
  drawn = videos(10, missing_views=0.0)
  assert len(drawn) == 6 * len({(v.patient, v.day) for v in drawn})


def test_outcomes_are_equal_within_a_patient_day_and_a_patient():
  drawn = videos(30)
  for v in drawn:
    for w in drawn:
      if v.patient == w.patient:
        assert v.readmitted_30d == w.readmitted_30d and v.annotator == w.annotator
        assert v.day != w.day or v.sf_ratio == w.sf_ratio
  assert {v.annotator for v in drawn} == set("ABC")
  assert {v.readmitted_30d for v in drawn} == {0, 1}
  assert all(60 <= v.sf_ratio <= 477 for v in drawn)


def test_outcomes_follow_the_lungs_except_under_the_null():
  def correlations(setting):
    drawn = videos(300, setting)
    days = list({(v.patient, v.day): v for v in drawn}.values())
    last = list({v.patient: v for v in drawn}.values())
    state = np.corrcoef([v.patient_congestion for v in days], [v.sf_ratio for v in days])[0, 1]
    again = np.corrcoef([v.patient_congestion for v in last], [v.readmitted_30d for v in last])
    return state, again[0, 1]

  sf_ratio, readmitted = correlations("default")
  assert sf_ratio < -0.8 and readmitted > 0.4
  sf_ratio, readmitted = correlations("null")
  assert abs(sf_ratio) < 0.15 and abs(readmitted) < 0.15


def test_the_null_changes_outcomes_only():
  kept = [(v.name, v.congestion, v.annotator) for v in videos(20)]
  assert kept == [(v.name, v.congestion, v.annotator) for v in videos(20, "null")]


def test_views_show_congestion_differently():
  drawn = videos(200)
  mean = {view: np.mean([v.congestion for v in drawn if v.view == view]) for view in cohort.VIEWS}
  assert mean["L1"] < mean["L2"] < mean["L3"] and mean["R1"] < mean["R2"] < mean["R3"]


def test_a_patient_does_not_depend_on_the_others_but_on_the_seed():
  assert videos(20)[: len(videos(3))] == videos(3)
  assert videos(3) != videos(3, seed=1)


def by_patient(drawn):
  found = {}
  for video in drawn:
    found.setdefault(video.patient, []).append(video)
  return list(found.values())


def same_on_other_days(drawn):
  """The share of pairs of one zone and patient, of different days, that are "Same"."""
  zone = [pairs.ZONES[v.view] for v in drawn]
  found = pairs.within_patient_pairs(zone, [v.patient for v in drawn])
  day, ratio = (np.array([getattr(v, name) for v in drawn])[found] for name in ("day", "sf_ratio"))
  others = day[:, 0] != day[:, 1]
  return np.mean(pairs.change(ratio[:, 0], ratio[:, 1])[others] == 1)


def test_stable_patients_make_same_pairs_of_different_days():
  assert same_on_other_days(videos(150)) < 0.05
  for share in (0.3, 1.0):
    drawn = videos(150, stable_patients=share)
    assert abs(same_on_other_days(drawn) - share) < 0.1
    stable = [mine for mine in by_patient(drawn) if len({v.sf_ratio for v in mine}) == 1]
    assert abs(len(stable) / 150 - share) < 0.1
    for mine in stable:
      assert len({v.day for v in mine}) > 1 and len({v.patient_congestion for v in mine}) == 1
  # Everybody else is who they always were, and pictures of two days are not the same ones.
  usual = {v.name: v for v in videos(150)}
  for v in videos(150, stable_patients=0.3):
    assert (v.view, v.annotator) == (usual[v.name].view, usual[v.name].annotator)
    assert v == usual[v.name] or v.day > 1 or v.sf_ratio == usual[v.name].sf_ratio
  shown = [v.congestion for v in by_patient(videos(3, stable_patients=1.0))[0] if v.view == "L2"]
  assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("best", [0.75, 0.9, 1.0])
def test_the_ideal_observer_is_right_as_often_as_stated_and_nobody_more_often(best):
  # Two views a day: fewer to draw, and some days have none in common.
  patients = by_patient(videos(600, missing_views=0.7, readmission_accuracy=best))
  outcome = np.array([mine[0].readmitted_30d for mine in patients])
  error = np.sqrt(best * (1 - best) / len(patients))
  ideal = np.array([cohort.expected_readmission(mine) for mine in patients])
  assert abs(np.mean(ideal == outcome) - best) <= 3 * error
  # With no other cut, and with no other knowledge, nobody gets further.
  change = np.array([cohort.change_of_views(mine) for mine in patients])
  cuts = [np.mean((change > cut) == outcome) for cut in np.linspace(-0.5, 0.5, 51)]
  assert max(cuts) <= best + 3 * error
  last = np.array([mine[-1].patient_congestion for mine in patients])
  assert max(np.mean((last > cut) == outcome) for cut in np.linspace(0, 1, 21)) < best - 0.05
  assert 0.4 < outcome.mean() < 0.6


def test_the_change_is_of_the_views_of_both_days():
  (mine,) = by_patient(videos(1))

  def video(day, view, congestion):
    return dataclasses.replace(mine[0], day=day, view=view, congestion=congestion)

  both = [video(1, "L1", 0.2), video(1, "L2", 0.9), video(2, "L1", 0.5), video(2, "R1", 0.0)]
  assert cohort.change_of_views(both) == pytest.approx(0.3)
  assert cohort.expected_readmission(both) == 1
  assert cohort.change_of_views([*both, video(3, "L1", 0.0)]) == pytest.approx(0.3)
  none = [video(1, "L1", 0.2), video(1, "L2", 0.4), video(2, "R1", 0.1)]
  assert cohort.change_of_views(none) == pytest.approx(-0.2)
  assert cohort.expected_readmission(none) == 0


def test_a_stated_accuracy_leaves_days_views_and_experts_as_they_are():
  usual, stated = videos(20), videos(20, readmission_accuracy=0.9)
  same = ("name", "patient", "day", "view", "annotator")
  for v, w in zip(usual, stated, strict=True):
    assert [getattr(v, name) for name in same] == [getattr(w, name) for name in same]
  assert all(0 <= w.congestion <= 1 and 0 <= w.patient_congestion <= 1 for w in stated)
  # The S/F ratio is that of the lungs which are there.
  days = list({(w.patient, w.day): w for w in videos(200, readmission_accuracy=0.9)}.values())
  of = np.corrcoef([w.patient_congestion for w in days], [w.sf_ratio for w in days])
  assert of[0, 1] < -0.8


def test_what_the_ideal_observer_knows_can_be_seen():
  change, agree = [], []
  config = phantom_config("frames", 32, 32, readmission_accuracy=0.9, missing_views=0.6)
  for patient in cohort.patient_names(14):
    mine = [v for v in cohort.videos_of(patient, config) if v.day <= 2]
    change.append(cohort.change_of_views(mine))
    seen = []
    for video in mine:
      # Of the true masks: how much of the pleura is fuzzy, and of the lung B-line.
      truth = lus_phantom.simulate(video, config)["truth"][0].mean((0, 1)) / 255
      fuzzy = truth[simulator.FUZZY] / (truth[simulator.FUZZY] + truth[simulator.SHARP] + 1e-6)
      seen.append(dataclasses.replace(video, congestion=fuzzy + 2 * truth[simulator.VERTICAL]))
    agree.append(cohort.expected_readmission(seen) == cohort.expected_readmission(mine))
  assert np.quantile(np.abs(change), 0.1) > 0.15
  assert np.mean(agree) > 0.85
