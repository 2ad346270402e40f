"""A whole sweep of every kind of member on several raters, in small: files and numbers."""

import json
import os

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import optimize

from configs import raters as raters_config
from lus_jax import models, predict, results
from lus_jax.data import datasets, pipeline
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.tasks.segmentation import run
from tests import toys

THRESHOLDS = (1.0, 0.5, 0.2)
PLAIN = ["threshold_1", "threshold_0.5", "threshold_0.2"]
EXTRA = ["soft", "softseg", "svls_0.5", "majority", "staple", "random_rater", "rater_A"]
EXTRA += ["ordinal", "ordinal_0.2", "ordinal_0.5", "ordinal_1", "threshold_0.5_dice"]
OWN_THRESHOLD = dict(zip(PLAIN, THRESHOLDS, strict=True)) | {
  "ordinal_0.2": 0.2,
  "ordinal_0.5": 0.5,
  "ordinal_1": 1.0,
  "threshold_0.5_dice": 0.5,
}
FILES = ("members", "raters", "calibration")
EPOCHS = 16
K, SIZE = 6, 32


def make_config(prepared, **changes):
  config = raters_config.get_config("tiny")
  config.data.image_size = SIZE
  config.data.phantom.update({"n_patients": 6, "n_frames": 2, "missing_views": 0.5})
  config.data.prepared_dir = os.fspath(prepared)
  config.model.width = 0.125
  config.sweep.thresholds = THRESHOLDS
  config.sweep.members = (
    "soft",
    "softseg",
    "svls",
    "majority",
    "staple",
    "random_rater",
    "rater(A)",
    "ordinal",
    "threshold(.5, loss=dice)",
  )
  config.optimizer.learning_rate = 1e-2
  config.train.batch_size = 2
  config.train.epochs = EPOCHS
  config.train.checkpoint_every = EPOCHS
  config.calibration = "isotonic"
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", autouse=True)
def toy_networks():
  """Toys in place of the real networks, with a head at a quarter of the size as theirs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "build_model", toys.build_head)
    yield


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  run.train_and_evaluate(make_config(prepared, **{"optimizer.learning_rate": 3e-2}), workdir)
  return workdir


@pytest.fixture(scope="module")
def trained(workdir):
  return trained_lib.load(workdir, every=True)


@pytest.fixture(scope="module")
def splits(prepared):
  """Arrays of every split: `image`, `raters`, `drawn`, ..., and `soft`, the raters' mean."""
  dataset = datasets.open_dataset(make_config(prepared).data, "frames")
  fields = (*pipeline.FIELDS, "raters", "drawn")
  found = {name: pipeline.load(source, fields) for name, source in dataset.splits.items()}
  for arrays in found.values():
    assert arrays["drawn"].all()
    assert (arrays["valid_box"] == [0, 0, SIZE, SIZE]).all()
  return found


def outputs(trained, arrays, *, calibrated=True):
  """Probabilities [N, H, W, K] of every view, by name."""
  image = arrays["image"].astype(np.float32) / 255
  where = np.ones(image.shape, bool)
  found = {}
  weights = trained.sweep.to_host(trained.weights)
  probability = jax.jit(trained.probability)
  for view, own, held in zip(trained.views, trained.sweep.members, weights, strict=True):
    if not calibrated:
      own = {name: value for name, value in own.items() if name != "calibration"}
    found[view.name] = np.asarray(probability(held, own, image, where), np.float64)
  return found


@pytest.fixture(scope="module")
def predicted(trained, splits):
  return outputs(trained, splits["test"])


@pytest.fixture(scope="module")
def raw_outputs(trained, splits):
  return {name: outputs(trained, splits[name], calibrated=False) for name in ("validation", "test")}


def target(name, arrays):
  """What a view's probability should mean."""
  confidence = arrays["confidence"].astype(np.float64) / 255
  threshold = OWN_THRESHOLD.get(name)
  return confidence if threshold is None else (confidence >= threshold - 0.5 / 255) * 1.0


def class_ece(p, y):
  bins = np.clip(np.ceil(p * 15 - 1e-9).astype(int) - 1, 0, 14)
  gaps = [abs((p - y)[bins == b].sum()) for b in range(15)]
  return sum(gaps) / p.size


def ece(p, y):
  """By class; None where nothing is to be found, or p is the same everywhere."""
  each = [(p[..., k].ravel(), y[..., k].ravel()) for k in range(K)]
  return [class_ece(a, b) if b.any() and np.ptp(a) > 1e-6 else None for a, b in each]


def defined_mean(values):
  values = [value for value in values if value is not None]
  return np.mean(values) if values else None


def overlap(a, b):
  return 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0


def distance(a, b):
  return 1 - (a & b).sum() / (a | b).sum() if a.any() or b.any() else 0.0


def by_image(function, *arrays):
  """Mean over images by class, then over classes."""
  n = len(arrays[0])
  scores = [[function(*(x[i, ..., k] for x in arrays)) for i in range(n)] for k in range(K)]
  return np.mean([np.mean(row) for row in scores])


LEVELS = np.arange(1, 10) / 10 - 1e-6


def qubiq(p, share):
  return np.mean([overlap(p >= level, share >= level) for level in LEVELS])


def dice_vs_raters(p, *masks):
  return np.mean([overlap(p >= 0.5, mask) for mask in masks])


def dice_vs_consensus(p, *masks):
  without = [np.delete(masks, r, 0).mean(0) >= 0.5 for r in range(len(masks))]
  return np.mean([overlap(p >= 0.5, one) for one in without])


def energy_distance(p, *masks):
  sets = [p >= level for level in LEVELS]

  def expectation(a, b):
    return np.mean([distance(x, y) for x in a for y in b])

  return 2 * expectation(sets, masks) - expectation(sets, sets) - expectation(masks, masks)


def test_the_files_are_there_and_alike(workdir):
  names = {path.name for path in (workdir / "results").iterdir()}
  expected = {"segmentation", "segmentation_matrix", "members", "raters", "calibration"}
  expected |= {"dataset", "history", "cases"}
  assert names == {f"{name}.json" for name in (*expected, "timing")} | {"examples.npz"}
  for name in expected:
    content = results.read(workdir, name)
    assert content["dataset"]["raters"] == ["A", "B", "C"]
    assert content["config"]["sweep"]["members"][6] == "rater(A)"
    assert content["rows"]
  assert not list(workdir.rglob("*.tmp"))


def test_table_1_holds_the_thresholds_and_members_the_others(workdir):
  plain, extra = (results.read(workdir, name) for name in ("segmentation", "members"))
  assert [row["threshold"] for row in plain["rows"]] == list(THRESHOLDS)
  assert [row["member"] for row in extra["rows"]] == EXTRA
  assert plain["split"] == extra["split"] == "test"
  for row in extra["rows"]:
    assert row["threshold"] == OWN_THRESHOLD.get(row["member"])
    assert "matrix" not in row and {"iou", "dice", "ece", "brier", "reliability"} <= set(row)
  described = {row["member"]: (row["target"], row["loss"], row["weights"]) for row in extra["rows"]}
  assert described["softseg"] == ("softseg", "adaptive_wing", "ones")
  assert described["ordinal_0.2"] == ("ordinal", "weighted_cross_entropy", "ones")
  assert described["threshold_0.5_dice"] == ("threshold", "dice", "ones")
  cost = extra["cost"]
  assert cost["thresholds"] == 3 and 0 < cost["gflop_per_network"] < cost["gflop_ordinal"]
  matrix = results.read(workdir, "segmentation_matrix")["rows"]
  pairs = [(row["model_threshold"], row["evaluation_threshold"]) for row in matrix]
  assert pairs == [(m, e) for m in THRESHOLDS for e in THRESHOLDS]
  for case in results.read(workdir, "cases")["rows"]:
    assert list(case["iou"]) == PLAIN + EXTRA


def test_every_member_learns_and_levels_share_their_epoch(workdir):
  history = results.read(workdir, "history")["rows"]
  names = [name for name in PLAIN + EXTRA if not name.startswith("ordinal_")]
  assert [row["member"] for row in history] == names * EPOCHS
  losses = {name: [r["train_loss"] for r in history if r["member"] == name] for name in names}
  for name, values in losses.items():
    assert values[-1] < 0.9 * values[0], name
  epochs = {r["member"]: r["best_epoch"] for r in results.read(workdir, "members")["rows"]}
  assert len({epochs[name] for name in epochs if name.startswith("ordinal")}) == 1


def test_epochs_of_members_without_a_threshold_are_chosen_at_one_half(workdir, raw_outputs, splits):
  # The best score of the history is what the best weights reach on validation.
  history = results.read(workdir, "history")["rows"]
  epochs = {r["member"]: r["best_epoch"] for r in results.read(workdir, "members")["rows"]}
  labels = splits["validation"]["confidence"] >= 127.5
  for name in ("soft", "rater_A", "svls_0.5", "ordinal"):
    (score,) = [r["score"] for r in history if r["member"] == name and r["epoch"] == epochs[name]]
    p = raw_outputs["validation"][name] >= 0.5
    per_class = []
    for k in range(K):
      pairs = [(p[i, ..., k], labels[i, ..., k]) for i in range(len(p))]
      each = [1 - distance(a, b) for a, b in pairs if a.any() or b.any()]
      per_class += [np.mean(each)] if each else []
    assert score == pytest.approx(np.mean(per_class), abs=2e-3)


def test_scores_against_the_raters_are_recomputed(workdir, predicted, splits):
  content = results.read(workdir, "raters")
  assert content["calibration"] == "isotonic" and content["split"] == "test"
  rows = {row["member"]: row for row in content["rows"]}
  assert list(rows) == PLAIN + EXTRA
  arrays = splits["test"]
  masks = arrays["raters"] >= 128
  share = masks.mean(1)
  distinct = set()
  for name, row in rows.items():
    assert row["threshold"] == OWN_THRESHOLD.get(name) and row["seed"] == 0
    p = predicted[name]
    each = np.moveaxis(masks, 1, 0)
    # A pixel on the edge of a level may fall on either side of it.
    assert row["qubiq"] == pytest.approx(by_image(qubiq, p, share), abs=3e-3), name
    assert row["dice_vs_raters"] == pytest.approx(by_image(dice_vs_raters, p, *each), abs=3e-3)
    assert row["dice_vs_consensus"] == pytest.approx(
      by_image(dice_vs_consensus, p, *each), abs=3e-3
    )
    assert row["ged"] == pytest.approx(by_image(energy_distance, p, *each), abs=6e-3)
    assert row["ece"] == pytest.approx(defined_mean(ece(p, share)), abs=1e-3)
    assert row["brier"] == pytest.approx(np.mean((p - share) ** 2), abs=1e-4)
    areas, painted = p.sum((1, 2)), masks.sum((2, 3)).mean(1)
    error = [
      np.mean([(a - b) / b for a, b in zip(areas[:, k], painted[:, k], strict=True) if b])
      for k in range(K)
      if painted[:, k].any()
    ]
    assert row["area_error"] == pytest.approx(np.mean(error), abs=1e-3)
    assert set(row["intervals"].values()) == {None}  # one test patient
    distinct.add(round(row["qubiq"], 6))
  assert len(distinct) > len(rows) // 2


def test_the_raters_are_scored_on_the_same_footing(workdir, splits):
  content = results.read(workdir, "raters")
  masks = splits["test"]["raters"] >= 128
  assert [row["rater"] for row in content["humans"]] == ["A", "B", "C"]
  for r, row in enumerate(content["humans"]):
    others = [masks[:, s] for s in range(3) if s != r]
    assert row["person"] == row["rater"] and row["n_images"] == len(masks)
    expected = np.mean([by_image(overlap, masks[:, r], other) for other in others])
    assert row["dice_vs_others"] == pytest.approx(expected)
    consensus = np.mean(others, axis=0) >= 0.5
    assert row["dice_vs_consensus"] == pytest.approx(by_image(overlap, masks[:, r], consensus))
  curve = content["curve"]
  assert curve["member"] == "soft" and [row["n_raters"] for row in curve["rows"]] == [1, 2, 3]
  assert curve["rows"][2]["fused_vs_all"] == 1
  (qubiq,) = [row["qubiq"] for row in content["rows"] if row["member"] == "soft"]
  assert curve["rows"][2]["prediction_vs_fused"] == pytest.approx(qubiq)
  variance = masks.var(1).mean((1, 2, 3))
  assert [row["disagreement"] for row in content["images"]] == pytest.approx(variance.tolist())


def test_examples_show_where_raters_agree_and_where_not(workdir, predicted, splits):
  variance = (splits["test"]["raters"] >= 128).var(1)
  ranked = np.argsort(variance.mean((1, 2, 3)), kind="stable")
  with np.load(workdir / "results" / "examples.npz") as examples:
    assert examples["probability"].shape[0] == len(PLAIN)
    index = examples["rater_index"]
    assert index.tolist() == [*ranked[:2], *ranked[-2:]]
    assert examples["rater_role"].tolist() == ["most_agreed"] * 2 + ["least_agreed"] * 2
    assert examples["rater_names"].tolist() == PLAIN + EXTRA
    np.testing.assert_allclose(examples["rater_disagreement"], variance[index], atol=1e-6)
    expected = np.stack([255 * predicted[name][index] for name in PLAIN + EXTRA])
    off = np.abs(examples["rater_probability"] - expected) > 0.51
    assert off.mean() < 1e-3


def test_calibration_errors_are_recomputed_before_and_after(
  workdir, raw_outputs, predicted, splits
):
  content = results.read(workdir, "calibration")
  assert content["chosen"] == "isotonic" and content["split"] == "test"
  rows = {(row["member"], row["method"]): row for row in content["rows"]}
  methods = ("none", "temperature", "isotonic")
  assert list(rows) == [(name, method) for name in PLAIN + EXTRA for method in methods]
  for name in PLAIN + EXTRA:
    y = target(name, splits["test"])
    for method, p in (("none", raw_outputs["test"][name]), ("isotonic", predicted[name])):
      row = rows[name, method]
      expected = ece(p, y)
      assert row["ece"] == pytest.approx(defined_mean(expected), abs=1e-3), (name, method)
      for found, one in zip(row["ece_per_class"].values(), expected, strict=True):
        assert found == (one if one is None else pytest.approx(one, abs=2e-3))
      assert row["brier"] == pytest.approx(np.mean((p - y) ** 2), abs=1e-4)
      says_something = any(np.ptp(p[..., k]) > 1e-6 for k in range(K))
      pooled = class_ece(p.ravel(), y.ravel()) if says_something else None
      assert row["ece_pooled"] == pytest.approx(pooled, abs=1e-3)


def logit(p):
  return np.log(p) - np.log1p(-p)


def test_a_temperature_is_that_of_the_pixels_themselves(workdir, raw_outputs, splits):
  rows = {
    (row["member"], row["method"]): row for row in results.read(workdir, "calibration")["rows"]
  }
  y, p = target("soft", splits["validation"]), raw_outputs["validation"]["soft"]
  calibrated = raw_outputs["test"]["soft"].copy()
  for k in range(K):
    if not y[..., k].any():
      continue
    z = logit(np.clip(p[..., k], 1e-7, 1 - 1e-7))

    def cross_entropy(t, z=z, y=y[..., k]):
      return np.mean(np.logaddexp(0, z / t) - z / t * y)

    t = optimize.minimize_scalar(cross_entropy, bounds=(0.05, 20), method="bounded").x
    calibrated[..., k] = 1 / (1 + np.exp(-logit(calibrated[..., k]) / t))
  y = target("soft", splits["test"])
  assert rows["soft", "temperature"]["brier"] == pytest.approx(
    np.mean((calibrated - y) ** 2), rel=1e-2
  )
  assert rows["soft", "temperature"]["ece"] == pytest.approx(
    defined_mean(ece(calibrated, y)), abs=1e-3
  )


def test_isotonic_calibration_is_no_worse_where_it_was_fitted(trained, raw_outputs, splits):
  validation = splits["validation"]
  after = outputs(trained, validation)
  gained = 0.0
  for name in PLAIN + EXTRA:
    # Levels of one network share a calibration, which is fitted to all of them together.
    group = (
      [n for n in EXTRA if n.startswith("ordinal_")] if name.startswith("ordinal_") else [name]
    )
    y = np.concatenate([target(n, validation) for n in group])
    pairs = zip(
      *(
        ece(np.concatenate([found[n] for n in group]), y)
        for found in (raw_outputs["validation"], after)
      ),
      strict=True,
    )
    # Of an output that says nothing there is no error, before or after.
    old, new = np.array([pair for pair in pairs if None not in pair]).reshape(-1, 2).T
    assert (new <= old + 1e-3).all(), name
    gained += np.sum(old - new) / K
  assert gained > 0.01


def test_the_calibration_file_holds_what_was_chosen(workdir):
  fitted = json.loads((workdir / "calibration.json").read_text())["fitted"]
  assert list(fitted) == PLAIN + EXTRA
  assert {one["method"] for one in fitted.values()} == {"isotonic"}
  assert fitted["ordinal_0.2"] == fitted["ordinal_0.5"] == fitted["ordinal_1"]
  assert fitted["ordinal"] != fitted["ordinal_1"]
  assert fitted["soft"] != fitted["softseg"]


def test_levels_stay_nested_on_every_split(trained, splits):
  for arrays in splits.values():
    found = outputs(trained, arrays)
    low, middle, high = (found[f"ordinal_{t}"] for t in ("0.2", "0.5", "1"))
    assert (low >= middle).all() and (middle >= high).all()
    assert (low - high).max() > 0.05
    # The mean has its own calibration; as it was trained it is the levels' integral.
  raw = outputs(trained, splits["test"], calibrated=False)
  mean = 0.2 * raw["ordinal_0.2"] + 0.3 * raw["ordinal_0.5"] + 0.5 * raw["ordinal_1"]
  np.testing.assert_allclose(raw["ordinal"], mean, atol=1e-5)


def test_predictions_of_members_are_calibrated_and_nested(
  workdir, predicted, splits, tmp_path, capsys
):
  np.save(tmp_path / "clip.npy", splits["test"]["image"][..., 0])
  n = len(splits["test"]["image"])
  out = tmp_path / "out"
  names = ["soft", "ordinal", "ordinal_0.5", "ordinal_0.2"]
  arguments = [
    "predict",
    "--compilation_cache=",
    f"--workdir={workdir}",
    f"--input={tmp_path / 'clip.npy'}",
    f"--out={out}",
    f"--members={','.join(names)}",
  ]
  assert predict.main(arguments) == 0
  assert f"{n} frames, 4 models, {K} classes" in capsys.readouterr().out
  record = json.loads((out / "prediction.json").read_text())
  assert record["members"] == names and record["complete"]
  assert record["meaning"]["soft"] == record["meaning"]["ordinal"] == "value / 255 = confidence"
  assert record["meaning"]["ordinal_0.2"] == "value / 255 = P(confidence >= 0.2)"
  folders = {path.name for path in out.iterdir() if path.is_dir()}
  assert folders == {*names, "overlays"}

  def read(name):
    files = [
      [out / name / f"{i:06d}" / f"{label}.png" for label in record["classes"]] for i in range(n)
    ]
    masks = [[np.asarray(Image.open(file)) for file in row] for row in files]
    return np.moveaxis(np.array(masks, int), 1, -1)

  for name in names:
    off = np.abs(read(name) - 255 * predicted[name]) > 0.51
    assert off.mean() < 1e-3, name
  assert (read("ordinal_0.2") >= read("ordinal_0.5")).all()
  assert (read("ordinal_0.2") > read("ordinal_0.5")).any()


def test_those_who_build_on_the_run_see_the_thresholds_alone(workdir, trained):
  plain = trained_lib.load(workdir)
  assert plain.thresholds == THRESHOLDS
  assert [view.name for view in plain.views] == PLAIN
  assert [view.name for view in trained.views] == PLAIN + EXTRA
  # They are the same models, calibrated alike.
  assert plain.fingerprints == trained.fingerprints[:3]
  assert len(set(trained.fingerprints)) == len(PLAIN + EXTRA)
  part = trained.only([trained.thresholds.index(None)])
  assert [view.name for view in part.views] == ["soft"]


def test_a_lost_calibration_is_missed(workdir):
  file = workdir / "calibration.json"
  content = file.read_text()
  file.write_text("{")
  try:
    with pytest.raises(UserError, match="calibration of the run's models is missing or damaged"):
      trained_lib.load(workdir)
  finally:
    file.write_text(content)
