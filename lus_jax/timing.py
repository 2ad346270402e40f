"""Where a run's time went: seconds by part, in `results/timing.json`.

Parts exclude each other: while an inner one lasts, the outer one's clock stands still. What JAX
traces and XLA compiles counts as compiling, in whichever part it is needed. A run that is stopped
and goes on adds up.
"""

import contextlib
import os
import threading
import time

import jax
from absl import logging

from lus_jax import results
from lus_jax.errors import UserError

NAME = "timing"
# All there are, in the order they are shown.
PARTS = (
  "data",
  "networks",
  "compiling",
  "training",
  "validation",
  "pictures",
  "saving",
  "channels",
  "fold segmentations",
  "evaluation",
  "report",
  "other",
)
_COMPILING = tuple(
  f"/jax/core/compile/{name}_duration"
  for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_FIELDS = {
  "rows": {"run": str, "part": str, "seconds": (int, float)},
  "runs": {"run": str, "sittings": int, "seconds": (int, float)},
}
# Clocks of the runs that are under way in this process: a task may train segmentations of its own.
_clocks = []
# Directories that this process wrote times to.
_written = set()


class Clock:
  """Counts the seconds of one run.

  Args:
    run: its name.

  Attributes:
    seconds: by part, up to the last change of the part.
  """

  def __init__(self, run):
    self._run, self.seconds, self._part = run, dict.fromkeys(PARTS, 0.0), "other"
    self._since, self._compiled = time.perf_counter(), []
    self._write = None

  def enter(self, part):
    """Goes on with another part; returns the one before."""
    now = time.perf_counter()
    self.seconds[self._part] += now - self._since
    before, self._part, self._since = self._part, part, now
    return before

  def compiled(self, seconds):
    """Takes so many seconds, until now, for compiling; traces within traces count once."""
    end = time.perf_counter()
    start = end - seconds
    while self._compiled and self._compiled[-1][0] >= start:
      inner = self._compiled.pop()
      seconds -= inner[1]
    self._compiled.append((start, end - start))
    self.seconds["compiling"] += seconds
    self.seconds[self._part] -= seconds

  def keep_in(self, workdir, *, goes_on, **common):
    """From here on `keep` writes to the run's directory.

    Args:
      workdir: the run's directory.
      goes_on: whether it was begun before: what was counted then is added.
      **common: `config` and `dataset`, as `results.write` takes them.
    """
    earlier, sittings = {}, 0
    if goes_on:
      content = _read(workdir)
      earlier = {x["part"]: x["seconds"] for x in content["rows"] if x["run"] == self._run}
      sittings = sum(x["sittings"] for x in content["runs"] if x["run"] == self._run)

    def write():
      self.enter(self._part)
      content = _read(workdir)
      rows = [x for x in content["rows"] if x["run"] != self._run]
      rows += [
        {"run": self._run, "part": part, "seconds": round(earlier.get(part, 0) + seconds, 3)}
        for part, seconds in self.seconds.items()
        if part in earlier or seconds
      ]
      runs = [x for x in content["runs"] if x["run"] != self._run]
      whole = sum(x["seconds"] for x in rows if x["run"] == self._run)
      runs.append({"run": self._run, "sittings": 1 + sittings, "seconds": round(whole, 3)})
      results.write(workdir, NAME, **common, runs=runs, rows=rows)

    _written.add(os.path.abspath(workdir))
    self._write = write

  def keep(self):
    """Writes what was counted so far, once there is a place for it."""
    if self._write is not None:
      self._write()


def _read(workdir):
  if results.exists(workdir, NAME):
    try:
      content = results.read(workdir, NAME)
      for name, kinds in _FIELDS.items():
        for row in content[name]:
          if not all(isinstance(row[field], kind) for field, kind in kinds.items()):
            raise TypeError(f"{workdir}/{results.DIRECTORY}/{NAME}.json is damaged.")
      return {name: list(content[name]) for name in _FIELDS}
    except (UserError, KeyError, TypeError) as error:
      # Not worth a run.
      logging.warning("%s The times of the run are counted anew.", error)
  return {"rows": [], "runs": []}


@contextlib.contextmanager
def recorded(run):
  """Counts the seconds of a run; its `Clock`, which keeps them at the end, however that comes."""
  clock = Clock(run)
  _clocks.append(clock)
  try:
    yield clock
  except BaseException:
    # What ended the run is what counts.
    with contextlib.suppress(UserError):
      clock.keep()
    raise
  else:
    clock.keep()
  finally:
    _clocks.remove(clock)


@contextlib.contextmanager
def part(name):
  """Within it, the run that is under way is at this part, one of `PARTS`."""
  clock = _clocks[-1] if _clocks else None
  before = clock and clock.enter(name)
  try:
    yield
  finally:
    if clock:
      clock.enter(before)


def keep():
  """Writes what was counted of the run that is under way."""
  if _clocks:
    _clocks[-1].keep()


@contextlib.contextmanager
def reported(workdir):
  """Counts the seconds of a report, where this process has counted those of its run."""
  if os.path.abspath(workdir) not in _written:
    yield
    return
  content = results.read(workdir, NAME)
  with recorded("report") as clock, part("report"):
    clock.keep_in(workdir, goes_on=True, config=content["config"], dataset=content["dataset"])
    yield


def _listen(event, seconds, **_):
  if _clocks and event in _COMPILING and threading.current_thread() is threading.main_thread():
    _clocks[-1].compiled(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)
