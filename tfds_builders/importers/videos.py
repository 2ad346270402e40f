"""Videos and pictures that nobody has drawn on yet: for clinical tasks, or to be painted."""

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
  return source
