"""Numbers of what is predicted: areas, structures, and how much of the pleura they cover.

All are of one frame's maps of one member within its scan area. A pixel is of a class where its
probability reaches the cut c (8-bit values v: v / 255 >= c):

  area_pixels       how many pixels are of the class
  area_mm2          area_pixels x height x width of a pixel, where these are known
  mean_probability  mean over all pixels of the scan area
  max_probability   largest of them
  structures        connected parts of the class, neighbours by side or corner, of at least
                    `smallest` pixels
  pleura_share      of the columns of the scan area in which a structure of a pleura class lies, the
                    share in which a structure of this class lies at or below the topmost of its
                    pixels:
                      S = sum_x [P(x) and C(x)] / sum_x P(x)
                      P(x) = some pleura structure is in column x; its topmost row there is d(x)
                      C(x) = some structure of the class has a pixel in column x, row y >= d(x)
                    Columns stand for scan lines, which they are with a linear probe; with a curved
                    one it is the share as seen on the screen. None of a pleura class itself, and
                    where no pleura is seen.
"""

import dataclasses
import re

import numpy as np
from scipy import ndimage

# Structures of fewer pixels than this share of the scan area are not counted, if nobody says.
SMALLEST_SHARE = 1 / 2000
NAMES = (
  "area_pixels",
  "area_mm2",
  "mean_probability",
  "max_probability",
  "structures",
  "pleura_share",
)
_TOUCHING = np.ones((3, 3), int)


@dataclasses.dataclass(frozen=True)
class Rules:
  """How a clip is measured.

  Attributes:
    cut: the probability from which on a pixel is of a class.
    smallest: pixels of the smallest structure that counts.
    pleura: which classes are pleura, by their place.
    spacing: mm a pixel, (vertical, horizontal), or None.
  """

  cut: float
  smallest: int
  pleura: tuple[int, ...]
  spacing: tuple[float, float] | None


def guess_pleura(classes):
  """The classes that are the pleural line by their names: 'pleura', 'sharp_pleura', 'pleural line'.

  Not what only lies near it, as 'subpleural consolidation' or 'pleural effusion'.
  """
  found = []
  for name in classes:
    words = " ".join(re.findall(r"[^\W_]+", name.casefold()))
    if re.search(r"\bpleura$|^pleura\b|\bpleural?( |)lini?e", words) and "effusion" not in words:
      found.append(name)
  return tuple(found)


def default_smallest(box):
  """Pixels of the smallest structure that counts in a scan area, if nobody says."""
  top, left, bottom, right = box
  return max(1, round(SMALLEST_SHARE * (bottom - top) * (right - left)))


def measure(maps, rules):
  """Measures one frame.

  Args:
    maps: [h, w, K] uint8, 255 = probability 1, of the scan area.
    rules: a `Rules`.

  Returns:
    For each class a dict of `NAMES`, None where there is no such number.
  """
  kept = [
    _structures(maps[..., k] >= 255 * rules.cut, rules.smallest) for k in range(maps.shape[-1])
  ]
  counts = [n for n, _, _ in kept]
  pleura = np.zeros(maps.shape[:2], bool)
  for k in rules.pleura:
    pleura |= kept[k][1]
  columns = pleura.any(axis=0)
  # Rows from the topmost pixel of the pleura on.
  below = np.maximum.accumulate(pleura, axis=0)
  found = []
  for k, (_, structures, area) in enumerate(kept):
    share = None
    if columns.any() and k not in rules.pleura:
      share = float((structures & below).any(axis=0)[columns].mean())
    found.append(
      {
        "area_pixels": area,
        "area_mm2": area * float(np.prod(rules.spacing)) if rules.spacing else None,
        "mean_probability": float(maps[..., k].mean(dtype=np.float64)) / 255,
        "max_probability": int(maps[..., k].max()) / 255,
        "structures": counts[k],
        "pleura_share": share,
      }
    )
  return found


def _structures(mask, smallest):
  """How many structures a mask [h, w] has, the mask of them alone, and its area in pixels."""
  area = int(np.count_nonzero(mask))
  if not area:
    return 0, mask, 0
  labels, _ = ndimage.label(mask, _TOUCHING)
  large = np.bincount(labels.ravel()) >= smallest
  large[0] = False
  return int(large.sum()), large[labels], area
