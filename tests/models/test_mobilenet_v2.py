from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax import numpy as jnp

from lus_jax import models
from lus_jax.errors import UserError
from lus_jax.models import layers
from lus_jax.models.mobilenet_v2 import InvertedResidual, MobileNetV2, StemConv
from lus_jax.training.state import Network

CONFIG = SimpleNamespace(width=0.25, dtype="float32")


def build(config=CONFIG, *, outputs=3, hidden=(), seed=0):
  return models.build_video_model(config, in_channels=2, outputs=outputs, hidden=hidden, seed=seed)


def random_clip(key, *, batch=2, frames=4, size=32):
  return jax.random.uniform(key, (batch, frames, size, size, 2))


def random_batch(key):
  """The clips of every gradient, all of one shape: a whole network takes seconds to compile."""
  return random_clip(key, batch=8, frames=3)


@pytest.fixture(scope="module")
def network():
  return Network(build(hidden=(16, 8)))


@pytest.fixture(scope="module")
def gradient(network):
  """Gradients of a loss, and the batch statistics, as a jitted function of (params, clip)."""

  def loss(params, clip):
    outputs, batch_stats = network(params, network.batch_stats, clip, train=True)
    return jnp.mean((outputs + params["bias"][None] - 1) ** 2), batch_stats

  return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def evaluate(network, gradient):
  """Outputs in evaluation; running statistics are a batch's, else little of it would be left."""
  _, recorded = gradient(network.params, random_batch(jax.random.key(1)))
  batch_stats = jax.tree.map(
    lambda new, old: (new - 0.9 * old) / 0.1, recorded, network.batch_stats
  )
  return jax.jit(
    lambda clip, bias=0.0: network(network.params | {"bias": jnp.full(3, bias)}, batch_stats, clip)[
      0
    ]
  )


def test_clips_that_do_not_count_enter_no_statistics_of_any_norm(network, key):
  clip, where = random_clip(key), jnp.array([True, False])

  @jax.jit
  def recorded(clip, where):
    return network(network.params, network.batch_stats, clip, train=True, where=where)

  outputs, found = recorded(clip, where)
  # It is as if the clip beside it were not there, whatever it shows.
  again, expected = recorded(clip[jnp.array([0, 0])], where)
  other, same = recorded(clip.at[1].set(0.5), where)
  np.testing.assert_array_equal(outputs[0], again[0])
  np.testing.assert_array_equal(outputs[0], other[0])
  for statistics in (expected, same):
    jax.tree.map(np.testing.assert_array_equal, found, statistics)
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(recorded(clip, ~where)[1]), strict=True)
  )


def test_parameters_are_as_many_as_torchvisions():
  model = nnx.eval_shape(lambda: MobileNetV2(in_channels=3, outputs=1000, rngs=nnx.Rngs(0)))
  sizes = jax.tree.map(lambda x: x.size, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  assert sum(jax.tree.leaves(sizes)) == 3_504_872
  assert sizes["bias"] == 1000


# At width .25 features 1 has 8 channels on both sides: residual, but not shifted.
@pytest.mark.parametrize(("width", "also_residual"), [(1.0, []), (0.25, [1])])
def test_the_ten_residual_bottlenecks_are_shifted(width, also_residual):
  model = nnx.eval_shape(
    lambda: MobileNetV2(in_channels=3, outputs=1, width=width, rngs=nnx.Rngs(0))
  )
  assert len(model.features) == 19
  shifted = [i for i in range(1, 18) if model.features[i].shifted]
  assert shifted == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
  assert [i for i in range(1, 18) if model.features[i].residual] == also_residual + shifted


@pytest.mark.parametrize(
  # Channels of features 0, 2, 4, 7, 11, 14, 17 and 18, counted by hand with torchvision's rule.
  ("width", "channels"),
  [
    (0.25, [8, 8, 8, 16, 24, 40, 80, 1280]),
    (0.35, [16, 8, 16, 24, 32, 56, 112, 1280]),
    (1.4, [48, 32, 48, 88, 136, 224, 448, 1792]),
  ],
)
def test_width_rounds_as_torchvision(width, channels):
  model = nnx.eval_shape(
    lambda: MobileNetV2(in_channels=1, outputs=1, width=width, rngs=nnx.Rngs(0))
  )
  blocks = [model.features[i].project_bn.scale.shape[0] for i in (2, 4, 7, 11, 14, 17)]
  ends = [model.features[i].bn.scale.shape[0] for i in (0, 18)]
  assert [ends[0], *blocks, ends[1]] == channels


def test_outputs_are_float32_numbers_per_clip(evaluate, key):
  model = build(SimpleNamespace(width=0.25, dtype="bfloat16"), outputs=4)
  coarse = nnx.jit(lambda model, clip: model(clip, train=True))(
    model, jax.random.uniform(key, (2, 3, 45, 61, 2))
  )
  for outputs, shape in ((coarse, (2, 4)), (evaluate(random_clip(key)), (2, 3))):
    assert outputs.shape == shape
    assert outputs.dtype == jnp.float32
    assert np.all(np.isfinite(outputs))
    assert np.ptp(outputs) > 0


def test_initial_weights_are_torchvisions():
  options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
  block = InvertedResidual(160, 160, stride=1, expansion=6, **options)
  for kernel, fan_out in (
    (StemConv(4, 32, **options).kernel, 9 * 32),
    (block.expand.kernel, 960),
    (block.depthwise, 9 * 960),
    (block.project.kernel, 160),
  ):
    np.testing.assert_allclose(np.std(kernel[...]), np.sqrt(2 / fan_out), rtol=0.1)
  head = build(outputs=50).head.kernel
  np.testing.assert_allclose(np.std(head[...]), 0.01, rtol=0.1)


def test_the_stem_is_a_strided_convolution(key):
  stem = StemConv(3, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = jax.random.normal(key, (2, 7, 10, 3))
  expected = lax.conv_general_dilated(
    x,
    stem.kernel[...],
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )
  np.testing.assert_allclose(stem(x), expected, atol=1e-5)


def test_relu6_and_its_gradient():
  x = jnp.float32([-1, 0, 2, 6, 7])
  np.testing.assert_array_equal(layers.activation(x, 6), [0, 0, 2, 6, 6])
  np.testing.assert_array_equal(
    jax.vmap(jax.grad(lambda x: layers.activation(x, 6)))(x), [0, 0, 1, 0, 0]
  )


def test_a_block_sees_its_neighbours_through_two_folds_and_zeros_beyond_the_clip(key):
  channels, fold = 16, 2
  block = InvertedResidual(
    channels, channels, stride=1, expansion=6, dtype=jnp.float32, rngs=nnx.Rngs(0)
  )

  def run(x):
    # Without the identity path, which sees every channel of its own frame.
    return block(x, n_segment=3, train=False) - x

  x = jax.random.normal(key, (3, 2, 2, channels))
  y = run(x)
  # Frame 0 takes fold 0 from frame 1, and its second fold is zeros.
  for channel, frame, moves in (
    (0, 0, False),
    (0, 1, True),
    (fold, 0, False),
    (fold, 1, False),
    (2 * fold, 0, True),
    (2 * fold, 1, False),
    (0, 2, False),
  ):
    changed = run(x.at[frame, ..., channel].add(5.0))
    assert np.allclose(changed[0], y[0], atol=1e-5) != moves, (channel, frame)


def test_frames_are_averaged_and_their_order_matters(evaluate, key):
  clip = random_clip(key)
  outputs = evaluate(clip)
  assert not np.allclose(evaluate(clip[:, jnp.array([2, 0, 3, 1])]), outputs, rtol=1e-3)
  # Clips do not touch each other.
  beside_another = evaluate(clip.at[0].set(random_clip(jax.random.key(1))[0]))
  np.testing.assert_allclose(beside_another[1], outputs[1], rtol=1e-4)
  assert not np.allclose(beside_another[0], outputs[0], rtol=1e-3)


def test_a_still_clip_gives_the_same_outputs_again(evaluate, key):
  clip = jnp.repeat(random_clip(key, frames=1), 4, axis=1)
  np.testing.assert_array_equal(evaluate(clip), evaluate(clip))


def test_the_bias_is_left_to_the_loss(evaluate, key):
  clip = random_clip(key)
  np.testing.assert_array_equal(evaluate(clip, bias=7.0), evaluate(clip))


def test_gradients_reach_every_parameter_and_batch_statistics_move(network, gradient, key):
  grads, batch_stats = gradient(network.params, random_batch(key))
  for path, grad in jax.tree.leaves_with_path(grads):
    assert np.all(np.isfinite(grad)), path
    assert np.any(np.asarray(grad) != 0), path
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), network.batch_stats, batch_stats)
  assert all(jax.tree.leaves(moved))
  assert len(jax.tree.leaves(moved)) == 2 * 52


@pytest.mark.slow
def test_stacked_models_give_what_each_gives_alone(network, gradient, key):
  params = [network.params, Network(build(hidden=(16, 8), seed=1)).params]
  # Rounding may flip a ReLU, and norms over few values amplify it; mixed-up members differ by 1.
  clips = jnp.stack([random_batch(k) for k in jax.random.split(key)])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
  together, _ = jax.jit(jax.vmap(gradient))(stacked, clips)

  def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

  for i in range(2):
    alone = flat(gradient(params[i], clips[i])[0])
    error = flat(jax.tree.map(lambda x, i=i: x[i], together)) - alone
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(alone)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"width": 0}, "width: 0 must be above 0"),
    ({"width": 4.5}, "width: 4.5 must be above 0"),
    ({"dtype": "int8"}, "'int8' is not known; choose one of auto, float32, bfloat16"),
  ],
)
def test_a_config_out_of_range_is_refused(change, message):
  with pytest.raises(UserError, match=message):
    models.check_video(SimpleNamespace(**(vars(CONFIG) | change)))


class Same(nnx.Module):
  """Stands in for a layer."""

  def __call__(self, x, **options):
    return x


def test_features_of_clips_are_dropped_in_training_alone(key):
  network = MobileNetV2(in_channels=1, outputs=1, width=0.125, dropout=0.5, rngs=nnx.Rngs(0))
  # Between features that are given and a sum of them there is dropout alone.
  network.features = nnx.List([Same(), Same()])
  network.head.kernel[...] = jnp.ones_like(network.head.kernel[...])
  features = jnp.ones((3, 2, 1, 1, 1280))
  np.testing.assert_array_equal(network(features, train=False), np.full((3, 1), 1280))
  dropped = np.asarray(network(features, train=True, key=key))
  # What is left counts twice; each clip drops its own.
  assert (dropped % 2 == 0).all() and (abs(dropped - 1280) < 200).all()
  assert len(set(dropped.ravel().tolist())) == 3
  np.testing.assert_array_equal(network(features, train=True, key=key), dropped)
  with pytest.raises(UserError, match="config.model.dropout: 1.0"):
    models.check_video(SimpleNamespace(width=0.25, dtype="float32", dropout=1.0))
