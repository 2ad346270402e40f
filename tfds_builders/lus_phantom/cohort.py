"""Simulated patients: days, views, the latent congestion and what follows from it."""

import dataclasses
import zlib

import numpy as np
from scipy import special

from tfds_builders.lus_phantom import annotator as annotator_lib

VIEWS = ("L1", "L2", "L3", "R1", "R2", "R3")
# Fluid collects low and behind: how strongly a view shows the patient's congestion.
VIEW_GAIN = {"L1": 0.75, "L2": 0.95, "L3": 1.2, "R1": 0.8, "R2": 1.0, "R3": 1.3}

# With `readmission_accuracy`: the change of congestion above which a patient is readmitted.
READMITTED_ABOVE = 0.0


def generator(seed, *path):
  """A NumPy generator for one place in the cohort, the same whatever else is drawn.

  Args:
    seed: of the data set.
    path: what is drawn and for whom: words and integers.
  """
  words = [zlib.crc32(str(part).encode()) for part in path]
  return np.random.default_rng([seed, *words])


@dataclasses.dataclass(frozen=True)
class Video:
  """One recording.

  Attributes:
    name: 'p000_d1_L1'.
    patient: 'p000'.
    day: from 1.
    view: of `VIEWS`.
    congestion: of this view, in [0, 1].
    patient_congestion: of the patient on this day, in [0, 1].
    sf_ratio: raw S/F ratio (0 to 477), equal within a patient-day.
    readmitted_30d: 0 or 1, equal within a patient.
    annotator: name of the expert who paints this patient.
  """

  name: str
  patient: str
  day: int
  view: str
  congestion: float
  patient_congestion: float
  sf_ratio: float
  readmitted_30d: int
  annotator: str


def patient_names(n_patients):
  """['p000', 'p001', ...]."""
  return [f"p{i:03d}" for i in range(n_patients)]


def congestion_course(rng, days):
  """[days] latent congestion in [0, 1] of a patient: most improve, some do not."""
  start = rng.beta(1.6, 1.6)
  steps = rng.normal(-0.06, 0.17, days - 1)
  return np.clip(start + np.concatenate([[0.0], np.cumsum(steps)]), 0, 1)


def clear_course(rng, days):
  """`congestion_course` of who gets clearly better or worse by the second day, as likely as not."""
  course = congestion_course(rng, days)
  step = rng.choice([-1, 1]) * rng.uniform(0.3, 0.5)
  if not 0 <= course[0] + step <= 1:
    step = -step
  course[1:] += course[0] + step - course[1]
  return np.clip(course, 0, 1)


def change_of_views(videos):
  """How the congestion of the lungs changed from the first day to the second, as the views show it.

  Args:
    videos: of one patient, each with `day`, `view` and `congestion`.

  Returns:
    The mean, over the views of both days, of the second less the first; without such a view the
    mean of the second day less that of the first.
  """
  first, second = ({v.view: v.congestion for v in videos if v.day == day} for day in (1, 2))
  both = [second[view] - first[view] for view in VIEWS if view in first and view in second]
  if both:
    return float(np.mean(both))
  return float(np.mean(list(second.values())) - np.mean(list(first.values())))


def expected_readmission(videos):
  """What the best reader says of a patient: 1 (readmitted) unless the lungs clear enough.

  Args:
    videos: all of one patient.
  """
  return int(change_of_views(videos) > READMITTED_ABOVE)


def outcomes(rng, congestion):
  """Draws what follows from a patient's congestion.

  Args:
    rng: NumPy generator.
    congestion: [days] in [0, 1].

  Returns:
    [days] raw S/F ratios (0 to 477, one decimal), and whether readmitted within 30 days (0 or 1).
  """
  sf_ratio = 470 - 330 * congestion + rng.normal(0, 35, len(congestion))
  last, trend = congestion[-1], congestion[-1] - congestion[0]
  readmitted = rng.random() < special.expit(7 * (last - 0.45) + 2 * trend)
  return np.round(np.clip(sf_ratio, 60, 477), 1), int(readmitted)


def patient_videos(
  patient,
  *,
  seed,
  setting,
  missing_views,
  annotators,
  stable_patients=0.0,
  readmission_accuracy=0.0,
):
  """Draws one patient.

  Args:
    patient: name.
    seed: of the data set.
    setting: 'null' draws outcomes from another congestion than the one in the lungs.
    missing_views: chance that a view was not recorded; a day keeps at least one.
    annotators: names to choose from.
    stable_patients: chance that a patient's congestion and S/F ratio stay what they are on the
      first day, so that pairs of videos of different days are "Same".
    readmission_accuracy: chance that readmission is what `expected_readmission` says, so that no
      reader is right more often; congestion is then a `clear_course`, or few pictures would tell
      what a reader has to know. 0: it follows from the last congestion and the trend (`outcomes`).

  Returns:
    A list of `Video`, by day and view.
  """
  rng = generator(seed, "patient", patient)
  days = int(rng.integers(2, 4))
  congestion = congestion_course(rng, days)
  behind = congestion_course(generator(seed, "null", patient), days)
  if readmission_accuracy:
    congestion = clear_course(generator(seed, "clear", patient), days)
  stable = generator(seed, "stable", patient).random() < stable_patients
  if stable:
    congestion, behind = (np.full(days, course[0]) for course in (congestion, behind))
  sf_ratio, readmitted = outcomes(
    generator(seed, "outcomes", patient), behind if setting == "null" else congestion
  )
  if stable:
    sf_ratio = np.full(days, sf_ratio[0])
  annotator = str(rng.choice(list(annotators)))
  side = dict(zip("LR", rng.normal(0, 0.06, 2), strict=True))
  videos = []
  for day in range(days):
    missing = rng.random(len(VIEWS)) < missing_views
    missing[rng.integers(len(VIEWS))] &= not missing.all()
    local = rng.normal(0, 0.08, len(VIEWS))
    for i, view in enumerate(VIEWS):
      if missing[i]:
        continue
      seen = VIEW_GAIN[view] * congestion[day] + side[view[0]] + local[i]
      videos.append(
        Video(
          name=f"{patient}_d{day + 1}_{view}",
          patient=patient,
          day=day + 1,
          view=view,
          congestion=float(np.clip(seen, 0, 1)),
          patient_congestion=float(congestion[day]),
          sf_ratio=float(sf_ratio[day]),
          readmitted_30d=readmitted,
          annotator=annotator,
        )
      )
  if readmission_accuracy:
    expected = expected_readmission(videos)
    as_expected = generator(seed, "readmission", patient).random() < readmission_accuracy
    readmitted = expected if as_expected else 1 - expected
    videos = [dataclasses.replace(video, readmitted_30d=readmitted) for video in videos]
  return videos


def videos_of(patient, config):
  """`patient_videos` of a `PhantomConfig`."""
  return patient_videos(
    patient,
    seed=config.seed,
    setting=config.setting,
    missing_views=config.missing_views,
    annotators=annotator_lib.STYLES,
    stable_patients=config.stable_patients,
    readmission_accuracy=config.readmission_accuracy,
  )
