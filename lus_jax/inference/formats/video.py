"""A video of the scan with the classes in their colours, which browsers and players play.

VP9 in mp4, as its encoder, libvpx, is under a BSD licence; the one for H.264 in the same wheels,
x264, is under the GPL and never asked for.
"""

import fractions

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lus_jax import palette
from lus_jax.inference.formats import whole
from lus_jax.media import scan_area

# Frames a second of what has no rate of its own, and the most that a file says.
_RATE, _MOST = 10, 1000
# Smaller scans are enlarged, so that words fit below them.
_NARROWEST = 320
_TEXT = 14
_WHITE, _GROUND = (255, 255, 255), (24, 24, 24)


class Writer(whole.Writer):
  """`<target>.mp4`: the scan area alone, as the rest of a screen may show names.

  Each class is as opaque as it is probable, with a line around what reaches the cut; below stand
  the classes, the member's meaning, the cut and the frame's number.
  """

  suffix = ".mp4"
  shows_cut = True

  def begin(self, path, stack):
    """Opens the file and draws the words below."""
    clip, head = self.clip, self.head
    rate = clip.frames_per_second
    self._timed = 0 < rate <= _MOST
    rate = fractions.Fraction(rate if self._timed else _RATE).limit_denominator(1001)
    top, left, bottom, right = head.shown
    self._scale = -(-_NARROWEST // (right - left))
    self._legend = _legend(head, (right - left) * self._scale)
    size = (bottom - top) * self._scale + self._legend.height, self._legend.width
    # No name of a program, and no time.
    exact = {"fflags": "+bitexact", "movflags": "+faststart"}
    self._file = stack.enter_context(av.open(path, "w", format="mp4", options=exact))
    # Of the speeds those whose result does not depend on the machine's.
    options = {"deadline": "good", "cpu-used": "5", "crf": "24", "b": "0", "row-mt": "0"}
    # It would hold back 25 frames.
    options["lag-in-frames"] = "0"
    self._stream = self._file.add_stream("libvpx-vp9", rate=rate, options=options)
    # Colours have a value for two pixels a side.
    self._stream.height, self._stream.width = (n + n % 2 for n in size)
    self._stream.pix_fmt = "yuv420p"
    self._stream.codec_context.thread_count = 1
    self._step, self._count = 1 / rate, 0

  def add(self, number, image, maps):
    """Encodes the frame [h, w] with its maps [h, w, K]."""
    maps = np.moveaxis(scan_area.crop(np.moveaxis(maps, -1, 0), self.head.shown), 0, -1)
    picture = overlaid(scan_area.crop(image, self.head.shown), maps, self.head.cut)
    picture = picture.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
    canvas = np.zeros((self._stream.height, self._stream.width, 3), np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    legend = self._legend.copy()
    text = f"frame {number} ({self._count + 1} of {len(self.head.frames)})"
    _write(legend, (6, legend.height - _line() - 2), text)
    canvas[len(picture) : len(picture) + legend.height, : legend.width] = np.asarray(legend)
    frame = av.VideoFrame.from_ndarray(canvas, format="rgb24")
    # Frames that were left out leave a gap: what is seen takes as long as it took.
    frame.pts = number - self.head.frames[0] if self._timed else self._count
    frame.time_base = self._step
    self._count += 1
    self._file.mux(self._stream.encode(frame))

  def end(self):
    """Encodes what the encoder holds back."""
    self._file.mux(self._stream.encode())


def overlaid(image, maps, cut):
  """Colours classes over a frame, with a line around what reaches the cut.

  Args:
    image: [h, w] uint8.
    maps: [h, w, K] uint8, 255 = probability 1.
    cut: a probability.

  Returns:
    [h, w, 3] uint8.
  """
  picture = palette.overlay(image, maps / np.float32(255))
  for k in range(maps.shape[-1]):
    picture[outlines(maps[..., k], cut)] = palette.rgb(k)
  return picture


def outlines(values, cut):
  """The rim of what reaches a cut in a map [h, w] uint8: [h, w] bool."""
  reached = values >= 255 * cut
  if not reached.any():
    return reached
  return reached & ~ndimage.binary_erosion(reached, np.ones((3, 3)), border_value=1)


def _font():
  return ImageFont.load_default(_TEXT)


def _line():
  return _TEXT + 6


def _write(picture, place, text):
  ImageDraw.Draw(picture).text(place, text, fill=_WHITE, font=_font())


def _legend(head, width):
  """The classes in their colours, and what is shown, as a Pillow image of a width."""
  entries = [(name, colour) for name, colour in zip(head.classes, head.colours, strict=True)]
  rows, x, y = [], 6, 4
  for name, colour in entries:
    wide = _TEXT + 6 + int(_font().getlength(name)) + 14
    if x > 6 and x + wide > width:
      x, y = 6, y + _line()
    rows.append((x, y, name, colour))
    x += wide
  lines = []
  for text in (f"{head.name}: {head.meaning}", f"line: probability {head.cut:g}"):
    lines += _wrapped(text, width - 12)
  height = y + _line() * (2 + len(lines)) + 4
  picture = Image.new("RGB", (width, height), _GROUND)
  for x, top, name, colour in rows:
    ImageDraw.Draw(picture).rectangle((x, top + 2, x + _TEXT - 2, top + _TEXT), fill=colour)
    _write(picture, (x + _TEXT + 4, top), name)
  for i, text in enumerate(lines):
    _write(picture, (6, y + _line() * (1 + i)), text)
  return picture


def _wrapped(text, width):
  """A text in lines that fit into a width, broken between words."""
  lines = []
  for word in text.split():
    longer = f"{lines[-1]} {word}" if lines else word
    if lines and _font().getlength(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines
