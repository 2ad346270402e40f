"""Checkpoints under damage and full disks, and what a directory's claim accepts."""

import contextlib
import errno
import json
import logging
import os
import random
import resource
import shutil

import jax
import numpy as np
import pytest

from lus_jax.errors import UserError
from lus_jax.training import checkpoints, claim
from lus_jax.training.sweep import Sweep

STATE = {"w": np.random.default_rng(0).normal(size=300).astype(np.float32), "n": np.arange(7)}


def best(epoch):
  return {"w": STATE["w"] + epoch}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Epochs 1 to 3; the last two are kept. Copy it to damage it."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  manager = checkpoints.Checkpoints(workdir)
  for epoch in (1, 2, 3):
    manager.save(epoch, STATE, best(epoch), {"epoch": epoch, "rate": 0.1})
  manager.close()
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "run")


def restore(workdir):
  manager = checkpoints.Checkpoints(workdir)
  try:
    state, found, meta = manager.restore(STATE, best(0))
    np.testing.assert_array_equal(state["w"], STATE["w"])
    np.testing.assert_array_equal(found["w"], best(meta["epoch"])["w"])
    return meta
  finally:
    manager.close()


def flip(content, bits):
  content = bytearray(content)
  for i in random.Random(0).sample(range(8 * len(content)), bits):
    content[i // 8] ^= 1 << i % 8
  return bytes(content)


DAMAGE = {
  "truncated": lambda content: content[: len(content) // 2],
  "zeroed": lambda content: bytes(len(content)),
  "emptied": lambda content: b"",
  "1 bit": lambda content: flip(content, 1),
  "30 bits": lambda content: flip(content, 30),
  "missing": None,
}


def files(folder, pattern="*"):
  found = [p for p in folder.rglob(pattern) if p.is_file() and p.stat().st_size > 0]
  return sorted(found, key=lambda p: (-p.stat().st_size, p))


def damage(file, kind):
  if DAMAGE[kind] is None:
    file.unlink()
  else:
    file.write_bytes(DAMAGE[kind](file.read_bytes()))


@pytest.mark.parametrize("item", ["state", "best", "meta", "measured.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_one_before_takes_the_place_of_a_damaged_one(workdir, caplog, kind, item):
  newest = workdir / "checkpoints" / "3"
  damage(newest / item if item.endswith("json") else files(newest / item)[0], kind)
  assert restore(workdir) == {"epoch": 2, "rate": 0.1}
  (message,) = caplog.messages
  assert message.startswith(f"{newest} is damaged (") and message.endswith("one before, 2.")
  # It is out of the way of the next epoch's.
  assert sorted(p.name for p in newest.parent.iterdir()) == ["2", "damaged_3"]


def test_any_file_of_the_newest_may_be_lost(saved, tmp_path):
  count = len(files(saved / "checkpoints" / "3"))
  for i in range(0, count, 3):
    workdir = shutil.copytree(saved, tmp_path / str(i))
    file = files(workdir / "checkpoints" / "3")[i]
    file.write_bytes(b"")
    # On what orbax notes beside the items nothing depends.
    spare = file.parent.name == "3" and file.name != checkpoints.MEASURED
    assert restore(workdir)["epoch"] == (3 if spare else 2), file


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_damaged(workdir, monkeypatch, number):
  def refuse(file):
    raise OSError(number, os.strerror(number), file)

  before = sorted((workdir / "checkpoints").rglob("*"))
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.files, "sha256", refuse)
    with pytest.raises(UserError, match=rf"/3/.* cannot be read \({os.strerror(number)}\)"):
      restore(workdir)
  assert sorted((workdir / "checkpoints").rglob("*")) == before
  assert restore(workdir)["epoch"] == 3


@pytest.mark.parametrize("content", ['{"files": {}}', '{"files": {"meta/metadata": [1, ""]}}'])
def test_checksums_of_nothing_vouch_for_nothing(workdir, caplog, content):
  newest = workdir / "checkpoints" / "3"
  (newest / checkpoints.MEASURED).write_text(content)
  damage(files(newest / "state")[0], "zeroed")
  assert restore(workdir)["epoch"] == 2
  assert "3 is damaged (its checksums are not of all its parts)" in caplog.messages[0]


def test_the_main_process_looks_for_all(workdir, monkeypatch):
  asked = []
  monkeypatch.setattr(checkpoints.parallel, "is_main", lambda: False)
  monkeypatch.setattr(checkpoints.parallel, "from_main", lambda x: asked.append(x) or [2, 1])
  monkeypatch.setattr(checkpoints.files, "damage", None)  # which this process does not call
  assert restore(workdir)["epoch"] == 2 and asked == [[0, 0]]
  monkeypatch.setattr(checkpoints.parallel, "from_main", lambda x: [0, 0])
  with pytest.raises(UserError, match="checkpoints cannot be read; the main process says why"):
    restore(workdir)


def test_where_none_is_whole_it_is_one_line(workdir):
  for number in ("2", "3"):
    damage(files(workdir / "checkpoints" / number / "state")[0], "1 bit")
  with pytest.raises(
    UserError, match=r"no checkpoint is whole \(3: state/.* has other contents; 2:"
  ):
    restore(workdir)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_checkpoints_of_older_versions_are_read_and_fall_back_too(workdir, caplog):
  for number in ("2", "3"):
    folder = workdir / "checkpoints" / number
    (folder / checkpoints.MEASURED).unlink()
    meta = folder / "meta" / "metadata"
    meta.write_text(json.dumps({"epoch": int(number), "rate": 0.1}))
  assert restore(workdir)["epoch"] == 3
  assert not caplog.messages
  damage(files(workdir / "checkpoints" / "3" / "state")[0], "zeroed")
  content = {p.name: p.read_bytes() for p in files(workdir / "checkpoints" / "3" / "state")}
  assert restore(workdir)["epoch"] == 2
  (message,) = caplog.messages
  assert "3 is damaged" in message
  # Nothing vouches for that: it stays.
  aside = files(workdir / "checkpoints" / "damaged_3" / "state")
  assert {p.name: p.read_bytes() for p in aside} == content


def test_the_best_models_are_read_from_the_one_before_only_if_they_are_the_same(workdir, caplog):
  def read(*epochs):
    manager = checkpoints.Checkpoints(workdir)
    try:
      return manager.restore_best(best(0), epochs)
    finally:
      manager.close()

  # The state is not asked for.
  damage(files(workdir / "checkpoints" / "3" / "state")[0], "1 bit")
  np.testing.assert_array_equal(read(1, 3)["w"], best(3)["w"])
  assert not caplog.messages
  damage(files(workdir / "checkpoints" / "3" / "best")[0], "1 bit")
  np.testing.assert_array_equal(read(1, 2)["w"], best(2)["w"])
  assert "3 is damaged" in caplog.messages[0]
  for late in (3, None):
    with pytest.raises(UserError, match="does not have the best models of all members yet; remove"):
      read(1, late)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_a_full_disk_is_one_line_and_leaves_the_one_before(workdir, caplog, capfd):
  caplog.set_level(logging.ERROR)
  manager = checkpoints.Checkpoints(workdir)
  values = np.random.default_rng(0).normal(size=(60, 30_000)).astype(np.float32)
  large = {str(i): row for i, row in enumerate(values)}
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  try:
    with pytest.raises(UserError, match=r"checkpoint cannot be written \(File too large\)"):
      manager.save(4, large, best(4), {"epoch": 4})
      manager.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not caplog.messages and "Traceback" not in capfd.readouterr().err
  # The same later.
  assert restore(workdir)["epoch"] == 3
  manager = checkpoints.Checkpoints(workdir)
  manager.save(4, STATE, best(4), {"epoch": 4})
  manager.close()
  assert restore(workdir)["epoch"] == 4
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "4"]


def test_a_number_that_is_taken_is_not_written_over(workdir):
  manager = checkpoints.Checkpoints(workdir)
  manager.save(3, STATE, best(3), {"epoch": 3})
  manager.save(4, STATE, best(4), {"epoch": 4})
  assert manager.latest() == 5
  manager.close()


STRATEGIES = ("loop", "grouped", "sharded")


def member(i):
  return {"w": STATE["w"].reshape(3, 100) * i, "n": np.int32(i)}


@pytest.mark.parametrize("written", STRATEGIES)
@pytest.mark.parametrize("read", STRATEGIES)
def test_members_are_read_to_the_bit_on_other_devices(tmp_path, written, read):
  # Three of them on two devices take four places.
  before, after = (Sweep([{}] * 3, strategy, group=2) for strategy in (written, read))
  states = [member(i) for i in range(3)]
  with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as manager:
    stacked = before.stack(before.place(states))
    manager.save(1, stacked, stacked, {"epoch": 1})
  with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as manager:
    fresh = after.stack(after.place([member(7)] * 3))
    state, found, _ = manager.restore(fresh, fresh, members=3)
    jax.tree.map(lambda x, y: x.sharding == y.sharding or pytest.fail(), state, fresh)
    alone = manager.restore_best({"w": np.zeros((3, 3, 100)), "n": np.zeros(3)}, [1])
  for part in (state, found, alone):
    for one, expected in zip(after.to_host(after.unstack(part)), states, strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, expected)


@pytest.mark.parametrize("strategy", ["loop", "sharded"])
def test_other_shapes_and_missing_members_are_not_made_to_fit(tmp_path, strategy):
  sweep = Sweep([{}] * 3, "sharded")
  with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as manager:
    stacked = sweep.stack(sweep.place([member(i) for i in range(3)]))
    manager.save(1, stacked, stacked, {"epoch": 1})
    manager.wait()
    for n, width in ((3, 50), (5, 100)):
      other = Sweep([{}] * n, strategy)
      fresh = other.stack(other.place([{"w": np.zeros((3, width), np.float32), "n": 0}] * n))
      with pytest.raises(ValueError, match="not compatible with the stored shape"):
        manager.restore(fresh, fresh, members=n)


CONFIG = {"train": {"epochs": 3}, "data": {"name": "d", "prepared_dir": "data", "dir": "mine"}}


def changed(**changes):
  config = {name: dict(fields) for name, fields in CONFIG.items()}
  for name, value in changes.items():
    section, field = name.split("__")
    config[section][field] = value
  return config


def test_where_data_lie_is_no_part_of_a_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  claim.claim("run", CONFIG, {"name": "d"})
  # Others read it from elsewhere.
  assert claim.read_claim("run")["config"]["data"] == {
    "name": "d",
    "prepared_dir": str(tmp_path / "data"),
    "dir": str(tmp_path / "mine"),
  }
  moved = changed(data__prepared_dir="/elsewhere", data__dir="/else")
  claim.claim("run", moved, {"name": "d"})
  assert claim.read_claim("run")["config"]["data"]["prepared_dir"] == "/elsewhere"
  with pytest.raises(UserError, match="the data set has changed"):
    claim.claim("run", moved, {"name": "e"})
  with pytest.raises(UserError, match="its segmentation models have changed"):
    claim.claim("run", moved, {"name": "d", "segmentation": ["other"]})


def test_relative_paths_of_older_runs_are_found_beside_the_run(tmp_path, monkeypatch):
  (tmp_path / "project" / "data").mkdir(parents=True)
  workdir = tmp_path / "project" / "runs" / "seg"
  monkeypatch.chdir(tmp_path)
  assert claim.find_path(workdir, "data") == str(tmp_path / "project" / "data")
  assert claim.find_path(workdir, "none") == "none"
  assert claim.find_path(workdir, "/a") == "/a" and claim.find_path(workdir, "") == ""


def test_more_epochs_go_on_and_fewer_do_not(tmp_path):
  claim.claim(tmp_path, CONFIG, {})
  more = changed(train__epochs=5)
  with pytest.raises(UserError, match=r"another config \(different: train.epochs\)"):
    claim.claim(tmp_path, more, {})
  claim.claim(tmp_path, more, {}, more_epochs=True)
  assert claim.read_claim(tmp_path)["config"]["train"]["epochs"] == 5
  with pytest.raises(UserError, match=r"train.epochs\); .*with more epochs than its own"):
    claim.claim(tmp_path, CONFIG, {}, more_epochs=True)
  with pytest.raises(UserError, match=r"\(different: data.name\)"):
    claim.claim(tmp_path, changed(train__epochs=9, data__name="e"), {}, more_epochs=True)


def test_what_is_done_is_what_the_newest_checkpoint_says(workdir, tmp_path):
  assert checkpoints.progress(workdir) == (3, 0)
  assert checkpoints.progress(tmp_path / "none") == (0, 0)
  manager = checkpoints.Checkpoints(workdir)
  manager.save(4, STATE, best(3), {"epoch": 3, "steps": 5})
  manager.close()
  assert checkpoints.progress(workdir) == (3, 5)


def test_a_changed_claim_is_damaged_and_one_of_an_older_version_is_read(tmp_path):
  claim.claim(tmp_path, CONFIG, {})
  file = tmp_path / claim.OWNER
  file.write_text(file.read_text().replace('"epochs": 3', '"epochs": 7'))
  with pytest.raises(UserError, match="run.json is damaged"):
    claim.read_claim(tmp_path)
  file.write_text(json.dumps({"config": CONFIG, "dataset": {}}))
  assert claim.read_claim(tmp_path)["config"] == CONFIG


def test_what_is_kept_is_what_is_there(workdir, tmp_path):
  assert checkpoints.kept(tmp_path / "none").startswith("There is no checkpoint yet")
  assert f"{workdir}/checkpoints/" in checkpoints.kept(workdir)
  (tmp_path / "study" / "units").mkdir(parents=True)
  (tmp_path / "study" / "units" / "default_0.json").touch()
  assert "after the 1 finished units" in checkpoints.kept(tmp_path / "study")


def test_writes_that_nobody_waits_for_are_not_printed(tmp_path, caplog):
  checkpoints.Checkpoints(tmp_path).close()
  full = ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")
  said = logging.getLogger("asyncio")
  for error in (full, ValueError("shapes")):
    said.error("Task exception was never retrieved", exc_info=error)
  assert [record.exc_info[1].args for record in caplog.records] == [("shapes",)]
