"""Files replaced by others of the same size and time: the new data, never the old results."""

import gzip
import os
import pathlib
import shutil
import struct

import numpy as np

from tests.faults import fuzz
from tests.faults.common import PATIENCE, Case, Wrong, digest


def _pad(data, size):
  """Makes an mp4 longer by a box that players skip."""
  lack = size - len(data)
  return data + (struct.pack(">I4s", lack, b"free") + bytes(lack - 8) if lack else b"")


def _pngs(path):
  """Two stored PNGs of one size."""
  for pixels in (fuzz.picture(0), 255 - fuzz.picture(0)):
    fuzz.save(path, pixels, compress_level=0)
    yield path.read_bytes()


def _masks(path):
  for shift in (0, 6):
    mask = np.roll(fuzz.blob(0) > 0.3, shift, axis=1)
    fuzz.save(path, fuzz.grey(mask), compress_level=0)
    yield path.read_bytes()


def _npys(path):
  for pixels in (fuzz.picture(0), 255 - fuzz.picture(0)):
    np.save(path, np.stack([pixels] * 4))
    yield path.read_bytes()


def _niftis(path):
  import nibabel

  for shift in (0, 6):
    mask = np.roll(fuzz.blob(0) > 0.3, shift, axis=1).astype(np.uint8)
    image = nibabel.Nifti1Image(mask.T, np.eye(4))
    yield gzip.compress(image.to_bytes(), 0, mtime=0)


def _videos(path):
  found = []
  for seed in (0, 7):
    fuzz.video(path, seed=seed)
    found.append(path.read_bytes())
  size = max(map(len, found)) + 64
  return [_pad(data, size) for data in found]


CASES = {
  "clip of a lus_folder": (fuzz.make_lus_folder, "lus_folder", "videos/b.npy", _npys),
  "picture of a lus_folder": (fuzz.make_lus_folder, "lus_folder", "videos/a.png", _pngs),
  "frame of a lus_folder": (fuzz.make_lus_folder, "lus_folder", "videos/e/000.png", _pngs),
  "video of a lus_folder": (fuzz.make_lus_folder, "lus_folder", "videos/c.mp4", _videos),
  "mask of a lus_folder": (fuzz.make_lus_folder, "lus_folder", "masks/m1/pleura.png", _masks),
  "image of raters": (fuzz.make_raters, "multirater_folder", "images/c0.png", _pngs),
  "mask of raters": (fuzz.make_raters, "multirater_folder", "raters/a/c0.png", _masks),
  "NIfTI mask of raters": (
    *(fuzz.make_nifti_raters, "multirater_folder", "raters/a/c0.nii.gz", _niftis),
  ),
  "video of COVID-BLUES": (
    *(fuzz.make_covid, "covid_blues", "lus_videos/patient_1_L1.mp4", _videos),
  ),
}


def change(name, work):
  """Opens a data set, replaces one file, opens it again; the second must be what is there then."""
  make, builder, file, contents = CASES[name]
  folder = pathlib.Path(work)
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  make(folder)
  path = folder / "data" / file
  before, after = contents(path)
  if len(before) != len(after) or before == after:
    raise AssertionError("the two contents are not of one size")
  kind = "videos" if builder == "covid_blues" else "frames"
  path.write_bytes(before)
  stat = path.stat()
  first = digest(fuzz.open_folder(builder, folder / "data", kind))
  path.write_bytes(after)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  second = digest(fuzz.open_folder(builder, folder / "data", kind))
  shutil.rmtree(folder / "prepared")
  fresh = digest(fuzz.open_folder(builder, folder / "data", kind))
  if first == fresh:
    raise AssertionError("the change does not show")
  if second != fresh:
    raise Wrong("the old data")


def run(bench):
  """One file of every kind of data."""

  def one(name, worker):
    if "ready" not in worker.warmed:
      worker.warmed["ready"] = True
      worker.call("tests.faults.fuzz:warm_data", 120)
    work = str(bench.work / "changed" / name.replace(" ", "_"))
    answer = worker.call("tests.faults.changed:change", 2 * PATIENCE, name=name, work=work)
    outcome = "ok" if answer["outcome"] in ("value", "refused") else answer["outcome"]
    return Case("changed", name, outcome, answer["text"])

  yield from bench.workers(one, CASES)
