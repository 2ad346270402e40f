"""Broken files for every reader: each ends in a value that can be true, or in one clear line.

A reader has a folder of small sound files, made here. A case copies it, breaks one file, and calls
what a user would call. Whatever is neither a value nor a `UserError` of one line is a fault, and so
is a value that differs from the sound one where the format says that it is broken (it is cut off,
or fails its checksum).
"""

import contextlib
import csv
import dataclasses
import json
import pathlib
import resource
import shutil
import time
from collections.abc import Callable

import numpy as np

from tests.faults import mutate, seeds
from tests.faults.common import PATIENCE, Case, Wrong, digest

CASES = 2000
# Cases of one reader alone.
CASES_OF_ONE = 300
# What no file may take: GiB of memory beyond what the process had, seconds of its time.
MOST_MEMORY, MOST_TIME = 2, 10


@dataclasses.dataclass(frozen=True)
class Reader:
  """What is broken, and how it is read.

  Attributes:
    make: `(folder)`: writes the sound files.
    read: `(folder, reference run) -> value`.
    files: which of them are broken, as glob patterns.
    weight: how many of `CASES` it gets, roughly.
    optional: files that may be missing.
    folder: whether it is a data folder, whose files must not lead out of it.
  """

  make: Callable
  read: Callable
  files: tuple[str, ...]
  weight: int
  optional: tuple[str, ...] = ()
  folder: bool = True


def picture(seed, h=24, w=32):
  rng = np.random.default_rng(seed)
  image = np.add.outer(4 * np.arange(h), 3 * np.arange(w)) + rng.integers(0, 20, (h, w))
  return image.astype(np.uint8)


def blob(seed, h=24, w=32):
  y, x = np.mgrid[:h, :w]
  return np.clip(1.3 - np.hypot(y - 10 - seed % 5, x - 12 - seed % 7) / 7, 0, 1)


def grey(x):
  return np.rint(255 * x).astype(np.uint8)


def save(path, pixels, **options):
  from PIL import Image

  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def _table(path, rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file, lineterminator="\n").writerows(rows)


def video(path, codec="libx264", pixels="yuv420p", n=6, seed=0):
  import av

  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width, stream.pix_fmt = 24, 32, pixels
    for i in range(n):
      frame = av.VideoFrame.from_ndarray(picture(seed + i), format="gray")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _plausible_frames(frames, shape=None):
  frames = np.asarray(frames)
  if frames.dtype != np.uint8 or not frames.size:
    raise Wrong(f"pixels are {frames.dtype} {frames.shape}")
  if shape is not None and frames.shape != shape:
    raise Wrong(f"pixels are {frames.shape}, the header says {shape}")
  return frames


def _read_media(name):
  def read(folder, _):
    from lus_jax.media import readers as media

    found = media.probe(folder / name)
    shape = found.n_frames, found.height, found.width
    return _plausible_frames(media.read(found), shape)

  return read


def _media(name):
  def make(folder):
    path = folder / name
    suffix = path.suffix
    if suffix == ".npy":
      np.save(path, np.stack([picture(i) for i in range(4)]))
    elif suffix == ".gif":
      from PIL import Image

      pages = [Image.fromarray(picture(i)) for i in range(4)]
      pages[0].save(path, save_all=True, append_images=pages[1:], duration=40)
    elif suffix in (".mp4", ".avi"):
      video(path, *(("mjpeg", "yuvj420p") if suffix == ".avi" else ()))
    elif suffix:
      save(path, picture(0))
    else:
      for i in range(3):
        save(path / f"{i:03d}.png", picture(i))

  return make


def _read_mask(folder, _):
  from lus_jax.media import readers as media

  mask = media.read_mask(folder / "m.png")
  if mask.ndim != 2 or not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
    raise Wrong(f"a mask of {mask.shape} with values from {mask.min()} to {mask.max()}")
  return mask


def _make_mask16(folder):
  save(folder / "m.png", (65535 * blob(0)).astype(np.uint16))


def open_folder(name, directory, kind="frames", size=32):
  """Prepares and opens a data set as a run does; returns all of its examples."""
  from configs import seg
  from lus_jax.data import datasets

  config = seg.get_config("tiny").data
  config.name, config.dir, config.image_size = name, str(directory), size
  config.prepared_dir = str(directory.parent / "prepared")
  dataset = datasets.open_dataset(config, kind)
  examples = [
    {"split": split, **dataset.splits[split][i]}
    for split in sorted(dataset.splits)
    for i in range(len(dataset.splits[split]))
  ]
  examples.sort(key=lambda example: (example["video"], example.get("frame", 0)))
  for example in examples:
    _plausible_example(example, len(dataset.classes), size)
  return examples


def _plausible_example(example, n_classes, size):
  pixels = _plausible_frames(example["image"] if "image" in example else example["frames"])
  if pixels.shape[-3:] != (size, size, 1):
    raise Wrong(f"pixels are {pixels.shape}")
  if "confidence" in example and example["confidence"].shape != (size, size, n_classes):
    raise Wrong(f"confidences are {example['confidence'].shape}")
  top, left, bottom, right = example["valid_box"]
  if not (0 <= top < bottom <= size and 0 <= left < right <= size):
    raise Wrong(f"the picture fills {example['valid_box']} of {size} x {size}")
  ratio = example.get("sf_ratio", np.nan)
  if not (np.isnan(ratio) or 0 <= ratio <= 477):
    raise Wrong(f"an S/F ratio of {ratio}")
  if not example["patient"]:
    raise Wrong("a patient without a name")


def make_lus_folder(folder):
  out = folder / "data"
  out.mkdir()
  names = ["a.png", "b.npy", "c.mp4", "d.gif", "e", "f.png"]
  (out / "videos").mkdir()
  for name in names:
    _media(name)(out / "videos")
  splits = ("train", "train", "train", "validation", "test", "train")
  _table(
    out / "manifest.csv",
    [["video", "patient", "day", "view", "sf_ratio", "readmitted_30d", "split"]]
    + [[n, f"p{i}", 1, "L1", 400 + i, i % 2, splits[i]] for i, n in enumerate(names)],
  )
  _table(
    out / "labels.csv",
    [["video", "frame", "annotator", "masks"]]
    + [[n, 0, "x", f"m{i}"] for i, n in enumerate(names)],
  )
  _table(out / "patients.csv", [["patient", "age"]] + [[f"p{i}", 40 + i] for i in range(6)])
  for i in range(6):
    for k, name in enumerate(("pleura", "b_line")):
      save(out / "masks" / f"m{i}" / f"{name}.png", grey(blob(i + k)))
  (out / "dataset.json").write_text(
    json.dumps({"name": "f", "licence": "own", "classes": ["pleura", "b_line"], "thin": ["pleura"]})
  )


_PROVENANCE = """masks video frame annotator time seconds tool protocol
  prelabel prelabelled touched review"""


def make_painted(folder):
  make_lus_folder(folder)
  _table(
    folder / "data" / "provenance.csv",
    [_PROVENANCE.split()]
    + [
      [f"m{i}", name, 0, "x", f"2026-01-0{i + 1}T10:00:00Z", 1.5 * i, "brush 1", "abc", "run: soft"]
      + ["pleura;b_line", "pleura" if i else "b_line;pleura", "yes" if i == 5 else ""]
      for i, name in enumerate(("a.png", "b.npy", "c.mp4", "d.gif", "e", "f.png"))
    ],
  )


def _read_lus_folder(folder, _):
  return [open_folder("lus_folder", folder / "data", kind) for kind in ("frames", "videos")]


def make_raters(folder, *, nifti=False):
  import nibabel

  out = folder / "data"
  for i in range(6):
    pictures = {f"images/c{i}": picture(i)}
    for k, rater in enumerate("ab"):
      pictures[f"raters/{rater}/c{i}"] = (blob(i + k) > 0.3).astype(np.uint8) * (
        1 if nifti else 255
      )
    for name, pixels in pictures.items():
      if nifti:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        values = pixels if "raters" in name else pixels.astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), out / f"{name}.nii.gz")
      else:
        save(out / f"{name}.png", pixels)
  split = ("train", "train", "train", "validation", "test", "train")
  rows = [[f"c{i}", f"p{i}", split[i]] for i in range(6)]
  _table(out / "patients.csv", [["image", "patient", "split"], *rows])
  persons = {"a": "anna", "b": "ben"}
  (out / "dataset.json").write_text(
    json.dumps({"name": "r", "licence": "own", "classes": ["lesion"], "persons": persons})
  )


def make_nifti_raters(folder):
  make_raters(folder, nifti=True)


def _read_raters(folder, _):
  return open_folder("multirater_folder", folder / "data")


def make_covid(folder):
  out = folder / "data"
  names = [f"patient_{i}_{v}" for i, v in ((1, "L1"), (2, "L1"), (3, "R2"), (4, "R1"))]
  for i, name in enumerate(names):
    video(out / "lus_videos" / f"{name}.mp4", seed=i)
  columns = ["patient_id", "cov_test", "oxygen_saturation_without_ox"]
  columns += ["outcome_status_d7", "outcome_status_d30"]
  _table(out / "clinical_variables.csv", [columns] + [[i, 1, 97, 2, 2] for i in range(1, 5)])
  columns = ["video_file", "Severity Score", "A-lines", "B-lines"]
  _table(out / "severity.csv", [columns] + [[name, 1, "yes", "no"] for name in names])


def _read_covid(folder, _):
  return open_folder("covid_blues", folder / "data", "videos")


def import_folder(argv, out, kind="lus_folder"):
  """Runs an importer's command line; returns what it wrote, as a run would read it."""
  import contextlib
  import io

  from lus_jax.errors import UserError
  from tfds_builders.importers import __main__ as importers

  err = io.StringIO()
  before = _around(out)
  with contextlib.redirect_stderr(err):
    code = importers.main([str(word) for word in argv])
  if _around(out) != before:
    raise Wrong(f"wrote {sorted(_around(out) - before)}, outside of its folder")
  if code == 2:
    # Warnings stand above it.
    message = err.getvalue().strip().rpartition("error: ")[2]
    if out.exists():
      raise Wrong(f"exit code 2, but {out.name} was written")
    raise UserError(message)
  if code or not out.is_dir():
    raise Wrong(f"exit code {code}")
  # Pictures are copied as they are, and read by the run that is to use them.
  written = (p for p in sorted(out.rglob("*")) if p.is_file())
  copied = {"images", "videos"}
  return {
    str(path.relative_to(out)): _content(path)
    for path in written
    if not copied & set(path.relative_to(out).parts)
  }


def _around(out):
  """What there is beside a folder that is written, and beside the folder that holds it."""
  inside = {path for path in out.parent.rglob("*") if out not in (path, *path.parents)}
  return inside | set(out.parent.parent.iterdir()) | set(out.parent.parent.parent.iterdir())


def _content(path):
  """Pixels where there are some, as a file may be copied with bytes that nothing reads."""
  if path.suffix == ".png":
    from PIL import Image

    return np.asarray(Image.open(path))
  if path.name.endswith(".nii.gz"):
    import nibabel

    return np.asanyarray(nibabel.load(path).dataobj)
  return path.read_bytes()


def _make_polygons(folder):
  for i in range(1, 4):
    save(folder / "data" / "frames" / f"{i:03d}.png", picture(i))
  square = [[5, 5], [20, 5], [20, 15], [5, 15]]
  content = {f"{i:03d}": [{"class": "b", "polygon_xy": square}] for i in range(1, 4)}
  (folder / "data" / "polygons.json").write_text(json.dumps(content))


def _read_polygons(folder, _):
  data, out = folder / "data", folder / "out"
  argv = ["polygons", "--frames", data / "frames", "--polygons", data / "polygons.json"]
  return import_folder([*argv, "--out", out], out)


def _cvat_shapes():
  """Shapes of every kind, as CVAT's backups hold them."""
  square = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]

  def shape(kind, points, frame, **more):
    own = {"type": kind, "points": points, "frame": frame, "rotation": 0.0, "outside": False}
    return own | {"label": "b", "attributes": [{"name": "confidence", "value": "80"}]} | more

  single = [
    shape("polygon", square, 0),
    shape("rectangle", [3.0, 3.0, 12.0, 9.0], 0, rotation=20.0, label="a"),
    shape("ellipse", [15.0, 10.0, 20.0, 6.0], 1),
    shape("polyline", [3.0, 3.0, 20.0, 9.0], 1, label="a"),
    shape("mask", [3, 6, 3, 5, 6, 8, 8], 2),
    shape("points", [3.0, 3.0], 2),
  ]
  keyframes = [shape("polygon", square, 0), shape("polygon", [*square, 2.0, 9.0], 2)]
  keyframes.append(shape("polygon", square, 3, outside=True))
  return single, [{"frame": 0, "label": "a", "attributes": [], "shapes": keyframes}]


def _make_cvat(folder):
  task = folder / "data" / "task"
  (task / "data").mkdir(parents=True)
  _media("x.npy")(task / "data")
  shapes, tracks = _cvat_shapes()
  job = {"version": 0, "tags": [], "shapes": shapes, "tracks": tracks}
  (task / "annotations.json").write_text(json.dumps([job]))
  data = {"start_frame": 0, "stop_frame": 3, "frame_filter": "step=1", "deleted_frames": []}
  jobs = [{"start_frame": 0, "stop_frame": 3, "type": "annotation"}]
  labels = [{"name": "a", "attributes": []}, {"name": "b", "attributes": []}]
  content = {"name": "x", "version": "1.0", "labels": labels, "data": data, "jobs": jobs}
  (task / "task.json").write_text(json.dumps(content))


def _make_cvat_zip(folder):
  import zipfile

  _make_cvat(folder)
  task = folder / "data" / "task"
  with zipfile.ZipFile(folder / "data" / "task.zip", "w") as archive:
    for name in ("annotations.json", "task.json"):
      archive.write(task / name, name)
    archive.writestr("data/x.npy", b"")


def _make_cvat_xml(folder):
  data = folder / "data" / "task" / "data"
  data.mkdir(parents=True)
  _media("x.npy")(data)
  save(data / "p.png", picture(0))
  limits = "<start_frame>0</start_frame><stop_frame>3</stop_frame><frame_filter></frame_filter>"
  (folder / "data" / "task" / "annotations.xml").write_text(
    '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>1'
    f"</id><name>x</name><mode>interpolation</mode>{limits}<labels><label><name>b_line</name>"
    "</label></labels><original_size><width>32</width><height>24</height></original_size><source>"
    'x.mp4</source></task></meta><image id="0" name="frame_000000" width="32" height="24"><polygon '
    'label="b_line" points="5.00,5.00;20.00,5.00;20.00,15.00" z_order="0"><attribute '
    'name="confidence">0.5</attribute></polygon><mask label="a" rle="3, 6, 3" left="5" top="6" '
    'width="4" height="3"></mask><box label="a" xtl="3.0" ytl="3.0" xbr="9.0" ybr="8.0" '
    'rotation="20.0"/><ellipse label="a" cx="15.0" cy="10.0" rx="5.0" ry="4.0"/><polyline '
    'label="b_line" points="3.0,3.0;20.0,9.0"/></image><track id="0" label="b_line"><polygon '
    'frame="1" outside="0" keyframe="1" points="5.0,5.0;20.0,5.0;20.0,15.0"/><polygon frame="3" '
    'outside="0" keyframe="1" points="6.0,5.0;21.0,5.0;21.0,15.0;7.0,15.0"/></track></annotations>'
  )


def _read_cvat(name):
  def read(folder, _):
    task, out = folder / "data" / "task", folder / "out"
    argv = ["cvat", "--videos", task / "data", "--annotations", folder / "data" / name]
    return import_folder([*argv, "--out", out, "--line-width", "2px"], out)

  return read


def _make_labelme(folder):
  import base64
  import io

  from PIL import Image

  mask = io.BytesIO()
  Image.fromarray(np.ones((4, 5), np.uint8)).save(mask, "PNG")
  shapes = {
    "polygon": [[5.5, 5], [20, 5], [20, 15]],
    "rectangle": [[3, 3], [12, 9]],
    "circle": [[15, 10], [18, 12]],
    "linestrip": [[3, 3], [9, 12], [20, 9]],
    "mask": [[3, 4], [7, 7]],
    "point": [[3, 3]],
  }
  for i in range(2):
    save(folder / "data" / "videos" / f"{i}.png", picture(i))
    content = {"version": "5.5.0", "flags": {}, "imagePath": f"{i}.png", "imageData": None}
    content |= {"imageHeight": 24, "imageWidth": 32}
    content["shapes"] = [
      {"label": "ab"[k % 2], "points": points, "shape_type": kind, "flags": {}, "group_id": None}
      | ({"mask": base64.b64encode(mask.getvalue()).decode()} if kind == "mask" else {})
      for k, (kind, points) in enumerate(shapes.items())
    ]
    (folder / "data" / "json").mkdir(exist_ok=True)
    (folder / "data" / "json" / f"{i}.json").write_text(json.dumps(content))


def _make_via(folder):
  shapes = [
    {"name": "polygon", "all_points_x": [5, 20, 20], "all_points_y": [5, 5, 15]},
    {"name": "rect", "x": 3, "y": 3, "width": 9, "height": 6},
    {"name": "circle", "cx": 15, "cy": 10, "r": 4.5},
    {"name": "ellipse", "cx": 15, "cy": 10, "rx": 5, "ry": 3, "theta": 0.5},
    {"name": "polyline", "all_points_x": [3, 20], "all_points_y": [3, 9]},
    {"name": "point", "cx": 3, "cy": 3},
  ]
  images, rows = {}, []
  for i in range(2):
    save(folder / "data" / "videos" / f"{i}.png", picture(i))
    regions = [
      {"shape_attributes": shape, "region_attributes": {"class": "ab"[k % 2]}}
      for k, shape in enumerate(shapes)
    ]
    images[f"{i}.png99"] = {"filename": f"{i}.png", "size": 99, "regions": regions}
    rows += [
      [f"{i}.png", 99, "{}", len(regions), k, *map(json.dumps, region.values())]
      for k, region in enumerate(regions)
    ]
  (folder / "data" / "via.json").write_text(json.dumps({"_via_img_metadata": images}))
  header = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
  header += ["region_shape_attributes", "region_attributes"]
  _table(folder / "data" / "via.csv", [header, *rows])


def _make_slicer(folder):
  (folder / "data" / "videos").mkdir(parents=True)
  _media("x.npy")(folder / "data" / "videos")

  def line(*points):
    return {"rater": "anna", "line": {"points": [[*point, 0.0] for point in points]}}

  frames = [
    {
      "frame_number": i,
      "coordinate_space": "LPS",
      "pleura_lines": [line((3.0, 4.0), (12.0, 4.5))],
      "b_lines": [line((6.0, 8.0), (9.0, 8.5))],
    }
    for i in range(2)
  ]
  content = {"SOPInstanceUID": "1.2", "mask_type": "fan", "center_rows_px": -5, "radius1": 10}
  content |= {"center_cols_px": 16, "radius2": 28, "image_size_rows": 24, "image_size_cols": 32}
  content |= {"frame_annotations": frames, "labels": []}
  (folder / "data" / "json").mkdir()
  (folder / "data" / "json" / "x.anna.json").write_text(json.dumps(content))


def _read_drawn(tool, name, *more):
  def read(folder, _):
    data, out = folder / "data", folder / "out"
    argv = [tool, "--videos", data / "videos", "--annotations", data / name, *more]
    return import_folder([*argv, "--out", out], out)

  return read


def _make_palette(folder):
  from PIL import Image

  for i in range(3):
    save(folder / "data" / "images" / f"f{i}.png", picture(i))
    indices = Image.fromarray((blob(i) > 0.3).astype(np.uint8) + (blob(i) > 0.8)).convert("P")
    (folder / "data" / "masks").mkdir(exist_ok=True)
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indices.save(folder / "data" / "masks" / f"f{i}.png")


def _read_palette(folder, _):
  data, out = folder / "data", folder / "out"
  argv = ["palette", "--images", data / "images", "--masks", data / "masks", "--classes", "a,b"]
  return import_folder([*argv, "--out", out], out)


def _make_coco(folder):
  from pycocotools import mask as coco

  def entry(i, name):
    return {"id": i, "file_name": f"{name}.png", "width": 32, "height": 24}

  for i in range(2):
    save(folder / "data" / "videos" / f"{i}.png", picture(i))
  drawn = np.asfortranarray((blob(0) > 0.3).astype(np.uint8))
  counts = coco.encode(drawn)["counts"].decode()
  flat = np.concatenate([[0], drawn.ravel(order="F")])
  runs = np.diff([0, *np.flatnonzero(np.diff(flat)), drawn.size]).tolist()
  found = [
    {"segmentation": [[5.5, 5, 20, 5, 20, 15], [1, 1, 5, 1, 5, 5.5]]},
    {"segmentation": {"size": [24, 32], "counts": counts}, "iscrowd": 1},
    {"segmentation": {"size": [24, 32], "counts": runs}},
    {"segmentation": [], "bbox": [3, 4, 10, 5.5]},
  ]
  content = {
    "images": [entry(1, "0"), entry(2, "1")],
    "annotations": [
      {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i // 2, "annotator": f"a{i % 2}"} | one
      for i, one in enumerate(found)
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "supercategory": "c"}],
  }
  (folder / "data" / "coco.json").write_text(json.dumps(content))


def _make_label_studio(folder):
  for i in range(2):
    save(folder / "data" / "videos" / f"{i}.png", picture(i))
  # 3072 bytes in runs of one value: 8 times 384 of them, by the second of four widths.
  bits = f"{3072:032b}" + "00111" + "0010" + "1000" + "0111" + "1111"
  bits += "".join(f"101{383:09b}{255 * (i % 2):08b}" for i in range(8))
  bits += "0" * (-len(bits) % 8)
  rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
  values = {
    "brushlabels": {"format": "rle", "rle": rle},
    "polygonlabels": {"points": [[10, 10], [60, 10.5], [60, 50]]},
    "rectanglelabels": {"x": 10, "y": 20, "width": 30, "height": 20, "rotation": 15},
    "ellipselabels": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 15, "rotation": 30},
    "keypointlabels": {"x": 50, "y": 50, "width": 1},
  }
  size = {"original_width": 32, "original_height": 24, "image_rotation": 0}
  results = [
    {"id": f"r{k}", "type": kind, "value": value | {kind: ["ab"[k % 2]]}, **size}
    for k, (kind, value) in enumerate(values.items())
  ]
  tasks = [
    {
      "id": i,
      "data": {"image": f"/data/upload/1/0a1b2c3d-{i}.png"},
      "annotations": [
        {"completed_by": who, "was_cancelled": False, "result": results[who:]} for who in range(2)
      ],
    }
    for i in range(2)
  ]
  (folder / "data" / "tasks.json").write_text(json.dumps(tasks))


def _stroke(seed):
  layer = np.zeros((16, 20, 4), np.uint8)
  layer[3:-3, 3:-3, 3] = 100 + 30 * seed
  return layer


def _make_openraster(folder):
  import io
  import zipfile

  from PIL import Image

  (folder / "data" / "in").mkdir(parents=True)
  with zipfile.ZipFile(folder / "data" / "in" / "f.ora", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("mimetype", "image/openraster")
    archive.writestr(
      "stack.xml",
      '<?xml version="1.0" encoding="UTF-8"?>\n<image w="32" h="24" version="0.0.5"><stack><stack '
      'name="a" opacity="0.9"><layer name="x" src="data/2.png" x="3" y="2" opacity="0.7"/></stack>'
      '<layer name="b copy" src="data/1.png" x="-2" y="4" visibility="visible" '
      'composite-op="svg:src-over"/><layer name="Background" src="data/0.png" x="0" y="0"/></stack>'
      "</image>",
    )
    for i in range(3):
      file = io.BytesIO()
      Image.fromarray(_stroke(i) if i else picture(0)).save(file, "PNG")
      archive.writestr(f"data/{i}.png", file.getvalue())


def _make_photoshop(folder):
  from PIL import Image
  from psd_tools import PSDImage

  (folder / "data" / "in").mkdir(parents=True)
  psd = PSDImage.new("RGBA", (32, 24))
  psd.create_pixel_layer(Image.fromarray(picture(0)).convert("RGB"), name="Background")
  psd.create_pixel_layer(Image.fromarray(_stroke(1)), name="b", top=4, left=-2, opacity=200)
  inner = psd.create_pixel_layer(Image.fromarray(_stroke(2)), name="x", top=2, left=3)
  inner.create_mask(Image.fromarray(np.full((16, 20), 200, np.uint8)))
  psd.create_group([inner], name="a")
  psd.save(folder / "data" / "in" / "f.psd")


def _make_pages(folder):
  from PIL import Image

  (folder / "data" / "in").mkdir(parents=True)
  pages = [Image.fromarray(picture(0))]
  pages += [Image.fromarray(grey(blob(i))) for i in range(2)]
  pages[0].save(folder / "data" / "in" / "f.tif", save_all=True, append_images=pages[1:])


def _read_layers(folder, _):
  data, out = folder / "data", folder / "out"
  argv = ["layers", "--annotations", data / "in", "--classes", "a,b", "--out", out]
  return import_folder(argv, out)


def _make_masks(folder):
  import nibabel

  masks = folder / "data" / "masks"
  for name in "xyz":
    save(folder / "data" / "videos" / f"{name}.png", picture(0))
  np.save(folder / "data" / "videos" / "film.npy", np.stack([picture(i) for i in range(4)]))
  np.save(folder / "data" / "videos" / "kino.npy", np.stack([picture(i) for i in range(4)]))
  save(masks / "a" / "x.png", grey(blob(0)))
  save(masks / "b_inner" / "x.png", grey(blob(0) > 0.9))
  save(masks / "b_outer" / "x.png", grey(blob(0) > 0.1))
  soft = np.stack([blob(i) for i in range(4)])
  np.save(masks / "y.npy", np.stack([blob(1), blob(2)], axis=-1))
  np.savez_compressed(masks / "film.npz", a=soft, b=grey(soft))
  labels = (soft > 0.3).astype(np.uint8) + (soft > 0.8)
  nibabel.save(nibabel.Nifti1Image(labels.T, np.eye(4)), masks / "kino.nii.gz")


def _make_colours(folder):
  for i in range(2):
    save(folder / "data" / "videos" / f"f{i}.png", picture(i))
    indices = (blob(i) > 0.3).astype(np.uint8) + (blob(i) > 0.8)
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    save(folder / "data" / "masks" / f"f{i}.png", colours[indices])


def _make_rater_folders(folder):
  for i in range(3):
    save(folder / "data" / "images" / f"c{i}.png", picture(i))
    for k, rater in enumerate("ab"):
      save(folder / "data" / "raters" / rater / f"c{i}.png", grey(blob(i + k) > 0.3))


def _read_rater_folders(folder, _):
  data, out = folder / "data", folder / "out"
  argv = ["folders", "--images", data / "images", "--raters", data / "raters", "--class-name", "x"]
  return import_folder([*argv, "--out", out], out)


def _make_qubiq(folder):
  import nibabel

  for i in range(3):
    case = folder / "data" / f"case{i:02d}"
    case.mkdir(parents=True)
    nibabel.save(
      nibabel.Nifti1Image(picture(i).T.astype(np.float64), np.eye(4)), case / "image.nii.gz"
    )
    for r in (1, 2):
      mask = (blob(i + r) > 0.3).astype(np.uint8).T
      nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), case / f"task01_seg0{r}.nii.gz")


def _read_qubiq(folder, _):
  out = folder / "out"
  argv = ["qubiq", "--cases", folder / "data", "--task", "task01", "--class-name", "x"]
  return import_folder([*argv, "--out", out], out)


def _tensors():
  rng = np.random.default_rng(0)
  shapes = {"conv1.weight": (4, 3, 7, 7), "bn1.weight": (4,), "bn1.running_var": (4,)}
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _make_safetensors(folder):
  import safetensors.numpy

  safetensors.numpy.save_file(_tensors(), folder / "w.safetensors")


def _make_pth(folder):
  import torch

  torch.save({name: torch.from_numpy(x) for name, x in _tensors().items()}, folder / "w.pth")


def _read_weights(name):
  def read(folder, _):
    from lus_jax.models import torch_weights

    return torch_weights.read(folder / name)

  return read


def _make_nothing(folder):
  del folder


def _read_report(folder, _):
  from lus_jax import report

  page = report.build(folder / "run")
  text = pathlib.Path(page).read_text()
  if "</html>" not in text:
    raise Wrong("the page has no end")
  return text


def _read_prediction(folder, reference):
  from lus_jax import predict

  source, out = folder / "data" / "x.png", folder / "out"
  content = predict.run(workdir=reference, source=source, out=out)
  found = {p.name: p.read_bytes() for p in sorted(out.rglob("*.png"))}
  if not found or not content["complete"]:
    raise Wrong("nothing was predicted")
  return found


def _in_data(make):
  def inside(folder):
    (folder / "data").mkdir()
    make(folder / "data")

  return inside


def _clip(name):
  return lambda folder: seeds.make_clip(folder / name)


def _dicom(kind):
  return lambda folder: seeds.make_dicom(folder / "IM0001", kind)


_CODECS = {".mov": ("mpeg4",), ".mkv": (), ".wmv": ("wmv2",)}


def _video(name):
  return lambda folder: video(folder / name, *_CODECS[pathlib.Path(name).suffix])


_LUS_FILES = ("*.json", "*.csv", "videos/*", "masks/*/*")
READERS = {
  **{
    name: Reader(
      _media(f"x{suffix}"), _read_media(f"x{suffix}"), (f"x{suffix}",), weight, folder=False
    )
    for name, suffix, weight in (
      *(("png", ".png", 90), ("jpg", ".jpg", 60), ("tif", ".tif", 70), ("gif", ".gif", 90)),
      *(("npy", ".npy", 90), ("mp4", ".mp4", 110), ("avi", ".avi", 90)),
    )
  },
  **{
    f"dicom-{kind}": Reader(_dicom(kind), _read_media("IM0001"), ("IM0001",), weight, folder=False)
    for kind, weight in (
      *(("plain", 60), ("grey16", 40), ("deflated", 40), ("jpeg", 60), ("lossless", 40)),
      *(("ls", 40), ("2000", 40), ("rle", 40)),
    )
  },
  **{
    name: Reader(_clip(name), _read_media(name), ("x.*",), 50, folder=False)
    for name in ("x.nii", "x.nii.gz", "x.nrrd", "x.mha", "x.mhd", "x.tiff")
  },
  **{
    name: Reader(_video(name), _read_media(name), (name,), 40, folder=False)
    for name in ("x.mov", "x.mkv", "x.wmv")
  },
  "pngs": Reader(
    *(_media("x"), _read_media("x"), ("x/*",), 40),
    # Nothing says how many there were.
    optional=("000.png", "001.png", "002.png"),
    folder=False,
  ),
  "mask": Reader(
    lambda folder: save(folder / "m.png", grey(blob(0))),
    _read_mask,
    ("m.png",),
    60,
    folder=False,
  ),
  "mask16": Reader(_make_mask16, _read_mask, ("m.png",), 40, folder=False),
  "dataset.json": Reader(make_lus_folder, _read_lus_folder, ("data/dataset.json",), 130),
  "manifest.csv": Reader(make_lus_folder, _read_lus_folder, ("data/manifest.csv",), 130),
  "labels.csv": Reader(make_lus_folder, _read_lus_folder, ("data/labels.csv",), 110),
  "patients.csv": Reader(
    make_lus_folder, _read_lus_folder, ("data/patients.csv",), 40, optional=("patients.csv",)
  ),
  "provenance.csv": Reader(
    make_painted, _read_lus_folder, ("data/provenance.csv",), 60, optional=("provenance.csv",)
  ),
  "folder": Reader(
    *(make_lus_folder, _read_lus_folder, ("data/videos/**/*.*", "data/masks/*/*"), 110),
    # Of numbered frames any may be missing: labels count those that are there.
    optional=("pleura.png", "b_line.png", "000.png", "001.png", "002.png"),
  ),
  "raters.json": Reader(make_raters, _read_raters, ("data/dataset.json",), 80),
  "raters.csv": Reader(
    make_raters, _read_raters, ("data/patients.csv",), 60, optional=("patients.csv",)
  ),
  "raters": Reader(
    *(make_raters, _read_raters, ("data/images/*", "data/raters/*/*"), 60),
    optional=tuple(f"c{i}.png" for i in range(6)),
  ),
  "nifti": Reader(
    *(make_nifti_raters, _read_raters, ("data/images/*", "data/raters/*/*"), 130),
    optional=tuple(f"c{i}.nii.gz" for i in range(6)),
  ),
  "covid_blues": Reader(
    make_covid, _read_covid, ("data/*.csv", "data/lus_videos/*"), 110, optional=(".mp4",)
  ),
  "polygons": Reader(_make_polygons, _read_polygons, ("data/polygons.json",), 100, folder=False),
  "cvat": Reader(_make_cvat, _read_cvat("task"), ("data/task/*.json",), 60, folder=False),
  "cvat.zip": Reader(_make_cvat_zip, _read_cvat("task.zip"), ("data/*.zip",), 50, folder=False),
  "cvat.xml": Reader(
    _make_cvat_xml, _read_cvat("task/annotations.xml"), ("data/task/*.xml",), 60, folder=False
  ),
  "labelme": Reader(
    *(_make_labelme, _read_drawn("labelme", "json"), ("data/json/*.json",), 60),
    optional=("0.json", "1.json"),
    folder=False,
  ),
  "via": Reader(_make_via, _read_drawn("via", "via.json"), ("data/via.json",), 50, folder=False),
  "via.csv": Reader(_make_via, _read_drawn("via", "via.csv"), ("data/via.csv",), 40, folder=False),
  "slicer": Reader(
    *(_make_slicer, _read_drawn("slicer", "json", "--spacing=0.5"), ("data/json/*",), 50),
    folder=False,
  ),
  "palette": Reader(_make_palette, _read_palette, ("data/*/*",), 50, folder=False),
  "coco": Reader(
    _make_coco, _read_drawn("coco", "coco.json", "--boxes"), ("data/*.json",), 60, folder=False
  ),
  "label_studio": Reader(
    *(_make_label_studio, _read_drawn("label_studio", "tasks.json"), ("data/*.json",), 60),
    folder=False,
  ),
  "openraster": Reader(_make_openraster, _read_layers, ("data/in/*",), 60, folder=False),
  "photoshop": Reader(_make_photoshop, _read_layers, ("data/in/*",), 60, folder=False),
  "pages": Reader(_make_pages, _read_layers, ("data/in/*",), 50, folder=False),
  "masks": Reader(
    *(_make_masks, _read_drawn("masks", "masks", "--classes", "a,b"), ("data/masks/**/*",), 70),
    optional=("x.png", "y.npy", "film.npz", "kino.nii.gz"),
    folder=False,
  ),
  "colours": Reader(
    _make_colours,
    _read_drawn("masks", "masks", "--colours", "a=#ff0000,b=0,255,0"),
    ("data/masks/*",),
    40,
    optional=("f0.png", "f1.png"),
    folder=False,
  ),
  "folders": Reader(
    *(_make_rater_folders, _read_rater_folders, ("data/images/*", "data/raters/*/*"), 50),
    optional=tuple(f"c{i}.png" for i in range(3)),
    folder=False,
  ),
  "qubiq": Reader(
    *(_make_qubiq, _read_qubiq, ("data/*/*",), 50),
    optional=("image.nii.gz", "task01_seg01.nii.gz", "task01_seg02.nii.gz"),
    folder=False,
  ),
  "safetensors": Reader(
    _make_safetensors, _read_weights("w.safetensors"), ("w.safetensors",), 60, folder=False
  ),
  "pth": Reader(_make_pth, _read_weights("w.pth"), ("w.pth",), 60, folder=False),
  "results": Reader(_make_nothing, _read_report, ("run/results/*",), 90, folder=False),
  "predict": Reader(_in_data(_media("x.png")), _read_prediction, ("data/x.png",), 20, folder=False),
}


def plan():
  """The reader of every case, in an order that any part of the list shares fairly."""
  total = sum(reader.weight for reader in READERS.values())
  names, debt = [], dict.fromkeys(READERS, 0.0)
  for _ in range(CASES):
    for name, reader in READERS.items():
      debt[name] += reader.weight / total
    names.append(max(debt, key=debt.get))
    debt[names[-1]] -= 1
  return names


def _mutators(path, reader):
  """The ways to break this file, the specific ones twice as often."""
  name = path.name
  specific = []
  if name.endswith(".png"):
    specific = [mutate.png_inside] * 6
  elif name.endswith(".nii.gz"):
    specific = [mutate.gzip_inside] * 12
  elif name.endswith(".json"):
    specific = [mutate.json_tree] * 24
  elif name.endswith(".csv"):
    specific = [mutate.csv_cell] * 24
  elif name.endswith(".xml"):
    specific = [mutate.xml_value] * 24
  elif name.endswith(".zip"):
    specific = [mutate.zip_inside] * 6 + [mutate.zip_bomb]
  elif name.endswith(".ora"):
    specific = [mutate.zip_inside] * 12 + [mutate.zip_bomb]
  elif name.endswith((".npz", ".pth")):
    specific = [mutate.zip_inside] * 6
  elif name.endswith(".npy"):
    specific = [mutate.npy_header] * 6
  elif name == "IM0001":
    deflated = b"1.2.840.10008.1.2.1.99" in path.read_bytes()[:400]
    specific = [mutate.deflated_inside if deflated else mutate.dicom_element] * 24
  elif name.endswith((".nrrd", ".mha", ".mhd")):
    specific = [mutate.header_number] * 16
  elif name.endswith(".safetensors"):
    specific = [mutate.safetensors_header] * 8
  special = [m for m in mutate.SPECIAL if reader.folder or m is not mutate.link_out]
  return [*mutate.BYTES, *mutate.BYTES, *special, *specific]


# Formats with a checksum over all that counts: another value from a broken one is a silent change.
_CHECKED = (".png", ".nii.gz", ".npz")


def _must_be_equal(path, mutator):
  if mutator is mutate.truncate:
    return not path.name.endswith(".csv")
  outside = (mutate.flip, mutate.zero, mutate.cut, mutate.duplicate, mutate.swap, mutate.word)
  return mutator in outside and path.name.endswith(_CHECKED)


def _sound(name, work, reference):
  """A reader's sound files, made once a process, and the digest of their value."""
  folder = work / "sound" / name
  if name not in _DIGESTS:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader = READERS[name]
    reader.make(folder)
    if name == "results":
      shutil.copytree(reference / "results", folder / "run" / "results")
      shutil.copyfile(reference / "run.json", folder / "run" / "run.json")
    copy = work / "cases" / "sound"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    _DIGESTS[name] = digest(reader.read(copy, reference))
    shutil.rmtree(copy)
  return folder, _DIGESTS[name]


_DIGESTS = {}


def warm(name, work, reference):
  """Makes and reads a reader's sound files; what is imported and compiled then is no hang later."""
  _sound(name, pathlib.Path(work), pathlib.Path(reference))


@contextlib.contextmanager
def _broken(name, number, seed, work):
  """Yields a copy of the sound files, which one was broken, how, and whether that changed it."""
  work = pathlib.Path(work)
  reader = READERS[name]
  folder = work / "cases" / str(number)
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(work / "sound" / name, folder)
  rng = np.random.default_rng([seed, number])
  files = sorted(p for pattern in reader.files for p in folder.glob(pattern) if p.is_file())
  path = files[int(rng.integers(len(files)))]
  mutators = _mutators(path, reader)
  mutator = mutators[int(rng.integers(len(mutators)))]
  if mutator in mutate.SPECIAL:
    mutator(rng, path, folder / "outside")
    changed = True
  else:
    data = path.read_bytes()
    broken = mutator(rng, data)
    path.write_bytes(broken)
    changed = broken != data
  try:
    yield folder, path, mutator, changed
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _bounded(read, *arguments):
  """Calls a function; what takes too much memory or time is a fault, however it ends."""
  memory, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
  try:
    return read(*arguments)
  finally:
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20
    took = time.process_time() - since
    if more > MOST_MEMORY or took > MOST_TIME:
      raise Wrong(f"took {more:.1f} GiB more and {took:.0f} s")


def describe(name, number, seed, work, reference):
  """What a case does, without reading it."""
  with _broken(name, number, seed, work) as (folder, path, mutator, _):
    return f"{path.relative_to(folder)}, {mutator.__name__}"


def case(name, number, seed, work, reference):
  """Breaks one file of a reader and reads it; returns the file if it must have been named."""
  reader = READERS[name]
  with _broken(name, number, seed, work) as (folder, path, mutator, changed):
    same = digest(_bounded(reader.read, folder, pathlib.Path(reference))) == _DIGESTS[name]
    if mutator is mutate.link_out:
      raise Wrong("a link that leads out of the folder was followed")
    if name == "results":
      # The page differs by its paths; what it lacks must be said.
      return path.name if mutator is mutate.truncate else None
    if same or not changed:
      return None
    if mutator in mutate.SPECIAL and not path.name.endswith(reader.optional or ("?",)):
      raise Wrong("read as if it were a file of its own")
    if mutator not in mutate.SPECIAL and _must_be_equal(path, mutator):
      raise Wrong("another value, without a word")
    return None


def warm_data():
  """Imports what data sets need."""
  import tensorflow_datasets  # noqa: F401

  import tfds_builders.covid_blues
  import tfds_builders.lus_folder
  import tfds_builders.multirater_folder  # noqa: F401


def _needs_run(name):
  return name in ("results", "predict")


def _case(number, name, worker, bench, work):
  where = {"work": str(work), "reference": str(bench.reference()) if _needs_run(name) else "-"}
  if name not in worker.warmed:
    worker.warmed[name] = worker.call("tests.faults.fuzz:warm", 180, name=name, **where)
  sound = worker.warmed[name]
  if sound["outcome"] != "value":
    outcome = "skipped" if "named 'torch'" in sound["text"] else "wrong"
    return Case(
      "fuzz",
      f"{number} ({name})",
      outcome,
      "the sound file: " + sound["text"].replace(str(work), ""),
    )
  what = {"name": name, "number": number, "seed": bench.seed, **where}
  answer = worker.call("tests.faults.fuzz:case", PATIENCE, **what)
  outcome, text = answer["outcome"], answer["text"]
  if outcome == "value" and answer["value"] and answer["value"] not in text:
    outcome, text = "silent", "no word of it in the log, exit code 0"
  if outcome in ("value", "refused"):
    return Case("fuzz", f"{number} ({name})", "ok", text)
  done = worker.call("tests.faults.fuzz:describe", PATIENCE, **what)["value"]
  return Case("fuzz", f"{number} ({name}: {done})", outcome, text)


def run(bench):
  """All cases; yields a `Case` each."""
  names = [bench.reader] * CASES_OF_ONE if bench.reader else plan()
  if any(map(_needs_run, names)):
    bench.reference()  # before the workers ask for it
  every = range(0, len(names), 10 if bench.quick else 1)
  numbers = [bench.case] if bench.case is not None else every
  folders = {}

  def one(number, worker):
    # Sound files of its own for every worker: another one may be making them just now.
    work = folders.setdefault(id(worker), bench.work / f"fuzz{len(folders)}")
    return _case(number, names[number], worker, bench, work)

  yield from bench.workers(one, numbers)
