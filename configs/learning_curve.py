"""How many patients a clinical task needs, on the phantom: a learning curve over patients.

  python -m lus_jax.main --config configs/learning_curve.py --workdir runs/curve \
      --config.channels.workdir=runs/seg                                    on a GPU
  ... --config configs/learning_curve.py:demo --config.channels.workdir=runs/demo   an hour on a CPU
  ... --config configs/learning_curve.py:tiny                                a smoke run

`channels.workdir` is a finished segmentation run. Cohorts of more and more simulated patients, each
the next one's part, whom that run has never seen: every patient is tested once (`cv=rotate`), by
networks that see video alone, the segmentation's maps, and the true masks. Printed is from how many
on they beat what looks at no video (the constant, or the majority), with 95 % intervals over
patients. Recipes are compared by their curves: --config.sf_ratio.augment.probability=0.5, say.
"""

from ml_collections import ConfigDict

from configs import common, readmission, sf_change, sf_ratio


def get_config(size="paper"):
  common.check_size("learning_curve", size)
  config = ConfigDict()
  config.task = "learning_curve"
  config.of = "sf_ratio"  # or sf_change, readmission, whose fields these are:
  config.sf_ratio = sf_ratio.get_config(size)
  config.sf_change = sf_change.get_config(size)
  config.readmission = readmission.get_config(size)
  config.readmission.model.init_from = ""
  config.readmission.optimizer.learning_rate *= 10
  config.patients = (20, 40, 80, 160)  # of each cohort
  # Of the cohorts; apart from it they are as the phantom of the segmentation run.
  config.cohort_seed = 1000
  config.seed = 0

  config.channels = config.sf_ratio.channels
  config.channels.thresholds = (0.5,)
  config.clip = config.sf_ratio.clip
  config.folds = config.sf_ratio.folds
  config.folds.cv = "rotate"
  config.folds.n = 4
  config.data = config.sf_ratio.data
  del config.data.name, config.data.dir, config.data.split_seed
  config.distributed = config.sf_ratio.distributed
  if size == "demo":
    config.patients = (20, 40, 80)
    for name in ("sf_ratio", "sf_change", "readmission"):
      # The demo's haste would learn nothing.
      config[name].train.epochs = config[name].optimizer.restart_epochs = 20
  if size == "tiny":
    config.patients = (8, 12)
    config.folds.n = 2
  for name in ("sf_ratio", "sf_change", "readmission"):
    for shared in ("seed", "data", "distributed", "channels", "clip", "folds"):
      del config[name][shared]
  return config
