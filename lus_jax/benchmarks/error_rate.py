"""How often the tests between thresholds find a difference where there is none.

  python -m lus_jax.benchmarks.error_rate

Simulates `folds.cv=rotate`: two models that are equally good, each trained once a fold, so that
all patients of a fold share the luck of a network. Counts p values below .05 by swapping patients,
each by itself, and by swapping whole folds, as `lus_jax.evaluation.statistics` does; and how often
a true difference is found. The luck is the standard deviation of a network's score, in those of a
patient's; at 0 all networks of a threshold are the same.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from lus_jax.benchmarks.processes import positive
from lus_jax.evaluation import statistics
from lus_jax.evaluation.ratio import Ratio

LUCK = (0.0, 0.1, 0.25, 0.5)
# Of the second model, in standard deviations of a patient.
DIFFERENCES = (0.0, 0.5)


def draw(generator, fold, *, luck, difference):
  """Scores of two models on patients of folds.

  Args:
    generator: of NumPy.
    fold: [P] the fold of each patient.
    luck: standard deviation of a network's score, in those of a patient's.
    difference: how much better the second model is, likewise.

  Returns:
    Two `Ratio`s.
  """
  names = tuple(f"{i:04d}" for i in range(len(fold)))
  # What both share is hard for both; the networks' luck is not shared.
  patient = generator.normal(size=len(fold))
  scores = [
    patient
    + luck * generator.normal(size=fold.max() + 1)[fold]
    + generator.normal(size=len(fold))
    + shift
    for shift in (0, difference)
  ]
  return [Ratio(names, x, np.ones(len(fold)), root=False) for x in scores]


def measure(*, folds, patients, luck, difference, repeats, seed=0):
  """The share of p values below .05, by swapping patients and by swapping folds.

  Args:
    folds: how many.
    patients: P, dealt into them evenly.
    luck, difference: of `draw`.
    repeats: simulated studies.
    seed: of them.

  Returns:
    A row: the arguments, `by_patient`, `by_fold`.
  """
  generator = np.random.default_rng(seed)
  fold = np.arange(patients) % folds
  found = np.zeros(2)
  for _ in range(repeats):
    a, b = draw(generator, fold, luck=luck, difference=difference)
    p = [statistics.permutation_test(a, b, groups=groups) for groups in (None, fold)]
    found += np.array(p) < statistics.LEVEL
  by_patient, by_fold = (found / repeats).tolist()
  return {
    "folds": folds,
    "patients": patients,
    "luck": luck,
    "difference": difference,
    "by_patient": by_patient,
    "by_fold": by_fold,
  }


def table(rows):
  """The rows as Markdown."""
  lines = [
    "| folds | patients | luck | difference | p < .05 swapping patients | swapping folds |",
    "|" + " --- |" * 6,
  ]
  for row in rows:
    cells = [*list(row.values())[:4], f"{row['by_patient']:.3f}", f"{row['by_fold']:.3f}"]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join(lines)


def main(argv=None):
  """Measures, prints a table and writes `--out`."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.error_rate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--folds", type=positive, nargs="+", default=[6, 9])
  parser.add_argument("--patients", type=positive, nargs="+", default=[42, 126])
  parser.add_argument("--repeats", type=positive, default=1000)
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  if min(args.patients) < max(args.folds):
    parser.error("every fold needs a patient; name fewer --folds or more --patients")
  rows = [
    measure(folds=folds, patients=patients, luck=luck, difference=difference, repeats=args.repeats)
    for folds in args.folds
    for patients in args.patients
    for difference in DIFFERENCES
    for luck in LUCK
  ]
  print(table(rows))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({"repeats": args.repeats, "rows": rows}, indent=1))


if __name__ == "__main__":
  main()
