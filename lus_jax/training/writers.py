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
  # Without clu's own logging writer: the progress bar and the tables say it better.
  return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(directory))])


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
  """Writes the test results of every member: what TensorBoard compares runs by.

  Args:
    writer: of `create_writer`.
    step: the last training step.
    summaries: results by member.
    thresholds: of the members that have one, by name; each metric is also written as a curve over
      them, with the threshold in percent in place of the step. Of several seeds, the first one's.
  """
  for metric in ("iou", "iou_at_best_cut", "dice", "weighted_ce", "ce", "trimap", "ece", "brier"):
    first = {threshold: name for name, threshold in reversed(thresholds.items())}
    # Steps have to rise.
    for threshold, name in sorted(first.items()):
      if summaries[name].get(metric) is not None:
        percent, value = round(100 * threshold), summaries[name][metric]
        writer.write_scalars(percent, {f"test_over_thresholds/{metric}": value})
    writer.write_scalars(
      step,
      {
        f"test_{metric}/{name}": summary[metric]
        for name, summary in summaries.items()
        if summary.get(metric) is not None
      },
    )
  writer.flush()
