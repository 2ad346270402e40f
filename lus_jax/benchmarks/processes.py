"""Work in a process of its own: an abort of a library, or a full memory, is a reason, not the end.

A worker makes an object in a fresh process and calls its methods when it is asked to, so that
several can hold what they compiled and be timed in turn.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import traceback

from lus_jax.errors import UserError

# What libraries call it when memory does not suffice: XLA, PyTorch on a GPU and on a CPU, NumPy.
_OUT_OF_MEMORY = re.compile(
  r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemoryError|MemoryError|can't allocate memory"
)
# The line of a library's last words that says why.
_TELLING = re.compile(r"Check failed|RESOURCE_EXHAUSTED|^[\w.]*(Error|Exception)\b|ptxas|fatal")
# Seconds until a worker that was told to end is killed.
_GRACE = 5

_STARTING = threading.Lock()


class Failed(Exception):
  """A worker could not do what it was asked.

  Attributes:
    reason: in a line.
    out_of_memory: whether less at a time may do.
    expected: whether it was refused in words of ours, or out of memory: nothing is broken.
  """

  def __init__(self, reason, *, out_of_memory=False, expected=False):
    super().__init__(reason)
    self.reason, self.out_of_memory = reason, out_of_memory
    self.expected = expected or out_of_memory


def _failed(error):
  """The `Failed` for an exception."""
  if isinstance(error, Failed):
    return error
  text = f"{type(error).__name__}: {error}"
  if _OUT_OF_MEMORY.search(text):
    return Failed("out of memory", out_of_memory=True)
  if isinstance(error, UserError):
    return Failed(str(error), expected=True)
  return Failed(" ".join(text.split())[:300])


class Here:
  """A worker without a process of its own, as a debugger wants it: an abort ends everything.

  Args:
    make: a function whose result's methods are called.
    *arguments: of it.
    environment: is left out, for this process has its own.
    limit: is left out.

  Raises:
    Failed: out of memory, or refused with a `UserError`; what is broken keeps its traceback.
  """

  def __init__(self, make, *arguments, environment=None, limit=None):
    self._made = _or_failed(make, *arguments)

  def ask(self, name, *arguments):
    """Calls a method."""
    return _or_failed(getattr(self._made, name), *arguments)

  def stop(self):
    """Lets go of what was made."""
    self._made = None


def _or_failed(function, *arguments):
  try:
    return function(*arguments)
  except Exception as error:
    failed = _failed(error)
    if not failed.expected:
      raise
    raise failed from error


class Apart:
  """A worker in a process of its own.

  Args:
    make: a function, or class, of a module; its result's methods are called.
    *arguments: of it, which can be pickled.
    environment: variables that the process has besides ours; None as a value takes one away.
    limit: seconds that it may take to make the object, and later for each call.

  Attributes:
    limit: as given; may be changed between calls.

  Raises:
    Failed: it could not be made, the process ended by itself, or took too long.
  """

  def __init__(self, make, *arguments, environment=None, limit=1800):
    context = multiprocessing.get_context("spawn")
    self._connection, theirs = context.Pipe()
    self.limit = limit
    with tempfile.NamedTemporaryFile(prefix="worker_", suffix=".log", delete=False) as log:
      self._log = pathlib.Path(log.name)
    self._process = context.Process(
      target=_serve, args=(theirs, os.fspath(self._log), make, arguments)
    )
    # The variables are those of this whole process, of all its threads.
    with _STARTING, _environment(environment or {}):
      self._process.start()
    theirs.close()
    self._receive()

  def ask(self, name, *arguments):
    """Calls a method of what was made, and waits for the result.

    Raises:
      Failed: it raised an exception, the process ended by itself, or took too long. It is no more.
    """
    with contextlib.suppress(BrokenPipeError):  # why it ended, `_receive` says
      self._connection.send((name, arguments))
    return self._receive()

  def _receive(self):
    try:
      if not self._connection.poll(self.limit):
        self._kill()
        raise Failed(f"took more than {self.limit:g} s")
      content, failure = self._connection.recv()
    except (EOFError, ConnectionResetError):
      self._process.join()
      raise self._end(_died(self._process.exitcode, self._words())) from None
    except BaseException as error:
      raise self._end(error) from None
    if failure is not None:
      # Of ours too, a traceback shows where.
      if not failure["expected"]:
        print(self._words()[-4000:], file=sys.stderr)
      raise self._end(Failed(**failure))
    return content

  def _end(self, error):
    self.stop()
    return error

  def _words(self):
    return self._log.read_text(errors="replace") if self._log.exists() else ""

  def _kill(self):
    # What it started too: compilers, for one.
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.kill()

  def stop(self):
    """Ends the process, which frees its memory."""
    self._connection.close()
    self._process.join(_GRACE)
    if self._process.exitcode is None:
      self._kill()
      self._process.join()
    self._log.unlink(missing_ok=True)


def _died(code, words):
  """The `Failed` of a process that ended by itself, by its exit code and last words."""
  lines = [line.strip() for line in words.splitlines() if line.strip()]
  telling = next((line for line in lines if _TELLING.search(line)), None)
  told = telling or (lines[-1] if lines else "no word")
  # XLA warns of memory that it can do without, too.
  if _OUT_OF_MEMORY.search(telling or words) or code == -signal.SIGKILL:
    return Failed("out of memory (the process was ended)", out_of_memory=True)
  ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
  return Failed(f"the process {ended}: {told:.300}")


@contextlib.contextmanager
def _environment(changes):
  before = {name: os.environ.get(name) for name in changes}

  def change(values):
    for name, value in values.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value

  change(changes)
  try:
    yield
  finally:
    change(before)


def _serve(connection, log, make, arguments):
  """What a worker's process does: it ends when the other side of the connection does."""
  # A group of its own, to be killed as one; Ctrl-C is the parent's to deal with.
  os.setsid()
  # What libraries print, in C++ too.
  with open(log, "ab") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  try:
    made = make(*arguments)
    content = None
    while True:
      connection.send((content, None))
      name, arguments = connection.recv()
      content = getattr(made, name)(*arguments)
  except EOFError:
    return
  except Exception as error:
    traceback.print_exc()
    sys.stderr.flush()
    failed = _failed(error)
    why = {name: getattr(failed, name) for name in ("reason", "out_of_memory", "expected")}
    with contextlib.suppress(BrokenPipeError):
      connection.send((None, why))


class _Call:
  """A function as an object that a worker makes."""

  def __init__(self, function, *arguments):
    self._function, self._arguments = function, arguments

  def __call__(self):
    return self._function(*self._arguments)


def call(function, *arguments, environment=None, limit=1800):
  """Calls a function of a module in a process of its own and returns its result.

  Args:
    function: of a module.
    *arguments: of it.
    environment: as of `Apart`.
    limit: seconds.

  Raises:
    Failed: as of `Apart`.
  """
  worker = Apart(_Call, function, *arguments, environment=environment, limit=limit)
  try:
    return worker.ask("__call__")
  finally:
    worker.stop()


def positive(text):
  """A whole number above 0 of a command line, for argparse."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{value} must be at least 1")
  return value


def table(columns, rows, *, known):
  """Rows as Markdown; of one that is not `ok` its first cells and its `reason`.

  Args:
    columns: a function of a row by the column's name.
    rows: dicts.
    known: how many columns a row has that failed.
  """
  lines = [list(columns), ["---"] * len(columns)]
  for row in rows:
    cells = list(columns.values()) if row["ok"] else list(columns.values())[:known]
    lines.append([str(cell(row)) for cell in cells])
    if not row["ok"]:
      reason = " ".join(row["reason"].replace("|", "/").split())
      lines[-1] += [f"not measured: {reason}", *[""] * (len(columns) - known - 1)]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
