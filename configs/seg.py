"""Segmentation: one FPN per confidence threshold, all trained at once.

  python -m lus_jax.main --config configs/seg.py --workdir runs/seg          the paper's recipe
  python -m lus_jax.main --config configs/seg.py:small --workdir runs/small  for small sets
  python -m lus_jax.main --config configs/seg.py:auto --workdir runs/auto    that, by the data
  python -m lus_jax.main --config configs/seg.py:demo --workdir runs/demo    for a CPU
  python -m lus_jax.main --config configs/seg.py:tiny --workdir runs/tiny    a smoke run

On your own frames (format: README.md, "Your own data"):

  python -m lus_jax.main --config configs/seg.py --config.data.name=lus_folder \
      --config.data.dir=DIR --workdir runs/mine

It prepares the data set, trains, evaluates the best epoch of every member on held-out patients,
prints Table 1 and writes `results/*.json`. Any field: `--config.optimizer.learning_rate=3e-4`; all
of them: `--config seg:demo --help`. On 2 CPU cores the smoke run takes about a minute and the demo
under 5; the paper's recipe takes days there and needs a GPU.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size="paper"):
  config = ConfigDict()
  config.task = "segmentation"
  config.seed = 0

  config.data = ConfigDict()
  config.data.name = "lus_phantom"  # or lus_folder, multirater_folder
  config.data.dir = ""  # the others: your folder
  config.data.prepared_dir = ""  # where prepared data sets live; empty: TFDS's default
  config.data.num_processes = 0  # that prepare data; 0: where it takes long, one a CPU, up to 8
  config.data.image_size = 512  # pixels; frames are letterboxed to a square
  config.data.split_unit = "patient"  # 'frame' is for smoke runs on too few patients only
  config.data.split_seed = 0  # of the split, where the data do not give one
  # Which pre-labels of a model are learnt from: frames that a hand touched, or touched_classes of
  # these alone, or all.
  config.data.prelabels = "touched"
  config.data.consensus = "replaces"  # its annotators' own labels; or beside them; or none
  config.data.cache = "auto"  # frames on the device, streamed, or whichever fits
  config.data.phantom = ConfigDict()
  config.data.phantom.n_patients = 42
  # How true faint strokes are; true_from_0.6: strokes are mostly true from 60 % on. See the README.
  config.data.phantom.setting = "default"
  config.data.phantom.n_frames = 16  # of a video
  config.data.phantom.missing_views = 0.25  # share of the views nobody recorded
  # Shares of the strokes painted with 20, 40, 50, 60, 80 and 100 % confidence.
  config.data.phantom.level_shares = (0.14, 0.16, 0.12, 0.16, 0.18, 0.24)
  config.data.phantom.raters = False  # whether all simulated experts paint every frame
  # Some of presets, b_lines, curved_pleura, effusion, consolidation, lung_point, lung_pulse.
  config.data.phantom.variety = ()
  config.data.phantom.stable_patients = 0.0  # share whose lungs and S/F ratio never change
  # How often the best reader is right about readmission, above .5; 0: unknown, as by default.
  config.data.phantom.readmission_accuracy = 0.0
  config.data.phantom.seed = 0

  config.labels = ConfigDict()
  config.labels.standardise = "none"  # or quantile, overlap: one scale for all annotators

  config.model = ConfigDict()
  config.model.encoder = "resnet34"
  config.model.width = 1.0  # factor on every channel count
  config.model.dropout = 0.2
  # 2: the network sees images half as large as labels and output are: lines that break where labels
  # are resized are whole at twice the size, at little more than the smaller image's cost.
  config.model.shrink = 0
  # How often the decoder's features, at a quarter of the size, are doubled before the head, each
  # with a convolution of the image beside it, so that thin lines stay: up to 2; 0 is the paper's.
  config.model.refinements = 0
  # Of the computation; parameters are float32. auto: bfloat16 on the GPUs that are fast in it.
  config.model.dtype = "auto"
  # The directory of a finished run (this config, or configs/pretrain.py), or PyTorch's weights, a
  # .pth or .safetensors file; empty: random ones.
  config.model.init_from = ""

  config.sweep = ConfigDict()
  config.sweep.thresholds = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)
  # What is trained beside them, as ("soft", "ordinal", "threshold(.6, loss=dice)"): all kinds stand
  # in lus_jax/training/members.py.
  config.sweep.members = ()
  config.sweep.seeds = 1  # repetitions of the whole sweep from other initial weights
  config.sweep.strategy = "auto"  # or loop, vmap, grouped, sharded, or 4x2: members x devices

  config.loss = ConfigDict()
  config.loss.name = "weighted_cross_entropy"
  config.loss.weights = "paper"  # or ones
  config.loss.subthreshold_weight = "threshold"  # or confidence
  config.loss.reduction = "mean"  # or weight_sum
  config.loss.region = 0.0  # weight of a Dice of the same target beside the cross entropies
  config.loss.from_prevalence = False  # whether outputs begin as the mean of their labels, not .5

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-4  # Adam, cosine decay to 0
  config.optimizer.weight_decay = 0.0  # of kernels, by AdamW
  config.optimizer.warmup = 0.0  # share of the steps over which the learning rate rises
  # Decay of moving averages of the weights, which then are what is validated and kept.
  config.optimizer.averaging = 0.0

  config.augment = ConfigDict()
  config.augment.probability = 0.5  # of each: flip, rotation, intensity, and what is on below
  config.augment.rotation_degrees = 15.0
  config.augment.confidence = "nearest"  # or bilinear, which shrinks labels of high thresholds
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.gamma = (0.8, 1.25)
  # Each is off at 0. Those that move pixels are one resampling, and together by one chance.
  config.augment.scale = 0.0  # up to so much larger, or as much smaller
  config.augment.shift = 0.0  # share of the image's side
  config.augment.shear_degrees = 0.0
  config.augment.elastic = 0.0  # share of the side, of a displacement's standard deviation
  config.augment.crop = 0  # pixels a side that are cut out, at fixed scale; 0: all
  config.augment.gain = 0.0  # up to so much brighter, or as much darker, by a factor
  config.augment.attenuation = 0.0  # logarithm of the change of brightness from top to bottom
  config.augment.speckle = 0.0  # standard deviation of multiplied grains
  config.augment.shadow = 0.0  # darkness of a band below some depth, as behind a rib
  config.augment.haze = 0.0  # how far a smooth veil is from black to white

  config.train = ConfigDict()
  config.train.epochs = 100
  config.train.steps = 0  # few images get more epochs, until there are so many steps
  config.train.epoch_steps = 0  # between two validations; 0: one pass over the frames
  config.train.batch_size = 0  # 0: the paper's 16, or what fits the device and the data
  # Share of the frames from which on a class is not rare: those of rarer ones come more often.
  config.train.rare = 0.0
  config.train.smoothing = 0.0  # of the validation score that selects the best epoch, over epochs
  # For about so long data.image_size, model.width, sweep.thresholds, train.batch_size and
  # train.steps are chosen from the data, where they stand at 0 or (); 0: none is.
  config.train.minutes = 0.0
  config.train.log_every = 20  # steps
  config.train.checkpoint_every = 10  # epochs; what a killed run may have to repeat

  # Or temperature, isotonic: fitted on the validation split, used by all that predicts.
  config.calibration = "none"

  config.distributed = common.distributed()

  if size == "paper":
    pass
  elif size == "demo":
    # 3 epochs of about 130 steps of 2 frames for 7 models: 5,400 model-image steps. Of fewer frames
    # of your own, more epochs.
    config.data.image_size = 96
    config.data.phantom.n_patients = 37  # fewer leave fewer than 4 to test
    config.data.phantom.n_frames = 6
    config.data.phantom.missing_views = 0.4
    config.model.encoder = "resnet18"
    config.model.width = 0.5
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 3
    config.train.steps = 360
    config.train.checkpoint_every = 1
    config.train.batch_size = 2
  elif size in ("small", "auto"):
    # Not the paper's question, but what learns well from tens to hundreds of frames: what is on
    # in loss, optimizer and augmentation was shown, in part as groups, to bring something on
    # simulated patients (docs/quality.md).
    config.data.image_size = 224
    config.data.phantom.n_frames = 6
    config.model.encoder = "resnet18"
    config.model.width = 0.5
    config.model.refinements = 1
    config.loss.weights = "ones"
    config.loss.region = 1.0
    config.loss.from_prevalence = True
    config.optimizer.learning_rate = 6e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup = 0.05
    config.optimizer.averaging = 0.99
    config.augment.scale = 0.25
    config.augment.shift = 0.1
    config.augment.shear_degrees = 8.0
    config.augment.elastic = 0.01
    config.train.epochs = 1
    config.train.steps = 2000
    config.train.epoch_steps = 50
    config.train.batch_size = 8
    config.train.checkpoint_every = 4
    config.calibration = "temperature"
    if size == "auto":
      config.data.image_size = 0
      config.model.width = 0.0
      config.sweep.thresholds = ()
      config.train.batch_size = 0
      config.train.steps = 0
      config.train.minutes = 20.0
  elif size == "tiny":
    config.data.image_size = 64
    config.data.phantom.n_patients = 12
    config.data.phantom.n_frames = 4
    config.model.encoder = "resnet18"
    config.model.width = 0.25
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 6
    config.train.checkpoint_every = 1
    config.train.batch_size = 4
  else:
    raise ValueError(
      f"configs/seg.py:{size} does not exist; use seg.py, seg.py:small, :auto, :demo or :tiny"
    )
  return config
