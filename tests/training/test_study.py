"""The whole study: what its parts share, and the command from an empty directory to a report."""

import importlib
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

from lus_jax import main, results
from lus_jax.errors import UserError
from lus_jax.evaluation import statistics
from lus_jax.inference import trained
from lus_jax.tasks import study
from lus_jax.tasks.clinical import run as run_lib
from lus_jax.tasks.segmentation import run

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ("sf_change", "sf_ratio", "readmission")


def get_config(name, size="tiny"):
  return importlib.import_module(f"configs.{name}").get_config(size)


def small(prepared, **changes):
  """Two thresholds and two folds of six patients, at toy size."""
  config = get_config("paper")
  config.data.image_size = 32
  config.data.prepared_dir = os.fspath(prepared)
  config.data.phantom.update(n_patients=6, seed=57, missing_views=0.6, n_frames=3)
  config.segmentation.model.width = 0.125
  config.segmentation.sweep.thresholds = (0.6, 0.0)
  config.segmentation.train.epochs = 1
  config.folds.n = 2
  config.sf_ratio.train.epochs = 2
  config.update(changes)
  return config


@pytest.mark.parametrize("size", ["paper", "demo", "tiny"])
@pytest.mark.parametrize("name", ["paper", "study", "covid_blues"])
def test_every_part_of_every_study_is_a_config_of_its_own(name, size):
  config = get_config(name, size)
  parts = study.parts(config)
  own = name != "covid_blues"
  assert list(parts) == ["segmentation"] * own + list(config.tasks)
  for task, part in parts.items():
    (run if task == "segmentation" else run_lib).check(part)
    # The fields are those of the task's own config, so that one file explains them all.
    alone = get_config({"segmentation": "seg"}.get(task, part.task), size)
    expected, found = alone.to_dict(), part.to_dict()
    assert found.keys() == expected.keys()
    for field in expected.keys() - {"data"}:
      if isinstance(expected[field], dict):
        assert found[field].keys() == expected[field].keys(), (task, field)


def test_what_is_set_once_reaches_every_part():
  config = get_config("paper", "demo")
  config.seed, config.clip.n_segment, config.folds.cv = 5, 3, "rotate"
  config.channels.thresholds, config.data.cache = (0.6,), "stream"
  config.lock()
  parts = study.parts(config)
  assert all(part.seed == 5 and part.data.cache == "stream" for part in parts.values())
  assert parts["segmentation"].data.phantom.n_patients == config.data.phantom.n_patients
  for task in TASKS:
    part = parts[task]
    assert part.name == part.task == task
    assert (part.clip.n_segment, part.folds.cv) == (3, "rotate")
    assert part.channels.thresholds == (0.6,) and part.channels.workdir == ""
    assert part.data.name == ""
  # Parts are copies: the study's config is what it was.
  parts["sf_ratio"].clip.n_segment = 9
  assert config.clip.n_segment == parts["sf_change"].clip.n_segment == 3
  assert parts["readmission"].model.init_from == "sf_change"


def test_real_videos_take_the_segmentation_that_is_named():
  config = get_config("covid_blues", "demo")
  config.channels.workdir, config.data.dir = "runs/seg", "DIR"
  parts = study.parts(config)
  for name, (task, target) in {
    "severity": ("sf_ratio", "severity"),
    "sf_ratio": ("sf_ratio", "sf_ratio"),
    "cov_test": ("readmission", "cov_test"),
  }.items():
    part = parts[name]
    assert (part.name, part.task, part.target) == (name, task, target)
    assert part.channels.workdir == "runs/seg"
    assert (part.data.name, part.data.dir) == ("covid_blues", "DIR")
  assert parts["cov_test"].days == "single" and parts["cov_test"].model.init_from == "severity"


def refused(config, workdir, message):
  with pytest.raises(UserError) as error:
    study.train_and_evaluate(config, workdir)
  assert message in str(error.value), str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("paper", lambda c: c.update(tasks=("sf_change", "ratio")), "config.tasks: 'ratio' is not"),
    ("paper", lambda c: c.clip.update(n_segment=0), "config.clip.n_segment: 0"),
    ("paper", lambda c: c.readmission.train.update(epochs=0), "config.train.epochs: 0"),
    ("paper", lambda c: c.folds.update(cv="x"), "config.folds.cv: 'x'"),
    ("paper", lambda c: c.segmentation.sweep.update(thresholds=(2.0,)), "2.0 is not in [0, 1]"),
    ("paper", lambda c: c.data.update(name="mnist"), "config.data.name: 'mnist'"),
    ("paper", lambda c: c.data.update(cache="disk"), "config.data.cache: 'disk'"),
    ("paper", lambda c: c.data.phantom.update(n_patients=2), "at least 3"),
    ("covid_blues", lambda c: None, "holds no segmentation run; name one with"),
  ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path, name, change, message):
  config = get_config(name)
  config.data.prepared_dir = os.fspath(tmp_path / "data")
  change(config)
  refused(config, tmp_path / "run", message)
  assert list(tmp_path.iterdir()) == []


def test_two_studies_in_one_directory_are_refused(tmp_path, in_use):
  (tmp_path / "study").mkdir()
  with in_use(tmp_path / "study"), pytest.raises(UserError, match="study is in use by process 123"):
    study.train_and_evaluate(small(tmp_path / "data"), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["study"]


def test_a_data_folder_is_no_workdir(tmp_path):
  (tmp_path / "manifest.csv").write_text("video,patient\n")
  refused(small(tmp_path / "data"), tmp_path, "is a data folder")
  assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


# --- slow: the real networks -------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(prepared_phantom, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "study"
  main.run(small(prepared_phantom), workdir)
  return workdir


def stamps(workdir, *names):
  files = [
    file
    for name in names
    for file in ([workdir / name] if (workdir / name).is_file() else (workdir / name).rglob("*"))
  ]
  assert files
  return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


@pytest.mark.slow
def test_one_command_gives_all_tables_and_the_report(finished, prepared_phantom, capsys, contents):
  before = contents(finished)
  kept = stamps(finished, "checkpoints", "channels", *TASKS)
  main.run(small(prepared_phantom), finished)
  printed = capsys.readouterr().out
  for i, name in enumerate(("segmentation", *TASKS)):
    assert f"== {i + 1} of 4: {name}" in printed
    assert f"Table {i + 1}." in printed or f"Table {i + 1} " in printed
  assert f"Report: {finished}/report/index.html" in printed
  assert (
    contents(finished) == before
    and stamps(finished, *(["checkpoints", "channels", *TASKS])) == kept
  )
  assert set(before) == {
    *(f"{name}.json" for name in trained.RESULTS),
    "examples.npz",
    *(f"{name}{end}.json" for name in TASKS for end in ("", "_history")),
  }
  page = (finished / "report" / "index.html").read_text()
  for name in TASKS:
    content = results.read(finished, name)
    assert [row["threshold"] for row in content["summary"]] == [0.6, 0.0, "none", "true"]
    assert len(content["rows"]) == 8
    for row in content["rows"]:
      assert all(x is None or math.isfinite(x) for x in row.values() if not isinstance(x, str))
    assert f"{content['summary'][0]['metrics'][content['primary']]['mean']:.3f}" in page
  assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*.part*"))
  assert len(list((finished / "channels").rglob("*.npy"))) == 4


@pytest.mark.slow
def test_a_killed_study_goes_on_in_the_second_task(finished, prepared_phantom, tmp_path, contents):
  """From where segmentation and sf_change are done: kill -9 in sf_ratio, then the same command."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  for name in ("sf_ratio", "readmission", "report"):
    shutil.rmtree(workdir / name)
    for file in (workdir / "results").glob(f"{name}*"):
      file.unlink()
  done = ("checkpoints", "channels", "sf_change")
  done += tuple(f"results/{file.name}" for file in (workdir / "results").iterdir())
  before = stamps(workdir, *done)
  script = (
    "import sys; sys.path.insert(0, 'tests/training')\n"
    "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
    "from test_study import small\n"
    "from lus_jax import main\n"
    f"main.run(small({os.fspath(prepared_phantom)!r}), {os.fspath(workdir)!r})\n"
  )
  command = [sys.executable, "-c", script]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  deadline = time.monotonic() + 300
  while not (workdir / "sf_ratio" / "checkpoints" / "1").exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / "results" / "sf_ratio.json").exists()
  finishing = subprocess.run(
    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
  )
  assert "training 8 models" in finishing.stderr
  assert stamps(workdir, *done) == before
  assert contents(workdir) == contents(finished)


@pytest.mark.slow
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
    },
  )
  main.run(config, workdir)
  content = results.read(workdir, "sf_ratio")
  everybody = [f"p00{i}" for i in range(6)]
  assert [row["patient"] for row in content["patients"]] == everybody * 2
  assert [(r["threshold"], r["fold"]) for r in content["rows"]] == [
    (t, fold) for t in (0.6, 0.0) for fold in range(3)
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
  assert len(list((workdir / "channels").rglob("*.npy"))) == 2 + 3 * 2
  assert (workdir / "report" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.real_data
def test_covid_blues_from_its_folder_to_a_report(finished, real_data, tmp_path, capsys):
  config = get_config("covid_blues")
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
