"""The questions of the clinic on the page: every number from its file, every answer in words."""

import csv
import functools
import json

import numpy as np
import pytest
from test_page import parse, problems

from lus_jax import report, results
from lus_jax.errors import UserError
from lus_jax.report import clinic, figures

SOURCES = (0.6, 0.5, 0.0, "none", "true")


def fitted(rng, mean):
  found = {"mean": mean, "se": 0.01, "df": 4, "p": 0.0004, "interval": [mean - 0.02, mean + 0.02]}
  found |= {"sd_seed": 0.0, "sd_fold": float(rng.uniform(0.01, 0.1)), "sd_patient": 0.21}
  return found | {"without": ["seed"]}


def content(answers=("yes", "undecided")):
  rng = np.random.default_rng(0)

  def compared(a, b):
    mean = float(rng.uniform(-0.1, 0.1))
    bootstrap = {"mean": mean, "interval": [mean - 0.03, mean + 0.03], "p": 0.123}
    found = {"threshold": a, "against": b, "n_patients": 118, "n_left_out": 2, "n_differ": 61}
    found |= {"by_seed": [mean - 0.01, mean + 0.01]}
    seeds = {"mean": mean, "interval": [mean - 0.04, mean + 0.04], "p": 0.012}
    return found | {"mixed": fitted(rng, mean), "seeds_test": seeds, "bootstrap": bootstrap}

  patients = [
    {"seed": seed, "fold": p % 3, "patient": f"p{p}", "threshold": source}
    | {"accuracy3": None if p == 1 else 0.4, "accuracy2_merged": 0.5}
    for seed in (1000, 1001)
    for p in range(3)
    for source in SOURCES
  ]
  networks = [
    {"seed": seed, "task": "sf_change", "fold": f, "threshold": source, "n_patients": 1}
    | {"best_epoch": 3, "accuracy3": 0.4}
    for seed in (1000, 1001)
    for f in range(3)
    for source in SOURCES
  ]
  other = {"task": "readmission", "metric": "auroc", "mean": 0.61, "n_networks": 6}
  asked = zip(((0.6, 0.5), (0.6, 0.0)), answers, strict=True)
  return {
    "decides": "mixed",
    "primary": "accuracy3",
    "margin": 0.05,
    "can_see": "blind" not in answers,
    "questions": [compared(*pair) | {"p_holm": 0.034, "answer": one} for pair, one in asked],
    "controls": [compared("true", "none"), compared(0.6, "none"), compared("none", "majority3")],
    "means": [
      {"threshold": source, "n_patients": 118, "mixed": fitted(rng, 0.4)}
      | {"accuracy3": 0.401, "accuracy2_merged": 0.633}
      for source in SOURCES
    ],
    "seeds": [
      {"seed": seed, "n_patients": 60}
      | {"scores": [{"threshold": source, "score": 0.4} for source in SOURCES]}
      for seed in (1000, 1001)
    ],
    "others": [other | {"threshold": 0.6}],
    "rows": networks,
    "patients": patients,
  }


def write(workdir, found):
  dataset = {"name": "lus_phantom", "version": "simulated anew for every seed", "splits": {}}
  config = {"seed": 1000, "study": {"seeds": 2, "margin": 0.05}}
  results.write(workdir, clinic.NAME, config=config, dataset=dataset, **found)
  report.build(workdir)
  return parse(workdir)


@pytest.fixture
def undrawn(monkeypatch):
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )


def test_every_number_is_that_of_the_results_file(tmp_path, undrawn):
  found = content()
  parsed = write(tmp_path, found)
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  stored = results.read(tmp_path, clinic.NAME)
  values = parsed.find("data")
  assert len(values) > 120
  for _, attrs, text in values:
    file, pointer = attrs["data-at"].split("#/")
    assert file == "clinic.json"
    expected = functools.reduce(
      lambda at, key: at[int(key) if isinstance(at, list) else key], pointer.split("/"), stored
    )
    assert attrs["value"] == ("" if expected is None else str(expected))
    if pointer.endswith(("/threshold", "/against")):
      assert text == clinic.source(expected)
    elif pointer.endswith("/answer"):
      assert text == clinic.ANSWERS[expected]
    elif isinstance(expected, float) and not pointer.startswith("config"):
      assert text == "< 0.001" or abs(float(text) - expected) <= 0.0005 + 1e-12
      assert (text[0] in "+-") == ("/interval" in pointer or pointer.endswith("/mean")) * (
        pointer.startswith(("questions", "controls"))
      )
  rows = {}
  for name in ("questions", "controls", "means", "seeds", "others", "networks", "patients"):
    with open(tmp_path / "report" / "tables" / f"clinic_{name}.csv") as file:
      rows[name] = list(csv.DictReader(file))
  assert {name: len(each) for name, each in rows.items()} == {
    name: len(found[{"networks": "rows"}.get(name, name)]) for name in rows
  }
  assert float(rows["questions"][1]["difference"]) == found["questions"][1]["mixed"]["mean"]
  assert float(rows["questions"][1]["p, corrected (Holm)"]) == 0.034


@pytest.mark.parametrize("answers", [("yes", "worse"), ("no", "undecided"), ("blind", "blind")])
def test_the_summary_says_what_was_answered_and_no_more(answers, tmp_path, undrawn):
  parsed = write(tmp_path, content(answers))
  said = [" ".join(text.split()) for _, _, text in parsed.find("li", class_="verdict")]
  assert len(said) == 2
  for line, answer, other in zip(said, answers, ("50%", "> 0%"), strict=True):
    assert line.startswith(f"Is 60% better than {other}? {clinic.ANSWERS[answer]}")
  (page,) = [text for _, attrs, text in parsed.find("section") if attrs.get("id") == "summary"]
  assert ("nothing can be said of thresholds" in " ".join(page.split())) == ("blind" in answers)
  # The bootstrap's p decides nothing, and is not there to be taken for one that does.
  headers = {text.strip() for _, _, text in parsed.find("th")}
  assert "p" in headers and "p, bootstrap" not in headers


def test_no_is_not_said_of_an_interval_that_may_lie_above_0():
  assert not clinic.ANSWERS["no"].startswith("no:")


@pytest.mark.parametrize(
  ("control", "asked", "says_smaller", "says_margin"),
  [(0.04, 0.01, True, True), (0.08, 0.02, True, False), (0.08, -0.09, False, False)],
)
def test_what_the_control_shows_is_said(
  control, asked, says_smaller, says_margin, tmp_path, undrawn
):
  found = content()
  for row, mean in ((found["controls"][0], control), *((q, asked) for q in found["questions"])):
    row["mixed"] |= {"mean": mean, "interval": [mean - 0.02, mean + 0.02]}
  parsed = write(tmp_path, found)
  (page,) = [text for _, attrs, text in parsed.find("section") if attrs.get("id") == "summary"]
  page = " ".join(page.split())
  low, high = control - 0.02, control + 0.02
  assert f"True masks helped over none ({control:+.3f} [{low:+.3f}, {high:+.3f}])" in page
  assert ("Differences between thresholds are smaller than that." in page) == says_smaller
  assert ("exceeds all that true masks bring" in page) == says_margin
  assert "registered" not in page and "these are small" not in page


def test_a_model_that_could_not_be_fitted_is_named(tmp_path, undrawn):
  found = content()
  found["questions"][0]["mixed"] |= {"without": ["model"], "sd_fold": None, "sd_seed": None}
  parsed = write(tmp_path, found)
  assert any("t test of the seeds' means" in text for _, _, text in parsed.find("td"))
  stored = results.read(tmp_path, clinic.NAME)
  assert "the model (t test of the seeds' means)" in clinic.text(stored)


def test_the_page_shows_what_decides(tmp_path, undrawn):
  found = content() | {"decides": "seeds_test"}
  parsed = write(tmp_path, found)
  (line, _) = [" ".join(text.split()) for _, _, text in parsed.find("li", class_="verdict")]
  low, high = found["questions"][0]["seeds_test"]["interval"]
  assert f"[{low:+.3f}, {high:+.3f}]" in line
  (axes,) = clinic.differences(found).axes
  assert any(list(drawn.get_xdata()) == [low, high] for drawn in axes.lines)
  assert "It is the t test of the means of seeds that answers" in clinic.text(found)


def test_the_figure_shows_every_comparison_its_interval_and_its_seeds():
  found = content()
  (axes,) = clinic.differences(found).axes
  rows = found["questions"] + found["controls"]
  assert [label.get_text() for label in axes.get_yticklabels()] == [clinic.title(r) for r in rows]
  drawn = [line.get_xdata() for line in axes.lines]
  for row in rows:
    for expected in (row["mixed"]["interval"], [row["mixed"]["mean"]], row["by_seed"]):
      assert any(list(x) == list(expected) for x in drawn), row["threshold"]


def test_a_damaged_file_is_refused_in_one_line(tmp_path, undrawn):
  write(tmp_path, content())
  file = tmp_path / "results" / "clinic.json"
  whole = json.loads(file.read_text())
  for break_it in (
    lambda x: x.pop("can_see"),
    lambda x: x["questions"][0]["mixed"].pop("interval"),
    lambda x: x["questions"].clear(),
    lambda x: x["patients"][0].update(fold="a"),
  ):
    broken = json.loads(json.dumps(whole))
    break_it(broken)
    file.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="is damaged") as raised:
      report.build(tmp_path)
    assert "\n" not in str(raised.value)
