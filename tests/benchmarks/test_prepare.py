import json
from concurrent import futures

import pytest

from lus_jax.benchmarks import prepare


def test_a_folder_is_prepared_by_several_processes(tmp_path):
  prepare.write_folder(tmp_path / "folder", 30)
  found = prepare.measure(tmp_path / "folder", "frames", size=32, processes=2)
  assert found["examples"] == 30 and found["seconds"] > 0
  if found["memory_bytes"] is None:
    pytest.skip("needs /proc")
  # Workers know neither jax nor TensorFlow.
  assert 2**20 < found["worker_bytes"] < 150 * 2**20
  assert found["worker_bytes"] < found["memory_bytes"] < 64 * 2**30


def test_everything_is_measured_and_compared_with_the_first_scale(tmp_path, monkeypatch, capsys):
  # A process each time would take seconds; what it finds is tested above.
  monkeypatch.setattr(
    prepare.futures, "ProcessPoolExecutor", lambda n, **_: futures.ThreadPoolExecutor(n)
  )
  monkeypatch.setattr(prepare, "write_folder", lambda directory, n: None)
  calls = []

  def measure(folder, kind, *, size, processes):
    scale = int(folder.name)
    calls.append((kind, processes, scale))
    second = len(calls) > 8
    return {
      "examples": 50 * scale,
      "seconds": (3 if second else 1) * scale / processes,
      "memory_bytes": (90 if second else 100) * 2**20,
      "worker_bytes": scale * 2**20 if processes > 1 else None,
    }

  monkeypatch.setattr(prepare, "measure", measure)
  out = tmp_path / "prepare.json"
  prepare.main(["--clips", "50", f"--out={out}"])
  rows = json.loads(out.read_text())["rows"]
  assert calls == [(r["what"], r["processes"], r["scale"]) for r in rows] * 2
  assert len(rows) == 8 and len(set(calls)) == 8
  for row in rows:
    n, scale = row["processes"], row["scale"]
    # The median of two rounds, and the most memory.
    assert (row["seconds"], row["examples_per_s"]) == (2 * scale / n, 25 * n)
    assert (row["memory_bytes"], row["memory_to_first"]) == (100 * 2**20, 1)
    assert row["worker_to_first"] == (scale if n > 1 else None)
    assert row["time_to_first"] == 1
  printed = capsys.readouterr().out
  assert "| videos | 2 | 10x | 500 | 10.0 | 50.0 | 100 | 10 | 1.00 | 1.00 | 10.00 |" in printed
  assert "| frames | 1 | 1x | 50 | 2.0 | 25.0 | 100 |  | 1.00 | 1.00 |  |" in printed
