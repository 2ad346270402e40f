"""An image, clip or folder of pictures in, probability masks and overlays out.

  python -m lus_jax.predict --workdir runs/seg --input clip.mp4 --out masks --thresholds .6,.5

(or `--members soft,ordinal` for what was trained beside the thresholds) writes, in the geometry of
the input's own frames, whichever part of them the networks see (`--crop`):

  masks/prediction.json                     what was predicted, from what, by which models
  masks/threshold_0.6/000010/<class>.png    8-bit grey, 255 = probability 1
  masks/overlays/threshold_0.6/000010.png   frame 10 with the classes in their colours

so that `masks/threshold_0.6` can stand as `masks/` of a lus_folder data set. Of a folder of
pictures that are no frames of one clip each is predicted by itself, into `masks/<picture>/`.
"""

import collections
import io
import json
import os
import pathlib
import sys

import numpy as np
from absl import flags
from PIL import Image

from lus_jax import command_line, palette, progress, results
from lus_jax.errors import UserError, say_warnings_plainly
from lus_jax.files import write_bytes, write_text
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.inference import views as views_lib
from lus_jax.media import readers, scan_area
from lus_jax.words import plural

SCHEMA = 1
RECORD = "prediction.json"
# Fields of it that say how far a prediction is and what made it, not which one it is.
_STATE = ("complete", "versions", "files")


def run(*, workdir, source, out, thresholds=None, members=None, frames=None, crop=None):
  """Predicts an image, a clip or a folder of pictures and writes masks, overlays and records.

  Args:
    workdir: of a finished segmentation run.
    source: a clip or picture of one of `readers.FORMATS`, a folder of numbered pictures, which is
      a clip, or one of other pictures.
    out: a directory: a new one, an empty one, or that of the same prediction, which is written
      again.
    thresholds: which of the run's thresholds; all by default, none where there are `members`.
    members: names of members beside the thresholds, as in `results/members.json`.
    frames: numbers of frames, counted from 0, in any order; all by default.
    crop: the scan area that the networks see: 'auto' (found, in each picture or clip by itself),
      'none' (the whole frame) or 'X,Y,WIDTH,HEIGHT'. By default auto where the frames that the
      models learned from were cropped, else none.

  Returns:
    What `prediction.json` says.

  Raises:
    UserError: the run, the input, an argument or the directory is not in order.
  """
  pictures = _find_pictures(source)
  if pictures and frames is not None:
    raise UserError(f"--frames: the pictures of {source} are no frames of one clip; leave it out.")
  clips = {name: _probe(file) for name, file in pictures.items()} or {"": _probe(source)}
  chosen_frames = {name: _choose_frames(clip, frames) for name, clip in clips.items()}
  trained = trained_lib.load(
    os.path.expanduser(workdir), every=members is not None, option="--workdir"
  )
  trained = trained.only(views_lib.choose(trained, thresholds, members, workdir))
  crop = crop or ("auto" if trained.dataset.get("has_scan_areas") else "none")
  areas = {name: _find_area(clip, crop) for name, clip in clips.items()}
  if not pictures and areas[""].box != scan_area.whole(clips[""].height, clips[""].width):
    print(f"scan area {scan_area.text(areas[''].box)} ({areas[''].how})")
  out = pathlib.Path(out).expanduser()
  content = _describe(trained, workdir, source) | {"pictures": list(pictures)}
  contents = {
    name: _describe(trained, workdir, clip.path if pictures else source)
    | _describe_frames(trained, clip, chosen_frames[name], areas[name])
    for name, clip in clips.items()
  }
  if pictures:
    _check_directory(out, content)
  else:
    content = contents[""]
  for name, one in contents.items():
    _check_directory(out / name, one)
  probability = trained.sweep.compile(trained.probability)
  bar = progress.bar(
    total=sum(map(len, chosen_frames.values())),
    unit="frame",
    what=f"predicting with {plural(len(content['members']), 'model')}",
    delay=5,
  )
  try:
    with bar:
      if pictures:
        _write_record(out, content)
      for name, clip in clips.items():
        maps = frames_lib.predict(
          trained,
          clip,
          frames=chosen_frames[name],
          box=areas[name].box,
          probability=probability,
        )
        _write(out / name, contents[name], maps, bar)
      if pictures:
        _write_record(out, content | {"complete": True})
  except OSError as error:
    raise UserError(f"--out={out} cannot be written ({error.strerror}).") from error
  return content | {"complete": True}


def _describe(trained, workdir, source):
  return {
    "schema": SCHEMA,
    "complete": False,
    "input": os.fspath(source),
    "workdir": os.fspath(workdir),
    "thresholds": [t for t in trained.thresholds if t is not None],
    "members": [view.name for view in trained.views],
    "classes": list(trained.classes),
    "colours": {name: palette.css(k) for k, name in enumerate(trained.classes)},
    "meaning": {
      view.name: f"value / 255 = {views_lib.meaning(trained, view)}" for view in trained.views
    },
    "dataset": trained.dataset,
    "config": json.loads(trained.config.to_json()),
    "versions": results.versions(),
  }


def _describe_frames(trained, clip, frames, area):
  size = trained.config.data.image_size
  _, box = frames_lib.fit(np.zeros((1, clip.height, clip.width), np.uint8), size, area.box)
  return {
    "files": [file.name for file in clip.files],
    "frames": frames,
    "height": clip.height,
    "width": clip.width,
    "scan_area": list(area.box),
    "scan_area_by": area.how,
    "network_size": size,
    "valid_box": [int(x) for x in box],
  }


def _write(out, content, maps, bar):
  """Writes one clip's masks, overlays and record."""
  # It goes first, so that what a kill leaves behind is known for what it is.
  _write_record(out, content)
  for number, image, each in maps:
    for name, probability in zip(content["members"], each, strict=True):
      for k, label in enumerate(content["classes"]):
        _write_png(out / name / f"{number:06d}" / f"{label}.png", probability[..., k])
      overlay = palette.overlay(image, probability / np.float32(255))
      _write_png(out / "overlays" / name / f"{number:06d}.png", overlay)
    bar.update()
  _write_record(out, content | {"complete": True})


def _find_pictures(source):
  """The pictures of a folder that are no frames of one clip, by name; none of anything else."""
  folder = pathlib.Path(source).expanduser()
  try:
    files = (
      sorted(x for x in folder.iterdir() if not x.name.startswith(".")) if folder.is_dir() else []
    )
  except OSError:  # `_probe` says what is wrong
    return {}
  pictures = [file for file in files if file.suffix.lower() in readers.PICTURES]
  if not pictures:
    return {}
  try:
    numbers = readers.probe(folder).numbers
    steps = set(np.diff(numbers)) if numbers else set()
    if len(steps) <= 1:
      if steps:
        print(
          f"{folder} is read as one clip of {len(pictures)} frames: its pictures have one size and "
          "evenly spaced numbers."
        )
      return {}
    reason = "the numbers in its pictures' names are not evenly spaced"
  except UserError as error:
    reason = str(error).rstrip(".")
  others = [file.name for file in files if file not in pictures]
  left_out = f"; left out: {len(others)} other(s) ({', '.join(others[:5])})" if others else ""
  print(
    f"{folder} is no clip ({reason}): each of its {len(pictures)} pictures is predicted by "
    f"itself{left_out}"
  )
  stems = collections.Counter(file.stem for file in pictures)
  return {file.stem if stems[file.stem] == 1 else file.name: file for file in pictures}


def _probe(source):
  path = pathlib.Path(source).expanduser()
  try:
    readable = not path.exists() or os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
  except OSError:
    readable = False
  if not readable:
    raise UserError(f"{path} cannot be read; change its permissions (chmod u+r).")
  clip = readers.probe(path)
  readers.check_axes([clip])
  return clip


def _find_area(clip, crop):
  if crop == "auto":
    return scan_area.find(clip)
  if crop == "none":
    return scan_area.Area(scan_area.whole(clip.height, clip.width), "none")
  try:
    return scan_area.Area(scan_area.parse(crop, clip.height, clip.width), "given")
  except UserError as error:
    raise UserError(
      f"--crop={crop}: {clip.path}: {error} Or say --crop=auto, or --crop=none."
    ) from error


def _choose_frames(clip, frames):
  if frames is None:
    return list(range(clip.n_frames))
  for frame in frames:
    if not 0 <= frame < clip.n_frames:
      raise UserError(
        f"--frames: {frame} is not a frame of {clip.path}, which has {clip.n_frames} "
        f"({'only 0' if clip.n_frames == 1 else f'0 to {clip.n_frames - 1}'})."
      )
  return sorted(set(frames))


def _check_directory(out, content):
  """Refuses a directory that holds anything but this very prediction (`UserError`)."""
  file = out / RECORD
  try:
    if out.exists() and not out.is_dir():
      raise UserError(f"--out={out} is a file; name a directory.")
    if not file.exists():
      if out.exists() and any(out.iterdir()):
        raise UserError(f"--out={out} holds other things; name a new or empty directory.")
      return
    # Older ones, which say nothing of it, saw the whole frame.
    theirs = _whole_frame(content) | json.loads(file.read_text())
    different = [k for k in content if k not in _STATE and theirs.get(k) != content[k]]
  except OSError as error:
    raise UserError(f"--out={out} cannot be used ({error.strerror}).") from error
  except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise UserError(f"{file} is damaged; name another --out, or remove {out}.") from error
  if different:
    raise UserError(
      f"--out={out} holds another prediction (different: {', '.join(different)}); name another "
      "directory, or remove it."
    )


def _whole_frame(content):
  if "height" not in content:
    return {}
  box = scan_area.whole(content["height"], content["width"])
  return {"scan_area": list(box), "scan_area_by": "none"}


def _write_record(out, content):
  write_text(out / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _write_png(file, pixels):
  buffer = io.BytesIO()
  # A third of the default level's time, for a tenth more bytes.
  Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
  write_bytes(file, buffer.getvalue())


def main(argv):
  """Parses the command line and predicts; returns the exit code (2 after a user's mistake)."""
  return command_line.run(
    lambda: _main(argv), interrupted="Interrupted. The same command writes all of it again."
  )


def _main(argv):
  options = _parse(argv)
  if options is None:
    return
  content = run(**options)
  names = {"pictures": "picture", "frames": "frame", "members": "model", "classes": "class"}
  counts = [plural(len(content[key]), noun) for key, noun in names.items() if key in content]
  print(f"{', '.join(counts)}: {options['out']}/{RECORD}")


def _parse(argv):
  # Flags of its own, so that this module and lus_jax.main, which share names, can be imported both.
  values = flags.FlagValues()

  def text(name, default, description):
    flags.DEFINE_string(name, default, description, flag_values=values)

  text("workdir", None, "The directory of a finished segmentation run.")
  text(
    "input",
    None,
    f"A clip or picture ({readers.FORMATS}), or a folder of other pictures.",
  )
  text("out", None, "Where masks and overlays go: a new directory, or the same prediction's.")
  text("thresholds", None, "Which models, as .6,.5; all of the run's by default.")
  text("members", None, "Which models beside the thresholds, as soft,ordinal.")
  text("frames", None, "Which frames, counted from 0, as 0,10,20; all by default.")
  text(
    "crop",
    None,
    "The scan area that the networks see: auto (found), none, or X,Y,WIDTH,HEIGHT in pixels; by "
    "default auto if the models learned from scan areas, else none.",
  )
  text("compilation_cache", "~/.cache/lus_jax", "Where compiled programs are kept; empty: nowhere.")
  flags.DEFINE_bool("help", False, "Show this.", flag_values=values)
  try:
    rest = values(argv)
  except flags.Error as error:
    raise UserError(f"{error} (in the command line)") from error
  if values.help:
    print(f"{__doc__}\n{values.main_module_help()}")
    return None
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not an option; options start with --.")
  if not (values.workdir and values.input and values.out):
    raise UserError(
      "--workdir, --input and --out are all needed, as in: "
      "python -m lus_jax.predict --workdir runs/seg --input clip.mp4 --out masks"
    )
  say_warnings_plainly()
  command_line.keep_compiled(values.compilation_cache)
  return {
    "workdir": values.workdir,
    "source": values.input,
    "out": values.out,
    "thresholds": command_line.numbers("thresholds", values.thresholds, float),
    "members": [name.strip() for name in values.members.split(",")] if values.members else None,
    "frames": command_line.numbers("frames", values.frames, int),
    "crop": values.crop,
  }


if __name__ == "__main__":
  sys.exit(main(sys.argv))
