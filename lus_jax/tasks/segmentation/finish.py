"""Calibrates and evaluates a trained sweep, and writes its results."""

import functools
import math

import numpy as np
from absl import logging

from lus_jax import results
from lus_jax.data import augment, copies, pipeline, summary
from lus_jax.evaluation import raters, segmentation, statistics
from lus_jax.inference import trained as trained_lib
from lus_jax.models import designs
from lus_jax.training import hardware, loop, writers
from lus_jax.words import plural

# Test frames whose predictions are kept for the report, by rank of their mean IoU.
N_BEST, N_MIDDLE, N_WORST = 2, 1, 2
# Test images shown that raters agree on most, and least.
N_AGREED = 2


def finish(
  trained, *, workdir, meta, frames, dataset, counted, painters, settings, writer, initial=None
):
  """Calibrates and evaluates the best epoch of every member and writes all results.

  Args:
    trained: of `inference.trained.freeze`.
    workdir: the run's directory.
    meta: of `loop.fit`.
    frames: `pipeline.Frames` by split.
    dataset: a `Dataset` of frames.
    counted: `summary.summarize` of it.
    painters: of `summary.painters`.
    settings: of `claim.settings`.
    writer: of `lus_jax.training.writers`.
    initial: of `tasks.initial.told`; None for random weights.
  """
  config, views = trained.config, trained.views
  calibrated = f"calibrating ({config.calibration}) and " if config.calibration != "none" else ""
  print(
    f"{calibrated}evaluating the best epochs: {plural(len(views), 'output')} on "
    f"{plural(frames['test'].size, 'test frame')}; compiling this takes a while too",
    flush=True,
  )
  compared = None
  if config.calibration != "none":
    fitted_on = _fitted_on(counted)
    fitted = segmentation.fit_calibrations(trained, frames["validation"])
    compared = segmentation.compare_calibrations(trained, fitted, frames["test"])
    chosen = fitted[config.calibration]
    trained_lib.write_calibrations(workdir, views, chosen)
    trained = trained.calibrated(chosen)
  evaluation = segmentation.evaluate(trained, thin=dataset.thin, **frames)
  rows = _result_rows(trained, evaluation, meta)
  for row in rows:
    if set(row["constant_classes"]) == set(dataset.classes):
      logging.warning(
        "member '%s' puts out the same number at every pixel of the test split and has no "
        "calibration error. Try another loss, learning rate or seed for it.",
        row["member"],
      )
  against_raters = None
  if dataset.raters:
    soft = [i for i, view in enumerate(views) if view.threshold is None]
    curve_of = (soft or [0])[0]
    against_raters = segmentation.evaluate_raters(
      trained,
      frames["test"],
      patients=[x["patient"].decode() for x in dataset.splits["test"].only("patient")],
      persons=dataset.persons,
      curve_of=curve_of,
    )
  examples = make_examples(trained, evaluation, dataset)
  if against_raters is not None:
    examples |= make_rater_examples(trained, against_raters[-1], dataset)
  results.write_examples(workdir, **examples)
  write = functools.partial(results.write, workdir, config=settings, dataset=dataset.summary())
  if compared is not None:
    rows_of = _calibration_rows(views, compared)
    write("calibration", split="test", chosen=config.calibration, fitted_on=fitted_on, rows=rows_of)
  if against_raters is not None:
    found = _rater_results(trained, against_raters, rows, dataset, curve_of)
    write("raters", calibration=config.calibration, **found)
  write_results(
    write, trained, evaluation, rows, meta["history"], dataset, counted, painters, initial
  )
  writers.write_final(
    writer,
    config.train.epochs * hardware.steps_of_epoch(config.train, frames["train"].size),
    {view.name: scores for view, scores in zip(views, evaluation.members, strict=True)},
    {
      row["member"]: row["threshold"]
      for row, view in zip(rows, views, strict=True)
      if trained.objective.is_plain(view)
    },
  )


def make_examples(trained, evaluation, dataset):
  """The best, middle and worst test frames with what the models of the thresholds make of them.

  Args:
    trained: a `Trained`.
    evaluation: what `evaluate` returned.
    dataset: a `Dataset` of frames.

  Returns:
    A dict of arrays: `index` [n] into the test split, `role` [n] ('best', 'middle', 'worst'),
    `image` [n, H, W, 1], `confidence` [n, H, W, K] and `probability` [T, n, H, W, K] uint8,
    `labelled`, `valid_box`; of simulated data also `truth` and `evidence`.
  """
  plain = [i for i, view in enumerate(trained.views) if trained.objective.is_plain(view)]
  image_iou = evaluation.image_iou[plain]
  defined = ~np.isnan(image_iou)
  mean = np.where(defined, image_iou, 0).sum(0) / np.maximum(defined.sum(0), 1)
  ranked = [i for i in np.argsort(-mean, kind="stable").tolist() if defined[:, i].any()]
  ranked = ranked or list(range(len(mean)))
  middle = max(0, (len(ranked) - N_MIDDLE) // 2)
  # A small test split has fewer frames than roles; each frame is shown once.
  roles = dict.fromkeys(ranked[middle : middle + N_MIDDLE], "middle")
  roles |= {i: "worst" for i in ranked[-N_WORST:] if i not in roles}
  roles |= {i: "best" for i in ranked[:N_BEST] if roles.get(i) != "middle"}
  chosen = sorted(roles, key=ranked.index)
  fields = (*pipeline.fields_of(dataset), *(["truth", "evidence"] if dataset.simulated else []))
  arrays, probability = _predicted(trained.only(plain), dataset, chosen, fields)
  return arrays | {
    "index": np.asarray(chosen),
    "role": np.asarray([roles[i] for i in chosen]),
    "probability": probability,
  }


def make_rater_examples(trained, disagreement, dataset):
  """The test images that raters agree on most and least, with what every model makes of them.

  Args:
    trained: a `Trained`.
    disagreement: of every test image, [N]; NaN where no rater drew.
    dataset: a `Dataset` of frames with raters.

  Returns:
    A dict of arrays: `rater_index` [n] into the test split, `rater_role` [n] ('most_agreed',
    'least_agreed'), `rater_image` [n, H, W, 1], `rater_confidence` [n, H, W, K] and
    `rater_probability` [V, n, H, W, K] uint8, `rater_disagreement` [n, H, W, K] (the raters'
    variance, 0 to .25), `rater_names` [V] and `rater_valid_box` [n, 4].
  """
  ranked = [i for i in np.argsort(disagreement, kind="stable").tolist() if disagreement[i] >= 0]
  roles = dict.fromkeys(ranked[:N_AGREED], "most_agreed")
  roles |= {i: "least_agreed" for i in ranked[-N_AGREED:] if i not in roles}
  fields = (*pipeline.FIELDS, "raters", "drawn")
  arrays, probability = _predicted(trained, dataset, list(roles), fields)
  where = np.asarray(augment.prepare({name: arrays[name] for name in pipeline.FIELDS})["where"])
  _, variance = raters.disagreement(arrays["raters"], arrays["drawn"], where)
  return {
    "rater_index": np.asarray(list(roles)),
    "rater_role": np.asarray(list(roles.values())),
    "rater_image": arrays["image"],
    "rater_confidence": arrays["confidence"],
    "rater_disagreement": variance.astype(np.float32),
    "rater_names": np.asarray([view.name for view in trained.views]),
    "rater_probability": probability,
    "rater_valid_box": arrays["valid_box"],
  }


def _predicted(trained, dataset, chosen, fields):
  """Some test frames, and every view's probabilities [V, n, H, W, K] uint8."""
  test = dataset.splits["test"]
  arrays = pipeline.load([test[i] for i in chosen], fields)
  batch = {name: arrays[name] for name in pipeline.fields_of(dataset)}
  probability = segmentation.predict(trained, batch, batch_size=trained.config.train.batch_size)
  return arrays, np.rint(255 * probability).astype(np.uint8)


def _result_rows(trained, evaluation, meta):
  """A dict of JSON values for every view: what it is, its best epoch and its scores."""
  rows, objective, n = [], trained.objective, len(meta["best"])
  for view, scores in zip(trained.views, evaluation.members, strict=True):
    member, seed = objective.member_of(view), view.member // len(objective.members)
    rows.append(
      {
        "member": view.name,
        "target": member.target,
        "loss": member.loss,
        "weights": member.weights,
        # A plain threshold keeps the config's own number, whatever its loss.
        "threshold": member.threshold if objective.is_plain(view) else view.threshold,
        "seed": seed,
        "best_epoch": meta["best"][view.member]["epoch"],
        "chosen_by": loop.chosen_by(
          meta["best"][view.member], meta["history"][view.member :: len(meta["best"])]
        ),
        **scores,
      }
    )
    if objective.is_plain(view):
      scored = {row["epoch"]: row["score"] for row in meta["history"][view.member :: n]}
      rows[-1]["validation_iou"] = scored.get(rows[-1]["best_epoch"])
  return rows


def _without(row, *names):
  return {name: value for name, value in row.items() if name not in names}


def _fitted_on(counted):
  """What calibrations are fitted on, of rows of `summary.summarize`; warns of few patients."""
  (row,) = (row for row in counted if row["split"] == "validation")
  if row["patients"] < statistics.INTERVAL_PATIENTS:
    logging.warning(
      "calibration is fitted on %s of %s: too few to trust it on other patients.",
      plural(row["frames"], "validation frame"),
      plural(row["patients"], "patient"),
    )
  return {"split": "validation"} | {
    name: row[name] for name in ("patients", "frames", "frames_with")
  }


def _calibration_rows(views, compared):
  return [
    {"member": view.name, "method": method, **scores}
    for i, view in enumerate(views)
    for method, each in compared.items()
    for scores in [each[i]]
  ]


def _rater_results(trained, found, rows, dataset, curve_of):
  views = trained.views
  members, humans, curve, disagreement = found
  kept = ("member", "threshold", "seed", "best_epoch")
  examples = dataset.splits["test"].only("video", "patient")
  return {
    "split": "test",
    "rows": [
      {name: row[name] for name in kept} | {"threshold": view.threshold} | scores
      for view, row, scores in zip(views, rows, members, strict=True)
    ],
    "humans": [
      {"rater": rater, "person": person, **scores}
      for rater, person, scores in zip(dataset.raters, dataset.persons, humans, strict=True)
    ],
    "curve": {"member": views[curve_of].name, "rows": curve},
    "images": [
      {
        "index": i,
        "image": example["video"].decode(),
        "patient": example["patient"].decode(),
        "disagreement": None if math.isnan(value) else float(value),
      }
      for i, (example, value) in enumerate(zip(examples, disagreement, strict=True))
    ],
  }


def _cost(trained):
  """GFLOP that segmenting one image takes, by formula (`lus_jax.models.flops`)."""
  config, objective, classes = trained.config, trained.objective, len(trained.classes)
  design = designs.segmentation(config.model)

  def gflop(outputs):
    return design.flop(size=config.data.image_size, in_channels=1, classes=outputs) / 1e9

  return {
    "gflop_per_network": gflop(classes),
    "thresholds": len(config.sweep.thresholds),
    "gflop_ordinal": gflop(classes * objective.head) if objective.levels else None,
  }


def write_results(
  write, trained, evaluation, rows, history, dataset, counted, painters, initial=None
):
  """Writes the results files of the task (definitions: `lus_jax.evaluation.metrics`).

  Args:
    write: `results.write` of this run.
    trained: a `Trained`.
    evaluation: what `evaluate` returned.
    rows: a dict a view.
    history: of `loop.fit`.
    dataset: a `Dataset` of frames.
    counted: of `summary.summarize`.
    painters: of `summary.painters`.
    initial: what the networks started from; None for random weights.
  """
  config, views, objective = trained.config, trained.views, trained.objective
  plain, extra, matrix = [], [], []
  for view, row in zip(views, rows, strict=True):
    if not objective.is_plain(view):
      extra.append(_without(row, "matrix"))
      continue
    matrix += [
      {
        "model_threshold": row["threshold"],
        "seed": row["seed"],
        **scores,
        "evaluation_threshold": t,
      }
      for scores, t in zip(row["matrix"], config.sweep.thresholds, strict=True)
    ]
    plain.append(_without(row, "member", "target", "loss", "weights", "matrix"))
  predictors = [
    {"predictor": name, "threshold": threshold}
    | {key: value for key, value in scores.items() if key != "matrix"}
    for name, each in evaluation.baselines.items()
    for threshold, scores in zip(config.sweep.thresholds, each, strict=True)
  ]
  own = [row for row in predictors if row["predictor"] == "mean_map"]
  for row, iou in zip(own, evaluation.bar, strict=True):
    row["validation_iou"] = None if math.isnan(iou) else iou
  cases = [
    {
      "index": i,
      **summary.provenance(example),
      "iou": {
        view.name: None if math.isnan(iou) else float(iou)
        for view, iou in zip(views, evaluation.image_iou[:, i], strict=True)
      },
    }
    for i, example in enumerate(dataset.splits["test"])
  ]
  contents = {
    "members": {
      "split": "test",
      "rows": extra,
      "cost": _cost(trained),
    },
    "dataset": {"rows": counted, **painters, "copies": copies.stored(dataset)},
    "cases": {"split": "test", "rows": cases},
    "history": {"rows": history},
    "segmentation_matrix": {"rows": matrix},
    "segmentation": {
      "split": "test",
      "rows": plain,
      "predictors": predictors,
      "notes": list(dataset.notes),
      **({} if initial is None else {"initial": initial}),
    },
  }
  for name in (*(["members"] if extra else []), *trained_lib.RESULTS):
    write(name, **contents[name])
