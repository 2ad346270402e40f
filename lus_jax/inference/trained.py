"""The frozen models of a finished run, and what becomes of their output."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import losses, models, results
from lus_jax.errors import UserError
from lus_jax.files import broken_seal, seal, write_text
from lus_jax.inference import calibration
from lus_jax.labels import same_threshold
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import members as members_lib
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep, choose_strategy


def choose_thresholds(config, trained):
  """The models that are used: those of `config.channels.thresholds`, or all.

  Args:
    config: a run's config.
    trained: a `lus_jax.inference.trained.Trained`.

  Returns:
    Their places in the sweep.

  Raises:
    UserError: the sweep has no such threshold.
  """
  chosen = []
  for threshold in config.channels.thresholds or trained.thresholds:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
      raise UserError(f"config.channels.thresholds: '{threshold}' is not a number.")
    near = [i for i, t in enumerate(trained.thresholds) if same_threshold(t, threshold)]
    if not near:
      raise UserError(
        f"config.channels.thresholds: the segmentation run has no threshold {threshold}; it has "
        f"{', '.join(f'{t:g}' for t in trained.thresholds)}."
      )
    chosen.append(near[0])
  return chosen


# Results files; the run is finished when all are there.
RESULTS = ("dataset", "history", "cases", "segmentation_matrix", "segmentation")
# What each of them is fitted to on the validation split; beside the checkpoints, since whatever
# predicts needs it.
CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Trained:
  """The frozen models of a finished sweep, as they are to be used.

  Attributes:
    config: the run's config.
    dataset: what its results files say of its data set.
    patients: the patients of each split.
    network: a `Network`; of one that was loaded, its initial weights are shapes alone.
    objective: the run's `Objective`.
    views: what each model puts out: the thresholds first.
    sweep: a `Sweep` over the views: what is known of each, and its calibration.
    weights: its state: a dict of `params` and `batch_stats`.
    notes: what a reader of any of its results has to know, as that its data were simulated.
    earlier: who the weights that it began from have seen, as of `lineage`.
  """

  config: Any
  dataset: dict[str, Any]
  patients: dict[str, list[str]]
  network: state_lib.Network
  objective: Objective
  views: list[members_lib.View]
  sweep: Sweep
  weights: Any
  notes: tuple[str, ...] = ()
  earlier: tuple[dict[str, Any], ...] = ()

  @property
  def classes(self):
    """K class names."""
    return tuple(self.dataset["classes"])

  @property
  def thresholds(self):
    """The threshold of every view; None of members without one."""
    member_of = self.objective.member_of
    return tuple(
      member_of(view).threshold if view.level == members_lib.WHOLE else view.threshold
      for view in self.views
    )

  @property
  def lineage(self):
    """Who the weights have seen: of this run and all that it began from, in turn.

    A list of dicts: the patients that were learned from (`train`) and that chose the epoch
    (`validation`), and whose patients these are (`population`).
    """
    own = {split: self.patients[split] for split in ("train", "validation")}
    return [{"population": self.dataset["population"], **own}, *self.earlier]

  def weights_of(self, number):
    """The weights of one view, by its number, as NumPy arrays."""
    one = self.only([number])
    return one.sweep.to_host(one.weights)[0]

  def needs_where(self, view):
    """Whether a view's output within the frame depends on where the frame is."""
    return self.objective.member_of(view).loss in losses.NORMALIZED

  def in_float32(self):
    """The same models, computing in float32 whatever they were trained in."""
    if self.config.model.dtype == "float32":
      return self
    config = copy.deepcopy(self.config)
    config.model.dtype = "float32"
    network = _outline(config, self.objective, len(self.classes))
    return dataclasses.replace(self, config=config, network=network)

  def only(self, numbers):
    """These views alone, by their number."""
    if list(numbers) == list(range(len(self.views))):
      return self
    sweep, weights = self.sweep.take(self.weights, numbers)
    views = [self.views[i] for i in numbers]
    return dataclasses.replace(self, views=views, sweep=sweep, weights=weights)

  def calibrated(self, fitted):
    """The same models with a calibration for each, of `lus_jax.inference.calibration.fit`."""
    members = [
      own | {"calibration": calibration.parameters(one)}
      for own, one in zip(self.sweep.members, fitted, strict=True)
    ]
    return dataclasses.replace(self, sweep=dataclasses.replace(self.sweep, members=members))

  def logits(self, weights, own, inputs):
    """What becomes of an image, calibrated where there is a calibration; for `sweep.compile`.

    Args:
      weights: of one view.
      own: the sweep's member.
      inputs: `image` [B, H, W, 1] in [0, 1], and `where` [B, H, W, 1] bool, False where a pixel
        was not in the original frame.

    Returns:
      [B, H, W, K].
    """
    raw, _ = self.objective.logits(
      self.network, weights["params"], weights["batch_stats"], inputs["image"]
    )
    return self.finish(raw, own, inputs)

  def finish(self, raw, own, inputs):
    """Calibrated logits [B, H, W, K] of the network's output `raw`; the rest as of `logits`."""
    logits = self.objective.output(raw, inputs, own)
    return calibration.calibrate(own.get("calibration", {}), logits)

  @functools.cached_property
  def compiled_logits(self):
    """`logits`, compiled by the sweep: `(weights, members, inputs)` to its results."""
    return self.sweep.compile(self.logits)

  def probability(self, weights, own, image, where):
    """Probabilities [B, H, W, K] of `logits`, 0 outside of the original frame."""
    logits = self.logits(weights, own, {"image": image, "where": where})
    return jnp.where(where, jax.nn.sigmoid(logits), 0)

  @functools.cached_property
  def compiled_probability(self):
    """`probability`, compiled by the sweep: `(weights, members, image, where)` to its results."""
    return self.sweep.compile(self.probability)

  @functools.cached_property
  def fingerprints(self):
    """A short text for every view that changes with the weights or what becomes of them."""
    found = []
    # An option that is off says nothing, and runs from before there was any lack it.
    model = {
      name: value
      for name, value in self.config.model.to_dict().items()
      if value or name not in claim_lib.OPTIONS["model"]
    }
    held = self.sweep.to_host(self.weights)
    for view, own, weights in zip(self.views, self.sweep.members, held, strict=True):
      loss = self.objective.member_of(view).loss
      digest = hashlib.sha256(repr((model, loss)).encode())
      for leaf in jax.tree.leaves((weights, own.get("calibration", {}))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
      if view.level != members_lib.WHOLE:
        digest.update(str(view.level).encode())
      found.append(digest.hexdigest()[:12])
    return found


def began(claim):
  """What a run's claim says of its data, and who the weights that it began from have seen.

  Args:
    claim: of `training.claim.read_claim`.

  Returns:
    The claim's `dataset`, without anybody's name, and a tuple as of `Trained.earlier` (of runs from
    before it was noted, empty).
  """
  dataset = {name: value for name, value in claim["dataset"].items() if name != "patients"}
  if not isinstance(dataset.get("initial"), dict):
    return dataset, ()
  initial = dict(dataset["initial"])
  return {**dataset, "initial": initial}, tuple(initial.pop("seen", ()))


def who_saw(lineage, population, *splits):
  """The names of the patients of a population in these splits of a `lineage`, a set."""
  return {
    name
    for one in lineage
    if one["population"] == population
    for split in splits
    for name in one[split]
  }


def freeze(network, sweep, state, objective, *, config, dataset, patients):
  """The models of the best epochs of a sweep that was just trained, of all seeds.

  Args:
    network: a `Network`.
    sweep: the `Sweep`.
    state: its state after training.
    objective: its `Objective`.
    config: the run's config.
    dataset: of `Dataset.summary`.
    patients: the patients of each split.

  Returns:
    A `Trained`, without calibration.
  """
  weights = sweep.map(
    lambda one: {"params": one.best_params, "batch_stats": one.best_batch_stats}, state
  )
  common = {"config": config, "dataset": dataset, "patients": patients}
  return _taken(network, sweep, weights, objective, *objective.views(), **common)


def _taken(network, sweep, weights, objective, views, scalars, **common):
  """The `Trained` of some views of a sweep, whose weights are those of its members."""
  sweep, weights = sweep.take(weights, [view.member for view in views], scalars)
  return Trained(
    network=network, objective=objective, views=views, sweep=sweep, weights=weights, **common
  )


def load(workdir, *, every=False, option="--config.channels.workdir"):
  """Loads the frozen models of a finished segmentation run.

  Args:
    workdir: the run's directory.
    every: whether the members beside the thresholds are loaded too.
    option: by which the directory was named.

  Returns:
    A `Trained`.

  Raises:
    UserError: there is no finished segmentation run, or it lacks its checkpoint or calibration.
  """
  claim = claim_lib.read_claim(workdir)
  if claim is None or claim["config"].get("task") != "segmentation":
    raise UserError(
      f"{workdir} holds no segmentation run; name one with {option}=DIR, or train "
      f"one: python -m lus_jax.main --config configs/seg.py --workdir {workdir}"
    )
  if not results.exists(workdir, *RESULTS):
    raise UserError(
      f"the segmentation run in {workdir} is not finished; repeat its command to go on with it."
    )
  if not (pathlib.Path(workdir) / claim_lib.DIRECTORY).is_dir():
    raise UserError(
      f"{workdir} holds the results of a segmentation run but no checkpoints/ with its best "
      "models; bring them back, or train again in another --workdir."
    )
  try:
    rows = results.read(workdir, "dataset")["rows"]
    patients = {row["split"]: row["patient_names"] for row in rows}
  except (KeyError, TypeError) as error:
    raise UserError(
      f"{workdir}/results/dataset.json does not say who was trained on; it was written by another "
      "version, so train again in another --workdir."
    ) from error
  # A machine that only trains on arrays may lack it.
  from ml_collections import ConfigDict

  config = ConfigDict(claim["config"])
  for name in ("prepared_dir", "dir"):
    config.data[name] = claim_lib.find_path(workdir, config.data[name])
  # Runs from before them lack these fields.
  config.model.init_from = config.model.get("init_from", "")
  config.sweep.members = config.sweep.get("members", ())
  config.calibration = config.get("calibration", "none")
  config.labels = config.get("labels", ConfigDict({"standardise": "none"}))
  objective = Objective(config).with_raters(claim["dataset"].get("raters", ()))
  views, scalars = objective.views()
  # The models of the first seed are used.
  n = len(views) // objective.seeds if every else objective.n_thresholds
  names = [view.name for view in views[:n]]
  views = [dataclasses.replace(view, name=objective.without_seed(view.name)) for view in views[:n]]
  network = _outline(config, objective, len(claim["dataset"]["classes"]))
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((objective.n_models, *x.shape), x.dtype),
    {"params": network.params, "batch_stats": network.batch_stats},
  )
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir)) as checkpoints:
    if checkpoints.latest() is None:
      raise UserError(
        f"{workdir}/{claim_lib.DIRECTORY} holds no checkpoint; train again in another --workdir."
      )
    weights = checkpoints.restore_best(stacked, _best_epochs(workdir))
  # How models are run is up to the machine they are run on.
  sweep = Sweep([{}] * objective.n_models, choose_strategy("auto"))
  dataset, earlier = began(claim)
  common = {"config": config, "dataset": dataset, "patients": patients, "earlier": earlier}
  common["notes"] = tuple(results.read(workdir, "segmentation").get("notes", ()))
  found = _taken(network, sweep, sweep.unstack(weights), objective, views, scalars[:n], **common)
  if config.calibration == "none":
    return found
  fitted = _read_calibrations(workdir)
  return found.calibrated([fitted[name] for name in names])


def _outline(config, objective, classes):
  return state_lib.outline(
    lambda: models.build_model(
      config.model, in_channels=1, classes=classes, levels=objective.head, seed=config.seed
    )
  )


def _best_epochs(workdir):
  more = ["members"] if results.exists(workdir, "members") else []
  return [
    row.get("best_epoch")
    for name in ("segmentation", *more)
    for row in results.read(workdir, name)["rows"]
  ]


def write_calibrations(workdir, views, chosen):
  """Writes the calibration of every view beside the run's checkpoints."""
  fitted = {view.name: one for view, one in zip(views, chosen, strict=True)}
  write_text(pathlib.Path(workdir) / CALIBRATION, json.dumps(seal({"fitted": fitted})) + "\n")


def _read_calibrations(workdir):
  file = pathlib.Path(workdir) / CALIBRATION
  try:
    content = json.loads(file.read_text())
    if broken_seal(content):
      raise ValueError("another checksum")
    # Runs from before checksums have nothing around it.
    return content["fitted"] if "sha256" in content else content
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise UserError(
      f"{file} with the calibration of the run's models is missing or damaged; bring it back, or "
      "train again in another --workdir."
    ) from error
