"""One HTML page from the results files of a run, with its figures and tables as files beside it."""

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shlex
import zipfile
import zlib

import jinja2
import numpy as np
from flax import traverse_util

import lus_jax
from lus_jax import labels, palette, results, words
from lus_jax.errors import UserError
from lus_jax.evaluation import statistics
from lus_jax.files import NPY_ERRORS, check_file, damage_is_a_user_error, write_bytes, write_text
from lus_jax.report import downstream, figures, pictures, raters, schema, tables, which_target

DIRECTORY = "report"
FILES = ("segmentation", "segmentation_matrix", "history", "cases", "dataset")
# What a run of segmentation leaves only if it was asked for.
MORE_FILES = ("raters", "members", "calibration")
EXAMPLES = "examples.npz"
_HISTORY = "_history"
_CONFIGS = pathlib.Path(lus_jax.__file__).parents[1] / "configs"
_SIZES = ("demo", "tiny")
MIDDLE = 0.5  # the label that members without a threshold are judged by
# Below this many test patients no exact test, corrected for 11 comparisons, can reach p < .05.
_FEWEST_PATIENTS = 9


def write(workdir):
  """Writes the report of a run; see `lus_jax.report.build`."""
  files, tasks, problems = _read(workdir)
  page = _Page(files, problems)
  segmentation = not files.keys().isdisjoint((*FILES, *MORE_FILES))
  if segmentation:
    _segmentation(page)
    _more(page)
  if which_target.NAME in files:
    _targets(page)
  numbers = _table_numbers([page.files[name] for name in tasks])
  sections = [
    _task(page, name, place, number)
    for place, (name, number) in enumerate(zip(tasks, numbers, strict=True), 1)
  ]
  page.section("seed", lambda files: tables.value(files, page.any, "config", "seed", show=str))
  page.section("versions", lambda files: tables.settings(files, page.any, "versions"))
  runs = [page.any, *(name for name in (which_target.NAME, *tasks) if name in files)]
  page.section("settings", lambda files: _settings(files, runs))
  page.section("commands", lambda files: _commands(files, runs, workdir))

  directory = pathlib.Path(workdir) / DIRECTORY
  written = {}
  for name, content in page.context.items():
    if name.endswith(".table") and content:
      written[directory / "tables" / f"{content.name}.csv"] = content.csv().encode()
    if name.endswith(".files") and content:
      for kind, data in content.items():
        written[directory / "figures" / f"{name.removesuffix('.files')}.{kind}"] = data
  for file, data in written.items():
    write_bytes(file, data)
  # What an earlier report left would pass for part of this one.
  for folder in ("tables", "figures"):
    for file in set((directory / folder).glob("*")) - written.keys():
      file.unlink()
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["data_url"] = pictures.data_url
  environment.filters["many"] = lambda noun, value: words.many(value.value, noun)
  html = environment.get_template("template.html").render(
    shown=page.context,
    problems=problems,
    segmentation=segmentation,
    more={name for name in MORE_FILES if name in files},
    tasks=sections,
    targets=which_target.NAME in files,
    dataset=files[page.any]["dataset"],
    config=files[page.any]["config"],
    palette=palette,
    fewest_pixels=figures.FEWEST_PIXELS,
    percent=tables.percent,
  )
  write_text(directory / "index.html", html)
  return directory / "index.html"


def _segmentation(page):
  """Makes the parts of the page that show the segmentation."""
  page.section("scores.table", tables.scores, "segmentation")
  page.section("more_scores.table", tables.more_scores, "segmentation")
  page.section("per_class.table", tables.per_class, "segmentation")
  page.section("outlines.table", tables.outlines, "segmentation")
  page.section("calibration.table", tables.calibration, "segmentation")
  page.section("reliability.table", tables.reliability, "segmentation")
  page.section("matrix.table", tables.matrix, "segmentation_matrix")
  page.section("history.table", tables.history, "history")
  page.section("cases.table", tables.cases, "cases")
  page.section("data_set.table", tables.data_set, "dataset")
  page.section("painted.table", tables.painted, "dataset")
  page.figure("per_class", "segmentation", figures.per_class, with_classes=True)
  page.figure("reliability", "segmentation", figures.reliability, with_classes=True)
  page.figure("matrix", "segmentation_matrix", figures.matrix)
  page.figure("curves", "history", figures.curves)
  page.figure("painted", "dataset", figures.painted, with_classes=True)
  page.section("examples", _examples, "examples")
  if page.context["examples"]:
    page.section("pictures.files", lambda _: _pictures(page.context["examples"]))
  page.section("summary", _summary)


def _more(page):
  """Makes the parts of the page that show raters, other members and calibration."""
  for name, make, *needs in (
    ("raters_scores", raters.scores, "raters"),
    ("raters_more_scores", raters.more_scores, "raters"),
    ("raters_people", raters.people, "raters"),
    ("raters_curve", raters.curve, "raters"),
    ("raters_images", raters.images, "raters"),
    ("members_scores", raters.members, "members"),
    ("members_ordinal", raters.ordinal, "members", "segmentation"),
    ("calibration_methods", raters.methods, "calibration"),
  ):
    page.section(f"{name}.table", make, *needs)
  for name, keys in (("raters", ("member",)), ("calibration", ("member", "method"))):
    make = functools.partial(tables.reliability, name=name, keys=keys)
    page.section(f"{name}_reliability.table", make, name)
  page.section("raters_curve.files", raters.curve_figure, "raters")
  page.section("raters_reliability.files", raters.reliability_figure, "raters")
  page.section("members_ordinal.files", raters.ordinal_figure, "members", "segmentation")
  page.section("members_cost.files", raters.cost_figure, "members", "segmentation")
  page.section("calibration_methods.files", raters.methods_figure, "calibration")
  page.section("raters.facts", raters.facts, "raters")
  page.section("members.facts", raters.members_facts, "members")
  page.section("calibration.facts", raters.methods_facts, "calibration")
  page.section(
    "raters_examples",
    lambda files: raters.examples(files) if "rater_index" in files["examples"] else None,
    "examples",
    "raters",
  )


def _targets(page):
  """Makes the parts of the page that show the study of targets."""
  name = which_target.NAME
  page.section(f"{name}.facts", which_target.facts, name)
  page.section(f"{name}_verdicts.table", which_target.verdicts, name)
  page.section(f"{name}.files", which_target.figure, name)
  for setting in (page.context[f"{name}.facts"] or {"settings": ()})["settings"]:
    for family in setting["families"]:
      options = {"setting": setting["name"], "weights": family["weights"]}
      for part, make in (("", which_target.scores), ("_comparisons", which_target.comparisons)):
        page.section(f"{family['key']}{part}.table", functools.partial(make, **options), name)
  for part, metrics in (("levels", which_target.JUDGED), ("more_levels", which_target.DESCRIBED)):
    make = functools.partial(which_target.levels, metrics=metrics, name=f"{name}_{part}")
    page.section(f"{name}_{part}.table", make, name)
  page.section(f"{name}_labels.table", which_target.labels, name)
  for key in ("scales", "spread"):
    make = functools.partial(which_target.scales, key=key, name=f"{name}_{key}")
    page.section(f"{name}_{key}.table", make, name)
  page.section(f"{name}_null_repeats.table", which_target.null_repeats, name)
  page.section(f"{name}_cohorts.table", which_target.every_cohort, name)


def _table_numbers(contents):
  """A number for the table of each task: the paper's of its own, then 5 and on."""
  numbers, after = [], itertools.count(1 + max(task.number for task in tables.TASKS.values()))
  for content in contents:
    own = tables.TASKS[content["task"]].number
    numbers.append(own if tables.is_the_papers(content) and own not in numbers else next(after))
  return numbers


def _task(page, name, place, number):
  """Makes the parts of the page that show a downstream task; what the template needs to find them.

  Args:
    page: a `_Page`.
    name: of the task's results file.
    place: of the section.
    number: of its table.
  """
  content, past = page.files[name], name + _HISTORY
  task = content["task"]

  def table(part, make, *needs):
    page.section(f"{name}_{part}.table", lambda files: make(files, name), name, *needs)

  def figure(part, draw):
    page.section(f"{name}_{part}.files", lambda files: figures.render(draw, files[name]), name)

  table("scores", downstream.scores)
  table("more_scores", downstream.more_scores)
  table("differences", downstream.differences)
  table("comparisons", downstream.comparisons)
  table("every_fold", downstream.every_fold)
  table("patients", downstream.per_patient)
  table("folds", downstream.folds)
  table("history", downstream.history, past)
  figure("by_threshold", figures.by_source)
  if task == "sf_ratio":
    figure("predicted", figures.predicted)
  else:
    table("confusion", downstream.confusion)
    figure("confusion", figures.confusion)
  if task != "sf_change":
    table("predictions", downstream.predictions)
  page.section(
    f"{name}_curves.files",
    lambda files: figures.render(
      figures.source_curves, files[past]["rows"], tables.score(files[name])
    ),
    past,
    name,
  )
  page.section(f"{name}.facts", lambda files: downstream.facts(files, name), name)
  return {
    "name": name,
    "id": f"task-{place}",
    "task": task,
    "papers": tables.is_the_papers(content),
    "papers_target": tables.is_of_the_papers_target(content),
    "days": content["config"].get("days"),
    "title": tables.title(content),
    "table": f"Table {number}"
    + (f", {name}" if number > max(one.number for one in tables.TASKS.values()) else ""),
    "target": tables.target(content),
    "baseline": tables.TASKS[task].baseline,
    "facts": page.context[f"{name}.facts"],
  }


def _settings(files, names):
  """A table of settings for each different config of some results files."""
  found = {}
  for name in names:
    found.setdefault(json.dumps(files[name]["config"], sort_keys=True), name)
  return [(name, tables.settings(files, name, "config")) for name in found.values()]


def _read(workdir):
  """What there is, by name, JSON files first.

  Returns:
    Contents by name, the names of those that are of downstream tasks in the paper's order, and a
    line for each file that is missing, or lies there and is none of ours.

  Raises:
    UserError: a file of a run is damaged, or there is none.
  """
  directory = pathlib.Path(workdir) / results.DIRECTORY
  files, tasks, problems = {}, {}, []
  present = {file.stem for file in directory.glob("*.json")}

  def read(name, **options):
    if name not in present:
      problems.append(f"{directory / name}.json does not exist.")
      return None
    content = results.read(workdir, name)
    try:
      schema.check(name, content, **options)
    except ValueError as error:
      raise UserError(f"{directory / name}.json is damaged ({error}); {results.MEND}") from error
    return content

  def is_ours(name):
    # Of a task's own name nothing is known but what lies beside its file.
    beside = name + _HISTORY in present or (pathlib.Path(workdir) / name).is_dir()
    return name in tables.TASKS or (beside and re.fullmatch(r"\w+", name) is not None)

  def read_task(name):
    task = results.read(workdir, name).get("task")
    if not isinstance(task, str) or task not in tables.TASKS:
      raise UserError(f"{directory / name}.json is damaged (of no known task); {results.MEND}")
    return read(name, of=task)

  for name in sorted(present - {*FILES, *MORE_FILES, which_target.NAME}):
    if name.removesuffix(_HISTORY) in present - {name}:
      continue  # read beside the task it belongs to
    try:
      tasks[name] = read_task(name)
    except UserError:
      if is_ours(name):
        raise
      if name.endswith(_HISTORY):
        read(name.removesuffix(_HISTORY))  # which is missing
      else:
        problems.append(f"{directory / name}.json is left out: no results file of this version.")
  with_segmentation = not present.isdisjoint((*FILES, *MORE_FILES))
  with_segmentation |= (directory / EXAMPLES).exists()
  wanted = FILES if with_segmentation else ()
  for name in (*wanted, *(x for x in (*MORE_FILES, which_target.NAME) if x in present)):
    if (content := read(name)) is not None:
      files[name] = content

  def place(item):
    return tables.TASKS[item[1]["task"]].number, not tables.is_the_papers(item[1])

  tasks = dict(sorted(tasks.items(), key=place))
  files |= tasks
  if not files:
    raise UserError(
      f"{directory} holds no readable results file; run lus_jax.main with this workdir first."
    )
  for name in tasks:
    if (content := read(name + _HISTORY, of="history")) is not None:
      files[name + _HISTORY] = content
  if with_segmentation:
    if os.path.lexists(directory / EXAMPLES):
      files["examples"] = _read_examples(directory / EXAMPLES, files)
    else:
      problems.append(f"{directory / EXAMPLES} does not exist: the page shows no pictures.")
    if "raters" in files and "rater_index" not in files.get("examples", ("rater_index",)):
      problems.append(f"{directory / EXAMPLES} holds no images of several raters.")
  return files, list(tasks), problems


def _read_examples(file, files):
  mend = results.MEND.rstrip(".")
  check_file(file, mend)
  # RuntimeError: an archive of another compression, or with a password.
  errors = (*NPY_ERRORS, zipfile.BadZipFile, zlib.error, RuntimeError)
  with (
    damage_is_a_user_error(file, mend, errors),
    # `np.load` leaves a damaged file open if it opened it itself.
    open(file, "rb") as stream,
    np.load(stream, allow_pickle=False) as arrays,
  ):
    examples = {name: arrays[name] for name in arrays.files}
  meta = next((files[name] for name in (*FILES, *MORE_FILES) if name in files), None)
  if meta is not None:
    try:
      schema.check_examples(
        examples,
        classes=meta["dataset"]["classes"],
        n_thresholds=len(meta["config"]["sweep"]["thresholds"]),
        n_cases=len(files["cases"]["rows"]) if "cases" in files else None,
      )
    except ValueError as error:
      raise UserError(f"{file} is damaged ({error}); {results.MEND}") from error
  return examples


class _Page:
  """What the template shows, by name; what there is no file for is None."""

  def __init__(self, files, problems):
    self.files, self.problems, self.context = files, problems, {}
    # Every results file says the same of config, versions and data set.
    self.any = next(iter(files))

  def section(self, name, make, *needs):
    """Makes a part of the page, unless a file it needs is missing."""
    there = all(file in self.files for file in needs)
    self.context[name] = make(self.files) if there else None

  def figure(self, name, file, draw, *, with_classes=False):
    """Draws a figure from the rows of a results file."""

    def make(files):
      classes = [files[file]["dataset"]["classes"]] if with_classes else []
      return figures.render(draw, files[file]["rows"], *classes)

    self.section(f"{name}.files", make, file)


def _examples(files):
  """The example frames for the template, best first, and which of them stands for all."""
  arrays = files["examples"]
  meta = next(iter(files.values()))
  classes = meta["dataset"]["classes"]
  binary = _binary(files)
  # The first seed's members come first.
  members = sorted(enumerate(meta["config"]["sweep"]["thresholds"]), key=lambda pair: pair[1])
  shown = []
  for n in range(len(arrays["index"])):
    image = arrays["image"][n, ..., 0]
    top, left, bottom, right = arrays["valid_box"][n].tolist()
    valid = np.zeros((*image.shape, len(classes)), np.float32)
    valid[top:bottom, left:right] = arrays["labelled"][n]
    if "ignore" in arrays:
      valid *= arrays["ignore"][n] == 0
    index = int(arrays["index"][n])

    picture = functools.partial(
      pictures.draw, image=image, valid=valid, classes=classes, where=f"test frame {index}"
    )
    confidence = arrays["confidence"][n] / np.float32(255)
    context = [picture("frame", np.zeros_like(confidence), "Nothing drawn")]
    painted = "label" if binary else "painted confidence"
    context.append(picture(painted, confidence, painted.capitalize()))
    if "truth" in arrays:
      context.append(
        picture("simulated truth", arrays["truth"][n] / np.float32(255), "Simulated truth")
      )
    steps = []
    for t, threshold in members:
      probability = arrays["probability"][t, n] / np.float32(255)
      at = tables.percent(threshold)
      steps.append(
        {
          "threshold": at,
          "iou": None,
          "label": picture("label", np.asarray(labels.label(confidence, threshold)), f"Label {at}"),
          "probability": picture("probability", probability, f"Probability of model {at}"),
          "prediction": picture(
            "prediction", (probability >= 0.5).astype(np.float32), f"Prediction of model {at}"
          ),
        }
      )
    origin = []
    if "cases" in files:
      origin = tables.origin(files, index)
      for (t, _), step in zip(members, steps, strict=True):
        member = list(files["cases"]["rows"][index]["iou"])[t]
        step["iou"] = tables.value(files, "cases", "rows", index, "iou", member)
    shown.append(
      {
        "index": index,
        "role": str(arrays["role"][n]),
        "frame": pictures.png(image),
        "context": context,
        "steps": steps,
        "origin": origin,
      }
    )
  main = next((n for n, example in enumerate(shown) if example["role"] == "middle"), 0)
  return {"main": shown[main], "others": [e for e in shown if e is not shown[main]]}


def _pictures(examples):
  columns = [
    {
      "title": step["threshold"],
      "label": step["label"].overlaid(),
      "prediction": step["prediction"].overlaid(),
    }
    for step in examples["main"]["steps"]
  ]
  return figures.render(figures.pictures, columns)


def _summary(files):
  """What the summary says, as far as the files that were read tell it."""
  name, meta = next(iter(files.items()))
  splits = meta["dataset"]["splits"]
  summary = {
    "epochs": tables.value(files, name, "config", "train", "epochs", show=tables.count),
    "seeds": tables.value(files, name, "config", "sweep", "seeds", show=tables.count),
    "frames": {
      split: tables.value(files, name, "dataset", "splits", split, show=tables.count)
      for split in splits
    },
    "patients": {},
    "notes": [],
    "judged": None,
    "others": None,
    "absent": [],
    "outputs": [],
    "binary": _binary(files),
    "full_confidence": _full_confidence(files),
    "few": False,
    "too_few": False,
    "paper_classes": set(meta["dataset"]["classes"]) == tables.PAPER_CLASSES,
  }
  if "dataset" in files:
    for i, row in enumerate(files["dataset"]["rows"]):
      at = tables.value(files, "dataset", "rows", i, "patients", show=tables.count)
      summary["patients"][row["split"]] = at
      if row["split"] == "test":
        summary["few"] = row["patients"] < _FEWEST_PATIENTS
        summary["too_few"] = row["patients"] < statistics.INTERVAL_PATIENTS
  if "segmentation" in files:
    content = files["segmentation"]
    summary["notes"] = content["notes"]
    summary["absent"] = [
      (name, [tables.percent(t) for t in thresholds])
      for name, thresholds in tables.absent_classes(content["rows"]).items()
    ]
    named = [(tables.percent(row["threshold"]), row) for row in content["rows"]]
    models = [(f"the model of {name}", row) for name, row in named]
    others = files["members"]["rows"] if "members" in files else []
    others = [(tables.member_label(row["member"]), row) for row in others]
    outputs = {}
    for name, row in models + others:
      if (output := tables.output_of(row)) is not None:
        kind = output, not any(row["predicted_share_per_class"].values())
        outputs.setdefault(kind, []).append(name)
    summary["outputs"] = [
      {"output": output, "words": tables.OUTPUTS[output], "empty": empty, "names": names}
      for (output, empty), names in outputs.items()
    ]
    if content["predictors"]:
      summary["judged"] = _judge(named, content["predictors"])
      summary["others"] = _judge(others, content["predictors"]) if others else None
  return summary


def _full_confidence(files):
  """Whether something was painted, and all of it with full confidence."""
  bins = [
    bins
    for row in (files["dataset"]["rows"] if "dataset" in files else ())
    for by_class in row["painted"].values()
    for bins in by_class.values()
  ]
  return any(map(any, bins)) and not any(any(each[:-1]) for each in bins)


def _binary(files):
  """Whether all masks are binary: by the data set's note, or by what was painted."""
  notes = files["segmentation"]["notes"] if "segmentation" in files else ()
  return any(note.startswith("binary masks:") for note in notes) or _full_confidence(files)


def _judge(named, baselines):
  """Where models have a higher IoU than all baselines of the same label, as a mean and by class.

  A class counts where model and baselines have an IoU; a model without a threshold is judged at
  50 %, as its IoU is.

  Args:
    named: pairs of a name and a row of scores.
    baselines: rows of scores.

  Returns:
    A dict: `below` (names whose mean IoU is not above), `below_classes` (by class the names for
    which it is not), `n_pairs` and `n_above` (of a class and a name), `unknown` (names without
    baselines), `names`.
  """
  below, below_classes, unknown, n_pairs, n_above = [], {}, [], 0, 0
  for name, row in named:
    threshold = MIDDLE if row["threshold"] is None else row["threshold"]
    rivals = [other for other in baselines if other["threshold"] == threshold]
    if not rivals:
      unknown.append(name)
      continue
    if not all((row["iou"] or 0) > (other["iou"] or 0) for other in rivals):
      below.append(name)
    for one, iou in row["iou_per_class"].items():
      theirs = [other["iou_per_class"][one] for other in rivals]
      if iou is None or None in theirs:
        continue
      n_pairs += 1
      n_above += iou > max(theirs)
      if iou <= max(theirs):
        below_classes.setdefault(one, []).append(name)
  return {
    "names": list(dict.fromkeys(name for name, _ in named)),
    "below": list(dict.fromkeys(below)),
    "below_classes": {one: list(dict.fromkeys(names)) for one, names in below_classes.items()},
    "unknown": list(dict.fromkeys(unknown)),
    "n_pairs": n_pairs,
    "n_above": n_above,
  }


def _commands(files, names, workdir):
  """The commands that repeat what a directory holds: one, if it was a study, else one a task."""
  for file in ("run.json", "study/run.json"):
    # Results may be there alone, without the run they come from.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      config = json.loads((pathlib.Path(workdir) / file).read_text())["config"]
      if config["task"] == "study":
        return [_command(config, workdir)]
  return list(dict.fromkeys(_command(files[name]["config"], workdir) for name in names))


def _command(config, workdir):
  """The command that repeats a run: the config file it is nearest to, and what differs from it."""
  wanted = traverse_util.flatten_dict(config, sep=".")
  task = wanted.get("task")
  # How phantoms are drawn, where the data are others.
  unused = {
    key
    for key in wanted
    for data, phantom, _ in [key.rpartition("phantom.")]
    if phantom and wanted.get(f"{data}name", "lus_phantom") != "lus_phantom"
  }
  candidates = []
  for name, known in _configs():
    if known.get("task") == task and known.keys() == wanted.keys():
      differing = {key: x for key, x in wanted.items() if known[key] != x and key not in unused}
      candidates.append((len(differing), name, differing))
  # Without the configs beside the package every field is named.
  file = {"segmentation": "seg.py"}.get(task, f"{task}.py")
  every = {key: x for key, x in wanted.items() if key not in unused}
  _, name, differing = min(candidates, key=lambda c: c[0], default=(0, file, every))
  options = [f"--config.{key}={_option(x)}" for key, x in differing.items()]
  config, workdir = shlex.quote(f"configs/{name}"), shlex.quote(str(workdir))
  first = f"python -m lus_jax.main --config {config} --workdir {workdir}"
  return " \\\n  ".join([first, *map(shlex.quote, options)])


def _option(content):
  if isinstance(content, list):
    return f"({', '.join(map(repr, content))},)" if content else "()"
  return str(content)


@functools.cache
def _configs():
  """The config files beside the package and their sizes, with their fields as in results files."""
  found = []
  for file in sorted(_CONFIGS.glob("*.py")):
    spec = importlib.util.spec_from_file_location("_report_config", file)
    module = importlib.util.module_from_spec(spec)
    # The files are the user's to change: one that fails is no candidate.
    with contextlib.suppress(Exception):
      spec.loader.exec_module(module)
    for size in ("", *_SIZES):
      with contextlib.suppress(Exception):
        config = json.loads(module.get_config(*([size] if size else [])).to_json())
        fields = traverse_util.flatten_dict(config, sep=".")
        found.append((f"{file.name}:{size}" if size else file.name, fields))
  return found
