"""What becomes of stored labels before anything learns from them: a common scale, STAPLE, counts.

The first two wrap a split of a data set, so that readers see one more feature or another
`confidence`.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from lus_jax.data.selection import untouched_classes
from lus_jax.errors import UserError
from lus_jax.labels import annotators, fusion

METHODS = ("none", "quantile", "overlap")
_FRAME = ("video", "frame")


def check_method(name, field="config.labels.standardise"):
  """Refuses an unknown way to standardise annotators (`UserError`)."""
  if name not in METHODS:
    raise UserError(f"{field}: '{name}' is not known; choose one of {', '.join(METHODS)}.")


@dataclasses.dataclass(frozen=True)
class Levels:
  """What the labels of a split show.

  Attributes:
    counts: its pixels that count, by confidence as stored, [K, 256].
    shown: which classes each frame shows anything of, [N, K] bool.
  """

  counts: np.ndarray
  shown: np.ndarray


def levels(source):
  """The `Levels` of a split, or of a dict of arrays with a leading example axis, in one pass."""
  counts, shown = 0, []
  arrays = isinstance(source, dict)
  ignores = "ignore" in (source if arrays else source[0])
  names = ("confidence", "labelled", "valid_box", *(["ignore"] if ignores else []))
  if arrays:
    each = zip(*(source[name] for name in names), strict=True)
    examples = (dict(zip(names, one, strict=True)) for one in each)
  else:
    examples = source.only(*names)
  for example in examples:
    top, left, bottom, right = example["valid_box"]
    inside = np.s_[top:bottom, left:right]
    counting = example["ignore"][inside][..., 0] == 0 if ignores else slice(None)
    own = [
      np.bincount(plane[counting].ravel(), minlength=256) * known
      for plane, known in zip(
        np.moveaxis(example["confidence"][inside], -1, 0), example["labelled"], strict=True
      )
    ]
    counts = counts + np.stack(own)
    shown.append(np.stack(own)[:, 1:].any(1))
  return Levels(counts, np.stack(shown))


def repeats(shown, often):
  """How often a pass over a split takes each frame, so that rare classes are seen: [N] integers.

  By the rarest class that it shows: sqrt(often / share of the frames that show that class), rounded
  and at least once, as Gupta et al. (LVIS, arXiv 1908.03195) do.

  Args:
    shown: of `Levels`, [N, K].
    often: the share of the frames from which on a class is not rare.
  """
  share = np.maximum(shown.mean(0), 1 / max(1, len(shown)))
  by_class = np.maximum(1, np.sqrt(often / share))
  return np.rint(np.where(shown, by_class, 1).max(1)).astype(int)


class WithStaple(Sequence):
  """A split whose examples have the feature `staple`, [H, W, K] uint8.

  Args:
    source: a split with `raters`, `drawn` and `valid_box`.
  """

  def __init__(self, source):
    self._source, self._known = source, {}

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    example = self._source[index]
    return example | {"staple": self._staple(index, example)}

  def only(self, *names):
    """See `lus_jax.data.datasets.Source.only`."""
    if "staple" not in names:
      return self._source.only(*names)
    needed = ("raters", "drawn", "valid_box")
    names = [name for name in names if name != "staple"]
    return WithStaple(self._source.only(*dict.fromkeys((*names, *needed))))

  def _staple(self, index, example):
    # Every epoch asks again, and a compressed map takes next to nothing.
    shape = example["raters"].shape[1:]
    if index not in self._known:
      fused = fusion.staple(example["raters"], example["drawn"], box=example["valid_box"])
      self._known[index] = zlib.compress(np.rint(255 * fused).astype(np.uint8).tobytes(), 1)
    return np.frombuffer(zlib.decompress(self._known[index]), np.uint8).reshape(shape)


class Standardised(Sequence):
  """A split whose painted confidences are carried to a common scale.

  Args:
    source: a split.
    maps: of `lus_jax.labels.annotators`, [A, K, 256].
    names: A annotators. Where the split has `raters` these are they, and `confidence` becomes the
      mean of the drawn ones anew.
    several: whether it has.
  """

  def __init__(self, source, maps, names, *, several):
    self._source, self._maps, self._names, self._several = source, maps, names, several

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    example = dict(self._source[index])
    if self._several and "raters" in example:
      raters = np.stack(
        [_carry(maps, mask) for maps, mask in zip(self._maps, example["raters"], strict=True)]
      )
      mean = raters[np.asarray(example["drawn"], bool)].mean(0)
      example |= {"raters": raters, "confidence": np.rint(mean).astype(np.uint8)}
    elif not self._several and "confidence" in example:
      # Who is not known keeps their scale.
      name = example["annotator"].decode()
      if name in self._names:
        maps = self._maps[self._names.index(name)]
        example["confidence"] = _carry(maps, example["confidence"])
    return example

  def only(self, *names):
    """See `lus_jax.data.datasets.Source.only`."""
    if "confidence" in names or "raters" in names:
      names = (*names, *(("raters", "drawn") if self._several else ("annotator",)))
    source = self._source.only(*dict.fromkeys(names))
    return Standardised(source, self._maps, self._names, several=self._several)


def _carry(maps, confidence):
  """Values of one annotator, [H, W, K] uint8, through the tables [K, 256]."""
  return np.stack([table[confidence[..., k]] for k, table in enumerate(maps)], axis=-1)


def standardised(dataset, method):
  """The splits of a data set, training and validation on a common scale of confidence.

  The maps are fitted to the training split alone.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset` of frames.
    method: 'none', 'quantile' or 'overlap' (see `lus_jax.labels.annotators`).

  Returns:
    A dict of splits. The test split is the data set's own: it stays as it was painted, so that runs
    with and without can be compared.

  Raises:
    UserError: no two annotators painted the same frame, and the method needs it.
  """
  splits = dict(dataset.splits)
  if method == "none":
    return splits
  several = bool(dataset.raters)
  names = list(dataset.raters) if several else _annotators(splits)
  if method == "quantile":
    maps = annotators.fit_quantile(_histograms(splits["train"], names, dataset, several))
  else:
    maps = annotators.fit_overlap(_pairs(splits["train"], names, dataset, several))
  for split in ("train", "validation"):
    splits[split] = Standardised(splits[split], maps, names, several=several)
  return splits


def _annotators(splits):
  sources = [source.only("annotator") for source in splits.values()]
  found = {example["annotator"].decode() for source in sources for example in source}
  return sorted(found - {""})


def _paintings(source, names, dataset, several):
  """Every frame's paintings: lists of annotator's number, confidence [H, W, K], and [K] whether it
  is the annotator's: not that of a class that is not labelled, or that a model painted alone."""
  if several:
    everything = np.ones(len(dataset.classes), bool)
    for example in source.only("raters", "drawn"):
      yield [(a, example["raters"][a], everything) for a in np.flatnonzero(example["drawn"])]
    return
  frames = {}
  for i, example in enumerate(source.only("annotator", *_FRAME)):
    frames.setdefault(tuple(example[name] for name in _FRAME), []).append(i)
  more = ["ignore"] if dataset.has_ignore else []
  more += ["prelabelled", "touched"] if dataset.has_provenance else []
  pixels = source.only("annotator", "confidence", "labelled", *more)
  for indices in frames.values():
    examples = [pixels[i] for i in indices]
    if dataset.has_ignore:
      # What one of them ignored is compared with nobody's.
      counts = ~np.any([x["ignore"] > 0 for x in examples], axis=0)
      examples = [x | {"confidence": x["confidence"] * counts} for x in examples]
    yield [
      (names.index(name), x["confidence"], _own(x))
      for x in examples
      if (name := x["annotator"].decode()) in names
    ]


def _own(example):
  """The classes [K] bool of which an annotator says something."""
  labelled = np.asarray(example["labelled"], bool)
  return labelled & ~untouched_classes(example) if "touched" in example else labelled


def _histograms(source, names, dataset, several):
  counts = np.zeros((len(names), len(dataset.classes), 256), np.int64)
  for paintings in _paintings(source, names, dataset, several):
    for a, confidence, own in paintings:
      for k in np.flatnonzero(own):
        counts[a, k] += np.bincount(confidence[..., k].ravel(), minlength=256)
  return counts


def _pairs(source, names, dataset, several):
  counts = np.zeros((len(names), len(dataset.classes), 256, 256), np.int64)
  for paintings in _paintings(source, names, dataset, several):
    for i, (a, confidence, own) in enumerate(paintings):
      for k in np.flatnonzero(own):
        others = [x[..., k] for j, (_, x, theirs) in enumerate(paintings) if j != i and theirs[k]]
        if not others:
          continue
        mine, mean = confidence[..., k], np.rint(np.mean(others, axis=0)).astype(np.int64)
        here = (mine > 0) | (mean > 0)
        joint = 256 * mine[here].astype(np.int64) + mean[here]
        counts[a, k] += np.bincount(joint, minlength=256 * 256).reshape(256, 256)
  if not counts.any():
    agreed = "; of a frame with a consensus it alone is used, but for --config.data.consensus=none"
    raise UserError(
      "config.labels.standardise: no training frame was painted by two annotators, which 'overlap' "
      f"needs{agreed * (annotators.CONSENSUS in names)}; use quantile, which compares their "
      "distributions."
    )
  return counts
