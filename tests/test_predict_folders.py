"""Prediction of whole folders: what is found, tables, the page, and how it goes on."""

import csv
import dataclasses
import errno
import json
import pathlib
import re
import tracemalloc

import jax
import numpy as np
import pytest
import SimpleITK as sitk
from ml_collections import ConfigDict
from PIL import Image

from lus_jax import palette, predict
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import inputs as inputs_lib
from lus_jax.inference import page
from lus_jax.inference import trained as trained_lib
from lus_jax.inference.formats import dicomseg, png
from lus_jax.media import readers, writers
from lus_jax.media.clips import Media
from tests.faults import seeds

SIZE = 32
CLASSES = ("pleura", "b line")
NOTE = "simulated frames: they show that the method runs, nothing about patients."


@pytest.fixture(scope="module")
def model(toy_trained):
  trained = toy_trained([0, 1])
  config = trained.config.copy_and_resolve_references()
  config.data = ConfigDict({"image_size": SIZE})
  dataset = {"name": "made_up", "classes": list(CLASSES)}
  return dataclasses.replace(trained, config=config, dataset=dataset, notes=(NOTE,))


@pytest.fixture
def load(model, monkeypatch):
  monkeypatch.setattr(trained_lib, "load", lambda workdir, every=False, option="": model)


def noise(n, height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)


def call(**options):
  return predict.main(
    ["predict", "--compilation_cache=", *(f"--{k}={v}" for k, v in options.items())]
  )


def avi(target, frames, rate=20.0):
  media = Media(target, (target,), len(frames), *frames.shape[1:], frames_per_second=rate)
  return writers.write(target, frames, media)


@pytest.fixture
def folder(tmp_path):
  """A clip, stills in grey and colour, a folder of frames, a clip of one frame, a broken one."""
  top = tmp_path / "in"
  (top / "a" / "frames").mkdir(parents=True)
  (top / "stills").mkdir()
  avi(top / "a" / "clip", noise(6, 30, 45))
  np.save(top / "one.npy", noise(1, 33, 70, 1)[0])
  for i, frame in enumerate(noise(3, 40, 40, 2)):
    Image.fromarray(frame).save(top / "a" / "frames" / f"{i:03d}.png")
  Image.fromarray(noise(1, 50, 34, 3)[0]).save(top / "stills" / "grey.png")
  colours = np.moveaxis(noise(3, 37, 41, 4), 0, -1)
  Image.fromarray(colours).save(top / "stills" / "colour.png")
  whole = (top / "a" / "clip.avi").read_bytes()
  (top / "a" / "cut.avi").write_bytes(whole[: len(whole) // 2])
  (top / "a" / "notes.txt").write_text("notes")
  return top


NAMES = ["one", "a/clip", "a/frames", "stills/colour", "stills/grey"]


def rows_of(file):
  with file.open(newline="") as opened:
    return list(csv.DictReader(opened))


def contents(out):
  return {
    path.relative_to(out).as_posix(): path.read_bytes()
    for path in sorted(out.rglob("*"))
    if path.is_file()
  }


def test_all_that_can_be_read_comes_out_and_what_cannot_is_named(folder, tmp_path, load, capsys):
  out = tmp_path / "out"
  options = {"workdir": "run", "input": folder, "out": out, "format": "png,overlays,csv,npz"}
  assert call(**options) == 1
  printed = capsys.readouterr()
  assert printed.err.strip().splitlines()[-2] == "error: 1 file could not be read:"
  assert re.match(r"  a/cut: .*cut\.avi is .*truncated", printed.err.strip().splitlines()[-1])
  assert "left out: 1 other(s) (notes.txt)" in printed.out
  assert "frames is read as one clip of 3 frames" in printed.out
  assert f"note: {NOTE}" in printed.out
  record = json.loads((out / "prediction.json").read_text())
  assert sorted(record["clips"]) == sorted([*NAMES, "a/cut"])
  assert record["complete"] and list(record["failed"]) == ["a/cut"]
  assert not (out / "a" / "cut").exists()
  sizes = {"one": (33, 70), "a/clip": (30, 45), "a/frames": (40, 40), "stills/colour": (37, 41)}
  for name, size in (sizes | {"stills/grey": (50, 34)}).items():
    own = json.loads((out / name / "prediction.json").read_text())
    assert own["complete"] and (own["height"], own["width"]) == size
    member, last = own["members"][0], f"{own['frames'][-1]:06d}"
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / name / member / last / "pleura.png")))
    assert mask.shape == size
    with np.load(out / name / "npz" / f"{member}.npz") as found:
      np.testing.assert_allclose(found["probability"][-1, ..., 0], mask / 255, atol=1 / 255)
    rows = rows_of(out / name / "frames.csv")
    assert len(rows) == len(own["frames"]) * 2 * 2
    assert int(rows[-4]["area_pixels"]) == np.count_nonzero(mask >= 128)
  videos = rows_of(out / "videos.csv")
  assert [row["video"] for row in videos[::4]] == NAMES
  assert not (out / "patient_days.csv").exists()
  assert "patient_days.csv is not written: 5 clips without a patient and day" in printed.out
  check_page(out, record)


def check_page(out, record):
  text = (out / "index.html").read_text()
  for name in (*NAMES, "a/cut"):
    assert name in text
  assert NOTE[1:] in text and "Not predicted: 1" in text
  for name, meaning in record["meaning"].items():
    assert f"{name}: {meaning.removeprefix('value / 255 = ')}".replace(">", "&gt;") in text
  assert text.count("data:image/jpeg") == 1 + 3 + 3 + 1 + 1
  assert text.count("data:image/png") == 2 * 9
  # Nothing is fetched, nothing runs.
  assert "<script" not in text and "http" not in text.replace("http-equiv", "")


def test_the_page_shows_one_members_layers_at_a_time(tmp_path, load, browser):
  (tmp_path / "in").mkdir()
  for name in "ab":
    np.save(tmp_path / "in" / f"{name}.npy", noise(1, 20, 30)[0])
  assert call(workdir="run", input=tmp_path / "in", out=tmp_path / "out", format="csv") == 0
  opened = browser.new_page()
  opened.goto(f"file://{tmp_path / 'out' / 'index.html'}")
  seen = "els => els.filter(x => x.offsetParent).map(x => x.alt || x.ariaLabel)"
  for member in ("threshold_0", "threshold_1"):
    opened.get_by_text(member, exact=True).first.click()
    layers = opened.eval_on_selector_all(".shot img.m", seen)
    assert layers == [f"{member} on frame 0"] * 2
    assert opened.eval_on_selector_all("main .scroll", seen) == [f"Numbers of {member}"] * 2
  opened.close()


def test_names_and_patients_are_escaped(tmp_path, load):
  top, out = tmp_path / "<b>&in", tmp_path / "out"
  top.mkdir()
  np.save(top / "<i>x.npy", noise(1, 20, 30)[0])
  np.save(top / "y.npy", noise(1, 20, 30)[0])
  table = tmp_path / "t.csv"
  table.write_text("video,patient,day\n<i>x.npy,=1+1,2\n")
  assert call(workdir="run", input=top, out=out, table=table) == 0
  text = (out / "index.html").read_text()
  assert "&lt;i&gt;x" in text and "<i>x" not in text and "<b>&in" not in text
  assert rows_of(out / "videos.csv")[0]["patient"] == "'=1+1"


def test_patients_and_days_by_a_table(folder, tmp_path, load, capsys):
  (folder / "a" / "cut.avi").unlink()
  table, out = tmp_path / "table.csv", tmp_path / "out"
  table.write_text("video;patient;day\na/clip.avi;p;1\none.npy;p;1\nstills/grey;q;2\nno.mp4;q;2\n")
  options = {"workdir": "run", "input": folder, "out": out, "table": table, "format": "csv"}
  assert call(**options, cut=".4", pleura="b line", smallest="3") == 0
  printed = capsys.readouterr()
  assert "patient_days.csv leaves out 2 clips without a patient and day" in printed.out
  assert "names 1 video(s) that are not in the input (no.mp4)" in printed.err
  days, videos = rows_of(out / "patient_days.csv"), rows_of(out / "videos.csv")
  assert [(row["patient"], row["day"], row["videos"]) for row in days[::4]] == [
    ("p", "1", "2"),
    ("q", "2", "1"),
  ]
  of_p = [row for row in videos if row["patient"] == "p"]
  for i in range(4):
    mean = np.mean([float(row["area_pixels_mean"]) for row in of_p[i::4]])
    assert float(days[i]["area_pixels_mean"]) == pytest.approx(mean, rel=1e-5)
  record = json.loads((out / "a" / "clip" / "prediction.json").read_text())
  assert (record["cut"], record["pleura"], record["smallest_structure"]) == (0.4, ["b line"], 3)
  # Nothing but tables, and what the page shows.
  assert sorted(x.name for x in (out / "one").iterdir()) == [
    "frames.csv",
    "page",
    "prediction.json",
  ]


def test_a_data_set_is_taken_as_its_manifest_says(tmp_path, load, model, monkeypatch, capsys):
  top, out = tmp_path / "set", tmp_path / "out"
  (top / "videos").mkdir(parents=True)
  (top / "masks" / "m").mkdir(parents=True)
  Image.fromarray(noise(1, 40, 60)[0]).save(top / "masks" / "m" / "pleura.png")
  np.save(top / "videos" / "a.npy", np.moveaxis(noise(5, 40, 60), 0, -1))
  np.save(top / "videos" / "b.npy", np.moveaxis(noise(5, 40, 60), 0, -1))
  dataset = {"name": "s", "licence": "x", "classes": list(CLASSES), "npy_axes": "hwn"}
  (top / "dataset.json").write_text(json.dumps(dataset))
  (top / "manifest.csv").write_text(
    "video,patient,day,scan_area\na.npy,p,1,10 5 40 30\nb.npy,p,2,\ngone.npy,q,1,\n"
  )
  learned = dataclasses.replace(model, dataset=model.dataset | {"has_scan_areas": True})
  monkeypatch.setattr(trained_lib, "load", lambda *_, **__: learned)
  assert call(workdir="run", input=top, out=out, format="csv") == 1
  printed = capsys.readouterr()
  assert "gone.npy does not exist" in printed.err
  assert "scan areas: the models learned" not in printed.out  # all are in the table
  record = json.loads((out / "prediction.json").read_text())
  assert record["clips"] == ["row 4", "a", "b"]
  areas = []
  for name in "ab":
    own = json.loads((out / name / "prediction.json").read_text())
    assert (own["height"], own["width"], len(own["frames"])) == (40, 60, 5)
    areas.append((own["scan_area"], own["scan_area_by"]))
  assert areas == [([5, 10, 35, 50], "table"), ([0, 0, 40, 60], "table")]
  assert [(x["patient"], x["day"]) for x in rows_of(out / "videos.csv")[::4]] == [
    ("p", "1"),
    ("p", "2"),
  ]
  # Stand-ins are nobody.
  (top / "dataset.json").write_text(json.dumps(dataset | {"patients": "unknown"}))
  assert call(workdir="run", input=top, out=tmp_path / "c", format="csv") == 1
  assert "its patients are not known" in capsys.readouterr().out
  assert (out / "patient_days.csv").exists() and not (tmp_path / "c" / "patient_days.csv").exists()
  # The whole frame, where one says so; and a model of whole frames takes nothing else by itself.
  assert call(workdir="run", input=top, out=tmp_path / "b", crop="none", format="csv") == 1
  own = json.loads((tmp_path / "b" / "a" / "prediction.json").read_text())
  assert own["scan_area_by"] == "none"


def test_dicom_says_whose_it_is_and_of_which_day(tmp_path, load):
  top, out = tmp_path / "in", tmp_path / "out"
  for name, day in (("IM0001", "20240301"), ("IM0002", "20240302")):
    found = seeds.dataset(seeds.frames(), StudyDate=day)
    seeds.save_dicom(top / name, found)
  report = seeds.dataset(seeds.frames())
  for element in ("PixelData", "Rows", "Columns"):
    delattr(report, element)
  seeds.save_dicom(top / "SR0001", report)  # has no picture
  assert call(workdir="run", input=top, out=out, format="csv") == 0
  assert [
    (row["video"], row["patient"], row["day"]) for row in rows_of(out / "videos.csv")[::4]
  ] == [
    ("IM0001", "p", "20240301"),
    ("IM0002", "p", "20240302"),
  ]
  assert [row["day"] for row in rows_of(out / "patient_days.csv")[::4]] == ["20240301", "20240302"]
  # They stay in the tables: a page with pictures is passed on.
  assert "patient p" not in (text := (out / "index.html").read_text()) and "20240301" not in text


def test_a_table_does_not_take_away_what_is_known(tmp_path, load, capsys):
  top, out = tmp_path / "in", tmp_path / "out"
  for name in ("a.dcm", "b.dcm"):
    seeds.save_dicom(top / name, seeds.dataset(seeds.frames(), StudyDate="20240301"))
  np.save(top / "c.npy", noise(1, 20, 30)[0])
  np.save(top / "d.npy", noise(1, 20, 30)[0])
  (tmp_path / "t.csv").write_text("video,patient,day\na.dcm,q,\nb.dcm,,7\nc.npy,r,\n")
  options = {"workdir": "run", "input": top, "out": out, "format": "csv"}
  assert call(**options, table=tmp_path / "t.csv") == 0
  found = [(x["patient"], x["day"]) for x in rows_of(out / "videos.csv")[::4]]
  assert found == [("q", "20240301"), ("p", "7"), ("r", ""), ("", "")]
  said = "t.csv and the files themselves do not say both patient and day of 2 of the input (c, d)."
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["no DICOM", "too large"])
def test_a_format_that_one_clip_cannot_have_is_left_out_there(
  reason, tmp_path, load, monkeypatch, capsys
):
  top, out, name = tmp_path / "in", tmp_path / "out", "dicomseg-binary"
  uids = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.8"}
  for one, n in (("a", 2), ("c", 1)):
    seeds.save_dicom(top / f"{one}.dcm", seeds.dataset(noise(n, 40, 30), **uids))
  if reason == "no DICOM":
    np.save(top / "b.npy", noise(1, 20, 30)[0])
    lacks, has, said = "b", ["a", "c"], "b.npy is no DICOM file"
  else:
    # A byte less than the two frames of two classes take.
    monkeypatch.setattr(dicomseg, "MOST", 40 * 30 * 4 // 8 - 1)
    lacks, has, said = "a", ["c"], "a DICOM file holds 4; name some of its frames"
  for _ in range(2):  # what is finished already still counts
    assert call(workdir="run", input=top, out=out, format=f"png,{name},csv") == 1
    first, second = capsys.readouterr().err.strip().splitlines()[-2:]
    assert first.endswith("error: 1 clip could not be written in every format:")
    assert second.startswith(f"  {lacks}: no {name}: ") and said in second
  for one in has:
    assert (out / one / name / "threshold_0.dcm").exists()
  assert not (out / lacks / name).exists()
  assert (out / lacks / "frames.csv").exists() and (out / lacks / "threshold_0").exists()
  record = json.loads((out / "prediction.json").read_text())
  assert record["failed"] == {} and list(record["left_out"]) == [lacks]
  assert {row["video"] for row in rows_of(out / "videos.csv")} == {lacks, *has}
  assert f"no {name}, which could not be written" in (out / "index.html").read_text()


def test_a_clip_that_breaks_on_the_way_leaves_nothing(tmp_path, load, monkeypatch, capsys):
  top, out = tmp_path / "in", tmp_path / "out"
  top.mkdir()
  for name in "abc":
    avi(top / name, noise(9, 30, 45, ord(name)))
  stream = readers.stream

  def damaged(media, frames):
    for i, image in enumerate(stream(media, frames)):
      if media.path.name == "b.avi" and i == 6:
        raise UserError(f"{media.path} is damaged at frame 6; export it again.")
      yield image

  monkeypatch.setattr(frames_lib, "DECODED", 4)
  with monkeypatch.context() as patch:
    patch.setattr(readers, "stream", damaged)
    assert call(workdir="run", input=top, out=out) == 1
  assert "b: " in capsys.readouterr().err.splitlines()[-1]
  assert not (out / "b").exists() and (out / "c" / "prediction.json").exists()
  assert not [path for path in out.rglob(".*")]
  # Once it is mended, it is all that is computed.
  computed = []

  def noted(media, frames):
    computed.append(media.path.name)
    return stream(media, frames)

  monkeypatch.setattr(readers, "stream", noted)
  assert call(workdir="run", input=top, out=out) == 0
  assert set(computed) == {"b.avi"}
  straight = tmp_path / "straight"
  assert call(workdir="run", input=top, out=straight) == 0
  assert contents(out) == contents(straight)


def test_it_goes_on_where_it_was_stopped(folder, tmp_path, load, monkeypatch, capsys):
  options = {"workdir": "run", "input": folder, "format": "png,overlays,npz,csv"}
  assert call(**options, out=tmp_path / "whole") == 1
  whole, out = contents(tmp_path / "whole"), tmp_path / "out"
  overlay, drawn = palette.overlay, []

  def interrupted(image, weights):
    drawn.append(image)
    if len(drawn) == 12:
      raise KeyboardInterrupt
    return overlay(image, weights)

  with monkeypatch.context() as patch:
    patch.setattr(palette, "overlay", interrupted)
    assert call(**options, out=out) == 130
  assert "The same command goes on with what is not finished" in capsys.readouterr().err
  assert not json.loads((out / "prediction.json").read_text())["complete"]
  # What kills leave: temporary files, half a folder, a record.
  (out / "a" / "frames" / "mp4").mkdir(parents=True, exist_ok=True)
  (out / "a" / "frames" / "mp4" / ".123.threshold_0.mp4").write_bytes(b"half")
  (out / "a" / "frames" / ".123.threshold_0" / "000000").mkdir(parents=True)
  (out / "a" / "frames" / "prediction.json.123.tmp").write_text("{")
  record = json.loads((tmp_path / "whole/a/frames/prediction.json").read_text())
  before = {key: value for key, value in record.items() if key not in ("outputs", "rows")}
  (out / "a" / "frames" / "prediction.json").write_text(json.dumps(before | {"complete": False}))
  (out / "run.lock").touch()
  assert call(**options, out=out) == 1
  assert "finished already: not computed again" in capsys.readouterr().out
  assert contents(out) == whole
  # And once more: nothing is written but the same.
  assert call(**options, out=out) == 1
  assert contents(out) == whole
  # What was corrected since is never written over; what is not there is made again.
  changed = out / "one" / "npz" / "threshold_0.npz"
  changed.write_bytes(b"corrected")
  (out / "one" / "threshold_0" / "000000" / "pleura.png").unlink()
  capsys.readouterr()
  assert call(**options, out=out) == 2
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
  assert f"one: {changed} was changed since it was written" in line and "another --out" in line
  assert changed.read_bytes() == b"corrected"
  changed.unlink()
  # Nor is what somebody put beside it, but for what systems do.
  own = out / "one" / "threshold_0" / "000000" / "rib.png"
  own.write_bytes(b"own")
  assert call(**options, out=out) == 2
  assert f"{own}, which is not of the prediction" in capsys.readouterr().err
  own.rename(own.with_name(".DS_Store"))
  assert call(**options, out=out) == 1
  assert contents(out) == whole
  (out / ".DS_Store").touch()
  (out / "one" / "threshold_0" / ".DS_Store").touch()
  assert call(**options, out=out) == 1
  assert contents(out).keys() - whole.keys() == {".DS_Store", "one/threshold_0/.DS_Store"}


def test_another_input_or_model_is_another_prediction(tmp_path, load, model, monkeypatch, capsys):
  top, out = tmp_path / "in", tmp_path / "out"
  for i in range(2):
    (top / "frames").mkdir(parents=True, exist_ok=True)
    np.save(top / f"{'ab'[i]}.npy", noise(1, 20, 30, i)[0])
    Image.fromarray(noise(1, 20, 30, i)[0]).save(top / "frames" / f"{i:03d}.bmp")
  options = {"workdir": "run", "input": top, "out": out, "format": "png"}
  assert call(**options) == 0
  whole = contents(out)
  for file, content in (
    ("b.npy", (top / "a.npy").read_bytes()),
    ("frames/001.bmp", (top / "frames" / "000.bmp").read_bytes()),
  ):
    before = (top / file).read_bytes()
    assert len(before) == len(content)
    (top / file).write_bytes(content)
    assert call(**options) == 2
    name = file.split("/")[0].removesuffix(".npy")
    message = f"{out / name} holds another prediction (different: input_sha256)"
    assert message in capsys.readouterr().err
    (top / file).write_bytes(before)
  # Trained again, with the same words.
  state = [dict(one) for one in model.weights]
  kernel = jax.tree.map(lambda x: x + 1, state[0]["params"])
  again = dataclasses.replace(model, weights=[state[0] | {"params": kernel}, *state[1:]])
  with monkeypatch.context() as patch:
    patch.setattr(trained_lib, "load", lambda *_, **__: again)
    assert call(**options) == 2
    assert "another prediction (different: fingerprints)" in capsys.readouterr().err
    assert call(**options | {"input": top / "a.npy", "out": out / "a"}) == 2
  assert call(**options) == 0
  assert contents(out) == whole


def test_how_a_data_set_says_that_it_is_read_is_part_of_the_prediction(tmp_path, load, capsys):
  top, out = tmp_path / "set", tmp_path / "out"
  (top / "videos").mkdir(parents=True)
  (top / "masks").mkdir()
  deep = sitk.GetImageFromArray(np.arange(600, dtype=np.uint16).reshape(20, 30))
  sitk.WriteImage(deep, str(top / "videos" / "a.nii"))
  (top / "manifest.csv").write_text("video,patient\na.nii,p\n")
  dataset = {"name": "s", "licence": "x", "classes": list(CLASSES)}
  for high, code in ((600, 0), (300, 2), (600, 0)):
    words = dataset | {"intensity_window": [0, high]}
    (top / "dataset.json").write_text(json.dumps(words))
    assert call(workdir="run", input=top, out=out, format="png") == code
    assert ("(different: window)" in capsys.readouterr().err) == bool(code)


def test_a_clip_below_one_that_fails_is_gone_on_with(tmp_path, load, monkeypatch, capsys):
  top, out = tmp_path / "in", tmp_path / "out"
  for name in ("b", "c/d"):
    (top / "a" / name).mkdir(parents=True)
    np.save(top / "a" / name / "x.npy", noise(1, 20, 30)[0])
  for i in range(3):
    Image.fromarray(noise(1, 20, 30, i)[0]).save(top / "a" / f"{i:03d}.png")
  options = {"workdir": "run", "input": top, "out": out, "format": "png"}
  stream = readers.stream

  def damaged(media, frames):
    for image in stream(media, frames):
      if media.path.name == "a":
        raise UserError(f"{media.path} is damaged; export it again.")
      yield image

  with monkeypatch.context() as patch:
    patch.setattr(readers, "stream", damaged)
    for _ in range(2):
      assert call(**options) == 1
      assert "a: " in capsys.readouterr().err.splitlines()[-1]
  assert not (out / "a" / "prediction.json").exists() and (out / "a" / "b").exists()
  # What is nobody's stays refused.
  (out / "a" / "notes.txt").touch()
  assert call(**options) == 2
  assert f"{out / 'a'} holds other things" in capsys.readouterr().err
  (out / "a" / "notes.txt").unlink()
  assert call(**options) == 0


def test_an_output_within_the_input_is_not_predicted(tmp_path, load, capsys):
  top = tmp_path / "in"
  top.mkdir()
  for name in "ab":
    np.save(top / f"{name}.npy", noise(1, 20, 30)[0])
  options = {"workdir": "run", "input": top}
  assert call(**options, out=top / "out") == 0
  assert call(**options, out=top / "out") == 0
  assert json.loads((top / "out" / "prediction.json").read_text())["clips"] == ["a", "b"]
  # Nor that of another one.
  assert call(**options, out=top / "other", thresholds="1") == 0
  assert json.loads((top / "other" / "prediction.json").read_text())["clips"] == ["a", "b"]


def test_names_are_told_apart(tmp_path):
  for name in ("a.npy", "a.nii", "b.npy", "b/c.npy", "b/d.e.npy", "e/a.npy", "e/A.NPY"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    np.save(tmp_path / "x.npy", noise(1, 20, 30)[0])
    (tmp_path / "x.npy").rename(tmp_path / name)
  found = inputs_lib.find(tmp_path)
  assert sorted(one.name for one in found.inputs) == sorted(
    ["a.npy", "a.nii", "b.npy", "b/c", "b/d.e", "e/a.npy", "e/A.NPY"]
  )
  assert [one.name for one in found.inputs if one.error] == ["a.nii"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"format": "png,jpg"}, "--format: 'jpg' is no format; there are png, overlays, png16, npz, "),
    ({"cut": "0"}, "--cut=0: write a probability above 0"),
    ({"cut": "x"}, "--cut=x: write numbers"),
    ({"cut": ".3,.9"}, "--cut=.3,.9: write one number"),
    ({"smallest": "3,5"}, "--smallest=3,5: write one number"),
    ({"smallest": "0"}, "--smallest=0: write a number of pixels"),
    ({"pleura": "rib"}, "--pleura: 'rib' is no class of the models; there are pleura, b line"),
    ({"frames": "0"}, "are no frames of one clip; leave it out."),
    ({"table": "no.csv"}, "no.csv"),
    ({"table": "bad.csv"}, "the required column 'day' is missing"),
    ({"table": "twice.csv"}, "twice.csv row 3: video a.npy has a row already (2)"),
    ({"input": "empty"}, "empty holds nothing that can be predicted"),
    ({"crop": "0,0,40,8"}, "outside of its frame"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
  tmp_path, load, monkeypatch, capsys, options, message
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("in").mkdir()
  pathlib.Path("empty").mkdir()
  pathlib.Path("empty/x.txt").touch()
  for name in "ab":
    np.save(f"in/{name}.npy", noise(2, 20, 30))
  pathlib.Path("bad.csv").write_text("video,patient\na.npy,p\n")
  pathlib.Path("twice.csv").write_text("video,patient,day\na.npy,p,1\na.npy,p,1\n")
  assert call(**{"workdir": "run", "input": "in", "out": "out"} | options) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith("error: ") and message in line
  assert not pathlib.Path("out").exists()


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
  folder, tmp_path, load, monkeypatch, capsys
):
  def full(file, pixels):
    raise OSError(errno.ENOSPC, "No space left on device", str(file))

  out = tmp_path / "out"
  with monkeypatch.context() as patch:
    patch.setattr(png, "save", full)
    assert call(workdir="run", input=folder, out=out) == 2
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
  assert "cannot be written (No space left on device); make room" in line
  assert {path.name for path in out.rglob("*") if path.is_file()} == {"prediction.json"}
  assert call(workdir="run", input=folder, out=out) == 1


def test_a_folder_of_nothing_that_can_be_read(tmp_path, load, capsys):
  (tmp_path / "in").mkdir()
  for name in ("a.mp4", "b.nii", "c.dcm", "d.png"):
    (tmp_path / "in" / name).write_bytes(b"no such thing" * 20)
  assert call(workdir="run", input=tmp_path / "in", out=tmp_path / "out") == 1
  printed = capsys.readouterr().err
  assert "error: 4 files could not be read:" in printed
  assert len(rows_of(tmp_path / "out" / "videos.csv")) == 0
  assert "Not predicted: 4" in (tmp_path / "out" / "index.html").read_text()


def test_an_output_in_use_is_refused(tmp_path, load, in_use, capsys):
  np.save(tmp_path / "x.npy", noise(1, 20, 30)[0])
  out = tmp_path / "out"
  out.mkdir()
  with in_use(out):
    assert call(workdir="run", input=tmp_path / "x.npy", out=out) == 2
  error = capsys.readouterr().err
  assert "is in use by" in error and "give another --out" in error


def test_a_long_clip_takes_no_more_memory(tmp_path, load):
  def peak(n):
    np.save(tmp_path / f"{n}.npy", noise(n, 64, 80))
    options = {"input": tmp_path / f"{n}.npy", "out": tmp_path / f"out_{n}"}
    tracemalloc.start()
    assert call(workdir="run", format="npz,nifti", **options) == 0
    try:
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  peak(40)
  short, long = peak(60), peak(240)
  # Of maps and frames alone there are 15 MB more.
  assert long < short + 2e6, (short, long)


def test_the_next_clip_is_read_while_one_is_looked_at(tmp_path, model, monkeypatch):
  clips, events, stream = [], [], readers.stream
  for name in "abc":
    np.save(tmp_path / f"{name}.npy", noise(6, 20, 30, ord(name)))
    clips.append(frames_lib.Clip(name, readers.probe(tmp_path / f"{name}.npy"), [0, 2, 5]))
  clips.insert(1, frames_lib.Failed("x", UserError("broken")))

  def noted(media, frames):
    events.append(f"read {media.path.stem}")
    return stream(media, frames)

  monkeypatch.setattr(readers, "stream", noted)
  alone = [list(frames_lib.predict(model, one.media, frames=[0, 2, 5])) for one in clips[::2]]
  events.clear()
  found = []
  for one in frames_lib.predict_all(model, iter(clips)):
    found.append(one)
    events.append("broken" if isinstance(one, frames_lib.Failed) else f"seen {one[0]} {one[1]}")
  assert [one for one in events if "read" not in one] == [
    *("seen a 0", "seen a 2", "seen a 5", "broken"),
    *(f"seen {name} {number}" for name in "bc" for number in (0, 2, 5)),
  ]
  assert events.index("read c") < events.index("seen b 5")
  # The same as by itself, to the bit.
  for i, first in ((0, alone[0]), (4, alone[1])):
    for (number, image, maps), (_, *theirs) in zip(first, found[i : i + 3], strict=True):
      assert number == theirs[0]
      np.testing.assert_array_equal(image, theirs[1])
      np.testing.assert_array_equal(maps, theirs[2])


def test_which_frames_a_page_shows():
  assert page.frames_shown(list(range(0, 60, 10)), 2) == [10, 30, 50]
  assert page.frames_shown([7], 2) == [7]
  assert page.frames_shown([7, 9], 2) == [7, 9]
  assert page.frames_shown(list(range(100)), 100) == [50]
