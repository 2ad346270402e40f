"""Persons under two names: frames that are near-identical, and names that differ in spelling."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from lus_jax.data import copies
from lus_jax.data.datasets import Dataset
from lus_jax.errors import UserError


class Source(list):
  def only(self, *names):
    return Source({name: one[name] for name in names} for one in self)


def picture(seed, size=64):
  """A scan of its own: smooth noise, as hashes look at low frequencies."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8))
  return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def as_jpeg(frame):
  """What a second export leaves of a frame: brighter, and through JPEG."""
  data = io.BytesIO()
  Image.fromarray(np.uint8(np.clip(1.1 * frame + 5.0, 0, 255))).save(data, "JPEG", quality=50)
  return np.asarray(Image.open(data))


def dataset(rows, *, videos=False, name="one"):
  """A data set of (split, patient, frame) rows, letterboxed."""
  splits = {split: Source() for split in ("train", "validation", "test")}
  for i, (split, patient, frame) in enumerate(rows):
    padded = np.zeros((96, 64, 1), np.uint8)
    padded[16:80, :, 0] = frame
    splits[split].append(
      {
        "video": f"{name}_{i}".encode(),
        "patient": patient.encode(),
        "valid_box": np.array([16, 0, 80, 64]),
        **({"frames": np.stack([padded] * 3)} if videos else {"image": padded}),
      }
    )
  return Dataset(name, "1", ("a",), (), "patient", splits, {"notes": ["before"]})


ROWS = [
  ("train", "P1", picture(1)),
  ("train", "P1", picture(2)),
  ("validation", "P2", picture(3)),
  ("test", "P3", picture(4)),
]


def look(rows, **options):
  found = dataset(rows, **options)
  videos = options.get("videos", False)
  return copies.look(found, "frames" if videos else "image", len(rows) * (3 if videos else 1))


def test_frames_of_different_persons_are_not_called_alike():
  rows = [("train", f"P{i}", picture(i)) for i in range(40)]
  assert list(copies.among(look(rows))) == []
  assert list(copies.between(look(rows[:20]), look(rows[20:]), ["P30"])) == []


@pytest.mark.parametrize("again", [np.array, as_jpeg])
@pytest.mark.parametrize("videos", [False, True])
def test_frames_under_two_patients_are_named_with_their_sides(again, videos):
  rows = [*ROWS, ("test", "Q9", again(picture(2)))]
  ((sentence, counted),) = copies.among(look(rows, videos=videos))
  assert sentence.startswith("one_1 of patient 'P1', one_4 of patient 'Q9' have near-identical")
  assert "and stand in train and test; if they are one person's, the test is not" in sentence
  assert counted.startswith("2 patients have near-identical frames (")
  assert counted.endswith(sentence.partition("near-identical")[2])
  # One patient's frames may be alike.
  assert list(copies.among(look([*ROWS, ("train", "P1", picture(2))]))) == []


def test_patients_that_differ_in_capitals_or_blanks_are_named():
  rows = [("train", "P1", picture(1)), ("test", "p1", picture(2)), ("test", "p 2", picture(3))]
  rows += [("train", "P_2", picture(4))]
  ((sentence, counted),) = copies.among(look(rows))
  assert sentence.startswith("the patients P1 and p1; P_2 and p 2 look like one name")
  assert counted.startswith("4 names of patients look like one name spelled in several ways;")


def test_no_sentence_that_goes_out_names_anybody():
  rows = [("train", f"Anna_{i}", picture(i % 9)) for i in range(40)]
  rows += [("test", f"anna {i}", picture(i)) for i in range(9)]
  looks = look(rows, name="annas")
  found = [*copies.among(looks), *copies.between(look(ROWS), looks, ["anna 1"])]
  assert len(found) == 1 + 4 + 1 + 1  # spellings, groups, more of these, those of another set
  for one in found:
    assert "nna" not in one.counted and "P1" not in one.counted, one.counted


def test_patients_of_another_data_set_are_found_by_their_frames(tmp_path):
  copies.keep(tmp_path, look(ROWS))
  seen = copies.kept(tmp_path)
  # What only tested was not learnt from.
  assert seen.patients == ["P1", "P1", "P2"]
  here = look([("test", "X", as_jpeg(picture(3))), ("test", "Y", picture(4))], name="two")
  ((sentence, counted),) = copies.between(seen, here, ["X", "Y"])
  assert counted.startswith("frames of 1 patient are near-identical to some that the segment")
  assert sentence.startswith("frames of X (P2 there) are near-identical to some that the segment")
  assert "have seen these patients, and 1 of them test here, so" in sentence
  ((sentence, _),) = copies.between(seen, here, ["Y"])
  assert "test here" not in sentence
  assert copies.kept(tmp_path / "elsewhere") is None


def test_a_damaged_file_of_what_was_seen_is_one_line(tmp_path):
  copies.keep(tmp_path, look(ROWS))
  file = tmp_path / copies.SEEN
  whole = file.read_bytes()
  r = np.random.default_rng(0)
  cut = [whole[:n] for n in r.integers(0, len(whole), 60)]
  flipped = []
  for place in r.integers(0, len(whole), 200):
    flipped.append(bytearray(whole))
    flipped[-1][place] ^= 1 << r.integers(8)
  refused = 0
  for content in (b"PK", *cut, *flipped):
    file.write_bytes(content)
    try:
      # Some bits say nothing of the content, as those of a time.
      found = copies.kept(tmp_path)
    except UserError as error:
      assert str(error) == f"{file} is damaged; bring it back, or remove it."
      refused += 1
    else:
      assert found.patients == ["P1", "P1", "P2"] and len(found.hashes) == 3
  assert refused > 100 + len(cut)


def test_sentences_are_notes_of_the_results_and_warnings(caplog):
  told = copies.Told("P1 and P2 are one.", "2 are one.")
  found = copies.noted(dataset(ROWS), iter([told, told]))
  # Notes go out with models and predictions.
  assert found.notes == ["before", "2 are one.", "2 are one."]
  assert caplog.messages == ["one: P1 and P2 are one."] * 2
  stored = copies.stored(found)
  assert stored == [told._asdict()] * 2
  assert list(copies.named(found.notes, stored)) == ["before", *["P1 and P2 are one."] * 2]
  assert list(copies.named(found.notes, stored[1:])) == ["before", told.named, told.counted]
  assert dataclasses.replace(found, metadata={}).notes == []


def test_of_many_frames_every_so_many_is_looked_at(monkeypatch):
  monkeypatch.setattr(copies.alike, "MOST", 4)
  found = look([("train", f"P{i}", picture(i)) for i in range(6)], videos=True)
  assert sum(map(len, found.hashes)) == 4  # of 18 every fifth
