from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from lus_jax.benchmarks import values

SIZES = SimpleNamespace(size=32, batch=2, classes=2, frames=2, width=0.125)
FLOOR = values.FLOORS["highest"]


def case(name, how="highest"):
  """What the CPU finds, once more after rounding, and what it finds in a GPU's place."""
  noises = (0.0, values.ROUNDINGS[how])
  right, disturbed = values.Side(SIZES).compute(name, "float32", noises)
  (found,) = values.Side(SIZES, as_gpu=True).compute(name, how)
  return right, disturbed, found


def test_what_a_gpu_computes_otherwise_is_found(monkeypatch):
  right, disturbed, found = case("adam")
  assert values.compare(right, disturbed, found, "highest", floor=FLOOR)["ok"]
  adam = optax.adam
  monkeypatch.setattr(
    optax, "adam", lambda rate: adam(rate, b1=0.91 if jax.default_backend() == "gpu" else 0.9)
  )
  row = values.compare(*case("adam"), "highest", floor=FLOOR)
  assert not row["ok"] and row["difference"] > 10 * row["allowed"]
  assert row["worst"].startswith("params/")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kernels", "evaluation"])
def test_a_gpus_way_gives_a_cpus_values(name):
  right, disturbed, found = case(name)
  assert values.compare(right, disturbed, found, "highest", floor=FLOOR)["ok"]
  # Nothing is compared that is all zeros, or the same whatever goes in.
  assert all(np.any(x) for x in right.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video", "fpn resnet50"])
def test_a_case_of_a_network_can_be_made(name):
  function, noisy, fixed = values.CASES[name].make(SIZES, "bfloat16")
  found = jax.eval_shape(function, noisy, fixed)
  assert set(found) == {"loss", "outputs", "batch_stats", "gradients"}
  # No unit is near the kink of its activation.
  biases = [
    x
    for path, x in jax.tree_util.tree_leaves_with_path(noisy["params"])
    if path[-1].key == "bias" and path[0].key in ("features", "encoder")
  ]
  assert sum(np.all(np.abs(x) == 3) for x in biases) > 12


def test_differences_count_by_what_rounding_explains():
  r = np.random.default_rng(0)
  right = {
    "gradients/a": r.normal(size=1000),
    "gradients/b": 1e-6 * r.normal(size=1000),
    "loss": np.array(2.0),
  }
  disturbed = {name: x * (1 + 1e-4 * r.choice([-1, 1], x.shape)) for name, x in right.items()}

  def compare(how="highest", **changes):
    return values.compare(right, disturbed, right | changes, how, floor=FLOOR)

  assert compare()["difference"] == 0
  assert compare(**disturbed)["ok"]
  a = right["gradients/a"]
  row = compare(**{"gradients/a": a * (1 + 1.1 * values.FACTOR * 1e-4)})
  assert not row["ok"] and row["worst"] == "gradients/a"
  assert row["allowed"] == pytest.approx(values.FACTOR * 1e-4, rel=0.1)
  # Beside a, b is nothing.
  assert compare(**{"gradients/b": 1.5 * right["gradients/b"]})["ok"]
  assert not compare(**{"gradients/b": right["gradients/b"] + 1e-3})["ok"]
  for broken in (a[:-1], np.where(a > 2, np.nan, a), np.where(a > 2, np.inf, a)):
    row = compare(**{"gradients/a": broken})
    assert not row["ok"] and row["difference"] is None
  # In TF32 and bfloat16 losses and outputs count.
  assert compare("bfloat16", **{"gradients/a": -a})["ok"]
  assert not compare("bfloat16", loss=np.array(3.0))["ok"]


def test_what_is_infinite_on_both_sides_is_the_same():
  right = {"highest": np.array([1.0, -np.inf])}
  assert values.compare(right, right, right, "highest", floor=FLOOR)["difference"] == 0
  found = {"highest": np.array([1.0, np.inf])}
  assert not values.compare(right, right, found, "highest", floor=FLOOR)["ok"]


def test_no_rounding_excuses_a_wrong_formula():
  right = {"loss": np.array(1.0)}
  chaos = {"loss": np.array(5.0)}
  row = values.compare(right, chaos, {"loss": np.array(1.5)}, "highest", floor=FLOOR)
  assert not row["ok"] and row["allowed"] == values.MOST


def test_what_a_gpu_compiles_float32_with_is_known_to_xla():
  # An option that XLA no longer has would fail every case, and on a GPU alone.
  run = jax.jit(lambda x: x @ x, compiler_options=values.FLOAT32_ON_GPU)
  np.testing.assert_array_equal(run(np.full((2, 2), 3.0)), np.full((2, 2), 18.0))


def test_only_a_gpus_full_float32_is_compiled_so(monkeypatch):
  # An option that nobody knows shows where it is given.
  monkeypatch.setattr(values, "FLOAT32_ON_GPU", {"xla_gpu_no_such_option": False})
  side = values.Side(SIZES)
  assert side.compute("adam", "highest")
  devices, gpu = jax.devices, SimpleNamespace(platform="gpu")
  monkeypatch.setattr(jax, "devices", lambda *kind: devices(*kind) if kind else [gpu])
  assert side.compute("adam", "default")
  with pytest.raises(Exception, match="xla_gpu_no_such_option"):
    side.compute("adam", "highest")
