"""Patients in folds in seeds: the mixed model against its closed form, and how often it errs."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from lus_jax.errors import UserError
from lus_jax.evaluation import nested


def draw(seed, *, seeds=8, folds=3, patients=12, luck=0.0, cohort=0.0, difference=0.0):
  """[seeds, folds, patients] of a balanced design, and whose each is."""
  rng = np.random.default_rng(seed)
  values = difference + 0.3 * rng.normal(size=(seeds, folds, patients))
  values += luck * rng.normal(size=(seeds, folds, 1)) + cohort * rng.normal(size=(seeds, 1, 1))
  s, f, _ = np.indices(values.shape)
  return values, s.ravel(), f.ravel()


def closed_form(values):
  """Standard error and degrees of freedom of REML in a balanced nested design.

  Its variances are those of the analysis of variance, mean squares that would make one of them
  negative being pooled with those below.
  """
  seeds, folds, patients = values.shape
  of_fold = values.mean(2)
  of_seed = of_fold.mean(1)
  squares = [
    folds * patients * np.sum((of_seed - values.mean()) ** 2),
    patients * np.sum((of_fold - of_seed[:, None]) ** 2),
    np.sum((values - of_fold[..., None]) ** 2),
  ]
  pooled = []
  for one in zip(squares, (seeds - 1, seeds * (folds - 1), seeds * folds * (patients - 1))):  # noqa: B905
    pooled.append(np.array(one))
    while len(pooled) > 1 and pooled[-2][0] / pooled[-2][1] < pooled[-1][0] / pooled[-1][1]:
      last = pooled.pop()
      pooled[-1] = pooled[-1] + last
  square, df = pooled[0]
  return np.sqrt(square / df / values.size), df


# Seeds of draws in which: both variances are above 0; none is; that of the seeds is 0.
CASES = {(): {"seed": 4, "luck": 0.15, "cohort": 0.15}, ("seed", "fold"): {"seed": 1}}
CASES[("seed",)] = {"seed": 8, "luck": 0.2}


@pytest.mark.parametrize("without", CASES)
def test_a_balanced_design_has_the_closed_form_of_the_analysis_of_variance(without):
  values, seeds, folds = draw(**CASES[without], difference=0.05)
  found = nested.mixed(values.ravel(), seeds, folds)
  se, df = closed_form(values)
  assert found["without"] == list(without)
  assert found["mean"] == pytest.approx(values.mean())
  assert found["se"] == pytest.approx(se, rel=2e-3)
  assert found["df"] == df
  t = values.mean() / se
  assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), df), rel=2e-2)
  half = stats.t.ppf(0.975, df) * se
  assert found["interval"] == pytest.approx([values.mean() - half, values.mean() + half], rel=1e-2)


def test_an_unbalanced_design_and_names_of_folds_that_repeat():
  values, seeds, folds = draw(2, luck=0.2, cohort=0.2)
  kept = np.random.default_rng(0).random(values.size) < 0.8
  flat = values.ravel()[kept]
  found = nested.mixed(flat, seeds[kept], folds[kept])
  # Folds are those of their seed, whatever they are called, and seeds and rows come in any order.
  order = np.random.default_rng(1).permutation(len(flat))
  names = np.array([f"{9 - s}" for s in seeds[kept]])[order]
  other = nested.mixed(flat[order], names, (folds[kept] + 3 * seeds[kept])[order])
  for name in ("mean", "se", "p", "sd_seed", "sd_fold", "sd_patient"):
    assert other[name] == pytest.approx(found[name], rel=5e-3), name
  # Generalised least squares with those variances, by the whole covariance.
  of_seed, of_fold = seeds[kept], (folds + 3 * seeds)[kept]
  covariance = found["sd_patient"] ** 2 * np.eye(len(flat))
  for name, unit in (("sd_seed", of_seed), ("sd_fold", of_fold)):
    covariance += found[name] ** 2 * (unit[:, None] == unit)
  weight = np.linalg.solve(covariance, np.ones(len(flat)))
  assert found["mean"] == pytest.approx(weight @ flat / weight.sum(), rel=1e-4)
  assert found["se"] == pytest.approx(weight.sum() ** -0.5, rel=1e-4)


def test_where_nothing_varies_nothing_is_fitted():
  seeds, folds = np.repeat([0, 1], 6), np.tile([0, 1, 2], 4)
  for mean, p in ((0.0, 1.0), (0.25, 0.0)):
    found = nested.mixed(np.full(12, mean), seeds, folds)
    assert (found["mean"], found["se"], found["p"]) == (mean, 0.0, p)
    assert found["without"] == ["seed", "fold"]
  with pytest.raises(ValueError, match="two seeds"):
    nested.mixed(np.arange(4.0), np.zeros(4), np.arange(4))


def test_what_no_model_can_be_fitted_to_is_tested_by_the_means_of_seeds(monkeypatch):
  values, seeds, folds = draw(4, seeds=4, folds=2, patients=5, cohort=0.5)

  def found_in(values):
    found = nested.mixed(values.ravel(), seeds, folds)
    expected = stats.ttest_1samp(values.mean((1, 2)), 0)
    assert found["without"] == ["model"] and found["df"] == 3
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(list(expected.confidence_interval()))
    assert found["sd_seed"] is found["sd_fold"] is found["sd_patient"] is None

  rng = np.random.default_rng(1)
  for shape in ((4, 2, 1), (4, 1, 1)):  # patients of a fold do not differ; those of a seed
    found_in(0.2 + rng.normal(size=shape) + np.zeros_like(values))
  # A search that does not end.
  fit = MixedLM.fit

  def unfinished(*args, **options):
    found = fit(*args, **options)
    found.converged = False
    return found

  monkeypatch.setattr(MixedLM, "fit", unfinished)
  found_in(values)


def test_seeds_that_do_not_differ():
  values, seeds = np.tile([-0.25, 0.25], 3), np.repeat([0, 1, 2], 2)
  assert nested.of_seeds(values, seeds)["p"] == 1.0
  assert nested.of_seeds(values + 0.5, seeds)["p"] == 0.0


def test_the_bootstrap_has_the_spread_of_its_clusters():
  values, seeds, folds = draw(3, seeds=10, folds=4, patients=30, luck=0.1)
  found = nested.bootstrap(values.ravel(), seeds, folds)
  assert found["mean"] == pytest.approx(values.mean())
  # Drawing F folds of a seed gives (F - 1) / F of their variance, drawing patients adds theirs.
  of_fold = values.mean(2)
  within = np.mean([x.var() / x.size for x in values.reshape(-1, 30)]) / 40
  between = np.mean(of_fold.var(1)) / 40
  half = 1.96 * np.sqrt(between + within)
  low, high = found["interval"]
  assert (high - low) / 2 == pytest.approx(half, rel=0.05)
  assert nested.bootstrap(values.ravel() + 1, seeds, folds)["p"] == pytest.approx(2 / 10_001)
  # One seed after the other, each of its own folds.
  again = nested.bootstrap(values.ravel(), seeds, folds)
  assert again == found


def test_a_difference_is_found_and_luck_alone_is_not():
  # (The error rate itself: python -m lus_jax.benchmarks.error_rate --nested.)
  values, seeds, folds = draw(11, seeds=6, luck=0.05, difference=0.15)
  assert nested.mixed(values.ravel(), seeds, folds)["p"] < 0.001
  # What patients alone would call clear, one lucky fold in each of few seeds does not show.
  lucky, seeds, folds = draw(12, seeds=3, folds=2, patients=60, luck=0.0)
  lucky[:, 0] += np.array([0.5, 0.45, 0.05])[:, None]
  lucky[:, 1] -= 0.12
  plain = stats.ttest_1samp(lucky.ravel(), 0).pvalue
  assert plain < 0.05 < nested.mixed(lucky.ravel(), seeds, folds)["p"]


def test_without_statsmodels_one_line_says_so(monkeypatch):
  nested.require()
  monkeypatch.setattr(nested.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"needs statsmodels.*pip install") as raised:
    nested.require()
  assert "\n" not in str(raised.value)
