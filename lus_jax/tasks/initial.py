"""What networks start from: a file of PyTorch's weights, or a finished run of ours.

`config.model.init_from` names either. Of a run of segmentation or pretraining the best weights are
taken, and of its head what belongs to classes of the same name; the rest of the head is random.
What was taken is part of a run's claim, by its fingerprint: it is read once, before the first
checkpoint, and a run that goes on needs it no more.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import unicodedata
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import models, results
from lus_jax.data import folds
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.models import torch_weights
from lus_jax.training import checkpoints as checkpoints_lib
from lus_jax.training import claim as claim_lib
from lus_jax.training import members as members_lib
from lus_jax.training import state
from lus_jax.words import plural

OPTION = "--config.model.init_from"
# Of a run of pretraining: its task, its results file, and what it trains.
PRETRAINING, NETWORKS = "pretrain", ("segmentation", "video")
HEAD = "segmentation_head"
# Numbers that its video network puts out at every place of its last features: a block of pixels.
VIDEO_OUTPUTS = 64
# What simulated structures are called in people's data, by one spelling.
_SYNONYMS = {
  "pleura": "sharp pleura",
  "pleural line": "sharp pleura",
  "b line": "vertical line",
  "z line": "vertical line",
  "fascia": "fascia band",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights of a finished run.

  Attributes:
    params: a pure dict.
    batch_stats: likewise.
    classes: of its head; () without one that is of use.
    about: JSON values that say what they are.
  """

  params: Any
  batch_stats: Any
  classes: tuple[str, ...]
  about: dict[str, Any]

  @property
  def lineage(self):
    """Who they have seen, as `inference.trained.Trained.lineage`."""
    return self.about["seen"]


@dataclasses.dataclass(frozen=True)
class Start:
  """What `config.init_from` names, read; of a run that goes on no more than what it is.

  Attributes:
    about: for the claim: a file's digest, or `Source.about`.
    tensors: of a file.
    source: of a run.
  """

  about: Any
  tensors: dict[str, Any] | None = None
  source: Source | None = None


def start(config, directory, *, video):
  """Reads what a run starts from.

  Args:
    config: the `model` part of its config.
    directory: of its claim and checkpoints.
    video: whether it is of the clinical tasks.

  Returns:
    A `Start`; None for random weights.

  Raises:
    UserError: as `check`.
  """
  if not config.init_from:
    return None
  if goes_on(directory):
    return Start(claim_lib.read_claim(directory)["dataset"].get("initial"))
  if torch_weights.is_file(config.init_from):
    return Start(torch_weights.digest(config.init_from), torch_weights.read(config.init_from))
  source = read(config, video=video)
  return Start(source.about, source=source)


def goes_on(directory):
  """Whether a run in a directory has its weights from a checkpoint: what it began from is past."""
  return claim_lib.read_claim(directory) is not None and checkpoints_lib.kept_any(directory)


def digest_of(trees):
  """A short text that changes with any array of them."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(trees):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:12]


def check(config, directory, *, video):
  """Refuses initial weights that do not fit, as far as that can be known before a run.

  Args:
    config: the `model` part of a run's config, checked; `init_from` names a file or a run.
    directory: of its claim and checkpoints; None where it is not known.
    video: whether it is of the clinical tasks.

  Raises:
    UserError: there is nothing of that name, it is not finished, or is of another network or size.
  """
  if directory is not None and goes_on(directory):
    return
  if torch_weights.is_file(config.init_from):
    models.check_init_from(config, video=video)
  else:
    _check_run(config, video=video)


def width_of(init_from):
  """The width of what an `init_from` names, a run of ours or a file of usual networks (1).

  None for random weights, and where there is nothing of that name, which `check` says.
  """
  if torch_weights.is_file(init_from):
    return 1.0
  directory = pathlib.Path(os.path.expanduser(init_from))
  claim = claim_lib.read_claim(directory) if init_from and directory.is_dir() else None
  return None if claim is None else claim["config"].get("model", {}).get("width")


def _check_run(config, *, video):
  """The claim's config of the run that `config.init_from` names, which fits."""
  place = config.init_from
  directory = pathlib.Path(os.path.expanduser(place))
  claim = claim_lib.read_claim(directory) if directory.is_dir() else None
  if claim is None:
    raise UserError(
      f"config.model.init_from: '{place}' is neither the directory of a run nor a file of weights "
      f"({', '.join(torch_weights.SUFFIXES)}); name one that there is."
    )
  theirs = claim["config"]
  task, network = theirs.get("task"), NETWORKS[video]
  kinds = {PRETRAINING: theirs.get("network")} | ({} if video else {"segmentation": network})
  if kinds.get(task) != network:
    known = f"pretraining with --config.network={network}" + " or segmentation" * (not video)
    found = f"{task} ({theirs['network']})" if task == PRETRAINING else task
    raise UserError(
      f"config.model.init_from: {place} is a run of {found}, and this takes one of {known}."
    )
  # Others say themselves what is missing (`inference.trained.load`).
  finished = (PRETRAINING,) if task == PRETRAINING else trained_lib.RESULTS
  if not results.exists(directory, *finished):
    raise UserError(
      f"config.model.init_from: the run in {place} is not finished; repeat its command to go on "
      "with it."
    )
  for name in ("width",) if video else ("network", "encoder", "width", "refinements"):
    # What is off is in no claim.
    ours, other = config.get(name) or None, theirs["model"].get(name) or None
    if ours != other:
      raise UserError(
        f"config.model.init_from: the networks in {place} have model.{name}={other or 0}, and this "
        f"run has {ours or 0}; give both the same --config.model.{name}."
      )
  return theirs


def read(config, *, video):
  """Reads the weights of the run that `config.init_from` names.

  Args:
    config: the `model` part of a run's config.
    video: whether it is of the clinical tasks.

  Returns:
    A `Source`.

  Raises:
    UserError: as `check`, or its checkpoint or results are missing or damaged.
  """
  theirs = _check_run(config, video=video)
  place = pathlib.Path(os.path.expanduser(config.init_from))
  return _pretrained(place, theirs) if theirs["task"] == PRETRAINING else _segmentation(place)


def _segmentation(place):
  """The model of the threshold nearest to .5, of the first seed."""
  trained = trained_lib.load(place, option=OPTION)
  # Soft members have none, and of an ordinal one a level is not what its head puts out.
  plain = [i for i, view in enumerate(trained.views) if trained.objective.is_plain(view)]
  i = min(plain, key=lambda i: abs(trained.thresholds[i] - members_lib.MIDDLE))
  rows = results.read(place, "segmentation")["rows"]
  epochs = {row["threshold"]: row["best_epoch"] for row in reversed(rows)}
  weights = trained.weights_of(i)
  return Source(
    params=weights["params"],
    batch_stats=weights["batch_stats"],
    classes=trained.classes,
    about={
      "seen": trained.lineage,
      "task": "segmentation",
      "dataset": trained.dataset["name"],
      "simulated": trained.config.data.name == "lus_phantom",
      "threshold": trained.thresholds[i],
      "epoch": epochs.get(trained.thresholds[i]),
      "fingerprint": digest_of(weights),
    },
  )


def pretraining_network(model, network, seed):
  """The network that pretraining trains, as an `nnx.Module`.

  Args:
    model: the `model` part of its config, resolved.
    network: 'segmentation': the FPN with a head of one number a pixel; 'video': the temporal-shift
      MobileNetV2, which puts out a block of pixels at every place of its features.
    seed: of the initial weights.
  """
  if network == "segmentation":
    return models.build_model(model, in_channels=1, classes=1, seed=seed)
  options = {"in_channels": 1, "outputs": VIDEO_OUTPUTS, "hidden": ()}
  return models.build_video_model(model, seed=seed, **options)


def _pretrained(place, theirs):
  from ml_collections import ConfigDict

  content = results.read(place, PRETRAINING)
  model = ConfigDict(theirs["model"])
  network = state.outline(lambda: pretraining_network(model, theirs["network"], 0))
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
    {"params": network.params, "batch_stats": network.batch_stats},
  )
  with contextlib.closing(checkpoints_lib.Checkpoints(place)) as checkpoints:
    if checkpoints.latest() is None:
      raise UserError(
        f"{place}/{claim_lib.DIRECTORY} holds no checkpoint; pretrain again in another --workdir."
      )
    best = checkpoints.restore_best(stacked, [content["best_epoch"]])
  weights = jax.tree.map(lambda x: x[0], best)
  lineage = [
    {
      "population": content["dataset"]["population"],
      "train": content["patients"],
      "validation": content["held_out"],
    },
    *trained_lib.began(claim_lib.read_claim(place))[1],
  ]
  return Source(
    params=weights["params"],
    batch_stats=weights["batch_stats"],
    classes=(),
    about={
      "seen": lineage,
      "task": PRETRAINING,
      "dataset": content["dataset"]["name"],
      "simulated": theirs["data"]["name"] == "lus_phantom",
      "clips": content["clips"],
      "epoch": content["best_epoch"],
      "fingerprint": digest_of(weights),
    },
  )


def into_segmentation(begun, params, batch_stats, *, classes, place, head):
  """Replaces the weights of a segmentation network by those that it starts from.

  Args:
    begun: a `Start`.
    params: its weights, a pure dict.
    batch_stats: its running statistics, likewise.
    classes: of its head.
    place: what an error calls a file.
    head: whether a file's head is taken, where it has one.

  Returns:
    params and batch_stats: all but the head is the source's; of the head, those channels whose
    classes a run has by `matched`. And which channels of the head those are, a bool for each.

  Raises:
    UserError: the networks differ in a shape.
  """
  brought = np.zeros(params[HEAD]["bias"].shape, bool)
  if begun.tensors is not None:
    # A refined decoder's head has other inputs than a file's.
    head = head and not params.get("refinements")
    brought[:] = head and any(HEAD in name for name in begun.tensors)
    taken = torch_weights.load_into(params, batch_stats, begun.tensors, source=place, head=head)
    return *taken, brought
  if begun.source is None:
    # A checkpoint has them.
    return params, batch_stats, brought
  source = begun.source
  ours, theirs = (
    {name: part for name, part in one.items() if name != HEAD} for one in (params, source.params)
  )
  _check_shapes({"params": ours, "stats": batch_stats}, (theirs, source.batch_stats))
  columns = dict(params[HEAD])
  for name, other in matched(classes, source.classes).items():
    i, j = classes.index(name), source.classes.index(other)
    brought[i] = True
    for leaf, x in columns.items():
      # Of an ordinal head, too, the first of its levels are those of the classes.
      columns[leaf] = x.at[..., i].set(jnp.asarray(source.params[HEAD][leaf])[..., j])
  taken = jax.tree.map(jnp.asarray, (theirs, source.batch_stats))
  return taken[0] | {HEAD: columns}, taken[1], brought


def into_video(begun, params, batch_stats, *, place):
  """Replaces the features of a video network by those that it starts from.

  Args: as for `into_segmentation`.

  Returns:
    params and batch_stats. Of the first convolution the grey frame's weights are the source's, and
    the maps beside it keep their random ones; so does the head.
  """
  if begun.tensors is not None:
    return torch_weights.load_into(params, batch_stats, begun.tensors, source=place, head=False)
  if begun.source is None:
    # A checkpoint has them.
    return params, batch_stats
  source = begun.source
  (first, *features), (grey, *others) = (
    params["features"].values(),
    source.params["features"].values(),
  )
  kernel = first["conv"]["kernel"]
  grey_kernel = jnp.asarray(grey["conv"]["kernel"])
  _check_shapes(
    {"features": features, "stem": kernel[..., :1, :], "stats": batch_stats},
    (others, grey_kernel, source.batch_stats),
  )
  taken = jax.tree.map(jnp.asarray, source.params["features"])
  place = next(iter(params["features"]))
  taken[place]["conv"] = {"kernel": kernel.at[..., :1, :].set(grey_kernel)}
  return params | {"features": taken}, jax.tree.map(jnp.asarray, source.batch_stats)


def _check_shapes(ours, theirs):
  ours, theirs = (
    {jax.tree_util.keystr(path[1:]): x.shape for path, x in jax.tree_util.tree_leaves_with_path(x)}
    for x in (tuple(ours.values()), theirs)
  )
  if ours != theirs:
    odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    raise UserError(
      f"config.model.init_from: the networks of that run have other layers ({', '.join(odd[:3])}); "
      "give both runs the same --config.model."
    )


def matched(classes, theirs):
  """Which class of a source each class takes its head from: a dict by name, without the others.

  Spellings of one name are one name, and so are an A-line, A-lines and a_line; a simulated class
  also stands for what people call it, as `vertical_line` for B-lines.
  """
  by_name = {_plain(name): name for name in reversed(theirs)}
  found = {}
  for name in classes:
    for known in (_plain(name), _SYNONYMS.get(_plain(name))):
      if known in by_name:
        found.setdefault(name, by_name[known])
  return found


def _plain(name):
  words = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
  return words if words.endswith("ss") else words.removesuffix("s")


def about_heads(source, classes):
  """What `Source.about` says, with where the head of each class comes from."""
  if not source.classes:
    return source.about
  found = matched(classes, source.classes)
  fresh = [name for name in classes if name not in found]
  return source.about | {"heads": [list(pair) for pair in found.items()], "fresh": fresh}


def sentence(about):
  """What a reader of any result has to know of the weights a run began from, in a sentence."""
  simulated = ", simulated" * about["simulated"]
  if about["task"] == PRETRAINING:
    return (
      f"the networks start from pretraining without labels on {plural(about['clips'], 'clip')} of "
      f"training patients of {about['dataset']}{simulated}; their heads are random."
    )
  heads = ", ".join(
    name if name == other else f"{name} (its {other})" for name, other in about["heads"]
  )
  return (
    f"the networks start from the {about['threshold']:.0%} model of another run (on "
    f"{about['dataset']}{simulated}); heads from there: {heads or 'none'}; random: "
    f"{', '.join(about['fresh']) or 'none'}."
  )


def told(about, init_from):
  """What results say of the weights a run began from: a dict.

  Args:
    about: of its claim.
    init_from: of its config.
  """
  if isinstance(about, dict):
    # As of the claim, whose keys are sorted: a run that goes on has it from there.
    return {name: value for name, value in sorted(about.items()) if name != "seen"}
  return {"from": pathlib.PurePath(init_from).name, "fingerprint": about}


def noted(dataset, about):
  """The data set with what its networks start from among its notes, where that is another run."""
  if not isinstance(about, dict):
    return dataset
  notes = [*dataset.metadata.get("notes", []), sentence(about)]
  return dataclasses.replace(dataset, metadata={**dataset.metadata, "notes": notes})


def audit(source, patients, population):
  """Makes sure that the weights a run begins from have not seen who it is judged on.

  Nor what these began from, in turn.

  Args:
    source: a `Source`.
    patients: of each split.
    population: whose patients these are.

  Raises:
    UserError: they learned from a validation or test patient, or were selected on a test patient.
  """
  learned, chose = (
    trained_lib.who_saw(source.lineage, population, split) for split in ("train", "validation")
  )
  for side, seen in (("test", learned | chose), ("validation", learned)):
    if leaked := seen & set(patients[side]):
      raise UserError(
        "config.model.init_from: the weights there, or those that they began from, learned from, "
        f"or were selected on, patient(s) of the {side} split ({folds.names(leaked)}): both runs "
        "need the same split; use the same --config.data.split_seed or column split, or start from "
        "other weights."
      )
