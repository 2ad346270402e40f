import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tfds_builders.lus_phantom import simulator

PROBE = simulator.Probe()
X = np.linspace(0, 40, 81)


def scene(seed=0, *, congestion=0.3, **changes):
  rng = np.random.default_rng(seed)
  drawn = simulator.sample_scene(rng, wall=simulator.sample_wall(rng), congestion=congestion)
  return dataclasses.replace(drawn, **changes)


def bare(seed=0, **changes):
  """A scene with pleura and haze only."""
  drawn = scene(seed)
  empty = {name: getattr(drawn, name)[:0] for name in ("rays", "comets", "streaks")}
  quiet = {"a_db": -np.inf, "sub_a_db": -np.inf, "rib": (0, 0.0, 0.0), "fuzz": 0.0}
  return dataclasses.replace(drawn, **(empty | quiet | changes))


def render(drawn, size=128, n_frames=1, seed=1):
  return simulator.render(
    drawn, height=size, width=size, n_frames=n_frames, rng=np.random.default_rng(seed)
  )


def test_pleura_lies_between_one_and_three_centimetres_at_any_time():
  for seed in range(200):
    drawn = scene(seed)
    for time_s in (0.0, 1.0, 2.0):
      depth = simulator.pleura_depth(drawn, X, time_s)
      assert depth.min() > 10 and depth.max() < 30


def test_a_lines_lie_at_multiples_of_the_pleural_depth_and_sub_a_lines_between():
  for seed in range(20):
    drawn = scene(seed)
    pleura = simulator.pleura_depth(drawn, X, 0.5)
    a_lines = simulator.a_line_depths(drawn, X, 0.5)
    assert len(a_lines) >= 1
    for order, depth in enumerate(a_lines, start=2):
      np.testing.assert_allclose(depth, order * pleura)
    sub_a = simulator.sub_a_line_depths(drawn, X, 0.5)
    for order in range(1, len(sub_a) + 1):
      assert (order * pleura < sub_a[order - 1]).all()
      assert (sub_a[order - 1] < (order + 1) * pleura).all()


def test_the_picture_is_bright_at_twice_the_pleural_depth():
  drawn = bare(a_db=-12.0, a_waves=np.zeros((1, 3)))
  grey = render(drawn, 256)["image"][0].astype(float)
  x = (np.arange(256) + 0.5) * 40 / 256
  rows = simulator.a_line_depths(drawn, x, 0.0)[0] / 64 * 256 - 0.5
  shifts = np.arange(-16, 17)
  at = np.rint(rows[None] + shifts[:, None]).astype(int)
  profile = grey[at, np.arange(256)[None]].mean(1)
  assert abs(shifts[profile.argmax()]) <= 1
  assert profile.max() > np.median(profile) + 40


def test_b_lines_move_with_the_lung_in_the_picture_and_in_the_truth():
  ray = np.array([[20.0, 2.0, -22.0, 0.0]])
  drawn = bare(rays=ray, slide_mm=4.0, breath_s=2.0, breath_phase=np.pi / 2)
  rendered = render(drawn, 128, n_frames=9)  # at 8 frames a second, frame 8 is half a breath on
  x = (np.arange(128) + 0.5) * 40 / 128
  for n, centre in ((0, 24.0), (4, 20.0), (8, 16.0)):
    if n == 4:
      assert abs(simulator.slide(drawn, 0.5)) < 1e-6
    columns = rendered["image"][n, 80:].astype(float).mean(0)
    peak = ndimage.gaussian_filter1d(columns, 2).argmax()
    assert abs(x[peak] - centre) < 0.8
    assert abs(x[rendered["truth"][n, ..., simulator.VERTICAL].any(0)].mean() - centre) < 0.4


def test_speckle_slides_below_the_pleura_and_stays_above_it():
  drawn = bare(slide_mm=4.0, breath_s=2.0, breath_phase=np.pi / 2, tilt=0.0)
  grey = render(drawn, 128, n_frames=9)["image"].astype(float)
  row = int(drawn.wall.pleura_mm / 0.5)
  detail = grey - ndimage.gaussian_filter(grey, (0, 6, 6))

  def match(rows, shift):
    first, last = detail[0, rows, 30:100], detail[8, rows, 30 + shift : 100 + shift]
    return np.corrcoef(first.ravel(), last.ravel())[0, 1]

  moved = round(-8 / (40 / 128))
  wall, lung = slice(4, row - 4), slice(row + 4, row + 30)
  assert match(wall, 0) > 0.95
  assert abs(match(lung, 0)) < 0.3
  assert max(match(lung, moved + d) for d in (-1, 0, 1)) > 0.6


def test_b_lines_erase_a_lines_and_ribs_hide_the_lung():
  ray = np.array([[20.0, 6.0, -22.0, 0.0]])
  drawn = bare(rays=ray, slide_mm=0.01, a_db=-10.0, rib=(1, 33.0, 9.0))
  rendered = render(drawn)
  truth, grey = rendered["truth"][0], rendered["image"][0].astype(float)
  row = int(simulator.a_line_depths(drawn, np.array([20.0]), 0.0)[0, 0] * 2)
  stands_out = grey[row - 1 : row + 2].max(0) - grey[row - 8 : row - 4].mean(0)
  assert stands_out[60:69].mean() < 0.4 * stands_out[15:30].mean()
  columns = truth.any(0)
  middle, rib, free = 64, 120, 20
  assert columns[middle, simulator.VERTICAL] and not columns[middle, simulator.A_LINE]
  assert columns[free, simulator.A_LINE]
  assert not columns[rib, [simulator.A_LINE, simulator.SHARP, simulator.VERTICAL]].any()


def test_congestion_brings_b_lines_and_fuzz_and_takes_a_lines():
  def areas(congestion):
    share = [
      render(scene(seed, congestion=congestion), 48)["truth"].mean((0, 1, 2)) for seed in range(25)
    ]
    return np.mean(share, axis=0)

  low, high = areas(0.05), areas(0.9)
  assert high[simulator.VERTICAL] > 3 * low[simulator.VERTICAL]
  assert high[simulator.FUZZY] > 3 * low[simulator.FUZZY]
  assert high[simulator.SHARP] < 0.5 * low[simulator.SHARP]
  assert high[simulator.A_LINE] < 0.5 * low[simulator.A_LINE]


def test_the_same_anatomy_at_every_size():
  drawn = scene(3, congestion=0.5)
  small, large = render(drawn, 64), render(drawn, 192)
  blocks = large["truth"][0].reshape(64, 3, 64, 3, -1).mean((1, 3)) > 0.5
  both = (blocks & small["truth"][0]).sum()
  assert both / (blocks | small["truth"][0]).sum() > 0.75
  shrunk = large["image"][0].reshape(64, 3, 64, 3).mean((1, 3))
  assert np.corrcoef(shrunk.ravel(), small["image"][0].ravel())[0, 1] > 0.8


def test_thin_lines_do_not_vanish_at_small_sizes():
  truth = render(bare(a_db=-5.0, a_waves=np.zeros((1, 3))), 32)["truth"][0]
  assert truth[..., simulator.SHARP].any(0).all()
  assert truth[..., simulator.A_LINE].any(0).all()


def test_speckle_statistics_of_a_linear_probe():
  # Raw speckle has an SNR of 1.91; a scanner smooths it a little. Widths in mm.
  figures = []
  for seed in range(6):
    drawn = bare(seed)
    grey = render(drawn, 256)["image"][0].astype(float)
    top = int((drawn.wall.pleura_mm + 5) * 4)
    envelope = 10 ** (grey[top : top + 48, 50:190] * PROBE.dynamic_range_db / 255 / 20)
    envelope /= ndimage.gaussian_filter(envelope, (12, 25))
    detail = envelope - envelope.mean()

    def width(axis, pitch, detail=detail):
      power = np.abs(np.fft.fft(detail, axis=axis)) ** 2
      line = np.fft.ifft(power, axis=axis).real.mean(1 - axis)
      return 2 * pitch * np.argmax(line < line[0] / 2)

    figures.append((envelope.mean() / envelope.std(), width(0, 0.25), width(1, 40 / 256)))
  snr, axial, lateral = np.mean(figures, axis=0)
  assert 1.9 < snr < 3.2
  assert 0.4 < axial < 1.1
  assert 1.2 < lateral < 2.6


def test_evidence_follows_the_contrast_of_the_picture():
  contrast, seen = [], []
  for seed in range(12):
    rendered = render(scene(seed, congestion=seed / 12), 96)
    image, truth = rendered["image"][0], rendered["truth"][0]
    evidence = simulator.evidence(image, truth)
    assert (evidence[~truth] == 0).all() and evidence.dtype == np.uint8
    free = ~truth.any(-1)
    for k in range(truth.shape[-1]):
      around = ndimage.binary_dilation(truth[..., k], iterations=5) & free
      if truth[..., k].sum() > 20 and around.sum() > 20:
        contrast.append(image[truth[..., k]].mean() - image[around].mean())
        seen.append(evidence[..., k][truth[..., k]].mean() / 255)
  assert np.corrcoef(contrast, seen)[0, 1] > 0.85
  assert np.std(seen) > 0.1


@pytest.mark.parametrize("brightness", [0, 40, 100])
def test_evidence_of_a_known_picture(brightness):
  masks = np.zeros((96, 96, 1), bool)
  masks[48:51] = True
  image = np.full((96, 96), 60, np.uint8)
  image[48:51] += brightness
  evidence = simulator.evidence(image, masks)
  assert np.unique(evidence[masks]) == round(255 * brightness / 100)
