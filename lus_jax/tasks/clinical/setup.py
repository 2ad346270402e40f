"""What a clinical task is run with: all that is decided before anything is trained."""

import dataclasses
import pathlib
from typing import Any

from lus_jax.data.clips import VideoTable
from lus_jax.data.datasets import Dataset
from lus_jax.data.folds import Fold
from lus_jax.inference.trained import Trained
from lus_jax.training.state import Network
from lus_jax.training.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class Setup:
  """A clinical task, its videos, folds and models.

  Attributes:
    config: the run's config, resolved.
    settings: of `lus_jax.training.claim.settings`.
    workdir: the run's directory.
    dataset: the videos.
    table: their `VideoTable`.
    trained: the segmentation models whose maps are used.
    same: whether those learnt from the same patients' data set.
    splits: F folds.
    task: one of `questions.TASKS`.
    ablations: of 'none' and 'true'.
    names: of the T members.
    places: source and fold of each.
    network: the video network.
    sweep: of the members.
    initial: what the claim says of the weights they start from; None for random ones.
  """

  config: Any
  settings: dict[str, Any]
  workdir: str
  dataset: Dataset
  table: VideoTable
  trained: Trained
  same: bool
  splits: list[Fold]
  task: Any
  ablations: list[str]
  names: list[str]
  places: list[tuple[float | str, int]]
  network: Network
  sweep: Sweep
  initial: Any = None

  @property
  def directory(self):
    """Where its checkpoints and curves are."""
    return pathlib.Path(self.workdir) / self.config.name
