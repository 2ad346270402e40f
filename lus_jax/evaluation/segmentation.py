"""Evaluates a segmentation sweep and its baselines on the same images by the same code."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import ahead, labels, parallel, progress
from lus_jax.data import augment
from lus_jax.evaluation import baselines, metrics, raters, reliability
from lus_jax.inference import calibration
from lus_jax.words import plural


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What `evaluate` returns.

  Attributes:
    members: one dict of `metrics.summarize` per view (`lus_jax.training.members.View`).
    baselines: likewise, per baseline and threshold.
    image_iou: the IoU of every view and test image, the mean over classes; NaN where undefined,
      [V, N].
    bar: the IoU of the mean map on the validation split by threshold, as epochs are scored; NaN
      where undefined.
  """

  members: list[dict[str, Any]]
  baselines: dict[str, list[dict[str, Any]]]
  image_iou: np.ndarray
  bar: list[float]


def collect(function, frames, batch_size, *, finish, what=None):
  """Runs a function over a split and gathers its per-image results.

  Args:
    function: `(inputs, batch) -> what is computed of a batch`, for which it does not wait.
    finish: makes a list of T dicts of host arrays with a leading image axis of that, while the next
      batch is being computed.
    frames: `lus_jax.data.pipeline.Frames`.
    batch_size: B.
    what: is done, for a progress bar; None for none.

  Returns:
    A list of T dicts of arrays over all images, without the ones that only filled a batch.
  """

  def started():
    for batch in _batches(frames, batch_size, what):
      mask = batch.pop("mask")
      yield mask, function(_prepare(batch), batch)

  kept = [
    [{name: x[mask] for name, x in result.items()} for result in finish(computed)]
    for mask, computed in ahead.dispatched(started())
  ]
  return [
    {name: np.concatenate([result[name] for result in member]) for name in member[0]}
    for member in zip(*kept, strict=True)
  ]


def _batches(frames, batch_size, what=None):
  """Evaluation batches; with `what` is done, under a progress bar where it takes long."""
  return progress.bar(
    frames.evaluation_batches(batch_size),
    total=-(-frames.size // batch_size),
    unit="batch",
    what=what,
    delay=5,
    hidden=what is None,
  )


_prepare = jax.jit(augment.prepare)


class _Confidences:
  """Pairs of confidence and valid pixels of a split, as often as they are asked for."""

  def __init__(self, frames, batch_size):
    self._frames, self._batch_size = frames, batch_size

  def __iter__(self):
    for batch in _batches(self._frames, self._batch_size, "fitting baselines"):
      mask = batch.pop("mask")
      yield batch["confidence"], _prepare(batch)["where"] & mask[:, None, None, None]


def cut_sums_of(logits, member, inputs):
  """What cut-offs are chosen by, of one view's logits [B, H, W, K]; for `sweep.compile`.

  Inputs are those of `augment.prepare`.
  """
  return metrics.cut_sums(
    logits=logits,
    confidence=inputs["confidence"],
    where=inputs["where"],
    threshold=member["threshold"],
  )


def make_test_sums(config):
  """What one view is tested by: `(logits, member, inputs) -> sums`, with pixels for surfaces.

  Inputs are those of `augment.prepare`, with `near` and perhaps `visibility`.
  """
  sums_of = _sums_of(config)

  def test_sums(logits, member, inputs):
    return sums_of(logits=logits, threshold=member["threshold"], **_arguments(inputs)) | {
      "predicted": jax.nn.sigmoid(logits) >= 0.5,
      "drawn": labels.label(inputs["confidence"], member["threshold"]) > 0,
    }

  return test_sums


def _sums_of(config):
  return functools.partial(
    metrics.image_sums,
    evaluation_thresholds=np.asarray(config.sweep.thresholds, np.float32),
    subthreshold_weight=config.loss.subthreshold_weight,
  )


def evaluate(trained, *, train, validation, test, thin):
  """Evaluates frozen models, and the baselines, on the test split.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    train: `Frames` that the baselines are fitted to.
    validation: `Frames` on which cut-offs are chosen.
    test: `Frames` to evaluate on; with the field `evidence` also against the true visibility.
    thin: the classes whose surface Dice is reported; None for no scores of outlines at all, which
      need `surface_distance`.

  Returns:
    An `Evaluation`.
  """
  config, sweep = trained.config, trained.sweep
  aimed_at = ["confidence" if view.threshold is None else "label" for view in trained.views]
  thresholds = np.asarray(config.sweep.thresholds, np.float32)
  sums_of = _sums_of(config)
  cut_sums = sweep.compile(cut_sums_of)
  test_sums = sweep.compile(make_test_sums(config))

  def judged(sums, inputs):
    return sums(_logits(trained, inputs), sweep.members, inputs)

  on_validation = collect(
    lambda inputs, batch: judged(cut_sums, inputs),
    validation,
    config.train.batch_size,
    finish=sweep.to_host,
    what=f"choosing cut-offs of {plural(len(sweep.members), 'output')}",
  )

  @jax.jit
  def baseline_sums(logits, cut, threshold, inputs):
    shape = inputs["confidence"].shape
    return sums_of(
      logits=jnp.broadcast_to(logits[None], shape),
      threshold=threshold,
      cut=cut,
      **_arguments(inputs),
    )

  fitted = baselines.fit_baselines(
    _Confidences(train, config.train.batch_size),
    thresholds=thresholds,
    subthreshold_weight=config.loss.subthreshold_weight,
  )

  @jax.jit
  def bar_sums(logits, cut, threshold, inputs):
    return metrics.iou_sums(
      logits=jnp.broadcast_to(logits[None], inputs["confidence"].shape),
      confidence=inputs["confidence"],
      where=inputs["where"],
      threshold=threshold,
      cut=cut[None, None, None],
    )

  def of_mean_map(inputs, batch):
    own = fitted["mean_map"]
    each = zip(own.logits, own.cut, thresholds, strict=True)
    return [bar_sums(*one, inputs) for one in each]

  bars = collect(of_mean_map, validation, config.train.batch_size, finish=jax.device_get)

  def all_sums(inputs, batch):
    inputs = _with_near(inputs, batch)
    of_baselines = [
      baseline_sums(*one, inputs)
      for baseline in fitted.values()
      for one in zip(baseline.logits, baseline.cut, thresholds, strict=True)
    ]
    return inputs["where"], judged(test_sums, inputs), of_baselines

  def finish(computed):
    where, results, of_baselines = computed
    results, where = sweep.to_host(results), np.asarray(where)
    for result in results:
      masks = {"prediction": result.pop("predicted"), "labels": result.pop("drawn")}
      # The costliest thing on the host, and what the other processes find is not written.
      if thin is not None and parallel.is_main():
        dice, hd95 = metrics.surface_scores(**masks, where=where)
        result |= {"surface_dice": dice, "hd95": hd95}
    return results + jax.device_get(of_baselines)

  what = f"testing {plural(len(sweep.members), 'output')}"
  on_test = collect(all_sums, test, config.train.batch_size, finish=finish, what=what)
  n_members = len(sweep.members)
  summarize = functools.partial(
    metrics.summarize, classes=trained.classes, thin=thin or (), evaluation_thresholds=thresholds
  )
  members = [
    summarize(sums, target=target, best_cut=metrics.best_cuts(chosen_on))
    for sums, target, chosen_on in zip(on_test[:n_members], aimed_at, on_validation, strict=True)
  ]
  rest = iter(on_test[n_members:])
  return Evaluation(
    members=members,
    image_iou=np.stack([metrics.image_iou(sums) for sums in on_test[:n_members]]),
    baselines={name: [summarize(next(rest)) for _ in thresholds] for name in fitted},
    bar=[metrics.mean_iou(**sums)[0] for sums in bars],
  )


def predict(trained, batch, *, batch_size=None):
  """Probabilities of frozen models.

  Args:
    trained: a `lus_jax.inference.trained.Trained`.
    batch: stored frames, as `lus_jax.data.augment.prepare` takes them.
    batch_size: how many at a time; the size that was evaluated needs no other program. All by
      default.

  Returns:
    float32 [V, B, H, W, K] on the host.
  """

  size, parts = len(batch["image"]), []
  n = batch_size or size
  # The last image fills the last batch up.
  for start in range(0, size, n):
    indices = np.minimum(np.arange(start, start + n), size - 1)
    found = _logits(trained, _prepare({name: x[indices] for name, x in batch.items()}))
    parts.append(np.stack(trained.sweep.to_host(found)))
  return np.asarray(jax.nn.sigmoid(np.concatenate(parts, axis=1)[:, :size]))


def _logits(trained, inputs):
  """Logits of every view: the network is a program that all that becomes of its output shares."""
  inputs = {name: inputs[name] for name in ("image", "where")}
  return trained.compiled_logits(trained.weights, trained.sweep.members, inputs)


def _over_batches(trained, frames, what):
  """Logits of every view [V, n, H, W, K] on the host, with their inputs and batch, n at a time."""
  sweep = trained.sweep

  def started():
    for batch in _batches(frames, trained.config.train.batch_size, what):
      mask = batch.pop("mask")
      inputs = _prepare(batch)
      yield mask, batch, inputs, _logits(trained, inputs)

  for mask, batch, inputs, found in ahead.dispatched(started()):
    found = np.stack(sweep.to_host(found))
    inputs = {name: np.asarray(inputs[name])[mask] for name in ("confidence", "where")}
    batch = {name: np.asarray(x)[mask] for name, x in batch.items()}
    yield found[:, mask], inputs, batch


def _targets(views, confidence):
  """What each view's probability should mean: its own label, or the confidence."""
  thresholds = [view.threshold for view in views]
  return [confidence if t is None else np.asarray(labels.label(confidence, t)) for t in thresholds]


def fit_calibrations(trained, validation):
  """Fits every calibration method to every view.

  The levels of an ordinal member share a calibration, so that they stay nested; its mean confidence
  has its own.

  Args:
    trained: a `Trained` without calibration.
    validation: `Frames` to fit on.

  Returns:
    For each method a list of V calibrations (`lus_jax.inference.calibration`).
  """
  groups = [(view.member, view.threshold is None) for view in trained.views]
  sums = {}
  for logits, inputs, _ in _over_batches(trained, validation, "calibrating"):
    targets = _targets(trained.views, inputs["confidence"])
    for group, view, target in zip(groups, logits, targets, strict=True):
      found = calibration.histograms(view, target, inputs["where"])
      held = sums.get(group)
      sums[group] = found if held is None else {k: held[k] + found[k] for k in found}
  return {
    method: [calibration.fit(method, sums[group], trained.classes) for group in groups]
    for method in calibration.METHODS
  }


def compare_calibrations(trained, calibrations, test):
  """Calibration on the test split before and after every method.

  Args:
    trained: a `Trained` without calibration.
    calibrations: of `fit_calibrations`.
    test: `Frames`.

  Returns:
    For each method a list of V dicts: `ece` (class mean), `ece_pooled`, `ece_per_class`, `brier`,
    `reliability` as `metrics.summarize` has them.
  """
  held = {method: [[] for _ in trained.views] for method in calibrations}
  for logits, inputs, _ in _over_batches(trained, test, "comparing calibrations"):
    targets = _targets(trained.views, inputs["confidence"])
    for method, each in calibrations.items():
      for v, (one, view, target) in enumerate(zip(each, logits, targets, strict=True)):
        probability = np.asarray(jax.nn.sigmoid(calibration.apply(one, view)))
        sums = reliability.calibration_sums(probability, target, inputs["where"])
        held[method][v].append(sums | raters.extremes(probability, inputs["where"]))
  return {
    method: [reliability.summarize_calibration(_joined(parts), trained.classes) for parts in views]
    for method, views in held.items()
  }


def evaluate_raters(trained, test, *, patients, persons, curve_of):
  """Compares every view, and every rater, with the raters of the test split.

  Args:
    trained: a `Trained`.
    test: `Frames` with the fields `raters` and `drawn`.
    patients: the patient of every test image.
    persons: who each rater is.
    curve_of: the number of the view whose curve over the number of raters is made.

  Returns:
    A list of V dicts of `raters.summarize`, a list of R dicts of `raters.summarize_humans`, the
    curve of `raters.fused_count_curve`, and the raters' disagreement about every image [N].
  """
  classes, seed = trained.classes, trained.config.seed
  held, humans, disagreements, kept = [[] for _ in trained.views], [], [], []
  for logits, inputs, batch in _over_batches(trained, test, "comparing with the raters"):
    of_raters = (batch["raters"], batch["drawn"])
    probability = np.asarray(jax.nn.sigmoid(logits))
    for parts, view in zip(held, probability, strict=True):
      parts.append(raters.quantities(view, *of_raters, persons, inputs["where"]))
    each, everyone = raters.humans(*of_raters, persons, inputs["where"])
    humans.append(
      {
        "dice_vs_others": each,
        "dice_vs_consensus": everyone,
        "qubiq_leave_one_out": raters.human_qubiq(*of_raters, persons, inputs["where"]),
      }
    )
    disagreements.append(raters.disagreement(*of_raters, inputs["where"])[0])
    kept.append((probability[curve_of], *of_raters, inputs["where"]))
  held = [_joined(parts) for parts in held]
  members = [raters.summarize(parts, patients, classes) for parts in held]
  painted = raters.painted_classes(held[0]["rater_area"])
  by_rater = raters.summarize_humans(_joined(humans), patients, painted=painted)
  curve = raters.fused_count_curve(*map(np.concatenate, zip(*kept, strict=True)), seed=seed)
  return members, by_rater, curve, np.concatenate(disagreements)


def _joined(parts):
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_near(inputs, batch):
  inputs = inputs | {"near": metrics.near_confidence(batch["confidence"])}
  if "evidence" in batch:
    inputs["visibility"] = jnp.asarray(batch["evidence"], jnp.float32) / 255
  return inputs


def _arguments(inputs):
  names = ("confidence", "where", "near", "visibility")
  return {name: inputs[name] for name in names if name in inputs}
