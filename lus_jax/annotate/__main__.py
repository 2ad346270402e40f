"""The command line: `python -m lus_jax.annotate DIR`."""

import argparse
import getpass
import hashlib
import pathlib
import sys
import threading
import webbrowser

from lus_jax import command_line
from lus_jax.annotate import protocol as protocol_lib
from lus_jax.annotate import server, store
from lus_jax.errors import UserError, say_warnings_plainly
from lus_jax.labels import annotators


def parse(argv):
  """Parses the command line's words."""
  parser = argparse.ArgumentParser(
    prog="python -m lus_jax.annotate",
    description="Paint confidences over frames, in the browser on this machine. What is saved is a "
    "lus_folder data set.",
  )
  parser.add_argument(
    "directory", metavar="DIR", help="a lus_folder, or a folder of clips and pictures"
  )
  parser.add_argument("--annotator", help="who paints; by default the name you are logged in with")
  parser.add_argument(
    "--classes", help="what is painted, as pleura,a_line, where DIR is no data set yet"
  )
  parser.add_argument(
    "--port",
    type=int,
    default=0,
    help="of 127.0.0.1; 0, the default, is that of the last start by the same person for the same "
    "folder, so that a page that is still open goes on, or else any that is free",
  )
  parser.add_argument(
    "--keep",
    type=int,
    default=20,
    help="revisions of a frame that stay (default 20): each that is saved by hand (Ctrl+S), and of "
    "those that the page saves by itself the last of every five minutes",
  )
  parser.add_argument("--no-browser", action="store_true", help="only print the address")
  parser.add_argument(
    "--protocol", help=f"guideline in Markdown; by default DIR/{protocol_lib.NAME}"
  )
  parser.add_argument(
    "--review",
    action="store_true",
    help="show all annotators and write a consensus of them, by 'consensus' or an --annotator who "
    "has no labels of their own here; what is not saved by hand (Ctrl+S) is none yet",
  )
  parser.add_argument(
    "--prelabel",
    metavar="WORKDIR",
    help="a finished segmentation run whose models' maps are offered as masks to correct",
  )
  parser.add_argument(
    "--member",
    action="append",
    metavar="NAME",
    help="which model of it, as threshold_0.6 or soft; may be repeated (default: all)",
  )
  return parser.parse_args(argv)


def _annotator(options):
  if options.annotator is not None:
    return options.annotator
  if options.review:
    return annotators.CONSENSUS
  try:
    return getpass.getuser()
  except (OSError, KeyError):
    return "annotator"


def open_store(options):
  """Makes the folder a data set where it is none yet, and opens it (`UserError`)."""
  directory = pathlib.Path(options.directory).expanduser()
  if not directory.is_dir():
    raise UserError(f"{directory} is no folder; name one that holds clips or pictures.")
  if options.keep < 1:
    raise UserError(f"--keep={options.keep}: at least the newest revision stays; give 1 or more.")
  classes = options.classes and [name.strip() for name in options.classes.split(",")]
  store.prepare(directory, classes or None)
  opened = store.Store(directory, _annotator(options), options.keep)
  if options.review:
    opened.check_reviewer()
  path = pathlib.Path(options.protocol).expanduser() if options.protocol else None
  if path is not None and not path.is_file():
    raise UserError(f"{path} does not exist; mend --protocol.")
  default = directory / protocol_lib.NAME
  opened.protocol = path or (default if default.is_file() else None)
  return opened


def open_prelabels(options, opened):
  """The models that are offered, None where no run is named (`UserError`)."""
  if options.prelabel is None:
    if options.member:
      raise UserError("--member names a model of a run; name the run with --prelabel WORKDIR.")
    return None
  from lus_jax.annotate import prelabels

  command_line.keep_compiled("~/.cache/lus_jax")
  workdir = pathlib.Path(options.prelabel).expanduser()
  return prelabels.Prelabels(workdir, opened, options.member)


def _kept(opened, review):
  """Where the address is kept between starts; a page of one annotator is never another's."""
  what = f"{opened.directory.resolve()}\n{opened.annotator}\n{review}"
  name = hashlib.sha256(what.encode()).hexdigest()[:32]
  return pathlib.Path("~/.cache/lus_jax/annotate").expanduser() / name


def _main(argv):
  options = parse(argv)
  say_warnings_plainly()
  opened = open_store(options)
  shown = server.Options(review=options.review, prelabels=open_prelabels(options, opened))

  def started(address):
    print(f"{opened.annotator} paints in {opened.directory}: {address}", flush=True)
    print("Ctrl-C ends it; the page saves by itself.", flush=True)
    if not options.no_browser:
      threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

  kept = _kept(opened, options.review)
  server.serve(opened, port=options.port, options=shown, started=started, kept=kept)


def main(argv=None):
  """Serves a folder until Ctrl-C; returns the exit code (2 after a user's mistake)."""
  return command_line.run(
    lambda: _main(sys.argv[1:] if argv is None else argv),
    interrupted="Stopped. What was saved stays.",
  )


if __name__ == "__main__":
  sys.exit(main())
