"""One HTML page of the predictions of many clips: a few frames of each, and its numbers."""

import contextlib

import numpy as np
from PIL import Image

from lus_jax import pages, palette
from lus_jax.files import write_text
from lus_jax.inference.formats.video import outlines
from lus_jax.media import scan_area
from lus_jax.media.writers import written
from lus_jax.words import plural

PAGE, FOLDER = "index.html", "page"
# Clips that are shown, evenly chosen of more; frames of each, and of each of more than a few.
MOST_SHOWN = 60
_FRAMES, _FEW = 3, 12
# Pixels of a picture's longer side, and opacities of a layer, which then compresses better.
_SIDE, _OPACITIES = 384, 16


def frames_shown(frames, n_clips):
  """Which of a clip's frames the page shows, where so many clips are predicted."""
  n = min(len(frames), _FRAMES if n_clips <= _FEW else 1)
  return [frames[(2 * i + 1) * len(frames) // (2 * n)] for i in range(n)]


class Pictures:
  """Writes what the page shows of a clip: `<folder>/<frame>.jpg`, `<folder>/<member>/<frame>.png`.

  The scan area alone: what is burned into the rest of the frame may name a person. A context
  manager, like the writers of formats.
  """

  def __init__(self, folder, heads, frames):
    """Begins with nothing written.

    Args:
      folder: its path.
      heads: a `Head` of every member.
      frames: numbers of the frames that are shown.
    """
    self._path, self._heads, self._frames = folder, heads, frames

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      self._folder = stack.enter_context(written(self._path))
      for head in self._heads:
        (self._folder / head.name).mkdir(parents=True)
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error):
    self._stack.__exit__(*error)

  def add(self, number, image, maps):
    """Takes the next frame, and passes over what is not shown.

    Args:
      number: of the frame.
      image: its grey values [h, w] uint8.
      maps: of every member [h, w, K] uint8, 255 = probability 1.
    """
    if number not in self._frames:
      return
    picture = Image.fromarray(scan_area.crop(image, self._heads[0].shown))
    share = min(1, _SIDE / max(picture.size))
    size = tuple(max(1, round(share * side)) for side in picture.size)
    picture.resize(size, Image.Resampling.BILINEAR).save(
      self._folder / f"{number:06d}.jpg", "JPEG", quality=80
    )
    for head, one in zip(self._heads, maps, strict=True):
      top, left, bottom, right = head.shown
      layer = _layer(one[top:bottom, left:right], size, head.cut)
      Image.fromarray(layer).save(self._folder / head.name / f"{number:06d}.png", "PNG")


def _layer(maps, size, cut):
  """The classes over a picture of a (width, height): [height, width, 4] uint8."""
  maps = np.stack(
    [
      np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR))
      for one in np.moveaxis(maps, -1, 0)
    ],
    axis=-1,
  )
  layer = palette.layer(np.rint(maps / 255 * _OPACITIES).astype(np.float32) / _OPACITIES)
  for k in range(maps.shape[-1]):
    layer[outlines(maps[..., k], cut)] = (*palette.rgb(k), 255)
  return layer


def write(file, *, clips, members, classes, cut, **words):
  """Writes the page, whole or not at all (`UserError` if the disk refuses).

  Args:
    file: its path.
    clips: of each a dict of its `name`, `folder` with the pictures, `facts` (texts), `frames` that
      are shown and `rows` of `tables.Frames`.
    members: what a value means, by member.
    classes: K names.
    cut: the probability that the lines are drawn at.
    **words: what else the template shows.
  """
  shown = clips
  if len(clips) > MOST_SHOWN:
    shown = [clips[i * len(clips) // MOST_SHOWN] for i in range(MOST_SHOWN)]
  environment = pages.templates(__file__)
  environment.filters |= {"data_url": _data_url, "number": _number}
  page = environment.get_template("page.html").render(
    clips=shown,
    n_clips=len(clips),
    members=members,
    classes=classes,
    cut=cut,
    palette=palette,
    plural=plural,
    **words,
  )
  write_text(file, page)


def _data_url(file):
  kind = {".jpg": "jpeg", ".png": "png"}[file.suffix]
  return pages.data_url(file.read_bytes(), kind)


def _number(value):
  """A number of a table as the page shows it."""
  if value is None:
    return "—"
  return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}"
