"""The whole clips that the labelled frames of a data set come from, where they can be had again."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from lus_jax.media import readers


@dataclasses.dataclass(frozen=True)
class Recording:
  """A clip, which is read when it is needed.

  Attributes:
    numbers: the frames that there are, counted from 0 in the clip, rising.
    read: `(numbers)` yields these frames as grey values [h, w] uint8.
    height: h, in pixels.
    width: w, in pixels.
    frames_per_second: NaN where unknown.
    box: the scan area that networks see, (top, left, bottom, right), half-open; None: all of it.
    media: the `lus_jax.media.readers.Media` that it is read from; None: from elsewhere.
    whole: whether it has all frames, not the labelled ones alone.
  """

  numbers: Sequence[int]
  read: Callable
  height: int
  width: int
  frames_per_second: float = math.nan
  box: tuple[int, int, int, int] | None = None
  media: readers.Media | None = None
  whole: bool = True


def of_media(media, box=None):
  """The `Recording` of a `lus_jax.media.readers.Media`."""
  return Recording(
    numbers=range(media.n_frames),
    read=functools.partial(readers.stream, media),
    height=media.height,
    width=media.width,
    frames_per_second=media.frames_per_second,
    box=box,
    media=media,
  )


def of_examples(examples, place_of):
  """The `Recording` of the labelled frames alone.

  Args:
    examples: stored frames, with `image` and `valid_box`.
    place_of: the place of one among them of every frame of the clip, by its number, rising.
  """

  def image(number):
    example = examples[place_of[number]]
    top, left, bottom, right = example["valid_box"]
    return example["image"][top:bottom, left:right, 0]

  height, width = image(next(iter(place_of))).shape
  return Recording(
    numbers=tuple(place_of),
    read=lambda numbers: map(image, numbers),
    height=height,
    width=width,
    whole=False,
  )


def find(config, patient_of):
  """Finds whole clips of a run's data set.

  Args:
    config: the `data` part of its config.
    patient_of: the patient of each video that is wanted, by name.

  Returns:
    A dict of `Recording` by name, without those that cannot be had: a set of pictures has none.

  Raises:
    UserError: the user's folder is not in order.
  """
  if config.name == "lus_phantom":
    return _simulated(config, patient_of)
  if config.name == "lus_folder":
    return _of_folder(config, patient_of)
  return {}


def _simulated(config, patient_of):
  # They bring TensorFlow Datasets.
  from tfds_builders.lus_phantom import cohort, lus_phantom, simulator

  size = config.image_size
  settings = {name: value for name, value in config.phantom.items() if name != "raters"}
  phantom = lus_phantom.phantom_config("videos", size, size, **settings)

  def frames(video, numbers):
    images = lus_phantom.simulate(video, phantom)["frames"]
    return (images[number, ..., 0] for number in numbers)

  found = {}
  for patient in sorted(set(patient_of.values())):
    for video in cohort.videos_of(patient, phantom):
      if video.name in patient_of:
        found[video.name] = Recording(
          numbers=range(phantom.n_frames),
          read=functools.partial(frames, video),
          height=size,
          width=size,
          frames_per_second=simulator.Probe().frames_per_second,
        )
  return found


def _of_folder(config, patient_of):
  from tfds_builders.lus_folder import manifest

  folder = manifest.read_folder(config.dir, labels=False)
  return {
    video.name: of_media(video.media, video.scan_area)
    for video in folder.videos
    if video.name in patient_of
  }
