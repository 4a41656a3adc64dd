"""Reading `.digests` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from standby.digesting import layout
from standby.digesting.tree import (
    LEAVES_PER_PAGE,
    PAGE,
    ZERO_LEAF,
    Leaves,
    Nodes,
    PageNumbers,
    page_nodes,
    root_of_pages,
    zero_node,
)
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.files import File


class DigestFile:
    """One `.digests` file: the index in memory (32 bytes per page), leaves read page by page.

    Reads from several threads at once are allowed.
    """

    def __init__(
        self,
        file: File,
        virtual_size: int,
        is_complete: bool,
        root: bytes,
        index: NDArray[np.void],
    ) -> None:
        """Use `open`; the file is owned from here on."""
        self.path = file.path
        self.virtual_size = virtual_size
        self.is_complete = is_complete
        self.root = root
        self.page_numbers: PageNumbers = index["page"].astype(np.int64)
        """(n,) int64, ascending; pages stated to be zero included."""
        self.nodes: Nodes = np.ascontiguousarray(index["node"])
        """(n, 16) uint8, that of a zero page being zero_node(2)."""
        self._offsets = index["offset"].astype(np.int64)
        self._file = file

    @classmethod
    def open(cls, path: Path) -> DigestFile:
        """Open and check everything but the leaves.

        Raises DiskCorrupt for a damaged file (whatever its bytes, and without allocating more
        than the file is long), DiskUnsupported for a version or flag of a later release, DiskIO.
        """
        file = File(path)
        try:
            return cls(file, *_checked(file))
        except BaseException:
            file.close()
            raise

    def leaves(self, page_number: int) -> Leaves:
        """(4096,) uint64: a new array. KeyError when this file does not hold the page;
        DiskCorrupt when the leaves do not make the page's node."""
        at = int(np.searchsorted(self.page_numbers, page_number))
        if at == len(self.page_numbers) or self.page_numbers[at] != page_number:
            raise KeyError(page_number)
        offset = int(self._offsets[at])
        if not offset:
            return np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64)
        stored = np.empty(LEAVES_PER_PAGE, "<u8")
        self._file.read_into(stored.view(np.uint8), offset)
        leaves = stored.astype(np.uint64, copy=False)
        node = page_nodes(leaves).tobytes()
        if node != self.nodes[at].tobytes():
            raise DiskCorrupt(
                str(self.path),
                f"the leaves of page {page_number} do not match its node",
                offset,
                node.hex(),
            )
        return leaves

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> DigestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(file: File) -> tuple[int, bool, bytes, NDArray[np.void]]:
    """Virtual size, completeness, root and index of a file that passes every check."""

    def require(fact: bool, check: str, offset: int, value: object) -> None:
        if not fact:
            raise DiskCorrupt(str(file.path), check, offset, str(value))

    size = file.size
    footer_at = size - layout.FOOTER.size
    require(footer_at >= layout.FIRST_PAGE, "too short to be a digests file", 0, size)
    head = file.read(0, layout.FIRST_PAGE)
    magic, version, flags, virtual_size = layout.HEADER.unpack_from(head)
    require(magic == layout.HEADER_MAGIC, "not a digests file", 0, magic.hex())
    if version != layout.VERSION:
        raise DiskUnsupported(str(file.path), f"version {version} of the digests format")
    footer = file.read(footer_at, layout.FOOTER.size)
    index_at, count, root, check, end_magic = layout.FOOTER.unpack(footer)
    require(end_magic == layout.FOOTER_MAGIC, "no footer", footer_at, end_magic.hex())
    require(
        layout.FIRST_PAGE <= index_at <= footer_at
        and count * layout.ENTRY.itemsize == footer_at - index_at,
        "the index does not fill the place before the footer",
        footer_at,
        f"{count} entries at {index_at:#x}",
    )
    entries = file.read(index_at, footer_at - index_at)
    found = layout.checksum(head[: layout.HEADER.size], entries, footer[: layout.FOOTER_CHECKED])
    require(found == check, "the checksum is wrong", footer_at, found.hex())
    if flags & ~layout.FLAG_COMPLETE:
        raise DiskUnsupported(str(file.path), f"flags {flags:#x} of the digests format")
    require(virtual_size <= layout.VIRTUAL_SIZE_MAX, "virtual size", 16, virtual_size)
    index: NDArray[np.void] = np.frombuffer(entries, layout.ENTRY)
    is_complete = bool(flags & layout.FLAG_COMPLETE)
    problem = _index_problem(index, index_at, virtual_size, is_complete)
    require(not problem, problem, index_at, f"{count} entries")
    if is_complete:
        made = root_of_pages(virtual_size, index["page"].astype(np.int64), index["node"])
        require(made == root, "the pages do not make the root", footer_at + 16, made.hex())
    return virtual_size, is_complete, root, index


def _index_problem(
    index: NDArray[np.void], index_at: int, virtual_size: int, is_complete: bool
) -> str:
    """What is wrong with the index, '' if nothing is. Vectorised: 16 TiB are a million entries."""
    pages, offsets = index["page"], index["offset"]
    if len(index) and (
        int(pages[-1]) >= -(-virtual_size // PAGE) or not bool((pages[1:] > pages[:-1]).all())
    ):
        return "page numbers do not ascend or lie outside the disk"
    is_zero = offsets == 0
    if is_complete and bool(is_zero.any()):
        return "a complete file states a page to be zero"
    if bool((index["node"][is_zero] != np.frombuffer(zero_node(2), np.uint8)).any()):
        return "a page stated to be zero has another node"
    stored = offsets[~is_zero]
    step = layout.PAGE_BYTES
    if len(stored) * step != index_at - layout.FIRST_PAGE or not bool(
        (stored == layout.FIRST_PAGE + step * np.arange(len(stored), dtype=np.uint64)).all()
    ):
        return "pages do not stand one after the other before the index"
    return ""
