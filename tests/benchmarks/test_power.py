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


def test_whole_studies_are_tested_as_the_clinic_tests_them():
  asked = {"shape": (4, 2, 6), "difference": 0.3, "sd": 1.0, "luck": 0.3, "luck_seed": 0.3}
  found = power.whole_studies(**asked)
  # The same by drawing every patient, by the model itself, in as many as take a moment.
  rng, p = np.random.default_rng(5), []
  for _ in range(60):
    drawn = error_rate.draw_nested(rng, (4, 2, 6), luck=(0.3, 0.3), difference=0.3)
    one = nested.mixed(*drawn)
    p.append((one["p"], nested.of_seeds(*drawn[:2])["p"], one["df"] == 3))
  expected = np.mean(np.array(p) < [0.05, 0.05, 2], axis=0)
  expected[2] = np.mean([row[2] for row in p])
  for name, share in zip(("mixed", "seeds", "df_seeds"), expected, strict=True):
    assert found[name] == pytest.approx(share, abs=0.2), name


def test_seeds_that_differ_take_power_and_what_is_not_there_is_found_once_in_20():
  asked = {"shape": (5, 3, 40), "sd": 0.25, "luck": 0.03}
  alike = power.whole_studies(difference=0.05, luck_seed=0.0, **asked)
  differing = power.whole_studies(difference=0.05, luck_seed=0.03, **asked)
  # Of one level less there is less to go by, even where seeds do not differ.
  assert alike["mixed_holm"] < 0.72 and 0.4 < alike["df_seeds"] < 0.46
  assert differing["mixed_holm"] < 0.42
  for luck_seed in (0.0, 0.03):
    none = power.whole_studies(difference=0.0, luck_seed=luck_seed, **asked)
    assert none["seeds"] == pytest.approx(0.05, abs=0.006)
    assert none["seeds_holm"] == pytest.approx(0.025, abs=0.005)
    assert none["mixed"] < 0.056


def test_the_command_prints_its_tables(tmp_path, capsys):
  power.main(["--repeats", "200", "--out", f"{tmp_path}/power.json"])
  printed = capsys.readouterr().out
  assert {"228", "393", "935", "1,611"} <= set(printed.split())
  found = json.loads((tmp_path / "power.json").read_text())
  assert len(found["rows"]) == 6 and len(found["folds"]) == 8
  assert len(found["whole_studies"]) == printed.count("5 x 3 x 40") + printed.count("8 x 6 x 24")
  with pytest.raises(SystemExit):
    power.main(["--discordance", "0.05"])


def test_nested_refuses_what_it_would_ignore(capsys):
  for option in ("--folds", "--patients"):
    with pytest.raises(SystemExit):
      error_rate.main(["--nested", option, "6"])
    assert "--nested has folds and patients of its own" in capsys.readouterr().err


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
