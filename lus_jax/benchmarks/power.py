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


def measure(*, discordance=DISCORDANCE, repeats=REPEATS):
  """Both tables, as lists of dicts."""
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
  return {"rows": rows, "folds": shared}


def text(found):
  """Both tables, as text."""
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
  return "\n".join([*lines, cells.text_table(header, body)])


def main(argv=None):
  """Computes, tries, prints both tables and writes `--out`."""
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
