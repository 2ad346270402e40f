"""Which tool wrote a file of annotations, so that one given to another's importer is told so."""

import re

from lus_jax.errors import UserError
from tfds_builders import tables

# By keys of the object that a file holds, or of those in its list: who writes it, and the importer
# that reads it.
_TOOLS = (
  ("COCO", ("images", "annotations"), "coco"),
  ("VGG Image Annotator", ("_via_img_metadata",), "via"),
  ("VGG Image Annotator", ("regions", "filename"), "via"),
  ("LabelMe", ("shapes", "imagePath"), "labelme"),
  ("LabelMe", ("shapes", "flags"), "labelme"),
  ("Label Studio", ("annotations", "data"), "label_studio"),
  ("CVAT", ("shapes", "tracks"), "cvat"),
  ("SlicerUltrasound", ("frame_annotations",), "slicer"),
  ("Datumaro", ("items", "categories"), None),
  ("Supervisely", ("objects", "tags"), None),
  ("GeoJSON", ("features",), None),
)

# Roboflow makes frame_png.rf.0123abcd.jpg of frame.png.
_ROBOFLOW = re.compile(r"_(png|jpe?g|tiff?|bmp)\.rf\.[0-9A-Za-z]+\.[a-z]+$", re.IGNORECASE)
# Label Studio puts eight characters in front of the names of uploads.
_UPLOADED = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)")


def names_before(text):
  """What a picture is called, and what it may have been before a tool renamed it, each once."""
  return list(dict.fromkeys([text, _ROBOFLOW.sub(r".\1", text), _UPLOADED.sub(r"\1", text)]))


def _tool(content):
  """The tool that writes such JSON and the importer of it; None if no tool is known for it."""
  if isinstance(content, list):
    content = content[0] if content else None
  elif isinstance(content, dict) and not any(set(keys) <= content.keys() for _, keys, _ in _TOOLS):
    # VGG's images stand by name.
    content = next(iter(content.values()), None)
  if isinstance(content, dict):
    for tool, keys, importer in _TOOLS:
      if set(keys) <= content.keys():
        return tool, importer
  return None


def read_json(path, own, expected):
  """Reads a tool's JSON.

  Args:
    path: of the file.
    own: the importer that reads it, of `__main__.FORMATS`.
    expected: what such a file looks like, for messages.

  Returns:
    What it says.

  Raises:
    UserError: it is missing, no JSON, or another tool's.
  """
  text = tables.read_text(path, "mend --annotations")
  if text.lstrip().startswith("<"):
    raise UserError(f"{path} is XML (CVAT's: import it with cvat), not {expected}.")
  content = tables.parse_json(path, text)
  found = _tool(content)
  if found and found[1] != own:
    tool, importer = found
    hint = f"import it with {importer}" if importer else "export it as COCO"
    raise UserError(f"{path} looks like {tool}'s, not {expected}; {hint}.")
  return content


def json_files(path):
  """The JSON files of a path, and the folder of each in it: '' or 'a/b/'.

  Args:
    path: of a file, which is all there is, or of a folder, those below which count too.

  Raises:
    UserError: there are none.
  """
  if not path.is_dir():
    return [(path, "")]
  found = []

  def collect(folder, relative):
    for child in tables.visible(folder):
      if child.is_dir() and not child.is_symlink():
        collect(child, f"{relative}{child.name}/")
      elif child.suffix.lower() == ".json":
        found.append((child, relative))

  collect(path, "")
  if not found:
    raise UserError(f"{path} holds no JSON file; mend --annotations.")
  return found
