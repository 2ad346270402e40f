"""Masked image modelling in one pass: what is hidden of a frame or clip, and how it is judged.

Cells of every frame are hidden behind the mean grey of what is seen of the clip, and the network
draws them. It is judged on blocks of pixels in hidden cells alone: of speckle no more than its mean
can be known. The network is the one that is wanted later, with its own decoder (the FPN's, or a
linear map of the video network's last features), so that there is no second one to train.

Why not contrasts between clips (EchoCLR): those need many negatives in a batch, through which batch
norm leaks who belongs to whom, train no decoder, and have nothing to compare in a single picture.

Sources: Xie et al., "SimMIM" (arXiv 2111.09886); Li et al., "Architecture-Agnostic Masked Image
Modeling" (arXiv 2205.13943), of convolutional networks.
"""

import functools
import math

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax.data import clip_augment
from lus_jax.training import loop

# Pixels of a block's side: the finest that is judged of what is drawn.
BLOCK = 4
# Held-out clips that are judged after an epoch, and those that are shown.
JUDGED, SHOWN = 256, 4
# The key of what is hidden of held-out clips, always the same.
_HELD = 5


def hidden_blocks(key, shape, *, cells, share):
  """Which blocks are hidden: whole cells, in every frame as many, others in each.

  Args:
    key: a jax random key.
    shape: (B, N, h, w), in blocks.
    cells: of the longer side.
    share: of the cells that are hidden; at least one is, and one is not.

  Returns:
    [B, N, h, w] bool.
  """
  batch, n, height, width = shape
  side = max(1, round(max(height, width) / cells))
  rows, columns = -(-height // side), -(-width // side)
  count = min(max(1, round(share * rows * columns)), rows * columns - 1)
  scores = jax.random.uniform(key, (batch, n, rows * columns))
  last = jnp.sort(scores, axis=-1)[..., count - 1, None]
  found = (scores <= last).reshape(batch, n, rows, columns)
  found = jnp.repeat(jnp.repeat(found, side, axis=2), side, axis=3)
  return found[:, :, :height, :width]


def enlarged(blocks):
  """Blocks [B, N, h, w] as pixels [B, N, BLOCK h, BLOCK w]."""
  return jnp.repeat(jnp.repeat(blocks, BLOCK, axis=2), BLOCK, axis=3)


def by_block(pixels):
  """Means of blocks [B, N, h, w] of pixels [B, N, BLOCK h, BLOCK w]."""
  batch, n, height, width = pixels.shape
  pixels = pixels.reshape(batch, n, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
  return pixels.mean((3, 5))


def hide(image, inside, key, config):
  """Hides a part of every frame.

  Args:
    image: [B, N, H, W, 1] in [0, 1].
    inside: [B, H, W] bool, what was in the original frame.
    key: a jax random key.
    config: the `mask` part of a run's config.

  Returns:
    What is seen [B, N, H', W', 1], H' and W' being multiples of `BLOCK` (what is beyond is cut
    off), and a dict of what is wanted, [B, N, h, w] in blocks: `target`, `hidden`, `counted` (of
    the hidden ones those within the original frame), and `mean` [B, 1, 1, 1] of what is seen.
  """
  batch, n, height, width, _ = image.shape
  h, w = height // BLOCK, width // BLOCK
  image, inside = image[:, :, : h * BLOCK, : w * BLOCK], inside[:, : h * BLOCK, : w * BLOCK]
  hidden = hidden_blocks(key, (batch, n, h, w), cells=config.cells, share=config.share)
  covered = enlarged(hidden)
  known = ~covered & inside[:, None]
  total = jnp.maximum(known.sum((1, 2, 3), keepdims=True), 1)
  mean = jnp.where(known, image[..., 0], 0).sum((1, 2, 3), keepdims=True) / total
  whole = by_block(jnp.broadcast_to(inside[:, None], covered.shape).astype(jnp.float32)) > 0.999
  seen = jnp.where((covered & inside[:, None])[..., None], mean[..., None], image)
  wanted = {"target": by_block(image[..., 0]), "hidden": hidden, "counted": hidden & whole}
  return seen, wanted | {"mean": mean}


def drawn(network, kind, params, batch_stats, seen, wanted, **options):
  """What a network makes of what it sees.

  Args:
    network: a `lus_jax.training.state.Network`.
    kind: of `tasks.initial.NETWORKS`.
    params: its weights.
    batch_stats: its running statistics.
    seen: of `hide`, as is `wanted`.
    wanted: likewise.
    **options: of the network.

  Returns:
    Blocks [B, N, h, w], and the new running statistics.
  """
  batch, n, height, width, _ = seen.shape
  if kind == "segmentation":
    frames = seen.reshape(batch * n, height, width, 1)
    # At the size of what it sees, whatever its head's own is.
    found, stats = network(params, batch_stats, frames, **options)
    found = by_block(found.reshape(batch, n, height, width))
  else:
    found, stats = network(params, batch_stats, seen, pooled=False, **options)
    found = found + jnp.broadcast_to(params["bias"], (1, 1, 1, 1, found.shape[-1]))
    side = math.isqrt(found.shape[-1])
    h, w = found.shape[2:4]
    found = found.reshape(batch, n, h, w, side, side).swapaxes(3, 4)
    found = found.reshape(batch, n, h * side, w * side)
  h, w = wanted["target"].shape[2:]
  return wanted["mean"] + found[:, :, :h, :w].astype(jnp.float32), stats


def distance(found, wanted):
  """Sums over each clip of |found - target| of the blocks that count, [B], and their number [B]."""
  off = jnp.where(wanted["counted"], jnp.abs(found - wanted["target"]), 0)
  return off.sum((1, 2, 3)), wanted["counted"].sum((1, 2, 3))


def make_prepare(config):
  """`(batch, key) -> inputs`: augmented and hidden, the same for every member."""

  def prepare(batch, key):
    augmentation, hiding = jax.random.split(key)
    image, inside = clip_augment.frames(batch["image"], batch["box"], augmentation, config.augment)
    seen, wanted = hide(image, inside, hiding, config.mask)
    return {"seen": seen, "wanted": wanted}

  return prepare


def make_loss(network, kind):
  """The loss: the mean distance of all blocks of a batch that count."""

  def loss_fn(params, batch_stats, member, inputs, key):
    del member
    found, batch_stats = drawn(
      network, kind, params, batch_stats, inputs["seen"], inputs["wanted"], train=True, key=key
    )
    off, count = distance(found, inputs["wanted"])
    return off.sum() / jnp.maximum(count.sum(), 1), batch_stats

  return loss_fn


class HeldOut:
  """The clips that nothing is learnt from, each hidden in one way, and what networks make of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep` of one member.
    unlabelled: `data.unlabelled.Unlabelled`.
    config: a run's config.
  """

  def __init__(self, network, sweep, unlabelled, config):
    kind = config.network

    def evaluate(weights, member, inputs):
      del member
      image, inside = clip_augment.frames(inputs["image"], inputs["box"], None, None)
      key = jax.random.fold_in(jax.random.key(_HELD), inputs["number"])
      seen, wanted = hide(image, inside, key, config.mask)
      params, stats = weights["params"], weights["batch_stats"]
      found, _ = drawn(network, kind, params, stats, seen, wanted, train=False)
      blind = distance(jnp.broadcast_to(wanted["mean"], found.shape), wanted)[0]
      off, count = distance(found, wanted)
      return {"off": off, "blind": blind, "count": count}, (seen, found, wanted)

    self._run, self._sweep = sweep.compile(evaluate), sweep
    self._batches = lambda: unlabelled.held_batches(
      config.train.batch_size, config.clip.n_segment, most=JUDGED
    )

  def _each(self, weights):
    for number, batch in enumerate(self._batches()):
      mask = batch.pop("mask")
      sums, shown = self._run(weights, self._sweep.members, batch | {"number": np.int32(number)})
      sums = {name: x[mask] for name, x in self._sweep.to_host(sums)[0].items()}
      yield sums, shown, batch["image"][mask]

  def judge(self, weights):
    """The mean distance of weights (a sweep's state), that of the mean, and what shows some.

    The last is a function without arguments; see `_examples`.
    """
    parts, first = [], None
    for sums, shown, image in self._each(weights):
      parts.append(sums)
      first = first or (shown, image)
    total = {
      name: sum(float(part[name].sum(dtype=np.float64)) for part in parts) for name in parts[0]
    }
    count = max(1.0, total["count"])
    return total["off"] / count, total["blind"] / count, functools.partial(self._examples, *first)

  def _examples(self, shown, image):
    """What is to be shown: `image`, `seen` and `drawn` [n, H, W] uint8, of the frame in the middle.

    Drawn is what the network made of what was hidden, within what was seen.
    """
    seen, found, wanted = self._sweep.to_host(shown)[0]
    middle = seen.shape[1] // 2
    inside = np.repeat(np.repeat(wanted["hidden"], BLOCK, 2), BLOCK, 3)[:, middle]
    made = np.repeat(np.repeat(found, BLOCK, 2), BLOCK, 3)[:, middle]
    seen, (height, width) = seen[:, middle, ..., 0], inside.shape[1:]
    image = image[:, middle, :height, :width, 0]
    arrays = {"seen": seen, "drawn": np.where(inside, made, seen)}
    arrays = {name: np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8) for name, x in arrays.items()}
    return {name: x[:SHOWN] for name, x in ({"image": image} | arrays).items()}


def weights_of(sweep, state, *, best=False):
  """The weights of a sweep's state, of now or of the best epoch, as dicts."""
  names = ("best_params", "best_batch_stats") if best else ("params", "batch_stats")
  return sweep.map(
    lambda one: {"params": getattr(one, names[0]), "batch_stats": getattr(one, names[1])}, state
  )


def make_task(network, sweep, held_out, config, *, tx, schedule, work):
  """What `lus_jax.training.loop.fit` needs to know of pretraining."""

  def validate(state):
    loss, _, examples = held_out.judge(weights_of(sweep, state))

    def panels():
      arrays = examples()
      rows = np.concatenate([arrays[name] for name in ("image", "seen", "drawn")], axis=2)
      return np.repeat(rows[..., None], 3, axis=-1)

    return [{"score": -loss, "loss": loss}], {"held_out": panels}

  return loop.Task(
    names=["pretraining"],
    prepare=make_prepare(config),
    loss_fn=make_loss(network, config.network),
    tx=tx,
    schedule=schedule,
    validate=validate,
    unit="image" if config.network == "segmentation" else "clip",
    work=work,
  )
