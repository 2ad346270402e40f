"""A contact sheet of the phantom: frames, truth and painted confidence.

python -m tfds_builders.lus_phantom.preview --out FILE.png [--size 256] [--setting default]
"""

import argparse
import sys

import numpy as np
from PIL import Image, ImageDraw

from lus_jax.errors import UserError
from tfds_builders.lus_phantom import annotator, cohort, lus_phantom, simulator

# Okabe and Ito's palette: told apart with every common colour blindness.
PALETTE = np.array(
  [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0]]
)


def overlay(image, weights):
  """Colours classes over a frame.

  Args:
    image: [H, W] uint8.
    weights: [H, W, K] in [0, 1], opacity of each class.

  Returns:
    [H, W, 3] uint8.
  """
  picture = np.repeat(image[..., None], 3, axis=-1).astype(float)
  for k, colour in enumerate(PALETTE[: weights.shape[-1]]):
    opacity = 0.75 * weights[..., k : k + 1]
    picture = (1 - opacity) * picture + opacity * colour
  return np.rint(picture).astype(np.uint8)


def contact_sheet(*, size=256, setting="default", seed=0, n_videos=6):
  """A picture with a column a video: frame, truth, painted confidence (opaque = 100 %).

  Args:
    size: H and W of a frame in pixels.
    setting: one of `annotator.SETTINGS`.
    seed: of the data set.
    n_videos: columns, each of another patient.

  Returns:
    A PIL image.
  """
  config = lus_phantom.phantom_config("frames", size, size, setting=setting, seed=seed)
  columns = []
  for patient in cohort.patient_names(n_videos):
    video = cohort.patient_videos(
      patient,
      seed=seed,
      setting=setting,
      missing_views=config.missing_views,
      annotators=annotator.STYLES,
    )[0]
    arrays = lus_phantom.simulate(video, config)
    image = arrays["frames"][0, ..., 0]
    rows = [np.zeros_like(arrays["confidence"]), arrays["truth"][0], arrays["confidence"]]
    columns.append(np.concatenate([overlay(image, row / 255) for row in rows]))
  sheet = Image.fromarray(np.concatenate(columns, axis=1))
  legend = Image.new("RGB", (sheet.width, sheet.height + 16 * len(simulator.CLASSES) + 8))
  legend.paste(sheet)
  draw = ImageDraw.Draw(legend)
  for k, name in enumerate(simulator.CLASSES):
    top = sheet.height + 4 + 16 * k
    draw.rectangle((4, top + 2, 16, top + 13), fill=tuple(int(c) for c in PALETTE[k]))
    draw.text((22, top + 1), name, fill="white")
  draw.text((180, sheet.height + 5), "rows: frame, truth, painted confidence", fill="white")
  return legend


def main():
  """Runs the command line; returns its exit code."""
  parser = argparse.ArgumentParser(description="Contact sheet of the phantom.")
  parser.add_argument("--out", required=True, help="PNG to write")
  parser.add_argument("--size", type=int, default=256, help="height and width of a frame")
  parser.add_argument("--setting", default="default", help=", ".join(annotator.SETTINGS))
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  try:
    contact_sheet(size=flags.size, setting=flags.setting, seed=flags.seed).save(flags.out)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
