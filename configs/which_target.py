"""Which target is worth learning? Many small simulated studies in which the truth is known.

  python -m lus_jax.main --config configs/which_target.py --workdir runs/which_target
  python -m lus_jax.main --config configs/which_target.py:scales --workdir runs/scales
  python -m lus_jax.main --config configs/which_target.py:dose --workdir runs/dose
  python -m lus_jax.main --config configs/which_target.py:tiny --workdir runs/tiny

In each setting of the phantom (what faint strokes are worth) and for each seed (new patients, new
initial weights) it trains one small FPN per threshold, with the paper's weights and with all-ones
weights, and the soft label and the ordinal network beside them, and scores all of them
against what was truly there. Seeds are the unit of every interval and test. Writes
`results/which_target.json` and prints its tables. About an hour on 2 CPU cores; goes on where it
was.

`:scales` asks instead what it brings to carry all experts' confidences to one scale: every cohort
is learned from as painted and standardised in either way. There all experts paint every frame and
members learn their mean; with `--config.data.phantom.raters=False
--config.study.standardise="('none','quantile')"` one expert paints all frames of a patient.

`:dose` asks how the answer follows the confidence from which strokes are mostly true, from 0 to
80 %: at which dose one threshold overtakes another. It should take 70 minutes on 2 CPU cores, by
what a cohort of the first takes. Of the labels alone, without networks, it is told in half a minute
by `python -m lus_jax.tasks.which_target.dose`.
"""

from configs import clinic, seg


def get_config(size="paper"):
  if size in clinic.SIZES:
    return clinic.get_config(size)
  if size not in ("paper", "scales", "dose", "tiny"):
    raise ValueError(
      f"configs/which_target.py:{size} does not exist; use which_target.py, :scales, :dose or :tiny"
    )
  config = seg.get_config("tiny")
  config.task = "which_target"
  config.study = {
    "settings": ("faint_true", "faint_false", "faint_uninformative", "null"),
    "standardise": ("none",),  # and quantile, overlap: compared with none over the same cohorts
    "seeds": 20,
    "workers": 0,  # processes that train side by side; 0: one a core, or 1 on an accelerator
    "train_frames": 64,  # of as many patients as it takes
    "validation_patients": 2,
    # The probability all networks start from (Lin et al. 2017): from .5, as elsewhere, a good part
    # of so few steps would go into learning that most pixels show nothing.
    "prior": 0.02,
    # Studies in which all members have the same target: how often is a winner claimed?
    "null_repeats": 200,
    "null_cohorts": 60,  # small ones, of which each repeat draws as many as there are seeds
  }
  config.data.image_size = 64
  config.data.phantom.n_patients = 14
  config.data.phantom.n_frames = 1
  config.model.width = 0.25
  # Of the paper's without .8 and .2, which cost as much as the others: nothing is painted below
  # .2, so that "at least .2" and "above 0" are the same label.
  config.sweep.thresholds = (1.0, 0.6, 0.5, 0.4, 0.0)
  config.sweep.members = (
    *(f"threshold({t}, weights=ones)" for t in config.sweep.thresholds),
    "soft",
    "ordinal(weights=ones)",
  )
  config.optimizer.learning_rate = 1e-2
  config.train.epochs = 28
  config.train.batch_size = 4
  if size == "scales":
    config.study.settings = ("default",)
    config.study.standardise = ("none", "quantile", "overlap")
    config.study.null_repeats = 0
    config.data.phantom.raters = True
    # A map moves neither 0 nor what is above 0, so "above 0" would be the same label.
    config.sweep.thresholds = (0.6, 0.5, 0.4)
    config.sweep.members = ("soft",)
  elif size == "dose":
    config.study.settings = tuple(f"true_from_{dose}" for dose in (0, 0.2, 0.4, 0.6, 0.8))
    # Every dose has to be able to win.
    config.sweep.thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.0)
    config.sweep.members = (
      *(f"threshold({t}, weights=ones)" for t in config.sweep.thresholds),
      *config.sweep.members[-2:],
    )
    config.study.null_repeats = 0
  elif size == "tiny":
    config.study.settings = ("faint_true", "faint_false")
    config.study.seeds = 2
    config.study.train_frames = 16
    config.study.null_repeats = 20
    config.study.null_cohorts = 4
    config.data.image_size = 32
    config.data.phantom.n_patients = 7
    config.model.width = 0.125
    config.sweep.thresholds = (1.0, 0.5, 0.0)
    config.sweep.members = ("threshold(0.5, weights=ones)", "soft", "ordinal(weights=ones)")
    config.train.epochs = 2
    config.train.batch_size = 4
  return config
