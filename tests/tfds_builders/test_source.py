import numpy as np
import pytest
from PIL import Image

from lus_jax.errors import UserError
from tfds_builders.importers.source import Videos


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
