import dataclasses
import math
import pathlib

import numpy as np
import pydicom
import pytest
from absl import logging
from PIL import Image, ImageDraw
from scipy import ndimage

from lus_jax import palette
from lus_jax.errors import UserError
from lus_jax.media import readers, scan_area

H, W, N = 360, 480, 16


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


def speckle(shape, seed=0, n=N):
  """Tissue [n, h, w], 10 to 200: speckle that slides down by two pixels a frame."""
  rng = np.random.default_rng(seed)
  large = ndimage.gaussian_filter(rng.uniform(0, 1, (shape[0] + 2 * n, shape[1])), 1)
  large = 10 + 190 * (large - large.min()) / np.ptp(large)
  return np.stack([large[2 * i : 2 * i + shape[0]] for i in range(n)])


def linear(box, n=N):
  """A screen [n, H, W] with a scan that fills the box."""
  top, left, bottom, right = box
  frames = np.zeros((n, H, W))
  frames[:, top:bottom, left:right] = speckle((bottom - top, right - left), n=n)
  return frames


def sector(apex, radius, n=N):
  """A screen with a sector of 70 degrees below its apex (x, y), and the sector's box."""
  y, x = np.mgrid[:H, :W]
  x, y = x - apex[0], y - apex[1]
  r = np.hypot(x, y)
  inside = (r < radius) & (r > radius / 5) & (np.abs(np.arctan2(x, y)) < math.radians(35))
  rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
  box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
  return speckle((H, W), n=n) * inside, tuple(map(int, box))


def drawn(frames, draw):
  """The frames, on each of which `draw(ImageDraw, number)` drew."""
  out = []
  for i, frame in enumerate(frames):
    image = Image.fromarray(np.uint8(frame))
    draw(ImageDraw.Draw(image), i)
    out.append(np.asarray(image))
  return np.stack(out)


def labels(draw, i):
  """What machines write around a scan: a name, settings, a depth scale, a running clock, a bar."""
  draw.text((4, 3), "DOE, JOHN  1970-01-01  ID 123456", fill=255, font_size=13)
  for k, line in enumerate(("MI 0.4", "TIS 0.1", "Gain 50", "Depth 12", "Lung")):
    draw.text((W - 70, 40 + 22 * k), line, fill=220, font_size=14)
  for k in range(12):
    draw.line([8, 40 + 20 * k, 14, 40 + 20 * k], fill=200)
  draw.text((W - 80, 3), f"12:00:{i:02d}.{37 * i % 100:02d}", fill=255, font_size=13)
  draw.rectangle([10, H - 9, 10 + (W - 20) * i // N, H - 5], fill=180)


def trace(draw, i):
  """A running ECG trace below the scan, as wide as the screen."""
  x = np.arange(20, W - 20)
  y = H - 40 - 25 * np.exp(-(((x + 11 * i) % 90 - 40) ** 2) / 20)
  draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=230, width=2)


def check(area, box, how, *, slack=10):
  """The box holds all of the scan, and little more."""
  assert area.how == how
  assert all(found <= true for found, true in zip(area.box[:2], box[:2], strict=True)), area
  assert all(found >= true for found, true in zip(area.box[2:], box[2:], strict=True)), area
  np.testing.assert_allclose(area.box, box, atol=slack)


@pytest.mark.parametrize("more", [(), (labels,), (labels, trace)])
def test_a_sector_is_found_among_text_a_clock_a_bar_and_an_ecg(more):
  frames, box = sector((240, 20), 260)
  for draw in more:
    frames = drawn(frames, draw)
  check(scan_area.find_in(np.uint8(frames)), box, "motion")


@pytest.mark.parametrize("box", [(40, 150, 290, 210), (60, 30, 280, 390), (25, 90, 345, 200)])
def test_a_linear_scan_is_found_however_narrow_or_wide(box):
  check(scan_area.find_in(drawn(linear(box), labels)), box, "motion")


@pytest.mark.parametrize("box", [(50, 90, H, 200), (0, 0, 200, 200), (100, 300, 300, W)])
def test_a_scan_may_touch_the_rim(box):
  check(scan_area.find_in(np.uint8(linear(box))), box, "motion")


def test_noise_and_flicker_of_black_are_no_motion():
  box = (40, 100, 280, 330)
  rng = np.random.default_rng(1)
  frames = drawn(linear(box), labels) + rng.normal(0, 2, (N, H, W))
  frames += 4 + 4 * np.sin(2.1 * np.arange(N))[:, None, None]
  check(scan_area.find_in(np.uint8(np.clip(np.rint(frames), 0, 255))), box, "motion", slack=12)


def test_what_moves_past_for_a_moment_is_no_tissue():
  box = (40, 60, 200, 220)

  def cursor(draw, i):
    x, y = 240 + 12 * i, 330 - 10 * i
    draw.polygon([(x, y), (x, y + 18), (x + 12, y + 12)], fill=255)

  check(scan_area.find_in(drawn(linear(box), cursor)), box, "motion")


def test_tissue_that_a_shadow_parts_and_a_still_or_faint_part_of_it_are_kept():
  box = (40, 100, 300, 330)
  parted = linear(box)
  parted[:, 40:300, 200:215] = 0
  check(scan_area.find_in(np.uint8(parted)), box, "motion")
  # The near field stands still, and the depth is nearly black.
  uneven = linear(box)
  uneven[:, 40:110] = uneven[:1, 40:110]
  uneven[:, 220:300] = np.where(uneven[:, 220:300] > 150, 3, 0)
  check(scan_area.find_in(drawn(uneven, labels)), box, "motion")


@pytest.mark.parametrize("level", [16, 60])
def test_a_screen_may_be_of_another_grey_than_black(level):
  box = (40, 100, 280, 330)
  frames = np.where(linear(box) > 0, linear(box), level)
  check(scan_area.find_in(drawn(frames, labels)), box, "motion")


@pytest.mark.parametrize("n", [1, N])
def test_without_motion_the_largest_texture_counts(n):
  box = (40, 100, 280, 330)
  frame = drawn(linear(box)[:1], labels)
  check(scan_area.find_in(np.repeat(frame, n, axis=0)), box, "still")
  # A clock that runs beside a frozen scan does not make it the scan.
  frozen = drawn(np.repeat(linear(box)[:1], n, axis=0), labels)
  check(scan_area.find_in(frozen), box, "still")


def test_dark_tissue_of_one_grey_is_kept_where_the_screen_is_darker():
  box = (100, 0, 260, W)
  frame = np.uint8(np.where(linear(box)[:1] > 60, linear(box)[:1], 2))
  frame[:, :100], frame[:, 260:], frame[:, 140:260, :200] = 0, 0, 2
  check(scan_area.find_in(frame), box, "still")


@pytest.mark.parametrize(
  "frames",
  [
    speckle((H, W)),
    speckle((H, W))[:1],
    150 + speckle((H, W)) / 2,  # bright all over
    linear((4, 4, H - 4, W - 4)),
    linear((0, 0, 260, W)),  # black alone beside it
    np.zeros((N, H, W)),
    np.zeros((1, 1, 1)),
    speckle((2000, 3)),
    drawn(np.zeros((N, H, W)), labels),  # nothing convincing
    drawn(np.zeros((N, H, W)), trace),
  ],
)
def test_what_fills_the_picture_or_convinces_of_nothing_is_whole(frames):
  n, h, w = frames.shape
  assert scan_area.find_in(np.uint8(frames)) == scan_area.Area((0, 0, h, w), "whole")


def named(frames, at):
  """The frames with a name at (x, y), and where its pixels are, [h, w] bool."""
  name = drawn(np.zeros_like(frames[:1]), lambda draw, i: draw.text(at, "DOE", 255, font_size=13))
  return np.uint8(np.maximum(frames, name)), name[0] > 0


@pytest.mark.parametrize(
  ("box", "at", "how"),
  [
    ((60, 60, 300, 420), (200, 20), "motion"),
    ((60, 10, 300, 370), (420, 100), "motion"),
    ((50, 20, 348, 426), (200, 20), "whole"),
    ((10, 10, 350, 366), (420, 100), "whole"),
    ((25, 4, 358, 478), (4, 2), "whole"),
    ((4, 0, 356, 436), (446, 100), "whole"),
  ],
)
def test_of_what_is_nearly_the_whole_screen_names_are_no_scan(box, at, how):
  frames, name = named(linear(box), at)
  area = scan_area.find_in(frames)
  assert area.how == how and (area.box == (0, 0, H, W)) == (how == "whole")
  # On sides without anything all is kept.
  assert scan_area.around(area.scan, box) == area.scan
  assert name.sum() > 50 and not scan_area.crop(name, area.scan).any()


def still(box):
  """A screen [N, H, W] with a scan that does not move."""
  return np.repeat(linear(box, n=1), N, axis=0)


@pytest.mark.parametrize("smooth", [False, True])
def test_tissue_of_which_a_small_part_moves_is_kept_whole(smooth):
  box = (70, 40, 310, 340)
  frames = still(box)
  if smooth:
    frames[frames > 0] = 20
  frames[:, 150:220, 150:220] = speckle((70, 70), seed=1)
  check(scan_area.find_in(drawn(frames, labels)), box, "motion")


@pytest.mark.parametrize("n", [1, N])
def test_text_on_a_grey_panel_is_no_tissue(n):
  box = (40, 180, 320, 400)

  def panel(draw, i):
    draw.rectangle((5, 60, 130, 240), fill=70)
    for y in range(64, 230, 18):
      draw.text((9, y), "DOE JANE 1970-01", fill=230, font_size=13)

  check(scan_area.find_in(drawn(linear(box, n=n), panel)), box, "still" if n == 1 else "motion")


def test_a_line_around_the_screen_that_touches_a_scan_is_none():
  box = (70, 40, 200, 190)
  frames = drawn(linear(box), lambda draw, i: draw.rectangle((2, 70, W - 3, H - 3), outline=90))
  check(scan_area.find_in(frames), box, "motion")


@pytest.mark.parametrize(
  ("frozen", "live"),
  [((60, 20, 290, 190), (60, 220, 290, 390)), ((40, 140, 130, 290), (170, 30, 310, 380))],
)
def test_a_frozen_scan_beside_or_above_a_live_one_is_kept(frozen, live):
  frames = drawn(still(frozen) + linear(live), labels)
  check(scan_area.find_in(frames), scan_area.around(frozen, live), "motion")


def test_the_header_comes_first_and_a_clip_is_sampled_over_its_length(tmp_path):
  box = (40, 100, 280, 330)
  frames = np.zeros((400, H, W), np.uint8)
  frames[300:] = np.uint8(linear(box, n=100))
  np.save(tmp_path / "clip.npy", frames)
  clip = readers.probe(tmp_path / "clip.npy")
  check(scan_area.find(clip), box, "motion")
  named = dataclasses.replace(clip, region=(1, 2, 300, 400))
  assert scan_area.find(named) == scan_area.Area((1, 2, 300, 400), "header")


@pytest.mark.parametrize(
  ("region", "traces", "box"),
  [
    ((60, 20, 290, 190), (), None),  # one of two scans
    ((30, 10, 145, 95), (), None),  # of a picture of half the size
    ((60, 20, 290, 190), ((50, 210, 300, 400),), (60, 20, 290, 190)),
    ((40, 10, 310, 420), (), (40, 10, 310, 420)),  # larger
    ((65, 25, 285, 385), (), (65, 25, 285, 385)),  # within what is uncertain
  ],
)
def test_a_header_that_leaves_out_tissue_is_not_trusted(
  tmp_path, warnings_seen, region, traces, box
):
  np.save(tmp_path / "clip.npy", np.uint8(linear((60, 20, 290, 190)) + linear((60, 220, 290, 390))))
  clip = dataclasses.replace(readers.probe(tmp_path / "clip.npy"), region=region, traces=traces)
  area = scan_area.find(clip)
  if box is not None:
    assert area == scan_area.Area(box, "header") and not warnings_seen
  else:
    check(area, scan_area.around(region, (60, 20, 290, 390)), "motion")
    assert "clip.npy: the region that its header names" in warnings_seen[0]


@pytest.mark.parametrize(
  ("name", "box", "how"),
  [
    # A heart in the middle of its sector, which is nearly black beside it: x 38 to 297.
    ("examples_ybr_color", (17, 38, 203, 297), "motion"),
    # Two scans, and colour bars that touch them, below four lines of text.
    ("examples_jpeg2k", (106, 2, 339, 636), "still"),
    ("examples_palette", (66, 326, 162, 594), "still"),
  ],
)
def test_real_screens_of_several_makers(name, box, how):
  path = pathlib.Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}.dcm"
  clip = readers.probe(path)
  assert clip.region is None  # the headers' lie outside of the picture, or are lacking
  check(scan_area.find(clip), box, how, slack=12)


@pytest.mark.real_data
def test_real_clip_with_a_small_scan_on_a_large_screen(real_data):
  clip = readers.probe(real_data / "lus_cvat" / "task_195" / "data" / "clip_195.mp4")
  area = scan_area.find(clip)
  # The scan is x 562 to 715; its echoes end at a depth of 12 cm, y 637.
  check(area, (110, 562, 637, 716), "motion", slack=16)


@pytest.mark.real_data
@pytest.mark.parametrize(
  ("name", "box"), [("0086", (111, 0, 366, 534)), ("0009", None), ("0192", None)]
)
def test_real_stills(real_data, name, box):
  still = readers.probe(real_data / "usgra_seg" / "dataset" / "test" / "images" / f"{name}.png")
  area = scan_area.find(still)
  if box is None:
    assert area.how == "whole"
  else:
    check(area, box, "still")


@pytest.mark.parametrize("written", ["562 80 155 480", "562,80,155,480", " 562, 80 ,155 480\t"])
def test_a_box_is_written_as_x_y_width_height(written):
  box = (80, 562, 560, 717)
  assert scan_area.parse(written, 720, 1280) == box
  assert scan_area.text(box) == "562 80 155 480"


@pytest.mark.parametrize(
  ("written", "message"),
  [
    ("", "four whole numbers"),
    ("1 2 30", "four whole numbers"),
    ("1 2 30 40 50", "four whole numbers"),
    ("1,,2,30,40", "four whole numbers"),
    ("-1 2 30 40", "four whole numbers"),
    ("1.5 2 30 40", "four whole numbers"),
    ("\N{ARABIC-INDIC DIGIT ONE} 2 30 40", "four whole numbers"),
    ("9" * 5000 + " 2 30 40", "four whole numbers"),
    ("1 2 30 0", "8 are the least"),
    ("1 2 30 90", "y = 92, outside of its frame of 120 x 90"),
    ("91 2 30 40", "x = 121, y = 42, outside"),
  ],
)
def test_nonsense_is_refused(written, message):
  with pytest.raises(UserError, match=message) as error:
    scan_area.parse(written, 90, 120)
  assert len(str(error.value)) < 250 and str(error.value).endswith(".")


def test_the_outline_lies_inside_of_the_box():
  grey = np.full((40, 50), 7, np.uint8)
  image = scan_area.outline(grey, (5, 10, 30, 40))
  lined = (image != 7).any(axis=-1)
  expected = np.zeros((40, 50), bool)
  expected[5:30, 10:40] = True
  expected[6:29, 11:39] = False
  np.testing.assert_array_equal(lined, expected)
  np.testing.assert_array_equal(image[5, 10], palette.rgb(6))
  np.testing.assert_array_equal(scan_area.outline(image, (5, 10, 30, 40)), image)
  assert (grey == 7).all()
