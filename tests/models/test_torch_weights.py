"""State dicts made by hand, of NumPy arrays: nothing here needs torch, but where a test says so."""

import json
import os
import pathlib
import pickle
import sys
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import seg, sf_change
from lus_jax import models
from lus_jax.data import datasets
from lus_jax.errors import UserError
from lus_jax.models import torch_weights
from lus_jax.models.fpn import FPN
from lus_jax.models.mobilenet_v2 import MobileNetV2
from lus_jax.tasks.clinical import initial
from lus_jax.tasks.clinical import run as clinical_run
from lus_jax.tasks.segmentation import run as run_lib
from lus_jax.training import loop

FPN_WIDTH, VIDEO_WIDTH = 0.125, 0.25
RESNET_CHANNELS, PYRAMID, SEGMENTATION = (8, 16, 32, 64), 32, 16
# Of MobileNetV2 at width .25: features 0 to 17.
VIDEO_CHANNELS = (8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 40, 40, 40, 80)


def shapes(build):
  """The shapes of a network's params and batch_stats."""
  model = nnx.eval_shape(build)
  return tuple(nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))


def fpn_shapes(encoder="resnet18", *, in_channels=1, classes=3):
  return shapes(
    lambda: FPN(
      encoder, in_channels=in_channels, classes=classes, width=FPN_WIDTH, rngs=nnx.Rngs(0)
    )
  )


def video_shapes(*, in_channels=7, hidden=()):
  return shapes(
    lambda: MobileNetV2(
      in_channels=in_channels, outputs=2, hidden=hidden, width=VIDEO_WIDTH, rngs=nnx.Rngs(0)
    )
  )


def norm(name, channels):
  return {
    f"{name}.weight": (channels,),
    f"{name}.bias": (channels,),
    f"{name}.running_mean": (channels,),
    f"{name}.running_var": (channels,),
    f"{name}.num_batches_tracked": (),
  }


def resnet(*, in_channels=1, bottleneck=False, blocks=(2, 2, 2, 2), prefix=""):
  found = {"conv1.weight": (8, in_channels, 7, 7)} | norm("bn1", 8)
  before = 8
  for i, (channels, n) in enumerate(zip(RESNET_CHANNELS, blocks, strict=True)):
    for j in range(n):
      block = f"layer{i + 1}.{j}"
      if bottleneck:
        after = 4 * channels
        kernels = [(channels, before, 1, 1), (channels, channels, 3, 3), (after, channels, 1, 1)]
      else:
        after = channels
        kernels = [(channels, before, 3, 3), (channels, channels, 3, 3)]
      for k, kernel in enumerate(kernels, 1):
        found |= {f"{block}.conv{k}.weight": kernel} | norm(f"{block}.bn{k}", kernel[0])
      if before != after:
        found |= {f"{block}.downsample.0.weight": (after, before, 1, 1)}
        found |= norm(f"{block}.downsample.1", after)
      before = after
  return {prefix + name: shape for name, shape in found.items()}


def smp_fpn(*, classes=3, **options):
  found = resnet(prefix="encoder.", **options)
  for name, channels in zip(
    ("p2.skip_conv", "p3.skip_conv", "p4.skip_conv", "p5"), RESNET_CHANNELS, strict=True
  ):
    found[f"decoder.{name}.weight"] = (PYRAMID, channels, 1, 1)
    found[f"decoder.{name}.bias"] = (PYRAMID,)
  for i, n in enumerate((3, 2, 1, 1)):
    for j in range(n):
      block = f"decoder.seg_blocks.{i}.block.{j}.block"
      found[f"{block}.0.weight"] = (SEGMENTATION, SEGMENTATION if j else PYRAMID, 3, 3)
      found[f"{block}.1.weight"] = found[f"{block}.1.bias"] = (SEGMENTATION,)
  found["segmentation_head.0.weight"] = (classes, SEGMENTATION, 1, 1)
  found["segmentation_head.0.bias"] = (classes,)
  return found


def mobilenet(*, in_channels=3, layout="torchvision"):
  """'torchvision' nests the convolutions with their norms, the TSM code does not."""
  places = {"torchvision": ("0.0", "0.1", "1.0", "1.1", "2", "3"), "tsm": "013467"}[layout]
  found = {"features.0.0.weight": (8, in_channels, 3, 3)} | norm("features.0.1", 8)
  for i in range(1, 18):
    before, after = VIDEO_CHANNELS[i - 1 : i + 1]
    channels = before * (1 if i == 1 else 6)
    kernels = [(channels, before, 1, 1), (channels, 1, 3, 3), (after, channels, 1, 1)]
    if i == 1:
      kernels = kernels[1:]
      own = {"torchvision": ("0.0", "0.1", "1", "2"), "tsm": "0134"}[layout]
    else:
      own = places
    for k, kernel in enumerate(kernels):
      found[f"features.{i}.conv.{own[2 * k]}.weight"] = kernel
      found |= norm(f"features.{i}.conv.{own[2 * k + 1]}", kernel[0])
  found |= {"features.18.0.weight": (1280, 80, 1, 1)} | norm("features.18.1", 1280)
  return found | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


def tsm(*, in_channels=7, hidden=()):
  """A checkpoint of the TSM code, saved from torch.nn.DataParallel."""
  found = {}
  for name, shape in mobilenet(in_channels=in_channels, layout="tsm").items():
    for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16):
      name = name.replace(f"features.{i}.conv.0.", f"features.{i}.conv.0.net.")
    if not name.startswith("classifier."):
      found[f"module.base_model.{name}"] = shape
  sizes = (1280, *hidden, 2)
  for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
    name = f"module.new_fc.{2 * i}" if hidden else "module.new_fc"
    found |= {f"{name}.weight": (b, a), f"{name}.bias": (b,)}
  return found


def arrays(named_shapes):
  r = np.random.default_rng(0)
  found = {name: r.normal(size=shape).astype(np.float32) for name, shape in named_shapes.items()}
  return {name: np.abs(x) if name.endswith("running_var") else x for name, x in found.items()}


def all_taken(trees):
  """Whether every shape has become an array of finite numbers."""
  leaves = jax.tree.leaves(trees)
  return all(isinstance(x, jax.Array) and bool(np.isfinite(x).all()) for x in leaves)


def test_an_fpn_of_segmentation_models_pytorch_is_taken_whole():
  tensors = arrays(smp_fpn())
  params, batch_stats = torch_weights.load_into(*fpn_shapes(), tensors)
  assert all_taken((params, batch_stats))
  encoder, stage = params["encoder"], params["encoder"]["stages"]
  for ours, theirs in (
    (encoder["conv1"]["kernel"], "encoder.conv1.weight"),
    (stage[0][1]["conv2"]["kernel"], "encoder.layer1.1.conv2.weight"),
    (stage[3][0]["downsample"]["conv"]["kernel"], "encoder.layer4.0.downsample.0.weight"),
    (params["laterals"][0]["kernel"], "decoder.p2.skip_conv.weight"),
    (params["laterals"][3]["kernel"], "decoder.p5.weight"),
    # The branch of the coarsest level, with three convolutions.
    (params["branches"][3]["convs"][2]["kernel"], "decoder.seg_blocks.0.block.2.block.0.weight"),
    (params["branches"][0]["convs"][0]["kernel"], "decoder.seg_blocks.3.block.0.block.0.weight"),
    (params["segmentation_head"]["kernel"], "segmentation_head.0.weight"),
  ):
    # HWIO from OIHW, a 1x1 kernel perhaps as IO.
    expected = np.einsum("oihw->hwio", tensors[theirs])
    np.testing.assert_array_equal(ours, expected.reshape(ours.shape), theirs)
  for ours, theirs in (
    (encoder["bn1"]["scale"], "encoder.bn1.weight"),
    (stage[1][0]["downsample"]["bn"]["bias"], "encoder.layer2.0.downsample.1.bias"),
    (params["laterals"][1]["bias"], "decoder.p3.skip_conv.bias"),
    (params["branches"][2]["norms"][1]["scale"], "decoder.seg_blocks.1.block.1.block.1.weight"),
    (params["segmentation_head"]["bias"], "segmentation_head.0.bias"),
    (batch_stats["encoder"]["stages"][2][1]["bn1"]["mean"], "encoder.layer3.1.bn1.running_mean"),
    (batch_stats["encoder"]["bn1"]["var"], "encoder.bn1.running_var"),
  ):
    np.testing.assert_array_equal(ours, tensors[theirs], theirs)


def test_a_bottleneck_encoder_is_taken_too():
  tensors = arrays(smp_fpn(bottleneck=True, blocks=(3, 4, 6, 3)) | {})
  for name, channels in zip(
    ("p2.skip_conv", "p3.skip_conv", "p4.skip_conv", "p5"), RESNET_CHANNELS, strict=True
  ):
    tensors[f"decoder.{name}.weight"] = np.ones((PYRAMID, 4 * channels, 1, 1), np.float32)
  params, batch_stats = torch_weights.load_into(*fpn_shapes("resnet50"), tensors)
  assert all_taken((params, batch_stats))
  ours = params["encoder"]["stages"][2][5]["conv3"]["kernel"]
  expected = tensors["encoder.layer3.5.conv3.weight"][:, :, 0, 0].T
  np.testing.assert_array_equal(np.reshape(ours, expected.shape), expected)


@pytest.mark.parametrize(
  ("encoder", "options"),
  [("resnet18", {}), ("resnet50", {"bottleneck": True, "blocks": (3, 4, 6, 3)})],
)
def test_a_state_dict_of_ours_is_that_of_the_fpn_and_reads_back_to_the_bit(encoder, options):
  r = np.random.default_rng(0)

  def filled(tree):
    return jax.tree.map(lambda x: r.uniform(0, 2, x.shape).astype(np.float32), tree)

  params, batch_stats = map(filled, fpn_shapes(encoder))
  found = torch_weights.state_dict(params, batch_stats)
  theirs = smp_fpn(**options)
  if encoder == "resnet50":
    for i, name in enumerate(("p2.skip_conv", "p3.skip_conv", "p4.skip_conv", "p5")):
      theirs[f"decoder.{name}.weight"] = (PYRAMID, 4 * RESNET_CHANNELS[i], 1, 1)
  assert {name: x.shape for name, x in found.items()} == theirs
  back = torch_weights.load_into(*fpn_shapes(encoder), found)
  jax.tree.map(np.testing.assert_array_equal, back, (params, batch_stats))


def test_weights_of_another_network_have_no_state_dict_of_the_fpn():
  with pytest.raises(
    UserError, match=r"lacks the layers: bias, features\.0\..*; leave safetensors out"
  ):
    torch_weights.state_dict(*video_shapes())


def test_an_imagenet_resnet_fills_the_encoder_alone():
  tensors = arrays(resnet(in_channels=3) | {"fc.weight": (1000, 64), "fc.bias": (1000,)})
  before = fpn_shapes()
  params, batch_stats = torch_weights.load_into(*before, tensors)
  assert all_taken((params["encoder"], batch_stats))
  for name in ("laterals", "branches", "segmentation_head"):
    assert jax.tree.leaves(params[name]) == jax.tree.leaves(before[0][name])


@pytest.mark.parametrize("layout", ["torchvision", "tsm"])
def test_an_imagenet_mobilenet_fills_the_features_alone(layout):
  tensors = arrays(mobilenet(layout=layout))
  before = video_shapes()
  params, batch_stats = torch_weights.load_into(*before, tensors)
  assert all_taken((params["features"], batch_stats))
  assert params["head"] == before[0]["head"] and params["bias"] == before[0]["bias"]
  names = {
    "torchvision": ("4.conv.0.0", "4.conv.1.0", "4.conv.1.1", "4.conv.2", "1.conv.1"),
    "tsm": ("4.conv.0", "4.conv.3", "4.conv.4", "4.conv.6", "1.conv.3"),
  }[layout]
  expand, depthwise, depthwise_bn, project, first_project = (
    tensors[f"features.{name}.weight"] for name in names
  )
  block = params["features"][4]
  np.testing.assert_array_equal(
    block["expand"]["kernel"].reshape(8, 48), np.einsum("oihw->io", expand)
  )
  np.testing.assert_array_equal(block["depthwise"], np.einsum("cihw->hwic", depthwise))
  np.testing.assert_array_equal(block["depthwise_bn"]["scale"], depthwise_bn)
  np.testing.assert_array_equal(
    block["project"]["kernel"].reshape(48, 8), np.einsum("oihw->io", project)
  )
  np.testing.assert_array_equal(
    params["features"][1]["project"]["kernel"].reshape(8, 8), np.einsum("oihw->io", first_project)
  )


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_a_temporal_shift_checkpoint_is_taken_with_its_head(hidden):
  tensors = arrays(tsm(hidden=hidden))
  params, batch_stats = torch_weights.load_into(*video_shapes(hidden=hidden), tensors)
  assert all_taken((params, batch_stats))
  expected = tensors["module.base_model.features.16.conv.0.net.weight"][:, :, 0, 0].T
  np.testing.assert_array_equal(
    params["features"][16]["expand"]["kernel"].reshape(expected.shape), expected
  )
  last = "module.new_fc.4" if hidden else "module.new_fc"
  np.testing.assert_array_equal(params["head"]["kernel"], tensors[f"{last}.weight"].T)
  np.testing.assert_array_equal(params["bias"], tensors[f"{last}.bias"])
  if hidden:
    ours = params["hidden"][1]
    np.testing.assert_array_equal(ours["kernel"], tensors["module.new_fc.2.weight"].T)
    np.testing.assert_array_equal(ours["bias"], tensors["module.new_fc.2.bias"])


def test_a_head_of_another_task_is_left_out_where_asked():
  tensors = arrays(tsm() | {"module.new_fc.weight": (400, 1280), "module.new_fc.bias": (400,)})
  before = video_shapes(hidden=(5, 4))
  params, _ = torch_weights.load_into(*before, tensors, head=False)
  assert all_taken(params["features"])
  for name in ("hidden", "head", "bias"):
    assert jax.tree.leaves(params[name]) == jax.tree.leaves(before[0][name])
  params, _ = torch_weights.load_into(*fpn_shapes(classes=9), arrays(smp_fpn()), head=False)
  assert params["segmentation_head"]["bias"].shape == (9,)
  with pytest.raises(UserError, match=r"new_fc.weight \(400, 1280\) for \(2, 1280\)"):
    torch_weights.load_into(*video_shapes(), tensors)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_what_wraps_a_network_does_not_count(prefix):
  tensors = {prefix + name: x for name, x in arrays(smp_fpn()).items()}
  assert all_taken(torch_weights.load_into(*fpn_shapes(), tensors))


def test_colour_kernels_are_summed_for_grey_images():
  tensors = arrays(resnet(in_channels=3))
  params, _ = torch_weights.load_into(*fpn_shapes(), tensors)
  expected = np.einsum("oihw->hwo", tensors["conv1.weight"])[:, :, None]
  np.testing.assert_allclose(params["encoder"]["conv1"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_seven_channels_share_the_sum_and_three_stay_as_they_are():
  tensors = arrays(mobilenet())
  theirs = tensors["features.0.0.weight"]
  kernel = torch_weights.load_into(*video_shapes(), tensors)[0]["features"][0]["conv"]["kernel"]
  assert kernel.shape == (3, 3, 7, 8)
  for channel in range(7):
    np.testing.assert_allclose(
      kernel[:, :, channel], np.einsum("oihw->hwo", theirs) / 7, rtol=1e-5, atol=1e-6
    )
  params, _ = torch_weights.load_into(*video_shapes(in_channels=3), tensors)
  np.testing.assert_array_equal(
    params["features"][0]["conv"]["kernel"], np.einsum("oihw->hwio", theirs)
  )


def test_everything_that_does_not_fit_is_in_one_error():
  tensors = arrays(smp_fpn(classes=5) | {"auxiliary.weight": (1,)})
  del tensors["encoder.bn1.running_var"], tensors["decoder.p5.weight"]
  with pytest.raises(UserError) as error:
    torch_weights.load_into(*fpn_shapes(), tensors, source="file.pth")
  message = str(error.value)
  assert "\n" not in message and message.startswith("file.pth does not fit")
  missing, unknown, misshapen = message.split("; ")[1:4]
  assert missing.startswith("missing: ")
  assert set(missing.removeprefix("missing: ").split(", ")) == {
    "decoder.p5.weight",
    "encoder.bn1.running_var",
  }
  assert unknown == "unknown: auxiliary.weight"
  assert "segmentation_head.0.weight (5, 16, 1, 1) for (3, 16, 1, 1)" in misshapen
  assert "segmentation_head.0.bias (5,) for (3,)" in misshapen


def test_a_long_list_is_counted():
  tensors = arrays(smp_fpn() | {f"more.{i}": (1,) for i in range(15)})
  with pytest.raises(UserError, match=r"unknown: more.0, .*, more.9 and 5 more;"):
    torch_weights.load_into(*fpn_shapes(), tensors)


@pytest.mark.parametrize(
  ("theirs", "name"),
  [
    (resnet(blocks=(3, 4, 6, 3)), "resnet34"),
    (smp_fpn(blocks=(3, 4, 6, 3)), "resnet34"),
    (resnet(blocks=(3, 4, 6, 3), bottleneck=True), "resnet50"),
    (mobilenet(), "mobilenet_v2"),
    (tsm(), "mobilenet_v2"),
  ],
)
def test_the_error_says_what_the_file_looks_like(theirs, name):
  with pytest.raises(UserError, match=rf"it looks like a {name}\)"):
    torch_weights.load_into(*fpn_shapes(), arrays(theirs))
  assert torch_weights.identify(arrays({"a": (1,)})) is None


def test_a_kernel_of_another_width_is_no_colour_kernel():
  tensors = arrays(resnet(in_channels=4))
  with pytest.raises(UserError, match=r"conv1.weight \(8, 4, 7, 7\) for \(8, 1, 7, 7\)"):
    torch_weights.load_into(*fpn_shapes(), tensors)


def save(path, tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  safetensors.save_file(tensors, path)
  return os.fspath(path)


def test_safetensors_are_read_in_float32(tmp_path):
  half = np.float16([[0.5, 1.0], [-2.0, 3.0]])
  file = save(tmp_path / "a.safetensors", {"half": half, "steps": np.int64([3])})
  found = torch_weights.read(file)
  assert {name: x.dtype for name, x in found.items()} == dict.fromkeys(
    ("half", "steps"), np.float32
  )
  np.testing.assert_array_equal(found["half"], half)


def with_header(header, body=b""):
  """The bytes of a safetensors file."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + body


def one_tensor(kind, shape, n_bytes, name="a"):
  header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, n_bytes]}}
  return with_header(header, bytes(n_bytes))


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"not a header at all",
    b"\xff" * 64,
    one_tensor("F32", [2], 8)[:-1],
    with_header(b'{"a":' * 10_000),
    one_tensor("F32", [2**62], 8),
    # Nothing, in a shape that NumPy cannot have.
    one_tensor("F32", [0, 2**40, 2**40], 0),
    one_tensor("F32", [1] * 100, 4),
  ],
  ids=["empty", "junk", "huge_header", "cut", "deep", "huge", "empty_and_huge", "dimensions"],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
  file = tmp_path / "a.safetensors"
  file.write_bytes(content)
  with pytest.raises(UserError, match="a.safetensors is no safetensors file, or is damaged"):
    torch_weights.read(file)


@pytest.mark.parametrize(
  ("kind", "width"), [("I8", 1), ("BOOL", 1), ("C64", 8), ("F8_E4M3", 1)], ids=str
)
def test_tensors_that_are_no_plain_weights_are_named(tmp_path, kind, width):
  file = tmp_path / "a.safetensors"
  file.write_bytes(one_tensor(kind, [2], 2 * width, "conv.weight"))
  with pytest.raises(UserError, match=rf"no plain weights: conv.weight \({kind}\); save it in"):
    torch_weights.read(file)
  file.write_bytes(one_tensor("BF16", [2], 4))
  np.testing.assert_array_equal(torch_weights.read(file)["a"], np.zeros(2, np.float32))


def test_names_without_end_are_refused(tmp_path):
  file = tmp_path / "a.safetensors"
  file.write_bytes(one_tensor("F32", [1], 4, "n" * 256))
  with pytest.raises(UserError, match="1 tensors, with names of up to 256 letters"):
    torch_weights.read(file)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("layer1.0.conv2.weight", np.nan, "NaN or infinite"),
    ("bn1.bias", -np.inf, "NaN or infinite"),
    ("layer4.0.downsample.0.weight", -9e16, "9.0e\\+16"),
    ("bn1.running_var", 9e16, "9.0e\\+16"),
    ("layer2.0.bn1.running_var", -0.1, "a negative variance"),
  ],
)
def test_values_that_no_weight_can_have_are_named(name, value, message):
  tensors = arrays(resnet())
  torch_weights.load_into(*fpn_shapes(), tensors)
  tensors[name].flat[3] = value
  with pytest.raises(UserError, match=rf"file.pth is damaged, .*: {name} \({message}\)\.$"):
    torch_weights.load_into(*fpn_shapes(), tensors, source="file.pth")


def test_a_tensor_under_two_names_is_refused():
  tensors = arrays(resnet())
  tensors["base_model.bn1.weight"] = tensors["bn1.weight"] + 1
  with pytest.raises(UserError, match=r"tensors of one network twice: bn1.weight\."):
    torch_weights.load_into(*fpn_shapes(), tensors)


def test_names_of_a_file_stay_in_one_line():
  with pytest.raises(UserError) as error:
    torch_weights.load_into(*fpn_shapes(), arrays(resnet() | {"a\nb\x1b[31m" + "c" * 200: (1,)}))
  assert r"unknown: a\nb\x1b[31mc" in str(error.value) and "ccc...;" in str(error.value)
  assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_first_kernel_without_channels_is_refused(tmp_path):
  tensors = arrays(mobilenet()) | {"features.0.0.weight": np.zeros((8, 0, 3, 3), np.float32)}
  file = save(tmp_path / "video.safetensors", tensors)
  with pytest.raises(UserError, match=r"features.0.0.weight \(8, 0, 3, 3\) for \(8, 1, 3, 3\)"):
    models.check_init_from(model_config(file, width=VIDEO_WIDTH), video=True)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("gone.pth", "gone.pth does not exist"),
    ("weights.h5", "name one that ends in .pth, .pt, "),
    ("folder.pth", "folder.pth is no regular file"),
    ("pipe.safetensors", "pipe.safetensors is no regular file"),
    ("large.pth", "large.pth has 8.0 GiB, more than the weights of one network"),
  ],
)
def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path, name, message):
  (tmp_path / "folder.pth").mkdir()
  os.mkfifo(tmp_path / "pipe.safetensors")
  with open(tmp_path / "large.pth", "wb") as file:
    file.truncate(2**33)
  with pytest.raises(UserError, match=message):
    torch_weights.read(os.fspath(tmp_path / name))


@pytest.mark.parametrize(
  ("suffix", "library"), [(".pth", "torch"), (".safetensors", "safetensors")]
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, suffix, library):
  file = tmp_path / f"a{suffix}"
  file.write_bytes(b"anything")
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(UserError, match=f"needs {library}, which is not installed"):
    torch_weights.read(file)


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_may_lie_in_a_checkpoint(tmp_path, key):
  torch = pytest.importorskip("torch")
  state = {"module.a.weight": torch.arange(4.0).bfloat16(), "n": torch.tensor(3)}
  torch.save(state if key is None else {"epoch": 3, key: state}, tmp_path / "a.pth")
  found = torch_weights.read(tmp_path / "a.pth")
  np.testing.assert_array_equal(found["module.a.weight"], np.arange(4, dtype=np.float32))


class Evil:
  """Touches a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_code_of_a_file_is_run(tmp_path, wrapped):
  torch = pytest.importorskip("torch")
  trace, file = tmp_path / "trace", tmp_path / "evil.pth"
  if wrapped:
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": Evil(trace)}, file)
  else:
    file.write_bytes(pickle.dumps(Evil(trace)))
  with pytest.raises(UserError, match="evil.pth is damaged, or reading it would run code"):
    torch_weights.read(file)
  assert not trace.exists()
  # It would have done so.
  torch.load(file, weights_only=False) if wrapped else pickle.loads(file.read_bytes())
  assert trace.exists()


@pytest.mark.parametrize(
  "content", [b"", b"junk", b"PK\x03\x04 not an archive", b"\x80\x02" + b"]" * 10**6]
)
def test_a_damaged_file_of_torch_is_refused(tmp_path, content):
  pytest.importorskip("torch")
  (tmp_path / "a.pt").write_bytes(content)
  with pytest.raises(UserError, match="damaged"):
    torch_weights.read(tmp_path / "a.pt")


def test_a_file_without_weights_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"epoch": 3}, tmp_path / "a.pt")
  with pytest.raises(UserError, match="holds no state dict"):
    torch_weights.read(tmp_path / "a.pt")


def test_what_is_no_plain_tensor_in_a_file_of_torch_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  file = tmp_path / "a.pth"
  for content, message in (
    ({1: torch.ones(1)}, "holds no state dict"),
    ({"a": torch.ones(2).to_sparse()}, "no plain weights: a .*sparse"),
    ({"a": torch.empty(2**40, device="meta")}, "no plain weights: a .*meta"),
    ({"a": torch.ones(2, dtype=torch.int8)}, "no plain weights: a .*int8"),
    ({"a": torch.ones(2, dtype=torch.complex64)}, "no plain weights: a .*complex64"),
    # A view of one number.
    ({"a": torch.ones(1).half().expand(2**40)}, "its tensors have more numbers than it holds"),
  ):
    torch.save(content, file)
    with pytest.raises(UserError, match=message):
      torch_weights.read(file)


def test_a_file_of_torch_is_read_only_if_it_fits_its_checksums(tmp_path):
  torch = pytest.importorskip("torch")
  file, whole = tmp_path / "a.pth", torch.arange(1000.0)
  for old in (False, True):
    torch.save({"a": whole}, file, _use_new_zipfile_serialization=not old)
    np.testing.assert_array_equal(torch_weights.read(file)["a"], whole)
  torch.save({"a": whole}, file)
  content = bytearray(file.read_bytes())
  with zipfile.ZipFile(file) as archive:
    records = {name: archive.read(name) for name in archive.namelist()}
  content[content.index(whole.numpy().tobytes()) + 2001] ^= 4
  file.write_bytes(content)
  with pytest.raises(UserError, match=r"a.pth is damaged: a/data/0 does not fit its checksum\."):
    torch_weights.read(file)
  # A small archive can hold more than any memory.
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, record in records.items():
      archive.writestr(name, record)
  with pytest.raises(UserError, match="a.pth is compressed"):
    torch_weights.read(file)


def test_the_digest_changes_with_the_content(tmp_path):
  file = tmp_path / "a.pth"
  file.write_bytes(b"one")
  first = torch_weights.digest(file)
  file.write_bytes(b"two")
  assert torch_weights.digest(file) != first


def model_config(file, **changes):
  fields = {"encoder": "resnet18", "width": FPN_WIDTH, "dropout": 0.2, "init_from": file}
  return ConfigDict(fields | changes)


def test_a_file_is_checked_before_the_run_knows_its_data(tmp_path):
  # Neither the classes nor the channels of a frame are known then.
  file = save(tmp_path / "fpn.safetensors", arrays(smp_fpn(classes=4)))
  models.check_init_from(model_config(file), video=False)
  with pytest.raises(UserError, match=r"fpn.safetensors .*\(it looks like a resnet18\); missing"):
    models.check_init_from(model_config(file, encoder="resnet34"), video=False)
  with pytest.raises(UserError, match=r"block.0.block.1.bias \(16,\) for \(32,\)"):
    models.check_init_from(model_config(file, width=0.25), video=False)
  with pytest.raises(UserError, match=r"it looks like a resnet18\)"):
    models.check_init_from(model_config(file, width=VIDEO_WIDTH), video=True)
  for i, theirs in enumerate((tsm(), tsm(in_channels=3), mobilenet())):
    file = save(tmp_path / f"{i}.safetensors", arrays(theirs))
    models.check_init_from(model_config(file, width=VIDEO_WIDTH), video=True)


@pytest.fixture
def imagenet(tmp_path):
  """A file of an ImageNet ResNet-18."""
  return save(tmp_path / "imagenet.safetensors", arrays(resnet(in_channels=3)))


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
  return os.fspath(tmp_path_factory.mktemp("data"))


@pytest.fixture
def segmentation_config(imagenet, prepared_dir):
  config = seg.get_config("tiny")
  config.data.image_size = 32
  config.data.phantom.update({"n_patients": 4, "n_frames": 2, "missing_views": 0.6})
  config.data.prepared_dir = prepared_dir
  config.model.update({"width": FPN_WIDTH, "init_from": imagenet})
  config.sweep.update({"thresholds": (0.6, 0.0), "seeds": 2})
  return config


@pytest.mark.slow
def test_every_member_of_a_sweep_starts_from_the_file(
  segmentation_config, imagenet, tmp_path, monkeypatch
):
  class Begun(Exception):
    pass

  def fit(task, sweep, state, *args, **options):
    raise Begun(sweep.to_host(sweep.map(lambda one: (one.params, one.batch_stats), state)))

  build, built = models.build_model, {}

  def build_once(config, *, seed, **options):
    if seed not in built:
      built[seed] = build(config, seed=seed, **options)
    return built[seed]

  def run():
    run_lib.train_and_evaluate(segmentation_config, tmp_path / "run")

  monkeypatch.setattr(loop, "fit", fit)
  monkeypatch.setattr(models, "build_model", build_once)
  with pytest.raises(Begun) as begun:
    run()
  (members,) = begun.value.args
  theirs = torch_weights.read(imagenet)
  assert len(members) == 4
  for params, batch_stats in members:
    np.testing.assert_array_equal(
      params["encoder"]["stages"][3][1]["conv2"]["kernel"],
      np.einsum("oihw->hwio", theirs["layer4.1.conv2.weight"]),
    )
    np.testing.assert_array_equal(batch_stats["encoder"]["bn1"]["mean"], theirs["bn1.running_mean"])
  # The decoder is the seed's.
  heads = [np.asarray(params["segmentation_head"]["kernel"]) for params, _ in members]
  np.testing.assert_array_equal(heads[0], heads[1])
  assert np.any(heads[0] != heads[2])
  # The same file again, and another of its name.
  with pytest.raises(Begun):
    run()
  save(imagenet, {name: x + 1 for name, x in theirs.items() if x.ndim})
  with pytest.raises(UserError, match="what its weights start from has changed"):
    run()


@pytest.mark.parametrize(
  ("theirs", "message"),
  [(None, "does not exist"), (resnet(blocks=(3, 4, 6, 3)), "it looks like a resnet34")],
)
def test_a_run_refuses_its_file_before_it_prepares_data(
  segmentation_config, imagenet, tmp_path, monkeypatch, theirs, message
):
  monkeypatch.setattr(datasets, "open_dataset", None)
  os.remove(imagenet)
  if theirs is not None:
    save(imagenet, arrays(theirs))
  with pytest.raises(UserError, match=message):
    run_lib.train_and_evaluate(segmentation_config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_clinical_task_starts_from_a_file(tmp_path, imagenet):
  theirs = arrays(mobilenet())
  config = sf_change.get_config("tiny")
  config.model.init_from = save(tmp_path / "video.safetensors", theirs)
  config.model.width = VIDEO_WIDTH
  clinical_run.check(config)
  params, batch_stats = video_shapes()
  network = SimpleNamespace(params=params, batch_stats=batch_stats)
  setup = SimpleNamespace(
    config=config, network=network, places=[(0.6, 0), (0.0, 0)], splits=[], workdir=tmp_path
  )
  started, trained_on = initial.initial_weights(setup, {})
  assert len(started) == 2 and trained_on is None
  for one in started:
    expected = np.einsum("oihw->hwio", theirs["features.0.0.weight"]).sum(2) / 7
    kernel = one["params"]["features"][0]["conv"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, 6], expected, rtol=1e-5, atol=1e-6)
    assert one["params"]["head"] == params["head"]
  config.model.init_from = imagenet
  with pytest.raises(UserError, match="it looks like a resnet18"):
    clinical_run.check(config)
