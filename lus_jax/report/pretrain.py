"""What a run of pretraining learned, as text and on the page."""

from lus_jax.report import cells
from lus_jax.words import plural

NAME = "pretrain"
PICTURES = "pretrain.npz"
_COLUMNS = {"epoch": "epoch", "train_loss": "training loss", "loss": "held-out loss"}
_KINDS = {"segmentation": "segmentation network", "video": "video network"}


def describe(content, dataset, steps):
  """What is run, as lines of text.

  Args:
    content: what stands in the results file before anything is trained.
    dataset: a `lus_jax.data.datasets.Dataset`.
    steps: of the training.
  """
  left = ", ".join(f"{n} of {name}" for name, n in content["left_out"].items())
  return "\n".join(
    [
      f"pretraining of a {_KINDS[content['network']]} on {dataset.name}: "
      f"{plural(content['frames'], 'frame')} of {plural(content['clips'], 'clip')} of "
      f"{plural(len(content['patients']), 'training patient')}, {plural(steps, 'step')}; held out: "
      f"{_held(content)}",
      f"not looked at: clips of the other splits ({left})",
      *(f"note: {note}" for note in dataset.notes),
    ]
  )


def _held(content):
  clips = plural(content["held_out_clips"], "clip")
  if set(content["held_out"]) & set(content["patients"]):
    return f"{clips} of the same patient"
  return f"{clips} of {', '.join(content['held_out'])}"


def gain(content):
  """By how much the network is nearer to what was hidden than the mean of what is seen, 0 to 1."""
  return 1 - content["loss"] / content["loss_of_mean"] if content["loss_of_mean"] else 0.0


def text(content):
  """What is printed at the end."""
  lines = [
    f"Pretraining: hidden parts of held-out clips are drawn {content['loss']:.4f} off (grey values "
    f"from 0 to 1; epoch {content['best_epoch']}); the mean of what is seen is "
    f"{content['loss_of_mean']:.4f} off.",
  ]
  if gain(content) < 0.1:
    lines.append(
      "That is next to nothing: more steps (--config.train.epochs), or another "
      "--config.optimizer.learning_rate, before anything starts from it."
    )
  lines.append("Networks start from it by --config.model.init_from= this directory.")
  return "\n".join(lines)


def history(files):
  """Every epoch, for the CSV file."""
  return cells.Table(
    f"{NAME}_history",
    list(_COLUMNS.values()),
    [
      [cells.value(files, NAME, "rows", i, key, show=str) for key in _COLUMNS]
      for i in range(len(files[NAME]["rows"]))
    ],
  )


def facts(files):
  """What the words of the section need."""
  content = files[NAME]

  def at(name, show=cells.count):
    return cells.value(files, NAME, name, show=show)

  return {
    "network": _KINDS[content["network"]],
    **{name: at(name) for name in ("clips", "frames", "held_out_clips", "best_epoch")},
    **{name: at(name, show="{:.4f}".format) for name in ("loss", "loss_of_mean")},
    "patients": at("patients", show=lambda names: plural(len(names), "training patient")),
    "held_out": _held(content),
    "left_out": [
      (cells.value(files, NAME, "left_out", name, show=cells.count), name)
      for name in content["left_out"]
    ],
    "notes": content["notes"],
    "little": gain(content) < 0.1,
  }


def figure(files):
  """The curve, drawn."""
  # Training imports this module for its text and needs no plots for that.
  from lus_jax.report import figures

  return figures.render(curve, files[NAME])


def curve(content):
  """Losses by epoch, and what the mean of what is seen would score; a matplotlib `Figure`."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  drawn = Figure(figsize=(6.4, 3.8), layout="constrained")
  axes = drawn.subplots()
  epochs = [row["epoch"] for row in content["rows"]]
  for key, style in (("train_loss", "--"), ("loss", "-")):
    axes.plot(epochs, [row[key] for row in content["rows"]], style, label=_COLUMNS[key])
  axes.axhline(
    content["loss_of_mean"], color="#777777", linestyle=":", label="mean of what is seen"
  )
  axes.set(xlabel="epoch", ylabel="distance, grey values", ylim=(0, None))
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  drawn.legend(loc="outside lower center", ncols=3)
  return drawn


def pictures(arrays):
  """Data URLs of the pictures: a list of dicts, one a clip.

  Args:
    arrays: of `PICTURES`: `image`, `seen` and `drawn`, [n, H, W] uint8.
  """
  from lus_jax.report import pictures as pictures_lib

  return [
    {name: pictures_lib.png(arrays[name][i]) for name in ("image", "seen", "drawn")}
    for i in range(len(arrays["image"]))
  ]


def check_pictures(arrays):
  """Refuses arrays of `PICTURES` of another shape or type (`ValueError`)."""
  shapes = set()
  for name in ("image", "seen", "drawn"):
    if name not in arrays:
      raise ValueError(f"without '{name}'")
    found = arrays[name]
    if found.dtype != "uint8" or found.ndim != 3 or not found.size:
      raise ValueError(f"'{name}' is {found.dtype} {list(found.shape)}")
    shapes.add(found.shape)
  if len(shapes) > 1:
    raise ValueError("its pictures are of several sizes")
