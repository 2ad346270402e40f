"""Runs that start from other runs: which weights, which heads, who may not be judged, going on."""

import json
import os
import shutil
import types

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from ml_collections import ConfigDict

from configs import raters
from lus_jax import models, results
from lus_jax.errors import UserError
from lus_jax.inference import trained
from lus_jax.models import fpn, resnet, torch_weights
from lus_jax.tasks import initial
from lus_jax.tasks.segmentation import run
from lus_jax.training import claim, loop, state
from lus_jax.training.objective import Objective
from tests import toys

PHANTOM = ("sharp_pleura", "fuzzy_pleura", "fascia_band", "a_line", "sub_a_line", "vertical_line")
ABOUT = {"task": "segmentation", "dataset": "other", "simulated": False, "threshold": 0.5}


def test_heads_are_matched_by_name_in_any_spelling():
  classes = ("A-lines", "pleura", "B line", "effusion", "SUB A LINE")
  assert initial.matched(classes, PHANTOM) == {
    "A-lines": "a_line",
    "pleura": "sharp_pleura",
    "B line": "vertical_line",
    "SUB A LINE": "sub_a_line",
  }
  # A name of one's own comes before what it may also mean.
  assert initial.matched(("pleura",), ("sharp_pleura", "Pleura")) == {"pleura": "Pleura"}
  assert initial.matched(("mass",), ("mas",)) == {}


def source(**changes):
  fields = {"params": {}, "batch_stats": {}, "classes": ("b", "a")}
  seen = [{"population": "lungs", "train": ["p1"], "validation": ["p2"]}]
  fields["about"] = ABOUT | {"seen": seen}
  return initial.Source(**(fields | changes))


def test_all_but_the_heads_of_other_classes_is_taken():
  def weights(start, outputs):
    kernel = start + np.arange(3 * outputs, dtype=np.float32).reshape(1, 1, 3, outputs)
    head = {"kernel": jnp.array(kernel), "bias": jnp.array(kernel[0, 0, 0])}
    return {"conv": {"kernel": jnp.full(2, start)}, "segmentation_head": head}

  ours, stats = weights(100, 6), {"mean": jnp.zeros(2)}
  theirs = source(params=weights(0, 2), batch_stats={"mean": np.ones(2, np.float32)})
  # Two levels of the three classes a, c, b, as of an ordinal head.
  params, batch_stats, brought = initial.into_segmentation(
    initial.Start("", source=theirs), ours, stats, classes=("a", "c", "b"), place="", head=False
  )
  assert params["conv"]["kernel"].tolist() == [0, 0] and batch_stats["mean"].tolist() == [1, 1]
  assert params["segmentation_head"]["kernel"][0, 0].tolist() == [
    [1, 101, 0, 103, 104, 105],
    [3, 107, 2, 109, 110, 111],
    [5, 113, 4, 115, 116, 117],
  ]
  assert params["segmentation_head"]["bias"].tolist() == [1, 101, 0, 103, 104, 105]
  assert brought.tolist() == [True, False, True, False, False, False]
  about = initial.about_heads(theirs, ("a", "c", "b"))
  assert initial.sentence(about) == (
    "the networks start from the 50% model of another run (on other); heads from there: a, b; "
    "random: c."
  )
  ours["conv"]["kernel"] = jnp.zeros(3)
  with pytest.raises(UserError, match=r"other layers \(.*conv.*\); give both runs"):
    initial.into_segmentation(
      initial.Start("", source=theirs), ours, stats, classes=("a", "c", "b"), place="", head=False
    )


def test_a_refined_decoder_takes_all_of_a_file_but_its_head(monkeypatch):
  monkeypatch.setitem(resnet.DEPTHS, "toy", ((1, 1, 1, 1), False))

  def network(seed, **options):
    model = fpn.FPN("toy", classes=2, width=0.125, rngs=nnx.Rngs(seed), **options)
    return state.Network(model)

  theirs, ours = network(0), network(1, refinements=2)
  tensors = torch_weights.state_dict(theirs.params, theirs.batch_stats)
  begun = initial.Start("", tensors=tensors)
  params, _, brought = initial.into_segmentation(
    begun, ours.params, ours.batch_stats, classes=("a", "b"), place="", head=True
  )
  for part in ("encoder", "laterals", "branches"):
    jax.tree.map(np.testing.assert_array_equal, params[part], theirs.params[part])
  for part in ("details", "refinements", "segmentation_head"):
    jax.tree.map(np.testing.assert_array_equal, params[part], ours.params[part])
  assert not brought.any()


def test_who_was_learned_from_is_not_judged():
  split = {"train": ["p1"], "validation": ["p2"], "test": ["p3"]}
  initial.audit(source(), split, "lungs")
  # The same names of other people.
  initial.audit(source(), {"train": [], "validation": ["p1"], "test": ["p2"]}, "other lungs")
  for side, name in (("validation", "p1"), ("test", "p1"), ("test", "p2")):
    with pytest.raises(UserError, match=rf"of the {side} split \({name}\)"):
      initial.audit(source(), split | {side: [name]}, "lungs")
  # What these weights began from counts too, and of whom it was.
  earlier = {"population": "eyes", "train": ["p3"], "validation": []}
  chain = source(about=ABOUT | {"seen": [*source().lineage, earlier]})
  initial.audit(chain, split, "lungs")
  with pytest.raises(UserError, match=r"of the test split \(p3\)"):
    initial.audit(chain, split, "eyes")


@pytest.fixture(scope="module")
def heads(toy_networks):
  """Toys with a segmentation head."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_head)
    yield


@pytest.fixture(scope="module")
def begun(heads, segmentation_config, tmp_path_factory):
  """A directory with what a finished run of toys leaves; copy it to change it."""
  workdir = tmp_path_factory.mktemp("runs") / "other"
  toys.pretend(segmentation_config, workdir)
  return workdir


@pytest.fixture
def config(segmentation_config, begun, tmp_path):
  """Of a run that starts from a copy of it, which may be removed."""
  shutil.copytree(begun, tmp_path / "other")
  config = segmentation_config.copy_and_resolve_references()
  config.model.init_from = os.fspath(tmp_path / "other")
  config.train.epochs = 1
  return config


class Begun(Exception):
  pass


def starts(config, workdir, monkeypatch):
  """The weights that a run begins its training with; its claim is there then."""

  def fit(task, sweep, state, *args, **options):
    raise Begun(sweep.to_host(sweep.map(lambda one: (one.params, one.batch_stats), state)))

  with monkeypatch.context() as patch, pytest.raises(Begun) as found:
    patch.setattr(loop, "fit", fit)
    run.train_and_evaluate(config, workdir)
  return found.value.args[0]


def test_every_member_starts_from_the_model_nearest_to_a_half(
  config, begun, tmp_path, monkeypatch, capsys
):
  members = starts(config, tmp_path / "run", monkeypatch)
  expected = trained.load(begun).weights_of(0)  # of .6 and "> 0 %"
  assert len(members) == 2
  for params, batch_stats in members:
    jax.tree.map(np.testing.assert_array_equal, params, expected["params"])
    jax.tree.map(np.testing.assert_array_equal, batch_stats, expected["batch_stats"])
  about = claim.read_claim(tmp_path / "run")["dataset"]["initial"]
  assert about["fingerprint"] == initial.digest_of(expected)
  assert about["heads"] == [[name, name] for name in PHANTOM] and about["fresh"] == []
  assert about["seen"] == trained.load(begun).lineage and about["seen"][0]["train"]
  said = "the networks start from the 60% model of another run (on lus_phantom, simulated)"
  assert said in capsys.readouterr().out
  # Before the first checkpoint it is read again, and has to be what it was.
  starts(config, tmp_path / "run", monkeypatch)
  other = config.copy_and_resolve_references()
  shutil.rmtree(tmp_path / "other")
  other.model.init_from, other.seed = "", 1
  with pytest.raises(UserError, match="is neither the directory of a run nor a file of weights"):
    run.train_and_evaluate(config, tmp_path / "run")
  toys.pretend(
    other, tmp_path / "other", {"train": ["p000"], "validation": ["p001"], "test": ["p002"]}
  )
  with pytest.raises(UserError, match=r"of the (test|validation) split|weights start from has"):
    run.train_and_evaluate(config, tmp_path / "run")


def test_weights_of_a_run_that_goes_on_are_in_its_checkpoint():
  own = {"features": {0: {}}, "segmentation_head": {"bias": np.zeros(2)}}, {"mean": np.zeros(1)}
  begun = initial.Start({"task": "pretrain"})
  assert initial.into_video(begun, *own, place="") == own
  *found, brought = initial.into_segmentation(begun, *own, classes=(), place="", head=True)
  assert tuple(found) == own and not brought.any()


def test_of_a_run_with_other_members_a_threshold_is_taken(monkeypatch, tmp_path):
  config = raters.get_config("tiny")
  config.sweep.thresholds = (0.2, 0.8, 0.6)
  objective = Objective(config)
  found = types.SimpleNamespace(
    views=objective.views()[0],
    objective=objective,
    config=config,
    classes=("a",),
    lineage=[{"population": "eyes", "train": [], "validation": []}],
    dataset={"name": "eyes", "population": "eyes"},
    weights_of=lambda i: {"params": np.full(1, i), "batch_stats": {}},
  )
  found.thresholds = trained.Trained.thresholds.fget(found)
  assert None in found.thresholds
  monkeypatch.setattr(trained, "load", lambda *_, **__: found)
  monkeypatch.setattr(results, "read", lambda *_: {"rows": [{"threshold": 0.6, "best_epoch": 3}]})
  monkeypatch.setattr(results, "exists", lambda *_: True)
  claim.claim(tmp_path, {"task": "segmentation", "model": {}}, {})
  source = initial.read(ConfigDict({"init_from": os.fspath(tmp_path)}), video=False)
  assert source.params == 2 and (source.about["threshold"], source.about["epoch"]) == (0.6, 3)


def test_a_run_that_goes_on_needs_the_other_no_more(config, tmp_path, contents):
  workdir = tmp_path / "run"
  run.train_and_evaluate(config, workdir)
  before = contents(workdir)
  found = results.read(workdir, "segmentation")
  assert found["initial"]["task"] == "segmentation" and len(found["initial"]["fingerprint"]) == 12
  # Who the weights have seen goes on to those that start from these.
  assert "seen" not in found["initial"]
  own, other = trained.load(workdir).lineage
  assert other == trained.load(tmp_path / "other").lineage[0] and own["population"]
  # Names are no part of what is said of the data, in a record of predictions as elsewhere.
  assert "p00" not in json.dumps(trained.load(workdir).dataset)
  assert any(note.startswith("the networks start from the 60%") for note in found["notes"])
  shutil.rmtree(tmp_path / "other")
  run.train_and_evaluate(config, workdir)
  shutil.rmtree(workdir / "results")
  run.train_and_evaluate(config, workdir)
  assert contents(workdir) == before


def unfinished(place):
  (place / "results" / "segmentation.json").unlink()


def of_a_task(place):
  content = json.loads((place / "run.json").read_text())
  del content["sha256"]
  content["config"]["task"] = "sf_ratio"
  (place / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
  ("damage", "changes", "message"),
  [
    (shutil.rmtree, {}, "neither the directory of a run nor a file of weights"),
    (unfinished, {}, "is not finished; repeat its command"),
    (of_a_task, {}, "is a run of sf_ratio, and this takes one of pretraining"),
    (None, {"width": 0.5}, "have model.width=0.25, and this run has 0.5"),
    (None, {"encoder": "resnet34"}, "have model.encoder=resnet18, and this run has resnet34"),
  ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(
  config, tmp_path, damage, changes, message
):
  if damage:
    damage(tmp_path / "other")
  config.model.update(changes)
  with pytest.raises(UserError, match=message) as error:
    run.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
