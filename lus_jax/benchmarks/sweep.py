"""The paper's segmentation sweep from the first array to the last score, in seconds by part.

  python -m lus_jax.benchmarks.sweep          the paper's sizes on a GPU, small ones on a CPU
  python -m lus_jax.benchmarks.sweep --epochs 5 --scale members=1,2,4,7 batch=8,16,32 devices=1,2,4

The product's own loop, validation, checkpoints and evaluation, on frames that this makes itself:
noise for the picture, a disc of some confidence for each class. Needs neither TensorFlow, TFDS,
grain, clu nor ml_collections; without surface_distance the scores of outlines are left out.

Every row is a process of its own, so that one that aborts or runs out of memory is a row with its
reason. With --scale one thing at a time is changed; the first row is the one they all differ from.
Prints a table and, with --out, writes JSON, row by row.

Parts are those of `lus_jax.timing` and exclude each other: `data` makes the frames, `networks` the
networks and their state, `compiling` is what JAX traces and XLA compiles wherever it is needed,
`training` the steps of all epochs, `validation` and `pictures` what follows them, `saving` the time
that checkpoints take from the rest, `evaluation` cut-offs, test scores and baselines.
"""

import argparse
import contextlib
import copy
import datetime
import importlib.util
import json
import os
import sys
import tempfile
import time
from types import SimpleNamespace

import jax
import numpy as np

from lus_jax import command_line, models, timing
from lus_jax.benchmarks import memory, processes, throughput
from lus_jax.data.pipeline import Frames
from lus_jax.errors import UserError
from lus_jax.evaluation import segmentation
from lus_jax.files import write_text
from lus_jax.inference.trained import freeze
from lus_jax.models import flops, resnet
from lus_jax.results import versions
from lus_jax.tasks.segmentation import train
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import loop, optimizers, writers
from lus_jax.training.objective import Objective
from lus_jax.training.peak import matmul_rate
from lus_jax.training.sweep import STRATEGIES, Sweep, choose_strategy

PARTS = (
  *("data", "networks", "compiling", "training", "validation", "pictures", "saving", "evaluation"),
)
# The paper's: 355 labelled frames of 32 patients, as many a patient for the other 10.
DEFAULTS = {
  "gpu": {
    "size": 512, "batch": 16, "members": 7, "epochs": 100, "frames": [355, 66, 44],
    "encoder": "resnet34", "width": 1.0, "dtype": "bfloat16",
  },
  "cpu": {
    "size": 64, "batch": 4, "members": 2, "epochs": 2, "frames": [16, 8, 8],
    "encoder": "resnet18", "width": 0.25, "dtype": "float32",
  },
}  # fmt: skip
SCALED = ("members", "batch", "size", "devices")


class Order:
  """The order of training batches: every epoch a new permutation; its place can be saved."""

  def __init__(self, size, batch):
    self._size, self._batch, self._step = size, batch, 0

  def __next__(self):
    epoch, i = divmod(self._step, self._size // self._batch)
    self._step += 1
    order = np.random.default_rng(epoch).permutation(self._size)
    return order[i * self._batch : (i + 1) * self._batch]

  def get_state(self):
    """The place of the next batch."""
    return {"step": self._step}

  def set_state(self, state):
    """Goes on where `get_state` was called."""
    self._step = state["step"]


def make_frames(n, *, size, classes, seed):
  """Stored frames: noise, in which every class is a brighter disc of some confidence.

  Args:
    n: how many.
    size: H = W in pixels.
    classes: K.
    seed: of all that is random.

  Returns:
    A dict of arrays as `lus_jax.data.augment.prepare` takes them.
  """
  r = np.random.default_rng(seed)
  image = r.integers(1, 96, (n, size, size, 1), dtype=np.uint8)
  confidence = np.zeros((n, size, size, classes), np.uint8)
  rows, columns = np.ogrid[:size, :size]
  for i in range(n):
    for k in range(classes):
      y, x = r.integers(0, size, 2)
      disc = (rows - y) ** 2 + (columns - x) ** 2 < (size / r.uniform(4, 12)) ** 2
      confidence[i, ..., k][disc] = r.choice([51, 102, 128, 153, 204, 255])
      image[i, ..., 0][disc] += np.uint8(24)
  return {
    "image": image,
    "confidence": confidence,
    "labelled": np.ones((n, classes), bool),
    "valid_box": np.tile(np.int32([0, 0, size, size]), (n, 1)),
  }


def make_config(args):
  """The run's config, with the paper's recipe."""
  names = throughput.THRESHOLDS
  return SimpleNamespace(
    seed=0,
    model=SimpleNamespace(
      encoder=args.encoder, width=args.width, dropout=0.2, dtype=args.dtype, init_from=""
    ),
    sweep=SimpleNamespace(
      thresholds=names[: args.members], members=(), seeds=-(-args.members // len(names))
    ),
    loss=throughput.LOSS,
    optimizer=SimpleNamespace(learning_rate=throughput.LEARNING_RATE),
    augment=throughput.AUGMENT,
    train=SimpleNamespace(
      epochs=args.epochs,
      batch_size=args.batch,
      log_every=20,
      checkpoint_every=args.checkpoint_every,
    ),
  )


def run(args):
  """Trains and evaluates one sweep in this process.

  Args:
    args: of a row, as `parse` makes them.

  Returns:
    A dict for JSON: `seconds` by part, `total_s`, `model_images_per_s` and `peak_share` while
    training, `memory_bytes` at the peak, `score` (the mean over members of the best epochs' IoU)
    and how many `devices` there were.

  Raises:
    UserError: the sizes do not go together.
  """
  since, peak = time.perf_counter(), memory.Peak()
  config = make_config(args)
  strategy = choose_strategy(args.strategy)
  classes = tuple(f"class_{k}" for k in range(args.classes))
  outlines = importlib.util.find_spec("surface_distance") is not None
  with contextlib.ExitStack() as stack:
    clock = stack.enter_context(timing.recorded("sweep"))
    workdir = stack.enter_context(tempfile.TemporaryDirectory())
    with timing.part("data"):
      arrays = [
        make_frames(n, size=args.size, classes=args.classes, seed=i)
        for i, n in enumerate(args.frames)
      ]
    with timing.part("networks"):
      objective = Objective(config)
      names, members = objective.of_all_seeds()
      sweep = Sweep(members, strategy)
      frames = {
        name: Frames(x, cache="device", mesh=sweep.mesh)
        for name, x in zip(("train", "validation", "test"), arrays, strict=True)
      }
      order = Order(frames["train"].size, args.batch)
      batches = frames["train"].training_batches(args.batch, seed=0, order=order)
      steps_per_epoch = frames["train"].size // args.batch
      tx, schedule = optimizers.with_cosine(config.optimizer, args.epochs * steps_per_epoch)
      network, state = train.initial_state(
        config, objective, sweep, in_channels=1, classes=args.classes, tx=tx
      )
      jax.block_until_ready(state)
      checkpoints = stack.enter_context(contextlib.closing(checkpoints_lib.Checkpoints(workdir)))
      writer = stack.enter_context(contextlib.closing(writers.create_writer(workdir)))
    task = train.make_task(
      network,
      sweep,
      names,
      frames["validation"],
      config,
      objective,
      tx=tx,
      schedule=schedule,
      classes=classes,
    )
    state, meta = loop.fit(
      task,
      sweep,
      state,
      batches,
      config=config.train,
      steps_per_epoch=steps_per_epoch,
      key=jax.random.key(0),
      checkpoints=checkpoints,
      writer=writer,
    )
    with timing.part("saving"):
      checkpoints.wait()
    with timing.part("evaluation"):
      trained = freeze(
        network,
        sweep,
        state,
        objective,
        config=config,
        dataset={"classes": list(classes)},
        patients={},
      )
      segmentation.evaluate(trained, thin=classes if outlines else None, **frames)
  total = time.perf_counter() - since
  images = args.epochs * steps_per_epoch * args.batch * len(names)
  rate = images / clock.seconds["training"]
  flop = flops.TRAINING * flops.fpn(
    args.encoder, size=args.size, in_channels=1, classes=args.classes, width=args.width
  )
  devices = jax.device_count() if sweep.mesh else 1
  # A CPU's devices share its cores.
  several = devices if jax.default_backend() != "cpu" else 1
  return {
    "strategy": strategy,
    "devices": devices,
    "device": jax.devices()[0].device_kind,
    "steps": args.epochs * steps_per_epoch,
    "seconds": {name: round(clock.seconds[name], 2) for name in PARTS},
    "total_s": round(total, 2),
    "model_images_per_s": round(rate, 3),
    "peak_share": round(rate * flop / (matmul_rate(args.dtype) * several), 4),
    "memory_bytes": peak.bytes(),
    "score": float(np.mean([best["score"] or 0 for best in meta["best"]])),
    "outlines": outlines,
  }


def environment_of(args):
  """Variables by which a row's process sees as many devices as it is to have."""
  if args.devices is None:
    return {}
  if args.backend == "cpu":
    flags = os.environ.get("XLA_FLAGS", "").split()
    name = "--xla_force_host_platform_device_count"
    flags = [flag for flag in flags if not flag.startswith(name)]
    return {"XLA_FLAGS": " ".join([*flags, f"{name}={args.devices}"])}
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  visible = visible.split(",") if visible else list(map(str, range(args.devices)))
  return {"CUDA_VISIBLE_DEVICES": ",".join(visible[: args.devices])}


def rows_of(args):
  """What is run: the options' own row, then one for every value of every `--scale`.

  Raises:
    UserError: one of them cannot be.
  """
  found = [(None, args)]
  for name, values in args.scale:
    found += [(name, _changed(args, name, value)) for value in values]
  for _, row in found:
    _check(row)
  return found


def _changed(args, name, value):
  row = copy.copy(args)
  setattr(row, name, value)
  return row


def _check(args):
  several = len(throughput.THRESHOLDS)
  if args.members > several and args.members % several:
    raise UserError(
      f"--members: {args.members}; above {several} they are the paper's thresholds with so many "
      f"seeds: use a multiple of {several}."
    )
  if args.batch > args.frames[0]:
    raise UserError(
      f"--batch: {args.batch} is more than the {args.frames[0]} training frames; name more by "
      "--frames."
    )
  if args.devices is not None and args.backend != "cpu" and args.devices > args.there:
    raise UserError(f"--devices: {args.devices}, and there are {args.there}.")


def measure(args, *, keep=lambda result: None):
  """Runs every row in a process of its own.

  Args:
    args: of `parse`.
    keep: is given what there is so far, after each row.

  Returns:
    A dict of `date`, `machine`, `versions`, `rows` and `broken` (whether one failed for more than
    want of memory).
  """
  result = {
    "date": datetime.date.today().isoformat(),
    "machine": f"{jax.devices()[0].device_kind}, {throughput.cores()} cores",
    "versions": versions(),
    "rows": [],
    "broken": False,
  }
  for scaled, row in rows_of(args):
    if row.strategy == "auto" and (row.devices or 1) > 1:
      row = _changed(row, "strategy", "sharded")
    names = ("size", "batch", "members", "epochs", "frames", "classes", "encoder", "width", "dtype")
    found = {"scaled": scaled} | {name: getattr(row, name) for name in names}
    found |= {"devices": row.devices, "strategy": row.strategy}
    try:
      environment = environment_of(row)
      found |= processes.call(run, row, environment=environment, limit=args.limit) | {"ok": True}
    except processes.Failed as failed:
      found |= {"ok": False, "reason": failed.reason}
      result["broken"] |= not failed.expected
    result["rows"].append(found)
    keep(result)
  return result


def table(result):
  """The rows as Markdown."""
  columns = {
    "changed": lambda r: r["scaled"] or "",
    "members": lambda r: r["members"],
    "batch": lambda r: r["batch"],
    "size": lambda r: r["size"],
    "devices": lambda r: r["devices"] or "",
    "strategy": lambda r: r["strategy"],
    **{f"{name} s": lambda r, name=name: f"{r['seconds'][name]:.1f}" for name in PARTS},
    "all s": lambda r: f"{r['total_s']:.1f}",
    "model-images/s": lambda r: f"{r['model_images_per_s']:.4g}",
    "share of peak": lambda r: f"{r['peak_share']:.1%}",
    "memory MiB": lambda r: "" if r["memory_bytes"] is None else f"{r['memory_bytes'] / 2**20:.0f}",
  }
  return processes.table(columns, result["rows"], known=6)


def parse(argv):
  """Reads a command line into a namespace with every option, defaults filled in.

  Raises:
    UserError: the options do not go together, or not on this machine.
    SystemExit: an option or value is unknown, as argparse has it.
  """

  positive = processes.positive

  def scale(text):
    name, _, values = text.partition("=")
    if name not in SCALED or not values:
      raise argparse.ArgumentTypeError(f"'{text}' is none of {'=..., '.join(SCALED)}=...")
    return name, [positive(value) for value in values.split(",")]

  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.sweep",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--size", type=positive, help="H and W in pixels")
  parser.add_argument("--batch", type=positive, help="images")
  parser.add_argument("--members", type=positive, help="models that train together")
  parser.add_argument("--epochs", type=positive)
  parser.add_argument(
    "--frames",
    type=positive,
    nargs=3,
    metavar=("TRAIN", "VALIDATION", "TEST"),
    help="how many",
  )
  parser.add_argument("--classes", type=positive, default=6)
  parser.add_argument("--encoder", choices=resnet.DEPTHS)
  parser.add_argument("--width", type=float, help="factor on channel counts")
  parser.add_argument("--dtype", choices=models.DTYPES)
  parser.add_argument("--strategy", default="auto", choices=STRATEGIES)
  parser.add_argument("--devices", type=positive, help="how many are used; by default all")
  parser.add_argument("--checkpoint-every", type=positive, default=10, help="epochs")
  parser.add_argument(
    "--scale", type=scale, nargs="+", default=[], metavar="NAME=A,B", help=", ".join(SCALED)
  )
  parser.add_argument("--limit", type=positive, default=3600, metavar="S", help="seconds of a row")
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  # The rows' processes need the device's memory; the backend is not started yet.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  args.backend, args.there = jax.default_backend(), jax.device_count()
  for name, value in DEFAULTS["cpu" if args.backend == "cpu" else "gpu"].items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  models.check(make_config(args).model)
  return args


def main(argv=None):
  """Measures, prints a table and writes `--out`; returns the exit code.

  1: a row failed for more than want of memory; 2: a user's mistake.
  """
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv))


def _main(argv):
  args = parse(argv)
  command = " ".join(["python -m lus_jax.benchmarks.sweep", *argv])

  def keep(result):
    if args.out:
      write_text(args.out, json.dumps({"command": command, **result}, indent=1) + "\n")

  result = measure(args, keep=keep)
  print(
    f"{result['date']}; {result['machine']}\n"
    + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    + f"\n{args.encoder}, width {args.width:g}, {args.dtype}, {args.epochs} epochs of "
    f"{args.frames[0]} frames, {args.frames[1]} for validation, {args.frames[2]} for the test\n\n"
    + table(result)
  )
  if not all(row.get("outlines", True) for row in result["rows"]):
    print("\nWithout surface_distance: the scores of outlines are not in the evaluation's time.")
  return 1 if result["broken"] else 0


if __name__ == "__main__":
  # Compilation is measured too, here and in the rows' processes.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  jax.config.update("jax_enable_compilation_cache", False)
  sys.exit(main())
