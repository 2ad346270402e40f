"""The whole paper: the segmentation sweep, then the three clinical tasks, Tables 1 to 4.

  python -m lus_jax.main --config configs/paper.py --workdir runs/paper       the paper's recipe
  python -m lus_jax.main --config configs/paper.py:ours --workdir runs/ours   our faster pairs
  python -m lus_jax.main --config configs/paper.py:demo --workdir runs/demo   what `make demo` runs
  python -m lus_jax.main --config configs/paper.py:tiny --workdir runs/tiny   7 x 5 models, toy size

On your own videos (format: README.md, "Your own data"):

  python -m lus_jax.main --config configs/paper.py --config.data.name=lus_folder \
      --config.data.dir=DIR --workdir runs/mine

The paper's recipe draws 20,000 training pairs and sees binary masks; `:ours`, and so the reduced
sizes, trains on all pairs within a batch of clips and sees probabilities. What both take is told
first.

`segmentation` has the fields of configs/seg.py, each task those of its own config; what they share
(seed, data, channels, clip, folds) is set once. The channels of the default phantom take about 17
GiB of disk. The demo takes about 4 minutes on 2 slow CPU cores; what its first epoch has learned is
shown within the first.
"""

from ml_collections import ConfigDict

from configs import common, readmission, seg, sf_change, sf_ratio


def get_config(size="paper"):
  common.check_size("paper", size)
  config = ConfigDict()
  config.task = "study"
  config.tasks = ("sf_change", "sf_ratio", "readmission")
  config.seed = 0
  config.segmentation = seg.get_config("paper" if size == "ours" else size)
  config.sf_change = sf_change.get_config(size)
  config.sf_ratio = sf_ratio.get_config(size)
  config.readmission = readmission.get_config(size)
  config.data = config.segmentation.data
  config.distributed = config.segmentation.distributed
  for name in ("channels", "clip", "folds"):
    config[name] = config.sf_change[name]
  del config.channels.workdir  # the study's own
  del config.segmentation.seed, config.segmentation.data, config.segmentation.distributed
  for name in config.tasks:
    for shared in ("seed", "data", "distributed", "channels", "clip", "folds"):
      del config[name][shared]
  if size == "demo":
    # On two slow cores a first look within a minute, and all within four.
    config.segmentation.train.steps, config.segmentation.train.epoch_steps = 0, 86
    for name in config.tasks:
      train = config[name].train
      train.epochs = config[name].optimizer.restart_epochs = train.checkpoint_every = 2
  if size == "tiny":
    config.data.phantom.n_patients = 24  # fewer leave folds without a readmitted patient
    config.segmentation.train.epochs = 2
  return config
