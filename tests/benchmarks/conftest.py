"""Toy frames in place of the phantom's."""

import numpy as np
import pytest

from lus_jax.benchmarks import quality_data
from lus_jax.splits import SPLITS
from tests import compared


@pytest.fixture
def twelve(monkeypatch):
  """Twelve frames of six patients in place of the phantom's."""
  dataset = compared.make_dataset([f"p{i // 2}" for i in range(12)])
  own = dict(zip(SPLITS, np.split(np.arange(12), (6, 8)), strict=True))
  monkeypatch.setattr(quality_data, "opened", lambda config: (dataset, own))
  return dataset
