"""What pages that carry everything in themselves are made of."""

import base64
import pathlib

import jinja2


def templates(module, **options):
  """The templates beside a module: what they are filled with is escaped, and has to be there.

  Args:
    module: its `__file__`.
    **options: of `jinja2.Environment`, in place of these.
  """
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(module).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    **{"autoescape": True} | options,
  )


def data_url(data, kind):
  """The bytes of an image as a data URL; `kind` as in 'png' or 'svg+xml'."""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
