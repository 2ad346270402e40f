"""How many patients a difference between two thresholds needs.

  python -m lus_jax.benchmarks.power

Both thresholds are tried on the same patients, so that only patients count in whom one is right and
the other wrong. With a share p_d of those (the discordance) and a difference of accuracy delta, one
patient's paired difference (-1, 0 or 1) has the variance p_d - delta^2, and

  n = (z_(1 - alpha / 2) + z_power)^2 (p_d - delta^2) / delta^2

patients find it with the power asked for, two-sided. After Holm's correction over a family the
strictest comparison is tested at alpha over the family's size. Each n is tried by simulation, with
the test it is made for (the mean difference over its standard error) and with McNemar's exact one,
which is a little weaker.

The second table is for scores that are shares (of a patient's pairs of videos that are right) and
for patients who share the luck of a fold's networks. With sd the standard deviation of a patient's
difference within a fold, and luck that of a fold's mean difference beyond its patients, the mean
difference of F folds of m patients has the variance (sd^2 / m + luck^2) / F and is tested by the t
distribution of F - 1 degrees of freedom. Once luck is larger than sd / sqrt(m), more patients a
fold find little more: it takes more folds, which is to say more networks.

Folds of a seed are taken there to be as independent as those of two seeds. The third table is of
whole studies, a seed each, that may differ (luck of seeds: the standard deviation of a seed's mean
difference beyond its folds), tested as the clinic does: by the mixed model of
`lus_jax.evaluation.nested`, whose degrees of freedom are those of the highest level whose variance
does not come out as 0, and by a t test of the seeds' means. How often each finds it, or
a difference of 0, is simulated by what both depend on: normal differences in a balanced
design have independent mean squares and a mean. What is not normal (half of the patients may not
differ at all) and folds that share patients between training and test are left out.
"""

import argparse
import itertools
import json
import math
import pathlib
import sys

import numpy as np
from scipy import stats

from lus_jax.benchmarks.processes import positive
from lus_jax.evaluation import statistics
from lus_jax.report import cells

DIFFERENCES = (0.10, 0.05)
DISCORDANCE = 0.30
# Comparisons of a Holm family: one alone, the clinic's two questions, and the paper's seven
# thresholds against two of them.
FAMILIES = (1, 2, 11)
POWER = 0.8
REPEATS = 20_000
# Of the second table.
SDS, LUCKS, FOLD_PATIENTS = (0.2, 0.3), (0.0, 0.05), 20
# Of the third: seeds, folds of each and patients of each, of :clinical and :clinical_full; luck of
# folds and seeds where there is no difference, in standard deviations of a patient; and differences
# with the standard deviation, the luck of folds and that of seeds.
SHAPES = ((5, 3, 40), (8, 6, 24))
NO_DIFFERENCE = ((0, 0), (0.15, 0), (0.3, 0), (0.15, 0.15), (0, 0.1), (0, 0.15), (0, 0.2))
DIFFERENT = ((0.05, 0.25, 0.03, 0.0), (0.05, 0.25, 0.03, 0.03))


def _square(*, family, power):
  """The squared sum of both normal quantiles."""
  level = statistics.LEVEL / family
  return (stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)) ** 2


def patients(*, difference, discordance, family=1, power=POWER):
  """Patients that find a difference of accuracy of paired yes-or-no outcomes.

  Args:
    difference: of accuracy, above 0.
    discordance: share of patients in whom exactly one of the two is right, at least `difference`.
    family: comparisons that Holm's correction is over; the strictest level is .05 by it.
    power: the chance to find it.

  Returns:
    A whole number, rounded up.

  Raises:
    ValueError: they cannot be so.
  """
  if not 0 < difference <= discordance <= 1:
    raise ValueError("needs 0 < difference <= discordance <= 1")
  variance = discordance - difference**2
  return math.ceil(_square(family=family, power=power) * variance / difference**2)


def folds(*, difference, sd, luck, fold_patients, family=1, power=POWER):
  """Folds of `fold_patients` patients that find a difference of a share: a whole number.

  Args:
    difference: of the score, above 0.
    sd: standard deviation of a patient's difference within a fold.
    luck: that of a fold's mean difference beyond its patients.
    fold_patients: patients of a fold.
    family: of `patients`, as is `power`.
  """
  level, spread = statistics.LEVEL / family, math.sqrt(sd**2 / fold_patients + luck**2)
  for n in itertools.count(2):
    distance, most = difference / spread * math.sqrt(n), stats.t.ppf(1 - level / 2, n - 1)
    found = stats.nct.sf(most, n - 1, distance) + stats.nct.cdf(-most, n - 1, distance)
    if found >= power:
      return n


def simulated(*, n, difference, discordance, family=1, repeats=REPEATS, seed=0):
  """The share of simulated studies of n patients that find the difference.

  Returns:
    Of the mean paired difference over its standard error, and of McNemar's exact test.
  """
  better, worse = (discordance + difference) / 2, (discordance - difference) / 2
  rng = np.random.default_rng(seed)
  b, c, _ = rng.multinomial(n, (better, worse, 1 - discordance), repeats).T
  level, mean = statistics.LEVEL / family, (b - c) / n
  error = np.sqrt(np.maximum((b + c) / n - mean**2, 1e-12) / n)
  by_mean = np.abs(mean) / error > stats.norm.ppf(1 - level / 2)
  exact = 2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5) < level
  return float(by_mean.mean()), float(exact.mean())


def whole_studies(*, shape, difference, sd, luck, luck_seed, repeats=REPEATS, seed=0):
  """How often whole studies, a seed each, find a difference.

  Args:
    shape: seeds, folds of each and patients of each.
    difference: of the score; 0: how often what is not there is found.
    sd, luck: of `folds`.
    luck_seed: standard deviation of a seed's mean difference beyond its folds.
    repeats: simulated studies.
    seed: of them.

  Returns:
    A dict: `mixed` and `seeds` (the t test of their means), the shares of p below .05; `mixed_holm`
    and `seeds_holm`, below .05 / 2, the strictest of two questions; `df_seeds`, the share in which
    the mixed model has the degrees of freedom of seeds.
  """
  n_seeds, n_folds, n = shape
  total, rng = math.prod(shape), np.random.default_rng(seed)
  square = np.array([sd**2 + n * luck**2 + n_folds * n * luck_seed**2, sd**2 + n * luck**2, sd**2])
  df = np.array([n_seeds - 1, n_seeds * (n_folds - 1), n_seeds * n_folds * (n - 1)])
  sums = np.cumsum(square * rng.chisquare(df, (repeats, 3)), 1)
  mean = difference + math.sqrt(square[0] / total) * rng.standard_normal(repeats)
  # REML pools with the seeds' mean square the larger ones below it: no variance is negative.
  pooled, freedom = sums / np.cumsum(df), np.cumsum(df)
  at, every = pooled.argmax(1), np.arange(repeats)
  found = {"df_seeds": float(np.mean(at == 0))}
  for name, level in (("mixed", at), ("seeds", np.zeros_like(at))):
    t = np.abs(mean) / np.sqrt(pooled[every, level] / total)
    p = 2 * stats.t.sf(t, freedom[level])
    found |= {name: float(np.mean(p < statistics.LEVEL))}
    found |= {f"{name}_holm": float(np.mean(p < statistics.LEVEL / 2))}
  return found


def measure(*, discordance=DISCORDANCE, repeats=REPEATS):
  """The three tables, as lists of dicts."""
  rows = []
  for difference in DIFFERENCES:
    for family in FAMILIES:
      asked = {"difference": difference, "discordance": discordance, "family": family}
      n = patients(**asked)
      by_mean, exact = simulated(n=n, repeats=repeats, **asked)
      rows.append(asked | {"patients": n, "by_mean": by_mean, "exact": exact})
  shared = [
    asked | {"folds": (found := folds(**asked)), "patients": found * FOLD_PATIENTS}
    for difference in DIFFERENCES
    for sd in SDS
    for luck in LUCKS
    for asked in [
      {
        "difference": difference,
        "sd": sd,
        "luck": luck,
        "fold_patients": FOLD_PATIENTS,
        "family": 2,
      }
    ]
  ]
  cases = [(0.0, 1.0, *luck) for luck in NO_DIFFERENCE] + list(DIFFERENT)
  whole = [
    asked | whole_studies(repeats=repeats, **asked)
    for shape in SHAPES
    for case in cases
    for asked in [
      {"shape": shape} | dict(zip(("difference", "sd", "luck", "luck_seed"), case, strict=True))
    ]
  ]
  return {"rows": rows, "folds": shared, "whole_studies": whole}


def text(found):
  """The three tables, as text."""
  header = ["difference", "discordance", "family", "patients", "power, simulated", "McNemar, exact"]
  body = [
    [
      f"{row['difference']:.2f}",
      f"{row['discordance']:.2f}",
      str(row["family"]),
      f"{row['patients']:,}",
      f"{row['by_mean']:.3f}",
      f"{row['exact']:.3f}",
    ]
    for row in found["rows"]
  ]
  lines = [cells.text_table(header, body), ""]
  header = ["difference", "sd", "luck", "patients a fold", "family", "folds", "patients"]
  body = [
    [
      f"{row['difference']:.2f}",
      f"{row['sd']:.2f}",
      f"{row['luck']:.2f}",
      str(row["fold_patients"]),
      str(row["family"]),
      str(row["folds"]),
      f"{row['patients']:,}",
    ]
    for row in found["folds"]
  ]
  lines += [cells.text_table(header, body), ""]
  names = ("mixed", "mixed_holm", "seeds", "seeds_holm", "df_seeds")
  header = ["seeds x folds x patients", "difference", "sd", "luck of folds", "of seeds"]
  header += ["mixed: p < .05", "p < .025", "seeds: p < .05", "p < .025", "mixed: df of seeds"]
  body = [
    [
      " x ".join(map(str, row["shape"])),
      *(f"{row[name]:.2f}" for name in ("difference", "sd", "luck", "luck_seed")),
      *(f"{row[name]:.3f}" for name in names),
    ]
    for row in found["whole_studies"]
  ]
  return "\n".join([*lines, cells.text_table(header, body)])


def main(argv=None):
  """Computes, tries, prints the tables and writes `--out`."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.power",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--discordance", type=float, default=DISCORDANCE)
  parser.add_argument("--repeats", type=positive, default=REPEATS)
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  if not max(DIFFERENCES) <= args.discordance <= 1:
    parser.error(f"--discordance must be from {max(DIFFERENCES)} to 1")
  found = measure(discordance=args.discordance, repeats=args.repeats)
  print(text(found))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
