"""What every part of the harness uses: how a command or a worker is run, bounded, and judged."""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
# Seconds that a case may take beyond the work that it is known to do.
PATIENCE = 20
# Address space of a worker; what needs more for small files has been led astray by one of them.
MEMORY = 8 << 30
TRACEBACK = "Traceback (most recent call last)"
# How a case may end; all but the first two are faults.
OUTCOMES = ("ok", "skipped", "traceback", "hang", "silent", "wrong")


class Wrong(Exception):
  """Something was accepted that is not what was stored: a silent change."""


@dataclasses.dataclass(frozen=True)
class Case:
  """How one case ended.

  Attributes:
    kind: which part of the harness.
    name: which case of it.
    outcome: of `OUTCOMES`: 'silent' is a wrong value without a word, 'wrong' everything else that
      must not be (exit code, message, what is left behind).
    note: what was seen.
  """

  kind: str
  name: str
  outcome: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
  """How a command ended; `code` is None where it had to be killed for its time."""

  code: int | None
  out: str
  err: str
  seconds: float

  def faults(self, code, *says):
    """What is not as it must be: pairs of outcome and note.

    Args:
      code: the exit code that it must have; 2 also means one line that begins with 'error: '.
      *says: what the output must contain.
    """
    text = self.out + self.err
    last = next((x for x in reversed(self.err.strip().splitlines()) if x.strip()), "")[-300:]
    if self.code is None:
      return [("hang", f"still running after {self.seconds:.0f} s")]
    if TRACEBACK in text:
      return [("traceback", _end_of_traceback(text))]
    if self.code != code:
      return [("wrong", f"exit code {self.code} for {code}: {last}")]
    missing = [word for word in says if word not in text]
    if missing:
      return [("wrong", f"does not say {', '.join(missing)}: {last}")]
    if code == 2:
      _, *message = self.err.rpartition("error: ")
      if message[0] != "error: " or message[1].strip("\n").count("\n"):
        return [("wrong", f"not one line: {self.err[-300:]}")]
    return []


def _end_of_traceback(text):
  """Where the last traceback of a text ends, and with what."""
  lines = text.rpartition(TRACEBACK)[2].splitlines()[1:]
  end = next((i for i, line in enumerate(lines) if line.strip() and line[0] != " "), -1)
  place = next((line.strip() for line in reversed(lines[:end]) if "File " in line), "")
  return f"{' '.join(lines[end:][:1])[:300]} ({place})"


def environment():
  """Of every process that is started here."""
  return os.environ | {
    "PYTHONPATH": os.pathsep.join([os.fspath(ROOT), os.environ.get("PYTHONPATH", "")]),
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONUNBUFFERED": "1",
    # Small programs are kept too: compiling them again is most of a short run's time.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


class Command:
  """A command in the background, in a process group of its own."""

  def __init__(self, argv):
    self._since = time.monotonic()
    # Files, as a full pipe would stop it.
    self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, *map(os.fspath, argv)],
      stdin=subprocess.DEVNULL,
      stdout=self._out,
      stderr=self._err,
      env=environment(),
      cwd=ROOT,
      start_new_session=True,
    )
    self.pid = self._process.pid

  def running(self):
    """Whether it has not ended yet."""
    return self._process.poll() is None

  def signal(self, number):
    """Sends a signal to it alone, as a scheduler does."""
    self._process.send_signal(number)

  def wait(self, timeout):
    """Waits, and kills its whole group where that is in vain; returns a `Result`."""
    try:
      code = self._process.wait(timeout)
    except subprocess.TimeoutExpired:
      code = None
      os.killpg(self.pid, signal.SIGKILL)
      self._process.wait()
    texts = []
    for file in (self._out, self._err):
      file.seek(0)
      texts.append(file.read().decode(errors="replace"))
      file.close()
    return Result(code, *texts, time.monotonic() - self._since)


def command(argv, timeout):
  """Runs `python ARGV...` to its end; returns a `Result`."""
  return Command(argv).wait(timeout)


class Worker:
  """A process that calls functions of this folder, so that one that hangs can be killed."""

  def __init__(self):
    self._process = None
    # What has been prepared in this process, by whoever uses it.
    self.warmed = {}

  def call(self, function, timeout, **arguments):
    """Calls 'module:function' there; returns a dict of `outcome`, `text` and `value`.

    `outcome` is 'value', 'refused' (a UserError of one line, in `text`), or as in `Case`.
    """
    if self._process is None:
      self.warmed = {}
      self._process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
      )
      self._ask("tests.faults.worker:ready", 120, {})
    return self._ask(function, timeout, arguments)

  def _ask(self, function, timeout, arguments):
    line = json.dumps({"function": function, "arguments": arguments}) + "\n"
    try:
      self._process.stdin.write(line.encode())
      self._process.stdin.flush()
      ready, _, _ = select.select([self._process.stdout], [], [], timeout)
      answer = self._process.stdout.readline() if ready else None
    except BrokenPipeError:
      answer = b""
    if answer:
      return json.loads(answer)
    self.close()
    if answer is None:
      return {"outcome": "hang", "text": f"over {timeout} s", "value": None}
    return {"outcome": "traceback", "text": "the process died", "value": None}

  def close(self):
    """Ends the process, if there is one."""
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      self._process.stdin.close()
      self._process.stdout.close()
      self._process = None


def digest(value):
  """A short text that changes with any array, number or text in nested dicts and lists."""
  import numpy as np

  sha = hashlib.sha256()

  def add(x):
    if isinstance(x, dict):
      for key in sorted(x):
        sha.update(repr(key).encode())
        add(x[key])
    elif isinstance(x, (list, tuple)):
      for item in x:
        add(item)
    elif isinstance(x, np.ndarray) and x.dtype != object:
      sha.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    else:
      sha.update(repr(x).encode())

  add(value)
  return sha.hexdigest()[:16]


def results_of(workdir, prepared):
  """The bytes of a run's results files, by name, wherever its prepared data are.

  But for its times: of no other file two runs have others.
  """
  files = [path for path in (pathlib.Path(workdir) / "results").glob("*") if path.stem != "timing"]
  where = os.fspath(prepared).encode()
  return {path.name: path.read_bytes().replace(where, b"DATA") for path in files}


def left_behind(*folders):
  """Names of half-written files and folders, as one note; '' where there are none."""
  found = [path for folder in folders for path in pathlib.Path(folder).rglob("*")]
  names = [p.name for p in found if "incomplete" in p.name or p.name.endswith(".tmp")]
  return f"left behind: {', '.join(sorted(names))}" if names else ""


def differences(found, expected):
  """Names of results files that are not the same bytes, as one note; '' where all are."""
  names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
  return f"other bytes: {', '.join(names)}" if names else ""


@dataclasses.dataclass
class Bench:
  """Where the harness works, and one unbroken run that all others are compared with.

  Attributes:
    work: a folder of its own.
    seed: of everything random.
    quick: whether fewer cases are wanted.
    jobs: how many processes work at once.
    case: the number of the one case that is wanted; None for all.
    reader: the one reader that is fuzzed; None for all.
    deadline: of `time.monotonic()`: no case is begun after it.
    late: how many were not begun for that.
  """

  work: pathlib.Path
  seed: int
  quick: bool
  jobs: int = 2
  case: int | None = None
  reader: str | None = None
  deadline: float = math.inf
  late: int = 0

  def folder(self, name):
    """A new, empty folder."""
    path = self.work / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path

  def run_argv(self, workdir, prepared=None, **fields):
    """The command of a run that takes seconds: two models, 64 frames of 32 x 32, four epochs."""
    fields = {
      "data.prepared_dir": prepared or self.work / "prepared",
      "data.image_size": 32,
      "data.phantom.n_patients": 6,
      "data.phantom.n_frames": 3,
      "sweep.thresholds": "(0.6, 0.0)",
      "model.width": 0.125,
      "train.epochs": 4,
    } | fields
    return [
      *("-m", "lus_jax.main", "--config", "configs/seg.py:tiny", "--workdir", workdir),
      *(f"--config.{name}={value}" for name, value in fields.items()),
      f"--compilation_cache={self.work / 'compiled'}",
    ]

  def reference(self):
    """The unbroken run: its directory; the run is made when it is first asked for."""
    done = self.work / "reference.json"
    workdir = self.work / "reference"
    if not done.exists():
      seconds = []
      for name in ("compiles", "reference"):  # the first one compiles and prepares
        result = command(self.run_argv(self.folder(name)), 600)
        if result.code != 0:
          raise SystemExit(f"The unbroken run failed:\n{result.err[-3000:]}")
        seconds.append(result.seconds)
      prepared = self.work / "prepared"
      note = differences(results_of(self.work / "compiles", prepared), self.expected)
      if note:
        raise SystemExit(f"Two unbroken runs differ: {note}.")
      done.write_text(json.dumps({"seconds": seconds[1]}))
    return workdir

  @property
  def expected(self):
    """The results of the unbroken run; see `results_of`."""
    return results_of(self.work / "reference", self.work / "prepared")

  @property
  def seconds(self):
    """How long the unbroken run took, of warm caches."""
    self.reference()
    return json.loads((self.work / "reference.json").read_text())["seconds"]

  @property
  def limit(self):
    """Seconds that a run may take: two at once, and other work on the machine, are allowed for."""
    return 3 * self.seconds + PATIENCE

  def workers(self, function, items):
    """Yields `function(item, worker)` of every item, as they end, with `jobs` workers."""
    local, started = threading.local(), []

    def call(item):
      if not hasattr(local, "worker"):
        local.worker = Worker()
        started.append(local.worker)
      return function(item, local.worker)

    try:
      yield from self.together(call, items)
    finally:
      for worker in started:
        worker.close()

  def together(self, function, items):
    """Yields `function(item)` of every item, as they end, `jobs` at a time."""

    def in_time(item):
      return function(item) if time.monotonic() < self.deadline else None

    with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
      futures = [pool.submit(in_time, item) for item in items]
      for future in concurrent.futures.as_completed(futures):
        if future.result() is None:
          self.late += 1
        else:
          yield future.result()

  def copy(self, name, *without):
    """A copy of the unbroken run's directory without some of its parts."""
    path = self.work / name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(self.reference(), path)
    for part in without:
      shutil.rmtree(path / part)
    return path
