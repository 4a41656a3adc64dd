"""Several `.digests` files of one disk read as one state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from standby.digesting.digest_file import DigestFile
from standby.digesting.digest_writer import DigestWriter
from standby.digesting.tree import (
    LEAVES_PER_PAGE,
    PAGE,
    ZERO_LEAF,
    Leaves,
    Nodes,
    PageNumbers,
    root_of_pages,
    zero_node,
)
from standby.errors import DiskCorrupt


class DigestChain:
    """The state a disk has in the newest of some points, from that point's file and older ones.

    `page_numbers` (n,) int64 ascending and `nodes` (n, 16) uint8 are the pages that are not zero.
    """

    def __init__(self, files: Sequence[Path | DigestFile], virtual_size: int | None = None) -> None:
        """`files` from newest to oldest, the oldest complete (DiskCorrupt if it is not). A path
        is opened here; `close` closes all, also those that came open. `virtual_size` is the newest
        file's unless given; pages behind it are left out."""
        self._files: list[DigestFile] = []
        try:
            for file in files:
                self._files.append(file if isinstance(file, DigestFile) else DigestFile.open(file))
            if not self._files:
                raise ValueError("a chain needs at least one file")
            oldest = self._files[-1]
            if not oldest.is_complete:
                raise DiskCorrupt(
                    str(oldest.path), "the oldest digests of a chain are not complete", 12, "0"
                )
        except BaseException:
            self.close()
            raise
        self.virtual_size = self._files[0].virtual_size if virtual_size is None else virtual_size
        numbers, nodes, owners = effective_index(self._files)
        keep = (nodes != np.frombuffer(zero_node(2), np.uint8)).any(axis=1)
        keep &= numbers < -(-self.virtual_size // PAGE)
        self.page_numbers: PageNumbers = numbers[keep]
        self.nodes: Nodes = nodes[keep]
        self._owners = owners[keep]

    def leaves(self, page_number: int) -> Leaves:
        """(4096,) uint64 of a page, all ZERO_LEAF where it is zero; raises DiskCorrupt."""
        at = int(np.searchsorted(self.page_numbers, page_number))
        if at == len(self.page_numbers) or self.page_numbers[at] != page_number:
            return np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64)
        return self._files[int(self._owners[at])].leaves(page_number)

    def node(self, page_number: int) -> bytes:
        """The node of a page, which its leaves have to make."""
        at = int(np.searchsorted(self.page_numbers, page_number))
        if at == len(self.page_numbers) or self.page_numbers[at] != page_number:
            return zero_node(2)
        return bytes(self.nodes[at])

    def root(self, virtual_size: int | None = None) -> bytes:
        """The digest root of the state, as a disk of `virtual_size` (default: this one's)."""
        size = self.virtual_size if virtual_size is None else virtual_size
        return root_of_pages(size, self.page_numbers, self.nodes)

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        for file in self._files:
            file.close()

    def __enter__(self) -> DigestChain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def effective_index(
    files: Sequence[DigestFile],
) -> tuple[PageNumbers, Nodes, PageNumbers]:
    """(numbers, nodes, owners) over `files` from newest to oldest: of every page the newest entry,
    and which file it came from. Entries for zero pages included; nothing below a complete file
    counts."""
    stop = next((i + 1 for i, file in enumerate(files) if file.is_complete), len(files))
    seen = files[:stop]
    numbers = np.concatenate([file.page_numbers for file in seen])
    owners = np.repeat(np.arange(stop), [len(file.page_numbers) for file in seen])
    numbers, first = np.unique(numbers, return_index=True)  # first: the newest, as they are ordered
    nodes = np.concatenate([file.nodes for file in seen])[first]
    return numbers, nodes, owners[first]


def merge_digests(newer: Path, older: Path, out: Path) -> None:
    """Write to `out` what `newer` on top of `older` says; `out` may be one of the two.

    It has the newer one's size and root, and is complete when either is. Raises DiskCorrupt when a
    page is damaged; `out` is whole or untouched.
    """
    with DigestFile.open(newer) as top, DigestFile.open(older) as bottom:
        numbers, _, owners = effective_index([top, bottom])
        inside = numbers < -(-top.virtual_size // PAGE)
        is_complete = top.is_complete or bottom.is_complete
        with DigestWriter(out, top.virtual_size, is_complete) as writer:
            for number, owner in zip(
                numbers[inside].tolist(), owners[inside].tolist(), strict=True
            ):
                writer.add(number, (top, bottom)[owner].leaves(number))
            top.close()
            bottom.close()
            writer.finish(top.root)
