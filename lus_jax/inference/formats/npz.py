"""One compressed file of arrays, for NumPy: the probabilities in half precision."""

import zipfile

import numpy as np

from lus_jax.inference.formats import whole


class Writer(whole.Writer):
  """`<target>.npz`: `probability` [N, h, w, K] float16, and what its axes are.

  `frames` [N] are the frames' numbers, `classes` [K] names; `member`, `meaning` and `software` are
  texts, `scan_area` is (top, left, bottom, right), half-open.
  """

  suffix = ".npz"
  dtype = np.float32

  def begin(self, path, stack):
    """Writes all but the probabilities, and what comes before them."""
    head, lib = self.head, np.lib.format
    file = stack.enter_context(zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1))
    small = {
      "frames": np.array(head.frames),
      "classes": np.array(head.classes),
      "member": np.array(head.name),
      "meaning": np.array(head.meaning),
      "software": np.array(head.software),
      "scan_area": np.array(head.box),
    }
    for name, array in small.items():
      with file.open(f"{name}.npy", "w") as part:
        lib.write_array(part, array, allow_pickle=False)
    self._part = stack.enter_context(file.open("probability.npy", "w", force_zip64=True))
    shape = (len(head.frames), self.clip.height, self.clip.width, len(head.classes))
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    lib.write_array_header_1_0(self._part, header)

  def add(self, number, image, maps):
    """Writes the frame's maps [h, w, K]."""
    self._part.write(maps.astype("<f2").tobytes())
