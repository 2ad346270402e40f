"""What a run does when it is told to stop: Ctrl-C, and SIGTERM, which clusters send.

Within `handled`, either ends the run by `Stopped`: at once, or, within `deferred`, where the run
itself asks `requested` and saves first. Python hears of a signal only between two of its own
instructions, which a compilation or a full disk can hold off for minutes. So a thread watches too:
it ends the process `GRACE` seconds after SIGTERM, and at a second Ctrl-C. Outside `handled` a
program has nothing to save: after `leave_at_once` either ends it there with the same exit codes.
"""

import atexit
import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time

# Clusters kill 30 s after SIGTERM.
GRACE = 25
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
  """The process was told to stop.

  Attributes:
    number: of the signal.
    kept: a sentence on what was saved; empty where nothing was saved on this occasion.
  """

  def __init__(self, number, kept=""):
    super().__init__(kept)
    self.number, self.kept = number, kept


class _State:
  def __init__(self):
    self.number, self.depth, self.repeated = None, 0, False


_state = _State()


def requested():
  """Whether the process was told to stop."""
  return _state.number is not None


def exit_code(number):
  """The exit code after a signal, as shells count: 130 after Ctrl-C, 143 after SIGTERM."""
  return 128 + number


def stop(kept=""):
  """Ends the run that was told to stop (`Stopped`)."""
  raise Stopped(_state.number or signal.SIGTERM, kept)


def leave_at_once():
  """From here on, outside `handled`, either signal ends the process; for a program's first line."""
  for number in _NUMBERS:
    signal.signal(number, _leave_at_once)
  # Near its end Python forgets handlers: a signal would take the place of the exit code. What is
  # registered first is called last.
  atexit.register(_ignore)


def _leave_at_once(number, frame):
  _say(f"Stopped by {signal.Signals(number).name}: no run was under way.")
  os._exit(exit_code(number))


def _ignore():
  for number in _NUMBERS:
    signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred():
  """Within it, the run looks at `requested` by itself; at its end a request is obeyed."""
  _state.depth += 1
  try:
    yield
  finally:
    _state.depth -= 1
  if _state.number is not None and not _state.depth:
    stop()


@contextlib.contextmanager
def at_once():
  """Within it, inside `deferred`, a request is obeyed at once."""
  depth, _state.depth = _state.depth, 0
  try:
    if _state.number is not None:
      stop()
    yield
  finally:
    _state.depth = depth


def _heard(number, frame):
  _state.number = number
  if not _state.depth:
    stop()


def _lost(unraisable, otherwise):
  """Sends a signal again whose `Stopped` was raised where Python drops exceptions.

  That is in what it calls when it frees memory: `__del__`, callbacks of weak references and of the
  collector.
  """
  if isinstance(unraisable.exc_value, Stopped):
    _state.repeated = True
    threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
  else:
    otherwise(unraisable)


@contextlib.contextmanager
def handled(kept, *, grace=GRACE):
  """Within it, SIGTERM and Ctrl-C end the run in order. For the main thread.

  Args:
    kept: `() -> a sentence on what is saved`, for when the process has to be ended from outside.
    grace: seconds that SIGTERM leaves it.
  """
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  watch = threading.Thread(target=_watch, args=(reader, kept, grace), daemon=True)
  before = {number: signal.signal(number, _heard) for number in _NUMBERS}
  descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  hook = sys.unraisablehook
  sys.unraisablehook = functools.partial(_lost, otherwise=hook)
  watch.start()
  try:
    yield
  finally:
    sys.unraisablehook = hook
    signal.set_wakeup_fd(descriptor)
    for number, handler in before.items():
      signal.signal(number, handler)
    _state.number = None
    writer.close()
    watch.join()
    reader.close()


def _interrupt(number, frame):
  raise KeyboardInterrupt


@contextlib.contextmanager
def interrupting():
  """Within it, SIGTERM and SIGHUP end what is done as Ctrl-C does: for commands without a run."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  # Windows has no SIGHUP.
  numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
  before = {number: signal.signal(number, _interrupt) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _watch(reader, kept, grace):
  # Python writes the number of each signal there, whatever the main thread is doing.
  interrupts, end = 0, None
  while True:
    reader.settimeout(None if end is None else max(end - time.monotonic(), 0.01))
    try:
      heard = reader.recv(1)
    except TimeoutError:
      text = f"Stopped by SIGTERM, after {grace} s of waiting for this step."
      return _leave(signal.SIGTERM, text, kept)
    if not heard:
      return
    if _state.repeated:
      _state.repeated = False
    elif heard[0] == signal.SIGTERM:
      end = end or time.monotonic() + grace
    elif heard[0] == signal.SIGINT:
      interrupts += 1
      if interrupts > 1:
        return _leave(signal.SIGINT, "Interrupted twice: left at once.", kept)
      _say("Stopping; Ctrl-C again leaves at once.")


def _say(text):
  # Whoever has Python's own stream may be waiting in it.
  with contextlib.suppress(OSError):
    os.write(2, f"\n{text}\n".encode())


def _leave(number, text, kept):
  _say(f"{text} {kept()}")
  os._exit(exit_code(number))
