from collections.abc import Sequence

import numpy as np
import pytest
from scipy import ndimage, stats

from lus_jax.data import datasets, labelling, pipeline
from lus_jax.errors import UserError
from lus_jax.labels import fusion

SIZE, K = 40, 2
# What a confidence c is called: one annotator says it as it is, the other is timid.
STYLES = {"ann": lambda c: c, "bob": lambda c: c**2}
RATERS = ("ann", "bob", "cem")


class Split(Sequence):
  """A split that hands out the features asked for and no other."""

  def __init__(self, examples, names=None):
    self._examples, self._names = examples, names

  def __len__(self):
    return len(self._examples)

  def __getitem__(self, index):
    example = self._examples[index]
    return {name: example[name] for name in self._names or example}

  def only(self, *names):
    return Split(self._examples, names)


def stored(confidence):
  return np.rint(255 * confidence).astype(np.uint8)


def truth(r):
  """Confidences of a frame: a smooth field on a blob, 0 around it; each class its own."""
  smooth = ndimage.gaussian_filter(r.normal(size=(2, SIZE, SIZE, K)), (0, 3, 3, 0))
  ranks = stats.rankdata(smooth[0], axis=None).reshape(smooth[0].shape) / smooth[0].size
  return np.where(smooth[1] > 0, stats.beta(2, 2).ppf(ranks), 0)


def painted(annotator, confidence, *, video="v", frame=0):
  return {
    "image": np.full((SIZE, SIZE, 1), frame, np.uint8),
    "confidence": stored(STYLES[annotator](confidence)),
    "annotator": annotator.encode(),
    "labelled": np.ones(K, bool),
    "valid_box": np.array([0, 0, SIZE, SIZE], np.int32),
    "video": video.encode(),
    "frame": np.int32(frame),
    "patient": b"p",
  }


def rated(r, drawn=(True, True, True)):
  confidence = truth(r)
  raters = np.stack([stored(STYLES.get(name, np.sqrt)(confidence)) for name in RATERS])
  raters = np.where(np.reshape(drawn, (-1, 1, 1, 1)), raters, 0).astype(np.uint8)
  return painted("ann", confidence) | {
    "annotator": b"",
    "raters": raters,
    "drawn": np.array(drawn),
    "confidence": np.rint(raters[np.array(drawn)].mean(0)).astype(np.uint8),
    "valid_box": np.array([4, 0, SIZE - 6, SIZE], np.int32),
  }


def make_dataset(splits, raters=(), **more):
  return datasets.Dataset(
    name="mine",
    version="1",
    classes=("pleura", "line"),
    thin=(),
    split_unit="patient",
    splits={name: Split(examples) for name, examples in splits.items()},
    metadata={"raters": list(raters), "persons": list(raters)} | more,
  )


@pytest.fixture(scope="module")
def two_styles():
  """Twelve training frames of each annotator, no frame twice."""
  r = np.random.default_rng(0)

  def frames(n):
    return [
      painted(name, truth(r), video=f"{name}{i}") for i in range(n) for name in ("ann", "bob")
    ]

  return {"train": frames(12), "validation": frames(3), "test": frames(2)}


@pytest.fixture(scope="module")
def several_raters():
  r = np.random.default_rng(1)
  drawn = [(True, True, True), (True, False, True), (False, True, True), (True, True, False)]
  return {
    "train": [rated(r, d) for d in (*drawn, *drawn)],
    "validation": [rated(r), rated(r, drawn[1])],
    "test": [rated(r)],
  }


def distance(split, k):
  """How far the two annotators' distributions of confidences above 0 are apart."""
  values = {name: [] for name in STYLES}
  for example in split.only("confidence", "annotator"):
    confidence = example["confidence"][..., k]
    values[example["annotator"].decode()].append(confidence[confidence > 0])
  return stats.wasserstein_distance(*map(np.concatenate, values.values()))


def test_quantile_brings_two_styles_together(two_styles):
  dataset = make_dataset(two_styles)
  splits = labelling.standardised(dataset, "quantile")
  for k in range(K):
    assert distance(dataset.splits["train"], k) > 30
    assert distance(splits["train"], k) < 3
    assert distance(splits["validation"], k) < distance(dataset.splits["validation"], k) / 2
  # Each annotator's order stays, and so does "above 0".
  for before, after in zip(two_styles["train"], splits["train"], strict=True):
    for k in range(K):
      a, b = (x["confidence"][..., k].astype(int).ravel() for x in (before, after))
      order = np.argsort(a, kind="stable")
      assert (np.diff(b[order]) >= 0).all()
      np.testing.assert_array_equal(a > 0, b > 0)


@pytest.mark.parametrize("method", ["none", "quantile"])
def test_the_test_split_stays_as_it_was_painted(two_styles, method):
  dataset = make_dataset(two_styles)
  splits = labelling.standardised(dataset, method)
  assert splits["test"] is dataset.splits["test"]
  unchanged = splits["train"] is dataset.splits["train"]
  assert unchanged == (method == "none")


def test_maps_are_fitted_to_the_training_split_alone(two_styles):
  expected = labelling.standardised(make_dataset(two_styles), "quantile")["train"]
  white = {"confidence": np.full((SIZE, SIZE, K), 255, np.uint8)}
  others = two_styles | {
    name: [example | white for example in two_styles[name]] for name in ("validation", "test")
  }
  found = labelling.standardised(make_dataset(others), "quantile")["train"]
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_array_equal(a["confidence"], b["confidence"])


def test_an_annotator_who_trained_nothing_keeps_the_own_scale(two_styles):
  splits = two_styles | {"train": [x for x in two_styles["train"] if x["annotator"] == b"ann"]}
  validation = labelling.standardised(make_dataset(splits), "quantile")["validation"]
  for before, after in zip(two_styles["validation"], validation, strict=True):
    if before["annotator"] == b"bob":
      np.testing.assert_array_equal(before["confidence"], after["confidence"])


def both(r, n):
  for frame in range(n):
    confidence = truth(r)
    for name in STYLES:
      yield painted(name, confidence, frame=frame)


def gap(split):
  """Mean difference of the two annotators where the first painted the same frame."""
  frames = {}
  for example in split:
    key = example["video"], int(example["frame"])
    frames.setdefault(key, []).append(example["confidence"].astype(int))
  pairs = [np.abs(a - b)[a > 0] for a, b in frames.values()]
  return np.concatenate(pairs).mean()


def test_overlap_carries_each_to_what_the_other_painted():
  r = np.random.default_rng(2)
  splits = {"train": [*both(r, 8)], "validation": [*both(r, 2)], "test": [*both(r, 1)]}
  dataset = make_dataset(splits)
  found = labelling.standardised(dataset, "overlap")
  # With two annotators each map goes to the other's scale: their styles change places.
  for split in ("train", "validation"):
    for before, after in zip(splits[split], found[split], strict=True):
      c = before["confidence"].astype(np.float64) / 255
      expected = c**2 if before["annotator"] == b"ann" else np.sqrt(c)
      error = np.abs(255 * expected - after["confidence"])[before["confidence"] > 8]
      assert error.mean() < 2
  assert found["test"] is dataset.splits["test"]


def test_what_one_annotator_ignored_is_compared_with_nobodys():
  r = np.random.default_rng(3)
  examples, ignored = [], np.zeros((SIZE, SIZE, 1), np.uint8)
  ignored[: SIZE // 2] = 1
  for i in range(6):
    pair = [
      painted(name, confidence, video=f"v{i}") for confidence in [truth(r)] for name in STYLES
    ]
    pair[1]["confidence"] = np.where(ignored, 0, pair[1]["confidence"]).astype(np.uint8)
    examples += [x | {"ignore": ignored * (x is pair[1])} for x in pair]
  splits = {"train": examples, "validation": examples, "test": examples}
  half = [x | {k: x[k][SIZE // 2 :] for k in ("confidence", "image")} for x in examples]
  expected = labelling.standardised(make_dataset(splits | {"train": half}), "overlap")
  found = labelling.standardised(make_dataset(splits, has_ignore=True), "overlap")
  for a, b in zip(found["validation"], expected["validation"], strict=True):
    np.testing.assert_array_equal(a["confidence"], b["confidence"])


@pytest.mark.parametrize("kind", ["unlabelled", "offered"])
@pytest.mark.parametrize("method", ["quantile", "overlap"])
def test_what_is_not_an_annotators_own_is_compared_with_nobodys(method, kind):
  r = np.random.default_rng(4)
  train = [*both(r, 8)]
  alone = [*both(r, 4)]
  splits = {"train": train, "validation": [*both(r, 2)], "test": [*both(r, 1)]}
  expected = labelling.standardised(make_dataset(splits), method)["validation"]
  # Four frames more, of which nobody's first class counts and both paint the second.
  some = np.array([False, True])
  kept = {"labelled": np.ones(K, bool), "prelabelled": np.zeros(K, bool), "touched": some}
  lost = kept | ({"labelled": some} if kind == "unlabelled" else {"prelabelled": ~some})
  more = [x | lost | {"frame": x["frame"] + 100} for x in alone]
  for x in more:
    x["confidence"] = x["confidence"].copy()
    x["confidence"][..., 0] = 7
  found = {name: [x | kept for x in examples] for name, examples in splits.items()}
  found["train"] = found["train"] + more
  changed = labelling.standardised(make_dataset(found, has_provenance=True), method)["validation"]
  for a, b in zip(changed, expected, strict=True):
    np.testing.assert_array_equal(a["confidence"][..., 0], b["confidence"][..., 0])
  # What is the annotators' own does count.
  assert any(
    (a["confidence"] != b["confidence"]).any() for a, b in zip(changed, expected, strict=True)
  )


def test_overlap_brings_three_raters_together(several_raters):
  dataset = make_dataset(several_raters, RATERS)
  found = labelling.standardised(dataset, "overlap")["train"]

  def spread(split):
    spreads = []
    for example in split:
      raters = example["raters"][example["drawn"]].astype(np.float64)
      spreads.append(np.ptp(raters, axis=0)[(raters > 0).all(0)])
    return np.concatenate(spreads).mean()

  assert spread(found) < 0.7 * spread(dataset.splits["train"])


@pytest.mark.parametrize("kind", ["nobody", "other_video", "raters"])
def test_overlap_needs_frames_that_two_people_painted(two_styles, several_raters, kind):
  r = np.random.default_rng(3)
  if kind == "raters":
    r = np.random.default_rng(4)
    alone = [rated(r, np.arange(3) == i) for i in range(3)]
    dataset = make_dataset(several_raters | {"train": alone}, RATERS)
  elif kind == "other_video":
    # Frame 0 of one video is not frame 0 of another; and the validation split fits nothing.
    dataset = make_dataset(two_styles | {"validation": [*both(r, 2)]})
  else:
    dataset = make_dataset(two_styles | {"train": [two_styles["train"][0]]})
  with pytest.raises(UserError, match="no training frame was painted by two annotators") as error:
    labelling.standardised(dataset, "overlap")
  assert "\n" not in str(error.value)


def test_of_several_raters_each_is_carried_and_their_mean_is_made_anew(several_raters):
  dataset = make_dataset(several_raters, RATERS)
  found = labelling.standardised(dataset, "quantile")
  for split in ("train", "validation"):
    # Whoever asks for the confidence alone gets the same one.
    alone = found[split].only("confidence")
    for before, after, one in zip(several_raters[split], found[split], alone, strict=True):
      drawn = before["drawn"]
      assert not after["raters"][~drawn].any()
      np.testing.assert_array_equal(after["drawn"], drawn)
      assert np.abs(after["raters"].astype(int) - before["raters"])[drawn].max() > 20
      expected = np.rint(after["raters"][drawn].mean(0))
      np.testing.assert_array_equal(after["confidence"], expected)
      np.testing.assert_array_equal(one["confidence"], expected)
  first = found["train"][0]["raters"].astype(int)
  before = several_raters["train"][0]["raters"].astype(int)
  painted = (before > 0).all(0)
  assert np.ptp(first, axis=0)[painted].mean() < np.ptp(before, axis=0)[painted].mean() / 2


def test_what_is_not_painted_is_handed_on(two_styles, several_raters):
  for dataset in (make_dataset(two_styles), make_dataset(several_raters, RATERS)):
    split = labelling.standardised(dataset, "quantile")["train"]
    example = split.only("image", "patient")[1]
    assert set(example) == {"image", "patient"}
    assert len(split) == len(dataset.splits["train"])
    with pytest.raises(IndexError):
      split[len(split)]


def test_an_unknown_method_is_refused():
  for method in labelling.METHODS:
    labelling.check_method(method)
  with pytest.raises(UserError, match=r"standardise: 'x' is not known; choose one of none, quan"):
    labelling.check_method("x")


@pytest.fixture
def fused(monkeypatch):
  """Images that STAPLE was asked for, one entry a call."""
  calls, staple = [], fusion.staple

  def counted(raters, drawn, *, box):
    calls.append(raters.tobytes())
    return staple(raters, drawn, box=box)

  monkeypatch.setattr(fusion, "staple", counted)
  return calls


def test_staple_is_that_of_the_fusion_and_is_made_once(several_raters, fused):
  split = labelling.WithStaple(Split(several_raters["train"]))
  asked = split.only("image", "staple")
  assert not fused  # nothing is made before somebody looks at it
  for _ in range(2):  # two epochs
    found = [asked[i] for i in range(len(asked))]
  assert len(fused) == len(set(fused)) == len(several_raters["train"])
  for example, stored_ in zip(found, several_raters["train"], strict=True):
    box = stored_["valid_box"]
    expected = fusion.staple(stored_["raters"], stored_["drawn"], box=box)
    assert 0.01 < expected.mean() < 0.9
    assert not expected[: box[0]].any() and not expected[box[2] :].any()
    assert example["staple"].dtype == np.uint8
    np.testing.assert_array_equal(example["staple"], np.rint(255 * expected))
    np.testing.assert_array_equal(example["image"], stored_["image"])


def test_staple_costs_nothing_where_nobody_asks(several_raters, two_styles, fused):
  assert set(labelling.WithStaple(Split(several_raters["train"])).only("image")[0]) == {"image"}
  # Nor does a data set without raters mind.
  frames = labelling.WithStaple(Split(two_styles["train"])).only("image", "confidence")
  assert set(frames[3]) == {"image", "confidence"}
  assert not fused


@pytest.mark.parametrize("cache", ["device", "stream"])
def test_batches_hold_the_staple_of_standardised_raters(several_raters, cache, fused):
  dataset = make_dataset(several_raters, RATERS)
  split = labelling.standardised(dataset, "quantile")["train"]
  fields = (*pipeline.FIELDS, "staple")
  frames = pipeline.Frames(labelling.WithStaple(split), cache=cache, fields=fields)
  batches = list(frames.evaluation_batches(3))
  staple = np.concatenate([b["staple"] for b in batches])[
    np.concatenate([b["mask"] for b in batches])
  ]
  assert set(batches[0]) == {*fields, "mask"}
  changed = []
  for found, example, before in zip(staple, split, several_raters["train"], strict=True):
    about = {"drawn": example["drawn"], "box": example["valid_box"]}
    expected = fusion.staple(example["raters"], **about)
    np.testing.assert_array_equal(found, np.rint(255 * expected))
    changed.append(np.abs(fusion.staple(before["raters"], **about) - expected).max())
  assert max(changed) > 0.3


def test_levels_count_what_counts():
  confidence = np.zeros((2, 6, 5, K), np.uint8)
  confidence[0, 1:3, 1:4, 0] = 153
  confidence[0, 5, 0, 0] = 255  # outside of the frame
  confidence[1, 2, 2, 0] = 255  # ignored
  confidence[1, 2, 3, 1] = 51
  ignore = np.zeros((2, 6, 5, 1), np.uint8)
  ignore[1, 2, 2] = 1
  examples = [
    {"confidence": c, "ignore": i, "labelled": np.array(known), "valid_box": np.array([0, 1, 4, 5])}
    for c, i, known in zip(confidence, ignore, [(True, True), (True, False)], strict=True)
  ]
  found = labelling.levels(Split(examples))
  expected = np.zeros((K, 256), int)
  expected[0, [0, 153]] = 16 - 6 + 15, 6
  expected[1, 0] = 16  # of the second frame nothing is known
  np.testing.assert_array_equal(found.counts, expected)
  np.testing.assert_array_equal(found.shown, [[True, False], [False, False]])
  without = [{k: v for k, v in one.items() if k != "ignore"} for one in examples]
  assert labelling.levels(Split(without)).counts[0, 255] == 1


def test_frames_with_rare_classes_are_repeated_by_the_root_of_their_rarity():
  shown = np.zeros((100, 3), bool)
  shown[:50, 0] = shown[40:45, 1] = shown[44, 2] = True
  found = labelling.repeats(shown, 0.36)
  assert found[0] == 1 and found[99] == 1  # a common class, and none
  assert found[40] == 3 and found[44] == 6  # sqrt(.36 / .05), sqrt(.36 / .01)
  assert (labelling.repeats(shown, 0.0) == 1).all()
  assert (labelling.repeats(np.zeros((4, 2), bool), 0.5) == 1).all()
