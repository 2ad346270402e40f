"""Copies of videos and pictures without what tells whose they are, and pseudonyms for names."""

import base64
import collections
import contextlib
import dataclasses
import datetime
import hmac
import os
import pathlib
import re
import secrets
import tempfile
import unicodedata

import numpy as np

from lus_jax import files, notices
from lus_jax.errors import UserError
from lus_jax.media import containers, readers, tags, writers
from lus_jax.words import plural

# Dates are moved back by one day to ten years.
_MOST_DAYS = 3650
# Letters of a pseudonym, of 5 bits each: two of 10,000 patients share one with a chance of 1e-7.
_LETTERS = 10

_MONTHS = "jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz]"
_YEAR, _MONTH, _DAY = "(?:19|20)[0-9]{2}", "(?:0?[1-9]|1[0-2])", "(?:0?[1-9]|[12][0-9]|3[01])"
# What looks like it tells whose a picture is; the first that fits is said.
_SUSPICIOUS = {
  "a date": (
    rf"(?<![0-9]){_YEAR}([-_./ ]){_MONTH}\1{_DAY}(?![0-9])",
    rf"(?<![0-9]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9])",
    rf"(?<![0-9]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])T?[0-9]{{6}}",
    rf"(?<![0-9])(?:{_DAY}([-_./ ]){_MONTH}|{_MONTH}([-_./ ]){_DAY})(?:\1|\2){_YEAR}(?![0-9])",
    rf"(?i)(?<![0-9]){_DAY}[-_. ]*(?:{_MONTHS})[a-z]*[-_. ]*{_YEAR}(?![0-9])",
  ),
  "a DICOM UID": (r"(?<![0-9.])[0-2](?:\.(?:0|[1-9][0-9]*)){5,}",),
  "a number of a person or an examination": (
    r"(?<![0-9])0*[1-9][0-9]{6,}",
    r"(?i)(?<![a-z])(?:mrn|ssn|dob|pid)(?![a-z])",
  ),
  "a person's name": (
    r"(?<![^\W\d_])[^\W\d_]{2,}\^",
    r"(?<!\w)[^\W\d_a-z][^\W\d_A-Z]+,[ _]?[^\W\d_a-z][^\W\d_A-Z]+",
    r"(?i)(?<![^\W_])(?:mr|mrs|dr|prof|herr|frau|mme)[._ ]+[^\W\d_]{2,}",
  ),
}
# Letters and digits of a checksum are no number of a person.
_CHECKSUM = re.compile(r"(?<![0-9a-zA-Z])(?=[0-9]*[a-f])[0-9a-f]{16,}(?![0-9a-zA-Z])")
_WORDS = re.compile(r"[^\W\d_a-z][^\W\d_A-Z]{2,}(?![^\W\d_])|[^\W\d_a-z][^\W\d_A-Z]{2,}(?=[A-Z])")
# Capitalised words of file names that are no names of people; others are asked about.
_ORDINARY = """
  annotation annotations anterior apical area artefact artifact axial base basal baseline bmode
  bottom breast cardiac case class clip consolidation control convex coronal curved data dataset
  day depth diaphragm doppler edited effusion elastography example exam expert export exported
  fascia final first folder follow frame frames fuzzy heart healthy image images input kidney
  label labels lateral left line linear lines liver long lower lung lungs mask masks medial mode
  muscle negative new normal old output pathological patient patients phantom phased picture
  pleura pleural positive posterior probe raw reader rater record recorded recording right
  sagittal sample scan scans seg segmentation sequence series sharp short side site still student
  study subject test thyroid top train transverse ultrasound upper user validation vertical video
  videos view visit zone
"""


def suspicious(text):
  """Guesses whether a file's name or a tag's text tells whose it is, or when it was made.

  It is for warnings: a single surname, or a name in small letters, is not recognised.

  Returns:
    'a date', 'a DICOM UID', 'a number of a person or an examination' or "a person's name"; None
    where nothing looks like it.
  """
  text = _CHECKSUM.sub(" ", unicodedata.normalize("NFC", text))
  for what, patterns in _SUSPICIOUS.items():
    if any(re.search(pattern, text) for pattern in patterns):
      return what
  # Two capitalised words side by side, as Anna_Mueller or AnnaMueller.
  found, ordinary = list(_WORDS.finditer(text)), _ORDINARY.split()
  for one, other in zip(found, found[1:], strict=False):
    beside = re.fullmatch(r"[\s_.-]?", text[one.end() : other.start()])
    capital = one[0][0].isupper() and other[0][0].isupper()
    if beside and capital and not {one[0].lower(), other[0].lower()}.intersection(ordinary):
      return "a person's name"
  return None


class Pseudonyms:
  """Names and days that stand for real ones; who has the key can find out which is whose.

  The same key gives the same pseudonyms again, so that a later delivery fits the first. Spellings
  of one id (007 and 7) are different ids here, as in tables; accents are composed first (Unicode
  NFC), as there.

  Args:
    key: the file of the key, of mode 600; it is made where there is none.
    output: the folder that the key must not lie in, as that is passed on.

  Raises:
    UserError: the key lies in `output`, or others can read it, or it is no key, or the disk
      refuses it.
  """

  def __init__(self, key, output):
    key, folder = pathlib.Path(key).resolve(), pathlib.Path(output).resolve()
    if key.is_relative_to(folder):
      raise UserError(
        f"{key}: the key of the pseudonyms lies in the output folder {folder}, which is passed on; "
        "name a place elsewhere."
      )
    self._key = _read_key(key) or _make_key(key)
    self._path, self._texts = key, {}

  def _digest(self, purpose, text):
    message = f"{purpose}\0{unicodedata.normalize('NFC', text)}".encode("utf-8", "surrogateescape")
    return hmac.digest(self._key, message, "sha256")

  def _pseudonym(self, prefix, purpose, text):
    if not text:
      return ""
    short = prefix + base64.b32encode(self._digest(purpose, text)).decode()[:_LETTERS]
    text = unicodedata.normalize("NFC", text)
    if self._texts.setdefault(short, text) != text:
      raise UserError(
        f"{self._path}: with this key two names have the pseudonym {short}; take another key, and "
        "import everything with it."
      )
    return short

  def patient(self, text):
    """The pseudonym of a patient's id, as 'PK3QW5Y7ABC'; '' (unknown) stays so."""
    return self._pseudonym("P", "patient", text)

  def name(self, text):
    """The pseudonym of a file's name, as 'FK3QW5Y7ABC'; give its whole path below the source."""
    return self._pseudonym("F", "name", text)

  def annotator(self, text):
    """The pseudonym of who annotated, as 'AK3QW5Y7ABC'; '' (unknown) stays so."""
    return self._pseudonym("A", "annotator", text)

  def shift(self, patient):
    """How many days are added to the dates of a patient, by the real id: -1 to -3650."""
    return -1 - int.from_bytes(self._digest("shift", patient)[:8]) % _MOST_DAYS

  def shifted(self, patient, date):
    """A `datetime.date` of a patient, by the real id, shifted; None before the year 1."""
    with contextlib.suppress(OverflowError):
      return date + datetime.timedelta(days=self.shift(patient))

  def uid(self, text):
    """The DICOM UID that stands for another, or for any text."""
    # A UUID as a UID, of the kind whose bits are of its maker's choice (version 8).
    bits = int.from_bytes(self._digest("uid", text)[:16])
    bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62
    return f"2.25.{bits}"


def _read_key(path):
  """The bytes of a key's file; None where there is none."""
  if not path.exists():
    return None
  files.check_file(path, "name another place for the key of the pseudonyms")
  mode = path.stat().st_mode & 0o777
  if mode & 0o077:
    raise UserError(
      f"{path}: others than its owner can read or write the key of the pseudonyms (mode {mode:o}); "
      "run chmod 600 on it."
    )
  try:
    content = path.read_bytes()
  except OSError as error:
    raise files.unreadable(path, error) from error
  if not re.fullmatch(rb"[0-9a-f]{64}\n?", content):
    raise UserError(
      f"{path} is no key of pseudonyms (64 hexadecimal digits); bring back the one that was made, "
      "or name another place, where a new one is made."
    )
  return bytes.fromhex(content.decode())


def _make_key(path):
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of mode 600 from the beginning.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
      file.write(secrets.token_hex(32) + "\n")
      file.flush()
      os.fsync(file.fileno())
    # Not renamed: of two commands at once both take the key of the first.
    with contextlib.suppress(FileExistsError):
      os.link(temporary, path)
  except OSError as error:
    raise UserError(
      f"{path}: the key of the pseudonyms cannot be made there ({error.strerror}); name another "
      "place."
    ) from error
  finally:
    if temporary is not None:
      os.unlink(temporary)
  return _read_key(path)


@dataclasses.dataclass(frozen=True)
class Removed:
  """What the copy of a video or picture has no longer: names of attributes, never their values.

  Attributes:
    removed: how often each attribute or tag was removed, by its name.
    replaced: names of those that have a pseudonym or another date in the copy.
    n_frames: how many frames there are.
    n_blanked: how many of all their pixels lie outside the scan area and are 0 now.
  """

  removed: dict[str, int]
  replaced: frozenset[str]
  n_frames: int
  n_blanked: int


def rewrite(media, box, target, pseudonyms, *, patient=None, keep_pixels=False):
  """Writes a copy without what tells whose a video or picture is, whole or not at all.

  Its frames are what `readers.read` gives, as shown, without loss: DICOM becomes DICOM (grey,
  JPEG-LS), NIfTI and npy what they are, with the axes they had, NRRD and MetaImage .mha; of all
  else what has a rate becomes a grey AVI (FFV1), pictures become PNG, numbered from 0 where there
  are several. Text that is burned into the scan area stays.

  Args:
    media: what `readers.probe` returned.
    box: the scan area, (top, left, bottom, right) as shown; what is outside becomes 0.
    target: where the copy goes, without a suffix.
    pseudonyms: `Pseudonyms`, for the ids, dates and UIDs of DICOM.
    patient: the patient's real id; by default what DICOM says.
    keep_pixels: leaves the pixels outside the box.

  Returns:
    The path of the copy, a file or a folder, and a `Removed`.

  Raises:
    UserError: the file is damaged, or the disk refuses the copy.
  """
  target, replaced = pathlib.Path(target), frozenset()
  n_blanked = 0
  if not keep_pixels:
    top, left, bottom, right = box
    n_blanked = media.n_frames * (media.height * media.width - (bottom - top) * (right - left))
  frames = _frames(media, None if keep_pixels else box)
  if media.format == "dicom":
    # Imported here: pydicom is large, and few need it.
    from lus_jax.media import dicom_copy

    path, removed, replaced = dicom_copy.write(target, frames, media, pseudonyms, patient)
  else:
    removed = collections.Counter(tags.public_name(name) for _, name, _ in tags.read(media))
    path = writers.write(target, frames, media)
    if media.format == "video" and not media.slots and containers.is_uneven(media.path):
      notices.warn(
        "%s: its frames stay for different times; its copy shows all for the mean, %.4g a second.",
        media.path,
        media.frames_per_second,
      )
  return path, Removed(dict(removed), frozenset(replaced), media.n_frames, n_blanked)


def _frames(media, box):
  for frame in readers.stream(media):
    yield np.ascontiguousarray(frame) if box is None else blank(frame, box)


def blank(frame, box):
  """A copy of a frame [h, w] that is 0 outside a box (top, left, bottom, right)."""
  top, left, bottom, right = box
  blanked = np.zeros_like(frame)
  blanked[top:bottom, left:right] = frame[top:bottom, left:right]
  return blanked


def report(removed):
  """Says what an import removed, as lines of text: names of attributes with counts, no values.

  Args:
    removed: the `Removed` of each copy.
  """
  times, copies, replaced = (collections.Counter() for _ in range(3))
  for one in removed:
    times.update(one.removed)
    copies.update(one.removed.keys())
    replaced.update(one.replaced)
  blanked = [one for one in removed if one.n_blanked]
  lines = [f"De-identified: {plural(len(removed), 'clip')}."]
  if blanked:
    n_pixels, n_frames = sum(x.n_blanked for x in blanked), sum(x.n_frames for x in blanked)
    lines.append(
      f"Outside the scan area: {plural(n_pixels, 'pixel')} of {plural(n_frames, 'frame')} in "
      f"{len(blanked)} of them blanked."
    )
  if kept := len(removed) - len(blanked):
    lines.append(f"No pixels blanked: in {kept} of them.")
  for name, n in sorted(replaced.items()):
    how = "shifted" if name.endswith("Date") else "replaced by a pseudonym"
    lines.append(f"{name}: {how} in {n} of them.")
  for name, n in sorted(copies.items()):
    often = f" ({times[name]} times)" if times[name] > n else ""
    lines.append(f"{name}: removed from {n} of them{often}.")
  return lines
