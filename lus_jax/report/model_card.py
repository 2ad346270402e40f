"""The model card of exported models: Markdown, from their record and the results files of a run."""

import ast
import collections
import pathlib
import re
import shlex

from lus_jax import command_line, pages, results
from lus_jax.evaluation import statistics
from lus_jax.labels.annotators import CONSENSUS
from lus_jax.models import fpn
from lus_jax.report import cells, command, raters, schema, segmentation, text
from lus_jax.words import plural

_NEEDED, _OPTIONAL = ("segmentation", "dataset"), ("members", "raters", "calibration")
# Options whose values are paths, by the last part of their names.
_PATHS = ("workdir", "dir", "prepared_dir", "init_from", "out", "config", "compilation_cache")


def make(workdir, record):
  """The text of the card.

  No name of a patient, annotator or rater stands in it, nor where on a machine something lies.

  Args:
    workdir: of the run.
    record: what `export.json` says (`lus_jax.export`).

  Returns:
    Markdown.

  Raises:
    UserError: a results file of the run is damaged.
  """
  files = _read(workdir)
  names = [one["name"] for one in record["members"]]
  levels, classes, size = record["levels"], record["classes"], record["image_size"]
  model, tested = record["model"], _tested(files)
  shrink, refinements = model.get("shrink", 1), model.get("refinements", 0)
  is_smp = model["width"] == 1 and not refinements
  notes = [note.rstrip(".") + "." for note in files["segmentation"]["notes"]]
  options = {
    **record,
    "size": size,
    "shrink": shrink,
    "padding": -(size // shrink) % fpn.STRIDE,
    "enlarging": fpn.head_stride(shrink, refinements),
    "takes_where": [one["name"] for one in record["members"] if one["takes_where"]],
    "has_scan_areas": record["dataset"].get("has_scan_areas", False),
    "with_rater": any(one["target"] == "rater" for one in record["members"]),
    "ordinal": any(one["target"] == "ordinal" for one in record["members"]),
    "smp": is_smp and {"encoder": model["encoder"], "classes": record["members"][0]["outputs"]},
    "head": len(levels) * len(classes),
    "data_set": _markdown(segmentation.data_set(files)),
    "annotators": " ".join(_annotators(files)),
    "notes": notes,
    "scores": _scores(files, record),
    "tested": plural(tested, "test patient"),
    "too_few": tested < statistics.INTERVAL_PATIENTS,
    "member_scores": _member_scores(files, names),
    "remarks": _remarks(files, names),
    "rater_scores": _rater_scores(files, names),
    "fitted_on": files.get("calibration", {}).get("fitted_on"),
    "temperatures": _temperatures(record),
    "calibration_errors": _calibration_errors(files, names, record["calibration"]),
    "training": _commands(workdir),
    "exporting": _shown_command(command_line.given() or ()),
  }
  environment = pages.templates(__file__, autoescape=False, keep_trailing_newline=True)
  environment.filters |= {"md": _plain, "code": _code, "g": "{:g}".format, "listed": _listed}
  environment.globals["plural"] = plural
  return environment.get_template("model_card.md").render(options)


def _read(workdir):
  wanted = [*_NEEDED, *(name for name in _OPTIONAL if results.exists(workdir, name))]
  return {name: schema.read(workdir, name) for name in wanted}


def _tested(files):
  return next(row["patients"] for row in files["dataset"]["rows"] if row["split"] == "test")


def _annotators(files):
  """Sentences on who drew the masks, how many with a model's help, and which were left out."""
  content = files["dataset"]
  named = {name for row in content["rows"] for name in row["painted"]} - {"", CONSENSUS}
  n_raters = len(content["dataset"].get("raters", ()))
  n = n_raters or len(named)
  who = plural(n, "rater" if n_raters else "annotator")
  yield f"Drawn by {who}." if n else "Who drew the masks is not known."
  # Of the labels that are stored, used or not.
  stored = content.get("annotators", [])
  if any("prelabelled" in row for row in stored):
    labels, begun, untouched = (
      sum(row.get(key, 0) for row in stored) for key in ("labels", "prelabelled", "untouched")
    )
    yield f"Of {labels} masks {begun} began as a model's; {untouched} of these nobody touched."
  left_out = collections.Counter()
  for row in content["rows"]:
    left_out.update(row.get("left_out", {}))
  if left_out:
    found = ", ".join(f"{n} {why}" for why, n in sorted(left_out.items()))
    yield f"Masks left out, and why: {found}."


def _of(content, keep, part="rows"):
  return content | {part: [row for row in content[part] if keep(row)]}


def _is_exported(row, names):
  # The first seed is; its members' names say so where there are more.
  return row["seed"] == 0 and row["member"].removesuffix("_seed_0") in names


def _scores(files, record):
  """Table 1 of the exported thresholds, with the baselines of each; None where there is none."""
  thresholds = [one["threshold"] for one in record["members"] if one["plain"]]
  if not thresholds:
    return None
  content = _of(
    files["segmentation"], lambda row: row["seed"] == 0 and row["threshold"] in thresholds
  )
  content = _of(content, lambda row: row["threshold"] in thresholds, "predictors")
  # They stand elsewhere in the card.
  return _in_block(text.segmentation(content | {"notes": []}))


def _member_scores(files, names):
  if "members" not in files:
    return None
  content = _of(files["members"], lambda row: _is_exported(row, names))
  return _markdown(raters.members({"members": content})) if content["rows"] else None


def _remarks(files, names):
  """What the scores of other members cannot show by themselves."""
  rows = files.get("members", {"rows": []})["rows"]
  return [
    f"{row['member'].removesuffix('_seed_0')} {text.OUTPUTS[output]}"
    for row in rows
    if _is_exported(row, names) and (output := text.output_of(row)) is not None
  ]


def _rater_scores(files, names):
  if "raters" not in files:
    return None
  content = _of(files["raters"], lambda row: _is_exported(row, names))
  # People by their mean alone.
  return _in_block(text.raters(content | {"humans": []})) if content["rows"] else None


def _temperatures(record):
  rows = [
    [one["name"], *map(cells.number, one["calibration"]["temperature"])]
    for one in record["members"]
    if "temperature" in one["calibration"]
  ]
  header = ["temperature of", *record["classes"]]
  return _markdown(cells.Table("temperatures", header, rows)) if rows else None


def _calibration_errors(files, names, method):
  if "calibration" not in files:
    return None
  content = _of(
    files["calibration"],
    lambda row: (
      row["member"].removesuffix("_seed_0") in names and row["method"] in ("none", method)
    ),
  )
  return _markdown(raters.methods({"calibration": content})) if content["rows"] else None


def _markdown(table):
  """A `cells.Table` of single values."""

  def line(row):
    return f"| {' | '.join(_plain(getattr(cell, 'text', cell)) for cell in row)} |"

  rule = "|" + " --- |" * len(table.header)
  return "\n".join([line(table.header), rule, *map(line, table.rows)])


def _plain(words):
  """A text that Markdown shows as it is, on one line."""
  words = " ".join(str(words).split()).replace("&", "&amp;").replace("<", "&lt;")
  return re.sub(r"([\\`*\[\]|~])", r"\\\1", words)


def _code(words):
  """A text in a code span, which may stand in a table."""
  words = " ".join(str(words).split()).replace("|", r"\|")
  return f"`` {words} ``" if "`" in words else f"`{words}`"


def _in_block(words):
  return words.replace("```", "'''")


def _listed(versions):
  return ", ".join(f"{name} {version}" for name, version in versions.items())


def _commands(workdir):
  """The commands that trained the models, for a card."""
  return "\n".join(
    _shown_command(shlex.split(one.replace(" \\\n", " "))) for one in command.commands(workdir, ())
  )


def _shown_command(words):
  """A command without what may name a person: folders above a path's last part, and raters."""
  shown = []
  for before, word in zip(["", *words], words, strict=False):
    option, sign, value = word.partition("=") if word.startswith("-") else (before, "", word)
    if word.startswith("-") and not sign:
      shown.append(word)
      continue
    is_path = value.startswith(("/", "~")) or option.rpartition(".")[2].lstrip("-") in _PATHS
    if is_path and not value.startswith("configs/"):
      value = pathlib.PurePath(value).name
    value = _without_raters(value)
    shown.append(shlex.quote(f"{option}={value}" if sign else value))
  return " ".join(shown)


def _without_raters(value):
  """The value of an option without raters' names, which may hold any sign."""
  if not re.search(r"\brater\s*\(", value):
    return value
  try:
    members = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    members = value
  if isinstance(members, tuple | list):
    return repr(tuple(_without_raters(x) if isinstance(x, str) else x for x in members))
  # Where the name ends nobody knows but who reads members.
  return re.sub(r"\brater\s*\(.*", "rater(...)", value, flags=re.DOTALL)
