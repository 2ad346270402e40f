"""What videos, pictures and DICOM say beside their pixels: titles, makers, places, comments."""

from PIL import ExifTags

from lus_jax.media import containers, nifti, stills, volumes

# Of how pixels and files are stored; they tell of nobody.
_TECHNICAL = frozenset(
  """
  BitsPerSample ColorMap Compression ExifImageHeight ExifImageWidth ExifOffset ExifVersion
  ExtraSamples FillOrder GPSInfo GPSVersionID ImageLength ImageWidth JPEGTables NewSubfileType
  Orientation PhotometricInterpretation PlanarConfiguration Predictor ResolutionUnit RowsPerStrip
  SampleFormat SamplesPerPixel StripByteCounts StripOffsets SubfileType TileByteCounts TileLength
  TileOffsets TileWidth XResolution YCbCrCoefficients YCbCrPositioning YCbCrSubSampling YResolution
  compatible_brands language major_brand minor_version
  """.split()  # noqa: SIM905
)
# Names that formats give, beside those of EXIF; any other may be a person's.
_OF_FORMATS = """
  Author Comment Copyright Description Disclaimer Software Source Title Warning
  album_artist artist author chapters comment composer copyright creation_time date description
  encoder genre handler_name icc_profile keywords location location-eng make model performer
  aux_file data_type db_name descrip extension intent_name
  photoshop publisher software synopsis title vendor_id xmp
""".split()  # noqa: SIM905
_NAMES = frozenset(
  (*ExifTags.TAGS.values(), *ExifTags.GPSTAGS.values(), *_OF_FORMATS, "Creation Time")
)


def read(media):
  """Reads what a file, or each of a folder of pictures, says beside its pixels.

  Args:
    media: what `readers.probe` returned.

  Returns:
    (file, name, text) of each tag, as (path, 'Artist', 'A. Mueller'); the name may be one that
    somebody gave.

  Raises:
    UserError: a file is damaged.
  """
  found = []
  for path in media.files if media.format == "folder" else (media.path,):
    if media.format == "dicom":
      # Imported here: pydicom is large, and few need it.
      from lus_jax.media import dicom_copy

      found += [(path, *tag) for tag in dicom_copy.texts(path)]
    elif media.format == "video":
      found += [(path, *tag) for tag in containers.texts(path)]
    elif media.format == "nifti":
      found += [(path, *tag) for tag in nifti.texts(path)]
    elif media.format == "volume":
      found += [(path, *tag) for tag in volumes.texts(path)]
    elif media.format in ("folder", "gif", "picture"):
      with stills.opened(path, stack=True) as image:
        for page in range(stills.n_frames(image, path) if media.format == "picture" else 1):
          if page:
            stills.seek(image, path, page)
          found += [(path, *tag) for tag in stills.texts(image, path)]
  return [tag for tag in found if tag[1] not in _TECHNICAL]


def public_name(name):
  """The name of a tag where its format gives it, else 'another tag', as it may tell a person's."""
  if name in _NAMES or name.startswith("a stream of "):
    return name
  from pydicom.datadict import tag_for_keyword  # large, and few names come here

  return name if tag_for_keyword(name) else "another tag"
