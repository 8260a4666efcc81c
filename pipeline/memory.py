"""Keeps a long run's process small: one allocator, few arenas, large blocks given back at once; and collects seldom."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from functools import cache

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_ARENAS = 1
_MAPPED_FROM_BYTES = 4 * 1024 * 1024
_TRIMMED_FROM_BYTES = 16 * 1024 * 1024


def keep_memory_small() -> None:
    """Set the allocators up; call it before pyarrow is imported.

    Replies and row groups are blocks of megabytes that come and go. glibc's defaults keep them (an arena a thread, a
    threshold that grows), and so do Arrow's own pools; embedding 60,000 rows peaked at 380 MB with the defaults and
    at about 280 MB with these. Lower thresholds save no more, but have blocks mapped and given back all the time: with
    256 kB and 1 MB a vector took 107 µs, with these 80. What the environment says already is left alone.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return
    mallopt(_M_ARENA_MAX, _ARENAS)
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIMMED_FROM_BYTES)


def collect_seldom() -> None:
    """Have the collector of cyclic garbage pass over what is loaded by now, and come a seventh as often.

    A row makes hundreds of objects and no cycles: looking for some took 12 to 22 µs a row, and takes 2. Exceptions that
    hold a reply do make some, which must not gather for long, so it is not put off further.
    """
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def give_back() -> None:
    """Return freed memory to the system, where the C library can: glibc's malloc_trim, some milliseconds."""
    if sys.platform == "linux" and (trim := getattr(_libc(), "malloc_trim", None)) is not None:
        trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
