"""What predictions are written as: a module a format.

Each has a class that writes one clip's maps of one member, a frame at a time, in memory that does
not grow with their number: a `whole.Writer`, or what has its methods and attributes.
"""

from typing import NamedTuple

from lus_jax.inference.formats import dicomseg, nifti, npz, png, tiff, video


class Format(NamedTuple):
  """A format.

  Attributes:
    writer: its class: `writer(target, clip, head)`.
    folder: that its files go to, as `<folder>/<member>` and the suffix.
    title: what it is, in a few words.
  """

  writer: type
  folder: str
  title: str


# By the word that users write.
FORMATS = {
  "png": Format(png.Writer, "", "an 8-bit mask a frame and class, as lus_folder reads"),
  "overlays": Format(png.Overlays, "overlays", "whole frames with the classes in their colours"),
  "png16": Format(png.Writer16, "png16", "16-bit masks"),
  "npz": Format(npz.Writer, "npz", "half-precision arrays for NumPy"),
  "nifti": Format(nifti.Writer, "nifti", "a volume a class, for 3D Slicer and ITK-SNAP"),
  "dicomseg": Format(
    dicomseg.Writer, "dicomseg", "DICOM Segmentation with probabilities, over a DICOM clip"
  ),
  "dicomseg-binary": Format(
    dicomseg.Binary, "dicomseg-binary", "the same with masks at the threshold that is shown"
  ),
  "tiff": Format(tiff.Writer, "tiff", "layered OME-TIFF, for Fiji, QuPath and napari"),
  "mp4": Format(video.Writer, "mp4", "a video of the scan area with legend"),
}
