import csv
import json
import math
import os
import tracemalloc
from unicodedata import normalize

import av
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from lus_jax.data import augment, datasets, pipeline
from lus_jax.errors import UserError
from lus_jax.media import readers
from tests.faults import seeds
from tfds_builders import records, tables
from tfds_builders.lus_folder.lus_folder import LusFolder, folder_config

HEIGHT, WIDTH = 24, 32
CLASSES = ("pleura", "b_line")
MANIFEST = ("video", "patient", "day", "view", "sf_ratio", "readmitted_30d", "split")


def write_video(path, frames, *, codec="ffv1", pixels="gray", options=None):
  with av.open(path, "w", options=options or {}) as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = frames.shape[1:]
    stream.pix_fmt = pixels
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
    container.mux(stream.encode())


def write_h264(path, frames):
  # The index first, as cameras and web exports do: a cut file still opens.
  write_video(path, frames, codec="libx264", pixels="yuv420p", options={"movflags": "faststart"})


class Folder:
  """A folder data set of 6 patients, and what was written into it."""

  def __init__(self, path):
    self.path = path
    random = np.random.default_rng(0)
    clip = random.integers(0, 256, (6, 5, HEIGHT, WIDTH)).astype(np.uint8)
    clip[5] //= 16  # 16 grey levels make an exact GIF
    self.videos = dict(zip(("a.npy", "b.avi", "c", "d.png", "e.npy", "f.gif"), clip, strict=True))
    self.videos["d.png"] = clip[3, :1]
    (path / "videos" / "c").mkdir(parents=True)
    for name in ("a.npy", "e.npy"):
      np.save(path / "videos" / name, self.videos[name])
    write_video(path / "videos" / "b.avi", self.videos["b.avi"])
    for i, frame in enumerate(self.videos["c"], start=8):  # 10.png comes after 9.png
      Image.fromarray(frame).save(path / "videos" / "c" / f"{i}.png")
    Image.fromarray(self.videos["d.png"][0]).save(path / "videos" / "d.png")
    first, *rest = (Image.fromarray(frame) for frame in self.videos["f.gif"])
    first.save(path / "videos" / "f.gif", save_all=True, append_images=rest, duration=40)
    splits = ("train", "train", "train", "validation", "test", "test")
    self.manifest = [
      [name, f"p{i}", "1", "L1", "300", "0", split]
      for i, (name, split) in enumerate(zip(self.videos, splits, strict=True))
    ]
    self.labels, self.masks = [["video", "frame", "annotator", "masks"]], {}
    for name, frames in self.videos.items():
      frame = len(frames) - 1
      self.labels.append([name, str(frame), "ann", name])
      for c in CLASSES:
        mask = random.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
        self.masks[name, c] = mask
        self.save_mask(f"{name}/{c}.png", mask)
    self.dataset = {"name": "tiny", "licence": "none", "classes": list(CLASSES)}
    self.dataset |= {"thin": ["b_line"], "frame_numbers": "from_0"}
    self.header = list(MANIFEST)

  def save_mask(self, name, mask):
    path = self.path / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)

  def set(self, video_index, **cells):
    for column, value in cells.items():
      self.manifest[video_index][MANIFEST.index(column)] = value

  def write(self):
    (self.path / "dataset.json").write_text(json.dumps(self.dataset))
    for name, rows in (("manifest", [self.header, *self.manifest]), ("labels", self.labels)):
      with (self.path / f"{name}.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)

  def config(self, kind="frames", height=HEIGHT, width=WIDTH, **options):
    self.write()
    return folder_config(kind, height, width, directory=self.path, **options)


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "mine")


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def build(config, data_dir):
  builder = LusFolder(config=config, data_dir=data_dir)
  builder.download_and_prepare()
  return builder


def read(builder):
  source = builder.as_data_source()
  return {
    example["video"].decode(): (split, example) for split in source for example in source[split]
  }


def check_refused(folder, *parts, kind="frames", **options):
  data_dir = folder.path.parent / "data"
  with pytest.raises(UserError) as error:
    build(folder.config(kind, **options), data_dir)
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message
  assert not data_dir.exists()


# Round trips.


def test_frames_round_trip_is_exact_at_native_size(folder, tmp_path):
  builder = build(folder.config(), tmp_path / "data")
  examples = read(builder)
  assert examples.keys() == folder.videos.keys()
  for i, (name, frames) in enumerate(folder.videos.items()):
    split, example = examples[name]
    assert split == folder.manifest[i][-1]
    assert example["frame"] == len(frames) - 1
    np.testing.assert_array_equal(example["image"][..., 0], frames[-1])
    for k, c in enumerate(CLASSES):
      np.testing.assert_array_equal(example["confidence"][..., k], folder.masks[name, c])
    assert example["patient"].decode() == f"p{i}"
    assert example["annotator"] == b"ann"
    assert example["view"] == b"L1"
    assert example["day"] == 1
    assert example["labelled"].tolist() == [True, True]
    assert example["valid_box"].tolist() == [0, 0, HEIGHT, WIDTH]
  metadata = builder.info.metadata
  assert metadata["classes"] == list(CLASSES)
  assert metadata["thin"] == ["b_line"]
  assert metadata["split_unit"] == "patient"
  assert metadata["counts"]["train"] == {"patients": 3, "frames": 3}


def test_videos_round_trip_without_labels(folder, tmp_path):
  folder.set(0, sf_ratio="", readmitted_30d="", day="", view="")
  config = folder.config("videos")
  (folder.path / "labels.csv").unlink()
  assert folder_config("videos", HEIGHT, WIDTH, directory=folder.path).name == config.name
  examples = read(build(config, tmp_path / "data"))
  assert examples.keys() == folder.videos.keys()
  for name, frames in folder.videos.items():
    np.testing.assert_array_equal(examples[name][1]["frames"][..., 0], frames)
  unknown, known = examples["a.npy"][1], examples["f.gif"][1]
  assert math.isnan(unknown["sf_ratio"]) and math.isnan(unknown["frames_per_second"])
  assert (unknown["readmitted_30d"], unknown["day"], unknown["view"]) == (-1, -1, b"")
  assert (known["sf_ratio"], known["readmitted_30d"], known["frames_per_second"]) == (300, 0, 25)
  assert examples["b.avi"][1]["frames_per_second"] == 25


def bring(folder, old, new, write):
  """Stores a video in another format: `write(path, frames)`."""
  path = folder.path / "videos" / new
  path.parent.mkdir(exist_ok=True)
  write(path, folder.videos[old])
  folder.videos[new] = folder.videos.pop(old)
  for row in (*folder.manifest, *folder.labels):
    row[0] = new if row[0] == old else row[0]
  for c in CLASSES:
    folder.masks[new, c] = folder.masks.pop((old, c))


def save_dicom(path, frames):
  seeds.save_dicom(path, seeds.dataset(frames))


def save_nifti(path, frames):
  nibabel.save(nibabel.Nifti1Image(frames.transpose(2, 1, 0), np.eye(4)), path)


def save_volume(path, frames):
  sitk.WriteImage(sitk.GetImageFromArray(frames), path)


def save_stack(path, frames):
  first, *rest = (Image.fromarray(frame) for frame in frames)
  first.save(path, save_all=True, append_images=rest)


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_what_machines_and_tools_write_is_read(folder, tmp_path, kind):
  bring(folder, "a.npy", "IM0001", save_dicom)
  bring(folder, "b.avi", "series/1.2.840.113619.2.55", save_dicom)
  bring(folder, "c", "c.nii.gz", save_nifti)
  bring(folder, "d.png", "d.DCM", save_dicom)
  bring(folder, "e.npy", "e.mhd", save_volume)
  bring(folder, "f.gif", "f.tif", save_stack)
  examples = read(build(folder.config(kind), tmp_path / "data"))
  assert examples.keys() == folder.videos.keys()
  for name, frames in folder.videos.items():
    example = examples[name][1]
    expected = frames if kind == "videos" else frames[-1]
    np.testing.assert_array_equal(
      example["frames" if kind == "videos" else "image"][..., 0], expected
    )
    for k, c in enumerate(CLASSES if kind == "frames" else ()):
      np.testing.assert_array_equal(example["confidence"][..., k], folder.masks[name, c])
  if kind == "videos":
    assert examples["IM0001"][1]["frames_per_second"] == 25
  # The pixels beside a header are of the set, too: a change of theirs is seen.
  before = folder.config(kind).name
  save_volume(folder.path / "videos" / "e.mhd", 255 - folder.videos["e.mhd"])
  assert folder.config(kind).name != before


def test_windows_of_more_than_8_bits_are_one_for_all(folder, tmp_path):
  values = np.arange(5 * HEIGHT * WIDTH).reshape(5, HEIGHT, WIDTH)
  bring(folder, "a.npy", "a.nii", lambda path, _: save_nifti(path, values.astype(np.int16)))
  bring(folder, "b.avi", "b", lambda path, _: save_dicom(path, values.astype(np.uint16)))
  bring(folder, "c", "c.nrrd", lambda path, _: save_volume(path, values.astype(np.float32)))
  bring(folder, "d.png", "d.tif", lambda path, _: save_stack(path, values[:1].astype(np.uint16)))
  folder.dataset["intensity_window"] = [100, 3000]
  folder.labels = [row for row in folder.labels if row[0] != "d.tif"]
  examples = read(build(folder.config("videos"), tmp_path / "data"))
  expected = np.rint(np.interp(values, (100, 3000), (0, 255)))
  for name in ("a.nii", "b", "c.nrrd", "d.tif"):
    frames = examples[name][1]["frames"][..., 0]
    np.testing.assert_array_equal(frames, expected[: len(frames)])
  np.testing.assert_array_equal(examples["e.npy"][1]["frames"][..., 0], folder.videos["e.npy"])


def test_nifti_that_was_saved_rows_first(folder, tmp_path):
  def write(path, frames):
    nibabel.save(nibabel.Nifti1Image(frames.transpose(1, 2, 0), np.eye(4)), path)

  bring(folder, "a.npy", "a.nii", write)
  check_refused(folder, "is 32 x 24 and its frame 24 x 32 pixels")
  folder.dataset["nifti_axes"] = "yx"
  examples = read(build(folder.config(), tmp_path / "data"))
  np.testing.assert_array_equal(examples["a.nii"][1]["image"][..., 0], folder.videos["a.nii"][-1])


def test_frames_are_letterboxed_with_their_masks(folder, tmp_path):
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[:, : WIDTH // 2] = 255
  folder.save_mask("a.npy/pleura.png", mask)
  np.save(folder.path / "videos" / "a.npy", np.broadcast_to(mask, (5, HEIGHT, WIDTH)))
  _, example = read(build(folder.config(height=64, width=64), tmp_path / "data"))["a.npy"]
  assert example["valid_box"].tolist() == [8, 0, 56, 64]
  # The frame is interpolated; half of its edge is where the mask's lies.
  half = np.where(example["image"] >= 128, 255, 0)[..., 0]
  np.testing.assert_array_equal(example["confidence"][..., 0], half)
  assert (example["image"][8:56, :31] == 255).all()
  assert not example["image"][:8].any() and not example["image"][56:].any()


def set_areas(folder, *cells):
  folder.header.append("scan_area")
  folder.manifest = [
    [*row, cell] for row, cell in zip(folder.manifest, [*cells, *[""] * 6], strict=False)
  ]


def test_frames_masks_and_videos_are_cropped_to_the_scan_area(folder, tmp_path):
  top, left, bottom, right = 3, 10, 19, 26
  set_areas(folder, "10 3 16 16", "10,3,16,16", " 10, 3, 16, 16 ")
  folder.save_mask("a.npy/_ignore.png", np.eye(HEIGHT, WIDTH, k=9, dtype=np.uint8) * 255)
  config = folder.config(height=16, width=16)
  builder = build(config, tmp_path / "data")
  examples = read(builder)
  videos = read(build(folder.config("videos", height=16, width=16), tmp_path / "data"))
  box = np.s_[top:bottom, left:right]
  for name in ("a.npy", "b.avi", "c"):
    frames, example = folder.videos[name], examples[name][1]
    np.testing.assert_array_equal(example["image"][..., 0], frames[-1][box])
    for k, c in enumerate(CLASSES):
      mask = np.where(example["ignore"][..., 0], 0, folder.masks[name, c][box])
      np.testing.assert_array_equal(example["confidence"][..., k], mask)
    for one in (example, videos[name][1]):
      assert one["scan_area"].tolist() == [top, left, bottom, right]
      assert one["frame_size"].tolist() == [HEIGHT, WIDTH]
      assert one["valid_box"].tolist() == [0, 0, 16, 16]
    np.testing.assert_array_equal(videos[name][1]["frames"][..., 0], frames[:, *box])
  np.testing.assert_array_equal(
    examples["a.npy"][1]["ignore"][..., 0], np.eye(HEIGHT, WIDTH, k=9)[box]
  )
  # An empty cell is the whole frame.
  assert examples["d.png"][1]["scan_area"].tolist() == [0, 0, HEIGHT, WIDTH]
  assert examples["d.png"][1]["valid_box"].tolist() == [2, 0, 14, 16]
  options = {"name": "lus_folder", "image_size": 32, "split_unit": "patient", "split_seed": 0}
  options |= {"dir": str(folder.path), "prepared_dir": str(tmp_path / "data")}
  dataset = datasets.open_dataset(ConfigDict(options), "frames")
  assert dataset.has_scan_areas and dataset.summary()["has_scan_areas"] is True


def test_without_scan_areas_data_are_as_they_were(folder, tmp_path):
  plain = folder.config()
  assert "scan_area" not in build(plain, tmp_path / "data").info.features
  set_areas(folder)
  empty = build(folder.config(), tmp_path / "data")
  assert "scan_area" not in empty.info.features
  assert not empty.info.metadata.get("has_scan_areas")
  folder.manifest[0][-1] = "10 3 16 16"
  assert len({plain.name, empty.builder_config.name, folder.config().name}) == 3


def test_changed_scan_areas_are_prepared_anew(folder):
  set_areas(folder, "10 3 16 16")
  before = folder.config().name
  folder.manifest[0][-1] = "10 3 16 17"
  assert folder.config().name != before


@pytest.mark.parametrize(
  ("cell", "part"),
  [
    ("10 3 16", "four whole numbers, X Y WIDTH HEIGHT"),
    ("whole", "as 0 0 32 24 for all of it"),
    ("10 3 23 16", "ends at x = 33, y = 19, outside of its frame of 32 x 24"),
    ("10 3 16 2", "8 are the least"),
  ],
)
def test_bad_scan_area(folder, cell, part):
  set_areas(folder, "", cell)
  check_refused(folder, "manifest.csv row 3: ", part, "An empty cell is the whole frame.")


def test_what_is_painted_outside_of_the_scan_area_is_named(folder, tmp_path, warnings_seen):
  set_areas(folder, "10 3 16 16", "10 3 16 16")
  inside = np.zeros((HEIGHT, WIDTH), np.uint8)
  inside[5:15, 12:22] = 200
  outside = np.roll(inside, -4, axis=1)  # by two columns of ten
  for name in ("a.npy", "b.avi"):
    folder.save_mask(f"{name}/pleura.png", inside)
    folder.save_mask(f"{name}/b_line.png", outside)
  build(folder.config(), tmp_path / "data")
  (text,) = [text for text in warnings_seen if "scan area" in text]
  assert "masks/a.npy/b_line.png (labels.csv row 2, manifest.csv row 2) and 1 more: 20 %" in text
  assert "mend scan_area, or the mask" in text


def test_masks_are_shrunk_to_confidences_that_were_painted(folder, tmp_path, warnings_seen):
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[:, 6] = 255  # of a 4 x shrink the columns 2, 6, ... are kept
  folder.save_mask("a.npy/pleura.png", mask)
  folder.save_mask("a.npy/b_line.png", np.roll(mask, 1, axis=1))
  config = folder.config(height=HEIGHT // 4, width=WIDTH // 4)
  _, example = read(build(config, tmp_path / "data"))["a.npy"]
  assert example["confidence"][0, :, 0].tolist() == [0, 255, 0, 0, 0, 0, 0, 0]
  assert not example["confidence"][..., 1].any()
  # What is lost is named.
  (text,) = [text for text in warnings_seen if "nothing of it is left" in text]
  assert "masks/a.npy/b_line.png (labels.csv row 2, manifest.csv row 2): " in text
  assert f"{HEIGHT // 4} x {WIDTH // 4}" in text


def test_16_bit_and_1_bit_masks(folder, tmp_path):
  deep = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
  folder.save_mask("a.npy/pleura.png", deep)
  folder.save_mask("a.npy/b_line.png", deep > 40000)
  _, example = read(build(folder.config(), tmp_path / "data"))["a.npy"]
  np.testing.assert_array_equal(example["confidence"][..., 0], np.rint(deep / 257))
  np.testing.assert_array_equal(example["confidence"][..., 1], np.where(deep > 40000, 255, 0))


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_missing_class_is_absent_or_unlabelled(folder, tmp_path, unlabelled):
  (folder.path / "masks" / "a.npy" / "b_line.png").unlink()
  if unlabelled:
    folder.dataset["missing_class"] = "unlabelled"
  examples = read(build(folder.config(), tmp_path / "data"))
  assert not examples["a.npy"][1]["confidence"][..., 1].any()
  assert examples["a.npy"][1]["labelled"].tolist() == [True, not unlabelled]
  assert examples["e.npy"][1]["labelled"].tolist() == [True, True]


def test_annotators_of_one_frame_are_examples_of_their_own(folder, tmp_path):
  folder.labels.append(["a.npy", "4", "other", "b.avi"])
  source = build(folder.config(), tmp_path / "data").as_data_source("train")
  found = {e["annotator"]: e["confidence"][..., 0] for e in source if e["video"] == b"a.npy"}
  np.testing.assert_array_equal(found[b"ann"], folder.masks["a.npy", "pleura"])
  np.testing.assert_array_equal(found[b"other"], folder.masks["b.avi", "pleura"])


def test_each_video_is_decoded_once(folder, tmp_path, monkeypatch):
  folder.labels += [["b.avi", str(frame), "", "a.npy"] for frame in range(4)]
  config, reads, real = folder.config(), [], readers.stream
  monkeypatch.setattr(
    readers, "stream", lambda m, frames: reads.append(m.path.name) or real(m, frames)
  )
  builder = build(config, tmp_path / "data")
  assert sorted(reads) == sorted(folder.videos)
  for example in builder.as_data_source("train"):
    if example["video"] == b"b.avi":
      expected = folder.videos["b.avi"][example["frame"]]
      np.testing.assert_array_equal(example["image"][..., 0], expected)


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_several_processes_prepare_the_same_bytes(folder, tmp_path, caplog, kind):
  folder.labels += [["b.avi", str(frame), "", "a.npy"] for frame in (3, 0, 1)]
  for c in CLASSES:  # warned of in a worker
    folder.save_mask(f"c/{c}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
  config, found, said = folder.config(kind), [], []
  for n in (1, 2):
    caplog.clear()
    builder = LusFolder(config=config, data_dir=tmp_path / str(n), num_processes=n)
    builder.download_and_prepare()
    said.append([record.getMessage() for record in caplog.records])
    found.append({path.name: path.read_bytes() for path in builder.data_path.iterdir()})
  assert found[0] == found[1] and len(found[0]) > 4
  assert said[0] == said[1]
  assert any("every confidence is 0" in text for text in said[0]) == (kind == "frames")


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_sets_larger_than_the_memory_are_sorted_to_the_same_bytes(
  folder, tmp_path, monkeypatch, kind
):
  config, found = folder.config(kind), []
  for n_bytes in (10**9, 1):
    monkeypatch.setattr(records, "MAX_SORTED", n_bytes)
    with records.sorted_on_disk():
      builder = build(config, tmp_path / str(n_bytes))
    found.append({path.name: path.read_bytes() for path in builder.data_path.iterdir()})
  assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_memory_does_not_grow_with_the_set(folder, tmp_path, monkeypatch, kind):
  monkeypatch.setattr(records, "MAX_SORTED", 2**16)
  random, peaks = np.random.default_rng(0), []
  for number, scale in enumerate((1, 1, 10, 10)):
    name, labels = f"{number}_{scale}", folder.labels[:1]
    for i in range(10 * scale):
      video = f"{name}_{i}.npy"
      np.save(folder.path / "videos" / video, random.integers(0, 256, (4, 64, 64)).astype(np.uint8))
      labels.append([video, "3", "ann", "x"])
    for c in CLASSES:
      folder.save_mask(f"x/{c}.png", random.integers(0, 256, (64, 64)).astype(np.uint8))
    folder.labels = labels
    folder.manifest = [[row[0], f"p{i % 5}", *[""] * 5] for i, row in enumerate(labels[1:])]
    builder = LusFolder(config=folder.config(kind, 64, 64), data_dir=tmp_path, num_processes=1)
    with records.sorted_on_disk():
      if number:  # what is imported on the way is no part of it
        tracemalloc.start()
      builder.download_and_prepare()
      peaks.append(tracemalloc.get_traced_memory()[1])
      tracemalloc.stop()
  # All examples together have 1.4 MB (frames) and 1.6 MB (videos).
  # What else is imported or logged meanwhile counts too, but not twice.
  assert min(peaks[2:]) < peaks[1] + 300_000, peaks


def test_a_damaged_file_is_told_alike_by_several_processes(folder, tmp_path):
  config = folder.config()
  path = folder.path / "masks" / "e.npy" / "pleura.png"
  path.write_bytes(path.read_bytes()[:60])
  told = []
  for n in (1, 2):
    with pytest.raises(UserError) as error:
      LusFolder(config=config, data_dir=tmp_path / "data", num_processes=n).download_and_prepare()
    told.append(str(error.value))
  assert told[0] == told[1] and "pleura.png" in told[0]


def test_empty_confidence_is_kept_with_a_warning(folder, tmp_path, warnings_seen):
  for c in CLASSES:
    folder.save_mask(f"c/{c}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
  folder.save_mask("d.png/pleura.png", np.eye(HEIGHT, WIDTH, dtype=np.uint8))
  examples = read(build(folder.config(), tmp_path / "data"))
  assert not examples["c"][1]["confidence"].any()
  ours = [text for text in warnings_seen if "confidence" in text]
  assert len(ours) == 2
  assert "labels.csv row 4: every confidence is 0" in ours[0]
  assert "d.png/pleura.png: its largest confidence is 0.0039" in ours[1]


def test_a_set_of_masks_of_0_and_1_is_refused(folder, tmp_path):
  for path in (folder.path / "masks").glob("*/*.png"):
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(path)
  with pytest.raises(UserError, match='no mask holds more than 1 of 255; .*_maximum": 1 into'):
    build(folder.config(), tmp_path / "data")
  folder.dataset["confidence_maximum"] = 1
  examples = read(build(folder.config(), tmp_path / "data"))
  assert examples["a.npy"][1]["confidence"].max() == 255


def test_what_masks_look_like_is_known_to_later_runs(folder, tmp_path):
  for path in (folder.path / "masks").rglob("pleura.png"):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[0, 0] = 0
    Image.fromarray(mask).save(path)
  build(folder.config(), tmp_path / "data")
  # From the disk, as a run does that prepares nothing.
  (note,) = LusFolder(config=folder.config(), data_dir=tmp_path / "data").info.metadata["notes"]
  assert "more than half of the pixels are object in every mask of the class 'pleura'" in note


def test_changed_data_are_rebuilt_and_unchanged_ones_reused(folder, tmp_path):
  name = folder.config().name
  assert folder.config().name == name
  assert folder.config(seed=1).name != name
  # Other pixels, same size and time, as tools that keep times write them.
  for path in (folder.path / "videos" / "a.npy", folder.path / "masks" / "b.avi" / "pleura.png"):
    before, whole = tables.contents(folder.path, [path]), path.read_bytes()
    stat = path.stat()
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert tables.contents(folder.path, [path]) != before
    path.write_bytes(whole)
  np.save(folder.path / "videos" / "a.npy", 255 - folder.videos["a.npy"])
  assert folder.config().name != name
  np.save(folder.path / "videos" / "a.npy", folder.videos["a.npy"])
  # Another time alone is no other content.
  os.utime(folder.path / "videos" / "a.npy", (1.6e9, 1.6e9))
  assert folder.config().name == name
  folder.set(0, day="2")
  assert folder.config().name != name


# Splits.


def test_without_a_split_column_patients_are_split_alike_for_frames_and_videos(folder):
  for i in range(6):
    folder.set(i, split="")
  folder.set(1, patient="p0")
  by_kind = []
  for kind in ("frames", "videos"):
    splits = folder.config(kind, seed=3).splits
    rows = {name: [getattr(r, "video", r) for r in split] for name, split in splits.items()}
    by_kind.append({video.name: name for name, split in rows.items() for video in split})
    patients = [{video.patient for video in split} for split in rows.values()]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 5
    assert all(patients)
  assert by_kind[0] == by_kind[1]
  assert by_kind[0].keys() == folder.videos.keys()


def test_split_by_frame_warns(folder, tmp_path, warnings_seen):
  for i in range(6):
    folder.set(i, split="", patient="p0")
  folder.labels += [["a.npy", "4", "other", "b.avi"]]
  builder = build(folder.config(split_unit="frame"), tmp_path / "data")
  assert sum(split.num_examples for split in builder.info.splits.values()) == 7
  assert builder.info.metadata["split_unit"] == "frame"
  assert "not an independent test" in warnings_seen[0]


def test_two_readings_of_one_frame_are_never_in_two_splits(folder):
  for i in range(6):
    folder.set(i, split="", patient="p0")
  folder.labels += [["a.npy", "4", "other", "b.avi"]]
  for seed in range(8):
    splits = folder.config(split_unit="frame", seed=seed).splits.values()
    readings = [sum(label.video.name == "a.npy" for label in rows) for rows in splits]
    assert sorted(readings) == [0, 0, 2]


# Bad input: each is one line naming file and row, and nothing is written.


def test_missing_directory(tmp_path):
  with pytest.raises(UserError, match=r"nowhere does not exist; mend --config.data.dir"):
    folder_config("frames", 8, 8, directory=tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"say --config.data.dir=DIR"):
    folder_config("frames", 8, 8, directory="")


@pytest.mark.parametrize("name", ["dataset.json", "manifest.csv", "labels.csv"])
def test_missing_table(folder, name):
  folder.write()
  (folder.path / name).unlink()
  with pytest.raises(UserError, match=f"{name} does not exist; write"):
    folder_config("frames", HEIGHT, WIDTH, directory=folder.path)


@pytest.mark.parametrize("column", ["video", "patient"])
def test_missing_required_column_of_the_manifest(folder, column):
  folder.header[MANIFEST.index(column)] = "something"
  check_refused(folder, "manifest.csv row 1", f"required column '{column}' is missing")


@pytest.mark.parametrize("column", ["video", "frame", "masks"])
def test_missing_required_column_of_the_labels(folder, column):
  folder.labels[0][folder.labels[0].index(column)] = "something"
  check_refused(folder, "labels.csv row 1", f"required column '{column}' is missing")


@pytest.mark.parametrize(
  ("cells", "parts"),
  [
    ({"video": "gone.mp4"}, ("videos/gone.mp4 does not exist", "relative to")),
    ({"video": "./b.avi"}, ("roundabout name; write 'b.avi'",)),
    ({"video": "../videos/b.avi"}, ("leads out of its folder",)),
    ({"video": "/etc/passwd"}, ("absolute path; write it relative to mine/videos",)),
    ({"video": "videos/a.npy"}, ("the same video as row 2",)),
    (
      {"sf_ratio": "4.62"},
      ("sf_ratio 4.62 is no plausible ratio", "FiO2 as a share (.21, not 21)"),
    ),
    ({"sf_ratio": "0"}, ("sf_ratio 0 is no plausible ratio",)),
    ({"video": "a.npy"}, ("the same video as row 2",)),
    ({"video": ""}, ("video is empty",)),
    ({"patient": " "}, ("patient is empty",)),
    ({"view": "L4"}, ("unknown view 'L4'", "L1, L2, L3, R1, R2, R3")),
    ({"day": "monday"}, ("day 'monday' is not a whole number",)),
    ({"day": "-1"}, ("day '-1' is not a whole number from 0",)),
    ({"sf_ratio": "high"}, ("sf_ratio 'high' is not a number from 0 to 477",)),
    ({"sf_ratio": "478"}, ("sf_ratio '478' is not",)),
    ({"sf_ratio": "nan"}, ("sf_ratio 'nan' is not",)),
    ({"readmitted_30d": "yes"}, ("readmitted_30d 'yes' is not a whole number from 0 to 1",)),
    ({"split": "val"}, ("unknown split 'val'", "train, validation, test")),
    ({"split": ""}, ("split is empty here",)),
    (
      {"patient": "p1", "sf_ratio": "301"},
      ("sf_ratio is 301 here and 300 in row 3", "patient and day"),
    ),
    ({"patient": "p1", "readmitted_30d": "1"}, ("readmitted_30d is 1 here and 0 in row 3",)),
    ({"patient": "p1", "split": "test"}, ("split is test here and train in row 3", "one patient")),
  ],
)
def test_bad_manifest_row(folder, cells, parts):
  folder.set(2, **cells)
  check_refused(folder, "manifest.csv row 4: ", *parts)
  check_refused(folder, "manifest.csv row 4: ", *parts, kind="videos")


def test_unknown_and_other_days_do_not_contradict(folder):
  folder.set(2, patient="p1", day="2", sf_ratio="100", readmitted_30d="")
  folder.set(0, patient="p1", day="", sf_ratio="150")
  folder.set(3, patient="p4", day="", sf_ratio="101", split="test")
  folder.set(5, patient="p4", day="", sf_ratio="102")
  folder.set(4, split="validation", patient="p5")
  folder.manifest.insert(0, [""] * 7)  # blank rows are skipped, and counted
  videos = folder.config().folder.videos
  assert [video.row for video in videos] == [3, 4, 5, 6, 7, 8]
  assert [video.sf_ratio for video in videos[:3]] == [150, 300, 100]


@pytest.mark.parametrize(
  ("cells", "parts"),
  [
    (["zzz.mp4", "0", "", "a.npy"], ("video 'zzz.mp4' is not in manifest.csv",)),
    (["b.avi", "5", "", "a.npy"], ("frame 5 is past the end of b.avi", "5 frames (0 to 4)")),
    (["b.avi", "-1", "", "a.npy"], ("frame '-1' is not a whole number",)),
    (["b.avi", "1.5", "", "a.npy"], ("frame '1.5' is not a whole number",)),
    (["b.avi", "", "", "a.npy"], ("frame is empty",)),
    (["b.avi", "1", "", ""], ("masks is empty",)),
    (["b.avi", "1", "", "nowhere"], ("masks/nowhere does not exist",)),
    (["b.avi", "1", "", "."], ("masks '.' is a roundabout name",)),
    (["b.avi", "1", "", ".."], ("masks '..' leads out of its folder",)),
    (["b.avi", "1", "", "/"], ("masks '/' is an absolute path",)),
    (["b.avi", "1", "", "masks/../a.npy"], ("leads out of its folder",)),
    (["b.avi", "1", "", "a.npy/pleura.png"], ("pleura.png is a file; name the folder",)),
    (["a.npy", "04", "ann", "b.avi"], ("the same video, frame and annotator as row 2",)),
    (["b.avi", "1", "", "a.npy", "more"], ("more cells than there are columns",)),
  ],
)
def test_bad_labels_row(folder, cells, parts):
  folder.labels.append(cells)
  check_refused(folder, "labels.csv row 8: ", *parts)


@pytest.mark.parametrize(
  ("name", "mask", "parts"),
  [
    ("pleura", np.zeros((HEIGHT, WIDTH + 1), np.uint8), ("33 x 24", "its frame 32 x 24")),
    ("pleura", np.zeros((HEIGHT, WIDTH, 3), np.uint8), ("type RGB", "grey PNG")),
    ("pleurra", np.zeros((HEIGHT, WIDTH), np.uint8), ("not <class>.png", "pleura, b_line")),
  ],
)
def test_bad_mask(folder, name, mask, parts):
  folder.save_mask(f"b.avi/{name}.png", mask)
  check_refused(folder, "labels.csv row 3: ", f"masks/b.avi/{name}.png", *parts)


def test_palette_mask_and_mask_that_is_no_png(folder):
  path = folder.path / "masks" / "b.avi" / "pleura.png"
  Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).convert("P").save(path)
  check_refused(folder, "labels.csv row 3: ", "masks/b.avi/pleura.png", "type P")
  path.write_bytes(b"text")
  check_refused(folder, "labels.csv row 3: ", "masks/b.avi/pleura.png is damaged")
  path.rename(path.with_suffix(".webp"))
  check_refused(folder, "labels.csv row 3: ", "pleura.webp is not <class>.png")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_split_without_patients(folder, split):
  for row in folder.manifest:
    row[-1] = "train" if row[-1] == split else row[-1]
  check_refused(folder, "manifest.csv", f"no patient is in the split '{split}'")


def test_split_without_labelled_frames(folder):
  folder.labels = [row for row in folder.labels if row[0] != "d.png"]
  check_refused(folder, "labels.csv", "no labelled frame", "'validation'")


def test_too_few_patients_to_split(folder):
  for i in range(6):
    folder.set(i, split="", patient=f"p{i % 2}")
  check_refused(folder, "2 patient(s) cannot fill", "split_unit=frame")


def test_split_column_and_split_by_frame_contradict(folder):
  check_refused(folder, "manifest.csv", "column split", split_unit="frame")


def test_bad_arguments(folder):
  check_refused(folder, "kind 'clips' is unknown", kind="clips")
  check_refused(folder, "split_unit 'video' is unknown", split_unit="video")
  check_refused(folder, "Videos cannot be split by frame", kind="videos", split_unit="frame")
  check_refused(folder, "0 x 32 is empty", height=0)


@pytest.mark.parametrize(
  ("change", "part"),
  [
    ({"classes": []}, "'classes' is empty"),
    ({"classes": "pleura"}, "'classes' must be a list"),
    ({"classes": ["pleura", "Pleura"]}, "names a class twice"),
    ({"classes": ["a/b"]}, "without folders"),
    ({"thin": ["rib"]}, "'thin' names 'rib'"),
    ({"licence": None}, "'licence' is missing"),
    ({"name": "a\nb"}, "'name' holds a line break"),
    ({"missing_class": "unlabeled"}, "'missing_class' is 'unlabeled'"),
    ({"polarity": "black"}, "'polarity' is of multirater_folder and says nothing here"),
    ({"soft": True}, "'soft' is of multirater_folder"),
    ({"frame_numbers": 1}, "'frame_numbers' is 1; write 'from_0' or 'of_files'"),
    ({"nifti_axes": "zx"}, "'nifti_axes' is 'zx'; write one of xy, yx"),
    ({"intensity_window": [1, 1]}, "'intensity_window' is [1, 1]; write two rising numbers"),
    ({"confidence_maximum": "255"}, "'confidence_maximum' is '255'"),
    ({"confidence_maximum": 0}, "'confidence_maximum' is 0"),
    ({"confidence_maximum": 10**400}, "'confidence_maximum' is 1000"),
    ({"classes": ["_ignore"]}, "'_ignore' is the name of masks that do not count"),
    ({"classes": ["a\nb"]}, "control character"),
    ({"classes": ["x" * 300]}, "too long"),
    ({"classes": [normalize("NFC", "plèvre"), normalize("NFD", "plèvre")]}, "names a class twice"),
  ],
)
def test_bad_dataset_json(folder, change, part):
  folder.dataset |= change
  check_refused(folder, "dataset.json", part)


def test_tables_that_are_no_tables(folder):
  folder.write()
  path = folder.path / "manifest.csv"
  for content, part in (
    (b"video|patient\na.npy|p0\n", "row 1: the required column 'video' is missing"),
    ("video,patient\na.npy,J\xfcrgen\n".encode("latin-1"), "is not UTF-8"),
    (b"video,patient\n", "has no rows"),
    (b"video,patient,patient\na.npy,p0,p1\n", "two columns are called 'patient'"),
  ):
    path.write_bytes(content)
    with pytest.raises(UserError, match=part):
      folder_config("frames", HEIGHT, WIDTH, directory=folder.path)
  (folder.path / "dataset.json").write_text("{\n'name'}")
  with pytest.raises(UserError, match=r"dataset.json line 2 is not JSON"):
    folder_config("frames", HEIGHT, WIDTH, directory=folder.path)


def test_patient_table_is_carried_along(folder, tmp_path):
  (folder.path / "patients.csv").write_text("patient,sex,age\np0,f,61\np9,m,\n")
  patients = build(folder.config(), tmp_path / "data").info.metadata["patients"]
  assert patients["p0"] == {"sex": "f", "age": "61"}
  assert patients.keys() == {f"p{i}" for i in range(6)}
  (folder.path / "patients.csv").write_text("patient,sex\np0,f\np0,m\n")
  with pytest.raises(UserError, match=r"patients.csv row 3: the same patient as row 2"):
    folder.config()


# Names, numbers and files of the field.


def test_names_composed_in_tables_and_decomposed_on_disk_are_the_same(folder, warnings_seen):
  nfc, nfd = normalize("NFC", "plèvre"), normalize("NFD", "plèvre")
  for path in sorted((folder.path / "masks").glob("*/pleura.png")):
    path.rename(path.with_name(f"{nfd}.png"))
  (folder.path / "videos" / "a.npy").rename(folder.path / "videos" / f"{nfd}.npy")
  (folder.path / "masks" / "a.npy").rename(folder.path / "masks" / nfd)
  folder.dataset["classes"] = [nfc, "b_line"]
  folder.set(0, video=f"{nfc}.npy", patient=nfc, day="")
  folder.set(1, patient=nfd, day="")
  folder.labels[1] = [f"{nfd}.npy", "4", nfc, nfc]
  found = folder.config().folder
  assert found.videos[0].patient == found.videos[1].patient == nfc
  assert found.classes == (nfc, "b_line")
  assert all(set(label.masks) == {nfc, "b_line"} for label in found.labels)
  assert found.labels[0].annotator == nfc and not warnings_seen


def test_one_person_spelled_in_two_ways_is_named(folder, warnings_seen):
  names = ("007", "7", "P3", "p3", "11", "11.0")
  for i, name in enumerate(names):
    folder.set(i, patient=name)
  folder.labels.append(["a.npy", "0", "ANN", "a.npy"])
  folder.config()
  texts = [text for text in warnings_seen if "look like one name" in text]
  (patients,) = [text for text in texts if "manifest.csv: the patients" in text]
  assert len(texts) == 2 and "'007' and '7'; 'P3' and 'p3'; '11' and '11.0' look" in patients
  assert any("annotators 'ann' and 'ANN'" in text for text in texts)
  (folder.path / "patients.csv").write_text("patient,sex\nP03,f\n")
  warnings_seen.clear()
  folder.config()
  assert any("'P3' and 'p3' and 'P03'" in text for text in warnings_seen)
  assert any("patients.csv: 1 patient(s) have no row in manifest.csv" in t for t in warnings_seen)


def test_numbers_of_files(folder, warnings_seen):
  del folder.dataset["frame_numbers"]
  folder.labels[3][1] = "1"
  assert folder.config().folder.labels[2].frame == 1
  (warning,) = warnings_seen
  assert "labels.csv row 4: frame 1 of c is taken to be 9.png" in warning
  assert '"frame_numbers": "of_files"' in warning
  folder.dataset["frame_numbers"] = "of_files"
  check_refused(folder, "labels.csv row 4: frame 1 is the number of no file in c (8 to 12)")
  folder.labels[3][1] = "9"
  labels = folder.config().folder.labels
  # Other videos count from 0 whatever is said of folders.
  assert (labels[2].frame, labels[0].frame) == (1, 4)
  assert labels[2].video.media.files[1].name == "9.png"
  assert len(warnings_seen) == 1
  folder.labels[3][1] = "1"
  folder.dataset["frame_numbers"] = "from_0"
  assert folder.config().folder.labels[2].frame == 1
  assert len(warnings_seen) == 1


def test_masks_of_other_formats_are_read_and_nothing_is_dropped_uncounted(folder, warnings_seen):
  path = folder.path / "masks" / "a.npy" / "pleura.png"
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[4:9, 5:20] = 255
  path.unlink()
  Image.fromarray(mask).save(path.with_suffix(".TIF"), "TIFF")
  (label, *_) = folder.config().folder.labels
  np.testing.assert_array_equal(readers.read_mask(label.masks["pleura"]), mask / 255)
  Image.fromarray(mask).save(path.with_suffix(".bmp"))
  check_refused(folder, "labels.csv row 2", "pleura.bmp and pleura.TIF are the same mask")
  path.with_suffix(".bmp").rename(path.with_name("pleura.npz"))
  check_refused(folder, "labels.csv row 2", "pleura.npz is not <class>.png")
  path.with_name("pleura.npz").rename(path.with_name("notes.txt"))
  assert not warnings_seen
  folder.config()
  assert warnings_seen[0].endswith("masks: Left out, as they are no pictures: a.npy/notes.txt.")
  (path.parent / "old").mkdir()
  check_refused(folder, "labels.csv row 2", "masks/a.npy/old is not <class>.png")


def test_a_frame_of_a_video_is_no_still_of_another_patient(folder):
  folder.set(3, video="c/8.png")
  check_refused(folder, "manifest.csv row 5: ", "c/8.png is the same file as", "of row 4; remove")


def test_two_patients_with_the_same_video_are_named(folder, warnings_seen):
  np.save(folder.path / "videos" / "e.npy", folder.videos["a.npy"])
  folder.config()
  (text,) = warnings_seen
  assert "manifest.csv: a.npy of patient 'p0' and e.npy of patient 'p4' hold the same; if" in text
  folder.set(4, patient="p0", split="train")
  folder.config()
  assert len(warnings_seen) == 1


def test_arrays_whose_frames_are_last(folder, warnings_seen):
  frames = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8)
  np.save(folder.path / "videos" / "a.npy", np.moveaxis(frames, 0, -1))
  folder.dataset["npy_axes"] = "hwn"
  clip = folder.config("videos").folder.videos[0].media
  np.testing.assert_array_equal(readers.read(clip), frames)
  folder.dataset["npy_axes"] = "whn"
  check_refused(folder, "dataset.json: 'npy_axes' is 'whn'; write 'nhw' or 'hwn'")


def test_files_that_are_alike_are_one_warning(folder, tmp_path, warnings_seen):
  for name in list(folder.videos)[:3]:
    (folder.path / "masks" / name / "pleura.png").unlink()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 5:20] = 255
    Image.fromarray(mask).save(folder.path / "masks" / name / "pleura.jpg", quality=64)
  build(folder.config(), tmp_path / "data")
  (found,) = [text for text in warnings_seen if "JPEG" in text]
  assert "/pleura.jpg and 2 more: " in found


def test_links_that_stay_in_the_folder(folder):
  video = folder.path / "videos" / "a.npy"
  (folder.path / "raw").mkdir()
  video.rename(folder.path / "raw" / "a.npy")
  video.symlink_to(folder.path / "raw" / "a.npy")
  assert folder.config().folder.videos[0].name == "a.npy"


def test_links_that_leave_the_folder(folder, tmp_path):
  mask = folder.path / "masks" / "a.npy" / "pleura.png"
  mask.rename(tmp_path / "elsewhere.png")
  mask.symlink_to(tmp_path / "elsewhere.png")
  check_refused(folder, "labels.csv row 2", "pleura.png is a link that leaves")
  mask.unlink()
  frame = folder.path / "videos" / "c" / "8.png"
  (tmp_path / "elsewhere.png").unlink()
  frame.rename(tmp_path / "elsewhere.png")
  frame.symlink_to(tmp_path / "elsewhere.png")
  check_refused(folder, "manifest.csv row 4", "c/8.png is a link that leaves")


@pytest.mark.parametrize("noise", [0, 90])
def test_pixels_that_count_nowhere(folder, tmp_path, warnings_seen, noise):
  plain = read(build(folder.config(), tmp_path / "data"))
  ignored = np.zeros((HEIGHT, WIDTH), np.uint8)
  ignored[3:7, 2:9] = 255
  folder.save_mask("c/_ignore.png", np.where(ignored, ignored, noise).astype(np.uint8))
  builder = build(folder.config(), tmp_path / "data")
  assert builder.info.metadata["has_ignore"] is True
  cut = [text for text in warnings_seen if "c/_ignore.png: its values between are cut" in text]
  assert len(cut) == (noise > 0)
  examples = read(builder)
  for name, (_, example) in examples.items():
    expected = ignored > 0 if name == "c" else np.zeros_like(ignored, bool)
    np.testing.assert_array_equal(example["ignore"][..., 0] > 0, expected)
    for c in range(len(CLASSES)):
      np.testing.assert_array_equal(
        example["confidence"][..., c], np.where(expected, 0, plain[name][1]["confidence"][..., c])
      )
    assert "ignore" not in plain[name][1]
  folder.save_mask("c/_ignore.png", ignored[1:])
  with pytest.raises(UserError, match="labels.csv row 4: .*c/_ignore.png is 32 x 23"):
    folder.config()


def test_ignored_pixels_reach_the_networks_input(folder, tmp_path):
  ignored = np.zeros((HEIGHT, WIDTH), np.uint8)
  ignored[3:7, 2:9] = 255
  folder.save_mask("f.gif/_ignore.png", ignored)
  folder.write()
  fields = {"name": "lus_folder", "dir": str(folder.path), "image_size": WIDTH, "split_seed": 0}
  fields |= {"split_unit": "patient", "prepared_dir": str(tmp_path / "data")}
  dataset = datasets.open_dataset(ConfigDict(fields), "frames")
  names = pipeline.fields_of(dataset)
  assert dataset.has_ignore and names == (*pipeline.FIELDS, "ignore")
  frames = pipeline.Frames(dataset.splits["test"], cache="stream", fields=names)
  (batch,) = frames.evaluation_batches(2)
  where = np.asarray(augment.prepare({name: batch[name] for name in names})["where"])
  inside = where[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
  lost = sorted(np.flatnonzero(~x).tolist() for x in inside[..., 0])
  assert lost == [[], np.flatnonzero(ignored).tolist()]
  np.testing.assert_array_equal(where[..., 0], where[..., 1])


def test_what_all_masks_together_show(folder, tmp_path, warnings_seen):
  object_ = np.zeros((HEIGHT, WIDTH), np.uint8)
  object_[2:8, 3:9] = 255
  folder.dataset["classes"].append("rib")
  for i, name in enumerate(folder.videos):
    folder.save_mask(f"{name}/pleura.png", 255 - object_)
    folder.save_mask(f"{name}/b_line.png", object_ // (1 if i < 4 else 16))
    folder.labels[i + 1][2] = "ann" if i < 4 else "bob"
  for name in list(folder.videos)[4:]:
    (folder.path / "masks" / name / "pleura.png").unlink()
  build(folder.config(), tmp_path / "data")
  (inverted,) = [text for text in warnings_seen if "more than half" in text]
  assert "in every mask of the class 'pleura'; if that is the background, invert" in inverted
  (never,) = [text for text in warnings_seen if "no mask shows" in text]
  assert "the class 'rib'" in never
  (faint,) = [text for text in warnings_seen if "those of others" in text]
  assert "the annotator 'bob' reach 5.9 % at most, those of others 100 %" in faint


def test_the_scale_that_the_user_names(folder, tmp_path):
  folder.save_mask("a.npy/pleura.png", np.eye(HEIGHT, WIDTH, dtype=np.uint8))
  for name, c in list(folder.masks)[1:]:
    folder.save_mask(f"{name}/{c}.png", folder.masks[name, c] > 100)
  folder.dataset["confidence_maximum"] = 1
  _, example = read(build(folder.config(), tmp_path / "data"))["a.npy"]
  np.testing.assert_array_equal(example["confidence"][..., 0], 255 * np.eye(HEIGHT, WIDTH))


def test_odd_names_come_through(folder, tmp_path):
  odd = "Cov-Atlas+(44) & <b>50%, 'x' #5;%20.npy"
  name = "B-Linie (konfl.) & <b>50%"
  (folder.path / "videos" / "a.npy").rename(folder.path / "videos" / odd)
  for path in sorted((folder.path / "masks").glob("*/pleura.png")):
    path.rename(path.with_name(f"{name}.png"))
  folder.dataset["classes"] = [name, "b_line"]
  folder.set(0, video=odd, patient='Müller, "0"')
  folder.labels[1] = [odd, "4", "A & B <i>", "a.npy"]
  _, example = read(build(folder.config(), tmp_path / "data"))[odd]
  assert example["patient"].decode() == 'Müller, "0"' and example["annotator"] == b"A & B <i>"
  np.testing.assert_array_equal(example["confidence"][..., 0], folder.masks["a.npy", "pleura"])


def test_frame_numbers_of_videos_with_b_frames(tmp_path):
  frames = np.stack([np.full((48, 64), 20 + 5 * i, np.uint8) for i in range(40)])
  write_video(
    tmp_path / "a.mp4",
    frames,
    codec="libx264",
    pixels="yuv420p",
    options={"crf": "4", "bf": "3", "g": "12"},
  )
  read_back = readers.read(readers.probe(tmp_path / "a.mp4"), [39, 0, 13, 14])
  assert np.abs(read_back[:, 9, 9].astype(int) - [215, 20, 85, 90]).max() <= 2


# Videos and stills.


@pytest.fixture(scope="module")
def noise():
  return np.random.default_rng(0).integers(0, 256, (12, 48, 64)).astype(np.uint8)


def test_mp4_is_read(tmp_path, noise):
  smooth = np.stack([np.full((48, 64), 20 * i, np.uint8) for i in range(12)])
  write_h264(tmp_path / "a.mp4", smooth)
  header = readers.probe(tmp_path / "a.mp4")
  assert (header.n_frames, header.height, header.width) == (12, 48, 64)
  assert header.frames_per_second == 25
  np.testing.assert_allclose(readers.read(header).astype(int), smooth, atol=2)
  np.testing.assert_array_equal(readers.read(header, [7, 2]), readers.read(header)[[7, 2]])


@pytest.mark.parametrize("keep", [0.9, 0.4, 0.02, 0])
def test_truncated_mp4(folder, noise, keep):
  path = folder.path / "videos" / "b.mp4"
  write_h264(path, noise)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(len(whole) * keep)])
  folder.set(1, video="b.mp4")
  folder.labels[2][0] = "b.mp4"
  check_refused(folder, "manifest.csv row 3: ", "videos/b.mp4")


def test_mp4_cut_at_a_frame(tmp_path, noise):
  path = tmp_path / "a.mp4"
  write_h264(path, noise)
  with av.open(path) as container:
    positions = sorted(p.pos for p in container.demux(video=0) if p.size)
  whole = path.read_bytes()
  for end, part in ((positions[9], "9 of 12"), (positions[11] + 20, "11 of 12")):
    path.write_bytes(whole[:end])
    with pytest.raises(UserError, match=rf"a.mp4 is truncated: {part} frames"):
      readers.probe(path)


def test_mp4_cut_before_its_index(tmp_path, noise):
  write_video(tmp_path / "a.mp4", noise, codec="libx264", pixels="yuv420p")
  whole = (tmp_path / "a.mp4").read_bytes()
  (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"a.mp4 is damaged"):
    readers.probe(tmp_path / "a.mp4")


def test_damage_inside_a_video_leaves_nothing_behind(folder, noise):
  path = folder.path / "videos" / "b.avi"
  write_video(path, noise[:5, :HEIGHT, :WIDTH].copy(), codec="mpeg4", pixels="yuv420p")
  data = bytearray(path.read_bytes())
  with av.open(path) as container:
    packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
  for position, size in packets[1:]:  # all packets stay there; what they say makes no sense
    middle = position + size // 2
    data[middle : middle + size // 4] = noise.tobytes()[: size // 4]
  path.write_bytes(data)
  data_dir = folder.path.parent / "data"
  with pytest.raises(UserError, match=r"b.avi is damaged"):
    build(folder.config(), data_dir)
  assert not [p for p in data_dir.rglob("*") if p.is_file() or "incomplete" in p.name]


def test_stills_of_other_pixel_types(tmp_path):
  deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
  Image.fromarray(deep).save(tmp_path / "deep.png")
  grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
  Image.fromarray(grey).convert("RGB").save(tmp_path / "colour.png")
  read = {p.stem: readers.read(readers.probe(p))[0] for p in tmp_path.iterdir()}
  np.testing.assert_array_equal(read["deep"], np.rint(deep / 257))
  np.testing.assert_array_equal(read["colour"], grey)


def test_bad_stills_and_arrays(tmp_path):
  grey = np.zeros((16, 16), np.uint8)
  np.save(tmp_path / "float.npy", grey.astype(np.float32))
  np.save(tmp_path / "colour.npy", np.zeros((16, 16, 3), np.uint8))
  np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
  (tmp_path / "notes.txt").write_text("")
  (tmp_path / "no_png.png").write_bytes(b"text")
  (tmp_path / "empty").mkdir()
  for name, images in (
    ("sizes", {"1.png": grey, "2.png": grey[:8]}),
    ("numbers", {"1.png": grey, "01.png": grey}),
    ("unnumbered", {"first.png": grey}),
  ):
    (tmp_path / name).mkdir()
    for file, image in images.items():
      Image.fromarray(image).save(tmp_path / name / file)
  for name, part in {
    "float.npy": r"float32 \[16, 16\]",
    "colour.npy": r"uint8 \[16, 16, 3\]",
    "objects.npy": "is damaged",
    "notes.txt": "no known format",
    "no_png.png": "is damaged",
    "empty": "holds no PNG",
    "sizes": "must have one size",
    "numbers": "the same number",
    "unnumbered": "no number",
    "gone.mp4": "does not exist",
  }.items():
    with pytest.raises(UserError, match=part):
      readers.probe(tmp_path / name)
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(
    tmp_path / "cut.png"
  )
  (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
  with pytest.raises(UserError, match=r"cut.png is damaged"):
    readers.read(readers.probe(tmp_path / "cut.png"))


@pytest.mark.real_data
def test_real_videos_are_whole(real_data):
  paths = sorted((real_data / "covid_blues" / "lus_videos").glob("*.mp4"))
  headers = [readers.probe(path) for path in paths]
  assert len(headers) == 109
  shortest = min(headers, key=lambda header: header.n_frames)
  assert (shortest.path.stem, shortest.n_frames) == ("patient_5_R3", 7)
  assert readers.read(shortest).shape == (7, 350, 350)


# What was probably meant.


def test_a_misspelt_column_of_the_manifest_is_refused(folder):
  folder.header[folder.header.index("split")] = "Split"
  check_refused(folder, "manifest.csv row 1", "column 'Split'", "did you mean 'split'")


def test_a_misspelt_column_of_the_labels_is_refused(folder):
  folder.labels[0][2] = "annotater"
  check_refused(folder, "labels.csv row 1", "'annotater'", "did you mean 'annotator'")


def test_a_misspelt_key_of_the_dataset_is_refused(folder):
  folder.dataset["Thin"] = ["b_line"]
  check_refused(folder, "dataset.json", "'Thin'", "did you mean 'thin'")


def test_columns_and_keys_of_the_users_own_are_let_through(folder):
  folder.header.append("scanner")
  folder.manifest = [[*row, "TE7"] for row in folder.manifest]
  folder.dataset["doi"] = "10.1/2"
  assert len(folder.config().folder.videos) == 6


def test_stand_in_patients_are_said_to_be_unknown(folder, tmp_path):
  folder.dataset["patients"] = "unknown"
  builder = build(folder.config(), tmp_path / "data")
  assert builder.info.metadata["patients_are_unknown"] is True
  folder.dataset["patients"] = "known"
  with pytest.raises(UserError, match="'patients' is 'known'"):
    folder.config()


@pytest.mark.parametrize(("value", "largest"), [(255, 1.0), (100, 100 / 255)])
def test_the_largest_confidence_is_kept(folder, tmp_path, value, largest):
  for name, c in folder.masks:
    folder.save_mask(f"{name}/{c}.png", np.full((HEIGHT, WIDTH), value, np.uint8))
  metadata = build(folder.config(), tmp_path / "data").info.metadata
  assert metadata["largest_confidence"] == pytest.approx(largest)
  assert metadata["binary"] is (value == 255)
