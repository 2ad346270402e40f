"""How fast the page paints, in a headless Chromium: `python -m lus_jax.annotate.benchmark`.

It prints the median and the 95th percentile of a dab (the confidences changed, their box handed to
the GPU, everything drawn, and the drawing waited for) at several radii, with all classes shown; the
memory of the page over a thousand strokes; and how long a clip takes to open. It needs playwright
and Chromium, and no network.
"""

import argparse
import contextlib
import pathlib
import shutil
import sys
import tempfile
import threading
import time

import numpy as np

from lus_jax import command_line
from lus_jax.annotate import server, store
from lus_jax.errors import UserError

CLASSES = ("sharp_pleura", "fuzzy_pleura", "fascia_band", "a_line", "sub_a_line", "vertical_line")
RADII = (12, 40, 100)
_TOKEN = "benchmark"
# In a canvas of its own of the frame's size, so that drawing costs what it costs at 100 %.
_DABS = """async ([width, height, count, radii, n, draw]) => {
  const { Painting } = await import("./paint.js");
  const { makeView } = await import("./view.js");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const view = makeView(canvas, draw), size = width * height;
  view.resize(width, height, count);
  view.setFrame(Uint8Array.from({ length: size }, (_, i) => (i * 7919) % 256));
  const planes = Array.from({ length: count }, () => new Uint8Array(size));
  const painting = new Painting(width, height, planes);
  const colours = Array.from({ length: count }, (_, k) => [k / count, 0.5, 1 - k / count, 0.75]);
  const one = new Uint8Array(4);
  const show = () => {
    painting.stale.forEach((box, k) => { if (box) view.setMask(k, painting.planes[k], box); });
    painting.stale.fill(null);
    view.draw({ x: 0, y: 0, scale: 1, colours });
    // Only what is read back has been drawn.
    if (view.gl) view.gl.readPixels(0, 0, 1, 1, view.gl.RGBA, view.gl.UNSIGNED_BYTE, one);
    else view.context.getImageData(0, 0, 1, 1);
  };
  show();
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const found = {};
  for (const radius of radii) {
    const parts = { changed: [], shown: [] };
    for (let i = 0; i < n; i++) {
      const k = i % count, at = { x: random() * width, y: random() * height };
      painting.begin([k]);
      const began = performance.now();
      painting.line(k, at, at, { radius, softness: 0.5, level: 51 + 40 * (i % 6) });
      const changed = performance.now();
      show();
      parts.changed.push(changed - began);
      parts.shown.push(performance.now() - began);
      painting.end();
    }
    found[radius] = parts;
  }
  return [view.kind, found];
}"""
_STROKES = """async ([width, height, count, n]) => {
  const { Painting } = await import("./paint.js");
  const size = width * height;
  const planes = Array.from({ length: count }, () => new Uint8Array(size));
  const painting = new Painting(width, height, planes);
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (let i = 0; i < n; i++) {
    const k = i % count;
    painting.begin([k]);
    let last = { x: random() * width, y: random() * height };
    for (let j = 0; j < 20; j++) {
      const at = { x: last.x + 20 * random() - 10, y: last.y + 20 * random() - 10 };
      painting.line(k, last, at, { radius: 12, softness: 0.5, level: 1 + (i % 255) });
      last = at;
    }
    painting.end();
  }
  window.kept = painting;  // so that it counts
  return [painting.done.length, painting.historyBytes()];
}"""


def import_playwright():
  """Playwright's sync API and the path of Chromium (`UserError` where either is missing)."""
  try:
    from playwright import sync_api
  except ImportError as error:
    raise UserError("This needs playwright; install it with pip install playwright.") from error
  names = ("chromium", "chromium-browser", "google-chrome", "chrome")
  path = next(filter(None, map(shutil.which, names)), None)
  if path is None:
    raise UserError("This needs Chromium, which is not installed.")
  return sync_api, path


@contextlib.contextmanager
def served(opened):
  """Yields the address at which a store is served."""
  import uvicorn

  with server.listen(0) as sock:
    port = sock.getsockname()[1]
    app = server.make_app(opened, _TOKEN, port)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
      yield f"http://{server.HOST}:{port}/{_TOKEN}/"
    finally:
      running.should_exit = True
      thread.join(10)


def _write_clip(directory, n, width, height):
  """A clip as scanners export it: noise that moves, as H.264."""
  import av

  random = np.random.default_rng(0)
  wide = random.integers(0, 200, (height // 8, width // 8 + n)).astype(np.uint8)
  wide = wide.repeat(8, 0).repeat(8, 1)
  (directory / "videos").mkdir(parents=True)
  with av.open(directory / "videos" / "clip.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    for i in range(n):
      frame = av.VideoFrame.from_ndarray(wide[:, i : i + width].copy(), format="gray")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _resident(browser):
  """Bytes of memory that the pages' processes hold, arrays included; None where Linux is not."""
  session = browser.new_browser_cdp_session()
  found = session.send("SystemInfo.getProcessInfo")["processInfo"]
  session.detach()
  total = 0
  for one in found:
    status = pathlib.Path("/proc") / str(one["id"]) / "status"
    if one["type"] != "renderer":
      continue
    if not status.is_file():
      return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    total += 1024 * int(line.split()[1])
  return total


def run(*, width=1024, height=768, frames=300, dabs=300, strokes=1000, draw=None):
  """Measures the page.

  Args:
    width: of a frame.
    height: of a frame.
    frames: of the clip that is opened.
    dabs: how many are timed a radius.
    strokes: over how many the memory is taken.
    draw: 'webgl2' or '2d'; by default WebGL2 where a GPU does it, else a 2D canvas.

  Returns:
    What was measured: times in ms, memory in bytes.

  Raises:
    UserError: playwright or Chromium is missing.
  """
  sync_api, chromium = import_playwright()
  with contextlib.ExitStack() as stack:
    directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "set"
    _write_clip(directory, frames, width, height)
    store.prepare(directory, CLASSES)
    driver = stack.enter_context(sync_api.sync_playwright())
    options = ["--no-sandbox", "--js-flags=--expose-gc"]
    browser = driver.chromium.launch(executable_path=chromium, args=options)
    stack.callback(browser.close)
    opened = store.Store(directory, "benchmark")
    address = stack.enter_context(served(opened))
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]", timeout=60_000)
    first = time.perf_counter() - began
    page.wait_for_selector("body[data-read]", timeout=120_000)
    every = time.perf_counter() - began
    kind, times = page.evaluate(_DABS, [width, height, len(CLASSES), list(RADII), dabs, draw])
    page.evaluate("gc()")
    before = _resident(browser)
    steps, history = page.evaluate(_STROKES, [width, height, len(CLASSES), strokes])
    page.evaluate("gc()")
    after = _resident(browser)
    return {
      "drawn_by": kind,
      "dabs": times,
      "first_frame_s": first,
      "all_frames_s": every,
      "frames_read": int(page.evaluate("document.body.dataset.read")),
      "steps": steps,
      "history_bytes": history,
      "grown_bytes": after - before if before else None,
    }


def _ms(time):
  # What the page's clock tells apart.
  return "< 0.1 ms" if time < 0.1 else f"{time:.1f} ms"


def _print(found, options):
  print(f"{options.width} x {options.height}, {len(CLASSES)} classes, drawn by {found['drawn_by']}")
  print(f"{'a dab of radius':>16}  {'changed: median, 95 %':>22}  {'and drawn: median, 95 %':>24}")
  for radius, parts in found["dabs"].items():
    cells = [np.percentile(parts[name], (50, 95)) for name in ("changed", "shown")]
    changed, shown = (f"{_ms(median)}, {_ms(high)}" for median, high in cells)
    print(f"{radius:>16}  {changed:>22}  {shown:>24}")
  grown = found["grown_bytes"]
  planes = 2 * len(CLASSES) * options.width * options.height / 1e6
  print(
    f"over {options.strokes} strokes: {found['steps']} steps of the history, "
    f"{found['history_bytes'] / 1e6:.1f} MB"
    + ("" if grown is None else f"; the page's memory {grown / 1e6:+.1f} MB, {planes:.1f} MB of it")
    + ("" if grown is None else " masks and their copies")
  )
  print(
    f"a clip of {options.frames} frames opens in {found['first_frame_s']:.2f} s, to be painted on; "
    f"{found['frames_read']} are read after {found['all_frames_s']:.2f} s"
  )


def _main(argv):
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.annotate.benchmark", description="How fast the page paints."
  )
  defaults = {"width": 1024, "height": 768, "frames": 300, "dabs": 300, "strokes": 1000}
  for name, default in defaults.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument(
    "--draw", choices=("webgl2", "2d"), help="by default WebGL2 on a GPU, else 2D"
  )
  options = parser.parse_args(argv)
  _print(run(**vars(options)), options)


def main(argv=None):
  """Measures and prints; returns the exit code (2 after a user's mistake)."""
  return command_line.run(lambda: _main(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
  sys.exit(main())
