"""One HTML page from the results files of a run, with its figures and tables as files beside it."""

import functools
import itertools
import json
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np

from lus_jax import pages, palette, results, words
from lus_jax.errors import UserError
from lus_jax.files import (
  NPY_ERRORS,
  check_file,
  damage_is_a_user_error,
  sha256,
  write_bytes,
  write_text,
)
from lus_jax.report import (
  cells,
  clinic,
  clinical,
  command,
  dose,
  figures,
  learning_curve,
  painters,
  paper,
  pretrain,
  raters,
  schema,
  segmentation,
  text,
  timing,
  which_target,
)

DIRECTORY = "report"
FILES = ("segmentation", "segmentation_matrix", "history", "cases", "dataset")
# What a run of segmentation leaves only if it was asked for.
MORE_FILES = ("raters", "members", "calibration")
# What studies of many cohorts leave, and runs of another kind.
OTHERS = (which_target.NAME, clinic.NAME, pretrain.NAME, learning_curve.NAME)
EXAMPLES = "examples.npz"
_HISTORY = "_history"
# The page of whole clips beside it, `lus_jax.report.gallery`.
GALLERY = "gallery.html"


def write(workdir):
  """Writes the report of a run; see `lus_jax.report.build`."""
  files, tasks, problems = _read(workdir)
  page = _Page(files, problems)
  has_segmentation = not files.keys().isdisjoint((*FILES, *MORE_FILES))
  if has_segmentation:
    _segmentation(page)
    _more(page)
  if painters.is_shown(files):
    _painters(page)
  if which_target.NAME in files:
    _targets(page)
  if clinic.NAME in files:
    _clinic(page)
  if pretrain.NAME in files:
    _pretraining(page)
  if learning_curve.NAME in files:
    page.section(f"{learning_curve.NAME}.table", learning_curve.table)
    page.section(
      f"{learning_curve.NAME}.words",
      lambda files: list(learning_curve.sentences(files[learning_curve.NAME])),
    )
  for name, make in ((f"{timing.NAME}.table", timing.table), ("continued", timing.continued)):
    page.section(name, make, timing.NAME)
  page.section(f"{timing.NAME}.files", lambda files: timing.bars(files[timing.NAME]), timing.NAME)
  numbers = table_numbers([page.files[name] for name in tasks])
  sections = [
    _task(page, name, place, number)
    for place, (name, number) in enumerate(zip(tasks, numbers, strict=True), 1)
  ]
  page.section("seed", lambda files: cells.value(files, page.any, "config", "seed", show=str))
  page.section("versions", lambda files: cells.settings(files, page.any, "versions"))
  runs = dict.fromkeys([page.any, *(name for name in (*OTHERS, *tasks) if name in files)])
  page.section("settings", lambda files: _settings(files, runs))
  page.section("commands", lambda files: command.commands(workdir, tasks))

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
  templates = pages.templates(__file__)
  templates.filters["data_url"] = pages.data_url
  templates.filters["many"] = lambda noun, value: words.many(value.value, noun)
  html = templates.get_template("template.html").render(
    shown=page.context,
    problems=problems,
    segmentation=has_segmentation,
    more={name for name in MORE_FILES if name in files},
    tasks=sections,
    targets=which_target.NAME in files,
    clinic=clinic.NAME in files,
    pretraining=pretrain.NAME in files,
    curve=learning_curve.NAME in files,
    painters=painters.is_shown(files),
    dataset=files[page.any]["dataset"],
    config=files[page.any]["config"],
    palette=palette,
    fewest_pixels=figures.FEWEST_PIXELS,
    percent=cells.percent,
    gallery=has_gallery(workdir, problems),
  )
  write_text(directory / "index.html", html)
  return directory / "index.html"


def results_mark(workdir):
  """What stands in a gallery's head: of which results it is."""
  digest = sha256(pathlib.Path(workdir) / results.DIRECTORY / "segmentation.json")
  return f'<meta name="results" content="{digest}">'


def has_gallery(workdir, problems):
  """Whether there is a gallery of these results; one of others becomes a line of `problems`."""
  file = pathlib.Path(workdir) / DIRECTORY / GALLERY
  if not file.is_file():
    return False
  with file.open(encoding="utf-8", errors="replace") as opened:
    head = opened.read(2**12)
  if results.exists(workdir, "segmentation") and results_mark(workdir) in head:
    return True
  problems.append(
    f"{file} is of other results than these; make it again with --gallery, or remove it."
  )
  return False


def _segmentation(page):
  """Makes the parts of the page that show the segmentation."""
  page.section("scores.table", segmentation.scores, "segmentation")
  page.section("more_scores.table", segmentation.more_scores, "segmentation")
  page.section("per_class.table", segmentation.per_class, "segmentation")
  page.section("outlines.table", segmentation.outlines, "segmentation")
  page.section("calibration.table", segmentation.calibration, "segmentation")
  page.section("reliability.table", segmentation.reliability, "segmentation")
  page.section("matrix.table", segmentation.matrix, "segmentation_matrix")
  page.section("history.table", segmentation.history, "history")
  page.section("cases.table", segmentation.cases, "cases")
  page.section("data_set.table", segmentation.data_set, "dataset")
  page.section("painted.table", segmentation.painted, "dataset")
  page.figure("per_class", "segmentation", figures.per_class, with_classes=True)
  page.figure("reliability", "segmentation", figures.reliability, with_classes=True)
  page.figure("matrix", "segmentation_matrix", figures.matrix)
  page.figure("curves", "history", figures.curves)
  page.figure("painted", "dataset", figures.painted, with_classes=True)
  page.section("examples", segmentation.examples, "examples")
  if page.context["examples"]:
    page.section("pictures.files", lambda _: segmentation.drawn(page.context["examples"]))
  page.section("summary", segmentation.summary)


def _painters(page):
  """Makes the parts of the page that show who painted what."""
  name = painters.NAME
  page.section(f"{name}.facts", painters.facts)
  page.section(f"{name}.table", painters.work)
  page.section(f"{name}_tools.table", painters.tools)
  page.section(f"{name}_painted.table", painters.painted)
  page.section(f"{name}_painted.files", painters.figure)


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
    make = functools.partial(segmentation.reliability, name=name, keys=keys)
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
  page.section(f"{name}_answers.table", which_target.answers, name)
  page.section(f"{name}.files", which_target.figure, name)
  for setting in (page.context[f"{name}.facts"] or {"settings": ()})["settings"]:
    for family in setting["families"]:
      options = {"setting": setting["name"], "weights": family["weights"]}
      make = functools.partial(which_target.scores, **options)
      page.section(f"{family['key']}.table", make, name)
  for part, metrics in (("levels", which_target.FIRST), ("more_levels", which_target.MORE)):
    make = functools.partial(which_target.levels, metrics=metrics, name=f"{name}_{part}")
    page.section(f"{name}_{part}.table", make, name)
  page.section(f"{name}_labels.table", which_target.labels, name)
  for part, make in (("dose", dose.best), ("overtakes", dose.overtakes)):
    page.section(f"{name}_{part}.table", functools.partial(make, name=name), name)
  page.section(f"{name}_dose.files", functools.partial(dose.figure, name=name), name)
  for key in ("scales", "spread"):
    make = functools.partial(which_target.scales, key=key, name=f"{name}_{key}")
    page.section(f"{name}_{key}.table", make, name)
  page.section(f"{name}_fit.table", which_target.fits, name)
  page.section(f"{name}_null_studies.table", which_target.null_studies, name)
  page.section(f"{name}_cohorts.table", which_target.every_cohort, name)


def _clinic(page):
  """Makes the parts of the page that show the clinic's questions."""
  name = clinic.NAME
  page.section(f"{name}.facts", clinic.facts, name)
  for key in ("questions", "controls"):
    page.section(f"{name}_{key}.table", functools.partial(clinic.comparisons, key=key), name)
  page.section(f"{name}.files", clinic.figure, name)
  for part in ("means", "seeds", "others", "networks", "patients"):
    page.section(f"{name}_{part}.table", getattr(clinic, part), name)


def _pretraining(page):
  """Makes the parts of the page that show a run of pretraining."""
  name = pretrain.NAME
  page.section(f"{name}.facts", pretrain.facts)
  page.section(f"{name}_history.table", pretrain.history)
  page.section(f"{name}.files", pretrain.figure)
  page.section(
    f"{name}_pictures", lambda files: pretrain.pictures(files[pretrain.PICTURES]), pretrain.PICTURES
  )


def table_numbers(contents):
  """A number for the table of each task: the paper's of its own, then 5 and on."""
  numbers, after = [], itertools.count(1 + max(task.number for task in paper.TASKS.values()))
  for content in contents:
    own = paper.TASKS[content["task"]].number
    numbers.append(own if paper.is_the_papers(content) and own not in numbers else next(after))
  return numbers


def _task(page, name, place, number):
  """Makes the parts of the page that show a clinical task; what the template needs to find them.

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

  table("scores", clinical.scores)
  table("more_scores", clinical.more_scores)
  table("differences", clinical.differences)
  table("comparisons", clinical.comparisons)
  table("every_fold", clinical.every_fold)
  table("patients", clinical.per_patient)
  table("folds", clinical.folds)
  table("history", clinical.history, past)
  figure("by_threshold", figures.by_source)
  if task == "sf_ratio":
    figure("predicted", figures.predicted)
  else:
    table("confusion", clinical.confusion)
    figure("confusion", figures.confusion)
  if task != "sf_change":
    table("predictions", clinical.predictions)
  page.section(
    f"{name}_curves.files",
    lambda files: figures.render(
      figures.source_curves, files[past]["rows"], text.score(files[name])
    ),
    past,
    name,
  )
  page.section(f"{name}.facts", lambda files: clinical.facts(files, name), name)
  return {
    "name": name,
    "id": f"task-{place}",
    "task": task,
    "papers": paper.is_the_papers(content),
    "papers_target": paper.is_of_the_papers_target(content),
    "days": content["config"].get("days"),
    "title": text.title(content),
    "table": f"Table {number}"
    + (f", {name}" if number > max(one.number for one in paper.TASKS.values()) else ""),
    "target": text.target(content),
    "baseline": paper.TASKS[task].baseline,
    "facts": page.context[f"{name}.facts"],
  }


def _settings(files, names):
  """A table of settings for each different config of some results files."""
  found = {}
  for name in names:
    found.setdefault(json.dumps(files[name]["config"], sort_keys=True), name)
  return [(name, cells.settings(files, name, "config")) for name in found.values()]


def _read(workdir):
  """What there is, by name, JSON files first.

  Returns:
    Contents by name, the names of those that are of clinical tasks in the paper's order, and a
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
    return schema.read(workdir, name, **options)

  def is_ours(name):
    # Of a task's own name nothing is known but what lies beside its file.
    beside = name + _HISTORY in present or (pathlib.Path(workdir) / name).is_dir()
    return name in paper.TASKS or (beside and re.fullmatch(r"\w+", name) is not None)

  def read_task(name):
    task = results.read(workdir, name).get("task")
    if not isinstance(task, str) or task not in paper.TASKS:
      raise UserError(f"{directory / name}.json is damaged (of no known task); {results.MEND}")
    return read(name, of=task)

  for name in sorted(present - {*FILES, *MORE_FILES, *OTHERS, timing.NAME}):
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
  for name in (*wanted, *(x for x in (*MORE_FILES, *OTHERS) if x in present)):
    if (content := read(name)) is not None:
      files[name] = content

  def place(item):
    return paper.TASKS[item[1]["task"]].number, not paper.is_the_papers(item[1])

  tasks = dict(sorted(tasks.items(), key=place))
  files |= tasks
  if not files:
    raise UserError(
      f"{directory} holds no readable results file; run lus_jax.main with this workdir first."
    )
  for name in tasks:
    if (content := read(name + _HISTORY, of="history")) is not None:
      files[name + _HISTORY] = content
  if timing.NAME in present:
    try:
      files[timing.NAME] = read(timing.NAME)
    except UserError as error:  # no reason to show nothing
      problems.append(str(error))
  if with_segmentation:
    if os.path.lexists(directory / EXAMPLES):
      files["examples"] = _read_examples(directory / EXAMPLES, files)
    else:
      problems.append(f"{directory / EXAMPLES} does not exist: the page shows no pictures.")
    if "raters" in files and "rater_index" not in files.get("examples", ("rater_index",)):
      problems.append(f"{directory / EXAMPLES} holds no images of several raters.")
  if pretrain.NAME in files:
    if os.path.lexists(directory / pretrain.PICTURES):
      files[pretrain.PICTURES] = _read_pictures(directory / pretrain.PICTURES)
    else:
      problems.append(f"{directory / pretrain.PICTURES} does not exist: no pictures are shown.")
  return files, list(tasks), problems


def _read_arrays(file):
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
    return {name: arrays[name] for name in arrays.files}


def _read_pictures(file):
  arrays = _read_arrays(file)
  try:
    pretrain.check_pictures(arrays)
  except ValueError as error:
    raise UserError(f"{file} is damaged ({error}); {results.MEND}") from error
  return arrays


def _read_examples(file, files):
  examples = _read_arrays(file)
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
