"""How fast the sweep trains and predicts, by strategy, beside PyTorch on the same data.

  python -m lus_jax.benchmarks.throughput --peer torch                 segmentation, training
  python -m lus_jax.benchmarks.throughput --what tsm --peer torch      the video network, training
  python -m lus_jax.benchmarks.throughput --what predict --peer torch  segmentation, frozen

Without more options it measures the paper's network and sizes in bfloat16 on an accelerator, and
smaller ones in float32 on a CPU. Prints a table and, with --out, writes JSON, row by row.

Both sides compute the same step on the same arrays, which lie on the device: forward pass, loss,
gradients and Adam. Augmentation is timed apart (`augment_ms`). Every row is a process of its own
that holds its compiled step and is told when to take a sample: so all take turns, a machine that
slows down does so for all, and one that aborts or runs out of memory is a row with its reason. What
does not fit into memory beside the others is measured after them, alone (`in_turn` is false). A
figure is the median over a row's samples after a warm-up, and a sample ends when every result is
there.

PyTorch trains one model at a time: in float32 'eager' as is and 'channels_last'; 'fused' with a
fused Adam too, in bfloat16 under autocast where ours is; and on a GPU 'compiled', by torch.compile,
loss and Adam included. Memory is measured alike on both sides (`lus_jax.benchmarks.memory`). Needs
no TensorFlow, and PyTorch (the `peers` extra) only for its side.
"""

import argparse
import collections
import dataclasses
import datetime
import functools
import json
import math
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
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp

from lus_jax import command_line, labels, models, parallel
from lus_jax.benchmarks import memory, peers, processes
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
from lus_jax.words import plural

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
# Of `--budget`, the share that is left for the samples.
RESERVE = 0.15
# Not a strategy of the sweep: one network predicts every threshold.
ORDINAL = "ordinal"
# What `--strategy all` leaves out: an FPN's convolutions, mapped over models, become grouped ones,
# 24 times slower on a CPU and moving 8 times the bytes on a GPU (RESULTS.md).
NEVER = {(what, strategy) for what in ("fpn", "predict") for strategy in ("vmap", "grouped")}
# Where the batch is not the first axis of an input.
BATCH_AXIS = {("tsm", "image"): 1, ("tsm", "channels"): 2, ("tsm", "target"): 1}
LEARNING_RATE = 1e-4
# PyTorch's ways to compute the same, each faster than the one before.
VARIANTS = ("eager", "channels_last", "fused", "compiled")
TORCH_COMPILE = ("none", "default", "reduce-overhead", "max-autotune")
HIDDEN = (256, 64)  # the layers of the `sf_ratio` task
LOSS = SimpleNamespace(
  name="weighted_cross_entropy", weights="paper", subthreshold_weight="threshold", reduction="mean"
)
AUGMENT = SimpleNamespace(
  probability=0.5,
  rotation_degrees=15.0,
  confidence="nearest",
  brightness=0.2,
  contrast=0.2,
  gamma=(0.8, 1.25),
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


def random_clips(*, batch, frames, size, classes, sources, folds):
  """A training batch of the clinical tasks, of noise, and its targets [F, B]."""
  r = np.random.default_rng(0)
  shape = (batch, frames, size, size)
  return {
    "image": r.integers(1, 256, (folds, *shape, 1), dtype=np.uint8),
    "channels": r.integers(0, 256, (folds, sources, *shape, classes), dtype=np.uint8),
    "target": r.random((folds, batch), dtype=np.float32),
  }


def random_inputs(args, thresholds):
  """What a step takes, on the host: frames or clips of noise.

  Args:
    args: of `parse`.
    thresholds: T.
  """
  if args.what == "tsm":
    return random_clips(
      batch=args.batch,
      frames=args.frames,
      size=args.size,
      classes=args.classes,
      sources=thresholds,
      folds=args.folds,
    )
  frames = random_frames(batch=args.batch, size=args.size, classes=args.classes)
  return jax.device_get(jax.jit(augment.prepare)(frames))


def problem(args, thresholds, *, levels=1):
  """What is computed.

  Args:
    args: of `parse`.
    thresholds: T; more of them than the paper's are repetitions with other seeds, of the video
      network further channels.
    levels: of the segmentation network's head.

  Returns:
    The `Network`, its members (of the video network T for each fold) and the loss of one (None
    where nothing is trained).
  """
  config = SimpleNamespace(
    encoder=args.encoder, width=args.width, dropout=0.2, dtype=args.dtype, init_from=""
  )
  if args.what == "tsm":
    config.dropout = 0.0  # as in the paper's recipe
    network = state_lib.Network(
      models.build_video_model(
        config, in_channels=1 + args.classes, outputs=1, hidden=HIDDEN, seed=0
      )
    )
    *_, members = train.make_members(tuple(range(thresholds)), (), args.folds)

    def loss_fn(params, batch_stats, member, inputs, key):
      clips = train.member_clips(inputs, member, "probability")
      outputs, batch_stats = network(params, batch_stats, clips, train=True)
      error = outputs[:, 0] + params["bias"][0] - inputs["target"][member["fold"]]
      return jnp.mean(jnp.square(error)), batch_stats

    return network, members, loss_fn
  network = state_lib.Network(
    models.build_model(config, in_channels=1, classes=args.classes, seed=0, levels=levels)
  )
  objective = _objective(thresholds)
  members = objective.of_all_seeds()[1][:thresholds]
  loss_fn = train_lib.make_loss(network, objective) if args.what == "fpn" else None
  return network, members, loss_fn


def _objective(thresholds, members=()):
  sweep = SimpleNamespace(
    thresholds=THRESHOLDS[:thresholds], members=members, seeds=-(-thresholds // len(THRESHOLDS))
  )
  return Objective(SimpleNamespace(sweep=sweep, loss=LOSS, model=SimpleNamespace()))


class Machine:
  """What is measured of the machine itself, in turn with the rows.

  Args:
    args: of `parse`.
  """

  def __init__(self, args):
    self._args = args
    self._prepare = jax.jit(lambda batch, key: augment.prepare(batch, key, AUGMENT))

  def describe(self):
    """The machine, in words."""
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}, {cores()} cores, {platform.system()}"

  def matmul_rate(self, dtype):
    """FLOP/s, as `lus_jax.training.peak` measures it."""
    return matmul_rate(dtype)

  def augmentation(self, queued, n):
    """Seconds that one batch takes through the augmentation, which all members share: n samples."""
    args = self._args
    frames = jax.device_put(random_frames(batch=args.batch, size=args.size, classes=args.classes))
    keys = jax.random.split(jax.random.key(0), queued)
    jax.block_until_ready(self._prepare(frames, keys[0]))
    seconds = []
    for _ in range(n):
      since = time.perf_counter()
      for key in keys:
        result = self._prepare(frames, key)
      jax.block_until_ready(result)
      seconds.append((time.perf_counter() - since) / queued)
    return seconds


class Measured:
  """What a worker is asked of either side; each has its `row` and its `sample`."""

  def describe(self):
    """`row`."""
    return self.row

  def samples(self, queued, n):
    """Seconds of a step, n samples."""
    return [self.sample(queued) for _ in range(n)]


class Ours(Measured):
  """A compiled sweep that is ready to be timed.

  Attributes:
    row: what it is, for the table.
  """

  def __init__(self, args, thresholds, strategy):
    peak = memory.Peak()
    ordinal = strategy == ORDINAL
    # One network stands for all thresholds.
    n_models = 1 if ordinal else thresholds
    network, members, loss_fn = problem(args, n_models, levels=thresholds if ordinal else 1)
    sweep = Sweep(members, "loop" if ordinal else strategy)
    parallel.check_batch(sweep.mesh, args.batch)
    inputs = {
      name: parallel.split(sweep.mesh, x, args.batch, axis=BATCH_AXIS.get((args.what, name), 0))
      for name, x in random_inputs(args, n_models).items()
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
    del states, weights
    self._updates = loss_fn is not None
    self._step = lambda state: step(state, sweep.members, inputs, jax.random.key(0))
    self.row = {}

    since = time.perf_counter()
    arguments = (self._state, sweep.members, inputs, jax.random.key(0))
    program = step.lower(*arguments).compile()
    self.row["compile_s"] = round(time.perf_counter() - since, 2)
    used = program.memory_analysis()
    # One member (or, under `sharded`, one round) is computed while the other states wait.
    waiting = jax.tree.leaves(self._state[1:])
    self.row["program_bytes"] = sum(x.addressable_shards[0].data.nbytes for x in waiting) + (
      used.argument_size_in_bytes
      + used.output_size_in_bytes
      + used.temp_size_in_bytes
      - used.alias_size_in_bytes
    )
    del arguments, program
    # The warm-up, which is also where a GPU's memory proves too small.
    self.sample(1)
    self.row["memory_bytes"] = peak.bytes()

  def sample(self, queued):
    """Seconds of one of so many steps, issued one after another, with all results waited for."""
    since = time.perf_counter()
    for _ in range(queued):
      result = self._step(self._state)
      if self._updates:
        self._state, result = result
    jax.block_until_ready((self._state, result))
    return (time.perf_counter() - since) / queued

  def profile(self):
    """Where the time of a step goes, as `profile` has it."""
    return profile(self)


class Torch(Measured):
  """PyTorch's side of the same problem, one model; as `Ours`.

  Args:
    args: of `parse`.
    variant: one of `VARIANTS`.
  """

  def __init__(self, args, variant):
    channels_last, fused = variant != "eager", variant in ("fused", "compiled")
    compiled = variant == "compiled"
    self._torch = torch = peers.import_torch()
    self._device = {"gpu": "cuda"}.get(args.backend, "cpu")
    on_gpu = self._device == "cuda"
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    peak = memory.Peak(torch if on_gpu else None)
    self._bfloat16 = fused and args.dtype == "bfloat16"
    self._trains = args.what != "predict"
    inputs = random_inputs(args, 1)
    if args.what == "tsm":
      *_, members = train.make_members((0,), (), 1)
      images = train.member_clips(inputs, members[0], "probability")
      self.target = self._tensor(inputs["target"][0])
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
    del inputs, images
    model = model.to(self._device).train(self._trains)
    if channels_last:
      model = model.to(memory_format=torch.channels_last)
    self.model = model
    # None leaves the choice to PyTorch; False would be the slowest one. What is compiled may be
    # replayed as a CUDA graph, with its count of steps on the device.
    options = {"capturable": on_gpu} if compiled else {"fused": fused or None}
    self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **options)
    self._compute = self._loss_of if self._trains else self._probabilities
    self._update = self._optimizer.step
    if compiled:
      compiler = functools.partial(torch.compile, mode=args.torch_compile)
      self._compute = compiler(self._compute)
      self._update = compiler(lambda: self._optimizer.step())
    parts = {
      "channels_last": channels_last,
      "fused_adam": fused and self._trains and not compiled,
      f"compiled ({args.torch_compile})": compiled,
      "bf16": self._bfloat16,
    }
    self.row = {
      "dtype": "bfloat16" if self._bfloat16 else "float32",
      "variant": " ".join(name for name, there in parts.items() if there) or "eager",
      "network": peers.origin(args.what),
    }
    # The first step compiles, and chooses cuDNN's algorithms; where graphs are replayed, the second
    # records them.
    self.row["compile_s"] = round(sum(self.samples(1, 3 if compiled else 1)), 2)
    self.row["memory_bytes"] = peak.bytes()

  def sample(self, queued):
    """Seconds of one of so many steps, issued one after another, with all results waited for."""
    since = time.perf_counter()
    for _ in range(queued):
      self._torch.compiler.cudagraph_mark_step_begin()
      if self._trains:
        self._train()
      else:
        with self._torch.inference_mode():
          self._compute()
    if self._device == "cuda":
      self._torch.cuda.synchronize()
    return (time.perf_counter() - since) / queued

  def _forward(self):
    kind = self._torch.bfloat16
    with self._torch.autocast(self._device, dtype=kind, enabled=self._bfloat16):
      return self.model(self.images)

  def _probabilities(self):
    return self._forward().float().sigmoid()

  def _loss_of(self):
    return self._loss(self._torch, self._forward().float(), self.target)

  def _train(self):
    self._optimizer.zero_grad()
    self._compute().backward()
    self._update()

  def _tensor(self, array, *, channels_last=False):
    # Ours are channels last already; PyTorch's have them before height and width.
    tensor = self._torch.tensor(np.asarray(array), device=self._device)
    if tensor.ndim < 4:
      return tensor
    tensor = tensor.movedim(-1, -3)
    return tensor if channels_last else tensor.contiguous()


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
  if args.what == "tsm":
    row |= {"folds": args.folds if side == "ours" else 1, "frames": args.frames}
  else:
    row["encoder"] = args.encoder
  return row | {"members": thresholds * row.get("folds", 1), "width": args.width, "side": side}


def cores():
  """How many of the machine's cores are ours."""
  # macOS cannot say how many of its cores are ours.
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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


@dataclasses.dataclass
class Run:
  """One row: what makes it, and what was found.

  Attributes:
    row: for the table; `ok`, and if it is not, the `reason`.
    make: the class of its worker.
    arguments: of the class.
    environment: of the worker's process.
    worker: that holds what is timed, None where there is none.
    seconds: samples so far, of one step each.
    failed: why it was not measured.
  """

  row: dict[str, Any]
  make: type
  arguments: tuple[Any, ...]
  environment: dict[str, str | None]
  worker: Any = None
  seconds: list[float] = dataclasses.field(default_factory=list)
  failed: processes.Failed | None = None

  def start(self, start):
    """Makes the worker, which compiles."""
    try:
      self.worker = start(self.make, *self.arguments, environment=self.environment)
      self.row |= self.worker.ask("describe")
    except processes.Failed as error:
      self._fail(error)

  def sample(self, queued, n):
    """Takes n samples."""
    try:
      self.seconds += self.worker.ask("samples", queued, n)
    except processes.Failed as error:
      self._fail(error)

  def _fail(self, error):
    self.failed, self.seconds = error, []
    self.stop()

  def stop(self):
    """Ends the worker."""
    if self.worker is not None:
      self.worker.stop()
    self.worker = None


def runs_of(args):
  """What is to be measured: a list of `Run`."""
  found = []

  def ours(thresholds, strategy):
    row = _row(args, thresholds, "ours") | {"dtype": args.dtype, "strategy": strategy}
    found.append(Run(row, Ours, (args, thresholds, strategy), {}))

  for thresholds in args.thresholds:
    for strategy in args.strategies:
      ours(thresholds, strategy)
  if args.what == "predict":
    ours(len(THRESHOLDS), ORDINAL)
  for variant in args.variants if args.peer else ():
    row = _row(args, 1, "torch") | {"dtype": args.dtype, "strategy": None, "variant": variant}
    # JAX only makes the arrays there.
    found.append(Run(row, Torch, (args, variant), {"JAX_PLATFORMS": "cpu"}))
  return found


def measure(args, *, keep=lambda result: None):
  """Times every strategy and number of thresholds, and the peer.

  Args:
    args: of `parse`.
    keep: is given what there is so far, again and again.

  Returns:
    A dict of `date`, `machine`, `versions`, `load_before` (the machine's load average, over one
    minute, before the first run), `matmul_rate` (FLOP/s by dtype), `flop_per_image`, `rows`,
    `finished`, `broken` (whether a row failed for more than want of memory) and, if asked for,
    `profile` (of the first row that was measured).

  Raises:
    UserError: nothing could be measured.
    processes.Failed: the machine itself could not be.
  """
  result = {
    "date": datetime.date.today().isoformat(),
    "machine": "",
    "versions": versions() | ({"torch": peers.import_torch().__version__} if args.peer else {}),
    "load_before": round(os.getloadavg()[0], 2),
    "matmul_rate": {},
    "flop_per_image": step_flops(args),
    "rows": [],
    "finished": False,
  }
  end = time.monotonic() + (args.budget or math.inf)

  def apart(make, *arguments, environment=None):
    # The last of the time is for the samples.
    left = end - time.monotonic() - RESERVE * (args.budget or 0)
    if left <= 0:
      raise processes.Failed("no time is left", expected=True)
    limit = min(args.limit, left)
    return processes.Apart(make, *arguments, environment=environment, limit=limit)

  start = processes.Here if args.in_process else apart
  runs, alone, augmentation, rates = runs_of(args), [], [], collections.defaultdict(list)
  queued = QUEUED.get(args.backend, QUEUED["gpu"])

  def keep_all(*, finished=False):
    result["matmul_rate"] = {dtype: statistics.mean(x) for dtype, x in sorted(rates.items())}
    result["rows"] = [_finish(run, result) for run in runs if run.failed or "compile_s" in run.row]
    for row in result["rows"]:
      if row["side"] == "ours" and augmentation:
        row["augment_ms"] = round(1000 * statistics.median(augmentation), 1)
    compare(result["rows"])
    result["finished"] = finished
    result["broken"] = any(run.failed and not run.failed.expected for run in runs)
    keep(result)

  def set_aside(run, beside):
    # What is out of memory may be so only beside the others.
    if run.failed and run.failed.out_of_memory and beside and run not in alone:
      alone.append(run)
      run.failed = None

  def sample_all(chosen):
    for _ in range(ROUNDS):
      for dtype in sorted({run.row["dtype"] for run in chosen}):
        rates[dtype].append(machine.ask("matmul_rate", dtype))
      if args.what == "fpn":
        augmentation.extend(machine.ask("augmentation", queued, args.steps))
      for run in chosen:
        if run.worker:
          run.sample(queued, args.steps)
          set_aside(run, len(chosen) > 1)
      keep_all()

  machine = start(Machine, args)
  try:
    result["machine"] = machine.ask("describe")
    for run in runs:
      beside = any(other.worker for other in runs)
      run.start(start)
      set_aside(run, beside)
      keep_all()
    sample_all([run for run in runs if run.worker])
    if args.profile:
      first = next((run for run in runs if run.worker and run.make is Ours), None)
      try:
        result |= {"profile": first.worker.ask("profile")} if first else {}
      except processes.Failed as failed:
        print(f"no profile: {failed.reason}", file=sys.stderr)
    for run in alone:
      for other in runs:
        other.stop()
      run.start(start)
      run.row["in_turn"] = False
      sample_all([run] if run.worker else [])
  finally:
    for run in runs:
      run.stop()
    machine.stop()
  keep_all(finished=True)
  if not any(run.seconds for run in runs):
    reasons = "; ".join(dict.fromkeys(run.failed.reason for run in runs))
    raise UserError(f"nothing could be measured ({reasons}); use a smaller --batch or --size.")
  return result


def _finish(run, result):
  row = dict(run.row)
  if run.failed:
    return row | {"ok": False, "reason": run.failed.reason}
  if not run.seconds:
    return row | {"ok": None}  # not yet
  step = statistics.median(run.seconds)
  rate = row["batch"] * row["members"] / step
  # The matrix rate is one device's; a CPU's devices share its cores.
  several = row["strategy"] == "sharded" and jax.default_backend() != "cpu"
  peak = result["matmul_rate"][row["dtype"]] * (jax.device_count() if several else 1)
  # One ordinal network, whose head alone grows with the thresholds.
  computed = rate / row["thresholds"] if row["strategy"] == ORDINAL else rate
  return row | {
    "ok": True,
    "samples": len(run.seconds),
    "ms_per_step": round(1000 * step, 3),
    "ms_fastest": round(1000 * min(run.seconds), 3),
    "images_per_s": round(rate, 3),
    "peak_share": round(result["flop_per_image"] * computed / peak, 4),
  }


def compare(rows):
  """Adds what our rows are to others.

  `ratio` is to the fastest PyTorch of the same dtype, `ratio_eager` and `ratio_channels_last` to
  these variants, in float32, all with one model; `cost_to_one` is the time per model to that of our
  fastest run of one model, both with the augmentation, which the models of a step share.
  """
  measured = [row for row in rows if "ms_per_step" in row]
  ours = [row for row in measured if row["side"] == "ours"]
  torch = [row for row in measured if row["side"] == "torch"]

  def per_model(row):
    return (row["ms_per_step"] + row.get("augment_ms", 0)) / row["members"]

  one = min((per_model(row) for row in ours if row["members"] == 1), default=None)
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
  """The rows as Markdown."""
  unit = "clips" if result["rows"][0]["what"] == "tsm" else "images"
  columns = {
    "side": lambda r: "ours" if r["side"] == "ours" else f"PyTorch, {r['variant']}",
    "strategy": lambda r: (r["strategy"] or "") + ("" if r.get("in_turn", True) else ", alone"),
    "dtype": lambda r: r["dtype"],
    "models": lambda r: r["members"],
    "ms a step": lambda r: f"{r['ms_per_step']:.1f}",
    f"model-{unit}/s": lambda r: f"{r['images_per_s']:.4g}",
    "cost per model to one": lambda r: _number(r.get("cost_to_one"), ".2f"),
    "to best PyTorch": lambda r: _number(r.get("ratio"), ".2f"),
    "to channels_last": lambda r: _number(r.get("ratio_channels_last"), ".2f"),
    "to eager": lambda r: _number(r.get("ratio_eager"), ".2f"),
    "share of peak": lambda r: f"{r['peak_share']:.1%}",
    "memory MiB": lambda r: _number(r["memory_bytes"], ".0f", 2**20),
    "program MiB": lambda r: _number(r.get("program_bytes"), ".0f", 2**20),
    "compile s": lambda r: f"{r['compile_s']:.1f}",
  }
  return processes.table(columns, result["rows"], known=4)


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


def load_note(load):
  """A line on what the load average before a measurement means for it; None where it is small."""
  if load <= 0.5:
    return None
  return (
    f"note: other programs were running (load {load}). Threads that wait for each other suffer "
    "most, PyTorch's on a CPU above all: not a fair comparison."
  )


def _describe(args, result):
  network = f"{args.frames} frames" if args.what == "tsm" else args.encoder
  rates = ", ".join(f"{rate / 1e12:.3g} ({dtype})" for dtype, rate in result["matmul_rate"].items())
  lines = [
    f"{result['date']}; {result['machine']}",
    ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    f"{WHAT[args.what]}: {network}, width {args.width:g}, {args.size} x {args.size}, "
    f"batch {args.batch}; {result['flop_per_image'] / 1e9:.3g} GFLOP each, matrix products "
    f"TFLOP/s: {rates}; median of {ROUNDS * args.steps} samples, all runs in turn, each in "
    f"{'this process' if args.in_process else 'a process of its own'}",
  ]
  if args.peer:
    lines.append(
      "PyTorch trains one model after another, so every ratio is to its rate with one model; the "
      "best PyTorch is the fastest of the same dtype."
    )
  if note := load_note(result["load_before"]):
    lines.append(note)
  measured = [row for row in result["rows"] if row["ok"]]
  of_ordinal = [row for row in measured if row["strategy"] == ORDINAL]
  one = [r["ms_per_step"] for r in measured if (r["side"], r["members"]) == ("ours", 1)]
  if of_ordinal and one:
    row = of_ordinal[0]
    lines.append(
      f"One ordinal network predicts {row['thresholds']} thresholds in "
      f"{row['ms_per_step'] / min(one):.2f} times the time of one network for one."
    )
  alone = [row for row in measured if not row.get("in_turn", True)]
  if alone:
    lines.append(
      f"{plural(len(alone), 'row')} did not fit into memory beside the others: measured after "
      "them, one after another, and not in turn."
    )
  networks = dict.fromkeys(row["network"] for row in measured if "network" in row)
  if networks:
    lines.append(f"PyTorch's network: {', '.join(networks)}.")
  augmentation = measured[0].get("augment_ms")
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

  def size(text):
    value = int(text)
    if value < 32:
      raise argparse.ArgumentTypeError(f"{value} is too small; use at least 32 pixels")
    return value

  positive = processes.positive
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
    type=positive,
    nargs="+",
    default=[1, len(THRESHOLDS)],
    metavar="T",
    help="numbers of models that train together",
  )
  parser.add_argument(
    "--folds", type=positive, default=1, help="of the video network: T models in each"
  )
  parser.add_argument(
    "--strategy",
    default=["all"],
    nargs="+",
    choices=["all", *STRATEGIES],
    help="all: but what is known never to be sensible",
  )
  parser.add_argument(
    "--steps", type=positive, default=3, help=f"samples in each of {ROUNDS} rounds"
  )
  parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="of PyTorch")
  parser.add_argument(
    "--torch-compile",
    choices=TORCH_COMPILE,
    help="how; by default max-autotune on a GPU, which takes minutes, and none on a CPU",
  )
  parser.add_argument(
    "--profile", action="store_true", help="also where the time of the first row's step goes"
  )
  parser.add_argument(
    "--limit",
    type=positive,
    default=1800,
    metavar="S",
    help="seconds to compile a row, or to wait",
  )
  parser.add_argument(
    "--budget",
    type=positive,
    metavar="S",
    help="seconds after which no row is begun any more",
  )
  parser.add_argument(
    "--in-process",
    action="store_true",
    help="all in one process, as a debugger wants it: an abort ends everything",
  )
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  # Several processes share the device's memory; the backend is not started yet.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  args.backend = backend = jax.default_backend()
  kind = "cpu" if backend == "cpu" else "gpu"
  for name, value in (DEFAULTS[args.what][kind] | BACKENDS[kind]).items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  several = jax.device_count() > 1
  args.strategies = []
  for name in args.strategy:
    if name != "all":
      args.strategies.append(choose_strategy(name, video=args.what == "tsm"))
      continue
    args.strategies += [
      strategy
      for strategy in STRATEGIES
      if strategy != "auto"
      and (several or strategy != "sharded")
      and (args.what, strategy) not in NEVER
    ]
  args.strategies = list(dict.fromkeys(args.strategies))
  if args.torch_compile is None:
    args.torch_compile = "none" if kind == "cpu" else "max-autotune"
  if args.variants is None:
    args.variants = [
      variant
      for variant in VARIANTS
      if (variant != "compiled" or args.torch_compile != "none")
      # Nothing is left to tune where a CPU only predicts.
      and (variant != "fused" or args.what != "predict" or kind != "cpu")
    ]
  elif "compiled" in args.variants and args.torch_compile == "none":
    args.torch_compile = "default"
  models.check_video(args)
  if args.peer and args.what != "tsm" and (args.width != 1 or args.size % fpn.STRIDE):
    raise UserError(
      "--peer torch: PyTorch's FPN has no width, and sizes are multiples of "
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
  """Measures, prints a table and writes `--out`; returns the exit code.

  1: a row broke in another way than for want of memory; 2: a user's mistake.
  """
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv))


def _main(argv):
  args = parse(argv)
  command = " ".join(["python -m lus_jax.benchmarks.throughput", *argv])

  def keep(result):
    if args.out:
      write_text(args.out, json.dumps({"command": command, **result}, indent=1) + "\n")

  try:
    result = measure(args, keep=keep)
  except processes.Failed as error:
    raise UserError(f"the machine could not be measured: {error.reason}.") from error
  print(f"{_describe(args, result)}\n\n{table(result)}")
  if "profile" in result:
    print(f"\n{profile_table(result['profile'])}")
  return 1 if result["broken"] else 0


if __name__ == "__main__":
  # Compilation is measured too, here and in the workers.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  jax.config.update("jax_enable_compilation_cache", False)
  sys.exit(main())
