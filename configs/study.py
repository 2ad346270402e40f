"""The whole study on a larger phantom, every patient tested once by models that never saw them.

  python -m lus_jax.main --config configs/study.py --workdir runs/study        on a GPU
  python -m lus_jax.main --config configs/study.py:demo --workdir runs/study   hours on a CPU
  python -m lus_jax.main --config configs/study.py:tiny --workdir runs/tiny    a smoke run

As configs/paper.py:ours, with `cv=rotate` (nine folds, each the test once: as many as it takes to
decide between seven thresholds, for a fold is swapped whole) and `leakage=strict` (four
segmentation sweeps more per fold, on that fold's training patients only): no test patient was ever
seen by anything that is tested on them, and what the video networks learn from comes, as what they
are tested on, from models that had not seen the patient. The channels of all folds take about 400
GiB of disk at the paper's size (fewer thresholds or a smaller clip take less).
"""

from configs import paper


def get_config(size="paper"):
  config = paper.get_config("ours" if size == "paper" else size)
  config.folds.cv = "rotate"
  config.folds.leakage = "strict"
  config.folds.n = 8
  config.data.phantom.n_patients = 126
  if size == "demo":
    # The demo's haste would decide nothing.
    config.data.phantom.n_frames, config.data.phantom.missing_views = 8, 0.25
    config.segmentation.train.steps, config.segmentation.train.epoch_steps = 480, 0
    for name, epochs in {"sf_change": 6, "sf_ratio": 6, "readmission": 4}.items():
      config[name].train.epochs = config[name].optimizer.restart_epochs = epochs
      config[name].train.checkpoint_every = 4
  if size == "tiny":
    config.data.phantom.n_patients = 16
    config.folds.n = config.folds.inner = 2
    config.segmentation.sweep.thresholds = (0.5, 0.0)
    config.segmentation.train.epochs = 1
  return config
