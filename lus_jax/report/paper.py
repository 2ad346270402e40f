"""What the paper reports, and whether a result is comparable to it."""

import dataclasses

# Table 1 of arXiv 2508.15635 (private data): context beside our figures, never a pass mark.
REPORTED = {
  0.0: {"iou": 0.597, "weighted_ce": 0.055, "ce": 0.177, "trimap": 0.099},
  0.2: {"iou": 0.535, "weighted_ce": 0.022, "ce": 0.075, "trimap": 0.067},
  0.4: {"iou": 0.478, "weighted_ce": 0.022, "ce": 0.053, "trimap": 0.039},
  0.5: {"iou": 0.424, "weighted_ce": 0.024, "ce": 0.051, "trimap": 0.037},
  0.6: {"iou": 0.432, "weighted_ce": 0.018, "ce": 0.050, "trimap": 0.029},
  0.8: {"iou": 0.351, "weighted_ce": 0.022, "ce": 0.059, "trimap": 0.032},
  1.0: {"iou": 0.131, "weighted_ce": 0.007, "ce": 0.103, "trimap": 0.007},
}
# Metrics that runs from before do not have.
LATER = ("accuracy2_merged",)
# Its Tables 2 to 4: mean and standard deviation over five folds.
REPORTED_TASKS = {
  "sf_change": {
    0.0: {"accuracy3": (0.362, 0.033), "accuracy2_merged": (0.497, 0.055)},
    0.2: {"accuracy3": (0.360, 0.049), "accuracy2_merged": (0.531, 0.061)},
    0.4: {"accuracy3": (0.363, 0.031), "accuracy2_merged": (0.515, 0.057)},
    0.5: {"accuracy3": (0.333, 0.022), "accuracy2_merged": (0.501, 0.025)},
    0.6: {"accuracy3": (0.348, 0.033), "accuracy2_merged": (0.515, 0.504)},
    0.8: {"accuracy3": (0.339, 0.049), "accuracy2_merged": (0.504, 0.057)},
    1.0: {"accuracy3": (0.327, 0.051), "accuracy2_merged": (0.511, 0.051)},
  },
  "sf_ratio": {
    threshold: dict(zip(("rmse_max", "rmse_mean", "rmse_median"), figures, strict=True))
    for threshold, figures in {
      0.0: ((0.3506, 0.0567), (0.3964, 0.0568), (0.3918, 0.0548)),
      0.2: ((0.3708, 0.0580), (0.4284, 0.0641), (0.4190, 0.0641)),
      0.4: ((0.3644, 0.0136), (0.4188, 0.0112), (0.4090, 0.0123)),
      0.5: ((0.3644, 0.0245), (0.4186, 0.0245), (0.4078, 0.0225)),
      0.6: ((0.2902, 0.0496), (0.3604, 0.0533), (0.3506, 0.0526)),
      0.8: ((0.3468, 0.0439), (0.4076, 0.0550), (0.3948, 0.0531)),
      1.0: ((0.3270, 0.0432), (0.3822, 0.0362), (0.3750, 0.0389)),
    }.items()
  },
  "readmission": {
    threshold: dict(zip(("accuracy", "recall", "precision"), figures, strict=True))
    for threshold, figures in {
      0.0: ((0.450, 0.209), (0.400, 0.418), (0.333, 0.312)),
      0.2: ((0.550, 0.209), (0.500, 0.354), (0.567, 0.365)),
      0.4: ((0.400, 0.137), (0.600, 0.418), (0.367, 0.217)),
      0.5: ((0.550, 0.112), (0.700, 0.274), (0.533, 0.075)),
      0.6: ((0.750, 0.177), (0.900, 0.224), (0.768, 0.224)),
      0.8: ((0.700, 0.274), (0.800, 0.274), (0.700, 0.274)),
      1.0: ((0.700, 0.209), (0.800, 0.274), (0.667, 0.204)),
    }.items()
  },
}
# Printed so; the sd of an accuracy this even cannot be that large.
SIC = ("sf_change", 0.6, "accuracy2_merged")
# The reported figures stand beside a data set of these classes only.
PAPER_CLASSES = {
  "sharp_pleura",
  "fuzzy_pleura",
  "fascia_band",
  "a_line",
  "sub_a_line",
  "vertical_line",
}


@dataclasses.dataclass(frozen=True)
class Task:
  """What a clinical task's results are called.

  Attributes:
    number: of the paper's table.
    target: the paper's own.
    metrics: names of the table's metrics by key.
    baseline: what the predictor that never looks at a video is called.
    baselines: its metric beside each of the table's.
    more: metrics that the table has beside the paper's, where a run has them.
  """

  number: int
  target: str
  metrics: dict[str, str]
  baseline: str
  baselines: dict[str, str]
  more: dict[str, str] = dataclasses.field(default_factory=dict)


TASKS = {
  "sf_change": Task(
    2,
    "sf_ratio",
    # Most likely its reading of two classes; the other one stands beside it.
    {"accuracy3": "3-class accuracy", "accuracy2_merged": "2-class accuracy"},
    "majority class",
    {"accuracy3": "majority3", "accuracy2_merged": "majority2", "accuracy2": "majority2"},
    {"accuracy2": "2-class by summed P", "auroc_ordinal": "ordinal AUROC"},
  ),
  "sf_ratio": Task(
    3,
    "sf_ratio",
    {"rmse_max": "RMSE of max", "rmse_mean": "RMSE of mean", "rmse_median": "RMSE of median"},
    "constant",
    dict.fromkeys(("rmse_max", "rmse_mean", "rmse_median"), "rmse_constant"),
  ),
  "readmission": Task(
    4,
    "readmitted_30d",
    {"accuracy": "accuracy", "recall": "recall", "precision": "precision"},
    "majority class",
    {"accuracy": "majority"},
    {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"},
  ),
}


def as_reported(task, figure):
  """A figure of the paper's Tables 2 to 4, with the decimals it has there."""
  return f"{figure:.{4 if task == 'sf_ratio' else 3}f}"


def is_of_the_papers_target(content):
  """Whether a task is about what the paper predicts."""
  return content["target"] == TASKS[content["task"]].target


def is_the_papers(content):
  """Whether a task's results may have the paper's figures beside them.

  Its target, of changes between two days where it has them, by segmentation models of the same data
  set: of anything else the figures are of another question.
  """
  segmentation = content.get("segmentation") or {}
  return (
    is_of_the_papers_target(content)
    and content["config"].get("days") != "single"
    and segmentation.get("same_data_set") is not False
  )
