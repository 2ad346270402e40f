"""The training loop that every task shares: epochs, selection, checkpoints, curves, progress."""

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from lus_jax import parallel, progress, signals, timing
from lus_jax.errors import UserError
from lus_jax.training import estimate
from lus_jax.training import state as state_lib
from lus_jax.words import plural

# Epochs of the same validation loss that are no chance.
STUCK = 3
# Epochs that show pictures: about so many, evenly spread.
SHOWN = 20
# Of scores: 1 since classes that no validation frame shows count for nobody.
RULE = 1
# Seconds between two times that several processes ask each other whether to stop, or a step where
# that takes longer: `signals.GRACE` has to suffice for asking and saving.
_TOGETHER = 2


@dataclasses.dataclass(frozen=True)
class Task:
  """What a task gives to `fit`.

  Attributes:
    names: one name a member, for messages and curves.
    prepare: `(batch, key) -> inputs`, shared by all members (augmentation lives here).
    loss_fn: `(params, batch_stats, member, inputs, key) -> (loss, new batch_stats)`.
    tx: an optax transformation.
    schedule: `step -> learning rate`, for the curves.
    validate: `sweep state -> rows, images`: a list of T dicts of numbers, `loss` and `score`, of
      which the latter selects the best epoch (higher is better, of equals the lower loss; None,
      undefined, never wins), perhaps dicts of numbers by class, and by name functions that make
      pictures for the writer, [n, H, W, 3] uint8; they are called in the epochs that show some.
    averaging: of `state.make_train_step`.
    unit: what a batch is counted in, for the curves of the speed.
    work: what an estimate of the run's time is made of; None for no estimate.
    first_look: `(rows, pictures) -> text`, called with those of the first epoch that is done: what
      there is to see before the last one; None for nothing.
  """

  names: list[str]
  prepare: Callable
  loss_fn: Callable
  tx: Any
  schedule: Callable
  validate: Callable
  averaging: float = 0.0
  unit: str = "image"
  work: estimate.Work | None = None
  first_look: Callable | None = None


def fit(task, sweep, state, batches, *, config, steps_per_epoch, key, checkpoints, writer):
  """Trains a sweep, going on from the newest checkpoint if there is one.

  Args:
    task: a `Task`.
    sweep: a `lus_jax.training.sweep.Sweep`.
    state: its initial state.
    batches: `lus_jax.data.pipeline.Batches`.
    config: the `train` part of a run's config (`epochs`, `log_every`, `checkpoint_every`,
      `batch_size`, perhaps `smoothing`: of the score that selects the best epoch).
    steps_per_epoch: training batches per epoch.
    key: a jax random key; step s uses `fold_in(key, s)`, so a resumed run repeats its numbers.
    checkpoints: `lus_jax.training.checkpoints.Checkpoints`.
    writer: of `lus_jax.training.writers`.

  Returns:
    The final sweep state (best weights included) and `meta`: `best` (per member the `epoch`, from
    1, `score` and `loss` of its best epoch) and `history` (a row per epoch and member).

  Raises:
    UserError: a loss is not finite; the message names member and step.
    signals.Stopped: the process was told to stop; the step is saved, and the same call goes on from
      it to the same numbers.
  """
  prepare = jax.jit(task.prepare)
  step_of = state_lib.make_train_step(task.loss_fn, task.tx, task.averaging)
  train_step = sweep.compile(step_of, updates_state=True)
  keep_best = sweep.compile(state_lib.keep_best, updates_state=True)

  meta = {
    "epoch": 0,
    "batches": batches.get_state(),
    "best": [{"epoch": None, "score": None, "loss": None} for _ in task.names],
    "history": [],
    "rule": RULE,
  }
  if checkpoints.latest() is not None:
    state, meta = _restore(checkpoints, sweep, state)
    batches.set_state(meta["batches"])
    _complete_best(meta, task.names)
  # Saved with the first epoch that is scored by it.
  old_rule = meta.get("rule") != RULE and meta["epoch"] > 0
  # Of an epoch that was stopped in: its steps that are done, and their losses.
  done, losses = meta.pop("steps", 0), meta.pop("losses", [])

  training = f"training {plural(len(task.names), 'model')}"
  total = config.epochs * steps_per_epoch
  step = meta["epoch"] * steps_per_epoch + done
  bar = progress.bar(
    total=total,
    initial=step,
    unit="step",
    what=f"compiling the training step (may take minutes), then {training}",
    hidden=meta["epoch"] == config.epochs,
  )
  first_steps = estimate.FirstSteps(
    # Within an epoch only, and the rest of one may be too short.
    None if done else task.work,
    members=len(task.names),
    steps_per_epoch=steps_per_epoch,
    epochs=config.epochs - meta["epoch"],
    unit=task.unit,
  )

  def stop(epoch, i):
    _check_weights(sweep, state, task.names, step, epoch)
    own = {"steps": i, "losses": losses} if i else {}
    _save(checkpoints, sweep, state, meta | {"batches": batches.get_state()} | own)
    checkpoints.wait()
    place = f"epoch {meta['epoch']}" if not i else f"step {step}, in epoch {epoch},"
    signals.stop(f"{place} of {config.epochs} is saved; the same command goes on from there.")

  asked, compiling = Asked(), True
  with bar, signals.deferred(), timing.part("training"):
    for epoch in range(meta["epoch"] + 1, config.epochs + 1):
      pending, since = [], time.perf_counter()
      for i in range(done, steps_per_epoch):
        augment_key, model_key = jax.random.split(jax.random.fold_in(key, step))
        inputs = prepare(next(batches), augment_key)
        state, loss = train_step(state, sweep.members, inputs, model_key)
        first_steps.tick(loss)
        if compiling:
          # Dispatched: so it is compiled.
          compiling = False
          bar.set_description(training, refresh=False)
          progress.restart(bar)
        pending.append(loss)
        step += 1
        due = step % config.log_every == 0 or i + 1 == steps_per_epoch
        told = asked()
        if due or told:
          # One synchronisation for many steps: the device is never kept waiting for the host.
          values = [sweep.to_host(loss) for loss in pending]
          _check_finite(values, task.names, step - len(values) + 1, epoch)
          rate = len(values) * config.batch_size / (time.perf_counter() - since)
          _write_training(writer, step, values[-1], task, rate)
          losses += np.asarray(values, np.float64).tolist()
          bar.update(len(values))
          pending, since = [], time.perf_counter()
        if told:
          stop(epoch, i + 1)
      try:
        with timing.part("validation"):
          rows, images = validated(task, state)
      except signals.Stopped:
        stop(epoch, steps_per_epoch)
      if old_rule:
        _warn_of_rule(rows, meta["epoch"])
      old_rule, meta["rule"] = False, RULE
      # The last step's update is seen here first; nothing broken is ever saved.
      _check_finite([[row["loss"] for row in rows]], task.names, step, epoch)
      _smooth(rows, meta["history"], getattr(config, "smoothing", 0.0))
      improved = [is_better(row, best) for row, best in zip(rows, meta["best"], strict=True)]
      # While no epoch has a defined score, the latest one stands in for the best.
      take = [
        np.bool_(new or best["score"] is None)
        for new, best in zip(improved, meta["best"], strict=True)
      ]
      state = keep_best(state, take)
      mean_losses = np.mean(losses, axis=0)
      for i, row in enumerate(rows):
        if improved[i]:
          meta["best"][i] = {"epoch": epoch, "score": judged(row), "loss": row["loss"]}
        meta["history"].append(
          {"epoch": epoch, "member": task.names[i], "train_loss": float(mean_losses[i]), **row}
        )
      _warn_of_stuck(meta["history"], task.names)
      _write_validation(writer, step, rows, task)
      if shows(epoch, config.epochs):
        with timing.part("pictures"):
          pictures = {name: make() for name, make in images.items()}
          writer.write_images(step, pictures)
          if epoch == 1 and task.first_look:
            progress.say(task.first_look(rows, pictures))
      scores = [row["score"] for row in rows if row["score"] is not None]
      if scores:
        bar.set_postfix(epoch=epoch, score=f"{np.mean(scores):.3f}", refresh=False)
      meta |= {"epoch": epoch, "batches": batches.get_state()}
      done, losses = 0, []
      if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
        _save(checkpoints, sweep, state, meta)
      elif asked(now=True):
        stop(epoch, 0)
    # What could not be written is known before anything is made of the models.
    with timing.part("saving"):
      checkpoints.wait()
    if asked(now=True):
      signals.stop()
  writer.flush()
  return state, meta


class Asked:
  """Whether the run has to stop; of several processes, all of them at the same step."""

  def __init__(self):
    self._alone = jax.process_count() == 1
    self._steps = self._left = 1
    self._since = time.monotonic()

  def __call__(self, *, now=False):
    """Whether it has to; `now` asks the other processes too, whenever they were asked last."""
    if self._alone:
      return signals.requested()
    self._left -= 1
    if self._left > 0 and not now:
      return False
    found = parallel.any_of(signals.requested())  # which waits for the steps until here
    seconds = time.monotonic() - self._since
    steps = (self._steps - self._left) * _TOGETHER / max(seconds, 1e-3)
    (self._steps,) = parallel.from_main([min(max(1, int(steps)), 2 * self._steps)])
    self._left, self._since = self._steps, time.monotonic()
    return found


def validated(task, state):
  """What `task.validate` finds, left at once where the run is told to stop."""
  if jax.process_count() > 1:  # all of them have to be there
    return task.validate(state)
  with signals.at_once():
    return task.validate(state)


def _check_weights(sweep, state, names, step, epoch):
  # The last step's update is in no loss yet; nothing broken is ever saved.
  finite = sweep.finite(sweep.map(lambda one: one.params, state))
  _check_finite([np.where(finite, 0, np.nan)], names, step, epoch)


def shows(epoch, epochs):
  """Whether pictures of an epoch are written: of the first, the last and about `SHOWN` between."""
  return epoch in (1, epochs) or epoch % -(-epochs // SHOWN) == 0


def _smooth(rows, history, decay):
  """Gives rows their `smoothed` score: a moving average over the epochs so far.

  Few validation frames make scores noisy, and the best of many would be the luckiest. Where a score
  is undefined, so is the smoothed one, and the average goes on after it.
  """
  for i, row in enumerate(rows if decay else ()):
    before = [x["smoothed"] for x in history[i :: len(rows)] if x.get("smoothed") is not None]
    score = row["score"]
    if score is not None and before:
      score = decay * before[-1] + (1 - decay) * score
    row["smoothed"] = score


def judged(row):
  """The score of an epoch that selects: the smoothed one, where there is one."""
  return row.get("smoothed", row["score"])


def is_better(row, best):
  """Whether an epoch is the new best: of equals by the lower loss, an undefined score never."""
  score = judged(row)
  if score is None or best["score"] is None:
    return score is not None
  if score != best["score"]:
    return score > best["score"]
  return row["loss"] < best["loss"]


def chosen_by(best, rows):
  """What decided which epoch of a member is its best.

  Args:
    best: of `meta`.
    rows: the member's own of the history.

  Returns:
    'score' where no other epoch has the same one, 'loss' where the lower loss decided between
    several, 'last' where no score was defined and the last epoch stands in.
  """
  if best["score"] is None:
    return "last"
  return "loss" if [judged(row) for row in rows].count(best["score"]) > 1 else "score"


def _complete_best(meta, names):
  """Gives best epochs of older versions, which kept the first of equal scores, their loss.

  The weights of other epochs are gone; where one of them would have won, a warning says so.
  """
  otherwise = []
  for i, (name, best) in enumerate(zip(names, meta["best"], strict=True)):
    rows = {row["epoch"]: row for row in meta["history"][i :: len(names)]}
    if best.setdefault("loss") is None and best["epoch"] is not None:
      best["loss"] = rows[best["epoch"]]["loss"]
      if any(is_better(row, best) for row in rows.values()):
        otherwise.append(name)
  if otherwise:
    logging.warning(
      "The best epochs of %s were chosen by an older version, which kept the first of those with "
      "the same score whatever their losses; from now on the lower loss decides, and so it would "
      "have been another epoch. For one rule throughout, train in another --workdir.",
      ", ".join(otherwise),
    )


def _warn_of_rule(rows, epochs):
  """Warns where scores of the epochs before are of another rule, and that made a difference."""
  absent = {
    name for row in rows for name, value in row.get("score_per_class", {}).items() if value is None
  }
  if absent:
    logging.warning(
      "The first %d epochs were scored by an older version, for which a class that no validation "
      "frame shows (here %s) counted 0 where a model drew it, and now it counts for nobody: scores "
      "before and after are of two rules, and the best epoch is of both. For one rule throughout, "
      "train in another --workdir.",
      epochs,
      ", ".join(sorted(absent)),
    )


def _warn_of_stuck(history, names):
  """Warns once of members whose validation loss is the same in `STUCK` epochs: none learns so."""
  for i, name in enumerate(names):
    losses = [row["loss"] for row in history[i :: len(names)]]
    latest = losses[-STUCK:]
    if (
      len(latest) == STUCK == latest.count(losses[-1]) and losses[-STUCK - 1 : -STUCK] != latest[:1]
    ):
      logging.warning(
        "The validation loss of %s has been %.8g for %d epochs: its output does not change any "
        "more. Lower --config.optimizer.learning_rate, try another --config.seed, or leave it out.",
        name,
        losses[-1],
        STUCK,
      )


def _check_finite(values, names, first_step, epoch):
  bad = np.argwhere(~np.isfinite(np.asarray(values, np.float64)))
  if len(bad):
    i, member = bad[0]
    raise UserError(
      f"the loss of member '{names[member]}' is {values[i][member]} at step {first_step + i} "
      f"(epoch {epoch}); lower --config.optimizer.learning_rate, or look for broken frames. "
      "Nothing of it was saved."
    )


def _write_training(writer, step, losses, task, rate):
  writer.write_members(step, {"loss/train": dict(zip(task.names, losses, strict=True))})
  scalars = {
    "learning_rate": task.schedule(step),
    f"speed/{task.unit}s_per_second": rate,
    f"speed/model_{task.unit}s_per_second": rate * len(task.names),
  }
  writer.write_scalars(step, scalars)


def _write_validation(writer, step, rows, task):
  scalars = {}
  for name, row in zip(task.names, rows, strict=True):
    for metric, value in row.items():
      each = value if isinstance(value, dict) else {"validation": value}
      for part, x in each.items():
        if x is not None:
          scalars.setdefault(f"{metric}/{part}", {})[name] = x
  writer.write_members(step, scalars)


def _split(stacked):
  resumable = {
    "step": stacked.step,
    "params": stacked.params,
    "batch_stats": stacked.batch_stats,
    "opt_state": stacked.opt_state,
  }
  if stacked.averages is not None:
    resumable["averages"] = stacked.averages
  return resumable, {"params": stacked.best_params, "batch_stats": stacked.best_batch_stats}


def _save(checkpoints, sweep, state, meta):
  with timing.part("saving"):
    resumable, best = _split(sweep.stack(state))
    # The copy: orbax writes in the background while the history grows.
    epoch = meta["epoch"] + ("steps" in meta)
    # Before, so that a run that is killed has what belongs to the checkpoint it goes on from.
    timing.keep()
    checkpoints.save(epoch, resumable, best, copy.deepcopy(meta))


def _restore(checkpoints, sweep, state):
  parts = _split(sweep.stack(state))
  resumable, best, meta = checkpoints.restore(*parts, members=len(sweep.members))
  stacked = state_lib.State(
    **resumable, best_params=best["params"], best_batch_stats=best["batch_stats"]
  )
  return sweep.unstack(stacked), meta
