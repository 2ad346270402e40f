import os
import signal
import threading
import time

import pytest

from lus_jax import ahead


def test_a_thread_makes_one_item_ahead_and_hands_on_its_exceptions():
  made, second = [], threading.Event()

  def items():
    for i in range(4):
      if i == 3:
        raise OSError("damaged")
      made.append((i, threading.current_thread() is threading.main_thread()))
      if i == 1:
        second.set()
      yield i

  found = ahead.in_thread(items())
  assert next(found) == 0
  assert second.wait(10) and [i for i, _ in made] == [0, 1]
  assert [next(found), next(found)] == [1, 2]
  with pytest.raises(OSError, match="damaged"):
    next(found)
  assert not any(in_main for _, in_main in made)


def test_who_leaves_early_leaves_no_thread_behind():
  before = threading.active_count()
  for i in ahead.in_thread(iter(range(100))):
    if i == 2:
      break
  assert threading.active_count() == before


def test_an_item_is_handed_on_when_the_next_is_begun():
  begun = []

  def items():
    for i in range(3):
      begun.append(i)
      yield i

  assert [(i, len(begun)) for i in ahead.dispatched(items())] == [(0, 2), (1, 3), (2, 3)]
  assert list(ahead.dispatched([])) == []


def test_what_was_begun_is_handed_on_before_an_exception():
  def items():
    yield 0
    raise OSError("damaged")

  found = ahead.dispatched(items())
  assert next(found) == 0
  with pytest.raises(OSError, match="damaged"):
    next(found)


def test_ctrl_c_reaches_who_waits_for_a_thread():
  # A shell makes commands in the background deaf to it.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)

  def items():
    yield 0
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    yield 1

  try:
    with pytest.raises(KeyboardInterrupt):
      for _ in ahead.in_thread(items()):
        time.sleep(0.01)
  finally:
    signal.signal(signal.SIGINT, before)
