"""What is written is there whole or not at all, also where something was before."""

import pathlib
import shutil

import pytest

from lus_jax.media import writers


def make(folder, text):
  folder.mkdir()
  (folder / "x").write_text(text)


def test_at_every_moment_the_old_folder_is_there_or_the_new_one_in_its_place(tmp_path, monkeypatch):
  target, moments = tmp_path / "masks", []
  make(target, "old")

  def watched(inner):
    def call(*arguments, **words):
      whole = {path.parent.name: path.read_text() for path in tmp_path.rglob("x")}
      moments.append("old" in whole.values() or whole.get("masks") == "new")
      return inner(*arguments, **words)

    return call

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "replace", watched(pathlib.Path.replace))
    patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    with writers.written(target) as temporary:
      make(temporary, "new")
  assert len(moments) >= 3 and all(moments)
  assert [path.name for path in tmp_path.iterdir()] == ["masks"]
  assert (target / "x").read_text() == "new"


def test_the_old_folder_comes_back_where_the_new_one_gets_no_name(tmp_path, monkeypatch):
  target, replace = tmp_path / "masks", pathlib.Path.replace
  make(target, "old")

  def refused(path, to):
    if (path / "x").read_text() == "new":
      raise KeyboardInterrupt
    return replace(path, to)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "replace", refused)
    with pytest.raises(KeyboardInterrupt), writers.written(target) as temporary:
      make(temporary, "new")
  assert [path.name for path in tmp_path.iterdir()] == ["masks"]
  assert (target / "x").read_text() == "old"
