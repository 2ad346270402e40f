"""What the options bring into the picture and into the truth, in millimetres and decibels."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tfds_builders.lus_phantom import cohort, lus_phantom, phantom_config, simulator, variety

SIZE = 128
DZ, DX = 64 / SIZE, 40 / SIZE  # mm a pixel
X = (np.arange(SIZE) + 0.5) * DX
Z = (np.arange(SIZE) + 0.5) * DZ


def bare(**changes):
  """A level lung at 16 mm that does not move, with haze below and nothing else."""
  rng = np.random.default_rng(3)
  wall = dataclasses.replace(simulator.sample_wall(rng), pleura_mm=16.0)
  drawn = simulator.sample_scene(rng, wall=wall, congestion=0.3)
  quiet = {name: getattr(drawn, name)[:0] for name in ("rays", "comets", "streaks", "striae")}
  quiet |= {"a_db": -np.inf, "sub_a_db": -np.inf, "rib": (0, 0.0, 0.0), "fuzz": 0.0, "tilt": 0.0}
  quiet |= {"waves": 0 * drawn.waves, "fuzz_waves": 0 * drawn.fuzz_waves, "slide_mm": 1e-6}
  quiet |= {"wall": dataclasses.replace(drawn.wall, pleura_mm=16.0), "haze_db": -40.0}
  return dataclasses.replace(drawn, **(quiet | changes))


def render(drawn, n_frames=1, **settings):
  rng = np.random.default_rng(1)
  found = simulator.render(drawn, height=SIZE, width=SIZE, rng=rng, n_frames=n_frames, **settings)
  return found["image"].astype(float), found["truth"], found["decoys"]


def videos(n_patients, config):
  return [v for p in cohort.patient_names(n_patients) for v in cohort.videos_of(p, config)]


def test_depth_is_another_scale_of_the_same_anatomy():
  rows = {}
  for probe in variety.PRESETS:
    _, truth, _ = render(bare(), probe=probe)
    where = np.argwhere(truth[0, ..., simulator.SHARP])[:, 0]
    rows[probe.depth_cm] = (where.mean() + 0.5) / SIZE * 10 * probe.depth_cm
  assert len(rows) == 4 and max(abs(depth - 16) for depth in rows.values()) < 0.6


def test_gain_is_so_many_decibels_everywhere():
  probe = simulator.Probe()
  (plain, *_), (louder, *_) = (
    render(bare(), probe=dataclasses.replace(probe, gain_db=gain)) for gain in (0.0, 6.0)
  )
  seen = (plain > 0) & (louder < 255)
  assert seen.mean() > 0.3
  assert np.abs(louder - plain - 255 * 6 / probe.dynamic_range_db)[seen].max() <= 1


def test_a_patient_has_one_preset_and_every_video_its_gain():
  config = phantom_config("frames", 32, 32, variety=("presets",))
  probes = {}
  for video in videos(12, config):
    probe = variety.probe_of(video, seed=0, options=config.variety)
    probes.setdefault(video.patient, []).append(probe)
    assert variety.probe_of(video, seed=0, options=()) == simulator.Probe()
  depths = [{(p.depth_cm, p.dynamic_range_db) for p in mine} for mine in probes.values()]
  assert all(len(mine) == 1 for mine in depths) and len(set.union(*depths)) >= 4
  gains = [p.gain_db for mine in probes.values() for p in mine]
  assert len(set(gains)) > 0.9 * len(gains) and 2 < np.std(gains) < 5


def test_b_lines_widen_lean_bend_and_fade():
  ray = np.array([[18.0, 2.0, -20.0, 0.0]])
  shape = np.array([[0.5, 1.0, 0.4, 3.0]])  # at 2 cm: twice as wide, 2 + 1.6 mm aside, 6 dB less
  (straight, *_), (image, truth, _) = (
    render(bare(rays=ray, ray_shapes=one)) for one in (0 * shape, shape)
  )
  b_line = truth[0, ..., simulator.VERTICAL]
  at = round((16 + 20) / DZ)
  for row, width, centre in ((round(16.7 / DZ), 2.1, 18.1), (at, 4.0, 21.6)):
    assert b_line[row].sum() * DX == pytest.approx(width, abs=0.4)
    assert X[b_line[row]].mean() == pytest.approx(centre, abs=0.3)

  def level(picture, place):
    near = np.abs(X - place) < 1
    return picture[0, at - 8 : at + 8, near].mean()

  fallen = (level(straight, 18.0) - level(image, 21.6)) / 255 * 60
  assert fallen == pytest.approx(6, abs=2)
  # It ends where it has faded to -52 dB, and hides A-lines only where it is.
  fades, faint = np.array([[0.0, 0.0, 0.0, 8.0]]), np.array([[18.0, 2.0, -36.0, 0.0]])
  _, truth, _ = render(bare(rays=faint, ray_shapes=fades))
  lowest = Z[np.argwhere(truth[0, ..., simulator.VERTICAL])[:, 0].max()]
  assert lowest == pytest.approx(16 + 20, abs=2 * DZ)
  bent = bare(rays=ray, ray_shapes=np.array([[0.0, 5.0, 0.0, 0.0]]), a_db=-10.0)
  _, truth, _ = render(dataclasses.replace(bent, a_waves=np.zeros((1, 3))))
  a_line = truth[0, round(32 / DZ), :, simulator.A_LINE]
  hidden = X[~a_line]
  assert hidden.mean() == pytest.approx(18 + 5 * 1.6, abs=0.4) and len(hidden) * DX < 3


def test_without_shapes_a_b_line_is_as_shaped_by_nothing():
  ray = np.array([[18.0, 2.0, -20.0, 0.5]])
  (plain, truth, _), (shaped, same, _) = (
    render(bare(rays=ray, ray_shapes=shapes)) for shapes in (None, np.zeros((1, 4)))
  )
  np.testing.assert_array_equal(truth, same)
  assert np.abs(plain - shaped).max() <= 1


def test_a_curved_pleura_curves_what_it_throws_back():
  flat, curved = (bare(curve_mm=curve, a_db=-10.0) for curve in (0.0, 3.0))
  bow = ((X - 20) / 20) ** 2
  for of, times in ((simulator.pleura_depth, 3.0), (simulator.a_line_depths, 6.0)):
    bent, level = (np.atleast_2d(of(one, X, 0.0))[0] for one in (curved, flat))
    np.testing.assert_allclose(bent - level, times * bow, atol=1e-9)


def test_fluid_is_black_between_two_lines_and_the_lung_lies_below():
  drawn = bare(effusion=(20.0, 60.0, 10.0))
  thickness = simulator.fluid(drawn, X, 0.0)
  assert thickness.min() > 8 and thickness.max() < 13
  image, truth, _ = render(drawn)
  middle = np.abs(X - 20) < 5
  lung = 16 + thickness[middle].mean()

  def grey(low, high):
    rows = np.flatnonzero((Z - low) * (Z - high) < 0)
    return image[0, rows][:, middle].mean()

  inside, below, muscle = grey(16 + 3, lung - 2), grey(lung + 2, lung + 6), grey(9, 14)
  assert inside < 0.5 * below and inside < 0.5 * muscle
  lines = Z[truth[0, :, SIZE // 2, simulator.SHARP]]
  assert {round(float(z)) for z in lines} & {16} and np.abs(lines - lung).min() < 1
  assert not ((lines > 18) & (lines < lung - 2)).any()
  # A-lines are echoes of the lung's surface.
  depth = simulator.a_line_depths(drawn, X, 0.0)[0]
  np.testing.assert_allclose(depth, 2 * simulator.lung_depth(drawn, X, 0.0))
  # More of it is seen when the lung has gone back.
  breathing = dataclasses.replace(drawn, slide_mm=4.0, breath_s=4.0, breath_phase=0.0)
  least, most = (simulator.fluid(breathing, X, time).max() for time in (1.0, 3.0))
  assert most / least == pytest.approx(1.25 / 0.75, rel=0.01)


def test_airless_lung_has_tissue_a_shredded_border_and_rays_below():
  rng = np.random.default_rng(0)
  border = simulator.waves(rng, 1.5, 7, 5)
  drawn = bare(consolidations=((20.0, 9.0, 10.0, -34.0, border),), a_db=-10.0)
  drawn = dataclasses.replace(drawn, a_waves=np.zeros((1, 3)), haze_db=-60.0, fuzz=0.3)
  depth = simulator.consolidated(drawn, X)
  assert (depth[np.abs(X - 20) > 9] == 0).all() and 8 < depth.max() < 15
  jagged = depth - 10 * np.sqrt(np.clip(1 - ((X - 20) / 9) ** 2, 0, None))
  assert jagged[np.abs(X - 20) < 7].std() > 0.7
  image, truth, decoys = render(drawn)
  inside = (Z[:, None] > 17.5) & (Z[:, None] < 16 + depth[None, :] - 1)
  beside = (Z > 18) & (Z < 26)
  assert image[0, inside].mean() > image[0, beside][:, X < 8].mean() + 40
  edge = decoys[0, ..., simulator.FUZZY] & (Z[:, None] > 19)
  assert image[0, edge].mean() > image[0, inside].mean() + 20
  # The pleura above is irregular; there are neither A-lines nor, within it, B-lines.
  near = np.abs(X - 20) < 6
  pleura = truth[0, :, near].any(1)
  assert pleura[:, simulator.FUZZY].all() and not pleura[:, simulator.A_LINE].any()
  assert truth[0, :, X < 8].any(1)[:, simulator.A_LINE].all()
  assert not (truth[0, ..., simulator.VERTICAL] & inside).any()
  assert decoys[0, -1, near, simulator.VERTICAL].all()


def test_beyond_the_lung_point_nothing_slides():
  rays = np.array([[10.0, 2.0, -20.0, 0.0], [30.0, 2.0, -20.0, 0.0]])
  moving = {"slide_mm": 4.0, "breath_s": 2.0, "breath_phase": np.pi / 2}
  drawn = bare(rays=rays, lung_point=(1, 20.0), **moving)
  image, truth, _ = render(drawn, n_frames=9)  # frame 8 is half a breath on: 8 mm less
  b_lines = truth[:, -1, :, simulator.VERTICAL]
  assert X[b_lines[0]].mean() == pytest.approx(14, abs=0.4)
  assert X[b_lines[8]].mean() == pytest.approx(6, abs=0.4)
  # The point itself moves with the lung.
  edges = [np.flatnonzero(simulator.lung_coordinates(drawn, X, t)[1])[0] * DX for t in (0.0, 1.0)]
  assert edges == pytest.approx([24, 16], abs=0.4)
  detail = image - ndimage.gaussian_filter(image, (0, 6, 6))

  def alike(columns):
    rows = slice(round(18 / DZ), round(34 / DZ))
    first, last = (detail[n, rows, columns].ravel() for n in (0, 8))
    return np.corrcoef(first, last)[0, 1]

  assert alike(X > 27) > 0.9 and abs(alike((X > 16) & (X < 22))) < 0.4


def test_a_lung_pulse_moves_the_pleura_with_the_heart():
  drawn = bare(pulse=(0.8, 1.25, 0.0))
  times = np.arange(0, 4, 0.01)
  moved = np.array([simulator.slide(drawn, t) for t in times])
  assert moved.min() == pytest.approx(0, abs=0.03) and moved.max() == pytest.approx(0.8, abs=0.03)
  np.testing.assert_allclose(moved[:-80], moved[80:], atol=1e-5)  # .8 s a beat
  without = dataclasses.replace(drawn, pulse=None)
  for t in times[:80:7]:
    deeper = np.subtract(*(simulator.pleura_depth(one, X, t) for one in (drawn, without)))
    np.testing.assert_allclose(deeper, 0.3 * simulator.slide(drawn, t), atol=1e-5)


@pytest.fixture(scope="module")
def scenes():
  """Scenes of some videos as they are without options, and what each option makes of them."""
  found = []
  for video in videos(40, phantom_config("frames", 32, 32)):
    rng = cohort.generator(0, "scene", video.name)
    wall = simulator.sample_wall(cohort.generator(0, "wall", video.patient))
    found.append((video, simulator.sample_scene(rng, wall=wall, congestion=video.congestion)))
  return found


def drawn_by(scenes, *options):
  return [variety.varied(scene, video, seed=0, options=options) for video, scene in scenes]


def test_findings_are_as_frequent_as_they_should_be(scenes):
  def share(field, option, chosen=lambda video: True):
    mine = [one for one in scenes if chosen(one[0])]
    return np.mean([bool(getattr(one, field)) for one in drawn_by(mine, option)])

  assert 0.2 < share("effusion", "effusion", lambda v: v.view in ("L3", "R3")) < 0.5
  assert share("effusion", "effusion", lambda v: v.view not in ("L3", "R3")) < 0.12
  wet, dry = (
    share("consolidations", "consolidation", choose)
    for choose in (lambda v: v.congestion > 0.6, lambda v: v.congestion < 0.3)
  )
  assert dry < 0.22 < wet < 0.5
  assert 0.05 < share("lung_point", "lung_point") < 0.15
  assert 0.1 < share("pulse", "lung_pulse") < 0.2
  for one in drawn_by(scenes, *variety.OPTIONS):
    assert one.lung_point is None or not (one.effusion or one.consolidations or one.pulse)


def test_an_option_changes_nothing_of_the_others(scenes):
  for alone, together in zip(
    drawn_by(scenes, "effusion"), drawn_by(scenes, "effusion", "b_lines", "presets"), strict=True
  ):
    assert alone.effusion == together.effusion
  for (_, scene), one in zip(scenes, drawn_by(scenes), strict=True):
    assert one is scene


@pytest.mark.parametrize("option", variety.OPTIONS)
def test_every_option_changes_pictures_and_none_their_kind(option, scenes):
  plain = phantom_config("frames", 32, 32)
  config = phantom_config("frames", 32, 32, variety=(option,))
  # An option that draws nothing for a video leaves its very scene.
  video = next(
    video
    for (video, scene), one in zip(scenes, drawn_by(scenes, option), strict=True)
    if option == "presets" or (one is not scene and (option != "b_lines" or len(scene.rays) > 2))
  )
  old, new = (lus_phantom.simulate(video, each) for each in (plain, config))
  assert (new["frames"] != old["frames"]).any()
  for key, array in old.items():
    assert new[key].shape == array.shape and new[key].dtype == array.dtype
