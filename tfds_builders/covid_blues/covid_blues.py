"""TFDS builder for COVID-BLUES, read from the folder in which its authors publish it.

    DIR/lus_videos/patient_<ID>_<VIEW>[_2].mp4    _2: a second recording of the same view
    DIR/severity.csv                              a row a video
    DIR/clinical_variables.csv                    a row a patient

Any subset of the videos will do. An empty cell or a negative number is unknown and stays unknown.
Source: Wiedemann et al., IEEE JBHI 29(9), 2025, doi 10.1109/JBHI.2025.3543686.
"""

import collections
import dataclasses
import math
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lus_jax import problems
from lus_jax.errors import UserError
from lus_jax.media import readers
from lus_jax.media.letterbox import letterbox
from lus_jax.splits import SPLITS
from tfds_builders import records, tables
from tfds_builders.lus_folder.manifest import VIEWS

LICENCE = "CC BY-NC-ND 4.0"
ROOM_AIR = 0.21  # FiO2
# Nobody lives with a saturation below, in percent; a share of it is at most 1.
MIN_SATURATION = 20
SEVERITY_COLUMNS = ("video_file", "Severity Score", "A-lines", "B-lines")
CLINICAL_COLUMNS = (
  "patient_id",
  "cov_test",
  "oxygen_saturation_without_ox",
  "outcome_status_d7",
  "outcome_status_d30",
)
NOTES = (
  "recorded with a convex probe and without masks: segmentation comes from another data set and "
  "cannot be checked here.",
  "the S/F ratio is the patient's saturation on room air over .21: one figure for all views.",
  f"licence {LICENCE}: no frame of it, nor anything made from one, may be passed on.",
)
_VIDEO = re.compile(rf"patient_(\d+)_({'|'.join(VIEWS)})(_[2-9])?")
_MEND = (
  "get COVID-BLUES from https://github.com/NinaWie/COVID-BLUES and name its folder (with "
  "severity.csv, clinical_variables.csv and lus_videos/) with --config.data.dir=DIR"
)


@dataclasses.dataclass(frozen=True)
class Video:
  """A video's file, and what is stored of it besides the pixels."""

  media: readers.Media
  features: dict


@dataclasses.dataclass(eq=False, kw_only=True)
class CovidBluesConfig(tfds.core.BuilderConfig):
  """What to build; made by `covid_blues_config`.

  Attributes:
    height: H, in pixels.
    width: W, in pixels.
    splits: the videos of each split, in the order of their names.
    oddities: names of what is unusual or left out, by what is unusual about it.
  """

  height: int
  width: int
  # TFDS logs the config: without these two, which hold every row.
  splits: dict[str, tuple[Video, ...]] = dataclasses.field(repr=False)
  oddities: dict[str, list[str]] = dataclasses.field(repr=False)


def _patient_name(text):
  """A patient's number without what tables and file names do to it: 7 for 007 and 7.0."""
  return re.sub(r"^0+(?=\d)", "", re.sub(r"\.0+$", "", text))


def _read_table(path, columns):
  """Reads `tables.Row`s of untouched cells, by the text in the first of the columns."""
  header, lines, decimal_comma = tables.read_lines(path, tables.read_text(path, _MEND), columns)
  missing = [column for column in columns if column not in header]
  if missing:
    raise UserError(f"{path} lacks the column(s) {', '.join(missing)}; {_MEND}.")
  rows = {}
  for number, line in lines:
    if not any(cell.strip() for cell in line):
      continue
    cells = dict.fromkeys(header, "") | dict(zip(header, line, strict=False))
    row = tables.Row(path, number, cells, decimal_comma=decimal_comma)
    key = cells[columns[0]].strip()
    if columns[0] == "patient_id":
      key = _patient_name(key)
    if key in rows:
      problems.tell(row.error(f"{columns[0]} {tables.shown(key)} stands twice; remove one row."))
    rows.setdefault(key, row)
  return rows


def _number(key, row, column, high, *, whole=False):
  text = row.cells[column].strip()
  value = tables.parse_number(text or "nan", float, decimal_comma=row.decimal_comma)
  is_number = not math.isnan(value) or text.casefold() in ("", "nan")
  if not is_number or value > high or (whole and value >= 0 and value % 1):
    raise UserError(
      f"{row.path}, {key}: {column} {tables.shown(text)} is no {'whole ' * whole}number from 0 to "
      f"{high}; mend the cell, or leave it empty if it is unknown."
    )
  return value if value >= 0 else math.nan


def _code(key, row, column, high):
  value = _number(key, row, column, high, whole=True)
  return -1 if math.isnan(value) else int(value)


def _yes_or_no(key, row, column):
  text = row.cells[column].strip().casefold()
  if text not in ("yes", "no", ""):
    raise UserError(
      f"{row.path}, {key}: {column} {tables.shown(text)} is neither yes nor no; mend the cell."
    )
  return {"yes": 1, "no": 0, "": -1}[text]


def _saturation(patient, row):
  column = "oxygen_saturation_without_ox"
  value = _number(patient, row, column, 100)
  if value < MIN_SATURATION:
    raise row.error(
      f"{column} {row.cells[column].strip()} of patient {patient} is no plausible percentage"
      f"{' but a share' * (value <= 1)}; write 97 for 97 %, or leave it empty if it is unknown."
    )
  return value


def _patient_features(patient, row):
  return {
    "patient": patient,
    "day": 1,
    "sf_ratio": _saturation(patient, row) / ROOM_AIR,
    "readmitted_30d": -1,
    "cov_test": _code(patient, row, "cov_test", 1),
    "outcome_d7": _code(patient, row, "outcome_status_d7", 3),
    "outcome_d30": _code(patient, row, "outcome_status_d30", 3),
  }


def _severity_features(name, row):
  if row is None:
    return {"severity": math.nan, "a_lines": -1, "b_lines": -1}
  return {
    "severity": _number(name, row, "Severity Score", 3),
    "a_lines": _yes_or_no(name, row, "A-lines"),
    "b_lines": _yes_or_no(name, row, "B-lines"),
  }


def _read_videos(directory, num_processes):
  """Returns the videos in the order of their names, and what is odd about the folder."""
  clinical_path = directory / "clinical_variables.csv"
  clinical = _read_table(clinical_path, CLINICAL_COLUMNS)
  severity = _read_table(directory / "severity.csv", SEVERITY_COLUMNS)
  folder = directory / "lus_videos"
  files = tables.visible(folder) if folder.is_dir() else []
  recordings = {
    path: match
    for path in files
    if path.suffix.lower() == ".mp4" and (match := _VIDEO.fullmatch(path.stem))
  }
  if not recordings:
    raise UserError(f"{folder} holds no video called patient_<ID>_<VIEW>.mp4; {_MEND}.")
  tables.refuse_same_files(recordings)
  patients, videos, first = {}, [], {}
  headers = readers.probe_all(recordings, num_processes=num_processes, option=tables.PROCESSES)
  for (path, match), header in zip(recordings.items(), headers, strict=True):
    with problems.apart():
      patient, view, recording = match.groups()
      patient = _patient_name(patient)
      other = first.setdefault((patient, view, recording), path)
      if other != path:
        raise UserError(f"{path} and {other.name} are the same recording; remove one of them.")
      if patient not in patients:
        if patient not in clinical:
          raise UserError(
            f"{clinical_path} has no row for patient {patient}, who has the video {path.name}; "
            f"{_MEND}."
          )
        patients[patient] = _patient_features(patient, clinical[patient])
      if isinstance(header, UserError):
        raise header
      features = {
        "video": path.stem,
        "view": view,
        "frames_per_second": header.frames_per_second,
        **patients[patient],
        **_severity_features(path.stem, severity.get(path.stem)),
      }
      videos.append(Video(header, features))
  return videos, _oddities(videos, patients, recordings, files, clinical, severity)


def _oddities(videos, patients, recordings, files, clinical, severity):
  sizes = collections.Counter((video.media.height, video.media.width) for video in videos)
  views = {(video.features["patient"], video.features["view"]) for video in videos}

  def video_names(is_odd):
    return [video.features["video"] for video in videos if is_odd(video)]

  def patients_without(feature):
    return [name for name, features in patients.items() if not features[feature] >= 0]

  return {
    "files that are no video of the set": [p.name for p in files if p not in recordings],
    "second recordings of a view": [path.stem for path, match in recordings.items() if match[3]],
    "views not recorded": [
      f"patient_{patient}_{view}"
      for patient in patients
      for view in VIEWS
      if (patient, view) not in views
    ],
    "videos shorter than a second": video_names(
      lambda video: video.media.n_frames < video.media.frames_per_second
    ),
    "videos of another frame size": video_names(
      lambda video: (video.media.height, video.media.width) != sizes.most_common(1)[0][0]
    ),
    "videos without a severity": video_names(lambda video: math.isnan(video.features["severity"])),
    "rows of severity.csv without a video": sorted(
      severity.keys() - {video.features["video"] for video in videos}
    ),
    "rows of severity.csv with stray blanks": [
      name
      for name, row in severity.items()
      if any(row.cells[column] != row.cells[column].strip() for column in SEVERITY_COLUMNS)
    ],
    "patients without videos": sorted(clinical.keys() - patients.keys()),
    "patients without a saturation": patients_without("sf_ratio"),
    "patients without a COVID test": patients_without("cov_test"),
    "patients without an outcome at day 7": patients_without("outcome_d7"),
    "patients without an outcome at day 30": patients_without("outcome_d30"),
  }


@dataclasses.dataclass(frozen=True)
class Folder:
  """A COVID-BLUES folder.

  Attributes:
    videos: in the order of their names.
    oddities: names of what is unusual or left out, by what is unusual about it.
    fingerprint: changes whenever a table or a video does.
  """

  videos: tuple[Video, ...]
  oddities: dict[str, list[str]]
  fingerprint: str


def read_folder(directory, *, num_processes=0):
  """Reads and checks a COVID-BLUES folder's tables and the headers of its videos.

  Args:
    directory: the folder, as published.
    num_processes: that read headers of videos, as in `pool.ordered`.

  Returns:
    A `Folder`.

  Raises:
    UserError: the folder is not COVID-BLUES or contradicts itself.
  """
  if not directory:
    raise UserError(f"config.data.dir is empty; {_MEND}.")
  directory = pathlib.Path(directory).expanduser()
  if not directory.is_dir():
    raise UserError(f"The folder {directory} does not exist; {_MEND}.")
  videos, oddities = _read_videos(directory, num_processes)
  digests = tables.contents(directory, (video.media.path for video in videos))
  tables.warn_of_copies(
    [(v.features["video"], v.features["patient"], v.media.files) for v in videos],
    digests,
    directory / "lus_videos",
  )
  names = ("severity.csv", "clinical_variables.csv")
  return Folder(tuple(videos), oddities, tables.fingerprint(directory, names, digests))


def assign_splits(folder, seed):
  """Says which videos of a `Folder` are in each split, by patient.

  Returns:
    Tuples of videos by split.

  Raises:
    UserError: there are too few patients.
  """
  split_of = records.assign_splits((video.features["patient"] for video in folder.videos), seed)
  return {
    name: tuple(v for v in folder.videos if split_of[v.features["patient"]] == name)
    for name in SPLITS
  }


def covid_blues_config(kind, height, width, *, directory, seed=0, num_processes=0):
  """Checks a COVID-BLUES folder and says what to build from it; writes and downloads nothing.

  The name holds a fingerprint of the folder, so that changed data are built anew.

  Args:
    kind: 'videos'; the set has no masks, so it has no labelled frames.
    height: H the frames are letterboxed to, in pixels.
    width: W the frames are letterboxed to, in pixels.
    directory: the folder, as published.
    seed: of the split by patient.
    num_processes: that read headers of videos, as in `pool.ordered`.

  Returns:
    A `CovidBluesConfig` for `CovidBlues(config=..., data_dir=...)`.

  Raises:
    UserError: 'frames' were asked for, or the folder is not COVID-BLUES or contradicts itself.
  """
  if kind != "videos":
    raise UserError(
      f"covid_blues has no masks, so there are no {kind} to train segmentation on or test it with; "
      "use the segmentation of a run on another data set."
    )
  folder = read_folder(directory, num_processes=num_processes)
  splits = assign_splits(folder, seed)
  return CovidBluesConfig(
    name=records.config_name(kind, height, width, seed=seed, fingerprint=folder.fingerprint),
    description=f"COVID-BLUES: {kind} at {height} x {width}",
    height=height,
    width=width,
    splits=splits,
    oddities=folder.oddities,
  )


class CovidBlues(records.Builder):
  """COVID-BLUES as a TFDS data set of letterboxed grey videos without classes.

  Besides `records.video_features` a video has, float32 with NaN or int32 with -1 where unknown:
  `severity` (0 to 3), `a_lines`, `b_lines` (1: seen), `cov_test` (1: positive), `outcome_d7` and
  `outcome_d30` (0: intensive care, 1: in hospital, 2: discharged, 3: dead). All are of one visit,
  day 1. Frames of one grey value all over (some videos begin with them) are left out.
  """

  # 1.1.0: configs are named by what files hold, not by their times and sizes.
  VERSION = tfds.core.Version("1.1.0")

  def _info(self):
    config = self.builder_config
    codes = ("a_lines", "b_lines", "cov_test", "outcome_d7", "outcome_d30")
    features = records.video_features(config.height, config.width, 0)
    features |= {"severity": tfds.features.Scalar(np.float32)}
    features |= {name: tfds.features.Scalar(np.int32) for name in codes}
    counts = {
      name: {"patients": len({v.features["patient"] for v in videos}), "videos": len(videos)}
      for name, videos in config.splits.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=config.description,
      homepage="https://github.com/NinaWie/COVID-BLUES",
      features=tfds.features.FeaturesDict(features),
      license=LICENCE,
      disable_shuffling=True,
      metadata=records.metadata(
        classes=[],
        thin=[],
        licence=LICENCE,
        name="covid_blues",
        counts=counts,
        # The list of videos with empty frames fills up as they are read; TFDS stores the metadata
        # after that.
        oddities=config.oddities | {"videos with empty frames": []},
        patients_are_unknown=False,
        notes=list(NOTES),
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    config = self.builder_config
    n_videos = sum(len(videos) for videos in config.splits.values())
    odd = [f"{len(names)} {what}" for what, names in config.oddities.items() if names]
    logging.warning("covid_blues: %d videos; %s", n_videos, ", ".join(odd) or "nothing odd")
    shown = records.bar(n_videos, "video")
    return {name: self._generate_examples(videos, shown) for name, videos in config.splits.items()}

  def _generate_examples(self, videos, shown):
    config = self.builder_config
    size = config.height, config.width
    made = records.made(self, _video, size, videos, shown)
    for i, (name, example, is_odd) in enumerate(made):
      if is_odd:
        self.info.metadata["oddities"]["videos with empty frames"].append(name)
      yield records.in_order(i, len(videos)), example


def _video(size, video):
  """Yields name, example, and whether some frames were empty and left out, of a video."""
  fitted, box, n_frames = [], None, video.media.n_frames
  readers.check_total(video.media.path, n_frames, *size)
  for image in readers.stream(video.media):
    if np.ptp(image) > 0:
      image, box = letterbox(image, *size)
      fitted.append(image)
  if not fitted:
    raise UserError(f"{video.media.path}: every frame is empty; {_MEND}.")
  example = {
    "frames": np.stack(fitted)[..., None],
    "valid_box": np.array(box, np.int32),
    **video.features,
  }
  yield video.features["video"], example, len(fitted) < n_frames
