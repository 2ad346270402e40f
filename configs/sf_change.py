"""S/F change: does the oxygenation ratio fall, stay or rise between two videos of one lung zone?

  python -m lus_jax.main --config configs/sf_change.py --workdir runs/seg         the paper's recipe
  python -m lus_jax.main --config configs/sf_change.py:ours --workdir runs/seg    our faster one
  python -m lus_jax.main --config configs/sf_change.py:demo --workdir runs/demo   reduced

The workdir is that of a finished segmentation run (or name one by --config.channels.workdir=DIR);
one video network is trained for each of its thresholds and each of 5 folds of patients, and Table 2
is printed. On a CPU only the reduced sizes make sense.
"""

from configs import common


def get_config(size="paper"):
  config = common.video_task("sf_change", size, target="sf_ratio")
  # As the paper; or in_batch, all pairs of one zone in a batch of clips, which is ours: an epoch is
  # a hundredth of the work.
  config.pairs = "sampled" if size == "paper" else "in_batch"
  config.pairs_cap = 20_000  # sampled: training pairs
  return config
