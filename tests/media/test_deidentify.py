"""Pseudonyms, copies without what tells whose they are, and what looks like it does."""

import concurrent.futures
import datetime
import errno
import gzip
import hmac
import os
import pathlib
import re
import shutil
import stat
import struct
import time
from fractions import Fraction

import av
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from absl import logging
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin, TiffImagePlugin

from lus_jax import files
from lus_jax.errors import UserError
from lus_jax.media import clips, deidentify, readers, tags, writers


@pytest.fixture
def names(tmp_path):
  """Pseudonyms of one key, as digits of a random one may by chance be those that are searched."""
  key = tmp_path / "key"
  key.write_text("0123456789abcdef" * 4 + "\n")
  key.chmod(0o600)
  return deidentify.Pseudonyms(key, tmp_path / "out")


def test_the_key_is_made_once_for_its_owner_alone_and_gives_the_same_names_again(tmp_path):
  path = tmp_path / "keys" / "lus.key"
  old = os.umask(0)
  try:
    first = deidentify.Pseudonyms(path, tmp_path / "out")
  finally:
    os.umask(old)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert [file.name for file in path.parent.iterdir()] == ["lus.key"]
  assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
  again = deidentify.Pseudonyms(path, tmp_path / "elsewhere")
  other = deidentify.Pseudonyms(tmp_path / "other.key", tmp_path / "out")
  for name in ("007", "7", "Müller, Anna", "patient 12"):
    assert again.patient(name) == first.patient(name) != other.patient(name)
    assert again.name(name) == first.name(name) != first.patient(name)
    assert again.shift(name) == first.shift(name)
    assert again.uid(name) == first.uid(name) != other.uid(name)
    assert re.fullmatch("P[A-Z2-7]{10}", first.patient(name))
    assert re.fullmatch("F[A-Z2-7]{10}", first.name(name))


def test_commands_that_begin_at_once_take_one_key(tmp_path):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = pool.map(lambda _: deidentify.Pseudonyms(tmp_path / "key", tmp_path / "out"), range(16))
    assert len({names.patient("7") for names in made}) == 1
  assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_pseudonym_is_the_keyed_digest_of_the_id_as_it_is_spelled(tmp_path, names):
  key = bytes.fromhex((tmp_path / "key").read_text())
  digest = hmac.digest(key, b"patient\x00" + b"007", "sha256")
  bits = int.from_bytes(digest) >> 206  # the first 50
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
  expected = "".join(letters[bits >> 5 * i & 31] for i in range(9, -1, -1))
  assert names.patient("007") == f"P{expected}"
  assert len({names.patient(name) for name in ("7", "07", "007", "P7", "p7")}) == 5
  assert names.patient("Mu\u0308ller") == names.patient("M\u00fcller")
  assert names.patient("") == names.name("") == ""


def test_the_dates_of_one_patient_keep_their_intervals(names):
  days = {patient: names.shift(patient) for patient in map(str, range(300))}
  assert len(set(days.values())) > 250 and all(-3650 <= day <= -1 for day in days.values())
  first, second = datetime.date(2020, 2, 27), datetime.date(2020, 3, 1)
  shifted = [names.shifted("7", date) for date in (first, second)]
  assert shifted[1] - shifted[0] == datetime.timedelta(days=3)
  assert shifted[0] - first == datetime.timedelta(days=days["7"])
  assert names.shifted("7", datetime.date(1, 1, 1)) is None


def test_uids_are_valid_and_of_the_kind_that_is_made_of_a_uuid(names):
  for text in map(str, range(50)):
    uid = names.uid(text)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid)
    hexadecimal = f"{int(uid[5:]):032x}"
    assert hexadecimal[12] == "8" and hexadecimal[16] in "89ab"


def test_two_names_of_one_pseudonym_are_refused(names, monkeypatch):
  monkeypatch.setattr(hmac, "digest", lambda *_: bytes(32))
  names.patient("a")
  names.patient("a")
  with pytest.raises(UserError, match="two names have the pseudonym PAAAAAAAAAA"):
    names.patient("b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
  key = tmp_path / "key"
  deidentify.Pseudonyms(key, tmp_path / "out")
  key.chmod(mode)
  with pytest.raises(UserError, match=f"mode {mode:o}.*chmod 600"):
    deidentify.Pseudonyms(key, tmp_path / "out")


@pytest.mark.parametrize("place", ["out/key", "out/a/b/key", "out/../out/key", "link/key"])
def test_a_key_within_the_output_is_refused_and_not_made(tmp_path, place):
  (tmp_path / "out").mkdir()
  (tmp_path / "link").symlink_to("out")
  with pytest.raises(UserError, match="lies in the output folder"):
    deidentify.Pseudonyms(tmp_path / place, tmp_path / "out")
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("content", ["", "a" * 63, "A" * 64, "a" * 65, "a" * 64 + "\n\n", "\xff"])
def test_what_is_no_key_is_refused_and_left_alone(tmp_path, content):
  key = tmp_path / "key"
  key.write_text(content)
  key.chmod(0o600)
  with pytest.raises(UserError, match="is no key|is empty"):
    deidentify.Pseudonyms(key, tmp_path / "out")
  assert key.read_text() == content


def test_a_key_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"cannot be made there \(.*\)"):
    deidentify.Pseudonyms(tmp_path / "file" / "key", tmp_path / "out")
  with pytest.raises(UserError, match="is a folder"):
    deidentify.Pseudonyms(tmp_path, tmp_path / "out")
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(UserError, match="no ordinary file"):
    deidentify.Pseudonyms(tmp_path / "pipe", tmp_path / "out")


@pytest.mark.parametrize(
  "text, what",
  [
    ("2020-03-01", "a date"),
    ("IMG_20200301_001.png", "a date"),
    ("20200301123059", "a date"),
    ("scan 1.3.2020", "a date"),
    ("03_31_2020", "a date"),
    ("01-MAR-2020", "a date"),
    ("jane.doe@hospital.org", "an e-mail address"),
    ("user_j-@mail.klinik.de.png", "an e-mail address"),
    ("clip of J\u00f6rg@kh-süd.de, twice", "an e-mail address"),
    ("P12345678", "a number of a person or an examination"),
    ("MRN 17", "a number of a person or an examination"),
    ("1.2.840.113619.2.55.3.604", "a DICOM UID"),
    ("MUELLER^ANNA", "a person's name"),
    ("Müller, Anna", "a person's name"),
    ("Dr. weber", "a person's name"),
    ("clip_Anna_Müller_2", "a person's name"),
    ("AnnaMueller.mp4", "a person's name"),
    ("Anna-Maria Mu\u0308ller", "a person's name"),
  ],
)
def test_suspicious_texts(text, what):
  assert deidentify.suspicious(text) == what


@pytest.mark.parametrize(
  "text",
  [
    "patient_62_R1_2.mp4",
    "0000001.png",
    "Lung_Left",
    "SharpPleura",
    "sharp_pleura",
    "ExpertsAnnotations/Person1_Amira/seg_B1.png",
    "a3f4123456789b00ff",
    "v1.2.3",
    "clip@25fps.avi",
    "left@2x.PNG",
    "a@b",
    "user_3 @ home.",
    "1920x1080",
    "PK3QW5Y7ABC",
    "README_upstream.md",
    "grünlich ärmel",
    "99_2020_13",
  ],
)
def test_ordinary_texts_are_not_suspicious(text):
  assert deidentify.suspicious(text) is None


@pytest.mark.parametrize(
  "text", ["a", "A", "Aa", "é", "Éa", "1", "0", "0a", "1.", "A ", "^", "a_", "a@", "a@a.", "@a."]
)
def test_long_texts_take_no_long_time(text):
  # Of the length that comments and profiles have; squares of it would take minutes.
  began = time.monotonic()
  deidentify.suspicious(text * 100_000)
  assert time.monotonic() - began < 2


@pytest.mark.real_data
def test_names_of_the_real_data_sets_are_not_suspicious(real_data):
  found = {
    path.name: deidentify.suspicious(path.name) for path in real_data.rglob("*") if path.is_file()
  }
  assert len(found) > 100
  assert not {name: what for name, what in found.items() if what}


# Copies.

BOX = (5, 11, 37, 49)
NAME = "Müller^Jörg"
SECRETS = ("Müller", "Jörg", "Mueller", "20200301", "2020-03-01", "Charité", "47110815", "52.5200")


def clip(n=6, h=44, w=60):
  """Frames that move, with a name burned in outside of the scan area."""
  rng = np.random.default_rng(3)
  frames = rng.integers(0, 256, (n, h, w), np.uint8)
  image = Image.new("L", (w, h))
  ImageDraw.Draw(image).text((2, 36), "MUELLER", fill=255)
  text = np.asarray(image)
  assert text[BOX[2] :].sum() > 255 * 20
  frames[:, BOX[2] :] = text[BOX[2] :]
  return frames


def expected(frames, box=BOX):
  blank, (top, left, bottom, right) = np.zeros_like(frames), box
  blank[:, top:bottom, left:right] = frames[:, top:bottom, left:right]
  return blank


def leaks(path, words=SECRETS):
  """Which words stand in the bytes or the names of what was written, in any encoding."""
  written = [path, *path.rglob("*")] if path.is_dir() else [path]
  found = set()
  for file in written:
    content = os.fsencode(file.name) + (b"" if file.is_dir() else file.read_bytes())
    for word in words:
      for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        found |= {word} if word.encode(encoding).lower() in content.lower() else set()
  return found


def rewritten(path, names, **settings):
  """What `readers` make of a file and of its copy: two `Media`, frames, and what was removed."""
  media = readers.probe(path)
  target = path.parent / "out" / "clip.1"
  copy, removed = deidentify.rewrite(media, BOX, target, names, **settings)
  assert [copy] == list(target.parent.iterdir())
  assert copy.name.startswith("clip.1") and removed.n_frames == media.n_frames
  after = readers.probe(copy)
  assert (after.n_frames, after.height, after.width) == (media.n_frames, media.height, media.width)
  assert after.frames_per_second == media.frames_per_second or (
    np.isnan(after.frames_per_second) and np.isnan(media.frames_per_second)
  )
  assert after.orientation == 1
  assert after.npy_axes == media.npy_axes or copy.suffix == ".npy"
  return media, copy, readers.read(media), readers.read(after), removed


def write_video(path, frames, rate=Fraction(30000, 1001), times=None):
  with av.open(path, "w") as container:
    container.metadata.update(
      title="Müller Jörg 20200301",
      comment="Charité 47110815",
      artist="Mueller",
      location="+52.5200+013.4050/",
    )
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    stream = container.add_stream(codec, rate=rate)
    stream.metadata["handler_name"] = "Mueller"
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
    for i, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels, format="gray")
      if times:
        frame.pts, frame.time_base = times[i], 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize("name", ["Müller_20200301.mp4", "a.avi"])
def test_a_video_leaves_no_title_comment_or_place(tmp_path, names, name):
  path = tmp_path / name
  write_video(path, clip())
  assert leaks(path) >= {"Müller", "20200301", "Charité", "47110815", "Mueller"}
  _, copy, frames, after, removed = rewritten(path, names)
  assert copy.suffix == ".avi" and not leaks(copy)
  np.testing.assert_array_equal(after, expected(frames))
  assert removed.removed["title"] == removed.removed["comment"] == 1
  assert removed.n_blanked == 6 * (44 * 60 - 32 * 38) and not removed.replaced
  assert after[:, 5:37, 11:49].std() > 50


@pytest.mark.parametrize("rate", ["1/100", "7.5", "29.97", "12345/487", "1000", "2469/2", "5000"])
def test_any_rate_is_kept(tmp_path, rate):
  rate = float(Fraction(rate))
  media = clips.Media(tmp_path, (), 6, 44, 60, rate, format="video")
  copy = writers.write(tmp_path / "a", iter(clip()), media)
  assert readers.probe(copy).frames_per_second == pytest.approx(rate, rel=1e-12)
  np.testing.assert_array_equal(readers.read(readers.probe(copy)), clip())
  assert b"Lav" not in copy.read_bytes()


def exif(orientation=1):
  said = Image.Exif()
  said[ExifTags.Base.ImageDescription] = "Mueller 20200301"
  said[ExifTags.Base.Artist] = "Mueller"
  said[ExifTags.Base.DateTime] = "2020-03-01"
  said[ExifTags.Base.Orientation] = orientation
  said.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = "47110815"
  said.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "52.5200"
  return said.tobytes()


def text_chunks():
  texts = PngImagePlugin.PngInfo()
  texts.add_text("Author", "Mueller")
  texts.add_itxt("of Müller", "Charité")
  texts.add_text("Comment", "47110815" * 40, zip=True)
  texts.add(b"tEXt", b"Title\x0020200301", after_idat=True)
  texts.add(b"prVt", b"Mueller")
  return texts


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_picture_leaves_no_texts_exif_comments_or_colour_profiles(tmp_path, names, suffix):
  path, frame = tmp_path / f"Müller_20200301.{suffix}", clip()[0]
  settings = {
    "png": {"pnginfo": text_chunks(), "exif": exif(6), "icc_profile": b"of Mueller"},
    "jpg": {"exif": exif(6), "comment": "Charité", "icc_profile": b"Mueller", "xmp": b"20200301"},
    "tif": {"exif": exif(), "artist": "Mueller", "description": "20200301"},
    "bmp": {},
  }[suffix]
  Image.fromarray(np.rot90(frame) if suffix in ("png", "jpg") else frame).save(path, **settings)
  if suffix == "bmp":
    path.write_bytes(path.read_bytes() + b"Mueller")
  assert leaks(path) >= {"Mueller", "Müller", "20200301"}
  _, copy, frames, after, removed = rewritten(path, names)
  assert copy.suffix == ".png" and not leaks(copy)
  np.testing.assert_array_equal(after, expected(frames))
  assert after[:, 5:37, 11:49].std() > 50
  if suffix != "bmp":
    assert {"Artist", "ImageDescription"} <= removed.removed.keys()
  if suffix in ("png", "jpg"):
    assert {"UserComment", "GPSLatitudeRef", "icc_profile"} <= removed.removed.keys()
    assert not removed.removed.keys() & {"Orientation", "of Müller"}
  if suffix == "png":
    assert removed.removed["another tag"] == 1 and removed.removed["Title"] == 1
  with Image.open(copy) as image:
    assert image.mode == "L" and not image.info


def test_a_folder_of_pictures_is_numbered_anew(tmp_path, names):
  folder = tmp_path / "Mueller 47110815"
  folder.mkdir()
  for i, frame in enumerate(clip()):
    Image.fromarray(frame).save(folder / f"Müller_2020-03-0{i + 1}.png", pnginfo=text_chunks())
  assert leaks(folder) >= {"Müller", "2020-03-01", "47110815"}
  _, copy, frames, after, removed = rewritten(folder, names)
  assert copy.is_dir() and not leaks(copy)
  assert [path.name for path in sorted(copy.iterdir())] == [f"00000{i}.png" for i in range(6)]
  np.testing.assert_array_equal(after, expected(frames))
  assert removed.removed["Author"] == 6


def test_a_gif_leaves_no_comment_and_keeps_its_rate(tmp_path, names):
  path = tmp_path / "a.gif"
  first, *rest = map(Image.fromarray, clip())
  first.save(path, save_all=True, append_images=rest, comment="Mueller 47110815", duration=40)
  assert leaks(path) == {"Mueller", "47110815"}
  media, copy, frames, after, removed = rewritten(path, names)
  assert copy.suffix == ".avi" and not leaks(copy)
  np.testing.assert_array_equal(after, expected(frames))
  assert removed.removed == {"comment": 1}


@pytest.mark.parametrize("axes", ["nhw", "hwn", None])
def test_npy_keeps_its_axes(tmp_path, names, axes):
  path, frames = tmp_path / "a.npy", clip()
  np.save(path, np.moveaxis(frames, 0, -1) if axes == "hwn" else frames)
  media = readers.probe(path, npy_axes=axes)
  copy, removed = deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  after = readers.probe(copy, npy_axes=axes)
  np.testing.assert_array_equal(readers.read(after), expected(frames))
  np.testing.assert_array_equal(np.load(path).shape, np.load(copy).shape)
  np.testing.assert_array_equal(readers.read(media), frames)
  assert not removed.removed


@pytest.mark.parametrize("axes", [None, "yx"])
@pytest.mark.parametrize("rate", [None, 20])
def test_nifti_leaves_no_texts_and_keeps_axes_spacing_and_rate(tmp_path, names, rate, axes):
  path, frames = tmp_path / "Müller.nii", clip()
  data = np.moveaxis(frames, 0, -1) if axes == "yx" else frames.T
  image = nibabel.Nifti1Image(data[:, :, None] if rate else data, np.diag([0.25, 0.5, 1, 1]))
  image.header.set_xyzt_units("mm", "sec")
  if rate:
    image.header.set_zooms([0.25, 0.5, 1, 1 / rate])
  image.header["descrip"], image.header["db_name"] = b"Mueller", b"47110815"
  image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"20200301"))
  nibabel.save(image, path)
  assert leaks(path) == {"Müller", "Mueller", "47110815", "20200301"}
  media = readers.probe(path, nifti_axes=axes)
  copy, removed = deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  assert copy.name == "a.nii.gz" and copy.read_bytes()[3:8] == bytes(5)  # gzip: no name, no time
  copy.with_name("b.nii").write_bytes(gzip.decompress(copy.read_bytes()))
  assert not leaks(copy.parent)
  after = readers.probe(copy, nifti_axes=axes)
  np.testing.assert_array_equal(readers.read(media), frames)
  np.testing.assert_array_equal(readers.read(after), expected(frames))
  assert after.spacing == media.spacing == ((0.25, 0.5) if axes else (0.5, 0.25))
  np.testing.assert_equal(after.frames_per_second, media.frames_per_second)
  assert removed.removed == {"descrip": 1, "db_name": 1, "extension": 1}


@pytest.mark.parametrize("spacing", [(0.1234567890123, 0.3), None])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_nrrd_and_metaimage_leave_no_remarks_and_keep_their_spacing(
  tmp_path, names, suffix, spacing
):
  path, frames = tmp_path / f"Müller{suffix}", clip()
  image = SimpleITK.GetImageFromArray(frames)
  if spacing:
    image.SetSpacing((*spacing[::-1], 1))
  image.SetMetaData("of Mueller", "47110815")
  SimpleITK.WriteImage(image, str(path))
  assert leaks(path) >= {"Müller", "47110815", "Mueller"}
  media, copy, before, after, removed = rewritten(path, names)
  assert copy.name == "clip.1.mha" and not leaks(copy)
  np.testing.assert_array_equal(before, frames)
  np.testing.assert_array_equal(after, expected(frames))
  assert media.spacing == (pytest.approx(spacing) if spacing else None)
  assert readers.probe(copy).spacing == media.spacing
  assert removed.removed["another tag"] == 1


@pytest.mark.parametrize("rate", [None, 12.5])
def test_a_stack_of_tiff_leaves_no_texts_of_any_page(tmp_path, names, rate):
  path = tmp_path / "a.tif"
  first, *rest = map(Image.fromarray, clip())
  said = f"ImageJ=1.54\nimages=6\nfps={rate}\nof=Mueller" if rate else "Mueller"
  pages = TiffImagePlugin.ImageFileDirectory_v2()
  pages[ExifTags.Base.Artist] = "47110815"
  first.save(path, save_all=True, append_images=rest, description=said, tiffinfo=pages)
  assert leaks(path) == {"Mueller", "47110815"}
  media, copy, frames, after, removed = rewritten(path, names)
  np.testing.assert_array_equal(frames, clip())
  np.testing.assert_array_equal(after, expected(frames))
  assert copy.is_dir() == (rate is None) and not leaks(copy)
  assert removed.removed["ImageDescription"] >= 1 and removed.removed["Artist"] >= 1


def test_kept_pixels_are_all_there_and_headers_are_not(tmp_path, names):
  path = tmp_path / "a.png"
  Image.fromarray(clip()[0]).save(path, pnginfo=text_chunks())
  _, copy, frames, after, removed = rewritten(path, names, keep_pixels=True)
  np.testing.assert_array_equal(after, frames)
  assert removed.n_blanked == 0 and not leaks(copy)


def test_a_copy_replaces_the_one_before_and_a_failure_leaves_it(tmp_path, names, monkeypatch):
  folder = tmp_path / "frames"
  folder.mkdir()
  for i, frame in enumerate(clip()):
    Image.fromarray(frame).save(folder / f"{i}.png")
  np.save(tmp_path / "a.npy", clip())
  write_video(tmp_path / "a.mp4", clip())
  (tmp_path / "out").mkdir()
  medias = [readers.probe(path) for path in (folder, tmp_path / "a.npy", tmp_path / "a.mp4")]
  copies = [deidentify.rewrite(x, BOX, tmp_path / "out" / "a", names)[0] for x in medias]
  before = files.measure(tmp_path / "out")
  assert len(before) == 6 + 1 + 1
  assert [deidentify.rewrite(x, BOX, tmp_path / "out" / "a", names)[0] for x in medias] == copies
  assert files.measure(tmp_path / "out") == before

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(Image.Image, "save", full)
  monkeypatch.setattr(np, "save", full)
  for media in medias[:2]:
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
      deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  assert files.measure(tmp_path / "out") == before
  assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_report_counts_by_name(tmp_path):
  Removed = deidentify.Removed
  lines = deidentify.report(
    [
      Removed({"PatientName": 1, "private attributes": 7}, frozenset(["PatientID"]), 30, 900),
      Removed({"PatientName": 2, "title": 1}, frozenset(["PatientID", "StudyDate"]), 10, 100),
      Removed({}, frozenset(), 1, 0),
    ]
  )
  assert lines == [
    "De-identified: 3 clips.",
    "Outside the scan area: 1000 pixels of 40 frames in 2 of them blanked.",
    "No pixels blanked: in 1 of them.",
    "PatientID: replaced by a pseudonym in 2 of them.",
    "StudyDate: shifted in 1 of them.",
    "PatientName: removed from 2 of them (3 times).",
    "private attributes: removed from 1 of them (7 times).",
    "title: removed from 1 of them.",
  ]


@pytest.mark.parametrize("times", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 10]])
def test_a_video_of_uneven_times_is_said_to_have_their_mean(tmp_path, names, times, monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  write_video(tmp_path / "a.mp4", clip(), times=times)
  media, _, frames, after, _ = rewritten(tmp_path / "a.mp4", names)
  np.testing.assert_array_equal(after, expected(frames))
  assert len(seen) == (times[-1] > 5)
  if seen:
    assert seen[0].endswith(f"for the mean, {media.frames_per_second:.4g} a second.")


def test_a_turned_video_is_upright_in_its_copy(tmp_path, names):
  path, one = tmp_path / "a.mp4", 1 << 16
  write_video(path, np.rot90(clip(), 1, (1, 2)))
  content = bytearray(path.read_bytes())
  # The matrix of its track: x is shown as y, y as -x.
  at = content.find(b"tkhd") + 44
  content[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
  path.write_bytes(content)
  media, _, frames, after, _ = rewritten(path, names)
  assert media.orientation == 6
  np.testing.assert_array_equal(after, expected(frames))


# DICOM.

# Every attribute that a copy may have, and those of each region.
ALLOWED = set(
  """
  ActualFrameDuration BitsAllocated BitsStored CineRate Columns DepthOfScanField
  DeidentificationMethod DeidentificationMethodCodeSequence FrameIncrementPointer FrameTime
  FrameTimeVector HighBit ImageType ImagerPixelSpacing LongitudinalTemporalInformationModified
  LossyImageCompression Manufacturer ManufacturerModelName Modality NominalScannedPixelSpacing
  NumberOfFrames PatientIdentityRemoved PhotometricInterpretation PixelAspectRatio PixelData
  PixelRepresentation PixelSpacing RecommendedDisplayFrameRate Rows SOPClassUID SamplesPerPixel
  SequenceOfUltrasoundRegions
  """.split()  # noqa: SIM905
)
PSEUDONYMS = {"PatientID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"}
DATES = {"AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate"}
EMPTY = set(
  """
  AccessionNumber InstanceNumber PatientBirthDate PatientName PatientOrientation PatientSex
  ReferringPhysicianName SeriesNumber StudyID StudyTime
  """.split()  # noqa: SIM905
)
REGION = set(
  """
  DopplerCorrectionAngle PhysicalDeltaX PhysicalDeltaY PhysicalUnitsXDirection
  PhysicalUnitsYDirection PulseRepetitionFrequency ReferencePixelPhysicalValueX
  ReferencePixelPhysicalValueY ReferencePixelX0 ReferencePixelY0 RegionDataType RegionFlags
  RegionLocationMaxX1 RegionLocationMaxY1 RegionLocationMinX0 RegionLocationMinY0
  RegionSpatialFormat SteeringAngle TransducerFrequency
  """.split()  # noqa: SIM905
)
VALUES = {
  "AE": "Mueller",
  "AS": "047Y",
  "CS": "MUELLER",
  "DA": "20200301",
  "DT": "20200301121530",
  "LO": NAME,
  "LT": "Jörg Müller",
  "OB": b"Mueller ",
  "OW": b"Mueller ",
  "PN": NAME,
  "SH": "47110815",
  "ST": "Charité",
  "TM": "121530",
  "UC": "Mueller",
  "UI": "1.2.276.0.20200301.1",
  "UN": b"Mueller ",
  "UR": "https://charite.example/Mueller",
  "UT": "Müller, Jörg",
}


def plant(dataset):
  """Gives every attribute that may hold a text, a date, bytes or an id such a value."""
  for tag, (vr, _, _, _, keyword) in pydicom.datadict.DicomDictionary.items():
    # Not those of files, commands, pixels and delimiters.
    if keyword and vr in VALUES and tag >> 16 not in (0, 2, 4, 0x28, 0x7FE0, 0xFFFE):
      dataset.add_new(tag, vr, VALUES[vr])


def write_dicom(path, frames, charset="ISO_IR 192", syntax=pydicom.uid.ExplicitVRLittleEndian):
  """A clip with a name, dates and ids wherever DICOM has a place for them."""
  dataset, inner = pydicom.Dataset(), pydicom.Dataset()
  for place in (dataset, inner):
    plant(place)
    place.SpecificCharacterSet = charset
  dataset.add_new(0x00280301, "CS", "MUELLER")
  inner.OtherPatientIDsSequence = [pydicom.Dataset()]
  inner.OtherPatientIDsSequence[0].PatientID = "47110815"
  dataset.RequestAttributesSequence = [inner]
  for place in (dataset, inner):
    block = place.private_block(0x11, "Mueller", create=True)
    block.add_new(1, "LO", NAME)
    block.add_new(2, "UN", b"Mueller ")
    block.add_new(3, "SQ", [pydicom.Dataset()])
    block[3].value[0].PatientName = NAME
  dataset.add_new(0x60003000, "OW", b"Mueller ")
  dataset.add_new(0x60001500, "LO", "Müller")
  dataset.add_new(0xFFFCFFFC, "OB", b"Mueller ")
  region = pydicom.Dataset()
  region.RegionSpatialFormat = region.RegionDataType = 1
  region.RegionLocationMinX0, region.RegionLocationMinY0 = 11, 5
  region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 48, 36
  region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
  region.PhysicalDeltaX, region.PhysicalDeltaY = 0.0123456789012345678, -0.02
  region.add_new(0x00186030, "UL", 5000)  # TransducerFrequency
  region.add_new(0x00186036, "LO", "Mueller")  # SteeringAngle, which is a number
  region.PatientComments = NAME
  dataset.SequenceOfUltrasoundRegions = [region]
  dataset.FrameTime = "33.367"
  dataset.PatientWeight = "71.5"
  dataset.PatientID = "47110815"
  dataset.InstitutionName = "Charité"
  dataset.Manufacturer = "SonoCharité"
  dataset.ManufacturerModelName = "Turbo 3"
  dataset.Modality = "US"
  dataset.Rows, dataset.Columns = frames.shape[1:3]
  dataset.NumberOfFrames = len(frames)
  dataset.FrameIncrementPointer = 0x00181063
  dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
  dataset.PhotometricInterpretation = "RGB"
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  pixels = np.repeat(frames[..., None], 3, -1).tobytes()
  dataset.PixelData = pixels + bytes(len(pixels) % 2)
  dataset.SOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = syntax
  dataset.file_meta.SourceApplicationEntityTitle = "Mueller"
  dataset.file_meta.PrivateInformationCreatorUID = "1.2.276.0.20200301.2"
  dataset.file_meta.PrivateInformation = b"Mueller "
  dataset.preamble = b"Mueller".ljust(128, b"\0")
  dataset.save_as(path, enforce_file_format=True)


DICOM_SECRETS = (*SECRETS, "121530", "047Y", "71.5", "276.0", "charite", "Sono")


@pytest.mark.parametrize(
  ("charset", "syntax"),
  [
    ("ISO_IR 192", pydicom.uid.ExplicitVRLittleEndian),
    ("ISO_IR 100", pydicom.uid.ExplicitVRLittleEndian),
    # Without VRs the letters in place of SteeringAngle are 8 bytes of a number.
    ("ISO_IR 192", pydicom.uid.ImplicitVRLittleEndian),
    ("ISO_IR 192", pydicom.uid.DeflatedExplicitVRLittleEndian),
  ],
)
def test_a_dicom_file_leaves_nothing_of_a_person_in_headers_pixels_or_names(
  tmp_path, names, charset, syntax
):
  path, frames = tmp_path / "Müller_20200301.dcm", clip()
  write_dicom(path, frames, charset, syntax)
  if syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
    assert leaks(path, DICOM_SECRETS) == set(DICOM_SECRETS) - {"2020-03-01", "52.5200"}
  media, copy, before, after, removed = rewritten(path, names)
  assert copy.name == "clip.1.dcm" and not leaks(copy, DICOM_SECRETS)

  np.testing.assert_array_equal(before, frames)
  np.testing.assert_array_equal(after, expected(frames))
  again = readers.probe(copy)
  assert again.region == media.region == BOX
  assert again.spacing == media.spacing and again.spacing[0] == pytest.approx(0.2)

  dataset = pydicom.dcmread(copy)
  assert {one.keyword for one in dataset} <= ALLOWED | PSEUDONYMS | DATES | EMPTY
  assert {one.keyword for one in dataset if not one.is_empty} <= ALLOWED | PSEUDONYMS | DATES
  (region,) = dataset.SequenceOfUltrasoundRegions
  assert "TransducerFrequency" in region and "SteeringAngle" not in region
  assert {one.keyword for one in region} <= REGION
  assert dataset.ManufacturerModelName == "Turbo 3" and "Manufacturer" not in dataset
  assert dataset.preamble == bytes(128) and dataset.Rows == 44 and dataset.NumberOfFrames == 6
  assert dataset.file_meta.keys() <= {0x20000 + n for n in (0, 1, 2, 3, 0x10, 0x12, 0x13)}
  assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
  assert dataset.SOPInstanceUID == names.uid("1.2.276.0.20200301.1")
  assert dataset.PatientID == names.patient("47110815")
  day = datetime.date(2020, 3, 1) + datetime.timedelta(days=names.shift("47110815"))
  for keyword in DATES:
    assert dataset[keyword].value == f"{day:%Y%m%d}"
  assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
  assert [one.CodeValue for one in dataset.DeidentificationMethodCodeSequence] == [
    "113100",
    "113107",
  ]

  assert removed.replaced == PSEUDONYMS | DATES
  for keyword in ("PatientBirthDate", "OperatorsName", "AccessionNumber", "PatientComments"):
    assert removed.removed[keyword] >= 1
  for keyword in ("OverlayData", "preamble", "PrivateInformation", "PatientWeight"):
    assert removed.removed[keyword] == 1
  assert removed.removed["PatientComments"] == 3 and removed.removed["private attributes"] == 8
  # A maker's name with a word of the place, and a text in place of a number.
  assert {"Manufacturer", "SteeringAngle"} <= removed.removed.keys()
  assert not removed.removed.keys() & {"FrameTime", "Rows", "PhysicalDeltaX", "PixelData"}
  lines = "\n".join(deidentify.report([removed]))
  assert not [word for word in DICOM_SECRETS if word in lines]


EXAMPLES = ("ct", "mr", "rgb_color", "palette_color", "overlay", "ybr_color", "jpeg2k")


@pytest.mark.parametrize("name", EXAMPLES)
def test_frames_of_all_kinds_of_dicom_are_read_back_to_the_bit(tmp_path, names, name):
  path = pathlib.Path(pydicom.examples.get_path(name))
  shutil.copy(path, tmp_path / "a")  # without a suffix
  media, copy, before, after, removed = rewritten(tmp_path / "a", names)
  np.testing.assert_array_equal(after, expected(before))
  again, old = readers.probe(copy), pydicom.dcmread(path, stop_before_pixels=True)
  assert again.spacing == media.spacing and again.region == media.region
  assert removed.n_frames == media.n_frames == len(after)
  secrets = [str(old.get(x, "")) for x in ("PatientName", "StudyInstanceUID", "SOPInstanceUID")]
  assert not leaks(copy, [word for word in secrets if len(word) > 3])


def small_dicom(path, **attributes):
  write_dicom(path, clip(2))
  dataset = pydicom.dcmread(path)
  for keyword, value in attributes.items():
    if value is None:
      del dataset[keyword]
    else:
      setattr(dataset, keyword, value)
  dataset.save_as(path)
  return readers.probe(path)


def test_the_users_patient_id_wins_over_the_headers(tmp_path, names):
  media = small_dicom(tmp_path / "a.dcm", StudyDate="20200311")
  for patient in ("7", "007"):
    copy, _ = deidentify.rewrite(media, BOX, tmp_path / "out" / patient, names, patient=patient)
    dataset = pydicom.dcmread(copy)
    assert dataset.PatientID == names.patient(patient)
    day = datetime.date(2020, 3, 11) + datetime.timedelta(days=names.shift(patient))
    assert dataset.StudyDate == f"{day:%Y%m%d}"


def test_an_unknown_patient_has_no_dates_and_missing_uids_are_made_of_the_pixels(tmp_path, names):
  gone = {"PatientID": None, "SOPInstanceUID": None, "StudyInstanceUID": None}
  media = small_dicom(tmp_path / "a.dcm", **gone)
  copies = [deidentify.rewrite(media, BOX, tmp_path / "out" / x, names)[0] for x in "ab"]
  dataset, again = map(pydicom.dcmread, copies)
  assert dataset.PatientID == "" and not any(keyword in dataset for keyword in DATES)
  assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
  assert dataset.SOPInstanceUID == again.SOPInstanceUID != dataset.StudyInstanceUID
  assert copies[0].read_bytes() == copies[1].read_bytes()


@pytest.mark.parametrize("date", ["2020", "20201301", "00010101", "2020.03.01"])
def test_dates_that_cannot_be_shifted_are_left_out(tmp_path, names, date):
  path = tmp_path / "a.dcm"
  media = small_dicom(path)
  path.write_bytes(path.read_bytes().replace(b"20200301", date.encode().ljust(8)[:8]))
  copy, removed = deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  dataset = pydicom.dcmread(copy)
  assert not any(keyword in dataset for keyword in DATES)
  assert removed.removed["StudyDate"] >= 1 and "StudyDate" not in removed.replaced


def test_numbers_of_a_length_that_none_has_are_left_out(tmp_path, names):
  path = tmp_path / "a.dcm"
  media = small_dicom(path)
  rate = b"\x18\x00\x63\x10DS\x06\x0033.367"
  assert path.read_bytes().count(rate) == 1
  # An FL of three bytes, and the length that a file says of its own beginning.
  path.write_bytes(path.read_bytes().replace(rate, b"\x18\x00\x63\x10FL\x06\x0033.367"))
  media = readers.probe(path)
  assert np.isnan(media.frames_per_second)
  copy, removed = deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  assert "FrameTime" not in pydicom.dcmread(copy) and removed.removed["FrameTime"] == 1
  content = path.read_bytes()
  at = content.find(b"DICM\x02\x00\x00\x00UL\x04\x00")
  path.write_bytes(content[: at + 10] + b"\x03" + content[at + 11 :])
  with pytest.raises(UserError, match="a.dcm is damaged"):
    readers.probe(path)


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (1, 7), (31, 33), (32, 32), (2, 65535)])
def test_frames_of_any_size_are_written(tmp_path, names, size):
  path, box = tmp_path / "a.dcm", (0, 0, *size)
  write_dicom(path, np.random.default_rng(0).integers(0, 256, (1, *size), np.uint8))
  media = readers.probe(path)
  copy, _ = deidentify.rewrite(media, box, tmp_path / "out" / "a", names)
  np.testing.assert_array_equal(readers.read(readers.probe(copy)), readers.read(media))


def test_pixels_of_dicom_are_kept_where_that_is_asked_for(tmp_path, names):
  write_dicom(tmp_path / "a.dcm", clip())
  _, copy, before, after, removed = rewritten(tmp_path / "a.dcm", names, keep_pixels=True)
  np.testing.assert_array_equal(after, before)
  assert removed.n_blanked == 0 and not leaks(copy, DICOM_SECRETS)


def test_tags_are_read_with_their_texts_and_only_the_formats_names_are_told(tmp_path, names):
  write_video(tmp_path / "a.mp4", clip())
  Image.fromarray(clip()[0]).save(tmp_path / "a.png", pnginfo=text_chunks(), exif=exif())
  media = small_dicom(tmp_path / "a.dcm")
  found = {path: set(tags.read(readers.probe(tmp_path / path))) for path in ("a.mp4", "a.png")}
  assert (tmp_path / "a.mp4", "title", "Müller Jörg 20200301") in found["a.mp4"]
  assert (tmp_path / "a.png", "Artist", "Mueller") in found["a.png"]
  assert (tmp_path / "a.png", "of Müller", "Charité") in found["a.png"]
  of_dicom = {(name, text) for _, name, text in tags.read(media)}
  assert {("PatientName", NAME), ("PatientBirthDate", "20200301")} <= of_dicom
  copy, _ = deidentify.rewrite(media, BOX, tmp_path / "out" / "a", names)
  # The id is a pseudonym, and the header says so.
  assert tags.read(readers.probe(copy)) == []
  shown = {tags.public_name(name) for name, _ in of_dicom}
  assert shown >= {"PatientName", "StudyDate"} and "another tag" not in shown
  assert tags.public_name("of Müller") == "another tag"
