"""What a GPU gives, in under ten minutes: is it right, how fast is it, and a short sweep.

  python -m lus_jax.benchmarks.check --out gpu-check.json     on a GPU, as `make gpu-check`
  python -m lus_jax.benchmarks.check --cpu                    its small form, where there is none

Parts, each with its share of the time, in processes of their own, so that a failure is a row:

- `values`: networks, losses and kernels with their gradients, against the CPU
  (`lus_jax.benchmarks.values`, which says what is allowed and why).
- `fpn`, `tsm`, `predict`: `lus_jax.benchmarks.throughput`, beside PyTorch where it is installed.
  On a GPU its fastest variants alone, for an H100 had no time left for float32; its compiled step
  is tuned less than that benchmark does by itself, which takes minutes.
- `sweep`: `lus_jax.benchmarks.sweep` with few frames and epochs.

All figures go to one JSON file, as they come. The exit code is 1 where a value differs or could not
be computed. With --cpu, what a GPU would compute is computed by the CPU, as far as JAX can tell the
two apart, and compared with the CPU's own way. What is compiled once is not compiled again: compile
times here are no measure.
"""

import argparse
import contextlib
import datetime
import json
import os
import sys
import tempfile
import threading
import time
from concurrent import futures
from types import SimpleNamespace

import jax

from lus_jax import command_line, progress
from lus_jax.benchmarks import peers, processes, sweep, throughput, values
from lus_jax.errors import UserError
from lus_jax.files import write_text
from lus_jax.results import versions

# Parts and their shares of the time; what one leaves is the next ones'.
PARTS = {"values": 0.26, "fpn": 0.28, "tsm": 0.16, "predict": 0.1, "sweep": 0.2}
BUDGET = 570  # seconds
# Values that are computed at once where there are cores for it: most of the time is compiling.
AT_ONCE, CORES = 4, 4
SIZES = {
  "gpu": SimpleNamespace(size=128, batch=4, classes=6, frames=8, width=1.0),
  "cpu": SimpleNamespace(size=64, batch=2, classes=3, frames=4, width=0.25),
}
THROUGHPUT = {
  "gpu": (
    "--thresholds 1 7 --strategy auto --variants fused compiled --torch-compile reduce-overhead"
  ),
  "cpu": "--thresholds 1 2 --strategy loop --size 32 --batch 2 --frames 2 --steps 1",
}
SWEEP = {"gpu": "--epochs 3 --frames 96 32 16", "cpu": "--epochs 1 --frames 8 4 4 --size 32"}


def check_values(sizes, cases, *, cpu, end, keep):
  """Computes cases on both sides and compares them.

  Args:
    sizes: of `values.Side`.
    cases: names of `values.CASES`.
    cpu: whether the CPU stands in for the GPU.
    end: on the clock `time.monotonic`.
    keep: is given the rows so far, after each case.

  Returns:
    Rows: `case`, `how`, `ok`, and what `values.compare` says or the `reason`.
  """
  host = {"JAX_PLATFORMS": "cpu"}
  rows = []
  with contextlib.ExitStack() as stack:
    reference = stack.enter_context(_asking(sizes, False, host, end))
    device = stack.enter_context(_asking(sizes, cpu, host if cpu else {"JAX_PLATFORMS": None}, end))
    threads = max(1, min(AT_ONCE, throughput.cores() // CORES))
    of_cpu, of_device = (stack.enter_context(futures.ThreadPoolExecutor(threads)) for _ in range(2))
    noises = {
      name: (0.0, *(values.ROUNDINGS[how] for how in values.CASES[name].how)) for name in cases
    }
    expected = {name: of_cpu.submit(reference, name, "float32", noises[name]) for name in cases}
    found = {
      (name, how): of_device.submit(device, name, how)
      for name in cases
      for how in values.CASES[name].how
    }
    bar = progress.bar(found.items(), total=len(found), unit="case", what="comparing values")
    for (name, how), of in bar:
      row = {"case": name, "how": how}
      try:
        right, *disturbed = expected[name].result()
        place = values.CASES[name].how.index(how)
        floor = max(values.CASES[name].floor, values.FLOORS[how])
        row |= values.compare(right, disturbed[place], of.result()[0], how, floor=floor)
      except processes.Failed as failed:
        row |= {"ok": False, "reason": failed.reason}
      rows.append(row)
      keep(rows)
  return rows


@contextlib.contextmanager
def _asking(sizes, as_gpu, environment, end):
  """A function that asks a `values.Side` in a process of its own, a new one where that ended.

  Every thread that calls it has such a process.
  """
  held = {}

  def ask(*request):
    me, left = threading.get_ident(), end - time.monotonic()
    if left <= 0:
      raise processes.Failed("no time is left")
    if me not in held:
      held[me] = processes.Apart(values.Side, sizes, as_gpu, environment=environment, limit=left)
    held[me].limit = left
    try:
      return held[me].ask("compute", *request)
    except processes.Failed:
      del held[me]
      raise

  try:
    yield ask
  finally:
    for worker in held.values():
      worker.stop()


def measure(args, *, keep=lambda result: None):
  """Runs the parts.

  Args:
    args: of `parse`.
    keep: is given what there is so far, again and again.

  Returns:
    A dict of `date`, `device`, `versions`, `load_before`, `values`, a key for every other part with
    what its benchmark says, or the `reason`, `seconds` by part, and `ok`: whether every value is
    right.
  """
  kind = "cpu" if args.cpu else "gpu"
  result = {
    "date": datetime.date.today().isoformat(),
    "device": jax.devices()[0].device_kind,
    "versions": versions(),
    "load_before": round(os.getloadavg()[0], 2),
    "seconds": {},
    "ok": True,
  }
  shares, begun = 0.0, time.monotonic()

  def kept(part):
    def keep_part(found):
      result[part] = found
      keep(result)

    return keep_part

  peer = _peer(result) if set(args.parts) & set(throughput.WHAT) else []
  for part, share in PARTS.items():
    shares += share
    if part not in args.parts:
      continue
    since = time.monotonic()
    end = begun + shares * args.budget
    left = str(max(1, int(end - since)))
    try:
      if part == "values":
        rows = check_values(SIZES[kind], args.cases, cpu=args.cpu, end=end, keep=kept(part))
        result["ok"] = all(row["ok"] for row in rows)
      elif part == "sweep":
        options = [*SWEEP[kind].split(), "--limit", left]
        sweep.measure(sweep.parse(options), keep=kept(part))
      else:
        options = ["--what", part, *THROUGHPUT[kind].split(), "--budget", left, *peer]
        throughput.measure(throughput.parse(options), keep=kept(part))
    except (UserError, processes.Failed) as error:
      result.setdefault(part, {})["reason"] = str(error)
    result["seconds"][part] = round(time.monotonic() - since, 1)
    keep(result)
  return result


def _peer(result):
  """Options for PyTorch, where it is there."""
  try:
    torch = peers.import_torch()
  except UserError as error:
    result["without_peer"] = str(error)
    return []
  result["versions"]["torch"] = torch.__version__
  if jax.default_backend() != "cpu" and not torch.cuda.is_available():
    result["without_peer"] = "this PyTorch finds no GPU."
    return []
  return ["--peer", "torch"]


def describe(result):
  """All that was found, as text with Markdown tables."""
  texts = [
    f"{result['date']}; {result['device']}",
    ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
  ]
  if note := throughput.load_note(result["load_before"]):
    texts.append(note)
  for part in PARTS:
    if part not in result:
      continue
    found = result[part]
    texts.append(f"\n{part}, {result['seconds'][part]:.0f} s")
    if part == "values":
      texts.append(_table(found))
      continue
    if found.get("rows"):
      # A row that nobody came to say anything of is not in its table.
      shown = found | {"rows": [row for row in found["rows"] if row["ok"] is not None]}
      texts.append((sweep if part == "sweep" else throughput).table(shown))
    if "reason" in found:
      texts.append(f"not measured: {found['reason']}")
  if "without_peer" in result:
    texts.append(f"\nWithout PyTorch: {result['without_peer']}")
  wrong = [row for row in result.get("values", ()) if not row["ok"]]
  if wrong:
    names = ", ".join(f"{row['case']} ({row['how']})" for row in wrong)
    texts.append(f"\nNOT as on the CPU: {names}")
  elif "values" in result:
    texts.append("\nEvery value is as on the CPU, within what rounding explains.")
  return "\n".join(texts)


def _table(rows):
  lines = ["| case | computed | difference | allowed | of | |", "| --- " * 6 + "|"]
  for row in rows:
    if "reason" in row:
      reason = row["reason"].replace("|", "/")
      lines.append(f"| {row['case']} | {row['how']} | | | | not computed: {reason} |")
      continue
    difference = "not finite" if row["difference"] is None else f"{row['difference']:.2g}"
    verdict = "" if row["ok"] else "DIFFERS"
    lines.append(
      f"| {row['case']} | {row['how']} | {difference} | {row['allowed']:.2g} | {row['worst']} "
      f"| {verdict} |"
    )
  return "\n".join(lines)


def parse(argv):
  """Reads a command line into a namespace.

  Raises:
    UserError: there is no GPU, and --cpu was not given.
    SystemExit: an option or value is unknown, as argparse has it.
  """
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.check",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--cpu", action="store_true", help="small, where there is no GPU")
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
  parser.add_argument("--cases", nargs="+", choices=values.CASES, default=list(values.CASES))
  parser.add_argument("--budget", type=float, default=BUDGET, metavar="S", help="seconds in all")
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  # The parts' processes need the device's memory; the backend is not started yet.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  if args.cpu:
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
  elif jax.default_backend() != "gpu":
    raise UserError(
      f"JAX finds no GPU here, but a {jax.default_backend()}; install jax[cuda12] or jax[cuda13] "
      "for the driver, or add --cpu for the small form without one."
    )
  return args


def main(argv=None):
  """Checks, prints tables and writes `--out`; returns the exit code.

  1: a value differs, or could not be computed; 2: a user's mistake.
  """
  argv = sys.argv[1:] if argv is None else argv
  return command_line.run(lambda: _main(argv))


def _main(argv):
  args = parse(argv)
  command = " ".join(["python -m lus_jax.benchmarks.check", *argv])

  def keep(result):
    if args.out:
      write_text(args.out, json.dumps({"command": command, **result}, indent=1) + "\n")

  with tempfile.TemporaryDirectory() as compiled:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    try:
      result = measure(args, keep=keep)
    finally:
      if os.environ["JAX_COMPILATION_CACHE_DIR"] == compiled:
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
  print(describe(result))
  return 0 if result["ok"] else 1


if __name__ == "__main__":
  sys.exit(main())
