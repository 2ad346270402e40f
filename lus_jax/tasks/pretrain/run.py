"""The pretraining task: one network learns from all clips of the training patients, unlabelled."""

import contextlib
import functools
import io

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import fields, lock, models, parallel, results, timing
from lus_jax.data import augment, pipeline, unlabelled
from lus_jax.errors import UserError
from lus_jax.files import write_bytes
from lus_jax.models import designs, flops
from lus_jax.report import pretrain as report
from lus_jax.tasks import initial
from lus_jax.tasks.pretrain import train
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import estimate, hardware, loop, optimizers, writers
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep, choose_strategy

NAME = initial.PRETRAINING


def check(config, workdir=None):
  """Refuses values of a config that no run could use; nothing is written before.

  Args:
    config: a run's config (`configs/pretrain.py`).
    workdir: the run's directory, if it is known.

  Raises:
    UserError: one of them, and how to mend it.
  """
  fields.check_known(config, {"network": initial.NETWORKS})
  least = {
    "data.num_processes": 0,
    "clip.n_segment": 1,
    "mask.cells": 2,
    "train.epochs": 1,
    "train.steps_per_epoch": 1,
    "train.batch_size": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "optimizer.weight_decay": 0,
    "seed": 0,
    "data.split_seed": 0,
  }
  fields.check_least(config, least)
  fields.check_positive(config, "optimizer.learning_rate")
  fields.check_shares(config, "optimizer.warmup")
  if not 0 < config.mask.share < 1:
    raise UserError(f"config.mask.share: {config.mask.share} must be above 0 and below 1.")
  video = config.network == "video"
  if not video and config.clip.n_segment != 1:
    raise UserError(
      f"config.clip.n_segment: {config.clip.n_segment} frames are for --config.network=video; "
      "segmentation networks see one at a time: --config.clip.n_segment=1."
    )
  (models.check_video if video else models.check)(config.model)
  augment.check_strengths(config.augment)
  pipeline.choose_cache_for(config.data.cache, 0)
  choose_strategy(config.sweep.strategy)
  if config.model.init_from:
    initial.check(config.model, workdir, video=video)


def train_and_evaluate(config, workdir):
  """Pretrains, and writes `results/pretrain.json` and `results/pretrain.npz`.

  Args:
    config: a run's config (`configs/pretrain.py`).
    workdir: the run's directory; a broken run goes on where its last checkpoint was.

  Raises:
    UserError: the config or the data are not in order, or the directory is another run's.
  """
  check(config, workdir)
  device = hardware.find_device()
  config, why = hardware.resolve(hardware.as_begun(config, workdir), device, models=1)
  claim_lib.check_claim(workdir, claim_lib.settings(config))
  with lock.hold(workdir), timing.recorded(NAME) as clock:
    _train_and_evaluate(config, workdir, device, why, clock)


def _train_and_evaluate(config, workdir, device, why, clock):
  settings, video = claim_lib.settings(config), config.network == "video"
  finished = results.exists(workdir, NAME)
  clock.enter("data")
  with parallel.main_first("data"):
    dataset, feature = unlabelled.open_clips(config.data)
  clock.enter("networks")
  start = initial.start(config.model, workdir, video=video)
  if start is not None and start.source is not None:
    initial.audit(start.source, dataset.patients(), dataset.population)
  own = {} if start is None else {"initial": start.about}
  begun = claim_lib.read_claim(workdir) is not None
  claim_lib.claim(workdir, settings, dataset.summary() | own)
  if not finished:
    clock.keep_in(workdir, goes_on=begun, config=settings, dataset=dataset.summary())
    clock.enter("data")
    room = hardware.host_memory() // 2
    clips = unlabelled.read(dataset, feature, seed=config.data.split_seed, room=room)
    clock.enter("networks")
    _fit(config, workdir, settings, dataset, clips, start, device, why, clock)
  parallel.sync("pretraining results")
  print(report.text(results.read(workdir, NAME)))


def _network(config, start):
  network = state_lib.Network(
    initial.pretraining_network(config.model, config.network, config.seed)
  )
  if start is not None:
    into = functools.partial(initial.into_segmentation, classes=(), head=False)
    into = initial.into_video if config.network == "video" else into
    network.params, network.batch_stats, *_ = into(
      start, network.params, network.batch_stats, place=config.model.init_from
    )
  # What is drawn begins as the mean of what is seen, not as noise around it.
  head = initial.HEAD if config.network == "segmentation" else "head"
  network.params = network.params | {head: jax.tree.map(jnp.zeros_like, network.params[head])}
  return network


def _fit(config, workdir, settings, dataset, clips, start, device, why, clock):
  sweep = Sweep([{}], choose_strategy(config.sweep.strategy))
  network = _network(config, start)
  cache = pipeline.choose_cache_for(config.data.cache, clips.image.nbytes)
  batches = clips.training_batches(
    config.train.batch_size,
    config.clip.n_segment,
    seed=config.seed,
    cache=cache,
    mesh=sweep.mesh,
  )
  steps = config.train.epochs * config.train.steps_per_epoch
  tx, schedule = optimizers.with_cosine(config.optimizer, steps)
  state = sweep.place([state_lib.create_state(network.params, network.batch_stats, tx)])
  held_out = train.HeldOut(network, sweep, clips, config)
  counted = unlabelled.counted(clips)
  facts = {
    "network": config.network,
    "split": unlabelled.SPLIT,
    "patients": clips.patients(held_out=False),
    "held_out": clips.patients(held_out=True),
    "left_out": clips.left_out,
    **counted,
  }
  print(report.describe(facts, dataset, steps), flush=True)
  print(hardware.describe(config, device, why, strategy=sweep.strategy, cache=cache), flush=True)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(workdir)))
    writer = stack.enter_context(contextlib.closing(writers.create_writer(workdir)))
    writers.write_overview(writer, settings, network.params)
    work = estimate.Work(
      images=config.train.batch_size,
      flop=_flop(config),
      validated=min(train.JUDGED, counted["held_out_clips"]),
      dtype=config.model.dtype,
    )
    options = {"tx": tx, "schedule": schedule, "work": work}
    state, meta = loop.fit(
      train.make_task(network, sweep, held_out, config, **options),
      sweep,
      state,
      batches,
      config=config.train,
      steps_per_epoch=config.train.steps_per_epoch,
      key=jax.random.key(config.seed),
      checkpoints=checkpoints,
      writer=writer,
    )
  clock.enter("evaluation")
  weights = train.weights_of(sweep, state, best=True)
  loss, blind, examples = held_out.judge(weights)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **examples())
  if parallel.is_main():
    write_bytes(results.path(workdir, f"{NAME}.npz"), buffer.getvalue())
  notes = list(dataset.notes)
  if start is not None and isinstance(start.about, dict):
    notes.append(initial.sentence({"heads": [], "fresh": []} | start.about))
  results.write(
    workdir,
    NAME,
    config=settings,
    dataset=dataset.summary(),
    **facts,
    best_epoch=meta["best"][0]["epoch"],
    loss=loss,
    loss_of_mean=blind,
    rows=meta["history"],
    notes=notes,
    **({} if start is None else {"initial": initial.told(start.about, config.model.init_from)}),
  )


def _flop(config):
  """FLOP of a training step on one image or clip, forward and backward."""
  size = config.data.image_size
  if config.network == "segmentation":
    design = designs.segmentation(config.model)
    return flops.TRAINING * design.flop(size=size, in_channels=1, classes=1)
  return flops.TRAINING * flops.video(
    size=size,
    n_segment=config.clip.n_segment,
    in_channels=1,
    outputs=initial.VIDEO_OUTPUTS,
    hidden=(),
    width=config.model.width,
  )
