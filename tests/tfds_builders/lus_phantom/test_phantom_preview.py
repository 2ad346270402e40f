import numpy as np
import pytest
from PIL import Image

from lus_jax import palette
from tfds_builders.lus_phantom import preview, simulator

SIZE = 48


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("preview")
  with pytest.MonkeyPatch.context() as patch:
    arguments = ["--out", folder / "a.png", "--gif", folder / "a.gif", "--size", SIZE]
    patch.setattr("sys.argv", ["preview", *map(str, arguments)])
    assert preview.main() == 0
  return folder


def test_the_clip_moves_and_keeps_the_colours_of_the_classes(pictures):
  with Image.open(pictures / "a.gif") as clip:
    assert clip.n_frames == 16
    assert clip.info["duration"] == pytest.approx(
      1000 / simulator.Probe().frames_per_second, abs=10
    )
    frames = []
    for n in range(clip.n_frames):
      clip.seek(n)
      frames.append(np.asarray(clip.convert("RGB")).astype(int))
  frames = np.stack(frames)
  assert frames.shape[2] == 2 * SIZE
  images, truth = frames[:, :SIZE, :SIZE], frames[:, :SIZE, SIZE:]
  assert (images == images[..., :1]).all(), "frames are grey"
  assert np.abs(np.diff(images[..., 0], axis=0)).mean() > 1
  assert (truth != truth[..., :1]).any((1, 2, 3)).all()
  # The legend names every class with its own colour, unchanged by the few colours of a GIF.
  legend = {tuple(colour) for colour in frames[0, SIZE:].reshape(-1, 3).tolist()}
  assert legend >= {palette.rgb(k) for k in range(len(simulator.CLASSES))}


def test_the_sheet_has_a_row_for_frame_truth_and_confidence(pictures):
  with Image.open(pictures / "a.png") as sheet:
    pixels = np.asarray(sheet).astype(int)
  assert pixels.shape[1] == 6 * SIZE
  frame, truth, painted = pixels[: 3 * SIZE].reshape(3, SIZE, 6 * SIZE, 3)
  coloured = [(row != row[..., :1]).any(-1).mean() for row in (frame, truth, painted)]
  assert coloured[0] == 0 and min(coloured[1:]) > 0.05
  assert not np.array_equal(truth, painted)
