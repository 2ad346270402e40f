"""Opens the data set that `config.data` names, building its TFDS files first where needed."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence

from absl import logging

from lus_jax import files, lock
from lus_jax.errors import UserError

NAMES = ("lus_phantom", "lus_folder", "covid_blues", "multirater_folder")


class Source(Sequence):
  """One split in random access, of which no more than the features asked for is decoded.

  Args:
    records: a random-access source of serialised examples.
    features: a `tfds.features.FeaturesDict`.
    place: where the records lie, for messages.

  Raises:
    UserError: on reading, a record is damaged.
  """

  def __init__(self, records, features, place=""):
    self.records, self._features, self._place = records, features, place

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    if not 0 <= index < len(self):
      raise IndexError(index)
    with _whole(self._place):
      record = self.records[index]
    return self._features.deserialize_example_np(record)

  def only(self, *names):
    """The same split with these features alone: pixels that nobody reads are not unpacked."""
    features = type(self._features)({k: self._features[k] for k in names})
    return Source(self.records, features, self._place)


class Subset(Sequence):
  """Some examples of several sources, in the order given.

  Args:
    sources: a list of `Source`.
    places: pairs of a source's number and an index into it.
  """

  def __init__(self, sources, places):
    self._sources, self._places = sources, places

  def __len__(self):
    return len(self._places)

  def __getitem__(self, index):
    source, i = self._places[index]
    return self._sources[source][i]

  def only(self, *names):
    """See `Source.only`."""
    return Subset([source.only(*names) for source in self._sources], self._places)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set.

  Attributes:
    name: the builder's name, or the one the user's dataset.json gives.
    version: the version of its stored form.
    classes: K class names.
    thin: the classes that are lines.
    split_unit: 'patient', or 'frame' where frames of one patient stand on several sides.
    splits: random-access sources of decoded examples by split (`tfds_builders.records`); each has
      `only(*names)`, the same examples with these features alone.
    metadata: everything else that the builder recorded.
  """

  name: str
  version: str
  classes: tuple[str, ...]
  thin: tuple[str, ...]
  split_unit: str
  splits: Mapping[str, Sequence]
  metadata: Mapping

  @property
  def simulated(self):
    """Whether frames come with the `truth` and the `evidence` of a simulator."""
    return bool(self.metadata.get("simulated"))

  @property
  def raters(self):
    """The raters R of the feature `raters`, sorted; none where an example has one annotator."""
    return tuple(self.metadata.get("raters", ()))

  @property
  def persons(self):
    """Who each of `raters` is: one person may have drawn with several tools."""
    return tuple(self.metadata.get("persons", ()))

  @property
  def has_ignore(self):
    """Whether frames come with `ignore`: pixels that count in no class."""
    return bool(self.metadata.get("has_ignore"))

  @property
  def has_scan_areas(self):
    """Whether frames were cropped to the part of the screen that shows the scan."""
    return bool(self.metadata.get("has_scan_areas"))

  @property
  def has_provenance(self):
    """Whether frames come with how their masks came to be (`tfds_builders.records`)."""
    return bool(self.metadata.get("has_provenance"))

  @property
  def notes(self):
    """What a reader of any result on this data set has to know."""
    notes = list(self.metadata.get("notes", []))
    if self.simulated:
      notes.append("simulated frames: they show that the method runs, nothing about patients.")
    if self.split_unit == "frame":
      notes.append("split by frame, so patients stand on both sides: not an independent test.")
    if self.metadata.get("patients_are_unknown"):
      notes.append(
        "who the patients are is not known, so one person may stand on both sides of the split: "
        "not an independent test."
      )
    if 0 < self.metadata.get("largest_confidence", 1) < 0.5:
      notes.append(
        f"the largest confidence of all masks is {self.metadata['largest_confidence']:.0%}; 100 % "
        "is 255 in an 8-bit mask and 65535 in a 16-bit one."
      )
    if self.metadata.get("binary"):
      notes.append(
        "binary masks: members of all thresholds share their labels, and differ in the background "
        "weight only."
      )
    if self.raters and self.metadata.get("soft") is False:
      notes.append(
        f"a pixel's confidence is the share of its raters ({len(self.raters)}, of "
        f"{len(set(self.persons))} persons) who drew it: members whose thresholds lie between the "
        "same two shares get the same labels."
      )
    return notes

  @property
  def population(self):
    """Whose patients these are: equal patient names mean the same person within it only."""
    seed = f", seed {self.metadata.get('seed')}" if self.simulated else ""
    return f"{self.name}{seed}"

  def patients(self):
    """The patients of each split: a dict of sorted lists of names."""
    return {
      split: sorted({example["patient"].decode() for example in source.only("patient")})
      for split, source in self.splits.items()
    }

  def regroup(self, patients):
    """The same examples split otherwise.

    Args:
      patients: a dict from split to the patients it gets; patients it does not name are left out.

    Returns:
      A `Dataset`.

    Raises:
      UserError: a split gets no example.
    """
    sources = list(self.splits.values())
    split_of = {name: split for split, names in patients.items() for name in names}
    places = {split: [] for split in patients}
    for number, source in enumerate(sources):
      for i, example in enumerate(source.only("patient")):
        split = split_of.get(example["patient"].decode())
        if split is not None:
          places[split].append((number, i))
    for split, found in places.items():
      if not found:
        raise UserError(
          f"{self.name}: none of the patients {', '.join(patients[split])} has an example, so the "
          f"split {split} is empty; use fewer folds or label more patients."
        )
    return dataclasses.replace(
      self, splits={split: Subset(sources, found) for split, found in places.items()}
    )

  def summary(self):
    """What results files say of the data set."""
    return {
      "name": self.name,
      "version": self.version,
      "population": self.population,
      "classes": list(self.classes),
      "split_unit": self.split_unit,
      "splits": {name: len(source) for name, source in self.splits.items()},
      **({"raters": list(self.raters)} if self.raters else {}),
      # Of runs from before there were any, nothing is said.
      **({"has_scan_areas": True} if self.has_scan_areas else {}),
    }


def prepared_directory(config):
  """Where prepared data sets live: `config.prepared_dir`, else TFDS's own default."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return files.expanded(config.prepared_dir or default, "--config.data.prepared_dir=DIR")


@functools.cache
def _hush_tfds():
  # TFDS warns of every config that is not in its catalogue; here none is.
  logging.get_absl_logger().addFilter(
    lambda record: "Using custom data configuration" not in record.getMessage()
  )


# Of every file of a prepared data set, its size and checksum.
MEASURED = "measured.json"
_MEND = "remove that directory, and the data are prepared anew"


@contextlib.contextmanager
def _whole(place):
  # Every record has a checksum; what is amiss is a RuntimeError of the reader in C++.
  try:
    yield
  except RuntimeError as error:
    why = " ".join(str(error).split())
    raise UserError(f"{place} is damaged ({why:.120}); {_MEND}.") from error


def _prepare(make, directory):
  """Prepares a data set where it is not there yet; one process at a time does.

  Args:
    make: `() -> builder`, which reads what is there.
    directory: of its files.
  """
  if not directory.exists():
    with lock.hold(directory.parent, wait="prepares the same data there"):
      # Another process may have done it meanwhile.
      if not directory.exists():
        _prepare_alone(make(), directory)
  _check_prepared(directory)


def _check_prepared(directory):
  """Refuses a prepared data set with files that are not as they were written (`UserError`)."""
  file = directory / MEASURED
  if not file.exists():  # of an older version
    return
  try:
    measured = json.loads(file.read_text())["files"]
    problem = files.damage(
      directory, measured, sizes_only=[name for name in measured if ".array_record" in name]
    )
  except UserError:  # is a ValueError itself
    raise
  except OSError as error:
    raise files.unreadable(file, error) from error
  except (ValueError, KeyError, TypeError, AttributeError):
    problem = f"{MEASURED} cannot be read"
  if problem:
    raise UserError(f"{directory} is damaged ({problem}); {_MEND}.")


def _prepare_alone(builder, directory):
  import tensorflow_datasets as tfds

  from tfds_builders import records

  # TFDS writes there; whoever held the lock before and left some was killed.
  for left in directory.parent.glob("incomplete.*"):
    shutil.rmtree(left, ignore_errors=True)
  print(f"preparing {builder.name} in {directory}", flush=True)
  # Ours knows how much is left.
  tfds.disable_progress_bar()
  try:
    # What TFDS prints speaks of downloads, and there are none.
    with (
      tempfile.TemporaryDirectory() as downloads,
      contextlib.redirect_stdout(io.StringIO()),
      records.sorted_on_disk(),
    ):
      builder.download_and_prepare(download_dir=downloads)
    files.write_text(
      directory / MEASURED, json.dumps({"files": files.measure(directory)}, indent=1) + "\n"
    )
  except (OSError, RuntimeError) as error:
    reason = files.refusal(error)
    if reason is None and not isinstance(error, OSError):
      raise
    raise UserError(
      f"config.data.prepared_dir: {directory} cannot be written ({reason or error}); make room or "
      "name another, and repeat the command."
    ) from error


def open_dataset(config, kind):
  """Opens a data set, preparing it on first use.

  Args:
    config: the `data` part of a run's config.
    kind: 'frames' (labelled frames) or 'videos'.

  Returns:
    A `Dataset`.

  Raises:
    UserError: the name is unknown or the user's files are not in order.
  """
  size = config.image_size
  if size < 32:
    raise UserError(f"config.data.image_size: {size} is too small; use at least 32 pixels.")
  if config.split_unit not in ("patient", "frame"):
    raise UserError(
      f"config.data.split_unit: '{config.split_unit}' is not known; choose patient or frame."
    )
  # The config of a run that was begun with an older version lacks it.
  num_processes = getattr(config, "num_processes", 0)
  if config.name == "lus_phantom":
    from tfds_builders.lus_phantom import LusPhantom as Builder
    from tfds_builders.lus_phantom import phantom_config

    if config.dir:
      of_raters = os.path.isdir(os.path.join(os.path.expanduser(config.dir), "raters"))
      likely, other = ("multirater_folder", "lus_folder")[:: 1 if of_raters else -1]
      raise UserError(
        "config.data.dir names a folder, but config.data.name is lus_phantom; add "
        f"--config.data.name={likely} (or {other}, or covid_blues)."
      )
    if config.split_unit != "patient":
      raise UserError("config.data.split_unit: lus_phantom is always split by patient.")
    builder_config = phantom_config(kind, size, size, **config.phantom)
  elif config.name in ("lus_folder", "multirater_folder"):
    if config.name == "lus_folder":
      from tfds_builders.lus_folder import LusFolder as Builder
      from tfds_builders.lus_folder import folder_config
    else:
      from tfds_builders.multirater_folder import MultiraterFolder as Builder
      from tfds_builders.multirater_folder import multirater_config as folder_config

    if not config.dir:
      raise UserError("config.data.dir is empty: name your folder with --config.data.dir=DIR.")
    builder_config = folder_config(
      kind,
      size,
      size,
      directory=config.dir,
      split_unit=config.split_unit,
      seed=config.split_seed,
      **({"num_processes": num_processes} if config.name == "lus_folder" else {}),
    )
  elif config.name == "covid_blues":
    from tfds_builders.covid_blues import CovidBlues as Builder
    from tfds_builders.covid_blues import covid_blues_config

    if config.split_unit != "patient":
      raise UserError("config.data.split_unit: covid_blues is always split by patient.")
    builder_config = covid_blues_config(
      kind,
      size,
      size,
      directory=config.dir,
      seed=config.split_seed,
      num_processes=num_processes,
    )
  else:
    raise UserError(
      f"config.data.name: '{config.name}' is not known; choose one of {', '.join(NAMES)}."
    )
  _hush_tfds()
  prepared = prepared_directory(config)

  def make():
    return Builder(
      config=builder_config,
      data_dir=os.fspath(prepared),
      file_format="array_record",
      num_processes=num_processes,
    )

  _prepare(make, prepared / Builder.name / builder_config.name / str(Builder.VERSION))
  return _opened(make(), builder_config.name)


def reopen(config, summary):
  """Opens the prepared labelled frames that a run was trained on, as they were then.

  Args:
    config: the `data` part of the run's config.
    summary: what its results say of the data set (`Dataset.summary`).

  Returns:
    A `Dataset`.

  Raises:
    UserError: they are not there any more, or are others.
  """
  import tensorflow_datasets as tfds

  version, _, name = summary["version"].removesuffix(")").partition(" (")
  directory = prepared_directory(config) / config.name / name / version
  if not directory.is_dir():
    raise UserError(
      f"{directory}, which holds the prepared data of the run, is not there; bring it back, or "
      "repeat the run's command with another --workdir, which prepares the data anew."
    )
  _check_prepared(directory)
  return _opened(tfds.builder_from_directory(directory), name)


def _opened(builder, config_name):
  """The `Dataset` of a builder whose data are prepared."""
  # A bare machine that trains on arrays may lack it.
  import tensorflow_datasets as tfds

  metadata = dict(builder.info.metadata)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  with _whole(builder.data_dir):
    stored = {
      name: builder.as_data_source(name, deserialize_method=raw) for name in builder.info.splits
    }
  return Dataset(
    name=metadata.get("name", builder.name),
    version=f"{builder.version} ({config_name})",
    classes=tuple(metadata.pop("classes")),
    thin=tuple(metadata.pop("thin")),
    split_unit=metadata.pop("split_unit"),
    splits={
      name: Source(source, builder.info.features, builder.data_dir)
      for name, source in stored.items()
    },
    metadata=metadata,
  )
