"""Calls functions by name, one JSON line a call, and says how each ended; see `common.Worker`."""

import importlib
import json
import os
import sys
import tempfile
import traceback


def ready():
  """Does nothing: the answer says that the process has started."""


def answer(function, arguments, log):
  """Calls 'module:function'; returns a dict of `outcome`, `text` and `value`."""
  from lus_jax.errors import UserError
  from tests.faults.common import Wrong

  module, name = function.split(":")
  log.seek(0)
  log.truncate()
  try:
    value = getattr(importlib.import_module(module), name)(**arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    log.seek(0)
    return {"outcome": "value", "text": log.read().decode(errors="replace")[-4000:], "value": value}
  except UserError as error:
    text = str(error)
    one_line = text.strip() and "\n" not in text
    return {"outcome": "refused" if one_line else "wrong", "text": text[-2000:], "value": None}
  except Wrong as error:
    return {"outcome": "silent", "text": str(error), "value": None}
  except BaseException as error:
    # The last place of the product says whose it is.
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/lus_jax/" in f.filename or "/tfds_builders/" in f.filename]
    place = f" at {'/'.join(ours[-1].filename.split('/')[-2:])}:{ours[-1].lineno}" if ours else ""
    text = f"{type(error).__name__}{place}: {str(error)[:300]}"
    return {"outcome": "traceback", "text": " ".join(text.split()), "value": None}


def main():
  """Reads calls from stdin until it ends."""
  replies = os.fdopen(os.dup(1), "w")
  # Whatever the product or its C libraries print is not a reply.
  with tempfile.TemporaryFile() as log:
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    for line in sys.stdin:
      call = json.loads(line)
      replies.write(json.dumps(answer(call["function"], call["arguments"], log)) + "\n")
      replies.flush()


if __name__ == "__main__":
  main()
