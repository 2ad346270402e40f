"""What all formats have in common: a file, or folder, that is there whole or not at all."""

import contextlib

import numpy as np

from lus_jax.media.writers import written


class Writer:
  """Writes one clip's maps of one member, a frame at a time, in memory that does not grow.

  A context manager: where it ends normally, what was written gets its name; after an exception
  nothing of it is left.

  Attributes:
    suffix: of the file; '' of a folder.
    dtype: of the maps that `add` takes: uint8 (255 = probability 1) or float32 (in [0, 1]).
    shows_cut: whether the file is another one with another `head.cut`.
    paths: what was written, once it is.
  """

  suffix = ""
  dtype = np.uint8
  shows_cut = False

  def __init__(self, target, clip, head):
    """Begins with nothing written.

    Args:
      target: the path of what is written, without its suffix.
      clip: the `lus_jax.media.readers.Media` whose frames come.
      head: a `head.Head`.

    Raises:
      UserError: the clip cannot be written in this format; most take all.
    """
    self.clip, self.head, self.paths = clip, head, ()
    self._path = target.with_name(target.name + self.suffix)

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      self.begin(stack.enter_context(written(self._path)), stack)
      self._stack = stack.pop_all()
    return self

  def __exit__(self, kind, error, trace):
    if kind is not None:
      self._stack.__exit__(kind, error, trace)
      return
    with self._stack:
      self.end()
    self.paths = (self._path,)

  def begin(self, path, stack):
    """Makes the file or folder at `path`; what is to be closed goes onto the `ExitStack`."""
    raise NotImplementedError

  def add(self, number, image, maps):
    """Takes the next frame.

    Args:
      number: of the frame, one of `head.frames`, in their order.
      image: its grey values [h, w] uint8.
      maps: [h, w, K] of `dtype`.
    """
    raise NotImplementedError

  def end(self):
    """Writes what comes after the last frame."""


def seconds_a_frame(clip, frames):
  """Seconds from one of the frames to the next.

  Args:
    clip: a `Media`.
    frames: numbers of frames, rising.

  Returns:
    None where the clip has no rate, or there is one frame, or they are not evenly spaced.
  """
  steps = set(np.diff(frames).tolist())
  rate = clip.frames_per_second
  return steps.pop() / rate if len(steps) == 1 and 0 < rate < np.inf else None
