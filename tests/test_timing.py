import jax
import pytest
from jax import numpy as jnp

from lus_jax import results, timing
from lus_jax.report import schema
from lus_jax.report import timing as report

COMMON = {
  "config": {"task": "segmentation"},
  "dataset": {"name": "toy", "version": "1", "splits": {"train": 1}},
}


@pytest.fixture
def wait(monkeypatch):
  """`wait(seconds)` on a clock of its own."""
  now = [100.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

  def pass_by(seconds):
    now[0] += seconds

  return pass_by


def read(workdir):
  content = results.read(workdir, timing.NAME)
  schema.check(timing.NAME, content)
  return {(x["run"], x["part"]): x["seconds"] for x in content["rows"]}, content["runs"]


def test_parts_exclude_each_other_and_add_up(tmp_path, wait):
  with timing.recorded("segmentation") as clock:
    wait(1)
    clock.keep_in(tmp_path, goes_on=False, **COMMON)
    with timing.part("training"):
      wait(2)
      with timing.part("validation"):
        wait(5)
      wait(3)
      timing.keep()
      assert read(tmp_path)[0]["segmentation", "training"] == 5
    clock.enter("evaluation")
    wait(4)
  found, runs = read(tmp_path)
  assert found == {
    ("segmentation", "training"): 5,
    ("segmentation", "validation"): 5,
    ("segmentation", "evaluation"): 4,
    ("segmentation", "other"): 1,
  }
  assert runs == [{"run": "segmentation", "sittings": 1, "seconds": 15}]


def test_a_run_within_a_run_has_a_clock_of_its_own(tmp_path, wait):
  with timing.recorded("sf_ratio") as outer, timing.part("fold segmentations"):
    with timing.recorded("segmentation") as inner, timing.part("training"):
      wait(2)
    wait(1)
  assert (outer.seconds["fold segmentations"], inner.seconds["training"]) == (3, 2)


def test_what_is_compiled_counts_as_compiling_and_once(wait):
  with timing.recorded("a") as clock, timing.part("training"):
    wait(1)
    # A trace of 4 s, in which another one took 3 of them, then a compilation of 2.
    wait(4)
    clock.compiled(3)
    clock.compiled(4)
    wait(2)
    clock.compiled(2)
    wait(1)
  assert clock.seconds["compiling"] == 6 and clock.seconds["training"] == 2


def test_compilations_are_heard_of():
  with timing.recorded("a") as clock, timing.part("training"):
    jax.jit(lambda x: jnp.sin(x) + len("new"))(jnp.ones(3)).block_until_ready()
  assert clock.seconds["compiling"] > 0 and clock.seconds["training"] > 0


def test_a_run_that_goes_on_adds_up_and_others_stay(tmp_path, wait, caplog):
  def sit(run, goes_on, seconds):
    with timing.recorded(run) as clock:
      clock.keep_in(tmp_path, goes_on=goes_on, **COMMON)
      with timing.part("training"):
        wait(seconds)

  sit("segmentation", False, 3)
  sit("sf_ratio", False, 4)
  with pytest.raises(KeyboardInterrupt), timing.recorded("segmentation") as clock:
    clock.keep_in(tmp_path, goes_on=True, **COMMON)
    with timing.part("training"):
      wait(2)
      raise KeyboardInterrupt
  found, runs = read(tmp_path)
  assert found == {("segmentation", "training"): 5, ("sf_ratio", "training"): 4}
  assert {x["run"]: x["sittings"] for x in runs} == {"sf_ratio": 1, "segmentation": 2}
  # Begun anew, it begins at nothing.
  sit("segmentation", False, 1)
  found, runs = read(tmp_path)
  assert found["segmentation", "training"] == 1 and runs[-1]["sittings"] == 1
  (tmp_path / "results" / "timing.json").write_text("{")
  sit("segmentation", True, 7)
  assert "counted anew" in caplog.text
  assert read(tmp_path)[1] == [{"run": "segmentation", "sittings": 1, "seconds": 7}]


def test_nothing_is_written_of_what_is_refused_or_was_finished(tmp_path):
  with pytest.raises(ValueError), timing.recorded("segmentation"):
    raise ValueError
  with timing.recorded("segmentation"):
    timing.keep()
  with timing.reported(tmp_path):
    pass
  assert not list(tmp_path.iterdir())


def test_a_report_counts_where_its_run_was_counted(tmp_path, wait):
  with timing.recorded("segmentation") as clock:
    clock.keep_in(tmp_path, goes_on=False, **COMMON)
    wait(1)
  with timing.reported(tmp_path):
    wait(3)
  assert read(tmp_path)[0] == {("segmentation", "other"): 1, ("report", "report"): 3}


def test_the_page_shows_every_second_but_its_own():
  content = {
    "rows": [
      {"run": "segmentation", "part": "training", "seconds": 100.0},
      {"run": "segmentation", "part": "data", "seconds": 20.25},
      {"run": "sf_ratio", "part": "training", "seconds": 3.0},
      {"run": "report", "part": "report", "seconds": 9.0},
    ],
    "runs": [
      {"run": "segmentation", "sittings": 2, "seconds": 120.25},
      {"run": "sf_ratio", "sittings": 1, "seconds": 3.0},
      {"run": "report", "sittings": 1, "seconds": 9.0},
    ],
  }
  table = report.table({"timing": content})
  assert table.csv().splitlines() == [
    "seconds,segmentation,sf_ratio",
    "data,20.25,",
    "training,100.0,3.0",
    "all,120.25,3.0",
  ]
  ((run, sittings),) = report.continued({"timing": content})
  assert (run, sittings.value, sittings.at) == ("segmentation", 2, "timing.json#/runs/0/sittings")
  assert report.bars(content)["svg"].count(b"sf_ratio") == 1


@pytest.mark.parametrize(
  "change",
  [
    {"rows": [1]},
    {"rows": [{"run": "segmentation", "seconds": 1.0}]},
    {"rows": [{"run": "segmentation", "part": "training", "seconds": "3"}]},
    {"runs": [{"run": "segmentation"}]},
    {"runs": None},
  ],
  ids=str,
)
def test_a_damaged_file_is_counted_anew_with_a_warning(tmp_path, wait, caplog, change):
  results.write(tmp_path, timing.NAME, **COMMON, **({"rows": [], "runs": []} | change))
  with timing.recorded("segmentation") as clock:
    clock.keep_in(tmp_path, goes_on=True, **COMMON)
    wait(2)
  assert read(tmp_path) == (
    {("segmentation", "other"): 2},
    [{"run": "segmentation", "sittings": 1, "seconds": 2}],
  )
  assert "counted anew" in caplog.text
