"""Reads all pixels of one clip and its masks, and keeps of them what a check asks for."""

import contextlib
import dataclasses
import hashlib
import io

import numpy as np
from PIL import Image

from lus_jax import notices, palette, problems
from lus_jax.check import folders, lettering
from lus_jax.errors import UserError
from lus_jax.media import alike, scan_area, tags
from lus_jax.media.deidentify import suspicious
from tfds_builders import mask_check, tables

# The longer side of the sheet's pictures.
_SIDE = 300
_QUALITY = 75
# Upper ends of the bins of confidences above 0; masks are of 32 bits, in which .2 is more than .2.
BINS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
_ROUNDING = 1e-6
# Masks whose largest value is no more than this of 255 hold indices rather than faint confidences;
# those of one value alone, if it is smaller still.
_MOST_INDICES, _FEW_INDICES = 20, 5
# The share of a clip's frames from which on it is worth a word.
_REPEATED = 0.05
# Of a frame: a scan that fills less of it is small.
_SMALL = 0.5


@dataclasses.dataclass(frozen=True)
class Mask:
  """What a mask shows.

  Attributes:
    file: where it is.
    pixels: how many are above 0, within the scan area, and count.
    bins: int64 [6]: those of (0, .2], (.2, .4], ... (.8, 1), and of 1.
    measured: for a `mask_check.MaskCheck`.
  """

  file: str
  pixels: int
  bins: np.ndarray
  measured: mask_check.Mask

  @property
  def name(self):
    """Its class."""
    return self.measured.name


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of the sheet.

  Attributes:
    data: a JPEG.
    height, width: of what it shows, in the frame's own pixels.
    frame: the frame's number.
    person: who painted on it; None: nobody, it shows the frame alone.
    is_cropped: whether it shows the scan area alone.
    painted: the largest confidence by class.
  """

  data: bytes
  height: int
  width: int
  frame: int
  person: str | None = None
  is_cropped: bool = False
  painted: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Seen:
  """What the files of a clip hold.

  Attributes:
    n_frames: that could be read.
    n_flat: of these, of one grey value all over.
    n_repeated: of these, equal to an earlier one, and not flat.
    hashes: [n, 32] uint8 of some of its frames, for `alike`.
    area: where the scan is, as the tables say (`how` is "table"), or else seems to be.
    text: boxes of what looks like text.
    labels: of each label that could be read, its masks and how many pixels of the frame training
      sees.
    pictures: for the sheet.
    problems: what training refuses.
  """

  n_frames: int = 0
  n_flat: int = 0
  n_repeated: int = 0
  hashes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 32), np.uint8))
  area: scan_area.Area | None = None
  text: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)
  labels: list[tuple[list[Mask], int]] = dataclasses.field(default_factory=list)
  pictures: list[Picture] = dataclasses.field(default_factory=list)
  problems: list[UserError] = dataclasses.field(default_factory=list)


def look(dataset, step, shown, index):
  """Reads a clip and all that was painted on it, and warns of what looks wrong.

  Args:
    dataset: a `folders.DataSet`.
    step: of the frames that the scan area is found in, every so many one is kept for `alike`.
    shown: by the number of each clip that the sheet shows, the numbers of the labels it shows.
    index: the clip's number.

  Returns:
    A `Seen`.
  """
  clip, seen = dataset.clips[index], Seen()
  labels = [clip.labels[i] for i in shown.get(index, ())]
  wanted = {label.frame for label in labels}
  if index in shown:
    wanted.add(clip.media.n_frames // 2)
  with problems.collected() as seen.problems:
    with _at(clip.where):
      kept = {}
      _look_at_frames(dataset, clip, seen, step, wanted, kept)
    if index in shown and clip.media.n_frames // 2 in kept:
      seen.pictures.append(_picture(kept, clip.media.n_frames // 2))
    for label in clip.labels:
      weights = {} if label in labels and label.frame in kept else None
      with _at(label.where):
        _look_at_masks(dataset, clip, label, seen, weights)
      if weights is not None:
        seen.pictures.append(_overlay(dataset, kept, label, weights, seen.area.box))
    with problems.apart():
      _warn_of_tags(clip)
  return seen


@contextlib.contextmanager
def _at(where):
  """Tells what is refused within, and where."""
  try:
    yield
  except UserError as error:
    problems.tell(UserError(f"{where}: {error}") if where else error)


def _look_at_frames(dataset, clip, seen, step, wanted, kept):
  """Reads all frames; puts those that are wanted into `kept`."""
  before, lowest, highest, middle = set(), None, None, None
  looked_at, found_in = set(scan_area.looked_at(clip.media)), []
  for i, frame in enumerate(folders.frames(dataset, clip)):
    seen.n_frames += 1
    if i in wanted:
      kept[i] = frame
    if i in looked_at:
      found_in.append(frame)
    if frame.min() == frame.max():
      seen.n_flat += 1
      continue
    digest = hashlib.blake2b(frame.tobytes(), digest_size=8).digest()
    seen.n_repeated += digest in before
    before.add(digest)
    if lowest is None:
      lowest, highest, middle = frame.copy(), frame.copy(), frame
    else:
      np.minimum(lowest, frame, out=lowest)
      np.maximum(highest, frame, out=highest)
    if i <= clip.media.n_frames // 2:
      middle = frame
  seen.area = scan_area.Area(clip.area, "table") if clip.area else _find_area(clip, found_in)
  hashes = [x for frame in found_in[::step] for x in alike.hashes(_within(frame, seen.area.box))]
  if hashes:
    seen.hashes = np.stack(hashes)
  if seen.n_frames == seen.n_flat:
    notices.warn("%s: every frame is of one grey value all over.", clip.media.path)
    return
  if seen.n_repeated > _REPEATED * seen.n_frames:
    notices.warn(
      "%s: %d of %d frames repeat an earlier one to the bit; labels of both are one frame's.",
      clip.media.path,
      seen.n_repeated,
      seen.n_frames,
    )
  # What moves is no text; but a clock is.
  seen.text = lettering.find(lowest, highest - lowest) or lettering.find(middle)
  _warn_of_text(clip, seen.text)


def _find_area(clip, frames):
  """Where the scan seems to be, with a warning where nobody says so and it is small."""
  media = clip.media
  found = scan_area.find_among(media, np.stack(frames))
  top, left, bottom, right = found.box
  if (bottom - top) * (right - left) < _SMALL * media.height * media.width:
    notices.warn(
      "%s: the scan seems to be %d x %d of %d x %d pixels, and training would see all of them; "
      'write scan_area "%s" into its row, or what is right.',
      media.path,
      right - left,
      bottom - top,
      media.width,
      media.height,
      scan_area.text(found.box),
    )
  return found


def _within(frame, box):
  """The part of a frame [h, w] within a box."""
  return frame[box[0] : box[2], box[1] : box[3]]


def _warn_of_text(clip, found):
  outside = [box for box in found if clip.area is not None and not _overlap(box, clip.area)]
  for lines, text in (
    ([box for box in found if box not in outside], ""),
    (outside, " outside of the scan area, which training crops away, but who gets the file reads"),
  ):
    if lines:
      top, left, bottom, right = lines[0]
      notices.warn(
        f"%s: there seems to be text in its pixels{text}: %d line(s), the first of %d x %d pixels "
        "at x = %d, y = %d. If it tells whose it is, blank it (importing --deidentify does).",
        clip.media.path,
        len(lines),
        right - left,
        bottom - top,
        left,
        top,
      )


def _overlap(box, other):
  return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _warn_of_tags(clip):
  media = clip.media
  told = tags.read(media)
  if media.format == "dicom":
    # Imported here: pydicom is large, and few need it.
    from lus_jax.media import dicom_copy

    # Whatever stands in these is of the patient, the place or the time.
    names = {name for _, name, _ in told}
    if dicom_copy.is_deidentified(media.path):
      names -= {"PatientID", "PatientName"}
    if names:
      notices.warn(
        "%s: its header tells whose it is or when it was made (%s); import it, which replaces it.",
        media.path,
        tables.shown_list(sorted(names), 5),
      )
    return
  for path, name, text in told:
    if what := suspicious(text):
      notices.warn(
        f"%s: its tag {tags.public_name(name)} holds what looks like {what}; remove it (importing "
        "can).",
        path,
      )


def _look_at_masks(dataset, clip, label, seen, weights):
  """Reads the masks of a label; puts them into `weights`, by class, if that is not None."""
  shape = clip.media.height, clip.media.width
  # What training sees is counted.
  box = clip.area or scan_area.whole(*shape)
  found = []
  seen.labels.append((found, (box[2] - box[0]) * (box[3] - box[1])))
  ignored = folders.ignored(dataset, label)
  for name, mask, by_values in folders.masks(dataset, label):
    if mask.shape != shape:  # which was told
      continue
    if ignored is not None:
      mask = np.where(ignored, np.float32(0), mask)
    painted = _within(mask, box)
    painted = painted[painted > 0]
    bins = np.bincount(np.searchsorted(BINS[:-1] + _ROUNDING, painted), minlength=len(BINS))
    bins = np.append(bins, int((painted >= 1 - _ROUNDING).sum()))
    bins[-2] -= bins[-1]
    found.append(
      Mask(
        file=str(label.files[name]),
        pixels=painted.size,
        bins=bins,
        measured=mask_check.measure(mask, name, label.person, may_be_inverted=by_values),
      )
    )
    _warn_of_mask(dataset, clip, label.files[name], painted, mask)
    if weights is not None:
      weights[name] = mask


def _warn_of_mask(dataset, clip, path, painted, mask):
  levels = np.unique(painted) * 255
  low = levels[levels <= _MOST_INDICES + 0.5]
  # What is only 0 and 1 is told where masks are read, and 255 may be what does not count.
  if (
    dataset.folder.confidence_maximum is None
    and low.size >= max(1, levels.size - 1)
    and (levels[-1] > 254 or low.size == levels.size)
    and 1.5 < levels[low.size - 1] < (_MOST_INDICES if low.size > 1 else _FEW_INDICES) + 0.5
    and np.allclose(low, np.rint(low), atol=1e-3)
  ):
    notices.warn(
      "%s: its values are %s of 255, as label indices are, and no confidences; write a mask a "
      "class (importing: palette).",
      path,
      ", ".join(f"{level:.0f}" for level in (0, *levels)),
    )
  mask_check.warn_of_outside(path, mask, clip.area)


def _jpeg(pixels):
  image = Image.fromarray(pixels)
  image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=_QUALITY)
  return buffer.getvalue()


def _picture(kept, frame):
  pixels = kept[frame]
  return Picture(_jpeg(pixels), *pixels.shape, frame)


def _overlay(dataset, kept, label, weights, box):
  pixels = kept[label.frame]
  empty = np.zeros(pixels.shape, np.float32)
  layers = np.stack([weights.get(name, empty) for name in dataset.classes], axis=-1)
  # The scan alone where it has all that is painted, as it may be a small part of the screen.
  is_cropped = np.count_nonzero(_within(layers, box)) == np.count_nonzero(layers)
  if is_cropped:
    pixels, layers = _within(pixels, box), _within(layers, box)
  return Picture(
    _jpeg(palette.overlay(pixels, layers)),
    *pixels.shape,
    label.frame,
    label.person,
    is_cropped and pixels.shape != empty.shape,
    {name: float(mask.max()) for name, mask in weights.items() if mask.any()},
  )
