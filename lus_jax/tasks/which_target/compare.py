"""Compares targets over cohorts."""

import json
import pathlib

import numpy as np
from absl import logging

from lus_jax.evaluation import statistics
from lus_jax.evaluation.ratio import Ratio
from lus_jax.files import broken_seal
from lus_jax.training import members as members_lib

NULL = "null_repeats"
# Scores of a view against the truth, and whether higher is better.
METRICS = {
  "average_precision": True,
  "dice": True,
  "dice_half": True,
  "ece": False,
  "brier": False,
}
# What is compared of the ways to standardise experts, and by dose.
SCALED = ("average_precision", "dice")


def compare(scores, *, higher=True):
  """What one metric says of the members of one family over all seeds.

  Every member is compared with "above 0" and with 50 %, each pair once, by swapping the two within
  seeds (`statistics.permutation_test`), corrected by Holm over the family. A winner is claimed
  where the best mean beats both (the other one, if it is one of them). The contrast is the pair of
  the references, "above 0" less 50 %: what faint strokes bring (None where either was not trained).

  Args:
    scores: by threshold, or by name for members without one, one number a seed [n].
    higher: whether higher is better.

  Returns:
    A dict of JSON values: `means` (rows of `member`, `mean`, `interval`, `best`), `comparisons`
    (rows of `member`, `against`, `difference`, `interval`, `p`, `p_holm`), `winner` (or None) and
    `contrast` (`difference`, `interval`, `p`).
  """
  units = tuple(str(i) for i in range(len(next(iter(scores.values())))))
  sign = 1 if higher else -1

  def ratio(values):
    return Ratio(units, np.asarray(values, np.float64), np.ones(len(units)))

  ratios = {name: ratio(values) for name, values in scores.items()}
  references = [t for t in statistics.REFERENCES if t in ratios]
  pairs = []
  for other in references:
    pairs += [(a, other) for a in ratios if a != other and (other, a) not in pairs]
  rows = []
  for a, b in pairs:
    rows.append(_difference(ratios[a], ratios[b]) | {"member": a, "against": b})
  corrected = statistics.holm([row["p"] for row in rows]) if rows else []
  for row, p in zip(rows, corrected, strict=True):
    row["p_holm"] = p
  means = {name: float(np.mean(values)) for name, values in scores.items()}
  best = max(means, key=lambda name: sign * means[name])

  def beats(a, b):
    for row in rows:
      if {row["member"], row["against"]} == {a, b}:
        ahead = row["difference"] * sign * (1 if row["member"] == a else -1)
        return ahead > 0 and row["p_holm"] < statistics.LEVEL
    return False

  others = [t for t in references if t != best]
  winner = best if others and all(beats(best, other) for other in others) else None
  contrast = None
  if len(references) == len(statistics.REFERENCES):
    (row,) = (row for row in rows if {row["member"], row["against"]} == set(references))
    contrast = _difference(*(ratios[t] for t in statistics.REFERENCES))
    contrast["p"] = row["p_holm"]
  return {
    "means": [
      {"member": name, "mean": means[name], "interval": _interval(ratios[name])} for name in scores
    ],
    "best": best,
    "winner": winner,
    "comparisons": rows,
    "contrast": contrast,
  }


def _interval(ratio):
  found = statistics.interval(ratio)
  return None if found is None else list(found[:2])


def _difference(a, b):
  found = statistics.difference_interval(a, b)
  return {
    "difference": a.value() - b.value(),
    "interval": None if found is None else list(found[:2]),
    "p": statistics.permutation_test(a, b),
  }


def families(objective, views):
  """The members that are compared with each other: by the weights of the thresholds.

  Returns:
    A dict from 'paper' and 'ones' (those that there are) to a dict from threshold, or name, to the
    name of the view; members without a threshold are in both. Thresholds with another loss than the
    config's go by their names.
  """
  found, plain = {}, objective.members[0].loss
  for weights in ("paper", "ones"):
    own = {}
    for view in views:
      member = objective.members[view.member]
      if view.level == members_lib.WHOLE and member.target == "threshold":
        if member.weights == weights:
          own[member.threshold if member.loss == plain else view.name] = view.name
      elif view.level == members_lib.WHOLE:
        own[view.name] = view.name
    if any(not isinstance(name, str) for name in own):
      found[weights] = own
  return found


def null_repeats(scores, *, repeats, seeds):
  """How often a winner is claimed where all members have one target.

  Each repeat draws `seeds` cohorts, gives the copies of each the thresholds' names at random, and
  decides as `compare` does.

  Args:
    scores: [cohorts, copies], of one metric.
    repeats: how many.
    seeds: units a repeat has.

  Returns:
    A dict: `repeats`, `winners` and `contrasts` (how many claimed either).
  """
  thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)[: scores.shape[1]]
  r = np.random.default_rng(0)
  winners = contrasts = 0
  for _ in range(repeats):
    chosen = scores[r.permutation(len(scores))[:seeds]]
    named = r.permuted(chosen, axis=1)
    found = compare(dict(zip(thresholds, named.T, strict=True)))
    winners += found["winner"] is not None
    contrasts += found["contrast"]["p"] < statistics.LEVEL
  return {"repeats": repeats, "winners": winners, "contrasts": contrasts}


def units_of(config):
  """What is trained: (setting, way to standardise, seed), the seed changing slowest."""
  study = config.study
  return [
    (setting, standardise, seed)
    for seed in range(study.seeds)
    for setting in study.settings
    for standardise in study.standardise
  ]


def unit_file(directory, setting, standardise, seed):
  """Where a finished unit's scores are."""
  parts = (setting, *(() if standardise == "none" else (standardise,)), str(seed))
  return pathlib.Path(directory) / f"{'_'.join(parts)}.json"


def read_unit(file):
  """The scores of a finished unit; None where it is not there, or damaged (with a warning)."""
  try:
    content = json.loads(file.read_text())
    if isinstance(content, list):  # of an older version
      return content
    if broken_seal(content):
      raise ValueError("another checksum")
    return content["rows"]
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as error:
    logging.warning("%s is damaged (%s); it is done again.", file, error)
    return None


def summarize(config, objective, directory, doses):
  """Everything `results/which_target.json` holds beside its head.

  Args:
    config: a study's config.
    objective: its `Objective`.
    directory: of the finished units.
    doses: as `dose` takes them.

  Returns:
    A dict of `rows` (a row a setting, weights and metric: those and what `compare` returns),
    `units` (all scores), `levels` (ordinal levels beside the separate networks of the same
    threshold and weights: means and difference), `null_repeats` (by metric), `scales` (every way
    to standardise beside none: a row a setting, way, member and metric) and `spread` (the same of
    `annotator_sd`), `labels` (Dice of the label itself against the truth: a row a setting and
    threshold) and `dose` (see there). All but `scales` and `spread` are of confidences as they were
    painted.
  """
  units, views = [], objective.views()[0]
  for setting, standardise, seed in units_of(config):
    for row in read_unit(unit_file(directory, setting, standardise, seed)):
      units.append({"setting": setting, "standardise": standardise, "seed": seed, **row})
  scores = {}
  for row in units:
    for metric in METRICS:
      if row["standardise"] == "none":
        scores.setdefault((row["setting"], row["member"], metric), []).append(row[metric])
  rows, levels = [], []
  for setting in config.study.settings:
    for weights, family in families(objective, views).items():
      for metric, higher in METRICS.items():
        named = {name: scores[setting, view, metric] for name, view in family.items()}
        rows.append(
          {
            "setting": setting,
            "weights": weights,
            "metric": metric,
            **compare(named, higher=higher),
          }
        )
    levels += _levels(objective, views, setting, scores)
  content = {"rows": rows, "levels": levels, "units": units, "null_repeats": {}}
  content["labels"] = _labels(config, units, views)
  content["dose"] = dose(rows, content["labels"], doses)
  content |= {"scales": scales(config, units, SCALED), "spread": []}
  if "annotator_sd" in units[0]:
    first = [row for row in units if row["member"] == views[0].name]
    content["spread"] = scales(config, first, ("annotator_sd",))
  if config.study.null_repeats:
    cohorts = [
      read_unit(unit_file(directory, NULL, "none", seed))
      for seed in range(config.study.null_cohorts)
    ]
    for metric in ("average_precision", "dice"):
      table = np.array([[row[metric] for row in rows] for rows in cohorts])
      content["null_repeats"][metric] = null_repeats(
        table, repeats=config.study.null_repeats, seeds=config.study.seeds
      )
  return content


def overtakes(doses, stricter, laxer):
  """The dose from which on one mean is above another; None where it is not at the highest dose.

  Args:
    doses: rising.
    stricter: means by dose.
    laxer: of the other, likewise.

  Returns:
    A number between two doses, by a straight line through their differences; the lowest dose where
    it is above at all of them.
  """
  ahead = np.asarray(stricter, np.float64) - np.asarray(laxer, np.float64)
  if ahead[-1] <= 0:
    return None
  if (ahead > 0).all():
    return float(doses[0])
  last = int(np.flatnonzero(ahead <= 0)[-1])
  part = ahead[last] / (ahead[last] - ahead[last + 1])
  return float(doses[last] + part * (doses[last + 1] - doses[last]))


def answer(of, metric, doses, means):
  """How one score of all thresholds answers to the dose.

  Args:
    of: who answers: 'label', or networks by their weights.
    metric: 'dice' or 'average_precision'.
    doses: rising: T of the settings `true_from_T`.
    means: by threshold, one number a dose.

  Returns:
    A dict of JSON values: `of`, `metric`, `doses`, `thresholds` (falling), `means` (a row each),
    `best` (the threshold with the best mean, by dose; of equal ones the lowest) and `overtakes`
    (rows of `threshold`, `against`, `dose`: `overtakes` for "above 0" and 50 %, and all stricter).
  """
  thresholds = sorted(means, reverse=True)
  table = np.array([means[t] for t in thresholds])
  # The last of equal ones is the lowest.
  best = len(thresholds) - 1 - table[::-1].argmax(axis=0)
  pairs = [(a, b) for b in statistics.REFERENCES if b in means for a in thresholds if a > b]
  # Nothing is painted below the lowest level: some thresholds are the same label.
  pairs = [(a, b) for a, b in pairs if list(means[a]) != list(means[b])]
  return {
    "of": of,
    "metric": metric,
    "doses": list(doses),
    "thresholds": thresholds,
    "means": table.tolist(),
    "best": [thresholds[i] for i in best],
    "overtakes": [
      {"threshold": a, "against": b, "dose": overtakes(doses, means[a], means[b])} for a, b in pairs
    ],
  }


def dose(rows, labels, doses):
  """The `answer` of labels and networks; none where fewer than two doses were tried.

  Args:
    rows: of `summarize`.
    labels: of `summarize`.
    doses: from settings to their dose, where they have one.
  """
  settings = sorted(doses, key=doses.get)
  if len(settings) < 2:
    return []
  of_labels = {}
  for setting in settings:
    for row in labels:
      if row["setting"] == setting:
        of_labels.setdefault(row["threshold"], []).append(row["mean"])
  found = [answer("label", "dice", sorted(doses.values()), of_labels)]
  kinds = dict.fromkeys((row["weights"], row["metric"]) for row in rows)
  for weights, metric in kinds:
    if metric not in SCALED:
      continue
    means = {}
    for setting in settings:
      (row,) = [
        row
        for row in rows
        if (row["setting"], row["weights"], row["metric"]) == (setting, weights, metric)
      ]
      for one in row["means"]:
        if not isinstance(one["member"], str):
          means.setdefault(one["member"], []).append(one["mean"])
    if means:
      found.append(answer(weights, metric, sorted(doses.values()), means))
  return found


def _labels(config, units, views):
  """How true the labels are that members learn: no network stands between."""
  found = []
  thresholds = {
    view.threshold: view.name
    for view in reversed(views)
    if view.threshold is not None and view.level == members_lib.WHOLE
  }
  for setting in config.study.settings:
    for threshold in sorted(thresholds, reverse=True):
      at = {"setting": setting, "standardise": "none", "member": thresholds[threshold]}
      values = [row["label_dice"] for row in units if at.items() <= row.items()]
      ratio = Ratio(tuple(map(str, range(len(values)))), np.array(values), np.ones(len(values)))
      mean = {"mean": ratio.value(), "interval": _interval(ratio)}
      found.append({"setting": setting, "threshold": threshold, **mean})
  return found


def scales(config, units, metrics):
  """Every way to standardise beside none, over the same cohorts; Holm within setting and metric."""
  found = []
  for setting in config.study.settings:
    for metric in metrics:
      values = {}
      for row in units:
        if row["setting"] == setting:
          values.setdefault((row["member"], row["standardise"]), []).append(row[metric])
      rows = []
      for (name, method), mine in values.items():
        if method == "none":
          continue
        pair = np.array([mine, values[name, "none"]], np.float64)
        # A cohort without a pixel that all experts painted has no spread.
        known = np.isfinite(pair).all(axis=0)
        if not known.any():
          continue
        cohorts = tuple(map(str, np.flatnonzero(known)))
        a, b = (Ratio(cohorts, x[known], np.ones(len(cohorts))) for x in pair)
        rows.append(
          {
            "setting": setting,
            "standardise": method,
            "member": name,
            "metric": metric,
            "mean": a.value(),
            "none": b.value(),
            **_difference(a, b),
          }
        )
      corrected = statistics.holm([row["p"] for row in rows]) if rows else []
      found += [row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)]
  return found


def _levels(objective, views, setting, scores):
  """Every level of an ordinal member beside the separate network of its threshold and weights."""
  found, members = [], objective.members
  for view in views:
    if view.level == members_lib.WHOLE:
      continue
    weights = members[view.member].weights
    separate = next(
      (
        other.name
        for other in views
        if members[other.member].target == "threshold"
        and members[other.member].weights == weights
        and other.threshold == view.threshold
      ),
      None,
    )
    if separate is None:
      continue
    for metric in METRICS:
      a, b = (np.asarray(scores[setting, name, metric]) for name in (view.name, separate))
      units = tuple(str(i) for i in range(len(a)))
      pair = [Ratio(units, x, np.ones(len(units))) for x in (a, b)]
      found.append(
        {
          "setting": setting,
          "threshold": view.threshold,
          "weights": weights,
          "metric": metric,
          "ordinal": float(a.mean()),
          "separate": float(b.mean()),
          **_difference(*pair),
        }
      )
  return found
