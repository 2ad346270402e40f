"""The server: it answers the page alone, and what it refuses leaves the folder as it was."""

import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from lus_jax.annotate import server
from lus_jax.annotate import store as store_lib
from lus_jax.errors import UserError
from tests.annotate import serving
from tfds_builders.lus_folder import manifest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """A folder that ben painted in, and the port at which it is served to anna."""
  directory = tmp_path_factory.mktemp("annotate") / "set"
  clip = serving.make_clips(directory)
  serving.open_store(directory, "ben").save("a.npy", 1, serving.planes(5), "")
  opened = serving.open_store(directory)
  (directory / "pictures").mkdir()
  Image.fromarray(clip[0]).save(directory / "pictures" / "p.png")
  (directory.parent / "secret.png").write_bytes(b"secret")
  (directory / "pictures" / "link.png").symlink_to(directory.parent / "secret.png")
  opened.protocol = directory / "protocol.md"
  opened.protocol.write_text(
    "# Ours\n<script>alert(1)</script>\n\n![a](pictures/p.png) ![b](https://x.org/b.png)\n\n"
    "[c](javascript:alert(1)) | <img src=x onerror=alert(1)>\n"
  )
  with serving.serving(opened) as port:
    yield directory, port, clip


def unpack(content):
  (length,) = struct.unpack_from("<I", content)
  return json.loads(content[4 : 4 + length]), np.frombuffer(content[4 + length :], np.uint8)


def test_the_page_gets_frames_and_its_own_masks_as_they_are(served):
  _, port, clip = served
  status, content, headers = serving.ask(port, "")
  assert status == 200 and b"page.js" in content
  assert "default-src 'none'" in headers["content-security-policy"]
  assert headers["x-content-type-options"] == "nosniff"
  for name in ("page.js", "paint.js", "view.js", "page.css", "icon.svg"):
    assert serving.ask(port, name)[0] == 200
  folder = json.loads(serving.ask(port, "api/folder")[1])
  assert [one["name"] for one in folder["classes"]] == list(serving.CLASSES)
  assert folder["annotator"] == "anna"
  # Which frames, and nothing of who painted them.
  entry = {"video": "a.npy", "frame": 1, "done": False, "offered": False}
  assert folder["work"] == [entry | {"note": "", "comment": "", "seconds": 0.0}]
  assert b"ben" not in serving.ask(port, "api/folder")[1]
  header, pixels = unpack(serving.ask(port, "api/frames?video=a.npy&start=1&count=9")[1])
  assert header == {"start": 1, "count": 3}
  np.testing.assert_array_equal(pixels.reshape(3, *clip.shape[1:]), clip[1:])
  header, masks = unpack(serving.ask(port, "api/masks?video=a.npy&frame=1")[1])
  assert (
    header
    == {
      **{"revision": "", "prelabel": "", "saved": "", "review": ""},
      **{"prelabelled": [], "touched": []},
    }
    and not masks.any()
  )
  status, content, _ = serving.ask(port, "api/review?video=a.npy&frame=1")
  assert status == 400 and "--review" in serving.error_of(content)


def refused(served, path, status, **options):
  directory, port, _ = served
  before = serving.contents(directory)
  found, content, headers = serving.ask(port, path, **options)
  assert found == status, content
  assert serving.error_of(content).endswith((".", "?")) and "Traceback" not in str(content)
  assert serving.contents(directory) == before
  assert headers.get("content-security-policy")
  return serving.error_of(content)


@pytest.mark.parametrize(
  ("path", "headers", "status"),
  [
    ("api/folder", {"Host": "evil.example"}, 421),
    ("api/folder", {"Host": "127.0.0.1"}, 421),
    ("api/folder", {"Host": None}, 400),
    ("api/folder", {"Origin": "http://evil.example"}, 403),
    ("api/folder", {"Origin": "null"}, 403),
    ("api/folder", {"Origin": None, "Sec-Fetch-Site": "cross-site"}, 403),
    ("api/folder", {"Origin": "https://127.0.0.1"}, 403),
    ("api/folder", {"Origin": None}, 200),
    ("api/folder", {"Host": "localhost:PORT", "Origin": "http://localhost:PORT"}, 200),
    # One name of this machine may not speak for the other.
    ("api/folder", {"Origin": "http://localhost:PORT"}, 403),
  ],
)
def test_other_sites_are_refused(served, path, headers, status):
  port = served[1]
  headers = {name: value and value.replace("PORT", str(port)) for name, value in headers.items()}
  assert serving.ask(port, path, headers=headers)[0] == status


@pytest.mark.parametrize(
  "token", ["", "wrong", serving.TOKEN[:-1], serving.TOKEN.upper(), "ü" * 20]
)
def test_nothing_is_shown_without_the_token(served, token):
  token = token.encode().decode("latin-1") if token.isascii() else "%C3%BC" * 20
  for path in ("", "api/folder", "page.js", "api/masks?video=a.npy&frame=1"):
    refused(served, path, 403, token=token)
  body = serving.message()
  refused(served, "api/save?video=a.npy", 403, method="POST", body=body, token=token)


def test_a_save_says_where_it_comes_from(served):
  body = serving.message()
  options = {"method": "POST", "body": body}
  refused(served, "api/save?video=a.npy", 403, headers={"Origin": None}, **options)
  evil = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
  refused(served, "api/save?video=a.npy", 403, headers=evil, **options)


@pytest.mark.parametrize(
  "path",
  [
    "api/frames?video=../../secret.png&start=0&count=1",
    "api/frames?video=/etc/passwd&start=0&count=1",
    "api/frames?start=0&count=1",
    "api/frames?video=a.npy&start=-1&count=1",
    "api/frames?video=a.npy&start=4&count=1",
    "api/frames?video=a.npy&start=0&count=0",
    "api/frames?video=a.npy&start=nan&count=1",
    "api/masks?video=a.npy&frame=9",
    "api/masks?video=a.npy&frame=1&revision=a.npy/000001/ben/r0001",
    "api/masks?video=a.npy&frame=1&revision=../videos",
    "api/prelabel?video=a.npy&frame=1",
  ],
)
def test_what_is_not_there_is_said_in_a_line(served, path):
  refused(served, path, 400)


@pytest.mark.parametrize(
  "path",
  [
    "protocol/../../secret.png",
    "protocol/%2e%2e/%2e%2e/secret.png",
    "protocol//etc/passwd",
    "protocol/pictures/link.png",
    "protocol/dataset.json",
    "protocol/masks",
    "page/../store.py",
    "../server.py",
    "store.py",
  ],
)
def test_only_pictures_below_the_folder_are_served(served, path):
  status, content, _ = serving.ask(served[1], path)
  assert status == 404 and b"secret" not in content and b"import" not in content


def test_the_protocol_is_shown_without_tags_of_its_own(served):
  _, port, clip = served
  text = json.loads(serving.ask(port, "api/protocol")[1])["html"]
  assert "<h1>Ours</h1>" in text and "&lt;script&gt;" in text
  assert "<script" not in text and "<img src=x" not in text and 'href="javascript' not in text
  assert '<img src="protocol/pictures/p.png"' in text and "x.org" not in text
  status, content, headers = serving.ask(port, "protocol/pictures/p.png")
  assert status == 200 and headers["content-type"] == "image/png"


NAN = struct.pack("<I", 70) + b'{"video": "a.npy", "frame": 1, "base": "", "seconds": NaN}'.ljust(
  70
)


@pytest.mark.parametrize(
  ("body", "says"),
  [
    (b"", "too short"),
    (b"\xff\xff\xff\xff", "longer"),
    (struct.pack("<I", 4) + b"\xff\xfe\x00\x01", "UTF-8"),
    (server.packed(["no object"]), "no object"),
    (NAN + bytes(3 * 48 * 64), "NaN"),
    (serving.message(seconds=-1), "seconds"),
    (serving.message(seconds="1"), "seconds"),
    (serving.message(frame=4), "0 to 3"),
    (serving.message(frame=1.5), "0 to 3"),
    (serving.message(frame=True), "0 to 3"),
    (serving.message(base=None), "base"),
    (serving.message(aside="yes"), "aside"),
    (serving.message(touched=["other"]), "touched"),
    (serving.message(touched="pleura"), "touched"),
    (serving.message(prelabel="model"), "prelabel"),
    (serving.message(video="b"), "another video"),
    (serving.message(masks=serving.planes()[:, :-1]), "bytes"),
    (serving.message(masks=serving.planes()[:2]), "bytes"),
    # As many bytes as the true ones.
    (serving.message(masks=serving.planes().reshape(3, 64, 48)), "bytes"),
    (serving.message(masks=serving.planes()[:, :-1], shape=[3, 48, 64]), "bytes"),
    (serving.message(shape="x" * 1000), "bytes"),
    (serving.message()[:-1], "bytes"),
    (serving.message() + b"x", "bytes"),
  ],
)
def test_what_is_no_save_is_refused_and_changes_nothing(served, body, says):
  said = refused(served, "api/save?video=a.npy", 400, method="POST", body=body)
  assert says in said


def test_more_than_a_frames_masks_is_refused_before_it_is_read(served):
  directory, port, _ = served
  before = serving.contents(directory)
  with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
    sock.sendall(
      f"POST /{serving.TOKEN}/api/save?video=a.npy HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
      f"Origin: http://127.0.0.1:{port}\r\nContent-Length: {2**30}\r\n\r\n".encode()
    )
    # Not a byte of it is sent.
    assert sock.recv(100).startswith(b"HTTP/1.1 413 ")
  assert serving.contents(directory) == before


def test_more_than_a_frames_masks_is_refused_by_counting(served):
  directory, port, _ = served
  before, sent = serving.contents(directory), 0
  chunk = f"{2**16:x}\r\n".encode() + bytes(2**16) + b"\r\n"
  with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
    sock.sendall(
      f"POST /{serving.TOKEN}/api/save?video=a.npy HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
      f"Origin: http://127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    answer = []
    reader = threading.Thread(target=lambda: answer.append(sock.recv(100)))
    reader.start()
    try:
      while sent < 2**30 and reader.is_alive():
        sock.sendall(chunk)
        sent += 2**16
    except OSError:  # it has hung up
      pass
    reader.join(10)
  assert answer[0].startswith(b"HTTP/1.1 413 ") and sent < 2**25
  assert serving.contents(directory) == before


def test_two_windows_that_save_one_frame(served):
  directory, port, _ = served
  mine, theirs = serving.planes(1), serving.planes(2)
  options = {"method": "POST"}
  path = "api/save?video=a.npy"
  status, content, _ = serving.ask(port, path, body=serving.message(masks=theirs), **options)
  stands = json.loads(content)["revision"]
  assert status == 200
  status, content, _ = serving.ask(port, path, body=serving.message(masks=mine), **options)
  assert status == 409 and json.loads(content)["revision"] == stands
  body = serving.message(masks=mine, aside=True)
  status, content, _ = serving.ask(port, path, body=body, **options)
  aside = json.loads(content)["revision"]
  assert status == 200 and aside != stands
  header, masks = unpack(serving.ask(port, "api/masks?video=a.npy&frame=1")[1])
  assert (header["revision"], header["saved"]) == (stands, "hand")
  kept = json.loads(serving.ask(port, "api/history?video=a.npy&frame=1")[1])["revisions"]
  assert [one["revision"] for one in kept] == [stands, aside] and kept[0]["time"].endswith("Z")
  np.testing.assert_array_equal(masks.reshape(theirs.shape), theirs)
  found = serving.ask(port, f"api/masks?video=a.npy&frame=1&revision={aside}")[1]
  np.testing.assert_array_equal(unpack(found)[1].reshape(mine.shape), mine)


def test_notes(served):
  _, port, _ = served
  note = {"video": "b", "frame": 2, "note": "skip", "comment": "gain too low"}
  options = {"method": "POST"}
  content = serving.ask(port, "api/note", body=server.packed(note), **options)[1]
  assert json.loads(content)["work"][-1]["comment"] == "gain too low"
  content = serving.ask(port, "api/note", body=server.packed(note | {"frame": None}), **options)[1]
  assert [one["frame"] for one in json.loads(content)["work"] if one["video"] == "b"] == [2]
  del note["frame"]
  refused(served, "api/note", 400, body=server.packed(note), **options)
  note["frame"] = 2
  for wrong in ({"note": "burn"}, {"frame": 99}, {"comment": 3}, {"comment": "x" * 1001}):
    refused(served, "api/note", 400, body=server.packed(note | wrong), **options)
  refused(served, "api/note", 413, headers={"Content-Length": "1000000"}, **options)


def test_a_review_shows_everybody(tmp_path):
  serving.make_clips(tmp_path / "set")
  for i, name in enumerate(("anna", "ben")):
    work = store_lib.Work(1, (), "runs/x: soft", ("band",)) if i else store_lib.Work(1, ("band",))
    serving.open_store(tmp_path / "set", name).save("c.png", 0, serving.planes(i), "", work)
  opened = serving.open_store(tmp_path / "set", "consensus")
  with serving.serving(opened, review=True) as port:
    header, masks = unpack(serving.ask(port, "api/review?video=c.png&frame=0")[1])
    body = serving.message("c.png", 0, by_hand=False)
    content = serving.ask(port, "api/save?video=c.png", method="POST", body=body)[1]
    assert json.loads(content)["review"] == "begun"
    body = serving.message("c.png", 0, base=json.loads(content)["revision"])
    content = serving.ask(port, "api/save?video=c.png", method="POST", body=body)[1]
    assert json.loads(content)["review"] == "yes"
  # What is saved then is a consensus, and a data set's reader knows.
  labels = manifest.read_folder(tmp_path / "set").labels
  assert [label.work.review for label in labels] == [False, False, True]
  assert header["annotators"] == ["anna", "ben"]
  # And how theirs came about, so that what a model offered stays what it is.
  said = [(one["prelabel"], one["prelabelled"], one["touched"]) for one in header["origins"]]
  assert said == [("", [], ["band"]), ("runs/x: soft", ["band"], [])]
  expected = np.stack([serving.planes(0), serving.planes(1)])
  np.testing.assert_array_equal(masks.reshape(expected.shape), expected)


def start(directory, *options):
  home = {"HOME": str(directory.parent / "home")}
  environment = os.environ | home | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  command = [sys.executable, "-m", "lus_jax.annotate", directory, "--no-browser", *options]
  # What a shell runs in the background ignores Ctrl-C, and so would the command.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
  finally:
    signal.signal(signal.SIGINT, before)


def test_the_command_serves_until_it_is_stopped(tmp_path):
  serving.make_clips(tmp_path / "set")
  child = start(tmp_path / "set", "--classes", "pleura, a line", "--annotator", "anna")
  line = child.stdout.readline()
  port, token = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{43})/", line).groups()
  folder = json.loads(serving.ask(int(port), "api/folder", token=token)[1])
  assert [one["name"] for one in folder["classes"]] == ["pleura", "a line"]
  child.send_signal(signal.SIGINT)
  rest, errors = child.communicate(timeout=60)
  assert child.returncode == 130 and "Traceback" not in errors and "stays" in errors
  # For the next start, and for nobody else.
  (kept,) = (tmp_path / "home" / ".cache" / "lus_jax" / "annotate").iterdir()
  assert kept.read_text().split() == [port, token] and kept.stat().st_mode & 0o777 == 0o600


def test_a_page_that_is_open_goes_on_after_the_next_start(tmp_path):
  def start(port=0):
    with server.address(port, tmp_path / "cache" / "kept") as (sock, token):
      return sock.getsockname()[1], token

  first = start()
  assert start() == first and start(first[0]) == first
  with server.listen(first[0]):  # another program heard of it, perhaps
    second = start()
  assert second[0] != first[0] and second[1] != first[1] and start() == second
  with server.listen(0) as free:
    other = free.getsockname()[1]
  assert start(other)[0] == other
  # What others can read is no secret, and what is none is none.
  third = start()
  (tmp_path / "cache" / "kept").chmod(0o644)
  assert start()[1] != third[1]
  for text in ("", "x y", f"{third[0]} short", "99999999 " + 43 * "x"):
    (tmp_path / "cache" / "kept").write_text(text)
    assert len(start()[1]) == 43 and start()[1] != 43 * "x"


def test_an_address_is_of_one_annotator_and_folder(tmp_path, monkeypatch):
  from lus_jax.annotate import __main__ as command

  kept = []
  monkeypatch.setattr(server, "serve", lambda *_, **options: kept.append(options["kept"]))
  for name in ("one", "two"):
    serving.make_clips(tmp_path / name)
    serving.open_store(tmp_path / name)
  options = ("--no-browser", "--annotator")
  for name, *more in (
    ("one", "anna"),
    ("one", "ben"),
    ("two", "anna"),
    ("one", "anna", "--review"),
  ):
    assert command.main([str(tmp_path / name), *options, *more]) == 0
  assert len(set(kept)) == 4
  assert command.main([str(tmp_path / "two" / ".." / "one"), *options, "anna"]) == 0
  assert kept[-1] == kept[0]


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ([], "--classes"),
    (["--classes", "a,a"], "twice"),
    (["--classes", "a", "--keep", "0"], "--keep"),
    (["--classes", "a", "--annotator", "../x"], "--annotator"),
    (["--classes", "a", "--protocol", "nowhere.md"], "--protocol"),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, capsys, options, says):
  from lus_jax.annotate import __main__ as command

  serving.make_clips(tmp_path / "set")
  assert command.main([str(tmp_path / "set"), "--no-browser", *options]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and says in error


def test_a_review_by_who_painted_without_seeing_the_others_is_refused(tmp_path):
  from lus_jax.annotate import __main__ as command

  serving.make_clips(tmp_path / "set")
  anna = serving.open_store(tmp_path / "set")
  anna.save("c.png", 0, serving.planes(), "")
  carl = serving.open_store(tmp_path / "set", "carl")
  carl.save("c.png", 0, serving.planes(2), "", store_lib.Work(review=True, by_hand=False))
  before = serving.contents(tmp_path / "set")
  options = [str(tmp_path / "set"), "--no-browser", "--review"]
  with pytest.raises(UserError, match=r"'anna' painted 1 frame .* give --annotator another name"):
    command.open_store(command.parse([*options, "--annotator", "anna"]))
  assert serving.contents(tmp_path / "set") == before
  for more in ([], ["--annotator", "carl"], ["--annotator", "ben"]):
    assert command.open_store(command.parse([*options, *more])).annotator


def test_a_folder_that_is_none_and_a_port_that_is_taken(tmp_path, capsys):
  from lus_jax.annotate import __main__ as command

  assert command.main([str(tmp_path / "no"), "--no-browser"]) == 2
  assert command.main([str(tmp_path), "--no-browser", "--classes", "a"]) == 2
  assert capsys.readouterr().err.count("error: ") == 2
  assert not any(tmp_path.iterdir())
  with server.listen(0) as sock, pytest.raises(UserError, match="--port"):
    server.listen(sock.getsockname()[1])


def test_the_core_needs_neither_starlette_nor_markdown():
  script = (
    "import sys\nfor name in ('starlette', 'uvicorn', 'markdown_it'): sys.modules[name] = None\n"
    "from lus_jax.annotate import __main__, protocol, server, store\n"
    "from lus_jax.errors import UserError\n"
    "try:\n  server.make_app(None, '', 0)\nexcept UserError as error:\n  print(error)\n"
  )
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  found = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
  )
  assert "pip install 'lus_jax[annotate]'" in found.stdout


def test_frames_of_a_long_clip_come_in_parts(tmp_path):
  serving.make_clips(tmp_path / "set", n_frames=600)
  opened = serving.open_store(tmp_path / "set")
  clip = np.load(tmp_path / "set" / "a.npy")
  np.testing.assert_array_equal(opened.frames("a.npy", 250, 300), clip[250:550])
  np.testing.assert_array_equal(opened.frames("b", 13, 40), 255 - clip[13:53])
  with pytest.raises(UserError, match="0 to 599"):
    opened.frames("a.npy", 600, 1)
  assert isinstance(opened, store_lib.Store)
