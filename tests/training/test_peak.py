import itertools

from lus_jax.training import peak


def test_the_rate_is_the_work_of_a_product_over_its_time(monkeypatch):
  # A clock that goes on a hundredth of a second whenever it is read.
  clock = itertools.count(0, 0.01)
  monkeypatch.setattr(peak.time, "perf_counter", lambda: next(clock))
  size, queued = 16, 3
  monkeypatch.setattr(peak, "CPU", (size, queued))
  assert abs(peak.matmul_rate("float32") / (2 * size**3 * queued / 0.01) - 1) < 1e-6
  assert peak.matmul_rate("bfloat16") > 0
