"""What a sweep's members compute: logits, losses and outputs."""

import copy
import functools

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import labels, losses
from lus_jax.labels import fusion, smoothing
from lus_jax.models import designs, ordinal
from lus_jax.training import members

# Labels that show less than this share of the pixels begin from it.
RAREST = 1e-4


class Objective:
  """The members that a config names: losses and outputs, as functions of a network's logits.

  Attributes:
    members: a list of `Member`, of one seed.
    n_thresholds: how many of them, at the start, are `config.sweep.thresholds`.
    seeds: how often all of them are trained.
    levels: of an ordinal member, the thresholds, rising; () without one.

  Args:
    config: a run's config.

  Raises:
    UserError: a threshold or a member is not in order, or stands there twice.
  """

  def __init__(self, config):
    self.members, self._config, self._raters = members.read(config), config.loss, ()
    self.n_thresholds, self.seeds = len(config.sweep.thresholds), config.sweep.seeds
    self._upsample = designs.segmentation(config.model).upsample
    has_ordinal = any(member.target == "ordinal" for member in self.members)
    self.levels = tuple(sorted(config.sweep.thresholds)) if has_ordinal else ()
    # Members of one kind share a branch of the program.
    self._kinds = list(dict.fromkeys(map(self._kind, self.members)))

  @staticmethod
  def _kind(member):
    return member.target, member.loss, member.weights

  def with_raters(self, raters):
    """The same for a data set of raters with these names.

    Raises:
      UserError: a member needs raters who are not among them.
    """
    members.check_raters(self.members, raters)
    found = copy.copy(self)
    found._raters = tuple(raters)
    return found

  @property
  def n_models(self):
    """T: the members of all seeds."""
    return self.seeds * len(self.members)

  @property
  def head(self):
    """How many times K values the network's head has."""
    return max(1, len(self.levels))

  def scalars(self, member, *, seed=0, level=members.WHOLE):
    """What the compiled programs know of a member: a dict of NumPy scalars."""
    threshold = members.MIDDLE if member.threshold is None else member.threshold
    if level != members.WHOLE:
      threshold = self.levels[level]
    found = {"threshold": np.float32(threshold), "seed": np.int32(seed)}
    if len(self._kinds) > 1 or self.levels or self._kinds[0][0] != "threshold":
      found["kind"] = np.int32(self._kinds.index(self._kind(member)))
      found["level"] = np.int32(level)
      found["rater"] = np.int32(self._raters.index(member.rater) if member.rater else 0)
    return found

  def _choose(self, branches, member, *operands):
    if len(branches) == 1:
      return branches[0](member, *operands)
    # Where the member is known, as in what is exported, the others' outputs are left out.
    if not isinstance(member["kind"], jax.core.Tracer):
      return branches[int(member["kind"])](member, *operands)
    return jax.lax.switch(member["kind"], branches, member, *operands)

  def logits(self, network, params, batch_stats, image, **options):
    """The network's raw output for `image` [B, H, W, 1], and its new statistics.

    With an ordinal member it is that of the head, at a quarter of the size: what becomes of it
    depends on the member.
    """
    if self.levels:
      options["upsample"] = False
    return network(params, batch_stats, image, **options)

  def loss(self, raw, inputs, member, key=None):
    """The loss of one member.

    Args:
      raw: of `logits`.
      inputs: `image`, `confidence`, `where`, and what `fields` names.
      member: of `scalars`.
      key: chooses raters; None where nothing is trained, and all of them count.

    Returns:
      A float32 scalar.
    """
    branches = [functools.partial(self._loss, kind) for kind in self._kinds]
    return self._choose(branches, member, raw, inputs, key)

  def output(self, raw, inputs, member):
    """Logits [B, H, W, K] whose sigmoid is the output of one member, or of one of its levels.

    Args:
      raw: of `logits`.
      inputs: `image` and `where`.
      member: of `scalars`.
    """
    branches = [functools.partial(self._output, kind) for kind in self._kinds]
    return self._choose(branches, member, raw, inputs)

  def _plain(self, raw, inputs):
    if not self.levels:
      return raw
    k = raw.shape[-1] // len(self.levels)
    return self._upsample(raw[..., :k], *inputs["image"].shape[1:3])

  def nested(self, raw, inputs):
    """Logits of all levels of an ordinal member, of `logits` and inputs: [B, H, W, E, K]."""
    nested = ordinal.nested_logits(raw, len(self.levels))
    flat = nested.reshape(*nested.shape[:-2], -1)
    flat = self._upsample(flat, *inputs["image"].shape[1:3])
    return ordinal.keep_nested(flat.reshape(*flat.shape[:-1], *nested.shape[-2:]))

  def _output(self, kind, member, raw, inputs):
    target, loss, _ = kind
    if target != "ordinal":
      return losses.output_logits(
        loss, logits=self._plain(raw, inputs), where=inputs["where"]
      ).astype(jnp.float32)
    nested = self.nested(raw, inputs)
    mean = ordinal.expected_confidence(nested, self.levels)
    mean = jnp.clip(mean, 1e-6, 1 - 1e-6)
    level = jnp.take(nested, jnp.maximum(member["level"], 0), axis=-2)
    return jnp.where(member["level"] == members.WHOLE, jnp.log(mean) - jnp.log1p(-mean), level)

  def _loss(self, kind, member, raw, inputs, key):
    target, loss, weights = kind
    confidence, where = inputs["confidence"], inputs["where"]

    def training_loss(logits, confidence, threshold):
      return losses.training_loss(
        loss,
        logits=logits,
        confidence=confidence,
        threshold=threshold,
        where=where,
        weights=weights,
        subthreshold_weight=self._config.subthreshold_weight,
        reduction=self._config.reduction,
        region=getattr(self._config, "region", 0.0),
      )

    if target == "ordinal":
      nested = self.nested(raw, inputs)
      each = [
        training_loss(nested[..., i, :], confidence, threshold)
        for i, threshold in enumerate(self.levels)
      ]
      return sum(each) / len(each)
    logits = self._plain(raw, inputs)
    if target == "svls":
      confidence = smoothing.spatially_varying(labels.label(confidence, member["threshold"]))
    elif target == "majority":
      confidence = fusion.majority(inputs["raters"], inputs["drawn"])
    elif target == "staple":
      confidence = inputs["staple"]
    elif target == "rater":
      confidence = jnp.take(inputs["raters"], member["rater"], axis=1)
      drawn = jnp.take(inputs["drawn"], member["rater"], axis=1)
      # Images that this rater did not draw teach nothing.
      where = where & drawn[:, None, None, None]
    elif target == "random_rater" and key is not None:
      # Of the key itself the first is also the network's first dropout key.
      keys = jax.random.split(jax.random.fold_in(key, 1), len(confidence))
      chosen = jax.vmap(jax.random.categorical)(keys, jnp.log(inputs["drawn"].astype(jnp.float32)))
      confidence = jax.vmap(lambda raters, i: raters[i])(inputs["raters"], chosen)
    return training_loss(logits, confidence, member["threshold"])

  def bias(self, member, bias, counts):
    """The head's bias by which a member's output begins as the mean of its own labels, everywhere.

    As Lin et al. (arXiv 1708.02002) start from a small probability: from .5 a good part of the
    steps goes into learning that most pixels show nothing.

    Args:
      member: a `Member`.
      bias: [head * K], as drawn: of what no bias follows from, as a normalised output, it stays.
      counts: pixels of the training labels by level, [K, 256].

    Returns:
      NumPy [head * K].
    """
    levels, k = np.arange(256, dtype=np.float32) / 255, len(counts)

    def logit(target, weights):
      counted = counts * np.asarray(weights, np.float64)
      share = (counted * np.asarray(target)).sum(1) / np.maximum(counted.sum(1), 1)
      share = np.clip(share, RAREST, 1 - RAREST)
      return np.log(share) - np.log1p(-share)

    def of_threshold(threshold):
      weights = np.ones(256)
      if member.loss == "weighted_cross_entropy" and member.weights == "paper":
        rule = self._config.subthreshold_weight
        weights = labels.pixel_weight(levels, threshold, subthreshold_weight=rule)
      return logit(labels.label(levels, threshold), weights)

    found = np.array(bias, np.float32)
    if member.loss in losses.NORMALIZED:
      return found
    if member.target == "ordinal":
      nested = np.stack([of_threshold(threshold) for threshold in self.levels])
      found[:] = ordinal.raw_of(nested)
    elif member.is_soft:
      found[:k] = logit(levels, np.ones(256))
    else:
      found[:k] = of_threshold(member.threshold)
    return found

  def of_all_seeds(self):
    """The members of the sweep: every member, for every seed.

    Returns:
      T names and what the compiled programs know of each (`scalars`).
    """
    names = [
      f"{member.name}{self._suffix(seed)}" for seed in range(self.seeds) for member in self.members
    ]
    return names, [self.scalars(one, seed=i) for i in range(self.seeds) for one in self.members]

  def views(self):
    """Every output of all members of all seeds.

    An ordinal member has its mean confidence, and each of its levels.

    Returns:
      A list of `members.View`, and what the compiled programs know of each (`scalars`).
    """
    found, scalars = [], []
    for place in range(self.n_models):
      seed, number = divmod(place, len(self.members))
      member, suffix = self.members[number], self._suffix(seed)
      levels = [(members.WHOLE, "", None if member.is_soft else member.threshold)]
      if member.target == "ordinal":
        levels += [(i, f"_{t:g}", t) for i, t in enumerate(self.levels)]
      for level, which, threshold in levels:
        name = f"{member.name}{which}{suffix}"
        found.append(members.View(name, place, level, threshold))
        scalars.append(self.scalars(member, seed=seed, level=level))
    return found, scalars

  def _suffix(self, seed):
    return f"_seed_{seed}" if self.seeds > 1 else ""

  def member_of(self, view):
    """The `Member` whose output a view is."""
    return self.members[view.member % len(self.members)]

  def without_seed(self, name):
    """The name of a view of the first seed, as if there were no other."""
    return name.removesuffix(self._suffix(0)) if self.seeds > 1 else name

  def is_plain(self, view):
    """Whether it is one of `config.sweep.thresholds`, the first members of each seed."""
    place = view.member % len(self.members)
    return place < self.n_thresholds and view.level == members.WHOLE
