"""Runs that are killed, and studies on other splits and data: all of it but the real networks."""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import test_run_raters
import test_run_segmentation
import test_study

from configs import covid_blues
from lus_jax import main, models, results
from lus_jax.evaluation import statistics
from lus_jax.inference import trained
from lus_jax.tasks.segmentation import run
from tests import toys

ROOT = pathlib.Path(__file__).parents[2]
# A process of its own, with toys for networks.
SCRIPT = """
import sys

sys.path.insert(0, "tests/tasks")
import test_run_segmentation, test_study
from lus_jax import main, models
from lus_jax.tasks.segmentation import run
from tests import toys

models.build_model, models.build_video_model = toys.build_model, toys.build_video_model
what, prepared, workdir = sys.argv[1:]
if what == "segmentation":
  run.train_and_evaluate(test_run_segmentation.small(prepared), workdir)
else:
  main.run(test_study.small(prepared), workdir)
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("toy_networks")]


def start(what, prepared, workdir):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, what, os.fspath(prepared), os.fspath(workdir)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def kill_when(process, there, *, wait=0.0):
  """Kills a process some seconds after a file or folder is there."""
  deadline = time.monotonic() + 200
  while not there.exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(wait)
  assert process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.communicate()


@pytest.fixture(scope="module")
def finished(toy_networks, prepared_phantom, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "study"
  main.run(test_study.small(prepared_phantom), workdir)
  return workdir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def unbroken(toy_networks, prepared, tmp_path_factory):
  """A segmentation sweep of three epochs."""
  workdir = tmp_path_factory.mktemp("runs") / "segmentation"
  run.train_and_evaluate(test_run_segmentation.small(prepared), workdir)
  return workdir


def test_a_killed_run_ends_with_the_same_bytes(unbroken, prepared, tmp_path, contents):
  workdir = tmp_path / "run"
  # In the first epoch, right after a checkpoint, and while the next one is under way.
  for sign, wait in (("run.json", 1.0), ("checkpoints/1", 0.0), ("checkpoints/2", 0.1)):
    kill_when(start("segmentation", prepared, workdir), workdir / sign, wait=wait)
  assert [file.name for file in (workdir / "results").iterdir()] == ["timing.json"]
  process = start("segmentation", prepared, workdir)
  _, said = process.communicate(timeout=300)
  assert process.returncode == 0, said
  assert contents(workdir) == contents(unbroken)
  times = results.read(workdir, "timing")
  parts = {row["part"] for row in times["rows"]}
  assert {"data", "compiling", "training", "validation", "saving", "evaluation"} <= parts
  # The first may have been killed before it noted anything.
  assert [x["sittings"] for x in times["runs"]] in ([3], [4])


def test_more_epochs_go_on_with_a_finished_run(unbroken, prepared, tmp_path, capsys):
  workdir = shutil.copytree(unbroken, tmp_path / "run")
  config = test_run_segmentation.small(prepared, **{"train.epochs": 5})
  run.train_and_evaluate(config, workdir)
  printed = capsys.readouterr().out
  assert "going on after 3 epochs to 5; the learning rate" in printed
  before, after = (results.read(one, "history")["rows"] for one in (unbroken, workdir))
  assert after[: len(before)] == before and len(after) == 3 * 5
  assert results.read(workdir, "segmentation")["config"]["train"]["epochs"] == 5
  # It is finished again.
  run.train_and_evaluate(config, workdir)
  assert "going on after" not in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"data.cache": "stream"}, {"sweep.seeds": 2}], ids=str)
def test_streaming_and_more_seeds_repeat_the_first_seed(unbroken, prepared, tmp_path, change):
  run.train_and_evaluate(test_run_segmentation.small(prepared, **change), tmp_path / "run")
  rows = results.read(tmp_path / "run", "segmentation")["rows"]
  expected = results.read(unbroken, "segmentation")["rows"]
  assert rows[:3] == expected
  if "sweep.seeds" in change:
    assert [(r["threshold"], r["seed"]) for r in rows[3:]] == [(1.0, 1), (0.6, 1), (0.0, 1)]
    assert rows[3:] != [r | {"seed": 1} for r in expected]
  # The frozen models are those of the first seed.
  fingerprints = [trained.load(d).fingerprints for d in (tmp_path / "run", unbroken)]
  assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
  ("change", "same"), [({"sweep.strategy": "vmap"}, True), ({"loss.name": "adaptive_wing"}, False)]
)
def test_other_settings_run_to_their_end(unbroken, prepared, tmp_path, change, same):
  run.train_and_evaluate(test_run_segmentation.small(prepared, **change), tmp_path / "run")
  scores = [results.read(one, "segmentation")["rows"] for one in (tmp_path / "run", unbroken)]
  assert all(math.isfinite(row["ce"]) for row in scores[0])
  first = [results.read(one, "history")["rows"][:3] for one in (tmp_path / "run", unbroken)]
  for ours, theirs in zip(*first, strict=True):
    near = ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
    assert near == same
  if same:
    assert [row["ce"] for row in scores[0]] == pytest.approx([x["ce"] for x in scores[1]], rel=0.01)


def stamps(workdir, *names):
  files = [
    file
    for name in names
    for file in ([workdir / name] if (workdir / name).is_file() else (workdir / name).rglob("*"))
  ]
  assert files
  return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def test_one_command_gives_all_tables_and_the_report(finished, prepared_phantom, capsys, contents):
  before = contents(finished)
  kept = stamps(finished, "checkpoints", "channels", *test_study.TASKS)
  main.run(test_study.small(prepared_phantom), finished)
  printed = capsys.readouterr().out
  for i, name in enumerate(("segmentation", *test_study.TASKS)):
    assert f"== {i + 1} of 4: {name}" in printed
    assert f"Table {i + 1}." in printed or f"Table {i + 1} " in printed
  assert f"Report: {finished}/report/index.html" in printed
  assert (
    contents(finished) == before
    and stamps(finished, *(["checkpoints", "channels", *test_study.TASKS])) == kept
  )
  assert set(before) == {
    *(f"{name}.json" for name in trained.RESULTS),
    "examples.npz",
    *(f"{name}{end}.json" for name in test_study.TASKS for end in ("", "_history")),
  }
  page = (finished / "report" / "index.html").read_text()
  for name in test_study.TASKS:
    content = results.read(finished, name)
    assert [row["threshold"] for row in content["summary"]] == [0.6, 0.0, "none", "true"]
    assert len(content["rows"]) == 8
    for row in content["rows"]:
      assert all(x is None or math.isfinite(x) for x in row.values() if not isinstance(x, str))
    assert f"{content['summary'][0]['metrics'][content['primary']]['mean']:.3f}" in page
  assert (finished / "first_epoch.png").is_file()
  assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*.part*"))
  assert len(list((finished / "channels").rglob("*.npy"))) == 4


def test_a_killed_study_goes_on_in_the_second_task(finished, prepared_phantom, tmp_path, contents):
  """From where segmentation and sf_change are done: kill -9 in sf_ratio, then the same command."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  for name in ("sf_ratio", "readmission", "report"):
    shutil.rmtree(workdir / name)
    for file in (workdir / "results").glob(f"{name}*"):
      file.unlink()
  done = ("checkpoints", "channels", "sf_change")
  done += tuple(f"results/{file.name}" for file in (workdir / "results").iterdir())
  done = tuple(name for name in done if name != "results/timing.json")  # of all tasks
  before = stamps(workdir, *done)
  process = start("study", prepared_phantom, workdir)
  kill_when(process, workdir / "sf_ratio" / "checkpoints" / "1")
  assert not (workdir / "results" / "sf_ratio.json").exists()
  process = start("study", prepared_phantom, workdir)
  _, said = process.communicate(timeout=300)
  assert process.returncode == 0 and "training 8 models" in said, said
  assert stamps(workdir, *done) == before
  assert contents(workdir) == contents(finished)


def test_strict_and_rotated_every_patient_is_tested_by_models_that_never_saw_them(
  finished, task_config, tmp_path
):
  workdir = tmp_path / "run"
  config = task_config(
    "sf_ratio",
    **{
      "channels.workdir": os.fspath(finished),
      "channels.ablations": (),
      "folds.cv": "rotate",
      "folds.leakage": "strict",
      "folds.n": 5,
      "folds.inner": 2,
    },
  )
  main.run(config, workdir)
  content = results.read(workdir, "sf_ratio")
  everybody = [f"p00{i}" for i in range(6)]
  assert [row["patient"] for row in content["patients"]] == everybody * 2
  assert [(r["threshold"], r["fold"]) for r in content["rows"]] == [
    (t, fold) for t in (0.6, 0.0) for fold in range(6)
  ]
  for fold in content["folds"]:
    directory = workdir / "segmentation" / f"fold_{fold['fold']}"
    seen = {
      row["split"]: row["patient_names"] for row in results.read(directory, "dataset")["rows"]
    }
    assert sorted(seen["train"] + seen["validation"]) == fold["train"]
    assert seen["test"] == fold["test"]
    assert results.read(directory, "segmentation")["dataset"]["splits"].keys() == seen.keys()
  # Six patients: a p value of 2 / 64, one comparison.
  (row,) = content["summary"][0]["comparisons"]
  assert row["against"] == 0 and content["summary"][0]["smallest_attainable_p"] == 1 / 32
  assert len(list((workdir / "channels").rglob("*.npy"))) == 2 + 6 * 2
  assert (workdir / "report" / "index.html").exists()


@pytest.mark.real_data
def test_covid_blues_from_its_folder_to_a_report(finished, real_data, tmp_path, capsys):
  config = covid_blues.get_config("tiny")
  config.data.dir = os.fspath(real_data / "covid_blues")
  config.data.prepared_dir = os.fspath(tmp_path / "data")
  config.channels.workdir = os.fspath(finished)
  config.folds.n = 2
  workdir = tmp_path / "run"
  main.run(config, workdir)
  tables = capsys.readouterr().out
  for name, (task, target, primary) in {
    "severity": ("sf_ratio", "severity", "rmse_mean"),
    "sf_ratio": ("sf_ratio", "sf_ratio", "rmse_mean"),
    "cov_test": ("readmission", "cov_test", "accuracy"),
  }.items():
    content = results.read(workdir, name)
    assert (content["task"], content["target"], content["primary"]) == (task, target, primary)
    assert [row["threshold"] for row in content["summary"]] == [0.6, 0.0, "none"]
    assert content["dataset"]["name"] == "covid_blues"
    assert content["segmentation"] == {
      "dataset": "lus_phantom",
      "thresholds": [0.6, 0.0],
      "same_data_set": False,
    }
    assert "segmentation models were trained on lus_phantom, another data set" in tables
    assert any("without masks" in x for x in content["notes"])
    for row in content["rows"]:
      assert math.isfinite(row[primary]) and row["n_patients"] >= 1
    # Rotation tests every patient with videos and a label once; few get no interval.
    for row in content["summary"]:
      interval = row["metrics"][primary]["interval"]
      assert (interval is not None) == (row["n_patients"] >= statistics.INTERVAL_PATIENTS)
      assert row["can_decide"] == (row["smallest_attainable_p"] < statistics.LEVEL)
    for fold in content["folds"]:
      assert not set(fold["train"]) & {*fold["validation"], *fold["test"]}
  # Nothing of the patients but what the tables need is in the files, and the page is there.
  page = (workdir / "report" / "index.html").read_text()
  assert "another data set" in page and "covid_blues" in page
  assert json.loads((workdir / "study" / "run.json").read_text())["config"]["task"] == "study"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """A function that trains members of every kind for an epoch, and what it gives as configured."""
  prepared = tmp_path_factory.mktemp("data")

  def train(**changes):
    workdir = tmp_path_factory.mktemp("runs") / "short"
    changes |= {"train.epochs": 1, "train.checkpoint_every": 1}
    run.train_and_evaluate(test_run_raters.make_config(prepared, **changes), workdir)
    return workdir, {name: results.read(workdir, name)["rows"] for name in test_run_raters.FILES}

  with pytest.MonkeyPatch.context() as patch:
    # One with a head, for the ordinal member.
    patch.setattr(models, "build_model", toys.build_head)
    yield train, train()


@pytest.mark.parametrize(
  "change",
  [
    {"sweep.strategy": "vmap"},
    {"sweep.strategy": "sharded"},
    {"sweep.strategy": "1x2"},
    {"sweep.seeds": 2},
  ],
  ids=str,
)
def test_other_strategies_and_seeds_end_in_the_same_files(short, change):
  train, (_, expected) = short
  workdir, found = train(**change)
  # Those of the first seed, under their plain names, with their calibration.
  frozen = trained.load(workdir, every=True)
  assert [view.name for view in frozen.views] == [row["member"] for row in expected["raters"]]
  assert all(set(own["calibration"]) == {"x", "y"} for own in frozen.sweep.members)
  for name in test_run_raters.FILES:
    rows = found[name]
    if "sweep.seeds" in change:
      assert len(rows) == 2 * len(expected[name])
      rows = rows[: len(expected[name])]
      assert {row["member"][-7:] for row in rows} == {"_seed_0"}
    for a, b in zip(expected[name], rows, strict=True):
      assert b["member"].removesuffix("_seed_0") == a["member"]
      # An epoch of Adam turns rounding into small steps; single steps are compared elsewhere.
      assert b["brier"] == pytest.approx(a["brier"], rel=0.02, abs=1e-3)
