"""Weights of PyTorch networks, from files that are read without running code from them.

A torch name is computed from each of our paths, so the table of both is as long as a few functions:
segmentation_models_pytorch's FPN, torchvision's ResNets and MobileNetV2, and the MobileNetV2 of the
public TSM code, whose blocks number their layers otherwise. Axes are OIHW there and HWIO here.

Images stay in [0, 1], whatever a network was trained with: in training the norms adapt.
"""

import hashlib
import os
import pathlib
import pickle
import warnings

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax.errors import UserError
from lus_jax.models.resnet import DEPTHS

SUFFIXES = (".pth", ".pt", ".safetensors")
# Of torch.nn.DataParallel, a module that holds the network, and torch.compile.
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_CHECKPOINT_KEYS = ("state_dict", "model")
# Names of one kind that an error lists before it counts.
_LISTED = 10

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
    return {name: np.asarray(x, np.float32) for name, x in load(path).items()}
  except ModuleNotFoundError as error:
    library = error.name.split(".")[0]
    raise UserError(
      f"{path}: reading it needs {library}, which is not installed; pip install {library}."
    ) from error


def digest(path):
  """A short text that changes with a file's content."""
  with open(_found(path), "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _found(path):
  found = os.path.expanduser(path)
  if not is_file(found):
    raise UserError(f"{path} is no file of weights; name one that ends in {', '.join(SUFFIXES)}.")
  if not os.path.isfile(found):
    raise UserError(f"{path} does not exist; give the path of a file of weights.")
  return found


def _read_safetensors(path):
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or is damaged ({error}).") from error
  except (KeyError, TypeError) as error:  # NumPy has no bfloat16
    raise UserError(
      f"{path} holds numbers that NumPy does not have ({error}); save it in float32."
    ) from error


def _read_torch(path):
  import torch

  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about pickle versions
      content = torch.load(path, map_location="cpu", weights_only=True)
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
  if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
    raise UserError(f"{path} holds no state dict; save one: torch.save(model.state_dict(), FILE).")
  return {name: x.detach().float().numpy() for name, x in content.items()}


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
  return shapes[0][1] if shapes and len(shapes[0]) == 4 else 3


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
    UserError: names are missing or unknown, or shapes do not fit; all are listed.
  """
  names = _short_names(tensors)
  name_of = _naming(params, names, head=head)
  left_out = ("fc.", "classifier.", *(() if head else ("segmentation_head.", "new_fc.")))
  known, missing, misshapen = set(), [], []

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
    return jnp.asarray(converted)

  found = jax.tree_util.tree_map_with_path(convert, (params, batch_stats))
  unknown = [
    own
    for name, own in names.items()
    if name not in known and not name.endswith("num_batches_tracked")
    if not name.startswith(left_out)
  ]
  problems = [
    f"{what}: {', '.join(listed[:_LISTED])}"
    + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
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
  return found


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
