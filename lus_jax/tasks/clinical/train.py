"""Trains the video networks of a clinical task."""

import contextlib

import jax
import numpy as np
import optax
from jax import numpy as jnp

from lus_jax import ahead, timing
from lus_jax.data import clip_augment
from lus_jax.evaluation import ratio
from lus_jax.models import flops
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import estimate, loop, optimizers, writers
from lus_jax.training import state as state_lib
from lus_jax.words import plural

# Seeds of the frames that clips take, apart from those of the training order.
_FRAMES = 2


def make_members(thresholds, ablations, n_folds):
  """The members: every source in every fold.

  Args:
    thresholds: those that are used; channel c of a fold belongs to the c-th.
    ablations: of 'none' and 'true'; the true masks are the last channel.
    n_folds: F.

  Returns:
    Names, sources and folds, and a list of dicts: `fold`, `channel` and `use` (0 blanks it).
  """
  names, places, members = [], [], []
  for source in (*thresholds, *ablations):
    for f in range(n_folds):
      known = source if isinstance(source, str) else f"threshold_{source:g}"
      channel = {"none": 0, "true": len(thresholds)}.get(source)
      names.append(f"{known}_fold_{f}")
      places.append((source, f))
      members.append(
        {
          "fold": np.int32(f),
          "channel": np.int32(thresholds.index(source) if channel is None else channel),
          "use": np.float32(source != "none"),
        }
      )
  return names, places, members


def member_clips(inputs, member, kind):
  """One member's clips: the grey frame and K channels.

  Args:
    inputs: `image` [F, M, N, h, w, 1] and `channels` [F, c, M, N, h, w, K] uint8.
    member: of `make_members`.
    kind: 'probability', or 'binary' at .5.

  Returns:
    [M, N, h, w, 1 + K] in [0, 1].
  """
  image = inputs["image"][member["fold"]].astype(jnp.float32) / 255
  channels = inputs["channels"][member["fold"], member["channel"]]
  if kind == "binary":
    channels = jnp.where(channels >= 128, 255, 0)
  return jnp.concatenate([image, channels.astype(jnp.float32) * (member["use"] / 255)], axis=-1)


def make_optimizer(config, steps_per_epoch, epochs):
  """Adam, or AdamW, with a cosine schedule and warm restarts; returns it and its schedule."""
  lengths, total = [], 0
  while total < epochs:
    lengths.append(config.restart_epochs * config.restart_factor ** len(lengths))
    total += lengths[-1]
  periods = [
    optax.cosine_decay_schedule(config.learning_rate, n * steps_per_epoch) for n in lengths
  ]
  ends = (np.cumsum(lengths[:-1]) * steps_per_epoch).tolist()
  schedule = optax.join_schedules(periods, ends)
  # Configs of older versions lack the decay.
  return optimizers.adam(schedule, getattr(config, "weight_decay", 0.0)), schedule


def make_plan(setup, store):
  """The training batch of any step: `step -> batch`, a pure function of the seed."""

  def plan(step):
    parts = []
    for f in range(len(setup.splits)):
      video, own = setup.task.plan(f, step)
      generator = np.random.default_rng((setup.config.seed, _FRAMES, f, step))
      parts.append({"frames": store.clips(video, generator)} | own)
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

  return plan


def make_run(network, kind):
  """One member's outputs: `(weights, member, inputs) -> [M, outputs]`."""

  def run(weights, member, inputs):
    clips = member_clips(inputs, member, kind)
    return network(weights["params"], weights["batch_stats"], clips)[0]

  return run


def make_loss(network, task, kind):
  """One member's loss: `(params, batch_stats, member, inputs, key) -> (loss, batch_stats)`."""

  def loss_fn(params, batch_stats, member, inputs, key):
    own = {
      name: x[member["fold"]] for name, x in inputs.items() if name not in ("image", "channels")
    }
    clip = member_clips(inputs, member, kind)
    # Clips that keep the place of missing ones enter no batch statistics.
    found, batch_stats = network(
      params, batch_stats, clip, train=True, key=key, where=own.get("recorded")
    )
    return task.loss(found, params["bias"], own), batch_stats

  return loss_fn


def make_outputs(setup, store):
  """Runs the networks over a split: `(weights, split)` to a list of [videos, outputs], by member.

  The videos are those of `task.videos` for the member's fold.
  """

  sweep, task = setup.sweep, setup.task
  run = sweep.compile(make_run(setup.network, setup.config.channels.kind))
  size = task.clips_per_batch

  def outputs(weights, split):
    videos = [task.videos(f, split) for f in range(len(setup.splits))]

    def started():
      for start in range(0, max(map(len, videos)), size):
        # Folds that are through repeat their last video.
        chosen = [v[np.minimum(np.arange(start, start + size), len(v) - 1)] for v in videos]
        inputs = store.finish(store.load({"frames": store.clips(np.stack(chosen))}))
        yield run(weights, sweep.members, inputs)

    parts = [sweep.to_host(found) for found in ahead.dispatched(started())]
    return [
      np.concatenate([part[i] for part in parts])[: len(videos[member["fold"]])]
      for i, member in enumerate(sweep.members)
    ]

  return outputs


def _weights(sweep, state, *, best):
  def pick(state):
    if best:
      return {"params": state.best_params, "batch_stats": state.best_batch_stats}
    return {"params": state.params, "batch_stats": state.batch_stats}

  return sweep.map(pick, state)


def _biases(sweep, weights):
  return sweep.to_host(sweep.map(lambda one: one["params"]["bias"], weights))


def in_channels(network):
  """Channels of a frame, as the network takes them."""
  return network.params["features"][0]["conv"]["kernel"].shape[2]


def training_flop(config, task, in_channels):
  """FLOP of one model's training step on one clip, forward and backward."""
  return flops.TRAINING * flops.video(
    size=config.clip.image_size,
    n_segment=config.clip.n_segment,
    in_channels=in_channels,
    outputs=task.outputs,
    hidden=task.hidden,
    width=config.model.width,
  )


def fit(setup, started, store):
  """Trains all members and tests their best epochs.

  Args:
    setup: a `Setup`.
    started: the initial `params` and `batch_stats` of every member.
    store: the `ClipStore`.

  Returns:
    `meta` of `loop.fit`, what `task.evaluate` says of every member on the test patients, and the
    temperature of each where `config.calibration` asks for it, else None.
  """
  config, sweep, network, task = setup.config, setup.sweep, setup.network, setup.task
  tx, schedule = make_optimizer(config.optimizer, task.steps_per_epoch, config.train.epochs)
  with timing.part("networks"):
    states = [state_lib.create_state(one["params"], one["batch_stats"], tx) for one in started]
    state = sweep.place(states)
  outputs = make_outputs(setup, store)

  def judge(state, split, function, *options, best):
    weights = _weights(sweep, state, best=best)
    each = zip(
      outputs(weights, split), _biases(sweep, weights), sweep.members, *options, strict=True
    )
    return [function(found, bias, int(member["fold"]), *own) for found, bias, member, *own in each]

  with contextlib.ExitStack() as stack:
    checkpoints = checkpoints_lib.Checkpoints(setup.directory)
    stack.enter_context(contextlib.closing(checkpoints))
    writer = stack.enter_context(contextlib.closing(writers.create_writer(setup.directory)))
    writers.write_overview(writer, setup.settings, network.params)
    state, meta = loop.fit(
      loop.Task(
        names=setup.names,
        prepare=lambda batch, key: clip_augment.with_maps(batch, key, config.get("augment")),
        loss_fn=make_loss(network, task, config.channels.kind),
        tx=tx,
        schedule=schedule,
        validate=lambda state: (judge(state, "validation", task.validate, best=False), {}),
        unit="clip",
        work=estimate.Work(
          images=task.clips_per_batch,
          flop=training_flop(config, task, in_channels(network)),
          validated=max(len(task.videos(f, "validation")) for f in range(len(setup.splits))),
          dtype=config.model.dtype,
        ),
      ),
      sweep,
      state,
      store.batches(make_plan(setup, store)),
      config=config.train,
      steps_per_epoch=task.steps_per_epoch,
      key=jax.random.key(config.seed),
      checkpoints=checkpoints,
      writer=writer,
    )
    print(f"testing the best epochs of {plural(len(setup.names), 'model')}", flush=True)
    with timing.part("evaluation"):
      calibrations = None
      if config.get("calibration", "none") != "none":
        calibrations = judge(state, "validation", task.calibrate, best=True)
      options = () if calibrations is None else (calibrations,)
      tested = judge(state, "test", task.evaluate, *options, best=True)
    step = config.train.epochs * task.steps_per_epoch
    found = {name: ratio.fold_row(row) for name, (row, _) in zip(setup.names, tested, strict=True)}
    writers.write_table(writer, step, found, list(next(iter(found.values()))))
  return meta, tested, calibrations
