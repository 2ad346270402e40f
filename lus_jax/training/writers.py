"""Metric writers; the only file that imports clu's (and so TensorFlow)."""

import json
import os
import pathlib

import numpy as np
from absl import logging
from flax import traverse_util

from lus_jax import parallel

DIRECTORY = "tensorboard"


class JsonLinesWriter:
  """Stands in for clu's writers where TensorFlow is not installed: one JSON object a line."""

  def __init__(self, file):
    self._file = open(file, "a")  # noqa: SIM115

  def write_scalars(self, step, scalars):
    """Writes numbers by name."""
    values = {name: float(np.asarray(value)) for name, value in scalars.items()}
    self._file.write(json.dumps({"step": int(step), **values}) + "\n")

  def write_members(self, step, scalars):
    """Writes numbers by name and member."""
    self.write_scalars(
      step, {f"{tag}/{name}": x for tag, each in scalars.items() for name, x in each.items()}
    )

  def write_images(self, step, images):
    """Leaves pictures out: lines of text cannot show them."""

  def write_texts(self, step, texts):
    """Writes texts by name."""
    self._file.write(json.dumps({"step": int(step), **texts}) + "\n")

  def write_hparams(self, hparams):
    """Writes the run's settings."""
    self._file.write(json.dumps({"hparams": hparams}) + "\n")

  def flush(self):
    """Puts what was written on disk."""
    self._file.flush()

  def close(self):
    """Closes the file."""
    self._file.close()


class TensorBoardWriter:
  """Writes what all members share into one run of TensorBoard, and each member into its own.

  TensorBoard draws the same name of several runs into one chart.

  Args:
    directory: of the run; its members' are in it.
    metric_writers: clu's module.
  """

  def __init__(self, directory, metric_writers):
    self._directory, self._create = directory, metric_writers.SummaryWriter
    # Without clu's own logging writer: the progress bar and the tables say it better.
    self._shared = metric_writers.AsyncMultiWriter([self._create(str(directory))])
    self.write_scalars, self.write_images = self._shared.write_scalars, self._shared.write_images
    self.write_texts, self.write_hparams = self._shared.write_texts, self._shared.write_hparams
    self._members = {}

  def write_members(self, step, scalars):
    """Writes numbers by name and member."""
    by_member = {}
    for tag, each in scalars.items():
      for name, value in each.items():
        by_member.setdefault(name, {})[tag] = value
    for name, values in by_member.items():
      if name not in self._members:
        self._members[name] = self._create(str(self._directory / name))
      self._members[name].write_scalars(step, values)

  def flush(self):
    """Puts what was written on disk."""
    for writer in (self._shared, *self._members.values()):
      writer.flush()

  def close(self):
    """Closes the files."""
    for writer in (self._shared, *self._members.values()):
      writer.close()


def create_writer(workdir):
  """The run's metric writer: TensorBoard by clu, or JSON lines where TensorFlow is missing.

  Of several processes only the main one's writes.
  """
  if not parallel.is_main():
    return JsonLinesWriter(os.devnull)
  directory = pathlib.Path(workdir) / DIRECTORY
  # TensorFlow only writes files here; this keeps its greeting off the terminal.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  try:
    from clu import metric_writers
  except ImportError as error:
    logging.warning("No TensorBoard (%s): metrics go to %s/metrics.jsonl.", error, directory)
    directory.mkdir(parents=True, exist_ok=True)
    return JsonLinesWriter(directory / "metrics.jsonl")
  logger = logging.get_absl_logger()
  if _quiet not in logger.filters:
    logger.addFilter(_quiet)
  # Under the run's own name, which is what TensorBoard calls it.
  return TensorBoardWriter(directory / pathlib.Path(workdir).absolute().name, metric_writers)


def _quiet(record):
  # It prints, with a traceback, what it raises too.
  return not (record.exc_info and "clu" in pathlib.Path(record.pathname).parts)


def write_overview(writer, settings, params):
  """Writes the run's settings as hyperparameters and a table of the network's parameters.

  Args:
    writer: of `create_writer`.
    settings: the config as nested dicts.
    params: one member's weights.
  """
  flat = traverse_util.flatten_dict(settings, sep=".")
  # TensorBoard knows numbers and texts only.
  writer.write_hparams(
    {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat.items()}
  )
  try:
    from clu import parameter_overview
  except ImportError:
    return
  overview = parameter_overview.get_parameter_overview(params, include_stats=False)
  writer.write_texts(0, {"parameters": f"```\n{overview}\n```"})


def write_final(writer, step, summaries, thresholds):
  """Writes the test results of every member.

  Args:
    writer: of `create_writer`.
    step: the last training step.
    summaries: results by member.
    thresholds: of the members that have one, by name; each metric is also written as a curve over
      them, with the threshold in percent in place of the step. Of several seeds, the first one's.
  """
  metrics = ("iou", "iou_at_best_cut", "dice", "weighted_ce", "ce", "trimap", "ece", "brier")
  first = {threshold: name for name, threshold in reversed(thresholds.items())}
  for metric in metrics if len(first) > 1 else ():
    # Steps have to rise.
    for threshold, name in sorted(first.items()):
      if summaries[name].get(metric) is not None:
        percent, value = round(100 * threshold), summaries[name][metric]
        writer.write_scalars(percent, {f"test_over_thresholds/{metric}": value})
  write_table(writer, step, summaries, metrics)


def write_table(writer, step, summaries, metrics):
  """Writes test results as a table: numbers of one step would be a chart each.

  Args:
    writer: of `create_writer`.
    step: the last training step.
    summaries: results by member.
    metrics: those that are shown.
  """
  lines = [["member", *metrics], ["---"] * (1 + len(metrics))]
  for name, summary in summaries.items():
    values = [summary.get(metric) for metric in metrics]
    lines.append([name, *("-" if value is None else f"{value:.4g}" for value in values)])
  table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  writer.write_texts(step, {"test": table})
  writer.flush()
