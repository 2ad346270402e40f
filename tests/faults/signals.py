"""SIGTERM, what a cluster sends, and Ctrl-C: the exit code, no traceback, and it goes on."""

import signal
import time

import numpy as np

from tests.faults.common import Case, Command
from tests.faults.kills import goes_on, start

GRACE = 30  # seconds that clusters leave


def _wait_for_training(process, workdir, limit):
  since = time.monotonic()
  while process.running() and not (workdir / "checkpoints").exists():
    if time.monotonic() - since > limit:
      return
    time.sleep(0.05)


def run(bench):
  """Sends signals at random moments, a third of them while models train."""
  bench.reference()

  def one(i):
    rng = np.random.default_rng([bench.seed, 2, i])
    number, code = (signal.SIGINT, 130) if i % 4 == 3 else (signal.SIGTERM, 143)
    argv, workdir, prepared = start(bench, i, "signal")
    process = Command(argv)
    if i % 3 == 2:
      _wait_for_training(process, workdir, bench.limit)
      time.sleep(rng.uniform(0, 0.2) * bench.seconds)
    else:
      time.sleep(rng.uniform(0.1, 1.0) * bench.seconds)
    process.signal(number)
    since = time.monotonic()
    result = process.wait(GRACE)
    took = time.monotonic() - since
    faults = [] if result.code == 0 else result.faults(code)  # or it had just finished
    saved = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    if not faults and result.code != 0 and "to go" in result.err and not saved:
      faults = [("wrong", "training had begun, and no step was saved")]
    if "last checkpoint" in result.err and not (workdir / "checkpoints").exists():
      faults = [("wrong", "speaks of a checkpoint that is not there")]
    if result.code is not None and not faults:
      faults = goes_on(bench, argv, workdir, prepared)
    name = f"{i} ({signal.Signals(number).name}, answered after {took:.0f} s)"
    return Case("signals", name, *(faults or [("ok", "")])[0])

  yield from bench.together(one, range(3 if bench.quick else 8))
