"""One HTML page of what was found in a data folder, with a picture of every video."""

import pathlib

import jinja2

from lus_jax import palette
from lus_jax.check import run, table
from lus_jax.files import write_text
from lus_jax.media import scan_area
from lus_jax.report import pictures
from lus_jax.words import plural


def write(file, result):
  """Writes the page of a `run.Result`, whole or not at all (`UserError` if the disk refuses)."""
  write_text(file, render(result))


def render(result):
  """The page of a `run.Result`, as HTML."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["data_url"] = pictures.data_url
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
