"""The page of a run: every number of it stands in a results file, whatever the run was."""

import base64
import csv
import html.parser
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest

from lus_jax import report
from lus_jax.report import figures, page, palette, tables

SEGMENTED = ("phantom", "one class, one threshold", "two seeds")
RUNS = (*SEGMENTED, "several raters", "few raters", "study", "small", "other targets")
FILES = [*(f"{name}.json" for name in page.FILES), page.EXAMPLES]
VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Parser(html.parser.HTMLParser):
  """Elements as (tag, attributes, text inside), and text by the tags and classes around it."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts, self._open = [], [], []
    self.feed(text)
    assert not self._open, "an element is not closed"

  def handle_starttag(self, tag, attrs):
    element = [tag, dict(attrs), ""]
    self.elements.append(element)
    if tag not in VOID:
      self._open.append(element)

  def handle_endtag(self, tag):
    assert self._open and self._open.pop()[0] == tag, f"</{tag}> closes another element"

  def handle_data(self, data):
    around = [element[0] for element in self._open]
    around += [element[1].get("class") for element in self._open]
    self.texts.append((around, data))
    for element in self._open:
      element[2] += data

  def find(self, tag, **attrs):
    found = [element for element in self.elements if element[0] == tag]
    return [e for e in found if all(e[1].get(k.rstrip("_")) == v for k, v in attrs.items())]


SMALL = {"thresholds": (0.5, 0.0), "classes": ("a_line",)}


@pytest.fixture(params=SEGMENTED)
def run(request, built):
  """The directory of a run with segmentation alone, its page and the name of the run."""
  workdir = built(request.param)
  return workdir, parse(workdir), request.param


@pytest.fixture(params=RUNS)
def any_run(request, built):
  """The same for any run."""
  workdir = built(request.param)
  return workdir, parse(workdir), request.param


@pytest.fixture
def phantom(built):
  return built("phantom")


def parse(workdir):
  return Parser((workdir / "report" / "index.html").read_text())


def read(workdir, name):
  return json.loads((workdir / "results" / name).read_text())


def at_pointer(workdir, at):
  file, pointer = at.split("#")
  if file == "reported":
    _, threshold, key = pointer.split("/")
    return tables.REPORTED[float(threshold)][key]
  content = read(workdir, file)
  for key in pointer.split("/")[1:]:
    key = key.replace("~1", "/").replace("~0", "~")
    content = content[int(key) if isinstance(content, list) else key]
  return content


def test_every_number_on_the_page_equals_its_results_file(run):
  workdir, parsed, name = run
  values = parsed.find("data")
  assert len(values) > 30
  assert not problems(parsed)
  for _, attrs, text in values:
    expected = at_pointer(workdir, attrs["data-at"])
    if expected is None:
      assert (attrs["value"], text) == ("", "-")
    elif isinstance(expected, str | list | bool):
      assert text == (expected if isinstance(expected, str) else json.dumps(expected))
    else:
      assert float(attrs["value"]) == expected
      if "%" in text:
        assert float(text.strip("> %")) / 100 == pytest.approx(expected)
      elif "#/config" in attrs["data-at"] or isinstance(expected, int):
        assert float(text) == expected
      else:
        assert re.fullmatch(r"\d+\.\d{3}", text)
        assert abs(float(text) - expected) <= 0.0005 + 1e-12

  # Apart from those, numbers are only named thresholds, test frames and fixed explanations.
  known = {".5", ".05", "2508.15635"}
  rest = ""
  for around, text in parsed.texts:
    if not {"data", "style", "script", "pre", "caption", "title"} & set(around):
      assert "td" not in around or not re.search(r"\d", text)
      rest += text + " " if not {"lead", "threshold", "index"} & set(around) else " "
  assert set(re.findall(r"\d*\.\d+", rest)) <= known
  results = read(workdir, "segmentation.json")
  shown = {text for _, _, text in parsed.find("span", class_="threshold")}
  assert shown == {tables.percent(t) for t in results["config"]["sweep"]["thresholds"]}
  indices = [int(text) for _, _, text in parsed.find("span", class_="index")]
  assert sorted(indices) == [0, 4, 5]
  assert ("paper: IoU" in rest) == (name == "phantom")


def test_the_tables_hold_every_row(run):
  workdir, parsed, name = run
  at = [attrs["data-at"] for _, attrs, _ in parsed.find("data")]
  results = read(workdir, "segmentation.json")
  for part in ("rows", "predictors"):
    for i in range(len(results[part])):
      for key in ("iou", "weighted_ce", "ce", "trimap", "weighted_ce_ref", "dice", "ece"):
        assert f"segmentation.json#/{part}/{i}/{key}" in at
  for i in range(len(read(workdir, "segmentation_matrix.json")["rows"])):
    assert f"segmentation_matrix.json#/rows/{i}/iou" in at
  assert sum("reported#" in x for x in at) == (28 if name == "phantom" else 0)
  for key in ("/seed", "/sweep/thresholds", "/optimizer/learning_rate"):
    assert f"segmentation.json#/config{key}" in at


def test_predictions_carry_the_iou_of_their_case_and_threshold(run):
  workdir, parsed, _ = run
  results = read(workdir, "cases.json")
  thresholds = results["config"]["sweep"]["thresholds"]
  suffix = "_seed_0" if results["config"]["sweep"]["seeds"] > 1 else ""
  steps = [text for _, _, text in parsed.find("div", class_="step")]
  expected = [
    (tables.percent(t), tables.number(results["rows"][index]["iou"][f"threshold_{t:g}{suffix}"]))
    for index in (0, 4, 5)
    for t in sorted(thresholds)
  ]
  found = [re.search(r"Threshold (.*?%)\n.*IoU (\S+)", text, re.DOTALL).groups() for text in steps]
  assert found == expected


def test_the_heat_map_shows_the_matrix(run):
  workdir, parsed, _ = run
  rows = read(workdir, "segmentation_matrix.json")["rows"]
  svg = (workdir / "report" / "figures" / "matrix.svg").read_bytes()
  texts = re.findall(r"<text [^>]*>(\d\.\d\d|-)</text>", svg.decode())
  for seed in {row["seed"] for row in rows}:
    mine = [row for row in rows if row["seed"] == seed]
    mine.sort(key=lambda row: (row["model_threshold"], row["evaluation_threshold"]))
    cells = ["-" if row["iou"] is None else f"{row['iou']:.2f}" for row in mine]
    assert cells in [texts[i : i + len(cells)] for i in range(len(texts))], "by row, low to high"
  sources = [attrs["src"] for _, attrs, _ in parsed.find("img")]
  assert f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" in sources


def test_no_cell_of_a_csv_file_is_a_formula():
  names = ["=HYPERLINK(1)", "+x", "-x", "@x", "\tx", "x=1", "-1.5"]
  rows = [[name, tables.Value("t.json#/rows", -0.25, "-.25")] for name in names]
  lines = tables.Table("t", ["=title", "value"], rows).csv().splitlines()
  assert [line.rpartition(",")[0] for line in lines] == [
    "'=title",
    "'=HYPERLINK(1)",
    "'+x",
    "'-x",
    "'@x",
    "'\tx",
    "x=1",
    "-1.5",
  ]
  assert {line.rpartition(",")[2] for line in lines[1:]} == {"-0.25"}


def test_tables_have_full_precision_as_csv(phantom):
  with open(phantom / "report" / "tables" / "scores.csv") as file:
    rows = list(csv.DictReader(file))
  results = read(phantom, "segmentation.json")
  expected = results["rows"] + results["predictors"]
  assert [float(row["IoU"]) for row in rows] == [row["iou"] for row in expected]
  assert [row["paper: IoU"] for row in rows][:2] == ["0.131", "0.351"]
  with open(phantom / "report" / "tables" / "painted.csv") as file:
    painted = sum(int(row["pixels"]) for row in csv.DictReader(file))
  counts = [row["painted"] for row in read(phantom, "dataset.json")["rows"]]
  assert painted == sum(
    sum(bins) for row in counts for by_class in row.values() for bins in by_class.values()
  )
  assert {file.stem for file in (phantom / "report" / "tables").iterdir()} >= {
    "cases", "history", "matrix", "reliability", "calibration", "dataset",
  }  # fmt: skip


def test_everything_has_a_name_for_those_who_do_not_see_it(any_run):
  _, parsed, _ = any_run
  images = parsed.find("img")
  assert images and all(len(attrs["alt"]) > 10 for _, attrs, _ in images)
  labelled = {attrs["for"] for _, attrs, _ in parsed.find("label")}
  assert {attrs["id"] for _, attrs, _ in parsed.find("input")} == labelled
  assert all(attrs["aria-label"] for _, attrs, _ in parsed.find("div", class_="scroll"))
  assert all(text.strip() for _, _, text in parsed.find("figcaption") + parsed.find("caption"))
  ids = [attrs["id"] for _, attrs, _ in parsed.elements if "id" in attrs]
  assert len(ids) == len(set(ids))
  levels = [int(tag[1]) for tag, _, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_the_page_loads_nothing_and_its_links_lead_somewhere(any_run):
  workdir, parsed, _ = any_run
  text = (workdir / "report" / "index.html").read_text()
  assert len(text) < 5e6
  ids = {attrs.get("id") for _, attrs, _ in parsed.elements}
  for tag, attrs, _ in parsed.elements:
    assert "srcset" not in attrs and not any(name.startswith("on") for name in attrs)
    if "src" in attrs:
      assert tag == "img" and attrs["src"].startswith("data:image/")
    target = attrs.get("href", "")
    if target.startswith("#"):
      assert target[1:] in ids
    elif tag == "a" and not target.startswith("https://arxiv.org/"):
      assert (workdir / "report" / urllib.parse.unquote(target)).is_file()
    elif tag == "link":
      assert target == "data:,"
  assert not re.search(r"url\((?!data:)|@import|fetch\(|XMLHttpRequest|\bimport\b.*from", text)
  assert "default-src 'none'" in text


def test_without_scripts_every_threshold_is_shown(run):
  workdir, parsed, _ = run
  thresholds = read(workdir, "segmentation.json")["config"]["sweep"]["thresholds"]
  steps = parsed.find("div", class_="step")
  assert len(steps) == 3 * len(thresholds)
  assert not any("hidden" in attrs for _, attrs, _ in steps)
  assert all("hidden" in attrs for _, attrs, _ in parsed.find("p", class_="control"))


@pytest.mark.parametrize("name", ["two seeds", "other targets"])
def test_the_same_results_give_the_same_bytes(built, name):
  workdir = built(name)

  def contents():
    return {p: p.read_bytes() for p in (workdir / "report").rglob("*") if p.is_file()}

  before = contents()
  report.build(workdir)
  assert contents() == before
  assert not any(b"<dc:date>" in content for content in before.values())


def test_pictures_are_of_the_right_pixels(phantom):
  arrays = dict(np.load(phantom / "results" / page.EXAMPLES))
  content = read(phantom, "segmentation.json")
  shown = page._examples({"segmentation": content, "examples": arrays})
  assert shown["main"]["index"] == 0
  thresholds = content["config"]["sweep"]["thresholds"]
  valid = np.zeros((32, 32, 1), bool)
  valid[4:28] = True
  for step in shown["main"]["steps"]:
    t = next(i for i, x in enumerate(thresholds) if tables.percent(x) == step["threshold"])
    image, least = arrays["image"][1], 255 * thresholds[t] or 1
    label = (arrays["confidence"][1] >= least - 0.5) & valid
    np.testing.assert_array_equal(step["label"].overlaid(), palette.overlay(image, label))
    positive = (arrays["probability"][t, 1] >= 128) & valid
    np.testing.assert_array_equal(step["prediction"].overlaid(), palette.overlay(image, positive))


def summary(workdir):
  text = next(e[2] for e in parse(workdir).elements if e[1].get("id") == "summary")
  return " ".join(text.split())


def test_the_summary_says_what_may_not_be_concluded(built):
  text = summary(built("phantom"))
  assert "4 test patients cannot decide" in text
  assert "Simulated frames: nothing about patients." in text
  assert "every network has a higher IoU" in text
  assert "The paper's figures come from private data" in text
  assert "that the networks had never seen" in text
  other = summary(built("one class, one threshold"))
  assert "cannot decide" not in other and "no test between thresholds was made" in other
  assert "private data" not in other
  assert "never seen" not in other


def test_a_model_below_a_baseline_is_named(make_run):
  workdir = make_run(**SMALL)
  file = workdir / "results" / "segmentation.json"
  content = json.loads(file.read_text())
  # The second threshold, the second baseline.
  content["rows"][1]["iou"] = content["predictors"][3]["iou"] - 0.01
  file.write_text(json.dumps(content))
  report.build(workdir)
  text = summary(workdir)
  assert "not every network has a higher IoU" in text
  assert "It does not hold at: > 0%." in text
  for row in content["rows"]:
    row["iou"] = 0.0
  content["notes"] = ["who is who is not known: not an independent test."]
  file.write_text(json.dumps(content))
  report.build(workdir)
  text = summary(workdir)
  assert "no network has a higher IoU" in text
  assert "never seen" not in text
  file.write_text(json.dumps(content | {"predictors": []}))
  report.build(workdir)
  assert "Nothing about the scores" in summary(workdir)


def problems(parsed):
  return [text for _, _, text in parsed.find("li", class_="problem")]


@pytest.mark.parametrize(
  ("file", "damage"),
  [(file, damage) for file in FILES for damage in ("missing", "emptied")]
  + [
    ("segmentation.json", "stripped"),
    ("segmentation.json", "cut"),
    (page.EXAMPLES, "cut"),
    (page.EXAMPLES, "garbled"),
  ],
)
def test_a_missing_or_damaged_file_is_named_and_the_rest_is_shown(
  make_run, monkeypatch, file, damage
):
  workdir = make_run(**SMALL)
  # Figures are drawn, but not turned into files: that takes most of the time.
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )
  target = workdir / "results" / file
  if damage == "missing":
    target.unlink()
  elif damage == "stripped":
    target.write_text('{"schema": 1}')
  elif damage == "cut":
    target.write_bytes(target.read_bytes()[:200])
  elif damage == "garbled":
    content = bytearray(target.read_bytes())
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    target.write_bytes(content)
  elif file == page.EXAMPLES:
    np.savez(target, index=np.arange(3))
  else:
    content = json.loads(target.read_text())
    target.write_text(json.dumps(content | {"rows": [{}], "predictors": []}))
  stale = workdir / "report" / "tables" / "stale.csv"
  stale.parent.mkdir(parents=True)
  stale.write_text("")
  parsed = Parser(report.build(workdir).read_text())
  assert not stale.exists()
  lines = problems(parsed)
  assert lines and all(file.split(".")[0] in line for line in lines), lines
  assert all("\n" not in line for line in lines)
  assert parsed.find("p", class_="missing")
  at = " ".join(attrs["data-at"] for _, attrs, _ in parsed.find("data"))
  for other in page.FILES:
    # Of history.json only curves and a CSV file are made.
    if f"{other}.json" != file and other not in ("history", "cases"):
      assert f"{other}.json#/rows" in at
  assert (file == page.EXAMPLES) != bool(parsed.find("div", class_="viewer"))


def command_line(workdir):
  return subprocess.run(
    [sys.executable, "-m", "lus_jax.report", "--workdir", str(workdir)],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_nothing_to_report_is_exit_code_2_and_one_line(tmp_path):
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "segmentation.json").write_text("{")
  result = command_line(tmp_path)
  assert result.returncode == 2
  assert result.stdout == ""
  assert result.stderr.startswith("error: ")
  assert "no readable results file" in result.stderr
  assert len(result.stderr.splitlines()) == 1
  assert not (tmp_path / "report").exists()


def test_the_command_line_writes_the_page(make_run):
  workdir = make_run(**SMALL)
  result = command_line(workdir)
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.strip() == str(workdir / "report" / "index.html")
  assert not problems(parse(workdir))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_the_command_on_the_page_repeats_the_config(make_run, size):
  workdir = make_run(**SMALL, config_size=size)
  parsed = Parser(report.build(workdir).read_text())
  ((_, _, command),) = parsed.find("pre", class_="command")
  # A shell joins the lines; shlex does not.
  python, *arguments = shlex.split(command.replace("\\\n", ""))
  assert (python, arguments[:2]) == ("python", ["-m", "lus_jax.main"])
  assert len([a for a in arguments if a.startswith("--config.")]) <= 3
  script = "import sys; from lus_jax import main; print(main._parse(sys.argv).to_json())"
  result = subprocess.run(
    [sys.executable, "-c", script, *arguments[2:]],
    cwd=page._CONFIGS.parent,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(result.stdout) == read(workdir, "segmentation.json")["config"]
  assert arguments[arguments.index("--workdir") + 1] == str(workdir)
