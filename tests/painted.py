"""A folder that two annotators and a model painted in, with a consensus: small, and known whole."""

import csv
import json

import numpy as np

from lus_jax.annotate import store as store_lib

CLASSES = ("pleura", "band")
HEIGHT, WIDTH = 32, 40
SPLITS = {"t1": "train", "t2": "train", "v": "validation", "s": "test"}
MODEL = "runs/x: soft"
OFFERED = store_lib.Work(1, (), MODEL, CLASSES)
# What is saved: video, frame, annotator and work, in this order; a frame again is a revision more.
SAVED = (
  ("t1", 0, "anna", store_lib.Work(10, CLASSES)),
  ("t1", 1, "anna", OFFERED),
  ("t1", 2, "anna", store_lib.Work(20, ("pleura",), MODEL, CLASSES)),
  ("t2", 0, "anna", store_lib.Work(30, CLASSES)),
  ("t2", 0, "ben", store_lib.Work(5, ("band",))),
  ("t2", 0, "carl", store_lib.Work(7, CLASSES, review=True)),
  ("t2", 1, "ben", OFFERED),
  ("t2", 1, "ben", store_lib.Work(2, CLASSES)),
  ("v", 0, "anna", store_lib.Work(40, ("band",))),
  ("s", 0, "anna", store_lib.Work(50, ("band",))),
  ("s", 0, "ben", OFFERED),
)
# Of no known work: painted elsewhere.
ELSEWHERE = ("s", 1, "ben")
UNTOUCHED = {("t1", 1, "anna"), ("s", 0, "ben")}
REPLACED = {("t2", 0, "anna"), ("t2", 0, "ben")}
KEYS = dict.fromkeys([saved[:3] for saved in SAVED] + [ELSEWHERE])


def planes(i):
  """Masks of all classes, uint8 [K, h, w]: discs of other confidences."""
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  disc = np.hypot(x - 15 - i, y - 15) < 10
  return np.stack([disc * np.uint8(60 + 15 * i), ~disc * np.uint8(255 - 10 * i)])


def make(directory, saved=SAVED):
  """Makes the folder; `saved` as `SAVED`."""
  random = np.random.default_rng(0)
  (directory / "videos").mkdir(parents=True)
  for name in SPLITS:
    clip = random.integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)
    np.save(directory / "videos" / f"{name}.npy", clip)
  dataset = {"name": "painted", "licence": "none", "classes": list(CLASSES)}
  (directory / "dataset.json").write_text(json.dumps(dataset))
  rows = [(f"{name}.npy", f"p_{name}", split) for name, split in SPLITS.items()]
  write_table(directory / "manifest.csv", [("video", "patient", "split"), *rows])
  for i, (name, frame, annotator, work) in enumerate(saved):
    opened = store_lib.Store(directory, annotator)
    base, _ = opened.masks(f"{name}.npy", frame)
    opened.save(f"{name}.npy", frame, planes(i), base, work)
  if saved is SAVED:
    name, frame, annotator = ELSEWHERE
    opened = store_lib.Store(directory, annotator)
    masks = opened.save(f"{name}.npy", frame, planes(12), "")
    change(directory, lambda rows: [row for row in rows if row["masks"] != masks])
  return directory


def read_table(path):
  """The rows of a table, a dict each."""
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def write_table(path, rows):
  """Writes rows of cells."""
  with path.open("w", newline="") as file:
    csv.writer(file).writerows(rows)


def change(directory, how):
  """Changes provenance.csv: `how(rows)` returns what it becomes."""
  path = directory / "provenance.csv"
  rows = how(read_table(path))
  write_table(path, [list(rows[0]), *(list(row.values()) for row in rows)])


def standing(rows, video, frame, annotator):
  """Of rows of provenance.csv the newest one about a frame."""
  key = f"{video}.npy", str(frame), annotator
  return [row for row in rows if (row["video"], row["frame"], row["annotator"]) == key][-1]
