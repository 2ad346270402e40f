"""Linear-probe B-mode pictures of a chest wall and a lung, from scatterers to grey levels.

The order is the scanner's: anatomy, scatterer field, depth-dependent point-spread function,
envelope, attenuation with time gain, speckle filter, log compression. Everything is laid out in
millimetres, so the same scene rendered at another size is the same anatomy. The field is complex
baseband with slowly varying phases: interfaces are seen whatever their tilt.

Axes: `z` is depth below the skin, `x` lateral from the picture's left edge, both in mm; lung
structures are fixed at a coordinate `u` and seen at x = u + slide(time).
"""

import dataclasses
import functools
import math

import numpy as np
from scipy import fft, ndimage

CLASSES = (
  "sharp_pleura",
  "fuzzy_pleura",
  "fascia_band",
  "a_line",
  "sub_a_line",
  "vertical_line",
)
THIN = ("sharp_pleura", "fuzzy_pleura", "a_line", "sub_a_line")
SHARP, FUZZY, FASCIA, A_LINE, SUB_A_LINE, VERTICAL = range(len(CLASSES))

# Wide enough for the wall's curves, the point-spread function and the breathing to reach past the
# picture's edges.
_MARGIN_MM = 3.0
_MAX_SLIDE_MM = 6.0
_MIN_LINE_PIXELS = 1.5
_LAST_RAY_DB = -52.0  # B-lines that fade end there: they are hardly seen in what is around
_HAZE_FLOOR = np.float32(10 ** (-55 / 20))


@dataclasses.dataclass(frozen=True)
class Probe:
  """A linear probe and its display.

  Attributes:
    depth_cm: depth of the picture.
    width_cm: width of the picture.
    axial_mm: full width at half maximum of the pulse.
    lateral_mm: full width at half maximum of the beam in its focus.
    focus_mm: depth of the focus.
    rayleigh_mm: distance from the focus at which the beam is sqrt(2) wider.
    frequency_mhz: centre frequency, for the attenuation of 0.5 dB / cm / MHz each way.
    time_gain_db_per_cm: slope of the gain that makes up for it.
    time_gain_stop_cm: depth at which that gain is used up.
    dynamic_range_db: from black to white.
    gain_db: overall gain, on top of that over depth.
    frames_per_second: of videos.
  """

  depth_cm: float = 6.4
  width_cm: float = 4.0
  axial_mm: float = 0.40
  lateral_mm: float = 1.15
  focus_mm: float = 22.0
  rayleigh_mm: float = 24.0
  frequency_mhz: float = 7.5
  time_gain_db_per_cm: float = 7.0
  time_gain_stop_cm: float = 4.6
  dynamic_range_db: float = 60.0
  frames_per_second: float = 8.0
  gain_db: float = 0.0


@dataclasses.dataclass(frozen=True)
class Wall:
  """A chest wall; all lengths in mm, levels in dB of white.

  Attributes:
    pleura_mm: depth of the pleural line in the middle of the picture.
    fascia: [M, 4] depth, thickness, level and tilt of each fascia band, shallow to deep.
    fat_db: level of the subcutaneous fat, above the first fascia.
    muscle_db: level of the muscle below it.
  """

  pleura_mm: float
  fascia: np.ndarray
  fat_db: float
  muscle_db: float


@dataclasses.dataclass(frozen=True)
class Scene:
  """One view of a chest; lengths in mm, levels in dB of white, waves as in `_wave`.

  Attributes:
    wall: the chest wall.
    tilt: of the pleural line, mm per mm.
    waves: [1 + M, J, 3] of the pleural line and of the fascia bands.
    rib: side (-1 left, 0 none, 1 right), lateral edge, depth.
    striae: [S, 4] depth, lateral centre, length, level of the bright lines within the muscle.
    slide_mm: half the way the lung slides in a breath.
    breath_s: length of a breath.
    breath_phase: in radians.
    fuzz: mean of the pleural fuzziness; fuzzy where fuzz + its waves > .5.
    fuzz_waves: [J, 3] along the lung.
    pleura_db: level of the pleural line.
    haze_db: level just below the pleura of the clutter between the lines.
    haze_slope: its decay, dB per mm.
    a_db: level of the first A-line.
    a_waves: [J, 3], in dB along the lung.
    sub_a_db: level of the first sub-A line; -inf where there is none.
    sub_a_waves: [J, 3], in dB along the lung.
    contact_waves: [J, 3], in dB along the skin: how well the probe touches it.
    rays: [R, 4] B-lines: u, full width, level, phase.
    comets: [C, 4] comet tails: u, full width, level, phase.
    streaks: [S, 5] short false lines below the pleura: depth below it, u, length, level, class.
    ray_shapes: [R, 4] of the B-lines, per cm below the pleura: share by which they widen, mm they
      lean, mm per cm they bend, dB they fade; None: straight, and as wide and bright all along.
    curve_mm: how much deeper the pleura lies at the picture's edges than in its middle.
    effusion: lateral centre, half width and thickness of fluid above the lung; None: there is none.
    consolidations: [(u, half width, depth, level, waves [J, 3] of its shredded lower border)].
    lung_point: side (-1 left, 1 right) without lung and the lateral place where it begins, at rest;
      None: lung everywhere.
    pulse: mm the heart moves the lung by, beats per second, phase; None: not seen.
  """

  wall: Wall
  tilt: float
  waves: np.ndarray
  rib: tuple[int, float, float]
  striae: np.ndarray
  slide_mm: float
  breath_s: float
  breath_phase: float
  fuzz: float
  fuzz_waves: np.ndarray
  pleura_db: float
  haze_db: float
  haze_slope: float
  a_db: float
  a_waves: np.ndarray
  sub_a_db: float
  sub_a_waves: np.ndarray
  contact_waves: np.ndarray
  rays: np.ndarray
  comets: np.ndarray
  streaks: np.ndarray
  ray_shapes: np.ndarray | None = None
  curve_mm: float = 0.0
  effusion: tuple[float, float, float] | None = None
  consolidations: tuple = ()
  lung_point: tuple[int, float] | None = None
  pulse: tuple[float, float, float] | None = None


def waves(rng, amplitude, longest_mm, count=4):
  """[count, 3] amplitude, cycles per mm and phase of a smooth random curve of the given sd."""
  cycles = rng.uniform(0.4, 1.6, count) * np.arange(1, count + 1) / longest_mm
  sizes = rng.normal(size=count) / np.arange(1, count + 1)
  sizes *= amplitude * math.sqrt(2 / (sizes @ sizes))
  return np.stack([sizes, cycles, rng.uniform(0, 2 * np.pi, count)], axis=1)


def _wave(x, waves):
  amplitude, cycles, phase = (column[:, None] for column in waves.T)
  return (amplitude * np.cos(2 * np.pi * cycles * x[None, :] + phase)).sum(0)


def sample_wall(rng):
  """Draws a chest wall with the pleura between 1.3 and 2.6 cm (tilt and breath stay in 1 to 3)."""
  pleura = rng.uniform(13, 26)
  fractions = np.array([rng.uniform(0.27, 0.36), rng.uniform(0.42, 0.52), rng.uniform(0.66, 0.76)])
  bands = 3 if rng.random() < 0.7 else 2
  fascia = np.stack(
    [
      fractions * pleura,
      rng.uniform(0.3, 1.0, 3),
      rng.uniform(-28, -8, 3),
      rng.normal(0, 0.03, 3),
    ],
    axis=1,
  )[:bands]
  return Wall(pleura, fascia, fat_db=rng.uniform(-64, -50), muscle_db=rng.uniform(-53, -43))


def sample_scene(rng, *, wall, congestion, probe=None, imitators=1):
  """Draws one view.

  Args:
    rng: NumPy generator.
    wall: the patient's `Wall`; a view's pleura lies within 1.5 mm of its depth.
    congestion: of this view, in [0, 1]: sets number, width and level of B-lines, how much of the
      pleura is fuzzy, and how much of the A-lines is lost.
    probe: a `Probe`.
    imitators: times as many striae, comet tails and streaks as usual: what may be taken for a
      fascia band, a B-line or an A-line.

  Returns:
    A `Scene`.
  """
  probe = probe or Probe()
  width = 10 * probe.width_cm
  reach = (-_MAX_SLIDE_MM, width + _MAX_SLIDE_MM)
  pleura = wall.pleura_mm + rng.uniform(-1.5, 1.5)
  stretch = pleura / wall.pleura_mm
  wall = dataclasses.replace(
    wall, pleura_mm=pleura, fascia=wall.fascia * np.array([stretch, 1, 1, 1])
  )
  side = int(rng.choice([-1, 0, 1], p=[0.2, 0.6, 0.2]))
  inset = rng.uniform(3, 9)
  rib = (side, inset if side < 0 else width - inset, pleura * rng.uniform(0.74, 0.86))

  count = imitators * rng.integers(2, 6)
  striae = np.stack(
    [
      pleura * rng.uniform(0.5, 0.93, count),
      rng.uniform(0, width, count),
      rng.uniform(6, 20, count),
      rng.uniform(-30, -14, count),
    ],
    axis=1,
  )

  count = min(8, rng.poisson(0.1 + 4.5 * congestion * (width + 2 * _MAX_SLIDE_MM) / width))
  # Rays start in cells of their own: they crowd without merging into one block.
  cells = (rng.permutation(10)[:count] + rng.uniform(0.2, 0.8, count)) / 10
  rays = np.stack(
    [
      reach[0] + cells * (reach[1] - reach[0]),
      rng.uniform(1.4, 2.6, count) + 2.2 * congestion * rng.random(count),
      rng.normal(-39 + 9 * congestion, 5, count),
      rng.uniform(0, 2 * np.pi, count),
    ],
    axis=1,
  )
  count = imitators * rng.integers(1, 6)
  comets = np.stack(
    [
      rng.uniform(*reach, count),
      rng.uniform(1.0, 2.0, count),
      rng.normal(-26, 5, count),
      rng.uniform(0, 2 * np.pi, count),
    ],
    axis=1,
  )
  count = imitators * rng.integers(3, 8)
  streaks = np.stack(
    [
      rng.uniform(4, 30, count),
      rng.uniform(*reach, count),
      rng.uniform(5, 14, count),
      rng.normal(-38, 4, count),
      rng.choice([A_LINE, SUB_A_LINE], count),
    ],
    axis=1,
  )
  has_sub_a = rng.random() < 0.85 - 0.4 * congestion
  return Scene(
    wall=wall,
    tilt=float(np.clip(rng.normal(0, 0.035), -0.07, 0.07)),
    waves=np.stack([waves(rng, 0.3, 120)] + [waves(rng, 0.35, 70) for _ in wall.fascia]),
    rib=rib,
    striae=striae,
    slide_mm=rng.uniform(1.5, 0.75 * _MAX_SLIDE_MM),
    breath_s=rng.uniform(2.5, 4.5),
    breath_phase=rng.uniform(0, 2 * np.pi),
    fuzz=0.5 + 0.55 * (congestion - 0.42),
    fuzz_waves=waves(rng, 0.16, 70, 3),
    pleura_db=rng.normal(-9, 4),
    haze_db=rng.normal(-39.5, 3.5),
    haze_slope=rng.uniform(0.6, 1.1),
    a_db=rng.normal(-22, 6) - 18 * congestion,
    a_waves=waves(rng, 6, 40),
    sub_a_db=rng.normal(-29, 5) - 8 * congestion if has_sub_a else -np.inf,
    sub_a_waves=waves(rng, 6, 40),
    contact_waves=waves(rng, 3, 50, 3),
    rays=rays,
    comets=comets,
    streaks=streaks,
  )


@dataclasses.dataclass(frozen=True)
class _Grid:
  """The field's lattice: an integer number of rows and columns for each pixel of the picture."""

  z: np.ndarray
  x: np.ndarray
  rows: int  # field rows in a pixel
  columns: int
  depth_rows: int  # field rows in the picture; the rest keeps the FFT from wrapping
  margin: int  # field columns left of the picture
  point_spread: np.ndarray  # [len(z), len(x)]: lateral transfer function, diffuse power 1
  pulse: np.ndarray  # [len(z)]: axial transfer function, diffuse power 1
  coherent: np.ndarray  # [len(z)]: lateral gain of a line across the beam
  line: float  # axial gain of a line one row thin
  smooth: tuple[float, float]


@functools.lru_cache(maxsize=8)
def _grid(height, width, probe):
  depth_mm, width_mm = 10 * probe.depth_cm, 10 * probe.width_cm
  # Finer than the pulse and the beam, or speckle would be sampled away at small sizes.
  rows = math.ceil(depth_mm / height / 0.26)
  columns = math.ceil(width_mm / width / 0.3)
  dz, dx = depth_mm / height / rows, width_mm / width / columns
  margin = math.ceil(_MARGIN_MM / dx)
  n_z = fft.next_fast_len(height * rows + math.ceil(2 / dz))
  n_x = fft.next_fast_len(width * columns + 2 * margin)
  z = (np.arange(n_z) + 0.5) * dz
  x = (np.arange(n_x) - margin + 0.5) * dx
  to_sigma = 1 / math.sqrt(8 * math.log(2))
  lateral = probe.lateral_mm * np.sqrt(1 + ((z - probe.focus_mm) / probe.rayleigh_mm) ** 2)
  sigma_x, sigma_z = lateral * to_sigma / dx, probe.axial_mm * to_sigma / dz
  k_x, k_z = 2 * np.pi * fft.fftfreq(n_x), 2 * np.pi * fft.fftfreq(n_z)
  coherent = np.sqrt(2 * math.sqrt(np.pi) * sigma_x)
  transfer = coherent[:, None] * np.exp(-0.5 * (sigma_x[:, None] * k_x[None, :]) ** 2)
  pulse = math.sqrt(2 * math.sqrt(np.pi) * sigma_z) * np.exp(-0.5 * (sigma_z * k_z) ** 2)
  return _Grid(
    z=z.astype(np.float32),
    x=x.astype(np.float32),
    rows=rows,
    columns=columns,
    depth_rows=height * rows,
    margin=margin,
    point_spread=transfer.astype(np.float32),
    pulse=pulse.astype(np.float32),
    coherent=coherent.astype(np.float32),
    line=1 / math.sqrt(math.sqrt(np.pi) * sigma_z),
    smooth=(0.13 / dz, 0.33 / dx),
  )


def _amplitude(decibel):
  return np.exp(np.asarray(decibel, np.float32) * np.float32(math.log(10) / 20))


def _complex_noise(rng, shape):
  """Circular complex white noise of mean power 1."""
  noise = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(math.sqrt(0.5))
  return noise.view(np.complex64)[..., 0]


def _deposit(field, grid, depth, amplitude):
  """Adds a line one row thin whose echo has the given amplitude; `depth`, `amplitude`: [X]."""
  row = depth / (grid.z[1] - grid.z[0]) - 0.5
  low = np.floor(row).astype(int)
  part = (row - low).astype(np.float32)
  columns = np.arange(len(grid.x))
  inside = (low >= 0) & (low < len(grid.z) - 1)
  low, part, columns, amplitude = low[inside], part[inside], columns[inside], amplitude[inside]
  amplitude = amplitude / (grid.line * grid.coherent[low])
  field[low, columns] += (1 - part) * amplitude
  field[low + 1, columns] += part * amplitude


def _profile(x, centre, full_width):
  """[n, X] Gaussian profiles, 1 at the centres; the level is .5 at half the full width."""
  distance = (x[None, :] - centre[:, None]) / full_width[:, None]
  return np.exp(-4 * math.log(2) * distance**2).astype(np.float32)


def _breath(scene, time_s):
  return scene.slide_mm * math.sin(2 * np.pi * time_s / scene.breath_s + scene.breath_phase)


def _pulse(scene, time_s):
  """How far the heart has moved the lung, in mm: quickly there, slowly back."""
  if scene.pulse is None:
    return 0.0
  amplitude, per_second, phase = scene.pulse
  part = (time_s * per_second + phase / (2 * np.pi)) % 1
  return amplitude * (part / 0.25 if part < 0.25 else (1 - part) / 0.75)


def slide(scene, time_s):
  """Lateral displacement of the lung at a time, in mm."""
  return _breath(scene, time_s) + _pulse(scene, time_s)


def pleura_depth(scene, x, time_s, probe=None):
  """Depth of the pleural line in mm at lateral positions `x` [X] in mm; it moves .3 mm a breath."""
  middle = 5 * (probe or Probe()).width_cm
  breath = 0.3 * _breath(scene, time_s) / scene.slide_mm
  depth = scene.wall.pleura_mm + scene.tilt * (x - middle) + _wave(x, scene.waves[0]) + breath
  if scene.curve_mm:
    depth += scene.curve_mm * ((x - middle) / middle) ** 2
  if scene.pulse is not None:
    depth += 0.3 * _pulse(scene, time_s)
  return depth


def fluid(scene, x, time_s):
  """[X] thickness in mm of the fluid between pleural line and lung; it changes with the breath."""
  if scene.effusion is None:
    return np.zeros_like(x)
  centre, half, thickness = scene.effusion
  thickness *= 1 - 0.25 * _breath(scene, time_s) / scene.slide_mm
  return thickness * np.sqrt(np.clip(1 - ((x - centre) / half) ** 2, 0, None))


def lung_depth(scene, x, time_s, probe=None):
  """[X] depth in mm of the lung's surface: the pleural line, or what lies under the fluid."""
  depth = pleura_depth(scene, x, time_s, probe)
  return depth if scene.effusion is None else depth + fluid(scene, x, time_s)


def lung_coordinates(scene, x, time_s):
  """The lung's own coordinates `u` [X] seen at `x` [X], and where there is no lung, [X] bool."""
  moved = slide(scene, time_s)
  if scene.lung_point is None:
    return x - moved, np.zeros(x.shape, bool)
  side, place = scene.lung_point
  empty = side * (x - place - moved) > 0
  return np.where(empty, x, x - moved), empty


def consolidated(scene, u):
  """[X] how deep below its surface the lung is airless, in mm: shredded at its lower border."""
  depth = np.zeros_like(u)
  for centre, half, deepest, _, border in scene.consolidations:
    arch = deepest * np.sqrt(np.clip(1 - ((u - centre) / half) ** 2, 0, None))
    depth = np.maximum(depth, arch + np.minimum(1, arch / 4) * _wave(u, border))
  return depth


def _shaped(scene, u, below, least_width=0.0):
  """Profiles and levels of B-lines that have shapes.

  Args:
    scene: a `Scene` with `ray_shapes`.
    u: [X].
    below: depth below the lung's surface in mm, [Z, X] or [X].
    least_width: in mm.

  Returns:
    Profiles, 1 at the centres, and by how many dB they have faded, both [R, *below.shape].
  """
  cm = np.clip(below, 0, None)[None] / 10
  of_ray = (slice(None),) + (None,) * below.ndim
  centre, width = (scene.rays[:, i].astype(np.float32)[of_ray] for i in (0, 1))
  widen, lean, bend, fade = (column.astype(np.float32)[of_ray] for column in scene.ray_shapes.T)
  width = np.maximum(width * (1 + widen * cm), least_width)
  distance = (u - centre - lean * cm - bend * cm**2) / width
  return np.exp(-4 * math.log(2) * distance**2), fade * cm


def a_line_depths(scene, x, time_s, probe=None):
  """[n, X] depths in mm of the A-lines: 2, 3, ... times the lung's, while in the picture."""
  probe = probe or Probe()
  orders = np.arange(2, math.floor(10 * probe.depth_cm / scene.wall.pleura_mm) + 1)
  return orders[:, None] * lung_depth(scene, x, time_s, probe)[None, :]


def sub_a_line_depths(scene, x, time_s, probe=None):
  """[n, X] depths in mm of the sub-A lines: below each of pleura and A-lines by fascia to pleura.

  They are the echo that goes once more between the pleura and the deepest fascia band.
  """
  probe = probe or Probe()
  pleura = lung_depth(scene, x, time_s, probe)
  orders = np.arange(1, math.floor(10 * probe.depth_cm / scene.wall.pleura_mm) + 1)
  return (orders[:, None] + 1) * pleura[None, :] - _fascia_depth(scene, -1, x, probe)[None, :]


def _fascia_depth(scene, index, x, probe):
  depth, _, _, tilt = scene.wall.fascia[index]
  index = index % len(scene.wall.fascia)
  return depth + tilt * (x - 5 * probe.width_cm) + _wave(x, scene.waves[1 + index])


def _shadow(scene, x):
  """[X] how much of the beam a rib takes, in [0, 1]."""
  side, edge, _ = scene.rib
  if side == 0:
    return np.zeros(x.shape, np.float32)
  return (1 / (1 + np.exp(-side * (x - edge) / 1.5))).astype(np.float32)


def _rib_depth(scene, x):
  side, edge, depth = scene.rib
  into = np.clip(side * (x - edge), -2, None)
  return depth + 0.03 * (into - 4) ** 2


def _lines(scene, x, time_s, probe):
  """Everything about the lung that is a function of `x` at one time.

  Returns:
    Depth [X] of the lung's surface, its fuzziness [X], and lists of (depth [X], level in dB [X]) of
    A-lines, sub-A lines and streaks (these with their class).
  """
  u, empty = lung_coordinates(scene, x, time_s)
  fuzz = scene.fuzz + _wave(u, scene.fuzz_waves)
  airless = 0.0  # and so no mirror, up to all of it
  if scene.lung_point is not None:
    # Air under the pleural line: a perfect mirror.
    fuzz = np.where(empty, 0.2, fuzz)
  if scene.consolidations:
    airless = np.minimum(1, consolidated(scene, u) / 3)
    fuzz = fuzz + 0.4 * airless
  if scene.effusion is not None:
    # What the lung throws back under fluid seldom comes straight to the probe.
    airless = airless + 0.4 * np.minimum(1, fluid(scene, x, time_s) / 2)
  # A-lines need a smooth mirror: they fade where the pleura is fuzzy.
  mirror = -14 * np.clip(fuzz - 0.35, 0, 1) - 40 * airless
  a_lines = [
    (depth, scene.a_db - 5 * order + _wave(u + 7 * order, scene.a_waves) + mirror)
    for order, depth in enumerate(a_line_depths(scene, x, time_s, probe))
  ]
  sub_a_lines = [
    (depth, scene.sub_a_db - 6 * order + _wave(u + 7 * order, scene.sub_a_waves) + mirror)
    for order, depth in enumerate(sub_a_line_depths(scene, x, time_s, probe))
  ]
  pleura = lung_depth(scene, x, time_s, probe)
  streaks = [
    (pleura + below, level - 24 * ((u - centre) / length) ** 2, int(kind))
    for below, centre, length, level, kind in scene.streaks
  ]
  return pleura, fuzz, a_lines, sub_a_lines, streaks


def _wall_field(scene, grid, probe, rng):
  """[Z, X] scatterers and interfaces above the pleura, which stay still."""
  z, x = grid.z[:, None], grid.x[None, :]
  shape = (len(grid.z), len(grid.x))
  # Muscle fibres run along the skin: their echo varies over 4 mm along and 0.4 mm across it.
  fibres = ndimage.gaussian_filter(
    rng.standard_normal(shape, dtype=np.float32),
    (0.12 / (grid.z[1] - grid.z[0]), 1.9 / (grid.x[1] - grid.x[0])),
    mode="wrap",
  )
  fibres *= 10.0 / fibres.std()
  first = _fascia_depth(scene, 0, grid.x, probe)[None, :]
  level = np.where(z < first, scene.wall.fat_db + 0.8 * fibres, scene.wall.muscle_db + fibres)
  level = level.astype(np.float32)
  noise = _complex_noise(rng, shape)
  for index, (_, thickness, decibel, _) in enumerate(scene.wall.fascia):
    depth = _fascia_depth(scene, index, grid.x, probe)[None, :]
    inside = np.abs(z - depth) < thickness / 2
    level = np.where(inside, np.maximum(level, decibel - 28), level)
  field = noise * _amplitude(level)
  # The skin line: the probe's contact with a thin layer below it.
  field += noise * _amplitude(-2 - 22 * z / (1 + 0.1 * np.sin(0.4 * x)))
  for row in (0.3, 0.7):
    _deposit(field, grid, np.full(len(grid.x), row), np.full(len(grid.x), _amplitude(-4)))
  for index, (_, thickness, decibel, _) in enumerate(scene.wall.fascia):
    depth = _fascia_depth(scene, index, grid.x, probe)
    bright = decibel + _wave(grid.x, scene.waves[1 + index][:, [0, 1, 2]] * [16, 1.7, 1])
    for sheet in (-0.5, 0.5):
      phase = np.exp(1j * (0.4 * sheet * grid.x + index))
      _deposit(field, grid, depth + sheet * thickness, _amplitude(bright - 2) * phase)
  for depth, centre, length, decibel in scene.striae:
    bend = depth + _wave(grid.x + 3 * depth, scene.waves[0])
    bright = decibel - 24 * ((grid.x - centre) / length) ** 2
    _deposit(field, grid, bend, _amplitude(bright))
  return field


def _frame(scene, grid, probe, time_s, wall, noise, grain):
  """Amplitude [H, W] of one frame, before attenuation is made up for and compressed."""
  x = grid.x
  moved = slide(scene, time_s)
  u, empty = lung_coordinates(scene, x, time_s)
  dx = x[1] - x[0]
  pleura, fuzz, a_lines, sub_a_lines, streaks = _lines(scene, x, time_s, probe)
  fuzzy = 1 / (1 + np.exp(-(fuzz - 0.5) / 0.04))
  below = (grid.z[:, None] - pleura.astype(np.float32)[None, :]).astype(np.float32)
  start = noise.shape[1] // 2 - len(x) // 2 - round(moved / dx)
  lung_noise = noise[:, start : start + len(x)]
  if scene.lung_point is not None:
    still = noise.shape[1] // 2 - len(x) // 2
    lung_noise = np.where(empty[None, :], noise[:, still : still + len(x)], lung_noise)

  covered = np.zeros(len(x), np.float32)
  field = (_amplitude(scene.haze_db - scene.haze_slope * below) + _HAZE_FLOOR) * lung_noise
  if len(scene.rays) and scene.ray_shapes is not None:
    profile, faded = _shaped(scene, u, below)
    profile *= _amplitude(-faded) * ~empty
    field *= 1 - 0.5 * profile.max(0)
    field += _shaped_ray_field(scene.rays, profile, lung_noise, grain[0], grid)
  elif len(scene.rays):
    profile = _profile(u, scene.rays[:, 0], scene.rays[:, 1])
    if scene.lung_point is not None:
      profile *= ~empty
    covered = profile.max(0)
    field *= (1 - 0.5 * covered)[None, :]
    field += _ray_field(scene.rays, profile, lung_noise, grain[0], grid)
  tails = _profile(u, scene.comets[:, 0], scene.comets[:, 1])
  if scene.lung_point is not None:
    tails *= ~empty
  tails = _ray_field(scene.comets, tails, lung_noise, grain[1], grid)
  field += tails * np.exp(-np.clip(below, 0, 30) / np.float32(3.5))
  if scene.consolidations:
    _consolidate(scene, field, below, u, lung_noise, grain)
  below_pleura = 1 / (1 + np.exp(-np.clip(below / np.float32(0.12), -30, 30)))
  field *= below_pleura
  # The wall and the lung share the pleura: the wall's echo ends there.
  if scene.effusion is None:
    field += wall * (1 - below_pleura)
  else:
    _flood(scene, field, grid, probe, time_s, wall, below_pleura, lung_noise)

  def erased(depth):
    if scene.ray_shapes is None or not len(scene.rays):
      return 20 * np.log10(1.0001 - covered)
    profile, faded = _shaped(scene, u, depth - pleura)
    return 20 * np.log10(1.0001 - (profile * _amplitude(-faded)).max(0) * ~empty)

  for order, (depth, level) in enumerate(a_lines + sub_a_lines):
    speckled = 0.55 + 0.7 * _lung_grain(grain[2 + order % 6], u + 5 * order)
    _deposit(field, grid, depth, _amplitude(level + erased(depth)) * speckled)
  for depth, level, _ in streaks:
    _deposit(field, grid, depth, _amplitude(level + 0.5 * erased(depth)))
  phases = np.stack([_lung_grain(grain[2 + i], u) for i in range(6)])
  sharp_level = scene.pleura_db + 2.5 * phases[0].real
  _deposit(field, grid, pleura, _amplitude(sharp_level) * (1 - fuzzy))
  # A fuzzy pleura is several broken sheets about the line, out of phase with each other.
  for sheet in range(4):
    offset = 0.85 * phases[sheet].real + 0.35 * (sheet - 1)
    broken = _amplitude(scene.pleura_db - 7) * phases[sheet + 2] * fuzzy
    _deposit(field, grid, pleura + offset, broken)

  shade = _shadow(scene, x)
  if scene.rib[0]:
    rib = _rib_depth(scene, x).astype(np.float32)
    behind = 1 / (1 + np.exp(-np.clip((grid.z[:, None] - rib[None, :]) / 0.3, -30, 30)))
    field *= _amplitude(-34 * behind * shade[None, :])
    _deposit(field, grid, rib, _amplitude(-16 + 20 * np.log10(shade + 1e-4)))

  spectrum = fft.fft(field.astype(np.complex64), axis=1) * grid.point_spread
  spectrum = fft.fft(spectrum, axis=0) * grid.pulse[:, None]
  return np.abs(fft.ifft2(spectrum))


def _consolidate(scene, field, below, u, lung_noise, grain):
  """Fills airless lung with the echo of tissue; rays go down from its shredded border."""
  border = consolidated(scene, u)
  level = np.full_like(u, -np.inf)
  for centre, half, _, decibel, _ in scene.consolidations:
    level = np.where(np.abs(u - centre) < half, np.maximum(level, decibel), level)
  inside = below < border[None, :]
  phases = [_lung_grain(grain[2 + i], 1.7 * u) for i in range(3)]
  tissue = _amplitude(level)[None, :] * lung_noise
  # Rays as broad as the shreds they come from.
  rays = 0.5 * phases[0][None, :] + 0.5 * lung_noise
  rays *= _amplitude(level + 3)[None, :] * _amplitude(-0.35 * (below - border[None, :]))
  behind = np.minimum(1, border / 2)[None, :].astype(np.float32)
  field[:] = np.where(inside, tissue, field * (1 - 0.5 * behind) + rays * behind)
  # The border itself, broken, and air in bronchi.
  edge = np.abs(below - border[None, :]) < 0.5
  field += edge * (behind * _amplitude(level + 12)[None, :] * phases[1][None, :])
  air = inside & (np.abs(phases[2][None, :]) > 1.1) & (np.abs(lung_noise) > 1.3)
  field += air * (_amplitude(level + 8)[None, :] * lung_noise) * (below > 2)


def _flood(scene, field, grid, probe, time_s, wall, below_lung, lung_noise):
  """Adds the wall and, between the pleural line and the lung, fluid: nearly no echo."""
  pleura = pleura_depth(scene, grid.x, time_s, probe)
  thickness = fluid(scene, grid.x, time_s)
  below = (grid.z[:, None] - pleura[None, :]).astype(np.float32)
  below_wall = 1 / (1 + np.exp(-np.clip(below / np.float32(0.12), -30, 30)))
  field += wall * (1 - below_wall)
  # Reverberations of the wall fill the fluid's upper part with haze.
  haze = _amplitude(-46 - 2.5 * np.clip(below, 0, None)) + _HAZE_FLOOR / 3
  field += haze * lung_noise * below_wall * (1 - below_lung)
  wet = np.minimum(1, thickness)
  _deposit(field, grid, pleura, _amplitude(scene.pleura_db - 3) * wet)


def _shaped_ray_field(rays, profile, lung_noise, grain, grid):
  """`_ray_field` of profiles [R, Z, X] that change along depth."""
  steady = 0.75 * np.exp(1j * rays[:, 3])[:, None] + 0.6 * grain[: len(rays), : len(grid.z)]
  level = _amplitude(rays[:, 2])[:, None, None] * profile
  field = np.einsum("nz,nzx->zx", steady.astype(np.complex64), level)
  return 0.4 * field + 0.7 * level.sum(0) * lung_noise


def _ray_field(rays, profile, lung_noise, grain, grid):
  """[Z, X] vertical rays: a steady echo along depth, with grain and some of the lung's speckle."""
  steady = 0.75 * np.exp(1j * rays[:, 3])[:, None] + 0.6 * grain[: len(rays), : len(grid.z)]
  level = _amplitude(rays[:, 2])[:, None]
  columns = (level * profile).astype(np.complex64)
  # einsum, not @: BLAS threads fight with the threads that render videos.
  field = np.einsum("nz,nx->zx", steady.astype(np.complex64), columns)
  return 0.4 * field + 0.7 * columns.real.sum(0)[None, :] * lung_noise


def _lung_grain(grain, u):
  """Complex grain [X] at lung coordinates, 1.2 mm apart."""
  knots = (np.arange(len(grain)) - 20) * 1.2
  return np.interp(u, knots, grain.real) + 1j * np.interp(u, knots, grain.imag)


def _gain_db(z, probe):
  """Net of attenuation there and back and of time gain, in dB, at depths `z` in mm."""
  attenuation = 2 * 0.5 * probe.frequency_mhz * z / 10
  by_depth = probe.time_gain_db_per_cm * np.minimum(z / 10, probe.time_gain_stop_cm)
  return by_depth - attenuation + probe.gain_db


def _masks(scene, height, width, probe, time_s):
  """Truth and decoys, [H, W, K] bool each, at one time."""
  dz = 10 * probe.depth_cm / height
  dx = 10 * probe.width_cm / width
  z = ((np.arange(height, dtype=np.float32) + np.float32(0.5)) * np.float32(dz))[:, None]
  x = (np.arange(width) + 0.5) * dx
  u, empty = lung_coordinates(scene, x, time_s)
  pleura, fuzz, a_lines, sub_a_lines, streaks = _lines(scene, x, time_s, probe)
  seen = _shadow(scene, x) < 0.5
  truth = np.zeros((height, width, len(CLASSES)), bool)
  decoys = np.zeros_like(truth)

  def line(depth, thickness_mm, where):
    half = max(thickness_mm, _MIN_LINE_PIXELS * dz) / 2
    return (np.abs(z - depth.astype(np.float32)[None, :]) <= np.float32(half)) & where[None, :]

  truth[..., SHARP] = line(pleura, 2.0, seen & (fuzz <= 0.5))
  truth[..., FUZZY] = line(pleura + 0.5, 3.2, seen & (fuzz > 0.5))
  decoys[..., FUZZY] = line(pleura + 0.5, 3.2, seen & (fuzz <= 0.5) & (fuzz > 0.36))
  decoys[..., SHARP] = line(pleura, 2.0, seen & (fuzz > 0.5) & (fuzz < 0.64))
  border = consolidated(scene, u)
  if scene.consolidations:
    # Its shreds look like an irregular pleural line.
    decoys[..., FUZZY] |= line(pleura + border, 2.0, seen & (border > 1.5))
  outer = pleura
  if scene.effusion is not None:
    outer = pleura_depth(scene, x, time_s, probe)
    truth[..., SHARP] |= line(outer, 2.0, seen & (fluid(scene, x, time_s) > 1))
  behind = np.zeros((height, width), bool)
  if scene.rib[0]:
    rib = _rib_depth(scene, x)
    behind = (z > rib[None, :]) & ~seen[None, :]
    decoys[..., SHARP] |= line(rib, 2.0, ~seen)
  for index, (_, thickness, _, _) in enumerate(scene.wall.fascia):
    depth = _fascia_depth(scene, index, x, probe)
    truth[..., FASCIA] |= line(depth, thickness + 1.5, np.ones(width, bool)) & ~behind
  for depth, centre, length, _ in scene.striae:
    bend = depth + _wave(x + 3 * depth, scene.waves[0])
    near_pleura = depth > 0.85 * scene.wall.pleura_mm
    kind = SHARP if near_pleura else FASCIA
    where = np.abs(x - centre) < length / 2
    decoys[..., kind] |= line(bend, 1.6, where) & ~behind & (z < outer[None, :] - 1)

  covered = np.zeros((height, width), bool)
  below = z - pleura[None, :]
  lung = (below > border[None, :]) & seen[None, :]
  if len(scene.rays) and scene.ray_shapes is not None:
    profile, faded = _shaped(scene, u, below, _MIN_LINE_PIXELS * dx)
    left = scene.rays[:, 2, None, None] - faded
    covered = ((profile >= 0.5) & (left > _LAST_RAY_DB)).any(0) & ~empty[None, :]
    truth[..., VERTICAL] = covered & lung
  elif len(scene.rays):
    # Lines closer than a pixel would vanish: a ray is at least as wide as thin lines are thick.
    widths = np.maximum(scene.rays[:, 1], _MIN_LINE_PIXELS * dx)
    covered |= ((_profile(u, scene.rays[:, 0], widths) >= 0.5).any(0) & ~empty)[None, :]
    truth[..., VERTICAL] = covered & lung
  widths = np.maximum(scene.comets[:, 1], _MIN_LINE_PIXELS * dx)
  tails = (_profile(u, scene.comets[:, 0], widths) >= 0.5).any(0) & ~empty
  decoys[..., VERTICAL] = tails[None, :] & lung & (below < 11)
  if scene.consolidations:
    decoys[..., VERTICAL] |= (border > 2)[None, :] & lung
  if scene.rib[0]:
    inner = scene.rib[1] - scene.rib[0] * 1.5
    decoys[..., VERTICAL] |= (np.abs(x - inner) < 1)[None, :] & lung
  for kind, lines in ((A_LINE, a_lines), (SUB_A_LINE, sub_a_lines)):
    for depth, level in lines:
      truth[..., kind] |= line(depth, 2.0, seen & (level > -37)) & ~covered
  for depth, level, kind in streaks:
    decoys[..., kind] |= line(depth, 1.8, seen & (level > level.max() - 6)) & lung & ~covered
  return truth, decoys & ~truth


def render(scene, *, height, width, rng, n_frames=1, probe=None):
  """Renders a scene.

  Args:
    scene: a `Scene`.
    height: H in pixels; the picture is `probe.depth_cm` deep whatever it is.
    width: W in pixels; the picture is `probe.width_cm` wide.
    rng: NumPy generator of the speckle. Frame 0 does not depend on `n_frames`.
    n_frames: N.
    probe: a `Probe`.

  Returns:
    A dict: `image` [N, H, W] uint8; `truth` [N, H, W, K] bool, where each structure of `CLASSES`
    is; `decoys` [N, H, W, K] bool, what might be taken for it (rib edges, comet tails, muscle
    fibres, stray echoes).
  """
  probe = probe or Probe()
  # The gain is no part of the lattice, which is kept for the next picture.
  grid = _grid(height, width, dataclasses.replace(probe, gain_db=0.0))
  wall = _wall_field(scene, grid, probe, rng)
  extra = 2 * math.ceil((_MAX_SLIDE_MM + 1) / (grid.x[1] - grid.x[0]))
  noise = _complex_noise(rng, (len(grid.z), len(grid.x) + extra))
  # One row of grain a ray or tail along depth, then six along the lung for the pleura.
  rows = (8, max(8, len(scene.comets)))
  along_depth = [_complex_noise(rng, (count, len(grid.z))) for count in rows]
  grain = along_depth + list(_complex_noise(rng, (6, 100)))
  z = (np.arange(height) + 0.5) * 10 * probe.depth_cm / height
  x = (np.arange(width) + 0.5) * 10 * probe.width_cm / width
  gain = _gain_db(z, probe)[:, None] + _wave(x, scene.contact_waves)[None, :]
  images = np.empty((n_frames, height, width), np.uint8)
  truth = np.empty((n_frames, height, width, len(CLASSES)), bool)
  decoys = np.empty_like(truth)
  for n in range(n_frames):
    time_s = n / probe.frames_per_second
    amplitude = _frame(scene, grid, probe, time_s, wall, noise, grain)
    amplitude = ndimage.gaussian_filter(amplitude, grid.smooth, truncate=2.5)
    amplitude = amplitude[
      : grid.depth_rows, grid.margin : grid.margin + width * grid.columns
    ].reshape(height, grid.rows, width, grid.columns)
    decibel = 20 * np.log10(amplitude.mean((1, 3)) + 1e-6) + gain
    images[n] = np.clip(255 * (1 + decibel / probe.dynamic_range_db), 0, 255).astype(np.uint8)
    truth[n], decoys[n] = _masks(scene, height, width, probe, time_s)
  return {"image": images, "truth": truth, "decoys": decoys}


def evidence(image, masks, *, probe=None, full_contrast=100):
  """How visible structures are in a picture: local contrast with what belongs to no structure.

  Args:
    image: [H, W] uint8.
    masks: [H, W, K] bool, where structures are.
    probe: the `Probe`, for sizes in mm.
    full_contrast: difference in grey levels (of a log-compressed picture) that counts as 1.

  Returns:
    [H, W, K] uint8, 255 = fully visible, 0 outside the structures: mean grey of the structure
    within about 2 mm minus mean grey within about 5 mm of pixels in none, by `full_contrast`.
  """
  probe = probe or Probe()
  height, width, n_classes = masks.shape
  # Means over millimetres need no fine grid.
  step_z, step_x = max(1, height // 96), max(1, width // 96)
  coarse = (slice(step_z // 2, None, step_z), slice(step_x // 2, None, step_x))
  few = masks[coarse]
  grey = image[coarse].astype(np.float32)[..., None]
  free = ~few.any(-1, keepdims=True)
  mm = (10 * probe.depth_cm / height * step_z, 10 * probe.width_cm / width * step_x)
  near = _box_mean(np.concatenate([few, few * grey], axis=-1), 3.0, mm)
  far = _box_mean(np.concatenate([free, free * grey], axis=-1), 9.0, mm)
  inside = near[..., n_classes:] / np.maximum(near[..., :n_classes], 1e-4)
  outside = far[..., 1:] / np.maximum(far[..., :1], 1e-4)
  visible = np.clip((inside - outside) / full_contrast, 0, 1)
  visible = np.rint(255 * visible).astype(np.uint8)
  index_z = np.minimum(np.arange(height) // step_z, few.shape[0] - 1)
  index_x = np.minimum(np.arange(width) // step_x, few.shape[1] - 1)
  return visible[index_z[:, None], index_x[None, :]] * masks


def _box_mean(layers, size_mm, mm):
  sizes = [2 * round(size_mm / 2 / pitch) + 1 for pitch in mm]
  return ndimage.uniform_filter(layers, (*sizes, 1), mode="constant")
