"""What importers take on the command line, and how it is read."""

import argparse
import pathlib
import re

from tfds_builders import tables


def names(text):
  """Names with commas between them, each once."""
  found = tuple(name.strip() for name in text.split(",") if name.strip())
  if not found or len(set(found)) < len(found):
    raise argparse.ArgumentTypeError("needs at least one name, each once")
  return found


def pattern(text):
  """A regular expression."""
  try:
    return re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error


def positive(text):
  """A number above 0."""
  value = tables.parse_number(text, float, decimal_comma=False)
  if not (tables.is_number(value) and value > 0):
    raise argparse.ArgumentTypeError("needs a number above 0")
  return value


def renamed(text):
  """OLD=NEW: a class and its new name, '' to drop it."""
  old, is_there, new = text.partition("=")
  if not is_there or not old.strip():
    raise argparse.ArgumentTypeError("needs OLD=NEW, or OLD= to drop a class")
  return tables.normal(old.strip()), tables.normal(new.strip())


def border(text):
  """A width with its unit, as 2mm or 6px."""
  found = re.fullmatch(r"\s*(\S*?)\s*(mm|px)\s*", text)
  if not found:
    raise argparse.ArgumentTypeError("needs a width with its unit, as 2mm or 6px")
  return positive(found[1]), found[2]


def percentage(text):
  """A number from 0 to 100."""
  value = tables.parse_number(text.strip().removesuffix("%"), float, decimal_comma=False)
  if not 0 <= value <= 100:
    raise argparse.ArgumentTypeError("needs a number from 0 to 100")
  return value


def colour(text):
  """A colour, as #ff0000 or 255,0,0: (red, green, blue) from 0 to 255."""
  found = re.fullmatch(r"\s*#([0-9a-fA-F]{6})\s*", text)
  if found:
    return tuple(bytes.fromhex(found[1]))
  parts = [part.strip() for part in text.split(",")]
  if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,3}", part) for part in parts):
    raise argparse.ArgumentTypeError(f"{tables.shown(text)} is no colour, as #ff0000 or 255,0,0")
  if max(map(int, parts)) > 255:
    raise argparse.ArgumentTypeError(f"{tables.shown(text)} is beyond 255")
  return tuple(map(int, parts))


def colours(text):
  """CLASS=COLOUR,...: pairs of class and colour; a class may have several, a colour one class."""
  # A comma stands between classes and within colours.
  parts = re.split(r",(?=[^,=]+=)", text)
  found = []
  for part in parts:
    name, is_there, value = part.partition("=")
    if not is_there or not name.strip():
      raise argparse.ArgumentTypeError("needs CLASS=COLOUR,..., as b_line=#ff0000,pleura=0,255,0")
    found.append((tables.normal(name.strip()), colour(value)))
  if len({value for _, value in found}) < len(found):
    raise argparse.ArgumentTypeError("names a colour twice")
  return found


def annotations(text):
  """A file or folder of annotations, or NAME=FILE: the annotator's name, '' if none, and a path."""
  name, is_there, path = text.partition("=")
  if is_there and name and "/" not in name and not pathlib.Path(text).exists():
    return tables.normal(name.strip()), pathlib.Path(path)
  return "", pathlib.Path(text)


def add_videos(command, *, required=True):
  """Adds the options of importers that look up videos and pictures by name."""
  command.add_argument(
    "--videos", type=pathlib.Path, required=required, help="folder of the videos or pictures"
  )
  command.add_argument(
    "--folders-are-clips",
    action="store_true",
    help="the numbered pictures of a folder are the frames of one clip",
  )


def frame_pattern(text):
  """A regular expression of one group, the frame, or of two, the clip and the frame."""
  found = pattern(text)
  if found.groups not in (1, 2):
    raise argparse.ArgumentTypeError(
      f"has {found.groups} groups; write two, the clip and the frame's number: (.+)_([0-9]+)"
    )
  return found


def add_frame_pattern(command):
  """Adds the option that finds clip and frame in what a tool calls a picture."""
  command.add_argument(
    "--frame-pattern",
    type=frame_pattern,
    metavar="REGEX",
    help="its two groups are the clip and the frame's number in a picture's name, as "
    "(.+)_([0-9]+); one group: the number, of the only clip. Frames of videos count from 0",
  )


def add_annotations(command, what):
  """Adds the option of importers that read annotations: a list of (annotator, path)."""
  command.add_argument(
    "--annotations",
    type=annotations,
    nargs="+",
    required=True,
    metavar="[NAME=]FILE",
    help=f"{what}; with a name before it, who drew it, so that several people's stay apart",
  )


def add_line_width(command):
  """Adds the option of importers of lines, of which tools store no width."""
  command.add_argument(
    "--line-width", type=border, metavar="2mm|6px", help="how wide lines are drawn"
  )
