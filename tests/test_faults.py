"""The harness of tests/faults itself: what it breaks is broken, and is broken alike every time."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.faults import fuzz, mutate


def png():
  buffer = io.BytesIO()
  Image.fromarray(fuzz.picture(0)).save(buffer, "PNG")
  return buffer.getvalue()


def archive():
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as file:
    file.writestr("a", b"x" * 300)
  return buffer.getvalue()


def npy():
  buffer = io.BytesIO()
  np.save(buffer, fuzz.picture(0))
  return buffer.getvalue()


SOUND = {
  mutate.png_inside: png,
  mutate.gzip_inside: lambda: gzip.compress(b"x" * 300),
  mutate.zip_inside: archive,
  mutate.npy_header: npy,
  mutate.json_tree: lambda: json.dumps({"a": [1, 2, {"b": "c"}]}).encode(),
  mutate.csv_cell: lambda: b"video,patient\na,b\nc,d\n",
}


@pytest.mark.parametrize(
  "mutator", [*mutate.BYTES, *SOUND], ids=lambda mutator: mutator.__name__.lstrip("_")
)
def test_mutators_break_and_repeat(mutator):
  data = SOUND.get(mutator, png)()
  broken = [mutator(np.random.default_rng(seed), data) for seed in (*range(20), *range(20))]
  assert broken[:10] == broken[20:30]
  # A swap with itself, a zero over zeros: a few leave the file as it was.
  assert sum(one != data for one in broken) > 20


def test_every_reader_has_its_share():
  names = fuzz.plan()
  total = sum(reader.weight for reader in fuzz.READERS.values())
  assert len(names) == fuzz.CASES == 2000
  for name, reader in fuzz.READERS.items():
    assert abs(names.count(name) - fuzz.CASES * reader.weight / total) <= 1, name
  assert set(names[:100]) == set(fuzz.READERS)
