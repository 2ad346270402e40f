"""One HTML page of what was found in a data folder, with a picture of every video."""

import os

from lus_jax import pages, palette
from lus_jax.check import run, table
from lus_jax.errors import UserError
from lus_jax.files import expanded, write_text
from lus_jax.media import scan_area
from lus_jax.words import plural

_SUFFIXES = (".html", ".htm")


def place(file):
  """The path of a page that is to be written, with its `~` replaced.

  Raises:
    UserError: it is a folder or another kind of file, or its folder is missing.
  """
  file = expanded(file, "--html")
  if file.is_dir():
    raise UserError(f"{file} is a folder; name a file in it with --html, as {file / 'check.html'}.")
  if not file.parent.is_dir():
    raise UserError(f"{file.parent} is no folder; make it first, or mend --html.")
  if os.path.lexists(file) and file.suffix.lower() not in _SUFFIXES:
    raise UserError(
      f"{file} exists, and its name is not that of a page ({' or '.join(_SUFFIXES)}); it would be "
      "overwritten: name another file with --html."
    )
  return file


def write(file, result):
  """Writes the page of a `run.Result`, whole or not at all (`UserError` if the disk refuses)."""
  write_text(file, render(result))


def render(result):
  """The page of a `run.Result`, as HTML."""
  environment = pages.templates(__file__)
  environment.filters["data_url"] = pages.data_url
  return environment.get_template("template.html").render(
    dataset=result.dataset,
    overview=table.overview(result) if result.seen else [],
    header=table.HEADER,
    classes=table.classes(result),
    missing=table.missing(result),
    problems=result.problems,
    warnings=result.warnings,
    clips=[_card(result, i) for i in result.shown],
    most=run.MOST_SHOWN,
    palette=palette,
    plural=plural,
  )


def _card(result, i):
  clip, seen = result.dataset.clips[i], result.seen[i]
  size = clip.media.height, clip.media.width
  known = [("patient", clip.patient), ("day", str(clip.day) if clip.day >= 0 else "")]
  known += [("view", clip.view), ("split", clip.split)]
  return {
    "name": clip.name,
    "facts": [f"{what} {text}" for what, text in known if text]
    + [plural(clip.media.n_frames, "frame"), f"{clip.media.width} x {clip.media.height}"],
    "area": None if _is_whole(seen.area, *size) else _style(seen.area.box, *size),
    "is_found": clip.area is None,
    "is_odd": i in result.odd_areas,
    "text": [_style(box, *size) for box in seen.text],
    "is_refused": bool(seen.problems),
    "n_labels": len(clip.labels),
    "pictures": seen.pictures,
  }


def _is_whole(area, height, width):
  return area is None or area.box == scan_area.whole(height, width)


def _style(box, height, width):
  """Where a box lies on a picture of a frame, as CSS."""
  top, left, bottom, right = box
  places = {
    "left": left / width,
    "top": top / height,
    "width": (right - left) / width,
    "height": (bottom - top) / height,
  }
  return ";".join(f"{name}:{100 * share:.3f}%" for name, share in places.items())
