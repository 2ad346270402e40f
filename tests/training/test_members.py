"""What members learn, against losses written out by hand."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict
from scipy import ndimage

from lus_jax.errors import UserError
from lus_jax.models import fpn
from lus_jax.tasks.segmentation import train
from lus_jax.training import members
from lus_jax.training import objective as objective_lib
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep

RATERS = ("A", "B", "C", "D")
B, H, W, K = 5, 12, 16, 2
ALL = (
  "threshold(.6, loss=dice)",
  "threshold(.7, weights=ones)",
  "soft",
  "softseg",
  "svls(.5)",
  "majority",
  "staple",
  "rater(B)",
  "random_rater",
)


def make_config(extra=(), thresholds=(1.0, 0.5, 0.2), **loss):
  return ConfigDict(
    {
      "seed": 0,
      "model": {"init_from": ""},
      "optimizer": {"learning_rate": 1e-2},
      "sweep": {"thresholds": thresholds, "members": extra, "seeds": 1, "strategy": "loop"},
      "loss": {
        "name": "weighted_cross_entropy",
        "weights": "paper",
        "subthreshold_weight": "threshold",
        "reduction": "mean",
      }
      | loss,
    }
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("threshold(.6)", ("threshold", 0.6, "", "weighted_cross_entropy", "paper", "threshold_0.6")),
    (
      " threshold( 0.60 , loss = dice ) ",
      ("threshold", 0.6, "", "dice", "paper", "threshold_0.6_dice"),
    ),
    (
      "threshold(1, weights=ones, loss=bce)",
      ("threshold", 1.0, "", "bce", "ones", "threshold_1_bce_ones"),
    ),
    ("threshold(0)", ("threshold", 0.0, "", "weighted_cross_entropy", "paper", "threshold_0")),
    ("soft", ("soft", None, "", "cross_entropy", "paper", "soft")),
    ("soft()", ("soft", None, "", "cross_entropy", "paper", "soft")),
    ("softseg", ("softseg", None, "", "adaptive_wing", "paper", "softseg")),
    ("svls", ("svls", 0.5, "", "cross_entropy", "paper", "svls_0.5")),
    ("svls(.25)", ("svls", 0.25, "", "cross_entropy", "paper", "svls_0.25")),
    ("majority", ("majority", None, "", "cross_entropy", "paper", "majority")),
    ("staple", ("staple", None, "", "cross_entropy", "paper", "staple")),
    ("random_rater", ("random_rater", None, "", "cross_entropy", "paper", "random_rater")),
    ("rater(A)", ("rater", None, "A", "cross_entropy", "paper", "rater_A")),
    (
      "rater('Dr. B (2nd)')",
      ("rater", None, "Dr. B (2nd)", "cross_entropy", "paper", "rater_Dr._B__2nd_"),
    ),
    (
      "rater( \"Lee, A. = 'AL'\" )",
      ("rater", None, "Lee, A. = 'AL'", "cross_entropy", "paper", "rater_Lee__A.____AL_"),
    ),
    ("rater('Zoe\u0308')", ("rater", None, "Zo\xeb", "cross_entropy", "paper", "rater_Zo_")),
    ("ordinal", ("ordinal", None, "", "weighted_cross_entropy", "paper", "ordinal")),
    (
      "ordinal(weights=ones)",
      ("ordinal", None, "", "weighted_cross_entropy", "ones", "ordinal_ones"),
    ),
  ],
)
def test_every_form_is_read(text, expected):
  assert dataclasses.astuple(members.parse(text, make_config().loss)) == expected


def test_the_thresholds_come_first_with_the_loss_of_the_config():
  config = make_config(("soft", "threshold(.6)"), name="focal", weights="ones")
  found = members.read(config)
  assert [m.name for m in found] == [
    "threshold_1",
    "threshold_0.5",
    "threshold_0.2",
    "soft",
    "threshold_0.6",
  ]
  assert {(m.loss, m.weights) for m in found if m.target == "threshold"} == {("focal", "ones")}
  assert found[3].loss == "cross_entropy"
  assert [m.is_soft for m in found] == [False, False, False, True, False]
  # A threshold whose loss learns the confidence puts out the confidence.
  assert all(m.is_soft for m in members.read(make_config(name="cross_entropy")))


def test_raters_whose_names_differ_in_blanks_have_curves_and_files_of_their_own():
  found = members.read(make_config(("rater(A B)", "rater(A_B)", "rater('A,B')")))
  assert [m.rater for m in found[3:]] == ["A B", "A_B", "A,B"]
  assert [m.name for m in found[3:]] == ["rater_A_B", "rater_A_B_2", "rater_A_B_3"]


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (("hard",), "'hard' is not known; write one of threshold, soft, "),
    (("soft)",), "'soft)' is not known"),
    ((3,), "3 is not known"),
    (("threshold(.6, loss=hinge)",), "loss 'hinge' is not known; choose weighted_cross_entropy, "),
    (("threshold(.6, weights=heavy)",), "weights must be one of paper, ones"),
    (("threshold(.6, colour=red)",), "threshold takes a value, loss=, weights="),
    (("threshold(.6, .5)",), "threshold takes a value"),
    (("soft(.5)",), "soft takes nothing in brackets"),
    (("soft(loss=dice)",), "soft takes nothing in brackets"),
    (("svls(.5, loss=dice)",), "svls takes a value."),
    (("ordinal(.5)",), "ordinal takes weights=."),
    (("ordinal(loss=dice)",), "ordinal takes weights=."),
    (("rater(A, B)",), "rater takes a value. Put a name that holds a comma or = in quotes."),
    (("rater(A=B)",), "rater takes a value. Put a name that holds a comma or = in quotes."),
    (("rater('A, B')", 'rater("A, B")'), "stands there twice"),
    (("threshold",), "say which, as threshold(.6)"),
    (("threshold(loss=dice)",), "say which, as threshold(.6)"),
    (("rater",), "say which, as rater(NAME)"),
    (("threshold(60)",), "60 is not a threshold in [0, 1]; write 60 % as .6"),
    (("threshold(-.1)",), "-.1 is not a threshold in [0, 1]"),
    (("threshold(nan)",), "nan is not a threshold in [0, 1]"),
    (("svls(half)",), "half is not a threshold in [0, 1]"),
    (("soft", "soft"), "'soft' stands there twice"),
    (("svls", "svls(0.5)"), "'svls(0.5)' stands there twice"),
    (("threshold(.5)",), "'threshold(.5)' stands there twice"),
    ("soft", "write a tuple, as \"('soft',)\""),
  ],
)
def test_a_mistake_is_refused_in_one_line(extra, message):
  config = make_config()
  with config.ignore_type():
    config.sweep.members = extra
  with pytest.raises(UserError) as error:
    members.read(config)
  assert message in str(error.value)
  assert str(error.value).startswith("config.sweep.members: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["majority", "staple", "random_rater", "rater(A)"])
@pytest.mark.parametrize(("raters", "count"), [((), "none"), (("A",), "1")])
def test_raters_are_needed_where_they_are_learnt_from(text, raters, count):
  found = members.read(make_config((text,)))
  with pytest.raises(UserError, match=rf"several raters, and the data set has {count};"):
    members.check_raters(found, raters)
  members.check_raters(found, RATERS)
  members.check_raters(members.read(make_config(("soft", "svls", "ordinal"))), ())


@pytest.mark.parametrize("thresholds", [None, 0.5, ()])
def test_thresholds_that_are_none_are_refused_from_python_too(thresholds):
  config = make_config()
  with config.ignore_type():
    config.sweep.thresholds = thresholds
  with pytest.raises(UserError, match="config.sweep.thresholds is empty"):
    objective_lib.Objective(config)


def test_an_ordinal_mean_that_could_not_reach_half_is_refused():
  for thresholds in ((0.5, 0.2), (0.4,)):
    message = rf"needs a threshold above \.5, .* the highest .* is {max(thresholds):g}\."
    with pytest.raises(UserError, match=message):
      members.read(make_config(("ordinal",), thresholds=thresholds))
  assert len(members.read(make_config(("ordinal",), thresholds=(0.6, 0.2)))) == 3


def test_a_rater_whom_nobody_knows_is_refused():
  found = members.read(make_config(("rater(E)",)))
  with pytest.raises(UserError, match=r"nobody is called 'E'; the raters are A, B, C, D\."):
    members.check_raters(found, RATERS)


def test_frames_bring_what_members_need():
  def needed(*extra):
    return set(members.fields(members.read(make_config(extra))))

  assert needed("soft", "ordinal", "svls") == set()
  assert needed("staple") == {"staple"}
  assert needed("majority") == needed("rater(A)") == needed("random_rater") == {"raters", "drawn"}
  assert needed("random_rater", "staple") == {"raters", "drawn", "staple"}


def test_views_are_all_outputs_and_levels_rise():
  config = make_config(("soft", "ordinal"), seeds=2)
  config.sweep.seeds = 2
  objective = objective_lib.Objective(config)
  views, scalars = objective.views()
  names = ["threshold_1", "threshold_0.5", "threshold_0.2", "soft", "ordinal"]
  names += ["ordinal_0.2", "ordinal_0.5", "ordinal_1"]
  assert [v.name for v in views] == [f"{n}_seed_{s}" for s in (0, 1) for n in names]
  assert [v.member for v in views] == [0, 1, 2, 3, *[4] * 4, 5, 6, 7, 8, *[9] * 4]
  thresholds = [1.0, 0.5, 0.2, None, None, 0.2, 0.5, 1.0]
  assert [v.threshold for v in views] == 2 * thresholds
  assert [v.level for v in views][:8] == [-1, -1, -1, -1, -1, 0, 1, 2]
  found = [float(own["threshold"]) for own in scalars[:8]]
  np.testing.assert_allclose(found, [1.0, 0.5, 0.2, 0.5, 0.5, 0.2, 0.5, 1.0])
  assert [int(own["seed"]) for own in scalars] == [0] * 8 + [1] * 8


def test_a_sweep_of_thresholds_is_compiled_as_ever():
  # Nothing chooses between kinds where there is one.
  objective = objective_lib.Objective(make_config())
  assert objective.head == 1
  assert set(objective.scalars(objective.members[0])) == {"threshold", "seed"}


# Losses by hand, on the host in float64.


def make_inputs(seed=0):
  r = np.random.default_rng(seed)
  # Raters share most of a blob, so that a majority is neither empty nor everything.
  blob = ndimage.gaussian_filter(r.normal(size=(B, 1, H, W, K)), (0, 0, 2, 2, 0)) > 0
  values = blob ^ (r.random((B, len(RATERS), H, W, K)) < 0.2)
  drawn = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]], bool)
  values = (values & drawn[:, :, None, None, None]).astype(np.float32)
  confidence = values.sum(1) / drawn.sum(1)[:, None, None, None]
  return {
    "image": r.random((B, H, W, 1)).astype(np.float32),
    "confidence": confidence.astype(np.float32),
    "where": r.random((B, H, W, K)) < 0.8,
    "raters": values,
    "drawn": drawn,
    "staple": r.random((B, H, W, K)).astype(np.float32),
  }


def cross_entropy(logits, target, where):
  return (np.logaddexp(0, logits) - logits * target)[where].mean()


def dice_loss(logits, y, where):
  p, y = where / (1 + np.exp(-logits)), where * y
  overlap, total = (p * y).sum((1, 2)), p.sum((1, 2)) + y.sum((1, 2))
  return (1 - (2 * overlap + 1) / (total + 1)).mean()


def adaptive_wing(logits, target, where):
  p = np.where(where, np.maximum(logits, 0), 0)
  p = p / p.max((1, 2), keepdims=True)
  total = 0.0
  for y, x in zip(target[where], p[where], strict=True):
    theta, alpha, omega, epsilon = 0.5, 2.1, 14.0, 1.0
    d, a = abs(y - x), alpha - y
    slope = omega / (1 + (theta / epsilon) ** a) * a * (theta / epsilon) ** (a - 1) / epsilon
    constant = theta * slope - omega * np.log(1 + (theta / epsilon) ** a)
    total += omega * np.log(1 + (d / epsilon) ** a) if d < theta else slope * d - constant
  return total


def smoothed(y):
  kernel = np.exp(-np.add.outer(np.arange(-1, 2) ** 2, np.arange(-1, 2) ** 2) / 2)
  kernel[1, 1] = 0
  kernel[1, 1] = kernel.sum()
  return ndimage.correlate(y, (kernel / kernel.sum())[None, :, :, None], mode="nearest")


def weighted(logits, inputs, t):
  c = inputs["confidence"].astype(np.float64)
  y = c >= t - 0.5 / 255
  weights = np.where(y, c, 0.8 if t == 1 else t)
  return (weights * (np.logaddexp(0, logits) - logits * y))[inputs["where"]].mean()


def by_hand(logits, inputs):
  """The loss of every member of `ALL` but random_rater, by name."""
  c, where, raters, drawn = (inputs[n] for n in ("confidence", "where", "raters", "drawn"))
  c = c.astype(np.float64)

  def at(t):
    return (c >= t - 0.5 / 255).astype(np.float64)

  votes = np.stack([raters[i, drawn[i]].sum(0) for i in range(B)])
  majority = votes > drawn.sum(1)[:, None, None, None] / 2
  return {
    "threshold_1": weighted(logits, inputs, 1.0),
    "threshold_0.5": weighted(logits, inputs, 0.5),
    "threshold_0.2": weighted(logits, inputs, 0.2),
    "threshold_0.6_dice": dice_loss(logits, at(0.6), where),
    "threshold_0.7_ones": cross_entropy(logits, at(0.7), where),
    "soft": cross_entropy(logits, c, where),
    "softseg": adaptive_wing(logits, c, where),
    "svls_0.5": cross_entropy(logits, smoothed(at(0.5)), where),
    "majority": cross_entropy(logits, majority, where),
    "staple": cross_entropy(logits, inputs["staple"], where),
    "rater_B": cross_entropy(logits, raters[:, 1], where & drawn[:, 1, None, None, None]),
  }


def rater_losses(logits, inputs):
  """The loss of every image if rater r is its target: [B, R], NaN of raters that did not draw."""
  found = np.full((B, len(RATERS)), np.nan)
  for i, r in np.argwhere(inputs["drawn"]):
    found[i, r] = cross_entropy(logits[i], inputs["raters"][i, r], inputs["where"][i])
  return found


def run(objective, strategy, raw, inputs, key):
  """Loss and its gradient of every member."""
  sweep = Sweep([objective.scalars(member) for member in objective.members], strategy)

  def fn(state, own, raw, inputs, key):
    return jax.value_and_grad(lambda raw: objective.loss(raw, inputs, own, key))(raw)

  state = sweep.place([{"x": np.zeros(())} for _ in sweep.members])
  found = sweep.compile(fn)(state, sweep.members, raw, inputs, key)
  return [float(x) for x in sweep.to_host(found[0])], np.stack(sweep.to_host(found[1]))


def make_raw(objective):
  shape = (B, H // 4, W // 4, 3 * K) if objective.levels else (B, H, W, K)
  return np.random.default_rng(1).normal(0.3, 2, shape).astype(np.float32)


def plain_logits(raw, objective):
  if objective.levels:
    raw = fpn.upsample_logits(raw[..., :K], H, W)
  return np.asarray(raw, np.float64)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("extra", [ALL, (*ALL, "ordinal")], ids=["without", "with_ordinal"])
def test_every_member_of_a_mixed_sweep_has_its_own_loss(extra, strategy, key):
  objective = objective_lib.Objective(make_config(extra)).with_raters(RATERS)
  raw, inputs = make_raw(objective), make_inputs()
  losses, gradients = run(objective, strategy, raw, inputs, key)
  found = dict(zip([m.name for m in objective.members], losses, strict=True))
  logits = plain_logits(raw, objective)
  expected = by_hand(logits, inputs)
  if objective.levels:
    nested = [
      np.asarray(objective.output(raw, inputs, objective.scalars(objective.members[-1], level=e)))
      for e in range(3)
    ]
    each = [
      weighted(x.astype(np.float64), inputs, t)
      for x, t in zip(nested, (0.2, 0.5, 1.0), strict=True)
    ]
    expected["ordinal"] = np.mean(each)
  chosen = found.pop("random_rater")
  assert found == pytest.approx(expected, rel=1e-5)
  # Losses of different members are different things here, so none can stand in for another.
  assert np.min(np.diff(sorted([*found.values(), chosen]))) > 1e-4
  # random_rater's is that of one of the ways to choose.
  n = inputs["where"].sum((1, 2, 3))
  each = rater_losses(logits, inputs)
  choices = itertools.product(*[row[~np.isnan(row)] for row in each])
  ways = np.array([np.dot(way, n) / n.sum() for way in choices])
  assert np.abs(ways / chosen - 1).min() < 1e-5
  assert np.isfinite(gradients).all()
  assert (np.abs(gradients).max(axis=(1, 2, 3, 4)) > 0).all()


def test_gradients_are_the_same_under_both_strategies(key):
  objective = objective_lib.Objective(make_config((*ALL, "ordinal"))).with_raters(RATERS)
  raw, inputs = make_raw(objective), make_inputs()
  (_, loop), (_, vmap) = (run(objective, s, raw, inputs, key) for s in ("loop", "vmap"))
  for a, b in zip(loop, vmap, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_images_that_a_rater_did_not_draw_teach_nothing(key):
  objective = objective_lib.Objective(make_config(("rater(B)",))).with_raters(RATERS)
  inputs = make_inputs()
  _, gradients = run(objective, "loop", make_raw(objective), inputs, key)
  learnt = np.abs(gradients[-1]).max(axis=(1, 2, 3)) > 0
  np.testing.assert_array_equal(learnt, inputs["drawn"][:, 1])
  inputs["drawn"] = inputs["drawn"] & (np.arange(4) != 1)
  losses, gradients = run(objective, "loop", make_raw(objective), inputs, key)
  assert losses[-1] == 0 and not gradients[-1].any()


def test_random_raters_are_drawn_ones_and_others_every_time():
  objective = objective_lib.Objective(make_config(("random_rater",))).with_raters(RATERS)
  own = objective.scalars(objective.members[-1])
  raw, inputs = make_raw(objective), make_inputs()
  each = rater_losses(plain_logits(raw, objective), inputs)

  @jax.jit
  def image_losses(key):
    # One image counts at a time.
    only = jnp.eye(B, dtype=bool)[:, :, None, None, None]
    return jax.vmap(
      lambda o: objective.loss(raw, inputs | {"where": inputs["where"] & o}, own, key)
    )(only)

  def choose(key):
    gap = np.abs(each - np.asarray(image_losses(key))[:, None])
    assert (np.nanmin(gap, axis=1) < 1e-5).all()
    return np.nanargmin(gap, axis=1)

  steps = [choose(jax.random.fold_in(jax.random.key(0), step)) for step in range(200)]
  chosen = np.stack(steps)
  np.testing.assert_array_equal(chosen[3], choose(jax.random.fold_in(jax.random.key(0), 3)))
  for i in range(B):
    shares = np.bincount(chosen[:, i], minlength=4) / len(chosen)
    np.testing.assert_allclose(shares, inputs["drawn"][i] / inputs["drawn"][i].sum(), atol=0.12)
  # Images choose apart from each other: 0 and 4 share raters A, B and C.
  assert 0.1 < np.mean(chosen[:, 0] == chosen[:, 4]) < 0.5


def test_raters_are_chosen_by_another_key_than_dropout():
  objective = objective_lib.Objective(make_config(("random_rater",))).with_raters(RATERS)
  own = objective.scalars(objective.members[-1])
  raw, inputs = make_raw(objective), make_inputs()
  each = rater_losses(plain_logits(raw, objective), inputs)[0]
  where = inputs["where"] & (np.arange(B) == 0)[:, None, None, None]
  loss = jax.jit(lambda key: objective.loss(raw, inputs | {"where": where}, own, key))
  same = 0
  for step in range(40):
    key = jax.random.key(step)
    # What the network's first dropout makes of its key.
    by_dropout = jax.random.categorical(jax.random.fold_in(key, 0), jnp.zeros(4))
    same += int(np.argmin(np.abs(each - float(loss(key)))) == by_dropout)
  assert same < 25


def test_without_a_key_a_random_rater_is_judged_by_all():
  objective = objective_lib.Objective(make_config(("soft", "random_rater"))).with_raters(RATERS)
  raw, inputs = make_raw(objective), make_inputs()
  soft, random = (objective.loss(raw, inputs, objective.scalars(m)) for m in objective.members[-2:])
  assert float(soft) == float(random)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_the_output_of_softseg_is_its_normalized_activation(strategy):
  objective = objective_lib.Objective(make_config(("softseg", "soft"))).with_raters(RATERS)
  raw, inputs = make_raw(objective), make_inputs()
  sweep = Sweep([objective.scalars(member) for member in objective.members], strategy)
  state = sweep.place([{"x": np.zeros(())} for _ in sweep.members])

  def fn(state, own, raw, inputs):
    return jax.nn.sigmoid(objective.output(raw, inputs, own))

  *plain, softseg, soft = sweep.to_host(sweep.compile(fn)(state, sweep.members, raw, inputs))
  sigmoid = 1 / (1 + np.exp(-raw.astype(np.float64)))
  for found in (*plain, soft):
    np.testing.assert_allclose(found, sigmoid, atol=1e-6)
  expected = np.where(inputs["where"], np.maximum(raw, 0), 0)
  expected = expected / expected.max((1, 2), keepdims=True)
  np.testing.assert_allclose(softseg, expected, atol=2e-6)


def trained(config, key, steps=2):
  """The state of every member by name, after a few steps of gradient descent."""
  objective = objective_lib.Objective(config).with_raters(RATERS)
  tx = optax.sgd(0.5)
  names, members = objective.of_all_seeds()
  sweep = Sweep(members, config.sweep.strategy)
  network, state = train.initial_state(config, objective, sweep, in_channels=1, classes=K, tx=tx)
  step = sweep.compile(
    state_lib.make_train_step(train.make_loss(network, objective), tx), updates_state=True
  )
  for i in range(steps):
    state, _ = step(state, sweep.members, make_inputs(i), jax.random.fold_in(key, i))
  return dict(zip(names, sweep.to_host(state), strict=True))


def test_a_threshold_is_what_it_is_without_the_others(toy_networks, key):
  alone, mixed = (trained(make_config(extra), key) for extra in ((), ALL))
  assert set(alone) < set(mixed)
  for name, state in alone.items():
    for part in ("params", "batch_stats"):
      a, b = (jax.tree.leaves(getattr(s, part)) for s in (state, mixed[name]))
      for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
  first, other = (jax.tree.leaves(mixed[n].params)[0] for n in ("threshold_0.5", "soft"))
  assert np.abs(first - other).max() > 1e-3


def test_outputs_begin_as_the_mean_of_their_own_labels():
  extra = (*ALL[1:], "ordinal")
  objective = objective_lib.Objective(make_config(extra)).with_raters(RATERS)
  inputs = make_inputs()
  stored = np.rint(255 * inputs["confidence"]).astype(int)
  where = np.broadcast_to(inputs["where"], stored.shape)
  counts = np.stack([np.bincount(stored[..., k][where[..., k]], minlength=256) for k in range(K)])
  views, scalars = objective.views()
  drawn = np.full(objective.head * K, 0.125, np.float32)
  for view, own in zip(views, scalars, strict=True):
    member = objective.member_of(view)
    bias = objective.bias(member, drawn, counts)
    if member.target == "softseg":
      np.testing.assert_array_equal(bias, drawn)
    if member.target == "softseg" or (member.target == "ordinal" and view.threshold is None):
      continue  # the mean of an ordinal member is that of its levels
    raw = np.broadcast_to(bias, (1, 4, 4, len(bias)))
    shown = {"image": np.zeros((1, 16, 16, 1)), "where": np.ones((1, 16, 16, 1), bool)}
    found = jax.nn.sigmoid(objective.output(jnp.asarray(raw), shown, own))[0, 3, 5]
    for k in range(K):
      c = (stored[..., k][where[..., k]] / 255).astype(np.float32)
      y = c if view.threshold is None else (c >= view.threshold - 2e-3) & (c > 1e-3)
      weights = np.ones(len(c))
      if member.loss == "weighted_cross_entropy" and member.weights == "paper":
        rest = 0.8 if view.threshold in (0, 1) else view.threshold
        weights = np.where(y, c, rest)
      np.testing.assert_allclose(found[k], (weights * y).sum() / weights.sum(), rtol=1e-4)


def test_a_class_that_nothing_shows_begins_near_nothing():
  objective = objective_lib.Objective(make_config(("ordinal",)))
  counts = np.zeros((K, 256), int)
  counts[0, 0] = 1000
  for member in objective.members:
    bias = objective.bias(member, np.zeros(objective.head * K), counts)
    assert np.isfinite(bias).all()
    np.testing.assert_allclose(bias[:K], np.log(1e-4 / (1 - 1e-4)), rtol=1e-5)
