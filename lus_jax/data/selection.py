"""Which of the stored labels are used: not what a model painted alone, and a consensus for all.

A model that learns from its own output, or is measured against it, looks better than it is; and a
frame with a consensus would count once for it and once for everyone it stands for.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lus_jax import fields
from lus_jax.data import datasets
from lus_jax.errors import UserError
from lus_jax.labels.annotators import CONSENSUS
from lus_jax.words import plural

# Of frames that a model pre-labelled: those that a hand changed; of these the classes it changed;
# or all.
PRELABELS = ("touched", "touched_classes", "all")
# What a consensus is: the one label of its frame, one more, or none.
CONSENSUSES = ("replaces", "beside", "none")
# Why a label is left out.
UNTOUCHED, REPLACED, NOT_ASKED = REASONS = ("untouched", "replaced", "consensus")


def check(config):
  """Refuses unknown choices in a run's config (`UserError`); those of older versions lack them."""
  known = {"data.prelabels": PRELABELS, "data.consensus": CONSENSUSES}
  there = {name: known[name] for name in known if fields.value(config, name) is not None}
  fields.check_known(config, there)


def reasons(labels, *, prelabels="touched", consensus="replaces"):
  """Why labels are left out.

  Args:
    labels: of each its frame, whether it is a pre-label that nobody touched, and whether it is a
      consensus.
    prelabels: one of `PRELABELS`.
    consensus: one of `CONSENSUSES`.

  Returns:
    A list of `REASONS`, None where a label is used.
  """
  found = [UNTOUCHED if untouched and prelabels != "all" else None for _, untouched, _ in labels]
  # What a model painted alone stands for nobody.
  agreed = {
    frame for (frame, _, agrees), why in zip(labels, found, strict=True) if agrees and why is None
  }
  for i, (frame, _, agrees) in enumerate(labels):
    if found[i] is None and agrees and consensus == "none":
      found[i] = NOT_ASKED
    elif found[i] is None and not agrees and consensus == "replaces" and frame in agreed:
      found[i] = REPLACED
  return found


def refuse_empty(directory, split, found):
  """Refuses a split none of whose labels is used (`UserError`).

  Args:
    directory: of the data.
    split: its name.
    found: of `reasons`.
  """
  if None in found or not found:
    return
  counts = collections.Counter(found)
  if counts[NOT_ASKED]:
    why, mend = "are a consensus", "use --config.data.consensus=replaces"
  else:
    why = "are a model's, and nobody touched them"
    mend = (
      "correct some of them (python -m lus_jax.annotate), or use them all the same "
      "(--config.data.prelabels=all)"
    )
  raise UserError(
    f"{directory}/labels.csv: all {plural(len(found), 'label')} of the split '{split}' {why}, so "
    f"that nothing is left of it; {mend}."
  )


class Touched(Sequence):
  """A split in which a class that a model painted and nobody touched is not labelled.

  Args:
    source: a split with `prelabelled` and `touched`.
  """

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    example = dict(self._source[index])
    known = ~untouched_classes(example)
    if "labelled" in example:
      example["labelled"] = example["labelled"] & known
    if "confidence" in example:
      example["confidence"] = example["confidence"] * known.astype(np.uint8)
    return example

  def only(self, *names):
    """See `lus_jax.data.datasets.Source.only`."""
    if not {"labelled", "confidence"} & set(names):
      return self._source.only(*names)
    return Touched(self._source.only(*dict.fromkeys((*names, "prelabelled", "touched"))))


def untouched_classes(example):
  """The classes of an example that are as a model offered them: [K] bool."""
  return example["prelabelled"] & ~example["touched"]


def is_untouched(example):
  """Whether a model painted a label and nobody touched it; False where that is not known."""
  return "touched" in example and bool(
    example["prelabelled"].any() and not example["touched"].any()
  )


def is_consensus(example):
  """Whether a label stands for those of several annotators."""
  return bool(example.get("consensus", example["annotator"].decode() == CONSENSUS))


@dataclasses.dataclass(frozen=True)
class Selection:
  """What is used of a data set.

  Attributes:
    stored: all of it, a `lus_jax.data.datasets.Dataset`.
    used: what is used of it; its notes say what is not.
    reasons: of each split and label of `stored`, why it is left out; None where it is used.
  """

  stored: datasets.Dataset
  used: datasets.Dataset
  reasons: Mapping[str, list[str | None]]

  def left_out(self, split):
    """How many labels of a split are left out, by `REASONS` that there are."""
    counts = collections.Counter(self.reasons[split])
    return {why: counts[why] for why in REASONS if counts[why]}


def select(dataset, config):
  """Leaves out what is not to be used of a data set of frames.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset`.
    config: the `data` part of a run's config.

  Returns:
    A `Selection`.

  Raises:
    UserError: nothing is left of a split.
  """
  # Runs from before there were such fields used everything.
  prelabels = config.get("prelabels", "all")
  consensus = config.get("consensus", "beside")
  if not dataset.has_provenance and CONSENSUS not in dataset.metadata.get("annotators", ()):
    nothing = {split: [None] * len(source) for split, source in dataset.splits.items()}
    return Selection(dataset, dataset, nothing)
  splits, found, work = {}, {}, {}
  for split, source in dataset.splits.items():
    labels = list(_labels(dataset, source))
    found[split] = reasons(
      [label[:3] for label in labels], prelabels=prelabels, consensus=consensus
    )
    refuse_empty(config.dir, split, found[split])
    left = [(0, i) for i, why in enumerate(found[split]) if why is None]
    work[split] = [labels[i][3] for _, i in left]
    splits[split] = datasets.Subset([source], left) if len(left) < len(source) else source
    if prelabels == "touched_classes" and dataset.has_provenance:
      splits[split] = Touched(splits[split])
  notes = [*dataset.metadata.get("notes", []), *_notes(found, work, prelabels)]
  used = dataclasses.replace(dataset, splits=splits, metadata={**dataset.metadata, "notes": notes})
  return Selection(dataset, used, found)


@dataclasses.dataclass(frozen=True)
class _Work:
  """How many classes of a label a model filled, and of how many of these no hand changed."""

  prelabelled: int
  untouched: int
  is_untouched: bool


def _labels(dataset, source):
  """Yields what `reasons` asks of each example of a split, and its `_Work`."""
  names = ("video", "frame", "annotator")
  if dataset.has_provenance:
    names += ("prelabelled", "touched", "consensus")
  for example in source.only(*names):
    frame, untouched = (example["video"], int(example["frame"])), is_untouched(example)
    work = _Work(0, 0, untouched)
    if dataset.has_provenance:
      counts = example["prelabelled"].sum(), untouched_classes(example).sum()
      work = _Work(*map(int, counts), untouched)
    yield frame, untouched, is_consensus(example), work


def _counted(by_split):
  """'3 labels (2 train, 0 validation, 1 test)', of counts by split; '' of none."""
  n = sum(by_split.values())
  each = ", ".join(f"{one} {split}" for split, one in by_split.items())
  return f"{plural(n, 'label')} ({each})" if n else ""


def _notes(found, work, prelabels):
  """What a reader of results has to know, as lines."""
  which = {
    UNTOUCHED: "which a model painted and nobody touched",
    REPLACED: "for which a consensus stands",
    NOT_ASKED: "by which several annotators agreed",
  }
  for why, words in which.items():
    if counted := _counted({split: each.count(why) for split, each in found.items()}):
      yield f"left out: {counted}, {words}."

  def used(holds):
    return _counted({split: sum(map(holds, each)) for split, each in work.items()})

  if counted := used(lambda one: one.is_untouched):
    yield (
      f"a model's, which nobody touched: {counted}; scores against them say how near networks come "
      "to that model."
    )
  if counted := used(lambda one: one.prelabelled and not one.is_untouched):
    n = sum(one.untouched for each in work.values() for one in each if not one.is_untouched)
    left = " and not used" * (prelabels == "touched_classes")
    yield (
      f"begun by a model and changed by a hand, or said to be right: {counted}; "
      f"{plural(n, 'mask')} of these as offered{left}."
    )
