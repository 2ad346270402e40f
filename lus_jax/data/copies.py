"""Who may be one person under two names: near-identical frames, and names spelled in two ways.

All frames are unpacked and hashed once, up to `alike.MOST`, and compared with each other: a
millisecond a frame of 512 x 512, and 20 s for that many to be compared on one core.
"""

import dataclasses
import io
import pathlib

import numpy as np
from absl import logging

from lus_jax.errors import UserError
from lus_jax.files import write_bytes
from lus_jax.media import alike
from lus_jax.splits import SPLITS

# In a run's directory: hashes of the frames that its models have seen, for other data sets.
SEEN = "seen_frames.npz"
_SHOWN = 4


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
  """Sentences on patients of one data set that may be one person."""
  from tfds_builders import tables

  spellings = {}
  for name in sorted(set(looks.patients)):
    spellings.setdefault(tables.spelling(name), []).append(name)
  several = [names for names in spellings.values() if len(names) > 1]
  if several:
    yield (
      f"the patients {'; '.join(' and '.join(names) for names in several[:_SHOWN])}"
      f"{_more(several)} look like one name spelled in several ways; if they are one, they may "
      "stand on both sides of a split, and the test is not independent."
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
    yield (
      f"{shown} have near-identical frames ({group.bits} of {alike.N_BITS} bits of their hash "
      f"differ){where}; if they are one person's, the test is not independent."
    )
  if groups[_SHOWN:]:
    yield f"{len(groups) - _SHOWN} more groups of patients have near-identical frames."


def between(seen, looks, tested):
  """Sentences on patients here whose frames segmentation models have seen under another name.

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
    yield (
      f"frames of {', '.join(pairs[:_SHOWN])}{_more(pairs)} are near-identical to some that the "
      "segmentation models learnt from, in a data set of another name: they have seen these "
      f"patients{f', and {len(at_test)} of them test here' * bool(at_test)}, so the test is not "
      "independent; leave them out, or train the segmentation without them."
    )


def _more(items):
  return f" and {len(items) - _SHOWN} more" * (len(items) > _SHOWN)


def noted(dataset, sentences):
  """The data set with sentences among its notes, for all who see results; each is warned of."""
  sentences = list(sentences)
  for one in sentences:
    logging.warning("%s: %s", dataset.name, one)
  notes = [*dataset.metadata.get("notes", []), *sentences]
  return dataclasses.replace(dataset, metadata={**dataset.metadata, "notes": notes})


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
  try:
    with np.load(file) as found:
      ends = np.cumsum(found["counts"])[:-1]
      texts = [found[name].tolist() for name in ("names", "patients", "splits")]
      return Looks(*texts, np.split(found["hashes"], ends))
  except (OSError, ValueError, KeyError, EOFError) as error:
    raise UserError(f"{file} is damaged ({error}); bring it back, or remove it.") from error
