"""Masks of other tools: a file a class and frame, or arrays; confidences, colours or contours."""

import numpy as np

from lus_jax.errors import UserError
from lus_jax.labels import borders
from lus_jax.media import confidences, nifti, readers, stills
from tfds_builders import tables
from tfds_builders.importers import arrays, options
from tfds_builders.importers import folder as folder_lib
from tfds_builders.importers.source import Label, Source, Videos, place

HELP = "masks: a file a class and frame, colours, trimaps, contours, NIfTI, NumPy"
_ROLES = ("inner", "outer")
_SEPARATORS = "_-. "
_MOST_SHOWN = 3


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  options.add_annotations(command, "folder of masks, in folders or with names of clips and classes")
  options.add_frame_pattern(command)
  command.add_argument(
    "--classes",
    type=options.names,
    help="names of the classes, as they stand in the masks' names or folders; of labels 1, 2, ...",
  )
  command.add_argument(
    "--colours",
    type=options.colours,
    metavar="CLASS=COLOUR,...",
    help="the classes of colour-coded masks: b_line=#ff0000,pleura=0,255,0",
  )
  command.add_argument(
    "--background",
    type=options.colour,
    default=(0, 0, 0),
    metavar="COLOUR",
    help="the colour of nothing in colour-coded masks; by default black",
  )
  command.add_argument(
    "--unsure",
    type=options.percentage,
    metavar="PERCENT",
    help="masks hold 0, 128 (unsure) and 255: the confidence of 128",
  )
  command.add_argument(
    "--confidence-maximum",
    type=options.positive,
    help="what means 100 %% in masks, where their type does not say",
  )
  command.add_argument("--nifti-axes", choices=nifti.AXES, help="which axis of NIfTI is the first")
  command.add_argument(
    "--axes",
    choices=arrays.AXES,
    metavar="nhw",
    help="which axes of NumPy arrays are frames (n), rows (h), columns (w) and classes (k)",
  )
  command.add_argument(
    "--empty-frames",
    action="store_true",
    help="frames of an array that nothing is drawn on were seen and are empty; by default they "
    "are not labelled",
  )


class _Names:
  """Finds classes in the names of files."""

  def __init__(self, classes):
    self._classes = {}
    for name in classes:
      for role in ("", *_ROLES):
        for separator in "_-" if role else ("",):
          key = f"{tables.normal(name).casefold()}{separator}{role}"
          self._classes[key] = name, role

  def split(self, text):
    """What a mask is of, and its class and role ('' for each that the name does not say)."""
    *folders, stem = text.split("/")
    for i, part in enumerate(folders):
      if part.casefold() in self._classes:
        name, role = self._classes[part.casefold()]
        rest, again, _ = self._of_stem(stem)
        stem = rest if again == name and rest else stem
        return "/".join((*folders[:i], *folders[i + 1 :], stem)), name, role
    rest, name, role = self._of_stem(stem)
    return "/".join((*folders, rest) if rest else folders), name, role

  def _of_stem(self, stem):
    folded = stem.casefold()
    if folded in self._classes:
      return "", *self._classes[folded]
    for key in sorted(self._classes, key=len, reverse=True):
      rest = len(stem) - len(key)
      # Capitals of some languages are longer than the small ones.
      if len(folded) != len(stem) or rest < 2:
        continue
      if folded.endswith(key) and stem[rest - 1] in _SEPARATORS:
        return stem[: rest - 1], *self._classes[key]
      if folded.startswith(key) and stem[len(key)] in _SEPARATORS:
        return stem[len(key) + 1 :], *self._classes[key]
    return stem, "", ""


def _collect(root, source):
  """The masks of a folder and those below it: paths by what they are called, without suffix."""
  if not root.is_dir():
    raise UserError(f"{root} does not exist or is no folder; mend --annotations.")
  found = []

  def walk(folder):
    for path in tables.visible(folder):
      if path.is_dir():
        if path.is_symlink():
          raise UserError(f"{path} is a link to a folder; name the folder itself.")
        walk(path)
        continue
      stem = arrays.stem(path)
      if stem is None and path.suffix.lower() in readers.PICTURES:
        stem = path.stem
      if stem is None:
        source.skip("files that are no masks", path.name)
        continue
      place = path.relative_to(root).parent / stem
      found.append((tables.normal(place.as_posix()), path))

  walk(root)
  if not found:
    kinds = ", ".join(s[1:] for s in (*stills.PICTURES, *arrays.SUFFIXES))
    raise UserError(f"{root} holds no mask ({kinds}); mend --annotations.")
  tables.refuse_same_files(path for _, path in found)
  return found


class _Reader:
  """Reads masks as the user says that they are stored."""

  def __init__(self, source, classes, asked):
    self._source, self._classes, self._asked = source, classes, asked
    # What was read of files, the latest last.
    self._read = {}

  def picture(self, path, name):
    """A function that makes the confidences of a picture, float32 [h, w], by class."""
    if self._asked["colours"]:
      return lambda media: self._of_colours(path, media)
    if not name:
      raise UserError(
        f"{path} names no class ({', '.join(self._classes)}) in its name or folder; if it holds "
        "several, say --colours, or import indices with palette."
      )
    return lambda media: {name: self._sure(self._grey(path, media), path)}

  def _grey(self, path, media):
    readers.check_mask_size(path, readers.mask_size(path), media)
    return readers.read_mask(path, maximum=self._asked["confidence_maximum"])

  def _sure(self, values, path):
    """Gives the unsure pixels of a trimap their confidence."""
    unsure = self._asked["unsure"]
    if unsure is None:
      return values
    levels = np.rint(255 * values).astype(int)
    middle = np.isin(levels, (127, 128))
    others = ~(middle | np.isin(levels, (0, 255)))
    if others.any():
      raise UserError(
        f"{path} has {int(others.sum())} pixels that are neither 0, 128 nor 255, as "
        f"{levels[others][0]}; leave --unsure out if they are confidences."
      )
    return np.where(middle, np.float32(unsure / 100), values)

  def _of_colours(self, path, media):
    with stills.opened(path) as image:
      if stills.is_jpeg(image):
        raise UserError(f"{path} is a JPEG, which changes colours; save the mask as PNG.")
      if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "PA"):
        raise UserError(f"{path} has pixels of type {image.mode}; save colours in 8 bits.")
      readers.check_mask_size(path, stills.shown_size(image, path), media)
      stills.pixels(image, path)  # refuses what is damaged
      pixels = np.asarray(image.convert("RGBA"))
      if image.format != "TIFF":
        pixels = stills.turn(pixels, stills.orientation(image, path))
    colour, alpha = pixels[..., :3].astype(np.int32), pixels[..., 3]
    codes = (colour[..., 0] << 16) | (colour[..., 1] << 8) | colour[..., 2]
    codes = np.where(alpha == 0, _code(self._asked["background"]), codes)
    known = codes == _code(self._asked["background"])
    found = {}
    for name, one in self._asked["colours"]:
      of_class = codes == _code(one)
      known |= of_class
      found[name] = np.maximum(found.get(name, np.float32(0)), of_class.astype(np.float32))
    unknown = codes[~known | ~np.isin(alpha, (0, 255))]
    if unknown.size:
      values, counts = np.unique(unknown, return_counts=True)
      shown = [f"#{value:06x}" for value in values[np.argsort(-counts)]]
      raise UserError(
        f"{path} has {unknown.size} pixels ({unknown.size / codes.size:.1%}) of other colours: "
        f"{tables.shown_list(shown, _MOST_SHOWN)}; name them with --colours, or save it without "
        "smoothing."
      )
    return found

  def arrays(self, path):
    """The arrays of a file and the order of their axes; kept until others need the memory."""
    found = self._read.pop(path, None) or arrays.read(path, self._asked["nifti_axes"])
    # A frame may be of several files, and comes before the next frame of each.
    while self._read and sum(map(_n_bytes, [found, *self._read.values()])) > arrays.MOST:
      del self._read[next(iter(self._read))]
    self._read[path] = found
    return found

  def frames(self, path, name, media):
    """What a file of arrays holds: class ('': labels), axes, a key of `arrays`, and its 100 %."""
    found, axes = self.arrays(path)
    by_class = {tables.normal(key): key for key in found if key is not None}
    if None in found or (len(found) == 1 and not by_class.keys() & set(self._classes)):
      by_class = {name: next(iter(found))}
    for key in by_class:
      if key and key not in self._classes:
        raise UserError(
          f"{path} holds an array {tables.shown(key)}, which is no class "
          f"({', '.join(self._classes)}); rename it, or name it in --classes."
        )
    for key, array_key in by_class.items():
      n_classes = None if key else len(self._classes)
      array = found[array_key]
      order = axes if axes and array.ndim == 3 else None
      if order is None:
        order = arrays.order(array, media, n_classes, self._asked["axes"], path)
      elif array.shape[0] not in (1, media.n_frames):
        raise UserError(
          f"{path} has {array.shape[0]} frames, but {media.path} has {media.n_frames}; is it of "
          "another clip?"
        )
      is_labels = not key and "k" not in order
      yield key, order, array_key, None if is_labels else self._scale(array, path)

  def _scale(self, array, path):
    """What means 100 % in an array, in all of its frames."""
    ends = np.array([[array.min(), array.max()]])
    maximum = self._asked["confidence_maximum"]
    full = 255 if array.dtype == np.uint8 else None
    if maximum is None and array.dtype.kind in "iu" and ends.max() <= 1:
      full = 1
    share = confidences.fractions(ends, path, full=full, maximum=maximum)[0, 1]
    return float(ends[0, 1] / share) if share else 1.0

  def of_array(self, path, name, order, key, scale, frame, media):
    """The confidences of one frame of an array, float32 [h, w], by class."""
    values = arrays.by_frames(self.arrays(path)[0][key], order)
    values = np.asarray(values[frame if len(values) > 1 else 0])
    readers.check_mask_size(path, values.shape[:2], media)
    if name:
      return {name: self._sure(values[..., 0] / np.float32(scale), path)}
    if "k" in order:
      return {
        one: self._sure(values[..., k] / np.float32(scale), path)
        for k, one in enumerate(self._classes)
      }
    labels = confidences.whole(values[..., 0])
    highest = len(self._classes)
    wrong = labels[(labels < 0) | (labels > highest) | (labels != np.rint(labels))]
    if wrong.size:
      raise UserError(
        f"{path} has {wrong.size} pixels that are no label from 1 to {highest}, as {wrong[0]:g}; "
        "name all classes in --classes, or a class in the file's name if it holds confidences."
      )
    return {one: (labels == k).astype(np.float32) for k, one in enumerate(self._classes, start=1)}


def _n_bytes(found):
  """Bytes that arrays take in memory; those on the disk take none."""
  return sum(0 if isinstance(array, np.memmap) else array.nbytes for array in found[0].values())


def _code(colour):
  return (colour[0] << 16) | (colour[1] << 8) | colour[2]


class _Frames:
  """Collects what is drawn on each frame."""

  def __init__(self, source):
    self._source = source
    # Pairs of path and maker of confidences, by class and role, by clip, frame and annotator.
    self._parts = {}

  def add(self, key, name, role, path, make):
    """Adds a mask of a frame; refuses a second one of its class (`UserError`)."""
    parts = self._parts.setdefault(key, {})
    if (name, role) in parts:
      raise UserError(
        f"{path} and {parts[name, role][0]} are both of frame {key[1]} of {key[0]}"
        f"{f' and {name}' if name else ''}; remove one."
      )
    parts[name, role] = path, make

  def labels(self):
    """A `Label` for each frame.

    Raises:
      UserError: a contour lacks its partner.
    """
    for (clip, frame, annotator), parts in sorted(self._parts.items()):
      for (name, role), (path, _) in parts.items():
        others = {r for n, r in parts if n == name}
        if role and others != set(_ROLES):
          lacking = "outer" if role == "inner" else "inner"
          raise UserError(
            f"{path} is the {role} contour of {name}, but frame {frame} of {clip} "
            + (f"has no {lacking} one" if lacking not in others else "has a mask of it too")
            + "; add or remove one."
          )
      yield Label(clip, frame, _draw(parts), annotator)


def _draw(parts):
  def draw(media):
    masks, contours = {}, {}
    for (_, role), (path, make) in parts.items():
      for name, values in make(media).items():
        if role:
          contours.setdefault(name, {})[role] = path, values
        else:
          masks[name] = np.maximum(masks.get(name, np.float32(0)), values)
    for name, both in contours.items():
      masks[name] = _between(name, both)
    return {name: np.rint(255 * values).astype(np.uint8) for name, values in masks.items()}

  return draw


def _between(name, both):
  """The confidence between two contours, float32 [h, w]."""
  for path, values in both.values():
    if ((values > 0) & (values < 1)).any():
      raise UserError(f"{path} is a contour with values between 0 and 100 %; save it as 0 and 255.")
  (inner_path, inner), (outer_path, outer) = both["inner"], both["outer"]
  outside = int(((inner > 0) & (outer == 0)).sum())
  if outside:
    raise UserError(
      f"{inner_path} leaves {outer_path.name} by {outside} pixels; the inner contour of {name} "
      "belongs within the outer one."
    )
  if outer.any() and not inner.any():
    raise UserError(f"{inner_path} is empty but {outer_path.name} is not; draw both contours.")
  return borders.between(inner > 0, outer > 0)


def find(
  *,
  videos,
  annotations,
  classes=None,
  colours=None,
  background=(0, 0, 0),
  unsure=None,
  confidence_maximum=None,
  nifti_axes=None,
  axes=None,
  empty_frames=False,
  folders_are_clips=False,
  frame_pattern=None,
):
  """Reads masks.

  Args:
    videos: a folder of the videos or pictures.
    annotations: pairs of annotator ('' if unknown) and folder of masks.
    classes: K names; None: those of `colours`.
    colours: pairs of class and (red, green, blue); None: masks are not colour-coded.
    background: the colour of nothing.
    unsure: the confidence in percent of the value 128; None: it is 128 of 255.
    confidence_maximum: what means 100 %; None: what the type says.
    nifti_axes: which axis of NIfTI is the first: 'xy' (the default) or 'yx'.
    axes: of NumPy arrays, of `arrays.AXES`; None: whichever fit.
    empty_frames: whether frames of arrays that nothing is drawn on are labelled.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.
    frame_pattern: see `source.place`.

  Returns:
    A `Source`.

  Raises:
    UserError: the input is wrong.
  """
  if (classes is None) == (colours is None):
    raise UserError("Name the classes: either --classes, or --colours if masks are colour-coded.")
  names = list(classes or dict.fromkeys(name for name, _ in colours))
  folder_lib.check_names(names, ())
  if colours and background in [colour for _, colour in colours]:
    raise UserError("--background is the colour of a class in --colours too; mend one of them.")
  asked = {
    "colours": colours,
    "background": background,
    "unsure": unsure,
    "confidence_maximum": confidence_maximum,
    "nifti_axes": nifti_axes,
    "axes": axes,
  }
  found = Videos(videos, clips_are_folders=folders_are_clips)
  source = Source(clips={}, labels=[], classes=names)
  reader, frames = _Reader(source, names, asked), _Frames(source)
  spelled = _Names([] if colours else names)
  for annotator, root in annotations:
    for text, path in _collect(root, source):
      text, name, role = spelled.split(text)
      if len(names) == 1 and not colours:
        name = names[0]
      if not text:
        raise UserError(f"{path} names no picture, only a class; name it as the picture, too.")
      if arrays.stem(path) is None:
        clip, frame = place(source, found, text, str(path), frame_pattern)
        key = clip, frame, annotator
        frames.add(key, name, role, path, reader.picture(path, name))
      elif colours:
        raise UserError(
          f"{path} is an array, but --colours are those of pictures; import it alone."
        )
      else:
        at = _clip_of(source, found, text, path, frame_pattern)
        _add_arrays(source, frames, reader, path, name, role, at, annotator, empty_frames)
  source.labels = list(frames.labels())
  for name in found.found:
    if name not in source.clips:
      source.skip("clips that no mask is of", name)
  found.note_others(source)
  return source


def _clip_of(source, videos, text, path, pattern):
  """The clip of an array, and the frame, None if the array has all frames."""
  if pattern is None and videos.knows(text) and not videos.is_picture(text):
    name, _ = videos.find_frame(text, str(path))
    source.clips.setdefault(name, videos.clips([name])[name])
    return name, None
  return place(source, videos, text, str(path), pattern)


def _add_arrays(source, frames, reader, path, name, role, at, annotator, empty_frames):
  clip, frame = at
  media = source.header(clip)
  for one, order, key, scale in reader.frames(path, name, media):
    array = reader.arrays(path)[0][key]
    n = array.shape[order.index("n")] if "n" in order else 1
    if frame is None and n != media.n_frames:
      raise UserError(
        f"{path} has {n} frame(s), but {media.path} {media.n_frames}; is it of one frame? Then say "
        "which with --frame-pattern."
      )
    if frame is not None and n > 1:
      raise UserError(f"{path} has {n} frames, but its name is that of one; name it as the clip.")
    for i, values in enumerate(arrays.by_frames(array, order)):
      if n > 1 and not values.any() and not empty_frames:
        source.skip("frames of arrays on which nothing is drawn", f"{path.name}: {i}")
        continue

      def make(media, one=one, order=order, key=key, scale=scale, i=i):
        return reader.of_array(path, one, order, key, scale, i, media)

      frames.add((clip, i if frame is None else frame, annotator), one, role, path, make)
