"""The models of a finished run as files that other programs run, with a model card.

  python -m lus_jax.export --workdir runs/seg --out model --format onnx,jax --thresholds .6

(or `--members soft,ordinal` for what was trained beside the thresholds) writes

  model/MODEL_CARD.md               what learned what, its scores and limits, how it is run
  model/export.json                 the same for programs
  model/threshold_0.6.onnx          frames [batch, S, S, 1] in [0, 1] to calibrated probabilities
  model/threshold_0.6.jax           the same, of jax.export, for CPUs and NVIDIA GPUs
  model/threshold_0.6.safetensors   the weights, by the names of segmentation_models_pytorch's FPN

Each file is opened again and compared with what the models put out here (weights are put back into
our own network, as PyTorch is not needed); where one differs, or anything else fails, nothing is
written.
"""

import copy
import functools
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import shutil
import sys

import jax
import numpy as np
from jax import numpy as jnp

from lus_jax import command_line, files, progress, results
from lus_jax.errors import UserError
from lus_jax.inference import trained as trained_lib
from lus_jax.inference import views as views_lib
from lus_jax.media import writers
from lus_jax.models import backend, designs, torch_weights
from lus_jax.report import model_card
from lus_jax.training.members import WHOLE
from lus_jax.words import plural

SCHEMA = 1
RECORD, CARD = "export.json", "MODEL_CARD.md"
FORMATS = ("jax", "onnx", "safetensors")
# The libraries that write and check a format, which not everybody has.
_LIBRARIES = {"jax": ("flatbuffers",), "onnx": ("onnx", "onnxruntime"), "safetensors": ()}
# Random frames that files are checked on, and in which batches.
_FRAMES, BATCHES = 5, (1, 5)
TOLERANCE = 1e-4
# By so much, relative to the largest, rounding may move a logit; what a steep calibration makes of
# that is no mistake of a file.
_ROUNDING = 1e-5
# What of a record says how it was made, and not what it is of.
_STATE = ("files", "versions", "licence")
# What of a data set's summary is told.
_DATASET = ("name", "version", "split_unit", "splits", "has_scan_areas")


def run(*, workdir, out, formats, thresholds=None, members=None):
  """Writes the models of a run for other programs, whole or not at all.

  Args:
    workdir: of a finished segmentation run.
    out: a directory: a new one, an empty one, or that of the same export, which is written again.
    formats: of `FORMATS`.
    thresholds: which of the run's thresholds; all by default, none where there are `members`.
    members: names of members beside the thresholds, as in `results/members.json`.

  Returns:
    What `export.json` says.

  Raises:
    UserError: the run, an argument or the directory is not in order, a library is missing, or a
      file does not put out what the models do.
  """
  formats = _check_formats(formats)
  workdir = os.path.expanduser(workdir)
  trained = trained_lib.load(workdir, every=members is not None, option="--workdir")
  trained = trained.only(views_lib.choose(trained, thresholds, members, workdir))
  others = trained.objective.members[trained.objective.n_thresholds :]
  if thresholds is members is None and others:
    print(f"left out: {', '.join(one.name for one in others)}; name them with --members")
  record = _describe(trained, formats)
  record["versions"]["trained"] = results.read(workdir, "segmentation")["versions"]
  out = pathlib.Path(out).expanduser().resolve()
  try:
    _check_directory(out, record)
    _remove_leftovers(out)
    with writers.written(out) as folder:
      folder.mkdir()
      record["files"] = _write_all(trained.in_float32(), record["members"], folder)
      files.write_text(folder / CARD, model_card.make(workdir, record))
      record["files"][CARD] = _measured(folder / CARD)
      files.write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror or error}).") from error
  return record


def _check_formats(formats):
  for name in formats:
    if name not in FORMATS:
      raise UserError(f"--format: '{name}' is not known; choose of {', '.join(FORMATS)}.")
    for library in _LIBRARIES[name]:
      try:
        importlib.import_module(library)
      except ModuleNotFoundError as error:
        raise UserError(
          f"--format={name} needs {error.name}, which is not installed; "
          "pip install 'lus_jax[export]'."
        ) from error
  return list(dict.fromkeys(formats))


def _describe(trained, formats):
  """What is exported, before anything is written."""
  config, objective = trained.config, trained.objective
  # Not all of it: names of people may be there.
  dataset = {k: trained.dataset[k] for k in _DATASET if k in trained.dataset}
  model, design = config.model, designs.segmentation(config.model)
  described = []
  for view, own, fingerprint in zip(
    trained.views, trained.sweep.members, trained.fingerprints, strict=True
  ):
    member = objective.member_of(view)
    names = {"safetensors": member.name}
    described.append(
      {
        "name": view.name,
        "meaning": views_lib.meaning(trained, view),
        "target": member.target,
        "threshold": view.threshold,
        "plain": objective.is_plain(view),
        "takes_where": trained.needs_where(view),
        "outputs": len(trained.classes) * (objective.head if member.target == "ordinal" else 1),
        "calibration": {k: np.asarray(v).tolist() for k, v in own.get("calibration", {}).items()},
        "fingerprint": fingerprint,
        "files": {kind: f"{names.get(kind, view.name)}.{kind}" for kind in formats},
      }
    )
  return {
    "schema": SCHEMA,
    "formats": formats,
    "members": described,
    "classes": list(trained.classes),
    "image_size": config.data.image_size,
    "levels": list(objective.levels),
    "calibration": config.get("calibration", "none"),
    "model": {"title": design.title, "encoder": model.encoder, "width": model.width}
    | ({"shrink": design.shrink} if design.shrink > 1 else {})
    | ({"refinements": design.refinements} if design.refinements else {}),
    "trained_in": model.dtype,
    "initial": pathlib.PurePath(model.get("init_from", "")).name,
    "dataset": dataset,
    "simulated": config.data.name == "lus_phantom",
    "licence": _licence(config.data),
    "versions": {"trained": {}, "exported": _versions(formats)},
    "checked_on": _FRAMES,
    "batches": list(BATCHES),
  }


def _versions(formats):
  libraries = {name for one in formats for name in (one, *_LIBRARIES[one])} - {"jax"}
  return results.versions() | {x: importlib.metadata.version(x) for x in sorted(libraries)}


def _licence(config):
  """What is known of the licence of a run's data, in words."""
  if config.name == "lus_phantom":
    return "simulated by lus_jax, Apache-2.0"
  try:
    return str(json.loads((pathlib.Path(config.dir) / "dataset.json").read_text())["licence"])
  except (OSError, ValueError, KeyError, TypeError):
    return "not known here, ask who gave you the data"


def _check_directory(out, record):
  """Refuses a directory that holds anything but this very export, unchanged (`UserError`)."""
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file; name a directory.")
  present = sorted(x.name for x in out.iterdir()) if out.exists() else []
  if not present:
    return
  if RECORD not in present:
    raise UserError(f"--out={out} holds other things; name a new or empty directory.")
  try:
    theirs = json.loads((out / RECORD).read_text())
    ours = json.loads(json.dumps(record))
    different = [k for k in ours if k not in _STATE and theirs.get(k) != ours[k]]
    known = {name: [one["bytes"], one["sha256"]] for name, one in theirs["files"].items()}
  except (TypeError, AttributeError, KeyError, ValueError) as error:
    raise UserError(f"{out / RECORD} is damaged; name another --out, or remove {out}.") from error
  if different:
    raise UserError(
      f"--out={out} holds another export (different: {', '.join(different)}); name another "
      "directory, or remove it."
    )
  found = files.measure(out)
  # A card is there to be added to.
  odd = [name for name in present if name != RECORD and found.get(name) != known.get(name)]
  if odd:
    raise UserError(
      f"--out={out}: {', '.join(odd[:5])} would be lost, which this command did not write so; name "
      "another directory, or move it away."
    )


def _remove_leftovers(out):
  """Removes what kills left of exports to this directory, beside it, under temporary names."""
  known = re.compile(
    rf"({re.escape(CARD)}|{re.escape(RECORD)}|.+\.({'|'.join(FORMATS)}))(\.\d+\.tmp)?"
  )
  for path in out.parent.iterdir() if out.parent.is_dir() else ():
    number = writers.process_of(path, out)
    if number is None or path.is_symlink() or not path.is_dir() or _runs(number):
      continue
    # Who knows what else may be called so.
    if all(known.fullmatch(one.name) and one.is_file() for one in path.iterdir()):
      shutil.rmtree(path)


def _runs(number):
  """Whether another process of this number runs here; in containers all have the same few."""
  if number == os.getpid():
    return False
  try:
    os.kill(number, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass
  return True


def _write_all(trained, described, folder):
  """Writes and checks the files of all views; a dict by name of what is known of each."""
  written = {}
  reference = jax.jit(_make_reference(trained))
  write_weights = functools.partial(_write_safetensors, reference)
  writer_of = {"jax": _write_jax, "onnx": _write_onnx, "safetensors": write_weights}
  total = len({name for one in described for name in one["files"].values()})
  with progress.bar(total=total, unit="file", what="exporting", delay=5) as bar:
    for i, one in enumerate(described):
      inputs = _random_frames(trained.config.data.image_size, one["takes_where"])
      # As on a CPU, on which files are checked: else GPUs round to fewer digits.
      with jax.default_matmul_precision("highest"):
        found = reference(trained.weights_of(i), trained.sweep.members[i], inputs)
        expected = jax.device_get(found)
      for kind, name in one["files"].items():
        # The views of one member share its weights.
        if name not in written:
          difference = writer_of[kind](trained, i, folder / name, inputs, expected)
          written[name] = _measured(folder / name) | {"difference": _rounded_up(difference)}
          bar.update()
  return written


def _make_reference(trained):
  """`(weights, own, inputs)` to a view's probabilities and how far rounding may move each."""

  def reference(weights, own, inputs):
    raw, _ = trained.objective.logits(
      trained.network, weights["params"], weights["batch_stats"], inputs["image"]
    )

    def probability(raw):
      return jnp.where(inputs["where"], jax.nn.sigmoid(trained.finish(raw, own, inputs)), 0)

    signs = jax.random.rademacher(jax.random.key(0), (2, *raw.shape), raw.dtype)
    rounding = _ROUNDING * jnp.max(jnp.abs(raw)) * jnp.concatenate([0 * signs[:1], signs, -signs])
    found = jax.lax.map(probability, raw[None] + rounding)
    return found[0], jnp.max(jnp.abs(found - found[:1]), axis=0)

  return reference


def _random_frames(size, takes_where):
  """Textures of blocks and noise, [n, size, size, 1] in [0, 1], and where the frame is."""
  r = np.random.default_rng(0)
  coarse = (
    r.random((_FRAMES, 8, 8, 1), np.float32).repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)
  )
  image = (coarse[:, :size, :size] + r.random((_FRAMES, size, size, 1), np.float32)) / 2
  where = np.ones(image.shape, bool)
  if takes_where:
    where[:, : size // 4] = False
  return {"image": image, "where": where}


def _compare(file, found, expected):
  """The largest difference of a file's output; refuses one that is no rounding (`UserError`)."""
  exact, moved = (x[: len(found)] for x in expected)
  difference = np.abs(np.asarray(found, np.float64) - exact)
  # Not `>`: of NaN nothing is.
  if found.shape != exact.shape or not (difference <= TOLERANCE + moved).all():
    raise UserError(
      f"{file.name} differs from what the model puts out, by {difference.max():.2g}: nothing was "
      "written. That is a fault of lus_jax or of a library: leave this --format out, and report it."
    )
  return difference.max()


def _on_batches(file, call, inputs, expected):
  return max(_compare(file, call(*(x[:n] for x in inputs.values())), expected) for n in BATCHES)


def _taken(trained, number, inputs):
  """Those of the inputs that the file of a view takes."""
  names = ["image", "where"] if trained.needs_where(trained.views[number]) else ["image"]
  return {name: inputs[name] for name in names}


def _write_jax(trained, number, file, inputs, expected):
  from jax import export

  weights, inputs = trained.weights_of(number), _taken(trained, number, inputs)
  own, (batch,) = trained.sweep.members[number], export.symbolic_shape("batch")

  def probability(image, where=None):
    if where is None:
      where = jnp.ones(image.shape, bool)
    with backend.portable():
      return trained.probability(weights, own, image, where)

  shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs.values()]
  limit = jax.config.jax_traceback_in_locations_limit
  # Else the file names the folders that our code lies in.
  jax.config.update("jax_traceback_in_locations_limit", 0)
  try:
    exported = export.export(jax.jit(probability), platforms=("cpu", "cuda"))(*shapes)
    files.write_bytes(file, exported.serialize())
  finally:
    jax.config.update("jax_traceback_in_locations_limit", limit)
  with jax.default_device(jax.devices("cpu")[0]):
    call = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
    return _on_batches(file, lambda *x: np.asarray(call(*x)), inputs, expected)


def _write_onnx(trained, number, file, inputs, expected):
  # Not everybody has these.
  import onnxruntime

  from lus_jax.inference import onnx_graph

  inputs = _taken(trained, number, inputs)
  meaning = views_lib.meaning(trained, trained.views[number])
  model = onnx_graph.model(trained, number, meaning=meaning)
  files.write_bytes(file, model.SerializeToString(deterministic=True))
  session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
  names = [one.name for one in session.get_inputs()]
  return _on_batches(
    file,
    lambda *x: session.run([onnx_graph.PROBABILITY], dict(zip(names, x, strict=True)))[0],
    inputs,
    expected,
  )


def _write_safetensors(reference, trained, number, file, inputs, expected):
  import safetensors
  from safetensors import numpy as safetensors_numpy

  weights = trained.weights_of(number)
  params, batch_stats = copy.copy(weights["params"]), weights["batch_stats"]
  view, k = trained.views[number], len(trained.classes)
  member = trained.objective.member_of(view)
  if trained.objective.levels and member.target != "ordinal":
    # The head has more levels, which are the ordinal member's alone.
    head = params["segmentation_head"]
    params["segmentation_head"] = {name: x[..., :k] for name, x in head.items()}
  views = [
    {
      "name": other.name,
      "meaning": views_lib.meaning(trained, other),
      "level": None if other.level == WHOLE else other.level,
      **{kind: x.tolist() for kind, x in own.get("calibration", {}).items()},
    }
    for other, own in zip(trained.views, trained.sweep.members, strict=True)
    if other.member == view.member
  ]
  about = {
    "member": member.name,
    "classes": list(trained.classes),
    "levels": list(trained.objective.levels) if member.target == "ordinal" else [],
    "size": trained.config.data.image_size,
    "views": views,
  }
  tensors = torch_weights.state_dict(params, batch_stats)
  # One text: the library writes several in any order.
  metadata = {"lus_jax": json.dumps(about, ensure_ascii=False)}
  files.write_bytes(file, safetensors_numpy.save(tensors, metadata))
  back = torch_weights.load_into(params, batch_stats, torch_weights.read(file), source=file.name)
  same = jax.tree.map(np.array_equal, back, (params, batch_stats))
  if not all(jax.tree.leaves(same)):
    raise UserError(f"{file.name} does not read back as it was written: nothing was written.")
  with safetensors.safe_open(file, framework="np") as opened:
    (read,) = json.loads(opened.metadata()["lus_jax"])["views"][:1]
  return _compare(file, _run_weights(reference, trained, number, *back, read, inputs), expected)


def _run_weights(reference, trained, number, params, batch_stats, view, inputs):
  """What a view puts out with weights, and a calibration, as a file holds them."""
  head = trained.weights_of(number)["params"]["segmentation_head"]
  # Levels that are not this member's count for nothing.
  params["segmentation_head"] = {
    name: jnp.pad(x, [(0, a - b) for a, b in zip(head[name].shape, x.shape, strict=True)])
    for name, x in params["segmentation_head"].items()
  }
  own = dict(trained.sweep.members[number])
  if "calibration" in own:
    own["calibration"] = {k: np.asarray(view[k], x.dtype) for k, x in own["calibration"].items()}
  with jax.default_matmul_precision("highest"):
    found, _ = reference({"params": params, "batch_stats": batch_stats}, own, inputs)
  return np.asarray(found)


def _rounded_up(difference):
  """A difference as the power of ten above it: the digits of rounding say nothing."""
  return f"< 1e{math.ceil(math.log10(difference))}" if difference else "0"


def _measured(file):
  return {"bytes": file.stat().st_size, "sha256": files.sha256(file)}


def main(argv):
  """Parses the command line and exports; returns the exit code (2 after a user's mistake)."""
  return command_line.run(lambda: _main(argv), interrupted="Interrupted: nothing was written.")


def _main(argv):
  options = _parse(argv)
  if options is None:
    return
  with command_line.recorded("lus_jax.export", argv):
    record = run(**options)
  print(
    f"{plural(len(record['members']), 'model')}, {plural(len(record['files']), 'file')}: "
    f"{options['out']}/{CARD}"
  )


def _parse(argv):
  values = command_line.texts(
    argv,
    {
      "workdir": (None, "The directory of a finished segmentation run."),
      "out": (None, "Where the files go: a new directory, or the same export's."),
      "format": (None, f"Which, as onnx or onnx,jax: {', '.join(FORMATS)}."),
      "thresholds": (None, "Which models, as .6,.5; all of the run's by default."),
      "members": (None, "Which models beside the thresholds, as soft,ordinal."),
    },
    about=__doc__,
    needed=(
      ("workdir", "out", "format"),
      "python -m lus_jax.export --workdir runs/seg --out model --format onnx",
    ),
  )
  return values and {
    "workdir": values["workdir"],
    "out": values["out"],
    "formats": command_line.names(values["format"]),
    "thresholds": command_line.numbers("thresholds", values["thresholds"], float),
    "members": command_line.names(values["members"]),
  }


if __name__ == "__main__":
  sys.exit(main(sys.argv))
