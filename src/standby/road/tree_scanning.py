"""Comparing a disk with the digest tree of what the target holds, from the root down.

What is at stake is a line between two sites: the source asks for the children of nodes that differ,
and of no others, some hundred at a time. A part of the disk is *surveyed*: all its leaves are
computed here, and its node is compared. Where that differs, the target's page nodes, then block
nodes, then leaves of blocks are asked for, each for all of up to 64 pages at once, and the runs of
pieces that differ are read once more and sent. (What is read again is counted once.)

    part          surveyed                   asked for where it differs
    unit  64 GiB  page nodes are kept        groups, their pages (2 round trips); read once more
    group  1 GiB  leaves are kept (2 MiB)    its pages (1 round trip)
    64 pages                                 blocks, leaves of blocks (2 round trips)

The first unit, and each one behind a unit with many differences, is gone through by groups: what
differs is sent soon and read less often. What the target has nothing of is no survey's: it is read
and sent in one go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from standby import comparing, digesting
from standby.clock import SYSTEM_CLOCK
from standby.digesting import FANOUT, LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.road.batches import LeafArray
from standby.road.pages import Mask, data_mask, page_range, read_leaves, zero_page
from standby.road.scan_ranges import PageNumbers, Windows
from standby.road.scanning import Change, PageLookup, SendTask
from standby.road.tree_nodes import (
    BLOCK_LEVEL,
    PAGE_LEVEL,
    PAGES_MAX,
    TOP_LEVEL,
    Children,
    is_zero,
    zero_child,
)

Nodes = npt.NDArray[np.uint8]

GROUP_LEVEL, UNIT_LEVEL = 3, 4
UNIT_PAGES = FANOUT * FANOUT

CLOSE_PAGES = 64
"""Differing pages of a unit, of 4096, from which the next one is gone through by groups."""


class TreeOwner(Protocol):
    """Who has the line to the target, and the threads that read and send."""

    @property
    def task(self) -> SendTask: ...
    @property
    def stored_index(self) -> PageLookup: ...
    def check(self) -> None: ...
    def children(self, level: int, numbers: Sequence[int]) -> Children: ...
    def fetch_leaves(self, pages: Sequence[int]) -> LeafArray: ...
    def send_pages(self, pages: PageNumbers, stop: int, changes: Mapping[int, Change]) -> None: ...
    def tell_mark(self, mark: int) -> None: ...
    def stage(self, pages: list[int], leaves: LeafArray) -> None: ...
    def scanner_done(self, read: int, source_s: float, proxy_s: float) -> None: ...


class TreeScan:
    """One disk's. `pages` (ascending) may hold something on this side, or in its repository."""

    def __init__(self, owner: TreeOwner, pages: PageNumbers) -> None:
        self._owner = owner
        self._task = owner.task
        self._disk = owner.task.disk
        self._size = owner.task.disk.virtual_size
        self._first = owner.task.resume_mark // PAGE
        """Pages below are at the target already."""
        self._pages = pages
        self._pool: ThreadPoolExecutor
        self.done = 0
        """Bytes of disk that are behind us."""

    def run(self) -> None:
        """Returns when all that differs was sent."""
        with ThreadPoolExecutor(self._task.threads, thread_name_prefix=self._task.task) as pool:
            self._pool = pool
            if self._task.candidates is not None:
                self._run_candidates(Windows(self._size, self._task.candidates))
            else:
                self._run_units()

    def _run_units(self) -> None:
        count = -(-self._size // (UNIT_PAGES * PAGE))
        tops = range(-(-count // FANOUT))
        theirs = self._owner.children(TOP_LEVEL, tops).reshape(-1, 16)[:count]
        is_absent = is_zero(UNIT_LEVEL, theirs)
        units = np.union1d(np.flatnonzero(~is_absent), self._pages // UNIT_PAGES)
        is_close = True
        for unit in units[units >= self._first // UNIT_PAGES].tolist():
            start, stop = unit * UNIT_PAGES, (unit + 1) * UNIT_PAGES
            if is_absent[unit]:
                self._send_absent(start, stop)
            elif is_close or start < self._first:
                is_close = self._by_groups(unit) > CLOSE_PAGES
            else:
                is_close = self._as_a_whole(unit, theirs[unit]) > CLOSE_PAGES
            self._be_done(stop)

    def _be_done(self, stop: int) -> None:
        """Everything below that page is at the target now."""
        self.done = min(stop * PAGE, self._size)
        self._owner.tell_mark(self.done)

    def _between(self, start: int, stop: int) -> PageNumbers:
        low, high = np.searchsorted(self._pages, (max(start, self._first), stop))
        return self._pages[low:high]

    def _send_absent(self, start: int, stop: int) -> None:
        """The target has nothing of this part: whatever is not zero is a change."""
        pages = self._between(start, stop)
        if len(pages):
            self._owner.send_pages(pages, min(stop * PAGE, self._size), {})

    # --- parts -------------------------------------------------------------------------------

    def _by_groups(self, unit: int) -> int:
        """Compare and send a unit; how many of its pages differ."""
        groups = self._owner.children(UNIT_LEVEL, [unit])[0]
        count = 0
        for place in range(FANOUT):
            group = unit * FANOUT + place
            start, stop = group * FANOUT, (group + 1) * FANOUT
            if stop <= self._first or start * PAGE >= self._size:
                continue
            if is_zero(GROUP_LEVEL, groups[place]):
                self._send_absent(start, stop)
            else:
                count += self._group(group, groups[place])
            self._be_done(stop)
        return count

    def _group(self, group: int, node: Nodes) -> int:
        start = group * FANOUT
        pages = self._between(start, start + FANOUT)
        nodes, leaves = self._surveyed(pages, keeps=True)
        own = self._spread(start, FANOUT, pages, nodes)
        numbers = np.arange(start, start + FANOUT)
        if start >= self._first:
            _, above = digesting.parents(PAGE_LEVEL, numbers, own)
            if np.array_equal(above[0], node):
                return 0
        theirs = self._owner.children(GROUP_LEVEL, [group])[0]
        is_other = (own != theirs).any(axis=1) & (numbers >= self._first)
        differing = numbers[is_other]
        kept = np.full((len(differing), LEAVES_PER_PAGE), ZERO_LEAF, np.uint64)
        is_here = np.isin(differing, pages)
        kept[is_here] = leaves[np.searchsorted(pages, differing[is_here])]
        self._send(differing, theirs[is_other], kept)
        return len(differing)

    def _as_a_whole(self, unit: int, node: Nodes) -> int:
        """As `_by_groups`."""
        start = unit * UNIT_PAGES
        pages = self._between(start, start + UNIT_PAGES)
        nodes, _ = self._surveyed(pages, keeps=False)
        own = self._spread(start, UNIT_PAGES, pages, nodes)
        groups = digesting.parents(PAGE_LEVEL, np.arange(start, start + UNIT_PAGES), own)
        _, above = digesting.parents(GROUP_LEVEL, *groups)
        if np.array_equal(above[0], node):
            return 0
        is_other = (groups[1] != self._owner.children(UNIT_LEVEL, [unit])[0]).any(axis=1)
        chosen = groups[0][is_other]
        theirs = self._owner.children(GROUP_LEVEL, chosen.tolist())
        numbers = chosen[:, None] * FANOUT + np.arange(FANOUT)
        differs = (own[numbers - start] != theirs).any(axis=2)
        differing, nodes_there = numbers[differs], theirs[differs]
        for first in range(0, len(differing), PAGES_MAX):
            few = slice(first, first + PAGES_MAX)
            _, leaves = self._surveyed(differing[few], keeps=True, stages=False)
            self._send(differing[few], nodes_there[few], leaves)
        return len(differing)

    @staticmethod
    def _spread(start: int, count: int, pages: PageNumbers, nodes: Nodes) -> Nodes:
        """(count, 16): the nodes of all pages from `start` on, those of `pages` and zero ones."""
        found: Nodes = np.tile(zero_child(GROUP_LEVEL), (count, 1))
        found[pages - start] = nodes
        return found

    # --- this side ---------------------------------------------------------------------------

    def _surveyed(
        self, pages: PageNumbers, *, keeps: bool, stages: bool = True
    ) -> tuple[Nodes, LeafArray]:
        """Nodes (n, 16) of these pages as they are here, and, with `keeps`, leaves (n, 4096).
        Without `stages` it is the second time."""
        nodes = [np.empty((0, 16), np.uint8)]
        kept = [np.empty((0, LEAVES_PER_PAGE), np.uint64)]
        for first in range(0, len(pages), PAGES_MAX):
            few = pages[first : first + PAGES_MAX]
            begun = SYSTEM_CLOCK.monotonic()
            read = list(self._pool.map(self._hashed, few.tolist()))
            leaves = np.stack([one for one, _ in read])
            total = sum(count for _, count in read) if stages else 0
            self._owner.scanner_done(total, SYSTEM_CLOCK.monotonic() - begun, 0.0)
            nodes.append(digesting.page_nodes(leaves))
            if keeps:
                kept.append(leaves)
            if stages:
                self._stage(few, nodes[-1], leaves)
            self.done = min(max(self.done, (int(few[-1]) + 1) * PAGE), self._size)
        return np.concatenate(nodes), np.concatenate(kept)

    def _hashed(self, page: int) -> tuple[LeafArray, int]:
        self._owner.check()
        start, stop = page_range(page, self._size)
        leaves = zero_page()
        count = read_leaves(self._disk, start, stop, data_mask(self._disk, start, stop), leaves)
        return leaves, count

    def _stage(self, pages: PageNumbers, nodes: Nodes, leaves: LeafArray) -> None:
        """Have those staged that are not as the repository has them."""
        if self._task.staging is None:
            return
        stored = self._owner.stored_index
        new = [
            n for n, page in enumerate(pages.tolist()) if nodes[n].tobytes() != stored.node(page)
        ]
        if new:
            self._owner.stage(pages[new].tolist(), leaves[new])

    # --- differences -------------------------------------------------------------------------

    def _send(self, pages: PageNumbers, nodes: Nodes, leaves: LeafArray) -> None:
        """Find the pieces of at most 64 pages that differ from the target's, whose nodes are given,
        and send them; `leaves` are ours."""
        if not len(pages):
            return
        held = np.full((len(pages), FANOUT, FANOUT), ZERO_LEAF, np.uint64)
        there = np.flatnonzero(~is_zero(PAGE_LEVEL, nodes))
        if len(there):
            theirs = self._owner.children(PAGE_LEVEL, pages[there].tolist())
            ours = digesting.block_nodes(leaves[there]).reshape(-1, FANOUT, 16)
            is_other = (ours != theirs).any(axis=2)
            blocks = leaves[there].reshape(-1, FANOUT, FANOUT)
            blocks[is_other] = ZERO_LEAF
            row, block = np.nonzero(is_other & ~is_zero(BLOCK_LEVEL, theirs))
            if len(row):
                numbers = pages[there][row] * FANOUT + block
                blocks[row, block] = self._owner.children(BLOCK_LEVEL, numbers.tolist())
            held[there] = blocks
        self._send_changes(pages, held.reshape(-1, LEAVES_PER_PAGE), leaves)

    def _send_changes(self, pages: PageNumbers, held: LeafArray, leaves: LeafArray) -> None:
        changes = {
            page: (leaves[n], comparing.changed_runs(held[n], leaves[n]))
            for n, page in enumerate(pages.tolist())
        }
        stop = min((int(pages[-1]) + 1) * PAGE, self._size)
        self._owner.send_pages(pages, stop, changes)

    # --- where a tracker says what may have changed -----------------------------------------------

    def _run_candidates(self, windows: Windows) -> None:
        """The target's leaves are also the repository's, outside of the candidates: they are asked
        for by whole pages."""
        for first in range(0, len(self._pages), PAGES_MAX):
            pages = self._pages[first : first + PAGES_MAX]
            groups, row = np.unique(pages // FANOUT, return_inverse=True)
            nodes = self._owner.children(GROUP_LEVEL, groups.tolist())[row, pages % FANOUT]
            held = np.full((len(pages), LEAVES_PER_PAGE), ZERO_LEAF, np.uint64)
            is_there = ~is_zero(PAGE_LEVEL, nodes)
            if is_there.any():
                held[is_there] = self._owner.fetch_leaves(pages[is_there].tolist())
            leaves = self._read_over(pages, held, windows.of(pages))
            self._stage(pages, digesting.page_nodes(leaves), leaves)
            self._send_changes(pages, held, leaves)
            self._be_done(int(pages[-1]) + 1)

    def _read_over(
        self, pages: PageNumbers, held: LeafArray, windows: npt.NDArray[np.int64]
    ) -> LeafArray:
        """`held`, with what the disk has in the windows."""
        wanted: Mask = np.zeros(held.size, np.bool_)
        for start, stop, place in windows.tolist():
            wanted[place : place - (-(stop - start) // PIECE)] = True
        wanted = wanted.reshape(held.shape)
        begun, total = SYSTEM_CLOCK.monotonic(), 0
        leaves = held.copy()
        leaves[wanted] = ZERO_LEAF
        for n, page in enumerate(pages.tolist()):
            self._owner.check()
            start, stop = page_range(page, self._size)
            is_read = wanted[n] & data_mask(self._disk, start, stop)
            total += read_leaves(self._disk, start, stop, is_read, leaves[n])
        self._owner.scanner_done(total, SYSTEM_CLOCK.monotonic() - begun, 0.0)
        return leaves
