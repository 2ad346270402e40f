"""What is told and written of a clinical task."""

import itertools
import os

import jax

from lus_jax import results
from lus_jax.data import copies
from lus_jax.evaluation import ratio, statistics
from lus_jax.models import torch_weights
from lus_jax.tasks import initial
from lus_jax.training import loop
from lus_jax.words import plural


def notes_on(setup):
  """What a reader of the results has to know: a list of sentences."""
  config, dataset, same = setup.config, setup.dataset, setup.same
  # These stay with the run: no model goes out with them.
  notes = list(copies.named(dataset.notes, copies.stored(dataset)))
  if not same and not dataset.simulated:
    from tfds_builders import tables

    known = {tables.spelling(x) for names in setup.trained.patients.values() for x in names}
    both = [x for x in sorted(set(setup.table.patient.tolist())) if tables.spelling(x) in known]
    if both:
      notes.append(
        f"patients of these names are in the segmentation's data set too ({', '.join(both[:5])}): "
        "if they are the same persons, they stand on both sides."
      )
  if not same and config.folds.leakage == "strict":
    notes.append("the segmentation is of another data set, so strict needed no sweep of its own.")
  if same and config.folds.leakage == "strict" and "inner" not in config.folds:
    notes.append(
      "the video networks learned from maps of models that had seen their training patients, and "
      "were tested on maps of models that had not: the run was begun by a version without inner "
      "sweeps."
    )
  if torch_weights.is_file(config.model.init_from):
    notes.append(
      f"the networks start from the weights in {os.path.basename(config.model.init_from)}, trained "
      "elsewhere: no test patient may have been among its data."
    )
  elif isinstance(setup.initial, dict):
    notes.append(initial.sentence(setup.initial))
  elif config.folds.leakage == "strict" and config.model.init_from:
    notes.append(
      f"the networks start from those of {config.model.init_from}, whose best epochs were chosen "
      "on the validation patients of the same fold; test patients chose nothing."
    )
  if "true" in config.channels.ablations and not dataset.simulated:
    notes.append("no true masks exist for real frames, so there is no row for them.")
  return notes


def write_results(setup, meta, tested, notes, calibrations=None):
  """Writes `results/<name>.json` and `results/<name>_history.json`.

  Args:
    setup: a `Setup`.
    meta: of `train.fit`, as is `tested`.
    tested: of every member.
    notes: of `notes_on`.
    calibrations: the temperature of every member, where there is one.
  """
  config, task, places = setup.config, setup.task, setup.places
  rows, members, confusion, predictions = [], {}, {}, []
  found = zip(places, meta["best"], tested, strict=True)
  for i, ((source, f), best, (ratios, extra)) in enumerate(found):
    rows.append(
      {
        "threshold": source,
        "fold": f,
        "best_epoch": best["epoch"],
        "chosen_by": loop.chosen_by(best, meta["history"][i :: len(places)]),
        **({} if calibrations is None else {"temperature": calibrations[i]}),
        "n_patients": len(ratios[task.primary].patients),
        **ratio.fold_row(ratios),
      }
    )
    members.setdefault(source, []).append(ratios)
    if "confusion" in extra:
      confusion[source] = confusion.get(source, 0) + extra["confusion"]
    predictions += [{"threshold": source, "fold": f, **row} for row in extra.get("predictions", [])]
  # Each fold of a rotation tests its own patients, by its own networks.
  rotates = config.folds.cv == "rotate"
  groups = {name: f for f, fold in enumerate(setup.splits) for name in fold.test}
  content = {
    "task": config.task,
    "primary": task.primary,
    "target": config.target,
    "split": "test",
    "rows": rows,
    "permuted": "folds" if rotates else "patients",
    "summary": statistics.summarize(
      members,
      primary=task.primary,
      baseline=task.baseline,
      groups=groups if rotates else None,
    ),
    "patients": statistics.per_patient(members),
    "folds": [
      {"fold": f, **{side: list(names) for side, names in vars(fold).items()}}
      for f, fold in enumerate(setup.splits)
    ],
    "left_out": [row for row in task.left_out if row["count"]],
    "notes": notes,
    "segmentation": {
      "dataset": setup.trained.dataset["name"],
      "thresholds": list(setup.trained.thresholds),
      "same_data_set": setup.same,
    },
  }
  if setup.initial is not None:
    content["initial"] = initial.told(setup.initial, config.model.init_from)
  if confusion:
    content["confusion"] = [
      {"threshold": source, "classes": list(task.classes), "matrix": matrix.tolist()}
      for source, matrix in confusion.items()
    ]
  if predictions:
    content["predictions"] = predictions
  names = dict(zip([row["member"] for row in meta["history"]], places, strict=False))
  history = [
    {"threshold": names[row["member"]][0], "fold": names[row["member"]][1], **row}
    for row in meta["history"]
  ]
  common = {"config": setup.settings, "dataset": setup.dataset.summary()}
  results.write(setup.workdir, f"{config.name}_history", **common, rows=history)
  results.write(setup.workdir, config.name, **common, **content)


def _undecidable(setup):
  """A line where no outcome could decide between thresholds; else none."""
  rotates = setup.config.folds.cv == "rotate"
  n = len(setup.splits) if rotates else len({x for fold in setup.splits for x in fold.test})
  pairs = len(statistics.family(dict.fromkeys(source for source, _ in setup.places)))
  smallest = statistics.smallest_p(n, pairs)
  if not pairs or smallest < statistics.LEVEL:
    return
  units = plural(n, "fold") if rotates else plural(n, "test patient")
  line = (
    f"no outcome of {units} could decide between thresholds (corrected p {smallest:.2g} at best)"
  )
  if rotates:
    enough = next(
      k for k in itertools.count(n) if statistics.smallest_p(k, pairs) < statistics.LEVEL
    )
    line += f"; {enough} folds could: --config.folds.n={enough - 1}"
  yield line


def describe(setup, notes):
  """What is run, as lines of text, with `notes` of `notes_on`."""
  config, table, task, places = setup.config, setup.table, setup.task, setup.places
  millions = sum(x.size for x in jax.tree.leaves(setup.network.params)) / 1e6
  sources = list(dict.fromkeys(str(source) for source, _ in places))
  return "\n".join(
    [
      f"{config.name} on {setup.dataset.name}: {plural(len(table), 'video')} of "
      f"{plural(len(set(table.patient)), 'patient')}, {plural(len(setup.splits), 'fold')}",
      f"{plural(len(places), 'model')} ({', '.join(sources)}; MobileNetV2 with temporal shift, "
      f"{millions:.1f} M parameters each), {plural(config.train.epochs, 'epoch')}, "
      f"{plural(config.train.epochs * task.steps_per_epoch, 'step')}, clips of "
      f"{plural(config.clip.n_segment, 'frame')} of "
      f"{config.clip.image_size} x {config.clip.image_size}",
      *(f"note: {note}" for note in notes),
      *_undecidable(setup),
      *(f"left out: {x['count']} {x['what']}: {x['why']}" for x in task.left_out if x["count"]),
    ]
  )
