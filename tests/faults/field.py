"""The odd files of the field: every case of ../shared/cases gives the right value, or says why not.

Each check reads what the case's make.py wrote, as a user would, and raises `Wrong` unless the value
is right. It may return a regular expression instead, which the log must contain (a warning); a
refusal of one line is right where `REFUSABLE` says so.
"""

import os
import pathlib
import re
import runpy
import sys
import time
from unicodedata import normalize

import numpy as np

from tests.faults.common import PATIENCE, ROOT, SHARED, Case, Wrong
from tests.faults.fuzz import import_folder, open_folder


def _expect(right, message):
  if not right:
    raise Wrong(message)


def _frame(i):
  from common import frame  # of the cases

  return frame(64, 64, i)


def _examples(directory, name="lus_folder", kind="frames", size=64):
  return open_folder(name, directory, kind, size)


def _by_video(directory, **kwargs):
  return {example["video"].decode(): example for example in _examples(directory, **kwargs)}


def _read(path):
  from lus_jax.media import readers as media

  return media.read(media.probe(path))


def _meets(example, least=40):
  """Whether label and picture meet: what is painted is brighter than what is not."""
  image, painted = example["image"][..., 0].astype(float), example["confidence"][..., 0] > 128
  top, left, bottom, right = example["valid_box"]
  inside = np.zeros_like(painted)
  inside[top:bottom, left:right] = True
  _expect(painted.any(), "nothing is painted")
  contrast = image[painted].mean() - image[inside & ~painted].mean()
  _expect(contrast > least, f"painted pixels are {contrast:.0f} brighter only")


def rotated_90(out):
  for name, shape, size in (("square", (96, 96), 96), ("oblong", (128, 96), 128)):
    from lus_jax.media import readers as media

    header = media.probe(out / name / "videos" / "v0.mp4")
    _expect((header.height, header.width) == shape, f"{name}: {header.height} x {header.width}")
    for example in _examples(out / name, size=size):
      _meets(example)


def nifti_soft_int16(out):
  for i, example in enumerate(_examples(out, "multirater_folder")):
    truth = np.rint(255 * _frame(i)[1])
    worst = np.abs(example["raters"][0, ..., 0] - truth).max()
    _expect(worst <= 1, f"off by {worst:.0f} of 255, largest {example['raters'].max()}")
  return r"255"


def _areas(folder):
  from PIL import Image

  for rater in "ab":
    for i in range(6):
      path = folder / "raters" / rater / f"c{i}.png"
      _expect(path.exists(), f"{rater}/c{i} was dropped without a word")
      area = int((np.asarray(Image.open(path)) > 127).sum())
      expected = int((_frame(i)[1] > 0.3).sum())
      _expect(abs(area - expected) <= 2, f"{rater}/c{i}: area {area} for {expected}")


def _import_folders(out, *more):
  new = out.parent / "imported"
  argv = ["folders", "--images", out / "images", "--raters", out / "raters", "--class-name", "x"]
  import_folder([*argv, "--out", new, *more], new)
  return new


def raters_0_1(out):
  _areas(_import_folders(out))


def raters_0_1_as_they_are(out):
  for i, example in enumerate(_examples(out, "multirater_folder")):
    area = int((example["raters"][0, ..., 0] > 127).sum())
    expected = int((_frame(i)[1] > 0.3).sum())
    if area != expected:
      return rf"c{i}\.png"
  return None


def rater_masks_jpg(out):
  _areas(_import_folders(out))


def rater_masks_jpg_as_they_are(out):
  for example in _examples(out, "multirater_folder"):
    _expect(example["drawn"].all(), "a mask was dropped without a word")


def jpeg_noise(out, name):
  for i, example in enumerate(_examples(out / name)):
    expected = int((_frame(i)[1] > 0.3).sum())
    mask = example["confidence"][..., 0]
    areas = int((mask > 0).sum()), int((mask == 255).sum())
    # Snapped, an edge pixel may fall to either side.
    if not all(abs(area - expected) <= 0.1 * expected for area in areas):
      return r"(?i)jpe?g"
  return None


def jpeg_noise_named(out):
  return jpeg_noise(out, "named")


def jpeg_noise_converted(out):
  return jpeg_noise(out, "converted")


def huge_png(out):
  _examples(out)


def patient_ids(out):
  _examples(out)
  return r"007.*\b7\b|\b7\b.*007"


def unicode_class(out):
  for example in _examples(out / "class"):
    _expect(example["confidence"].any(), "the masks are not found")


def unicode_clip(out):
  _expect(len(_examples(out / "clip")) == 6, "a clip is missing")


def unicode_patient(out):
  patients = {example["patient"] for example in _examples(out / "patient")}
  _expect(len(patients) == 5, f"{len(patients)} patients for 5")
  _expect(normalize("NFC", "Zoë").encode() in patients, "another spelling is stored")


def gif_long(out):
  path = out / "videos" / "long.gif"
  since = time.monotonic()
  frames = _read(path)
  took = time.monotonic() - since
  _expect(len(frames) == 200, f"{len(frames)} frames for 200")
  _expect(took < 6, f"{took:.0f} s for 200 frames")


def exif_png(out):
  for i, example in enumerate(_examples(out)):
    _expect((example["image"][..., 0] == _frame(i)[0]).all(), "not turned")


def frames_from_1(out):
  examples = _examples(out)
  image, painted = examples[0]["image"][..., 0], examples[0]["confidence"][..., 0] > 0
  return None if image[painted].mean() > 190 else r"00[45]\.png"


def _polygons(out, name):
  new = out / f"{name}_imported"
  argv = ["polygons", "--frames", out / "clip", "--polygons", out / f"{name}.json", "--out", new]
  return import_folder(argv, new)


def polygons_shares(out):
  area = int((_polygons(out, "shares")["masks/003/b.png"] > 0).sum())
  _expect(100 <= area <= 121, f"area {area} for 121")


def _must_be_refused(out, name):
  _polygons(out, name)
  raise Wrong("accepted")


def polygons_outside(out):
  _must_be_refused(out, "outside")


def polygons_nan(out):
  _must_be_refused(out, "nan")


def polygons_twice(out):
  found = _polygons(out, "twice")
  _expect({"masks/003/a.png", "masks/003/b.png"} <= found.keys(), "the first entry is lost")


def polygons_capitals(out):
  _polygons(out, "capitals")


def void_255(out):
  new = out / "imported"
  argv = ["palette", "--images", out / "images", "--masks", out / "masks", "--classes", "a"]
  import_folder([*argv, "--ignore", "255", "--out", new], new)
  for example in _examples(new):
    _expect((example["confidence"] > 0).any(), "nothing is painted")


def nifti_rows_first(out):
  for i, example in enumerate(_examples(out, "multirater_folder")):
    truth = _frame(i)[1] > 0.3
    if ((example["raters"][0, ..., 0] > 0) != truth).any():
      return r"\.nii"
  return None


def odd_names(out):
  frames = _by_video(out, size=96)
  _expect(len(frames) == 9, f"{len(frames)} frames for 9")
  lengths = [len(example["frames"]) for example in _examples(out, kind="videos", size=96)]
  _expect(sorted(lengths) == [1, 3] + [9] * 7, f"lengths {lengths}")
  _expect(frames["v6 .mp4"]["patient"].decode() == 'Müller, "6"', "another patient")


def same_time_and_size(out):
  path = out / "videos" / "s0.npy"
  first = _by_video(out)["s0.npy"]["image"]
  stat = path.stat()
  np.save(path, 255 - np.load(path))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  _expect((_by_video(out)["s0.npy"]["image"] == 255 - first).all(), "the old data")


def mjpeg_mixed(out):
  truth, found = np.load(out / "truth.npy"), _read(out / "mixed.avi")
  _expect(found.shape == truth.shape, f"shape {found.shape}")
  _expect(np.abs(found.astype(int) - truth).mean() < 3, "other pixels")


def _npy(out, name, right):
  _expect(np.array_equal(_read(out / f"{name}.npy"), np.load(out / "nhw.npy")) == right, "misread")


def npy_sound(out):
  for name in ("nhw", "fortran"):
    _npy(out, name, True)


def npy_hwn(out):
  _npy(out, "hwn", True)


def npy_float(out):
  _npy(out, "float", True)


def npy_rgb(out):
  _npy(out, "rgb", True)


def npy_i16(out):
  _npy(out, "i16", True)


def excel_tables(out, name):
  examples = _examples(out / name)
  _expect({e["patient"].decode() for e in examples} == {f"p{i}" for i in range(6)}, "patients")
  _expect({int(e["day"]) for e in examples} <= {1, -1}, "days")
  _expect(name == "na" or {int(e["day"]) for e in examples} == {1}, "the day is lost")


def video_range(out):
  ramp = np.arange(256)
  for name in ("limited.mp4", "full.mp4", "ten.mp4", "gray.mp4", "raw.avi", "ffv1.avi"):
    # Grey H.264 that does not state its range is shown as limited.
    shown = ((ramp - 16) * 255 / 219).clip(0, 255) if name == "gray.mp4" else ramp
    off = np.abs(_read(out / name)[2].mean(axis=0) - shown)
    _expect(off.max() < 6, f"{name}: off by {off.max():.0f}")


def frame_numbers(out):
  for name, kept in (
    *(("bframes", range(40)), ("uneven", (0, 1, 4, 5, 11, 12, 13, 30, 39))),
    ("fragmented", range(40)),
  ):
    levels = _read(out / f"{name}.mp4").mean(axis=(1, 2))
    _expect(len(levels) == len(kept), f"{name}: {len(levels)} frames for {len(kept)}")
    off = np.abs(levels - [20 + 5 * i for i in kept]).max()
    _expect(off < 3, f"{name}: off by {off:.0f}")


def _covid(out, name, saturation=97.0):
  examples = _examples(out / name, "covid_blues", "videos")
  _expect(len(examples) == 4, f"{len(examples)} videos for 4")
  ratios = {round(float(example["sf_ratio"]), 1) for example in examples}
  _expect(ratios == {round(saturation / 0.21, 1)}, f"S/F {ratios}")


def covid_plain(out):
  _covid(out, "plain")


def covid_semicolon(out):
  _covid(out, "semicolon")


def covid_comma_decimal(out):
  _covid(out, "comma_decimal", 97.5)


def covid_capitals(out):
  _covid(out, "capitals")


def covid_zeros(out):
  _covid(out, "zeros")


def covid_fraction(out):
  _covid(out, "fraction")


def sf_ratio_units(out):
  _examples(out)
  raise Wrong("accepted")


def inverted_masks(out):
  _examples(out)
  return r"(?i)more than half|inverted|background"


def class_never_present(out):
  runpy.run_path(str(SHARED / "cases" / "35_class_never_present" / "make.py"))
  return r"mean_map IoU 0?\.26[89]"


# Checks by the folder of their case.
CHECKS = {
  "02_rotated_90": [rotated_90],
  "05_nifti_soft_int16": [nifti_soft_int16],
  "07_raters_0_1": [raters_0_1, raters_0_1_as_they_are],
  "08_rater_masks_jpg": [rater_masks_jpg, rater_masks_jpg_as_they_are],
  "09_jpeg_noise": [jpeg_noise_named, jpeg_noise_converted],
  "12_huge_png": [huge_png],
  "13_patient_ids": [patient_ids],
  "14_unicode_nfd": [unicode_class, unicode_clip, unicode_patient],
  "15_gif_long": [gif_long],
  "16_exif_png": [exif_png],
  "17_frames_from_1": [frames_from_1],
  "18_polygons": [
    *(polygons_shares, polygons_outside, polygons_nan, polygons_twice, polygons_capitals),
  ],
  "19_void_255": [void_255],
  "20_nifti_rows_first": [nifti_rows_first],
  "21_odd_names": [odd_names],
  "23_same_time_and_size": [same_time_and_size],
  "24_mjpeg_mixed": [mjpeg_mixed],
  "25_npy_axes": [npy_sound, npy_hwn, npy_float, npy_rgb, npy_i16],
  "27_excel_tables": [
    *("bom", "semicolon", "sep", "utf16", "cr", "index", "float", "twice", "na", "blanks"),
    *("capitals", "backslash"),
  ],
  "28_video_range": [video_range],
  "29_frame_numbers": [frame_numbers],
  "30_png_kinds": [],
  "31_metrics": [],
  "32_covid_blues_excel": [
    *(covid_plain, covid_semicolon, covid_comma_decimal, covid_capitals, covid_zeros),
    covid_fraction,
  ],
  "33_sf_ratio_units": [sf_ratio_units],
  "34_inverted_masks": [inverted_masks],
  "35_class_never_present": [class_never_present],
}
# Where one line that says what is wrong is right too.
REFUSABLE = {
  *("nifti_soft_int16", "raters_0_1", "raters_0_1_as_they_are", "rater_masks_jpg"),
  *("rater_masks_jpg_as_they_are", "jpeg_noise_named", "huge_png", "patient_ids"),
  *("polygons_shares", "polygons_outside", "polygons_nan", "polygons_twice", "polygons_capitals"),
  *("npy_hwn", "npy_float", "npy_rgb", "npy_i16", "covid_fraction", "covid_zeros"),
  *("sf_ratio_units", "covid_comma_decimal"),
  # As they were found: refused with a line that says how to save the table.
  *("semicolon", "sep", "utf16", "index", "float", "twice", "na", "capitals", "backslash"),
}


def check(case, name, out):
  """Makes a case's files and checks one thing; returns what the log must contain, or None."""
  out = pathlib.Path(out)
  sys.path.insert(0, str(SHARED / "cases"))
  out.parent.mkdir(parents=True, exist_ok=True)
  make = SHARED / "cases" / case / "make.py"
  if name != "class_never_present":
    sys.argv = [str(make), str(out)]
    runpy.run_path(str(make))
  if case == "27_excel_tables":
    return excel_tables(out, name)
  return globals()[name](out)


def run(bench):
  """Every check of every case that is beside the project."""
  if not (SHARED / "cases").is_dir():
    beside = os.path.relpath(SHARED / "cases", ROOT)
    yield Case("field", "all", "skipped", f"needs {beside} beside the project")
    return
  items = []
  for case, checks in CHECKS.items():
    names = [check if isinstance(check, str) else check.__name__ for check in checks]
    if not names:
      yield Case("field", case, "skipped", f"{case} cannot be made: its script needs another file")
    items += [(case, name) for name in names]

  def one(item, worker):
    case, name = item
    if "data" not in worker.warmed:
      worker.warmed["data"] = worker.call("tests.faults.fuzz:warm_data", 120)
    # A name that no check looks for in the log.
    out = bench.work / "field" / f"n{items.index(item)}" / "data"
    where = {"case": case, "name": name, "out": str(out)}
    answer = worker.call("tests.faults.field:check", 3 * PATIENCE, **where)
    outcome, text, wanted = answer["outcome"], answer["text"], answer["value"]
    if outcome == "value":
      outcome = "ok" if wanted is None or re.search(wanted, text) else "silent"
      text = text if outcome == "ok" else f"no warning ({wanted}): {text[-200:]}"
    elif outcome == "refused":
      outcome = "ok" if name in REFUSABLE else "wrong"
    return Case("field", f"{case}, {name}", outcome, text)

  yield from bench.workers(one, items)
