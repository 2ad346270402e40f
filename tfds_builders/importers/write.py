"""Writes what an importer found: a `lus_folder`, or a `multirater_folder` if several people drew.

All importers of frames share this: classes renamed, merged and dropped, soft borders, scan areas,
de-identification, and the count of what was left out.
"""

import collections
import dataclasses
import pathlib
import re

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.labels import borders
from lus_jax.media import readers
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import clips as clips_lib
from tfds_builders.importers import facts as facts_lib
from tfds_builders.importers import folder as folder_lib

BUILDERS = ("lus_folder", "multirater_folder")
_PATIENTS_NOTE = (
  "Every clip counts as a patient of its own: where one gave several, say whose they are with "
  "--patient-pattern or --table, or the test is not independent of the training."
)


@dataclasses.dataclass(frozen=True)
class Options:
  """What a user asks of every importer.

  Attributes:
    out: the folder to write.
    licence: of the data.
    name: of the data set; by default that of `out`.
    thin: classes that are lines, as they are called in the end.
    rename: new names by class; '' drops it, and several with one name are merged.
    soft_border: width from 0 to 100 % that hard masks get, and its unit, 'mm' or 'px'; or None.
    table: a CSV of patients, days and views, or None.
    patient_pattern: a regular expression on clips' names, or None.
    day_pattern: likewise.
    view_pattern: likewise.
    crop: 'auto' finds each clip's scan area, 'none' takes the whole frame, else the area of all.
    deidentify: whether copies tell nothing of whose they are; None: if any of the clips is DICOM.
    key: the file of the pseudonyms' key.
    keep_pixels: leaves what is outside the scan area in de-identified copies.
    keep_names: leaves the names of files and patients in de-identified data.
    builder: one of `BUILDERS`; None: what fits.
    dry_run: whether nothing is written.
  """

  out: pathlib.Path
  licence: str = "unknown"
  name: str | None = None
  thin: tuple[str, ...] = ()
  rename: dict[str, str] = dataclasses.field(default_factory=dict)
  soft_border: tuple[float, str] | None = None
  table: pathlib.Path | None = None
  patient_pattern: re.Pattern | None = None
  day_pattern: re.Pattern | None = None
  view_pattern: re.Pattern | None = None
  crop: str = "auto"
  deidentify: bool | None = None
  key: pathlib.Path = clips_lib.KEY
  keep_pixels: bool = False
  keep_names: bool = False
  builder: str | None = None
  dry_run: bool = False


def _extent(mask):
  """The box around what is not 0 in a mask [h, w]."""
  rows, columns = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
  return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


class _Masks:
  """Makes the masks of labels as they are written, and counts what they show."""

  def __init__(self, source, options):
    self._source, self._options = source, options
    self.frames, self.pixels = collections.Counter(), collections.Counter()
    # The largest value of each class, and boxes around what was drawn, by clip.
    self.largest = collections.Counter()
    self.extents = {}
    self.is_soft = False
    self._least = 1.0

  @property
  def may_be_inverted(self):
    """Whether more than half of every frame is drawn, as where the background is the object."""
    return self._least > 0.5 and bool(self.frames)

  def draw(self, label, media):
    """uint8 [h, w] by class, renamed, merged and softened."""
    masks = {}
    for name, mask in label.draw(media).items():
      if mask.shape != (media.height, media.width):
        readers.check_mask_size(pathlib.Path(f"the mask of {label.clip}"), mask.shape, media)
      new = name if name == tables.IGNORE else self._options.rename.get(name, name)
      if new:
        masks[new] = np.maximum(masks.get(new, 0), mask)
    for name, mask in masks.items():
      if self._options.soft_border and name != tables.IGNORE:
        masks[name] = self._soften(mask, media, label)
      self.is_soft |= bool(((mask := masks[name]) % 255).any())
      if mask.any():
        self._note_largest(label, name, int(mask.max()))
        self.frames[name] += 1
        self.pixels[name] += int((mask > 0).sum())
        self.extents.setdefault(label.clip, []).append(_extent(mask))
    drawn = [mask > 0 for name, mask in masks.items() if name != tables.IGNORE]
    self._least = min(self._least, np.logical_or.reduce(drawn).mean() if drawn else 0.0)
    return masks

  def _note_largest(self, label, name, largest):
    self.largest[name] = max(self.largest[name], largest)
    if largest <= 2:
      notices.warn(
        "%s: its largest confidence is %d of 255 ('%s' on frame %d); a mask of 0 and 1 should be "
        "one of 0 and 255.",
        label.clip,
        largest,
        name,
        label.frame,
      )

  def _soften(self, mask, media, label):
    width, unit = self._options.soft_border
    spacing = (1.0, 1.0)
    if unit == "mm":
      spacing = media.spacing
      if spacing is None:
        raise UserError(
          f"{media.path} does not say how large its pixels are, so that --soft-border cannot count "
          "millimetres; give it in pixels, as --soft-border 6px."
        )
    if (mask % 255).any():
      raise UserError(
        f"Frame {label.frame} of {label.clip} is drawn with confidences between 0 and 100 %; leave "
        "--soft-border out."
      )
    return np.rint(255 * borders.soften(mask > 0, width, spacing)).astype(np.uint8)


def classes_of(source, options):
  """The classes as they are written, in the tool's order.

  Raises:
    UserError: `rename` or `thin` name none that is there, or a name cannot be a file's.
  """
  known = list(dict.fromkeys(source.classes))
  for old in options.rename:
    if old not in known:
      raise UserError(
        f"--class names {tables.shown(old)}, which is no class ({tables.shown_list(known)}); mend "
        "it."
      )
  classes = list(dict.fromkeys(name for old in known if (name := options.rename.get(old, old))))
  if not known:
    raise UserError("Nothing is drawn in what is imported, so that there is no class; mend it.")
  if not classes:
    raise UserError("--class drops every class; keep one.")
  folder_lib.check_names(classes, options.thin)
  return classes


def write(source, options):
  """Writes a folder.

  Args:
    source: what was found.
    options: what the user asks.

  Returns:
    The builder that reads it, one of `BUILDERS`, and what a user should know, as lines.

  Raises:
    UserError: the input is wrong; then nothing is written.
  """
  classes = classes_of(source, options)
  facts_lib.of_headers(source)
  facts, notes = facts_lib.gather(
    source.clips,
    table=options.table,
    patient_pattern=options.patient_pattern,
    day_pattern=options.day_pattern,
    view_pattern=options.view_pattern,
  )
  clips = clips_lib.Clips(source, facts, options)
  labels = sorted(source.labels, key=lambda one: (one.clip, one.frame, one.annotator))
  _refuse_repeats(labels)
  builder = options.builder or _fitting(labels)
  masks = _Masks(source, options)
  with folder_lib.new_folder(options.out, dry_run=options.dry_run) as folder:
    run = _write_frames if builder == "lus_folder" else _write_raters
    notes = run(folder, clips, source, options, classes, labels, masks) + notes
  tables.warn_of_alike(
    sorted({cells["patient"] for cells in facts.values()}),
    options.out,
    "patients",
    "one person may stand on both sides of the split",
  )
  never = [name for name in classes if not masks.frames[name]]
  if labels and never:
    notes.append(f"Nobody drew {tables.shown_list(never)}.")
  return builder, folder.notes() + notes + clips.notes() + _counts(
    source, masks, options.soft_border
  )


def _counts(source, masks, soft_border):
  notes = [
    f"{name}: in {plural(masks.frames[name], 'label')}, {masks.pixels[name]:,} pixels"
    + (f", at most {masks.largest[name] / 255:.0%}" if masks.largest[name] < 255 else "")
    + "."
    for name in masks.frames
  ]
  if source.cut:
    notes.append(
      f"Cut at the picture's border, which they leave: {plural(len(source.cut), 'shape')} "
      f"({tables.shown_list(source.cut, 3)})."
    )
  for what, where in source.skipped.items():
    notes.append(f"Left out: {len(where)} {what} ({tables.shown_list(where, 5)}).")
  low = [name for name, largest in masks.largest.items() if largest < 255]
  if soft_border and low:
    notes.append(
      f"--soft-border is wider than {tables.shown_list(low)}: labels of higher thresholds show "
      "nothing of it; a narrower border reaches 100 %."
    )
  if masks.may_be_inverted:
    notes.append(
      "More than half of every labelled frame is drawn: is that the background? Then import the "
      "object."
    )
  if source.labels and not masks.is_soft:
    notes.append(
      "Every confidence is 0 or 1: all members above threshold 0 get the same labels, so they "
      "differ in the weight of the background only (--soft-border gives outlines a slope)."
    )
  return [*source.notes, *notes]


def _refuse_repeats(labels):
  first = set()
  for label in labels:
    key = label.clip, label.frame, label.annotator
    if key in first:
      by = f" by {label.annotator}" if label.annotator else ""
      raise UserError(
        f"Frame {label.frame} of {label.clip} is labelled twice{by}; name the people apart "
        "(--annotations anna=FILE ben=FILE), or remove one."
      )
    first.add(key)


def _fitting(labels):
  """`multirater_folder` where a frame was drawn by several."""
  drawn = collections.Counter((label.clip, label.frame) for label in labels)
  return BUILDERS[max(drawn.values(), default=1) > 1]


def _check_frame(label, media):
  if not 0 <= label.frame < media.n_frames:
    raise UserError(
      f"Frame {label.frame} of {label.clip} is labelled, but {media.path} has {media.n_frames} (0 "
      f"to {media.n_frames - 1}); is it of another clip, or counted otherwise?"
    )


def _write_frames(folder, clips, source, options, classes, labels, masks):
  """Writes a `lus_folder`; returns lines for the user."""
  rows = []
  for label in clips_lib.bar(labels, "frame", "drawing masks"):
    media = source.header(label.clip)
    _check_frame(label, media)
    place = f"{clips[label.clip].name}/{label.frame:06d}"
    annotator = clips.annotator(label.annotator)
    if annotator:
      tables.check_file_name(annotator, "The annotator")
      place = f"{place}/{annotator}"
    folder.folder(f"masks/{place}")
    for name, mask in masks.draw(label, media).items():
      if mask.any():
        folder.picture(mask, f"masks/{place}/{name}.png")
    rows.append((label, annotator, place))
  clips.widen(masks.extents)
  file_of = {
    name: clips.copy(folder, name, "videos")
    for name in clips_lib.bar(list(source.clips), "clip", "copying clips")
  }
  more = {}
  if any(source.header(label.clip).path.is_dir() for label in labels):
    # labels.csv holds places, whatever the files' numbers.
    more["frame_numbers"] = "from_0"
  _describe(folder, options, clips, classes, **more)
  columns, cells = clips.table()
  folder.table(
    "manifest.csv",
    ("video", *columns),
    [(file_of[name], *cells[name]) for name in source.clips],
  )
  folder.table(
    "labels.csv",
    ("video", "frame", "annotator", "masks"),
    [(file_of[label.clip], label.frame, annotator, place) for label, annotator, place in rows],
  )
  n_videos = sum(source.header(name).n_frames > 1 for name in source.clips)
  patients = {clips[name].patient for name in source.clips}
  notes = [
    f"{plural(n_videos, 'video')}, {plural(len(source.clips) - n_videos, 'still')}, "
    f"{plural(len(rows), 'labelled frame')}, {plural(len(patients), 'patient')}, classes "
    f"{', '.join(classes)}."
  ]
  if clips.patients_are_unknown and len(patients) > 1:
    notes.append(_PATIENTS_NOTE)
  if len(patients) == 1 and labels:
    notes.append(
      "One patient cannot be split by patient: use --config.data.split_unit=frame, which is not an "
      "independent test."
    )
  if labels:
    notes.append(
      "A class that is not drawn on a labelled frame counts as absent there; if it merely was not "
      'drawn, write "missing_class": "unlabelled" in dataset.json.'
    )
  return notes


def _describe(folder, options, clips, classes, **more):
  if clips.patients_are_unknown:
    more = {"patients": "unknown"} | more
  folder.dataset(
    name=options.name or options.out.name,
    licence=options.licence,
    classes=classes,
    thin=list(options.thin),
    **more,
  )


def _write_raters(folder, clips, source, options, classes, labels, masks):
  """Writes a `multirater_folder`; returns lines for the user."""
  anonymous = next((label for label in labels if not label.annotator), None)
  if anonymous is not None:
    raise UserError(
      f"Nobody says who drew frame {anonymous.frame} of {anonymous.clip}; name the people, as "
      "--annotations anna=FILE ben=FILE."
    )
  name_of = {label.annotator: clips.annotator(label.annotator) for label in labels}
  raters = sorted(name_of.values())
  if len(raters) < 2:
    raise UserError(
      f"{raters[0] if raters else 'Nobody'} drew all of it, but multirater_folder needs two "
      "people; leave --builder out."
    )
  for rater in raters:
    tables.check_file_name(rater, "The annotator")
  images = {}
  for label in clips_lib.bar(labels, "mask", "drawing masks"):
    media = source.header(label.clip)
    _check_frame(label, media)
    flat = clips[label.clip].name.replace("/", "_")
    image = flat if media.n_frames == 1 else f"{flat}_{label.frame:06d}"
    if images.setdefault(image, (label.clip, label.frame)) != (label.clip, label.frame):
      raise UserError(f"Two frames would be called {image}; rename one of the clips.")
    drawn = masks.draw(label, media)
    if tables.IGNORE in drawn:
      raise UserError(
        f"Frame {label.frame} of {label.clip} has pixels that do not count, which "
        "multirater_folder does not know; say --builder lus_folder, where each annotator's frame "
        "is an example."
      )
    for name in classes:
      within = f"raters/{name_of[label.annotator]}" + (f"/{name}" if len(classes) > 1 else "")
      # Who looked and drew nothing is not who did not look.
      empty = np.zeros((media.height, media.width), np.uint8)
      folder.picture(drawn.get(name, empty), f"{within}/{image}.png")
  clips.widen(masks.extents)
  for image, (name, frame) in clips_lib.bar(list(images.items()), "image", "copying frames"):
    folder.picture(clips.frame(name, frame), f"images/{image}.png")
  more = {"soft": True} if masks.is_soft else {}
  _describe(folder, options, clips, classes, **more)
  columns, cells = clips.table()
  folder.table(
    "patients.csv",
    ("image", *columns),
    [(image, *cells[name]) for image, (name, _) in images.items()],
  )
  undrawn = [name for name in source.clips if name not in {name for name, _ in images.values()}]
  notes = [
    f"{plural(len(images), 'image')}, {plural(len(raters), 'rater')} ({', '.join(raters)}), "
    f"classes {', '.join(classes)}."
  ]
  if undrawn:
    notes.append(
      f"Left out: {len(undrawn)} clips that nobody drew ({tables.shown_list(undrawn, 5)})."
    )
  return [*notes, _PATIENTS_NOTE] if clips.patients_are_unknown else notes
