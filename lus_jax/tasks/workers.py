"""Units of work that share nothing, side by side: on a CPU in as many processes as it has cores.

Networks this small do not fill two cores: a process for each trains more of them. An accelerator is
given to one process alone.
"""

import multiprocessing
import os
import signal
import threading
from concurrent import futures

import jax

from lus_jax import command_line
from lus_jax.errors import UserError


def check(asked):
  """Refuses numbers of processes, `config.study.workers`, that cannot be (`UserError`)."""
  if asked < 0:
    raise UserError(f"config.study.workers: {asked} must be 0 (one a core) or a number of them.")
  if asked > 1 and jax.default_backend() != "cpu":
    raise UserError(f"config.study.workers: {asked} processes cannot share an accelerator; use 1.")


def run(asked, make, arguments, jobs, done):
  """Runs every job, calling `done` after each.

  Args:
    asked: how many processes; 0: one a core, or this one alone on an accelerator.
    make: a class, or function, of a module; what it returns has `run(*job)`. Made once a process.
    arguments: of it.
    jobs: tuples.
    done: called without arguments.

  Raises:
    UserError: a process was ended from outside.
  """
  if (count := count_of(asked, jobs)) > 1:
    _run_in_workers(count, make, arguments, jobs, done)
  elif jobs:
    worker = make(*arguments)
    for job in jobs:
      worker.run(*job)
      done()


def count_of(asked, jobs):
  """How many processes `run` works with."""
  return min(_count(asked), len(jobs))


def _count(asked):
  if asked or jax.default_backend() != "cpu":
    return asked or 1
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


# What `make` made in a worker process.
_worker = None


def _start_worker(make, arguments, cache):
  """Makes this process a worker that computes on one core."""
  global _worker
  # The parent stops its workers; should it be killed, they stop by themselves.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
  # Of XLA's thread pools; read when the backend starts.
  os.environ["NPROC"] = "1"
  command_line.keep_compiled(cache)
  _worker = make(*arguments)


def _work(*job):
  _worker.run(*job)


def _run_in_workers(count, make, arguments, jobs, done):
  with futures.ProcessPoolExecutor(
    count,
    # A fork of a process with threads can stand still.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(make, arguments, jax.config.jax_compilation_cache_dir),
  ) as pool:
    try:
      running = [pool.submit(_work, *job) for job in jobs]
      for one in futures.as_completed(running):
        one.result()
        done()
    except BaseException as error:
      # Nobody waits for units that are under way; they are done again.
      for process in list((pool._processes or {}).values()):
        process.kill()
      pool.shutdown(wait=False, cancel_futures=True)
      if isinstance(error, futures.process.BrokenProcessPool):
        raise UserError(
          f"config.study.workers: one of {count} processes ended, perhaps for want of memory; the "
          "same command with fewer goes on from here."
        ) from error
      raise
