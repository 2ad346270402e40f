import errno
import os
import pathlib

import pytest

from lus_jax import files
from lus_jax.errors import UserError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_a_disk_refuses_is_one_line_naming_the_file(tmp_path, monkeypatch, number):
  files.write_text(tmp_path / "a.json", "old")

  def refuse(self, content):
    raise OSError(number, os.strerror(number), str(self))

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "write_bytes", refuse)
    with pytest.raises(UserError) as error:
      files.write_text(tmp_path / "a.json", "new")
  assert str(error.value).startswith(f"{tmp_path}/a.json cannot be written ({os.strerror(number)})")
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old"}


def test_a_mistake_of_our_own_is_no_full_disk(tmp_path):
  with pytest.raises(FileExistsError):
    (tmp_path / "a").touch()
    files.write_text(tmp_path / "a" / "b", "text")
  assert files.refusal(ValueError("shapes differ")) is None
  assert files.refusal(FileNotFoundError(errno.ENOENT, "none")) is None
  # Libraries in C++ have exceptions of their own.
  text = "RESOURCE_EXHAUSTED: Failed to write 7 bytes: No space left on device [os_error_code='28']"
  assert files.refusal(ValueError(text)) == "No space left on device"
  # Words that are anybody's count where it is said whose they are.
  assert files.refusal(ValueError("Permission denied")) is None
  assert files.refusal(RuntimeError("CUDA_ERROR_NOT_PERMITTED: Operation not permitted")) is None
  text = "PERMISSION_DENIED: Failed to open x: Permission denied [os_error_code='13']"
  assert files.refusal(ValueError(text)) == "Permission denied"
  denied = type("PermissionDeniedError", (Exception,), {"__module__": "tensorflow.python.errors"})
  assert files.refusal(denied("/x/events.out; Permission denied")) == "Permission denied"


def test_a_seal_is_broken_by_any_change():
  sealed = files.seal({"a": 1.5, "b": ["x"]})
  assert not files.broken_seal(sealed)
  assert files.broken_seal(sealed | {"a": 1.25})
  assert files.broken_seal(sealed | {"c": None})
  assert not files.broken_seal({"a": 1.25})  # never sealed


def test_damage_says_what_is_wrong_with_which_file(tmp_path):
  (tmp_path / "d").mkdir()
  file = tmp_path / "d" / "x"
  file.write_bytes(b"0123456789")
  measured = files.measure(tmp_path)
  (tmp_path / "other").touch()
  assert files.damage(tmp_path, measured) is None
  file.write_bytes(b"0123456788")
  assert files.damage(tmp_path, measured) == "d/x has other contents"
  assert files.damage(tmp_path, measured, sizes_only=["d/x"]) is None
  file.write_bytes(b"0123")
  assert files.damage(tmp_path, measured) == "d/x has 4 bytes in place of 10"
  file.unlink()
  assert files.damage(tmp_path, measured) == "d/x is missing"
  file.parent.rmdir()
  file.parent.touch()
  assert files.damage(tmp_path, measured) == "d/x is missing"


def test_what_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch):
  (tmp_path / "x").write_bytes(b"0")
  measured = files.measure(tmp_path)

  def refuse(file):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

  monkeypatch.setattr(files, "sha256", refuse)
  with pytest.raises(UserError, match=r"/x cannot be read \(Too many open files\), which may pass"):
    files.damage(tmp_path, measured)


def test_no_folder_is_called_tilde(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert files.expanded("~/data", "--x=DIR") == pathlib.Path("/home/me/data")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user without a home
  with pytest.raises(UserError, match="~/data: there is no home .* with --x=DIR"):
    files.expanded("~/data", "--x=DIR")
