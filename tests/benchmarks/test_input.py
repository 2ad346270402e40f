import json
from concurrent import futures

import numpy as np
import pytest

from lus_jax.benchmarks import input as input_benchmark
from lus_jax.benchmarks import memory

SIZE, BATCH, SCALES = 32, 2, (1, 2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  directory = tmp_path_factory.mktemp("input")
  with pytest.MonkeyPatch.context() as patch:
    # As few as there can be: one a split.
    patch.setattr(input_benchmark, "FRAME_PATIENTS", 4)
    patch.setattr(input_benchmark, "N_FRAMES", 2)
    patch.setattr(input_benchmark, "PIECE", 2)
    yield directory, input_benchmark.prepare(directory, size=SIZE, scales=SCALES)


@pytest.mark.parametrize("cache", ["device", "stream"])
@pytest.mark.parametrize("what", ["frames", "clips"])
def test_a_larger_scale_is_more_data(prepared, what, cache):
  found = [
    input_benchmark.measure(
      *prepared, what, size=SIZE, batch=BATCH, cache=cache, scale=scale, pieces=3
    )
    for scale in SCALES
  ]
  n = [result["examples"] for result in found]
  # Patients have between three and twelve views of a frame each; clips are the same ones again.
  assert n[1] == 2 * n[0] if what == "clips" else n[1] > 1.3 * n[0]
  for result in found:
    assert len(result["seconds"]) == 3 and min(result["seconds"]) > 0
    assert result["memory_bytes"] < result["rss_bytes"] < 64 * 2**30


def test_clips_are_stored_as_the_video_tasks_read_them(prepared):
  directory, n_frames = prepared
  once, twice = (
    [np.load(input_benchmark.file(directory, scale, i)) for i in range(3)] for scale in SCALES
  )
  assert [x.shape for x in once] == [(n_frames.sum(), SIZE, SIZE, k) for k in (1, 6, 6)]
  for a, b in zip(once, twice, strict=True):
    assert a.any() and np.array_equal(b, np.concatenate([a, a]))


def test_memory_that_a_process_takes_is_its_own():
  before = memory.of_process("RssAnon")[0]
  if before is None:
    pytest.skip("needs /proc")
  block = np.ones(64 * 2**20, np.uint8)
  assert 60 * 2**20 < memory.of_process("RssAnon")[0] - before < 90 * 2**20
  del block


def test_everything_is_measured_and_compared_with_the_first_scale(tmp_path, monkeypatch, capsys):
  # A process each time would take seconds; what it finds is tested above.
  monkeypatch.setattr(
    input_benchmark.futures, "ProcessPoolExecutor", lambda n, **_: futures.ThreadPoolExecutor(n)
  )
  monkeypatch.setattr(input_benchmark, "prepare", lambda directory, **_: None)
  calls = []

  def measure(directory, n_frames, what, *, cache, scale, **_):
    calls.append((what, cache, scale))
    second = len(calls) > 8
    return {
      "device": "cpu",
      "examples": 5 * scale,
      "seconds": [0.004 * scale] * 3 if second else [0.001] * 2,
      "memory_bytes": (100 if second else 300) * scale,
      "rss_bytes": 1000,
    }

  monkeypatch.setattr(input_benchmark, "measure", measure)
  out = tmp_path / "input.json"
  input_benchmark.main(["--scales", "1", "10", f"--out={out}"])
  rows = json.loads(out.read_text())["rows"]
  assert calls == [(r["what"], r["cache"], r["scale"]) for r in rows] * 2
  assert len(rows) == 8 and len(set(calls)) == 8
  for row in rows:
    scale = row["scale"]
    # The median of five pieces; the mean of two rounds.
    assert row["ms_per_example"] == 4 * scale
    assert row["examples_per_s"] == pytest.approx(250 / scale)
    assert (row["memory_bytes"], row["rss_bytes"]) == (200 * scale, 1000)
    ratios = row["time_to_first"], row["memory_to_first"], row["rss_to_first"]
    assert ratios == (scale, scale, 1)
  assert "| clips | stream | 10x | 50 |" in capsys.readouterr().out
