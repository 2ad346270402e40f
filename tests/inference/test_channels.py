import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from lus_jax.data import clips
from lus_jax.data.datasets import Dataset
from lus_jax.errors import UserError
from lus_jax.inference import channels

SIZE = 16
# Videos shorter and longer than a batch of 32 frames, that end within one and at its end.
LENGTHS = (1, 7, 24, 70, 3, 33, 6)
TOTAL = sum(LENGTHS)
# Rows 3 to 12 of every second video show nothing outside.
BOX = (3, 0, 13, 16)


class Videos:
  """A split in memory that notes which examples were read."""

  def __init__(self, examples, read=None):
    self.examples, self.read = examples, [] if read is None else read

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i):
    if "frames" in self.examples[i]:
      self.read.append(self.examples[i]["name"])
    return self.examples[i]

  def only(self, *names):
    kept = (*names, "name")
    return Videos([{k: x[k] for k in kept} for x in self.examples], self.read)


def videos(*, simulated=True, size=SIZE, version="1"):
  generator = np.random.default_rng(0)
  examples = []
  for i, n in enumerate(LENGTHS):
    smooth = generator.integers(0, 256, (n, size // 4, size // 4, 3), np.uint8)
    smooth = smooth.repeat(4, 1).repeat(4, 2)
    examples.append(
      {
        "name": i,
        "video": b"%d" % i,
        "patient": b"p",
        "view": b"L1",
        "day": 1,
        "frames": smooth[..., :1],
        "truth": smooth[..., 1:],
        "valid_box": np.int32(BOX if i % 2 else (0, 0, size, size)),
      }
    )
  return Dataset(
    name="toy",
    version=version,
    classes=("a", "b"),
    thin=(),
    split_unit="patient",
    splits={"train": Videos(examples[:4]), "test": Videos(examples[4:])},
    metadata={"simulated": simulated, "seed": 0},
  )


def run(workdir, trained, *, size=SIZE, of_video=None, **options):
  dataset = videos(**options)
  table = clips.read_table(dataset, ())
  for source in dataset.splits.values():
    source.read.clear()
  if of_video is None:
    crossed = [channels.Crossed([one], np.zeros(len(table), int)) for one in trained]
  else:
    crossed = [channels.Crossed(trained, np.array(of_video))]
  found = channels.make(dataset, table, crossed, size=size, workdir=workdir)
  read = [i for source in dataset.splits.values() for i in source.read]
  return found, dataset, read


def each_frame(dataset):
  for source in dataset.splits.values():
    for example in source.examples:
      where = np.zeros((1, SIZE, SIZE, 1), bool)
      top, left, bottom, right = example["valid_box"]
      where[:, top:bottom, left:right] = True
      for frame, truth in zip(example["frames"], example["truth"], strict=True):
        yield frame, truth, where


def probabilities(one, dataset):
  """By `Trained.probability`, a frame at a time: [frames, T, H, W, K] in [0, 1]."""
  members = list(zip(one.sweep.to_host(one.weights), one.sweep.members, strict=True))

  @jax.jit
  def probability(member, frame, where):
    return one.probability(*member, frame, where)

  return np.stack(
    [
      np.stack([probability(m, (frame[None] / 255).astype(np.float32), where)[0] for m in members])
      for frame, _, where in each_frame(dataset)
    ]
  )


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_channels_are_the_probabilities_of_every_frame_rounded(tmp_path, toy_trained, strategy):
  one = toy_trained((1, 2, 3), strategy)
  (image, maps, truth), dataset, _ = run(tmp_path, [one])
  assert image.shape == (TOTAL, SIZE, SIZE, 1) and truth.shape == (TOTAL, SIZE, SIZE, 2)
  assert [[x.shape for x in row] for row in maps] == [[(TOTAL, SIZE, SIZE, 2)] * 3]
  assert {x.dtype for x in (image, truth, *maps[0])} == {np.dtype(np.uint8)}
  frames = list(each_frame(dataset))
  np.testing.assert_array_equal(image, [frame for frame, _, _ in frames])
  np.testing.assert_array_equal(truth, [mask for _, mask, _ in frames])
  expected = 255 * probabilities(one, dataset)
  found = np.stack(maps[0], axis=1)
  # Nothing but rounding, but for sums in another order right at a half.
  assert np.abs(found - expected).max() <= 0.5 + 1e-3
  assert np.ptp(expected) > 100 and not np.array_equal(found[:, 0], found[:, 1])
  outside = np.stack([~where[0] for _, _, where in frames])
  assert outside.any()
  assert (found[np.broadcast_to(outside[:, None], found.shape)] == 0).all()


@pytest.mark.parametrize("size", [8, 10, 24])
def test_channels_are_brought_to_the_size_of_the_video_network(tmp_path, toy_trained, size):
  one = toy_trained((1,))
  (image, maps, truth), dataset, _ = run(tmp_path, [one], size=size)

  def resized(x):
    planes = [
      np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
      for plane in np.moveaxis(np.float32(x), -1, 0)
    ]
    return np.stack(planes, axis=-1)

  expected = 255 * probabilities(one, dataset)[:, 0]
  for i, (frame, mask, _) in enumerate(each_frame(dataset)):
    for found, full in ((image, frame), (truth, mask), (maps[0][0], expected[i])):
      assert np.abs(found[i] - resized(full)).max() <= 0.51


def test_letterbox_stays_empty_when_frames_shrink(tmp_path, toy_trained):
  (_, maps, _), dataset, _ = run(tmp_path, [toy_trained((1,))], size=8)
  rows = np.concatenate([np.full(n, i % 2) for i, n in enumerate(LENGTHS)])
  # Rows 0 to 2 and 13 to 15 are outside; halved, the first and the last see nothing else.
  assert (maps[0][0][rows == 1][:, [0, 7]] == 0).all()
  assert (maps[0][0][rows == 0][:, [0, 7]] > 0).any()


def test_real_frames_have_no_truth(tmp_path, toy_trained):
  (_, _, truth), _, _ = run(tmp_path, [toy_trained((1,))], simulated=False)
  assert truth is None
  assert not list(tmp_path.rglob("truth*"))


def test_every_fold_may_have_its_own_models(tmp_path, toy_trained):
  folds = [toy_trained((1, 2)), toy_trained((3, 2))]
  (_, maps, _), dataset, _ = run(tmp_path, folds)
  for one, row in zip(folds, maps, strict=True):
    expected = 255 * probabilities(one, dataset)
    for i, found in enumerate(row):
      assert np.abs(found - expected[:, i]).max() <= 0.5 + 1e-3
  # The model that both folds share is kept once.
  assert len(list(tmp_path.rglob("*.npy"))) == 2 + 3


# Videos of one model end within batches of 32 frames, and the last begins in one.
OF_VIDEO = (0, 1, 1, 0, 2, 0, 1)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_each_video_is_seen_by_its_own_model_of_a_fold(tmp_path, toy_trained, strategy):
  models = [toy_trained(seeds, strategy) for seeds in ((1, 2), (3, 4), (5, 6))]
  (_, maps, _), dataset, _ = run(tmp_path, models, of_video=OF_VIDEO)
  expected = np.stack([255 * probabilities(one, dataset) for one in models])
  whose = np.repeat(OF_VIDEO, LENGTHS)
  expected = expected[whose, np.arange(TOTAL)]
  for i, found in enumerate(maps[0]):
    assert np.abs(found - expected[:, i]).max() <= 0.5 + 1e-3
  assert len(list(tmp_path.rglob("*.npy"))) == 2 + 2


def test_other_models_of_a_video_get_other_files(tmp_path, toy_trained):
  models = [toy_trained((1,)), toy_trained((2,))]
  run(tmp_path, models, of_video=OF_VIDEO[:4] + (1, 0, 1))
  before = {name for name in files(tmp_path) if name.suffix == ".npy"}
  _, _, read = run(tmp_path, models, of_video=OF_VIDEO[:4] + (1, 0, 1))
  assert not read
  _, _, read = run(tmp_path, models, of_video=OF_VIDEO[:4] + (1, 0, 0))
  after = {name for name in files(tmp_path) if name.suffix == ".npy"}
  assert read and len(before - after) == len(after - before) == 1
  # All by one model are what that model alone sees.
  (_, alone, _), _, _ = run(tmp_path / "one", models[1:])
  (_, crossed, _), _, _ = run(tmp_path / "all", models, of_video=[1] * 7)
  np.testing.assert_array_equal(alone[0][0], crossed[0][0])


def files(workdir):
  return {p.relative_to(workdir): p for p in workdir.rglob("*") if p.is_file()}


def test_channels_are_found_again(tmp_path, toy_trained):
  one = toy_trained((1, 2))
  (image, maps, truth), _, read = run(tmp_path, [one])
  assert read == list(range(len(LENGTHS)))
  before = {p: (f.stat().st_ino, f.stat().st_mtime_ns) for p, f in files(tmp_path).items()}
  (again, maps_again, truth_again), _, read = run(tmp_path, [one])
  assert read == []
  assert {p: (f.stat().st_ino, f.stat().st_mtime_ns) for p, f in files(tmp_path).items()} == before
  for a, b in zip((image, truth, *maps[0]), (again, truth_again, *maps_again[0]), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, toy_trained, monkeypatch, stop):
  monkeypatch.setattr(channels, "BATCHES_PER_NOTE", 2)
  one = toy_trained((1, 2))
  run(tmp_path / "whole", [one])
  real = channels.read_frames

  def broken(*args, **options):
    for i, item in enumerate(real(*args, **options)):
      if i == stop:
        raise KeyboardInterrupt
      yield item

  with monkeypatch.context() as patch:
    patch.setattr(channels, "read_frames", broken)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / "run", [one])
  assert not list((tmp_path / "run").rglob("*.npy"))

  places = []

  def watched(*args, **options):
    for at, batch in real(*args, **options):
      places.append(at)
      yield at, batch

  monkeypatch.setattr(channels, "read_frames", watched)
  _, _, read = run(tmp_path / "run", [one])
  # Notes were taken after every second batch of 32 frames; videos before that are not read again.
  done = stop // 2 * 64
  assert places == list(range(done, TOTAL, 32))
  assert read == [i for i, end in enumerate(np.cumsum(LENGTHS)) if end > done]
  whole, resumed = files(tmp_path / "whole"), files(tmp_path / "run")
  assert whole.keys() == resumed.keys()
  for name in whole:
    assert whole[name].read_bytes() == resumed[name].read_bytes(), name


def test_other_weights_get_other_files_and_the_stale_ones_go(tmp_path, toy_trained):
  run(tmp_path, [toy_trained((1, 2))])
  before = {p: f.stat().st_mtime_ns for p, f in files(tmp_path).items()}
  (_, maps, _), dataset, read = run(tmp_path, [toy_trained((2, 5))])
  after = {p: f.stat().st_mtime_ns for p, f in files(tmp_path).items()}
  kept = before.keys() & after.keys()
  # Frames, truth and the model of seed 2 stay as they were, each with its checksum.
  assert len(before) == len(after) == 2 * 4 and len(kept) == 2 * 3
  assert all(before[p] == after[p] for p in kept)
  assert read == list(range(len(LENGTHS)))
  expected = 255 * probabilities(toy_trained((2, 5)), dataset)
  assert np.abs(np.stack(maps[0], axis=1) - expected).max() <= 0.5 + 1e-3


def test_what_an_interrupted_call_of_other_models_left_goes_too(tmp_path, toy_trained, monkeypatch):
  monkeypatch.setattr(channels, "BATCHES_PER_NOTE", 1)
  real = channels.read_frames

  def broken(*args, **options):
    yield next(real(*args, **options))
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(channels, "read_frames", broken)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path, [toy_trained((1,))])
  run(tmp_path, [toy_trained((2,))])
  assert sorted(p.suffix for p in files(tmp_path)) == 3 * [".json"] + 3 * [".npy"]


def test_other_videos_or_sizes_get_their_own_files(tmp_path, toy_trained):
  one = toy_trained((1,))
  run(tmp_path, [one])
  first = set(files(tmp_path))
  run(tmp_path, [one], size=8)
  second = set(files(tmp_path)) - first
  run(tmp_path, [one], version="2")
  assert first <= set(files(tmp_path)) and len(first) == len(second) == 2 * 3
  assert len(set(files(tmp_path)) - first - second) == 2 * 3


def test_a_note_of_another_shape_is_not_believed(tmp_path, toy_trained):
  one = toy_trained((1,))
  (image, _, _), _, _ = run(tmp_path, [one])
  (file,) = tmp_path.rglob("frames.npy")
  expected = file.read_bytes()
  file.unlink()
  file.with_suffix(".part").write_bytes(b"x" * 100)
  for note in (json.dumps({"shape": [1, 2, 3, 1], "done": 64}), "{"):
    file.with_suffix(".part.json").write_text(note)
    run(tmp_path, [one])
    assert file.read_bytes() == expected
    file.rename(file.with_suffix(".part"))


@pytest.mark.parametrize("old", [False, True], ids=["measured", "of an older version"])
def test_damaged_maps_are_made_again_with_a_warning(tmp_path, toy_trained, caplog, old):
  one = toy_trained((1,))
  run(tmp_path, [one])
  (file,) = tmp_path.rglob(f"{one.fingerprints[0]}.npy")
  expected = file.read_bytes()
  damaged = bytearray(expected)
  damaged[len(damaged) // 2] ^= 1
  # Without a checksum only a file that is cut short is seen.
  file.write_bytes(expected[:1000] if old else damaged)
  if old:
    file.with_suffix(".json").unlink()
  run(tmp_path, [one])
  assert file.read_bytes() == expected
  (message,) = caplog.messages
  assert message.startswith(f"{file} is damaged") and message.endswith("it is made again.")


def test_maps_that_cannot_be_read_now_stay(tmp_path, toy_trained, monkeypatch):
  run(tmp_path, [toy_trained((1,))])
  before = sorted(tmp_path.rglob("*"))

  def refuse(file):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

  monkeypatch.setattr(channels.files_lib, "sha256", refuse)
  with pytest.raises(UserError, match=r"cannot be read \(Too many open files\)"):
    run(tmp_path, [toy_trained((1,))])
  assert sorted(tmp_path.rglob("*")) == before


def test_the_main_process_alone_looks_at_what_is_there(tmp_path, toy_trained, monkeypatch):
  run(tmp_path, [toy_trained((1,))])
  monkeypatch.setattr(channels.parallel, "is_main", lambda: False)
  monkeypatch.setattr(channels.parallel, "from_main", lambda mine: [TOTAL] * len(mine))
  monkeypatch.setattr(channels.Growing, "done", None)
  (image, _, _), _, _ = run(tmp_path, [toy_trained((1,))])
  assert len(image) == TOTAL


def test_a_disk_that_fills_up_is_one_line_and_the_call_goes_on(tmp_path, toy_trained, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"channels cannot be written \(No space left on device\)"):
      run(tmp_path, [toy_trained((1,))])
  run(tmp_path, [toy_trained((1,))])


def test_a_full_disk_is_one_line_before_anything_is_computed(tmp_path, toy_trained, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  # Frames, two models and the truth: 1 + 3 x 2 channels.
  needed = TOTAL * SIZE * SIZE * 7
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
  with pytest.raises(UserError) as error:
    run(tmp_path, [toy_trained((1, 2))])
  assert f"the channels of {TOTAL} frames take 0.0 GiB, more than is free" in str(error.value)
  assert "--config.clip.image_size" in str(error.value) and "\n" not in str(error.value)
  assert not files(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
  run(tmp_path, [toy_trained((1, 2))])
  # What is there needs no room.
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
  run(tmp_path, [toy_trained((1, 2))])


def test_fingerprints_tell_weights_and_settings_apart(toy_trained):
  one = toy_trained((1, 2))
  a, b = one.fingerprints
  assert a != b and toy_trained((1, 2), "vmap").fingerprints == [a, b]
  assert toy_trained((2, 1)).fingerprints == [b, a]
  assert toy_trained((1, 2), loss="dice").fingerprints[0] != a
  assert one.only([1]).fingerprints == [b] and one.only([1]).thresholds == (1.0,)
  assert (
    toy_trained((1, 2, 3), "vmap").only([2, 0]).fingerprints == toy_trained((3, 1)).fingerprints
  )
