import contextlib
import dataclasses
import fcntl
import resource
import shutil
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from configs import seg
from lus_jax import lock
from lus_jax.data import datasets
from lus_jax.data.datasets import Dataset, Source, prepared_directory
from lus_jax.errors import UserError
from tfds_builders import records


def notes(split_unit="patient", **metadata):
  dataset = Dataset(
    name="d",
    version="1",
    classes=("a",),
    thin=(),
    split_unit=split_unit,
    splits={"train": range(3)},
    metadata=metadata,
  )
  assert dataset.summary()["splits"] == {"train": 3}
  return dataset.notes


def test_notes_say_what_limits_a_result():
  assert notes() == []
  assert "nothing about patients" in notes(simulated=True)[0]
  assert "not an independent test" in notes(split_unit="frame")[0]
  assert "not an independent test" in notes(patients_are_unknown=True)[0]
  assert "background weight only" in notes(binary=True)[0]
  assert "39%" in notes(largest_confidence=100 / 255)[0]
  assert notes(largest_confidence=1.0, binary=False, patients_are_unknown=False) == []
  raters = {"raters": ["a", "b"], "persons": ["p", "p"]}
  assert "share of its raters (2, of 1 persons)" in notes(**raters, soft=False)[0]
  assert notes(**raters, soft=True) == notes(**raters) == []


def test_a_home_that_nobody_knows_is_one_line(monkeypatch):
  monkeypatch.setenv("HOME", "")
  monkeypatch.setattr("os.path.expanduser", lambda path: path)
  config = ConfigDict({"prepared_dir": ""})
  with pytest.raises(UserError, match=r"tensorflow_datasets: there is no home .*prepared_dir=DIR"):
    prepared_directory(config)
  config.prepared_dir = "here"
  assert str(prepared_directory(config)) == "here"


def test_raters_and_their_persons():
  dataset = stored()
  assert dataset.raters == dataset.persons == ()
  metadata = {"raters": ["a", "b"], "persons": ["p", "p"]}
  several = dataclasses.replace(dataset, metadata=metadata)
  assert (several.raters, several.persons) == (("a", "b"), ("p", "p"))


# Six videos of four patients in three splits: (video, patient, split, number of frames).
VIDEOS = [
  ("a1", "a", "train", 1),
  ("b1", "b", "train", 2),
  ("a2", "a", "train", 3),
  ("c1", "c", "validation", 1),
  ("d1", "d", "test", 2),
  ("d2", "d", "test", 1),
]


class Records(list):
  """Serialised examples that count how often they are read."""

  def __init__(self, *args):
    super().__init__(*args)
    self.read = []

  def __getitem__(self, index):
    self.read.append(index)
    return super().__getitem__(index)


def stored():
  features = tfds.features.FeaturesDict(records.video_features(4, 5, 2))

  def example(i, name, patient, n_frames):
    return features.serialize_example(
      {
        "video": name,
        "patient": patient,
        "view": "L1",
        "day": 1,
        "valid_box": np.int32([0, 0, 4, 5]),
        "frames": np.full((n_frames, 4, 5, 1), i, np.uint8),
        "sf_ratio": np.float32(100 + i),
        "readmitted_30d": -1,
        "frames_per_second": np.float32(25),
      }
    )

  splits = {}
  for i, (name, patient, split, n_frames) in enumerate(VIDEOS):
    splits.setdefault(split, Records()).append(example(i, name, patient, n_frames))
  return Dataset(
    name="mine",
    version="1",
    classes=("x", "y"),
    thin=(),
    split_unit="patient",
    splits={split: Source(rows, features) for split, rows in splits.items()},
    metadata={},
  )


def names(source):
  return [example["video"].decode() for example in source]


def test_a_source_decodes_what_was_stored_and_only_what_was_asked_for():
  source = stored().splits["train"]
  assert len(source) == 3 and names(source) == ["a1", "b1", "a2"]
  whole = source[2]
  assert set(whole) == set(records.video_features(4, 5, 2))
  assert whole["frames"].shape == (3, 4, 5, 1) and (whole["frames"] == 2).all()
  assert whole["sf_ratio"] == 102 and whole["readmitted_30d"] == -1
  part = source.only("video", "frames")
  assert set(part[1]) == {"video", "frames"}
  np.testing.assert_array_equal(part[1]["frames"], source[1]["frames"])
  assert names(part.only("video")) == ["a1", "b1", "a2"]
  with pytest.raises(KeyError):
    source.only("video", "severity")
  for index in (3, -1):
    with pytest.raises(IndexError):
      source[index]


def test_patients_of_each_split_are_sorted_and_stand_once():
  assert stored().patients() == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}


def test_regroup_splits_the_same_examples_otherwise():
  dataset = stored()
  other = dataset.regroup({"train": ["d", "c"], "validation": ["a"], "test": ["nobody", "b"]})
  # In the order of the data set, whatever the order of the patients.
  assert {split: names(source) for split, source in other.splits.items()} == {
    "train": ["c1", "d1", "d2"],
    "validation": ["a1", "a2"],
    "test": ["b1"],
  }
  assert other.patients() == {"train": ["c", "d"], "validation": ["a"], "test": ["b"]}
  assert other.summary()["splits"] == {"train": 3, "validation": 2, "test": 1}
  a2 = other.splits["validation"][1]
  assert (a2["frames"] == 2).all() and a2["sf_ratio"] == 102
  assert set(other.splits["validation"].only("patient", "day")[0]) == {"patient", "day"}
  # The original is what it was, and whom nobody names is left out.
  assert dataset.summary()["splits"] == {"train": 3, "validation": 1, "test": 2}
  assert names(dataset.regroup({"train": ["b"]}).splits["train"]) == ["b1"]
  again = other.regroup({"train": ["a"], "test": ["d"]})
  assert names(again.splits["train"]) == ["a1", "a2"] and names(again.splits["test"]) == [
    "d1",
    "d2",
  ]


def test_an_example_is_read_when_it_is_asked_for():
  dataset = stored()
  other = dataset.regroup({"train": ["a"], "test": ["d"]})
  rows = dataset.splits["train"].records
  rows.read.clear()
  other.splits["train"][1]
  assert rows.read == [2]


def test_a_split_without_examples_is_one_line():
  with pytest.raises(UserError) as error:
    stored().regroup({"train": ["a", "b"], "validation": ["x", "y"]})
  assert "none of the patients x, y has an example" in str(error.value)
  assert "split validation is empty" in str(error.value) and "\n" not in str(error.value)


def test_equal_names_mean_the_same_person_within_one_population_only():
  def population(name="d", **metadata):
    return Dataset(
      name=name,
      version="1",
      classes=("a",),
      thin=(),
      split_unit="patient",
      splits={},
      metadata=metadata,
    ).population

  assert population("lus_phantom", simulated=True, seed=3) == "lus_phantom, seed 3"
  assert population("lus_phantom", simulated=True, seed=4) != population(
    "lus_phantom", simulated=True, seed=3
  )
  assert population("mine") == "mine" != population("other")
  assert stored().summary()["population"] == "mine"


# --- preparation -----------------------------------------------------------------------------


def open_phantom(prepared):
  config = seg.get_config("tiny").data
  config.update(image_size=32, prepared_dir=str(prepared))
  config.phantom.update(n_patients=3, n_frames=1)
  return datasets.open_dataset(config, "frames")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A phantom's folder; copy it to damage it."""
  folder = tmp_path_factory.mktemp("prepared")
  open_phantom(folder)
  return folder


def prepared_files(folder):
  (directory,) = folder.glob("lus_phantom/frames*/*/")
  return {p.name.partition(".array")[0]: p for p in directory.iterdir()}


def test_one_process_prepares_what_several_want(prepared, tmp_path, monkeypatch, capsys):
  directory = next(iter(prepared_files(prepared).values())).parent
  config = tmp_path / directory.relative_to(prepared).parent
  left = config / "incomplete.ABC_1.0.0"
  left.mkdir(parents=True)
  # Another process is at it, and is through when the lock is free.
  other = contextlib.ExitStack()

  def finish():
    shutil.copytree(directory, config / directory.name)
    other.close()

  with open(config / lock.NAME, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    other.enter_context(file)
    threading.Timer(0.3, finish).start()
    found = open_phantom(tmp_path)
  assert len(found.splits) == 3
  printed = capsys.readouterr().out
  assert "waiting for another process, which prepares the same data there" in printed
  assert "preparing lus_phantom" not in printed
  shutil.rmtree(config / directory.name)
  open_phantom(tmp_path)
  # What a killed preparation had left is gone.
  assert [p.name for p in config.iterdir()] == [directory.name]


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("dataset_info.json", lambda content: content.replace(b"3", b"2", 1)),
    ("metadata.json", lambda content: content[:50]),
    ("features.json", lambda content: b""),
    ("measured.json", lambda content: content[:50]),
    ("lus_phantom-train", lambda content: content[:70_000]),
    ("lus_phantom-train", lambda content: bytes(len(content))),
    ("lus_phantom-train", lambda content: content[:300] + b"?" + content[301:]),
  ],
)
def test_damaged_prepared_data_are_one_line(prepared, tmp_path, name, damage):
  folder = shutil.copytree(prepared, tmp_path / "prepared")
  file = prepared_files(folder)[name]
  content = file.read_bytes()
  file.write_bytes(damage(content))
  assert file.read_bytes() != content
  with pytest.raises(UserError) as error:
    list(open_phantom(folder).splits["train"])
  assert str(error.value).startswith(f"{file.parent} is damaged (")
  assert "\n" not in str(error.value) and "prepared anew" in str(error.value)


def test_a_full_disk_is_one_line_and_the_same_call_goes_on(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
  try:
    with pytest.raises(UserError, match=r"prepared_dir: .* cannot be written \(File too large\)"):
      open_phantom(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not list(tmp_path.rglob("incomplete*"))
  assert len(open_phantom(tmp_path).splits) == 3
