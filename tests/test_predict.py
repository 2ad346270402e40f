"""Prediction: what the networks say about a frame, in the frame's own geometry, as files."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image
from pydicom.pixels import pixel_array
from scipy import ndimage

from lus_jax import palette, predict
from lus_jax.evaluation import segmentation as evaluation
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.media import letterbox as letterbox_lib
from lus_jax.media import readers
from lus_jax.media.letterbox import letterbox
from lus_jax.models import resnet
from lus_jax.tasks.segmentation import train
from lus_jax.training import objective as objective_lib
from lus_jax.training.sweep import Sweep
from tests.faults import seeds
from tfds_builders.lus_folder import manifest

SIZE = 32
CLASSES = ("pleura", "b line")
THRESHOLDS = (0.8, 0.6, 0.0)


def reference(trained, frames):
  """[T, N, S, S, K] of letterboxed frames, by the evaluation; and their valid box."""
  fitted = [letterbox(frame, SIZE, SIZE) for frame in frames]
  n = len(frames)
  batch = {
    "image": np.stack([image for image, _ in fitted])[..., None],
    "confidence": np.zeros((n, SIZE, SIZE, len(CLASSES)), np.uint8),
    "labelled": np.ones((n, len(CLASSES)), bool),
    "valid_box": np.stack([box for _, box in fitted]),
  }
  return evaluation.predict(trained, batch), fitted[0][1]


def make_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "data": {"image_size": SIZE},
      "model": {"encoder": "resnet18", "width": 0.125, "dropout": 0.2, "dtype": "float32"},
      "sweep": {"thresholds": THRESHOLDS, "seeds": 1, "strategy": "loop", "members": ()},
      "loss": {"name": "weighted_cross_entropy", "weights": "paper"},
    }
  )


def make_model(config):
  objective = objective_lib.Objective(config)
  sweep = Sweep(objective.of_all_seeds()[1], "loop")
  network, state = train.initial_state(
    config, objective, sweep, in_channels=1, classes=len(CLASSES), tx=optax.identity()
  )
  r = np.random.default_rng(0)

  # Untrained networks say .5 everywhere; the best weights differ between members.
  def shaken(params):
    return jax.tree.map(lambda x: x + (0.1 * r.standard_normal(x.shape)).astype(np.float32), params)

  state = [dataclasses.replace(one, best_params=shaken(one.best_params)) for one in state]
  dataset = {"name": "made_up", "classes": list(CLASSES)}
  return trained_lib.freeze(
    network, sweep, state, objective, config=config, dataset=dataset, patients={}
  )


@pytest.fixture(scope="module")
def model():
  return make_model(make_config())


@pytest.fixture
def load(model, monkeypatch):
  monkeypatch.setattr(trained_lib, "load", lambda workdir, every=False, option="": model)


def clip(height, width, n=6):
  noise = np.random.default_rng(1).random((n, height, width))
  smooth = np.stack([ndimage.gaussian_filter(one, 2) for one in noise])
  smooth -= smooth.min()
  return np.rint(255 * smooth / smooth.max()).astype(np.uint8)


def call(**options):
  return predict.main(
    ["predict", "--compilation_cache=", *(f"--{k}={v}" for k, v in options.items())]
  )


def read(out, threshold, frame, classes=CLASSES):
  folder = out / f"threshold_{threshold:g}" / f"{frame:06d}"
  assert sorted(path.name for path in folder.iterdir()) == sorted(f"{c}.png" for c in classes)
  masks = [Image.open(folder / f"{name}.png") for name in classes]
  assert {mask.mode for mask in masks} == {"L"}
  return np.stack([np.asarray(mask) for mask in masks], axis=-1)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_masks_are_what_the_evaluation_sees(strategy, tmp_path, monkeypatch, model):
  trained = model
  if strategy == "vmap":
    sweep = dataclasses.replace(trained.sweep, strategy="vmap")
    trained = dataclasses.replace(trained, sweep=sweep, weights=sweep.place(trained.weights))
  monkeypatch.setattr(trained_lib, "load", lambda workdir, every=False, option="": trained)
  frames = clip(SIZE, SIZE)
  np.save(tmp_path / "clip.npy", frames)
  out = tmp_path / "out"
  assert call(workdir="run", input=tmp_path / "clip.npy", out=out, thresholds="0,.8") == 0
  maps, _ = reference(model, frames)
  assert maps.std(axis=(1, 2, 3)).min() > 0.01  # frames and places differ,
  assert abs(maps[0] - maps[2]).max() > 0.2  # and so do members
  for t, threshold in ((0, 0.8), (2, 0.0)):
    for i in range(len(frames)):
      np.testing.assert_allclose(read(out, threshold, i), 255 * maps[t, i], atol=0.51)
  assert not (out / "threshold_0.6").exists()


def test_networks_that_see_smaller_images_draw_at_the_size_of_the_frame(tmp_path, monkeypatch):
  config = make_config()
  config.model.update(shrink=2, encoder="toy")
  config.sweep.update(thresholds=(0.6,))
  monkeypatch.setitem(resnet.DEPTHS, "toy", ((1, 1, 1, 1), False))
  trained = make_model(config)
  monkeypatch.setattr(trained_lib, "load", lambda workdir, every=False, option="": trained)
  frames = clip(SIZE, 2 * SIZE, n=2)
  np.save(tmp_path / "clip.npy", frames)
  out = tmp_path / "out"
  assert call(workdir="run", input=tmp_path / "clip.npy", out=out, members="threshold_0.6") == 0
  maps, box = reference(trained, frames)
  assert maps.shape[2:] == (SIZE, SIZE, len(CLASSES)) and maps[0].std(axis=(1, 2)).min() > 0.01
  for i in range(len(frames)):
    theirs = letterbox_lib.restore(maps[0, i], box, SIZE, 2 * SIZE)
    np.testing.assert_allclose(read(out, 0.6, i).astype(int), theirs, atol=1)


def test_masks_and_overlays_have_the_geometry_of_the_frame(tmp_path, load, model):
  height, width = 40, 100
  frames = clip(height, width)
  np.save(tmp_path / "clip.npy", frames)
  out = tmp_path / "out"
  options = {"workdir": "run", "input": tmp_path / "clip.npy", "out": out}
  assert call(**options, frames="4,1", thresholds=".6") == 0
  maps, box = reference(model, frames)
  assert box == (9, 0, 22, 32)
  rows, columns = (np.arange(height) + 0.5) * 13 / height, (np.arange(width) + 0.5) * 32 / width
  at = np.stack(np.meshgrid(9 + rows - 0.5, columns - 0.5, indexing="ij"))
  at[0] = np.clip(at[0], 9, 21)  # nothing of the border comes in
  for i in (1, 4):
    masks = read(out, 0.6, i)
    assert masks.shape == (height, width, 2)
    for k in range(2):
      expected = ndimage.map_coordinates(maps[1, i, ..., k], at, order=1, mode="nearest")
      np.testing.assert_allclose(masks[..., k], 255 * expected, atol=0.51)
    overlay = np.asarray(Image.open(out / "overlays" / "threshold_0.6" / f"{i:06d}.png"))
    np.testing.assert_array_equal(overlay, palette.overlay(frames[i], masks / np.float32(255)))
  assert sorted(path.name for path in (out / "threshold_0.6").iterdir()) == ["000001", "000004"]
  record = json.loads((out / "prediction.json").read_text())
  expected = {
    "complete": True,
    "input": os.fspath(tmp_path / "clip.npy"),
    "workdir": "run",
    "thresholds": [0.6],
    "classes": list(CLASSES),
    "frames": [1, 4],
    "height": height,
    "width": width,
    "network_size": SIZE,
    "valid_box": [9, 0, 22, 32],
    "members": ["threshold_0.6"],
    "meaning": {"threshold_0.6": "value / 255 = P(confidence >= 0.6)"},
  }
  assert {name: record[name] for name in expected} == expected
  assert "jax" in record["versions"]


def test_restore_by_hand():
  probability = np.ones((4, 4, 1), np.float32)  # 1 outside the frame
  probability[1:3, :, 0] = [[0, 0, 0.4, 0.4], [0.8, 0.8, 0.4, 0.4]]
  box = (1, 0, 3, 4)
  np.testing.assert_array_equal(
    letterbox_lib.restore(probability, box, 2, 4)[..., 0], [[0, 0, 102, 102], [204, 204, 102, 102]]
  )
  # Twice the size: a quarter and three quarters of the way between pixel centres.
  doubled = letterbox_lib.restore(probability, box, 4, 8)[..., 0]
  np.testing.assert_array_equal(doubled[:, 0], [0, 51, 153, 204])
  np.testing.assert_array_equal(doubled[0], [0, 0, 0, 26, 76, 102, 102, 102])
  # Half the size: a triangle as wide as four pixels, cut off at the edge: weights 3 3 1 of 7.
  probability[..., 0] = np.array([[0], [0], [0.84], [0]])
  halved = letterbox_lib.restore(probability, (0, 0, 4, 4), 2, 2)
  np.testing.assert_array_equal(halved[..., 0], [[31, 31], [92, 92]])


def screen():
  """A clip on a larger black screen, and where it lies."""
  frames = np.zeros((6, 120, 160), np.uint8)
  box = (30, 40, 94, 104)
  frames[:, 30:94, 40:104] = clip(64, 64) // 2 + 64
  return frames, box


def test_what_is_cropped_is_predicted_as_if_it_were_the_frame(tmp_path, load, model):
  frames, (top, left, bottom, right) = screen()
  np.save(tmp_path / "screen.npy", frames)
  np.save(tmp_path / "scan.npy", np.ascontiguousarray(frames[:, top:bottom, left:right]))
  options = {"workdir": "run", "frames": "2,4"}
  assert call(**options, input=tmp_path / "scan.npy", out=tmp_path / "a") == 0
  out = tmp_path / "b"
  assert call(**options, input=tmp_path / "screen.npy", out=out, crop="40,30,64,64") == 0
  for threshold in THRESHOLDS:
    for i in (2, 4):
      scan, whole = read(tmp_path / "a", threshold, i), read(out, threshold, i)
      assert whole.shape == (120, 160, len(CLASSES)) and scan.any()
      np.testing.assert_array_equal(whole[top:bottom, left:right], scan)
      whole[top:bottom, left:right] = 0
      assert not whole.any()
  overlay = np.asarray(Image.open(out / "overlays" / "threshold_0.6" / "000002.png"))
  assert overlay.shape == (120, 160, 3)
  record = json.loads((out / "prediction.json").read_text())
  assert (record["scan_area"], record["scan_area_by"]) == ([top, left, bottom, right], "given")
  assert record["valid_box"] == [0, 0, SIZE, SIZE]
  assert (record["height"], record["width"]) == (120, 160)
  (one,) = frames_lib.predict(
    model, readers.probe(tmp_path / "screen.npy"), frames=[2], box=(top, left, bottom, right)
  )
  np.testing.assert_array_equal(one[1], frames[2])
  np.testing.assert_array_equal(one[2][1], read(out, 0.6, 2))


def test_the_scan_area_is_looked_for_where_the_models_learned_from_one(
  tmp_path, model, monkeypatch, capsys
):
  frames, box = screen()
  np.save(tmp_path / "screen.npy", frames)
  cropped = dataclasses.replace(model, dataset=model.dataset | {"has_scan_areas": True})
  found = {}
  for name, trained, crop in (
    ("plain", model, {}),
    ("learned", cropped, {}),
    ("auto", model, {"crop": "auto"}),
    ("none", cropped, {"crop": "none"}),
  ):
    monkeypatch.setattr(trained_lib, "load", lambda workdir, *_, trained=trained, **__: trained)
    options = {"input": tmp_path / "screen.npy", "out": tmp_path / name, "frames": "0"}
    assert call(workdir="run", thresholds=".6", **options, **crop) == 0
    record = json.loads((tmp_path / name / "prediction.json").read_text())
    found[name] = record["scan_area"], record["scan_area_by"]
    said = capsys.readouterr().out
    assert ("scan area " in said) == (record["scan_area_by"] == "motion")
    # Those of training may have been drawn by hand, which nobody knows here.
    assert ("some perhaps drawn by hand; here they are found" in said) == (name == "learned")
  assert found["plain"] == found["none"] == ([0, 0, 120, 160], "none")
  assert found["learned"] == found["auto"]
  area, by = found["auto"]
  assert by == "motion"
  np.testing.assert_allclose(area, box, atol=8)
  assert area[0] <= box[0] and area[1] <= box[1] and area[2] >= box[2] and area[3] >= box[3]


def test_a_prediction_from_before_there_were_scan_areas_is_known(tmp_path, load, capsys):
  np.save(tmp_path / "clip.npy", clip(20, 30))
  out = tmp_path / "out"
  options = {"workdir": "run", "input": tmp_path / "clip.npy", "out": out, "thresholds": ".6"}
  assert call(**options) == 0
  record = json.loads((out / "prediction.json").read_text())
  del record["scan_area"], record["scan_area_by"]
  (out / "prediction.json").write_text(json.dumps(record))
  assert call(**options) == 0
  assert call(**options, crop="2,3,20,10") == 2
  assert "(different: scan_area, scan_area_by, valid_box)" in capsys.readouterr().err


def test_a_folder_of_masks_is_read_as_a_data_set(tmp_path, load):
  videos = tmp_path / "set" / "videos"
  videos.mkdir(parents=True)
  np.save(videos / "clip.npy", clip(24, 20))
  out = tmp_path / "set" / "predicted"
  assert call(workdir="run", input=videos / "clip.npy", out=out, frames="3") == 0
  (out / "threshold_0.6").rename(tmp_path / "set" / "masks")
  dataset = {"name": "mine", "licence": "none", "classes": list(CLASSES)}
  (tmp_path / "set" / "dataset.json").write_text(json.dumps(dataset))
  (tmp_path / "set" / "manifest.csv").write_text("video,patient\nclip.npy,a\n")
  (tmp_path / "set" / "labels.csv").write_text("video,frame,masks\nclip.npy,3,000003\n")
  (label,) = manifest.read_folder(tmp_path / "set").labels
  assert set(label.masks) == set(CLASSES)
  assert readers.read_mask(label.masks["pleura"]).shape == (24, 20)


def test_a_clip_is_decoded_in_runs_and_compiled_for_once(tmp_path, load, monkeypatch):
  np.save(tmp_path / "clip.npy", clip(20, 30, n=11))
  whole = list(run_frames(tmp_path / "clip.npy", range(11)))
  shapes, decoded = [], []
  probability, decode = trained_lib.Trained.probability, readers.stream

  def traced(self, weights, member, image, where):
    shapes.append(image.shape)
    return probability(self, weights, member, image, where)

  def counted(media, frames):
    decoded.append(list(frames))
    return decode(media, frames)

  monkeypatch.setattr(trained_lib.Trained, "probability", traced)
  monkeypatch.setattr(readers, "stream", counted)
  monkeypatch.setattr(frames_lib, "DECODED", 8)
  parts = list(run_frames(tmp_path / "clip.npy", range(11)))
  assert shapes == [(4, SIZE, SIZE, 1)]
  assert decoded == [list(range(11))]
  assert [number for number, *_ in parts] == list(range(11))
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(a[2], b[2])


def run_frames(path, frames):
  trained = trained_lib.load("run")
  chosen = [trained.thresholds.index(threshold) for threshold in (0.6, 0.0)]
  return frames_lib.predict(trained.only(chosen), readers.probe(path), frames=list(frames))


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_that_are_no_clip_are_predicted_one_by_one(tmp_path, load, model, capsys):
  folder, out = tmp_path / "pictures", tmp_path / "out"
  folder.mkdir()
  # Of other sizes, formats and names; a frame of a clip has none of these.
  frames = {"liver.png": clip(40, 100)[0], "b 2.jpg": clip(30, 30)[1], "b 1.TIF": clip(32, 32)[2]}
  for name, frame in frames.items():
    Image.fromarray(frame).save(folder / name)
  (folder / "notes.txt").touch()
  options = {"workdir": "run", "input": folder, "out": out, "thresholds": ".6"}
  assert call(**options) == 0
  printed = capsys.readouterr().out
  assert "each of its 3 pictures is predicted by itself; left out: 1 other(s) (notes." in printed
  assert "3 pictures, 1 model, 2 classes" in printed
  beside = ["index.html", "prediction.json", "videos.csv"]
  assert sorted(path.name for path in out.iterdir()) == sorted(["b 1", "b 2", "liver", *beside])
  record = json.loads((out / "prediction.json").read_text())
  assert record["complete"] and record["pictures"] == ["b 1", "b 2", "liver"]
  for name in ("liver.png", "b 1.TIF"):
    own = out / pathlib.Path(name).stem
    assert json.loads((own / "prediction.json").read_text())["input"] == str(folder / name)
    masks = read(own, 0.6, 0)
    assert masks.shape == (*frames[name].shape, 2)
  maps, _ = reference(model, frames["b 1.TIF"][None])
  np.testing.assert_allclose(read(out / "b 1", 0.6, 0), 255 * maps[1, 0], atol=0.51)
  assert call(**options) == 0  # the same again
  assert call(**options | {"frames": "0"}) == 2
  assert "no frames of one clip" in capsys.readouterr().err


@pytest.mark.parametrize(("numbers", "is_clip"), [((10, 20, 30), True), ((68, 180, 226), False)])
def test_a_folder_is_a_clip_where_its_numbers_are_evenly_spaced(
  tmp_path, load, capsys, numbers, is_clip
):
  folder, out = tmp_path / "pictures", tmp_path / "out"
  folder.mkdir()
  for number, frame in zip(numbers, clip(32, 32), strict=False):
    Image.fromarray(frame).save(folder / f"{number:04d}.png")
  assert call(workdir="run", input=folder, out=out, thresholds=".6") == 0
  said = "read as one clip of 3 frames" if is_clip else "are not evenly spaced): each of its 3"
  assert said in capsys.readouterr().out
  record = json.loads((out / "prediction.json").read_text())
  if is_clip:
    assert record["files"] == ["0010.png", "0020.png", "0030.png"]
  else:
    assert record["pictures"] == ["0068", "0180", "0226"]


def test_an_interrupted_prediction_is_written_again_and_another_one_is_refused(
  tmp_path, load, monkeypatch, capsys
):
  np.save(tmp_path / "clip.npy", clip(20, 30))
  out = tmp_path / "out"
  options = {"workdir": "run", "input": tmp_path / "clip.npy", "out": out, "thresholds": ".6"}
  overlay, drawn = palette.overlay, []

  def interrupted(image, weights):
    drawn.append(image)
    if len(drawn) > 2:
      raise KeyboardInterrupt
    return overlay(image, weights)

  with monkeypatch.context() as patch:
    patch.setattr(palette, "overlay", interrupted)
    assert call(**options) == 130
  assert json.loads((out / "prediction.json").read_text())["complete"] is False
  # Of what is not whole nothing is left.
  assert [path.name for path in out.rglob("*") if path.is_file()] == ["prediction.json"]
  assert call(**options) == 0
  first = contents(out)
  assert json.loads(first[out / "prediction.json"])["complete"] is True
  mask = out / "threshold_0.6" / "000002" / "pleura.png"
  mask.write_bytes(b"corrected")
  assert call(**options) == 2
  assert f"clip.npy: {mask} was changed since it was written" in capsys.readouterr().err
  assert mask.read_bytes() == b"corrected"
  mask.unlink()
  # Nor once it is being made again.
  with monkeypatch.context() as patch:
    patch.setattr(palette, "overlay", interrupted)
    assert call(**options) == 130
  another = out / "threshold_0.6" / "000001" / "pleura.png"
  another.write_bytes(b"corrected")
  assert call(**options) == 2
  assert f"{another} was changed since it was written" in capsys.readouterr().err
  another.write_bytes(first[another])
  assert call(**options) == 0
  assert contents(out) == first
  capsys.readouterr()
  assert call(**options | {"thresholds": ".6,.8", "frames": "1"}) == 2
  assert (
    "holds another prediction (different: thresholds, members, meaning, fingerprints, frames)"
    in capsys.readouterr().err
  )
  assert contents(out) == first


@pytest.fixture
def mixed(monkeypatch):
  """Members beside the thresholds, one of which is calibrated; `load` gives them if asked to."""
  config = make_config()
  config.sweep.members = ("soft", "svls(.6)", "ordinal")
  trained = make_model(config)
  # Calibrations of a run are all of one method, so that its models share a program.
  temperatures = {view.name: np.full(len(CLASSES), 1, np.float32) for view in trained.views}
  temperatures["soft"] *= 3
  own = [
    one | {"calibration": {"temperature": temperatures[view.name]}}
    for view, one in zip(trained.views, trained.sweep.members, strict=True)
  ]
  trained = dataclasses.replace(trained, sweep=dataclasses.replace(trained.sweep, members=own))
  asked = []

  def load(workdir, every=False, option=""):
    asked.append(every)
    return trained if every else trained.only(range(len(THRESHOLDS)))

  monkeypatch.setattr(trained_lib, "load", load)
  return trained, asked


def read_member(out, name, frame):
  folder = out / name / f"{frame:06d}"
  return np.stack([np.asarray(Image.open(folder / f"{c}.png")) for c in CLASSES], axis=-1)


def test_members_are_chosen_by_name_with_or_without_thresholds(tmp_path, mixed):
  _, asked = mixed
  np.save(tmp_path / "clip.npy", clip(SIZE, SIZE, n=2))
  options = {"workdir": "run", "input": tmp_path / "clip.npy"}

  def predicted(out, **more):
    assert call(**options, out=tmp_path / out, **more) == 0
    record = json.loads((tmp_path / out / "prediction.json").read_text())
    folders = {p.name for p in (tmp_path / out).iterdir() if p.is_dir()} - {"overlays"}
    assert folders == set(record["members"])
    return record

  # Without --members nothing but thresholds is loaded.
  record = predicted("plain")
  assert record["members"] == ["threshold_0.8", "threshold_0.6", "threshold_0"]
  assert asked == [False]
  record = predicted("both", members="ordinal_0.6,soft,soft", thresholds=".6")
  assert asked == [False, True]
  assert record["members"] == ["threshold_0.6", "ordinal_0.6", "soft"]
  assert record["meaning"] == {
    "threshold_0.6": "value / 255 = P(confidence >= 0.6)",
    "ordinal_0.6": "value / 255 = P(confidence >= 0.6)",
    "soft": "value / 255 = confidence",
  }
  # A threshold's name is a member's too.
  assert predicted("named", members="threshold_0,ordinal")["members"] == ["threshold_0", "ordinal"]
  same = [read_member(tmp_path / out, "threshold_0", 1) for out in ("plain", "named")]
  np.testing.assert_array_equal(*same)


def test_levels_are_nested_and_calibrations_applied_in_the_files(tmp_path, mixed):
  trained, _ = mixed
  frames = clip(50, 24, n=3)
  np.save(tmp_path / "clip.npy", frames)
  out = tmp_path / "out"
  names = ["ordinal_0", "ordinal_0.6", "ordinal_0.8", "soft"]
  assert call(workdir="run", input=tmp_path / "clip.npy", out=out, members=",".join(names)) == 0
  low, middle, high = (
    np.stack([read_member(out, name, i) for i in range(3)]).astype(int) for name in names[:3]
  )
  assert low.shape == (3, 50, 24, len(CLASSES))
  assert (low >= middle).all() and (middle >= high).all() and (low > high + 10).any()
  # Divided by 3, logits are nearer to 0 and probabilities to a half.
  image = letterbox(frames[0], SIZE, SIZE)[0][None, :, :, None].astype(np.float32) / 255
  _, box = letterbox(frames[0], SIZE, SIZE)
  where = np.zeros(image.shape, bool)
  where[:, box[0] : box[2], box[1] : box[3]] = True
  own = trained.sweep.members[3] | {"calibration": {}}
  raw = trained.probability(trained.weights[3], own, image, where)
  raw = np.clip(np.asarray(raw, np.float64)[0], 1e-9, 1 - 1e-9)
  expected = 1 / (1 + np.exp(-np.log(raw / (1 - raw)) / 3))
  assert np.abs(expected - raw)[where[0, ..., 0]].max() > 0.05
  expected = letterbox_lib.restore(expected.astype(np.float32), box, 50, 24)
  assert np.abs(read_member(out, "soft", 0).astype(int) - expected).max() <= 1


def test_a_member_nobody_knows_is_refused(tmp_path, mixed, capsys):
  np.save(tmp_path / "clip.npy", clip(20, 30))
  options = {"workdir": "run", "input": tmp_path / "clip.npy", "out": tmp_path / "out"}
  for more, message in (
    ({"members": "soft,hard"}, "no model of run is called 'hard'; there are threshold_0.8, "),
    ({"members": "ordinal_0.5"}, "'ordinal_0.5'; there are"),
    ({"members": "soft", "thresholds": ".5"}, "has the threshold 0.5; there are 0.8, 0.6, 0."),
  ):
    assert call(**options, **more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"input": "nope.png"}, "nope.png does not exist"),
    ({"input": "notes.txt"}, "notes.txt is of no known format"),
    ({"input": "broken.mp4"}, "broken.mp4 is damaged or not what its name says"),
    ({"input": "locked.png"}, "locked.png cannot be read; change its permissions"),
    ({"thresholds": ".6,.55"}, "has the threshold 0.55; there are 0.8, 0.6, 0."),
    ({"thresholds": "60%"}, "--thresholds=60%: write numbers, as .6,.5"),
    ({"frames": "0,6"}, "6 is not a frame of"),
    ({"crop": "0,0,30"}, "--crop=0,0,30: "),
    ({"crop": "0,0,90,20"}, "outside of its frame of"),
    ({"crop": "found"}, "X Y WIDTH HEIGHT"),
    ({"frames": "0,6"}, "clip.npy, which has 6 (0 to 5)."),
    ({"frames": "-1"}, "-1 is not a frame of"),
    ({"frames": "1.5"}, "--frames=1.5: write whole numbers, as 0,10,20"),
    ({"out": "taken"}, "taken holds other things; name a new or empty directory"),
    ({"out": "notes.txt"}, "notes.txt is a file; name a directory"),
    ({"out": "damaged"}, "prediction.json is damaged; name another --out"),
    ({"out": "notes.txt/out"}, "cannot be"),
    ({"size": "3"}, "Unknown command line flag 'size'"),
    ({"out": ""}, "--workdir, --input and --out are all needed"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
  tmp_path, load, monkeypatch, capsys, options, message
):
  monkeypatch.chdir(tmp_path)
  np.save("clip.npy", clip(20, 30))
  Image.new("L", (8, 8)).save("locked.png")
  for path in map(pathlib.Path, ("notes.txt", "broken.mp4", "taken/notes.txt")):
    path.parent.mkdir(exist_ok=True)
    path.write_text("notes")
  pathlib.Path("damaged").mkdir()
  pathlib.Path("damaged/prediction.json").write_text("[")
  access = os.access
  monkeypatch.setattr(
    os, "access", lambda path, mode: path.name != "locked.png" and access(path, mode)
  )
  before = contents(tmp_path)
  assert call(**{"workdir": "run", "input": "clip.npy", "out": "out"} | options) == 2
  printed = capsys.readouterr()
  (line,) = printed.err.strip().splitlines()
  assert line.startswith("error: ")
  assert message in line
  assert printed.out == ""
  assert contents(tmp_path) == before and not pathlib.Path("out").exists()


def test_a_workdir_without_a_run_is_refused(tmp_path, capsys):
  np.save(tmp_path / "clip.npy", clip(20, 30))
  for workdir in (tmp_path / "nope", tmp_path):
    assert call(workdir=workdir, input=tmp_path / "clip.npy", out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{workdir} holds no segmentation run; name one with --workdir=DIR" in error
    assert "config.channels" not in error
  assert not (tmp_path / "out").exists()


def test_the_command_line_helps():
  result = subprocess.run(
    [sys.executable, "-m", "lus_jax.predict", "--help"],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr
  for name in ("--workdir", "--input", "--out", "--thresholds", "--members", "--frames"):
    assert name in result.stdout
  for name in ("mov", "wmv", "DICOM", "NIfTI", "NRRD", "tiff", "folder of numbered pictures"):
    assert name in result.stdout


def test_dicom_segmentations_of_a_folder_name_what_is_no_dicom(load, tmp_path, capsys):
  source, out = tmp_path / "in", tmp_path / "out"
  frames = clip(40, 30, n=3)
  uids = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.8"}
  seeds.save_dicom(source / "a.dcm", seeds.dataset(frames, **uids))
  Image.fromarray(frames[0]).save(source / "b.png")
  options = {"workdir": "run", "input": source, "out": out, "thresholds": ".8"}
  assert call(**options, format="dicomseg,png") == 1
  assert "b.png is no DICOM file" in capsys.readouterr().err
  found = pixel_array(out / "a" / "dicomseg" / "threshold_0.8.dcm")
  masks = [read(out / "a", 0.8, i) for i in range(3)]
  np.testing.assert_array_equal(found, np.moveaxis(masks, -1, 1).reshape(found.shape))


def test_another_cut_is_another_prediction_where_it_is_seen(load, tmp_path, capsys):
  uids = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.8"}
  seeds.save_dicom(tmp_path / "a.dcm", seeds.dataset(clip(40, 30, n=2), **uids))
  options = {"workdir": "run", "input": tmp_path / "a.dcm", "thresholds": ".8"}
  for form, code in (("dicomseg-binary", 2), ("dicomseg", 0)):
    assert call(**options, out=tmp_path / form, format=form) == 0
    assert call(**options, out=tmp_path / form, format=form, cut=0.3) == code
    assert ("different: cut" in capsys.readouterr().err) == bool(code)
