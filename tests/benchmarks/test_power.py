"""How many patients a difference takes: by hand, by simulation, and with the luck of networks."""

import json

import numpy as np
import pytest
from scipy import stats

from lus_jax.benchmarks import error_rate, power
from lus_jax.evaluation import nested


@pytest.mark.parametrize(
  ("difference", "family", "expected"),
  [(0.1, 1, 228), (0.1, 11, 393), (0.05, 1, 935), (0.05, 11, 1_611)],
)
def test_patients_of_a_difference_of_accuracy(difference, family, expected):
  found = power.patients(difference=difference, discordance=0.3, family=family)
  assert found == expected
  # (1.95996 + .84162)^2 = 7.8489, times 29 is 227.6; (2.83760 + .84162)^2 = 13.5366.
  square = {1: 7.84888, 11: 13.53665}[family]
  assert found == np.ceil(square * (0.3 - difference**2) / difference**2)


def test_that_many_find_it_and_fewer_do_not():
  options = {"difference": 0.1, "discordance": 0.3, "family": 1}
  by_mean, exact = power.simulated(n=228, **options)
  assert by_mean == pytest.approx(0.8, abs=0.015)
  assert 0.74 < exact < by_mean
  assert power.simulated(n=114, **options)[0] < 0.6
  # Where there is no difference, the level.
  assert power.simulated(n=228, difference=0.0, discordance=0.3)[0] == pytest.approx(0.05, abs=0.01)


def test_what_cannot_be_is_refused():
  for difference, discordance in ((0.0, 0.3), (0.4, 0.3), (0.1, 1.2)):
    with pytest.raises(ValueError, match="difference"):
      power.patients(difference=difference, discordance=discordance)


def test_folds_share_the_luck_of_their_networks():
  asked = {"difference": 0.05, "sd": 0.3, "luck": 0.05, "fold_patients": 20, "family": 2}
  n = power.folds(**asked)
  rng = np.random.default_rng(0)
  of_fold = rng.normal(0.05, np.sqrt(0.05**2 + 0.3**2 / 20), (20_000, n))
  found = stats.ttest_1samp(of_fold, 0, axis=1).pvalue < 0.025
  assert found.mean() == pytest.approx(0.8, abs=0.03)
  # Twenty times the patients a fold do not take a twentieth of the folds.
  assert power.folds(**asked | {"fold_patients": 400}) > n / 3


def test_the_command_prints_both_tables(tmp_path, capsys):
  power.main(["--repeats", "200", "--out", f"{tmp_path}/power.json"])
  printed = capsys.readouterr().out
  assert {"228", "393", "935", "1,611"} <= set(printed.split())
  found = json.loads((tmp_path / "power.json").read_text())
  assert len(found["rows"]) == 6 and len(found["folds"]) == 8
  with pytest.raises(SystemExit):
    power.main(["--discordance", "0.05"])


def test_luck_of_folds_and_seeds_is_no_difference(monkeypatch):
  monkeypatch.setattr(nested, "RESAMPLES", 100)
  options = {"shape": (4, 2, 10), "repeats": 40}
  lucky = error_rate.measure_nested(luck=(0.5, 0.5), difference=0.0, **options)
  # Patients alone take luck for a difference, every other time or so; of 40 studies of the mixed
  # model more than 7 would be found at .05 once in 1,000 times.
  assert lucky["patients"] > 0.3 and lucky["mixed"] <= 7 / 40
  assert lucky["mixed_covered"] >= 33 / 40
  there = error_rate.measure_nested(luck=(0.0, 0.0), difference=1.0, **options | {"repeats": 10})
  assert there["mixed"] >= 0.9 and there["patients"] == 1.0
  lines = error_rate.nested_table([lucky, there]).splitlines()
  assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
