"""The command line: `python -m tests.faults`; what it does stands in README.md beside this file."""

import argparse
import collections
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.faults.common import OUTCOMES, Bench

KINDS = {
  "kills": "kill -9 at random moments, then the same command",
  "signals": "SIGTERM and Ctrl-C at random moments, then the same command",
  "disk": "disk full and read-only while it prepares, saves, writes results and report",
  "two": "two runs on one workdir; two that prepare one data set",
  "checkpoints": "damaged checkpoints",
  "changed": "files replaced, size and time kept",
  "field": "the odd files of ../shared/cases",
  "fuzz": "2,000 broken files over all readers",
}
_MARK = "LUS_FAULTS_NAMESPACE"


def _own_mounts():
  """Starts again where mounts are the harness's own and none outlives it, if that is allowed."""
  if _MARK in os.environ or not shutil.which("unshare"):
    return
  unshare = ["unshare", "--mount"] + ["--map-root-user"] * (os.geteuid() != 0)
  allowed = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
  os.environ[_MARK] = "own" if allowed else "none"
  if allowed:
    os.execvp("unshare", [*unshare, sys.executable, "-m", "tests.faults", *sys.argv[1:]])


def _table(cases, seconds):
  rows = [("kind", "cases", *OUTCOMES[2:4], "silent changes", "other", "skipped", "s", "verdict")]
  for kind in KINDS:
    found = [case for case in cases if case.kind == kind]
    if not found:
      continue
    n = collections.Counter(case.outcome for case in found)
    bad = len(found) - n["ok"] - n["skipped"]
    verdict = "FAULTS" if bad else "ok" if n["ok"] else "skipped"
    counts = (len(found), n["traceback"], n["hang"], n["silent"], n["wrong"], n["skipped"])
    rows.append((kind, *map(str, counts), f"{seconds[kind]:.0f}", verdict))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )


def main():
  """Runs the parts asked for; returns 1 where anything was not as it must be."""
  parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
  parser.add_argument("--only", choices=KINDS, action="append", help="this part; may be repeated")
  parser.add_argument("--quick", action="store_true", help="a few cases of each, a tenth of fuzz")
  parser.add_argument("--case", type=int, help="this number of fuzz alone, with all that is known")
  parser.add_argument("--reader", help="of fuzz this reader alone, 300 times; see fuzz.READERS")
  parser.add_argument("--seed", type=int, default=0, help="of everything random")
  parser.add_argument("--jobs", type=int, default=2, help="processes at once")
  parser.add_argument("--minutes", type=float, default=60, help="after these no case is begun")
  parser.add_argument("--work", type=pathlib.Path, help="a folder to work in, kept; else a new one")
  options = parser.parse_args()
  kinds = options.only or list(KINDS)
  work = (options.work or pathlib.Path(tempfile.mkdtemp(prefix="lus_faults_"))).absolute()
  work.mkdir(parents=True, exist_ok=True)
  bench = Bench(work, options.seed, options.quick, options.jobs, options.case)
  bench.reader = options.reader
  bench.deadline = time.monotonic() + 60 * options.minutes
  cases, seconds, said = [], {}, set()
  try:
    for kind in kinds:
      print(f"{kind}: {KINDS[kind]}", flush=True)
      since = time.monotonic()
      for case in importlib.import_module(f"tests.faults.{kind}").run(bench):
        cases.append(case)
        new = kind != "fuzz" or case.note not in said
        said.add(case.note)
        if (case.outcome not in ("ok", "skipped") and new) or options.case is not None:
          print(f"  {case.outcome.upper()} {case.name}: {case.note}", flush=True)
      seconds[kind] = time.monotonic() - since
      skipped = (case for case in cases if (case.kind, case.outcome) == (kind, "skipped"))
      for note in sorted({case.note for case in skipped}):
        print(f"  skipped: {note}")
  finally:
    if options.work is None:
      shutil.rmtree(work, ignore_errors=True)
  print(f"\n{_table(cases, seconds)}")
  if bench.late:
    print(f"{bench.late} cases were not begun in {options.minutes:g} minutes.")
  return int(bool(bench.late) or any(case.outcome not in ("ok", "skipped") for case in cases))


if __name__ == "__main__":
  _own_mounts()
  sys.exit(main())
