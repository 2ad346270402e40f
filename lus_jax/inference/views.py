"""Which of a run's views a command line asks for, and what their probabilities mean."""

from lus_jax.errors import UserError
from lus_jax.labels import same_threshold


def choose(trained, thresholds, members, workdir):
  """The views that were asked for.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    thresholds: which of the run's; all by default, none where there are `members`.
    members: names of views, as in `results/members.json`.
    workdir: of the run, for errors.

  Returns:
    Their numbers, each once: the thresholds first.

  Raises:
    UserError: there is no such view.
  """
  chosen = []
  if members is not None:
    names = [view.name for view in trained.views]
    for name in members:
      if name not in names:
        raise UserError(
          f"--members: no model of {workdir} is called '{name}'; there are {', '.join(names)}."
        )
    chosen = [names.index(name) for name in members]
    if thresholds is None:
      return list(dict.fromkeys(chosen))
  plain = trained.thresholds[: trained.objective.n_thresholds]
  wanted = _choose_thresholds(plain, thresholds, workdir)
  return list(dict.fromkeys([*(plain.index(t) for t in wanted), *chosen]))


def _choose_thresholds(known, thresholds, workdir):
  chosen = []
  for threshold in known if thresholds is None else thresholds:
    near = [t for t in known if same_threshold(t, threshold)]
    if not near:
      raise UserError(
        f"--thresholds: no model of {workdir} has the threshold {threshold:g}; there are "
        f"{', '.join(f'{t:g}' for t in known)}."
      )
    chosen += near
  return list(dict.fromkeys(chosen))


def meaning(trained, view):
  """What is estimated by a view's probabilities, as 'P(confidence >= 0.6)' or 'confidence'."""
  if view.threshold == 0:
    return "P(confidence > 0)"
  if view.threshold is not None:
    return f"P(confidence >= {view.threshold:g})"
  member = trained.objective.members[view.member]
  own = {
    "majority": "P(most raters drew it)",
    "staple": "STAPLE's probability",
    "rater": f"P({member.rater} drew it)",
  }
  # A calibration is fitted to the confidence, whatever was learnt.
  uncalibrated = trained.config.get("calibration", "none") == "none"
  return own.get(member.target, "confidence") if uncalibrated else "confidence"
