"""Several raters, other members and calibration on the page and in the text table."""

import csv
import json
import re

import numpy as np
import pytest
from test_page import Parser, at_pointer, parse, problems, read, refused
from test_report_clinical import drawn

from lus_jax import palette, report
from lus_jax.report import figures, page, raters
from lus_jax.report import text as text_lib

RUNS = ("several raters", "few raters")
FILES = ("raters", "members", "calibration")
SCORES = ("qubiq", "dice_vs_raters", "dice_vs_consensus", "ged", "ece", "brier")


@pytest.fixture(params=RUNS)
def run(request, built):
  workdir = built(request.param)
  return workdir, parse(workdir)


@pytest.fixture
def several(built):
  return built("several raters")


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are drawn, but not turned into files: that takes most of the time."""
  monkeypatch.setattr(
    figures, "render", lambda draw, *args: draw(*args) and {"png": b"", "svg": b""}
  )


def contents(workdir):
  files = {name: read(workdir, f"{name}.json") for name in (*FILES, "segmentation", "dataset")}
  with np.load(workdir / "results" / page.EXAMPLES) as arrays:
    return files | {"examples": dict(arrays)}


def places(parsed):
  return {attrs["data-at"]: text for _, attrs, text in parsed.find("data")}


def rows_of(workdir, name):
  with open(workdir / "report" / "tables" / f"{name}.csv") as file:
    return list(csv.DictReader(file))


def section(parsed, name):
  (text,) = [e[2] for e in parsed.find("section") if e[1].get("id") == name]
  return " ".join(text.split())


def test_every_number_equals_its_results_file(run):
  workdir, parsed = run
  assert not problems(parsed) and not parsed.find("p", class_="missing")
  mine = [x for x in parsed.find("data") if x[1]["data-at"].split(".json")[0] in FILES]
  assert len(mine) > 100
  for _, attrs, text in mine:
    expected = at_pointer(workdir, attrs["data-at"])
    if expected is None:
      assert (attrs["value"], text) == ("", "-")
    elif attrs["data-at"].endswith("/member"):
      assert text == text_lib.member_label(expected)
    elif isinstance(expected, str):
      known = {expected, f"human: {expected}"} | ({"before"} if expected == "none" else set())
      assert text in known
    else:
      assert float(attrs["value"]) == expected
      if isinstance(expected, int):
        assert text == str(expected)
      elif "/cost/" in attrs["data-at"]:
        assert float(text) == pytest.approx(expected, rel=5e-3)
      else:
        assert re.fullmatch(r"-?\d+\.\d{3}", text)
        assert abs(float(text) - expected) <= 0.0005 + 1e-12
  for around, text in parsed.texts:
    if "td" in around and not {"data", "script", "style"} & set(around):
      assert not re.search(r"\d", text), "a number without a place"


def test_every_row_is_on_the_page(run):
  workdir, parsed = run
  shown = places(parsed)
  found = {name: read(workdir, f"{name}.json") for name in FILES}
  for i, row in enumerate(found["raters"]["rows"]):
    for key in (*SCORES, "ece_pooled", "area_error", "area_error_abs", "best_epoch", "member"):
      assert f"raters.json#/rows/{i}/{key}" in shown
    for key, interval in row["intervals"].items():
      place = f"raters.json#/rows/{i}/intervals/{key}"
      assert {f"{place}/0", f"{place}/1"} <= shown.keys() or interval is None or key not in SCORES
  for i, row in enumerate(found["raters"]["humans"]):
    assert shown[f"raters.json#/humans/{i}/rater"] in (row["rater"], f"human: {row['rater']}")
    for key in ("dice_vs_others", "dice_vs_consensus", "person", "n_images"):
      assert f"raters.json#/humans/{i}/{key}" in shown
  assert "raters.json#/rows/0/human_dice_vs_consensus" in shown
  for i in range(len(found["members"]["rows"])):
    for key in ("iou", "dice", "weighted_ce", "ce", "trimap", "ece", "brier", "loss"):
      assert f"members.json#/rows/{i}/{key}" in shown
  for i in range(len(found["calibration"]["rows"])):
    assert {f"calibration.json#/rows/{i}/{key}" for key in ("ece", "brier", "method")} <= set(shown)


def test_humans_stand_in_the_columns_of_the_networks(several):
  content = read(several, "raters.json")
  rows = rows_of(several, "raters_scores")
  n = len(content["rows"])
  for row, expected in zip(rows, content["rows"], strict=False):
    assert float(row["Dice vs raters"]) == expected["dice_vs_raters"]
    assert float(row["ECE, high"]) == expected["intervals"]["ece"][1]
  for row, expected in zip(rows[n:-1], content["humans"], strict=True):
    assert row["member"] == expected["rater"]
    assert float(row["Dice vs raters"]) == expected["dice_vs_others"]
    assert float(row["Dice vs consensus, low"]) == expected["intervals"]["dice_vs_consensus"][0]
    assert row["QUBIQ"] == row["GED"] == ""
  assert float(rows[-1]["Dice vs raters"]) == content["rows"][0]["human_dice_vs_raters"]


def test_what_may_not_be_said(built):
  text = section(parse(built("several raters")), "raters")
  assert "95% intervals over patients" in text and "whether they overlap is no test" in text
  assert "share of raters who painted a pixel is no frequency" in text
  assert "outputs after calibration (isotonic)" in text
  assert "Some people drew with several tools" in text
  few = parse(built("few raters"))
  text = section(few, "raters")
  assert "4 test patients are too few for intervals" in text and "95% intervals" not in text
  assert "several tools" not in text and "Nothing is ranked" in text
  for name in ("raters", "members", "calibration"):
    for sentence in re.findall(r"[^.]*\bbetter\b[^.]*\.", section(few, name)):
      assert "no test" in sentence or "not tested" in sentence
  assert "A painted confidence is no frequency." in section(few, "calibration")
  summary = section(few, "summary")
  assert "The share of raters who painted a pixel was turned into labels" in summary


def test_the_text_table_says_the_same(built):
  content = read(built("several raters"), "raters.json")
  lines = text_lib.raters(content).splitlines()
  assert lines[0].endswith("(12 test images, 12 test patients).")
  at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["soft"])
  row = next(row for row in content["rows"] if row["member"] == "soft")
  assert lines[at].split()[1:] == [f"{row[key]:.3f}" for key in SCORES]
  low, high = row["intervals"]["qubiq"]
  assert lines[at + 1].strip().startswith(f"[{low:.3f}, {high:.3f}]")
  human = content["humans"][0]
  (at,) = [i for i, line in enumerate(lines) if "human: A" in line]
  dice = [f"{human[key]:.3f}" for key in ("dice_vs_others", "dice_vs_consensus")]
  assert lines[at].split()[2:] == dice
  # Right-aligned, a human's Dice end where the networks' end.
  ends = [m.end() for m in re.finditer(r"Dice vs \w+", lines[1])]
  assert [m.end() for m in re.finditer(r"\d\.\d{3}", lines[at])] == ends
  assert "Outputs after calibration (isotonic)." in lines

  content = read(built("few raters"), "raters.json")
  text = text_lib.raters(content)
  assert "No intervals: 4 test patients are too few." in text
  assert "nothing is ranked" in text and "better" not in text and "[0." not in text
  assert "> 0%, seed 1" in text and "human: B <i>" in text
  assert "calibration" not in text_lib.raters(content | {"calibration": "none"})


@pytest.mark.parametrize(
  ("name", "label"),
  [
    ("threshold_0.6", "60%"),
    ("threshold_0_seed_1", "> 0%, seed 1"),
    ("threshold_0.5_dice_ones", "50% dice_ones"),
    ("ordinal", "ordinal"),
    ("ordinal_0_seed_2", "ordinal > 0%, seed 2"),
    ("ordinal_ones_0.5", "ordinal_ones 50%"),
    ("svls_0.5", "svls 50%"),
    ("soft_seed_0", "soft, seed 0"),
    ("rater_2", "rater_2"),
  ],
)
def test_names_of_members_are_readable(name, label):
  assert text_lib.member_label(name) == label
  assert text_lib.unseeded(name) == label.split(", ")[0]


def test_one_member_stands_for_all():
  assert raters.choose(["threshold_0.5", "ordinal", "soft"]) == "soft"
  assert raters.choose(["softseg_seed_0", "ordinal_0.5_seed_0", "ordinal_seed_1"]) == (
    "ordinal_seed_1"
  )
  assert raters.choose(["softseg", "ordinal_0.5"]) == "softseg"


def test_pictures_are_of_the_right_pixels(several):
  files = contents(several)
  arrays = files["examples"]
  found = raters.examples(files)
  assert found["member"] == "soft"
  assert [one["index"] for one in found["shown"]] == [2, 5]
  assert "most" in found["shown"][0]["role"] and "least" in found["shown"][1]["role"]
  assert found["shown"][1]["disagreement"].value == files["raters"]["images"][5]["disagreement"]
  valid = np.zeros((32, 32, 1), bool)
  valid[4:28] = True
  v = arrays["rater_names"].tolist().index("soft")
  for n, one in enumerate(found["shown"]):
    image = arrays["rater_image"][n]
    frame, mean, *of_raters = one["pictures"][:5]
    disagreement, prediction, *of_network = one["pictures"][5:]
    np.testing.assert_array_equal(frame.overlaid(), palette.overlay(image, valid[..., :0]))
    for pictures, whole, values in (
      (of_raters, mean, arrays["rater_confidence"][n]),
      (of_network, prediction, arrays["rater_probability"][v, n]),
    ):
      np.testing.assert_allclose(whole.weights, valid * (values / 255), atol=1 / 32 + 1e-6)
      assert len({picture.alt for picture in pictures}) == 3
      for picture, level in zip(pictures, (0.1, 0.5, 0.9), strict=True):
        reached = (values >= 255 * level - 0.5) & valid
        np.testing.assert_array_equal(picture.overlaid(), palette.overlay(image, reached))
    variance = arrays["rater_disagreement"][n] * valid
    np.testing.assert_allclose(disagreement.weights, 4 * variance, atol=1 / 32 + 1e-6)
  shown = len(parse(several).find("div", class_="pictures beside"))
  assert shown == 2


def test_the_curve_shows_both_scores(several, monkeypatch):
  rows = read(several, "raters.json")["curve"]["rows"]
  (axes,) = drawn(monkeypatch, figures.raters_fused, rows)
  lines = {line.get_label(): line for line in axes.lines}
  for label, key in (("prediction", "prediction_vs_fused"), ("mean of all raters", "fused_vs_all")):
    assert lines[label].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert lines[label].get_ydata() == pytest.approx([row[key] for row in rows])
  rows[-1]["prediction_vs_fused"] = None  # no image has so many raters
  (axes,) = drawn(monkeypatch, figures.raters_fused, rows)
  assert np.isnan(axes.lines[1].get_ydata()[-1])


def test_only_confidences_have_a_reliability_curve_against_raters(several, built):
  svg = (several / "report" / "figures" / "raters_reliability.svg").read_text()
  texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
  assert {"soft", "svls 50%", "ordinal"} <= set(texts)
  assert not {"50%", "ordinal 50%", "50% dice"} & set(texts)
  files = contents(several)
  for row in files["raters"]["rows"]:
    row["threshold"] = 0.5
  assert raters.reliability_figure(files) is None


def test_reliability_follows_the_method(several, monkeypatch):
  content = read(several, "calibration.json")
  rows = [row for row in content["rows"] if row["member"] == "soft"]
  panel = drawn(monkeypatch, figures.method_reliability, rows, content["dataset"]["classes"])[1]
  lines = panel.lines[1:]
  assert len(lines) == 3
  for line, row in zip(lines, rows, strict=True):
    curve = row["reliability"]["gland"]
    # The last bin holds too few pixels.
    assert list(line.get_ydata()) == curve["target"][:-1]


def test_levels_stand_beside_the_network_of_their_threshold_and_seed(several, built, monkeypatch):
  files = contents(several)
  rows = rows_of(several, "members_ordinal")
  assert [row["member"] for row in rows] == ["ordinal_0.1", "ordinal_0.5", "ordinal_0.9"]
  networks = {row["threshold"]: row["iou"] for row in files["segmentation"]["rows"]}
  levels = {row["member"]: row["iou"] for row in files["members"]["rows"]}
  for row, threshold in zip(rows, (0.1, 0.5, 0.9), strict=True):
    assert float(row["IoU, separate"]) == networks[threshold]
    assert float(row["IoU, ordinal"]) == levels[row["member"]]
  pairs = raters.paired_rows(files)
  (axes,) = drawn(monkeypatch, figures.ordinal, pairs)
  separate, ordinal = axes.lines
  assert separate.get_xdata() == pytest.approx([10, 50, 90])
  assert separate.get_ydata() == pytest.approx([networks[t] for t in (0.1, 0.5, 0.9)])
  assert ordinal.get_ydata() == pytest.approx([float(row["IoU, ordinal"]) for row in rows])

  (axes,) = drawn(monkeypatch, figures.cost, pairs, files["members"]["cost"])
  (separate, ordinal) = ((line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines)
  assert separate == pytest.approx((3 * 31.4159, np.mean([a["iou"] for _, a, _ in pairs])))
  assert ordinal == pytest.approx((33.2211, np.mean([b["iou"] for _, _, b in pairs])))

  # A level of another seed has no network beside it.
  files["segmentation"]["rows"][1]["seed"] = 1
  assert [row["threshold"] for _, row, _ in raters.paired_rows(files)] == [0.1, 0.9]
  assert "One network for all thresholds" not in section(parse(built("few raters")), "members")


def test_the_cost_is_of_thresholds_that_both_have(several, monkeypatch):
  files = contents(several)
  pairs = raters.paired_rows(files)
  pairs[0][1]["iou"] = None
  (axes,) = drawn(monkeypatch, figures.cost, pairs, files["members"]["cost"])
  for k, line in enumerate(axes.lines, 1):
    expected = np.mean([pair[k]["iou"] for pair in pairs[1:]])
    assert line.get_ydata()[0] == pytest.approx(expected)


def test_a_summed_loss_does_not_hide_the_others(built, monkeypatch):
  rows = read(built("several raters"), "history.json")["rows"]
  axes = drawn(monkeypatch, figures.curves, rows)
  assert [panel.get_yscale() for panel in axes] == ["linear"] * 3
  summed = [row | {"member": "softseg", "train_loss": 7000.0} for row in rows[:3]]
  axes = drawn(monkeypatch, figures.curves, rows + summed)
  assert [panel.get_yscale() for panel in axes] == ["log", "linear", "linear"]


def test_disagreement_about_every_image_is_a_file(several):
  rows, images = rows_of(several, "raters_images"), read(several, "raters.json")["images"]
  assert [row["image"] for row in rows] == [image["image"] for image in images]
  assert rows[0]["disagreement"] == "" and images[0]["disagreement"] is None
  assert [float(r["disagreement"]) for r in rows[1:]] == [i["disagreement"] for i in images[1:]]


SMALL = {
  "thresholds": (0.5, 0.0),
  "classes": ("lesion",),
  "more": {"raters": ("A", "B"), "others": ("soft", "ordinal")},
}
SECTIONS = {
  "raters": 'id="raters"',
  "members": 'id="members"',
  "calibration": "Before and after calibrating",
}


def test_a_run_without_these_files_has_no_such_sections(built):
  html = (built("phantom") / "report" / "index.html").read_text()
  assert not any(text in html for text in SECTIONS.values())
  assert 'href="#raters"' not in html


@pytest.mark.parametrize("name", FILES)
def test_a_section_needs_its_file_alone(make_run, undrawn, name):
  workdir = make_run(**SMALL)
  for other in FILES:
    if other != name:
      (workdir / "results" / f"{other}.json").unlink()
  html = report.build(workdir).read_text()
  assert not problems(Parser(html))
  assert [key for key, text in SECTIONS.items() if text in html] == [name]


@pytest.mark.parametrize("damage", ["cut", "stripped", "emptied"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(make_run, name, damage):
  workdir = make_run(**SMALL)
  target = workdir / "results" / f"{name}.json"
  if damage == "cut":
    target.write_text(target.read_text()[:200])
  elif damage == "stripped":
    target.write_text(json.dumps({"schema": 1}))
  else:
    empty = {"rows": [{}], "humans": [{}], "images": [{}], "curve": {}, "cost": {}}
    target.write_text(json.dumps(read(workdir, target.name) | empty))
  assert refused(workdir, target.name)


def test_examples_without_raters_are_missed(make_run, undrawn):
  workdir = make_run(**SMALL)
  file = workdir / "results" / page.EXAMPLES
  with np.load(file) as arrays:
    kept = {name: array for name, array in arrays.items() if not name.startswith("rater_")}
  np.savez(file, **kept)
  parsed = Parser(report.build(workdir).read_text())
  (line,) = problems(parsed)
  assert "results/examples.npz holds no images of several raters" in line
  assert "images that raters agree on" in parsed.find("p", class_="missing")[0][2]
  assert len(parsed.find("div", class_="viewer")) == 3


def test_people_have_a_qubiq_score_and_calibration_says_what_it_rests_on(make_run, undrawn):
  workdir = make_run(**SMALL)
  content = read(workdir, "raters.json")
  for row in content["rows"]:
    row |= {"qubiq_leave_one_out": 0.625, "human_qubiq_leave_one_out": 0.75}
    row["painted_images"] = dict.fromkeys(content["dataset"]["classes"], 0)
  for row in content["humans"]:
    row["qubiq_leave_one_out"] = 0.875
  (workdir / "results" / "raters.json").write_text(json.dumps(content))
  fitted = read(workdir, "calibration.json")
  classes = fitted["dataset"]["classes"]
  fitted["fitted_on"] = {"split": "validation", "patients": 2, "frames": 7}
  fitted["fitted_on"]["frames_with"] = dict.fromkeys(classes, 3)
  (workdir / "results" / "calibration.json").write_text(json.dumps(fitted))
  parsed = Parser(report.build(workdir).read_text())
  with open(workdir / "report" / "tables" / "raters_scores.csv") as stream:
    found = {row["member"]: row["QUBIQ, one out"] for row in csv.DictReader(stream)}
  assert found["A"] == "0.875" and found["humans, mean"] == "0.75"
  assert list(found.values())[0] == "0.625"
  ((_, _, words),) = parsed.find("p", class_="fitted-on")
  words = " ".join(words.split())
  assert words.startswith("Fitted on 7 validation frames of 2 patients")
  assert f"{classes[0]} 3" in words and "So few patients" in words
  assert f"No rater painted {classes[0]}" in parsed.find("p", class_="absent")[0][2]
  assert "No rater painted" in text_lib.raters(content)
