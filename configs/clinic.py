"""Which threshold helps in a clinical task? Whole small studies of simulated patients, one a seed.

  python -m lus_jax.main --config configs/which_target.py:clinical --workdir runs/clinic
  python -m lus_jax.main --config configs/which_target.py:clinical_full --workdir runs/clinic
  python -m lus_jax.main --config configs/which_target.py:clinical_tiny --workdir runs/tiny

The questions, their one score, their analysis and what counts as an answer stand in docs/clinic.md,
written before the study ran. A seed is a study as configs/study.py: new patients, new folds, new
initial weights; binary channels, every patient tested once (`cv=rotate`), and nobody looked at by
segmentation models that learned from them (`leakage=strict`). Only its results are kept. A killed
study goes on where it was. `:clinical` fits two CPU cores; `:clinical_full` is for one GPU.
"""

from configs import paper

SIZES = ("clinical", "clinical_full", "clinical_tiny")


def get_config(size="clinical"):
  if size not in SIZES:
    raise ValueError(f"configs/clinic.py:{size} does not exist; use {', '.join(SIZES)}")
  config = paper.get_config("ours" if size == "clinical_full" else "tiny")
  config.task = "clinic"
  config.seed = 1000  # of the first study; nothing was tuned on these, see docs/clinic.md
  config.study = {
    "seeds": 5,
    "workers": 0,  # processes that train side by side; 0: one a core, or 1 on an accelerator
    # (threshold, threshold): is the first better than the second in the first task's first score?
    "questions": ((0.6, 0.5), (0.6, 0.0)),
    "margin": 0.05,  # the least difference that would matter: what "no" is about
    "decides": "mixed",  # the mixed model; or seeds_test, a t test of the seeds' means
  }
  config.tasks = ("sf_change",)
  config.channels.kind = "binary"
  config.channels.ablations = ("none", "true")  # the controls
  config.folds.cv, config.folds.leakage = "rotate", "strict"
  # Strokes are mostly true from 60 % on, so that the label of 60 % is the truest; three patients in
  # ten are the same on all days; lungs clear or worsen enough for pictures to show it, whose depth,
  # gain and time gain vary from patient to patient and from video to video.
  config.data.phantom.setting = "true_from_0.6"
  config.data.phantom.stable_patients = 0.3
  config.data.phantom.readmission_accuracy = 0.9
  config.data.phantom.variety = ("presets",)
  config.segmentation.sweep.thresholds = (0.6, 0.5, 0.0)
  if size == "clinical_full":
    config.tasks = ("sf_change", "readmission")
    config.study.seeds = 8
    config.study.decides = "seeds_test"  # as registered for the next run
    config.data.phantom.n_patients = 144
    config.folds.n = 5
    return config
  config.data.image_size = 48
  config.data.phantom.n_patients = 120
  config.data.phantom.n_frames = 2
  config.data.phantom.missing_views = 0.4
  config.folds.n, config.folds.inner = 2, 2
  config.segmentation.optimizer.learning_rate = 5e-3
  config.segmentation.train.epochs = config.segmentation.train.checkpoint_every = 6
  change = config.sf_change
  change.optimizer.learning_rate = 5e-3
  change.train.epochs = change.optimizer.restart_epochs = 24
  change.train.checkpoint_every = 6
  change.train.batch_size = 16
  if size == "clinical_tiny":
    config.study.seeds = 2
    config.data.image_size = 32
    config.data.phantom.n_patients = 9
    config.segmentation.model.width = 0.125
    config.segmentation.train.epochs = config.segmentation.train.checkpoint_every = 1
    change.train.epochs = change.optimizer.restart_epochs = change.train.checkpoint_every = 1
    change.train.batch_size = 8
  return config
