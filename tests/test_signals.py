import os
import pathlib
import signal
import subprocess
import sys
import time
import weakref

import pytest

from lus_jax import signals

ROOT = pathlib.Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def send(number):
  os.kill(os.getpid(), number)
  time.sleep(0)  # the handler runs between two instructions


@BOTH
def test_a_signal_ends_the_run_at_once(number):
  before = signal.getsignal(number)
  with pytest.raises(signals.Stopped) as stopped, signals.handled(str):
    send(number)
    raise AssertionError
  assert stopped.value.number == number
  assert signals.exit_code(number) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
  assert signal.getsignal(number) is before and not signals.requested()


@BOTH
def test_a_run_that_looks_by_itself_is_let_be(number):
  seen = []
  with pytest.raises(signals.Stopped), signals.handled(str):
    with signals.deferred():
      send(number)
      seen.append(signals.requested())
    seen.append("never")
  assert seen == [True]


class Freed:
  pass


class FreedAloud(Freed):
  def __del__(self):
    send(signal.SIGINT)


@pytest.mark.parametrize("by_reference", [False, True])
def test_a_signal_while_memory_is_freed_is_not_lost(monkeypatch, by_reference):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  with pytest.raises(signals.Stopped), signals.handled(str):
    freed = Freed() if by_reference else FreedAloud()
    reference = weakref.ref(freed, lambda _: by_reference and send(signal.SIGINT))
    del freed
    time.sleep(10)
  assert reference() is None and not codes  # it was one Ctrl-C


def test_what_others_lose_is_said_by_whoever_says_it(monkeypatch):
  lost = []
  monkeypatch.setattr("sys.unraisablehook", lost.append)

  class Broken:
    def __del__(self):
      raise ValueError

  with signals.handled(str):
    Broken()
  assert [one.exc_type for one in lost] == [ValueError] and sys.unraisablehook == lost.append


def test_what_takes_long_within_is_stopped_at_once():
  seen = []
  with pytest.raises(signals.Stopped) as stopped, signals.handled(str), signals.deferred():
    try:
      with signals.at_once():
        send(signal.SIGTERM)
        seen.append("never")
    except signals.Stopped:
      seen.append("saved")
      signals.stop("kept")
  assert seen == ["saved"] and stopped.value.kept == "kept"
  with pytest.raises(signals.Stopped), signals.handled(str), signals.deferred():
    send(signal.SIGTERM)
    with signals.at_once():  # it was told before
      raise AssertionError


def test_a_step_that_never_ends_is_left_in_time(monkeypatch, capfd):
  codes = []

  monkeypatch.setattr(os, "_exit", codes.append)
  handled = signals.handled(lambda: "Kept: all.", grace=0.2)
  with pytest.raises(signals.Stopped), handled, signals.deferred():
    send(signal.SIGTERM)
    begun = time.monotonic()
    while not codes and time.monotonic() < begun + 10:
      time.sleep(0.01)
  assert codes == [143] and time.monotonic() - begun < 5
  assert "Stopped by SIGTERM" in (text := capfd.readouterr().err) and "Kept: all." in text


def test_a_second_interrupt_leaves_at_once(monkeypatch, capfd):
  codes = []

  monkeypatch.setattr(os, "_exit", codes.append)
  with pytest.raises(signals.Stopped), signals.handled(lambda: "Kept: all."), signals.deferred():
    send(signal.SIGINT)
    time.sleep(0.1)
    assert not codes
    send(signal.SIGINT)
    begun = time.monotonic()
    while not codes and time.monotonic() < begun + 10:
      time.sleep(0.01)
  assert codes == [130]
  text = capfd.readouterr().err
  assert "Ctrl-C again leaves at once" in text and "Kept: all." in text


def program(*argv, path=ROOT):
  paths = os.pathsep.join(map(os.fspath, (path, ROOT)))
  return subprocess.run(
    [sys.executable, *argv], env=os.environ | {"PYTHONPATH": paths}, capture_output=True
  )


BEGIN = "import os, time\nfrom lus_jax import signals\nsignals.leave_at_once()\n"


@BOTH
def test_outside_a_run_the_exit_code_is_the_same_and_there_is_no_traceback(number):
  found = program("-c", f"{BEGIN}os.kill(os.getpid(), {number:d})\ntime.sleep(20)")
  assert found.returncode == signals.exit_code(number)
  assert found.stderr.decode() == f"\nStopped by {number.name}: no run was under way.\n"


@BOTH
def test_what_comes_while_python_ends_does_not_change_the_exit_code(number):
  # The last object is freed when Python has forgotten its handlers.
  code = f"""
class Last:
  def __del__(self, kill=os.kill, pid=os.getpid()):
    print("freed", flush=True)
    kill(pid, {number:d})
last = Last()
raise SystemExit(2)"""
  found = program("-c", BEGIN + code)
  assert (found.returncode, found.stdout) == (2, b"freed\n")


@BOTH
def test_the_command_line_hears_before_its_imports(tmp_path, number):
  (tmp_path / "jax.py").write_text(f"import os\nos.kill(os.getpid(), {number:d})\n")
  found = program("-m", "lus_jax.main", path=tmp_path)
  assert found.returncode == signals.exit_code(number), found.stderr
