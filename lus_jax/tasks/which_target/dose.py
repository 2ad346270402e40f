"""Dose and response of the phantom's labels: which threshold's label is the truest, and when.

python -m lus_jax.tasks.which_target.dose [--out FILE.svg] [--doses 0,0.2,0.4,0.6,0.8]

In the settings `true_from_T` strokes are mostly true from the confidence T on and mostly false
below it. The same frames are painted at every dose T; no network is trained. Printed are the share
of true strokes at each confidence, Dice of the label of each threshold and the truth (mean over
classes), and where one threshold overtakes another. Of networks that learn those labels the same is
told by `configs/which_target.py`.
"""

import argparse
import dataclasses
import pathlib
import sys

import numpy as np

from lus_jax import command_line
from lus_jax.errors import UserError
from lus_jax.files import write_bytes
from lus_jax.labels import label
from lus_jax.report import cells
from lus_jax.report import dose as report
from lus_jax.tasks.which_target import compare
from tfds_builders.lus_phantom import annotator, cohort, lus_phantom, phantom_config, simulator

DOSES = (0.0, 0.2, 0.4, 0.6, 0.8)
THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
LEVELS = np.rint(255 * annotator.LEVELS).astype(int)


@dataclasses.dataclass(frozen=True)
class Painted:
  """What was painted in one setting: numbers of pixels by class and stored confidence.

  Attributes:
    true: [K, 256], of structures.
    false: [K, 256], of anything else.
  """

  true: np.ndarray
  false: np.ndarray

  def shares(self):
    """[6] share of what is true among the pixels painted at each of `annotator.LEVELS`."""
    true, false = (one[:, LEVELS].sum(0) for one in (self.true, self.false))
    return true / np.maximum(true + false, 1)

  def dice(self, threshold):
    """Dice of the label at a threshold and the truth, mean over the classes that are there."""
    positive = np.asarray(label(np.arange(256, dtype=np.float32) / 255, threshold)) > 0
    hits = self.true[:, positive].sum(1)
    sizes = hits + self.false[:, positive].sum(1) + self.true.sum(1)
    there = self.true.sum(1) > 0
    return float(np.mean(2 * hits[there] / sizes[there]))


def paint(setting, *, size=64, n_patients=24, seed=0):
  """Simulates the frames of some patients and counts what is painted in them.

  Args:
    setting: of the phantom.
    size: H and W of the frames in pixels.
    n_patients: at least 3; about six frames each.
    seed: of the phantom.

  Returns:
    A `Painted`.
  """
  config = phantom_config(
    "frames", size, size, setting=setting, n_patients=n_patients, seed=seed, missing_views=0.6
  )
  counts = np.zeros((2, len(simulator.CLASSES), 256), np.int64)
  for patient in cohort.patient_names(n_patients):
    for video in cohort.videos_of(patient, config):
      arrays = lus_phantom.simulate(video, config)
      there = arrays["truth"][0] > 0
      for k in range(len(simulator.CLASSES)):
        for i, where in enumerate((there[..., k], ~there[..., k])):
          counts[i, k] += np.bincount(arrays["confidence"][..., k][where], minlength=256)
  return Painted(*counts)


def answer(painted):
  """The labels' answer to the dose, as `compare.answer`.

  Args:
    painted: a `Painted` by dose.
  """
  means = {t: [one.dice(t) for one in painted.values()] for t in THRESHOLDS}
  return compare.answer(report.LABEL, "dice", tuple(painted), means)


def text(painted):
  """What is printed of a `Painted` by dose."""
  header = [report.dial(dose) for dose in painted]
  shares = np.stack([one.shares() for one in painted.values()], axis=1)
  found = answer(painted)
  lines = ["Share of what is true in strokes of each confidence, by dose"]
  body = [
    [cells.percent(level), *map(cells.number, row)]
    for level, row in zip(annotator.LEVELS, shares, strict=True)
  ]
  lines += [cells.text_table(["strokes", *header], body), ""]
  lines.append("Dice of the label and the truth, by dose")
  body = [
    [cells.percent(t), *map(cells.number, row)]
    for t, row in zip(found["thresholds"], found["means"], strict=True)
  ]
  lines += [cells.text_table(["label", *header], body), "", report.text([found])]
  lines.append("\nDose: the confidence from which strokes are mostly true. Simulated frames.")
  return "\n".join(lines)


def _doses(words):
  try:
    doses = sorted({float(word) for word in words.split(",")})
  except ValueError:
    doses = []
  if len(doses) < 2 or any(annotator.true_from(_setting(dose)) is None for dose in doses):
    raise UserError(
      f"--doses={words} must be two or more numbers from 0 to {annotator.HIGHEST_TRUE_FROM}, as "
      "0,0.2,0.4."
    )
  return doses


def _setting(dose):
  return f"{annotator.TRUE_FROM}{dose:g}"


def main():
  """Runs the command line; returns its exit code."""
  parser = argparse.ArgumentParser(description="Dose and response of the phantom's labels.")
  parser.add_argument("--out", help="SVG or PNG to write: the figure")
  parser.add_argument("--doses", default=",".join(f"{dose:g}" for dose in DOSES))
  parser.add_argument("--size", type=int, default=64, help="height and width of a frame")
  parser.add_argument("--patients", type=int, default=24, help="of about six frames each")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()

  def tell():
    doses, kind = _doses(flags.doses), pathlib.Path(flags.out or "a.svg").suffix[1:]
    if kind not in ("svg", "png"):
      raise UserError(f"--out={flags.out} must end in .svg or .png.")
    options = {"size": flags.size, "n_patients": flags.patients, "seed": flags.seed}
    painted = {dose: paint(_setting(dose), **options) for dose in doses}
    print(text(painted))
    if flags.out:
      drawn = report.figure({"dose": {"dose": [answer(painted)]}}, "dose")
      write_bytes(pathlib.Path(flags.out), drawn[kind])

  return command_line.run(tell)


if __name__ == "__main__":
  sys.exit(main())
