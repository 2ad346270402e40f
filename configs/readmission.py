"""Readmission within 30 days: the change of every view from the first to the second day votes.

  python -m lus_jax.main --config configs/readmission.py --workdir runs/seg         the paper's
  python -m lus_jax.main --config configs/readmission.py:ours --workdir runs/seg    our faster one
  python -m lus_jax.main --config configs/readmission.py:demo --workdir runs/demo   reduced

The workdir is that of a finished segmentation run in which configs/sf_change.py has run too: each
network starts from the one of the same threshold and fold there. Table 4 is printed.
"""

from configs import common


def get_config(size="paper"):
  config = common.video_task("readmission", size, target="readmitted_30d")
  config.days = "difference"  # second recorded day minus the first; or single: the first one
  config.model.init_from = "sf_change"
  config.optimizer.learning_rate *= 0.1
  config.train.batch_size = 2  # patients, of up to 12 clips each
  return config
