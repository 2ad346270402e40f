"""What a progress bar shows of rate and time."""

import io

from lus_jax import progress


def test_compilation_counts_neither_in_rate_nor_in_time_left(monkeypatch):
  clock = [1000.0]
  monkeypatch.setattr(progress.time, "time", lambda: clock[0])
  shown = progress.bar(total=10, unit="step", what="training", initial=4)
  shown.fp = io.StringIO()
  shown._time = progress.time.time
  with shown:
    clock[0] += 100  # seconds of compilation
    progress.restart(shown)
    clock[0] += 6
    shown.update(3)
    found = shown.format_dict
  # 3 steps in 6 s, and 3 are left.
  assert (found["n"], found["initial"], found["elapsed"]) == (7, 4, 6)
  text = shown.format_meter(**found | {"rate": None, "colour": None, "ascii": True})
  assert "[00:06<00:06" in text
