import os
import time
from concurrent import futures

import pytest

from lus_jax.benchmarks import processes
from lus_jax.errors import UserError


class Adder:
  """What a worker holds."""

  def __init__(self, first):
    self.first = first

  def add(self, second):
    return self.first + second

  def variable(self):
    return os.environ.get("LUS_JAX_TEST")

  def fail(self, how):
    if how == "abort":
      os.write(2, b"F0000 x.cc:1] Check failed: a == b (1 vs 2)\n*** Check failure stack trace:\n")
      os.abort()
    if how == "sleep":
      time.sleep(60)
    raise {
      "memory": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
      "user": UserError("use a smaller --batch."),
      "bug": KeyError("x"),
    }[how]


def test_a_worker_holds_what_it_made_and_has_its_own_environment():
  worker = processes.Apart(Adder, 3, environment={"LUS_JAX_TEST": "yes"})
  try:
    assert [worker.ask("add", i) for i in (1, 2)] == [4, 5]
    assert worker.ask("variable") == "yes" and "LUS_JAX_TEST" not in os.environ
  finally:
    worker.stop()
  assert processes.call(max, 3, 4) == 4


@pytest.mark.parametrize(
  ("how", "reason", "out_of_memory", "expected"),
  [
    ("abort", "the process ended by SIGABRT: F0000 x.cc:1] Check failed: a == b", False, False),
    ("memory", "out of memory", True, True),
    ("user", "use a smaller --batch.", False, True),
    ("bug", "KeyError: 'x'", False, False),
    ("sleep", "took more than 0.5 s", False, False),
  ],
)
def test_what_ends_a_worker_is_a_reason(how, reason, out_of_memory, expected, capsys):
  worker = processes.Apart(Adder, 3)
  worker.limit = 0.5 if how == "sleep" else 60
  with pytest.raises(processes.Failed) as failed:
    worker.ask("fail", how)
  assert failed.value.reason.startswith(reason)
  assert (failed.value.out_of_memory, failed.value.expected) == (out_of_memory, expected)
  # Where something of ours is broken, its traceback is there.
  assert ("raise {" in capsys.readouterr().err) == (how == "bug")


def test_without_a_process_what_is_broken_keeps_its_traceback():
  here = processes.Here(Adder, 3)
  assert here.ask("add", 1) == 4
  with pytest.raises(KeyError):
    here.ask("fail", "bug")
  with pytest.raises(processes.Failed, match="out of memory"):
    here.ask("fail", "memory")


def test_workers_that_start_at_once_keep_their_environments_apart():
  wanted = ["yes", None] * 3
  with futures.ThreadPoolExecutor(len(wanted)) as pool:
    started = [
      pool.submit(processes.Apart, Adder, 0, environment={"LUS_JAX_TEST": value})
      for value in wanted
    ]
    workers = [of.result() for of in started]
  try:
    assert [worker.ask("variable") for worker in workers] == wanted
    assert "LUS_JAX_TEST" not in os.environ
  finally:
    for worker in workers:
      worker.stop()
