"""Small sound files of the formats that clips come in."""

import fractions
import gzip

import numpy as np


def frames(n=4, h=24, w=32):
  """[n, h, w] uint8: smooth, and none like the next."""
  rng = np.random.default_rng(0)
  ramp = np.add.outer(4 * np.arange(h), 3 * np.arange(w))
  return np.stack([(ramp + rng.integers(0, 20, (h, w)) + 9 * i).astype(np.uint8) for i in range(n)])


def dataset(pixels, *, syntax=None, **elements):
  """A DICOM data set of uncompressed frames.

  Args:
    pixels: [n, h, w] or [n, h, w, 3], integers of 8 or 16 bits.
    syntax: its transfer syntax; explicit and little-endian by default.
    **elements: what else it holds, or holds otherwise.
  """
  from pydicom.dataset import Dataset, FileMetaDataset
  from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

  found, meta = Dataset(), FileMetaDataset()
  meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
  meta.MediaStorageSOPInstanceUID = "1.2.3"
  found.file_meta = meta
  found.SOPClassUID, found.SOPInstanceUID = UltrasoundMultiFrameImageStorage, "1.2.3"
  found.Modality, found.PatientID, found.FrameTime = "US", "p", "40"
  found.NumberOfFrames, found.Rows, found.Columns = pixels.shape[:3]
  found.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
  found.PhotometricInterpretation = "RGB" if pixels.ndim == 4 else "MONOCHROME2"
  if pixels.ndim == 4:
    found.PlanarConfiguration = 0
  found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
  found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(pixels.dtype.kind == "i")
  for name, value in elements.items():
    setattr(found, name, value)
  little = found.file_meta.TransferSyntaxUID.is_little_endian
  words = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">"))
  found.PixelData = words.tobytes() + b"\0" * (words.nbytes % 2)
  found["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
  return found


def save_dicom(path, found):
  """Writes a data set as a DICOM file; what cannot be right is not refused."""
  path.parent.mkdir(parents=True, exist_ok=True)
  found.save_as(path, enforce_file_format=True)


def encapsulated(found, syntax, encoded, **elements):
  """The same data set with compressed frames, one item each."""
  from pydicom.encaps import encapsulate

  found.file_meta.TransferSyntaxUID = syntax
  for name, value in elements.items():
    setattr(found, name, value)
  found.PixelData = encapsulate(encoded)
  found["PixelData"].VR = "OB"
  found["PixelData"].is_undefined_length = True
  return found


def colours(n=4):
  """[n, h, w, 3] uint8: grey with a coloured corner."""
  pixels = np.repeat(frames(n)[..., None], 3, axis=-1)
  pixels[:, :6, :6] = (200, 30, 60)
  return pixels


def by_pillow(pixels, name, **options):
  """Frames as JPEG or JPEG 2000."""
  import io

  from PIL import Image

  for frame in pixels:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, name, **options)
    yield buffer.getvalue()


def by_ffmpeg(pixels):
  """Frames as lossless JPEG."""
  import av

  for frame in pixels:
    codec = av.CodecContext.create("ljpeg", "w")
    codec.height, codec.width, codec.pix_fmt = *frame.shape[:2], "bgr24"
    codec.options = {"strict": "unofficial"}
    codec.time_base = fractions.Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr24")
    packets = codec.encode(picture) + codec.encode(None)
    yield b"".join(bytes(packet) for packet in packets)


def jpeg_ls(pixels):
  """Frames as JPEG-LS."""
  import jpeg_ls as library

  return [library.encode_array(frame) for frame in pixels]


def make_dicom(path, kind):
  """Writes a clip: 'plain', 'grey16', 'deflated', 'jpeg', 'lossless', 'ls', '2000' or 'rle'."""
  from pydicom import uid

  found = dataset(colours())
  if kind == "grey16":
    found = dataset(frames().astype(np.int16) * 40 - 900, WindowCenter="1000", WindowWidth="4000")
  elif kind == "deflated":
    found.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
  elif kind == "jpeg":
    encoded = list(by_pillow(colours(), "JPEG", quality=90))
    more = {"PhotometricInterpretation": "YBR_FULL_422"}
    found = encapsulated(found, uid.JPEGBaseline8Bit, encoded, **more)
  elif kind == "lossless":
    found = encapsulated(found, uid.JPEGLosslessSV1, list(by_ffmpeg(colours())))
  elif kind == "ls":
    found = encapsulated(found, uid.JPEGLSLossless, jpeg_ls(colours()))
  elif kind == "2000":
    encoded = list(by_pillow(colours(), "JPEG2000", irreversible=False, no_jp2=True))
    found = encapsulated(found, uid.JPEG2000Lossless, encoded)
  elif kind == "rle":
    found.compress(uid.RLELossless, encoding_plugin="pydicom")
  save_dicom(path, found)


def make_clip(path):
  """Writes a clip in the format of its suffix: NIfTI, NRRD, MetaImage or a TIFF stack."""
  pixels = frames()
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.name.endswith((".nii", ".nii.gz")):
    import nibabel

    values = (pixels.astype(np.int16) * 3).transpose(2, 1, 0)
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
  elif path.suffix in (".tif", ".tiff"):
    from PIL import Image

    pages = [Image.fromarray(frame) for frame in pixels]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate")
  else:
    import SimpleITK as sitk

    compressed = path.suffix != ".mhd"
    sitk.WriteImage(sitk.GetImageFromArray(pixels), path, useCompression=compressed)
