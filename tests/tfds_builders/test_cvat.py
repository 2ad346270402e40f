import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from refusals import refused

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.importers import cvat_tracks
from tfds_builders.lus_folder import manifest

H, W, N = 20, 30, 12
SQUARE = [2.0, 3.0, 9.0, 3.0, 9.0, 8.0, 2.0, 8.0]


def filled(points):
  """A polygon as CVAT's own exports of masks fill it."""
  return coco.decode(coco.frPyObjects([list(points)], H, W))[..., 0].astype(bool)


def shape(points=SQUARE, frame=0, label="b_line", kind="polygon", **more):
  return {
    "type": kind,
    "occluded": False,
    "outside": False,
    "z_order": 0,
    "rotation": 0.0,
    "points": list(points),
    "frame": frame,
    "group": 0,
    "source": "manual",
    "attributes": [],
    "label": label,
  } | more


def track(*keyframes, label="b_line", **more):
  for keyframe in keyframes:
    del keyframe["label"]
  first = min(keyframe["frame"] for keyframe in keyframes)
  own = {"frame": first, "group": 0, "source": "manual", "attributes": [], "label": label}
  return own | {"shapes": list(keyframes)} | more


def confidence(value):
  return [{"name": "Confidence", "value": value}]


def runs_of(mask, points=True):
  """CVAT's run lengths of a mask: rows first, the box inclusive."""
  ys, xs = np.nonzero(mask)
  top, bottom, left, right = ys.min(), ys.max(), xs.min(), xs.max()
  flat = mask[top : bottom + 1, left : right + 1].ravel()
  ends = np.flatnonzero(np.diff(flat.astype(int))) + 1
  runs = np.diff([0, *ends, flat.size]).tolist()
  runs = ([0] if flat[0] else []) + runs
  return runs + [int(x) for x in (left, top, right, bottom)] if points else runs


class Place:
  """A folder of a clip and pictures, and annotations on them."""

  def __init__(self, path):
    self.path, self.backup = path, path / "task_7"
    (self.backup / "data").mkdir(parents=True)
    self.video = self.backup / "data" / "clip.npy"
    np.save(self.video, np.zeros((N, H, W), np.uint8))
    self.task()

  def pictures(self, *names):
    self.video.unlink()
    for name in names:
      file = self.backup / "data" / name
      file.parent.mkdir(exist_ok=True)
      Image.fromarray(np.zeros((H, W), np.uint8)).save(file)

  def task(self, jobs=((0, N - 1),), **data):
    data = {"start_frame": 0, "stop_frame": N - 1, "storage": "local"} | data
    labels = [{"name": name, "attributes": []} for name in ("pleura", "b_line", "rib")]
    jobs = [{"start_frame": a, "stop_frame": b, "status": "annotation"} for a, b in jobs]
    content = {"name": "a task", "version": "1.0", "labels": labels, "data": data, "jobs": jobs}
    (self.backup / "task.json").write_text(json.dumps(content))

  def annotations(self, *jobs):
    jobs = [{"version": 0, "tags": [], "shapes": [], "tracks": []} | job for job in jobs]
    (self.backup / "annotations.json").write_text(json.dumps(jobs))

  def xml(self, text, meta="", name="annotations.xml"):
    file = self.path / name
    file.write_text(
      f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>{meta}'
      f"<dumped>2026-01-01</dumped></meta>\n{text}\n</annotations>"
    )
    return file

  def run(self, *more, annotations=None):
    annotations = [annotations] if annotations else [self.backup]
    annotations = [f"--annotations={one}" for one in annotations]
    argv = ["cvat", f"--videos={self.backup / 'data'}", *annotations, *more]
    return importers.main([*argv, f"--out={self.path / 'out'}"])

  def masks(self):
    """What was written: masks by class, by clip and frame."""
    labels = manifest.read_folder(self.path / "out").labels
    return {
      (label.video.media.path.stem, label.frame): {
        name: np.rint(255 * readers.read_mask(file)) for name, file in label.masks.items()
      }
      for label in labels
    }


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


def test_a_backup(place, capsys):
  mask = np.zeros((H, W), bool)
  mask[4:9, 20:27] = True
  mask[5, 22] = False
  place.annotations(
    {
      "shapes": [
        shape(frame=2),
        shape([1, 1, 12, 1, 12, 6], 2, "pleura"),
        shape([5.5, 4.0, 15.5, 10.0], 3, kind="rectangle"),
        shape([10.0, 8.0, 20.0, 12.0], 4, kind="rectangle", rotation=90.0),
        shape([15.0, 10.0, 20.0, 7.0], 5, kind="ellipse"),
        shape([3.0, 10.5, 20.0, 10.5], 6, "pleura", "polyline"),
        shape(runs_of(mask), 7, kind="mask"),
        shape([1.0, 1.0], 8, kind="points"),
        shape([0.0] * 16, 8, kind="cuboid"),
        shape([], 8, kind="skeleton", elements=[shape([1.0, 1.0], 8, kind="points")]),
      ],
      "tags": [{"frame": 1, "label": "rib", "attributes": []}],
    }
  )
  assert place.run("--line-width=3px") == 0
  printed = capsys.readouterr().out
  assert "1 video, 0 stills, 6 labelled frames" in printed
  for part in ("1 points", "1 cuboids", "1 skeletons", "1 tags"):
    assert f"Left out: {part} (" in printed
  assert "nobody drew: rib." in printed and "classes pleura, b_line." in printed
  masks = place.masks()
  assert {frame for _, frame in masks} == {2, 3, 4, 5, 6, 7}
  expected = {
    2: {"b_line": filled(SQUARE), "pleura": filled([1, 1, 12, 1, 12, 6])},
    3: {"b_line": filled([5.5, 4, 15.5, 4, 15.5, 10, 5.5, 10])},
    4: {"b_line": filled([13, 5, 17, 5, 17, 15, 13, 15])},
    7: {"b_line": mask},
  }
  rows, columns = np.mgrid[:H, :W] + 0.5
  line = np.zeros((H, W), bool)
  line[9:12, 2:21] = True
  line[10, 1:22] = True
  expected[6] = {"pleura": line}
  for frame, by_class in expected.items():
    assert masks["clip", frame].keys() == by_class.keys()
    for name, wanted in by_class.items():
      np.testing.assert_array_equal(masks["clip", frame][name] > 0, wanted, f"{frame} {name}")
  ellipse = ((columns - 15) / 5) ** 2 + ((rows - 10) / 3) ** 2 <= 1
  assert ((masks["clip", 5]["b_line"] > 0) != ellipse).sum() <= 4


def test_the_same_import_twice_from_folder_file_and_zip(place, capsys):
  place.annotations({"shapes": [shape(frame=2)]})
  assert place.run() == 0
  assert place.run(annotations=place.backup / "annotations.json") == 0
  archive = place.path / "backup.zip"
  with zipfile.ZipFile(archive, "w") as file:
    for name in ("annotations.json", "task.json", "data/clip.npy"):
      file.write(place.backup / name, name)
  assert place.run(annotations=archive) == 0
  folder = place.path / "exports"
  folder.mkdir()
  archive.rename(folder / "x.zip")
  assert place.run(annotations=folder) == 0
  assert list(place.masks()) == [("clip", 2)]


def test_a_project_of_tasks_whose_videos_have_one_name(place):
  # As the backup of a project holds them.
  for i, label in enumerate(("b_line", "pleura")):
    place.annotations({"shapes": [shape(frame=i, label=label)]})
    shutil.copytree(place.backup, place.path / "project" / f"task_{i}")
  project = place.path / "project"
  archive = shutil.make_archive(str(place.path / "p"), "zip", project)
  argv = ["cvat", f"--videos={project}", f"--out={place.path / 'out'}", "--annotations"]
  for annotations in (project, archive):
    assert importers.main([*argv, str(annotations)]) == 0
  labels = manifest.read_folder(place.path / "out").labels
  assert {(label.video.name, label.frame, *label.masks) for label in labels} == {
    ("task_0/data/clip.npy", 0, "b_line"),
    ("task_1/data/clip.npy", 1, "pleura"),
  }


def test_tracks(place, capsys):
  moved = [x + 4 for x in SQUARE]
  place.annotations(
    {
      "tracks": [
        track(shape(frame=1), shape(moved, 3), shape(moved, 5, outside=True)),
        track(shape(frame=11), shape(frame=2**31 - 1, outside=True), label="rib"),
        track(
          shape([2.0, 10.0, 8.0, 14.0], 2, kind="rectangle"),
          shape([4.0, 10.0, 14.0, 14.0], 4, kind="rectangle", rotation=20.0),
          shape([6.0, 10.0, 16.0, 14.0], 9, kind="rectangle", rotation=40.0),
          label="pleura",
        ),
      ]
    }
  )
  assert place.run() == 0
  assert "shapes between keyframes, or after the last" in capsys.readouterr().out
  masks = place.masks()
  assert {f for (_, f), found in masks.items() if "b_line" in found} == {1, 2, 3, 4}
  # The last keyframe holds to the last frame.
  assert {f for (_, f), found in masks.items() if "pleura" in found} == set(range(2, N))
  assert {f for (_, f), found in masks.items() if "rib" in found} == {11}
  for frame, by in ((1, 0), (2, 2), (3, 4), (4, 4)):
    wanted = filled([x + by for x in SQUARE])
    np.testing.assert_array_equal(masks["clip", frame]["b_line"] > 0, wanted)
  np.testing.assert_array_equal(masks["clip", 9]["pleura"], masks["clip", N - 1]["pleura"])
  turn = np.deg2rad(10)
  corners = np.array([[3, 10], [11, 10], [11, 14], [3, 14]]) - (7, 12)
  corners = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
  wanted = filled((corners + (7, 12)).ravel())
  np.testing.assert_array_equal(masks["clip", 3]["pleura"] > 0, wanted)


@pytest.mark.parametrize("kind", ["polygon", "polyline"])
def test_outlines_of_other_numbers_of_corners_are_interpolated_as_cvat_does(kind):
  # Corners match by how far along they are: the new one, in the middle of a side, grows out of it.
  left = (0, 0, 8, 0, 8, 8, 0, 8)
  right = (0, 0, 4, 0, 8, 0, 8, 8, 0, 8)
  between = cvat_tracks.between(kind, left, right, 0.5)
  points = np.reshape(between, (-1, 2)).tolist()
  for corner in ([0, 0], [8, 8], [0, 8]) if kind == "polygon" else ([0, 0], [0, 8]):
    assert corner in points
  assert cvat_tracks.between(kind, left, left, 0.3) == left
  moved = tuple(x + 10 for x in left)
  assert cvat_tracks.between(kind, left, moved, 0.3) == pytest.approx([x + 3 for x in left])
  # Corners that met are one.
  many = (0, 0, 0.1, 0, 8, 0, 8, 8, 0, 8)
  few = (0, 0, 8, 0, 8, 8)
  assert len(cvat_tracks.between(kind, many, few, 0.9)) < len(many)
  still = cvat_tracks.between(kind, (1, 1) * 4, (2, 2) * 4, 0.5)
  assert set(still) <= {1.5} and still


def test_angles_turn_the_shorter_way():
  assert cvat_tracks.turned(350, 10, 0.5) == 0
  assert cvat_tracks.turned(10, 350, 0.25) == 5


def test_masks_in_tracks_are_held(place):
  mask = np.zeros((H, W), bool)
  mask[2:5, 2:9] = True
  other = np.roll(mask, 5, axis=1)
  place.annotations(
    {"tracks": [track(shape(runs_of(mask), 1, kind="mask"), shape(runs_of(other), 3, kind="mask"))]}
  )
  assert place.run() == 0
  masks = place.masks()
  for frame, wanted in ((1, mask), (2, mask), (3, other), (N - 1, other)):
    np.testing.assert_array_equal(masks["clip", frame]["b_line"] > 0, wanted)


def test_frames_of_a_task_that_leaves_some_out(place, capsys):
  place.task(start_frame=1, stop_frame=10, frame_filter="step=3", jobs=[(0, 1), (2, 3)])
  place.annotations(
    {"shapes": [shape(frame=1)], "tracks": [track(shape(frame=0), label="pleura")]},
    {"tracks": [track(shape(frame=2), shape(frame=3, outside=True), label="rib")]},
  )
  assert place.run() == 0
  found = {frame: set(masks) for (_, frame), masks in place.masks().items()}
  # The first job's track ends with its job.
  assert found == {1: {"pleura"}, 4: {"b_line", "pleura"}, 7: {"rib"}}


def test_all_frames(place, capsys):
  place.task(start_frame=2, stop_frame=8, frame_filter="step=2", deleted_frames=[3])
  place.annotations({"shapes": [shape(frame=1), shape(frame=3)]})
  assert place.run("--all-frames") == 0
  printed = capsys.readouterr().out
  assert "Left out: 1 shapes on frames that were deleted" in printed
  assert "2 frames without a shape count as background" in printed
  assert {f: set(m) for (_, f), m in place.masks().items()} == {2: set(), 4: {"b_line"}, 6: set()}


def test_frames_of_which_all_is_left_out_are_not_empty(place, capsys):
  def points(frame, **more):
    return shape([1.0, 1.0], frame, kind="points", **more)

  place.annotations(
    {
      "shapes": [shape(frame=0), points(0), points(1)],
      "tracks": [track(points(3), points(5, outside=True)), track(points(N - 2))],
    }
  )
  assert place.run("--all-frames") == 0
  printed = capsys.readouterr().out
  part = "Left out: 5 frames of which all shapes are left out; they are not labelled ("
  assert part in printed
  assert {frame for _, frame in place.masks()} == {*range(N)} - {1, 3, 4, N - 2, N - 1}
  (place.path / "out").rename(place.path / "first")
  left = listed([1, 1], 3, kind="points") + listed([1, 1], 4, kind="points")
  left += listed([1, 1], 5, outside=1, kind="points")
  kept = listed(SQUARE, 0) + listed(SQUARE, 1, outside=1)
  tracks = "".join(f'<track id="{i}" label="rib">{x}</track>' for i, x in enumerate((left, kept)))
  file = place.xml(tracks, video_meta())
  assert place.run("--all-frames", annotations=file) == 0
  assert {frame for _, frame in place.masks()} == {*range(N)} - {3, 4}
  (place.path / "out").rename(place.path / "second")
  # Frames of XML are the video's, whatever the task leaves out.
  left = listed([1, 1], 3, kind="points") + listed([1, 1], 5, kind="points")
  tracks = "".join(
    f'<track id="{i}" label="rib">{x}</track>' for i, x in enumerate((left, listed(SQUARE, 1)))
  )
  file = place.xml(tracks, video_meta(start_frame=1, frame_filter="step=2"))
  assert place.run("--all-frames", annotations=file) == 0
  assert {frame for _, frame in place.masks()} == {1, 7, 9, 11}


@pytest.mark.parametrize("manifest_says", [True, False])
def test_a_backup_of_pictures(place, manifest_says):
  place.pictures("p2/10.png", "p2/9.png", "p1/9.png")
  order = ["p1/9.png", "p2/10.png", "p2/9.png"]
  if manifest_says:
    order = order[::-1]
    lines = [{"version": "1.1"}, {"type": "images"}]
    lines += [{"name": name[:-4], "extension": ".png", "width": W, "height": H} for name in order]
    text = "\n".join(map(json.dumps, lines))
    (place.backup / "data" / "manifest.jsonl").write_text(text)
  place.task(stop_frame=2)
  place.annotations({"shapes": [shape(frame=0), shape(frame=1, label="pleura")]})
  assert place.run() == 0
  labels = manifest.read_folder(place.path / "out").labels
  found = {label.video.name: set(label.masks) for label in labels}
  assert found == {order[0]: {"b_line"}, order[1]: {"pleura"}}


def test_confidences(place, capsys):
  def run(*values, more=()):
    shapes = [shape(frame=i, attributes=confidence(v)) for i, v in enumerate(values)]
    place.annotations({"shapes": shapes})
    return place.run(*more)

  assert run("80", "0", "100", "12.5%", 50) == 0
  assert "Confidences are attributes from 0 to 100." in capsys.readouterr().out
  masks = [found.get("b_line") for found in place.masks().values()]
  assert [0 if mask is None else mask.max() for mask in masks] == [204, 0, 255, 32, 128]
  (place.path / "out").rename(place.path / "first")
  assert run("0.8", "1") == 0
  assert "Confidences are attributes from 0 to 1." in capsys.readouterr().out
  assert [found["b_line"].max() for found in place.masks().values()] == [204, 255]
  (place.path / "out").rename(place.path / "second")
  refused(place, capsys, run("high"), "has Confidence 'high', no number from 0 to 100")
  refused(place, capsys, run("101"), "has Confidence '101'")
  more = ["--confidence-attribute=sure"]
  refused(place, capsys, run("high", more=more), "No shape has the attribute 'sure'")
  assert run("high", more=["--confidence-attribute="]) == 0


def test_confidences_of_tracks_go_on(place):
  place.annotations(
    {
      "tracks": [
        track(shape(frame=1, attributes=confidence("40")), shape(frame=3), label="b_line"),
        track(shape(frame=6), label="pleura", attributes=confidence("60")),
      ]
    }
  )
  assert place.run() == 0
  masks = place.masks()
  assert {masks["clip", frame]["b_line"].max() for frame in range(1, N)} == {102}
  assert masks["clip", 7]["pleura"].max() == 153


def test_several_annotators(place):
  place.annotations({"shapes": [shape(frame=2)]})
  meta = video_meta()
  text = image("frame_000002", 2, '<polygon label="b_line" points="2,3;9,3;9,8"/>')
  file = place.xml(text, meta)
  argv = ["cvat", f"--videos={place.backup / 'data'}", "--annotations"]
  argv += [f"anna={place.backup}", f"ben={file}", f"--out={place.path / 'out'}"]
  assert importers.main(argv) == 0
  raters = place.path / "out" / "raters"
  for rater, wanted in (("anna", filled(SQUARE)), ("ben", filled([2, 3, 9, 3, 9, 8]))):
    np.testing.assert_array_equal(readers.read_mask(raters / rater / "clip_000002.png") > 0, wanted)


def video_meta(source="clip.mp4", **more):
  limits = {"start_frame": 0, "stop_frame": N - 1, "frame_filter": ""} | more
  limits = "".join(f"<{name}>{value}</{name}>" for name, value in limits.items())
  labels = "".join(f"<label><name>{n}</name></label>" for n in ("pleura", "b_line"))
  return (
    f"<task><id>7</id><name>t</name><mode>interpolation</mode>{limits}<labels>{labels}</labels>"
    f"<original_size><width>{W}</width><height>{H}</height></original_size>"
    f"<source>{source}</source></task>"
  )


def image(name, number, content="", size=(W, H)):
  return (
    f'<image id="{number}" name="{name}" width="{size[0]}" height="{size[1]}">{content}</image>'
  )


def listed(points, frame, outside=0, keyframe=1, kind="polygon"):
  points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(points[::2], points[1::2], strict=True))
  return (
    f'<{kind} frame="{frame}" outside="{outside}" occluded="0" keyframe="{keyframe}" '
    f'points="{points}" z_order="0"></{kind}>'
  )


def test_xml_for_images(place, capsys):
  place.pictures("a.png", "b.png", "c.png", "d.png")
  mask = np.zeros((H, W), bool)
  mask[4:9, 20:27] = True
  mask[5, 22] = False
  rle = ", ".join(map(str, runs_of(mask, points=False)))
  shapes = (
    f'<mask label="pleura" source="manual" occluded="0" rle="{rle}" left="20" top="4" width="7" '
    'height="5" z_order="0"></mask>'
    '<box label="b_line" xtl="5.50" ytl="4.00" xbr="15.50" ybr="10.00" rotation="180.00"/>'
    '<ellipse label="b_line" cx="15.00" cy="10.00" rx="5.00" ry="3.00"/>'
    '<polygon label="rib" points="2.00,3.00;9.00,3.00;9.00,8.00"><attribute name="certainty">40'
    "</attribute></polygon>"
  )
  place.xml(
    image("a.png", 0, shapes)
    + image("b.png", 1)
    + image("c.png", 2, '<points label="rib" points="1.00,1.00"/><tag label="rib"/>')
    + image("d.png", 3, '<skeleton label="s"><points label="1" points="1,2"/></skeleton>')
  )
  file = place.path / "annotations.xml"
  assert place.run(annotations=file) == 0
  printed = capsys.readouterr().out
  assert "1 frame without a shape count as background" in printed
  assert "1 points" in printed and "1 tags" in printed and "1 skeletons" in printed
  masks = place.masks()
  # Where only a point was drawn, nobody says that there is nothing.
  assert {name: set(found) for (name, _), found in masks.items()} == {
    "a": {"pleura", "b_line", "rib"},
    "b": set(),
  }
  np.testing.assert_array_equal(masks["a", 0]["pleura"] > 0, mask)
  np.testing.assert_array_equal(masks["a", 0]["rib"], 102 * filled([2, 3, 9, 3, 9, 8]))
  box = filled([5.5, 4, 15.5, 4, 15.5, 10, 5.5, 10])
  assert (masks["a", 0]["b_line"] > 0)[box].all()
  (place.path / "out").rename(place.path / "first")
  assert place.run("--drawn-frames", annotations=file) == 0
  assert list(place.masks()) == [("a", 0)]


def test_xml_for_images_of_a_video(place):
  place.xml(
    image("frame_000000", 0)
    + image("frame_000004", 4, '<polygon label="b_line" points="2,3;9,3;9,8;2,8"/>'),
    video_meta(),
  )
  assert place.run(annotations=place.path / "annotations.xml") == 0
  np.testing.assert_array_equal(place.masks()["clip", 4]["b_line"] > 0, filled(SQUARE))
  assert len(place.masks()) == 1


def test_pictures_that_are_called_as_frames_of_a_video(place):
  place.pictures("frame_000000.png", "frame_000001.png")
  polygon = '<polygon label="b_line" points="2,3;9,3;9,8;2,8"/>'
  meta = "<task><id>1</id><name>t</name><mode>annotation</mode></task>"
  place.xml(image("frame_000001", 1, polygon), meta)
  assert place.run(annotations=place.path / "annotations.xml") == 0
  assert list(place.masks()) == [("frame_000001", 0)]


def test_xml_for_video(place):
  moved = [x + 4 for x in SQUARE]
  # As CVAT writes it: every frame on which something is seen, and single shapes as tracks, the last
  # without an end.
  place.xml(
    '<track id="0" label="b_line" source="manual">'
    + listed(SQUARE, 1)
    + listed([x + 1 for x in SQUARE], 2, keyframe=0)
    + listed(moved, 3, outside=1)
    + '</track><track id="1" label="pleura">'
    + listed(SQUARE, N - 2)
    + "</track>",
    video_meta(),
  )
  assert place.run(annotations=place.path / "annotations.xml") == 0
  masks = place.masks()
  assert {frame: set(m) for (_, frame), m in masks.items()} == {
    1: {"b_line"},
    2: {"b_line"},
    N - 2: {"pleura"},
  }
  np.testing.assert_array_equal(masks["clip", 2]["b_line"] > 0, filled([x + 1 for x in SQUARE]))


def test_xml_for_video_of_keyframes_only_and_with_a_filter(place):
  moved = [x + 4 for x in SQUARE]
  place.xml(
    '<track id="0" label="b_line">' + listed(SQUARE, 1) + listed(moved, 5) + "</track>",
    video_meta(start_frame=1, frame_filter="step=2"),
  )
  assert place.run(annotations=place.path / "annotations.xml") == 0
  masks = place.masks()
  assert {frame for _, frame in masks} == {1, 3, 5, 7, 9, 11}
  for frame, by in ((1, 0), (3, 2), (5, 4), (11, 4)):
    wanted = filled([x + by for x in SQUARE])
    np.testing.assert_array_equal(masks["clip", frame]["b_line"] > 0, wanted)


def test_clips_that_are_named_otherwise(place, capsys):
  text = '<track id="0" label="b_line">' + listed(SQUARE, 1) + listed(SQUARE, 2, 1) + "</track>"
  file = place.xml(text, video_meta("upload.mp4"))
  assert place.run(annotations=file) == 0
  assert "'upload.mp4', taken to be clip, the only one" in capsys.readouterr().out
  (place.path / "out").rename(place.path / "first")
  np.save(place.video.with_name("other.npy"), np.zeros((N, H, W), np.uint8))
  refused(place, capsys, place.run(annotations=file), "'upload.mp4' is not in")
  file = place.xml(text, video_meta("clip.avi"))
  assert place.run(annotations=file) == 0
  assert "Left out: 1 clips that no annotation names (other)" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("job", "part"),
  [
    ({"shapes": [shape(frame=N)]}, f"Frame {N} of clip is labelled, but"),
    ({"shapes": [shape(frame=-1)]}, "a frame that is no whole number"),
    ({"shapes": [shape(frame=1.5)]}, "a frame that is no whole number"),
    ({"shapes": [shape(frame="x")]}, "a frame that is no number"),
    ({"shapes": [shape([1, 2, 3])]}, "fewer than 3 points, or an odd number"),
    ({"shapes": [shape([1, 2, 3, 4, 5, None])]}, "a coordinate that is no number"),
    ({"shapes": [shape([1, 2, 3, 4, 5, 10**400])]}, "a coordinate that is no number"),
    ({"shapes": [shape([1, 2, 3], kind="rectangle")]}, "a rectangle of 3 numbers"),
    ({"shapes": [shape(kind="star")]}, "is 'star', which is not known"),
    ({"shapes": [shape(label=None)]}, "has the class null"),
    ({"shapes": [shape([900, 1, 910, 1, 905, 9])]}, "shape 1 lies outside of its picture"),
    ({"shapes": [shape([5, 9, 9, 9, 9], kind="mask")]}, "fill"),
    ({"shapes": [shape([5, -1, 0, 4, 1], kind="mask")]}, "a mask whose box is none"),
    ({"shapes": [shape([5, 0, 0, 2e9, 2e9], kind="mask")]}, "out of its picture of 30 x 20"),
    ({"shapes": [shape([1.5, 0, 0, 4, 1], kind="mask")]}, "no mask of whole numbers"),
    ({"tracks": [track(shape(frame=1), shape(frame=1))]}, "two shapes on frame 1"),
    ({"tracks": [track(shape(frame=1), shape(frame=2**31 - 1))]}, "but its last is 11"),
    ({"shapes": "x"}, "'shapes' that is no list of objects"),
    ({}, "holds nothing to import"),
    ({"shapes": [shape([0.1, 0.1, 0.9, 0.1, 0.5, 1])]}, "Multiply x by 30 and y by 20"),
    ({"shapes": [shape(label="../x")]}, "'../x' must be a file name without folders"),
  ],
)
def test_mistakes_in_a_backup(place, capsys, job, part):
  place.annotations(job)
  refused(place, capsys, place.run(), part)


def test_mistakes_in_files(place, capsys):
  place.annotations({"shapes": [shape()]})
  place.task(frame_filter="every 2")
  refused(place, capsys, place.run(), "the frame filter 'every 2', no step=N")
  place.task()
  (place.backup / "annotations.json").write_text('[{"shapes": []')
  refused(place, capsys, place.run(), "is not JSON")
  (place.backup / "annotations.json").write_text('{"images": []}')
  refused(place, capsys, place.run(), "is no annotations.json of a CVAT backup")
  (place.backup / "task.json").unlink()
  file = place.backup / "annotations.json"
  refused(place, capsys, place.run(annotations=file), "has no task.json beside it")
  refused(place, capsys, place.run(annotations=place.path / "gone"), "gone does not exist")
  (place.path / "empty").mkdir()
  refused(place, capsys, place.run(annotations=place.path / "empty"), "holds no annotations.json")
  other = place.path / "empty" / "a.json"
  other.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
  for one in (other, other.parent):
    part = "a.json looks like COCO's, not a backup or XML of CVAT; import it with coco."
    refused(place, capsys, place.run(annotations=one), part)
  archive = place.path / "x.zip"
  archive.write_bytes(b"PK\3\4 and no more")
  refused(place, capsys, place.run(annotations=archive), "x.zip is damaged")


def test_an_archive_that_would_fill_the_memory(place, capsys, monkeypatch):
  monkeypatch.setattr(importers.cvat, "_SMALL", 10_000)
  archive = place.path / "x.zip"
  with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("annotations.xml", b" " * 10_001)
  refused(place, capsys, place.run(annotations=archive), "'annotations.xml' unpacks to over 100")


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("", "is empty"),
    ("x", "is no XML"),
    ("<annotations>", "is no XML"),
    ("<annotation><object/></annotation>", "is XML, but not CVAT's"),
    ("<annotations/>", "lists no image and no track"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "declares a document type"),
    ('<?xml version="1.0" encoding="klingon"?><annotations/>', "is no XML"),
    (f"<annotations>{image('a.png', 0)}</annotations>", "'a.png' is not in"),
    (
      f"<annotations>{image('frame_000001', 1, size=(W, 2 * H))}</annotations>",
      "was drawn on 30 x 40 pixels, but",
    ),
    (
      f"<annotations>{image('frame_000001', 1, '<blob label=' + chr(34) * 2 + '/>')}</annotations>",
      "is no shape that is known",
    ),
    ("<annotations><image/></annotations>", "has no name"),
    (
      '<annotations><track id="0" label="a">' + listed(SQUARE, "x") + "</track></annotations>",
      "a frame that is no number",
    ),
  ],
)
def test_mistakes_in_xml(place, capsys, text, part):
  file = place.path / "a.xml"
  file.write_text(text)
  refused(place, capsys, place.run(annotations=file), part)


def test_one_frame_in_two_files(place, capsys):
  text = image("frame_000002", 2, '<polygon label="b_line" points="2,3;9,3;9,8"/>')
  for name in ("a.xml", "b.xml"):
    place.xml(text, video_meta(), name)
  argv = ["cvat", f"--videos={place.backup / 'data'}", f"--out={place.path / 'out'}"]
  argv += ["--annotations", str(place.path / "a.xml"), str(place.path / "b.xml")]
  part = "b.xml: frame 2 of clip is labelled in"
  refused(place, capsys, importers.main(argv), part)


def test_a_clip_that_has_lost_frames_since_is_said(place, caplog):
  place.task(stop_frame=N + 3, jobs=[(0, N + 3)])
  place.annotations({"tracks": [track(shape(frame=1))]})
  assert place.run() == 0
  assert f"CVAT counts frames up to {N + 3}, but clip.npy has {N}" in caplog.text
  assert {frame for _, frame in place.masks()} == set(range(1, N))


def test_lines_in_millimetres(place, capsys, monkeypatch):
  place.annotations({"shapes": [shape([3.0, 10.5, 20.0, 10.5], 6, "pleura", "polyline")]})
  refused(place, capsys, place.run("--line-width=2mm"), "--line-width 6px")
  from tfds_builders.importers import shapes

  line = shapes.Shape("a", "polyline", ((3.0, 10.5), (20.0, 10.5)), width=3, spacing=(1.0, 0.5))
  drawn = shapes.mask(line, H, W) > 0
  assert drawn.any(axis=1).sum() == 3
  assert np.flatnonzero(drawn[10])[[0, -1]].tolist() == [0, 22]


@pytest.mark.real_data
def test_real_backup(real_data, tmp_path):
  source = real_data / "lus_cvat" / "task_195"
  out = tmp_path / "out"
  _, notes = importers.import_frames(
    "cvat", videos=source / "data", annotations=[("", source)], out=out, licence="MIT"
  )
  assert notes[0].startswith("1 video, 0 stills, 39 labelled frames, 1 patient")
  folder = manifest.read_folder(out)
  assert folder.classes == ("lungslidingpresent", "aline")
  assert sum("aline" in label.masks for label in folder.labels) == 39
  assert sum("lungslidingpresent" in label.masks for label in folder.labels) == 17
  labels = folder.labels[::8]
  frames = readers.read(folder.videos[0].media, [label.frame for label in labels])
  for label, pixels in zip(labels, frames, strict=True):
    # The scan is 155 columns of the picture, and lines are brighter than what is around them.
    for mask in label.masks.values():
      drawn = readers.read_mask(mask) > 0
      columns = np.flatnonzero(drawn.any(axis=0))
      assert columns[0] > 550 and columns[-1] < 725
      below = np.roll(drawn, 45, axis=0) & ~drawn
      assert pixels[drawn].mean() > 1.2 * pixels[below].mean()


def test_pictures_without_a_drawing_are_not_mistaken_for_another_frame(place):
  place.pictures("s/000.png", "s/001.png", "s/002.png")
  polygon = '<polygon label="b_line" points="2,3;9,3;9,8;2,8"/>'
  place.xml(image("s/001.png", 1, polygon))
  assert place.run("--folders-are-clips", annotations=place.path / "annotations.xml") == 0
  assert list(place.masks()) == [("s", 1)]


def test_what_is_drawn_is_drawn_once(place):
  # A picture drawn by hand, to be sure of where the first pixel is.
  place.annotations({"shapes": [shape([4, 2, 7, 2, 7, 5, 4, 5], 1)]})
  assert place.run() == 0
  picture = Image.new("L", (W, H))
  ImageDraw.Draw(picture).rectangle((4, 2, 6, 4), fill=255)
  np.testing.assert_array_equal(place.masks()["clip", 1]["b_line"], np.asarray(picture))
