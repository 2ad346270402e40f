"""What all seeds together say: paired differences of patients, by several analyses."""

import numpy as np

from lus_jax.evaluation import nested, statistics

# Sources that are the controls: true masks have to help over none, or the study could see nothing.
CONTROLS = POSITIVE, NEGATIVE = "true", "none"
# Analyses that may answer: the mixed model, and a t test of the seeds' means.
DECIDES = ("mixed", "seeds_test")
YES, NO, WORSE, UNDECIDED, BLIND = "yes", "no", "worse", "undecided", "blind"


def analyse(units, *, questions, metric, margin, cohort, baseline, decides):
  """Answers the questions over the units of a study.

  Args:
    units: a list over seeds of dicts with `seed`, `rows` (of every source and fold) and `patients`:
      rows of `patient`, `fold`, `threshold` (a source, the controls among them) and scores, None
      where undefined.
    questions: pairs of thresholds: is the first better than the second?
    metric: the score of a patient that decides.
    margin: the least difference that would matter.
    cohort: patients of a seed, with those that no score is known of.
    baseline: a score of each patient that needs no network.
    decides: of `DECIDES`, which analysis answers.

  Returns:
    A dict of JSON values: `decides`, `primary`, `margin`, `seeds`, `means`, `questions`,
    `controls`, `can_see`, `rows` and `patients`.
  """
  table, total = _table(units), cohort * len(units)
  sources = list(table)
  # The positive control is the first.
  helps = [POSITIVE, *(source for source in sources if source not in CONTROLS)]
  controls = [_contrast(table, metric, source, NEGATIVE, total) for source in helps]
  columns = table[NEGATIVE]
  found = _both(columns[metric] - columns[baseline], columns, total)
  controls.append({"threshold": NEGATIVE, "against": baseline, **found})
  can_see = sees(controls[0][decides])
  asked = [_contrast(table, metric, a, b, total) for a, b in questions]
  corrected = statistics.holm([row[decides]["p"] for row in asked])
  for row, p in zip(asked, corrected, strict=True):
    row["p_holm"] = p
    row["answer"] = answer(row[decides], p, margin=margin, can_see=can_see)
  names = [name for name in table[sources[0]] if name not in ("seed", "fold", "patient")]
  return {
    "decides": decides,
    "primary": metric,
    "margin": margin,
    "can_see": can_see,
    "questions": asked,
    "controls": controls,
    "means": [
      {
        "threshold": source,
        "n_patients": int(np.sum(~np.isnan(columns[metric]))),
        "mixed": _mixed(columns[metric], columns),
        **{name: _mean(columns[name]) for name in names},
      }
      for source, columns in table.items()
    ],
    "seeds": [
      {
        "seed": unit["seed"],
        "n_patients": len({row["patient"] for row in unit["patients"]}),
        "scores": [
          {"threshold": source, "score": _mean(columns[metric][columns["seed"] == unit["seed"]])}
          for source, columns in table.items()
        ],
      }
      for unit in units
    ],
    "others": _others(units, metric),
    "rows": [row | {"seed": unit["seed"]} for unit in units for row in unit["rows"]],
    "patients": [row | {"seed": unit["seed"]} for unit in units for row in unit["patients"]],
  }


def _others(units, metric):
  """Means of the scores of tasks that decide nothing, over the networks of all folds and seeds."""
  found = {}
  for row in (row for unit in units for row in unit["rows"] if metric not in row):
    for name in ("accuracy", "auroc"):
      if row.get(name) is not None:
        found.setdefault((row["task"], row["threshold"], name), []).append(row[name])
  return [
    {
      "task": task,
      "threshold": source,
      "metric": name,
      "mean": float(np.mean(x)),
      "n_networks": len(x),
    }
    for (task, source, name), x in found.items()
  ]


def sees(found):
  """Whether the positive control helped: its 95 % interval lies above 0."""
  return bool(found["interval"][0] > 0)


def answer(found, p_holm, *, margin, can_see):
  """What a question's comparison allows to say, as registered in docs/clinic.md.

  Args:
    found: of `nested.mixed` or `nested.of_seeds`, of the first less the second.
    p_holm: its p after Holm's correction over the questions.
    margin: the least difference that would matter.
    can_see: whether true masks helped over none.

  Returns:
    'blind' where they did not; 'yes': the first is better; 'worse': the second is; 'no': the first
    is not better by as much as the margin; else 'undecided'.
  """
  if not can_see:
    return BLIND
  if p_holm < statistics.LEVEL:
    return YES if found["mean"] > 0 else WORSE
  return NO if found["interval"][1] < margin else UNDECIDED


def _table(units):
  """By source a dict of columns: `seed`, `fold`, `patient` and every score, all in one order."""
  found = {}
  for unit in units:
    for row in unit["patients"]:
      found.setdefault(row["threshold"], []).append(row | {"seed": unit["seed"]})
  table = {}
  for source, rows in found.items():
    rows.sort(key=lambda row: (row["seed"], row["patient"]))
    table[source] = {
      name: np.array(
        [row[name] for row in rows], None if name in ("seed", "fold", "patient") else np.float64
      )
      for name in rows[0]
      if name != "threshold"
    }
  first = next(iter(table.values()))
  for columns in table.values():
    for name in ("seed", "patient", "fold"):
      if not np.array_equal(columns[name], first[name]):
        raise ValueError("sources were tested on other patients")
  return table


def _mean(values):
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None


def _mixed(values, columns):
  known = ~np.isnan(values)
  return nested.mixed(values[known], columns["seed"][known], columns["fold"][known])


def _contrast(table, metric, a, b, total):
  """The first source less the second, by every analysis."""
  found = _both(table[a][metric] - table[b][metric], table[a], total)
  return {"threshold": a, "against": b, **found}


def _both(values, columns, total):
  known = ~np.isnan(values)
  at = (values[known], columns["seed"][known], columns["fold"][known])
  return {
    "n_patients": int(known.sum()),
    "n_left_out": int(total - known.sum()),
    "n_differ": int(np.sum(values[known] != 0)),
    "mixed": nested.mixed(*at),
    "seeds_test": nested.of_seeds(*at[:2]),
    "bootstrap": nested.bootstrap(*at),
    "by_seed": [_mean(values[columns["seed"] == seed]) for seed in np.unique(columns["seed"])],
  }
