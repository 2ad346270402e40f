import json

import numpy as np
import pytest

from lus_jax import parallel
from lus_jax.data import clips
from lus_jax.data.datasets import Dataset
from lus_jax.errors import UserError


class Videos(list):
  """A split in memory; `only` is as strict as the stored one."""

  def only(self, *names):
    return Videos({name: example[name] for name in names} for example in self)


def video(name, patient, *, view="L1", day=1, n_frames=2, **values):
  known = {"sf_ratio": np.float32("nan"), "readmitted_30d": np.int32(-1)}
  return {
    "video": name.encode(),
    "patient": patient.encode(),
    "view": view.encode(),
    "day": np.int32(day),
    "frames": np.zeros((n_frames, 4, 4, 1), np.uint8),
    **(known | values),
  }


def dataset(**splits):
  return Dataset(
    name="mine",
    version="1",
    classes=("a",),
    thin=(),
    split_unit="patient",
    splits={name: Videos(examples) for name, examples in splits.items()},
    metadata={},
  )


@pytest.mark.parametrize(
  ("n_frames", "expected"),
  [
    (1, [0, 0, 0, 0, 0, 0, 0, 0]),
    (3, [0, 0, 0, 1, 1, 2, 2, 2]),  # repeated evenly
    (7, [0, 1, 2, 3, 3, 4, 5, 6]),
    (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    (100, [6, 18, 31, 43, 56, 68, 81, 93]),  # segments of 12.5 frames
  ],
)
def test_evaluation_takes_the_middle_frame_of_each_segment(n_frames, expected):
  assert clips.sample_frames(n_frames, 8).tolist() == expected
  assert clips.sample_frames([[n_frames], [n_frames]], 8).tolist() == [[expected], [expected]]


@pytest.mark.parametrize("n_frames", [1, 3, 7])
def test_training_repeats_the_frames_of_short_clips_evenly(n_frames):
  drawn = clips.sample_frames(n_frames, 8, np.random.default_rng(0))
  assert drawn.tolist() == clips.sample_frames(n_frames, 8).tolist()
  counts = np.bincount(drawn)
  assert len(counts) == n_frames and np.ptp(counts) <= 1


def test_training_takes_one_random_frame_of_each_equal_segment():
  assert clips.sample_frames(8, 8, np.random.default_rng(0)).tolist() == list(range(8))
  drawn = clips.sample_frames(np.full(20_000, 100), 8, np.random.default_rng(0))
  for s in range(8):
    low, high = int(12.5 * s), int(12.5 * (s + 1))
    frames, counts = np.unique(drawn[:, s], return_counts=True)
    assert frames.tolist() == list(range(low, high))
    # Uniform: 20,000 draws of 12 or 13 frames, within 5 standard deviations of the binomial.
    p = 1 / (high - low)
    assert np.abs(counts - 20_000 * p).max() < 5 * np.sqrt(20_000 * p * (1 - p))
  # Videos of several lengths in one call, each within its own segments.
  mixed = clips.sample_frames(np.array([100, 1, 16]), 8, np.random.default_rng(1))
  assert mixed.shape == (3, 8) and mixed[1].tolist() == [0] * 8
  assert (mixed[2] // 2).tolist() == list(range(8))
  again = clips.sample_frames(np.array([100, 1, 16]), 8, np.random.default_rng(1))
  np.testing.assert_array_equal(mixed, again)


def test_every_pass_of_the_endless_order_is_another_permutation():
  members = np.array([3, 5, 8, 9, 11])
  whole = clips.endless(members, 0, 20, seed=(1, 2))
  passes = whole.reshape(4, 5)
  assert (np.sort(passes, axis=1) == members).all()
  assert len({tuple(row) for row in passes.tolist()}) > 1
  assert clips.endless(members, 0, 20, seed=(1, 2)).tolist() == whole.tolist()
  assert clips.endless(members, 0, 20, seed=(1, 3)).tolist() != whole.tolist()
  assert clips.endless(members, 0, 20, seed=(2, 2)).tolist() != whole.tolist()


def test_any_window_of_the_endless_order_is_that_part_of_the_whole():
  members = np.arange(7)
  whole = clips.endless(members, 0, 40, seed=(0,))
  for start in range(20):
    for count in (1, 3, 7, 16):
      window = clips.endless(members, start, count, seed=(0,))
      assert window.tolist() == whole[start : start + count].tolist()


def test_of_two_recordings_of_a_view_the_first_is_used():
  # In the order of names, whatever the order of the table.
  rows = [
    ("p1_L1_2", "p1", "L1", 1),
    ("p1_L1", "p1", "L1", 1),
    ("p1_L1_3", "p1", "L1", 1),
    ("p1_other_day", "p1", "L1", 2),
    ("p1_R1", "p1", "R1", 1),
    ("p2_L1", "p2", "L1", 1),
    ("p2_x", "p2", "", 1),
    ("p2_y", "p2", "", 1),
  ]
  table = clips.read_table(
    dataset(train=[video(name, p, view=view, day=day) for name, p, view, day in rows]), ()
  )
  assert clips.first_recordings(table).tolist() == [1, 1, 1, 3, 4, 5, 6, 7]


def test_the_table_holds_what_is_known_in_the_order_of_the_splits():
  unknown = np.float32("nan")
  table = clips.read_table(
    dataset(
      validation=[video("b", "p2", view="R3", day=-1, n_frames=3, sf_ratio=np.float32(100))],
      train=[
        video("a", "p1", n_frames=5, sf_ratio=np.float32(300), readmitted_30d=np.int32(1)),
        video("c", "p1", n_frames=1, sf_ratio=unknown, readmitted_30d=np.int32(1)),
        video("d", "p3", n_frames=2, sf_ratio=unknown, readmitted_30d=np.int32(0)),
        video("e", "p1", n_frames=4, sf_ratio=np.float32(200), readmitted_30d=np.int32(1)),
      ],
    ),
    ("sf_ratio", "readmitted_30d"),
  )
  assert len(table) == 5
  assert table.video.tolist() == list("bacde")
  assert table.patient.tolist() == ["p2", "p1", "p1", "p3", "p1"]
  assert table.split.tolist() == ["validation"] + ["train"] * 4
  assert table.view.tolist() == ["R3"] + ["L1"] * 4
  assert table.day.tolist() == [-1, 1, 1, 1, 1]
  assert table.n_frames.tolist() == [3, 5, 1, 2, 4]
  assert table.offset.tolist() == [0, 3, 8, 9, 11]
  np.testing.assert_array_equal(table.values["sf_ratio"], [100, 300, np.nan, np.nan, 200])
  np.testing.assert_array_equal(table.values["readmitted_30d"], [np.nan, 1, 1, 0, 1])
  # Unknown videos do not count in a patient's mean; a patient without any is unknown.
  np.testing.assert_equal(table.of_patient("sf_ratio"), {"p1": 250.0, "p2": 100.0, "p3": np.nan})
  np.testing.assert_equal(table.of_patient("readmitted_30d"), {"p1": 1.0, "p2": np.nan, "p3": 0.0})


def test_a_number_that_the_videos_do_not_have_is_one_line():
  with pytest.raises(UserError, match=r"the videos of mine have no number 'height'; .*balance\.$"):
    clips.read_table(dataset(train=[video("a", "p1")]), ("height",))


@pytest.mark.parametrize("name", ["patient", "frames"])
def test_what_is_no_number_cannot_be_predicted(name):
  with pytest.raises(UserError, match=f"'{name}' of the videos of mine is no number; .*target"):
    clips.read_table(dataset(train=[video("a", "p1")]), (name,))


def test_the_day_can_be_a_value_too():
  table = clips.read_table(dataset(train=[video("a", "p1", day=3)]), ("day",))
  assert table.values["day"].tolist() == [3.0] and table.day.tolist() == [3]


# Frame i of the store is the number i; channel c adds 100 c.
N_FRAMES = np.array([4, 1, 9, 6])
OFFSET = np.array([0, 4, 5, 14])


def store(cache, fold_channels=((0, 2), (1, 2), (0, 1)), mesh=None):
  index = np.arange(20, dtype=np.uint8)[:, None, None, None]
  return clips.ClipStore(
    image=np.broadcast_to(index, (20, 2, 3, 1)).copy(),
    channels=[np.broadcast_to(index + 100 * c, (20, 2, 3, 2)).astype(np.uint8) for c in range(3)],
    fold_channels=np.array(fold_channels),
    offset=OFFSET,
    n_frames=N_FRAMES,
    n_segment=3,
    cache=cache,
    mesh=mesh,
  )


def plan(step):
  """Two clips for each of three folds, other ones in every step."""
  video = np.array([[0, 2], [3, 1], [2, 3]]) if step % 2 else np.array([[1, 2], [0, 3], [3, 0]])
  frames = store("device").clips(video, np.random.default_rng(step))
  return {"frames": frames, "target": video.astype(np.float32) + step}


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_a_batch_holds_the_pixels_of_its_frames_and_each_folds_own_channels(cache):
  one = store(cache)
  video = np.array([[0, 2], [3, 1], [2, 3]])
  frames = one.clips(video)
  assert frames.tolist() == [
    [[0, 2, 3], [6, 9, 12]],
    [[15, 17, 19], [4, 4, 4]],
    [[6, 9, 12], [15, 17, 19]],
  ]
  batch = one.finish(one.load({"frames": frames, "target": video}))
  assert set(batch) == {"image", "channels", "target"}
  assert batch["image"].shape == (3, 2, 3, 2, 3, 1)
  assert batch["channels"].shape == (3, 2, 2, 3, 2, 3, 2)  # [F, c, M, N, h, w, K]
  assert batch["image"].dtype == batch["channels"].dtype == np.uint8
  np.testing.assert_array_equal(batch["image"][..., 0, 0, 0], frames)
  for f, row in enumerate(one.fold_channels):
    for c, number in enumerate(row):
      expected = np.broadcast_to((frames[f] + 100 * number)[..., None, None, None], (2, 3, 2, 3, 2))
      np.testing.assert_array_equal(batch["channels"][f, c], expected)
  np.testing.assert_array_equal(batch["target"], video)


def test_device_and_stream_give_the_same_batches_from_any_place():
  device, stream = (store(cache).batches(plan) for cache in ("device", "stream"))
  seen = []
  for step in range(6):
    a, b = next(device), next(stream)
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(a["image"][..., 0, 0, 0], plan(step)["frames"])
    seen.append(a)
    if step == 2:
      place = json.loads(json.dumps(stream.get_state()))
  for cache in ("device", "stream"):
    again = store(cache).batches(plan)
    again.set_state(place)
    for expected in seen[3:]:
      np.testing.assert_array_equal(next(again)["channels"], expected["channels"])


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_two_devices_share_the_clips_of_a_batch(cache):
  one, two = store(cache), store(cache, mesh=parallel.make_mesh(1))
  expected, found = next(one.batches(plan)), next(two.batches(plan))
  assert expected.keys() == found.keys()
  for name in expected:
    np.testing.assert_array_equal(expected[name], found[name])
  for name, axis in (("image", 1), ("channels", 2)):
    shapes = [shard.data.shape for shard in found[name].addressable_shards]
    assert [shape[axis] for shape in shapes] == [1, 1]
  assert found["target"].is_fully_replicated


def test_a_process_reads_only_the_clips_of_its_devices(monkeypatch):
  whole = store("stream").load(plan(0))
  monkeypatch.setattr(parallel, "own_rows", lambda mesh, n: slice(n // 2, n))
  part = store("stream").load(plan(0))
  np.testing.assert_array_equal(part["image"], whole["image"][:, 1:])
  np.testing.assert_array_equal(part["channels"], whole["channels"][:, :, 1:])


def test_the_papers_and_per_fold_channels():
  # Without a sweep per fold all folds see the same channels.
  shared = store("stream", [[0, 1], [0, 1]])
  frames = shared.clips(np.array([[2], [2]]))
  channels = shared.load({"frames": frames})["channels"]
  np.testing.assert_array_equal(channels[0], channels[1])
  own = store("stream", [[0, 1], [2, 1]]).load({"frames": frames})["channels"]
  np.testing.assert_array_equal(own[0], channels[0])
  assert (own[1, 0] == channels[0, 0] + 200).all()
  np.testing.assert_array_equal(own[1, 1], channels[0, 1])
