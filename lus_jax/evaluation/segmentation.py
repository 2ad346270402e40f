"""Evaluates a segmentation sweep and its baselines on the same images by the same code."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import labels, losses
from lus_jax.data import augment
from lus_jax.evaluation import baselines, metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What `evaluate` returns.

  Attributes:
    members: one dict of `metrics.summarize` per member.
    baselines: likewise, per baseline and threshold.
    image_iou: the IoU of every member and test image, the mean over classes; NaN where undefined,
      [T, N].
  """

  members: list[dict[str, Any]]
  baselines: dict[str, list[dict[str, Any]]]
  image_iou: np.ndarray


def collect(function, frames, batch_size):
  """Runs a function over a split and gathers its per-image results.

  Args:
    function: `(inputs, batch) -> list of T dicts` of host arrays with a leading image axis.
    frames: `lus_jax.data.pipeline.Frames`.
    batch_size: B.

  Returns:
    A list of T dicts of arrays over all images, without the ones that only filled a batch.
  """
  kept = []
  for batch in frames.evaluation_batches(batch_size):
    mask = batch.pop("mask")
    results = function(_prepare(batch), batch)
    kept.append([{name: x[mask] for name, x in result.items()} for result in results])
  return [
    {name: np.concatenate([result[name] for result in member]) for name in member[0]}
    for member in zip(*kept, strict=True)
  ]


_prepare = jax.jit(augment.prepare)


class _Confidences:
  """Pairs of confidence and valid pixels of a split, as often as they are asked for."""

  def __init__(self, frames, batch_size):
    self._frames, self._batch_size = frames, batch_size

  def __iter__(self):
    for batch in self._frames.evaluation_batches(self._batch_size):
      mask = batch.pop("mask")
      yield batch["confidence"], _prepare(batch)["where"] & mask[:, None, None, None]


def evaluate(network, sweep, state, *, train, validation, test, classes, thin, config):
  """Evaluates the best epoch of every member, and the baselines, on the test split.

  Args:
    network: `(params, batch_stats, image) -> (logits, ...)`.
    sweep: a `lus_jax.training.sweep.Sweep` whose members have a `threshold`.
    state: its state.
    train: `Frames` that the baselines are fitted to.
    validation: `Frames` on which cut-offs are chosen.
    test: `Frames` to evaluate on; with the field `evidence` also against the true visibility.
    classes: K names.
    thin: the classes that get a surface Dice.
    config: a run's config.

  Returns:
    An `Evaluation`.
  """
  thresholds = np.asarray(config.sweep.thresholds, np.float32)
  thin_index = np.array([classes.index(name) for name in thin], int)
  sums_of = functools.partial(
    metrics.image_sums,
    evaluation_thresholds=thresholds,
    subthreshold_weight=config.loss.subthreshold_weight,
  )

  def best_logits(state, inputs):
    logits, _ = network(state.best_params, state.best_batch_stats, inputs["image"])
    return losses.output_logits(config.loss.name, logits=logits, where=inputs["where"])

  def cut_sums(state, member, inputs):
    return metrics.cut_sums(
      logits=best_logits(state, inputs),
      confidence=inputs["confidence"],
      where=inputs["where"],
      threshold=member["threshold"],
    )

  def test_sums(state, member, inputs):
    logits = best_logits(state, inputs)
    thin_logits = logits[..., thin_index]
    return sums_of(logits=logits, threshold=member["threshold"], **_arguments(inputs)) | {
      "thin": jax.nn.sigmoid(thin_logits) >= 0.5
    }

  cut_sums, test_sums = sweep.compile(cut_sums), sweep.compile(test_sums)
  on_validation = collect(
    lambda inputs, batch: sweep.to_host(cut_sums(state, sweep.members, inputs)),
    validation,
    config.train.batch_size,
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

  def all_sums(inputs, batch):
    inputs = _with_near(inputs, batch)
    results = sweep.to_host(test_sums(state, sweep.members, inputs))
    for member, result in zip(sweep.members, results, strict=True):
      _add_surface_dice(result, inputs, member["threshold"], thin_index, len(classes))
    for baseline in fitted.values():
      each = zip(baseline.logits, baseline.cut, thresholds, strict=True)
      results += [jax.device_get(baseline_sums(*one, inputs)) for one in each]
    return results

  on_test = collect(all_sums, test, config.train.batch_size)
  n_members = len(sweep.members)
  summarize = functools.partial(
    metrics.summarize, classes=classes, thin=thin, evaluation_thresholds=thresholds
  )
  target = "confidence" if config.loss.name in losses.SOFT else "label"
  members = [
    summarize(sums, target=target, best_cut=metrics.best_cuts(chosen_on))
    for sums, chosen_on in zip(on_test[:n_members], on_validation, strict=True)
  ]
  rest = iter(on_test[n_members:])
  return Evaluation(
    members=members,
    image_iou=np.stack([metrics.image_iou(sums) for sums in on_test[:n_members]]),
    baselines={name: [summarize(next(rest)) for _ in thresholds] for name in fitted},
  )


def predict(network, sweep, state, batch, *, loss):
  """Probabilities of the best epoch of every member.

  Args:
    network: `(params, batch_stats, image) -> (logits, ...)`.
    sweep: a `lus_jax.training.sweep.Sweep`.
    state: its state.
    batch: stored frames, as `lus_jax.data.augment.prepare` takes them.
    loss: the name of the loss the members were trained with.

  Returns:
    float32 [T, B, H, W, K] on the host.
  """

  def probability(state, member, inputs):
    logits, _ = network(state.best_params, state.best_batch_stats, inputs["image"])
    return jax.nn.sigmoid(losses.output_logits(loss, logits=logits, where=inputs["where"]))

  inputs = _prepare(batch)
  return np.stack(sweep.to_host(sweep.compile(probability)(state, sweep.members, inputs)))


def _with_near(inputs, batch):
  inputs = inputs | {"near": metrics.near_confidence(np.asarray(batch["confidence"]))}
  if "evidence" in batch:
    inputs["visibility"] = jnp.asarray(batch["evidence"], jnp.float32) / 255
  return inputs


def _arguments(inputs):
  names = ("confidence", "where", "near", "visibility")
  return {name: inputs[name] for name in names if name in inputs}


def _add_surface_dice(result, inputs, threshold, thin_index, n_classes):
  # Only thin classes pay for the distance transforms; the others stay undefined.
  predicted = result.pop("thin")
  scores = np.full((len(predicted), n_classes), np.nan)
  present = np.asarray(labels.label(inputs["confidence"][..., thin_index], threshold), bool)
  scores[:, thin_index] = metrics.surface_dice(
    prediction=predicted, labels=present, where=np.asarray(inputs["where"])[..., thin_index]
  )
  result["surface_dice"] = scores
