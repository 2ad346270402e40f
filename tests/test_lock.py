import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from lus_jax import lock
from lus_jax.errors import UserError

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held(directory, host=None):
  """Another one's lock: locks of one process through two files exclude each other too."""
  fd = os.open(directory / lock.NAME, os.O_RDWR | os.O_CREAT)
  fcntl.flock(fd, fcntl.LOCK_EX)
  content = {"pid": 123, "host": host or "node7", "since": "today", "command": "main.py --x"}
  os.write(fd, json.dumps(content).encode())
  yield
  os.close(fd)


def test_a_directory_in_use_is_refused_naming_the_process(tmp_path):
  with held(tmp_path):
    with pytest.raises(UserError) as error, lock.hold(tmp_path):
      pass
    assert f"{tmp_path} is in use by process 123 on node7 (since today: main.py --x)" in str(
      error.value
    )
    assert "\n" not in str(error.value) and (tmp_path / lock.NAME).exists()


def test_a_lock_says_who_holds_it_and_goes_with_what_it_made(tmp_path):
  directory = tmp_path / "a" / "b"
  with lock.hold(directory):
    content = json.loads((directory / lock.NAME).read_text())
    assert (content["pid"], content["host"]) == (os.getpid(), socket.gethostname())
    assert content["command"] and content["since"]
    # A run within a run.
    with lock.hold(directory):
      pass
    assert (directory / lock.NAME).exists()
  assert list(tmp_path.iterdir()) == []
  with lock.hold(directory):
    (directory / "result").touch()
  assert [p.name for p in directory.iterdir()] == ["result"]


def test_a_lock_ends_with_its_process(tmp_path):
  file = tmp_path / lock.NAME
  process = subprocess.Popen([sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE)
  assert process.stdout.readline() == b"held\n"
  with pytest.raises(UserError, match="in use by another process"), lock.hold(tmp_path):
    pass
  process.kill()
  process.communicate()
  with lock.hold(tmp_path):
    pass


def test_it_waits_where_it_is_told_to(tmp_path, capsys):
  stack = contextlib.ExitStack()
  stack.enter_context(held(tmp_path))
  threading.Timer(0.3, stack.close).start()
  begun = time.monotonic()
  with lock.hold(tmp_path, wait="prepares the same data there"):
    assert time.monotonic() - begun > 0.2
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 1 and printed[0].endswith(", which prepares the same data there")
  assert printed[0].startswith("waiting for process 123 on node7")


def test_a_lock_that_another_machine_left_is_a_warning(tmp_path, caplog):
  with held(tmp_path):
    pass
  with lock.hold(tmp_path):
    pass
  (message,) = caplog.messages
  assert "process 123 on node7" in message and "has not given its lock back" in message
  caplog.clear()
  with held(tmp_path, host=socket.gethostname()):  # the kernel knows that it is dead
    pass
  with lock.hold(tmp_path):
    pass
  assert not caplog.messages


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
  def none(*args):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", none)
  with lock.hold(tmp_path):
    pass
  (message,) = caplog.messages
  assert "has no locks" in message


def test_a_read_only_disk_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(os, "open", refuse)
  message = r"cannot be used \(Read-only file system\)"
  with pytest.raises(UserError, match=message), lock.hold(tmp_path / "new"):
    pass
  monkeypatch.undo()
  assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_say_whose_it_is_is_given_back(tmp_path, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  directory = tmp_path / "a"
  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"a cannot be used \(No space left"), lock.hold(directory):
      pass
  assert not directory.exists()
  directory.mkdir()
  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", full)
    with pytest.raises(UserError), lock.hold(directory):
      pass
  assert not list(directory.iterdir())
  with lock.hold(directory):  # nobody has it
    assert (directory / lock.NAME).exists()
