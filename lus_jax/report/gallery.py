"""A page of whole clips: every threshold's map beside what was painted, with a slider.

One file that needs no server and no network. Frames are cells of WebP sprites; the maps of all
thresholds and classes are steps of probability, packed pixel by pixel with time running fastest,
which compresses best, and deflated; the page inflates those of the clip that is shown.
"""

import base64
import io
import itertools
import math
import pathlib
import sys
import zlib

import numpy as np
from markupsafe import Markup
from PIL import Image

from lus_jax import ahead, files, pages, palette, progress
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.media import scan_area
from lus_jax.report import cells, clips, page, schema
from lus_jax.words import plural

# Frames of a clip, and megabytes of the page, unless more are asked for.
FRAMES, MEGABYTES = 60, 20
# Steps of probability: fewer compress better, and one half is the edge of a step.
LEVELS = 16
# Longer sides, in pixels, are made smaller: of frames, and of maps, which the networks compute at a
# quarter of their frames' size.
_FRAME_SIDE, _MAP_SIDE = 256, 128
# Frames that lie together in a sprite and a pack of maps, at most; and in a row of the sprite.
_BLOCK, _COLUMNS = 64, 8
# Of the sprites: speckle keeps its grain.
_QUALITY = 80
_BATCH = 4


def write(workdir, paths=(), *, n_frames=FRAMES, megabytes=MEGABYTES):
  """Writes `<workdir>/report/gallery.html`.

  Args:
    workdir: a finished run of segmentation, with its checkpoints.
    paths: clips, or folders of clips; those of the run's test split if none are named.
    n_frames: how many frames of a clip are shown at most, evenly spaced.
    megabytes: how large the page becomes at most; clips that have no room are named on it.

  Returns:
    The path, and the clips that are not on it: pairs of a name and the `UserError` that says why.

  Raises:
    UserError: the run is not in order, or no clip can be shown.
  """
  for option, value in (("--gallery-frames", n_frames), ("--gallery-megabytes", megabytes)):
    if not value > 0:
      raise UserError(f"{option} {value:g}: more than 0 is needed.")
  trained = trained_lib.load(workdir, option="--workdir")
  order = sorted(range(len(trained.views)), key=trained.thresholds.__getitem__)
  trained = trained.only(order)
  more = 0
  if paths:
    found = clips.given(trained, paths)
  else:
    found, more = clips.of_test_split(trained, workdir)
  shown, broken, crowded = _packed(trained, found, n_frames, int(megabytes * 1e6))
  if not shown:
    why = broken[0][1] if broken else f"--gallery-megabytes {megabytes:g} has no room for one."
    raise UserError(f"no clip can be shown: {why}")
  segmentation = schema.read(workdir, "segmentation")
  html = _render(
    trained,
    shown,
    notes=segmentation["notes"],
    mark=page.results_mark(workdir),
    given=bool(paths),
    more=more,
    broken=broken,
    crowded=crowded,
  )
  if crowded:
    print(f"left out for want of room: {', '.join(crowded)}", file=sys.stderr)
  file = pathlib.Path(workdir) / page.DIRECTORY / page.GALLERY
  files.write_text(file, html)
  return file, broken


def _packed(trained, found, n_frames, room):
  """What the page holds of every clip that comes out and has room.

  Args:
    trained: the models of the thresholds, rising.
    found: a list of `clips.Candidate`.
    n_frames: of a clip at most.
    room: bytes that there are for all of them.

  Returns:
    A list of what `_pack` returns, the broken ones as `write` returns them, and names of those that
    have no room.
  """
  shown, broken, crowded = [], [], []
  probability = trained.sweep.compile(trained.probability)
  bar = progress.bar(
    total=sum(min(n_frames, one.n_frames) for one in found),
    unit="frame",
    what=f"gallery with {plural(len(trained.views), 'model')}",
    delay=5,
  )
  with bar:
    for name, _, opened in found:
      pack = None
      try:
        if not crowded:
          pack = _pack(trained, probability, opened(), n_frames, room, bar)
      except UserError as error:
        broken.append((name, error))
        print(f"error: {error}", file=sys.stderr)
        continue
      if pack is None:
        crowded.append(name)
        continue
      shown.append(pack)
      room -= pack["bytes"]
  return shown, broken, crowded


def frame_numbers(clip, n_frames):
  """The frames that are shown: evenly spaced, but labelled ones in place of what is near them."""
  numbers = np.asarray(clip.recording.numbers)
  count = min(n_frames, len(numbers))
  places = set(np.linspace(0, len(numbers) - 1, count).round().astype(int).tolist())
  labelled = np.searchsorted(numbers, clip.labelled).tolist()
  for place in sorted(set(labelled) - places):
    if others := places.difference(labelled):
      places.remove(min(others, key=lambda other: (abs(other - place), other)))
      places.add(place)
  return numbers[sorted(places)].tolist()


def _pack(trained, probability, clip, n_frames, room, bar):
  """What the page holds of a clip, or None where it takes more bytes than there is room."""
  recording, numbers = clip.recording, frame_numbers(clip, n_frames)
  size = _page_size(clip.box)
  labels, valid = [], None
  blocks, areas, used = [], [], 0
  maps = _maps(trained, probability, recording, numbers)
  for start in itertools.count(0, _BLOCK):
    images, steps = [], []
    for image, found, valid in itertools.islice(maps, _BLOCK):
      part = _part(clip, recording, valid)
      images.append(_resized(scan_area.crop(image, clip.box), *size))
      area, step = _seen(found, part)
      areas.append(area)
      steps.append(step)
      if not bar.n:
        progress.restart(bar)
      bar.update()
    if not images:
      break
    block = {"sprite": _sprite(images), "maps": _deflated(np.stack(steps, axis=-1))}
    used += sum(map(len, block.values())) * 4 // 3
    if used > room:
      return None
    blocks.append(block | {"start": start, "n": len(images)})
  # Of the last frame, as of all of them.
  part = _part(clip, recording, valid)
  for label in clip.labels(set(numbers)):
    labels.append(_label(label, part) | {"at": numbers.index(label.frame)})
    used += len(labels[-1]["passed"]) * 4 // 3
  if used > room:
    return None
  rows, columns = _pixels(part)
  fps = recording.frames_per_second
  return {
    "bytes": used,
    "blocks": blocks,
    "labels": labels,
    "about": {
      "name": clip.name,
      "facts": clip.facts,
      "notes": [*clip.notes, *_left_out(clip, numbers)],
      "numbers": numbers,
      "of": len(recording.numbers) if recording.whole else None,
      "fps": fps if math.isfinite(fps) and fps > 0 else None,
      "size": size,
      "map": _map_size(part),
      "net": [rows.stop - rows.start, columns.stop - columns.start],
      # [frame, threshold, class]
      "areas": [area.tolist() for area in areas],
    },
  }


def _left_out(clip, numbers):
  """What the page says of frames that it does not show."""
  total, notes = len(clip.recording.numbers), []
  if total > len(numbers):
    among = ", the labelled ones among them" if clip.labelled else ""
    notes.append(f"{len(numbers)} of its {total} frames are shown, evenly spaced{among}.")
  if hidden := set(clip.labelled) - set(numbers):
    notes[-1] = (
      f"{len(numbers)} of its {total} frames are shown; {plural(len(hidden), 'labelled frame')} "
      "had no place."
    )
  return notes


def _maps(trained, probability, recording, numbers):
  """Yields a frame [h, w] uint8, its maps [T, S, S, K] float32, and their valid box."""
  size = trained.config.data.image_size

  def batches():
    images = recording.read(numbers)
    while batch := list(itertools.islice(images, _BATCH)):
      yield batch

  def started():
    for batch in ahead.in_thread(batches()):
      fitted, valid = frames_lib.fit(np.stack(batch), size, recording.box)
      where = np.zeros(fitted.shape, bool)
      where[:, valid[0] : valid[2], valid[1] : valid[3]] = True
      # Filled up: another size would be another compilation.
      filled = np.arange(_BATCH) % len(batch)
      found = probability(trained.weights, trained.sweep.members, fitted[filled], where[filled])
      yield batch, valid, found

  for batch, valid, found in ahead.dispatched(started()):
    members = np.stack(trained.sweep.to_host(found))
    for i, image in enumerate(batch):
      yield image, members[:, i], valid


def _part(clip, recording, valid):
  """Where the networks' frames show what is shown, as (top, left, bottom, right), not rounded."""
  seen = recording.box or scan_area.whole(recording.height, recording.width)
  scale = [
    (valid[2] - valid[0]) / (seen[2] - seen[0]),
    (valid[3] - valid[1]) / (seen[3] - seen[1]),
  ]
  return tuple(
    float(np.clip(valid[i % 2] + (x - seen[i % 2]) * scale[i % 2], valid[i % 2], valid[2 + i % 2]))
    for i, x in enumerate(clip.box)
  )


def _pixels(part):
  """The pixels of the networks' frames that a part covers: slices of rows and columns."""
  top, left = math.floor(part[0] + 1e-6), math.floor(part[1] + 1e-6)
  bottom, right = math.ceil(part[2] - 1e-6), math.ceil(part[3] - 1e-6)
  return slice(top, bottom), slice(left, right)


def _page_size(box):
  height, width = box[2] - box[0], box[3] - box[1]
  scale = min(1, _FRAME_SIDE / max(height, width))
  return [max(1, round(scale * height)), max(1, round(scale * width))]


def _map_size(part):
  height, width = part[2] - part[0], part[3] - part[1]
  scale = min(1, _MAP_SIDE / max(height, width))
  return [max(1, round(scale * height)), max(1, round(scale * width))]


def _resized(image, height, width):
  return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _seen(found, part):
  """What is kept of a frame's maps.

  Args:
    found: probabilities [T, S, S, K].
    part: of `_part`.

  Returns:
    The pixels with a probability of at least one half, [T, K], and steps of probability
    [K, T, h, w] uint8 in 0..`LEVELS` - 1.
  """
  # To bytes, as in examples and predictions: one half is 128 in all of them.
  whole = np.rint(255 * found)
  rows, columns = _pixels(part)
  areas = (whole[:, rows, columns] >= 128).sum((1, 2))
  height, width = _map_size(part)
  top, left, bottom, right = part
  steps = [
    [
      np.asarray(
        Image.fromarray(np.ascontiguousarray(one[..., k])).resize(
          (width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
        )
      )
      for one in whole.astype(np.float32)
    ]
    for k in range(found.shape[-1])
  ]
  return areas, np.rint(np.array(steps)).astype(np.uint8) // (256 // LEVELS)


def _label(label, part):
  """What the page holds of a label."""
  rows, columns = _pixels(part)
  passed = label.passed[rows, columns]
  unknown = passed == clips.UNKNOWN
  thresholds = len(label.iou)
  above = [(passed > t) & ~unknown for t in range(thresholds)]
  return {
    "annotator": label.annotator,
    "iou": label.iou,
    "areas": [one.sum((0, 1)).tolist() for one in above],
    "unlabelled": np.flatnonzero(unknown.all((0, 1))).tolist(),
    "passed": _deflated(np.moveaxis(passed, -1, 0)),
  }


def _sprite(images):
  height, width = images[0].shape
  rows = -(-len(images) // _COLUMNS)
  sprite = np.zeros((rows * height, min(len(images), _COLUMNS) * width), np.uint8)
  for i, image in enumerate(images):
    row, column = divmod(i, _COLUMNS)
    scan_area.crop(sprite, _cell(row, column, height, width))[:] = image
  buffer = io.BytesIO()
  Image.fromarray(sprite).save(buffer, "WEBP", quality=_QUALITY, method=4)
  return buffer.getvalue()


def _cell(row, column, height, width):
  return (row * height, column * width, (row + 1) * height, (column + 1) * width)


def _deflated(array):
  return zlib.compress(np.ascontiguousarray(array).tobytes(), 9)


def _text(data):
  return Markup(base64.b64encode(data).decode())


def _render(trained, shown, *, notes, mark, given, more, broken, crowded):
  about = {
    "thresholds": [cells.percent(t) for t in trained.thresholds],
    "classes": list(trained.classes),
    "colours": [palette.rgb(k) for k in range(len(trained.classes))],
    "opacity": palette.OPACITY,
    "levels": LEVELS,
    "columns": _COLUMNS,
    "clips": [
      pack["about"]
      | {"blocks": [{key: block[key] for key in ("start", "n")} for block in pack["blocks"]]}
      | {
        "labels": [
          {key: value for key, value in label.items() if key != "passed"}
          for label in pack["labels"]
        ]
      }
      for pack in shown
    ],
  }
  return (
    pages.templates(__file__)
    .get_template("gallery.html")
    .render(
      about=about,
      data=[
        {
          "sprites": [_text(block["sprite"]) for block in pack["blocks"]],
          "maps": [_text(block["maps"]) for block in pack["blocks"]],
          "labels": [_text(label["passed"]) for label in pack["labels"]],
        }
        for pack in shown
      ],
      mark=Markup(mark),
      dataset=trained.dataset,
      notes=notes,
      given=given,
      more=more,
      broken=[(name, str(error)) for name, error in broken],
      crowded=crowded,
      frame_side=_FRAME_SIDE,
      map_side=_MAP_SIDE,
      palette=palette,
    )
  )
