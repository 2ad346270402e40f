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
  with contextlib.redirect_stderr(err):
    code = importers.main([str(word) for word in argv])
  if code == 2:
    message = err.getvalue().strip()
    if out.exists():
      raise Wrong(f"exit code 2, but {out.name} was written")
    raise UserError(message.removeprefix("error: "))
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
  "pngs": Reader(_media("x"), _read_media("x"), ("x/*",), 40, folder=False),
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
  "palette": Reader(_make_palette, _read_palette, ("data/*/*",), 50, folder=False),
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
