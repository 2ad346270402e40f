"""Damaged checkpoints: the one before is used, which is said, or one line refuses; no silence."""

import functools
import pathlib
import shutil

import numpy as np

from tests.faults.common import PATIENCE, Case, command, differences, digest, results_of


def _truncated(rng, path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeroed(rng, path):
  path.write_bytes(bytes(path.stat().st_size))


def _emptied(rng, path):
  path.write_bytes(b"")


def _flipped(rng, path, bits=30):
  data = bytearray(path.read_bytes())
  for _ in range(bits):
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)


def _deleted(rng, path):
  path.unlink()


def _newest(workdir):
  return max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=_number)


def _number(path):
  return int(path.name)


def _files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def _choose(rng, files, largest):
  if largest:
    return max(files, key=lambda path: path.stat().st_size)
  return files[int(rng.integers(len(files)))]


def _resume(bench, item):
  """A run whose newest checkpoint is damaged goes on from the one before."""
  i, (how, largest) = item
  rng = np.random.default_rng([bench.seed, 3, i])
  workdir = bench.copy(f"damaged{i}", "results", "report")
  newest = _newest(workdir)
  path = _choose(rng, _files(newest), largest)
  what = f"{how.__name__.strip('_')}: {path.relative_to(newest.parent)}"
  how(rng, path)
  result = command(bench.run_argv(workdir), bench.limit)
  faults = result.faults(0)
  note = differences(results_of(workdir, bench.work / "prepared"), bench.expected)
  if not faults and note:
    faults = [("silent", note)]
  # A file that nothing is read from may be damaged without a word.
  if not faults and largest and "checkpoint" not in result.err + result.out:
    faults = [("wrong", "not a word of the damaged checkpoint")]
  return Case("checkpoints", what, *(faults or [("ok", "")])[0])


@functools.cache
def _weights(workdir):
  import jax

  from lus_jax.inference import trained as trained_lib

  trained = trained_lib.load(workdir)
  return digest([np.asarray(leaf) for leaf in jax.tree.leaves(trained.weights)])


def flip_best(reference, workdir, seed, number):
  """Flips one bit of the best weights and loads them; returns whether they are others."""
  expected = _weights(reference)
  workdir = pathlib.Path(workdir)
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(reference, workdir)
  rng = np.random.default_rng([seed, 4, number])
  newest = _newest(workdir)
  files = _files(newest / "best" if (newest / "best").is_dir() else newest)
  sizes = np.array([path.stat().st_size for path in files], float)
  path = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
  _flipped(rng, path, bits=1)
  try:
    return _weights.__wrapped__(str(workdir)) != expected
  finally:
    shutil.rmtree(workdir)


def _load(bench, number, worker):
  """Loads the best weights with one bit flipped."""
  reference = str(bench.reference())
  if "weights" not in worker.warmed:
    where = {"workdir": reference}
    worker.warmed["weights"] = worker.call("tests.faults.checkpoints:_weights", 180, **where)
  workdir = str(bench.work / f"flipped{number}")
  arguments = {"reference": reference, "workdir": workdir, "seed": bench.seed, "number": number}
  answer = worker.call("tests.faults.checkpoints:flip_best", 3 * PATIENCE, **arguments)
  outcome, text = answer["outcome"], answer["text"]
  if outcome == "value" and answer["value"] and "checkpoint" not in text:
    outcome, text = "silent", "other weights, without a word"
  if outcome in ("value", "refused"):
    outcome = "ok"
  return Case("checkpoints", f"one bit of best, {number}", outcome, text)


def run(bench):
  """Damages the newest checkpoint in every way, and single bits of the best weights."""
  bench.reference()
  ways = [_truncated, _zeroed, _emptied, _flipped, _deleted]
  damages = [(way, True) for way in ways] + [(way, False) for way in ways]
  damages = damages[:2] if bench.quick else damages
  yield from bench.together(functools.partial(_resume, bench), enumerate(damages))
  numbers = range(6 if bench.quick else 40)
  yield from bench.workers(functools.partial(_load, bench), numbers)
