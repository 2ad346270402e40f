"""A frozen model as an ONNX graph: network, output and calibration, written layer by layer.

Every kind of layer has a function here that writes what it computes once it is trained. Within the
graph axes are ONNX's, [batch, channels, rows, columns]; its inputs and outputs have ours.
"""

import json
import math

import numpy as np
import onnx
from flax import nnx
from onnx import helper, numpy_helper

import lus_jax
from lus_jax import losses
from lus_jax.errors import UserError
from lus_jax.inference import calibration
from lus_jax.models import designs, fpn, layers, resnet
from lus_jax.training import members

# What runtimes of 2022 read, and all operators here have been the same since.
OPSET, IR_VERSION = 17, 8
IMAGE, WHERE, PROBABILITY = "image", "where", "probability"


class _Graph:
  """Nodes and constants in the order they were written in."""

  def __init__(self):
    self.nodes, self.constants, self.written = [], [], set()

  def add(self, op, *inputs, **attributes):
    """Adds a node; inputs are names or arrays, the result is the name of its output."""
    inputs = [x if isinstance(x, str) else self._constant(x) for x in inputs]
    name = f"{op}_{len(self.nodes)}"
    self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
    return name

  def _constant(self, array):
    name = f"constant_{len(self.constants)}"
    self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def model(trained, number, *, meaning):
  """One view as an ONNX model: `image` [batch, S, S, 1] to `probability` [batch, S, S, K].

  Views whose output depends on where the frame is (`needs_where`) take that too, as the input
  `where` [batch, S, S, 1] of bool.

  Args:
    trained: a `lus_jax.inference.trained.Trained`, computing in float32.
    number: of the view.
    meaning: of its probabilities, in words, for `metadata_props`.

  Returns:
    An `onnx.ModelProto`, checked.

  Raises:
    UserError: a layer has no function here.
  """
  view, size, classes = trained.views[number], trained.config.data.image_size, trained.classes
  weights = trained.weights_of(number)
  network = trained.network.module(weights["params"], weights["batch_stats"])
  graph = _Graph()
  where = graph.add("Transpose", WHERE, perm=(0, 3, 1, 2)) if trained.needs_where(view) else None
  image = graph.add("Transpose", IMAGE, perm=(0, 3, 1, 2))
  head = _write(graph, network, image, size)
  _refuse_unwritten(network, graph.written)
  own = trained.sweep.members[number]
  probability = _output(graph, trained, view, own.get("calibration", {}), head, where)
  last = helper.make_node("Transpose", [probability], [PROBABILITY], name="last", perm=(0, 2, 3, 1))
  shape = ("batch", size, size)
  inputs = [helper.make_tensor_value_info(IMAGE, onnx.TensorProto.FLOAT, (*shape, 1))]
  if where is not None:
    inputs.append(helper.make_tensor_value_info(WHERE, onnx.TensorProto.BOOL, (*shape, 1)))
  result = helper.make_tensor_value_info(
    PROBABILITY, onnx.TensorProto.FLOAT, (*shape, len(classes))
  )
  made = helper.make_model(
    helper.make_graph([*graph.nodes, last], view.name, inputs, [result], graph.constants),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="lus_jax",
    producer_version=lus_jax.__version__,
  )
  about = {
    "classes": json.dumps(list(classes), ensure_ascii=False),
    "member": view.name,
    "meaning": meaning,
    "size": str(size),
  }
  helper.set_model_props(made, about)
  onnx.checker.check_model(made, full_check=True)
  return made


def _write(graph, layer, *inputs, **options):
  """Writes a layer by the function of its own class: another's might leave out what it adds."""
  if type(layer) not in _LAYERS:
    raise UserError(
      f"--format=onnx: nothing is known of how to write {type(layer).__name__}; leave onnx out, or "
      "add it to lus_jax/inference/onnx_graph.py."
    )
  graph.written.add(id(layer))
  return _LAYERS[type(layer)](graph, layer, *inputs, **options)


def _refuse_unwritten(network, written):
  """Refuses a network of which some layer with weights was not written."""
  left = [
    ".".join(map(str, path))
    for path, layer in nnx.iter_modules(network)
    if id(layer) not in written
    and any(isinstance(value, nnx.Variable) for value in vars(layer).values())
  ]
  if left:
    raise UserError(
      f"--format=onnx: nothing is known of how to write {', '.join(left)}; leave onnx out, or add "
      "it to lus_jax/inference/onnx_graph.py."
    )


def _array(variable):
  return np.asarray(variable[...], np.float32)


def _conv(graph, layer, x):
  kernel = _array(layer.kernel).transpose(3, 2, 0, 1)
  size = kernel.shape[-1]
  bias = [] if layer.bias is None else [_array(layer.bias)]
  return graph.add(
    "Conv",
    x,
    kernel,
    *bias,
    kernel_shape=(size, size),
    strides=(layer.stride, layer.stride),
    pads=(size // 2,) * 4,
  )


def _batch_norm(graph, layer, x, *, ceiling=None, pool=False):
  parts = [_array(getattr(layer, name)) for name in ("scale", "bias", "mean", "var")]
  x = graph.add("BatchNormalization", x, *parts, epsilon=layer.epsilon)
  x = _activation(graph, x, ceiling)
  if not pool:
    return x
  return graph.add("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))


def _group_norm(graph, layer, x, *, shape, ceiling=None):
  """A group norm over x [batch, *shape]: an instance norm where each group is one channel."""
  groups = layer.num_groups
  ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
  x = graph.add("Reshape", x, np.array((0, groups, -1)))
  x = graph.add("InstanceNormalization", x, ones, zeros, epsilon=layer.epsilon)
  x = graph.add("Reshape", x, np.array((0, *shape)))
  x = graph.add("Mul", x, _by_channel(_array(layer.scale)))
  x = graph.add("Add", x, _by_channel(_array(layer.bias)))
  return _activation(graph, x, ceiling)


def _by_channel(vector):
  return vector.reshape(1, -1, 1, 1)


def _activation(graph, x, ceiling):
  if ceiling is None:
    return x
  x = graph.add("Relu", x)
  return x if ceiling == math.inf else graph.add("Min", x, np.float32(ceiling))


def _downsample(graph, layer, x):
  return _write(graph, layer.bn, _write(graph, layer.conv, x))


def _basic_block(graph, layer, x):
  y = _write(graph, layer.bn1, _write(graph, layer.conv1, x), ceiling=math.inf)
  y = _write(graph, layer.bn2, _write(graph, layer.conv2, y))
  return _with_shortcut(graph, layer, x, y)


def _bottleneck(graph, layer, x):
  y = _write(graph, layer.bn1, _write(graph, layer.conv1, x), ceiling=math.inf)
  y = _write(graph, layer.bn2, _write(graph, layer.conv2, y), ceiling=math.inf)
  y = _write(graph, layer.bn3, _write(graph, layer.conv3, y))
  return _with_shortcut(graph, layer, x, y)


def _with_shortcut(graph, layer, x, y):
  if layer.downsample is not None:
    x = _write(graph, layer.downsample, x)
  return graph.add("Relu", graph.add("Add", y, x))


def _resnet(graph, layer, x):
  x = _write(graph, layer.bn1, _write(graph, layer.conv1, x), ceiling=math.inf, pool=True)
  features = []
  for stage in layer.stages:
    for block in stage:
      x = _write(graph, block, x)
    features.append(x)
  return features


def _branch(graph, layer, x, *, side):
  for conv, norm in zip(layer.convs, layer.norms, strict=True):
    x = _write(graph, conv, x)
    channels = conv.kernel.shape[-1]
    x = _write(graph, norm, x, shape=(channels, side, side), ceiling=math.inf)
    if layer.upsamplings:
      x, side = _resized(graph, x, 2), 2 * side
  return x


def _detail(graph, layer, x, *, side):
  channels = layer.conv.kernel.shape[-1]
  shape = (channels, side, side)
  return _write(graph, layer.norm, _write(graph, layer.conv, x), shape=shape, ceiling=math.inf)


def _refinement(graph, layer, x, finer, *, side):
  x = graph.add("Add", _resized(graph, _write(graph, layer.reduction, x), 2), finer)
  # A convolution and a norm, as a detail has them.
  return _detail(graph, layer, x, side=side)


def _fpn(graph, layer, image, size):
  """What the head puts out, at a quarter of the padded size or finer."""
  if layer.shrink > 1:
    square = (layer.shrink,) * 2
    image = graph.add("AveragePool", image, kernel_shape=square, strides=square)
    size //= layer.shrink
  padding = -size % fpn.STRIDE
  if padding:
    ends = np.array((0, 0, 0, 0, 0, 0, padding, padding))
    image = graph.add("Pad", image, ends, np.float32(0))
  features = _write(graph, layer.encoder, image)
  level = merged = None
  for i in reversed(range(len(features))):
    lateral = _write(graph, layer.laterals[i], features[i])
    level = lateral if level is None else graph.add("Add", lateral, _enlarged(graph, level))
    branch = _write(graph, layer.branches[i], level, side=(size + padding) // 2 ** (i + 2))
    merged = branch if merged is None else graph.add("Add", branch, merged)
  count, details = len(layer.refinements), []
  for i, detail in enumerate(layer.details):
    image = _write(graph, detail, image, side=(size + padding) * 2**count // 4 // 2**i)
    details.append(image)
  for i, refinement in enumerate(layer.refinements):
    side = (size + padding) // 2 ** (1 - i)
    merged = _write(graph, refinement, merged, details.pop(), side=side)
  return _write(graph, layer.segmentation_head, merged)


_LAYERS = {
  layers.Conv: _conv,
  layers.BatchNorm: _batch_norm,
  layers.GroupNorm: _group_norm,
  resnet.BasicBlock: _basic_block,
  resnet.Bottleneck: _bottleneck,
  resnet.Downsample: _downsample,
  resnet.ResNet: _resnet,
  fpn.SegmentationBranch: _branch,
  fpn.Detail: _detail,
  fpn.Refinement: _refinement,
  fpn.FPN: _fpn,
}


def _resized(graph, x, factor):
  """Bilinear upsampling with aligned corners, as `layers.upsample_bilinear`."""
  scales = np.array((1, 1, factor, factor), np.float32)
  options = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
  return graph.add("Resize", x, "", scales, **options)


def _enlarged(graph, x):
  """Each pixel four times, as `layers.upsample_nearest`."""
  options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
  scales = np.array((1, 1, 2, 2), np.float32)
  return graph.add("Resize", x, "", scales, nearest_mode="floor", **options)


def _channels(graph, x, start, stop):
  return graph.add("Slice", x, np.array([start]), np.array([stop]), np.array([1]))


def _output(graph, trained, view, calibrated_by, head, where):
  """What `Trained.probability` makes of the head's logits, [batch, K, S, S]."""
  size, k = trained.config.data.image_size, len(trained.classes)
  member, levels = trained.objective.member_of(view), trained.objective.levels
  # One that is not ordinal has the first level's place in a head of several.
  if levels and member.target != "ordinal":
    head = _channels(graph, head, 0, k)
  elif levels:
    head = _nested(graph, head, k, len(levels))
  design = designs.segmentation(trained.config.model)
  factor = design.head_stride
  logits = _resized(graph, head, factor) if factor > 1 else head
  if size // design.shrink % fpn.STRIDE:
    ends = np.array((size, size))
    logits = graph.add("Slice", logits, np.array((0, 0)), ends, np.array((2, 3)))
  probability = None
  if member.target == "ordinal":
    each = _kept_nested(
      graph, [_channels(graph, logits, i * k, i * k + k) for i in range(len(levels))]
    )
    if view.level == members.WHOLE:
      probability = _expected_confidence(graph, each, levels)
    else:
      logits = each[view.level]
  elif member.loss in losses.NORMALIZED:
    probability = _normalized_relu(graph, logits, where)
  if probability is not None and calibrated_by:
    odds = graph.add("Sub", np.float32(1), probability)
    logits = graph.add("Sub", graph.add("Log", probability), graph.add("Log", odds))
  if "x" in calibrated_by:
    probability = _interpolated(graph, logits, calibrated_by["x"], calibrated_by["y"])
  elif "temperature" in calibrated_by:
    logits = graph.add("Div", logits, _by_channel(calibrated_by["temperature"]))
    probability = graph.add("Sigmoid", logits)
  elif probability is None:
    probability = graph.add("Sigmoid", logits)
  if where is None:
    return probability
  return graph.add("Where", where, probability, np.float32(0))


def _nested(graph, head, k, n_levels):
  """`ordinal.nested_logits`, with the levels' K channels one after another."""
  raw = [_channels(graph, head, i * k, i * k + k) for i in range(n_levels)]
  nested = raw[:1]
  for step in raw[1:]:
    nested.append(graph.add("Sub", nested[-1], graph.add("Softplus", step)))
  return graph.add("Concat", *nested, axis=1)


def _kept_nested(graph, each):
  """`ordinal.keep_nested`."""
  kept = each[:1]
  for level in each[1:]:
    kept.append(graph.add("Min", kept[-1], level))
  return kept


def _expected_confidence(graph, each, levels):
  """`ordinal.expected_confidence`, kept off 0 and 1."""
  total = None
  for logits, low, high in zip(each, (0.0, *levels[:-1]), levels, strict=True):
    term = graph.add("Mul", graph.add("Sigmoid", logits), np.float32(high - low))
    total = term if total is None else graph.add("Add", total, term)
  return _clipped(graph, total)


def _normalized_relu(graph, logits, where):
  """`losses.normalized_relu`, kept off 0 and 1."""
  x = graph.add("Where", where, graph.add("Relu", logits), np.float32(0))
  largest = graph.add("ReduceMax", x, axes=(2, 3), keepdims=1)
  positive = graph.add("Greater", largest, np.float32(0))
  return _clipped(graph, graph.add("Div", x, graph.add("Where", positive, largest, np.float32(1))))


def _clipped(graph, probability):
  low = calibration.CLIP
  return graph.add("Clip", probability, np.float32(low), np.float32(1 - low))


def _interpolated(graph, x, at, values):
  """The isotonic table: a search by halves for the two points around each logit, and a line.

  Args:
    graph: what is written to.
    x: logits [batch, K, S, S].
    at: [K, 256], not decreasing.
    values: of the table there.
  """
  k, n = at.shape
  first = np.arange(k).reshape(1, -1, 1, 1) * n
  last = first + n - 1
  flat = at.ravel()
  # Beyond its ends the table goes on as it is there.
  x = graph.add("Min", graph.add("Max", x, flat[first]), flat[last])
  place, step = first, n // 2
  while step:
    # Into the right half where that begins at or below the logit.
    if isinstance(place, str):
      further = graph.add("Add", place, np.array(step))
      begins = graph.add("Gather", flat, further)
    else:
      further, begins = place + step, flat[place + step]
    place = graph.add("Where", graph.add("GreaterOrEqual", x, begins), further, place)
    step //= 2
  after = graph.add("Min", graph.add("Add", place, np.array(1)), last)
  x0, x1 = (graph.add("Gather", flat, i) for i in (place, after))
  y0, y1 = (graph.add("Gather", values.ravel(), i) for i in (place, after))
  width = graph.add("Sub", x1, x0)
  # The last point, and those that repeat it, have none after them.
  width = graph.add("Where", graph.add("Greater", width, np.float32(0)), width, np.float32(1))
  share = graph.add("Div", graph.add("Sub", x, x0), width)
  return _clipped(graph, graph.add("Add", y0, graph.add("Mul", share, graph.add("Sub", y1, y0))))
