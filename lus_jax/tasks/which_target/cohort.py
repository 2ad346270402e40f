"""One simulated cohort: its members are trained on it and scored against the truth."""

import contextlib
import dataclasses
import io
import tempfile

import jax
import numpy as np

from lus_jax import models
from lus_jax.data import augment, datasets, labelling, pipeline
from lus_jax.errors import UserError
from lus_jax.splits import SPLITS
from lus_jax.tasks.segmentation import train
from lus_jax.training import hardware, optimizers
from lus_jax.training import members as members_lib
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep, choose_strategy


class Trainer:
  """Trains and scores one unit after another, with programs that are compiled once.

  It trains to the last step and scores what that leaves, so that nothing which chooses an epoch
  (`train.smoothing`) has a say.

  Args:
    config: a study's config.
    same: None, or how many members alike in all but their initial weights are trained instead.
  """

  def __init__(self, config, same=None):
    self._config, self._same = config, same
    self.objective = Objective(config)
    self.views, scalars = self.objective.views()
    if same:
      plain = self.objective.members[0]
      scalars = [self.objective.scalars(plain, seed=i) for i in range(same)]
      self.views = [
        members_lib.View(f"copy_{i}", i, members_lib.WHOLE, plain.threshold) for i in range(same)
      ]
      members, self._targets = scalars, [plain] * same
    else:
      members, self._targets = self.objective.of_all_seeds()[1], self.objective.members
    strategy = choose_strategy(config.sweep.strategy)
    self._sweep, self._scalars = Sweep(members, strategy), scalars
    frames = config.study.train_frames
    self._steps = hardware.epochs_of(config.train, frames)
    self._steps *= hardware.steps_of_epoch(config.train, frames)
    self._tx, _ = optimizers.with_cosine(config.optimizer, self._steps)
    self._network = None

  def initial(self, seed, classes):
    """Initial weights of a seed; the network itself is built once."""
    if self._network is None:
      options = {"in_channels": 1, "classes": classes, "levels": self.objective.head}
      self._network = state_lib.Network(models.build_model(self._config.model, seed=0, **options))

      def initialise(key):
        model = models.build_model(self._config.model, seed=key, **options)
        bias = model.segmentation_head.bias
        # The levels above the lowest are only what is taken off it.
        bias[...] = bias[...].at[:classes].set(jax.scipy.special.logit(self._config.study.prior))
        network = state_lib.Network(model)
        return network.params, network.batch_stats

      self._initialise = jax.jit(initialise)
      self._compile()
    return self._initialise(jax.random.key(seed))

  def _compile(self):
    network, objective = self._network, self.objective
    self._prepare = jax.jit(lambda batch, key: augment.prepare(batch, key, self._config.augment))
    loss = train.make_loss(network, objective)
    step = state_lib.make_train_step(loss, self._tx, train.averaging_of(self._config))
    self._step = self._sweep.compile(step, updates_state=True)
    self._plain = jax.jit(augment.prepare)

    def raw(state, own, inputs):
      return objective.logits(network, **state.weights, image=inputs["image"])[0]

    # The network once, however many levels are looked at.
    self._raw = self._sweep.compile(raw)
    self._probability = jax.jit(
      lambda raw, inputs, own: jax.nn.sigmoid(objective.output(raw, inputs, own))
    )

  def run(self, frames, *, seed):
    """Trains on one cohort and predicts its frames, as they are.

    Args:
      frames: arrays of `pipeline.FIELDS` by split.
      seed: of the initial weights, the order and the augmentation.

    Returns:
      Probabilities [V, n, H, W, K] by split.
    """
    classes = frames["train"]["confidence"].shape[-1]
    # Copies differ in their weights, members of a sweep do not.
    first = seed * (self._same or 1)
    starts = [self.initial(first + i, classes) for i in range(self._same or 1)]
    starts *= 1 if self._same else len(self._sweep.members)
    counts, repeats = train.of_labels(self._config, frames["train"])
    state = self._sweep.place(
      [
        train.first_state(self._config, self.objective, target, *start, self._tx, counts)
        for target, start in zip(self._targets, starts, strict=True)
      ]
    )
    source = pipeline.Frames(frames["train"], cache="device")
    size = self._config.train.batch_size
    batches = source.training_batches(size, seed=seed, repeats=repeats)
    key = jax.random.key(seed)
    for step in range(self._steps):
      augment_key, model_key = jax.random.split(jax.random.fold_in(key, step))
      inputs = self._prepare(next(batches), augment_key)
      state, loss = self._step(state, self._sweep.members, inputs, model_key)
    values = np.asarray(self._sweep.to_host(loss))
    if not np.isfinite(values).all():
      raise UserError(
        f"a loss of seed {seed} is not finite; lower --config.optimizer.learning_rate."
      )
    found = {}
    for split in SPLITS:
      parts = []
      batches = pipeline.Frames(frames[split], cache="device").evaluation_batches(16)
      for batch in batches:
        mask = batch.pop("mask")
        inputs = self._plain(batch)
        raw = self._sweep.to_host(self._raw(state, self._sweep.members, inputs))
        result = [
          self._probability(raw[view.member], inputs, own)
          for view, own in zip(self.views, self._scalars, strict=True)
        ]
        parts.append(np.stack(jax.device_get(result))[:, mask])
      found[split] = np.concatenate(parts, axis=1)
    return found


def cohort(config, setting, seed, *, standardise="none", directory=None):
  """Simulates the patients of one unit.

  Args:
    config: a study's config.
    setting: of the phantom.
    seed: of the phantom.
    standardise: how the experts' confidences come to one scale (`labelling.standardised`).
    directory: where the simulated files may lie for a moment; the system's own by default.

  Returns:
    By split, arrays of `pipeline.FIELDS` and `truth` [n, H, W, K] uint8, and, where all experts
    paint every frame, `raters` [n, R, H, W, K] uint8: `train_frames` training frames, the
    validation patients', and those of all patients that are left.

  Raises:
    UserError: too few patients for three splits.
  """
  data = config.data.copy_and_resolve_references()
  with data.unlocked(), tempfile.TemporaryDirectory(dir=directory) as prepared:
    data.prepared_dir, data.phantom.setting, data.phantom.seed = prepared, setting, seed
    # Hundreds of cohorts would each say where they are prepared.
    with contextlib.redirect_stdout(io.StringIO()):
      dataset = datasets.open_dataset(data, "frames")
    sources = list(dataset.splits.values())
    places = [(number, i) for number, source in enumerate(sources) for i in range(len(source))]
    patients = [one["patient"] for source in sources for one in source.only("patient")]
    names, counts = np.unique(patients, return_counts=True)
    enough = int(np.searchsorted(np.cumsum(counts), config.study.train_frames)) + 1
    ends = np.cumsum([enough, config.study.validation_patients])
    if ends[-1] >= len(names):
      raise UserError(
        f"config.data.phantom.n_patients: {len(names)} patients leave none for the test; use more."
      )
    splits = {}
    for split, group in zip(SPLITS, np.split(names, ends), strict=True):
      here = np.flatnonzero(np.isin(patients, group))
      here = here[: config.study.train_frames] if split == "train" else here
      splits[split] = datasets.Subset(sources, [places[i] for i in here])
    several = ("raters",) if dataset.raters else ()
    splits = labelling.standardised(dataclasses.replace(dataset, splits=splits), standardise)
    fields = (*pipeline.FIELDS, "truth", *several)
    return {split: pipeline.load(source, fields) for split, source in splits.items()}
