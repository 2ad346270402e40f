"""The same weights and data give what PyTorch gives: logits, gradients, statistics, training.

Runs where the `peers` extra is installed.
"""

import importlib.util
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from lus_jax.benchmarks import peers
from lus_jax.models import torch_weights
from lus_jax.models.fpn import FPN
from lus_jax.models.mobilenet_v2 import MobileNetV2
from lus_jax.tasks.segmentation import train as train_lib
from lus_jax.training import objective as objective_lib
from lus_jax.training.state import Network, create_state, make_train_step

for library in ("torch", "torchvision", "segmentation_models_pytorch"):
  if importlib.util.find_spec(library) is None:
    pytest.skip(f"needs {library}: pip install 'lus_jax[peers]'", allow_module_level=True)

torch = peers.import_torch()
# Threads that wait for each other take many times as long where others test at the same time.
torch.set_num_threads(1)

CLASSES, THRESHOLD = 6, 0.6
SIZE, N_SEGMENT = 64, 4


def randomise(model, inputs, *, margin=None):
  """Weights in which each tensor matters and that are well-conditioned, as training leaves them.

  Residual branches are small beside the shortcut: every norm divides by what the layers before it
  rounded, and in a network of random weights the difference grows tenfold on the way. Running
  statistics are near the data's, for with any others little of the input is left after some layers.

  Args:
    model: a torch module.
    inputs: a batch.
    margin: standard deviations between the units' mean and the kink of the ReLU after them, on
      either side; None for any. A unit on the kink that rounding puts on its other side changes
      gradients by far more than rounding does, and among millions there are always some.
  """
  norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.GroupNorm)]
  for norm in norms:
    torch.nn.init.uniform_(norm.weight, 0.5, 1.0)
    torch.nn.init.normal_(norm.bias, 0, 0.2)
    if margin:
      norm.bias.data = margin * norm.weight.data * norm.bias.data.sign()
  if margin:
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) or m in norms]
    for norm, after in itertools.pairwise(layers):
      if norm in norms and getattr(after, "groups", 1) > 1:
        # The norm after a depthwise convolution would amplify the little of a channel that is off.
        norm.bias.data = margin * norm.weight.data
  for block in model.modules():
    if type(block).__name__ in ("BasicBlock", "Bottleneck"):
      last = block.bn3 if hasattr(block, "bn3") else block.bn2
      torch.nn.init.uniform_(last.weight, 0.2, 0.6)
      if margin:
        # What they are added to is positive, too.
        for norm in (last, *([block.downsample[1]] if block.downsample else [])):
          norm.bias.data = margin * norm.weight.data
    if isinstance(block, torch.nn.Dropout2d):
      block.p = 0.0
  norms = [norm for norm in norms if isinstance(norm, torch.nn.BatchNorm2d)]
  for norm in norms:
    norm.momentum = 1.0
  model.train()
  with torch.no_grad():
    model(inputs)
    for norm in norms:
      norm.momentum = 0.1
      norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
      norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.6, 1.6)
  return model


def tensors_of(model, *, gradients=False):
  """A copy of the state dict as arrays, with gradients in place of the parameters if asked."""
  found = {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}
  if gradients:
    found |= {name: x.grad.numpy().copy() for name, x in model.named_parameters()}
  return found


def load(network, model, **options):
  """PyTorch's weights (or gradients) as our params and batch_stats."""
  return torch_weights.load_into(network.params, network.batch_stats, tensors_of(model, **options))


def to_torch(x):
  """Channels before the rows, in an array of its own."""
  return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def worst(ours, theirs):
  """The largest difference relative to its tensor's largest value, and where.

  A bias that only a norm sees has no gradient, and both sides' is rounding: so all are also
  measured against 3e-5 of the largest of all.
  """
  floor = 3e-5 * max(float(np.max(np.abs(x))) for x in jax.tree.leaves(theirs))
  differences = jax.tree.map(
    lambda a, b: float(np.max(np.abs(a - b)) / max(floor, np.max(np.abs(b)))), ours, theirs
  )
  found = jax.tree_util.tree_leaves_with_path(differences)
  return max((value, jax.tree_util.keystr(path)) for path, value in found)


def textures(shape, r):
  """Coarse structure and noise in [0, 1]: [..., SIZE, SIZE, C] for a shape [..., C]."""
  *batch, channels = shape
  coarse = r.uniform(size=(*batch, 8, 8, channels)).repeat(SIZE // 8, -3).repeat(SIZE // 8, -2)
  return (0.7 * coarse + 0.3 * r.uniform(size=coarse.shape)).astype(np.float32)


def frames(step=0):
  """What a training step of the segmentation sees: two images."""
  r = np.random.default_rng(step)
  confidence = textures((2, CLASSES), r)
  confidence = np.rint(255 * confidence * (confidence > 0.3)) / 255
  return {
    "image": textures((2, 1), r),
    "confidence": confidence.astype(np.float32),
    "where": np.ones(confidence.shape, bool),
  }


def clips(step=0):
  """What a training step of a clinical task sees: clips, and classes of which one is frequent."""
  r = np.random.default_rng(step)
  return {
    "image": textures((4, N_SEGMENT, 1 + CLASSES), r),
    "label": np.int32([2, 2, 0, 2]),
  }


def make_fpn(encoder, **options):
  torch.manual_seed(0)
  model = peers.fpn(encoder, in_channels=1, classes=CLASSES)
  network = Network(FPN(encoder, classes=CLASSES, dropout=0.0, rngs=nnx.Rngs(0)))
  return network, randomise(model, to_torch(frames()["image"]), **options)


def make_video(*, hidden=(), **options):
  torch.manual_seed(0)
  sizes = {"in_channels": 1 + CLASSES, "outputs": 3, "hidden": hidden}
  model = peers.tsm(n_segment=N_SEGMENT, **sizes)
  network = Network(MobileNetV2(**sizes, rngs=nnx.Rngs(0)))
  return network, randomise(model, to_torch(clips()["image"]), **options)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50"])
def test_the_segmentation_network_gives_pytorchs_logits(encoder):
  network, model = make_fpn(encoder)
  params, batch_stats = load(network, model)
  image = frames()["image"]
  run = jax.jit(network, static_argnames="train")
  for train in (False, True):
    model.train(train)
    with torch.no_grad():
      expected = model(to_torch(image)).movedim(1, -1).numpy()
    logits, _ = run(params, batch_stats, image, train=train)
    # Networks that ignore their image would agree too.
    assert np.abs(expected[0] - expected[1]).max() > 1
    print(f"{encoder} train={train}: {float(np.abs(logits - expected).max()):.1e}")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_our_weights_are_the_state_dict_of_pytorchs_network(encoder):
  network, model = make_fpn(encoder)
  ours = torch_weights.state_dict(*load(network, model))
  theirs = {name: x.numpy() for name, x in model.state_dict().items()}
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    assert x.dtype == theirs[name].dtype, name
    if not name.endswith("num_batches_tracked"):
      np.testing.assert_array_equal(x, theirs[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (256, 64)])
def test_the_video_network_gives_pytorchs_outputs(hidden):
  network, model = make_video(hidden=hidden)
  # As torch.nn.DataParallel saves it.
  tensors = {f"module.{name}": x for name, x in tensors_of(model).items()}
  params, batch_stats = torch_weights.load_into(network.params, network.batch_stats, tensors)
  clip = clips()["image"]
  run = jax.jit(network, static_argnames="train")
  for train in (False, True):
    model.train(train)
    with torch.no_grad():
      expected = model(to_torch(clip)).numpy()
      backwards = model(to_torch(clip[:, ::-1])).numpy()
    outputs, _ = run(params, batch_stats, clip, train=train)
    # Clips count, and so does the order of their frames.
    assert np.abs(expected[0] - expected[1]).max() > 10 * 1e-4
    assert np.abs(expected - backwards).max() > 10 * 1e-4
    found = outputs + params["bias"][None]
    print(f"{hidden} train={train}: {float(np.abs(found - expected).max()):.1e}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def fpn_loss(network):
  """Our loss, as training uses it: `(params, batch_stats, member, inputs, key)`."""
  loss = SimpleNamespace(
    name="weighted_cross_entropy",
    weights="paper",
    subthreshold_weight="threshold",
    reduction="mean",
  )
  sweep = SimpleNamespace(thresholds=(THRESHOLD,), seeds=1)
  objective = objective_lib.Objective(
    SimpleNamespace(sweep=sweep, loss=loss, model=SimpleNamespace())
  )
  return train_lib.make_loss(network, objective)


def torch_fpn_loss(model, inputs):
  """Equation 1 of the paper: weights are the confidence where the label is 1, else t."""
  confidence = to_torch(inputs["confidence"]).double()
  label = (confidence > THRESHOLD - 1e-3).double()
  weight = label * confidence + (1 - label) * THRESHOLD
  p = torch.sigmoid(model(to_torch(inputs["image"])).double())
  return torch.mean(-weight * (label * torch.log(p) + (1 - label) * torch.log1p(-p)))


def video_loss(network):
  """The cross entropy of a clip's class."""

  def loss(params, batch_stats, member, inputs, key):
    outputs, batch_stats = network(params, batch_stats, inputs["image"], train=True)
    logits = outputs + params["bias"][None]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, inputs["label"])
    return each.mean(), batch_stats

  return loss


def torch_video_loss(model, inputs):
  label = torch.from_numpy(inputs["label"]).long()
  return torch.nn.functional.cross_entropy(model(to_torch(inputs["image"])), label)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "make_loss", "torch_loss", "data"),
  [
    pytest.param(
      lambda **options: make_fpn("resnet18", **options), fpn_loss, torch_fpn_loss, frames, id="fpn"
    ),
    pytest.param(make_video, video_loss, torch_video_loss, clips, id="video"),
  ],
)
def test_training_goes_as_pytorchs(make, make_loss, torch_loss, data):
  """The first gradients, the running statistics after 3 steps, the losses of all 20.

  Adam's first steps are of the same size whatever the gradient's, so with its usual epsilon it
  would turn rounding of gradients that are 0 into whole learning rates.
  """
  steps, rate, epsilon, decay = 20, 1e-3, 1e-4, 0.9
  network, model = make(margin=3.0)
  tx = optax.adam(rate, b1=decay, eps=epsilon)
  optimizer = torch.optim.Adam(model.parameters(), lr=rate, eps=epsilon)
  step = jax.jit(make_train_step(make_loss(network), tx))
  state = create_state(*load(network, model), tx)
  member = {"threshold": np.float32(THRESHOLD), "seed": np.int32(0)}
  model.train()
  ours, theirs = [], []
  for i in range(steps):
    inputs = data(i)
    state, loss = step(state, member, inputs, jax.random.key(i))
    optimizer.zero_grad()
    expected = torch_loss(model, inputs)
    expected.backward()
    ours.append(float(loss))
    theirs.append(expected.item())
    if i == 0:
      # The first moment's first value.
      gradients = jax.tree.map(lambda x: x / (1 - decay), state.opt_state[0].mu)
      difference, where = worst(gradients, load(network, model, gradients=True)[0])
      print(f"gradients: {difference:.1e} at {where}")
      assert difference < 1e-3, where
    optimizer.step()
    if i == 2:
      difference, where = worst(state.batch_stats, load(network, model)[1])
      print(f"statistics: {difference:.1e} at {where}")
      assert difference < 1e-3, where
  print(f"curve: {float(np.max(np.abs(np.divide(ours, theirs) - 1))):.1e}", theirs)
  np.testing.assert_allclose(ours, theirs, rtol=0.02)
  # It does train.
  assert np.mean(theirs[-5:]) < 0.95 * theirs[0]
