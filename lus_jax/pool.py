"""Work on many items in several processes: what comes of it, in the items' order.

Workers are fresh interpreters that know nothing but the function's module. They are not forked, as
jax and TensorFlow have threads, and they do not run the user's script once more, as those of
`multiprocessing` do. What a worker logs, warns of and raises reaches its parent in its place, so
that nothing but the time tells how many there were.
"""

import collections
import contextlib
import itertools
import logging as python_logging
import math
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback

from absl import logging

from lus_jax import notices
from lus_jax.errors import UserError

# More are seldom faster: what they make goes through this process.
MOST = 8
# Seconds that this process works alone where nobody said how many; a worker needs one to begin.
ALONE = 2
# Of results that wait for their turn; those of the item whose turn it is are always taken.
MAX_WAITING = 2**28
# Items that are begun for each worker before their turn.
_AHEAD = 4
_HEADER = struct.Struct("<?Q")
_END = object()


def cpus():
  """How many CPUs this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def ordered(function, items, *, num_processes=0, option="--num-processes"):
  """Calls a function with each item, in several processes; yields the results in the items' order.

  Close the generator, or leave it to its end: workers end with it, and with this process, however
  that ends. Memory holds a few items, whatever their number.

  Args:
    function: of a module (or a `functools.partial` of it); arguments and results can be pickled.
    items: an iterable, gone through as far as needed.
    num_processes: workers; 1: none, this process does it; 0: none either, and as many as there are
      CPUs, at most `MOST`, for what is left after `ALONE` seconds.
    option: what sets `num_processes`, for messages.

  Raises:
    UserError: `num_processes` is negative, or a worker was killed.
    Exception: what the function raised, once the results before it are through.
  """
  return chained(_Single(function), items, num_processes=num_processes, option=option)


def chained(function, items, *, num_processes=0, option="--num-processes"):
  """Like `ordered`, of a function that makes several results of an item, as a generator does.

  They are passed on one by one, so that an item may be large.
  """
  if num_processes < 0:
    raise UserError(
      f"{option}: {num_processes} must be at least 1, or 0 for as many as are of use."
    )
  return _chained(function, iter(items), num_processes, option)


def _chained(function, items, n, option):
  n = n or (1 if cpus() == 1 else 0)
  alone = {0: time.monotonic() + ALONE, 1: math.inf}.get(n, 0)
  while time.monotonic() < alone:
    item = next(items, _END)
    if item is _END:
      return
    yield from function(item)
  first = list(itertools.islice(items, 2))
  if len(first) < 2:  # which take no less time elsewhere
    for item in first:
      yield from function(item)
    return
  crew = _Crew(option)
  try:
    crew.start(function, n or min(cpus(), MOST))
    yield from crew.work(itertools.chain(first, items))
  finally:
    crew.close()


class _Single:
  """A function of one result as one of several."""

  def __init__(self, function):
    self._function = function

  def __call__(self, item):
    yield self._function(item)


class _Crew:
  """Workers, and for each a thread that waits for it."""

  def __init__(self, option):
    self._option = option
    self._tasks = queue.SimpleQueue()
    # Guards what follows.
    self._changed = threading.Condition()
    self._turn, self._waiting, self._closed = 0, 0, False
    # What there is of each item that was begun, as it came.
    self._made = collections.defaultdict(collections.deque)
    self._workers, self._threads = [], []

  def start(self, function, n):
    """Starts n workers."""
    function = pickle.dumps(function)
    for _ in range(n):
      self._workers.append(worker := _start())
      self._threads.append(
        threading.Thread(target=self._attend, args=(worker, function), daemon=True)
      )
      self._threads[-1].start()

  def work(self, items):
    """Yields what comes of each item; what `items` raises comes in its place too."""
    begun, failure = 0, None
    while True:
      try:
        while failure is None and begun < self._turn + _AHEAD * len(self._workers):
          item = next(items, _END)
          if item is _END:
            break
          self._tasks.put((begun, pickle.dumps(item)))
          begun += 1
      except Exception as error:
        failure = error
      if self._turn == begun:
        break
      while (result := self._next()) is not _END:
        yield result
    if failure is not None:
      raise failure

  def _next(self):
    """The next result of the item whose turn it is; `_END` after its last."""
    with self._changed:
      made = self._made[self._turn]
      self._changed.wait_for(lambda: made)
      last, content = made.popleft()
      self._waiting -= len(content)
      if last:
        del self._made[self._turn]
        self._turn += 1
      self._changed.notify_all()
    said, warned, result, error = pickle.loads(content)
    for is_error, text in said:
      (logging.error if is_error else logging.warning)("%s", text)
    for warning in warned:
      notices.warn(*warning)
    if error is not None:
      raise error
    return _END if last else result

  def _attend(self, worker, function):
    """Brings items to a worker and fetches what it makes of them; in a thread."""
    number = None
    try:
      _send(worker.stdin, function)
      while (task := self._tasks.get()) is not None:
        number, item = task
        _send(worker.stdin, item)
        last = False
        while not last:
          last, size = _HEADER.unpack(_read(worker.stdout, _HEADER.size))
          with self._changed:
            self._changed.wait_for(lambda size=size, number=number: self._has_room(number, size))
            self._waiting += size
          content = _read(worker.stdout, size)
          with self._changed:
            self._made[number].append((last, content))
            self._changed.notify_all()
    except (EOFError, OSError, ValueError):  # ValueError: of a pipe that is closed
      if number is None:
        # It died before its first item.
        number = (self._tasks.get() or [None])[0]
      with self._changed:
        if not self._closed:
          content = pickle.dumps(([], [], None, self._died(worker)))
          self._waiting += len(content)
          self._made[number].append((True, content))
          self._changed.notify_all()

  def _has_room(self, number, size):
    return self._closed or number == self._turn or self._waiting + size <= MAX_WAITING

  def _died(self, worker):
    code = worker.wait()
    if code == -signal.SIGKILL:
      return UserError(
        "a worker process was killed by SIGKILL, which systems do whose memory is full; give "
        f"fewer, as {self._option}={max(1, len(self._workers) // 2)}, and repeat the command."
      )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return UserError(
      f"a worker process {how}; {self._option}=1 does the work without any, and shows where."
    )

  def close(self):
    """Ends the workers, whatever they are doing; there is nothing that they could leave half."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    for worker in self._workers:
      self._tasks.put(None)
      worker.kill()
    for worker, thread in zip(self._workers, self._threads, strict=True):
      worker.wait()
      thread.join()
      with contextlib.suppress(OSError):  # what was to be sent to it is flushed
        worker.stdin.close()
      worker.stdout.close()


def _start():
  path = [os.path.abspath(entry) for entry in sys.path]
  code = f"import sys; sys.path[:] = {path!r}; from lus_jax import pool; pool.serve()"
  return subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    # Ctrl-C is the parent's to deal with.
    start_new_session=True,
  )


def _send(pipe, content, last=False):
  pipe.write(_HEADER.pack(last, len(content)))
  pipe.write(content)
  pipe.flush()


def _read(pipe, n):
  content = pipe.read(n)
  if len(content) < n:
    raise EOFError
  return content


class _Kept(python_logging.Handler):
  """Keeps what is logged, for the parent."""

  def __init__(self):
    super().__init__(python_logging.WARNING)
    self.said = []

  def emit(self, record):
    self.said.append((record.levelno >= python_logging.ERROR, record.getMessage()))


def serve():
  """What a worker does: it reads a function and items, and ends when nobody sends any more."""
  source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
  # What libraries print would stand among the results.
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(2, 1)
  inbox = queue.SimpleQueue()
  threading.Thread(target=_receive, args=(source, inbox), daemon=True).start()
  kept = _Kept()
  logger = logging.get_absl_logger()
  logger.addHandler(kept)
  logger.propagate = False
  packed, function = inbox.get(), None
  with contextlib.suppress(BrokenPipeError), notices.kept() as warned:  # the parent is gone
    while True:
      item = inbox.get()
      try:
        function = function or pickle.loads(packed)
        for result in function(pickle.loads(item)):
          _send(target, _message(kept, warned, result))
        content = _message(kept, warned)
      except BrokenPipeError:
        raise
      except Exception as error:
        content = _message(kept, warned, error=_sendable(error))
      _send(target, content, last=True)


def _message(kept, warned, result=None, error=None):
  content = pickle.dumps((kept.said, warned, result, error), protocol=5)
  kept.said.clear()
  warned.clear()
  return content


def _sendable(error):
  """An exception that survives the way to the parent, and says where it was raised."""
  if isinstance(error, UserError):
    return error
  trace = "".join(traceback.format_exception(error))
  try:
    error = pickle.loads(pickle.dumps(error))
  except Exception:
    error = RuntimeError(f"{type(error).__name__}: {error}")
  error.add_note(f"\nIn a worker process:\n{trace}")
  return error


def _receive(source, inbox):
  # In a thread, so that a worker ends with its parent whatever it is doing.
  try:
    while True:
      _, size = _HEADER.unpack(_read(source, _HEADER.size))
      inbox.put(_read(source, size))
  except (EOFError, OSError):
    os._exit(0)
