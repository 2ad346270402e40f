import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import logging

from lus_jax import notices, pool
from lus_jax.errors import UserError


def square(factor, x):
  # The later an item, the sooner it is done.
  time.sleep(0.02 * (3 - x % 4))
  return factor * x * x


def rows(n):
  for i in range(n):
    yield np.full(1000, 10 * n + i, np.uint8)


def speaks(x):
  if x % 2:
    notices.warn("%s is odd: %s", f"/data/{x}", x)
  logging.warning("saw %d", x)
  return x


def fails(x):
  if x == 3:
    raise UserError("data/3.png is damaged; save it again.")
  if x == 5:
    raise OSError(28, "No space left on device", "file")
  return x


def stops(x):
  if x == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return os.getpid()


def waits(x):
  time.sleep(60 * (x > 1))
  return os.getpid()


def is_there(pid):
  try:
    # A zombie is gone, but for the one who has to take note of it.
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
  except OSError:
    return False


def gone(pid, seconds=5):
  end = time.monotonic() + seconds
  while is_there(pid) and time.monotonic() < end:
    time.sleep(0.02)
  return not is_there(pid)


def test_results_come_in_the_items_order_whatever_the_number_of_processes():
  expected = [3 * x * x for x in range(9)]
  for n in (0, 1, 2):
    function = functools.partial(square, 3)
    assert list(pool.ordered(function, range(9), num_processes=n)) == expected


def test_several_results_of_an_item_come_one_by_one(monkeypatch):
  # Room for one result that waits for its turn.
  monkeypatch.setattr(pool, "MAX_WAITING", 1200)
  found = [int(row[0]) for row in pool.chained(rows, [3, 0, 5, 4], num_processes=2)]
  assert found == [30, 31, 32, 50, 51, 52, 53, 54, 40, 41, 42, 43]


def test_items_are_not_gone_through_ahead_of_need():
  taken = []

  def items():
    for i in range(1000):
      taken.append(i)
      yield i

  results = pool.ordered(fails, items(), num_processes=2)
  assert next(results) == 0
  assert len(taken) <= 9
  results.close()


def test_warnings_reach_the_parent_in_their_order(caplog):
  for n in (1, 2):
    caplog.clear()
    with notices.collected():
      assert list(pool.ordered(speaks, range(4), num_processes=n)) == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
      *(f"saw {i}" for i in range(4)),
      "/data/1 and 1 more is odd: 1",
    ], n


def test_an_exception_reaches_the_parent_after_the_results_before_it():
  for n in (1, 2):
    results = pool.ordered(fails, range(9), num_processes=n)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="^data/3.png is damaged; save it again.$"):
      next(results)
  with pytest.raises(OSError, match="No space left") as caught:
    list(pool.ordered(fails, [0, 5, 1], num_processes=2))
  assert caught.value.errno == 28
  assert "in fails" in caught.value.__notes__[0]


def test_what_the_items_raise_comes_in_its_place():
  def items():
    yield from (0, 1, 2)
    raise UserError("row 4: video is empty")

  for n in (1, 2):
    results = pool.ordered(fails, items(), num_processes=n)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="row 4"):
      next(results)


def test_a_killed_worker_is_one_clear_error():
  with pytest.raises(UserError, match="killed by SIGKILL.* as --config.x=1, and repeat"):
    list(pool.ordered(stops, range(9), num_processes=2, option="--config.x"))
  with pytest.raises(UserError, match="--num-processes: -1 must be at least 1"):
    pool.ordered(stops, range(9), num_processes=-1)


def test_what_is_not_importable_is_told():
  with pytest.raises(Exception, match="nowhere"):
    list(pool.ordered(_Nowhere(), range(4), num_processes=2))


class _Nowhere:
  def __reduce__(self):
    return (eval, ("__import__('nowhere')",))


def test_few_items_or_fast_ones_need_no_worker():
  assert set(pool.ordered(waits, [0, 1])) == {os.getpid()}
  assert set(pool.ordered(waits, [0], num_processes=8)) == {os.getpid()}


def test_what_takes_long_gets_workers_by_itself(monkeypatch):
  monkeypatch.setattr(pool, "ALONE", 0)
  monkeypatch.setattr(pool, "cpus", lambda: 2)
  assert os.getpid() not in set(pool.ordered(waits, [0, 1, 0, 1]))
  monkeypatch.setattr(pool, "cpus", lambda: 1)
  assert set(pool.ordered(waits, [0, 1, 0, 1])) == {os.getpid()}


def test_workers_end_when_nobody_asks_for_more():
  results = pool.ordered(waits, [0, 5, 5], num_processes=2)
  pid = next(results)
  assert is_there(pid)
  before = threading.active_count()
  results.close()
  assert not is_there(pid)
  assert threading.active_count() == before - 2


PARENT = """
import sys
sys.path[:0] = {path!r}
from lus_jax import pool
import test_pool
for pid in pool.ordered(test_pool.waits, [0, 1, 1, 9, 9, 9, 9], num_processes=2):
  print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(number):
  here = pathlib.Path(__file__).parent
  code = PARENT.format(path=[os.fspath(here), os.fspath(here.parent)])
  # No guard of `__main__`: workers do not run the script again.
  with subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as parent:
    pids = {int(parent.stdout.readline()) for _ in range(3)}
    time.sleep(0.2)  # they are busy now
    parent.send_signal(number)
    parent.communicate(timeout=120)
  assert pids and all(gone(pid) for pid in pids)
