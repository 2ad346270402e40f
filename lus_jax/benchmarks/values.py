"""Whether a device computes what a CPU does: networks, losses and kernels, with their gradients.

A network of random weights amplifies rounding, so no fixed tolerance suits all. What is allowed is
measured: the CPU computes everything twice, the second time with weights and pictures changed by as
much as the device's numbers are rounded, and the device may differ `FACTOR` times as much as these
two do: it rounds after each of the many operations on the way, not only at their start. Below
`FLOORS` nothing is called different: there the CPU's own fast convolutions (Winograd's) differ too.
Units are kept from the kinks of their activations, where rounding would decide of whole gradients.

A GPU multiplies float32 matrices in TF32 unless it is told otherwise. So each case is compared at
the precision 'highest', which is float32, where a wrong formula shows: it may never differ by more
than `MOST`. Networks are compared as they run too, in TF32 ('default') and in bfloat16, where what
is allowed is as much wider as these round; their gradients are then left out, for a batch of few
pixels has none that such rounding leaves alone.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx
from jax import numpy as jnp

from lus_jax import losses, models
from lus_jax.benchmarks import throughput
from lus_jax.data import augment
from lus_jax.evaluation import metrics
from lus_jax.inference import calibration
from lus_jax.models import (
  convolution,
  depthwise,
  layers,
  max_pool,
  ordinal,
  resnet,
  temporal_shift,
)
from lus_jax.tasks.segmentation import train
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective

# How a device computes: its rounding relative to the number, and what is never called different.
ROUNDINGS = {"highest": 2.0**-24, "default": 2.0**-11, "bfloat16": 2.0**-8}
FLOORS = {"highest": 1e-4, "default": 1e-2, "bfloat16": 3e-2}
FACTOR = 20
MOST = 0.3
# Of an array that is small beside the others of its kind, differences count by the others' size.
SMALL = 1e-3
# In a network moments are taken in one pass or two, whose digits differ by the square of the mean
# in standard deviations, here a hundred; and of very many windows a maximum or two is tied.
_NETWORK = 5e-3
# A pixel on the edge of a rotated frame is in or out by the last digit of a coordinate.
_EDGES = 5e-3
RATERS = ("A", "B", "C")
# Products in full float32 are cuBLAS's: XLA would write and try kernels of its own for them too,
# which for a network of many 1 x 1 convolutions had not ended after three minutes on an H100.
FLOAT32_ON_GPU = {"xla_gpu_enable_triton_gemm": False}
KINDS = (
  *("soft", "softseg", "svls", "majority", "staple", "rater(A)", "random_rater", "ordinal"),
  *("threshold(.6, loss=dice)", "threshold(.6, loss=focal)", "threshold(.6, loss=trimap)"),
  "threshold(.6, loss=bce)",
)


@dataclasses.dataclass(frozen=True)
class Case:
  """Something that is computed on both sides.

  Attributes:
    make: `(sizes, dtype) -> function, noisy, fixed`: a pure function of two pytrees of arrays, of
      which the first is changed to see what rounding does; its result is a dict of pytrees.
    how: of `ROUNDINGS`.
    floor: its own, where it is more than that of `FLOORS`.
  """

  make: Callable
  how: tuple[str, ...] = ("highest",)
  floor: float = 0.0


def _config(sizes, dtype, encoder, *, thresholds=throughput.THRESHOLDS, members=()):
  return SimpleNamespace(
    model=SimpleNamespace(
      encoder=encoder, width=sizes.width, dropout=0.2, dtype=dtype, init_from=""
    ),
    sweep=SimpleNamespace(thresholds=thresholds, members=members, seeds=1),
    loss=throughput.LOSS,
  )


def _frames(sizes):
  frames = throughput.random_frames(batch=sizes.batch, size=sizes.size, classes=sizes.classes)
  return augment.prepare(frames)


def _well_conditioned(params, last):
  """Norms whose every number matters, and whose units are far from the kink of what follows them.

  Of a unit on a kink rounding chooses the side, which changes gradients by far more than it changes
  numbers. So the norms before ReLU and ReLU6 have a mean of ten standard deviations, above 0, or
  below it in a quarter of the channels where no shortcut is added; along the shortcuts of a stage
  what its first block adds once is enough.

  Args:
    params: of a network.
    last: the name of a block's norm after which its shortcut is added; '' for none such.
  """
  r = np.random.default_rng(1)

  def change(path, x):
    names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
    *outer, name = names
    norm = outer[-1] if outer else ""
    adds = last != "" and norm == last
    later = adds and outer[-2] != "0"
    if name == "scale":
      return (r.uniform(0.2, 0.4, x.shape) * (0.3 if later else 1)).astype(np.float32)
    if name != "bias":
      return x
    before_activation = "norms" in outer or norm.endswith("bn") or norm.startswith("bn")
    if not before_activation or later or "downsample" in outer or norm == "project_bn":
      return r.normal(0, 0.1, x.shape).astype(np.float32)
    off = r.random(x.shape) < (0 if adds else 0.25)
    return np.where(off, -3, 3).astype(np.float32)

  return jax.tree_util.tree_map_with_path(change, params)


def _value_and_gradients(network, loss_fn, member, inputs, *, last=""):
  def compute(noisy, fixed):
    inputs = fixed | {"image": noisy["image"]}
    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      noisy["params"], noisy["batch_stats"], member, inputs, jax.random.key(2)
    )
    outputs, _ = network(noisy["params"], batch_stats, inputs["image"])
    return {
      "loss": loss,
      "outputs": outputs,
      "batch_stats": batch_stats,
      "gradients": gradients,
    }

  noisy = {
    "params": _well_conditioned(network.params, last),
    "batch_stats": network.batch_stats,
    "image": inputs["image"],
  }
  return compute, noisy, {name: x for name, x in inputs.items() if name != "image"}


def _segmentation(encoder, kind, sizes, dtype):
  config = _config(sizes, dtype, encoder, members=(kind,) if kind else ())
  objective = Objective(config)
  network = state_lib.Network(
    models.build_model(
      config.model, in_channels=1, classes=sizes.classes, levels=objective.head, seed=0
    )
  )
  # The last: the one of this kind, or label(confidence, .2).
  member = objective.scalars(objective.members[-1 if kind else -2])
  loss_fn = train.make_loss(network, objective)
  _, bottleneck = resnet.DEPTHS[encoder]
  last = "bn3" if bottleneck else "bn2"
  return _value_and_gradients(network, loss_fn, member, _frames(sizes), last=last)


def _video(sizes, dtype):
  config = _config(sizes, dtype, "")
  config.model.dropout = 0.0
  network = state_lib.Network(
    models.build_video_model(
      config.model, in_channels=1 + sizes.classes, outputs=1, hidden=throughput.HIDDEN, seed=0
    )
  )

  def loss_fn(params, batch_stats, member, inputs, key):
    outputs, batch_stats = network(params, batch_stats, inputs["image"], train=True)
    error = outputs[:, 0] + params["bias"][0] - inputs["target"]
    return jnp.mean(jnp.square(error)), batch_stats

  r = np.random.default_rng(0)
  shape = (sizes.batch, sizes.frames, sizes.size, sizes.size, 1 + sizes.classes)
  inputs = {
    "image": r.random(shape, np.float32),
    "target": r.random(sizes.batch, np.float32),
  }
  return _value_and_gradients(network, loss_fn, None, inputs)


def _kernels(sizes, dtype):
  r = np.random.default_rng(0)
  b, side, c = sizes.batch, sizes.size, 32

  def normal(*shape):
    return r.normal(size=shape).astype(np.float32)

  found = {}

  def add(name, function, *arguments):
    found[name] = function, arguments

  for size, stride, channels, outputs in (
    *((1, 1, c, 2 * c), (1, 2, c, 2 * c), (3, 1, c, c), (3, 2, c, 2 * c), (7, 2, 1, c)),
    *((3, 1, 4 * c, 4 * c), (3, 2, 4 * c, 4 * c)),
  ):
    # Wide kernels see small maps, as in a network.
    n = side if channels <= c else max(side // 8, 4)
    add(
      f"conv {size} x {size}, stride {stride}, {channels} to {outputs}",
      functools.partial(convolution.conv, stride=stride),
      normal(b, n, n, channels),
      normal(size, size, channels, outputs) / size,
    )
  for stride in (1, 2):
    function = functools.partial(depthwise.depthwise_conv, stride=stride)
    add(f"depthwise, stride {stride}", function, normal(b, side, side, c), normal(3, 3, 1, c))
  add("max pool", max_pool.max_pool, normal(b, side, side, c))
  for factor, channels in ((2, c), (4, 6), (4, 8)):
    function = functools.partial(layers.upsample_bilinear, factor=factor)
    add(f"upsampling by {factor}, {channels}", function, normal(b, 8, 8, channels))
  add("nearest", functools.partial(layers.upsample_nearest, factor=2), normal(b, 8, 8, c))
  add(
    "resizing", functools.partial(layers.resize, height=side // 2, width=side // 3),
    normal(b, side, side, 3),
  )  # fmt: skip
  shift = functools.partial(temporal_shift.temporal_shift, n_segment=b)
  add("temporal shift", shift, normal(2 * b, 8, 8, c))
  add("nested logits", lambda x: ordinal.nested_logits(x, 4), normal(b, 8, 8, 8))

  # Means as far from 0 as a frame's intensities.
  shifted = normal(b, side, side, c) + 2 * normal(c)
  for name, module, options in (
    ("batch norm, training", layers.BatchNorm(c), {"train": True}),
    ("batch norm, frozen", layers.BatchNorm(c), {"train": False}),
    ("group norm", layers.GroupNorm(c, num_groups=8), {}),
  ):
    graph, _, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    stats = nnx.to_pure_dict(stats)

    def apply(x, scale, bias, graph=graph, stats=stats, options=options):
      return nnx.merge(graph, {"scale": scale, "bias": bias}, stats)(x, **options)

    add(name, apply, shifted, 1 + 0.3 * normal(c), 0.3 * normal(c))

  def compute(noisy, fixed):
    results = {}
    for name, (function, _) in found.items():
      value, pull = jax.vjp(function, *noisy[name])
      # As uneven as a gradient is, and the same on both sides.
      weights = jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size)).reshape(y.shape), value)
      results[name] = {"value": value, "gradients": pull(weights)}
    return results

  return compute, {name: arguments for name, (_, arguments) in found.items()}, {}


def _losses(sizes, dtype):
  config = _config(sizes, dtype, "resnet18", thresholds=(0.8, 0.5, 0.2), members=KINDS)
  objective = Objective(config).with_raters(RATERS)
  members = [objective.scalars(member) for member in objective.members]
  r = np.random.default_rng(0)
  b, side, k = sizes.batch, sizes.size, sizes.classes
  frames = throughput.random_frames(batch=b, size=side, classes=k) | {
    "staple": r.integers(0, 256, (b, side, side, k), dtype=np.uint8),
    "raters": 255 * r.integers(0, 2, (b, len(RATERS), side, side, k), dtype=np.uint8),
    "drawn": np.ones((b, len(RATERS)), bool),
  }
  inputs = augment.prepare(frames)
  raw = 2 * r.normal(size=(b, side // 4, side // 4, k * objective.head)).astype(np.float32)
  plain = 2 * r.normal(size=(b, side, side, k)).astype(np.float32)

  def compute(noisy, fixed):
    def of_member(member):
      return jax.value_and_grad(objective.loss)(noisy["raw"], fixed, member, jax.random.key(3))

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    values, gradients = jax.lax.map(of_member, stacked)
    results = {
      member.name: {"loss": values[i], "gradient": gradients[i]}
      for i, member in enumerate(objective.members)
    }
    for name in losses.LOSSES:
      for reduction in losses.REDUCTIONS:
        for weights in losses.WEIGHTS:

          def loss(logits, name=name, reduction=reduction, weights=weights):
            return losses.training_loss(
              name,
              logits=logits,
              confidence=fixed["confidence"],
              where=fixed["where"],
              threshold=0.6,
              reduction=reduction,
              weights=weights,
            )

          found = jax.value_and_grad(loss)(noisy["plain"])
          results[f"{name}, {reduction}, {weights}"] = found
    return results

  return compute, {"raw": raw, "plain": plain}, inputs


def _evaluation(sizes, dtype):
  r = np.random.default_rng(0)
  inputs = _frames(sizes)
  shape = inputs["confidence"].shape
  logits = 3 * r.normal(size=shape).astype(np.float32)
  near = np.asarray(metrics.near_confidence(np.asarray(inputs["confidence"])))

  def compute(noisy, fixed):
    common = {name: fixed[name] for name in ("confidence", "where")} | noisy
    thresholds = np.float32(throughput.THRESHOLDS)
    temperature = {"temperature": jnp.full(shape[-1], 1.7)}
    return {
      "test": metrics.image_sums(
        **common, near=fixed["near"], threshold=0.5, evaluation_thresholds=thresholds
      ),
      "cut-offs": metrics.cut_sums(**common, threshold=0.5),
      "validation": metrics.iou_sums(**common, threshold=0.5),
      "calibrated": calibration.calibrate(temperature, noisy["logits"]),
    }

  return compute, {"logits": logits}, inputs | {"near": near}


def _augmentation(sizes, dtype):
  frames = throughput.random_frames(batch=sizes.batch, size=sizes.size, classes=sizes.classes)

  def compute(noisy, fixed):
    return augment.prepare(fixed, jax.random.key(4), throughput.AUGMENT)

  return compute, {}, frames


def _adam(sizes, dtype):
  r = np.random.default_rng(0)
  gradients = {str(n): r.normal(size=n).astype(np.float32) for n in (1, 33, 4096)}
  tx = optax.adam(optax.cosine_decay_schedule(1e-4, 100))

  def compute(noisy, fixed):
    params, state = jax.tree.map(jnp.zeros_like, noisy), tx.init(noisy)
    for i in range(3):
      updates, state = tx.update(jax.tree.map(lambda x, i=i: (i + 1) * x, noisy), state, params)
      params = optax.apply_updates(params, updates)
    return {"params": params}

  return compute, gradients, {}


# The longest first, for several are computed at once.
CASES = {
  "fpn resnet34": Case(
    functools.partial(_segmentation, "resnet34", ""), ("highest", "default", "bfloat16"), _NETWORK
  ),
  "video": Case(_video, ("highest", "bfloat16"), _NETWORK),
  "fpn resnet50": Case(functools.partial(_segmentation, "resnet50", ""), floor=_NETWORK),
  "fpn resnet18, ordinal": Case(
    functools.partial(_segmentation, "resnet18", "ordinal"), floor=_NETWORK
  ),
  "kernels": Case(_kernels),
  "losses": Case(_losses),
  "evaluation": Case(_evaluation),
  "augmentation": Case(_augmentation, floor=_EDGES),
  "adam": Case(_adam),
}


class Side:
  """Computes cases in this process, on its default device.

  Args:
    sizes: `size`, `batch`, `classes`, `frames` and `width`.
    as_gpu: whether programs are made as on a GPU, whatever the device is.
  """

  def __init__(self, sizes, as_gpu=False):
    self._sizes, self._as_gpu = sizes, as_gpu

  def compute(self, name, how, noises=(0.0,)):
    """A case's results, a list with one for every noise.

    Args:
      name: of `CASES`.
      how: of `ROUNDINGS`, 'float32' for the reference.
      noises: by how much, relatively, what is noisy is changed.

    Returns:
      Dicts of NumPy arrays by name.
    """
    dtype = "bfloat16" if how == "bfloat16" else "float32"
    precision = "highest" if how in ("highest", "float32") else None
    with contextlib.ExitStack() as stack:
      if self._as_gpu:
        stack.enter_context(mock.patch.object(jax, "default_backend", lambda: "gpu"))
      # The same numbers for all, so made by the same device.
      with jax.default_device(jax.devices("cpu")[0]):
        function, noisy, fixed = CASES[name].make(self._sizes, dtype)
        noisy, fixed = jax.device_get((noisy, fixed))
      stack.enter_context(jax.default_matmul_precision(precision))
      on_gpu = precision is not None and jax.devices()[0].platform == "gpu"
      run = jax.jit(function, compiler_options=FLOAT32_ON_GPU if on_gpu else None)
      results = [jax.device_get(run(_disturbed(noisy, noise), fixed)) for noise in noises]
    return [
      {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(result)
      }
      for result in results
    ]


def _disturbed(tree, noise):
  if not noise:
    return tree
  r = np.random.default_rng(5)
  return jax.tree.map(
    lambda x: (x * (1 + noise * r.choice([-1, 1], x.shape))).astype(np.float32), tree
  )


def compare(expected, disturbed, found, how, *, floor):
  """Whether what was found is what was expected.

  Args:
    expected: arrays by name ('kind/...'), of the reference.
    disturbed: the same after its rounding was changed.
    found: by the device.
    how: of `ROUNDINGS`.
    floor: a relative difference that is none.

  Returns:
    A dict: `ok`, and of the array that differs most of what is allowed its name (`worst`), its
    relative `difference` and what was `allowed`.
  """
  if how != "highest":
    expected = {n: x for n, x in expected.items() if not n.startswith("gradients/")}
  sizes, changes = {}, {}
  for name, x in expected.items():
    kind = name.split("/")[0]
    sizes[kind] = max(sizes.get(kind, 0.0), _norm(x))
  for name, x in expected.items():
    scale = max(_norm(x), SMALL * sizes[name.split("/")[0]]) or 1.0
    changes[name] = [_difference(other[name], x) / scale for other in (found, disturbed)]
  kinds = {}
  for name, (_, rounding) in changes.items():
    kinds.setdefault(name.split("/")[0], []).append(rounding)
  middle = {kind: float(np.median(values)) for kind, values in kinds.items()}
  rows = []
  for name, (difference, rounding) in changes.items():
    allowed = min(MOST, FACTOR * max(rounding, middle[name.split("/")[0]]))
    allowed = max(floor, allowed)
    rows.append((difference / allowed, name, difference, allowed))
  share, worst, difference, allowed = max(rows)
  return {
    "ok": bool(share <= 1),
    "worst": worst,
    "difference": float(f"{difference:.3g}") if np.isfinite(difference) else None,
    "allowed": float(f"{allowed:.3g}"),
  }


def _difference(a, b):
  """The Euclidean norm of a difference; infinite between shapes, or where one alone is finite."""
  if a.shape != b.shape:
    return np.inf
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  with np.errstate(invalid="ignore"):
    # Infinite on both sides is the same.
    apart = np.where(a == b, 0.0, a - b)
  norm = float(np.sqrt(np.sum(np.square(apart))))
  return norm if np.isfinite(norm) else np.inf


def _norm(x):
  x = np.asarray(x, np.float64)
  return float(np.sqrt(np.sum(np.square(x[np.isfinite(x)]))))
