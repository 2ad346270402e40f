"""A mean of patients who are nested in folds, which are nested in seeds: is it above 0?

A fold's patients share the luck of the networks that tested them, and the folds of a seed share
their cohort and their initial weights. `mixed` gives both a random effect; `bootstrap` draws both
anew. `python -m lus_jax.benchmarks.error_rate --nested` measures how often each finds what
is not there.
"""

import importlib.util
import warnings

import numpy as np
from scipy import stats

from lus_jax.errors import UserError
from lus_jax.evaluation import statistics

RESAMPLES = 10_000
# A variance below this share of the patients' is none: the fit then ends at its bound, 0, from
# which it is told apart by rounding alone.
_NONE = 1e-4
# Of `mixed` where no model can be fitted.
_NO_MODEL = {f"sd_{name}": None for name in ("seed", "fold", "patient")} | {"without": ["model"]}


def require():
  """Refuses to begin what could not be analysed.

  Raises:
    UserError: statsmodels is not installed.
  """
  if importlib.util.find_spec("statsmodels") is None:
    raise UserError(
      "the analysis by a mixed model needs statsmodels, which is not installed: "
      "pip install -e '.[study]' (or pip install statsmodels)."
    )


def mixed(values, seeds, folds):
  """The mean by a mixed model: random effects of the seed and of the fold within the seed, REML.

  Where a variance comes out as 0 the model is singular: it is fitted again without that effect, and
  `without` names it. The t distribution has the degrees of freedom of the highest level whose
  variance is left: its units (seeds, folds, or patients) less one, as the analysis of variance of a
  balanced design has. What the model cannot be fitted to (patients of a fold who do not differ, a
  search that does not end) is tested by `of_seeds`, and `without` names the 'model'.

  Args:
    values: [n] of the patients, as paired differences.
    seeds: [n] whose they are.
    folds: [n] likewise; folds of two seeds may have the same name.

  Returns:
    A dict of JSON values: `mean`, `se`, `df`, `interval` (95 %), `p` (two-sided), the standard
    deviations `sd_seed`, `sd_fold` and `sd_patient` (None without the model), and `without`, the
    effects left out.

  Raises:
    ValueError: fewer than two seeds, or than three patients.
  """
  values, seed = np.asarray(values, np.float64), np.unique(seeds, return_inverse=True)[1]
  named = np.stack([seed, np.unique(folds, return_inverse=True)[1]])
  fold = np.unique(named, axis=1, return_inverse=True)[1].ravel()
  if seed.max(initial=0) < 1 or len(values) < 3:
    raise ValueError("a mixed model needs at least two seeds and three patients")
  if np.ptp(values) == 0:
    # Nothing varies: no model can be fitted, and none is needed.
    mean = float(values[0])
    return {
      "mean": mean,
      "se": 0.0,
      "df": len(values) - 1,
      "interval": [mean, mean],
      "p": 1.0 if mean == 0 else 0.0,
      "sd_seed": 0.0,
      "sd_fold": 0.0,
      "sd_patient": 0.0,
      "without": ["seed", "fold"],
    }
  # One patient a fold: their variances cannot be told apart.
  effects = [
    name for name, unit in (("seed", seed), ("fold", fold)) if unit.max() + 1 < len(values)
  ]
  while True:
    try:
      mean, se, variances, left, converged = _fit(values, seed, fold, effects)
    except np.linalg.LinAlgError:
      converged = se = left = np.nan
    if not (np.isfinite(se) and se > 0 and left > 0):
      return of_seeds(values, seed) | _NO_MODEL
    # The smaller of several first: without it the other one may have a variance.
    none = [name for name in effects if variances[name] < _NONE * left]
    if not none:
      break
    effects.remove(min(none, key=variances.get))
  if not converged:
    return of_seeds(values, seed) | _NO_MODEL
  levels = {"seed": seed.max() + 1, "fold": fold.max() + 1}
  df = int(next((levels[name] for name in ("seed", "fold") if name in effects), len(values))) - 1
  half = float(stats.t.ppf(1 - statistics.LEVEL / 2, df)) * se
  return {
    "mean": mean,
    "se": se,
    "df": df,
    "interval": [mean - half, mean + half],
    "p": float(2 * stats.t.sf(abs(mean) / se, df)),
    **{f"sd_{name}": float(np.sqrt(variances.get(name, 0.0))) for name in ("seed", "fold")},
    "sd_patient": float(np.sqrt(left)),
    "without": [name for name in ("seed", "fold") if name not in effects],
  }


def of_seeds(values, seeds):
  """The mean of the means of seeds by a t test over them, which asks nothing of a model.

  Args: as for `mixed`.

  Returns:
    A dict: `mean`, `se`, `df`, `interval` (95 %) and `p` (two-sided).
  """
  values, seeds = np.asarray(values, np.float64), np.asarray(seeds)
  means = np.array([values[seeds == one].mean() for one in np.unique(seeds)])
  mean, df = float(means.mean()), len(means) - 1
  se = float(means.std(ddof=1) / np.sqrt(len(means)))
  half = float(stats.t.ppf(1 - statistics.LEVEL / 2, df)) * se
  p = float(2 * stats.t.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0)
  return {"mean": mean, "se": se, "df": df, "interval": [mean - half, mean + half], "p": p}


def _fit(values, seed, fold, effects):
  """Mean, its standard error, the variances of `effects`, the patients', and if it converged."""
  if not effects:
    return (
      float(values.mean()),
      float(values.std(ddof=1) / np.sqrt(len(values))),
      {},
      float(values.var(ddof=1)),
      True,
    )
  # Heavy to import, and training needs none of it.
  import pandas
  from statsmodels.regression.mixed_linear_model import MixedLM
  from statsmodels.tools.sm_exceptions import ConvergenceWarning

  # Of a few seeds MixedLM sees its groups as independent: with folds alone they are the groups.
  groups = seed if "seed" in effects else fold
  # In units of the patients' spread, in which the search for the maximum is well scaled.
  scale = values.std(ddof=1)
  options = {"vc_formula": {"fold": "0 + C(fold)"}} if len(effects) == 2 else {}
  model = MixedLM.from_formula(
    "y ~ 1",
    pandas.DataFrame({"y": values / scale, "fold": fold}),
    groups=groups,
    re_formula="1",
    **options,
  )
  likelihood = model.loglike

  def guarded(*args, **kwargs):
    try:
      return likelihood(*args, **kwargs)
    except np.linalg.LinAlgError:  # variances so large that a seed and its folds are one
      return -np.inf

  model.loglike = guarded
  with warnings.catch_warnings():
    # Of variances at their bound: those are looked at here.
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)
    warnings.simplefilter("ignore", UserWarning)
    found = model.fit(reml=True, method="nm")
    mean, se = (float(x.iloc[0] * scale) for x in (found.fe_params, found.bse_fe))
  unit = scale**2
  variances = {effects[0]: float(np.asarray(found.cov_re)[0, 0]) * unit}
  if len(effects) == 2:
    variances["fold"] = float(found.vcomp[0]) * unit
  return mean, se, variances, float(found.scale) * unit, bool(found.converged)


def bootstrap(values, seeds, folds, *, seed=0):
  """The mean with a cluster bootstrap: folds within their seed, then patients within their fold.

  Seeds are kept, so that it says nothing of how seeds differ beyond their folds.

  Args: as for `mixed`; `seed` is that of the draws.

  Returns:
    A dict: `mean`, `interval` (95 %, percentiles of 10,000), and `p`: twice the smaller share of
    means on one side of 0, at least 2 / 10,001.
  """
  values, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
  seeds, folds = np.asarray(seeds), np.asarray(folds)
  totals, counts = np.zeros((2, RESAMPLES))
  for one in np.unique(seeds):
    of_seed = [values[(seeds == one) & (folds == f)] for f in np.unique(folds[seeds == one])]
    # How often each fold is drawn; each of these is drawn from anew.
    for times, patients in zip(
      rng.multinomial(len(of_seed), [1 / len(of_seed)] * len(of_seed), RESAMPLES).T,
      of_seed,
      strict=True,
    ):
      n = len(patients)
      drawn = rng.multinomial(times * n, [1 / n] * n)
      totals += drawn @ patients
      counts += times * n
  means = totals / counts
  low, high, _ = statistics.percentiles(means)
  beyond = min(np.sum(means <= 0), np.sum(means >= 0))
  return {
    "mean": float(values.mean()),
    "interval": [low, high],
    "p": float(min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))),
  }
