"""The gallery: its maps are the models', its labels the annotators', and its controls work."""

import base64
import dataclasses
import functools
import io
import json
import re
import shutil
import sys
import zlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from lus_jax import palette, report, results
from lus_jax.data import datasets, summary
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.media import scan_area
from lus_jax.media.letterbox import letterbox
from lus_jax.report import __main__ as command
from lus_jax.report import clips, gallery, page

SIZE = 32
NAMES = ("b/line~ <x>", "</script><img src=x onerror=alert(1)>")


class Read:
  """A gallery's file, unpacked without its own script."""

  def __init__(self, workdir):
    self.text = (workdir / "report" / "gallery.html").read_text()
    self.about = json.loads(self.script("about"))
    self.clips = {one["name"]: c for c, one in enumerate(self.about["clips"])}

  def script(self, name):
    return re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', self.text, re.S)[1]

  def bytes(self, name):
    return base64.b64decode(self.script(name), validate=True)

  def maps(self, c):
    """Steps of probability [frames, T, h, w, K] of a clip."""
    one = self.about["clips"][c]
    shape = len(self.about["classes"]), len(self.about["thresholds"]), *one["map"]
    blocks = [
      np.frombuffer(zlib.decompress(self.bytes(f"maps-{c}-{b}")), np.uint8).reshape(
        *shape, block["n"]
      )
      for b, block in enumerate(one["blocks"])
    ]
    return np.concatenate(blocks, axis=-1).transpose(4, 1, 2, 3, 0)

  def label(self, c, n):
    """How many thresholds each pixel passes [h, w, K]."""
    content = zlib.decompress(self.bytes(f"label-{c}-{n}"))
    shape = len(self.about["classes"]), *self.about["clips"][c]["net"]
    return np.moveaxis(np.frombuffer(content, np.uint8).reshape(shape), 0, -1)

  def frame(self, c, i):
    one = self.about["clips"][c]
    b = max(b for b, block in enumerate(one["blocks"]) if block["start"] <= i)
    row, column = divmod(i - one["blocks"][b]["start"], self.about["columns"])
    sprite = np.asarray(Image.open(io.BytesIO(self.bytes(f"sprite-{c}-{b}"))))[..., 0]
    height, width = one["size"]
    return sprite[row * height :, column * width :][:height, :width]


def predicted(trained, frames, box=None):
  """[n, T, S, S, K] of frames [n, h, w] without the sweep, and their valid box."""
  fitted = [letterbox(x if box is None else scan_area.crop(x, box), SIZE, SIZE) for x in frames]
  image = np.stack([x for x, _ in fitted])[..., None].astype(np.float32) / 255
  valid = fitted[0][1]
  where = np.zeros(image.shape, bool)
  where[:, valid[0] : valid[2], valid[1] : valid[3]] = True
  members = zip(trained.sweep.to_host(trained.weights), trained.sweep.members, strict=True)
  found = [np.asarray(jax.jit(trained.probability)(w, own, image, where)) for w, own in members]
  return np.stack(found, axis=1), valid


def check_steps(steps, probability):
  """Steps are those of the probability, and one half is the edge of one."""
  assert steps.shape == probability.shape
  byte = np.rint(255 * probability)
  # Where float32 of another program lies on the other side of an edge.
  sure = np.abs(255 * probability % 1 - 0.5) > 1e-3
  np.testing.assert_array_equal(steps[sure], (byte // 16).astype(np.uint8)[sure])
  assert np.ptp(steps) > 2


@pytest.fixture(scope="module")
def own(toy_segmentation, segmentation_config, make_run, tmp_path_factory):
  """A run of toys on the phantom with scores of its test frames, and its gallery."""
  workdir = shutil.copytree(toy_segmentation, tmp_path_factory.mktemp("runs") / "run")
  settings = json.loads(segmentation_config.to_json())
  dataset = datasets.open_dataset(segmentation_config.data, "frames")
  scores = results.read(make_run(thresholds=(0.6, 0.0)), "segmentation")
  write = functools.partial(
    results.write, workdir, config=settings, dataset=dataset.summary(), split="test"
  )
  write("segmentation", **{key: scores[key] for key in ("rows", "predictors", "notes")})
  rows = [
    {"index": i, **summary.provenance(example)}
    | {"iou": {"threshold_0.6": i / 100, "threshold_0": None if i == 1 else i / 50}}
    for i, example in enumerate(dataset.splits["test"])
  ]
  write("cases", rows=rows)
  file, broken = gallery.write(workdir)
  assert file == workdir / "report" / "gallery.html" and not broken
  return workdir


def test_own_clips_show_the_models_maps_and_the_labels(own, segmentation_config):
  found = Read(own)
  videos = datasets.open_dataset(segmentation_config.data, "videos").splits["test"]
  labelled = list(datasets.open_dataset(segmentation_config.data, "frames").splits["test"])
  frames = {x["video"].decode(): x["frames"][..., 0] for x in videos}
  trained = trained_lib.load(own).only([1, 0])
  assert found.about["thresholds"] == ["> 0%", "60%"]
  scores = {x["video"].decode(): i for i, x in enumerate(labelled)}
  ranked = [one["name"] for one in found.about["clips"]]
  # The one without an IoU at one threshold has that of the other.
  mean = {name: i / 100 if i == 1 else (i / 100 + i / 50) / 2 for name, i in scores.items()}
  assert ranked == sorted(scores, key=lambda name: -mean[name])[: len(ranked)]
  for name in (ranked[0], ranked[-1]):
    c, one = found.clips[name], found.about["clips"][found.clips[name]]
    assert one["numbers"] == [0, 1, 2] and one["of"] == 3
    probability, _ = predicted(trained, frames[name])
    check_steps(found.maps(c), probability)
    np.testing.assert_array_equal(one["areas"], (np.rint(255 * probability) >= 128).sum((2, 3)))
    shown = np.stack([found.frame(c, i) for i in range(3)]).astype(int)
    assert np.abs(shown - frames[name]).mean() < 8  # compressed
    example = labelled[scores[name]]
    [label] = one["labels"]
    confidence = example["confidence"] / 255
    passed = (confidence > 0).astype(int) + (confidence >= 0.6 - 1e-3)
    np.testing.assert_array_equal(found.label(c, 0), passed)
    np.testing.assert_array_equal(label["areas"], [(passed > t).sum((0, 1)) for t in (0, 1)])
    assert label["at"] == 0 and label["annotator"] == example["annotator"].decode()
    i = scores[name]
    assert label["iou"] == [None if i == 1 else i / 50, i / 100]
    assert ["place by IoU", f"{c + 1} of {len(scores)}"] in one["facts"]


def test_a_video_that_is_another_now_is_not_shown(own, monkeypatch):
  trained = trained_lib.load(own).only([1, 0])
  candidates, _ = clips.of_test_split(trained, own)
  real = candidates[0].open()
  assert real.recording.whole and not real.notes
  changed = dataclasses.replace(
    real.recording, read=lambda n: (np.full((32, 32), 9, "u1") for _ in n)
  )
  monkeypatch.setattr(clips.recordings, "find", lambda *_: {candidates[0].name: changed})
  alone = clips.of_test_split(trained, own)[0][0].open()
  assert "has changed" in alone.notes[0] and list(alone.recording.numbers) == [0]
  [stored] = alone.recording.read([0])
  [before] = real.recording.read([0])
  np.testing.assert_array_equal(stored, before)

  # Simulated frames are the same to the last digit, or others.
  nearly = dataclasses.replace(
    real.recording, read=lambda n: (x ^ (x > 99) for x in real.recording.read(n))
  )
  monkeypatch.setattr(clips.recordings, "find", lambda *_: {candidates[0].name: nearly})
  assert "has changed" in clips.of_test_split(trained, own)[0][0].open().notes[0]

  def damaged(numbers):
    raise UserError("it is damaged")
    yield

  broken = dataclasses.replace(changed, read=damaged)
  monkeypatch.setattr(clips.recordings, "find", lambda *_: {candidates[0].name: broken})
  candidates, _ = clips.of_test_split(trained, own)
  with pytest.raises(UserError, match="it is damaged"):
    candidates[0].open()
  assert "was not found" in candidates[1].open().notes[0]


def test_prepared_data_that_are_gone_are_named(own, tmp_path):
  trained = trained_lib.load(own)
  trained.config.data.prepared_dir = str(tmp_path)
  with pytest.raises(UserError, match="prepared data of the run, is not there"):
    clips.of_test_split(trained, own)


@pytest.fixture
def models(toy_trained, make_run, monkeypatch):
  """Networks with classes of any name, whose run has results."""
  made = toy_trained(range(3))
  config = ConfigDict(made.config.to_dict() | {"data": {"image_size": SIZE}})
  made = dataclasses.replace(
    made, config=config, dataset={"name": "my <lungs> & others", "classes": list(NAMES)}
  )
  monkeypatch.setattr(trained_lib, "load", lambda workdir, option="": made)
  return made


def noise(n, height, width, seed=1):
  smooth = ndimage.gaussian_filter(
    np.random.default_rng(seed).random((n, height, width)), (0, 2, 2)
  )
  return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


@pytest.fixture
def build():
  """`report.build`, for which there is another in `call`: its figures take long."""
  return report.build


@pytest.fixture
def call(build, models, make_run, monkeypatch):
  """`call(*words)` runs the command without the report; the run's directory, and the exit code."""
  workdir = make_run(thresholds=(1.0, 0.5, 0.0), simulated=False)
  monkeypatch.setattr(report, "build", lambda workdir: "report")
  monkeypatch.setattr(command.command_line, "keep_compiled", lambda directory: None)

  def run(*words):
    monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(workdir), *map(str, words)])
    return workdir, command.main()

  return run


@pytest.mark.parametrize("shape", [(6, 40, 100), (1, 33, 47), (5, 300, 64)])
def test_named_clips_of_any_size(call, models, tmp_path, shape):
  frames = noise(*shape)
  np.save(tmp_path / "a.npy", frames)
  workdir, code = call("--gallery", tmp_path / "a.npy", "--gallery-frames", 5)
  assert code == 0
  found = Read(workdir)
  [one] = found.about["clips"]
  n = min(5, len(frames))
  numbers = np.linspace(0, len(frames) - 1, n).round().astype(int).tolist()
  assert one["numbers"] == numbers and one["of"] == len(frames)
  assert ("shown, evenly spaced" in str(one["notes"])) == (len(frames) > n)
  probability, (top, left, bottom, right) = predicted(models, frames[numbers])
  inside = probability[:, :, top:bottom, left:right]
  check_steps(found.maps(0), inside)
  np.testing.assert_array_equal(one["areas"], (np.rint(255 * inside) >= 128).sum((2, 3)))
  scale = min(1, 256 / max(shape[1:]))
  assert one["size"] == [round(scale * x) for x in shape[1:]]
  for i, number in enumerate(numbers):
    expected = Image.fromarray(frames[number]).resize(one["size"][::-1], Image.Resampling.BILINEAR)
    assert np.abs(found.frame(0, i).astype(int) - np.asarray(expected)).mean() < 8
  assert len(np.unique(found.frame(0, 0))) > 20


@pytest.mark.parametrize("learned_from_scans", [False, True])
def test_the_scan_area_alone_is_shown(call, models, tmp_path, monkeypatch, learned_from_scans):
  models.dataset.update({"has_scan_areas": True} if learned_from_scans else {})
  box = (16, 24, 64, 88)
  monkeypatch.setattr(scan_area, "find", lambda media: scan_area.Area(box, "motion"))
  frames = noise(3, 80, 112)
  frames[:, :12, :] = 255  # a name
  np.save(tmp_path / "a.npy", frames)
  workdir, code = call("--gallery", tmp_path / "a.npy")
  assert code == 0
  found = Read(workdir)
  [one] = found.about["clips"]
  assert ["scan area", "24 16 64 48, found by what moves"] in one["facts"]
  assert one["size"] == [48, 64]
  assert np.abs(found.frame(0, 1).astype(int) - scan_area.crop(frames, box)[1]).mean() < 8
  probability, valid = predicted(models, frames, box if learned_from_scans else None)
  if learned_from_scans:
    check_steps(found.maps(0), probability[:, :, valid[0] : valid[2], :])
    return
  # A part of the networks' frames, which begins between their pixels.
  scale = (valid[2] - valid[0]) / 80
  height, width = one["map"]
  assert (height, width) == (round(48 * scale), round(64 * SIZE / 112))
  rows = valid[0] + 16 * scale + (np.arange(height) + 0.5) * 48 * scale / height - 0.5
  columns = 24 * SIZE / 112 + (np.arange(width) + 0.5) * 64 * SIZE / 112 / width - 0.5
  at = np.stack(np.meshgrid(rows, columns, indexing="ij"))
  for t in range(3):
    for k in range(2):
      expected = ndimage.map_coordinates(probability[0, t, ..., k], at, order=1)
      middle = (found.maps(0)[0, t, ..., k] + 0.5) / 16
      np.testing.assert_allclose(middle, expected, atol=1 / 32 + 0.06)


def test_a_broken_clip_is_named_and_the_others_come_out(call, tmp_path, capsys):
  folder = tmp_path / "clips"
  folder.mkdir()
  np.save(folder / "a.npy", noise(3, 40, 40))
  (folder / "b<i>.mp4").write_bytes(b"no video")
  whole = io.BytesIO()
  np.save(whole, noise(9, 40, 40, seed=2))
  (folder / "c.npy").write_bytes(whole.getvalue()[:-50])
  np.save(folder / "d.npy", noise(2, 40, 40, seed=3))
  (folder / "notes.txt").write_text("text")
  workdir, code = call("--gallery", folder)
  assert code == 1
  said = capsys.readouterr().err
  assert "b<i>.mp4" in said and "c.npy" in said and "notes.txt" in said
  found = Read(workdir)
  assert list(found.clips) == ["a.npy", "d.npy"]
  assert "<strong>b&lt;i&gt;.mp4</strong>" in found.text and "<strong>c.npy</strong>" in found.text
  workdir, code = call("--gallery", folder / "b<i>.mp4")
  assert code == 2 and "no clip can be shown" in capsys.readouterr().err
  assert list(Read(workdir).clips) == ["a.npy", "d.npy"]  # as it was


def test_what_has_no_room_is_named(call, tmp_path, capsys):
  for i in range(3):
    np.save(tmp_path / f"{i}.npy", noise(8, 60, 60, seed=i))
  files = sorted(tmp_path.glob("?.npy"))
  workdir, _ = call("--gallery", *files)
  least = (workdir / "report" / "gallery.html").stat().st_size
  capsys.readouterr()
  assert call("--gallery", *files, "--gallery-megabytes", 0.025)[1] == 0
  assert "left out for want of room: 1.npy, 2.npy" in capsys.readouterr().err
  found = Read(workdir)
  assert list(found.clips) == ["0.npy"] and "1.npy, 2.npy</li>" in found.text
  assert len(found.text) < least
  assert call("--gallery", *files, "--gallery-megabytes", 0.001)[1] == 2
  assert call("--gallery", *files, "--gallery-frames", 0)[1] == 2


def test_the_page_is_the_same_again_and_the_report_knows_it(call, tmp_path, build):
  np.save(tmp_path / "a.npy", noise(3, 40, 40))
  workdir, _ = call("--gallery", tmp_path / "a.npy")
  file = workdir / "report" / "gallery.html"
  first = file.read_bytes()
  call("--gallery", tmp_path / "a.npy")
  assert file.read_bytes() == first
  assert build(workdir).read_text().count('href="gallery.html"') == 2
  assert file.read_bytes() == first
  content = results.read(workdir, "segmentation")
  content["rows"][0]["iou"] = 0.123
  (workdir / "results" / "segmentation.json").write_text(json.dumps(content))
  problems = []
  assert not page.has_gallery(workdir, problems)
  assert "is of other results than these" in problems[0]


def test_an_interruption_leaves_what_was_there(call, tmp_path, monkeypatch):
  np.save(tmp_path / "a.npy", noise(3, 40, 40))
  workdir, _ = call("--gallery", tmp_path / "a.npy")
  before = {file.name: file.read_bytes() for file in (workdir / "report").glob("*.*")}

  fit, seen = gallery.frames_lib.fit, []

  def interrupted(*args):
    seen.append(args)
    if len(seen) == 2:
      raise KeyboardInterrupt
    return fit(*args)

  monkeypatch.setattr(gallery.frames_lib, "fit", interrupted)
  np.save(tmp_path / "a.npy", noise(9, 40, 40))
  assert call("--gallery", tmp_path / "a.npy")[1] == 130
  assert before == {file.name: file.read_bytes() for file in (workdir / "report").glob("*.*")}


def test_labelled_frames_stand_in_place_of_others():
  def numbers(total, n_frames, labelled):
    recording = clips.recordings.Recording(range(total), None, 8, 8)
    clip = clips.Clip("a", recording, (0, 0, 8, 8), labelled=labelled)
    return gallery.frame_numbers(clip, n_frames)

  assert numbers(10, 4, ()) == [0, 3, 6, 9]
  assert numbers(10, 4, (2, 4)) == [0, 2, 4, 9]
  assert numbers(10, 2, (3, 5, 6)) == [3, 5]
  assert numbers(3, 60, (1,)) == [0, 1, 2]


class Visit:
  """A gallery in the browser, without errors and requests until it is closed."""

  def __init__(self, browser, workdir, width=1000):
    self.context = browser.new_context(viewport={"width": width, "height": 800})
    self.page, self.problems = self.context.new_page(), []
    self.page.on("pageerror", lambda error: self.problems.append(str(error)))
    self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
    self.page.on("console", lambda said: self.heard(said))
    self.page.on("request", lambda request: self.asked(request.url))
    self.page.goto((workdir / "report" / "gallery.html").as_uri())
    self.ready()

  def heard(self, said):
    if said.type in ("error", "warning") and not re.search("GPU stall|readback", said.text):
      self.problems.append(said.text)

  def asked(self, url):
    if not url.startswith(("data:", "file:")):
      self.problems.append(url)

  def ready(self):
    self.page.wait_for_selector("body[data-state=ready]", timeout=15_000)

  def text(self, name):
    return self.page.inner_text(f"#{name}")

  def value(self, name):
    return int(self.page.input_value(f"#{name}"))

  def shown(self, name):
    return self.page.is_visible(f"#{name}")

  def pixels(self, name):
    """A canvas [h, w, 3] as whole numbers."""
    width, height, values = self.page.evaluate(
      """(id) => {
        const canvas = document.getElementById(id);
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, Array.from(data)];
      }""",
      name,
    )
    return np.reshape(values, (height, width, 4))[..., :3]

  def fits(self):
    return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

  def close(self):
    assert not self.problems
    self.context.close()


def opacities(steps):
  """Of steps of probability [h, w, K]."""
  return np.where(steps > 0, (steps + 0.5) / 16, 0).astype(np.float32)


def test_the_page_draws_what_the_file_holds(own, browser):
  found, visit = Read(own), Visit(browser, own)
  maps, passed = found.maps(0), found.label(0, 0)
  visit.page.locator("#threshold").focus()
  visit.page.keyboard.press("Home")
  for t, at in enumerate(found.about["thresholds"]):
    assert visit.text("threshold-text") == at and at in visit.text("model-text")
    plain = visit.pixels("plain")
    assert np.ptp(plain, axis=-1).max() <= 1  # grey, but for WebP's rounding
    np.testing.assert_allclose(plain[..., 0], found.frame(0, 0), atol=3)
    expected = palette.overlay(plain[..., 0], opacities(maps[0, t]))
    np.testing.assert_allclose(visit.pixels("model"), expected, atol=2)
    expected = palette.overlay(plain[..., 0], (passed > t).astype(np.float32))
    np.testing.assert_allclose(visit.pixels("painted"), expected, atol=2)
    iou = found.about["clips"][0]["labels"][0]["iou"][t]
    assert f"IoU of the drawing {iou:.3f}".replace("0.", ".") in visit.text("model-text")
    row = visit.page.locator("#areas tr.now").inner_text().split("\t")
    areas = np.array(found.about["clips"][0]["areas"][0][t]) / SIZE**2
    painted = np.array(found.about["clips"][0]["labels"][0]["areas"][t]) / SIZE**2
    assert row == [at, *(f"{a:.1%} ({b:.1%})" for a, b in zip(areas, painted, strict=True))]
    visit.page.keyboard.press("ArrowRight")
  # A drawing, and one class of it alone.
  visit.page.keyboard.press("d")
  for k in range(2, len(found.about["classes"]) + 1):
    visit.page.keyboard.press(str(k))
  alone = np.zeros(maps.shape[2:], np.float32)
  alone[..., 0] = maps[0, 1, ..., 0] >= 8
  expected = palette.overlay(visit.pixels("plain")[..., 0], alone)
  np.testing.assert_allclose(visit.pixels("model"), expected, atol=2)
  assert visit.page.locator("#head th").all_inner_texts() == ["threshold", "sharp_pleura"]
  # A frame that nobody painted, and back.
  visit.page.keyboard.press("Escape")
  visit.page.locator("#frame").focus()
  visit.page.keyboard.press("End")
  assert visit.value("frame") == 2 and "Nobody painted" in visit.text("painted-text")
  assert np.ptp(visit.pixels("painted")) < 20
  expected = alone.copy()
  expected[..., 0] = maps[2, 1, ..., 0] >= 8
  expected = palette.overlay(visit.pixels("plain")[..., 0], expected)
  np.testing.assert_allclose(visit.pixels("model"), expected, atol=2)
  visit.page.click("#labelled")
  assert visit.value("frame") == 0 and "Label at 60%" in visit.text("painted-text")
  # The last clip has another frame.
  before = visit.pixels("plain")
  visit.page.select_option("#clip", str(len(found.clips) - 1))
  visit.ready()
  np.testing.assert_allclose(
    visit.pixels("plain")[..., 0], found.frame(len(found.clips) - 1, 0), atol=3
  )
  assert np.abs(before - visit.pixels("plain")).mean() > 3
  visit.close()


def test_it_plays_and_names_are_text(call, browser, tmp_path):
  hostile = "a<img src=x onerror=alert(2)>&quot;.npy"
  np.save(tmp_path / hostile, noise(12, 40, 100))
  np.save(tmp_path / f"one{'_long_name' * 20}.npy", noise(1, 33, 47))
  workdir, code = call("--gallery", *sorted(tmp_path.glob("*.npy")))
  assert code == 0
  visit = Visit(browser, workdir, width=380)
  assert visit.fits()
  assert visit.page.locator("#clip option").first.inner_text() == hostile
  labels = visit.page.locator("#classes label").all_inner_texts()
  assert [one.strip() for one in labels] == list(NAMES)
  assert not visit.shown("painted-figure") and not visit.shown("labelled")
  assert "trained on is not known here" in visit.page.inner_text("header")
  visit.page.keyboard.press("ArrowRight")
  assert visit.value("frame") == 1
  visit.page.keyboard.press("ArrowUp")
  assert visit.text("threshold-text") == "100%"
  visit.page.keyboard.press("Space")
  assert visit.text("play") == "Stop"
  passing = []
  while len(passing) < 3:
    visit.page.wait_for_timeout(20)
    passing = list(dict.fromkeys([*passing, visit.value("frame")]))
  assert passing == sorted(passing)
  visit.page.keyboard.press("Space")
  at = visit.value("frame")
  assert visit.text("play") == "Play"
  visit.page.wait_for_timeout(200)
  assert visit.value("frame") == at
  box = visit.page.locator("#plot").bounding_box()
  visit.page.locator("#plot").click(position={"x": 0.97 * box["width"], "y": 40})
  assert visit.value("frame") == 11
  visit.page.keyboard.press("n")
  visit.page.wait_for_timeout(50)
  visit.ready()
  assert visit.value("clip") == 1 and not visit.shown("frames") and not visit.shown("curve")
  assert visit.pixels("model").shape == (33, 47, 3) and visit.fits()
  visit.page.keyboard.press("Space")  # nothing to play
  visit.page.emulate_media(media="print")
  assert not visit.shown("threshold") and visit.shown("model") and visit.fits()
  visit.close()
