"""Who may be one person under two names: near-identical frames, and names spelled in two ways.

All frames are unpacked and hashed once, up to `alike.MOST`, and compared with each other: a
millisecond a frame of 512 x 512, and 20 s for that many to be compared on one core.
"""

import dataclasses
import io
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from absl import logging

from lus_jax.errors import UserError
from lus_jax.files import NPY_ERRORS, damage_is_a_user_error, write_bytes
from lus_jax.media import alike
from lus_jax.splits import SPLITS
from lus_jax.words import plural

# In a run's directory: hashes of the frames that its models have seen, for other data sets.
SEEN = "seen_frames.npz"
_SHOWN = 4
# What NumPy raises on a damaged archive.
_ERRORS = (*NPY_ERRORS, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Told(NamedTuple):
  """A sentence in two forms.

  Attributes:
    named: with patients and videos by name: for whom has the data.
    counted: without: for whom gets a model or what it puts out.
  """

  named: str
  counted: str


@dataclasses.dataclass(frozen=True)
class Looks:
  """What frames look like, n examples.

  Attributes:
    names: of their videos.
    patients: whose they are.
    splits: where they stand.
    hashes: uint8 [m, 32] of each.
  """

  names: list[str]
  patients: list[str]
  splits: list[str]
  hashes: list[np.ndarray]


def look(dataset, field, n_frames):
  """Hashes the frames of a data set, every so many where there are more than `alike.MOST`.

  Args:
    dataset: a `lus_jax.data.datasets.Dataset`.
    field: 'image' of frames, 'frames' of videos.
    n_frames: how many there are.

  Returns:
    `Looks`.
  """
  step, at = max(1, -(-n_frames // alike.MOST)), 0
  found = Looks([], [], [], [])
  for split, source in dataset.splits.items():
    for example in source.only("video", "patient", "valid_box", field):
      top, left, bottom, right = example["valid_box"]
      frames = example[field] if field == "frames" else example[field][None]
      chosen = frames[-at % step :: step, top:bottom, left:right, 0]
      at += len(frames)
      hashes = [one for frame in chosen for one in alike.hashes(frame)]
      found.names.append(example["video"].decode())
      found.patients.append(example["patient"].decode())
      found.splits.append(split)
      found.hashes.append(np.array(hashes, np.uint8).reshape(-1, 32))
  return found


def among(looks):
  """`Told`s of patients of one data set that may be one person."""
  from tfds_builders import tables

  spellings = {}
  for name in sorted(set(looks.patients)):
    spellings.setdefault(tables.spelling(name), []).append(name)
  several = [names for names in spellings.values() if len(names) > 1]
  if several:
    shown = "; ".join(" and ".join(names) for names in several[:_SHOWN])
    yield _told(
      f"the patients {shown}{_more(several)} look",
      f"{sum(map(len, several))} names of patients look",
      " like one name spelled in several ways; if they are one, they may stand on both sides of a "
      "split, and the test is not independent.",
    )
  groups = alike.find(looks.hashes, looks.patients)
  for group in groups[:_SHOWN]:
    patients = sorted({looks.patients[i] for i in group.clips})
    first = [next(i for i in group.clips if looks.patients[i] == name) for name in patients]
    sides = [side for side in SPLITS if side in {looks.splits[i] for i in group.clips}]
    where = f", and stand in {' and '.join(sides)}" * (len(sides) > 1)
    shown = tables.shown_list(
      [f"{looks.names[i]} of patient {tables.shown(looks.patients[i])}" for i in first], 5
    )
    yield _told(
      shown,
      plural(len(patients), "patient"),
      f" have near-identical frames ({group.bits} of {alike.N_BITS} bits of their hash differ)"
      f"{where}; if they are one person's, the test is not independent.",
    )
  if n := len(groups[_SHOWN:]):
    yield _told(*[f"{n} more groups of patients"] * 2, " have near-identical frames.")


def between(seen, looks, tested):
  """`Told`s of patients here whose frames segmentation models have seen under another name.

  Args:
    seen: `Looks` of what these were trained and selected on.
    looks: `Looks` of another data set.
    tested: names of patients here that test in any fold.
  """
  both = seen.hashes + looks.hashes
  found = {}
  # Whole sets in place of patients: within one of them nothing is looked for.
  for group in alike.find(both, ["seen"] * len(seen.hashes) + ["here"] * len(looks.hashes)):
    theirs = [seen.patients[i] for i in group.clips if i < len(seen.hashes)]
    for i in group.clips:
      if i >= len(seen.hashes):
        found.setdefault(looks.patients[i - len(seen.hashes)], theirs[0])
  if found:
    pairs = [f"{name} ({other} there)" for name, other in sorted(found.items())]
    at_test = sorted(set(found) & set(tested))
    yield _told(
      f"frames of {', '.join(pairs[:_SHOWN])}{_more(pairs)}",
      f"frames of {plural(len(pairs), 'patient')}",
      " are near-identical to some that the segmentation models learnt from, in a data set of "
      "another name: they have seen these patients"
      f"{f', and {len(at_test)} of them test here' * bool(at_test)}, so the test is not "
      "independent; leave them out, or train the segmentation without them.",
    )


def _told(named, counted, rest):
  return Told(named + rest, counted + rest)


def _more(items):
  return f" and {len(items) - _SHOWN} more" * (len(items) > _SHOWN)


def noted(dataset, found):
  """The data set with `Told`s among its notes; each is warned of.

  Notes go out with models and predictions, so they name nobody; the names are for `named`.
  """
  found = list(found)
  for one in found:
    logging.warning("%s: %s", dataset.name, one.named)
  notes = [*dataset.metadata.get("notes", []), *(one.counted for one in found)]
  more = {"notes": notes, "copies": found}
  return dataclasses.replace(dataset, metadata={**dataset.metadata, **more})


def stored(dataset):
  """What `noted` found, as results files of the run itself hold it: a list of dicts."""
  return [one._asdict() for one in dataset.metadata.get("copies", [])]


def named(notes, found):
  """Notes with names where there are some, for a run's own report.

  Args:
    notes: of a data set.
    found: of `stored`.
  """
  left = list(found)
  for note in notes:
    one = next((x for x in left if x["counted"] == note), None)
    if one is not None:
      left.remove(one)
    yield note if one is None else one["named"]


def keep(workdir, looks, splits=("train", "validation")):
  """Writes the hashes of what models have seen into their run's directory."""
  chosen = [i for i, split in enumerate(looks.splits) if split in splits]
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    names=np.array([looks.names[i] for i in chosen]),
    patients=np.array([looks.patients[i] for i in chosen]),
    splits=np.array([looks.splits[i] for i in chosen]),
    counts=np.array([len(looks.hashes[i]) for i in chosen], np.int64),
    hashes=np.concatenate([np.zeros((0, 32), np.uint8), *(looks.hashes[i] for i in chosen)]),
  )
  write_bytes(pathlib.Path(workdir) / SEEN, buffer.getvalue())


def kept(workdir):
  """What `keep` wrote; None of simulated frames, and of runs from before.

  Raises:
    UserError: the file is damaged.
  """
  file = pathlib.Path(workdir) / SEEN
  if not file.exists():
    return None
  with (
    damage_is_a_user_error(file, "bring it back, or remove it", _ERRORS, "damaged"),
    # Opened here: NumPy leaves one that is no archive open.
    file.open("rb") as opened,
    np.load(opened) as found,
  ):
    names = ("names", "patients", "splits", "counts", "hashes")
    *texts, counts, hashes = (found[name] for name in names)
  if {len(x) for x in (*texts, counts)} != {len(counts)} or hashes.shape != (counts.sum(), 32):
    raise UserError(f"{file} is damaged; bring it back, or remove it.")
  return Looks(*(x.tolist() for x in texts), np.split(hashes, np.cumsum(counts)[:-1]))
