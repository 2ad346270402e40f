"""S/F ratio: its value from each video, judged per patient-day.

  python -m lus_jax.main --config configs/sf_ratio.py --workdir runs/seg         the paper's recipe
  python -m lus_jax.main --config configs/sf_ratio.py:ours --workdir runs/seg    our faster one
  python -m lus_jax.main --config configs/sf_ratio.py:demo --workdir runs/demo   reduced

The workdir is that of a finished segmentation run (or name one by --config.channels.workdir=DIR);
one video network is trained for each of its thresholds and each of 5 folds of patients, and Table 3
is printed. On a CPU only the reduced sizes make sense.
"""

from configs import common


def get_config(size="paper"):
  config = common.video_task("sf_ratio", size, target="sf_ratio")
  config.target_scale = 477.0  # the target is divided by it
  return config
