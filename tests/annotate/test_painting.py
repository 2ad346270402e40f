"""The page in a real browser: what a hand does on it, and what lies on the disk afterwards."""

import contextlib
import csv
import io
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lus_jax import labels, palette, results
from lus_jax.annotate import store
from lus_jax.media import readers
from tests.annotate import serving, strokes
from tfds_builders.lus_folder import manifest

HEIGHT, WIDTH = 120, 160


@pytest.fixture
def directory(tmp_path):
  """A data set of a clip of 5 frames, with `serving.CLASSES`, that nobody painted."""
  videos = tmp_path / "set" / "videos"
  videos.mkdir(parents=True)
  ramp = np.linspace(20, 230, WIDTH)[None, :] + np.zeros((HEIGHT, 1))
  np.save(videos / "a.npy", np.stack([np.roll(ramp, 8 * i, 1) for i in range(5)]).astype(np.uint8))
  return tmp_path / "set"


class Page:
  """A page, and a hand that knows pixels of the frame."""

  def __init__(self, browser, port, query="?frame=2"):
    self.context = browser.new_context(viewport={"width": 900, "height": 560})
    self.page = self.context.new_page()
    self.problems = []
    self.page.on("pageerror", lambda error: self.problems.append(str(error)))
    self.page.on("console", lambda said: self._heard(said))
    self.page.goto(f"http://127.0.0.1:{port}/{serving.TOKEN}/{query}")
    self.wait("[data-state=ready]")

  def _heard(self, said):
    # Of drivers that draw without a GPU; and refusals that the page itself shows.
    if said.type in ("error", "warning") and not any(
      word in said.text for word in ("GPU stall", "Failed to load resource", "GL Driver")
    ):
      self.problems.append(said.text)

  def wait(self, state):
    self.page.wait_for_selector(f"body{state}", timeout=15_000)

  def until(self, script):
    """Waits until a script is true; Playwright's own way is forbidden by the page's policy."""
    for _ in range(300):
      if self.page.evaluate(script):
        return
      self.page.wait_for_timeout(50)
    raise AssertionError(f"never came: {script}")

  def saved(self):
    self.wait(
      "[data-saved=yes][data-revision$='/r0001'], body[data-saved=yes]:not([data-revision=''])"
    )

  def at(self, x, y):
    """The window's pixel at a place of the frame, and the place of the frame that it is exactly."""
    # At every frame a number in full, so that both sides reckon with the same.
    left, top, scale = map(float, self.page.locator("#stage").get_attribute("data-look").split())
    box = self.page.locator("#over").bounding_box()
    client = round(box["x"] + left + x * scale), round(box["y"] + top + y * scale)
    return client, ((client[0] - box["x"] - left) / scale, (client[1] - box["y"] - top) / scale)

  def drag(self, *places):
    """Draws through places of the frame; returns where exactly."""
    found = [self.at(*place) for place in places]
    self.page.mouse.move(*found[0][0])
    self.page.mouse.down()
    for client, _ in found[1:]:
      self.page.mouse.move(*client)
    self.page.mouse.up()
    return [place for _, place in found]

  def click(self, *places, **options):
    found = [self.at(*place) for place in places]
    for client, _ in found:
      self.page.mouse.click(*client, **options)
    return [place for _, place in found]

  def keys(self, *keys):
    for key in keys:
      self.page.keyboard.press(key)

  def tool(self, name, size, softness, confidence):
    """Chooses a tool as its sliders would."""
    self.page.locator(f"nav [data-action={name}]").click()
    for slider, value in (("size", 100 * np.log(size) / np.log(200)), ("softness", 100 * softness)):
      self.slide(slider, value)
    self.slide("confidence", confidence)
    shown = self.page.locator("#size-out").text_content()
    return {"radius": float(shown.split()[0]), "softness": softness}

  def slide(self, name, value):
    self.page.locator(f"#{name}").evaluate(
      "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
      float(value),
    )

  def pixels(self, *places):
    """The colours that are shown at places of the frame."""
    # The ring of the brush lies over it.
    self.page.mouse.move(5, 5)
    self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")
    shot = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(int)
    clients = [self.at(*place)[0] for place in places]
    return [shot[y, x] for x, y in clients]

  def close(self):
    self.context.close()
    assert not self.problems


@pytest.fixture
def open_page(browser, directory):
  """`open_page(annotator, query, **options)`: a page of a server of its own."""
  with contextlib.ExitStack() as stack:

    def make(annotator="anna", query="?frame=2", **options):
      opened = serving.open_store(directory, annotator)
      if (directory / "protocol.md").is_file():
        opened.protocol = directory / "protocol.md"
      port = stack.enter_context(serving.serving(opened, **options))
      page = Page(browser, port, query)
      page.port = port
      stack.callback(page.close)
      return page

    yield make


def masks_of(directory, frame=2, annotator="anna"):
  """What a data set's reader finds of a frame: uint8 by class."""
  for label in manifest.read_folder(directory).labels:
    if (label.frame, label.annotator) == (frame, annotator):
      return {
        name: np.rint(255 * readers.read_mask(path)).astype(np.uint8)
        for name, path in label.masks.items()
      }
  raise AssertionError("nothing was saved")


def same(found, expected):
  difference = np.abs(found.astype(int) - expected.astype(int))
  assert expected.any() and difference.max() <= 1, difference.max()
  # Nearly all are equal; the last bit of a root may be another.
  assert (difference > 0).mean() < 1e-4


EMPTY = np.zeros((HEIGHT, WIDTH), np.uint8)


def test_strokes_leave_what_their_definition_says(open_page, directory):
  page = open_page()
  brush = page.tool("brush", 11, 0.5, 60)
  first = page.drag((30, 40), (70, 44), (90, 70))
  second = page.drag((50, 70), (60, 20))
  expected = strokes.stroke(EMPTY, first, level=153, **brush)
  expected = strokes.stroke(expected, second, level=153, **brush)
  # Where two strokes of 60 % cross they leave 60 %.
  assert expected.max() == 153
  hard = page.tool("brush", 6, 0, 100)
  expected = strokes.stroke(expected, page.click((120, 80)), level=255, **hard)
  eraser = page.tool("eraser", 9, 0.4, 100)
  wrong = page.drag((20, 100), (140, 100))
  expected = strokes.stroke(expected, page.drag((70, 30), (72, 60)), level=0, erase=True, **eraser)
  lower = page.tool("lower", 4, 0.2, 30)
  expected = strokes.stroke(
    expected, page.drag((118, 78), (124, 80)), level=77, erase=True, **lower
  )
  assert wrong and len(np.unique(expected)) > 100
  page.keys("a", "b")  # the next class
  soft = page.tool("brush", 20, 1, 35)
  other = strokes.stroke(EMPTY, page.drag((100, 20), (100, 25)), level=89, **soft)
  page.keys("Control+s")
  page.saved()
  found = masks_of(directory)
  same(found["pleura"], expected)
  same(found["a line"], other)
  assert not found["band"].any()


def test_undo_redo_and_a_page_that_is_opened_again(open_page, directory):
  page = open_page()
  brush = page.tool("brush", 10, 0.5, 100)
  first = page.drag((30, 30), (60, 30))
  page.drag((30, 60), (60, 60))
  page.drag((30, 90), (60, 90))
  page.keys("Control+z", "Control+z", "Control+z", "Control+z")
  page.keys("Control+Shift+z", "Control+y", "Control+z")
  expected = strokes.stroke(EMPTY, first, level=255, **brush)
  page.saved()  # by itself
  page.wait("[data-saved=yes]")
  assert last_row(directory)["saved"] == "itself" and float(last_row(directory)["seconds"]) >= 1
  same(masks_of(directory)["pleura"], expected)
  page.page.reload()
  page.wait("[data-state=ready]")
  brush = page.tool("brush", 10, 0.5, 40)
  expected = strokes.stroke(expected, page.drag((45, 10), (45, 60)), level=102, **brush)
  page.keys("Control+s")
  page.wait("[data-revision$='r0002'], body[data-revision$='r0003']")
  same(masks_of(directory)["pleura"], expected)


def test_lines_outlines_and_what_lies_between_lines(open_page, directory):
  page = open_page()
  line = page.tool("line", 3, 0.6, 80)
  points = page.click((20, 20), (60, 30), (100, 18), (140, 26))
  page.keys("Enter")
  expected = strokes.stroke(EMPTY, points, level=204, **line)
  page.click((20, 100), (140, 100))
  page.keys("Backspace", "Escape")  # given up
  fill = page.tool("fill", 5, 0.6, 50)
  corners = page.click((30, 50), (70, 55), (60, 80), (35, 85))
  page.keys("Enter")
  expected = strokes.filled(expected, corners, level=128, border=fill["radius"] * 0.6)
  around = page.drag((90, 50), (110, 50), (112, 70), (88, 72))
  expected = strokes.filled(expected, around, level=128, border=fill["radius"] * 0.6)
  page.tool("band", 4, 0, 90)
  upper = page.click((20, 95), (80, 92), (140, 97))
  page.keys("Enter")
  under = page.click((140, 110), (80, 104), (22, 109))  # the other way
  page.keys("Enter")
  expected = strokes.filled(expected, [*upper, *under], level=230)
  page.keys("Control+s")
  page.saved()
  same(masks_of(directory)["pleura"], expected)


def test_a_painted_outline_is_filled_where_it_is_closed(open_page, directory):
  page = open_page()
  brush = page.tool("brush", 3, 0, 70)
  ring = page.drag((40, 40), (80, 40), (80, 80), (40, 80), (40, 40))
  expected = strokes.stroke(EMPTY, ring, level=179, **brush)
  page.tool("fill", 4, 0, 70)
  page.page.keyboard.down("Shift")
  page.click((120, 60))  # outside: it would fill the frame
  page.click((60, 60))
  page.page.keyboard.up("Shift")
  expected[40:80, 40:80] = 179
  page.keys("Control+s")
  page.saved()
  same(masks_of(directory)["pleura"], expected)


def test_the_pens_pressure_scales_the_confidence(open_page, directory):
  page = open_page()
  brush = page.tool("brush", 8, 0.5, 80)
  places = [page.at(40, 50), page.at(90, 60)]
  strengths = [0.5, 1.0]
  script = """([type, [x, y], pressure]) => document.getElementById("over").dispatchEvent(
    new PointerEvent(type, {clientX: x, clientY: y, pressure, pointerType: "pen", pointerId: 1,
                            bubbles: true, button: 0, isPrimary: true}))"""
  page.page.evaluate("document.getElementById('over').setPointerCapture = () => {}")
  page.page.evaluate(script, ["pointerdown", places[0][0], 0.5])
  page.page.evaluate(script, ["pointermove", places[1][0], 1.0])
  page.page.evaluate(script, ["pointerup", places[1][0], 0.0])
  page.keys("Control+s")
  page.saved()
  points = [place for _, place in places]
  expected = strokes.stroke(EMPTY, points[:1], level=204, strengths=[0.5], **brush)
  expected = np.maximum(
    expected, strokes.stroke(EMPTY, points, level=204, strengths=strengths, **brush)
  )
  same(masks_of(directory)["pleura"], expected)
  assert 100 < expected[50, 42] < 115 and expected[60, 89] > 195


def test_a_second_annotator_starts_from_nothing(open_page, directory):
  anna = open_page()
  brush = anna.tool("brush", 12, 0.5, 100)
  hers = strokes.stroke(EMPTY, anna.drag((40, 40), (60, 40)), level=255, **brush)
  anna.keys("Control+s")
  anna.saved()
  ben = open_page("ben")
  # The frame that anna painted is what is left, and it is empty.
  assert ben.page.locator("#work-count").text_content() == "1 left, 0 done"
  assert ben.page.locator("body").get_attribute("data-frame") == "2"
  (grey,) = ben.pixels((50, 40))
  assert grey[0] == grey[1] == grey[2]
  brush = ben.tool("brush", 12, 0.5, 50)
  his = strokes.stroke(EMPTY, ben.drag((90, 80), (100, 80)), level=128, **brush)
  ben.keys("Control+s")
  ben.saved()
  ben.until("document.getElementById('work-count').textContent == '0 left, 1 done'")
  same(masks_of(directory)["pleura"], hers)
  same(masks_of(directory, annotator="ben")["pleura"], his)


@pytest.mark.parametrize("draw", ["webgl2", "2d"])
def test_what_is_shown_is_the_frame_the_masks_and_the_label_of_training(open_page, directory, draw):
  page = open_page(query=f"?draw={draw}&frame=2")
  assert page.page.locator("body").get_attribute("data-view") == draw
  frame = readers.read(readers.probe(directory / "videos" / "a.npy"), [2])[0]
  page.tool("brush", 12, 0, 60)
  page.drag((40, 40), (60, 40))
  page.tool("brush", 12, 0, 30)
  page.drag((40, 90), (60, 90))
  page.keys("a")
  page.tool("brush", 12, 0, 100)
  page.drag((60, 40), (80, 40))
  weights = np.zeros((HEIGHT, WIDTH, 3))
  weights[40, 44, 0] = weights[40, 60, 0] = 153 / 255
  weights[90, 50, 0] = 77 / 255
  weights[40, 60, 1] = weights[40, 75, 1] = 1
  for threshold in (None, 0.6, 0.61, 0.3, 0):
    if threshold is not None:
      page.slide("threshold", 100 * threshold)
    shown = weights if threshold is None else np.asarray(labels.label(weights, threshold))
    expected = palette.overlay(frame, shown)
    places = (40, 44), (40, 60), (40, 75), (90, 50), (100, 120)
    colours = page.pixels(*((x + 0.5, y + 0.5) for y, x in places))
    for (y, x), found in zip(places, colours, strict=True):
      assert np.abs(found - expected[y, x]).max() <= 2, (threshold, y, x, found, expected[y, x])
  page.keys("t")
  page.slide("contrast", 50)  # twice the contrast about the middle
  page.slide("brightness", 20)
  (found,) = page.pixels((120.5, 100.5))
  grey = 255 * np.clip((frame[100, 120] / 255 - 0.5) * 2 + 0.5 + 0.1, 0, 1)
  assert np.abs(found - grey).max() <= 2 and 0 < grey < 255
  page.keys("Shift+Z")
  # Every threshold and every stored value, as training has them.
  stored = np.arange(256) / 255
  least = page.page.evaluate(
    "import('./paint.js').then((p) => [...Array(101).keys()].map((t) => p.leastValue(t / 100)))"
  )
  for percent, value in enumerate(least):
    of_training = np.asarray(labels.label(stored[:, None], percent / 100))[:, 0]
    np.testing.assert_array_equal(np.arange(256) >= value, of_training > 0, str(percent))


def test_zoomed_and_moved_the_hand_paints_where_it_is(open_page, directory):
  page = open_page()

  def look():
    page.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")
    return list(map(float, page.page.locator("#stage").get_attribute("data-look").split()))

  before = look()
  (x, y), place = page.at(60, 50)
  page.page.mouse.move(x, y)
  page.page.mouse.wheel(0, -800)
  assert look()[2] > 2 * before[2]
  # What lies below the pointer stays there.
  np.testing.assert_allclose(page.at(*place)[1], place, atol=1e-6)
  page.page.mouse.move(x, y)
  for button, key in (("left", "Space"), ("right", None)):
    before = look()
    if key:
      page.page.keyboard.down(key)
    page.page.mouse.down(button=button)
    page.page.mouse.move(x + 30, y - 20, steps=3)
    page.page.mouse.up(button=button)
    if key:
      page.page.keyboard.up(key)
    np.testing.assert_allclose(np.subtract(look(), before), (30, -20, 0), atol=1e-6)
    page.page.mouse.move(x, y)
  brush = page.tool("brush", 6, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((60, 50), (70, 55)), level=255, **brush)
  page.keys("Control+s")
  page.saved()
  same(masks_of(directory)["pleura"], expected)


def test_two_windows_of_one_frame_lose_nothing(open_page, browser, directory):
  one = open_page()
  two = Page(browser, one.port)
  brush = one.tool("brush", 12, 0.5, 100)
  first = strokes.stroke(EMPTY, one.drag((40, 40), (60, 40)), level=255, **brush)
  one.keys("Control+s")
  one.saved()
  two.tool("brush", 12, 0.5, 100)
  second = strokes.stroke(EMPTY, two.drag((40, 80), (60, 80)), level=255, **brush)
  two.wait("[data-saved=conflict]")
  two.page.locator("#conflict button[value=aside]").click()
  two.wait("[data-saved=yes]")
  same(masks_of(directory)["pleura"], first)
  kept = sorted((directory / "masks" / "a.npy" / "000002" / "anna").iterdir())
  same(np.asarray(Image.open(kept[-1] / "pleura.png")), second)
  # Theirs is shown now, and painted on.
  third = strokes.stroke(first, two.drag((100, 40), (110, 40)), level=255, **brush)
  two.keys("Control+s")
  two.until(f"document.body.dataset.revision.endsWith('r000{len(kept) + 1}')")
  same(masks_of(directory)["pleura"], third)
  # The first window is told too, and may put its own in place.
  fourth = strokes.stroke(first, one.drag((100, 90), (110, 90)), level=255, **brush)
  one.wait("[data-saved=conflict]")
  # Whoever closes it now is asked.
  leaving = "const event = new Event('beforeunload', { cancelable: true });"
  assert not one.page.evaluate(f"() => {{ {leaving} return dispatchEvent(event); }}")
  assert two.page.evaluate(f"() => {{ {leaving} return dispatchEvent(event); }}")
  one.page.locator("#conflict button[value=mine]").click()
  one.wait("[data-saved=yes]")
  same(masks_of(directory)["pleura"], fourth)
  two.close()


def test_strokes_wait_for_a_server_that_is_away(open_page, directory):
  page = open_page()
  page.page.route("**/api/save*", lambda route: route.abort())
  brush = page.tool("brush", 12, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((40, 40), (60, 40)), level=255, **brush)
  page.wait("[data-saved=failed]")
  page.keys("ArrowRight")
  page.wait("[data-state=ready]")
  page.page.unroute("**/api/save*")
  page.wait("[data-saved=yes]")
  same(masks_of(directory)["pleura"], expected)


def test_a_page_that_is_open_saves_after_the_next_start(browser, directory):
  with serving.serving(serving.open_store(directory)) as port:
    page = Page(browser, port)
    page.wait("[data-read]")
  brush = page.tool("brush", 12, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((40, 40), (60, 40)), level=255, **brush)
  page.wait("[data-saved=failed]")
  with serving.serving(serving.open_store(directory), port):
    page.wait("[data-saved=yes]")
    same(masks_of(directory)["pleura"], expected)
    page.close()


def test_a_label_is_copied_to_the_next_frame_and_leaving_saves(open_page, directory):
  serving.open_store(directory, "ben").save("a.npy", 4, np.zeros((3, HEIGHT, WIDTH), np.uint8), "")
  page = open_page(query="?video=a.npy&frame=1")
  brush = page.tool("brush", 12, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((40, 40), (60, 40)), level=255, **brush)
  page.keys("d")
  page.wait("[data-frame='4'][data-state=ready]")
  page.wait("[data-saved=no]")
  page.wait("[data-saved=yes]")
  same(masks_of(directory, frame=1)["pleura"], expected)
  same(masks_of(directory, frame=4)["pleura"], expected)
  page.keys("Control+z", "Control+s")
  page.wait("[data-saved=yes]")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  assert not masks_of(directory, frame=4)["pleura"].any()


def test_locked_and_hidden_classes_are_not_painted(open_page, directory):
  page = open_page()
  page.tool("brush", 12, 0.5, 100)
  page.keys("k")
  page.drag((40, 40), (60, 40))
  assert "locked" in page.page.locator("#toast").text_content()
  page.keys("k", "v")
  page.drag((40, 40), (60, 40))
  assert "hidden" in page.page.locator("#toast").text_content()
  page.keys("v")
  page.drag((40, 90), (60, 90))
  page.keys("Control+s")
  page.saved()
  assert not masks_of(directory)["pleura"][:60].any()


RATE, PLAYED = 30, 16


@pytest.fixture
def film(directory):
  """Adds a clip of `PLAYED` frames, `RATE` a second, each of a grey of its own."""
  av = pytest.importorskip("av")
  with av.open(directory / "videos" / "film.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=RATE, options={"qp": "0"})
    stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
    for i in range(PLAYED):
      grey = np.full((HEIGHT, WIDTH), 10 + 15 * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")))
    container.mux(stream.encode())
  greys = readers.read(readers.probe(directory / "videos" / "film.mp4"))[:, 5, 5].tolist()
  assert len(set(greys)) == PLAYED
  return greys


# Notes at each picture: the time, the number that is said, and the grey that is drawn.
WATCH = """() => {
  const canvas = document.getElementById("canvas"), copy = document.createElement("canvas");
  const context = copy.getContext("2d", { willReadFrequently: true });
  window.seen = [];
  addEventListener("keydown", () => { window.pressed ??= performance.now(); }, true);
  const note = (now) => {
    context.drawImage(canvas, canvas.width / 2, canvas.height / 2, 1, 1, 0, 0, 1, 1);
    const pixel = context.getImageData(0, 0, 1, 1).data;
    window.seen.push([now, Number(document.body.dataset.frame), pixel[0]]);
    requestAnimationFrame(note);
  };
  requestAnimationFrame(note);
}"""


def test_play_shows_the_frames_at_the_clips_rate_and_ends(open_page, directory, film):
  page = open_page(query="?draw=2d&video=film.mp4&frame=0")
  assert page.page.locator("#rate").text_content() == f"× {RATE}/s"
  page.until("document.body.dataset.read")
  page.page.evaluate(WATCH)
  page.keys("p")
  page.wait(f"[data-frame='{PLAYED - 1}'][data-state=ready]:not([data-playing])")
  page.until(f"window.seen.at(-1)[2] == {film[-1]}")
  seen = page.page.evaluate("window.seen")
  # It began after the key was pressed, and before a frame's time before the first was left.
  pressed = page.page.evaluate("window.pressed")
  left = next(now for now, number, _ in seen if number > 0) - 1000 / RATE
  for (earlier, before, _), (now, number, grey) in itertools.pairwise(seen):
    # As far as the clock said at this picture's tick or the one before, and never back.
    most, least = (now - pressed) / 1000 * RATE, (earlier - left) / 1000 * RATE - 1
    assert max(before, min(least, PLAYED - 1)) <= number <= max(0, most), (now - pressed, number)
    # What is drawn is that frame, or the one of the picture before.
    assert film.index(grey) in (before, number)
  assert {number for _, number, _ in seen} >= {0, PLAYED - 1}
  # At the end it begins again; slower it takes longer; a key or a click stops it.
  page.keys("Shift+S", "Shift+S", "p")
  page.until("document.body.dataset.frame == '2'")
  assert page.page.locator("#play").get_attribute("aria-label") == "Stop"
  page.keys("p")
  page.wait("[data-state=ready]:not([data-playing])")
  assert page.page.locator("body").get_attribute("data-frame") in ("2", "3")


def test_a_click_while_it_plays_stops_it_and_paints_nothing(open_page, directory, film):
  page = open_page(query="?video=film.mp4&frame=0")
  page.until("document.body.dataset.read")
  page.tool("brush", 12, 0.5, 100)
  page.drag((40, 30), (60, 30))
  page.keys("Shift+S", "Shift+S", "p")
  page.until("document.body.dataset.frame == '3'")
  page.drag((40, 60), (60, 60))
  page.wait("[data-state=ready]:not([data-playing])")
  assert "Stopped" in page.page.locator("#toast").text_content()
  frame = int(page.page.locator("body").get_attribute("data-frame"))
  assert frame >= 3
  brush = page.tool("brush", 12, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((40, 90), (60, 90)), level=255, **brush)
  page.keys("Control+s")
  page.saved()
  # What was painted before it played is saved, and what was not, not.
  assert {label.frame for label in manifest.read_folder(directory).labels} == {0, frame}
  same(masks_of(directory, frame)["pleura"], expected)


def test_what_cannot_be_opened_is_told_and_can_be_tried_again(open_page, directory):
  np.save(directory / "videos" / "b.npy", np.zeros((2, HEIGHT, WIDTH), np.uint8))
  serving.open_store(directory)
  (directory / "videos" / "b.npy").write_bytes(b"no clip")
  page = open_page()
  page.keys("PageDown")
  page.wait("[data-state=failed]")
  assert "b.npy" in page.page.locator("#failure-text").text_content()
  page.keys("PageUp")  # to one that can
  page.wait("[data-state=ready]")
  assert not page.page.locator("#failure").is_visible()
  page.page.route("**/api/masks*", lambda route: route.abort())
  page.keys("ArrowRight")
  page.wait("[data-state=failed]")
  assert "does not answer" in page.page.locator("#failure-text").text_content()
  page.page.unroute("**/api/masks*")
  page.page.locator("#again").click()
  page.wait("[data-state=ready]")
  assert page.page.locator("#video").evaluate("(e) => e.value") == "a.npy"


def test_keys_do_nothing_to_the_clip_that_was_left_for_one_that_does_not_open(open_page, directory):
  np.save(directory / "videos" / "b.npy", np.zeros((2, HEIGHT, WIDTH), np.uint8))
  serving.open_store(directory)
  (directory / "videos" / "b.npy").write_bytes(b"no clip")
  page = open_page()
  brush = page.tool("brush", 12, 0.5, 100)
  expected = strokes.stroke(EMPTY, page.drag((40, 40), (60, 40)), level=255, **brush)
  page.keys("PageDown")
  page.wait("[data-state=failed]")
  page.wait("[data-saved=yes]")
  before = serving.contents(directory)
  # Nor is what stands on the page that of the clip before.
  assert not page.page.locator("#canvas").is_visible()
  assert page.page.locator("#classes li .most").all_text_contents() == ["", "", ""]
  page.drag((40, 80), (60, 80))
  for key in ("Control+z", "Control+s", "d", "j", "Shift+H", "Shift+Enter", "Enter", "ArrowRight"):
    page.page.evaluate("document.getElementById('toast').textContent = ''")
    page.keys(key)
    if key != "ArrowRight":
      assert "Nothing is open" in page.page.locator("#toast").text_content(), key
  page.page.wait_for_timeout(100)
  assert serving.contents(directory) == before
  # The clip itself may be skipped, and what is said of it is noted of it.
  assert page.page.locator("#pass").text_content() == "Skip this clip"
  page.page.locator("#pass").click()
  assert "clip, which does not open" in page.page.locator("#note-title").text_content()
  page.page.locator("#comment").fill("damaged")
  page.page.locator("#note button[value=ok]").click()
  page.until("document.querySelectorAll('#work .skip').length == 1")
  with (directory / "notes.csv").open() as file:
    (row,) = csv.DictReader(file)
  assert (row["video"], row["frame"], row["comment"]) == ("b.npy", "0", "damaged")
  page.keys("PageUp")
  page.wait("[data-state=ready]")
  np.save(directory / "videos" / "b.npy", np.zeros((2, HEIGHT, WIDTH), np.uint8))
  same(masks_of(directory)["pleura"], expected)


def test_a_clip_that_is_chosen_while_another_plays_is_opened(open_page, directory, film):
  page = open_page(query="?video=film.mp4&frame=0")
  page.until("document.body.dataset.read")
  page.keys("Shift+S", "Shift+S", "p")
  page.until("document.body.dataset.frame == '2'")
  page.keys("PageUp")
  page.wait("[data-state=ready]:not([data-playing])")
  assert page.page.locator("#frame-number").text_content() == "frame 0 of 0–4"


def test_a_note_is_of_a_frame_that_is_open(open_page, directory):
  page = open_page()
  page.page.route("**/api/masks*", lambda route: None)  # it never comes
  page.keys("ArrowRight")
  page.wait("[data-frame='3'][data-state=loading]")
  page.keys("y")
  assert "being opened" in page.page.locator("#toast").text_content()
  assert not page.page.locator("#note").is_visible()


def test_the_scan_fills_the_stage_and_the_whole_frame_is_a_key_away(open_page, directory):
  serving.open_store(directory)
  (directory / "manifest.csv").write_text("video,patient,scan_area\na.npy,p,40 20 30 90\n")
  page = open_page()
  stage = page.page.locator("#stage").bounding_box()

  def shown(*keys):
    page.keys(*keys)
    page.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")
    look = page.page.locator("#stage").get_attribute("data-look")
    x, y, scale = map(float, look.split())
    return x, y, scale, (stage["width"] / 2 - x) / scale, (stage["height"] / 2 - y) / scale

  *_, scale, x, y = shown()
  assert (round(x), round(y)) == (55, 65) and scale == pytest.approx(
    0.97 * stage["height"] / 90, 1e-3
  )
  *_, scale, x, y = shown("z")
  assert (round(x), round(y)) == (80, 60) and scale == pytest.approx(
    0.97 * min(stage["height"] / HEIGHT, stage["width"] / WIDTH), 1e-3
  )
  assert shown("z")[3:] == pytest.approx((55, 65), abs=0.6)


def test_keys_are_the_pages_after_the_mouse_used_a_control(open_page, directory):
  np.save(directory / "videos" / "b.npy", np.zeros((2, HEIGHT, WIDTH), np.uint8))
  page = open_page(query="?video=a.npy&frame=2")
  assert page.page.locator("#work-count").text_content() == "2 clips not begun"
  box = page.page.locator("#confidence").bounding_box()
  page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
  percent = page.page.locator("#confidence-out").text_content()
  page.keys("ArrowRight")  # the frame's, not the slider's
  page.wait("[data-frame='3'][data-state=ready]")
  assert page.page.locator("#confidence-out").text_content() == percent != "100 %"
  page.keys("5", "Shift+Period", "Shift+Period", "Comma")
  assert page.page.locator("#confidence-out").text_content() == "59 %"
  page.keys("Tab", "Shift+ArrowUp")
  assert page.page.locator("#threshold-out").text_content() == "65 %"
  page.keys("e")
  assert not page.page.locator("#confidence").is_visible()  # the eraser has none
  page.keys("n")
  page.wait("[data-frame='0'][data-state=ready]")
  page.until("document.getElementById('video').value == 'b.npy'")


def test_every_button_has_a_key_and_the_help_lists_it(open_page):
  page = open_page()
  page.keys("?")
  assert page.page.locator("#help").is_visible()
  listed = page.page.evaluate(
    "[...document.querySelectorAll('#shortcuts [data-name]')].map((e) => e.dataset.name)"
  )
  buttons = page.page.evaluate(
    "[...document.querySelectorAll('[data-action]')].map((e) => e.dataset.action)"
  )
  reviewing = {"mean", "median", "least", "most"}
  assert set(buttons) - reviewing <= set(listed) and len(listed) == len(set(listed)) > 40
  keys = page.page.evaluate(
    "[...document.querySelectorAll('#shortcuts kbd')].map((e) => e.textContent)"
  )
  assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
  page.keys("Escape")
  for key, name in zip(
    "erlfwhb", ("eraser", "lower", "line", "fill", "band", "pan", "brush"), strict=True
  ):
    page.keys(key)
    assert page.page.locator(f"[data-action={name}]").get_attribute("aria-pressed") == "true"
  page.keys("7")
  assert page.page.locator("#confidence-out").text_content() == "70 %"
  # What each changes, of all that is shown.
  shown = """() => [
    ...["confidence-out", "size-out", "softness-out", "threshold-out", "contrast-out",
        "opacity-out", "brightness-out", "frame-number", "badge", "classes"].map((id) =>
      document.getElementById(id).textContent + document.getElementById(id).hidden),
    ...[...document.querySelectorAll("#classes button, #cut, #pressure, #speed")].map((e) =>
      `${e.getAttribute("aria-pressed")} ${e.checked} ${e.value}`),
    document.getElementById("stage").dataset.look,
  ]"""

  def state():
    page.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 5)))")
    return page.page.evaluate(shown)

  for there, back in (
    *((".", ","), ("Shift+.", "Shift+,"), ("[", "]"), ("Shift+[", "Shift+]"), ("a", "q")),
    *(("Shift+P", "Shift+P"), ("v", "v"), ("k", "k"), ("o", "o"), ("m", "m"), ("t", "t")),
    *(("Shift+ArrowUp", "Shift+ArrowDown"), ("+", "-"), ("=", "z"), ("c", "Shift+C")),
    *(("i", "Shift+I"), ("u", "Shift+U"), ("Shift+S", "Shift+F"), ("ArrowRight", "ArrowLeft")),
    *(("End", "Home"), ("Shift+ArrowRight", "Shift+ArrowLeft"), ("c", "Shift+Z")),
  ):
    before = state()
    page.keys(there)
    between = state()
    page.keys(back)
    changed = sum(a != b for a, b in zip(before, between, strict=True))
    # One thing, but for the view that a change of the frame or of what is cut brings along.
    assert 1 <= changed <= 4 and between != state(), (there, back)
  # None is dead: what a key is listed for, it does or says why not.
  for key in ("j", "Shift+J", "g", "PageUp", "PageDown", "Shift+1"):
    page.page.evaluate("document.getElementById('toast').hidden = true")
    page.keys(key)
    assert page.page.locator("#toast").is_visible(), key


def test_skip_and_flag_with_a_comment(open_page, directory):
  page = open_page()
  page.keys("y")
  page.page.locator("#comment").fill("is this a rib?")
  page.page.locator("#note button[value=ok]").click()
  page.until("document.getElementById('frame-facts').textContent.includes('rib')")
  page.keys("ArrowRight")
  page.wait("[data-frame='3'][data-state=ready]")
  page.keys("s")
  page.page.locator("#note button[value=ok]").click()
  page.until("document.querySelectorAll('#work .skip').length == 1")
  with (directory / "notes.csv").open() as file:
    rows = {(row["frame"], row["note"], row["comment"]) for row in csv.DictReader(file)}
  assert rows == {("2", "flag", "is this a rib?"), ("3", "skip", "")}
  assert page.page.locator("#work-count").text_content() == "1 left, 0 done, 1 flagged"


def test_a_review_shows_everybody_and_writes_a_consensus(open_page, directory):
  painted = {}
  for name, level in (("anna", 255), ("ben", 128)):
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[0, 20:40, 20:60] = level
    masks[1, 60:80, 20:60] = level * (name == "ben")
    serving.open_store(directory, name).save("a.npy", 2, masks, "")
    painted[name] = masks
  page = open_page("consensus", review=True)
  shown = page.page.evaluate(
    "[...document.querySelectorAll('#panels figure')].map((e) => e.dataset.name)"
  )
  assert shown == ["anna", "ben", "Disagreement"]
  page.keys("Shift+Digit1")
  page.keys("Control+s")
  page.saved()
  found = masks_of(directory, annotator="consensus")
  mean = np.floor((painted["anna"].astype(int) + painted["ben"]) / 2 + 0.5)
  for k, name in enumerate(serving.CLASSES):
    np.testing.assert_array_equal(found[name], mean[k])
  page.page.locator("#panels figure[data-name=ben] button").click()  # of the chosen class
  page.keys("Control+s")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  found = masks_of(directory, annotator="consensus")
  np.testing.assert_array_equal(found["pleura"], painted["ben"][0])
  page.keys("Alt+Digit1", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0003')")
  found_again = masks_of(directory, annotator="consensus")
  np.testing.assert_array_equal(found_again["pleura"], painted["anna"][0])
  np.testing.assert_array_equal(found["a line"], mean[1])
  # Where they differ, the heat: 127 of 255 in the one class, 128 in the other.
  (plain,) = page.pixels((100, 100))
  page.keys("x", "m")
  same_as, (red, green, blue) = page.pixels((100, 100), (30, 70))
  assert (same_as == plain).all()
  assert red > green > blue
  # It is not that of the next frame.
  page.keys("ArrowRight")
  page.wait("[data-frame='3'][data-state=ready]")
  (red, green, blue) = page.pixels((30, 70))[0]
  assert red == green == blue
  assert "Nobody" in page.page.locator("#panels").text_content()


def test_the_stage_keeps_its_height_beside_the_panels_of_a_tall_clip(browser, tmp_path):
  (tmp_path / "videos").mkdir()
  np.save(tmp_path / "videos" / "a.npy", np.full((2, 528, 153), 90, np.uint8))
  masks = np.full((3, 528, 153), 99, np.uint8)
  for name in ("anna", "ben"):
    serving.open_store(tmp_path, name).save("a.npy", 0, masks, "")
  with serving.serving(serving.open_store(tmp_path, "consensus"), review=True) as port:
    page = Page(browser, port, "?frame=0")
    for size in ((1280, 800), (900, 560)):
      page.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
      stage, panels, panel = (
        page.page.locator(name).first.bounding_box()
        for name in ("#stage", "#panels", "#panels figure")
      )
      assert stage["height"] > 0.45 * size[1]
      assert panel["y"] + panel["height"] <= panels["y"] + panels["height"]  # whole, captions too
    page.close()


class Offered:
  """Stands in for a model: it knows the first class and the last."""

  names = ("threshold_1", "threshold_0.6")

  def __call__(self, video, frame, name):
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[[0, 2], 20:40, 30:50] = 99
    return {"known": [True, False, True]}, masks

  def describe(self, name):
    return f"runs/x: {name}"


def test_a_models_masks_fill_what_is_empty_and_are_known_for_it(open_page, directory):
  page = open_page(prelabels=Offered())
  brush = page.tool("brush", 8, 0, 100)
  expected = strokes.stroke(EMPTY, page.click((90, 90)), level=255, **brush)
  page.keys("j")
  page.until("document.getElementById('toast').textContent.includes('filled band')")
  page.keys("Control+s")
  page.saved()
  found = masks_of(directory)
  # What a hand has painted stays as it is.
  same(found["pleura"], expected)
  shown = page.page.locator("#classes li .most").all_text_contents()
  assert shown == ["100 %", "", "offered"]
  assert (found["band"][20:40, 30:50] == 99).all() and (found["band"] > 0).sum() == 400
  with (directory / "provenance.csv").open() as file:
    row = list(csv.DictReader(file))[-1]
  assert (row["prelabel"], row["prelabelled"]) == ("runs/x: threshold_0.6", "band")
  assert row["touched"] == "pleura"
  page.keys("a", "a")
  page.click((90, 90))
  page.keys("Control+s")
  page.wait("[data-saved=yes]")
  assert last_row(directory)["touched"] == "pleura;band"


def test_an_offer_that_is_right_is_said_to_be_and_counts_as_seen(open_page, directory):
  page = open_page(prelabels=Offered())
  page.keys("Shift+Enter")
  assert "Nothing here is waiting" in page.page.locator("#toast").text_content()
  page.keys("j")
  page.until("document.getElementById('toast').textContent.includes('filled pleura, band')")
  page.keys("Control+s")
  page.saved()
  assert last_row(directory)["touched"] == ""
  assert page.page.locator("#classes li .most").all_text_contents() == ["offered", "", "offered"]
  count, mark = page.page.locator("#work-count"), page.page.locator("#work .here .mark")
  assert (count.text_content(), mark.text_content()) == ("1 left (1 offered), 0 done", "◌")
  page.page.locator("[data-action=accept]").click()
  assert "pleura, band: seen and right" in page.page.locator("#toast").text_content()
  page.keys("Control+s")
  page.wait("[data-saved=yes]")
  row = last_row(directory)
  assert (row["prelabelled"], row["touched"]) == ("pleura;band", "pleura;band")
  assert (count.text_content(), mark.text_content()) == ("0 left, 1 done", "✓")
  # The masks are as the model offered them.
  assert (masks_of(directory)["band"][20:40, 30:50] == 99).all()
  assert page.page.locator("#classes li .most").all_text_contents() == ["39 %", "", "39 %"]


def test_what_is_undone_first_is_that_an_offer_is_right(open_page, directory):
  page = open_page(prelabels=Offered())
  page.keys("j")
  page.until("document.getElementById('toast').textContent.includes('filled pleura, band')")
  shown = page.page.locator("#classes li .most").all_text_contents
  page.keys("Shift+Enter")
  assert shown() == ["39 %", "", "39 %"]
  page.keys("Control+z")
  assert shown() == ["offered", "", "offered"]
  page.keys("Control+y")
  assert shown() == ["39 %", "", "39 %"]
  page.keys("Control+z", "Control+s")
  page.saved()
  row = last_row(directory)
  assert (row["prelabelled"], row["touched"]) == ("pleura;band", "")
  assert masks_of(directory)["band"].any()
  # The offer itself is undone: what nobody said shows nothing is no label.
  page.keys("Control+z")
  page.wait("[data-saved=yes][data-revision='']")
  assert page.page.locator("#status-text").text_content() == "Nothing painted yet"
  assert (directory / "labels.csv").read_text().count("\n") == 1  # its header


def test_what_nobody_touched_is_the_models_in_a_consensus_too(open_page, directory):
  # Ben corrected the first class, anna nothing; both have the last as it was offered.
  _, offer = Offered()("a.npy", 2, "threshold_0.6")
  for name, touched in (("anna", ()), ("ben", ("pleura",))):
    work = store.Work(1, touched, "runs/x: threshold_0.6", ("pleura", "band"))
    masks = offer.copy()
    masks[0] += 9 * len(touched)
    serving.open_store(directory, name).save("a.npy", 2, masks, "", work)
  page = open_page("consensus", review=True)
  page.keys("Shift+Digit1", "Control+s")
  page.saved()
  row = last_row(directory)
  assert row["prelabel"] == "runs/x: threshold_0.6"
  assert (row["prelabelled"], row["touched"], row["review"]) == ("band", "pleura", "yes")
  # Of one of them alone; and somebody may say that it is right.
  page.keys("Alt+Digit1", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  row = last_row(directory)
  assert (row["prelabelled"], row["touched"]) == ("pleura;band", "")
  (label,) = (one for one in manifest.read_folder(directory).labels if one.is_consensus)
  assert label.is_untouched
  page.keys("Shift+Enter", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0003')")
  assert last_row(directory)["touched"] == "pleura;band"


def test_half_a_consensus_stands_for_nobody(open_page, directory):
  for name in ("anna", "ben"):
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[:, 20:40, 20:60] = 200
    serving.open_store(directory, name).save("a.npy", 2, masks, "")
  page = open_page("consensus", review=True)
  page.keys("Alt+Digit1", "ArrowRight")  # of one class; leaving keeps it
  page.wait("[data-frame='3'][data-state=ready]")
  page.wait("[data-saved=yes]")
  assert last_row(directory)["review"] == "begun"
  assert {label.annotator for label in manifest.read_folder(directory).labels} == {"anna", "ben"}
  # It is still to do, and what was painted of it is there.
  assert page.page.locator("#work-count").text_content() == "1 left, 0 done"
  page.page.reload()
  page.wait("[data-frame='2'][data-state=ready]")
  assert page.page.locator("#classes li .most").all_text_contents() == ["78 %", "", ""]
  assert page.page.locator("#status-text").text_content() == "No consensus until Ctrl+S"
  page.keys("Control+s")
  page.until("document.getElementById('status-text').textContent == 'Saved'")
  assert last_row(directory)["review"] == "yes" and masks_of(directory, annotator="consensus")
  page.keys("Shift+Digit1")
  page.wait("[data-saved=no]")
  page.wait("[data-saved=yes]")  # by itself: it stays a consensus
  assert (last_row(directory)["review"], last_row(directory)["saved"]) == ("yes", "itself")
  assert manifest.read_folder(directory).labels[-1].is_consensus


def last_row(directory):
  with (directory / "provenance.csv").open() as file:
    return list(csv.DictReader(file))[-1]


def test_an_offer_that_is_copied_stays_one_and_one_taken_back_is_none(open_page, directory):
  page = open_page(prelabels=Offered())
  page.keys("j")
  page.until("document.getElementById('toast').textContent.includes('filled pleura, band')")
  page.keys("Control+s")
  page.saved()
  page.page.reload()  # whence it came is known of what was saved
  page.wait("[data-state=ready]")
  page.tool("brush", 8, 0, 100)
  page.click((90, 90))
  page.keys("d")
  page.wait("[data-frame='3'][data-state=ready]")
  page.keys("Control+s")
  page.saved()
  row = last_row(directory)
  assert (row["frame"], row["prelabel"]) == ("3", "runs/x: threshold_0.6")
  # A hand touched the one, and nobody the other, there or here.
  assert (row["prelabelled"], row["touched"]) == ("band", "pleura")
  page.keys("Control+z", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  row = last_row(directory)
  assert (row["prelabelled"], row["saved"]) == ("", "hand")


def test_an_earlier_revision_comes_back(open_page, directory):
  page = open_page()
  brush = page.tool("brush", 12, 0.5, 100)
  first = strokes.stroke(EMPTY, page.drag((40, 40), (60, 40)), level=255, **brush)
  page.keys("Control+s")
  page.saved()
  page.drag((40, 80), (60, 80))
  page.keys("Control+s")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  page.keys("Shift+H")
  page.page.wait_for_selector("#history[open]")
  listed = page.page.locator("#revisions li")
  assert listed.count() == 2 and "saved by hand" in listed.nth(1).text_content()
  listed.nth(1).locator("button").click()
  page.wait("[data-saved=no]")
  page.keys("Control+s")
  page.until("document.body.dataset.revision.endsWith('r0003')")
  same(masks_of(directory)["pleura"], first)
  page.keys("Control+s")  # nothing has changed
  assert "saved already" in page.page.locator("#toast").text_content()


def test_an_offer_that_the_history_brings_back_stays_one(open_page, directory):
  page = open_page(prelabels=Offered())
  page.keys("j")
  page.until("document.getElementById('toast').textContent.includes('filled pleura, band')")
  page.tool("brush", 8, 0, 100)
  page.click((90, 90))
  page.keys("Control+s")
  page.saved()
  page.keys("Control+z", "Control+z", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0002')")
  row = last_row(directory)
  assert (row["prelabelled"], row["touched"]) == ("", "pleura")
  page.page.reload()  # whence it came is known of what was saved alone
  page.wait("[data-state=ready]")
  page.keys("Shift+H")
  page.page.wait_for_selector("#history[open]")
  page.page.locator("#revisions li button").nth(1).click()
  page.wait("[data-saved=no]")
  assert page.page.locator("#classes li .most").all_text_contents() == ["100 %", "", "offered"]
  page.keys("Control+s")
  page.until("document.body.dataset.revision.endsWith('r0003')")
  row = last_row(directory)
  assert row["prelabel"] == "runs/x: threshold_0.6"
  assert (row["prelabelled"], row["touched"]) == ("pleura;band", "pleura")
  page.keys("Control+z", "Control+s")
  page.until("document.body.dataset.revision.endsWith('r0004')")
  assert last_row(directory)["prelabelled"] == ""


def test_the_protocol_stands_beside_the_frame(open_page, directory):
  root = pathlib.Path(__file__).parents[2]
  serving.open_store(directory)
  shutil.copy(root / "docs" / "protocol.md", directory / "protocol.md")
  page = open_page()
  page.keys("g")
  page.page.wait_for_selector("#protocol h1")
  text = page.page.locator("#protocol").inner_text()
  assert "no clinical advice" in text and "vertical_line" in text
  page.keys("Escape")
  assert not page.page.locator("#protocol").is_visible()


def test_200_steps_can_be_undone_and_no_more_are_kept(open_page):
  page = open_page()
  found = page.page.evaluate("""import("./paint.js").then(({ Painting }) => {
    const painting = new Painting(40, 30, [new Uint8Array(1200), new Uint8Array(1200)]);
    const states = [];
    const now = () => String([...painting.planes[0], ...painting.planes[1]]);
    for (let i = 0; i < 400; i++) {
      states.push(now());
      painting.begin([i % 2]);
      const at = { x: 3 + (i * 7) % 35, y: 3 + (i * 11) % 25 };
      const erase = i % 3 === 2, level = erase ? 0 : 1 + (i * 37) % 255;
      painting.line(i % 2, at, at, { radius: 4, softness: 0.5, level, erase });
      if (!painting.end()) states.pop();
    }
    const last = now(), total = states.length;
    let undone = 0, right = true;
    while (painting.undo()) right &&= now() === states[total - ++undone];
    while (painting.redo());
    return [total, undone, right, now() === last];
  })""")
  total, undone, right, same_as = found
  assert total > undone == 200 and right and same_as


@pytest.mark.slow
@pytest.mark.usefixtures("browser")  # which skips where there is none
def test_the_benchmark_measures():
  command = [sys.executable, "-m", "lus_jax.annotate.benchmark", "--width", "64", "--height", "48"]
  command += ["--frames", "5", "--dabs", "3", "--strokes", "10"]
  root = pathlib.Path(__file__).parents[2]
  environment = os.environ | {"PYTHONPATH": str(root)}
  run = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr[-2000:]
  assert "6 classes, drawn by" in run.stdout and "10 steps of the history" in run.stdout
  assert "5 are read after" in run.stdout


# With a toy in place of the network, which takes minutes to compile.
TRAIN = """
import sys
from lus_jax import main, models
from tests import toys
models.build_model = toys.build_model
sys.exit(main.main(sys.argv))
"""


@pytest.mark.slow
def test_what_was_painted_trains_through_the_command_line(open_page, directory, tmp_path):
  page = open_page(query="?video=a.npy&frame=0")
  for frame in range(5):
    page.wait(f"[data-frame='{frame}'][data-state=ready]")
    page.tool("brush", 14, 0.5, 100 if frame % 2 else 60)
    page.drag((30 + 8 * frame, 40), (90 + 8 * frame, 44))
    page.keys("ArrowRight")
  page.keys("Control+s")
  page.wait("[data-saved=yes]")
  workdir = tmp_path / "run"
  options = {
    "data.name": "lus_folder",
    "data.dir": directory,
    "data.prepared_dir": tmp_path / "prepared",
    "data.split_unit": "frame",
    "data.image_size": 32,
    "sweep.thresholds": "(0.6,)",
    "train.epochs": 1,
    "train.batch_size": 1,
  }
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-c", TRAIN, "--config", "configs/seg.py:tiny", "--workdir", workdir]
  command += [f"--config.{name}={value}" for name, value in options.items()]
  environment = os.environ | {"PYTHONPATH": str(root)}
  run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr[-2000:]
  found = results.read(workdir, "segmentation")
  assert found["rows"][0]["threshold"] == 0.6 and found["dataset"]["classes"] == list(
    serving.CLASSES
  )
