"""Every confidence threshold of a soft-labelled ultrasound data set, trained at once.

The commands are functions too. From a data folder to masks:

  import pathlib

  from configs import seg
  from lus_jax import predict, report
  from lus_jax.evaluation import results
  from lus_jax.training import segmentation
  from tfds_builders import media

  config = seg.get_config("demo")
  config.data.name, config.data.dir = "lus_folder", "DIR"
  config.sweep.thresholds = (0.6, 0.2)
  segmentation.train_and_evaluate(config, "runs/mine")  # again: goes on, or is finished
  scores = results.read("runs/mine", "segmentation")["rows"]  # one dict a threshold
  report.build("runs/mine")
  predict.run(workdir="runs/mine", source="clip.npy", out="masks")  # files
  trained = segmentation.load("runs/mine")  # or arrays
  clip = media.probe(pathlib.Path("clip.npy"))
  for number, image, maps in predict.predict(trained, clip, frames=[0]):
    print(number, image.shape, trained.thresholds, [one.max() for one in maps])  # uint8 [h, w, K]
"""

__version__ = "0.1.0"
