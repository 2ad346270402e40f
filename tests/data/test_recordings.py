"""Whole clips of a data set, found again without preparing it."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import seg
from lus_jax.data import datasets, recordings
from lus_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """A lus_folder of two clips, one with a scan area."""
  frames = np.random.default_rng(0).integers(0, 256, (2, 5, 40, 60)).astype(np.uint8)
  (tmp_path / "videos" / "b").mkdir(parents=True)
  np.save(tmp_path / "videos" / "a.npy", frames[0])
  for i, frame in enumerate(frames[1]):
    Image.fromarray(frame).save(tmp_path / "videos" / "b" / f"{i:03d}.png")
  (tmp_path / "manifest.csv").write_text("video,patient,scan_area\na.npy,p0,10 4 40 30\nb,p1,\n")
  dataset = {"name": "mine", "licence": "none", "classes": ["line"], "frame_numbers": "from_0"}
  (tmp_path / "dataset.json").write_text(json.dumps(dataset))
  return tmp_path, frames


def test_of_a_folder(folder):
  path, frames = folder
  config = ConfigDict({"name": "lus_folder", "dir": str(path)})
  found = recordings.find(config, {"a.npy": "p0", "b": "p1", "c.npy": "p2"})
  assert sorted(found) == ["a.npy", "b"]
  for one, expected in zip((found["a.npy"], found["b"]), frames, strict=True):
    assert (one.height, one.width, one.whole) == (40, 60, True)
    assert list(one.numbers) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(list(one.read([1, 4])), expected[[1, 4]])
  assert found["a.npy"].box == (4, 10, 34, 50)
  assert recordings.find(config, {"b": "p1"}).keys() == {"b"}
  (path / "videos" / "a.npy").unlink()
  with pytest.raises(UserError, match=r"a\.npy"):
    recordings.find(config, {"b": "p1"})


def test_labelled_frames_alone():
  images = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8, 1)
  examples = [{"image": image, "valid_box": (1, 0, 5, 8)} for image in images]
  alone = recordings.of_examples(examples, {4: 2, 9: 0})
  assert alone.numbers == (4, 9) and not alone.whole and (alone.height, alone.width) == (4, 8)
  [frame] = alone.read([9])
  np.testing.assert_array_equal(frame, images[0, 1:5, :, 0])


def test_pictures_have_no_clips():
  assert recordings.find(ConfigDict({"name": "multirater_folder"}), {"a": "p0"}) == {}


def test_simulated_clips_are_those_that_were_prepared(tmp_path):
  config = seg.get_config("tiny").data
  config.image_size, config.prepared_dir = 32, str(tmp_path)
  changed = {"stable_patients": 0.7, "readmission_accuracy": 0.9}
  config.phantom.update({"n_patients": 3, "n_frames": 2, "missing_views": 0.8} | changed)
  stored = [x for split in datasets.open_dataset(config, "frames").splits.values() for x in split]
  patient_of = {x["video"].decode(): x["patient"].decode() for x in stored}
  found = recordings.find(config, patient_of)
  assert len(stored) > 3 and sorted(found) == sorted(patient_of)
  for example in stored:
    [frame] = found[example["video"].decode()].read([int(example["frame"])])
    np.testing.assert_array_equal(frame, example["image"][..., 0])
