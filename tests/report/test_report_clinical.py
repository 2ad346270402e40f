"""Tables 2 to 4, what is said of them, and directories that hold parts of a study."""

import csv
import json
import re

import pytest
from test_page import Parser, command_line, parse, problems, read, refused

from lus_jax import report
from lus_jax.report import clinical, figures, page, paper, schema
from lus_jax.report import text as text_lib

TASK_RUNS = ("study", "small", "other targets")
# arXiv 2508.15635, Tables 2 to 4, typed a second time.
PAPER = {
  "sf_change": """
     100 .327 .051 .511 .051
      80 .339 .049 .504 .057
      60 .348 .033 .515 .504
      50 .333 .022 .501 .025
      40 .363 .031 .515 .057
      20 .360 .049 .531 .061
       0 .362 .033 .497 .055""",
  "sf_ratio": """
     100 .3270 .0432 .3822 .0362 .3750 .0389
      80 .3468 .0439 .4076 .0550 .3948 .0531
      60 .2902 .0496 .3604 .0533 .3506 .0526
      50 .3644 .0245 .4186 .0245 .4078 .0225
      40 .3644 .0136 .4188 .0112 .4090 .0123
      20 .3708 .0580 .4284 .0641 .4190 .0641
       0 .3506 .0567 .3964 .0568 .3918 .0548""",
  "readmission": """
     100 .700 .209 .800 .274 .667 .204
      80 .700 .274 .800 .274 .700 .274
      60 .750 .177 .900 .224 .768 .224
      50 .550 .112 .700 .274 .533 .075
      40 .400 .137 .600 .418 .367 .217
      20 .550 .209 .500 .354 .567 .365
       0 .450 .209 .400 .418 .333 .312""",
}
MAIN = {
  "sf_change": ["accuracy3", "accuracy2_merged"],
  "sf_ratio": ["rmse_max", "rmse_mean", "rmse_median"],
  "readmission": ["accuracy", "recall", "precision"],
}


@pytest.fixture(params=TASK_RUNS)
def run(request, built):
  workdir = built(request.param)
  return workdir, parse(workdir)


def task_files(workdir):
  names = [file.stem for file in (workdir / "results").glob("*.json")]
  contents = {name: read(workdir, f"{name}.json") for name in names}
  return {name: content for name, content in contents.items() if "task" in content}


def found_at(workdir, at):
  file, pointer = at.split("#/")
  path = pointer.split("/")
  if file == "reported" and len(path) == 2:
    return paper.REPORTED[float(path[0])][path[1]]
  if file == "reported":
    task, threshold, key, k = path
    lines = {float(x[0]): x[1:] for x in map(str.split, PAPER[task].strip().splitlines())}
    return float(lines[100 * float(threshold)][2 * MAIN[task].index(key) + int(k)])
  content = read(workdir, file)
  for key in path:
    key = key.replace("~1", "/").replace("~0", "~")
    content = content[int(key) if isinstance(content, list) else key]
  return content


def test_every_number_equals_its_results_file(run):
  workdir, parsed = run
  assert not problems(parsed)
  values = parsed.find("data")
  assert len(values) > 200
  for _, attrs, text in values:
    expected = found_at(workdir, attrs["data-at"])
    if expected is None:
      assert text == "-"
    elif expected in ("none", "true") and "#/config" not in attrs["data-at"]:
      assert text == {"none": "video only", "true": "true masks"}[expected]
    elif isinstance(expected, list):
      assert text in (json.dumps(expected), ", ".join(map(str, expected)))
    elif isinstance(expected, str | bool):
      assert text == (expected if isinstance(expected, str) else json.dumps(expected))
    else:
      assert float(attrs["value"]) == expected
      if text == "< 0.001":
        assert expected < 0.001
      elif "%" in text:
        assert float(text.strip("> %")) / 100 == pytest.approx(expected)
      elif isinstance(expected, int) or "#/config" in attrs["data-at"]:
        assert float(text) == expected
      else:
        assert re.fullmatch(r"[+-]?\d+\.\d{3,4}", text)
        assert abs(float(text) - expected) <= 0.0005 + 1e-12
  for around, text in parsed.texts:
    if "td" in around and not {"data", "script", "style"} & set(around):
      assert not re.search(r"\d", text), "a number without a place"


def test_every_number_of_the_rows_and_summaries_is_on_the_page(run):
  workdir, parsed = run
  at = {attrs["data-at"] for _, attrs, _ in parsed.find("data")}
  for name, content in task_files(workdir).items():
    for part in ("rows", "patients"):
      for i, row in enumerate(content[part]):
        assert {f"{name}.json#/{part}/{i}/{key}" for key in row} <= at
    for i, row in enumerate(content["summary"]):
      with_baseline = {key for key in row["metrics"] if i == 0 or "majority" not in key}
      for key in with_baseline - {"rmse_constant"}:
        assert f"{name}.json#/summary/{i}/metrics/{key}/mean" in at
        assert f"{name}.json#/summary/{i}/metrics/{key}/sd" in at
        assert f"{name}.json#/summary/{i}/metrics/{key}/estimate" in at
        ends = {f"{name}.json#/summary/{i}/metrics/{key}/interval/{k}" for k in (0, 1)}
        assert (ends <= at) == (row["metrics"][key]["interval"] is not None)
      for j, one in enumerate(row["differences"]):
        assert f"{name}.json#/summary/{i}/differences/{j}/difference" in at
        ends = {f"{name}.json#/summary/{i}/differences/{j}/interval/{k}" for k in (0, 1)}
        assert (ends <= at) == (one["interval"] is not None)
      for j in range(len(row["comparisons"])):
        for key in ("difference", "p", "p_holm", "against"):
          assert f"{name}.json#/summary/{i}/comparisons/{j}/{key}" in at
    for i in range(len(content["folds"])):
      assert f"{name}.json#/folds/{i}/test" in at


def rows_of(workdir, name):
  with open(workdir / "report" / "tables" / f"{name}.csv") as file:
    return list(csv.DictReader(file))


def test_the_tables_in_their_order_with_full_precision(built):
  workdir = built("study")
  for name, content in task_files(workdir).items():
    rows = rows_of(workdir, f"{name}_scores")
    baseline = {"sf_ratio": "constant"}.get(name, "majority class")
    names = ["1.0", "0.8", "0.6", "0.5", "0.4", "0.2", "0.0", "none", "true", baseline]
    assert [row["threshold"] for row in rows] == names
    for row, summary in zip(rows, content["summary"], strict=False):
      for key, title in paper.TASKS[name].metrics.items():
        metric = summary["metrics"][key]
        found = [float(row[f"{title}, {x}"]) for x in ("mean", "sd", "estimate", "low", "high")]
        assert found == [metric["mean"], metric["sd"], metric["estimate"], *metric["interval"]]
    key, other = {
      "sf_change": ("2-class accuracy", "majority2"),
      "sf_ratio": ("RMSE of max", "rmse_constant"),
      "readmission": ("accuracy", "majority"),
    }[name]
    expected = content["summary"][0]["metrics"][other]
    assert float(rows[-1][f"{key}, mean"]) == expected["mean"]
    for row, line in zip(rows, PAPER[name].strip().splitlines(), strict=False):
      figures_ = [float(x) for key, x in row.items() if key.startswith("paper: ")]
      assert figures_ == [float(x) for x in line.split()[1:]]
    assert not any(x for row in rows[7:] for key, x in row.items() if key.startswith("paper: "))
    confusion = content.get("confusion")
    if confusion:
      found = rows_of(workdir, f"{name}_confusion")
      counts = [[int(x) for key, x in row.items() if key.startswith("pred")] for row in found]
      assert counts == [line for one in confusion for line in one["matrix"]]
  # Readmission's recall has no predictor beside it, and its row says nothing there.
  assert rows_of(workdir, "readmission_scores")[-1]["recall, mean"] == ""
  assert "(sic)" in section(parse(workdir), "Change of the S/F ratio")
  assert len(rows_of(workdir, "sf_ratio_comparisons")) == 11
  assert len(rows_of(workdir, "sf_ratio_predictions")) == 9 * 5 * 12 * 2
  undefined = rows_of(workdir, "readmission_more_scores")[0]
  assert undefined["undefined resamples: precision"] == "17"


def section(parsed, title):
  for tag, attrs, text in parsed.elements:
    if tag == "section" and attrs.get("id", "").startswith("task-"):
      text = " ".join(text.split())
      if text.startswith(title):
        return text
  raise AssertionError(f"no section {title}")


def test_too_few_patients_are_said_and_shown_and_nothing_is_ranked(built):
  workdir = built("small")
  text = section(parse(workdir), "S/F ratio")
  assert "4 test patients cannot decide which threshold is best" in text
  assert "smallest corrected p that any outcome could have reached is 1.000" in text
  assert "every grey dot is a patient" in text and "with 95% intervals" not in text
  assert "training variability" in text
  assert not re.search(r"has a (higher|lower)", text)
  assert "interval of the difference from" not in text
  found = text_lib.clinical(read(workdir, "sf_ratio.json"))
  assert "4 test patients cannot decide: thresholds are not ranked." in found


def test_small_samples_stay_unranked_whatever_their_p(make_tasks):
  workdir = make_tasks({"sf_ratio": {"patients": 8, "folds": 2, "epochs": 2, "found": True}})
  content = read(workdir, "sf_ratio.json")
  assert text_lib.decided(content) is None
  assert "lower" not in text_lib.clinical(content)


def test_a_decided_comparison_is_named_with_its_direction(built):
  workdir = built("study")
  parsed = parse(workdir)
  text = section(parsed, "S/F ratio of a patient-day")
  words = "60% has a lower RMSE of mean than > 0% (difference -0.123, corrected p 0.004)"
  assert words in text and len(re.findall(r"has a (?:lower|higher)", text)) == 1
  summary = next(" ".join(e[2].split()) for e in parsed.elements if e[1].get("id") == "summary")
  assert words in summary
  other = section(parsed, "Change of the S/F ratio")
  assert "no comparison of thresholds has a corrected p below .05" in other
  assert "has a higher" not in other and "12 test patients" in other
  assert "60% has a lower RMSE of mean than > 0% (corrected p 0.004)." in text_lib.clinical(
    read(workdir, "sf_ratio.json")
  )
  assert "chosen on validation patients" in text


def test_the_direction_follows_the_difference(built):
  content = read(built("study"), "sf_change.json")
  one = content["summary"][0]["comparisons"][1]
  one |= {"difference": 0.1, "p": 1e-5, "p_holm": 1.1e-4}
  assert text_lib.decided(content) == [(0, 1)]
  found = text_lib.clinical(content)
  assert "100% has a higher 3-class accuracy than 50% (corrected p < 0.001)." in found
  assert "lower" not in found
  one["p_holm"] = 0.05
  assert text_lib.decided(content) == []


def test_rows_beyond_the_predictor_without_a_video_are_listed(built):
  files = {"sf_ratio": read(built("study"), "sf_ratio.json")}
  summary = files["sf_ratio"]["summary"]
  for row in summary:
    row["differences"][0]["interval"] = [-0.1, 0.01]
  summary[2]["differences"][0]["interval"] = [-0.1, -0.01]
  summary[3]["differences"][0]["interval"] = [0.01, 0.1]  # a larger error
  summary[4]["differences"][1]["interval"] = [-0.1, -0.01]  # against video only
  facts = clinical.facts(files, "sf_ratio")
  assert (facts["beyond"], facts["side"]) == (["60%"], "below")
  assert (facts["behind"], facts["other_side"]) == (["50%"], "above")
  printed = text_lib.clinical(files["sf_ratio"])
  assert (
    "from the constant, which looks at no video, lies on the better side of 0 for: 60%." in printed
  )
  assert "lies on the worse side of 0 for: 50%." in printed
  # One of them is better, so the recipe is not what is wrong.
  assert not facts["advice"] and "epochs are too few" not in printed
  for row in summary:
    row["differences"][0]["interval"] = None
  assert clinical.facts(files, "sf_ratio")["beyond"] is None


def test_printed_tables_have_intervals_where_patients_allow_them(built):
  content = read(built("study"), "sf_change.json")
  printed = text_lib.clinical(content)
  one = content["summary"][0]["metrics"]["accuracy3"]
  low, high = one["interval"]
  assert f"{one['estimate']:.3f} [{low:.3f}, {high:.3f}]" in printed
  assert "every fold has one training seed" in printed
  text = section(parse(built("study")), "Change of the S/F ratio")
  assert "What another training seed would change" in text
  few = text_lib.clinical(read(built("small"), "sf_ratio.json"))
  assert "[0." not in few and "training seed" not in few


def test_folds_that_were_swapped_whole_are_said(built, make_tasks, monkeypatch):
  content = read(built("study"), "sf_ratio.json")
  n, n_folds = (content["summary"][0][key] for key in ("n_patients", "n_folds"))
  assert text_lib.swapped(content) == text_lib.patients(n)
  content["permuted"] = "folds"
  assert text_lib.swapped(content) == f"{n_folds} folds"
  for row in content["summary"]:
    row["can_decide"] = False
  assert f"{n_folds} folds cannot decide: thresholds are not ranked." in text_lib.clinical(content)

  workdir = make_tasks({"sf_ratio": {"sources": (0.5, 0.0), "folds": 2, "epochs": 2}})
  file = workdir / "results" / "sf_ratio.json"
  content = json.loads(file.read_text()) | {"permuted": "folds"}
  for row in content["summary"]:
    row |= {"can_decide": False, "smallest_attainable_p": 0.5}
  file.write_text(json.dumps(content))
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )
  text = section(Parser(report.build(workdir).read_text()), "S/F ratio of a patient-day")
  n = content["summary"][0]["n_patients"]
  assert f"{n} test patients in 2 folds cannot decide which threshold is best" in text
  assert f"with {n} test patients in 2 folds, which are swapped whole, the smallest" in text
  assert "by swapping the predictions of whole folds between two models" in text
  content["permuted"] = "rows"
  with pytest.raises(ValueError, match="permuted is 'rows', not patients or folds"):
    schema.check("sf_ratio", content, of="sf_ratio")


def test_the_majority_of_rotating_folds_stands_beside_the_share_of_all_tested(built):
  content = read(built("study"), "readmission.json")
  assert "rotating" not in text_lib.clinical(content)
  content["config"]["folds"] = {"n": 4, "cv": "rotate"}
  content["confusion"][0]["matrix"] = [[5, 7], [1, 7]]
  assert "this bar may be low: 0.600 of all that were tested" in text_lib.clinical(content)


def test_a_row_behind_the_majority_is_said_on_the_page(make_tasks, monkeypatch):
  workdir = make_tasks({"readmission": {"sources": (0.5, "none"), "folds": 2, "epochs": 2}})
  file = workdir / "results" / "readmission.json"
  content = json.loads(file.read_text())
  for row, interval in zip(content["summary"], ([-0.2, -0.1], [-0.1, 0.1]), strict=True):
    for one in row["differences"]:
      one["interval"] = interval
  content["config"]["folds"] = {"n": 2, "cv": "rotate"}
  file.write_text(json.dumps(content))
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )
  text = section(Parser(report.build(workdir).read_text()), "Readmission within 30 days")
  assert (
    "It lies below 0, which is the worse side, for: 50%. Often epochs are too few (train.epochs)"
    in text
  )
  assert "Often epochs are too few (train.epochs)" in text_lib.clinical(content)
  assert "so this bar may be low" in text


def test_other_targets_have_no_figures_of_the_paper(built):
  workdir = built("other targets")
  parsed = parse(workdir)
  assert not any("reported#" in attrs["data-at"] for _, attrs, _ in parsed.find("data"))
  text = section(parsed, "Estimate of <severity #1> & co")
  assert "paper's" not in text and "divided by 477" not in text
  assert "no thresholds were compared on its 19 test patients" in text
  assert "divided by 477" in section(parse(built("small")), "S/F ratio")
  assert "[P]" not in text_lib.clinical(read(workdir, "severity #1.json"))
  # In runs from before the constant is compared with the days' means alone.
  constant = rows_of(workdir, "severity #1_scores")[-1]
  assert constant["RMSE of mean, mean"] and not constant["RMSE of max, mean"]
  # Newer runs know its other errors too.
  content = read(workdir, "severity #1.json")
  metrics = content["summary"][0]["metrics"]
  for name, value in (("max", 0.875), ("median", 0.625)):
    metrics[f"rmse_constant_{name}"] = metrics["rmse_constant"] | {"estimate": value}
  (_, *cells) = clinical.scores({"x": content}, "x").rows[-1]
  mean = metrics["rmse_constant"]["estimate"]
  assert [cell.parts[4].value for cell in cells] == [0.875, mean, 0.625]
  assert all(f"{value:.3f} [" in text_lib.clinical(content) for value in (0.875, mean, 0.625))


def test_what_users_wrote_is_text(built):
  workdir = built("other targets")
  html = (workdir / "report" / "index.html").read_text()
  for tag in ("<b>", "<em>", "<visit>", "<lungs>", "<i>", "<worse>", "<severity"):
    assert tag not in html
  text = section(parse(workdir), "Patients by <cov_test> & co")
  assert "<b>patient 0</b>" in text and "<em>a</em>, b" in text and "One <visit>." in text
  assert "segmentation models come from another data set (lus_phantom)" in text
  assert "another data set" not in section(parse(built("small")), "S/F ratio")


def test_without_segmentation_files_nothing_is_missing(built):
  workdir = built("small")
  parsed = parse(workdir)
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  ids = [attrs["id"] for tag, attrs, _ in parsed.elements if tag == "section" and "id" in attrs]
  assert ids == ["summary", "task-1", "repeat"]
  links = {attrs["href"] for _, attrs, _ in parsed.find("a") if attrs["href"].startswith("#")}
  assert links == {"#summary", "#task-1", "#repeat"}
  ((_, _, title),) = parsed.find("title")
  assert title == "lus_phantom: S/F ratio of a patient-day by confidence threshold"


def test_a_study_has_all_tables_in_order(built):
  parsed = parse(built("study"))
  captions = [text.split(".")[0] for _, _, text in parsed.find("caption")]
  assert [x for x in captions if x.startswith("Table")] == [f"Table {k}" for k in (1, 2, 3, 4)]
  ((_, _, title),) = parsed.find("title")
  assert title.startswith("lus_phantom: segmentation and downstream tasks")


@pytest.mark.parametrize(
  "damage",
  ["cut", "stripped", "emptied", "history emptied", "no confusion", "odd interval", "odd row"],
)
def test_a_damaged_file_is_refused(make_tasks, damage):
  small = {"sources": (0.5, "none"), "folds": 2, "epochs": 2}
  workdir = make_tasks({"sf_change": small, "sf_ratio": small})
  target = workdir / "results" / "sf_change.json"
  content = read(workdir, "sf_change.json")
  if damage == "cut":
    target.write_text(target.read_text()[:300])
  elif damage == "stripped":
    target.write_text(json.dumps({"schema": 1, "task": "sf_change", "rows": []}))
  elif damage == "emptied":
    target.write_text(json.dumps(content | {"summary": [{}], "rows": [{}]}))
  elif damage == "no confusion":
    del content["confusion"]
    target.write_text(json.dumps(content))
  elif damage == "odd row":
    content["rows"][1]["majority3"] = "<b>"
    target.write_text(json.dumps(content))
  elif damage == "odd interval":
    content["summary"][1]["metrics"]["accuracy3"]["interval"] = [0.1]
    target.write_text(json.dumps(content))
  else:
    target = workdir / "results" / "sf_change_history.json"
    target.write_text(json.dumps(read(workdir, target.name) | {"rows": [{}]}))
  assert refused(workdir, target.name)


def test_a_missing_history_is_named_and_the_rest_is_shown(make_tasks, monkeypatch):
  small = {"sources": (0.5, "none"), "folds": 2, "epochs": 2}
  workdir = make_tasks({"sf_change": small, "sf_ratio": small})
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )
  (workdir / "results" / "sf_change_history.json").unlink()
  parsed = Parser(report.build(workdir).read_text())
  (line,) = problems(parsed)
  assert "sf_change_history.json does not exist" in line
  assert "Change of the S/F ratio" in [text for _, _, text in parsed.find("h2")]
  assert parsed.find("p", class_="missing")


def test_tables_have_numbers_of_their_own(built):
  """The paper's keep its numbers; what asks something else has another, and no figures of it."""
  contents = [read(built("study"), f"{name}.json") for name in ("sf_ratio", "readmission")]
  assert page.table_numbers(contents) == [3, 4]
  ratio, readmission = contents
  severity = ratio | {"target": "severity"}
  assert page.table_numbers([severity, ratio, readmission, ratio]) == [5, 3, 4, 6]
  elsewhere = ratio | {"segmentation": ratio["segmentation"] | {"same_data_set": False}}
  single = readmission | {"config": readmission["config"] | {"days": "single"}}
  assert page.table_numbers([elsewhere, single]) == [5, 6]
  for content in (severity, elsewhere, single):
    found = text_lib.clinical(content)
    assert "[P]" not in found and found.startswith("Table of ")
  assert "S/F ratio of a patient-day" in text_lib.clinical(elsewhere)
  rotated = {**ratio, "config": ratio["config"] | {"folds": {"n": 4, "cv": "rotate"}}}
  assert "12 test patients, 5 folds, each the test once." in text_lib.clinical(rotated)


def test_auroc_sensitivity_and_specificity_are_in_the_table(make_tasks, monkeypatch):
  workdir = make_tasks({"readmission": {"sources": (0.5, "none"), "folds": 2, "epochs": 2}})
  file = workdir / "results" / "readmission.json"
  content = json.loads(file.read_text())
  for row in content["summary"]:
    one = row["metrics"]["recall"]
    row["metrics"] |= {name: one | {"estimate": 0.625} for name in ("auroc", "specificity")}
    row["metrics"]["sensitivity"] = {
      "mean": None, "sd": None, "estimate": None, "interval": None, "undefined_resamples": 0
    }  # fmt: skip
  file.write_text(json.dumps(content))
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )
  parsed = Parser(report.build(workdir).read_text())
  row = rows_of(workdir, "readmission_scores")[0]
  assert (row["AUROC, estimate"], row["specificity, estimate"]) == ("0.625", "0.625")
  assert row["sensitivity, mean"] == ""
  assert "AUROC is the share of pairs" in section(parsed, "Readmission within 30 days")
  assert "AUROC" in text_lib.clinical(content)


def test_a_history_alone_is_nothing_to_report(make_tasks):
  workdir = make_tasks({"sf_ratio": {"folds": 2, "epochs": 2, "sources": (0.5,)}})
  (workdir / "results" / "sf_ratio.json").unlink()
  result = command_line(workdir)
  assert (result.returncode, result.stdout) == (2, "")
  assert "no readable results file" in result.stderr


def svg_texts(workdir, name):
  svg = (workdir / "report" / "figures" / f"{name}.svg").read_text()
  return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_the_figures_show_the_numbers(built):
  workdir = built("study")
  content = read(workdir, "sf_change.json")
  counts = [str(n) for one in content["confusion"] for line in one["matrix"] for n in line]
  texts = svg_texts(workdir, "sf_change_confusion")
  start = texts.index(counts[0])
  assert [x for x in texts[start:] if x.isdigit()] == counts
  sources = ["100%", "80%", "60%", "50%", "40%", "20%", "&gt; 0%", "video only", "true masks"]
  assert [x for x in svg_texts(workdir, "sf_ratio_predicted") if x in sources] == sources


def drawn(monkeypatch, draw, *args):
  """The axes of a figure."""
  kept = []
  monkeypatch.setattr(figures, "new_figure", keep(figures.new_figure, kept))
  figures.render(draw, *args)
  return kept[0].axes


def keep(make, kept):
  def kept_make(*args, **options):
    kept.append(make(*args, **options))
    return kept[-1]

  return kept_make


def test_intervals_stand_where_the_file_has_them(built, monkeypatch):
  content = read(built("study"), "sf_ratio.json")
  axes = drawn(monkeypatch, figures.by_source, content)
  assert [a.get_ylabel() for a in axes] == ["RMSE of max", "RMSE of mean", "RMSE of median"]
  bars = [x for x in axes[1].containers]
  assert len(bars) == 9 and not axes[1].collections[9:]
  for bar, row in zip(bars, content["summary"], strict=True):
    metric = row["metrics"]["rmse_mean"]
    ((low, high),) = [segment[:, 1] for segment in bar[2][0].get_segments()]
    assert [low, high] == pytest.approx(metric["interval"])
    assert bar[0].get_ydata() == pytest.approx([metric["estimate"]])
  level = content["summary"][0]["metrics"]["rmse_constant"]["estimate"]
  assert axes[1].lines[0].get_ydata() == pytest.approx([level, level])


def test_few_patients_are_all_dots(built, monkeypatch):
  content = read(built("small"), "sf_ratio.json")
  axes = drawn(monkeypatch, figures.by_source, content)
  for i, row in enumerate(content["summary"]):
    mine = [p["rmse_max"] for p in content["patients"] if p["threshold"] == row["threshold"]]
    dots = [c for c in axes[0].collections if len(c.get_offsets()) == 4]
    assert sorted(dots[i].get_offsets()[:, 1]) == pytest.approx(sorted(mine))


def test_predictions_are_averaged_over_folds(built, monkeypatch):
  content = read(built("study"), "sf_ratio.json")
  panel = drawn(monkeypatch, figures.predicted, content)[7]
  assert panel.get_title() == "video only"
  rows = [r for r in content["predictions"] if r["threshold"] == "none"]
  mine = [r for r in rows if (r["patient"], r["day"]) == ("p03", 3)]
  assert len(mine) == 5
  point = (mine[0]["measured"], sum(r["mean"] for r in mine) / 5)
  (dots,) = panel.collections
  assert len(dots.get_offsets()) == 24
  assert any(offset == pytest.approx(point) for offset in dots.get_offsets().tolist())


def test_training_curves_are_means_over_folds(built, monkeypatch):
  rows = read(built("small"), "sf_ratio_history.json")["rows"]
  axes = drawn(monkeypatch, figures.source_curves, rows, "RMSE of mean")
  for key, panel in zip(("train_loss", "loss", "score"), axes, strict=True):
    for threshold, line in zip((0.6, 0.0, "none"), panel.lines, strict=True):
      for epoch, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
        mine = [r[key] for r in rows if (r["threshold"], r["epoch"]) == (threshold, epoch)]
        assert len(mine) == 2 and y == pytest.approx(sum(mine) / 2)


def test_results_from_before_there_were_two_readings_keep_their_own(built):
  content = read(built("study"), "sf_change.json")
  now = text_lib.clinical(content)
  assert "2-class accuracy" in now and "2-class by summed P" in now
  for row in content["summary"]:
    row["metrics"] = {key: x for key, x in row["metrics"].items() if "merged" not in key}
  schema.check("sf_change", content, of="sf_change")
  before = text_lib.clinical(content)
  header = before.splitlines()[1].split("|")[0]
  assert "2-class by summed P" in header and "2-class accuracy" not in header
  figures.by_source(content)
