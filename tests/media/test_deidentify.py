"""Pseudonyms, copies without what tells whose they are, and what looks like it does."""

import datetime
import errno
import hmac
import os
import re
import stat
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

from lus_jax import files
from lus_jax.errors import UserError
from lus_jax.media import deidentify, readers


@pytest.fixture
def names(tmp_path):
  return deidentify.Pseudonyms(tmp_path / "key", tmp_path / "out")


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
    "1920x1080",
    "PK3QW5Y7ABC",
    "README_upstream.md",
    "grünlich ärmel",
    "99_2020_13",
  ],
)
def test_ordinary_texts_are_not_suspicious(text):
  assert deidentify.suspicious(text) is None


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


def write_video(path, frames, rate=Fraction(30000, 1001), turned=0):
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
    for pixels in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray")))
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


def exif(orientation=1):
  tags = Image.Exif()
  tags[ExifTags.Base.ImageDescription] = "Mueller 20200301"
  tags[ExifTags.Base.Artist] = "Mueller"
  tags[ExifTags.Base.DateTime] = "2020-03-01"
  tags[ExifTags.Base.Orientation] = orientation
  tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = "47110815"
  tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "52.5200"
  return tags.tobytes()


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


@pytest.mark.parametrize("rate", [40, None])
def test_a_gif_leaves_no_comment_and_keeps_its_rate(tmp_path, names, rate):
  path = tmp_path / "a.gif"
  first, *rest = map(Image.fromarray, clip())
  timing = {"duration": rate} if rate else {}
  first.save(path, save_all=True, append_images=rest, comment="Mueller 47110815", **timing)
  assert leaks(path) == {"Mueller", "47110815"}
  media, copy, frames, after, removed = rewritten(path, names)
  assert copy.is_dir() == (rate is None) and not leaks(copy)
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
    "De-identified: 3 videos and stills.",
    "Outside the scan area: 1000 pixels of 40 frames in 2 of them blanked.",
    "No pixels blanked: in 1 of them.",
    "PatientID: replaced by a pseudonym, or a date shifted, in 2 of them.",
    "StudyDate: replaced by a pseudonym, or a date shifted, in 1 of them.",
    "PatientName: removed from 2 of them (3 times).",
    "private attributes: removed from 1 of them (7 times).",
    "title: removed from 1 of them.",
  ]


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
