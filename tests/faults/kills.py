"""A run that is killed goes on, by the same command, to results of the same bytes."""

import signal
import time

import numpy as np

from tests.faults.common import Case, Command, command, differences, left_behind, results_of


def start(bench, i, kind):
  """Where a run of this number works: its command, workdir and prepared data.

  Every third one prepares its own data, and another third has nothing left but evaluation.
  """
  name = f"{kind}{i}"
  prepared = bench.folder(f"{name}_data") if i % 3 == 0 else None
  late = i % 3 == 1
  workdir = bench.copy(name, "results", "report") if late else bench.folder(name)
  return bench.run_argv(workdir, prepared), workdir, prepared or bench.work / "prepared"


def goes_on(bench, argv, workdir, prepared):
  """Repeats a command to its end; returns what is not as it must be."""
  result = command(argv, bench.limit)
  faults = result.faults(0)
  if not faults:
    notes = (
      differences(results_of(workdir, prepared), bench.expected),
      left_behind(workdir, prepared),
    )
    faults = [
      (outcome, note) for outcome, note in zip(("silent", "wrong"), notes, strict=True) if note
    ]
  return faults


def run(bench):
  """Kills runs at random moments."""
  bench.reference()

  def one(i):
    rng = np.random.default_rng([bench.seed, 1, i])
    argv, workdir, prepared = start(bench, i, "kill")
    moments = rng.uniform(0.1, 1.0, int(rng.integers(1, 3)))
    for moment in moments:
      process = Command(argv)
      time.sleep(moment * bench.seconds)
      process.signal(signal.SIGKILL)
      process.wait(10)
    faults = goes_on(bench, argv, workdir, prepared) or [("ok", "")]
    when = " and ".join(f"{moment:.0%}" for moment in moments)
    return Case("kills", f"{i} (killed at {when})", *faults[0])

  yield from bench.together(one, range(2 if bench.quick else 8))
