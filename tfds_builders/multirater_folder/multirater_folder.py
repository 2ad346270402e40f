"""TFDS builder for images that several raters drew."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from lus_jax.errors import UserError
from lus_jax.splits import SPLITS
from tfds_builders import mask_check, records
from tfds_builders.multirater_folder import drawn, manifest, pictures


@dataclasses.dataclass(eq=False, kw_only=True)
class MultiraterConfig(tfds.core.BuilderConfig):
  """What to build; made by `multirater_config`.

  Attributes:
    folder: the folder, checked.
    height: H, in pixels.
    width: W, in pixels.
    split_unit: 'patient' or 'frame'.
    splits: the images of each split.
  """

  # TFDS logs the config: without these two, which hold every image.
  folder: manifest.Folder = dataclasses.field(repr=False)
  height: int
  width: int
  split_unit: str
  splits: dict[str, tuple[manifest.Image, ...]] = dataclasses.field(repr=False)


def assign_splits(folder, split_unit, seed):
  """Says which images of a `manifest.Folder` are in each split; see `multirater_config`.

  Returns:
    Tuples of images by split.

  Raises:
    UserError: a split would be empty.
  """
  unit = {
    image.name: image.name if split_unit == "frame" else image.patient for image in folder.images
  }
  split_of = records.split_of_units(
    unit.values(),
    {image.patient: image.split for image in folder.images},
    split_unit=split_unit,
    seed=seed,
    table=folder.directory / "patients.csv",
    noun="images",
  )
  return {
    name: tuple(image for image in folder.images if split_of[unit[image.name]] == name)
    for name in SPLITS
  }


def multirater_config(kind, height, width, *, directory, split_unit="patient", seed=0):
  """Checks a folder and says what to build from it; writes nothing.

  The name holds a fingerprint of the folder, so that changed data are built anew.

  Args:
    kind: 'frames'.
    height: H the images are letterboxed to, in pixels.
    width: W the images are letterboxed to, in pixels.
    directory: the folder (see `manifest`).
    split_unit: what is split by seed: 'patient', or 'frame' (images; not an independent test).
    seed: of the split; the column `split` of patients.csv comes first.

  Returns:
    A `MultiraterConfig` for `MultiraterFolder(config=..., data_dir=...)`.

  Raises:
    UserError: an argument or anything in the folder is wrong.
  """
  if kind != "frames":
    raise UserError(f"multirater_folder holds drawn images, no {kind}; use lus_folder for videos.")
  if split_unit not in records.SPLIT_UNITS:
    raise UserError(
      f"split_unit {split_unit!r} is unknown; use one of {', '.join(records.SPLIT_UNITS)}."
    )
  if min(height, width) < 1:
    raise UserError(f"The size {height} x {width} is empty; use at least 1 x 1 pixels.")
  folder = manifest.read_folder(directory)
  splits = assign_splits(folder, split_unit, seed)
  settings = {"split_unit": split_unit, "seed": seed, "fingerprint": folder.fingerprint}
  if folder.has_scan_areas:
    # Older versions did not know this column.
    settings["scan_areas"] = True
  return MultiraterConfig(
    name=records.config_name(kind, height, width, **settings),
    description=f"{folder.name}: {len(folder.raters)} raters at {height} x {width}",
    folder=folder,
    height=height,
    width=width,
    split_unit=split_unit,
    splits=splits,
  )


class MultiraterFolder(records.Builder):
  """A folder of images and several raters' masks as a TFDS data set of letterboxed frames."""

  # 1.2.0: masks that change their size keep the nearest values, none in between.
  VERSION = tfds.core.Version("1.2.0")

  def _info(self):
    config, folder = self.builder_config, self.builder_config.folder
    counts = {
      name: {"patients": len({image.patient for image in images}), "frames": len(images)}
      for name, images in config.splits.items()
    }
    features = records.rater_features(
      config.height, config.width, len(folder.classes), len(folder.raters)
    )
    if folder.has_scan_areas:
      features |= records.area_features()
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
        raters=list(folder.raters),
        persons=list(folder.persons),
        soft=folder.soft,
        patients_are_unknown=folder.patients_are_unknown,
        images=folder.more,
        **({"has_scan_areas": True} if folder.has_scan_areas else {}),
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    masks = drawn.mask_check(self.builder_config.folder)
    shown = records.bar(len(self.builder_config.folder.images), "image")
    return {
      name: self._generate_examples(images, masks, shown)
      for name, images in self.builder_config.splits.items()
    }

  def _generate_examples(self, images, masks, shown):
    """Yields examples; `masks` collects what is in the masks of all splits."""
    config = self.builder_config
    job = Job(
      dataclasses.replace(config.folder, images=(), more={}),
      has_scan_areas=config.folder.has_scan_areas,
      height=config.height,
      width=config.width,
    )
    for name, example, found in records.made(self, _frame, job, images, shown):
      for mask in found:
        masks.count(mask)
      yield name, example
    # TFDS writes the splits in their order.
    if images is config.splits[SPLITS[-1]]:
      # Whoever sees results of the set has to know.
      self.info.metadata["notes"] = masks.warn()


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker has to know of the set; its `folder` has no images."""

  folder: manifest.Folder
  has_scan_areas: bool
  height: int
  width: int


def _frame(job, image):
  """Yields name, example and the `mask_check.Mask`s of an image."""
  folder, found = job.folder, []
  pixels = pictures.read_image(image.path, axes=folder.nifti_axes, window=folder.intensity_window)
  areas = records.area_of(image.scan_area, *pixels.shape) if job.has_scan_areas else {}
  pixels, box = records.fitted(job, pixels, image.scan_area)
  raters = np.zeros((len(folder.raters), job.height, job.width, len(folder.classes)), np.uint8)
  for rater, paths in image.masks.items():
    r = folder.raters.index(rater)
    for name, mask in drawn.masks(folder, paths).items():
      k = folder.classes.index(name)
      area, where = image.scan_area, " (see patients.csv)"
      raters[r, ..., k], _ = records.fitted(job, 255 * mask, area, nearest=True)
      mask_check.warn_of_outside(paths[name], mask, area, where)
      mask_check.warn_of_lost(paths[name], mask, area, raters[r, ..., k], where)
      may_be_inverted = drawn.may_be_inverted(folder, paths[name])
      found.append(mask_check.measure(mask, name, rater, may_be_inverted=may_be_inverted))
  has_drawn = np.array([rater in image.masks for rater in folder.raters])
  example = {
    "image": pixels[..., None],
    "confidence": records.soft_label(raters, has_drawn),
    "labelled": np.ones(len(folder.classes), bool),
    "annotator": "",
    "frame": 0,
    "raters": raters,
    "drawn": has_drawn,
    "video": image.name,
    "patient": image.patient,
    "view": "",
    "day": -1,
    "valid_box": np.array(box, np.int32),
    **areas,
  }
  yield image.name, example, found
