"""How fast the input pipeline alone is, and how much host memory it takes as the data grow.

  python -m lus_jax.benchmarks.input --size 128 --batch 16 --scales 1 10

Frames (segmentation) and clips with the channels of two models (clinical tasks), held on the
device and streamed, from simulated data in a temporary directory. Of frames, a set 10x larger is
one of 10x the patients; of clips, the same videos are written 10x.

Every measurement runs in a process of its own, and all of them take turns; a rate is the median
over pieces of ten batches, each brought to the device. Memory is the median over the batches: what
belongs to the process alone (RssAnon), and with that what the system can drop at any time, the
files it has mapped (RSS); the mean of the rounds. Needs the data libraries.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from concurrent import futures
from multiprocessing import get_context
from types import SimpleNamespace

import jax
import numpy as np

from lus_jax.benchmarks import memory, processes
from lus_jax.data import clips, datasets, pipeline
from lus_jax.files import write_text
from lus_jax.results import versions

CACHES = ("device", "stream")
# Of scale 1. Of videos there need not be many, for they are written again.
FRAME_PATIENTS, VIDEO_PATIENTS = 12, 3
N_FRAMES = 16
SOURCES, N_SEGMENT = 2, 8
PIECE = 10  # batches that are timed together: single ones wait for the reading threads or do not
ROUNDS = 2


def _open(directory, kind, *, size, patients):
  return datasets.open_dataset(
    SimpleNamespace(
      name="lus_phantom",
      dir="",
      prepared_dir=os.fspath(directory),
      image_size=size,
      split_unit="patient",
      split_seed=0,
      phantom={"n_patients": patients, "n_frames": N_FRAMES},
    ),
    kind,
  )


def file(directory, scale, number):
  """Where the image (number 0) or the maps of a model (from 1 on) of all clips' frames are."""
  return pathlib.Path(directory) / f"clips_{scale}_{number}.npy"


def prepare(directory, *, size, scales):
  """Makes the frames and clips of every scale in a directory; returns the videos' frames [n]."""
  for scale in scales:
    _open(directory, "frames", size=size, patients=FRAME_PATIENTS * scale)
  dataset = _open(directory, "videos", size=size, patients=VIDEO_PATIENTS)
  videos = [dataset.splits["train"][i] for i in range(len(dataset.splits["train"]))]
  arrays = [np.concatenate([video[name] for video in videos]) for name in ("frames", "truth")]
  n_frames = np.array([len(video["frames"]) for video in videos])
  for scale in scales:
    # As `lus_jax.inference.channels` leaves them: the image, and the maps of every model.
    for number in range(1 + SOURCES):
      array = arrays[min(number, 1)]
      stored = np.lib.format.open_memmap(
        file(directory, scale, number),
        mode="w+",
        dtype=np.uint8,
        shape=(scale * len(array), *array.shape[1:]),
      )
      for i in range(scale):
        stored[i * len(array) : (i + 1) * len(array)] = array
      stored.flush()
  return n_frames


def _frames(directory, *, size, batch, cache, scale):
  dataset = _open(directory, "frames", size=size, patients=FRAME_PATIENTS * scale)
  frames = pipeline.Frames(dataset.splits["train"], cache=cache)
  return frames.size, frames.training_batches(batch, seed=0)


def _clips(directory, *, n_frames, batch, cache, scale):
  n_frames = np.tile(n_frames, scale)
  image, *channels = (
    np.load(file(directory, scale, number), mmap_mode="r") for number in range(1 + SOURCES)
  )
  store = clips.ClipStore(
    image=image,
    channels=channels,
    fold_channels=np.arange(SOURCES)[None],
    offset=np.concatenate([[0], np.cumsum(n_frames)[:-1]]),
    n_frames=n_frames,
    n_segment=N_SEGMENT,
    cache=cache,
  )

  def plan(step):
    generator = np.random.default_rng(step)
    return {"frames": store.clips(generator.integers(0, len(n_frames), (1, batch)), generator)}

  return len(n_frames), store.batches(plan)


def measure(directory, n_frames, what, *, size, batch, cache, scale, pieces):
  """Draws batches and waits for each.

  Args:
    directory: of `prepare`.
    n_frames: of `prepare`.
    what: 'frames' or 'clips'.
    size: H = W in pixels.
    batch: B.
    cache: 'device' or 'stream'.
    scale: how many times as much data.
    pieces: how many pieces of `PIECE` batches are timed.

  Returns:
    A dict of the device, the set's size, seconds an example by piece and the memory.
  """
  if what == "frames":
    n, batches = _frames(directory, size=size, batch=batch, cache=cache, scale=scale)
  else:
    n, batches = _clips(directory, n_frames=n_frames, batch=batch, cache=cache, scale=scale)
  seconds, used = [], []
  for _ in range(1 + pieces):
    since = time.perf_counter()
    for _ in range(PIECE):
      jax.block_until_ready(next(batches))
      used.append(memory.of_process("RssAnon", "VmRSS"))
    seconds.append((time.perf_counter() - since) / (PIECE * batch))
  own, mapped = zip(*used, strict=True)
  return {
    "device": jax.devices()[0].device_kind,
    "examples": n,
    "seconds": seconds[1:],  # the first is the warm-up
    "memory_bytes": None if own[0] is None else statistics.median(own),
    "rss_bytes": None if own[0] is None else statistics.median(mapped),
  }


def run(args):
  """Measures everything; returns `machine`, `versions` and `rows`."""
  combinations = [
    {"what": what, "cache": cache, "scale": scale}
    for what in ("frames", "clips")
    for cache in CACHES
    for scale in args.scales
  ]
  # A fresh process each time, so that none sees what another one left in memory.
  alone = functools.partial(
    futures.ProcessPoolExecutor, 1, mp_context=get_context("spawn"), max_tasks_per_child=1
  )
  with tempfile.TemporaryDirectory() as directory, alone() as pool:
    n_frames = pool.submit(prepare, directory, size=args.size, scales=args.scales).result()
    options = {"size": args.size, "batch": args.batch, "pieces": args.pieces}
    found = [
      [
        pool.submit(measure, directory, n_frames, **options, **combination).result()
        for combination in combinations
      ]
      for _ in range(ROUNDS)
    ]
  rows = []
  for combination, results in zip(combinations, zip(*found, strict=True), strict=True):
    seconds = statistics.median(x for result in results for x in result["seconds"])
    row = combination | {"size": args.size, "batch": args.batch, "examples": results[0]["examples"]}
    row |= {"examples_per_s": round(1 / seconds, 1), "ms_per_example": round(1000 * seconds, 4)}
    for name in ("memory_bytes", "rss_bytes"):
      # How far reading threads were ahead differs from round to round.
      row[name] = results[0][name] and statistics.mean(result[name] for result in results)
    first = next((r for r in rows if all(r[k] == row[k] for k in ("what", "cache"))), row)
    row["time_to_first"] = round(row["ms_per_example"] / first["ms_per_example"], 3)
    for name in ("memory", "rss"):
      own, other = row[f"{name}_bytes"], first[f"{name}_bytes"]
      row[f"{name}_to_first"] = own and round(own / other, 3)
    rows.append(row)
  device = found[0][0]["device"]
  return {
    "machine": f"{device}, {os.cpu_count()} cores, {platform.system()}",
    "versions": versions(),
    "rows": rows,
  }


def table(result):
  """The measured rows as Markdown."""
  first = result["rows"][0]["scale"]
  lines = [
    "| what | cache | scale | examples | examples/s | ms an example | MiB own | MiB RSS "
    f"| time to {first}x | own to {first}x | RSS to {first}x |",
    "|" + " --- |" * 11,
  ]
  for row in result["rows"]:
    sizes = [
      "" if row[name] is None else f"{row[name] / 2**20:.0f}"
      for name in ("memory_bytes", "rss_bytes")
    ]
    cells = [row["what"], row["cache"], f"{row['scale']}x", row["examples"]]
    cells += [row["examples_per_s"], f"{row['ms_per_example']:.3f}", *sizes]
    cells += [row[name] for name in ("time_to_first", "memory_to_first", "rss_to_first")]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join(lines)


def main(argv=None):
  """Measures, prints a table and writes `--out`."""
  positive = processes.positive
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.input",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--size", type=positive, default=128, help="H and W in pixels")
  parser.add_argument("--batch", type=positive, default=16, help="frames, or clips")
  parser.add_argument("--scales", type=positive, nargs="+", default=[1, 10])
  parser.add_argument(
    "--pieces",
    type=positive,
    default=12,
    help=f"pieces of {PIECE} batches, of each of {ROUNDS} rounds",
  )
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  result = run(args)
  print(f"{result['machine']}; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
  print(f"{args.size} x {args.size}, batch {args.batch}\n\n{table(result)}")
  if args.out:
    write_text(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
