import numpy as np
import pytest
from PIL import Image

from lus_jax import notices
from lus_jax.errors import UserError
from tfds_builders.importers import options
from tfds_builders.importers import videos as videos_importer
from tfds_builders.importers.source import Source, Videos, place


@pytest.fixture
def pictures(tmp_path):
  """Two clips of numbered pictures, a still below one of them, and a video of another name."""
  for name in ("a/clip/003.png", "a/clip/004.png", "a/other/003.png", "b/Öl1.png"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
  np.save(tmp_path / "b.v2.npy", np.zeros((3, 4, 5), np.uint8))
  return tmp_path


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a/clip/004.png", ("a/clip", 1)),
    (r"C:\Users\anna\clip\004.PNG", ("a/clip", 1)),
    ("004", ("a/clip", 1)),
    ("other/003.jpg", ("a/other", 0)),
    ("../../other/003.png", ("a/other", 0)),
    ("b.v2", ("b.v2", 0)),
    ("/data/b.v2.mp4", ("b.v2", 0)),
    ("clip", ("a/clip", 0)),
  ],
)
def test_pictures_of_clips_are_found(pictures, text, expected):
  assert Videos(pictures, clips_are_folders=True).find_frame(text, "x") == expected


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("003.png", "x: '003.png' may be a/clip, a/other, all in"),
    ("005.png", "x: '005.png' is not in"),
    *((text, "is not in") for text in ("", "/", "//", ".", "..", "a/..", "/etc/hostname")),
    ("/" * 100_000, "is not in"),
  ],
)
def test_pictures_that_are_not_found(pictures, text, part):
  videos = Videos(pictures, clips_are_folders=True)
  for find in (videos.find_frame, videos.find):
    if find == videos.find_frame or text != "003.png":
      with pytest.raises(UserError, match=part):
        find(text, "x")


def test_pictures_that_are_clips(pictures):
  videos = Videos(pictures)
  assert videos.find_frame("clip/004.png", "x") == ("a/clip/004", 0)
  # Composed and decomposed.
  assert videos.find_frame("O\u0308L1.png", "x") == ("b/Öl1", 0)
  assert videos.find("clip/003", "x") == "a/clip/003"


@pytest.mark.parametrize("clips_are_folders", [True, False])
@pytest.mark.parametrize("text", ["other/004.png", "x/b/003.png", "b/clip/003.png", r"A\b.v2.npy"])
def test_a_folder_of_other_clips_is_no_others_folder(pictures, text, clips_are_folders):
  (pictures / "a" / "clip" / "003.png").unlink()
  videos = Videos(pictures, clips_are_folders=clips_are_folders)
  if text.startswith("b/clip"):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(pictures / "a" / "clip" / "003.png")
    (pictures / "a" / "other" / "003.png").unlink()
    videos = Videos(pictures, clips_are_folders=clips_are_folders)
  with pytest.raises(UserError, match="x: .* is not in .*, whose folder of that name holds others"):
    videos.find_frame(text, "x")


def test_a_folder_that_is_nobodys_is_doubted(pictures, caplog):
  with notices.collected():
    assert Videos(pictures).find_frame("data/clip/004.png", "x")[0] == "a/clip/004"
  assert "is taken for a/clip/004, though their folders differ" in caplog.text


@pytest.mark.parametrize(
  ("first", "text", "frame"),
  [(0, "b.v2_0", 0), (0, "b.v2_2", 2), (1, "b.v2_1", 0), (1, "b.v2_3", 2), (7, "b.v2_8", 1)],
)
def test_frames_of_videos_count_from_the_first(pictures, first, text, frame):
  source, pattern = Source({}, [], []), options.frame_pattern("(.+)_([0-9]+)")
  videos = Videos(pictures, clips_are_folders=True)
  # Pictures have numbers of their own, and stills need no telling.
  assert place(source, videos, "clip_4", "x", pattern, first) == ("a/clip", 1)
  assert source.notes == []
  for _ in range(2):
    assert place(source, videos, text, "x", pattern, first) == ("b.v2", frame)
  assert len(source.notes) == 1 and f"{first} is the first frame of a video" in source.notes[0]
  assert ("--first-frame 1" in source.notes[0]) == (first == 0)
  for number in {first - 1, first + 3} - {-1}:
    with pytest.raises(UserError, match=f"is frame {number}, but .* has {first} to {first + 2};"):
      place(source, videos, f"b.v2_{number}", "x", pattern, first)
  with pytest.raises(UserError, match="--first-frame is of the numbers that --frame-pattern finds"):
    place(source, videos, text, "x", None, 1)


@pytest.mark.parametrize(
  ("names", "is_warned"),
  [
    (("f_000", "f_002", "f_004"), True),
    (("f_000", "f_001"), False),  # two are always evenly apart
    (("f_000", "f_001", "f_003"), False),
    (("anna", "ben", "carl"), False),
  ],
)
def test_stills_that_look_like_frames_of_a_clip_are_warned_of(tmp_path, caplog, names, is_warned):
  for name in names:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / f"{name}.png")
  found = videos_importer.find(videos=tmp_path, classes=["a"])
  assert len(found.clips) == len(names)
  assert ("--folders-are-clips takes them for one clip" in caplog.text) == is_warned
  caplog.clear()
  found = videos_importer.find(videos=tmp_path, classes=["a"], folders_are_clips=True)
  assert len(found.clips) == 1 and not caplog.text
