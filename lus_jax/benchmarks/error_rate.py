"""How often the tests between thresholds find a difference where there is none.

  python -m lus_jax.benchmarks.error_rate
  python -m lus_jax.benchmarks.error_rate --nested     the clinic's analysis, over seeds

Simulates `folds.cv=rotate`: two models that are equally good, each trained once a fold, so that
all patients of a fold share the luck of a network; and `folds.cv=paper`, where all patients share
the networks of all folds. Counts p values below .05, and below .05 / 11 (the strictest that Holm
asks of seven thresholds), by swapping patients, each by itself, and by swapping whole folds, as
`lus_jax.evaluation.statistics` does for `rotate`; and how often a true difference is found. The
luck is the standard deviation of a network's score, in those of a patient's; at 0 all networks of
a threshold are the same.

`--nested` simulates `configs/clinic.py`: whole studies, one a seed, of folds whose patients share
the luck of their two networks, and that share a cohort and initial weights. Patients' paired
differences go through the mixed model and the bootstrap of `lus_jax.evaluation.nested`, and through
a t test of the patients that knows nothing of folds and seeds. It needs statsmodels.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from scipy import stats

from lus_jax.benchmarks.processes import positive
from lus_jax.evaluation import nested, statistics
from lus_jax.evaluation.ratio import Ratio

LUCK = (0.0, 0.1, 0.25, 0.5)
SCHEMES = ("rotate", "paper")
# Of the family of the paper's seven thresholds.
COMPARISONS = 11
# Of the second model, in standard deviations of a patient.
DIFFERENCES = (0.0, 0.5)
# Of `--nested`: the clinic's seeds, folds and patients of a fold; luck of folds and of seeds, and
# differences, in standard deviations of a patient's paired difference.
NESTED = (5, 3, 40)
NESTED_LUCK = ((0.0, 0.0), (0.15, 0.0), (0.3, 0.0), (0.15, 0.15))
NESTED_DIFFERENCES = (0.0, 0.25)
ANALYSES = ("mixed", "bootstrap", "patients")


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


def draw_nested(generator, shape, *, luck, difference):
  """Paired differences of patients in folds in seeds.

  Args:
    generator: of NumPy.
    shape: numbers of seeds, folds of each and patients of each.
    luck: standard deviations of a fold's and of a seed's difference, in those of a patient's.
    difference: the true one, likewise.

  Returns:
    [n] differences, seeds and folds.
  """
  values = difference + generator.normal(size=shape)
  values += luck[0] * generator.normal(size=(*shape[:2], 1))
  values += luck[1] * generator.normal(size=(shape[0], 1, 1))
  seeds, folds, _ = np.indices(shape)
  return values.ravel(), seeds.ravel(), folds.ravel()


def measure_nested(*, shape=NESTED, luck, difference, repeats, seed=0):
  """The share of small p values by each of `ANALYSES`, and of intervals that hold the difference.

  Args:
    shape, luck, difference: of `draw_nested`.
    repeats: simulated studies.
    seed: of them.

  Returns:
    A row: the luck and difference; for each analysis the shares below .05 and below .05 / 2 (the
    strictest of two questions); `covered` by the mixed model's interval, and by the bootstrap's.
  """
  generator = np.random.default_rng(seed)
  p, covered = {name: [] for name in ANALYSES}, {"mixed": [], "bootstrap": []}
  for _ in range(repeats):
    drawn = draw_nested(generator, shape, luck=luck, difference=difference)
    found = {name: getattr(nested, name)(*drawn) for name in covered}
    p["patients"].append(float(stats.ttest_1samp(drawn[0], 0).pvalue))
    for name, one in found.items():
      p[name].append(one["p"])
      covered[name].append(one["interval"][0] <= difference <= one["interval"][1])
  row = {"luck_fold": luck[0], "luck_seed": luck[1], "difference": difference}
  for name in ANALYSES:
    for suffix, level in (("", statistics.LEVEL), ("_holm", statistics.LEVEL / 2)):
      row[f"{name}{suffix}"] = float(np.mean(np.array(p[name]) < level))
  return row | {f"{name}_covered": float(np.mean(x)) for name, x in covered.items()}


def nested_table(rows):
  """The rows of `measure_nested` as Markdown."""
  lines = [
    "| luck of folds | of seeds | difference | mixed model: p < .05 | p < .05/2 "
    "| bootstrap: p < .05 | p < .05/2 | patients alone: p < .05 | p < .05/2 "
    "| mixed model covers | bootstrap covers |",
    "|" + " --- |" * 11,
  ]
  for row in rows:
    *what, a, b, c, d, e, f, g, h = row.values()
    shares = (f"{x:.3f}" for x in (a, b, c, d, e, f, g, h))
    lines.append(f"| {' | '.join(map(str, (*what, *shares)))} |")
  return "\n".join(lines)


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
  parser.add_argument("--folds", type=positive, nargs="+")
  parser.add_argument("--patients", type=positive, nargs="+")
  parser.add_argument("--repeats", type=positive, default=1000)
  parser.add_argument("--nested", action="store_true", help="the clinic's analysis, over seeds")
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  if args.nested and (args.folds or args.patients):
    parser.error("--nested has folds and patients of its own; leave out --folds and --patients")
  args.folds, args.patients = args.folds or [6, 9], args.patients or [42, 126]
  if min(args.patients) < max(args.folds):
    parser.error("every fold needs a patient; name fewer --folds or more --patients")
  if args.nested:
    nested.require()
    rows = [
      measure_nested(luck=luck, difference=difference, repeats=args.repeats)
      for difference in NESTED_DIFFERENCES
      for luck in NESTED_LUCK
    ]
  else:
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
  print(nested_table(rows) if args.nested else table(rows))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({"repeats": args.repeats, "rows": rows}, indent=1))


if __name__ == "__main__":
  main()
