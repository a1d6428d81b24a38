"""The memory of this process, and giving back what it no longer needs."""

import ctypes
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_libc = ctypes.CDLL(None)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(_STATM.read_text().split()[1]) * _PAGE


def trim() -> None:
    """Give free memory back to the system; milliseconds for hundreds of MiB, and other threads run on meanwhile.

    glibc keeps what is freed in pieces below a threshold, which it raises to the largest piece that was freed (32 MiB
    at most): after some models, weights stay in its heaps. Elsewhere (musl) this does nothing.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
