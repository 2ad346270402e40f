"""A trained model's calibrated maps, as masks that a hand corrects."""

import threading

import numpy as np

from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from lus_jax.media import scan_area

# Below it a model's probability is haze, which would count as painted at the threshold 0.
LEAST = round(0.05 * 255)


class Prelabels:
  """The models of a finished segmentation run, for the frames of a folder.

  Args:
    workdir: of the run.
    store: the `lus_jax.annotate.store.Store` whose frames they look at.
    members: which of the run's models are offered, by name; all by default.

  Attributes:
    names: of the models.

  Raises:
    UserError: there is no such run or model, or it knows none of the folder's classes.
  """

  def __init__(self, workdir, store, members=None):
    self._workdir, self._store, self._lock = workdir, store, threading.Lock()
    trained = trained_lib.load(workdir, every=True, option="--prelabel")
    names = [view.name for view in trained.views]
    for name in members or ():
      if name not in names:
        raise UserError(
          f"--member: no model of {workdir} is called '{name}'; there are {', '.join(names)}."
        )
    self.names = list(members or names)
    self._trained = trained.only([names.index(name) for name in self.names])
    if not set(trained.classes) & set(store.classes):
      raise UserError(
        f"--prelabel={workdir}: its models know {', '.join(trained.classes)}, and none of "
        f"{', '.join(store.classes)} that are painted here."
      )
    self._probability = self._trained.sweep.compile(self._trained.probability)
    self._found, self._boxes = (None, None), {}

  def describe(self, name):
    """What provenance says of a model: its run, and which of the run's it is."""
    return f"{self._workdir}: {name}"

  def _box(self, video):
    """The scan area, for models that learned from such: as manifest.csv says, or as it is found."""
    if not self._trained.dataset.get("has_scan_areas"):
      return None
    if video not in self._boxes:
      said = self._store.area(video)
      self._boxes[video] = said or scan_area.find(self._store.media(video)).box
    return self._boxes[video]

  def __call__(self, video, frame, name):
    """What a model sees on a frame.

    Args:
      video: name of a video of the folder.
      frame: counted from 0.
      name: one of `names`.

    Returns:
      A dict with `known`, whether the model knows each class, and uint8 [K, h, w], 255 =
      probability 1; what is below 5 % is 0.

    Raises:
      UserError: there is no such frame or model.
    """
    if name not in self.names:
      raise UserError(f"'{name}' is no model of {self._workdir}.")
    self._store.frames(video, frame, 1)  # says what is wrong with a frame
    with self._lock:  # one at a time; all models look at once
      if self._found[0] != (video, frame):
        found = frames_lib.predict(
          self._trained,
          self._store.media(video),
          frames=[frame],
          box=self._box(video),
          probability=self._probability,
        )
        ((_, _, maps),) = found
        self._found = (video, frame), maps
      of_model = self._found[1][self.names.index(name)]
    theirs, ours = list(self._trained.classes), self._store.classes
    planes = np.zeros((len(ours), *of_model.shape[:2]), np.uint8)
    for k, one in enumerate(ours):
      if one in theirs:
        plane = of_model[..., theirs.index(one)]
        planes[k] = np.where(plane >= LEAST, plane, 0)
    return {"known": [one in theirs for one in ours]}, planes
