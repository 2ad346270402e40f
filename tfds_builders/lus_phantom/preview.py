"""Pictures of the phantom: a contact sheet of frames, truth and painted confidence, and a clip.

python -m tfds_builders.lus_phantom.preview --out FILE.png [--gif FILE.gif] [--variety all]
"""

import argparse
import sys

import numpy as np
from PIL import Image, ImageDraw

from lus_jax import command_line, palette
from tfds_builders.lus_phantom import annotator, cohort, lus_phantom, simulator
from tfds_builders.lus_phantom import variety as variety_lib

_MARGIN, _LINE = 6, 18  # pixels
# The clip shows A-lines beside B-lines.
_HALF_CONGESTED = 0.55


def _videos(config, n_patients):
  return [cohort.videos_of(patient, config) for patient in cohort.patient_names(n_patients)]


def _with_legend(picture, text):
  """Adds a line of text and the colours of the classes below a picture, as many as fit a line."""
  draw = ImageDraw.Draw(picture)
  font = {"font_size": 13}
  items = [(None, text)] + list(enumerate(simulator.CLASSES))
  places, left, top = [], _MARGIN, picture.height + _MARGIN
  for k, words in items:
    width = draw.textlength(words, **font) + (0 if k is None else _LINE)
    if left > _MARGIN and left + width > picture.width:
      left, top = _MARGIN, top + _LINE
    places.append((k, words, left, top))
    left += width + 2 * _MARGIN
  framed = Image.new("RGB", (picture.width, top + _LINE + _MARGIN))
  framed.paste(picture)
  draw = ImageDraw.Draw(framed)
  for k, words, left, top in places:
    if k is not None:
      draw.rectangle((left, top + 2, left + 12, top + 14), fill=palette.rgb(k))
      left += _LINE
    draw.text((left, top), words, fill="white", **font)
  return framed


def contact_sheet(*, size=256, setting="default", seed=0, variety=(), n_videos=6):
  """A picture with a column a video: frame, truth, painted confidence (opaque = 100 %).

  Args:
    size: H and W of a frame in pixels.
    setting: one of `annotator.SETTINGS`, or `true_from_T`.
    seed: of the data set.
    variety: some of `variety.OPTIONS`.
    n_videos: columns, each of another patient.

  Returns:
    A PIL image.
  """
  config = lus_phantom.phantom_config(
    "frames", size, size, setting=setting, seed=seed, variety=variety
  )
  columns = []
  for videos in _videos(config, n_videos):
    # The last one is mostly of the lowest view, where there is the most to find.
    arrays = lus_phantom.simulate(videos[-1 if variety else 0], config)
    image = arrays["frames"][0, ..., 0]
    rows = [np.zeros_like(arrays["confidence"]), arrays["truth"][0], arrays["confidence"]]
    columns.append(np.concatenate([palette.overlay(image, row / 255) for row in rows]))
  sheet = Image.fromarray(np.concatenate(columns, axis=1))
  return _with_legend(sheet, "rows: frame, truth, painted confidence")


def _colours():
  """The colours of a clip: greys, and every class over some of them, for all frames alike."""
  greys = np.linspace(0, 255, 32)
  coloured = [
    palette.overlay(np.full((1, 1), grey), weights[None, None])
    for weights in np.eye(len(simulator.CLASSES))
    for grey in (0, 60, 120, 180, 240)
  ]
  pure = [palette.rgb(k) for k in range(len(simulator.CLASSES))]
  colours = [*np.rint(greys)[:, None].repeat(3, 1), *np.reshape(coloured, (-1, 3)), *pure]
  image = Image.new("P", (1, 1))
  image.putpalette(np.asarray(colours, np.uint8).tobytes())
  return image


def clip(*, size=256, setting="default", seed=0, variety=(), n_patients=6):
  """A video of a lung with B-lines and A-lines: frames, and the truth over them.

  Args:
    size: H and W of a frame in pixels.
    setting: one of `annotator.SETTINGS`, or `true_from_T`.
    seed: of the data set.
    variety: some of `variety.OPTIONS`.
    n_patients: among whom to look.

  Returns:
    A list of PIL images of few colours, to be shown at the probe's frame rate.
  """
  config = lus_phantom.phantom_config(
    "videos", size, size, setting=setting, seed=seed, variety=variety
  )
  videos = [video for each in _videos(config, n_patients) for video in each]
  video = min(videos, key=lambda video: abs(video.congestion - _HALF_CONGESTED))
  arrays = lus_phantom.simulate(video, config)
  frames = []
  for image, truth in zip(arrays["frames"], arrays["truth"] / 255, strict=True):
    pair = [palette.overlay(image, weights) for weights in (np.zeros_like(truth), truth)]
    frames.append(_with_legend(Image.fromarray(np.concatenate(pair, axis=1)), "frame, truth"))
  return [frame.quantize(palette=_colours(), dither=Image.Dither.NONE) for frame in frames]


def main():
  """Runs the command line; returns its exit code."""
  parser = argparse.ArgumentParser(description="Contact sheet and clip of the phantom.")
  parser.add_argument("--out", required=True, help="PNG to write: the contact sheet")
  parser.add_argument("--gif", help="GIF to write: a clip")
  parser.add_argument("--size", type=int, default=256, help="height and width of a frame")
  known = f"{', '.join(annotator.SETTINGS)} or {annotator.TRUE_FROM}0.6"
  parser.add_argument("--setting", default="default", help=known)
  parser.add_argument(
    "--variety", default="", help=f"all, or some of {','.join(variety_lib.OPTIONS)}"
  )
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  options = tuple(filter(None, flags.variety.split(",")))
  settings = {"size": flags.size, "setting": flags.setting, "seed": flags.seed}
  settings["variety"] = variety_lib.OPTIONS if options == ("all",) else options

  def write():
    contact_sheet(**settings).save(flags.out, optimize=True)
    if flags.gif:
      first, *rest = clip(**settings)
      milliseconds = round(1000 / simulator.Probe().frames_per_second)
      first.save(flags.gif, save_all=True, append_images=rest, duration=milliseconds, loop=0)

  return command_line.run(write)


if __name__ == "__main__":
  sys.exit(main())
