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
  (sentence,) = copies.among(look(rows, videos=videos))
  assert sentence.startswith("one_1 of patient 'P1', one_4 of patient 'Q9' have near-identical")
  assert "and stand in train and test; if they are one person's, the test is not" in sentence
  # One patient's frames may be alike.
  assert list(copies.among(look([*ROWS, ("train", "P1", picture(2))]))) == []


def test_patients_that_differ_in_capitals_or_blanks_are_named():
  rows = [("train", "P1", picture(1)), ("test", "p1", picture(2)), ("test", "p 2", picture(3))]
  rows += [("train", "P_2", picture(4))]
  (sentence,) = copies.among(look(rows))
  assert sentence.startswith("the patients P1 and p1; P_2 and p 2 look like one name")


def test_patients_of_another_data_set_are_found_by_their_frames(tmp_path):
  copies.keep(tmp_path, look(ROWS))
  seen = copies.kept(tmp_path)
  # What only tested was not learnt from.
  assert seen.patients == ["P1", "P1", "P2"]
  here = look([("test", "X", as_jpeg(picture(3))), ("test", "Y", picture(4))], name="two")
  (sentence,) = copies.between(seen, here, ["X", "Y"])
  assert sentence.startswith("frames of X (P2 there) are near-identical to some that the segment")
  assert "have seen these patients, and 1 of them test here, so" in sentence
  (sentence,) = copies.between(seen, here, ["Y"])
  assert "test here" not in sentence
  assert copies.kept(tmp_path / "elsewhere") is None
  (tmp_path / copies.SEEN).write_bytes(b"PK")
  with pytest.raises(UserError, match="seen_frames.npz is damaged"):
    copies.kept(tmp_path)


def test_sentences_are_notes_of_the_results_and_warnings(caplog):
  found = copies.noted(dataset(ROWS), iter(["they are one."]))
  assert found.notes == ["before", "they are one."]
  assert caplog.messages == ["one: they are one."]
  assert dataclasses.replace(found, metadata={}).notes == []


def test_of_many_frames_every_so_many_is_looked_at(monkeypatch):
  monkeypatch.setattr(copies.alike, "MOST", 4)
  found = look([("train", f"P{i}", picture(i)) for i in range(6)], videos=True)
  assert sum(map(len, found.hashes)) == 4  # of 18 every fifth
