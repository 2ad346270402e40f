"""A disk that is full or read-only: one line, exit code 2; with room the same command goes on."""

import contextlib
import os
import shutil
import subprocess

from tests.faults.common import Case, command
from tests.faults.kills import goes_on


def _mount(path, options):
  subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)


def _remount(path, options):
  subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


@contextlib.contextmanager
def _disk(bench, name):
  """A disk of 64 MB, mounted on a folder."""
  path = bench.folder(name)
  _mount(path, "size=64m")
  try:
    yield path
  finally:
    subprocess.run(["umount", path], check=True)


def _size(folder):
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _used(disk):
  found = os.statvfs(disk)
  return (found.f_blocks - found.f_bfree) * found.f_frsize


def _filled(disk, room):
  """Leaves so many bytes of a disk."""
  _remount(disk, f"size={_used(disk) + room}")


def _case(bench, argv, disk, workdir, prepared, *, codes=(2,)):
  result = command(argv, bench.limit)
  faults = result.faults(2) if result.code not in codes or result.code == 2 else []
  _remount(disk, "rw,size=64m")
  return faults or goes_on(bench, argv, workdir, prepared)


def _preparation(bench, name, limit):
  workdir = bench.folder(f"{name}_run")
  with _disk(bench, name) as disk:
    _remount(disk, limit)
    return _case(bench, bench.run_argv(workdir, disk), disk, workdir, disk)


def _new_run(bench, name, limit):
  with _disk(bench, name) as disk:
    _remount(disk, limit)
    return _case(bench, bench.run_argv(disk / "run"), disk, disk / "run", bench.work / "prepared")


def _old_run(bench, name, without, *, share=None):
  """A run that has come to its results: what is left to write has room for a share only."""
  reference = bench.reference()
  with _disk(bench, name) as disk:
    workdir = disk / "run"
    shutil.copytree(reference, workdir)
    for part in without:
      shutil.rmtree(workdir / part)
    if share is None:
      _remount(disk, "ro")
    else:
      _filled(disk, int(share * _size(reference / without[0])))
    # A finished run may say again what it found.
    codes = (2,) if without else (0, 2)
    argv = bench.run_argv(workdir)
    return _case(bench, argv, disk, workdir, bench.work / "prepared", codes=codes)


def _report(bench, name):
  with _disk(bench, name) as disk:
    shutil.copytree(bench.reference(), disk / "run")
    shutil.rmtree(disk / "run" / "report")
    _filled(disk, 16 << 10)
    argv = ["-m", "lus_jax.report", "--workdir", disk / "run"]
    faults = command(argv, bench.limit).faults(2)
    _remount(disk, "size=64m")
    return faults or command(argv, bench.limit).faults(0)


def _prediction(bench, name):
  reference = bench.reference()
  picture = bench.folder(f"{name}_input") / "x.png"
  from tests.faults import fuzz

  fuzz.save(picture, fuzz.picture(0))
  with _disk(bench, name) as disk:
    _filled(disk, 8 << 10)
    argv = ["-m", "lus_jax.predict", "--workdir", reference, "--input", picture]
    argv += ["--out", disk / "out", f"--compilation_cache={bench.work / 'compiled'}"]
    faults = command(argv, bench.limit).faults(2)
    _remount(disk, "size=64m")
    return faults or command(argv, bench.limit).faults(0)


STAGES = {
  "full, preparation": lambda b, name: _preparation(b, name, "size=64k"),
  "full, checkpoint": lambda b, name: _new_run(b, name, "size=1m"),
  "full, results": lambda b, name: _old_run(b, name, ("results", "report"), share=0.5),
  "full, report": lambda b, name: _old_run(b, name, ("report",), share=0.5),
  "full, report alone": _report,
  "full, prediction": _prediction,
  "read-only, preparation": lambda b, name: _preparation(b, name, "ro"),
  "read-only, new run": lambda b, name: _new_run(b, name, "ro"),
  "read-only, results": lambda b, name: _old_run(b, name, ("results", "report")),
  "read-only, finished run": lambda b, name: _old_run(b, name, ()),
}


def run(bench):
  """Every stage that writes."""
  if os.environ.get("LUS_FAULTS_NAMESPACE") != "own":
    yield Case("disk", "all", "skipped", "needs unshare(1) and the right to mount a tmpfs")
    return
  bench.reference()

  def one(stage):
    name = "disk_" + stage.replace(", ", "_").replace(" ", "_")
    return Case("disk", stage, *(STAGES[stage](bench, name) or [("ok", "")])[0])

  yield from bench.together(one, list(STAGES)[:4] if bench.quick else STAGES)
