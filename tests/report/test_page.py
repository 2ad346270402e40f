"""The page of a run: every number of it stands in a results file, whatever the run was."""

import base64
import csv
import html.parser
import json
import re
import shlex
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest

from lus_jax import palette, report
from lus_jax.errors import UserError
from lus_jax.report import __main__ as report_main
from lus_jax.report import cells as cells_lib
from lus_jax.report import command as command_lib
from lus_jax.report import figures, page, paper, segmentation
from lus_jax.report import text as text_lib

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
    return paper.REPORTED[float(threshold)][key]
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
  assert shown == {cells_lib.percent(t) for t in results["config"]["sweep"]["thresholds"]}
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
  # Of one threshold the matrix says what Table 1 says.
  several = len(results["config"]["sweep"]["thresholds"]) > 1
  for i in range(len(read(workdir, "segmentation_matrix.json")["rows"])):
    assert (f"segmentation_matrix.json#/rows/{i}/iou" in at) == several
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
    (
      cells_lib.percent(t),
      cells_lib.number(results["rows"][index]["iou"][f"threshold_{t:g}{suffix}"]),
    )
    for index in (0, 4, 5)
    for t in sorted(thresholds)
  ]
  found = [re.search(r"Threshold (.*?%)\n.*IoU (\S+)", text, re.DOTALL).groups() for text in steps]
  assert found == expected


def test_the_heat_map_shows_the_matrix(run):
  workdir, parsed, _ = run
  content = read(workdir, "segmentation_matrix.json")
  rows = content["rows"]
  svg = (workdir / "report" / "figures" / "matrix.svg").read_bytes()
  texts = re.findall(r"<text [^>]*>(\d\.\d\d|-)</text>", svg.decode())
  for seed in {row["seed"] for row in rows}:
    mine = [row for row in rows if row["seed"] == seed]
    mine.sort(key=lambda row: (row["model_threshold"], row["evaluation_threshold"]))
    cells = ["-" if row["iou"] is None else f"{row['iou']:.2f}" for row in mine]
    assert cells in [texts[i : i + len(cells)] for i in range(len(texts))], "by row, low to high"
  sources = [attrs["src"] for _, attrs, _ in parsed.find("img")]
  several = len(content["config"]["sweep"]["thresholds"]) > 1
  assert (f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" in sources) == several


def test_no_cell_of_a_csv_file_is_a_formula():
  names = ["=HYPERLINK(1)", "+x", "-x", "@x", "\tx", "x=1", "-1.5"]
  rows = [[name, cells_lib.Value("t.json#/rows", -0.25, "-.25")] for name in names]
  lines = cells_lib.Table("t", ["=title", "value"], rows).csv().splitlines()
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


def test_who_painted_what_is_shown_where_it_is_known(run):
  workdir, parsed, name = run
  shown = parsed.find("section", id="annotators")
  tables = {file.stem for file in (workdir / "report" / "tables").iterdir()}
  assert bool(shown) == (name == "two seeds") == ("annotators" in tables)
  if not shown:
    return
  text = " ".join(shown[0][2].split())
  assert "which a model painted and nobody touched: 17 of train." in text
  assert "for which a consensus stands: 2 of train, 1 of test." in text
  content = read(workdir, "dataset.json")
  with open(workdir / "report" / "tables" / "annotators.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["annotator"] for row in rows] == ["not named", "B <i>"]
  for row, one in zip(rows, content["annotators"], strict=True):
    assert [int(row[key]) for key in ("labels", "used", "touched", "untouched")] == [
      one[key] for key in ("labels", "used", "touched", "untouched")
    ]
    assert row["seconds"] == str(one["seconds"] or "")
  with open(workdir / "report" / "tables" / "annotators_tools.csv") as file:
    assert [row["tool"] for row in csv.DictReader(file)] == ["", "lus_jax 9.9.9", "lus_jax 9.9.9"]


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
  shown = segmentation.examples({"segmentation": content, "examples": arrays})
  assert shown["main"]["index"] == 0
  thresholds = content["config"]["sweep"]["thresholds"]
  valid = np.zeros((32, 32, 1), bool)
  valid[4:28] = True
  for step in shown["main"]["steps"]:
    t = next(i for i, x in enumerate(thresholds) if cells_lib.percent(x) == step["threshold"])
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
  assert "the network of every threshold has a higher IoU" in text
  assert "in each class: so it would be if the networks used the picture itself" in text
  few = "About other patients nothing can be concluded from 4 test patients. Seen, not concluded"
  assert few in text
  assert "The paper's figures come from private data" in text
  assert "that the networks had never seen" in text
  other = summary(built("one class, one threshold"))
  assert "nothing can be concluded" not in other and "Seen, not" not in other
  assert "cannot decide" not in other and "Which threshold" not in other
  assert "without intervals and without a test" in other
  assert "no test between thresholds was made" in summary(built("several raters"))
  assert "private data" not in other
  assert "never seen" not in other


def test_a_model_below_a_baseline_is_named(make_run, undrawn):
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
  for row, iou in zip(content["rows"], (0.5, 0.0), strict=True):
    row["iou"], row["iou_per_class"]["a_line"] = 0.0, iou
  content["notes"] = ["who is who is not known: not an independent test."]
  file.write_text(json.dumps(content))
  report.build(workdir)
  text = summary(workdir)
  assert "no network has a higher IoU" in text and "Nothing yet" not in text
  # One statement: the mean and the classes do not contradict each other.
  (item,) = (" ".join(x.split()) for _, _, x in parse(workdir).find("li") if "network has a" in x)
  assert "But taken class by class the IoU is higher for 1 of 2 pairs of a class and a" in item
  assert "used for: a_line (at > 0%)." in item
  assert "never seen" not in text
  file.write_text(json.dumps(content | {"predictors": []}))
  report.build(workdir)
  assert "Nothing about the scores" in summary(workdir)


def problems(parsed):
  return [text for _, _, text in parsed.find("li", class_="problem")]


def damage(workdir, name, how):
  """Spoils a results file; `how` also says with what."""
  target = workdir / "results" / name
  if how == "stripped":
    target.write_text('{"schema": 1}')
  elif how == "cut":
    target.write_bytes(target.read_bytes()[:200])
  elif how == "garbled":
    content = bytearray(target.read_bytes())
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    target.write_bytes(content)
  elif name == page.EXAMPLES:
    with np.load(target) as arrays:
      np.savez(target, **{k: x for k, x in arrays.items() if k != "probability"})
  else:
    content = json.loads(target.read_text())
    content |= {"rows": [{}], "predictors": []} if how == "emptied" else how
    target.write_text(json.dumps(content))


def refused(workdir, name):
  """Whether no report is made, for a reason of one line that names the file."""
  with pytest.raises(UserError) as error:
    report.build(workdir)
  line = str(error.value)
  return f"results/{name} is " in line and "\n" not in line and not (workdir / "report").exists()


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are drawn, but not turned into files: that takes most of the time."""
  draw = lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}  # noqa: E731
  monkeypatch.setattr(figures, "render", draw)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named_and_the_rest_is_shown(make_run, undrawn, file):
  workdir = make_run(**SMALL)
  (workdir / "results" / file).unlink()
  stale = workdir / "report" / "tables" / "stale.csv"
  stale.parent.mkdir(parents=True)
  stale.write_text("")
  parsed = Parser(report.build(workdir).read_text())
  assert not stale.exists()
  (line,) = problems(parsed)
  assert f"results/{file} does not exist" in line
  assert parsed.find("p", class_="missing")
  at = " ".join(attrs["data-at"] for _, attrs, _ in parsed.find("data"))
  for other in page.FILES:
    # Of history.json only curves and a CSV file are made.
    if f"{other}.json" != file and other not in ("history", "cases"):
      assert f"{other}.json#/rows" in at
  assert (file == page.EXAMPLES) != bool(parsed.find("div", class_="viewer"))


@pytest.mark.parametrize("how", ["cut", "garbled", "emptied", "stripped"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_in_one_line(make_run, file, how):
  workdir = make_run(**SMALL)
  damage(workdir, file, how)
  assert refused(workdir, file)


def _with(content, path, value):
  *path, last = path
  for key in path:
    content = content[key]
  content[last] = value


@pytest.mark.parametrize(
  ("file", "path", "value"),
  [
    ("segmentation", ("rows", 0, "iou"), "<script>alert(1)</script>"),
    ("segmentation", ("rows", 0, "iou"), float("nan")),
    ("segmentation", ("rows", 0, "iou"), True),
    ("segmentation", ("rows", 1, "iou_per_class"), {}),
    ("segmentation", ("rows", 1, "reliability", "a_line", "count"), [None]),
    ("segmentation", ("predictors", 0, "threshold"), None),
    ("segmentation", ("dataset", "classes"), "a_line"),
    ("segmentation", ("config", "sweep"), {}),
    ("segmentation", ("notes",), [1]),
    ("segmentation_matrix", ("rows", 0, "seed"), 0.5),
    ("history", ("rows", 2, "epoch"), 10**400),
    ("history", ("rows",), []),
    ("cases", ("rows", 1, "iou"), {"other": 0.5}),
    ("dataset", ("rows", 0, "split"), "training"),
  ],
)
def test_a_value_that_cannot_be_shown_is_refused(make_run, file, path, value):
  workdir = make_run(**SMALL)
  target = workdir / "results" / f"{file}.json"
  content = json.loads(target.read_text())
  _with(content, path, value)
  # Python prints no integer this long, and other programs do.
  text = json.dumps(content if value != 10**400 else content | {"rows": []})
  if value == 10**400:
    _with(content, path, "HERE")
    text = json.dumps(content).replace('"HERE"', "1" + 400 * "0")
  target.write_text(text)
  assert refused(workdir, f"{file}.json")


@pytest.mark.parametrize("text", ["1e400", "-Infinity", "[" * 100_000, '{"schema": 1, "a": [}', ""])
def test_json_that_python_would_read_or_break_on_is_damaged(tmp_path, text):
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "history.json").write_text(text)
  assert refused(tmp_path, "history.json")


def test_examples_of_another_shape_are_refused(make_run):
  workdir = make_run(**SMALL)
  file = workdir / "results" / page.EXAMPLES
  with np.load(file) as arrays:
    whole = dict(arrays)
  for name, array in {
    "index": np.array([0, 1, 99]),
    "confidence": whole["confidence"][..., :0],
    "probability": whole["probability"][:1],
    "image": whole["image"].astype(float),
    "labelled": whole["labelled"].astype(object),
  }.items():
    np.savez(file, **whole | {name: array})
    assert refused(workdir, page.EXAMPLES), name


def test_our_own_mistakes_are_not_called_damage(make_run, monkeypatch):
  workdir = make_run(**SMALL)

  def mistaken(files):
    raise TypeError("ours")

  monkeypatch.setattr(segmentation, "scores", mistaken)
  with pytest.raises(TypeError, match="ours"):
    report.build(workdir)


def test_a_run_from_before_still_has_its_page(make_run, undrawn):
  # Nothing that came later stands in what `make_run` writes.
  workdir = make_run(**SMALL)
  assert "label_images" not in read(workdir, "segmentation.json")["rows"][0]
  parsed = Parser(report.build(workdir).read_text())
  assert not problems(parsed) and not parsed.find("p", class_="missing")


def newer(content):
  """What runs write by now."""
  classes = content["dataset"]["classes"]
  for row in content["rows"] + content.get("predictors", []):
    row |= {
      "dice_per_class": dict.fromkeys(classes, 0.25),
      "hd95": 2.5,
      "hd95_per_class": dict.fromkeys(classes, 2.5),
      "hd95_images": dict.fromkeys(classes, 4),
      "label_images": dict.fromkeys(classes, 6),
      "predicted_share_per_class": dict.fromkeys(classes, 0.125),
      "constant_classes": [],
    }
  return content


def rewrite(workdir, change, name="segmentation"):
  file = workdir / "results" / f"{name}.json"
  content = newer(json.loads(file.read_text()))
  change(content)
  file.write_text(json.dumps(content))
  return content


def test_huge_numbers_and_formulas_in_names_do_no_harm(make_run, undrawn):
  formula = "=HYPERLINK(1)"
  classes = (formula, "@b", "-c <img src=x onerror=alert(1)>")
  workdir = make_run(thresholds=(0.5, 0.0), classes=classes)

  def change(content):
    content["rows"][0]["weighted_ce"] = 1e17
    content["rows"][0]["iou_per_class"][formula] = -0.5

  rewrite(workdir, change)
  html = report.build(workdir).read_text()
  assert "1e+17" in html and "<img src=x" not in html
  for file in (workdir / "report" / "tables").iterdir():
    with open(file) as stream:
      for row in csv.reader(stream):
        for cell in row:
          # A number may be negative; a text begins with nothing that makes it a formula.
          assert not cell.startswith(("=", "@", "+")) and (cell[:1] != "-" or float(cell) < 0), cell
  with open(workdir / "report" / "tables" / "scores_per_class.csv") as stream:
    rows = list(csv.DictReader(stream))
  assert "'" + formula in rows[0]
  assert float(rows[0]["'" + formula]) == -0.5


def test_scores_are_judged_by_class_beside_the_baselines(make_run, undrawn):
  workdir = make_run(thresholds=(0.5, 0.0), classes=("a_line", "b_line"))

  def change(content):
    content["rows"][0]["iou_per_class"]["b_line"] = 0.0
    content["predictors"][2]["iou_per_class"]["b_line"] = 0.15  # mean_map at 50 %

  rewrite(workdir, change)
  report.build(workdir)
  text = summary(workdir)
  assert "the network of every threshold has a higher IoU at its own threshold, as a mean" in text
  assert "By class it holds for 3 of 4 pairs of a class and a model" in text
  assert "nothing shows that the picture was used for: b_line (at 50%)." in text
  assert "use the picture itself" not in text
  with open(workdir / "report" / "tables" / "scores_per_class.csv") as stream:
    rows = list(csv.DictReader(stream))
  assert [(row["model"], row["threshold"], row["b_line"]) for row in rows[:3]] == [
    ("FPN", "0.5", "0.0"), ("prevalence", "0.5", "0.0"), ("mean_map", "0.5", "0.15")
  ]  # fmt: skip
  with open(workdir / "report" / "tables" / "scores_outlines.csv") as stream:
    (row, _) = csv.DictReader(stream)
  assert (row["Dice a_line"], row["HD95 a_line, px (frames)"]) == ("0.25", "2.5")
  assert row["HD95 a_line, px (frames), frames"] == "4"
  assert "2.5 (4)" in " ".join(text for _, _, text in parse(workdir).find("td", class_="several"))


def test_absent_classes_and_silent_models_are_named(make_run, undrawn):
  workdir = make_run(thresholds=(0.5, 0.0), classes=("a_line", "b_line"))

  def change(content):
    for row in content["rows"] + content["predictors"]:
      row["label_images"]["b_line"] = 0
      row["iou_per_class"]["b_line"] = None
    constant = {"constant_classes": ["a_line", "b_line"], "ece": None}
    content["rows"][0] |= constant | {"predicted_share_per_class": {"a_line": 1.0, "b_line": 0.0}}
    content["rows"][1]["predicted_share_per_class"] = dict.fromkeys(("a_line", "b_line"), 0.0)

  content = rewrite(workdir, change)
  report.build(workdir)
  text = summary(workdir)
  assert "Anything about b_line: no test label shows it" in text
  one, other = (text[text.index(f"the model of {at} (") :][:250] for at in ("50%", "> 0%"))
  assert "50% (puts out the same number at every pixel of the test split). A constant has no" in one
  assert "It reaches .5 in some classes" in one and "empty drawing" not in one
  assert "> 0% (draws nothing: no probability of the test split reaches .5). The over" in other
  assert "overlaps are those of an empty drawing" in other and "A constant" not in other
  printed = text_lib.segmentation(content)
  assert "Note: no test label shows b_line: it counts for no model and no baseline" in printed
  assert "Note: the model of 50% puts out the same number at every pixel" in printed
  for row in content["rows"]:
    row["label_images"]["b_line"] = 1
  content["rows"][0]["label_images"]["b_line"] = 0
  assert "shows b_line at 50%:" in text_lib.segmentation(content)


@pytest.mark.parametrize(("bins", "said"), [([0, 0], False), ([0, 9], True), ([1, 9], False)])
def test_full_confidence_is_said_where_something_was_painted(bins, said):
  meta = {"classes": ["a_line"], "splits": {}}
  config = {"train": {"epochs": 1}, "sweep": {"seeds": 1}}
  rows = [{"split": "test", "patients": 1, "painted": {"one": {"a_line": bins}}}]
  files = {"dataset": {"dataset": meta, "config": config, "rows": rows}}
  assert segmentation.summary(files)["full_confidence"] == said


@pytest.mark.parametrize(
  "text", ["{}", "[1", '{"schema": 0, "task": "sf_change"}', '{"schema": 1}']
)
def test_a_foreign_file_is_named_and_the_page_made(make_run, undrawn, text):
  workdir = make_run(**SMALL)
  for name in ("notes", "._segmentation"):
    (workdir / "results" / f"{name}.json").write_text(text)
  lines = problems(Parser(report.build(workdir).read_text()))
  assert ["results/._segmentation.json is left out" in lines[0], len(lines)] == [True, 2]
  assert "results/notes.json is left out" in lines[1]
  (workdir / "notes").mkdir()  # a task of that name was run here: the file is its results
  with pytest.raises(UserError, match=r"results/notes\.json is "):
    report.build(workdir)


def test_counts_of_one_and_binary_masks_have_their_words(make_run, undrawn):
  workdir = make_run(**SMALL)

  def one_test_frame(content):
    for row in content["rows"]:
      row |= {key: 1 for key in ("patients", "frames") if row["split"] == "test"}

  for name in page.FILES:
    file = workdir / "results" / f"{name}.json"
    content = json.loads(file.read_text())
    content["dataset"]["splits"]["test"] = 1
    content["config"]["train"]["epochs"] = 1
    if name == "dataset":
      one_test_frame(content)
    if name == "segmentation":
      content["notes"] = ["binary masks: the same labels."]
    file.write_text(json.dumps(content))
  parsed = Parser(report.build(workdir).read_text())
  text = summary(workdir)
  assert "nothing can be concluded from 1 test patient." in text
  assert "for 1 epoch; the test used 1 frame of 1 patient" in text
  assert "the scores are of 1 frame of 1 patient, without" in text
  assert "The label of each structure was taken at several thresholds" in text
  captions = [text for _, _, text in parsed.find("figcaption")]
  assert "label" in captions and "painted confidence" not in captions
  assert "8 validation, 1 test frame)" in text_lib.segmentation(read(workdir, "segmentation.json"))


def test_one_threshold_is_not_called_several(built):
  html = (built("one class, one threshold") / "report" / "index.html").read_text()
  words = " ".join(re.sub("<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", html).split())
  for phrase in (
    "each threshold", "every threshold", "other thresholds", "another threshold", "Which threshold",
    "own threshold", "by confidence threshold", "trained for each", "all models",
  ):  # fmt: skip
    assert phrase not in words, phrase
    assert phrase not in " ".join(re.findall('alt="([^"]*)"', html)), phrase
  content = read(built("one class, one threshold"), "segmentation.json")
  assert "own threshold" not in text_lib.segmentation(content)
  assert "own threshold" in text_lib.segmentation(read(built("phantom"), "segmentation.json"))


def command_line(workdir):
  return subprocess.run(
    [sys.executable, "-m", "lus_jax.report", "--workdir", str(workdir)],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_a_damaged_file_is_exit_code_2_and_one_line(make_run):
  workdir = make_run(**SMALL)
  damage(workdir, "history.json", "cut")
  result = command_line(workdir)
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith("error: ") and "results/history.json is damaged" in result.stderr
  assert len(result.stderr.splitlines()) == 1


def test_nothing_to_report_is_exit_code_2_and_one_line(tmp_path, monkeypatch, capsys):
  (tmp_path / "results").mkdir()
  monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(tmp_path)])
  assert report_main.main() == 2
  result = capsys.readouterr()
  assert result.out == ""
  assert result.err.startswith("error: ")
  assert "no readable results file" in result.err
  assert len(result.err.splitlines()) == 1
  assert not (tmp_path / "report").exists()


def test_the_command_line_writes_the_page(make_run):
  workdir = make_run(**SMALL)
  result = command_line(workdir)
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.strip() == str(workdir / "report" / "index.html")
  assert not problems(parse(workdir))


def record(workdir, part, *words):
  (workdir / part).mkdir(exist_ok=True)
  content = {"config": {}, "dataset": {}, "command": ["python", "-m", "lus_jax.main", *words]}
  (workdir / part / "run.json").write_text(json.dumps(content))


def test_the_page_shows_the_commands_that_the_run_recorded(make_run, undrawn):
  workdir = make_run(**SMALL)
  assert not Parser(report.build(workdir).read_text()).find("pre", class_="command")
  words = ["--config", "configs/seg.py:tiny", "--workdir", "my runs/a"]
  words += ["--config.sweep.members=('soft', \"rater('Lee, A.')\")", "--config.seed=3"]
  record(workdir, ".", *words)
  ((_, _, command),) = Parser(report.build(workdir).read_text()).find("pre", class_="command")
  # A shell joins the lines; shlex does not.
  assert shlex.split(command.replace("\\\n", "")) == ["python", "-m", "lus_jax.main", *words]
  assert [line.strip(" \\'").split("=")[0] for line in command.splitlines()[1:]] == [
    "--config.sweep.members", "--config.seed",
  ]  # fmt: skip
  # Parts of one command, then of several; a study has its own; a damaged one says nothing.
  record(workdir, "sf_ratio", *words)
  assert command_lib.commands(workdir, ["sf_ratio"]) == [command]
  record(workdir, "sf_ratio", "--config", "sf_ratio")
  found = command_lib.commands(workdir, ["sf_ratio"])
  assert found == [command, "python -m lus_jax.main --config sf_ratio"]
  (workdir / "sf_ratio" / "run.json").write_text("{")
  assert command_lib.commands(workdir, ["sf_ratio"]) == [command]
  record(workdir, "study", "--config", "paper")
  found = command_lib.commands(workdir, ["sf_ratio"])
  assert found == ["python -m lus_jax.main --config paper"]
