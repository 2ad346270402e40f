"""Two runs at once: in one workdir the second is refused; with one data set both end well."""

import time

from tests.faults.common import Case, Command, command, differences, results_of


def _second(bench):
  """A second run on a workdir in use names the first and leaves it alone."""
  workdir = bench.folder("two_runs")
  argv = bench.run_argv(workdir)
  first = Command(argv)
  since = time.monotonic()
  while first.running() and not any(workdir.iterdir()) and time.monotonic() - since < bench.limit:
    time.sleep(0.05)
  second = command(argv, bench.limit)
  result = first.wait(bench.limit)
  return second.faults(2, str(first.pid)) + _ended_well(bench, result, workdir)


def _together(bench):
  """Of two that start together one runs and one is refused."""
  workdir = bench.folder("two_together")
  runs = [Command(bench.run_argv(workdir)) for _ in range(2)]
  results = [run.wait(bench.limit) for run in runs]
  results.sort(key=lambda result: -1 if result.code is None else result.code)
  return results[1].faults(2) + _ended_well(bench, results[0], workdir)


def _prepare(bench):
  """Two runs that prepare one data set at once both end well."""
  prepared = bench.folder("two_data")
  workdirs = [bench.folder(f"two_data{i}") for i in range(2)]
  runs = [Command(bench.run_argv(workdir, prepared)) for workdir in workdirs]
  faults = []
  for process, workdir in zip(runs, workdirs, strict=True):
    faults += _ended_well(bench, process.wait(bench.limit + bench.seconds), workdir, prepared)
  return faults


def _ended_well(bench, result, workdir, prepared=None):
  faults = result.faults(0)
  note = differences(results_of(workdir, prepared or bench.work / "prepared"), bench.expected)
  return faults or ([("silent", note)] if note else [])


def run(bench):
  """All three."""
  bench.reference()
  for function in (_second, _together, _prepare):
    faults = function(bench) or [("ok", "")]
    yield Case("two", function.__doc__, *faults[0])
