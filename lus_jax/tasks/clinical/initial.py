"""The weights that the video networks start from."""

import contextlib
import json
import os
import pathlib
import re

import jax

from lus_jax import models, results
from lus_jax.data import folds
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.tasks import initial
from lus_jax.tasks.clinical import questions, train
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import state


def initial_weights(setup, summary):
  """The weights that every member starts from.

  Args:
    setup: a `Setup`; its config's `model.init_from` names a task of the same directory, a run of
      pretraining, a file of PyTorch's weights, or nothing.
    summary: what this run's claim says of its data and segmentation models; it gets `initial`,
      what these weights are.

  Returns:
    A list of dicts `params` and `batch_stats`, and for each fold the patients that these were
    trained on (None where they were not); of a run that goes on, whose checkpoint has its weights,
    random ones and None.

  Raises:
    UserError: that task did not run here, or with other networks or folds, or the run or the file
      does not fit, or a test patient was pretrained on.
  """
  config, places, workdir = setup.config, setup.places, setup.workdir
  network, splits = setup.network, setup.splits
  own = {"params": network.params, "batch_stats": network.batch_stats}
  name = config.model.init_from
  own_directory = pathlib.Path(workdir) / config.name
  if not name:
    return [own] * len(places), None
  if initial.goes_on(own_directory):
    summary["initial"] = claim_lib.read_claim(own_directory)["dataset"].get("initial")
    return [own] * len(places), None
  if not is_task(name, workdir):
    begun = initial.start(config.model, own_directory, video=True)
    summary["initial"] = begun.about
    if begun.source is not None:
      lineage, population = begun.source.lineage, setup.dataset.population
      seen = trained_lib.who_saw(lineage, population, "train", "validation")
      folds.audit(splits, leakage=config.folds.leakage, pretraining=[seen] * len(splits))
    # The head is the task's own.
    params, batch_stats = initial.into_video(begun, own["params"], own["batch_stats"], place=name)
    return [{"params": params, "batch_stats": batch_stats}] * len(places), None
  directory = pathlib.Path(workdir) / name
  claim = claim_lib.read_claim(directory)
  if claim is None or not results.exists(workdir, name):
    raise UserError(
      f"{config.name} starts from the models of {name}, and {workdir} has none that are finished; "
      f"run the task {name} with this workdir first, or use --config.model.init_from= for random "
      "weights."
    )
  content = results.read(workdir, name)
  there = [(row["threshold"], row["fold"]) for row in content["rows"]]
  theirs, ours = (
    {field: (tuple(c[field]) if isinstance(c[field], list) else c[field]) for field in c}
    for c in (claim["config"]["model"], config.model.to_dict())
  )
  # Weights are float32 whatever they were computed in, and dropout has none.
  same = {"init_from": "", "dtype": "", "dropout": ""}
  missing = [place for place in places if place not in there]
  if (
    {**theirs, **same} != {**ours, **same}
    or missing
    or content["config"]["clip"] != json.loads(config.clip.to_json())
    or content["config"]["folds"] != json.loads(config.folds.to_json())
    or content["config"]["channels"]["kind"] != config.channels.kind
    or claim["dataset"]["population"] != summary["population"]
    or not set(summary["segmentation"]) <= set(claim["dataset"]["segmentation"])
  ):
    raise UserError(
      f"the models of {name} in {workdir} are of another size, saw other data or channels, or lack "
      f"sources or folds of {config.name}; give both the same --config.model, --config.clip, "
      "--config.data, --config.channels and --config.folds."
    )
  source = questions.TASKS[content["task"]]
  theirs = state.outline(
    lambda: models.build_video_model(
      config.model,
      in_channels=train.in_channels(network),
      outputs=source.outputs,
      hidden=source.hidden,
      seed=0,
    )
  )
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(there), *x.shape), x.dtype),
    {"params": theirs.params, "batch_stats": theirs.batch_stats},
  )
  with contextlib.closing(checkpoints_lib.Checkpoints(directory)) as checkpoints:
    if checkpoints.latest() is None:
      raise UserError(f"{directory} holds no checkpoint; remove it and run {name} again.")
    best = checkpoints.restore_best(stacked, [row["best_epoch"] for row in content["rows"]])
  started = []
  for place in places:
    i = there.index(place)
    taken = jax.tree.map(lambda x, i=i: x[i], best)
    # The head is the task's own.
    features = {k: v for k, v in taken["params"].items() if k == "features"}
    started.append({"params": own["params"] | features, "batch_stats": taken["batch_stats"]})
  summary["initial"] = initial.digest_of(started)
  other = {fold["fold"]: fold for fold in content["folds"]}
  for f, fold in enumerate(splits):
    selected = set(fold.test) & set(other[f]["validation"])
    if selected:
      raise UserError(
        f"fold {f}: the model of {name} it starts from was selected on test patient(s) "
        f"{', '.join(sorted(selected))}; give both tasks the same --config.folds."
      )
  return started, [other[f]["train"] for f in range(len(splits))]


def is_task(name, workdir):
  """Whether an `init_from` names a task of the same directory, not a file or another run."""
  if not re.fullmatch(r"\w+", name):
    return False
  here = os.path.exists(os.path.join(workdir or "", name, claim_lib.OWNER))
  return here or not os.path.exists(os.path.join(name, claim_lib.OWNER))
