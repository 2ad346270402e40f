"""Does it learn as well as the best? Ours beside MONAI's and nnU-Net's U-Net, at equal time.

  python -m lus_jax.benchmarks.quality --data DIR --peer monai,nnunet --budget 600 --out OUT
  python -m lus_jax.benchmarks.quality --data lus_phantom --patients 20 --out OUT

DIR is a folder as the importers write it (several raters' too). All sides learn the same label
(--label: from which confidence on, or `soft`) of the same letterboxed frames (--size), each in a
process of its own that may train for --budget seconds, its schedule scaled to that; then the same
code scores the same test frames. Folds rotate, so that every patient is tested once; where fewer
than three patients have labels the frames are split by time, as blocks that follow each other,
which is no independent test. --folds 1 is the data set's own split.

Dice, IoU and surface Dice (3 pixels) are means over images, then over classes, at p >= .5 (of a
softmax the likeliest class); ECE and Brier are over all pixels, and `near` those where something is
predicted or painted nearby. Each score is the mean over seeds, with a 95 % interval over patients
(bootstrap; from 10 patients on; of one patient over frames). `mean map` and `prevalence` never look
at the frame; their cut-off is the best on the training frames.

On a CPU the clock counts the seconds that a side's threads compute, divided by --cores, so that
others on the machine do not matter; on a GPU it counts the seconds that pass. Every finished
(side, fold, seed) is a file in OUT, and the same command goes on from there; several may run at the
same time with other --seeds. Peers need the extra: pip install 'lus_jax[peers]'.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import pathlib
import runpy
import sys
import tempfile
import zipfile

import jax
import numpy as np
from absl import logging

import lus_jax.benchmarks.before_tensorflow  # noqa: F401
from lus_jax import command_line, fields, files
from lus_jax.benchmarks import processes, quality_data, quality_sides
from lus_jax.benchmarks.throughput import cores
from lus_jax.errors import UserError, say_warnings_plainly
from lus_jax.evaluation import raters, resampling, statistics
from lus_jax.results import versions
from lus_jax.tasks.segmentation import auto
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.words import plural

# The recipe that is meant for small sets.
CONFIG = "seg:auto"
BLIND = ("mean map", "prevalence")
UNITS = "units"
INTERRUPTED = "Interrupted; what is finished is kept where there is an --out."
# Beyond its budget a process may start, compile, time some epochs and predict.
OVERHEAD = 3600
# Compiled programs of ours, as `lus_jax.main` keeps them.
CACHE = "~/.cache/lus_jax"
# Fields of a config that change no number.
NEVER = ("data.prepared_dir", "data.num_processes", "distributed.")
# What a table shows of `resampling.SCORES`.
NAMES = {
  "dice": "Dice",
  "iou": "IoU",
  "surface_dice": "surface Dice",
  "dice_raters": "Dice to raters",
  "ece": "ECE",
  "ece_near": "ECE near",
  "brier": "Brier",
  "brier_near": "Brier near",
}


class Study:
  """What is compared, and what is known of it so far.

  Args:
    args: of `parse`.

  Attributes:
    frames: `quality_data.Frames`.
    folds: dicts of frame numbers by split.
    how: what was split, in words.
    resampled: [N], what of each frame intervals are over, and `over`, what that is called.
    configs: of ours, by name.

  Raises:
    UserError: an option, a config or the data are not in order.
  """

  def __init__(self, args):
    self.args = args
    self.configs = {name: config_of(name, args) for name in args.config}
    first = self.configs[args.config[0]]
    for config in self.configs.values():
      # Also what else configs say of the data: all have to see the same frames.
      with config.unlocked():
        config.data = first.data.copy_and_resolve_references()
    dataset, own = quality_data.opened(first.data)
    self.frames = quality_data.read(dataset, args.label)
    units, by = self.frames.patient, "patient"
    if first.data.split_unit == "frame":
      if args.folds == 1:
        raise UserError("--folds=1: too few patients for a split of their own; use 3 or more.")
      units, by = quality_data.time_blocks(quality_data.moments(dataset), args.folds), "time"
    if args.folds == 1:
      self.folds, self.how = [own], "the data set's own split"
    else:
      self.folds = quality_data.rotate(units, args.folds, seed=0)
      self.how = f"{len(self.folds)} rotating folds by {by}"
    self.by_time = by == "time"
    self.resampled, self.over = self.frames.patient, "patients"
    if len(set(self.frames.patient.tolist())) == 1:
      self.resampled = np.array([f"{i:06d}" for i in range(len(units))])
      self.over = "frames of one patient, which resemble each other"
    elif dataset.metadata.get("patients_are_unknown"):
      self.over = "images, as who the patients are is not known"
    self._directory = pathlib.Path(args.out) / UNITS
    self._settings = {
      "data": f"{dataset.population}, {dataset.version}",
      "label": args.label,
      "folds": args.folds,
    }

  def settings(self, side):
    """What makes a unit of a side what it is, for JSON."""
    found = dict(self._settings)
    if side in BLIND:
      return found
    found |= {name: getattr(self.args, name) for name in ("budget", "clock", "cores")}
    if side in self.configs:
      of_it = fields.flatten(self.configs[side]).items()
      found |= {f"config.{name}": repr(x) for name, x in of_it if not name.startswith(NEVER)}
    return found

  def file(self, side, fold, seed):
    """Where a unit is kept."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in side)
    return self._directory / f"{name}_fold{fold}_seed{seed}.npz"

  def read(self, side, fold, seed):
    """A finished unit: its sums and what else is known of it; None where there is none.

    Raises:
      UserError: it is of other settings.
    """
    file = self.file(side, fold, seed)
    if not file.exists():
      return None
    try:
      with np.load(file) as held:
        sums = {name: held[name] for name in held.files}
      about = json.loads(str(sums.pop("about")))
    except (*files.NPY_ERRORS, zipfile.BadZipFile):
      logging.warning("%s is damaged and made anew.", file)
      return None
    there, own = about["settings"], json.loads(json.dumps(self.settings(side)))
    for name in own | there:
      if there.get(name) != own.get(name):
        raise UserError(
          f"--out={self.args.out} holds {side} of other settings ({name}: {there.get(name)} there, "
          f"{own.get(name)} here); name another folder."
        )
    return sums, about

  def write(self, side, fold, seed, sums, **about):
    """Keeps a unit."""
    buffer = io.BytesIO()
    about = json.dumps(about | {"settings": self.settings(side)})
    np.savez_compressed(buffer, about=np.array(about), **sums)
    files.write_bytes(self.file(side, fold, seed), buffer.getvalue())

  def score(self, fold, found):
    """The sums of what a side found of the test frames of a fold."""
    index, frames = self.folds[fold]["test"], self.frames
    target, where = frames.target[index], frames.where[index]
    sums = resampling.image_sums(found.probability, target, where, predicted=found.predicted)
    if frames.raters is not None:
      predicted = found.predicted.astype(np.float32)
      each, drawn = (x[index] for x in frames.raters)
      sums["dice_raters"] = raters.dice_vs_raters(predicted, each, drawn, where)[0]
    return sums

  def sums(self, side, seed):
    """The units of a side and seed, pooled over folds; None where one is missing."""
    units = [self.read(side, fold, seed) for fold in range(len(self.folds))]
    if None in units:
      return None
    parts = [sums for sums, _ in units]
    index = np.concatenate([fold["test"] for fold in self.folds])
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return resampling.by_patient(pooled, self.resampled[index]), [about for _, about in units]

  def about(self):
    """What was trained on what for how long, for JSON."""
    args, frames = self.args, self.frames
    train = [len(fold["train"]) for fold in self.folds]
    return {
      "data": self.settings(BLIND[0]),
      "classes": list(frames.dataset.classes),
      "frames": len(frames.patient),
      "patients": len(set(frames.patient.tolist())),
      "split": self.how,
      "training_frames": [min(train), max(train)],
      "notes": _notes(self),
      "budget": args.budget,
      "clock": args.clock,
      "cores": args.cores,
      "size": args.size,
      "versions": versions(),
    }

  def people(self):
    """The mean Dice of raters to those of other persons; None without raters."""
    if self.frames.raters is None:
      return None
    each, drawn = self.frames.raters
    scores = raters.humans(each, drawn, self.frames.dataset.persons, self.frames.where)[0]
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def config_of(name, args):
  """A config of ours that learns the label of the data that all sides learn, and nothing else."""
  file, _, size = fields.find(name).rpartition(":")
  if not file:
    file, size = size, ""
  try:
    config = runpy.run_path(file)["get_config"](*([size] if size else []))
  except (KeyError, ValueError) as error:
    raise UserError(f"--config={name}: {error}") from error
  with config.unlocked():
    kind = quality_data.name_of(args.data)
    config.data.name = kind
    config.data.dir = "" if kind == quality_data.PHANTOM else os.path.abspath(
      os.path.expanduser(args.data)
    )  # fmt: skip
    config.data.image_size = args.size
    config.data.split_unit = quality_data.split_unit(kind, config.data.dir)
    config.data.phantom.n_patients = args.patients
    if args.phantom_seed is not None:
      config.data.phantom.seed = args.phantom_seed
    if args.phantom_variety is not None:
      config.data.phantom.variety = tuple(args.phantom_variety)
    config.data.phantom.raters = False
    if args.label is None:
      args.label = quality_data.SOFT if kind == "multirater_folder" else resampling.MIDDLE
    if args.label == quality_data.SOFT:
      config.loss.name = "cross_entropy"
      config.sweep.thresholds = (resampling.MIDDLE,)
    else:
      config.sweep.thresholds = (args.label,)
    config.sweep.members, config.sweep.seeds = (), 1
    config.train.steps = 0
  segmentation.check(auto.provisional(config))
  return config


class Work:
  """A side's training as a worker's object.

  Args:
    train: from a `quality_sides.Job` to `Found`.
    job: a `Job`.
  """

  def __init__(self, train, job):
    self._train, self._job = train, job

  def run(self):
    """`Found`."""
    return self._train(self._job)


def measure(study, *, keep=lambda: None, units=None):
  """Trains and scores every unit that is not finished, sides in turn.

  Args:
    study: a `Study`.
    keep: is called after each.
    units: (seed, fold, side) of what is to be trained; None: every side in every fold and seed,
      and what does not look at the frame.

  Returns:
    Why units are missing, by side, and whether anything is broken.
  """
  args, failed, broken = study.args, {}, False
  sides = {name: quality_sides.ours for name in study.configs}
  for name in args.peer:
    peer = quality_sides.PEERS[name]
    if missing := peer.missing():
      failed[name] = f"it needs {missing}, which is not installed; pip install 'lus_jax[peers]'."
    else:
      sides[name] = peer.train
  blind = units is None
  if units is None:
    units = itertools.product(args.seeds, range(len(study.folds)), sides)
  units = [unit for unit in units if study.read(unit[2], unit[1], unit[0]) is None]
  print(
    f"{len(study.frames.patient)} frames, {study.how}; {plural(len(units), 'training')} of "
    f"{args.budget:g} s to do",
    flush=True,
  )
  with tempfile.TemporaryDirectory() as directory:
    file = os.path.join(directory, "frames.npz")
    frames = study.frames
    np.savez(file, image=frames.image, target=frames.target, where=frames.where)

    def job(fold, seed=0, config=None):
      return quality_sides.Job(
        file=file,
        fold=study.folds[fold],
        seed=seed,
        budget=args.budget,
        clock=args.clock,
        cores=args.cores,
        exclusive=frames.exclusive,
        config=config,
      )

    for fold in range(len(study.folds) if blind else 0):
      if any(study.read(side, fold, 0) is None for side in BLIND):
        for side, found in quality_sides.blind(job(fold)).items():
          study.write(side, fold, 0, study.score(fold, found), seconds=0.0, steps=0, note="")
    start = processes.Here if args.in_process else processes.Apart
    environment = quality_sides.environment(args.cores)
    environment["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
      "JAX_COMPILATION_CACHE_DIR", os.path.expanduser(CACHE)
    )
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for number, (seed, fold, side) in enumerate(units, 1):
      if side in failed:
        continue
      config = study.configs.get(side)
      if config is not None:
        config = config.copy_and_resolve_references()
        with config.unlocked():
          config.seed = seed
      try:
        worker = start(
          Work,
          sides[side],
          job(fold, seed, config),
          environment=environment,
          limit=_patience(args),
        )
        try:
          found = worker.ask("run")
        finally:
          worker.stop()
      except processes.Failed as error:
        failed[side] = error.reason
        broken |= not error.expected
        print(f"{side}, fold {fold}, seed {seed}: not measured: {error.reason}", flush=True)
        continue
      sums = study.score(fold, found)
      study.write(side, fold, seed, sums, seconds=found.seconds, steps=found.steps, note=found.note)
      _, parts = resampling.by_patient(sums, study.resampled[study.folds[fold]["test"]])
      dice = resampling.scores(parts, np.ones((1, len(parts["label_images"]))))["dice"][0]
      print(
        f"{number} of {len(units)}: {side}, fold {fold}, seed {seed}: Dice {_number(dice)}, "
        f"{plural(found.steps, 'step')} in {found.seconds:.0f} s"
        + (f" ({found.note})" if found.note else ""),
        flush=True,
      )
      keep()
  return failed, broken


def _patience(args):
  # On a machine that others use, too, a second of computing takes several.
  return OVERHEAD + (20 if args.clock == "cpu" else 2) * args.budget


def summarize(study, failed):
  """What is known so far.

  Args:
    study: a `Study`.
    failed: why units are missing, by side.

  Returns:
    A dict for JSON: `rows`, one a side, and what the numbers are of.
  """
  args, frames = study.args, study.frames
  rows, held = [], {}
  for side in (*study.configs, *args.peer, *BLIND):
    seeds = (0,) if side in BLIND else args.seeds
    found = {seed: study.sums(side, seed) for seed in seeds}
    found = {seed: one for seed, one in found.items() if one is not None}
    row = {"side": side, "ok": bool(found), "seeds": sorted(found)}
    if not found:
      rows.append(row | {"reason": failed.get(side, "no seed has all its folds yet")})
      continue
    held[side] = [parts for (_, parts), _ in found.values()]
    abouts = [about for _, each in found.values() for about in each]
    row["scores"] = resampling.summarize(held[side])
    row["seconds"] = [about["seconds"] for about in abouts]
    row["steps"] = [about["steps"] for about in abouts]
    row["notes"] = sorted({about["note"] for about in abouts if about["note"]})
    names = next(iter(found.values()))[0][0]
    row["dice_per_class"] = dict(
      zip(
        frames.dataset.classes,
        _json(np.mean([resampling.per_class(parts, "dice") for parts in held[side]], axis=0)),
        strict=True,
      )
    )
    row["patients"] = _each(names, held[side])
    if side in failed:
      row["reason"] = failed[side]
    rows.append(row)
  first = args.config[0]
  for row in rows:
    if row["side"] in held and row["side"] != first and first in held:
      row["ours_less_it"] = resampling.differences(held[first], held[row["side"]])
  return {
    **study.about(),
    "intervals_over": study.over,
    "activation": "softmax" if frames.exclusive else "sigmoid",
    "people_dice_raters": study.people(),
    "rows": rows,
  }


def _notes(study):
  notes = [note for note in study.frames.dataset.notes if not note.startswith("split by frame")]
  if study.by_time:
    notes.append(
      "split by time: frames beside those that were trained on are tested, so this is not an "
      "independent test."
    )
  if study.args.clock == "wall" and study.args.peer:
    notes.append(
      "by the wall clock peers wait for their augmentation, which the process that trains does "
      "itself, frame by frame; with workers beside it they would take more steps in the time."
    )
  return notes


def _each(names, seeds):
  """The Dice of every patient, the mean over seeds; of so few that it can be read."""
  if len(names) > 3 * statistics.INTERVAL_PATIENTS:
    return None
  found = {}
  for i, name in enumerate(names):
    counts = np.zeros((1, len(names)))
    counts[0, i] = 1
    values = [resampling.scores(parts, counts)["dice"][0] for parts in seeds]
    found[name] = _json(np.array([np.mean(values)]))[0]
  return found


def _json(values):
  return [None if np.isnan(x) else float(x) for x in values]


def _number(value):
  return "-" if value is None or np.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def _with_interval(found):
  if found is None:
    return ""
  text = _number(found["value"])
  if found.get("sd") is not None:
    text += f" ± {_number(found['sd'])}"
  if found["interval"]:
    text += f" [{', '.join(map(_number, found['interval']))}]"
  return text


def heading(content):
  """Lines on what was trained on what for how long, of a dict with all of `Study.about`."""
  first, last = content["training_frames"]
  return [
    f"{content['data']['data']}: {plural(content['frames'], 'frame')} of "
    f"{plural(content['patients'], 'patient')} at {content['size']} pixels, "
    f"{content['split']}, {first} to {last} train; label {_label(content['data']['label'])}",
    f"{content['budget']:g} s of training each ({content['clock']} clock, "
    f"{plural(content['cores'], 'core')})",
    *(f"note: {note}" for note in content["notes"]),
  ]


def table(content):
  """What `summarize` found, as text with Markdown tables."""
  several = any("dice_raters" in row.get("scores", ()) for row in content["rows"])
  shown = [name for name in NAMES if several or name != "dice_raters"]
  columns = {"side": lambda r: r["side"], "seeds": lambda r: len(r["seeds"])}
  for name in shown:
    columns[NAMES[name]] = lambda r, name=name: _with_interval(r["scores"].get(name))
  columns["ours less it: Dice"] = lambda r: _with_interval(r.get("ours_less_it", {}).get("dice"))
  columns["s, steps"] = lambda r: (
    f"{np.median(r['seconds']):.0f}, {np.median(r['steps']):.0f}" if any(r["steps"]) else ""
  )
  texts = [
    *heading(content),
    f"peers end in a {content['activation']}; ± over seeds, [95 %] from 10 on over "
    f"{content['intervals_over']}",
    "",
    processes.table(columns, content["rows"], known=1),
  ]
  if len(content["classes"]) > 1:
    by_class = {"Dice by class": lambda r: r["side"]}
    for name in content["classes"]:
      by_class[name] = lambda r, name=name: _number(r["dice_per_class"][name])
    rows = [row for row in content["rows"] if row["ok"]]
    texts += ["", processes.table(by_class, rows, known=1)]
  if content["people_dice_raters"] is not None:
    texts.append(f"\nRaters reach a Dice of {_number(content['people_dice_raters'])} to others.")
  for row in content["rows"]:
    if row["ok"] and "reason" in row:
      texts.append(f"\n{row['side']} is not finished: {row['reason']}")
    over = [x / content["budget"] for x in row.get("seconds", ()) if x > 1.1 * content["budget"]]
    if over:
      texts.append(f"\n{row['side']} took up to {max(over):.2f} times its time.")
  return "\n".join(texts)


def _label(label):
  if label == quality_data.SOFT:
    return "soft: the confidence itself, judged at 50 %"
  return "> 0 %" if label == 0 else f">= {label:.0%}"


def _names(known):
  def parse_names(text):
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    if known and (wrong := [name for name in names if name not in known]):
      raise argparse.ArgumentTypeError(f"{wrong[0]} is not known; choose {', '.join(known)}, none")
    return names

  return parse_names


def _seeds(text):
  seeds = [int(part) for part in text.split(",")]
  if min(seeds) < 0 or len(set(seeds)) < len(seeds):
    raise argparse.ArgumentTypeError("write different whole numbers from 0 on, as 0,1,2")
  return seeds


def _confidence(text):
  if text == quality_data.SOFT:
    return text
  value = float(text)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f"write a confidence in [0, 1], or {quality_data.SOFT}")
  return value


def _natural(text):
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"{text} must be at least 0")
  return value


def _above_0(text):
  value = float(text)
  if not 0 < value < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} must be above 0")
  return value


def options(prog, description):
  """A parser of what is trained on what for how long, and where it is kept."""
  parser = argparse.ArgumentParser(
    prog=f"python -m lus_jax.benchmarks.{prog}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  positive = processes.positive
  parser.add_argument("--data", required=True, metavar="DIR", help="a folder, or lus_phantom")
  parser.add_argument("--patients", type=positive, default=20, help="of lus_phantom")
  parser.add_argument(
    "--phantom-seed", type=_natural, metavar="N", help="which patients; by default the config's"
  )
  parser.add_argument(
    "--phantom-variety", type=_names(()), help="of lus_phantom, as presets; by default the config's"
  )
  parser.add_argument("--budget", type=_above_0, default=600.0, metavar="S", help="seconds")
  parser.add_argument("--clock", choices=tuple(quality_sides.CLOCKS), help="what seconds are")
  parser.add_argument("--cores", type=positive, help="that a side may use; by default 1 on a CPU")
  parser.add_argument("--size", type=positive, default=128, help="pixels, a multiple of 32")
  parser.add_argument("--folds", type=positive, default=5, help="1: the set's own split")
  parser.add_argument("--seeds", type=_seeds, default=[0, 1], help="as 0,1,2")
  parser.add_argument(
    "--label",
    type=_confidence,
    help="the confidence that is enough (0: any), or soft; by default .5, of several raters soft",
  )
  parser.add_argument("--out", help="a folder that keeps what is finished")
  parser.add_argument("--in-process", action="store_true", help="no processes, for a debugger")
  return parser


def checked(args):
  """The namespace of a parser of `options`, with what it leaves open.

  Raises:
    UserError: values do not go together.
  """
  if args.size % 32:
    raise UserError(f"--size={args.size}: the networks need a multiple of 32.")
  if args.folds == 2:
    raise UserError("--folds=2: training, validation and test need 3 at least (1: the own split).")
  # The sides' processes need the device's memory; the backend is not started yet.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  on_cpu = jax.default_backend() == "cpu"
  args.clock = args.clock or ("cpu" if on_cpu else "wall")
  args.cores = args.cores or (1 if on_cpu else cores())
  return args


def parse(argv):
  """Reads a command line into a namespace.

  Raises:
    UserError: values do not go together.
    SystemExit: an option or value is unknown, as argparse has it.
  """
  parser = options("quality", __doc__)
  parser.add_argument(
    "--config", type=_names(()), default=[CONFIG], help="of ours, by name; several: a,b"
  )
  peers = quality_sides.PEERS
  parser.add_argument(
    "--peer",
    type=_names(tuple(peers)),
    default=list(peers),
    help="; ".join([*(f"{name}: {peer.about}" for name, peer in peers.items()), "or none"]),
  )
  args = parser.parse_args(argv)
  if not args.config:
    raise UserError("--config: name one of ours, as seg:auto.")
  return checked(args)


def main(argv=None):
  """Compares, prints a table and writes OUT/quality.json; returns the exit code.

  1: a side failed for more than want of memory; 2: a user's mistake.
  """
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv), interrupted=INTERRUPTED)


def _main(argv):
  say_warnings_plainly()
  args = parse(argv)
  command = " ".join(["python -m lus_jax.benchmarks.quality", *argv])
  with kept(args):
    study = Study(args)
    failed = {}

    def keep():
      content = {"command": command, **summarize(study, failed)}
      write(args, "quality.json", content)
      return content

    found, broken = measure(study, keep=keep)
    failed |= found
    print(table(keep()))
  return 1 if broken else 0


@contextlib.contextmanager
def kept(args):
  """Gives `args.out` a folder that is forgotten, if it names none."""
  with tempfile.TemporaryDirectory() as forgotten:
    args.out = forgotten if args.out is None else os.fspath(files.expanded(args.out, "--out"))
    yield


def write(args, name, content):
  """Writes a JSON file of results into `args.out`."""
  file = pathlib.Path(args.out) / name
  files.write_text(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
  sys.exit(main())
