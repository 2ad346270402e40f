"""Simulated experts: from what is visible in a picture to painted confidence.

An expert paints strokes: a stretch of one structure gets one of six brush levels. Which one follows
the stretch's evidence, its rank among the evidence met in this class, and the wanted shares of the
levels; hands shake, structures with little evidence are missed, and things that look like a
structure (`decoys`) are painted too, read by the same rule.

How true strokes of each confidence are is a setting. `SETTINGS` are fixed ones; in the family
`true_from_0.6` it is a dial: strokes are mostly true from that confidence on, mostly false below.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage, special

from lus_jax.errors import UserError
from tfds_builders.lus_phantom import simulator

LEVELS = np.array([0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
# Shares of the strokes of a class painted at each of LEVELS.
LEVEL_SHARES = (0.14, 0.16, 0.12, 0.16, 0.18, 0.24)
FAINT = 0.4  # strokes up to this confidence are called faint

# Mean and sd over strokes of the evidence in each class (order of simulator.CLASSES), measured with
# the default settings; they only turn evidence into ranks, so that shares come out as asked.
_EVIDENCE_MEAN = np.array([0.62, 0.48, 0.62, 0.24, 0.17, 0.40])
_EVIDENCE_SD = np.array([0.19, 0.17, 0.26, 0.18, 0.14, 0.19])


# The same of decoys, and their area as a share of that of the structures, measured with
# `TRUE_FROM_IMITATORS`: they turn the wanted shares of that family into what is painted.
_DECOY_MEAN = np.array([0.32, 0.40, 0.15, 0.07, 0.08, 0.19])
_DECOY_SD = np.array([0.23, 0.16, 0.18, 0.09, 0.11, 0.17])
_DECOY_AREA = np.array([1.42, 0.41, 0.37, 1.18, 1.66, 0.48])

TRUE_FROM = "true_from_"
HIGHEST_TRUE_FROM = 0.8
# In the family there is more to be taken for a structure, so that false strokes can be many.
TRUE_FROM_IMITATORS = 3
# Of strokes far below and far above the confidence of the dial, so many are true.
_LEAST_TRUE, _MOST_TRUE = 0.03, 0.97


@dataclasses.dataclass(frozen=True)
class Style:
  """An expert's habits.

  Attributes:
    bias: added to ranks in [0, 1] before they become levels: above 0 is confident.
    noise: sd of the same, in units of the evidence's sd.
    miss: rank below which half of the strokes are missed.
    false_strokes: share of decoys that are painted.
    tremble_mm: sd of how far a stroke lies from the structure.
  """

  bias: float
  noise: float
  miss: float
  false_strokes: float
  tremble_mm: float


STYLES = {
  "A": Style(bias=0.06, noise=0.35, miss=0.04, false_strokes=0.30, tremble_mm=0.15),
  "B": Style(bias=0.0, noise=0.25, miss=0.10, false_strokes=0.18, tremble_mm=0.20),
  "C": Style(bias=-0.06, noise=0.45, miss=0.14, false_strokes=0.24, tremble_mm=0.30),
}


@dataclasses.dataclass(frozen=True)
class Reading:
  """How trustworthy strokes are.

  Attributes:
    miss: times the style's `miss`.
    false_strokes: times the style's share of painted decoys.
    false_rank: added to a painted decoy's rank: below 0, false strokes are fainter.
    informative: whether ranks follow the evidence; if not they are drawn at random.
    true_from: the confidence from which on strokes are mostly true (`positive_predictive_value`);
      None: it follows from all the others, of which only `miss` counts beside it.
    imitators: see `simulator.sample_scene`.
  """

  miss: float = 1.0
  false_strokes: float = 1.0
  false_rank: float = 0.0
  informative: bool = True
  true_from: float | None = None
  imitators: int = 1


_READINGS = {
  "default": Reading(),
  "faint_true": Reading(miss=0.3, false_strokes=0.5, false_rank=0.6),
  "faint_false": Reading(miss=2.5, false_strokes=4.0, false_rank=-0.6),
  "faint_uninformative": Reading(informative=False),
  "null": Reading(),
}
SETTINGS = tuple(_READINGS)


def reading(setting):
  """The `Reading` of a named setting.

  Args:
    setting: one of `SETTINGS`, or `true_from_T`, as true_from_0.6.

  Raises:
    UserError: the setting is unknown.
  """
  if setting in _READINGS:
    return _READINGS[setting]
  if (confidence := true_from(setting)) is not None:
    return Reading(miss=0.0, true_from=confidence, imitators=TRUE_FROM_IMITATORS)
  raise UserError(
    f"setting {setting!r} of lus_phantom is unknown: choose one of {', '.join(SETTINGS)}, or "
    f"{TRUE_FROM}T with T from 0 to {HIGHEST_TRUE_FROM}, as {TRUE_FROM}0.6."
  )


def true_from(setting):
  """The confidence T of a setting `true_from_T`; None of any other, or of another spelling."""
  try:
    confidence = float(setting.removeprefix(TRUE_FROM))
  except ValueError:
    return None
  # One spelling a setting: its name stands in that of the data set.
  known = 0 <= confidence <= HIGHEST_TRUE_FROM and setting == f"{TRUE_FROM}{confidence:g}"
  return confidence if known else None


def positive_predictive_value(confidence, true_from):
  """The wanted share of true strokes among those of a confidence: it crosses 50 % below the dial.

  Args:
    confidence: of strokes, in (0, 1], any shape.
    true_from: the dial, in [0, .8]; a step of the brush above it 96 % are true, at it 82 %, a step
      below it 18 % and from two steps on 3 to 4 %.
  """
  rise = special.expit((np.asarray(confidence) - true_from + 0.05) / 0.03)
  return _LEAST_TRUE + (_MOST_TRUE - _LEAST_TRUE) * rise


def _planned(shares, true_from, decoy_area):
  """How a class is painted so that strokes of each of LEVELS are true as often as they should.

  Args:
    shares: [6], wanted, of all strokes.
    true_from: the dial.
    decoy_area: what may be taken for the structure, as a share of its area. Where it is too little
      for so many false strokes, levels that are mostly false are painted more rarely.

  Returns:
    Ranks [5] at which true strokes go to the next level, those [5] of false ones, and the share of
    decoys that is painted; every structure is.
  """
  right = positive_predictive_value(LEVELS, true_from)
  true, false, low = shares * right, shares * (1 - right), right < 0.5
  wanted = false[low].sum() - decoy_area * true[low].sum()
  left = decoy_area * true[~low].sum() - false[~low].sum()
  if 0 < left < wanted:
    rarer = np.where(low, left / wanted, 1)
    true, false = true * rarer, false * rarer
  painted = min(1.0, false.sum() / (decoy_area * true.sum()))
  return *(np.cumsum(one)[:-1] / one.sum() for one in (true, false)), painted


def level_shares(shares, n_classes):
  """Checks the wanted shares of LEVELS and makes them [K, 6], each row summing to 1.

  Args:
    shares: six numbers, or K rows of six.
    n_classes: K.

  Raises:
    UserError: there are not six per class, one is negative, or all of a class are 0.
  """
  try:
    table = np.asarray(shares, float)
    table = np.broadcast_to(table, (n_classes, len(LEVELS)))
  except ValueError:
    table = np.full((1, 1), -1.0)
  if not ((table >= 0).all() and (table.sum(1) > 0).all()):
    raise UserError(
      f"level_shares of lus_phantom must be {len(LEVELS)} numbers >= 0 with a positive sum, or "
      f"{n_classes} rows of them, but is {shares!r}."
    )
  return table / table.sum(1, keepdims=True)


def _strokes(mask, rng, mm_per_pixel, *, vertical):
  """[H, W] int: 0 outside the mask, else the number of the stroke: a stretch of 8 to 20 mm."""
  labels, _ = ndimage.label(mask)
  axis = 0 if vertical else 1
  ends = np.cumsum(rng.uniform(8, 20, 24))
  along = np.searchsorted(ends, (np.arange(mask.shape[axis]) + 0.5) * mm_per_pixel[axis])
  along = along[:, None] if vertical else along[None, :]
  return np.where(mask, 1 + labels * 25 + along, 0)


def annotate(*, truth, evidence, decoys, decoy_evidence, style, reading, shares, rng, mm_per_pixel):
  """Paints one frame.

  Args:
    truth: [H, W, K] bool, where the structures of `simulator.CLASSES` are.
    evidence: [H, W, K] uint8, how visible (255 = fully).
    decoys: [H, W, K] bool, what may be taken for them.
    decoy_evidence: [H, W, K] uint8.
    style: the expert's `Style`.
    reading: a `Reading`.
    shares: [K, 6] wanted shares of LEVELS, see `level_shares`.
    rng: NumPy generator.
    mm_per_pixel: height and width of a pixel.

  Returns:
    [H, W, K] uint8 confidence, 255 = 100 %, rounded to nearest.
  """
  height, width, n_classes = truth.shape
  painted = np.zeros((height, width, n_classes))
  for k in range(n_classes):
    dialled = reading.true_from is not None
    if dialled:
      true_cuts, false_cuts, painted_decoys = _planned(shares[k], reading.true_from, _DECOY_AREA[k])
    else:
      true_cuts = false_cuts = np.cumsum(shares[k])[:-1]
      painted_decoys = min(1.0, reading.false_strokes * style.false_strokes)
    for mask, seen, is_true in (
      (truth[..., k], evidence[..., k], True),
      (decoys[..., k], decoy_evidence[..., k], False),
    ):
      strokes = _strokes(mask, rng, mm_per_pixel, vertical=k == simulator.VERTICAL)
      sizes = np.maximum(np.bincount(strokes.ravel()), 1)
      count = len(sizes)
      mean = np.bincount(strokes.ravel(), seen.ravel() / 255.0) / sizes
      if dialled and not is_true:
        score = (mean - _DECOY_MEAN[k]) / _DECOY_SD[k]
      else:
        score = (mean - _EVIDENCE_MEAN[k]) / _EVIDENCE_SD[k]
      score = (score + style.noise * rng.normal(size=count)) / np.hypot(1, style.noise)
      rank = special.ndtr(score)
      chance = rng.random((3, count))
      if not reading.informative:
        rank = chance[0]
      if is_true:
        missed = special.expit((rank - reading.miss * style.miss) / 0.03) < chance[1]
        if not reading.informative:
          missed = chance[1] < style.miss
      else:
        missed = chance[1] >= painted_decoys
        rank = rank + reading.false_rank
      if dialled:
        # As large a bias in the middle, smaller at the ends, where few strokes make a level.
        rank = special.ndtr(special.ndtri(rank) + math.sqrt(2 * math.pi) * style.bias)
      else:
        rank = rank + style.bias
      # Off the ends, so that a level with no share is never given.
      rank = np.clip(rank, 1e-9, 1 - 1e-9)
      cuts = true_cuts if is_true else false_cuts
      level = np.where(missed, 0.0, LEVELS[np.searchsorted(cuts, rank, side="right")])
      level[0] = 0.0
      painted[..., k] = np.maximum(painted[..., k], level[strokes])
  return np.rint(255 * _tremble(painted, style.tremble_mm, rng, mm_per_pixel)).astype(np.uint8)


def _tremble(painted, tremble_mm, rng, mm_per_pixel):
  """Moves every pixel by a smooth random way: no level is made up, lines only bend."""
  height, width, _ = painted.shape
  knots = rng.normal(0, tremble_mm, (2, 9, 9))
  zoom = (height / 9, width / 9)
  index = []
  for axis, length in enumerate((height, width)):
    way = ndimage.zoom(knots[axis], zoom, order=1, grid_mode=True, mode="nearest")
    way = np.rint(way / mm_per_pixel[axis]).astype(int)
    start = np.arange(length).reshape((-1, 1) if axis == 0 else (1, -1))
    index.append(np.clip(start + way, 0, length - 1))
  return painted[index[0], index[1]]
