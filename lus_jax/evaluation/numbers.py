"""Plain arithmetic of metrics: ratios and means that can be undefined, and their JSON."""

import numpy as np


def ratio(numerator, denominator):
  """numerator / denominator in float64, NaN where the denominator is 0."""
  numerator, denominator = np.broadcast_arrays(
    np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
  )
  nan = np.full(numerator.shape, np.nan)
  return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def defined_mean(values, axis=None):
  """Mean of what is not NaN; NaN where all is."""
  defined = ~np.isnan(values)
  return ratio(np.where(defined, values, 0).sum(axis), defined.sum(axis))


def number(value):
  """A float for JSON: None where undefined."""
  return None if np.isnan(value) else float(value)


def by_name(classes, values):
  """K values for JSON, by the name of their class."""
  return {name: number(value) for name, value in zip(classes, values, strict=True)}
