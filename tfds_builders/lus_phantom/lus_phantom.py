"""The embedded data set: simulated lung ultrasound with truth, evidence and painted confidence."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from lus_jax.errors import UserError
from lus_jax.splits import SPLITS
from tfds_builders import records
from tfds_builders.lus_phantom import annotator, cohort, simulator, variety

KINDS = ("frames", "videos")
# Fields that a data set's name tells only where they are not as they are by default: without them
# it is the data set that it was before there were any.
OPTIONS = ("variety", "stable_patients", "readmission_accuracy")


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
  """What is simulated; `phantom_config` makes one with a name of its own.

  Attributes:
    kind: 'frames' (the first frame of each video, with painted confidence) or 'videos'.
    height: H of the pictures, in pixels; the anatomy is the same at every size.
    width: W of the pictures, in pixels.
    n_frames: frames of a video.
    n_patients: at least 3.
    setting: one of `annotator.SETTINGS`, or `true_from_T`.
    seed: a non-negative integer.
    missing_views: chance that a view was not recorded.
    level_shares: shares of strokes at the brush levels `annotator.LEVELS`: six numbers, or one row
      of six per class.
    raters: whether every frame is painted by all experts, not by its patient's alone ('frames').
    variety: some of `variety.OPTIONS`.
    stable_patients: share of patients whose lungs and S/F ratio are the same on all days.
    readmission_accuracy: of the best attainable reader, in (.5, 1]; 0: readmission follows from the
      lungs as it does by default. See `cohort.patient_videos`.
  """

  kind: str = "frames"
  height: int = 256
  width: int = 256
  n_frames: int = 16
  n_patients: int = 42
  setting: str = "default"
  seed: int = 0
  missing_views: float = 0.25
  level_shares: tuple = annotator.LEVEL_SHARES
  raters: bool = False
  variety: tuple = ()
  stable_patients: float = 0.0
  readmission_accuracy: float = 0.0

  def __post_init__(self):
    annotator.reading(self.setting)
    annotator.level_shares(self.level_shares, len(simulator.CLASSES))
    if self.kind not in KINDS:
      raise UserError(f"kind {self.kind!r} of lus_phantom is unknown: choose frames or videos.")
    for name, least in (("height", 8), ("width", 8), ("n_frames", 1), ("n_patients", 3)):
      if getattr(self, name) < least:
        raise UserError(
          f"{name} of lus_phantom must be at least {least}, but is {getattr(self, name)}."
        )
    if self.seed < 0 or not 0 <= self.missing_views < 1:
      raise UserError(
        "lus_phantom needs seed >= 0 and 0 <= missing_views < 1, but they are "
        f"{self.seed} and {self.missing_views}."
      )
    unknown = [name for name in self.variety if name not in variety.OPTIONS]
    if isinstance(self.variety, str) or unknown or len(set(self.variety)) < len(self.variety):
      raise UserError(
        f"variety of lus_phantom must name some of {', '.join(variety.OPTIONS)}, each once, but is "
        f"{self.variety!r}."
      )
    if not 0 <= self.stable_patients <= 1:
      raise UserError(
        "stable_patients of lus_phantom must be a share from 0 to 1, but is "
        f"{self.stable_patients}."
      )
    if self.readmission_accuracy != 0 and not 0.5 < self.readmission_accuracy <= 1:
      raise UserError(
        "readmission_accuracy of lus_phantom must be above 0.5 and at most 1 (or 0: as by "
        f"default), but is {self.readmission_accuracy}."
      )
    if self.readmission_accuracy and self.setting == "null":
      raise UserError(
        "readmission_accuracy of lus_phantom makes readmission follow from the lungs, which "
        "setting 'null' excludes; use another setting, or leave it out."
      )
    if self.raters and self.kind != "frames":
      raise UserError(
        f"raters of lus_phantom is True, which kind {self.kind!r} does not know: painted are "
        "frames only; leave raters out."
      )


def phantom_config(kind, height, width, **settings):
  """A `PhantomConfig` whose name changes with any setting, so that no two share a directory.

  Args:
    kind: 'frames' or 'videos'.
    height: H in pixels.
    width: W in pixels.
    settings: other fields of `PhantomConfig`.

  Raises:
    UserError: a setting is unknown or out of range.
  """
  fields = {field.name: field.default for field in dataclasses.fields(PhantomConfig)}
  known = set(fields) - {"name", "version", "release_notes", "supported_versions"}
  known -= {"description", "tags", "kind", "height", "width"}
  for name in settings:
    if name not in known:
      raise UserError(
        f"setting {name!r} of lus_phantom is unknown: choose from {', '.join(sorted(known))}."
      )
  full = {name: fields[name] for name in sorted(known)} | settings
  if "variety" in settings and not isinstance(settings["variety"], str):
    # Their order makes no other data set.
    full["variety"] = settings["variety"] = tuple(sorted(settings["variety"]))
  for name in OPTIONS:
    if full[name] == fields[name]:
      del full[name]
  return PhantomConfig(
    name=records.config_name(kind, height, width, **full),
    kind=kind,
    height=height,
    width=width,
    **settings,
  )


def simulate(video, config):
  """Renders and annotates one video.

  Args:
    video: a `cohort.Video`.
    config: a `PhantomConfig`; 'frames' renders one frame, with the pixels of a video's first.

  Returns:
    A dict: `frames` [N, H, W, 1], `truth` and `evidence` [N, H, W, K], `confidence` [H, W, K] of
    the first frame and, with `config.raters`, `raters` [R, H, W, K] of the same, all uint8.
  """
  wall = simulator.sample_wall(cohort.generator(config.seed, "wall", video.patient))
  rng = cohort.generator(config.seed, "scene", video.name)
  reading = annotator.reading(config.setting)
  scene = simulator.sample_scene(
    rng, wall=wall, congestion=video.congestion, imitators=reading.imitators
  )
  options = {"seed": config.seed, "options": config.variety}
  probe = variety.probe_of(video, **options)
  scene = variety.varied(scene, video, **options)
  rendered = simulator.render(
    scene,
    height=config.height,
    width=config.width,
    rng=cohort.generator(config.seed, "speckle", video.name),
    n_frames=1 if config.kind == "frames" else config.n_frames,
    probe=probe,
  )
  images, truth = rendered["image"], rendered["truth"]
  evidence = np.stack(
    [simulator.evidence(*pair, probe=probe) for pair in zip(images, truth, strict=True)]
  )
  decoys = rendered["decoys"][0]

  def paint(expert, *path):
    return annotator.annotate(
      truth=truth[0],
      evidence=evidence[0],
      decoys=decoys,
      decoy_evidence=simulator.evidence(images[0], decoys, probe=probe),
      style=annotator.STYLES[expert],
      reading=reading,
      shares=annotator.level_shares(config.level_shares, len(simulator.CLASSES)),
      rng=cohort.generator(config.seed, "annotator", video.name, *path),
      mm_per_pixel=(10 * probe.depth_cm / config.height, 10 * probe.width_cm / config.width),
    )

  arrays = {"frames": images[..., None], "truth": truth * np.uint8(255), "evidence": evidence}
  if not config.raters:
    return arrays | {"confidence": paint(video.annotator)}
  raters = np.stack([paint(expert, expert) for expert in annotator.STYLES])
  confidence = records.soft_label(raters, np.ones(len(raters), bool))
  return arrays | {"raters": raters, "confidence": confidence}


class LusPhantom(records.Builder):
  """Simulated lung ultrasound of a linear probe: no patient was ever near it."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    PhantomConfig(name=kind, description=f"{kind} of 256 x 256 pixels", kind=kind) for kind in KINDS
  ]

  def _info(self):
    config = self.builder_config
    size = (config.height, config.width, len(simulator.CLASSES))
    experts = list(annotator.STYLES)
    if config.raters:
      features = records.rater_features(*size, len(experts), truth=True)
    elif config.kind == "frames":
      features = records.frame_features(*size, truth=True)
    else:
      features = records.video_features(*size, truth=True)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
      metadata=records.metadata(
        classes=simulator.CLASSES,
        thin=simulator.THIN,
        licence="Apache-2.0",
        simulated=True,
        annotators=experts,
        setting=config.setting,
        seed=config.seed,
        **({"raters": experts, "persons": experts} if config.raters else {}),
        **_more_metadata(config),
      ),
    )

  def _split_generators(self, dl_manager):
    config = self.builder_config
    split_of = records.assign_splits(cohort.patient_names(config.n_patients), config.seed)
    videos = {split: [] for split in SPLITS}
    for patient, split in split_of.items():
      videos[split] += cohort.videos_of(patient, config)
    shown = records.bar(sum(map(len, videos.values())), config.kind[:-1])
    return {split: self._generate_examples(videos[split], shown) for split in SPLITS}

  def _generate_examples(self, videos, shown):
    return records.made(self, _video, self.builder_config, videos, shown)


def _more_metadata(config):
  """What the data set says of fields that are not as they are by default."""
  found = {}
  if config.variety:
    found["variety"] = list(config.variety)
  if config.stable_patients:
    found["stable_patients"] = config.stable_patients
  if best := config.readmission_accuracy:
    found["best_accuracy"] = {"readmitted_30d": best}
    found["notes"] = [
      f"readmission follows from the lungs of the first two days, but is turned round in "
      f"{1 - best:.3g} of the patients at random: who knows the lungs is right in {best:.3g} of "
      "them on average, and nobody in more."
    ]
  return found


def _video(config, video):
  """Yields name and example of a video, or of its first frame."""
  yield video.name, _example(video, simulate(video, config), config)


def _example(video, arrays, config):
  example = {
    "video": video.name,
    "patient": video.patient,
    "view": video.view,
    "day": video.day,
    "valid_box": np.array([0, 0, config.height, config.width], np.int32),
  }
  if config.kind == "videos":
    return example | {
      "frames": arrays["frames"],
      "truth": arrays["truth"],
      "evidence": arrays["evidence"],
      "sf_ratio": video.sf_ratio,
      "readmitted_30d": video.readmitted_30d,
      "frames_per_second": simulator.Probe().frames_per_second,
    }
  example |= {
    "image": arrays["frames"][0],
    "confidence": arrays["confidence"],
    "labelled": np.ones(len(simulator.CLASSES), bool),
    "annotator": video.annotator,
    "frame": 0,
    "truth": arrays["truth"][0],
    "evidence": arrays["evidence"][0],
  }
  if config.raters:
    drawn = np.ones(len(arrays["raters"]), bool)
    example |= {"annotator": "", "raters": arrays["raters"], "drawn": drawn}
  return example
