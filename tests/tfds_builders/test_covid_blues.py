import csv
import math
import os
import re
import shutil

import av
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from lus_jax.data.datasets import open_dataset
from lus_jax.errors import UserError
from tfds_builders import records
from tfds_builders.covid_blues import CovidBlues, covid_blues_config

SEVERITY = ("video_file", "Severity Score", "A-lines", "B-lines", "comments")
CLINICAL = (
  "patient_id",
  "cov_test",
  "pat_age",
  "oxygen_saturation_without_ox",
  "outcome_status_d7",
  "outcome_status_d30",
)


def moving_edge(n_frames, height=48, width=64):
  """Frames that are dark left and bright right of an edge, the dark side brighter every frame."""
  frames = np.full((n_frames, height, width), 200, np.uint8)
  frames[:, :, : width // 2] = 40 + 4 * np.arange(n_frames, dtype=np.uint8)[:, None, None]
  return frames


def write_video(path, frames):
  with av.open(path, "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
    stream.height, stream.width = frames.shape[1:]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
    container.mux(stream.encode())


class Folder:
  """Five patients with videos, one (40) without; patients 3 and 5 have all the oddities."""

  def __init__(self, path):
    self.path = path
    (path / "lus_videos").mkdir(parents=True)
    black = np.zeros((2, 48, 64), np.uint8)
    self.videos = {
      "patient_3_L1": np.concatenate([black, moving_edge(25)]),
      "patient_3_L2": moving_edge(7),
      "patient_3_L2_2": moving_edge(26),
      "patient_5_R3": moving_edge(25, 64, 48),
      "patient_12_R1": moving_edge(25),
      "patient_20_R2": moving_edge(25),
      "patient_37_L3": moving_edge(25),
    }
    for name, frames in self.videos.items():
      write_video(path / "lus_videos" / f"{name}.mp4", frames)
    for name in (".DS_Store", "notes.txt", "patient_3_R4.mp4"):
      (path / "lus_videos" / name).write_text("not a video")
    self.severity = [
      ["patient_3_L1", "2.0", "yes", "yes ", "broken line, B-lines"],
      ["patient_3_L2", "0.0", "no", " No", ""],
      ["patient_3_L2_2", "", "", "", ""],
      ["patient_12_R1", "1", "yes", "no", ""],
      ["patient_20_R2", "3.0", "no", "yes", " a blank in front"],
      ["patient_37_L3", "-1", "yes", "yes"],
      [],
      ["patient_3_R3", "1.0", "yes", "yes", ""],
      ["patient_40_L1", "1.0", "yes", "yes", ""],
    ]
    self.clinical = [
      ["37.0", "1.0", "61", "98.5", "0.0", "3.0"],
      ["3", "1", "70", "97", "2.0", ""],
      ["12", "0", "", "-99.0", "1", "2"],
      ["", "", "", "", "", ""],
      [" 5 ", "", "50", " 100.0", "-99", "2"],
      ["20", "0", "50", "", "", "1.0"],
      ["40", "1", "50", "95.0", "2", "2"],
    ]
    self.headers = {"severity": list(SEVERITY), "clinical_variables": list(CLINICAL)}

  def write(self):
    tables = {"severity": self.severity, "clinical_variables": self.clinical}
    for name, rows in tables.items():
      with (self.path / f"{name}.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([self.headers[name], *rows])

  def config(self, kind="videos", size=32, **options):
    self.write()
    return covid_blues_config(kind, size, size, directory=self.path, **options)


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "COVID-BLUES")


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def build(config, data_dir):
  builder = CovidBlues(config=config, data_dir=data_dir)
  builder.download_and_prepare()
  sources = builder.as_data_source()
  return builder, {name: [sources[name][i] for i in range(len(sources[name]))] for name in sources}


def by_name(examples):
  return {e["video"].decode(): e for split in examples.values() for e in split}


def data_config(**fields):
  config = ConfigDict()
  config.name, config.dir, config.prepared_dir = "covid_blues", "", ""
  config.image_size, config.split_unit, config.split_seed = 32, "patient", 0
  config.cache, config.phantom = "auto", ConfigDict()
  config.update(fields)
  return config


def test_every_cell_comes_back_by_value(folder, tmp_path):
  _, examples = build(folder.config(), tmp_path / "data")
  examples = by_name(examples)
  assert examples.keys() == folder.videos.keys()
  unknown = math.nan
  # patient, view, S/F, cov_test, outcome_d7, outcome_d30, severity, a_lines, b_lines
  expected = {
    "patient_3_L1": ("3", "L1", 97 / 0.21, 1, 2, -1, 2, 1, 1),
    "patient_3_L2": ("3", "L2", 97 / 0.21, 1, 2, -1, 0, 0, 0),
    "patient_3_L2_2": ("3", "L2", 97 / 0.21, 1, 2, -1, unknown, -1, -1),
    "patient_5_R3": ("5", "R3", 100 / 0.21, -1, -1, 2, unknown, -1, -1),
    "patient_12_R1": ("12", "R1", unknown, 0, 1, 2, 1, 1, 0),
    "patient_20_R2": ("20", "R2", unknown, 0, -1, 1, 3, 0, 1),
    "patient_37_L3": ("37", "L3", 98.5 / 0.21, 1, 0, 3, unknown, 1, 1),
  }
  for name, (patient, view, sf_ratio, *codes, severity, a_lines, b_lines) in expected.items():
    example = examples[name]
    assert (example["patient"].decode(), example["view"].decode()) == (patient, view)
    np.testing.assert_allclose(example["sf_ratio"], sf_ratio, rtol=1e-6)
    assert [example[k] for k in ("cov_test", "outcome_d7", "outcome_d30")] == codes
    np.testing.assert_equal(example["severity"], np.float32(severity))
    assert (example["a_lines"], example["b_lines"]) == (a_lines, b_lines)
    assert example["day"] == 1 and example["readmitted_30d"] == -1
    assert example["frames_per_second"] == 25


def test_frames_are_letterboxed_grey_and_empty_ones_left_out(folder, tmp_path):
  builder, examples = build(folder.config(), tmp_path / "data")
  examples = by_name(examples)
  for name, frames in folder.videos.items():
    example = examples[name]
    shown = frames[2:] if name == "patient_3_L1" else frames
    top, left, bottom, right = example["valid_box"]
    box = (0, 4, 32, 28) if name == "patient_5_R3" else (4, 0, 28, 32)
    assert (top, left, bottom, right) == box
    stored = example["frames"]
    assert stored.shape == (len(shown), 32, 32, 1) and stored.dtype == np.uint8
    inside = stored[:, top:bottom, left:right, 0].astype(int)
    assert stored.astype(int).sum() == inside.sum()
    # Two columns off the edge and its ringing; the codec is lossy.
    dark, bright = (
      inside[:, :, : inside.shape[2] // 2 - 2],
      inside[:, :, inside.shape[2] // 2 + 2 :],
    )
    assert np.abs(dark - shown[:, :1, :1]).max() <= 4
    assert np.abs(bright - 200).max() <= 4
  assert builder.info.metadata["oddities"]["videos with empty frames"] == ["patient_3_L1"]
  again = CovidBlues(config=folder.config(), data_dir=tmp_path / "data")
  assert again.info.metadata["oddities"]["videos with empty frames"] == ["patient_3_L1"]


def test_every_oddity_is_counted_and_said_once(folder, tmp_path, warnings_seen):
  config = folder.config()
  views = {"3": ("L3", "R1", "R2", "R3"), "5": ("L1", "L2", "L3", "R1", "R2")}
  views |= {"12": ("L1", "L2", "L3", "R2", "R3"), "20": ("L1", "L2", "L3", "R1", "R3")}
  views |= {"37": ("L1", "L2", "R1", "R2", "R3")}
  not_recorded = config.oddities.pop("views not recorded")
  assert sorted(not_recorded) == sorted(f"patient_{p}_{v}" for p in views for v in views[p])
  assert config.oddities == {
    "files that are no video of the set": ["notes.txt", "patient_3_R4.mp4"],
    "second recordings of a view": ["patient_3_L2_2"],
    "videos shorter than a second": ["patient_3_L2"],
    "videos of another frame size": ["patient_5_R3"],
    "videos without a severity": ["patient_37_L3", "patient_3_L2_2", "patient_5_R3"],
    "rows of severity.csv without a video": ["patient_3_R3", "patient_40_L1"],
    "rows of severity.csv with stray blanks": ["patient_3_L1", "patient_3_L2"],
    "patients without videos": ["40"],
    "patients without a saturation": ["12", "20"],
    "patients without a COVID test": ["5"],
    "patients without an outcome at day 7": ["20", "5"],
    "patients without an outcome at day 30": ["3"],
  }
  build(config, tmp_path / "data")
  said = [text for text in warnings_seen if text.startswith("covid_blues")]
  assert len(said) == 1 and "7 videos" in said[0] and "\n" not in said[0]
  assert "1 second recordings of a view" in said[0] and "2 patients without a saturation" in said[0]


def test_split_by_patient_in_name_order(folder, tmp_path):
  builder, examples = build(folder.config(seed=3), tmp_path / "data")
  split_of = records.assign_splits(["3", "5", "12", "20", "37"], 3)
  for split, members in examples.items():
    assert {split_of[e["patient"].decode()] for e in members} == {split}
    names = [e["video"].decode() for e in members]
    assert names == sorted(names)
    patients = {e["patient"] for e in members}
    counts = {"patients": len(patients), "videos": len(members)}
    assert builder.info.metadata["counts"][split] == counts
  (with_both,) = [m for m in examples.values() if any(e["patient"] == b"3" for e in m)]
  recorded = [e["video"] for e in with_both if e["patient"] == b"3" and e["view"] == b"L2"]
  assert recorded == [b"patient_3_L2", b"patient_3_L2_2"]


def test_the_name_changes_with_whatever_is_read(folder):
  name = folder.config().name
  assert folder.config().name == name
  names = {name, folder.config(seed=1).name, folder.config(size=48).name}
  folder.clinical[1][3] = "96"
  names.add(folder.config().name)
  folder.severity[0][1] = "1.0"
  names.add(folder.config().name)
  write_video(folder.path / "lus_videos" / "patient_20_R2.mp4", moving_edge(5))
  names.add(folder.config().name)
  (folder.path / "lus_videos" / "patient_20_R2.mp4").rename(
    folder.path / "lus_videos" / "patient_20_R1.mp4"
  )
  names.add(folder.config().name)
  assert len(names) == 7


def test_several_processes_and_little_memory_give_the_same_bytes(folder, tmp_path, monkeypatch):
  config, found = folder.config(), []
  for n, n_bytes in ((1, 10**9), (2, 1)):
    monkeypatch.setattr(records, "MAX_SORTED", n_bytes)
    builder = CovidBlues(config=config, data_dir=tmp_path / str(n), num_processes=n)
    with records.sorted_on_disk():
      builder.download_and_prepare()
    found.append({path.name: path.read_bytes() for path in builder.data_path.iterdir()})
  assert found[0] == found[1] and len(found[0]) > 4
  names = [example["video"].decode() for example in builder.as_data_source("train")]
  assert names == sorted(names) and len(names) > 1


def test_open_dataset_end_to_end(folder, tmp_path, capsys):
  folder.write()
  config = data_config(dir=str(folder.path), prepared_dir=str(tmp_path / "data"))
  open_dataset(config, "videos")
  assert "preparing covid_blues" in capsys.readouterr().out
  dataset = open_dataset(config, "videos")
  assert not capsys.readouterr().out  # it is there already
  assert (dataset.name, dataset.classes, dataset.thin) == ("covid_blues", (), ())
  assert dataset.split_unit == "patient" and not dataset.simulated
  assert dataset.metadata["licence"] == "CC BY-NC-ND 4.0"
  assert dataset.metadata["patients_are_unknown"] is False
  assert dataset.metadata["oddities"]["patients without videos"] == ["40"]
  notes = " ".join(dataset.notes)
  assert "convex probe" in notes and "CC BY-NC-ND" in notes and "room air" in notes
  assert dataset.summary()["classes"] == []
  assert sum(dataset.summary()["splits"].values()) == 7
  first = dataset.splits["train"][0]
  assert first["frames"].shape[1:] == (32, 32, 1) and "truth" not in first


def edit(**cells):
  """Writes cells of the row of patient 3, or of the video patient_3_L1, before reading."""

  def change(folder):
    for column, value in cells.items():
      column = column.replace("_lines", "-lines").replace("Severity_", "Severity ")
      header, rows = (
        (SEVERITY, folder.severity) if column in SEVERITY else (CLINICAL, folder.clinical)
      )
      rows[0 if column in SEVERITY else 1][header.index(column)] = value

  return change


def write_as(folder, **options):
  for name, rows in (("severity", folder.severity), ("clinical_variables", folder.clinical)):
    with (folder.path / f"{name}.csv").open("w", newline="", **options) as file:
      csv.writer(file, delimiter=";").writerows([folder.headers[name], *rows])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_saved_by_excel_and_names_of_other_habits_are_read(folder, encoding):
  plain = folder.config()
  edit(oxygen_saturation_without_ox="97,0", patient_id="003")(folder)
  write_as(folder, encoding=encoding)
  path = folder.path / "lus_videos" / "patient_20_R2.mp4"
  path.rename(path.with_name("patient_20_R2.MP4"))
  path = folder.path / "lus_videos" / "patient_12_R1.mp4"
  path.rename(path.with_name("patient_012_R1.mp4"))
  found = covid_blues_config("videos", 32, 32, directory=folder.path)
  for before, after in zip(plain.splits.values(), found.splits.values(), strict=True):
    for a, b in zip(before, after, strict=True):
      for name in ("patient", "view", "sf_ratio", "outcome_d7"):
        np.testing.assert_equal(a.features[name], b.features[name])


def test_another_content_of_the_same_size_and_time_is_other_data(folder):
  name = folder.config().name
  path = folder.path / "lus_videos" / "patient_5_R3.mp4"
  stat, data = path.stat(), path.read_bytes()
  assert b"Lavf" in data
  path.write_bytes(data.replace(b"Lavf", b"Levf"))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert path.stat().st_size == stat.st_size
  assert folder.config().name != name
  path.write_bytes(data)
  assert folder.config().name == name


def copy_a_video(folder):
  path = folder.path / "lus_videos" / "patient_20_R2.mp4"
  path.with_name("patient_020_R2.mp4").write_bytes(path.read_bytes())


def link_a_video(folder):
  path = folder.path / "lus_videos" / "patient_20_R2.mp4"
  path.with_name("patient_12_L1.mp4").symlink_to(path)


def remove_videos(folder):
  for path in (folder.path / "lus_videos").glob("patient_*"):
    path.unlink()


def keep_two_patients(folder):
  for name in ("12_R1", "20_R2", "37_L3"):
    (folder.path / "lus_videos" / f"patient_{name}.mp4").unlink()


def cut_video(folder):
  path = folder.path / "lus_videos" / "patient_20_R2.mp4"
  path.write_bytes(path.read_bytes()[:-300])


def rename_column(folder):
  folder.headers["clinical_variables"][1] = "covid"


@pytest.mark.parametrize(
  ("change", "parts"),
  [
    (edit(oxygen_saturation_without_ox="good"), ("clinical_variables.csv, 3", "'good' is no num")),
    (edit(oxygen_saturation_without_ox="100.5"), ("'100.5' is no number from 0 to 100",)),
    (edit(oxygen_saturation_without_ox="inf"), ("'inf' is no number from 0 to 100",)),
    (edit(oxygen_saturation_without_ox=".97"), ("variables.csv row 3: ", ".97 of", "but a share")),
    (edit(oxygen_saturation_without_ox="9.7"), ("9.7 of patient 3 is no plausible percentage;",)),
    (edit(oxygen_saturation_without_ox="97,5"), ("'97,5' is no number from 0 to 100",)),
    (edit(cov_test="2"), ("cov_test '2' is no whole number from 0 to 1",)),
    (edit(cov_test="0.5"), ("cov_test '0.5' is no whole number",)),
    (edit(outcome_status_d7="home"), ("outcome_status_d7 'home'", "0 to 3")),
    (edit(outcome_status_d30="4"), ("outcome_status_d30 '4'", "0 to 3")),
    (edit(Severity_Score="5"), ("severity.csv, patient_3_L1: Severity Score '5'", "0 to 3")),
    (edit(A_lines="maybe"), ("patient_3_L1: A-lines 'maybe' is neither yes nor no",)),
    (edit(patient_id="12"), ("clinical_variables.csv row 4: patient_id '12' stands twice",)),
    (edit(patient_id="012"), ("clinical_variables.csv row 4: patient_id '12' stands twice",)),
    (edit(patient_id="37"), ("clinical_variables.csv row 3: patient_id '37' stands twice",)),
    (edit(patient_id="99"), ("no row for patient 3, who has the video patient_3_L1.mp4", "github")),
    (edit(video_file="patient_3_L2"), ("severity.csv row 3: video_file 'patient_3_L2' stands",)),
    (rename_column, ("clinical_variables.csv lacks the column(s) cov_test", "github.com/NinaWie")),
    (remove_videos, ("lus_videos holds no video called patient_<ID>_<VIEW>.mp4", "github")),
    (keep_two_patients, ("2 patient(s) cannot fill the splits",)),
    (cut_video, ("patient_20_R2.mp4 is",)),
    (copy_a_video, ("patient_20_R2.mp4 and patient_020_R2.mp4 are the same recording",)),
    (link_a_video, ("patient_20_R2.mp4 is the same file as", "patient_12_L1.mp4")),
  ],
)
def test_mistakes_are_one_clear_line(folder, change, parts):
  change(folder)
  with pytest.raises(UserError) as error:
    folder.config()
  assert "\n" not in str(error.value)
  for part in parts:
    assert part in str(error.value)


@pytest.mark.parametrize("table", ["severity.csv", "clinical_variables.csv"])
def test_a_folder_without_its_tables_is_refused(folder, table):
  folder.write()
  (folder.path / table).unlink()
  with pytest.raises(UserError, match=f"{table} does not exist.*github.com/NinaWie/COVID-BLUES"):
    covid_blues_config("videos", 32, 32, directory=folder.path)
  (folder.path / table).write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=f"{table} is not UTF-8 text"):
    covid_blues_config("videos", 32, 32, directory=folder.path)


def test_a_video_that_shows_nothing_is_refused_and_leaves_nothing(folder, tmp_path):
  write_video(folder.path / "lus_videos" / "patient_20_R2.mp4", np.zeros((5, 48, 64), np.uint8))
  with pytest.raises(UserError, match="patient_20_R2.mp4: every frame is empty"):
    build(folder.config(), tmp_path / "data")
  assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_what_it_cannot_give_is_refused(folder, tmp_path):
  with pytest.raises(UserError, match="covid_blues has no masks.*another data set"):
    folder.config("frames")
  for fields, message in (
    ({}, "config.data.dir is empty; get COVID-BLUES from https"),
    ({"dir": str(tmp_path / "nowhere")}, "nowhere does not exist; get COVID-BLUES from https"),
    ({"dir": str(folder.path), "split_unit": "frame"}, "covid_blues is always split by patient"),
  ):
    with pytest.raises(UserError, match=message) as error:
      open_dataset(data_config(prepared_dir=str(tmp_path / "data"), **fields), "videos")
    assert "\n" not in str(error.value)
  assert not (tmp_path / "data").exists()


@pytest.mark.real_data
def test_the_real_folder_has_the_oddities_we_know(real_data):
  config = covid_blues_config("videos", 32, 32, directory=real_data / "covid_blues")
  videos = [video.features for split in config.splits.values() for video in split]
  assert len(videos) == 109
  patients = {video["patient"]: video for video in videos}
  assert sorted(map(int, patients)) == [*range(1, 19), 20]
  assert sum(video["cov_test"] for video in patients.values()) == 9
  assert all(380 <= video["sf_ratio"] <= 100 / 0.21 for video in videos)
  severities = [video["severity"] for video in videos]
  assert [severities.count(score) for score in range(4)] == [44, 29, 23, 13]
  odd = config.oddities
  assert odd["videos shorter than a second"] == ["patient_3_R2", "patient_5_R3"]
  assert sorted(odd["second recordings of a view"]) == [
    "patient_15_L2_2",
    "patient_1_R1_2",
    "patient_3_R2_2",
    "patient_5_R3_2",
  ]
  assert len(odd["rows of severity.csv without a video"]) == 362 - 109
  assert len(odd["rows of severity.csv with stray blanks"]) == 6
  assert len(odd["patients without videos"]) == 63 - 19
  assert not any(odd[what] for what in odd if re.match("videos without|patients without a", what))


@pytest.mark.real_data
def test_real_videos_come_through(real_data, tmp_path):
  # The three patients with the short clips, second recordings and frames that are black.
  folder = tmp_path / "part"
  (folder / "lus_videos").mkdir(parents=True)
  for path in (real_data / "covid_blues").glob("*.csv"):
    shutil.copy(path, folder)
  for view in ("2_L1", "3_R2", "3_R2_2", "5_R3"):
    name = f"patient_{view}.mp4"
    shutil.copy(real_data / "covid_blues" / "lus_videos" / name, folder / "lus_videos")
  config = covid_blues_config("videos", 96, 96, directory=folder)
  builder, examples = build(config, tmp_path / "data")
  examples = by_name(examples)
  assert [len(examples[f"patient_{n}"]["frames"]) for n in ("3_R2", "5_R3", "2_L1")] == [8, 7, 99]
  assert builder.info.metadata["oddities"]["videos with empty frames"] == ["patient_2_L1"]
  assert len(builder.info.metadata["oddities"]["patients without videos"]) == 60
  for name, skipped in (("patient_3_R2_2", 0), ("patient_2_L1", 2)):
    with av.open(folder / "lus_videos" / f"{name}.mp4") as container:
      pictures = [frame.to_image().convert("L") for frame in container.decode(video=0)]
    picture = pictures[skipped + 5].resize((96, 96), Image.Resampling.BILINEAR)
    stored = examples[name]["frames"][5, :, :, 0]
    assert np.abs(np.asarray(picture).astype(int) - stored).max() <= 3 and stored.max() > 100
