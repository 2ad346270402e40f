"""A TIFF of layers, one a frame and class, in the form of OME: Fiji, QuPath and napari open it."""

import uuid

from lus_jax.inference.formats import whole

# Of uncompressed pixels, from which on offsets take 64 bits.
_BIG = 2**31
_PAGE_NAME = 285


class Writer(whole.Writer):
  """`<target>.ome.tif`, uint8, 255 = probability 1.

  A page a frame and class, the classes of a frame one after the other, as time and channels of
  OME-XML, which holds the classes' names and colours, the pixels' size in mm and the seconds
  between frames, where they are known. Each page is also called by its class and frame.
  """

  suffix = ".ome.tif"

  def begin(self, path, stack):
    """Opens the file."""
    import tifffile  # slow to import, and needed by few

    clip, head = self.clip, self.head
    pages = len(head.frames) * len(head.classes)
    self._file = stack.enter_context(
      tifffile.TiffWriter(path, bigtiff=pages * clip.height * clip.width > _BIG)
    )
    self._description = self._ome(tifffile.OmeXml, pages)

  def _ome(self, make, pages):
    clip, head = self.clip, self.head
    size, seconds = {}, whole.seconds_a_frame(clip, head.frames)
    for axis, millimetres in zip("YX", clip.spacing or (), strict=False):
      size |= {f"PhysicalSize{axis}": millimetres, f"PhysicalSize{axis}Unit": "mm"}
    if seconds:
      size |= {"TimeIncrement": seconds, "TimeIncrementUnit": "s"}
    # A name of its own, by what it holds: a random one would differ from run to run.
    words = f"{clip.path.name} {head}"
    xml = make(Creator=head.software, UUID=f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, words)}")
    shape = (len(head.frames), len(head.classes), clip.height, clip.width)
    xml.addimage(
      "uint8",
      shape,
      (pages, 1, 1, clip.height, clip.width, 1),
      axes="TCYX",
      Name=head.name,
      Description=f"value / 255 = {head.meaning}",
      # OME's colours are red, green, blue and opacity in a signed number of 32 bits.
      Channel={
        "Name": list(head.classes),
        "Color": [int.from_bytes((*colour, 255), "big", signed=True) for colour in head.colours],
      },
      **size,
    )
    return xml.tostring(declaration=True).encode()

  def add(self, number, image, maps):
    """Writes the frame's maps [h, w, K], a page each."""
    for k, name in enumerate(self.head.classes):
      title = f"{name}, frame {number}".encode()
      self._file.write(
        maps[..., k],
        photometric="minisblack",
        compression="zlib",
        compressionargs={"level": 3},
        description=self._description,
        # Not tifffile's own words, which would describe each page alone.
        metadata=None,
        software=False,
        extratags=[(_PAGE_NAME, "s", 0, title, True)],
      )
      self._description = None
