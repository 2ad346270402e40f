"""What a stored frame and a stored video look like, whichever builder wrote them.

Every builder of this package writes these features, so that `lus_jax.data` has one reader.
Confidences are uint8 (255 = 100 %). `valid_box` is (top, left, bottom, right), half-open: the part
of the letterboxed picture that was in the original frame, or in its scan area (`area_features`). An
unknown text is '', an unknown `day` or `readmitted_30d` -1, an unknown number NaN.
"""

import contextlib
import copy
import functools
import hashlib

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import shuffle

from lus_jax import notices, pool
from lus_jax.errors import UserError
from lus_jax.media import scan_area
from lus_jax.media.letterbox import letterbox
from lus_jax.splits import SPLITS
from tfds_builders import tables

# Patients of the paper: 32 train, 6 validation, 4 test.
SPLIT_PROPORTIONS = {"train": 32, "validation": 6, "test": 4}
# What is split by seed: the second is no independent test.
SPLIT_UNITS = ("patient", "frame")
# Bytes of a split that are sorted in memory; a larger one in so many files, one after the other.
# They are open together, and systems allow a program 1024 files (macOS 256, which TFDS raises).
MAX_SORTED, N_BUCKETS = 2**24, 256


def _array(shape, dtype=np.uint8):
  return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.ZLIB)


def _provenance():
  return {
    "video": tfds.features.Text(),
    "patient": tfds.features.Text(),
    "view": tfds.features.Text(),
    "day": tfds.features.Scalar(np.int32),
    "valid_box": tfds.features.Tensor(shape=(4,), dtype=np.int32),
  }


def area_features():
  """Where frames that were cropped lie in those of the file, to carry maps back.

  Returns:
    A dict of TFDS features: `scan_area` (top, left, bottom, right), half-open, in pixels of the
    frame as shown, and `frame_size`, its (height, width). `valid_box` shows the area alone.
  """
  return {
    "scan_area": tfds.features.Tensor(shape=(4,), dtype=np.int32),
    "frame_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
  }


def area_of(box, height, width):
  """The `area_features` of a frame: `box`, or None, the whole of height x width pixels."""
  return {
    "scan_area": np.array(box or scan_area.whole(height, width), np.int32),
    "frame_size": np.array((height, width), np.int32),
  }


def work_features(n_classes):
  """How a frame's masks came to be, of sets that know it (`provenance.csv` of a `lus_folder`).

  Args:
    n_classes: K.

  Returns:
    A dict of TFDS features: `prelabelled` and `touched` ([K] bool: the classes that a model filled,
    and those that a hand changed), `prelabel` (the model), `consensus` (whether they stand for
    those of several annotators), `seconds` that the painting took, `time` (ISO 8601), `tool` and
    `protocol`.
  """
  classes = tfds.features.Tensor(shape=(n_classes,), dtype=np.bool_)
  return {
    "prelabelled": classes,
    "touched": classes,
    "prelabel": tfds.features.Text(),
    "consensus": tfds.features.Scalar(np.bool_),
    "seconds": tfds.features.Scalar(np.float32),
    "time": tfds.features.Text(),
    "tool": tfds.features.Text(),
    "protocol": tfds.features.Text(),
  }


def frame_features(height, width, n_classes, *, truth=False, ignore=False):
  """Features of one labelled frame.

  Args:
    height: H of the stored frame, in pixels.
    width: W of the stored frame, in pixels.
    n_classes: K.
    truth: whether `truth` and `evidence` (both [H, W, K] uint8) are stored too (simulated data).
    ignore: whether `ignore` [H, W, 1] uint8 is stored too: what is not 0 counts in no class.

  Returns:
    A dict of TFDS features: `image` [H, W, 1] and `confidence` [H, W, K] uint8, `labelled` [K]
    bool (False: nothing is known about this class here), `annotator`, `frame` (counted from 0) and
    where the frame comes from.
  """
  features = _provenance() | {
    "image": _array((height, width, 1)),
    "confidence": _array((height, width, n_classes)),
    "labelled": tfds.features.Tensor(shape=(n_classes,), dtype=np.bool_),
    "annotator": tfds.features.Text(),
    "frame": tfds.features.Scalar(np.int32),
  }
  if truth:
    features |= {
      "truth": _array((height, width, n_classes)),
      "evidence": _array((height, width, n_classes)),
    }
  if ignore:
    features |= {"ignore": _array((height, width, 1))}
  return features


def rater_features(height, width, n_classes, n_raters, *, truth=False):
  """Features of one frame that several raters drew: those of `frame_features`, and what each drew.

  Args:
    height: H of the stored frame, in pixels.
    width: W of the stored frame, in pixels.
    n_classes: K.
    n_raters: R.
    truth: as in `frame_features`.

  Returns:
    A dict of TFDS features: `raters` [R, H, W, K] uint8 (0 where a rater drew nothing), `drawn` [R]
    bool (False: this rater has not seen this frame), and `frame_features`, whose `confidence` is
    `soft_label`.
  """
  return frame_features(height, width, n_classes, truth=truth) | {
    "raters": _array((n_raters, height, width, n_classes)),
    "drawn": tfds.features.Tensor(shape=(n_raters,), dtype=np.bool_),
  }


def soft_label(raters, drawn):
  """The mean over those who drew: [H, W, K] uint8, rounded to nearest.

  Args:
    raters: [R, H, W, K] uint8.
    drawn: [R] bool, at least one True.
  """
  return np.rint(raters[np.asarray(drawn)].mean(axis=0)).astype(np.uint8)


def video_features(height, width, n_classes, *, truth=False):
  """Features of one video.

  Args:
    height: H of the stored frames, in pixels.
    width: W of the stored frames, in pixels.
    n_classes: K.
    truth: whether `truth` and `evidence` (both [N, H, W, K] uint8) are stored too.

  Returns:
    A dict of TFDS features: `frames` [N, H, W, 1] uint8, `sf_ratio` (raw: SpO2 % / FiO2, 0 to 477),
    `readmitted_30d` (0, 1 or -1), `frames_per_second` and where the video comes from.
  """
  features = _provenance() | {
    "frames": _array((None, height, width, 1)),
    "sf_ratio": tfds.features.Scalar(np.float32),
    "readmitted_30d": tfds.features.Scalar(np.int32),
    "frames_per_second": tfds.features.Scalar(np.float32),
  }
  if truth:
    features |= {
      "truth": _array((None, height, width, n_classes)),
      "evidence": _array((None, height, width, n_classes)),
    }
  return features


def metadata(*, classes, thin, licence, split_unit="patient", **extra):
  """What a data set says of itself: kept in `builder.info.metadata` and read by `lus_jax.data`."""
  return tfds.core.MetadataDict(
    classes=list(classes), thin=list(thin), licence=licence, split_unit=split_unit, **extra
  )


def assign_splits(units, seed):
  """Splits units (patients) 32 : 6 : 4 by seed, with at least one in each split.

  Args:
    units: names; order and repetitions do not matter.
    seed: an integer.

  Returns:
    A dict from unit to 'train', 'validation' or 'test'.

  Raises:
    UserError: there are fewer than three units.
  """
  units = sorted(set(units))
  if len(units) < len(SPLITS):
    raise UserError(
      f"{len(units)} patient(s) cannot fill the splits train, validation and test: at least 3 are "
      "needed; add patients, or use --config.data.split_unit=frame for a smoke run."
    )
  total = sum(SPLIT_PROPORTIONS.values())
  counts = {
    name: max(1, round(len(units) * SPLIT_PROPORTIONS[name] / total))
    for name in ("validation", "test")
  }
  order = np.random.default_rng(seed).permutation(len(units))
  names = ["test"] * counts["test"] + ["validation"] * counts["validation"]
  names += ["train"] * (len(units) - len(names))
  return {units[i]: name for i, name in zip(order, names, strict=True)}


def split_of_units(units, given, *, split_unit, seed, table, noun):
  """The split of every unit: the one that a table gives its patient, else one drawn by seed.

  Args:
    units: what is split by seed: patients, or what `split_unit` says.
    given: `{patient: split}` of the table; '' everywhere where it gives none.
    split_unit: one of `SPLIT_UNITS`.
    seed: of the draw.
    table: the path of the table with the column split.
    noun: what a warning calls a unit that is no patient, in the plural.

  Returns:
    A dict from unit to 'train', 'validation' or 'test'.

  Raises:
    UserError: a split has no patient, or the table gives splits that would not be used.
  """
  if not any(given.values()):
    found = assign_splits(units, seed)
  elif split_unit == "frame":
    raise UserError(
      f"{table} fills the column split, which split_unit='frame' would ignore; empty the column or "
      "use split_unit='patient'."
    )
  else:
    found = given
  if split_unit == "frame":
    logging.warning(
      "split_unit='frame': %s of one patient are in several splits. The report will call this "
      "'not an independent test'.",
      noun,
    )
  for name in SPLITS:
    if name not in found.values():
      raise UserError(
        f"{table}: no patient is in the split {name!r}; give it at least one, or empty the column "
        "split to have patients split by seed."
      )
  return found


def fitted(job, image, area, **kwargs):
  """The scan area of an image, or of a mask, as `letterbox` returns it at a job's size.

  Args:
    job: has a `height` and a `width`, in pixels.
    image: [h, w].
    area: (top, left, bottom, right), half-open; None: the whole image.
    **kwargs: of `letterbox`.
  """
  if area:
    image = scan_area.crop(image, area)
  return letterbox(image, job.height, job.width, **kwargs)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What all builders here share; `num_processes` is as in `pool.ordered`."""

  def __init__(self, *, file_format="array_record", num_processes=0, **kwargs):
    super().__init__(file_format=file_format, **kwargs)
    self.num_processes = num_processes

  def download_and_prepare(self, **kwargs):
    """Builds the data set, as TFDS does; warns once of all files that are alike."""
    with notices.collected():
      super().download_and_prepare(**kwargs)


def config_name(kind, height, width, **settings):
  """A TFDS config name that changes whenever a setting does: `frames_96x96_1f3b9c2a`."""
  # A config that was read from JSON has lists where others have tuples. Of frames those that are
  # trained on first have tuples; videos were always asked for by what a segmentation's JSON holds.
  written = list if kind == "videos" else tuple
  text = repr(sorted((name, _all_as(written, value)) for name, value in settings.items()))
  return f"{kind}_{height}x{width}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _all_as(written, value):
  """A value whose sequences, and those in them, are all lists or all tuples."""
  if not isinstance(value, list | tuple):
    return value
  return written(_all_as(written, one) for one in value)


def in_order(index, n):
  """The key of an example that is to be stored as number `index` of n, for `disable_shuffling`.

  TFDS sorts by it, a large set in parts that its first of 128 bits tell: those of small numbers,
  which it takes by itself, are all 0, and the whole set would be read at once.
  """
  return index * (2**128 // n)


@contextlib.contextmanager
def sorted_on_disk():
  """Within it, TFDS sorts larger sets in files beside those it writes: by itself, from 1 GB on."""
  values = {"MAX_MEM_BUFFER_SIZE": MAX_SORTED, "BUCKETS_NUMBER": N_BUCKETS}
  before = {name: getattr(shuffle, name) for name in values}
  try:
    for name, value in values.items():
      setattr(shuffle, name, value)
    yield
  finally:
    for name, value in before.items():
      setattr(shuffle, name, value)


def bar(total, unit):
  """The progress bar of what `made` makes, over all splits."""
  # Workers have no use for it, and for jax, which it imports.
  from lus_jax import progress

  return progress.bar(total=total, unit=unit, what="preparing", delay=2)


def made(builder, function, job, items, shown):
  """Yields what `function(job, item)` yields for each item, in several processes, in their order.

  Args:
    builder: whose examples these are; its `num_processes` is as in `pool.ordered`.
    function: of a module; it yields tuples of a name, an example and anything else.
    job: its first argument, small, as every worker gets it.
    items: an iterable of its second.
    shown: of `bar`; it ends where its total is reached.
  """
  features = builder.info.features
  results = pool.chained(
    functools.partial(_encoded, function, copy.copy(features), job),
    items,
    num_processes=builder.num_processes,
    option=tables.PROCESSES,
  )
  # TFDS would do it here, and compressing takes as long as reading.
  features.encode_example = lambda example: example
  try:
    for result in results:
      yield result
      shown.update()
      if shown.n == shown.total:
        shown.close()
  finally:
    del features.encode_example
    results.close()


def _encoded(function, features, job, item):
  for name, example, *more in function(job, item):
    yield name, features.encode_example(example), *more
