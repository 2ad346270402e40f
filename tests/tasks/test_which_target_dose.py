"""Dose and response: the best threshold by how true strokes are, and the command that tells."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from configs import which_target as configs
from lus_jax.report import dose as report
from lus_jax.tasks.which_target import compare, dose, run


@pytest.mark.parametrize(
  ("stricter", "laxer", "expected"),
  [
    ((0.2, 0.4, 0.9), (0.5, 0.6, 0.3), 0.4 + 0.4 * 0.2 / 0.8),
    ((0.2, 0.6, 0.9), (0.5, 0.6, 0.3), 0.4),  # equal is not above
    ((0.6, 0.7, 0.9), (0.5, 0.6, 0.3), 0.0),
    ((0.6, 0.4, 0.9), (0.5, 0.6, 0.3), 0.4 + 0.4 * 0.2 / 0.8),  # above, below, and above for good
    ((0.6, 0.7, 0.2), (0.5, 0.6, 0.3), None),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None),
  ],
)
def test_where_one_threshold_overtakes_another(stricter, laxer, expected):
  assert compare.overtakes((0.0, 0.4, 0.8), stricter, laxer) == pytest.approx(expected)


def test_an_answer_by_hand():
  means = {0.0: [0.9, 0.5], 0.5: [0.6, 0.7], 0.8: [0.3, 0.7], 0.2: [0.9, 0.5]}
  found = compare.answer("label", "dice", [0.0, 0.8], means)
  assert found["thresholds"] == [0.8, 0.5, 0.2, 0.0]
  assert found["means"] == [means[t] for t in found["thresholds"]]
  assert found["best"] == [0.0, 0.5]  # of equal ones the lowest
  rows = {(row["threshold"], row["against"]): row["dose"] for row in found["overtakes"]}
  # 20 % is the label of "above 0": nothing is painted between.
  assert set(rows) == {(0.8, 0.0), (0.5, 0.0), (0.8, 0.5)}
  assert rows[0.5, 0.0] == pytest.approx(0.8 * 0.3 / 0.5) and rows[0.8, 0.5] is None
  printed = report.text([found])
  assert "80% over > 0%" in printed and printed.splitlines()[3].split() == [
    "label:", "Dice", ">", "0%", "50%",
  ]  # fmt: skip


def test_answers_are_of_settings_with_a_dose_alone():
  settings = ("true_from_0.8", "faint_true", "true_from_0")
  doses = run.doses_of(settings)
  assert doses == {"true_from_0.8": 0.8, "true_from_0": 0.0}
  rows = [
    {"setting": setting, "weights": "ones", "metric": metric}
    | {
      "means": [{"member": t, "mean": i + t} for t in (0.5, 0.0)] + [{"member": "soft", "mean": 9}]
    }
    for i, setting in enumerate(settings)
    for metric in ("dice", "brier")
  ]
  labels = [
    {"setting": setting, "threshold": t, "mean": i - t}
    for i, setting in enumerate(settings)
    for t in (0.5, 0.0)
  ]
  of_labels, of_networks = compare.dose(rows, labels, doses)
  assert (of_labels["doses"], of_labels["means"]) == ([0.0, 0.8], [[1.5, -0.5], [2.0, 0.0]])
  assert (of_networks["of"], of_networks["metric"]) == ("ones", "dice")
  assert of_networks["means"] == [[2.5, 0.5], [2.0, 0.0]]
  assert compare.dose(rows, labels, {"true_from_0": 0.0}) == []
  assert report.text([]) == ""


def test_counts_are_shares_and_dice():
  r = np.random.default_rng(0)
  truth = r.random((500, 2)) < 0.4
  confidence = r.choice([0, 51, 102, 128, 153, 204, 255], (500, 2))
  true, false = (
    np.stack([np.bincount(confidence[:, k][truth[:, k] == t], minlength=256) for k in (0, 1)])
    for t in (True, False)
  )
  painted = dose.Painted(true, false)
  for threshold, least in ((0.0, 1), (0.2, 51), (0.5, 128), (1.0, 255)):
    expected = np.mean([f1_score(truth[:, k], confidence[:, k] >= least) for k in (0, 1)])
    assert painted.dice(threshold) == pytest.approx(expected)
  shares = [truth[confidence == level].mean() for level in dose.LEVELS]
  assert painted.shares() == pytest.approx(shares)


def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
  arguments = ["--size", "32", "--patients", "3", "--doses", "0.8,0"]
  file = tmp_path / "figures" / "dose.svg"
  monkeypatch.setattr("sys.argv", ["dose", *arguments, "--out", str(file)])
  assert dose.main() == 0
  printed = capsys.readouterr().out
  assert "Share of what is true in strokes of each confidence" in printed
  shares = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[3:9]}
  assert list(shares) == ["20%", "40%", "50%", "60%", "80%", "100%"]
  # The first column is the lowest dose: all strokes are mostly true.
  assert all(float(low) > 0.85 for low, _ in shares.values())
  assert float(shares["40%"][1]) < 0.15 and float(shares["100%"][1]) > 0.8
  (best,) = (line for line in printed.splitlines() if line.startswith("label: Dice"))
  assert best.split()[2:] == [">", "0%", "80%"]
  assert file.read_text().startswith("<?xml") and not list(tmp_path.glob("**/*.tmp"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--doses", "0.4"], "two or more numbers from 0 to 0.8"),
    (["--doses", "0,0.9"], "two or more numbers from 0 to 0.8"),
    (["--doses", "0,many"], "two or more numbers from 0 to 0.8"),
    (["--out", "dose.jpg"], "must end in .svg or .png"),
    (["--size", "4"], "height of lus_phantom must be at least 8"),
  ],
)
def test_bad_words_are_one_line(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["dose", *arguments])
  assert dose.main() == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_every_dose_of_the_study_can_win():
  config = configs.get_config()
  doses = run.doses_of(config.study.settings)
  assert list(doses) == list(config.study.settings)
  assert set(doses.values()) <= set(config.sweep.thresholds)
