"""A server of a folder in a thread, and a folder of small clips to serve."""

import contextlib
import http.client
import json
import threading
import time

import numpy as np
import uvicorn
from PIL import Image

from lus_jax.annotate import server, store

TOKEN = "t" * 20
CLASSES = ("pleura", "a line", "band")
HEIGHT, WIDTH = 48, 64


def make_clips(directory, n_frames=4):
  """Two clips and a still that nobody labelled: a.npy, b (a folder of pictures), c.png."""
  random = np.random.default_rng(0)
  (directory / "b").mkdir(parents=True)
  frames = random.integers(0, 256, (n_frames, HEIGHT, WIDTH)).astype(np.uint8)
  np.save(directory / "a.npy", frames)
  for i, frame in enumerate(255 - frames):
    Image.fromarray(frame).save(directory / "b" / f"{i:03d}.png")
  Image.fromarray(frames[0] // 2).save(directory / "c.png")
  return frames


def planes(seed=1):
  """Masks of all classes: uint8 [K, h, w]."""
  random = np.random.default_rng(seed)
  return random.integers(0, 256, (len(CLASSES), HEIGHT, WIDTH)).astype(np.uint8)


@contextlib.contextmanager
def serving(opened, at=0, **options):
  """Yields the port at which a store is served, below `/TOKEN/`: `at`, or any."""
  with server.listen(at) as sock:
    port = sock.getsockname()[1]
    app = server.make_app(opened, TOKEN, port, server.Options(**options))
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not running.started:
      time.sleep(0.01)
    try:
      yield port
    finally:
      running.should_exit = True
      thread.join(10)


def ask(port, path, *, method="GET", body=None, headers=None, token=TOKEN):
  """Asks as the page does, but for the headers that are given (None leaves one out).

  Returns:
    The status, the content, and the headers.
  """
  own = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
  own |= headers or {}
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
  try:
    connection.putrequest(method, f"/{token}/{path}", skip_host=True, skip_accept_encoding=True)
    if body is not None and "Transfer-Encoding" not in own:
      own = {"Content-Length": str(len(body))} | own
    for name, value in own.items():
      if value is not None:
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    return response.status, response.read(), dict(response.getheaders())
  finally:
    connection.close()


def message(video="a.npy", frame=1, base="", masks=None, **more):
  """What the page sends to save."""
  masks = planes() if masks is None else masks
  header = {"video": video, "frame": frame, "base": base, "shape": list(masks.shape)}
  return server.packed(header | more, masks)


def error_of(content):
  """What a refusal says."""
  return json.loads(content)["error"]


def contents(directory):
  """Every file below a folder, but for the lock."""
  return {
    path.relative_to(directory).as_posix(): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file() and path.name != "lock"
  }


def open_store(directory, annotator="anna", **options):
  """A folder of clips, made a data set of `CLASSES` where it is none."""
  store.prepare(directory, None if (directory / "dataset.json").exists() else CLASSES)
  return store.Store(directory, annotator, **options)
