import json

import pytest

from lus_jax.benchmarks import throughput


@pytest.mark.slow
def test_every_strategy_is_measured_and_written(tmp_path, capsys):
  out = tmp_path / "figures.json"
  throughput.main(
    ["--size=32", "--batch=2", "--width=0.125", "--classes=2", "--thresholds", "2"]
    + ["--steps=1", f"--out={out}"]
  )
  rows = json.loads(out.read_text())["rows"]
  assert [(r["thresholds"], r["strategy"]) for r in rows] == [
    (2, "loop"),
    (2, "vmap"),
  ]
  for row in rows:
    images = row["batch"] * row["thresholds"]
    assert row["images_per_s"] == pytest.approx(1000 * images / row["ms_per_step"], rel=0.02)
    assert row["compile_s"] * 1000 > row["ms_per_step"]
  assert str(rows[0]["images_per_s"]) in capsys.readouterr().out
