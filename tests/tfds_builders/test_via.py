import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from refusals import refused

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.lus_folder import manifest

H, W = 20, 30
XS, YS = [2, 9, 9, 2], [3, 3, 8, 8]
POLYGON = {"name": "polygon", "all_points_x": XS, "all_points_y": YS}


def filled(points):
  return coco.decode(coco.frPyObjects([list(points)], H, W))[..., 0].astype(bool)


SQUARE = filled([x for pair in zip(XS, YS, strict=True) for x in pair])


def region(shape=POLYGON, value="b_line", name="class", **more):
  return {"shape_attributes": shape, "region_attributes": {name: value} | more}


def project(**images):
  metadata = {
    f"{name}.png123": {
      "filename": f"{name}.png",
      "size": 123,
      "regions": regions,
      "file_attributes": {"quality": "good"},
    }
    for name, regions in images.items()
  }
  return {
    "_via_settings": {"ui": {}, "core": {}, "project": {"name": "p"}},
    "_via_img_metadata": metadata,
    "_via_attributes": {"region": {"class": {"type": "dropdown", "options": {"b_line": ""}}}},
    "_via_data_format_version": "2.0.10",
    "_via_image_id_list": list(metadata),
  }


class Place:
  """A folder of pictures, and a file of annotations."""

  def __init__(self, path):
    self.path, self.file = path, path / "via.json"
    (path / "videos").mkdir()
    for name in "abc":
      Image.fromarray(np.zeros((H, W), np.uint8)).save(path / "videos" / f"{name}.png")

  def write(self, content):
    self.file.write_text(json.dumps(content))

  def run(self, *more):
    argv = ["via", f"--videos={self.path / 'videos'}", f"--annotations={self.file}"]
    return importers.main([*argv, f"--out={self.path / 'out'}", *more])

  def masks(self):
    labels = manifest.read_folder(self.path / "out").labels
    return {
      label.video.name: {n: readers.read_mask(f) > 0 for n, f in label.masks.items()}
      for label in labels
    }


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


def test_a_project(place, capsys):
  place.write(
    project(
      a=[
        region(),
        region({"name": "rect", "x": 15, "y": 4, "width": 6, "height": 3}, "pleura"),
        region({"name": "point", "cx": 3, "cy": 4}, "rib"),
      ],
      b=[
        region({"name": "circle", "cx": 15, "cy": 10, "r": 5}),
        region(
          {"name": "ellipse", "cx": 15, "cy": 10, "rx": 8, "ry": 2, "theta": np.pi / 2}, "pleura"
        ),
        region({"name": "polyline", "all_points_x": [3, 20], "all_points_y": [2, 2]}, "rib"),
      ],
      c=[],
    )
  )
  assert place.run("--line-width=2px") == 0
  printed = capsys.readouterr().out
  assert "Left out: 1 points (" in printed
  assert "Left out: 1 pictures without a region (c.png)" in printed and "--all-frames" in printed
  masks = place.masks()
  assert masks.keys() == {"a.png", "b.png"}
  np.testing.assert_array_equal(masks["a.png"]["b_line"], SQUARE)
  rectangle = np.zeros((H, W), bool)
  rectangle[4:7, 15:21] = True
  np.testing.assert_array_equal(masks["a.png"]["pleura"], rectangle)
  ys, xs = np.mgrid[:H, :W] + 0.5
  circle = np.hypot(xs - 15, ys - 10) <= 5
  upright = ((xs - 15) / 2) ** 2 + ((ys - 10) / 8) ** 2 <= 1
  assert (masks["b.png"]["b_line"] != circle).sum() <= 4
  assert (masks["b.png"]["pleura"] != upright).sum() <= 4
  line = np.zeros((H, W), bool)
  line[1:3, 2:21] = True
  np.testing.assert_array_equal(masks["b.png"]["rib"], line)
  assert place.run("--line-width=2px") == 0
  (place.path / "out").rename(place.path / "first")
  assert place.run("--all-frames") == 0
  assert place.masks()["c.png"] == {}


def test_exports_are_the_same(place):
  content = project(a=[region()], b=[region(value="pleura"), region()], c=[])
  place.write(content)
  assert place.run() == 0
  place.write(content["_via_img_metadata"])
  assert place.run() == 0
  place.file = place.path / "via.csv"
  header = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
  header += ["region_shape_attributes", "region_attributes"]
  rows = []
  for image in content["_via_img_metadata"].values():
    for i, one in enumerate(image["regions"]):
      cells = [json.dumps(one[key]) for key in ("shape_attributes", "region_attributes")]
      rows.append([image["filename"], 123, "{}", len(image["regions"]), i, *cells])
    if not image["regions"]:
      rows.append([image["filename"], 123, "{}", 0, 0, "{}", "{}"])
  for first in ("", "#"):
    with place.file.open("w", newline="") as file:
      file.write(first)
      csv.writer(file).writerows([header, *rows])
    assert place.run() == 0


def test_classes_that_are_ticked_and_version_1(place):
  content = project(a=[region(value={"b_line": True, "pleura": True, "rib": False})])
  image = content["_via_img_metadata"]["a.png123"]
  image["regions"] = {"0": image["regions"][0]}
  place.write(content)
  assert place.run() == 0
  masks = place.masks()["a.png"]
  assert masks.keys() == {"b_line", "pleura"}
  for mask in masks.values():
    np.testing.assert_array_equal(mask, SQUARE)


def test_attributes(place, capsys):
  place.write(project(a=[region(sure="yes"), region(value="pleura", sure="")]))
  refused(place, capsys, place.run(), "several attributes of regions, class, sure")
  refused(place, capsys, place.run("--attribute=sure"), "region 2 has no 'sure'")
  refused(place, capsys, place.run("--attribute=other"), "region 1 has no 'other'")
  assert place.run("--attribute=class") == 0
  assert place.masks()["a.png"].keys() == {"b_line", "pleura"}


@pytest.mark.parametrize(
  ("content", "part"),
  [
    (project(d=[region()]), "'d.png' is not in"),
    (project(a=[region({"name": "star"})]), "is of the type 'star', which is not known"),
    (project(a=[region({"name": "rect", "x": 1, "y": "2"})]), "has no number 'y'"),
    (project(a=[region(POLYGON | {"all_points_x": [1]})]), "has not as many x as y"),
    (project(a=[region(POLYGON | {"all_points_x": [900] * 4})]), "region 1 lies outside"),
    (project(a=[region(value=3.5)]), "has the class 3.5"),
    (project(a=[region(value="../x")]), "must be a file name without folders"),
    (project(a=["x"]), "region 1 is no object"),
    (project(a="x"), "has no filename or no list of regions"),
    (project(), "holds nothing to import"),
    (project(a=[]), "holds nothing to import (left out: 1 pictures without a region"),
    ({"project": {}, "config": {}, "metadata": {}, "file": {}, "view": {}}, "Annotator 3"),
    ({"shapes": [], "imagePath": "a.png"}, "LabelMe's, not a project"),
    ([], "is no object"),
  ],
)
def test_mistakes(place, capsys, content, part):
  place.write(content)
  refused(place, capsys, place.run(), part)


def test_two_pictures_of_one_name(place, capsys):
  content = project(a=[region()])
  metadata = content["_via_img_metadata"]
  metadata["a.png456"] = metadata["a.png123"]
  place.write(content)
  refused(place, capsys, place.run(), "'a.png456': frame 0 of a is labelled in")


def test_mistakes_in_tables(place, capsys):
  place.file = place.path / "via.csv"
  for text, part in (
    ("filename,region\na.png,1\n", "has not the columns filename, region_count"),
    (
      "filename,region_count,region_id,region_shape_attributes,region_attributes\na.png,1,0,{,{}\n",
      "row 2: region_shape_attributes is no JSON",
    ),
    (
      "filename,region_count,region_id,region_shape_attributes,region_attributes\na.png,1,0\n",
      "row 2: it has not as many cells",
    ),
  ):
    place.file.write_text(text)
    refused(place, capsys, place.run(), part)
