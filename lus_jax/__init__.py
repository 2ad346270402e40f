"""Every confidence threshold of a soft-labelled ultrasound data set, trained at once.

The commands are functions too. From a data folder to masks:

  import pathlib

  from configs import seg
  from lus_jax import predict, report, results
  from lus_jax.inference import frames, trained
  from lus_jax.media import readers
  from lus_jax.tasks.segmentation import run

  config = seg.get_config("demo")
  config.data.name, config.data.dir = "lus_folder", "DIR"
  config.sweep.thresholds = (0.6, 0.2)
  run.train_and_evaluate(config, "runs/mine")  # again: goes on, or is finished
  scores = results.read("runs/mine", "segmentation")["rows"]  # one dict a threshold
  report.build("runs/mine")
  predict.run(workdir="runs/mine", source="clip.npy", out="masks")  # files
  models = trained.load("runs/mine")  # or arrays
  clip = readers.probe(pathlib.Path("clip.npy"))
  for number, image, maps in frames.predict(models, clip, frames=[0]):
    print(number, image.shape, models.thresholds, [one.max() for one in maps])  # uint8 [h, w, K]
"""

__version__ = "0.1.0"
