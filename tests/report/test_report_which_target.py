"""The study of targets on the page, in its figure and in the text table."""

import csv
import functools
import json
import re

import numpy as np
import pytest
import test_page
from matplotlib.colors import to_hex
from test_page import Parser, parse, problems, read, refused

from lus_jax import files, palette, report
from lus_jax.report import dose, figures, which_target
from lus_jax.report import text as text_lib
from tfds_builders.lus_phantom import annotator

RUNS = ("targets", "few targets")
FILE = "which_target.json"


@pytest.fixture(params=RUNS)
def run(request, built):
  workdir = built(request.param)
  return workdir, parse(workdir), read(workdir, FILE)


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are drawn, but not turned into files: that takes most of the time."""
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )


def rows_of(workdir, name):
  with open(workdir / "report" / "tables" / f"{name}.csv") as file:
    return list(csv.DictReader(file))


def words(parsed, name):
  (text,) = [e[2] for e in parsed.find("section") if e[1].get("id") == name]
  return " ".join(text.split())


def verdicts(parsed):
  return [" ".join(text.split()) for _, _, text in parsed.find("li", class_="verdict")]


def claims(parsed):
  return [" ".join(text.split()) for _, _, text in parsed.find("li", class_="claim")]


def at_pointer(content, at):
  """What stands at a place of the results file, which is read once."""
  file, pointer = at.split("#/")
  assert file == FILE
  return functools.reduce(
    lambda found, key: found[int(key) if isinstance(found, list) else key],
    pointer.split("/"),
    content,
  )


def row_at(content, *key):
  (row,) = [r for r in content["rows"] if (r["setting"], r["weights"], r["metric"]) == key]
  return row


def test_every_number_equals_its_results_file(run):
  _, parsed, content = run
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  values = parsed.find("data")
  assert len(values) > 150
  for _, attrs, text in values:
    at, expected = attrs["data-at"], at_pointer(content, attrs["data-at"])
    if re.search("/questions/./(member|against)$", at):
      words = {"truest": "the truest label's own"}
      assert text == words.get(expected) or text == which_target.member(expected)
    elif "/fit/" in at and at.endswith("/member"):
      assert text == text_lib.member_label(expected)
    elif at.endswith(("/member", "/against", "/threshold")):
      assert text == which_target.member(expected)
    elif isinstance(expected, str | list | bool) or "#/config" in at:
      assert text == (expected if isinstance(expected, str) else json.dumps(expected))
    elif at.endswith(("/studies_with_answers", "/below_level")):
      tried = content["null_studies"]
      of = tried["studies" if "studies_" in at else "questions"]
      assert text == f"{expected} ({expected / of:.1%})"
    elif isinstance(expected, int):
      assert text == str(expected)
    elif text == "< 0.001":
      assert expected < 0.001
    else:
      assert re.fullmatch(r"[-+]?\d\.\d{3}", text)
      assert abs(float(text) - expected) <= 0.0005 + 1e-12
      signed = "/difference" in at or "/interval" in at and not re.search("/(means|labels)/", at)
      assert (text[0] in "+-") == signed
    assert attrs["value"] == ("" if expected is None else str(expected))
  for around, text in parsed.texts:
    if not {"data", "script", "style", "pre", "caption"} & set(around):
      assert "td" not in around or not re.search(r"\d", text), "a number without a place"
      assert set(re.findall(r"\d*\.\d+", text)) <= {".5", ".05", "2508.15635"}


def test_every_row_is_on_the_page(run):
  _, parsed, content = run
  shown = {attrs["data-at"] for _, attrs, _ in parsed.find("data")}

  def has(path, one, *keys):
    found = {f"{FILE}#/{path}/{key}" for key in keys}
    ends = {f"{FILE}#/{path}/interval/{k}" for k in (0, 1)}
    assert found <= shown
    assert (ends <= shown) == (one["interval"] is not None)

  for i, row in enumerate(content["rows"]):
    for j, one in enumerate(row["means"]):
      has(f"rows/{i}/means/{j}", one, "mean")
  for i, one in enumerate(content["questions"]):
    has(
      f"questions/{i}", one, "setting", "member", "against", "difference", "p", "p_holm", "answer"
    )
  for i in range(len(content["fit"])):
    assert {f"{FILE}#/fit/{i}/{key}" for key in ("member", "fit_train", "fit_test")} <= shown
  for i, one in enumerate(content["levels"]):
    has(f"levels/{i}", one, "ordinal", "separate", "difference")
  for key in ("scales", "spread"):
    for i, one in enumerate(content[key]):
      has(f"{key}/{i}", one, "none", "mean", "difference", "p_holm")
  for i, one in enumerate(content["labels"]):
    has(f"labels/{i}", one, "mean")
  for key in content["null_studies"] or ():
    assert f"{FILE}#/null_studies/{key}" in shown


def test_it_is_a_whole_page_of_its_own(run):
  _, parsed, content = run
  assert [text for _, _, text in parsed.find("h1")] == [
    "Which target is worth learning? lus_phantom"
  ]
  ids = {attrs["id"] for tag, attrs, _ in parsed.elements if tag == "section" and "id" in attrs}
  assert ids == {"summary", "which-target", "repeat"}
  assert not parsed.find("div", class_="viewer")
  settings = content["config"]["study"]["settings"]
  text = words(parsed, "which-target")
  assert [h for _, _, h in parsed.find("h3") if h in settings] == settings
  for setting in settings:
    assert which_target.SETTINGS[setting][1:] in text


@pytest.mark.parametrize("name", RUNS)
def test_it_keeps_the_rules_of_every_page(built, name):
  run = built(name), parse(built(name)), name
  test_page.test_everything_has_a_name_for_those_who_do_not_see_it(run)
  test_page.test_the_page_loads_nothing_and_its_links_lead_somewhere(run)
  test_page.test_the_same_results_give_the_same_bytes(built, name)


def test_every_setting_of_the_phantom_has_its_words():
  assert set(which_target.SETTINGS) == set(annotator.SETTINGS)
  words = which_target.setting_words("true_from_0.6")
  assert "mostly true from a confidence of 60% on and mostly false below it" in words


def test_doses_and_responses_stand_on_the_page(built):
  workdir, parsed, content = built("doses"), parse(built("doses")), read(built("doses"), FILE)
  test_page.test_everything_has_a_name_for_those_who_do_not_see_it((workdir, parsed, "doses"))
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  assert "Dose and response" in [text for _, _, text in parsed.find("h3")]
  assert "mostly true from a confidence of 40% on" in words(parsed, "which-target")
  shown = {attrs["data-at"]: text for _, attrs, text in parsed.find("data")}
  assert len(content["dose"]) == 5  # labels, and networks by weights and score
  for i, one in enumerate(content["dose"]):
    assert one["doses"] == [0, 0.4, 0.8]
    for j, best in enumerate(one["best"]):
      assert shown[f"{FILE}#/dose/{i}/best/{j}"] == which_target.member(best)
  pairs = content["dose"][0]["overtakes"]
  assert [(pair["threshold"], pair["against"]) for pair in pairs] == [
    (0.8, 0.0), (0.5, 0.0), (0.4, 0.0), (0.8, 0.5),
  ]  # fmt: skip
  # Networks with all-ones weights were trained for two thresholds only.
  for i, one in enumerate(content["dose"]):
    for j, pair in enumerate(pairs):
      found = [
        row["dose"]
        for row in one["overtakes"]
        if (row["threshold"], row["against"]) == (pair["threshold"], pair["against"])
      ]
      title = dose.title(one)
      row = rows_of(workdir, "which_target_overtakes")[j]
      assert row[title] == ("" if not found or found[0] is None else str(found[0]))
      if found:
        at = f"{FILE}#/dose/{i}/overtakes/{one['overtakes'].index(pair | {'dose': found[0]})}/dose"
        assert shown[at] == dose.dial(found[0])
  best = rows_of(workdir, "which_target_dose")
  assert [float(row["80%"]) for row in best] == [one["best"][2] for one in content["dose"]]
  assert (workdir / "report" / "figures" / "which_target_dose.svg").exists()
  assert not parse(built("targets")).find("table", id="which_target_dose")
  assert "Dose and response" not in words(parse(built("targets")), "which-target")


def test_the_figure_of_doses_shows_every_answer_and_its_best(built):
  answers = read(built("doses"), FILE)["dose"]
  drawn = dose.by_dose(answers)
  panels = [axes for axes in drawn.axes if axes.get_title()]
  assert [axes.get_title() for axes in panels] == [dose.title(one) for one in answers]
  for one, axes in zip(answers, panels, strict=True):
    *lines, rings = axes.get_lines()
    assert [line.get_ydata().tolist() for line in lines] == one["means"]
    assert all(line.get_xdata().tolist() == [0, 40, 80] for line in lines)
    assert rings.get_ydata().tolist() == np.max(one["means"], axis=0).tolist()


def test_answers_stand_first_and_undecided_questions_after_them(built):
  parsed = parse(built("targets"))
  assert claims(parsed) == [
    "faint_true: is > 0% better than 50%? yes; AP +0.041 [+0.011, +0.061], corrected p < 0.001.",
    "null: is 100% better than 50%? no; AP -0.032 [-0.062, -0.012], corrected p 0.012.",
  ]
  assert verdicts(parsed) == [
    "mean of all settings: is soft better than > 0%? undecided; AP +0.002 [-0.028, +0.022], "
    "corrected p 0.900."
  ]
  text = words(parsed, "which-target")
  assert "nothing else is tested here" in text and "Of 200" not in text


def test_few_cohorts_cannot_decide(built):
  parsed = parse(built("few targets"))
  assert not claims(parsed)
  first, *_ = found = verdicts(parsed)
  assert len(found) == 3 and "[" not in first
  assert "undecided, for so few cohorts cannot decide; AP" in first
  text = words(parsed, "which-target")
  assert "too few cohorts for intervals" in text and "95% intervals" not in text
  assert "One ordinal network" not in text and "Where there is nothing to find" not in text


def test_a_study_without_questions_says_so(make_targets, undrawn):
  workdir = make_targets(settings=("null",), seeds=2, found=False, null_studies=0)
  file = workdir / "results" / FILE
  # As of an older version, whose verdicts are not shown any more.
  old = {k: v for k, v in read(workdir, FILE).items() if k not in ("questions", "fit")}
  del old["null_studies"]
  file.write_text(json.dumps(files.seal(old | {"null_repeats": {}})))
  report.build(workdir)
  parsed = parse(workdir)
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  assert "No question was set before this study ran" in words(parsed, "which-target")
  assert not claims(parsed) and not verdicts(parsed)


def test_what_may_not_be_said(run):
  _, parsed, _ = run
  text = words(parsed, "summary")
  assert "Which target is best for real patients" in text and "no medical device" in text
  assert "That the highest mean of a table is the best, or that members are equal" in text
  assert "Of everything else: nothing." in text
  assert "by the same truth, not by their own labels" in text


def test_members_stand_in_the_rows_of_their_family(built):
  workdir, content = built("targets"), read(built("targets"), FILE)
  for setting in content["config"]["study"]["settings"]:
    for weights in ("paper", "ones"):
      rows = rows_of(workdir, f"which_target_{setting}_{weights}")
      assert [row["member"] for row in rows][:2] == ["1.0", "0.8"]
      assert [row["member"] for row in rows][-3:] == ["soft", "softseg", "ordinal_ones"]
      for metric, title in which_target.METRICS.items():
        means = row_at(content, setting, weights, metric)["means"]
        assert [float(row[title]) for row in rows] == [one["mean"] for one in means]
        ends = [[float(row[f"{title}, {end}"]) for end in ("low", "high")] for row in rows]
        assert ends == [one["interval"] for one in means]


def test_the_table_of_answers(built):
  workdir, content = built("targets"), read(built("targets"), FILE)
  rows = rows_of(workdir, "which_target_answers")
  assert [row["question"] for row in rows] == ["1", "2", "3"]
  for row, one in zip(rows, content["questions"], strict=True):
    assert (row["setting"], row["answer"]) == (one["setting"], one["answer"])
    assert (row["member"], row["better than"]) == (str(one["member"]), str(one["against"]))
    assert float(row["difference, low"]) == one["interval"][0]
    assert float(row["p, corrected (Holm)"]) == one["p_holm"]
  rows = rows_of(workdir, "which_target_fit")
  assert len(rows) == len(content["fit"]) == 4 * 17
  assert float(rows[3]["training frames"]) == content["fit"][3]["fit_train"]


def test_levels_stand_beside_separate_networks(built):
  workdir, content = built("targets"), read(built("targets"), FILE)
  first = rows_of(workdir, "which_target_levels")
  more = rows_of(workdir, "which_target_more_levels")
  assert len(first) == len(more) == 4 * 7
  by_key = {(r["setting"], r["threshold"], r["metric"]): r for r in content["levels"]}
  for row, other in zip(first, more, strict=True):
    key = row["setting"], float(row["threshold"])
    for table, metric in ((row, "average_precision"), (row, "dice"), (other, "ece")):
      title, one = which_target.METRICS[metric], by_key[*key, metric]
      assert float(table[f"{title}, ordinal"]) == one["ordinal"]
      assert float(table[f"{title}, separate"]) == one["separate"]
      assert float(table[f"{title}, difference, high"]) == one["interval"][1]


def test_the_truth_of_labels_stands_by_threshold(built):
  workdir, content = built("targets"), read(built("targets"), FILE)
  rows = rows_of(workdir, "which_target_labels")
  assert [float(row["threshold"]) for row in rows] == list(content["config"]["sweep"]["thresholds"])
  for one in content["labels"]:
    (row,) = (row for row in rows if float(row["threshold"]) == one["threshold"])
    assert float(row[one["setting"]]) == one["mean"]
    assert float(row[f"{one['setting']}, high"]) == one["interval"][1]


def test_ways_to_standardise_stand_beside_none(built):
  workdir, content = built("targets"), read(built("targets"), FILE)
  rows = rows_of(workdir, "which_target_scales")
  assert len(rows) == len(content["scales"]) == 4 * 2 * 2
  for row, one in zip(rows, content["scales"], strict=True):
    assert (row["setting"], row["one scale by"]) == (one["setting"], "quantile")
    assert row["member"] == one["member"]
    assert row["metric"] == which_target.METRICS[one["metric"]]
    assert (float(row["as painted"]), float(row["one scale"])) == (one["none"], one["mean"])
    assert float(row["difference, low"]) == one["interval"][0]
    assert float(row["p, corrected (Holm)"]) == one["p_holm"]
  rows = rows_of(workdir, "which_target_spread")
  assert [float(row["as painted"]) for row in rows] == [one["none"] for one in content["spread"]]
  files = {"which_target": content}
  table = which_target.scales(files, key="scales", name="x")
  assert table.groups == (2, 4, 6, 8, 10, 12, 14)
  assert which_target.scales(files, key="spread", name="x").groups == (1, 2, 3)
  few = {"which_target": read(built("few targets"), FILE)}
  assert which_target.scales(few, key="scales", name="x") is None


def test_every_cohort_is_a_file(built):
  rows = rows_of(built("targets"), "which_target_cohorts")
  units = read(built("targets"), FILE)["units"]
  assert len(rows) == len(units) == 12 * 4 * 17
  assert [(row["member"], float(row["AP"])) for row in rows] == [
    (unit["member"], unit["average_precision"]) for unit in units
  ]


def test_the_figure_shows_the_means_of_every_setting(built):
  content = read(built("targets"), FILE)
  drawn = which_target.by_threshold(content["rows"])
  assert len(drawn.axes) == 8
  settings = content["config"]["study"]["settings"]
  assert [axes.get_ylabel() for axes in drawn.axes[::2]] == settings
  assert [axes.get_title() for axes in drawn.axes[:2]] == [
    "AP against the truth",
    "Dice against the truth",
  ]
  for i, setting in enumerate(settings):
    for j, metric in enumerate(("average_precision", "dice")):
      axes = drawn.axes[2 * i + j]
      lines = {to_hex(line.get_color()): line for line in axes.lines if len(line.get_xdata()) == 7}
      for weights, k in (("paper", 4), ("ones", 5)):
        means = row_at(content, setting, weights, metric)["means"]
        line = lines[palette.css(k)]
        assert list(line.get_xdata()) == pytest.approx([0, 20, 40, 50, 60, 80, 100])
        assert list(line.get_ydata()) == [one["mean"] for one in means[6::-1]]
      levels = {line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2}
      assert levels == {one["mean"] for one in means[7:]}
      assert len(axes.collections) == 2  # the intervals of both families
  legend = {text.get_text() for text in drawn.legends[0].get_texts()}
  assert {"soft", "softseg", "ordinal_ones", "thresholds, all-ones weights"} <= legend
  few = which_target.by_threshold(read(built("few targets"), FILE)["rows"])
  assert len(few.axes) == 2 and not few.axes[0].collections


def test_the_text_table_says_the_same(built):
  content = read(built("targets"), FILE)
  text = which_target.text(content)
  lines = text.splitlines()
  at = lines.index("faint_true, all-ones weights")
  means = [
    row_at(content, "faint_true", "ones", m)["means"][6]["mean"] for m in which_target.METRICS
  ]
  assert lines[at + 9].split() == [">", "0%", *(f"{mean:.3f}" for mean in means)]
  assert lines[1] == (
    "1. faint_true: is > 0% better than 50%? yes; AP +0.041 [+0.011, +0.061], corrected p < 0.001"
  )
  assert "2. mean of all settings: is soft better than > 0%? undecided; AP +0.002" in lines[2]
  mine = [x for x in content["levels"] if (x["setting"], x["metric"]) == ("null", "ece")]
  mean = sum(x["ordinal"] for x in mine) / len(mine)
  assert any(line.split()[:3] == ["null", "ECE", f"{mean:.3f}"] for line in lines)
  assert (
    "Of 200 studies in which all members had one target, 4 (2.0%) answered a question; of 600 "
    "comparisons 27 (4.5%) had p < .05 before the correction." in lines
  )
  spread = [line.split() for line in lines if "spread of experts" in line]
  assert len(spread) == 4 and spread[0][:2] == ["faint_true", "quantile"]
  assert spread[0][5:7] == [f"{content['spread'][0][key]:.3f}" for key in ("none", "mean")]
  few = which_target.text(read(built("few targets"), FILE))
  assert few.count("undecided (2 cohorts cannot decide)") == 3


def test_names_of_members():
  names = [0.0, 0.5, "soft", "ordinal_ones", "threshold_0.5_dice", None]
  shown = ["> 0%", "50%", "soft", "ordinal_ones", "50% dice", "none"]
  assert [which_target.member(name) for name in names] == shown


def test_it_stands_beside_other_results(make_run, make_targets, undrawn):
  workdir = make_run(thresholds=(0.5, 0.0), classes=("a_line",))
  alone = Parser(report.build(workdir).read_text())
  assert not [e for e in alone.find("section") if e[1].get("id") == "which-target"]
  target = make_targets(seeds=2) / "results" / FILE
  (workdir / "results" / FILE).write_bytes(target.read_bytes())
  parsed = Parser(report.build(workdir).read_text())
  assert not problems(parsed)
  assert "Which target?" in words(parsed, "summary")
  shown = {attrs["data-at"] for _, attrs, _ in parsed.find("data")}
  assert f"{FILE}#/rows/0/means/0/mean" in shown and "segmentation.json#/rows/0/iou" in shown
  assert parsed.find("h1")[0][2] == "Segmentation by confidence threshold: lus_phantom"


@pytest.mark.parametrize("damage", ["cut", "stripped", "rows", "levels", "questions"])
def test_a_damaged_file_is_refused(make_targets, damage):
  workdir = make_targets(settings=("null",), seeds=2, found=False)
  file = workdir / "results" / FILE
  if damage == "cut":
    file.write_text(file.read_text()[:5])
  elif damage == "stripped":
    file.write_text(json.dumps({"schema": 1}))
  else:
    file.write_text(json.dumps(read(workdir, FILE) | {damage: [{}]}))
  assert refused(workdir, FILE)
