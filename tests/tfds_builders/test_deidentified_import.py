"""Of a DICOM file nothing that tells whose it is reaches the imported folder, in no encoding."""

import datetime
import json

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.lus_folder import manifest

SECRETS = (
  "Doe^Jane", "Doe", "Jane", "MRN-4711", "ACC998877", "19610504", "20240229", "20240303", "133742",
  "Hospital of Nowhere", "Dr Who", "cough since Monday", "Ward 7", "1.2.826.0.1.3680043.8.498.123",
)  # fmt: skip
H, W, N = 96, 160, 6
BOX = (28, 40, 88, 120)


def frames(seed, box=BOX):
  """A scan that moves in a box, a name above it."""
  random = np.random.default_rng(seed)
  images = np.zeros((N, H, W), np.uint8)
  top, left, bottom, right = box
  images[:, top:bottom, left:right] = random.integers(60, 220, (N, bottom - top, right - left))
  text = Image.new("L", (W, 14))
  ImageDraw.Draw(text).text((2, 1), "DOE JANE 04.05.1961", fill=255)
  images[:, 1:15] = np.maximum(images[:, 1:15], np.asarray(text))
  return images


def write_dicom(path, seed, date, box=BOX):
  dataset = Dataset()
  dataset.file_meta = FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
  dataset.file_meta.MediaStorageSOPInstanceUID = f"{SECRETS[-1]}.{seed}"
  dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
  dataset.SOPInstanceUID = f"{SECRETS[-1]}.{seed}"
  dataset.StudyInstanceUID = dataset.SeriesInstanceUID = SECRETS[-1]
  dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = SECRETS[0], *SECRETS[3:5]
  dataset.PatientBirthDate, dataset.StudyDate, dataset.StudyTime = SECRETS[5], date, SECRETS[8]
  dataset.InstitutionName, dataset.OperatorsName, dataset.PatientComments = SECRETS[9:12]
  dataset.Modality = "US"
  dataset.ReferencedPatientSequence = [Dataset()]
  dataset.ReferencedPatientSequence[0].PatientName = SECRETS[0]
  block = dataset.private_block(0x0099, SECRETS[12], create=True)
  block.add_new(1, "LO", f"{SECRETS[0]} {SECRETS[3]}")
  dataset.FrameTime = 40
  dataset.NumberOfFrames, dataset.Rows, dataset.Columns = N, H, W
  dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  dataset.PixelData = frames(seed, box).tobytes()
  path.parent.mkdir(parents=True, exist_ok=True)
  dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def delivery(tmp_path):
  for i, date in enumerate(("20240229", "20240303")):
    write_dicom(tmp_path / "Doe_Jane" / date / f"IM000{i}", i, date)
  (tmp_path / "Doe_Jane" / "DICOMDIR.txt").write_text("x")
  return tmp_path


def run(path, *more):
  return importers.main(
    ["videos", f"--videos={path / 'Doe_Jane'}", "--classes=line", f"--out={path / 'out'}"]
    + [f"--key={path / 'key'}", *more]
  )


def everything(folder):
  """Names and bytes of all files, and the words of text that is drawn in no scan."""
  for path in sorted(folder.rglob("*")):
    yield path, str(path.relative_to(folder)).encode()
    if path.is_file():
      yield path, path.read_bytes()


def test_nothing_that_tells_whose_it_is_is_written(delivery, capsys):
  assert run(delivery) == 0
  printed = capsys.readouterr()
  out = delivery / "out"
  for place, content in [*everything(out), (None, (printed.out).encode())]:
    if place is None:
      # What is printed names files of the user's, but no header.
      content = content.replace(str(delivery).encode(), b"")
    for secret in SECRETS:
      for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        for spelling in {secret, secret.lower(), secret.upper()}:
          assert spelling.encode(encoding) not in content, (place, secret, encoding)
  folder = manifest.read_folder(out, labels=False)
  assert len({video.patient for video in folder.videos}) == 1
  assert sorted(video.day for video in folder.videos) == [0, 3]
  (_, first), (_, second) = sorted((video.day, video) for video in folder.videos)
  for i, video in enumerate((first, second)):
    assert video.media.frames_per_second == 25
    top, left, bottom, right = video.scan_area
    assert top > 15 and left <= BOX[1] and bottom >= BOX[2] and right >= BOX[3]
    kept = np.zeros((N, H, W), np.uint8)
    kept[:, top:bottom, left:right] = frames(i)[:, top:bottom, left:right]
    # The scan to the bit, and nothing of the name.
    np.testing.assert_array_equal(readers.read(video.media), kept)
  dates = [
    pydicom.dcmread(video.media.path, stop_before_pixels=True).StudyDate
    for video in (first, second)
  ]
  days = [datetime.date(int(x[:4]), int(x[4:6]), int(x[6:])) for x in dates]
  assert (days[1] - days[0]).days == 3 and days[0] < datetime.date(2024, 2, 29)


def test_a_name_beside_a_scan_that_is_nearly_the_whole_screen_is_blanked(tmp_path, capsys):
  box = (17, 0, H, W)
  write_dicom(tmp_path / "Doe_Jane" / "IM0000", 0, "20240229", box)
  assert run(tmp_path) == 0
  assert "Nothing was blanked" not in capsys.readouterr().out
  (video,) = manifest.read_folder(tmp_path / "out", labels=False).videos
  assert video.scan_area is None  # cropping would gain little
  kept = frames(0, box)
  assert kept[:, :13].any() and not kept[:, 13:17].any()
  kept[:, :13] = 0
  np.testing.assert_array_equal(readers.read(video.media), kept)


@pytest.mark.parametrize("box", [BOX, (17, 0, H, W)])
def test_what_is_drawn_beside_a_scan_is_kept(tmp_path, box):
  write_dicom(tmp_path / "Doe_Jane" / "a.dcm", 0, "20240229", box)
  shape = {"label": "line", "points": [[60, 8], [90, 8], [90, 40]], "shape_type": "polygon"}
  drawn = {"imagePath": "a_000002.png", "imageHeight": H, "imageWidth": W, "shapes": [shape]}
  (tmp_path / "json").mkdir()
  (tmp_path / "json" / "a_000002.json").write_text(json.dumps({"version": "5.5.0"} | drawn))
  argv = ["labelme", f"--videos={tmp_path / 'Doe_Jane'}", f"--annotations={tmp_path / 'json'}"]
  argv.append("--frame-pattern=(.+)_([0-9]+)")
  assert importers.main([*argv, f"--out={tmp_path / 'out'}", f"--key={tmp_path / 'key'}"]) == 0
  (video,) = manifest.read_folder(tmp_path / "out").videos
  kept = readers.read(video.media)
  assert not kept[:, :8].any()
  np.testing.assert_array_equal(kept[:, 8:, 60:91], frames(0, box)[:, 8:, 60:91])
  assert (video.scan_area is None) == (box != BOX)
  assert video.scan_area is None or video.scan_area[0] == 8


def test_a_key_gives_the_same_names_again_and_another_one_others(delivery, capsys):
  names = []
  for key in ("key", "key", "other"):
    out = delivery / f"out_{len(names)}"
    assert run(delivery, f"--out={out}", f"--key={delivery / key}") == 0
    names.append({path.name for path in (out / "videos").iterdir()})
  assert names[0] == names[1] and not names[0] & names[2]
  assert (delivery / "key").stat().st_mode & 0o777 == 0o600
  assert run(delivery, f"--key={delivery / 'out' / 'key'}") == 2
  assert "lies in the output folder" in capsys.readouterr().err


def test_what_a_user_keeps_is_kept(delivery, capsys):
  assert run(delivery, "--keep-pixels", "--keep-names") == 0
  (video, other) = manifest.read_folder(delivery / "out", labels=False).videos
  assert (video.name, video.patient) == ("20240229/IM0000.dcm", "MRN-4711")
  np.testing.assert_array_equal(readers.read(video.media), frames(0))
  assert run(delivery, "--no-deidentify", f"--out={delivery / 'raw'}") == 0
  assert "seem to tell whose they are" in capsys.readouterr().out
  raw = delivery / "raw" / "videos" / "20240229" / "IM0000"
  assert raw.read_bytes() == (delivery / "Doe_Jane" / "20240229" / "IM0000").read_bytes()


def test_a_dry_run_makes_no_key(delivery, capsys):
  assert run(delivery, "--dry-run") == 0
  assert "2 clips would be de-identified" in capsys.readouterr().out
  assert not (delivery / "key").exists() and not (delivery / "out").exists()


def test_a_folder_within_what_is_imported_is_refused(delivery, capsys):
  assert run(delivery, f"--out={delivery / 'Doe_Jane' / 'out'}") == 2
  assert "which is imported from" in capsys.readouterr().err
