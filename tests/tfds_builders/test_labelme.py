import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from refusals import refused

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.lus_folder import manifest

H, W = 40, 60
SQUARE = [[2.4, 3.0], [9.6, 3.2], [9.1, 8.7], [2.0, 8.0]]


def shape(points=SQUARE, label="b_line", kind="polygon", **more):
  own = {"label": label, "points": points, "group_id": None, "description": ""}
  return own | {"shape_type": kind, "flags": {}, "mask": None} | more


def encoded(mask):
  file = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def exported(points, kind, width=10):
  """A shape in LabelMe's own label images, as its `shape_to_mask` documents them."""
  image = Image.fromarray(np.zeros((H, W), np.uint8))
  draw = ImageDraw.Draw(image)
  points = [tuple(point) for point in points]
  if kind == "circle":
    (x, y), edge = points
    r = math.dist((x, y), edge)
    draw.ellipse([x - r, y - r, x + r, y + r], outline=1, fill=1)
  elif kind == "rectangle":
    (x1, y1), (x2, y2) = points
    draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=1, fill=1)
  elif kind == "line":
    draw.line(points, fill=1, width=width)
  elif kind == "linestrip":
    draw.line(points, fill=1, width=width, joint="curve")
  else:
    draw.polygon(points, outline=1, fill=1)
  return np.array(image, bool)


class Place:
  """A folder of pictures, and one of JSON files."""

  def __init__(self, path):
    self.path = path
    for folder in ("videos", "json"):
      (path / folder).mkdir()

  def picture(self, name, size=(H, W), **options):
    file = self.path / "videos" / name
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(file, **options)

  def json(self, name, *shapes, **more):
    file = self.path / "json" / name
    file.parent.mkdir(exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imageData": None}
    content |= {"imagePath": file.stem + ".png", "imageHeight": H, "imageWidth": W} | more
    file.write_text(json.dumps(content))
    return file

  def run(self, *more, annotations=None):
    argv = ["labelme", f"--videos={self.path / 'videos'}", f"--out={self.path / 'out'}", *more]
    return importers.main([*argv, f"--annotations={annotations or self.path / 'json'}"])

  def masks(self):
    """What was written: masks by class, by video and frame."""
    labels = manifest.read_folder(self.path / "out").labels
    return {
      (label.video.name, label.frame): {n: readers.read_mask(f) > 0 for n, f in label.masks.items()}
      for label in labels
    }


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


def test_shapes_are_drawn_as_labelme_draws_them(place, capsys):
  rng = np.random.default_rng(0)
  wanted = {}
  numbers = {"polygon": 7, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 4}
  for kind, number in (numbers | {"oriented_rectangle": 4}).items():
    for i in range(4):
      points = rng.uniform((18, 14), (42, 26), (number, 2)).tolist()
      name = f"{kind}{i}"
      place.picture(f"{name}.png")
      place.json(f"{name}.json", shape(points, kind=kind))
      wanted[f"{name}.png", 0] = exported(points, kind)
  assert place.run() == 0
  assert "Lines are drawn 10 pixels wide, as LabelMe does" in capsys.readouterr().out
  masks = place.masks()
  assert masks.keys() == wanted.keys()
  for key, mask in wanted.items():
    np.testing.assert_array_equal(masks[key]["b_line"], mask, str(key))


def test_masks_points_lines_and_empty_pictures(place, capsys):
  mask = np.ones((6, 8), bool)
  mask[2, 3] = False
  for name in "abcde":
    place.picture(f"{name}.png")
  # Flags and groups say nothing of what is seen; two shapes of a class are joined.
  place.json(
    "a.json",
    shape([[10, 20], [17, 25]], "pleura", "mask", mask=encoded(mask), group_id=3),
    shape([[20, 20], [30, 30]], "pleura", "rectangle", flags={"unsure": True}),
    shape([[5, 5]], "rib", "point"),
  )
  place.json("b.json")
  place.json("c.json", shape([[5, 5]], "rib", "point"))
  # Partly outside, and between pixels: as much as the mask is large.
  place.json("d.json", shape([[-2, 36], [5, 41]], kind="mask", mask=encoded(mask)))
  place.json("e.json", shape([[9.6, 20.2], [16.4, 24.9]], kind="mask", mask=encoded(mask)))
  assert place.run() == 0
  printed = capsys.readouterr().out
  assert "Left out: 2 points (" in printed and "which they leave: 1 shape (" in printed
  # Where only a point was drawn, nobody says that there is nothing.
  assert "1 clips that no annotation names" not in printed
  masks = place.masks()
  assert {name: set(found) for (name, _), found in masks.items()} == {
    "a.png": {"pleura"},
    "b.png": set(),
    "d.png": {"b_line"},
    "e.png": {"b_line"},
  }
  wanted = {name: np.zeros((H, W), bool) for name in "ade"}
  wanted["a"][20:26, 10:18] = mask
  wanted["a"][20:31, 20:31] = True
  wanted["d"][36:, :6] = mask[:4, 2:]
  wanted["e"][20:26, 10:18] = mask
  for name, expected in wanted.items():
    found = masks[f"{name}.png", 0]
    np.testing.assert_array_equal(np.logical_or.reduce(list(found.values())), expected, name)


def test_lines_of_a_width(place, capsys):
  place.picture("a.png")
  place.json("a.json", shape([[10, 20], [30, 20]], kind="line"))
  assert place.run("--line-width=3px") == 0
  assert "Lines are drawn" not in capsys.readouterr().out
  found = place.masks()["a.png", 0]["b_line"]
  assert found.any(axis=1).sum() == 3 and np.flatnonzero(found[20])[[0, -1]].tolist() == [9, 31]


def test_pictures_are_found_in_folders_and_clips(place):
  for name in ("p1/003.png", "p1/004.png", "p2/003.png"):
    place.picture(name)
  # Saved on another machine, and relative to the JSON file's folder.
  place.json("p2/x.json", shape(), imagePath="003.png")
  place.json("y.json", shape(label="pleura"), imagePath=r"..\data\p1\004.png")
  assert place.run("--folders-are-clips") == 0
  assert {key: set(found) for key, found in place.masks().items()} == {
    ("p1", 1): {"pleura"},
    ("p2", 0): {"b_line"},
  }


def test_pictures_that_were_taken_out_of_a_video(place, capsys):
  np.save(place.path / "videos" / "clip.npy", np.zeros((9, H, W), np.uint8))
  place.json("clip_007.json", shape())
  assert place.run("--frame-pattern=(.+)_([0-9]+)") == 0
  assert list(place.masks()) == [("clip.npy", 7)]
  (place.path / "out").rename(place.path / "first")
  assert place.run("--frame-pattern=(.+)_([0-9]+)", "--first-frame=1") == 0
  assert list(place.masks()) == [("clip.npy", 6)]
  (place.path / "out").rename(place.path / "second")
  place.json("clip_007.json", shape(), imagePath="clip.png")
  capsys.readouterr()
  refused(place, capsys, place.run(), "'clip.png' is a video of 9 frames; say which frame")


def test_pictures_are_drawn_on_as_they_are_shown(place, capsys):
  exif = Image.Exif()
  exif[0x0112] = 6
  place.picture("a.jpg", exif=exif)
  place.json("a.json", shape(), imagePath="a.jpg", imageHeight=W, imageWidth=H)
  assert place.run() == 0
  assert next(iter(place.masks().values()))["b_line"].shape == (W, H)
  (place.path / "out").rename(place.path / "first")
  place.json("a.json", shape(), imagePath="a.jpg")
  capsys.readouterr()
  part = "a.json was drawn on 60 x 40 pixels, but"
  refused(place, capsys, place.run(), part)
  place.run()
  assert "has 40 x 60, turned as its header says" in capsys.readouterr().err


def test_one_picture_in_two_files(place, capsys):
  place.picture("a.png")
  place.json("a.json", shape())
  place.json("b.json", shape(), imagePath="a.png")
  refused(place, capsys, place.run(), "b.json: frame 0 of a is labelled in")
  one, other = (place.path / "json" / name for name in ("a.json", "b.json"))
  argv = ["labelme", f"--videos={place.path / 'videos'}", f"--out={place.path / 'out'}"]
  assert importers.main([*argv, "--annotations", f"anna={one}", f"ben={other}"]) == 0
  assert (place.path / "out" / "raters" / "ben" / "a.png").is_file()


@pytest.mark.parametrize(
  ("found", "part"),
  [
    (shape([[1, 2], [3, 4]]), "shape 1 is a polygon of 2 points, not 3 or more"),
    (shape([[1, 2]], kind="rectangle"), "is a rectangle of 1 points, not 2"),
    (shape(kind="star"), "is of the type 'star', which is not known"),
    (shape(label=""), "has the class '', which is no name"),
    (shape(label="../x"), "must be a file name without folders"),
    (shape([[1, 2], [3, "4"], [5, 6]]), "no pair of numbers"),
    (shape([[1, 2], [3, 1e300], [5, 6]]), "nowhere near the picture"),
    (shape([[900, 1], [910, 1], [905, 9]]), "lies outside of its picture"),
    (shape([[5, 5], [5, 5]], kind="circle"), "has no area"),
    (shape([[0, 0], [1, 1]], kind="mask"), "is a mask without its pixels"),
    (shape([[0, 0], [1, 1]], kind="mask", mask="???"), "no base64"),
    (shape([[0, 0], [1, 1]], kind="mask", mask="AAAA"), "shape 1 is no PNG of a mask"),
    (
      shape([[0, 0], [9, 9]], kind="mask", mask=encoded(np.ones((3, 3)))),
      "a mask of 3 x 3 pixels in a box of 10 x 10",
    ),
    (
      shape([[0.5, 0], [9, 9]], kind="mask", mask=encoded(np.ones((999, 3)))),
      "a mask of 3 x 999 pixels on a picture of 60 x 40",
    ),
    (shape([[200, 0], [202, 2]], kind="mask", mask=encoded(np.ones((3, 3)))), "lies outside"),
    ("x", "shape 1 is no object"),
  ],
)
def test_mistakes_in_shapes(place, capsys, found, part):
  place.picture("a.png")
  place.json("a.json", found)
  refused(place, capsys, place.run(), part)


def test_mistakes_in_files(place, capsys):
  place.picture("a.png")
  refused(place, capsys, place.run(), "json holds no JSON file")
  for more, part in (
    ({"imagePath": "b.png"}, "'b.png' is not in"),
    ({"imagePath": "b.png", "imageData": "AAAA"}, "labelme_export_json of LabelMe takes it out"),
    ({"imagePath": "../../etc/hostname"}, "is not in"),
    ({"imagePath": 3}, "has no 'imagePath'"),
    ({"imageWidth": W + 1}, "was drawn on 61 x 40 pixels"),
    ({"imageWidth": "60"}, "was drawn on"),
    ({"shapes": {}}, "is not LabelMe's"),
  ):
    place.json("a.json", shape(), **more)
    refused(place, capsys, place.run(), part)
  file = place.path / "json" / "a.json"
  for content, part in (
    ({"images": [], "annotations": [], "categories": []}, "COCO's, not LabelMe's"),
    ([{"version": 0, "tags": [], "shapes": [], "tracks": []}], "import it with cvat"),
    ({"_via_img_metadata": {}}, "import it with via"),
    ([], "is not LabelMe's"),
  ):
    file.write_text(json.dumps(content))
    refused(place, capsys, place.run(), part)
  file.write_text("<annotations/>")
  refused(place, capsys, place.run(), "is XML (CVAT's: import it with cvat)")
