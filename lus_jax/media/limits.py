"""How large a picture may be."""

from lus_jax.errors import UserError

# Of one picture: what Pillow calls a decompression bomb, far more than a scanner's or camera's.
MAX_PIXELS = 178_956_970
# Of all frames that are read together, one byte each.
MAX_TOTAL = 8 * 2**30
# Of what a compressed file unfolds to.
MAX_UNFOLDED = 2**30


def check_pixels(path, height, width):
  """Refuses a picture of more than `MAX_PIXELS`, before any memory is taken (`UserError`)."""
  if height * width > MAX_PIXELS:
    raise UserError(
      f"{path} says that it has {width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} "
      "million; make it smaller, or save it again if it is damaged."
    )


def check_unfolded(path, n_bytes):
  """Refuses a compressed file that unfolds to more than `MAX_UNFOLDED` bytes (`UserError`)."""
  if n_bytes > MAX_UNFOLDED:
    raise UserError(
      f"{path} unfolds to more than {MAX_UNFOLDED / 2**30:g} GiB; cut it into parts, or save it "
      "again if it is damaged."
    )
