"""Trains a segmentation sweep: its loss, optimizer, validation and initial state."""

import math

import jax
import numpy as np

from lus_jax import fields, models, palette
from lus_jax.data import augment, labelling
from lus_jax.evaluation import metrics, segmentation
from lus_jax.labels import label
from lus_jax.models import designs, flops
from lus_jax.training import loop
from lus_jax.training import state as state_lib

# Validation frames shown in TensorBoard, and their largest side in pixels.
N_PANELS, PANEL_SIZE = 3, 128


def make_loss(network, objective):
  """The loss of one member: `(params, batch_stats, member, inputs, key) -> (loss, batch_stats)`.

  Members of one seed share the dropout key, so that they differ in their target alone.
  """

  def loss_fn(params, batch_stats, member, inputs, key):
    key = jax.random.fold_in(key, member["seed"])
    raw, batch_stats = objective.logits(
      network, params, batch_stats, inputs["image"], train=True, key=key
    )
    return objective.loss(raw, inputs, member, key), batch_stats

  return loss_fn


def averaging_of(config):
  """The decay of the weights' moving averages, 0 for none, of a run's config."""
  # Benchmarks have configs without an optimizer.
  return getattr(getattr(config, "optimizer", None), "averaging", 0.0)


def initial_state(config, objective, sweep, *, in_channels, classes, tx, begin=None, counts=None):
  """Builds the network and the initial state of all members.

  Args:
    config: a run's config.
    objective: its `Objective`.
    sweep: the `Sweep` of its members, of all seeds.
    in_channels: channels of the image.
    classes: K.
    tx: the optimizer.
    begin: `(params, batch_stats, head) -> params, batch_stats, brought`: of a network with random
      weights those that every member starts from, `head` whether its head is of one level, and
      `brought` which of its outputs [head * K] are not random any more.
    counts: of `labelling.Levels`, [K, 256], from which every member's outputs begin with the share
      of the pixels that its own labels show, but those that were brought; None: as drawn.

  Returns:
    The `Network` and the sweep's state. Members of one seed start from the same weights, but for
    the bias that comes of `counts`.
  """
  networks = [
    state_lib.Network(
      models.build_model(
        config.model,
        in_channels=in_channels,
        classes=classes,
        levels=objective.head,
        seed=config.seed + seed,
      )
    )
    for seed in range(objective.seeds)
  ]
  brought = [np.False_] * len(networks)
  if begin is not None:
    for i, network in enumerate(networks):
      network.params, network.batch_stats, brought[i] = begin(
        network.params, network.batch_stats, head=objective.head == 1
      )
  states = []
  for member, known in zip(objective.members * objective.seeds, sweep.members, strict=True):
    number = known["seed"]
    start = networks[number]
    states.append(
      first_state(
        config,
        objective,
        member,
        start.params,
        start.batch_stats,
        tx,
        counts,
        brought=brought[number],
      )
    )
  return networks[0], sweep.place(states)


def first_state(config, objective, member, params, batch_stats, tx, counts=None, brought=np.False_):
  """The `State` of one member before its first step, from initial weights that others may share.

  Args:
    config: a run's config.
    objective: its `Objective`.
    member: a `Member`.
    params: the network's.
    batch_stats: likewise.
    tx: the optimizer.
    counts: as of `initial_state`.
    brought: which of the head's outputs, bool [head * K], or whether all, are no random ones: their
      bias stays.
  """
  if counts is not None:
    head = params["segmentation_head"]
    # What was brought knows better.
    bias = np.where(brought, head["bias"], objective.bias(member, head["bias"], counts))
    head = head | {"bias": bias}
    params = params | {"segmentation_head": head}
  return state_lib.create_state(params, batch_stats, tx, averaged=averaging_of(config) > 0)


def of_labels(config, source):
  """What a config has taken from the training labels before a run; nothing is read in vain.

  Args:
    config: a run's config.
    source: of `labelling.levels`.

  Returns:
    `counts` for `initial_state` and `repeats` for `pipeline.Frames.training_batches`, each None
    where the config does without.
  """
  rare, from_prevalence = (
    fields.value(config, name) for name in ("train.rare", "loss.from_prevalence")
  )
  if not (rare or from_prevalence):
    return None, None
  found = labelling.levels(source)
  repeats = labelling.repeats(found.shown, rare) if rare else None
  return found.counts if from_prevalence else None, repeats


def make_evaluation(network, objective):
  """One member on validation images: `(state, member, inputs) -> sums, first predictions`."""

  def evaluate(state, member, inputs):
    raw, _ = objective.logits(network, **state.weights, image=inputs["image"])

    def one_loss(raw, one):
      return objective.loss(raw[None], jax.tree.map(lambda x: x[None], one), member)

    output = objective.output(raw, inputs, member)
    sums = metrics.iou_sums(
      logits=output,
      confidence=inputs["confidence"],
      where=inputs["where"],
      threshold=member["threshold"],
    )
    return {"loss": jax.vmap(one_loss)(raw, inputs), **sums}, jax.nn.sigmoid(_thin(output)) >= 0.5

  return evaluate


def _thin(x):
  """What pictures show of [B, H, W, C]: the first images, every so many pixels."""
  stride = -(-max(x.shape[1:3]) // PANEL_SIZE)
  return x[:N_PANELS, ::stride, ::stride]


def make_validation(network, sweep, frames, config, objective, classes=()):
  """The validation after an epoch: IoU at the member's own threshold, and its loss.

  A member without a threshold, whose output is a confidence, is judged at .5.

  Args:
    network: a `Network`.
    sweep: the `Sweep`.
    frames: `lus_jax.data.pipeline.Frames` of the validation split.
    config: a run's config.
    objective: its `Objective`.
    classes: K names, for `score_per_class`; () for none.

  Returns:
    `sweep state -> rows, images`: T dicts with `score` (the mean IoU), `loss` (mean over images)
    and `score_per_class` (a dict by name), and what makes pictures of the first frames with every
    member's labels and predictions.
  """

  evaluate = sweep.compile(make_evaluation(network, objective))
  thinned = jax.jit(lambda inputs: {name: _thin(inputs[name]) for name in ("image", "confidence")})

  def validate(state):
    rows, shown = [], []

    def sums(inputs, batch):
      result, predictions = evaluate(state, sweep.members, inputs)
      if not shown:
        shown.append((thinned(inputs), predictions))
      return result

    def panels():
      inputs, predictions = shown[0]
      return _panels(inputs, sweep.to_host(predictions), objective.members)

    for images in segmentation.collect(sums, frames, config.train.batch_size, finish=sweep.to_host):
      loss = float(np.mean(images.pop("loss"), dtype=np.float64))
      iou, per_class, _ = metrics.mean_iou(**images)
      rows.append({"score": _defined(iou), "loss": loss})
      if classes:
        each = zip(classes, per_class.tolist(), strict=True)
        rows[-1]["score_per_class"] = {name: _defined(value) for name, value in each}
    return rows, {"validation_frames": panels}

  return validate


def _defined(value):
  return None if math.isnan(value) else value


def _panels(inputs, predictions, members):
  """Pictures [n, 2 h, (1 + T) w, 3]: the frame and its labels over the confidence and predictions.

  The label of a member without a threshold is the confidence.
  """
  image, confidence = (np.asarray(inputs[name], np.float32) for name in ("image", "confidence"))
  panels = []
  for i in range(len(image)):
    grey = np.rint(255 * image[i])

    def cell(weights, grey=grey):
      return palette.overlay(grey, np.asarray(weights, float))

    labels = [
      confidence[i] if one.is_soft else np.asarray(label(confidence[i], one.threshold))
      for one in members
    ]
    # With several seeds, the first one's.
    shown = [member[i] for member in predictions[: len(members)]]
    top = [cell(np.zeros_like(confidence[i])), *map(cell, labels)]
    panels.append(
      np.concatenate(
        [np.concatenate(row, axis=1) for row in (top, [cell(confidence[i]), *map(cell, shown)])]
      )
    )
  return np.stack(panels)


def make_task(
  network,
  sweep,
  names,
  validation,
  config,
  objective,
  *,
  tx,
  schedule,
  work=None,
  classes=(),
  first_look=None,
):
  """What `lus_jax.training.loop.fit` needs to know of segmentation."""
  return loop.Task(
    names=names,
    prepare=lambda batch, key: augment.prepare(batch, key, config.augment),
    loss_fn=make_loss(network, objective),
    tx=tx,
    schedule=schedule,
    validate=make_validation(network, sweep, validation, config, objective, classes),
    averaging=averaging_of(config),
    work=work,
    first_look=first_look,
  )


def training_flop(config, *, classes):
  """FLOP of one model's training step on one image, forward and backward."""
  design = designs.segmentation(config.model)
  size = augment.side(config.augment, config.data.image_size)
  return flops.TRAINING * design.flop(size=size, in_channels=1, classes=classes)
