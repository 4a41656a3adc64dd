"""What the target holds of one disk now: the parent point's leaves under the extent log's.

This, and never the repository alone, is what a resumed, seeded or metadata-less transfer is
compared against (RULES 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.digesting import (
    LEAVES_PER_PAGE,
    ZERO_LEAF,
    DigestChain,
    page_nodes,
    root_of_pages,
    zero_node,
)
from standby.errors import DiskCorrupt, DiskIO
from standby.road.extent_log import ExtentLog

_PAGES_AT_ONCE = 64
"""2 MiB of leaves: stays in the second-level cache while nodes are made."""

PageNumbers = npt.NDArray[np.int64]
Nodes = npt.NDArray[np.uint8]
Leaves = npt.NDArray[np.uint64]
Proved = Callable[[int, bytes], Leaves]
"""proved(page number, its node): the page's leaves, computed again from what they describe."""


def open_digests(paths: Sequence[Path], virtual_size: int, root: bytes) -> DigestChain:
    """The state that digest files (newest first, down to a complete one) describe. Trusted only
    when its root is `root`, the one in the point's record (RULES 6); else DiskCorrupt."""
    hint = "`standby replica verify` with --repair computes them again from an undamaged disk"
    try:
        chain = DigestChain(paths, virtual_size)
    except DiskCorrupt as exc:
        raise DiskCorrupt(exc.path, exc.check, exc.offset, exc.value, exc.hint or hint) from exc
    found = chain.root(virtual_size)
    if found != root:
        chain.close()
        raise DiskCorrupt(
            str(paths[0]),
            f"the digests are not those of the restore point, whose root is {root.hex()}",
            0,
            found.hex(),
            hint,
        )
    return chain


class Baseline:
    """The parent state (zeros for a new base) overlaid with everything acknowledged."""

    def __init__(
        self, parent: DigestChain | None, log: ExtentLog, proved: Proved | None = None
    ) -> None:
        """`proved` has the parent's leaves of pages whose own are damaged; without it those raise
        DiskCorrupt."""
        self._parent = parent
        self._log = log
        self._proved = proved
        self.lost_pages: set[int] = set()
        """Pages whose leaves the parent's digests had damaged, and `proved` made good."""

    def leaves(self, page_number: int) -> Leaves:
        """(4096,) uint64 of one 16 MiB page, zero leaves where nothing is. A fresh array."""
        leaves = self.parent_leaves(page_number)
        self._log.overlay(page_number, leaves)
        return leaves

    def index(self) -> tuple[PageNumbers, Nodes]:
        """Page numbers (sorted) and level-2 nodes (n, 16) of all pages that are not zero.

        Costs one hash of the leaves of every page the log touches."""
        touched = [np.empty(0, dtype=np.int64)]
        nodes = [np.empty((0, 16), dtype=np.uint8)]
        for numbers, _, fresh in self.touched():
            touched.append(numbers)
            nodes.append(fresh)
        return self._joined(np.concatenate(touched), np.concatenate(nodes))

    def root(self, virtual_size: int) -> bytes:
        """The digest root of the state (RULES 5)."""
        return root_of_pages(virtual_size, *self.index())

    def touched(self) -> Iterator[tuple[PageNumbers, Leaves | None, Nodes]]:
        """Every page the log touches, in ascending order, some at a time: numbers (n,), leaves
        (n, 4096), nodes (n, 16). Leaves are None for a run of pages that are zero as a whole."""
        numbers = self._log.pages()
        is_zero = np.isin(numbers, self._log.zeroed_pages(), assume_unique=True)
        start = 0
        while start < len(numbers):
            stop = start + _run_length(is_zero, start)
            if is_zero[start]:
                zeros = np.frombuffer(zero_node(2), dtype=np.uint8)
                yield numbers[start:stop], None, np.tile(zeros, (stop - start, 1))
            else:
                stop = min(stop, start + _PAGES_AT_ONCE)
                leaves = np.stack([self.leaves(int(number)) for number in numbers[start:stop]])
                yield numbers[start:stop], leaves, page_nodes(leaves)
            start = stop

    def parent_leaves(self, page_number: int) -> Leaves:
        """(4096,) uint64 of the page in the parent state, zero leaves without one. A fresh
        array."""
        if self._parent is None:
            return np.full(LEAVES_PER_PAGE, ZERO_LEAF, dtype=np.uint64)
        try:
            return np.array(self._parent.leaves(page_number), dtype=np.uint64)
        except (DiskCorrupt, DiskIO):
            if self._proved is None:
                raise
            leaves = self._proved(page_number, self._parent.node(page_number))
            self.lost_pages.add(page_number)
            return leaves

    def parent_nodes(self, numbers: PageNumbers) -> Nodes:
        """(n, 16): the parent state's nodes of these pages, the zero node where it has none."""
        nodes = np.tile(np.frombuffer(zero_node(2), dtype=np.uint8), (len(numbers), 1))
        if self._parent is not None:
            known = self._parent.page_numbers
            places = np.searchsorted(known, numbers)
            found = places < len(known)
            found[found] = known[places[found]] == numbers[found]
            nodes[found] = self._parent.nodes[places[found]]
        return nodes

    def joined_root(self, virtual_size: int, numbers: PageNumbers, nodes: Nodes) -> bytes:
        """The root, given the nodes of all touched pages (as `touched` yielded them)."""
        return root_of_pages(virtual_size, *self._joined(numbers, nodes))

    def close(self) -> None:
        """Close the parent's digest files; the log belongs to the caller."""
        if self._parent is not None:
            self._parent.close()

    def _joined(self, touched: PageNumbers, nodes: Nodes) -> tuple[PageNumbers, Nodes]:
        if self._parent is not None:
            untouched = ~np.isin(self._parent.page_numbers, touched, assume_unique=True)
            numbers = np.concatenate([self._parent.page_numbers[untouched], touched])
            order = np.argsort(numbers)
            touched = numbers[order]
            nodes = np.concatenate([self._parent.nodes[untouched], nodes])[order]
        is_zero = (nodes == np.frombuffer(zero_node(2), dtype=np.uint8)).all(axis=1)
        return touched[~is_zero], np.ascontiguousarray(nodes[~is_zero])


def _run_length(flags: npt.NDArray[np.bool_], start: int) -> int:
    """How many entries from `start` on equal the one there."""
    others = np.flatnonzero(flags[start:] != flags[start])
    return int(others[0]) if len(others) else len(flags) - start
