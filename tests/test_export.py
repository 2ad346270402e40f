"""Exports: files that other libraries open, and what they put out beside what the models do."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import onnx
import onnxruntime
import optax
import pytest
import safetensors
from flax import nnx
from PIL import Image

from lus_jax import export, results
from lus_jax.data import copies, datasets
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import onnx_graph
from lus_jax.inference import trained as trained_lib
from lus_jax.models import layers, resnet, torch_weights
from lus_jax.report import schema, segmentation
from lus_jax.tasks.segmentation import train
from lus_jax.training import objective as objective_lib
from lus_jax.training import state as state_lib
from lus_jax.training.sweep import Sweep
from tests.report import conftest as made_up

# 32 does not divide it.
SIZE = 40
CLASSES = ("Pleuralinie ‖ 胸膜", "b|line `x`")
THRESHOLDS = (0.6, 0.0)
MEMBERS = ("softseg", "ordinal")
NAMES = ("threshold_0.6", "threshold_0", "softseg", "ordinal", "ordinal_0", "ordinal_0.6")


def make_config(**model):
  model = {"encoder": "toy", "width": 0.125, "dropout": 0.2, "dtype": "float32"} | model
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "data": {"image_size": SIZE, "name": "lus_folder", "dir": "/somewhere/private"},
      "model": model,
      "sweep": {"thresholds": THRESHOLDS, "seeds": 1, "strategy": "loop", "members": MEMBERS},
      "loss": {"name": "weighted_cross_entropy", "weights": "paper"},
      "calibration": "none",
    }
  )


def make_model(config):
  objective = objective_lib.Objective(config)
  sweep = Sweep(objective.of_all_seeds()[1], "loop")
  network, state = train.initial_state(
    config, objective, sweep, in_channels=1, classes=len(CLASSES), tx=optax.identity()
  )
  r = np.random.default_rng(0)

  def shaken(tree):
    return jax.tree.map(lambda x: x * r.uniform(0.7, 1.4, x.shape).astype(np.float32), tree)

  def moved(params):
    return jax.tree.map(
      lambda x: x + (0.1 * r.standard_normal(x.shape)).astype(np.float32), shaken(params)
    )

  state = [
    dataclasses.replace(
      one,
      best_params=moved(one.best_params),
      best_batch_stats=jax.tree.map(lambda x: abs(x) + 0.1, moved(one.best_batch_stats)),
    )
    for one in state
  ]
  dataset = {"name": "made_up", "version": "1", "classes": list(CLASSES), "split_unit": "patient"}
  return trained_lib.freeze(
    network, sweep, state, objective, config=config, dataset=dataset, patients={"train": ["Anna"]}
  )


def fit(method, n):
  """Calibrations of n views, each of its own."""
  r = np.random.default_rng(1)

  def table():
    x = np.sort(r.normal(0, 2, r.integers(2, 256)))
    return {"x": x.tolist(), "y": np.sort(r.random(len(x))).tolist()}

  return [
    {
      "method": method,
      "temperature": r.uniform(0.4, 3, len(CLASSES)).tolist(),
      "isotonic": [table() for _ in CLASSES],
    }
    for _ in range(n)
  ]


@pytest.fixture(scope="module")
def model():
  """Models with every kind of layer, few of each: more take longer to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.DEPTHS, "toy", ((1, 1, 1, 1), False))
    yield make_model(make_config())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """The results files of a run of these models: what a card says of it."""
  directory = tmp_path_factory.mktemp("runs") / "seg"
  options = {"classes": CLASSES, "thresholds": THRESHOLDS, "annotators": ("Dr. Anna", "B")}
  options["with_work"] = True
  more = {"others": MEMBERS, "raters": ("Dr. Clara",)}
  return made_up.write_results(directory, patients=4, more=more, **options)


@pytest.fixture
def call(workdir, model, monkeypatch):
  def call(trained=model, **options):
    monkeypatch.setattr(trained_lib, "load", lambda *args, **kwargs: trained)
    options = {"workdir": workdir, "compilation_cache": ""} | options
    return export.main(["export", *(f"--{key}={value}" for key, value in options.items())])

  return call


def make_inputs(n):
  """Frames of other kinds than those that the command checks with, and where they are."""
  r = np.random.default_rng(7)
  ramp = np.linspace(0, 1, SIZE)[:, None] * r.random((n, 1, SIZE))
  image = (ramp[..., None] * r.random((n, SIZE, SIZE, 1))).astype(np.float32)
  where = np.ones(image.shape, bool)
  where[:, :9] = where[:, 31:] = False
  return image, where


@pytest.fixture(scope="module")
def expected(model):
  """`expected(trained, image, where)`: what each view puts out."""
  compiled = {}

  def run(trained, image, where):
    views = zip(trained.views, trained.weights, trained.sweep.members, strict=True)
    return {
      view.name: np.asarray(
        compiled.setdefault(id(trained), jax.jit(trained.probability))(
          weights, own, image, where if trained.needs_where(view) else np.ones_like(where)
        )
      )
      for view, weights, own in views
    }

  return run


def run_onnx(file, image, where):
  session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
  names = [one.name for one in session.get_inputs()]
  (found,) = session.run(None, {name: {"image": image, "where": where}[name] for name in names})
  return found


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_onnx_puts_out_what_the_models_do(tmp_path, call, model, expected, method):
  trained = model.calibrated(fit(method, len(model.views)))
  out = tmp_path / "out"
  assert call(trained, out=out, format="onnx", members=",".join(NAMES)) == 0
  for n in (1, 5):
    image, where = make_inputs(n)
    for name, theirs in expected(trained, image, where).items():
      found = run_onnx(out / f"{name}.onnx", image, where)
      assert found.dtype == np.float32 and theirs.std() > 0.01
      # Where a table is steep it makes more of the rounding of a logit.
      np.testing.assert_allclose(found, theirs, atol=1e-3 if name == "softseg" else 1e-4)
      if name == "softseg":
        assert not found[:, :9].any()
  about = {one.key: one.value for one in onnx.load(out / "ordinal_0.6.onnx").metadata_props}
  assert json.loads(about["classes"]) == list(CLASSES)
  assert (about["meaning"], about["size"]) == ("P(confidence >= 0.6)", str(SIZE))
  record = json.loads((out / "export.json").read_text())
  assert record["members"][2]["takes_where"] and not record["members"][3]["takes_where"]


@pytest.fixture(scope="module")
def shrunk(model):
  """Models that see images half as large, which 32 does not divide either."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.DEPTHS, "toy", ((1, 1, 1, 1), False))
    return make_model(make_config(shrink=2))


def test_models_that_see_smaller_images_are_written_as_they_are(tmp_path, call, shrunk, expected):
  trained, out = shrunk.calibrated(fit("temperature", len(shrunk.views))), tmp_path / "out"
  assert call(trained, out=out, format="onnx,safetensors", members=",".join(NAMES)) == 0
  image, where = make_inputs(5)
  theirs = expected(trained, image, where)
  for name in NAMES:
    found = run_onnx(out / f"{name}.onnx", image, where)
    assert found.shape == (5, SIZE, SIZE, len(CLASSES)) and theirs[name].std() > 0.01
    np.testing.assert_allclose(found, theirs[name], atol=1e-3 if name == "softseg" else 1e-4)
  # Blocks of 2 x 2 pixels are one to the network.
  blocks = image.reshape(5, SIZE // 2, 2, SIZE // 2, 2, 1).mean((2, 4), keepdims=True)
  image = np.broadcast_to(blocks, (5, SIZE // 2, 2, SIZE // 2, 2, 1)).reshape(image.shape)
  same = run_onnx(out / "threshold_0.6.onnx", image, where)
  np.testing.assert_allclose(same, theirs["threshold_0.6"], atol=1e-4)
  assert json.loads((out / "export.json").read_text())["model"]["shrink"] == 2
  card = (out / "MODEL_CARD.md").read_text()
  assert "means over squares of 2 x 2 pixels" in card and "enlarge by 8 (bilinear" in card


@pytest.mark.parametrize("options", [{"refinements": 1}, {"refinements": 2, "shrink": 2}])
def test_refined_decoders_are_written_as_they_are(
  tmp_path, monkeypatch, call, expected, options, capsys
):
  monkeypatch.setitem(resnet.DEPTHS, "toy", ((1, 1, 1, 1), False))
  trained, out = make_model(make_config(**options)), tmp_path / "out"
  assert call(trained, out=out, format="onnx", members="threshold_0.6,ordinal_0.6") == 0
  image, where = make_inputs(3)
  theirs = expected(trained, image, where)
  for name in ("threshold_0.6", "ordinal_0.6"):
    assert theirs[name].std() > 0.01
    found = run_onnx(out / f"{name}.onnx", image, where)
    np.testing.assert_allclose(found, theirs[name], atol=1e-4)
  # PyTorch's packages have no such decoder.
  assert call(trained, out=tmp_path / "other", format="safetensors", members="threshold_0.6") == 2
  assert "segmentation_models_pytorch's FPN lacks the layers: details" in capsys.readouterr().err


READ_JAX = """
import sys
import jax, numpy as np
from jax import export
inputs = np.load(sys.argv[2])
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
names = ("image", "where")[: len(model.in_avals)]
found = [np.asarray(jax.jit(model.call)(*(inputs[x][:n] for x in names))) for n in (1, 3)]
np.savez(sys.argv[3], *found)
assert "lus_jax" not in sys.modules
print(*model.platforms)
"""


def test_jax_opens_in_a_process_without_us(tmp_path, call, model, expected):
  name = "softseg"
  trained = model.calibrated(fit("temperature", len(model.views)))
  assert call(trained, out=tmp_path / "out", format="jax", members=name) == 0
  file = tmp_path / "out" / f"{name}.jax"
  image, where = make_inputs(3)
  np.savez(tmp_path / "in.npz", image=image, where=where)
  read = subprocess.run(
    [sys.executable, "-c", READ_JAX, file, tmp_path / "in.npz", tmp_path / "found.npz"],
    env=os.environ | {"PYTHONPATH": ""},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert read.returncode == 0, read.stderr
  assert read.stdout.split() == ["cpu", "cuda"]
  with np.load(tmp_path / "found.npz") as found:
    for one in found.values():
      theirs = expected(trained, image, where)[name][: len(one)]
      np.testing.assert_allclose(one, theirs, atol=1e-4)
  # Neither where our code lies nor what is done on CPUs alone.
  content = file.read_bytes()
  assert b".py" not in content and os.fsencode(pathlib.Path(export.__file__).parent) not in content
  calls = set(re.findall(rb"custom_call[^@]*@(\w+)", content))
  assert calls <= {b"shape_assertion"}


def test_safetensors_hold_each_members_weights_once(tmp_path, call, model):
  trained = model.calibrated(fit("temperature", len(model.views)))
  out = tmp_path / "out"
  assert call(trained, out=out, format="safetensors", members=",".join(NAMES)) == 0
  assert sorted(x.stem for x in out.glob("*.safetensors")) == sorted((*NAMES[:3], "ordinal"))
  k, levels = len(CLASSES), len(THRESHOLDS)
  for name, number, head in (("threshold_0.6", 0, k), ("ordinal", 3, levels * k)):
    with safetensors.safe_open(out / f"{name}.safetensors", framework="np") as file:
      kernel = file.get_tensor("segmentation_head.0.weight")
      about = json.loads(file.metadata()["lus_jax"])
    ours = np.asarray(model.weights[number]["params"]["segmentation_head"]["kernel"])
    np.testing.assert_array_equal(kernel, ours.transpose(3, 2, 0, 1)[:head])
    assert about["classes"] == list(CLASSES)
    of = [view["name"] for view in about["views"]]
    assert of == ([name] if name != "ordinal" else list(NAMES[3:]))
    own = trained.sweep.members[number]["calibration"]["temperature"]
    np.testing.assert_array_equal(np.float32(about["views"][0]["temperature"]), own)


def contents(out):
  return {file.name: file.read_bytes() for file in out.iterdir()}


def test_the_same_command_writes_the_same_bytes_and_nothing_else_over_them(
  tmp_path, call, model, monkeypatch, capsys
):
  monkeypatch.setattr(export, "BATCHES", (5,))  # each is compiled for
  out = tmp_path / "a" / "out"
  options = {"out": out, "format": "onnx,jax,safetensors", "thresholds": "0"}
  assert call(**options) == 0
  first = contents(out)
  assert sorted(first) == ["MODEL_CARD.md", "export.json"] + [
    f"threshold_0.{kind}" for kind in ("jax", "onnx", "safetensors")
  ]
  assert call(**options) == 0
  assert contents(out) == first
  # The names of the parts of the directory say who somebody is.
  assert str(tmp_path).encode() not in b"".join(first.values())
  capsys.readouterr()

  def refused(message, **others):
    before = contents(out)
    assert call(**options | others) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert contents(out) == before and [x.name for x in out.parent.iterdir()] == ["out"]

  refused("holds another export (different: members)", thresholds="0.6")
  other = make_model(make_config(width=0.25))
  refused("holds another export (different: members, model)", trained=other)
  (out / "MODEL_CARD.md").write_text("Seen by the clinic's committee.")
  refused("MODEL_CARD.md would be lost")
  (out / "MODEL_CARD.md").write_bytes(first["MODEL_CARD.md"])
  (out / "notes.txt").write_text("mine")
  refused("notes.txt would be lost")
  (out / "notes.txt").unlink()
  (out / "export.json").write_text("[")
  refused("export.json is damaged")
  (out / "export.json").unlink()
  refused("holds other things")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"format": "tflite"}, "--format: 'tflite' is not known; choose of jax, onnx, safetensors."),
    ({"format": ""}, "--workdir, --out and --format are all needed"),
    ({"thresholds": ".5"}, "has the threshold 0.5; there are 0.6, 0."),
    ({"thresholds": "60%"}, "--thresholds=60%: write numbers, as .6,.5"),
    ({"members": "hard"}, "is called 'hard'; there are threshold_0.6, threshold_0, softseg"),
    ({"out": "file"}, "file is a file; name a directory."),
    ({"out": "file/out"}, "cannot be"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
  tmp_path, call, monkeypatch, capsys, options, message
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("file").write_text("mine")
  assert call(**{"out": "out", "format": "safetensors"} | options) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith("error: ") and message in line
  assert [x.name for x in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named(tmp_path, call, monkeypatch, capsys, library):
  monkeypatch.setitem(sys.modules, library, None)
  assert call(out=tmp_path / "out", format="onnx") == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert f"--format=onnx needs {library}, which is not installed; pip install" in line
  assert not (tmp_path / "out").exists()


def test_a_file_that_differs_is_not_written(tmp_path, call, monkeypatch, capsys):
  written = onnx_graph.model

  def wrong(*args, **options):
    made = written(*args, **options)
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    (kernel,) = (x for x in made.graph.initializer if x.name == conv.input[1])
    kernel.CopyFrom(
      onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * 1.02, kernel.name)
    )
    return made

  monkeypatch.setattr(onnx_graph, "model", wrong)
  assert call(out=tmp_path / "out", format="safetensors,onnx", thresholds="0.6") == 2
  assert "threshold_0.6.onnx differs from what the model puts out, by" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_layers_that_onnx_cannot_be_written_of_are_refused(model, toy_trained):
  with pytest.raises(UserError, match="how to write ToySegmentation; leave onnx out"):
    toy = toy_trained([0])
    toy.config.data = ml_collections.ConfigDict({"image_size": SIZE})
    onnx_graph.model(toy, 0, meaning="")
  weights = model.weights[0]
  network = model.network.module(weights["params"], weights["batch_stats"])
  network.encoder.gate = layers.Conv(1, 1, 1, dtype=np.float32, rngs=nnx.Rngs(0))
  more = state_lib.Network(network)
  odd = dataclasses.replace(
    model, network=more, weights=[{"params": more.params, "batch_stats": more.batch_stats}]
  )
  with pytest.raises(UserError, match="how to write encoder.gate; leave onnx out"):
    onnx_graph.model(odd, 0, meaning="")
  with pytest.raises(UserError, match="lacks the layers: encoder.gate.kernel; leave"):
    torch_weights.state_dict(more.params, more.batch_stats)


def test_a_run_in_bfloat16_is_written_in_float32(tmp_path, call, model):
  low = make_model(make_config(dtype="bfloat16"))
  low = dataclasses.replace(low, weights=model.weights)
  assert call(low, out=tmp_path / "out", format="onnx", thresholds="0.6") == 0
  image, where = make_inputs(2)
  own, weights = model.sweep.members[0], model.weights[0]
  theirs = jax.jit(model.probability)(weights, own, image, np.ones_like(where))
  found = run_onnx(tmp_path / "out" / "threshold_0.6.onnx", image, where)
  np.testing.assert_allclose(found, theirs, atol=1e-4)
  assert "Trained and scored in bfloat16" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_the_card_says_what_was_trained_on_whom_and_names_nobody(tmp_path, workdir, call):
  out = tmp_path / "out"
  assert call(out=out, format="safetensors", members="threshold_0.6,ordinal") == 0
  card = (out / "MODEL_CARD.md").read_text()
  for words in (
    "**For research. Not a medical device; no figure here says anything about a patient.**",
    "# FPN toy, trained on made_up",
    "0 `Pleuralinie ‖ 胸膜`",
    "| test | 4 | 6 | 6 |",
    "Drawn by 2 annotators.",
    "simulated frames: nothing about patients.",
    "These have no intervals: they are of 4 test patients. That is too few",
    "| ordinal |",
    "humans, mean",
    "segmentation_models_pytorch has no such network",
    "levels of 2 classes, the lowest first",
    "lus_jax is Apache-2.0",
    "--format=safetensors",
    "threshold_0.6.safetensors",
  ):
    assert words in card, words
  stored = json.loads((workdir / "results" / "dataset.json").read_text())["annotators"]
  n = [sum(row[key] for row in stored) for key in ("labels", "prelabelled", "untouched")]
  assert f"Of {n[0]} masks {n[1]} began as a model's; {n[2]} of these nobody touched." in card
  assert "Masks left out, and why: 3 replaced, 17 untouched." in card
  record = (out / "export.json").read_text()
  for name in ("Anna", "Clara", "private", "p0"):
    assert name not in card and name not in record
  for file in out.glob("*.safetensors"):
    assert json.loads(record)["files"][file.name]["sha256"] in card


def test_notes_on_persons_go_out_as_counts(tmp_path, workdir, call):
  pixels = np.random.default_rng(0).integers(0, 256, 32, np.uint8)[None]
  looks = copies.Looks(["v_1", "v_2"], ["Zoe Q", "zoe_q"], ["train", "test"], [pixels, pixels])
  bare = datasets.Dataset("made_up", "1", CLASSES, (), "patient", {}, {})
  told = list(copies.among(looks))
  found = copies.noted(bare, told)
  assert "Zoe Q and zoe_q look" in told[0].named and "v_1 of patient 'Zoe Q'" in told[1].named
  content = results.read(workdir, "segmentation")
  run = shutil.copytree(workdir, tmp_path / "run")
  changed = json.dumps(content | {"notes": found.notes})
  (run / "results" / "segmentation.json").write_text(changed)
  stored = json.loads((run / "results" / "dataset.json").read_text())
  (run / "results" / "dataset.json").write_text(
    json.dumps(stored | {"copies": copies.stored(found)})
  )
  out = tmp_path / "out"
  assert call(workdir=run, out=out, format="safetensors", members="threshold_0.6") == 0
  card = (out / "MODEL_CARD.md").read_text()
  assert "2 names of patients look like one name" in card
  assert "2 patients have near-identical frames" in card
  for name in ("Zoe", "zoe", "v_1", "v_2"):
    assert name not in card and name not in (out / "export.json").read_text()
  # The run's own page says who; predictions have the notes of the results alone.
  files = {name: schema.read(run, name) for name in ("segmentation", "dataset")}
  assert segmentation.summary(files)["notes"] == [one.named for one in told]


def test_no_rater_is_named_in_a_command(workdir, tmp_path, call):
  names = ["rater(Lee)", "rater (Lee)", "rater('Lee (A.)')", "rater('Dr. (A) Lee')"]
  names += ['rater("Lee (A), B (Lee)")', "rater(A) Lee", "rater(A\n) Lee"]
  option, words = "--config.sweep.members", ["python", "-m", "lus_jax.main"]
  for name in names:
    both = ("soft", name, "random_rater")
    words += [f"{option}={both}", f"{option}={name}", f"{option}={name!r}", option, str(both)]
  run = shutil.copytree(workdir, tmp_path / "run")
  (run / "run.json").write_text(json.dumps({"command": [*words, "--config.seed=3"]}))
  out = tmp_path / "out"
  assert call(workdir=run, out=out, format="safetensors", members="threshold_0.6") == 0
  card = (out / "MODEL_CARD.md").read_text()
  assert "Lee" not in card and card.count("rater(...)") == 4 * len(names)
  assert card.count("random_rater") == 2 * len(names) and "--config.seed=3" in card


def test_what_kills_left_is_removed_and_nothing_else(tmp_path, call):
  gone = subprocess.Popen(["true"])
  gone.wait()

  def left(name, *inside):
    folder = tmp_path / name
    folder.mkdir()
    for one in inside:
      (folder / one).write_text("x")
    return folder

  known = ("MODEL_CARD.md", "a.onnx", f"b.jax.{gone.pid}.tmp")
  ours = [
    left(f".{gone.pid}.out", *known),
    left(".4194999.out"),
    left(f".{os.getpid()}.out", "a.onnx"),
  ]
  others = [
    left(f".{os.getppid()}.out", "a.onnx"),  # still runs
    left(f".{gone.pid}.out2", "a.onnx"),
    left(".4194998.out", "a.onnx", "thesis.tex"),
    left(".0.out", "a.onnx"),
  ]
  assert call(out=tmp_path / "out", format="safetensors", members="threshold_0.6") == 0
  assert not any(one.exists() for one in ours) and all(one.exists() for one in others)


def test_weights_that_put_out_something_else_are_refused(
  tmp_path, call, model, monkeypatch, capsys
):
  trained = model.calibrated(fit("temperature", len(model.views)))
  out = tmp_path / "out"
  assert call(trained, out=out, format="safetensors", members=",".join(NAMES)) == 0
  differences = {
    one["difference"]
    for name, one in json.loads((out / "export.json").read_text())["files"].items()
    if name.endswith(".safetensors")
  }
  assert differences == {"0"}
  card = (out / "MODEL_CARD.md").read_text()
  assert "put back into lus_jax's network" in card and "PyTorch did not run them" in card
  loads = json.loads
  capsys.readouterr()

  def cooler(text, **options):
    found = loads(text, **options)
    for view in found.get("views", []) if isinstance(found, dict) else []:
      view["temperature"] = [1.5 * x for x in view["temperature"]]
    return found

  monkeypatch.setattr(export.json, "loads", cooler)
  options = {"out": tmp_path / "b", "format": "safetensors", "members": "threshold_0.6"}
  assert call(trained, **options) == 2
  assert "differs from what the model puts out" in capsys.readouterr().err
  assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_the_cards_pytorch_is_the_model(tmp_path, torch, call, monkeypatch):
  smp = pytest.importorskip("segmentation_models_pytorch")
  trained = make_model(make_config(encoder="resnet18", width=1.0))
  trained = trained.calibrated(fit("temperature", len(trained.views)))
  out = tmp_path / "out"
  assert call(trained, out=out, format="safetensors", members="threshold_0,ordinal") == 0
  card = (out / "MODEL_CARD.md").read_text()
  (lines,) = re.findall(r"```python\n(import json.*?)```", card, re.S)
  image, where = make_inputs(2)
  monkeypatch.chdir(out)
  found = {"image": torch.from_numpy(image).movedim(-1, 1)}
  exec(lines, found)
  (view,) = found["about"]["views"]
  temperature = torch.tensor(view["temperature"])[:, None, None]
  probability = torch.sigmoid(found["logits"] / temperature).movedim(1, -1).numpy()
  run, everywhere = jax.jit(trained.probability), np.ones_like(where)
  theirs = run(trained.weights[1], trained.sweep.members[1], image, everywhere)
  np.testing.assert_allclose(probability, theirs, atol=1e-4)
  # The ordinal one has as many classes as its head has outputs, and what it does is in words.
  k = len(CLASSES) * len(THRESHOLDS)
  ordinal = smp.FPN("resnet18", encoder_weights=None, in_channels=1, classes=k)
  with safetensors.safe_open("ordinal.safetensors", framework="pt") as file:
    names = file.keys()
    ordinal.load_state_dict({name: file.get_tensor(name) for name in names})
    (view,) = json.loads(file.metadata()["lus_jax"])["views"]
  enlarge, ordinal.segmentation_head[1] = ordinal.segmentation_head[1], torch.nn.Identity()
  with torch.no_grad():
    low, high = ordinal.eval()(found["image"]).chunk(2, dim=1)
    low, high = enlarge(low), enlarge(low - torch.nn.functional.softplus(high))
    low, high = (torch.sigmoid(x[..., :SIZE, :SIZE]) for x in (low, torch.minimum(low, high)))
  # Of the thresholds 0 and .6: their distances to the level below are 0 and .6.
  logits = torch.logit((0.6 * high).clamp(1e-6, 1 - 1e-6))
  temperature = torch.tensor(view["temperature"])[:, None, None]
  probability = torch.sigmoid(logits / temperature).movedim(1, -1).numpy()
  theirs = run(trained.weights[3], trained.sweep.members[3], image, everywhere)
  np.testing.assert_allclose(probability, theirs, atol=1e-4)
  assert f"the {k} channels are 2 levels of 2 classes" in card


@pytest.mark.parametrize(("name", "shape"), [("threshold_0", (61, 33)), ("softseg", (20, 47))])
def test_the_cards_lines_run(tmp_path, call, model, monkeypatch, expected, name, shape):
  out = tmp_path / "out"
  assert call(out=out, format="onnx", members=name) == 0
  frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  monkeypatch.chdir(out)
  Image.fromarray(frame).save("frame.png")
  (lines,) = re.findall(
    r"```python\n(import numpy.*?)```", (out / "MODEL_CARD.md").read_text(), re.S
  )
  found = {}
  exec(lines, found)
  image, box = frames_lib.fit(frame[None], SIZE)
  np.testing.assert_allclose(found["image"], image, atol=1e-7)
  where = np.zeros(image.shape, bool)
  inside = np.s_[box[0] : box[2], box[1] : box[3]]
  where[0, *inside] = True
  theirs = expected(model, image, where)[name][0][inside]
  np.testing.assert_allclose(found["maps"], theirs, atol=1e-4)
