"""What becomes of memory that this process frees: one door to the C library's allocator."""

from __future__ import annotations

import ctypes

from standby.files.libc import libc_function
from standby.units import MiB

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""mallopt(3)'s parameters, by their numbers in glibc's malloc.h."""

KEPT_BYTES = 256 * MiB
"""Free memory at the heap's end that is kept; more goes back to the system."""

KEPT_BLOCK = 32 * MiB
"""Larger blocks come from the system and go back to it (mallopt's maximum on 64 bits)."""


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees for what it takes next, in one heap for all
    threads; whether it can (glibc).

    To be called before threads begin. By default blocks of MiB go back to the system and come as
    new pages, which can cost more than what is done with them: without this, 8 disks through a
    pair of WAN accelerators take 1.5 times the time on two cores (bench/wan_pair.py).
    """
    mallopt = libc_function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        return False
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, KEPT_BLOCK), (_TRIM_THRESHOLD, KEPT_BYTES))
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(taken)
