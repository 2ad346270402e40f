"""What becomes of each clip of an import: its name, patient, scan area, and its copy."""

import dataclasses
import pathlib

from lus_jax import progress
from lus_jax.errors import UserError
from lus_jax.media import deidentify, readers, scan_area, tags
from lus_jax.words import plural
from tfds_builders import tables
from tfds_builders.importers import facts as facts_lib
from tfds_builders.importers import source as source_lib

# One for all imports, so that later deliveries fit the first.
KEY = pathlib.Path("~/.config/lus_jax/pseudonyms.key")


def bar(items, unit, what):
  """A progress bar over a list."""
  return progress.bar(items, total=len(items), unit=unit, what=what, delay=2)


@dataclasses.dataclass
class _Row:
  """A clip as it is written.

  Attributes:
    name: without suffix.
    patient: who it shows, or a stand-in.
    area: its `scan_area.Area`.
    widened: whether that was widened to hold what was drawn.
    cut: whether what was drawn leaves the area that a user gave.
  """

  name: str
  patient: str
  area: scan_area.Area
  widened: bool = False
  cut: bool = False


class Clips:
  """The clips of an import, by the name that the source gives them.

  Args:
    source: the `Source`.
    facts: of `facts.gather`.
    options: `write.Options`.

  Attributes:
    patients_are_unknown: whether nobody says whose any clip is.

  Raises:
    UserError: a clip is damaged, or it is said of some clips only whose they are.
  """

  def __init__(self, source, facts, options):
    self._source, self._options = source, options
    is_dicom = any(source.header(name).format == "dicom" for name in source.clips)
    self._deidentified = is_dicom if options.deidentify is None else options.deidentify
    if not self._deidentified and (options.keep_pixels or options.keep_names):
      raise UserError(
        "--keep-pixels and --keep-names are of de-identified copies; say --deidentify, or leave "
        "them out."
      )
    self._pseudonyms, self._removed, self._annotators = None, [], {}
    self._facts = facts
    if self._deidentified and not options.dry_run:
      self._pseudonyms = deidentify.Pseudonyms(options.key.expanduser(), options.out)
    self.patients_are_unknown = _are_unknown(facts)
    self._rows = {
      name: self._row(name, facts[name])
      for name in bar(list(source.clips), "clip", "looking for the scan areas")
    }

  def _row(self, name, cells):
    patient, written = cells["patient"] or name, name
    if self._pseudonyms and not self._options.keep_names:
      patient = self._pseudonyms.patient(patient)
      written = self._pseudonyms.name(name)
    return _Row(written, patient, self._area(name))

  def _area(self, name):
    media, crop = self._source.header(name), self._options.crop
    if crop == "auto":
      return scan_area.find(media)
    whole = scan_area.whole(media.height, media.width)
    if crop == "none":
      return scan_area.Area(whole, "whole")
    try:
      return scan_area.Area(scan_area.parse(crop, media.height, media.width), "user")
    except UserError as error:
      raise UserError(f"--crop, for {media.path}: {error} Or say auto, or none.") from error

  def annotator(self, text):
    """What an annotator is called: a pseudonym, if the name looks like a person's or an address."""
    if not self._deidentified or self._options.keep_names:
      return text
    if deidentify.suspicious(text) is None or self._pseudonyms is None:
      self._annotators.setdefault(text, text)
    else:
      self._annotators[text] = self._pseudonyms.annotator(text)
    return self._annotators[text]

  def __getitem__(self, name):
    return self._rows[name]

  def table(self):
    """The columns that any clip has a cell in, the patient's first, and the cells of each clip."""
    cells = {}
    for name, row in self._rows.items():
      media = self._source.header(name)
      is_whole = row.area.box == scan_area.whole(media.height, media.width)
      area = "" if is_whole else scan_area.text(row.area.box)
      cells[name] = self._facts[name] | {"patient": row.patient, "scan_area": area}
    columns = [
      column
      for column in (*facts_lib.COLUMNS, "scan_area")
      if any(one[column] for one in cells.values())
    ]
    return columns, {name: [one[column] for column in columns] for name, one in cells.items()}

  def widen(self, extents):
    """Widens scan areas that were found, not given, to hold what was drawn.

    Args:
      extents: boxes around what was drawn, by clip.
    """
    for name, boxes in extents.items():
      row = self._rows[name]
      box, scan = (scan_area.around(x, *boxes) for x in (row.area.box, row.area.scan))
      leaves = (box, scan) != (row.area.box, row.area.scan)
      if row.area.how == "user":
        row.cut = leaves
      else:
        row.widened = leaves
        row.area = scan_area.Area(box, row.area.how, scan)

  def copy(self, folder, name, within):
    """Copies a clip, without what tells whose it is if that is wished; returns its file's name."""
    row, media = self._rows[name], self._source.header(name)
    clip = self._source.clips[name]
    if not self._deidentified:
      file = f"{row.name}{source_lib.suffix(clip.path)}"
      folder.copy(clip.path, media.files, f"{within}/{file}")
      return file
    if self._pseudonyms is None:  # a dry run
      return row.name
    path, removed = folder.make(
      f"{within}/{row.name}",
      lambda target: deidentify.rewrite(
        media,
        row.area.scan,
        target,
        self._pseudonyms,
        patient=self._facts[name]["patient"] or None,
        keep_pixels=self._options.keep_pixels,
      ),
    )
    self._removed.append(removed)
    return f"{row.name}{source_lib.suffix(path)}"

  def frame(self, name, number):
    """One frame of a clip, uint8 [h, w], black outside the scan area if that is wished."""
    image = readers.read(self._source.header(name), [number])[0]
    if not self._deidentified or self._options.keep_pixels:
      return image
    return deidentify.blank(image, self._rows[name].area.scan)

  def _fills(self, name):
    """Whether de-identification keeps all of a clip's frames."""
    media = self._source.header(name)
    return self._rows[name].area.scan == scan_area.whole(media.height, media.width)

  def notes(self):
    """What a user should know of the clips, as lines."""
    rows, found = self._rows.values(), {}
    for name, row in self._rows.items():
      found.setdefault(row.area.how, []).append(name)
    words = {
      "header": "said by the header",
      "motion": "found by what moves",
      "still": "found on one picture",
      "user": "given",
      "whole": "the whole frame",
    }
    notes = [
      "Scan areas: "
      + ", ".join(f"{len(found[how])} {words[how]}" for how in words if how in found)
      + "; look at them in the sheet of lus_jax.check."
    ]
    if widened := [name for name, row in self._rows.items() if row.widened]:
      notes.append(
        f"Scan areas widened to hold what was drawn: {len(widened)} "
        f"({tables.shown_list(widened, 5)})."
      )
    if cut := [name for name, row in self._rows.items() if row.cut]:
      notes.append(
        f"What was drawn leaves the area of --crop and is cut off in {plural(len(cut), 'clip')} "
        f"({tables.shown_list(cut, 5)})."
      )
    if not self._deidentified:
      return notes + self._told()
    notes += self._deidentified_notes(len(rows))
    kept = self._options.keep_pixels
    if whole := [name for name in self._rows if not kept and self._fills(name)]:
      notes.append(
        f"Nothing was blanked in {len(whole)} clip(s), whose scan fills the whole frame "
        f"({tables.shown_list(whole, 5)}): look for text in them."
      )
    return notes

  def _deidentified_notes(self, n_clips):
    if self._pseudonyms is None:
      return [f"{plural(n_clips, 'clip')} would be de-identified."]
    notes, kept = [], self._options.keep_names
    if self._removed:
      notes += deidentify.report(self._removed)
    else:
      pixels = "kept" if self._options.keep_pixels else "blanked"
      notes.append(
        f"De-identified: frames of {plural(n_clips, 'clip')} as PNG, without headers; what lies "
        f"outside the scan area was {pixels}."
      )
    if kept:
      notes.append("Names of files and patients were kept; DICOM headers have pseudonyms.")
    if own := [name for name, written in self._annotators.items() if name == written and name]:
      notes.append(f"Names of annotators were kept: {tables.shown_list(own, 5)}.")
    if replaced := sum(name != written for name, written in self._annotators.items()):
      notes.append(f"Names of annotators replaced by pseudonyms: {replaced}.")
    return [
      *notes,
      f"Pseudonyms and shifted dates by the key {self._options.key}: keep it apart from the data, "
      "and for the next delivery.",
    ]

  def _told(self):
    """What copies that were made as they are tell, as lines."""
    names = []
    for name in self._source.clips:
      media = self._source.header(name)
      told = tags.read(media)
      if told and (
        media.format == "dicom" or any(deidentify.suspicious(text) for _, _, text in told)
      ):
        names.append(name)
    if not names:
      return []
    return [
      f"Headers of {plural(len(names), 'clip')} were copied as they are, and seem to tell whose "
      f"they are or when they were made: {tables.shown_list(names, 5)}. Say --deidentify to have "
      "that replaced."
    ]


def _are_unknown(facts):
  """Whether nobody says whose any clip is; of some only is refused (`UserError`)."""
  known = [name for name, cells in facts.items() if cells["patient"]]
  if known and len(known) < len(facts):
    lacking = next(name for name in facts if name not in known)
    raise UserError(
      f"Nobody says whose {len(facts) - len(known)} clip(s) are, as {lacking}, but of others it is "
      "said; name all patients with --table or --patient-pattern."
    )
  return not known
