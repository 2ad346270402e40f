"""Volumes of NIfTI, one a class, which 3D Slicer and ITK-SNAP open beside or over the clip."""

import gzip

import numpy as np

from lus_jax.inference.formats import whole
from lus_jax.media import nifti as reader


class Writer(whole.Writer):
  """`<target>/<class>.nii.gz`, uint8, 255 = probability 1.

  Axes are x, y, 1 and frames (x and y alone of a still), with the pixels' size in mm and the time
  between frames in seconds, where they are known. x points to the patient's left and y to the
  back, so that viewers show the frame as it was on the screen. Of a clip that is NIfTI itself the
  axes and their directions are its own, so that the volume lies over it; where frames are slices,
  each lies over its own as far as they are evenly spaced, else the first does.
  """

  def begin(self, path, stack):
    """Makes the files and writes their headers."""
    path.mkdir()
    self._parts = []
    for name in self.head.classes:
      file = stack.enter_context((path / f"{name}.nii.gz").open("wb"))
      # Neither the name nor the time that gzip writes of itself.
      packed = gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0)
      self._parts.append(stack.enter_context(packed))
      header = self._header(name)
      self._parts[-1].write(header.binaryblock)
      self._parts[-1].write(bytes(int(header["vox_offset"]) - len(header.binaryblock)))

  def _header(self, name):
    from nibabel import Nifti1Header, Nifti2Header  # slow to import, and needed by few

    clip, n = self.clip, len(self.head.frames)
    height, width = clip.spacing or (1, 1)
    shape, steps = [clip.width, clip.height], [width, height]
    if clip.nifti_axes == "yx":
      shape, steps = shape[::-1], steps[::-1]
    # Of a still one slice, which has no time.
    shape, steps = [*shape, 1, n][: 4 if n > 1 else 3], [*steps, 1, 1][: 4 if n > 1 else 3]
    seconds = whole.seconds_a_frame(clip, self.head.frames)
    affine = np.diag([-steps[0], -steps[1], 1, 1])
    forms = (affine, 1), (affine, 1)
    unit = "mm" if clip.spacing else "unknown"
    if clip.format == "nifti":
      # With its steps and unit, as its affines are in them.
      theirs, steps[:3], unit, *forms = reader.grid(clip.path)
      if len(theirs) == 3 or (len(theirs) > 3 and theirs[2] > 1):
        # Frames are slices.
        shape = [*shape[:2], n]
        apart = set(np.diff(self.head.frames).tolist())
        apart = apart.pop() if len(apart) == 1 else 1
        steps[2] *= apart
        forms = [(_taken(form, self.head.frames[0], apart), code) for form, code in forms]
    header = (Nifti1Header if max(shape) < 2**15 else Nifti2Header)()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = header.single_vox_offset
    (sform, s_code), (qform, q_code) = forms
    # It sets the steps too, without which the qform is none.
    header.set_qform(qform, q_code)
    header.set_sform(sform, s_code)
    if qform is not None:
      steps[:3] = [float(x) for x in header["pixdim"][1:4]]
    if len(shape) > 3:
      steps[3] = seconds or 1
    header.set_zooms(steps[: len(shape)])
    timed = seconds and len(shape) > 3
    header.set_xyzt_units(unit, "sec" if timed else "unknown")
    header["cal_max"] = 255
    header["intent_name"] = name.encode()[:15]
    header["descrip"] = f"{self.head.name}, {name}: value / 255 = {self.head.meaning}".encode()[:79]
    return header

  def add(self, number, image, maps):
    """Writes the frame's maps [h, w, K], each to its class's file."""
    for k, part in enumerate(self._parts):
      values = maps[..., k]
      # Files count their first axis fastest.
      part.write((values.T if self.clip.nifti_axes == "yx" else values).tobytes())


def _taken(affine, first, apart):
  """An affine [4, 4] of slices, or None, as that of every so manyth of them from one on."""
  if affine is None:
    return None
  affine = affine.copy()
  affine[:3, 3] += affine[:3, 2] * first
  affine[:3, 2] *= apart
  return affine
