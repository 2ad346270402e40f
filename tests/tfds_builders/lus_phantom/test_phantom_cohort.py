import numpy as np

from tfds_builders.lus_phantom import cohort


def videos(n_patients, setting="default", missing_views=0.25, seed=0):
  return [
    video
    for patient in cohort.patient_names(n_patients)
    for video in cohort.patient_videos(
      patient, seed=seed, setting=setting, missing_views=missing_views, annotators="ABC"
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
