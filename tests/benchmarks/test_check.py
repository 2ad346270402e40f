import json

import numpy as np
import pytest

from lus_jax.benchmarks import check, peers, processes, sweep, throughput
from lus_jax.errors import UserError


def test_values_are_compared_in_processes_of_their_own(tmp_path, capsys):
  out = tmp_path / "check.json"
  options = ["--cpu", "--parts", "values", "--cases", "adam", f"--out={out}"]
  assert check.main(options) == 0
  result = json.loads(out.read_text())
  (row,) = result["values"]
  assert (row["case"], row["how"], row["ok"]) == ("adam", "highest", True)
  assert result["ok"] and result["seconds"]["values"] > 0 and "torch" not in result["versions"]
  assert "Every value is as on the CPU" in capsys.readouterr().out


@pytest.fixture
def parts(monkeypatch):
  """The parts in place of the real ones, and what they were asked."""
  asked = {}

  def check_values(sizes, cases, *, cpu, end, keep):
    rows = [{"case": "adam", "how": "highest", "ok": True, "difference": 1e-7}]
    rows[0] |= {"allowed": 3e-5, "worst": "params/1"}
    keep(rows)
    return rows

  def measure(args, *, keep):
    asked[getattr(args, "what", "sweep")] = args
    if getattr(args, "what", None) == "tsm":
      keep({"rows": [], "finished": False})
      raise UserError("nothing could be measured (out of memory)")
    keep({"rows": [{"ok": False, "reason": "no time is left"}]})

  monkeypatch.setattr(check, "check_values", check_values)
  for module in (throughput, sweep):
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "table", lambda found: f"| {found['rows'][0]['reason']} |")
  return asked


def test_a_part_that_fails_is_a_row_and_all_is_in_one_file(parts, tmp_path, monkeypatch, capsys):
  def without():
    raise UserError("PyTorch's side needs torch.")

  monkeypatch.setattr(peers, "import_torch", without)
  out = tmp_path / "check.json"
  assert check.main(["--cpu", "--budget=100", f"--out={out}"]) == 0
  result = json.loads(out.read_text())
  assert list(result["seconds"]) == list(check.PARTS)
  assert result["tsm"]["reason"].startswith("nothing could be measured")
  assert result["fpn"]["rows"][0]["reason"] == "no time is left"
  assert result["without_peer"] == "PyTorch's side needs torch."
  # What a part leaves of its time is the next one's: none took any here.
  seconds = [*(parts[what].budget for what in ("fpn", "tsm", "predict")), parts["sweep"].limit]
  assert seconds == pytest.approx([54, 70, 80, 100], abs=2)
  assert parts["fpn"].peer is None
  printed = capsys.readouterr().out
  assert printed.count("| no time is left |") == 3
  assert "not measured: nothing could be measured (out of memory)" in printed


def test_a_value_that_differs_or_is_missing_fails_the_check(parts, monkeypatch, capsys):
  row = {"case": "video", "how": "default", "ok": False}
  wrong = row | {"difference": None, "allowed": 1e-2, "worst": "loss"}
  for found, shown in (
    (wrong, "| not finite | 0.01 | loss | DIFFERS |"),
    (row | {"reason": "the process ended by SIGABRT"}, "not computed: the process ended"),
  ):
    monkeypatch.setattr(
      check, "check_values", lambda *_, keep, found=found, **__: keep([found]) or [found]
    )
    assert check.main(["--cpu", "--parts", "values"]) == 1
    printed = capsys.readouterr().out
    assert shown in printed and "NOT as on the CPU: video (default)" in printed


def test_a_case_that_ends_its_process_does_not_end_the_others(monkeypatch):
  started = []

  class Worker:
    def __init__(self, make, sizes, as_gpu, *, environment, limit):
      started.append(as_gpu)
      self.as_gpu = as_gpu

    def ask(self, name, case, how, noises=(0.0,)):
      if self.as_gpu and case == "kernels":
        raise processes.Failed("the process ended by SIGABRT")
      return [{"loss": np.ones(1)} for _ in noises]

    def stop(self):
      started.append("stopped")

  monkeypatch.setattr(processes, "Apart", Worker)
  rows = check.check_values(
    None, ["losses", "kernels", "adam"], cpu=True, end=float("inf"), keep=lambda rows: None
  )
  assert [row["ok"] for row in rows] == [True, False, True]
  assert rows[1]["reason"] == "the process ended by SIGABRT"
  # The CPU's own, the device's, and another one after the first had ended.
  assert sorted(started[:3]) == [False, True, True] and started[3:] == ["stopped"] * 2
  rows = check.check_values(None, ["adam"], cpu=True, end=0.0, keep=lambda rows: None)
  assert rows[0]["reason"] == "no time is left"


def test_without_a_gpu_it_says_what_to_do(capsys):
  assert check.main([]) == 2
  error = capsys.readouterr().err
  assert "JAX finds no GPU here" in error and "--cpu" in error and error.count("\n") == 1
