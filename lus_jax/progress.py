"""The progress bar of everything that takes long: done, rate and time left, on stderr."""

import sys
import time

from tqdm import tqdm

from lus_jax import parallel


def bar(iterable=None, *, total, unit, what, initial=0, delay=0, hidden=False):
  """A progress bar, of the main process alone.

  Args:
    iterable: what is gone through; None where `update` is called instead.
    total: how many there are.
    unit: what they are, as 'step'; those of 'B' are shown as kB, MB and GB.
    what: is done.
    initial: how many are done already.
    delay: seconds before it shows; what is faster needs none.
    hidden: whether it never shows.

  Returns:
    A `tqdm.tqdm`.
  """
  return tqdm(
    iterable,
    total=total,
    unit=unit,
    unit_scale=unit == "B",
    desc=what,
    initial=initial,
    delay=delay,
    # A log file gets a line every 10 s.
    mininterval=0.2 if sys.stderr.isatty() else 10,
    disable=hidden or not parallel.is_main(),
  )


def restart(shown):
  """Takes rate and time left of a `bar` from here on: what came before was mostly compilation."""
  shown.initial = shown.n
  shown.start_t = shown.last_print_t = time.time()


def say(text):
  """Prints a text above the bars that are shown, of the main process alone."""
  if parallel.is_main():
    tqdm.write(text)
