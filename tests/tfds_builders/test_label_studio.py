import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.importers import label_studio
from tfds_builders.lus_folder import manifest

H, W = 20, 30


def disc(x, y, r):
  ys, xs = np.mgrid[:H, :W]
  return (np.hypot(xs - x, ys - y) <= r).astype(np.uint8) * 255


def packed(values, widths=(3, 4, 8, 16)):
  """Run lengths as Label Studio writes them: runs of one value, and stretches of others."""
  bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)

  def block(repeated, length):
    which = next(i for i, width in enumerate(widths) if length <= 1 << width)
    return f"{repeated}{which:02b}{length - 1:0{widths[which]}b}"

  runs, at = [], 0
  for end in [*np.flatnonzero(np.diff(values.astype(int))) + 1, len(values)]:
    runs.append((values[at], end - at))
    at = end
  literal = []
  for value, length in [*runs, (0, 0)]:
    if length == 1:
      literal.append(value)
      continue
    while literal:
      part = literal[: 1 << widths[-1]]
      bits += block(0, len(part)) + "".join(f"{x:08b}" for x in part)
      literal = literal[len(part) :]
    while length:
      part = min(length, 1 << widths[-1])
      bits += block(1, part) + f"{value:08b}"
      length -= part
  bits += "0" * (-len(bits) % 8)
  return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def rgba(alpha, colour=None):
  found = np.repeat(alpha[..., None], 4, axis=-1)  # as Label Studio: all four are alike
  if colour is not None:
    found[..., :3] = colour
  return found.ravel()


def region(kind, value, label="b_line", **more):
  if label is not None:
    value = value | {kind: [label]}
  return {
    "id": "r1",
    "type": kind,
    "value": value,
    "original_width": W,
    "original_height": H,
    "image_rotation": 0,
    **more,
  }


def brush(alpha, label="b_line", **more):
  return region("brushlabels", {"format": "rle", "rle": packed(rgba(alpha))}, label, **more)


def task(*annotations, image="/data/upload/1/0a1b2c3d-a.png", **more):
  made = [
    {"id": i, "completed_by": 1, "was_cancelled": False, "result": results}
    | (results if isinstance(results, dict) else {})
    for i, results in enumerate(annotations, start=1)
  ]
  return {"id": 5, "data": {"image": image}, "annotations": made, "predictions": [], **more}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "videos").mkdir()
  for i, name in enumerate("ab"):
    Image.fromarray(np.full((H, W), 10 * i, np.uint8)).save(tmp_path / "videos" / f"{name}.png")
  return tmp_path


def run(folder, tasks, *more, name=""):
  (folder / "x.json").write_text(json.dumps(tasks))
  return importers.main(
    ["label_studio", f"--videos={folder / 'videos'}", f"--out={folder / 'out'}"]
    + [f"--annotations={name}{folder / 'x.json'}", *more]
  )


def written(folder):
  return {
    (label.video.name, label.frame, label.annotator): {
      name: np.rint(255 * readers.read_mask(path)).astype(int) for name, path in label.masks.items()
    }
    for label in manifest.read_folder(folder / "out").labels
  }


def refused(folder, capsys, code, part):
  out, error = capsys.readouterr()
  assert (code, out) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not (folder / "out").exists()


@pytest.mark.parametrize("widths", [(3, 4, 8, 16), (1, 2, 3, 4), (16, 16, 16, 16)])
def test_brushes_to_the_bit(widths):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (H, W)).astype(np.uint8)
  for alpha in (disc(9, 9, 6), np.zeros((H, W), np.uint8), noise):
    rle = packed(rgba(alpha, colour=(255, 0, 7)), widths)
    np.testing.assert_array_equal(label_studio.brush(bytes(rle), H, W, "x"), alpha)


def test_known_bytes():
  # 4 values of 8 bits, widths 1, 1, 1, 1: a run of 2 times 7, then 0 and 255 as they are.
  bits = f"{4:032b}{7:05b}" + "0000" * 4
  bits += "1" + "00" + "1" + "00000111" + "0" + "00" + "1" + "00000000" + "11111111"
  bits += "0" * (-len(bits) % 8)
  rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
  assert label_studio.brush(bytes(rle), 1, 1, "x").tolist() == [[255]]


def test_brushes(folder, capsys):
  soft = disc(9, 9, 6)
  soft[0, :3] = 40, 127, 128
  results = [brush(soft), brush(disc(15, 9, 6)), brush(disc(24, 15, 4), "pleura")]
  assert run(folder, [task(results), task([], image="b.png")]) == 0
  printed = capsys.readouterr().out
  assert "classes b_line, pleura." in printed
  assert "1 annotation without regions count as seen and empty" in printed
  assert "Left out: 1 brushes' grey edges, cut at half" in printed
  masks = written(folder)
  assert masks["b.png", 0, "user_1"] == {}
  expected = np.maximum(np.where(soft > 127, 255, 0), disc(15, 9, 6))
  np.testing.assert_array_equal(masks["a.png", 0, "user_1"]["b_line"], expected)
  np.testing.assert_array_equal(masks["a.png", 0, "user_1"]["pleura"], disc(24, 15, 4))


def test_brushes_may_be_soft(folder):
  soft = (disc(9, 9, 6) * 0.6).astype(np.uint8)
  assert run(folder, [task([brush(soft)])], "--soft") == 0
  np.testing.assert_array_equal(written(folder)["a.png", 0, "user_1"]["b_line"], soft)


def bitmask(alpha, head="data:image/png;base64,"):
  file = io.BytesIO()
  pixels = np.zeros((*alpha.shape, 4), np.uint8)
  pixels[..., 3] = alpha
  Image.fromarray(pixels).save(file, "PNG")
  link = head + base64.b64encode(file.getvalue()).decode()
  return region("bitmasklabels", {"imageDataURL": link})


def test_bitmasks(folder, capsys):
  assert run(folder, [task([bitmask(disc(9, 9, 6))])]) == 0
  np.testing.assert_array_equal(written(folder)["a.png", 0, "user_1"]["b_line"], disc(9, 9, 6))
  shutil.rmtree(folder / "out")
  capsys.readouterr()
  for one, part in (
    (bitmask(disc(9, 9, 6)[1:]), "a bitmask of 30 x 19 pixels, but its picture is 30 x 20"),
    (bitmask(disc(9, 9, 6), "https://x/"), "no PNG in a data URL"),
    (region("bitmasklabels", {"imageDataURL": None}), "no PNG in a data URL"),
    (region("bitmasklabels", {"imageDataURL": "data:image/png;base64,?"}), "no base64"),
    (region("bitmasklabels", {"imageDataURL": "data:image/png;base64,iVBO"}), "no bitmask in PNG"),
  ):
    refused(folder, capsys, run(folder, [task([one])]), part)


def filled(points):
  flat = [float(x) for point in points for x in point]
  return 255 * pycoco.decode(pycoco.frPyObjects([flat], H, W))[..., 0]


def test_outlines(folder, capsys):
  triangle = [[20.0, 2.0], [28, 2], [24, 11.5]]
  percent = [[100 * x / W, 100 * y / H] for x, y in triangle]
  box = {"x": 10, "y": 25, "width": 20, "height": 30, "rotation": 0}  # 3, 5, 6 x 6 pixels
  turned = {"x": 50, "y": 25, "width": 20, "height": 50, "rotation": 90}  # 15, 5: to the left
  ellipse = {"x": 30, "y": 50, "radiusX": 20, "radiusY": 15, "rotation": 0}  # 9, 10; 6, 3 pixels
  results = [
    region("polygonlabels", {"points": percent, "closed": True}, "poly"),
    region("rectanglelabels", box, "box"),
    region("rectanglelabels", turned, "turned"),
    region("ellipselabels", ellipse, "ellipse"),
    region("ellipselabels", ellipse | {"rotation": 90}, "upright"),
    region("keypointlabels", {"x": 10, "y": 10, "width": 1}, "point"),
    {"id": "c", "type": "choices", "value": {"choices": ["bad"]}},
    {"type": "relation", "from_id": "r1", "to_id": "r2"},
    region("videorectangle", {"sequence": []}, "film"),
    region("rectangle", box, None, id="two"),
    region("labels", box | {"labels": ["apart"]}, None, id="two"),
    region("polygonlabels", {"points": percent}, None),
  ]
  assert run(folder, [task(results)]) == 0
  masks = written(folder)["a.png", 0, "user_1"]
  assert set(masks) == {"poly", "box", "turned", "ellipse", "upright", "apart"}
  np.testing.assert_array_equal(masks["poly"], filled(triangle))
  expected = np.zeros((H, W))
  expected[5:11, 3:9] = 255
  np.testing.assert_array_equal(masks["box"], expected)
  np.testing.assert_array_equal(masks["apart"], expected)
  expected[:] = 0
  expected[5:11, 5:15] = 255  # 6 wide and 10 high before it turned about its corner
  np.testing.assert_array_equal(masks["turned"], expected)
  ys, xs = np.mgrid[:H, :W] + 0.5
  for name, rx, ry in (("ellipse", 6, 3), ("upright", 3, 6)):
    # The outline of 120 corners differs from the ellipse by less than a hundredth of a pixel.
    away = np.hypot((xs - 9) / rx, (ys - 10) / ry)
    assert (masks[name][away < 0.9] == 255).all() and not masks[name][away > 1.1].any()
  printed = capsys.readouterr().out
  for part in (
    "1 results of type 'keypointlabels', which draw no area",
    "1 results of type 'choices', which draw no area",
    "1 results of type 'relation', which draw nothing",
    "1 results of type 'videorectangle', which draw no area",
    "1 regions without a label",
  ):
    assert part in printed


def test_several_annotators(folder, capsys):
  one, two = [brush(disc(9, 9, 6))], [brush(disc(12, 9, 6))]
  other = {"completed_by": {"id": 2, "email": "ben@example.org"}, "result": two}
  skipped = {"completed_by": 3, "was_cancelled": True, "result": []}
  tasks = [task(one, other, skipped), task(image="b.png", predictions=[{"result": one}])]
  assert run(folder, tasks) == 0
  printed = capsys.readouterr().out
  assert "1 image, 2 raters (user_1, user_2)" in printed
  assert "Left out: 1 annotations that were skipped in Label Studio" in printed
  assert "Left out: 1 tasks that nobody annotated (b)" in printed
  assert "Left out: 1 tasks' predictions (b)" in printed
  for i, x in ((1, 9), (2, 12)):
    mask = np.asarray(Image.open(folder / "out" / "raters" / f"user_{i}" / "a.png"))
    np.testing.assert_array_equal(mask, disc(x, 9, 6))


def test_a_name_before_the_file(folder, capsys):
  one, two = [brush(disc(9, 9, 6))], {"completed_by": 2, "result": []}
  refused(folder, capsys, run(folder, [task(one, two)], name="anna="), "2 people (user_1, user_2)")
  assert run(folder, [task(one)], name="anna=") == 0
  assert set(written(folder)) == {("a.png", 0, "anna")}


@pytest.mark.parametrize(
  "image",
  [
    "a.png",
    "0a1b2c3d-a.png",
    "/data/upload/12/0a1b2c3d-a.png",
    "/data/local-files/?d=some/folder/a.png",
    "s3://bucket/folder/a.png",
    "https://host/folder/a.png?token=x%2Fb.png",
    "C:\\pictures\\a.png",
  ],
)
def test_names_of_pictures(folder, image):
  assert run(folder, [task([brush(disc(9, 9, 6))], image=image)]) == 0
  assert set(written(folder)) == {("a.png", 0, "user_1")}


def test_which_picture_is_meant(folder, capsys):
  found = task([brush(disc(9, 9, 6))])
  found["data"] = {"patient": "p1", "left": "a.png", "right": "b.png"}
  refused(folder, capsys, run(folder, [found]), "names several pictures (a.png, b.png)")
  refused(folder, capsys, run(folder, [found], "--data-key=middle"), "no 'middle' in its data")
  assert run(folder, [found], "--data-key=right") == 0
  assert set(written(folder)) == {("b.png", 0, "user_1")}


def test_frames_of_videos(folder, capsys):
  np.save(folder / "videos" / "film.npy", np.zeros((4, H, W), np.uint8))
  found = [task([brush(disc(9, 9, 6))], image="/data/upload/1/0a1b2c3d-film_3.png")]
  assert run(folder, found, r"--frame-pattern=(.+)_(\d+)") == 0
  assert set(written(folder)) == {("film.npy", 3, "user_1")}
  capsys.readouterr()


@pytest.mark.parametrize(
  ("tasks", "part"),
  [
    ([{"image": "a.png", "id": 1, "annotation_id": 2, "brush": []}], "JSON-MIN; export it as"),
    ([{"id": 1}], "has no 'data'"),
    ([{"id": "a\nb", "annotations": []}], "task 'a\\nb' has no 'data'"),
    ([task([brush(disc(1, 1, 1), original_width="3\n")])], "of a picture of '3\\n' x 20"),
    ([task([], image="c.png")], "'c.png' is not in"),
    ([task([], image="../../x.png")], "is not in"),
    ([task([], image="")], "names no picture"),
    ([task([brush(disc(1, 1, 1), original_width=31)])], "of a picture of 31 x 20 pixels, but"),
    ([task([brush(disc(1, 1, 1), image_rotation=90)])], "turned in Label Studio"),
    ([task([region("brushlabels", {"rle": [0] * 9})])], "of 0 values, but its picture"),
    ([task([region("brushlabels", {"rle": packed(rgba(disc(9, 9, 6)))[:-9]})])], "end too early"),
    ([task([region("brushlabels", {"rle": [255] * 99})])], "of 4294967295 values"),
    ([task([region("brushlabels", {"rle": "x"})])], "no list of bytes"),
    ([task([region("brushlabels", {"rle": [-1]})])], "no list of bytes"),
    ([task([region("polygonlabels", {"points": [[1, 2], [3, "4"]]})])], "no pair of numbers"),
    ([task([region("polygonlabels", {"points": [[1, 2], [3, 4]]})])], "fewer than 3 points"),
    ([task([region("rectanglelabels", {"x": 1, "y": None, "width": 3, "height": 4})])], "'y'"),
    ([task([region("brushlabels", {"rle": [], "brushlabels": "b"}, None)])], "are no list"),
    ([task([region("brushlabels", {"rle": [], "brushlabels": [[]]}, None)])], "which is no name"),
    ([task({"completed_by": [1], "result": []})], "neither number nor name"),
    ([task({"result": None})], "has no list of results"),
    ([task([brush(disc(1, 1, 1))], [])], "labelled twice by user_1"),
    ([task([])], "Nothing is drawn"),
    ([task(annotations={})], "no list of annotations"),
    ({"images": [], "annotations": []}, "import it with coco"),
    ([[]], "does not look like"),
    ({}, "does not look like"),
  ],
)
def test_mistakes(folder, capsys, tasks, part):
  refused(folder, capsys, run(folder, tasks), part)
