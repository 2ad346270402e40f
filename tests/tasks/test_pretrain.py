"""Pretraining without labels: what is hidden, who is learned from, and what starts there."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from ml_collections import ConfigDict

from configs import pretrain, seg
from lus_jax import main, models, results
from lus_jax.data import unlabelled
from lus_jax.errors import UserError
from lus_jax.models.mobilenet_v2 import MobileNetV2
from lus_jax.tasks import initial
from lus_jax.tasks.clinical import initial as clinical_initial
from lus_jax.tasks.clinical import run as clinical_run
from lus_jax.tasks.pretrain import run, train
from lus_jax.training import claim, loop, state
from tests import toys

MASK = ConfigDict({"cells": 4, "share": 0.5})


def test_half_of_the_cells_of_every_frame_are_hidden(key):
  hidden = np.asarray(train.hidden_blocks(key, (3, 2, 8, 6), cells=4, share=0.5))
  # Cells of 2 x 2 blocks, 4 x 3 of them.
  cells = hidden.reshape(3, 2, 4, 2, 3, 2)
  assert (cells == cells[:, :, :, :1, :, :1]).all()
  assert (cells[:, :, :, 0, :, 0].sum((2, 3)) == 6).all()
  assert (hidden[:, 0] != hidden[:, 1]).any() and (hidden[0] != hidden[1]).any()
  # Never all of it, and never nothing.
  for share, expected in ((0.01, 1), (0.99, 11)):
    found = train.hidden_blocks(key, (1, 1, 8, 6), cells=4, share=share)
    assert found.sum() == 4 * expected


def test_what_is_hidden_is_behind_the_mean_of_what_is_seen_and_alone_is_judged(key):
  rng = np.random.default_rng(0)
  image = rng.random((2, 3, 18, 16, 1), np.float32)
  inside = np.zeros((2, 18, 16), bool)
  inside[:, 2:, :14] = True
  seen, wanted = jax.tree.map(np.asarray, train.hide(image, inside, key, MASK))
  # What no whole block covers is cut off.
  assert seen.shape == (2, 3, 16, 16, 1) and wanted["target"].shape == (2, 3, 4, 4)
  hidden = np.repeat(np.repeat(wanted["hidden"], 4, 2), 4, 3)
  within = np.broadcast_to(inside[:, None, :16], hidden.shape)
  for b in range(2):
    own = image[b, :, :16, :, 0]
    mean = own[~hidden[b] & within[b]].mean()
    assert wanted["mean"][b].item() == pytest.approx(mean, rel=1e-5)
    np.testing.assert_array_equal(
      seen[b, ..., 0], np.where(hidden[b] & within[b], np.float32(wanted["mean"][b]), own)
    )
  blocks = image[:, :, :16].reshape(2, 3, 4, 4, 4, 4)
  np.testing.assert_allclose(wanted["target"], blocks.mean((3, 5)), rtol=1e-5)
  # Blocks that lie partly outside of the frame count for nothing.
  assert not wanted["counted"][:, :, 0].any() and not wanted["counted"][..., 3].any()
  counted = wanted["hidden"].copy()
  counted[:, :, 0], counted[..., 3] = False, False
  np.testing.assert_array_equal(wanted["counted"], counted)
  off, count = train.distance(wanted["target"] + 0.25, wanted)
  np.testing.assert_allclose(off, 0.25 * counted.sum((1, 2, 3)), rtol=1e-5)
  np.testing.assert_array_equal(count, counted.sum((1, 2, 3)))


def test_the_video_network_draws_blocks_where_its_features_are():
  seen = np.zeros((1, 2, 48, 40, 1), np.float32)
  network = MobileNetV2(in_channels=1, outputs=64, width=0.125, rngs=nnx.Rngs(0))
  shape = nnx.eval_shape(lambda: network(seen, train=False, pooled=False)).shape
  assert shape == (1, 2, 2, 2, 64)

  def numbers(params, batch_stats, seen, *, train, pooled):
    assert not train and not pooled
    # Every place of the features has a hundred of its own.
    places = 100 * jnp.arange(4.0).reshape(1, 1, 2, 2, 1)
    return jnp.broadcast_to(places, shape), batch_stats

  params = {"bias": jnp.arange(64.0)}
  wanted = {"target": np.zeros((1, 2, 12, 10)), "mean": np.full((1, 1, 1, 1), 1000.0)}
  found, _ = train.drawn(numbers, "video", params, {}, seen, wanted, train=False)
  expected = np.block(
    [[1000 + 100 * (2 * i + j) + np.arange(64.0).reshape(8, 8) for j in (0, 1)] for i in (0, 1)]
  )
  np.testing.assert_allclose(found, np.broadcast_to(expected[:12, :10], (1, 2, 12, 10)))


@pytest.mark.parametrize("changes", [{"refinements": 1}, {"shrink": 2}])
def test_the_segmentation_network_draws_blocks_where_they_are(changes):
  model = pretrain.get_config("small").model
  model.update({"encoder": "resnet18", "width": 0.125, "dtype": "float32"})
  model.update({"refinements": 0, "shrink": 0} | changes)
  network = state.outline(lambda: initial.pretraining_network(model, "segmentation", 0))
  seen = jnp.zeros((2, 1, 48, 40, 1))
  wanted = {"target": np.zeros((2, 1, 12, 10)), "mean": np.full((2, 1, 1, 1), 0.5)}
  arguments = network.params, network.batch_stats, seen, wanted
  found, _ = jax.eval_shape(
    lambda *x: train.drawn(network, "segmentation", *x, train=False), *arguments
  )
  assert found.shape == (2, 1, 12, 10)
  # Not a corner of a finer or coarser grid.
  ramp = np.arange(2.0 * 48 * 40).reshape(2, 48, 40, 1)

  def ramps(params, batch_stats, frames, *, train):
    assert frames.shape == ramp.shape and not train
    return jnp.asarray(ramp, jnp.float32), batch_stats

  found, _ = train.drawn(ramps, "segmentation", {}, {}, seen, wanted, train=False)
  expected = 0.5 + ramp.reshape(2, 1, 12, 4, 10, 4).mean((3, 5))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- from the data to what starts from it --------------------------------------------------------


class ToyClips(toys.ToyVideo):
  """The toy of the video network, with outputs at every place of its features."""

  def __call__(self, clip, *, train, key=None, where=None, pooled=True):
    if pooled:
      return super().__call__(clip, train=train, key=key, where=where)
    x = self.features[0](clip.reshape(-1, *clip.shape[2:]), train=train)
    x = self.head(x[:, ::16, ::16])
    return x.reshape(*clip.shape[:2], *x.shape[1:])


@pytest.fixture(scope="module")
def heads(toy_networks):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_head)
    patch.setattr(
      models,
      "build_video_model",
      lambda config, *, in_channels, outputs, hidden, seed: ToyClips(
        in_channels, outputs, hidden, rngs=nnx.Rngs(seed)
      ),
    )
    yield


def make_config(prepared, **changes):
  config = pretrain.get_config("tiny")
  config.data.image_size = 32
  config.data.phantom.update(toys.PHANTOM)
  config.data.prepared_dir = os.fspath(prepared)
  return toys.change(config, changes)


@pytest.fixture(scope="module")
def finished(heads, prepared_phantom, tmp_path_factory):
  """Finished runs: of the segmentation's network and of the video's."""
  found = {}
  for network, changes in (
    ("segmentation", {}),
    ("video", {"network": "video", "clip.n_segment": 2, "model.width": 0.125}),
  ):
    found[network] = tmp_path_factory.mktemp("runs") / network
    main.run(make_config(prepared_phantom, **changes), found[network])
  return found


class Guarded:
  """A split of which nothing may be read."""

  def __init__(self, n):
    self._n = n

  def __len__(self):
    return self._n

  def only(self, *names):
    raise AssertionError("a validation or test split was read")

  __getitem__ = only


def test_no_frame_of_other_splits_is_read(prepared_phantom):
  config = make_config(prepared_phantom)
  dataset, feature = unlabelled.open_clips(config.data)
  splits = {k: Guarded(len(x)) if k != "train" else x for k, x in dataset.splits.items()}
  clips = unlabelled.read(dataclasses.replace(dataset, splits=splits), feature, seed=0, room=2**30)
  own = set(dataset.patients()["train"])
  assert set(clips.patient.tolist()) == own
  # One of them is held out, with all clips.
  assert len(clips.patients(held_out=True)) == 1
  assert not set(clips.patients(held_out=True)) & set(clips.patients(held_out=False))
  assert clips.left_out == {k: len(x) for k, x in dataset.splits.items() if k != "train"}
  # Every frame of every clip is there, and batches take no other.
  videos = list(dataset.splits["train"])
  np.testing.assert_array_equal(clips.image, np.concatenate([x["frames"] for x in videos]))
  # What is shown of those that are held out is of several.
  of_frame = np.repeat(np.arange(len(videos)), clips.n_frames)
  shown = next(clips.held_batches(4, 1, most=64))["image"][:, 0]
  assert len({int(of_frame[(clips.image == one).all((1, 2, 3))][0]) for one in shown}) >= 3
  batches = clips.training_batches(4, 2, seed=0, cache="device")
  learnt = np.concatenate(
    [x["frames"] for x, held in zip(videos, clips.held_out, strict=True) if not held]
  )
  learnt = {frame.tobytes() for frame in learnt}
  streamed = clips.training_batches(4, 2, seed=0, cache="stream")
  for _ in range(3):
    batch, other = next(batches), next(streamed)
    jax.tree.map(np.testing.assert_array_equal, batch, other)
    assert all(frame.tobytes() in learnt for clip in np.asarray(batch["image"]) for frame in clip)
  with pytest.raises(UserError, match="are more than the 0 GiB of memory"):
    unlabelled.read(dataset, feature, seed=0, room=1000)


@pytest.mark.parametrize("network", ["segmentation", "video"])
def test_a_run_says_what_it_learned_from_and_shows_it(finished, network):
  workdir = finished[network]
  content = results.read(workdir, "pretrain")
  assert content["network"] == network and len(content["rows"]) == 2
  assert not set(content["patients"]) & set(content["held_out"])
  with np.load(workdir / "results" / "pretrain.npz") as arrays:
    image, seen, drawn = (arrays[name] for name in ("image", "seen", "drawn"))
  assert image.shape == seen.shape == drawn.shape and image.dtype == np.uint8
  # What was drawn differs from what was seen in hidden parts alone, which are half of all.
  assert 0 < (seen != image).mean() <= 0.5 and not ((drawn != seen) & (seen == image)).mean() > 0.01
  page = (workdir / "report" / "index.html").read_text()
  assert "Not one frame of the other splits was looked at" in page and "What it draws" in page
  assert f"{content['loss']:.4f}" in page and f"{content['loss_of_mean']:.4f}" in page


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
  finished, prepared_phantom, tmp_path, monkeypatch, contents
):
  class Stopped(Exception):
    pass

  fit = loop.fit

  def stopped(task, *args, checkpoints, **options):
    def saved(*arguments, save=checkpoints.save):
      save(*arguments)
      checkpoints.wait()
      raise Stopped

    monkeypatch.setattr(checkpoints, "save", saved)
    return fit(task, *args, checkpoints=checkpoints, **options)

  config = make_config(prepared_phantom)
  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(loop, "fit", stopped)
    run.train_and_evaluate(config, tmp_path / "run")
  assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
  run.train_and_evaluate(config, tmp_path / "run")
  assert contents(tmp_path / "run") == contents(finished["segmentation"])


def test_segmentation_networks_start_from_it(
  finished, segmentation_config, prepared_phantom, tmp_path, monkeypatch
):
  class Begun(Exception):
    pass

  def fit(task, sweep, state, *args, **options):
    raise Begun(sweep.to_host(sweep.map(lambda one: one.params, state)))

  config = segmentation_config.copy_and_resolve_references()
  config.model.init_from = os.fspath(finished["segmentation"])
  monkeypatch.setattr(loop, "fit", fit)
  with pytest.raises(Begun) as begun:
    main.run(config, tmp_path / "run")
  source = initial.read(config.model, video=False)
  fresh = models.build_model(config.model, in_channels=1, classes=6, seed=config.seed)
  for params in begun.value.args[0]:
    np.testing.assert_array_equal(params["norm"]["scale"], source.params["norm"]["scale"])
    kernel = fresh.segmentation_head.kernel[...]
    np.testing.assert_array_equal(params["segmentation_head"]["kernel"], kernel)
  about = claim.read_claim(tmp_path / "run")["dataset"]["initial"]
  assert about["task"] == "pretrain" and about["fingerprint"] == source.about["fingerprint"]
  # Another split of the same patients is another matter.
  (pretrained,) = source.lineage
  patients = {"train": [], "validation": [], "test": pretrained["train"]}
  with pytest.raises(UserError, match="of the test split"):
    initial.audit(source, patients, pretrained["population"])
  config.model.init_from = os.fspath(finished["video"])
  with pytest.raises(UserError, match=r"is a run of pretrain \(video\), and this takes one of"):
    main.run(config, tmp_path / "other")


def test_video_networks_start_from_it(
  finished, toy_segmentation, task_config, tmp_path, monkeypatch
):
  seen = {}
  initial_weights = clinical_initial.initial_weights

  def watched(setup, summary):
    found = initial_weights(setup, summary)
    seen.update(network=setup.network, started=found[0])
    return found

  monkeypatch.setattr(clinical_initial, "initial_weights", watched)
  workdir = shutil.copytree(toy_segmentation, tmp_path / "run")
  config = task_config("sf_ratio", **{"model.init_from": os.fspath(finished["video"])})
  clinical_run.train_and_evaluate(config, workdir)
  source = initial.read(config.model, video=True)
  for one in seen["started"]:
    ours, theirs = one["params"]["features"][0], source.params["features"][0]
    np.testing.assert_array_equal(ours["bn"]["scale"], theirs["bn"]["scale"])
    np.testing.assert_array_equal(ours["conv"]["kernel"][:, :, :1], theirs["conv"]["kernel"])
    # The maps' weights are random.
    fresh = seen["network"].params["features"][0]["conv"]["kernel"]
    np.testing.assert_array_equal(ours["conv"]["kernel"][:, :, 1:], fresh[:, :, 1:])
    assert one["params"]["head"] is seen["network"].params["head"]
  content = results.read(workdir, "sf_ratio")
  assert content["initial"]["fingerprint"] == source.about["fingerprint"]
  assert any("pretraining without labels" in note for note in content["notes"])
  # Whoever tests was not to be pretrained on.
  config = task_config(
    "sf_ratio",
    **{"model.init_from": os.fspath(finished["video"]), "folds.cv": "rotate", "name": "rotated"},
    **{"folds.leakage": "strict", "folds.n": 5},
  )
  monkeypatch.setattr(clinical_run, "plan_segmentations", lambda *args: [])
  with pytest.raises(UserError, match=r"in (test|validation) and in the training that its weights"):
    clinical_run.train_and_evaluate(config, workdir)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"network": "transformer"}, "config.network: 'transformer' is not known"),
    ({"clip.n_segment": 4}, "config.clip.n_segment: 4 frames are for --config.network=video"),
    ({"mask.share": 1.0}, "config.mask.share: 1.0"),
    ({"mask.cells": 1}, "config.mask.cells: 1"),
    ({"augment.shift": 1.5}, "config.augment.shift: 1.5"),
    ({"augment.gamma": (2.0, 1.0)}, "config.augment.gamma"),
    ({"model.init_from": "nowhere"}, "neither the directory of a run nor a file"),
  ],
)
def test_a_bad_value_is_refused_before_anything_is_written(heads, tmp_path, changes, message):
  config = make_config(tmp_path / "data", **changes)
  with pytest.raises(UserError, match=message.replace("(", r"\(")):
    run.train_and_evaluate(config, tmp_path / "run")
  assert list(tmp_path.iterdir()) == []


def test_its_config_has_the_sizes_of_the_segmentation():
  for size in pretrain.SIZES:
    config, theirs = pretrain.get_config(size), seg.get_config(size)
    assert config.data.image_size == theirs.data.image_size
    assert {k: config.model[k] for k in config.model} == {k: theirs.model[k] for k in theirs.model}
    run.check(config)
