"""Writing `.digests` files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from standby import clock
from standby.digesting import layout
from standby.digesting.tree import (
    LEAVES_PER_PAGE,
    PAGE,
    ZERO_LEAF,
    Leaves,
    page_nodes,
    root_of_pages,
    zero_node,
)
from standby.files import File, rename_durably


class DigestWriter:
    """Writes one `.digests` file: `add` pages in ascending order, then `finish`.

    Until `finish` returns nothing is at `path`, or what was there before; leaving the `with` block
    without it removes the unfinished file. Memory: 32 bytes per page. One thread.
    """

    def __init__(self, path: Path, virtual_size: int, complete: bool) -> None:
        """`complete`: pages that are not added are zero. Otherwise they are as in the point
        before, and a page that became all zeros has to be added."""
        if not 0 <= virtual_size <= layout.VIRTUAL_SIZE_MAX:
            raise ValueError(f"no disk has {virtual_size} bytes")
        self.path = path
        self.virtual_size = virtual_size
        self.is_complete = complete
        self._pages = -(-virtual_size // PAGE)
        self._last = -1
        self._index = bytearray()
        self._end = layout.FIRST_PAGE
        self._temporary = path.with_name(f".{path.name}.{clock.new_token(4)}.new")
        self._file = File(self._temporary, create=True)

    def add(self, page_number: int, leaves: Leaves) -> None:
        """Append one page: its (4096,) leaves, ZERO_LEAF where the disk is zero or has ended."""
        if not self._last < page_number < self._pages:
            raise ValueError(f"page {page_number} is out of order or outside the disk")
        if leaves.shape != (LEAVES_PER_PAGE,) or leaves.dtype != np.uint64:
            raise ValueError("a page is 4096 uint64 leaves")
        self._last = page_number
        if not bool((leaves == ZERO_LEAF).all()):
            self._file.write(np.ascontiguousarray(leaves, "<u8").view(np.uint8), self._end)
            self._index += layout.ENTRY_ROW.pack(
                page_number, self._end, page_nodes(leaves).tobytes()
            )
            self._end += layout.PAGE_BYTES
        elif not self.is_complete:
            self._index += layout.ENTRY_ROW.pack(page_number, 0, zero_node(2))

    def finish(self, root: bytes) -> None:
        """Write index and footer, sync, rename to `path`, sync the folder.

        `root` is the digest root of the state this file belongs to; that of a complete file is
        compared with its pages (ValueError).
        """
        index = np.frombuffer(self._index, layout.ENTRY)
        if len(root) != 16 or (
            self.is_complete
            and root_of_pages(self.virtual_size, index["page"].astype(np.int64), index["node"])
            != root
        ):
            raise ValueError(f"{root.hex()} is not the root of these pages")
        flags = layout.FLAG_COMPLETE if self.is_complete else 0
        header = layout.HEADER.pack(layout.HEADER_MAGIC, layout.VERSION, flags, self.virtual_size)
        entries = bytes(self._index)
        start = layout.FOOTER.pack(self._end, len(index), root, bytes(16), b"")
        check = layout.checksum(header, entries, start[: layout.FOOTER_CHECKED])
        footer = layout.FOOTER.pack(self._end, len(index), root, check, layout.FOOTER_MAGIC)
        self._file.write(header.ljust(layout.FIRST_PAGE, b"\0"), 0)
        self._file.write(entries + footer, self._end)
        self._file.sync()
        self._file.close()
        rename_durably(self._temporary, self.path)

    def abort(self) -> None:
        """Remove what is not finished; after `finish` this does nothing."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def __enter__(self) -> DigestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
