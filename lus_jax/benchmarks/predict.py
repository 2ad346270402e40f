"""How many frames a second prediction reaches from a file to maps, beside PyTorch and onnxruntime.

  python -m lus_jax.benchmarks.predict --size 512 --members 2        # --peers torch, --peers none

A clip is made (noise, as AVI) and decoded, its frames are fitted into the networks' size, seen by
every member, and the maps brought back to the clip's size as bytes: `lus_jax.inference.frames`, the
same for all, with other networks put in: the members of the sweep, as many FPNs of
segmentation_models_pytorch in PyTorch (as they are, and channels last), and the same ones by
onnxruntime, exported by PyTorch. All have random weights, the same sizes, and float32. `files` is
ours with what is written by default, PNG and overlays.

Each is a process of its own, and all take turns; figures are medians over the rounds, and a ratio
is the median of ours to the other's within each round, so that a machine that others use too slows
both down. A peer that is not installed is a row that says so.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from types import SimpleNamespace

import numpy as np

from lus_jax import command_line, models
from lus_jax import predict as predict_lib
from lus_jax.benchmarks import peers, processes
from lus_jax.benchmarks.throughput import LOSS, THRESHOLDS, cores
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.media import readers, writers
from lus_jax.media.clips import Media
from lus_jax.training import state as state_lib
from lus_jax.training.objective import Objective
from lus_jax.training.sweep import Sweep, choose_strategy

CLASSES = tuple(f"class_{k}" for k in range(6))
PEERS = ("torch", "onnxruntime")


def make_clip(directory, args):
  """Writes the clip; returns its path."""
  r = np.random.default_rng(0)
  frames = r.integers(0, 256, (args.frames, args.height, args.width), dtype=np.uint8)
  target = pathlib.Path(directory) / "clip"
  media = Media(target, (target,), *frames.shape, frames_per_second=25.0)
  return writers.write(target, frames, media)


class Ours:
  """Our members, ready to be timed.

  Args:
    args: of `parse`.
    file: the clip.
    files: whether what is found is written, too.
  """

  def __init__(self, args, file, files=False):
    self._file, self._files = file, files
    config = SimpleNamespace(
      data=SimpleNamespace(image_size=args.size),
      model=SimpleNamespace(
        encoder=args.encoder,
        width=1.0,
        dropout=0.2,
        dtype="float32",
        init_from="",
        to_dict=lambda: {},
      ),
      loss=LOSS,
      sweep=SimpleNamespace(thresholds=THRESHOLDS[: args.members], members=(), seeds=1),
      get=lambda name, default=None: default,
      to_json=lambda: "{}",
    )
    objective = Objective(config)
    network = state_lib.Network(
      models.build_model(config.model, in_channels=1, classes=len(CLASSES), seed=0, levels=1)
    )
    sweep = Sweep([objective.scalars(one) for one in objective.members], choose_strategy("auto"))
    weights = {"params": network.params, "batch_stats": network.batch_stats}
    self._trained = trained_lib.Trained(
      config=config,
      objective=objective,
      views=objective.views()[0],
      dataset={"name": "none", "classes": list(CLASSES)},
      patients={},
      network=network,
      sweep=sweep,
      weights=sweep.place([weights] * args.members),
    )
    self.sample()

  def sample(self):
    """Frames a second."""
    if not self._files:
      return _rate(self._trained, self._file, self._trained.compiled_probability)
    load = trained_lib.load
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
      trained_lib.load = lambda *_, **__: self._trained
      try:
        since = time.perf_counter()
        found = predict_lib.run(workdir="none", source=self._file, out=pathlib.Path(out) / "out")
        return len(found["frames"]) / (time.perf_counter() - since)
      finally:
        trained_lib.load = load


def _rate(trained, file, probability):
  since = time.perf_counter()
  media = readers.probe(file)
  numbers = list(range(media.n_frames))
  found = frames_lib.predict(trained, media, frames=numbers, probability=probability)
  assert sum(1 for _ in found) == len(numbers)
  return len(numbers) / (time.perf_counter() - since)


class _Peer:
  """Another library's networks on the same way from a file to maps."""

  def __init__(self, args, file):
    self._file = file
    sweep = SimpleNamespace(members=None, to_host=lambda found: found)
    config = SimpleNamespace(data=SimpleNamespace(image_size=args.size))
    self._trained = SimpleNamespace(sweep=sweep, weights=None, config=config)
    self._networks = [self.network(args) for _ in range(args.members)]
    self.sample()

  def sample(self):
    """Frames a second."""
    return _rate(self._trained, self._file, self._probability)

  def _probability(self, weights, members, image, where):
    del weights, members
    image = np.ascontiguousarray(np.moveaxis(image, -1, 1))
    return [np.where(where, np.moveaxis(run(image), 1, -1), 0) for run in self._networks]


class Torch(_Peer):
  """`args.members` FPNs in PyTorch, with arrays in its own order or channels last."""

  def __init__(self, args, file, channels_last=False):
    self._channels_last = channels_last
    super().__init__(args, file)

  def network(self, args):
    """A function from images [B, 1, H, W] to probabilities [B, K, H, W]."""
    torch = peers.import_torch()
    torch.set_num_threads(cores())
    model = peers.fpn(args.encoder, in_channels=1, classes=len(CLASSES)).eval()
    order = torch.channels_last if self._channels_last else torch.contiguous_format
    model = model.to(memory_format=order)

    def run(image):
      with torch.inference_mode():
        image = torch.from_numpy(image).contiguous(memory_format=order)
        return model(image).sigmoid().numpy()

    return run


class Onnx(_Peer):
  """`args.members` FPNs, as PyTorch exports them, in onnxruntime."""

  def network(self, args):
    """A function from images [B, 1, H, W] to probabilities [B, K, H, W]."""
    torch = peers.import_torch()
    import onnxruntime

    model = peers.fpn(args.encoder, in_channels=1, classes=len(CLASSES)).eval()
    model = torch.nn.Sequential(model, torch.nn.Sigmoid())
    written = io.BytesIO()
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # that there is a newer exporter, which needs more packages
      example = torch.zeros(4, 1, args.size, args.size)
      names = {"input_names": ["image"], "output_names": ["probability"]}
      axes = {"dynamic_axes": {"image": {0: "batch"}, "probability": {0: "batch"}}}
      torch.onnx.export(model, (example,), written, dynamo=False, **names, **axes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(
      written.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(None, {"image": image})[0]


def measure(args):
  """Times all in turn.

  Args:
    args: of `parse`.

  Returns:
    Rows: a dict with `name`, `ok`, and `frames_per_second` and `ratio` (ours to it), or `reason`.
  """
  start = processes.Here if args.in_process else processes.Apart
  sides = {"ours": (Ours, False), "files": (Ours, True)}
  if "torch" in args.peers:
    sides |= {"torch, eager": (Torch, False), "torch, channels_last": (Torch, True)}
  if "onnxruntime" in args.peers:
    sides["onnxruntime"] = (Onnx,)
  rows, workers, found = {name: {"name": name, "ok": False} for name in sides}, {}, {}
  with tempfile.TemporaryDirectory() as directory:
    file = make_clip(directory, args)
    try:
      for name, (make, *more) in sides.items():
        try:
          workers[name] = start(make, args, file, *more)
          found[name] = []
        except processes.Failed as failed:
          rows[name]["reason"] = failed.reason
      for _ in range(args.rounds):
        for name, worker in list(workers.items()):
          try:
            found[name].append(worker.ask("sample"))
          except processes.Failed as failed:
            rows[name]["reason"] = failed.reason
            del workers[name], found[name]
    finally:
      for worker in workers.values():
        worker.stop()
  for name, rates in found.items():
    rows[name] |= {"ok": True, "frames_per_second": statistics.median(rates)}
    if "ours" in found:
      ratios = [a / b for a, b in zip(found["ours"], rates, strict=True)]
      rows[name] |= {"ratio": statistics.median(ratios), "spread": (min(ratios), max(ratios))}
  return list(rows.values())


def table(rows):
  """The rows as Markdown."""
  columns = {
    "side": lambda r: r["name"],
    "frames/s": lambda r: f"{r['frames_per_second']:.3g}",
    "ours / it": lambda r: f"{r['ratio']:.2f}" if "ratio" in r else "",
    "of rounds": lambda r: "{:.2f} to {:.2f}".format(*r["spread"]) if "spread" in r else "",
  }
  return processes.table(columns, rows, known=1)


def parse(argv=None):
  """The options of the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.benchmarks.predict",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name, default, what in (
    ("size", 512, "of the networks' frames, a multiple of 32"),
    ("members", 2, f"networks, at most {len(THRESHOLDS)}"),
    ("frames", 16, "of the clip"),
    ("height", 480, "of the clip"),
    ("width", 640, "of the clip"),
    ("rounds", 5, "in which each has a turn"),
  ):
    parser.add_argument(f"--{name}", type=processes.positive, default=default, help=what)
  parser.add_argument("--encoder", default="resnet18", help="of the FPN")
  parser.add_argument(
    "--peers", nargs="*", choices=(*PEERS, "none"), default=PEERS, help="what it is measured beside"
  )
  parser.add_argument("--in-process", action="store_true", help="no processes, for a debugger")
  args = parser.parse_args(argv)
  if args.members > len(THRESHOLDS):
    parser.error(f"--members: at most {len(THRESHOLDS)}")
  args.peers = [name for name in args.peers if name != "none"]
  return args


def main(argv=None):
  """Measures and prints; returns the exit code."""
  args = parse(argv)

  def run():
    before = os.getloadavg()[0]
    print(table(measure(args)))
    print(
      f"\n{args.members} x FPN on {args.encoder} at {args.size}, clip of {args.frames} frames of "
      f"{args.width} x {args.height}, {cores()} cores; load before and after: {before:.1f}, "
      f"{os.getloadavg()[0]:.1f}"
    )

  return command_line.run(run)


if __name__ == "__main__":
  sys.exit(main())
