"""GPUs that need not be there: XLA compiles for a described one, and its program tells the cost.

Facts are whether it compiles, its memory, its kernels and the bytes these move. Times are floors,
or guesses that name what they assume: nothing is run, and cuDNN's algorithms are not tuned.
"""

import collections
import dataclasses
import importlib
import importlib.util
import math
import re

import jax
import numpy as np

from lus_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Card:
  """What a vendor's data sheet says of a GPU, and what XLA asks to know.

  Attributes:
    name: as the driver has it.
    bandwidth: of its memory, bytes/s.
    memory: bytes.
    bfloat16: FLOP/s of dense matrix products, accumulated in float32.
    tensor_float32: likewise, of float32 numbers as the matrix units round them.
    cores: streaming multiprocessors.
    capability: CUDA's, major and minor.
    l2: bytes of the cache that all cores share.
    shared: bytes of a core's shared memory, and of what one block may ask for.
    link: bytes/s to the other cards of its machine, each way: NVLink, or PCIe.
    threads: that a core holds.
    clock: GHz.
  """

  name: str
  bandwidth: float
  memory: int
  bfloat16: float
  tensor_float32: float
  cores: int
  capability: tuple[int, int]
  l2: int
  shared: tuple[int, int]
  link: float
  threads: int = 2048
  clock: float = 1.98

  def rate(self, dtype):
    """FLOP/s of matrix products of a compute type."""
    return self.bfloat16 if dtype == "bfloat16" else self.tensor_float32


_HOPPER = {
  "bfloat16": 989e12,
  "tensor_float32": 494e12,
  "cores": 132,
  "capability": (9, 0),
  "l2": 50 << 20,
  "shared": (233472, 232448),
  "link": 450e9,
}
CARDS = {
  "h100": Card("NVIDIA H100 80GB HBM3", 3.352e12, 84942979072, **_HOPPER),
  "h200": Card("NVIDIA H200", 4.8e12, 151397597184, **_HOPPER),
  "a100": Card(
    "NVIDIA A100-SXM4-80GB",
    2.039e12,
    85094825984,
    bfloat16=312e12,
    tensor_float32=156e12,
    cores=108,
    capability=(8, 0),
    l2=40 << 20,
    shared=(167936, 166912),
    link=300e9,
    clock=1.41,
  ),
  "a6000": Card(
    "NVIDIA RTX A6000",
    0.768e12,
    51033931776,
    bfloat16=154.8e12,
    tensor_float32=77.4e12,
    cores=84,
    capability=(8, 6),
    l2=6 << 20,
    shared=(102400, 101376),
    link=32e9,
    threads=1536,
    clock=1.80,
  ),
}

# What a time is guessed by: the shares of the data sheet's bandwidth and matrix rate that kernels
# and convolutions reach, and how long the smallest kernel takes, and the smallest of those that
# several cards run together. The highest share of the matrix rate known of a convolutional network
# is .52 (airbench96 on an A100).
BANDWIDTH_SHARE, CONVOLUTION_SHARE, LEAST, TOGETHER = 0.9, 0.52, 2.5e-6, 12e-6
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter")

_DESCRIPTION = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 shared_memory_per_core: {shared[0]}
 threads_per_core_limit: {threads} core_count: {cores} fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
 memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2}
 clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {shared[1]}
 cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }} device_description_str: "{name}"
"""


def check():
  """Refuses an environment without XLA's compiler for CUDA (`UserError`)."""
  if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
    raise UserError(
      "compiling for a GPU takes jax's CUDA plugin, though no GPU: pip install 'lus_jax[cuda12]' "
      "(5 GB)."
    )


def describe(card, *, devices=1):
  """Devices of a card to compile for; nothing can run on them.

  From then on this process takes itself for one with a GPU, since the networks choose their
  operations by the backend: call it in a process of its own.

  Args:
    card: a key of `CARDS`.
    devices: how many, joined as those of one machine.

  Returns:
    A list of jax devices.
  """
  check()
  jax.config.update("jax_platforms", "cpu")
  from jax._src import xla_bridge
  from jax.experimental import topologies

  # Without a GPU jax knows no platform of that name, which its lowering asks for (jax issue 23971).
  known = xla_bridge.canonicalize_platform
  xla_bridge.canonicalize_platform = lambda platform, *args, **kwargs: (
    "cuda" if platform == "gpu" else known(platform, *args, **kwargs)
  )
  plugin = importlib.import_module("jax_plugins.xla_cuda12")
  if "cuda" not in xla_bridge.backends_are_initialized.__globals__["_backend_factories"]:
    plugin.initialize()
  topology = topologies.get_topology_desc(
    "topology",
    "cuda",
    target_config=_DESCRIPTION.format(**dataclasses.asdict(CARDS[card])),
    topology=f"1x1x{devices}",
  )
  jax.default_backend = lambda: "gpu"
  return list(topology.devices)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One launch of a compiled program.

  Attributes:
    kind: what is launched.
    moved: bytes that it reads and writes.
    flop: of a convolution; 0 of anything else.
    shape: of its result.
    source: the operation in Python that it comes from, as XLA remembers it.
  """

  kind: str
  moved: int
  flop: int
  shape: str
  source: str


_WIDTHS = {
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
  **dict.fromkeys(("f32", "s32", "u32"), 4),
  **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_ARRAY = re.compile(rf"\b({'|'.join(_WIDTHS)})\[([\d,]*)\]")
_NO_LAUNCH = {
  *("get-tuple-element", "parameter", "bitcast", "constant", "tuple", "after-all", "iota-done"),
  *("copy-done", "all-reduce-done", "all-gather-done", "collective-permute-done", "async-done"),
  *("optimization-barrier", "partition-id", "replica-id"),
}
_CALLED = re.compile(r"(?:body|to_apply|branch_computations|calls)=\{?((?:%[\w.\-]+(?:, )?)+)")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z\-]*)\((.*)")


def kernels(hlo):
  """Every launch of an optimised program, in order, a loop's body as often as it is run.

  Of a conditional's branches the one that moves most counts.

  Args:
    hlo: text of the optimised program (`compiled.as_text()`).

  Returns:
    A list of `Kernel`.
  """
  bodies, entry = _computations(hlo)
  return _launches(bodies, entry)


def _computations(hlo):
  bodies, name, entry = {}, None, None
  for line in hlo.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{", line)
    if head and not line.startswith(" "):
      name = head[2]
      entry = name if head[1] else entry
      bodies[name] = []
    elif name is not None:
      bodies[name].append(line)
  return bodies, entry


def _launches(bodies, name):
  shapes, found = {}, []
  for line in bodies.get(name, ()):
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    name, shape, operation, rest = match.groups()
    shapes[name] = shape
    if operation in _NO_LAUNCH:
      continue
    called = _CALLED.findall(rest)
    if operation in ("while", "call", "conditional", "async-start"):
      branches = [_launches(bodies, x.strip(" %")) for x in ",".join(called).split(",") if x]
      times = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
      most = max(branches, key=lambda x: sum(k.moved for k in x), default=[])
      found += most * (int(times[1]) if times else 1)
      continue
    operands = [shapes.get(x, "") for x in re.findall(r"%([\w.\-]+)", rest.split(")")[0])]
    read = [_bytes(x) for x in operands]
    if operation == "fusion" and called:
      # Of a large array often a slice is taken, and no more is read.
      slices = _sliced(bodies.get(called[0].strip(" %,"), ()))
      read = [min(n, slices.get(i, n)) for i, n in enumerate(read)]
    target = re.search(r'custom_call_target="([^"]+)"', line)
    kind = target[1] if target else re.sub(r"[.\d]+$", "", called[0].strip(" %,")) if called else ""
    source = re.search(r'op_name="([^"]+)"', line)
    found.append(
      Kernel(
        kind=f"{operation} {kind}".strip(),
        moved=_bytes(shape) + sum(read),
        flop=_convolution_flop(kind, shape, operands, line),
        shape=shape.split("{")[0].strip("("),
        source=source[1] if source else "",
      )
    )
  return found


def _sliced(body):
  """By parameter of a fused computation, the bytes read where nothing but slices of it are used."""
  numbers, used = {}, {}
  for line in body:
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    name, shape, operation, rest = match.groups()
    if operation == "parameter":
      numbers[name] = int(rest.split(")")[0])
      continue
    for i, operand in enumerate(re.findall(r"%([\w.\-]+)", rest.split(")")[0])):
      taken = operation in ("slice", "dynamic-slice", "gather") and i == 0
      used.setdefault(operand, []).append(_bytes(shape) if taken else math.inf)
  return {number: sum(used.get(name, [0])) for name, number in numbers.items()}


def _bytes(shape):
  return sum(_WIDTHS[kind] * _size(dims) for kind, dims in _ARRAY.findall(shape))


def _size(dims):
  return int(np.prod([int(x) for x in dims.split(",") if x], dtype=np.int64))


def _convolution_flop(kind, shape, operands, line):
  """2 x positions of the output x size of the kernel, whichever of the three is computed."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
  if "conv" not in kind or not labels or len(operands) < 2:
    return 0
  arrays = [_ARRAY.search(x) for x in (shape, *operands[:2])]
  if None in arrays:
    return 0
  result, first, second = ([int(x) for x in a[2].split(",")] for a in arrays)
  # By cuDNN's order of arguments: the map that the kernel is slid over to, and the kernel.
  of_input, of_kernel, of_output = labels.groups()
  if "BackwardInput" in kind:
    output, kernel = first, second
  elif "BackwardFilter" in kind:
    output, kernel = second, result
  else:
    output, kernel = result, second
  channels = kernel[of_kernel.index("o")]
  return int(2 * np.prod(output, dtype=np.int64) * np.prod(kernel, dtype=np.int64) // channels)


def seconds(launches, card, dtype):
  """A guess of the time of a program: kernel by kernel, by bytes or by FLOP, whichever is longer.

  What cards do together takes what it moves over the link; a sum over cards goes there and back.

  Args:
    launches: of `kernels`.
    card: a `Card`.
    dtype: the compute type.
  """
  bandwidth, rate = BANDWIDTH_SHARE * card.bandwidth, CONVOLUTION_SHARE * card.rate(dtype)
  return sum(
    max(TOGETHER, k.moved / card.link)
    if k.kind.startswith(_COLLECTIVES)
    else max(LEAST, k.moved / bandwidth, k.flop / rate)
    for k in launches
  )


def by_kind(launches):
  """Kinds of kernels, those that move most first: `(kind, launches, bytes)`."""
  moved, count = collections.Counter(), collections.Counter()
  for kernel in launches:
    moved[kernel.kind] += kernel.moved
    count[kernel.kind] += 1
  return [(kind, count[kind], total) for kind, total in moved.most_common()]
