"""Memory: how much is free, and how freed blocks are kept instead of being returned and faulted in again."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
"""Parameter numbers of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to give the heap back. False where that is not glibc.

    Training on a CPU makes and frees the same large buffers at every step; by default each is a fresh mapping whose
    pages are zeroed by the kernel on first touch.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    settings = ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, largest), (_TOP_PAD, 2**28))
    return all(mallopt(name, ctypes.c_int(value)) == 1 for name, value in settings)


def free_memory() -> int:
    """Bytes that a run may use: of the first GPU if there is one, of the machine otherwise."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    for line in _read_meminfo():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read_meminfo() -> list[str]:
    path = Path("/proc/meminfo")
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []
