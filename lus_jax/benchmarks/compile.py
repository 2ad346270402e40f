"""Compiles every program of a run for a GPU that need not be there, and says what it will cost.

  python -m lus_jax.benchmarks.compile --target h200
  python -m lus_jax.benchmarks.compile --what fpn --program train --strategy loop,sharded8
  python -m lus_jax.benchmarks.compile --what fpn --program train --strategy 8x1,4x2,2x4,1x8

Whether it compiles, its memory, its kernels and the bytes these move are facts of the versions that
are installed. Floors are the times that bytes, or FLOP, take at the data sheet's rates; the guess
adds what kernels reach of them (`lus_jax.benchmarks.cards`); neither is a measurement: on an H100 a
segmentation step took 1.4 and a group of video networks 1.7 times its guess. Where all programs of
the paper's study are there, its time follows, by the same guesses; so does that of all members,
where several devices are laid out in more than one way: members at once x devices that share a
batch. Needs `pip install 'lus_jax[cuda12]'` (5 GB), and no GPU. Every program has a process of its
own, since a failed check inside XLA ends the process. With --out, JSON grows row by row.
"""

import argparse
import functools
import json
import math
import re
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lus_jax import command_line, models, parallel, progress
from lus_jax.benchmarks import cards, processes, throughput, values
from lus_jax.data import augment
from lus_jax.errors import UserError
from lus_jax.evaluation import segmentation as evaluation
from lus_jax.files import write_text
from lus_jax.inference import channels
from lus_jax.inference.trained import Trained
from lus_jax.models import flops, resnet
from lus_jax.tasks import initial
from lus_jax.tasks.clinical import questions
from lus_jax.tasks.clinical import train as clinical
from lus_jax.tasks.pretrain import train as pretraining
from lus_jax.tasks.segmentation import train as segmentation
from lus_jax.training import optimizers
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import GROUP, Sweep

# Programs of a run, by what they belong to.
PROGRAMS = {
  "fpn": ("augment", "train", "keep_best", "validate", "logits", "choose_cuts", "test"),
  "raters": ("augment", "train", "validate"),
  "predict": ("probability",),
  "channels": ("resize", "maps"),
  "pretrain": ("augment", "train"),
  "tsm": ("train_sf_change", "train_sf_ratio", "train_readmission", "keep_best", "outputs"),
}
# How a sweep may run: with the devices it is laid over, and the members it maps at once. Of
# several devices also members at once x devices that share a batch.
LAYOUTS = {f"{d // n}x{n}": (d // n, n) for d in (2, 4, 8) for n in (1, 2, 4, 8) if n <= d}
STRATEGIES = ("loop", "vmap", "grouped", "sharded2", "sharded8", *LAYOUTS)
DEFAULT_STRATEGIES = {"tsm": ("loop", "grouped")}
# Programs that are no sweep's.
SINGLE = ("augment", "resize")
# Members, sizes and heads of the paper's run; one of every kind of target and loss for `raters`.
SIZES = {"fpn": 512, "raters": 512, "predict": 512, "channels": 512, "pretrain": 512, "tsm": 224}
BATCHES = {"fpn": 16, "raters": 16, "predict": 4, "channels": 32, "pretrain": 16, "tsm": 16}
VIDEO_SIZE, FRAMES = 224, 8
# Of pretraining, as in configs/pretrain.py.
HIDDEN = SimpleNamespace(
  mask=SimpleNamespace(cells=8, share=0.5),
  augment=SimpleNamespace(**vars(throughput.AUGMENT), scale=0.2, shift=0.1),
)
LIMIT = 1800  # seconds that one program may take to compile
# The paper's study on the phantom, in calls of programs: 355 training frames, 76 of validation and
# test, 100 epochs; 378 videos of 16 frames; 50 epochs of the clinical tasks over three fifths of
# the videos, or of the 42 patients, two of whom are 24 clips; 9 sources in 5 folds.
CALLS = {
  "sweep": {
    ("fpn", "augment"): 2200,
    ("fpn", "train"): 2200 * 7,
    ("fpn", "validate"): 500 * 7,
    ("fpn", "keep_best"): 100 * 7,
    ("fpn", "logits"): 2 * 5 * 7,
    ("fpn", "choose_cuts"): 5 * 7,
    ("fpn", "test"): 5 * 7,
  },
  "clinical tasks": {
    ("channels", "maps"): 189 * 7,
    ("tsm", "train_sf_change"): 50 * 14 * 45,
    ("tsm", "train_sf_ratio"): 50 * 14 * 45,
    ("tsm", "train_readmission"): 50 * 12 * 45 * 1.5,
    ("tsm", "outputs"): 3 * 50 * 5 * 45,
    ("tsm", "keep_best"): 3 * 50 * 45,
  },
}
# Seconds of what no program says: guesses. Compiling includes the choice of cuDNN's algorithms.
BESIDES = {
  "sweep": {"compiling": 60, "building": 5, "saving": 10, "the host's part of the evaluation": 20},
  "clinical tasks": {"compiling": 180, "building": 15, "saving": 60, "report": 30},
}


class Absent:
  """The run of which programs are compiled: abstract arrays on described devices.

  Attributes:
    members_on_device: that one call computes, on one device.

  Args:
    args: of a row: `what`, `program`, `strategy`, `target`, `size`, `batch`, `dtype`, `encoder`,
      `classes`, `members`.
  """

  def __init__(self, args):
    self.args = args
    found = re.fullmatch(r"sharded(\d+)", args.strategy)
    self._layout = LAYOUTS.get(args.strategy)
    n = math.prod(self._layout) if self._layout else int(found[1]) if found else 1
    self._devices = cards.describe(args.target, devices=n)
    self.strategy = "sharded" if n > 1 else args.strategy
    # As in the paper's recipe: of the segmentation network only.
    dropout = 0.0 if args.what == "tsm" else 0.2
    config = SimpleNamespace(
      encoder=args.encoder, width=1.0, dropout=dropout, dtype=args.dtype, init_from=""
    )
    self._model = config
    # A device has a share of one member's batch where several devices share it.
    self.members_on_device = 1
    self._key = jax.eval_shape(lambda: jax.random.key(0))

  def sweep(self, members):
    """A `Sweep` of these members over the described devices; of one round's in a layout."""
    if self._layout:
      members = (members * self._layout[0])[: self._layout[0]]
    sweep = Sweep(members, self.strategy, devices=tuple(self._devices))
    self.members_on_device = sweep.at_once or 1
    if sweep.mesh:
      self.members_on_device = 1 / sweep.mesh.shape[parallel.DATA]
      assert self._layout in (None, tuple(sweep.mesh.shape.values()))
    return sweep

  def compile(
    self, sweep, fn, state, own, shared, *, batch_axes=None, updates_state=False, weights=True
  ):
    """The compiled program of `sweep.compile(fn)`, of one member's abstract state.

    Without `weights` the state is of another kind of arrays.
    """
    leading, n = sweep.at_once, len(sweep.members)
    if leading:
      state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((leading, *x.shape), x.dtype), state)
    where = sweep.formats(state) if weights else jax.tree.map(lambda _: sweep.sharding, state)
    state = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, where
    )
    batch_axes = batch_axes or {}
    placed = []
    for x in shared:
      if isinstance(x, dict):
        x = {name: self._split(sweep.mesh, one, batch_axes.get(name, 0)) for name, one in x.items()}
      else:
        x = _placed(x, self._whole(sweep.mesh))
      placed.append(x)
    states = [state] * (-(-n // leading) if leading else n)
    compiled = sweep.compile(fn, updates_state=updates_state)
    return compiled.lower(states, own, *placed).compile()

  def compile_single(self, fn, *arguments):
    """The compiled program of a function that every member shares."""
    return jax.jit(fn).lower(*_placed(arguments, self._on_one)).compile()

  @property
  def _on_one(self):
    return SingleDeviceSharding(self._devices[0])

  def _whole(self, mesh):
    return NamedSharding(mesh, PartitionSpec()) if mesh else self._on_one

  def _split(self, mesh, x, axis):
    spec = PartitionSpec(*[None] * axis, parallel.DATA)
    return _placed(x, NamedSharding(mesh, spec) if mesh else self._on_one)

  # What is compiled.

  def program(self):
    """Compiles the program that the row names."""
    what, name = self.args.what, self.args.program
    if what == "tsm":
      return self._video(name)
    if what == "pretrain":
      return self._pretraining(name)
    return self._segmentation(what, name)

  def _pretraining(self, name):
    # The video network's steps are nearly those of `tsm`.
    args, (kind, _) = self.args, initial.NETWORKS
    batch = {
      "image": jax.ShapeDtypeStruct((args.batch, 1, args.size, args.size, 1), jnp.uint8),
      "box": jax.ShapeDtypeStruct((args.batch, 4), jnp.int32),
    }
    prepare = pretraining.make_prepare(HIDDEN)
    if name == "augment":
      return self.compile_single(prepare, batch, self._key)
    inputs = jax.eval_shape(prepare, batch, self._key)
    network = state_lib.outline(lambda: initial.pretraining_network(self._model, kind, 0))
    tx = optimizers.adam(optax.cosine_decay_schedule(1e-3, 1000), 0.01)
    step = state_lib.make_train_step(pretraining.make_loss(network, kind), tx)
    sweep, shared = self.sweep([{}]), (inputs, self._key)
    state = abstract_state(network, tx)
    return self.compile(sweep, step, state, sweep.members, shared, updates_state=True)

  def _segmentation(self, what, name):
    args = self.args
    raters = what == "raters"
    thresholds = throughput.THRESHOLDS[: args.members]
    config = SimpleNamespace(
      sweep=SimpleNamespace(thresholds=thresholds, members=values.KINDS if raters else (), seeds=1),
      loss=throughput.LOSS,
      model=self._model,
    )
    objective = Objective(config).with_raters(values.RATERS if raters else ())
    batch = stored_frames(args, raters=values.RATERS if raters else ())
    inputs = jax.eval_shape(augment.prepare, batch)
    if name == "augment":
      run = functools.partial(augment.prepare, augmentation=throughput.AUGMENT)
      return self.compile_single(run, batch, self._key)
    if name == "resize":
      return self.compile_single(
        functools.partial(channels.resized, size=VIDEO_SIZE), batch["confidence"]
      )
    network = state_lib.outline(
      lambda: models.build_model(
        self._model, in_channels=1, classes=args.classes, levels=objective.head, seed=0
      )
    )
    tx = optax.adam(optax.cosine_decay_schedule(1e-4, 1000))
    state = abstract_state(network, tx)
    _, members = objective.of_all_seeds()
    sweep = self.sweep(members)
    if name == "train":
      step = state_lib.make_train_step(segmentation.make_loss(network, objective), tx)
      shared = inputs, self._key
      return self.compile(sweep, step, state, sweep.members, shared, updates_state=True)
    if name == "keep_best":
      best = [np.bool_(True)] * len(sweep.members)
      return self.compile(sweep, state_lib.keep_best, state, best, (), updates_state=True)
    if name == "validate":
      fn = segmentation.make_evaluation(network, objective)
      return self.compile(sweep, fn, state, sweep.members, (inputs,))
    views, scalars = objective.views()
    fitted = {"temperature": np.ones(args.classes, np.float32)}
    scalars = [own | {"calibration": fitted} for own in scalars]
    trained = Trained(
      config=config,
      dataset={},
      patients={},
      network=network,
      objective=objective,
      views=views,
      sweep=self.sweep(scalars),
      weights=None,
    )
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    scalars = trained.sweep.members
    where = jax.ShapeDtypeStruct((args.batch, args.size, args.size, 1), bool)
    image = batch["image"]
    logits = jax.ShapeDtypeStruct(batch["confidence"].shape, jnp.float32)
    if name in ("choose_cuts", "test"):
      near = jax.ShapeDtypeStruct(logits.shape, bool)
      fn = evaluation.cut_sums_of if name == "choose_cuts" else evaluation.make_test_sums(config)
      shared = (inputs if name == "choose_cuts" else inputs | {"near": near},)
      return self.compile(trained.sweep, fn, logits, scalars, shared, weights=False)
    if name == "logits":
      fn, shared = trained.logits, ({name: inputs[name] for name in ("image", "where")},)
    elif name == "probability":
      image = jax.ShapeDtypeStruct(image.shape, jnp.float32)
      fn, shared = trained.probability, (image, where)
    else:
      fn, shared = channels.make_maps(trained, VIDEO_SIZE), (image, where)
    return self.compile(trained.sweep, fn, weights, scalars, shared)

  def _video(self, name):
    args = self.args
    task = {
      "train_sf_change": questions.SfChange,
      "train_readmission": questions.Readmission,
    }.get(name, questions.SfRatio)
    network = state_lib.outline(
      lambda: models.build_video_model(
        self._model,
        in_channels=1 + args.classes,
        outputs=task.outputs,
        hidden=task.hidden,
        seed=0,
      )
    )
    tx = optax.adam(optax.cosine_decay_schedule(1e-4, 1000))
    state = abstract_state(network, tx)
    *_, members = clinical.make_members(throughput.THRESHOLDS, ("none", "true"), 1)
    sweep = self.sweep(members[: args.members])
    own = sweep.members
    shape = (1, args.batch, FRAMES, args.size, args.size)
    inputs = {
      "image": jax.ShapeDtypeStruct((*shape, 1), jnp.uint8),
      "channels": jax.ShapeDtypeStruct(
        (1, len(throughput.THRESHOLDS) + 1, *shape[1:], args.classes), jnp.uint8
      ),
    }
    axes = {"image": 1, "channels": 2}
    if name == "outputs":
      weights = {"params": state.params, "batch_stats": state.batch_stats}
      run = clinical.make_run(network, "probability")
      return self.compile(sweep, run, weights, own, (inputs,), batch_axes=axes)
    if name == "keep_best":
      best = [np.bool_(True)] * len(own)
      return self.compile(sweep, state_lib.keep_best, state, best, (), updates_state=True)
    targets, target_axes = _targets(task, args.batch)
    # A task's loss needs nothing of its data.
    loss = clinical.make_loss(network, task.__new__(task), "probability")
    step = state_lib.make_train_step(loss, tx)
    shared = (inputs | targets, self._key)
    axes |= target_axes
    return self.compile(sweep, step, state, own, shared, batch_axes=axes, updates_state=True)


def _placed(tree, sharding):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _targets(task, batch):
  """What a training batch of a clinical task holds beside its clips, and over which axis."""
  if task is questions.SfChange:
    pairs = (1, batch, batch)
    return {
      "label": jax.ShapeDtypeStruct(pairs, jnp.int32),
      "counts": jax.ShapeDtypeStruct(pairs, bool),
    }, {"label": 1, "counts": 1}
  if task is questions.SfRatio:
    return {"target": jax.ShapeDtypeStruct((1, batch), jnp.float32)}, {"target": 1}
  views = batch // 2
  return {
    "label": jax.ShapeDtypeStruct((1, 2), jnp.int32),
    "present": jax.ShapeDtypeStruct((1, 2, views), bool),
    "recorded": jax.ShapeDtypeStruct((1, batch), bool),
  }, {"label": 1, "present": 1, "recorded": 1}


def abstract_state(network, tx):
  """One member's `State` of shapes alone."""
  create = functools.partial(state_lib.create_state, tx=tx)
  return jax.eval_shape(create, network.params, network.batch_stats)


def stored_frames(args, *, raters=()):
  """A batch of stored frames, of shapes alone."""
  b, side, k = args.batch, args.size, args.classes
  pixels = {"image": (b, side, side, 1), "confidence": (b, side, side, k)}
  others = {"labelled": ((b, k), bool), "valid_box": ((b, 4), np.int32)}
  if raters:
    pixels |= {"staple": (b, side, side, k), "raters": (b, len(raters), side, side, k)}
    others["drawn"] = ((b, len(raters)), bool)
  return {name: jax.ShapeDtypeStruct(shape, jnp.uint8) for name, shape in pixels.items()} | {
    name: jax.ShapeDtypeStruct(shape, kind) for name, (shape, kind) in others.items()
  }


def flop_of(args, *, members_at_once):
  """FLOP of one call of a program on one device, by `lus_jax.models.flops`; 0 of what has none."""
  if args.program in ("augment", "resize", "keep_best", "choose_cuts", "test"):
    return 0
  if args.what == "tsm":
    task = {"train_sf_change": questions.SfChange, "train_readmission": questions.Readmission}.get(
      args.program, questions.SfRatio
    )
    forward = flops.video(
      size=args.size,
      n_segment=FRAMES,
      in_channels=1 + args.classes,
      outputs=task.outputs,
      hidden=task.hidden,
    )
  else:
    classes = 1 if args.what == "pretrain" else args.classes
    forward = flops.fpn(args.encoder, size=args.size, in_channels=1, classes=classes)
  passes = flops.TRAINING if args.program.startswith("train") else 1
  return passes * forward * args.batch * members_at_once


def compile_row(args):
  """Compiles one program in this process.

  Args:
    args: of a row, as `Absent` takes them.

  Returns:
    A dict for JSON: `kernels`, `gigabytes` they move, `flop`, `memory_gib` (arguments, results and
    temporaries of one device), `floor_ms` by `bandwidth_ms` and `matrix_ms`, `guess_ms`,
    `peak_share` that the floor allows, `compile_s`; of one device, and `members_at_once` members.
  """
  since = time.perf_counter()
  absent = Absent(args)
  compiled = absent.program()
  took = time.perf_counter() - since
  card = cards.CARDS[args.target]
  launches = cards.kernels(compiled.as_text())
  if args.hlo:
    write_text(args.hlo, compiled.as_text())
  used = compiled.memory_analysis()
  memory = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
  memory -= used.alias_size_in_bytes
  at_once = absent.members_on_device
  moved = sum(k.moved for k in launches)
  flop = flop_of(args, members_at_once=at_once)
  times = {
    "bandwidth_ms": 1e3 * moved / card.bandwidth,
    "matrix_ms": 1e3 * flop / card.rate(args.dtype),
  }
  floor = max(times.values())
  return {
    "kernels": len(launches),
    "gigabytes": round(moved / 1e9, 3),
    "flop": flop,
    "memory_gib": round(memory / 2**30, 3),
    "memory_share": round(memory / card.memory, 4),
    **{name: round(value, 3) for name, value in times.items()},
    "floor_ms": round(floor, 3),
    "guess_ms": round(1e3 * cards.seconds(launches, card, args.dtype), 3),
    "peak_share": round(times["matrix_ms"] / floor, 4) if floor else 0,
    "members_at_once": at_once,
    "compile_s": round(took, 1),
    "kinds": [[kind, n, round(b / 1e9, 3)] for kind, n, b in cards.by_kind(launches)],
  }


def rows_of(args):
  """What is asked for, one namespace a program."""
  rows = []
  for target in args.target:
    for what in args.what:
      members = args.members or (GROUP if what == "tsm" else len(throughput.THRESHOLDS))
      members = 1 if what == "pretrain" else members
      for program in PROGRAMS[what]:
        if args.program and program not in args.program:
          continue
        strategies = args.strategy or DEFAULT_STRATEGIES.get(what, ("loop",))
        for strategy in ("loop",) if program in SINGLE else strategies:
          rows.append(
            {
              "what": what,
              "program": program,
              "target": target,
              "strategy": strategy,
              "size": args.size or SIZES[what],
              "batch": args.batch or BATCHES[what],
              "dtype": args.dtype,
              "encoder": args.encoder,
              "classes": args.classes,
              "members": members,
              "hlo": args.hlo,
            }
          )
  return rows


def run(row):
  """Compiles one row in a process of its own; an abort is a reason and not the end."""
  kept = {name: value for name, value in row.items() if name != "hlo"} | {"jax": jax.__version__}
  environment = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
  try:
    found = processes.call(
      compile_row, SimpleNamespace(**row), environment=environment, limit=LIMIT
    )
  except processes.Failed as failed:
    return kept | {"ok": False, "reason": failed.reason}
  return kept | {"ok": True} | found


def predict(rows):
  """How long the paper's study would take by its programs, as lines of text.

  Args:
    rows: of one card; of a program under several strategies the fastest counts.

  Returns:
    A line for the sweep and for the clinical tasks, and one for both; none where a program is
    missing or does not compile.
  """
  per_member = {}
  for row in rows:
    if row["ok"]:
      name = row["what"], row["program"]
      each = row["guess_ms"] / 1e3 / row["members_at_once"]
      per_member[name] = min(each, per_member.get(name, each))
  if any(name not in per_member for calls in CALLS.values() for name in calls):
    return []
  lines, total = [], 0
  for part, calls in CALLS.items():
    each = {" ".join(name): per_member[name] * n for name, n in calls.items()} | BESIDES[part]
    total += sum(each.values())
    texts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in each.items())
    lines.append(f"the paper's {part}: {sum(each.values()):.0f} s ({texts})")
  return [*lines, f"together {total / 60:.0f} min"]


def layouts(rows):
  """What all members take in each layout of several devices, as lines of text.

  Args:
    rows: of one card.

  Returns:
    A line for every program and number of devices: milliseconds of all rounds, how many of their
    places have no member, and the fastest rounds of several layouts that leave no place empty.
  """
  found = {}
  for row in rows:
    if row["ok"] and row["strategy"] in LAYOUTS:
      name = f"{row['what']} {row['program']}", row["members"]
      devices = math.prod(LAYOUTS[row["strategy"]])
      found.setdefault((*name, devices), {})[row["strategy"]] = row["guess_ms"]
  lines = []
  for (name, members, devices), each in found.items():
    texts = []
    for layout, ms in each.items():
      at_once = LAYOUTS[layout][0]
      rounds = -(-members // at_once)
      share = 1 - members / (rounds * at_once)
      texts.append(f"{layout} {rounds} x {ms:.1f} = {rounds * ms:.1f} ms ({share:.0%} empty)")
    ms, used = _full_rounds(members, each)
    if len(set(used)) > 1:
      texts.append(f"{' + '.join(used)} = {ms:.1f} ms (none empty)")
    lines.append(f"{name}, {members} members on {devices} devices: {', '.join(texts)}")
  return lines


def _full_rounds(members, each):
  """The least milliseconds of rounds whose places are all taken, and their layouts."""
  best = {0: (0, [])}
  for n in range(1, members + 1):
    ways = [
      (best[n - LAYOUTS[layout][0]][0] + ms, [*best[n - LAYOUTS[layout][0]][1], layout])
      for layout, ms in each.items()
      if n - LAYOUTS[layout][0] in best
    ]
    if ways:
      best[n] = min(ways)
  return best.get(members, (0, []))


def table(rows):
  """Rows as Markdown."""
  columns = {
    "what": lambda r: f"{r['what']} {r['program']}",
    "card": lambda r: r["target"],
    "strategy": lambda r: r["strategy"] if r["program"] not in SINGLE else "",
    "kernels": lambda r: r["kernels"],
    "GB moved": lambda r: f"{r['gigabytes']:.2f}",
    "GFLOP": lambda r: f"{r['flop'] / 1e9:.0f}",
    "memory GiB": lambda r: f"{r['memory_gib']:.2f} ({r['memory_share']:.0%})",
    "by bandwidth ms": lambda r: f"{r['bandwidth_ms']:.2f}",
    "by matrix rate ms": lambda r: f"{r['matrix_ms']:.2f}",
    "guess ms": lambda r: f"{r['guess_ms']:.2f}",
    "share of peak at most": lambda r: f"{r['peak_share']:.0%}",
    "compiled in s": lambda r: f"{r['compile_s']:.0f}",
  }
  return processes.table(columns, rows, known=3)


def parse(argv):
  """Reads a command line into a namespace.

  Raises:
    UserError: a name is not known.
    SystemExit: an option or value is unknown, as argparse has it.
  """

  def names(known):
    def read(text):
      found = [x for x in text.split(",") if x]
      for name in found:
        if name not in known:
          raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
      return found

    return read

  positive = processes.positive
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.compile",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  every = list(dict.fromkeys(name for programs in PROGRAMS.values() for name in programs))
  parser.add_argument("--what", type=names(PROGRAMS), default=list(PROGRAMS), help="of these runs")
  parser.add_argument("--program", type=names(every), help="only these programs")
  parser.add_argument("--target", type=names(cards.CARDS), default=["h100"])
  parser.add_argument("--strategy", type=names(STRATEGIES), help="how the sweep is run")
  parser.add_argument("--size", type=positive, help="H and W in pixels; the paper's by default")
  parser.add_argument("--batch", type=positive, help="images, or clips")
  parser.add_argument("--classes", type=positive, default=6)
  parser.add_argument("--members", type=positive, help="of the sweep")
  parser.add_argument("--encoder", choices=resnet.DEPTHS, default="resnet34")
  parser.add_argument("--dtype", choices=models.DTYPES, default="bfloat16")
  parser.add_argument("--out", help="a JSON file, written row by row")
  parser.add_argument("--hlo", help="a file for the optimised program of the last row")
  return parser.parse_args(argv)


def _main(argv):
  args = parse(argv)
  cards.check()
  todo, rows = rows_of(args), []
  if not todo:
    raise UserError("--program: none of these belongs to what --what names.")
  command = " ".join(["python -m lus_jax.benchmarks.compile", *argv])
  for row in progress.bar(todo, total=len(todo), unit="program", what="compiling"):
    rows.append(run(row))
    if args.out:
      write_text(args.out, json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
  print(f"jax {jax.__version__}, {args.dtype}; one device's share\n\n{table(rows)}")
  for target in args.target:
    of_card = [row for row in rows if row["target"] == target]
    for line in [*predict(of_card), *layouts(of_card)]:
      print(f"{target}, by these guesses: {line}")
  return 0 if all(row["ok"] for row in rows) else 1


def main(argv=None):
  """Compiles and prints a table; returns the exit code (1: something does not compile)."""
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv))


if __name__ == "__main__":
  sys.exit(main())
