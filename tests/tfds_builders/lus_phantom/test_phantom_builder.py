import numpy as np
import pytest
from PIL import Image

from lus_jax.errors import UserError
from tfds_builders.lus_phantom import (
  LusPhantom,
  annotator,
  cohort,
  lus_phantom,
  phantom_config,
  preview,
  simulator,
)

SMALL = {"n_patients": 3, "missing_views": 0.6, "n_frames": 3}


def build(kind, folder, **settings):
  config = phantom_config(kind, 32, 40, **(SMALL | settings))
  builder = LusPhantom(config=config, data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  splits = ("train", "validation", "test")
  return builder, {
    example["video"].decode(): example | {"split": split}
    for split in splits
    for example in builder.as_data_source(split)
  }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  return {kind: build(kind, folder) for kind in lus_phantom.KINDS}


def test_what_comes_back_from_array_record_is_what_was_simulated(built):
  builder, frames = built["frames"]
  assert len(frames) == sum(split.num_examples for split in builder.info.splits.values())
  for example in frames.values():
    assert example["image"].shape == (32, 40, 1) and example["image"].dtype == np.uint8
    for key in ("confidence", "truth", "evidence"):
      assert example[key].shape == (32, 40, 6) and example[key].dtype == np.uint8
    assert set(np.unique(example["truth"])) <= {0, 255}
    assert (example["evidence"][example["truth"] == 0] == 0).all()
    assert example["valid_box"].tolist() == [0, 0, 32, 40] and example["labelled"].all()
    assert example["frame"] == 0 and example["annotator"].decode() in "ABC"
  assert np.mean([example["confidence"].any() for example in frames.values()]) > 0.9


def test_several_processes_prepare_the_same_bytes(built, tmp_path):
  builder, _ = built["videos"]
  other = LusPhantom(
    config=builder.builder_config, data_dir=tmp_path, file_format="array_record", num_processes=2
  )
  other.download_and_prepare()
  for path in builder.data_path.iterdir():
    assert (other.data_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_frames_are_the_first_frames_of_videos(built):
  _, frames = built["frames"]
  _, videos = built["videos"]
  assert frames.keys() == videos.keys()
  for name, video in videos.items():
    assert video["frames"].shape == (3, 32, 40, 1)
    assert (video["frames"][0] != video["frames"][2]).any()
    np.testing.assert_array_equal(video["frames"][0], frames[name]["image"])
    for key in ("truth", "evidence"):
      np.testing.assert_array_equal(video[key][0], frames[name][key])
    assert video["split"] == frames[name]["split"]
    assert video["frames_per_second"] == simulator.Probe().frames_per_second
    assert 60 <= video["sf_ratio"] <= 477 and video["readmitted_30d"] in (0, 1)


def test_splits_are_by_patient(built):
  _, frames = built["frames"]
  of_patient = {}
  for example in frames.values():
    of_patient.setdefault(example["patient"], set()).add(example["split"])
  assert len(of_patient) == 3 and all(len(splits) == 1 for splits in of_patient.values())


def test_metadata_names_classes_and_setting(built):
  builder, _ = built["frames"]
  metadata = builder.info.metadata
  assert metadata["classes"] == list(simulator.CLASSES)
  assert set(metadata["thin"]) < set(metadata["classes"])
  assert metadata["licence"] == "Apache-2.0" and metadata["setting"] == "default"


def test_the_same_bytes_whatever_the_number_of_patients(built, tmp_path):
  _, few = built["frames"]
  _, more = build("frames", tmp_path, n_patients=5)
  assert few.keys() < more.keys()
  for name, example in few.items():
    for key in ("image", "confidence", "truth", "evidence"):
      assert example[key].tobytes() == more[name][key].tobytes()


def test_all_experts_paint_every_frame(built, tmp_path):
  _, one = built["frames"]
  builder, all_of_them = build("frames", tmp_path, raters=True)
  metadata = builder.info.metadata
  assert list(metadata["raters"]) == list(metadata["persons"]) == ["A", "B", "C"]
  assert "raters" not in built["frames"][0].info.metadata
  assert "raters" not in next(iter(one.values()))
  assert one.keys() == all_of_them.keys()
  raters = np.stack([example["raters"] for example in all_of_them.values()])
  assert raters.shape == (len(one), 3, 32, 40, 6) and raters.dtype == np.uint8
  for r, s in ((0, 1), (0, 2), (1, 2)):
    assert (raters[:, r] != raters[:, s]).any()
  # Their habits: A is the most confident and C the least.
  assert raters[:, 0].mean() > raters[:, 2].mean()
  for name, example in all_of_them.items():
    assert example["drawn"].tolist() == [True] * 3 and example["annotator"] == b""
    mean = example["raters"].astype(float).mean(axis=0)
    np.testing.assert_array_equal(example["confidence"], np.rint(mean))
    for key in ("image", "truth", "evidence", "patient", "split"):
      np.testing.assert_array_equal(example[key], one[name][key])


def test_each_expert_has_a_generator_of_their_own(built):
  builder, _ = built["frames"]
  config = phantom_config("frames", 32, 40, **SMALL, raters=True)
  (video, *_) = cohort.patient_videos(
    "p000", seed=0, setting="default", missing_views=0.6, annotators=annotator.STYLES
  )
  asked = []

  def generator(seed, *path):
    asked.append(path)
    return real(seed, *path)

  real = cohort.generator
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cohort, "generator", generator)
    lus_phantom.simulate(video, config)
    painting = [path for path in asked if path[0] == "annotator"]
    assert painting == [("annotator", video.name, expert) for expert in "ABC"]
    asked.clear()
    # One expert draws from where they always drew, so that earlier frames stay what they were.
    lus_phantom.simulate(video, builder.builder_config)
    assert [path for path in asked if path[0] == "annotator"] == [("annotator", video.name)]


def test_another_seed_is_another_data_set(built, tmp_path):
  _, other = build("frames", tmp_path, seed=1)
  _, frames = built["frames"]
  shared = frames.keys() & other.keys()
  assert shared and all((frames[n]["image"] != other[n]["image"]).any() for n in shared)


def test_any_setting_changes_the_name():
  names = {
    phantom_config("frames", 32, 32, **settings).name
    for settings in (
      {},
      {"seed": 1},
      {"setting": "null"},
      {"n_patients": 5},
      {"n_frames": 2},
      {"raters": True},
    )
  }
  assert len(names) == 6
  default = phantom_config("frames", 32, 32)
  assert phantom_config("frames", 32, 32, seed=0, n_patients=42).name == default.name
  # A run's config comes back from JSON with lists.
  shares = default.level_shares
  for same in (shares, list(shares)):
    assert phantom_config("frames", 32, 32, level_shares=same).name == default.name
  # Of either kind by the spelling that its runs have always had.
  full = {"level_shares": list(shares), "n_frames": 16}
  as_json = phantom_config("videos", 32, 32, **full).name
  assert as_json == phantom_config("videos", 32, 32, **full | {"level_shares": shares}).name
  rows = phantom_config("frames", 32, 32, level_shares=(shares,) * 6).name
  assert phantom_config("frames", 32, 32, level_shares=[list(shares)] * 6).name == rows


def test_what_was_not_asked_for_changes_neither_name_nor_metadata(built):
  # Of before there were `variety`, `stable_patients` and `readmission_accuracy`.
  assert phantom_config("frames", 64, 64).name == "frames_64x64_d4c5bb9a"
  # As it was with the lists of a run's JSON, by which clinical tasks ask for videos.
  assert phantom_config("videos", 64, 64, setting="faint_false").name == "videos_64x64_c89fdc42"
  off = {"variety": (), "stable_patients": 0.0, "readmission_accuracy": 0.0}
  assert phantom_config("frames", 64, 64, **off).name == "frames_64x64_d4c5bb9a"
  assert not {*off, "best_accuracy", "notes"} & set(built["frames"][0].info.metadata)


def test_what_was_asked_for_is_in_the_name_and_in_the_metadata(tmp_path):
  asked = {"variety": ("effusion", "b_lines"), "stable_patients": 0.5, "readmission_accuracy": 0.9}
  names = {phantom_config("videos", 32, 32, **{key: value}).name for key, value in asked.items()}
  assert len(names | {phantom_config("videos", 32, 32).name}) == 4
  turned = phantom_config("videos", 32, 32, variety=("b_lines", "effusion"))
  assert turned.name == phantom_config("videos", 32, 32, variety=("effusion", "b_lines")).name
  builder, examples = build("videos", tmp_path, n_frames=1, **asked)
  metadata = builder.info.metadata
  assert list(metadata["variety"]) == ["b_lines", "effusion"] and metadata["stable_patients"] == 0.5
  assert metadata["best_accuracy"] == {"readmitted_30d": 0.9}
  (note,) = metadata["notes"]
  assert "turned round in 0.1 of the patients" in note and "right in 0.9 of them" in note
  # What was simulated is what is stored.
  for patient in cohort.patient_names(3):
    for video in cohort.videos_of(patient, builder.builder_config):
      stored = examples[video.name]
      assert stored["readmitted_30d"] == video.readmitted_30d
      assert stored["sf_ratio"] == np.float32(video.sf_ratio)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kind": "stills"}, "kind 'stills' of lus_phantom is unknown"),
    ({"colour": 1}, "setting 'colour' of lus_phantom is unknown: choose from .*missing_views"),
    ({"setting": "easy"}, "choose one of default"),
    ({"n_patients": 2}, "n_patients of lus_phantom must be at least 3, but is 2"),
    ({"missing_views": 1.0}, "0 <= missing_views < 1"),
    ({"seed": -1}, "seed >= 0"),
    ({"setting": "true_from_0.9"}, "or true_from_T with T from 0 to 0.8, as true_from_0.6"),
    ({"setting": "true_from_0.60"}, "setting 'true_from_0.60' of lus_phantom is unknown"),
    ({"variety": ("effusion", "fog")}, "must name some of presets, b_lines, .*'fog'"),
    ({"variety": "effusion"}, "variety of lus_phantom must name some of"),
    ({"variety": ("effusion", "effusion")}, "each once"),
    ({"stable_patients": 1.5}, "stable_patients of lus_phantom must be a share from 0 to 1"),
    ({"readmission_accuracy": 0.5}, "must be above 0.5 and at most 1"),
    ({"readmission_accuracy": 0.9, "setting": "null"}, "which setting 'null' excludes"),
    ({"kind": "videos", "raters": True}, "raters of lus_phantom is True, which kind 'videos'"),
  ],
)
def test_bad_settings_are_one_clear_line(settings, message):
  with pytest.raises(UserError, match=message) as error:
    phantom_config(**({"kind": "frames", "height": 32, "width": 32} | settings))
  assert "\n" not in str(error.value)


def test_preview_writes_a_sheet(tmp_path, monkeypatch, capsys):
  out = tmp_path / "sheet.png"
  monkeypatch.setattr("sys.argv", ["preview", "--out", str(out), "--size", "32"])
  assert preview.main() == 0
  with Image.open(out) as sheet:
    assert sheet.width == 6 * 32 and sheet.height > 3 * 32
    truth = np.asarray(sheet)[32:64]
  assert (truth.max(-1) != truth.min(-1)).any()
  monkeypatch.setattr(
    "sys.argv",
    ["preview", "--out", str(tmp_path / "varied.png"), "--size", "32", "--variety", "all"],
  )
  assert preview.main() == 0
  assert (tmp_path / "varied.png").read_bytes() != out.read_bytes()
  monkeypatch.setattr("sys.argv", ["preview", "--out", str(out), "--variety", "effusion,fog"])
  assert preview.main() == 2
  assert "variety of lus_phantom must name some of presets" in capsys.readouterr().err
  monkeypatch.setattr("sys.argv", ["preview", "--out", str(out), "--setting", "nope"])
  assert preview.main() == 2
  assert "choose one of" in capsys.readouterr().err
