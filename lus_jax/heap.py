"""Memory that a program gives back is kept for its next call, on CPUs with glibc."""

import ctypes
import glob
import os

# Numbers of mallopt, by glibc's malloc.h, and what they are set to.
_OPTIONS = {
  # Nothing goes back to the system.
  "M_TRIM_THRESHOLD": (-1, -1),
  # Large arrays too come from the heap,
  "M_MMAP_MAX": (-4, 0),
  # of which there is one: those of threads hold no large ones.
  "M_ARENA_MAX": (-8, 1),
}


def keep():
  """Keeps what is freed for what this process allocates next; to be called before threads start.

  XLA for CPUs allocates all that a program needs in each call, hundreds of megabytes, and frees it.
  By itself glibc gives that back to the system, which then makes every page of it anew: for the
  step of a video network at 112 x 112 in batches of 4 clips 122,000 of them, two fifths of its CPU
  time, or, where there happen to be huge pages, a tenth. The process stays as large as it once was.
  Does nothing where a GPU computes, or without glibc.
  """
  has_gpu = glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/kfd")
  if has_gpu and os.environ.get("JAX_PLATFORMS") != "cpu":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  if mallopt:
    for number, value in _OPTIONS.values():
      mallopt(number, value)
