"""The memory of this process, and giving back what it no longer needs."""

import ctypes
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_M_ARENA_MAX = -8  # of malloc.h
_libc = ctypes.CDLL(None)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(_STATM.read_text().split()[1]) * _PAGE


def share_heap() -> None:
    """Let all threads allocate from one heap, as far as they have none of their own yet: `trim` reaches all of it.

    Of a thread's own heap glibc keeps the end, up to 64 MiB of it.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give free memory back to the system; milliseconds for hundreds of MiB, and other threads run on meanwhile.

    glibc keeps what is freed in pieces below a threshold, which it raises to the largest piece that was freed (32 MiB
    at most): after some models, weights stay in its heaps. Elsewhere (musl) this does nothing.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
