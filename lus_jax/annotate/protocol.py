"""The protocol beside the frame: Markdown without HTML, with pictures of the data folder."""

from lus_jax.errors import UserError
from tfds_builders import tables

NAME = "protocol.md"
PICTURES = (".png", ".jpg", ".jpeg", ".gif")
MAX_BYTES = 2**20


def html(path):
  """A protocol as HTML: its own tags are text, and pictures are those beside it.

  Raises:
    UserError: it cannot be read, or markdown-it-py is not installed.
  """
  try:
    from markdown_it import MarkdownIt
  except ImportError as error:
    raise UserError(
      "The protocol needs markdown-it-py; install it with pip install 'lus_jax[annotate]'."
    ) from error
  text = tables.read_text(path, "write the protocol there, or leave --protocol out")
  if len(text) > MAX_BYTES:
    raise UserError(f"{path} is longer than a protocol can be; shorten it.")
  markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
  tokens = markdown.parse(text)
  for token in tokens:
    for child in token.children or ():
      if child.type == "image":
        # The page shows nothing of other servers: its policy forbids that anyway.
        source = str(child.attrs.get("src", ""))
        child.attrs["src"] = f"protocol/{source}" if "://" not in source else ""
      elif child.type == "link_open":
        child.attrs |= {"rel": "noreferrer noopener", "target": "_blank"}
  return markdown.renderer.render(tokens, markdown.options, {})


def picture(directory, protocol, name):
  """The path of a picture that the protocol shows, which lies below the data folder.

  It is named relative to the protocol, or to the data folder where the protocol lies elsewhere.

  Raises:
    UserError: it is none, or lies elsewhere.
  """
  parts = name.split("/")
  if protocol is None or ".." in parts or "" in parts or name.startswith("~") or "\0" in name:
    raise UserError("There is no such picture.")
  near = protocol.parent if protocol.is_relative_to(directory) else directory
  path = near.joinpath(*parts)
  if path.suffix.lower() not in PICTURES or not path.is_file():
    raise UserError("There is no such picture.")
  if not path.resolve().is_relative_to(directory.resolve()):
    raise UserError("There is no such picture.")
  return path
