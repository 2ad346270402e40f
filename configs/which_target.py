"""Which target is worth learning? Many small simulated studies in which the truth is known.

  python -m lus_jax.main --config configs/which_target.py --workdir runs/which_target
  python -m lus_jax.main --config configs/which_target.py:faint --workdir runs/faint
  python -m lus_jax.main --config configs/which_target.py:scales --workdir runs/scales
  python -m lus_jax.main --config configs/which_target.py:tiny --workdir runs/tiny
  python -m lus_jax.main --config configs/which_target.py:clinical --workdir runs/clinic

In each setting of the phantom (from which confidence on strokes are mostly true) and for each seed
(new patients, new initial weights) it trains one small FPN per threshold and the soft label and the
ordinal network beside them, all with all-ones weights, and scores them against what was truly
there. It then answers the questions that were registered in `docs/which_threshold.md` before it
ran, `study.questions`: one score, one comparison each, corrected together. Seeds are the unit of
every interval and test. Writes `results/which_target.json` and prints its tables. Goes on where it
was.

Of the labels alone, without networks, dose and response are told in half a minute by
`python -m lus_jax.tasks.which_target.dose`.

`:faint` has four settings in which the truest label is one of 40 % or less, differing in what faint
strokes are worth, and the paper's weights beside all-ones weights; it asks nothing and describes.

`:small` learns from the first three cohorts of each setting by the recipe of configs/seg.py:small
as it first was (its network, losses, optimizer, augmentation and sampling) and describes whether
another threshold is best then.

`:scales` asks instead what it brings to carry all experts' confidences to one scale: every cohort
is learned from as painted and standardised in either way. There all experts paint every frame and
members learn their mean; with `--config.data.phantom.raters=False
--config.study.standardise="('none','quantile')"` one expert paints all frames of a patient.

`:clinical` asks in a clinical task which threshold helps: configs/clinic.py.
"""

from configs import clinic, seg


def get_config(size="paper"):
  if size in clinic.SIZES:
    return clinic.get_config(size)
  if size not in ("paper", "faint", "scales", "small", "tiny"):
    raise ValueError(
      f"configs/which_target.py:{size} does not exist; use which_target.py, :faint, :scales, "
      ":small, :tiny or :clinical"
    )
  config = seg.get_config("tiny")
  config.task = "which_target"
  config.seed = 100  # nothing was tuned on cohorts of these seeds
  config.study = {
    "settings": ("true_from_0", "true_from_0.4", "true_from_0.6", "true_from_0.8"),
    # (setting or all, member, member): is the first better than the second, by the metric?
    "questions": (
      ("true_from_0", 0.0, 0.5),
      ("true_from_0.4", 0.4, 0.0),
      ("true_from_0.6", 0.6, 0.0),
      ("true_from_0.6", 0.6, 0.5),
      ("true_from_0.8", 0.8, 0.0),
      ("true_from_0.8", 0.8, 0.5),
      ("all", "ordinal", "truest"),
    ),
    "metric": "average_precision",  # or dice, dice_half, ece, brier
    "standardise": ("none",),  # and quantile, overlap: compared with none over the same cohorts
    "seeds": 10,
    "workers": 0,  # processes that train side by side; 0: one a core, or 1 on an accelerator
    "train_frames": 16,  # of as many patients as it takes
    "validation_patients": 2,
    # The probability all networks start from (Lin et al. 2017): from .5, as elsewhere, a good part
    # of so few steps would go into learning that most pixels show nothing. With
    # loss.from_prevalence each starts from the share that its own labels show.
    "prior": 0.02,
    # Studies, with cohorts of their own, in which all members have one target: how often is a
    # question answered?
    "null_studies": 60,
  }
  config.data.image_size = 64
  config.data.phantom.n_patients = 12
  config.data.phantom.n_frames = 1
  config.model.width = 0.25
  # Of the paper's without .2, which costs as much as the others: nothing is painted below it, so
  # that "at least .2" and "above 0" are the same label.
  config.sweep.thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.0)
  config.sweep.members = ("soft", "ordinal")
  config.loss.weights = "ones"
  config.optimizer.learning_rate = 1e-2
  config.train.epochs = 192
  config.train.batch_size = 4
  if size in ("faint", "scales"):
    config.seed = 0
    config.study.questions, config.study.null_studies = (), 0
    config.study.train_frames, config.data.phantom.n_patients = 64, 14
    config.loss.weights = "paper"
    config.train.epochs = 28
  if size == "faint":
    config.study.settings = ("faint_true", "faint_false", "faint_uninformative", "null")
    config.study.seeds = 20
    config.sweep.thresholds = (1.0, 0.6, 0.5, 0.4, 0.0)
    config.sweep.members = (
      *(f"threshold({t}, weights=ones)" for t in config.sweep.thresholds),
      "soft",
      "ordinal(weights=ones)",
    )
  elif size == "scales":
    config.study.settings = ("default",)
    config.study.standardise = ("none", "quantile", "overlap")
    config.data.phantom.raters = True
    # A map moves neither 0 nor what is above 0, so "above 0" would be the same label.
    config.sweep.thresholds = (0.6, 0.5, 0.4)
    config.sweep.members = ("soft",)
  elif size == "small":
    config.study.questions, config.study.null_studies = (), 0
    config.study.seeds = 3
    small = seg.get_config("small")
    config.loss, config.optimizer, config.augment = small.loss, small.optimizer, small.augment
    config.model.refinements = small.model.refinements
    # As that recipe was when this was asked.
    config.augment.update(gain=0.25, attenuation=0.7, speckle=0.15, shadow=0.5, haze=0.15)
    config.train.rare = 0.3
  elif size == "tiny":
    config.study.settings = ("true_from_0", "true_from_0.6")
    config.study.questions = (("true_from_0", 0.0, 0.5), ("all", "ordinal", "truest"))
    config.study.seeds = 2
    config.study.train_frames = 16
    config.study.null_studies = 2
    config.data.image_size = 32
    config.data.phantom.n_patients = 7
    config.model.width = 0.125
    config.sweep.thresholds = (1.0, 0.5, 0.0)
    config.train.epochs = 2
  return config
