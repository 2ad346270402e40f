"""Loads Triton, which PyTorch's wheels bring, where it is installed and TensorFlow is not loaded.

Loaded after TensorFlow it ends the process by a signal, as both hold an LLVM (Triton 3.8,
TensorFlow 2.21); before it, both work. PyTorch loads it by itself, but only when something first
asks for its compiler, as the libraries of both peers do.
"""

import contextlib
import sys

if "tensorflow" not in sys.modules:
  with contextlib.suppress(ImportError):
    import triton  # noqa: F401
