"""TFDS builder for users' own data: frames with confidence masks, or whole videos."""

import dataclasses
import itertools
import math
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers
from lus_jax.splits import SPLITS
from tfds_builders import mask_check, records
from tfds_builders.lus_folder import manifest, painted

KINDS = ("frames", "videos")


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
  """What to build; made by `folder_config`.

  Attributes:
    folder: the folder, checked.
    kind: 'frames' or 'videos'.
    height: H, in pixels.
    width: W, in pixels.
    split_unit: 'patient' or 'frame'.
    splits: the rows (labels for frames, videos for videos) of each split.
  """

  # TFDS logs the config: without these two, which hold every row.
  folder: manifest.Folder = dataclasses.field(repr=False)
  kind: str
  height: int
  width: int
  split_unit: str
  splits: dict[str, tuple[manifest.Label | manifest.Video, ...]] = dataclasses.field(repr=False)


def _patient(row):
  return row.video.patient if isinstance(row, manifest.Label) else row.patient


def assign_splits(folder, kind, split_unit, seed):
  """Says which rows of a `manifest.Folder` are in each split; see `folder_config` for the rest.

  Returns:
    Tuples of labels (kind 'frames') or videos by split.

  Raises:
    UserError: a split would be empty.
  """
  table = folder.directory / "manifest.csv"

  def unit(row):
    return (row.video.name, row.frame) if split_unit == "frame" else _patient(row)

  # Patients are split over the whole folder, so that its frames and videos are split alike.
  assigned = {
    unit(row): None for row in (folder.labels if split_unit == "frame" else folder.videos)
  }
  assigned = records.split_of_units(
    assigned,
    {video.patient: video.split for video in folder.videos},
    split_unit=split_unit,
    seed=seed,
    table=table,
    noun="frames",
  )
  rows = folder.labels if kind == "frames" else folder.videos
  splits = {name: tuple(r for r in rows if assigned[unit(r)] == name) for name in SPLITS}
  for name, members in splits.items():
    if not members:
      raise UserError(
        f"{folder.directory / 'labels.csv'}: no labelled frame belongs to a patient of the split "
        f"{name!r}; label more patients, fill the column split of manifest.csv, or change the seed "
        f"({seed})."
      )
  return splits


def folder_config(kind, height, width, *, directory, split_unit="patient", seed=0, num_processes=0):
  """Checks a folder and says what to build from it; writes nothing.

  The name holds a fingerprint of the folder, so that changed data are built anew.

  Args:
    kind: 'frames' (labelled frames with confidences) or 'videos'.
    height: H the frames are letterboxed to, in pixels.
    width: W the frames are letterboxed to, in pixels.
    directory: the folder (see `manifest`).
    split_unit: what is split by seed: 'patient', or 'frame' (frames only; not an independent
      test). The column `split` of manifest.csv comes first.
    seed: of the split.
    num_processes: that read headers of videos, as in `pool.ordered`.

  Returns:
    A `FolderConfig` for `LusFolder(config=..., data_dir=...)`.

  Raises:
    UserError: an argument or anything in the folder is wrong.
  """
  for name, value, choices in (
    ("kind", kind, KINDS),
    ("split_unit", split_unit, records.SPLIT_UNITS),
  ):
    if value not in choices:
      raise UserError(f"{name} {value!r} is unknown; use one of {', '.join(choices)}.")
  if min(height, width) < 1:
    raise UserError(f"The size {height} x {width} is empty; use at least 1 x 1 pixels.")
  if kind == "videos" and split_unit == "frame":
    raise UserError("Videos cannot be split by frame; use split_unit='patient'.")
  folder = manifest.read_folder(directory, labels=kind == "frames", num_processes=num_processes)
  splits = assign_splits(folder, kind, split_unit, seed)
  settings = {"split_unit": split_unit, "seed": seed, "fingerprint": folder.fingerprint}
  if folder.has_scan_areas:
    # Older versions did not know this column.
    settings["scan_areas"] = True
  return FolderConfig(
    name=records.config_name(kind, height, width, **settings),
    description=f"{folder.name}: {kind} at {height} x {width}",
    folder=folder,
    kind=kind,
    height=height,
    width=width,
    split_unit=split_unit,
    splits=splits,
  )


class LusFolder(records.Builder):
  """A user's folder as a TFDS data set of letterboxed frames or videos."""

  # 1.2.0: masks that change their size keep the nearest confidences, none in between.
  VERSION = tfds.core.Version("1.2.0")

  def _info(self):
    config, folder = self.builder_config, self.builder_config.folder
    shape = config.height, config.width, len(folder.classes)
    if config.kind == "videos":
      features = records.video_features(*shape)
    else:
      features = records.frame_features(*shape, ignore=folder.has_ignore)
    if folder.has_scan_areas:
      features |= records.area_features()
    if folder.has_provenance:
      features |= records.work_features(len(folder.classes))
    counts = {
      name: {"patients": len({_patient(row) for row in rows}), config.kind: len(rows)}
      for name, rows in config.splits.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=config.description,
      features=tfds.features.FeaturesDict(features),
      license=folder.licence,
      metadata=records.metadata(
        classes=folder.classes,
        thin=folder.thin,
        licence=folder.licence,
        split_unit=config.split_unit,
        name=folder.name,
        counts=counts,
        annotators=sorted({label.annotator for label in folder.labels}),
        binary=config.kind == "frames",
        largest_confidence=0.0,
        patients_are_unknown=folder.patients_are_unknown,
        missing_class="unlabelled" if folder.missing_class_is_unlabelled else "absent",
        patients={video.patient: folder.patients.get(video.patient, {}) for video in folder.videos},
        **({"has_ignore": True} if folder.has_ignore else {}),
        **({"has_scan_areas": True} if folder.has_scan_areas else {}),
        **({"has_provenance": True} if folder.has_provenance else {}),
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits, folder = self.builder_config.splits, self.builder_config.folder
    masks = painted.mask_check(folder)
    shown = records.bar(sum(map(len, splits.values())), self.builder_config.kind[:-1])
    return {
      name: self._generate_examples(name, rows, masks, shown) for name, rows in splits.items()
    }

  def _generate_examples(self, split, rows, masks, shown):
    config, folder = self.builder_config, self.builder_config.folder
    job = Job(
      directory=folder.directory,
      classes=folder.classes,
      missing_class_is_unlabelled=folder.missing_class_is_unlabelled,
      confidence_maximum=folder.confidence_maximum,
      has_ignore=folder.has_ignore,
      has_scan_areas=folder.has_scan_areas,
      has_provenance=folder.has_provenance,
      height=config.height,
      width=config.width,
    )
    make, items = (_frames, _by_video(rows)) if config.kind == "frames" else (_video, rows)
    for name, example, found in records.made(self, make, job, items, shown):
      for mask in found:
        masks.count(mask)
      yield name, example
    # TFDS writes the splits in their order, and the metadata after them.
    if config.kind == "frames" and split == SPLITS[-1]:
      # Whoever sees results of the set has to know.
      self.info.metadata.update(
        notes=masks.warn(), binary=masks.binary, largest_confidence=masks.largest
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a worker has to know of the set: of `manifest.Folder` and `FolderConfig`, without rows."""

  directory: pathlib.Path
  classes: tuple[str, ...]
  missing_class_is_unlabelled: bool
  confidence_maximum: float | None
  has_ignore: bool
  has_scan_areas: bool
  has_provenance: bool
  height: int
  width: int


def _confidence(job, label, name, found):
  """Returns the letterboxed confidence [H, W] uint8 of a class, and whether it is labelled."""
  if name not in label.masks:
    shape = job.height, job.width
    return np.zeros(shape, np.uint8), not job.missing_class_is_unlabelled
  mask = painted.confidence(label.masks[name], job.confidence_maximum)
  found.append(mask_check.measure(mask, name, label.annotator))
  where = f" (labels.csv row {label.row}, manifest.csv row {label.video.row})"
  mask_check.warn_of_outside(label.masks[name], mask, label.video.scan_area, where)
  area = label.video.scan_area
  fitted, _ = records.fitted(job, 255 * mask, area, nearest=True)
  mask_check.warn_of_lost(label.masks[name], mask, area, fitted, where)
  return fitted, True


def _ignored(job, label):
  """Returns what does not count, [H, W, 1] uint8: 1 where any of it was mixed in."""
  ignored = painted.ignored(label)
  if ignored is None:
    return np.zeros((job.height, job.width, 1), np.uint8)
  mask = np.float32(ignored)
  # Shrinking looks at few of the pixels; none of those between may be lost.
  mask = (
    records.fitted(job, 255 * mask, label.video.scan_area)[0]
    | records.fitted(job, 255 * mask, label.video.scan_area, nearest=True)[0]
  )
  return (mask > 0).astype(np.uint8)[..., None]


def _by_video(labels):
  """Yields the labels of each video, by frame, so that it is read once."""
  rising = sorted(labels, key=lambda label: (label.video.row, label.frame))
  for _, group in itertools.groupby(rising, key=lambda label: label.video.row):
    yield list(group)


def _frames(job, group):
  """Yields name, example and the `mask_check.Mask`s of each labelled frame of a video."""
  video = group[0].video
  by_frame = {
    frame: list(labels) for frame, labels in itertools.groupby(group, key=lambda one: one.frame)
  }
  images = readers.stream(video.media, list(by_frame))
  for image, labels in zip(images, by_frame.values(), strict=True):
    fitted, box = records.fitted(job, image, video.scan_area)
    for label in labels:
      found = []
      confidences = [_confidence(job, label, name, found) for name in job.classes]
      confidence = np.stack([confidence for confidence, _ in confidences], axis=-1)
      ignored = {}
      if job.has_ignore:
        ignored = {"ignore": _ignored(job, label)}
        confidence[ignored["ignore"][..., 0] > 0] = 0
      if not confidence.any():
        table = job.directory / "labels.csv"
        notices.warn("%s: every confidence is 0; kept.", f"{table} row {label.row}")
      example = {
        "image": fitted[..., None],
        "confidence": confidence,
        "labelled": np.array([labelled for _, labelled in confidences]),
        "annotator": label.annotator,
        "frame": label.frame,
        **ignored,
        **(_work(job, label) if job.has_provenance else {}),
        **_provenance(job, video, box),
      }
      yield f"{video.name}#{label.frame}#{label.annotator}", example, found


def _work(job, label):
  work = label.work or manifest.Work("", math.nan, "", "", "", (), (), False)
  return {
    "prelabelled": np.array([name in work.prelabelled for name in job.classes]),
    "touched": np.array([name in work.touched for name in job.classes]),
    "prelabel": work.prelabel,
    "consensus": label.is_consensus,
    "seconds": work.seconds,
    "time": work.time,
    "tool": work.tool,
    "protocol": work.protocol,
  }


def _video(job, video):
  """Yields name, example and no masks of a video."""
  n = video.media.n_frames
  readers.check_total(video.media.path, n, job.height, job.width)
  frames = np.empty((n, job.height, job.width, 1), np.uint8)
  for i, image in zip(range(n), readers.stream(video.media), strict=True):
    frames[i, ..., 0], box = records.fitted(job, image, video.scan_area)
  example = {
    "frames": frames,
    "sf_ratio": video.sf_ratio,
    "readmitted_30d": video.readmitted_30d,
    "frames_per_second": video.media.frames_per_second,
    **_provenance(job, video, box),
  }
  yield video.name, example, ()


def _provenance(job, video, box):
  areas = {}
  if job.has_scan_areas:
    areas = records.area_of(video.scan_area, video.media.height, video.media.width)
  return {
    "video": video.name,
    "patient": video.patient,
    "view": video.view,
    "day": video.day,
    "valid_box": np.array(box, np.int32),
    **areas,
  }
