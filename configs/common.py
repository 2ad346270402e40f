"""What the configs of the three clinical tasks share; not a config of its own."""

from ml_collections import ConfigDict

# `ours` is the paper's size and recipe with our faster pairs and our softer channels; so are the
# reduced sizes.
SIZES = ("paper", "ours", "demo", "tiny")


def check_size(name, size):
  """Refuses a size that a config does not have."""
  if size not in SIZES:
    raise ValueError(f"configs/{name}.py:{size} does not exist; use {', '.join(SIZES)}")


def distributed():
  """A run on several processes: on each the same command, but for `process_id`."""
  config = ConfigDict()
  config.coordinator_address = ""  # HOST:PORT of process 0; empty: from srun or mpirun, if at all
  config.num_processes = 0
  config.process_id = -1
  return config


def augment_clips(config):
  """Gives a config the augmentation of clips: one draw each, for all its frames and maps."""
  config.augment = ConfigDict()
  # Of each: flip, scale and shift, intensity. 0, as the paper has it, is none; 0.5 is usual.
  config.augment.probability = 0.0
  config.augment.scale = 0.2  # up to so much larger, or as much smaller
  config.augment.shift = 0.1  # share of the height and width
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.gamma = (0.8, 1.25)


def video_task(task, size, *, target):
  """The fields of every clinical task, with the paper's values."""
  check_size(task, size)
  config = ConfigDict()
  config.task = task
  config.name = task  # of its results file and its part of the workdir
  config.seed = 0
  config.target = target  # the number of each video, or patient, that is predicted

  config.channels = ConfigDict()
  config.channels.workdir = ""  # the segmentation run; empty: this --workdir
  config.channels.thresholds = ()  # of its sweep; empty: all
  config.channels.kind = "binary"  # at .5, as the paper has them; or probability, which is ours
  config.channels.ablations = ("none", "true")  # video only; the simulator's true masks

  config.data = ConfigDict()
  config.data.name = ""  # empty: the videos of the segmentation run's data set
  config.data.dir = ""
  config.data.prepared_dir = ""  # where prepared data sets live; empty: the segmentation run's
  config.data.num_processes = 0  # that prepare data; 0: where it takes long, one a CPU, up to 8
  config.data.split_seed = 0
  config.data.cache = "auto"  # frames on the device, streamed, or whichever fits

  config.clip = ConfigDict()
  config.clip.image_size = 224
  config.clip.n_segment = 8  # frames of a clip

  config.folds = ConfigDict()
  config.folds.n = 5
  config.folds.cv = "paper"  # one test set for all folds; or rotate: every patient is tested once
  # Or strict: segmentation sweeps of every fold's own, so that nobody is looked at by models that
  # learned from them: one for who validates and tests, and `inner` more for who trains.
  config.folds.leakage = "paper"
  config.folds.inner = 3
  config.folds.balance = ("readmitted_30d", "sf_ratio")  # what folds are alike in, for all tasks
  config.folds.seed = 0

  config.model = ConfigDict()
  config.model.width = 1.0  # factor on every channel count
  # Of the computation; parameters are float32. auto: bfloat16 on the GPUs that are fast in it.
  config.model.dtype = "auto"
  # Another task of the same workdir, the directory of a run of configs/pretrain.py, or PyTorch's
  # weights, a .pth or .safetensors file; empty: random weights.
  config.model.init_from = ""
  config.model.dropout = 0.0  # of a clip's features, in training

  augment_clips(config)

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-4  # Adam, cosine with warm restarts
  config.optimizer.restart_epochs = 10
  config.optimizer.restart_factor = 2  # each period is so many times as long as the one before
  config.optimizer.weight_decay = 0.0  # of AdamW; 0 is Adam, as the paper has it

  config.sweep = ConfigDict()
  config.sweep.strategy = "auto"  # or loop, vmap, grouped, sharded, or 4x2: members x devices

  config.train = ConfigDict()
  config.train.epochs = 50
  config.train.batch_size = 16  # clips
  config.train.log_every = 20  # steps
  config.train.checkpoint_every = 5  # epochs; what a killed run may have to repeat

  # Of probabilities, on each fold's validation patients: none, or temperature (of classes).
  config.calibration = "none"

  config.distributed = distributed()

  if size != "paper":
    config.channels.kind = "probability"
  if size in ("demo", "tiny"):
    config.clip.image_size = 48
    config.clip.n_segment = 4
    config.model.width = 0.25
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = config.optimizer.restart_epochs = 6
    config.train.checkpoint_every = 1
    config.train.batch_size = 8
  if size == "demo":
    config.channels.thresholds = (0.6, 0.0)
    config.folds.n = 2
    config.train.epochs = config.optimizer.restart_epochs = config.train.checkpoint_every = 4
  if size == "tiny":
    config.clip.image_size = 32
    config.clip.n_segment = 2
    config.model.width = 0.125
    config.train.epochs = config.optimizer.restart_epochs = 1
  return config
