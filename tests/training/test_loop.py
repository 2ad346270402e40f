import os
import shutil
import signal

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict

from lus_jax import signals
from lus_jax.errors import UserError
from lus_jax.training import checkpoints, loop
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep

CONFIG = ConfigDict({"epochs": 4, "batch_size": 2, "log_every": 2, "checkpoint_every": 1})
STEPS_PER_EPOCH = 3
POISON = 1e6


class Batches:
  """Batches that are numbers: a place is all their state."""

  def __init__(self, poison_at=None, stop_at=None):
    self.place, self.poison_at, self.stop_at = 0, poison_at, stop_at

  def __next__(self):
    self.place += 1
    if self.place == self.stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return jnp.float32(POISON if self.place == self.poison_at else self.place)

  def get_state(self):
    return {"place": self.place}

  def set_state(self, state):
    self.place = state["place"]


class Writer:
  def __init__(self):
    self.scalars = {}

  def write_scalars(self, step, scalars):
    self.scalars.setdefault(step, {}).update(scalars)

  def write_members(self, step, scalars):
    flat = {f"{tag}/{name}": x for tag, each in scalars.items() for name, x in each.items()}
    self.write_scalars(step, flat)

  def write_images(self, step, images):
    self.scalars.setdefault(step, {}).update(images)

  def flush(self):
    pass


class Killed(Exception):
  pass


def run(
  workdir,
  *,
  strategy="loop",
  scores=None,
  poison_at=None,
  kill_after=None,
  stop_at=None,
  stop_after=None,
  writer=None,
  config=CONFIG,
  learning_rate=1e-2,
  losses=(1.0, 1.0),
  averaging=0.0,
):
  """Fits a line through noise with two members that differ in their target."""
  tx = optax.adam(learning_rate)
  members = [{"target": np.float32(1)}, {"target": np.float32(2)}]
  sweep = Sweep(members, strategy)
  state = sweep.place(
    [
      state_lib.create_state(
        {"w": jnp.zeros(3)}, {"mean": jnp.zeros(3)}, tx, averaged=averaging > 0
      )
      for _ in members
    ]
  )

  def loss_fn(params, batch_stats, member, inputs, key):
    noise = jax.random.normal(key, (3,))
    loss = jnp.mean((params["w"] - member["target"] + 0.1 * noise + 0.01 * inputs) ** 2)
    loss = jnp.where((inputs > POISON / 2) & (member["target"] == 2), jnp.nan, loss)
    return loss, {"mean": batch_stats["mean"] + params["w"]}

  epochs = []

  def validate(state):
    epochs.append(1)
    if kill_after is not None and len(epochs) > kill_after:
      raise Killed
    if stop_after is not None and len(epochs) > stop_after:
      os.kill(os.getpid(), signal.SIGINT)
    weights = sweep.to_host(state)
    values = [float(np.sum(w.weights["params"]["w"])) for w in weights]
    if scores is not None:
      values = scores.pop(0)
    own = losses.pop(0) if isinstance(losses, list) else losses
    rows = [{"score": v, "loss": loss} for v, loss in zip(values, own, strict=True)]
    return rows, {"picture": lambda: len(epochs)}

  task = loop.Task(
    names=["one", "two"],
    prepare=lambda batch, key: batch + 0.01 * jax.random.normal(key),
    loss_fn=loss_fn,
    tx=tx,
    schedule=lambda step: 1e-2,
    validate=validate,
    averaging=averaging,
  )
  manager = checkpoints.Checkpoints(workdir)
  try:
    state, meta = loop.fit(
      task,
      sweep,
      state,
      Batches(poison_at, stop_at),
      config=config,
      steps_per_epoch=STEPS_PER_EPOCH,
      key=jax.random.key(3),
      checkpoints=manager,
      writer=writer or Writer(),
    )
  finally:
    manager.close()
  return jax.device_get(sweep.stack(state)), meta


@pytest.mark.parametrize("strategy", ["loop", "vmap", "sharded"])
def test_a_broken_run_goes_on_to_the_same_numbers(tmp_path, strategy):
  whole, meta = run(tmp_path / "whole", strategy=strategy)
  with pytest.raises(Killed):
    run(tmp_path / "broken", strategy=strategy, kill_after=2)
  with pytest.raises(Killed):
    run(tmp_path / "broken", strategy=strategy, kill_after=1)
  resumed, resumed_meta = run(tmp_path / "broken", strategy=strategy)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert meta == resumed_meta
  assert [row["epoch"] for row in meta["history"]] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(("strategy", "every"), [("loop", 1), ("vmap", 3), ("sharded", 3)])
def test_a_run_that_is_told_to_stop_saves_the_step_and_goes_on_to_the_same_numbers(
  tmp_path, strategy, every
):
  config = ConfigDict(dict(CONFIG) | {"checkpoint_every": every})
  whole, meta = run(tmp_path / "whole", strategy=strategy, config=config)
  places = []
  # In the first epoch, in the same again, at the end of a later one, and in its validation.
  for stop in ({"stop_at": 1}, {"stop_at": 2}, {"stop_at": 6}, {"stop_after": 0}, {"stop_at": 8}):
    with pytest.raises(signals.Stopped) as stopped, signals.handled(str):
      run(tmp_path / "broken", strategy=strategy, config=config, **stop)
    places.append(stopped.value.kept.split(" of ")[0])
  assert places == [
    "step 1, in epoch 1,",
    "step 2, in epoch 1,",
    "step 6, in epoch 2,",
    "step 6, in epoch 2,",
    "step 8, in epoch 3,",
  ]
  resumed, resumed_meta = run(tmp_path / "broken", strategy=strategy, config=config)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert meta == resumed_meta


@pytest.mark.parametrize("strategy", ["loop", "vmap", "sharded"])
def test_averages_of_the_weights_are_kept_validated_and_go_on(tmp_path, strategy):
  options = {"strategy": strategy, "averaging": 0.8}
  whole, meta = run(tmp_path / "whole", **options)
  for stop in ({"stop_at": 2}, {"stop_at": 8}):
    with pytest.raises(signals.Stopped), signals.handled(str):
      run(tmp_path / "broken", **options, **stop)
  resumed, resumed_meta = run(tmp_path / "broken", **options)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert meta == resumed_meta
  # They follow the weights of a run without, step by step; whose steps they leave as they are.
  average = np.zeros((2, 3)), np.zeros((2, 3))
  for n in range(1, 13):
    config = ConfigDict(dict(CONFIG) | {"epochs": 1, "checkpoint_every": 1})
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(globals(), "STEPS_PER_EPOCH", n)
      until, _ = run(tmp_path / f"until_{n}", strategy=strategy, config=config)
    decay = min(0.8, n / (n + 10))
    average = [
      decay * old + (1 - decay) * new
      for old, new in zip(average, (until.params["w"], until.batch_stats["mean"]), strict=True)
    ]
  np.testing.assert_allclose(whole.params["w"], until.params["w"], rtol=1e-5)
  np.testing.assert_allclose(whole.averages["params"]["w"], average[0], rtol=1e-5)
  np.testing.assert_allclose(whole.averages["batch_stats"]["mean"], average[1], rtol=1e-5)
  # The weights of this line rise, so that the last epoch is the best.
  np.testing.assert_array_equal(whole.best_params["w"], whole.averages["params"]["w"])
  np.testing.assert_array_equal(
    whole.best_batch_stats["mean"], whole.averages["batch_stats"]["mean"]
  )
  assert np.abs(whole.best_params["w"] - whole.params["w"]).min() > 1e-4


def test_a_run_that_falls_back_goes_on_to_the_same_numbers(tmp_path, caplog):
  whole, meta = run(tmp_path)
  (newest,) = (tmp_path / "checkpoints" / "4" / "state").glob("d/*")
  newest.write_bytes(bytes(newest.stat().st_size))
  resumed, resumed_meta = run(tmp_path)
  assert any("4 is damaged" in message for message in caplog.messages)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert meta == resumed_meta


def test_broken_weights_are_not_saved_at_a_stop(tmp_path):
  # The step's own loss is finite; what it did to the weights is in none yet.
  message = r"member 'one' is nan at step 1 \(epoch 1\)"
  with pytest.raises(UserError, match=message), signals.handled(str):
    run(tmp_path, stop_at=1, learning_rate=float("inf"))
  assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


def test_more_epochs_go_on_where_the_run_ended(tmp_path):
  whole, meta = run(tmp_path / "whole")
  run(tmp_path / "run", config=ConfigDict(dict(CONFIG) | {"epochs": 2}))
  more, more_meta = run(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, whole, more)
  assert meta == more_meta


def test_scores_of_two_rules_are_named_where_they_differ(tmp_path, monkeypatch, caplog):
  def classes(value):
    def validate(task, state):
      rows, images = task.validate(state)
      return [row | {"score_per_class": {"a": 0.5, "b": value}} for row in rows], images

    monkeypatch.setattr(loop, "validated", validate)

  def said():
    return [text for text in caplog.messages if "were scored" in text]

  two, three = (ConfigDict(dict(CONFIG) | {"epochs": n}) for n in (2, 3))
  with monkeypatch.context() as patch:
    patch.setattr(loop, "RULE", 0)  # of an older version
    run(tmp_path / "absent", config=two)
  shutil.copytree(tmp_path / "absent", tmp_path / "shown")
  classes(0.0)
  run(tmp_path / "shown", config=three)
  classes(None)
  assert not said()
  run(tmp_path / "absent", config=three)
  (message,) = said()
  assert message.startswith("The first 2 epochs were scored by an older version")
  assert "no validation frame shows (here b) counted 0" in message
  run(tmp_path / "absent")
  assert said() == [message]


@pytest.mark.parametrize(
  ("seconds", "at"),
  [(0.5, [1, 3, 7, 11, 15, 19]), (3.0, list(range(1, 20))), (0.01, [1, 3, 7, 15])],
)
def test_several_processes_ask_each_other_by_time(monkeypatch, seconds, at):
  clock, now, found = [0.0], [0], []

  def any_of(flag):
    found.append(now[0])
    return now[0] == at[-1]

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(loop.parallel, "any_of", any_of)
  monkeypatch.setattr(loop.parallel, "from_main", lambda steps: steps)
  asked, told = loop.Asked(), []
  for step in range(1, 20):
    clock[0] += seconds
    now[0] = step
    told.append(asked())
  # At most 2 s, or a step, lie between.
  assert found == at and told == [step == at[-1] for step in range(1, 20)]
  now[0] = 20
  asked(now=True)
  assert found == [*at, 20]


def test_a_stop_that_another_process_heard_of_after_the_last_epoch_is_obeyed(tmp_path, monkeypatch):
  monkeypatch.setattr(loop.Asked, "__call__", lambda self, now=False: now)
  with pytest.raises(signals.Stopped):
    run(tmp_path, config=ConfigDict(dict(CONFIG) | {"epochs": 1}))
  assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_broken_run_goes_on_with_another_number_of_devices(tmp_path, monkeypatch):
  whole, meta = run(tmp_path / "whole", strategy="loop")
  with pytest.raises(Killed):
    run(tmp_path / "broken", strategy="loop", kill_after=1)
  with pytest.raises(Killed):
    run(tmp_path / "broken", strategy="sharded", kill_after=1)
  with monkeypatch.context() as patch:
    one = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda: one)
    with pytest.raises(Killed):
      run(tmp_path / "broken", strategy="sharded", kill_after=1)
  resumed, resumed_meta = run(tmp_path / "broken", strategy="vmap")
  assert [row["epoch"] for row in resumed_meta["history"]] == [1, 1, 2, 2, 3, 3, 4, 4]
  assert resumed_meta["best"][0]["epoch"] == meta["best"][0]["epoch"]
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_finished_run_trains_no_more(tmp_path):
  whole, meta = run(tmp_path)
  again, again_meta = run(tmp_path, kill_after=0)
  jax.tree.map(np.testing.assert_array_equal, whole, again)
  assert meta == again_meta


def test_the_best_epoch_keeps_ties_early_and_never_takes_an_undefined_score(tmp_path):
  scores = [[None, 0.5], [0.2, 0.5], [None, 0.4], [0.1, None]]
  state, meta = run(tmp_path, scores=scores)
  assert [(best["epoch"], best["score"]) for best in meta["best"]] == [(2, 0.2), (1, 0.5)]
  assert not np.array_equal(state.best_params["w"], state.params["w"])


# As where no epoch reaches an IoU above 0; a lower loss alone wins nothing.
TIED = {
  "scores": [[0, 0.1], [0, 0.3], [0, 0.3], [0, 0.2]],
  "losses": [[4.0, 2.0], [3.0, 2.0], [3.0, 1.0], [5.0, 0.5]],
}


def tied(start=0):
  return {name: values[start:] for name, values in TIED.items()}


@pytest.mark.parametrize("strategy", ["loop", "vmap", "sharded"])
def test_of_equal_scores_the_lower_loss_wins(tmp_path, strategy):
  state, meta = run(tmp_path / "whole", strategy=strategy, **tied())
  assert meta["best"] == [
    {"epoch": 2, "score": 0, "loss": 3.0},
    {"epoch": 3, "score": 0.3, "loss": 1.0},
  ]
  rows = [meta["history"][i::2] for i in range(2)]
  by = [loop.chosen_by(best, own) for best, own in zip(meta["best"], rows, strict=True)]
  assert by == ["loss", "loss"]
  assert loop.chosen_by({"epoch": 4, "score": 0.2, "loss": 0.5}, rows[1]) == "score"
  assert loop.chosen_by({"epoch": None, "score": None, "loss": None}, rows[1]) == "last"
  # The weights are those of that epoch, and a broken run comes to the same.
  for n in (2, 3):
    until, _ = run(
      tmp_path / f"{n}",
      strategy=strategy,
      config=ConfigDict(dict(CONFIG) | {"epochs": n}),
      **tied(),
    )
    np.testing.assert_array_equal(state.best_params["w"][n - 2], until.params["w"][n - 2])
  with pytest.raises(Killed):
    run(tmp_path / "broken", strategy=strategy, kill_after=2, **tied())
  resumed, resumed_meta = run(tmp_path / "broken", strategy=strategy, **tied(2))
  jax.tree.map(np.testing.assert_array_equal, state, resumed)
  assert meta == resumed_meta


def test_a_best_epoch_of_an_older_version_gets_its_loss(tmp_path, monkeypatch, caplog):
  # It kept the first of equal scores, and no loss.
  with monkeypatch.context() as patch:

    def first(row, best):
      return best["score"] is None or row["score"] > best["score"]

    patch.setattr(loop, "is_better", first)
    save = checkpoints.Checkpoints.save

    def without_loss(self, epoch, resumable, best, meta):
      for one in meta["best"]:
        del one["loss"]
      save(self, epoch, resumable, best, meta)

    patch.setattr(checkpoints.Checkpoints, "save", without_loss)
    two = ConfigDict(dict(CONFIG) | {"epochs": 2})
    run(tmp_path, config=two, scores=[[0, 0.1], [0, 0.3]], losses=[[4.0, 2.0], [3.0, 2.0]])
  _, meta = run(tmp_path, **tied(2))
  # From now on the lower loss decides; what it would have decided before is said.
  assert meta["best"] == [
    {"epoch": 3, "score": 0, "loss": 3.0},
    {"epoch": 3, "score": 0.3, "loss": 1.0},
  ]
  (message,) = caplog.messages
  assert message.startswith("The best epochs of one were chosen by an older version")


def test_a_smoothed_score_selects_and_a_lucky_epoch_does_not(tmp_path):
  scores = [[0.1, None], [0.9, 0.5], [0.5, None], [0.6, 0.1]]
  smooth = ConfigDict(dict(CONFIG) | {"smoothing": 0.75})
  _, meta = run(tmp_path / "whole", config=smooth, scores=[list(x) for x in scores])
  first = [row["smoothed"] for row in meta["history"][::2]]
  np.testing.assert_allclose(first, [0.1, 0.3, 0.35, 0.4125])
  second = [row["smoothed"] for row in meta["history"][1::2]]
  assert second == [None, 0.5, None, 0.75 * 0.5 + 0.25 * 0.1]
  assert [best["epoch"] for best in meta["best"]] == [4, 2]
  rows = meta["history"][::2]
  assert loop.chosen_by(meta["best"][0], rows) == "score" and rows[1]["score"] == 0.9
  # A broken run comes to the same; without, the best of all is taken.
  with pytest.raises(Killed):
    run(tmp_path / "broken", config=smooth, scores=[list(x) for x in scores[:3]], kill_after=2)
  _, resumed = run(tmp_path / "broken", config=smooth, scores=[list(x) for x in scores[2:]])
  assert resumed == meta
  _, plain = run(tmp_path / "plain", scores=scores)
  assert plain["best"][0]["epoch"] == 2 and "smoothed" not in plain["history"][0]


def test_a_member_whose_loss_stays_the_same_is_named_once(tmp_path, caplog):
  losses = [[1772.25, 3.0], [1772.25, 2.0], [1772.25, 2.0], [1772.25, 1.0]]
  with caplog.at_level("WARNING"):
    run(tmp_path, losses=losses)
  (warning,) = caplog.messages
  assert "validation loss of one has been 1772.25 for 3 epochs" in warning


def test_without_any_defined_score_the_last_weights_stand_in(tmp_path):
  state, meta = run(tmp_path, scores=[[None, None]] * 4)
  assert meta["best"] == [{"epoch": None, "score": None, "loss": None}] * 2
  np.testing.assert_array_equal(state.best_params["w"], state.params["w"])


def test_a_loss_that_is_not_finite_stops_the_run_naming_member_and_step(tmp_path):
  with pytest.raises(UserError, match=r"member 'two' is nan at step 5 \(epoch 2\)"):
    run(tmp_path, poison_at=5)


def test_a_broken_last_update_is_seen_before_it_is_saved(tmp_path):
  with pytest.raises(UserError, match=r"member 'one' is nan at step 3 \(epoch 1\)"):
    run(tmp_path, losses=(float("nan"), 1.0))
  assert not any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())


def test_curves_have_a_value_for_every_member(tmp_path):
  writer = Writer()
  run(tmp_path, writer=writer)
  names = set().union(*(scalars.keys() for scalars in writer.scalars.values()))
  assert {
    "loss/train/one",
    "loss/train/two",
    "learning_rate",
    "speed/images_per_second",
    "speed/model_images_per_second",
    "score/validation/one",
    "loss/validation/two",
    "picture",
  } <= names
  last = writer.scalars[STEPS_PER_EPOCH * CONFIG.epochs]
  speed = last["speed/model_images_per_second"] / last["speed/images_per_second"]
  assert speed == pytest.approx(2)


@pytest.mark.parametrize("epochs, shown", [(1, [1]), (3, [1, 2, 3]), (100, [1, *range(5, 101, 5)])])
def test_pictures_are_made_about_twenty_times_a_run(epochs, shown):
  assert [epoch for epoch in range(1, epochs + 1) if loop.shows(epoch, epochs)] == shown
  assert sum(loop.shows(epoch, 1999) for epoch in range(1, 2000)) == 21
