"""Tables of what is predicted: a row a frame, a video, a patient and day."""

import contextlib
import csv
import io

from lus_jax.files import plain_cell, write_text
from lus_jax.inference import measures
from lus_jax.media.writers import written

FRAMES, VIDEOS, DAYS = "frames.csv", "videos.csv", "patient_days.csv"
# Of these the tables of videos have the mean over frames, and the largest.
_AVERAGED = ("area_pixels", "area_mm2", "mean_probability", "structures", "pleura_share")
_LARGEST = ("area_pixels", "area_mm2", "structures", "pleura_share")
FRAME_COLUMNS = ("video", "frame", "member", "class", *measures.NAMES)
VIDEO_COLUMNS = (
  *("video", "patient", "day", "member", "class"),
  *("frames", "frames_with_any", "frames_with_pleura"),
  *(f"{name}_mean" for name in _AVERAGED),
  *(f"{name}_max" for name in _LARGEST),
  *("max_probability", "reaches_cut"),
)
DAY_COLUMNS = (
  *("patient", "day", "member", "class"),
  *("videos", "videos_with_any", "videos_with_spacing", "videos_with_pleura", "frames"),
  *(f"{name}_mean" for name in _AVERAGED),
)


class Frames:
  """Measures the frames of a clip, and writes them as a table where they are to be kept.

  A context manager, like the writers of formats; nothing is left after an exception.

  Attributes:
    rows: once all frames are there, a dict for every member and class of `VIDEO_COLUMNS` but the
      first three; `frames_with_pleura` counts those in which `pleura_share` is known.
  """

  def __init__(self, path, video, heads, rules):
    """Begins with no frame.

    Args:
      path: of the table; None: it is not kept.
      video: the clip's name.
      heads: a `Head` of every member.
      rules: a `measures.Rules`.
    """
    self._path, self._video, self._heads, self._rules = path, video, heads, rules
    self._sums = [[_Sums() for _ in head.classes] for head in heads]
    self.rows = []

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      self._table = None
      if self._path is not None:
        temporary = stack.enter_context(written(self._path))
        file = stack.enter_context(temporary.open("w", newline="", encoding="utf-8"))
        self._table = csv.writer(file, lineterminator="\n")
        self._table.writerow(FRAME_COLUMNS)
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error):
    self._stack.__exit__(*error)
    if error[0] is None:
      self.rows = [
        {"member": head.name, "class": name, **one.row()}
        for head, sums in zip(self._heads, self._sums, strict=True)
        for name, one in zip(head.classes, sums, strict=True)
      ]

  def add(self, number, image, maps):
    """Measures the next frame.

    Args:
      number: of the frame.
      image: its grey values [h, w] uint8.
      maps: of every member [h, w, K] uint8, 255 = probability 1.
    """
    for head, sums, one in zip(self._heads, self._sums, maps, strict=True):
      top, left, bottom, right = head.box
      measured = measures.measure(one[top:bottom, left:right], self._rules)
      for name, total, row in zip(head.classes, sums, measured, strict=True):
        total.add(row)
        if self._table is not None:
          cells = {"video": self._video, "frame": number, "member": head.name, "class": name, **row}
          self._table.writerow(_cells(cells, FRAME_COLUMNS))


class _Sums:
  """Sums and maxima of the frames of one member and class."""

  def __init__(self):
    self._n, self._any, self._highest = 0, 0, 0.0
    self._sums = dict.fromkeys(_AVERAGED, 0)
    self._counts = dict.fromkeys(_AVERAGED, 0)
    self._largest = dict.fromkeys(_LARGEST)

  def add(self, row):
    self._n += 1
    self._any += row["area_pixels"] > 0
    self._highest = max(self._highest, row["max_probability"])
    for name in _AVERAGED:
      if row[name] is not None:
        self._sums[name] += row[name]
        self._counts[name] += 1
    for name in _LARGEST:
      if row[name] is not None:
        self._largest[name] = max(row[name], self._largest[name] or 0)

  def row(self):
    counts = self._counts
    return {
      "frames": self._n,
      "frames_with_any": self._any,
      "frames_with_pleura": counts["pleura_share"],
      **{f"{x}_mean": self._sums[x] / counts[x] if counts[x] else None for x in _AVERAGED},
      **{f"{x}_max": self._largest[x] for x in _LARGEST},
      "max_probability": self._highest,
      "reaches_cut": "yes" if self._any else "no",
    }


def days(rows):
  """Rows of `DAY_COLUMNS`: means over the videos of each patient and day.

  Each video counts the same, however many frames it has. Means of mm2 are over the videos whose
  pixels' size is known, those of the pleura's share over the videos that show it.

  Args:
    rows: of videos, dicts of `VIDEO_COLUMNS`; those without a patient or day are left out.
  """
  groups = {}
  for row in rows:
    if row["patient"] and row["day"]:
      key = (row["patient"], row["day"], row["member"], row["class"])
      groups.setdefault(key, []).append(row)
  found = []
  for key, videos in groups.items():
    row = dict(zip(DAY_COLUMNS, key, strict=False))
    row["videos"] = len(videos)
    row["videos_with_any"] = sum(one["frames_with_any"] > 0 for one in videos)
    row["videos_with_spacing"] = sum(one["area_mm2_mean"] is not None for one in videos)
    row["videos_with_pleura"] = sum(one["frames_with_pleura"] > 0 for one in videos)
    row["frames"] = sum(one["frames"] for one in videos)
    for name in _AVERAGED:
      known = [one[f"{name}_mean"] for one in videos if one[f"{name}_mean"] is not None]
      row[f"{name}_mean"] = sum(known) / len(known) if known else None
    found.append(row)
  return found


def write(path, columns, rows):
  """Writes a table, whole or not at all; `rows` are dicts, None is an empty cell."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(columns)
  table.writerows(_cells(row, columns) for row in rows)
  write_text(path, text.getvalue())


def _cells(row, columns):
  cells = (row[column] for column in columns)
  return ["" if x is None else f"{x:.6g}" if isinstance(x, float) else plain_cell(x) for x in cells]
