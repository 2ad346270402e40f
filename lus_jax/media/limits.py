"""How large a picture may be."""

from lus_jax.errors import UserError

# Of one picture: what Pillow calls a decompression bomb, far more than a scanner's or camera's.
MAX_PIXELS = 178_956_970
# Of all frames that are read together, one byte each.
MAX_TOTAL = 2**30
# Of what a compressed file of uncompressed pixels unfolds to, in bytes.
MAX_UNFOLDED = 2 * 2**30
# Of one frame whose values take several bytes each on the way to one.
MAX_FRAME_PIXELS = 2**26
# Of one frame of a video, of which decoders keep up to 16 and one a thread: 4K, and half as many.
MAX_VIDEO_PIXELS = 5120 * 2880


def check_pixels(path, height, width, most=MAX_PIXELS):
  """Refuses a picture of more than `most` pixels, before any memory is taken (`UserError`)."""
  if height * width > most:
    raise UserError(
      f"{path} says that it has {width} x {height} pixels, more than {most / 1e6:.0f} "
      "million; make it smaller, or save it again if it is damaged."
    )


def check_unfolded(path, n_bytes, most=MAX_UNFOLDED):
  """Refuses a compressed file that unfolds to more than `most` bytes (`UserError`)."""
  if n_bytes > most:
    raise UserError(
      f"{path} unfolds to more than {most / 2**30:g} GiB; cut it into parts, save it in fewer "
      "bits, or copy it again if it is damaged."
    )
