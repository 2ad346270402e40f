"""Weights of PyTorch networks, from files that are read without running code from them, and back.

A torch name is computed from each of our paths, so the table of both is as long as a few functions:
segmentation_models_pytorch's FPN, torchvision's ResNets and MobileNetV2, and the MobileNetV2 of the
public TSM code, whose blocks number their layers otherwise. Axes are OIHW there and HWIO here.

Images stay in [0, 1], whatever a network was trained with: in training the norms adapt.
"""

import math
import os
import pathlib
import pickle
import re
import warnings
import zipfile

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import files
from lus_jax.errors import UserError
from lus_jax.models.resnet import DEPTHS

SUFFIXES = (".pth", ".pt", ".safetensors")
# Of torch.nn.DataParallel, a module that holds the network, and torch.compile.
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_CHECKPOINT_KEYS = ("state_dict", "model")
# Names of one kind that an error lists before it counts, and letters of one that it shows.
_LISTED, _SHOWN = 10, 100
# More than any file of these networks has: bytes, bytes of an archive's pickle, tensors, letters of
# a name.
_MAX_BYTES, _MAX_PICKLE, _MAX_TENSORS, _MAX_NAME = 4 * 2**30, 2**20, 10_000, 255
# No trained weight comes near it, and most flipped bits that matter go far beyond.
_MAX_WEIGHT = 1e6
# What a file of torch.save begins with, since PyTorch 1.6 and before.
_ARCHIVE, _OLD_FILE = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Layers of an inverted residual block: (place in the TSM code's list, place in torchvision's).
_BLOCK = {
  "expand": ("0", "0.0"),
  "expand_bn": ("1", "0.1"),
  "depthwise": ("3", "1.0"),
  "depthwise_bn": ("4", "1.1"),
  "project": ("6", "2"),
  "project_bn": ("7", "3"),
}
# The same of the first block, which has no expansion.
_FIRST_BLOCK = {
  "depthwise": ("0", "0.0"),
  "depthwise_bn": ("1", "0.1"),
  "project": ("3", "1"),
  "project_bn": ("4", "2"),
}
# Layers that segmentation_models_pytorch's FPN has.
_FPN_PLACES = re.compile(
  r"encoder\.(conv1|bn1|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[01]))"
  r"|decoder\.(p[234]\.skip_conv|p5|seg_blocks\.\d\.block\.\d\.block\.[01])|segmentation_head\.0"
)
_FIRST_CONVOLUTIONS = ("encoder.conv1.weight", "conv1.weight", "features.0.0.weight")


def is_file(init_from):
  """Whether a `config.model.init_from` names a file of weights."""
  return init_from.endswith(SUFFIXES)


def read(path):
  """Reads the tensors of a state dict; no code of the file is run.

  Args:
    path: a .pth or .pt file of `torch.save`, a state dict or a checkpoint that holds one as
      'state_dict' or 'model', or a .safetensors file.

  Returns:
    A dict of float32 arrays by torch's names.

  Raises:
    UserError: the file is missing or damaged, holds more than weights, or the library that reads
      it is not installed.
  """
  path = pathlib.Path(_found(path))
  load = _read_safetensors if path.suffix == ".safetensors" else _read_torch
  try:
    tensors = load(path)
  except ModuleNotFoundError as error:
    library = error.name.split(".")[0]
    raise UserError(
      f"{path}: reading it needs {library}, which is not installed; pip install {library}."
    ) from error
  # Beyond float32 is infinite, which `load_into` refuses by name.
  with np.errstate(over="ignore"):
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def digest(path):
  """A short text that changes with a file's content."""
  return files.sha256(_found(path))[:12]


def _found(path):
  found = os.path.expanduser(path)
  if not is_file(found):
    raise UserError(f"{path} is no file of weights; name one that ends in {', '.join(SUFFIXES)}.")
  if not os.path.exists(found):
    raise UserError(f"{path} does not exist; give the path of a file of weights.")
  # A pipe would be waited for.
  if not os.path.isfile(found):
    raise UserError(f"{path} is no regular file; give the path of a file of weights.")
  size = os.path.getsize(found)
  if size > _MAX_BYTES:
    raise UserError(
      f"{path} has {size / 2**30:.1f} GiB, more than the weights of one network; save them alone."
    )
  return found


def _read_safetensors(path):
  import safetensors

  try:
    with safetensors.safe_open(path, framework="np") as file:
      names = file.keys()
      _check_names(path, names)
      slices = {name: file.get_slice(name) for name in names}
      _refuse_kinds(
        path,
        [
          f"{name} ({kind})"
          for name, x in slices.items()
          if (kind := x.get_dtype()) not in ("F64", "F32", "F16", "BF16")
          if kind[0] not in "IUB" or math.prod(x.get_shape()) > 1
        ],
      )
      return {name: file.get_tensor(name) for name in names}
  except UserError:
    raise
  except (safetensors.SafetensorError, OSError, ValueError) as error:  # a shape NumPy cannot have
    raise UserError(
      f"{path} is no safetensors file, or is damaged ({_shown(str(error))})."
    ) from error


def _read_torch(path):
  import torch

  try:
    _check_torch(path)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about pickle versions
      content = torch.load(path, map_location="cpu", weights_only=True)
  except UserError:
    raise
  except pickle.UnpicklingError as error:
    raise UserError(
      f"{path} is damaged, or reading it would run code that it holds; save the weights alone: "
      "torch.save(model.state_dict(), FILE)."
    ) from error
  except Exception as error:  # A damaged file fails in many ways.
    raise UserError(
      f"{path} is no file of torch.save, or is damaged ({type(error).__name__})."
    ) from error
  for key in _CHECKPOINT_KEYS:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict) or not all(
    isinstance(name, str) and torch.is_tensor(x) for name, x in content.items()
  ):
    raise UserError(f"{path} holds no state dict; save one: torch.save(model.state_dict(), FILE).")
  _check_names(path, content)
  _refuse_kinds(
    path,
    [
      f"{name} ({x.dtype}, {x.layout}, {x.device})"
      for name, x in content.items()
      if not (x.is_floating_point() or x.numel() <= 1 and not x.is_complex())
      or x.is_quantized
      or x.is_nested
      or x.layout is not torch.strided
      or x.device.type != "cpu"
    ],
  )
  # A view can repeat a number without end; weights that layers share count twice or so.
  if sum(x.numel() for x in content.values()) > 4 * path.stat().st_size:
    raise UserError(f"{path} is damaged: its tensors have more numbers than it holds.")
  return {name: x.detach().float().numpy() for name, x in content.items()}


def _check_torch(path):
  """Refuses what torch.load would read at length, or without noticing that it is damaged."""
  with open(path, "rb") as file:
    begins = file.read(len(_OLD_FILE))
  if not begins.startswith(_ARCHIVE):
    if begins != _OLD_FILE:
      raise pickle.UnpicklingError("not a file of torch.save")
    return
  with zipfile.ZipFile(path) as archive:
    records = archive.infolist()
    if any(x.compress_type != zipfile.ZIP_STORED for x in records):
      raise UserError(f"{path} is compressed, which torch.save never does; save it anew.")
    if sum(x.file_size for x in records) > path.stat().st_size or any(
      x.file_size > _MAX_PICKLE for x in records if x.filename.endswith(".pkl")
    ):
      raise UserError(f"{path} is damaged, or holds far more than the weights of one network.")
    if (record := archive.testzip()) is not None:
      raise UserError(f"{path} is damaged: {_shown(record)} does not fit its checksum.")


def _check_names(path, names):
  longest = max(map(len, names), default=0)
  if len(names) > _MAX_TENSORS or longest > _MAX_NAME:
    raise UserError(
      f"{path} holds {len(names)} tensors, with names of up to {longest} letters; give the weights "
      "of one network."
    )


def _refuse_kinds(path, odd):
  if odd:
    raise UserError(
      f"{path} holds tensors that are no plain weights: {_listed(odd)}; save it in float32."
    )


def _shown(text):
  """A text from a file in one line that a terminal can show."""
  return repr(text[:_SHOWN])[1:-1] + ("..." if len(text) > _SHOWN else "")


def _listed(names):
  more = len(names) - _LISTED
  return ", ".join(map(_shown, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def identify(tensors):
  """The network that a state dict is of: a ResNet's name, 'mobilenet_v2', or None."""
  names = set(_short_names(tensors))
  if any(name.startswith("features.18.") for name in names):
    return "mobilenet_v2"
  prefix = "encoder." if "encoder.conv1.weight" in names else ""
  blocks = tuple(
    len({name.split(".")[-3] for name in names if _is_first_norm(name, f"{prefix}layer{i}.")})
    for i in (1, 2, 3, 4)
  )
  depths = blocks, f"{prefix}layer1.0.conv3.weight" in names
  return next((name for name, known in DEPTHS.items() if known == depths), None)


def _is_first_norm(name, stage):
  return name.startswith(stage) and name.endswith(".bn1.weight")


def in_channels(tensors):
  """Channels of the images that a state dict's network takes; 3 where it does not say."""
  names = _short_names(tensors)
  shapes = [np.shape(tensors[names[name]]) for name in _FIRST_CONVOLUTIONS if name in names]
  # A kernel without any fits no network, as `load_into` says.
  return max(1, shapes[0][1]) if shapes and len(shapes[0]) == 4 else 3


def load_into(params, batch_stats, tensors, *, source="the state dict", head=True):
  """Replaces the weights that a state dict has, and checks that all of it fits.

  What it may be:

  - of the segmentation network: segmentation_models_pytorch's FPN, or a torchvision ResNet, of
    which the last linear layer is left out and which leaves the decoder as it is;
  - of the video network: a MobileNetV2 of torchvision or the TSM code, of which the classifier is
    left out and which leaves the head as it is, or a temporal-shift checkpoint of the TSM code.

  Three input channels become others by their sum over RGB, divided by the number of channels: a
  grey image in every channel gives what it gave as RGB.

  Args:
    params: weights of our network, a pure dict of arrays or of their shapes.
    batch_stats: its running statistics, likewise.
    tensors: a dict of arrays by torch's names.
    source: what an error calls them.
    head: whether to take the last layers (`segmentation_head`, `new_fc`), where there are some.

  Returns:
    params and batch_stats; what the state dict does not have is as it was.

  Raises:
    UserError: names are missing, unknown or there twice, shapes do not fit, or values are none that
      a trained network has; all are listed.
  """
  names = _short_names(tensors)
  if twice := [own for own in tensors if own not in names.values()]:
    raise UserError(f"{source} holds tensors of one network twice: {_listed(twice)}.")
  name_of = _naming(params, names, head=head)
  left_out = ("fc.", "classifier.", *(() if head else ("segmentation_head.", "new_fc.")))
  known, missing, misshapen, impossible = set(), [], [], []

  def convert(path, leaf):
    name = name_of(tuple(key.key for key in path[1:]))
    known.add(name)
    if name is None:
      return leaf
    if name not in names:
      missing.append(name)
      return leaf
    x = np.asarray(tensors[names[name]], np.float32)
    converted = _convert(x, leaf.shape, is_first=name in _FIRST_CONVOLUTIONS)
    if converted.shape != leaf.shape:
      misshapen.append(f"{names[name]} {x.shape} for {_torch_shape(leaf.shape)}")
      return leaf
    if what := _impossible(converted, variance=name.endswith("running_var")):
      impossible.append(f"{names[name]} ({what})")
    return jnp.asarray(converted)

  found = jax.tree_util.tree_map_with_path(convert, (params, batch_stats))
  unknown = [
    own
    for name, own in names.items()
    if name not in known and not name.endswith("num_batches_tracked")
    if not name.startswith(left_out)
  ]
  problems = [
    f"{what}: {_listed(listed)}"
    for what, listed in (
      ("missing", missing),
      ("unknown", unknown),
      ("of another shape", misshapen),
    )
    if listed
  ]
  if problems:
    kind = identify(tensors)
    raise UserError(
      f"{source} does not fit the network{f' (it looks like a {kind})' if kind else ''}; "
      f"{'; '.join(problems)}; encoder, width (1 in most files) and classes have to be the same."
    )
  if impossible:
    raise UserError(
      f"{source} is damaged, or its training failed; what no weight can be: {_listed(impossible)}."
    )
  return found


def state_dict(params, batch_stats):
  """The state dict of segmentation_models_pytorch's FPN with our weights: inverse of `load_into`.

  Args:
    params: weights of the segmentation network, a pure dict of arrays.
    batch_stats: its running statistics, likewise.

  Returns:
    A dict of arrays by torch's names, in torch's order of axes; every one that such a module has.

  Raises:
    UserError: a layer is none of that network's; all are listed.
  """
  found, odd = {}, []
  for path, leaf in jax.tree_util.tree_leaves_with_path((params, batch_stats)):
    *layer, last = (key.key for key in path[1:])
    place = _fpn_layer(tuple(layer)) if layer else None
    if place is None or last not in _LEAVES or not _FPN_PLACES.fullmatch(place):
      odd.append(".".join(map(str, (*layer, last))))
      continue
    x = np.asarray(leaf, np.float32)
    found[f"{place}.{_LEAVES[last]}"] = (
      np.ascontiguousarray(x.transpose(3, 2, 0, 1)) if x.ndim == 4 else x
    )
    if last == "mean":
      # Counts batches where a norm has no momentum; these have.
      found[f"{place}.num_batches_tracked"] = np.zeros((), np.int64)
  if odd:
    raise UserError(
      f"segmentation_models_pytorch's FPN lacks the layers: {_listed(odd)}; leave safetensors out."
    )
  return found


def _impossible(x, *, variance):
  """What is wrong with an array's values; '' if nothing is."""
  if not np.isfinite(x).all():
    return "NaN or infinite"
  if variance and x.min(initial=0) < 0:
    return "a negative variance"
  largest = np.abs(x).max(initial=0)
  return f"{largest:.1e}" if largest > (_MAX_WEIGHT**2 if variance else _MAX_WEIGHT) else ""


def _short_names(tensors):
  """The names without what wraps a network: `{short: the dict's own}`."""
  own = list(tensors)
  short = own
  while short and (found := [w for w in _WRAPPERS if all(n.startswith(w) for n in short)]):
    short = [name.removeprefix(found[0]) for name in short]
  # `net` is the convolution that a temporal shift goes before.
  short = [name.removeprefix("base_model.").replace(".conv.0.net.", ".conv.0.") for name in short]
  return dict(zip(short, own, strict=True))


def _naming(params, names, *, head):
  """The function from our path to torch's name, None for what such a state dict does not have."""
  if "encoder" in params:
    whole = any(name.startswith(("encoder.", "decoder.")) for name in names)
    layer_of = _fpn_layer if whole else _encoder_layer
  else:
    whole = any("base_model." in own for own in names.values())
    nested = "features.1.conv.0.0.weight" in names

    def layer_of(layer):
      if layer[:1] == ("features",):
        return _mobilenet_layer(layer, nested=nested)
      return _head_layer(layer, n_hidden=len(params.get("hidden", ()))) if whole else None

  def name_of(path):
    # The depthwise kernel is a parameter of its block itself.
    *layer, leaf = path if path[-1] != "depthwise" else (*path, "kernel")
    if not head and (not layer or layer[0] in ("segmentation_head", "hidden", "head")):
      return None
    place = layer_of(tuple(layer))
    return place and f"{place}.{_LEAVES[leaf]}"

  return name_of


def _resnet_layer(layer):
  match layer:
    case ("stages", i, j, "downsample", part):
      return f"layer{i + 1}.{j}.downsample.{('conv', 'bn').index(part)}"
    case ("stages", i, j, part):
      return f"layer{i + 1}.{j}.{part}"
    case (part,):
      return part


def _encoder_layer(layer):
  return _resnet_layer(layer[1:]) if layer[0] == "encoder" else None


def _fpn_layer(layer):
  match layer:
    case ("encoder", *rest):
      return f"encoder.{_resnet_layer(tuple(rest))}"
    case ("laterals", 3):
      return "decoder.p5"
    case ("laterals", i):
      return f"decoder.p{i + 2}.skip_conv"
    case ("branches", i, part, j):
      # Coarsest first there, finest first here.
      return f"decoder.seg_blocks.{3 - i}.block.{j}.block.{('convs', 'norms').index(part)}"
    case ("segmentation_head",):
      return "segmentation_head.0"


def _mobilenet_layer(layer, *, nested):
  match layer:
    case (_, 1, part):
      return f"features.1.conv.{_FIRST_BLOCK[part][nested]}"
    case (_, i, ("conv" | "bn") as part):
      return f"features.{i}.{('conv', 'bn').index(part)}"
    case (_, i, part):
      return f"features.{i}.conv.{_BLOCK[part][nested]}"


def _head_layer(layer, *, n_hidden):
  # Linear layers with a ReLU between two; the last one's bias is ours beside the layers.
  place = layer[1] if layer[:1] == ("hidden",) else n_hidden
  return f"new_fc.{2 * place}" if n_hidden else "new_fc"


def _convert(x, shape, *, is_first):
  if x.ndim == 2:
    return x.T
  if x.ndim != 4:
    return x
  x = x.transpose(2, 3, 1, 0)
  if is_first and x.shape[2] == 3 != shape[-2]:
    x = np.repeat(x.sum(2, keepdims=True) / shape[-2], shape[-2], axis=2)
  return x


def _torch_shape(shape):
  if len(shape) == 4:
    return shape[3], shape[2], shape[0], shape[1]
  return shape[::-1] if len(shape) == 2 else shape
