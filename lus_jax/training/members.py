"""What the members of a segmentation sweep learn: a target each, with its loss.

Every threshold of `config.sweep.thresholds` is a member. `config.sweep.members` names more, as
text, all trained together on the same batches:

  threshold(.6, loss=dice)    label(confidence, .6), with another loss or other weights
  soft                        the confidence itself, by cross entropy (arXiv 2109.12622)
  softseg                     the confidence, SoftSeg's output and loss (arXiv 2011.09041)
  svls(.5)                    label(confidence, .5), smoothed along its outline (Islam & Glocker)
  majority, staple            the raters' majority, or STAPLE's probability of their truth
  rater(NAME), random_rater   one rater; of every image another one at every step; a name with a
                              comma or = stands in quotes, as in "rater('Lee, A.')"
  ordinal                     P(confidence >= t) of all thresholds, by one network

The confidence of several raters is their mean.
"""

import dataclasses
import re
import unicodedata

from lus_jax import losses
from lus_jax.errors import UserError
from lus_jax.labels import same_threshold

# Targets and the loss of each; '' is the config's own.
TARGETS = {
  "threshold": "",
  "soft": "cross_entropy",
  "softseg": "adaptive_wing",
  "svls": "cross_entropy",
  "majority": "cross_entropy",
  "staple": "cross_entropy",
  "rater": "cross_entropy",
  "random_rater": "cross_entropy",
  "ordinal": "weighted_cross_entropy",
}
# What each needs of a data set with several raters.
NEEDS = {
  "majority": ("raters", "drawn"),
  "rater": ("raters", "drawn"),
  "random_rater": ("raters", "drawn"),
  "staple": ("staple",),
}
# Where a member has no threshold of its own, epochs and cut-offs are judged at this one.
MIDDLE = 0.5
# The level of a view that shows all of a member's output.
WHOLE = -1


@dataclasses.dataclass(frozen=True)
class Member:
  """One member of a sweep.

  Attributes:
    target: a key of `TARGETS`.
    threshold: of 'threshold' and 'svls', else None.
    rater: of 'rater', else ''.
    loss: a key of `losses.LOSSES`.
    weights: 'paper' or 'ones'.
    name: for files and curves.
  """

  target: str
  threshold: float | None = None
  rater: str = ""
  loss: str = ""
  weights: str = ""
  name: str = ""

  @property
  def is_soft(self):
    """Whether its output estimates the confidence, not whether it reaches a threshold."""
    return self.target not in ("threshold", "svls") or self.loss in losses.SOFT


@dataclasses.dataclass(frozen=True)
class View:
  """An output of a member: all of it, or one level of an ordinal one.

  Attributes:
    name: for tables and files.
    member: its place in the sweep.
    level: of the ordinal head, or `WHOLE`.
    threshold: what P(confidence >= threshold) is estimated; None where it is the confidence.
  """

  name: str
  member: int
  level: int
  threshold: float | None


def parse(text, config_loss):
  """Reads a member from its text.

  Args:
    text: as in the module's docstring.
    config_loss: the `loss` part of a run's config, whose `name` and `weights` are the defaults.

  Returns:
    A `Member`.

  Raises:
    UserError: an unknown target, or options that do not belong to it.
  """
  where = f"config.sweep.members: {text!r}"
  found = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text) if isinstance(text, str) else None
  if not found or found[1] not in TARGETS:
    raise UserError(
      f"{where} is not known; write one of {', '.join(TARGETS)}, as in \"('soft', 'rater(A)')\"."
    )
  target, inside = found[1], (found[2] or "").strip()
  quoted = target == "rater" and re.fullmatch(r"(['\"])(.+)\1", inside)
  # A name in quotes is one value, whatever it holds.
  parts = [] if quoted else [part.strip() for part in inside.split(",") if part.strip()]
  named = dict(part.split("=", 1) for part in parts if "=" in part)
  named = {key.strip(): value.strip() for key, value in named.items()}
  values = [part for part in parts if "=" not in part]
  if len(named) < len(parts) - len(values):
    raise UserError(f"{where}: an option stands there twice; name it once.")
  takes_value = target in ("threshold", "svls", "rater")
  known = {"threshold": ("loss", "weights"), "ordinal": ("weights",)}.get(target, ())
  if len(values) > takes_value or set(named) - set(known):
    options = ", ".join((["a value"] if takes_value else []) + [f"{name}=" for name in known])
    hint = " Put a name that holds a comma or = in quotes." if target == "rater" else ""
    raise UserError(f"{where}: {target} takes {options or 'nothing in brackets'}.{hint}")
  if not values and not quoted and target in ("threshold", "rater"):
    example = {"threshold": "threshold(.6)", "rater": "rater(NAME)"}[target]
    raise UserError(f"{where}: say which, as {example}.")
  threshold, rater = None, ""
  if target == "rater":
    # Accents as folders' names are read.
    rater = unicodedata.normalize("NFC", quoted[2] if quoted else values[0])
  elif takes_value:
    threshold = _threshold(values[0], where) if values else MIDDLE
  loss = named.get("loss", TARGETS[target] or config_loss.name)
  weights = named.get("weights", config_loss.weights)
  if loss not in losses.LOSSES:
    raise UserError(f"{where}: loss {loss!r} is not known; choose {', '.join(losses.LOSSES)}.")
  if weights not in losses.WEIGHTS:
    raise UserError(f"{where}: weights must be one of {', '.join(losses.WEIGHTS)}.")
  name = "_".join([target, *([f"{threshold:g}"] if threshold is not None else [])])
  name += f"_{re.sub(r'[^A-Za-z0-9.-]', '_', rater)}" if rater else ""
  name += "".join(f"_{named[key]}" for key in ("loss", "weights") if key in named)
  return Member(target, threshold, rater, loss, weights, name)


def _threshold(text, where):
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise UserError(f"{where}: {text} is not a threshold in [0, 1]; write 60 % as .6.")
  return value


def read(config):
  """The members of one seed: the thresholds in their order, then `config.sweep.members`.

  Args:
    config: a run's config.

  Returns:
    A list of `Member`.

  Raises:
    UserError: a threshold or a member is not in order, or stands there twice.
  """
  thresholds = config.sweep.thresholds
  if not isinstance(thresholds, tuple | list) or not thresholds:
    raise UserError("config.sweep.thresholds is empty; name at least one, as in '(.6, .5)'.")
  for threshold in thresholds:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
      raise UserError(f"config.sweep.thresholds: '{threshold}' is not a number.")
    if not 0 <= threshold <= 1:
      raise UserError(f"config.sweep.thresholds: {threshold} is not in [0, 1]; write 60 % as .6.")
  for i, threshold in enumerate(thresholds):
    if any(same_threshold(threshold, other) for other in thresholds[:i]):
      raise UserError(f"config.sweep.thresholds: {threshold} stands there twice; name it once.")
  loss = config.loss
  found = [
    Member("threshold", t, "", loss.name, loss.weights, f"threshold_{t:g}") for t in thresholds
  ]
  extra = getattr(config.sweep, "members", ())
  if isinstance(extra, str):
    raise UserError(f"config.sweep.members: write a tuple, as \"('{extra}',)\".")
  for text in extra:
    member = parse(text, loss)
    if any(_alike(member, other) for other in found):
      raise UserError(f"config.sweep.members: {text!r} stands there twice; name it once.")
    # Raters "A B" and "A_B" are two, though a file's name cannot tell.
    names = {other.name for other in found}
    if member.name in names:
      number = next(n for n in range(2, len(names) + 3) if f"{member.name}_{n}" not in names)
      member = dataclasses.replace(member, name=f"{member.name}_{number}")
    if member.target == "ordinal" and max(thresholds) <= MIDDLE:
      raise UserError(
        "config.sweep.members: 'ordinal' needs a threshold above .5, or its mean confidence "
        f"never reaches .5; the highest of config.sweep.thresholds is {max(thresholds):g}."
      )
    found.append(member)
  return found


def _alike(a, b):
  """Whether two members learn the same by the same loss, thresholds to half a storage step."""
  near = a.threshold == b.threshold or (
    None not in (a.threshold, b.threshold) and same_threshold(a.threshold, b.threshold)
  )
  return near and all(
    getattr(a, name) == getattr(b, name) for name in ("target", "rater", "loss", "weights")
  )


def fields(members):
  """What the members need of a stored frame beyond `pipeline.FIELDS`."""
  return tuple(dict.fromkeys(name for member in members for name in NEEDS.get(member.target, ())))


def check_raters(members, raters):
  """Refuses members that need raters whom the data set does not have (`UserError`)."""
  for member in members:
    if member.target in NEEDS and len(raters) < 2:
      raise UserError(
        f"config.sweep.members: '{member.target}' needs the masks of several raters, and the data "
        f"set has {len(raters) or 'none'}; use multirater_folder, or leave it out."
      )
    if member.rater and member.rater not in raters:
      raise UserError(
        f"config.sweep.members: nobody is called '{member.rater}'; the raters are "
        f"{', '.join(raters)}."
      )
