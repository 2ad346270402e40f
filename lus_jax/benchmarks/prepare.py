"""How fast users' data are prepared, and in how much host memory, as they grow.

  python -m lus_jax.benchmarks.prepare --size 224 --clips 100 --scales 1 10 --processes 1 2

Data folders of simulated speckle in a temporary directory, clips of 5 frames of 640 x 480, as npy
and one labelled frame of three classes each: as frames (for segmentation) and as videos (for the
clinical tasks). A folder 10x larger has 10x the clips, all of them different.

Every measurement runs in a process of its own, and all of them take turns: everything from reading
the folder to the prepared files, which are removed again. A time is the median of the rounds.
Memory is the largest of them that belongs to the process alone (RssAnon): of the one that prepares,
and of its largest worker. Needs the data libraries, and Linux for the memory.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import threading
import time
from concurrent import futures
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
from PIL import Image

from lus_jax.benchmarks.processes import positive
from lus_jax.data import datasets
from lus_jax.files import write_text
from lus_jax.results import versions

KINDS = ("frames", "videos")
CLASSES = ("pleura", "b_line", "a_line")
HEIGHT, WIDTH, N_FRAMES = 480, 640, 5
ROUNDS = 2
PAUSE = 0.02  # seconds between two looks at the memory


def write_folder(directory, n):
  """Writes a `lus_folder` of n clips, of which no two are alike."""
  directory = pathlib.Path(directory)
  (directory / "videos").mkdir(parents=True)
  speckle = np.random.default_rng(0).integers(0, 128, (HEIGHT, WIDTH)).astype(np.uint8)
  manifest, labels = ["video,patient"], ["video,frame,masks"]
  for i in range(n):
    generator = np.random.default_rng(i)
    down, right = generator.integers(0, (HEIGHT, WIDTH))
    clip = np.stack(
      [np.roll(speckle, (down + 3 * frame, right), (0, 1)) for frame in range(N_FRAMES)]
    )
    clip[0, 0, :3] = i % 256, i // 256 % 256, i // 256**2
    np.save(directory / "videos" / f"{i:06d}.npy", clip)
    (directory / "masks" / f"{i:06d}").mkdir(parents=True)
    for name in CLASSES:
      mask = np.zeros((HEIGHT, WIDTH), np.uint8)
      top, left = generator.integers(0, (HEIGHT - 60, WIDTH - 120))
      mask[top : top + 60, left : left + 120] = 153
      mask[top + 20 : top + 40, left : left + 120] = 255
      Image.fromarray(mask).save(directory / "masks" / f"{i:06d}" / f"{name}.png")
    manifest.append(f"{i:06d}.npy,p{i % max(3, n // 10):05d}")
    labels.append(f"{i:06d}.npy,0,{i:06d}")
  for name, lines in (("manifest", manifest), ("labels", labels)):
    (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
  about = {"name": "speckle", "licence": "none", "classes": CLASSES}
  (directory / "dataset.json").write_text(json.dumps(about))


def _own_memory(process):
  """Bytes that belong to a process alone; 0 where it is gone."""
  try:
    lines = (pathlib.Path("/proc") / process / "status").read_text().splitlines()
  except OSError:
    return 0
  return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def _workers():
  """The numbers of this process's workers; one that has only just begun is still its copy."""
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
      if int(parent) == os.getpid() and b"pool.serve" in (path / "cmdline").read_bytes():
        yield path.name


class _Watch(threading.Thread):
  """Looks at the memory of this process and of its workers."""

  def __init__(self):
    super().__init__(daemon=True)
    self.own, self.worker, self._end = 0, 0, threading.Event()

  def run(self):
    while not self._end.wait(PAUSE):
      self.own = max(self.own, _own_memory("self"))
      self.worker = max([self.worker, *map(_own_memory, _workers())])

  def stop(self):
    self._end.set()
    self.join()


def measure(folder, kind, *, size, processes):
  """Prepares a folder.

  Args:
    folder: of `write_folder`.
    kind: 'frames' or 'videos'.
    size: H = W in pixels.
    processes: workers; 1: none.

  Returns:
    A dict of the number of examples, seconds, and bytes of memory (None where they are not known).
  """
  # What is imported on the way is no part of it.
  import tensorflow  # noqa: F401
  import tensorflow_datasets  # noqa: F401

  knows = pathlib.Path("/proc/self/status").exists()
  watch = _Watch()
  with tempfile.TemporaryDirectory() as prepared:
    config = SimpleNamespace(
      name="lus_folder",
      dir=os.fspath(folder),
      prepared_dir=prepared,
      num_processes=processes,
      image_size=size,
      split_unit="patient",
      split_seed=0,
    )
    if knows:
      watch.start()
    since = time.perf_counter()
    dataset = datasets.open_dataset(config, kind)
    seconds = time.perf_counter() - since
    if knows:
      watch.stop()
  return {
    "examples": sum(len(split) for split in dataset.splits.values()),
    "seconds": seconds,
    "memory_bytes": watch.own if knows else None,
    "worker_bytes": watch.worker if knows and processes > 1 else None,
  }


def run(args):
  """Measures everything; returns `machine`, `versions` and `rows`."""
  combinations = [
    {"what": kind, "processes": processes, "scale": scale}
    for kind in KINDS
    for processes in args.processes
    for scale in args.scales
  ]
  # A fresh process each time, so that none sees what another one left in memory.
  alone = functools.partial(
    futures.ProcessPoolExecutor, 1, mp_context=get_context("spawn"), max_tasks_per_child=1
  )
  found = []
  with tempfile.TemporaryDirectory() as directory, alone() as pool:
    folders = {scale: pathlib.Path(directory) / str(scale) for scale in args.scales}
    for scale, folder in folders.items():
      write_folder(folder, scale * args.clips)
    for _ in range(ROUNDS):
      found.append(
        [
          pool.submit(
            measure, folders[one["scale"]], one["what"], size=args.size, processes=one["processes"]
          ).result()
          for one in combinations
        ]
      )
  rows = []
  for combination, results in zip(combinations, zip(*found, strict=True), strict=True):
    seconds = statistics.median(result["seconds"] for result in results)
    row = combination | {"size": args.size, "examples": results[0]["examples"]}
    row |= {"seconds": round(seconds, 3), "examples_per_s": round(row["examples"] / seconds, 2)}
    for name in ("memory_bytes", "worker_bytes"):
      known = [result[name] for result in results if result[name] is not None]
      row[name] = max(known) if known else None
    first = next(r for r in (*rows, row) if _alike(r, row))
    row["time_to_first"] = round(first["examples_per_s"] / row["examples_per_s"], 3)
    for name in ("memory", "worker"):
      own, other = row[f"{name}_bytes"], first[f"{name}_bytes"]
      row[f"{name}_to_first"] = round(own / other, 3) if own and other else None
    rows.append(row)
  return {
    "machine": f"{os.cpu_count()} cores, {platform.system()}",
    "versions": versions(),
    "rows": rows,
  }


def _alike(row, other):
  return all(row[name] == other[name] for name in ("what", "processes"))


def table(result):
  """The measured rows as Markdown."""
  first = result["rows"][0]["scale"]
  lines = [
    "| what | processes | scale | examples | s | examples/s | MiB own | MiB a worker "
    f"| time an example to {first}x | own to {first}x | a worker to {first}x |",
    "|" + " --- |" * 11,
  ]
  for row in result["rows"]:
    own, worker = (
      "" if row[name] is None else f"{row[name] / 2**20:.0f}"
      for name in ("memory_bytes", "worker_bytes")
    )
    cells = [row["what"], row["processes"], f"{row['scale']}x", row["examples"]]
    cells += [f"{row['seconds']:.1f}", f"{row['examples_per_s']:.1f}", own, worker]
    ratios = [row[f"{name}_to_first"] for name in ("time", "memory", "worker")]
    cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join(lines)


def main(argv=None):
  """Measures, prints a table and writes `--out`."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.prepare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--size", type=int, default=224, help="H and W in pixels")
  parser.add_argument("--clips", type=int, default=100, help="of scale 1")
  parser.add_argument("--scales", type=positive, nargs="+", default=[1, 10])
  parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2])
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  for name, least in (("size", 32), ("clips", 30)):
    if getattr(args, name) < least:
      parser.error(f"--{name} must be at least {least}")
  result = run(args)
  print(f"{result['machine']}; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
  print(f"{args.size} x {args.size}\n\n{table(result)}")
  if args.out:
    write_text(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
