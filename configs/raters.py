"""Several raters an image: their soft label and its thresholds, trained together and judged by all.

  python -m lus_jax.main --config configs/raters.py --config.data.dir=DIR --workdir runs/raters
  python -m lus_jax.main --config configs/raters.py:auto --config.data.dir=DIR --workdir runs/auto
  python -m lus_jax.main --config configs/raters.py:small --config.data.dir=DIR --workdir runs/small
  python -m lus_jax.main --config configs/raters.py:demo --config.data.dir=DIR --workdir runs/raters
  python -m lus_jax.main --config configs/raters.py:tiny --workdir runs/tiny    simulated raters

DIR is a folder of images and of masks by rater (README.md, "Several raters per image"); in the
smoke run the phantom's three simulated experts paint every frame. It trains one FPN per threshold
of the raters' mean and, beside them, the soft label itself, SoftSeg's recipe, label smoothing along
outlines, three fusions and one ordinal network for all thresholds; writes what configs/seg.py
writes and `results/raters.json`, `members.json` and `calibration.json`. The demo takes some minutes
on 2 CPU cores; the full size needs a GPU.
"""

from configs import seg


def get_config(size="paper"):
  config = seg.get_config(size)
  config.data.name = "multirater_folder"  # or lus_phantom, or another with painted confidences
  config.data.phantom.raters = True
  # The levels of the QUBIQ score, and "all of them".
  if size != "auto":
    config.sweep.thresholds = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
  config.sweep.members = (
    "soft",
    "softseg",
    "svls",
    "majority",
    "staple",
    "random_rater",
    "ordinal",
  )
  # A share of raters is no confidence to weigh a pixel by.
  config.loss.weights = "ones"
  config.calibration = "temperature"
  if size == "demo":
    # Sets with several raters are small: few steps are many epochs.
    config.train.steps = 600
    config.train.checkpoint_every = 20
  elif size == "tiny":
    config.data.name = "lus_phantom"
    config.sweep.thresholds = (1.0, 0.5, 0.2)
    config.train.epochs = 2
  return config
