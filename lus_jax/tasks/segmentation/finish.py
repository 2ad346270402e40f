"""Calibrates and evaluates a trained sweep, and writes its results."""

import dataclasses
import functools
import math

import numpy as np
from absl import logging

from lus_jax import results
from lus_jax.data import augment, pipeline, summary
from lus_jax.evaluation import raters, segmentation, statistics
from lus_jax.inference import calibration, trained
from lus_jax.models import flops
from lus_jax.training import objective as objective_lib
from lus_jax.training import writers
from lus_jax.training.sweep import Sweep
from lus_jax.words import plural

# Test frames whose predictions are kept for the report, by rank of their mean IoU.
N_BEST, N_MIDDLE, N_WORST = 2, 1, 2


# Test images shown that raters agree on most, and least.
N_AGREED = 2


def finish(
  workdir, network, sweep, state, meta, objective, *, frames, dataset, config, settings, writer
):
  """Calibrates and evaluates the best epoch of every member and writes all results.

  Args:
    workdir: the run's directory.
    network: a `Network`.
    sweep: the `Sweep`.
    state: its state after training.
    meta: of `loop.fit`.
    objective: a `members.Objective`.
    frames: `pipeline.Frames` by split.
    dataset: a `Dataset` of frames.
    config: a run's config.
    settings: of `checkpoints.settings`.
    writer: of `lus_jax.training.writers`.
  """
  views, scalars = objective_lib.make_views(config, objective)
  numbers = [view.member for view in views]
  thresholds = [view.threshold for view in views]
  calibrated = f"calibrating ({config.calibration}) and " if config.calibration != "none" else ""
  print(
    f"{calibrated}evaluating the best epochs: {plural(len(views), 'output')} on "
    f"{plural(frames['test'].size, 'test frame')}; compiling this takes a while too",
    flush=True,
  )
  # What only training needs would be copied for every level of an ordinal member.
  state = sweep.map(
    lambda one: dataclasses.replace(one, params=(), batch_stats=(), opt_state=()), state
  )
  sweep, state = sweep.take(state, numbers, scalars)
  common = {"objective": objective, "classes": dataset.classes, "config": config}
  counted = summary.summarize(dataset)
  compared = None
  if config.calibration != "none":
    fitted_on = _fitted_on(counted)
    fitted = segmentation.fit_calibrations(
      network,
      sweep,
      state,
      thresholds=thresholds,
      # The levels of an ordinal member share one; its mean confidence has its own.
      groups=[(view.member, view.threshold is None) for view in views],
      validation=frames["validation"],
      **common,
    )
    compared = segmentation.compare_calibrations(
      network,
      sweep,
      state,
      thresholds=thresholds,
      calibrations=fitted,
      test=frames["test"],
      **common,
    )
    chosen = fitted[config.calibration]
    trained.write_calibrations(workdir, views, chosen)
    sweep = Sweep(
      [
        own | {"calibration": calibration.parameters(one)}
        for own, one in zip(scalars, chosen, strict=True)
      ],
      sweep.strategy,
    )
  evaluation = segmentation.evaluate(
    network, sweep, state, thresholds=thresholds, thin=dataset.thin, **frames, **common
  )
  rows = _result_rows(views, evaluation, meta, config, objective)
  for row in rows:
    if set(row["constant_classes"]) == set(dataset.classes):
      logging.warning(
        "member '%s' puts out the same number at every pixel of the test split and has no "
        "calibration error. Try another loss, learning rate or seed for it.",
        row["member"],
      )
  against_raters = None
  if dataset.raters:
    patients = [x["patient"].decode() for x in dataset.splits["test"].only("patient")]
    soft = [i for i, threshold in enumerate(thresholds) if threshold is None]
    curve_of = (soft or [0])[0]
    against_raters = segmentation.evaluate_raters(
      network,
      sweep,
      state,
      test=frames["test"],
      patients=patients,
      persons=dataset.persons,
      curve_of=curve_of,
      **common,
    )
  examples = make_examples(network, sweep, state, views, evaluation, dataset, objective)
  if against_raters is not None:
    examples |= make_rater_examples(
      network, sweep, state, views, against_raters[-1], dataset, objective
    )
  results.write_examples(workdir, **examples)
  write = functools.partial(results.write, workdir, config=settings, dataset=dataset.summary())
  if compared is not None:
    rows_of = _calibration_rows(views, compared)
    write("calibration", split="test", chosen=config.calibration, fitted_on=fitted_on, rows=rows_of)
  if against_raters is not None:
    found = _rater_results(views, against_raters, rows, dataset, curve_of)
    write("raters", calibration=config.calibration, **found)
  write_results(
    workdir, evaluation, rows, meta, views, config, objective, dataset, settings, counted
  )
  writers.write_final(
    writer,
    config.train.epochs * (frames["train"].size // config.train.batch_size),
    {view.name: scores for view, scores in zip(views, evaluation.members, strict=True)},
    {
      row["member"]: row["threshold"]
      for row, view in zip(rows, views, strict=True)
      if objective_lib.is_plain(view, objective)
    },
  )


def make_examples(network, sweep, state, views, evaluation, dataset, objective):
  """The best, middle and worst test frames with what the models of the thresholds make of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep` of views.
    state: its state.
    views: the views.
    evaluation: what `evaluate` returned.
    dataset: a `Dataset` of frames.
    objective: a `members.Objective`.

  Returns:
    A dict of arrays: `index` [n] into the test split, `role` [n] ('best', 'middle', 'worst'),
    `image` [n, H, W, 1], `confidence` [n, H, W, K] and `probability` [T, n, H, W, K] uint8,
    `labelled`, `valid_box`; of simulated data also `truth` and `evidence`.
  """
  plain = [i for i, view in enumerate(views) if objective_lib.is_plain(view, objective)]
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
  arrays, probability = _predicted(
    network, *sweep.take(state, plain), dataset, chosen, objective, fields
  )
  return arrays | {
    "index": np.asarray(chosen),
    "role": np.asarray([roles[i] for i in chosen]),
    "probability": probability,
  }


def make_rater_examples(network, sweep, state, views, disagreement, dataset, objective):
  """The test images that raters agree on most and least, with what every model makes of them.

  Args:
    network: a `Network`.
    sweep: the `Sweep` of views.
    state: its state.
    views: the views.
    disagreement: of every test image, [N]; NaN where no rater drew.
    dataset: a `Dataset` of frames with raters.
    objective: a `members.Objective`.

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
  arrays, probability = _predicted(network, sweep, state, dataset, list(roles), objective, fields)
  where = np.asarray(augment.prepare({name: arrays[name] for name in pipeline.FIELDS})["where"])
  _, variance = raters.disagreement(arrays["raters"], arrays["drawn"], where)
  return {
    "rater_index": np.asarray(list(roles)),
    "rater_role": np.asarray(list(roles.values())),
    "rater_image": arrays["image"],
    "rater_confidence": arrays["confidence"],
    "rater_disagreement": variance.astype(np.float32),
    "rater_names": np.asarray([view.name for view in views]),
    "rater_probability": probability,
    "rater_valid_box": arrays["valid_box"],
  }


def _predicted(network, sweep, state, dataset, chosen, objective, fields):
  """Some test frames, and every view's probabilities [V, n, H, W, K] uint8."""
  test = dataset.splits["test"]
  arrays = pipeline.load([test[i] for i in chosen], fields)
  batch = {name: arrays[name] for name in pipeline.fields_of(dataset)}
  probability = segmentation.predict(network, sweep, state, batch, objective=objective)
  return arrays, np.rint(255 * probability).astype(np.uint8)


def _result_rows(views, evaluation, meta, config, objective):
  """A dict of JSON values for every view: what it is, its best epoch and its scores."""
  rows = []
  for view, scores in zip(views, evaluation.members, strict=True):
    seed, place = divmod(view.member, len(objective.members))
    member = objective.members[place]
    rows.append(
      {
        "member": view.name,
        "target": member.target,
        "loss": member.loss,
        "weights": member.weights,
        # A plain threshold keeps the config's own number, whatever its loss.
        "threshold": member.threshold
        if objective_lib.is_plain(view, objective)
        else view.threshold,
        "seed": seed,
        "best_epoch": meta["best"][view.member]["epoch"],
        **scores,
      }
    )
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


def _rater_results(views, found, rows, dataset, curve_of):
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


def _cost(config, objective, classes):
  """GFLOP that segmenting one image takes, by formula (`lus_jax.models.flops`)."""

  def gflop(outputs):
    options = {"size": config.data.image_size, "in_channels": 1, "width": config.model.width}
    return flops.fpn(config.model.encoder, classes=outputs, **options) / 1e9

  return {
    "gflop_per_network": gflop(classes),
    "thresholds": len(config.sweep.thresholds),
    "gflop_ordinal": gflop(classes * objective.head) if objective.levels else None,
  }


def write_results(
  workdir, evaluation, rows, meta, views, config, objective, dataset, settings, counted
):
  """Writes the results files of the task (definitions: `lus_jax.evaluation.metrics`)."""
  plain, extra, matrix = [], [], []
  for view, row in zip(views, rows, strict=True):
    if not objective_lib.is_plain(view, objective):
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
      "cost": _cost(config, objective, len(dataset.classes)),
    },
    "dataset": {"rows": counted},
    "cases": {"split": "test", "rows": cases},
    "history": {"rows": meta["history"]},
    "segmentation_matrix": {"rows": matrix},
    "segmentation": {
      "split": "test",
      "rows": plain,
      "predictors": predictors,
      "notes": list(dataset.notes),
    },
  }
  for name in (*(["members"] if extra else []), *trained.RESULTS):
    results.write(workdir, name, config=settings, dataset=dataset.summary(), **contents[name])
