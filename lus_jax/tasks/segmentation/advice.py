"""What a segmentation run tells of its data and its models."""

import io
import pathlib

import jax
import numpy as np
from absl import logging
from PIL import Image

from lus_jax.files import write_bytes
from lus_jax.labels import label
from lus_jax.models import designs
from lus_jax.report import cells
from lus_jax.words import many, plural

# Labels that agree in this share of their pixels are called the same. So many training frames are
# looked at.
SAME, N_LOOKED = 0.99, 100
# Steps below which their number is what is blamed first, and how much a validation loss rises above
# its least where frames are learned by heart.
FEW_STEPS, OVERFITTED = 600, 1.2
# Validation frames below which the choice of epochs is called chance.
FEW = 5
# In the run's directory, a picture of what its models draw after their first epoch.
FIRST_LOOK = "first_epoch.png"


def first_look(workdir, names, rows, pictures, *, frames, epochs):
  """What a run has to show when its first epoch is done; writes a picture of it.

  Args:
    workdir: the run's directory.
    names: of the members.
    rows: of the validation, as `loop.Task.validate` gives them.
    pictures: by name, [n, H, W, 3] uint8.
    frames: of the validation split.
    epochs: of the training.
  """
  file = pathlib.Path(workdir) / FIRST_LOOK
  buffer = io.BytesIO()
  Image.fromarray(np.concatenate(pictures["validation_frames"])).save(buffer, "PNG")
  write_bytes(file, buffer.getvalue())
  table = cells.text_table(
    ["model", "IoU", "loss"],
    [
      [name, cells.number(row["score"]), cells.number(row["loss"])]
      for name, row in zip(names, rows, strict=True)
    ],
  )
  return (
    f"After epoch 1 of {epochs}, on {plural(frames, 'validation frame')}; IoU at each model's own "
    f"threshold:\n{table}\nLabels (above) and predictions (below): {file}"
  )


def warn_of_unscored(names, best, epochs):
  """Warns of members that no validation frame could tell good from bad.

  Args:
    names: of the members.
    best: of each, `epoch` and `score`, as `loop.fit` has them.
    epochs: of the training.
  """
  never, undefined = (
    [name for name, x in zip(names, best, strict=True) if x["score"] == score]
    for score in (0, None)
  )
  if never:
    logging.warning(
      "In no epoch did %s draw anything of what is there on the validation frames: at .5 their "
      "IoU is 0 throughout. More epochs (--config.train.epochs=%d) may mend it, or fewer members.",
      ", ".join(never),
      4 * epochs,
    )
  if undefined:
    logging.warning(
      "No validation frame shows anything at the threshold of %s: their IoU is undefined there, "
      "and their last epoch stands in for the best.",
      ", ".join(undefined),
    )


def below_the_bar(content, history, steps):
  """A line on models that stay below the mean map on the validation frames, and why; else empty.

  Args:
    content: of `results/segmentation.json`.
    history: rows of `results/history.json`.
    steps: of the training.
  """
  own = [x for x in content.get("predictors", ()) if x["predictor"] == "mean_map"]
  bars = {x["threshold"]: x.get("validation_iou") for x in own}
  below = [
    (row, bar)
    for row in content["rows"]
    if (bar := bars.get(row["threshold"])) is not None
    and "validation_iou" in row
    and (row["validation_iou"] or 0) < bar
  ]
  if not below:
    return ""
  each = ", ".join(
    f"{cells.percent(row['threshold'])} ({cells.number(row['validation_iou'] or 0)} "
    f"against {cells.number(bar)})"
    for row, bar in below
  )
  who = "a model stays" if len(below) == 1 else f"{len(below)} models stay"
  return (
    f"On the validation frames {who} below the mean map, which looks at no picture, by IoU: "
    f"{each}. {_why_below(content['config'], [row for row, _ in below], history, steps)}"
  )


def _why_below(config, rows, history, steps):
  """The likely reason that models learned little, and the setting to change."""
  train = config["train"]
  if steps < FEW_STEPS:
    longer = f"steps={4 * steps}" if train.get("steps") else f"epochs={4 * train['epochs']}"
    return f"Likely {plural(steps, 'step')} are too few: --config.train.{longer}."
  # The first seed's stand for all.
  names = {f"threshold_{row['threshold']:g}" for row in rows}
  names |= {f"{name}_seed_0" for name in names}
  curves = {}
  for row in history:
    if row["member"] in names:
      curves.setdefault(row["member"], []).append(row)
  grown = [
    curve[-1]["loss"] > OVERFITTED * min(row["loss"] for row in curve)
    and curve[-1]["train_loss"] < curve[0]["train_loss"]
    for curve in curves.values()
  ]
  if not config["loss"].get("region"):
    return (
      "Likely the paper's recipe does not suit so few or so thin labels: --config seg:small has "
      "one that is made for them, seg:auto the same with sizes from the data."
    )
  if grown and sum(grown) > len(grown) / 2:
    return (
      "Likely they learn the training frames by heart, as their validation loss rises again: "
      "--config.optimizer.weight_decay=0.2 or --config.augment.elastic=0.02, or more patients."
    )
  size = config["data"]["image_size"]
  return (
    f"Likely pictures are too small for what is drawn: --config.data.image_size={2 * size}; or the "
    "labels of training and validation frames differ, which `python -m lus_jax.check` may show."
  )


def no_better_than_blind(content, counted, steps):
  """What to say where no threshold's network is above the mean map of its threshold; else empty.

  Empty too where no test label shows anything: there is no IoU to compare then.

  Args:
    content: of `results/segmentation.json`.
    counted: rows of `results/dataset.json`.
    steps: of the training.
  """
  bars = {x["threshold"]: x for x in content.get("predictors", ()) if x["predictor"] == "mean_map"}
  rows = [row for row in content["rows"] if any(row.get("label_images", {"": 1}).values())]
  pairs = [(row, bars.get(row["threshold"], {})) for row in rows]
  if not pairs or any((row["iou"] or 0) > (bar.get("iou") or 0) for row, bar in pairs):
    return ""
  by_split = {row["split"]: row for row in counted}
  test = by_split["test"]
  lines = [
    f"On {'this' if test['frames'] == 1 else 'these'} {plural(test['frames'], 'test frame')} "
    f"({plural(test['patients'], 'patient')}) no network's IoU is above that of the "
    "mean map, which looks at no picture: this test does not show that they look at it."
  ]
  for key, words, sign in (
    ("weighted_ce", "WeightedCE is below the mean map's", -1),
    ("iou_at_best_cut", "IoU at the best cut is above the mean map's", 1),
  ):
    better = [
      cells.percent(row["threshold"])
      for row, bar in pairs
      if None not in (row.get(key), bar.get(key)) and sign * (row[key] - bar[key]) > 0
    ]
    if better:
      lines.append(f"But {words} at: {', '.join(dict.fromkeys(better))}.")
  if not any(by_split["train"]["frames_with"].values()):
    lines.append("No training label shows anything: there was nothing to learn.")
  else:
    epochs = 4 * content["config"]["train"]["epochs"]
    lines.append(
      f"Often steps are too few (here {steps}; --config.train.epochs={epochs} takes more), "
      "pictures too small (--config.data.image_size) or the test too small."
    )
  return " ".join(lines)


def groups_of(source, thresholds):
  """Thresholds whose labels are the same together.

  Args:
    source: the training frames.
    thresholds: in any order.

  Returns:
    Lists of thresholds, the highest first; how many pixels each threshold shows, by threshold; and
    how many frames say so.
  """
  # A good part of the frames says it.
  n = min(len(source), N_LOOKED)
  counts = np.zeros(256, np.int64)
  frames = source.only("confidence")
  for i in np.linspace(0, len(source) - 1, n).astype(int).tolist():
    counts += np.bincount(frames[i]["confidence"].ravel(), minlength=256)
  levels = np.arange(256, dtype=np.float32) / 255
  area = {t: int(counts[np.asarray(label(levels, t)) > 0].sum()) for t in thresholds}
  groups = []
  for threshold in sorted(thresholds, reverse=True):
    # The labels lie within each other: the lowest threshold of a group has the largest.
    if groups and area[groups[-1][0]] >= SAME * area[threshold] > 0:
      groups[-1].append(threshold)
    else:
      groups.append([threshold])
  return groups, area, n


def same_labels(source, thresholds):
  """What to say where some thresholds have the same labels, as of binary masks; empty if none do.

  Args:
    source: the training frames.
    thresholds: of the sweep.
  """
  groups, _, n = groups_of(source, thresholds)
  same = [", ".join(map(cells.percent, group)) for group in groups if len(group) > 1]
  if not same:
    return ""
  kept = [min(group, key=lambda t: abs(t - 0.5)) for group in groups]
  return (
    f"labels: {' and '.join(same)} agree in {SAME:.0%} of their pixels or more "
    f"({plural(n, 'training frame')}): such models differ in the weight of the background at most, "
    f"and one is enough: --config.sweep.thresholds={','.join(f'{t:g}' for t in kept)} trains "
    f"{len(kept)} in place of {len(thresholds)}"
  )


def describe(config, dataset, network, sweep, steps, why):
  """What is run, as lines of text; `why` is of `hardware.resolve`."""
  millions = sum(x.size for x in jax.tree.leaves(network.params)) / 1e6
  sizes = ", ".join(f"{len(source)} {name}" for name, source in dataset.splits.items())
  n_last = len(list(dataset.splits.values())[-1])
  size, n = config.data.image_size, len(sweep.members)
  epochs = plural(config.train.epochs, "epoch")
  epochs += f" ({why['epochs']})" if "epochs" in why else ""
  title = designs.segmentation(config.model).title
  lines = [
    f"{dataset.name}: {sizes} {many(n_last, 'frame')} of {size} x {size}, "
    f"{plural(len(dataset.classes), 'class')}",
    f"{plural(n, 'model')} ({title}, {millions:.1f} M parameters each), "
    f"{epochs}, {plural(steps, 'step')}",
    *(f"note: {note}" for note in dataset.notes),
  ]
  if (n := len(dataset.splits["validation"])) < FEW:
    lines.append(
      f"note: {'a single validation frame chooses' if n == 1 else f'{n} validation frames choose'} "
      "the best epochs, so there is much chance in them."
    )
  return "\n".join(lines)
