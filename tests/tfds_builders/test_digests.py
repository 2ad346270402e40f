import hashlib
import json
import os
import time

import pytest

from lus_jax import files
from tfds_builders import digests


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  return tmp_path / "home"


@pytest.fixture
def read(monkeypatch):
  """The names of the files that were read since it was asked last."""
  names, real = [], files.sha256
  monkeypatch.setattr(files, "sha256", lambda path: names.append(path.name) or real(path))

  def since():
    found, names[:] = sorted(names), []
    return found

  return since


@pytest.fixture
def folder(tmp_path, home, monkeypatch):
  folder = tmp_path / "data"
  folder.mkdir()
  for name in "abc":
    (folder / name).write_text(name)
  # As if they had lain there for long.
  monkeypatch.setattr(digests, "TICK", -3600)
  return folder


def contents(folder, keep=True):
  return digests.contents(folder, sorted(folder.iterdir()), keep=keep)


def expected(folder):
  return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def test_files_of_a_large_set_are_read_once(folder, read, capsys):
  assert contents(folder) == expected(folder)
  assert read() == ["a", "b", "c"] and "checking 3 files" in capsys.readouterr().out
  assert contents(folder) == expected(folder)
  assert read() == [] and capsys.readouterr().out == ""
  (folder / "d").write_text("d")
  (folder / "b").unlink()
  assert contents(folder) == expected(folder)
  assert read() == ["d"]


def test_those_of_a_small_set_every_time(folder, home, read):
  for _ in range(2):
    assert contents(folder, keep=False) == expected(folder)
    assert read() == ["a", "b", "c"]
  assert not home.exists()


@pytest.mark.parametrize("how", ["in place", "renamed over it"])
def test_another_content_of_the_same_size_and_time_is_seen(folder, read, how):
  contents(folder)
  path, status = folder / "b", (folder / "b").stat()
  read()
  time.sleep(0.02)  # more than a tick of the clock
  new = path if how == "in place" else folder.parent / "new"
  new.write_text("x")
  os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
  new.replace(path)
  assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
  assert contents(folder) == expected(folder)
  assert read() == ["b"]


def test_files_that_changed_a_moment_ago_are_read_again(folder, read, monkeypatch):
  monkeypatch.setattr(digests, "TICK", 3)
  for _ in range(2):
    contents(folder)
    assert read() == ["a", "b", "c"]


def test_a_file_that_changes_while_it_is_read_is_read_again(folder, read, monkeypatch):
  real = files.sha256

  def slow(path):
    found = real(path)
    if path.name == "c":
      path.write_text("y")
    return found

  with monkeypatch.context() as patch:
    patch.setattr(files, "sha256", slow)
    contents(folder)
  read()
  assert contents(folder) == expected(folder)
  assert read() == ["c"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"files": {"a": 3}}', "altered"])
def test_damaged_digests_are_made_anew(folder, home, read, damage):
  contents(folder)
  (kept,) = (home / ".cache" / "lus_jax" / "digests").iterdir()
  if damage == "altered":
    content = json.loads(kept.read_text())
    content["files"]["a"][1] = "00" * 32
    damage = json.dumps(content)
  kept.write_text(damage)
  read()
  assert contents(folder) == expected(folder)
  assert "a" in read()


def test_they_are_bounded(tmp_path, folder, home, monkeypatch):
  monkeypatch.setattr(digests, "MOST", 2)
  for name in "xyz":
    (tmp_path / name).mkdir()
    (tmp_path / name / "a").write_text(name)
    contents(tmp_path / name)
  assert len(list((home / ".cache" / "lus_jax" / "digests").iterdir())) == 2


def test_without_a_home_to_write_to_they_are_read(folder, home, read):
  home.write_text("a file")
  for _ in range(2):
    assert contents(folder) == expected(folder)
    assert read() == ["a", "b", "c"]
