import jax
import numpy as np
import pytest

from lus_jax import parallel
from lus_jax.data.pipeline import Frames, choose_cache, load
from lus_jax.errors import UserError


def frames(n):
  index = np.arange(n, dtype=np.uint8)
  image = np.broadcast_to(index[:, None, None, None], (n, 4, 4, 1)).copy()
  return {
    "image": image,
    "confidence": np.repeat(image, 2, axis=-1),
    "labelled": np.ones((n, 2), bool),
    "valid_box": np.tile(np.int32([0, 0, 4, 4]), (n, 1)),
  }


def indices(batch):
  return np.asarray(batch["image"][:, 0, 0, 0]).tolist()


def epochs(batches, n_epochs, per_epoch):
  return [[indices(next(batches)) for _ in range(per_epoch)] for _ in range(n_epochs)]


def test_device_and_stream_give_the_same_batches():
  device = epochs(Frames(frames(11), cache="device").training_batches(3, seed=5), 3, 3)
  stream = epochs(Frames(frames(11), cache="stream").training_batches(3, seed=5), 3, 3)
  assert device == stream


def test_an_epoch_is_a_permutation_and_the_next_another_one():
  first, second = epochs(Frames(frames(12), cache="device").training_batches(4, seed=0), 2, 3)
  assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(12))
  assert first != second
  other = epochs(Frames(frames(12), cache="device").training_batches(4, seed=1), 1, 3)[0]
  assert other != first


def test_what_does_not_fill_a_batch_is_left_out_of_that_epoch_only():
  seen = epochs(Frames(frames(7), cache="device").training_batches(3, seed=0), 20, 2)
  assert all(len(set(sum(epoch, []))) == 6 for epoch in seen)
  assert set(sum(sum(seen, []), [])) == set(range(7))


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_two_devices_share_the_same_batches(cache):
  one = epochs(Frames(frames(11), cache=cache).training_batches(4, seed=5), 2, 2)
  source = Frames(frames(11), cache=cache, mesh=parallel.make_mesh(1))
  batches = source.training_batches(4, seed=5)
  assert epochs(batches, 2, 2) == one
  for x in jax.tree.leaves(next(batches)):
    assert [shard.data.shape[0] for shard in x.addressable_shards] == [2, 2]
  for x in jax.tree.leaves(next(source.evaluation_batches(4))):
    assert len(x) == 4 and getattr(x, "is_fully_replicated", True)
  with pytest.raises(UserError, match="cannot be shared evenly by the 2 devices"):
    source.training_batches(3, seed=5)


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_a_process_reads_only_its_own_rows_of_a_batch(monkeypatch, cache):
  whole = epochs(Frames(frames(11), cache=cache).training_batches(4, seed=5), 1, 2)[0]
  read = []
  monkeypatch.setattr(parallel, "own_rows", lambda mesh, n: slice(n // 2, n))
  monkeypatch.setattr(parallel, "split", lambda mesh, tree, n: read.append(tree) or tree)
  batches = Frames(frames(11), cache=cache).training_batches(4, seed=5)
  found = [indices(next(batches)) for _ in range(2)]
  assert found == [batch[2:] for batch in whole]
  assert {len(x) for x in jax.tree.leaves(read)} == {2}


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_the_place_can_be_saved_and_restored(cache):
  source = Frames(frames(10), cache=cache)
  batches = source.training_batches(3, seed=2)
  for _ in range(4):
    next(batches)
  place = batches.get_state()
  expected = [indices(next(batches)) for _ in range(5)]
  other = source.training_batches(3, seed=2)
  other.set_state(place)
  assert [indices(next(other)) for _ in range(5)] == expected
  batches.set_state(place)
  assert indices(next(batches)) == expected[0]


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_evaluation_sees_every_frame_once_in_order_with_a_mask(cache):
  batches = list(Frames(frames(7), cache=cache).evaluation_batches(3))
  assert [batch["mask"].tolist() for batch in batches] == [[True] * 3] * 2 + [[True, False, False]]
  seen = np.concatenate([np.asarray(indices(b))[b["mask"]] for b in batches])
  assert seen.tolist() == list(range(7))


def test_a_batch_larger_than_the_split_is_refused():
  with pytest.raises(UserError, match="batch_size: 8 is more than the 7"):
    Frames(frames(7), cache="device").training_batches(8, seed=0)


def test_cache_auto_depends_on_the_size_of_the_frames():
  source = [{k: v[0] for k, v in frames(1).items()}]
  assert choose_cache("auto", [source]) == "device"

  class Huge(list):
    def __len__(self):
      return 10**12

  assert choose_cache("auto", [Huge(source)]) == "stream"
  assert choose_cache("stream", [source]) == "stream"
  with pytest.raises(UserError, match=r"config\.data\.cache: 'disk'"):
    choose_cache("disk", [source])


def test_load_stacks_the_fields_that_a_step_needs():
  arrays = frames(3)
  source = [{k: v[i] for k, v in arrays.items()} | {"patient": b"p"} for i in range(3)]
  loaded = load(source)
  assert set(loaded) == set(arrays)
  np.testing.assert_array_equal(loaded["image"], arrays["image"])


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_a_pass_takes_frames_as_often_as_asked(cache):
  repeats = [1, 3, 1, 2, 1]
  batches = Frames(frames(5), cache=cache).training_batches(4, seed=5, repeats=repeats)
  seen = [[x for _ in range(2) for x in indices(next(batches))] for _ in range(3)]
  assert all(np.bincount(one, minlength=5).tolist() == repeats for one in seen)
  assert len({tuple(one) for one in seen}) == 3
  place = batches.get_state()
  expected = [indices(next(batches)) for _ in range(3)]
  batches.set_state(place)
  assert [indices(next(batches)) for _ in range(3)] == expected
