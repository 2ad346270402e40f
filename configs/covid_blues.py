"""COVID-BLUES: severity and S/F ratio of real videos, and whose PCR test was positive.

  python -m lus_jax.main --config configs/covid_blues.py --config.data.dir=DIR \
      --config.channels.workdir=runs/seg --workdir runs/covid          the paper's recipe
  ... --config configs/covid_blues.py:demo ...                         reduced, for a CPU

DIR is a copy of github.com/NinaWie/COVID-BLUES (CC BY-NC-ND 4.0; nothing is downloaded). It has no
masks: the segmentation channels come from the run you name, another domain, and the report says so.
Each patient was seen once, so nothing here is about change.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size="paper"):
  config = ConfigDict()
  config.task = "study"
  config.tasks = ("severity", "sf_ratio", "cov_test")
  config.seed = 0

  config.severity = common.video_task("sf_ratio", size, target="severity")
  config.severity.target_scale = 3.0
  config.sf_ratio = common.video_task("sf_ratio", size, target="sf_ratio")
  config.sf_ratio.target_scale = 477.0
  config.cov_test = common.video_task("readmission", size, target="cov_test")
  config.cov_test.days = "single"
  config.cov_test.model.init_from = "severity"
  config.cov_test.optimizer.learning_rate *= 0.1
  config.cov_test.train.batch_size = 2  # patients, of up to 6 clips each

  config.data = config.severity.data
  config.data.name = "covid_blues"
  config.distributed = config.severity.distributed
  config.channels = config.severity.channels
  config.channels.kind = "probability"  # or binary, at .5
  config.channels.ablations = ("none",)
  config.clip = config.severity.clip
  config.folds = config.severity.folds
  config.folds.balance = ("cov_test", "sf_ratio")
  config.folds.cv = "rotate"  # 19 to 63 patients: each is tested once
  if size == "demo":
    config.folds.n = 4
    for name in config.tasks:
      # A few steps an epoch: the norms' running statistics need more of them.
      config[name].train.epochs = config[name].optimizer.restart_epochs = 20
  for name in config.tasks:
    config[name].name = name
    for shared in ("seed", "data", "distributed", "channels", "clip", "folds"):
      del config[name][shared]
  return config
