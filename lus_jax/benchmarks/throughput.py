"""How fast the sweep trains and predicts, by strategy, beside PyTorch on the same data.

  python -m lus_jax.benchmarks.throughput --peer torch                 segmentation, training
  python -m lus_jax.benchmarks.throughput --what tsm --peer torch      the video network, training
  python -m lus_jax.benchmarks.throughput --what predict --peer torch  segmentation, frozen

Without more options it measures the paper's network and sizes in bfloat16 on an accelerator, and
smaller ones in float32 on a CPU. Prints a table and, with --out, writes JSON.

Both sides compute the same step on the same arrays, which lie on the device: forward pass, loss,
gradients and Adam. Augmentation is timed apart (`augment_ms`). All runs take turns, so that a
machine that slows down does so for all; a figure is the median over their samples after a warm-up,
and a sample ends when every result is there. PyTorch trains one model at a time, in float32 'eager'
as is and 'channels_last', and as well as a user gets it: channels_last and a fused Adam, on a GPU
with torch.compile, in bfloat16 under autocast. Needs no TensorFlow, and PyTorch (the `peers` extra)
only for its side.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import optax
from jax import numpy as jnp

from lus_jax import command_line, labels, models, parallel
from lus_jax.benchmarks import peers
from lus_jax.data import augment
from lus_jax.errors import UserError
from lus_jax.files import write_text
from lus_jax.models import flops, fpn, resnet
from lus_jax.results import versions
from lus_jax.tasks.clinical import train
from lus_jax.tasks.segmentation import train as train_lib
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.peak import matmul_rate
from lus_jax.training.sweep import STRATEGIES, Sweep, choose_strategy

THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
WHAT = {
  "fpn": "training the segmentation FPN",
  "tsm": "training the temporal-shift MobileNetV2",
  "predict": "predicting with the frozen segmentation FPN",
}
# The paper's sizes where they are feasible.
DEFAULTS = {
  "fpn": {"cpu": {"size": 128, "batch": 8}, "gpu": {"size": 512, "batch": 16}},
  "tsm": {"cpu": {"size": 112, "batch": 4}, "gpu": {"size": 224, "batch": 16}},
  "predict": {"cpu": {"size": 128, "batch": 8}, "gpu": {"size": 512, "batch": 32}},
}
BACKENDS = {
  "cpu": {"encoder": "resnet18", "dtype": "float32"},
  "gpu": {"encoder": "resnet34", "dtype": "bfloat16"},
}
# Steps that are issued before waiting: an accelerator computes while the host prepares the next.
QUEUED = {"cpu": 1, "gpu": 5}
ROUNDS = 2
# Not a strategy of the sweep: one network predicts every threshold.
ORDINAL = "ordinal"
# Where the batch is not the first axis of an input.
BATCH_AXIS = {("tsm", "image"): 1, ("tsm", "channels"): 2}
LEARNING_RATE = 1e-4
# PyTorch's ways to compute the same, each faster than the one before; 'tuned' also compiles and
# takes our dtype, where there is a GPU.
VARIANTS = ("eager", "channels_last", "tuned")
HIDDEN = (256, 64)  # the layers of the `sf_ratio` task
LOSS = SimpleNamespace(
  name="weighted_cross_entropy", weights="paper", subthreshold_weight="threshold", reduction="mean"
)
AUGMENT = SimpleNamespace(
  probability=0.5, rotation_degrees=15.0, brightness=0.2, contrast=0.2, gamma=(0.8, 1.25)
)


def random_frames(*, batch, size, classes):
  """Stored frames of noise, never zeros: [B, H, W, ...] uint8."""
  r = np.random.default_rng(0)
  return {
    "image": r.integers(1, 256, (batch, size, size, 1), dtype=np.uint8),
    "confidence": r.integers(0, 256, (batch, size, size, classes), dtype=np.uint8),
    "labelled": np.ones((batch, classes), bool),
    "valid_box": np.tile(np.int32([0, 0, size, size]), (batch, 1)),
  }


def random_clips(*, batch, frames, size, classes, sources):
  """A training batch of the clinical tasks with one fold, of noise, and its targets [B]."""
  r = np.random.default_rng(0)
  shape = (1, batch, frames, size, size)
  return {
    "image": r.integers(1, 256, (*shape, 1), dtype=np.uint8),
    "channels": r.integers(0, 256, (1, sources, *shape[1:], classes), dtype=np.uint8),
    "target": r.random(batch, dtype=np.float32),
  }


def problem(args, thresholds, *, levels=1):
  """What is computed.

  Args:
    args: of `parse`.
    thresholds: T.
    levels: of the segmentation network's head.

  Returns:
    The `Network`, T members, the loss of one (None where nothing is trained) and its inputs on the
    host.
  """
  config = SimpleNamespace(
    encoder=args.encoder, width=args.width, dropout=0.2, dtype=args.dtype, init_from=""
  )
  if args.what == "tsm":
    network = state_lib.Network(
      models.build_video_model(
        config, in_channels=1 + args.classes, outputs=1, hidden=HIDDEN, seed=0
      )
    )
    *_, members = train.make_members(THRESHOLDS[:thresholds], (), 1)

    def loss_fn(params, batch_stats, member, inputs, key):
      clips = train.member_clips(inputs, member, "probability")
      outputs, batch_stats = network(params, batch_stats, clips, train=True)
      error = outputs[:, 0] + params["bias"][0] - inputs["target"]
      return jnp.mean(jnp.square(error)), batch_stats

    inputs = random_clips(
      batch=args.batch,
      frames=args.frames,
      size=args.size,
      classes=args.classes,
      sources=thresholds,
    )
    return network, members, loss_fn, inputs
  network = state_lib.Network(
    models.build_model(config, in_channels=1, classes=args.classes, seed=0, levels=levels)
  )
  objective = _objective(thresholds)
  members = [objective.scalars(member) for member in objective.members]
  loss_fn = train_lib.make_loss(network, objective) if args.what == "fpn" else None
  frames = random_frames(batch=args.batch, size=args.size, classes=args.classes)
  return network, members, loss_fn, jax.device_get(jax.jit(augment.prepare)(frames))


def _objective(thresholds, members=()):
  sweep = SimpleNamespace(thresholds=THRESHOLDS[:thresholds], members=members, seeds=1)
  return Objective(SimpleNamespace(sweep=sweep, loss=LOSS, model=SimpleNamespace()))


class Ours:
  """A compiled sweep that is ready to be timed.

  Attributes:
    row: what it is, for the table.
    seconds: samples so far, of one step each.
  """

  def __init__(self, args, *, thresholds, strategy):
    ordinal = strategy == ORDINAL
    # One network stands for all thresholds.
    n_models = 1 if ordinal else thresholds
    network, members, loss_fn, inputs = problem(args, n_models, levels=thresholds if ordinal else 1)
    sweep = Sweep(members, "loop" if ordinal else strategy)
    parallel.check_batch(sweep.mesh, args.batch)
    inputs = {
      name: parallel.split(sweep.mesh, x, args.batch, axis=BATCH_AXIS.get((args.what, name), 0))
      for name, x in inputs.items()
    }
    weights = {"params": network.params, "batch_stats": network.batch_stats}
    if loss_fn is None:
      states = [jax.tree.map(jnp.copy, weights) for _ in members]
      objective = _objective(thresholds, ("ordinal",) * ordinal)

      def predict(weights, member, inputs, key):
        raw, _ = objective.logits(
          network, weights["params"], weights["batch_stats"], inputs["image"]
        )
        return jax.nn.sigmoid(objective.nested(raw, inputs) if ordinal else raw)

      step = sweep.compile(predict)
    else:
      tx = optax.adam(LEARNING_RATE)
      states = [state_lib.create_state(**weights, tx=tx) for _ in members]
      step = sweep.compile(state_lib.make_train_step(loss_fn, tx), updates_state=True)
    self._state = sweep.place(states)
    self._updates = loss_fn is not None
    self._step = lambda state: step(state, sweep.members, inputs, jax.random.key(0))
    self.seconds = []
    self.row = _row(args, thresholds, "ours") | {"dtype": args.dtype, "strategy": strategy}

    since = time.perf_counter()
    arguments = (self._state, sweep.members, inputs, jax.random.key(0))
    program = step.lower(*arguments).compile()
    self.row["compile_s"] = round(time.perf_counter() - since, 2)
    used = program.memory_analysis()
    # One member (or, under `sharded`, one round) is computed while the other states wait.
    waiting = jax.tree.leaves(self._state[1:])
    self.row["memory_bytes"] = sum(x.addressable_shards[0].data.nbytes for x in waiting) + (
      used.argument_size_in_bytes
      + used.output_size_in_bytes
      + used.temp_size_in_bytes
      - used.alias_size_in_bytes
    )
    # The warm-up, which is also where a GPU's memory proves too small.
    self.sample(1)
    self.seconds.clear()

  def sample(self, queued):
    """Times that many steps, issued one after another, with all results waited for."""
    since = time.perf_counter()
    for _ in range(queued):
      result = self._step(self._state)
      if self._updates:
        self._state, result = result
    jax.block_until_ready((self._state, result))
    self.seconds.append((time.perf_counter() - since) / queued)


class Torch:
  """PyTorch's side of the same problem, one model; `row`, `seconds` and `sample` as `Ours`.

  Args:
    args: of `parse`.
    variant: one of `VARIANTS`.
  """

  def __init__(self, args, variant):
    channels_last, tuned = variant != "eager", variant == "tuned"
    self._torch = torch = peers.import_torch()
    self._device = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    torch.set_num_threads(_cores())
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    memory = self._start_of_memory()
    compiled = tuned and self._device == "cuda"
    self._bfloat16 = tuned and args.dtype == "bfloat16"
    self._trains = args.what != "predict"
    _, members, _, inputs = problem(args, 1)
    if args.what == "tsm":
      images = train.member_clips(inputs, members[0], "probability")
      self.target = self._tensor(inputs["target"])
      self._loss = _squared_error
      model = peers.tsm(
        in_channels=1 + args.classes,
        outputs=1,
        n_segment=args.frames,
        hidden=HIDDEN,
        width=args.width,
      )
    else:
      images = inputs["image"]
      self.target = self._tensor(inputs["confidence"], channels_last=channels_last)
      self._loss = weighted_cross_entropy
      model = peers.fpn(args.encoder, in_channels=1, classes=args.classes)
    self.images = self._tensor(images, channels_last=channels_last)
    model = model.to(self._device).train(self._trains)
    if channels_last:
      model = model.to(memory_format=torch.channels_last)
    # None leaves the choice to PyTorch; False would be the slowest one.
    self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=tuned or None)
    self.model = torch.compile(model) if compiled else model
    parts = {
      "channels_last": channels_last,
      "fused_adam": tuned and self._trains,
      "compiled": compiled,
      "bf16": self._bfloat16,
    }
    self.seconds = []
    self.row = _row(args, 1, "torch") | {
      "dtype": "bfloat16" if self._bfloat16 else "float32",
      "strategy": None,
      "variant": " ".join(name for name, there in parts.items() if there) or "eager",
    }
    # The first step compiles, and chooses cuDNN's algorithms.
    self.sample(1)
    self.row["compile_s"] = round(self.seconds.pop(), 2)
    self.row["memory_bytes"] = self._end_of_memory(memory)

  def sample(self, queued):
    """Times that many steps, issued one after another, with all results waited for."""
    since = time.perf_counter()
    for _ in range(queued):
      if self._trains:
        self._train()
      else:
        self._predict()
    if self._device == "cuda":
      self._torch.cuda.synchronize()
    self.seconds.append((time.perf_counter() - since) / queued)

  def _forward(self):
    kind = self._torch.bfloat16
    with self._torch.autocast(self._device, dtype=kind, enabled=self._bfloat16):
      return self.model(self.images)

  def _predict(self):
    with self._torch.inference_mode():
      return self._forward().float().sigmoid()

  def _train(self):
    self._optimizer.zero_grad()
    self._loss(self._torch, self._forward().float(), self.target).backward()
    self._optimizer.step()

  def _tensor(self, array, *, channels_last=False):
    # Ours are channels last already; PyTorch's have them before height and width.
    tensor = self._torch.tensor(np.asarray(array), device=self._device)
    if tensor.ndim < 4:
      return tensor
    tensor = tensor.movedim(-1, -3)
    return tensor if channels_last else tensor.contiguous()

  def _start_of_memory(self):
    if self._device != "cuda":
      return None
    self._torch.cuda.reset_peak_memory_stats()
    return self._torch.cuda.memory_allocated()

  def _end_of_memory(self, start):
    return None if start is None else self._torch.cuda.max_memory_allocated() - start


def weighted_cross_entropy(torch, logits, confidence, threshold=THRESHOLDS[0]):
  """Our default loss in PyTorch.

  Args:
    torch: the module.
    logits: [B, K, H, W].
    confidence: [B, K, H, W], in [0, 1].
    threshold: in [0, 1].

  Returns:
    A scalar.
  """
  present = (confidence >= threshold - labels.SLACK) & (confidence >= labels.ZERO)
  background = 0.8 if threshold in (0, 1) else threshold
  weight = torch.where(present, confidence, background)
  return torch.nn.functional.binary_cross_entropy_with_logits(
    logits, present.to(logits.dtype), weight=weight
  )


def _squared_error(torch, outputs, target):
  return torch.nn.functional.mse_loss(outputs[:, 0], target)


def _row(args, thresholds, side):
  row = {"what": args.what, "size": args.size, "batch": args.batch, "thresholds": thresholds}
  row |= {"frames": args.frames} if args.what == "tsm" else {"encoder": args.encoder}
  return row | {"width": args.width, "side": side}


def _cores():
  # macOS cannot say how many of its cores are ours.
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measure_augmentation(args):
  """Milliseconds that one batch takes through the augmentation, shared by all members."""
  frames = jax.device_put(random_frames(batch=args.batch, size=args.size, classes=args.classes))
  prepare = jax.jit(lambda batch, key: augment.prepare(batch, key, AUGMENT))
  seconds = []
  for i in range(1 + ROUNDS * args.steps):
    since = time.perf_counter()
    jax.block_until_ready(prepare(frames, jax.random.key(i)))
    seconds.append(time.perf_counter() - since)
  return round(1000 * statistics.median(seconds[1:]), 1)


def profile(run, *, steps=4):
  """Where the time of our step goes, by XLA's operations.

  Args:
    run: an `Ours`.
    steps: how many are traced.

  Returns:
    A list of `{"operation", "calls", "ms", "share"}`, the longest first: operations that differ in
    their number alone are one; milliseconds of a step, added over all threads; share of the sum.
  """
  milliseconds, calls = collections.Counter(), collections.Counter()
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(steps):
        run.sample(1)
    (file,) = pathlib.Path(directory).rglob("*.xplane.pb")
    # jax's types lack what Python 3.12 wants of a built-in one; as an error that would end us.
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", DeprecationWarning)
      for name, nanoseconds in _operations(jax.profiler.ProfileData.from_file(str(file))):
        kind = re.sub(r"[.\d]+$", "", name)
        milliseconds[kind] += nanoseconds / 1e6 / steps
        calls[kind] += 1
  total = sum(milliseconds.values())
  return [
    {
      "operation": kind,
      "calls": round(calls[kind] / steps),
      "ms": round(ms, 2),
      "share": round(ms / total, 4),
    }
    for kind, ms in milliseconds.most_common()
  ]


def _operations(data):
  """XLA's operations in a trace: names and durations in nanoseconds."""
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        name = next((value for key, value in event.stats if key == "hlo_op"), None)
        if name is not None:
          yield name, event.duration_ns


def step_flops(args):
  """Floating point operations that one image (clip) of a step takes, by `lus_jax.models.flops`."""
  if args.what == "tsm":
    return flops.TRAINING * flops.video(
      size=args.size,
      n_segment=args.frames,
      in_channels=1 + args.classes,
      outputs=1,
      hidden=HIDDEN,
      width=args.width,
    )
  forward = flops.fpn(
    args.encoder, size=args.size, in_channels=1, classes=args.classes, width=args.width
  )
  return forward * (flops.TRAINING if args.what == "fpn" else 1)


def measure(args):
  """Times every strategy and number of thresholds, and the peer.

  Args:
    args: of `parse`.

  Returns:
    A dict of `date`, `machine`, `versions`, `load_before` (the machine's load average, over one
    minute, before the first run), `matmul_rate` (FLOP/s by dtype), `flop_per_image`, `rows` and, if
    asked for, `profile` (of the first row).
  """
  load = os.getloadavg()[0]
  runs = []
  for thresholds in args.thresholds:
    for strategy in args.strategies:
      try:
        runs.append(Ours(args, thresholds=thresholds, strategy=strategy))
      except UserError as error:
        if len(args.strategies) == 1:
          raise
        print(f"left out: {strategy} with {thresholds}: {error}", file=sys.stderr)
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
          raise
        # One strategy that takes too much must not cost the figures of the others.
        print(f"left out: {strategy} with {thresholds} is out of memory", file=sys.stderr)
  if args.what == "predict" and runs:
    runs.append(Ours(args, thresholds=len(THRESHOLDS), strategy=ORDINAL))
  if not runs:
    raise UserError("nothing fits into memory; use a smaller --batch or --size.")
  if args.peer:
    # Nothing is left to tune where a CPU only predicts.
    last = -1 if args.what == "predict" and jax.default_backend() == "cpu" else None
    runs += [Torch(args, variant) for variant in VARIANTS[:last]]
  dtypes = {run.row["dtype"] for run in runs}
  augment_ms = measure_augmentation(args) if args.what == "fpn" else None
  rates = {dtype: [] for dtype in sorted(dtypes)}
  queued = QUEUED.get(jax.default_backend(), QUEUED["gpu"])
  for _ in range(ROUNDS):
    for dtype, found in rates.items():
      found.append(matmul_rate(dtype))
    for run in runs:
      for _ in range(args.steps):
        run.sample(queued)
  rates = {dtype: statistics.mean(found) for dtype, found in rates.items()}
  rows = [_finish(run, rates, step_flops(args)) for run in runs]
  for row in rows:
    if row["side"] == "ours" and augment_ms is not None:
      row["augment_ms"] = augment_ms
  compare(rows)
  profiled = {"profile": profile(runs[0])} if args.profile else {}
  device = jax.devices()[0]
  torch = {"torch": peers.import_torch().__version__} if args.peer else {}
  return {
    "date": datetime.date.today().isoformat(),
    "machine": f"{jax.device_count()} x {device.device_kind}, {_cores()} cores, "
    f"{platform.system()}",
    "versions": versions() | torch,
    "load_before": round(load, 2),
    "matmul_rate": rates,
    "flop_per_image": step_flops(args),
    "rows": rows,
    **profiled,
  }


def _finish(run, rates, flop):
  row, step = run.row, statistics.median(run.seconds)
  rate = row["batch"] * row["thresholds"] / step
  # The matrix rate is one device's; a CPU's devices share its cores.
  several = row.get("strategy") == "sharded" and jax.default_backend() != "cpu"
  peak = rates[row["dtype"]] * (jax.device_count() if several else 1)
  # One ordinal network, whose head alone grows with the thresholds.
  computed = rate / row["thresholds"] if row.get("strategy") == ORDINAL else rate
  return row | {
    "ms_per_step": round(1000 * step, 3),
    "ms_fastest": round(1000 * min(run.seconds), 3),
    "images_per_s": round(rate, 3),
    "peak_share": round(flop * computed / peak, 4),
  }


def compare(rows):
  """Adds what our rows are to others.

  `ratio` is to the fastest PyTorch of the same dtype, `ratio_eager` and `ratio_channels_last` to
  these variants, in float32, all with one model; `cost_to_one` is the time per model to that of our
  fastest run of one model, both with the augmentation, which the models of a step share.
  """
  ours = [row for row in rows if row["side"] == "ours"]
  torch = [row for row in rows if row["side"] == "torch"]

  def per_model(row):
    return (row["ms_per_step"] + row.get("augment_ms", 0)) / row["thresholds"]

  one = min((per_model(row) for row in ours if row["thresholds"] == 1), default=None)
  for row in ours:
    if one is not None:
      row["cost_to_one"] = round(per_model(row) / one, 3)
    alike = [other["images_per_s"] for other in torch if other["dtype"] == row["dtype"]]
    if alike:
      row["ratio"] = round(row["images_per_s"] / max(alike), 3)
    for other in torch:
      if other["variant"] in ("eager", "channels_last"):
        ratio = round(row["images_per_s"] / other["images_per_s"], 3)
        row[f"ratio_{other['variant']}"] = ratio


def table(result):
  """The measured rows as Markdown."""
  unit = "clips" if result["rows"][0]["what"] == "tsm" else "images"
  columns = {
    "side": lambda r: "ours" if r["side"] == "ours" else f"PyTorch, {r['variant']}",
    "strategy": lambda r: r["strategy"] or "",
    "dtype": lambda r: r["dtype"],
    "thresholds": lambda r: r["thresholds"],
    "ms a step": lambda r: f"{r['ms_per_step']:.1f}",
    f"model-{unit}/s": lambda r: f"{r['images_per_s']:.4g}",
    "cost per model to one": lambda r: _number(r.get("cost_to_one"), ".2f"),
    "to best PyTorch": lambda r: _number(r.get("ratio"), ".2f"),
    "to channels_last": lambda r: _number(r.get("ratio_channels_last"), ".2f"),
    "to eager": lambda r: _number(r.get("ratio_eager"), ".2f"),
    "share of peak": lambda r: f"{r['peak_share']:.1%}",
    "memory MiB": lambda r: _number(r["memory_bytes"], ".0f", 2**20),
    "compile s": lambda r: f"{r['compile_s']:.1f}",
  }
  lines = [list(columns), ["---"] * len(columns)]
  lines += [[str(cell(row)) for cell in columns.values()] for row in result["rows"]]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def profile_table(rows, *, longest=12):
  """The longest rows of `profile` as Markdown."""
  lines = ["| operation | calls | ms, all threads | share |", "| --- | --- | --- | --- |"]
  for row in rows[:longest]:
    lines.append(f"| {row['operation']} | {row['calls']} | {row['ms']:.1f} | {row['share']:.1%} |")
  rest = rows[longest:]
  if rest:
    ms, share = (sum(row[name] for row in rest) for name in ("ms", "share"))
    lines.append(f"| {len(rest)} others | | {ms:.1f} | {share:.1%} |")
  return "\n".join(lines)


def _number(value, spec, unit=1):
  return "" if value is None else format(value / unit, spec)


def _describe(args, result):
  network = f"{args.frames} frames" if args.what == "tsm" else args.encoder
  rates = ", ".join(f"{rate / 1e12:.3g} ({dtype})" for dtype, rate in result["matmul_rate"].items())
  lines = [
    f"{result['date']}; {result['machine']}",
    ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    f"{WHAT[args.what]}: {network}, width {args.width:g}, {args.size} x {args.size}, "
    f"batch {args.batch}; {result['flop_per_image'] / 1e9:.3g} GFLOP each, matrix products "
    f"TFLOP/s: {rates}; median of {ROUNDS * args.steps} samples, all runs in turn",
  ]
  if args.peer:
    lines.append(
      "PyTorch trains one model after another, so every ratio is to its rate with one model; the "
      "best PyTorch is the fastest of the same dtype."
    )
  if result["load_before"] > 0.5:
    lines.append(
      f"note: other programs were running (load {result['load_before']}). Threads that wait for "
      "each other suffer most, PyTorch's on a CPU above all: not a fair comparison."
    )
  of_ordinal = [row for row in result["rows"] if row.get("strategy") == ORDINAL]
  one = [r["ms_per_step"] for r in result["rows"] if (r["side"], r["thresholds"]) == ("ours", 1)]
  if of_ordinal and one:
    row = of_ordinal[0]
    lines.append(
      f"One ordinal network predicts {row['thresholds']} thresholds in "
      f"{row['ms_per_step'] / min(one):.2f} times the time of one network for one."
    )
  augmentation = result["rows"][0].get("augment_ms")
  if augmentation is not None:
    lines.append(f"A step of ours that augments takes {augmentation} ms more, for all thresholds.")
  return "\n".join(lines)


def parse(argv):
  """Reads a command line.

  Args:
    argv: a list of options.

  Returns:
    A namespace with every option, defaults filled in, and `strategies`.

  Raises:
    UserError: the options do not go together, or not on this machine.
    SystemExit: an option or value is unknown, as argparse has it.
  """

  def positive(text):
    value = int(text)
    if value < 1:
      raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value

  def size(text):
    value = int(text)
    if value < 32:
      raise argparse.ArgumentTypeError(f"{value} is too small; use at least 32 pixels")
    return value

  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.throughput",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--what", default="fpn", choices=WHAT)
  parser.add_argument("--peer", choices=["torch"], help="measured beside ours")
  parser.add_argument("--size", type=size, help="H and W in pixels")
  parser.add_argument("--batch", type=positive, help="images, or clips")
  parser.add_argument("--frames", type=positive, default=8, help="of a clip")
  parser.add_argument("--classes", type=positive, default=6)
  parser.add_argument("--encoder", choices=resnet.DEPTHS)
  parser.add_argument("--width", type=float, default=1.0, help="factor on channel counts")
  parser.add_argument("--dtype", choices=models.DTYPES)
  parser.add_argument(
    "--thresholds",
    type=int,
    nargs="+",
    default=[1, len(THRESHOLDS)],
    choices=range(1, len(THRESHOLDS) + 1),
    metavar="T",
    help="numbers of models that train together",
  )
  parser.add_argument("--strategy", default="all", choices=["all", *STRATEGIES])
  parser.add_argument(
    "--steps", type=positive, default=3, help=f"samples in each of {ROUNDS} rounds"
  )
  parser.add_argument(
    "--profile", action="store_true", help="also where the time of the first row's step goes"
  )
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  if args.peer:
    # PyTorch needs memory on the same device; the backend is not started yet.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  backend = jax.default_backend()
  kind = "cpu" if backend == "cpu" else "gpu"
  for name, value in (DEFAULTS[args.what][kind] | BACKENDS[kind]).items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  if args.strategy == "all":
    several = jax.device_count() > 1
    args.strategies = [s for s in STRATEGIES if s != "auto" and (several or s != "sharded")]
  else:
    args.strategies = [choose_strategy(args.strategy)]
  models.check_video(args)
  if args.peer and args.what != "tsm" and (args.width != 1 or args.size % fpn.STRIDE):
    raise UserError(
      "--peer torch: segmentation_models_pytorch's FPN has no width, and sizes are multiples of "
      f"{fpn.STRIDE}; leave --width away and choose another --size."
    )
  if args.peer:
    cuda = peers.import_torch().cuda.is_available()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not cuda):
      raise UserError(
        f"--peer torch: JAX computes on the {backend} here and this PyTorch cannot; install a "
        "PyTorch for it, or compare on the CPU with JAX_PLATFORMS=cpu."
      )
  return args


def main(argv=None):
  """Measures, prints a table and writes `--out`; returns the exit code (2: a user's mistake)."""
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv))


def _main(argv):
  args = parse(argv)
  result = measure(args)
  print(f"{_describe(args, result)}\n\n{table(result)}")
  if args.profile:
    print(f"\n{profile_table(result['profile'])}")
  if args.out:
    command = " ".join(["python -m lus_jax.benchmarks.throughput", *argv])
    write_text(args.out, json.dumps({"command": command, **result}, indent=1) + "\n")


if __name__ == "__main__":
  # Compilation is measured too.
  jax.config.update("jax_enable_compilation_cache", False)
  sys.exit(main())
