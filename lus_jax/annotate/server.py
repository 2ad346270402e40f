"""The server of the page: for this machine alone, for who has the token, and for one folder.

Every address begins with a token, so that neither other people of the machine nor pages of other
sites reach anything. It and the port are kept, readable by the user alone, for who starts the same
again: a page that is still open then goes on and saves what it holds. Sites that resolve their name
to 127.0.0.1 send another Host, and pages of other sites another Origin.
"""

import contextlib
import dataclasses
import hmac
import json
import math
import os
import pathlib
import re
import secrets
import socket
import struct

import numpy as np

import lus_jax
from lus_jax import palette
from lus_jax.annotate import protocol as protocol_lib
from lus_jax.annotate import store as store_lib
from lus_jax.errors import UserError
from tfds_builders import tables

HOST = "127.0.0.1"
PAGE = pathlib.Path(__file__).parent / "page"
TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".svg": "image/svg+xml",
}
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
# Of what is told beside the masks.
MAX_HEADER = 64 * 1024
# Of frames that one answer holds.
MAX_ANSWER = 64 * 2**20
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cache-Control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Options:
  """How a folder is shown.

  Attributes:
    review: whether the masks of all annotators are sent; else those of the own one alone.
    prelabels: `(video, frame) -> uint8 [K, h, w]` with `names`, or None.
  """

  review: bool = False
  prelabels: object = None


def _starlette():
  try:
    from starlette import applications, concurrency, requests, responses, routing
  except ImportError as error:
    raise UserError(
      "The page needs Starlette and uvicorn; install them with pip install 'lus_jax[annotate]'."
    ) from error
  return applications, concurrency, requests, responses, routing


def packed(header, *arrays):
  """A JSON-serialisable dict and arrays of bytes as one message: its length, it, and the arrays."""
  text = json.dumps(header, allow_nan=False).encode()
  return b"".join(
    [struct.pack("<I", len(text)), text, *(np.ascontiguousarray(a).data for a in arrays)]
  )


def unpacked(body):
  """A dict and the bytes behind it, of what `packed` makes (`UserError` if it is none)."""
  if len(body) < 4:
    raise UserError("The message is too short; reload the page.")
  (length,) = struct.unpack_from("<I", body)
  if length > min(MAX_HEADER, len(body) - 4):
    raise UserError("The message's head is longer than the message; reload the page.")
  try:
    text = bytes(body[4 : 4 + length]).decode()
  except UnicodeDecodeError as error:
    raise UserError("The message's head is not UTF-8; reload the page.") from error
  header = tables.parse_json("The message's head", text)
  if not isinstance(header, dict):
    raise UserError("The message's head is no object; reload the page.")
  return header, memoryview(body)[4 + length :]


class Guard:
  """Lets through what comes from the page itself, and says no to everything else.

  Args:
    app: the application behind it.
    token: what every path begins with.
    port: that the server listens at.
  """

  def __init__(self, app, token, port):
    self._app, self._token = app, token
    self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}

  async def __call__(self, scope, receive, send):
    """An ASGI application."""
    if scope["type"] != "http":
      if scope["type"] == "lifespan":
        await self._app(scope, receive, send)
      return
    refused = self._refusal(scope)
    if refused is not None:
      await _answer(send, *refused)
      return
    prefix = f"/{self._token}"
    inner = dict(scope, path=scope["path"].removeprefix(prefix), root_path="")

    async def send_guarded(message):
      if message["type"] == "http.response.start":
        headers = [*message.get("headers", []), *_raw(_HEADERS)]
        message = dict(message, headers=headers)
      await send(message)

    await self._app(inner, receive, send_guarded)

  def _refusal(self, scope):
    headers = {}
    for name, value in scope["headers"]:
      headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    hosts = headers.get("host", [])
    if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
      return 421, "This server answers to 127.0.0.1 alone."
    origins = headers.get("origin", [])
    if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
      return 403, "This request comes from another site."
    if headers.get("sec-fetch-site", ["same-origin"])[0] not in ("same-origin", "none"):
      return 403, "This request comes from another site."
    if scope["method"] not in ("GET", "HEAD") and not origins:
      return 403, "A request that changes something says where it comes from (Origin)."
    first = scope["path"].split("/")[1:2]
    if not first or not hmac.compare_digest(first[0].encode(), self._token.encode()):
      return 403, "Open the address that the command printed: it ends with a token."
    if scope["path"] == f"/{self._token}":
      return 404, "The address ends with a slash."
    return None


def _raw(headers):
  return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _answer(send, status, text):
  body = json.dumps({"error": text}).encode()
  headers = _raw(
    _HEADERS
    | {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
  )
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})


class _TooLarge(UserError):
  pass


async def _body(request, most):
  """Reads a body of at most `most` bytes: refused by what it says of itself, and by counting."""
  said = request.headers.get("content-length")
  if said is not None and int(said) > most:  # h11 lets only digits through
    raise _TooLarge(f"{int(said):,} bytes are more than the {most:,} of this frame's masks.")
  body = bytearray()
  async for chunk in request.stream():
    if len(body) + len(chunk) > most:
      raise _TooLarge(f"More than the {most:,} bytes of this frame's masks were sent.")
    body += chunk
  return bytes(body)


def asked_first(names):
  """Which model the page asks unless told otherwise: of thresholds the one nearest 50 %.

  The highest draw little, the lowest too much. '' where there is no model.
  """

  def distance(name):
    found = re.fullmatch(r"threshold_(\d+(?:\.\d+)?)", name)
    return abs(float(found[1]) - 0.5) if found else math.inf

  return min(names, key=distance, default="")


class _Pages:
  """What the server answers, a method a path."""

  def __init__(self, store, options):
    self._store, self._options = store, options

  def folder(self, request):
    store = self._store
    thin = store.dataset.get("thin", [])
    names = getattr(self._options.prelabels, "names", [])
    work = store.work()
    left = (one for one in work if not one["done"] and one["note"] != "skip")
    first = next(left, {"video": store.videos[0], "frame": 0})
    # While the page is made ready, the clip that it opens first is decoded.
    with contextlib.suppress(UserError):  # the page is told of it when it opens the clip
      store.begin(first["video"], first["frame"])
    return {
      "name": store.dataset["name"],
      "annotator": store.annotator,
      "review": self._options.review,
      "classes": [
        {"name": name, "colour": palette.css(k), "thin": name in thin}
        for k, name in enumerate(store.classes)
      ],
      "opacity": palette.OPACITY,
      "videos": list(store.videos),
      "work": work,
      "first": first["video"],
      "protocol": store.protocol_version(),
      "prelabels": list(names),
      "prelabel": asked_first(names),
      "version": lus_jax.__version__,
    }

  def video(self, request):
    media = self._store.media(request.query_params.get("video"))
    rate = media.frames_per_second
    return {
      "frames": media.n_frames,
      "height": media.height,
      "width": media.width,
      "rate": None if math.isnan(rate) else rate,
      "area": self._store.area(request.query_params.get("video")),
    }

  def frames(self, request):
    query = request.query_params
    video, start, count = query.get("video"), _whole(query, "start"), _whole(query, "count")
    media = self._store.media(video)
    most = max(1, MAX_ANSWER // (media.height * media.width))
    images = self._store.frames(video, start, min(count, most))
    return packed({"start": start, "count": len(images)}, images)

  def masks(self, request):
    query = request.query_params
    video, frame = query.get("video"), _whole(query, "frame")
    revision, planes = self._store.masks(video, frame, query.get("revision"))
    return packed({"revision": revision} | self._store.origin(video, revision), planes)

  def history(self, request):
    query = request.query_params
    return {"revisions": self._store.history(query.get("video"), _whole(query, "frame"))}

  def review(self, request):
    if not self._options.review:
      raise UserError("Masks of others are shown in a review alone; start with --review.")
    query = request.query_params
    found = self._store.of_all(query.get("video"), _whole(query, "frame"))
    origins, planes = zip(*found.values(), strict=True) if found else ((), ())
    return packed({"annotators": list(found), "origins": origins}, *planes)

  def prelabel(self, request):
    if self._options.prelabels is None:
      raise UserError("No model was named; start with --prelabel WORKDIR.")
    query = request.query_params
    video, frame = query.get("video"), _whole(query, "frame")
    member = query.get("member")
    header, planes = self._options.prelabels(video, frame, member)
    return packed(header, planes)

  def save(self, header, planes):
    video, frame = header.get("video"), header.get("frame")
    media = self._store.media(video)
    shape = len(self._store.classes), media.height, media.width
    if header.get("shape") != list(shape) or len(planes) != math.prod(shape):
      raise UserError(
        f"The masks are {str(header.get('shape')):.50} in {len(planes):,} bytes, and those of "
        f"{video} {list(shape)} in {math.prod(shape):,}; nothing was saved."
      )
    base, aside = header.get("base", ""), header.get("aside", False)
    by_hand = header.get("by_hand", True)
    if not isinstance(base, str) or not isinstance(aside, bool) or not isinstance(by_hand, bool):
      raise UserError(
        "'base' is a revision, 'aside' and 'by_hand' are true or false; nothing was saved."
      )
    revision = self._store.save(
      video,
      frame,
      np.frombuffer(planes, np.uint8).reshape(shape),
      base,
      dataclasses.replace(self._work(header), by_hand=by_hand),
      aside=aside,
    )
    review = self._store.origin(video, revision)["review"]
    return {"revision": revision, "review": review, "work": self._store.work()}

  def _work(self, header):
    seconds = header.get("seconds", 0)
    if not tables.is_number(seconds) or not 0 <= seconds <= 86400:
      raise UserError("'seconds' is a number from 0 to 86400; nothing was saved.")
    named = {}
    for name in ("touched", "prelabelled"):
      classes = header.get(name, [])
      if not isinstance(classes, list) or not set(map(str, classes)) <= set(self._store.classes):
        raise UserError(f"'{name}' is a list of classes; nothing was saved.")
      named[name] = tuple(classes)
    prelabel = header.get("prelabel", "")
    known = getattr(self._options.prelabels, "names", [])
    if prelabel in known:
      prelabel = self._options.prelabels.describe(prelabel)
    elif prelabel and prelabel not in self._store.models():  # it came with a copied mask
      raise UserError("'prelabel' names no model that offered masks here; nothing was saved.")
    review = self._options.review
    return store_lib.Work(seconds=float(seconds), prelabel=prelabel, review=review, **named)

  def most(self, video):
    """Bytes that a save of a video may have."""
    media = self._store.media(video)
    return 4 + MAX_HEADER + len(self._store.classes) * media.height * media.width

  def note(self, header):
    self._store.note(
      header.get("video"), header.get("frame", -1), header.get("note"), header.get("comment", "")
    )
    return {"work": self._store.work()}

  def protocol(self, request):
    path = self._store.protocol
    return {"html": protocol_lib.html(path) if path else ""}


def _whole(query, name):
  try:
    return int(query.get(name, ""))
  except ValueError as error:
    raise UserError(f"'{name}' is no whole number.") from error


def make_app(store, token, port, options=None):
  """The application behind a port: an ASGI callable.

  Args:
    store: the `lus_jax.annotate.store.Store`.
    token: what every path begins with.
    port: that it will be served at.
    options: an `Options`.

  Raises:
    UserError: Starlette is not installed.
  """
  applications, concurrency, _, responses, routing = _starlette()
  pages = _Pages(store, options or Options())

  def answer(content):
    if isinstance(content, bytes):
      return responses.Response(content, media_type="application/octet-stream")
    return responses.JSONResponse(content)

  def refusal(error):
    content = {"error": str(error)}
    if isinstance(error, store_lib.Conflict):
      return responses.JSONResponse(content | {"revision": error.revision}, 409)
    if isinstance(error, _TooLarge):
      return responses.JSONResponse(content, 413, headers={"Connection": "close"})
    return responses.JSONResponse(content, 400)

  def got(method):
    def endpoint(request):  # Starlette runs it in a thread
      try:
        return answer(method(request))
      except UserError as error:
        return refusal(error)

    return endpoint

  async def save(request):
    try:
      video = request.query_params.get("video")
      body = await _body(request, await concurrency.run_in_threadpool(pages.most, video))
      header, planes = unpacked(body)
      if header.get("video") != video:
        raise UserError("The message is about another video than its address; nothing was saved.")
      return answer(await concurrency.run_in_threadpool(pages.save, header, planes))
    except UserError as error:
      return refusal(error)

  async def note(request):
    try:
      header, _ = unpacked(await _body(request, 4 + MAX_HEADER))
      return answer(await concurrency.run_in_threadpool(pages.note, header))
    except UserError as error:
      return refusal(error)

  def file(path):
    async def endpoint(request):
      return responses.Response(path.read_bytes(), media_type=TYPES[path.suffix])

    return endpoint

  def picture(request):
    try:
      path = protocol_lib.picture(store.directory, store.protocol, request.path_params["path"])
      return responses.Response(path.read_bytes(), media_type=PICTURES[path.suffix.lower()])
    except UserError as error:
      return responses.JSONResponse({"error": str(error)}, 404)

  names = ("folder", "video", "frames", "masks", "history", "review", "prelabel", "protocol")
  routes = [
    routing.Route("/", file(PAGE / "index.html")),
    *(
      routing.Route(f"/{path.name}", file(path))
      for path in sorted(PAGE.iterdir())
      if path.suffix in TYPES
    ),
    *(routing.Route(f"/api/{name}", got(getattr(pages, name))) for name in names),
    routing.Route("/api/save", save, methods=["POST"]),
    routing.Route("/api/note", note, methods=["POST"]),
    routing.Route("/protocol/{path:path}", picture),
  ]
  return Guard(applications.Starlette(routes=routes), token, port)


def listen(port):
  """A socket at a port of 127.0.0.1; 0 takes any that is free (`UserError`: it is taken)."""
  sock = socket.socket()
  sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    sock.bind((HOST, port))
    # From here on a browser that is faster than the server waits.
    sock.listen(128)
  except (OSError, OverflowError) as error:
    sock.close()
    raise UserError(
      f"--port={port} cannot be used ({error}); give another, or 0 for any."
    ) from error
  return sock


@contextlib.contextmanager
def address(port, kept=None):
  """Yields a listening socket and a token: those of the last start where both are still to be had.

  Where another program has the port by now it may have heard the token, and both are made anew.

  Args:
    port: 0 takes that of the last start, or else any that is free.
    kept: the file that keeps them between starts; None: nothing does.

  Raises:
    UserError: the port is taken.
  """
  last_port, token = _recall(kept) if kept else (0, "")
  sock = None
  if last_port and port in (0, last_port):
    with contextlib.suppress(UserError):
      sock = listen(last_port)
  if sock is None:
    sock, token = listen(port), secrets.token_urlsafe(32)
  with sock:
    if kept:
      with contextlib.suppress(OSError):  # a home that cannot be written: the next start is another
        _keep(kept, sock.getsockname()[1], token)
    yield sock, token


def _recall(file):
  """The port and token of the last start; 0 and '' where none are kept, or others may know them."""
  try:
    info = file.stat()
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o077):
      return 0, ""
    port, token = file.read_text().split()
    return (int(port), token) if re.fullmatch(r"[\w-]{43}", token) else (0, "")
  except (OSError, ValueError):
    return 0, ""


def _keep(file, port, token):
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
  partial.unlink(missing_ok=True)
  with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
    opened.write(f"{port} {token}\n")
  partial.replace(file)


def serve(store, *, port=0, options=None, started=None, kept=None):
  """Serves a folder until the process is told to stop.

  Args:
    store: the `lus_jax.annotate.store.Store`.
    port: as of `address`.
    options: an `Options`.
    started: called with the page's address, before the first request.
    kept: as of `address`.

  Raises:
    UserError: the port is taken, or Starlette or uvicorn is not installed.
  """
  _starlette()
  import uvicorn

  with address(port, kept) as (sock, token):
    port = sock.getsockname()[1]
    app = make_app(store, token, port, options)
    config = uvicorn.Config(
      app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none"
    )
    if started is not None:
      started(f"http://{HOST}:{port}/{token}/")
    uvicorn.Server(config).run(sockets=[sock])
