"""The `.digests` layout, version 1: see src/standby/FORMAT.md."""

from __future__ import annotations

import struct

import numpy as np
import xxhash

from standby.digesting.tree import LEAVES_PER_PAGE

HEADER_MAGIC = b"STBYDIGS"
FOOTER_MAGIC = b"STBYDEND"
VERSION = 1
FLAG_COMPLETE = 1

HEADER = struct.Struct("<8sIIQ40x")
"""Magic, version, flags, virtual size; zeros to 64 bytes."""

FOOTER = struct.Struct("<QQ16s16s8s8x")
"""Index offset, index entries, root, checksum, magic; zeros to 64 bytes."""

FOOTER_CHECKED = 32
"""Bytes of the footer that the checksum covers: what stands before it."""

ENTRY = np.dtype([("page", "<u8"), ("offset", "<u8"), ("node", "u1", 16)])
"""One page in the index; offset 0: the page is all zeros and nothing is stored."""

ENTRY_ROW = struct.Struct("<QQ16s")
"""The same, for one at a time."""

FIRST_PAGE = 4096
PAGE_BYTES = LEAVES_PER_PAGE * 8
VIRTUAL_SIZE_MAX = 1 << 56
"""64 PiB: a thousand times the largest VHDX, and page numbers stay far from overflow."""

assert HEADER.size == FOOTER.size == 64
assert ENTRY.itemsize == ENTRY_ROW.size == 32


def checksum(header: bytes, index: bytes, footer_start: bytes) -> bytes:
    """The footer's checksum: xxh3-128 of header, index, and the footer before the checksum."""
    state = xxhash.xxh3_128(header)
    state.update(index)
    state.update(footer_start)
    return state.digest()
