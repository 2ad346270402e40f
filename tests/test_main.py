"""The command line: every mistake is one clear line and exit code 2, and nothing is left behind."""

import errno
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest
from ml_collections import ConfigDict

from lus_jax import command_line, main
from lus_jax.errors import UserError
from lus_jax.training import claim

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.fspath(ROOT)}


def run(*args, cwd=ROOT):
  """The command in a process of its own."""
  return subprocess.run(
    [sys.executable, "-m", "lus_jax.main", *map(str, args)],
    cwd=cwd,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=300,
  )


# Runs the command, line by line, each in a copy of itself: what takes seconds to import is there.
SERVER = """
import json, os, runpy, sys

import lus_jax.tasks.study, lus_jax.tasks.which_target.run, tfds_builders.tables

for line in sys.stdin:
  argv, out, err = json.loads(line)
  if (pid := os.fork()) == 0:
    for number, file in enumerate((os.devnull, out, err)):
      os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.argv = argv
    runpy.run_module("lus_jax.main", run_name="__main__", alter_sys=True)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
  """`run` of a copy of one process that has imported everything."""
  assert "lus_jax.main" not in SERVER.partition("for line")[0]  # it is read anew by every copy
  files = [os.fspath(tmp_path_factory.mktemp("streams") / name) for name in ("out", "err")]
  options = {"cwd": ROOT, "env": ENVIRONMENT, "text": True}
  pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
  with subprocess.Popen([sys.executable, "-c", SERVER], **pipes, **options) as server:

    def run(*args):
      for file in files:
        pathlib.Path(file).write_text("")
      print(json.dumps([["main", *map(str, args)], *files]), file=server.stdin, flush=True)
      code = int(server.stdout.readline())
      texts = (pathlib.Path(file).read_text() for file in files)
      return subprocess.CompletedProcess(args, code, *texts)

    yield run
    server.stdin.close()


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ([], "both --config and --workdir are needed"),
    (["--config=configs/nope.py"], "configs/nope.py"),
    (["--config=configs/seg.py:huge"], "error: configs/seg.py:huge does not exist"),
    (
      ["--config=configs/seg.py", "--config.train.epoch=3"],
      "--config.train.epoch: there is no such field; did you mean --config.train.epochs?",
    ),
    (["--config=configs/seg.py", "--config.train.epochs=many"], "--config.train.epochs=many"),
    (["--config=configs/seg.py", "--workers=3"], "workers"),
    (["--config=configs/seg.py", "--config.sweep.thresholds=(1.2,.5)"], "1.2 is not in [0, 1]"),
    (
      # The last one counts.
      ["--config=seg", "--config.sweep.thresholds=1.2", "--config.sweep.thresholds=.5,.5"],
      "0.5 stands there twice",
    ),
    (["--config=configs/seg.py", "--config.data.name=mnist"], "config.data.name: 'mnist'"),
    (["--config=configs/seg.py", "--config.data.dir=mine"], "add --config.data.name=lus_folder"),
    (
      ["--config=configs/seg.py", "--config.data.name=lus_folder", "--config.data.dir=/no/such"],
      "/no/such",
    ),
    (["--config=configs/seg.py", "--config.calibration=platt"], "config.calibration: 'platt'"),
    (
      ["--config=configs/seg.py", "--config.labels.standardise=x"],
      "config.labels.standardise: 'x'",
    ),
    (["--config=configs/seg.py", "--config.sweep.members=hard"], "'hard' is not known; write one"),
    (
      ["--config=configs/seg.py", "--config.sweep.members=('soft', 'threshold(.6)')"],
      "'threshold(.6)' stands there twice",
    ),
    (["--config=configs/sf_change.py", "--config.pairs=all"], "config.pairs: 'all'"),
    (["--config=configs/sf_ratio.py"], "run holds no segmentation run; name one with"),
    (["--config=configs/paper.py", "--config.tasks=('change',)"], "config.tasks: 'change'"),
    (["--config=configs/paper.py:huge"], ":huge does not exist"),
    (
      ["--config=configs/covid_blues.py", "--config.channels.workdir=/no/such"],
      "/no/such holds no segmentation run",
    ),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(copied, tmp_path, args, message):
  workdir = tmp_path / "run"
  if args:
    prepared = tmp_path / "data"
    args = [*args, f"--workdir={workdir}", f"--config.data.prepared_dir={prepared}"]
  result = copied(*args)
  assert result.returncode == 2, result.stderr
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith("error: ")
  assert message in lines[0]
  assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_says_no_more(tmp_path):
  # Nothing that is imported greets on stderr.
  args = (
    "--config=covid_blues",
    f"--workdir={tmp_path / 'run'}",
    "--config.channels.workdir=/no/such",
  )
  result = run(*args, f"--config.data.prepared_dir={tmp_path / 'data'}")
  assert result.returncode == 2
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and "/no/such holds no segmentation run" in line
  assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (
      ["--config.sweep.members=('soft', 'majority')"],
      "'majority' needs the masks of several raters, and the data set has none",
    ),
    (["--config.sweep.members=('rater(A)',)"], "'rater' needs the masks of several raters"),
    (
      ["--config.sweep.members=('rater(Z)',)", "--config.data.phantom.raters=True"],
      "nobody is called 'Z'; the raters are A, B, C.",
    ),
    (
      ["--config.labels.standardise=overlap"],
      "config.labels.standardise: no training frame was painted by two annotators",
    ),
  ],
)
def test_what_the_data_cannot_give_is_one_line_and_no_run_is_begun(
  copied, prepared, tmp_path, args, message
):
  small = ("image_size=32", "phantom.n_patients=3", "phantom.n_frames=1")
  result = copied(
    "--config=configs/seg.py:tiny",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.prepared_dir={prepared}",
    *(f"--config.data.{setting}" for setting in small),
    *args,
  )
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: path.write_text("notes"), "is a file; name a directory"),
    (
      lambda path: (path.mkdir(), (path / "manifest.csv").write_text("video,patient")),
      "is a data folder",
    ),
    (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "run.json is damaged"),
  ],
)
def test_a_directory_that_is_something_else_is_left_alone(copied, tmp_path, make, message):
  workdir = tmp_path / "run"
  make(workdir)
  before = sorted(tmp_path.rglob("*"))
  result = copied(
    "--config=configs/seg.py:tiny",
    f"--workdir={workdir}",
    f"--config.data.prepared_dir={tmp_path / 'data'}",
  )
  assert result.returncode == 2
  assert message in result.stderr and len(result.stderr.splitlines()) == 1
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("task", ["segmentation", "sf_ratio", "study"])
def test_every_task_runs_and_its_report_is_built(tmp_path, monkeypatch, capsys, task):
  # The command's own process stays out of it: what counts is what `run` calls, in which order.
  calls = []
  place = {"segmentation": "segmentation.run", "sf_ratio": "clinical.run", "study": "study"}[task]
  module = importlib.import_module(f"lus_jax.tasks.{place}")
  monkeypatch.setattr(module, "train_and_evaluate", lambda *args: calls.append((task, *args)))
  monkeypatch.setattr(
    main.report, "build", lambda workdir: calls.append(("report", workdir)) or "page.html"
  )
  config = ConfigDict({"task": task})
  main.run(config, tmp_path)
  assert calls == [(task, config, tmp_path), ("report", tmp_path)]
  assert capsys.readouterr().out == "Report: page.html\n"


@pytest.mark.parametrize(
  ("text", "value"),
  [
    (".6", (0.6,)),
    (".6,.5", (0.6, 0.5)),
    ("(.6, .5)", (0.6, 0.5)),
    ("[1.0]", (1.0,)),
    ("", ()),
    ("()", ()),
    ("soft", ("soft",)),
    ("('soft', 'ordinal')", ("soft", "ordinal")),
    ("soft, threshold(.6, loss=dice),ordinal", ("soft", "threshold(.6, loss=dice)", "ordinal")),
  ],
)
def test_tuples_are_read_as_they_are_written(text, value):
  assert main.Tuples().parse(text) == value


def test_a_broken_tuple_is_refused():
  with pytest.raises(ValueError, match="is no tuple"):
    main.Tuples().parse("(.6, .5")


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
  """`ended(run) -> exit code, stderr` of the command whose run is this function."""

  def call(run):
    monkeypatch.setattr(main, "parse", lambda argv: ConfigDict())
    monkeypatch.setattr(main, "WORKDIR", types.SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(main, "run", lambda config, workdir: run(pathlib.Path(workdir)))
    return main.main(["main", "--config=x", "--config.seed=1"]), capsys.readouterr().err.strip()

  return call


def test_a_run_records_its_command(ended, tmp_path):
  claim.claim(tmp_path / "called", {}, {})  # from Python
  assert ended(lambda workdir: claim.claim(workdir, {"seed": 1}, {})) == (0, "")

  def recorded(workdir):
    return json.loads((workdir / claim.OWNER).read_text())["command"]

  assert recorded(tmp_path / "called") is None
  assert recorded(tmp_path) == ["python", "-m", "lus_jax.main", "--config=x", "--config.seed=1"]
  # Told otherwise, the same run is the same run.
  with command_line.recorded("lus_jax.main", ["main", "--config=y"]):
    claim.claim(tmp_path, {"seed": 1}, {})
    # One that was begun from Python, or by a version that noted nothing, has none so far.
    claim.claim(tmp_path / "called", {}, {})
  assert recorded(tmp_path)[3] == "--config=x" and recorded(tmp_path / "called")[3] == "--config=y"
  assert command_line.given() is None
  assert set(claim.read_claim(tmp_path)) == {"config", "dataset"}


def test_which_of_several_processes_it_is_is_no_part_of_the_command():
  words = ["main", "--config.distributed.process_id=1", "--config=x", "--config.seed=1"]
  words += ["--config.distributed.num_processes", "2", "-config.distributed.x=a"]
  with command_line.recorded("m", words):
    assert command_line.given() == ["python", "-m", "m", "--config=x", "--config.seed=1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_what_is_kept(ended, number, code):
  found, text = ended(lambda workdir: os.kill(os.getpid(), number))
  assert found == code
  # In preparation there is nothing yet.
  assert f"Stopped by {number.name}: There is no checkpoint yet: the same command begins" in text

  def train(workdir):
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    os.kill(os.getpid(), number)

  found, text = ended(train)
  assert found == code and "goes on from the last checkpoint" in text and "checkpoints/3" in text


def test_what_a_disk_refuses_is_one_line_and_a_fault_of_ours_is_not(ended):
  def full(workdir):
    raise OSError(errno.ENOSPC, "No space left on device", workdir / "x")

  code, text = ended(full)
  assert code == 2 and len(text.splitlines()) == 1
  assert "No space left on device" in text and text.startswith("error: ") and "/x" in text

  def fault(workdir):
    raise ValueError("shapes")

  with pytest.raises(ValueError, match="shapes"):
    ended(fault)


def test_an_unknown_task_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r"'x' is not known; choose one of segmentation, .*, study"):
    main.run(ConfigDict({"task": "x"}), tmp_path)


def test_help_lists_the_fields_of_a_config_from_anywhere(tmp_path):
  result = run("--config", "seg:demo", "--help", cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert "--workdir" in result.stdout and "--compilation_cache" in result.stdout
  lines = result.stdout.splitlines()
  assert "  --config.data.image_size=96  # pixels; frames are letterboxed to a square" in lines
  assert any(line.startswith("  --config.sweep.members=()  # What is trained") for line in lines)
  assert all(f":{size}" in result.stdout for size in ("small", "auto", "demo", "tiny"))
