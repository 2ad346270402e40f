"""The three clinical tasks: what their batches hold, their losses and their scores.

Each is a class of the same shape, used by `lus_jax.tasks.clinical.run`:

- `outputs`, `hidden`: the head of the network.
- `primary`, `baseline`: metrics of `lus_jax.evaluation.clinical`.
- `left_out`: what was not used, and why.
- `steps_per_epoch`, `clips_per_batch` (M).
- `plan(fold, step)`: the videos of a training batch [M] and what belongs to it; `recorded` [M],
  where it has one, is False of videos that only fill a place and may change nothing.
- `loss(outputs, bias, own)`: of one member's outputs [M, outputs] on that batch.
- `videos(fold, split)`: the videos [n] that the evaluation of a split needs.
- `validate(outputs, bias, fold)`: `score` (higher is better) and `loss` on the validation split.
- `evaluate(outputs, bias, fold, temperature=1)`: metrics on the test split, and predictions for the
  report.
- `calibrate(outputs, bias, fold)`: the temperature of probabilities on the validation split; of
  tasks that have some.

Source: Shivaram et al., arXiv 2508.15635.
"""

import numpy as np
import optax
from jax import numpy as jnp
from scipy import optimize, special

from lus_jax.data import clips, folds, pairs
from lus_jax.errors import UserError
from lus_jax.evaluation import clinical as metrics
from lus_jax.splits import SPLITS

VIEWS = tuple(pairs.ZONES)
# Seeds of the training order, apart from those of the clips' frames.
_ORDER = 1


def _left_out(what, why, names):
  return {"what": what, "why": why, "count": len(names), "which": sorted(names)}


def _first_recordings(table):
  """Indices of the videos without second recordings, and what to say of those."""
  first = clips.first_recordings(table)
  later = first != np.arange(len(table))
  why = "the first recording of a patient, day and view is used"
  names = [f"{table.video[i]} (used: {table.video[first[i]]})" for i in np.flatnonzero(later)]
  return np.flatnonzero(~later), [_left_out("videos", why, names)]


def _sides(table, index, splits):
  """Of `index` those videos whose patients are on each side of each fold."""
  return [
    {side: index[np.isin(table.patient[index], list(getattr(fold, side)))] for side in SPLITS}
    for fold in splits
  ]


def _require(found, what, mend):
  """Every fold has something on every side."""
  for i, fold in enumerate(found):
    for side, items in fold.items():
      if len(items) == 0:
        raise UserError(f"{side} of fold {i} has no {what}; {mend}.")


_MORE = "use fewer folds (a smaller --config.folds.n) or more patients"


class SfChange:
  """Does the S/F ratio fall, stay or rise between two videos of one lung zone?

  Features of the second video minus those of the first, one linear layer, three classes.
  """

  outputs, hidden = 3, ()
  primary, baseline = "accuracy3", "majority3"
  classes = pairs.CLASSES

  def __init__(self, table, splits, config):
    index, self.left_out = _first_recordings(table)
    sf = table.values[config.target]
    if np.isnan(sf).all():
      raise UserError(
        f"config.target: '{config.target}' is unknown for every video; fill that column of the "
        "data set."
      )
    zone = np.array([pairs.ZONES.get(view, 0) for view in table.view])
    for why, bad in (
      (f"{config.target} is unknown", np.isnan(sf[index])),
      (f"the view is none of {', '.join(VIEWS)}", zone[index] == 0),
    ):
      self.left_out.append(_left_out("videos", why, table.video[index[bad]].tolist()))
    index = index[~np.isnan(sf[index]) & (zone[index] > 0)]
    self._table, self._sf, self._zone, self._config = table, sf, zone, config
    self._sides = _sides(table, index, splits)
    self._pairs = [
      {
        side: fold[side][pairs.within_patient_pairs(zone[fold[side]], table.patient[fold[side]])]
        for side in ("validation", "test")
      }
      for fold in self._sides
    ]
    _require(
      self._pairs, "patient with two videos of one zone (L1 R1, L2 R2, L3 R3; any day)", _MORE
    )
    self.clips_per_batch = config.train.batch_size * (2 if config.pairs == "sampled" else 1)
    self._training = [
      pairs.TrainingPairs(zone[fold["train"]], cap=config.pairs_cap, seed=config.seed)
      for fold in self._sides
    ]
    _require([{"train": p} for p in self._training], "two videos of one zone", _MORE)
    size = config.train.batch_size
    if config.pairs == "in_batch":
      if size < 2:
        raise UserError("config.train.batch_size: 1 clip makes no pair; use at least 2.")
      least = min(len(fold["train"]) for fold in self._sides)
      if size > least:
        raise UserError(
          f"config.train.batch_size: {size} clips are more than the {least} training videos of a "
          f"fold; use --config.train.batch_size={max(2, least // 2)} or less."
        )
      self.steps_per_epoch = self._steps_in_batch()
    else:
      self.steps_per_epoch = -(-max(map(len, self._training)) // size)
    counts = [pairs.class_counts(zone[fold["train"]], sf[fold["train"]]) for fold in self._sides]
    # Increase is never more frequent than Decrease, since both orders count.
    self._majority = [(int(c.argmax()), 0) for c in counts]
    self._shares = [np.asarray(c, float) / np.sum(c) for c in counts]

  def _steps_in_batch(self):
    return max(len(fold["train"]) for fold in self._sides) // self._config.train.batch_size

  def describe_pairs(self):
    """What sampled pairs cost beside ours, in words; '' of ours."""
    if self._config.pairs != "sampled":
      return ""
    return (
      f"sampled pairs, as the paper's: an epoch is {self.steps_per_epoch} steps of "
      f"{self.clips_per_batch} clips; all pairs within a batch, which is ours (pairs=in_batch), "
      f"take {self._steps_in_batch()} of {self.clips_per_batch // 2}."
    )

  def plan(self, fold, step):
    """In a batch of clips every ordered pair of one zone counts; sampled pairs are a few of them.

    Returns:
      Videos [M] and a dict: `label` [M, M] of the pairs (first, second), `counts` [M, M] bool.
    """
    train, size = self._sides[fold]["train"], self._config.train.batch_size
    seed = (self._config.seed, _ORDER, fold)
    if self._config.pairs == "in_batch":
      video = clips.endless(train, step * size, size, seed=seed)
      zone = self._zone[video]
      counts = (zone[:, None] == zone[None]) & (video[:, None] != video[None])
    else:
      ranks = np.arange(len(self._training[fold]))
      chosen = train[self._training[fold][clips.endless(ranks, step * size, size, seed=seed)]]
      video = chosen.T.ravel()
      counts = np.eye(2 * size, k=size, dtype=bool)
    sf = self._sf[video]
    label = pairs.change(sf[:, None], sf[None])
    return video, {"label": label.astype(np.int32), "counts": counts}

  def loss(self, outputs, bias, own):
    """Cross entropy over the pairs that count."""
    logits = outputs[None] - outputs[:, None] + jnp.broadcast_to(bias, (1, 1, 3))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, own["label"])
    n = jnp.maximum(own["counts"].sum(), 1)
    return jnp.sum(jnp.where(own["counts"], each, 0)) / n

  def videos(self, fold, split):
    """The videos of a split."""
    return self._sides[fold][split]

  def _judge(self, outputs, bias, fold, split, temperature=1.0):
    chosen = self._pairs[fold][split]
    place = {v: i for i, v in enumerate(self._sides[fold][split].tolist())}
    first, second = (outputs[[place[v] for v in column]] for column in chosen.T.tolist())
    logits = (second - first + bias) / temperature
    labels = pairs.change(*self._sf[chosen.T])
    day, patient = self._table.day[chosen], self._table.patient[chosen[:, 0]]
    majority3, majority2 = self._majority[fold]
    ratios = metrics.sf_change(
      logits=logits,
      labels=labels,
      same_day=(day[:, 0] == day[:, 1]) & (day[:, 0] >= 0),
      patients=patient,
      majority3=majority3,
      majority2=majority2,
      shares=self._shares[fold],
    )
    return logits, labels, ratios

  def validate(self, outputs, bias, fold):
    """3-class accuracy and cross entropy over the pairs within a patient."""
    logits, labels, ratios = self._judge(outputs, bias, fold, "validation")
    return {"score": ratios[self.primary].value(), "loss": _cross_entropy(logits, labels)}

  def calibrate(self, outputs, bias, fold):
    """The temperature that gives the least cross entropy over the validation's pairs."""
    logits, labels, _ = self._judge(outputs, bias, fold, "validation")
    return _temperature(logits, labels)

  def evaluate(self, outputs, bias, fold, temperature=1.0):
    """Metrics, and the confusion matrix."""
    logits, labels, ratios = self._judge(outputs, bias, fold, "test", temperature)
    confusion = metrics.confusion(labels, logits.argmax(-1), len(self.classes))
    return ratios, {"confusion": np.array(confusion)}


class SfRatio:
  """A number per video, the S/F ratio, from an MLP of three layers; judged per patient-day."""

  outputs, hidden = 1, (256, 64)
  primary, baseline = "rmse_mean", "rmse_constant"
  classes = ()

  def __init__(self, table, splits, config):
    index, self.left_out = _first_recordings(table)
    values = table.values[config.target] / config.target_scale
    if np.isnan(values).all():
      raise UserError(
        f"config.target: '{config.target}' is unknown for every video; fill that column of the "
        "data set."
      )
    bad = np.isnan(values[index])
    self.left_out.append(
      _left_out("videos", f"{config.target} is unknown", table.video[index[bad]].tolist())
    )
    self._table, self._values, self._config = table, values, config
    self._sides = _sides(table, index[~bad], splits)
    _require(self._sides, f"video with a known {config.target}", _MORE)
    size, least = config.train.batch_size, min(len(fold["train"]) for fold in self._sides)
    self.clips_per_batch = size
    if size > least:
      raise UserError(
        f"config.train.batch_size: {size} clips are more than the {least} training videos of a "
        f"fold; use --config.train.batch_size={max(1, least // 2)} or less."
      )
    self.steps_per_epoch = max(len(fold["train"]) for fold in self._sides) // size
    self._constant = []
    for fold in self._sides:
      days = metrics.patient_days(**self._days(fold["train"], np.zeros(len(fold["train"]))))
      self._constant.append(float(np.mean([row["measured"] for row in days])))

  def _days(self, index, predictions):
    return {
      "predictions": predictions,
      "targets": self._values[index],
      "patients": self._table.patient[index],
      "days": self._table.day[index],
    }

  def plan(self, fold, step):
    """Returns videos [M] and their `target` [M]."""
    train, size = self._sides[fold]["train"], self._config.train.batch_size
    video = clips.endless(train, step * size, size, seed=(self._config.seed, _ORDER, fold))
    return video, {"target": self._values[video].astype(np.float32)}

  def loss(self, outputs, bias, own):
    """Mean squared error."""
    return jnp.mean(jnp.square(outputs[:, 0] + bias[0] - own["target"]))

  def videos(self, fold, split):
    """The videos of a split."""
    return self._sides[fold][split]

  def _judge(self, outputs, bias, fold, split):
    index = self._sides[fold][split]
    days = self._days(index, outputs[:, 0].astype(np.float64) + bias[0])
    return days, metrics.sf_ratio(**days, constant=self._constant[fold])

  def validate(self, outputs, bias, fold):
    """Minus the RMSE of the patient-days' means, and the mean squared error of the videos."""
    _, ratios = self._judge(outputs, bias, fold, "validation")
    return {"score": -ratios[self.primary].value(), "loss": ratios["rmse_video"].value() ** 2}

  def evaluate(self, outputs, bias, fold):
    """Metrics, and the patient-days."""
    days, ratios = self._judge(outputs, bias, fold, "test")
    return ratios, {"predictions": metrics.patient_days(**days)}


class Readmission:
  """A yes or no per patient: every view has a vote.

  Features of the second recorded day minus those of the first, or of one day alone; one linear
  layer for all views.
  """

  outputs, hidden = 2, ()
  primary, baseline = "accuracy", "majority"
  classes = ("no", "yes")

  def __init__(self, table, splits, config):
    index, self.left_out = _first_recordings(table)
    n_days = {"difference": 2, "single": 1}[config.days]
    labels = table.of_patient(config.target)
    odd = sorted({x for x in labels.values() if x == x and x not in (0, 1)})
    if odd:
      raise UserError(
        f"config.target: '{config.target}' has the value {odd[0]:g}, and has to be 0 or 1 for "
        "every patient; name another, or make it binary in the data set."
      )
    names = sorted({name for fold in splits for side in vars(fold).values() for name in side})
    self._slots, reasons = {}, {}
    for name in names:
      own = index[table.patient[index] == name]
      days = np.unique(table.day[own])
      known = days[days >= 0]
      # Videos of unknown day are of one day where there is no other.
      days = (known if n_days == 2 or len(known) else days)[:n_days]
      slots = np.full((len(VIEWS), n_days), -1)
      for i in own:
        if table.day[i] in days and table.view[i] in VIEWS:
          slots[VIEWS.index(table.view[i]), np.searchsorted(days, table.day[i])] = i
      if labels[name] not in (0, 1):
        reasons.setdefault(f"{config.target} is unknown", []).append(name)
      elif len(days) < n_days:
        reasons.setdefault("recorded on one day only", []).append(name)
      elif not (slots >= 0).all(1).any():
        both = "both days" if n_days == 2 else "the day"
        reasons.setdefault(f"no view was recorded on {both}", []).append(name)
      else:
        self._slots[name] = slots
    for why, which in sorted(reasons.items()):
      self.left_out.append(_left_out("patients", why, which))
    if not self._slots:
      why = "; ".join(f"{len(which)}: {why}" for why, which in sorted(reasons.items()))
      what = "two recorded days and a known" if n_days == 2 else "a known"
      raise UserError(
        f"{config.name}: no patient has {what} {config.target} ({why}); add days or outcomes to "
        "the data set" + (", or use --config.days=single." if n_days == 2 else ".")
      )
    labels = {name: labels[name] for name in self._slots}
    self._sides = [
      {side: [n for n in getattr(fold, side) if n in labels] for side in vars(fold)}
      for fold in splits
    ]
    folds.check_classes(splits, labels, what=config.target)
    _require(self._sides, "patient that can be used", _MORE)
    self._labels = {name: int(x) for name, x in labels.items()}
    self._config = config
    size, least = config.train.batch_size, min(len(fold["train"]) for fold in self._sides)
    self.clips_per_batch = size * len(VIEWS) * n_days
    if size > least:
      raise UserError(
        f"config.train.batch_size: {size} is more than the {least} training patients of a fold; "
        f"use --config.train.batch_size={least} or less."
      )
    self.steps_per_epoch = max(len(fold["train"]) for fold in self._sides) // size

  def plan(self, fold, step):
    """Returns the videos [patients x views x days], `recorded`, and `present` and `label`."""
    train, size = self._sides[fold]["train"], self._config.train.batch_size
    seed = (self._config.seed, _ORDER, fold)
    names = clips.endless(np.array(train), step * size, size, seed=seed).tolist()
    slots = np.stack([self._slots[name] for name in names])
    # A missing video does not vote; another one of its patient keeps its place, and is not counted.
    spare = slots.reshape(size, -1).max(1)
    present = (slots >= 0).all(-1)
    label = np.array([self._labels[name] for name in names], np.int32)
    video = np.where(slots >= 0, slots, spare[:, None, None])
    recorded = (slots >= 0).ravel()
    return video.ravel(), {"label": label, "present": present, "recorded": recorded}

  def loss(self, outputs, bias, own):
    """Cross entropy of every view that is there, the mean over views and patients."""
    patients, views = own["present"].shape
    outputs = outputs.reshape(patients, views, -1, 2)
    logits = _over_days(outputs) + jnp.broadcast_to(bias, (1, 1, 2))
    labels = jnp.broadcast_to(own["label"][:, None], (patients, views))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(jnp.where(own["present"], each, 0)) / own["present"].sum()

  def videos(self, fold, split):
    """The videos of the days that are used."""
    slots = np.concatenate([self._slots[name].ravel() for name in self._sides[fold][split]])
    return np.unique(slots[slots >= 0])

  def _judge(self, outputs, bias, fold, split, temperature=1.0):
    names = self._sides[fold][split]
    slots = np.stack([self._slots[name] for name in names])
    present = (slots >= 0).all(-1)
    place = np.searchsorted(self.videos(fold, split), np.maximum(slots, 0))
    logits = (_over_days(outputs[np.minimum(place, len(outputs) - 1)]) + bias) / temperature
    labels = np.array([self._labels[name] for name in names])
    train = [self._labels[name] for name in self._sides[fold]["train"]]
    ratios = metrics.readmission(
      logits=logits,
      present=present,
      labels=labels,
      patients=names,
      majority=int(np.mean(train) > 0.5),
      prevalence=float(np.mean(train)),
    )
    return logits, present, labels, ratios

  def validate(self, outputs, bias, fold):
    """Accuracy of the vote, and cross entropy of the views."""
    logits, present, labels, ratios = self._judge(outputs, bias, fold, "validation")
    labels = np.broadcast_to(labels[:, None], present.shape)
    return {
      "score": ratios[self.primary].value(),
      "loss": _cross_entropy(logits[present], labels[present]),
    }

  def calibrate(self, outputs, bias, fold):
    """The temperature that gives the least cross entropy over the validation's patients."""
    logits, present, labels, _ = self._judge(outputs, bias, fold, "validation")
    margin = metrics.mean_margin(logits, present)
    return _temperature(np.stack([np.zeros_like(margin), margin], axis=-1), labels)

  def evaluate(self, outputs, bias, fold, temperature=1.0):
    """Metrics, the confusion matrix, and every patient's votes and probability."""
    logits, present, labels, ratios = self._judge(outputs, bias, fold, "test", temperature)
    predicted, votes = metrics.vote(logits, present)
    probability = special.expit(metrics.mean_margin(logits, present))
    names = self._sides[fold]["test"]
    rows = [
      {
        "patient": name,
        "label": int(labels[i]),
        "predicted": int(predicted[i]),
        "votes": votes[i].tolist(),
        "probability": float(probability[i]),
      }
      for i, name in enumerate(names)
    ]
    confusion = metrics.confusion(labels, predicted, len(self.classes))
    return ratios, {"confusion": np.array(confusion), "predictions": rows}


def _over_days(outputs):
  """Of two days the difference, second - first; of one day itself: [..., days, 2] -> [..., 2]."""
  return outputs[..., -1, :] - (outputs[..., 0, :] if outputs.shape[-2] == 2 else 0)


def _cross_entropy(logits, labels):
  logp = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  return float(-np.mean(np.take_along_axis(logp, np.asarray(labels)[:, None], axis=-1)))


def _temperature(logits, labels):
  """What logits [n, k] are divided by for the least cross entropy with labels [n]; .05 to 20.

  Source: Guo et al., "On Calibration of Modern Neural Networks".
  """
  found = optimize.minimize_scalar(
    lambda log: _cross_entropy(logits / np.exp(log), labels),
    bounds=(np.log(0.05), np.log(20)),
    method="bounded",
  )
  return float(np.exp(found.x))


TASKS = {"sf_change": SfChange, "sf_ratio": SfRatio, "readmission": Readmission}
