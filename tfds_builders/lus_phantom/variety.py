"""What makes the phantom's pictures more alike those of a clinic; each is an option of its own.

Every option draws from a generator of its own, so that one changes nothing of the others, and
without any the pictures are what they always were. None adds a class: fluid and airless lung are
what pleura, A-lines and B-lines stand beside.
"""

import dataclasses

import numpy as np

from tfds_builders.lus_phantom import cohort, simulator

# As users of a linear probe choose them: by depth, frequency and how hard the picture is.
PRESETS = (
  simulator.Probe(),
  simulator.Probe(  # superficial
    depth_cm=4.8,
    axial_mm=0.32,
    lateral_mm=0.95,
    focus_mm=17.0,
    frequency_mhz=10.0,
    time_gain_db_per_cm=9.4,
    time_gain_stop_cm=4.2,
    dynamic_range_db=64.0,
  ),
  simulator.Probe(  # deep
    depth_cm=8.0,
    axial_mm=0.50,
    lateral_mm=1.40,
    focus_mm=32.0,
    rayleigh_mm=30.0,
    frequency_mhz=6.0,
    time_gain_db_per_cm=5.6,
    time_gain_stop_cm=6.0,
  ),
  simulator.Probe(depth_cm=5.6, focus_mm=24.0, dynamic_range_db=52.0),  # vascular: hard
  simulator.Probe(dynamic_range_db=72.0),  # soft tissue: soft
)
_FEWEST_MM, _WIDTH_MM = 3.0, 10 * simulator.Probe().width_cm


def _preset(seed, video):
  """One machine and depth a patient; the gain is set anew for every video."""
  mine = cohort.generator(seed, "presets", video.patient).integers(len(PRESETS))
  gain = cohort.generator(seed, "gain", video.name).normal(0, 3.5)
  return dataclasses.replace(PRESETS[mine], gain_db=float(np.clip(gain, -8, 8)))


def _b_lines(rng, scene, video):
  count = len(scene.rays)
  shapes = np.stack(
    [
      rng.uniform(0.05, 0.45, count),
      rng.normal(0, 0.35, count),
      rng.normal(0, 0.1, count),
      rng.uniform(0.5, 5.5, count),
    ],
    axis=1,
  )
  # As bright on the whole: more at the pleura, less below.
  rays = scene.rays + np.array([0, 0, 1, 0]) * shapes[:, 3:]
  return dataclasses.replace(scene, rays=rays, ray_shapes=shapes)


def _curved_pleura(rng, scene, video):
  # A chest is round: mostly the middle comes nearest to the probe.
  return dataclasses.replace(scene, curve_mm=float(np.clip(rng.normal(1.6, 1.4), -1.5, 5)))


def _effusion(rng, scene, video):
  low = video.view in ("L3", "R3")
  if rng.random() >= 0.06 + low * (0.1 + 0.4 * video.congestion):
    return scene
  place = rng.uniform(0, _WIDTH_MM), rng.uniform(16, 50), rng.uniform(_FEWEST_MM, 14)
  return dataclasses.replace(scene, effusion=place)


def _consolidation(rng, scene, video):
  if rng.random() >= 0.08 + 0.3 * video.congestion:
    return scene
  found = []
  for _ in range(rng.integers(1, 3)):
    half = rng.uniform(4, 13)
    deepest = rng.uniform(0.5, 1.1) * half
    border = simulator.waves(rng, 0.13 * deepest + 0.5, rng.uniform(5, 9), 5)
    found.append((rng.uniform(4, _WIDTH_MM - 4), half, deepest, rng.normal(-36, 2.5), border))
  return dataclasses.replace(scene, consolidations=tuple(found))


def _lung_point(rng, scene, video):
  if rng.random() >= 0.1:
    return scene
  point = int(rng.choice([-1, 1])), rng.uniform(0.3, 0.7) * _WIDTH_MM
  # Between air and the chest wall there is neither fluid nor airless lung.
  return dataclasses.replace(scene, lung_point=point, effusion=None, consolidations=())


def _lung_pulse(rng, scene, video):
  # It is seen where the lung lies at the wall, and does not slide.
  if rng.random() >= 0.15 or scene.lung_point is not None:
    return scene
  pulse = rng.uniform(0.5, 1.2), rng.uniform(60, 105) / 60, rng.uniform(0, 2 * np.pi)
  return dataclasses.replace(scene, pulse=pulse, slide_mm=0.15)


_SCENES = {
  "b_lines": _b_lines,
  "curved_pleura": _curved_pleura,
  "effusion": _effusion,
  "consolidation": _consolidation,
  "lung_point": _lung_point,
  "lung_pulse": _lung_pulse,
}
# In the order in which they apply: a lung point takes fluid away.
OPTIONS = ("presets", *_SCENES)


def probe_of(video, *, seed, options):
  """The `simulator.Probe` of a `cohort.Video`."""
  return _preset(seed, video) if "presets" in options else simulator.Probe()


def varied(scene, video, *, seed, options):
  """A `simulator.Scene` with what the options draw for a `cohort.Video`.

  Args:
    scene: as `simulator.sample_scene` draws it.
    video: whose scene it is.
    seed: of the data set.
    options: some of `OPTIONS`; their order does not matter.
  """
  for option, vary in _SCENES.items():
    if option in options:
      scene = vary(cohort.generator(seed, option, video.name), scene, video)
  return scene
