"""The weights that the video networks start from."""

import contextlib
import hashlib
import json
import pathlib

import jax
import numpy as np

from lus_jax import models, results
from lus_jax.errors import UserError
from lus_jax.models import torch_weights
from lus_jax.tasks.clinical import questions, train
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import state


def initial_weights(setup, summary):
  """The weights that every member starts from.

  Args:
    setup: a `Setup`; its config's `model.init_from` names a task of the same directory, a file of
      PyTorch's weights, or nothing.
    summary: what this run's claim says of its data and segmentation models.

  Returns:
    A list of dicts `params` and `batch_stats`, and for each fold the patients that these were
    trained on (None where they were not).

  Raises:
    UserError: that task did not run here, or with other networks or folds, or the file does not
      fit.
  """
  config, places, workdir = setup.config, setup.places, setup.workdir
  network, splits = setup.network, setup.splits
  own = {"params": network.params, "batch_stats": network.batch_stats}
  name = config.model.init_from
  if not name:
    return [own] * len(places), None
  if torch_weights.is_file(name):
    # The head is the task's own.
    params, batch_stats = torch_weights.load_into(
      own["params"], own["batch_stats"], torch_weights.read(name), source=name, head=False
    )
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
  # Weights are float32 whatever they were computed in.
  same = {"init_from": "", "dtype": ""}
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
  other = {fold["fold"]: fold for fold in content["folds"]}
  for f, fold in enumerate(splits):
    selected = set(fold.test) & set(other[f]["validation"])
    if selected:
      raise UserError(
        f"fold {f}: the model of {name} it starts from was selected on test patient(s) "
        f"{', '.join(sorted(selected))}; give both tasks the same --config.folds."
      )
  return started, [other[f]["train"] for f in range(len(splits))]


def digest_of(trees):
  """A short text that changes with any array of them."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(trees):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:12]
