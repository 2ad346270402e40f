"""How often the tests between thresholds find a difference where there is none.

  python -m lus_jax.benchmarks.error_rate

Simulates `folds.cv=rotate`: two models that are equally good, each trained once a fold, so that
all patients of a fold share the luck of a network; and `folds.cv=paper`, where all patients share
the networks of all folds. Counts p values below .05, and below .05 / 11 (the strictest that Holm
asks of seven thresholds), by swapping patients, each by itself, and by swapping whole folds, as
`lus_jax.evaluation.statistics` does for `rotate`; and how often a true difference is found. The
luck is the standard deviation of a network's score, in those of a patient's; at 0 all networks of
a threshold are the same.
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
SCHEMES = ("rotate", "paper")
# Of the family of the paper's seven thresholds.
COMPARISONS = 11
# Of the second model, in standard deviations of a patient.
DIFFERENCES = (0.0, 0.5)


def draw(generator, fold, *, scheme, luck, difference):
  """Scores of two models on patients.

  Args:
    generator: of NumPy.
    fold: [P] the fold of each patient.
    scheme: 'rotate': a patient is tested by the networks of their fold; 'paper': by those of all.
    luck: standard deviation of a network's score, in those of a patient's.
    difference: how much better the second model is, likewise.

  Returns:
    Two `Ratio`s.
  """
  names = tuple(f"{i:04d}" for i in range(len(fold)))
  # What both share is hard for both; the networks' luck is not shared.
  patient, scores = generator.normal(size=len(fold)), []
  for shift in (0, difference):
    networks = luck * generator.normal(size=fold.max() + 1)
    shared = networks[fold] if scheme == "rotate" else networks.mean()
    scores.append(patient + shared + generator.normal(size=len(fold)) + shift)
  return [Ratio(names, x, np.ones(len(fold)), root=False) for x in scores]


def measure(*, scheme, folds, patients, luck, difference, repeats, seed=0):
  """The share of small p values, by swapping patients and by swapping folds.

  Args:
    scheme: of `draw`.
    folds: how many.
    patients: P, dealt into them evenly.
    luck, difference: of `draw`.
    repeats: simulated studies.
    seed: of them.

  Returns:
    A row: the arguments, and the shares below .05 and below .05 / 11: `by_patient`,
    `by_patient_holm`, `by_fold` and `by_fold_holm` (None where all networks test all patients).
  """
  generator = np.random.default_rng(seed)
  fold = np.arange(patients) % folds
  ways = {"by_patient": None} | ({"by_fold": fold} if scheme == "rotate" else {})
  found = {name: [] for name in ways}
  for _ in range(repeats):
    a, b = draw(generator, fold, scheme=scheme, luck=luck, difference=difference)
    for name, groups in ways.items():
      found[name].append(statistics.permutation_test(a, b, groups=groups))
  row = {"scheme": scheme, "folds": folds, "patients": patients}
  row |= {"luck": luck, "difference": difference}
  for name in ("by_patient", "by_fold"):
    for suffix, level in (("", statistics.LEVEL), ("_holm", statistics.LEVEL / COMPARISONS)):
      p = found.get(name)
      row[f"{name}{suffix}"] = float(np.mean(np.array(p) < level)) if p else None
  return row


def table(rows):
  """The rows as Markdown."""
  lines = [
    "| cv | folds | patients | luck | difference | p < .05 swapping patients | p < .05/11 "
    "| p < .05 swapping folds | p < .05/11 |",
    "|" + " --- |" * 9,
  ]
  for row in rows:
    *what, a, b, c, d = row.values()
    shares = ("-" if x is None else f"{x:.3f}" for x in (a, b, c, d))
    lines.append(f"| {' | '.join(map(str, (*what, *shares)))} |")
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
    measure(
      scheme=scheme,
      folds=folds,
      patients=patients,
      luck=luck,
      difference=difference,
      repeats=args.repeats,
    )
    for scheme in SCHEMES
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
