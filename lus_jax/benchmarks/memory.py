"""How much memory a process takes, by the same measure for whatever computes in it."""

import contextlib
import pathlib

import jax

_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def of_process(*names):
  """Bytes that Linux counts for this process, by name (as 'VmRSS'); None where it does not."""
  try:
    lines = _STATUS.read_text().splitlines()
  except OSError:
    lines = []
  sizes = dict(line.split(":", 1) for line in lines)
  return tuple(1024 * int(sizes[name].split()[0]) if name in sizes else None for name in names)


class Peak:
  """The most memory that is taken from now on, beyond what is taken now.

  On a GPU it is the peak of the allocator, XLA's or PyTorch's: whatever they try while they tune
  counts. On a CPU it is that of the process's resident memory: what compiling takes counts.

  Args:
    torch: the module, where PyTorch computes on a GPU.
  """

  def __init__(self, torch=None):
    self._torch = torch
    if torch is not None:
      torch.cuda.reset_peak_memory_stats()
    else:
      # Of what was before; where that is not allowed, the peak may be an older one.
      with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    self._start = self._now("bytes_in_use", "VmRSS", "memory_allocated")

  def _now(self, of_xla, of_process_, of_torch):
    if self._torch is not None:
      return getattr(self._torch.cuda, of_torch)()
    if jax.default_backend() == "cpu":
      return of_process(of_process_)[0]
    stats = [device.memory_stats() for device in jax.local_devices()]
    return max(each[of_xla] for each in stats) if all(stats) else None

  def bytes(self):
    """Bytes of one device, or of the process; None where the system cannot say."""
    peak = self._now("peak_bytes_in_use", "VmHWM", "max_memory_allocated")
    return None if None in (peak, self._start) else max(0, peak - self._start)
