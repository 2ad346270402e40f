"""Videos and pictures that nobody has drawn on yet: for clinical tasks, or to be painted."""

import numpy as np

from lus_jax import notices
from lus_jax.errors import UserError
from lus_jax.media import readers
from tfds_builders.importers import options
from tfds_builders.importers.source import Source, Videos

HELP = "videos or pictures without annotations"


def add_options(command):
  """Adds its options to a parser."""
  options.add_videos(command)
  command.add_argument(
    "--classes", type=options.names, required=True, help="names of what will be drawn: a,b"
  )


def find(*, videos, classes, folders_are_clips=False):
  """Reads a folder of videos.

  Args:
    videos: a folder of videos and pictures, and of folders of them.
    classes: K names of what will be drawn.
    folders_are_clips: whether the pictures of a folder are the frames of one clip.

  Returns:
    A `Source` without labels.

  Raises:
    UserError: there is none.
  """
  found = Videos(videos, clips_are_folders=folders_are_clips)
  source = Source(clips=found.clips(), labels=[], classes=list(classes))
  found.note_others(source)
  if not folders_are_clips:
    _warn_of_frames(found)
  return source


def _warn_of_frames(found):
  """Warns of pictures that are taken for stills and look like the frames of one clip."""
  pictures = (path for path in found.found.values() if path.suffix.lower() in readers.PICTURES)
  for folder in dict.fromkeys(path.parent for path in pictures):
    try:
      numbers = readers.probe(folder).numbers
    except UserError:  # of several sizes, say
      continue
    if numbers and len(numbers) > 2 and len(set(np.diff(numbers).tolist())) == 1:
      notices.warn(
        "%s: its %d pictures have one size and evenly spaced numbers, as frames of a clip have, "
        "and each is taken for a still of a patient of its own; --folders-are-clips takes them for "
        "one clip.",
        folder,
        len(numbers),
      )
