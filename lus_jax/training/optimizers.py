"""The optimizers that all tasks share."""

import jax
import optax


def adam(schedule, weight_decay=0.0):
  """Adam; with `weight_decay` AdamW, by which kernels decay, biases and norms do not."""
  if weight_decay:
    return optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels)
  return optax.adam(schedule)


def _kernels(params):
  return jax.tree.map(lambda x: x.ndim > 1, params)


def with_cosine(config, steps):
  """Adam, or AdamW, with a cosine decay to 0 over the whole run; returns it and its schedule.

  Args:
    config: the `optimizer` part of a run's config. With `warmup` the learning rate first rises for
      this share of the steps; with `weight_decay` see `adam`. Configs of older versions lack both.
    steps: of the run.
  """
  # At least one step is left to fall in.
  rate, rising = config.learning_rate, min(round(getattr(config, "warmup", 0) * steps), steps - 1)
  if rising > 0:
    schedule = optax.warmup_cosine_decay_schedule(rate / (rising + 1), rate, rising, steps)
  else:
    schedule = optax.cosine_decay_schedule(rate, steps)
  return adam(schedule, getattr(config, "weight_decay", 0)), schedule
