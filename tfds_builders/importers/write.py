"""Writes what an importer found: a `lus_folder`, or a `multirater_folder` if several people drew.

All importers of frames share this: classes renamed, merged and dropped, soft borders, scan areas,
de-identification, and the count of what was left out.
"""

import collections
import dataclasses
import pathlib
import re

import numpy as np

from lus_jax import progress
from lus_jax.errors import UserError
from lus_jax.labels import borders
from lus_jax.media import readers
from lus_jax.words import plural
from tfds_builders import tables
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
  builder: str | None = None
  dry_run: bool = False


class _Masks:
  """Makes the masks of labels as they are written, and counts what they show."""

  def __init__(self, source, options):
    self._source, self._options = source, options
    self.frames, self.pixels = collections.Counter(), collections.Counter()
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
        self.frames[name] += 1
        self.pixels[name] += int((mask > 0).sum())
    drawn = [mask > 0 for name, mask in masks.items() if name != tables.IGNORE]
    self._least = min(self._least, np.logical_or.reduce(drawn).mean() if drawn else 0.0)
    return masks

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
  names, notes = facts_lib.gather(
    source.clips,
    table=options.table,
    patient_pattern=options.patient_pattern,
    day_pattern=options.day_pattern,
    view_pattern=options.view_pattern,
  )
  labels = sorted(source.labels, key=lambda one: (one.clip, one.frame, one.annotator))
  _refuse_repeats(labels)
  builder = options.builder or _fitting(labels)
  masks = _Masks(source, options)
  with folder_lib.new_folder(options.out, dry_run=options.dry_run) as folder:
    run = _write_frames if builder == "lus_folder" else _write_raters
    notes = run(folder, source, options, classes, names, labels, masks) + notes
  patients = {cells["patient"] for cells in names.values()} - {""}
  tables.warn_of_alike(
    sorted(patients), options.out, "patients", "one person may stand on both sides of the split"
  )
  never = [name for name in classes if not masks.frames[name]]
  if labels and never:
    notes.append(f"Nobody drew {tables.shown_list(never)}.")
  return builder, notes + _counts(source, masks)


def _counts(source, masks):
  notes = [
    f"{name}: drawn on {plural(masks.frames[name], 'frame')}, {masks.pixels[name]:,} pixels."
    for name in masks.frames
  ]
  if source.cut:
    notes.append(
      f"Cut at the picture's border, which they leave: {plural(len(source.cut), 'shape')} "
      f"({tables.shown_list(source.cut, 3)})."
    )
  for what, where in source.skipped.items():
    notes.append(f"Left out: {len(where)} {what} ({tables.shown_list(where, 5)}).")
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


def _patient(names, clip):
  return names[clip]["patient"] or clip


def _is_unknown(names):
  """Whether the patients are stand-ins: nobody says whose any clip is.

  Raises:
    UserError: it is said of some only.
  """
  known = [name for name, cells in names.items() if cells["patient"]]
  if known and len(known) < len(names):
    lacking = next(name for name in names if name not in known)
    raise UserError(
      f"Nobody says whose {len(names) - len(known)} clip(s) are, as {lacking}, but of others it is "
      "said; name all patients with --table or --patient-pattern."
    )
  return not known


def _bar(items, unit, what):
  return progress.bar(items, total=len(items), unit=unit, what=what, delay=2)


def _write_frames(folder, source, options, classes, names, labels, masks):
  """Writes a `lus_folder`; returns lines for the user."""
  file_of, n_videos = {}, 0
  for clip in _bar(list(source.clips.values()), "clip", "copying clips"):
    media = source.header(clip.name)
    n_videos += media.n_frames > 1
    suffix = "" if clip.path.is_dir() else clip.path.suffix
    file_of[clip.name] = f"{clip.name}{suffix}"
    folder.copy(clip.path, media.files, f"videos/{file_of[clip.name]}")
  rows = []
  for label in _bar(labels, "frame", "drawing masks"):
    media = source.header(label.clip)
    _check_frame(label, media)
    place = f"{label.clip}/{label.frame:06d}"
    if label.annotator:
      tables.check_file_name(label.annotator, "The annotator")
      place = f"{place}/{label.annotator}"
    folder.folder(f"masks/{place}")
    for name, mask in masks.draw(label, media).items():
      if mask.any() or source.missing_is_unlabelled:
        folder.picture(mask, f"masks/{place}/{name}.png")
    rows.append((file_of[label.clip], label.frame, label.annotator, place))
  is_unknown = _is_unknown(names)
  more = {"patients": "unknown"} if is_unknown else {}
  if any(source.header(label.clip).path.is_dir() for label in labels):
    # labels.csv holds places, whatever the files' numbers.
    more["frame_numbers"] = "from_0"
  if source.missing_is_unlabelled:
    more["missing_class"] = "unlabelled"
  folder.dataset(
    name=options.name or options.out.name,
    licence=options.licence,
    classes=classes,
    thin=list(options.thin),
    **more,
  )
  columns = [c for c in facts_lib.COLUMNS if c != "patient" and any(x[c] for x in names.values())]
  folder.table(
    "manifest.csv",
    ("video", "patient", *columns),
    [
      (file_of[name], _patient(names, name), *(cells[column] for column in columns))
      for name, cells in names.items()
    ],
  )
  folder.table("labels.csv", ("video", "frame", "annotator", "masks"), rows)
  patients = {_patient(names, name) for name in names}
  notes = [
    f"{plural(n_videos, 'video')}, {plural(len(source.clips) - n_videos, 'still')}, "
    f"{plural(len(rows), 'labelled frame')}, {plural(len(patients), 'patient')}, classes "
    f"{', '.join(classes) or 'none'}."
  ]
  if is_unknown and len(patients) > 1:
    notes.append(_PATIENTS_NOTE)
  if len(patients) == 1 and labels:
    notes.append(
      "One patient cannot be split by patient: use --config.data.split_unit=frame, which is not an "
      "independent test."
    )
  if labels and not source.missing_is_unlabelled:
    notes.append(
      "A class that is not drawn on a labelled frame counts as absent there; if it merely was not "
      'drawn, write "missing_class": "unlabelled" in dataset.json.'
    )
  return notes


def _check_frame(label, media):
  if not 0 <= label.frame < media.n_frames:
    raise UserError(
      f"Frame {label.frame} of {label.clip} is labelled, but {media.path} has {media.n_frames} (0 "
      f"to {media.n_frames - 1}); is it of another clip, or counted otherwise?"
    )


def _write_raters(folder, source, options, classes, names, labels, masks):
  """Writes a `multirater_folder`; returns lines for the user."""
  anonymous = next((label for label in labels if not label.annotator), None)
  if anonymous is not None:
    raise UserError(
      f"Nobody says who drew frame {anonymous.frame} of {anonymous.clip}; name the people, as "
      "--annotations anna=FILE ben=FILE."
    )
  raters = sorted({label.annotator for label in labels})
  if len(raters) < 2:
    raise UserError(
      f"{raters[0] if raters else 'Nobody'} drew all of it, but multirater_folder needs two "
      "people; leave --builder out."
    )
  for rater in raters:
    tables.check_file_name(rater, "The annotator")
  rows, images = [], {}
  for label in _bar(labels, "mask", "drawing masks"):
    media = source.header(label.clip)
    _check_frame(label, media)
    key = label.clip, label.frame
    if key not in images:
      flat = label.clip.replace("/", "_")
      images[key] = flat if media.n_frames == 1 else f"{flat}_{label.frame:06d}"
      folder.picture(readers.read(media, [label.frame])[0], f"images/{images[key]}.png")
      cells = names[label.clip]
      rows.append((images[key], _patient(names, label.clip), cells["split"], cells["day"]))
    drawn = masks.draw(label, media)
    if tables.IGNORE in drawn:
      raise UserError(
        f"Frame {label.frame} of {label.clip} has pixels that do not count, which "
        "multirater_folder does not know; say --builder lus_folder, where each annotator's frame "
        "is an example."
      )
    for name in classes:
      within = f"raters/{label.annotator}" + (f"/{name}" if len(classes) > 1 else "")
      # Who looked and drew nothing is not who did not look.
      empty = np.zeros((media.height, media.width), np.uint8)
      folder.picture(drawn.get(name, empty), f"{within}/{images[key]}.png")
  if len(set(images.values())) < len(images):
    raise UserError("Two clips have one name but for / and _; rename one of them.")
  is_unknown = _is_unknown(names)
  more = ({"soft": True} if masks.is_soft else {}) | ({"patients": "unknown"} if is_unknown else {})
  folder.dataset(
    name=options.name or options.out.name,
    licence=options.licence,
    classes=classes,
    thin=list(options.thin),
    **more,
  )
  columns = [0, 1] + [i for i in (2, 3) if any(row[i] for row in rows)]
  header = ("image", "patient", "split", "day")
  folder.table(
    "patients.csv", [header[i] for i in columns], [[row[i] for i in columns] for row in rows]
  )
  left_out = [name for name in source.clips if name not in {clip for clip, _ in images}]
  notes = [
    f"{plural(len(images), 'image')}, {plural(len(raters), 'rater')} ({', '.join(raters)}), "
    f"classes {', '.join(classes)}."
  ]
  if left_out:
    notes.append(
      f"Left out: {len(left_out)} clips that nobody drew ({tables.shown_list(left_out, 5)})."
    )
  return [*notes, _PATIENTS_NOTE] if is_unknown else notes
