"""Compares targets over cohorts."""

import json
import pathlib

import numpy as np
from absl import logging

from lus_jax.errors import UserError
from lus_jax.evaluation import statistics
from lus_jax.evaluation.ratio import Ratio
from lus_jax.files import broken_seal
from lus_jax.training import members as members_lib

NULL = "null_studies"
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
# In questions: the mean over all settings, and the threshold that strokes of a setting are mostly
# true from.
ALL, TRUEST = "all", "truest"


def describe(scores, *, higher=True):
  """What one metric was of the members of one family: nothing here is tested.

  Args:
    scores: by threshold, or by name for members without one, one number a seed [n].
    higher: whether higher is better.

  Returns:
    A dict of JSON values: `means` (rows of `member`, `mean`, `interval`) and `best`, the member
    with the best mean.
  """
  sign = 1 if higher else -1
  ratios = {name: _ratio(values) for name, values in scores.items()}
  return {
    "means": [
      {"member": name, "mean": ratio.value(), "interval": _interval(ratio)}
      for name, ratio in ratios.items()
    ],
    "best": max(ratios, key=lambda name: sign * ratios[name].value()),
  }


def parts_of(config, doses):
  """What each question of a study compares.

  Args:
    config: a study's config. A question of `study.questions` is (setting or 'all', member,
      member): is the first better than the second? A member is a threshold, with the weights of
      `loss.weights`, or a name; 'truest' the threshold that strokes of the setting are mostly true
      from, or the next lower one.
    doses: from settings to that dose, where they have one.

  Returns:
    For each question a list of (setting, member, member).

  Raises:
    UserError: a question is none, or cannot be answered.
  """
  found = []
  for question in config.study.questions:
    if not isinstance(question, tuple | list) or len(question) != 3:
      raise _no_question(question, "it has to be (setting, member, member)")
    setting, *pair = question
    settings = config.study.settings if setting == ALL else (setting,)
    if not set(settings) <= set(config.study.settings):
      raise _no_question(question, f"{setting} is no setting of the study, nor '{ALL}'")
    parts = [(one, *(_named(question, one, x, config, doses) for x in pair)) for one in settings]
    if any(a == b for _, a, b in parts):
      raise _no_question(question, "it compares a member with itself")
    found.append(parts)
  return found


def _named(question, setting, name, config, doses):
  if name == TRUEST:
    below = [t for t in config.sweep.thresholds if t <= doses.get(setting, -1)]
    if not below:
      raise _no_question(question, f"{setting} says of no threshold that it is the truest")
    return max(below)
  if isinstance(name, str):
    return name
  if name not in config.sweep.thresholds:
    raise _no_question(question, f"{name} is not in config.sweep.thresholds")
  return name


def _no_question(question, why):
  return UserError(f"config.study.questions: {question}: {why}.")


def ask(parts, scores, *, higher=True):
  """Answers all questions of a study: one family, corrected by Holm.

  Two members are compared by swapping them within cohorts (`statistics.permutation_test`); of
  several settings by the means over the settings of as many cohorts, one of each.

  Args:
    parts: of `parts_of`.
    scores: by (setting, member), one number a seed [n].
    higher: whether higher is better.

  Returns:
    A list of dicts of JSON values: `difference`, `interval`, `p`, `p_holm` and `answer`: 'yes'
    where the first is better and p_holm below .05, 'no' where the second is, or 'undecided'.
  """
  rows = []
  for one in parts:
    pair = [np.mean([scores[setting, ab[i]] for setting, *ab in one], axis=0) for i in (0, 1)]
    a, b = map(_ratio, pair)
    rows.append(_difference(a, b) | {"p": statistics.permutation_test(a, b)})
  corrected = statistics.holm([row["p"] for row in rows]) if rows else []
  for row, p in zip(rows, corrected, strict=True):
    ahead = row["difference"] if higher else -row["difference"]
    row["p_holm"] = p
    row["answer"] = "undecided" if p >= statistics.LEVEL else "yes" if ahead > 0 else "no"
  return rows


def _ratio(values):
  units = tuple(str(i) for i in range(len(values)))
  return Ratio(units, np.asarray(values, np.float64), np.ones(len(units)))


def _interval(ratio):
  found = statistics.interval(ratio)
  return None if found is None else list(found[:2])


def _difference(a, b):
  found = statistics.difference_interval(a, b)
  return {
    "difference": a.value() - b.value(),
    "interval": None if found is None else list(found[:2]),
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


def copies_of(parts):
  """The (setting, member) that questions name, in a fixed order: a null cohort has a copy each."""
  return list(dict.fromkeys((one, x) for part in parts for one, *pair in part for x in pair))


def null_studies(parts, scores):
  """How often questions are answered where all members have one target: each answer is false.

  Studies share nothing: each has cohorts of its own.

  Args:
    parts: of `parts_of`.
    scores: [studies, seeds, copies], of one metric, a copy for each of `copies_of`.

  Returns:
    A dict: `studies`; `studies_with_answers`, of how many any question was answered; `questions`
    that were asked in all of them; and `below_level`: how many had p < .05 before the correction.
  """
  copies = copies_of(parts)
  found = [ask(parts, dict(zip(copies, study.T, strict=True))) for study in scores]
  answered = [any(row["answer"] != "undecided" for row in rows) for rows in found]
  return {
    "studies": len(scores),
    "studies_with_answers": int(np.sum(answered)),
    "questions": len(parts) * len(scores),
    "below_level": sum(row["p"] < statistics.LEVEL for rows in found for row in rows),
  }


def units_of(config):
  """What is trained: (setting, way to standardise, seed), the seed changing slowest."""
  study = config.study
  return [
    (setting, standardise, seed)
    for seed in range(study.seeds)
    for setting in study.settings
    for standardise in study.standardise
  ]


def null_units_of(config):
  """Null cohorts: those of one study after the other."""
  return [(NULL, "none", i) for i in range(config.study.null_studies * config.study.seeds)]


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
    A dict of `questions` (a row each: the question, its `parts` and what `ask` returns), `rows` (a
    row a setting, weights and metric: those and what `describe` returns), `units` (all scores),
    `levels` (ordinal levels beside the separate networks of the same threshold and weights: means
    and difference), `null_studies` (None where not tried), `fit` (Dice of networks and their own
    labels: means by setting and member), `scales` (every way to standardise beside none: a row a
    setting, way, member and metric) and `spread` (the same of `annotator_sd`), `labels` (Dice of
    the label itself against the truth: a row a setting and threshold) and `dose` (see there). All
    but `scales` and `spread` are of confidences as they were painted.
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
        at = {"setting": setting, "weights": weights, "metric": metric}
        rows.append(at | describe(named, higher=higher))
    levels += _levels(objective, views, setting, scores)
  parts = parts_of(config, doses)
  content = {"questions": _questions(config, objective, parts, scores)}
  content |= {"rows": rows, "levels": levels, "units": units, "null_studies": None}
  content["labels"] = _labels(config, units, views)
  content["fit"] = fit_of(config, units, views)
  content["dose"] = dose(rows, content["labels"], doses)
  content |= {"scales": scales(config, units, SCALED), "spread": []}
  if "annotator_sd" in units[0]:
    first = [row for row in units if row["member"] == views[0].name]
    content["spread"] = scales(config, first, ("annotator_sd",))
  if n := config.study.null_studies:
    cohorts = [read_unit(unit_file(directory, *job)) for job in null_units_of(config)]
    table = np.array([[row[config.study.metric] for row in rows] for rows in cohorts])
    table = table.reshape(n, config.study.seeds, -1)
    content["null_studies"] = null_studies(parts, table)
  return content


def _questions(config, objective, parts, scores):
  """The registered questions with their answers."""
  metric, views = config.study.metric, objective.views()[0]
  by_name = families(objective, views)[config.loss.weights] | {
    view.name: view.name for view in views
  }
  mine = {
    (setting, name): scores[setting, by_name[name], metric] for setting, name in copies_of(parts)
  }
  found = ask(parts, mine, higher=METRICS[metric])
  rows = []
  for question, part, row in zip(config.study.questions, parts, found, strict=True):
    setting, a, b = question
    named = [{"setting": one, "member": x, "against": y} for one, x, y in part]
    at = {"setting": setting, "member": a, "against": b, "metric": metric}
    rows.append(at | {"parts": named} | row)
  return rows


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
      ratio = _ratio([row["label_dice"] for row in units if at.items() <= row.items()])
      mean = {"mean": ratio.value(), "interval": _interval(ratio)}
      found.append({"setting": setting, "threshold": threshold, **mean})
  return found


def fit_of(config, units, views):
  """How near networks came to their own labels: means over cohorts."""
  found = []
  for setting in config.study.settings:
    for view in views:
      if view.level != members_lib.WHOLE:
        continue
      at = {"setting": setting, "standardise": "none", "member": view.name}
      rows = [row for row in units if at.items() <= row.items()]
      means = {}
      for key in ("fit_train", "fit_test"):
        # A cohort may show nothing of a label, and units of older versions did not look.
        known = [row[key] for row in rows if row.get(key) is not None]
        means[key] = float(np.mean(known)) if known else None
      found.append({"setting": setting, "member": view.name, **means})
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
        a, b = (_ratio(x[known]) for x in pair)
        rows.append(
          {
            "setting": setting,
            "standardise": method,
            "member": name,
            "metric": metric,
            "mean": a.value(),
            "none": b.value(),
            **_difference(a, b),
            "p": statistics.permutation_test(a, b),
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
      a, b = (_ratio(scores[setting, name, metric]) for name in (view.name, separate))
      found.append(
        {
          "setting": setting,
          "threshold": view.threshold,
          "weights": weights,
          "metric": metric,
          "ordinal": a.value(),
          "separate": b.value(),
          **_difference(a, b),
        }
      )
  return found
