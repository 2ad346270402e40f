import json
from types import SimpleNamespace

import jax
import pytest

from lus_jax import parallel
from lus_jax.benchmarks import cards, processes
from lus_jax.benchmarks import compile as compile_lib

# As XLA writes it, shortened: a convolution and its two gradients, a fusion that reads a slice of a
# large array, a loop, a conditional and what launches nothing.
HLO = """HloModule jit_step, is_scheduled=true

%fused_slice (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds.1 = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%fused_whole (p0.1: f32[100,8]) -> f32[8] {
  %p0.1 = f32[100,8]{1,0} parameter(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%p0.1), dimensions={0}, to_apply=%add
}

%body (state: (f32[8])) -> (f32[8]) {
  %state = (f32[8]{0}) parameter(0)
  %gte.1 = f32[8]{0} get-tuple-element(%state), index=0
  %negate.1 = f32[8]{0} negate(%gte.1)
  ROOT %tuple.1 = (f32[8]{0}) tuple(%negate.1)
}

%small (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%x.1)
}

%large (x.2: f32[8]) -> f32[8] {
  %x.2 = f32[8]{0} parameter(0)
  %exp.1 = f32[8]{0} exponential(%x.2)
  ROOT %exp.2 = f32[8]{0} exponential(%exp.1)
}

ENTRY %main (a: bf16[2,10,10,4], k: bf16[8,3,3,4], big: f32[100,8], i: s32[]) -> f32[8] {
  %a = bf16[2,10,10,4]{3,2,1,0} parameter(0)
  %k = bf16[8,3,3,4]{3,2,1,0} parameter(1)
  %big = f32[100,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %conv.1 = (bf16[2,5,5,8]{3,2,1,0}, u8[0]{0}) custom-call(%a, %k),\
 window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f,\
 custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/conv"}
  %y = bf16[2,5,5,8]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[2,10,10,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=3x3},\
 dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %conv.3 = (bf16[8,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%a, %y), window={size=3x3},\
 dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %slice_fusion = f32[1,8]{1,0} fusion(%big, %i), kind=kLoop, calls=%fused_slice
  %whole_fusion.7 = f32[8]{0} fusion(%big), kind=kInput, calls=%fused_whole
  %tuple.2 = (f32[8]{0}) tuple(%whole_fusion.7)
  %while.1 = (f32[8]{0}) while(%tuple.2), condition=%cond, body=%body,\
 backend_config={"known_trip_count":{"n":"5"}}
  %gte.2 = f32[8]{0} get-tuple-element(%while.1), index=0
  ROOT %branch.1 = f32[8]{0} conditional(%i, %gte.2, %gte.2), branch_computations={%small, %large}
}
"""


def test_kernels_their_bytes_and_flop_are_read_from_the_program():
  found = cards.kernels(HLO)
  kinds = [k.kind for k in found]
  convolutions = [f"custom-call __cudnn$conv{x}" for x in ("Forward", "BackwardInput")]
  convolutions.append("custom-call __cudnn$convBackwardFilter")
  # The loop's body five times, and of the branches the one that moves more.
  assert kinds == [
    *convolutions,
    "fusion fused_slice",
    "fusion fused_whole",
    *["negate"] * 5,
    *["exponential"] * 2,
  ]
  image, kernel, result = 2 * 10 * 10 * 4 * 2, 8 * 3 * 3 * 4 * 2, 2 * 5 * 5 * 8 * 2
  assert [k.moved for k in found[:3]] == [image + kernel + result] * 3
  # Multiply and add apart: 2 x 25 positions, 9 taps, 4 channels, 8 outputs.
  assert [k.flop for k in found] == [2 * 2 * 25 * 9 * 4 * 8] * 3 + [0] * 9
  # A row of the large array and the number of it; then the whole of it.
  assert [k.moved for k in found[3:5]] == [8 * 4 + 4 + 8 * 4, 800 * 4 + 8 * 4]
  assert found[0].shape == "bf16[2,5,5,8]" and found[0].source == "jit(step)/conv"
  assert cards.by_kind(found)[0] == ("fusion fused_whole", 1, 3232)


def test_a_guess_takes_the_longer_of_bytes_and_flop_of_every_kernel():
  card = cards.CARDS["h200"]
  moved, flop = 10**9, 10**12
  kernels = [
    cards.Kernel("a", moved, 0, "", ""),
    cards.Kernel("b", moved, flop, "", ""),
    cards.Kernel("c", 8, 0, "", ""),
  ]
  expected = moved / (0.9 * 4.8e12) + flop / (0.52 * 989e12) + 2.5e-6
  assert cards.seconds(kernels, card, "bfloat16") == pytest.approx(expected)
  # Float32 goes through the matrix units rounded, at half the rate.
  assert cards.seconds(kernels[1:2], card, "float32") == pytest.approx(flop / (0.52 * 494e12))


def rows(*options):
  return compile_lib.rows_of(compile_lib.parse(options))


def test_every_program_of_a_run_is_compiled_by_default():
  found = rows()
  names = {(row["what"], row["program"]) for row in found}
  assert names == {(w, p) for w, programs in compile_lib.PROGRAMS.items() for p in programs}
  assert {row["target"] for row in found} == {"h100"}
  by_name = {(r["what"], r["program"], r["strategy"]): r for r in found}
  train = by_name["fpn", "train", "loop"]
  assert (train["size"], train["batch"], train["members"]) == (512, 16, 7)
  assert by_name["tsm", "train_sf_ratio", "grouped"]["size"] == 224
  # What belongs to no member has no strategy.
  assert len([r for r in found if r["program"] == "resize"]) == 1
  several = rows("--what=fpn", "--program=train", "--strategy=loop,sharded8", "--target=a100,a6000")
  assert [(r["target"], r["strategy"]) for r in several] == [
    ("a100", "loop"),
    ("a100", "sharded8"),
    ("a6000", "loop"),
    ("a6000", "sharded8"),
  ]


def test_without_cudas_plugin_one_line_says_what_is_missing(monkeypatch, capsys):
  monkeypatch.setattr(cards.importlib.util, "find_spec", lambda name: None)
  assert compile_lib.main(["--what=fpn"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "pip install 'lus_jax[cuda12]'" in line and "no GPU" in line


@pytest.fixture
def plugin(monkeypatch):
  monkeypatch.setattr(cards, "check", lambda: None)


def test_an_abort_is_a_row_and_not_the_end(plugin, monkeypatch, tmp_path, capsys):
  ok = {
    "kernels": 3,
    "gigabytes": 1.5,
    "flop": 2e9,
    "memory_gib": 2.0,
    "memory_share": 0.02,
    "bandwidth_ms": 0.4,
    "matrix_ms": 0.1,
    "guess_ms": 0.6,
    "members_at_once": 1,
    "peak_share": 0.25,
    "compile_s": 7.0,
  }
  done = [
    processes.Failed("the process ended by SIGABRT: triton.cc:9] Check failed: a == b (1 vs. 2)"),
    processes.Failed("JaxRuntimeError: no tiles"),
    ok,
  ]

  def call(function, args, *, environment, limit):
    assert function is compile_lib.compile_row and environment["JAX_PLATFORMS"] == "cpu"
    found = done.pop(0)
    if isinstance(found, Exception):
      raise found
    return found

  monkeypatch.setattr(processes, "call", call)
  out = tmp_path / "rows.json"
  options = ["--what=fpn", "--program=augment,train,keep_best", f"--out={out}"]
  assert compile_lib.main(options) == 1
  written = json.loads(out.read_text())["rows"]
  assert [row["ok"] for row in written] == [False, False, True]
  assert "SIGABRT: triton.cc:9] Check failed" in written[0]["reason"]
  assert written[1]["reason"] == "JaxRuntimeError: no tiles"
  assert written[2]["jax"] == jax.__version__ and "hlo" not in written[2]
  printed = capsys.readouterr().out
  assert "| fpn augment | h100 |  | not measured: the process ended by SIGABRT" in printed
  assert "| fpn keep_best | h100 | loop | 3 | 1.50 | 2 | 2.00 (2%) | 0.40 | 0.10 |" in printed


@pytest.fixture
def on_cpus(monkeypatch, toy_networks):
  """Compiles for the two CPU devices of the tests what is meant for a described GPU."""
  monkeypatch.setattr(cards, "describe", lambda card, devices=1: jax.devices()[:devices])


EVERY = [(what, name) for what, names in compile_lib.PROGRAMS.items() for name in names]


@pytest.mark.parametrize(("what", "program"), EVERY)
def test_programs_are_made_of_shapes_alone(on_cpus, what, program):
  (row,) = rows(
    *(f"--what={what}", f"--program={program}", "--strategy=loop", "--size=32", "--batch=4"),
    *("--classes=2", "--members=2", "--dtype=float32"),
  )
  compiled = compile_lib.Absent(SimpleNamespace(**row)).program()
  assert compiled.memory_analysis().argument_size_in_bytes > 0


@pytest.mark.parametrize(("strategy", "leading"), [("grouped", 2), ("vmap", 2), ("sharded2", 2)])
def test_every_strategy_is_compiled_as_the_sweep_runs_it(on_cpus, strategy, leading):
  (row,) = rows(
    *("--what=fpn", "--program=train", f"--strategy={strategy}", "--size=32", "--batch=4"),
    *("--classes=2", "--members=2", "--dtype=float32"),
  )
  absent = compile_lib.Absent(SimpleNamespace(**row))
  compiled = absent.program()
  (state, *_), _ = compiled.in_avals
  assert {x.shape[0] for x in jax.tree.leaves(state)} == {leading}
  assert absent.members_on_device == (1 if strategy == "sharded2" else 2)


@pytest.mark.parametrize(("layout", "leading", "share"), [("2x1", 2, 1), ("1x2", 1, 0.5)])
def test_layouts_are_compiled_whatever_the_members(on_cpus, layout, leading, share):
  (row,) = rows(
    *("--what=fpn", "--program=train", f"--strategy={layout}", "--size=32", "--batch=4"),
    *("--classes=2", "--members=3", "--dtype=float32"),
  )
  absent = compile_lib.Absent(SimpleNamespace(**row))
  (state, *_), _ = absent.program().in_avals
  assert {x.shape[0] for x in jax.tree.leaves(state)} == {leading}
  assert absent.members_on_device == share


def test_layouts_are_compared_by_what_all_members_take():
  def row(strategy, ms):
    named = {"what": "fpn", "program": "train", "members": 7, "ok": True}
    return named | {"strategy": strategy, "guess_ms": ms}

  guesses = {"8x1": 7.0, "4x2": 4.0, "2x4": 3.0, "1x8": 2.5, "2x1": 7.0, "1x2": 4.0}
  eight, two = compile_lib.layouts([row(*x) for x in guesses.items()] + [row("loop", 7.0)])
  assert eight == (
    "fpn train, 7 members on 8 devices: 8x1 1 x 7.0 = 7.0 ms (12% empty), 4x2 2 x 4.0 = 8.0 ms "
    "(12% empty), 2x4 4 x 3.0 = 12.0 ms (12% empty), 1x8 7 x 2.5 = 17.5 ms (0% empty), "
    "1x8 + 2x4 + 4x2 = 9.5 ms (none empty)"
  )
  assert two.endswith("1x2 + 2x1 + 2x1 + 2x1 = 25.0 ms (none empty)")
  # Whatever the members, a round of a layout is one.
  for m, n in compile_lib.LAYOUTS.values():
    assert parallel.mesh_shape(m, m * n) == (m, n)


def test_what_cards_do_together_takes_the_link():
  card = cards.CARDS["a6000"]
  small, large = (cards.Kernel("all-reduce-start add", n, 0, "", "") for n in (8, 320_000_000))
  assert cards.seconds([small], card, "bfloat16") == pytest.approx(12e-6)
  assert cards.seconds([large], card, "bfloat16") == pytest.approx(0.01)


def test_what_a_program_costs_counts_the_flop_of_its_members():
  row = SimpleNamespace(**rows("--what=fpn", "--program=train")[0])
  # 54.0 GFLOP an image forward (performance of the paper's network), three times for training.
  assert compile_lib.flop_of(row, members_at_once=1) == pytest.approx(3 * 54.0e9 * 16, rel=2e-3)
  row.program = "keep_best"
  assert compile_lib.flop_of(row, members_at_once=1) == 0


def test_the_papers_study_is_predicted_from_its_programs_alone():
  names = [name for calls in compile_lib.CALLS.values() for name in calls]
  made = [
    {"what": w, "program": p, "ok": True, "guess_ms": 2.0, "members_at_once": 1} for w, p in names
  ]
  mapped = made[names.index(("tsm", "train_sf_ratio"))] | {"guess_ms": 9.0, "members_at_once": 9}
  sweep, tasks, both = compile_lib.predict([*made, mapped])
  # 2,200 steps of 7 models by 2 ms; 700 steps of 45 networks by 1 ms.
  assert "fpn train 31," in sweep and "tsm train_sf_ratio 32," in tasks
  seconds = [int(line.split(": ")[1].split()[0]) for line in (sweep, tasks)]
  assert both == f"together {sum(seconds) / 60:.0f} min"
  assert compile_lib.predict(made[1:]) == []
