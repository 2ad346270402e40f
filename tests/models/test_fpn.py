import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from ml_collections import ConfigDict
from scipy import ndimage

from lus_jax.errors import UserError
from lus_jax.models import build_model, check, designs
from lus_jax.models.fpn import FPN
from lus_jax.training.state import Network


def tiny(**kwargs):
  return FPN(
    "resnet18", **({"classes": 2, "width": 0.125, "rngs": nnx.Rngs(0), "dropout": 0.0} | kwargs)
  )


def run(model, image, *, train=False, keys=(None,)):
  """Its output with each key, compiled: operation by operation takes several times as long."""
  graph, state = nnx.split(model)

  @jax.jit
  def forward(state, image, key):
    return nnx.merge(graph, state)(image, train=train, key=key)

  found = [forward(state, image, key) for key in keys]
  return found if len(found) > 1 else found[0]


def count(model):
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
  ("encoder", "millions"), [("resnet18", 13.04), ("resnet34", 23.15), ("resnet50", 26.11)]
)
def test_parameter_count(encoder, millions):
  # 23.15 M: the widely used PyTorch FPN with a ResNet-34, 1 channel in, 6 out.
  model = nnx.eval_shape(lambda: FPN(encoder, classes=6, rngs=nnx.Rngs(0)))
  assert round(count(model) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [(32, 64), (33, 50)])
def test_logits_have_the_size_of_the_image(key, size):
  image = jax.random.uniform(key, (2, *size, 1))
  logits = jax.eval_shape(lambda image: tiny()(image, train=False), image)
  assert logits.shape == (2, *size, 2)
  assert logits.dtype == jnp.float32


def test_a_padded_image_gives_the_logits_of_the_zero_padded_one(key):
  image = jax.random.uniform(key, (1, 40, 33, 1))
  padded = jnp.pad(image, ((0, 0), (0, 24), (0, 31), (0, 0)))
  model = tiny()
  np.testing.assert_allclose(run(model, image), run(model, padded)[:, :40, :33], atol=1e-6)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_the_gradient_reaches_every_parameter(key, encoder):
  network = Network(FPN(encoder, classes=2, width=0.125, dropout=0.0, rngs=nnx.Rngs(1)))
  image = jax.random.uniform(key, (2, 64, 64, 1))

  def loss(params):
    logits, _ = network(params, network.batch_stats, image, train=True)
    return jnp.mean(jnp.sin(logits * 3 + jnp.arange(2.0).reshape(1, 1, 1, 2)))

  gradients = jax.jit(jax.grad(loss))(network.params)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert float(jnp.max(jnp.abs(gradient))) > 0, jax.tree_util.keystr(path)


def test_training_records_statistics_and_evaluation_does_not(key):
  network = Network(tiny())
  image = jax.random.uniform(key, (2, 32, 32, 1))
  trained, evaluated = (
    jax.jit(lambda image, t=t: network(network.params, network.batch_stats, image, train=t)[1])(
      image
    )
    for t in (True, False)
  )
  changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), network.batch_stats, trained)
  assert all(jax.tree.leaves(changed))
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool(jnp.all(a == b)), network.batch_stats, evaluated)
  )


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(key):
  image = jax.random.uniform(key, (2, 64, 64, 1))
  exact, coarse = tiny(), tiny(dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(nnx.state(coarse))} == {jnp.dtype("float32")}
  features = jax.eval_shape(
    lambda image: tiny(dtype=jnp.bfloat16).encoder(image, train=True), image.astype(jnp.bfloat16)
  )
  assert {f.dtype for f in features} == {jnp.dtype("bfloat16")}
  a, b = (run(model, image, train=True) for model in (exact, coarse))
  assert b.dtype == jnp.float32
  error = float(jnp.max(jnp.abs(a - b)) / jnp.std(a))
  assert 0 < error < 0.5


def test_dropout_drops_whole_channels_in_training_only(key):
  model = tiny(dropout=0.5)
  image = jax.random.uniform(key, (1, 32, 32, 1))
  one, two = run(model, image, train=True, keys=[jax.random.key(i) for i in range(2)])
  assert bool(jnp.any(one != two))
  dropped = model.dropout(
    jnp.ones((2, 3, 3, 16)), deterministic=False, rngs=nnx.Rngs(dropout=jax.random.key(0))
  )
  assert bool(jnp.all(dropped == dropped[:, :1, :1]))
  one, two = run(model, image, keys=[jax.random.key(i) for i in range(2)])
  assert bool(jnp.all(one == two))


CONFIG = ConfigDict({"encoder": "resnet18", "width": 0.125, "dropout": 0.2, "dtype": "float32"})


@pytest.mark.parametrize(
  ("field", "value"),
  [("encoder", "vgg"), ("dtype", "int8"), ("width", 0.0), ("dropout", 1.0)],
)
def test_a_bad_config_is_refused_by_name(field, value):
  config = CONFIG.copy_and_resolve_references()
  config[field] = value
  with pytest.raises(UserError, match=f"config.model.{field}"):
    check(config)


def test_the_seed_decides_the_weights():
  a, b, c = (
    Network(build_model(CONFIG, in_channels=1, classes=2, seed=seed)).params for seed in (0, 0, 1)
  )
  assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b))
  assert not jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, c))


def _reference_decoder(params, features, *, group_size):
  """The decoder in float64 NumPy, written from its definition."""

  def conv3(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))

  def group_norm(x, scale, bias):
    b, h, w, c = x.shape
    groups = x.reshape(b, h, w, c // group_size, group_size)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = groups.var((1, 2, 4), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias

  def aligned(x, factor):
    for axis in (1, 2):
      n = x.shape[axis]
      at = np.linspace(0, n - 1, n * factor)
      low = np.minimum(np.floor(at).astype(int), max(n - 2, 0))
      high = np.minimum(low + 1, n - 1)
      share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
      x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x

  level, merged = None, 0
  for i in (3, 2, 1, 0):
    lateral = params["laterals"][i]
    level_in = features[i] @ lateral["kernel"][0, 0] + lateral["bias"]
    level = level_in if level is None else level_in + level.repeat(2, 1).repeat(2, 2)
    branch, x = params["branches"][i], level
    for j in range(max(1, i)):
      x = conv3(x, branch["convs"][j]["kernel"])
      x = np.maximum(group_norm(x, branch["norms"][j]["scale"], branch["norms"][j]["bias"]), 0)
      x = aligned(x, 2) if i else x
    merged = merged + x
  head = params["segmentation_head"]
  return aligned(merged @ head["kernel"][0, 0] + head["bias"], 4)


def test_the_decoder_follows_a_float64_reference(key):
  model = tiny(width=0.25)
  # Norms away from their start, so that scale and bias count.
  for branch in model.branches:
    for norm in branch.norms:
      shape = norm.scale[...].shape
      norm.scale[...] = 1 + 0.3 * jax.random.normal(key, shape)
      norm.bias[...] = 0.3 * jax.random.normal(jax.random.fold_in(key, 1), shape)
  image = jax.random.uniform(key, (2, 64, 96, 1))
  params = jax.tree.map(
    lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model, nnx.Param))
  )
  encoder, state = nnx.split(model.encoder)
  features = jax.jit(lambda state: nnx.merge(encoder, state)(image, train=False))(state)
  features = [np.asarray(f, np.float64) for f in features]
  assert [f.shape[1] for f in features] == [16, 8, 4, 2]
  expected = _reference_decoder(params, features, group_size=4)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(run(model, image), expected, atol=2e-5 * scale)


@pytest.mark.parametrize("size", [(64, 128), (80, 48)])
def test_what_is_shrunk_is_the_smaller_image_with_logits_of_the_full_size(key, size):
  image = jax.random.uniform(key, (1, *size, 1))
  found = run(tiny(shrink=2), image)
  assert found.shape == (1, *size, 2)
  small = np.asarray(image).reshape(1, size[0] // 2, 2, size[1] // 2, 2, 1).mean((2, 4))
  graph, state = nnx.split(tiny())
  head = jax.jit(lambda s, x: nnx.merge(graph, s)(x, train=False, upsample=False))(state, small)
  assert head.shape[1:3] == (-(-size[0] // 64) * 8, -(-size[1] // 64) * 8)
  # Aligned corners, by scipy.
  at = [np.linspace(0, n - 1, 8 * n)[:m] for n, m in zip(head.shape[1:3], size, strict=True)]
  for k in range(2):
    expected = ndimage.map_coordinates(
      np.asarray(head[0, ..., k]), np.meshgrid(*at, indexing="ij"), order=1
    )
    np.testing.assert_allclose(found[0, ..., k], expected, atol=1e-5)


def test_shrinking_takes_work_and_memory_but_no_weight():
  config = ConfigDict({"encoder": "resnet18", "width": 0.5, "dropout": 0.2, "shrink": 2})
  plain = ConfigDict(config.to_dict() | {"shrink": 0})
  own, other = designs.segmentation(config), designs.segmentation(plain)
  assert own.sizes == (other.sizes[0] / 4, other.sizes[1])
  size = {"in_channels": 1, "classes": 3}
  assert own.flop(size=128, **size) == other.flop(size=64, **size)
  config.shrink = 3
  with pytest.raises(UserError, match="config.model.shrink: 3 is not known; choose one of 0, 1, 2"):
    designs.segmentation(config).check()


@pytest.mark.parametrize(("refinements", "stride"), [(1, 2), (2, 1)])
def test_refined_logits_are_finer_and_follow_the_image(key, refinements, stride):
  image = jax.random.uniform(key, (1, 40, 64, 1))
  model = tiny(refinements=refinements)
  graph, state = nnx.split(model)
  head = jax.jit(lambda s, x: nnx.merge(graph, s)(x, train=False, upsample=False))
  # Padded to 64 x 64; the size of the image comes back.
  assert head(state, image).shape == (1, 64 // stride, 64 // stride, 2)
  found = run(model, image)
  assert found.shape == (1, 40, 64, 2) and designs.fpn.head_stride(1, refinements) == stride
  # Without what the decoder adds only the details of the image are left: a pixel reaches no
  # farther than its convolutions.
  kernel = model.refinements[0].reduction.kernel
  kernel[...] = jnp.zeros_like(kernel[...])
  state = nnx.state(model)
  gradient = jax.jit(jax.grad(lambda x: head(state, x)[0, 8, 8, 0]))(image)
  near = np.abs(gradient[0, :, :, 0])
  centre = 8 * stride
  assert near[centre - 2 : centre + 3, centre - 2 : centre + 3].max() > 10 * near[30:, 40:].max()


def test_refinements_take_work_and_weights_that_are_counted():
  config = ConfigDict({"encoder": "resnet18", "width": 0.5, "dropout": 0.2, "refinements": 2})
  plain = ConfigDict(config.to_dict() | {"refinements": 0})
  own, other = designs.segmentation(config), designs.segmentation(plain)
  size = {"in_channels": 1, "classes": 3}
  # By hand, at 64 x 64: from 64 channels at 16 x 16 to 32 at 32 x 32 to 16 at 64 x 64.
  details = 9 * 16 * 64**2 + 9 * 16 * 32 * 32**2
  refined = 64 * 32 * 16**2 + 9 * 32 * 32 * 32**2 + 32 * 16 * 32**2 + 9 * 16 * 16 * 64**2
  heads = 16 * 3 * 64**2 - 64 * 3 * 16**2
  more = own.flop(size=64, **size) - other.flop(size=64, **size)
  assert more == 2 * (details + refined + heads)
  assert own.sizes[0] > other.sizes[0] and (own.head_stride, other.head_stride) == (1, 4)
  config.refinements = 3
  with pytest.raises(UserError, match="config.model.refinements: 3 is not known; choose a number"):
    designs.segmentation(config).check()
