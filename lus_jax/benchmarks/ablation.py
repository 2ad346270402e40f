"""What each part of a recipe brings on your frames: a screening of all of them at once.

  python -m lus_jax.benchmarks.ablation --data DIR --folds 3 --budget 120 --out OUT

To train again without one part, and then without the next, compares two trainings at a time, and
their luck is larger than what most parts bring. Here half of all trainings have a part and half
have not, by a folded-over Hadamard design (resolution IV: no part is mistaken for what two others
do together), so every training counts for every part: of 16 parts 32 trainings a seed. Folds take
turns, a training and its opposite in the same one, so that no part has the easier folds. An effect
is `with it less without it`, by least squares with a term for each fold; its interval, from the
residuals, is over trainings: of other patients it says nothing, and where many parts bring nothing
one in twenty will seem to.

Parts are what --config (seg:small) has on in loss, optimizer, augment and train and the same
file's own default has off, at 0; or --parts augment.scale,augment.crop=96, whose second is a value
that the recipe does not have. Parts joined by + go together. --data, --budget and what else there
is are those of `lus_jax.benchmarks.quality`: the schedule follows the budget, so that a part pays
for its time. Several processes may share the work with other --seeds; the command with all seeds
then prints the table of all.
"""

import ast
import dataclasses
import sys

import numpy as np
import scipy.linalg
import scipy.stats

from lus_jax import command_line, fields
from lus_jax.benchmarks import processes, quality
from lus_jax.errors import UserError, say_warnings_plainly
from lus_jax.evaluation import numbers, resampling
from lus_jax.tasks.segmentation import auto
from lus_jax.tasks.segmentation import run as segmentation
from lus_jax.words import plural

CONFIG = "seg:small"
SCORES = ("dice", "surface_dice")
# Sections of a config whose fields can be parts, and fields in them that are none.
SECTIONS = ("loss", "optimizer", "augment", "train")
NOT_PARTS = ("train.epoch_steps", "train.batch_size")
# What the budget decides.
BUDGETED = tuple(f"train.{x}" for x in ("steps", "epochs", "minutes", "checkpoint_every"))


@dataclasses.dataclass(frozen=True)
class Part:
  """What a training has or has not.

  Attributes:
    name: as in the table.
    on: values of fields with it, by their dotted names.
    off: and without it.
  """

  name: str
  on: dict
  off: dict


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training.

  Attributes:
    name: of its files.
    on: whether each part is there, [P] bool.
    fold: the number of its fold.
    seed: of all that is random.
  """

  name: str
  on: np.ndarray
  fold: int
  seed: int


def design(n):
  """Which of n parts each training has: [R, n] bool, R twice a power of 2 of at least n.

  Every part is there in half of the trainings, and so is every pair; a training's opposite is among
  them. The first has all parts.
  """
  order = max(2, 1 << (n - 1).bit_length())
  half = scipy.linalg.hadamard(order)[:, :n] > 0
  return np.concatenate([half, ~half])


def parts_of(config, reference):
  """`Part`s: the fields of `SECTIONS` that are 0 in a reference and not in a config."""
  off = fields.flatten(reference)
  return [
    Part(name, {name: value}, {name: off[name]})
    for name, value in fields.flatten(config).items()
    if name.partition(".")[0] in SECTIONS
    and name not in (*NOT_PARTS, *BUDGETED)
    and isinstance(off.get(name), (bool, int, float))
    and not off[name]
    and value
  ]


def parse_parts(text, config, reference):
  """`Part`s as --parts names them: a,b=2,c+d.

  Raises:
    UserError: one is no field that is a part, is the same with and without, or stands there twice.
  """
  own, off = fields.flatten(config), fields.flatten(reference)
  known = [name for name in own if name.partition(".")[0] in (*SECTIONS, "model")]
  found, seen = [], set()
  for one in text.split(","):
    part = Part(one, {}, {})
    for setting in one.split("+"):
      name, given, value = (x.strip() for x in setting.partition("="))
      if name not in known:
        near = fields.nearest(name, known)
        raise UserError(
          f"--parts: {name} is no part of a recipe{f'; did you mean {near}?' if near else '.'}"
        )
      if name in BUDGETED:
        raise UserError(f"--parts: {name} follows from --budget; leave it out.")
      if name in seen:
        raise UserError(f"--parts: {name} stands there twice; a part is one thing.")
      seen.add(name)
      part.on[name], part.off[name] = own[name], off[name]
      if given:
        part.on[name], part.off[name] = _value(setting, value, own[name]), own[name]
      if part.on[name] == part.off[name]:
        raise UserError(f"--parts: {setting} is the same with and without it: {own[name]}.")
    found.append(part)
  return found


def _value(setting, text, like):
  if isinstance(like, str):
    return text
  try:
    read = ast.literal_eval(text)
    value = type(like)(read)
  except (SyntaxError, TypeError, ValueError):
    read = value = None
  if value is None or value != read:
    raise UserError(f"--parts: {setting} must be a {type(like).__name__}, as {like}.")
  return value


def with_parts(config, parts, on):
  """A copy of a config with some `Part`s there and the others not, by [P] bool."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for part, there in zip(parts, on, strict=True):
      for name, value in (part.on if there else part.off).items():
        section, _, field = name.rpartition(".")
        config[section][field] = value
  return config


def trials(parts, folds, seeds):
  """Every training: `Trial`s, seeds one after another.

  Folds take turns over the first half, whose opposites have the same: within a fold every part is
  there in half of the trainings. A seed's number shifts its folds, whichever others there are.
  """
  rows = design(len(parts))
  return [
    Trial(f"row {row:02d}", on, (row % (len(rows) // 2) + seed) % folds, seed)
    for seed in seeds
    for row, on in enumerate(rows)
  ]


def effects(on, fold, values):
  """What each part brings, by least squares.

  Args:
    on: [R, P] bool.
    fold: [R] numbers.
    values: [R] scores.

  Returns:
    A dict: `effect` [P], half the width of its 95 % `interval` [P] and `luck`, the standard
    deviation of one training; each None where the trainings are too few to tell.
  """
  blocks = np.asarray(fold)[:, None] == np.unique(fold)
  matrix = np.concatenate([np.asarray(on) - 0.5, blocks], axis=1)
  found = {"effect": None, "interval": None, "luck": None}
  n = np.asarray(on).shape[1]
  if len(values) == 0 or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
    return found
  solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
  found["effect"] = solution[:n].tolist()
  freedom = len(values) - matrix.shape[1]
  if freedom > 0:
    luck = np.sqrt(np.sum((values - matrix @ solution) ** 2) / freedom)
    spread = luck * np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix))[:n])
    found["interval"] = (scipy.stats.t.ppf(0.975, freedom) * spread).tolist()
    found["luck"] = float(luck)
  return found


def scores_of(study, trial):
  """A training's scores by name, its steps and seconds; None where it is not finished."""
  unit = study.read(trial.name, trial.fold, trial.seed)
  if unit is None:
    return None
  sums, about = unit
  _, parts = resampling.by_patient(sums, study.resampled[study.folds[trial.fold]["test"]])
  found = resampling.scores(parts, np.ones((1, len(parts["label_images"]))))
  return {name: numbers.number(found[name][0]) for name in SCORES} | {
    name: about[name] for name in ("steps", "seconds")
  }


def summarize(study, parts, planned):
  """What is known so far, as a dict for JSON."""
  found = [(trial, scores) for trial in planned if (scores := scores_of(study, trial))]
  content = {
    **study.about(),
    "parts": [part.name for part in parts],
    "trainings": [
      {"row": t.name, "on": t.on.tolist(), "fold": t.fold, "seed": t.seed, **scores}
      for t, scores in found
    ],
    "planned": len(planned),
    "effects": {},
  }
  for name in SCORES:
    # A fold whose frames show no class has no score.
    kept = [(t, scores[name]) for t, scores in found if scores[name] is not None]
    on = np.array([t.on for t, _ in kept]).reshape(-1, len(parts))
    content["effects"][name] = effects(on, [t.fold for t, _ in kept], [x for _, x in kept])
  on = np.array([t.on for t, _ in found]).reshape(-1, len(parts))
  steps = np.array([scores["steps"] for _, scores in found])
  content["steps_ratio"] = [
    float(np.median(steps[there]) / np.median(steps[~there])) if 0 < there.sum() < len(on) else None
    for there in on.T
  ]
  return content


def table(content):
  """What `summarize` found, as text with a Markdown table."""
  trainings, found = content["trainings"], content["effects"]
  lines = [
    *quality.heading(content),
    f"{len(trainings)} of {plural(content['planned'], 'training')}; ± 95 % over trainings, on the "
    "same frames",
    "",
  ]

  def cell(name):
    def text(row):
      if found[name]["effect"] is None:
        return "too few trainings"
      value = f"{found[name]['effect'][row['i']]:+.3f}"
      if found[name]["interval"]:
        value += f" ± {found[name]['interval'][row['i']]:.3f}"
      return value.replace("0.", ".")

    return text

  def steps(row):
    ratio = content["steps_ratio"][row["i"]]
    return "" if ratio is None else f"x {ratio:.2f}"

  columns = {"part": lambda row: row["part"]}
  columns |= {quality.NAMES[name]: cell(name) for name in SCORES}
  columns["steps in the time"] = steps
  rows = [{"ok": True, "part": part, "i": i} for i, part in enumerate(content["parts"])]
  lines.append(processes.table(columns, rows, known=1) + "\n")
  for name in SCORES:
    values = [one[name] for one in trainings if one[name] is not None]
    if found[name]["luck"] is not None:
      lines.append(
        f"{quality.NAMES[name]}: {np.mean(values):.3f} on average, one training's luck "
        f"{found[name]['luck']:.3f} (standard deviation)".replace("0.", ".")
      )
  return "\n".join(lines)


def parse(argv):
  """Reads a command line into a namespace.

  Raises:
    UserError: values do not go together.
    SystemExit: an option or value is unknown, as argparse has it.
  """
  parser = quality.options("ablation", __doc__)
  parser.add_argument("--config", default=CONFIG, help="the recipe, by name")
  parser.add_argument("--parts", help="as a,b=2,c+d; by default all that can be at 0")
  args = parser.parse_args(argv)
  args.config, args.peer = [args.config], []
  return quality.checked(args)


def main(argv=None):
  """Screens, prints a table and writes OUT/ablation.json; returns the exit code.

  1: a training failed for more than want of memory; 2: a user's mistake.
  """
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv), interrupted=quality.INTERRUPTED)


def _main(argv):
  say_warnings_plainly()
  args = parse(argv)
  command = " ".join(["python -m lus_jax.benchmarks.ablation", *argv])
  with quality.kept(args):
    (name,) = args.config
    study = quality.Study(args)
    config, reference = study.configs[name], quality.config_of(name.partition(":")[0], args)
    if args.parts:
      parts = parse_parts(args.parts, config, reference)
    else:
      parts = parts_of(config, reference)
    if not parts:
      raise UserError(f"--config={name} has nothing on that its own default has at 0; use --parts.")
    planned = trials(parts, len(study.folds), args.seeds)
    study.configs = {trial.name: with_parts(config, parts, trial.on) for trial in planned}
    for one in study.configs.values():
      segmentation.check(auto.provisional(one))

    def keep():
      content = {"command": command, **summarize(study, parts, planned)}
      quality.write(args, "ablation.json", content)
      return content

    units = [(trial.seed, trial.fold, trial.name) for trial in planned]
    failed, broken = quality.measure(study, keep=keep, units=units)
    print(table(keep()))
    for side, reason in failed.items():
      print(f"{side} is not finished: {reason}")
  return 1 if broken else 0


if __name__ == "__main__":
  sys.exit(main())
