"""Pretraining without labels, on all clips of the training patients, drawn on or not.

  python -m lus_jax.main --config configs/pretrain.py --workdir runs/pretrained \
      --config.data.name=lus_folder --config.data.dir=DIR --config.data.image_size=256
  ... --config configs/pretrain.py --config.network=video --config.clip.n_segment=8 \
      --config.data.image_size=224                               for the clinical tasks' networks
  ... --config configs/pretrain.py:small                         for configs/seg.py:small and :auto
  ... --config configs/pretrain.py:demo                          reduced, for a CPU
  ... --config configs/pretrain.py:tiny                          a smoke run

Then `--config.model.init_from=runs/pretrained` for configs/seg.py, or for the clinical tasks, with
the same encoder and width. Parts of every frame are hidden, and the network draws them. No frame
of a validation or test patient is read; a few training patients are held out, to see what was
learnt.
"""

from ml_collections import ConfigDict

from configs import common, seg

SIZES = ("paper", "small", "demo", "tiny")


def get_config(size="paper"):
  if size not in SIZES:
    raise ValueError(f"configs/pretrain.py:{size} does not exist; use {', '.join(SIZES)}")
  own = seg.get_config(size)
  config = ConfigDict()
  config.task = "pretrain"
  config.network = "segmentation"  # or video: of the clinical tasks
  config.seed = 0

  # Frames are letterboxed to the size that they are trained at later: data.image_size, or
  # clip.image_size of a clinical task.
  config.data = own.data
  del config.data.prelabels, config.data.consensus
  config.clip = ConfigDict()
  config.clip.n_segment = 1  # frames of a clip; more are for network=video

  config.model = own.model

  config.mask = ConfigDict()
  config.mask.cells = 8  # that the longer side of a frame is divided into
  config.mask.share = 0.5  # of the cells that are hidden

  common.augment_clips(config)
  config.augment.probability = 0.5  # of each: flip, scale and shift, intensity

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-3  # Adam, cosine decay to 0
  config.optimizer.weight_decay = 0.01  # of kernels, by AdamW
  config.optimizer.warmup = 0.05  # share of the steps over which the learning rate rises

  config.sweep = ConfigDict()
  config.sweep.strategy = "auto"  # or loop, sharded, or 1x8: devices that share a batch

  config.train = ConfigDict()
  config.train.epochs = 40
  config.train.steps_per_epoch = 250  # whatever the number of frames: neighbours are nearly alike
  config.train.batch_size = 16  # frames, or clips
  config.train.log_every = 20  # steps
  config.train.checkpoint_every = 2  # epochs; what a killed run may have to repeat

  config.distributed = common.distributed()

  if size == "small":
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 20, 100, 8
  elif size == "demo":
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 10, 60, 4
  elif size == "tiny":
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 2, 4, 4
    config.train.checkpoint_every = 1
  return config
