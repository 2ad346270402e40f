"""Pseudonyms, copies without what tells whose they are, and what looks like it does."""

import datetime
import hmac
import os
import re
import stat

import pytest

from lus_jax.errors import UserError
from lus_jax.media import deidentify


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
