"""The questions of the clinic: what is answered, and that a broken study ends the same."""

import json

import numpy as np
import pytest
from scipy import stats

from configs import clinic as configs
from lus_jax import results
from lus_jax.errors import UserError
from lus_jax.evaluation import nested, statistics
from lus_jax.report import clinic as report
from lus_jax.tasks import study
from lus_jax.tasks.clinic import analysis, run
from tests import toys

SOURCES = (0.6, 0.5, 0.0, "none", "true")
FOLDS, PATIENTS = 3, 6


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
  monkeypatch.setattr(nested, "RESAMPLES", 300)


def config(size="clinical_tiny", **changes):
  changed = toys.change(configs.get_config(size), changes)
  changed.study.workers = 1
  return changed


def rows_of(seed, means, spread=0.05):
  """Every patient's score by source: the source's mean, what is the patient's own, and noise."""
  rng, rows = np.random.default_rng(seed), []
  own = rng.normal(0, 0.2, FOLDS * PATIENTS)
  for source, mean in zip(SOURCES, means, strict=True):
    scores = mean + own + rng.normal(0, spread, own.size)
    for i, score in enumerate(scores.tolist()):
      row = {"threshold": source, "patient": f"p{i:03d}", "fold": i // PATIENTS}
      rows.append(row | {"accuracy3": score, "majority3": 0.25})
  return rows


def unit(seed, means=(0.5,) * 5, **options):
  networks = [
    {"threshold": source, "fold": f, "best_epoch": 1, "n_patients": PATIENTS, "task": "sf_change"}
    | {"accuracy3": mean}
    for source, mean in zip(SOURCES, means, strict=True)
    for f in range(FOLDS)
  ]
  return {"seed": seed, "rows": networks, "patients": rows_of(seed, means, **options)}


ASKED = {"questions": ((0.6, 0.5),), "metric": "accuracy3", "margin": 0.05}
ASKED |= {"baseline": "majority3", "decides": "mixed"}


def analysed(means, seeds=4, **options):
  units = [unit(seed, means, **options) for seed in range(seeds)]
  asked = ASKED | {"questions": ((0.6, 0.5), (0.6, 0.0)), "cohort": FOLDS * PATIENTS}
  return units, analysis.analyse(units, **asked)


def test_a_comparison_is_that_of_the_same_patients():
  units, found = analysed((0.5, 0.45, 0.4, 0.35, 0.6))
  by = {
    source: np.array(
      [r["accuracy3"] for u in units for r in u["patients"] if r["threshold"] == source]
    )
    for source in SOURCES
  }
  rows = found["questions"] + found["controls"]
  pairs = [(row["threshold"], row["against"]) for row in rows]
  assert pairs == [
    (0.6, 0.5),
    (0.6, 0.0),
    ("true", "none"),
    (0.6, "none"),
    (0.5, "none"),
    (0.0, "none"),
    ("none", "majority3"),
  ]
  for row in rows:
    less = by.get(row["against"], 0.25)
    expected = by[row["threshold"]] - less
    assert row["mixed"]["mean"] == pytest.approx(expected.mean())
    assert row["bootstrap"]["mean"] == pytest.approx(expected.mean())
    assert row["n_patients"] == row["n_differ"] == expected.size == 72
    assert row["by_seed"] == pytest.approx(expected.reshape(4, -1).mean(1).tolist())
  # What patients have in common counts in no difference.
  assert found["questions"][0]["mixed"]["sd_patient"] == pytest.approx(0.05 * 2**0.5, rel=0.3)
  assert [q["p_holm"] for q in found["questions"]] == statistics.holm(
    [q["mixed"]["p"] for q in found["questions"]]
  )
  for one in found["means"]:
    assert one["accuracy3"] == pytest.approx(by[one["threshold"]].mean())
  assert [s["scores"][0]["score"] for s in found["seeds"]] == pytest.approx(
    by[0.6].reshape(4, -1).mean(1).tolist()
  )
  assert len(found["patients"]) == 360 and len(found["rows"]) == 60


def test_answers_are_those_that_were_registered():
  clear = {"mean": 0.04, "interval": [0.02, 0.06]}
  for mixed, p, sees, expected in (
    (clear, 0.01, True, "yes"),
    (clear, 0.01, False, "blind"),
    ({"mean": -0.04, "interval": [-0.06, -0.02]}, 0.01, True, "worse"),
    ({"mean": 0.01, "interval": [-0.02, 0.04]}, 0.4, True, "no"),
    ({"mean": 0.01, "interval": [-0.06, 0.08]}, 0.4, True, "undecided"),
    # Its own interval leaves 0 out, but not after correction.
    ({"mean": 0.04, "interval": [0.001, 0.08]}, 0.09, True, "undecided"),
  ):
    assert analysis.answer(mixed, p, margin=0.05, can_see=sees) == expected
    assert expected in report.ANSWERS


@pytest.mark.parametrize(
  ("means", "answers", "sees"),
  [
    ((0.6, 0.5, 0.5, 0.4, 0.7), ["yes", "yes"], True),
    ((0.5, 0.6, 0.5, 0.4, 0.7), ["worse", "no"], True),
    ((0.6, 0.5, 0.5, 0.4, 0.4), ["blind", "blind"], False),
  ],
)
def test_what_is_there_is_answered_unless_nothing_could_be_seen(means, answers, sees):
  _, found = analysed(means)
  assert [row["answer"] for row in found["questions"]] == answers
  assert found["can_see"] is sees
  text = report.text(found | {"config": {}})
  assert all(report.ANSWERS[answer] in text for answer in answers)


def test_the_means_of_seeds_answer_where_they_are_to():
  units, found = analysed((0.6, 0.5, 0.5, 0.4, 0.7))
  seeds = analysis.analyse(
    units,
    questions=((0.6, 0.5), (0.6, 0.0)),
    metric="accuracy3",
    margin=0.05,
    cohort=FOLDS * PATIENTS,
    baseline="majority3",
    decides="seeds_test",
  )
  assert (found["decides"], seeds["decides"]) == ("mixed", "seeds_test")
  for row, other in zip(seeds["questions"], found["questions"], strict=True):
    expected = stats.ttest_1samp(row["by_seed"], 0)
    assert row["seeds_test"]["p"] == other["seeds_test"]["p"] == pytest.approx(expected.pvalue)
  p = [row["seeds_test"]["p"] for row in seeds["questions"]]
  assert [row["p_holm"] for row in seeds["questions"]] == statistics.holm(p)
  assert configs.get_config("clinical_full").study.decides == "seeds_test"


def test_patients_without_a_score_are_left_out_and_counted():
  units = [unit(seed) for seed in range(3)]
  for row in units[0]["patients"]:
    if row["patient"] == "p003":
      row["accuracy3"] = None  # beside the two of each seed that have no row at all
  found = analysis.analyse(units, cohort=20, **ASKED)
  row = found["questions"][0]
  assert (row["n_patients"], row["n_left_out"]) == (53, 7)
  assert found["means"][0]["n_patients"] == 53


def test_sources_of_other_patients_are_never_compared():
  units = [unit(seed) for seed in range(2)]
  units[1]["patients"][-1]["patient"] = "p999"
  with pytest.raises(ValueError, match="other patients"):
    analysis.analyse(units, cohort=18, **ASKED)


@pytest.mark.parametrize("size", configs.SIZES)
def test_every_size_can_run(size):
  parts = run.check(config(size))
  assert list(parts)[:2] == ["segmentation", "sf_change"]


def test_every_seed_has_its_own_patients_folds_and_weights():
  own = [run.config_of(config(), k) for k in range(3)]
  for one, seed in zip(own, (1000, 1001, 1002), strict=True):
    parts = study.parts(one)
    assert one.task == "study" and "study" not in one
    assert {part.seed for part in parts.values()} == {seed}
    assert {part.data.phantom.seed for part in parts.values() if "phantom" in part.data} == {seed}
    assert parts["sf_change"].folds.seed == seed
  assert config().seed == 1000  # untouched


def test_a_unit_prepares_with_one_process_only_beside_others(tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(
    run.workers, "run", lambda asked, make, arguments, jobs, done: given.append(arguments[2])
  )
  monkeypatch.setattr(run, "read_unit", lambda directory, config, k: None)
  monkeypatch.setattr(run.analysis, "analyse", lambda *args, **options: {})
  monkeypatch.setattr(run.report, "text", lambda content: "")
  for count in (1, 2):
    small = config()
    small.study.workers = count
    run.train_and_evaluate(small, tmp_path / "run")  # the same claim
  assert given == [0, 1]
  assert [run.config_of(config(), 0, n).data.num_processes for n in given] == given


def test_what_all_seeds_take_is_told(tmp_path, monkeypatch, capsys):
  told = []

  def of_study(parts, device, *, times):
    told.append(times)
    return "the table"

  monkeypatch.setattr(run.forecast, "of_study", of_study)
  monkeypatch.setattr(study, "train_and_evaluate", simulated_study())
  run.train_and_evaluate(config(**{"study.seeds": 3}), tmp_path / "run")
  assert told == [3] and "One seed of 3:\nthe table" in capsys.readouterr().out


def test_a_task_of_too_few_patients_is_refused_before_it_is_trained():
  parts = run.check(config(tasks=("sf_change", "readmission")))
  with pytest.raises(UserError, match="fewer folds"):
    run.forecast.of_study(parts, run.hardware.find_device())


def test_an_error_names_its_seed(tmp_path, monkeypatch):
  def broken(own, workdir):
    raise UserError("the disk is full") if own.seed == 1000 else KeyError("x")

  monkeypatch.setattr(study, "train_and_evaluate", broken)
  worker = run.Worker(config(), tmp_path)
  with pytest.raises(UserError, match="^seed 1000: the disk is full$"):
    worker.run(0)
  with pytest.raises(KeyError) as raised:
    worker.run(1)
  assert raised.value.__notes__ == ["seed 1001"]


def test_a_unit_of_another_seed_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(study, "train_and_evaluate", simulated_study())
  run.train_and_evaluate(config(), tmp_path)
  units = tmp_path / run.UNITS
  (units / "seed_1.json").write_bytes((units / "seed_0.json").read_bytes())
  with pytest.raises(UserError, match=r"seed_1.json is of seed 1000, not 1001") as raised:
    run.train_and_evaluate(config(), tmp_path)
  assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_networks")
def test_a_real_study_hands_over_every_patient_and_network(tmp_path):
  small = config(**{"segmentation.sweep.thresholds": (0.6, 0.0), "study.questions": ((0.6, 0.0),)})
  sources = (0.6, 0.0, "none", "true")
  run.Worker(small, tmp_path).run(0)
  found = run.read_unit(tmp_path, small, 0)
  folds = results.read(tmp_path / "seed_0", "sf_change")["folds"]
  tested = {name: row["fold"] for row in folds for name in row["test"]}
  assert found["seed"] == 1000 and len(tested) == small.data.phantom.n_patients
  of = {}
  for row in found["patients"]:
    assert row["fold"] == tested[row["patient"]]
    of.setdefault(row["threshold"], []).append(row["patient"])
  assert set(of) == set(sources) and len({tuple(sorted(names)) for names in of.values()}) == 1
  networks = [(row["task"], row["threshold"], row["fold"]) for row in found["rows"]]
  expected = {(t, s, f) for t in small.tasks for s in sources for f in range(len(folds))}
  assert set(networks) == expected and len(networks) == len(expected)
  # The other unit is the first with other names, so that there are two to analyse.
  found = analysis.analyse(
    [found, found | {"seed": 1001}],
    questions=small.study.questions,
    metric="accuracy3",
    margin=0.05,
    cohort=9,
    baseline="majority3",
    decides=small.study.decides,
  )
  results.write(tmp_path, report.NAME, config=small.to_dict(), dataset={}, **found)
  assert "Is 60% better than > 0%?" in report.text(results.read(tmp_path, report.NAME))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"study.seeds": 1}, "study.seeds"),
    ({"study.questions": ((0.8, 0.5),)}, "0.8 is not trained"),
    ({"study.questions": ()}, "pairs of two thresholds"),
    ({"study.questions": ((0.6, 0.6),)}, "pairs of two thresholds"),
    ({"study.questions": ((0.6, 0.5), (0.5, 0.6))}, "one pair twice"),
    ({"study.margin": 0.0}, "study.margin"),
    ({"folds.cv": "paper"}, "cv=rotate"),
    ({"data.name": "lus_folder"}, "only lus_phantom"),
    ({"tasks": ()}, "tasks is empty"),
    ({"channels.kind": "soft"}, "channels.kind"),
    ({"tasks": ("sf_ratio", "sf_change")}, "sf_ratio, is scored by rmse_mean"),
    ({"channels.ablations": ("true",)}, "without 'none'"),
    ({"channels.ablations": ("none",)}, "without 'true'"),
    ({"channels.ablations": ()}, "channels.ablations: without"),
    ({"channels.thresholds": (0.6, 0.5, 0.0, 0.3)}, "channels.thresholds: 0.3 is not trained"),
  ],
)
def test_what_no_study_could_use_is_refused(changes, message, tmp_path):
  with pytest.raises(UserError, match=message) as raised:
    run.train_and_evaluate(config(**changes), tmp_path / "run")
  assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


class Killed(Exception):
  pass


def simulated_study(dies_at=None):
  """A study in place of `study.train_and_evaluate` that leaves what a real one leaves."""

  def train_and_evaluate(own, workdir):
    (workdir / "channels").mkdir(exist_ok=True)
    (workdir / "channels" / "maps.npy").write_bytes(b"0" * 100)
    (workdir / "run.json").write_text("{}")
    print("a line of its own")
    if own.seed == dies_at:
      raise Killed
    rows = rows_of(own.seed, (0.6, 0.5, 0.5, 0.4, 0.7))
    folds = [
      {"fold": f, "test": sorted({r["patient"] for r in rows if r["fold"] == f})}
      for f in range(FOLDS)
    ]
    patients = [{k: v for k, v in row.items() if k != "fold"} for row in rows]
    networks = [
      {key: value for key, value in row.items() if key != "task"} for row in unit(0)["rows"]
    ]
    results.write(
      workdir, "sf_change", config={}, dataset={}, patients=patients, folds=folds, rows=networks
    )

  return train_and_evaluate


def test_an_interrupted_study_goes_on_to_the_same_numbers(tmp_path, monkeypatch, capsys):
  small = config(**{"study.seeds": 3})
  monkeypatch.setattr(study, "train_and_evaluate", simulated_study())
  run.train_and_evaluate(small, tmp_path / "whole")
  expected = (tmp_path / "whole" / "results" / "clinic.json").read_bytes()
  assert "Is 60% better than 50%? yes" in capsys.readouterr().out
  # What its p values are made of.
  versions = results.read(tmp_path / "whole", report.NAME)["versions"]
  assert set(versions) >= {"scipy", "statsmodels", "pandas"}
  # Nothing is kept but what was found.
  unit_of = tmp_path / "whole" / "units" / "seed_0"
  assert sorted(path.name for path in unit_of.iterdir()) == ["log.txt", "results"]
  assert "a line of its own" in (unit_of / "log.txt").read_text()

  monkeypatch.setattr(study, "train_and_evaluate", simulated_study(dies_at=1001))
  with pytest.raises(Killed):
    run.train_and_evaluate(small, tmp_path / "broken")
  units = tmp_path / "broken" / "units"
  assert [file.name for file in units.glob("*.json")] == ["seed_0.json"]
  assert (units / "seed_1" / "channels").is_dir()  # to go on from
  first = (units / "seed_0.json").read_bytes()
  # A file that a failing disk has changed is made again; a finished study is not.
  ran = []
  whole = simulated_study()

  def counted(own, workdir):
    ran.append(own.seed)
    whole(own, workdir)

  monkeypatch.setattr(study, "train_and_evaluate", counted)
  run.train_and_evaluate(small, tmp_path / "broken")
  assert ran == [1001, 1002] and (units / "seed_0.json").read_bytes() == first
  assert (tmp_path / "broken" / "results" / "clinic.json").read_bytes() == expected
  damaged = json.loads(first)
  damaged["patients"][0]["accuracy3"] += 1
  (units / "seed_0.json").write_text(json.dumps(damaged))
  run.train_and_evaluate(small, tmp_path / "broken")
  assert ran == [1001, 1002, 1000]
  assert (tmp_path / "broken" / "results" / "clinic.json").read_bytes() == expected
  with pytest.raises(UserError, match=r"another config \(different: study.margin\)"):
    run.train_and_evaluate(config(**{"study.seeds": 3, "study.margin": 0.1}), tmp_path / "broken")
